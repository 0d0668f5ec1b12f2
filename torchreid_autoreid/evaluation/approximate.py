"""Nearest neighbours of all items by a faiss index, which may miss some, with the share that it finds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from ..errors import UserError, short
from .distances import distance_block, pair_distances
from .embeddings import check_count
from .index import RetrievalIndex
from .neighbours import Collection, Items, Neighbourhood
from .pairwise import FeatureDistances, Progress, ranges, scan
from .ranking import NONE, Nearest, item_keys, key_positions
from .space import CPU

ROWS_AT_ONCE = 1 << 12
PAIRS_AT_ONCE = 1 << 14
FAR_ITEMS = 4096  # among which the farthest of each item is looked for


@dataclass
class NeighbourIndex:
    """Finds the nearest neighbours that re-ranking and clusters start from by a faiss index, not exactly.

    Distances of what is found are exact. An item of which the index finds fewer neighbours than are needed is compared
    with all others. The farthest distance of an item, by which re-ranking divides, is the largest to 4,096 items.

    Args:
        factory: a faiss factory string, such as ``IVF1024,Flat`` or ``HNSW32``.
        search_parameters: as faiss names them: 'nprobe=32', 'efSearch=128'. Without them, an inverted file visits 16 of
            its lists.
        recall_sample: items whose neighbours are compared with the exact ones; 0 compares none.
        seed: chooses these, and the vectors that the index is trained on.

    Attributes:
        recall: share of the exact neighbours of the sample that were found; None before a search, or without a sample.

    Example:
        >>> from torchreid_autoreid.evaluation import cluster
        >>> index = NeighbourIndex("IVF4,Flat", "nprobe=4")
        >>> features = np.random.default_rng(0).normal(size=(200, 8))
        >>> bool((cluster(features, k1=9, neighbours=index) == cluster(features, k1=9)).all()), index.recall
        (True, 1.0)
    """

    factory: str
    search_parameters: str = ""
    recall_sample: int = 100
    seed: int = 0
    recall: float | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        check_count("recall_sample", self.recall_sample, 0)
        check_count("seed", self.seed, 0)

    def neighbourhood(self, collection: Collection, k: int, progress: Progress | None = None) -> Neighbourhood:
        """What the index finds of the k nearest of every item; sets ``recall``.

        Raises:
            UserError: a factory string or parameters that faiss refuses, too few items for them, several processes.
        """
        if collection.world.size > 1:
            raise UserError(f"neighbours of {self.factory!r} are found in one process; leave them out, or run there")
        head, shard = collection.head, collection.shard
        features = np.concatenate([head, shard]) if len(head) else shard
        index = RetrievalIndex.build(features, self.factory, collection.space.metric, "cpu", self.seed, progress)
        if self.search_parameters:
            index.set_parameters(self.search_parameters)
        else:
            index.visit_more_lists()
        return _Search(features, collection, k).by(index, self, progress)


@dataclass
class _Search:
    """The search for the k nearest of all items of a collection."""

    features: np.ndarray
    collection: Collection
    k: int

    def by(self, index: RetrievalIndex, settings: NeighbourIndex, progress: Progress | None) -> Neighbourhood:
        n = len(self.features)
        nearest = Nearest(n, self.k)
        for first, end in ranges(n, ROWS_AT_ONCE):
            found = torch.from_numpy(index.search(self.features[first:end], self.k)[0])
            nearest.keys[first:end] = self._keys(first, found)
            lacking = first + np.flatnonzero((found < 0).any(dim=1).numpy())
            if len(lacking):
                nearest.keys[lacking] = self._exact(lacking)
            if progress is not None:
                progress("neighbours", end, n)
        if settings.recall_sample:
            chosen = np.sort(np.random.default_rng(settings.seed).permutation(n)[: settings.recall_sample])
            truth, found = (key_positions(keys) for keys in (self._exact(chosen), nearest.keys[chosen]))
            settings.recall = float((truth[:, :, None] == found[:, None, :]).any(dim=2).float().mean())
        positions, distances = nearest.complete()
        return Neighbourhood(positions, distances, np.maximum(self._farthest(), distances[:, -1]))

    def _keys(self, first: int, found: torch.Tensor) -> torch.Tensor:
        """Keys by the distances of the space, which those of an index of codes are not."""
        keys = torch.full_like(found, NONE)
        for start, end in ranges(len(found), max(1, PAIRS_AT_ONCE // self.k)):
            some = found[start:end]
            rows, places = (some >= 0).nonzero(as_tuple=True)
            columns = some[rows, places]
            own = self.collection.space.prepare(self.features[first + start : first + end], CPU)
            others = self.collection.space.prepare(self.features[columns.numpy()], CPU)
            keys[start + rows, places] = item_keys(pair_distances(own.take(rows), others), columns)
        return keys.sort(dim=1).values

    def _exact(self, rows: np.ndarray) -> torch.Tensor:
        nearest = Nearest(len(rows), self.k)
        scan(FeatureDistances(self.features[rows], self.features, self.collection.space, [CPU]), [nearest])
        return nearest.keys

    def _farthest(self) -> np.ndarray:
        """(N,) the largest distance of each item to some that are evenly spaced."""
        space, n = self.collection.space, len(self.features)
        some = space.prepare(self.features[np.unique(np.linspace(0, n - 1, FAR_ITEMS).astype(np.int64))], CPU)
        blocks = (
            distance_block(space.prepare(self.features[first:end], CPU), some) for first, end in ranges(n, ROWS_AT_ONCE)
        )
        return np.concatenate([block.amax(dim=1).numpy() for block in blocks])


def check_neighbours(neighbours: Any) -> None:
    """Raises a UserError for what is neither an index of neighbours nor None."""
    if not isinstance(neighbours, NeighbourIndex | None):
        raise UserError(f"neighbours is {short(neighbours)}; give a NeighbourIndex, or None for exact ones")


def nearest_items(
    collection: Collection,
    devices: list[torch.device],
    k: int,
    progress: Progress | None,
    graph: str | None,
    neighbours: NeighbourIndex | None,
) -> Neighbourhood:
    """The k nearest of every item: exact, or what an index finds of them.

    Raises:
        UserError: an index with a graph, on GPUs, or as its ``neighbourhood`` says.
    """
    check_neighbours(neighbours)
    if neighbours is None:
        return Items(collection, devices).neighbourhood(k, progress, graph)
    if graph is not None:
        raise UserError(f"graph {graph} is of exact neighbours, not of {neighbours.factory!r}; leave one of them out")
    if devices[0].type != "cpu":
        raise UserError(f"the neighbours of {neighbours.factory!r} are found on the CPU; use device='cpu'")
    return neighbours.neighbourhood(collection, k, progress)
