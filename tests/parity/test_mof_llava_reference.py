"""LLaVA with a mixture of features, in turns and added, against a reference in plain loops around the towers of
`transformers`; positions at another size as the original DINOv2 interpolates them, one cell at a time."""

import math
from typing import NamedTuple

import pytest
import torch
from reference_models import randomise
from small_systems import assert_same_logits, llama, llama_sizes, logits_of, picture, replies, shown, small_model
from spliced_reference import SplicedLlama, linear, pixels

from weft.core.conversation import Conversation, assistant, user
from weft.recipes.mof_llava import mof_llava

transformers = pytest.importorskip("transformers")

SIDE, SAVED_SIDE, PATCH, FEATURES = 32, 48, 8, 48
ALPHA = 0.3
SHAPE = {"hidden_size": FEATURES, "num_hidden_layers": 3, "num_attention_heads": 3, "patch_size": PATCH}
CLIP_SETTINGS = {"width": FEATURES, "feed_forward_width": 96, "num_layers": 3, "num_heads": 3, "image_size": SIDE,
                 "patch_size": PATCH}  # fmt: skip
DINO_SETTINGS = {"width": FEATURES, "feed_forward_ratio": 2, "num_layers": 3, "num_heads": 3, "image_size": SIDE,
                 "position_image_size": SAVED_SIDE, "patch_size": PATCH}  # fmt: skip
SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, and polite "
    "answers to the user's questions."
)


def cubic(distance: float) -> float:
    """The weight of a cell at a distance, by cubic convolution with a = -3/4."""
    x, a = abs(distance), -0.75
    if x <= 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0.0


def at_side(table: torch.Tensor, side: int) -> torch.Tensor:
    """Positions [saved * saved, C] for a grid of another side, whose scale is counted with a tenth of a cell more."""
    saved = math.isqrt(len(table))
    grid, scale = table.reshape(saved, saved, -1), saved / (side + 0.1)
    cells = []
    for row in range(side):
        for column in range(side):
            y, x = (row + 0.5) * scale - 0.5, (column + 0.5) * scale - 0.5
            cell = torch.zeros(grid.shape[2])
            for r in range(math.floor(y) - 1, math.floor(y) + 3):
                for c in range(math.floor(x) - 1, math.floor(x) + 3):
                    inside = grid[min(max(r, 0), saved - 1), min(max(c, 0), saved - 1)]
                    cell = cell + cubic(y - r) * cubic(x - c) * inside
            cells.append(cell)
    return torch.stack(cells)


class Reference(NamedTuple):
    """CLIP's last block but one and DINOv2's last before its norm, both of pixels normalised for CLIP, and the adapters."""

    clip: torch.nn.Module
    dino: torch.nn.Module
    weights: dict
    added: bool
    text: SplicedLlama

    def features(self, seed):
        values = pixels(picture(seed, SIDE))
        (from_clip,) = self.clip(values, output_hidden_states=True).hidden_states[-2]
        embeddings = self.dino.embeddings
        x = embeddings.patch_embeddings.projection(values).flatten(2).transpose(1, 2)[0]
        table = embeddings.position_embeddings[0]
        x = x + at_side(table[1:], SIDE // PATCH)
        x = torch.cat(((embeddings.cls_token[0] + table[:1]), x))[None]
        for block in self.dino.encoder.layer:
            x = block(x)
        return from_clip[1:], x[0, 1:]

    def adapted(self, prefix, x):
        hidden = torch.nn.functional.gelu(linear(self.weights, f"{prefix}layers.0", x))
        return linear(self.weights, f"{prefix}layers.1", hidden)

    def media(self, seed):
        from_clip, from_dino = self.features(seed)
        if self.added:
            mixed = [ALPHA * d + (1 - ALPHA) * c for c, d in zip(from_clip, from_dino, strict=True)]
            return self.adapted("", torch.stack(mixed))
        in_turns = []
        for c, d in zip(self.adapted("first.", from_clip), self.adapted("second.", from_dino), strict=True):
            in_turns += [c, d]
        return torch.stack(in_turns)


@pytest.fixture(scope="module", params=["7b", "llava-7b", "additive-7b"])
def pair(request, tmp_path_factory):
    """Weft's system and the reference of the same weights."""
    folder, added = tmp_path_factory.mktemp("mof_llava"), request.param.startswith("additive")
    clip = transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**SHAPE, intermediate_size=96, image_size=SIDE))
    dino = transformers.Dinov2Model(transformers.Dinov2Config(**SHAPE, mlp_ratio=2, image_size=SAVED_SIDE))
    norm_eps = 1e-5 if request.param == "7b" else 1e-6  # LLaVA-1.5's Vicuna has LLaMA-2's
    written = {"clip": randomise(clip, 1), "dino": randomise(dino, 2), "llama": llama(norm_eps)}
    for name, model in written.items():
        model.save_pretrained(folder / name)
    tower = "streams.image.encoder"
    settings = llama_sizes() | {f"{tower}.first.{name}": size for name, size in CLIP_SETTINGS.items()}
    settings |= {f"{tower}.second.{name}": size for name, size in DINO_SETTINGS.items()}
    settings |= {f"{tower}.alpha": ALPHA} if added else {}
    parts = {f"{tower}.first": folder / "clip", f"{tower}.second": folder / "dino", "language_model": folder / "llama"}
    ours = small_model(mof_llava(request.param).stages[-1], settings, {"size": SIDE}, parts)
    projector = ours.system.get_submodule("streams.image.projector").state_dict()
    text = SplicedLlama(written["llama"], ours.processor.tokenizer.save(folder))
    return ours, Reference(clip, dino, projector, added, text)


def asked(seed):
    """Dialogues with a picture and without."""
    return [
        Conversation((user(shown(seed, SIDE), "what is it?"), assistant("a cat"), user("and where?"))),
        Conversation((user("who are you?"),)),
        Conversation((user("which way does it look?", shown(seed + 1, SIDE)),)),
    ]


def written(theirs, seed):
    """The same as the paper's code writes them."""
    first, second = theirs.media(seed), theirs.media(seed + 1)
    return [
        (f"{SYSTEM} USER: ", first, "\nwhat is it? ASSISTANT: a cat</s>USER: and where? ASSISTANT:"),
        (f"{SYSTEM} USER: who are you? ASSISTANT:",),
        (f"{SYSTEM} USER: ", second, "\nwhich way does it look? ASSISTANT:"),
    ]


@torch.no_grad()
def test_logits_are_those_of_the_reference_and_follow_the_picture(pair):
    ours, theirs = pair
    found = logits_of(ours, asked(1))
    assert_same_logits(found, [theirs.text.read(*pieces) for pieces in written(theirs, 1)])
    other = logits_of(ours, asked(3))
    assert all((found[row][-1] - other[row][-1]).abs().max() > 1e-3 for row in (0, 2))
    assert all(part.std() > 0.1 for part in theirs.features(1))
    assert len(theirs.media(1)) == (SIDE // PATCH) ** 2 * (1 if theirs.added else 2)


@torch.no_grad()
def test_greedy_replies_are_those_of_the_reference(pair):
    ours, theirs = pair
    assert replies(ours, asked(1)) == [theirs.text.say(*pieces) for pieces in written(theirs, 1)]
