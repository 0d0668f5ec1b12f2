"""How features become vectors that can be compared: unit length, centring, precision.

Ordinary features are compared as torchreid compares them, in float32: a distance is good to about 1e-7 (cosine), or
1e-7 of the sum of the two squared norms (squared euclidean). Features far from the origin and close to one another are
centred first, in float64. Where distances of near items would still drown in the rounding, products are float64's.
Where even a float32 result cannot tell items apart, that is an error.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from ..errors import IndistinctError
from ..parallel.launch import OneProcess
from .distances import Vectors, check_squares, distance_block, exact_pairs, one_thread

CPU = torch.device("cpu")
PLAIN_NORMS = (1e-15, 1e15)  # norms whose squares float32 holds in full precision
SAMPLE = 128  # queries and gallery items that a space is chosen by
OFF_ORIGIN = 16  # |centre|^2 in spreads from which on vectors are centred
ROUNDING = float(np.finfo(np.float32).eps) / 2
TOO_NEAR = 1024  # roundings of the squared norms below which a distance is too coarse in float32
BLURRED = 1e-4  # error beside the range of a query's nearest tenth from which on float32 is too coarse
ROUNDED = 1e-3  # the same for the rounding of the exact distances to float32
SMALLEST = 1e-15  # below that, rounding errors of squared distances are denormal


@dataclass(frozen=True)
class Space:
    """How features become distances.

    Args:
        metric: 'cosine' or 'euclidean'.
        centre: (D,) float64, subtracted in float64 from the features, or from their unit vectors for cosine: distances
            stay the same, their rounding errors become small.
        double: multiply in float64.
        wide: whether any features are float64, so that those sent to other processes have to be.
    """

    metric: str
    centre: np.ndarray | None = None
    double: bool = False
    wide: bool = False

    @property
    def plain(self) -> bool:
        """Whether distances are torchreid's own arithmetic in float32."""
        return self.centre is None and not self.double

    @property
    def wire(self) -> type:
        """The type in which raw features lose nothing on the way to another process."""
        return np.float64 if self.wide else np.float32

    def prepare(self, features: np.ndarray | Sequence[np.ndarray], device: torch.device) -> Vectors:
        """(N, D) raw features, or several such one after the other, as ``Vectors``; one copy is made.

        Raises:
            UserError: squared euclidean distances that float32 does not hold.
        """
        parts = [features] if isinstance(features, np.ndarray) else list(features)
        if self.plain:
            return self._prepare_plain(parts, device)
        raw = _rows(parts, np.float64)
        zero = np.zeros(len(raw), dtype=bool)
        if self.metric == "cosine":
            raw = unit64(raw)
            zero = (raw == 0).all(axis=1)
        if self.centre is not None:
            raw -= self.centre
            if self.metric == "cosine":  # |a - b|^2 / 2 of unit vectors is 1 - cosine
                raw *= np.sqrt(0.5)
        values = torch.from_numpy(raw if self.double else raw.astype(np.float32)).to(device)
        if self.centre is None and self.metric == "cosine":
            return Vectors(values, None)
        squared = values.pow(2).sum(dim=1)
        if zero.any():  # the cosine of a vector without direction is 0
            squared[torch.from_numpy(zero).to(device)] += 0.5
        check_squares(squared)
        return Vectors(values, squared)

    def _prepare_plain(self, parts: list[np.ndarray], device: torch.device) -> Vectors:
        """Float32 arithmetic throughout; the rows of norms that it cannot square are made unit vectors in float64."""
        with np.errstate(over="ignore"):
            values = torch.from_numpy(_rows(parts, np.float32)).to(device)
        if self.metric == "euclidean":
            squared = values.pow(2).sum(dim=1)
            check_squares(squared)
            return Vectors(values, squared)
        norms = torch.linalg.vector_norm(values, dim=1, keepdim=True)
        odd = ~((norms > PLAIN_NORMS[0]) & (norms < PLAIN_NORMS[1])).view(-1)
        if bool(odd.any()):
            chosen = odd.nonzero().view(-1).cpu().numpy()
            mended = unit64(_rows_at(parts, chosen)).astype(np.float32)
            values[odd], norms[odd] = torch.from_numpy(mended).to(device), 1.0
        return Vectors(values.div_(norms), None)

    def directions(self, features: np.ndarray) -> np.ndarray:
        """(N, D) what query expansion averages: centred features, or centred unit vectors for cosine."""
        if self.plain:
            return self.prepare(features, CPU).values.numpy()
        rows = _rows([features], np.float64)
        rows = unit64(rows) if self.metric == "cosine" else rows
        return rows if self.centre is None else rows - self.centre

    def features(self, directions: np.ndarray) -> np.ndarray:
        """Float64 means of directions as features again."""
        return (directions if self.centre is None else directions + self.centre).astype(self.wire)


def _rows(parts: Sequence[np.ndarray], kind: type) -> np.ndarray:
    """A copy whose rows lie one after the other: the order of a sum depends on how its numbers lie in memory."""
    copy: np.ndarray = np.empty((sum(len(part) for part in parts), parts[0].shape[1]), dtype=kind)
    return np.concatenate(parts, out=copy, casting="same_kind")


def _rows_at(parts: Sequence[np.ndarray], positions: np.ndarray) -> np.ndarray:
    """(P, D) float64 rows of arrays that follow one another."""
    starts = np.cumsum([0, *(len(part) for part in parts)])
    which = np.searchsorted(starts, positions, "right") - 1
    return np.stack([parts[w][p - starts[w]] for w, p in zip(which, positions, strict=True)]).astype(np.float64)


