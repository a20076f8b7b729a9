"""An encoder-decoder that sees: what its decoder looks at, its cache, its replies, chats and choices, and its training."""

import json
from dataclasses import replace

import pytest
import tiny_seq2seq
import torch
from tiny_model import picture
from tiny_training import VOCABULARY, Squares, processor, tokenizer

from weft.core.conversation import Conversation, assistant, user
from weft.core.errors import DataError
from weft.data.collate import collate
from weft.inference.chat import ChatSession
from weft.inference.generate import Decoding
from weft.inference.model import Model
from weft.inference.sampling import Sampling
from weft.inference.score_choices import score_choices
from weft.objectives.next_token import NextToken
from weft.recipes.loading import load_model
from weft.training.freezing import freeze
from weft.training.trainer import Trainer

TOLERANCE = 1e-5  # fp32: the same products summed in another order, times max(1, largest value)
every_encoder_decoder = pytest.mark.parametrize("name", tiny_seq2seq.ENCODER_DECODERS)


def encoder(system):
    return processor().build(tokenizer(), system.config)


def asked(*words):
    """Prompts of different lengths with different pictures, the last without one."""
    questions = [Conversation((user(picture(i), text),), id=text) for i, text in enumerate(words[:-1])]
    return [*questions, Conversation((user(words[-1]),), id="blind")]


CONVERSATIONS = asked("Which colour?", "Which colour is it, say? " * 3, "Say", "Say red or blue.")


def greedy_by_full_forwards(system, conversation, steps):
    """The definition: after every token everything is computed anew."""
    sample = encoder(system).encode(conversation, reply=True)
    written = sample.decoder.tokens.tolist()
    batch = collate([sample])
    for _ in range(steps):
        side = tiny_seq2seq.text_batch(batch.main.tokens, torch.tensor([written])).decoder
        with torch.no_grad():
            written.append(int(system(replace(batch, decoder=side)).logits()[0, -1].argmax()))
    return written[1:]


@every_encoder_decoder
def test_decoding_steps_equal_the_full_forward(name):
    """Rows whose prompts and beginnings of answers have different lengths, with and without a picture."""
    system = tiny_seq2seq.built(name)
    ready = encoder(system)
    samples = [ready.encode(replace(c, messages=(*c.messages, assistant("red " * n)))) for n, c in enumerate(CONVERSATIONS, 1)]
    with torch.no_grad():
        full = system(collate(samples)).logits()
    starts = [2, 1, 4, 3]
    begun = [
        replace(sample, decoder=replace(sample.decoder, tokens=sample.decoder.tokens[:n], targets=sample.decoder.targets[:n]))
        for sample, n in zip(samples, starts, strict=True)
    ]
    decoding = Decoding(system, capacity=2)
    logits = [decoding.prefill(collate(begun))]
    steps = min(sample.num_written - n for sample, n in zip(samples, starts, strict=True))
    for step in range(steps):
        following = [int(s.decoder.tokens[n + step]) for s, n in zip(samples, starts, strict=True)]
        logits.append(decoding.step(torch.tensor(following)))
    for row, start in enumerate(starts):
        expected = full[row, start - 1 : start + steps]
        found = torch.stack([step[row] for step in logits])
        assert float((found - expected).abs().max()) <= TOLERANCE * max(1.0, float(expected.abs().max()))


@every_encoder_decoder
def test_replies_are_greedy_whatever_is_in_the_batch(name):
    """Rows leave as they finish, and with them what they look at."""
    system = tiny_seq2seq.built(name)
    model = Model(system, encoder(system))
    settings = Sampling(max_new_tokens=10)
    together = model.generate(CONVERSATIONS, settings)
    for conversation, reply in zip(CONVERSATIONS, together, strict=True):
        expected = greedy_by_full_forwards(system, conversation, 10)
        stop = next((i for i, token in enumerate(expected) if token in model.processor.stop_ids), 10)
        assert list(reply.token_ids) == expected[:stop]
        assert "".join(model.stream(conversation, settings)) == reply.text
        assert reply.num_prompt_tokens == len(model.processor.encode(conversation, reply=True))
    assert len({reply.token_ids for reply in together}) == len(together), "the encoder is listened to"


def test_a_stop_id_ends_a_row_and_the_others_go_on():
    system = tiny_seq2seq.built()
    model = Model(system, encoder(system))
    settings = Sampling(max_new_tokens=8)
    before = model.generate(CONVERSATIONS, settings)
    stop = before[1].token_ids[2]
    model.processor.stop_ids = frozenset({stop})
    for old, new in zip(before, model.generate(CONVERSATIONS, settings), strict=True):
        end = old.token_ids.index(stop) if stop in old.token_ids else 8
        assert new.token_ids == old.token_ids[:end]


