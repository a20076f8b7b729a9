"""Encoders open from folders that `transformers` wrote: alone, out of whole models, by hub name; with their preprocessing."""

import json
import os
import pickle
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from reference_models import assert_close, randomise
from safetensors.torch import load_file, save_file

import weft
from weft.core.errors import CheckpointError
from weft.core.layout import MediaLayout
from weft.data.audio import AudioTransform, Waveform, WaveformTransform
from weft.data.clap_audio import ClapAudioTransform
from weft.data.images import ImageTransform
from weft.recipes.catalogue import tiny_recipe
from weft.recipes.encoder_loading import LoadedEncoder
from weft.recipes.starting_weights import starting_weights

transformers = pytest.importorskip("transformers")

SHAPE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
VISION = {**SHAPE, "image_size": 32, "patch_size": 8}
TEXT = {**SHAPE, "vocab_size": 64, "bos_token_id": 0, "eos_token_id": 63}
LLAMA = {"model_type": "llama", "num_key_value_heads": 2, **TEXT}
IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
CROP = {"crop_size": {"height": 32, "width": 32}}
SQUARE = {"size": {"height": 32, "width": 32}}
PIXELS = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def clip_vision():
    return transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**VISION))


def clip():
    return transformers.CLIPModel(transformers.CLIPConfig(vision_config=VISION, text_config=TEXT, projection_dim=16))


def siglip():
    return transformers.SiglipModel(transformers.SiglipConfig(vision_config=VISION, text_config=TEXT))


def llava(kind="clip_vision_model", **options):
    config = transformers.LlavaConfig(
        vision_config={"model_type": kind, **VISION}, text_config=LLAMA, image_token_index=63, **options
    )
    return transformers.LlavaForConditionalGeneration(config)


def blip_2():
    decoder = {"model_type": "opt", **SHAPE, "ffn_dim": 64, "vocab_size": 64, "word_embed_proj_dim": 32}
    config = transformers.Blip2Config(
        vision_config=VISION, qformer_config={**TEXT, "encoder_hidden_size": 32}, text_config=decoder, num_query_tokens=4
    )
    return transformers.Blip2ForConditionalGeneration(config)


def dinov2_with_registers():
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 48, "patch_size": 8}
    return transformers.Dinov2WithRegistersModel(transformers.Dinov2WithRegistersConfig(**sizes, num_register_tokens=3))


def resnet():
    config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[16, 32], depths=[1, 2], num_labels=3)
    return transformers.ResNetForImageClassification(config)


def whisper():
    layers = {f"{side}_{name}": 2 for side in ("encoder", "decoder") for name in ("layers", "attention_heads")}
    config = transformers.WhisperConfig(
        **layers, d_model=32, encoder_ffn_dim=64, decoder_ffn_dim=64, num_mel_bins=80, max_source_positions=50,
        max_target_positions=16, vocab_size=64, pad_token_id=0, bos_token_id=0, eos_token_id=1, decoder_start_token_id=0,
    )  # fmt: skip
    return transformers.WhisperForConditionalGeneration(config)


def hubert():
    config = transformers.HubertConfig(
        **SHAPE, conv_dim=[16] * 7, num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=4, vocab_size=20
    )
    return transformers.HubertForCTC(config)


def clap(**changes):
    audio = {
        "spec_size": 64, "num_mel_bins": 16, "window_size": 4, "patch_embeds_hidden_size": 12, "hidden_size": 24,
        "depths": [2, 2], "num_attention_heads": [2, 3], "num_hidden_layers": 2,
    }  # fmt: skip
    return transformers.ClapModel(transformers.ClapConfig(audio_config=audio | changes, text_config=TEXT))


def written(folder, model, *preprocessors):
    """A folder as `transformers` writes it."""
    randomise(model).save_pretrained(folder)
    for preprocessor in preprocessors:
        preprocessor.save_pretrained(folder)
    return folder


def features(loaded: LoadedEncoder, units: torch.Tensor, layout: MediaLayout | None = None) -> torch.Tensor:
    layouts = (layout or loaded.encoder.config.layout(),) * len(units)
    with torch.no_grad():
        return loaded.encoder(units, torch.arange(len(units)), layouts).values


@torch.no_grad()
def hidden(tower, pixels, layer=-2):
    return tower(pixels, output_hidden_states=True).hidden_states[layer]


# each kind, its values and its preprocessing

