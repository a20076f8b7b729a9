"""LAION's CLAP against `transformers`, the text tower of Microsoft's against `BertModel`, through the key maps."""

import builtins
import dataclasses
import io
import math

import pytest
import torch
import torch.nn.functional as F
from reference_models import assert_close, randomise, to_transformers, to_weft
from rich.console import Console

from weft.checkpoints.clap import CLAP, CLAP_AUDIO, CLAP_TEXT
from weft.checkpoints.clap_microsoft import CLAP_MICROSOFT
from weft.core.batch import MediaBatch, MultimodalBatch, SampleRef, TextSide
from weft.core.errors import CheckpointError, ConfigError, ContextTooShort, DataError, MissingLibrary
from weft.encoders.bert_text import BertText
from weft.encoders.clap_laion import ClapLaionWrapper
from weft.encoders.cnn14 import Cnn14
from weft.objectives.contrastive import SoftmaxContrastive
from weft.serving.part_tables import table
from weft.systems.dual_encoder import DualEncoder

transformers = pytest.importorskip("transformers")

PADDING = 1
AUDIO = {
    "num_mel_bins": 16, "spec_size": 64, "window_size": 4, "patch_embeds_hidden_size": 12, "hidden_size": 24,
    "depths": [2, 2], "num_attention_heads": [2, 3], "num_hidden_layers": 2, "projection_dim": 20,
}  # fmt: skip
TEXT = {
    "vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 56,
    "max_position_embeddings": 14, "projection_dim": 20,
}  # fmt: skip
CONSTANTS = {"text_model.embeddings.position_ids", "text_model.embeddings.token_type_ids"}


def mels(frames: int) -> torch.Tensor:
    return torch.randn(3, 16, frames, generator=torch.Generator().manual_seed(7))


def with_statistics(model):
    """Random weights, and batch norms that have seen something."""
    randomise(model)
    generator = torch.Generator().manual_seed(1)
    for layer in model.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.running_mean.normal_(generator=generator)
            layer.running_var.uniform_(0.5, 2, generator=generator)
    return model


def whole_model() -> transformers.ClapModel:
    model = with_statistics(
        transformers.ClapModel(transformers.ClapConfig(audio_config=AUDIO, text_config=TEXT, projection_dim=20))
    )
    model.logit_scale_a.data.fill_(1.5)
    model.logit_scale_t.data.fill_(0.7)
    return model


def texts() -> tuple[torch.Tensor, TextSide]:
    """Three texts of 6, 3 and 7 tokens: padded with the reference's padding token, and Weft's, with padding marked."""
    tokens = torch.randint(2, 50, (3, 7), generator=torch.Generator().manual_seed(8))
    place = torch.arange(7).expand(3, 7)
    real = (place < torch.tensor([6, 3, 7])[:, None]).long()
    side = TextSide(tokens * real, place, real, place * real, torch.zeros_like(place))
    return tokens.masked_fill(real == 0, PADDING), side


def batch_of(units: torch.Tensor, encoder, text: TextSide) -> MultimodalBatch:
    count = len(units)
    grid = (encoder.config.layout(),) * count
    media = MediaBatch(units, torch.arange(count), grid, torch.empty(0, 5, dtype=torch.long), torch.arange(count))
    return MultimodalBatch(text, {"audio": media}, tuple(SampleRef(row, 1, "test", str(row)) for row in range(count)))


def as_reference_takes(units: torch.Tensor) -> torch.Tensor:
    return units.transpose(1, 2).unsqueeze(1)


