"""LanguageBind's video tower: a reference written out step by step, through the published key names and a published folder."""

import json
import math

import pytest
import torch
from reference_models import assert_close
from safetensors.torch import save_file
from torch.nn import functional as F

import weft
from weft.checkpoints import languagebind
from weft.checkpoints.weight_files import weights
from weft.core.errors import CheckpointError
from weft.core.layout import MediaLayout
from weft.encoders.clip import ClipVision
from weft.encoders.siglip import SiglipVision
from weft.encoders.video import Video
from weft.recipes.starting_weights import starting_weights
from weft.systems.accounting import num_parameters, num_table_values, omitted, on_meta

WIDTH, HEADS, LAYERS, FRAMES, PATCH, SIZE = 32, 4, 3, 4, 8, 24
CONFIG = {
    "hidden_size": WIDTH, "intermediate_size": 48, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
    "image_size": SIZE, "patch_size": PATCH, "hidden_act": "gelu", "layer_norm_eps": 1e-5, "num_channels": 3,
    "add_time_attn": True, "num_frames": FRAMES,
}  # fmt: skip


def tower_shapes():
    """The published names of the tower's tensors, with their shapes at this size."""
    square, vector = (WIDTH, WIDTH), (WIDTH,)
    shapes = {
        "embeddings.class_embedding": vector,
        "embeddings.patch_embedding.weight": (WIDTH, 3, PATCH, PATCH),
        "embeddings.position_embedding.weight": ((SIZE // PATCH) ** 2 + 1, WIDTH),
    }
    norms = ["pre_layrnorm", "post_layernorm"]
    for layer in range(LAYERS):
        name = f"encoder.layers.{layer}."
        norms += [f"{name}{norm}" for norm in ("layer_norm1", "layer_norm2", "temporal_layer_norm1")]
        for attention in ("self_attn", "temporal_attn"):
            for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
                shapes |= {f"{name}{attention}.{part}.weight": square, f"{name}{attention}.{part}.bias": vector}
        shapes |= {f"{name}mlp.fc1.weight": (48, WIDTH), f"{name}mlp.fc1.bias": (48,)}
        shapes |= {f"{name}mlp.fc2.weight": (WIDTH, 48), f"{name}mlp.fc2.bias": vector}
        shapes[f"{name}temporal_embedding"] = (1, FRAMES, WIDTH)
    return shapes | {f"{norm}.{kind}": vector for norm in norms for kind in ("weight", "bias")}


def tower_tensors():
    draw = torch.Generator().manual_seed(0)
    tensors = {}
    for name, shape in tower_shapes().items():
        noise = torch.randn(shape, generator=draw)
        is_scale = len(shape) == 1 and "norm" in name and name.endswith("weight")
        tensors[name] = noise / math.sqrt(noise[0].numel()) if len(shape) > 1 else 0.2 * noise + is_scale
    return tensors


def norm(tensors, name, x):
    mean, spread = x.mean(-1, keepdim=True), x.var(-1, correction=0, keepdim=True)
    return (x - mean) / (spread + 1e-5).sqrt() * tensors[f"{name}.weight"] + tensors[f"{name}.bias"]


def linear(tensors, name, x):
    return x @ tensors[f"{name}.weight"].T + tensors[f"{name}.bias"]


def attention(tensors, name, x):
    """Of one sequence [n, WIDTH], head by head."""
    q, k, v = (linear(tensors, f"{name}.{part}_proj", x) for part in "qkv")
    mixed, size = [], WIDTH // HEADS
    for head in range(HEADS):
        own = slice(head * size, (head + 1) * size)
        mixed.append(torch.softmax(q[:, own] @ k[:, own].T / math.sqrt(size), -1) @ v[:, own])
    return linear(tensors, f"{name}.out_proj", torch.cat(mixed, -1))


def embedded(tensors, picture):
    """What enters the first layer: class token, patches row by row, positions, norm."""
    tokens = [tensors["embeddings.class_embedding"]]
    kernel = tensors["embeddings.patch_embedding.weight"].flatten(1)
    for top in range(0, SIZE, PATCH):
        for left in range(0, SIZE, PATCH):
            tokens.append(kernel @ picture[:, top : top + PATCH, left : left + PATCH].flatten())
    return norm(tensors, "pre_layrnorm", torch.stack(tokens) + tensors["embeddings.position_embedding.weight"])


def reference(tensors, film, num_layers=LAYERS - 1):
    """The state of every frame [T, 1 + patches, WIDTH] of one film after some layers; the last but one is what is read."""
    states = [embedded(tensors, picture) for picture in film]
    for layer in range(num_layers):
        name = f"encoder.layers.{layer}."
        states = [x + tensors[f"{name}temporal_embedding"][0, time] for time, x in enumerate(states)]
        told = [x.clone() for x in states]
        for place in range(len(states[0])):
            over_time = torch.stack([x[place] for x in states])
            seen = attention(tensors, f"{name}temporal_attn", norm(tensors, f"{name}temporal_layer_norm1", over_time))
            for time in range(len(film)):
                told[time][place] = over_time[time] + seen[time]
        for time, x in enumerate(told):
            x = x + attention(tensors, f"{name}self_attn", norm(tensors, f"{name}layer_norm1", x))
            inner = F.gelu(linear(tensors, f"{name}mlp.fc1", norm(tensors, f"{name}layer_norm2", x)))
            states[time] = x + linear(tensors, f"{name}mlp.fc2", inner)
    return torch.stack(states)


def published_folder(folder, tensors, **changes):
    """The whole dual encoder as it is published: both towers, the projections, and a config with the tower's inside."""
    folder.mkdir(parents=True, exist_ok=True)
    rest = {"text_model.final_layer_norm.weight": torch.ones(8), "logit_scale": torch.ones(())}
    rest |= {"visual_projection.weight": torch.ones(8, WIDTH), "text_projection.weight": torch.ones(8, 8)}
    buffers = {"embeddings.position_ids": torch.arange((SIZE // PATCH) ** 2 + 1)[None]}
    save_file({f"vision_model.{key}": value for key, value in (tensors | buffers).items()} | rest, folder / "model.safetensors")
    vision = {"model_type": "clip_vision_model", **CONFIG, **changes}
    whole = {"model_type": "LanguageBindVideo", "architectures": ["CLIPModel"], "vision_config": vision, "text_config": {}}
    (folder / "config.json").write_text(json.dumps(whole))
    return folder


def films(*frames, seed=1):
    draw = torch.Generator().manual_seed(seed)
    return [torch.randn(count, 3, SIZE, SIZE, generator=draw) for count in frames]


@torch.no_grad()
def features(encoder, shown):
    unit_item = torch.arange(len(shown)).repeat_interleave(torch.tensor([len(film) for film in shown]))
    layouts = tuple(MediaLayout(SIZE // PATCH, SIZE // PATCH, frames=len(film)) for film in shown)
    return encoder(torch.cat(shown), unit_item, layouts).values


def test_a_published_folder_gives_the_features_that_are_written_out_here(tmp_path):
    tensors, shown = tower_tensors(), films(FRAMES, FRAMES)
    loaded = weft.load_encoder(published_folder(tmp_path, tensors))
    image = ClipVision.Config(
        image_size=SIZE, patch_size=PATCH, width=WIDTH, num_layers=LAYERS, num_heads=HEADS, feed_forward_width=48,
        activation="gelu",
    )  # fmt: skip
    assert loaded.encoder.config == Video.Config(image=image, num_frames=FRAMES, temporal="attention")
    assert {"logit_scale", "visual_projection.weight", "vision_model.embeddings.position_ids"} < set(loaded.dropped)
    assert_close(features(loaded.encoder, shown), torch.cat([reference(tensors, film)[:, 1:] for film in shown]))


def test_the_tower_alone_and_without_its_prefix_is_the_same(tmp_path):
    tensors = tower_tensors()
    config = {"model_type": "clip_vision_model", **CONFIG}
    tower = languagebind.read_config(config)
    encoder = tower.build().eval()
    assert languagebind.key_map(tower).load(encoder, tensors) == {}
    (film,) = films(FRAMES)
    assert_close(features(encoder, [film]), reference(tensors, film)[:, 1:])
    written = languagebind.key_map(tower).from_weft(weights(encoder))
    assert written.keys() == tensors.keys() and all(torch.equal(written[key], tensors[key]) for key in tensors)
    assert languagebind.read_config(languagebind.write_config(tower)) == tower


def test_a_file_without_a_part_of_attention_over_time_is_an_error_that_names_it(tmp_path):
    tensors = tower_tensors()
    del tensors["encoder.layers.1.temporal_embedding"]
    with pytest.raises(CheckpointError, match=r"1 missing \(encoder\.layers\.1\.temporal_embedding\)"):
        weft.load_encoder(published_folder(tmp_path, tensors))


def test_the_image_tower_says_that_it_has_none_and_is_clips(tmp_path):
    tensors = {key: value for key, value in tower_tensors().items() if "temporal" not in key}
    encoder = weft.load_encoder(published_folder(tmp_path, tensors, add_time_attn=False)).encoder
    assert isinstance(encoder, ClipVision)


def test_what_the_layout_cannot_hold_is_said(tmp_path):
    with pytest.raises(CheckpointError, match="clip_type='vl_new' cuts patches out of several frames at once"):
        weft.load_encoder(published_folder(tmp_path, tower_tensors(), clip_type="vl_new"))
    for unfit, named in (
        (Video.Config(num_frames=8), "ClipVision with temporal='embedding'"),
        (Video.Config(image=SiglipVision.Config.tiny(), num_frames=8, temporal="attention"), "SiglipVision with"),
    ):
        with pytest.raises(CheckpointError, match=named):
            languagebind.write_config(unfit)


def test_the_published_size_has_its_parts_to_the_last_parameter():
    config = Video.Config.sizes()["languagebind-l-14"]
    tower = on_meta(config)
    assert num_table_values(tower) == 0
    over_time = {name: p.numel() for name, p in tower.named_parameters() if ".before_attention." in name}
    assert sum(n for name, n in over_time.items() if ".embedding." in name) == 24 * 8 * 1024
    assert sum(n for name, n in over_time.items() if ".norm." in name) == 24 * 2 * 1024
    assert sum(n for name, n in over_time.items() if ".attention." in name) == 24 * 4 * (1024 * 1024 + 1024)
    assert sum(over_time.values()) == 24 * 4_208_640
    assert num_parameters(tower) == 303_179_776 + 101_007_360 == 404_187_136  # CLIP's L/14 and its attention over time
    assert omitted(config) == {"image's projection": 1024 * 768}
    table = languagebind.key_map(config).from_weft(dict(tower.named_parameters()))
    assert table["encoder.layers.0.temporal_embedding"].shape == (1, 8, 1024)
    assert table["encoder.layers.23.temporal_attn.q_proj.weight"].shape == (1024, 1024)


# towers that a training begins with


class Seeing(torch.nn.Module):
    """A part of a system, by its name."""

    def __init__(self, encoder):
        super().__init__()
        self.encoder = encoder


def test_training_starts_from_a_published_tower(tmp_path):
    system = Seeing(languagebind.read_config(CONFIG).build())
    starting_weights([f"encoder={published_folder(tmp_path, tower_tensors())}"])(system)
    (film,) = films(FRAMES)
    assert_close(features(system.encoder.eval(), [film]), reference(tower_tensors(), film)[:, 1:])


def test_a_tower_of_another_activation_is_refused(tmp_path):
    system = Seeing(languagebind.read_config(CONFIG | {"hidden_act": "quick_gelu"}).build())
    folder = published_folder(tmp_path, tower_tensors())
    with pytest.raises(CheckpointError, match=r"weights for image\.activation='gelu' \(here 'quick_gelu'\)"):
        starting_weights([f"encoder={folder}"])(system)


def test_from_an_image_towers_file_attention_over_time_starts_as_a_copy_of_the_blocks_own(tmp_path):
    """As LanguageBind's training began."""
    config = languagebind.read_config(CONFIG)
    system = Seeing(config.build())
    blocks = system.encoder.image.blocks
    vectors = [block.before_attention.embedding.table.detach().clone() for block in blocks]
    images = {key: value for key, value in tower_tensors().items() if "temporal" not in key}
    starting_weights([f"encoder.image={published_folder(tmp_path, images, add_time_attn=False)}"])(system)
    assert torch.equal(blocks[0].attention.query.weight, images["encoder.layers.0.self_attn.q_proj.weight"])
    for block, kept in zip(blocks, vectors, strict=True):
        slot = block.before_attention
        assert torch.equal(slot.embedding.table, kept)
        for copied, own in ((slot.norm, block.attention_norm), (slot.attention, block.attention)):
            assert list(copied.state_dict()) == list(own.state_dict())
            assert all(torch.equal(*pair) for pair in zip(copied.parameters(), own.parameters(), strict=True))
            assert all(ours is not theirs for ours, theirs in zip(copied.parameters(), own.parameters(), strict=True))
