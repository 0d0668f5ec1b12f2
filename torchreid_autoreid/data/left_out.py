"""Which files of a folder are pictures, and a count of those that are not used."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from .images import SUFFIXES

__all__ = ["LeftOut", "is_folder"]

#: files that systems leave in folders
_OF_THE_SYSTEM = {"thumbs.db", "desktop.ini"}


class LeftOut:
    """Counts the files that are not used, by reason and folder; hidden ones are passed over without a word."""

    def __init__(self) -> None:
        self.found: dict[tuple[str, Path], list[str]] = {}

    def add(self, reason: str, folder: Path, path: str) -> None:
        """Counts one."""
        self.found.setdefault((reason, folder), []).append(path)

    def is_named_as_picture(self, path: str, folder: Path) -> bool:
        """Whether a name ends as that of a picture; it is counted for the folder if not."""
        name = os.path.basename(path)
        if name.startswith(".") or name.lower() in _OF_THE_SYSTEM:
            return False
        ending = os.path.splitext(name)[1].lower()
        if ending not in SUFFIXES:
            self.add(f"{ending} files" if ending else "files without an ending", folder, path)
        return ending in SUFFIXES

    def is_picture(self, path: str, folder: Path) -> bool:
        """The same, of an ordinary file."""
        if stat.S_ISREG(_mode(path)):
            return self.is_named_as_picture(path, folder)
        if not os.path.basename(path).startswith("."):
            self.add("dead links" if os.path.islink(path) else "pipes or devices", folder, path)
        return False

    def __str__(self) -> str:
        return ", ".join(
            f"{len(paths)} {reason} in {folder}{f' (such as {os.path.relpath(paths[0], folder)})' if paths[0] else ''}"
            for (reason, folder), paths in self.found.items()
        )


def is_folder(path: str) -> bool:
    """Whether a path is a folder, or a link to one."""
    return stat.S_ISDIR(_mode(path))


def _mode(path: str) -> int:
    """What a path is; 0 for a link that leads nowhere, or in a circle."""
    try:
        return os.stat(path).st_mode
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            return 0
        raise
