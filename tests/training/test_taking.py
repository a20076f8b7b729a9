from dataclasses import replace

import pytest
import torch
from tiny_training import recipe, system

from weft.core.errors import ConfigError
from weft.training.taking import take


def sources():
    torch.manual_seed(1)
    return {"align": system().build().state_dict()}


def stage(takes, new=()):
    return replace(recipe().stages[1], takes=takes, new=new)


def test_a_stage_takes_by_pattern_and_prefix():
    earlier = sources()
    tower = {f"media.{n.removeprefix('streams.image.encoder.')}": t for n, t in earlier["align"].items() if "encoder" in n}
    earlier["tower"] = {**tower, "text.weight": torch.zeros(3)}
    takes = {"tower": {"media.*": "streams.image.encoder."}, "align": {"language_model.*": "language_model."}}
    fresh = system().build()
    before = {n: t.clone() for n, t in fresh.state_dict().items()}
    assert take(stage(takes, new=("streams.image.projector.*",)), fresh, earlier.__getitem__) == []
    for name, tensor in fresh.state_dict().items():
        origin = before if "projector" in name else earlier["align"]
        assert torch.equal(tensor, origin[name]), name


def test_source_tensors_without_a_place_are_told():
    earlier = sources()
    earlier["align"]["streams.image.projector.scale"] = torch.ones(1)
    unplaced = take(stage({"align": {"*": ""}}), system().build(), earlier.__getitem__)
    assert unplaced == ["align:streams.image.projector.scale"]


def test_a_key_neither_filled_nor_new_is_an_error_and_nothing_is_written():
    fresh = system().build()
    before = {n: t.clone() for n, t in fresh.state_dict().items()}
    with pytest.raises(ConfigError, match=r"streams\.image\.projector\.layers\.0\.weight is neither filled nor declared new"):
        take(stage({"align": {"language_model.*": "language_model.", "*encoder.*": ""}}), fresh, sources().__getitem__)
    assert all(torch.equal(t, before[n]) for n, t in fresh.state_dict().items())


def test_all_that_does_not_fit_is_in_one_error():
    earlier = sources()
    earlier["align"]["language_model.embedding.weight"] = torch.zeros(7, 64)
    takes = {"align": {"*": "", "language_model.*": "language_model.", "vision.*": "streams.image.encoder."}}
    with pytest.raises(ConfigError) as caught:
        take(stage(takes), system().build(), earlier.__getitem__)
    message = str(caught.value)
    assert "language_model.embedding.weight is 300x64, align:language_model.embedding.weight is 7x64" in message
    assert "is filled twice" in message
    assert "more" in message


def test_a_pattern_that_fills_nothing_is_an_error():
    with pytest.raises(ConfigError, match=r"align: 'vision\.\*' -> 'streams\.image\.encoder\.' fills nothing \(0 source names"):
        take(stage({"align": {"*": "", "vision.*": "streams.image.encoder."}}), system().build(), sources().__getitem__)


def test_a_tied_weight_is_filled_by_either_name():
    tied = replace(system(), language_model=replace(system().language_model, tied_head=True))
    earlier = {"align": {n: t for n, t in tied.build().state_dict().items() if n != "language_model.output.weight"}}
    fresh = tied.build()
    assert take(stage({"align": {"*": ""}}), fresh, earlier.__getitem__) == []
    assert torch.equal(fresh.language_model.output.weight, earlier["align"]["language_model.embedding.weight"])
