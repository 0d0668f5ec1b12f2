"""What an evaluation answers."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from .embeddings import check_count
from .figures import FIGURES


@dataclass(frozen=True)
class RetrievalResult:
    """Figures of one evaluation; accuracies are fractions 0..1.

    Attributes:
        figures: means over the counted queries, by the names of :data:`~.figures.FIGURES`. With an approximate index
            they are those on what was retrieved (a true match that the index did not return counts as precision 0);
            ``exact`` is then False and ``to_dict()`` says ``mAP_on_retrieved``.
        cmc: (max_rank,) float64; cmc[r - 1] is the rank-r accuracy. Shorter when the gallery is smaller.
        num_valid_queries: queries with at least one true match; only these are counted.
        per_query: (Nq,) of each figure, NaN where the query is not counted.
        first_match: (Nq,) rank (from 1) of the first true match, 0 where not counted or not retrieved.
        topk_indices: (Nq, topk) gallery positions, nearest first, the query's own identity and camera removed; -1 where
            there are fewer. None unless ``topk`` was asked for.
        topk_distances: (Nq, topk) float32 distances of those, infinite where there are fewer.
        exact: whether every gallery item was compared.
        index: the faiss factory string, ``Flat`` for exact search.
        num_retrieved: how many items the approximate index returned for each query; None when exact.
        recall: recall@k of the approximate index against exact search on a sample of queries, by k; empty when exact.
        neighbours: the faiss factory string that the neighbours of re-ranking were found by, ``Flat`` for exact ones.
        neighbour_recall: share of the exact ones that were found, on a sample; None when exact or not measured.

    Example:
        >>> from torchreid_autoreid.evaluation import Embeddings, evaluate
        >>> side = Embeddings(np.eye(3, dtype=np.float32), [0, 1, 2], [0, 0, 0])
        >>> other = Embeddings(np.eye(3, dtype=np.float32), [0, 1, 2], [1, 1, 1])
        >>> evaluate(side, other).mAP
        1.0
    """

    figures: dict[str, float]
    cmc: np.ndarray
    num_valid_queries: int
    per_query: dict[str, np.ndarray]
    first_match: np.ndarray
    topk_indices: np.ndarray | None = None
    topk_distances: np.ndarray | None = None
    exact: bool = True
    index: str = "Flat"
    num_retrieved: int | None = None
    recall: dict[int, float] = field(default_factory=dict)
    neighbours: str = "Flat"
    neighbour_recall: float | None = None

    @property
    def mAP(self) -> float:
        """Mean average precision."""
        return self.figures["mAP"]

    @property
    def mINP(self) -> float:
        """Mean inverse negative penalty."""
        return self.figures["mINP"]

    @property
    def average_precision(self) -> np.ndarray:
        """(Nq,) AP of each query, NaN where the query is not counted."""
        return self.per_query["mAP"]

    def shown(self) -> dict[str, float]:
        """The figures that people look at, by their labels."""
        return {FIGURES[name].label: value for name, value in self.figures.items() if FIGURES[name].label}

    @property
    def rank1(self) -> float:
        """Rank-1 accuracy."""
        return float(self.cmc[0])

    def rank(self, r: int) -> float:
        """Rank-r accuracy; a rank beyond the curve equals its last value.

        Raises:
            UserError: if r is no rank, that is no whole number of at least 1.
        """
        check_count("the rank", r, 1)
        return float(self.cmc[min(r, len(self.cmc)) - 1])

    def __str__(self) -> str:
        """The figures as a table."""
        rows = [
            *((label, f"{value:.2%}") for label, value in self.shown().items()),
            *((f"rank-{r}", f"{self.rank(r):.2%}") for r in (1, 5, 10, 20) if r <= len(self.cmc)),
            *((f"recall@{k} against exact search", f"{value:.2%}") for k, value in self.recall.items()),
            ("queries with a true match", f"{self.num_valid_queries} of {len(self.average_precision)}"),
            ("index", self.index if self.exact else f"{self.index} (approximate)"),
            *self.neighbour_rows(),
        ]
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"{name:<{width}}  {value:>12}" for name, value in rows)

    def neighbour_rows(self) -> list[tuple[str, str]]:
        """What a table says of approximate neighbours; nothing of exact ones."""
        return neighbour_rows(self.neighbours, self.neighbour_recall) if self.neighbours != "Flat" else []

    def to_dict(self) -> dict:
        """All summary figures as plain JSON values; per-query arrays are left out."""
        suffix = "" if self.exact else "_on_retrieved"
        return {
            **{f"{name}{suffix}": value for name, value in self.figures.items() if FIGURES[name].label},
            **{f"rank{r}": self.rank(r) for r in (1, 5, 10, 20) if r <= len(self.cmc)},
            "cmc": self.cmc.tolist(),
            "num_queries": len(self.average_precision),
            "num_valid_queries": self.num_valid_queries,
            "exact": self.exact,
            "index": self.index,
            "num_retrieved": self.num_retrieved,
            "recall": {str(k): value for k, value in self.recall.items()},
            "neighbours": self.neighbours,
            "neighbour_recall": self.neighbour_recall,
        }


def neighbour_rows(factory: str, recall: float | None) -> list[tuple[str, str]]:
    """Rows of a table on neighbours that an index found."""
    rows = [("neighbours", f"{factory} (approximate)")]
    return rows if recall is None else [*rows, ("recall of neighbours", f"{recall:.2%}")]


def means(per_query: dict[str, np.ndarray]) -> dict[str, float]:
    """Of (Nq,) figures, over the queries that count."""
    return {name: float(values[~np.isnan(values)].mean()) for name, values in per_query.items()}
