"""Clusters of unlabelled features: DBSCAN or HDBSCAN on the k-reciprocal Jaccard distance, sparse from end to end.

Sources: Ge, Zhu, Chen, Zhao, Li, "Self-paced Contrastive Learning with Hybrid Memory for Domain Adaptive Object Re-ID"
(SpCL), NeurIPS 2020, and its code; Ester, Kriegel, Sander, Xu, "A Density-Based Algorithm for Discovering Clusters"
(DBSCAN), KDD 1996; Campello, Moulavi, Sander, "Density-Based Clustering Based on Hierarchical Density Estimates"
(HDBSCAN), PAKDD 2013. Labels of DBSCAN are those of SpCL's dense distance and scikit-learn's DBSCAN, and neither is
needed: two items share a column of the encoding or are at distance 1, which is beyond any radius. HDBSCAN is
scikit-learn's, on the pairs that share a column.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import scipy.sparse as sp
from scipy.sparse.csgraph import connected_components

from ..errors import UserError, short
from ..parallel.launch import OneProcess
from .approximate import NeighbourIndex, nearest_items
from .distances import check_metric, find_devices, full_precision
from .embeddings import as_array, as_features, as_labels, check_count, is_between
from .neighbours import Collection, Neighbourhood
from .pairwise import Progress, ranges_within
from .rerank import (
    SHARED_AT_ONCE,
    InvertedIndex,
    PairDistances,
    average_neighbours,
    expanded_sets,
    known_distances,
    nearest_pairs,
)
from .space import choose_space

METHODS = ("dbscan", "hdbscan")
NOISE = -1
MOST_PAIRS = 1 << 27  # that HDBSCAN holds, at about 50 bytes each
SMALLEST = 1e-6  # of HDBSCAN's distances: SciPy's spanning tree takes 0 for no edge


def check_clustering(k1: Any, k2: Any, min_samples: Any, eps: Any) -> None:
    """Refuses numbers that :func:`cluster` cannot work with, whatever the features."""
    if not is_between(eps, 0, 1, ends=False):
        raise UserError(f"eps is {short(eps)}; give a Jaccard distance between 0 and 1")
    for name, value in (("min_samples", min_samples), ("k1", k1), ("k2", k2)):
        check_count(name, value, 1)


def cluster(
    features: Any,
    method: str = "dbscan",
    eps: float | None = None,
    min_samples: int = 4,
    k1: int = 30,
    k2: int = 6,
    metric: str = "cosine",
    device: str = "cpu",
    progress: Progress | None = None,
    graph: str | None = None,
    neighbours: NeighbourIndex | None = None,
) -> np.ndarray:
    """Pseudo-labels of features.

    Args:
        features: (N, D), in memory or memory-mapped.
        method: 'dbscan', or 'hdbscan', which finds a radius for each cluster and needs scikit-learn.
        eps: of DBSCAN: Jaccard distance up to which two items are neighbours, between 0 and 1; 0.6 if not given.
        min_samples: neighbours, itself included, that make an item the core of a cluster. HDBSCAN's smallest cluster
            has as many items, and at least 2.
        k1: nearest items, itself included, of which the k-reciprocal sets are made.
        k2: nearest items over which the encoding is averaged.
        metric: 'cosine' as in SpCL, or 'euclidean'.
        device: 'cpu' or 'cuda'.
        progress: called as progress(what is being done, pieces done, pieces in all).
        graph, neighbours: as in ``evaluate``.

    Returns:
        (N,) labels from 0, in order of the first core item of each cluster (HDBSCAN: of the first item); -1 for noise.

    Raises:
        UserError: bad features or parameters; for HDBSCAN, more than 134 million pairs that share a neighbour, or no
            scikit-learn.

    Example:
        >>> random = np.random.default_rng(0)
        >>> centres = np.repeat(np.eye(4)[:2], 10, axis=0)
        >>> cluster(centres + 0.01 * random.normal(size=(20, 4)), k1=8, k2=2).tolist() == [0] * 10 + [1] * 10
        True
    """
    check_metric(metric)
    if method not in METHODS:
        raise UserError(f"unknown method {method!r}; choose from {', '.join(METHODS)}")
    if method == "hdbscan":
        if eps is not None:
            raise UserError(f"eps is {short(eps)}, and hdbscan finds its own; leave eps out, or use method='dbscan'")
        _scikit_learn()
    eps = 0.6 if eps is None else eps
    check_clustering(k1, k2, min_samples, eps)
    features = as_features(features)
    for name, value in (("k1", k1), ("k2", k2)):
        if value > len(features):
            raise UserError(f"{name} is {value}, more than the {len(features)} items; give less")
    devices = find_devices(device)
    with full_precision():
        space = choose_space(features, features, metric, near=partial(nearest_pairs, features, features))
        collection = Collection(features[:0], features, space, OneProcess())
        near = nearest_items(collection, devices, max(k1, k2), progress, graph, neighbours)
        encoding = _encode(near, partial(collection.pair_distances, devices[0]), k1, k2, metric)
    del near
    if method == "hdbscan":
        return _hdbscan(*_close_pairs(encoding, 1.0, progress, MOST_PAIRS), len(features), min_samples)
    row, column, _ = _close_pairs(encoding, eps, progress)
    pattern = sp.csr_array((np.ones(len(row), dtype=np.int8), (row, column)), shape=encoding.shape)
    return _dbscan(pattern, min_samples)


def _encode(near: Neighbourhood, pair_distances: PairDistances, k1: int, k2: int, metric: str) -> sp.csr_array:
    """(N, N) V of SpCL: exp(-squared distance) over the expanded sets, rows of sum 1, averaged over k2 neighbours.

    SpCL finds k1 neighbours where re-ranking takes k1 + 1, and does not divide distances by their largest.
    """
    encoding = expanded_sets(near.indices[:, :k1], k1)
    rows = np.repeat(np.arange(len(near.indices)), np.diff(encoding.indptr))
    distances = known_distances(near, rows, encoding.indices)
    unknown = np.flatnonzero(np.isnan(distances))
    distances[unknown] = pair_distances(rows[unknown], encoding.indices[unknown])
    squared = distances.clip(0) * (2 if metric == "cosine" else 1)  # |a - b|^2 of unit vectors
    nearest = np.full(len(near.indices), np.inf, dtype=np.float32)
    np.minimum.at(nearest, rows, squared)
    weights = np.exp((nearest[rows] - squared).astype(np.float64))  # softmax, which large distances leave finite
    sums = np.bincount(rows, weights=weights, minlength=len(near.indices))
    encoding.data = (weights / sums[rows]).astype(np.float32)
    return average_neighbours(encoding, near.indices, k2)


def _close_pairs(
    encoding: sp.csr_array, eps: float, progress: Progress | None, most: int | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(rows, columns, distances) of the pairs at a Jaccard distance of at most eps, of those that share a column.

    More than ``most`` pairs are an error.
    """
    index = InvertedIndex(encoding)
    parts = ranges_within(index.work(encoding), SHARED_AT_ONCE)
    found: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    count = 0
    for done, (first, end) in enumerate(parts, 1):
        shared = index.shared(encoding[first:end])
        distances = 1 - shared.values
        close = distances <= np.float32(eps)
        found.append((shared.rows[close] + first, shared.columns[close], distances[close]))
        count += len(found[-1][0])
        if most is not None and count > most:
            raise UserError(
                f"hdbscan holds all pairs that share a neighbour, and the first {end} of {encoding.shape[0]} items "
                f"have more than {most}; use method='dbscan', or fewer items"
            )
        if progress is not None:
            progress("clustering", done, len(parts))
    row, column, values = (np.concatenate(arrays) for arrays in zip(*found, strict=True))
    return row, column, values


