"""EVA-CLIP in the folders that it is published in: `open_clip`'s of a whole model, `timm`'s of a tower, and both at once."""

import json
import warnings

import pytest
import torch
import torch.nn.functional as F
from reference_models import assert_close, randomise
from safetensors.torch import save_file
from stock_pictures import noise, stock_values
from test_clip_folder import CAPTIONS, tokenizer
from test_eva_clip import JOINT, equations, in_open_clip_names, in_timm_names, published_weights, tower

import weft
from weft.core.conversation import Media
from weft.core.errors import CheckpointError
from weft.data.images import EvenCentreTransform
from weft.encoders.clip import ClipText
from weft.encoders.eva_clip import EvaClipVision
from weft.recipes.loading import load_embedder, load_system
from weft.recipes.starting_weights import starting_weights
from weft.systems.dual_encoder import DualEncoder

transformers = pytest.importorskip("transformers")

SIZE = 30
MEAN, STD = [0.48, 0.46, 0.41], [0.27, 0.26, 0.28]
NAMED = {  # the models of `timm` that the published configs name, by the blocks that they have
    "pre_norm": "eva_giant_patch14_224", "sub_norm": "eva02_base_patch16_clip_224",
    "residual_post_norm": "eva02_enormous_patch14_clip_224",
}  # fmt: skip


@pytest.fixture
def tiny_sizes(monkeypatch):
    """The published names stand for small towers: `open_clip`'s config gives a name and no sizes."""
    small = {"g-14": tower("pre_norm"), "b-16": tower("sub_norm", 3), "e-14": tower("residual_post_norm")}
    monkeypatch.setattr(EvaClipVision.Config, "sizes", classmethod(lambda cls: small))


def write(folder, name: str, value: dict) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(json.dumps(value, indent=2))


