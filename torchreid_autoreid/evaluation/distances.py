"""Distances between vectors, block by block, with the arithmetic of torchreid's `compute_distance_matrix`.

On the CPU the same pair always gets the same bits, whatever the block: matrix products of at least `MIN_ROWS` rows and
columns sum in one order. Exact ties therefore stay ties, and the figures of one process and of several are the same. On
GPUs the last bits may depend on the block's shape.

All arithmetic is float32's, as in torchreid: a distance is good to about 1e-7 (cosine), or 1e-7 of the sum of the two
squared norms (squared euclidean). Items whose distances differ by less than that may swap, so subtract the mean from
euclidean features that are far from the origin and close to one another.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from ..errors import UserError

METRICS = ("cosine", "euclidean")
MIN_ROWS = 32  # below about 16 rows, BLAS takes other kernels, which round differently


@dataclass(frozen=True)
class Vectors:
    """Vectors ready for one metric: of unit length for cosine, with their squared norms for euclidean."""

    values: torch.Tensor  # (N, D) float32
    squared: torch.Tensor | None  # (N,) float32

    def take(self, rows: slice | torch.Tensor) -> Vectors:
        """Some of the vectors."""
        return Vectors(self.values[rows], None if self.squared is None else self.squared[rows])


def check_metric(metric: str) -> None:
    """Raise a UserError for a metric that is neither 'cosine' nor 'euclidean'."""
    if metric not in METRICS:
        raise UserError(f"unknown metric {metric!r}; choose from {', '.join(METRICS)}")


def find_devices(device: str, distributed: bool = False) -> list[torch.device]:
    """The devices to compute on: the CPU, one GPU ('cuda:1'), or all of them ('cuda').

    Where every process has its own GPU (`distributed`), 'cuda' is the process's current one.
    """
    try:
        wanted = torch.device(device)
    except (RuntimeError, TypeError) as error:
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


@contextmanager
def full_precision() -> Iterator[None]:
    """Float32 matrix products in float32, whatever autocast or TF32 setting the caller trains with."""
    # The precision is the process's, the others are the thread's.
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.no_grad(), torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


def prepare(features: np.ndarray | Sequence[np.ndarray], metric: str, device: torch.device) -> Vectors:
    """(N, D) raw features, or several such one after the other, as `Vectors`; one copy is made and changed in place."""
    parts = [features] if isinstance(features, np.ndarray) else features
    values = torch.from_numpy(np.concatenate(parts, dtype=np.float32)).to(device)
    if metric == "cosine":
        norms = torch.linalg.vector_norm(values, dim=1, keepdim=True)
        _check_squares(norms)
        return Vectors(values.div_(norms.clamp_min_(1e-12)), None)
    squared = values.pow(2).sum(dim=1)
    _check_squares(squared)
    return Vectors(values, squared)


def _check_squares(sums: torch.Tensor) -> None:
    if not bool(sums.isfinite().all()):
        raise UserError("feature values are so large that their squares overflow float32; scale the features down")


def distance_block(a: Vectors, b: Vectors, out: torch.Tensor | None = None) -> torch.Tensor:
    """(len(a), len(b)) distances: 1 - cosine similarity, or the squared euclidean distance.

    `out`, a flat buffer of at least that many float32 values, is reused when given.
    """
    rows, columns = len(a.values), len(b.values)
    a, b = _at_least(a), _at_least(b)
    shape = (len(a.values), len(b.values))
    block = a.values.new_empty(shape) if out is None or out.numel() < shape[0] * shape[1] else _view(out, shape)
    if a.squared is None or b.squared is None:
        torch.mm(a.values, b.values.T, out=block)
        torch.sub(1, block, out=block)
    else:
        torch.add(a.squared[:, None], b.squared[None, :], out=block)
        block.addmm_(a.values, b.values.T, beta=1, alpha=-2)
    return block if shape == (rows, columns) else block[:rows, :columns].contiguous()


def _view(buffer: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
    return buffer[: shape[0] * shape[1]].view(shape)


def _at_least(vectors: Vectors) -> Vectors:
    """The vectors, padded with zeros up to MIN_ROWS."""
    missing = MIN_ROWS - len(vectors.values)
    if missing <= 0:
        return vectors
    values = torch.nn.functional.pad(vectors.values, (0, 0, 0, missing))
    return Vectors(values, None if vectors.squared is None else torch.nn.functional.pad(vectors.squared, (0, missing)))


def pair_distances(a: Vectors, b: Vectors) -> torch.Tensor:
    """(N,) distances of a[i] to b[i]; they may differ from `distance_block` in the last bits."""
    products = (a.values * b.values).sum(dim=1)
    if a.squared is None or b.squared is None:
        return 1 - products
    return a.squared + b.squared - 2 * products
