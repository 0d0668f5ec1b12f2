"""Ranks of the true matches and nearest items, found without sorting or holding the distances of all pairs."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import torch

from ..parallel.launch import OneProcess
from .blocks import Distances, ranges, share_out, workers

NONE = torch.iinfo(torch.int64).max  # a key after all others: no item


# --- keys: integers that sort as (distance, position) ----------------------------------------


def ordered(distances: torch.Tensor) -> torch.Tensor:
    """Float32 distances as int64 in 0 .. 2^32 - 1 of the same order; -0.0 and 0.0 are one value."""
    bits = (distances + 0.0).view(torch.int32)
    # The bits of negative floats grow with their magnitude: turn all but the sign round.
    bits ^= (bits >> 31) & 0x7FFFFFFF
    return bits.to(torch.int64) + (1 << 31)


def unordered(values: torch.Tensor) -> torch.Tensor:
    """The float32 distances that `ordered` was given."""
    bits = (values - (1 << 31)).to(torch.int32)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).view(torch.float32)


def item_keys(distances: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Keys that sort by distance, then by position (below 2^31)."""
    return (ordered(distances) << 31) | positions


def key_distances(keys: torch.Tensor) -> torch.Tensor:
    """The distances in keys; infinite where there is no item."""
    return torch.where(keys == NONE, torch.inf, unordered(keys >> 31))


def key_positions(keys: torch.Tensor) -> torch.Tensor:
    """The positions in keys; -1 where there is no item."""
    return torch.where(keys == NONE, -1, keys & ((1 << 31) - 1))


# --- pairs of the same identity ----------------------------------------


@dataclass(frozen=True)
class Labels:
    """Identities and cameras of the queries and of one process's gallery, which starts at position `first`."""

    q_pids: np.ndarray
    q_camids: np.ndarray
    g_pids: np.ndarray
    g_camids: np.ndarray
    first: int = 0

    def of_queries(self, first: int, end: int) -> Labels:
        """The labels with some of the queries only."""
        return Labels(self.q_pids[first:end], self.q_camids[first:end], self.g_pids, self.g_camids, self.first)


