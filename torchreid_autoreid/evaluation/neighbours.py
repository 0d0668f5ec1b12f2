"""Exact nearest neighbours among all items: the queries and, behind them, the whole gallery."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from threading import Lock

import numpy as np
import torch

from ..errors import UserError
from ..parallel.launch import OneProcess
from .distances import distance_block, pair_distances
from .embeddings import release
from .graph_file import GraphFile
from .pairwise import FeatureDistances, Progress, block_shape, ranges, scan, share_out, workers
from .ranking import Farthest, Nearest, largest_of_columns
from .space import Space

PAIRS_AT_ONCE = 1 << 14
HALF_ROWS = 512
OFFERS_AT_ONCE = 1 << 17  # of items that look at blocks as columns, before they are taken over


@dataclass(frozen=True)
class Neighbourhood:
    """The nearest items of each of N items, itself included.

    Attributes:
        indices: (N, K) nearest first, ties by position.
        distances: (N, K) float32.
        farthest: (N,) float32, the largest distance of each item to any.
    """

    indices: np.ndarray
    distances: np.ndarray
    farthest: np.ndarray


class Collection:
    """All items of all processes, in order: the head, the same in every process, then the shards in rank order.

    Args:
        head: (H, D) raw features; may be empty.
        shard: (S, D) raw features of this process.
        space: how they are compared.
    """

    def __init__(self, head: np.ndarray, shard: np.ndarray, space: Space, world: OneProcess):
        self.head, self.shard, self.space, self.world = head, shard, space, world
        self.sizes = [int(size) for size in world.concatenate(np.array([len(shard)]))]
        self.shard_start = len(head) + sum(self.sizes[: world.rank])

    def __len__(self) -> int:
        return len(self.head) + sum(self.sizes)

    def pieces(self, step: int) -> Iterator[tuple[int, np.ndarray]]:
        """(first position, raw features) of at most ``step`` items; each process sends its shard to the others."""
        for start, stop in ranges(len(self.head), step):
            yield start, self.head[start:stop]
        first = len(self.head)
        for source, size in enumerate(self.sizes):
            for start, stop in ranges(size, step):
                piece = self.shard[start:stop] if source == self.world.rank else self.shard[:0]
                if self.world.size > 1:
                    sent: np.ndarray = np.empty((stop - start, self.shard.shape[1]), dtype=self.space.wire)
                    sent[: len(piece)] = piece
                    piece = sent
                yield first + start, self.world.broadcast(piece, source)
                release(self.shard)
            first += size

    def pair_distances(self, device: torch.device, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """(P,) float32 distances of chosen pairs of items, by position, the same in every process."""
        values = np.zeros(len(rows), dtype=np.float32)
        own = np.flatnonzero(self._owns(rows))
        own = own[np.argsort(columns[own], kind="stable")]
        for start, piece in self.pieces(block_shape([device])[1]):
            first, end = np.searchsorted(columns[own], [start, start + len(piece)])
            vectors = self.space.prepare(piece, device)
            for begin, stop in ranges(end - first, PAIRS_AT_ONCE):
                some = own[first + begin : first + stop]
                a = self.space.prepare(self._features(rows[some]), device)
                b = vectors.take(torch.from_numpy(columns[some] - start).to(device))
                values[some] = pair_distances(a, b).cpu().numpy()
        return self.world.sum(values)

    def _owns(self, positions: np.ndarray) -> np.ndarray:
        """Whether this process answers for an item: one of its shard, or of its share of the head."""
        share = share_of(len(self.head), self.world)
        in_shard = (positions >= self.shard_start) & (positions < self.shard_start + len(self.shard))
        return in_shard | ((positions >= share.start) & (positions < share.stop))

    def _features(self, positions: np.ndarray) -> np.ndarray:
        """Raw features of items of the head and of this process's shard."""
        values: np.ndarray = np.empty((len(positions), self.shard.shape[1]), dtype=self.space.wire)
        in_head = positions < len(self.head)
        values[in_head] = self.head[positions[in_head]]
        values[~in_head] = self.shard[positions[~in_head] - self.shard_start]
        return values