CLIP_PROCESSOR = transformers.CLIPImageProcessorPil(size={"shortest_edge": 32}, **CROP)
IMAGES = {
    "CLIP alone": (clip_vision, CLIP_PROCESSOR, lambda m, x: hidden(m, x)[:, 1:]),
    "CLIP": (clip, CLIP_PROCESSOR, lambda m, x: hidden(m.vision_model, x)[:, 1:]),
    "SigLIP": (
        siglip,
        transformers.SiglipImageProcessorPil(**SQUARE),
        lambda m, x: hidden(m.vision_model, x),
    ),
    "LLaVA": (llava, CLIP_PROCESSOR, lambda m, x: hidden(m.model.vision_tower, x)[:, 1:]),
    "LLaVA with its class token": (
        lambda: llava(vision_feature_layer=-1, vision_feature_select_strategy="full"),
        CLIP_PROCESSOR,
        lambda m, x: hidden(m.model.vision_tower, x, -1),
    ),
    "LLaVA with SigLIP": (
        lambda: llava("siglip_vision_model", vision_feature_select_strategy="full"),
        transformers.SiglipImageProcessorPil(**SQUARE),
        lambda m, x: hidden(m.model.vision_tower, x),
    ),
    "BLIP-2": (
        blip_2,
        transformers.BlipImageProcessorPil(**SQUARE),
        lambda m, x: m.vision_model(x).last_hidden_state,
    ),
    "DINOv2": (
        dinov2_with_registers,
        transformers.BitImageProcessorPil(size={"shortest_edge": 37}, **CROP, **IMAGENET),
        lambda m, x: hidden(m, x, -1)[:, 4:],
    ),
    "ResNet": (
        resnet,
        transformers.ConvNextImageProcessorPil(size={"shortest_edge": 32}, crop_pct=0.875, **IMAGENET),
        lambda m, x: m.resnet(x).last_hidden_state.flatten(2).transpose(1, 2),
    ),
}


@pytest.mark.parametrize("name", IMAGES)
def test_pictures_become_the_references_features(tmp_path, name):
    make, processor, reference = IMAGES[name]
    theirs = make()
    loaded = weft.load_encoder(written(tmp_path, theirs, processor))
    assert isinstance(loaded.transform, ImageTransform) and loaded.transform.unit_shape == loaded.encoder.config.unit_shape
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 33, 3), dtype=np.uint8))
    pixels = torch.as_tensor(np.asarray(processor(image, return_tensors="np")["pixel_values"]))
    # in units of a deviation: rounding of the normalisation only
    assert (loaded.transform.apply(image)[None] - pixels).abs().max() < 1e-5
    with torch.no_grad():
        assert_close(features(loaded, pixels), reference(theirs, pixels))


def test_every_key_of_a_whole_model_is_used_or_dropped_with_a_reason(tmp_path):
    loaded = weft.load_encoder(written(tmp_path, llava()))
    keys = set(load_file(tmp_path / "model.safetensors"))
    dropped = {key for key, reason in loaded.dropped.items() if reason.strip()}
    # the buffer of position ids, where a version writes one, belongs to the tower and is dropped too
    used = {key for key in keys if key.startswith("vision_tower.") and "position_ids" not in key}
    assert keys - dropped == used
    assert "rest of the whole model" in loaded.dropped["multi_modal_projector.linear_1.weight"]


@pytest.mark.parametrize("spelling", ["model.vision_tower.vision_model.", "vision_tower.vision_model.", "model.vision_tower."])
def test_other_spellings_of_the_tower_are_found(tmp_path, spelling):
    theirs = llava()
    written(tmp_path, theirs)
    file = tmp_path / "model.safetensors"
    renamed = {key.replace("vision_tower.", spelling, 1): value for key, value in load_file(file).items()}
    save_file(renamed, file)
    assert_close(features(weft.load_encoder(tmp_path), PIXELS), hidden(theirs.model.vision_tower, PIXELS)[:, 1:])


def test_a_file_without_a_parameter_of_the_tower_is_refused_by_name(tmp_path):
    written(tmp_path, llava())
    file = tmp_path / "model.safetensors"
    state = load_file(file)
    del state["vision_tower.encoder.layers.1.mlp.fc1.bias"]
    save_file(state, file)
    with pytest.raises(CheckpointError, match=r"1 missing \(encoder\.layers\.1\.mlp\.fc1\.bias\)"):
        weft.load_encoder(tmp_path)


