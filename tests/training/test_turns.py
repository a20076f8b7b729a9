"""An encoder-decoder trains on dialogues: every answer counts, each behind its own history."""

import json
from dataclasses import dataclass, replace

import pytest
import tiny_seq2seq
from tiny_model import picture
from tiny_training import processor, tokenizer

from weft.core.conversation import Conversation, assistant, user
from weft.data.collate import collate
from weft.data.dataset import Dataset
from weft.objectives.next_token import NextToken
from weft.training.data_stream import SampleOrder
from weft.training.randomness import seed_everything
from weft.training.trainer import Trainer

COLOURS = ("red", "green", "blue", "white")


class Dialogues(Dataset):
    """A picture and one to three questions, answers of different lengths; the second of three is not learned."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Dataset.Config):
        def build(self):
            return Dialogues()

    def __len__(self):
        return 8

    def __getitem__(self, index):
        turns = []
        for turn in range(1 + index % 3):
            said = " ".join([COLOURS[(index + turn) % 4]] * (1 + turn))
            turns += [user(*([picture(index)] if turn == 0 else []), "Which colour?"), assistant(said, train=turn != 1)]
        return Conversation(tuple(turns), id=str(index), source="dialogues")


def prefixes(conversation):
    """The conversations that end with an answer which is learned, and learn nothing else; written apart from the library."""
    for number, message in enumerate(conversation.messages):
        if message.role == "assistant" and message.train:
            before = tuple(replace(earlier, train=False) for earlier in conversation.messages[:number])
            yield replace(conversation, messages=(*before, message))


@pytest.mark.parametrize("packing", [False, True])
def test_the_loss_of_a_step_is_that_of_its_answers_each_alone(packing, tmp_path):
    stage = replace(
        tiny_seq2seq.recipe().stages[0], data=Dialogues.Config(), steps=1, batch_size=6, micro_batch_size=3, packing=packing
    )
    made = replace(tiny_seq2seq.recipe(), stages=(stage,))
    Trainer(made, tmp_path / "run", tokenizer=tokenizer(), seed=0, device="cpu").fit()
    (record,) = map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())

    seed_everything(0, stage.name, "build")
    system, ready = stage.system.build().eval(), processor().build(tokenizer(), stage.system)
    objective = NextToken.Config().build()
    indices = SampleOrder(8, 6, 0, stage.name).indices(0)
    alone = [objective(system, collate([ready.encode(c)])) for i in indices for c in prefixes(Dialogues()[i])]
    assert len(alone) == sum((1, 1, 2)[i % 3] for i in indices) > 6
    total, weight = (sum(float(getattr(t, of)["next_token"].detach()) for t in alone) for of in ("sums", "weights"))
    assert record["loss"] == pytest.approx(total / weight, abs=1e-5)  # fp32 sums in another order
