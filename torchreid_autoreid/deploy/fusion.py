"""The network of a genotype for testing and deployment alone: the same features in fewer passes over memory.

What an eval-mode forward pass repeats is done once or not at all:

- a batch norm after a convolution goes into the convolution's weights and bias;
- a state is rectified once, in place where nobody reads it raw, for all that rectify it: the operations of the cell and
  the two cells that follow;
- a sum goes into the memory of its first term;
- the part-aware 1x1 convolution of ``[x; spread(body)]`` is ``W1 x + spread(W2 body)``, by linearity, and a body vector
  is a row of numbers instead of a stripe of pixels;
- an input that a reduction cell reads at every second pixel only is computed at those, and the means of its stripes
  from those of its own input;
- two operations that pool the same state share the pool;
- the last cell is pooled block by block instead of being joined.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import UserError
from ..space.cells import DerivedCell
from ..space.neck import tested_norm
from ..space.networks import AutoReIDNetwork
from ..space.operations import OPERATIONS
from ..space.operations.fused import Needs, State, fold, size_of
from ..space.operations.part_aware import stripe_averages
from ..space.operations.projection import FusedProjection, ReluConvNorm, odd_pixels

__all__ = ["FusedNetwork", "fold", "fuse"]


def fuse(network: nn.Module) -> nn.Module:
    """The fused form of one of our networks, and any other as it is, ours with somebody's hooks in it included.

    >>> import torch
    >>> network = AutoReIDNetwork(5, channels=4, layers=(1, 1, 1, 1)).eval()
    >>> images = torch.rand(2, 3, 64, 32)
    >>> bool(torch.allclose(fuse(network)(images), network(images), rtol=1e-3, atol=1e-5))
    True
    """
    if not isinstance(network, AutoReIDNetwork) or type(network).forward is not AutoReIDNetwork.forward:
        return network
    hooks = sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in network.modules())
    if hooks > (tested_norm(network) is not None):
        return network
    with torch.random.fork_rng(devices=[]):  # a module draws its first weights, and an evaluation must change no run
        return FusedNetwork(network)


class FusedNetwork(nn.Module):
    """What an :class:`AutoReIDNetwork` computes in eval mode, with its neck if it has one; it cannot be trained.

    The weights are copies in the network's own type, device and memory format.

    Shapes: ``(B, 3, H, W)`` images to ``(B, D)`` features.
    """

    def __init__(self, network: AutoReIDNetwork) -> None:
        super().__init__()
        layers: list[Any] = list(network.stem)
        cells: list[Any] = list(network.cells)
        convolution, norm, _, pool = layers
        self.stem = fold(convolution, norm)
        self.pool = copy.deepcopy(pool)
        self.cells = nn.ModuleList(_FusedCell(cell, cell is cells[-1], network.last_norm) for cell in cells)
        self.feature_dim = network.feature_dim
        norm = tested_norm(network)
        self.norm = nn.Identity() if norm is None else _Scale(norm)
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


class _Scale(nn.Module):
    """A neck's batch norm in eval mode, as a factor and a shift: (B, D) to (B, D).

    An exporter would have to know D, which it forgets behind a convolution that picks pixels of an odd map.
    """

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        state = {name: value.double() for name, value in norm.state_dict().items()}
        scale = state["weight"] / (state["running_var"] + norm.eps).sqrt()
        shift = state.get("bias", torch.zeros_like(scale)) - state["running_mean"] * scale
        like = norm.weight
        self.scale, self.shift = (nn.Parameter(value.to(like)) for value in (scale, shift))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale + self.shift


class _FusedCell(nn.Module):
    """A derived cell whose inputs are rectified already.

    Args:
        cell: in eval mode.
        is_last: of the network: it gives the pooled feature (B, D), any other its rectified map.
        last_norm: of the network, which follows its last cell.
    """

    def __init__(self, cell: DerivedCell, is_last: bool, last_norm: nn.BatchNorm2d | None = None) -> None:
        super().__init__()
        self.sources = [source for pair in cell.sources for source in pair]
        self.is_last = is_last
        self.norms = nn.ModuleList(_split_norm(last_norm, len(cell.sources)) if is_last and last_norm else [])
        plain = list(zip([OPERATIONS[name] for name in cell.names], cell.operations, strict=True))
        readers: list[list[Needs]] = [[] for _ in range(2 + len(cell.sources))]
        for (operation, module), source in zip(plain, self.sources, strict=True):
            readers[source].append(operation.needs(module))
        # An input of which all readers take the even and the odd pixels is computed there alone: at half of its pixels.
        preprocess: list[Any] = list(cell.preprocess)
        self.thin = [
            bool(found) and module.stride == 1 and all(needs.halves for needs in found)
            for module, found in zip(preprocess, readers, strict=False)
        ]
        self.preprocess = nn.ModuleList(
            _Halves(module, max(needs.parts for needs in found)) if thin else FusedProjection(module)
            for module, thin, found in zip(preprocess, self.thin, readers, strict=False)
        )
        self.operations = nn.ModuleList(
            operation.fused(module, source < 2 and self.thin[source])
            for (operation, module), source in zip(plain, self.sources, strict=True)
        )
        # Who reads a state as it is, and who rectified; a block is also read where the cell ends.
        ends = [False, False] + [True] * len(cell.sources)
        self.raw = [
            (end and is_last) or any(needs.raw for needs in found) for end, found in zip(ends, readers, strict=True)
        ]
        self.rectified = [
            (end and not is_last) or any(needs.rectified for needs in found)
            for end, found in zip(ends, readers, strict=True)
        ]

    def forward(self, before_last: Tensor, last: Tensor) -> Tensor:
        states: list[State] = []
        for number, x in enumerate((before_last, last)):
            module = self.preprocess[number]
            given = State(size_of(x), rectified=x)
            states.append(module(given) if self.thin[number] else self.forms(number, module(given)))
        for block in range(len(self.sources) // 2):
            pair = (2 * block, 2 * block + 1)
            operations: list[Any] = [self.operations[number] for number in pair]
            terms = [operation(states[self.sources[n]]) for operation, n in zip(operations, pair, strict=True)]
            states.append(self.forms(len(states), _sum(terms, [operation.fresh for operation in operations])))
        if self.is_last:
            maps = [state.raw for state in states[2:]]
            if self.norms:
                maps = [F.relu(norm(x), inplace=True) for norm, x in zip(self.norms, maps, strict=True)]
            return torch.cat([F.adaptive_avg_pool2d(x, 1).flatten(1) for x in maps], dim=1)
        return torch.cat([state.rectified for state in states[2:]], dim=1)

    def forms(self, number: int, x: Tensor) -> State:
        """A state as it is, and rectified: in place, if nobody reads it as it is."""
        raw = self.raw[number]
        rectified = F.relu(x, inplace=not raw) if self.rectified[number] else None
        return State(size_of(x), x if raw else None, rectified)


def _split_norm(norm: nn.BatchNorm2d, blocks: int) -> list[nn.BatchNorm2d]:
    """The batch norm of joined blocks as one for each of them."""
    width = norm.num_features // blocks
    parts = []
    for start in range(0, norm.num_features, width):
        part = nn.BatchNorm2d(width, norm.eps).to(norm.weight)
        own = slice(start, start + width)
        part.load_state_dict({name: value[own] if value.dim() else value for name, value in norm.state_dict().items()})
        parts.append(part)
    return parts


def _sum(terms: list[Tensor], fresh: list[bool]) -> Tensor:
    """Of two terms, in the memory of one that nobody else reads, if there is one."""
    for term, other, own in zip(terms, terms[::-1], fresh, strict=True):
        if own:
            return term.add_(other)
    return terms[0] + terms[1]


class _Halves(nn.Module):
    """The preprocessing of an input of which the even and the odd pixels, and the means of its stripes, are read."""

    def __init__(self, operation: ReluConvNorm, parts: int) -> None:
        super().__init__()
        self.parts = parts
        conv: Any = operation.convs[0]
        self.conv = fold(conv, operation.norm)
        self.strided = copy.copy(self.conv)  # the same weights
        self.strided.stride = (2, 2)
        self.odd = odd_pixels(self.conv.in_channels, self.conv.weight)

    def forward(self, state: State) -> State:
        x, (height, width) = state.rectified, state.size
        odd = F.relu(self.conv(self.odd(x)), inplace=True)
        if height % 2 or width % 2:  # what lies beyond the map is zero, not the convolution of zero
            if min(height, width) == 1:  # runtimes of ONNX are at odds about maps without a pixel
                odd = torch.zeros_like(odd)
            else:
                odd = F.pad(odd[:, :, : height // 2, : width // 2], (0, width % 2, 0, height % 2))
        means = None
        if self.parts:  # the mean of a 1x1 convolution is that of its input, convolved
            means = F.linear(stripe_averages(x, self.parts), self.conv.weight.flatten(1), self.conv.bias)
        return State((height, width), halves=[F.relu(self.strided(x), inplace=True), odd], means=means)
