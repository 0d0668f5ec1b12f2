"""What an evaluation answers."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from .embeddings import check_count


@dataclass(frozen=True)
class RetrievalResult:
    """Figures of one evaluation; accuracies are fractions 0..1.

    Attributes:
        mAP: mean average precision over the counted queries. With an approximate index it is the mAP on what was
            retrieved (a true match that the index did not return counts as precision 0); `exact` is then False and
            `to_dict()` names the figure `mAP_on_retrieved`.
        cmc: (max_rank,) float64; cmc[r - 1] is the rank-r accuracy. Shorter when the gallery is smaller.
        mINP: mean inverse negative penalty (Ye et al., "Deep Learning for Person Re-identification", Eq. 19).
        num_valid_queries: queries with at least one true match; only these are counted.
        average_precision: (Nq,) AP of each query, NaN where the query is not counted.
        inverse_negative_penalty: (Nq,) number of true matches / rank of the last one, NaN where not counted.
        first_match: (Nq,) rank (from 1) of the first true match, 0 where not counted or not retrieved.
        trapezoid_mAP: the mAP of Market-1501's own code, which averages the precision at each match and just before it.
        topk_indices: (Nq, topk) gallery positions, nearest first, the query's own identity and camera removed; -1 where
            there are fewer. None unless `topk` was asked for.
        topk_distances: (Nq, topk) float32 distances of those, infinite where there are fewer.
        exact: whether every gallery item was compared.
        index: the faiss factory string, `Flat` for exact search.
        num_retrieved: how many items the approximate index returned for each query; None when exact.
        recall: recall@k of the approximate index against exact search on a sample of queries, by k; empty when exact.

    Example:
        >>> from torchreid_autoreid.evaluation import Embeddings, evaluate
        >>> side = Embeddings(np.eye(3, dtype=np.float32), [0, 1, 2], [0, 0, 0])
        >>> other = Embeddings(np.eye(3, dtype=np.float32), [0, 1, 2], [1, 1, 1])
        >>> evaluate(side, other).mAP
        1.0
    """

    mAP: float
    cmc: np.ndarray
    mINP: float
    num_valid_queries: int
    average_precision: np.ndarray
    inverse_negative_penalty: np.ndarray
    first_match: np.ndarray
    trapezoid_mAP: float = float("nan")
    topk_indices: np.ndarray | None = None
    topk_distances: np.ndarray | None = None
    exact: bool = True
    index: str = "Flat"
    num_retrieved: int | None = None
    recall: dict[int, float] = field(default_factory=dict)

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
            ("mAP", f"{self.mAP:.2%}"),
            ("mINP", f"{self.mINP:.2%}"),
            *((f"rank-{r}", f"{self.rank(r):.2%}") for r in (1, 5, 10, 20) if r <= len(self.cmc)),
            *((f"recall@{k} against exact search", f"{value:.2%}") for k, value in self.recall.items()),
            ("queries with a true match", f"{self.num_valid_queries} of {len(self.average_precision)}"),
            ("index", self.index if self.exact else f"{self.index} (approximate)"),
        ]
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"{name:<{width}}  {value:>12}" for name, value in rows)

    def to_dict(self) -> dict:
        """All summary figures as plain JSON values; per-query arrays are left out."""
        suffix = "" if self.exact else "_on_retrieved"
        return {
            f"mAP{suffix}": self.mAP,
            f"mINP{suffix}": self.mINP,
            **{f"rank{r}": self.rank(r) for r in (1, 5, 10, 20) if r <= len(self.cmc)},
            "cmc": self.cmc.tolist(),
            "num_queries": len(self.average_precision),
            "num_valid_queries": self.num_valid_queries,
            "exact": self.exact,
            "index": self.index,
            "num_retrieved": self.num_retrieved,
            "recall": {str(k): value for k, value in self.recall.items()},
        }
