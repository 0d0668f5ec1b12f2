"""The figures of retrieval. Each is one function of the ranks of a query's true matches, and a line of the table.

A new figure needs nothing else: it appears in the result, its table and its JSON, in the log, and in the history.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

__all__ = ["FIGURES", "MatchRanks", "QueryFigure", "first_matches", "per_query"]


@dataclass(frozen=True)
class MatchRanks:
    """Where the true matches of the queries stand.

    Attributes:
        rows: (M,) the query of each true match that has a rank, ascending.
        ranks: (M,) its rank among the gallery items that count, from 1, ascending within a query.
        counts: (Nq,) true matches of each query, with those that an approximate index did not return.
        others: (Nq,) gallery items of other identities that count, likewise.
    """

    rows: np.ndarray
    ranks: np.ndarray
    counts: np.ndarray
    others: np.ndarray

    @property
    def found(self) -> np.ndarray:
        """(M,) how many true matches of the same query have at most this rank."""
        starts = np.searchsorted(self.rows, np.arange(len(self.counts)))
        return np.arange(1, len(self.ranks) + 1) - starts[self.rows]

    def mean(self, values: np.ndarray) -> np.ndarray:
        """(M,) values of true matches to (Nq,) means over all true matches of a query; NaN where there are none.

        One without a rank counts as 0.
        """
        with np.errstate(invalid="ignore"):
            return np.bincount(self.rows, weights=values, minlength=len(self.counts)) / np.where(
                self.counts > 0, self.counts, np.nan
            )


def average_precision(matches: MatchRanks) -> np.ndarray:
    """The mean over the true matches of the precision at each."""
    return matches.mean(matches.found / matches.ranks)


def trapezoid_precision(matches: MatchRanks) -> np.ndarray:
    """As Market-1501's own code: of the precision at each match and just before it, 1 before the first item."""
    ranks, found = matches.ranks, matches.found
    before = np.where(ranks > 1, (found - 1) / np.maximum(ranks - 1, 1), 1)
    return matches.mean((before + found / ranks) / 2)


def inverse_negative_penalty(matches: MatchRanks) -> np.ndarray:
    """The number of true matches over the rank of the last; 0 where one has no rank.

    Source: Ye et al., "Deep Learning for Person Re-identification: a Survey and Outlook", equation 19.
    """
    ranked = np.bincount(matches.rows, minlength=len(matches.counts))
    last = np.zeros(len(matches.counts))
    last[matches.rows] = matches.ranks  # ascending, so the last one stays
    with np.errstate(invalid="ignore", divide="ignore"):
        found = np.where(ranked == matches.counts, matches.counts / last, 0.0)
    return np.where(matches.counts > 0, found, np.nan)


def r_precision(matches: MatchRanks) -> np.ndarray:
    """The share of true matches among the R nearest, R being the number of true matches.

    Source: Manning et al., "Introduction to Information Retrieval", section 8.4.
    """
    return matches.mean((matches.ranks <= matches.counts[matches.rows]).astype(float))


def area_under_roc(matches: MatchRanks) -> np.ndarray:
    """The probability that a true match is nearer than an item of another identity.

    That is the area under the ROC curve of a query. Source: Hanley and McNeil, "The meaning and use of the area under a
    receiver operating characteristic (ROC) curve", Radiology 143, 1982.
    """
    nearer = matches.ranks - matches.found
    return matches.mean(1 - nearer / np.maximum(matches.others, 1)[matches.rows])


@dataclass(frozen=True)
class QueryFigure:
    """A figure that is the mean over the queries with a true match.

    Attributes:
        of_query: (Nq,) values of the queries, NaN for one without a true match.
        label: for people; nothing: only code asks for it.
    """

    of_query: Callable[[MatchRanks], np.ndarray]
    label: str = ""


#: by the name that JSON and history have
FIGURES = {
    "mAP": QueryFigure(average_precision, "mAP"),
    "mINP": QueryFigure(inverse_negative_penalty, "mINP"),
    "r_precision": QueryFigure(r_precision, "R-precision"),
    "auc": QueryFigure(area_under_roc, "AUC"),
    "trapezoid_mAP": QueryFigure(trapezoid_precision),
}


def per_query(matches: MatchRanks) -> dict[str, np.ndarray]:
    """All figures, (Nq,) each."""
    return {name: figure.of_query(matches) for name, figure in FIGURES.items()}


def first_matches(matches: MatchRanks) -> np.ndarray:
    """(Nq,) rank of the first true match, 0 where none has one."""
    first = np.zeros(len(matches.counts), dtype=np.int64)
    first[matches.rows[::-1]] = matches.ranks[::-1]  # the first one is written last
    return first
