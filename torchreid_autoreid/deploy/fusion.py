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
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import UserError
from ..space.cells import DerivedCell
from ..space.neck import tested_norm
from ..space.networks import AutoReIDNetwork
from ..space.operations import Zero
from ..space.part_aware import PartAware, ReluConvNorm, split, spread, stripe_bounds, stripe_means

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


@dataclass(frozen=True)
class _State:
    """A cell's input or block, in the forms that its readers need.

    Attributes:
        size: (H, W).
        raw, rectified: (B, C, H, W).
        halves: rectified, the even and the odd pixels alone, (B, C, ceil(H / 2), ceil(W / 2)) each.
        means: (B, M, C) averages of the raw stripes.
    """

    size: tuple[int, int]
    raw: Any = None
    rectified: Any = None
    halves: Any = None
    means: Any = None


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
        readers: list[list[nn.Module]] = [[] for _ in range(2 + len(cell.sources))]
        for operation, source in zip(cell.operations, self.sources, strict=True):
            readers[source].append(operation)
        # An input of which all readers take the even and the odd pixels is computed there alone: at half of its pixels.
        preprocess: list[Any] = list(cell.preprocess)
        self.thin = [
            bool(found) and module.stride == 1 and all(_stride_of_projection(operation) == 2 for operation in found)
            for module, found in zip(preprocess, readers, strict=False)
        ]
        self.parts = [next((o.parts for o in found if isinstance(o, PartAware)), 0) for found in readers]
        self.preprocess = nn.ModuleList(
            _Halves(module, parts) if thin else _Projection(module)
            for module, thin, parts in zip(preprocess, self.thin, self.parts, strict=False)
        )
        self.operations = nn.ModuleList(
            _fused(operation, source < 2 and self.thin[source])
            for operation, source in zip(cell.operations, self.sources, strict=True)
        )
        # Who reads a state as it is, and who rectified; a block is also read where the cell ends.
        ends = [False, False] + [True] * len(cell.sources)
        self.raw = [(end and is_last) or any(map(_reads_raw, found)) for end, found in zip(ends, readers, strict=True)]
        self.rectified = [
            (end and not is_last) or any(map(_reads_rectified, found)) for end, found in zip(ends, readers, strict=True)
        ]

    def forward(self, before_last: Tensor, last: Tensor) -> Tensor:
        states: list[_State] = []
        for number, x in enumerate((before_last, last)):
            module = self.preprocess[number]
            given = _State(_size(x), rectified=x)
            states.append(module(given) if self.thin[number] else self.forms(number, module(given)))
        pooled: dict[tuple[int, str], Tensor] = {}
        for block in range(len(self.sources) // 2):
            terms = []
            for number in (2 * block, 2 * block + 1):
                operation: Any = self.operations[number]
                source = self.sources[number]
                if isinstance(operation, _Pool):  # two operations may pool the same state
                    key = (source, operation.kind)
                    if key not in pooled:
                        pooled[key] = operation.pool(states[source].raw)
                    terms.append(operation.norm(pooled[key]))
                else:
                    terms.append(operation(states[source]))
            states.append(self.forms(len(states), _sum(terms, states)))
        if self.is_last:
            maps = [state.raw for state in states[2:]]
            if self.norms:
                maps = [F.relu(norm(x), inplace=True) for norm, x in zip(self.norms, maps, strict=True)]
            return torch.cat([F.adaptive_avg_pool2d(x, 1).flatten(1) for x in maps], dim=1)
        return torch.cat([state.rectified for state in states[2:]], dim=1)

    def forms(self, number: int, x: Tensor) -> _State:
        """A state as it is, and rectified: in place, if nobody reads it as it is."""
        raw = self.raw[number]
        rectified = F.relu(x, inplace=not raw) if self.rectified[number] else None
        return _State(_size(x), x if raw else None, rectified)


def _size(x: Tensor) -> tuple[int, int]:
    """(H, W) as numbers, which a tracer takes for constants: an exported file has one size of input."""
    return int(x.shape[2]), int(x.shape[3])


def _means(x: Tensor, parts: int) -> Tensor:
    """:func:`stripe_means` in one pooling, where the stripes are of one height."""
    height, width = _size(x)
    if height % min(parts, height):
        return stripe_means(x, stripe_bounds(height, parts))
    return F.avg_pool2d(x, (height // min(parts, height), width)).squeeze(3).transpose(1, 2)


def _sum(terms: list[Tensor], states: list[_State]) -> Tensor:
    """Of two terms, in the memory of one that is not a state itself, which others may read."""
    for term, other in (terms, terms[::-1]):
        if not any(term is state.raw for state in states):
            return term.add_(other)
    return terms[0] + terms[1]


# -- operations: a state to a new tensor, an identity excepted ---------------------------------------------------------


class _Same(nn.Module):
    """``skip_connect`` at stride 1: the state itself."""

    def forward(self, state: _State) -> Tensor:
        return state.raw


class _Pool(nn.Module):
    """Pooling and batch norm; the cell calls the two apart."""

    def __init__(self, operation: nn.Sequential) -> None:
        super().__init__()
        self.pool, self.norm = copy.deepcopy(operation[0]), copy.deepcopy(operation[1])
        self.kind = type(operation[0]).__name__


class _Zero(nn.Module):
    """``none``: zeros, whatever the state's form."""

    def __init__(self, operation: Zero) -> None:
        super().__init__()
        self.operation = copy.deepcopy(operation)

    def forward(self, state: _State) -> Tensor:
        return self.operation(state.rectified)


class _Separable(nn.Module):
    """Once or more: ReLU, depth-wise and point-wise convolution, batch norm; the first ReLU has been taken."""

    def __init__(self, operation: nn.Sequential) -> None:
        super().__init__()
        layers: list[Any] = list(operation)
        self.pairs = nn.ModuleList(
            nn.Sequential(copy.deepcopy(layers[start + 1]), fold(layers[start + 2], layers[start + 3]))
            for start in range(0, len(layers), 4)
        )

    def forward(self, state: _State) -> Tensor:
        x = self.pairs[0](state.rectified)
        for pair in self.pairs[1:]:
            x = pair(F.relu(x, inplace=True))
        return x


class _Projection(nn.Module):
    """:class:`ReluConvNorm` whose ReLU has been taken.

    At stride 2 a depth-wise convolution with a single one in its kernel picks the odd pixels, with zeros beyond the
    end: a runtime that blocks channels leaves that layout for strided slices, but not for convolutions.

    Args:
        operation: what it computes.
        thin: whether its state has halves already.
    """

    def __init__(self, operation: ReluConvNorm, thin: bool = False) -> None:
        super().__init__()
        convs: list[Any] = list(operation.convs)
        first, *second = convs
        self.convs = nn.ModuleList([fold(first, operation.norm)])
        self.thin = thin
        self.odd: nn.Module | None = None
        if second:
            self.convs.append(fold(second[0], operation.norm, first.out_channels))
        if second and not thin:
            self.odd = _odd_pixels(first.in_channels, first.weight)
            self.convs[0].stride = (2, 2)  # type: ignore[assignment]

    def forward(self, state: _State) -> Tensor:
        return _joined(self.halves(state))

    def halves(self, state: _State) -> list[Tensor]:
        """What each of its convolutions gives."""
        if self.thin:
            return [conv(half) for conv, half in zip(self.convs, state.halves, strict=True)]
        first = self.convs[0](state.rectified)
        return [first] if self.odd is None else [first, self.convs[1](self.odd(state.rectified))]


class _Halves(nn.Module):
    """The preprocessing of an input of which the even and the odd pixels, and the means of its stripes, are read."""

    def __init__(self, operation: ReluConvNorm, parts: int) -> None:
        super().__init__()
        self.parts = parts
        conv: Any = operation.convs[0]
        self.conv = fold(conv, operation.norm)
        self.strided = copy.copy(self.conv)  # the same weights
        self.strided.stride = (2, 2)
        self.odd = _odd_pixels(self.conv.in_channels, self.conv.weight)

    def forward(self, state: _State) -> _State:
        x, (height, width) = state.rectified, state.size
        odd = F.relu(self.conv(self.odd(x)), inplace=True)
        if height % 2 or width % 2:  # what lies beyond the map is zero, not the convolution of zero
            if min(height, width) == 1:  # runtimes of ONNX are at odds about maps without a pixel
                odd = torch.zeros_like(odd)
            else:
                odd = F.pad(odd[:, :, : height // 2, : width // 2], (0, width % 2, 0, height % 2))
        means = None
        if self.parts:  # the mean of a 1x1 convolution is that of its input, convolved
            means = F.linear(_means(x, self.parts), self.conv.weight.flatten(1), self.conv.bias)
        return _State((height, width), halves=[F.relu(self.strided(x), inplace=True), odd], means=means)


def _odd_pixels(channels: int, like: Tensor) -> nn.Conv2d:
    """(B, C, H, W) to the pixels (2i + 1, 2j + 1) of it, (B, C, ceil(H / 2), ceil(W / 2))."""
    pick = nn.Conv2d(channels, channels, 3, 2, 1, groups=channels, bias=False)
    weight = torch.zeros_like(pick.weight)
    weight[:, :, 2, 2] = 1.0
    pick.weight = nn.Parameter(_as_laid_out(weight, like))
    return pick


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


class _Parts(nn.Module):
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
        self.of_map = _Projection(of_map, thin)

    def forward(self, state: _State) -> Tensor:
        bounds = stripe_bounds(state.size[0], self.bodies.parts)
        means = state.means if state.raw is None else _means(state.raw, self.bodies.parts)
        body = F.relu(self.bodies.attend(self.bodies.transform_parts(means)))  # (B, M, C')
        found = self.of_map.halves(state)
        for half, (x, linear) in enumerate(zip(found, self.of_body, strict=True)):
            x.add_(self.rows(linear(body), bounds, half, state.size[1]))
        return _joined(found)

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


def _fused(operation: nn.Module, thin: bool = False) -> nn.Module:
    if isinstance(operation, PartAware):
        return _Parts(operation, thin)
    if isinstance(operation, ReluConvNorm):
        return _Projection(operation, thin)
    if isinstance(operation, nn.Identity):
        return _Same()
    if isinstance(operation, Zero):
        return _Zero(operation)
    assert isinstance(operation, nn.Sequential)
    return _Pool(operation) if _pools(operation) else _Separable(operation)


def _reads_raw(operation: nn.Module) -> bool:
    return isinstance(operation, PartAware | nn.Identity) or _pools(operation)


def _reads_rectified(operation: nn.Module) -> bool:
    return not isinstance(operation, nn.Identity) and not _pools(operation)


def _pools(operation: nn.Module) -> bool:
    return isinstance(operation, nn.Sequential) and not isinstance(operation[0], nn.ReLU)


def _stride_of_projection(operation: nn.Module) -> int | None:
    """Of an operation that reads its input through a :class:`ReluConvNorm` alone."""
    if isinstance(operation, PartAware):
        return operation.fuse.stride
    return operation.stride if isinstance(operation, ReluConvNorm) else None


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


def _as_laid_out(weight: Tensor, like: Tensor) -> Tensor:
    """A weight in the type and memory format of another."""
    last = like.is_contiguous(memory_format=torch.channels_last)
    return weight.detach().to(like, memory_format=torch.channels_last if last else torch.contiguous_format)
