"""Law: a folder in an original layout opens as it was published, answers, converts, and says in one error what does not fit."""

import json
import logging
import shutil

import numpy as np
import published_configs
import pytest
import torch
from original_folders import FOLDERS, Written, rewritten, write_json, write_llama
from PIL import Image
from tokenizer_samples import train_sentencepiece
from typer.testing import CliRunner

from weft.checkpoints.checkpoint_format import format_of
from weft.checkpoints.weight_files import WeightFiles, read_json
from weft.core.conversation import Conversation, Media, user
from weft.core.errors import CheckpointError, ConfigError
from weft.data.boxes import BracketedBoxes, FractionBoxes, ThousandthBoxes
from weft.data.collate import collate
from weft.data.images import IMAGENET_MEAN, ImageTransform
from weft.data.tiles import AnyResolution, DynamicTiling
from weft.inference.sampling import Sampling
from weft.recipes.catalogue import recipe
from weft.recipes.loading import load_model
from weft.recipes.openflamingo_folder import read_openflamingo_folder
from weft.recipes.original_folders import CONVENTIONS
from weft.recipes.transformers_folder import read_transformers_folder
from weft.serving.cli import app

QUESTION = "What is it?"
SHORT = Sampling(max_new_tokens=6)


@pytest.fixture(scope="module")
def sentencepiece(tmp_path_factory) -> bytes:
    return train_sentencepiece(
        tmp_path_factory.mktemp("sentencepiece"), "tokenizer.model", model_type="bpe", vocab_size=600, byte_fallback=True,
        normalization_rule_name="identity", remove_extra_whitespaces=False, split_digits=True, character_coverage=0.995,
    )  # fmt: skip


@pytest.fixture(scope="module", params=FOLDERS)
def published(request, tmp_path_factory, sentencepiece):
    """The name of a form, and its folder."""
    return request.param, FOLDERS[request.param](tmp_path_factory.mktemp("published"), sentencepiece)


def picture(width=40, height=30):
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8))


def asked():
    return Conversation((user(Media(picture()), QUESTION),))


def test_every_convention_has_a_folder_here():
    names = {"qwen_vl": "Qwen-VL", "cogvlm": "CogVLM", "mono_internvl": "Mono-InternVL", "llava_original": "LLaVA-1.5"}
    assert set(names) == set(CONVENTIONS) and set(names.values()) < set(FOLDERS)


def test_it_opens_as_the_system_that_was_published(published):
    _, written = published
    model = load_model(written.folder, parts=written.parts)
    assert model.system.config == written.system.config
    expected = written.system.state_dict()
    assert model.system.state_dict().keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in model.system.state_dict().items())
    assert not any(parameter.is_meta for parameter in model.system.parameters())


SAVED_WITH_THE_TOWER = {"streams.image.encoder: embeddings.position_ids": "a buffer that counts positions, not needed"}


def test_what_is_not_used_is_dropped_with_its_reason(published):
    _, written = published
    saved = written.folder / "config.json"
    if saved.is_file():
        found = read_transformers_folder(written.folder, read_json(saved), written.parts)
    else:
        found = read_openflamingo_folder(written.folder, written.parts)
    plan = found.key_map.plan(found.tensors)
    tower = SAVED_WITH_THE_TOWER if "streams.image.encoder" in written.parts else {}
    assert plan.dropped == written.dropped | tower
    used = [key for step in plan.steps for key in step.inputs]
    assert sorted([*used, *plan.dropped]) == sorted(found.tensors), "every key has one use or a reason"


@pytest.mark.parametrize(
    ("name", "size", "saved"),
    [
        ("qwen-vl", "", published_configs.QWEN_VL_CHAT),
        ("cogvlm", "17b", published_configs.COGVLM_CHAT),
        ("mono-internvl", "2b", published_configs.MONO_INTERNVL_2B),
        ("llava-1.5", "7b", published_configs.LLAVA_1_5_7B),
        ("llava-next", "7b", published_configs.LLAVA_1_6_VICUNA_7B),
    ],
)
def test_the_published_config_is_the_recipes_system(name, size, saved):
    system = recipe(name, size).stages[-1].system if size else recipe(name).stages[-1].system
    found = format_of(saved, "config.json").read_config(saved)
    assert found.language_model == system.language_model and found.streams == system.streams
    assert [type(fusion) for fusion in found.fusions] == [type(fusion) for fusion in system.fusions]


