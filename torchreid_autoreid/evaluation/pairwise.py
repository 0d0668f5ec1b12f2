"""One pass over all query-gallery distances in blocks small enough for the cache, and who may look at each block.

A source of distances yields pieces of the gallery, each with a function that gives the block of a range of queries;
``between`` gives chosen pairs. Observers get every block once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from threading import Lock
from typing import Any, Protocol, TypeVar

import numpy as np
import torch

from .distances import GPU_TILE, distance_block, full_precision
from .embeddings import release
from .space import Space

CPU_BLOCK = (256, 4096)  # queries x gallery items; 4 MB stay in the cache between the product and the counting

END: Any = object()
Item = TypeVar("Item")
BlockOf = Callable[[int, int], torch.Tensor]
RowsOf = Callable[[torch.device], BlockOf]
Progress = Callable[[str, int, int], None]  # (what is being done, pieces done, pieces in all)


class BlockSource(Protocol):
    """Where blocks of distances come from."""

    num_queries: int
    num_gallery: int
    devices: list[torch.device]

    def columns(self) -> Iterator[tuple[int, int, RowsOf]]:
        """Yields (first column, end column, device -> (first row, end row) -> block) of each piece of the gallery."""


class Distances(BlockSource, Protocol):
    """The same, with distances of chosen pairs."""

    def between(self, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """(len(rows), len(columns)) distances: float32, or whatever a given matrix holds."""


class Observer(Protocol):
    """Something that looks at each block once."""

    def add(self, row: int, column: int, block: torch.Tensor) -> None:
        """Look at the block whose top left corner is (row, column)."""

    def twin(self) -> Observer:
        """An observer of the same kind that has seen nothing."""

    def merge(self, other: Any) -> None:
        """Takes over what a twin saw."""


def block_shape(devices: Sequence[torch.device]) -> tuple[int, int]:
    """How many queries and gallery items make a block."""
    return CPU_BLOCK if devices[0].type == "cpu" else GPU_TILE


def ranges(length: int, step: int) -> list[tuple[int, int]]:
    """(start, stop) of consecutive pieces."""
    return [(start, min(start + step, length)) for start in range(0, length, step)]


def ranges_within(costs: np.ndarray, limit: int) -> list[tuple[int, int]]:
    """(start, stop) of consecutive pieces, of one item at least, that cost at most ``limit`` if they can."""
    ends = np.cumsum(costs)
    found, start = [], 0
    while start < len(ends):
        before = int(ends[start - 1]) if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, before + limit, "right")))
        found.append((start, stop))
        start = stop
    return found


class FeatureDistances:
    """Distances of queries to a gallery that is read piece by piece, from memory or a memory-mapped file.

    Args:
        query: (Nq, D) raw features, or several such one after the other, kept prepared on every device.
        gallery: (Ng, D) raw features, prepared one piece at a time.
    """

    def __init__(
        self,
        query: np.ndarray | Sequence[np.ndarray],
        gallery: np.ndarray,
        space: Space,
        devices: list[torch.device],
    ):
        self.space, self.devices = space, devices
        self.gallery = gallery
        self.query = {device: space.prepare(query, device) for device in devices}
        self.num_queries, self.num_gallery = len(self.query[devices[0]].values), len(gallery)

    def pieces(self) -> Iterator[tuple[int, np.ndarray]]:
        """(first position, raw features) of consecutive pieces of the gallery."""
        for start, stop in ranges(self.num_gallery, block_shape(self.devices)[1]):
            yield start, self.gallery[start:stop]
            release(self.gallery)

    def columns(self) -> Iterator[tuple[int, int, RowsOf]]:
        for start, piece in self.pieces():
            yield start, start + len(piece), partial(self._rows, piece)

    def _rows(self, piece: np.ndarray, device: torch.device) -> BlockOf:
        query, vectors = self.query[device], self.space.prepare(piece, device)
        buffer = torch.empty(block_shape(self.devices)[0] * len(piece), dtype=torch.float32, device=device)
        return lambda first, end: distance_block(query.take(slice(first, end)), vectors, buffer)

    def between(self, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        device = self.devices[0]
        wanted = self.query[device].take(torch.from_numpy(rows).to(device))
        block = distance_block(wanted, self.space.prepare(self.gallery[columns], device)).cpu().numpy()
        release(self.gallery)
        return block


class WithoutIgnored:
    """The same distances with some gallery items infinitely far away, behind all others."""

    def __init__(self, base: Distances, ignored: np.ndarray):
        self.base, self.ignored = base, ignored
        self.num_queries, self.num_gallery, self.devices = base.num_queries, base.num_gallery, base.devices

    def columns(self) -> Iterator[tuple[int, int, RowsOf]]:
        for start, stop, rows_of in self.base.columns():
            yield start, stop, partial(self._rows, rows_of, np.flatnonzero(self.ignored[start:stop]))

    def _rows(self, rows_of: RowsOf, gone: np.ndarray, device: torch.device) -> BlockOf:
        block_of, columns = rows_of(device), torch.from_numpy(gone).to(device)
        return lambda first, end: block_of(first, end).index_fill_(1, columns, torch.inf)

    def between(self, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        return self.base.between(rows, columns)


class MatrixDistances:
    """BlockSource of a given (Nq, Ng) matrix.

    Attributes:
        exact: whether float32 holds every value; if not, blocks are rounded to it, and ``between`` is not.
    """

    def __init__(self, matrix: np.ndarray, exact: bool | None = None):
        self.devices = [torch.device("cpu")]
        self.matrix = matrix
        self.exact = _is_float32(matrix) if exact is None else exact
        self.num_queries, self.num_gallery = matrix.shape

    def of_queries(self, first: int, end: int) -> MatrixDistances:
        """Some of the rows."""
        return MatrixDistances(self.matrix[first:end], self.exact)

    def columns(self) -> Iterator[tuple[int, int, RowsOf]]:
        for start, stop in ranges(self.num_gallery, CPU_BLOCK[1]):
            yield start, stop, partial(self._rows, start, stop)

    def _rows(self, start: int, stop: int, _: torch.device) -> BlockOf:
        return lambda first, end: torch.from_numpy(_float32(self.matrix[first:end, start:stop]))

    def between(self, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        values = self.matrix[np.ix_(rows, columns)]
        return _float32(values) if self.exact else values


def _is_float32(matrix: np.ndarray) -> bool:
    with np.errstate(over="ignore"):
        return np.can_cast(matrix.dtype, np.float32) or all(
            bool((matrix[first:end].astype(np.float32).astype(matrix.dtype) == matrix[first:end]).all())
            for first, end in ranges(len(matrix), CPU_BLOCK[0])
        )


def _float32(values: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):  # infinite distances are the last ones
        return np.array(values, dtype=np.float32, order="C")


def share_out(items: Iterable[Item], work: Callable[[int, Item], None], count: int) -> None:
    """Calls work(worker, item) for every item; ``count`` threads take the items in order, and use no other threads.

    BlockSource are small: threads that each take whole blocks do not wait for one another after every operator.
    """
    todo = iter(items)
    lock = Lock()

    def take_all(worker: int) -> None:
        while True:
            with lock:  # what yields the items may talk to other processes
                item = next(todo, END)
            if item is END:
                return
            work(worker, item)

    if count <= 1:
        take_all(0)
        return
    threads = torch.get_num_threads()

    def alone(worker: int) -> None:
        torch.set_num_threads(1)
        with full_precision():  # a setting of each thread
            take_all(worker)

    try:
        with ThreadPoolExecutor(count) as pool:
            list(pool.map(alone, range(count)))
    finally:
        torch.set_num_threads(threads)


def workers(devices: Sequence[torch.device]) -> list[torch.device]:
    """The device of each worker: one for each GPU, or one for each CPU thread that torch may use."""
    return list(devices) if devices[0].type != "cpu" else [devices[0]] * torch.get_num_threads()


def scan(
    distances: BlockSource,
    observers: Sequence[Observer],
    progress: Progress | None = None,
    description: str = "comparing",
) -> None:
    """Shows every block to the observers. Workers take the pieces of the gallery in order; twins watch all but one."""
    row_ranges = ranges(distances.num_queries, block_shape(distances.devices)[0])
    total = len(ranges(distances.num_gallery, block_shape(distances.devices)[1]))
    team = workers(distances.devices)[:total]
    watching = [observers, *([observer.twin() for observer in observers] for _ in team[1:])]

    done, lock = 0, Lock()

    def work(worker: int, taken: tuple[int, int, RowsOf]) -> None:
        nonlocal done
        column, _, rows_of = taken
        block_of = rows_of(team[worker])
        for first, end in row_ranges:
            block = block_of(first, end)
            for observer in watching[worker]:
                observer.add(first, column, block)
        if progress is not None:
            with lock:
                done += 1
                progress(description, done, total)

    share_out(distances.columns(), work, len(team))
    for others in watching[1:]:
        for observer, other in zip(observers, others, strict=True):
            observer.merge(other)
