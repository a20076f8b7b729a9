"""LAVIS' files of BLIP-2 and InstructBLIP, tiny: file names, full lists of keys, a language model beside them; against the same
weights in `transformers`, renamed by hand."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from reference_models import opened_silently, randomise
from tokenizer_files import write_llama_tokenizer, write_opt_tokenizer, write_reader_tokenizer, write_t5_tokenizer
from torch import nn
from typer.testing import CliRunner

from weft.checkpoints import lavis
from weft.core.conversation import Conversation, Media, user
from weft.core.errors import CheckpointError, ConfigError
from weft.data.collate import collate
from weft.inference.sampling import Sampling
from weft.recipes import minigpt_4
from weft.recipes.loading import load_model, load_system
from weft.recipes.starting_weights import starting_weights
from weft.serving.cli import app
from weft.systems.fusion_encoder import FusionEncoder
from weft.systems.multimodal_lm import Stream

transformers = pytest.importorskip("transformers")
pytest.importorskip("sentencepiece")

SIDE, PATCH, QUERIES, TOWER, READER, FEATURES, WORDS, PLACES = 28, 7, 4, 88, 64, 17, 128, 32
OPT = {"model_type": "opt", "hidden_size": 32, "word_embed_proj_dim": 32, "ffn_dim": 48, "num_hidden_layers": 2,
       "num_attention_heads": 4, "max_position_embeddings": 128}  # fmt: skip
LLAMA = {"model_type": "llama", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
         "max_position_embeddings": 128}  # fmt: skip
T5 = {"model_type": "t5", "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": 0,
      "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}  # fmt: skip
FILES = {
    "blip2_pretrained_opt2.7b.pth": ("Blip2", OPT, write_opt_tokenizer, "opt_proj"),
    "blip2_pretrained_flant5xl.pth": ("Blip2", T5, write_t5_tokenizer, "t5_proj"),
    "instruct_blip_vicuna7b_trimmed.pth": ("InstructBlip", LLAMA, partial(write_llama_tokenizer, begin="<s>"), "llm_proj"),
    "instruct_blip_flanxl_trimmed.pth": ("InstructBlip", T5, write_t5_tokenizer, "t5_proj"),
}
PICTURE = np.random.default_rng(0).integers(0, 255, (40, 30, 3), dtype=np.uint8)
WORDING = "what is in the image?"
QUESTION = Conversation((user(Media(PICTURE), WORDING),))
SHORT = Sampling(max_new_tokens=8)


def linear(name: str, out: int, into: int) -> dict:
    return {f"{name}.weight": (out, into), f"{name}.bias": (out,)}


def norm(name: str, width: int) -> dict:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def tower_keys(prefix: str, num_blocks: int) -> dict:
    keys = {f"{prefix}cls_token": (1, 1, TOWER), f"{prefix}pos_embed": (1, FEATURES, TOWER)}
    keys |= {f"{prefix}patch_embed.proj.weight": (TOWER, 3, PATCH, PATCH), f"{prefix}patch_embed.proj.bias": (TOWER,)}
    for number in range(num_blocks):
        block = f"{prefix}blocks.{number}."
        keys |= norm(f"{block}norm1", TOWER) | norm(f"{block}norm2", TOWER) | linear(f"{block}attn.proj", TOWER, TOWER)
        keys |= {f"{block}attn.{part}_bias": (TOWER,) for part in "qv"}
        keys[f"{block}attn.qkv.weight"] = (3 * TOWER, TOWER)
        keys |= linear(f"{block}mlp.fc1", 120, TOWER) | linear(f"{block}mlp.fc2", TOWER, 120)
    return keys


def reader_keys(text: bool) -> dict:
    keys = {"query_tokens": (1, QUERIES, READER)} | norm("Qformer.bert.embeddings.LayerNorm", READER)
    if text:
        tables = {"word_embeddings.weight": (WORDS, READER), "position_embeddings.weight": (PLACES, READER)}
        keys |= {f"Qformer.bert.embeddings.{name}": shape for name, shape in tables.items()}
        keys["Qformer.bert.embeddings.position_ids"] = (1, PLACES)
    for number in range(4):
        layer = f"Qformer.bert.encoder.layer.{number}."
        for attention, into in (("attention", READER), *((("crossattention", TOWER),) if number % 2 == 0 else ())):
            widths = {"query": READER, "key": into, "value": into}
            for part, width in widths.items():
                keys |= linear(f"{layer}{attention}.self.{part}", READER, width)
            keys |= linear(f"{layer}{attention}.output.dense", READER, READER)
            keys |= norm(f"{layer}{attention}.output.LayerNorm", READER)
        for route in ("_query", *(("",) if text else ())):
            keys |= linear(f"{layer}intermediate{route}.dense", 72, READER) | linear(f"{layer}output{route}.dense", READER, 72)
            keys |= norm(f"{layer}output{route}.LayerNorm", READER)
    return keys


def first_stage_keys() -> dict:
    """Those of `blip2_pretrained.pth`, tower included."""
    heads = linear("vision_proj", 16, READER) | linear("text_proj", 16, READER) | linear("itm_head", 2, READER)
    words = "Qformer.cls.predictions."
    heads |= linear(f"{words}transform.dense", READER, READER) | norm(f"{words}transform.LayerNorm", READER)
    heads |= linear(f"{words}decoder", WORDS, READER) | {f"{words}bias": (WORDS,), "temp": ()}
    return tower_keys("visual_encoder.", 2) | norm("ln_vision", TOWER) | reader_keys(text=True) | heads


def drawn(keys: dict) -> dict:
    """Weights under which every part matters."""
    generator = torch.Generator().manual_seed(0)
    state = {}
    for name, shape in keys.items():
        noise = torch.randn(shape, generator=generator)
        matrix = noise * (noise[0].numel() ** -0.5 if noise.dim() > 1 else 1.0)
        vector = noise * 0.2 + (("norm" in name.lower() or "ln_" in name) and name.endswith("weight"))
        state[name] = matrix if noise.dim() > 1 else vector
    if "Qformer.bert.embeddings.position_ids" in state:
        state["Qformer.bert.embeddings.position_ids"] = torch.arange(PLACES)[None]
    return state


def in_transformers(state: dict, instructs: bool) -> dict:
    """The same weights by the names of `transformers`, as its own conversion calls them."""
    prefix = "qformer.embeddings." if instructs else "qformer."
    renamed = [
        ("visual_encoder.cls_token", "vision_model.embeddings.class_embedding"),
        ("visual_encoder.pos_embed", "vision_model.embeddings.position_embedding"),
        ("visual_encoder.patch_embed.proj", "vision_model.embeddings.patch_embedding"),
        ("visual_encoder.blocks", "vision_model.encoder.layers"), (".norm1.", ".layer_norm1."), (".norm2.", ".layer_norm2."),
        ("attn.qkv.weight", "self_attn.qkv.weight"), ("attn.proj", "self_attn.projection"),
        ("ln_vision", "vision_model.post_layernorm"), ("Qformer.bert.embeddings.LayerNorm", f"{prefix}layernorm"),
        ("Qformer.bert", "qformer"), (".self.", ".attention."), ("opt_proj", "language_projection"),
        ("t5_proj", "language_projection"), ("llm_proj", "language_projection"),
    ]  # fmt: skip
    found = {}
    for name, tensor in state.items():
        if name.endswith("q_bias"):
            block = name.removesuffix("attn.q_bias").replace("visual_encoder.blocks", "vision_model.encoder.layers")
            others = torch.zeros_like(tensor), state[name.replace("q_bias", "v_bias")]
            found[f"{block}self_attn.qkv.bias"] = torch.cat((tensor, *others))
        elif not name.endswith(("v_bias", "position_ids")):
            for old, new in renamed:
                name = name.replace(old, new)
            found[name] = tensor
    return found


def write_language_model(folder: Path, text: dict, write_tokenizer) -> nn.Module:
    """A language model as it is published alone, with its tokenizer."""
    write_tokenizer(folder)
    rows = -(-len(transformers.AutoTokenizer.from_pretrained(folder)) // 64) * 64
    config = transformers.AutoConfig.for_model(**text, vocab_size=rows)
    kind = transformers.AutoModelForSeq2SeqLM if text is T5 else transformers.AutoModelForCausalLM
    model = kind.from_config(config)
    if text is T5:  # a model made from a config is tied, published ones are not
        model.lm_head.weight = nn.Parameter(torch.zeros(rows, 32))
    randomise(model).save_pretrained(folder)
    return model


class Written:
    """A LAVIS file beside its parts, and the same model in `transformers`."""

    def __init__(self, folder: Path, name: str) -> None:
        family, text, write_tokenizer, projection = FILES[name]
        self.instructs, self.seq2seq = family == "InstructBlip", text is T5
        language_model = write_language_model(folder / "language_model", text, write_tokenizer)
        write_reader_tokenizer(folder / "qformer_tokenizer")
        keys = tower_keys("visual_encoder.", 2) | norm("ln_vision", TOWER) | reader_keys(self.instructs)
        self.state = drawn(keys | linear(projection, 32, READER))
        self.path = folder / name
        self.save(self.path, self.state)
        self.parts = {"language_model": folder / "language_model"}
        reader = {"hidden_size": READER, "intermediate_size": 72, "num_hidden_layers": 4, "num_attention_heads": 1,
                  "max_position_embeddings": PLACES, "vocab_size": WORDS}  # fmt: skip
        vision = {"hidden_size": TOWER, "intermediate_size": 120, "num_hidden_layers": 2, "num_attention_heads": 1,
                  "image_size": SIDE, "patch_size": PATCH}  # fmt: skip
        config = getattr(transformers, f"{family}Config")(
            vision_config=vision, qformer_config=reader, text_config=language_model.config, num_query_tokens=QUERIES,
            image_token_index=language_model.config.vocab_size - 1,
        )  # fmt: skip
        self.model = getattr(transformers, f"{family}ForConditionalGeneration")(config)
        lost = self.model.load_state_dict(in_transformers(self.state, self.instructs), strict=False)
        assert not lost.unexpected_keys and all("language_model." in key for key in lost.missing_keys)
        self.model.language_model = language_model
        if self.seq2seq:  # as LAVIS sets it in a T5
            for module in language_model.modules():
                if hasattr(module, "wi_0"):
                    module.act = nn.GELU()
        self.model.vision_model.post_layernorm.eps = 1e-5  # PyTorch's, which LAVIS' own norm has
        self.model.eval()

    @staticmethod
    def save(path: Path, state: dict) -> Path:
        torch.save({"model": state, "epoch": 9}, path)
        return path


@pytest.fixture(scope="module", params=FILES)
def written(request, tmp_path_factory) -> Written:
    return Written(tmp_path_factory.mktemp("lavis"), request.param)


@torch.no_grad()
def test_a_file_beside_its_language_model_says_the_same_as_the_reference(written):
    ours = load_model(written.path, parts=written.parts)
    begin = [] if written.seq2seq else [2]  # </s>, also for Vicuna
    assert ours.processor.encode(QUESTION, reply=True).tokens[QUERIES : QUERIES + len(begin)].tolist() == begin
    assert_same(ours, written.model, written)


def assert_same(ours, theirs, written):
    """Logits and greedy words of one question about a picture."""
    sample = ours.processor.encode(QUESTION, reply=True)
    batch = collate([sample])
    ids = sample.tokens.copy()
    ids[:QUERIES] = theirs.config.image_token_index
    inputs = {"pixel_values": batch.media["image"].units, "input_ids": torch.tensor(ids)[None]}
    if written.instructs:
        asked = batch.media["image"].instruction
        inputs |= {"qformer_input_ids": asked, "qformer_attention_mask": torch.ones_like(asked)}
    start = {"decoder_input_ids": torch.zeros(1, 1, dtype=torch.long)} if written.seq2seq else {}
    found, expected = ours.system(batch).logits(), theirs(**inputs, **start).logits
    bound = 1e-4 * max(1.0, expected.abs().max().item())  # float32 rounding through three transformers
    assert (found - expected[..., : found.shape[-1]]).abs().max() <= bound
    said = theirs.generate(**inputs, max_new_tokens=SHORT.max_new_tokens, do_sample=False)[0].tolist()
    said = said[1:] if written.seq2seq else said[len(ids) :]
    ends = ours.processor.stop_ids
    kept = next((place for place, token in enumerate(said) if token in ends), len(said))
    assert list(ours.generate([QUESTION], SHORT)[0].token_ids) == said[:kept]


def test_a_tower_of_its_own_may_stand_beside_the_file(written, tmp_path):
    tower = {name.removeprefix("visual_encoder."): t for name, t in written.state.items() if name.startswith("visual_encoder.")}
    last = {name: torch.ones(shape) for name, shape in tower_keys("", 3).items() if name.startswith("blocks.2.")}
    torch.save(tower | last | {"norm.weight": torch.ones(TOWER), "norm.bias": torch.ones(TOWER)}, tmp_path / "eva_vit_g.pth")
    rest = {name: tensor for name, tensor in written.state.items() if not name.startswith("visual_encoder.")}
    trimmed = written.save(tmp_path / written.path.name, rest)
    if written.instructs:
        write_reader_tokenizer(tmp_path / "qformer_tokenizer")
    with pytest.raises(ConfigError, match=r"does not hold its streams\.image\.encoder"):
        load_model(trimmed, parts=written.parts)
    again = load_model(trimmed, parts=written.parts | {"streams.image.encoder": tmp_path / "eva_vit_g.pth"})
    whole = load_model(written.path, parts=written.parts)
    assert again.system.config == whole.system.config
    expected = whole.system.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in again.system.state_dict().items())


def command(*arguments) -> str:
    """What a command prints; it must succeed."""
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert done.exit_code == 0, done.output
    return done.stdout


@torch.no_grad()
def test_a_file_is_converted_by_command_and_the_written_folder_says_the_same_in_transformers(written, tmp_path):
    model = load_model(written.path, parts=written.parts)
    given = ["--from", f"language_model={written.parts['language_model']}"]
    command("convert", written.path, tmp_path / "weft", "--to", "weft", *given)
    again = load_model(tmp_path / "weft")
    assert again.system.config == model.system.config and again.processor.config == model.processor.config
    assert again.generate([QUESTION], SHORT)[0].token_ids == model.generate([QUESTION], SHORT)[0].token_ids
    one_eps = ["--set", "streams.image.encoder.feature_norm_eps=1e-6"]
    command("convert", written.path, tmp_path / "transformers", *given, *one_eps)
    theirs = opened_silently(tmp_path / "transformers", type(written.model))
    assert_same(load_model(tmp_path / "transformers"), theirs, written)


def test_weft_chat_and_weft_eval_take_a_file(written, tmp_path):
    model = load_model(written.path, parts=written.parts)
    Image.fromarray(PICTURE).save(tmp_path / "picture.png")
    given = ["--from", f"language_model={written.parts['language_model']}", "--device", "cpu"]
    asked = ["--image", tmp_path / "picture.png", "--prompt", WORDING, "--max-new-tokens", SHORT.max_new_tokens]
    said = model.generate([QUESTION], SHORT)[0].text
    assert "".join(said.split()) in "".join(command("chat", written.path, *asked, *given).split()) and said.strip()
    one = ["--set", "num_per_type=2", "--set", "types=[name_single]", "--no-blind", "--json"]
    assert json.loads(command("eval", written.path, *one, *given))["questions"] == 2


def test_what_does_not_fit_is_one_error_that_lists_it(written, tmp_path):
    if written.instructs:
        write_reader_tokenizer(tmp_path / "qformer_tokenizer")
    lost, misshapen = (f"Qformer.bert.encoder.layer.{i}.output_query.dense.weight" for i in (1, 2))
    state = {name: tensor for name, tensor in written.state.items() if name != lost}
    other = {"a_stranger": torch.ones(1), misshapen: torch.ones(3, 5, 7)}
    with pytest.raises(CheckpointError) as caught:
        load_model(written.save(tmp_path / "other.pth", state | other), parts=written.parts)
    said = str(caught.value)
    assert "\n" not in said and "other.pth" in said
    assert (
        f"1 missing ({lost})" in said and "1 unknown (a_stranger)" in said and f"1 wrong shape ({misshapen} (3, 5, 7)" in said
    )
    with pytest.raises(ConfigError, match="does not hold its language_model"):
        load_model(written.path)


SHOWS_A_SIZE = (
    "query_tokens", "Qformer.bert.encoder.layer.0.intermediate_query.dense.weight", "visual_encoder.cls_token",
    "Qformer.bert.embeddings.word_embeddings.weight", "Qformer.bert.embeddings.position_embeddings.weight",
    "visual_encoder.pos_embed", "visual_encoder.patch_embed.proj.weight", "visual_encoder.blocks.0.mlp.fc1.weight",
    "text_proj.weight",
)  # fmt: skip


@pytest.mark.parametrize("name", SHOWS_A_SIZE)
def test_a_tensor_that_can_show_no_size_is_named(name, tmp_path):
    write_reader_tokenizer(tmp_path / "qformer_tokenizer")
    state = drawn(first_stage_keys())
    path = Written.save(tmp_path / "blip2_pretrained.pth", state | {name: torch.ones(3)})
    with pytest.raises(CheckpointError, match=rf"{name}, which shows a size, has \d axes .* here \(3,\)"):
        load_system(path)
    if "embeddings" not in name:  # without tables of words it is a Q-Former that reads none
        Written.save(path, {key: tensor for key, tensor in state.items() if key != name})
        with pytest.raises(CheckpointError, match=rf"has no {name}, .* no file of LAVIS"):
            load_system(path)


def test_the_first_stage_opens_with_its_heads(tmp_path):
    write_reader_tokenizer(tmp_path / "qformer_tokenizer")
    state = drawn(first_stage_keys())
    path = Written.save(tmp_path / "blip2_pretrained.pth", state)
    loaded = load_system(path)
    assert isinstance(loaded.system, FusionEncoder)
    assert loaded.processor.tokenizer.special["[DEC]"] == loaded.system.config.start_token
    assert loaded.system.temperature.item() == state["temp"].item()
    assert torch.equal(loaded.system.matching_head.weight, state["itm_head.weight"])
    assert torch.equal(loaded.system.word_head.bias, state["Qformer.cls.predictions.bias"])
    command("convert", path, tmp_path / "weft", "--to", "weft")
    again = load_system(tmp_path / "weft").system
    assert again.config == loaded.system.config
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in loaded.system.state_dict().items())


def test_minigpt_4_starts_from_the_frozen_q_former_of_such_a_file(tmp_path):
    keys = tower_keys("visual_encoder.", 2) | norm("ln_vision", TOWER) | reader_keys(text=False) | linear("t5_proj", 48, READER)
    path = Written.save(tmp_path / "blip2_pretrained_flant5xxl.pth", drawn(keys))
    state, part = torch.load(path)["model"], "streams.image.projector.transformer"
    model = system_around(state)
    starting_weights([f"{part}={path}", f"streams.image.encoder={path}"])(model)
    assert torch.equal(model.get_submodule(part).queries, state["query_tokens"][0])
    assert torch.equal(model.streams["image"].encoder.feature_norm.weight, state["ln_vision.weight"])
    with pytest.raises(CheckpointError, match="language_model is a Decoder; of files Weft reads"):
        starting_weights([f"language_model={path}"])(model)


def system_around(state: dict):
    """MiniGPT-4's tiny system around a tower and a Q-Former of a file's sizes."""
    shapes = {name: tensor.shape for name, tensor in state.items()}
    stream = Stream.Config(encoder=lavis.read_tower(shapes, "file"), projector=lavis.read_qformer(shapes, "file"))
    return replace(minigpt_4.tiny().system, streams={"image": stream}).build()
