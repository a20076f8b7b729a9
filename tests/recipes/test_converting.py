"""`weft convert`: a model written for `transformers` loads there without a word, says the same, and comes back."""

import json
import logging
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from test_loading import PICTURE, QUESTION, SHORT, SPECIAL, tiny_model

from weft.core.conversation import Conversation, Media, assistant, system, user
from weft.core.errors import CheckpointError, ConfigError, RunError
from weft.core.interfaces import System
from weft.data.collate import collate
from weft.data.images import HALF, ImageTransform
from weft.data.processor import Processor
from weft.data.rendering import render
from weft.data.templates import TEMPLATES
from weft.data.tokenizers import Tokenizer
from weft.encoders.clip import ClipText, ClipVision
from weft.encoders.siglip import SiglipText, SiglipVision
from weft.inference.model import Model
from weft.projectors.mlp import MLP
from weft.recipes.chat_template import jinja, recognise
from weft.recipes.converting import convert
from weft.recipes.loading import load_model, load_system, save_model
from weft.systems.dual_encoder import DualEncoder
from weft.systems.multimodal_lm import MultimodalLM
from weft.training.model_folder import write_model_folder

transformers = pytest.importorskip("transformers")


def text_only() -> Model:
    seeing = tiny_model()
    config = MultimodalLM.Config(language_model=seeing.system.config.language_model)
    built = config.build().eval()
    built.language_model = seeing.system.language_model
    return Model(built, Processor.Config(template="vicuna_v1").build(seeing.processor.tokenizer, config))


def loaded_by_transformers(folder, cls, caplog):
    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)
    try:
        model, info = cls.from_pretrained(folder, output_loading_info=True, local_files_only=True)
    finally:
        logger.removeHandler(caplog.handler)
    assert not any(info.values()), info
    said = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    # the library warns of its own defaults for SigLIP, and of the missing torchvision
    said = [text for text in said if "torchvision" not in text and "within the vocabulary (between 0 and 31999)" not in text]
    assert said == []
    return model.eval()


@torch.no_grad()
@pytest.mark.parametrize("special", [SPECIAL, (*SPECIAL, "<image>")], ids=["tokenizer without <image>", "tokenizer with it"])
def test_a_written_llava_folder_is_the_same_model_in_transformers(tmp_path, caplog, special):
    model = tiny_model(special)
    rows = model.system.config.language_model.vocabulary
    save_model(model, tmp_path / "weft")
    convert(tmp_path / "weft", tmp_path / "theirs")
    theirs = loaded_by_transformers(tmp_path / "theirs", transformers.LlavaForConditionalGeneration, caplog)
    processor = transformers.AutoProcessor.from_pretrained(tmp_path / "theirs", local_files_only=True)
    question = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what is this?"}]}
    prompt = processor.apply_chat_template([question], add_generation_prompt=True)
    inputs = processor(images=Image.fromarray(PICTURE), text=prompt, return_tensors="pt")

    again = load_model(tmp_path / "theirs")
    sample = again.processor.encode(QUESTION, reply=True)
    assert inputs["input_ids"][0].tolist() == sample.tokens.tolist()
    batch = collate([sample])
    assert (batch.media["image"].units - inputs["pixel_values"]).abs().max() < 1e-5  # float32 against float64 normalisation
    expected = theirs(**inputs).logits
    assert (again.system(batch).logits() - expected).abs().max() <= 1e-4 * max(1.0, expected.abs().max().item())

    # the published trap: the marker's id may lie behind the vocabulary, in a padded table
    assert theirs.config.image_token_index == processor.tokenizer.convert_tokens_to_ids("<image>")
    assert theirs.config.text_config.vocab_size == (rows if "<image>" in special else -(-(rows + 1) // 64) * 64)
    said = theirs.generate(**inputs, max_new_tokens=12)[0, inputs["input_ids"].shape[1] :].tolist()
    reply = model.generate([QUESTION], SHORT)[0]
    assert [token for token in said if token not in model.processor.stop_ids] == list(reply.token_ids)
    assert again.generate([QUESTION], SHORT)[0].token_ids == reply.token_ids


@pytest.mark.parametrize("tied", [False, True])
def test_the_way_there_and_back_changes_no_bit(tmp_path, tied):
    model = tiny_model((*SPECIAL, "<image>"), tied_head=tied)
    save_model(model, tmp_path / "weft")
    convert(tmp_path / "weft", tmp_path / "theirs", shard_bytes=100_000)
    assert (tmp_path / "theirs" / "model.safetensors.index.json").is_file()
    convert(tmp_path / "theirs", tmp_path / "back", to="weft")
    for name in ("config.json", "processor.json", "tokenizer.json", "model.safetensors"):
        assert (tmp_path / "back" / name).read_bytes() == (tmp_path / "weft" / name).read_bytes(), name


@torch.no_grad()
def test_a_language_model_alone_is_written_as_llama(tmp_path, caplog):
    model = text_only()
    save_model(model, tmp_path / "weft")
    convert(tmp_path / "weft", tmp_path / "theirs")
    theirs = loaded_by_transformers(tmp_path / "theirs", transformers.LlamaForCausalLM, caplog)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "theirs", local_files_only=True)
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "the cat?"}], add_generation_prompt=True, tokenize=False
    )
    inputs = tokenizer(prompt, return_tensors="pt")
    sample = model.processor.encode(Conversation((user("the cat?"),)), reply=True)
    assert inputs["input_ids"][0].tolist() == sample.tokens.tolist()
    expected = theirs(input_ids=inputs["input_ids"]).logits
    found = load_model(tmp_path / "theirs").system(collate([sample])).logits()
    assert (found - expected).abs().max() <= 1e-4 * max(1.0, expected.abs().max().item())


