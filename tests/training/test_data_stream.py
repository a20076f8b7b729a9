import threading
import time

import pytest
import tiny_training
import torch

from weft.core.errors import DataError
from weft.data.collate import collate
from weft.training.data_stream import DataStream, SampleOrder
from weft.training.sample_reader import SampleReader


def test_an_epoch_shows_every_sample_once_and_the_next_in_another_order():
    order = SampleOrder(num_samples=12, batch_size=4, seed=0, stage="align")
    epochs = [[i for step in range(3 * e, 3 * e + 3) for i in order.indices(step)] for e in range(2)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(12))
    assert epochs[0] != epochs[1]


def test_the_order_needs_no_replay():
    forward = SampleOrder(10, 4, 0, "align")
    steps = [forward.indices(s) for s in range(9)]
    assert SampleOrder(10, 4, 0, "align").indices(8) == steps[8]
    assert [forward.indices(s) for s in reversed(range(9))] == steps[::-1]


def test_batches_run_on_over_the_end_of_an_epoch():
    order = SampleOrder(num_samples=5, batch_size=3, seed=0, stage="align")
    seen = [i for step in range(5) for i in order.indices(step)]
    assert [sorted(seen[e : e + 5]) for e in (0, 5, 10)] == [list(range(5))] * 3


def test_seed_and_stage_choose_the_order():
    def first(seed, stage, endless):
        return SampleOrder(1000, 8, seed, stage, endless).indices(0)

    for endless in (False, True):
        orders = [first(0, "align", endless), first(1, "align", endless), first(0, "tune", endless)]
        assert len({tuple(o) for o in orders}) == 3
        assert first(0, "align", endless) == orders[0]


def test_an_endless_data_set_never_repeats():
    order = SampleOrder(num_samples=6, batch_size=4, seed=0, stage="align", endless=True)
    seen = [i for step in range(20) for i in order.indices(step)]
    assert len(set(seen)) == 80


def test_an_empty_data_set_is_an_error():
    with pytest.raises(DataError, match="stage 'align': its data set is empty"):
        SampleOrder(0, 4, 0, "align")


def stream(encode=None, start=0, stop=6, ahead=2):
    dataset = tiny_training.Squares.Config().build()
    processor = tiny_training.processor().build(tiny_training.tokenizer(), tiny_training.system())
    order = SampleOrder(len(dataset), 4, 0, "align")
    samples = SampleReader(dataset, encode or processor.encode)
    return DataStream(samples, order, collate, micro_batch_size=2, start=start, stop=stop, ahead=ahead)


def test_the_thread_gives_the_steps_in_order_and_from_any_start():
    with stream() as whole:
        steps = [whole.next() for _ in range(6)]
    with stream(start=4) as resumed:
        later = [resumed.next() for _ in range(2)]
    assert [s.step for s in steps] == list(range(6))
    for a, b in zip(steps[4:], later, strict=True):
        assert a.sample_names == b.sample_names
        assert all(torch.equal(x.main.tokens, y.main.tokens) for x, y in zip(a.micro_batches, b.micro_batches, strict=True))
    assert [len(s.micro_batches) for s in steps] == [2] * 6
    assert all(s.num_samples == 4 and s.num_tokens > 0 for s in steps)


def test_the_thread_runs_ahead_only_as_far_as_the_queue():
    encoded = []
    make = stream()
    encode = make.samples.encode
    make.samples.encode = lambda conversation: encoded.append(1) or encode(conversation)
    with make:
        make.next()
        deadline = time.monotonic() + 10
        while len(encoded) < 16 and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.1)
        assert len(encoded) == 16, "one step taken, two ready, one waiting for room; four samples each"


def test_what_goes_wrong_in_the_thread_is_raised_at_the_step_that_needs_it():
    def encode(conversation):
        raise DataError(f"sample {conversation.name} is broken")

    with stream(encode) as broken, pytest.raises(DataError, match="sample squares:"):
        broken.next()


def test_leaving_early_ends_the_thread():
    with stream(stop=1000) as unfinished:
        unfinished.next()
    assert not [t for t in threading.enumerate() if t.name == "weft-data"]


def test_without_a_thread_the_batches_are_the_same():
    with stream() as threaded, stream(ahead=0) as plain:
        before = threading.active_count()
        for _ in range(6):
            ours, theirs = plain.next(), threaded.next()
            assert ours.step == theirs.step and ours.sample_names == theirs.sample_names
            for a, b in zip(ours.micro_batches, theirs.micro_batches, strict=True):
                assert torch.equal(a.main.tokens, b.main.tokens)
        assert plain.waited > 0 and threading.active_count() <= before
