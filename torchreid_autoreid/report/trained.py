"""Figures of the trained network of a genotype, from the log folders of its trainings."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..files import naming
from ..genotype import Genotype
from .history import read_lines
from .page import Table
from .runs import PROTOCOL, read_settings
from .verdict import wilson

__all__ = ["Trained", "measured_alike", "trained_runs", "trained_table"]

_MAX_BYTES = 1 << 22
#: settings that decide on which images, and how, a training is tested
_TESTED = (*PROTOCOL, "recipe.flip_test", "test.rerank")


@dataclass(frozen=True)
class Trained:
    """A training on one of its test sets.

    Attributes:
        folder: as it was given.
        network: what was trained, in words.
        test_set: its name.
        mAP, rank1: as fractions.
        queries: with a true match.
        epochs: of the training.
        seed: of the training, in words.
        tested: settings of the test; empty where they are not known.
        own: whether its cells are those of the search.
    """

    folder: str
    network: str
    test_set: str
    mAP: float
    rank1: float
    queries: int
    epochs: int
    seed: str
    tested: Mapping[str, Any]
    own: bool

    @property
    def name(self) -> str:
        return Path(self.folder).resolve().name or self.folder


def trained_runs(folders: Sequence[str | Path], genotype: Genotype | None = None) -> list[Trained]:
    """The test figures of trainings.

    Args:
        folders: ``data.save_dir`` of each training, with ``results.json``.
        genotype: that they should have trained; ``None``: any network.

    Raises:
        UserError: if a folder is no log of a training that has ended, or trained other cells.
    """
    found = []
    for folder in map(Path, folders):
        settings = read_settings(folder)
        network = _any(settings) if genotype is None else _whose(folder, settings, genotype)
        epochs = len(read_lines(folder / "history.jsonl")[0])
        for name, figures in _results(folder / "results.json").items():
            found.append(
                Trained(
                    str(folder), network, name, figures["mAP"], figures["rank1"], int(figures["num_valid_queries"]),
                    epochs, str(settings.get("train.seed", "–")),
                    {key: settings.get(key) for key in _TESTED} if settings else {}, genotype is not None,
                )
            )  # fmt: skip
    return found


def trained_table(runs: Sequence[Trained]) -> Table:
    """Trainings by their test sets."""
    rows = []
    for run in runs:
        low, high = wilson(run.rank1, run.queries)
        shown = f"{run.rank1:.1%} ({low:.1%} to {high:.1%})"
        figures = [f"{run.mAP:.1%}", shown, str(run.queries), str(run.epochs), run.seed, run.network]
        rows.append([run.name, run.test_set, *figures])
    caption = "Of whole trainings; not to be put beside the figures of the search."
    heads = ["training", "test set", "mAP", "rank-1 (95 %)", "queries", "epochs", "seed", "cells"]
    return Table(caption, heads, rows, of_text=True)


def measured_alike(runs: Sequence[Trained]) -> list[Trained]:
    """The trainings whose figures may be put beside each other: as many as were tested alike, on one test set."""
    groups: dict[str, list[Trained]] = {}
    for run in runs:
        unknown = "" if run.tested else run.folder  # how it was tested is not known
        groups.setdefault(repr((run.test_set, run.queries, sorted(run.tested.items()), unknown)), []).append(run)
    return max(groups.values(), key=len, default=[])


def _any(settings: Mapping[str, Any]) -> str:
    model, given = settings.get("model.name", "unknown"), settings.get("autoreid.genotype")
    if not str(model).startswith("autoreid") or not isinstance(given, str):
        return str(model)
    return f"{model}, cells {Path(given).name}"


def _whose(folder: Path, settings: dict[str, Any], genotype: Genotype) -> str:
    """Whether a training trained these cells, by the genotype that its configuration names."""
    model, given = settings.get("model.name"), settings.get("autoreid.genotype")
    if model is not None and not str(model).startswith("autoreid"):
        raise UserError(f"{folder} trained {model}, not a network of the search; leave it out")
    if not isinstance(given, str):
        return "not checked: no config.yaml says which"
    try:
        found = Genotype.load(given)
    except UserError:
        return "not checked: the file of the genotype is not where it was"
    if found.cells != genotype.cells:
        raise UserError(f"{folder} trained {given}, whose cells are not those of the search; give trainings of these")
    return "these"


def _results(path: Path) -> dict[str, dict[str, float]]:
    """Test set -> figures; nothing in the file is trusted."""
    if not path.is_file():
        raise UserError(f"{path.parent} holds no results.json, so it is no log of a training that has ended")
    if (size := path.stat().st_size) > _MAX_BYTES:
        raise UserError(f"{path} has {size} bytes, which is no file of results (at most {_MAX_BYTES})")
    try:
        with naming(path):
            content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON: {' '.join(str(error).split())[:100]}") from None
    sets: list[Any] = list(content.values()) if isinstance(content, dict) else [None]
    for figures in [found if isinstance(found, dict) else {} for found in sets]:
        for name, most in (("mAP", 1), ("rank1", 1), ("num_valid_queries", 1 << 53)):
            value = figures.get(name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= most:
                raise UserError(f"{path} has no {name} of each test set; restore the file, or test again")
        if not figures["num_valid_queries"]:
            raise UserError(f"{path} counts no query; test again")
    return content
