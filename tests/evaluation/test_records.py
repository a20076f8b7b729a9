"""Records survive what happens to processes: a kill in mid-line, another model, a damaged file."""

from __future__ import annotations

import errno
import json

import pytest

from weft.core.errors import DataError, RunError
from weft.evaluation.records import Record, RecordFile, read_records

KEY = {"run": "model", "model": "abc"}


def record(number: int, reply: str = "7") -> Record:
    return Record(str(number), "count", str(number), "How many?", "7", reply, 1.0, 0.5)


def test_what_was_appended_is_there_after_opening_again(tmp_path):
    path = tmp_path / "deep" / "model.jsonl"
    RecordFile(path, KEY).append([record(0), record(1)])
    again = RecordFile(path, KEY)
    again.append([record(2)])
    assert list(again.records) == ["0", "1", "2"]
    assert read_records(path) == (record(0), record(1), record(2))


def test_replies_of_any_text_come_back_as_they_were(tmp_path):
    replies = ["line\nbreak", "\u2028 separator", "<script>", "\x00\x1b[31m", "🙂", '"quoted"\\', "\udc80 lone surrogate"]
    path = tmp_path / "model.jsonl"
    RecordFile(path, KEY).append([record(i, reply) for i, reply in enumerate(replies)])
    assert [r.reply for r in read_records(path)] == replies


@pytest.mark.parametrize("cut", [1, 5, 40])
def test_a_line_cut_short_by_a_kill_is_dropped_and_written_again(tmp_path, cut):
    path = tmp_path / "model.jsonl"
    RecordFile(path, KEY).append([record(0), record(1)])
    path.write_bytes(path.read_bytes()[:-cut])
    again = RecordFile(path, KEY)
    assert list(again.records) == ["0"]
    again.append([record(1)])
    assert read_records(path) == (record(0), record(1))


def test_a_header_cut_short_starts_a_new_file(tmp_path):
    path = tmp_path / "model.jsonl"
    path.write_bytes(b'{"records": 1, "ru')
    RecordFile(path, KEY).append([record(0)])
    assert read_records(path) == (record(0),)


def test_a_full_disk_names_the_file_and_keeps_its_answers(tmp_path, monkeypatch):
    path = tmp_path / "model.jsonl"
    file = RecordFile(path, KEY)
    file.append([record(0)])

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("weft.evaluation.records.os.fsync", full)
    with pytest.raises(
        RunError, match=r"model\.jsonl could not be written \(No space left on device\); the answers in it stand"
    ):
        file.append([record(1)])
    assert read_records(path)[0] == record(0)


def test_answers_of_another_model_are_refused(tmp_path):
    path = tmp_path / "model.jsonl"
    RecordFile(path, KEY).append([record(0)])
    with pytest.raises(RunError, match=r"different: model.*another folder"):
        RecordFile(path, {**KEY, "model": "def"})


def test_damage_inside_a_file_is_named_with_its_line(tmp_path):
    path = tmp_path / "model.jsonl"
    RecordFile(path, KEY).append([record(0), record(1)])
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], "{broken", lines[2]]) + "\n")
    with pytest.raises(DataError, match="line 2"):
        RecordFile(path, KEY)
    path.write_text(json.dumps({"some": "json"}) + "\n")
    with pytest.raises(DataError, match="no header"):
        read_records(path)
