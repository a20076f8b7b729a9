"""Mixtures: exact shares, every sample equally often, an order that is arithmetic, and runs that resume on them."""

from collections import Counter
from dataclasses import dataclass, replace

import pytest
import tiny_training
from tiny_training import Squares, Strike, losses, tokenizer

from weft.core import config
from weft.core.conversation import Conversation, assistant, user
from weft.core.errors import ConfigError
from weft.data.dataset import STREAM, Dataset
from weft.data.datasets.mixture import Mixture, apportioned, probabilities
from weft.data.keyed_draws import shuffled, uniform
from weft.training.data_stream import SampleOrder
from weft.training.trainer import Trainer


class Numbers(Dataset):
    """So many conversations, each of its number."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Dataset.Config):
        size: int
        name: str = "numbers"

        def build(self):
            return Numbers(self)

    def __init__(self, config):
        self.config = config

    def __len__(self):
        return self.config.size

    def __getitem__(self, index):
        if not 0 <= index < self.config.size:
            raise IndexError(index)
        return Conversation((user("?"), assistant(str(index))), id=str(index), source=self.config.name, meta={"kept": 1})


class Endless(Numbers):
    endless = True

    @dataclass(frozen=True, kw_only=True)
    class Config(Numbers.Config):
        def build(self):
            return Endless(self)

    def __getitem__(self, index):
        return Conversation((user("?"), assistant(str(index))), id=str(index), source=self.config.name)


def mixture(weighting="given", epoch=0, seed=0, **parts):
    """parts: name -> (size, weight)"""
    made = {name: Mixture.Part(data=Numbers.Config(size=size, name=name), weight=w) for name, (size, w) in parts.items()}
    return Mixture.Config(parts=made, weighting=weighting, epoch=epoch, seed=seed)


def drawn(data, number, start=0):
    return [(data[i].source, int(data[i].id)) for i in range(start, start + number)]


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ((100, 400, 900), (1 / 6, 1 / 3, 1 / 2)),
        ((10_000, 1_000_000, 90_000), (0.0714, 0.7143, 0.2143)),
        (
            (566_747, 14_000_000, 109_765, 443_757, 9_009, 17_056, 801_673),
            (0.1138, 0.5658, 0.0501, 0.1007, 0.0144, 0.0197, 0.1354),
        ),
    ],
)
def test_the_roots_of_sizes_are_instructblips_probabilities(sizes, expected):
    found = probabilities(sizes, [1.0] * len(sizes), "roots")
    assert found == pytest.approx(expected, abs=5e-5) and sum(found) == pytest.approx(1)


def test_weights_are_shares_or_factors():
    assert probabilities((10, 1000), (2.0, 1.0), "given") == pytest.approx([2 / 3, 1 / 3])
    assert probabilities((10, 30), (3.0, 1.0), "sizes") == pytest.approx([0.5, 0.5])
    assert probabilities((100, 900), (3.0, 1.0), "roots") == pytest.approx([0.5, 0.5])


def test_an_epoch_has_exactly_the_share_of_each_part():
    data = mixture("roots", epoch=1001, a=(100, 1.0), b=(400, 1.0), c=(900, 1.0)).build()
    assert data.counts == {"a": 167, "b": 334, "c": 500} and sum(data.counts.values()) == len(data)
    for epoch in range(2):
        assert Counter(name for name, _ in drawn(data, 1001, 1001 * epoch)) == data.counts


def test_shares_are_rounded_to_the_epoch():
    assert apportioned(10, [1 / 3, 1 / 3, 1 / 3]) == [4, 3, 3]
    assert apportioned(3, [0.1, 0.2, 0.7]) == [0, 1, 2]
    assert apportioned(1000, [0.2 / 1.2, 1 / 1.2]) == [167, 833]


def test_by_size_an_epoch_shows_every_sample_once_or_as_often_as_its_factor_says():
    once = mixture("sizes", a=(30, 1.0), b=(70, 1.0)).build()
    assert len(once) == 100
    for epoch in range(2):
        assert Counter(drawn(once, 100, 100 * epoch)) == Counter(
            [*(("a", i) for i in range(30)), *(("b", i) for i in range(70))]
        )
    thrice = mixture("sizes", a=(30, 3.0), b=(70, 1.0)).build()
    shown = Counter(drawn(thrice, len(thrice)))
    assert len(thrice) == 160 and all(shown["a", i] == 3 for i in range(30)) and all(shown["b", i] == 1 for i in range(70))


def test_after_every_epoch_the_samples_of_a_part_were_shown_equally_often():
    data = mixture(epoch=25, a=(7, 1.0), b=(40, 1.0)).build()
    shown = Counter()
    for epoch in range(30):
        shown.update(drawn(data, 25, 25 * epoch))
        for name, size in (("a", 7), ("b", 40)):
            times = [shown[name, i] for i in range(size)]
            assert max(times) - min(times) <= 1, (epoch, name)


def test_places_within_an_epoch_are_random():
    """Of 4000 places half are a's: in the first 1000 about 500, give or take 4 deviations of a hypergeometric draw."""
    firsts = [
        sum(name == "a" for name, _ in drawn(mixture(epoch=4000, seed=seed, a=(9, 1.0), b=(9, 1.0)).build(), 1000))
        for seed in range(3)
    ]
    assert len(set(firsts)) > 1 and all(abs(first - 500) < 4 * (1000 * 0.25 * 0.75) ** 0.5 for first in firsts)


def test_a_sample_depends_on_seed_and_index_alone():
    data = mixture(epoch=50, a=(7, 1.0), b=(40, 2.0)).build()
    forward = drawn(data, 200)
    assert [drawn(data, 1, i)[0] for i in reversed(range(200))] == forward[::-1]
    assert drawn(mixture(epoch=50, seed=1, a=(7, 1.0), b=(40, 2.0)).build(), 200) != forward
    assert forward[:50] != forward[50:100], "each epoch has an order of its own"
    with pytest.raises(IndexError):
        data[-1]


