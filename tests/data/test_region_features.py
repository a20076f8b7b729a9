"""Regions on their way in: boxes go where pixels go, and files of detected features are read exactly or refused by line."""

import base64
from dataclasses import fields, replace

import numpy as np
import pytest
from PIL import Image

from weft.core.errors import ConfigError, DataError
from weft.core.layout import MediaLayout
from weft.data.images import ImageTransform
from weft.data.region_features import COLUMNS, RegionFeatures, RegionTsv
from weft.data.region_folder import RegionFolder, convert_tsv, write_regions
from weft.data.region_transforms import PictureRegions, RegionFeatureTransform, RegionTransform

GRID = MediaLayout(4, 4)
SIZE = (100, 60)


def row(image_id="COCO_1", count=3, width=5, seed=0, **changes):
    """One line as LXMERT's files have it, and what it says."""
    draw = np.random.default_rng(seed)
    start = draw.uniform(0, 20, (count, 2))
    boxes = np.concatenate((start, start + draw.uniform(5, 35, (count, 2))), 1).astype(np.float32)
    arrays = {
        "objects_id": draw.integers(0, 1600, count),
        "objects_conf": draw.uniform(0, 1, count).astype(np.float32),
        "attrs_id": draw.integers(0, 400, count),
        "attrs_conf": draw.uniform(0, 1, count).astype(np.float32),
        "boxes": boxes,
        "features": draw.standard_normal((count, width)).astype(np.float32),
    }
    arrays |= {name: value for name, value in changes.items() if isinstance(value, np.ndarray)}
    said = {"img_id": image_id, "img_h": str(SIZE[1]), "img_w": str(SIZE[0]), "num_boxes": str(count)}
    said |= {name: base64.b64encode(array.tobytes()).decode() for name, array in arrays.items()}
    said |= {name: value for name, value in changes.items() if isinstance(value, str)}
    return "\t".join(said[name] for name in COLUMNS) + "\n", arrays


def tsv(tmp_path, *lines):
    path = tmp_path / "features.tsv"
    path.write_bytes("".join(lines).encode())
    return path


def same(a: RegionFeatures, b: RegionFeatures) -> bool:
    return all(np.array_equal(getattr(a, field.name), getattr(b, field.name)) for field in fields(a))


def test_a_line_is_read_to_the_last_bit(tmp_path):
    line, arrays = row()
    found = RegionTsv(tsv(tmp_path, row("first", 2, seed=1)[0], line))["COCO_1"]
    assert (found.image_id, found.size) == ("COCO_1", SIZE)
    assert np.array_equal(found.features, arrays["features"])
    assert np.array_equal(found.boxes, arrays["boxes"] / np.array([100, 60, 100, 60], np.float32))
    assert np.array_equal(found.objects, arrays["objects_id"]) and found.objects.dtype == np.int64
    assert np.array_equal(found.object_scores, arrays["objects_conf"])
    assert np.array_equal(found.attributes, arrays["attrs_id"])
    assert np.array_equal(found.attribute_scores, arrays["attrs_conf"])


def test_pictures_are_found_by_name_and_walked_in_order(tmp_path):
    names = ["c", "a", "b"]
    reader = RegionTsv(tsv(tmp_path, *(row(name, 1 + i, seed=i)[0] for i, name in enumerate(names))))
    assert reader.image_ids == ("c", "a", "b") and len(reader) == 3 and reader.feature_width == 5
    assert [len(each.boxes) for each in reader] == [1, 2, 3]
    assert all(same(reader[each.image_id], each) for each in reader)
    with pytest.raises(DataError, match="no picture 'd'"):
        reader["d"]


def test_a_box_that_reaches_a_pixel_over_the_edge_is_cut_there(tmp_path):
    boxes = np.array([[-0.5, 10, 100.9, 60.2]], np.float32)
    (found,) = RegionTsv(tsv(tmp_path, row(count=1, boxes=boxes)[0]))
    assert found.boxes[0, [0, 2, 3]].tolist() == [0, 1, 1]


