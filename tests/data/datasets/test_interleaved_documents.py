"""MMC4 and OBELICS: official records become documents of pictures and text, and every defect is named, skipped or counted."""

import base64
import json
from dataclasses import replace
from io import BytesIO

import pytest
from PIL import Image

from weft.core import config
from weft.core.conversation import Media, Message, Text
from weft.core.errors import ConfigError, DataError
from weft.data import json_lines
from weft.data.datasets.mmc4 import Mmc4
from weft.data.datasets.obelics import Obelics
from weft.data.interleaving import Interleaving


def png(shade=0, size=8):
    content = BytesIO()
    Image.new("RGB", (size, size), (shade, 0, 0)).save(content, "png")
    return content.getvalue()


def image(name, sentence, similarity, **more):
    face = {"face_detections": None, "raw_url": f"http://pages.test/{name}"}
    return {**face, "image_name": name, "matched_text_index": sentence, "matched_sim": similarity, **more}


HONDA = {
    "image_info": [image("b.png", 2, 0.27694183588027954), image("d.png", 1, 0.3234919607639313)],
    "similarity_matrix": [
        [0.24363446235656738, 0.31758785247802734, 0.27694183588027954],
        [0.2233106791973114, 0.3234919607639313, 0.26118797063827515],
    ],
    "text_list": ["When you lock the door.", "Press the switch.", "All doors lock."],
    "url": "http://pages.test/fit.html",
    "could_have_url_duplicate": 0,
}
EMBEDDED = {
    "image_info": [image("x", 0, 0.2, image_base64=base64.b64encode(png(9)).decode())],
    "text_list": ["Café <image> 茶", "Ende"],
}
PLAIN = {"image_info": [], "text_list": ["No picture."]}
PAGE = {
    "images": [None, "b.png", None, None, "d.png", "b.png", None, "d.png"],
    "texts": ["Lead", None, "One", "Two", None, None, "Three", None],
    "metadata": "[]",
    "general_metadata": "{}",
}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "images").mkdir()
    for number, name in enumerate(("b.png", "d.png")):
        (tmp_path / "images" / name).write_bytes(png(number))
    return tmp_path


def written(folder, *records, name="docs.jsonl"):
    path = folder / name
    path.write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in records) + "\n\n", encoding="utf-8")
    return path


def mmc4(folder, *records, **options):
    return Mmc4.Config(path=str(written(folder, *records)), images=str(folder / "images"), **options)


def obelics(folder, *records, **options):
    return Obelics.Config(path=str(written(folder, *records)), images=str(folder / "images"), **options)


def told(conversation):
    """The document as one text, pictures by their file's name and turns in brackets where the assistant's."""
    names = {Media: lambda p: f"<{p.source.rpartition('/')[2] if isinstance(p.source, str) else len(p.source)}>"}
    turns = []
    for message in conversation.messages:
        words = "".join(part.text if isinstance(part, Text) else names[type(part)](part) for part in message.parts)
        assert message.train == (message.role == "assistant")
        turns.append(f"[{words}]" if message.train else words)
    return "".join(turns)


def test_mmc4s_pictures_stand_before_their_sentences(folder):
    data = mmc4(folder, HONDA, PLAIN, EMBEDDED).build()
    assert len(data) == 2
    assert told(data[0]) == "[When you lock the door.]<d.png>[Press the switch.]<b.png>[All doors lock.]"
    assert (data[0].source, data[0].id, data[1].id) == ("docs.jsonl", "1", "3")
    assert told(data[1]) == f"<{len(png(9))}>[Café <IMAGE> 茶 Ende]"
    assert data[0].meta == {"document": True}
    assert data.remarks() == ("sound records that do not fit and were left out: 1 beside 2",)
    with pytest.raises(IndexError):
        data[2]


def test_openflamingo_reads_what_stands_before_the_first_picture_and_chooses_pictures(folder):
    read = Interleaving(opening="read")
    data = mmc4(folder, HONDA, interleaving=read).build()
    assert told(data[0]) == "When you lock the door.<d.png>[Press the switch.]<b.png>[All doors lock.]"
    similar = mmc4(folder, HONDA, interleaving=read, min_similarity=0.3).build()
    assert told(similar[0]) == "When you lock the door.<d.png>[Press the switch. All doors lock.]"
    first = mmc4(folder, HONDA, interleaving=read, max_images=1).build()
    assert told(first[0]) == "When you lock the door. Press the switch.<b.png>[All doors lock.]", "the first of the list"
    with pytest.raises(DataError, match="no usable record; 0 were skipped and 1 left out"):
        mmc4(folder, HONDA, min_bytes=10_000).build()


