"""VILA with its projectors and documents, against a reference in plain loops around a tower and a Llama of `transformers`."""

from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from reference_models import randomise
from small_systems import assert_same_logits, llama, llama_sizes, logits_of, picture, replies, shown, small_model
from spliced_reference import CLIP, HALF, SplicedLlama, linear, pixels

from weft.core.conversation import Conversation, assistant, user
from weft.recipes.vila import vila

transformers = pytest.importorskip("transformers")

PATCH, FEATURES = 8, 48
SIDES = {"7b": 32, "7b-linear": 32, "1.5-13b": 43}  # VILA-1.5: five patches, a side that is odd, and three pixels more
TOWER = {"hidden_size": FEATURES, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 3}
SETTINGS = {"width": FEATURES, "feed_forward_width": 96, "num_layers": 3, "num_heads": 3, "patch_size": PATCH}
SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, and polite "
    "answers to the user's questions."
)


def two_by_two(features):
    """[H * H, C] -> a row of each two by two cells, those of the first two columns first; zeros beside an odd grid."""
    side = int(len(features) ** 0.5)
    nothing = torch.zeros(features.shape[1])
    cell = lambda r, c: features[r * side + c] if r < side and c < side else nothing  # noqa: E731
    joined = []
    for column in range(0, side, 2):
        for row in range(0, side, 2):
            joined.append(
                torch.cat((cell(row, column), cell(row, column + 1), cell(row + 1, column), cell(row + 1, column + 1)))
            )
    return torch.stack(joined)


class Reference(NamedTuple):
    """A tower's last block but one, the projector of a size, and Llama."""

    size: str
    tower: torch.nn.Module
    weights: dict
    text: SplicedLlama

    def media(self, seed):
        of_1_5 = self.size == "1.5-13b"
        values = pixels(picture(seed, SIDES[self.size]), HALF if of_1_5 else CLIP)
        (x,) = self.tower(values, output_hidden_states=True).hidden_states[-2]
        if of_1_5:
            x = two_by_two(x)
            x = F.layer_norm(x, x.shape[-1:], self.weights["norm.weight"], self.weights["norm.bias"], 1e-5)
            return linear(self.weights, "down", F.gelu(linear(self.weights, "up", x)))
        x = x[1:]
        if self.size == "7b":
            return linear(self.weights, "layers.1", F.gelu(linear(self.weights, "layers.0", x)))
        return linear(self.weights, "linear", x)


@pytest.fixture(scope="module", params=SIDES)
def pair(request, tmp_path_factory):
    """Weft's system and the reference of the same weights."""
    folder, size, side = tmp_path_factory.mktemp("vila"), request.param, SIDES[request.param]
    shape = {**TOWER, "image_size": side, "patch_size": PATCH}
    if size == "1.5-13b":
        tower = transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**shape, vision_use_head=False))
    else:
        tower = transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**shape))
    language_model = llama(norm_eps=1e-5)
    randomise(tower).save_pretrained(folder / "tower")
    language_model.save_pretrained(folder / "llama")
    settings = llama_sizes() | {f"streams.image.encoder.{name}": value for name, value in SETTINGS.items()}
    settings |= {"streams.image.encoder.image_size": side}
    parts = {"streams.image.encoder": folder / "tower", "language_model": folder / "llama"}
    ours = small_model(vila(size).stages[-1], settings, {"size": side}, parts)
    projector = ours.system.get_submodule("streams.image.projector").state_dict()
    return ours, Reference(size, tower, projector, SplicedLlama(language_model, ours.processor.tokenizer.save(folder)))


def asked(size, seed):
    """Two pictures in one question, one picture, none."""
    first, second = (shown(seed + number, SIDES[size]) for number in range(2))
    return [
        Conversation((user(first, second, "what changed?"),)),
        Conversation((user(second, "what is it?"), assistant("a cat"), user("and where?"))),
        Conversation((user("who are you?"),)),
    ]


def written(theirs, seed):
    """The same as the scripts write them."""
    first, second = theirs.media(seed), theirs.media(seed + 1)
    return [
        (f"{SYSTEM} USER: ", first, "\n", second, "\nwhat changed? ASSISTANT:"),
        (f"{SYSTEM} USER: ", second, "\nwhat is it? ASSISTANT: a cat</s>USER: and where? ASSISTANT:"),
        (f"{SYSTEM} USER: who are you? ASSISTANT:",),
    ]


@torch.no_grad()
def test_logits_are_those_of_the_reference_and_follow_the_pictures(pair):
    ours, theirs = pair
    found = logits_of(ours, asked(theirs.size, 1))
    assert_same_logits(found, [theirs.text.read(*pieces) for pieces in written(theirs, 1)])
    other = logits_of(ours, asked(theirs.size, 3))
    assert all((found[row][-1] - other[row][-1]).abs().max() > 1e-3 for row in (0, 1))
    assert len(theirs.media(1)) == (9 if theirs.size == "1.5-13b" else 16)


@torch.no_grad()
def test_greedy_replies_are_those_of_the_reference(pair):
    ours, theirs = pair
    assert replies(ours, asked(theirs.size, 1)) == [theirs.text.say(*pieces) for pieces in written(theirs, 1)]


@torch.no_grad()
def test_a_document_with_three_pictures_is_read_as_by_the_reference(pair):
    ours, theirs = pair
    stage = vila(theirs.size).stages[1]
    assert stage.name == "pretrain"
    pictures = [shown(seed, SIDES[theirs.size]) for seed in (1, 2, 3)]
    turns = [assistant("Two cats."), user(pictures[0]), assistant("one cat"), user(pictures[1], pictures[2]), assistant("none")]
    document = Conversation(tuple(turns), meta={"template": stage.processor.template})
    (found,) = logits_of(ours, [document], reply=False)
    first, second, third = (theirs.media(seed) for seed in (1, 2, 3))
    expected = theirs.text.read("Two cats.", first, "\none cat", second, "\n", third, "\nnone</s>")
    assert_same_logits([found], [expected])
