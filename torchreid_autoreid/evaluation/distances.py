"""Distances between vectors, block by block: 1 - cosine similarity, or the squared euclidean distance, as in torchreid.

Vectors come prepared from a ``Space``. Distances are float32, from products in float32 or, where that is too coarse,
float64. The same pair always gets the same bits, whatever the block or the process: on the CPU, matrix products of at
least ``MIN_ROWS`` rows and columns sum in one order; on a GPU the order depends on the shape of the product, so all
products there have one shape. Exact ties stay ties.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock

import numpy as np
import torch

from ..errors import UserError

METRICS = ("cosine", "euclidean")
MIN_ROWS = 32  # below about 16 rows, BLAS takes other kernels, which round differently
GPU_TILE = (512, 16384)  # the one shape of products on a GPU
LARGEST_SQUARE = float(np.finfo(np.float32).max) / 4  # (|a| + |b|)^2 <= 4 max(|a|^2, |b|^2) has to be finite


@dataclass(frozen=True)
class Vectors:
    """Vectors ready for one metric: of unit length for cosine, else with their squared norms."""

    values: torch.Tensor  # (N, D) float32 or float64
    squared: torch.Tensor | None  # (N,) of the same type

    def take(self, rows: slice | torch.Tensor) -> Vectors:
        """Some of the vectors."""
        values = self.values[rows] if isinstance(rows, slice) else self.values.index_select(0, rows)  # twice as fast
        return Vectors(values, None if self.squared is None else self.squared[rows])


def check_metric(metric: str) -> None:
    """Raises a UserError for a metric that is neither 'cosine' nor 'euclidean'."""
    if metric not in METRICS:
        raise UserError(f"unknown metric {metric!r}; choose from {', '.join(METRICS)}")


def find_devices(device: str, distributed: bool = False) -> list[torch.device]:
    """The devices to compute on: the CPU, one GPU ('cuda:1'), or all of them ('cuda').

    Where every process has its own GPU (``distributed``), 'cuda' is the process's current one.
    """
    try:
        wanted = torch.device(device)
    except (RuntimeError, TypeError, ValueError) as error:
        raise UserError(f"unknown device {device!r}; choose 'cpu' or 'cuda'") from error
    if wanted.type == "cpu":
        return [wanted]
    if wanted.type != "cuda":
        raise UserError(f"unknown device {device!r}; choose 'cpu' or 'cuda'")
    count = torch.cuda.device_count()
    if not count or (wanted.index or 0) >= count:
        raise UserError(f"device {device!r} asked for, but torch sees {count} GPUs; use device='cpu'")
    if str(wanted) != "cuda":  # a number was given
        return [wanted]
    return [torch.device("cuda", i) for i in ([torch.cuda.current_device()] if distributed else range(count))]


# --- PyTorch's settings ----------------------------------------


class _FullPrecision:
    """Float32 products in float32 while anyone in this process needs them; the caller's setting comes back after."""

    def __init__(self) -> None:
        self.lock = Lock()
        self.users = 0
        self.before: list[str] = []

    @staticmethod
    def _backends() -> list:
        found = [torch.backends.cuda.matmul, getattr(torch.backends.mkldnn, "matmul", None)]
        return [backend for backend in found if hasattr(backend, "fp32_precision")]

    def __enter__(self) -> None:
        with self.lock:
            self.users += 1
            if self.users > 1:
                return
            # PyTorch since 2.9 has a setting for each backend, and its older one fails where the two disagree.
            if backends := self._backends():
                self.before = [backend.fp32_precision for backend in backends]
                for backend in backends:
                    backend.fp32_precision = "ieee"
            else:
                self.before = [torch.get_float32_matmul_precision()]
                torch.set_float32_matmul_precision("highest")

    def __exit__(self, *_: object) -> None:
        with self.lock:
            self.users -= 1
            if self.users:
                return
            if backends := self._backends():
                for backend, before in zip(backends, self.before, strict=True):
                    backend.fp32_precision = before
            else:
                torch.set_float32_matmul_precision(self.before[0])


_FULL_PRECISION = _FullPrecision()


