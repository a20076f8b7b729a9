"""VILA: stages of the released scripts, and documents of several pictures among text."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from weft.core.batch import IGNORE
from weft.core.conversation import Conversation, Media, assistant, system, user
from weft.data.collate import collate
from weft.data.images import HALF
from weft.objectives.next_token import NextToken
from weft.recipes.catalogue import recipe, sizes_of, tiny_recipe
from weft.recipes.shrinking import tiny_tokenizer
from weft.systems.accounting import num_parameters, on_meta
from weft.training.freezing import freeze

PROJECTOR, LANGUAGE_MODEL = "streams.image.projector.*", "language_model.*"
COUNTS = {
    "7b": (7_062_902_784, 20_979_712), "13b": (13_350_839_296, 31_467_520),
    "7b-linear": (7_046_121_472, 4_198_400), "13b-linear": (13_324_619_776, 5_248_000),
}  # fmt: skip


@pytest.mark.parametrize("size", sizes_of("vila"))
def test_stages(size):
    align, pretrain, instruct = recipe("vila", size).stages
    later = size.startswith("1.5")
    assert (align.optimizer.learning_rate, align.batch_size, align.max_tokens) == (1e-3, 256, 4096 if later else 2048)
    assert (pretrain.optimizer.learning_rate, pretrain.batch_size, pretrain.max_tokens) == (5e-5, 1024, 4096)
    last = (1e-4, 256) if later else (2e-5, 128)
    assert (instruct.optimizer.learning_rate, instruct.batch_size, instruct.max_tokens) == (*last, 4096)
    for stage in (align, pretrain, instruct):
        assert (stage.epochs, stage.schedule.decay, stage.schedule.warmup) == (1, "cosine", 0.03)
        assert stage.optimizer.weight_decay == 0 and stage.precision == "bf16"
        assert stage.system.num_positions("image") == (196 if later else 576)
    assert align.train == (PROJECTOR,) and pretrain.train == (PROJECTOR, LANGUAGE_MODEL)
    assert [s.processor.template for s in (align, pretrain, instruct)] == ["plain", "interleaved", "vicuna_v1"]
    assert pretrain.processor.transforms["image"].pad_to_square is not later


@pytest.mark.parametrize("size", COUNTS)
def test_parameters(size):
    made = on_meta(recipe("vila", size).system)
    assert (num_parameters(made), num_parameters(made.stream("image").projector)) == COUNTS[size]


def test_vila_1_5_sees_through_siglip_and_trains_it_at_last():
    made = recipe("vila", "1.5-13b")
    transform, instruct = made.processor.transforms["image"], made.stage("instruct")
    assert (transform.size, transform.resize, transform.mean) == (384, "direct", HALF)
    built = on_meta(instruct.system)
    frozen = {name for name, _ in built.named_parameters()} - set(freeze(built, instruct.train))
    tower = "streams.image.encoder."
    assert frozen and all(name.startswith((f"{tower}blocks.26.", f"{tower}final_norm.")) for name in frozen)
    merged = 4 * 1152
    assert num_parameters(built.stream("image").projector) == 2 * merged + (merged + 1) * 5120 + 5121 * 5120


def picture(shade):
    return Media(np.full((64, 64, 3), shade, np.uint8))


DOCUMENTS = (
    Conversation((user(), assistant("a red 7 and a blue 3"))),
    Conversation((user(picture(40)), assistant("a red 7"))),
    Conversation((user(), assistant("two desks"), user(picture(80), picture(120)), assistant("a blue 3"), user(picture(200)),
                  assistant("a green 1"))),
)  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer(100)


def test_documents_of_no_one_and_three_pictures_in_a_batch(tokenizer):
    """Length, order, targets and embeddings, against each document written out by hand."""
    stage = tiny_recipe("vila").stage("pretrain")
    processor = stage.processor.build(tokenizer, stage.system)
    batch = collate([processor.encode(document) for document in DOCUMENTS])
    torch.manual_seed(0)
    model = stage.system.build().eval()
    image, newline = tokenizer.special["<image>"], tokenizer.encode("\n")
    with torch.no_grad():
        embeddings = model.sequence(batch).embeddings
        tokens_of = [
            model.stream("image")
            .projector(model.stream("image").encoder(units[None], torch.zeros(1).long(), layout[:1]))
            .values
            for media in (batch.media["image"],)
            for units, layout in ((unit, media.layout) for unit in media.units)
        ]
    assert len(tokens_of) == 4
    seen = 0
    for row, document in enumerate(DOCUMENTS):
        ids, learned, vectors = [], [], []
        for message in document.messages:
            for _ in message.media:
                ids += [image] * 16 + newline
                learned += [False] * (16 + len(newline))
                vectors += [*tokens_of[seen], *[None] * len(newline)]
                seen += 1
            for part in message.parts if message.role == "assistant" else ():
                said = tokenizer.encode(part.text)
                ids, learned, vectors = ids + said, learned + [True] * len(said), vectors + [None] * len(said)
        ids, learned, vectors = [*ids, tokenizer.special["</s>"]], [*learned, True], [*vectors, None]
        begin = list(tokenizer.begin)
        ids, learned, vectors = begin + ids, [False] * len(begin) + learned, [None] * len(begin) + vectors
        length = int((batch.main.segment[row] > 0).sum())
        assert batch.main.tokens[row, :length].tolist() == ids
        expected = [token if is_learned else IGNORE for token, is_learned in zip(ids[1:], learned[1:], strict=True)] + [IGNORE]
        assert batch.main.targets["text"][row, :length].tolist() == expected
        assert batch.main.positions[row, :length].tolist() == list(range(length))
        for place, (token, vector) in enumerate(zip(ids, vectors, strict=True)):
            own = model.language_model.embed(torch.tensor([token]))[0] if vector is None else vector
            torch.testing.assert_close(embeddings[row, place], own, rtol=0, atol=1e-5)  # encoded alone and in a batch


def test_each_document_of_a_batch_reads_as_alone_and_later_pictures_change_nothing_before_them(tokenizer):
    stage = tiny_recipe("vila").stage("pretrain")
    processor = stage.processor.build(tokenizer, stage.system)
    torch.manual_seed(0)
    model = stage.system.build().eval()
    samples = [processor.encode(document) for document in DOCUMENTS]
    with torch.no_grad():
        together = model(collate(samples)).logits()
        for row, sample in enumerate(samples):
            alone = model(collate([sample])).logits()[0]
            torch.testing.assert_close(together[row, : len(alone)], alone, rtol=0, atol=1e-4)
        messages = list(DOCUMENTS[2].messages)
        messages[4] = user(picture(0))
        other = model(collate([processor.encode(Conversation(tuple(messages)))])).logits()[0]
    last = samples[2].media["image"][2].spans[0][1]
    torch.testing.assert_close(other[:last], alone[:last], rtol=0, atol=1e-5)
    assert (other[last:] - alone[last:]).abs().max() > 1e-3


def test_a_batch_of_text_alone_gives_the_projector_no_gradient(tokenizer):
    stage = tiny_recipe("vila").stage("pretrain")
    processor = stage.processor.build(tokenizer, stage.system)
    torch.manual_seed(0)
    model = stage.system.build()
    freeze(model, stage.train)
    NextToken.Config().build()(model, collate([processor.encode(DOCUMENTS[0])])).mean().backward()
    gradients = [p.grad for p in model.stream("image").projector.parameters()]
    assert all(g is None or not g.any() for g in gradients)
    assert all(p.grad is not None for p in model.language_model.parameters())
    assert all(p.grad is None for p in model.stream("image").encoder.parameters())


def test_instructions_without_a_system_message_have_an_empty_system_turn(tokenizer):
    stage = tiny_recipe("vila").stage("instruct")
    processor = stage.processor.build(tokenizer, stage.system)
    turns = (user(picture(9), "Q"), assistant("A"))
    assert processor.encode(Conversation((system(""), *turns))).text == "USER: <image>\nQ ASSISTANT: A</s>"
    assert replace(Conversation(turns)).messages == turns
