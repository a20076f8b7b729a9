"""MiniGPT-4 on Vicuna and on LLaMA-2, against a reference in plain loops over the names of the file that it starts from, around
a Llama of `transformers`."""

import math
from dataclasses import replace
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from small_systems import WIDTH, assert_same_logits, llama, llama_sizes, logits_of, picture, replies, shown, small_model
from spliced_reference import SplicedLlama, linear, pixels

from weft.core.conversation import Conversation, assistant, user
from weft.recipes.minigpt_4 import minigpt_4

pytest.importorskip("transformers")

SIDE, PATCH, TOWER, TOWER_HEADS, TOWER_LAYERS = 32, 8, 48, 3, 2
READER, READER_HEADS, READER_LAYERS, QUERIES = 40, 2, 4, 5
PROMPTS = {"13b": ("###Human: ", " ###Assistant: ", "###"), "llama-2-7b": ("[INST] ", " [/INST] ", "</s>")}


def drawn_file() -> dict[str, torch.Tensor]:
    """BLIP-2's tower and Q-Former by LAVIS' names; every bias and norm away from zero and one."""
    patches = (SIDE // PATCH) ** 2
    shapes = {"visual_encoder.cls_token": (1, 1, TOWER), "visual_encoder.pos_embed": (1, patches + 1, TOWER)}
    shapes |= {"visual_encoder.patch_embed.proj.weight": (TOWER, 3, PATCH, PATCH)}
    shapes |= {"visual_encoder.patch_embed.proj.bias": (TOWER,), "query_tokens": (1, QUERIES, READER)}
    norms = {"ln_vision": TOWER, "Qformer.bert.embeddings.LayerNorm": READER}
    matrices = {"t5_proj": (32, READER)}  # into its own language model, which stays behind
    for i in range(TOWER_LAYERS):
        block = f"visual_encoder.blocks.{i}."
        norms |= {f"{block}norm1": TOWER, f"{block}norm2": TOWER}
        matrices |= {f"{block}attn.proj": (TOWER, TOWER), f"{block}mlp.fc1": (96, TOWER), f"{block}mlp.fc2": (TOWER, 96)}
        shapes |= {f"{block}attn.qkv.weight": (3 * TOWER, TOWER)}
        shapes |= {f"{block}attn.q_bias": (TOWER,), f"{block}attn.v_bias": (TOWER,)}
    for i in range(READER_LAYERS):
        layer = f"Qformer.bert.encoder.layer.{i}."
        for attention, width in (("attention", READER), ("crossattention", TOWER))[: 2 - i % 2]:
            name = f"{layer}{attention}."
            matrices |= {f"{name}self.query": (READER, READER), f"{name}output.dense": (READER, READER)}
            matrices |= {f"{name}self.key": (READER, width), f"{name}self.value": (READER, width)}
            norms |= {f"{name}output.LayerNorm": READER}
        matrices |= {f"{layer}intermediate_query.dense": (72, READER), f"{layer}output_query.dense": (READER, 72)}
        norms |= {f"{layer}output_query.LayerNorm": READER}
    draw = torch.Generator().manual_seed(3)
    shapes |= {f"{name}.weight": shape for name, shape in matrices.items()}
    file = {name: torch.randn(shape, generator=draw) for name, shape in shapes.items()}
    file = {n: x * (0.2 if x.dim() == 1 else 1.0 if x.dim() == 3 else x[0].numel() ** -0.5) for n, x in file.items()}
    for name, width in [*norms.items(), *((name, shape[0]) for name, shape in matrices.items())]:
        file[f"{name}.bias"] = 0.2 * torch.randn(width, generator=draw)
    return file | {f"{name}.weight": 1 + 0.2 * torch.randn(width, generator=draw) for name, width in norms.items()}


def norm(file, name, x, eps):
    return F.layer_norm(x, x.shape[-1:], file[f"{name}.weight"], file[f"{name}.bias"], eps)


def attended(q, k, v, heads):
    """Head by head, query by query."""
    width = q.shape[1] // heads
    rows = []
    for query in q:
        heard = []
        for part in (slice(width * head, width * (head + 1)) for head in range(heads)):
            weights = torch.stack([query[part] @ key[part] / math.sqrt(width) for key in k]).softmax(0)
            heard.append(weights @ v[:, part])
        rows.append(torch.cat(heard))
    return torch.stack(rows)


def seen(file, values):
    """What the tower gives of one picture, class token first, behind the norm that is not its own."""
    name = "visual_encoder."
    kernels, bias = file[f"{name}patch_embed.proj.weight"].flatten(1), file[f"{name}patch_embed.proj.bias"]
    corners = [(row, column) for row in range(0, SIDE, PATCH) for column in range(0, SIDE, PATCH)]
    cut = [kernels @ values[:, r : r + PATCH, c : c + PATCH].flatten() + bias for r, c in corners]
    x = torch.stack([file[f"{name}cls_token"][0, 0], *cut]) + file[f"{name}pos_embed"][0]
    for i in range(TOWER_LAYERS):
        block = f"{name}blocks.{i}."
        normed = norm(file, f"{block}norm1", x, 1e-6)
        q, k, v = (normed @ file[f"{block}attn.qkv.weight"].T).chunk(3, 1)
        q, v = q + file[f"{block}attn.q_bias"], v + file[f"{block}attn.v_bias"]
        x = x + linear(file, f"{block}attn.proj", attended(q, k, v, TOWER_HEADS))
        normed = norm(file, f"{block}norm2", x, 1e-6)
        x = x + linear(file, f"{block}mlp.fc2", F.gelu(linear(file, f"{block}mlp.fc1", normed)))
    return norm(file, "ln_vision", x, 1e-5)


def queried(file, features):
    """What the queries take from the features of one picture: a BERT that normalises behind every step."""
    x = norm(file, "Qformer.bert.embeddings.LayerNorm", file["query_tokens"][0], 1e-12)
    for i in range(READER_LAYERS):
        layer = f"Qformer.bert.encoder.layer.{i}."
        for attention in ("attention", "crossattention")[: 2 - i % 2]:
            name, memory = f"{layer}{attention}.", x if attention == "attention" else features
            q = linear(file, f"{name}self.query", x)
            k, v = linear(file, f"{name}self.key", memory), linear(file, f"{name}self.value", memory)
            mixed = linear(file, f"{name}output.dense", attended(q, k, v, READER_HEADS))
            x = norm(file, f"{name}output.LayerNorm", mixed + x, 1e-12)
        inner = F.gelu(linear(file, f"{layer}intermediate_query.dense", x))
        x = norm(file, f"{layer}output_query.LayerNorm", linear(file, f"{layer}output_query.dense", inner) + x, 1e-12)
    return x


class Reference(NamedTuple):
    """Tower, Q-Former where there is one, the one trained matrix, and Llama."""

    size: str
    file: dict
    llama_proj: dict
    text: SplicedLlama

    def media(self, seed):
        features = seen(self.file, pixels(picture(seed, SIDE))[0])
        if self.size == "llama-2-7b":
            patches = list(features[1:])
            features = torch.stack([torch.cat(patches[i : i + 4]) for i in range(0, len(patches), 4)])
        else:
            features = queried(self.file, features)
        return linear(self.llama_proj, "llama_proj", features)

    def asked(self, seed, question):
        """A prompt about one picture, as it is wrapped for training."""
        before, behind, _ = PROMPTS[self.size]
        return f"{before}<Img>", self.media(seed), f"</Img> {question}{behind}"


@pytest.fixture(scope="module", params=PROMPTS)
def pair(request, tmp_path_factory):
    """Weft's system and the reference of the same weights; tower and Q-Former from one file of LAVIS."""
    folder, size, file = tmp_path_factory.mktemp("minigpt_4"), request.param, drawn_file()
    torch.save({"model": file}, folder / "blip2_pretrained_flant5xxl.pth")
    language_model = llama(norm_eps=1e-6 if size == "13b" else 1e-5)
    language_model.save_pretrained(folder / "llama")
    tower = {"width": TOWER, "num_heads": TOWER_HEADS, "num_layers": TOWER_LAYERS, "feed_forward_width": 96,
             "image_size": SIDE, "patch_size": PATCH}  # fmt: skip
    settings = llama_sizes() | {f"streams.image.encoder.{name}": value for name, value in tower.items()}
    parts = {"streams.image.encoder": folder / "blip2_pretrained_flant5xxl.pth", "language_model": folder / "llama"}
    if size == "13b":
        reader = {"width": READER, "num_heads": READER_HEADS, "num_layers": READER_LAYERS, "feed_forward_width": 72,
                  "num_queries": QUERIES}  # fmt: skip
        settings |= {f"streams.image.projector.{name}": value for name, value in reader.items()}
        parts["streams.image.projector.transformer"] = parts["streams.image.encoder"]
    ours = small_model(minigpt_4(size).stages[-1], settings, {"size": SIDE}, parts)
    last = ours.system.get_submodule(f"streams.image.projector.{'output' if size == '13b' else 'linear'}")
    llama_proj = {f"llama_proj.{name}": value for name, value in last.state_dict().items()}
    return ours, Reference(size, file, llama_proj, SplicedLlama(language_model, ours.processor.tokenizer.save(folder)))


def about(seed, question):
    return Conversation((user(shown(seed, SIDE), question),))


@torch.no_grad()
def test_logits_of_prompts_are_those_of_the_reference_and_follow_the_picture(pair):
    ours, theirs = pair
    questions = ["Describe this image in detail.", "What is it?"]
    found = logits_of(ours, [about(seed, question) for seed, question in enumerate(questions)])
    assert_same_logits(found, [theirs.text.read(*theirs.asked(seed, question)) for seed, question in enumerate(questions)])
    other = logits_of(ours, [about(seed, question) for seed, question in enumerate(questions, start=2)])
    assert all((a[-1] - b[-1]).abs().max() > 1e-3 for a, b in zip(found, other, strict=True))
    assert theirs.media(1).shape == (QUERIES if theirs.size == "13b" else 4, WIDTH)


@torch.no_grad()
def test_a_chat_is_opened_as_by_the_reference(pair):
    ours, theirs = pair
    (found,) = logits_of(ours, [replace(about(1, "What is it?"), meta={"template": "minigpt_4_chat"})])
    opening = (
        "Give the following image: <Img>ImageContent</Img>. You will be able to see the image once I provide it to you. "
        "Please answer my questions.###Human: <Img>"
    )
    assert_same_logits([found], [theirs.text.read(opening, theirs.media(1), "</Img> What is it?###Assistant: ")])


@torch.no_grad()
def test_an_answer_that_is_learned_is_read_as_by_the_reference(pair):
    ours, theirs = pair
    question, answer = "What is it?", "A cat on a mat."
    taught = Conversation((*about(1, question).messages, assistant(answer)))
    end = PROMPTS[theirs.size][2]
    found = logits_of(ours, [taught], reply=False)
    assert_same_logits(found, [theirs.text.read(*theirs.asked(1, question), answer + end)])


@torch.no_grad()
def test_a_caption_of_the_first_stage_is_read_as_by_the_reference(pair):
    ours, theirs = pair
    stage = minigpt_4(theirs.size).stages[0]
    turns = (user(shown(1, SIDE), "describe it"), assistant("a cat"))
    found = logits_of(ours, [Conversation(turns, meta={"template": stage.processor.template})], reply=False)
    assert_same_logits(found, [theirs.text.read(theirs.media(1), "a cat\n")])


@torch.no_grad()
def test_greedy_replies_are_those_of_the_reference(pair):
    ours, theirs = pair
    questions = ["Describe this image in detail.", "What is it?"]
    expected = [theirs.text.say(*theirs.asked(seed, question)) for seed, question in enumerate(questions)]
    assert replies(ours, [about(seed, question) for seed, question in enumerate(questions)]) == expected
