"""The exceptions that a command turns into a line and an exit status, and how they show a value."""

import errno
import os
import reprlib
from collections.abc import Iterator, Mapping
from typing import Any

#: what a file system says when it takes no more
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
#: what it says when it has gone away
_GONE: tuple[int, ...] = (
    errno.EIO,
    errno.ESTALE,
    errno.ENOTCONN,
    errno.ETIMEDOUT,
    errno.EHOSTDOWN,
    errno.ENODEV,
    errno.ENXIO,
)
_GONE += (getattr(errno, "EREMOTEIO", errno.EIO),)  # of Linux alone
#: what it says about a path
_PATHS = (errno.EACCES, errno.EPERM, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG)
_FEW_FILES = (errno.EMFILE, errno.ENFILE)
_FEW_PROCESSES = (errno.EAGAIN,)

_NOT_ENOUGH_MEMORY = (
    "can't allocate memory",
    "cannot allocate memory",
    "std::bad_alloc",
    "failed to map segment",
    "unable to mmap",
    "not enough memory",
    "out of memory",
)
#: all that oneDNN says where it has got no memory; about an operation that it does not have it says more
_NO_MEMORY_FOR_ONEDNN = (
    "could not create a primitive",
    "could not create a memory object",
    "could not execute a primitive",
)


class UserError(ValueError):
    """A mistake in what the user gave (a file, a key, a value).

    Its message is a single line that names the bad value and the fix. The command-line tools print it on stderr
    and exit with status 2; a traceback would only hide it.
    """


class IndistinctError(UserError):
    """Features so alike for their size, or so small, that float32 distances do not tell them apart."""


class SharedError(UserError):
    """A mistake that all processes of a group raise together; the first one tells it."""


class Interrupted(Exception):
    """The run was asked to stop and has written a checkpoint; exit status 130.

    Args:
        path: the checkpoint to resume from; none if nothing has been written.
    """

    def __init__(self, path: str = "") -> None:
        super().__init__(f"interrupted; resume with --resume {path}" if path else "interrupted; nothing was written")
        self.path = path


def short(value: Any) -> str:
    """A value for a message: a line of bounded length, whatever a file holds.

    >>> short("x" * 1000), short([[[[[[[1]]]]]]])
    ("'xxxxxxxxxxxx...xxxxxxxxxxxxx'", '[[[[[[...]]]]]]')
    """
    try:
        return reprlib.repr(value)[:200]
    except ValueError:  # Python writes out no number of more than 4300 digits
        return f"{type(value).__name__} too long to be shown"


def differences(
    now: Mapping[str, Any], then: Mapping[str, Any], lacking: bool = True
) -> Iterator[tuple[str, Any, Any]]:
    """The settings in which two runs differ, those of a recipe within them by their own names.

    Args:
        now: name -> plain value; of a setting that is a mapping, its own names are compared.
        then: the same of the earlier run.
        lacking: whether a name that one side lacks is a difference, with None as its value there.

    Yields:
        The name, and both values.

    >>> list(differences({"seed": 1, "recipe": {"lr": 0.1, "neck": "none"}}, {"seed": 1, "recipe": {"lr": 0.2}}))
    [('recipe: lr', 0.1, 0.2), ('recipe: neck', 'none', None)]
    """
    names = {**now, **then} if lacking else (name for name in now if name in then)
    for name in names:
        one, other = now.get(name), then.get(name)
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            yield from ((f"{name}: {inner}", *values) for inner, *values in differences(one, other, lacking))
        elif one != other:
            yield name, one, other


def printable(name: Any) -> str:
    r"""A name from elsewhere, which may steer a terminal.

    >>> printable("a b"), printable("a\x1b[31m")
    ('a b', "'a\\x1b[31m'")
    """
    text = str(name)
    return text if text.isprintable() else repr(text)[:4096]


def first_line(error: BaseException) -> str:
    r"""What a library says is wrong, without what follows; the kind of the error if it says nothing.

    >>> first_line(ValueError("no such axis\nat …")), first_line(KeyError())
    ('no such axis', 'KeyError')
    """
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]


def _text(name: Any) -> str:
    """A file's name; TensorBoard opens its own by their bytes."""
    return os.fsdecode(name) if isinstance(name, bytes) else str(name)