def test_a_chat_answers_as_the_whole_conversation_does():
    """What an encoder reads of a conversation changes with every turn: nothing is kept that a later turn would change."""
    system = tiny_seq2seq.built()
    model = Model(system, encoder(system))
    settings = Sampling(max_new_tokens=6)
    session = ChatSession(model, settings)
    turns = [(picture(1), "Which colour?"), ("Say blue.",), (picture(2), "And now?")]
    messages = ()
    for parts in turns:
        messages = (*messages, user(*parts))
        (expected,) = model.generate([Conversation(messages, id="chat")], settings)
        reply = session.ask(*parts)
        assert (reply.token_ids, reply.num_prompt_tokens) == (expected.token_ids, expected.num_prompt_tokens)
        messages = (*messages, assistant(reply.text, train=False))


@pytest.mark.parametrize(
    "choices", [("red", "red blue", "green red white"), ("", "red")], ids=["share a start", "share nothing"]
)
@pytest.mark.parametrize("batch_size", [1, 2, 32])
def test_choices_have_the_likelihood_of_the_full_forward(choices, batch_size):
    system = tiny_seq2seq.built()
    model = Model(system, encoder(system))
    calls = []
    hook = system.reading_half.blocks[0].register_forward_hook(lambda *_: calls.append(1))
    scores = score_choices(model, CONVERSATIONS[0], choices, batch_size=batch_size)
    hook.remove()
    for choice, score in zip(choices, scores, strict=True):
        answered = replace(CONVERSATIONS[0], messages=(*CONVERSATIONS[0].messages, assistant(choice)))
        batch = collate([model.processor.encode(answered)])
        with torch.no_grad():
            loss = NextToken.Config().build()(system, batch).sums["next_token"]
        assert score.num_tokens == batch.decoder.tokens.shape[1]
        assert abs(score.log_likelihood + float(loss)) <= 1e-4 * max(1.0, float(loss))
    if "" not in choices:
        assert len(calls) == 1, "the encoder reads the question once, however many answers there are"


def test_the_decoder_sees_its_own_sample_and_the_whole_of_it():
    """Another picture changes every token that is written about it, the first included, and nothing in another row."""
    system = tiny_seq2seq.built()
    ready = encoder(system)
    spoken = [Conversation((user(picture(i), "Which colour?"), assistant("red red")), id=str(i)) for i in (0, 1, 2)]
    with torch.no_grad():
        first, second = (system(collate([ready.encode(spoken[i]), ready.encode(spoken[2])])).logits() for i in (0, 1))
    assert ((first[0] - second[0]).abs().amax(-1) > 1e-3).all()
    assert torch.equal(first[1], second[1])


def test_a_batch_without_a_decoder_side_is_refused():
    system = tiny_seq2seq.built()
    sample = encoder(system).encode(CONVERSATIONS[0], reply=True)
    with pytest.raises(DataError, match="no decoder side; build the processor from this system's config"):
        system(collate([replace(sample, decoder=None)]))


@pytest.mark.parametrize("stage_name", ["align", "tune"])
def test_a_step_moves_what_trains_and_nothing_else(stage_name, tmp_path):
    """The stage law: through the frozen decoder and encoder the loss reaches the projector, and every part of both halves."""
    stage = tiny_seq2seq.recipe().stage(stage_name)
    torch.manual_seed(0)
    system = stage.system.build()
    with torch.no_grad():
        for parameter in system.parameters():
            if parameter.numel() and not parameter.any():
                parameter.fill_(0.5)
    dataset = Squares.Config().build()
    batch = collate([encoder(system).encode(dataset[i]) for i in range(4)])
    trained = freeze(system, stage.train)
    NextToken.Config().build()(system, batch).mean().backward()
    still = [
        name
        for name, parameter in trained.items()
        if (parameter.grad is None or not parameter.grad.any()) and not name.endswith(".key.bias")
    ]
    assert still == []
    others = {name: p for name, p in system.named_parameters() if name not in trained}
    assert [name for name, parameter in others.items() if parameter.grad is not None] == []
    assert others and any(name.startswith("streams.image.projector") for name in trained)


def test_it_trains_through_both_stages_and_is_opened_again(tmp_path):
    """Packed, accumulated and in bfloat16 in the second stage."""
    with torch.random.fork_rng():
        Trainer(tiny_seq2seq.recipe(), tmp_path, tokenizer=tokenizer()).fit()
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    losses = [r["loss"] for r in records if r["kind"] == "train" and r["stage"] == "tune"]
    assert len(losses) == 4 and losses[-1] < losses[0]
    model = load_model(tmp_path / "model")
    (reply,) = model.generate([CONVERSATIONS[0]], Sampling(max_new_tokens=5))
    assert reply.token_ids and max(reply.token_ids) < VOCABULARY
