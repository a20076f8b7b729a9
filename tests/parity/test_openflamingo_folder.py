"""An OpenFlamingo file between CLIP and a language model of `transformers`: the whole model against the library's own classes,
with resampler and gated blocks written out from the paper over the file's names."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from reference_models import assert_close, randomise

from weft.core.conversation import Conversation, Media, assistant, user
from weft.data.collate import collate
from weft.data.tokenizers import Tokenizer
from weft.inference.sampling import Sampling
from weft.recipes.loading import load_model

transformers = pytest.importorskip("transformers")

HEADS, HEAD, LATENTS, WIDTH, D, EVERY, LAYERS = 8, 4, 5, 48, 64, 2, 4
MARKER = "<image>"


def picture(seed):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (28, 28, 3), dtype=np.uint8))


def conversation(*seeds):
    first, second = (Media(picture(seed)) for seed in seeds)
    return Conversation((user("look:", first, "what is it?"), assistant("a cat"), user(second, "and this?")))


def language_model(kind, rows):
    if kind == "mpt":
        config = transformers.MptConfig(d_model=D, n_heads=4, n_layers=LAYERS, max_seq_len=256, vocab_size=rows)
        return randomise(transformers.MptForCausalLM(config))
    config = transformers.GPTNeoXConfig(
        vocab_size=rows, hidden_size=D, num_hidden_layers=LAYERS, num_attention_heads=4, intermediate_size=96,
        max_position_embeddings=256, use_parallel_residual=True,
    )  # fmt: skip
    return randomise(transformers.GPTNeoXForCausalLM(config))


def drawn_file(kind, vocabulary, gate):
    """A file's tensors by their published names and shapes."""
    draw, inner = torch.Generator().manual_seed(11), HEADS * HEAD
    attention = lambda width, media: {"to_q": (inner, width), "to_kv": (2 * inner, media), "to_out": (width, inner)}  # noqa: E731
    shapes = {"perceiver.latents": (LATENTS, WIDTH)}
    for i in range(2):
        shapes |= {f"perceiver.layers.{i}.0.{n}.weight": shape for n, shape in attention(WIDTH, WIDTH).items()}
        shapes |= {
            f"perceiver.layers.{i}.1.1.weight": (4 * WIDTH, WIDTH),
            f"perceiver.layers.{i}.1.3.weight": (WIDTH, 4 * WIDTH),
        }
    norms = [
        "perceiver.norm",
        *(f"perceiver.layers.{i}.{n}" for i in (0, 1) for n in ("0.norm_media", "0.norm_latents", "1.0")),
    ]
    norms = dict.fromkeys(norms, WIDTH)
    for i in range(EVERY - 1, LAYERS, EVERY):
        block = f"lang_encoder.gated_cross_attn_layers.{i}."
        shapes |= {f"{block}attn.{n}.weight": shape for n, shape in attention(D, WIDTH).items()}
        shapes |= {f"{block}ff.1.weight": (4 * D, D), f"{block}ff.3.weight": (D, 4 * D)}
        norms |= {f"{block}attn.norm": D, f"{block}ff.0": D}
    tensors = {name: torch.randn(shape, generator=draw) * shape[-1] ** -0.5 for name, shape in shapes.items()}
    for name, width in norms.items():
        tensors[f"{name}.weight"] = 1 + 0.2 * torch.randn(width, generator=draw)
        tensors[f"{name}.bias"] = 0.2 * torch.randn(width, generator=draw)
    for i in range(EVERY - 1, LAYERS, EVERY):
        for name in ("attn_gate", "ff_gate"):
            tensors[f"lang_encoder.gated_cross_attn_layers.{i}.{name}"] = torch.full((1,), gate)
    table = "lang_encoder.transformer.wte.weight" if kind == "mpt" else "lang_encoder.gpt_neox.embed_in.weight"
    return tensors, table, torch.randn(vocabulary + 3, D, generator=draw)


def norm(file, name, x):
    return F.layer_norm(x, x.shape[-1:], file[f"{name}.weight"], file[f"{name}.bias"])


def attended(file, name, x, memory, seen=None):
    """Head by head; who sees nothing gets nothing."""
    q = x @ file[f"{name}.to_q.weight"].T
    k, v = (memory @ file[f"{name}.to_kv.weight"].T).chunk(2, -1)
    out = []
    for head in range(HEADS):
        part = slice(HEAD * head, HEAD * (head + 1))
        scores = (q[:, part] * HEAD**-0.5) @ k[:, part].T
        if seen is not None:
            scores = scores.masked_fill(~seen, torch.finfo(torch.float32).min)
        weights = scores.softmax(-1)
        out.append((weights if seen is None else weights * seen.any(-1, keepdim=True)) @ v[:, part])
    return torch.cat(out, -1) @ file[f"{name}.to_out.weight"].T


def fed(file, name, x):
    return F.gelu(norm(file, f"{name}.0", x) @ file[f"{name}.1.weight"].T) @ file[f"{name}.3.weight"].T