def unit64(rows: np.ndarray) -> np.ndarray:
    """(N, D) float64 vectors of length 1, whatever their scale; zeros stay zeros."""
    largest = np.abs(rows).max(axis=1, keepdims=True)
    largest[largest == 0] = 1
    rows = rows / np.exp2(np.floor(np.log2(largest)))  # exact
    norms = np.sqrt(np.square(rows).sum(axis=1, keepdims=True))
    norms[norms == 0] = 1
    return rows / norms


# --- the choice ----------------------------------------


def choose_space(
    query: np.ndarray,
    gallery: np.ndarray,
    metric: str,
    world: OneProcess | None = None,
    first: int = 0,
    near: Callable[[Space], tuple[np.ndarray, np.ndarray]] | None = None,
) -> Space:
    """The space in which these features are told apart; the same in every process, however the gallery is shared out.

    Args:
        query: (Nq, D) raw features, the same in every process.
        gallery: (Ng, D) raw features of this process, which start at position ``first``.
        near: gives (rows, columns) of some pairs of query and this process's gallery that have to be told apart.

    Raises:
        UserError: values so large that float32 does not hold squared distances.
        IndistinctError: values so small that it does not, or an offset between queries and gallery beside which float32
            distances show no order.
    """
    world = world or OneProcess()
    wide = bool(world.sum(np.array([int(x.dtype == np.float64) for x in (query, gallery)])).any())
    some = query[_evenly(len(query))]
    positions = _evenly(int(world.sum(np.array([len(gallery)]))[0])) - first
    here = positions[(positions >= 0) & (positions < len(gallery))]
    others = world.concatenate(_rows([gallery[here]], np.float64))
    with np.errstate(over="ignore", invalid="ignore"), one_thread():
        exact = Space(metric, _centre(np.concatenate([some, others]), metric), double=True, wide=wide)
        single = replace(exact, double=False)
        vectors = exact.prepare(some, CPU), exact.prepare(others, CPU)
        _check_small(metric, vectors)
        distances = _distances64(*vectors)
        error = np.abs(distances - distance_block(single.prepare(some, CPU), single.prepare(others, CPU)).numpy())
    # Of each query the nearest tenth counts: what else there is may be as far away as it likes.
    near_ones = np.argsort(distances, axis=1, kind="stable")[:, : len(others) // 10 + 1]
    distances, error = (np.take_along_axis(x, near_ones, 1) for x in (distances, error))
    spread = distances[:, -1] - distances[:, 0]
    rounded = np.abs(distances - distances.astype(np.float32))
    if _most(np.median(rounded, axis=1) > ROUNDED * spread, spread > 0):
        raise IndistinctError(
            "queries and gallery are so far apart that float32 distances do not tell gallery items from one another; "
            "subtract from each its own mean"
        )
    if _most(np.median(error, axis=1) > BLURRED * spread, spread > 0):
        return exact
    rows, columns = near(single) if near is not None else (np.empty(0, np.int64), np.empty(0, np.int64))
    with one_thread():
        coarse, all_of_them = world.sum(_count_coarse(exact, query, gallery, rows, columns))
    return exact if 100 * coarse > all_of_them else single


def index_space(features: np.ndarray, metric: str) -> Space:
    """The space of an index that holds these features as float32."""
    chosen = _evenly(len(features))
    with np.errstate(over="ignore", invalid="ignore"):
        centre = _centre(features[chosen].astype(np.float64), metric)
    wide = features.dtype == np.float64
    if centre is not None and not wide:
        centre = centre.astype(np.float32).astype(np.float64)  # as a file keeps it
    return Space(metric, centre, wide=wide)


def _evenly(length: int) -> np.ndarray:
    """Some positions, evenly spaced."""
    return np.unique(np.linspace(0, length - 1, SAMPLE).astype(np.int64))


def _most(true: np.ndarray, among: np.ndarray) -> bool:
    return bool(among.any() and (true & among).sum() > 0.05 * among.sum())


def _centre(rows: np.ndarray, metric: str) -> np.ndarray | None:
    """The median of each coordinate where vectors are far from the origin beside their distance from it."""
    vectors = unit64(rows) if metric == "cosine" else rows.astype(np.float64)
    centre = np.median(vectors, axis=0)
    spread = np.median(np.square(vectors - centre).sum(axis=1))
    return centre if np.square(centre).sum() > OFF_ORIGIN * spread else None


def _check_small(metric: str, vectors: tuple[Vectors, Vectors]) -> None:
    largest = max(float(v.values.abs().max()) for v in vectors)
    if metric == "euclidean" and 0 < largest < SMALLEST:
        raise IndistinctError("feature values are so small that their squares underflow float32; scale the features up")


def _distances64(a: Vectors, b: Vectors) -> np.ndarray:
    products = a.values @ b.values.T
    if a.squared is None or b.squared is None:
        return (1 - products).numpy()
    return (a.squared[:, None] + b.squared[None, :] - 2 * products).numpy()


def _count_coarse(
    exact: Space, query: np.ndarray, gallery: np.ndarray, rows: np.ndarray, columns: np.ndarray
) -> np.ndarray:
    """(pairs too near for float32, pairs); equal vectors are left out, since they tie in any precision."""
    if not len(rows):
        return np.zeros(2, dtype=np.int64)
    a, b = exact.prepare(query[rows], CPU), exact.prepare(gallery[columns], CPU)
    squares = 1.0 if a.squared is None or b.squared is None else a.squared + b.squared
    different = (a.values != b.values).any(dim=1)
    coarse = (exact_pairs(a, b) < TOO_NEAR * ROUNDING * squares) & different
    return np.array([int(coarse.sum()), int(different.sum())])
