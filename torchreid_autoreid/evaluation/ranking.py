"""Ranks of the true matches and nearest items, found without sorting or holding the distances of all pairs."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from threading import Lock

import numpy as np
import torch

from ..errors import UserError
from ..parallel.launch import OneProcess
from .pairwise import Distances, ranges, ranges_within, share_out, workers

CPU = torch.device("cpu")
COLUMNS_AT_ONCE = 4096
PAIRS_AT_ONCE = 1 << 19  # pairs of one identity that are held together
PAIRS_OF_ROWS = 1 << 17  # pairs of one identity that a worker looks at together
CANDIDATES_AT_ONCE = 1 << 18
SORTED_ROW = 300  # time to sort a whole row with its keys, in comparisons of the row with one value
ROWS_TOGETHER = 16  # that are compared with a value each
SAMPLED_COLUMN = 128  # of so many, where nothing is known of a row
SOME_QUERIES, SOME_MATCHES = 128, 8  # true matches that a space is chosen by
NONE = torch.iinfo(torch.int64).max  # a key after all others: no item


# --- keys: integers that sort as (distance, position) ----------------------------------------


def ordered(distances: torch.Tensor) -> torch.Tensor:
    """Float32 distances as int64 in 0 .. 2^32 - 1 of the same order; -0.0 and 0.0 are one value."""
    bits = (distances + 0.0).view(torch.int32)
    # The bits of negative floats grow with their magnitude: turn all but the sign round.
    bits ^= (bits >> 31).bitwise_and_(0x7FFFFFFF)
    return bits.to(torch.int64).add_(1 << 31)


def unordered(values: torch.Tensor) -> torch.Tensor:
    """The float32 distances that ``ordered`` was given."""
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


def keys_by_row(distances: torch.Tensor, places: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Keys that sort by row, distance and column; ``places`` are sorted flat positions in a (height, width) block."""
    rows = torch.arange(height + 1, device=places.device)
    counts = torch.searchsorted(places, rows * width).diff()
    keys = ordered(distances).bitwise_left_shift_(21).add_(places)
    return keys.add_(((rows << 53) - rows * width + 1)[:-1].repeat_interleave(counts, output_size=len(places)))


def in_order(keys: torch.Tensor) -> torch.Tensor:
    """The keys sorted; on the CPU by NumPy, which is four times as fast."""
    return torch.from_numpy(np.sort(keys.numpy())) if keys.device.type == "cpu" else torch.sort(keys).values


def smallest(keys: torch.Tensor, k: int) -> torch.Tensor:
    """(N, k) smallest of each row in order; on the CPU by NumPy, which is four times as fast."""
    if keys.device.type != "cpu":
        return keys.topk(k, dim=1, largest=False).values
    found = np.partition(keys.numpy(), k - 1, axis=1)[:, :k].copy()
    found.sort(axis=1)
    return torch.from_numpy(found)


def _below(values: torch.Tensor) -> torch.Tensor:
    """The next smaller numbers."""
    return values.nextafter(values.new_tensor(-torch.inf))


def largest_of_columns(block: torch.Tensor) -> torch.Tensor:
    """(M,) of an (N, M) block; on the CPU by NumPy, which is twice as fast."""
    return block.amax(dim=0) if block.device.type != "cpu" else torch.from_numpy(block.numpy().max(axis=0))


def places_within(block: torch.Tensor, limits: torch.Tensor) -> torch.Tensor:
    """Flat positions of what is at most its limit; on the CPU by NumPy, which is two to four times as fast."""
    if block.device.type == "cpu":
        return torch.from_numpy(flat_places(block.numpy() <= limits.numpy()))
    return (block <= limits).view(-1).nonzero().view(-1)


def flat_places(mask: np.ndarray) -> np.ndarray:
    """``np.flatnonzero`` of a contiguous mask; eight of its values are looked at together, twice as fast."""
    if mask.size % 8:
        return np.flatnonzero(mask)
    eights = mask.reshape(-1).view(np.uint64)
    some = np.flatnonzero(eights != 0)
    places = np.flatnonzero(eights[some].view(np.bool_))
    return (some[places >> 3] << 3) + (places & 7)


