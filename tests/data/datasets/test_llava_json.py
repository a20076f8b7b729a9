"""LLaVA's JSON: the official format becomes conversations, and every defect is named with file and record."""

import json
from pathlib import Path

import pytest
from PIL import Image

from weft.core.conversation import Conversation, Media, Text
from weft.core.errors import ConfigError, DataError
from weft.data import json_records as reader
from weft.data.datasets.llava_json import LlavaJson
from weft.data.datasets.subset import Subset

RECORDS = [
    {
        "id": "000000033471",
        "image": "coco/000000033471.jpg",
        "conversations": [
            {"from": "human", "value": "<image>\nWhat are the colors of the bus?"},
            {"from": "gpt", "value": "The bus is white and red."},
            {"from": "human", "value": "Café oder 茶? 😀"},
            {"from": "gpt", "value": "Neither."},
        ],
    },
    {"id": "text-1", "conversations": [{"from": "human", "value": "Hello"}, {"from": "gpt", "value": 'Hi {"a": [1]}'}]},
    {
        "id": 7,
        "image": ["a.png", "b.png"],
        "conversations": [
            {"from": "system", "value": "Be brief."},
            {"from": "human", "value": "Compare <image> with <image>."},
            {"from": "gpt", "value": "Alike."},
        ],
    },
]


def as_list(records):
    return json.dumps(records, indent=2, ensure_ascii=False)


def as_lines(records):
    return "\n".join(json.dumps(r) for r in records) + "\n\n"


def write(tmp_path, text, name="data.json"):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return LlavaJson.Config(path=str(path), images=str(tmp_path / "images"))


@pytest.mark.parametrize("form", [as_list, as_lines, lambda r: "\ufeff" + as_list(r), lambda r: json.dumps(r)])
@pytest.mark.parametrize("chunk", [7, 1 << 20])
def test_lists_and_lines_give_the_same_conversations(form, chunk, tmp_path, monkeypatch):
    monkeypatch.setattr(reader, "_CHUNK", chunk)  # records that cross the borders of what is read at a time
    data = write(tmp_path, form(RECORDS)).build()
    assert len(data) == 3
    first, second, third = (data[i] for i in range(3))
    assert first.id == "000000033471" and first.source == "data.json"
    assert [m.role for m in first.messages] == ["user", "assistant", "user", "assistant"]
    assert [m.train for m in first.messages] == [False, True, False, True]
    assert first.messages[0].parts == (
        Media(str(tmp_path / "images" / "coco/000000033471.jpg")), Text("\nWhat are the colors of the bus?"),
    )  # fmt: skip
    assert first.messages[2].parts == (Text("Café oder 茶? 😀"),)
    assert second.messages[1].parts == (Text('Hi {"a": [1]}'),)
    assert [m.role for m in third.messages] == ["system", "user", "assistant"]
    compare = third.messages[1].parts
    assert [type(p) for p in compare] == [Text, Media, Text, Media, Text]
    assert [p.source for p in third.media()] == [str(tmp_path / "images" / n) for n in ("a.png", "b.png")]
    with pytest.raises(IndexError):
        data[3]


def test_images_are_not_opened_and_start_beside_the_file_by_default(tmp_path):
    path = tmp_path / "data.json"
    path.write_text(as_list(RECORDS[:1]))
    data = LlavaJson.Config(path=str(path)).build()
    (medium,) = data[0].media()
    assert medium.source == str(tmp_path / "coco/000000033471.jpg")
    (tmp_path / "coco").mkdir()
    Image.new("RGB", (4, 4)).save(medium.source)


def test_videos_and_recordings_stand_where_the_text_says(tmp_path):
    record = {"image": "a.png", "audio": ["b.wav", "c.wav"], "video": "d.mp4"}
    asked = "<audio>Here <image>and <video> there<audio>"
    path = write_lines(tmp_path, record | {"conversations": turns(asked, "A")})
    parts = LlavaJson.Config(path=str(path)).build()[0].messages[0].parts
    assert [(part.stream, Path(part.source).name) for part in parts if isinstance(part, Media)] == [
        ("audio", "b.wav"), ("image", "a.png"), ("video", "d.mp4"), ("audio", "c.wav"),
    ]  # fmt: skip
    assert [part.text for part in parts if isinstance(part, Text)] == ["Here ", "and ", " there"]


def test_a_marker_without_its_field_is_text_but_for_images(tmp_path):
    path = write_lines(tmp_path, {"conversations": turns("What is the <video> element?", "<audio> is like it")})
    question, answer = LlavaJson.Config(path=str(path)).build()[0].messages
    assert question.parts == (Text("What is the <video> element?"),) and answer.parts == (Text("<audio> is like it"),)


def write_lines(folder, record):
    path = folder / "records.jsonl"
    path.write_text(json.dumps(record))
    return path


def turns(*values):
    return [{"from": "human" if i % 2 == 0 else "gpt", "value": v} for i, v in enumerate(values)]