def test_whisper_hears_what_the_reference_hears(tmp_path):
    extractor = transformers.WhisperFeatureExtractor(chunk_length=1)
    theirs = whisper()
    loaded = weft.load_encoder(written(tmp_path, theirs, extractor))
    assert loaded.transform == AudioTransform(num_mels=80, clip_seconds=1.0)
    assert "model.decoder.embed_tokens.weight" in loaded.dropped
    samples = np.random.default_rng(0).normal(0, 0.1, 12_000).astype(np.float32)
    unit = loaded.transform.open(Waveform(samples, 16_000), loaded.encoder.config.layout())
    expected = extractor(samples, sampling_rate=16_000, return_tensors="np")["input_features"]
    assert np.abs(unit.units - expected).max() < 1e-4  # logarithms of float32 sums
    spectrogram = torch.as_tensor(expected)
    with torch.no_grad():
        assert_close(features(loaded, spectrogram), theirs.model.encoder(spectrogram).last_hidden_state)


@pytest.mark.parametrize("standardise", [False, True])
def test_hubert_hears_what_the_reference_hears(tmp_path, standardise):
    extractor = transformers.Wav2Vec2FeatureExtractor(do_normalize=standardise)
    theirs = hubert()
    loaded = weft.load_encoder(written(tmp_path, theirs, extractor))
    assert loaded.transform == WaveformTransform(clip_seconds=10.0, standardise=standardise)
    assert "a head for one task" in loaded.dropped["lm_head.weight"]
    samples = np.random.default_rng(0).normal(0.1, 0.1, 4_000).astype(np.float32)
    unit = loaded.transform.open(Waveform(samples, 16_000), loaded.encoder.config.layout())
    expected = extractor(samples, sampling_rate=16_000, return_tensors="pt")["input_values"]
    assert_close(torch.as_tensor(unit.units), expected)
    with torch.no_grad():
        assert_close(features(loaded, expected, unit.layout), theirs.hubert(expected).last_hidden_state)


@pytest.mark.parametrize("alone", [False, True], ids=["CLAP", "its tower"])
def test_clap_hears_what_the_reference_hears(tmp_path, alone):
    extractor = transformers.ClapFeatureExtractor(feature_size=16, max_length_s=1, truncation="rand_trunc", frequency_min=50)
    theirs = clap().audio_model if alone else clap()
    loaded = weft.load_encoder(written(tmp_path, theirs, extractor))
    assert loaded.transform == ClapAudioTransform(num_mels=16, clip_seconds=1)
    assert loaded.encoder.config.num_frames == 101
    assert alone or {"logit_scale_a", "audio_projection.linear1.weight"} < set(loaded.dropped)
    samples = np.random.default_rng(0).normal(0, 0.1, 30_000).astype(np.float32)
    unit = loaded.transform.open(Waveform(samples, 48_000), loaded.encoder.config.layout())
    expected = torch.as_tensor(np.asarray(extractor(samples, sampling_rate=48_000)["input_features"])).float()
    assert (
        torch.as_tensor(unit.units) - expected[0].mT
    ).abs().max() < 1e-4  # decibels; the extractor rounds spectra to float32
    with torch.no_grad():
        grid = (theirs if alone else theirs.audio_model)(expected).last_hidden_state
        assert_close(features(loaded, expected[0].mT), grid.flatten(2).mT)


