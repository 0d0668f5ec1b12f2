"""How alphas become edge weights; one small class a strategy."""

from __future__ import annotations

from torch import Tensor

__all__ = ["STRATEGIES", "Darts"]


class Darts:
    """Softmax over the candidate operations of an edge (Liu et al., ICLR 2019, equation 2; Auto-ReID, equation 1)."""

    def weights(self, alphas: Tensor) -> Tensor:
        """(E, O) alphas to the (E, O) weights that the search network mixes its operations with."""
        return alphas.softmax(dim=-1)

    def probabilities(self, alphas: Tensor) -> Tensor:
        """(E, O) alphas to the (E, O) probabilities that a genotype is derived from; rows sum to 1."""
        return alphas.softmax(dim=-1)


#: name -> class, as in the key ``search.strategy``
STRATEGIES = {"darts": Darts}
