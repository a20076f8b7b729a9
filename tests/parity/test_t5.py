"""T5 against `transformers`' T5ForConditionalGeneration, from random weights through the real key map."""

import io
import json

import pytest
import torch
from reference_models import randomise, to_transformers, to_weft
from torch import nn

from weft.checkpoints.t5 import read_config
from weft.core.batch import MultimodalBatch, TextSide
from weft.core.conversation import Conversation, user
from weft.inference.generate import Decoding
from weft.inference.sampling import Sampling
from weft.language_models.t5 import T5
from weft.recipes.loading import load_model
from weft.systems.accounting import without_values
from weft.systems.multimodal_seq2seq import MultimodalSeq2Seq

transformers = pytest.importorskip("transformers")

SIZE = {
    "vocab_size": 97, "d_model": 48, "d_kv": 16, "d_ff": 64, "num_layers": 3, "num_decoder_layers": 2, "num_heads": 4,
    "relative_attention_num_buckets": 8, "relative_attention_max_distance": 20, "decoder_start_token_id": 0,
}  # fmt: skip
CASES = {
    "flan": {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
    "flan in BLIP-2": {"feed_forward_proj": "gated-gelu", "dense_act_fn": "gelu", "tie_word_embeddings": False},
    "first T5": {"feed_forward_proj": "relu"},
}
READ = torch.randint(3, 97, (2, 40), generator=torch.Generator().manual_seed(1))
LENGTHS = (40, 23)
WRITTEN = torch.randint(3, 97, (2, 30), generator=torch.Generator().manual_seed(2)).index_fill(1, torch.tensor([0]), 0)
MASK = (torch.arange(40) < torch.tensor(LENGTHS)[:, None]).long()


def reference(case: str):
    model = transformers.T5ForConditionalGeneration(transformers.T5Config(**SIZE, **CASES[case]))
    if CASES[case].get("tie_word_embeddings") is False:
        model.lm_head.weight = nn.Parameter(torch.zeros(97, 48))  # a model made from a config is tied, published ones are not
    return randomise(model)


def as_system(language_model: T5) -> MultimodalSeq2Seq:
    system = MultimodalSeq2Seq.Config(language_model=language_model.config).build().eval()
    system.language_model = language_model
    return system


def batch(written: torch.Tensor) -> MultimodalBatch:
    place = torch.arange(READ.shape[1]).expand_as(READ)
    read = TextSide(READ, torch.zeros_like(READ), MASK, place, torch.zeros_like(READ))
    order, segment = torch.arange(written.shape[1]).expand_as(written), torch.ones_like(written)
    return MultimodalBatch(read, decoder=TextSide(written, order, segment, order, torch.zeros_like(written)))


@torch.no_grad()
@pytest.mark.parametrize("case", CASES)
def test_logits_equal_the_reference_with_and_without_a_cache(case, tmp_path):
    theirs = reference(case)
    system = as_system(to_weft(theirs, tmp_path))
    expected = theirs(input_ids=READ, attention_mask=MASK, decoder_input_ids=WRITTEN).logits
    bound = 1e-4 * max(1.0, expected.abs().max().item())  # float32 rounding over five layers
    assert (system(batch(WRITTEN)).logits() - expected).abs().max() <= bound
    decoding = Decoding(system)
    steps = [decoding.prefill(batch(WRITTEN[:, :7]))] + [decoding.step(WRITTEN[:, place]) for place in range(7, 30)]
    assert (torch.stack(steps, 1) - expected[:, 6:]).abs().max() <= bound
    assert expected.std() > 0.1  # weights under which every layer matters
    other = theirs(input_ids=READ.flip(1), attention_mask=MASK, decoder_input_ids=WRITTEN).logits
    assert (other - expected).abs().max() > 0.1  # and the decoder looks at its encoder


@torch.no_grad()
@pytest.mark.parametrize("case", CASES)
def test_greedy_answers_are_those_of_the_reference(case, tmp_path):
    theirs = reference(case)
    system = as_system(to_weft(theirs, tmp_path))
    settings = {"max_new_tokens": 24, "min_new_tokens": 24, "do_sample": False, "eos_token_id": None}
    expected = theirs.generate(READ, attention_mask=MASK, **settings)
    decoding = Decoding(system)
    answer = [decoding.prefill(batch(torch.zeros(2, 1, dtype=torch.long))).argmax(-1)]
    for _ in range(23):
        answer.append(decoding.step(answer[-1]).argmax(-1))
    assert torch.equal(torch.stack(answer, 1), expected[:, 1:])


@pytest.mark.parametrize("case", CASES)
def test_the_way_to_transformers_and_back_changes_no_bit(case, tmp_path):
    theirs = reference(case)
    ours = to_weft(theirs, tmp_path / "theirs")
    again = to_transformers(ours, type(theirs), tmp_path / "ours")
    assert all(torch.equal(value, theirs.state_dict()[name]) for name, value in again.state_dict().items())
    assert again.config.scale_decoder_outputs == ours.config.tied_head
    assert again.config.dense_act_fn == theirs.config.dense_act_fn
    back = to_weft(again, tmp_path / "back")
    assert back.config == ours.config
    assert all(torch.equal(value, ours.state_dict()[name]) for name, value in back.state_dict().items())


def test_both_spellings_of_the_config_say_the_same(tmp_path):
    """4.x says whether the head is tied; 5.x always says that it is, and keeps what was said as a flag of the scaling."""
    theirs = reference("flan")
    theirs.save_pretrained(tmp_path)
    new = json.loads((tmp_path / "config.json").read_text())
    assert new["tie_word_embeddings"] is True and new["scale_decoder_outputs"] is False
    old = {key: value for key, value in new.items() if key != "scale_decoder_outputs"} | {"tie_word_embeddings": False}
    assert read_config(old) == read_config(new)
    assert read_config(new).tied_head is False


def test_fields_that_a_config_leaves_out_have_the_reference_defaults():
    whole = transformers.T5Config().to_dict()
    assert read_config({"model_type": "t5"}) == read_config(whole)


def write_tokenizer(folder, lines):
    """A `spiece.model` with the ids of T5's: padding, end of text, unknown."""
    model, ids = io.BytesIO(), {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}
    sentencepiece = pytest.importorskip("sentencepiece")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines * 20), model_writer=model, vocab_size=90, hard_vocab_limit=False, minloglevel=3, **ids
    )
    (folder / "spiece.model").write_bytes(model.getvalue())
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "T5Tokenizer", "extra_ids": 0}))


