"""Checkpoints that survive a crash, resume bit for bit, and never run code.

A checkpoint holds tensors, numbers, texts, lists and dicts only, so that ``torch.load(weights_only=True)`` reads it.
Its keys ``state_dict``, ``optimizer``, ``scheduler``, ``epoch`` and ``rank1`` are torchreid's.

The file is PyTorch's zip archive, in which every record has a CRC-32. PyTorch writes these sums and never looks at
them: it loads a record whose middle a power failure has turned to zeros. Here they are checked before anything is used,
so no format or second file of our own is needed to tell a whole checkpoint from a torn one.
"""

from __future__ import annotations

import contextlib
import io
import os
import pickletools
import re
import warnings
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .errors import UserError, line_of_the_machine, short, way_out
from .files import as_path, write_atomically
from .genotype import Genotype

__all__ = [
    "LATEST",
    "PREVIOUS",
    "Checkpoint",
    "forget_torn",
    "load_checkpoint",
    "load_state",
    "load_weights",
    "newest_checkpoint",
    "save_checkpoint",
    "state_differences",
]


#: names of the newest checkpoint of a run and of the one before it
LATEST, PREVIOUS = "checkpoint.pth", "checkpoint-previous.pth"


class Checkpoint(dict[str, Any]):
    """What a checkpoint, or another file of weights, holds. It is read once, and handed on from there.

    Attributes:
        path: of the file.
    """

    def __init__(self, state: Mapping[str, Any], path: Path) -> None:
        super().__init__(state)
        self.path = path


def save_checkpoint(state: Mapping[str, Any], path: str | Path, previous: str | Path | None = None) -> None:
    """Writes a checkpoint atomically.

    Args:
        state: tensors and plain data.
        path: the file.
        previous: where the checkpoint that was there before is kept.

    Raises:
        UserError: if the file cannot be written; whatever was there before is still there.
    """
    # In memory first: PyTorch's own writer hides what the file system said, a full disk for instance.
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    try:
        write_atomically(path, lambda name: Path(name).write_bytes(buffer.getbuffer()), previous)
    except OSError as error:
        # Without hard links the one before has its new name already.
        whole = [place for place in (path, previous) if place is not None and Path(place).exists()]
        kept = f"the one before it is kept as {whole[0]}" if whole else "there is none before it"
        raise UserError(f"cannot write the checkpoint {path} ({error.strerror}); {kept}; {way_out(error)}") from error


def newest_checkpoint(folder: str | Path) -> tuple[Path, str] | None:
    """The newest whole checkpoint in a log folder, and a warning if that is not the newest one; ``None`` without any.

    Raises:
        UserError: if there are some and all are torn.
        OSError: if none is whole, and one cannot be read at all.
    """
    torn: list[str] = []
    unread: OSError | None = None
    for path in (Path(folder) / LATEST, Path(folder) / PREVIOUS):
        if not path.is_file():
            continue
        try:
            damage = _damage(path, archive=True)
        except OSError as error:
            damage, unread = str(error.strerror), error
        if damage is None:
            return path, f"{torn[0]}: going on from {path}, the one before it" if torn else ""
        torn.append(f"{path} is torn ({damage})")
    if unread is not None:
        raise unread
    if torn:
        raise UserError(f"{' and '.join(torn)}; resume from another checkpoint with --resume FILE, or start afresh")
    return None


def forget_torn(folder: str | Path) -> None:
    """Lets the checkpoint before a torn newest one take its place: at the next write the torn one would take *its*."""
    with contextlib.suppress(UserError):  # all are torn: nothing is lost by writing over them
        found = newest_checkpoint(folder)
        if found is not None and found[0].name == PREVIOUS:
            os.replace(found[0], Path(folder) / LATEST)


