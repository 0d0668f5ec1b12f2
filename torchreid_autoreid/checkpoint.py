"""Checkpoints that survive a crash, resume bit for bit, and never run code.

A checkpoint holds tensors, numbers, texts, lists and dicts only, so that ``torch.load(weights_only=True)`` reads it.
Its keys ``state_dict``, ``optimizer``, ``scheduler``, ``epoch`` and ``rank1`` are torchreid's.
"""

from __future__ import annotations

import os
import random
import tempfile
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .errors import UserError
from .genotype import Genotype

__all__ = [
    "load_checkpoint",
    "load_state",
    "load_weights",
    "random_state",
    "restore_random_state",
    "save_checkpoint",
    "write_atomically",
]


#: torchreid's checkpoints hold their rank-1 as a NumPy scalar, which PyTorch refuses by default. It is plain data:
#: making one runs nothing.
_NUMPY_SCALARS: list[Any] = [
    np.float64(0).__reduce__()[0],  # numpy's `scalar`, whose module differs between NumPy 1 and 2
    np.dtype,
    *(type(np.dtype(kind)) for kind in (np.float32, np.float64, np.int64)),
]


def write_atomically(path: str | Path, write: Any) -> None:
    """Calls ``write(temporary_path)`` and moves the result to ``path`` in one step, synced to disk.

    A crash at any moment leaves either the old file or the new one, never half of one.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(handle)
    try:
        write(name)
        with open(name, "rb+") as file:
            os.fsync(file.fileno())
        os.chmod(name, 0o666 & ~_umask())
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def save_checkpoint(state: Mapping[str, Any], path: str | Path) -> None:
    """Writes a checkpoint atomically."""
    write_atomically(path, lambda name: torch.save(dict(state), name))


def load_checkpoint(path: str | Path, keys: Iterable[str] = ("state_dict",)) -> dict[str, Any]:
    """Reads a checkpoint onto the CPU, without running anything that it may contain.

    Args:
        path: the file.
        keys: what it must hold.

    Raises:
        UserError: if the file is missing, torn, holds objects other than tensors and plain data, or lacks a key.
    """
    path = Path(path)
    state = _read(path)
    if not isinstance(state, dict):
        raise UserError(f"{path} holds a {type(state).__name__}, not a checkpoint; use one that a run has written")
    for key in keys:
        if key not in state:
            raise UserError(
                f"{path} has no {key!r}, so it is another kind of checkpoint; use one that the same command has written"
            )
    return state


def _read(path: Path) -> Any:
    if not path.is_file():
        raise UserError(f"no checkpoint at {path}; give the path of a checkpoint.pth that a run has written")
    try:
        with torch.serialization.safe_globals(_NUMPY_SCALARS), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it remarks on pickles that it is about to refuse
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a torn or hostile file; none of them is worth a traceback
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"{path} is not a readable checkpoint ({reason[:160]}); use another checkpoint") from None


def load_weights(module: nn.Module, path: str | Path, testing: bool = True) -> None:
    """Loads the weights of a network: a checkpoint of this package or of torchreid, or a state dict.

    Classifiers may be others: what does not fit of them is left as it is. In testing that holds for what the feature
    does not depend on alone, so not for the batch norm of a neck.

    Args:
        module: the network.
        path: the file.
        testing: the weights are to be tested or deployed; else they are where a training starts from.

    Raises:
        UserError: if the file is no checkpoint, or of another network; the message names the first difference.
    """
    state: Any = _read(Path(path))
    described: Any = None
    if isinstance(state, dict) and "state_dict" in state:
        described, state = state.get("network"), state["state_dict"]
    if not isinstance(state, dict) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{path} holds no weights; give a checkpoint, or the state dict of a network")
    state = {str(key).removeprefix("module."): value for key, value in state.items()}  # DataParallel's prefix
    own = module.state_dict()
    free = _UNTESTED if testing else ("classifier.", "auxiliary.")
    fitting = {
        key: value
        for key, value in state.items()
        if not key.startswith(free) or (key in own and own[key].shape == value.shape)
    }
    load_state(module, {key: value for key, value in own.items() if key.startswith(free)} | fitting, path)
    _check_wiring(module, described, path)


def _check_wiring(module: nn.Module, network: Any, path: str | Path) -> None:
    """Cells of another genotype may have weights of the same names and shapes."""
    own = getattr(module, "genotype", None)
    stored = network.get("genotype") if isinstance(network, dict) else None
    if not isinstance(own, Genotype) or stored is None:
        return
    try:
        found = Genotype.from_dict(stored)
    except UserError as error:
        raise UserError(f"{path} describes its network wrongly: {error}") from None
    for kind, theirs, ours in (("normal", found.normal, own.normal), ("reduce", found.reduce, own.reduce)):
        for block, pair in enumerate(zip(theirs, ours, strict=True)):  # as many, since the weights fit
            if pair[0] != pair[1]:
                there, here = (" ".join(f"{operation}<{source}" for operation, source in edges) for edges in pair)
                raise UserError(
                    f"{path} belongs to another genotype: block {block} of its {kind} cell is {there}, here {here}; "
                    "give the configuration it was made with"
                )


#: the beginnings of weights that the feature does not depend on
_UNTESTED = ("classifier.weight", "classifier.bias", "classifier.linear.", "auxiliary.")


def load_state(module: nn.Module, state: Mapping[str, Tensor], path: str | Path) -> None:
    """Loads a state dict into a module, strictly.

    Raises:
        UserError: if keys or shapes differ; the message names the first three and counts the rest.
    """
    if differences := state_differences(module, state):
        more = f", and {len(differences) - 3} more" if len(differences) > 3 else ""
        raise UserError(
            f"{path} belongs to another network: {', '.join(differences[:3])}{more}; "
            "give the configuration it was made with"
        )
    module.load_state_dict(dict(state))


def state_differences(module: nn.Module, state: Mapping[str, Tensor]) -> list[str]:
    """What keeps a state dict from fitting a module, a short text each."""
    own = module.state_dict()
    found = [f"it lacks {key}" for key in own if key not in state]
    found += [f"it has {key}, which this network lacks" for key in state if key not in own]
    for key, value in own.items():
        if key in state and tuple(state[key].shape) != tuple(value.shape):
            found.append(f"its {key} is {tuple(state[key].shape)}, here {tuple(value.shape)}")
    return found


def random_state() -> dict[str, Any]:
    """The states of all random generators, as plain data."""
    kind, keys, position, has_gauss, cached = np.random.get_state()
    state: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": [kind, torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, cached],
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def restore_random_state(state: Mapping[str, Any]) -> None:
    """The inverse of :func:`random_state`; generators of devices that are absent here are left alone."""
    version, keys, gauss = state["python"]
    random.setstate((version, tuple(keys), gauss))
    kind, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    for index, generator in enumerate(state.get("cuda", [])[: torch.cuda.device_count()]):
        torch.cuda.set_rng_state(generator, index)