@pytest.mark.parametrize("frames", [256, 250], ids=["whole", "stretched"])
def test_embeddings_and_logits_of_both_directions_equal_the_reference(tmp_path, frames):
    theirs = whole_model()
    ours = to_weft(theirs, tmp_path)
    ours.media.config = dataclasses.replace(ours.media.config, num_frames=frames)
    padded, text = texts()
    units = mels(frames)
    with torch.no_grad():
        expected = theirs(input_ids=padded, attention_mask=(padded != PADDING).long(), input_features=as_reference_takes(units))
        found = ours(batch_of(units, ours.media, text)).embeddings
        assert_close(found["media"], expected.audio_embeds)
        assert_close(found["text"], expected.text_embeds)
        assert_close(ours.logit_scale.exp() * found["media"] @ found["text"].T, expected.logits_per_audio)
        assert_close(ours.text_logit_scale.exp() * found["text"] @ found["media"].T, expected.logits_per_text)
        grid = expected.audio_model_output.last_hidden_state  # [N, C, frequency, time]
        layout = ours.media.config.layout()
        features = ours.media(units, torch.arange(3), (layout,) * 3)
        assert grid.shape[2:] == (layout.height, layout.width)
        assert_close(features.values.unflatten(1, grid.shape[2:]).permute(0, 3, 1, 2), grid)


@pytest.mark.parametrize("old", [False, True], ids=["version 5", "hub"])
@pytest.mark.parametrize(
    "part", ["ClapAudioModel", "ClapAudioModelWithProjection", "ClapTextModel", "ClapTextModelWithProjection"]
)
def test_each_tower_alone_equals_the_reference(tmp_path, part, old):
    """The hub has files of whole models only: a tower is read from such a file, or from its own."""
    whole = whole_model()
    cls = getattr(transformers, part)
    tower = part.removesuffix("WithProjection").removeprefix("Clap").removesuffix("Model").lower()
    theirs = cls(getattr(whole.config, f"{tower}_config")).eval()
    inner = getattr(whole, f"{tower}_model")
    if part.endswith("Projection"):
        getattr(theirs, f"{tower}_model").load_state_dict(inner.state_dict())
        getattr(theirs, f"{tower}_projection").load_state_dict(getattr(whole, f"{tower}_projection").state_dict())
    else:
        theirs.load_state_dict(inner.state_dict())
    ours = to_weft(theirs, tmp_path)
    if old:
        layout = CLAP_AUDIO if tower == "audio" else CLAP_TEXT
        ours = ours.config.build().eval()
        dropped = layout.key_map(ours.config).load(ours, whole.state_dict())
        assert all(len(reason) > 5 for reason in dropped.values()) and "logit_scale_a" in dropped
    padded, text = texts()
    with torch.no_grad():
        if tower == "audio":
            result = theirs(input_features=as_reference_takes(mels(256)))
            found = ours.pool(mels(256))
        else:
            result = theirs(input_ids=padded, attention_mask=(padded != PADDING).long())
            found = ours(text)
    assert found.shape == (3, 20 if part.endswith("Projection") else 24 if tower == "audio" else 32)
    assert_close(found, getattr(result, f"{tower}_embeds") if part.endswith("Projection") else result.pooler_output)


def test_what_weft_writes_the_reference_loads(tmp_path):
    theirs = whole_model()
    ours = to_weft(theirs, tmp_path / "theirs")
    written = CLAP.key_map(ours.config).from_weft(ours.state_dict())
    expected = theirs.state_dict()
    assert set(expected) - set(written) == CONSTANTS  # counts of positions, which the reference makes itself
    assert set(written) <= set(expected)
    assert all(torch.equal(value, expected[key]) for key, value in written.items())
    audio = to_weft(_saved_tower(theirs), tmp_path / "tower")
    again = to_transformers(audio, transformers.ClapAudioModelWithProjection, tmp_path / "ours")
    assert all(torch.equal(value, expected[key]) for key, value in again.state_dict().items())


def _saved_tower(whole):
    tower = transformers.ClapAudioModelWithProjection(whole.config.audio_config).eval()
    tower.load_state_dict({k: v for k, v in whole.state_dict().items() if k.startswith("audio_")})
    return tower


def test_another_fusion_is_refused_and_so_is_another_activation():
    saved = {"model_type": "clap", "audio_config": {"enable_fusion": True, "fusion_type": "channel_map"}}
    with pytest.raises(CheckpointError, match="fusion_type='channel_map'"):
        CLAP.read_config(saved)
    with pytest.raises(CheckpointError, match="qkv_bias=False"):
        CLAP.read_config({"audio_config": {"qkv_bias": False}})
    with pytest.raises(CheckpointError, match="patch_stride"):
        CLAP.read_config({"audio_config": {"patch_stride": [2, 4]}})
    with pytest.raises(CheckpointError, match="hidden_size=512"):
        CLAP.read_config({"audio_config": {"hidden_size": 512}})


