"""Cells as SVG: the circuit of :func:`~.plots.draw_cell`, small and quick enough to be drawn for every epoch."""

from __future__ import annotations

from markupsafe import Markup, escape

from ..genotype import Genotype
from .plots import BOX_HEIGHT, BOX_WIDTH, OPERATION_COLOURS, RADIUS, lay_out

__all__ = ["CELLS", "cell_in_words", "cell_svg"]

CELLS = {"normal": "Normal cell", "reduce": "Reduction cell"}
_INK, _WIRE = "#2b2f36", "#9aa1ab"
_INCH = 96  # pixels


def cell_in_words(genotype: Genotype, kind: str) -> str:
    """What a drawing of the cell shows.

    >>> cell_in_words(Genotype.load("retrieval"), "normal")[:60]
    'block 2 adds sep_conv_3x3 of 0 and skip_connect of 1; block '
    """
    return "; ".join(
        f"block {number} adds " + " and ".join(f"{operation} of {source}" for operation, source in edges)
        for number, edges in enumerate(getattr(genotype, kind), start=2)
    )


def cell_svg(genotype: Genotype, kind: str, width: int | None = None) -> Markup:
    """The cell as an SVG element, at most ``width`` pixels wide if that is given."""
    layout = lay_out(getattr(genotype, kind))

    def x(inches: float) -> str:
        return f"{inches * _INCH:.0f}"

    def y(inches: float) -> str:
        return f"{(layout.height - inches) * _INCH:.0f}"

    parts = []
    for source, start in enumerate([0.52, 0.52, *layout.nodes]):
        parts.append(f'<path d="M{x(start)} {y(layout.rows[source])}H{x(layout.reach[source])}" stroke="{_WIRE}"/>')
    for operation, (lane, top), (left, middle), (node, row) in layout.edges:
        colour, bold = OPERATION_COLOURS.get(operation, "#4b5563"), operation == "part_aware"
        right, between = left + BOX_WIDTH, (left + BOX_WIDTH + node) / 2
        parts.append(
            f'<path d="M{x(lane)} {y(top)}V{y(middle)}H{x(left)}M{x(right)} {y(middle)}C{x(between)} {y(middle)} '
            f'{x(between)} {y(row)} {x(node)} {y(row)}" stroke="{colour}" stroke-width="{3.5 if bold else 2}"/>'
            f'<circle cx="{x(lane)}" cy="{y(top)}" r="3" fill="{colour}"/>'
            f'<rect x="{x(left)}" y="{y(middle + BOX_HEIGHT / 2)}" width="{x(BOX_WIDTH)}" height="{x(BOX_HEIGHT)}" '
            f'rx="5" fill="{colour if bold else "#fff"}" stroke="{colour}"/>'
            f'<text x="{x(left + BOX_WIDTH / 2)}" y="{y(middle - 0.04)}"{" class=bold" if bold else ""}>'
            f"{escape(operation)}</text>"
        )
    for source, name in enumerate(("c(k−2)", "c(k−1)")):
        parts.append(
            f'<rect x="8" y="{y(layout.rows[source] + 0.13)}" width="48" height="25" rx="5" fill="#eef0f3" '
            f'stroke="{_WIRE}"/><text x="32" y="{y(layout.rows[source] - 0.04)}">{name}</text>'
            f'<text x="66" y="{y(layout.rows[source] + 0.05)}">{source}</text>'
        )
    for number, node in enumerate(layout.nodes, start=2):
        row = layout.rows[number]
        parts.append(f'<circle cx="{x(node)}" cy="{y(row)}" r="{x(RADIUS)}" fill="{_INK}"/>')
        parts.append(f'<text x="{x(node)}" y="{y(row - 0.04)}" class=bold>{number}</text>')
    low, high = layout.rows[-1] - 0.3, layout.rows[2] + 0.3
    parts.append(
        f'<rect x="{x(layout.bar)}" y="{y(high)}" width="17" height="{x(high - low)}" rx="5" fill="{_INK}"/>'
        f'<text x="{x(layout.bar + 0.26)}" y="{y((low + high) / 2 - 0.04)}" class=left>c(k)</text>'
        f'<text x="8" y="{y(layout.height - 0.22)}" class=left>{CELLS[kind]}'
        f"{', stride 2 on the inputs 0 and 1' if kind == 'reduce' else ''}</text>"
    )
    size = width or int(layout.width * _INCH)
    box = f'viewBox="0 0 {x(layout.width)} {y(0)}" width="{size}"'
    return Markup(f"<svg class=cell {box}>{''.join(parts)}</svg>")