def resampled(file, features):
    """The visual tokens of one picture's features [G * G, C]."""
    x = file["perceiver.latents"]
    for i in range(2):
        layer = f"perceiver.layers.{i}"
        queries = norm(file, f"{layer}.0.norm_latents", x)
        x = x + attended(file, f"{layer}.0", queries, torch.cat((norm(file, f"{layer}.0.norm_media", features), queries)))
        x = x + fed(file, f"{layer}.1", x)
    return norm(file, "perceiver.norm", x)


class Reference:
    """The library's tower and language model, with what the file holds between them."""

    def __init__(self, tower, model, layers, file, marker):
        self.tower, self.model, self.file, self.marker = tower, model, file, marker
        for i in range(EVERY - 1, LAYERS, EVERY):
            layers[i].register_forward_pre_hook(lambda m, args, kwargs, i=i: self._before(i, args, kwargs), with_kwargs=True)

    def _before(self, i, args, kwargs):
        x = args[0] if args else kwargs["hidden_states"]
        name = f"lang_encoder.gated_cross_attn_layers.{i}"
        (hidden,) = x
        seen = self.time[:, None] == torch.arange(1, 1 + len(self.media)).repeat_interleave(LATENTS)
        memory = torch.cat(list(self.media))
        hidden = hidden + attended(self.file, f"{name}.attn", norm(self.file, f"{name}.attn.norm", hidden), memory, seen) * (
            self.file[f"{name}.attn_gate"].tanh()
        )
        hidden = hidden + fed(self.file, f"{name}.ff", hidden) * self.file[f"{name}.ff_gate"].tanh()
        return ((hidden[None], *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": hidden[None]})

    @torch.no_grad()
    def __call__(self, tokens, pixels):
        features = self.tower(pixel_values=pixels).last_hidden_state[:, 1:]
        self.media = [resampled(self.file, each) for each in features]
        self.time = (tokens[0] == self.marker).cumsum(0)
        return self.model(input_ids=tokens, use_cache=False).logits


@pytest.fixture(
    scope="module", params=[("mpt", 0.0), ("mpt", 0.5), ("gpt_neox", 0.5)], ids=["mpt shut", "mpt open", "neox open"]
)
def pair(request, tmp_path_factory):
    """A folder and its parts as published, opened by Weft, and the reference made of the same tensors."""
    kind, gate = request.param
    root = tmp_path_factory.mktemp("openflamingo")
    for name in ("file", "model", "tower"):
        (root / name).mkdir()
    tokenizer = Tokenizer.train(["what is it? and this?", "look: a cat"] * 4, 300, ("<|endoftext|>",))
    tokenizer.save(root / "model")
    vocabulary = tokenizer.vocabulary
    vision = transformers.CLIPVisionConfig(
        hidden_size=WIDTH, intermediate_size=96, num_hidden_layers=2, num_attention_heads=3, image_size=28, patch_size=7
    )
    tower, model = randomise(transformers.CLIPVisionModel(vision)), language_model(kind, vocabulary + 9)
    tower.save_pretrained(root / "tower")
    model.save_pretrained(root / "model")
    file, table, rows = drawn_file(kind, vocabulary, gate)
    rows[:vocabulary] = model.get_input_embeddings().weight.detach()[:vocabulary]
    torch.save({**file, table: rows}, root / "file" / "checkpoint.pt")
    ours = load_model(root / "file", parts={"language_model": root / "model", "streams.image.encoder": root / "tower"})
    model.resize_token_embeddings(vocabulary + 3, mean_resizing=False)
    model.get_input_embeddings().weight.data.copy_(rows)
    layers = model.transformer.blocks if kind == "mpt" else model.gpt_neox.layers
    return gate, ours, Reference(tower, model.eval(), layers, file, ours.processor.tokenizer.special[MARKER])


@torch.no_grad()
def test_the_whole_model_says_what_the_library_and_the_paper_say(pair):
    gate, ours, theirs = pair
    sample = ours.processor.encode(conversation(1, 2), reply=True)
    assert sample.text == f"look:{MARKER}what is it? a cat<|endofchunk|>{MARKER}and this?"
    batch = collate([sample])
    tokens, pixels = batch.main.tokens, batch.media["image"].units
    found = ours.system(batch).logits()
    expected = theirs(tokens, pixels)[..., : found.shape[-1]]
    assert_close(found, expected)
    other = ours.system(collate([ours.processor.encode(conversation(3, 2), reply=True)])).logits()
    assert (other - found).abs().max() > 1e-3 if gate else torch.equal(other, found)
    said = []
    for _ in range(6):
        said.append(int(theirs(tokens, pixels)[0, -1, : found.shape[-1]].argmax()))
        tokens = torch.cat((tokens, torch.tensor([[said[-1]]])), 1)
    ours.processor.stop_ids = frozenset()
    (reply,) = ours.generate([conversation(1, 2)], Sampling(max_new_tokens=6))
    kept = next(
        (i for i, token in enumerate(said) if token == theirs.marker), len(said)
    )  # said, it would begin another picture
    assert list(reply.token_ids)[:kept] == said[:kept]
