"""No connection."""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor, nn

from .fused import FusedOperation, Needs, State
from .operation import Operation

__all__ = ["NoneOperation", "Zero"]


class Zero(nn.Module):
    """``none``: no connection; zeros of the output's shape."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :, :: self.stride, :: self.stride] * 0.0


class NoneOperation(Operation):
    """A mixture passes over it: its weight acts through the softmax alone."""

    def build(self, channels: int, stride: int, parts: int, affine: bool) -> nn.Module:
        return Zero(stride)

    def needs(self, module: Any) -> Needs:
        return Needs(rectified=True)

    def fused(self, module: Any, thin: bool) -> FusedOperation:
        return FusedZero(module)


class FusedZero(FusedOperation):
    """``none``: zeros, whatever the state's form."""

    def __init__(self, operation: Zero) -> None:
        super().__init__()
        self.operation = copy.deepcopy(operation)

    def forward(self, state: State) -> Tensor:
        return self.operation(state.rectified)