def limits_of_nearest(block: torch.Tensor, k: int) -> torch.Tensor:
    """(N,) a distance up to which each row has k items or more, and few more: the k-th of the nearest of 4 k groups.

    A group is every so many-th item, so that items that lie beside one another are in different ones.
    """
    groups = min(4 * k, block.shape[1])
    whole = block.shape[1] // groups * groups
    nearest = block[:, :whole].unflatten(1, (-1, groups)).amin(dim=1)
    return nearest.kthvalue(k, dim=1).values


# --- pairs of the same identity ----------------------------------------


@dataclass(frozen=True)
class Labels:
    """Identities of the queries and of one process's gallery, which starts at position ``first``.

    A pair of one identity that also shares a tag (the camera, the clothes) is left out of the ranking of its query.

    Args:
        q_pids, g_pids: (Nq,) and (Ng,) int64.
        q_tags, g_tags: as many arrays of the same lengths, in the same order; none leaves nothing out.
        ignored: (Ng,) whether a gallery item is passed over by all queries.
    """

    q_pids: np.ndarray
    q_tags: tuple[np.ndarray, ...]
    g_pids: np.ndarray
    g_tags: tuple[np.ndarray, ...]
    first: int = 0
    ignored: np.ndarray | None = None
    order: np.ndarray | None = None  # gallery columns by identity, then position; found when not given

    def __post_init__(self) -> None:
        if self.order is None:
            object.__setattr__(self, "order", np.argsort(self.g_pids, kind="stable"))

    def of_queries(self, chosen: slice | np.ndarray) -> Labels:
        """The labels with some of the queries only."""
        tags = tuple(tag[chosen] for tag in self.q_tags)
        return Labels(self.q_pids[chosen], tags, self.g_pids, self.g_tags, self.first, self.ignored, self.order)

    def parts(self, world: OneProcess) -> list[tuple[int, int]]:
        """Ranges of queries whose pairs of one identity fit in memory together; the same in every process."""
        size = int(world.sum(np.array([len(self.g_pids)]))[0])
        return ranges_within(world.sum(self.spans()[1]), max(PAIRS_AT_ONCE, 4 * size))

    def spans(self) -> tuple[np.ndarray, np.ndarray]:
        """(first entry in ``order``, number of gallery items) of each query's identity."""
        assert self.order is not None
        pids = self.g_pids[self.order]
        left = np.searchsorted(pids, self.q_pids, "left")
        return left, np.searchsorted(pids, self.q_pids, "right") - left


@dataclass(frozen=True)
class OwnPairs:
    """All pairs of one identity, by query row and gallery column; ``left_out`` are those that share a tag too."""

    rows: np.ndarray
    columns: np.ndarray
    left_out: np.ndarray

    @classmethod
    def of(cls, labels: Labels) -> OwnPairs:
        """The pairs of a process's gallery."""
        left, counts = labels.spans()
        assert labels.order is not None
        rows = np.repeat(np.arange(len(counts)), counts)
        columns = labels.order[_consecutive(left, counts)]
        left_out = np.zeros(len(rows), dtype=bool)
        for of_queries, of_gallery in zip(labels.q_tags, labels.g_tags, strict=True):
            left_out |= of_queries[rows] == of_gallery[columns]
        return cls(rows, columns, left_out)

    @property
    def true(self) -> tuple[np.ndarray, np.ndarray]:
        """(rows, columns) of the true matches."""
        return self.rows[~self.left_out], self.columns[~self.left_out]


