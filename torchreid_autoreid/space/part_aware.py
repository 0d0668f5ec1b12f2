"""The part-aware operation (Auto-ReID, section 3.3 and Figure 2), alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import UserError
from ..parallel.batch_norm import batch_norm_as
from ..parallel.group import global_rows

__all__ = ["PartAware", "stripe_bounds"]


def stripe_bounds(height: int, parts: int) -> list[int]:
    """Row bounds of the stripes: stripe ``m`` covers rows ``bounds[m] … bounds[m + 1] - 1``.

    Stripe ``m`` of ``M`` starts at row ``floor(m H / M)``, so every row belongs to exactly one stripe whether or not
    ``H`` divides by ``M``. A map lower than ``M`` rows has one stripe a row.

    >>> stripe_bounds(10, 4)
    [0, 2, 5, 7, 10]
    >>> stripe_bounds(2, 4)
    [0, 1, 2]
    """
    stripes = min(parts, height)
    return [m * height // stripes for m in range(stripes + 1)]


class PartAware(nn.Module):
    """Splits a person into ``M`` stripes that attend to one another, and adds what they agree on to the map.

    Stripes are averaged over space. Each average passes ReLU, a linear transform of its own part to ``C' = max(1, C //
    3)`` features and a batch norm. Self-attention across the parts mixes global information into every part. The result
    is repeated over the stripe's own area and joined to the input; ReLU, 1x1 convolution and batch norm give the output
    (factorised at stride 2, as in DARTS).

    This is the author's published operation (D-X-Y/AutoDL-Projects, ``cell_operations.py``, ``PartAwareOp``). Query and
    key keep PyTorch's own initialisation and the body vectors are normalised: with small scores the attention is
    uniform, every part gets one and the same vector, and the operation is no more than global context. Deviations:

    - The transforms have no bias, which the batch norm would take away.
    - A ReLU precedes the last convolution at stride 1 too, where the author has none.
    - Any number of parts; the author's has 4 whatever is asked for.
    - A map lower than ``M`` rows uses its first ``H`` transforms, a stripe a row; the author's refuses it.
    - A single image in training is normalised by the running statistics, since one value has no variance; the author's
      raises an error.
    - An odd size at stride 2 and the halves of an odd number of channels are divided as in ``ReluConvNorm``.

    Args:
        in_channels: C.
        out_channels: channels of the output.
        stride: 1 or 2.
        parts: M, 4 in the paper.
        affine: whether the batch norm has learnt scale and shift (not during the search).

    Shapes: ``(B, C, H, W)`` to ``(B, out_channels, ceil(H / stride), ceil(W / stride))``; any ``B, H, W >= 1``.

    Raises:
        UserError: if ``stride`` is neither 1 nor 2 or ``parts`` is below 1.

    >>> PartAware(12, 12, stride=2)(torch.zeros(2, 12, 9, 5)).shape
    torch.Size([2, 12, 5, 3])
    """

    def __init__(
        self, in_channels: int, out_channels: int, stride: int = 1, parts: int = 4, affine: bool = True
    ) -> None:
        super().__init__()
        if stride not in (1, 2):
            raise UserError(f"the part-aware operation has stride 1 or 2, not {stride!r}")
        if parts < 1:
            raise UserError(f"the part-aware operation needs at least one part, not {parts!r}")
        self.parts = parts
        hidden = max(1, in_channels // 3)  # C'
        # One linear transform a part; a grouped 1x1 convolution is M linear layers in one call.
        self.transform = nn.Conv1d(parts * in_channels, parts * hidden, 1, groups=parts, bias=False)
        self.norm = nn.BatchNorm1d(parts * hidden)
        self.query = nn.Linear(hidden, hidden)
        self.key = nn.Linear(hidden, hidden)
        self.fuse = ReluConvNorm(in_channels + hidden, out_channels, stride, affine)

    def forward(self, x: Tensor) -> Tensor:
        bounds = stripe_bounds(x.shape[2], self.parts)
        body = self.attend(self.transform_parts(stripe_means(x, bounds)))  # (B, M, C')
        # Joined where it is needed only: at stride 2 that is half of the pixels.
        spreads = split(spread(body, bounds, x.shape[3]), self.fuse.stride)
        parts = zip(split(x, self.fuse.stride), spreads, strict=True)
        return self.fuse.merge([torch.cat(part, dim=1) for part in parts])

    def transform_parts(self, means: Tensor) -> Tensor:
        """(B, M, C) stripe averages to (B, M, C') body vectors, each by the transform of its own part."""
        batch, stripes, _ = means.shape
        if stripes < self.parts:  # a low map: the transforms without a stripe see zeros, and are dropped
            means = F.pad(means, (0, 0, 0, self.parts - stripes))
        body = self.transform(F.relu(means).reshape(batch, -1, 1)).reshape(batch, self.parts, -1)[:, :stripes]
        if stripes == self.parts and not (self.training and global_rows(batch) == 1):
            return self.norm(body.reshape(batch, -1)).view_as(body)  # the module itself, which may have hooks
        return norm_bodies([self.norm], body.unsqueeze(0)).squeeze(0)

    def attend(self, body: Tensor) -> Tensor:
        """Self-attention across the parts: (B, M, C') to (B, M, C'), softmax over parts of query times key."""
        scores = self.query(body) @ self.key(body).transpose(1, 2)  # (B, M, M)
        return scores.softmax(dim=2) @ body


def norm_bodies(norms: Sequence[Any], bodies: Tensor) -> Tensor:
    """The batch norms of n part-aware operations at once: (n, B, M, C') body vectors to the same.

    Stripes that a low map does not have leave their statistics as they are.

    Args:
        norms: the n operations' ``norm``, each of (parts C') features.
        bodies: of the first M <= parts parts.
    """
    first = norms[0]
    edges, batch, stripes, hidden = bodies.shape
    own = stripes * hidden
    mean, var, weight, bias = (
        torch.cat([getattr(norm, name)[:own] for norm in norms])
        for name in ("running_mean", "running_var", "weight", "bias")
    )
    training = first.training and global_rows(batch) > 1
    x = bodies.permute(1, 0, 2, 3).reshape(batch, -1)  # (B, n M C')
    x = batch_norm_as(first)(x, mean, var, weight, bias, training, first.momentum or 0.0, first.eps)
    if training:
        with torch.no_grad():
            torch._foreach_copy_([norm.running_mean[:own] for norm in norms], list(mean.split(own)))
            torch._foreach_copy_([norm.running_var[:own] for norm in norms], list(var.split(own)))
            torch._foreach_add_([norm.num_batches_tracked for norm in norms], 1)
    return x.view(batch, edges, stripes, hidden).transpose(0, 1)


class ReluConvNorm(nn.Module):
    """ReLU, 1x1 convolution, batch norm; at stride 2 the factorised reduction of DARTS.

    The factorised form takes half of the output channels from the even pixels and half from the odd ones, so that a
    stride of 2 loses no position. An odd size is padded with one row or column of zeros at its end.

    Shapes: ``(B, in, H, W)`` to ``(B, out, ceil(H / stride), ceil(W / stride))``.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, affine: bool) -> None:
        super().__init__()
        self.stride = stride
        # The stride is taken by `split`, so that nothing is computed on pixels that no convolution reads.
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


def stripe_means(x: Tensor, bounds: list[int]) -> Tensor:
    """Averages each stripe over space: (B, C, H, W) to (B, M, C)."""
    rows = x.mean(dim=3)  # (B, C, H)
    stripes = [rows[:, :, start:end].mean(dim=2) for start, end in zip(bounds, bounds[1:], strict=False)]
    return torch.stack(stripes, dim=1)


def spread(body: Tensor, bounds: list[int], width: int) -> Tensor:
    """Repeats each part vector over its stripe's rows and all columns: (B, M, C') to (B, C', H, W)."""
    heights = [end - start for start, end in zip(bounds, bounds[1:], strict=False)]
    columns = body.transpose(1, 2)  # (B, C', M)
    stripes = [columns[:, :, m : m + 1].expand(-1, -1, height) for m, height in enumerate(heights)]
    return torch.cat(stripes, dim=2).unsqueeze(3).expand(-1, -1, -1, width)
