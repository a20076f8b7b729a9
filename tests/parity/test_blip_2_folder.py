"""BLIP-2 and InstructBLIP folders with their real kinds of tokenizers: read, asked, converted both ways, and always the
reference's words."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from reference_models import randomise
from safetensors.torch import load_file, save_file
from tokenizer_files import write_llama_tokenizer, write_opt_tokenizer, write_reader_tokenizer, write_t5_tokenizer
from torch import nn
from typer.testing import CliRunner

from weft.core.conversation import Conversation, Media, user
from weft.core.errors import CheckpointError, ConfigError
from weft.data.collate import collate
from weft.data.images import ImageTransform
from weft.data.tokenizers import Tokenizer
from weft.inference.model import Model
from weft.inference.sampling import Sampling
from weft.recipes import blip_2, instructblip
from weft.recipes.converting import convert
from weft.recipes.loading import load_model, save_model
from weft.recipes.shrinking import tiny_tokenizer
from weft.serving.cli import app

transformers = pytest.importorskip("transformers")
pytest.importorskip("sentencepiece")

SIDE, QUERIES = 28, 4
VISION = {"hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 3, "image_size": SIDE,
          "patch_size": 7}  # fmt: skip
READER = {"hidden_size": 36, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 3,
          "max_position_embeddings": 128}  # fmt: skip
OPT = {"model_type": "opt", "hidden_size": 32, "word_embed_proj_dim": 32, "ffn_dim": 48, "num_hidden_layers": 2,
       "num_attention_heads": 4, "max_position_embeddings": 256}  # fmt: skip
LLAMA = {"model_type": "llama", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
         "max_position_embeddings": 256, "bos_token_id": 2}  # fmt: skip
T5 = {"model_type": "t5", "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": 0,
      "feed_forward_proj": "gated-gelu", "dense_act_fn": "gelu", "tie_word_embeddings": False}  # fmt: skip
CASES = {
    "blip-2 on OPT": ("Blip2", OPT, write_opt_tokenizer),
    "blip-2 on T5": ("Blip2", T5, write_t5_tokenizer),
    "instructblip on Vicuna": ("InstructBlip", LLAMA, write_llama_tokenizer),
    "instructblip on T5": ("InstructBlip", T5, write_t5_tokenizer),
}
PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 30, 3), dtype=np.uint8))
WORDS = "what is in the image? 你好"
QUESTION = Conversation((user(Media(PICTURE), WORDS),))
EXACT = Sampling(max_new_tokens=12)
ONE_EPS = [("streams.image.encoder.feature_norm_eps", "1e-6")]  # `transformers` has one for all norms of the tower


def write_published(folder: Path, case: str) -> None:
    """What a published repository holds, small: two kinds of tokenizers, a padded token table, a head of its own on T5."""
    family, text, write_tokenizer = CASES[case]
    write_tokenizer(folder)
    tokenizers = [transformers.AutoTokenizer.from_pretrained(folder)]
    reader = dict(READER)
    if family == "InstructBlip":
        write_reader_tokenizer(folder / "qformer_tokenizer")
        tokenizers.append(transformers.AutoTokenizer.from_pretrained(folder / "qformer_tokenizer"))
        reader["vocab_size"] = len(tokenizers[1])
    images = transformers.BlipImageProcessorPil(size={"height": SIDE, "width": SIDE})
    processor = getattr(transformers, f"{family}Processor")(images, *tokenizers, num_query_tokens=QUERIES)
    rows = -(-len(processor.tokenizer) // 64) * 64
    newline = {"eos_token_id": processor.tokenizer("\n").input_ids[-1]} if text is OPT else {}  # what ends a caption
    config = getattr(transformers, f"{family}Config")(
        vision_config=VISION,
        qformer_config=reader,
        text_config={**text, **newline, "vocab_size": rows},
        num_query_tokens=QUERIES,
        image_token_index=processor.tokenizer.convert_tokens_to_ids("<image>"),
    )
    model = getattr(transformers, f"{family}ForConditionalGeneration")(config)
    if text is T5:  # a model made from a config is tied, published ones are not
        model.language_model.lm_head.weight = nn.Parameter(torch.zeros(rows, 32))
    randomise(model)
    for name, parameter in model.named_parameters():
        if name.endswith("qkv.bias"):
            parameter.data[48:96] = 0.0  # the keys', which published files have at zero
    spoken = processor.tokenizer.get_vocab()
    words = {i for token, i in spoken.items() if len(token) > 1 and not token.startswith("<")}
    silent = [i for i in range(rows) if i not in words]
    model.get_output_embeddings().weight.data[silent] = 0.0  # what is said is text, whole and piece by piece
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


@pytest.fixture(scope="module", params=CASES)
def published(request, tmp_path_factory) -> tuple[str, Path]:
    folder = tmp_path_factory.mktemp(request.param.replace(" ", "-"))
    write_published(folder, request.param)
    return request.param, folder


def reference(folder: Path):
    """The folder as `transformers` opens it, which must not miss or ignore a key, and its processor."""
    kind = json.loads((folder / "config.json").read_text())["architectures"][0]
    model, info = getattr(transformers, kind).from_pretrained(folder, output_loading_info=True, local_files_only=True)
    assert not any(info.values()), info
    return model.eval(), transformers.AutoProcessor.from_pretrained(folder, local_files_only=True)


def said(theirs, processor, text: str, tokens: int = EXACT.max_new_tokens) -> list[int]:
    """What the reference goes on with, greedily, its ends left out."""
    inputs = processor(images=PICTURE, text=text, return_tensors="pt")
    ids = theirs.generate(**inputs, max_new_tokens=tokens, do_sample=False)[0].tolist()
    start = 1 if theirs.config.text_config.is_encoder_decoder else inputs["input_ids"].shape[1]
    ends = theirs.language_model.generation_config.eos_token_id
    return [token for token in ids[start:] if token not in (ends if isinstance(ends, list) else [ends])]


@torch.no_grad()
def assert_same(model: Model, folder: Path) -> None:
    """Ids, pixels, what the Q-Former reads, and greedy words of one question about a picture."""
    theirs, processor = reference(folder)
    sample = model.processor.encode(QUESTION, reply=True)
    inputs = processor(images=PICTURE, text=sample.text, return_tensors="pt")
    first = inputs["input_ids"][0, :QUERIES]
    assert (first == theirs.config.image_token_index).all() and sample.modality[:QUERIES].all()
    assert sample.tokens[QUERIES:].tolist() == inputs["input_ids"][0, QUERIES:].tolist()
    assert (collate([sample]).media["image"].units - inputs["pixel_values"]).abs().max() < 1e-5  # far below 1/255
    if "qformer_input_ids" in inputs:
        assert sample.media["image"][0].instruction.tolist() == inputs["qformer_input_ids"][0].tolist()
    reply = model.generate([QUESTION], EXACT)[0]
    assert list(reply.token_ids) == said(theirs, processor, sample.text) != []


def test_a_published_folder_says_the_same_in_weft(published):
    case, folder = published
    model = load_model(folder)
    text = model.processor.encode(QUESTION, reply=True).text
    assert text == (WORDS if case.startswith("instruct") else f"Question: {WORDS} Answer:")
    assert_same(model, folder)


def older(published: Path, folder: Path) -> None:
    """The same as 4.x wrote it: token tables under every name, buffers, flags that 5.x keeps elsewhere, more files."""
    for path in published.rglob("*.*"):
        (folder / path.relative_to(published)).parent.mkdir(exist_ok=True)
        (folder / path.relative_to(published)).write_bytes(path.read_bytes())
    state = load_file(published / "model.safetensors")
    table = state.get("language_model.shared.weight", state.get("language_model.model.decoder.embed_tokens.weight"))
    if "language_model.shared.weight" in state:
        state |= {f"language_model.{half}.embed_tokens.weight": table.clone() for half in ("encoder", "decoder")}
    elif table is not None:
        state["language_model.lm_head.weight"] = table.clone()
    if "qformer.embeddings.layernorm.weight" in state:
        state["qformer.embeddings.position_ids"] = torch.arange(128)[None]
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    text = config["text_config"]
    if text["model_type"] == "t5":
        text["tie_word_embeddings"] = text.pop("scale_decoder_outputs")
    if text["model_type"] == "llama":
        text["rope_theta"] = text.pop("rope_parameters")["rope_theta"]
    config |= {"use_decoder_only_language_model": text["model_type"] != "t5", "torch_dtype": config.pop("dtype")}
    (folder / "config.json").write_text(json.dumps(config))
    settings = json.loads((folder / "processor_config.json").read_text())
    (folder / "preprocessor_config.json").write_text(json.dumps(settings.pop("image_processor")))
    (folder / "processor_config.json").write_text(json.dumps(settings))


def test_a_folder_in_the_older_spelling_is_the_same_model(published, tmp_path):
    _, folder = published
    older(folder, tmp_path)
    model, again = load_model(folder), load_model(tmp_path)
    assert again.system.config == model.system.config and again.processor.config == model.processor.config
    expected = model.system.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in again.system.state_dict().items())


def test_converted_to_weft_and_back_it_is_what_it_was(published, tmp_path):
    _, folder = published
    ours = convert(folder, tmp_path / "weft", to="weft")
    back = convert(ours, tmp_path / "back")
    (first, processor), (again, written) = reference(folder), reference(back)
    assert type(written) is type(processor)
    expected, found = first.state_dict(), again.state_dict()
    assert expected.keys() == found.keys()
    assert all(torch.equal(value, expected[name]) for name, value in found.items())
    model = load_model(ours)
    assert model.processor.config == load_model(back).processor.config
    assert_same(model, back)
    again.save_pretrained(tmp_path / "theirs")  # and what is written is a folder that the library can write itself
    written.save_pretrained(tmp_path / "theirs")
    assert_same(load_model(tmp_path / "theirs"), back)


def test_weft_chat_answers_as_the_reference_does(published, tmp_path):
    _, folder = published
    PICTURE.save(tmp_path / "picture.png")
    model, (theirs, processor) = load_model(folder), reference(folder)
    with torch.no_grad():
        ids = said(theirs, processor, model.processor.encode(QUESTION, reply=True).text, 6)
    arguments = ["chat", str(folder), "--image", str(tmp_path / "picture.png"), "--prompt", WORDS]
    result = CliRunner().invoke(app, [*arguments, "--max-new-tokens", "6", "--device", "cpu"])
    assert result.exit_code == 0, result.output
    words = model.processor.decode(ids).split()
    assert words == result.output.split()[-len(words) :] and words


@pytest.mark.parametrize("published", ["blip-2 on T5", "instructblip on Vicuna"], indirect=True)
def test_weft_eval_measures_it(published):
    _, folder = published
    arguments = ["eval", str(folder), "--set", "num_per_type=2", "--set", "types=presence", "--device", "cpu", "--json"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert '"presence"' in result.output


def trained(recipe, tokenizer: Tokenizer) -> Model:
    """A tiny recipe's last system with weights under which pictures matter."""
    stage = recipe.stages[-1]
    system = randomise(stage.system.build())
    return Model(system, stage.processor.build(tokenizer, stage.system))


