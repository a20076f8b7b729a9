"""Systems of published recipes made small, filled with what `transformers` and others wrote, and what is asked of them beside a
reference."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from reference_models import randomise

from weft.core.config import override_all
from weft.core.conversation import Conversation, Media
from weft.data.collate import collate
from weft.inference.model import Model
from weft.inference.sampling import Sampling
from weft.recipes.shrinking import TINY_VOCABULARY, tiny_tokenizer
from weft.recipes.starting_weights import starting_weights
from weft.training.stage import Stage

WIDTH, HEADS, FEED_FORWARD, CONTEXT = 64, 4, 112, 512


def llama_sizes(num_layers: int = 2, vocabulary: int = TINY_VOCABULARY) -> dict[str, object]:
    """Settings that make a system's decoder small."""
    sizes = {"width": WIDTH, "num_heads": HEADS, "num_key_value_heads": HEADS, "feed_forward_width": FEED_FORWARD,
             "context": CONTEXT, "num_layers": num_layers, "vocabulary": vocabulary}  # fmt: skip
    return {f"language_model.{name}": size for name, size in sizes.items()}


def llama(norm_eps: float, num_layers: int = 2, vocabulary: int = TINY_VOCABULARY) -> torch.nn.Module:
    """The same in `transformers`, with drawn weights."""
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=vocabulary, hidden_size=WIDTH, intermediate_size=FEED_FORWARD, num_hidden_layers=num_layers,
        num_attention_heads=HEADS, num_key_value_heads=HEADS, max_position_embeddings=CONTEXT, rms_norm_eps=norm_eps,
        attn_implementation="eager",
    )  # fmt: skip
    return randomise(transformers.LlamaForCausalLM(config), seed=5)


def small_model(
    stage: Stage, settings: Mapping[str, object], image: Mapping[str, object], parts: Mapping[str, Path] | None = None
) -> Model:
    """A stage's system and processor, small by `settings` and by those of its `image` transform; its parts opened from where
    they were written, as `weft train --from` does, and what has none drawn. No token ends its replies."""
    config = override_all(stage.system, [(path, str(value)) for path, value in settings.items()])
    system = randomise(config.build())
    if fill := starting_weights([f"{part}={path}" for part, path in (parts or {}).items()]):
        fill(system)
    changes = [(f"transforms.image.{path}", str(value)) for path, value in image.items()]
    model = Model(system, override_all(stage.processor, changes).build(tiny_tokenizer(), config))
    model.processor.stop_ids = frozenset()
    return model


def picture(seed: int, side: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (side, side, 3), dtype=np.uint8)


def shown(seed: int, side: int) -> Media:
    return Media(picture(seed, side))


@torch.no_grad()
def logits_of(model: Model, conversations: Sequence[Conversation], reply: bool = True) -> list[torch.Tensor]:
    """Those of every token of every conversation, read in one padded batch: [T, V] each."""
    samples = [model.processor.encode(conversation, reply=reply) for conversation in conversations]
    logits = model.system(collate(samples)).logits()
    return [row[: len(sample)] for row, sample in zip(logits, samples, strict=True)]


def assert_same_logits(found: Sequence[torch.Tensor], expected: Sequence[torch.Tensor]) -> None:
    """Within 1e-4 of the largest, or of 1: float32 rounding through a tower, what follows it and a language model."""
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.shape == theirs.shape
        difference = (ours - theirs).abs().max().item()
        assert difference <= 1e-4 * max(1.0, theirs.abs().max().item()), difference


def replies(model: Model, conversations: Sequence[Conversation], steps: int = 8) -> list[list[int]]:
    """Greedy, in one batch behind a cache."""
    return [list(reply.token_ids) for reply in model.generate(conversations, Sampling(max_new_tokens=steps))]
