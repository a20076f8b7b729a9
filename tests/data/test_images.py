"""Pictures: opened safely in every form, and at the values that `transformers` gives."""

import io
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from weft.core.errors import ConfigError, DataError
from weft.data.images import (
    CLIP_MEAN,
    HALF,
    IMAGENET_MEAN,
    IMAGENET_STD,
    MAX_PIXELS,
    EvenCentreTransform,
    ImageTransform,
    open_image,
)

SIZES = [(40, 40), (64, 31), (31, 64), (33, 50), (20, 90), (500, 33), (1, 1), (7, 3), (200, 150)]


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """Soft colours with noise, so that both resampling and cropping show."""
    random = np.random.default_rng(seed)
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    values = np.stack((x, y, 255 - x), -1) * 0.7 + random.uniform(0, 76, (height, width, 3))
    return Image.fromarray(values.astype(np.uint8))


def as_bytes(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def in_pixels(transform: ImageTransform, values: torch.Tensor) -> torch.Tensor:
    """Values back in units of 1/255."""
    mean, std = torch.tensor(transform.mean)[:, None, None], torch.tensor(transform.std)[:, None, None]
    return (values * std + mean) * 255


PROCESSORS = {
    "CLIP": (
        "CLIPImageProcessorPil",
        {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}},
        ImageTransform(size=32),
    ),
    "SigLIP": (
        "SiglipImageProcessorPil",
        {"size": {"height": 32, "width": 32}},
        ImageTransform(size=32, resize="direct", mean=HALF, std=HALF),
    ),
    "LLaVA-1.5": (
        "LlavaImageProcessorPil",
        {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}, "do_pad": True},
        ImageTransform(size=32, pad_to_square=True),
    ),
    "DINOv2": (
        "BitImageProcessorPil",
        {
            "size": {"shortest_edge": 37},
            "crop_size": {"height": 32, "width": 32},
            "image_mean": list(IMAGENET_MEAN),
            "image_std": list(IMAGENET_STD),
        },
        ImageTransform(size=32, shorter_side=37, mean=IMAGENET_MEAN, std=IMAGENET_STD),
    ),
    "ResNet": (
        "ConvNextImageProcessorPil",
        {
            "size": {"shortest_edge": 28},
            "crop_pct": 0.875,
            "image_mean": list(IMAGENET_MEAN),
            "image_std": list(IMAGENET_STD),
        },
        ImageTransform(size=28, shorter_side=32, mean=IMAGENET_MEAN, std=IMAGENET_STD),
    ),
    "ViT": (
        "ViTImageProcessorPil",
        {"size": {"height": 32, "width": 32}},
        ImageTransform(size=32, resize="direct", filter="bilinear", mean=HALF, std=HALF),
    ),
    "BLIP-2": (
        "BlipImageProcessorPil",
        {"size": {"height": 32, "width": 32}},
        ImageTransform(size=32, resize="direct"),
    ),
}


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("name", PROCESSORS)
def test_the_values_are_those_of_the_stock_processor(name, size):
    transformers = pytest.importorskip("transformers")
    cls, options, transform = PROCESSORS[name]
    assert_equal(transform, getattr(transformers, cls)(**options), picture(*size))


@pytest.mark.parametrize(("kind", "start"), [(ImageTransform, 15), (EvenCentreTransform, 16)])
def test_the_centre_of_a_squashed_picture_begins_where_its_publisher_says(kind, start):
    """NFNet-F1 at its test size: 320 of 351 pixels, 15.5 on each side; timm's library rounds halves to even."""
    image, end = picture(400, 300), start + 320
    whole = np.asarray(image.resize((351, 351), Image.Resampling.BICUBIC))
    transform = kind(size=320, resize="direct", shorter_side=351)
    assert np.array_equal(transform.pixels(image), whole[start:end, start:end])
    assert transform.shown((351, 351)) == (start, start, end, end)