def _dbscan(neighbours: sp.csr_array, min_samples: int) -> np.ndarray:
    """(N,) labels. Clusters are the components of the core items; an item at the border joins the first it touches."""
    core = np.diff(neighbours.indptr) >= min_samples
    labels = np.full(len(core), NOISE, dtype=np.int64)
    chosen = np.flatnonzero(core)
    if not len(chosen):
        return labels
    # Components are numbered by their first item, as the clusters are.
    _, labels[chosen] = connected_components(neighbours[chosen][:, chosen], directed=False)
    border = np.flatnonzero(~core)
    touching = neighbours[border][:, chosen].tocoo()
    first = np.full(len(border), np.iinfo(np.int64).max)
    np.minimum.at(first, touching.row, labels[chosen][touching.col])
    found = first < np.iinfo(np.int64).max
    labels[border[found]] = first[found]
    return labels


def _hdbscan(row: np.ndarray, column: np.ndarray, distances: np.ndarray, n: int, min_samples: int) -> np.ndarray:
    """(N,) labels of scikit-learn's HDBSCAN on the distances of the pairs given; those of all others are 1.

    Where distances tie, its labels depend on the order of the items, of dense distances too.
    """
    smallest = max(2, min_samples)
    if n < smallest:
        return np.full(n, NOISE, dtype=np.int64)
    found = _scikit_learn().HDBSCAN(
        min_cluster_size=smallest, min_samples=min_samples, metric="precomputed", copy=False
    )
    return _in_order(found.fit_predict(_hanging_together(row, column, distances, n, min_samples)))


