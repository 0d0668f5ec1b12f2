"""Feature files of other programs (``.mat``, ``.pt``), rewritten as an npz by a process that may die.

SciPy's reader of MATLAB files ends the process on some damaged ones, and PyTorch's takes the sizes that a file claims.
So :mod:`.apart` runs ``main``, and what this package reads is the npz that it has written.
"""

from __future__ import annotations

import contextlib
import os
import warnings
import zipfile
from collections.abc import Iterator
from typing import Any

import numpy as np

__all__ = ["NAMES", "SUFFIXES"]

SUFFIXES = (".mat", ".pt", ".pth")

#: our name -> those in use elsewhere, behind ``query_`` or ``q_``, ``gallery_`` or ``g_`` (and ``qf``, ``gf``)
NAMES = {
    "features": ("features", "feature", "feats", "feat", "embeddings", "f"),
    "pids": ("pids", "pid", "ids", "id", "labels", "label"),
    "camids": ("camids", "camid", "cams", "cam", "cameras", "camera"),
    "clothids": ("clothids", "clothid", "clothes"),
    "tracklets": ("tracklets", "tracklet"),
}
_PARTS = {"query": "q", "gallery": "g"}
_SMALL, _MAX_RATIO = 64 << 20, 100  # as of an npz


class BadFileError(Exception):
    """What is wrong with the file, as words that follow its name."""


def main(path: str, output: str) -> str:
    """Writes the arrays of a file as an npz, and says what is wrong, as words that follow its name, or nothing."""
    try:
        arrays = _read_mat(path) if path.lower().endswith(".mat") else _read_torch(path)
        for key, array in arrays.items():
            if array.dtype.kind not in "fiuU":
                raise BadFileError(f"has no numbers in {key}, but {array.dtype}; save an array of numbers")
        most = _SMALL + _MAX_RATIO * os.stat(path).st_size
        if (total := sum(array.nbytes for array in arrays.values())) > most:
            raise BadFileError(f"would unpack to {total} bytes, {_MAX_RATIO} times its size; write it anew")
    except BadFileError as error:
        return str(error)
    np.savez(output, **arrays)  # type: ignore[arg-type]
    return ""


def _chosen(found: list[str]) -> dict[str, str]:
    """Our key -> that of the file.

    Raises:
        BadFileError: if one is missing, or several say the same.
    """
    chosen = {}
    for part, letter in _PARTS.items():
        for name, others in NAMES.items():
            spellings = [f"{prefix}_{other}" for prefix in (part, letter) for other in others]
            spellings += [f"{letter}f"] if name == "features" else []
            there = [spelling for spelling in spellings if spelling in found]
            if len(there) > 1:
                raise BadFileError(f"has {' and '.join(there)}, which both say {part}_{name}; leave one out")
            if there:
                chosen[f"{part}_{name}"] = there[0]
            elif name in ("features", "pids"):
                raise BadFileError(
                    f"lacks the {name} of the {part} ({part}_{name}, {spellings[len(others) - 1]} or the like); it has "
                    f"{', '.join(map(_shown, found))[:160] or 'nothing'}"
                )
    return chosen


def _shown(name: str) -> str:
    return name if name.isprintable() else ascii(name)


@contextlib.contextmanager
def _refusing(what: str) -> Iterator[None]:
    """Turns whatever a reader raises, of which there are many kinds, into a line."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (BadFileError, MemoryError):
        raise
    except Exception as error:
        # PyTorch's first paragraph advises to load the file without protection; the reason follows.
        text = str(error).rpartition("WeightsUnpickler error:")[2].strip() or type(error).__name__
        raise BadFileError(f"is not {what} ({_shown(text.splitlines()[0][:160])})") from None


# --- MATLAB ---------------------------------------------------------------


def _read_mat(path: str) -> dict[str, np.ndarray]:
    import scipy.io

    with open(path, "rb") as file:
        if file.read(10).startswith((b"MATLAB 7.3", b"\x89HDF")):
            raise BadFileError("is a MATLAB 7.3 file; write it with scipy.io.savemat, or with save -v7")
        file.seek(0)
        with _refusing("a MATLAB file that can be read"):
            chosen = _chosen([name for name, _, _ in scipy.io.whosmat(file)])
            file.seek(0)
            arrays = scipy.io.loadmat(file, variable_names=list(chosen.values()))
            return {key: _of_matlab(name, arrays[name], key) for key, name in chosen.items()}


def _of_matlab(name: str, value: Any, key: str) -> np.ndarray:
    """An array as this package has it: MATLAB knows no vectors, and pads the names of a list."""
    if not isinstance(value, np.ndarray):
        raise BadFileError(f"has a {type(value).__name__} in {name}; save a full array of numbers")
    if key.endswith("_features"):
        return value
    if value.dtype.kind == "U":
        value = np.char.rstrip(value)
    return value.reshape(-1) if value.ndim == 2 and 1 in value.shape else value


# --- PyTorch --------------------------------------------------------------


def _read_torch(path: str) -> dict[str, np.ndarray]:
    import torch

    with _refusing("a file of torch.save that can be read"):
        # Its checksums are in the archive, and PyTorch does not look at them.
        with zipfile.ZipFile(path) as records:
            if torn := records.testzip():
                raise BadFileError(f"is torn: the checksum of its record {torn[:80]!r} is wrong")
        state = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(state, dict):
            raise BadFileError(f"holds a {type(state).__name__}; save a dict of tensors")
        chosen = _chosen([str(key) for key in state])
        return {key: _of_torch(name, state[name]) for key, name in chosen.items()}


def _of_torch(name: str, value: Any) -> np.ndarray:
    import torch

    if isinstance(value, torch.Tensor):
        if value.layout is not torch.strided or value.is_nested or value.is_quantized or value.device.type != "cpu":
            raise BadFileError(f"has no ordinary tensor in {name}; save a dense one")
        value = value.detach()
        return (value.float() if value.dtype is torch.bfloat16 else value).numpy()
    if isinstance(value, list | tuple) and (
        all(type(item) is int for item in value) or all(isinstance(item, str) for item in value)
    ):
        return np.array(value)
    raise BadFileError(f"has a {type(value).__name__} in {name}; save a tensor, or a list of whole numbers or names")
