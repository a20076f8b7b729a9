"""Every recipe's tiny form trains through all its stages on the desk within seconds, and what it leaves can be used."""

import json
import time

import pytest

from weft.core.conversation import Conversation, Media, user
from weft.data.desk import Desk
from weft.inference.sampling import Sampling
from weft.recipes.catalogue import tiny_names, tiny_recipe
from weft.recipes.loading import load_system
from weft.recipes.shrinking import TINY_VOCABULARY, tiny_tokenizer
from weft.systems.dual_encoder import DualEncoder
from weft.training.trainer import Trainer


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
    picture = Media(Desk("test").picture(0))
    if isinstance(loaded.system, DualEncoder):
        return
    from weft.inference.model import Model

    reply = Model(loaded.system, loaded.processor).generate(
        [Conversation((user(picture, "How many digits are there?"),))], Sampling(max_new_tokens=4)
    )[0]
    assert len(reply.token_ids) == 4 or reply.finish_reason == "stop"
