"""Folders of LAION's and Microsoft's CLAP as they are published open as dual encoders, and their audio towers alone."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from reference_models import assert_close
from test_clap import BERT, audio_file, microsoft_file, with_statistics
from test_clip_folder import CAPTIONS, tokenizer
from tokenizers import Tokenizer, models, pre_tokenizers, processors

import weft
from weft.core.conversation import Media
from weft.core.errors import CheckpointError
from weft.data.audio import Waveform
from weft.data.clap_audio import ClapAudioTransform
from weft.encoders.cnn14 import Cnn14
from weft.inference.embedder import similarities
from weft.recipes.catalogue import tiny_recipe
from weft.recipes.converting import convert
from weft.recipes.loading import load_embedder, load_model, load_system
from weft.recipes.starting_weights import starting_weights

transformers = pytest.importorskip("transformers")

AUDIO = {
    "num_mel_bins": 16, "spec_size": 64, "window_size": 4, "patch_embeds_hidden_size": 12, "hidden_size": 24,
    "depths": [2, 2], "num_attention_heads": [2, 3], "num_hidden_layers": 2,
}  # fmt: skip
TEXT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 56}
RATE = 48_000


def sounds() -> list[np.ndarray]:
    """A short one, which is repeated, and one as long as a clip."""
    draw = np.random.default_rng(0)
    return [draw.normal(0, 0.1, length).astype(np.float32) for length in (20_000, RATE)]


def laion_folder(folder, fused=False):
    """A model with its tokenizer and feature extractor, written by `transformers`."""
    words = tokenizer()
    extractor = transformers.ClapFeatureExtractor(
        feature_size=16, max_length_s=1, truncation="fusion" if fused else "rand_trunc", frequency_min=50
    )
    text = {**TEXT, "vocab_size": len(words), "max_position_embeddings": 26, "pad_token_id": 1}
    audio = {**AUDIO, "enable_fusion": fused, "fusion_type": "aff_2d" if fused else None}
    config = transformers.ClapConfig(audio_config=audio, text_config=text, projection_dim=20)
    theirs = with_statistics(transformers.ClapModel(config))
    theirs.logit_scale_a.data.fill_(1.5)
    for part in (theirs, words, extractor):
        part.save_pretrained(folder)
    return theirs, words, extractor


@pytest.mark.parametrize("fused", [False, True], ids=["without fusion", "with fusion"])
@torch.no_grad()
def test_zero_shot_probabilities_of_laions_folder_equal_the_references(tmp_path, recwarn, fused):
    theirs, words, extractor = laion_folder(tmp_path, fused)
    recwarn.clear()
    ours = load_embedder(tmp_path)
    assert not recwarn.list  # its template is known
    assert ours.processor.config.transforms == {"audio": ClapAudioTransform(num_mels=16, clip_seconds=1, fused=fused)}
    assert ours.system.config.media.num_frames == 101
    found = similarities(ours.media([Media(Waveform(s, RATE), "audio") for s in sounds()]), ours.texts(CAPTIONS))
    spectrograms = [extractor(s, sampling_rate=RATE, return_tensors="pt")["input_features"] for s in sounds()]
    told = words(list(CAPTIONS), padding=True, return_tensors="pt", return_token_type_ids=False)
    # none is longer than a clip, where the extractor says so of one that it draws
    heard = {"input_features": torch.cat(spectrograms).float(), "is_longer": torch.zeros(2, 1, dtype=torch.bool)}
    expected = theirs(**told, **heard)
    assert_close((ours.system.logit_scale.exp() * found).softmax(-1), expected.logits_per_audio.softmax(-1))
    assert expected.logits_per_audio.std() > 0.01


def test_what_was_opened_is_written_as_a_folder_of_weft(tmp_path):
    laion_folder(tmp_path / "laion")
    convert(tmp_path / "laion", tmp_path / "weft", to="weft")
    told, again = (load_system(tmp_path / name) for name in ("laion", "weft"))
    assert again.system.config == told.system.config and again.processor.config == told.processor.config
    state = again.system.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in told.system.state_dict().items())
    with pytest.raises(CheckpointError, match="the clip layout holds ClipVision"):
        convert(tmp_path / "laion", tmp_path / "theirs")


def test_a_folder_of_laion_that_does_not_say_how_it_hears_is_one_error(tmp_path):
    laion_folder(tmp_path)
    for name in ("preprocessor_config.json", "processor_config.json"):
        (tmp_path / name).unlink(missing_ok=True)
    with pytest.raises(CheckpointError, match=r"does not say how audio becomes units .* no preprocessor_config\.json"):
        load_system(tmp_path)


# Microsoft's


def bert_tokenizer(folder):
    """A tokenizer as BERT's folders hold it: words, `[CLS]` in front and `[SEP]` behind."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *sorted({word for caption in CAPTIONS for word in caption.split()})]
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.add_special_tokens(words[:4])
    backend.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    names = {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "unk_token": "[UNK]"}
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, **names)
    fast.save_pretrained(folder)
    return fast


