"""Retrieval: exact on similarities made by hand, chance where nothing is known, and the whole way of a user with own pairs."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from weft.core.conversation import Media
from weft.core.errors import ConfigError, DataError
from weft.data.desk.questions import detailed_caption
from weft.data.desk.world import Desk
from weft.evaluation.benchmarks.desk_retrieval import DeskRetrieval
from weft.evaluation.benchmarks.pair_retrieval import PairRetrieval
from weft.evaluation.evaluation import MODEL, load_evaluation
from weft.evaluation.pairs import Pairs
from weft.evaluation.retrieval import CHANCE, TO_MEDIA, TO_TEXT, RetrievalBenchmark, RetrievalModel
from weft.evaluation.runner import evaluate
from weft.evaluation.ties import recall_at
from weft.inference.embedder import Embedder
from weft.recipes.catalogue import tiny_recipe
from weft.recipes.shrinking import tiny_tokenizer
from weft.serving.cli import run
from weft.training.model_folder import write_model_folder


@cache
def embedder() -> Embedder:
    recipe = tiny_recipe("clip")
    torch.manual_seed(0)
    return Embedder(recipe.system.build().eval(), recipe.processor.build(tiny_tokenizer(20), recipe.system))


@dataclass(frozen=True, kw_only=True)
class Owned(RetrievalBenchmark.Config):
    """Text j fits medium `owner[j]`."""

    owner: tuple[int, ...]

    def build(self):
        return RetrievalBenchmark(self)

    def read(self):
        media = [Media(str(number)) for number in range(max(self.owner) + 1)]
        return [(media[number], str(text)) for text, number in enumerate(self.owner)]


class Told:
    """A stand-in for an embedder, which gives the vectors that it is told."""

    def __init__(self, media, texts):
        self.told = media, texts
        self.system, self.processor = torch.nn.Linear(1, 1), embedder().processor

    def media(self, media, batch_size=1):
        return self.told[0]

    def texts(self, texts, batch_size=1):
        return self.told[1]


def evaluation_of(benchmark, media, texts):
    return evaluate(RetrievalModel(Told(media, texts), benchmark.pairs, benchmark.top), benchmark)


def told(matrix, owner, ks=(1, 2, 3)):
    """What is found where `matrix` holds the similarity of medium i and text j; media and texts are met in this order."""
    benchmark = type("Retrieval", (RetrievalBenchmark,), {"name": "owned"})(Owned(owner=tuple(owner), ranks=ks))
    first_met = list(dict.fromkeys(owner))
    return evaluation_of(benchmark, matrix[first_met], torch.eye(matrix.shape[1]))


def recalls(matrix, owner, ks=(1, 2, 3), run=MODEL):
    found = told(matrix, list(map(int, owner)), ks)
    return tuple([found.by_type(f"{way}_at_{k}", run).value for k in ks] for way in (TO_TEXT, TO_MEDIA))


def test_the_identity_is_found_at_the_first_place():
    assert recalls(torch.eye(6), range(6)) == ([1.0] * 3, [1.0] * 3)


def test_any_of_a_mediums_texts_counts_and_a_text_has_one_medium():
    owner = [0, 0, 1, 1, 2, 2]
    matrix = torch.tensor(
        [
            [0.9, 0.1, 0.2, 0.3, 0.4, 0.5],  # finds its first text first: its second, last of all, does not matter
            [0.6, 0.7, 0.5, 0.4, 0.3, 0.2],  # its best text is third
            [0.8, 0.7, 0.6, 0.1, 0.2, 0.5],  # its best text is fourth
        ]
    )
    of_media, of_texts = recalls(matrix, owner, (1, 2, 3, 4))
    assert of_media == pytest.approx([1 / 3, 1 / 3, 2 / 3, 1.0])
    # the texts' media stand at places 1, 3 (of 0.1 0.7 0.7), 2, 1, 3 (of 0.4 0.3 0.2), and 1 or 2 (0.5 twice)
    assert of_texts == pytest.approx([2.5 / 6, 4 / 6, 1.0, 1.0])


def test_the_order_of_texts_and_media_does_not_matter():
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(7, 21, generator=generator)
    owner = torch.arange(7).repeat(3)
    rows, columns = torch.randperm(7, generator=generator), torch.randperm(21, generator=generator)
    moved = torch.empty(7, dtype=torch.long)
    moved[rows] = torch.arange(7)
    assert recalls(matrix, owner) == recalls(matrix[rows][:, columns], moved[owner[columns]])


@pytest.mark.parametrize("texts_each", [1, 5])
def test_a_model_that_finds_all_alike_gets_chance_and_chance_stands_beside_it(texts_each):
    media, ks = 12, (1, 5, 10)
    texts = media * texts_each
    owner = torch.arange(media).repeat_interleave(texts_each)
    of_media, of_texts = recalls(torch.zeros(media, texts), owner, ks)
    assert of_texts == pytest.approx([k / media for k in ks])
    # none of a medium's texts among k drawn without replacement
    missed = [math.comb(texts - texts_each, k) / math.comb(texts, k) for k in ks]
    assert of_media == pytest.approx([1 - m for m in missed])
    assert (of_media, of_texts) == recalls(torch.eye(texts)[:media], owner, ks, CHANCE)


def test_the_chance_among_equals_is_that_of_all_orders():
    scores = torch.tensor([[0.9, 0.5, 0.5, 0.5, 0.5, 0.1]])
    right = torch.tensor([[False, True, False, True, False, True]])
    for k in range(1, 7):
        hits = []
        for order in itertools.permutations(range(6)):
            ranked = sorted(order, key=lambda i: -float(scores[0, i]))  # stable: equals stay in the order drawn
            hits.append(any(right[0, i] for i in ranked[:k]))
        assert recall_at(scores, right, k).item() == pytest.approx(sum(hits) / len(hits))


def test_what_is_found_equals_recall_over_the_whole_matrix():
    """Answers as text and marks of them, against ranks counted on the numbers themselves."""
    generator = torch.Generator().manual_seed(1)
    matrix, owner = torch.randint(0, 9, (9, 27), generator=generator).float(), torch.arange(9).repeat_interleave(3)
    right = owner == torch.arange(9)[:, None]
    ways = ((matrix, right), (matrix.T, right.T))
    expected = [[recall_at(scores, fits, k).mean().item() for k in (1, 2, 3)] for scores, fits in ways]
    assert list(recalls(matrix, owner)) == [pytest.approx(values) for values in expected]


def test_intervals_take_the_texts_of_a_medium_together():
    matrix = torch.tensor([[0.9, 0.8, 0.7, 0.6], [0.1, 0.2, 0.3, 0.4]])  # the second medium finds its texts, not they it
    found = told(matrix, [0, 0, 1, 1], (1,))
    of_media, of_texts = (found.by_type(f"{way}_at_1") for way in (TO_TEXT, TO_MEDIA))
    assert (of_media.value, of_media.num, of_texts.value, of_texts.num) == (1.0, 2, 0.5, 4)
    assert (of_texts.low, of_texts.high) == (0.0, 1.0)  # two media, whose texts go together, say no more
    assert found.mean().value == 0.75


@pytest.mark.parametrize("ranks", [(), (0, 1), (5, 5)])
def test_ranks_are_different_and_begin_at_one(ranks):
    with pytest.raises(ConfigError, match="ranks of 1 and more"):
        Owned(owner=(0, 1), ranks=ranks)


def test_what_comes_twice_is_one_and_any_match_is_right():
    cat, dog, other = Media("cat.png"), Media("dog.png"), Media(np.zeros((2, 2, 3), "uint8"))
    pairs = Pairs.of([(cat, "a cat"), (dog, "an animal"), (Media("cat.png"), "an animal"), (other, "a cat"), (cat, "a cat")])
    assert pairs.media == (cat, dog, other) and pairs.texts == ("a cat", "an animal")
    assert pairs.texts_of == ((0, 1), (1,), (0,)) and pairs.media_of == ((0, 2), (1, 0))
    with pytest.raises(DataError, match="two or more different media"):
        Pairs.of([(cat, "a cat"), (cat, "an animal")])


DESK = DeskRetrieval.Config(num_pairs=200)


@cache
def desk():
    return DESK.build()


def test_desks_are_held_out_and_no_two_have_one_caption():
    pairs = desk().pairs
    assert pairs.fits == tuple((number, number) for number in range(200)) and len(set(pairs.texts)) == 200
    scene = Desk("test").scene(0)
    assert pairs.texts[0] == detailed_caption(scene) and (pairs.media[0].source == Desk("test").picture(0)).all()
    with pytest.raises(ConfigError, match=r"54\d different captions|5\d\d different captions"):
        list(DeskRetrieval.Config(num_pairs=600, max_digits=1, max_shapes=0).read())
    with pytest.raises(ConfigError, match="num_pairs of 2 and more"):
        replace(DESK, num_pairs=1)


def test_the_truth_finds_every_desk_and_random_vectors_find_chance():
    truth, noise = torch.nn.functional.normalize(torch.randn(2, 200, 64, generator=torch.Generator().manual_seed(0)), dim=-1)
    found = evaluation_of(desk(), truth, truth)
    assert all(found.by_type(type).value == 1.0 for type in found.types) and len(found.types) == 6
    assert found.baselines == (CHANCE,), "with another's picture it would find another's caption: nothing to learn from"

    guessed = evaluation_of(desk(), truth, noise)
    chance = {f"{way}_at_{k}": k / 200 for way in (TO_TEXT, TO_MEDIA) for k in (1, 5, 10)}
    for type, expected in chance.items():
        assert guessed.by_type(type, CHANCE).value == pytest.approx(expected)
        # a count of hits in 200 searches, at most 4 of its standard deviations from what is expected
        assert abs(guessed.by_type(type).value - expected) < 4 * math.sqrt(expected / 200)


@pytest.fixture
def own_pairs(tmp_path):
    """Eight drawings, with a caption each."""
    records = []
    for ink, (place, name) in itertools.product(("red", "blue", "green", "yellow"), enumerate(("left", "right"))):
        picture = Image.new("RGB", (64, 64), "white")
        ImageDraw.Draw(picture).rectangle((40 * place, 8, 40 * place + 20, 56), fill=ink)
        picture.save(tmp_path / f"{ink}-{name}.png")
        turns = [{"from": "human", "value": "<image>\nDescribe it."}, {"from": "gpt", "value": f"a {ink} bar {name}"}]
        records.append({"id": f"{ink}-{name}", "image": f"{ink}-{name}.png", "conversations": turns})
    path = tmp_path / "pairs.json"
    path.write_text(json.dumps(records))
    return path


def test_a_user_trains_a_tiny_clip_and_it_finds_the_pairs_it_was_trained_on(own_pairs, tmp_path, capsys):
    stages = ("contrastive.steps=60", "contrastive.batch_size=8", "high_resolution.steps=1")
    settings = [argument for text in stages for argument in ("--set", f"stages.{text}")]
    trained = tmp_path / "run"
    assert run(["train", "clip", "--tiny", "--data", str(own_pairs), "-o", str(trained), "--no-tensorboard", *settings]) == 0
    capsys.readouterr()

    model = str(trained / "stages" / "contrastive")
    asked = ["eval", model, "--benchmark", "pair-retrieval", "--set", f"path={own_pairs}", "--json"]
    assert run([*asked, "--set", "ranks=1,5", "-o", str(tmp_path / "answers")]) == 0
    scores = json.loads(capsys.readouterr().out)
    assert {type: of["model"]["value"] for type, of in scores["types"].items()} == {
        f"{way}_at_{k}": 1.0 for way in (TO_TEXT, TO_MEDIA) for k in (1, 5)
    }
    assert scores["types"]["text_to_media_at_5"][CHANCE]["value"] == pytest.approx(5 / 8)
    kept = load_evaluation(tmp_path / "answers").runs[MODEL]
    assert len(kept) == 32 and kept[-1].question == "a yellow bar right" and kept[-1].reply.split(" > ")[0] == "7"

    assert run(["eval", model, "--benchmark", "desk-retrieval", "--set", "num_pairs=20"]) == 0
    table = capsys.readouterr().out
    assert "Picture to caption, R@10" in table and "chance" in table and "50.0%" in table


def test_what_cannot_be_searched_is_one_line(own_pairs, tmp_path, capsys):
    write_model_folder(tmp_path / "clip", embedder().system, embedder().processor)

    def fails(*arguments):
        assert run(["eval", *map(str, arguments)]) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        return line

    assert "give them: --set path=pairs.json" in fails(tmp_path / "clip", "-b", "pair-retrieval")
    records = json.loads(own_pairs.read_text())
    text_alone = {"id": "words", "conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}
    own_pairs.write_text(json.dumps([*records, text_alone]))
    assert "words: a pair is a text and one medium, got 0 media" in fails(
        tmp_path / "clip", "-b", "pair-retrieval", "--set", f"path={own_pairs}"
    )

    from tiny_model import tiny_model

    model = tiny_model()
    write_model_folder(tmp_path / "lm", model.system, model.processor)
    assert "holds a MultimodalLM, which has no two towers to compare" in fails(tmp_path / "lm", "-b", "desk-retrieval")


def test_recordings_with_captions_are_pairs_too(tmp_path):
    for name in ("one", "two"):
        (tmp_path / f"{name}.wav").write_bytes(b"")
        (tmp_path / f"{name}.json").write_text(json.dumps({"text": [f"it says {name}", "a voice"]}))
    pairs = PairRetrieval.Config(path=str(tmp_path)).build().pairs
    assert len(pairs.media) == 2 and pairs.texts == ("it says one", "a voice", "it says two")
    assert pairs.media_of == ((0,), (0, 1), (1,))
