"""A recipe at CPU size shows its small encoder pictures of that encoder's size, whatever the way they are read."""

import pytest
from PIL import Image

from weft.core.layout import MediaLayout
from weft.data.audio import AudioTransform
from weft.data.images import ImageTransform
from weft.data.region_transforms import RegionTransform
from weft.data.tiles import AnyResolution, HighDefinition, PictureTiles
from weft.data.video import VideoTransform
from weft.recipes.catalogue import tiny_names, tiny_recipe
from weft.recipes.shrinking import resized
from weft.systems.dual_encoder import DualEncoder

SQUARE, SMALL = (ImageTransform(size=size, resize="direct") for size in (336, 32))
GRIDS = AnyResolution(grids=((1, 2), (2, 1)))


@pytest.mark.parametrize(
    ("published", "small"),
    [
        (ImageTransform(size=336, pad_to_square=True), ImageTransform(size=32, pad_to_square=True)),
        (PictureTiles(view=SQUARE, tiling=GRIDS), PictureTiles(view=SMALL, tiling=GRIDS)),
        (VideoTransform(frame=SQUARE, num_frames=5), VideoTransform(frame=SMALL, num_frames=5)),
        (RegionTransform(view=SQUARE), RegionTransform(view=SMALL)),
        (AudioTransform(), AudioTransform()),
    ],
    ids=lambda transform: type(transform).__name__,
)
def test_only_the_size_of_pictures_changes(published, small):
    assert resized(published, 32) == small


def test_a_picture_is_cut_into_tiles_of_the_small_size():
    tiles = resized(PictureTiles(view=SQUARE, tiling=HighDefinition(max_tiles=4)), 32)
    opened = tiles.open(Image.new("RGB", (640, 300)), MediaLayout(4, 4))
    assert opened.units.shape == (3, 32, 32, 3), "the whole, and two tiles side by side"
    assert tiles.unit_shape == (3, 32, 32)


@pytest.mark.parametrize("name", tiny_names())
def test_every_tiny_recipe_shows_its_encoders_pictures_of_their_size(name):
    for stage in tiny_recipe(name).stages:
        for stream, encoder in encoders_of(stage.system).items():
            if encoder.modality == "image":
                assert stage.processor.transforms[stream].unit_shape == encoder.unit_shape


def encoders_of(system):
    if isinstance(system, DualEncoder.Config):
        return {system.stream: system.media}
    return {name: stream.encoder for name, stream in getattr(system, "streams", {}).items()}
