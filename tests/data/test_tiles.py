"""Pictures in tiles: the grids, pixels and token counts of the published systems, and several units an item to the end."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_model import VOCABULARY, scatter, tokenizer

from weft.core import config as configs
from weft.core.conversation import Conversation, Media, assistant, user
from weft.core.errors import ConfigError
from weft.core.layout import MediaLayout
from weft.data.collate import collate
from weft.data.images import ImageTransform
from weft.data.processor import Processor
from weft.data.tiles import AnyResolution, DynamicTiling, HighDefinition, PictureTiles, cut
from weft.encoders.clip import ClipVision
from weft.fusion.token_concatenation import TokenConcatenation
from weft.language_models.decoder import Decoder
from weft.projectors.global_local_tiles import GlobalLocalTiles
from weft.projectors.pixel_shuffle import PixelShuffle
from weft.projectors.tiles import Tiles
from weft.systems.multimodal_lm import MultimodalLM, Stream

SIDE = 28
SIZES = [(28, 28), (56, 56), (53, 40), (40, 53), (100, 30), (30, 100), (192, 108), (200, 50), (7, 3), (1, 9)]
LLAVA_NEXT = {
    (336, 336): 1176, (672, 672): 2928, (640, 480): 2340, (480, 640): 2352, (1000, 300): 2182, (300, 1000): 2232,
    (1920, 1080): 1948, (2000, 500): 1890,
}  # fmt: skip


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """Soft colours with noise, so that resampling, padding and cutting show."""
    random = np.random.default_rng(seed)
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    values = np.stack((x, y, 255 - x), -1) * 0.7 + random.uniform(0, 76, (height, width, 3))
    return Image.fromarray(values.astype(np.uint8))


def tiles(tiling, side: int = SIDE) -> PictureTiles:
    return PictureTiles(view=ImageTransform(size=side, resize="direct"), tiling=tiling)


def layout_of(transform: PictureTiles, size: tuple[int, int], unit: MediaLayout) -> MediaLayout:
    return transform.open(Image.new("RGB", size), unit).layout


def assert_same_pixels(transform: PictureTiles, image: Image.Image, theirs) -> None:
    opened = transform.open(image, MediaLayout(4, 4))
    ours, reference = transform.normalise(opened.units), torch.as_tensor(np.asarray(theirs))
    assert ours.shape == reference.shape and len(ours) == opened.layout.num_units
    # both resample 8-bit pictures with Pillow; only float rounding of the normalisation may differ
    assert (ours - reference).abs().max() < 2e-5


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_any_resolution_gives_the_pixels_of_llava_next(size):
    transformers = pytest.importorskip("transformers")
    pinpoints = [[SIDE * rows, SIDE * columns] for rows, columns in AnyResolution().grids]
    processor = transformers.LlavaNextImageProcessorPil(
        size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}, image_grid_pinpoints=pinpoints
    )
    theirs = processor(picture(*size), return_tensors="pt")["pixel_values"][0]
    assert_same_pixels(tiles(AnyResolution()), picture(*size), theirs)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("most", [6, 12])
def test_dynamic_tiling_gives_the_pixels_of_internvl(size, most):
    transformers = pytest.importorskip("transformers")
    processor = transformers.GotOcr2ImageProcessorPil(
        size={"height": SIDE, "width": SIDE}, crop_to_patches=True, min_patches=1, max_patches=most
    )
    theirs = processor(picture(*size), return_tensors="pt")["pixel_values"]
    assert_same_pixels(tiles(DynamicTiling(max_tiles=most)), picture(*size), theirs)


@pytest.mark.parametrize(("size", "tokens"), LLAVA_NEXT.items(), ids=str)
def test_llava_next_has_its_published_number_of_tokens(size, tokens):
    layout = layout_of(tiles(AnyResolution(), 336), size, MediaLayout(24, 24))
    assert Tiles.Config().num_tokens(layout) == tokens


def test_a_tiled_picture_is_counted_as_two_by_two_tiles():
    for tiling, units in ((AnyResolution(), 5), (DynamicTiling(), 5), (DynamicTiling(max_tiles=1), 1)):
        assert tiles(tiling).usual_layout(MediaLayout(4, 4)).num_units == units


def test_llava_next_counts_like_the_reference_for_many_sizes():
    """Their counting, grid and all, against ours; sizes at random, from strips to squares."""
    transformers = pytest.importorskip("transformers")
    from transformers.image_processing_utils import select_best_resolution

    processor = object.__new__(transformers.LlavaNextProcessor)  # the counting needs no tokenizer
    processor.patch_size, processor.num_additional_image_tokens = 14, 0
    pinpoints = [[336 * rows, 336 * columns] for rows, columns in AnyResolution().grids]
    processor.image_processor = transformers.LlavaNextImageProcessorPil(image_grid_pinpoints=pinpoints)
    for width, height in np.random.default_rng(0).integers(1, 3000, (400, 2)).tolist():
        rows, columns = AnyResolution().grid((width, height), 336)
        assert (rows * 336, columns * 336) == tuple(select_best_resolution((height, width), pinpoints))
        layout = MediaLayout(24, 24, tile_rows=rows, tile_columns=columns, thumbnail="first", picture_size=(width, height))
        expected = processor._get_number_of_features(height, width, 336, 336)
        assert Tiles.Config().num_tokens(layout) == expected, (width, height)


def test_of_grids_that_show_as_much_the_one_that_wastes_least_is_chosen_and_then_the_first():
    """In any order of the grids, as the reference does."""
    pytest.importorskip("transformers")
    from transformers.image_processing_utils import select_best_resolution

    for grids in (((2, 2), (1, 2), (2, 1)), ((3, 3), (2, 1), (1, 2), (2, 2)), ((1, 1), (2, 2))):
        pinpoints = [[336 * rows, 336 * columns] for rows, columns in grids]
        for size in ((336, 336), (100, 100), (300, 500), (500, 300), (672, 300), (700, 700)):
            rows, columns = AnyResolution(grids=grids).grid(size, 336)
            assert (336 * rows, 336 * columns) == tuple(select_best_resolution(size[::-1], pinpoints))
    assert AnyResolution(grids=((2, 2), (1, 2), (2, 1))).grid((336, 336), 336) == (1, 2)


@pytest.mark.parametrize("most", [1, 6, 12, 40])
def test_internvl_chooses_the_grids_of_the_reference_ties_included(most):
    """Sizes at random, and sizes of simple aspects around every area at which a tie turns to more tiles."""
    pytest.importorskip("transformers")
    from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import get_optimal_tiled_canvas

    sizes = np.random.default_rng(1).integers(1, 3000, (100, 2)).tolist()
    sizes += [(width * k, height * k) for width, height in ((1, 1), (2, 1), (1, 2), (3, 2)) for k in range(90, 1600, 41)]
    for width, height in sizes:
        columns, rows = get_optimal_tiled_canvas((height, width), (448, 448), 1, most)
        assert DynamicTiling(max_tiles=most).grid((width, height), 448) == (rows, columns), (width, height)


@pytest.mark.parametrize(
    ("size", "most", "grid", "tokens"),
    [
        ((1024, 768), 12, (3, 4), 3328),
        ((1024, 768), 6, (2, 3), 1792),
        ((800, 400), 12, (1, 2), 768),
        ((2000, 1000), 12, (2, 4), 2304),  # the same aspect: more pixels, more tiles
        ((448, 448), 12, (1, 1), 256),  # one tile has no thumbnail
    ],
)
def test_internvl_has_its_published_tiles_and_tokens(size, most, grid, tokens):
    transform = tiles(DynamicTiling(max_tiles=most), 448)
    assert transform.tiling.grid(size, 448) == grid
    layout = MediaLayout(32, 32, tile_rows=grid[0], tile_columns=grid[1], thumbnail="last" if math.prod(grid) > 1 else "none")
    assert PixelShuffle.Config().num_tokens(layout) == tokens
    assert layout_of(tiles(DynamicTiling(max_tiles=most), 8), tuple(n // 56 for n in size), MediaLayout(4, 4)).thumbnail == (
        layout.thumbnail
    )


@pytest.mark.parametrize(
    ("size", "most", "grid", "tokens"),
    [((336, 336), 1, (1, 1), 313), ((1280, 720), 55, (6, 9), 8005), ((3840, 1600), 55, (5, 11), 8137)],
)
@pytest.mark.parametrize("upright", [False, True], ids=["level", "upright"])
def test_xcomposer2_4khd_has_its_published_tiles_and_tokens(size, most, grid, tokens, upright):
    transform = tiles(HighDefinition(max_tiles=most), 336)
    if upright:
        size, grid = size[::-1], grid[::-1]
    layout = layout_of(transform, size, MediaLayout(24, 24))
    assert (layout.tile_rows, layout.tile_columns, layout.thumbnail) == (*grid, "first")
    if not upright:
        assert GlobalLocalTiles.Config().num_tokens(layout) == tokens
    rows = 12 * (grid[0] + 1)
    assert GlobalLocalTiles.Config().num_tokens(layout) == 144 * (math.prod(grid) + 1) + 1 + rows


def test_high_definition_pads_the_short_side_with_white_and_mirrors_upright_pictures():
    transform = tiles(HighDefinition(max_tiles=4), 8)
    level = transform.open(Image.new("RGB", (40, 11), (9, 9, 9)), MediaLayout(4, 4))
    assert (level.layout.tile_rows, level.layout.tile_columns) == (1, 3)
    canvas, thumbnail = transform.tiling.lay(Image.new("RGB", (40, 11), (9, 9, 9)), transform.view)
    column = np.asarray(canvas)[:, 0, 0].tolist()
    height = int(canvas.width / (40 / 11))
    above = (canvas.height - height) // 2
    assert column == [255] * above + [9] * height + [255] * (canvas.height - height - above)
    turned, small = transform.tiling.lay(Image.new("RGB", (11, 40), (9, 9, 9)), transform.view)
    assert np.array_equal(np.asarray(turned), np.asarray(canvas).swapaxes(0, 1))
    assert np.array_equal(small, thumbnail.swapaxes(0, 1))


def test_tiles_are_cut_row_by_row():
    canvas = Image.fromarray(np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3))
    pixels = np.asarray(canvas)
    expected = [pixels[y : y + 2, x : x + 2] for y in (0, 2) for x in (0, 2, 4)]
    assert np.array_equal(cut(canvas, 2), expected)


@pytest.mark.parametrize("tiling", [AnyResolution(), DynamicTiling(), HighDefinition()], ids=lambda t: t.part_name)
@pytest.mark.parametrize("size", [(1, 1), (3000, 1), (1, 3000), (8, 9)], ids=str)
def test_any_picture_has_as_many_units_as_its_layout_says(tiling, size):
    opened = tiles(tiling, 8).open(np.zeros((*size[::-1], 3), dtype=np.uint8), MediaLayout(2, 2))
    assert opened.units.shape == (opened.layout.num_units, 8, 8, 3) and opened.units.dtype == np.uint8
    assert opened.size == opened.layout.picture_size == size


def test_a_transform_is_saved_with_its_tiling():
    for tiling in (AnyResolution(grids=((1, 2), (2, 2))), DynamicTiling(min_tiles=2, max_tiles=5), HighDefinition(max_tiles=9)):
        assert configs.loads(configs.dumps(tiles(tiling))) == tiles(tiling)


@pytest.mark.parametrize("wrong", [lambda: AnyResolution(grids=()), lambda: DynamicTiling(min_tiles=3, max_tiles=2)])
def test_a_tiling_without_a_grid_is_refused(wrong):
    with pytest.raises(ConfigError):
        wrong()


ENCODER = ClipVision.Config.tiny()  # 32 pixels in patches of 8: a grid of 4 x 4
WAYS = {
    "llava-next": (AnyResolution(), Tiles.Config()),
    "internvl": (DynamicTiling(max_tiles=4), PixelShuffle.Config()),
    "xcomposer2-4khd": (HighDefinition(max_tiles=6), GlobalLocalTiles.Config()),
}


def seeing(way: str) -> tuple[MultimodalLM, Processor]:
    tiling, projector = WAYS[way]
    config = MultimodalLM.Config(
        language_model=replace(Decoder.Config.tiny(), vocabulary=VOCABULARY, context=512),
        streams={"image": Stream.Config(encoder=ENCODER, projector=projector)},
        fusions=(TokenConcatenation.Config(),),
    )
    torch.manual_seed(0)
    system = config.build().eval()
    scatter(system)
    settings = Processor.Config(transforms={"image": tiles(tiling, ENCODER.image_size)})
    return system, settings.build(tokenizer(), config)


def asked(*sizes: tuple[int, int]) -> Conversation:
    parts = [part for n, size in enumerate(sizes) for part in (Media(picture(*size, seed=n)), "which colour")]
    return Conversation((user(*parts), assistant("red")), id="asked")


@pytest.mark.parametrize("way", WAYS)
@torch.no_grad()
def test_tiles_reach_their_places_in_the_text(way):
    """Processor, collation, encoder, projector and fusion: pictures of different shapes in one batch, against each alone."""
    system, processor = seeing(way)
    samples = [processor.encode(asked((40, 30), (90, 20))), processor.encode(asked((33, 64)))]
    batch = collate(samples)
    media = batch.media["image"]
    assert media.unit_item.bincount().tolist() == [layout.num_units for layout in media.layout]
    assert len({layout.num_units for layout in media.layout}) > 1
    promised = [system.config.streams["image"].projector.num_tokens(layout) for layout in media.layout]
    assert media.spans[:, 4].tolist() == promised
    embedded = system.sequence(batch).embeddings
    transform = processor.config.transforms["image"]
    for span, size, seed in zip(media.spans.tolist(), [(40, 30), (90, 20), (33, 64)], [0, 1, 0], strict=True):
        opened = transform.open(picture(*size, seed=seed), ENCODER.layout())
        stream = system.stream("image")
        units = transform.normalise(opened.units)
        features = stream.encoder(units, torch.zeros(len(units), dtype=torch.long), (opened.layout,))
        alone = stream.projector(features).values
        _, _, row, start, length = span
        # float32: the encoder runs on other numbers of units
        torch.testing.assert_close(embedded[row, start : start + length], alone, rtol=0, atol=1e-5)
    assert system(batch).hidden.isfinite().all()


def test_the_same_pixels_of_another_picture_size_are_another_medium():
    """What unpadding leaves depends on the picture's size, so equal units are not always one item."""
    _, processor = seeing("llava-next")
    black = [Image.new("RGB", size) for size in ((40, 30), (30, 40))]
    batch = collate([processor.encode(Conversation((user(Media(image), "x"), assistant("y")))) for image in black])
    assert len(batch.media["image"].layout) == 2
    again = collate([processor.encode(Conversation((user(Media(black[0]), "x"), assistant("y"))))] * 2)
    assert len(again.media["image"].layout) == 1 and len(again.media["image"].spans) == 2