def _damage(path: Path, archive: bool = False) -> str | None:
    """What is wrong with a checkpoint as a file; ``None`` if it is whole.

    Files of PyTorch 1.5 and older are no archives and have no checksums: they are left to the unpickler, unless it is
    known that the file must be an ``archive``.

    Raises:
        OSError: naming the file, if that is the machine's fault and not the file's.
    """
    try:
        with open(path, "rb") as file:
            if file.read(4) != b"PK\x03\x04":
                return "it does not begin as an archive of PyTorch" if archive else None
        with zipfile.ZipFile(path) as records:
            # PyTorch compresses nothing; what is compressed can unpack to any size.
            if any(record.compress_type != zipfile.ZIP_STORED for record in records.infolist()):
                return "it is compressed, which PyTorch's own never are"
            if sum(record.file_size for record in records.infolist()) > path.stat().st_size:
                return "its records claim more bytes than the file has"
            broken = records.testzip()
    # a hostile archive makes zipfile raise any of these
    except (OSError, EOFError, ValueError, NotImplementedError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        _raise_if_of_the_machine(error, path)
        return _first_line(error)
    return None if broken is None else f"the checksum of its record {broken[:80]!r} is wrong"


def _raise_if_of_the_machine(error: Exception, path: Path) -> None:
    """A file that the machine cannot read now may well be whole."""
    if isinstance(error, OSError) and line_of_the_machine(error):
        raise OSError(error.errno, error.strerror, str(path)) from error


def _legacy_damage(path: Path, state: Any) -> str | None:
    """What is wrong with a file of PyTorch 1.5 or older; ``None`` if it is whole, or newer.

    It lists its storages and holds as many blocks, each behind its size. PyTorch leaves storages that it does not list
    uninitialised.
    """
    with open(path, "rb") as file:
        if file.read(4) == b"PK\x03\x04":
            return None
        file.seek(0)
        for _ in range(5):  # magic number, version, system, data, list of storages
            names = [value for _, value, _ in pickletools.genops(file) if isinstance(value, str)]
        blocks = path.stat().st_size - file.tell() - 8 * len(names)
    spans = sorted({_span(tensor) for tensor in _tensors(state)})
    needed, end = 0, 0
    for first, last in spans:  # one storage may be a view of another
        needed += max(0, last - max(first, end))
        end = max(end, last)
    if len(set(names)) < len(names) or blocks < needed:
        return f"its tensors have {needed} bytes, and it holds {max(blocks, 0)}"
    return None


def _span(tensor: Tensor) -> tuple[int, int]:
    storage = tensor.untyped_storage()
    return storage.data_ptr(), storage.data_ptr() + storage.nbytes()


def _tensors(value: Any) -> Iterator[Tensor]:
    """All ordinary tensors in nested lists, tuples and dicts."""
    if isinstance(value, Tensor):
        if _is_ordinary(value):
            yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)


def _is_ordinary(value: Any) -> bool:
    return (
        isinstance(value, Tensor)
        and not value.is_nested
        and value.layout is torch.strided
        and not (value.is_meta or value.is_quantized)
    )


def _first_line(error: BaseException) -> str:
    if isinstance(error, EOFError) and not str(error):
        return "it ends too early"
    # PyTorch's first paragraph advises to load the file without protection; the reason follows.
    text = str(error).rpartition("WeightsUnpickler error:")[2].strip()
    if found := re.match(r"Unsupported (?:global|class)\S*:? GLOBAL (\S+)", text):
        # PyTorch would advise to allow it.
        return f"it holds an object of {found[1][:80]}, which is more than tensors; save the network's state_dict()"
    if text.startswith("Weights only load failed"):
        text = text.partition("\n\n")[2].strip()
    return (text.splitlines() or [type(error).__name__])[0][:160]


def load_checkpoint(path: str | PathLike[str] | Checkpoint, keys: Iterable[str] = ("state_dict",)) -> Checkpoint:
    """Reads a checkpoint onto the CPU, without running anything that it may contain.

    Args:
        path: the file, or what has been read of it.
        keys: what it must hold.

    Raises:
        UserError: if the file is missing, torn, holds objects other than tensors and plain data, or lacks a key.
    """
    state = path if isinstance(path, Checkpoint) else _read(as_path(path))
    for key in keys:
        if key not in state:
            raise UserError(
                f"{state.path} has no {key!r}, so it is another kind of checkpoint; "
                "use one that the same command has written"
            )
    return state