CORRECT = row()[1]
NOT_FINITE = CORRECT["features"].copy()
NOT_FINITE[1, 1] = np.nan
LABELS_FOR_TWO = np.zeros(2, np.int64)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("\n", "has 1 fields, expected 10"),
        ("\t".join(COLUMNS) + "\n", "img_w is 'img_w'"),
        (row()[0][:-40], "features"),  # cut off
        (row(img_id="")[0], "no img_id"),
        (row("näme")[0], "no ASCII"),
        (row("fine")[0], "stands in line 1 already"),
        (row(img_h="0")[0], "img_h is '0'"),
        (row(img_w="9" * 5000)[0], "img_w is '99"),
        (row(num_boxes="0")[0], "num_boxes is '0'"),
        (row(num_boxes="2")[0], "no multiple of 2 boxes|holds 6 values|numbers each"),
        (row(features="b'AAAA'")[0], "features is no base64"),
        (row(features="")[0], "features holds 0 bytes"),
        (row(features=CORRECT["features"][:, :4].copy())[0], "4 wide, those of the first line 5"),
        (row(features=NOT_FINITE)[0], "not finite"),
        (row(boxes=CORRECT["boxes"][:, :2].copy())[0], "boxes hold 2 numbers"),
        (row(boxes=CORRECT["boxes"] + 80)[0], "outside of the picture"),
        (row(boxes=CORRECT["boxes"][:, [2, 1, 0, 3]].copy())[0], "needs 0 <= x1 < x2"),
        (row(objects_id=np.zeros(6, np.int64))[0], "objects_id holds 6 values for 3 boxes"),
        (row(attrs_conf=np.zeros(2, np.float32))[0], "attrs_conf holds 8 bytes"),
    ],
)
def test_a_line_that_cannot_be_used_is_named(tmp_path, line, message):
    path = tsv(tmp_path, row("fine")[0], line)
    with pytest.raises(DataError, match=rf"features\.tsv, line 2: .*({message})"):
        list(RegionTsv(path))
    with pytest.raises(DataError, match="line 2"):
        convert_tsv(path, tmp_path / "folder")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["features.tsv"], "nothing is left behind"


STRAY = {
    "a space": " ",
    "an accent": "\u00e9",
    "a url-safe letter": "-",
    "a null byte": "\0",
    "padding within": "=",
    "a quote": '"',
}


@pytest.mark.parametrize("column", ["objects_id", "objects_conf", "attrs_id", "attrs_conf", "boxes", "features"])
@pytest.mark.parametrize("stray", STRAY.values(), ids=STRAY)
@pytest.mark.parametrize("place", [0, 9, None], ids=["in front", "within", "behind"])
def test_a_stray_character_in_an_array_is_never_skipped(tmp_path, column, stray, place):
    """Lenient decoders pass over what is not base64; every number behind it would then come from shifted bits."""
    text = base64.b64encode(row("torn")[1][column].tobytes()).decode()
    place = len(text) if place is None else place
    torn = row("torn", **{column: text[:place] + stray + text[place:]})[0]
    path = tsv(tmp_path, row("fine")[0], torn)
    with pytest.raises(DataError, match=rf"features\.tsv, line 2: {'is no ASCII' if ord(stray) > 127 else column}"):
        list(RegionTsv(path))


def test_the_first_stray_character_is_named_with_its_place(tmp_path):
    text = base64.b64encode(CORRECT["features"].tobytes()).decode()
    path = tsv(tmp_path, row("fine")[0], row("torn", features=text[:7] + "*" + text[7:])[0])
    with pytest.raises(DataError, match=r"features\.tsv, line 2: features is no base64: character 8 is '\*'"):
        RegionTsv(path)["torn"]


def test_windows_line_ends_are_no_stray_characters(tmp_path):
    line, arrays = row()
    (found,) = RegionTsv(tsv(tmp_path, line[:-1] + "\r\n"))
    assert np.array_equal(found.features, arrays["features"])


def test_no_file_and_an_empty_file_are_refused(tmp_path):
    with pytest.raises(DataError, match="no file of region features"):
        RegionTsv(tmp_path / "missing.tsv")
    with pytest.raises(DataError, match="is empty"):
        RegionTsv(tsv(tmp_path))


