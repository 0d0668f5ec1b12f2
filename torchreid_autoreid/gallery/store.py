"""A gallery's folder: an SQLite file with the identities, and a file of float32 vectors that only grows.

SQLite's transactions decide what is enrolled. Vectors are written and synced before the transaction that names their
rows is committed; rows that no transaction names, left by a process that was killed, are overwritten by the next.
"""

from __future__ import annotations

import contextlib
import os
import re
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UserError, short
from ..evaluation.embeddings import is_between
from ..files import as_path

DATABASE = "gallery.sqlite"
FORMAT = 1
_FILE_NAME = re.compile(r"vectors-[0-9]{8,12}\.f32")
#: facts that are whole numbers, with the least of each
_COUNTS = {"dimension": 1, "rows": 0, "revision": 0, "renumbered": 0}
_COUNTS_OF_CALIBRATION = {"probes": 1, "calibrated_revision": 0}
_MOST = 1e6  # more than any cosine or rate
_PATIENCE = 60.0  # seconds that a process waits for another's transaction
_TABLES = """
CREATE TABLE facts (name TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE items (row INTEGER PRIMARY KEY, pid NOT NULL);
CREATE INDEX items_of_pid ON items (pid);
"""


@dataclass(frozen=True)
class Snapshot:
    """What was enrolled at one moment.

    Attributes:
        revision: number of the last change.
        renumbered: how often rows have been removed.
        vectors: (R, D) float32, memory-mapped; removed rows included.
        people: (P,) identities.
        person: (R,) place in ``people`` of each row; -1 where the row has been removed.
    """

    revision: int
    renumbered: int
    vectors: np.ndarray
    people: np.ndarray
    person: np.ndarray


def check_new(folder: Path) -> None:
    """Raises a UserError unless a gallery can be made in a folder: it is new or empty, and may be written."""
    try:
        if folder.exists() and any(not path.name.startswith(".") for path in folder.iterdir()):
            raise UserError(f"{folder} is not empty; give a new folder, or add to the gallery there")
        place = next(path for path in (folder, *folder.absolute().parents) if path.exists() or path.is_symlink())
        if not os.access(place, os.W_OK | os.X_OK) or not place.is_dir():
            raise UserError(f"cannot write {folder}: {place} is no folder that may be written; give another folder")
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror}; give another folder") from error