def _hanging_together(
    row: np.ndarray, column: np.ndarray, distances: np.ndarray, n: int, min_samples: int
) -> sp.csr_array:
    """(N, N) sparse distances with the core distances and the smallest spanning tree of the dense ones.

    scikit-learn asks that each row has ``min_samples`` values and that all items hang together. Pairs of an item with
    those behind it, round the end, see to both: at distance 1, as far apart as all that is left out.
    """
    others, own = row != column, np.arange(n)  # among many copies, an item may not be one of its own nearest
    values = np.r_[distances[others].clip(SMALLEST), np.full(n, SMALLEST)].astype(np.float64)
    near = sp.csr_array((values, (np.r_[row[others], own], np.r_[column[others], own])), shape=(n, n))
    behind = min(min_samples, n - 1)
    first = np.repeat(np.arange(n), behind)
    second = (first + np.tile(np.arange(1, behind + 1), n)) % n
    ring = sp.csr_array((np.ones(2 * len(first)), (np.r_[first, second], np.r_[second, first])), shape=(n, n))
    ring.data[:] = 1  # what is there twice has been added up
    known = ring.multiply(near > 0)
    return (near + (ring - known)).tocsr()


def _in_order(labels: np.ndarray) -> np.ndarray:
    """The labels, numbered by the first item of each."""
    kept = labels >= 0
    _, first, code = np.unique(labels[kept], return_index=True, return_inverse=True)
    ordered = np.full(len(labels), NOISE, dtype=np.int64)
    ordered[kept] = np.argsort(np.argsort(first))[code]
    return ordered


def _scikit_learn() -> Any:
    try:
        from sklearn import cluster as found
    except ImportError as error:
        raise UserError("method='hdbscan' needs scikit-learn 1.3 or later; pip install scikit-learn") from error
    if not hasattr(found, "HDBSCAN"):
        raise UserError("this scikit-learn has no HDBSCAN; pip install 'scikit-learn>=1.3'")
    return found


# --- against the truth ----------------------------------------


@dataclass(frozen=True)
class Agreement:
    """How clusters agree with identities; each item of noise is a cluster of its own.

    Attributes:
        ari: adjusted Rand index (Hubert and Arabie, 1985).
        nmi: mutual information over the mean of both entropies.
        precision, recall, f: of the pairs that are put together.
        num_clusters, num_noise: clusters found, and items in none.
    """

    ari: float
    nmi: float
    precision: float
    recall: float
    f: float
    num_clusters: int
    num_noise: int


def compare_clusters(labels: Any, pids: Any) -> Agreement:
    """Compares pseudo-labels with identities.

    Example:
        >>> compare_clusters([0, 0, 1, 1], [5, 5, 7, 7]).ari
        1.0
    """
    pids = as_array(pids, "pids").reshape(-1)
    if not len(pids):
        raise UserError("there are no items to compare; give at least one")
    pids = as_labels(pids, "pids", len(pids))
    labels = as_labels(labels, "labels", len(pids))
    noise = labels == NOISE
    alone = labels.copy()
    alone[noise] = labels.max(initial=0) + 1 + np.arange(noise.sum())
    _, cluster_of = np.unique(alone, return_inverse=True)
    _, pid_of = np.unique(pids, return_inverse=True)
    table = sp.csr_array((np.ones(len(pids)), (cluster_of, pid_of)))
    table.sum_duplicates()
    together, of_clusters, of_pids = table.data, table.sum(axis=1), table.sum(axis=0)
    n = float(len(pids))
    right, found, wanted = (float((x * (x - 1)).sum() / 2) for x in (together, of_clusters, of_pids))
    chance = found * wanted / (n * (n - 1) / 2) if n > 1 else 0.0
    most = (found + wanted) / 2
    cells = table.tocoo()
    mutual = float((together / n * np.log(n * together / (of_clusters[cells.row] * of_pids[cells.col]))).sum())
    entropy = (_entropy(of_clusters / n) + _entropy(of_pids / n)) / 2
    precision, recall = (right / x if x else 1.0 for x in (found, wanted))
    return Agreement(
        ari=(right - chance) / (most - chance) if most != chance else 1.0,
        nmi=max(0.0, mutual / entropy) if entropy else 1.0,
        precision=precision,
        recall=recall,
        f=2 * precision * recall / (precision + recall) if precision + recall else 0.0,
        num_clusters=len(np.unique(labels[~noise])),
        num_noise=int(noise.sum()),
    )


def _entropy(shares: np.ndarray) -> float:
    return float(-(shares * np.log(shares)).sum())