BAD = {
    "no 'image'": {"conversations": turns("<image>\nQ", "A")},
    "0 <image> in the text for 1 images": {"image": "a.png", "conversations": turns("Q", "A")},
    "1 <audio> in the text for 2 recordings": {"audio": ["a.wav", "b.wav"], "conversations": turns("<audio>", "A")},
    "<video> stands in a turn that is not the human's": {"video": "a.mp4", "conversations": turns("<video>", "<video>")},
    "2 <image> in the text for 1 images": {"image": "a.png", "conversations": turns("<image><image>", "A")},
    "1 <image> in the text for 2 images": {"image": ["a.png", "b.png"], "conversations": turns("<image>", "A")},
    "<image> stands in a turn that is not the human's": {"image": "a.png", "conversations": turns("Q", "<image>")},
    "must alternate human, gpt after an optional system turn, got gpt, human": {
        "conversations": [{"from": "gpt", "value": "A"}, {"from": "human", "value": "Q"}]
    },
    "must alternate human, gpt after an optional system turn, got human, human": {
        "conversations": [{"from": "human", "value": "Q"}] * 2
    },
    "must alternate human, gpt after an optional system turn, got system": {
        "conversations": [{"from": "system", "value": "S"}]
    },
    "turn 1 needs 'from' (human, gpt or system)": {"conversations": [*turns("Q"), {"from": "bot", "value": "A"}]},
    "turn 0 needs": {"conversations": ["Q"]},
    "turn 1 needs 'from' (human, gpt or system) and 'value' (text)": {"conversations": turns("Q", None)},
    "needs a list 'conversations'": {"id": 3},
    "a list 'conversations' with at least one turn": {"conversations": []},
    "a gpt turn is empty": {"conversations": turns("Q", " ")},
    "'image' is a path or a list of paths": {"image": 5, "conversations": turns("<image>", "A")},
    "a record is an object, got list": [1],
}


@pytest.mark.parametrize("reason", BAD)
def test_a_bad_record_is_named_with_file_number_and_reason(reason, tmp_path):
    bad = BAD[reason] | {"id": "x"} if isinstance(BAD[reason], dict) and "id" not in BAD[reason] else BAD[reason]
    settings = write(tmp_path, as_list([RECORDS[0], bad]))
    with pytest.raises(DataError) as caught:
        settings.build()
    message = str(caught.value)
    assert message.startswith(f"{settings.path}, record 1") and reason in message and "\n" not in message
    lenient = LlavaJson.Config(path=settings.path, strict=False).build()
    assert len(lenient) == 1 and len(lenient.skipped) == 1 and reason in lenient.skipped[0]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "holds no usable record"),
        ("[]", "holds no usable record"),
        ("hello", "no JSON list of records and no JSON lines: it begins with 'h'"),
        ('[{"id": 1,', "is not JSON: record 0"),
        ('[{"conversations": []}', "record 0: it needs a list 'conversations'"),
        (as_list(RECORDS)[:-2], "the list is not closed after record 2; was it cut off"),
        (as_list(RECORDS).replace("},\n  {", "}\n  {", 1), "no comma after record 0"),
        (as_lines(RECORDS)[:-9], "is not JSON: record 2"),
        ("[" * 100_000, "is not JSON: record 0"),
    ],
)
def test_a_broken_file_is_named_with_the_reason(text, reason, tmp_path):
    settings = write(tmp_path, text)
    with pytest.raises(DataError) as caught:
        settings.build()
    assert settings.path in str(caught.value) and reason in str(caught.value)


def test_missing_and_binary_files_are_named(tmp_path):
    with pytest.raises(DataError, match=r"no data file .*gone\.json"):
        LlavaJson.Config(path=str(tmp_path / "gone.json")).build()
    with pytest.raises(DataError, match="is a folder"):
        LlavaJson.Config(path=str(tmp_path)).build()
    (tmp_path / "b.json").write_bytes(b'[{"id": "\xff\xfe"}]')
    with pytest.raises(DataError, match="is not UTF-8"):
        LlavaJson.Config(path=str(tmp_path / "b.json")).build()


def test_a_file_that_changes_meanwhile_is_noticed(tmp_path):
    settings = write(tmp_path, as_list(RECORDS))
    data = settings.build()
    write(tmp_path, "{}")
    with pytest.raises(DataError, match="has changed since it was opened"):
        data[0]


def test_a_subset_counts_like_a_slice(tmp_path):
    whole = write(tmp_path, as_list(RECORDS))
    last = Subset.Config(of=whole, start=-2).build()
    assert [last[i].id for i in range(len(last))] == ["text-1", "7"]
    assert isinstance(Subset.Config(of=whole, stop=1).build()[0], Conversation)
    with pytest.raises(IndexError):
        last[2]
    with pytest.raises(ConfigError, match="samples 3 to None of 3 are none"):
        Subset.Config(of=whole, start=3).build()