@pytest.mark.parametrize("wrong", [{"shorter_side": 20}, {"filter": "lanczos"}, {"size": 0}], ids=str)
def test_settings_that_do_not_fit_together_are_refused(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        ImageTransform(**{"size": 32, **wrong})


def assert_equal(transform: ImageTransform, theirs, image: Image.Image) -> None:
    ours = transform.apply(image)
    reference = torch.as_tensor(np.asarray(theirs(image, return_tensors="pt")["pixel_values"][0]))
    assert ours.shape == (3, transform.size, transform.size)
    # both resample 8-bit pictures with Pillow; only float rounding of the normalisation may differ
    assert (in_pixels(transform, ours) - in_pixels(transform, reference)).abs().max() < 1e-3


def test_a_very_long_picture_is_cropped_before_it_grows():
    # scaled whole, this one would take 3 * 336 * 30 million bytes
    assert ImageTransform(size=336).pixels(Image.new("RGB", (90_000, 1), (9, 8, 7)))[0, 0].tolist() == [9, 8, 7]


def test_a_picture_too_long_for_a_square_is_refused():
    with pytest.raises(DataError, match="90000 x 1 is too long to be padded"):
        ImageTransform(size=8, pad_to_square=True).pixels(Image.new("RGB", (90_000, 1)))


def test_padding_puts_the_picture_in_the_middle_of_the_mean_colour():
    black = Image.new("RGB", (4, 2))
    padded = ImageTransform(size=4, pad_to_square=True).pixels(black)
    assert padded[0, 0].tolist() == [int(255 * m) for m in CLIP_MEAN] == [122, 116, 104]
    assert (padded[1:3] == 0).all()


def test_an_array_of_the_right_size_is_taken_as_it_is():
    array = np.asarray(picture(24, 24))
    transform = ImageTransform(size=24, resize="direct", mean=HALF, std=HALF)
    assert transform.pixels(array) is array
    assert torch.equal(transform.apply(array), transform.apply(Image.fromarray(array)))


def test_a_batch_equals_its_pictures_one_by_one():
    transform = ImageTransform(size=16)
    pictures = [np.asarray(picture(16, 16, seed)) for seed in range(3)]
    batch = transform.normalise(pictures)
    assert batch.is_contiguous()
    assert torch.equal(batch, torch.stack([transform.apply(array) for array in pictures]))


def test_a_palette_an_alpha_channel_and_grey_become_rgb():
    image = picture(8, 8)
    quantised = image.quantize(16)
    assert np.array_equal(np.asarray(open_image(quantised)), np.asarray(quantised.convert("RGB")))
    opaque = image.copy()
    opaque.putalpha(255)
    assert np.array_equal(np.asarray(open_image(as_bytes(opaque, "PNG"))), np.asarray(image))
    grey = open_image(as_bytes(image.convert("L"), "PNG"))
    assert grey.mode == "RGB" and np.array_equal(np.asarray(grey)[..., 0], np.asarray(image.convert("L")))
    two = open_image(as_bytes(image.convert("1"), "PNG"))
    assert set(np.unique(np.asarray(two))) <= {0, 255}


def test_cmyk_becomes_rgb():
    red = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    values = np.asarray(open_image(as_bytes(red, "TIFF")))
    assert (values == [255, 0, 0]).all()


def test_sixteen_bits_keep_their_range():
    ramp = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    values = np.asarray(open_image(as_bytes(Image.fromarray(ramp), "PNG")))[..., 0]
    # the 256 steps of 257 land on the 256 values; a plain conversion would clip nearly all to 255
    assert np.array_equal(values.flatten(), np.arange(256))


def test_exif_rotation_is_applied():
    image = picture(6, 4)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show the picture turned right by 90 degrees
    turned = open_image(as_bytes(image, "PNG", exif=exif))
    assert turned.size == (4, 6)
    assert np.array_equal(np.asarray(turned), np.rot90(np.asarray(image), -1))


def test_one_pixel_is_a_picture():
    assert ImageTransform(size=8).apply(Image.new("RGB", (1, 1), (255, 0, 0))).shape == (3, 8, 8)


def test_a_path_and_its_bytes_are_the_same_picture(tmp_path):
    image = picture(9, 5)
    path = tmp_path / "a.png"
    image.save(path)
    assert np.array_equal(np.asarray(open_image(path)), np.asarray(open_image(path.read_bytes())))
    assert np.array_equal(np.asarray(open_image(str(path))), np.asarray(image))


def refused(source: object) -> str:
    with pytest.raises(DataError) as caught:
        open_image(source)
    message = str(caught.value)
    assert "0x" not in message and "\n" not in message
    return message


def test_files_that_are_no_picture_are_refused_by_name(tmp_path):
    text = tmp_path / "notes.png"
    text.write_text("this is no picture")
    assert refused(text) == f"{text} is no image of a known format"
    assert "no image file" in refused(tmp_path / "missing.png")
    assert "is a folder" in refused(tmp_path)
    (tmp_path / "empty.jpg").write_bytes(b"")
    assert "empty.jpg is no image" in refused(tmp_path / "empty.jpg")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_truncated_files_are_refused_by_name(kind, tmp_path):
    whole = as_bytes(picture(64, 64), kind)
    path = tmp_path / f"cut.{kind.lower()}"
    path.write_bytes(whole[: len(whole) // 2])
    assert str(path) in refused(path)


def test_bytes_without_a_name_say_so():
    assert refused(b"not an image") == "an image of 12 bytes is no image of a known format"


@pytest.mark.parametrize("side", [10_000, 20_000])
def test_a_decompression_bomb_is_refused_before_it_unpacks(side, recwarn):
    assert side * side > MAX_PIXELS

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    header = side.to_bytes(4, "big") * 2 + bytes([8, 2, 0, 0, 0])
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")
    assert "refused" in refused(bomb)
    assert [str(w.message) for w in recwarn.list] == []


def test_a_small_picture_past_the_limit_of_weft_is_refused(monkeypatch):
    monkeypatch.setattr("weft.data.images.MAX_PIXELS", 99)
    assert "10 x 10" in refused(picture(10, 10))


@pytest.mark.parametrize("array", [np.zeros((4, 4)), np.zeros((4, 4, 4), np.uint8), np.zeros((0, 4, 3), np.uint8)], ids=str)
def test_other_arrays_are_refused_with_their_shape(array):
    assert str(array.shape) in refused(array)


def test_other_things_are_refused():
    assert "an image is a path, bytes, a PIL image or an array" in refused(object())
