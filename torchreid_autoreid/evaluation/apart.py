"""Runs a reader of files from elsewhere in a process that may die, in bounded memory and time.

This file is the program of that process: it imports the reader's file, limits itself, and calls the reader's
``main(path, *arguments)``, which returns what is wrong with the file, or nothing. So a reader imports libraries only,
and nothing of this package.
"""

from __future__ import annotations

import os
import resource
import runpy
import signal
import subprocess
import sys
from pathlib import Path

__all__ = ["in_a_process"]

_BAD = 3  # exit status: the reason is on stdout
_SECONDS, _BYTES_A_SECOND = 120, 10_000_000  # of the processor's time
_MEMORY, _TIMES = 4 << 30, 4  # beyond the start: of itself (faiss's tables of 2 GiB among it), times the file


def in_a_process(reader: str, doing: str, path: Path, *arguments: Path) -> str:
    """What is wrong with a file, found by another process; empty if nothing is.

    Args:
        reader: the Python file whose ``main`` is called.
        doing: what it does with the file, for the message.
        path: the file.
        arguments: what else ``main`` takes.
    """
    search_path = os.pathsep.join(filter(None, sys.path))
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": search_path, "PYTHONSAFEPATH": "1"}
    done = subprocess.run(
        [sys.executable, __file__, reader, *map(os.fspath, (path, *arguments))],
        stdin=subprocess.DEVNULL, capture_output=True, env=environment, check=False,
    )  # fmt: skip
    if done.returncode == -signal.SIGXCPU:
        return f"takes too long to be {doing}"
    if done.returncode < 0:
        return f"ends the process in which it is {doing} ({signal.Signals(-done.returncode).name})"
    if done.returncode:
        lines = (done.stdout if done.returncode == _BAD else done.stderr).decode(errors="replace").split("\n")
        return next((line for line in reversed(lines) if line.strip()), "cannot be tried")[:300]
    return ""


# --- the process ----------------------------------------------------------


def _limit(path: str) -> None:
    """From here on this process leaves no core, and takes bounded memory and time."""
    size = os.stat(path).st_size
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _lower(resource.RLIMIT_CPU, _SECONDS + size // _BYTES_A_SECOND)
    if sys.platform == "linux":
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        _lower(resource.RLIMIT_AS, pages * os.sysconf("SC_PAGE_SIZE") + _MEMORY + _TIMES * size)


def _lower(kind: int, value: int) -> None:
    own, hard = resource.getrlimit(kind)
    most = [limit for limit in (own, hard) if limit != resource.RLIM_INFINITY]
    resource.setrlimit(kind, (min([value, *most]), hard))


def main(reader: str, path: str, *arguments: str) -> int:
    """Prints what is wrong with a file, and gives the exit status."""
    check = runpy.run_path(reader)["main"]
    try:
        _limit(path)
        wrong = check(path, *arguments)
    except MemoryError:
        wrong = "claims more memory than there is"
    if wrong:
        sys.stdout.write(f"{wrong}\n")
    return _BAD if wrong else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
