"""Where, when and from what a run was made: the schema of ``provenance.json`` in its log folder.

It is a file of its own, so that all others are the same on another day and after a resume.
"""

from __future__ import annotations

import os
import platform
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

from .errors import UserError, first_line, short
from .files import read_json, write_json
from .version import __version__

__all__ = ["FILE", "Provenance", "Start", "note_start"]

FILE = "provenance.json"

_LIBRARIES = ("torch", "torchvision", "torchreid", "faiss", "numpy")
_MOST_STARTS = 50  # the first one and the latest are kept
_MAX_BYTES = 1 << 20
_MAX_TEXT = 4000


@dataclass(frozen=True)
class Start:
    """A start of a run, or of its resumption.

    Attributes:
        date: when, with the time zone.
        epoch: with which it began, from 1.
        command: as it was typed.
        versions: name -> version, of Python and of the libraries that were in use.
        machine: what it ran on, in words.
    """

    date: str
    epoch: int
    command: str
    versions: Mapping[str, str]
    machine: str

    @classmethod
    def now(cls, epoch: int, device: str, processes: int = 1, argv: Sequence[str] | None = None) -> Start:
        """That of this process.

        Args:
            epoch: with which it begins, from 1.
            device: on which it computes, in words.
            processes: how many take part.
            argv: the command; that of Python by default.
        """
        program, *words = sys.argv if argv is None else argv
        name = (
            "python -m torchreid_autoreid" if Path(program).name == "__main__.py" else shlex.quote(Path(program).name)
        )
        loaded = {library: getattr(sys.modules.get(library), "__version__", "") for library in _LIBRARIES}
        return cls(
            datetime.now().astimezone().isoformat(" ", "seconds"),
            epoch,
            f"{name} {shlex.join(words)}".strip()[:_MAX_TEXT],
            {"torchreid_autoreid": __version__, "Python": platform.python_version()}
            | {library: str(version) for library, version in loaded.items() if version},
            f"{platform.platform()}, {os.cpu_count()} CPUs, {device}" + (f", {processes} processes" * (processes > 1)),
        )


@dataclass(frozen=True)
class Provenance:
    """Of a run.

    Attributes:
        data: name -> description of the images that it read.
        starts: the first one and the latest.
    """

    data: Mapping[str, str]
    starts: Sequence[Start]

    @classmethod
    def load(cls, path: str | Path) -> Provenance:
        """Reads a file that :func:`note_start` has written; nothing in it is trusted.

        Raises:
            UserError: if the file cannot be read, or is of another schema.
        """
        try:
            content = read_json(path, _MAX_BYTES)
            if not isinstance(content, dict) or not isinstance(starts := content.get("starts"), list):
                raise ValueError("it has no list of starts")
            if not 1 <= len(starts) <= _MOST_STARTS:
                raise ValueError(f"it has {len(starts)} starts")
            return cls(_texts(content.get("data"), "data"), [_start(start) for start in starts])
        except (OSError, ValueError, RecursionError) as error:
            raise UserError(f"{path} does not say where a run was made: {first_line(error)}; remove it") from None


def note_start(folder: str | Path, data: Mapping[str, str], start: Start) -> None:
    """Adds a start to the file of a log folder, and replaces the file in one step."""
    path = Path(folder) / FILE
    before: Sequence[Start] = ()
    if path.is_file():
        try:
            before = Provenance.load(path).starts
        except UserError:  # torn, or another's: the run itself does not need it
            before = ()
    kept = [*before[:1], *before[1:][-(_MOST_STARTS - 2) :], start]
    write_json(path, asdict(Provenance(dict(data), kept)))


def _start(content: object) -> Start:
    found = content if isinstance(content, dict) else {}
    epoch = found.get("epoch")
    if isinstance(epoch, bool) or not isinstance(epoch, int) or not 1 <= epoch < 1 << 53:
        raise ValueError(f"an epoch is {short(epoch)}")
    plain = {name: found.get(name) for name in ("date", "command", "machine")}
    return Start(epoch=epoch, versions=_texts(found.get("versions"), "versions"), **_texts(plain, "a start"))


def _texts(content: object, what: str) -> dict[str, str]:
    if not isinstance(content, dict) or len(content) > 50:
        raise ValueError(f"{what} is {short(content)}, not by name")
    for name, text in content.items():
        if not isinstance(text, str) or len(text) > _MAX_TEXT or len(name) > _MAX_TEXT:
            raise ValueError(f"{what} has {short(text)}, no short text")
    return dict(content)
