"""Every recipe's tiny form trains through all its stages on the desk within seconds, and what it leaves can be used."""

import json
import time
from dataclasses import replace
from statistics import mean

import pytest
import torch

from weft.core.conversation import Conversation
from weft.data.collate import collate
from weft.data.desk.dataset import DeskConversations
from weft.data.desk.listening import DeskListening
from weft.data.desk.sounds import DeskSounds
from weft.data.desk.watching import DeskWatching
from weft.inference.model import Model
from weft.inference.sampling import Sampling
from weft.inference.score_choices import score_choices
from weft.recipes.catalogue import tiny_names, tiny_recipe
from weft.recipes.loading import load_system
from weft.recipes.shrinking import TINY_VOCABULARY, tiny_tokenizer
from weft.systems.dual_encoder import DualEncoder
from weft.systems.fusion_encoder import FusionEncoder
from weft.systems.media_encoder import MediaEncoder
from weft.training.cluster_targets import Labelled, frame_features, read_clusters
from weft.training.randomness import seed_everything
from weft.training.trainer import Trainer

COUNTED = {"split": "test", "num_turns": 1, "mix": {"count": 1.0}}
COUNTS = {
    "image": DeskConversations.Config(**COUNTED).build(),
    "audio": DeskListening.Config(**COUNTED).build(),
    "video": DeskWatching.Config(**COUNTED).build(),
}
CAPTIONED = {
    "image": DeskConversations.Config(split="test", kind="caption").build(),
    "audio": DeskSounds.Config(split="test").build(),
}


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer(100)


def test_the_tokenizer_fits_the_tiny_systems(tokenizer):
    assert tokenizer.vocabulary <= TINY_VOCABULARY
    assert tokenizer.decode(tokenizer.encode("a red 7 top left")) == "a red 7 top left"


@pytest.mark.parametrize("name", tiny_names())
def test_all_stages_train_and_the_model_answers(name, tokenizer, tmp_path):
    made = tiny_recipe(name)
    began = time.process_time()
    folder = Trainer(made, tmp_path / "run", tokenizer=tokenizer, checkpoint_seconds=1e9).fit()
    seconds = time.process_time() - began
    assert seconds < 30  # a recipe's share of the suite is 8 s on an idle core; this only finds what runs away

    losses = {stage.name: [] for stage in made.stages}
    for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines():
        record = json.loads(line)
        losses[record["stage"]].append(record["loss"])
    for stage in made.stages:
        assert len(losses[stage.name]) == stage.steps
        first, last = sum(losses[stage.name][:5]), sum(losses[stage.name][-5:])
        assert last < first, f"{stage.name} learned nothing: {first / 5:.3f} -> {last / 5:.3f}"

    loaded = load_system(folder)
    assert loaded.system.config == made.system
    if isinstance(loaded.system, DualEncoder | FusionEncoder):
        matches(loaded.system, loaded.processor, made.stages[-1])
    elif isinstance(loaded.system, MediaEncoder):
        hears(loaded, made, tmp_path / "run")
    else:
        answers(loaded.system, loaded.processor, *gain_of(made))


def gain_of(made):
    """What a recipe must gain, and of which figure.

    A language model that stays as it was drawn has logits near zero and gains little. Where only what stands before its text is
    trained (BLIP-2, InstructBLIP, MiniGPT-4), nothing but the commonness of answers can be told in these few steps: rare ones
    lose what common ones gain, and the mean over scenes counts.
    """
    inside = [pattern for stage in made.stages for pattern in stage.train if pattern.startswith("language_model.")]
    if not inside:
        return 0.02, mean  # measured: 0.04 to 0.10
    return (0.2 if all("before_attention" in pattern for pattern in inside) else 1.0), min


def answers(system, processor, least, of):
    """The model says as much as it may, and finds true answers about unseen media likelier than one that learned nothing."""
    counts = COUNTS[next((name for name in ("audio", "video") if name in system.config.streams), "image")]
    seed_everything(0, "untrained")
    trained, untrained = Model(system, processor), Model(system.config.build().eval(), processor)
    gained = []
    for scene in range(8):
        question, truth = counts[scene].messages[:2]
        before, after = (score_choices(m, Conversation((question,)), [truth.parts[0].text])[0] for m in (untrained, trained))
        gained.append((after.log_likelihood - before.log_likelihood) / after.num_tokens)
    assert of(gained) > least, f"nats a token over a fresh model: {gained}"  # measured: 1.8 to 3.5; frozen, 0.3 to 1.3

    trained.processor.stop_ids = frozenset()  # nothing may end an answer, so there is one
    reply, again = trained.generate([Conversation((counts[i].messages[0],)) for i in (0, 0)], Sampling(max_new_tokens=4))
    assert len(reply.token_ids) == 4 and reply.finish_reason == "length"
    assert reply.token_ids == again.token_ids and reply.text.strip() == processor.decode(reply.token_ids).strip()


def hears(loaded, made, run):
    """The hidden frames of unheard sounds are told better than by a system that learned nothing."""
    stage = made.stages[-1]
    earlier = load_system(run / "stages" / stage.targets.stage).system
    source, tokenizer = made.stage(stage.targets.stage), loaded.processor.tokenizer
    features = frame_features(stage, source, lambda system: system.load_state_dict(earlier.state_dict()), tokenizer)
    clusters = read_clusters(run / "targets" / stage.name)
    held_out = replace(stage.data, split="test").build()
    sounds = Labelled(held_out, "audio", lambda _, conversation: clusters.labels(features(conversation)))
    batch = collate([loaded.processor.encode(sounds[i]) for i in range(32)])
    seed_everything(0, "untrained")
    objective, fresh = stage.objective.build().eval(), loaded.system.config.build().eval()
    with torch.inference_mode():
        before, after = (
            terms.sums["prediction"] / terms.weights["prediction"]
            for terms in (objective(system, batch) for system in (fresh, loaded.system))
        )
    assert after < 0.9 * before  # measured: 2.10 and 2.76; a guess among the clusters has 2.08


def matches(system, processor, stage):
    """Unseen media fit their captions better than in a system that learned nothing, by the recipe's own loss."""
    seed_everything(0, "untrained")
    objective, fresh, size = stage.objective.build(), system.config.build().eval(), stage.batch_size
    held_out = CAPTIONED[system.config.stream]
    samples = [processor.encode(held_out[scene]) for scene in range(8 * size)]
    batches = [collate(samples[i : i + size]) for i in range(0, len(samples), size)]  # the prior of a match is 1 / size
    with torch.inference_mode():
        before, after = (sum(objective(s, batch).mean().item() for batch in batches) for s in (fresh, system))
    assert after < 0.9 * before  # measured: 0.81 and 0.27
