import pytest
import torch
from tiny_model import picture, question, text_batch, text_system, tiny_model

from weft.core.conversation import Conversation, user
from weft.core.errors import ContextTooShort
from weft.data.collate import collate
from weft.inference.continuation import with_tokens
from weft.inference.generate import Decoding, generate_tokens
from weft.inference.sampling import Sampling
from weft.language_models.decoder import Decoder

GREEDY = Sampling(max_new_tokens=16)


@pytest.fixture(scope="module")
def model():
    return tiny_model()


def asked():
    return [
        question(picture(0), "which colour is it?"),
        question("red or blue?"),
        question(picture(1), "and now?", picture(2), "which?"),
        question(picture(0), "again: which colour is the white one, green or blue? which?"),
    ]


def naive(model, conversation, settings):
    """Greedy decoding as it is defined: the whole conversation anew for every token."""
    sample = model.processor.encode(conversation, reply=True)
    batch = collate([sample])
    tokens = []
    with torch.no_grad():
        for _ in range(settings.max_new_tokens):
            logits = model.system(with_tokens(batch, tokens) if tokens else batch).logits()[0, -1]
            token = int(logits.argmax())
            if token in model.processor.stop_ids:
                break
            tokens.append(token)
    return tuple(tokens)


def test_greedy_answers_equal_a_loop_without_a_cache(model):
    replies = model.generate(asked(), GREEDY)
    assert [reply.token_ids for reply in replies] == [naive(model, conversation, GREEDY) for conversation in asked()]
    assert len({reply.token_ids for reply in replies}) > 1


def test_a_batch_changes_no_reply(model):
    together = model.generate(asked(), GREEDY)
    for size in (1, 2, 3):
        apart = model.generate(asked(), GREEDY, batch_size=size)
        assert [r.token_ids for r in apart] == [r.token_ids for r in together]
        assert [r.text for r in apart] == [r.text for r in together]


def test_a_seed_gives_the_same_draws_in_any_batch(model):
    settings = Sampling(max_new_tokens=12, temperature=1.0, top_p=0.9, seed=3)
    together = model.generate(asked(), settings)
    assert [r.token_ids for r in model.generate(asked(), settings, batch_size=1)] == [r.token_ids for r in together]
    other = model.generate(asked(), Sampling(max_new_tokens=12, temperature=1.0, top_p=0.9, seed=4))
    assert [r.token_ids for r in other] != [r.token_ids for r in together]


def test_a_reply_says_what_it_took(model):
    (reply,) = model.generate(asked()[:1], GREEDY)
    assert reply.num_prompt_tokens == len(model.processor.encode(asked()[0], reply=True))
    assert 0 < reply.first_token_seconds <= reply.seconds
    assert reply.finish_reason == "length" and len(reply.token_ids) == GREEDY.max_new_tokens


def test_a_stop_id_ends_a_reply_and_is_no_part_of_it(model):
    (plain,) = model.generate(asked()[:1], GREEDY)
    stop = plain.token_ids[5]
    first = plain.token_ids.index(stop)
    ids, model.processor.stop_ids = model.processor.stop_ids, model.processor.stop_ids | {stop}
    try:
        (reply,) = model.generate(asked()[:1], GREEDY)
    finally:
        model.processor.stop_ids = ids
    assert reply.token_ids == plain.token_ids[:first]
    assert reply.finish_reason == "stop"


def test_a_stop_string_cuts_the_text_where_it_begins(model):
    (plain,) = model.generate(asked()[:1], GREEDY)
    middle = len(plain.text) // 2
    stop = plain.text[middle : middle + 3]
    (reply,) = model.generate(asked()[:1], Sampling(max_new_tokens=16, stop=(stop,)))
    assert reply.text == plain.text[: plain.text.index(stop)]
    assert reply.finish_reason == "stop" and len(reply.token_ids) < 16
    assert "".join(model.stream(asked()[0], Sampling(max_new_tokens=16, stop=(stop,)))) == reply.text


@pytest.mark.parametrize("settings", [GREEDY, Sampling(max_new_tokens=40, temperature=1.5, seed=0)], ids=["greedy", "drawn"])
def test_streaming_yields_the_generated_text(model, settings):
    """Random weights write random bytes, so characters of several bytes come broken and whole."""
    for conversation in asked()[:2]:
        (reply,) = model.generate([conversation], settings)
        pieces = list(model.stream(conversation, settings))
        assert "".join(pieces) == reply.text
        assert all(pieces) and len(pieces) > 1
        assert reply.text == model.processor.decode(reply.token_ids).removeprefix(model.processor.template.answer_lead)


def test_generation_leaves_the_training_mode_as_it_was(model):
    model.system.train()
    model.system.stream("image").encoder.eval()
    try:
        list(model.stream(asked()[0], Sampling(max_new_tokens=2)))
        model.generate(asked()[:1], Sampling(max_new_tokens=2))
        assert model.system.training and not model.system.stream("image").encoder.training
    finally:
        model.system.eval()


def test_no_conversations_no_replies(model):
    assert model.generate([]) == []


def test_an_answer_ends_with_the_context():
    system = text_system(Decoder.Config(**{**vars(Decoder.Config.tiny()), "context": 10}))
    decoding = Decoding(system)
    logits = decoding.prefill(text_batch([[1, 2, 3, 4], [5]]))
    steps = list(generate_tokens(decoding, logits, Sampling(max_new_tokens=50)))
    ends = {event.row: event.step + 1 for events in steps for event in events if event.finish == "length"}
    assert ends == {0: 6, 1: 9}
    with pytest.raises(ContextTooShort, match=r"row 1: the prompt takes 10 positions"):
        Decoding(system).prefill(text_batch([[1], list(range(10))]))


def test_a_prompt_beyond_the_context_is_refused(model):
    with pytest.raises(ContextTooShort, match="positions"):
        model.generate([Conversation((user("red " * 600),))], GREEDY)