def test_a_run_reads_a_stream_of_its_own_from_its_begin():
    data = mixture("sizes", a=(30, 1.0), b=(70, 1.0)).build()
    seen = []
    for stage in ("pretrain", "tune"):
        order = SampleOrder(len(data), 10, 0, stage, data.endless, data.shuffled)
        assert order.indices(0)[0] % STREAM == 0
        samples = [drawn(data, 1, index)[0] for step in range(10) for index in order.indices(step)]
        assert len(set(samples)) == 100, "a first epoch is whole"
        seen.append(samples)
    assert seen[0] != seen[1]


def test_parts_without_end_go_on_and_mixtures_can_be_parts():
    inner = mixture("sizes", a=(3, 1.0), b=(5, 1.0))
    parts = {"drawn": Mixture.Part(data=Endless.Config(size=10, name="drawn")), "both": Mixture.Part(data=inner)}
    data = Mixture.Config(parts=parts, epoch=16).build()
    first, second = (Counter(drawn(data, 16, start)) for start in (0, 16))
    assert {n for s, n in [*first, *second] if s == "drawn"} == set(range(16))
    assert Counter(s for s, _ in first) == {"drawn": 8, "a": 3, "b": 5}
    other = drawn(data, 16, STREAM)
    assert {n for s, n in other if s == "drawn"} == set(range(1, 9)) and Counter(s for s, _ in other)["a"] == 3


def test_loss_weights_ride_on_the_samples():
    light = Mixture.Part(data=Numbers.Config(size=4, name="light"), loss_weight=0.2)
    data = Mixture.Config(parts={"light": light, "plain": Mixture.Part(data=Numbers.Config(size=4))}).build()
    metas = {sample.source: sample.meta for sample in (data[i] for i in range(8))}
    assert metas == {"light": {"kept": 1, "loss_weight": 0.2}, "numbers": {"kept": 1}}


def test_what_is_no_mixture_is_refused():
    with pytest.raises(ConfigError, match="at least one part"):
        mixture().build()
    with pytest.raises(ConfigError, match=r"part 'a' of a mixture needs a weight above 0, got 0\.0"):
        mixture(a=(3, 0.0)).build()
    with pytest.raises(ConfigError, match=r"an epoch of 10 samples has no room for b \(probability 0.001\)"):
        mixture(epoch=10, a=(3, 999.0), b=(3, 1.0)).build()
    with pytest.raises(ConfigError, match="loss_weight must be 0 or above, got -1"):
        Mixture.Config(parts={"a": Mixture.Part(data=Numbers.Config(size=3), loss_weight=-1.0)}).build()


def test_a_mixture_is_saved_and_its_parts_are_set_by_name():
    made = mixture("roots", a=(30, 1.0), b=(70, 2.0))
    assert config.loads(config.dumps(made)) == made
    changed = config.override(config.override(made, "parts.b.weight", "0.5"), "parts.a.data.size", "9")
    assert changed.parts["b"].weight == 0.5 and len(changed.build().parts[0]) == 9
    assert made.build().remarks() == ["of 100 samples an epoch a 25.00%, b 75.00%"]


@pytest.mark.parametrize("size", [1, 2, 3, 5, 64, 65, 1000])
def test_a_shuffling_is_one_and_each_key_has_another(size):
    orders = [[shuffled(place, size, 0, key) for place in range(size)] for key in range(8)]
    assert all(sorted(order) == list(range(size)) for order in orders)
    assert len(set(map(tuple, orders))) == len(orders) or size < 5


def test_every_order_of_three_things_is_as_likely():
    """600 shufflings, six orders: 100 of each, give or take four deviations."""
    orders = Counter(tuple(shuffled(place, 3, key) for place in range(3)) for key in range(600))
    assert len(orders) == 6 and all(abs(count - 100) < 4 * (600 / 6 * 5 / 6) ** 0.5 for count in orders.values())


def test_draws_are_uniform_and_the_same_everywhere():
    values = [uniform("key", i) for i in range(2000)]
    assert all(0 <= value < 1 for value in values)
    assert abs(sum(values) / 2000 - 0.5) < 4 * (1 / 12 / 2000) ** 0.5
    assert uniform(0, "a") == uniform(0, "a") != uniform(0, "b")
    assert (shuffled(3, 10, 7, "a"), round(uniform(7, "a"), 6)) == (8, 0.460968)


class Crash(Exception):
    pass


def crash():
    raise Crash


def recipe():
    parts = {"squares": Mixture.Part(data=Squares.Config(size=8)), "more": Mixture.Part(data=Squares.Config(), loss_weight=0.5)}
    made = tiny_training.recipe()
    return replace(made, stages=(replace(made.stages[0], data=Mixture.Config(parts=parts, epoch=20)),))


def trainer(folder, **options):
    return Trainer(recipe(), folder, tokenizer=tokenizer(), **options)


def test_a_run_on_a_mixture_resumes_bit_for_bit_and_says_what_it_mixed(tmp_path):
    trainer(tmp_path / "straight").fit()
    with pytest.raises(Crash):
        trainer(tmp_path / "run", checkpoint_every=2, callbacks=[Strike(5, crash)]).fit()
    trainer(tmp_path / "run", checkpoint_every=2).fit(resume=True)
    assert losses(tmp_path / "run") == losses(tmp_path / "straight")
    assert "data: of 20 samples an epoch squares 50.00%, more 50.00%" in (tmp_path / "straight" / "log.txt").read_text()