def text_tower(words):
    sizes = {"hidden_size": 32, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.CLIPTextConfig(
        **sizes, vocab_size=len(words), projection_dim=JOINT, max_position_embeddings=24, hidden_act="gelu",
        bos_token_id=words.bos_token_id, eos_token_id=words.eos_token_id,
    )  # fmt: skip
    return randomise(transformers.CLIPTextModelWithProjection(config))


def open_clip_folder(folder, block: str, weights: str = "open_clip_model.safetensors", seed: int = 0):
    """What `open_clip` pushes to the hub: config, weights, tokenizer. Returns the reference's parts."""
    words = tokenizer()
    theirs, state = text_tower(words), published_weights(block)
    state["head.bias"] = state["head.bias"] + seed
    model = {
        "embed_dim": JOINT,
        "vision_cfg": {
            "image_size": SIZE, "timm_model_name": NAMED[block], "timm_model_pretrained": False, "timm_pool": "token",
            "timm_proj": None,
        },
        "text_cfg": {"context_length": 24, "vocab_size": len(words), "width": 32, "heads": 2, "layers": 2},
        "custom_text": True,
    }  # fmt: skip
    stated = {"mean": MEAN, "std": STD, "interpolation": "bicubic", "resize_mode": "shortest"}
    write(folder, "open_clip_config.json", {"model_cfg": model, "preprocess_cfg": stated})
    whole = in_timm_names(state) | in_open_clip_names(theirs) | {"logit_scale": torch.tensor(3.0)}
    whole = {key: value.contiguous() for key, value in whole.items()}
    (save_file if weights.endswith("safetensors") else torch.save)(whole, folder / weights)
    words.save_pretrained(folder)
    return state, theirs, words


def timm_folder(folder, block: str, seed: int = 0, classes: int = JOINT, **stated):
    """What `timm` pushes to the hub: a config with `pretrained_cfg`, here with the arguments of a small model, and weights."""
    state = published_weights(block)
    state["head.bias"] = state["head.bias"] + seed
    arguments = {"img_size": SIZE, "patch_size": 7, "embed_dim": 48, "depth": 3, "num_heads": 3, "mlp_ratio": 64.1 / 48}
    if block == "sub_norm":
        arguments["ref_feat_shape"] = [3, 3]
    pretrained = {
        "tag": "merged2b", "custom_load": False, "input_size": [3, SIZE, SIZE], "fixed_input_size": True,
        "interpolation": "bicubic", "crop_pct": 0.9, "crop_mode": "center", "mean": MEAN, "std": STD, "num_classes": classes,
        "pool_size": None, "first_conv": "patch_embed.proj", "classifier": "head", "license": "mit",
    }  # fmt: skip
    config = {
        "architecture": NAMED[block].replace("14_224", "14_clip_224") if block == "pre_norm" else NAMED[block],
        "num_classes": classes, "num_features": 48, "global_pool": "token", "model_args": arguments,
        "pretrained_cfg": pretrained | stated,
    }  # fmt: skip
    write(folder, "config.json", config)
    named = {key.removeprefix("visual.trunk."): value.contiguous() for key, value in in_timm_names(state).items()}
    named = {key: value for key, value in named.items() if classes or not key.startswith("head.")}
    save_file(named, folder / "model.safetensors")
    return state


@pytest.mark.parametrize("weights", ["open_clip_model.safetensors", "open_clip_pytorch_model.bin"])
@pytest.mark.parametrize("block", NAMED)
@torch.no_grad()
def test_an_open_clip_folder_is_a_dual_encoder_and_has_a_tower(tmp_path, tiny_sizes, block, weights):
    state, theirs, words = open_clip_folder(tmp_path, block, weights)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ours = load_embedder(tmp_path)
    assert ours.system.logit_scale == 3.0 and ours.processor.config.template == "clip_text"
    image = noise(44, 33)  # 40 x 30 once resized: the centre begins at pixel 5
    pixels = stock_values(image, SIZE, SIZE, MEAN, STD)[None]
    *_, expected = equations(state, pixels, block, 3)
    assert_close(ours.media([Media(image)]), F.normalize(expected, dim=-1))
    told = words(list(CAPTIONS), padding=True, return_tensors="pt", return_token_type_ids=False)
    assert_close(ours.texts(CAPTIONS), F.normalize(theirs(**told).text_embeds, dim=-1))
    alone = weft.load_encoder(tmp_path)
    assert alone.transform == EvenCentreTransform(size=SIZE, mean=tuple(MEAN), std=tuple(STD))
    assert {"logit_scale", "text.positional_embedding"} < set(alone.dropped)
    assert_close(alone.encoder.pool(pixels), expected)


@pytest.mark.parametrize("block", NAMED)
@torch.no_grad()
def test_a_timm_folder_is_a_tower_with_its_own_test_crop(tmp_path, block):
    state = timm_folder(tmp_path, block)
    loaded = weft.load_encoder(tmp_path)
    image = noise(60, 41)
    pixels = loaded.transform.apply(image)[None]
    resized = 33  # of which 0.9 are kept, rounded down
    assert (pixels[0] - stock_values(image, SIZE, resized, MEAN, STD)).abs().max() < 1e-5
    *hidden, pooled = equations(state, pixels, block, 3)
    assert loaded.dropped == {}
    assert_close(loaded.encoder.pool(pixels), pooled)
    config = loaded.encoder.config
    found = loaded.encoder(pixels, torch.arange(1), (config.layout(),)).values
    assert_close(found, hidden[config.feature_layer][:, 1:])


def test_a_timm_tower_without_classes_serves_features_alone(tmp_path):
    timm_folder(tmp_path, "sub_norm", classes=0)
    loaded = weft.load_encoder(tmp_path)
    assert loaded.encoder.head is None and "behind the last hidden state" in loaded.dropped["norm.weight"]


@pytest.mark.parametrize(
    ("stated", "resized", "squash", "kind"),
    [
        ({"crop_pct": 1.0}, 30, False, "BICUBIC"),
        ({"crop_mode": "squash", "interpolation": "bilinear"}, 33, True, "BILINEAR"),
        ({"crop_pct": None, "crop_mode": None, "interpolation": ""}, 34, False, "BICUBIC"),
    ],
    ids=str,
)
def test_the_values_are_those_of_timms_test_transform(tmp_path, stated, resized, squash, kind):
    timm_folder(tmp_path, "sub_norm", **stated)
    transform = weft.load_encoder(tmp_path).transform
    for image in (noise(60, 41), noise(30, 47), noise(31, 200)):
        expected = stock_values(image, SIZE, resized, MEAN, STD, squash, kind)
        assert (transform.apply(image) - expected).abs().max() < 1e-5  # in deviations: rounding of the normalisation only


@torch.no_grad()
def test_of_a_folder_with_both_the_tower_is_timms_and_the_whole_model_open_clips(tmp_path, tiny_sizes):
    """The weights differ here, to tell them apart; the preprocessing is the one that the model was trained with."""
    joint, _, _ = open_clip_folder(tmp_path, "sub_norm", seed=1)
    state = timm_folder(tmp_path, "sub_norm", seed=2)
    alone, whole = weft.load_encoder(tmp_path), load_system(tmp_path).system
    assert torch.equal(alone.encoder.head.bias, state["head.bias"])
    assert isinstance(whole, DualEncoder) and torch.equal(whole.media.head.bias, joint["head.bias"])
    assert alone.transform == EvenCentreTransform(size=SIZE, mean=tuple(MEAN), std=tuple(STD))


def test_a_recipes_tower_starts_from_a_timm_folder(tmp_path):
    timm_folder(tmp_path, "sub_norm")
    media, text = tower("sub_norm", 3), ClipText.Config.tiny()
    system = DualEncoder.Config(media=media, text=text, embedding_width=JOINT, projected=("text",)).build()
    fill = starting_weights([f"media={tmp_path}"])
    assert fill is not None
    fill(system)
    assert torch.equal(system.media.head.bias, published_weights("sub_norm")["head.bias"])


# what cannot be opened


def changed(folder, name: str, change: dict, *path: str) -> None:
    """A JSON file with other values somewhere inside."""
    saved = inner = json.loads((folder / name).read_text())
    for key in path:
        inner = inner[key]
    inner.update(change)
    write(folder, name, saved)


@pytest.mark.parametrize(
    ("path", "change", "said"),
    [
        (
            ("model_cfg", "vision_cfg"),
            {"timm_model_name": "vit_base_patch16_siglip_224"},
            "describes timm's vit_base_patch16_sig",
        ),
        (("model_cfg",), {"vision_cfg": {"layers": 12, "width": 768, "patch_size": 32}}, "a tower of open_clip's own"),
        (("model_cfg",), {"text_cfg": {"hf_model_name": "xlm-roberta-base"}}, "hf_model_name='xlm-roberta-base'"),
        (("model_cfg", "vision_cfg"), {"timm_pool": "avg"}, "timm_pool='avg'"),
        (("model_cfg",), {"vision_cfg": None}, "no model_cfg with embed_dim, vision_cfg"),
        (("model_cfg",), {"embed_dim": "wide"}, "no model_cfg with embed_dim"),
        (("preprocess_cfg",), {"interpolation": "random"}, "preprocess_cfg has interpolation='random'"),
        (("preprocess_cfg",), {"resize_mode": "longest"}, "resize_mode='longest'"),
        (("preprocess_cfg",), {"mean": [0.5, 0.5]}, r"mean=\[0\.5, 0\.5\]"),
        (("preprocess_cfg",), {"std": [0.5, 0.0, 0.5]}, "std="),
        (("preprocess_cfg",), {"size": 224}, "size=224, the encoder takes 30 pixels"),
    ],
    ids=str,
)
def test_an_open_clip_config_that_weft_cannot_follow_is_one_line(tmp_path, tiny_sizes, path, change, said):
    open_clip_folder(tmp_path, "sub_norm")
    changed(tmp_path, "open_clip_config.json", change, *path)
    for load in (weft.load_encoder, load_system):
        with pytest.raises(CheckpointError, match=said) as caught:
            load(tmp_path)
        assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("path", "change", "said"),
    [
        ((), {"architecture": "eva_giant_patch14_224"}, "model_type 'eva_giant_patch14_224'; Weft reads"),
        ((), {"global_pool": "avg"}, "pools with 'avg'"),
        (("model_args",), {"init_values": 1e-5}, "no place for model_args init_values"),
        (("model_args",), {"img_size": [30, 60]}, "square pictures"),
        (("pretrained_cfg",), {"input_size": [4, 30, 30]}, "3 channels"),
        (("pretrained_cfg",), {"crop_pct": 1.2}, "crop_pct=1.2"),
        (("pretrained_cfg",), {"crop_mode": "border"}, "crop_mode='border'"),
        ((), {"model_args": {"depth": "deep"}}, "config.json"),
    ],
    ids=str,
)
def test_a_timm_config_that_weft_cannot_follow_is_one_line(tmp_path, path, change, said):
    timm_folder(tmp_path, "sub_norm")
    changed(tmp_path, "config.json", change, *path)
    with pytest.raises(CheckpointError, match=said) as caught:
        weft.load_encoder(tmp_path)
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


def test_folders_without_weights_or_with_half_of_them_are_refused_by_name(tmp_path, tiny_sizes):
    open_clip_folder(tmp_path / "whole", "sub_norm")
    (tmp_path / "whole" / "open_clip_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="holds no weights"):
        weft.load_encoder(tmp_path / "whole")
    state = timm_folder(tmp_path / "tower", "sub_norm")
    named = {key.removeprefix("visual.trunk."): value for key, value in in_timm_names(state).items()}
    save_file(
        {key: value.contiguous() for key, value in named.items() if key != "norm.bias"}, tmp_path / "tower/model.safetensors"
    )
    with pytest.raises(CheckpointError, match=r"1 missing \((visual\.)?norm\.bias\)"):
        weft.load_encoder(tmp_path / "tower")
    with pytest.raises(CheckpointError, match="holds a eva_clip_vision alone"):
        load_system(tmp_path / "tower")
