"""BLIP-2 and InstructBLIP whole against `transformers`, from random weights through the real key maps, both ways."""

import pytest
import torch
from reference_models import randomise, to_transformers, to_weft
from torch import nn

from weft.core.batch import MediaBatch, MultimodalBatch, SampleRef, TextSide
from weft.core.layout import MediaLayout

transformers = pytest.importorskip("transformers")

QUERIES, VOCABULARY, IMAGE = 4, 97, 96
VISION = {"hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 3, "image_size": 28,
          "patch_size": 7}  # fmt: skip
READER = {"hidden_size": 36, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 3, "vocab_size": 61,
          "max_position_embeddings": 16}  # fmt: skip
OPT = {"model_type": "opt", "vocab_size": VOCABULARY, "hidden_size": 32, "word_embed_proj_dim": 32, "ffn_dim": 48,
       "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 64}  # fmt: skip
LLAMA = {"model_type": "llama", "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
         "num_attention_heads": 4, "max_position_embeddings": 64}  # fmt: skip
T5 = {"model_type": "t5", "vocab_size": VOCABULARY, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4,
      "feed_forward_proj": "gated-gelu", "dense_act_fn": "gelu", "tie_word_embeddings": False,
      "decoder_start_token_id": 0}  # fmt: skip
CASES = {"opt": ("Blip2", OPT), "blip-2 t5": ("Blip2", T5), "llama": ("InstructBlip", LLAMA), "t5": ("InstructBlip", T5)}
PIXELS = torch.randn(2, 3, 28, 28, generator=torch.Generator().manual_seed(1))
WORDS = torch.randint(3, 90, (2, 7), generator=torch.Generator().manual_seed(2))
WRITTEN = torch.randint(3, 90, (2, 6), generator=torch.Generator().manual_seed(3)).index_fill(1, torch.tensor([0]), 0)
ASKED = torch.randint(1, 61, (2, 5), generator=torch.Generator().manual_seed(4))


def reference(case: str):
    family, text = CASES[case]
    config = getattr(transformers, f"{family}Config")(
        vision_config=VISION, qformer_config=READER, text_config=text, num_query_tokens=QUERIES, image_token_index=IMAGE
    )
    model = getattr(transformers, f"{family}ForConditionalGeneration")(config)
    if text is T5:  # a model made from a config is tied, published ones are not
        model.language_model.lm_head.weight = nn.Parameter(torch.zeros(VOCABULARY, 32))
    randomise(model)
    for name, parameter in model.named_parameters():
        if name.endswith("qkv.bias"):
            parameter.data[48:96] = 0.0  # the keys', which published files have at zero
    return model


def side(tokens: torch.Tensor, causal: bool = True) -> TextSide:
    place = torch.arange(tokens.shape[1]).expand_as(tokens)
    nothing = torch.zeros_like(tokens)
    return TextSide(tokens, place if causal else nothing, torch.ones_like(tokens), place, nothing)


def batch(pixels: torch.Tensor, asked: torch.Tensor | None, seq2seq: bool) -> MultimodalBatch:
    tokens = torch.cat((torch.zeros(2, QUERIES, dtype=torch.long), WORDS), 1)
    media = MediaBatch(
        units=pixels, unit_item=torch.arange(2), layout=(MediaLayout(1, 17),) * 2, item_sample=torch.arange(2),
        spans=torch.tensor([(row, 0, row, 0, QUERIES) for row in range(2)]), instruction=asked,
    )  # fmt: skip
    samples = tuple(SampleRef(row, 1, "", str(row)) for row in range(2))
    return MultimodalBatch(side(tokens, not seq2seq), {"image": media}, samples, side(WRITTEN) if seq2seq else None)


@torch.no_grad()
@pytest.mark.parametrize("case", CASES)
def test_logits_and_files_are_those_of_the_reference(case, tmp_path):
    theirs = reference(case)
    ours = to_weft(theirs, tmp_path / "theirs")
    instructs, seq2seq = CASES[case][0] == "InstructBlip", CASES[case][1] is T5

    def expected(model, pixels, asked):
        more = {"qformer_input_ids": asked, "qformer_attention_mask": torch.ones_like(asked)} if instructs else {}
        more |= {"decoder_input_ids": WRITTEN} if seq2seq else {}
        ids = torch.cat((torch.full((2, QUERIES), IMAGE), WORDS), 1)
        return model(pixel_values=pixels, input_ids=ids, **more).logits

    def found(pixels, asked):
        return ours(batch(pixels, asked if instructs else None, seq2seq)).logits()

    logits = expected(theirs, PIXELS, ASKED)
    bound = 1e-4 * max(1.0, logits.abs().max().item())  # float32 rounding through three transformers
    assert (found(PIXELS, ASKED) - logits).abs().max() <= bound
    assert (found(PIXELS.flip(3), ASKED) - logits).abs().max() > 1e-3
    other = expected(theirs, PIXELS, ASKED.flip(1))
    assert (found(PIXELS, ASKED.flip(1)) - other).abs().max() <= bound
    assert ((other - logits).abs().max() > 1e-3) == instructs
    again = to_transformers(ours, type(theirs), tmp_path / "ours")
    assert (expected(again, PIXELS, ASKED) - logits).abs().max() <= bound
