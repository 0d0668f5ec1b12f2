"""What a search had found and how sure it was, epoch by epoch: cells, probabilities and margins for the slider."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from ..genotype import KINDS, Genotype, cell_edges
from ..records import SearchRecord
from .cells import CELLS, cell_in_words, cell_svg
from .page import Table
from .verdict import kept_edges

__all__ = ["Steps", "steps_of", "thinned"]

_MOST_STEPS = 100


def thinned(records: Sequence[SearchRecord], most: int) -> list[SearchRecord]:
    """At most so many of the records, evenly spread; the first and the last among them."""
    if len(records) <= most:
        return list(records)
    return [records[round(place * (len(records) - 1) / (most - 1))] for place in range(most)]


@dataclass(frozen=True)
class Shown:
    """An element of the page that belongs to some steps of the slider.

    Attributes:
        steps: to which it belongs, as the page's script reads them.
        hidden: whether the page begins without it.
        name: what it is.
        text: what it shows, in words.
        content: the element.
    """

    steps: str
    hidden: bool
    name: str
    text: str
    content: Any


@dataclass(frozen=True)
class Steps:
    """What the slider of a search shows; the last step is the one that a page without scripts shows.

    Attributes:
        labels: of the steps.
        note: what was left out; empty if nothing was.
        cells: drawings, one for each run of steps with the same cell, by kind.
        probabilities: of each step, by kind.
        edges: table of the kept edges of each step.
    """

    labels: list[str]
    note: str
    cells: list[list[Shown]]
    probabilities: list[list[Shown]]
    edges: list[Shown]


def steps_of(records: Sequence[SearchRecord]) -> Steps:
    """The steps of a search that has alphas."""
    chosen = thinned(records, _MOST_STEPS)
    top = {kind: max(max(map(max, r.probabilities[kind])) for r in chosen) for kind in KINDS}
    skipped = len(records) - len(chosen)
    last = len(chosen) - 1
    return Steps(
        [_label(record) for record in chosen],
        f"{len(chosen)} of {len(records)} epochs can be chosen, evenly spread." if skipped else "",
        [_cells(chosen, kind) for kind in KINDS],
        [
            [
                Shown(
                    str(step), step != last, CELLS[kind], f"Probabilities, {CELLS[kind].lower()}, epoch {record.epoch}",
                    _heat(record, kind, top[kind]),
                )
                for step, record in enumerate(chosen)
            ]
            for kind in KINDS
        ],
        [Shown(str(step), step != last, "", "", _edges(record)) for step, record in enumerate(chosen)],
    )  # fmt: skip


def _label(record: SearchRecord) -> str:
    changed = record.diagnosis.get("changed_edges")
    parts = [f"epoch {record.epoch}"]
    if changed is not None:
        parts.append(f"{changed} edges changed" if changed else "no edge changed")
    if record.retrieval:
        parts.append(f"held-out mAP {record.retrieval['mAP']:.1%}")
    return ", ".join(parts)


def _cells(records: Sequence[SearchRecord], kind: str) -> list[Shown]:
    runs: list[tuple[Genotype, list[int]]] = []
    for step, record in enumerate(records):
        if runs and getattr(runs[-1][0], kind) == getattr(record.genotype, kind):
            runs[-1][1].append(step)
        else:
            runs.append((record.genotype, [step]))
    return [
        Shown(
            " ".join(map(str, steps)),
            steps[-1] != len(records) - 1,
            CELLS[kind],
            f"{CELLS[kind]}: {cell_in_words(genotype, kind)}.",
            cell_svg(genotype, kind),
        )
        for genotype, steps in runs
    ]


def _heat(record: SearchRecord, kind: str, top: float) -> Markup:
    """The rows of the body of a table: an edge a row, an operation a column, what the genotype keeps marked."""
    cell = getattr(record.genotype, kind)
    kept = {(block, source, operation) for block, pair in enumerate(cell) for operation, source in pair}
    lines = []
    for edge, block, source in cell_edges(len(cell)):
        cells = []
        for operation, value in zip(record.operations, record.probabilities[kind][edge], strict=True):
            mark = " class=kept" if (block, source, operation) in kept else ""
            cells.append(f'<td{mark} style="--p:{0.6 * value / top:.2f}">{value:.2f}')
        lines.append(f"<tr><th scope=row>{source} → {block + 2}{''.join(cells)}")
    return Markup("".join(lines))  # numbers, and names that were checked


def _edges(record: SearchRecord) -> Table:
    rows = [
        [
            f"{CELLS[edge.kind]}, {edge.source} → {edge.block + 2}",
            edge.operation,
            f"{edge.probability:.3f}",
            edge.runner_up,
            f"{edge.margin:+.3f}",
            f"{edge.none:.3f}",
        ]
        for edge in kept_edges(record)
    ]
    heads = ["edge", "kept", "probability", "runner-up", "margin", "none"]
    return Table(f"Kept edges of epoch {record.epoch}, and what they won against.", heads, rows, sortable=True)
