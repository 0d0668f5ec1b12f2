"""The log folder of a run: one writer, an earlier run kept, the checkpoint to go on from."""

from __future__ import annotations

import errno
import importlib
import logging
import os
import shutil
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from filelock import FileLock, Timeout

from ..checkpoint import LATEST, newest_checkpoint
from ..errors import UserError
from ..files import not_writable, write_atomically

__all__ = [
    "AUTO",
    "bring_history",
    "check_run_folder",
    "checkpoint_path",
    "claim_run_folder",
    "is_claimed",
    "keep_earlier_run",
]


_LOGGER = logging.getLogger(__name__)

AUTO = "auto"


def checkpoint_path(resume: str, save_dir: str | Path = "") -> Path | None:
    """The file that ``--resume`` means: itself, or the newest whole one of a log folder; ``None``: start afresh.

    Where the newest one is torn, the one before it is taken, with a warning on stderr.

    Args:
        resume: the option; ``auto`` means whatever ``save_dir`` has.
        save_dir: log folder of this run.

    Raises:
        UserError: if there is none, or all are torn.
    """
    if not resume:
        return None
    path = Path(save_dir if resume == AUTO else resume)
    if path.is_dir() or resume == AUTO:
        found = newest_checkpoint(path)
        if found is not None:
            if found[1] and int(os.environ.get("RANK", "0")) == 0:
                print(f"warning: {found[1]}", file=sys.stderr)
            return found[0]
        if resume == AUTO:
            return None
        path /= LATEST
    if not path.is_file():
        raise UserError(f"--resume {resume}: there is no checkpoint at {path}; leave --resume out to start afresh")
    return path


def check_run_folder(save_dir: Path, resume: Path | None = None, inputs: Mapping[str, str] | None = None) -> None:
    """Finds out before the work that a log folder cannot be written, or that what it holds must not be moved away.

    Args:
        save_dir: the folder.
        resume: the checkpoint that a run goes on from; if it is in this folder, nothing is moved.
        inputs: what was given -> its path, of all that the run reads.

    Raises:
        UserError: if the folder cannot be made or written, or holds an earlier run beside what this one needs.
    """
    place = save_dir.resolve()
    try:
        str(place).encode()
    except UnicodeEncodeError:
        name = str(save_dir).encode("utf-8", "backslashreplace").decode()
        raise UserError(
            f"data.save_dir {name} has bytes that are no UTF-8, which TensorBoard cannot write; give another one"
        ) from None
    try:
        there = next(folder for folder in (place, *place.parents) if folder.exists())
        if not there.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, f"{there} is no folder")
        _check_writable(there)
        if not _is_moved(place, resume):
            return
        _check_writable(place.parent)
    except OSError as error:
        raise not_writable(save_dir, error) from None
    inside = {name: path for name, path in (inputs or {}).items() if path and _is_in(Path(path), place)}
    if _is_in(Path.cwd(), place):
        inside["the current folder"] = str(Path.cwd())
    for name, path in inside.items():
        raise UserError(
            f"{name} {path} lies in data.save_dir {save_dir}, whose earlier run a new one moves out of its way; "
            "set another data.save_dir, or go on with --resume"
        )


def _check_writable(folder: Path) -> None:
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, f"{folder} cannot be written")


def _is_in(path: Path, folder: Path) -> bool:
    return folder in (path.resolve(), *path.resolve().parents)


def _is_moved(place: Path, resume: Path | None) -> bool:
    if resume is not None and place in resume.resolve().parents:
        return False
    return (place / "history.jsonl").exists() or (place / LATEST).exists()


def claim_run_folder(save_dir: Path) -> None:
    """Claims a log folder for this process if it is there; :func:`keep_earlier_run` makes it where it is missing.

    Raises:
        UserError: if another process writes into it.
    """
    try:
        if save_dir.is_dir():
            _claim(save_dir.resolve(), save_dir)
    except OSError as error:
        raise not_writable(save_dir, error) from None


def keep_earlier_run(save_dir: Path, resume: Path | None = None) -> None:
    """Claims a log folder for this process, and moves a folder that holds another run out of the way: nothing is lost.

    Args:
        save_dir: the folder; it is made where it is missing. A link is followed.
        resume: the checkpoint that a run goes on from; if it is in this folder, the folder stays.

    Raises:
        UserError: if another process writes into the folder, or it cannot be written.
    """
    place = save_dir.resolve()
    try:
        _claim(place, save_dir)
        if _is_moved(place, resume):
            number = next(n for n in range(1, sys.maxsize) if not place.with_name(f"{place.name}-{n}").exists())
            kept = place.with_name(f"{place.name}-{number}")
            place.rename(kept)
            shown = save_dir.with_name(kept.name) if save_dir.name == place.name and not save_dir.is_symlink() else kept
            print(f"{save_dir} holds an earlier run: kept as {shown}")  # the one line on stderr is for a mistake
            _claim(place, save_dir)
    except OSError as error:
        raise not_writable(save_dir, error) from None


def bring_history(save_dir: Path, resume: Path) -> None:
    """Copies what a run that goes on in another folder does not write again, so that the log is whole there.

    Raises:
        UserError: if the folder cannot be written.
    """
    try:
        for name in ("history.jsonl", "checkpoint-best.pth", "queries.json", "provenance.json"):
            there = resume.parent / name
            if not (save_dir / name).exists() and there.is_file():
                write_atomically(save_dir / name, partial(shutil.copyfile, there))
    except OSError as error:
        raise not_writable(save_dir, error) from None


def is_claimed(save_dir: str | Path) -> bool:
    """Whether a process writes into a log folder, or into the one around it, as far as the file system knows."""
    place = Path(save_dir).resolve()
    return any(_is_locked(folder / ".lock") for folder in (place, place.parent))


def _is_locked(path: Path) -> bool:
    try:
        fcntl = importlib.import_module("fcntl")
        descriptor = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_NOFOLLOW)
    except (ImportError, OSError):  # not a POSIX system; nobody has claimed it, or it is not ours
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)  # for a moment, which a writer would wait
    except OSError as error:
        return error.errno in (errno.EAGAIN, errno.EACCES)
    else:
        return False
    finally:
        os.close(descriptor)


#: what file systems without locks say; filelock raises NotImplementedError for some of them
_WITHOUT_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)
#: of the log folders of this process; a lock ends with its process, however that ends
_LOCKS: dict[Path, FileLock] = {}


#: Seconds to wait for a lock: the loader processes of a killed run hold it until they see that they are alone, if
#: filelock is older than 4.
_PATIENCE = 15.0


def _claim(place: Path, save_dir: Path) -> None:
    """Two runs in one folder would mix their histories and write over each other's checkpoints."""
    place.mkdir(parents=True, exist_ok=True)
    if place in _LOCKS:
        _LOCKS.pop(place).release()
    lock = FileLock(place / ".lock")
    try:
        lock.acquire(timeout=_PATIENCE)
    except Timeout:
        raise UserError(
            f"another process is writing into data.save_dir {save_dir}; wait for its end, or give another data.save_dir"
        ) from None
    except (NotImplementedError, OSError) as error:
        if isinstance(error, OSError) and error.errno not in _WITHOUT_LOCKS:
            raise
        _LOGGER.warning("the file system of data.save_dir %s has no locks: start no other run in this folder", save_dir)
        return
    _LOCKS[place] = lock
