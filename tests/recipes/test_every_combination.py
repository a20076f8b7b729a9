"""Every fusion on every kind of language model in every multimodal recipe: trained through all stages, saved, opened, asked."""

import dataclasses
import itertools
from collections import Counter
from dataclasses import replace
from fnmatch import fnmatchcase

import pytest
import torch
from tiny_model import language_models

from weft.core.catalogue import parts
from weft.core.conversation import Conversation
from weft.data.collate import collate
from weft.fusion.token_concatenation import TokenConcatenation
from weft.inference.model import Model
from weft.inference.sampling import Sampling
from weft.recipes.catalogue import tiny_names, tiny_recipe
from weft.recipes.loading import load_system
from weft.recipes.shrinking import TINY_VOCABULARY, tiny_tokenizer
from weft.systems.accounting import on_meta
from weft.systems.multimodal_lm import MultimodalLM
from weft.training.data_stream import SampleOrder
from weft.training.trainer import Trainer

pytestmark = pytest.mark.exhaustive


def kinds():
    """Each language model at tiny size, and once more with each of its yes-or-no fields turned over and with each of its empty
    fields as a published layout fills it."""
    found = {}
    for name, part in parts("language_models").items():
        tiny = replace(part.Config.tiny(), vocabulary=TINY_VOCABULARY, context=512)
        found[name] = tiny
        for field in dataclasses.fields(tiny):
            if isinstance(value := getattr(tiny, field.name), bool):
                found[f"{name}-{'not-' if value else ''}{field.name}"] = replace(tiny, **{field.name: not value})
            elif value is None:
                forms = [form for form in language_models().values() if type(form) is type(tiny)]
                if filled := [new for form in forms if (new := getattr(form, field.name)) is not None]:
                    found[f"{name}-{field.name}"] = replace(tiny, **{field.name: filled[0]})
    # Two layers that see eight tokens back do not reach from the answer of MiniGPT-4 to its picture.
    return found | {"decoder-window": replace(found["decoder-window"], window=16)}


def takes(kind, fusion):
    """Whether a fusion can enter the language model; tokens beside the text's need no slot."""
    return bool(parts("language_models")[kind.partition("-")[0]].slots) or fusion == "token_concatenation"


KINDS = kinds()
MULTIMODAL = [name for name in tiny_names() if isinstance(tiny_recipe(name).system, MultimodalLM.Config)]
FUSED = [(kind, fusion) for kind, fusion in itertools.product(KINDS, parts("fusion")) if takes(kind, fusion)]
PRODUCT = [(recipe, *pair) for recipe in MULTIMODAL for pair in FUSED]


def composed(recipe, kind, fusion):
    """The recipe with another language model and another fusion in every stage; further streams stand in the text.

    What the fusion adds is trained, gates fast enough for so few steps; what the recipe's own fusion added is not there, and no
    later stage takes it.
    """
    made, states = tiny_recipe(recipe), {}

    def of_this_system(stage):
        if not isinstance(stage.system, MultimodalLM.Config):  # a stage before there is a language model
            states[stage.name] = list(on_meta(stage.system).state_dict())
            return stage
        fused, streams = parts("fusion")[fusion].Config.tiny(), tuple(stage.system.streams)
        fused, rest = (replace(fused, streams=streams[:1]), streams[1:]) if fused.streams else (fused, streams)
        fusions = (*([TokenConcatenation.Config(streams=rest)] if rest else []), fused)
        system = replace(stage.system, language_model=KINDS[kind], fusions=fusions, added_tokens=None)
        names = states[stage.name] = list(on_meta(system).state_dict())

        def there(patterns, names=names):
            return tuple(p for p in patterns if any(fnmatchcase(name, p.removeprefix("!")) for name in names))

        train = (*stage.train, "language_model.blocks.*.before_attention.*", "language_model.blocks.*.routes.*")
        takes = {
            earlier: {pattern: prefixes[pattern] for pattern in there(prefixes, states[earlier])}
            for earlier, prefixes in stage.takes.items()
        }
        rates = {"*_gate": 50.0} if there(("*_gate",)) else {}
        optimizer = replace(stage.optimizer, rates=rates, weight_decay_except=())
        return replace(stage, system=system, train=there(train), takes=takes, optimizer=optimizer)

    return replace(made, stages=tuple(map(of_this_system, made.stages)))


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer(100)


def test_the_product_is_as_large_as_its_factors():
    assert MULTIMODAL and len(KINDS) >= 4
    closed = [kind for kind in KINDS if not takes(kind, "cross_attention")]
    assert closed == ["hf_wrapper"] and {"decoder-window", "decoder-rope_scaling", "decoder-log_scaling_context"} <= set(KINDS)
    entered = len(KINDS) * len(parts("fusion")) - len(closed) * (len(parts("fusion")) - 1)
    assert len(PRODUCT) == len(MULTIMODAL) * entered


class Watched(Trainer):
    """A trainer that keeps each stage's loss over all samples it trains on, before its first step and after its last."""

    losses: dict[str, tuple[float, float]]

    def _train_stage(self, index, stage, system, log, interrupts):
        before = self.loss(stage, system)
        super()._train_stage(index, stage, system, log, interrupts)
        self.losses = {**getattr(self, "losses", {}), stage.name: (before, self.loss(stage, system))}

    @torch.no_grad()
    def loss(self, stage, system):
        dataset, processor = stage.data.build(), stage.processor.build(self.tokenizer, stage.system)
        order = SampleOrder(len(dataset), stage.batch_size, self.seed, stage.name, dataset.endless, dataset.shuffled)
        objective, sums, weights = stage.objective.build().eval(), Counter(), Counter()
        system.eval()
        for step in range(stage.steps):
            encoded = [processor.encode_all(dataset[index], max_tokens=stage.max_tokens) for index in order.indices(step)]
            terms = objective(system, collate([sample for conversation in encoded for sample in conversation]))
            sums.update({name: total.item() for name, total in terms.sums.items()})
            weights.update({name: weight.item() for name, weight in terms.weights.items()})
        return sum(sums[name] / weights[name] for name in sums)


@pytest.mark.parametrize(("recipe", "kind", "fusion"), PRODUCT, ids=map("/".join, PRODUCT))
def test_it_trains_and_answers(recipe, kind, fusion, tokenizer, tmp_path):
    made = composed(recipe, kind, fusion)
    trainer = Watched(made, tmp_path / "run", tokenizer=tokenizer, checkpoint_seconds=1e9)
    folder = trainer.fit()
    assert list(trainer.losses) == [stage.name for stage in made.stages]
    for name, (before, after) in trainer.losses.items():
        assert after < before, f"{name} learned nothing: {before} -> {after}"

    loaded = load_system(folder)
    assert loaded.system.config == made.system
    loaded.processor.stop_ids = frozenset()  # nothing may end an answer, so there is one
    dialogues = made.stages[-1].data.build()
    questions = [Conversation(dialogues[index].messages[:1]) for index in range(2)]
    alone = [Model(loaded.system, loaded.processor).generate([q], Sampling(max_new_tokens=4))[0] for q in questions]
    together = Model(loaded.system, loaded.processor).generate(questions, Sampling(max_new_tokens=4))
    assert all(len(reply.token_ids) == 4 or reply.finish_reason == "stop" for reply in alone)  # a template may spell its end
    assert [reply.token_ids for reply in together] == [reply.token_ids for reply in alone]
