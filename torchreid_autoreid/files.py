"""Files written so that a crash leaves the old one or the new one."""

from __future__ import annotations

import contextlib
import errno
import glob
import importlib
import json
import os
import stat
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from .errors import UserError, short, way_out

__all__ = [
    "append_line",
    "as_path",
    "check_output",
    "forget_half_written",
    "naming",
    "not_writable",
    "read_json",
    "write_atomically",
    "write_json",
    "write_output",
]


_HALF_WRITTEN = ".part"


def as_path(path: Any, name: str = "the path") -> Path:
    """A path that was given from Python.

    Raises:
        UserError: if it is none. Python's ``open`` would take a number for the descriptor of an open file.

    >>> as_path(5)
    Traceback (most recent call last):
    ...
    torchreid_autoreid.errors.UserError: the path must be a text or a pathlib.Path, not 5
    """
    text = os.fspath(path) if isinstance(path, str | os.PathLike) else None
    if not isinstance(text, str):
        raise UserError(f"{name} must be a text or a pathlib.Path, not {short(path)}")
    if "\0" in text:
        raise UserError(f"{name} {short(text)} holds a null character, which no file system takes; give another")
    return Path(text)


@contextlib.contextmanager
def naming(path: str | Path) -> Iterator[None]:
    """Names the file in what the system says of it in the block: ``read``, ``write`` and ``fsync`` name none."""
    try:
        yield
    except OSError as error:
        names_another = error.filename and not os.fsdecode(error.filename).endswith(_HALF_WRITTEN)
        if error.errno is None or names_another:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


@contextlib.contextmanager
def _unless_it_cannot(*numbers: int) -> Iterator[None]:
    """Passes over what a file system does not have at all: rights, a way to sync."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.EOPNOTSUPP, *numbers):
            raise


def _sync(descriptor: int) -> None:
    with _unless_it_cannot(errno.EINVAL):
        os.fsync(descriptor)


def append_line(path: str | Path, line: str) -> None:
    """Adds a line to a file, and has it on disk before it returns.

    Raises:
        OSError: naming the file.
    """
    with naming(path), open(path, "a", encoding="utf-8") as file:
        file.write(line + "\n")
        file.flush()
        _sync(file.fileno())


def write_atomically(path: str | Path, write: Callable[[str], Any], previous: str | Path | None = None) -> None:
    """Calls ``write(temporary_path)`` and moves the result to ``path`` in one step; file and folder synced to disk.

    A crash at any moment leaves either the old file or the new one, never half of one.

    Args:
        path: where the result goes.
        write: gets the name of an empty file in the same folder.
        previous: where the old file is kept, if there was one. There is no moment without a whole file under one of the
            two names.

    Raises:
        OSError: naming ``path``, unless it is of another file.
    """
    path = Path(path)
    with naming(path):
        _write_atomically(path, write, previous)


def _write_atomically(path: Path, write: Callable[[str], Any], previous: str | Path | None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=_HALF_WRITTEN, dir=path.parent)
    try:
        _lock(handle)
        write(name)
        with open(name, "rb+") as file:
            _sync(file.fileno())
        with _unless_it_cannot(errno.EPERM):
            os.chmod(name, 0o666 & ~_umask())
        if previous is not None and path.exists():
            _keep(path, Path(previous))
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    finally:
        os.close(handle)
    _sync_folder(path.parent)


def check_output(name: str, path: str | Path, inputs: Mapping[str, str | Path | None] | None = None) -> Path:
    """Finds out before the work, not after it, that a result has nowhere to go; removes what a killed command left.

    Args:
        name: of the option; may be empty.
        path: that it was given; a link is followed.
        inputs: what was given -> its path, of what the command reads: the result must not take its place.

    Returns:
        The file that :func:`write_output` writes.

    Raises:
        UserError: if that is no ordinary file in a folder that can be written, or is one of the inputs.
    """
    shown = f"{name} {path}".strip()
    try:
        place = Path(path).resolve()
        wrong = _what_is_wrong(place)
        taken = next((what for what, own in (inputs or {}).items() if own and Path(own).resolve() == place), None)
    except (OSError, RuntimeError) as error:  # a name that is too long; links in a circle
        raise UserError(
            f"cannot write {shown}: {getattr(error, 'strerror', None) or error}; give another file"
        ) from None
    if wrong:
        raise UserError(f"cannot write {shown}: {wrong}; give a file in a folder that exists and that you may write")
    if taken:
        raise UserError(f"cannot write {shown}: it is the file of {taken}, given for something else too; give another")
    forget_half_written(place.parent, place.name)
    return place


def _what_is_wrong(place: Path) -> str:
    if place.is_dir():
        return os.strerror(errno.EISDIR)
    if not place.parent.is_dir():
        return os.strerror(errno.ENOENT)
    if not os.access(place.parent, os.W_OK | os.X_OK):
        return os.strerror(errno.EACCES)
    return "" if place.is_file() or not place.exists() else "it is a pipe or a device"


def write_output(name: str, path: str | Path, write: Callable[[str], Any]) -> None:
    """Lets ``write(temporary_path)`` make the file of an option, whole or not at all.

    Raises:
        UserError: if it cannot be written.
    """
    try:
        write_atomically(check_output(name, path), write)
    except (OSError, RuntimeError) as error:  # faiss raises the latter
        shown, reason = f"{name} {path}".strip(), getattr(error, "strerror", None) or error
        raise UserError(f"cannot write {shown}: {reason}; {way_out(error, 'start it again')}") from error


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
        _sync(descriptor)
    finally:
        os.close(descriptor)


def forget_half_written(folder: str | Path, name: str = "") -> None:
    """Removes what a command that was killed while it wrote has left in a folder; files that are being written stay.

    Args:
        folder: where it wrote.
        name: of its file; without one, of any.
    """
    for path in Path(folder).glob(f".{glob.escape(name)}{'.' if name else ''}*{_HALF_WRITTEN}"):
        with contextlib.suppress(OSError):  # another process may be as quick
            if not _is_locked(path):
                path.unlink()


def _lock(descriptor: int) -> bool:
    """Marks a file as being written by this process, until the descriptor is closed; says whether that was possible."""
    try:
        fcntl = importlib.import_module("fcntl")
    except ImportError:  # not a POSIX system
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.EAGAIN, errno.EACCES)  # else a file system without locks
    return True


def _is_locked(path: Path) -> bool:
    descriptor = os.open(path, os.O_RDWR | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOFOLLOW", 0))
    try:
        return not _lock(descriptor)
    finally:
        os.close(descriptor)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def not_writable(save_dir: str | Path, error: OSError) -> UserError:
    """What to tell where a log folder cannot be written."""
    reason = error.strerror or type(error).__name__
    return UserError(f"cannot write into data.save_dir {save_dir}: {reason}; give another data.save_dir")


def read_json(path: str | Path, most: int) -> Any:
    """What a small JSON file from elsewhere holds.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it is no ordinary file, has more than ``most`` bytes, or is no JSON.
        RecursionError: if it nests too deep.
    """
    found = Path(path).stat()
    if not stat.S_ISREG(found.st_mode):  # opening a pipe would wait for its writer
        raise ValueError("it is no ordinary file")
    if found.st_size > most:
        raise ValueError(f"it has {found.st_size} bytes, and at most {most} are read")
    return json.loads(Path(path).read_bytes())


def write_json(path: str | Path, content: Any) -> None:
    """Replaces a file in one step."""
    text = json.dumps(content, indent=1) + "\n"
    write_atomically(path, lambda name: Path(name).write_text(text, encoding="utf-8"))
