"""Contrastive objectives on several processes: together the loss and gradients of one that has the whole batch."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from weft.core.batch import MediaBatch, MultimodalBatch, SampleRef, TextSide
from weft.core.errors import ConfigError
from weft.core.layout import MediaLayout
from weft.core.output import SystemOutput
from weft.objectives.contrastive import SigmoidContrastive, SoftmaxContrastive
from weft.objectives.next_token import NextToken

OBJECTIVES = {"softmax": SoftmaxContrastive, "sigmoid": SigmoidContrastive}
SHARES = {2: (5, 3), 4: (4, 1, 0, 6)}  # ranks need not have the same number of pairs, nor any
WIDTH = 6


class Towers(nn.Module):
    """Two linear towers over given vectors: parameters that every rank shares, as a trainer's ranks do."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.media, self.text = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.logit_scale = nn.Parameter(torch.tensor(2.5))
        self.logit_bias = nn.Parameter(torch.tensor(-4.0))
        self.double()

    def forward(self, batch):
        sides = {"media": self.media(batch.media["image"].units), "text": self.text(batch.media["words"].units)}
        return SystemOutput(embeddings={name: nn.functional.normalize(side, dim=-1) for name, side in sides.items()})


def pairs(first, last):
    """Pairs `first` to `last` of the one batch of the world; the vectors of both sides come as media."""
    generator = torch.Generator().manual_seed(1)
    image, words = (torch.randn(16, WIDTH, generator=generator, dtype=torch.float64)[first:last] for _ in range(2))
    number = last - first
    empty = torch.zeros(number, 1, dtype=torch.long)
    items = torch.arange(number)
    media = {
        name: MediaBatch(units, items, (MediaLayout(1, 1),) * number, torch.zeros(0, 5), items)
        for name, units in {"image": image, "words": words}.items()
    }
    samples = tuple(SampleRef(i, 1, "", str(i)) for i in range(number))
    return MultimodalBatch(TextSide(empty, empty, empty, empty, empty), media, samples)


def share(objective, batch):
    """What one rank contributes: its sum, its weight, and the gradient of every parameter of a loss over 11 pairs."""
    towers = Towers()
    terms = objective(towers, batch)
    (terms.sums["contrastive"] / 11).backward()
    gradients = {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in towers.named_parameters()}
    return {"sum": terms.sums["contrastive"].detach(), "weight": terms.weights["contrastive"], **gradients}


def added(values, group):
    """The sum over ranks, as a trainer adds gradients."""
    for value in values.values():
        dist.all_reduce(value, group=group)
    return values


def bounds(rank, shares):
    return sum(shares[:rank]), sum(shares[: rank + 1])


def work(rank, place, chunk):
    """What every rank of a world of four does; the two in the middle also form a group of their own."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{place}/meeting", rank=rank, world_size=4)
    groups = {2: dist.new_group([1, 2]), 4: dist.group.WORLD}  # a group's ranks are not the world's
    results = {}
    for size, group in groups.items():
        if (mine := dist.get_group_rank(group, rank) if rank in dist.get_process_group_ranks(group) else None) is None:
            continue
        batch = pairs(*bounds(mine, SHARES[size]))
        for name, kind in OBJECTIVES.items():
            objective = kind.Config(chunk=chunk).build()
            alone = share(objective, batch)  # a process group exists, and nobody has passed it: the rank is alone
            objective.across(group)
            results[size, name] = {"alone": alone, "together": added(share(objective, batch), group)}
    torch.save(results, f"{place}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What four processes computed, by rank."""
    place = tmp_path_factory.mktemp("ranks")
    slow_imports = ["torch.distributed", "torch._dynamo", "weft.objectives.contrastive"]  # once, not in every process
    mp.get_context("forkserver").set_forkserver_preload(slow_imports)
    mp.start_processes(work, (str(place), 2), nprocs=4, start_method="forkserver")
    return [torch.load(place / f"{rank}.pt", weights_only=True) for rank in range(4)]


def assert_equal_to_rounding(value, expected, part):
    """fp32 logits, summed in another order."""
    torch.testing.assert_close(value, expected, rtol=0, atol=2e-6 * max(1.0, float(expected.abs().max())), msg=part)


MEMBERS = {2: (1, 2), 4: (0, 1, 2, 3)}


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("size", SHARES)
def test_shares_of_all_ranks_add_up_to_the_loss_and_gradients_of_one_process(ranks, name, size):
    whole = share(OBJECTIVES[name].Config().build(), pairs(0, sum(SHARES[size])))
    for rank in MEMBERS[size]:
        together = ranks[rank][size, name]["together"]
        assert together.keys() == whole.keys()
        for part, value in whole.items():
            assert_equal_to_rounding(together[part], value, part)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_group_that_nobody_passes_changes_nothing(ranks, name):
    for rank in MEMBERS[4]:
        expected = share(OBJECTIVES[name].Config().build(), pairs(*bounds(rank, SHARES[4])))
        for part, value in ranks[rank][4, name]["alone"].items():
            assert_equal_to_rounding(value, expected[part], part)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_negatives_of_other_ranks_matter(ranks, name):
    together = ranks[0][4, name]["together"]["sum"]
    alone = sum(ranks[rank][4, name]["alone"]["sum"] for rank in MEMBERS[4])
    assert together - alone > 1.0


class OneBatchOnly(NextToken):
    """An objective with in-batch negatives that knows of no ranks."""

    additive = False


def test_an_objective_that_compares_one_batch_only_refuses_a_group_and_an_additive_one_needs_none():
    with pytest.raises(ConfigError, match="OneBatchOnly compares the samples of one rank's batch only"):
        OneBatchOnly(NextToken.Config()).across(None)
    NextToken.Config().build().across(None)
