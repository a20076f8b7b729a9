import pytest
from torch import nn

from weft.core.errors import ConfigError
from weft.training.freezing import freeze, select_names, set_training_mode

NAMES = ["encoder.blocks.0.weight", "encoder.blocks.1.weight", "encoder.pool.weight", "projector.weight"]


def test_patterns_include_and_exclude():
    assert select_names(NAMES, ("encoder.*", "!*.pool.*"), "train") == NAMES[:2]
    assert select_names(NAMES, ("*",), "train") == NAMES


@pytest.mark.parametrize("patterns", [("encodr.*",), ("*", "!encodr.*")])
def test_every_pattern_must_match_something(patterns):
    with pytest.raises(
        ConfigError, match=r"stage 'align': train: pattern '!?encodr\.\*' matches no parameter; names begin with"
    ):
        freeze(model(), patterns, "stage 'align'")


def test_nothing_left_to_train_is_an_error():
    with pytest.raises(ConfigError, match="excludes every parameter"):
        freeze(model(), ("projector.*", "!*"), "stage 'align'")


def model():
    encoder = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout())
    projector = nn.Sequential(nn.Linear(4, 4), nn.Dropout())
    return nn.ModuleDict({"encoder": encoder, "projector": projector})


def test_freezing_sets_who_learns_and_forgets_old_gradients():
    system = model()
    system["encoder"][0](system["encoder"][0].weight).sum().backward()
    trained = freeze(system, ("projector.*",))
    assert set(trained) == {"projector.0.weight", "projector.0.bias"}
    assert {n for n, p in system.named_parameters() if p.requires_grad} == set(trained)
    assert all(p.grad is None for p in system.parameters())


def test_frozen_parts_stay_in_evaluation_mode_with_their_dropout_and_statistics():
    system = model()
    freeze(system, ("projector.*",))
    system.eval()
    set_training_mode(system)
    assert system.training
    assert [m.training for m in system["encoder"].modules()] == [False] * 4
    assert [m.training for m in system["projector"].modules()] == [True] * 3
