import pytest
import torch
from tiny_model import picture, question, tiny_model

from weft.core.batch import IGNORE
from weft.core.conversation import Conversation, assistant
from weft.core.errors import DataError
from weft.data.collate import collate
from weft.inference.score_choices import score_choices

CHOICES = ["red", "green and blue", "which colour is it?", "r", "white"]
TOLERANCE = 2e-5  # sums of up to ten log-likelihoods in fp32, times the largest


@pytest.fixture(scope="module")
def model():
    return tiny_model(seed=2)


def alone(model, conversation, choice):
    """Summed log-likelihood by one full forward."""
    messages = (*conversation.messages, assistant(choice, train=True))
    batch = collate([model.processor.encode(Conversation(messages))])
    targets = batch.main.targets["text"][0]
    with torch.no_grad():
        likelihood = model.system(batch).logits()[0].double().log_softmax(-1)
    return float(sum(likelihood[t, target] for t, target in enumerate(targets.tolist()) if target != IGNORE))


@pytest.mark.parametrize("batch_size", [1, 2, 32])
@pytest.mark.parametrize("asked", [(picture(0), "which?"), ("which?",)], ids=["picture", "text"])
def test_scores_equal_full_forwards(model, asked, batch_size):
    scores = score_choices(model, question(*asked), CHOICES, batch_size=batch_size)
    expected = [alone(model, question(*asked), choice) for choice in CHOICES]
    allowed = TOLERANCE * max(map(abs, expected))
    assert all(abs(ours.log_likelihood - theirs) <= allowed for ours, theirs in zip(scores, expected, strict=True))
    assert len({round(score.log_likelihood, 3) for score in scores}) == len(CHOICES)


def test_the_shared_prompt_is_encoded_and_read_once(model):
    seen: list[int] = []
    hook = model.system.stream("image").encoder.register_forward_hook(lambda module, inputs, out: seen.append(len(inputs[0])))
    tokens: list[int] = []
    other = model.system.language_model.final_norm.register_forward_hook(
        lambda module, inputs, out: tokens.append(out.shape[1])
    )
    try:
        score_choices(model, question(picture(0), "which?"), CHOICES, batch_size=2)
    finally:
        hook.remove()
        other.remove()
    assert seen == [1]
    assert len(tokens) == 4 and tokens[0] > model.system.config.num_positions("image") and max(tokens[1:]) < 30


def test_one_choice_and_a_choice_that_begins_another(model):
    asked = question("which?")
    (one,) = score_choices(model, asked, ["red"])
    assert one.log_likelihood == pytest.approx(alone(model, asked, "red"), rel=TOLERANCE)
    pair = score_choices(model, asked, ["red", "red red"])
    assert pair[1].num_tokens > pair[0].num_tokens
    assert pair[1].log_likelihood == pytest.approx(alone(model, asked, "red red"), rel=TOLERANCE)


def test_no_choices_are_refused(model):
    with pytest.raises(DataError, match="no choices"):
        score_choices(model, question("which?"), [])