def dual_encoder(family: str) -> tuple[System, Processor]:
    tokenizer = Tokenizer.train(["a red seven", "two"] * 3, 300, SPECIAL)
    rows = {"vocabulary": tokenizer.vocabulary}
    if family == "CLIP":
        text = replace(ClipText.Config.tiny(), end_token=tokenizer.end_id, **rows)
        config = DualEncoder.Config(media=ClipVision.Config.tiny(), text=text, embedding_width=16)
        form, transform = "clip_text", ImageTransform(size=config.media.image_size)
    else:
        text = replace(SiglipText.Config.tiny(), **rows)
        config = DualEncoder.Config(media=SiglipVision.Config.tiny(), text=text, initial_scale=10.0, initial_bias=-10.0)
        form, transform = "siglip_text", ImageTransform(size=config.media.image_size, resize="direct", mean=HALF, std=HALF)
    torch.manual_seed(0)
    built = config.build().eval()
    with torch.no_grad():
        for parameter in built.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=parameter[0].numel() ** -0.5)
    return built, Processor.Config(template=form, transforms={"image": transform}).build(tokenizer, config)


@torch.no_grad()
@pytest.mark.parametrize("family", ["CLIP", "Siglip"])
def test_a_dual_encoder_is_written_in_its_own_layout(tmp_path, caplog, family):
    built, processor = dual_encoder(family)
    write_model_folder(tmp_path / "weft", built, processor)
    convert(tmp_path / "weft", tmp_path / "theirs")
    theirs = loaded_by_transformers(tmp_path / "theirs", getattr(transformers, f"{family}Model"), caplog)
    reader = transformers.AutoProcessor.from_pretrained(tmp_path / "theirs", local_files_only=True)
    captions = ["a red seven", "two"]
    padding = {"padding": "max_length", "max_length": built.config.text.context} if family == "Siglip" else {"padding": True}
    inputs = reader(text=captions, images=[Image.fromarray(PICTURE)] * 2, return_tensors="pt", **padding)
    if family == "Siglip":
        del inputs["attention_mask"]  # the published tower reads its padding
    expected = theirs(**inputs)
    for folder in ("weft", "theirs"):
        again = load_system(tmp_path / folder)
        samples = [again.processor.encode(Conversation((user(Media(PICTURE)), assistant(c)))) for c in captions]
        found = again.system(collate(samples)).embeddings
        assert (found["media"] - expected.image_embeds).abs().max() < 1e-5  # unit vectors in float32
        assert (found["text"] - expected.text_embeds).abs().max() < 1e-5


def test_precision_can_be_chosen(tmp_path):
    save_model(tiny_model(), tmp_path / "weft")
    convert(tmp_path / "weft", tmp_path / "theirs", dtype=torch.bfloat16)
    assert load_model(tmp_path / "theirs").system.language_model.embedding.weight.dtype == torch.bfloat16


def test_a_target_that_holds_something_is_refused_and_untouched(tmp_path):
    save_model(tiny_model(), tmp_path / "weft")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "diary.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="is not empty"):
        convert(tmp_path / "weft", tmp_path / "taken")
    assert [p.name for p in (tmp_path / "taken").iterdir()] == ["diary.txt"]
    with pytest.raises(ConfigError, match=r"unknown layout 'safetensor'; .*transformers"):
        convert(tmp_path / "weft", tmp_path / "new", to="safetensor")


