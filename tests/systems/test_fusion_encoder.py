"""BLIP-2's first stage as a system: who reads whom under each objective, how it starts, and what the second stage takes."""

from dataclasses import replace
from fnmatch import fnmatchcase

import pytest
import tiny_pairs
import torch
from tiny_pairs import LENGTHS, NUM_QUERIES, pairs, system, tokens

from weft.checkpoints.blip_2_pretraining import lavis_map
from weft.core.errors import ConfigError, DataError
from weft.core.query_text_rules import bidirectional, multimodal_causal, unimodal
from weft.fusion.token_concatenation import TokenConcatenation
from weft.language_models.opt import Opt
from weft.objectives.image_grounded_generation import written_pairs
from weft.objectives.image_text_contrastive import own_pairs
from weft.recipes.blip_2_pretraining import SIZES, blip_2_pretraining
from weft.systems.multimodal_lm import MultimodalLM, Stream
from weft.training.taking import take

PLACE = 2  # of the token that is changed, in the first text


@torch.no_grad()
def read(pattern, changed=False):
    """Queries and text of the first pair under a pattern, as it is or with one token changed."""
    words = tokens()
    words[0, PLACE] += changed
    batch, media = pairs(words=words)
    output = system()(batch.arrange(own_pairs(batch), *pattern(0, batch.main.segment > 0).queries[:2]), media)
    return output.embeddings["queries"][0], output.hidden[0]


def test_under_contrast_the_queries_do_not_see_the_text():
    (queries, text), (again, other) = read(unimodal), read(unimodal, changed=True)
    assert torch.equal(queries, again)
    assert (text - other).abs().amax(1).min() > 1e-3


def test_under_generation_queries_and_earlier_tokens_do_not_see_a_token():
    (queries, text), (again, other) = read(multimodal_causal), read(multimodal_causal, changed=True)
    assert torch.equal(queries, again) and torch.equal(text[:PLACE], other[:PLACE])
    assert (text - other)[PLACE:].abs().amax(1).min() > 1e-3


def test_under_matching_the_queries_see_the_text():
    (queries, _), (again, _) = read(bidirectional), read(bidirectional, changed=True)
    assert (queries - again).abs().amax(1).min() > 1e-3


@torch.no_grad()
@pytest.mark.parametrize(("pattern", "sees"), [(unimodal, False), (bidirectional, True), (multimodal_causal, True)])
def test_the_text_sees_the_medium_through_the_queries_or_not_at_all(pattern, sees):
    batch, media = pairs()
    other = torch.tensor([[0, 1], [1, 1]])
    order = pattern(0, batch.main.segment > 0).queries[:2]
    hidden = system()(batch.arrange(torch.tensor([[0, 0], [1, 1]]), *order), media).hidden
    again = system()(batch.arrange(other, *order), media).hidden
    assert torch.equal(hidden[1], again[1])
    assert bool((hidden[0] - again[0]).abs().max() > 1e-3) == sees


def test_arranging_takes_each_text_to_each_medium():
    batch, _ = pairs()
    order, segment = (side * 2 for side in (batch.main.order, batch.main.segment))
    arranged = batch.arrange(torch.tensor([[1, 4], [2, 0], [1, 1]]), order, segment)
    assert arranged.main.tokens.shape == (3, 4)  # the longest of what was asked for
    assert torch.equal(arranged.main.tokens[1], tokens()[2, :4])
    assert torch.equal(arranged.main.tokens[0, :3], tokens()[1, :3]) and arranged.main.segment[0].tolist() == [2, 2, 2, 0]
    assert arranged.main.order[1].tolist() == [0, 2, 4, 6]
    assert arranged.shown("image").tolist() == [4, 0, 1]
    assert [sample.id for sample in arranged.samples] == ["1", "2", "1"]


