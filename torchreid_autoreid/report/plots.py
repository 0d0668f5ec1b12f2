"""Pictures of cells, alphas and the course of a search; figures only, nothing global is touched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from ..genotype import Genotype, cell_edges

__all__ = ["draw_alphas", "draw_cell", "draw_history", "figure_to_rgb"]

#: One colour an operation in every picture; the part-aware one stands out.
OPERATION_COLOURS = {
    "part_aware": "#d1495b",
    "max_pool_3x3": "#8fa9c4",
    "avg_pool_3x3": "#b9cbdd",
    "sep_conv_3x3": "#66a182",
    "dil_conv_3x3": "#a9c97e",
    "none": "#9a9a9a",
    "skip_connect": "#edae49",
}


def draw_cell(genotype: Genotype, kind: str = "normal") -> Figure:
    """Draws a cell as a circuit: inputs at the left, a step down for each block, the joined output at the right.

    Args:
        genotype: whose cell.
        kind: ``normal`` or ``reduce``.
    """
    cell = genotype.reduce if kind == "reduce" else genotype.normal
    blocks = len(cell)
    column, row = 3.3, 1.6  # from block to block
    rows = {0: row * 1.15, 1: row * 0.65} | {block + 2: -block * row for block in range(blocks)}
    bar = blocks * column + 0.2  # where the blocks' outputs are joined
    figure = _figure(3.2 + 1.75 * blocks, 1.6 + 0.85 * blocks)
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.set_xlim(-2.25, bar + 1.6)
    axes.set_ylim(-(blocks - 1) * row - 1.1, row * 1.15 + 0.9)
    axes.axis("off")
    line = {"color": "#777777", "linewidth": 1.2, "solid_capstyle": "round", "zorder": 1}
    starts = {0: -0.55, 1: -0.55} | {block + 2: block * column + 2.35 for block in range(blocks)}
    ends = {source: starts[source] for source in rows}  # how far right the line of a source goes
    for block, edges in enumerate(cell):
        left = block * column + 0.15  # of the operation boxes
        for place, (operation, source) in enumerate(edges):
            y = rows[block + 2] + (0.33 if place == 0 else -0.33)
            lane = left - 0.2 - 0.13 * source  # every source comes down in a lane of its own
            axes.plot([lane, lane, left], [rows[source], y, y], **line)
            axes.plot([lane], [rows[source]], "o", markersize=3.5, color=line["color"], zorder=2)
            ends[source] = max(ends[source], lane)
            axes.plot([left + 1.6, left + 1.95], [y, rows[block + 2]], **line)
            _box(axes, left, y - 0.24, 1.6, 0.48, operation, OPERATION_COLOURS[operation])
        axes.plot([starts[block + 2] - 0.25], [rows[block + 2]], "o", markersize=17, color="#333333", zorder=3)
        axes.text(starts[block + 2] - 0.25, rows[block + 2], f"{block + 2}", color="white", **_CENTRED)
        ends[block + 2] = bar
    for source, y in rows.items():
        axes.plot([starts[source], ends[source]], [y, y], **line)
    for source, name in ((0, "cell before last"), (1, "last cell")):
        _box(axes, -2.05, rows[source] - 0.26, 1.5, 0.52, f"{source}  {name}", "#dddddd", size=7)
    low, high = rows[blocks + 1], rows[2]
    _box(axes, bar, low - 0.35, 0.32, high - low + 0.7, "", "#333333")
    axes.text(bar + 0.16, (low + high) / 2, "concatenated", rotation=90, color="white", **_CENTRED)
    axes.annotate("", (bar + 1.3, (low + high) / 2), (bar + 0.35, (low + high) / 2), arrowprops={"arrowstyle": "->"})
    title = "reduction cell (operations on 0 and 1 have stride 2)" if kind == "reduce" else "normal cell"
    axes.text(bar + 1.5, row * 1.15 + 0.45, title, ha="right", va="center", fontsize=11, fontweight="bold")
    return figure


_CENTRED = {"ha": "center", "va": "center", "fontsize": 8, "zorder": 5}


def _box(axes: Axes, x: float, y: float, width: float, height: float, text: str, colour: str, size: float = 8) -> None:
    patch = FancyBboxPatch(
        (x, y), width, height, boxstyle="round,pad=0,rounding_size=0.1", facecolor=colour, edgecolor="none", zorder=4
    )
    axes.add_patch(patch)
    weight = "bold" if text == "part_aware" else "normal"
    axes.text(x + width / 2, y + height / 2, text, **(_CENTRED | {"fontsize": size}), fontweight=weight)


def draw_alphas(probabilities: Sequence[Sequence[float]], operations: Sequence[str], title: str = "") -> Figure:
    """Draws the (E, O) probabilities of a cell as a heat map, an edge a row."""
    values = np.asarray(probabilities, dtype=float)
    blocks = next(b for b in range(1, len(values) + 1) if b * (b + 3) // 2 == len(values))
    names = [f"{source} → {block + 2}" for _, block, source in cell_edges(blocks)]
    figure = _figure(6.4, 1.6 + 0.28 * len(values))
    axes = figure.add_subplot(1, 1, 1)
    axes.imshow(values, aspect="auto", cmap="Blues", vmin=0.0, vmax=max(float(values.max()), 2.0 / values.shape[1]))
    axes.set_xticks(range(len(operations)), operations, rotation=30, ha="right", fontsize=8)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    for (edge, operation), value in np.ndenumerate(values):
        dark = value > 0.6 * max(float(values.max()), 2.0 / values.shape[1])
        axes.text(operation, edge, f"{value:.2f}", **(_CENTRED | {"fontsize": 7}), color="white" if dark else "black")
    axes.set_title(title, fontsize=10)
    figure.tight_layout()
    return figure


def draw_history(records: Sequence[Mapping[str, Any]]) -> Figure:
    """Draws the course of a search: losses, accuracy, held-out retrieval, rates, ``none`` and skips, operations."""
    epochs = [record["epoch"] for record in records]
    figure = _figure(12.0, 7.2)
    plots = figure.subplots(2, 4).ravel()
    for part, style in (("w", "-"), ("alpha", "--")):
        for panel, names in ((plots[0], ("loss", "loss_softmax", "loss_triplet")), (plots[1], ("top1", "top5", "top10"))):
            for number, name in enumerate(names):
                points = [(r["epoch"], r[part][name]) for r in records if r[part]]
                _plot(panel, points, f"{name} ({part})", linestyle=style, color=f"C{number}")
    for name in ("mAP", "rank1", "mINP"):
        _plot(plots[2], [(r["epoch"], r["retrieval"][name]) for r in records if r["retrieval"]], name)
    for name in ("w", "alpha"):
        _plot(plots[3], [(r["epoch"], r["lr"][name]) for r in records], name)
    plots[3].set_yscale("log")
    for kind, style in (("normal", "-"), ("reduce", "--")):
        _plot(plots[4], [(r["epoch"], r["none_mass"][kind]) for r in records], kind, linestyle=style)
        _plot(plots[5], [(r["epoch"], r["skips"][kind]) for r in records], kind, linestyle=style)
    for panel, kind in ((plots[6], "normal"), (plots[7], "reduce")):
        for number, operation in enumerate(records[0]["operations"]):
            means = [float(np.mean(np.asarray(r["probabilities"][kind])[:, number])) for r in records]
            _plot(panel, list(zip(epochs, means, strict=True)), operation, color=OPERATION_COLOURS.get(operation))
    titles = ("losses", "accuracy", "held-out retrieval", "learning rates", "mass of none", "skips in the genotype")
    for panel, title in zip(plots, (*titles, "operations, normal cell", "operations, reduction cell"), strict=True):
        panel.set_title(title, fontsize=9)
        panel.tick_params(labelsize=7)
        panel.grid(alpha=0.3)
        panel.xaxis.get_major_locator().set_params(integer=True)
        if panel.get_legend_handles_labels()[0]:
            panel.legend(fontsize=6)
    figure.tight_layout()
    return figure


def _plot(panel: Axes, points: Sequence[tuple[float, float]], label: str, **style: Any) -> None:
    if points:
        marker = "o" if len(points) < 30 else ""
        panel.plot(*zip(*points, strict=True), label=label, marker=marker, markersize=2.5, linewidth=1.2, **style)


def figure_to_rgb(figure: Figure) -> np.ndarray:
    """Renders a figure as a (3, H, W) uint8 picture, as TensorBoard takes it."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.ascontiguousarray(np.asarray(canvas.buffer_rgba())[:, :, :3].transpose(2, 0, 1))


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), dpi=100)
    FigureCanvasAgg(figure)
    return figure
