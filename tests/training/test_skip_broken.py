"""Samples whose medium cannot be read: a run stops at one by name, or leaves it out and is the same run after every resume."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from broken_media import SAMPLES, PictureFiles, cut_jpeg, film, pictures, wav
from tiny_training import STEPS, Squares, Strike, losses, recipe, tokenizer

from weft.core.conversation import Conversation, Media, assistant, user
from weft.core.errors import DataError, UnreadableMedium
from weft.data.acoustic_targets import read_targets
from weft.data.datasets.recordings import Recordings
from weft.recipes import hubert, llava_audio, llava_video
from weft.recipes.shrinking import tiny_tokenizer
from weft.training.data_stream import DataStream, SampleOrder
from weft.training.logging import read_metrics
from weft.training.model_folder import read_weights
from weft.training.ranks import Ranks
from weft.training.sample_reader import SampleReader
from weft.training.trainer import Trainer

BROKEN = (3, 11)


pytestmark = pytest.mark.usefixtures("one_thread")  # sums depend on how they are split


# what stands in


def reader(broken, size=SAMPLES, tell=lambda line: None, endless=False):
    """Reads samples as their numbers."""
    dataset = Squares.Config(size=size).build()
    dataset.endless = endless

    def encode(conversation: Conversation) -> int:
        if int(conversation.id) in broken:
            raise UnreadableMedium(f"sample {conversation.name}, image 1: {conversation.id}.png is no image")
        return int(conversation.id)

    return SampleReader(dataset, encode, skip_broken=True, tell=tell)


def shown(samples, order, step, ranks=None):
    """The numbers of the samples of a step, whose other steps were never taken."""
    stream = DataStream(
        samples,
        order,
        lambda chunk: SimpleNamespace(numbers=chunk, num_tokens=0),
        micro_batch_size=2,
        start=step,
        stop=step + 1,
        ahead=0,
        ranks=ranks,
    )
    return [number for batch in stream.next().micro_batches for number in batch.numbers]


@pytest.mark.parametrize("endless", [False, True])
def test_the_sample_at_its_place_in_a_later_step_stands_in_and_all_others_stay(endless):
    order = SampleOrder(SAMPLES, 4, 0, "align", endless)
    planned = [order.indices(step) for step in range(12)]
    broken = {planned[0][1], planned[1][1], planned[2][3], planned[5][0]}
    for step in range(8):
        expected = [
            next(later for after in range(step, 12) if (later := planned[after][column]) not in broken) for column in range(4)
        ]
        assert shown(reader(broken, endless=endless), order, step) == expected
        parts = [shown(reader(broken, endless=endless), order, step, Ranks(rank, 2)) for rank in range(2)]
        assert parts[0] + parts[1] == expected, "each rank finds what stands in by itself"


def test_a_held_out_sample_is_stood_in_for_from_a_later_batch_and_at_the_end_from_the_first():
    assert [reader({1, 5}, 12).standing_at(i, 4) for i in range(4)] == [0, 9, 2, 3]
    assert reader({9}, 12).standing_at(9, 4) == 0
    assert reader({0, 9}, 12).standing_at(9, 12) == 1
    assert reader({1, 5}, endless=True).standing_at(1, 4) == 9
    with pytest.raises(DataError, match=r"none could be read; the last: sample squares:3"):
        reader(range(4), 4).standing_at(0, 2)


def test_each_is_told_once_and_every_time_counted():
    told = []
    samples = reader({2, 3}, tell=told.append)
    assert [samples.find(index) for index in (1, 2, 3, 2, 4)] == [1, None, None, None, 4]
    assert told == [f"left out: sample squares:{i}, image 1: {i}.png is no image" for i in (2, 3)]
    assert (samples.num_read, samples.num_left_out) == (2, 3)


def test_a_broken_share_is_borne_up_to_a_tenth():
    few = reader(range(10), 10)
    assert [few.find(index) for index in range(10)] == [None] * 10, "ten may be chance, whatever share they are"
    tenth = reader(range(0, 400, 10), 400)
    assert sum(tenth.find(index) is None for index in range(399, -1, -1)) == 40
    more = reader(range(0, 400, 9), 400)
    with pytest.raises(
        DataError, match=r"^\d\d of \d+ samples could not be read, more than 10%.*mend the data.*The last: sample"
    ):
        for index in range(399, -1, -1):
            more.find(index)


def cut_picture(folder):
    return recipe().stages[0], "image", cut_jpeg(folder / "cut.jpg")


def empty_recording(folder):
    return llava_audio.tiny().stages[0], "audio", wav(folder / "empty.wav", 0)


def film_without_frames(folder):
    return llava_video.tiny().stages[0], "video", film(folder / "no-frames.avi", 0)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (cut_picture, "cannot be read as an image: "),
        (empty_recording, "holds no samples"),
        (film_without_frames, "has no frames"),
    ],
)
def test_every_kind_of_medium_is_refused_by_name_or_left_out(tmp_path, kind, reason):
    stage, stream, path = kind(tmp_path)
    encode = stage.processor.build(tokenizer() if stream == "image" else tiny_tokenizer(50), stage.system).encode_all
    sample = Conversation((user(Media(str(path), stream), "what?"), assistant("no")), id="7", source="mine.json")
    with pytest.raises(
        UnreadableMedium, match=rf"^sample mine\.json:7, {stream} 1: .*{path.name} {reason}.*with --skip-broken$"
    ) as caught:
        SampleReader([sample], encode).find(0)
    assert "\n" not in str(caught.value)
    told = []
    assert SampleReader([sample], encode, skip_broken=True, tell=told.append).find(0) is None
    assert len(told) == 1 and str(path) in told[0]


# runs


def run(folder, files, changes=None, **options):
    data = PictureFiles.Config(folder=str(files))
    made = recipe(data=data, **(changes or {}))
    return Trainer(made, folder, tokenizer=tokenizer(), **{"checkpoint_every": 2, "skip_broken": True} | options)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The squares as files, two of them cut short."""
    folder = pictures(tmp_path_factory.mktemp("files") / "broken")
    for index in BROKEN:
        path = folder / f"{index}.png"
        path.write_bytes(path.read_bytes()[:40])
    return folder


