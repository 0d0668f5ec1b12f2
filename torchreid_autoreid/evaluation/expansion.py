"""Query expansion and database-side augmentation: features averaged with those of their nearest gallery items.

AQE: Chum et al., "Total Recall", ICCV 2007. Alpha-QE: Radenovic, Tolias, Chum, "Fine-tuning CNN Image Retrieval with No
Human Annotation", TPAMI 2019, section 3.2. Database-side augmentation: Arandjelovic, Zisserman, "Three things everyone
should know to improve object retrieval", CVPR 2012, section 3.3.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
import torch

from ..errors import UserError, short
from ..parallel.launch import OneProcess
from .embeddings import check_count, is_between
from .neighbours import Collection, CollectionDistances, share_of
from .pairwise import Progress, scan
from .ranking import Nearest
from .space import Space

_MOST_ALPHA = 1000


@dataclass(frozen=True)
class Expansion:
    """What is averaged before the search.

    Args:
        queries: number of nearest gallery items averaged into each query; 0 leaves queries alone.
        alpha: 0 averages with equal weights; otherwise a neighbour weighs (cosine similarity) ** alpha, no less than 0.
        gallery: number of nearest gallery items averaged into each gallery item, before the queries are expanded.
    """

    queries: int = 0
    alpha: float = 0.0
    gallery: int = 0

    def __post_init__(self) -> None:
        check_count("query_expansion", self.queries, 0)
        check_count("database_augmentation", self.gallery, 0)
        if not is_between(self.alpha, 0, _MOST_ALPHA):
            raise UserError(f"query_expansion_alpha is {short(self.alpha)}; give a number from 0 to {_MOST_ALPHA}")
        if self.alpha and not (self.queries or self.gallery):
            raise UserError(
                f"query_expansion_alpha is {self.alpha}, but no neighbours are averaged; give their number, "
                "query_expansion or database_augmentation"
            )

    def apply(
        self,
        query: np.ndarray,
        gallery: np.ndarray,
        space: Space,
        devices: list[torch.device],
        world: OneProcess,
        progress: Progress | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Expanded (query, gallery) features; ``gallery`` is this process's. Without a change, the same arrays."""
        if self.alpha and space.metric != "cosine":
            raise UserError(
                f"query_expansion_alpha weighs by cosine similarity; use metric='cosine', not {space.metric!r}"
            )
        if self.gallery:
            collection = Collection(gallery[:0], gallery, space, world)
            self._check("database_augmentation", self.gallery, len(collection) - 1)
            # The nearest item of a gallery item is itself.
            near = CollectionDistances(gallery, collection, devices)
            gallery = self._average(gallery, near, self.gallery + 1, own_weight=0, progress=progress)
        if self.queries:
            collection = Collection(gallery[:0], gallery, space, world)
            self._check("query_expansion", self.queries, len(collection))
            own = query[share_of(len(query), world)]
            near = CollectionDistances(own, collection, devices)
            query = world.concatenate(self._average(own, near, self.queries, own_weight=1, progress=progress))
        return query, gallery

    def _check(self, name: str, number: int, most: int) -> None:
        if number > most:
            raise UserError(f"{name} is {number}, but the gallery has only {most} neighbours; give at most {most}")

    def _average(
        self,
        own: np.ndarray,
        distances: CollectionDistances,
        k: int,
        own_weight: float,
        progress: Progress | None,
    ) -> np.ndarray:
        """(rows, D) weighted means of each row and its k nearest items, of unit vectors for the cosine metric.

        A row of which all weights are 0, a vector of zeros for instance, stays as it is.
        """
        space, rows = distances.space, len(own)
        nearest = Nearest(rows, k)
        scan(distances, [nearest], progress, "expansion")
        positions, found = nearest.complete()
        weights = np.ones_like(found, dtype=np.float64)
        if self.alpha:
            weights = np.clip(1 - found.astype(np.float64), 0, None) ** self.alpha
        sums = own_weight + weights.sum(axis=1, keepdims=True)
        own_weights = np.where(sums == 0, 1, own_weight)
        neighbours = sp.csc_array(
            (weights.reshape(-1), (np.repeat(np.arange(rows), k), positions.reshape(-1))),
            shape=(rows, distances.num_gallery),
        )
        total = own_weights * space.directions(own)
        for start, piece in distances.pieces():
            total += neighbours[:, start : start + len(piece)] @ space.directions(piece)
        total /= np.where(sums == 0, 1, sums)
        return space.features(total)