def test_the_published_size_has_the_published_parameters():
    config = CLAP.read_config({"model_type": "clap"})
    trained = ClapLaionWrapper.Config.sizes()["htsat-unfused"]
    assert config.media == dataclasses.replace(trained, dropout=0.1, stochastic_depth=0.0), "as the library has it"
    assert config.text == BertText.Config.sizes()["clap-laion"]
    with torch.device("meta"):
        system = config.build()
        pooled = system.media.pool(torch.empty(1, 64, 1001))
        grid = system.media(torch.empty(1, 64, 1001), torch.zeros(1), (config.media.layout(),)).values
    assert pooled.shape == (1, 512) and grid.shape == (1, 2 * 32, 768)
    assert sum(p.numel() for p in system.media.tower.parameters()) == 27_534_488
    assert sum(p.numel() for name, p in system.text.named_parameters() if not name.startswith("head.")) == 124_645_632
    assert sum(p.numel() for p in system.parameters()) == 153_492_890
    assert config.initial_scale == 1 / 0.07


def test_without_the_library_the_error_names_the_extra(monkeypatch):
    real = builtins.__import__

    def missing(name, *args, **kwargs):
        if name.split(".")[0] == "transformers":
            raise ModuleNotFoundError("No module named 'transformers'")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(MissingLibrary, match=r"pip install 'weft\[hf\]'"):
        ClapLaionWrapper.Config.tiny().build()
    monkeypatch.setattr("weft.core.catalogue.parts", lambda room: {"clap_laion_wrapper": ClapLaionWrapper})
    monkeypatch.setattr("weft.serving.part_costs.find_spec", lambda name: None)
    console = Console(file=io.StringIO(), width=200)
    console.print(table("encoders"))  # the list of what there is needs no library
    _, _, _, name, size, *_ = console.file.getvalue().splitlines()
    assert "clap_laion_wrapper" in name and "2211.06687" in name
    assert size.split()[:3] == ["htsat-unfused", "needs", "transformers"]


def test_units_of_another_shape_are_refused_with_the_way_out():
    encoder = ClapLaionWrapper.Config.tiny().build()
    with pytest.raises(DataError, match=r"\(N, 16, 60\); set the processor's ClapAudioTransform to num_mels=16"):
        encoder.pool(torch.zeros(1, 60, 16))
    with pytest.raises(ConfigError, match="do not fit into 2 pieces of 32 frames"):
        dataclasses.replace(encoder.config, num_frames=65)
    with pytest.raises(ConfigError, match="choose a multiple of 16"):
        dataclasses.replace(encoder.config, spec_size=40, num_mels=20)


def test_each_direction_of_the_loss_has_its_own_scale_and_both_are_clamped():
    """The two terms written out; the library's own loss compares one direction twice and is no reference."""
    torch.manual_seed(0)
    config = CLAP.tiny()[0]
    system = dataclasses.replace(config, initial_scale=2.0).build().eval()
    system.text_logit_scale.data.fill_(1.1)
    _, text = texts()
    batch = batch_of(torch.randn(3, *config.media.unit_shape), system.media, text)
    objective = SoftmaxContrastive.Config().build()
    total = objective(system, batch).sums["contrastive"]
    found = system(batch).embeddings
    cosine = found["media"] @ found["text"].T
    told = F.cross_entropy(system.logit_scale.exp() * cosine, torch.arange(3), reduction="sum")
    shown = F.cross_entropy(system.text_logit_scale.exp() * cosine.T, torch.arange(3), reduction="sum")
    torch.testing.assert_close(total, (told + shown) / 2, rtol=1e-6, atol=1e-6)
    total.backward()
    assert system.logit_scale.grad != 0 and system.text_logit_scale.grad != 0
    system.text_logit_scale.data.fill_(9.0)
    objective.after_step(system)
    assert system.text_logit_scale.item() == pytest.approx(math.log(100))
    assert system.logit_scale.item() == pytest.approx(math.log(2))


