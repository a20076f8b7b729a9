"""How `timm` and `open_clip` make a picture's values, written out: torchvision's Resize, CenterCrop, ToTensor, Normalize."""

import numpy as np
import torch
from PIL import Image


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def stock_values(image: Image.Image, size: int, resized: int, mean, std, squash: bool = False, kind: str = "BICUBIC"):
    """Shapes: a picture -> [3, size, size]."""
    short, long = sorted(image.size)
    target = [resized if squash or side == short else int(resized * long / short) for side in image.size]
    image = image.resize(tuple(target), getattr(Image.Resampling, kind))
    left, top = (round((side - size) / 2.0) for side in image.size)
    values = torch.from_numpy(np.array(image.crop((left, top, left + size, top + size)))).permute(2, 0, 1).float() / 255
    return (values - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
