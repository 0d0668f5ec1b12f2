"""The threshold above which only so many strangers score, from the best scores of people who are no strangers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Impostors:
    """What each probe, a vector of somebody enrolled, scores with the others.

    Attributes:
        person: (n,) whose vector it is.
        other: (n,) the most similar other person.
        score: (n,) its score with that person.
        next_score: (n,) the best score with anybody but these two.
    """

    person: np.ndarray
    other: np.ndarray
    score: np.ndarray
    next_score: np.ndarray


def quantile(scores: np.ndarray, far: float) -> float:
    """The (k + 1)-th largest of n scores, k = ⌊far · (n + 1)⌋.

    One more score of the same distribution is larger with a probability of at most ``far`` (Vovk, Gammerman, Shafer,
    "Algorithmic Learning in a Random World", 2005, section 2.1).

    >>> quantile(np.arange(99), 0.05)
    93.0
    """
    return float(np.sort(scores)[::-1][int(far * (len(scores) + 1))])


def threshold_of_enrolled(impostors: Impostors, far: float) -> float:
    """The threshold for strangers, from people who are each other's.

    The quantile of ``impostors.score`` would let too many strangers pass. Whoever resembles a stranger most would score
    high too if the stranger were enrolled, and does not, because he is not: high scores come in pairs, of which a
    stranger takes both away. So each person is made a stranger in turn, as in a jackknife: all vectors of that person
    are removed, probes and enrolled ones, and the share of them that passes is counted. Of the order statistics, the
    lowest is taken for which that share is at most ``far``.
    """
    order = np.argsort(-impostors.score, kind="stable")
    allowed = far * (len(order) + 1)
    most = int(allowed)
    top = order[: 2 * most + 200]  # nothing below takes part, unless one person is like most of these
    person, other, score, lower = (getattr(impostors, name)[top] for name in ("person", "other", "score", "next_score"))

    limits = []  # for each person: what the k best of the others score, and its own scores
    for stranger in np.unique(person):
        left = person != stranger
        others = np.where(other[left] == stranger, lower[left], score[left])
        limits.append((np.sort(others)[::-1][: most + 1], score[~left]))

    def passing(k: int) -> int:
        return sum(len(own) if len(others) <= k else int((own > others[k]).sum()) for others, own in limits)

    low, high = 0, most  # the more scores may pass, the more strangers do
    while low < high:
        middle = (low + high + 1) // 2
        if passing(middle) <= allowed:
            low = middle
        else:
            high = middle - 1
    return float(score[low])
