"""Pictures of every kind that the world holds: each is read right, or refused in one line that names the file."""

from __future__ import annotations

import io
import random
import struct
import zlib
from dataclasses import replace

import numpy as np
import pytest
from broken_media import SAMPLES, PictureFiles, pictures
from PIL import Image
from tiny_training import losses, processor, recipe, system, tokenizer

from weft.core.conversation import Conversation, Media, assistant, user
from weft.core.errors import DataError
from weft.data.images import MAX_PIXELS, ImageTransform, open_image
from weft.training.data_stream import SampleOrder
from weft.training.trainer import Trainer


def noise(width: int = 24, height: int = 16) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def values_of(image: Image.Image, path, **options) -> np.ndarray:
    """What is read back from a file that Pillow wrote."""
    image.save(path, **options)
    return np.asarray(open_image(path))


def refused(source) -> str:
    with pytest.raises(DataError) as caught:
        open_image(source)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# read right


def test_what_is_half_transparent_is_laid_over_white(tmp_path):
    clear = Image.fromarray(noise()).convert("RGBA")
    alpha = np.linspace(0, 255, 24 * 16).astype(np.uint8).reshape(16, 24)
    clear.putalpha(Image.fromarray(alpha))
    share = alpha[..., None] / 255
    expected = noise() * share + 255 * (1 - share)
    assert np.abs(values_of(clear, tmp_path / "clear.png") - expected).max() <= 1  # 8 bits, Pillow's rounding


def test_black_ink_on_nothing_is_not_a_black_picture(tmp_path):
    drawing = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    drawing.putpixel((3, 3), (0, 0, 0, 255))
    values = values_of(drawing, tmp_path / "logo.png")
    assert (values[3, 3] == 0).all() and (values.sum(-1) == 3 * 255).sum() == 63


def test_grey_with_alpha(tmp_path):
    image = Image.merge("LA", (Image.new("L", (2, 1), 100), Image.new("L", (2, 1), 255)))
    image.putpixel((1, 0), (100, 0))
    assert values_of(image, tmp_path / "grey.png")[0].tolist() == [[100] * 3, [255] * 3]


@pytest.mark.parametrize("transparency", [None, 1, b"\xff\x00\xff"], ids=["opaque", "one colour", "a table"])
def test_a_palette(tmp_path, transparency):
    image = Image.new("P", (3, 1))
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    image.putdata([0, 1, 2])
    options = {} if transparency is None else {"transparency": transparency}
    middle = [0, 255, 0] if transparency is None else [255, 255, 255]
    assert values_of(image, tmp_path / "palette.png", **options)[0].tolist() == [[255, 0, 0], middle, [0, 0, 255]]


@pytest.mark.parametrize("kind", ["jpg", "tiff"])
def test_four_inks(tmp_path, kind):
    image = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    # JPEG keeps a flat colour within a step or two
    assert np.abs(values_of(image, tmp_path / f"ink.{kind}").astype(int) - [255, 0, 0]).max() <= 2


@pytest.mark.parametrize("kind", ["png", "tiff"])
def test_grey_of_sixteen_bits_is_scaled(tmp_path, kind):
    ramp = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    assert np.array_equal(values_of(Image.fromarray(ramp), tmp_path / f"ramp.{kind}")[..., 0].flatten(), np.arange(256))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([[0.0, 0.5, 1.0]], np.float32), [0, 128, 255]),
        (np.array([[0, 128, 255]], np.float32), [0, 128, 255]),
        (np.array([[0, 32768, 65535]], np.int32), [0, 128, 255]),
    ],
    ids=["fractions", "8 bits", "16 bits"],
)
def test_wide_grey_values(tmp_path, values, expected):
    assert values_of(Image.fromarray(values), tmp_path / "wide.tiff")[0, :, 0].tolist() == expected


@pytest.mark.parametrize(
    "values",
    [
        np.array([[-5, 10]], np.int32),
        np.array([[0, 70_000]], np.int32),
        np.array([[np.nan, 1]], np.float32),
        np.array([[np.inf, 1]], np.float32),
    ],
    ids=["negative", "large", "nan", "infinite"],
)
def test_wide_grey_values_without_a_known_range_are_refused(tmp_path, values):
    path = tmp_path / "wide.tiff"
    Image.fromarray(values).save(path)
    assert f"{path} has grey values from" in refused(path)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_eight_ways_to_hold_a_camera(tmp_path, orientation):
    upright = noise()
    held = {
        1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1],
        5: upright.transpose(1, 0, 2), 6: np.rot90(upright, 1), 7: np.rot90(upright[:, ::-1], -1), 8: np.rot90(upright, -1),
    }  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(held[orientation]))
    assert np.array_equal(values_of(stored, tmp_path / "held.png", exif=exif), upright)


