"""Files written so that a crash leaves the old one or the new one."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .errors import UserError

__all__ = ["forget_half_written", "not_writable", "write_atomically"]


_HALF_WRITTEN = ".part"


def write_atomically(path: str | Path, write: Callable[[str], Any], previous: str | Path | None = None) -> None:
    """Calls ``write(temporary_path)`` and moves the result to ``path`` in one step; file and folder synced to disk.

    A crash at any moment leaves either the old file or the new one, never half of one.

    Args:
        path: where the result goes.
        write: gets the name of an empty file in the same folder.
        previous: where the old file is kept, if there was one. There is no moment without a whole file under one of the
            two names.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=_HALF_WRITTEN, dir=path.parent)
    os.close(handle)
    try:
        write(name)
        with open(name, "rb+") as file:
            os.fsync(file.fileno())
        os.chmod(name, 0o666 & ~_umask())
        if previous is not None and path.exists():
            _keep(path, Path(previous))
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _keep(path: Path, previous: Path) -> None:
    """Gives a file that is about to be replaced a second name."""
    link = path.with_name(f".{previous.name}{_HALF_WRITTEN}")
    link.unlink(missing_ok=True)
    try:
        os.link(path, link)
    except OSError:  # a file system without hard links: for a moment the file has its new name only
        os.replace(path, previous)
    else:
        os.replace(link, previous)
        link.unlink(missing_ok=True)  # rename() leaves it if both names were the same file already


def _sync_folder(folder: Path) -> None:
    """Makes a rename last: without it a power failure can bring the old file back."""
    if os.name != "posix":  # elsewhere a folder cannot be opened
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some network file systems cannot
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def forget_half_written(folder: str | Path) -> None:
    """Removes what a run that was killed while it wrote has left in its log folder."""
    for path in Path(folder).glob(f".*{_HALF_WRITTEN}"):
        path.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def not_writable(save_dir: str | Path, error: OSError) -> UserError:
    """What to tell where a log folder cannot be written."""
    reason = error.strerror or type(error).__name__
    return UserError(f"cannot write into data.save_dir {save_dir}: {reason}; give another data.save_dir")
