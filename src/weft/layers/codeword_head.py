"""A head that compares features with learned codewords."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class CodewordHead(nn.Module):
    """Logits as cosines between a projection of the feature and each class's codeword, over a temperature.

    Shapes: hidden [..., C] -> logits [..., num_classes] float32. Source: HuBERT, arXiv:2106.07447.
    """

    def __init__(self, width: int, embedding_width: int, num_classes: int, temperature: float) -> None:
        super().__init__()
        self.projection = nn.Linear(width, embedding_width)
        self.codewords = nn.Parameter(torch.empty(num_classes, embedding_width))
        self.temperature = temperature
        nn.init.uniform_(self.codewords)  # the published start

    def forward(self, hidden: Tensor) -> Tensor:
        projected = F.normalize(self.projection(hidden).float(), dim=-1)
        return projected @ F.normalize(self.codewords.float(), dim=-1).T / self.temperature
