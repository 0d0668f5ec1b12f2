"""The part-aware operation (Auto-ReID, section 3.3 and Figure 2)."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...errors import UserError, short
from ...limits import check_value, check_values, is_whole
from ...parallel.batch_norm import batch_norm_as
from ...parallel.group import global_rows
from .fused import FusedOperation, Needs, State, fold, join_channels, size_of
from .joined import Source, join_halves, join_norms
from .operation import Operation
from .projection import FusedProjection, ReluConvNorm, split

__all__ = ["PartAware", "PartAwareOperation", "stripe_averages", "stripe_bounds"]


_LEAST_HIDDEN = 4


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

    Stripes are averaged over space. Each average passes ReLU, a linear transform of its own part to ``C' = C // 3``
    features and a batch norm. Self-attention across the parts mixes global information into every part. The result
    is repeated over the stripe's own area and joined to the input; ReLU, 1x1 convolution and batch norm give the output
    (factorised at stride 2, as in DARTS).

    This is the author's published operation (D-X-Y/AutoDL-Projects, ``cell_operations.py``, ``PartAwareOp``) with these
    deviations:

    - The scores are divided by ``sqrt(C')``, as in Vaswani et al. (NeurIPS 2017, section 3.2.1), and query and key
      begin by Glorot's initialisation. The author's scores grow with ``C'``: the attention becomes a hard choice within
      some steps of SGD, and a network with such operations in its reduction cell does not fit its training set
      (projects/benchmarks/README.md). Small scores would be as bad: the attention would be uniform, and all parts would
      get one vector.
    - ``C'`` is at least 4, or C if that is less: with one feature, as for a quarter of 16 channels, no part can be told
      from another.
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
        UserError: if ``stride`` is neither 1 nor 2 or ``parts`` or channels are below 1.

    >>> PartAware(12, 12, stride=2)(torch.zeros(2, 12, 9, 5)).shape
    torch.Size([2, 12, 5, 3])
    """

    def __init__(
        self, in_channels: int, out_channels: int, stride: int = 1, parts: int = 4, affine: bool = True
    ) -> None:
        super().__init__()
        if not is_whole(stride) or stride not in (1, 2):
            raise UserError(f"the part-aware operation has stride 1 or 2, not {short(stride)}")
        check_values("autoreid", parts=parts)
        check_value("autoreid.channels", in_channels, "in_channels")
        check_value("autoreid.channels", out_channels, "out_channels")
        self.parts = parts
        hidden = max(in_channels // 3, min(in_channels, _LEAST_HIDDEN))  # C'
        # One linear transform a part; a grouped 1x1 convolution is M linear layers in one call.
        self.transform = nn.Conv1d(parts * in_channels, parts * hidden, 1, groups=parts, bias=False)
        self.norm = nn.BatchNorm1d(parts * hidden)
        self.query = nn.Linear(hidden, hidden)
        self.key = nn.Linear(hidden, hidden)
        for linear in (self.query, self.key):
            nn.init.xavier_normal_(linear.weight)
            nn.init.zeros_(linear.bias)
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
        return attention(scores, body.shape[2]) @ body


def attention(scores: Tensor, features: int) -> Tensor:
    """The weights of the parts, by scores of vectors of so many features."""
    return (scores / math.sqrt(features)).softmax(dim=-1)


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


def stripe_means(x: Tensor, bounds: list[int]) -> Tensor:
    """Averages each stripe over space: (B, C, H, W) to (B, M, C)."""
    rows = x.mean(dim=3)  # (B, C, H)
    stripes = [rows[:, :, start:end].mean(dim=2) for start, end in zip(bounds[:-1], bounds[1:], strict=True)]
    return torch.stack(stripes, dim=1)


def spread(body: Tensor, bounds: list[int], width: int) -> Tensor:
    """Repeats each part vector over its stripe's rows and all columns: (B, M, C') to (B, C', H, W)."""
    heights = [end - start for start, end in zip(bounds[:-1], bounds[1:], strict=True)]
    columns = body.transpose(1, 2)  # (B, C', M)
    stripes = [columns[:, :, m : m + 1].expand(-1, -1, height) for m, height in enumerate(heights)]
    return torch.cat(stripes, dim=2).unsqueeze(3).expand(-1, -1, -1, width)


def stripe_averages(x: Tensor, parts: int) -> Tensor:
    """:func:`stripe_means` in one pooling, where the stripes are of one height."""
    height, width = size_of(x)
    if height % min(parts, height):
        return stripe_means(x, stripe_bounds(height, parts))
    return F.avg_pool2d(x, (height // min(parts, height), width)).squeeze(3).transpose(1, 2)


class PartAwareOperation(Operation):
    """The three forms of :class:`PartAware`.

    Grouped and fused, the 1x1 convolution of ``[x, stripes]`` is one of ``x`` plus one of the stripes, which are M
    vectors instead of a map.
    """

    def build(self, channels: int, stride: int, parts: int, affine: bool) -> nn.Module:
        return PartAware(channels, channels, stride, parts, affine)

    def grouped(self, modules: Sequence[Any], source: Source, weight: Tensor) -> Tensor:
        x = source.x
        bounds = stripe_bounds(x.shape[2], modules[0].parts)
        body = F.relu(_attend(modules, stripe_means(x, bounds)))  # (n, B, M, C')
        edges, batch, stripes, hidden = body.shape
        # The stripe of each row, and of the rows of each phase.
        rows = torch.bucketize(
            torch.arange(x.shape[2], device=x.device), torch.tensor(bounds[1:], device=x.device), right=True
        )
        found = []
        for phase, some in enumerate(source.pixels):
            kernels = torch.stack([op.fuse.convs[phase].weight.flatten(1) for op in modules])  # (n, out, C + C')
            of_map, of_stripes = kernels.split([x.shape[1], hidden], dim=2)
            y = F.conv2d(some, of_map.flatten(0, 1)[:, :, None, None])  # (B, n out, h, w)
            z = body.flatten(1, 2) @ of_stripes.transpose(1, 2)  # (n, B M, out)
            z = z.unflatten(1, (batch, stripes)).permute(1, 0, 3, 2).flatten(1, 2)  # (B, n out, M)
            own = rows if len(source.pixels) == 1 else rows[phase::2]
            spread = z[:, :, own].unsqueeze(3)  # (B, n out, h, 1)
            width = x.shape[3] if len(source.pixels) == 1 else (x.shape[3] + 1 - phase) // 2
            if (len(own), width) != y.shape[2:]:  # the odd phase of an odd size ends in zeros
                spread = F.pad(spread.expand(-1, -1, -1, width), (0, y.shape[3] - width, 0, y.shape[2] - len(own)))
            found.append(y.add_(spread))
        return join_norms(join_halves(found, edges), [op.fuse.norm for op in modules], weight)

    def needs(self, module: Any) -> Needs:
        return Needs(raw=True, rectified=True, halves=module.fuse.stride == 2, parts=module.parts)

    def fused(self, module: Any, thin: bool) -> FusedOperation:
        return FusedPartAware(module, thin)


def _attend(modules: Sequence[Any], means: Tensor) -> Tensor:
    """(B, M, C) stripe averages to (n, B, M, C') body vectors after the attention across parts."""
    stripes, hidden = means.shape[1], modules[0].query.in_features
    transforms = [op.transform.weight.view(op.parts, hidden, -1)[:stripes] for op in modules]
    body = F.relu(means).transpose(0, 1) @ torch.stack(transforms).transpose(2, 3)  # (n, M, B, C')
    body = norm_bodies([op.norm for op in modules], body.transpose(1, 2))  # (n, B, M, C')

    def linear(name: str) -> Tensor:
        layers = [getattr(module, name) for module in modules]
        kernels = torch.stack([layer.weight for layer in layers])  # (n, C', C')
        biases = torch.stack([layer.bias for layer in layers])  # (n, C')
        return body @ kernels.transpose(1, 2).unsqueeze(1) + biases[:, None, None]

    scores = linear("query") @ linear("key").transpose(2, 3)  # (n, B, M, M)
    return attention(scores, hidden) @ body


class FusedPartAware(FusedOperation):
    """The part-aware operation, its last convolution halved: what it does to the map, and to the body vectors."""

    def __init__(self, operation: PartAware, thin: bool) -> None:
        super().__init__()
        self.bodies = copy.deepcopy(operation)
        del self.bodies.fuse
        hidden = operation.query.out_features
        of_map = copy.deepcopy(operation.fuse)
        both: Iterable[tuple[Any, Any]] = zip(operation.fuse.convs, of_map.convs, strict=True)
        self.of_body = nn.ModuleList()
        start = 0
        for conv, map_conv in both:
            linear = nn.Linear(hidden, conv.out_channels, bias=False)
            linear.weight = nn.Parameter(fold(conv, operation.fuse.norm, start).weight[:, -hidden:, 0, 0].detach())
            self.of_body.append(linear)
            map_conv.in_channels -= hidden
            map_conv.weight = nn.Parameter(conv.weight[:, :-hidden].detach())
            start += conv.out_channels
        self.of_map = FusedProjection(of_map, thin)

    def forward(self, state: State) -> Tensor:
        bounds = stripe_bounds(state.size[0], self.bodies.parts)
        means = state.means if state.raw is None else stripe_averages(state.raw, self.bodies.parts)
        body = F.relu(self.bodies.attend(self.bodies.transform_parts(means)))  # (B, M, C')
        found = self.of_map.halves(state)
        for half, (x, linear) in enumerate(zip(found, self.of_body, strict=True)):
            x.add_(self.rows(linear(body), bounds, half, state.size[1]))
        return join_channels(found)

    def rows(self, vectors: Tensor, bounds: list[int], half: int, width: int) -> Tensor:
        """(B, M, D) vectors to what each pixel of a half gets: (B, D, h, 1), or (B, D, h, w) if columns differ."""
        if len(self.of_body) == 1:
            return spread(vectors, bounds, 1)
        rows = split(spread(vectors, bounds, 2), 2)[half]
        if half == 1 and width == 1:  # all odd columns lie beyond the map
            return torch.zeros_like(rows)
        if half == 1 and width % 2:  # the last one does
            rows = F.pad(rows.expand(-1, -1, -1, width // 2), (0, 1))
        return rows