@pytest.mark.parametrize("recipe", [blip_2, instructblip])
def test_a_model_of_ones_own_says_the_same_in_transformers(recipe, tmp_path):
    model = trained(recipe.tiny(), tiny_tokenizer(20))
    save_model(model, tmp_path / "weft")
    assert_same(model, convert(tmp_path / "weft", tmp_path / "transformers", settings=ONE_EPS))


@pytest.mark.parametrize("recipe", [blip_2, instructblip])
def test_without_a_row_for_images_the_tables_grow_by_rows_that_nothing_says(recipe, tmp_path):
    words = Tokenizer.train(["a red 7 on a mat"], 300, ("<pad>", "<s>", "</s>"))
    made = recipe.tiny()
    stage = made.stages[-1]
    language_model = replace(stage.system.language_model, vocabulary=words.vocabulary)
    stage = replace(stage, system=replace(stage.system, language_model=language_model))
    model = trained(replace(made, stages=(stage,)), words.with_instructions(words))
    save_model(model, tmp_path / "weft")
    folder = convert(tmp_path / "weft", tmp_path / "transformers", settings=ONE_EPS)
    theirs, processor = reference(folder)
    rows = -(-(words.vocabulary + 1) // 64) * 64
    assert len(theirs.get_input_embeddings().weight) == rows
    assert theirs.config.image_token_index == words.vocabulary == processor.tokenizer.convert_tokens_to_ids("<image>")
    assert_same(model, folder)


def test_what_the_layout_cannot_say_is_refused(tmp_path):
    model = trained(blip_2.tiny(), tiny_tokenizer(20))
    processor = model.processor

    def refused(match: str, settings=ONE_EPS, **changes) -> None:
        changed = replace(processor.config, **changes).build(processor.tokenizer, processor.system)
        folder = tmp_path / match.split()[0]
        save_model(Model(model.system, changed), folder)
        with pytest.raises(CheckpointError, match=match):
            convert(folder, tmp_path / "transformers", settings=settings)
        assert not (tmp_path / "transformers").exists()

    refused("pictures before all text, the template 'minigpt_4' puts them into it", template="minigpt_4")
    refused("resized to a square", transforms={"image": ImageTransform(size=64)})
    refused("one eps for all norms .* feature_norm_eps=1e-06", settings=())
    with pytest.raises(ConfigError, match=r"encoder\.width: the model's weights are of other sizes"):
        convert(tmp_path / "one", tmp_path / "other", to="weft", settings=[("streams.image.encoder.width", "128")])
