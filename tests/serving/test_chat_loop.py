"""The conversation in a terminal: what it understands, and that mistakes cost nothing."""

import io

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from tiny_model import tiny_model

from weft.core.conversation import Conversation, Media, assistant, user
from weft.core.errors import DataError
from weft.inference.chat import ChatSession
from weft.inference.sampling import Sampling
from weft.serving.chat_loop import HELP, ChatLoop


class Echo:
    """A session that says how many pictures and which words it was given."""

    def __init__(self):
        self.reset()

    def reset(self):
        self.conversation = Conversation(())

    def stream(self, *parts):
        pictures = [part for part in parts if isinstance(part, Media)]
        text = f"{len(pictures)} pictures, {parts[-1]!r}"
        self.conversation = Conversation((*self.conversation.messages, user(*parts), assistant(text, train=False)))
        yield from (text[:4], text[4:])


class Interrupted(Echo):
    """A session whose answer is stopped by Ctrl-C after a word."""

    def stream(self, *parts):
        yield "some"
        raise KeyboardInterrupt


def talk(*lines, session=None):
    """What the loop writes when a user types these lines and then leaves."""
    typed = iter(lines)

    def read(prompt):
        try:
            return next(typed)
        except StopIteration:
            raise EOFError from None

    out = io.StringIO()
    loop = ChatLoop(session or Echo(), Console(file=out, width=200), read)
    loop.run()
    return out.getvalue()


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "a picture.png"
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(path)
    return path


def test_a_question_is_answered():
    assert "0 pictures, 'how many?'" in talk("how many?")


def test_a_picture_comes_with_the_next_question_only(picture):
    out = talk(f"/image {picture}", "one?", "none?")
    assert "1 pictures, 'one?'" in out and "0 pictures, 'none?'" in out


def test_a_path_may_be_quoted(picture):
    assert "1 pictures" in talk(f"/image '{picture}'", "one?")


def test_a_wrong_picture_is_told_and_the_conversation_goes_on(tmp_path):
    (tmp_path / "no.png").write_text("text")
    out = talk(f"/image {tmp_path / 'none.png'}", f"/image {tmp_path / 'no.png'}", "/image", "still there?")
    assert "no image file" in out and "no image of a known format" in out and "/image takes a file" in out
    assert "0 pictures, 'still there?'" in out


def test_reset_forgets_turns_and_pictures(picture):
    session = Echo()
    out = talk("first", f"/image {picture}", "/reset", "second", session=session)
    assert "0 pictures, 'second'" in out
    assert len(session.conversation.messages) == 2


def test_history_shows_turns_and_pictures(picture):
    out = talk(f"/image {picture}", "what [bold]is[/] it?", "/history")
    assert f"user: <image: {picture}> what [bold]is[/] it?" in out
    assert "assistant: 1 pictures" in out


def test_help_lists_every_command():
    out = talk("/help")
    assert all(name in out for name in HELP)


def test_an_unknown_command_offers_the_nearest():
    assert "did you mean '/image'" in talk("/imgae x.png")


def test_exit_leaves_at_once():
    assert "later" not in talk("/exit", "later")


def test_ctrl_c_stops_the_answer_and_not_the_conversation():
    out = talk("a", "b", session=Interrupted())
    assert out.count("some (stopped)") == 2


def test_a_session_with_a_real_model_sees_the_picture(picture):
    session = ChatSession(tiny_model(), Sampling(max_new_tokens=3))
    talk(f"/image {picture}", "which colour is it?", "and now?", session=session)
    assert [message.role for message in session.conversation.messages] == ["user", "assistant"] * 2
    assert len(list(session.conversation.media())) == 1


def test_a_mistake_costs_nothing_of_the_conversation(picture):
    session = ChatSession(tiny_model(), Sampling(max_new_tokens=3))
    loop = ChatLoop(session, Console(file=io.StringIO()), lambda prompt: "")
    loop.answer("which colour is it?")
    before = session.conversation
    picture.unlink()
    with pytest.raises(DataError):
        loop.show(str(picture))
    assert session.conversation == before
