"""Flamingo whole against a reference in plain loops over named weights, around the layers of a Llama of `transformers`.

Rows have several pictures, text before the first, a video, or no media. What the NFNet gives is taken as given: it has a parity
of its own.
"""

from typing import NamedTuple

import numpy as np
import pytest
import tokenizers
import torch
import torch.nn.functional as F
from reference_models import to_weft
from small_systems import HEADS, assert_same_logits, llama, llama_sizes, logits_of, picture, replies, shown, small_model

from weft.core.conversation import Conversation, Media, assistant, user
from weft.core.layout import MediaLayout
from weft.recipes.flamingo import flamingo
from weft.recipes.shrinking import TINY_VOCABULARY

pytest.importorskip("transformers")

SIDE, MEMORY, READER_HEADS, READER_LAYERS, LATENTS, FRAMES = 64, 48, 3, 2, 5, 3
VOCABULARY = TINY_VOCABULARY - 2  # the tag and one more have rows of their own
TAG, END = "<image>", "<|endofchunk|>"
PLACES = {"9b": (5, [0, 4]), "3b": (2, [0, 1]), "80b": (8, [0, 7])}  # layers, and those before which a gated block stands


class Reference(NamedTuple):
    """The resampler, the gated blocks and the added rows by name; the layers of a Llama between them."""

    weights: dict
    llama: torch.nn.Module
    tokenizer: tokenizers.Tokenizer
    blocks: list[int]

    def norm(self, name, x):
        return F.layer_norm(x, x.shape[-1:], self.weights[f"{name}.weight"], self.weights[f"{name}.bias"], 1e-5)

    def attended(self, name, x, memory, seen, heads):
        """Head by head; `seen` [queries, keys] says what each query may look at, and who sees nothing gets nothing."""
        q, k, v = (
            y @ self.weights[f"{name}.{part}.weight"].T for y, part in ((x, "query"), (memory, "key"), (memory, "value"))
        )
        width, heard = q.shape[1] // heads, []
        for head in (slice(width * h, width * (h + 1)) for h in range(heads)):
            scores = q[:, head] @ k[:, head].T / width**0.5
            shares = torch.zeros_like(scores)
            for row in range(len(x)):
                if seen[row].any():
                    shares[row, seen[row]] = scores[row, seen[row]].softmax(0)
            heard.append(shares @ v[:, head])
        return torch.cat(heard, 1) @ self.weights[f"{name}.output.weight"].T

    def fed(self, name, x):
        up = F.relu(x @ self.weights[f"{name}.up.weight"].T) ** 2
        return up @ self.weights[f"{name}.down.weight"].T

    def resampled(self, frames):
        """The visual tokens of one medium: frames [F, S, C]."""
        name = "streams.image.projector."
        times = self.weights[f"{name}frame_embedding.table"]
        rows = []
        for time, frame in enumerate(frames):
            narrow = frame @ self.weights[f"{name}input.weight"].T + self.weights[f"{name}input.bias"]
            rows += [row + times[time] for row in narrow]
        media, x = torch.stack(rows), self.weights[f"{name}latents"]
        for i in range(READER_LAYERS):
            layer = f"{name}layers.{i}."
            latents = self.norm(f"{layer}latent_norm", x)
            memory = torch.cat((self.norm(f"{layer}media_norm", media), latents))
            everything = torch.ones(len(x), len(memory), dtype=torch.bool)
            x = x + self.attended(f"{layer}attention", latents, memory, everything, READER_HEADS)
            x = x + self.fed(f"{layer}feed_forward", self.norm(f"{layer}feed_forward_norm", x))
        return self.norm(f"{name}final_norm", x)

    def gated(self, layer, x, memory, seen):
        name = f"language_model.blocks.{layer}.before_attention."
        mixed = self.attended(f"{name}attention", self.norm(f"{name}attention_norm", x), memory, seen, HEADS)
        x = x + self.weights[f"{name}attention_gate"].tanh() * mixed
        inner = self.fed(f"{name}feed_forward", self.norm(f"{name}feed_forward_norm", x))
        return x + self.weights[f"{name}feed_forward_gate"].tanh() * inner

    def tokens(self, text):
        return [self.tokenizer.token_to_id("<s>"), *self.tokenizer.encode(text, add_special_tokens=False).ids]

    def logits(self, tokens, media):
        """[T, V] of tokens and the visual tokens of each medium whose tag stands among them."""
        added = self.weights["added_tokens.inputs.weight"]
        table = torch.cat((self.llama.model.embed_tokens.weight, added))
        x = torch.stack([table[token] for token in tokens])
        tag, number, phi = self.tokenizer.token_to_id(TAG), 0, []
        for token in tokens:
            number += token == tag
            phi.append(number)  # the last medium at or before a token, from 1; 0 for none
        owner = [item for item in range(1, len(media) + 1) for _ in range(LATENTS)]
        seen = torch.tensor([[item == mine for item in owner] for mine in phi], dtype=torch.bool)
        seen = seen.reshape(len(tokens), len(owner))
        memory = torch.cat([torch.zeros(0, MEMORY), *media])
        later = torch.full((len(tokens), len(tokens)), torch.finfo(torch.float32).min).triu(1)
        turned = self.llama.model.rotary_emb(x[None], torch.arange(len(tokens))[None])
        for i, layer in enumerate(self.llama.model.layers):
            if i in self.blocks:
                x = self.gated(i, x, memory, seen)
            x = layer(x[None], attention_mask=later[None, None], position_embeddings=turned)[0]
        x = self.llama.model.norm(x)
        return torch.cat((self.llama.lm_head(x), x @ added.T), 1)

    def say(self, text, media, steps=8):
        tokens = self.tokens(text)
        for _ in range(steps):
            tokens.append(int(self.logits(tokens, media)[-1].argmax()))
        return tokens[-steps:]