def test_a_folder_of_the_library_answers_as_the_library_does(tmp_path):
    """Weights, sizes, tokenizer, start and end of an answer out of one folder; a batch of prompts of different lengths."""
    prompts = ["The quick brown fox jumps over the lazy dog. Where does it jump?", "How are you today?"]
    write_tokenizer(tmp_path, prompts)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    theirs = reference("flan")
    theirs.save_pretrained(tmp_path)
    read = tokenizer(prompts, padding=True, return_tensors="pt")
    answers = theirs.generate(**read, max_new_tokens=12, do_sample=False)
    model = load_model(tmp_path)
    assert model.processor.template.name == "bare"
    replies = model.generate([Conversation((user(prompt),)) for prompt in prompts], Sampling(max_new_tokens=12))
    for reply, answer in zip(replies, answers.tolist(), strict=True):
        ended = answer[1:].index(1) if 1 in answer[1:] else 12
        assert list(reply.token_ids) == answer[1 : 1 + ended]
        assert reply.text == tokenizer.decode(answer, skip_special_tokens=True)


COUNTS = {
    "flan-t5-small": 76_961_152,
    "flan-t5-base": 247_577_856,
    "flan-t5-large": 783_150_080,
    "flan-t5-xl": 2_849_757_184,
    "flan-t5-xxl": 11_135_332_352,
}


@pytest.mark.parametrize("size", T5.Config.sizes())
def test_parameter_counts_are_the_published_ones(size):
    """What `transformers` counts for the size, and the head that it ties but the published files hold."""
    config = T5.Config.sizes()[size]
    with without_values():
        assert sum(parameter.numel() for parameter in config.build().parameters()) == COUNTS[size]
