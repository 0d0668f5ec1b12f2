"""What an operation of a search space is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .fused import FusedOperation, Needs, Unfused
from .joined import Source

__all__ = ["Operation"]


class Operation:
    """A candidate operation in its three forms. :meth:`build` is all that a new one needs: the others fall back to it.

    All forms take ``(B, C, H, W)`` to ``(B, C, ceil(H / stride), ceil(W / stride))``.
    """

    def build(self, channels: int, stride: int, parts: int, affine: bool) -> nn.Module:
        """The plain form, a module of its own on each edge.

        Args:
            channels: C.
            stride: 1 or 2.
            parts: M, for operations that divide the map into stripes.
            affine: whether batch norms have learnt scale and shift (not during the search).
        """
        raise NotImplementedError

    # -- the grouped form, of a search cell ----------------------------------------------------------------------------

    def shared(self, modules: Sequence[Any], source: Source) -> Tensor | None:
        """The output, (B, C, H', W'), where it is the same on all edges from a source; ``None`` if it is not.

        Args:
            modules: what :meth:`build` gave, on each of the n edges.
            source: what the edges read.
        """
        return None

    def grouped(self, modules: Sequence[Any], source: Source, weight: Tensor) -> Tensor:
        """The outputs of n edges times their weights, (n,), joined: (B, n C, H', W')."""
        return torch.cat([w * module(source.x) for w, module in zip(weight, modules, strict=True)], dim=1)

    # -- the fused form, of a derived cell in testing ------------------------------------------------------------------

    def needs(self, module: Any) -> Needs:
        """What the fused form of a module reads."""
        return Needs(raw=True)

    def fused(self, module: Any, thin: bool) -> FusedOperation:
        """The fused form of a module in eval mode; ``thin``: only the halves of its state are there."""
        return Unfused(module)
