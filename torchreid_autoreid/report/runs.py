"""The logs of searches and trainings as tables: one run by epoch, two runs beside each other."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import yaml

from ..config.read import plain_yaml
from ..errors import UserError
from ..files import as_path, naming
from ..genotype import Genotype
from .history import read_lines
from .log import SELECTION

__all__ = ["PLACES", "PROTOCOL", "Comparison", "compare", "read_history", "read_settings"]

_MAX_CONFIG_BYTES = 1 << 20
#: settings that say where a run lies, not what it does
PLACES = ("data.save_dir", "data.root", "data.workers", "train.print_freq")

#: settings that decide on which images, and how, retrieval is measured
PROTOCOL = (
    *(f"data.{name}" for name in ("type", "sources", "split_id", "combineall")),
    *(f"cuhk03.{name}" for name in ("classic_split", "labeled_images", "use_metric_cuhk03")),
    "market1501.use_500k_distractors",
    *(f"test.{name}" for name in ("dist_metric", "normalize_feature")),
)


def read_history(log: str | PathLike[str]) -> Any:
    """The figures of a search, a training or a pre-training by epoch.

    Args:
        log: the log folder of the run, or its ``history.jsonl``.

    Returns:
        A row an epoch, with columns such as ``w.loss``, ``train.top1`` and ``retrieval.mAP``: a ``pandas.DataFrame``
        if pandas is installed, else a list of dicts. Columns that have no number in any epoch are left out.

    Raises:
        UserError: if there is no history, or a line of it is not a record.
    """
    rows = _rows(as_path(log, "the log folder"))
    if importlib.util.find_spec("pandas") is None:
        return rows
    import pandas

    return pandas.DataFrame(rows).set_index("epoch")


def _rows(log: Path) -> list[dict[str, float]]:
    path = log / "history.jsonl" if log.is_dir() else log
    records, _ = read_lines(path)
    for number, record in enumerate(records, start=1):
        if not isinstance(record, dict) or not isinstance(record.get("epoch"), int):
            raise UserError(f"line {number} of {path} is no record of an epoch; give the log folder of a run")
    return [dict(_numbers(record)) for record in records]


def _numbers(record: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """The numbers of a record by their path; lists, such as alphas, are passed over."""
    for name, value in record.items():
        if isinstance(value, Mapping) and name != "genotype":
            yield from _numbers(value, f"{prefix}{name}.")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield f"{prefix}{name}", value


@dataclass(frozen=True)
class Comparison:
    """Two runs beside each other; printed, a table.

    Attributes:
        names: of the two log folders.
        figures: name -> the values of both; ``None`` where a run has none.
        settings: key -> the values of both, where they differ.
        genotypes: of both; ``None`` where a run has found none.
    """

    names: tuple[str, str]
    figures: dict[str, tuple[float | None, float | None]]
    settings: dict[str, tuple[Any, Any]]
    genotypes: tuple[Genotype | None, Genotype | None]

    def __str__(self) -> str:
        rows = [("", *self.names)]
        rows += [(name, _shown(one), _shown(other)) for name, (one, other) in self.figures.items()]
        rows += [(name, str(one), str(other)) for name, (one, other) in self.settings.items()]
        if None not in self.genotypes:
            rows.append(("edges that differ", str(self.different_edges()), ""))
        widths = [max(len(row[column]) for row in rows) for column in range(3)]
        lines = ("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)) for row in rows)
        return "\n".join(line.rstrip() for line in lines)

    def different_edges(self) -> int:
        """How many edges of the one genotype the other does not have at the same block."""
        one, other = self.genotypes
        assert one is not None
        assert other is not None
        pairs = [pair for cells in zip(one.cells, other.cells, strict=True) for pair in zip(*cells, strict=False)]
        return sum(len(set(first) - set(second)) for first, second in pairs)


def compare(log_a: str | PathLike[str], log_b: str | PathLike[str]) -> Comparison:
    """Compares two runs by their log folders: figures, settings that differ, and genotypes.

    Raises:
        UserError: if a folder holds no history, or one of its files is damaged.
    """
    logs = as_path(log_a, "the log folder"), as_path(log_b, "the log folder")
    one, other = (_figures_of(log) for log in logs)
    names = [*one, *(name for name in other if name not in one)]
    first, second = (read_settings(log) for log in logs)
    return Comparison(
        (str(logs[0]), str(logs[1])),
        {name: (one.get(name), other.get(name)) for name in names},
        {
            name: (first.get(name, "—"), second.get(name, "—"))
            for name in sorted(first.keys() | second.keys())
            if first.get(name) != second.get(name) and name not in PLACES
        },
        (_genotype(logs[0]), _genotype(logs[1])),
    )


def _figures_of(log: Path) -> dict[str, float]:
    found, folder = _figures(_rows(log)), log / SELECTION
    if (folder / "history.jsonl").is_file():
        chosen = _figures(_rows(folder))
        found |= {f"selection, {name}": chosen[name] for name in ("epochs", "seconds", "best mAP") if name in chosen}
    return found


def _figures(rows: list[dict[str, float]]) -> dict[str, float]:
    measured = [row for row in rows if "retrieval.mAP" in row]
    best = max(measured, key=lambda row: row["retrieval.mAP"], default={})
    found = {
        "epochs": len(rows),
        "seconds": sum(row.get("seconds", 0.0) for row in rows),
        "best mAP": best.get("retrieval.mAP"),
        "rank-1 with it": best.get("retrieval.rank1"),
        "in epoch": best.get("epoch"),
    }
    last = {name: value for name, value in rows[-1].items() if name.endswith(("loss", "top1"))}
    return {name: value for name, value in (found | last).items() if value is not None}


def _shown(value: float | None) -> str:
    return "—" if value is None else f"{value:.4g}"


def read_settings(log: Path) -> dict[str, Any]:
    """The keys of ``config.yaml``; none if it is missing."""
    path = log / "config.yaml"
    if not path.is_file():
        return {}
    if path.stat().st_size > _MAX_CONFIG_BYTES:
        raise UserError(f"{path} has {path.stat().st_size} bytes, which is no configuration")
    try:
        with naming(path):
            content = plain_yaml(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not plain YAML: {' '.join(str(error).split())[:200]}") from None
    return dict(_flat(content)) if isinstance(content, dict) else {}


def _flat(content: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in content.items():
        yield from _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else [(f"{prefix}{key}", value)]


def _genotype(log: Path) -> Genotype | None:
    path = log / "genotype.json"
    return Genotype.load(path) if path.is_file() else None
