"""NFNet against a small reference written from the paper and the published names, with weights in the published layout.

The reference is functional: a dictionary of tensors, explicit padding, one kernel and one sample at a time, in float64.
"""

import dataclasses
import json
import math

import pytest
import torch
from reference_models import assert_close
from safetensors.torch import save_file
from stock_pictures import noise, stock_values

import weft
from weft.checkpoints.checkpoint_format import format_of
from weft.checkpoints.nfnet import NFNET
from weft.checkpoints.weight_files import weights
from weft.core.errors import CheckpointError
from weft.data.images import IMAGENET_MEAN, IMAGENET_STD, EvenCentreTransform
from weft.encoders.clip import ClipText
from weft.encoders.nfnet import Nfnet
from weft.recipes.starting_weights import starting_weights
from weft.systems.dual_encoder import DualEncoder

DEPTHS, WIDTHS, STEM, GROUP = (1, 2, 3, 1), (16, 32, 64, 64), 16, 8
GAMMA = 1.7015043497085571


def saved_config(image_size: int, **arguments) -> dict:
    """A config as timm writes it, through JSON."""
    network = {"depths": DEPTHS, "channels": WIDTHS, "stem_chs": STEM, "group_size": GROUP, "num_features": 2 * WIDTHS[-1]}
    config = {
        "architecture": "dm_nfnet_f0",
        "num_classes": 1000,
        "model_args": {**network, **arguments},
        "pretrained_cfg": {"input_size": [3, image_size, image_size], "crop_pct": 0.9, "first_conv": "stem.conv1"},
    }
    return json.loads(json.dumps(config))


