"""Labelled feature vectors: the input of every evaluation."""

from __future__ import annotations

import mmap
import os
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UserError

CHECK_ROWS = 8192  # rows looked at together when values are checked, so that a memory-mapped file stays on disk


@dataclass(frozen=True)
class Embeddings:
    """Feature vectors with the identity and the camera of each.

    Args:
        features: (N, D) real numbers; float16, float32 and float64 arrays, `numpy.memmap` included, are kept as they
            are (a memory-mapped file is only ever read in pieces); anything else becomes one of these, without loss.
        pids: (N,) identities, whole numbers.
        camids: (N,) cameras, whole numbers.

    Raises:
        UserError: features that are not a matrix, are empty, NaN or infinite (the rows are named), labels of another
            length or that are not whole numbers.

    Example:
        >>> Embeddings(np.eye(3, dtype=np.float32), [0, 1, 2], [0, 0, 1]).dimension
        3
    """

    features: np.ndarray
    pids: np.ndarray
    camids: np.ndarray

    def __post_init__(self) -> None:
        features = as_features(self.features)
        object.__setattr__(self, "features", features)
        for name in ("pids", "camids"):
            object.__setattr__(self, name, as_labels(getattr(self, name), name, len(features)))

    def __len__(self) -> int:
        return len(self.features)

    @property
    def dimension(self) -> int:
        """D, the length of each vector."""
        return self.features.shape[1]


def as_features(features: Any) -> np.ndarray:
    """A matrix of finite float16, float32 or float64; other types are converted to one that holds their values."""
    if hasattr(features, "detach"):
        features = features.detach().cpu()
        features = (features.float() if features.dtype.itemsize < 4 else features).numpy()
    if not isinstance(features, np.ndarray):
        try:
            features = np.asarray(features)
        except ValueError as error:
            raise UserError("features are not a matrix; give (N, D) numbers, as many for each vector") from error
    if features.ndim != 2:
        raise UserError(f"features have shape {features.shape}; give a matrix of shape (N, D)")
    if features.size == 0:
        raise UserError(f"features have shape {features.shape}; give at least one vector of at least one value")
    if features.dtype.kind not in "fiu":
        raise UserError(f"features have type {features.dtype}; give real numbers")
    features = features.astype(features.dtype.newbyteorder("="), copy=False)  # PyTorch knows this machine's order only
    if features.dtype not in (np.float64, np.float32, np.float16):
        small = features.dtype.kind in "iu" and features.dtype.itemsize <= 2
        with np.errstate(over="ignore"):  # what is too large becomes infinite, which is told next
            features = features.astype(np.float32 if small else np.float64)
    _check_finite(features)
    return features


def release(features: np.ndarray) -> None:
    """Let go of what was read of a memory-mapped file; else all of it would stay in memory as long as there is room."""
    base: Any = features
    while isinstance(base, np.ndarray):
        base = base.base
    # Only where nobody can have written: a copy-on-write mapping would lose its changes, even if seen through an array
    # that is read-only.
    if isinstance(base, mmap.mmap) and hasattr(base, "madvise") and memoryview(base).readonly:
        base.madvise(mmap.MADV_DONTNEED)


def check_dimensions(query: int, gallery: int) -> None:
    """Raise a UserError for queries and gallery of different dimensions."""
    if query != gallery:
        raise UserError(f"queries have {query} dimensions, the gallery {gallery}; use one model for both")


def check_count(name: str, value: Any, least: int) -> None:
    """Raise a UserError for an option that is not a whole number of at least `least`."""
    if not isinstance(value, Integral) or value < least:
        raise UserError(f"{name} is {value}; give a whole number of at least {least}")


def as_labels(labels: Any, name: str, length: int) -> np.ndarray:
    """(length,) int64 labels, or a UserError that names them."""
    if hasattr(labels, "detach"):
        labels = labels.detach().cpu().numpy()
    labels = np.asarray(labels)
    if labels.shape != (length,):
        raise UserError(f"{name} have shape {labels.shape} for {length} vectors; give one label per vector")
    if labels.dtype.kind not in "iuf":
        raise UserError(f"{name} have type {labels.dtype}; give whole numbers")
    with np.errstate(invalid="ignore"):
        whole = labels.astype(np.int64)
    # A float that is whole is a label, as in torchreid, as long as floats tell it from its neighbours.
    exact = np.abs(labels) < 2.0**53 if labels.dtype.kind == "f" else whole >= 0 if labels.dtype.kind == "u" else True
    wrong = np.flatnonzero(~((whole == labels) & exact))
    if len(wrong):
        raise UserError(f"{name} hold {labels[wrong[0]]} in row {wrong[0]}; give whole numbers of at most 63 bits")
    return whole