@pytest.fixture(scope="module")
def straight(files, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "straight"
    run(folder, files).fit()
    return folder


def assert_same_run(folder, straight):
    assert losses(folder) == losses(straight)
    ours, theirs = (read_weights(place / "model" / "model.safetensors") for place in (folder, straight))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


class Crash(Exception):
    pass


def crash():
    raise Crash


def test_the_log_names_what_was_left_out_and_counts_it(straight, files):
    log = (straight / "log.txt").read_text()
    for stage in ("align", "tune"):  # an epoch each
        for index in BROKEN:
            assert log.count(f"stage {stage} data: left out: sample files:{index}, image 1: {files / f'{index}.png'} ") == 1
        assert f"stage {stage} data: 2 of {4 * STEPS + 2} samples were left out, others stood in" in log
    assert len(losses(straight)) == 2 * STEPS


@pytest.mark.parametrize("step", [3, STEPS + 5])
def test_a_crashed_run_resumes_bit_for_bit(tmp_path, straight, files, step):
    """Padded and alone, then packed and accumulated, from checkpoints before and behind what was left out."""
    with pytest.raises(Crash):
        run(tmp_path / "run", files, callbacks=[Strike(step, crash)]).fit()
    run(tmp_path / "run", files).fit(resume=True)
    assert_same_run(tmp_path / "run", straight)


def test_a_strict_run_stops_with_the_way_out_and_takes_it(tmp_path, straight, files):
    """What was trained before the stop is what a run that skips would have trained."""
    order = SampleOrder(SAMPLES, 4, 0, "align")
    assert not set(BROKEN) & set(order.indices(0)), "it takes a step before it stops"
    with pytest.raises(
        UnreadableMedium, match=r"sample files:(3|11), image 1: .*png.*leave such samples out with --skip-broken"
    ):
        run(tmp_path / "run", files, skip_broken=False).fit()
    assert losses(tmp_path / "run")
    run(tmp_path / "run", files).fit(resume=True)
    assert_same_run(tmp_path / "run", straight)


def test_what_stands_in_is_trained_on(tmp_path, straight):
    run(tmp_path / "run", pictures(tmp_path / "whole")).fit()
    different = [ours != theirs for ours, theirs in zip(losses(tmp_path / "run"), losses(straight), strict=True)]
    order = SampleOrder(SAMPLES, 4, 0, "align")
    first = min(step for step in range(STEPS) if set(BROKEN) & set(order.indices(step)))
    assert different[: first + 1] == [False] * first + [True]


def test_several_processes_leave_out_the_same_and_name_it_in_one_log(tmp_path, straight, files):
    made = {"precision": "fp32"}  # bf16 would round what another order of sums changes
    for processes in (1, 2):
        run(tmp_path / str(processes), files, made, processes=processes).fit()
    alone, together = losses(tmp_path / "1"), losses(tmp_path / "2")
    assert [loss for *_, loss in together] == pytest.approx([loss for *_, loss in alone], rel=2e-4)
    log = (tmp_path / "2" / "log.txt").read_text()
    for index in BROKEN:
        assert log.count(f"stage align data: left out: sample files:{index},") == 1
    assert log.count(f"2 of {4 * STEPS + 2} samples were left out") == 2, "over both processes, once a stage"


def test_held_out_samples_may_be_broken_too(tmp_path, files):
    changes = {"validation": PictureFiles.Config(folder=str(files)), "steps": 1}
    run(tmp_path / "run", files, changes, validation_samples=SAMPLES).fit()
    assert len(read_metrics(tmp_path / "run", "validation")) == 2
    with pytest.raises(UnreadableMedium, match="files:3"):
        run(tmp_path / "strict", pictures(tmp_path / "whole"), changes, skip_broken=False).fit()


def test_a_folder_of_nothing_but_broken_files_ends_the_run_and_leaves_nothing(tmp_path):
    folder = pictures(tmp_path / "files")
    for path in folder.iterdir():
        path.write_bytes(b"<html>404</html>")
    with pytest.raises(DataError, match=r"11 of 11 samples could not be read, more than 10%.*no image of a known format"):
        run(tmp_path / "run", folder).fit()
    assert not (tmp_path / "run").exists()


def test_what_is_no_medium_still_stops_a_run(tmp_path, files):
    """A recipe that does not fit its data is not skipped, sample by sample."""
    with pytest.raises(DataError, match="media are never cut"):
        run(tmp_path / "run", files, {"max_tokens": 4}).fit()


def test_recordings_without_samples_have_no_targets(tmp_path):
    folder = tmp_path / "speech"
    folder.mkdir()
    for index in range(8):
        wav(folder / f"{index}.wav", 0 if index == 5 else 16_000 + index)
    stages = tuple(replace(s, data=Recordings.Config(folder=str(folder)), steps=2, batch_size=4) for s in hubert.tiny().stages)
    made = replace(hubert.tiny(), stages=stages)
    with pytest.raises(UnreadableMedium, match=r"sample speech:5\.wav, audio 1: .*5\.wav holds no samples.*--skip-broken"):
        Trainer(made, tmp_path / "strict", tokenizer=tokenizer()).fit()
    Trainer(made, tmp_path / "run", tokenizer=tokenizer(), skip_broken=True).fit()
    for name in ("first", "second"):
        labels = read_targets(tmp_path / "run" / "targets" / name / "labels.safetensors")
        assert sorted(labels) == [str(i) for i in range(8) if i != 5]
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "stage first data: left out: sample speech:5.wav, audio 1: " in log
    assert "stage second data: left out: sample speech:5.wav: it could not be read when" in log
