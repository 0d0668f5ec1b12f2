"""One wiring of a cell; the search cell and the derived cell differ only in what they put on its edges."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import torch
from torch import Tensor, nn

from .genotype import Block, cell_edges
from .ops import DropPath, build_operation
from .part_aware import ReluConvNorm

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
    """One edge of the search cell: ``f(H) = sum_o p_o o(H)`` over the candidate operations."""

    def __init__(self, operations: Sequence[str], channels: int, stride: int, parts: int) -> None:
        super().__init__()
        self.operations = nn.ModuleDict(
            {name: build_operation(name, channels, stride, parts, affine=False) for name in operations}
        )

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        # `none` adds nothing: its weight acts through the softmax alone.
        terms = (w * op(x) for w, (name, op) in zip(weights, self.operations.items(), strict=True) if name != "none")
        return reduce(torch.add, terms)


class SearchCell(Cell):
    """All candidate operations on all edges, weighted (Auto-ReID, equation 1).

    ``forward(before_last, last, weights)``: weights ``(E, O)``, edges in the order of :func:`genotype.cell_edges`.
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
    ) -> None:
        super().__init__(in_channels, channels, kind, stride, halve_first, affine=False)
        self.blocks = blocks
        self.edges = nn.ModuleList(
            MixedOperation(operations, channels, self.stride_from(source), parts) for _, _, source in cell_edges(blocks)
        )

    def forward(self, before_last: Tensor, last: Tensor, weights: Tensor) -> Tensor:
        states = self.inputs(before_last, last)
        edges = iter(zip(self.edges, weights, strict=True))
        for _ in range(self.blocks):
            states.append(reduce(torch.add, [edge(x, w) for x, (edge, w) in zip(states, edges, strict=False)]))
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