PROMPTS = {
    "Qwen-VL": "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\nPicture 1: <img></img>\n"
    f"{QUESTION}<|im_end|>\n<|im_start|>assistant\n",
    "CogVLM": f" [INST] {QUESTION} [/INST] ",
    "Mono-InternVL": f"<|im_start|>user\n<img></img>\n{QUESTION}<|im_end|>\n<|im_start|>assistant\n",
    "LLaVA delta": f"human's questions.###Human: <im_start><im_end>\n{QUESTION}###Assistant:",
    "LLaVA on LLaMA-2": f"using natural language.\n<</SYS>>\n\n\n{QUESTION} [/INST]",
    "LLaVA-1.5": f"user's questions. USER: \n{QUESTION} ASSISTANT:",
    "LLaVA-1.6": f"[INST] \n{QUESTION} [/INST]",  # on Mistral
    "OpenFlamingo": f"<image>{QUESTION}",
}


def test_it_asks_as_its_own_code_does(published):
    name, written = published
    model = load_model(written.folder, parts=written.parts)
    text = model.processor.encode(asked(), reply=True).text
    expected = next(prompt for start, prompt in PROMPTS.items() if name.startswith(start))
    assert text.endswith(expected)
    boxes = {"Qwen-VL": ThousandthBoxes(), "CogVLM": BracketedBoxes()}
    square = FractionBoxes(square=name.startswith("LLaVA"))
    assert model.processor.config.boxes == boxes.get(name, square)
    transform, size = model.processor.config.transforms["image"], model.system.config.streams["image"].encoder.image_size
    if name == "Mono-InternVL":
        assert transform.tiling == DynamicTiling(max_tiles=6) and transform.thumbnail and transform.view.mean == IMAGENET_MEAN
        assert transform.view == ImageTransform(size=size, resize="direct", mean=transform.view.mean, std=transform.view.std)
    elif name == "LLaVA-1.6":  # the published pairs are (width, height)
        assert transform.tiling == AnyResolution(grids=((2, 1), (1, 2), (2, 2), (1, 3), (3, 1)))
    else:
        direct, padded = name in ("Qwen-VL", "CogVLM"), name.startswith("LLaVA-1.5")
        assert transform == ImageTransform(size=size, resize="direct" if direct else "shortest", pad_to_square=padded)


def test_chat_eval_and_convert_do_with_it_what_they_do_with_any_model(published, tmp_path):
    """`weft chat` says what greedy decoding says, `weft eval` asks, and what `weft convert` writes needs no folders."""
    _, written = published
    model = load_model(written.folder, parts=written.parts)
    model.processor.stop_ids = frozenset()  # nothing may end an answer, so there is one
    (expected,) = model.generate([asked()], SHORT)
    assert len(expected.token_ids) == SHORT.max_new_tokens
    picture().save(tmp_path / "picture.png")
    parts = [word for name, path in written.parts.items() for word in ("--from", f"{name}={path}")]
    (usual,) = load_model(written.folder, parts=written.parts).generate([asked()], SHORT)
    arguments = ["--image", str(tmp_path / "picture.png"), "--prompt", QUESTION, "--max-new-tokens", "6", "--device", "cpu"]
    chat = CliRunner().invoke(app, ["chat", str(written.folder), *arguments, *parts])
    assert chat.exit_code == 0, chat.output
    assert "".join(usual.text.split()) in "".join(chat.output.split())
    one = ["--set", "num_per_type=2", "--set", "types=[name_single]", "--no-blind", "--json", "--device", "cpu"]
    asked_all = CliRunner().invoke(app, ["eval", str(written.folder), *one, *parts])
    assert asked_all.exit_code == 0, asked_all.output
    assert json.loads(asked_all.stdout)["questions"] == 2
    done = CliRunner().invoke(app, ["convert", str(written.folder), str(tmp_path / "weft"), "--to", "weft", *parts])
    assert done.exit_code == 0, done.output
    again = load_model(tmp_path / "weft")
    assert again.system.config == model.system.config and again.processor.config == model.processor.config
    again.processor.stop_ids = frozenset()
    assert again.generate([asked()], SHORT)[0].token_ids == expected.token_ids