@pytest.mark.parametrize("kind", ["gif", "png", "webp"])
def test_an_animation_is_its_first_frame(tmp_path, kind):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ((255, 0, 0), (0, 255, 0), (0, 0, 255))]
    options = {"lossless": True} if kind == "webp" else {}
    values = values_of(frames[0], tmp_path / f"moving.{kind}", save_all=True, append_images=frames[1:], **options)
    assert (values == [255, 0, 0]).all()


@pytest.mark.parametrize("resize", ["shortest", "direct"])
@pytest.mark.parametrize("pad", [False, True])
def test_one_pixel(tmp_path, resize, pad):
    path = tmp_path / "dot.png"
    Image.new("RGB", (1, 1), (200, 100, 50)).save(path)
    pixels = ImageTransform(size=8, resize=resize, pad_to_square=pad).pixels(open_image(path))
    assert pixels.shape == (8, 8, 3) and (pixels == [200, 100, 50]).all()


# refused by name


def test_an_empty_file_a_folder_a_text_and_nothing(tmp_path):
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "page.jpg").write_text("<html>404</html>")
    (tmp_path / "folder.png").mkdir()
    for name, reason in (
        ("empty.png", "is no image"),
        ("page.jpg", "is no image"),
        ("folder.png", "is a folder"),
        ("gone.png", "no image file"),
    ):
        said = refused(tmp_path / name)
        assert str(tmp_path / name) in said and reason in said


def test_a_header_that_promises_a_huge_picture_is_refused_before_anything_is_allocated(tmp_path, recwarn):
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    path = tmp_path / "bomb.png"
    for side in (10_000, 100_000):  # past our limit, where Pillow warns; past the limit where it raises
        assert side**2 > MAX_PIXELS
        header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
        path.write_bytes(
            b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
        )
        assert f"{path} is refused" in refused(path)
    assert not recwarn.list


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "ICO", "TGA"])
def test_damage_anywhere_is_one_line_or_a_whole_picture(kind, recwarn):
    """A hundred files with bytes changed or the end cut off: no exception but ours, and what opens has all its pixels."""
    file = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.fromarray(noise()).save(file, kind, **({"exif": exif} if kind in ("PNG", "JPEG", "WEBP", "TIFF") else {}))
    whole, dice = file.getvalue(), random.Random(0)
    for _ in range(100):
        damaged = bytearray(whole)
        for _ in range(dice.randint(1, 6)):
            damaged[dice.randrange(len(damaged))] = dice.randrange(256)
        if dice.random() < 0.3:
            damaged = damaged[: dice.randrange(len(damaged))]
        try:
            image = open_image(bytes(damaged), "damaged.file")
        except DataError as error:
            assert "damaged.file" in str(error) and "\n" not in str(error)
        else:
            assert image.mode == "RGB" and np.asarray(image).shape == (image.height, image.width, 3)
    assert not recwarn.list


# one bad picture among many


def test_a_bad_picture_is_named_with_its_sample(tmp_path):
    path = tmp_path / "bad.jpg"
    path.write_bytes(b"\xff\xd8\xff")
    sample = Conversation((user(Media(str(path)), "what is this?"), assistant("a cat")), id="17", source="train.json")
    with pytest.raises(DataError, match=r"sample train\.json:17.*bad\.jpg"):
        processor().build(tokenizer(), system()).encode(sample)


def test_a_bad_picture_stops_a_strict_run_by_name_and_once_mended_the_run_goes_on_as_if_it_had_never_been(tmp_path):
    """Training on less than was asked for is for the user to choose: `tests/training/test_skip_broken.py`."""
    pictures(tmp_path)
    stages = recipe(steps=5, data=PictureFiles.Config(folder=str(tmp_path))).stages[:1]
    run = replace(recipe(), stages=stages)
    Trainer(run, tmp_path / "whole", tokenizer=tokenizer(), checkpoint_every=2).fit()
    order = SampleOrder(SAMPLES, stages[0].batch_size, 0, stages[0].name)
    bad = tmp_path / f"{order.indices(3)[1]}.png"  # the fourth step meets it
    good = bad.read_bytes()
    bad.write_bytes(good[:40])
    with pytest.raises(DataError, match=rf"sample files:{bad.stem}\b.*{bad.name}"):
        Trainer(run, tmp_path / "run", tokenizer=tokenizer(), checkpoint_every=2).fit()
    bad.write_bytes(good)
    Trainer(run, tmp_path / "run", tokenizer=tokenizer(), checkpoint_every=2).fit(resume=True)
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")
