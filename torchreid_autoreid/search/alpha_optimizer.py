"""The optimiser of the alphas, whose rate and memory fit the length of the search."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..space.networks import AutoReIDSearchNetwork

__all__ = ["build_alpha_optimizer"]

_TRAVEL = 6.0  # how far Adam can move an alpha in the search of DARTS: 3e-4 in each of 50 times 390 steps
_MEMORIES = 10  # of the squared gradients, in a search


def build_alpha_optimizer(
    network: AutoReIDSearchNetwork,
    steps: int,
    lr: float = 0.0,
    betas: Sequence[float] = (0.5, 0.0),
    weight_decay: float = 5e-5,
) -> torch.optim.Adam:
    """Adam on the alphas of a search network.

    Args:
        network: the search network.
        steps: of the alphas in the whole search.
        lr: the rate; 0: that of the strategy's authors, or the one by which an alpha can still move by six in a search
            of few steps (Adam moves a parameter by at most about ``lr`` a step).
        betas: of Adam. A second of 0 is 0.999, or what remembers a tenth of the search, if that is less: a memory of a
            thousand steps in a search of two hundred keeps the first decision for ever.
        weight_decay: of Adam.
    """
    steps = max(1, steps)
    return torch.optim.Adam(
        network.alphas(),
        lr=lr or max(network.strategy.alpha_lr, _TRAVEL / steps),
        betas=(betas[0], betas[1] or min(0.999, max(0.5, 1.0 - _MEMORIES / steps))),
        weight_decay=weight_decay,
    )
