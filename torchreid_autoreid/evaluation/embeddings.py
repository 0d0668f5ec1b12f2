"""Labelled feature vectors: the input of every evaluation."""

from __future__ import annotations

import hashlib
import mmap
import os
import tempfile
import unicodedata
from dataclasses import dataclass, field
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UserError, short
from ..files import as_path
from . import features_file
from .apart import in_a_process

CHECK_ROWS = 8192  # rows looked at together when values are checked, so that a memory-mapped file stays on disk


LABELS = ("pids", "camids", "clothids", "tracklets")


def _unknown() -> np.ndarray:
    return np.empty(0, dtype=np.int64)


@dataclass(frozen=True)
class Embeddings:
    """Feature vectors with the identity and, where they are known, the camera, clothes and tracklet of each.

    Args:
        features: (N, D) real numbers; float16, float32 and float64 arrays, ``numpy.memmap`` included, are kept as they
            are (a memory-mapped file is only ever read in pieces); anything else becomes one of these, without loss.
        pids: (N,) identities, whole numbers or names. Names become numbers, the same for the same name everywhere.
        camids, clothids, tracklets: (N,) the same, or nothing; an array of no items says that they are not known.

    Raises:
        UserError: features that are not a matrix, are empty, NaN or infinite (the rows are named), labels of another
            length or that are not whole numbers.

    Example:
        >>> Embeddings(np.eye(3, dtype=np.float32), [0, 1, 2], [0, 0, 1]).dimension
        3
    """

    features: np.ndarray
    pids: np.ndarray
    camids: np.ndarray = field(default_factory=_unknown)
    clothids: np.ndarray = field(default_factory=_unknown)
    tracklets: np.ndarray = field(default_factory=_unknown)

    def __post_init__(self) -> None:
        features = as_features(self.features)
        object.__setattr__(self, "features", features)
        for name in LABELS:
            labels = getattr(self, name)
            if name != "pids" and (labels is None or np.shape(labels) == (0,)):
                labels = _unknown()
            else:
                labels = as_labels(labels, name, len(features))
            object.__setattr__(self, name, labels)

    def __len__(self) -> int:
        return len(self.features)

    def knows(self, name: str) -> bool:
        """Whether 'camids', 'clothids' or 'tracklets' are known."""
        return len(getattr(self, name)) > 0

    def take(self, rows: slice | np.ndarray) -> Embeddings:
        """Some of the vectors with their labels."""
        labels = (getattr(self, name)[rows] if self.knows(name) else _unknown() for name in LABELS)
        return Embeddings(self.features[rows], *labels)

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
    """Lets go of what was read of a memory-mapped file; else all of it would stay in memory while there is room."""
    base: Any = features
    while isinstance(base, np.ndarray):
        base = base.base
    # Only where nobody can have written: a copy-on-write mapping would lose its changes, even if seen through an array
    # that is read-only.
    if isinstance(base, mmap.mmap) and hasattr(base, "madvise") and memoryview(base).readonly:
        base.madvise(mmap.MADV_DONTNEED)


def check_sides(query: Any, gallery: Any) -> None:
    """Raises a UserError for a query or gallery that is none."""
    for name, side in (("query", query), ("gallery", gallery)):
        if not isinstance(side, Embeddings):
            raise UserError(f"{name} is {short(side)}; give Embeddings(features, pids, camids)")


def check_dimensions(query: int, gallery: int) -> None:
    """Raises a UserError for queries and gallery of different dimensions."""
    if query != gallery:
        raise UserError(f"queries have {query} dimensions, the gallery {gallery}; use one model for both")


MOST_COUNT = (1 << 31) - 1


def check_count(name: str, value: Any, least: int) -> None:
    """Raises a UserError for an option that is not a whole number from ``least`` to :data:`MOST_COUNT`."""
    if isinstance(value, bool) or not isinstance(value, Integral) or not least <= int(value) <= MOST_COUNT:
        raise UserError(f"{name} is {short(value)}; give a whole number of at least {least} and at most {MOST_COUNT}")


