"""The nearest neighbours of all items in a file: a stopped search goes on from it, and a whole one is used again."""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import UserError
from ..files import as_path, check_output, write_output
from .distances import Vectors
from .pairwise import ranges
from .ranking import Farthest, Nearest, key_positions

ROWS_AT_ONCE = 1 << 16
EVERY = 300.0  # seconds between two writes of an unfinished search
_ARRAYS = {"keys": (np.int64, 2), "farthest": (np.float32, 1), "done": (np.int64, 1), "mark": (np.uint8, 1)}


@dataclass
class GraphFile:
    """The file of one search.

    Args:
        path: where it is, or will be.
        vectors: of all items, as they are compared.
        step: items of a piece.
        pieces: how many there are.

    Raises:
        UserError: the file cannot be written.
    """

    path: str
    vectors: Vectors
    step: int
    pieces: int

    def __post_init__(self) -> None:
        check_output("graph", as_path(self.path, "graph"))
        self.mark = self._digest()
        self.written = time.monotonic()

    def read(self, nearest: Nearest, farthest: Farthest) -> int:
        """Takes over what the file holds; returns how many pieces need not be looked at again.

        A whole graph of more neighbours than are needed will do. One of fewer is found anew.

        Raises:
            UserError: another file, or a graph of other features.
        """
        if not Path(self.path).exists():
            return 0
        found = self._arrays()
        if not np.array_equal(found["mark"], self.mark):
            raise UserError(f"{self.path} holds the neighbours of other features or metrics; give another file")
        keys, far = torch.from_numpy(found["keys"]), torch.from_numpy(found["farthest"])
        done, step = (int(number) for number in found["done"])
        whole = done < 0
        n, k = nearest.keys.shape
        if keys.shape[0] != n or far.shape != (n,) or _damaged(keys) or bool(far.isnan().any()):
            raise UserError(f"{self.path} is damaged; remove it, or give another file")
        if keys.shape[1] < k or (not whole and (keys.shape[1] != k or step != self.step or done > self.pieces)):
            return 0
        nearest.keys, farthest.values = keys[:, :k].contiguous(), far
        return self.pieces if whole else done

    def write(self, nearest: Nearest, farthest: Farthest, done: int) -> None:
        """Writes what is known after ``done`` pieces, if it is all or the last time was long ago."""
        if done < self.pieces and time.monotonic() - self.written < EVERY:
            return
        arrays: dict[str, Any] = {
            "keys": nearest.keys.numpy(),
            "farthest": farthest.values.numpy(),
            "done": np.array([-1 if done == self.pieces else done, self.step]),  # a whole one is whole at any step
            "mark": self.mark,
        }

        def fill(name: str) -> None:
            with open(name, "wb") as file:
                np.savez(file, **arrays)

        write_output("graph", self.path, fill)
        self.written = time.monotonic()

    def _arrays(self) -> dict[str, np.ndarray]:
        try:
            with np.load(self.path, allow_pickle=False) as archive:
                if sum(member.file_size for member in archive.zip.infolist()) > Path(self.path).stat().st_size:
                    raise ValueError  # ours are not compressed
                found = {name: archive[name] for name in _ARRAYS}
            if any(found[name].dtype != kind or found[name].ndim != ndim for name, (kind, ndim) in _ARRAYS.items()):
                raise ValueError
            if found["done"].shape != (2,):
                raise ValueError
        except Exception as error:  # NumPy and zipfile raise a dozen kinds for files that are no archives
            raise UserError(f"{self.path} holds no neighbours of ours; give another file") from error
        return found

    def _digest(self) -> np.ndarray:
        digest = hashlib.blake2b(digest_size=16)
        for tensor in (self.vectors.values, self.vectors.squared):
            if tensor is not None:
                digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
                digest.update(np.ascontiguousarray(tensor.numpy()).data)
        return np.frombuffer(digest.digest(), dtype=np.uint8)


def _damaged(keys: torch.Tensor) -> bool:
    """Whether some of these are no keys of the items of as many rows, nearest first."""
    parts = (keys[first:end] for first, end in ranges(len(keys), ROWS_AT_ONCE))
    return any(
        bool((part < 0).any() or (part.diff(dim=1) < 0).any() or (key_positions(part) >= len(keys)).any())
        for part in parts
    )
