"""From pixels to patch vectors."""

from __future__ import annotations

from torch import Tensor, nn

from weft.core.errors import ConfigError, DataError


def patches_per_side(image_size: int, patch_size: int) -> int:
    """G, the patches along one side of a square image; a rest that fills no patch is left out.

    Raises: ConfigError for an image smaller than a patch.
    """
    if not 0 < patch_size <= image_size:
        raise ConfigError(f"an image of {image_size} pixels holds no patch of {patch_size}; enlarge the image")
    return image_size // patch_size


class PatchEmbedding(nn.Module):
    """One linear map of each square patch, patches row by row.

    Shapes: units [N, 3, image_size, image_size] -> [N, G * G, width] with G = `patches_per_side`.
    Raises: DataError for units of another size.
    """

    def __init__(self, image_size: int, patch_size: int, width: int, bias: bool) -> None:
        super().__init__()
        self.image_size = image_size
        self.projection = nn.Conv2d(3, width, kernel_size=patch_size, stride=patch_size, bias=bias)

    def forward(self, units: Tensor) -> Tensor:
        if units.shape[1:] != (3, self.image_size, self.image_size):
            raise DataError(
                f"image units have shape {tuple(units.shape)}, the encoder takes (N, 3, {self.image_size}, {self.image_size}); "
                "set the processor's image size to the encoder's"
            )
        return self.projection(units.to(self.projection.weight.dtype)).flatten(2).transpose(1, 2)
