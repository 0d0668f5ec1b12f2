"""What the operations of a derived network for testing and deployment are made of."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["FusedOperation", "Needs", "State", "Unfused", "as_laid_out", "fold", "join_channels", "size_of"]


@dataclass(frozen=True)
class State:
    """A cell's input or block, in the forms that its readers need.

    Attributes:
        size: (H, W).
        raw, rectified: (B, C, H, W).
        halves: rectified, the even and the odd pixels alone, (B, C, ceil(H / 2), ceil(W / 2)) each.
        means: (B, M, C) averages of the raw stripes.
        pooled: by kind of pool, for the operations that pool the same state.
    """

    size: tuple[int, int]
    raw: Any = None
    rectified: Any = None
    halves: Any = None
    means: Any = None
    pooled: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Needs:
    """What a fused operation reads of a :class:`State`.

    Attributes:
        raw, rectified: whether it reads this form.
        halves: whether the even and the odd rectified pixels alone would do instead.
        parts: M, of the stripes whose averages it reads; 0: none.
    """

    raw: bool = False
    rectified: bool = False
    halves: bool = False
    parts: int = 0


class FusedOperation(nn.Module):
    """A :class:`State` to a tensor.

    Attributes:
        fresh: whether the tensor is its own, so that a sum may be taken in its memory.
    """

    fresh = True


class Unfused(FusedOperation):
    """An operation without a fused form, as it is."""

    fresh = False

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = copy.deepcopy(module)

    def forward(self, state: State) -> Tensor:
        return self.module(state.raw)


def size_of(x: Tensor) -> tuple[int, int]:
    """(H, W) as numbers, which a tracer takes for constants: an exported file has one size of input."""
    return int(x.shape[2]), int(x.shape[3])


def join_channels(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def fold(convolution: nn.Conv2d, norm: nn.BatchNorm2d, start: int = 0) -> nn.Conv2d:
    """The convolution that computes ``norm(convolution(x))`` in eval mode.

    Args:
        convolution: without a bias.
        norm: what follows.
        start: the channel of the norm at which the convolution's begin.
    """
    assert convolution.bias is None
    assert norm.running_mean is not None
    assert norm.running_var is not None
    part = slice(start, start + convolution.out_channels)
    scale = norm.weight[part].double() / (norm.running_var[part].double() + norm.eps).sqrt()
    shift = norm.bias[part].double() - norm.running_mean[part].double() * scale
    fused = copy.deepcopy(convolution)
    weight = convolution.weight.detach()
    fused.weight = nn.Parameter(as_laid_out(weight.double() * scale[:, None, None, None], weight))
    fused.bias = nn.Parameter(shift.detach().to(weight))
    return fused


def as_laid_out(weight: Tensor, like: Tensor) -> Tensor:
    """A weight in the type and memory format of another."""
    last = like.is_contiguous(memory_format=torch.channels_last)
    return weight.detach().to(like, memory_format=torch.channels_last if last else torch.contiguous_format)