def to_weft_names(language_model, folder):
    """Its weights by the names that they have in Weft's system."""
    return {f"language_model.{name}": value for name, value in to_weft(language_model, folder).state_dict().items()}


@pytest.fixture(scope="module", params=[("9b", 0.0), ("9b", 0.5), ("3b", 0.5), ("80b", 0.5)], ids="{0[0]} {0[1]}".format)
def pair(request, tmp_path_factory):
    """Every gate's value, Weft's system, and the reference of the same weights."""
    (size, gate), folder = request.param, tmp_path_factory.mktemp("flamingo")
    num_layers, blocks = PLACES[size]
    language_model = llama(norm_eps=1e-5, num_layers=num_layers, vocabulary=VOCABULARY)
    image = "streams.image."
    settings = llama_sizes(num_layers, VOCABULARY) | {
        f"{image}encoder.image_size": SIDE, f"{image}encoder.stem_width": 16, f"{image}encoder.depths": "[1, 1, 2, 1]",
        f"{image}encoder.widths": "[32, 32, 64, 64]", f"{image}encoder.group_width": 16,
        f"{image}projector.width": MEMORY, f"{image}projector.num_heads": READER_HEADS, f"{image}projector.head_width": 12,
        f"{image}projector.num_layers": READER_LAYERS, f"{image}projector.num_latents": LATENTS,
        f"{image}projector.num_frames": FRAMES, "fusions.0.memory_width": MEMORY,
    }  # fmt: skip
    transform = {"frame.size": SIDE, "num_frames": FRAMES}
    ours = small_model(flamingo(size).stages[-1], settings, transform)
    ours.system.load_state_dict(ours.system.state_dict() | to_weft_names(language_model, folder))
    for name, parameter in ours.system.named_parameters():
        if name.endswith("_gate"):
            parameter.data.fill_(gate)
        if name.endswith(".gain"):  # what scales the NFNet's kernels
            parameter.data.add_(1.0)
    read = tokenizers.Tokenizer.from_file(str(ours.processor.tokenizer.save(folder)))
    return gate, ours, Reference(dict(ours.system.state_dict()), language_model, read, blocks)


def film(seed):
    return np.stack([picture(seed + frame, SIDE) for frame in range(FRAMES)])


def asked(seed):
    """Conversations with text before the first of several pictures, with a video among adjacent media, with one, with none."""
    first, second, third = (shown(seed + number, SIDE) for number in range(3))
    return [
        Conversation((user("Look: ", first, "what is it?"), assistant("a cat"), user(second, "and this?"))),
        Conversation((user(third, Media(film(seed)), first, "which of them moves?"),)),
        Conversation((user(second, "Output:"),)),
        Conversation((user("Who are you?"), assistant("a bird"), user("Why?"))),
    ]


def written(ours, theirs, seed):
    """Their texts, and the visual tokens of each medium."""

    def seen(*frames):
        units = ours.processor.config.transforms["image"].normalise(frames)
        layout = MediaLayout(SIDE // 32, SIDE // 32, frames=len(frames))
        tower = ours.system.get_submodule("streams.image.encoder")
        return theirs.resampled(tower(units, torch.zeros(len(frames), dtype=torch.long), (layout,)).values)

    first, second, third = (seen(picture(seed + number, SIDE)) for number in range(3))
    return [
        (f"Look: {TAG}what is it? a cat{END}{TAG}and this?", [first, second]),
        (f"{TAG}{TAG}{TAG}which of them moves?", [third, seen(*film(seed)), first]),
        (f"{TAG}Output:", [second]),
        (f"Who are you? a bird{END}Why?", []),
    ]


@torch.no_grad()
def test_logits_are_those_of_the_reference_and_follow_the_media_through_open_gates(pair):
    gate, ours, theirs = pair
    found = logits_of(ours, asked(1))
    assert_same_logits(found, [theirs.logits(theirs.tokens(text), media) for text, media in written(ours, theirs, 1)])
    for row, (a, b) in enumerate(zip(found, logits_of(ours, asked(5)), strict=True)):
        assert torch.equal(a, b) if row == 3 or not gate else (a[-1] - b[-1]).abs().max() > 1e-3


@torch.no_grad()
def test_words_before_the_first_picture_do_not_see_it(pair):
    _, ours, _ = pair
    before, after = logits_of(ours, asked(1))[0], logits_of(ours, asked(5))[0]
    start = ours.processor.encode(asked(1)[0], reply=True).tokens.tolist().index(ours.processor.tokenizer.special[TAG])
    assert start > 1 and torch.equal(before[:start], after[:start])


@torch.no_grad()
def test_at_zero_gates_the_language_model_says_what_it_says_alone(pair):
    gate, ours, theirs = pair
    text, _ = written(ours, theirs, 1)[3]
    alone = theirs.llama(torch.tensor([theirs.tokens(text.replace(END, "."))])).logits[0]
    (found,) = logits_of(ours, [Conversation((user(text.replace(END, ".")),))])
    difference = (found[:, :VOCABULARY] - alone).abs().max()
    assert difference > 1e-3 if gate else difference <= 1e-4 * max(1.0, alone.abs().max())


@torch.no_grad()
def test_a_row_without_media_is_the_same_alone_as_beside_others(pair):
    _, ours, theirs = pair
    text, media = written(ours, theirs, 1)[3]
    assert_same_logits(logits_of(ours, asked(1)[3:]), [theirs.logits(theirs.tokens(text), media)])


@torch.no_grad()
def test_greedy_replies_are_those_of_the_reference(pair):
    _, ours, theirs = pair
    assert replies(ours, asked(1)) == [theirs.say(text, media) for text, media in written(ours, theirs, 1)]
