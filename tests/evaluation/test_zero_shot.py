"""Zero-shot classification: texts averaged as published, exact marks, equal scores by chance, from Python and `weft eval`."""

from __future__ import annotations

import copy
import json
import math
import zlib
from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import nn

from weft.core.conversation import Conversation, Media, user
from weft.core.errors import CheckpointError, ConfigError, DataError
from weft.core.output import SystemOutput
from weft.data.desk import Desk
from weft.data.desk.questions import place, with_article
from weft.evaluation.benchmark import Item, question_text
from weft.evaluation.benchmarks.desk_zero_shot import CHANCE, PLACES, DeskZeroShot
from weft.evaluation.classes import Classes, Ranked
from weft.evaluation.evaluation import BLIND, MOST_FREQUENT, load_evaluation
from weft.evaluation.runner import EvaluationSettings, evaluate
from weft.evaluation.zero_shot import ZeroShotModel, accuracy, class_embeddings
from weft.inference.embedder import Embedder, similarities
from weft.inference.sampling import Sampling
from weft.recipes.catalogue import tiny_recipe
from weft.recipes.loading import load_embedder
from weft.recipes.shrinking import tiny_tokenizer
from weft.serving.cli import run
from weft.training.model_folder import write_model_folder


def test_texts_are_brought_to_length_one_before_and_after_they_are_averaged():
    texts = torch.tensor([[2.0, 0.0], [0.0, 8.0], [0.0, 3.0], [0.0, 5.0]])  # two classes, two templates
    half = math.sqrt(0.5)  # without the first normalisation the text of length 8 would count four times
    assert torch.allclose(class_embeddings(texts, 2), torch.tensor([[half, half], [0.0, 1.0]]))


def test_one_template_is_the_text_alone():
    texts = nn.functional.normalize(torch.randn(5, 4, generator=torch.Generator().manual_seed(0)), dim=-1)
    assert torch.allclose(class_embeddings(texts, 5), texts, atol=1e-7)  # a second division by a length of 1


def test_classes_are_written_in_every_template_class_by_class():
    classes = Classes(("ant", "bee"), ("a photo {of} a {}.", lambda name: f"an art of {name}"))
    assert classes.texts() == ["a photo {of} a ant.", "an art of ant", "a photo {of} a bee.", "an art of bee"]


@pytest.mark.parametrize(
    ("names", "templates", "message"),
    [
        (("ant",), ("{}",), "two or more classes"),
        (("ant", "ant"), ("{}",), "different names"),
        (("ant > bee", "bee"), ("{}",), "which rank classes"),
        (("ant", "bee"), (), "needs a template"),
        (("ant", "bee"), ("a photo",), "'a photo' has no {}"),
    ],
)
def test_classes_that_cannot_be_told_apart_are_refused(names, templates, message):
    with pytest.raises(DataError, match=message):
        Classes(names, templates)


SCORES = torch.tensor([[0.9, 0.1, 0.3], [0.2, 0.5, 0.4], [0.1, 0.2, 0.3]])


@pytest.mark.parametrize(("k", "expected"), [(1, 1 / 3), (2, 2 / 3), (3, 1.0), (5, 1.0)])
def test_accuracy_of_scores_made_by_hand(k, expected):
    estimate = accuracy(SCORES, [0, 2, 0], k)  # ranks 1, 2 and 3
    assert estimate.value == pytest.approx(expected) and estimate.num == 3
    assert estimate.low < estimate.value <= estimate.high


@pytest.mark.parametrize("k", [1, 5])
def test_a_model_that_scores_all_alike_gets_chance_whatever_the_truth(k):
    assert accuracy(torch.full((7, 10), 0.3), [0] * 7, k).value == pytest.approx(k / 10)


def test_scores_that_are_no_numbers_are_refused_and_not_right():
    with pytest.raises(DataError, match="1 of 9 scores are not a number"):
        accuracy(SCORES.clone().index_put((torch.tensor(1), torch.tensor(1)), torch.tensor(math.nan)), [0, 1, 2])


@pytest.mark.parametrize("truth", [[0, 1], [0, 1, 3], [0, -1, 2]])
def test_a_truth_that_does_not_fit_the_scores_is_refused(truth):
    with pytest.raises(DataError, match="class number"):
        accuracy(SCORES, truth)


