"""What a system costs before any of it exists: parameters, arithmetic and activation memory, on the meta device.

The parts' own code runs on tensors without data, so a new part is counted without a formula of its own.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from functools import singledispatch
from typing import Any, ClassVar, Self, cast

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from weft.core.attention_rule import AttentionRule
from weft.core.batch import TextSide
from weft.core.errors import ConfigError
from weft.core.interfaces import ENCODED, Fusion, ModalityEncoder, System
from weft.core.layout import MediaLayout
from weft.core.memory import Memory
from weft.core.sequence import TokenSequence
from weft.layers.kernels import use_kernel
from weft.systems.dual_encoder import DualEncoder
from weft.systems.fusion_encoder import FusionEncoder
from weft.systems.media_encoder import MediaEncoder
from weft.systems.multimodal_lm import MultimodalLM, MultimodalSystem
from weft.systems.multimodal_seq2seq import MultimodalSeq2Seq


@dataclass(frozen=True)
class SampleShape:
    """One sample: its text and, by stream, the shape of its one medium as the encoder takes it.

    Units: `text_tokens` in tokens, media not counted; `units` e.g. {"image": (1, 3, 336, 336)}. `layouts` where a medium has
    several units, such as a video's frames; else the encoder's own.
    """

    text_tokens: int
    units: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    layouts: Mapping[str, MediaLayout] = field(default_factory=dict)


@dataclass(frozen=True)
class Cost:
    """One sample's cost.

    Units: floating-point operations (a multiplication and an addition are two), and bytes of what the forward keeps for the
    backward. Only matrix products and convolutions are counted; attention counts every pair, masked or not.
    """

    forward_flops: int
    backward_flops: int
    activation_bytes: int


class without_values(TorchFunctionMode):
    """Inside the block, new modules have neither memory nor initial values: what fills a tensor in place does nothing.

    Half of the time of building on the meta device goes into filling what is not there, and its first product or draw loads
    PyTorch's compiler, which takes as long as PyTorch itself. So a draw is an empty tensor, scaled or not, and what starts from
    a range or from listed numbers, such as a table of positions, is small and computed for what it is. Nor does the garbage
    collector walk through all modules again and again: they hold no circles.
    """

    _MADE: ClassVar = frozenset((torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn, torch.eye))

    _FILLS: ClassVar = frozenset(
        (*(getattr(nn.init, name) for name in dir(nn.init) if name.endswith("_") and not name.startswith("_")),
         Tensor.normal_, Tensor.uniform_, Tensor.fill_, Tensor.zero_, Tensor.mul_, Tensor.div_)
    )  # fmt: skip
    _TABLES: ClassVar = frozenset((torch.arange, torch.linspace, torch.tensor))
    _SCALES: ClassVar = frozenset((Tensor.mul, Tensor.__mul__, Tensor.div, Tensor.__truediv__))

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in self._FILLS:
            return args[0] if args else kwargs["tensor"]
        if func in self._MADE:
            return (torch.empty if func is torch.randn else func)(*args, **{**kwargs, "device": "meta"})
        if func in self._TABLES:
            return func(*args, **{**kwargs, "device": "cpu"})
        if func in self._SCALES and isinstance(args[0], Tensor) and args[0].is_meta and isinstance(args[1], int | float):
            return args[0]
        return func(*args, **kwargs)

    def __enter__(self) -> Self:
        self._collects = gc.isenabled()
        gc.disable()
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        if self._collects:
            gc.enable()


def on_meta(config: System.Config) -> System:
    """The system without memory behind its parameters."""
    with torch.device("meta"):
        return config.build()


def num_parameters(parameters: Iterable[nn.Parameter] | nn.Module) -> int:
    """Parameters, shared ones once."""
    if isinstance(parameters, nn.Module):
        parameters = parameters.parameters()
    return sum({id(p): p.numel() for p in parameters}.values())


def num_table_values(module: nn.Module) -> int:
    """Values of fixed tables, such as sinusoids, that are no parameters but stand in some published counts."""
    return sum(buffer.numel() for buffer in module.buffers() if buffer.dim() > 1 and buffer.is_floating_point())


def omitted(config: Any) -> dict[str, int]:
    """What a part and those that its config holds leave out of their published models, by name, with its parameters."""
    found = dict(getattr(config, "omitted", {}))
    for inner in fields(config) if is_dataclass(config) else ():
        if isinstance(held := getattr(config, inner.name), ModalityEncoder.Config):
            found |= {f"{inner.name}'s {name}": parameters for name, parameters in omitted(held).items()}
    return found


def cost(system: System, sample: SampleShape, dtype: torch.dtype = torch.bfloat16, training: bool = True) -> Cost:
    """The cost of one sample through a system on the meta device, with the parameters trained that require gradients.

    Raises: ConfigError for a kind of system that has no rule here.
    """
    system = system.to(dtype)
    kept: dict[int, Tensor] = {}
    weights = {p.untyped_storage()._cdata for p in (*system.parameters(), *system.buffers())}

    def keep(tensor: Tensor) -> Tensor:
        key = tensor.untyped_storage()._cdata
        if key not in weights:
            kept[key] = tensor
        return tensor

    with (
        torch.set_grad_enabled(training),
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        use_kernel(shape_only),
        FlopCounterMode(display=False) as forward,
    ):
        outputs = run_on_meta(system, sample, dtype)
    backward = FlopCounterMode(display=False)
    differentiable = [output for output in outputs if output.requires_grad]
    if differentiable:
        with backward:
            torch.autograd.backward([output.sum() for output in differentiable])
    activation_bytes = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    return Cost(forward.get_total_flops(), backward.get_total_flops(), activation_bytes)


def shape_only(query: Tensor, key: Tensor, value: Tensor, rule: AttentionRule) -> Tensor:
    """Attention without data, as a memory-saving kernel holds it: what counts is its arithmetic and what it keeps."""
    batch, heads, tokens, width = query.shape
    groups = heads // key.shape[1]
    folded = query.reshape(batch, key.shape[1], groups * tokens, width)  # heads that share keys lie side by side
    mixed = torch.ops.aten._scaled_dot_product_flash_attention(folded, key, value, 0.0, False, False)[0]
    return mixed.reshape(batch, heads, tokens, width)


@singledispatch
def run_on_meta(system: System, sample: SampleShape, dtype: torch.dtype) -> list[Tensor]:
    """Run one sample without data; returns what losses read."""
    raise ConfigError(
        f"no accounting for {type(system).__name__}; add a rule for it beside the others in systems/accounting.py"
    )


@run_on_meta.register
def _multimodal_lm(system: MultimodalLM, sample: SampleShape, dtype: torch.dtype) -> list[Tensor]:
    hidden = _read(system, sample, dtype)
    return [system.head(hidden[:, : sample.text_tokens])]


@run_on_meta.register
def _multimodal_seq2seq(system: MultimodalSeq2Seq, sample: SampleShape, dtype: torch.dtype) -> list[Tensor]:
    """Beside what the encoder reads, the decoder writes as much text again: the most that a stage's bound allows."""
    memory = {ENCODED: _seen_by_all(_read(system, sample, dtype), sample.text_tokens)}
    tokens = torch.zeros(1, sample.text_tokens, dtype=torch.long, device="meta")
    rule = AttentionRule.causal(1, sample.text_tokens, "meta")
    hidden, _ = system.language_model(TokenSequence(system.embed(tokens), tokens, rule, tokens, memory))
    return [system.head(hidden)]