def test_obelics_keeps_the_order_of_the_page(folder):
    embedded = "data:image/png;base64," + base64.b64encode(png()).decode()
    other = {"images": [embedded, None], "texts": [None, "A caption"]}
    data = obelics(folder, PAGE, other).build()
    assert told(data[0]) == "[Lead]<b.png>[One Two]<d.png><b.png>[Three]", "the picture behind the last text serves nobody"
    assert told(data[1]) == f"<{len(png())}>[A caption]"
    few = obelics(folder, PAGE, interleaving=Interleaving(max_media=2, opening="read")).build()
    assert told(few[0]) == "Lead<b.png>[One Two]<d.png>[Three]"


def test_half_of_flamingos_documents_see_the_next_picture_and_begin_anywhere(folder):
    half = Interleaving(next_share=0.5, random_start=True, max_media=2)
    data = obelics(folder, *[PAGE] * 200, interleaving=half).build()
    documents = [data[i] for i in range(len(data))]
    next_ones = [document for document in documents if document.meta.get("visibility") == "next"]
    assert abs(len(next_ones) - len(data) / 2) < 4 * (len(data) / 4) ** 0.5
    assert any(told(d).endswith("[Three]<d.png>") for d in next_ones), "there the last picture has a text"
    assert all(told(d).endswith("]") for d in documents if d not in next_ones)
    assert len({told(d) for d in documents}) > 5 and all(1 <= sum(1 for _ in d.media()) <= 2 for d in documents)
    assert len(data) < 200, "what begins at the last picture has no text unless it sees the next"
    assert [told(data[i]) for i in range(20)] == [told(d) for d in documents[:20]]
    other = obelics(folder, *[PAGE] * 200, interleaving=replace(half, seed=1)).build()
    assert [told(other[i]) for i in range(20)] != [told(d) for d in documents[:20]]


def test_documents_of_one_picture_are_thinned(folder):
    single = {"images": ["b.png", None], "texts": [None, "One"]}
    data = obelics(folder, *[single, PAGE] * 100, interleaving=Interleaving(single_share=0.5)).build()
    pictures = [sum(1 for _ in data[i].media()) for i in range(len(data))]
    assert pictures.count(3) == 100 and abs(pictures.count(1) - 50) < 4 * 5


@pytest.mark.parametrize("options", [{"next_share": 1.5}, {"single_share": -1.0}, {"max_media": 0}])
def test_what_is_no_share_is_refused(options):
    with pytest.raises(ConfigError, match="interleaving"):
        Interleaving(**options)


def changed(record, **fields):
    return {**record, **fields}


BAD = {
    "it is not JSON": '{"text_list": [',
    "a record is an object, got list": [],
    "it needs 'text_list', a list of sentences, got None; is it a file of MMC4?": {"image_info": []},
    "it needs 'image_info', a list of objects, got 'x'": changed(HONDA, image_info="x"),
    "image 0 needs 'image_name' or 'image_base64', got '' and None": changed(HONDA, image_info=[image("", 0, 0.3)]),
    "image 0: 'matched_text_index' is the number of one of 3 sentences, got 3": changed(
        HONDA, image_info=[image("b.png", 3, 0.3)]
    ),
    "image 0: 'matched_sim' is a number, got None": changed(HONDA, image_info=[image("b.png", 1, None)]),
    "images 0 and 1 both belong to sentence 1": changed(
        HONDA, image_info=[image("b.png", 1, 0.3), image("d.png", 1, 0.3)], similarity_matrix=None
    ),
    "'similarity_matrix' needs 2 rows of 3": changed(HONDA, similarity_matrix=[[0.1, 0.2, 0.3]]),
    "'matched_sim' is 0.27694183588027954, the matrix has 0.5": changed(
        HONDA, similarity_matrix=[[0, 0, 0.5], [0, 0.3234919607639313, 0]]
    ),
    "no image file": changed(HONDA, image_info=[image("gone.png", 1, 0.3)], similarity_matrix=None),
    "a picture is no base64 text: 'no!'": changed(EMBEDDED, image_info=[image("x", 0, 0.2, image_base64="no!")]),
}


