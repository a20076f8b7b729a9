"""The canvas of Llama 3.2 Vision against the published image processor."""

import numpy as np
import pytest
from PIL import Image

from weft.core.layout import MediaLayout, tile_grids
from weft.data.images import HALF, ImageTransform
from weft.data.tiles import FittedCanvas, PictureTiles


@pytest.mark.parametrize("side", [28, 56])
def test_llama_3_2_tiles_are_those_of_the_published_processor(side):
    """Pictures of all sizes: the same grid under the same number, the same pixels."""
    transformers = pytest.importorskip("transformers")
    theirs = transformers.MllamaImageProcessorPil(size={"height": side, "width": side}, max_image_tiles=4)
    view = ImageTransform(size=side, resize="direct", filter="bilinear", mean=HALF, std=HALF)
    ours = PictureTiles(view=view, tiling=FittedCanvas(max_tiles=4))
    generator = np.random.default_rng(0)
    grids = set()
    exact = [(columns * side, rows * side) for rows, columns in tile_grids(4)]
    for width, height in [*generator.integers(1, 200, (60, 2)).tolist(), (1, 190), *exact]:
        picture = Image.fromarray(generator.integers(0, 255, (height, width, 3), dtype=np.uint8))
        expected = theirs(picture, return_tensors="pt")
        opened = ours.open(picture, MediaLayout(1, 17))
        grid = (opened.layout.tile_rows, opened.layout.tile_columns)
        grids.add(grid)
        assert tile_grids(4).index(grid) + 1 == int(expected["aspect_ratio_ids"])
        assert opened.layout.thumbnail == "none"
        tiles = expected["pixel_values"][0, 0, : opened.layout.num_tiles]
        assert (ours.normalise(list(opened.units)) - tiles).abs().max() < 1e-5  # far below 1/255
    assert grids == set(tile_grids(4))
