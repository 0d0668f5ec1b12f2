"""All edges of a search cell that leave one source, computed together; the result is that of each edge by itself.

The modules of the operations stay on their edges (:class:`~torchreid_autoreid.space.cells.MixedOperation`). For the
``n`` edges from a source, with their channels joined edge by edge,

- what no weight enters is computed once: ReLU, pooling with its batch norm, stripe averages, the phases of the pixels;
- what has the same shape on every edge is one call: convolutions (grouped by edge), batch norms, attention;
- the weight of an operation is the scale of its last batch norm, so that multiplying by it costs nothing.

Each operation says in its own file how (:class:`~torchreid_autoreid.space.operations.Operation`); one that does not is
computed edge by edge.

Shapes: B batch, C channels, H x W map, n edges, O operations.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .operations import OPERATIONS
from .operations.joined import Source, by_edge, join_edges, mix_maps

__all__ = ["mix_edges"]


def mix_edges(
    edges: Sequence[Any],
    x: Tensor,
    weights: Tensor,
    bypass: Tensor | None = None,
    skip_dropout: float = 0.0,
) -> Tensor:
    """What the edges from one source add to their blocks: (B, C, H, W) to (B, n C, H', W').

    Args:
        edges: the n edges that leave the source, a :class:`~torchreid_autoreid.space.cells.MixedOperation` each.
        x: the source.
        weights: (n, O), of the operations.
        bypass: (n,), of the channels that bypass the operations (PC-DARTS).
        skip_dropout: as in :class:`~torchreid_autoreid.space.cells.MixedOperation`.
    """
    first = edges[0]
    own = x.shape[1] // first.partial
    mixed = _mix_operations(edges, x[:, :own] if first.partial > 1 else x, weights, skip_dropout)
    if first.partial == 1:
        return mixed
    rest = first.bypass(x[:, own:]).permute(0, 2, 3, 1).unsqueeze(3)  # (B, H', W', 1, C - C / K)
    scale = rest.new_ones(len(edges)) if bypass is None else bypass
    joined = torch.cat([by_edge(mixed, len(edges)), scale.view(-1, 1) * rest], dim=4)  # (B, H', W', n, C)
    dealt = joined.unflatten(4, (first.partial, -1)).transpose(4, 5)  # the shuffle of an edge by itself
    return join_edges(dealt.flatten(4, 5))


def _mix_operations(edges: Sequence[Any], x: Tensor, weights: Tensor, skip_dropout: float) -> Tensor:
    source = Source(x, edges[0].stride, skip_dropout)
    maps, of_maps, terms = [], [], []  # maps that are the same on all edges with their weights, and all others
    for name, weight in zip(edges[0].operations, weights.unbind(1), strict=True):
        if name == "none":
            continue
        modules = [edge.operations[name] for edge in edges]
        found = OPERATIONS[name].shared(modules, source)
        if found is None:
            terms.append(OPERATIONS[name].grouped(modules, source, weight))
        else:
            maps.append(found)
            of_maps.append(weight)
    if maps:
        terms.append(mix_maps(maps, torch.stack(of_maps, dim=1)))
    total = terms[0]
    for term in terms[1:]:
        total = total.add_(term)  # in place: no batch norm keeps its output for the gradient
    if total.requires_grad and total.is_contiguous(memory_format=torch.channels_last):
        total.register_hook(_in_channels_last)  # once for all terms
    return total


def _in_channels_last(gradient: Tensor) -> Tensor:
    return gradient.contiguous(memory_format=torch.channels_last)
