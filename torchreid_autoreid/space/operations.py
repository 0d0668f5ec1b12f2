"""The candidate operations other than the part-aware one, and the table of all seven.

Each is the DARTS operation of that name (Liu et al., ICLR 2019, appendix A.1.1): ReLU, convolution, batch norm for what
has weights; pooling followed by batch norm for what has none. All take ``(B, C, H, W)`` to
``(B, C, ceil(H / stride), ceil(W / stride))``.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from ..genotype import OPERATION_NAMES
from ..parallel.group import draw_rows
from .part_aware import PartAware, ReluConvNorm

__all__ = ["OPERATIONS", "DropPath", "Zero", "build_operation"]


class Zero(nn.Module):
    """``none``: no connection; zeros of the output's shape."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :, :: self.stride, :: self.stride] * 0.0


class DropPath(nn.Module):
    """Drops the whole branch for a sample with probability ``p`` in training (Larsson et al., ICLR 2017).

    What is kept is divided by ``1 - p``, so that the expectation stays the same.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0.0:
            return x
        keep = draw_rows(lambda rows: x.new_empty(rows, 1, 1, 1).bernoulli_(1.0 - self.p), x.shape[0])
        return x * keep / (1.0 - self.p)


def _pool_norm(pool: nn.Module, channels: int, affine: bool) -> nn.Module:
    return nn.Sequential(pool, nn.BatchNorm2d(channels, affine=affine))


def _separable(channels: int, stride: int, dilation: int, affine: bool) -> list[nn.Module]:
    """ReLU, depth-wise 3x3, point-wise 1x1, batch norm."""
    return [
        nn.ReLU(),
        nn.Conv2d(channels, channels, 3, stride, dilation, dilation, groups=channels, bias=False),
        nn.Conv2d(channels, channels, 1, bias=False),
        nn.BatchNorm2d(channels, affine=affine),
    ]


def _skip(channels: int, stride: int, affine: bool) -> nn.Module:
    return nn.Identity() if stride == 1 else ReluConvNorm(channels, channels, stride, affine)


#: name -> builder(channels, stride, parts, affine)
OPERATIONS: dict[str, Callable[[int, int, int, bool], nn.Module]] = {
    "part_aware": lambda c, s, parts, affine: PartAware(c, c, s, parts, affine),
    "max_pool_3x3": lambda c, s, _, affine: _pool_norm(nn.MaxPool2d(3, s, 1), c, affine),
    "avg_pool_3x3": lambda c, s, _, affine: _pool_norm(nn.AvgPool2d(3, s, 1, count_include_pad=False), c, affine),
    # The separable convolution is applied twice, as in DARTS and NASNet; the published size of the network needs it.
    "sep_conv_3x3": lambda c, s, _, affine: nn.Sequential(*_separable(c, s, 1, affine), *_separable(c, 1, 1, affine)),
    "dil_conv_3x3": lambda c, s, _, affine: nn.Sequential(*_separable(c, s, 2, affine)),
    "none": lambda c, s, _, affine: Zero(s),
    "skip_connect": lambda c, s, _, affine: _skip(c, s, affine),
}
assert tuple(OPERATIONS) == OPERATION_NAMES


def build_operation(name: str, channels: int, stride: int = 1, parts: int = 4, affine: bool = True) -> nn.Module:
    """Builds one operation by its name.

    >>> build_operation("skip_connect", 8)
    Identity()
    """
    return OPERATIONS[name](channels, stride, parts, affine)
