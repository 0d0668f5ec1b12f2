"""What a search had found and how sure it was: curves, cells, probabilities and margins by epoch, for the slider."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from markupsafe import Markup

from ..genotype import KINDS, Genotype, cell_edges
from ..records import SearchRecord
from .cells import CELLS, cell_in_words, cell_svg
from .costs import Costs, edge_costs
from .curves import Curve, curves_of, place_of
from .page import Table
from .verdict import kept_edges

__all__ = ["Steps", "steps_of", "thinned"]

_MOST_STEPS = 100
_MOST_POINTS = 400  # of a curve


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
        places: of the steps on the axis of a curve, from 0 to 1.
        note: what was left out; empty if nothing was.
        curves: linked to the slider.
        cells: drawings, one for each run of steps with the same cell, by kind; none without alphas, as the following.
        probabilities: of each step, by kind.
        edges: table of the kept edges of each step.
    """

    labels: list[str]
    places: list[float]
    note: str
    curves: list[Curve]
    cells: list[list[Shown]] = field(default_factory=list)
    probabilities: list[list[Shown]] = field(default_factory=list)
    edges: list[Shown] = field(default_factory=list)


def steps_of(records: Sequence[SearchRecord], costs: Costs | None = None) -> Steps:
    """The steps of a search."""
    chosen, drawn = thinned(records, _MOST_STEPS), thinned(records, _MOST_POINTS)
    skipped = len(records) - len(chosen)
    steps = Steps(
        [_label(record) for record in chosen],
        [round(place_of(record, records), 4) for record in chosen],
        f"{len(chosen)} of {len(records)} epochs can be chosen, evenly spread." if skipped else "",
        curves_of(drawn, chosen),
    )
    return steps if records[-1].candidate is not None else _with_cells(steps, chosen, costs)


def _with_cells(steps: Steps, chosen: Sequence[SearchRecord], costs: Costs | None) -> Steps:
    top = {kind: max(max(map(max, r.probabilities[kind])) for r in chosen) for kind in KINDS}
    last, of_edges = len(chosen) - 1, edge_costs(costs, chosen[-1])
    return replace(
        steps,
        cells=[_cells(chosen, kind) for kind in KINDS],
        probabilities=[
            [
                Shown(
                    str(step), step != last, CELLS[kind], f"Probabilities, {CELLS[kind].lower()}, epoch {record.epoch}",
                    _heat(record, kind, top[kind]),
                )
                for step, record in enumerate(chosen)
            ]
            for kind in KINDS
        ],
        edges=[Shown(str(step), step != last, "", "", _edges(record, of_edges)) for step, record in enumerate(chosen)],
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


def _edges(record: SearchRecord, costs: Mapping[str, Mapping[str, Sequence[Sequence[str]]]]) -> Table:
    rows = [
        [
            f"{CELLS[edge.kind]}, {edge.source} → {edge.block + 2}",
            edge.operation,
            f"{edge.probability:.3f}",
            edge.runner_up,
            f"{edge.margin:+.3f}",
            f"{edge.none:.3f}",
            *(rows[edge.row][record.operations.index(edge.operation)] for rows in costs[edge.kind].values()),
        ]
        for edge in kept_edges(record)
    ]
    heads = ["edge", "kept", "probability", "runner-up", "margin", "none", *costs[KINDS[0]]]
    caption = f"Kept edges of epoch {record.epoch}, and what they won against."
    if costs[KINDS[0]]:
        caption += " The costs are those of the kept operation in all cells of the kind."
    return Table(caption, heads, rows, sortable=True)
