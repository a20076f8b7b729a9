"""What a system costs, against cases worked out by hand and against a real run."""

from dataclasses import replace

import pytest
import torch

from weft.core.batch import MultimodalBatch, TextSide
from weft.core.errors import ConfigError
from weft.core.interfaces import System
from weft.encoders.clip import ClipText, ClipVision
from weft.encoders.siglip import SiglipText, SiglipVision
from weft.fusion.token_concatenation import TokenConcatenation
from weft.language_models.decoder import Decoder
from weft.projectors.linear import Linear
from weft.projectors.mlp import MLP
from weft.systems.accounting import SampleShape, cost, num_parameters, on_meta, parts
from weft.systems.dual_encoder import DualEncoder
from weft.systems.multimodal_lm import MultimodalLM, Stream

TINY = Decoder.Config.tiny()
TEXT_ONLY = MultimodalLM.Config(language_model=TINY)
SEEING = MultimodalLM.Config(
    language_model=TINY,
    streams={"image": Stream.Config(encoder=ClipVision.Config.tiny(), projector=Linear.Config())},
    fusions=(TokenConcatenation.Config(),),
)


def decoder_flops(c: Decoder.Config, tokens: int, head_tokens: int) -> tuple[int, int]:
    """(linear layers, attention) of one forward: 2 per weight and token; 4 per pair of tokens and channel."""
    head_width = c.head_width or c.width // c.num_heads
    attention = c.width * head_width * (2 * c.num_heads + 2 * c.num_key_value_heads)
    layer = attention + 3 * c.width * c.feed_forward_width
    linear = 2 * tokens * c.num_layers * layer + 2 * head_tokens * c.width * c.vocabulary
    return linear, 4 * tokens**2 * c.num_heads * head_width * c.num_layers


@pytest.mark.parametrize(("size", "parameters"), [("7b", 7_062_902_784), ("13b", 13_350_839_296)])
def test_llava_1_5_has_the_published_number_of_parameters(size, parameters):
    config = MultimodalLM.Config(
        language_model=Decoder.Config.sizes()[f"vicuna-{size}-v1.5"],
        streams={"image": Stream.Config(encoder=ClipVision.Config.sizes()["l-14-336"], projector=MLP.Config())},
        fusions=(TokenConcatenation.Config(),),
    )
    assert num_parameters(on_meta(config)) == parameters


@pytest.mark.parametrize(
    ("config", "parameters"),
    [
        (DualEncoder.Config(media=ClipVision.Config(), text=ClipText.Config(), embedding_width=512), 151_277_313),
        (
            DualEncoder.Config(
                media=SiglipVision.Config.sizes()["so400m-14-384"],
                text=SiglipText.Config.sizes()["so400m-14-384"],
                initial_bias=-10.0,
            ),
            877_960_498,
        ),
    ],
    ids=["clip b-32", "siglip so400m"],
)
def test_dual_encoders_have_the_published_number_of_parameters(config, parameters):
    system = on_meta(config)
    assert num_parameters(system) == parameters
    assert sum(part.parameters for part in parts(system)) == parameters


def test_a_shared_parameter_counts_once():
    tied = replace(TINY, tied_head=True)
    free = num_parameters(on_meta(TEXT_ONLY))
    assert num_parameters(on_meta(MultimodalLM.Config(language_model=tied))) == free - TINY.vocabulary * TINY.width


def test_forward_arithmetic_is_what_one_counts_by_hand():
    tokens = 10
    linear, attention = decoder_flops(TINY, tokens, tokens)
    assert cost(on_meta(TEXT_ONLY), SampleShape(tokens)).forward_flops == linear + attention


def test_a_medium_adds_its_tokens_and_its_encoder():
    text, image = 10, 16
    vision = ClipVision.Config.tiny()
    patches, hidden = image + 1, vision.num_layers - 1  # the class token; layer -2 leaves the last block out
    block = 4 * vision.width**2 + 2 * vision.width * vision.feed_forward_width
    encoder = 2 * patches * hidden * block + 4 * patches**2 * vision.width * hidden
    stem = 2 * image * 3 * vision.patch_size**2 * vision.width
    projector = 2 * image * vision.width * TINY.width
    linear, attention = decoder_flops(TINY, text + image, text)
    counted = cost(on_meta(SEEING), SampleShape(text, {"image": (1, 3, 32, 32)}))
    assert counted.forward_flops == encoder + stem + projector + linear + attention


