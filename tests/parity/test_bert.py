"""BERT as a language model against `transformers`' BertForMaskedLM, from random weights through the real key map."""

import pytest
import torch
from reference_models import randomise, to_transformers, to_weft

from weft.checkpoints.bert import BERT, read_config
from weft.checkpoints.weight_files import weights
from weft.core.attention_rule import AttentionRule
from weft.core.errors import CheckpointError
from weft.core.sequence import TokenSequence
from weft.language_models.bert import Bert
from weft.systems.accounting import without_values

transformers = pytest.importorskip("transformers")

SIZE = {
    "vocab_size": 97, "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4,
    "max_position_embeddings": 40,
}  # fmt: skip
CASES = {"gelu": {}, "relu, one type": {"hidden_act": "relu", "type_vocab_size": 1}}
TOKENS = torch.randint(3, 97, (2, 40), generator=torch.Generator().manual_seed(1))
VALID = torch.arange(40) < torch.tensor([40, 23])[:, None]


def reference(case: str = "gelu"):
    return randomise(transformers.BertForMaskedLM(transformers.BertConfig(**SIZE, **CASES[case])))


def logits(model: Bert) -> torch.Tensor:
    rule = AttentionRule.bidirectional(2, 40, valid=VALID)
    hidden, _ = model(TokenSequence(model.embed(TOKENS), rule.queries.position, rule, torch.zeros_like(TOKENS)))
    return model.head(hidden)


@torch.no_grad()
@pytest.mark.parametrize("case", CASES)
def test_logits_equal_the_reference(case, tmp_path):
    theirs = reference(case)
    expected = theirs(TOKENS, attention_mask=VALID.long()).logits[VALID]
    ours = logits(to_weft(theirs, tmp_path))[VALID]
    assert (ours - expected).abs().max() <= 1e-4 * max(1.0, expected.abs().max().item())  # float32 rounding over three layers
    assert expected.std() > 0.3  # weights under which every layer matters


@pytest.mark.parametrize("case", CASES)
def test_the_way_to_transformers_and_back_changes_no_bit(case, tmp_path):
    theirs = reference(case)
    ours = to_weft(theirs, tmp_path / "theirs")
    again = to_transformers(ours, type(theirs), tmp_path / "ours")
    assert all(torch.equal(value, theirs.state_dict()[name]) for name, value in again.state_dict().items())
    back = to_weft(again, tmp_path / "back")
    assert back.config == ours.config
    assert all(torch.equal(value, ours.state_dict()[name]) for name, value in back.state_dict().items())


@torch.no_grad()
def test_the_first_published_files_are_read(tmp_path):
    """gamma and beta, the heads of pre-training, and the token table twice."""
    theirs = randomise(transformers.BertForPreTraining(transformers.BertConfig(**SIZE)))
    expected = theirs(TOKENS, attention_mask=VALID.long()).prediction_logits[VALID]

    def first_spelling(key: str) -> str:
        return key.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")

    state = {first_spelling(key): value for key, value in theirs.state_dict().items()}
    ours = read_config(theirs.config.to_dict()).build().eval()
    BERT.load(ours, state, "pytorch_model.bin")
    assert (logits(ours)[VALID] - expected).abs().max() <= 1e-4 * max(1.0, expected.abs().max().item())
    assert sum("gamma" in key for key in state) == 2 * SIZE["num_hidden_layers"] + 2
    assert not any("gamma" in key for key in BERT.from_weft(weights(ours)))


COUNTS = {  # of BertForMaskedLM
    "bert-base-uncased": 109_514_298,
    "bert-base-cased": 108_340_804,
    "bert-large-uncased": 335_174_458,
    "bert-large-cased": 333_610_308,
}


@pytest.mark.parametrize("size", Bert.Config.sizes())
def test_parameter_counts_are_those_of_the_reference(size):
    with without_values():
        assert sum(parameter.numel() for parameter in Bert.Config.sizes()[size].build().parameters()) == COUNTS[size]


def test_what_weft_does_not_have_is_refused():
    with pytest.raises(CheckpointError, match="position_embedding_type='relative_key'"):
        read_config({"model_type": "bert", "position_embedding_type": "relative_key"})


def test_fields_that_a_config_leaves_out_have_the_reference_defaults():
    assert read_config({"model_type": "bert"}) == read_config(transformers.BertConfig().to_dict())