def test_a_ranking_tells_the_best_classes_and_which_are_equal():
    scores, names = torch.tensor([0.1, 0.7, 0.4, 0.4]), ("a", "b", "c", "d")
    assert Ranked.of(scores, names, 1).text == "b"
    assert Ranked.of(scores, names, 2).text == "b > c = d"  # the two at the border stay together
    assert Ranked.of(scores, names, 4).text == "b > c = d > a"
    ranked = Ranked("b > c = d > a")
    assert [ranked.mark(name, 1) for name in names] == [0.0, 1.0, 0.0, 0.0]
    assert [ranked.mark(name, 2) for name in names] == [0.0, 1.0, 0.5, 0.5]
    assert [ranked.mark(name, 4) for name in names] == [1.0] * 4
    assert Ranked("b").mark("z", 1) == 0.0


BENCHMARK = DeskZeroShot.Config(num_per_type=6).build()


class Answers:
    """A stand-in for a model with given replies by conversation id."""

    def __init__(self, replies):
        self.replies = replies
        self.system = nn.Linear(1, 1)
        self.processor = embedder().processor

    def generate(self, conversations, settings, *, batch_size=1):
        return [Ranked(self.replies[c.id]) for c in conversations]


def test_the_desk_shows_one_digit_and_its_captions_are_those_of_training():
    assert {item.truth for item in DeskZeroShot.Config(num_per_type=100).build().items() if item.type == "place"} == set(PLACES)
    for item in BENCHMARK.items():
        assert question_text(item.conversation) == "" and len(list(item.conversation.media())) == 1
        assert item.truth in BENCHMARK.classes[item.type].names
    scenes = (Desk("train", max_digits=1, max_shapes=0).scene(i) for i in range(50))
    said = {f"{with_article(scene.digits[0])} {place(scene.digits[0])}" for scene in scenes}
    for classes in BENCHMARK.classes.values():
        texts = classes.texts()
        assert len(texts) == len(set(texts)) == 10 * 6 * 9 and said <= set(texts)


def test_an_oracle_gets_full_marks_and_a_model_without_preference_gets_chance():
    truths = {item.id: item.truth for item in BENCHMARK.items()}
    assert evaluate(Answers(truths), BENCHMARK, EvaluationSettings(blind=False)).mean().value == 1.0
    all_alike = {item.id: " = ".join(BENCHMARK.classes[item.type].names) for item in BENCHMARK.items()}
    guess = evaluate(Answers(all_alike), BENCHMARK, EvaluationSettings(blind=False))
    assert {type: guess.by_type(type).value for type in guess.types} == pytest.approx(
        {"digit": 1 / 10, "ink": 1 / 6, "place": 1 / 9}
    )
    assert guess.gain(CHANCE).value == pytest.approx(0.0, abs=1e-12)


def test_five_best_classes_may_count():
    benchmark = DeskZeroShot.Config(num_per_type=2, top=5).build()
    digit: Item = benchmark.items()[0]
    others = [name for name in benchmark.classes["digit"].names if name != digit.truth]
    assert benchmark.score(digit, " > ".join([*others[:4], digit.truth]), lambda _: None) == 1.0
    assert benchmark.score(digit, " > ".join([*others[:5], digit.truth]), lambda _: None) == 0.0
    assert benchmark.expectations()[CHANCE][digit.id] == 0.5
    assert len(set(benchmark.most_frequent()["digit"].split(" > "))) == 5


@cache
def embedder(name: str = "clip") -> Embedder:
    recipe = tiny_recipe(name)
    torch.manual_seed(0)
    return Embedder(recipe.system.build().eval(), recipe.processor.build(tiny_tokenizer(20), recipe.system))


class Sees(nn.Module):
    """Towers that know the truth: one random vector for a caption and for the picture that shows it."""

    def __init__(self, by_picture, processor):
        super().__init__()
        self.by_picture, self.processor = by_picture, processor
        self.nothing = nn.Parameter(torch.zeros(1))

    def vector(self, text):
        return nn.functional.normalize(
            torch.randn(4096, generator=torch.Generator().manual_seed(zlib.crc32(text.encode()))), dim=0
        )

    def forward(self, batch):
        if batch.media:
            told = [self.by_picture[key_of(unit)] for unit in batch.media["image"].units]
            return SystemOutput(embeddings={"media": torch.stack([self.vector(text) for text in told])})
        texts = [
            self.processor.decode(row[mask > 0].tolist())
            for row, mask in zip(batch.main.tokens, batch.main.segment, strict=True)
        ]
        return SystemOutput(embeddings={"text": torch.stack([self.vector(text.strip()) for text in texts])})


def key_of(unit):
    return tuple(unit.flatten()[::7].mul(100).int().tolist())


