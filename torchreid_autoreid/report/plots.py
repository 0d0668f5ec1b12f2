"""Pictures of cells, alphas and the course of a search. Figures only: nothing of pyplot's global state is touched."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Circle, FancyBboxPatch, PathPatch, Rectangle
from matplotlib.path import Path
from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullFormatter, PercentFormatter, StrMethodFormatter

from ..errors import UserError, short
from ..genotype import KINDS, Block, Genotype, cell_edges, check_genotype, num_blocks, num_edges
from ..records import SearchRecord, check_records

__all__ = [
    "BOX_HEIGHT",
    "BOX_WIDTH",
    "COST_LABELS",
    "MEASURE_NAMES",
    "OPERATION_COLOURS",
    "RADIUS",
    "draw_alphas",
    "draw_beside",
    "draw_candidates",
    "draw_card",
    "draw_cell",
    "draw_cmc",
    "draw_costs",
    "draw_dots",
    "draw_history",
    "draw_networks",
    "draw_ribbon",
    "figure_to_rgb",
    "figure_to_svg",
    "lay_out",
]

#: One colour an operation, in every picture.
OPERATION_COLOURS = {
    "part_aware": "#d1274b",
    "max_pool_3x3": "#3b6fb6",
    "avg_pool_3x3": "#5fb3d9",
    "sep_conv_3x3": "#1f8060",
    "dil_conv_3x3": "#84ab35",
    "none": "#8a8a8a",
    "skip_connect": "#e08a1e",
}

#: The measures of cost and the figures of each, as in the history.
MEASURE_NAMES = {"params": "parameters", "macs": "multiply–adds", "latency_ms": "latency in ms"}
COST_LABELS = {"expected": "expected", "derived": "derived", "genotype": "kept"}

_INK, _WIRE = "#2b2f36", "#9aa1ab"
_CELL_TITLES = {"normal": "normal cell", "reduce": "reduction cell"}

# A figure keeps what it was made with, so a style that the caller has set does not show, and is not changed.
_LOOK = {
    "font.family": "DejaVu Sans",
    "font.size": 8,
    "text.usetex": False,
    "text.parse_math": False,  # which takes longer than all the rest
    "axes.facecolor": "white",
    "figure.facecolor": "white",
    "savefig.facecolor": "auto",
}

# Of a drawn cell, in inches.
BOX_WIDTH, BOX_HEIGHT = 1.06, 0.27
_LANE = 0.15  # between two wires that go down side by side
_ROW = 0.86  # from block to block
_SPREAD = 0.18  # from the middle of a block to each of its two operations
RADIUS = 0.14  # of a block
_COLUMN = BOX_WIDTH + 0.36 + RADIUS + 0.3 + _LANE


class PlacedEdge(NamedTuple):
    """An edge of a drawn cell: where its wire leaves the source, the left end of its box, the middle of its block."""

    operation: str
    start: tuple[float, float]
    left: tuple[float, float]
    block: tuple[float, float]


class CellLayout(NamedTuple):
    """Where the parts of a drawn cell lie, in inches from the lower left corner.

    Attributes:
        width, height: of the drawing.
        nodes: x of the blocks.
        rows: y of the two inputs and of the blocks.
        reach: how far right the wire of each of them goes.
        bar: x at which the outputs are joined.
        edges: in the order of the genotype.
    """

    width: float
    height: float
    nodes: list[float]
    rows: list[float]
    reach: list[float]
    bar: float
    edges: list[PlacedEdge]


def lay_out(cell: Sequence[Block]) -> CellLayout:
    """Places a cell: inputs at the left, a step down for each block, the joined output at the right."""
    lefts = [1.17 + _COLUMN * block for block in range(len(cell))]  # of the operations
    nodes = [left + BOX_WIDTH + 0.36 for left in lefts]
    bar = nodes[-1] + RADIUS + 0.22
    height = 1.75 + _ROW * (len(cell) - 1)
    rows = [height - 0.55, height - 0.87, *(height - 1.35 - _ROW * block for block in range(len(cell)))]
    reach = [0.62, 0.62, *(bar for _ in cell)]
    edges = []
    for block, pair in enumerate(cell):
        for place, (operation, source) in enumerate(pair):
            lane = lefts[block] - 0.14 - _LANE * place  # the upper operation has the inner one: the two never cross
            reach[source] = max(reach[source], lane)
            y = rows[block + 2] + (_SPREAD if place == 0 else -_SPREAD)
            edges.append(
                PlacedEdge(operation, (lane, rows[source]), (lefts[block], y), (nodes[block], rows[block + 2]))
            )
    return CellLayout(bar + 0.86, height, nodes, rows, reach, bar, edges)


@matplotlib.rc_context(_LOOK)
def draw_cell(genotype: Genotype, kind: str = "normal") -> Figure:
    """Draws a cell as a circuit: inputs at the left, a step down for each block, the joined output at the right.

    A wire has the colour of its operation, and the part-aware operation is the only filled box. Blocks have the numbers
    that the genotype uses: 0 and 1 are the inputs, ``n >= 2`` is block ``n - 2``.

    Args:
        genotype: whose cell.
        kind: ``normal`` or ``reduce``.

    Raises:
        UserError: if ``kind`` is another word.

    >>> figure_to_rgb(draw_cell(Genotype.load("retrieval"), "reduce")).dtype
    dtype('uint8')
    """
    if not isinstance(kind, str) or kind not in _CELL_TITLES:
        raise UserError(f"unknown kind of cell {short(kind)}; choose one of {', '.join(_CELL_TITLES)}")
    layout = lay_out(getattr(check_genotype(genotype), kind))
    nodes, rows, reach, bar, height = layout.nodes, layout.rows, layout.reach, layout.bar, layout.height
    figure, axes = _canvas(layout.width, height)
    for edge in layout.edges:
        _edge(axes, edge.operation, edge.start, edge.left, edge.block)
    for source, start in enumerate([0.52, 0.52, *nodes]):
        axes.plot([start, reach[source]], [rows[source]] * 2, color=_WIRE, linewidth=1.4, zorder=1)
    for source, name in enumerate(("cₖ₋₂", "cₖ₋₁")):
        _box(axes, (0.08, rows[source]), 0.5, name, face="#eef0f3", edge=_WIRE, size=9)
        axes.text(0.64, rows[source] + 0.08, str(source), fontsize=7, color=_WIRE, ha="left", va="center")
    for block, x in enumerate(nodes):
        axes.add_patch(Circle((x, rows[block + 2]), RADIUS, color=_INK, zorder=4))
        axes.text(x, rows[block + 2], str(block + 2), color="white", **_CENTRED)

    low, high = rows[-1] - 0.3, rows[2] + 0.3
    axes.add_patch(FancyBboxPatch((bar, low), 0.18, high - low, boxstyle=_ROUND, color=_INK, zorder=4))
    axes.text(bar + 0.09, (low + high) / 2, "concat", color="white", rotation=90, **_CENTRED)
    arrow = {"arrowstyle": "-|>", "color": _INK, "shrinkA": 0, "shrinkB": 0}
    axes.annotate("", (bar + 0.52, (low + high) / 2), (bar + 0.24, (low + high) / 2), arrowprops=arrow)
    axes.text(bar + 0.68, (low + high) / 2, "cₖ", color=_INK, **(_CENTRED | {"fontsize": 10}))
    axes.text(0.08, height - 0.2, _CELL_TITLES[kind], fontsize=10, fontweight="bold", color=_INK, va="center")
    if kind == "reduce":
        note = "stride 2 on the inputs 0 and 1"
        axes.text(1.42, height - 0.2, note, fontsize=8, color="#666c75", va="center")
    return figure


_CENTRED: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 8, "zorder": 6}
_ROUND = "round,pad=0,rounding_size=0.05"


@matplotlib.rc_context(_LOOK)
def draw_card(genotype: Genotype, kind: str) -> Figure:
    """Draws a cell as a table that is read at the size of a card: a block a row, its operations with their inputs.

    Numbers are those of :func:`draw_cell`.

    >>> figure_to_rgb(draw_card(Genotype.load("retrieval"), "normal")).shape
    (3, 190, 400)
    """
    cell: tuple[Block, ...] = getattr(genotype, kind)
    figure, axes = _canvas(4.0, 0.38 + 0.38 * len(cell))
    top = 0.38 * len(cell)
    axes.text(0.08, top + 0.19, _CELL_TITLES[kind], fontsize=11, fontweight="bold", color=_INK, va="center")
    for row, block in enumerate(cell):
        y = top - 0.38 * (row + 0.5)
        axes.text(0.19, y, str(row + 2), **(_CENTRED | {"fontsize": 11}), fontweight="bold", color=_INK)
        for column, (operation, source) in enumerate(block):
            left, colour = 0.36 + 1.81 * column, OPERATION_COLOURS[operation]
            axes.add_patch(Rectangle((left, y - 0.16), 1.75, 0.32, facecolor=_tint(colour), edgecolor=colour))
            axes.text(left + 0.08, y, f"{source}: {operation}", fontsize=11, color=_INK, va="center")
    return figure


def _edge(
    axes: Axes, operation: str, start: tuple[float, float], left: tuple[float, float], block: tuple[float, float]
) -> None:
    """From a source down to the operation, and on to its block."""
    (lane, top), (x, y), bend = start, left, 0.09
    down = [(lane, top), (lane, y + bend), (lane, y), (lane + bend, y), (x, y)]
    codes = [Path.MOVETO, Path.LINETO, Path.CURVE3, Path.CURVE3, Path.LINETO]
    right = x + BOX_WIDTH
    middle = (right + block[0]) / 2
    join = [(right, y), (middle, y), (middle, block[1]), block]
    colour, bold = OPERATION_COLOURS.get(operation, "#4b5563"), operation == "part_aware"
    wire = {
        "edgecolor": colour,
        "facecolor": "none",
        "linewidth": 2.6 if bold else 1.7,
        "capstyle": "round",
        "zorder": 2,
    }
    axes.add_patch(PathPatch(Path(down, codes), **wire))
    axes.add_patch(PathPatch(Path(join, [Path.MOVETO] + [Path.CURVE4] * 3), **wire))
    axes.add_patch(Circle(start, 0.035, color=colour, zorder=3))
    _box(axes, left, BOX_WIDTH, operation, face=colour if bold else _tint(colour), edge=colour, bold=bold)


def _box(
    axes: Axes,
    left: tuple[float, float],
    width: float,
    text: str,
    *,
    face: Any,
    edge: str,
    bold: bool = False,
    size: float = 8,
) -> None:
    x, y = left
    corner = (x, y - BOX_HEIGHT / 2)
    axes.add_patch(FancyBboxPatch(corner, width, BOX_HEIGHT, boxstyle=_ROUND, facecolor=face, edgecolor=edge, zorder=5))
    style = {"color": "white", "fontweight": "bold"} if bold else {"color": _INK}
    axes.text(x + width / 2, y - 0.005, text, **(_CENTRED | {"fontsize": size}), **style)


def _tint(colour: str) -> tuple[float, ...]:
    return tuple(1 - 0.2 * (1 - part) for part in to_rgb(colour))


@matplotlib.rc_context(_LOOK)
def draw_alphas(
    probabilities: Sequence[Sequence[float]],
    operations: Sequence[str],
    title: str = "",
    *,
    cell: Sequence[Block] = (),
    top: float | None = None,
) -> Figure:
    """Draws the probabilities of a cell as a heat map, an edge a row.

    Args:
        probabilities: (E, O), edges in the order of :func:`~torchreid_autoreid.genotype.cell_edges`.
        operations: the O names of the columns.
        title: shown above, as it is.
        cell: the blocks derived from them, if any; their edges are framed.
        top: the probability that has the darkest colour, to compare pictures; the largest by default.

    Raises:
        UserError: if the shape fits no cell.

    >>> draw_alphas([[0.2, 0.8], [0.6, 0.4]], ["none", "skip_connect"]).axes[0].get_yticklabels()[1].get_text()
    '1 → 2'
    """
    try:
        values = np.asarray(probabilities, dtype=float)
    except (TypeError, ValueError):
        raise UserError(f"probabilities must be (E, O) numbers, not {short(probabilities)}") from None
    if not isinstance(operations, Sequence):
        raise UserError(f"operations must be a list of names, not {short(operations)}")
    blocks = num_blocks(len(values)) if values.ndim else None
    if blocks is None or values.ndim != 2 or values.shape[1] != len(operations):
        raise UserError(f"probabilities of shape {values.shape} fit no cell with {len(operations)} operations")
    if top is None:
        top = max(float(values.max()), 2 / len(operations))  # two equal operations are not the darkest
    figure = _figure(1.3 + 0.62 * len(operations), 1.35 + 0.25 * len(values))
    axes = figure.add_subplot()
    axes.imshow(values, aspect="auto", cmap="Blues", vmin=0, vmax=top)
    for (edge, operation), value in np.ndenumerate(values):
        axes.text(operation, edge, f"{value:.2f}", **_CENTRED, color="white" if value > 0.6 * top else _INK)
    edges = {(block, source): edge for edge, block, source in cell_edges(blocks)}
    for block, (first, second) in enumerate(cell):
        for operation, source in (first, second):
            corner = (operations.index(operation) - 0.5, edges[block, source] - 0.5)
            frame = {"edgecolor": OPERATION_COLOURS["skip_connect"], "linewidth": 2, "fill": False, "zorder": 7}
            axes.add_patch(Rectangle(corner, 1, 1, clip_on=False, **frame))
    axes.set_xticks(range(len(operations)), operations, rotation=30, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(values)), [f"{source} → {block + 2}" for block, source in edges])
    axes.tick_params(length=0)
    for _, block, source in cell_edges(blocks):
        if block and source == 0:
            axes.axhline(num_edges(block) - 0.5, color="white", linewidth=2.5)
    axes.spines[:].set_visible(False)
    axes.set_title(title, fontsize=10, parse_math=False, color=_INK)
    figure.tight_layout()
    return figure


@matplotlib.rc_context(_LOOK)
def draw_history(records: Sequence[SearchRecord], columns: int = 4) -> Figure:
    """Draws the course of a search by epoch, in eight panels.

    Losses, accuracies, retrieval in the held-out half, learning rates, mass of ``none``, skips, and the mean
    probability of each operation in both cells.

    Args:
        records: of all epochs so far, at least one.
        columns: panels side by side.

    Raises:
        UserError: if there are no records, or ``columns`` is no number of panels.
    """
    check_records(records)
    if isinstance(columns, bool) or not isinstance(columns, int) or not 1 <= columns <= 8:
        raise UserError(f"columns must be a whole number from 1 to 8, not {short(columns)}")
    lines = -(-8 // columns)
    figure = _figure(3.3 * columns if columns > 1 else 4.4, 2.55 * lines)
    panels = iter(figure.subplots(lines, columns, squeeze=False).ravel())
    _draw_halves(next(panels), "losses", records, ("loss", "loss_softmax", "loss_triplet"))
    accuracy = next(panels)
    _draw_halves(accuracy, "accuracy", records, ("top1", "top5", "top10"))
    retrieval = next(panels)
    measured = [(record.epoch, record.retrieval) for record in records if record.retrieval]
    for name in ("mAP", "rank1", "rank5", "mINP"):
        _plot(retrieval, [(epoch, figures[name]) for epoch, figures in measured], label=name)
    _dress(retrieval, "retrieval in the held-out half" if measured else "retrieval: not measured yet")
    for panel in (accuracy, retrieval):
        panel.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        panel.set_ylim(0, 1.02)
    rates = next(panels)
    for name, label in (("w", "w"), ("alpha", "α")):
        _plot(rates, [(r.epoch, r.lr[name]) for r in records], label=label)
    if all(rate > 0 for r in records for rate in r.lr.values()):
        rates.set_yscale("log")
        rates.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        rates.yaxis.set_minor_formatter(NullFormatter())
    _dress(rates, "learning rates")
    for key, title in (("none_mass", "mean probability of none"), ("skips", "skip connections in the genotype")):
        panel = next(panels)
        for kind, style in (("normal", "-"), ("reduce", "--")):
            _plot(panel, [(r.epoch, getattr(r, key)[kind]) for r in records], label=_CELL_TITLES[kind], linestyle=style)
        panel.set_ylim(bottom=0)
        _dress(panel, title)
    panel.yaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    for kind, title in _CELL_TITLES.items():
        panel = next(panels)
        _draw_operations(panel, records, kind)
        _dress(panel, f"operations, {title}", ncols=2, loc="upper center")
    for panel in panels:
        panel.axis("off")
    figure.tight_layout(h_pad=1.6)
    return figure


@matplotlib.rc_context(_LOOK)
def draw_costs(records: Sequence[SearchRecord]) -> Figure:
    """Draws the cost of the network by epoch against its limit, a panel a measure.

    Args:
        records: of all epochs so far of a search with limits, at least one.

    Raises:
        UserError: if there are no records, or the search had no limits.
    """
    check_records(records)
    if not records[0].limits():
        raise UserError("the search had no limits, so there are no costs to draw; draw_history draws its course")
    limits = records[0].limits()
    figure = _figure(4.4 * len(limits), 2.9)
    panels = figure.subplots(1, len(limits), squeeze=False).ravel()
    for panel, (measure, limit) in zip(panels, limits.items(), strict=True):
        for name, style in (("expected", ":"), ("derived", "-"), ("genotype", "-")):
            values = [(r.epoch, (r.cost or {})[measure][name]) for r in records]
            points = [(epoch, value) for epoch, value in values if value is not None]
            _plot(panel, points, label=COST_LABELS[name], linestyle=style)
        panel.axhline(limit, color=_INK, linestyle="--", linewidth=1, label="limit")
        panel.yaxis.set_major_formatter(EngFormatter())
        _dress(panel, MEASURE_NAMES[measure])
    figure.tight_layout()
    return figure


#: by Okabe and Ito, told apart by everybody; a marker a run besides
_RUN_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#2b2f36")
_RUN_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")


def _run_style(letter: str) -> dict[str, Any]:
    number = ord(letter) - ord("A")
    return {"color": _RUN_COLOURS[number % len(_RUN_COLOURS)], "marker": _RUN_MARKERS[number % len(_RUN_MARKERS)]}


@matplotlib.rc_context(_LOOK)
def draw_beside(
    panels: Sequence[tuple[str, Mapping[str, Sequence[tuple[float, float]]], float | None]], columns: int = 3
) -> Figure:
    """Draws the curves of several runs over each other.

    Args:
        panels: title, letter of a run -> its (epoch, value), and where the axis begins (``None``: where they do).
        columns: panels side by side.
    """
    shown = [panel for panel in panels if panel[1]]
    lines = -(-len(shown) // columns)
    figure = _figure(3.9 * min(columns, len(shown)) if columns > 1 else 4.4, 2.9 * lines)
    axes = iter(figure.subplots(lines, min(columns, len(shown)), squeeze=False).ravel())
    for title, curves, bottom in shown:
        panel = next(axes)
        for letter, points in curves.items():
            _plot(panel, points, label=letter, markevery=max(1, len(points) // 8), markersize=4, **_run_style(letter))
        if bottom is not None:
            panel.set_ylim(bottom=bottom)
            panel.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        _dress(panel, title, ncols=-(-len(curves) // 8))
    for panel in axes:
        panel.axis("off")
    figure.tight_layout(h_pad=1.6)
    return figure


@matplotlib.rc_context(_LOOK)
def draw_dots(rows: Sequence[tuple[str, Sequence[tuple[str, float]]]]) -> Figure:
    """Draws the scores of runs as dots, a line a group, with the mean of each group.

    Args:
        rows: name of a group, and the letter and score (a fraction) of each of its runs; the first one is on top.
    """
    figure = _figure(6.6, 0.75 + 0.42 * len(rows))
    axes = figure.add_subplot()
    for place, (_, runs) in enumerate(rows):
        mean = float(np.mean([score for _, score in runs]))
        axes.plot([mean, mean], [place - 0.3, place + 0.3], color=_INK, linewidth=2, zorder=3)
        axes.text(mean, place - 0.42, f"{mean:.1%}", **(_CENTRED | {"fontsize": 7}))
        for letter, score in runs:
            axes.plot([score], [place], markersize=7, linestyle="", zorder=4, **_run_style(letter))
    axes.set_yticks(range(len(rows)), [name for name, _ in rows])
    axes.set_ylim(len(rows) - 0.4, -0.75)
    axes.margins(x=0.08)
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=1))
    axes.grid(axis="x", alpha=0.25)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(labelsize=8, length=2)
    figure.tight_layout()
    return figure


@matplotlib.rc_context(_LOOK)
def draw_ribbon(records: Sequence[SearchRecord]) -> Figure:
    """Draws which operation the genotype keeps on each edge by epoch: a row an edge, white where it keeps none.

    Args:
        records: of all epochs so far, at least one.
    """
    figure = _figure(9, 5.4)
    panels = figure.subplots(len(KINDS), 1, sharex=True)
    epochs = [record.epoch for record in records]
    for panel, kind in zip(panels, KINDS, strict=True):
        edges = {(block, source): edge for edge, block, source in cell_edges(records[0].genotype.blocks)}
        colours, kept = np.ones((len(edges), len(records), 3)), np.full((len(edges), len(records)), "", dtype=object)
        for column, record in enumerate(records):
            for block, pair in enumerate(getattr(record.genotype, kind)):
                for operation, source in pair:
                    colours[edges[block, source], column] = to_rgb(OPERATION_COLOURS.get(operation, "#4b5563"))
                    kept[edges[block, source], column] = operation
        reach = (epochs[0] - 0.5, epochs[-1] + 0.5, len(edges) - 0.5, -0.5)
        panel.imshow(colours, aspect="auto", interpolation="nearest", extent=reach)
        _name_runs(panel, kept.tolist(), epochs)
        panel.set_yticks(range(len(edges)), [f"{source} → {block + 2}" for block, source in edges])
        _dress(panel, _CELL_TITLES[kind])
        panel.grid(visible=False)
    panels[-1].set_xlabel("epoch")
    offered = [name for name in records[0].operations if name != "none"]
    handles = [Rectangle((0, 0), 1, 1, color=OPERATION_COLOURS[name], label=name) for name in offered]
    figure.legend(handles=handles, ncols=len(offered), loc="lower center", fontsize=7, edgecolor="none")
    figure.tight_layout(rect=(0, 0.05, 1, 1))
    return figure


def _name_runs(panel: Axes, kept: Sequence[Sequence[str]], epochs: Sequence[int]) -> None:
    """Writes the operation into each run of epochs that has room for it: colours alone do not tell them apart."""
    for row, names in enumerate(kept):
        ends = [column for column in range(1, len(names)) if names[column] != names[column - 1]]
        for start, end in zip([0, *ends], [*ends, len(names)], strict=True):
            if names[start] and end - start >= 0.11 * len(names):
                middle = (epochs[start] + epochs[end - 1]) / 2
                red, green, blue = to_rgb(OPERATION_COLOURS.get(names[start], "#4b5563"))
                ink = "white" if 0.3 * red + 0.59 * green + 0.11 * blue < 0.5 else _INK
                panel.text(middle, row, names[start].removesuffix("_3x3"), **(_CENTRED | {"fontsize": 6, "color": ink}))


@matplotlib.rc_context(_LOOK)
def draw_candidates(scores: Sequence[tuple[int, float]], label: str) -> Figure:
    """Draws the scores of candidates in the order of their training, and the best so far of each rung.

    Args:
        scores: rung and score (a fraction) of each, at least one.
        label: what the scores are.
    """
    figure = _figure(8, 2.6)
    axes = figure.add_subplot()
    rungs = sorted({rung for rung, _ in scores})
    for number, rung in enumerate(rungs):
        style = _run_style(chr(ord("A") + number % 26))
        points = [(place, score) for place, (own, score) in enumerate(scores, start=1) if own == rung]
        axes.plot(*zip(*points, strict=True), linestyle="", markersize=5, label=f"rung {rung}", **style)
        best = np.maximum.accumulate([score for _, score in points])
        axes.step([place for place, _ in points], best, where="post", color=style["color"], linewidth=1.2)
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    _dress(axes, f"held-out {label} of the candidates")
    figure.tight_layout()
    return figure


@matplotlib.rc_context(_LOOK)
def draw_cmc(curves: Mapping[str, Sequence[float]], narrow: bool = False) -> Figure:
    """Draws CMC curves: name -> share of the queries with a true match within 1, 2, … answers."""
    figure = _figure(4.2 if narrow else 6.6, 3)
    axes = figure.add_subplot()
    for letter, (name, curve) in zip("AB", curves.items(), strict=False):
        _plot(axes, list(enumerate(curve, start=1)), label=name, **_run_style(letter))
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.set_xlabel("rank")
    _dress(axes, "CMC")
    figure.tight_layout()
    return figure


class _Costs(Protocol):
    name: str
    params: int
    macs: int
    own: bool
    mAP: float | None


@matplotlib.rc_context(_LOOK)
def draw_networks(networks: Sequence[_Costs], narrow: bool = False) -> Figure:
    """Draws what networks cost, a line each, and the mAP of those that have one; one's own are filled.

    Args:
        networks: the first one is on top.
        narrow: panels below one another, each with the names over its lines.
    """
    measures = ["params", "macs", *(["mAP"] if any(one.mAP is not None for one in networks) else [])]
    height = 0.7 + (0.42 if narrow else 0.27) * len(networks)
    figure = _figure(4.2, height * len(measures)) if narrow else _figure(9, height)
    panels = figure.subplots(
        *((len(measures), 1) if narrow else (1, len(measures))), sharey=True, squeeze=False
    ).ravel()
    for panel, measure in zip(panels, measures, strict=True):
        for place, network in enumerate(networks):
            value = getattr(network, measure)
            if value is None:
                continue
            colour = _RUN_COLOURS[1] if network.own else _RUN_COLOURS[0]
            panel.plot(
                [value], [place], marker="D" if network.own else "o", color=colour,
                markerfacecolor=colour if network.own else "white", zorder=3,
            )  # fmt: skip
            if narrow:
                panel.text(
                    0.01, place - 0.32, network.name, transform=panel.get_yaxis_transform(), fontsize=7, va="center"
                )
        if measure == "mAP":
            panel.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        else:
            panel.set_xscale("log")
            panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            panel.xaxis.set_major_formatter(EngFormatter(sep=" "))
            panel.xaxis.set_minor_formatter(NullFormatter())
        panel.margins(x=0.1)
        panel.set_ylim(len(networks) - 0.4, -0.8)
        panel.set_yticks(range(len(networks)), [] if narrow else [network.name for network in networks])
        panel.set_title(MEASURE_NAMES.get(measure, measure), fontsize=9, fontweight="bold", color=_INK)
        panel.tick_params(labelsize=7, length=2)
        panel.grid(axis="both", alpha=0.25)
        panel.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    return figure


def _draw_halves(panel: Axes, title: str, records: Sequence[SearchRecord], names: Sequence[str]) -> None:
    """A colour a name; the half that trains w is solid, the one that trains alpha dashed."""
    for number, name in enumerate(names):
        for half, style in (("w", "-"), ("alpha", "--")):
            points = [(r.epoch, figures[name]) for r in records if (figures := getattr(r, half))]
            _plot(panel, points, linestyle=style, color=f"C{number}")
    legend = [Line2D([], [], color=f"C{number}", label=name) for number, name in enumerate(names)]
    legend += [
        Line2D([], [], color=_INK, linestyle=style, label=half) for half, style in (("w half", "-"), ("α half", "--"))
    ]
    _dress(panel, title, handles=legend)


def _draw_operations(panel: Axes, records: Sequence[SearchRecord], kind: str) -> None:
    means = np.array([np.mean(r.probabilities[kind], axis=0) for r in records])  # (epochs, O)
    epochs = [r.epoch for r in records]
    for operation, column in zip(records[0].operations, means.T, strict=True):
        width = 2.4 if operation == "part_aware" else 1.3
        points = list(zip(epochs, column, strict=True))
        _plot(panel, points, label=operation, color=OPERATION_COLOURS.get(operation), linewidth=width)
    panel.set_ylim(0, 1.5 * float(means.max()))  # with room for the legend


def _plot(panel: Axes, points: Sequence[tuple[float, float]], **style: Any) -> None:
    if points:
        marker = "o" if len(points) < 30 else ""
        panel.plot(*zip(*points, strict=True), **({"marker": marker, "markersize": 2.5, "linewidth": 1.4} | style))


def _dress(panel: Axes, title: str, **legend: Any) -> None:
    panel.set_title(title, fontsize=9, fontweight="bold", color=_INK)
    panel.tick_params(labelsize=7, length=2)
    panel.grid(alpha=0.25)
    panel.spines[["top", "right"]].set_visible(False)
    panel.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    if panel.lines:
        panel.legend(fontsize=6.5, framealpha=0.7, edgecolor="none", **legend)


def figure_to_svg(figure: Figure) -> str:
    """A figure as an SVG element, for a page or a notebook."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", bbox_inches="tight")
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def figure_to_rgb(figure: Figure) -> np.ndarray:
    """Renders a figure as a (3, H, W) uint8 picture, as TensorBoard's ``add_image`` takes it."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.ascontiguousarray(np.asarray(canvas.buffer_rgba())[:, :, :3].transpose(2, 0, 1))


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), dpi=100)
    FigureCanvasAgg(figure)
    return figure


def _canvas(width: float, height: float) -> tuple[Figure, Axes]:
    """A figure whose only axes have inches as units and the origin in the lower left corner."""
    figure = _figure(width, height)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim(0, width)
    axes.set_ylim(0, height)
    axes.axis("off")
    return figure, axes
