"""Ways of a picture into the language model, at the desk's size: published systems' ones, and fusions that none has yet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

from weft.core.catalogue import parts, snake_case
from weft.core.errors import WeftError
from weft.core.interfaces import Fusion, LanguageModel, ModalityEncoder
from weft.fusion.cross_attention import CrossAttention, GatedDense, GatedSwiGLU
from weft.fusion.token_concatenation import TokenConcatenation
from weft.fusion.visual_expert import VisualExpert
from weft.language_models.decoder import Decoder
from weft.recipes.catalogue import tiny_names, tiny_recipe
from weft.recipes.desk import LANGUAGE, SEEING, TOWER
from weft.systems.accounting import on_meta
from weft.systems.multimodal_lm import MultimodalLM, MultimodalSystem
from weft.training.stage import Stage

HEAD_WIDTH = LANGUAGE.width // LANGUAGE.num_heads
_BLOCKS, _WHOLE = "language_model.blocks.", "language_model.*"


@dataclass(frozen=True)
class FusionForm:
    """Fusions that work together, and the rates that what they add learns at, such as gates."""

    fusions: tuple[Fusion.Config, ...]
    rates: Mapping[str, float] = field(default_factory=dict)


@cache
def fusion_forms() -> tuple[dict[str, FusionForm], dict[str, str]]:
    """The distinct forms by name, and the parts of the catalogue that stay out with their reasons.

    A form has the name of the first published system that has it; a part by itself, with its defaults, has its own name. What
    no system has takes part in its smallest form, beside tokens in the text where it reads no stream itself.
    """
    found: dict[str, FusionForm] = {}
    left_out: dict[str, str] = {}
    for name in tiny_names():
        recipe = tiny_recipe(name)
        system = recipe.system
        if not isinstance(system, MultimodalSystem.Config) or system.streams.keys() != SEEING.streams.keys():
            continue
        fusions = tuple(fusion_at_desk(fusion, TOWER) for fusion in system.fusions)
        if all(fusions != form.fusions for form in found.values()):
            rates = recipe.stages[-1].optimizer.rates
            ours = {pattern: rate for pattern, rate in rates.items() if not pattern.startswith("streams.")}
            found[_own_name(fusions) or name] = FusionForm(fusions, ours)
    cls: Any
    known = {type(fusion) for form in found.values() for fusion in form.fusions}
    for name, cls in parts("fusion").items():
        if cls.Config in known:
            continue
        alone: Fusion.Config = cls.Config.tiny()
        fusions = (alone,) if alone.streams else (TokenConcatenation.Config(), alone)
        try:
            on_meta(replace(SEEING, fusions=fusions))
        except (WeftError, RuntimeError, ValueError) as error:
            left_out[name] = f"cannot be built for the desk: {error}"
        else:
            found[name] = FusionForm(fusions)
    return dict(sorted(found.items())), left_out


def fusion_at_desk(fusion: Fusion.Config, encoder: ModalityEncoder.Config) -> Fusion.Config:
    """Gated blocks in front of every second block, from the place where the recipe has the first."""
    if not isinstance(fusion, CrossAttention.Config):
        return fusion
    block = fusion.block
    if isinstance(block, GatedDense) and block.num_heads is not None:
        block = replace(block, num_heads=LANGUAGE.num_heads, head_width=HEAD_WIDTH)
    if isinstance(block, GatedSwiGLU) and block.num_key_value_heads is not None:
        block = replace(block, num_key_value_heads=LANGUAGE.num_key_value_heads)
    width = None if fusion.memory_width is None else encoder.output_width
    return replace(fusion, block=block, every=2, first=fusion.first % 2, memory_width=width)


def expert_copies(fusions: Sequence[Fusion.Config], model: LanguageModel.Config) -> dict[str, str]:
    """What visual experts take of a language model: they start as copies of the layers that they stand beside."""
    copies: dict[str, str] = {}
    for fusion in fusions:
        if isinstance(fusion, VisualExpert.Config):
            assert isinstance(model, Decoder.Config)  # experts stand in decoders
            layers = ("feed_forward", "attention") if fusion.attention else ("feed_forward",)
            for block in (f"{_BLOCKS}{i}." for i in range(model.num_layers)):
                copies |= {f"{block}{layer}.*": f"{block}{layer}.routes.visual." for layer in layers}
    return copies


def family(fusions: Sequence[Fusion.Config]) -> str:
    """The kind that fusions are of."""
    if any(isinstance(fusion, VisualExpert.Config) for fusion in fusions):
        return "visual expert"
    if any(isinstance(fusion, CrossAttention.Config) for fusion in fusions):
        return "gated cross-attention"
    return "tokens" if all(isinstance(fusion, TokenConcatenation.Config) for fusion in fusions) else "other"


def fused(stage: Stage, form: FusionForm) -> Stage:
    """The stage with other fusions in its system; what they add and is no copy begins anew."""
    system = stage.system
    assert isinstance(system, MultimodalLM.Config)
    if form.fusions == system.fusions:
        return stage
    copies = expert_copies(form.fusions, system.language_model)
    takes = {name: {**taken, **(copies if _WHOLE in taken else {})} for name, taken in stage.takes.items()}
    return replace(
        stage,
        system=replace(system, fusions=form.fusions),
        takes=takes,
        new=tuple(dict.fromkeys((*stage.new, _WHOLE))) if takes else stage.new,
        optimizer=replace(stage.optimizer, rates={**stage.optimizer.rates, **form.rates}),
    )


def _own_name(fusions: Sequence[Fusion.Config]) -> str:
    """The catalogue's name of a part that stands alone as it is by default, empty for any other."""
    (first, *others) = fusions
    return "" if others or first != type(first)() else snake_case(first.part_name)
