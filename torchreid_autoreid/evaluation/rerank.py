"""k-reciprocal re-ranking, sparse from end to end.

Source: Zhong, Zheng, Cao, Li, "Re-ranking Person Re-identification with k-reciprocal Encoding", CVPR 2017.

Legend: N items are the queries and, behind them, the gallery; R(i, k) the k-reciprocal neighbours of item i; V the
(N, N) encoding of R* (Eq. 7), a few dozen values a row; the Jaccard distance (Eq. 10) of two rows is 1 unless they
share a column, so an inverted index finds every pair that matters. The final distance is
(1 - lambda) * Jaccard + lambda * original (Eq. 12), the original divided by its largest value in each row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
import scipy.sparse as sp
import torch

from ..errors import UserError, short
from ..parallel.launch import OneProcess
from .approximate import NeighbourIndex, nearest_items
from .distances import check_metric, find_devices, full_precision
from .embeddings import as_array, as_features, check_count, check_dimensions, is_between
from .neighbours import Collection, Neighbourhood
from .pairwise import (
    BlockOf,
    Distances,
    FeatureDistances,
    MatrixDistances,
    Progress,
    RowsOf,
    ranges,
    ranges_within,
    scan,
)
from .ranking import Farthest, Nearest
from .space import Space, choose_space

DEFINITIONS = ("torchreid", "zhong")
SHARED_AT_ONCE = 1 << 22  # query-gallery pairs with a shared column that are held together
POSTINGS_AT_ONCE = 1 << 17
SUMS_AT_ONCE = 1 << 22  # cells of the table that sums the postings of some queries

ArrayOrTensor = TypeVar("ArrayOrTensor", np.ndarray, torch.Tensor)
PairDistances = Callable[[np.ndarray, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Reranking:
    """The parameters of k-reciprocal re-ranking.

    Args:
        k1, k2: sizes of the reciprocal and of the averaged neighbourhood; at least 1. k2 = 1 averages nothing.
        lambda_value: weight of the original distance, 0 .. 1.
        definition: 'torchreid' squares torchreid's distances ('cosine' and the squared 'euclidean') once more before
            they are used, as ``torchreid.utils.re_ranking`` does; 'zhong' takes the squared euclidean distance itself
            (of unit vectors for 'cosine'), as the paper and its own code do. Figures of Zhong et al. and of Luo et al.
            ("Bag of Tricks", CVPRW 2019) are of this kind; those made with torchreid's own command are of the other.
    """

    k1: int = 20
    k2: int = 6
    lambda_value: float = 0.3
    definition: str = "torchreid"

    def __post_init__(self) -> None:
        check_count("k1", self.k1, 1)
        check_count("k2", self.k2, 1)
        if not is_between(self.lambda_value, 0, 1):
            raise UserError(f"lambda_value is {short(self.lambda_value)}; give a value from 0 to 1")
        if self.definition not in DEFINITIONS:
            raise UserError(f"unknown definition {self.definition!r}; choose from {', '.join(DEFINITIONS)}")

    @property
    def num_neighbours(self) -> int:
        """How many nearest items of each item, itself included, are looked at."""
        return max(self.k1 + 1, self.k2)

    def check_gallery(self, num_gallery: int) -> None:
        """Raises a UserError for a neighbourhood larger than the gallery."""
        for name in ("k1", "k2"):
            if getattr(self, name) > num_gallery:
                raise UserError(f"{name} is {getattr(self, name)}, larger than the gallery of {num_gallery}; give less")


# --- the encoding V ----------------------------------------


def original(distances: ArrayOrTensor, farthest: ArrayOrTensor, definition: str) -> ArrayOrTensor:
    """Distances as re-ranking uses them: squared (or not, see ``Reranking``) and divided by the row's largest.

    Takes arrays or tensors that broadcast. A row of zeros stays zero, and rounding below zero is zero.
    """
    distances = distances.clip(0)
    distances /= farthest.clip(float(np.finfo(np.float32).tiny))
    if definition == "torchreid":
        distances *= distances  # after the division: squares of large or small features' distances leave float32
    return distances


def reciprocal(indices: np.ndarray) -> sp.csr_array:
    """(N, N) 0/1 matrix of the pairs that are in each other's list; ``indices`` is (N, k)."""
    n, k = indices.shape
    listed = sp.csr_array(
        (np.ones(n * k, dtype=np.float32), indices.reshape(-1), np.arange(0, n * k + 1, k)), shape=(n, n)
    )
    return listed.multiply(listed.T).tocsr()


