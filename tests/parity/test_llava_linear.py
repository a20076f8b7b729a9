"""LLaVA, which one matrix joins to CLIP, against a reference in plain loops; `transformers` has no class for one matrix."""

import pytest
import torch
from reference_models import randomise
from small_systems import (
    WIDTH,
    assert_same_logits,
    llama,
    llama_sizes,
    logits_of,
    picture,
    replies,
    shown,
    small_model,
)
from spliced_reference import SplicedLlama, linear, pixels

from weft.core.conversation import Conversation, assistant, user
from weft.recipes.llava import llava

transformers = pytest.importorskip("transformers")

SIDE, PATCH = 32, 8
TOWER = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 3, "image_size": SIDE,
         "patch_size": PATCH}  # fmt: skip
SETTINGS = {"width": 48, "feed_forward_width": 96, "num_layers": 3, "num_heads": 3, "image_size": SIDE, "patch_size": PATCH}
SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, and polite "
    "answers to the user's questions."
)


class Reference:
    """CLIP's patches of the last block but one, the matrix, and Llama."""

    def __init__(self, tower, language_model, weights, tokenizer):
        self.tower, self.weights = tower, weights
        self.text = SplicedLlama(language_model, tokenizer)

    def media(self, seed):
        (hidden,) = self.tower(pixels(picture(seed, SIDE)), output_hidden_states=True).hidden_states[-2]
        return linear(self.weights, "linear", hidden[1:])  # without the class token


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Weft's system and the reference of the same weights."""
    folder = tmp_path_factory.mktemp("llava")
    tower = randomise(transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**TOWER)))
    language_model = llama(norm_eps=1e-6)
    tower.save_pretrained(folder / "tower")
    language_model.save_pretrained(folder / "llama")
    settings = llama_sizes() | {f"streams.image.encoder.{name}": size for name, size in SETTINGS.items()}
    parts = {"streams.image.encoder": folder / "tower", "language_model": folder / "llama"}
    ours = small_model(llava("7b").stages[-1], settings, {"size": SIDE}, parts)
    projector = ours.system.get_submodule("streams.image.projector").state_dict()
    return ours, Reference(tower, language_model, projector, ours.processor.tokenizer.save(folder))


def asked(seed):
    """A dialogue with a picture, another form of it, and one without: as conversations."""
    return [
        Conversation((user(shown(seed, SIDE), "what is it?"), assistant("a cat"), user("and where?"))),
        Conversation((user("what do you see?", shown(seed + 1, SIDE)),)),
        Conversation((user("who are you?"),)),
    ]


def written(theirs, seed):
    """The same as the paper's code writes them."""
    first, second = theirs.media(seed), theirs.media(seed + 1)
    return [
        (f"{SYSTEM} USER: ", first, "\nwhat is it? ASSISTANT: a cat</s>USER: and where? ASSISTANT:"),
        (f"{SYSTEM} USER: ", second, "\nwhat do you see? ASSISTANT:"),
        (f"{SYSTEM} USER: who are you? ASSISTANT:",),
    ]


@torch.no_grad()
def test_logits_are_those_of_the_reference_and_follow_the_picture(pair):
    ours, theirs = pair
    found = logits_of(ours, asked(1))
    assert_same_logits(found, [theirs.text.read(*pieces) for pieces in written(theirs, 1)])
    other = logits_of(ours, asked(3))
    assert all((a[-1] - b[-1]).abs().max() > 1e-3 for a, b in zip(found[:2], other[:2], strict=True))
    assert len(theirs.media(1)) == (SIDE // PATCH) ** 2 and theirs.media(1).shape[1] == WIDTH


@torch.no_grad()
def test_greedy_replies_are_those_of_the_reference(pair):
    ours, theirs = pair
    assert replies(ours, asked(1)) == [theirs.text.say(*pieces) for pieces in written(theirs, 1)]


@torch.no_grad()
def test_a_caption_of_the_first_stage_is_read_as_by_the_reference(pair):
    ours, theirs = pair
    caption = Conversation((user(shown(1, SIDE), "describe it"), assistant("a cat on a mat")), meta={"template": "plain"})
    assert llava().stages[0].processor.template == "plain"
    (found,) = logits_of(ours, [caption], reply=False)
    assert_same_logits([found], [theirs.text.read(theirs.media(1), "a cat on a mat\n")])