def test_a_converted_file_says_the_same_of_every_picture(tmp_path):
    reader = RegionTsv(tsv(tmp_path, *(row(f"p{i}", 1 + i, seed=i)[0] for i in range(5))))
    assert convert_tsv(reader.path, tmp_path / "folder", pictures_per_file=2) == 5
    folder = RegionFolder(tmp_path / "folder")
    assert len(list(folder.folder.iterdir())) == 3
    assert folder.image_ids == reader.image_ids and folder.feature_width == 5
    assert all(same(a, b) for a, b in zip(reader, folder, strict=True))
    assert same(folder["p3"], reader["p3"])
    with pytest.raises(DataError, match="no picture 'p9'"):
        folder["p9"]


def test_half_precision_keeps_three_digits_and_refuses_what_does_not_fit(tmp_path):
    (picture,) = RegionTsv(tsv(tmp_path, row()[0]))
    write_regions(tmp_path / "half", [picture], "float16")
    (found,) = RegionFolder(tmp_path / "half")
    assert found.features.dtype == np.float16
    assert np.abs(found.features - picture.features).max() <= np.abs(picture.features).max() * 2**-11
    with pytest.raises(DataError, match="does not fit into float16"):
        write_regions(tmp_path / "large", [replace(picture, features=picture.features * 1e6)], "float16")


def test_folders_that_cannot_be_trusted_are_refused(tmp_path):
    first, second = RegionTsv(tsv(tmp_path, row("a")[0], row("b")[0]))
    folder = tmp_path / "folder"
    write_regions(folder, [first, second], pictures_per_file=1)
    with pytest.raises(DataError, match="exists already"):
        write_regions(folder, [first])
    with pytest.raises(DataError, match="both hold the picture 'a'"):
        write_regions(tmp_path / "twice", [first, first], pictures_per_file=1)
    with pytest.raises(DataError, match="no file regions"):
        write_regions(tmp_path / "none", [])
    wider = replace(second, features=np.zeros((3, 9), np.float32))
    for number in (1, 2):
        with pytest.raises(DataError, match="several widths"):
            write_regions(tmp_path / "widths", [first, wider], pictures_per_file=number)
    with pytest.raises(ConfigError, match="pictures_per_file=0"):
        write_regions(tmp_path / "zero", [first], pictures_per_file=0)
    (folder / "regions-00001.safetensors").write_bytes(b"cut off")
    with pytest.raises(DataError, match="cannot be read as region features"):
        RegionFolder(folder)


def test_another_safetensors_file_is_no_file_of_regions(tmp_path):
    from safetensors.numpy import save_file

    save_file({"features": np.zeros((1, 2), np.float32)}, tmp_path / "regions-00000.safetensors")
    with pytest.raises(DataError, match="is no file of region features"):
        RegionFolder(tmp_path)


def test_tables_that_disagree_are_damage(tmp_path):
    from safetensors.numpy import load_file, save_file

    (picture,) = RegionTsv(tsv(tmp_path, row()[0]))
    write_regions(tmp_path / "folder", [picture])
    (path,) = (tmp_path / "folder").iterdir()
    arrays = load_file(path)
    arrays["first"] = np.array([0, 2], np.int64)
    save_file(arrays, path, metadata={"format": "weft.region_features", "version": "1"})
    with pytest.raises(DataError, match="is damaged"):
        RegionFolder(path.parent)


VIEWS = {
    "cropped": ImageTransform(size=48),
    "padded": ImageTransform(size=48, pad_to_square=True),
    "squeezed": ImageTransform(size=48, resize="direct"),
}