def published_shapes() -> dict[str, tuple[int, ...]]:
    """Every name of the published layout with its shape."""
    shapes: dict[str, tuple[int, ...]] = {}

    def convolution(name: str, before: int, after: int, kernel: int, groups: int = 1) -> None:
        shapes[f"{name}.weight"] = (after, before // groups, kernel, kernel)
        shapes[f"{name}.bias"] = (after,)
        shapes[f"{name}.gain"] = (after, 1, 1, 1)

    stem = [3, STEM // 8, STEM // 4, STEM // 2, STEM]
    for i in range(4):
        convolution(f"stem.conv{i + 1}", stem[i], stem[i + 1], 3)
    before = STEM
    for s, (depth, width) in enumerate(zip(DEPTHS, WIDTHS, strict=True)):
        for b in range(depth):
            block, middle = f"stages.{s}.{b}", width // 2
            shapes[f"{block}.skipinit_gain"] = ()
            if (s > 0 and b == 0) or before != width:
                convolution(f"{block}.downsample.conv", before, width, 1)
            convolution(f"{block}.conv1", before, middle, 1)
            convolution(f"{block}.conv2", middle, middle, 3, middle // GROUP)
            convolution(f"{block}.conv2b", middle, middle, 3, middle // GROUP)
            convolution(f"{block}.conv3", middle, width, 1)
            shapes[f"{block}.attn_last.fc1.weight"], shapes[f"{block}.attn_last.fc1.bias"] = (middle, width, 1, 1), (middle,)
            shapes[f"{block}.attn_last.fc2.weight"], shapes[f"{block}.attn_last.fc2.bias"] = (width, middle, 1, 1), (width,)
            before = width
    convolution("final_conv", before, 2 * before, 1)
    return shapes | {"head.fc.weight": (1000, 2 * before), "head.fc.bias": (1000,)}


def published_state() -> dict[str, torch.Tensor]:
    """Random weights under which every part matters: gains about 1, skip gains and biases away from 0."""
    generator = torch.Generator().manual_seed(0)
    state = {name: torch.randn(shape, generator=generator) for name, shape in published_shapes().items()}
    for name, value in state.items():
        if value.dim() == 4 and not name.endswith("gain"):
            value.mul_(value[0].numel() ** -0.5)
        elif name.endswith((".gain", "skipinit_gain")):
            value.mul_(0.2).add_(1)
        else:
            value.mul_(0.2)
    return state


def activation(x: torch.Tensor, tanh: bool) -> torch.Tensor:
    if tanh:
        return GAMMA * 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    return GAMMA * 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))


def convolve(state, name: str, x: torch.Tensor, stride: int = 1) -> torch.Tensor:
    kernels = []
    for raw, gain in zip(state[f"{name}.weight"], state[f"{name}.gain"], strict=True):
        mean, fan_in = raw.sum() / raw.numel(), raw.numel()
        variance = ((raw - mean) ** 2).sum() / fan_in
        kernels.append(gain.item() * (raw - mean) / math.sqrt(max(variance.item() * fan_in, 1e-4)))
    kernel = torch.stack(kernels)
    size = kernel.shape[-1]
    pads: list[int] = []
    for side in (x.shape[3], x.shape[2]):  # the order of torch's pad: the last axis first
        missing = max((math.ceil(side / stride) - 1) * stride + size - side, 0)
        pads += [missing // 2, missing - missing // 2]
    x = torch.nn.functional.pad(x, pads)
    return torch.nn.functional.conv2d(x, kernel, state[f"{name}.bias"], stride, groups=x.shape[1] // kernel.shape[1])


def mean_of_cells(x: torch.Tensor) -> torch.Tensor:
    """2 x 2 cells; one at an odd edge averages the positions that it has."""
    filled = torch.nn.functional.pad(x, (0, x.shape[3] % 2, 0, x.shape[2] % 2), value=math.nan)
    return filled.unflatten(3, (-1, 2)).unflatten(2, (-1, 2)).nanmean((3, 5))


def residual(state, name: str, x: torch.Tensor, stride: int, beta: float, alpha: float, tanh: bool) -> torch.Tensor:
    h = activation(x, tanh) * beta
    shortcut = x
    if f"{name}.downsample.conv.weight" in state:
        shortcut = convolve(state, f"{name}.downsample.conv", mean_of_cells(h) if stride == 2 else h)
    out = convolve(state, f"{name}.conv1", h)
    out = convolve(state, f"{name}.conv2", activation(out, tanh), stride)
    out = convolve(state, f"{name}.conv2b", activation(out, tanh))
    out = convolve(state, f"{name}.conv3", activation(out, tanh))
    fc1, fc2 = f"{name}.attn_last.fc1", f"{name}.attn_last.fc2"
    gated = []
    for sample in out:
        squeezed = state[f"{fc1}.weight"][:, :, 0, 0] @ sample.mean((1, 2)) + state[f"{fc1}.bias"]
        excited = state[f"{fc2}.weight"][:, :, 0, 0] @ squeezed.clamp(min=0) + state[f"{fc2}.bias"]
        gated.append(2 * sample / (1 + torch.exp(-excited))[:, None, None])
    return shortcut + alpha * state[f"{name}.skipinit_gain"] * torch.stack(gated)


def reference(state, pixels: torch.Tensor, alpha: float = 0.2, tanh: bool = True) -> tuple[torch.Tensor, torch.Tensor]:
    """The grid that leaves the last stage, and the one after the final convolution and activation."""
    state = {name: value.double() for name, value in state.items()}
    x = pixels.double()
    for place, stride in enumerate((2, 1, 1, 2), 1):
        x = convolve(state, f"stem.conv{place}", activation(x, tanh) if place > 1 else x, stride)
    expected = 1.0
    for s, depth in enumerate(DEPTHS):
        for b in range(depth):
            x = residual(state, f"stages.{s}.{b}", x, 2 if s and not b else 1, 1 / expected, alpha, tanh)
            if b == 0:
                expected = 1.0
            expected = math.sqrt(expected**2 + alpha**2)
    return x, activation(convolve(state, "final_conv", x), tanh)


def encoder_of(saved: dict, state: dict[str, torch.Tensor], **fields) -> Nfnet:
    layout = format_of(saved, "test")
    assert layout is NFNET
    config = dataclasses.replace(layout.read_config(saved), **fields)
    encoder = config.build().eval()
    dropped = layout.key_map(config).load(encoder, state)
    assert set(dropped) == {"head.fc.weight", "head.fc.bias"}
    return encoder


def pictures(image_size: int) -> torch.Tensor:
    return torch.randn(2, 3, image_size, image_size, generator=torch.Generator().manual_seed(7))


def features(encoder: Nfnet, pixels: torch.Tensor) -> torch.Tensor:
    return encoder(pixels, torch.arange(2), (encoder.config.layout(),) * 2).values


@pytest.mark.parametrize("image_size", [64, 100, 47], ids=["even grids", "odd grids", "an odd picture"])
def test_features_and_pooled_vector_equal_the_reference(image_size):
    state, pixels = published_state(), pictures(image_size)
    last_stage, final = reference(state, pixels)
    with torch.no_grad():
        encoder = encoder_of(saved_config(image_size), state)
        assert_close(features(encoder, pixels), final.flatten(2).transpose(1, 2).float())
        assert_close(encoder.pool(pixels), final.mean((2, 3)).float())
        encoder = encoder_of(saved_config(image_size), state, feature_layer="last_stage")
        assert_close(features(encoder, pixels), last_stage.flatten(2).transpose(1, 2).float())
    side = math.ceil(image_size / 32)
    assert (encoder.config.layout().height, encoder.config.layout().width) == (side, side)


def test_alpha_and_the_exact_activation_are_read_from_the_file():
    state, pixels = published_state(), pictures(64)
    with torch.no_grad():
        encoder = encoder_of(saved_config(64, act_layer="gelu", alpha=0.5), state)
        _, final = reference(state, pixels, alpha=0.5, tanh=False)
        assert_close(encoder.final_grid(pixels), final.float())
        _, other = reference(state, pixels, alpha=0.5, tanh=True)
    assert (final - other).abs().max() > 1e-4  # the two forms are told apart by this test


def test_kernels_of_almost_no_variance_are_held_at_the_floor():
    state, pixels = published_state(), pictures(64)
    state["final_conv.weight"][:8] = 0.3 + 1e-4 * state["final_conv.weight"][:8]
    with torch.no_grad():
        _, final = reference(state, pixels)
        assert_close(encoder_of(saved_config(64), state).final_grid(pixels), final.float())


def test_what_weft_writes_has_every_published_name_in_its_published_shape():
    encoder = encoder_of(saved_config(64), published_state())
    written = NFNET.key_map(encoder.config).from_weft(weights(encoder))
    expected = {name: shape for name, shape in published_shapes().items() if not name.startswith("head")}
    assert {name: tuple(value.shape) for name, value in written.items()} == expected
    assert all(torch.equal(value, published_state()[name]) for name, value in written.items())


def test_the_other_network_of_a_similar_name_is_refused():
    with pytest.raises(CheckpointError, match="'nfnet_f0'"):
        format_of({"architecture": "nfnet_f0"}, "config.json")
    state = {name: value for name, value in published_state().items() if "skipinit" not in name}
    with pytest.raises(CheckpointError, match=r"7 missing \(stages\.\{0\.\.3\}\.0\.skipinit_gain"):
        encoder_of(saved_config(64), state)


def published_folder(folder, file: str = "model.safetensors", **stated) -> dict[str, torch.Tensor]:
    """A folder as `timm` pushes it to the hub, with all that the published configs of F0 to F6 state."""
    config = saved_config(64)
    config["pretrained_cfg"] = {
        "tag": "dm_in1k", "custom_load": False, "input_size": [3, 64, 64], "test_input_size": [3, 96, 96],
        "fixed_input_size": False, "interpolation": "bicubic", "crop_pct": 0.9, "crop_mode": "squash",
        "mean": list(IMAGENET_MEAN), "std": list(IMAGENET_STD), "num_classes": 1000, "pool_size": [6, 6],
        "first_conv": "stem.conv1", "classifier": "head.fc", **stated,
    }  # fmt: skip
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config | {"num_features": 2 * WIDTHS[-1]}))
    (save_file if file.endswith("safetensors") else torch.save)(state := published_state(), folder / file)
    return state


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
@torch.no_grad()
def test_a_published_folder_opens_with_its_test_transform(tmp_path, file):
    """Pictures are squashed to 64 / 0.9 = 71 pixels, of which the middle 64 are kept, from the fourth on."""
    state = published_folder(tmp_path, file)
    loaded = weft.load_encoder(tmp_path)
    assert loaded.transform == EvenCentreTransform(
        size=64, resize="direct", shorter_side=71, mean=IMAGENET_MEAN, std=IMAGENET_STD
    )
    image = noise(90, 50)
    pixels = loaded.transform.apply(image)[None]
    assert (pixels[0] - stock_values(image, 64, 71, IMAGENET_MEAN, IMAGENET_STD, squash=True)).abs().max() < 1e-5
    _, final = reference(state, pixels)
    layout = loaded.encoder.config.layout()
    assert_close(loaded.encoder(pixels, torch.arange(1), (layout,)).values, final.flatten(2).transpose(1, 2).float())
    assert set(loaded.dropped) == {"head.fc.weight", "head.fc.bias"}


def test_a_recipes_tower_starts_from_a_published_folder(tmp_path):
    state = published_folder(tmp_path)
    media = NFNET.read_config(saved_config(64))
    system = DualEncoder.Config(media=media, text=ClipText.Config.tiny(), embedding_width=24).build()
    fill = starting_weights([f"media={tmp_path}"])
    assert fill is not None
    fill(system)
    assert torch.equal(system.media.final.weight, state["final_conv.weight"])


@pytest.mark.parametrize(
    ("stated", "said"),
    [
        ({"interpolation": "lanczos"}, "interpolation='lanczos'"),
        ({"crop_mode": "border"}, "crop_mode='border'"),
        ({"crop_pct": 0}, None),
        ({"crop_pct": -1}, "crop_pct=-1"),
        ({"mean": "grey"}, "mean='grey'"),
        ({"input_size": [64]}, "square pictures"),
    ],
    ids=str,
)
def test_preprocessing_that_weft_has_not_is_one_line(tmp_path, stated, said):
    published_folder(tmp_path, **stated)
    if said is None:  # what `timm` takes for not stated
        assert weft.load_encoder(tmp_path).transform.shorter_side == 73
        return
    with pytest.raises(CheckpointError, match=said) as caught:
        weft.load_encoder(tmp_path)
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_args": {"reg": True}}, "no place for model_args reg"),
        ({"model_args": {"num_features": 1000}}, "3072 channels, model_args say 1000"),
        ({"pretrained_cfg": {"input_size": [3, 192, 256]}}, "square pictures"),
    ],
)
def test_a_config_of_something_else_is_refused(changes, message):
    with pytest.raises(CheckpointError, match=message):
        NFNET.read_config({"architecture": "dm_nfnet_f0", **changes})