def test_a_clap_system_learns_its_pairs_by_heart():
    torch.manual_seed(0)
    system = CLAP_MICROSOFT.tiny()[0].build().train()
    _, text = texts()
    batch = batch_of(torch.randn(3, *system.config.media.unit_shape), system.media, text)
    objective = SoftmaxContrastive.Config().build()
    optimizer = torch.optim.AdamW(system.parameters(), lr=1e-3)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = objective(system, batch).sums["contrastive"]
        loss.backward()
        optimizer.step()
        losses.append(loss.item() / 3)
    assert losses[-1] < 0.05 < losses[0]


# Microsoft's text tower is BERT, its audio tower is held to an independent reference in tests/encoders/test_cnn14.py.

BERT = {
    "vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 56,
    "max_position_embeddings": 12, "type_vocab_size": 2,
}  # fmt: skip


def microsoft_file(bert, audio: dict[str, torch.Tensor], width: int) -> dict[str, torch.Tensor]:
    """The keys of the published file around a BERT and the tensors of an audio encoder."""
    generator = torch.Generator().manual_seed(3)

    def normal(*shape):
        return torch.randn(*shape, generator=generator) * shape[-1] ** -0.5

    file = {f"caption_encoder.base.{key}": value for key, value in bert.state_dict().items()}
    file |= {f"audio_encoder.base.{key}": value for key, value in audio.items()}
    for owner, inputs in (("audio_encoder", 32), ("caption_encoder", 32)):
        file[f"{owner}.projection.linear1.weight"] = normal(width, inputs)
        file[f"{owner}.projection.linear2.weight"] = normal(width, width)
        file[f"{owner}.projection.layer_norm.weight"] = 1 + normal(width)
        file[f"{owner}.projection.layer_norm.bias"] = normal(width)
    return file | {"logit_scale": torch.tensor(2.0)}


def audio_file(widths: tuple[int, ...], mels: int) -> dict[str, torch.Tensor]:
    """A CNN14 as the published file spells it, its classifier and front end besides."""
    generator = torch.Generator().manual_seed(4)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    def norm(name, width):
        scale, variance = 1 + 0.2 * normal(width), normal(width).abs() + 0.5
        names = zip(
            ("weight", "bias", "running_mean", "running_var"), (scale, normal(width), normal(width), variance), strict=True
        )
        return {f"{name}.{key}": value for key, value in names} | {f"{name}.num_batches_tracked": torch.tensor(5)}

    file = norm("bn0", mels)
    for number, (inputs, outputs) in enumerate(zip((1, *widths), widths, strict=False), 1):
        for index, width in ((1, inputs), (2, outputs)):
            file[f"conv_block{number}.conv{index}.weight"] = normal(outputs, width, 3, 3) * (9 * width) ** -0.5
            file |= norm(f"conv_block{number}.bn{index}", outputs)
    last = widths[-1]
    file |= {"fc1.weight": normal(last, last) * last**-0.5, "fc1.bias": normal(last)}
    file |= {"fc_audioset.weight": normal(5, last), "fc_audioset.bias": normal(5)}
    return file | {"spectrogram_extractor.stft.conv_real.weight": normal(3, 1, 4), "logmel_extractor.melW": normal(3, mels)}