def test_packed_rows_arrange_to_the_same_pairs():
    (alone, _), (packed, _) = pairs(), pairs(packed=True)
    config = tiny_pairs.config()
    one, other = written_pairs(config, alone), written_pairs(config, packed)
    real = one.main.segment > 0
    assert torch.equal(real, other.main.segment > 0) and real.sum(1).tolist() == list(LENGTHS)
    assert torch.equal(one.main.tokens, other.main.tokens) and torch.equal(one.main.positions, other.main.positions)
    assert torch.equal(one.main.targets["text"], other.main.targets["text"])


def test_a_row_of_several_texts_is_an_error():
    batch, media = pairs(packed=True)
    with pytest.raises(DataError, match="one text a row, got 5 in 1 rows; arrange"):
        system()(batch, media)


def test_a_text_without_a_medium_is_an_error():
    batch, media = pairs()
    image = replace(batch.media["image"], item_sample=torch.tensor([0, 0, 1, 2, 3]))
    with pytest.raises(DataError, match="sample pairs:0 shows 2 media of stream 'image'"):
        system()(replace(batch, media={"image": image}), media)


def test_a_projector_that_reads_no_text_is_an_error():
    config = tiny_pairs.config()
    stream = config.streams["image"]
    for changed in ({"vocabulary": None}, {"projected": True}):
        streams = {"image": replace(stream, projector=replace(stream.projector, **changed))}
        with pytest.raises(ConfigError, match="vocabulary and projected=False"):
            replace(config, streams=streams)


def test_the_feed_forward_of_the_queries_starts_as_a_copy_of_the_texts():
    torch.manual_seed(0)
    for block in tiny_pairs.config().build().transformer.blocks:
        query, text = block.feed_forward.query.state_dict(), block.feed_forward.text.state_dict()
        assert all(torch.equal(query[name], text[name]) for name in text)


@pytest.mark.parametrize("size", SIZES)
def test_what_trains_has_the_published_parameters(size):
    (stage,) = blip_2_pretraining(size).stages
    with torch.device("meta"):
        made = stage.system.build()
    trained = {name: p for name, p in made.named_parameters() if not fnmatchcase(name, "streams.image.encoder.*")}
    memory = 2 * 6 * 768 * (1408 - stage.system.streams["image"].encoder.output_width)  # keys and values of six blocks
    assert sum(p.numel() for p in trained.values()) + memory == 186_702_654
    assert made.transformer.queries.shape == (32, 768)


def test_every_parameter_but_the_encoders_has_a_place_in_the_published_layout():
    made = system()
    state = {name: value for name, value in made.state_dict().items() if not name.startswith("streams.image.encoder.")}
    file = lavis_map(made.config).from_weft(state)
    assert {"temp", "itm_head.weight", "vision_proj.bias", "Qformer.cls.predictions.bias", "query_tokens"} <= file.keys()
    file |= {"Qformer.cls.predictions.decoder.weight": file["Qformer.bert.embeddings.word_embeddings.weight"]}
    back = lavis_map(made.config).to_weft(file)
    assert back.keys() == state.keys() and all(torch.equal(back[name], state[name]) for name in state)


def test_the_second_stage_takes_what_the_first_has_learned():
    first = system()
    stream = first.config.streams["image"]
    seen = Stream.Config(encoder=stream.encoder, projector=replace(stream.projector, vocabulary=None, projected=True))
    config = MultimodalLM.Config(
        language_model=Opt.Config.tiny(), streams={"image": seen}, fusions=(TokenConcatenation.Config(),)
    )
    stage = replace(
        blip_2_pretraining().stages[0], name="generate", system=config,
        takes={"represent": {"streams.*": "streams."}}, new=("streams.image.projector.output.*", "language_model.*"),
    )  # fmt: skip
    second = config.build()
    left = take(stage, second, lambda name: first.state_dict())
    assert all("embedding." in name or ".feed_forward.text." in name for name in left), "only what reads text stays behind"
    transformer = second.streams["image"].projector.transformer
    _, media = pairs()
    with torch.no_grad():
        order = torch.zeros(len(LENGTHS), 0, dtype=torch.long)
        queries, _ = first.read(media["image"], order, order, order)
        assert torch.equal(transformer.eval()(media["image"]), queries) and queries.shape[1] == NUM_QUERIES
