"""One wiring of a cell; the search cell and the derived cell differ only in what they put on its edges."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..genotype import Block, cell_edges
from ..parallel.group import draw_rows
from .grouped import mix_edges
from .operations import build_operation
from .operations.projection import ReluConvNorm
from .strategies import Mixture

__all__ = ["Cell", "DerivedCell", "MixedOperation", "SearchCell"]


class Cell(nn.Module):
    """What both cells share: the two inputs are brought to ``channels`` at one size, the output joins the blocks.

    Args:
        in_channels: channels of the two inputs (the cell before the last, the last cell).
        channels: C of each block; the output has ``blocks * C``.
        kind: ``normal`` or ``reduce``.
        stride: of the operations on the two inputs (Auto-ReID, section 3.1): 2 in a reduction cell.
        halve_first: whether the first input is twice as large as the second (the last cell was a reduction).
        affine: whether batch norms have learnt scale and shift.
    """

    def __init__(
        self, in_channels: tuple[int, int], channels: int, kind: str, stride: int, halve_first: bool, affine: bool
    ) -> None:
        super().__init__()
        self.kind = kind
        self.stride = stride
        self.preprocess = nn.ModuleList(
            [
                ReluConvNorm(in_channels[0], channels, 2 if halve_first else 1, affine),
                ReluConvNorm(in_channels[1], channels, 1, affine),
            ]
        )

    def inputs(self, before_last: Tensor, last: Tensor) -> list[Tensor]:
        return [self.preprocess[0](before_last), self.preprocess[1](last)]

    def stride_from(self, source: int) -> int:
        """The stride of an operation on a cell input or on an earlier block."""
        return self.stride if source < 2 else 1


class MixedOperation(nn.Module):
    """One edge of the search cell: ``f(H) = sum_o w_o o(H)`` over the candidate operations.

    With partial channels (PC-DARTS, Xu et al., ICLR 2020, section 3.2, equation 2) the first ``1 / K`` of the
    channels pass through the operations. The others bypass them, max-pooled 2x2 at stride 2, and a shuffle deals the
    channels out anew, so that another node sends others through its operations.

    Args:
        operations: names of the candidates.
        channels: C, which ``partial`` divides.
        stride: 1 or 2.
        parts: M, of the part-aware operation.
        partial: K; 1 sends all channels through the operations.
    """

    def __init__(self, operations: Sequence[str], channels: int, stride: int, parts: int, partial: int = 1) -> None:
        super().__init__()
        self.stride = stride
        self.partial = partial
        self.operations = nn.ModuleDict(
            {name: build_operation(name, channels // partial, stride, parts, affine=False) for name in operations}
        )

    def forward(
        self,
        x: Tensor,
        weights: Tensor,
        edge: Tensor | None = None,
        chosen: int | None = None,
        skip_dropout: float = 0.0,
    ) -> Tensor:
        """(B, C, H, W) to (B, C, ceil(H / stride), ceil(W / stride)).

        Args:
            x: the source.
            weights: (O,), of the operations.
            edge: a scalar, the weight of the channels that bypass them.
            chosen: index of the only operation that is executed.
            skip_dropout: probability with which an element of the skip connection's output is dropped in training
                (P-DARTS, Chen et al., ICCV 2019, section 3.3).
        """
        own = x.shape[1] // self.partial
        mixed = self.mix(x[:, :own], weights, chosen, skip_dropout)
        if self.partial == 1:
            return mixed
        rest = self.bypass(x[:, own:])
        return _shuffle(torch.cat([mixed, rest if edge is None else edge * rest], dim=1), self.partial)

    def bypass(self, x: Tensor) -> Tensor:
        """What becomes of the channels that pass through no operation."""
        return x if self.stride == 1 else F.max_pool2d(x, 2, 2, ceil_mode=True)

    def mix(self, x: Tensor, weights: Tensor, chosen: int | None, skip_dropout: float) -> Tensor:
        terms = []
        for index, (name, operation) in enumerate(self.operations.items()):
            # Among others ``none`` adds nothing: its weight acts through the softmax alone.
            if index != chosen if chosen is not None else name == "none":
                continue
            out = operation(x)
            if name == "skip_connect" and skip_dropout:
                out = F.dropout(out, skip_dropout, self.training)
            terms.append(weights[index] * out)
        return reduce(torch.add, terms)


def _shuffle(x: Tensor, groups: int) -> Tensor:
    """Channel ``g * C / groups + i`` becomes channel ``i * groups + g`` (ShuffleNet, Zhang et al., CVPR 2018)."""
    return x.unflatten(1, (groups, -1)).transpose(1, 2).flatten(1, 2)


class SearchCell(Cell):
    """All candidate operations on all edges, weighted (Auto-ReID, equation 1).

    ``forward(before_last, last, mixture)``: edges in the order of :func:`genotype.cell_edges`.

    Attributes:
        skip_dropout: of :class:`MixedOperation`, on all edges; the search lowers it as it goes on.
    """

    def __init__(
        self,
        operations: Sequence[str],
        blocks: int,
        in_channels: tuple[int, int],
        channels: int,
        kind: str,
        stride: int,
        halve_first: bool,
        parts: int,
        partial: int = 1,
    ) -> None:
        super().__init__(in_channels, channels, kind, stride, halve_first, affine=False)
        self.blocks = blocks
        self.skip_dropout = 0.0
        self.edges = nn.ModuleList(
            MixedOperation(operations, channels, self.stride_from(source), parts, partial)
            for _, _, source in cell_edges(blocks)
        )

    def forward(self, before_last: Tensor, last: Tensor, mixture: Mixture) -> Tensor:
        inputs = self.inputs(before_last, last)
        plain = mixture.chosen is not None or self.is_observed()
        return self.edge_by_edge(inputs, mixture) if plain else self.source_by_source(inputs, mixture)

    def is_observed(self) -> bool:
        """Whether somebody waits for every module to be called, as torchreid's ``compute_model_complexity`` does."""
        return any(module._forward_hooks for module in self.edges[0].modules())

    def edge_by_edge(self, inputs: list[Tensor], mixture: Mixture) -> Tensor:
        """The plain form, for cells that execute one operation an edge; the oracle of :meth:`source_by_source`."""
        states = list(inputs)
        for edge, block, source in cell_edges(self.blocks):
            out = self.edges[edge](
                states[source],
                mixture.weights[edge],
                None if mixture.edges is None else mixture.edges[edge],
                None if mixture.chosen is None else mixture.chosen[edge],
                self.skip_dropout,
            )
            if source == 0:
                states.append(out)
            else:
                states[block + 2] = states[block + 2] + out
        return torch.cat(states[2:], dim=1)

    def source_by_source(self, inputs: list[Tensor], mixture: Mixture) -> Tensor:
        """The same, with what the edges from a source have in common computed at once."""
        states = list(inputs)
        sums: Tensor | None = None  # (B, n C, H, W): of the n blocks that are not complete yet, from the sources so far
        for source in range(self.blocks + 1):
            own = [edge for edge, _, start in cell_edges(self.blocks) if start == source]
            edges: list[Any] = [self.edges[edge] for edge in own]
            found = mix_edges(
                edges,
                states[source],
                mixture.weights[own],
                None if mixture.edges is None else mixture.edges[own],
                self.skip_dropout if self.training else 0.0,
            )
            sums = found if sums is None else sums + found
            if source > 0:
                channels = found.shape[1] // len(own)
                block, sums = sums.split([channels, sums.shape[1] - channels], dim=1)
                states.append(block.contiguous(memory_format=torch.channels_last))
        return torch.cat(states[2:], dim=1)