def expanded_sets(indices: np.ndarray, k1: int) -> sp.csr_array:
    """(N, N) pattern of R*(i, k1): R(i, k1) with every R(j, k1 / 2) of a member j that overlaps it by 2/3 (Eq. 5)."""
    members = reciprocal(indices[:, : k1 + 1])
    halves = reciprocal(indices[:, : int(np.around(k1 / 2)) + 1])
    overlap = (members @ halves.T).multiply(members).tocoo()
    sizes = halves.sum(axis=1)
    admitted = overlap.data > 2.0 / 3 * sizes[overlap.col].astype(np.float64)
    added = sp.csr_array(
        (np.ones(admitted.sum(), dtype=np.float32), (overlap.row[admitted], overlap.col[admitted])), shape=members.shape
    )
    sets = (members + added @ halves).tocsr()
    sets.sort_indices()
    return sets


def encode(near: Neighbourhood, pair_distances: PairDistances, settings: Reranking) -> sp.csr_array:
    """(N, N) V: gaussian weights over R* (Eq. 7), rows of sum 1, averaged over the k2 nearest items (Eq. 11)."""
    n = len(near.indices)
    encoding = expanded_sets(near.indices, settings.k1)
    rows = np.repeat(np.arange(n), np.diff(encoding.indptr))
    distances = known_distances(near, rows, encoding.indices)
    unknown = np.flatnonzero(np.isnan(distances))
    distances[unknown] = pair_distances(rows[unknown], encoding.indices[unknown])
    weights = np.exp(-original(distances, near.farthest[rows], settings.definition))
    sums = np.bincount(rows, weights=weights, minlength=n)
    encoding.data = (weights / sums[rows]).astype(np.float32)
    return average_neighbours(encoding, near.indices, min(settings.k2, n))


def average_neighbours(encoding: sp.csr_array, indices: np.ndarray, k2: int) -> sp.csr_array:
    """V averaged over the k2 nearest items of each (Eq. 11)."""
    n = len(indices)
    if k2 == 1:
        return encoding
    average = sp.csr_array(
        (np.full(n * k2, 1 / k2, dtype=np.float32), indices[:, :k2].reshape(-1), np.arange(0, n * k2 + 1, k2)),
        shape=(n, n),
    )
    return (average @ encoding).tocsr()


