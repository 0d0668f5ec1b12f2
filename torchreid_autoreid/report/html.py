"""One self-contained HTML page that tells how a search went."""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..genotype import Genotype
from ..keys import OF_CANDIDATES
from ..numbers import amount, duration
from ..queries import Queries
from ..records import SearchRecord
from ..version import __version__
from .answers import ReadJpeg, cards
from .candidates import best_of_last_rung, candidate_strip, candidate_table, finished
from .cells import CELLS
from .costs import Costs, cost_picture, cost_table
from .epochs import steps_of, thinned
from .log import SELECTION, SearchLog, read_log, setting, settings_of
from .page import Picture, Table, cell_picture, check_page, picture, write_page
from .plots import COST_LABELS, MEASURE_NAMES, draw_costs, draw_history, draw_ribbon
from .trained import Trained, measured_alike, trained_runs, trained_table
from .verdict import verdict

__all__ = ["contents", "write_report"]

_MOST_ROWS = 400  # epochs in the table and in the curves


def write_report(
    log_dir: str | Path,
    output: str | Path | None = None,
    *,
    trained: Sequence[str | Path] = (),
    beside: Sequence[str | Path] = (),
    costs: Costs | None = None,
    read_jpeg: ReadJpeg | None = None,
    pictures: int = 0,
) -> Path:
    """Writes the report of a search, finished or not, from its log folder.

    Args:
        log_dir: the ``data.save_dir`` of a search: ``history.jsonl``, ``genotype.json`` and, if there, what else a
            search leaves.
        output: the page, ``*.html``; ``log_dir/report.html`` by default. It is replaced in one step.
        trained: log folders of trainings of the genotype found; their figures are shown apart from the search's.
        beside: log folders of trainings of other networks, to be put beside these.
        costs: of the network found, of its edges and of other networks, where they were counted.
        read_jpeg: gives a small JPEG of an image by its path.
        pictures: of how many queries images are embedded in the page, the worst first.

    Returns:
        The path of the page.

    Raises:
        UserError: if the folder is no log of a search, one of its files is damaged, or the page cannot be written.
    """
    log = read_log(log_dir)
    target = check_page(output if output is not None else log.folder / "report.html")
    write_page("search.html", target, **contents(log, trained, beside, costs, read_jpeg, pictures))
    return target


def contents(
    log: SearchLog,
    trained: Sequence[str | Path] = (),
    beside: Sequence[str | Path] = (),
    costs: Costs | None = None,
    read_jpeg: ReadJpeg | None = None,
    pictures: int = 0,
) -> dict[str, Any]:
    """What the template of the report needs; arguments as those of :func:`write_report`.

    Raises:
        UserError: if a training or an image cannot be read.
    """
    folder, records, genotype, config = log.folder, log.records, log.genotype, log.config
    trainings = [*trained_runs(trained, genotype), *trained_runs(beside)]
    with_alphas = [record for record in records if record.candidate is None]
    drawn = thinned(records, _MOST_ROWS)
    return {
        "name": log.name,
        "settings": "" if config is None else _settings(config),
        "notes": list(log.notes()),
        "verdict": verdict(records, log.selection, genotype),
        "tiles": list(_tiles(log, costs)),
        "genotype_name": genotype.name,
        "cells": [cell_picture(genotype, kind) for kind in CELLS],
        "trained": trained_table(trainings) if trainings else None,
        "command": _command(folder),
        "code": _code(folder),
        "networks": None if costs is None else _networks(costs, trainings),
        "course": picture("Curves by epoch", draw_history(drawn), draw_history(drawn, columns=1)),
        "costs": picture("Cost by epoch", draw_costs(drawn)) if records[-1].cost else None,
        "steps": steps_of(with_alphas or records, costs),
        "ribbon": _ribbon(with_alphas) if with_alphas else None,
        "operations": records[-1].operations,
        "strip": candidate_strip(log.selection or records),
        "candidates": candidate_table(log.selection or records),
        "selected": bool(log.selection),
        "queries": _queries(log.queries, records, read_jpeg, pictures),
        "epochs": _epochs(records),
        "provenance": _provenance(log),
        "files": _files(genotype, config),
    }


_GROUPS = {
    "worst": "The worst queries",
    "median": "Queries in the middle",
    "best": "The best queries",
}


