import pytest

from weft.inference.answer_text import AnswerText

TEXT = "Grüße, 世界! 🙂🙃 done"


def by_bytes(tokens):
    """A tokenizer whose tokens are bytes; what is incomplete decodes to the replacement character."""
    return bytes(tokens).decode("utf-8", errors="replace")


def write(text: str, *stop: str, lead: str = ""):
    answer = AnswerText(by_bytes, stop, lead)
    pieces = [answer.push(token) for token in text.encode()]
    return answer, [*pieces, answer.finish()]


def test_pieces_join_to_the_text_and_characters_come_whole():
    answer, pieces = write(TEXT)
    assert "".join(pieces) == answer.text == TEXT
    assert not any("\ufffd" in piece for piece in pieces)
    assert "🙂" in pieces


def test_an_unfinished_character_is_said_at_the_end():
    answer = AnswerText(by_bytes)
    pieces = [answer.push(token) for token in [*b"ab", 0xF0, 0x9F]]
    assert pieces == ["a", "b", "", ""]
    assert answer.finish() == "\ufffd"


@pytest.mark.parametrize("stop", ["!", "世界", "界! 🙂", "done", " done"])
def test_a_stop_string_over_several_tokens_is_never_released(stop):
    answer, pieces = write(TEXT, stop)
    assert answer.stopped
    assert "".join(pieces) == answer.text == TEXT[: TEXT.index(stop)]


def test_the_earliest_of_several_stop_strings_ends_the_text():
    answer, _ = write("one two three", "three", "two")
    assert answer.text == "one "


def test_what_only_looked_like_a_stop_string_is_released_later():
    answer, pieces = write("a##b###c", "###")
    assert answer.text == "a##b"
    assert pieces[:4] == ["a", "", "", "##b"]


def test_the_beginning_of_a_stop_string_at_the_end_is_text():
    answer, pieces = write("a##", "###")
    assert answer.text == "a##" and pieces[-1] == "##" and not answer.stopped


def test_the_lead_is_dropped_once():
    assert write("  x", lead=" ")[0].text == " x"
    assert write("x y", lead=" ")[0].text == "x y"
    assert write("\n\nx", lead="\n\n")[0].text == "x"
    assert write("\n", lead="\n\n")[0].text == "\n"


def test_a_decoder_that_strips_the_first_blank_loses_no_other():
    """SentencePiece decoders drop the blank of the first token only."""
    words = [" I", " see", " two", "s", "."]
    answer = AnswerText(lambda ids: "".join(words[i] for i in ids).removeprefix(" "))
    assert "".join([*(answer.push(i) for i in range(len(words))), answer.finish()]) == "I see twos."