@pytest.mark.parametrize("name", FOLDERS)
def test_what_does_not_fit_is_one_error_that_lists_it(name, tmp_path, sentencepiece):
    written = FOLDERS[name](tmp_path, sentencepiece)
    names = [key for key in WeightFiles(written.folder) if "norm" in key or "ln_" in key or "mm_projector" in key]
    lost, misshapen = (names[0], names[-1])
    assert lost != misshapen

    def spoil(tensors):
        del tensors[lost]
        tensors["a.stranger"] = torch.ones(1)
        tensors[misshapen] = torch.ones(3, 5, 7)

    rewritten(written, spoil)
    with pytest.raises(CheckpointError) as caught:
        load_model(written.folder, parts=written.parts)
    said = str(caught.value)
    assert "\n" not in said and str(written.folder) in said
    assert lost.removeprefix("module.") in said and "a.stranger" in said and misshapen in said, said
    for kind in ("1 missing", "1 unknown", "1 wrong shape"):
        assert kind in said


def test_a_part_that_is_not_given_is_asked_for(published):
    _, written = published
    for part in written.parts:
        rest = {known: path for known, path in written.parts.items() if known != part}
        missing = "holds a delta" if part == "base" else f"does not hold its {part}; give the folder that does"
        with pytest.raises(ConfigError, match=rf"{missing}.*: --from {part}=PATH"):
            load_model(written.folder, parts=rest)
    with pytest.raises(ConfigError, match="unknown part 'vision'"):
        load_model(written.folder, parts={**written.parts, "vision": written.folder})


def test_a_part_that_the_folder_holds_is_refused(tmp_path, sentencepiece):
    written = FOLDERS["LLaVA-1.6"](tmp_path, sentencepiece)
    tower = tmp_path / "clip-vit-large-patch14-336"
    with pytest.raises(ConfigError, match=r"holds its streams\.image\.encoder itself; leave out"):
        load_model(written.folder, parts={"streams.image.encoder": tower})


def test_internlm2s_unused_pieces_are_its_special_tokens(tmp_path, sentencepiece):
    written = FOLDERS["Mono-InternVL"](tmp_path, sentencepiece)
    tokenizer = load_model(written.folder).processor.tokenizer
    first = tokenizer.special["<|plugin|>"]
    ids = [tokenizer.special[name] for name in ("<|im_start|>", "<img>", "</img>", "<IMG_CONTEXT>", "</box>")]
    assert [i - first for i in ids] == [5, 6, 7, 8, 14]
    assert tokenizer.encode("<|im_end|>") == [tokenizer.special["<|im_end|>"]] == [first + 4]
    assert tokenizer.vocabulary == written.system.config.language_model.vocabulary


PERCEIVER = {f"perceiver.layers.{i}.{name}" for i in (0, 1) for name in (
    "0.norm_media.weight", "0.norm_media.bias", "0.norm_latents.weight", "0.norm_latents.bias", "0.to_q.weight",
    "0.to_kv.weight", "0.to_out.weight", "1.0.weight", "1.0.bias", "1.1.weight", "1.3.weight",
)} | {"perceiver.latents", "perceiver.norm.weight", "perceiver.norm.bias"}  # fmt: skip
GATED = (
    "attn_gate", "ff_gate", "attn.norm.weight", "attn.norm.bias", "attn.to_q.weight", "attn.to_kv.weight", "attn.to_out.weight",
    "ff.0.weight", "ff.0.bias", "ff.1.weight", "ff.3.weight",
)  # fmt: skip


@pytest.mark.parametrize(
    ("name", "blocks", "others"),
    [
        ("OpenFlamingo on MPT", "lang_encoder.gated_cross_attn_layers.1.", {"lang_encoder.transformer.wte.weight"}),
        ("OpenFlamingo on RedPajama", "lang_encoder.gated_cross_attn_layers.1.", {"lang_encoder.gpt_neox.embed_in.weight"}),
        (
            "OpenFlamingo as trained today",
            "lang_encoder.gpt_neox.layers.1.gated_cross_attn_layer.",
            {"lang_encoder.gpt_neox.embed_in.weight", "lang_encoder.embed_out.weight"},
        ),
    ],
)
def test_openflamingos_file_has_the_published_names(name, blocks, others, tmp_path, sentencepiece):
    files = WeightFiles(FOLDERS[name](tmp_path, sentencepiece).folder)
    assert {key.removeprefix("module.") for key in files} == PERCEIVER | {blocks + key for key in GATED} | others
    gates = [files.shape(key) for key in files if key.endswith("_gate")]
    assert gates == [(1,), (1,)]


