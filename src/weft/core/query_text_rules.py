"""Who sees whom where learned queries and a text share a row: the three patterns of BLIP-2's first stage.

A row holds K learned queries and then a text, padded behind its end; no padding sees or is seen. One pass under such a rule
gives the numbers of the passes with cached keys that the published code runs.
Source: BLIP-2, arXiv:2301.12597, figure 2.
"""

from __future__ import annotations

import torch
from torch import Tensor

from weft.core.attention_rule import AttentionRule


def unimodal(num_queries: int, text_valid: Tensor) -> AttentionRule:
    """Queries see queries and text sees text: image-text contrast. Shapes: text_valid [B, T] bool."""
    return _rule(num_queries, torch.zeros_like(text_valid, dtype=torch.long), text_valid.long() * 2)


def bidirectional(num_queries: int, text_valid: Tensor) -> AttentionRule:
    """Everyone sees everyone: image-text matching, and the instructions of InstructBLIP. Shapes: text_valid [B, T] bool."""
    return _rule(num_queries, torch.zeros_like(text_valid, dtype=torch.long), text_valid.long())


def multimodal_causal(num_queries: int, text_valid: Tensor) -> AttentionRule:
    """Queries see queries, text sees all queries and the text so far: text generation. Shapes: text_valid [B, T] bool."""
    place = torch.arange(1, text_valid.shape[1] + 1, device=text_valid.device)
    return _rule(num_queries, place.expand(text_valid.shape), text_valid.long())


def _rule(num_queries: int, text_order: Tensor, text_segment: Tensor) -> AttentionRule:
    """Queries of order 0 and segment 1, then the text."""
    zeros = text_order.new_zeros(len(text_order), num_queries)
    order, segment = torch.cat((zeros, text_order), 1), torch.cat((zeros + 1, text_segment), 1)
    return AttentionRule(order, segment, torch.arange(order.shape[1], device=order.device).expand(order.shape))
