"""Batch norm over the batches of all processes, on any device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from .group import gathered, joined

__all__ = ["SyncBatchNorm", "batch_norm_as", "synchronise_batch_norm", "unsynchronised_buffers"]


def synchronise_batch_norm(network: nn.Module) -> nn.Module:
    """Lets the batch norms of a network use the statistics of the global batch, in place; checkpoints stay the same.

    On a GPU it is PyTorch's own, which there is none of for the CPU.
    """
    if any(tensor.is_cuda for tensor in network.state_dict().values()):
        return nn.SyncBatchNorm.convert_sync_batchnorm(network)
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, _BatchNorm) and not isinstance(child, SyncBatchNorm):
                setattr(module, name, SyncBatchNorm.of(child))
    return network


def unsynchronised_buffers(network: nn.Module) -> list[Tensor]:
    """The running statistics of the batch norms that do not use the global batch, and so differ between processes."""
    norms = [module for module in network.modules() if isinstance(module, _BatchNorm)]
    own = [module for module in norms if not isinstance(module, SyncBatchNorm | nn.SyncBatchNorm)]
    return [buffer for module in own for buffer in module.buffers() if buffer.is_floating_point()]


class SyncBatchNorm(_BatchNorm):
    """Batch norm over the batches of all processes, on any device.

    PyTorch's is for GPUs alone. The same as ``nn.BatchNorm1d`` and ``2d`` without other processes, and in eval mode.

    Shapes: ``(B, C, …)`` to the same.
    """

    @classmethod
    def of(cls, norm: _BatchNorm) -> SyncBatchNorm:
        """One with the parameters and the buffers of another batch norm, themselves."""
        new = cls(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
        new._parameters, new._buffers = norm._parameters, norm._buffers
        return new.train(norm.training)

    def _check_input_dim(self, input: Tensor) -> None:
        """Any."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        momentum = self.momentum
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            momentum = 1.0 / float(self.num_batches_tracked) if momentum is None else momentum
        return _batch_norm(
            input, self.running_mean, self.running_var, self.weight, self.bias, True, momentum or 0.0, self.eps
        )


def batch_norm_as(norm: nn.Module) -> Callable[..., Tensor]:
    """``F.batch_norm``, or the same over the batches of all processes if the module uses these.

    For code that joins the channels of several batch norms and so passes over their modules.
    """
    return _batch_norm if isinstance(norm, SyncBatchNorm | nn.SyncBatchNorm) else F.batch_norm


def _batch_norm(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """As ``F.batch_norm``, with statistics over all processes in training."""
    if not training or not joined() or torch.distributed.get_world_size() == 1:
        return F.batch_norm(x, running_mean, running_var, weight, bias, training, momentum, eps)
    result, mean, variance, count = _Normalise.apply(x, eps)
    with torch.no_grad():
        for running, value in ((running_mean, mean), (running_var, variance * (count / (count - 1)))):
            if running is not None:
                running.lerp_(value.to(running.dtype), momentum)
    shape = (1, -1) + (1,) * (x.dim() - 2)
    if weight is not None:
        result = result * weight.view(shape)
    if bias is not None:
        result = result + bias.view(shape)
    return result.to(x.dtype)


class _Normalise(torch.autograd.Function):
    """``(x - mean) / sqrt(variance + eps)`` over the global batch; statistics in float32 at least.

    The parts' means and sums of squares about them are joined by Chan's formula, so that nothing cancels. The gradient
    is that of Ioffe and Szegedy (ICML 2015, section 3) with sums over all processes.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        wide = x if x.dtype == torch.float64 else x.float()
        axes = [axis for axis in range(x.dim()) if axis != 1]
        shape = (1, -1) + (1,) * (x.dim() - 2)
        count = wide.new_tensor([x.numel() / x.shape[1]])
        mean = wide.mean(axes)
        squares = (wide - mean.view(shape)).pow(2).sum(axes)
        parts = torch.stack(gathered(torch.cat([count, mean, squares])))  # (processes, 1 + 2 C)
        counts, means, sums = parts.split([1, x.shape[1], x.shape[1]], dim=1)
        total = counts.sum()
        mean = (counts * means).sum(0) / total
        variance = (sums + counts * (means - mean).pow(2)).sum(0) / total
        inverse = (variance + eps).rsqrt()
        normalised = (wide - mean.view(shape)) * inverse.view(shape)
        ctx.save_for_backward(x, mean, inverse, total)
        ctx.axes, ctx.shape = axes, shape
        ctx.mark_non_differentiable(mean, variance, total)
        return normalised, mean, variance, total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        x, mean, inverse, total = ctx.saved_tensors
        gradient = gradients[0]
        normalised = (x.to(gradient.dtype) - mean.view(ctx.shape)) * inverse.view(ctx.shape)
        sums = torch.cat([gradient.sum(ctx.axes), (gradient * normalised).sum(ctx.axes)])
        torch.distributed.all_reduce(sums)
        plain, weighted = (part.view(ctx.shape) for part in (sums / total).chunk(2))
        result = (gradient - plain - normalised * weighted) * inverse.view(ctx.shape)
        return result.to(x.dtype), None