@pytest.mark.parametrize("size", [(200, 120), (121, 200), (64, 64), (97, 96)])
@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
def test_boxes_go_where_pixels_go(view, size):
    """A red block painted into the picture is found in the unit where the box went, within a pixel of blur."""
    width, height = size
    inside = (0.4, 0.35, 0.6, 0.7)
    left, top, right, bottom = (round(c * size[i % 2]) for i, c in enumerate(inside))
    painted = np.zeros((height, width, 3), np.uint8)
    painted[top:bottom, left:right, 0] = 255
    box = (left / width, top / height, right / width, bottom / height)
    opened = RegionTransform(view=view).open(PictureRegions(Image.fromarray(painted), (box,)), GRID)
    (found,) = opened.layout.regions
    red = opened.units[0][..., 0].astype(float) - opened.units[0][..., 1] > 128
    rows, columns = red.any(1).nonzero()[0], red.any(0).nonzero()[0]
    seen = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
    assert np.abs(np.array(found) * 48 - seen).max() <= 1


def test_a_box_is_cut_where_the_picture_is_and_one_that_is_cropped_away_is_refused():
    picture = np.zeros((60, 120, 3), np.uint8)  # the middle 60 of 120 columns are shown
    cropped = RegionTransform(view=ImageTransform(size=48))
    opened = cropped.open(PictureRegions(picture, ((0.0, 0.0, 0.5, 1.0),)), GRID)
    assert opened.layout == MediaLayout(1, 1, regions=((0.0, 0.0, 0.5, 1.0),))
    with pytest.raises(DataError, match=r"box 1, .* cropped away; pad_to_square=True"):
        cropped.open(PictureRegions(picture, ((0.3, 0.0, 0.5, 1.0), (0.0, 0.0, 0.2, 1.0))), GRID)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (np.zeros((8, 8, 3), np.uint8), "PictureRegions"),
        (PictureRegions(np.zeros((8, 8, 3), np.uint8), ()), "got no box"),
        (PictureRegions(np.zeros((8, 8, 3), np.uint8), ((0.5, 0.5),)), "four fractions"),
        (PictureRegions(np.zeros((8, 8, 3), np.uint8), ((0.5, 0.5, 0.5, 0.9),)), "x1 < x2"),
        (PictureRegions(np.zeros((8, 8, 3), np.uint8), ((0.5, 0.5, 1.5, 0.9),)), "within"),
    ],
)
def test_media_that_are_no_regions_are_refused(source, message):
    with pytest.raises(DataError, match=message):
        RegionTransform().open(source, GRID)


def test_detected_regions_become_padded_units_and_a_layout_of_their_boxes(tmp_path):
    few, many = RegionTsv(tsv(tmp_path, row("few", 2)[0], row("many", 6, seed=1)[0]))
    transform = RegionFeatureTransform(feature_width=5, num_regions=4)
    opened = [transform.open(each, GRID) for each in (few, many)]
    assert [each.layout.positions for each in opened] == [2, 4], "the first of more are kept"
    units = transform.normalise([each.units[0] for each in opened]).numpy()
    assert units.shape == (2, *transform.unit_shape)
    assert np.array_equal(units[0, :2], few.features) and not units[0, 2:].any()
    assert np.array_equal(units[1], many.features[:4])
    assert np.array_equal(np.array(opened[1].layout.regions, np.float32), many.boxes[:4])


def test_the_global_region_of_vilbert_is_the_mean_of_36_and_makes_37(tmp_path):
    (picture,) = RegionTsv(tsv(tmp_path, row(count=36)[0]))
    opened = RegionFeatureTransform(feature_width=5, num_regions=37, global_region=True).open(picture, GRID)
    assert opened.layout.positions == 37 and opened.layout.regions[0] == (0.0, 0.0, 1.0, 1.0)
    np.testing.assert_allclose(opened.units[0][0], picture.features.mean(0), atol=1e-6)
    assert np.array_equal(opened.units[0][1:], picture.features)


def test_features_of_another_width_and_other_sources_are_refused(tmp_path):
    (picture,) = RegionTsv(tsv(tmp_path, row()[0]))
    with pytest.raises(DataError, match="width 5, the transform takes 2048"):
        RegionFeatureTransform().open(picture, GRID)
    with pytest.raises(DataError, match="RegionFeatures"):
        RegionFeatureTransform().open("picture.jpg", GRID)
    with pytest.raises(ConfigError, match="room for a region"):
        RegionFeatureTransform(num_regions=1, global_region=True)
