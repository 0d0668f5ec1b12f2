"""How alphas become edge weights: one small class a strategy, and their table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributions import Dirichlet, kl_divergence
from torch.nn import functional as F

__all__ = [
    "STRATEGIES",
    "Darts",
    "DrNas",
    "EpochValues",
    "Gdas",
    "Mixture",
    "PcDarts",
    "beta_penalty",
    "softmax_by_block",
]


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
    """Softmax over the candidate operations of an edge (Liu et al., ICLR 2019, equation 2; Auto-ReID, equation 1).

    Args:
        operations: names of the columns of the alphas.

    Attributes:
        partial: whether ``1 / K`` of the channels pass through the operations, and edges have alphas of their own.
        auxiliary_skip: the weight of DARTS−'s auxiliary skip connection, see :meth:`with_auxiliary_skip`.
        tau: the temperature of GDAS.
        alpha_lr: of Adam on the alphas, as the strategy's authors have it (Auto-ReID for ``darts``).
    """

    partial = False
    alpha_lr = 0.02

    def __init__(self, operations: Sequence[str]) -> None:
        self.operations = tuple(operations)
        self.auxiliary_skip = 0.0
        self.tau = 1.0

    def mixture(self, alphas: Tensor, edges: Tensor | None, training: bool) -> Mixture:
        """What the cells of a kind do in this forward pass.

        Args:
            alphas: (E, O).
            edges: (E,), alphas of the edges, where ``partial``.
            training: whether there is a draw, of the strategies that draw.
        """
        return Mixture(self.with_auxiliary_skip(alphas.softmax(dim=-1)))

    def probabilities(self, alphas: Tensor) -> Tensor:
        """(E, O) alphas to the (E, O) probabilities that a genotype is derived from; rows sum to 1."""
        return alphas.softmax(dim=-1)

    def edge_weights(self, edges: Tensor | None) -> Tensor | None:
        """(E,) alphas of edges to the (E,) factors of the strengths in the derivation."""
        return None

    def penalty(self, alphas: Tensor) -> Tensor | None:
        """The strategy's own regulariser, a scalar."""
        return None

    def with_auxiliary_skip(self, weights: Tensor) -> Tensor:
        """Adds ``beta`` to the weight of the skip connection (DARTS−, Chu et al., ICLR 2021, section 3).

        ``beta x + sum_o p_o o(x)``: with a way round that needs no alpha of its own, the alpha of the skip connection
        says only what the operation is worth. At stride 2 both share the factorised reduction of the skip connection.
        """
        if not self.auxiliary_skip:
            return weights
        added = torch.zeros_like(weights)
        added[:, self.operations.index("skip_connect")] = self.auxiliary_skip
        return weights + added


class Gdas(Darts):
    """One operation an edge, drawn by a hard Gumbel softmax (Dong and Yang, CVPR 2019, section 3.2).

    ``h = softmax((log p + g) / tau)`` with ``p = softmax(alpha)`` and Gumbel noise ``g``; forwards the one-hot vector
    of its maximum, backwards ``h``. Only the chosen operation is executed, so only its weight gets a gradient from the
    loss, which reaches all alphas of the edge through ``h``.

    In eval mode, where the held-out half is measured, nothing is drawn: each edge executes the operation that a
    derivation would keep on it, the most probable one other than ``none``.
    """

    alpha_lr = 3e-4

    def mixture(self, alphas: Tensor, edges: Tensor | None, training: bool) -> Mixture:
        if not training:
            barred = alphas.detach().clone()
            barred[:, self.operations.index("none")] = -torch.inf
            chosen = barred.argmax(dim=-1)
            return Mixture(_one_hot(chosen, alphas), chosen=tuple(chosen.tolist()))
        tiny = torch.finfo(alphas.dtype).tiny  # the logarithm of a drawn 0 would be infinite
        gumbel = -torch.empty_like(alphas).exponential_().clamp_min(tiny).log()
        soft = ((alphas.log_softmax(dim=-1) + gumbel) / self.tau).softmax(dim=-1)
        chosen = soft.argmax(dim=-1)
        return Mixture(_one_hot(chosen, alphas) - soft.detach() + soft, chosen=tuple(chosen.tolist()))


