"""`weft compare systems`: every published system, through all of its stages, from one tower and one language model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache

from weft.core.conversation import Conversation, Text
from weft.core.errors import ConfigError, unknown_name
from weft.core.interfaces import System
from weft.data.desk.dataset import DeskConversations
from weft.data.tokenizers import Tokenizer
from weft.language_models.t5 import T5
from weft.projectors.qformer import QFormer
from weft.recipes.catalogue import tiny_names, tiny_recipe
from weft.recipes.comparison_candidates import PLACES, chosen, seeds_of
from weft.recipes.comparison_fusions import family
from weft.recipes.comparison_plan import STREAM, Candidate, PartsPlan, Plan
from weft.recipes.comparison_shared import STARTS, TYPES, shared_stages
from weft.recipes.comparison_systems import at_desk, system_at_desk
from weft.recipes.desk import BOXES, SPECIAL, VOCABULARY
from weft.systems.multimodal_lm import MultimodalLM, MultimodalSystem
from weft.systems.multimodal_seq2seq import MultimodalSeq2Seq
from weft.training.stage import Recipe

SYSTEMS = "systems"
STEPS = 1500
QUICK_STEPS = 500
SEVERAL_SEEDS = ("llava-1.5", "blip-2", "blip-2-t5", "flamingo", "cogvlm")
"""One of each family of fusions: tokens, Q-Former, encoder-decoder, gated cross-attention, visual expert."""
IMAGE_TOKEN = "<image>"
_BASE = ("language", "text_only")  # every comparison trains these


@dataclass(frozen=True)
class SystemsPlan(Plan):
    """Systems that see pictures and answer; `steps` are those of all stages of a row together."""

    room: str = SYSTEMS
    steps: int = STEPS

    @property
    def candidates(self) -> tuple[Candidate, ...]:
        found, left_out = _systems(self.steps)
        return tuple(
            Candidate(
                name,
                found[name],
                seeds_of(name, SEVERAL_SEEDS) if self.seeds is None else self.seeds,
                family=system_family(found[name]),
            )
            for name in chosen("system", found, left_out, self.only)
        )

    @property
    def left_out(self) -> Mapping[str, str]:
        return _systems(self.steps)[1]

    @property
    def shared(self) -> tuple[Recipe, ...]:
        """A run for each stage that a candidate starts from, so that another choice of candidates finds what is there."""
        stages = shared_stages()
        needed = {stage.name for candidate in self.candidates for stage in candidate.recipe.stages} | set(_BASE)
        return tuple(
            Recipe(name=name, stages=tuple(stages[part] for part in (*STARTS.get(name, ()), name)))
            for name in stages
            if name in needed
        )

    @property
    def text_only(self) -> str:
        return "text_only"

    @property
    def budget(self) -> str:
        return f"{self.steps:,} steps over the stages of a system"

    @property
    def types(self) -> tuple[str, ...]:
        return TYPES

    def tokenizer(self, candidate: Candidate | None = None) -> Tokenizer:
        """The words of the desk; a system that adds tokens to its language model's adds those of pictures to them."""
        words = system_tokenizer()
        if candidate is None:
            return words
        system = candidate.recipe.system
        assert isinstance(system, MultimodalSystem.Config)
        if system.instruction_vocabulary(STREAM) is not None:
            words = words.with_instructions(words)
        if isinstance(system, MultimodalLM.Config) and system.added_tokens is not None:
            reserved = [f"<added {number}>" for number in range(1, system.added_tokens.num_inputs)]
            words = words.with_special((IMAGE_TOKEN, *reserved))
        return words


def plan_of(room: str, **settings: object) -> Plan:
    """The plan of a room of parts, or of systems. Raises: ConfigError for an unknown room and what the plan raises."""
    if room == SYSTEMS:
        return SystemsPlan(**settings)  # type: ignore[arg-type]
    if room not in PLACES:
        raise unknown_name("kind to compare", room, (*PLACES, SYSTEMS))
    return PartsPlan(room, **settings)  # type: ignore[arg-type]


def system_family(recipe: Recipe) -> str:
    """The kind of fusion that a system's last stage has."""
    system = recipe.system
    assert isinstance(system, MultimodalSystem.Config)
    if isinstance(system, MultimodalSeq2Seq.Config):
        return "encoder-decoder"
    kind = family(system.fusions)
    return "Q-Former" if kind == "tokens" and isinstance(system.streams[STREAM].projector, QFormer.Config) else kind


@cache
def _systems(steps: int) -> tuple[dict[str, Recipe], dict[str, str]]:
    """The systems at the desk's size by name, and the recipes that stay out with their reasons."""
    found: dict[str, Recipe] = {}
    left_out: dict[str, str] = {}
    for name in tiny_names():
        recipe = tiny_recipe(name)
        if reason := _why_not(recipe):
            left_out[name] = reason
            continue
        found[name] = at_desk(recipe, steps)
        if name == "blip-2":
            found["blip-2-t5"] = at_desk(_on_t5(recipe), steps)
    return dict(sorted(found.items())), left_out


def _why_not(recipe: Recipe) -> str:
    system = recipe.system
    if not isinstance(system, MultimodalSystem.Config):
        return "answers no questions"
    if set(system.streams) != {STREAM}:
        return f"is shown {' and '.join(sorted(system.streams))}, not pictures alone"
    try:
        system_at_desk(system)
    except ConfigError as error:
        return str(error)
    return ""


def _on_t5(recipe: Recipe) -> Recipe:
    """BLIP-2's recipe on its other kind of language model."""

    def moved(system: System.Config) -> System.Config:
        if not isinstance(system, MultimodalLM.Config):
            return system
        return MultimodalSeq2Seq.Config(language_model=T5.Config.tiny(), streams=system.streams, fusions=system.fusions)

    return replace(recipe, stages=tuple(replace(stage, system=moved(stage.system)) for stage in recipe.stages))


@cache
def system_tokenizer(num_scenes: int = 1500) -> Tokenizer:
    """The desk's words in exactly `VOCABULARY` ids; pictures have none, they stand between the pieces of a text."""
    special = tuple(token for token in SPECIAL if token != IMAGE_TOKEN)
    words = Tokenizer.train(_texts(num_scenes), VOCABULARY, special)
    return words.with_special([f"<unused {number}>" for number in range(VOCABULARY - words.vocabulary)])


def _texts(num_scenes: int) -> Iterator[str]:
    for kind in ("caption", "text"):
        scenes: Sequence[Conversation] = DeskConversations.Config(kind=kind, boxes=BOXES).build()  # type: ignore[arg-type, assignment]
        for index in range(num_scenes):
            for message in scenes[index].messages:
                for part in message.parts:
                    if isinstance(part, Text):
                        yield from (part.text, f" {part.text}")