def test_a_system_that_the_layout_cannot_hold_leaves_nothing_behind(tmp_path):
    model = tiny_model()
    deep = replace(model.system.config.streams["image"], projector=MLP.Config(depth=3))
    config = replace(model.system.config, streams={"image": deep})
    save_model(Model(config.build(), model.processor), tmp_path / "weft")
    with pytest.raises(CheckpointError, match="not MLP of depth 2"):
        convert(tmp_path / "weft", tmp_path / "theirs")
    assert [p.name for p in tmp_path.iterdir()] == ["weft"]


def test_a_full_disk_leaves_nothing_behind(tmp_path, monkeypatch):
    save_model(tiny_model(), tmp_path / "weft")

    def full(state, path, metadata):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    for to in ("transformers", "weft"):
        with pytest.raises((RunError, CheckpointError), match=r"disk is full|No space left"):
            convert(tmp_path / "weft", tmp_path / "new", to=to)
    assert [p.name for p in tmp_path.iterdir()] == ["weft"]


@pytest.mark.parametrize("name", [name for name, template in TEMPLATES.items() if not template.caption])
def test_a_chat_template_renders_in_jinja_as_it_does_in_weft(name):
    """Several turns, an image after words, spaces at the edges, quotes, other alphabets."""
    template = TEMPLATES[name]
    picture = Media(np.zeros((2, 2, 3), np.uint8))
    first = [user('  Was ist "das"? ', picture, " und 这? "), assistant("Ein {{ Zeichen }}.\n"), user(" And now? ")]
    for messages in (first, [system("Be brief."), *first]):
        reply = name != "plain"
        ours = render(Conversation(tuple(messages)), template, {"image": "<image>"}, str, reply=reply).text
        rendered = transformers.utils.chat_template_utils.render_jinja_template(
            conversations=[[_as_dictionary(m) for m in messages]], chat_template=jinja(template), add_generation_prompt=reply
        )[0][0]
        assert rendered == ours
    assert recognise(jinja(template)) == name


def _as_dictionary(message) -> dict:
    parts = [{"type": "image"} if isinstance(p, Media) else {"type": "text", "text": p.text} for p in message.parts]
    return {"role": message.role, "content": parts if any(isinstance(p, Media) for p in message.parts) else parts[0]["text"]}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"text_config": 7}, "lacks a field or misstates it"),
        ({"vision_feature_layer": [-2, -5]}, r"vision_feature_layer=\[-2, -5\]"),
        ({"vision_config": {"model_type": "pixtral"}}, "vision_config.model_type='pixtral'"),
        ({"text_config": {"model_type": "llama", "rope_scaling": {"type": "yarn"}}}, "rotary scaling 'yarn'"),
        ({"text_config": {"model_type": "llama", "rope_scaling": {"rope_type": "llama3"}}}, "KeyError: 'factor'"),
        ({"text_config": {"model_type": "qwen2", "use_sliding_window": True}}, "use_sliding_window=True"),
        ({"text_config": {"model_type": "llama", "attention_bias": True}}, "attention_bias=True"),
    ],
)
def test_an_upstream_config_that_weft_cannot_follow_is_refused(tmp_path, change, said):
    save_model(tiny_model(), tmp_path / "weft")
    convert(tmp_path / "weft", tmp_path / "theirs")
    path = tmp_path / "theirs" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(CheckpointError, match=said) as caught:
        load_model(tmp_path / "theirs")
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("spelling", ["preprocessor", "processor"])
def test_an_image_processor_that_weft_cannot_follow_is_refused(tmp_path, spelling):
    save_model(tiny_model(), tmp_path / "weft")
    convert(tmp_path / "weft", tmp_path / "theirs")
    path = tmp_path / "theirs" / f"{spelling}_config.json"
    saved = json.loads(path.read_text())
    settings = saved if spelling == "preprocessor" else saved.setdefault("image_processor", {})
    settings["resample"] = 1
    if spelling == "processor":
        (tmp_path / "theirs" / "preprocessor_config.json").unlink()
    path.write_text(json.dumps(saved))
    with pytest.raises(CheckpointError, match="resample=1; Weft resizes with bicubic or bilinear"):
        load_model(tmp_path / "theirs")