def test_backward_costs_twice_the_forward_where_everything_trains():
    tokens = 10
    linear, attention = decoder_flops(TINY, tokens, tokens)
    counted = cost(on_meta(TEXT_ONLY), SampleShape(tokens))
    # five products against two: the backward of a memory-saving kernel computes the scores again
    assert counted.backward_flops == 2 * linear + attention * 5 // 2


def test_backward_through_a_frozen_language_model_costs_no_weight_gradients():
    system, sample = on_meta(SEEING), SampleShape(10, {"image": (1, 3, 32, 32)})
    system.requires_grad_(False)
    assert cost(system, sample).backward_flops == 0
    system.stream("image").projector.requires_grad_(True)
    frozen = cost(system, sample)
    system.language_model.requires_grad_(True)
    trained = cost(system, sample)
    linear, attention = decoder_flops(TINY, 26, 10)
    projector = 2 * 16 * 64 * TINY.width  # its weights' gradient; the encoder before it asks for none
    assert frozen.backward_flops == linear + attention * 5 // 2 + projector
    assert trained.backward_flops == frozen.backward_flops + linear


def kept_by_autograd(system: System, tokens: int) -> int:
    """Bytes that a real forward keeps for its backward, parameters left out."""
    weights = {p.untyped_storage().data_ptr() for p in system.parameters()}
    kept = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = tensor
        return tensor

    row = torch.arange(tokens)[None]
    text = TextSide(tokens=row % 7, order=row, segment=row * 0 + 1, positions=row, modality=row * 0)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = system(MultimodalBatch(text)).logits()
    assert output.requires_grad
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def test_activations_are_what_autograd_keeps_in_a_real_run():
    tokens = 64
    counted = cost(on_meta(TEXT_ONLY), SampleShape(tokens), torch.float32).activation_bytes
    real = kept_by_autograd(TEXT_ONLY.build(), tokens)
    # norms take another path on the meta device, and the CPU's fused kernel repeats grouped keys
    assert counted == pytest.approx(real, rel=0.25)


def test_activations_grow_linearly_with_the_text():
    system = on_meta(TEXT_ONLY)
    once, twice = (cost(system, SampleShape(tokens)).activation_bytes for tokens in (64, 128))
    assert twice == pytest.approx(2 * once, rel=0.01)  # buffers of a few bytes do not grow


def test_evaluation_keeps_nothing():
    counted = cost(on_meta(TEXT_ONLY), SampleShape(16), training=False)
    assert counted.activation_bytes == 0
    assert counted.backward_flops == 0
    assert counted.forward_flops > 0


def test_a_dual_encoder_is_counted_by_tower():
    config = DualEncoder.Config(media=ClipVision.Config.tiny(), text=ClipText.Config.tiny(), embedding_width=32)
    size = config.media.image_size
    short, long = (cost(on_meta(config), SampleShape(n, {"image": (1, 3, size, size)})) for n in (8, 16))
    text = config.text
    block = 4 * text.width**2 + 2 * text.width * text.feed_forward_width
    attention = 4 * (16**2 - 8**2) * text.width * text.num_layers
    assert long.forward_flops - short.forward_flops == 2 * 8 * text.num_layers * block + attention


def test_siglip_reads_its_whole_context_whatever_the_text():
    config = DualEncoder.Config(media=SiglipVision.Config.tiny(), text=SiglipText.Config.tiny(), initial_bias=-10.0)
    size = config.media.image_size
    short, long = (cost(on_meta(config), SampleShape(n, {"image": (1, 3, size, size)})) for n in (8, 16))
    assert short == long


def test_parts_carry_the_names_of_their_parameters():
    system = on_meta(SEEING)
    names = [name for name, _ in system.named_parameters()]

    def walk(found):
        for part in found:
            inside = [n for n in names if n == part.name or n.startswith(part.name + ".")]
            assert sum(system.get_parameter(n).numel() for n in inside) == part.parameters, part.name
            walk(part.children)

    walk(parts(system))
    assert [part.name for part in parts(system)] == ["language_model", "streams"]


def test_an_unknown_kind_of_system_is_told_where_a_rule_belongs():
    class Odd(System):
        def encode(self, batch):
            return {}

        def forward(self, batch, media=None):
            return None

    with pytest.raises(ConfigError, match="accounting"):
        cost(Odd(), SampleShape(4))
