"""Successive halving: many candidates are trained for a moment, and the better ones go on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import UserError

__all__ = ["Rung", "annealed", "blind_draws", "check_draws", "check_rungs", "own_epochs", "survivors", "total_epochs"]


@dataclass(frozen=True)
class Rung:
    """One round of successive halving (Jamieson and Talwalkar, AISTATS 2016, algorithm 1).

    Attributes:
        candidates: how many are trained in this rung.
        epochs: for which each of them has been trained at its end, those of earlier rungs included.
    """

    candidates: int
    epochs: int


def check_rungs(rungs: Sequence[Rung]) -> None:
    """Raises UserError unless epochs rise from rung to rung, and candidates do not."""
    if not rungs:
        raise UserError(
            "search.rung_candidates and search.rung_epochs are empty; give a number for each rung, such as [9,3] and "
            "[9,27]"
        )
    if min(min(rung.candidates, rung.epochs) for rung in rungs) < 1:
        raise UserError(
            "search.rung_candidates and search.rung_epochs need at least one candidate and one epoch in each rung, "
            f"not {_text(rungs)}"
        )
    for one, other in zip(rungs, rungs[1:], strict=False):
        if other.candidates > one.candidates or other.epochs <= one.epochs:
            raise UserError(
                f"from rung to rung there must be no more candidates, and more epochs, not {_text(rungs)}; "
                "set search.rung_candidates and search.rung_epochs, such as [9,3] and [9,27]"
            )


def check_draws(draws: int, candidates: int) -> None:
    """Raises UserError unless some candidates are left for the predictor."""
    if draws >= candidates:
        raise UserError(
            f"search.predictor_draws {draws} leaves none of {candidates} candidates to the predictor; lower it, or "
            "raise train.max_epoch"
        )


def total_epochs(rungs: Sequence[Rung]) -> int:
    """Epochs of all candidates in all rungs; survivors keep their weights, so they are trained for what is missing.

    >>> total_epochs([Rung(27, 1), Rung(9, 3), Rung(3, 9)])
    63
    """
    return sum(rung.candidates * epochs for rung, epochs in zip(rungs, own_epochs(rungs), strict=True))


def survivors(candidates: Sequence[int], scores: Sequence[float], keep: int) -> list[int]:
    """The ``keep`` candidates with the highest scores, the best first; ties go to the earlier one.

    >>> survivors([3, 5, 8], [0.1, 0.3, 0.3], 2)
    [5, 8]
    """
    order = sorted(range(len(candidates)), key=lambda place: (-scores[place], place))
    return [candidates[place] for place in order[:keep]]


def annealed(share: float, warmup: float = 0.0, warmup_factor: float = 0.1, least: float = 0.0) -> float:
    """The learning rate as a factor of the first one: a linear warm-up, then a cosine, step by step.

    A candidate of one epoch has to be annealed within it: a network whose rate has never fallen tells little about what
    it is worth.

    Args:
        share: of the training that is done, in [0, 1).
        warmup: share of the training in which the rate rises.
        warmup_factor: where it begins to rise.
        least: where the cosine ends.

    >>> annealed(0.0), annealed(0.5), annealed(0.05, warmup=0.1)
    (1.0, 0.5, 0.55)
    """
    if share < warmup:
        return warmup_factor + (1.0 - warmup_factor) * share / warmup
    return least + (1.0 - least) * 0.5 * (1.0 + math.cos(math.pi * (share - warmup) / (1.0 - warmup)))


def blind_draws(scores: Sequence[float]) -> tuple[float, float]:
    """The mean of the first rung's scores and the half width of its 95 % interval (Student's t).

    >>> blind_draws([0.3, 0.3, 0.3])
    (0.3, 0.0)
    """
    from scipy.stats import t

    n = len(scores)
    mean = math.fsum(scores) / n
    if n < 2:
        return mean, math.nan
    deviation = math.sqrt(math.fsum((score - mean) ** 2 for score in scores) / (n - 1))
    return mean, float(t.ppf(0.975, n - 1)) * deviation / math.sqrt(n)


def own_epochs(rungs: Sequence[Rung]) -> list[int]:
    """Epochs of a turn in each rung: what survivors are trained for besides what they have been."""
    return [rung.epochs - before for rung, before in zip(rungs, [0, *(rung.epochs for rung in rungs)], strict=False)]


def _text(rungs: Sequence[Rung]) -> str:
    return ", ".join(f"{rung.candidates} x {rung.epochs}" for rung in rungs)