def _read(system: MultimodalSystem, sample: SampleShape, dtype: torch.dtype) -> Tensor:
    """The hidden states of text and media, text first."""
    memory = {}
    embeddings = [system.embed(torch.zeros(1, sample.text_tokens, dtype=torch.long, device="meta"))]
    for name, shape in sample.units.items():
        stream = system.stream(name)
        encoder = stream.encoder
        layout = sample.layouts.get(name, encoder.config.layout())
        trained = any(p.requires_grad for p in encoder.parameters())
        with torch.set_grad_enabled(torch.is_grad_enabled() and trained):
            features = encoder(*_units(shape, dtype), (layout,))
        tokens = stream.projector(features)
        positions = system.config.num_positions(name, layout)
        if system.config.visibility(name) is None:
            embeddings.append(tokens.values[None, :positions])
        else:
            memory[name] = tokens.values[None]
            embeddings.append(embeddings[0][:, :positions])  # a tag
    embedded = torch.cat(embeddings, 1)
    length = embedded.shape[1]
    positions = torch.zeros(1, length, dtype=torch.long, device="meta")
    rule = AttentionRule.causal(1, length, "meta")
    beside = {name: _seen_by_all(values, length) for name, values in memory.items()}
    modality = (torch.arange(length) >= sample.text_tokens).long()[None]  # real: where things are decides what they cost
    sequence = TokenSequence(embedded, positions, rule, modality, beside)
    for each in system.fusions:
        fusion = cast(Fusion, each)
        if not fusion.config.streams:  # it changes what becomes of tokens that another has put there
            sequence = fusion.fuse(sequence, {})
    hidden, _ = system.reading_half(sequence)
    return hidden


