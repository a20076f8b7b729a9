"""What every text tower promises, in every published form, zero-initialised numbers at 0.5; a new one joins by existing."""

import pytest
import torch
from contract_conditions import is_key_bias, open_gates, reached, tiny_forms
from safetensors.torch import load_file, save_file
from tiny_model import text_batch

from weft.core import config as configs
from weft.core.batch import TextSide
from weft.core.catalogue import parts
from weft.core.errors import ContextTooShort, DataError
from weft.core.interfaces import TextEncoder

TOWERS = {name: cls for name, cls in parts("encoders").items() if issubclass(cls, TextEncoder)}
FORMS = tiny_forms("encoders", TextEncoder.Config)
each_tower = pytest.mark.parametrize("name", FORMS)

SHORT, LONG = (3, 14, 15, 9, 26), (53, 58, 9, 79, 32, 38, 46, 26, 43)


def build(name: str) -> TextEncoder:
    torch.manual_seed(0)
    tower = FORMS[name].build().eval()
    open_gates(tower)
    return tower


def texts(*rows: tuple[int, ...], padding: int = 0) -> TextSide:
    """One text a row, padded on the right."""
    side = text_batch(rows).main
    side.tokens[side.segment == 0] = padding
    return side


@each_tower
def test_one_vector_of_the_promised_width_for_each_text(name):
    tower = build(name)
    with torch.no_grad():
        pooled = tower(texts(SHORT, LONG, (7,)))
    assert pooled.shape == (3, tower.config.output_width)
    assert pooled.isfinite().all()


@each_tower
@pytest.mark.parametrize("padding", [0, 5], ids="padded with token {}".format)
def test_a_text_alone_equals_the_same_text_beside_a_longer_one(name, padding):
    tower = build(name)
    with torch.no_grad():
        together = tower(texts(SHORT, LONG, padding=padding))
        for row, text in enumerate((SHORT, LONG)):
            # float32: another kernel may add in another order
            torch.testing.assert_close(together[row : row + 1], tower(texts(text)), rtol=0, atol=1e-5)


@each_tower
def test_every_word_and_its_place_count(name):
    tower = build(name)
    with torch.no_grad():
        vector, *others = tower(
            texts(SHORT, *((*SHORT[:i], 80, *SHORT[i + 1 :]) for i in range(5)), (*SHORT[1::-1], *SHORT[2:]))
        )
    for other in others:
        assert (vector - other).abs().max() > 1e-4 * vector.abs().max()  # float32 tells them apart a hundred times over


@each_tower
def test_saved_and_loaded_it_gives_the_same_vectors(name, tmp_path):
    tower = build(name)
    save_file(tower.state_dict(), tmp_path / "tower.safetensors")
    again = configs.loads(configs.dumps(tower.config)).build().eval()
    assert again.config == tower.config
    again.load_state_dict(load_file(tmp_path / "tower.safetensors"))
    with torch.no_grad():
        assert torch.equal(tower(texts(SHORT, LONG)), again(texts(SHORT, LONG)))


@each_tower
def test_the_gradient_reaches_every_parameter_and_every_token(name):
    tower = build(name)
    names = {n for n, _ in tower.named_parameters() if not is_key_bias(n)}
    assert names - reached(tower, tower(texts(SHORT, LONG))) == set()
    rows = tower.token_embedding.weight.grad.abs().sum(1)
    assert (rows[[*SHORT, *LONG]] > 0).all()


@each_tower
@pytest.mark.parametrize("autocast", [False, True], ids=["bfloat16 weights", "autocast"])
def test_in_bfloat16_vectors_are_finite_and_near(name, autocast):
    tower = build(name)
    side = texts(SHORT, LONG)
    with torch.no_grad():
        exact = tower(side)
        tower = tower if autocast else tower.bfloat16()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            reduced = tower(side)
    assert autocast or reduced.dtype == torch.bfloat16
    assert reduced.isfinite().all()
    # 8 bits of mantissa through a few layers: a few percent of the vectors' size
    assert (reduced.float() - exact).abs().mean() < 0.05 * exact.abs().mean()


@each_tower
def test_packed_rows_and_texts_beyond_the_context_are_refused(name):
    tower = build(name)
    packed = texts(LONG)
    packed.segment[:, 5:] = 2
    with pytest.raises(DataError, match="got a row with 2 segments; turn packing off"):
        tower(packed)
    most = tower.config.context
    assert tower(texts((4,) * most)).isfinite().all()
    with pytest.raises(ContextTooShort, match=f"at most {most} tokens, got rows of {most + 1}"):
        tower(texts((4,) * (most + 1)))


@pytest.mark.parametrize("name", TOWERS)
def test_every_published_size_builds_without_memory(name):
    for size in TOWERS[name].Config.sizes().values():
        with torch.device("meta"):
            tower = size.build()
        assert sum(p.numel() for p in tower.parameters()) > size.vocabulary * size.width
        assert size.output_width > 0 and size.context > 0