def _read(path: Path) -> Checkpoint:
    if not path.is_file():
        raise UserError(f"no checkpoint at {path}; give the path of a checkpoint.pth that a run has written")
    reason = _damage(path)
    if reason is None:
        try:
            with torch.serialization.safe_globals(_NUMPY_SCALARS), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # it remarks on pickles that it is about to refuse
                state = torch.load(path, map_location="cpu", weights_only=True)
            reason = _legacy_damage(path, state)
        except MemoryError:
            raise
        except Exception as error:  # torch raises many kinds for a hostile file; none of them is worth a traceback
            _raise_if_of_the_machine(error, path)
            reason = _first_line(error)
    if reason is None:
        if not isinstance(state, dict):
            raise UserError(f"{path} holds a {type(state).__name__}, not a checkpoint; use one that a run has written")
        return Checkpoint(state, path)
    before = path.with_name(PREVIOUS)
    hint = f"use the one before it, {before}" if path.name == LATEST and before.is_file() else "use another checkpoint"
    raise UserError(f"{path} is not a readable checkpoint ({reason}); {hint}") from None


class _PlainType:
    """What ``numpy.dtype`` is taken for while a checkpoint is read: the name of a number's type, nothing else."""

    def __init__(self, name: str, *_: Any) -> None:
        if name not in ("f4", "f8", "i4", "i8"):
            raise ValueError(f"a number of type {str(name)[:40]!r}")
        self.name = name

    def __setstate__(self, state: Any) -> None:
        if state[1] not in ("<", "|"):
            raise ValueError("a number of another byte order")


def _plain_scalar(kind: _PlainType, value: bytes | str) -> float | int:
    """What NumPy's ``scalar`` is taken for: a number of Python's own."""
    data = value if isinstance(value, bytes) else value.encode("latin1")
    (number,) = np.frombuffer(data, f"<{kind.name}")
    return number.item()


#: torchreid's checkpoints hold their rank-1 as a NumPy scalar, which PyTorch refuses by default. NumPy's own functions
#: would also make objects of any type and size, so these stand in for them, under the names of NumPy 1 and 2.
_NUMPY_SCALARS: list[Any] = [
    (_PlainType, "numpy.dtype"),
    (_plain_scalar, "numpy.core.multiarray.scalar"),
    (_plain_scalar, "numpy._core.multiarray.scalar"),
]


def load_weights(module: nn.Module, path: str | Path | Checkpoint, testing: bool = True) -> None:
    """Loads the weights of a network: a checkpoint of this package or of torchreid, or a state dict.

    Classifiers may be others: what does not fit of them is left as it is. In testing that holds for what the feature
    does not depend on alone, so not for the batch norm of a neck.

    Args:
        module: the network.
        path: the file, or what has been read of it.
        testing: the weights are to be tested or deployed; else they are where a training starts from.

    Raises:
        UserError: if the file is no checkpoint, or of another network; the message names the first difference.
    """
    found = load_checkpoint(path, ())
    described = found.get("network") if "state_dict" in found else None
    state = _weights_of(found)
    own = module.state_dict()
    free = _UNTESTED if testing else (*_UNTESTED, "classifier.")
    fitting = {
        key: value
        for key, value in state.items()
        if not key.startswith(free) or (key in own and _is_ordinary(value) and own[key].shape == value.shape)
    }
    # Files from before PyTorch 0.4.1 have none; it counts batches, and nothing here reads it. PyTorch does the same.
    own_counters = {key: value for key, value in own.items() if key.endswith("num_batches_tracked")}
    fitting = own_counters | fitting
    load_state(module, {key: value for key, value in own.items() if key.startswith(free)} | fitting, found.path)
    _check_wiring(module, described, found.path)