def microsoft_folder(folder, **changes):
    """What the repository `microsoft/msclap` holds of 2022: one torch file, no config. BERT's heads are 64 wide, here one."""
    torch.manual_seed(0)
    bert = with_statistics(transformers.BertModel(transformers.BertConfig(**BERT | {"num_attention_heads": 1})))
    state = microsoft_file(bert, audio_file((8, 16, 32), 8), 24) | changes
    folder.mkdir(exist_ok=True)
    torch.save({"epoch": 40, "model": state}, folder / "CLAP_weights_2022.pth")
    return bert, state


@torch.no_grad()
def test_microsofts_audio_tower_opens_from_its_published_file(tmp_path):
    _, state = microsoft_folder(tmp_path)
    loaded = weft.load_encoder(tmp_path)
    config = loaded.encoder.config
    assert isinstance(loaded.encoder, Cnn14) and (config.widths, config.embedding_width) == ((8, 16, 32), 24)
    assert loaded.transform == ClapAudioTransform(
        num_mels=8, clip_seconds=5.0, sample_rate_hz=44_100, hop_samples=320, lowest_hz=50, highest_hz=14_000, fill="cut"
    )
    assert config.unit_shape == loaded.transform.unit_shape == (8, 690)
    assert torch.equal(loaded.encoder.pooled_linear.weight, state["audio_encoder.base.fc1.weight"])
    assert {"logit_scale", "caption_encoder.base.pooler.dense.weight"} < set(loaded.dropped)
    used = {
        f"audio_encoder.{part}" for part in ("base.bn0.weight", "base.conv_block3.conv2.weight", "projection.linear1.weight")
    }
    assert used < set(state) - set(loaded.dropped)


@torch.no_grad()
def test_microsofts_file_opens_as_a_dual_encoder_with_berts_tokenizer(tmp_path):
    bert, state = microsoft_folder(tmp_path / "msclap")
    words = bert_tokenizer(tmp_path / "bert")
    ours = load_embedder(tmp_path / "msclap", parts={"tokenizer": tmp_path / "bert"})
    first = bert(**words(list(CAPTIONS), padding=True, return_tensors="pt")).last_hidden_state[:, 0]
    embed = first @ state["caption_encoder.projection.linear1.weight"].T
    inner = F.gelu(embed) @ state["caption_encoder.projection.linear2.weight"].T
    owner = "caption_encoder.projection.layer_norm"
    expected = F.layer_norm(embed + inner, (24,), state[f"{owner}.weight"], state[f"{owner}.bias"])
    assert_close(ours.texts(CAPTIONS), F.normalize(expected, dim=-1))
    alone = weft.load_encoder(tmp_path / "msclap")
    unit = alone.transform.open(Waveform(sounds()[0], RATE), alone.encoder.config.layout())
    heard = alone.encoder.pool(torch.as_tensor(unit.units))
    assert_close(ours.media([Media(Waveform(sounds()[0], RATE), "audio")]), F.normalize(heard, dim=-1))
    with pytest.raises(CheckpointError, match="load_system opens it"):
        load_model(tmp_path / "msclap", parts={"tokenizer": tmp_path / "bert"})


def test_a_recipes_tower_starts_from_microsofts_file(tmp_path):
    system = tiny_recipe("clap").system.build()
    tower = system.media.config
    bert = transformers.BertModel(transformers.BertConfig(**BERT))
    state = microsoft_file(bert, audio_file(tower.widths, tower.num_mels), tower.embedding_width)
    torch.save({"model": state}, tmp_path / "CLAP_weights_2022.pth")
    fill = starting_weights([f"media={tmp_path}"])
    assert fill is not None
    fill(system)
    assert torch.equal(system.media.head.first.weight, state["audio_encoder.projection.linear1.weight"])


def test_the_file_of_another_year_and_code_in_a_file_are_one_error(tmp_path):
    torch.save({"model": {"audio_encoder.base.htsat.norm.weight": torch.ones(1)}}, tmp_path / "CLAP_weights_2022.pth")
    with pytest.raises(CheckpointError, match=r"CLAP_weights_2022\.pth has no .*; it is no file of Microsoft's CLAP of 2022"):
        weft.load_encoder(tmp_path)
    torch.save({"model": {}, "args": json.JSONEncoder()}, tmp_path / "CLAP_weights_2022.pth")
    with pytest.raises(CheckpointError, match="holds Python objects besides tensors"):
        weft.load_encoder(tmp_path)


def test_a_file_that_lacks_a_parameter_is_refused_by_name(tmp_path):
    _, state = microsoft_folder(tmp_path)
    del state["audio_encoder.base.fc1.bias"]
    torch.save({"model": state}, tmp_path / "CLAP_weights_2022.pth")
    with pytest.raises(CheckpointError, match=r"1 missing \(audio_encoder\.base\.fc1\.bias\)"):
        weft.load_encoder(tmp_path)
