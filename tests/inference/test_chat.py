from dataclasses import replace

import pytest
from tiny_model import picture, tiny_model

from weft.core.conversation import Conversation, assistant, system, user
from weft.core.errors import DataError
from weft.inference.chat import ChatSession
from weft.inference.sampling import Sampling

GREEDY = Sampling(max_new_tokens=10)


@pytest.fixture
def model():
    return tiny_model(seed=1)


@pytest.fixture
def encoder_units(model):
    """How many pictures each call of the encoder took."""
    units: list[int] = []
    model.system.stream("image").encoder.register_forward_hook(lambda module, inputs, output: units.append(len(inputs[0])))
    return units


def fresh(model, session, messages):
    """The reply to the conversation so far from an empty cache."""
    (reply,) = model.generate([Conversation((*messages,))], session.settings)
    return reply


def talk(model, session, turns):
    """Ask turn by turn, comparing each reply with a fresh full prefill."""
    messages = list(session.conversation.messages)
    for parts in turns:
        messages.append(user(*parts))
        expected = fresh(model, session, messages)
        reply = session.ask(*parts)
        assert reply.token_ids == expected.token_ids and reply.text == expected.text
        assert reply.finish_reason == expected.finish_reason
        messages.append(assistant(reply.text, train=False))
    assert list(session.conversation.messages) == messages


TURNS = [[picture(0), "which colour is it?"], ["and now?"], ["which is white?"]]


def test_every_turn_answers_as_a_fresh_prefill_would(model):
    talk(model, ChatSession(model, GREEDY), TURNS)
    talk(model, ChatSession(model, GREEDY, system_prompt="red and blue"), TURNS)


def test_the_picture_is_encoded_and_read_once(model, encoder_units):
    session = ChatSession(model, GREEDY)
    for parts in TURNS:
        session.ask(*parts)
    assert encoder_units == [1]
    whole = len(model.processor.encode(replace(session.conversation, messages=session.conversation.messages[:-1]), reply=True))
    assert session.num_tokens_read < model.system.config.num_positions("image") + 40 < whole


def test_a_new_picture_in_a_later_turn_is_encoded_alone(model, encoder_units):
    session = ChatSession(model, GREEDY)
    session.ask(*TURNS[0])
    session.ask(picture(1), "and now?")
    session.ask("which?")
    assert encoder_units == [1, 1]
    talk(model, ChatSession(model, GREEDY), [TURNS[0], [picture(1), "and now?"], ["which?"]])


def test_another_picture_in_the_same_place_is_not_taken_for_the_first(model, encoder_units):
    session = ChatSession(model, GREEDY)
    session.ask(*TURNS[0])
    first = session.conversation
    session.conversation = Conversation((user(picture(9), "which colour is it?"), *first.messages[1:]))
    expected = fresh(model, session, [*session.conversation.messages, user("and now?")])
    encoder_units.clear()
    assert session.ask("and now?").token_ids == expected.token_ids
    assert encoder_units == [1]


def test_a_changed_beginning_is_read_again(model):
    session = ChatSession(model, GREEDY)
    session.ask(*TURNS[0])
    session.conversation = Conversation((system("blue"), *session.conversation.messages))
    expected = fresh(model, session, [*session.conversation.messages, user("and now?")])
    reply = session.ask("and now?")
    assert reply.token_ids == expected.token_ids
    assert session.num_tokens_read > model.system.config.num_positions("image")


def test_streaming_a_turn_says_the_same_and_goes_on(model):
    spoken, streamed = ChatSession(model, GREEDY), ChatSession(model, GREEDY)
    for parts in TURNS:
        assert "".join(streamed.stream(*parts)) == spoken.ask(*parts).text
    assert streamed.conversation == spoken.conversation


def test_a_reader_who_stops_early_leaves_what_was_said(model):
    session = ChatSession(model, GREEDY)
    stream = session.stream(*TURNS[0])
    said = next(stream) + next(stream)
    stream.close()
    assert session.conversation.messages[-1] == assistant(said, train=False)
    talk(model, session, TURNS[1:])


def test_a_turn_that_fails_leaves_the_session_as_it_was(model, tmp_path):
    session = ChatSession(model, GREEDY)
    session.ask(*TURNS[0])
    before = session.conversation
    with pytest.raises(DataError):
        session.ask(type(picture(0))(tmp_path / "none.png"), "which?")
    with pytest.raises(DataError, match="positions"):
        session.ask("red " * 700)
    assert session.conversation == before
    talk(model, session, TURNS[1:])


def test_reset_forgets(model):
    session = ChatSession(model, GREEDY)
    first = session.ask(*TURNS[0])
    session.reset()
    assert session.conversation.messages == ()
    assert session.ask(*TURNS[0]).token_ids == first.token_ids