class Store:
    """The folder of a gallery, with one connection to its database."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = as_path(folder, "the gallery's folder")
        if not (self.folder / DATABASE).is_file():
            raise UserError(f"{folder} holds no gallery ({DATABASE} is missing); make one with gallery build")
        self._connection = self._connect()
        try:
            with self._telling():
                state = self._connection.execute("PRAGMA quick_check(1)").fetchone()[0]
                if state != "ok":
                    raise sqlite3.DatabaseError(" ".join(str(state).split()))
                facts = self.facts()
            self.dimension: int = facts["dimension"]
            self.network = str(facts.get("network", ""))
        except BaseException:
            self.close()
            raise

    @classmethod
    def create(cls, folder: str | os.PathLike[str], dimension: int, network: str) -> Store:
        """An empty gallery; the database appears under its name when it is whole."""
        folder = as_path(folder, "the gallery's folder")
        try:
            check_new(folder)
            folder.mkdir(parents=True, exist_ok=True)
            new = folder / f".{DATABASE}.{os.getpid()}"
            new.unlink(missing_ok=True)
            with contextlib.closing(sqlite3.connect(new)) as connection, connection:
                connection.executescript(_TABLES)
                facts = {"format": FORMAT, "dimension": dimension, "network": network, "vectors": _file_name(0)}
                facts |= {"rows": 0, "revision": 0, "renumbered": 0}
                connection.executemany("INSERT INTO facts VALUES (?, ?)", facts.items())
            (folder / _file_name(0)).touch()
            os.replace(new, folder / DATABASE)
        except OSError as error:
            raise UserError(f"cannot write {folder}: {error.strerror}; give another folder") from error
        return cls(folder)

    def close(self) -> None:
        self._connection.close()

    def facts(self) -> dict[str, Any]:
        """What the gallery says of itself, checked: the file may be from elsewhere.

        Raises:
            UserError: another version, or a value that is none.
        """
        found = dict(self._connection.execute("SELECT name, value FROM facts"))
        if found.get("format") != FORMAT:
            raise UserError(f"{self._file} is no gallery of this version; make one with gallery build")
        names = _COUNTS if "threshold" not in found else {**_COUNTS, **_COUNTS_OF_CALIBRATION}
        wrong = [name for name, least in names.items() if not _is_count(found.get(name), least)]
        # It names a file of this folder, which a writer opens: nothing else, and no link.
        if not isinstance(vectors := found.get("vectors"), str) or not _FILE_NAME.fullmatch(vectors):
            wrong.append("vectors")
        elif (self.folder / vectors).is_symlink():
            raise UserError(f"{self.folder / vectors} is a link; build the gallery anew")
        if "threshold" in found:
            wrong += [name for name in ("threshold", "far") if not is_between(found.get(name), -_MOST, _MOST)]
        if wrong:
            value = short(found.get(wrong[0]))
            raise UserError(f"{self._file} is damaged (its {wrong[0]} is {value}); restore a copy, or build anew")
        return found

    def read(self, known: Snapshot | None = None) -> Snapshot:
        """What is enrolled now; only what is new is read if nothing has been removed since ``known``."""
        for attempt in (0, 1):
            with self._telling(), self._transaction("DEFERRED"):
                facts = self.facts()
                if known is not None and known.revision == facts["revision"]:
                    return known
                grown = known is not None and known.renumbered == facts["renumbered"]
                first = len(known.person) if grown and known is not None else 0
                items = self._connection.execute("SELECT row, pid FROM items WHERE row >= ? ORDER BY row", (first,))
                found = items.fetchall()
            try:
                vectors = self._map(facts)
                break
            except FileNotFoundError:  # removed by a writer that has just written a shorter one
                if attempt:
                    raise UserError(f"{self.folder / facts['vectors']} is missing; build the gallery anew") from None
        rows = np.array([row for row, _ in found], dtype=np.int64)
        if len(rows) and (rows[-1] >= facts["rows"] or rows[0] < 0):
            raise UserError(f"{self._file} names rows that {facts['vectors']} lacks; build the gallery anew")
        labels = [pid for _, pid in found]
        if any(type(pid) is not type(labels[0]) or not isinstance(pid, int | str) for pid in labels):
            raise UserError(f"{self._file} mixes kinds of identities; build the gallery anew")
        person = np.full(facts["rows"], -1, dtype=np.int64)
        if grown and known is not None:
            person[:first] = known.person
            labels = [*known.people.tolist(), *labels]
        people, codes = np.unique(np.array(labels), return_inverse=True) if labels else (np.array([], np.int64), rows)
        if grown and known is not None:
            old, codes = codes[: len(known.people)], codes[len(known.people) :]
            enrolled = person[:first] >= 0
            person[:first][enrolled] = old[person[:first][enrolled]]
        person[rows] = codes
        return Snapshot(facts["revision"], facts["renumbered"], vectors, people, person)

    def add(self, vectors: np.ndarray, pids: np.ndarray) -> None:
        """Enrols (N, D) float32 vectors with int64 or str identities."""
        with self._writing() as facts:
            kind = self._connection.execute("SELECT typeof(pid) FROM items LIMIT 1").fetchone()
            if kind is not None and (kind[0] == "text") != (pids.dtype.kind == "U"):
                have, given = ("names", "numbers") if kind[0] == "text" else ("numbers", "names")
                raise UserError(f"identities of {self.folder} are {have}, and these are {given}; give {have}")
            rows = facts["rows"]
            with open(self.folder / facts["vectors"], "rb+") as file:
                if file.seek(0, os.SEEK_END) < rows * self.dimension * 4:
                    raise self._torn(facts)
                file.seek(rows * self.dimension * 4)
                file.write(np.ascontiguousarray(vectors, dtype="<f4").data)
                file.truncate()
                file.flush()
                os.fsync(file.fileno())
            self._connection.executemany(
                "INSERT INTO items VALUES (?, ?)", zip(range(rows, rows + len(pids)), pids.tolist(), strict=True)
            )
            self._set(rows=rows + len(pids))

    def remove(self, pids: np.ndarray) -> int:
        """Forgets identities; returns how many vectors that were. An identity that is not enrolled is refused."""
        with self._writing() as facts:
            removed = 0
            for pid in pids.tolist():
                deleted = self._connection.execute("DELETE FROM items WHERE pid = ?", (pid,)).rowcount
                if not deleted:
                    raise UserError(f"{short(pid)} is not enrolled in {self.folder}; nobody has been removed")
                removed += deleted
            self._set(renumbered=facts["renumbered"] + 1)
            left = self._connection.execute("SELECT count(*) FROM items").fetchone()[0]
            if left * 2 <= facts["rows"]:
                self._shorten(facts, left)
        self._forget_old_vectors()
        return removed

    def set_facts(self, **facts: Any) -> None:
        with self._writing():
            self._set(**facts)

    def _shorten(self, facts: dict[str, Any], left: int) -> None:
        """Writes a file of the vectors that are enrolled, once half of them are not."""
        number = int(facts["vectors"].split("-")[1].split(".")[0]) + 1
        old = self._map(facts)
        rows = np.array([row for (row,) in self._connection.execute("SELECT row FROM items ORDER BY row")], np.int64)
        with open(self.folder / _file_name(number), "wb") as file:
            for start in range(0, left, 8192):
                file.write(old[rows[start : start + 8192]].data)
            file.flush()
            os.fsync(file.fileno())
        # In ascending order a row moves to a place that is free already.
        moves = ((new, row) for new, row in enumerate(rows.tolist()) if new != row)
        self._connection.executemany("UPDATE items SET row = ? WHERE row = ?", moves)
        self._set(vectors=_file_name(number), rows=left)

    def _forget_old_vectors(self) -> None:
        # Another writer may be at its new file: only names before the current one are old.
        current = self.facts()["vectors"]
        for path in self.folder.glob("vectors-*.f32"):
            if path.name < current:
                path.unlink(missing_ok=True)

    def _map(self, facts: dict[str, Any]) -> np.ndarray:
        path = self.folder / facts["vectors"]
        if not facts["rows"]:
            return np.empty((0, self.dimension), dtype="<f4")
        if path.stat().st_size < facts["rows"] * self.dimension * 4:
            raise self._torn(facts)
        return np.memmap(path, dtype="<f4", mode="r", shape=(facts["rows"], self.dimension))

    def _torn(self, facts: dict[str, Any]) -> UserError:
        path = self.folder / facts["vectors"]
        return UserError(f"{path} is torn: it has fewer than {facts['rows']} vectors; build the gallery anew")

    def _set(self, **facts: Any) -> None:
        self._connection.executemany("INSERT OR REPLACE INTO facts VALUES (?, ?)", facts.items())

    @property
    def _file(self) -> Path:
        return self.folder / DATABASE

    def _connect(self) -> sqlite3.Connection:
        with self._telling():
            connection = sqlite3.connect(self._file, timeout=_PATIENCE, isolation_level=None, check_same_thread=False)
            connection.execute("PRAGMA trusted_schema = OFF")  # a file from elsewhere runs nothing
            connection.execute("PRAGMA synchronous = FULL")
        return connection

    @contextlib.contextmanager
    def _transaction(self, kind: str) -> Iterator[None]:
        self._connection.execute(f"BEGIN {kind}")
        try:
            yield
            self._connection.execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise

    @contextlib.contextmanager
    def _writing(self) -> Iterator[dict[str, Any]]:
        """A change, whole or not at all; other writers wait. Gives the facts before it."""
        try:
            with self._telling(), self._transaction("IMMEDIATE"):
                facts = self.facts()
                self._set(revision=facts["revision"] + 1)
                yield facts
        except OSError as error:
            raise UserError(f"cannot write {self.folder}: {error.strerror}; nothing has been changed") from error

    @contextlib.contextmanager
    def _telling(self) -> Iterator[None]:
        """Turns SQLite's errors into a line."""
        try:
            yield
        except (sqlite3.Error, KeyError, TypeError) as error:
            if "locked" in str(error):
                line = f"{self._file} is being written by another process; try again"
            elif "readonly" in str(error) or "full" in str(error):
                line = f"cannot write {self._file} ({error}); change its rights, or make room"
            else:
                line = f"{self._file} is damaged ({' '.join(str(error).split())}); restore a copy, or build anew"
            raise UserError(line) from error


def _is_count(value: Any, least: int) -> bool:
    return isinstance(value, int) and least <= value < 1 << 48


def _file_name(number: int) -> str:
    return f"vectors-{number:08d}.f32"