@pytest.mark.parametrize("seconds", [2.5, 0.6])
def test_clap_with_fusion_hears_what_the_reference_hears(tmp_path, seconds, monkeypatch):
    monkeypatch.setattr(np.random, "choice", lambda places: places[len(places) // 2])  # where Weft begins its clips
    extractor = transformers.ClapFeatureExtractor(max_length_s=1)
    theirs = clap(num_mel_bins=64, spec_size=128, enable_fusion=True)
    loaded = weft.load_encoder(written(tmp_path, theirs, extractor))
    assert loaded.transform == ClapAudioTransform(clip_seconds=1, lowest_hz=0.0, fused=True)
    assert loaded.encoder.config.unit_shape == (5, 64, 101)
    samples = np.random.default_rng(0).normal(0, 0.1, round(seconds * 48_000)).astype(np.float32)
    unit = loaded.transform.open(Waveform(samples, 48_000), loaded.encoder.config.layout())
    units = torch.as_tensor(unit.units)
    views = torch.as_tensor(np.asarray(extractor(samples, sampling_rate=48_000)["input_features"])).float()
    assert (units[:, :4].mT - views).abs().max() < 1e-4  # decibels; the extractor rounds spectra to float32
    with torch.no_grad():
        grid = theirs.audio_model(units[:, :4].mT, is_longer=torch.tensor([[seconds > 1]])).last_hidden_state
        assert_close(features(loaded, units), grid.flatten(2).mT)


def test_clap_without_fusion_does_not_take_fused_spectrograms(tmp_path):
    written(tmp_path, clap(), transformers.ClapFeatureExtractor(feature_size=16, truncation="fusion"))
    with pytest.raises(CheckpointError, match="truncation='fusion', not 'rand_trunc'"):
        weft.load_encoder(tmp_path)


def test_without_preprocessing_nothing_is_made_up(tmp_path):
    assert weft.load_encoder(written(tmp_path, clip_vision())).transform is None


def test_precision_can_be_chosen(tmp_path):
    encoder = weft.load_encoder(written(tmp_path, clip_vision()), dtype=torch.bfloat16).encoder
    assert {parameter.dtype for parameter in encoder.parameters()} == {torch.bfloat16}


# what cannot be opened


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model_type": "gpt_oss"}, "model_type 'gpt_oss'; Weft reads"),
        ({"model_type": "llama", "hidden_act": "silu"}, "which has no encoder"),
        ({"hidden_act": "tangent"}, "tangent"),
        ({"num_channels": 4}, "takes 3 channels"),
        ({"hidden_size": "wide"}, "config.json"),
    ],
    ids=str,
)
def test_a_config_that_weft_cannot_follow_is_one_line(tmp_path, change, said):
    written(tmp_path, clip_vision())
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(CheckpointError, match=said) as caught:
        weft.load_encoder(tmp_path)
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "change", [{"resample": 0}, {"do_normalize": False}, {"rescale_factor": 1.0}, {"crop_size": 40}, {"size": 16}], ids=str
)
def test_a_processor_that_weft_cannot_follow_is_one_line(tmp_path, change):
    written(tmp_path, clip_vision(), CLIP_PROCESSOR)
    path = tmp_path / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(CheckpointError, match=next(iter(change))):
        weft.load_encoder(tmp_path)


def test_a_feature_extractor_of_another_rate_is_refused(tmp_path):
    written(tmp_path, hubert(), transformers.Wav2Vec2FeatureExtractor(sampling_rate=8_000))
    with pytest.raises(CheckpointError, match="sampling_rate=8000, not 16000"):
        weft.load_encoder(tmp_path)


class Command:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_pickle_is_read_only_where_it_holds_nothing_but_tensors(tmp_path):
    theirs = clip_vision()
    written(tmp_path / "tower", theirs)
    safe = tmp_path / "tower" / "model.safetensors"
    torch.save(load_file(safe), tmp_path / "tower" / "pytorch_model.bin")
    safe.unlink()
    assert_close(features(weft.load_encoder(tmp_path / "tower"), PIXELS), hidden(theirs, PIXELS)[:, 1:])
    for write in (torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))):
        write({"weight": Command(tmp_path / "ran")}, tmp_path / "tower" / "pytorch_model.bin")
        with pytest.raises(CheckpointError, match=r"pytorch_model\.bin"):
            weft.load_encoder(tmp_path / "tower")
    assert not (tmp_path / "ran").exists()


# the hub's cache, without a connection


COMMITS = ("0" * 39 + "1", "0" * 39 + "2")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache as the hub's client lays it out: blobs, links to them by commit, and a branch that points to the second."""
    from huggingface_hub import constants

    repository = tmp_path / "hub" / "models--weft--tower"
    (repository / "blobs").mkdir(parents=True)
    (repository / "refs").mkdir()
    for seed, commit in enumerate(COMMITS):
        folder = tmp_path / commit
        randomise(clip_vision(), seed).save_pretrained(folder)
        CLIP_PROCESSOR.save_pretrained(folder)
        (repository / "snapshots" / commit).mkdir(parents=True)
        for file in folder.iterdir():
            blob = repository / "blobs" / f"{seed}{file.name}"
            shutil.copy(file, blob)
            (repository / "snapshots" / commit / file.name).symlink_to(blob)
    (repository / "refs" / "main").write_text(COMMITS[1])
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


