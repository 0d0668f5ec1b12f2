"""Figures of the trained network of a genotype, from the log folders of its trainings."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..genotype import Genotype
from .history import read_lines
from .page import Table
from .runs import read_settings
from .verdict import wilson

__all__ = ["trained_table"]

_MAX_BYTES = 1 << 22


def trained_table(folders: Sequence[str | Path], genotype: Genotype) -> Table:
    """The test figures of trainings of a genotype, a row a test set.

    Args:
        folders: ``data.save_dir`` of each training, with ``results.json``.
        genotype: that they should have trained.

    Raises:
        UserError: if a folder is no log of a training that has ended, or trained other cells.
    """
    rows = []
    for folder in map(Path, folders):
        settings = read_settings(folder)
        which = _whose(folder, settings, genotype)
        epochs = len(read_lines(folder / "history.jsonl")[0])
        for name, figures in _results(folder / "results.json").items():
            low, high = wilson(figures["rank1"], int(figures["num_valid_queries"]))
            rows.append(
                [
                    folder.resolve().name or str(folder),
                    name,
                    f"{figures['mAP']:.1%}",
                    f"{figures['rank1']:.1%} ({low:.1%} to {high:.1%})",
                    str(int(figures["num_valid_queries"])),
                    str(epochs),
                    str(settings.get("train.seed", "–")),
                    which,
                ]
            )
    caption = "Of trainings of these cells from scratch; not to be put beside the figures of the search."
    heads = ["training", "test set", "mAP", "rank-1 (95 %)", "queries", "epochs", "seed", "cells"]
    return Table(caption, heads, rows, of_text=True)


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
    if (found.normal, found.reduce) != (genotype.normal, genotype.reduce):
        raise UserError(f"{folder} trained {given}, whose cells are not those of the search; give trainings of these")
    return "these"


def _results(path: Path) -> dict[str, dict[str, float]]:
    """Test set -> figures; nothing in the file is trusted."""
    if not path.is_file():
        raise UserError(f"{path.parent} holds no results.json, so it is no log of a training that has ended")
    if (size := path.stat().st_size) > _MAX_BYTES:
        raise UserError(f"{path} has {size} bytes, which is no file of results (at most {_MAX_BYTES})")
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError, OSError) as error:
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
