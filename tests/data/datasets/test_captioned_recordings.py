"""Recordings with captions beside them: every caption is a pair, and what is missing is named."""

import json
import wave

import numpy as np
import pytest

from weft.core.conversation import Text
from weft.core.errors import DataError
from weft.data.audio import open_audio
from weft.data.datasets.captioned_recordings import CaptionedRecordings


def write(folder, name: str, captions=None) -> None:
    path = folder / f"{name}.wav"
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 16_000, 0, "NONE", ""))
        file.writeframes(np.full(100, 7, "<i2").tobytes())
    if captions is not None:
        path.with_suffix(".json").write_text(json.dumps({"text": captions, "tag": ["x"]}))


def test_every_caption_is_a_pair(tmp_path):
    write(tmp_path, "b", "a door")
    write(tmp_path, "a/one", ["rain", "rain on a roof"])
    pairs = CaptionedRecordings.Config(folder=str(tmp_path)).build()
    said = [(pair.id, *(part.text for part in pair.messages[1].parts if isinstance(part, Text))) for pair in pairs]
    assert said == [("a/one.wav", "rain"), ("a/one.wav", "rain on a roof"), ("b.wav", "a door")]
    (medium,) = pairs[2].media()
    assert medium.stream == "audio" and len(open_audio(medium.source).samples) == 100 and len(pairs) == 3


@pytest.mark.parametrize("captions", [None, [], "", ["", "rain"], 3])
def test_a_recording_without_captions_is_named(tmp_path, captions):
    write(tmp_path, "a", captions)
    with pytest.raises(DataError, match=r"a\.json.*--skip-broken"):
        CaptionedRecordings.Config(folder=str(tmp_path)).build()
    lenient = CaptionedRecordings.Config(folder=str(tmp_path), strict=False)
    with pytest.raises(DataError, match=r"no recording under .* has captions; the first: .*a\.json"):
        lenient.build()
    write(tmp_path, "b", "a door")
    pairs = lenient.build()
    assert [pair.id for pair in pairs] == ["b.wav"]
    (remark,) = pairs.remarks()
    assert remark.startswith("recordings without captions that were skipped: 1; the first: ") and "a.json" in remark
