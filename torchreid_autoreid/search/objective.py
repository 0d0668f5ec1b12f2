"""What the alphas minimise: the retrieval loss, the penalties of a strategy, and those of a budget."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..space.networks import AutoReIDSearchNetwork
from ..space.strategies import EpochValues
from .budget import Budget
from .losses import RetrievalLoss

__all__ = ["AlphaObjective"]


class AlphaObjective:
    """The loss of the alphas on a batch of ``D_alpha``; it keeps its own figures.

    Args:
        network: the search network.
        loss: on logits, features and identities.
        measure: gives the figures of a batch by the parts of the loss, the logits and the identities.
        join: puts together the outputs and identities of all processes.
        gradient: of a scalar for the alphas, over all processes; it keeps the graph.
        dirichlet_weight: of the strategy's own regulariser.
        budget: limits on the cost, if any.
        renormalised: whether edges are ranked without the mass of ``none``.

    Attributes:
        values: what the schedule says for this epoch.
        figures: of the last batch.
        gradient_norms: of the alphas' gradient by part of the loss, at the first batch since it was set to ``None``.
    """

    def __init__(
        self,
        network: AutoReIDSearchNetwork,
        loss: RetrievalLoss,
        measure: Callable[[Mapping[str, Tensor], Tensor, Tensor], dict[str, float]],
        join: Callable[[Any], Any],
        gradient: Callable[[Tensor, Sequence[nn.Parameter]], list[Tensor]],
        dirichlet_weight: float = 0.0,
        budget: Budget | None = None,
        renormalised: bool = False,
    ) -> None:
        self.network, self.loss = network, loss
        self.measure, self.join, self.gradient = measure, join, gradient
        self.dirichlet_weight, self.budget, self.renormalised = dirichlet_weight, budget, renormalised
        self.values = EpochValues()
        self.figures: dict[str, float] = {}
        self.gradient_norms: dict[str, float] | None = None

    def __call__(self, outputs: tuple[Tensor, Tensor], identities: Tensor) -> Tensor:
        """A scalar, for ``(logits (B, K), features (B, D))`` and (B,) identities of this process."""
        outputs, identities = self.join((outputs, identities))
        total, parts = self.loss(outputs, identities)
        features = outputs[1].detach().float()
        spread = float((features - features.mean(dim=0)).norm(dim=1).mean())
        self.figures = self.measure(parts, outputs[0], identities) | {"feature_spread": spread}
        if self.gradient_norms is None:
            self.gradient_norms = self._gradient_norms(self.loss.parts(outputs, identities))
        penalty = self.network.penalty(self.values.beta_weight, self.dirichlet_weight)
        if penalty is not None:
            self.figures["penalty"] = float(penalty.detach())
            total = total + penalty
        if self.budget is not None:
            total = total + self.budget.penalty(self.network.strengths(self.renormalised)).to(total.dtype)
        return total

    def _gradient_norms(self, parts: Mapping[str, Tensor]) -> dict[str, float]:
        alphas = self.network.alphas()
        active = {name: part for name, part in parts.items() if part.requires_grad}
        norms = {
            name: float(torch.nn.utils.get_total_norm(self.gradient(part, alphas))) for name, part in active.items()
        }
        return {name: norm for name, norm in norms.items() if math.isfinite(norm)}  # float16 may overflow
