"""The log folder of a search, read whole. Nothing in it is trusted."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml

from ..config.read import plain_yaml
from ..errors import UserError
from ..files import as_path, naming
from ..genotype import Genotype
from ..provenance import FILE, Provenance
from ..queries import Queries
from ..records import SearchRecord
from .history import read_history

__all__ = ["SELECTION", "SearchLog", "read_log", "setting", "settings_of"]

#: folder within the log folder, of the candidates of search.selection halving
SELECTION = "selection"
_MAX_CONFIG_BYTES = 1 << 20

_Read = TypeVar("_Read")


@dataclass(frozen=True)
class SearchLog:
    """What the log folder of a search holds.

    Attributes:
        folder: as it was given.
        records: of its epochs, at least one.
        torn: the histories whose last line was left out, by their names.
        genotype: found so far.
        config: the text of ``config.yaml``; ``None`` without one.
        queries: of its best measurement; ``None`` where they are not there, or not of this history.
        provenance: where it was made; ``None`` where that is not known.
        damage: what is wrong with the files that a page can do without.
        selection: of the epochs of a selection by halving, which trains what the alphas propose; none without one.
        selects: whether there is to be one, as far as the configuration tells.
    """

    folder: Path
    records: Sequence[SearchRecord]
    torn: Sequence[str]
    genotype: Genotype
    config: str | None
    queries: Queries | None = None
    provenance: Provenance | None = None
    damage: Sequence[str] = ()
    selection: Sequence[SearchRecord] = ()
    selects: bool = False

    @property
    def name(self) -> str:
        return self.folder.resolve().name or str(self.folder)

    @property
    def running(self) -> bool:
        """Whether epochs are missing, of the search or of its selection, that it has not given up by itself."""
        return _is_cut(self.records) or _is_cut(self.selection) or (self.selects and not self.selection)

    @property
    def present(self) -> Sequence[SearchRecord]:
        """The epochs of what is, or was, in progress: the search, or the selection that follows it."""
        return self.selection if self.selection and not _is_cut(self.records) else self.records

    def notes(self) -> Iterator[str]:
        """What a reader has to know before the figures."""
        last = self.records[-1]
        if ended := last.ended:
            yield f"The search ended after {last.epoch} of {last.epochs} epochs: {ended}."
        if self.running:
            present = self.present[-1]
            what = "search" if self.present is self.records else "selection that follows the alphas"
            done = f"{present.epoch} of {present.epochs} epochs are done"
            if self.present is self.records and not _is_cut(self.records):
                done += " of the alphas, and the selection that follows them is missing"
            yield f"The {what} is still running, or was stopped: {done}."
        if self.records[0].epoch > 1:
            yield f"The history begins with epoch {self.records[0].epoch}; the time is that of the epochs in it."
        for name in self.torn:
            yield f"The last line of {name} is torn (a crash, or an epoch being written) and was left out."
        if self.genotype.cells not in (answer.cells for answer in self._answers()):
            yield "genotype.json is not the genotype of the last epoch in history.jsonl; its cells are the ones drawn."
        if self.config is None:
            yield "The folder holds no config.yaml, so the settings of the search are not shown."
        yield from self.damage

    def _answers(self) -> Iterator[Genotype]:
        """What the history allows as an answer: what the alphas prefer, or one of the candidates that they propose."""
        yield self.records[-1].genotype
        yield from (record.candidate.genotype for record in self.selection if record.candidate is not None)


def _is_cut(records: Sequence[SearchRecord]) -> bool:
    return bool(records) and not records[-1].ended and records[-1].epoch < records[-1].epochs


def read_log(log_dir: str | Path) -> SearchLog:
    """Reads ``history.jsonl``, ``genotype.json`` and, if there, what else a search leaves.

    Raises:
        UserError: if the folder is no log of a search, or one of its files is damaged.
    """
    folder = as_path(log_dir, "the log folder")
    if not folder.is_dir():
        raise UserError(f"no log folder {folder}; give the data.save_dir of a search")
    records, torn = read_history(folder / "history.jsonl")
    if not (folder / "genotype.json").is_file():
        raise UserError(f"{folder} holds no genotype.json, so it is no log of a search; give its data.save_dir")
    genotype = Genotype.load(folder / "genotype.json")
    config, damage = _read_config(folder / "config.yaml"), list[str]()
    queries = _read(Queries.load, folder / "queries.json", damage)
    if queries is not None and (queries.epoch, queries.mAP) not in _measured(records):
        damage.append(f"queries.json is of another history (its epoch {queries.epoch}) and was left out.")
        queries = None
    provenance = _read(Provenance.load, folder / FILE, damage)
    selection, torn_too = _read(_read_selection, folder / SELECTION, damage) or ((), False)
    if selection and not _is_of(selection[0], records[-1]):
        damage.append(f"{SELECTION}/ is not of these alphas and was left out.")
        selection, torn_too = (), False
    files = (("history.jsonl", torn), (f"{SELECTION}/history.jsonl", torn_too))
    names = [name for name, is_torn in files if is_torn]
    selects = setting(settings_of(config), "search", "selection") == "halving" and records[-1].candidate is None
    return SearchLog(folder, records, names, genotype, config, queries, provenance, damage, selection, selects)


def _is_of(first: SearchRecord, last: SearchRecord) -> bool:
    """Whether a selection begins with the genotype that a search ended with."""
    own = first.candidate
    return own is not None and own.genotype.cells == last.genotype.cells


def _measured(records: Sequence[SearchRecord]) -> Iterator[tuple[int, float]]:
    return ((record.epoch, record.retrieval["mAP"]) for record in records if record.retrieval)


def _read(load: Callable[[Path], _Read], path: Path, damage: list[str]) -> _Read | None:
    """What a file or folder says that a page can do without; what is wrong with it is noted."""
    if not (os.path.lexists(path) if path.name == SELECTION else path.is_file()):
        return None
    try:
        return load(path)
    except UserError as error:
        damage.append(f"{path.name} was left out: {error}")
        return None


def _read_selection(folder: Path) -> tuple[Sequence[SearchRecord], bool]:
    """The epochs of a selection, none before its first one has ended, and whether the last line was torn."""
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder")
    history = folder / "history.jsonl"
    return read_history(history) if history.is_file() and history.stat().st_size else ((), False)


def settings_of(config: str | None) -> Any:
    """The tree of a ``config.yaml``; nothing if it is none."""
    try:
        return plain_yaml(config or "")
    except yaml.YAMLError:
        return None


def setting(tree: Any, section: str, key: str) -> Any:
    """A value of such a tree; ``None`` if it is not there."""
    branch = tree.get(section) if isinstance(tree, dict) else None
    return branch.get(key) if isinstance(branch, dict) else None


def _read_config(path: Path) -> str | None:
    if not path.is_file():
        return None
    with naming(path):
        if (size := path.stat().st_size) > _MAX_CONFIG_BYTES:
            raise UserError(f"{path} has {size} bytes, which is no configuration (at most {_MAX_CONFIG_BYTES})")
        return path.read_text(encoding="utf-8", errors="replace")
