"""The nearest people of a query: each counts by the best of their vectors."""

from __future__ import annotations

from collections.abc import Iterator

import faiss
import numpy as np
import torch

from ..evaluation.embeddings import release
from .store import Snapshot

_ROWS = 16384  # of the gallery, and
_QUERIES = 128  # queries, compared at once
#: vectors from which, and bytes up to which, a gallery is kept in memory as 8-bit codes
_LEAST_CODED, _MOST_CODED = 20_000, 256 << 20
_CANDIDATES = (64, 512, 4096)  # tried in turn
_ROUNDING = 1e-5  # more than float32 inner products of unit vectors of up to 16,384 values are off


def best_by_person(queries: np.ndarray, snapshot: Snapshot) -> Iterator[tuple[int, torch.Tensor]]:
    """Yields (first query, (n, P) best score of each person) for blocks of unit queries (N, D)."""
    enrolled = torch.from_numpy(snapshot.person)
    for first in range(0, len(queries), _QUERIES):
        block = torch.from_numpy(np.ascontiguousarray(queries[first : first + _QUERIES]))
        best = torch.full((len(block), len(snapshot.people) + 1), -torch.inf)  # the last for removed rows
        for start in range(0, len(enrolled), _ROWS):
            rows = np.array(snapshot.vectors[start : start + _ROWS])
            person = enrolled[start : start + _ROWS] % best.shape[1]
            best.scatter_reduce_(1, person.expand(len(block), -1), block @ torch.from_numpy(rows).T, "amax")
            release(snapshot.vectors)
        yield first, best[:, :-1]


class Nearest:
    """Finds the nearest people of a snapshot, exactly."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot
        self._codes: Codes | None = None
        self._asked = False

    def people(self, queries: np.ndarray, top: int) -> tuple[np.ndarray, np.ndarray]:
        """(N, top) scores, descending, and places in ``snapshot.people``, of unit queries (N, D)."""
        top = min(top, len(self.snapshot.people))
        # Codes cost as much as a few queries, so that a single one does without.
        if self._asked and self._codes is None and len(queries) < _QUERIES:
            rows, dimension = self.snapshot.vectors.shape
            if rows >= _LEAST_CODED and rows * dimension <= _MOST_CODED:
                self._codes = Codes(self.snapshot)
        self._asked = True
        scores = np.empty((len(queries), top), dtype=np.float32)
        places = np.empty((len(queries), top), dtype=np.int64)
        left = np.arange(len(queries))
        if self._codes is not None and len(queries) < _QUERIES:
            found = [self._codes.people(query, top) for query in queries]
            for row, answer in enumerate(found):
                if answer is not None:
                    scores[row], places[row] = answer
            left = np.array([row for row, answer in enumerate(found) if answer is None], dtype=np.int64)
        if len(left):
            for first, best in best_by_person(queries[left], self.snapshot):
                values, columns = best.topk(top, dim=1)
                scores[left[first : first + len(best)]] = values.numpy()
                places[left[first : first + len(best)]] = columns.numpy()
        return scores, places


class Codes:
    """The vectors in 8 bits a value, and how far off the worst of them is.

    By Cauchy–Schwarz, |q·x − q·x'| ≤ |x − x'| for a unit query q and a vector x with the code x'. Of the rows that are
    not among the k best by their codes none scores more than the k-th of these plus the largest |x − x'|; as soon as as
    many people as are asked for score more than that in float32, they are the nearest.
    """

    def __init__(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot
        vectors = snapshot.vectors
        self.index = faiss.IndexScalarQuantizer(
            vectors.shape[1], faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT
        )
        blocks = range(0, len(vectors), _ROWS)
        ends = [(np.array(rows.min(0)), np.array(rows.max(0))) for rows in (vectors[i : i + _ROWS] for i in blocks)]
        low, high = (np.stack(values) for values in zip(*ends, strict=True))
        self.index.train(np.stack([low.min(0), high.max(0)]))  # the range of each value is all that it learns
        self.error = 0.0
        for start in blocks:
            rows = np.array(vectors[start : start + _ROWS])
            self.index.add(rows)
            off = rows - self.index.sa_decode(self.index.sa_encode(rows))
            self.error = max(self.error, float(np.linalg.norm(off, axis=1).max()))
        self.error += 2 * _ROUNDING

    def people(self, query: np.ndarray, top: int) -> tuple[np.ndarray, np.ndarray] | None:
        """(top,) scores and places, or nothing if the codes do not tell them."""
        for k in _CANDIDATES:
            coded, rows = self.index.search(query[None], min(k, self.index.ntotal))
            person = self.snapshot.person[rows[0]]
            rows, person = rows[0][person >= 0], person[person >= 0]
            exact = self.snapshot.vectors[rows] @ query
            order = np.lexsort((rows, -exact))
            _, first = np.unique(person[order], return_index=True)
            nearest = order[np.sort(first)[:top]]
            if len(nearest) == top and exact[nearest[-1]] > coded[0, -1] + self.error:
                return exact[nearest], person[nearest]
        return None