@run_on_meta.register
def _dual_encoder(system: DualEncoder, sample: SampleShape, dtype: torch.dtype) -> list[Tensor]:
    units, unit_item = _units(sample.units[system.config.stream], dtype)
    places = torch.arange(min(sample.text_tokens, system.config.text.context))[None]
    ones = torch.ones_like(places)
    text = TextSide(tokens=ones, order=places, segment=ones, positions=places, modality=ones * 0)
    media = system.project_media(units, unit_item, (system.config.media.layout(),))
    return [media, system.text_projection(system.text(text))]


@run_on_meta.register
def _fusion_encoder(system: FusionEncoder, sample: SampleShape, dtype: torch.dtype) -> list[Tensor]:
    """What its three objectives read: a pair for the contrast, three for the matching, one that is written."""
    stream, layout = system.stream(system.config.stream), system.config.layout(system.config.stream)
    trained = any(p.requires_grad for p in stream.encoder.parameters())
    with torch.set_grad_enabled(torch.is_grad_enabled() and trained):
        features = stream.encoder(*_units(sample.units[system.config.stream], dtype), (layout,))
    features = replace(features, valid=None, unit_item=torch.zeros(1, dtype=torch.long))
    place = torch.zeros(1, min(sample.text_tokens, system.config.context), dtype=torch.long)
    read = [system.read(features, place, place, place + 1) for _ in range(5)]
    (queries, text), *matched, (_, written) = read
    heads = [system.matching_head(asked) for asked, _ in matched]
    return [system.media_projection(queries), system.text_projection(text[:, 0]), *heads, system.words(written)]


@run_on_meta.register
def _media_encoder(system: MediaEncoder, sample: SampleShape, dtype: torch.dtype) -> list[Tensor]:
    units, unit_item = _units(sample.units[system.config.stream], dtype)
    features, convolved = system.hidden_features(units, unit_item, (system.config.encoder.layout(),), None)
    return [system.head(features.values), convolved]


def _seen_by_all(values: Tensor, num_tokens: int) -> Memory:
    """One medium beside one row, seen by every token. Shapes: values [1, M, C]."""
    item, visible = torch.zeros(1, values.shape[1], dtype=torch.long), torch.zeros(1, num_tokens, 2, dtype=torch.long)
    return Memory(values, item, visible)


def _units(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Values without data, but the real numbers of the items: parts may look at where things are, never at what they are."""
    return torch.empty(shape, dtype=dtype, device="meta"), torch.zeros(shape[0], dtype=torch.long)


@dataclass(frozen=True)
class Part:
    """A part of a system, by the prefix of its parameters' names, and the parts inside it.

    `table_values` and `omitted` are not among the `parameters`: values of fixed tables, and what the part leaves out of the
    published model, with its parameters.
    """

    name: str
    kind: str
    parameters: int
    children: tuple[Part, ...] = ()
    table_values: int = 0
    omitted: Mapping[str, int] = field(default_factory=dict)


def parts(module: nn.Module, name: str = "") -> tuple[Part, ...]:
    """The parts inside a module that hold parameters, down to those that a config describes or that PyTorch brings."""
    prefix = f"{name}." if name else ""
    inside = []
    for key, child in module.named_children():
        if size := num_parameters(child):
            whole = hasattr(child, "config") or (type(child).__module__.startswith("torch.nn.modules.") and not _is_list(child))
            below = () if whole else parts(child, f"{prefix}{key}")
            left_out = omitted(child.config) if hasattr(child, "config") else {}
            inside.append(Part(f"{prefix}{key}", type(child).__name__, size, below, num_table_values(child), left_out))
    own = [Part(f"{prefix}{key}", "Parameter", p.numel()) for key, p in module.named_parameters(recurse=False)]
    return (*inside, *own)


def _is_list(module: nn.Module) -> bool:
    return isinstance(module, nn.ModuleDict | nn.ModuleList | nn.Sequential)