def _consecutive(starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """starts[0], starts[0] + 1, ... (counts[0] of them), starts[1], ..."""
    ends = np.cumsum(counts)
    total = int(ends[-1]) if len(ends) else 0
    return np.arange(total) + np.repeat(starts - (ends - counts), counts)


def count_true(labels: Labels) -> np.ndarray:
    """(Nq,) true matches of each query in this process's gallery."""
    counts = [
        np.bincount(OwnPairs.of(labels.of_queries(slice(first, end))).true[0], minlength=end - first)
        for first, end in ranges_within(labels.spans()[1], PAIRS_AT_ONCE)
    ]
    return np.concatenate(counts)


def count_others(labels: Labels) -> np.ndarray:
    """(Nq,) items of other identities that each query counts in this process's gallery."""
    counting = len(labels.g_pids) - (0 if labels.ignored is None else int(labels.ignored.sum()))
    return counting - labels.spans()[1]  # no query counts items of an identity that is passed over


def some_true_pairs(labels: Labels, world: OneProcess) -> tuple[np.ndarray, np.ndarray]:
    """(rows, columns) of this process's part of the first true matches of some queries; the same whoever holds them."""
    chosen = np.unique(np.linspace(0, len(labels.q_pids) - 1, SOME_QUERIES).astype(np.int64))
    counts = np.cumsum(world.sum(labels.of_queries(chosen).spans()[1]))
    chosen = chosen[counts <= max(counts[0], PAIRS_OF_ROWS)]
    rows, columns = OwnPairs.of(labels.of_queries(chosen)).true
    own = _first_of_each(rows)
    rows, positions = world.concatenate(rows[own]), world.concatenate(columns[own] + labels.first)
    order = np.lexsort((positions, rows))
    rows, columns = rows[order], positions[order] - labels.first
    here = _first_of_each(rows) & (columns >= 0) & (columns < len(labels.g_pids))
    return chosen[rows[here]], columns[here]


def _first_of_each(rows: np.ndarray) -> np.ndarray:
    """Which of the sorted rows are among the first SOME_MATCHES of their value."""
    return np.arange(len(rows)) - np.searchsorted(rows, rows) < SOME_MATCHES


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

    @classmethod
    def of(cls, rows: np.ndarray, positions: np.ndarray, values: np.ndarray, num_queries: int) -> Matches:
        """From pairs in any order."""
        order = np.lexsort((positions, values, rows))
        offsets = np.searchsorted(rows[order], np.arange(num_queries + 1))
        return cls(offsets, values[order], positions[order])

    @property
    def rows(self) -> np.ndarray:
        """(M,) the query of each entry."""
        return np.repeat(np.arange(len(self.offsets) - 1), np.diff(self.offsets))


def pair_values(distances: Distances, rows: np.ndarray, columns: np.ndarray, q_pids: np.ndarray) -> np.ndarray:
    """(P,) float32 distances of chosen pairs, from small dense products of queries of neighbouring identities."""
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
            for first, stop in ranges(len(some_columns), COLUMNS_AT_ONCE):
                inside = (c >= first) & (c < stop)
                block = distances.between(some_rows, some_columns[first:stop])
                with np.errstate(over="ignore"):
                    values[pairs[inside]] = block[r[inside], c[inside] - first]

    share_out(itertools.pairwise(ends), work, len(workers(distances.devices)))
    return values


class CloserCounter:
    """Counts, for every true match, the items of other identities that are closer or tie at an earlier position.

    Most matches have few items closer: those of a row are sorted together, and the matches looked up among them. A
    match that many items are closer than is compared with the whole row instead (on the CPU). Which is faster is told
    by the pieces of the gallery seen so far.

    Args:
        matches: the true matches of all processes.
        pairs: the pairs of one identity in this process's gallery.
        first: position of the first column.
        find_ties: remember the queries of which an item ties with a match.

    Attributes:
        closer: (M,) how many items are before each match.
        seen: (P,) float32 distances of the pairs as the blocks show them.
        tied: (Nq,) queries that have such ties.
    """

    def __init__(self, matches: Matches, pairs: OwnPairs, first: int, find_ties: bool = False):
        self.matches, self.pairs, self.first, self.find_ties = matches, pairs, first, find_ties
        num_queries = len(matches.offsets) - 1
        self.closer = np.zeros(len(matches.distances), dtype=np.int64)
        self.columns = np.zeros(num_queries, dtype=np.int64)  # that each query has seen
        self.own_offsets = np.searchsorted(pairs.rows, np.arange(num_queries + 1))
        self.seen = np.full(len(pairs.rows), np.nan, dtype=np.float32)
        self.tied = np.zeros(num_queries, dtype=bool)
        self.lock = Lock()  # the workers meet in one counter: a copy for each would cost memory for every pair
        thresholds = ordered(torch.from_numpy(matches.distances)) << 21
        self.rows = matches.rows
        arrays = (torch.from_numpy(array) for array in (matches.positions, self.rows))
        self.tables = {CPU: (thresholds, *arrays)}

    def _tables(self, device: torch.device) -> tuple[torch.Tensor, ...]:
        with self.lock:
            if device not in self.tables:
                self.tables[device] = tuple(table.to(device) for table in self.tables[CPU])
            return self.tables[device]

    def add(self, row: int, column: int, block: torch.Tensor) -> None:
        # Not more rows at once than have some pairs; a query may have as many as the gallery has items.
        most = max(1, PAIRS_OF_ROWS // max(1, len(self.pairs.rows) // max(1, len(self.tied))))
        for start, stop in ranges(len(block), most):
            self._add(row + start, column, block[start:stop])

    def _add(self, row: int, column: int, block: torch.Tensor) -> None:
        flat = block.view(-1)
        own = self._own(row, column, *block.shape)
        places = torch.from_numpy(own[1]).to(block.device)
        kept = flat[places]
        self.seen[own[0]] = kept.cpu().numpy()
        flat[places] = torch.nan  # below no limit
        of_block = slice(*self.matches.offsets[[row, row + len(block)]])
        limits, alone = self._plan(row, column, block)
        closer = self._closer_by_sorting(row, column, block, torch.from_numpy(limits).to(block.device)).cpu().numpy()
        if alone.any():
            closer[alone] = self._closer_one_by_one(row, column, block.numpy(), of_block.start + np.flatnonzero(alone))
        with self.lock:
            self.closer[of_block] += closer
            self.columns[row : row + len(block)] += block.shape[1]
        flat[places] = kept

    def _plan(self, row: int, column: int, block: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
        """(rows,) limits up to which items are sorted; which matches are beyond them, to be counted one by one."""
        height = len(block)
        offsets = self.matches.offsets[row : row + height + 1]
        distances = self.matches.distances[offsets[0] : offsets[-1]]
        rows = np.flatnonzero(np.diff(offsets))
        counts, starts = np.diff(offsets)[rows], offsets[rows] - offsets[0]
        number = np.arange(len(distances)) - np.repeat(starts, counts)  # of a match in its row
        last = counts - 1  # of those that are looked up
        if block.device == CPU and not self.find_ties and len(rows):
            price = SORTED_ROW * self._shares(row, column, block) - number - 1
            least = np.minimum.reduceat(price, starts)
            last = np.maximum.reduceat(np.where(price <= np.repeat(least, counts), number, -1), starts)
            last[least >= 0] = -1
        limits = np.full(height, -np.inf, dtype=np.float32)
        limits[rows[last >= 0]] = distances[(starts + last)[last >= 0]]
        return limits, number > np.repeat(last, counts)

    def _shares(self, row: int, column: int, block: torch.Tensor) -> np.ndarray:
        """(matches of the rows,) about what share of a row is closer: of the columns before, or of some of these."""
        offsets = self.matches.offsets[row : row + len(block) + 1]
        with self.lock:
            columns = self.columns[row : row + len(block)].copy()
            closer = self.closer[offsets[0] : offsets[-1]].copy()
        if not columns.all():
            some = block[:, ::SAMPLED_COLUMN].contiguous()
            limits = some.new_full((len(block),), torch.inf)
            return self._closer_by_sorting(row, column, some, limits).numpy() / some.shape[1]
        return closer / np.repeat(columns, np.diff(offsets))

    def _closer_by_sorting(self, row: int, column: int, block: torch.Tensor, limits: torch.Tensor) -> torch.Tensor:
        """(M,) how many items within the limits are before each match of the rows."""
        all_thresholds, all_positions, all_rows = self._tables(block.device)
        height, width = block.shape
        of_block = slice(*self.matches.offsets[[row, row + height]])
        # A match before this piece of the gallery wins its ties (0), one behind it loses them (width + 1).
        columns = (all_positions[of_block] - (self.first + column) + 1).clamp(0, width + 1)
        starts = (all_rows[of_block] - row) << 53
        thresholds = starts | all_thresholds[of_block] | columns
        closer = torch.zeros_like(thresholds)
        for some in places_within(block, limits[:, None]).split(CANDIDATES_AT_ONCE):
            keys = in_order(keys_by_row(block.view(-1).take(some), some, height, width))
            closer += torch.searchsorted(keys, thresholds) - torch.searchsorted(keys, starts)
            if self.find_ties:
                values = thresholds >> 21
                ties = torch.searchsorted(keys, values << 21) < torch.searchsorted(keys, (values + 1) << 21)
                with self.lock:
                    self.tied[row + (values[ties] >> 32).cpu().numpy()] = True
        return closer

    def _closer_one_by_one(self, row: int, column: int, block: np.ndarray, chosen: np.ndarray) -> np.ndarray:
        """How many items of its row are before each of the matches chosen, which are sorted by row."""
        width = block.shape[1]
        distances = self.matches.distances[chosen]
        places = self.matches.positions[chosen] - (self.first + column)
        # Of items that tie with a match, those at an earlier position are before it. The next number above tells them
        # from others in the same comparison; infinity has none, and that of zero is zero where denormals are flushed.
        size = np.abs(distances)
        behind = (places >= width) & (size < np.inf) & (size > np.finfo(np.float32).tiny)
        below = np.where(behind, np.nextafter(distances, np.float32(np.inf)), distances)[:, None]
        rows = self.rows[chosen] - row
        closer = np.empty(len(chosen), dtype=np.int64)
        counts = np.uint16 if width < 1 << 16 else np.uint32  # the smaller, the faster
        for first, end in ranges(len(chosen), ROWS_TOGETHER):
            before = block[rows[first:end]] < below[first:end]
            np.add.reduce(before.view(np.uint8), axis=1, dtype=counts, out=closer[first:end])
        for i in np.flatnonzero((places > 0) & ~behind):
            closer[i] += np.count_nonzero(block[rows[i], : places[i]] == distances[i])
        return closer

    def _own(self, row: int, column: int, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
        """(entries of the pairs, flat positions in the block) of the pairs of one identity, which are not counted."""
        start, stop = self.own_offsets[row], self.own_offsets[row + height]
        columns = self.pairs.columns[start:stop] - column
        inside = np.flatnonzero((columns >= 0) & (columns < width))
        return start + inside, (self.pairs.rows[start:stop][inside] - row) * width + columns[inside]

    def twin(self) -> CloserCounter:
        return self

    def merge(self, other: CloserCounter) -> None:
        pass  # all workers add to the same counts

    def ranks(self, world: OneProcess) -> np.ndarray:
        """(M,) rank of each match, from 1, among all items but those that are left out."""
        rows = self.matches.rows
        return world.sum(self.closer) + np.arange(len(rows)) - self.matches.offsets[rows] + 1


class Nearest:
    """The k nearest items of each row, ties by position.

    Args:
        num_rows, k: how many rows, how many items of each.
        first: position of the first column.
        excluded: (rows, columns) of pairs that never count, by row.
    """

    def __init__(self, num_rows: int, k: int, first: int = 0, excluded: tuple[np.ndarray, np.ndarray] | None = None):
        self.k, self.first = k, first
        self.keys = torch.full((num_rows, k), NONE, dtype=torch.int64, device=CPU)
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
        limits = torch.where(fresh, limits, _below(limits))
        if self.k < width and bool(fresh.any()):
            # A first look at a row: only its k nearest of this block, and their ties, are of interest.
            limits[fresh] = limits_of_nearest(block if bool(fresh.all()) else block[fresh], self.k)
        close = places_within(block, limits[:, None])
        rows = close // width
        self.offer_rows(row, height, rows, block.view(-1)[close], column + close - rows * width)

    def offer(self, positions: np.ndarray, distances: np.ndarray) -> None:
        """Look at (num_rows, n) items found elsewhere, by position from this process's first; -1 is none."""
        keys = item_keys(torch.from_numpy(distances), torch.from_numpy(positions + self.first))
        keys = keys.masked_fill(torch.from_numpy(positions < 0), NONE)
        self.keys = smallest(torch.cat([self.keys, keys], dim=1), self.k)

    def candidates_transposed(
        self, row: int, column: int, block: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Candidates for the transposed tile, as ``offer_rows`` takes them once they are sorted by row.

        Each row must already hold k neighbours. Other threads may offer to the same rows meanwhile, in any order:
        limits only get tighter, and ties with an item that is further back are kept.
        """
        height = block.shape[1]
        last = self.keys[row : row + height, -1]
        limits = key_distances(last)
        limits = torch.where(key_positions(last) < self.first + column, _below(limits), limits)
        close = places_within(block, limits[None, :])
        columns = close // height
        rows = close - columns * height
        return rows, block[columns, rows], column + columns

    def offer_rows(
        self, row: int, height: int, rows: torch.Tensor, distances: torch.Tensor, columns: torch.Tensor
    ) -> None:
        """Keeps, in ``height`` rows from ``row`` on, what is nearer than the items so far; ``rows`` are sorted."""
        if not len(rows):
            return
        best = self.keys[row : row + height]
        counts = torch.bincount(rows, minlength=height)
        starts = counts.cumsum(0) - counts
        candidates = best.new_full((height, int(counts.max())), NONE)
        places = torch.arange(len(rows), device=rows.device) - starts[rows]
        candidates[rows, places] = item_keys(distances, self.first + columns)
        self.keys[row : row + height] = smallest(torch.cat([best, candidates], dim=1), self.k)

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
        self.keys = smallest(torch.cat([self.keys, other.keys.to(self.keys.device)], dim=1), self.k)

    def merge_processes(self, world: OneProcess) -> None:
        """Takes over what the other processes found."""
        parts = [torch.from_numpy(part) for part in world.gather(self.keys.cpu().numpy())]
        self.keys = smallest(torch.cat(parts, dim=1), self.k)

    def complete(self) -> tuple[np.ndarray, np.ndarray]:
        """``result`` of rows that all have k items.

        Raises:
            UserError: infinite or missing distances, which no neighbourhood can be made of.
        """
        positions, distances = self.result()
        if (positions < 0).any():
            row = int((positions < 0).any(axis=1).argmax())
            raise UserError(
                f"item {row} has fewer than {self.k} neighbours at a finite distance; scale the features down or mend "
                "the distances"
            )
        return positions, distances

    def result(self) -> tuple[np.ndarray, np.ndarray]:
        """(positions, distances), nearest first; -1 and infinity where there are fewer than k items."""
        keys = self.keys.cpu()
        distances = key_distances(keys)
        positions = torch.where(distances.isinf(), -1, key_positions(keys))
        return positions.numpy(), distances.numpy()


class Farthest:
    """Observer: the largest distance of each row."""

    def __init__(self, num_rows: int):
        self.values = torch.full((num_rows,), -torch.inf, dtype=torch.float32, device="cpu")

    def add(self, row: int, column: int, block: torch.Tensor) -> None:
        self.keep(row, block.amax(dim=1))

    def keep(self, row: int, values: torch.Tensor) -> None:
        """Takes over the largest distances of consecutive rows."""
        if self.values.device != values.device:
            self.values = self.values.to(values.device)
        kept = self.values[row : row + len(values)]
        torch.maximum(kept, values, out=kept)

    def twin(self) -> Farthest:
        return Farthest(len(self.values))

    def merge(self, other: Farthest) -> None:
        self.values = torch.maximum(self.values, other.values.to(self.values.device))
