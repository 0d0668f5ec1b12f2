"""All edges of a search cell that leave one source, computed together; the result is that of each edge by itself.

The modules of the operations stay on their edges (:class:`~torchreid_autoreid.space.cells.MixedOperation`). For the
``n`` edges from a source, with their channels joined edge by edge,

- what no weight enters is computed once: ReLU, pooling with its batch norm, stripe averages, the phases of the pixels;
- what has the same shape on every edge is one call: convolutions (grouped by edge), batch norms, attention;
- the weight of an operation is the scale of its last batch norm, so that multiplying by it costs nothing;
- the part-aware operation's 1x1 convolution of ``[x, stripes]`` is one of ``x`` plus one of the stripes, which are M
  vectors instead of a map;
- a dilated convolution of stride 2 reads the even pixels only, and is an ordinary one on them. That of stride 1 takes
  the gradient of its weights from the four phases of the pixels, on which it is an ordinary one too: PyTorch's CPU
  kernels for the gradient of dilated depth-wise convolutions are an order of magnitude slower.

Shapes: B batch, C channels, H x W map, n edges, O operations, M parts, C' features of a part.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.grad import conv2d_weight

from ..parallel.batch_norm import batch_norm_as
from .part_aware import norm_bodies, stripe_bounds, stripe_means

__all__ = ["mix_edges"]


def mix_edges(
    edges: Sequence[Any],
    x: Tensor,
    weights: Tensor,
    bypass: Tensor | None = None,
    skip_dropout: float = 0.0,
) -> Tensor:
    """What the edges from one source add to their blocks: (B, C, H, W) to (B, n C, H', W').

    Args:
        edges: the n edges that leave the source, a :class:`~torchreid_autoreid.space.cells.MixedOperation` each.
        x: the source.
        weights: (n, O), of the operations.
        bypass: (n,), of the channels that bypass the operations (PC-DARTS).
        skip_dropout: as in :class:`~torchreid_autoreid.space.cells.MixedOperation`.
    """
    first = edges[0]
    own = x.shape[1] // first.partial
    mixed = _mix_operations(edges, x[:, :own] if first.partial > 1 else x, weights, skip_dropout)
    if first.partial == 1:
        return mixed
    rest = first.bypass(x[:, own:]).permute(0, 2, 3, 1).unsqueeze(3)  # (B, H', W', 1, C - C / K)
    scale = rest.new_ones(len(edges)) if bypass is None else bypass
    joined = torch.cat([_by_edge(mixed, len(edges)), scale.view(-1, 1) * rest], dim=4)  # (B, H', W', n, C)
    dealt = joined.unflatten(4, (first.partial, -1)).transpose(4, 5)  # the shuffle of an edge by itself
    return _join_edges(dealt.flatten(4, 5))


def _mix_operations(edges: Sequence[Any], x: Tensor, weights: Tensor, skip_dropout: float) -> Tensor:
    stride = edges[0].stride
    weight = dict(zip(edges[0].operations, weights.unbind(1), strict=True))  # name -> (n,)
    # Sequential and ReluConvNorm give their parts by index and by name, which no common type says.
    operations: dict[str, list[Any]] = {name: [edge.operations[name] for edge in edges] for name in weight}
    rectified = F.relu(x)
    pixels = [rectified] if stride == 1 else _phases(rectified)
    shared = {name: _pool(operations[name], x) for name in ("max_pool_3x3", "avg_pool_3x3")}
    terms = [
        _separable(operations["sep_conv_3x3"], rectified, weight["sep_conv_3x3"]),
        _dilated(operations["dil_conv_3x3"], pixels[0], weight["dil_conv_3x3"]),
    ]
    if "part_aware" in weight:
        terms.append(_part_aware(operations["part_aware"], x, pixels, weight["part_aware"]))
    if stride == 1 and not skip_dropout:
        shared["skip_connect"] = x
    else:
        terms.append(_skip(operations["skip_connect"], x, pixels, weight["skip_connect"], skip_dropout))
    terms.append(_mix_maps(list(shared.values()), torch.stack([weight[name] for name in shared], dim=1)))
    total = terms[0]
    for term in terms[1:]:
        total = total.add_(term)  # in place: no batch norm keeps its output for the gradient
    if total.requires_grad and total.is_contiguous(memory_format=torch.channels_last):
        total.register_hook(_in_channels_last)  # once for all terms
    return total


def _in_channels_last(gradient: Tensor) -> Tensor:
    return gradient.contiguous(memory_format=torch.channels_last)


# -- operations -------------------------------------------------------------------------------------------------------


def _separable(operations: Sequence[Any], rectified: Tensor, weight: Tensor) -> Tensor:
    first, second = ([operation[i] for operation in operations] for i in (1, 5))
    if first[0].stride[0] == 2 and 1 in rectified.shape[2:]:
        # The same with one more zero at the border. Of maps one pixel high or wide in channels-last, oneDNN's bfloat16
        # kernel gives a wrong gradient (PyTorch 2.14).
        rectified = F.pad(rectified, (0, rectified.shape[3] % 2, 0, rectified.shape[2] % 2))
    y = torch.cat([conv(rectified) for conv in first], dim=1)
    y = _norm(_pointwise([op[2] for op in operations], y), [op[3] for op in operations])
    y = F.relu(y, inplace=True)
    kernels = _joined(second)
    y = F.conv2d(y, kernels, padding=1, groups=len(kernels))
    return _norm(_pointwise([op[6] for op in operations], y), [op[7] for op in operations], weight)


def _dilated(operations: Sequence[Any], pixels: Tensor, weight: Tensor) -> Tensor:
    """At stride 2 ``pixels`` are the even ones."""
    convs = [operation[1] for operation in operations]
    y = torch.cat([_depthwise(pixels, conv.weight, conv.stride[0]) for conv in convs], dim=1)
    return _norm(_pointwise([op[2] for op in operations], y), [op[3] for op in operations], weight)


def _skip(operations: Sequence[Any], x: Tensor, pixels: list[Tensor], weight: Tensor, dropout: float) -> Tensor:
    """The factorised reduction, or, where elements are dropped, the identity of each edge."""
    norms = [operation.norm for operation in operations] if len(pixels) > 1 else []
    if norms:
        found = [F.conv2d(p, _joined([op.convs[i] for op in operations])) for i, p in enumerate(pixels)]
        y = _norm(_join_halves(found, len(operations)), norms, weight)
    else:
        y = _mix_maps([x], weight.unsqueeze(1))
    return F.dropout(y, dropout) if dropout else y


def _pool(operations: Sequence[Any], x: Tensor) -> Tensor:
    """The same on all edges: their batch norms have no parameters, and the same statistics."""
    return _norm(operations[0][0](x), [operation[1] for operation in operations])


def _mix_maps(maps: list[Tensor], weights: Tensor) -> Tensor:
    """K maps (B, C, H, W) and (n, K) weights to (B, n C, H, W), as one product of matrices."""
    stacked = torch.stack([each.permute(0, 2, 3, 1) for each in maps])  # (K, B, H, W, C)
    mixed = weights.to(stacked.dtype) @ stacked.flatten(1)  # (n, B H W C)
    return _join_edges(mixed.view(-1, *stacked.shape[1:]).permute(1, 2, 3, 0, 4))


def _part_aware(operations: Sequence[Any], x: Tensor, pixels: list[Tensor], weight: Tensor) -> Tensor:
    bounds = stripe_bounds(x.shape[2], operations[0].parts)
    body = F.relu(_attend(operations, stripe_means(x, bounds)))  # (n, B, M, C')
    edges, batch, stripes, hidden = body.shape
    # The stripe of each row, and of the rows of each phase.
    rows = torch.bucketize(
        torch.arange(x.shape[2], device=x.device), torch.tensor(bounds[1:], device=x.device), right=True
    )
    found = []
    for phase, some in enumerate(pixels):
        kernels = torch.stack([op.fuse.convs[phase].weight.flatten(1) for op in operations])  # (n, out, C + C')
        of_map, of_stripes = kernels.split([x.shape[1], hidden], dim=2)
        y = F.conv2d(some, of_map.flatten(0, 1)[:, :, None, None])  # (B, n out, h, w)
        z = body.flatten(1, 2) @ of_stripes.transpose(1, 2)  # (n, B M, out)
        z = z.unflatten(1, (batch, stripes)).permute(1, 0, 3, 2).flatten(1, 2)  # (B, n out, M)
        own = rows if len(pixels) == 1 else rows[phase::2]
        spread = z[:, :, own].unsqueeze(3)  # (B, n out, h, 1)
        width = x.shape[3] if len(pixels) == 1 else (x.shape[3] + 1 - phase) // 2
        if (len(own), width) != y.shape[2:]:  # the odd phase of an odd size ends in zeros
            spread = F.pad(spread.expand(-1, -1, -1, width), (0, y.shape[3] - width, 0, y.shape[2] - len(own)))
        found.append(y.add_(spread))
    return _norm(_join_halves(found, edges), [op.fuse.norm for op in operations], weight)


def _attend(operations: Sequence[Any], means: Tensor) -> Tensor:
    """(B, M, C) stripe averages to (n, B, M, C') body vectors after the attention across parts."""
    stripes, hidden = means.shape[1], operations[0].query.in_features
    transforms = [op.transform.weight.view(op.parts, hidden, -1)[:stripes] for op in operations]
    body = F.relu(means).transpose(0, 1) @ torch.stack(transforms).transpose(2, 3)  # (n, M, B, C')
    body = norm_bodies([op.norm for op in operations], body.transpose(1, 2))  # (n, B, M, C')

    def linear(name: str) -> Tensor:
        modules = [getattr(op, name) for op in operations]
        kernels = torch.stack([module.weight for module in modules])  # (n, C', C')
        biases = torch.stack([module.bias for module in modules])  # (n, C')
        return body @ kernels.transpose(1, 2).unsqueeze(1) + biases[:, None, None]

    scores = linear("query") @ linear("key").transpose(2, 3)  # (n, B, M, M)
    return scores.softmax(dim=3) @ body


# -- joined channels --------------------------------------------------------------------------------------------------


def _joined(convs: Sequence[nn.Conv2d]) -> Tensor:
    return torch.cat([conv.weight for conv in convs])


def _pointwise(convs: Sequence[nn.Conv2d], x: Tensor) -> Tensor:
    """A 1x1 convolution of each edge's own channels."""
    return F.conv2d(x, _joined(convs), groups=len(convs))


def _norm(z: Tensor, norms: Sequence[Any], weight: Tensor | None = None) -> Tensor:
    """The batch norms of n edges in one, times an (n,) weight; z has the channels of n edges, or one set for all."""
    first = norms[0]
    channels = first.num_features
    joined = z.shape[1] // channels
    mean, var = (
        torch.cat([getattr(norm, name) for norm in norms[:joined]]) for name in ("running_mean", "running_var")
    )
    scale = None if weight is None else weight.to(mean.dtype).repeat_interleave(channels)
    batch_norm = batch_norm_as(first)
    z = batch_norm(z, mean, var, scale, None, first.training, first.momentum or 0.0, first.eps)
    if first.training:
        copies = len(norms) // joined
        with torch.no_grad():
            torch._foreach_copy_([norm.running_mean for norm in norms], list(mean.split(channels)) * copies)
            torch._foreach_copy_([norm.running_var for norm in norms], list(var.split(channels)) * copies)
            torch._foreach_add_([norm.num_batches_tracked for norm in norms], 1)
    return z


def _by_edge(x: Tensor, edges: int) -> Tensor:
    """(B, n C, H, W) to (B, H, W, n, C)."""
    return x.permute(0, 2, 3, 1).unflatten(3, (edges, x.shape[1] // edges))


def _join_edges(x: Tensor) -> Tensor:
    """The inverse of :func:`_by_edge`."""
    return x.flatten(3).permute(0, 3, 1, 2)


def _join_halves(found: list[Tensor], edges: int) -> Tensor:
    """The halves of the output channels that come from even and from odd pixels, joined edge by edge."""
    if len(found) == 1:
        return found[0]
    return _join_edges(torch.cat([_by_edge(half, edges) for half in found], dim=4))


# -- phases of the pixels ---------------------------------------------------------------------------------------------


def _phases(x: Tensor) -> list[Tensor]:
    """The pixels with even coordinates, and those with odd ones: (B, C, ceil(H / 2), ceil(W / 2)) each."""
    quarters = _quarters(x)
    return [quarters[:, :, 0, :, 0].permute(0, 3, 1, 2), quarters[:, :, 1, :, 1].permute(0, 3, 1, 2)]


def _quarters(x: Tensor) -> Tensor:
    """(B, C, H, W) to (B, H / 2, 2, W / 2, 2, C), with zeros at the end of an odd size."""
    if x.shape[2] % 2 or x.shape[3] % 2:
        x = F.pad(x, (0, x.shape[3] % 2, 0, x.shape[2] % 2))
    return x.permute(0, 2, 3, 1).unflatten(2, (-1, 2)).unflatten(1, (-1, 2))


def _depthwise(x: Tensor, kernel: Tensor, stride: int) -> Tensor:
    """The dilated 3x3 convolution; at stride 2 of the even pixels, where it is an ordinary one."""
    if stride == 2:
        return F.conv2d(x, kernel, padding=1, groups=len(kernel))
    if x.device.type != "cpu":
        return F.conv2d(x, kernel, padding=2, dilation=2, groups=len(kernel))
    if torch.is_autocast_enabled("cpu"):  # a function of our own is not cast by itself
        dtype = torch.get_autocast_dtype("cpu")
        x, kernel = x.to(dtype), kernel.to(dtype)
    return _DilatedDepthwise.apply(x, kernel)


class _DilatedDepthwise(torch.autograd.Function):
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
    return _quarters(x).permute(2, 4, 0, 1, 3, 5).flatten(0, 2).permute(0, 3, 1, 2)