@pytest.mark.parametrize("reason", BAD)
def test_a_bad_record_of_mmc4_is_named_with_file_line_and_way_out(folder, reason):
    settings = mmc4(folder, HONDA, BAD[reason])
    with pytest.raises(DataError) as caught:
        settings.build()
    message = str(caught.value)
    assert message.startswith(f"{settings.path}, line 2: ") and reason in message and "strict=false" in message
    assert "\n" not in message
    lenient = replace(settings, strict=False).build()
    assert len(lenient) == 1
    if reason == "no image file":
        assert lenient.remarks() == (
            "sound records that do not fit and were left out: 1 beside 1",
            "pictures that are not there, their documents do without them: 1",
        )
    else:
        (remark,) = lenient.remarks()
        assert remark.startswith("broken records that were skipped: 1; the first: ") and reason in remark


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"images": [None]}, "needs the lists 'images' and 'texts', got list and NoneType; is it a file of OBELICS?"),
        ({"images": [None], "texts": []}, "of one length, got 1 and 0"),
        ({"images": [None, "b.png"], "texts": ["a", "b"]}, "place 1 needs a text in one of 'images' and 'texts' and null"),
        ({"images": [None], "texts": [None]}, "place 0 needs a text in one of 'images' and 'texts' and null"),
        ({"images": ["http://a.test/b.jpg", None], "texts": [None, "a"]}, "http://a.test/b.jpg is not on this machine"),
        ({"images": [".", None], "texts": [None, "a"]}, "no image file"),
    ],
)
def test_a_bad_row_of_obelics_is_named(folder, row, reason):
    with pytest.raises(DataError) as caught:
        obelics(folder, PAGE, row).build()
    assert reason in str(caught.value) and "docs.jsonl, line 2: " in str(caught.value)


def test_every_skipped_record_counts_and_the_first_are_named(folder, monkeypatch):
    monkeypatch.setattr(json_lines, "_NAMED", 2)
    data = mmc4(folder, "{", HONDA, *["x"] * 5, strict=False).build()
    assert (len(data), data.lines.num_skipped, len(data.lines.skipped)) == (1, 6, 2)
    assert "line 1: it is not JSON" in data.lines.skipped[0] and "line 3" in data.lines.skipped[1]
    assert data[0].id == "2"


def test_shards_are_one_data_set_in_the_order_of_their_names(folder):
    for number in (2, 1):
        written(folder, *[HONDA] * number, EMBEDDED, name=f"docs_{number}.jsonl")
    for path in (folder, folder / "docs_*.jsonl"):
        data = Mmc4.Config(path=str(path), images=str(folder / "images")).build()
        assert [(data[i].source, data[i].id) for i in range(5)] == [
            ("docs_1.jsonl", "1"), ("docs_1.jsonl", "2"), ("docs_2.jsonl", "1"), ("docs_2.jsonl", "2"), ("docs_2.jsonl", "3"),
        ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("a.jsonl.zip", "unpack it first"),
        ("a.parquet", "datasets"),
        ("gone.jsonl", "no data at"),
        ("none_*", "a file that fits"),
    ],
)
def test_what_is_no_json_lines_says_how_to_make_them(folder, name, reason):
    if not name.startswith(("gone", "none")):
        (folder / name).write_bytes(b"PK")
    with pytest.raises(DataError, match=reason):
        Obelics.Config(path=str(folder / name)).build()


def test_a_file_that_changes_meanwhile_is_noticed(folder):
    data = mmc4(folder, HONDA, HONDA).build()
    (folder / "images" / "b.png").unlink()
    with pytest.raises(DataError, match=r"no image file .*b\.png"):
        data[0]
    written(folder, "{}")
    with pytest.raises(DataError, match=r"docs\.jsonl has changed since it was opened \(line 2\)"):
        data[1]


def test_readers_are_saved_as_json(folder):
    made = mmc4(folder, HONDA, interleaving=Interleaving(opening="read", max_media=5), min_similarity=0.24)
    assert config.loads(config.dumps(made)) == made
    assert isinstance(made.build()[0].messages[0], Message)