class PcDarts(Darts):
    """Partial channels with normalised edges (PC-DARTS, Xu et al., ICLR 2020, section 3).

    A ``1 / K`` of the channels is mixed as in DARTS, the others bypass the operations (section 3.2, equation 2; see
    :class:`~torchreid_autoreid.space.cells.MixedOperation`). A softmax over the edges that enter a block weighs both
    (section 3.3, equation 3); its parameters are alphas, and the derivation ranks by the product of both softmaxes.
    """

    partial = True
    alpha_lr = 6e-4

    def mixture(self, alphas: Tensor, edges: Tensor | None, training: bool) -> Mixture:
        assert edges is not None
        by_block = softmax_by_block(edges)
        return Mixture(by_block[:, None] * self.with_auxiliary_skip(alphas.softmax(dim=-1)), edges=by_block)

    def edge_weights(self, edges: Tensor | None) -> Tensor | None:
        return None if edges is None else softmax_by_block(edges)


class DrNas(Darts):
    """Weights drawn from a Dirichlet distribution (DrNAS, Chen et al., ICLR 2021, section 2).

    The concentration is ``elu(alpha) + 1``; gradients go through the draw (pathwise). The derivation, and eval mode,
    take the mean. The regulariser keeps the distribution near the symmetric one of concentration 1, by the
    Kullback-Leibler divergence, summed over the edges.
    """

    alpha_lr = 6e-4

    def concentration(self, alphas: Tensor) -> Tensor:
        # elu + 1 rounds to 0 where alpha is very negative, and a concentration of 0 is none.
        return (F.elu(alphas) + 1.0).clamp_min(1e-4)

    def mixture(self, alphas: Tensor, edges: Tensor | None, training: bool) -> Mixture:
        if not training:
            return Mixture(self.with_auxiliary_skip(self.probabilities(alphas)))
        drawn = Dirichlet(self.concentration(alphas), validate_args=False).rsample()
        return Mixture(self.with_auxiliary_skip(drawn))

    def probabilities(self, alphas: Tensor) -> Tensor:
        concentration = self.concentration(alphas)
        return concentration / concentration.sum(dim=-1, keepdim=True)

    def penalty(self, alphas: Tensor) -> Tensor | None:
        drawn_from = Dirichlet(self.concentration(alphas), validate_args=False)
        return kl_divergence(drawn_from, Dirichlet(torch.ones_like(alphas), validate_args=False)).sum()


#: name -> class, as in the key ``search.strategy``, which knows ``random`` besides
STRATEGIES: dict[str, type[Darts]] = {"darts": Darts, "gdas": Gdas, "pc_darts": PcDarts, "drnas": DrNas}


def softmax_by_block(edges: Tensor) -> Tensor:
    """(E,) alphas of edges, in the order of :func:`genotype.cell_edges`, to a softmax over those that enter a block.

    >>> softmax_by_block(torch.zeros(5))
    tensor([0.5000, 0.5000, 0.3333, 0.3333, 0.3333])
    """
    sizes: list[int] = []
    while sum(sizes) < len(edges):
        sizes.append(len(sizes) + 2)
    return torch.cat([part.softmax(dim=0) for part in edges.split(sizes)])


def beta_penalty(alphas: Tensor) -> Tensor:
    """``log sum_o exp(alpha_o)``, averaged over the edges (β-DARTS, Ye et al., CVPR 2022, section 3).

    Its gradient is ``softmax(alpha)``: it decays the weights of the operations, the large ones most.

    Args:
        alphas: (E, O).
    """
    return alphas.logsumexp(dim=-1).mean()


def _one_hot(chosen: Tensor, like: Tensor) -> Tensor:
    return torch.zeros_like(like).scatter_(-1, chosen[:, None], 1.0)


@dataclass(frozen=True)
class EpochValues:
    """Scheduled values for one epoch, see :class:`~torchreid_autoreid.search.schedule.Schedule`."""

    tau: float = 1.0
    auxiliary_skip: float = 0.0
    beta_weight: float = 0.0
    skip_dropout: float = 0.0