def test_a_hub_name_opens_from_the_cache_at_its_revision(cache):
    def first(name: str, revision: str | None = None) -> torch.Tensor:
        return weft.load_encoder(name, revision=revision).encoder.class_embedding

    old, new = (first("weft/tower", commit) for commit in COMMITS)
    assert not torch.equal(old, new)
    assert torch.equal(first("weft/tower"), new) and torch.equal(first("weft/tower", "main"), new)
    assert torch.equal(first(f"weft/tower@{COMMITS[0]}"), old)


@pytest.mark.parametrize(("name", "revision"), [("weft/other", None), ("weft/tower", "f" * 40)])
def test_offline_and_not_in_the_cache_is_one_clear_error(cache, name, revision):
    with pytest.raises(CheckpointError, match=f"{name}.*nor in the local hub cache.*give a folder") as caught:
        weft.load_encoder(name, revision=revision)
    assert "\n" not in str(caught.value)


PUBLISHED = {  # what the repositories hold besides pictures and cards, and what is fetched of it
    "microsoft/msclap": (("CLAP_weights_2022.pth",), ("CLAP_weights_2023.pth", "clapcap_weights_2023.pth", "README.md")),
    "timm/eva02_base_patch16_clip_224.merged2b_s8b_b131k": (
        ("open_clip_config.json", "open_clip_pytorch_model.bin", "tokenizer.json", "vocab.json", "special_tokens_map.json"),
        ("merges.txt", ".gitattributes"),
    ),
    "timm/dm_nfnet_f0.dm_in1k": (("config.json", "model.safetensors"), ("pytorch_model.bin", "README.md")),
    "timm/eva02_base_patch16_clip_224.merged2b": (
        ("config.json", "model.safetensors", "open_clip_config.json", "open_clip_model.safetensors", "tokenizer.json"),
        ("pytorch_model.bin", "open_clip_pytorch_model.bin"),
    ),
    "laion/clap-htsat-unfused": (
        ("config.json", "preprocessor_config.json", "pytorch_model.bin", "tokenizer.json"),
        ("a.png",),
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_of_a_repository_the_files_that_are_read_are_fetched_and_torch_files_only_without_safetensors(
    name, monkeypatch, tmp_path
):
    import huggingface_hub
    from huggingface_hub.utils import filter_repo_objects

    wanted, other = PUBLISHED[name]
    fetched = {}

    def listed(self, repository, revision):
        files = [SimpleNamespace(rfilename=file) for file in (*wanted, *other)]
        return SimpleNamespace(siblings=files, sha=COMMITS[0])

    def download(repository, revision, allow_patterns):
        fetched[repository, revision] = set(filter_repo_objects((*wanted, *other), allow_patterns=allow_patterns))
        return tmp_path

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", listed)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(CheckpointError, match="holds no model"):  # an empty folder stands for the snapshot
        weft.load_encoder(name)
    assert fetched == {(name, COMMITS[0]): set(wanted)}


# as the start of a part


def test_a_recipes_encoder_starts_from_a_whole_models_file(tmp_path):
    system = tiny_recipe("llava").system.build()
    tower = system.stream("image").encoder.config
    vision = {
        "hidden_size": tower.width, "intermediate_size": tower.feed_forward_width, "num_hidden_layers": tower.num_layers,
        "num_attention_heads": tower.num_heads, "image_size": tower.image_size, "patch_size": tower.patch_size,
    }  # fmt: skip
    config = transformers.CLIPConfig(vision_config=vision, text_config=TEXT, projection_dim=16)
    theirs = transformers.CLIPModel(config)
    fill = starting_weights([f"streams.image.encoder={written(tmp_path / 'clip', theirs)}"])
    assert fill is not None
    fill(system)
    assert torch.equal(system.stream("image").encoder.class_embedding, theirs.vision_model.embeddings.class_embedding)
    path = tmp_path / "clip" / "config.json"
    saved = json.loads(path.read_text())
    saved["vision_config"]["hidden_act"] = "gelu"
    path.write_text(json.dumps(saved))
    with pytest.raises(CheckpointError, match=r"activation='gelu' \(here 'quick_gelu'\)"):
        fill(system)
    written(tmp_path / "siglip", siglip())
    other = starting_weights([f"streams.image.encoder={tmp_path / 'siglip'}"])
    assert other is not None
    with pytest.raises(CheckpointError, match=r"holds a SiglipVision, streams\.image\.encoder is a ClipVision"):
        other(system)