def test_towers_that_know_every_caption_classify_by_the_mean_of_captions():
    processor = embedder().processor
    desk = Desk("test", max_digits=1, max_shapes=0)
    by_picture = {}
    for number, item in enumerate(BENCHMARK.items()):
        digit = desk.scene(number).digits[0]
        sample = processor.encode(Conversation((user(next(item.conversation.media()), "-"),)))
        medium = sample.media["image"][0]
        by_picture[key_of(medium.transform.normalise(list(medium.units))[0])] = f"{with_article(digit)} {place(digit)}"
    seeing = Embedder(Sees(by_picture, processor), processor)
    evaluation = evaluate(ZeroShotModel(seeing, BENCHMARK.classes), BENCHMARK)
    # the caption is one of the 54 to 90 texts of its class, and of no other class
    assert evaluation.mean().value == 1.0
    assert evaluation.mean(BLIND).value < 0.6 and evaluation.mean(MOST_FREQUENT).value < 0.6


@pytest.mark.parametrize("name", ["clip", "siglip"])
def test_a_batch_changes_no_vector(name):
    made = embedder(name)
    pictures = [Media(Desk("test").picture(i)) for i in range(5)]
    texts = ["a red 7 top left", "a cup", "a blue 1 bottom right", "2"]
    assert torch.allclose(made.media(pictures), made.media(pictures, batch_size=2), atol=1e-6)  # other kernels, same sums
    assert torch.allclose(made.texts(texts), made.texts(texts, batch_size=1), atol=1e-6)
    assert torch.allclose(made.texts(texts).norm(dim=-1), torch.ones(4))
    reduced = Embedder(copy.deepcopy(made.system).bfloat16(), made.processor).texts(texts)
    assert reduced.dtype == torch.float32 and torch.allclose(reduced.norm(dim=-1), torch.ones(4))
    with pytest.raises(DataError, match="nothing to embed"):
        made.texts([])


def test_of_compared_features_the_best_counts():
    media, texts = torch.zeros(1, 3, 2), torch.eye(2)
    media[0, 1], media[0, 2] = torch.tensor([0.8, 0.6]), torch.tensor([-1.0, 0.0])
    assert torch.allclose(similarities(media, texts), torch.tensor([[0.8, 0.6]]))


def test_towers_that_diverged_are_refused():
    recipe = tiny_recipe("clip")
    system = recipe.system.build()
    nn.init.constant_(system.text_projection.weight, math.nan)
    with pytest.raises(DataError, match="text tower gives vectors that are not finite"):
        Embedder(system, embedder().processor).texts(["a"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("model") / "clip"
    write_model_folder(place, embedder().system, embedder().processor)
    return place


def test_the_command_line_measures_a_dual_encoder(folder, tmp_path, capsys):
    asked = ["eval", str(folder), "--benchmark", "desk-zero-shot", "--set", "num_per_type=3", "-o", str(tmp_path), "--json"]
    assert run(asked) == 0
    told = json.loads(capsys.readouterr().out)
    assert set(told["types"]) == {"digit", "ink", "place"} and told["questions"] == 9
    assert told["types"]["digit"][CHANCE]["value"] == 0.1
    kept = load_evaluation(tmp_path)
    assert kept.runs["model"][0].reply in BENCHMARK.classes["digit"].names
    python = evaluate(ZeroShotModel(load_embedder(folder), BENCHMARK.classes), DeskZeroShot.Config(num_per_type=3).build())
    assert [r.reply for r in python.runs["model"]] == [r.reply for r in kept.runs["model"]]


def test_what_does_not_fit_a_dual_encoder_is_told(folder, capsys):
    assert run(["eval", str(folder), "--benchmark", "desk"]) == 2
    assert "holds a DualEncoder, which does not answer" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="compares media with texts"):
        evaluate(Answers({}), BENCHMARK, text_only=Answers({}))


def test_a_language_model_is_no_embedder(tmp_path):
    from tiny_model import tiny_model

    model = tiny_model()
    write_model_folder(tmp_path / "model", model.system, model.processor)
    with pytest.raises(CheckpointError, match="no two towers to compare"):
        load_embedder(tmp_path / "model")


@pytest.mark.parametrize("changes", [{"num_per_type": 1}, {"top": 0}])
def test_a_desk_of_too_little_is_refused(changes):
    with pytest.raises(ConfigError, match="zero-shot desk"):
        replace(BENCHMARK.config, **changes)


def test_nothing_is_sampled():
    model = ZeroShotModel(embedder(), BENCHMARK.classes, k=2)
    conversations = [item.conversation for item in BENCHMARK.items()[:4]]
    first = model.generate(conversations, Sampling(max_new_tokens=3))
    assert first == model.generate(conversations, Sampling(temperature=2.0), batch_size=1)
    assert all(answer.text.count(" > ") == 1 for answer in first)