@pytest.mark.parametrize(
    ("size", "trained", "tested", "parameters"),
    [
        ("f0", 192, 256, 71_489_284),
        ("f1", 224, 320, 132_634_256),
        ("f2", 256, 352, 193_779_228),
        ("f3", 320, 416, 254_924_200),
        ("f4", 384, 512, 316_069_172),
        ("f5", 416, 544, 377_214_144),
        ("f6", 448, 576, 438_359_116),
    ],
)
def test_published_sizes_have_the_published_parameters(size, trained, tested, parameters):
    """The published counts include the classifier of 1,000 classes; F6 without it is Flamingo's 435M."""
    config = Nfnet.Config.sizes()[f"{size}-{trained}"]
    assert Nfnet.Config.sizes()[f"{size}-{tested}"] == dataclasses.replace(config, image_size=tested)
    with torch.device("meta"):
        encoder = config.build()
    found = sum(p.numel() for p in encoder.parameters())
    assert found + (3072 + 1) * 1000 == parameters
    if size == "f6":
        assert found == 435_286_116
    saved = {"architecture": f"dm_nfnet_{size}", "num_classes": 1000, "pretrained_cfg": {"input_size": [3, trained, trained]}}
    assert NFNET.read_config(saved) == config
    assert NFNET.write_config(config)["architecture"] == saved["architecture"]
    assert NFNET.write_config(config)["model_args"] == {}