def share_of(length: int, world: OneProcess) -> slice:
    """This process's part of what all processes hold."""
    return slice(length * world.rank // world.size, length * (world.rank + 1) // world.size)


class CollectionDistances(FeatureDistances):
    """Distances of some rows to all items of a collection."""

    def __init__(
        self,
        rows: np.ndarray | Sequence[np.ndarray],
        collection: Collection,
        devices: list[torch.device],
    ):
        super().__init__(rows, collection.shard, collection.space, devices)
        self.collection = collection
        self.num_gallery = len(collection)

    def pieces(self) -> Iterator[tuple[int, np.ndarray]]:
        return self.collection.pieces(block_shape(self.devices)[1])


def _between(start: int, stop: int, step: int) -> list[tuple[int, int]]:
    return [(start + first, start + end) for first, end in ranges(stop - start, step)]


class _Half:
    """The blocks of some columns on and below the diagonal, shown to those who look as rows and as columns.

    Args:
        items: whose distances they are.
        columns: (start, stop) of the columns.
        height: of a block.
    """

    def __init__(self, items: Items, nearest: Nearest, farthest: Farthest, columns: tuple[int, int], height: int):
        self.device = items.devices[0]
        self.vectors, self.nearest, self.farthest = items.query[self.device], nearest, farthest
        self.start, self.stop = columns
        self.size = height * (self.stop - self.start)
        self.buffers: dict[int, torch.Tensor] = {}
        self.offers: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
        self.lock = Lock()

    def diagonal(self, worker: int, rows: tuple[int, int]) -> None:
        """Rows of the piece and its columns up to them; no two workers change the same rows before ``merge``."""
        self._show(worker, rows, rows[1], rows[0])

    def below(self, worker: int, rows: tuple[int, int]) -> None:
        """Rows behind the piece and all of its columns."""
        self._show(worker, rows, self.stop, self.stop)
        if sum(len(offer[0]) for offer in self.offers) > OFFERS_AT_ONCE:
            self.merge()

    def _show(self, worker: int, rows: tuple[int, int], stop: int, transposed: int) -> None:
        """A block from the first column to ``stop``, of which the columns before ``transposed`` look at it as well."""
        first, end = rows
        if worker not in self.buffers:
            self.buffers[worker] = torch.empty(self.size, dtype=torch.float32, device=self.device)
        vectors = (self.vectors.take(slice(first, end)), self.vectors.take(slice(self.start, stop)))
        block = distance_block(*vectors, self.buffers[worker])
        self.nearest.add(first, self.start, block)  # these rows are this worker's alone
        farthest = [(first, block.amax(dim=1))]
        block = block[:, : transposed - self.start]
        offers = []
        if block.shape[1]:
            offers.append(self.nearest.candidates_transposed(self.start, first, block))
            farthest.append((self.start, largest_of_columns(block)))
        with self.lock:  # all workers meet in the rows of the piece
            self.offers += offers
            for row, values in farthest:
                self.farthest.keep(row, values)

    def merge(self) -> None:
        """Takes over what the columns have been offered."""
        with self.lock:
            offers, self.offers = self.offers, []
            if offers:
                rows, distances, columns = (torch.cat(parts) for parts in zip(*offers, strict=True))
                rows, order = torch.sort(rows, stable=True)
                self.nearest.offer_rows(self.start, self.stop - self.start, rows, distances[order], columns[order])


class Items(CollectionDistances):
    """Distances between all items; this process's rows are its share of the head, then its shard."""

    def __init__(self, collection: Collection, devices: list[torch.device]):
        self.world = collection.world
        share = share_of(len(collection.head), self.world)
        self.share_size = share.stop - share.start
        super().__init__([collection.head[share], collection.shard], collection, devices)

    def neighbourhood(self, k: int, progress: Progress | None = None, graph: str | None = None) -> Neighbourhood:
        """The k nearest of every item, found once and told to every process.

        Args:
            k: how many.
            progress: called as progress(what is being done, pieces done, pieces in all).
            graph: a file that the search goes on from, and that holds its result; in one process on the CPU.

        Raises:
            UserError: distances that are not finite; a graph of other features, or in several processes.
        """
        nearest, farthest = Nearest(self.num_queries, k), Farthest(self.num_queries)
        if graph is not None and (self.world.size > 1 or self.devices[0].type != "cpu"):
            raise UserError(f"graph {graph} is of one process on the CPU; leave it out, or run there")
        if self.world.size == 1 and len(self.devices) == 1:
            self._scan_half(nearest, farthest, progress, graph)
        else:
            scan(self, [nearest, farthest], progress, "neighbours")
        nearest.keys = torch.from_numpy(self._merge(nearest.keys.cpu().numpy()))
        indices, distances = nearest.complete()
        return Neighbourhood(indices, distances, self._merge(farthest.values.cpu().numpy()))

    def _scan_half(
        self, nearest: Nearest, farthest: Farthest, progress: Progress | None, graph: str | None = None
    ) -> None:
        """Distances are symmetric: compute each block below the diagonal once and show it from both sides.

        Every row is first shown its distances to items before it, so all know k items before a transposed block.
        """
        height = max(HALF_ROWS, nearest.k)
        step = max(block_shape(self.devices)[1], nearest.k)
        columns = ranges(self.num_queries, step)
        file = GraphFile(graph, self.query[self.devices[0]], step, len(columns)) if graph is not None else None
        known = file.read(nearest, farthest) if file is not None else 0
        team = len(workers(self.devices))
        for done, (start, stop) in enumerate(columns[known:], known + 1):
            half = _Half(self, nearest, farthest, (start, stop), height)
            # Pieces before this one have shown its rows k items; those of the first see them in order.
            share_out(_between(start, stop, height), half.diagonal, team if start else 1)
            half.merge()
            share_out(_between(stop, self.num_queries, height), half.below, team)
            half.merge()
            if file is not None:
                file.write(nearest, farthest, done)
            if progress is not None:
                progress("neighbours", done, len(columns))

    def _merge(self, own: np.ndarray) -> np.ndarray:
        """Values of this process's items -> values of all items, in order of position."""
        return np.concatenate(
            [self.world.concatenate(own[: self.share_size]), self.world.concatenate(own[self.share_size :])]
        )
