"""LLaVA that watches: tokens of films and of pictures, and that the order of frames is told."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from weft.core.conversation import Conversation, Media, assistant, user
from weft.core.errors import ConfigError
from weft.core.layout import MediaLayout
from weft.data.collate import collate
from weft.data.desk.watching import DeskWatching
from weft.recipes.catalogue import recipe, sizes_of, tiny_recipe
from weft.recipes.llava_video import NUM_FRAMES, llava_video
from weft.recipes.shrinking import tiny_tokenizer
from weft.systems.accounting import num_parameters, on_meta
from weft.training.freezing import freeze

TOWER = 404_187_136  # LanguageBind's: CLIP's L/14 at 224 pixels and attention over time
LANGUAGE_MODEL = {"7b": 6_738_415_616, "13b": 13_015_864_320}


@pytest.mark.parametrize("size", sizes_of("llava-video"))
def test_stages_parameters_and_tokens(size):
    align, instruct = recipe("llava-video", size).stages
    assert (align.optimizer.learning_rate, align.batch_size) == (1e-3, 256)
    assert (instruct.optimizer.learning_rate, instruct.batch_size) == (2e-5, 128)
    system = on_meta(instruct.system)
    encoder = system.stream("video").encoder
    assert num_parameters(encoder) == TOWER and (encoder.config.num_frames, encoder.config.unit_shape[-1]) == (NUM_FRAMES, 224)
    assert num_parameters(system.language_model) == LANGUAGE_MODEL[size]
    width = 5120 if size == "13b" else 4096
    assert num_parameters(system.stream("video").projector) == 2 * 4096 + (4096 + 1) * width + (width + 1) * width
    for stage in (align, instruct):
        unit = stage.system.layout("video")
        transform = stage.processor.transforms["video"]
        assert (transform.num_frames, transform.unit_shape) == (NUM_FRAMES, encoder.config.unit_shape)
        film = transform.usual_layout(unit)
        assert stage.system.num_positions("video", film) == 8 * 64
        assert stage.system.num_positions("video", MediaLayout(16, 16)) == 64, "a picture is a film of one frame"
    assert {".".join(name.split(".")[:3]) for name in freeze(system, align.train)} == {"streams.video.projector"}
    assert not any(name.startswith("streams.video.encoder") for name in freeze(system, instruct.train)), (
        "the tower stays frozen"
    )


def test_an_unknown_size_is_told_with_the_nearest():
    with pytest.raises(ConfigError, match="did you mean '7b'"):
        llava_video("7B")


@pytest.fixture(scope="module")
def watching():
    stage = tiny_recipe("llava-video").stages[-1]
    torch.manual_seed(0)
    return stage.system.build().eval(), stage.processor.build(tiny_tokenizer(50), stage.system)


def about(film):
    return Conversation((user(Media(film, "video"), "What happens?"), assistant("a red 7")))


def logits(watching, *films):
    system, processor = watching
    with torch.no_grad():
        return system(collate([processor.encode(about(film)) for film in films])).logits()


def test_a_film_backwards_is_another_film_and_without_moments_its_frames_are_the_same(watching):
    film = next(DeskWatching.Config(mix={"direction": 1.0}).build()[0].media()).source[::2]
    forwards, backwards = logits(watching, film, np.ascontiguousarray(film[::-1]))
    assert (forwards - backwards).abs().max() > 1e-3
    system, processor = watching
    tables = [block.before_attention.embedding.table for block in system.stream("video").encoder.image.blocks]
    batch = collate([processor.encode(about(each)) for each in (film, np.ascontiguousarray(film[::-1]))])
    kept = [table.detach().clone() for table in tables]
    try:
        with torch.no_grad():
            for table in tables:
                table.zero_()
            first, second = system.encode(batch)["video"].by_item()[0].unflatten(1, (4, -1))
    finally:
        for table, values in zip(tables, kept, strict=True):
            table.data.copy_(values)
    torch.testing.assert_close(first, second.flip(0), rtol=0, atol=1e-5)  # float32: frame by frame, the same features


def test_films_and_pictures_share_a_batch(watching):
    """Each has the logits that it has alone; a picture takes a quarter of the positions of four frames."""
    film = next(DeskWatching.Config().build()[0].media()).source
    picture = np.ascontiguousarray(film[-1])
    together = logits(watching, film, picture)
    for row, each in enumerate((film, picture)):
        alone = logits(watching, each)[0]
        torch.testing.assert_close(together[row, : len(alone)], alone, rtol=0, atol=1e-5)  # float32, two blocks
    _, processor = watching
    spans = [processor.encode(about(each)).media["video"][0].spans[0][2] for each in (film, picture)]
    assert spans == [16, 4]


def test_a_longer_film_is_read_with_stretched_moments(watching):
    system, processor = watching
    transform = replace(processor.config.transforms["video"], num_frames=6)
    more = replace(processor.config, transforms={"video": transform}).build(processor.tokenizer, system.config)
    film = next(DeskWatching.Config().build()[0].media()).source
    sample = more.encode(about(film))
    assert sample.media["video"][0].spans[0][2] == 6 * 4
    with torch.no_grad():
        assert system(collate([sample])).logits().isfinite().all()