def way_out(error: BaseException, again: str = "go on with --resume") -> str:
    """What to do about what a file system says of a file.

    Args:
        error: an ``OSError``, or what a library makes of one.
        again: what to do then.

    >>> way_out(OSError(errno.ENOSPC, "")), way_out(OSError(errno.EIO, ""), "try again")
    ('make room, then go on with --resume', 'try again when its file system is back')
    """
    number = getattr(error, "errno", None)
    if number == errno.EROFS:
        return f"make its file system writable or give another path, then {again}"
    if number in _GONE:
        return f"{again} when its file system is back"
    if number in _PATHS:
        return f"change its rights or give another path, then {again}"
    return f"make room, then {again}"


def line_of_the_machine(error: BaseException) -> str:
    """What to do about a fault of the machine that Python, PyTorch or a library raises; empty if it is none.

    >>> line_of_the_machine(OSError(errno.ENOSPC, "No space left on device", "log/a"))
    'cannot write log/a: No space left on device; make room, then go on with --resume'
    >>> line_of_the_machine(ValueError("x"))
    ''
    """
    text = " ".join(str(error).split())
    reason = text[:160]
    if isinstance(error, OSError) and error.errno is not None:
        where = f" {_text(error.filename)}" if error.filename else ""
        if error.errno in (*_FULL, errno.EROFS):
            return f"cannot write{where}: {error.strerror}; {way_out(error)}"
        if error.errno == errno.ENAMETOOLONG:
            return f"the name {short(error.filename)} is too long for this system; give a shorter one"
        if error.errno in _GONE:
            return (
                f"the file system of{where or ' a file'} does not answer ({error.strerror}); what has been written is "
                "kept, go on with --resume when it is back"
            )
        if error.errno in _PATHS and where:
            return f"cannot use{where}: {error.strerror}; give another path, or change its rights"
        if error.errno in _FEW_PROCESSES:
            return f"the system starts no more processes ({error.strerror}); lower data.workers, or raise ulimit -u"
        if error.errno in _FEW_FILES:
            reason = f"{error.strerror}{where and ':'}{where}"
        elif error.filename and error.errno != errno.ENOMEM:
            return f"cannot use{where}: {error.strerror}; give another path"
    if isinstance(error, RuntimeError) and text.startswith("Symlink loop from"):  # Path.resolve, up to Python 3.12
        return f"cannot use {text.removeprefix('Symlink loop from ')}: links in a circle; give another path"
    if getattr(error, "errno", None) in _FEW_FILES or "Too many open files" in text:
        return f"too few file descriptors ({reason}); raise the limit (ulimit -n 4096), or lower data.workers"
    if "No space left on device" in text or "Disk quota exceeded" in text:  # of a library, or of shared memory
        shared = "/torch_" in text or "shm" in text
        fix = "lower data.workers, or make /dev/shm larger" if shared else "make room, then go on with --resume"
        return f"cannot write ({reason}); {fix}"
    if isinstance(error, RuntimeError) and text.startswith("DataLoader worker"):
        hint = (
            "what has been written is kept, go on with --resume; if memory or threads (ulimit -u) ran out, lower "
            "data.workers"
        )
        return f"a loader process has died ({reason.rstrip('.')}); {hint}"
    if isinstance(error, RuntimeError) and "can't start new thread" in text:
        limits = "ulimit -u for threads, -v for their memory"
        return (
            f"the system starts no more threads; lower data.workers or OMP_NUM_THREADS, or raise its limits ({limits})"
        )
    # PyTorch has an exception of its own for GPUs only; it is named, since an import of PyTorch takes seconds.
    memory = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        memory = True
    memory = memory or (isinstance(error, RuntimeError) and text in _NO_MEMORY_FOR_ONEDNN)
    if memory or any(words in text.lower() for words in _NOT_ENOUGH_MEMORY):
        return (
            f"out of memory{f' ({reason})' if reason else ''}; what has been written is kept; free memory or raise "
            "its limit (ulimit -v), or set smaller batches (train.batch_size, test.batch_size), images (data.height, "
            "data.width) or networks (autoreid.channels)"
        )
    return ""