def known_distances(near: Neighbourhood, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Distances of the pairs that the neighbour lists hold, NaN for the others."""
    n, k = near.indices.shape
    order = np.argsort(near.indices, axis=1)
    keys = (np.arange(n)[:, None] * n + np.take_along_axis(near.indices, order, 1)).reshape(-1)
    listed = np.take_along_axis(near.distances, order, 1).reshape(-1)
    wanted = rows.astype(np.int64) * n + columns
    places = np.minimum(np.searchsorted(keys, wanted), n * k - 1)
    return np.where(keys[places] == wanted, listed[places], np.float32(np.nan))


# --- the Jaccard distance ----------------------------------------


@dataclass(frozen=True)
class Shared:
    """1 - Jaccard distance of the pairs of query and gallery item that share a column of V, by row."""

    rows: np.ndarray
    columns: np.ndarray
    values: np.ndarray


class InvertedIndex:
    """For each column of V, the gallery items that have it."""

    def __init__(self, gallery: sp.csr_array):
        self.num_gallery = gallery.shape[0]
        self.lists = gallery.tocsc()
        self.lengths = np.diff(self.lists.indptr)

    def work(self, query: sp.csr_array) -> np.ndarray:
        """(Nq,) how many list entries each query reads: at least the number of items it shares a column with."""
        totals = np.concatenate([[0], np.cumsum(self.lengths[query.indices], dtype=np.int64)])
        return np.diff(totals[query.indptr])

    def shared(self, query: sp.csr_array) -> Shared:
        """The similarity m / (2 - m) of each query to each item, m = sum of min(V_q, V_g), where m > 0."""
        work = self.work(query)
        parts = []
        for first, end in ranges_within(work, POSTINGS_AT_ONCE):
            # Short lists: many queries, and as many columns for each as all of them have items together.
            occurring = max(1, min(self.num_gallery, int(work[first:end].sum())))
            for start, stop in ranges(end - first, max(1, SUMS_AT_ONCE // occurring)):
                parts.append(self._shared(query, first + start, first + stop))
        return Shared(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))

    def _shared(self, query: sp.csr_array, first: int, end: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        start, stop = query.indptr[first], query.indptr[end]
        columns, lengths = query.indices[start:stop], self.lengths[query.indices[start:stop]]
        rows = np.repeat(np.arange(end - first), np.diff(query.indptr[first : end + 1]))
        places = np.arange(lengths.sum()) + np.repeat(
            self.lists.indptr[columns] - (np.cumsum(lengths) - lengths), lengths
        )
        items = self.lists.indices[places]
        smaller = np.minimum(np.repeat(query.data[start:stop], lengths), self.lists.data[places])
        # Sum the minima of each (row, item) in a small dense table of the items that occur.
        occurs = np.zeros(self.num_gallery, dtype=bool)
        occurs[items] = True
        occurring = np.flatnonzero(occurs)
        compact = np.cumsum(occurs) - 1
        table = np.bincount(
            np.repeat(rows, lengths) * len(occurring) + compact[items],
            weights=smaller,
            minlength=(end - first) * len(occurring),
        )
        found = np.flatnonzero(table)
        sums = table[found].astype(np.float32)
        row, column = np.divmod(found, max(1, len(occurring)))
        return (row + first).astype(np.int32), occurring[column].astype(np.int32), sums / (2 - sums)


# --- final distances ----------------------------------------


class RerankedDistances:
    """Final distances, block by block, from the original ones and the shared pairs."""

    def __init__(self, base: Distances, farthest: np.ndarray, shared: Shared, settings: Reranking):
        self.base, self.settings = base, settings
        self.num_queries, self.num_gallery, self.devices = base.num_queries, base.num_gallery, base.devices
        self.farthest = torch.from_numpy(farthest)
        self.shared = sp.csr_array(
            (shared.values, (shared.rows, shared.columns)), shape=(self.num_queries, self.num_gallery)
        )

    def columns(self) -> Iterator[tuple[int, int, RowsOf]]:
        by_column = self.shared.tocsc()
        for start, stop, rows_of in self.base.columns():
            yield start, stop, partial(self._rows, rows_of, by_column[:, start:stop].tocsr())

    def _rows(self, rows_of: RowsOf, shared: sp.csr_array, device: torch.device) -> BlockOf:
        block_of = rows_of(device)
        farthest = self.farthest.to(device)

        def block(first: int, end: int) -> torch.Tensor:
            return self._final(block_of(first, end), farthest[first:end], shared[first:end])

        return block

    def _final(self, distances: torch.Tensor, farthest: torch.Tensor, shared: sp.csr_array) -> torch.Tensor:
        rest = 1 - self.settings.lambda_value
        final = original(distances, farthest[:, None], self.settings.definition)
        final.mul_(self.settings.lambda_value).add_(rest)
        pairs = shared.tocoo()
        row, column, values = (torch.from_numpy(x).to(final.device) for x in (pairs.row, pairs.col, pairs.data))
        final[row, column] -= rest * values
        return final

    def between(self, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        distances = torch.from_numpy(self.base.between(rows, columns))
        return self._final(distances, self.farthest[torch.from_numpy(rows)], self.shared[rows][:, columns]).numpy()


def reranked_parts(
    farthest: np.ndarray,
    encoding: sp.csr_array,
    own_gallery: slice,
    base: Callable[[int, int], Distances],
    num_queries: int,
    settings: Reranking,
    world: OneProcess,
    ends: Sequence[int] = (),
) -> Iterator[tuple[int, int, RerankedDistances]]:
    """(first query, end query, final distances to this process's gallery) of parts that fit in memory.

    A part also ends at each of ``ends``.
    """
    index = InvertedIndex(encoding[own_gallery])
    work = world.sum(index.work(encoding[:num_queries]))
    cuts = {end for _, end in ranges_within(work, SHARED_AT_ONCE)}
    cuts |= set(ends)
    first = 0
    for end in sorted(cuts):
        # No name keeps a part alive while the next is made.
        yield (
            first,
            end,
            RerankedDistances(base(first, end), farthest[first:end], index.shared(encoding[first:end]), settings),
        )
        first = end


def feature_parts(
    query: np.ndarray,
    gallery: np.ndarray,
    space: Space,
    settings: Reranking,
    devices: list[torch.device],
    world: OneProcess,
    ends: Sequence[int] = (),
    progress: Progress | None = None,
    graph: str | None = None,
    neighbours: NeighbourIndex | None = None,
) -> Iterator[tuple[int, int, RerankedDistances]]:
    """``reranked_parts`` from raw features; ``gallery`` is this process's."""
    collection = Collection(query, gallery, space, world)
    settings.check_gallery(sum(collection.sizes))
    k = min(settings.num_neighbours, len(collection))
    near = nearest_items(collection, devices, k, progress, graph, neighbours)
    encoding = encode(near, partial(collection.pair_distances, devices[0]), settings)
    own_gallery = slice(collection.shard_start, collection.shard_start + len(gallery))
    farthest = near.farthest
    del near

    def base(first: int, end: int) -> Distances:
        return FeatureDistances(query[first:end], gallery, space, devices)

    yield from reranked_parts(farthest, encoding, own_gallery, base, len(query), settings, world, ends)


class _Fill:
    """Observer: copies the blocks into a matrix."""

    def __init__(self, matrix: np.ndarray):
        self.matrix = matrix

    def add(self, row: int, column: int, block: torch.Tensor) -> None:
        self.matrix[row : row + block.shape[0], column : column + block.shape[1]] = block.cpu().numpy()

    def twin(self) -> _Fill:
        return self

    def merge(self, other: _Fill) -> None:
        pass  # twins fill one matrix


def _dense(parts: Iterator[tuple[int, int, RerankedDistances]], shape: tuple[int, int]) -> np.ndarray:
    matrix = np.empty(shape, dtype=np.float32)
    for first, end, distances in parts:
        scan(distances, [_Fill(matrix[first:end])])
        del distances  # before the next part is made
    return matrix


def k_reciprocal_distances(
    query_features: np.ndarray,
    gallery_features: np.ndarray,
    metric: str = "cosine",
    k1: int = 20,
    k2: int = 6,
    lambda_value: float = 0.3,
    definition: str = "torchreid",
    device: str = "cpu",
    progress: Progress | None = None,
) -> np.ndarray:
    """Re-ranked distances of every query to every gallery item, from their features.

    Args:
        query_features, gallery_features: (Nq, D) and (Ng, D).
        metric: 'cosine' or 'euclidean' (the squared distance, as in torchreid).
        k1, k2, lambda_value, definition: see ``Reranking``. With definition='torchreid' the result is that of
            torchreid's ``compute_distance_matrix`` and ``re_ranking``; with 'zhong', that of the paper.
        device: 'cpu' or 'cuda'.
        progress: called as progress(what is being done, pieces done, pieces in all).

    Returns:
        (Nq, Ng) float32: the only dense matrix made. ``evaluate(..., rerank=True)`` makes none.

    Raises:
        UserError: bad features or parameters, different dimensions, k1 or k2 larger than the gallery.

    Example:
        >>> x = np.random.default_rng(0).normal(size=(12, 4))
        >>> k_reciprocal_distances(x[:2], x[2:], k1=3, k2=2).shape
        (2, 10)
    """
    check_metric(metric)
    query, gallery = as_features(query_features), as_features(gallery_features)
    check_dimensions(query.shape[1], gallery.shape[1])
    settings = Reranking(k1, k2, lambda_value, definition)
    settings.check_gallery(len(gallery))
    devices = find_devices(device)
    with full_precision():
        space = choose_space(query, gallery, metric, near=partial(nearest_pairs, query, gallery))
        parts = feature_parts(query, gallery, space, settings, devices, OneProcess(), progress=progress)
        return _dense(parts, (len(query), len(gallery)))


def nearest_pairs(query: np.ndarray, gallery: np.ndarray, space: Space) -> tuple[np.ndarray, np.ndarray]:
    """(rows, columns) of some queries and their nearest gallery items."""
    rows = np.unique(np.linspace(0, len(query) - 1, 128).astype(np.int64))
    nearest = Nearest(len(rows), min(8, len(gallery)))
    scan(FeatureDistances(query[rows], gallery, space, [torch.device("cpu")]), [nearest])
    return np.repeat(rows, nearest.k), nearest.complete()[0].reshape(-1)


# --- torchreid's signature ----------------------------------------


class _AllPairs:
    """The rows of torchreid's ``original_dist`` before the division: the squared columns of [[qq, qg], [qg.T, gg]].

    Values are converted before they are squared, and scaled by a power of two where float32 does not hold the squares.
    """

    def __init__(self, q_g: np.ndarray, q_q: np.ndarray, g_g: np.ndarray):
        self.q_g, self.q_q, self.g_g = q_g, q_q, g_g
        self.devices = [torch.device("cpu")]
        self.num_queries = self.num_gallery = sum(q_g.shape)
        largest = max(max(abs(float(x.max())), abs(float(x.min()))) for x in (q_g, q_q, g_g))
        self.scale = 1.0 if not largest or 1e-15 < largest < 1e15 else float(np.exp2(-np.floor(np.log2(largest))))

    def square(self, distances: np.ndarray) -> np.ndarray:
        """Float32 squares of given distances."""
        kind = np.float32 if np.can_cast(distances.dtype, np.float32) and self.scale == 1 else np.float64
        values = distances.astype(kind)
        if self.scale != 1:
            values = np.multiply(values, self.scale)
        return np.square(values).astype(np.float32, copy=False)

    def columns(self) -> Iterator[tuple[int, int, RowsOf]]:
        yield 0, self.num_gallery, self._rows

    def _rows(self, device: torch.device) -> BlockOf:
        return lambda first, end: torch.from_numpy(self.rows(first, end))

    def rows(self, first: int, end: int) -> np.ndarray:
        """(end - first, N) float32 rows, whole."""
        nq = len(self.q_g)
        query, gallery = slice(first, min(end, nq)), slice(max(first - nq, 0), max(end - nq, 0))
        of_queries = np.concatenate([self.q_q[:, query].T, self.q_g[query]], axis=1)
        of_gallery = np.concatenate([self.q_g[:, gallery].T, self.g_g[:, gallery].T], axis=1)
        return np.ascontiguousarray(self.square(np.concatenate([of_queries, of_gallery])))

    def pair_distances(self, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """(P,) distances of chosen pairs: entry (column, row) of the whole matrix."""
        nq = len(self.q_g)
        values = np.empty(len(rows), dtype=np.result_type(self.q_g, self.q_q, self.g_g))
        for row_is_query in (True, False):
            for column_is_query in (True, False):
                some = ((rows < nq) == row_is_query) & ((columns < nq) == column_is_query)
                r, c = rows[some] - (0 if row_is_query else nq), columns[some] - (0 if column_is_query else nq)
                if row_is_query != column_is_query:
                    values[some] = self.q_g[r, c] if row_is_query else self.q_g[c, r]
                else:
                    values[some] = (self.q_q if row_is_query else self.g_g)[c, r]
        return self.square(values)

    def part(self, first: int, end: int) -> Distances:
        """Squared distances of some queries to the gallery."""
        return MatrixDistances(self.square(self.q_g[first:end]))


def re_ranking(
    q_g_dist: np.ndarray,
    q_q_dist: np.ndarray,
    g_g_dist: np.ndarray,
    k1: int = 20,
    k2: int = 6,
    lambda_value: float = 0.3,
) -> np.ndarray:
    """Re-ranked distances of three given matrices: a drop-in for ``torchreid.utils.re_ranking``.

    Args:
        q_g_dist, q_q_dist, g_g_dist: (Nq, Ng), (Nq, Nq), (Ng, Ng) distances, arrays or tensors. From features,
            ``k_reciprocal_distances`` needs none of them.
        k1, k2, lambda_value: see ``Reranking``; a neighbourhood larger than all items is all items, as in torchreid.

    Returns:
        (Nq, Ng) float32.

    Raises:
        UserError: matrices that do not fit together, NaN or infinity, bad parameters.

    Example:
        >>> x = np.random.default_rng(0).random(12)
        >>> d = np.abs(x[:, None] - x)
        >>> re_ranking(d[:3, 3:], d[:3, :3], d[3:, 3:], k1=3, k2=2).shape
        (3, 9)
    """
    q_g, q_q, g_g = as_array(q_g_dist, "q_g_dist"), as_array(q_q_dist, "q_q_dist"), as_array(g_g_dist, "g_g_dist")
    nq, ng = q_g.shape if q_g.ndim == 2 else (0, 0)
    if not nq or not ng or q_q.shape != (nq, nq) or g_g.shape != (ng, ng):
        raise UserError(
            f"q_g_dist, q_q_dist, g_g_dist have shapes {q_g.shape}, {q_q.shape}, {g_g.shape}; "
            "give (Nq, Ng), (Nq, Nq), (Ng, Ng)"
        )
    for name, matrix in (("q_g_dist", q_g), ("q_q_dist", q_q), ("g_g_dist", g_g)):
        if matrix.dtype.kind not in "fiu":
            raise UserError(f"{name} has type {matrix.dtype}; give real numbers")
        if not np.isfinite(matrix).all():
            raise UserError(f"{name} holds NaN or infinity; mend the features behind it")
    settings = Reranking(k1, k2, lambda_value, definition="zhong")  # ``_AllPairs`` squares already
    pairs = _AllPairs(q_g, q_q, g_g)
    n = nq + ng
    nearest, farthest = Nearest(n, min(settings.num_neighbours, n)), Farthest(n)
    scan(pairs, [nearest, farthest])
    indices, distances = nearest.complete()
    near = Neighbourhood(indices, distances, farthest.values.numpy())
    encoding = encode(near, pairs.pair_distances, settings)
    return _dense(
        reranked_parts(near.farthest, encoding, slice(nq, n), pairs.part, nq, settings, OneProcess()), (nq, ng)
    )