def is_between(value: Any, least: float, most: float, ends: bool = True) -> bool:
    """Whether an option is a number from ``least`` to ``most``, with its ``ends`` or not; NaN and booleans are none."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        return False
    try:
        return least <= float(value) <= most and (ends or float(value) not in (least, most))
    except OverflowError:  # of a whole number of more than 300 digits
        return False


def as_array(values: Any, name: str) -> np.ndarray:
    """An array of what was given: a tensor, an array or lists; a UserError that names lists of different lengths."""
    if hasattr(values, "detach"):
        values = values.detach().cpu().numpy()
    try:
        return np.asarray(values)
    except ValueError:
        raise UserError(f"{name} are no array ({short(values)}); give as many values in each row") from None


def as_labels(labels: Any, name: str, length: int) -> np.ndarray:
    """(length,) int64 labels, or a UserError that names them."""
    labels = as_array(labels, name)
    if labels.shape != (length,):
        raise UserError(f"{name} have shape {labels.shape} for {length} vectors; give one label per vector")
    if labels.dtype.kind == "O" and all(isinstance(label, str) for label in labels):
        labels = labels.astype(str)
    if labels.dtype.kind == "U":
        return _numbers_of_names(labels, name)
    if labels.dtype.kind not in "iuf":
        raise UserError(f"{name} have type {labels.dtype}; give whole numbers or names")
    with np.errstate(invalid="ignore"):
        whole = labels.astype(np.int64)
    # A float that is whole is a label, as in torchreid, as long as floats tell it from its neighbours.
    exact = np.abs(labels) < 2.0**53 if labels.dtype.kind == "f" else whole >= 0 if labels.dtype.kind == "u" else True
    wrong = np.flatnonzero(~((whole == labels) & exact))
    if len(wrong):
        raise UserError(f"{name} hold {labels[wrong[0]]} in row {wrong[0]}; give whole numbers of at most 63 bits")
    return whole


def _numbers_of_names(names: np.ndarray, name: str) -> np.ndarray:
    """(N,) a number of 62 bits for each name, whatever other names there are.

    So queries and gallery need not be read together, nor by one process. Both Unicode forms of a name are one.
    """
    distinct, places = np.unique(names, return_inverse=True)
    forms = [unicodedata.normalize("NFC", str(text)) for text in distinct]
    digests = (hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest() for text in forms)
    numbers = np.array([int.from_bytes(digest, "big") >> 2 for digest in digests], dtype=np.int64)
    if len(np.unique(numbers)) < len(set(forms)):
        raise UserError(f"two names among {name} get one number by bad luck; rename one, or give whole numbers")
    return numbers[places]


def _check_finite(values: np.ndarray) -> None:
    """Raises a UserError that names the rows holding NaN or infinity."""
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


NPZ_KEYS = tuple(f"{part}_{name}" for part in ("query", "gallery") for name in ("features", "pids", "camids"))
_REQUIRED = tuple(key for key in NPZ_KEYS if not key.endswith("camids"))

#: sizes that no file of feature vectors unpacks to: those barely shrink, labels do a hundredfold but are few
_SMALL, _MAX_RATIO = 64 << 20, 100


def load_embeddings(path: str | os.PathLike) -> tuple[Embeddings, Embeddings]:
    """Query and gallery from an npz file of any framework, or from a ``.mat`` or ``.pt`` of the common baselines.

    Args:
        path: an npz with ``query_features`` (Nq, D), ``query_pids`` (Nq,), ``query_camids`` (Nq,) and the same three of
            the gallery; ``query_clothids``, ``query_tracklets`` and the gallery's are read where there are any, and the
            camids may be missing. Pickled objects are refused: loading never runs code. So is what would unpack to
            more than a hundred times the file's size. A ``.mat`` (up to MATLAB 7) and a dict of tensors in a ``.pt`` or
            ``.pth`` are read by a process that may die; their keys may also be ``query_f``, ``query_label``,
            ``query_cam`` (layumi's ``pytorch_result.mat``), ``qf``, ``q_pids``, ``q_camids`` and the like, see
            :data:`.features_file.NAMES`.

    Returns:
        (query, gallery).

    Raises:
        UserError: no such file, not an npz, a key is missing, pickled objects, absurd sizes, or whatever ``Embeddings``
            refuses.
    """
    query, gallery, _ = load_with_people(path)
    return query, gallery


def load_with_people(path: str | os.PathLike) -> tuple[Embeddings, Embeddings, np.ndarray]:
    """As :func:`load_embeddings`, and (Ng,) the gallery's identities as the file has them: numbers or names."""
    path = as_path(path)
    if not path.is_file():
        raise UserError(f"there is no file {path}; give an npz with the keys {', '.join(NPZ_KEYS)}")
    if path.suffix.lower() not in features_file.SUFFIXES:
        arrays = _read_npz(path, path)
        return *_of_arrays(path, arrays), arrays["gallery_pids"]
    with tempfile.TemporaryDirectory() as folder:
        rewritten = Path(folder) / "features.npz"
        if wrong := in_a_process(features_file.__file__, "read", path, rewritten):
            raise UserError(f"{path} {wrong}")
        arrays = _read_npz(rewritten, path)
        return *_of_arrays(path, arrays), arrays["gallery_pids"]


def _read_npz(npz: Path, path: Path) -> dict[str, np.ndarray]:
    """The arrays of an npz, by their keys; messages name ``path``, of which it may be the rewritten form."""
    with open(npz, "rb") as file:
        if file.read(6) == b"\x93NUMPY":
            raise UserError(f"{path} holds a single array; write an npz with the keys {', '.join(NPZ_KEYS)}")
    # NumPy and zipfile raise a dozen kinds of errors for files that are no archives or claim what they do not hold.
    try:
        archive = np.load(npz, allow_pickle=False)
        unpacked = sum(member.file_size for member in archive.zip.infolist())
    except Exception as error:
        raise UserError(f"{path} is not an npz file; write it with numpy.savez") from error
    with archive:
        if unpacked > _SMALL + _MAX_RATIO * npz.stat().st_size:
            raise UserError(f"{path} would unpack to {unpacked} bytes, {_MAX_RATIO} times its size; write it anew")
        optional = [f"{part}_{name}" for part in ("query", "gallery") for name in LABELS[1:]]
        missing = [key for key in _REQUIRED if key not in archive.files]
        # Cameras of one part only are a slip; without any the protocol is another one.
        missing += [key for key in optional if key not in archive.files and _twin(key) in archive.files]
        if missing:
            found = ", ".join(archive.files) or "no arrays"
            raise UserError(f"{path} lacks {', '.join(missing)}; it has {found[:200]}")
        arrays = {}
        for key in (*_REQUIRED, *(key for key in optional if key in archive.files)):
            try:
                arrays[key] = archive[key]
            except Exception as error:
                raise UserError(f"{key} in {path} is pickled or damaged; save plain arrays of numbers") from error
            if not isinstance(arrays[key], np.ndarray):  # a file in the archive that is no array comes as its bytes
                raise UserError(f"{key} in {path} is no array; write it with numpy.savez")
    return arrays


def _of_arrays(path: Path, arrays: dict[str, np.ndarray]) -> tuple[Embeddings, Embeddings]:
    parts = []
    for part in ("query", "gallery"):
        try:
            parts.append(Embeddings(*(arrays.get(f"{part}_{name}") for name in ("features", *LABELS))))  # type: ignore[arg-type]
        except UserError as error:
            raise UserError(f"{part} of {path}: {error}") from error
    return parts[0], parts[1]


def _twin(key: str) -> str:
    """The key of the other part."""
    part, name = key.split("_", 1)
    return f"{'gallery' if part == 'query' else 'query'}_{name}"


def save_embeddings(path: str | os.PathLike, query: Embeddings, gallery: Embeddings) -> None:
    """Writes query and gallery as an npz that ``load_embeddings`` reads.

    Example:
        >>> import tempfile
        >>> one = Embeddings(np.ones((1, 2)), [0], [0])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_embeddings(f"{folder}/a.npz", one, one)
        ...     len(load_embeddings(f"{folder}/a.npz")[1])
        1
    """
    arrays = {
        f"{part}_{name}": getattr(embeddings, name)
        for part, embeddings in (("query", query), ("gallery", gallery))
        for name in ("features", *LABELS)
        if len(getattr(embeddings, name))
    }
    with open(as_path(path), "wb") as file:
        np.savez(file, **arrays)
