"""Max and average pooling, each followed by a batch norm."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from .fused import FusedOperation, Needs, State
from .joined import Source, join_norms
from .operation import Operation

__all__ = ["PoolingOperation"]


class PoolingOperation(Operation):
    """Pooling over 3x3 pixels and a batch norm (DARTS, appendix A.1.1).

    Args:
        pool: the module of a stride.
    """

    def __init__(self, pool: Callable[[int], nn.Module]) -> None:
        self.pool = pool

    def build(self, channels: int, stride: int, parts: int, affine: bool) -> nn.Module:
        return nn.Sequential(self.pool(stride), nn.BatchNorm2d(channels, affine=affine))

    def shared(self, modules: Sequence[Any], source: Source) -> Tensor | None:
        """The same on all edges: their batch norms have no parameters, and the same statistics."""
        return join_norms(modules[0][0](source.x), [module[1] for module in modules])

    def needs(self, module: Any) -> Needs:
        return Needs(raw=True)

    def fused(self, module: Any, thin: bool) -> FusedOperation:
        return FusedPool(module)


class FusedPool(FusedOperation):
    """Pooling and batch norm; a state is pooled once for all operations that pool it."""

    def __init__(self, operation: nn.Sequential) -> None:
        super().__init__()
        self.pool, self.norm = copy.deepcopy(operation[0]), copy.deepcopy(operation[1])
        self.kind = type(operation[0]).__name__

    def forward(self, state: State) -> Tensor:
        if self.kind not in state.pooled:
            state.pooled[self.kind] = self.pool(state.raw)
        return self.norm(state.pooled[self.kind])
