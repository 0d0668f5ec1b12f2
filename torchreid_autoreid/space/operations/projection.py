"""The 1x1 convolution before a cell, of the skip connection and of the part-aware operation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .fused import FusedOperation, State, as_laid_out, fold, join_channels

__all__ = ["FusedProjection", "ReluConvNorm", "odd_pixels", "split"]


class ReluConvNorm(nn.Module):
    """ReLU, 1x1 convolution, batch norm; at stride 2 the factorised reduction of DARTS.

    The factorised form takes half of the output channels from the even pixels and half from the odd ones, so that a
    stride of 2 loses no position. An odd size is padded with one row or column of zeros at its end.

    Shapes: ``(B, in, H, W)`` to ``(B, out, ceil(H / stride), ceil(W / stride))``.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, affine: bool) -> None:
        super().__init__()
        self.stride = stride
        # The stride is taken by ``split``, so that nothing is computed on pixels that no convolution reads.
        halves = (out_channels,) if stride == 1 else (out_channels - out_channels // 2, out_channels // 2)
        self.convs = nn.ModuleList(nn.Conv2d(in_channels, half, 1, bias=False) for half in halves)
        self.norm = nn.BatchNorm2d(out_channels, affine=affine)

    def forward(self, x: Tensor) -> Tensor:
        return self.merge(split(x, self.stride))

    def merge(self, parts: list[Tensor]) -> Tensor:
        """What follows :func:`split`."""
        found = [conv(F.relu(part)) for conv, part in zip(self.convs, parts, strict=True)]
        return self.norm(found[0] if len(found) == 1 else torch.cat(found, dim=1))


def split(x: Tensor, stride: int) -> list[Tensor]:
    """What each convolution of :class:`ReluConvNorm` reads: all pixels, or the even ones and the odd ones."""
    if stride == 1:
        return [x]
    odd_size = x.shape[2] % 2 or x.shape[3] % 2
    padded = F.pad(x, (0, x.shape[3] % 2, 0, x.shape[2] % 2)) if odd_size else x
    return [x[:, :, ::2, ::2], padded[:, :, 1::2, 1::2]]


class FusedProjection(FusedOperation):
    """:class:`ReluConvNorm` whose ReLU has been taken.

    At stride 2 a depth-wise convolution with a single one in its kernel picks the odd pixels, with zeros beyond the
    end: a runtime that blocks channels leaves that layout for strided slices, but not for convolutions.

    Args:
        operation: what it computes.
        thin: whether its state has halves already.
    """

    def __init__(self, operation: ReluConvNorm, thin: bool = False) -> None:
        super().__init__()
        convs: list[Any] = list(operation.convs)
        first, *second = convs
        self.convs = nn.ModuleList([fold(first, operation.norm)])
        self.thin = thin
        self.odd: nn.Module | None = None
        if second:
            self.convs.append(fold(second[0], operation.norm, first.out_channels))
        if second and not thin:
            self.odd = odd_pixels(first.in_channels, first.weight)
            self.convs[0].stride = (2, 2)  # type: ignore[assignment]

    def forward(self, state: State) -> Tensor:
        return join_channels(self.halves(state))

    def halves(self, state: State) -> list[Tensor]:
        """What each of its convolutions gives."""
        if self.thin:
            return [conv(half) for conv, half in zip(self.convs, state.halves, strict=True)]
        first = self.convs[0](state.rectified)
        return [first] if self.odd is None else [first, self.convs[1](self.odd(state.rectified))]


def odd_pixels(channels: int, like: Tensor) -> nn.Conv2d:
    """(B, C, H, W) to the pixels (2i + 1, 2j + 1) of it, (B, C, ceil(H / 2), ceil(W / 2))."""
    pick = nn.Conv2d(channels, channels, 3, 2, 1, groups=channels, bias=False)
    weight = torch.zeros_like(pick.weight)
    weight[:, :, 2, 2] = 1.0
    pick.weight = nn.Parameter(as_laid_out(weight, like))
    return pick
