"""Experts beside a layer: each token through the one of its modality, never through both.

A layer that can have them owns `routes`, an empty dictionary of modules which a fusion may fill. Nothing is asked of it while a
batch has no `Routing`: a model without experts, and every step of decoding.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from weft.core.routing import Routing

VISUAL = "visual"  # the name of the visual expert among a layer's routes

Linear = Callable[[Tensor], Tensor]


def route(own: nn.Module, expert: nn.Module, routing: Routing, hidden: Tensor) -> Tensor:
    """The tokens of the visual expert through it, every other through the layer's own module.

    Where a batch has no visual token the expert still joins the graph, with one row of zeros times zero, so that no rank waits
    for another's gradient.

    Shapes: hidden [B, T, D] -> [B, T, E].
    """
    text, visual, back = (places.to(hidden.device) for places in routing.places)  # costs are counted without a device
    if not len(visual):
        return own(hidden) + 0.0 * expert(hidden.new_zeros(1, hidden.shape[-1])).sum()
    rows = hidden.flatten(0, 1)
    mixed = torch.cat((own(rows.index_select(0, text)), expert(rows.index_select(0, visual))))
    return mixed.index_select(0, back).view(*hidden.shape[:-1], -1)


def routed_layer(layer: nn.Module, hidden: Tensor, routing: Routing | None) -> Tensor:
    """A layer with its experts, where it has any and the batch is routed."""
    if routing is None:
        return layer(hidden)
    routes = getattr(layer, "routes", None)
    return route(layer, routes[VISUAL], routing, hidden) if routes else layer(hidden)


def routed_linears(layer: nn.Module, names: tuple[str, ...], routing: Routing) -> tuple[Linear, ...]:
    """Linears of a layer by name, each with its expert, where the layer has any."""
    own = [getattr(layer, name) for name in names]
    routes = getattr(layer, "routes", None)
    if not routes:
        return tuple(own)
    return tuple(partial(route, module, routes[VISUAL][name], routing) for name, module in zip(names, own, strict=True))