class DerivedCell(Cell):
    """A cell of a genotype: two operations a block, summed (Auto-ReID, equation 2)."""

    def __init__(
        self,
        genotype_cell: Sequence[Block],
        in_channels: tuple[int, int],
        channels: int,
        kind: str,
        stride: int,
        halve_first: bool,
        parts: int,
        drop_path: float,
    ) -> None:
        super().__init__(in_channels, channels, kind, stride, halve_first, affine=True)
        self.sources = [(first[1], second[1]) for first, second in genotype_cell]
        self.names = [name for block in genotype_cell for name, _ in block]
        self.operations = nn.ModuleList()
        for block in genotype_cell:
            for name, source in block:
                self.operations.append(build_operation(name, channels, self.stride_from(source), parts))
        self.drop_path = DropPath(drop_path)

    def forward(self, before_last: Tensor, last: Tensor) -> Tensor:
        states = self.inputs(before_last, last)
        for block, (first, second) in enumerate(self.sources):
            left, right = self.operations[2 * block], self.operations[2 * block + 1]
            states.append(self._apply_operation(left, states[first]) + self._apply_operation(right, states[second]))
        return torch.cat(states[2:], dim=1)

    def _apply_operation(self, operation: nn.Module, x: Tensor) -> Tensor:
        # An identity is never dropped, or a block could lose all its inputs (DARTS does the same).
        return operation(x) if isinstance(operation, nn.Identity) else self.drop_path(operation(x))


class DropPath(nn.Module):
    """Drops the whole branch for a sample with probability ``p`` in training (Larsson et al., ICLR 2017).

    What is kept is divided by ``1 - p``, so that the expectation stays the same.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0.0:
            return x
        keep = draw_rows(lambda rows: x.new_empty(rows, 1, 1, 1).bernoulli_(1.0 - self.p), x.shape[0])
        return x * keep / (1.0 - self.p)
