"""How alphas become edge weights; one small class a strategy."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

__all__ = ["STRATEGIES", "Darts", "Mixture"]


@dataclass(frozen=True)
class Mixture:
    """What all cells of a kind do with their edges in one forward pass of the network.

    A strategy makes it from the alphas once a pass, so that all cells of a kind share one draw.

    Attributes:
        weights: (E, O), what the output of each operation is multiplied with; normalisation over edges and auxiliary
            skip connections are in it already. The column of ``none`` multiplies zeros.
        edges: (E,), what the channels that bypass the operations of an edge are multiplied with; ``None`` where all
            channels pass through the operations.
        chosen: the index of the one operation that is executed on each edge; ``None``: all are.
    """

    weights: Tensor
    edges: Tensor | None = None
    chosen: tuple[int, ...] | None = None


class Darts:
    """Softmax over the candidate operations of an edge (Liu et al., ICLR 2019, equation 2; Auto-ReID, equation 1)."""

    def mixture(self, alphas: Tensor, edges: Tensor | None, training: bool) -> Mixture:
        """(E, O) alphas, and (E,) alphas of edges, to what the cells of their kind do in this forward pass."""
        return Mixture(alphas.softmax(dim=-1))

    def probabilities(self, alphas: Tensor) -> Tensor:
        """(E, O) alphas to the (E, O) probabilities that a genotype is derived from; rows sum to 1."""
        return alphas.softmax(dim=-1)


#: name -> class, as in the key ``search.strategy``
STRATEGIES = {"darts": Darts}