#: where most files keep their weights
_PLACES = ("state_dict", "model", "model_state_dict")


def _weights_of(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """The state dict in a file, without the prefixes of what PyTorch wraps a network in.

    Raises:
        UserError: if there is none.
    """
    named = [checkpoint[place] for place in _PLACES if isinstance(checkpoint.get(place), Mapping)]
    others = [value for value in checkpoint.values() if _is_state_dict(value)]
    found = named[0] if named else others[0] if len(others) == 1 else checkpoint
    if not _is_state_dict(found):
        raise UserError(
            f"{checkpoint.path} holds no weights, but {short(sorted(map(str, checkpoint)))}; give a checkpoint, or the "
            "state dict of a network"
        )
    state = {_without_compile(str(key)): value for key, value in found.items()}
    if "n_averaged" in state and all(key.startswith("module.") for key in state if key != "n_averaged"):
        del state["n_averaged"]  # of AveragedModel
    while state and all(key.startswith("module.") for key in state):  # DataParallel, once or more
        state = {key.removeprefix("module."): value for key, value in state.items()}
    return state


def _is_state_dict(value: Any) -> bool:
    return isinstance(value, Mapping) and bool(value) and all(isinstance(item, Tensor) for item in value.values())


def _without_compile(key: str) -> str:
    """torch.compile adds a level wherever it has been applied."""
    return ".".join(part for part in key.split(".") if part != "_orig_mod")


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


#: the beginnings of weights that the feature does not depend on; torchreid's hacnn and pcb have several classifiers
_UNTESTED = (
    *("classifier.weight", "classifier.bias", "classifier.linear.", "classifier_", "auxiliary."),
    *(f"classifier.{part}." for part in range(6)),
)


def load_state(module: nn.Module, state: Mapping[str, Tensor], path: str | Path) -> None:
    """Loads a state dict into a module, strictly.

    Raises:
        UserError: if keys or shapes differ; the message names the first three and counts the rest.
    """
    if not isinstance(state, Mapping) or not all(isinstance(key, str) for key in state):
        raise UserError(f"{path} holds no weights; give a checkpoint, or the state dict of a network")
    if differences := state_differences(module, state):
        more = f", and {len(differences) - 3} more" if len(differences) > 3 else ""
        fix = "give the configuration it was made with"
        if _of_a_search(state) and not _of_a_search(module.state_dict()):
            fix = (
                "it is the network of a search: train the genotype.json beside it, "
                "or test it with evaluate.py and model.name autoreid_search"
            )
        raise UserError(
            f"{path} belongs to another network: {', '.join(text[:200] for text in differences[:3])}{more}; {fix}"
        )
    module.load_state_dict(dict(state))


def _of_a_search(state: Mapping[str, Any]) -> bool:
    """Whether there are alphas among the weights."""
    return any(key.startswith("architecture.") for key in state)


def _converts(dtype: torch.dtype, wanted: torch.dtype) -> bool:
    """Whether numbers stay what they are, up to rounding."""
    return dtype.is_floating_point if wanted.is_floating_point else not (dtype.is_floating_point or dtype.is_complex)


def state_differences(module: nn.Module, state: Mapping[str, Tensor]) -> list[str]:
    """What keeps a state dict from fitting a module, a short text each."""
    own = module.state_dict()
    found = [f"it lacks {key}" for key in own if key not in state]
    found += [f"it has {key}, which this network lacks" for key in state if key not in own]
    for key, value in own.items():
        if key not in state:
            continue
        if not _is_ordinary(state[key]):
            found.append(f"its {key} is no ordinary tensor")
        elif not _converts(state[key].dtype, value.dtype):
            found.append(f"its {key} is of type {str(state[key].dtype).removeprefix('torch.')}")
        elif tuple(state[key].shape) != tuple(value.shape):
            found.append(f"its {key} is {tuple(state[key].shape)}, here {tuple(value.shape)}")
    return found