def test_openflamingos_blocks_may_be_listed_twice(tmp_path, sentencepiece):
    """A file that a training script saved whole has them apart and inside the layers; one copy is read."""
    written = FOLDERS["OpenFlamingo on MPT"](tmp_path, sentencepiece)

    def twice(tensors):
        apart = "lang_encoder.gated_cross_attn_layers."
        for key in [key for key in tensors if key.startswith(apart)]:
            number, rest = key.removeprefix(apart).split(".", 1)
            tensors[f"lang_encoder.transformer.blocks.{number}.gated_cross_attn_layer.{rest}"] = tensors[key]

    rewritten(written, twice)
    model = load_model(written.folder, parts=written.parts)
    expected = written.system.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in model.system.state_dict().items())


def test_openflamingo_with_another_language_model_is_refused(tmp_path, sentencepiece):
    written = FOLDERS["OpenFlamingo on MPT"](tmp_path, sentencepiece)
    other = tmp_path / "other"
    other.mkdir()
    neox = FOLDERS["OpenFlamingo on RedPajama"](other, sentencepiece)
    with pytest.raises(CheckpointError, match=r"lacks lang_encoder\.gpt_neox\.embed_in\.weight"):
        load_model(written.folder, parts={**written.parts, "language_model": neox.parts["language_model"]})


LLAMA_LAYER = (
    "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj",
    "mlp.down_proj", "input_layernorm", "post_attention_layernorm",
)  # fmt: skip
CLIP_LAYER = tuple(
    f"{name}.{leaf}"
    for name in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj", "layer_norm1", "layer_norm2",
                 "mlp.fc1", "mlp.fc2")
    for leaf in ("weight", "bias")
)  # fmt: skip