def _queries(
    found: Queries | None, records: Sequence[SearchRecord], read_jpeg: ReadJpeg | None, pictures: int
) -> dict[str, Any] | None:
    """The groups of queries, with what was measured when they were asked."""
    if found is None:
        return None
    record = next(record for record in records if record.epoch == found.epoch)
    of = "the search network" if record.candidate is None else f"candidate {record.candidate.number}"
    groups, left = [], pictures
    for name, title in _GROUPS.items():
        if queries := found.groups.get(name):
            groups.append((title, cards(queries, read_jpeg, left)))
            left = max(0, left - len(queries))
    return {
        "of": f"{of} in epoch {found.epoch}, the best of {found.mAP:.1%} mAP on {found.counted} queries",
        "groups": groups,
    }


def _networks(costs: Costs, trainings: Sequence[Trained]) -> dict[str, Any]:
    """Costs of the network found beside others, with the mAP of those that were measured alike."""
    alike = measured_alike([run for run in trainings if run.folder in costs.trained])
    measured = [replace(costs.trained[run.folder], mAP=run.mAP, own=run.own) for run in alike]
    others = [
        replace(costs.trained[run.folder], own=run.own)
        for run in {run.folder: run for run in trainings}.values()
        if run.folder in costs.trained and run.folder not in {one.folder for one in alike}
    ]
    networks = [*costs.networks, *measured, *others]
    said = (
        f"mAP on {alike[0].test_set} with {alike[0].queries} queries, of the trainings that were tested alike."
        if alike
        else "mAP was measured of none of them on one protocol, so the axes are those of cost alone."
    )
    height, width = costs.size
    caption = f"Parameters, and multiply–adds of an image of {height} × {width}, without the classifier. {said}"
    return {"note": costs.note, "picture": cost_picture(networks, caption), "table": cost_table(networks)}


def _settings(config: str) -> str:
    """The settings that tell one search from another, in a line; what is not there is left out."""
    tree = settings_of(config)  # if it is none, the file itself is shown below as it is

    def value(section: str, key: str) -> str:
        leaf = setting(tree, section, key)
        leaves = leaf if isinstance(leaf, list) else [leaf]
        return ", ".join(str(leaf)[:60] for leaf in leaves[:8] if isinstance(leaf, str | int | float))

    height, width = value("data", "height"), value("data", "width")
    own = [
        (value("search", "order"), "order {}"),
        (value("search", "split"), "split by {}"),
        (value("search", "selection"), "selection by {}"),
    ]
    parts = [
        (value("data", "sources"), "{}"),
        (height and width and f"{height}×{width}", "{} pixels"),
        (value("autoreid", "channels"), "C = {}"),
        (value("autoreid", "layers"), "L = ({})"),
        (value("search", "strategy"), "{}"),
        *(own if value("search", "strategy") not in OF_CANDIDATES else []),
        (value("train", "seed"), "seed {}"),
    ]
    return " · ".join(form.format(text) for text, form in parts if text)


def _tiles(log: SearchLog, costs: Costs | None) -> Iterator[tuple[str, str, str]]:
    """Name, value and note of each figure at the top."""
    records, genotype = log.records, log.genotype
    if scores := finished(log.selection):
        chosen = best_of_last_rung(scores)
        number = sum(one.rung == scores[0].rung for one in scores)
        whose, of = ("best candidate so far", "") if log.running else ("answer", f" of {number}")
        yield f"{whose}, held-out {chosen.label}", f"{chosen.score:.1%}", f"candidate {chosen.number}{of}"
    measured = [(record.epoch, record.retrieval) for record in records if record.retrieval]
    if measured:
        (epoch, last), (best_epoch, best) = measured[-1], max(measured, key=lambda found: found[1]["mAP"])
        whose = "held-out mAP" if records[-1].candidate else "search network, held-out mAP"
        yield whose, f"{last['mAP']:.1%}", f"best {best['mAP']:.1%}, epoch {best_epoch}"
        yield "held-out rank-1", f"{last['rank1']:.1%}", f"{last['num_valid_queries']} queries, epoch {epoch}"
    seconds = sum(record.seconds for record in records)
    if after := sum(record.seconds for record in log.selection):
        yield "time", duration(seconds + after), f"{duration(after)} of it for the selection"
    else:
        yield "time", duration(seconds), f"{duration(seconds / len(records))} an epoch"
    yield "epochs", str(records[-1].epoch), f"of {records[-1].epochs}"
    for name, operation in (("part-aware edges", "part_aware"), ("skip connections", "skip_connect")):
        count = genotype.count(operation)
        note = f"{count['normal']} normal, {count['reduce']} reduction"
        yield name, f"{sum(count.values())} of {4 * genotype.blocks}", note
    for measure, cost in (records[-1].cost or {}).items():
        whose = ", as the alphas prefer" if log.selects else ""
        yield MEASURE_NAMES[measure] + whose, amount(cost["genotype"]), f"at most {amount(cost['limit'])}"
    if costs is not None:
        yield "parameters", amount(costs.own.params), "of the network found"
        yield "multiply–adds", amount(costs.own.macs), f"an image of {costs.size[0]} × {costs.size[1]}"


