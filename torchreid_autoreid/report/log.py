"""The log folder of a search, read whole. Nothing in it is trusted."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from ..errors import UserError
from ..files import as_path, naming
from ..genotype import Genotype
from ..provenance import FILE, Provenance
from ..queries import Queries
from ..records import SearchRecord
from .history import read_history

__all__ = ["SearchLog", "read_log"]

_MAX_CONFIG_BYTES = 1 << 20

_Read = TypeVar("_Read")


@dataclass(frozen=True)
class SearchLog:
    """What the log folder of a search holds.

    Attributes:
        folder: as it was given.
        records: of its epochs, at least one.
        torn: whether the last line of the history was left out.
        genotype: found so far.
        config: the text of ``config.yaml``; ``None`` without one.
        queries: of its best measurement; ``None`` where they are not there, or not of this history.
        provenance: where it was made; ``None`` where that is not known.
        damage: what is wrong with the files that a page can do without.
    """

    folder: Path
    records: Sequence[SearchRecord]
    torn: bool
    genotype: Genotype
    config: str | None
    queries: Queries | None = None
    provenance: Provenance | None = None
    damage: Sequence[str] = ()

    @property
    def name(self) -> str:
        return self.folder.resolve().name or str(self.folder)

    @property
    def running(self) -> bool:
        """Whether epochs are missing that the search has not given up by itself."""
        return not self.records[-1].ended and self.records[-1].epoch < self.records[-1].epochs

    def notes(self) -> Iterator[str]:
        """What a reader has to know before the figures."""
        last = self.records[-1]
        if ended := last.ended:
            yield f"The search ended after {last.epoch} of {last.epochs} epochs: {ended}."
        elif self.running:
            yield f"The search is still running, or was stopped: {last.epoch} of {last.epochs} epochs are done."
        if self.records[0].epoch > 1:
            yield f"The history begins with epoch {self.records[0].epoch}; the time is that of the epochs in it."
        if self.torn:
            yield "The last line of history.jsonl is torn (a crash, or an epoch being written) and was left out."
        found = last.genotype
        if (found.normal, found.reduce) != (self.genotype.normal, self.genotype.reduce):
            yield "genotype.json is not the genotype of the last epoch in history.jsonl; its cells are the ones drawn."
        if self.config is None:
            yield "The folder holds no config.yaml, so the settings of the search are not shown."
        yield from self.damage


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
    return SearchLog(folder, records, torn, genotype, config, queries, provenance, damage)


def _measured(records: Sequence[SearchRecord]) -> Iterator[tuple[int, float]]:
    return ((record.epoch, record.retrieval["mAP"]) for record in records if record.retrieval)


def _read(load: Callable[[Path], _Read], path: Path, damage: list[str]) -> _Read | None:
    """What a file says that a page can do without; what is wrong with it is noted."""
    if not path.is_file():
        return None
    try:
        return load(path)
    except UserError as error:
        damage.append(f"{path.name} was left out: {error}")
        return None


def _read_config(path: Path) -> str | None:
    if not path.is_file():
        return None
    with naming(path):
        if (size := path.stat().st_size) > _MAX_CONFIG_BYTES:
            raise UserError(f"{path} has {size} bytes, which is no configuration (at most {_MAX_CONFIG_BYTES})")
        return path.read_text(encoding="utf-8", errors="replace")