def same_identity(labels: Labels) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All pairs of one identity: (query row, gallery column, whether the camera is the same too), by row and column."""
    order = np.argsort(labels.g_pids, kind="stable")
    pids = labels.g_pids[order]
    left = np.searchsorted(pids, labels.q_pids, "left")
    counts = np.searchsorted(pids, labels.q_pids, "right") - left
    rows = np.repeat(np.arange(len(counts)), counts)
    columns = order[_consecutive(left, counts)]
    return rows, columns, labels.q_camids[rows] == labels.g_camids[columns]


def _consecutive(starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """starts[0], starts[0] + 1, ... (counts[0] of them), starts[1], ..."""
    ends = np.cumsum(counts)
    total = int(ends[-1]) if len(ends) else 0
    return np.arange(total) + np.repeat(starts - (ends - counts), counts)


@dataclass(frozen=True)
class Matches:
    """The true matches of all queries, by query, distance and position.

    Attributes:
        offsets: (Nq + 1,) query i owns entries offsets[i] .. offsets[i + 1].
        distances: (M,) float32.
        positions: (M,) positions in the whole gallery.
    """

    offsets: np.ndarray
    distances: np.ndarray
    positions: np.ndarray

    @property
    def rows(self) -> np.ndarray:
        """(M,) the query of each entry."""
        return np.repeat(np.arange(len(self.offsets) - 1), np.diff(self.offsets))


def find_matches(distances: Distances, labels: Labels, world: OneProcess) -> Matches:
    """Distances of all true matches, those in the galleries of other processes included."""
    rows, columns, same_camera = same_identity(labels)
    rows, columns = rows[~same_camera], columns[~same_camera]
    values = _pair_values(distances, rows, columns, labels.q_pids)
    rows, values = world.concatenate(rows), world.concatenate(values)
    positions = world.concatenate(columns + labels.first)
    order = np.lexsort((positions, values, rows))
    offsets = np.searchsorted(rows[order], np.arange(len(labels.q_pids) + 1))
    return Matches(offsets, values[order], positions[order])


def _pair_values(distances: Distances, rows: np.ndarray, columns: np.ndarray, q_pids: np.ndarray) -> np.ndarray:
    """Distances of chosen pairs, from small dense products of queries and matches of neighbouring identities."""
    values = np.empty(len(rows), dtype=np.float32)
    by_identity = np.argsort(q_pids, kind="stable")
    place = np.empty(len(q_pids), dtype=np.int64)
    place[by_identity] = np.arange(len(q_pids))
    order = np.argsort(place[rows], kind="stable")
    ends = np.searchsorted(place[rows][order], np.arange(0, len(q_pids) + 128, 128))

    def work(_: int, group: tuple[int, int]) -> None:
        pairs_of = order[slice(*group)]
        pairs_of = pairs_of[np.argsort(columns[pairs_of], kind="stable")]
        for begin, end in ranges(len(pairs_of), 1 << 16):
            pairs = pairs_of[begin:end]
            some_rows, r = np.unique(rows[pairs], return_inverse=True)
            some_columns, c = np.unique(columns[pairs], return_inverse=True)
            values[pairs] = distances.between(some_rows, some_columns)[r, c]

    share_out(itertools.pairwise(ends), work, len(workers(distances.devices)))
    return values


class CloserCounter:
    """Counts, for every true match, the items of other identities that are closer or tie at an earlier position.

    Few items are closer than a query's farthest match; only those are looked up among its sorted matches. Each query
    has one bin per match (the items between it and the match before) and a last one (ties behind its farthest match).
    """

    def __init__(self, matches: Matches, labels: Labels):
        self.matches, self.labels = matches, labels
        num_queries = len(matches.offsets) - 1
        self.offsets = matches.offsets + np.arange(num_queries + 1)
        last = np.zeros(self.offsets[-1], dtype=bool)
        last[self.offsets[1:] - 1] = True
        self.is_match = ~last
        self.counts = np.zeros(len(last), dtype=np.int64)
        bins = np.full(len(last), np.inf, dtype=np.float32)
        bins[self.is_match] = matches.distances
        positions = np.full(len(last), 1 << 31)  # of the last bins: behind everything, infinite distances included
        positions[self.is_match] = matches.positions
        limits = np.full(num_queries, -np.inf, dtype=np.float32)
        counted = np.diff(matches.offsets) > 0
        limits[counted] = matches.distances[matches.offsets[1:][counted] - 1]
        self.same_rows, self.same_columns, _ = same_identity(labels)
        self.same_offsets = np.searchsorted(self.same_rows, np.arange(num_queries + 1))
        self.device = torch.device("cpu")
        self.limits = torch.from_numpy(limits)
        self.thresholds = ordered(torch.from_numpy(bins)) << 21
        self.positions = torch.from_numpy(positions)
        self.rows = torch.from_numpy(np.repeat(np.arange(num_queries), np.diff(self.offsets)))

    def _to(self, device: torch.device) -> None:
        if self.device != device:
            self.device = device
            for name in ("limits", "thresholds", "positions", "rows"):
                setattr(self, name, getattr(self, name).to(device))

    def add(self, row: int, column: int, block: torch.Tensor) -> None:
        self._to(block.device)
        height, width = block.shape
        flat = block.view(-1)
        own = self._same_identity(row, column, height, width)
        kept = flat[own]
        flat[own] = torch.nan  # below no limit
        close = (block <= self.limits[row : row + height, None]).view(-1).nonzero().view(-1)
        rows = close // width
        keys = (rows << 53) | (ordered(flat.take(close)) << 21) | (close - rows * width + 1)
        flat[own] = kept
        start, stop = self.offsets[row], self.offsets[row + height]
        # A match before this piece of the gallery wins its ties (0), one behind it loses them (width + 1).
        places = (self.positions[start:stop] - (self.labels.first + column) + 1).clamp(0, width + 1)
        thresholds = ((self.rows[start:stop] - row) << 53) | self.thresholds[start:stop] | places
        bins = torch.searchsorted(thresholds, keys)
        self.counts[start:stop] += torch.bincount(bins, minlength=stop - start).cpu().numpy()

    def _same_identity(self, row: int, column: int, height: int, width: int) -> torch.Tensor:
        """Flat positions in the block of the pairs of one identity, which are not counted."""
        start, stop = self.same_offsets[row], self.same_offsets[row + height]
        columns = self.same_columns[start:stop] - column
        inside = (columns >= 0) & (columns < width)
        flat = (self.same_rows[start:stop][inside] - row) * width + columns[inside]
        return torch.from_numpy(flat).to(self.device)

    def twin(self) -> CloserCounter:
        return CloserCounter(self.matches, self.labels)

    def merge(self, other: CloserCounter) -> None:
        self.counts += other.counts

    def ranks(self, world: OneProcess) -> np.ndarray:
        """(M,) rank of each match, from 1, among all items but those of the query's own identity and camera."""
        closer = np.cumsum(world.sum(self.counts))
        before_query = np.concatenate([[0], closer])[self.offsets[:-1]]
        rows = self.matches.rows
        among_matches = np.arange(len(rows)) - self.matches.offsets[rows] + 1
        return closer[self.is_match] - before_query[rows] + among_matches


