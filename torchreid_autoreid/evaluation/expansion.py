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

from ..errors import UserError
from ..parallel.launch import OneProcess
from .blocks import Progress, scan
from .distances import prepare
from .embeddings import check_count
from .neighbours import Collection, CollectionDistances, share_of
from .ranking import Nearest


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
        if not 0 <= self.alpha < np.inf:
            raise UserError(f"query_expansion_alpha is {self.alpha}; give 0 or more")
        if self.alpha and not (self.queries or self.gallery):
            raise UserError(
                f"query_expansion_alpha is {self.alpha}, but no neighbours are averaged; give their number, "
                "query_expansion or database_augmentation"
            )

    def apply(
        self,
        query: np.ndarray,
        gallery: np.ndarray,
        metric: str,
        devices: list[torch.device],
        world: OneProcess,
        progress: Progress | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Expanded (query, gallery) features; `gallery` is this process's. Without a change, the same arrays."""
        if self.alpha and metric != "cosine":
            raise UserError(f"query_expansion_alpha weighs by cosine similarity; use metric='cosine', not {metric!r}")
        if self.gallery:
            collection = Collection(gallery[:0], gallery, world)
            self._check("database_augmentation", self.gallery, len(collection) - 1)
            # The nearest item of a gallery item is itself.
            near = CollectionDistances(gallery, collection, metric, devices)
            gallery = self._average(near, self.gallery + 1, own_weight=0, progress=progress)
        if self.queries:
            collection = Collection(gallery[:0], gallery, world)
            self._check("query_expansion", self.queries, len(collection))
            near = CollectionDistances(query[share_of(len(query), world)], collection, metric, devices)
            query = world.concatenate(self._average(near, self.queries, own_weight=1, progress=progress))
        return query, gallery

    def _check(self, name: str, number: int, most: int) -> None:
        if number > most:
            raise UserError(f"{name} is {number}, but the gallery has only {most} neighbours; give at most {most}")

    def _average(
        self, distances: CollectionDistances, k: int, own_weight: float, progress: Progress | None
    ) -> np.ndarray:
        """(rows, D) weighted means of each row and its k nearest items, of unit vectors for the cosine metric."""
        rows = distances.num_queries
        nearest = Nearest(rows, k)
        scan(distances, [nearest], progress, "expansion")
        positions, found = nearest.result()
        weights = np.ones_like(found, dtype=np.float64)
        if self.alpha:
            weights = np.clip(1 - found.astype(np.float64), 0, None) ** self.alpha
        neighbours = sp.csc_array(
            (weights.reshape(-1), (np.repeat(np.arange(rows), k), positions.reshape(-1))),
            shape=(rows, distances.num_gallery),
        )
        device = distances.devices[0]
        total = own_weight * distances.query[device].values.cpu().numpy().astype(np.float64)
        for start, piece in distances.pieces():
            values = prepare(piece, distances.metric, device).values.cpu().numpy()
            total += neighbours[:, start : start + len(piece)] @ values
        return (total / (own_weight + weights.sum(axis=1, keepdims=True))).astype(np.float32)