def _check_finite(values: np.ndarray) -> None:
    """Raise a UserError that names the rows holding NaN or infinity."""
    bad: list[int] = []
    count = 0
    for start in range(0, len(values), CHECK_ROWS):
        finite = np.isfinite(values[start : start + CHECK_ROWS]).all(axis=1)
        rows = np.flatnonzero(~finite) + start
        count += len(rows)
        bad.extend(rows[: 5 - len(bad)].tolist())
        release(values)
    if bad:
        more = ", ..." if count > len(bad) else ""
        raise UserError(
            f"features hold NaN or infinity in {count} of {len(values)} rows: {', '.join(map(str, bad))}{more}; "
            "remove those rows or mend the model that made them"
        )


NPZ_KEYS = tuple(f"{part}_{field}" for part in ("query", "gallery") for field in ("features", "pids", "camids"))


#: sizes that no file of feature vectors unpacks to: those barely shrink, labels do a hundredfold but are few
_SMALL, _MAX_RATIO = 64 << 20, 100


def load_embeddings(path: str | os.PathLike) -> tuple[Embeddings, Embeddings]:
    """Query and gallery from an npz file of any framework.

    Args:
        path: an npz with `query_features` (Nq, D), `query_pids` (Nq,), `query_camids` (Nq,) and the same three of the
            gallery. Pickled objects are refused: loading never runs code. So is what would unpack to more than a
            hundred times the file's size.

    Returns:
        (query, gallery).

    Raises:
        UserError: no such file, not an npz, a key is missing, pickled objects, absurd sizes, or whatever `Embeddings`
            refuses.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"there is no file {path}; give an npz with the keys {', '.join(NPZ_KEYS)}")
    with open(path, "rb") as file:
        if file.read(6) == b"\x93NUMPY":
            raise UserError(f"{path} holds a single array; write an npz with the keys {', '.join(NPZ_KEYS)}")
    # NumPy and zipfile raise a dozen kinds of errors for files that are no archives or claim what they do not hold.
    try:
        archive = np.load(path, allow_pickle=False)
        unpacked = sum(member.file_size for member in archive.zip.infolist())
    except Exception as error:
        raise UserError(f"{path} is not an npz file; write it with numpy.savez") from error
    with archive:
        if unpacked > _SMALL + _MAX_RATIO * path.stat().st_size:
            raise UserError(f"{path} would unpack to {unpacked} bytes, {_MAX_RATIO} times its size; write it anew")
        missing = [key for key in NPZ_KEYS if key not in archive.files]
        if missing:
            found = ", ".join(archive.files) or "no arrays"
            raise UserError(f"{path} lacks {', '.join(missing)}; it has {found[:200]}")
        arrays = {}
        for key in NPZ_KEYS:
            try:
                arrays[key] = archive[key]
            except Exception as error:
                raise UserError(f"{key} in {path} is pickled or damaged; save plain arrays of numbers") from error
            if not isinstance(arrays[key], np.ndarray):  # a file in the archive that is no array comes as its bytes
                raise UserError(f"{key} in {path} is no array; write it with numpy.savez")
    parts = []
    for part in ("query", "gallery"):
        try:
            parts.append(Embeddings(*(arrays[f"{part}_{field}"] for field in ("features", "pids", "camids"))))
        except UserError as error:
            raise UserError(f"{part} of {path}: {error}") from error
    return parts[0], parts[1]


def save_embeddings(path: str | os.PathLike, query: Embeddings, gallery: Embeddings) -> None:
    """Write query and gallery as an npz that `load_embeddings` reads.

    Example:
        >>> import tempfile
        >>> one = Embeddings(np.ones((1, 2)), [0], [0])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_embeddings(f"{folder}/a.npz", one, one)
        ...     len(load_embeddings(f"{folder}/a.npz")[1])
        1
    """
    arrays = {
        f"{part}_{field}": getattr(embeddings, field)
        for part, embeddings in (("query", query), ("gallery", gallery))
        for field in ("features", "pids", "camids")
    }
    with open(path, "wb") as file:
        np.savez(file, **arrays)