class Nearest:
    """The k nearest items of each row, ties by position.

    Args:
        num_rows, k: how many rows, how many items of each.
        first: position of the first column.
        excluded: (rows, columns) of pairs that never count, by row.
    """

    def __init__(self, num_rows: int, k: int, first: int = 0, excluded: tuple[np.ndarray, np.ndarray] | None = None):
        self.k, self.first = k, first
        self.keys = torch.full((num_rows, k), NONE)
        self.excluded = excluded
        if excluded is not None:
            self.offsets = np.searchsorted(excluded[0], np.arange(num_rows + 1))

    def add(self, row: int, column: int, block: torch.Tensor) -> None:
        if self.keys.device != block.device:
            self.keys = self.keys.to(block.device)
        height, width = block.shape
        if self.excluded is not None:
            block = self._without_excluded(row, column, block)
        best = self.keys[row : row + height]
        limits = key_distances(best[:, -1])
        fresh = limits.isinf()
        # Columns come in order of position: a later item that ties with the k-th nearest never takes its place.
        limits = torch.where(fresh, limits, limits.nextafter(limits.new_tensor(-torch.inf)))
        if self.k < width and bool(fresh.any()):
            # A first look at a row: only its k nearest of this block, and their ties, are of interest.
            limits[fresh] = block[fresh].topk(self.k, dim=1, largest=False).values[:, -1]
        close = (block <= limits[:, None]).view(-1).nonzero().view(-1)
        rows = close // width
        self.offer_rows(row, height, rows, block.view(-1)[close], column + close - rows * width)

    def offer(self, positions: np.ndarray, distances: np.ndarray) -> None:
        """Look at (num_rows, n) items found elsewhere, by position from this process's first; -1 is none."""
        keys = item_keys(torch.from_numpy(distances), torch.from_numpy(positions + self.first))
        keys = keys.masked_fill(torch.from_numpy(positions < 0), NONE)
        self.keys = torch.cat([self.keys, keys], dim=1).topk(self.k, dim=1, largest=False).values

    def candidates_transposed(
        self, row: int, column: int, block: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """What `offer_rows` takes, from a block whose columns are rows here; those rows must know k items already.

        Other threads may offer to the same rows meanwhile, in any order: limits only get tighter, and ties are kept.
        """
        height = block.shape[1]
        limits = key_distances(self.keys[row : row + height, -1])
        close = (block <= limits[None, :]).view(-1).nonzero().view(-1)
        columns = close // height
        rows, order = torch.sort(close - columns * height, stable=True)
        close = close[order]
        return rows, block.view(-1)[close], column + columns[order]

    def offer_rows(
        self, row: int, height: int, rows: torch.Tensor, distances: torch.Tensor, columns: torch.Tensor
    ) -> None:
        """Keep, in `height` rows from `row` on, what is nearer than the items so far; `rows`, from 0, are sorted."""
        if not len(rows):
            return
        best = self.keys[row : row + height]
        counts = torch.bincount(rows, minlength=height)
        starts = counts.cumsum(0) - counts
        candidates = best.new_full((height, int(counts.max())), NONE)
        places = torch.arange(len(rows), device=rows.device) - starts[rows]
        candidates[rows, places] = item_keys(distances, self.first + columns)
        merged = torch.cat([best, candidates], dim=1)
        self.keys[row : row + height] = merged.topk(self.k, dim=1, largest=False).values

    def _without_excluded(self, row: int, column: int, block: torch.Tensor) -> torch.Tensor:
        assert self.excluded is not None
        start, stop = self.offsets[row], self.offsets[row + block.shape[0]]
        rows, columns = self.excluded[0][start:stop] - row, self.excluded[1][start:stop] - column
        inside = (columns >= 0) & (columns < block.shape[1])
        if inside.any():
            block = block.clone()
            index = [torch.from_numpy(x[inside]).to(block.device) for x in (rows, columns)]
            block[index[0], index[1]] = torch.inf
        return block

    def twin(self) -> Nearest:
        return Nearest(len(self.keys), self.k, self.first, self.excluded)

    def merge(self, other: Nearest) -> None:
        both = torch.cat([self.keys, other.keys.to(self.keys.device)], dim=1)
        self.keys = both.topk(self.k, dim=1, largest=False).values

    def merge_processes(self, world: OneProcess) -> None:
        """Take over what the other processes found."""
        parts = [torch.from_numpy(part) for part in world.gather(self.keys.cpu().numpy())]
        self.keys = torch.cat(parts, dim=1).topk(self.k, dim=1, largest=False).values

    def result(self) -> tuple[np.ndarray, np.ndarray]:
        """(positions, distances), nearest first; -1 and infinity where there are fewer than k items."""
        keys = self.keys.cpu()
        distances = key_distances(keys)
        positions = torch.where(distances.isinf(), -1, key_positions(keys))
        return positions.numpy(), distances.numpy()