def test_microsofts_file_fills_both_towers_and_the_text_tower_equals_bert():
    torch.manual_seed(0)
    bert = randomise(transformers.BertModel(transformers.BertConfig(**BERT)))
    file = microsoft_file(bert, audio_file((8, 16, 32), 8), 24)
    saved = {
        "model_type": "clap_microsoft",
        "mel_bins": 8,
        "num_frames": 22,
        "widths": [8, 16, 32],
        "d_proj": 24,
        "text_config": BERT,
    }
    ours = CLAP_MICROSOFT.read_config(saved).build().eval()
    dropped = CLAP_MICROSOFT.key_map(ours.config).load(ours, file, "CLAP_weights_2022.pth")
    assert {key.split(".")[2] for key in dropped} <= {
        "fc_audioset",
        "spectrogram_extractor",
        "logmel_extractor",
        "pooler",
        "embeddings",
    }
    assert "caption_encoder.base.pooler.dense.weight" in dropped
    padded, text = texts()
    with torch.no_grad():
        first = bert(input_ids=padded, attention_mask=(text.segment > 0).long()).last_hidden_state[:, 0]
        embed = first @ file["caption_encoder.projection.linear1.weight"].T
        inner = F.gelu(embed) @ file["caption_encoder.projection.linear2.weight"].T
        owner = "caption_encoder.projection.layer_norm"
        expected = F.layer_norm(embed + inner, (24,), file[f"{owner}.weight"], file[f"{owner}.bias"])
        assert_close(ours.text(text), expected)
    assert ours.logit_scale == 2.0 and ours.text_logit_scale is None
    written = CLAP_MICROSOFT.key_map(ours.config).from_weft(ours.state_dict())
    assert all(torch.equal(value, file[key]) for key, value in written.items())
    assert set(file) - set(written) == set(dropped)


def test_in_training_berts_tower_drops_out_at_the_published_rates():
    """0.1 of the embeddings, of attention's probabilities and of what either half of a block adds; the head's 0.5."""
    published = BertText.Config.sizes()
    assert {name: (each.dropout, each.head_dropout) for name, each in published.items()} == {
        "bert-base-uncased": (0.1, 0.0), "clap-microsoft": (0.1, 0.5), "clap-laion": (0.1, 0.0),
    }  # fmt: skip
    assert transformers.ClapTextConfig().hidden_dropout_prob == transformers.BertConfig().attention_probs_dropout_prob == 0.1
    small = dataclasses.replace(published["clap-microsoft"], vocabulary=50, width=32, num_layers=2, num_heads=2)
    tower = small.build()
    called: list[float] = []
    for layer in tower.modules():
        if isinstance(layer, torch.nn.Dropout):
            layer.register_forward_hook(lambda layer, given, out: called.append(layer.p))
    _, text = texts()
    assert not torch.equal(tower(text), tower(text))
    assert called[:6] == [0.1] * 5 + [0.5]
    assert [block.attention.dropout for block in tower.blocks] == [0.1, 0.1]
    tower.eval()
    assert torch.equal(tower(text), tower(text))


def test_bert_with_its_pooler_equals_the_reference():
    bert = randomise(transformers.BertModel(transformers.BertConfig(**BERT)))
    from weft.checkpoints.bert_text import bert_map, read_sizes

    config = BertText.Config(**read_sizes(BERT, BertText.Config(), 0))
    ours = config.build().eval()
    bert_map(config).load(ours, bert.state_dict())
    padded, text = texts()
    with torch.no_grad():
        assert_close(ours(text), bert(input_ids=padded, attention_mask=(text.segment > 0).long()).pooler_output)
    long = TextSide(*(torch.ones(1, 13, dtype=torch.long) for _ in range(5)))
    with pytest.raises(ContextTooShort, match="at most 12 tokens"):
        ours(long)


def test_bert_and_microsofts_system_have_the_published_parameters():
    media, text = Cnn14.Config.sizes()["clap-microsoft"], BertText.Config.sizes()["clap-microsoft"]
    with torch.device("meta"):
        system = DualEncoder.Config(media=media, text=text, stream="audio").build()
        bert = BertText.Config.sizes()["bert-base-uncased"].build()
    assert CLAP_MICROSOFT.read_config({"model_type": "clap_microsoft"}) == system.config
    assert sum(p.numel() for p in bert.parameters()) == 109_482_240
    heads = 2048 * 1024 + 768 * 1024 + 2 * (1024**2 + 2 * 1024)
    classifier = 2048 * 527 + 527  # counted in what is published for the audio tower, dropped here
    pooler = 768 * 768 + 768
    assert sum(p.numel() for p in system.parameters()) == 80_753_615 - classifier + 109_482_240 - pooler + heads + 1
    with pytest.raises(CheckpointError, match="HTSAT"):
        CLAP_MICROSOFT.read_config({"audioenc_name": "HTSAT"})