@pytest.mark.parametrize("name", [name for name in FOLDERS if name.startswith("LLaVA")])
def test_llavas_files_have_the_published_names(name, tmp_path, sentencepiece):
    projector = ("0.", "2.") if name.startswith("LLaVA-1") else ("",)
    expected = {f"model.mm_projector.{number}{leaf}" for number in projector for leaf in ("weight", "bias")}
    if name != "LLaVA-1.5 projector":
        expected |= {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"}
        expected |= {f"model.layers.{i}.{part}.weight" for i in (0, 1) for part in LLAMA_LAYER}
    if name not in ("LLaVA-1.5 projector", "LLaVA-1.6"):  # saved by code that kept them
        expected |= {f"model.layers.{i}.self_attn.rotary_emb.inv_freq" for i in (0, 1)}
    if name == "LLaVA-1.6":
        tower = "model.vision_tower.vision_tower.vision_model."
        expected |= {"model.image_newline", f"{tower}embeddings.class_embedding", f"{tower}embeddings.patch_embedding.weight"}
        expected |= {f"{tower}embeddings.position_embedding.weight"}
        expected |= {f"{tower}{part}.{leaf}" for part in ("pre_layrnorm", "post_layernorm") for leaf in ("weight", "bias")}
        expected |= {f"{tower}encoder.layers.{i}.{part}" for i in (0, 1) for part in CLIP_LAYER}
    assert set(WeightFiles(FOLDERS[name](tmp_path, sentencepiece).folder)) == expected


@torch.no_grad()
@pytest.mark.parametrize("name", ["LLaVA-1.5", "LLaVA-1.6"])
def test_llavas_own_layout_becomes_that_of_transformers(name, tmp_path, sentencepiece):
    """The same weights in the library's own class give the same logits for the same tokens and pixels."""
    transformers = pytest.importorskip("transformers")
    written = FOLDERS[name](tmp_path, sentencepiece)
    parts = [word for part, path in written.parts.items() for word in ("--from", f"{part}={path}")]
    done = CliRunner().invoke(app, ["convert", str(written.folder), str(tmp_path / "theirs"), *parts])
    assert done.exit_code == 0, done.output
    kind = "LlavaNextForConditionalGeneration" if name == "LLaVA-1.6" else "LlavaForConditionalGeneration"
    reader = getattr(transformers, kind)
    theirs, info = reader.from_pretrained(tmp_path / "theirs", output_loading_info=True, local_files_only=True)
    assert not any(info.values()), info
    model = load_model(written.folder, parts=written.parts)
    sample = model.processor.encode(asked(), reply=True)
    batch = collate([sample])
    tokens = batch.main.tokens.masked_fill(batch.main.modality == 1, theirs.config.image_token_index)
    units = batch.media["image"].units
    inputs = {"pixel_values": units}
    if name == "LLaVA-1.6":
        inputs = {"pixel_values": units[None], "image_sizes": torch.tensor([picture().size[::-1]])}
    expected = theirs.eval()(input_ids=tokens, attention_mask=torch.ones_like(tokens), **inputs).logits
    found = model.system(batch).logits()
    expected = expected[..., : found.shape[-1]]  # their table has a row for the picture, and is filled up to 64
    assert (found - expected).abs().max() <= 1e-4 * max(1.0, expected.abs().max().item())


LLAVA_FOLDERS = [
    ("LLaVA-13b-delta-v0", published_configs.LLAVA_7B_V0, "llava_v0_tagged"),
    ("LLaVA-13b-v0", published_configs.LLAVA_7B_V0 | {"mm_use_im_start_end": False}, "llava_v0"),
    ("LLaVA-Lightning-7B-delta-v1-1", published_configs.LLAVA_7B_V0, "vicuna_v1_tagged"),
    ("llava-llama-2-13b-chat-lightning-preview", published_configs.LLAVA_LLAMA_2_13B, "llava_llama_2"),
    ("llava-v1.5-7b", published_configs.LLAVA_1_5_7B, "vicuna_v1"),
    ("llava-v1.6-vicuna-7b", published_configs.LLAVA_1_6_VICUNA_7B, "vicuna_v1"),
    ("llava-v1.6-mistral-7b", published_configs.LLAVA_1_6_MISTRAL_7B, "mistral"),
    ("llava-v1.6-34b", published_configs.LLAVA_1_6_VICUNA_7B, "llava_chatml"),
    ("downloaded", published_configs.LLAVA_1_5_7B, "vicuna_v1"),  # as its config was saved: llava-v1.5-7b
    ("llava", published_configs.LLAVA_1_5_7B | {"_name_or_path": ""}, "vicuna_v1"),  # no v0 has such a projector
    ("llava", published_configs.LLAVA_7B_V0 | {"mm_use_im_start_end": False}, "llava_v0"),
]


@pytest.mark.parametrize(("name", "saved", "expected"), LLAVA_FOLDERS)
def test_llavas_conversations_are_chosen_by_the_models_name_and_the_choice_is_logged(name, saved, expected, tmp_path, caplog):
    choose = CONVENTIONS["llava_original"].template
    with caplog.at_level(logging.INFO, "weft"):
        assert choose(tmp_path / name, saved) == expected
    assert f"the template {expected}" in caplog.text
    snapshot = tmp_path / f"models--liuhaotian--{name}" / "snapshots" / "4481d270cc22fd5c4d1bb5df129622006ccd9234"
    assert choose(snapshot, saved) == expected


def test_tokens_around_pictures_are_for_models_that_were_taught_them(tmp_path, sentencepiece):
    saved = published_configs.LLAVA_LLAMA_2_13B | {"mm_use_im_start_end": True}
    with pytest.raises(CheckpointError, match=r"has mm_use_im_start_end; .*set the field to false"):
        CONVENTIONS["llava_original"].template(tmp_path / "llava-llama-2-13b", saved)
    written = FOLDERS["LLaVA delta"](tmp_path, sentencepiece)
    system, tokens = written.system, load_model(written.folder, parts=written.parts).processor.tokenizer.special
    rows = system.config.language_model.vocabulary
    assert [tokens[name] for name in ("[PAD]", "<im_patch>", "<im_start>", "<im_end>")] == list(range(rows - 4, rows))
    (written.folder / "added_tokens.json").unlink()
    with pytest.raises(
        CheckpointError, match=r"texts hold <im_start> and <im_end>, which the tokenizer lacks; .*tokenizer=PATH"
    ):
        load_model(written.folder, parts=written.parts)


def delta(tmp_path, sentencepiece) -> Written:
    return FOLDERS["LLaVA delta"](tmp_path, sentencepiece)


def test_a_delta_is_known_by_its_weights_whatever_its_folder_is_called(tmp_path, sentencepiece):
    written = delta(tmp_path, sentencepiece)
    renamed = written.folder.rename(tmp_path / "my-model")
    tower = {"streams.image.encoder": written.parts["streams.image.encoder"]}
    with pytest.raises(ConfigError, match=r"my-model holds a delta, .*LLaMA-1 for LLaVA v1.*--from base=PATH"):
        load_model(renamed, parts=tower)
    with pytest.raises(ConfigError, match="unknown part 'vision'"):
        load_model(renamed, parts={**tower, "vision": tower["streams.image.encoder"]})


def test_a_base_is_for_deltas_and_is_whole_itself(tmp_path, sentencepiece):
    written = delta(tmp_path, sentencepiece)
    base, others = written.parts["base"], [tmp_path / "whole", tmp_path / "flamingo"]
    for folder in others:
        folder.mkdir()
    whole = FOLDERS["LLaVA-1.5"](others[0], sentencepiece)
    with pytest.raises(ConfigError, match=r"llava-v1\.5-7b holds whole weights, no delta; leave out --from base"):
        load_model(whole.folder, parts={**whole.parts, "base": base})
    flamingo = FOLDERS["OpenFlamingo on MPT"](others[1], sentencepiece)
    with pytest.raises(ConfigError, match="unknown part 'base'"):
        load_model(flamingo.folder, parts={**flamingo.parts, "base": base})


def test_a_base_of_another_shape_is_one_error_that_lists_it(tmp_path, sentencepiece):
    written = delta(tmp_path, sentencepiece)
    files = WeightFiles(written.parts["base"])
    tensors = {key: files[key].clone() for key in files}
    del tensors["model.layers.1.mlp.up_proj.weight"]
    tensors["lm_head.weight"] = torch.ones(700, 64)
    for path in written.parts["base"].glob("pytorch_model*"):
        path.unlink()
    torch.save(tensors, written.parts["base"] / "pytorch_model.bin")
    with pytest.raises(
        CheckpointError, match=r"is no delta of .*llama-7b.*; give the folder of the model that it was taken"
    ) as said:
        load_model(written.folder, parts=written.parts)
    assert "model.layers.1.mlp.up_proj.weight is in the delta only" in str(said.value)
    assert "lm_head.weight is (604, 64) in the delta and (700, 64) in the base" in str(said.value)


def test_a_sum_is_made_in_the_deltas_precision_as_the_released_script_makes_it(tmp_path, sentencepiece):
    written = delta(tmp_path, sentencepiece)
    rewritten(written, lambda tensors: tensors.update({key: value.half() for key, value in tensors.items()}))
    found = load_model(written.folder, parts=written.parts).system.language_model
    files, base = WeightFiles(written.folder), WeightFiles(written.parts["base"])
    key = "model.layers.0.mlp.up_proj.weight"
    expected = files[key] + base[key].half()
    assert expected.dtype == torch.float16 and torch.equal(found.blocks[0].feed_forward.up.weight, expected)
    table = files["model.embed_tokens.weight"].clone()
    table[:-4] += base["model.embed_tokens.weight"].half()
    assert torch.equal(found.embedding.weight, table), "added tokens are whole"


def test_a_language_model_that_is_a_delta_is_refused_as_a_part_and_becomes_whole_alone(tmp_path, sentencepiece):
    """The first Vicunas were published so."""
    written = delta(tmp_path, sentencepiece)
    vicuna = tmp_path / "vicuna-7b-delta-v1.1"
    whole = {key: value for key, value in WeightFiles(written.folder).items() if "mm_projector" not in key}
    system, rows = written.system, written.system.config.language_model.vocabulary
    write_llama(vicuna, system, sentencepiece, rows, whole)
    shutil.copy(written.folder / "added_tokens.json", vicuna)
    with pytest.raises(ConfigError, match=r"vicuna-7b-delta-v1\.1 holds a delta"):
        load_model(vicuna)
    found = load_model(vicuna, parts={"base": written.parts["base"]}).system.language_model.state_dict()
    assert all(torch.equal(value, found[name]) for name, value in system.language_model.state_dict().items())
    projector = written.folder.parent / "projector"
    projector.mkdir()
    write_json(projector / "config.json", read_json(written.folder / "config.json"))
    torch.save({k: v for k, v in WeightFiles(written.folder).items() if "mm_projector" in k}, projector / "mm_projector.bin")
    parts = {"language_model": vicuna, "streams.image.encoder": written.parts["streams.image.encoder"]}
    with pytest.raises(CheckpointError, match=r"given as language_model, holds a delta, .*weft convert .* --from base=PATH"):
        load_model(projector, parts=parts)
