"""The skip connection: the identity, or at stride 2 the factorised reduction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from .fused import FusedOperation, Needs, State
from .joined import Source, join_halves, join_norms, join_weights, mix_maps
from .operation import Operation
from .projection import FusedProjection, ReluConvNorm

__all__ = ["SkipOperation"]


class SkipOperation(Operation):
    def build(self, channels: int, stride: int, parts: int, affine: bool) -> nn.Module:
        return nn.Identity() if stride == 1 else ReluConvNorm(channels, channels, stride, affine)

    def shared(self, modules: Sequence[Any], source: Source) -> Tensor | None:
        return source.x if source.stride == 1 and not source.skip_dropout else None

    def grouped(self, modules: Sequence[Any], source: Source, weight: Tensor) -> Tensor:
        """The factorised reduction, or, where elements are dropped, the identity of each edge."""
        if source.stride == 1:
            y = mix_maps([source.x], weight.unsqueeze(1))
        else:
            kernels = [join_weights([module.convs[phase] for module in modules]) for phase in (0, 1)]
            found = [F.conv2d(pixels, kernel) for pixels, kernel in zip(source.pixels, kernels, strict=True)]
            y = join_norms(join_halves(found, len(modules)), [module.norm for module in modules], weight)
        return F.dropout(y, source.skip_dropout) if source.skip_dropout else y

    def needs(self, module: Any) -> Needs:
        return Needs(raw=True) if isinstance(module, nn.Identity) else Needs(rectified=True, halves=True)

    def fused(self, module: Any, thin: bool) -> FusedOperation:
        return Same() if isinstance(module, nn.Identity) else FusedProjection(module, thin)


class Same(FusedOperation):
    """``skip_connect`` at stride 1: the state itself."""

    fresh = False

    def forward(self, state: State) -> Tensor:
        return state.raw
