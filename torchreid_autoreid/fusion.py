"""The network of a genotype for testing and deployment alone: the same features in fewer passes over memory.

What an eval-mode forward pass repeats is done once or not at all:

- a batch norm after a convolution goes into the convolution's weights and bias;
- a state is rectified once, in place where nobody reads it raw, for all that rectify it: the operations of the cell and
  the two cells that follow;
- a sum goes into the memory of its first term;
- the part-aware 1x1 convolution of ``[x; spread(body)]`` is ``W1 x + spread(W2 body)``, by linearity, and a body vector
  is a row of numbers instead of a stripe of pixels;
- the last cell is pooled block by block instead of being joined.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .cells import DerivedCell
from .errors import UserError
from .neck import tested_norm
from .networks import AutoReIDNetwork
from .part_aware import PartAware, ReluConvNorm, split, spread, stripe_bounds, stripe_means

__all__ = ["FusedNetwork", "fold", "fuse"]


def fuse(network: nn.Module) -> nn.Module:
    """The fused form of one of our networks, and any other network as it is.

    >>> import torch
    >>> network = AutoReIDNetwork(5, channels=4, layers=(1, 1, 1, 1)).eval()
    >>> images = torch.rand(2, 3, 64, 32)
    >>> bool(torch.allclose(fuse(network)(images), network(images), rtol=1e-3, atol=1e-5))
    True
    """
    return FusedNetwork(network) if isinstance(network, AutoReIDNetwork) else network


class FusedNetwork(nn.Module):
    """What an :class:`AutoReIDNetwork` computes in eval mode, with its neck if it has one; it cannot be trained.

    The weights are copies in the network's own type, device and memory format.

    Shapes: ``(B, 3, H, W)`` images to ``(B, D)`` features.
    """

    def __init__(self, network: AutoReIDNetwork) -> None:
        super().__init__()
        convolution, norm, _, pool = network.stem
        self.stem = fold(convolution, norm)
        self.pool = copy.deepcopy(pool)
        self.cells = nn.ModuleList(_FusedCell(cell, cell is network.cells[-1]) for cell in network.cells)
        self.feature_dim = network.feature_dim
        norm = tested_norm(network)
        self.norm = nn.Identity() if norm is None else copy.deepcopy(norm)
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> FusedNetwork:
        """Only testing is possible.

        Raises:
            UserError: if training is asked for.
        """
        if mode:
            raise UserError("a fused network cannot be trained; train the network that it was made from")
        return super().train(False)

    def forward(self, images: Tensor) -> Tensor:
        # Rectified after the pool, which commutes, on a quarter of the pixels.
        before_last = last = F.relu(self.pool(self.stem(images)), inplace=True)
        for cell in self.cells:
            before_last, last = last, cell(before_last, last)
        return self.norm(last)


class _FusedCell(nn.Module):
    """A derived cell whose inputs are rectified already.

    Args:
        cell: in eval mode.
        is_last: of the network: it gives the pooled feature (B, D), any other its rectified map.
    """

    def __init__(self, cell: DerivedCell, is_last: bool) -> None:
        super().__init__()
        self.sources = list(cell.sources)
        self.is_last = is_last
        self.preprocess = nn.ModuleList(_Projection(module) for module in cell.preprocess)
        self.operations = nn.ModuleList(_fused(operation) for operation in cell.operations)
        edges = zip(self.operations, (source for pair in self.sources for source in pair), strict=True)
        readers: list[list[nn.Module]] = [[] for _ in range(2 + len(self.sources))]
        for operation, source in edges:
            readers[source].append(operation)
        # Who reads a state as it is, and who rectified; a block is also read where the cell ends.
        self.raw, self.rectified = [], []
        for number, operations in enumerate(readers):
            block = number > 1
            self.raw.append((block and is_last) or any(isinstance(o, _Raw | _Parts) for o in operations))
            self.rectified.append((block and not is_last) or any(not isinstance(o, _Raw) for o in operations))

    def forward(self, before_last: Tensor, last: Tensor) -> Tensor:
        states: list[tuple[Tensor, Tensor]] = []
        for module, x in zip(self.preprocess, (before_last, last), strict=True):
            states.append(self.forms(len(states), module(x, x)))
        for block, sources in enumerate(self.sources):
            operations = self.operations[2 * block : 2 * block + 2]
            terms = [operation(*states[source]) for operation, source in zip(operations, sources, strict=True)]
            states.append(self.forms(len(states), _sum(terms, [raw for raw, _ in states])))
        if self.is_last:
            return torch.cat([F.adaptive_avg_pool2d(raw, 1).flatten(1) for raw, _ in states[2:]], dim=1)
        return torch.cat([rectified for _, rectified in states[2:]], dim=1)

    def forms(self, number: int, x: Tensor) -> tuple[Tensor, Tensor]:
        """A state as it is, and rectified; where only one is read, both are that one."""
        if not self.rectified[number]:
            return x, x
        rectified = F.relu(x, inplace=not self.raw[number])
        return (x if self.raw[number] else rectified), rectified


def _sum(terms: list[Tensor], states: list[Tensor]) -> Tensor:
    """Of two terms, in the memory of one that is not a state itself, which others may read."""
    for term, other in (terms, terms[::-1]):
        if not any(term is state for state in states):
            return term.add_(other)
    return terms[0] + terms[1]


# -- operations: (raw state, rectified state) to a new tensor, an identity excepted ------------------------------------


class _Raw(nn.Module):
    """What rectifies nothing: an identity, pooling, ``none``."""

    def __init__(self, operation: nn.Module) -> None:
        super().__init__()
        self.operation = copy.deepcopy(operation)

    def forward(self, raw: Tensor, rectified: Tensor) -> Tensor:
        return self.operation(raw)


class _Separable(nn.Module):
    """Once or more: ReLU, depth-wise and point-wise convolution, batch norm; the first ReLU has been taken."""

    def __init__(self, operation: nn.Sequential) -> None:
        super().__init__()
        layers = list(operation)
        self.pairs = nn.ModuleList(
            nn.Sequential(copy.deepcopy(layers[start + 1]), fold(layers[start + 2], layers[start + 3]))
            for start in range(0, len(layers), 4)
        )

    def forward(self, raw: Tensor, rectified: Tensor) -> Tensor:
        x = self.pairs[0](rectified)
        for pair in self.pairs[1:]:
            x = pair(F.relu(x, inplace=True))
        return x


class _Projection(nn.Module):
    """:class:`ReluConvNorm` whose ReLU has been taken."""

    def __init__(self, operation: ReluConvNorm) -> None:
        super().__init__()
        self.stride = operation.stride
        starts = (0, operation.convs[0].out_channels)
        self.convs = nn.ModuleList(
            fold(conv, operation.norm, start) for conv, start in zip(operation.convs, starts, strict=False)
        )

    def forward(self, raw: Tensor, rectified: Tensor) -> Tensor:
        found = [conv(x) for conv, x in zip(self.convs, split(rectified, self.stride), strict=True)]
        return found[0] if len(found) == 1 else torch.cat(found, dim=1)


class _Parts(nn.Module):
    """The part-aware operation, its last convolution halved: what it does to the map, and to the body vectors."""

    def __init__(self, operation: PartAware) -> None:
        super().__init__()
        self.bodies = copy.deepcopy(operation)
        del self.bodies.fuse
        self.fuse = _Projection(operation.fuse)
        self.of_body = nn.ModuleList()
        for conv in self.fuse.convs:
            hidden = operation.query.out_features
            weight = conv.weight.detach()
            linear = nn.utils.skip_init(nn.Linear, hidden, conv.out_channels, bias=False, device=weight.device)
            linear.weight = nn.Parameter(weight[:, -hidden:, 0, 0].clone())
            self.of_body.append(linear)
            conv.in_channels -= hidden
            conv.weight = nn.Parameter(_as_laid_out(weight[:, :-hidden].clone(), weight))

    def forward(self, raw: Tensor, rectified: Tensor) -> Tensor:
        bounds = stripe_bounds(raw.shape[2], self.bodies.parts)
        body = F.relu(self.bodies.attend(self.bodies.transform_parts(stripe_means(raw, bounds))))  # (B, M, C')
        found = []
        for conv, linear, x in zip(self.fuse.convs, self.of_body, split(rectified, self.fuse.stride), strict=True):
            found.append(conv(x))
        spreads = [spread(linear(body), bounds, raw.shape[3]) for linear in self.of_body]
        for number, stripes in enumerate(spreads):
            found[number].add_(split(stripes, self.fuse.stride)[number])
        return found[0] if len(found) == 1 else torch.cat(found, dim=1)


def _fused(operation: nn.Module) -> nn.Module:
    if isinstance(operation, PartAware):
        return _Parts(operation)
    if isinstance(operation, ReluConvNorm):
        return _Projection(operation)
    if isinstance(operation, nn.Sequential) and isinstance(operation[0], nn.ReLU):
        return _Separable(operation)
    return _Raw(operation)


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
    fused.weight = nn.Parameter(_as_laid_out(weight.double() * scale[:, None, None, None], weight))
    fused.bias = nn.Parameter(shift.detach().to(weight))
    return fused


def _as_laid_out(weight: Tensor, like: Tensor) -> Tensor:
    """A weight in the type and memory format of another."""
    last = like.is_contiguous(memory_format=torch.channels_last)
    return weight.detach().to(like, memory_format=torch.channels_last if last else torch.contiguous_format)
