"""The edges from one source computed together: what their modules have in common is joined channel by channel.

Shapes: B batch, C channels, H x W map, n edges.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...parallel.batch_norm import batch_norm_as

__all__ = [
    "Source",
    "by_edge",
    "join_edges",
    "join_halves",
    "join_norms",
    "join_weights",
    "mix_maps",
    "pointwise",
    "quarters",
]


@dataclass
class Source:
    """What several edges of a search cell read; its forms are computed once, for those operations that ask for them.

    Attributes:
        x: (B, C, H, W).
        stride: of the operations on these edges.
        skip_dropout: probability with which an element of a skip connection's output is dropped.
    """

    x: Tensor
    stride: int
    skip_dropout: float = 0.0

    @cached_property
    def rectified(self) -> Tensor:
        return F.relu(self.x)

    @cached_property
    def pixels(self) -> list[Tensor]:
        """Rectified: all pixels; at stride 2 those with even coordinates, and those with odd ones."""
        return [self.rectified] if self.stride == 1 else _phases(self.rectified)


def mix_maps(maps: list[Tensor], weights: Tensor) -> Tensor:
    """K maps (B, C, H, W) and (n, K) weights to (B, n C, H, W), as one product of matrices."""
    stacked = torch.stack([each.permute(0, 2, 3, 1) for each in maps])  # (K, B, H, W, C)
    mixed = weights.to(stacked.dtype) @ stacked.flatten(1)  # (n, B H W C)
    return join_edges(mixed.view(-1, *stacked.shape[1:]).permute(1, 2, 3, 0, 4))


def join_weights(convs: Sequence[nn.Conv2d]) -> Tensor:
    return torch.cat([conv.weight for conv in convs])


def pointwise(convs: Sequence[nn.Conv2d], x: Tensor) -> Tensor:
    """A 1x1 convolution of each edge's own channels."""
    return F.conv2d(x, join_weights(convs), groups=len(convs))


def join_norms(z: Tensor, norms: Sequence[Any], weight: Tensor | None = None) -> Tensor:
    """The batch norms of n edges in one, times an (n,) weight; z has the channels of n edges, or one set for all."""
    first = norms[0]
    channels = first.num_features
    joined = z.shape[1] // channels
    mean, var = (
        torch.cat([getattr(norm, name) for norm in norms[:joined]]) for name in ("running_mean", "running_var")
    )
    scale = None if weight is None else weight.to(mean.dtype).repeat_interleave(channels)
    batch_norm = batch_norm_as(first)
    z = batch_norm(z, mean, var, scale, None, first.training, first.momentum or 0.0, first.eps)
    if first.training:
        copies = len(norms) // joined
        with torch.no_grad():
            torch._foreach_copy_([norm.running_mean for norm in norms], list(mean.split(channels)) * copies)
            torch._foreach_copy_([norm.running_var for norm in norms], list(var.split(channels)) * copies)
            torch._foreach_add_([norm.num_batches_tracked for norm in norms], 1)
    return z


def by_edge(x: Tensor, edges: int) -> Tensor:
    """(B, n C, H, W) to (B, H, W, n, C)."""
    return x.permute(0, 2, 3, 1).unflatten(3, (edges, x.shape[1] // edges))


def join_edges(x: Tensor) -> Tensor:
    """The inverse of :func:`by_edge`."""
    return x.flatten(3).permute(0, 3, 1, 2)


def join_halves(found: list[Tensor], edges: int) -> Tensor:
    """The halves of the output channels that come from even and from odd pixels, joined edge by edge."""
    if len(found) == 1:
        return found[0]
    return join_edges(torch.cat([by_edge(half, edges) for half in found], dim=4))


def _phases(x: Tensor) -> list[Tensor]:
    """The pixels with even coordinates, and those with odd ones: (B, C, ceil(H / 2), ceil(W / 2)) each."""
    parts = quarters(x)
    return [parts[:, :, 0, :, 0].permute(0, 3, 1, 2), parts[:, :, 1, :, 1].permute(0, 3, 1, 2)]


def quarters(x: Tensor) -> Tensor:
    """(B, C, H, W) to (B, H / 2, 2, W / 2, 2, C), with zeros at the end of an odd size."""
    if x.shape[2] % 2 or x.shape[3] % 2:
        x = F.pad(x, (0, x.shape[3] % 2, 0, x.shape[2] % 2))
    return x.permute(0, 2, 3, 1).unflatten(2, (-1, 2)).unflatten(1, (-1, 2))