def _command(folder: Path) -> str:
    return f"autoreid train --config-file autoreid_train.yaml --genotype {shlex.quote(str(folder / 'genotype.json'))}"


def _code(folder: Path) -> str:
    return "\n".join(
        [
            "import torchreid, torchreid_autoreid",
            f"torchreid_autoreid.register_model('searched', genotype={str(folder / 'genotype.json')!r})",
            "model = torchreid.models.build_model('searched', num_classes=751, loss='triplet', pretrained=False)",
        ]
    )


def _costs_of(records: Sequence[SearchRecord]) -> list[tuple[str, str]]:
    """Measure and name of the columns with costs."""
    return [(measure, name) for measure in records[0].cost or () for name in COST_LABELS]


def _ribbon(records: Sequence[SearchRecord]) -> Picture:
    pairs = zip(records, records[1:], strict=False)
    changed = [later.epoch for earlier, later in pairs if later.genotype.changed_edges(earlier.genotype)]
    end = f"the last change is in epoch {changed[-1]} of {records[-1].epochs}" if changed else "it never changes"
    caption = f"The operation that the genotype keeps on each edge, by epoch: {end}."
    return picture(caption, draw_ribbon(thinned(records, _MOST_ROWS)))


def _epochs(records: Sequence[SearchRecord]) -> Table:
    shown = thinned(records, _MOST_ROWS)
    caption = "w and α: the half that trains each. none and skips: normal cell / reduction cell."
    if len(shown) < len(records):
        caption += f" {len(shown)} of {len(records)} epochs are shown and drawn, evenly spread."
    return Table(caption, _heads(records), [_row(record, records) for record in shown], sortable=True)


def _heads(records: Sequence[SearchRecord]) -> list[str]:
    halves = [f"{name} ({half})" for name in ("loss", "top-1") for half in ("w", "α")]
    heads = ["epoch", "seconds", *halves, "mAP", "rank-1", "mINP", "rate (w)", "rate (α)", "none", "skips"]
    return heads + [f"{MEASURE_NAMES[measure]}, {COST_LABELS[name]}" for measure, name in _costs_of(records)]


def _row(record: SearchRecord, records: Sequence[SearchRecord]) -> list[str]:
    alpha, retrieval, cost = record.alpha or {}, record.retrieval or {}, record.cost or {}
    costs = _costs_of(records)
    return [
        str(record.epoch),
        f"{record.seconds:.1f}",
        *(f"{half['loss']:.3f}" if half else "–" for half in (record.w, alpha)),
        *(f"{half['top1']:.1%}" if half else "–" for half in (record.w, alpha)),
        *(f"{retrieval[name]:.1%}" if retrieval else "–" for name in ("mAP", "rank1", "mINP")),
        *(f"{record.lr[name]:.3g}" for name in ("w", "alpha")),
        " / ".join(f"{record.none_mass[kind]:.2f}" for kind in CELLS),
        " / ".join(str(record.skips[kind]) for kind in CELLS),
        *("–" if (value := cost[m][name]) is None else amount(value) for m, name in costs),
    ]


def _provenance(log: SearchLog) -> Table:
    """From what the page and the search were made, so that a reader can tell whether a folder is the one."""
    rows = [["page", f"torchreid_autoreid {__version__}"], ["log folder", str(log.folder.resolve())]]
    caption = "From what this page and the search were made."
    if log.provenance is None:
        caption += " The folder says neither on which machine nor with which versions it was."
    else:
        rows += [list(pair) for pair in log.provenance.data.items()]
        for start in log.provenance.starts:
            versions = ", ".join(f"{name} {version}" for name, version in start.versions.items())
            what = "started" if start.epoch == 1 else f"went on, epoch {start.epoch}"
            rows.append([what, f"{start.date}: {start.command} ({versions}; {start.machine})"])
    for name in ("history.jsonl", f"{SELECTION}/history.jsonl", "genotype.json", "config.yaml", "queries.json"):
        path = log.folder / name
        if path.is_file():
            rows.append([f"SHA-256 of {name}", hashlib.sha256(path.read_bytes()).hexdigest()])
    return Table(caption, ["what", "which"], rows, of_text=True)


def _files(genotype: Genotype, config: str | None) -> list[tuple[str, str]]:
    found = [("genotype.json", json.dumps(genotype.to_dict(), indent=1))]
    return found if config is None else [*found, ("config.yaml", config)]
