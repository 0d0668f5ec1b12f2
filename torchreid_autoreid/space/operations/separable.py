"""The separable convolution, and the dilated one.

A dilated convolution of stride 2 reads the even pixels only, and is an ordinary one on them. That of stride 1 takes
the gradient of its weights from the four phases of the pixels, on which it is an ordinary one too: PyTorch's CPU
kernels for the gradient of dilated depth-wise convolutions are an order of magnitude slower.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.grad import conv2d_weight

from .fused import FusedOperation, Needs, State, fold
from .joined import Source, join_norms, join_weights, pointwise, quarters
from .operation import Operation

__all__ = ["DilatedOperation", "SeparableOperation"]


def _layers(channels: int, stride: int, dilation: int, affine: bool) -> list[nn.Module]:
    """ReLU, depth-wise 3x3, point-wise 1x1, batch norm."""
    depthwise = DilatedConv2d if dilation == 2 else nn.Conv2d
    return [
        nn.ReLU(),
        depthwise(channels, channels, 3, stride, dilation, dilation, groups=channels, bias=False),
        nn.Conv2d(channels, channels, 1, bias=False),
        nn.BatchNorm2d(channels, affine=affine),
    ]


class DilatedConv2d(nn.Conv2d):
    """A depth-wise 3x3 convolution of dilation 2; it trains faster on a CPU than PyTorch's own."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or not torch.is_grad_enabled() or input.device.type != "cpu":
            return super().forward(input)
        stride = self.stride[0]
        return _depthwise(input[:, :, ::stride, ::stride], self.weight, stride)


class SeparableOperation(Operation):
    """Twice ReLU, depth-wise 3x3, point-wise 1x1, batch norm, as in DARTS and NASNet.

    The published size of the network needs the second.
    """

    def build(self, channels: int, stride: int, parts: int, affine: bool) -> nn.Module:
        return nn.Sequential(*_layers(channels, stride, 1, affine), *_layers(channels, 1, 1, affine))

    def grouped(self, modules: Sequence[Any], source: Source, weight: Tensor) -> Tensor:
        rectified = source.rectified
        first, second = ([operation[i] for operation in modules] for i in (1, 5))
        if first[0].stride[0] == 2 and 1 in rectified.shape[2:]:
            # The same with one more zero at the border. Of maps one pixel high or wide in channels-last, oneDNN's
            # bfloat16 kernel gives a wrong gradient (PyTorch 2.14).
            rectified = F.pad(rectified, (0, rectified.shape[3] % 2, 0, rectified.shape[2] % 2))
        y = torch.cat([conv(rectified) for conv in first], dim=1)
        y = join_norms(pointwise([op[2] for op in modules], y), [op[3] for op in modules])
        y = F.relu(y, inplace=True)
        kernels = join_weights(second)
        y = F.conv2d(y, kernels, padding=1, groups=len(kernels))
        return join_norms(pointwise([op[6] for op in modules], y), [op[7] for op in modules], weight)

    def needs(self, module: Any) -> Needs:
        return Needs(rectified=True)

    def fused(self, module: Any, thin: bool) -> FusedOperation:
        return FusedSeparable(module)


class DilatedOperation(SeparableOperation):
    """Once, with a dilation of 2."""

    def build(self, channels: int, stride: int, parts: int, affine: bool) -> nn.Module:
        return nn.Sequential(*_layers(channels, stride, 2, affine))

    def grouped(self, modules: Sequence[Any], source: Source, weight: Tensor) -> Tensor:
        pixels = source.pixels[0]  # at stride 2 the even ones
        convs = [operation[1] for operation in modules]
        y = torch.cat([_depthwise(pixels, conv.weight, conv.stride[0]) for conv in convs], dim=1)
        return join_norms(pointwise([op[2] for op in modules], y), [op[3] for op in modules], weight)


class FusedSeparable(FusedOperation):
    """Once or more: ReLU, depth-wise and point-wise convolution, batch norm; the first ReLU has been taken."""

    def __init__(self, operation: nn.Sequential) -> None:
        super().__init__()
        layers: list[Any] = list(operation)
        self.pairs = nn.ModuleList(
            nn.Sequential(copy.deepcopy(layers[start + 1]), fold(layers[start + 2], layers[start + 3]))
            for start in range(0, len(layers), 4)
        )

    def forward(self, state: State) -> Tensor:
        x = self.pairs[0](state.rectified)
        for pair in self.pairs[1:]:
            x = pair(F.relu(x, inplace=True))
        return x


def _depthwise(x: Tensor, kernel: Tensor, stride: int) -> Tensor:
    """The dilated 3x3 convolution; at stride 2 of the even pixels, where it is an ordinary one."""
    if stride == 2:
        return F.conv2d(x, kernel, padding=1, groups=len(kernel))
    if x.device.type != "cpu":
        return F.conv2d(x, kernel, padding=2, dilation=2, groups=len(kernel))
    if torch.is_autocast_enabled("cpu"):  # a function of our own is not cast by itself
        dtype = torch.get_autocast_dtype("cpu")
        x, kernel = x.to(dtype), kernel.to(dtype)
    return DilatedDepthwise.apply(x, kernel)


class DilatedDepthwise(torch.autograd.Function):
    """A depth-wise 3x3 convolution of dilation 2, with gradients from kernels that PyTorch has in a fast form."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, kernel: Tensor) -> Tensor:
        ctx.save_for_backward(x, kernel)
        return F.conv2d(x, kernel, padding=2, dilation=2, groups=len(kernel))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, kernel = ctx.saved_tensors
        of_x = of_kernel = None
        if ctx.needs_input_grad[0]:  # the transpose of a depth-wise convolution is the one with the kernel turned round
            of_x = F.conv2d(gradient, kernel.flip(2, 3), padding=2, dilation=2, groups=len(kernel))
        if ctx.needs_input_grad[1]:
            x, gradient = _as_batch(x), _as_batch(gradient)
            of_kernel = conv2d_weight(x, kernel.shape, gradient, padding=1, groups=len(kernel))
        return of_x, of_kernel


def _as_batch(x: Tensor) -> Tensor:
    """The four phases of the pixels as a batch: (B, C, H, W) to (4 B, C, H / 2, W / 2)."""
    return quarters(x).permute(2, 4, 0, 1, 3, 5).flatten(0, 2).permute(0, 3, 1, 2)
