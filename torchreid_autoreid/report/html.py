"""One self-contained HTML page that tells how a search went."""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

import yaml

from ..config.read import plain_yaml
from ..genotype import Genotype
from ..numbers import amount, duration
from ..records import SearchRecord
from ..version import __version__
from .candidates import candidate_strip, candidate_table
from .cells import CELLS
from .epochs import steps_of, thinned
from .log import SearchLog, read_log
from .page import Picture, Table, cell_picture, check_page, picture, write_page
from .plots import COST_LABELS, MEASURE_NAMES, draw_costs, draw_history, draw_ribbon
from .trained import trained_table
from .verdict import verdict

__all__ = ["write_report"]

_MOST_ROWS = 400  # epochs in the table and in the curves


def write_report(
    log_dir: str | Path,
    output: str | Path | None = None,
    *,
    parameters: int | None = None,
    macs: int | None = None,
    trained: Sequence[str | Path] = (),
) -> Path:
    """Writes the report of a search, finished or not, from its log folder.

    Args:
        log_dir: the ``data.save_dir`` of a search: ``history.jsonl``, ``genotype.json`` and, if there, ``config.yaml``.
        output: the page, ``*.html``; ``log_dir/report.html`` by default. It is replaced in one step.
        parameters, macs: of the network found, shown if given (numbers, not millions).
        trained: log folders of trainings of the genotype found; their figures are shown apart from the search's.

    Returns:
        The path of the page.

    Raises:
        UserError: if the folder is no log of a search, one of its files is damaged, or the page cannot be written.
    """
    log = read_log(log_dir)
    target = check_page(output if output is not None else log.folder / "report.html")
    folder, records, genotype, config = log.folder, log.records, log.genotype, log.config
    with_alphas = [record for record in records if record.candidate is None]
    drawn = thinned(records, _MOST_ROWS)
    write_page(
        "search.html",
        target,
        name=log.name,
        settings="" if config is None else _settings(config),
        notes=list(log.notes()),
        verdict=verdict(records),
        tiles=list(_tiles(records, genotype, parameters, macs)),
        genotype_name=genotype.name,
        cells=[cell_picture(genotype, kind) for kind in CELLS],
        trained=trained_table(trained, genotype) if trained else None,
        command=_command(folder),
        code=_code(folder),
        course=picture("Curves by epoch", draw_history(drawn), draw_history(drawn, columns=1)),
        costs=picture("Cost by epoch", draw_costs(drawn)) if records[-1].cost else None,
        steps=steps_of(with_alphas) if with_alphas else None,
        ribbon=_ribbon(with_alphas) if with_alphas else None,
        operations=records[-1].operations,
        strip=candidate_strip(records),
        candidates=candidate_table(records),
        epochs=_epochs(records),
        provenance=_provenance(log),
        files=_files(genotype, config),
    )
    return target


def _settings(config: str) -> str:
    """The settings that tell one search from another, in a line; what is not there is left out."""
    try:
        tree = plain_yaml(config)
    except yaml.YAMLError:
        return ""  # the file itself is shown below as it is

    def value(section: str, key: str) -> str:
        branch = tree.get(section) if isinstance(tree, dict) else None
        leaf = branch.get(key) if isinstance(branch, dict) else None
        leaves = leaf if isinstance(leaf, list) else [leaf]
        return ", ".join(str(leaf)[:60] for leaf in leaves[:8] if isinstance(leaf, str | int | float))

    height, width = value("data", "height"), value("data", "width")
    parts = [
        (value("data", "sources"), "{}"),
        (height and width and f"{height}×{width}", "{} pixels"),
        (value("autoreid", "channels"), "C = {}"),
        (value("autoreid", "layers"), "L = ({})"),
        (value("search", "strategy"), "{}"),
        (value("search", "order"), "order {}"),
        (value("search", "split"), "split by {}"),
        (value("train", "seed"), "seed {}"),
    ]
    return " · ".join(form.format(text) for text, form in parts if text)


def _tiles(
    records: Sequence[SearchRecord], genotype: Genotype, parameters: int | None, macs: int | None
) -> Iterator[tuple[str, str, str]]:
    """Name, value and note of each figure at the top."""
    measured = [(record.epoch, record.retrieval) for record in records if record.retrieval]
    if measured:
        (epoch, last), (best_epoch, best) = measured[-1], max(measured, key=lambda found: found[1]["mAP"])
        whose = "held-out mAP" if records[-1].candidate else "search network, held-out mAP"
        yield whose, f"{last['mAP']:.1%}", f"best {best['mAP']:.1%}, epoch {best_epoch}"
        yield "held-out rank-1", f"{last['rank1']:.1%}", f"{last['num_valid_queries']} queries, epoch {epoch}"
    seconds = sum(record.seconds for record in records)
    yield "time", duration(seconds), f"{duration(seconds / len(records))} an epoch"
    yield "epochs", str(records[-1].epoch), f"of {records[-1].epochs}"
    for name, operation in (("part-aware edges", "part_aware"), ("skip connections", "skip_connect")):
        count = genotype.count(operation)
        note = f"{count['normal']} normal, {count['reduce']} reduction"
        yield name, f"{sum(count.values())} of {4 * genotype.blocks}", note
    for measure, cost in (records[-1].cost or {}).items():
        yield MEASURE_NAMES[measure], amount(cost["genotype"]), f"at most {amount(cost['limit'])}"
    if parameters is not None:
        yield "parameters", amount(parameters), "of the network found"
    if macs is not None:
        yield "multiply–adds", amount(macs), "an image"


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
    """From what the page was made, so that a reader can tell whether a folder is the one."""
    rows = [["page", f"torchreid_autoreid {__version__}"], ["log folder", str(log.folder.resolve())]]
    for name in ("history.jsonl", "genotype.json", "config.yaml"):
        path = log.folder / name
        if path.is_file():
            rows.append([f"SHA-256 of {name}", hashlib.sha256(path.read_bytes()).hexdigest()])
    return Table("From what this page was made.", ["what", "which"], rows, of_text=True)


def _files(genotype: Genotype, config: str | None) -> list[tuple[str, str]]:
    found = [("genotype.json", json.dumps(genotype.to_dict(), indent=1))]
    return found if config is None else [*found, ("config.yaml", config)]