@contextmanager
def full_precision() -> Iterator[None]:
    """Float32 matrix products in float32, whatever autocast or TF32 setting the caller trains with."""
    # The precision is the process's, the others are the thread's.
    with (
        _FULL_PRECISION,
        torch.no_grad(),
        torch.autocast("cpu", enabled=False),
        torch.autocast("cuda", enabled=False),
    ):
        yield


@contextmanager
def one_thread() -> Iterator[None]:
    """PyTorch on one thread: others cost more than they help where there is little to do."""
    threads = torch.get_num_threads()
    if threads == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


# --- distances ----------------------------------------


def check_squares(sums: torch.Tensor) -> None:
    """Raises a UserError for squared norms of which two may add up to infinity."""
    if not bool((sums <= LARGEST_SQUARE).all()):
        raise UserError("feature values are so large that their squares overflow float32; scale the features down")


def _tile(device: torch.device) -> tuple[int, int] | None:
    """The shape that every product on this device has; none where the shape is no matter."""
    return GPU_TILE if device.type == "cuda" else None


def distance_block(a: Vectors, b: Vectors, out: torch.Tensor | None = None) -> torch.Tensor:
    """(len(a), len(b)) float32 distances: 1 - cosine similarity, or the squared euclidean distance.

    ``out``, a flat buffer of at least that many float32 values, is reused when given.
    """
    rows, columns = len(a.values), len(b.values)
    tile = _tile(a.values.device)
    if tile is None:
        a, b = _at_least(a, MIN_ROWS), _at_least(b, MIN_ROWS)
        block = _product(a, b, out)
        return block if block.shape == (rows, columns) else block[:rows, :columns].contiguous()
    if (rows, columns) == tile:
        return _product(a, b, out)
    block = _view(out, rows, columns, a.values.device)
    for row in range(0, rows, tile[0]):
        some = a.take(slice(row, row + tile[0]))
        for column in range(0, columns, tile[1]):
            others = b.take(slice(column, column + tile[1]))
            part = _product(_at_least(some, tile[0]), _at_least(others, tile[1]))
            block[row : row + tile[0], column : column + tile[1]] = part[: len(some.values), : len(others.values)]
    return block


def _product(a: Vectors, b: Vectors, out: torch.Tensor | None = None) -> torch.Tensor:
    """(len(a), len(b)) float32 distances, by one matrix product in the vectors' own type."""
    double = a.values.dtype == torch.float64
    block = _view(None if double else out, len(a.values), len(b.values), a.values.device, a.values.dtype)
    if a.squared is None or b.squared is None:
        torch.mm(a.values, b.values.T, out=block)
        torch.sub(1, block, out=block)
    else:
        torch.add(a.squared[:, None], b.squared[None, :], out=block)
        block.addmm_(a.values, b.values.T, beta=1, alpha=-2)
    return _view(out, len(block), block.shape[1], block.device).copy_(block) if double else block


def _view(
    buffer: torch.Tensor | None, rows: int, columns: int, device: torch.device, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    if buffer is None or buffer.numel() < rows * columns:
        return torch.empty((rows, columns), dtype=dtype, device=device)
    return buffer[: rows * columns].view(rows, columns)


def _at_least(vectors: Vectors, count: int) -> Vectors:
    """The vectors, padded with zeros up to ``count``."""
    missing = count - len(vectors.values)
    if missing <= 0:
        return vectors
    values = torch.nn.functional.pad(vectors.values, (0, 0, 0, missing))
    return Vectors(values, None if vectors.squared is None else torch.nn.functional.pad(vectors.squared, (0, missing)))


def pair_distances(a: Vectors, b: Vectors) -> torch.Tensor:
    """(N,) float32 distances of a[i] to b[i]; they may differ from ``distance_block`` in the last bits."""
    return exact_pairs(a, b).to(torch.float32)


def exact_pairs(a: Vectors, b: Vectors) -> torch.Tensor:
    """(N,) distances of a[i] to b[i] in the vectors' own type."""
    products = (a.values * b.values).sum(dim=1)
    if a.squared is None or b.squared is None:
        return 1 - products
    return a.squared + b.squared - 2 * products
