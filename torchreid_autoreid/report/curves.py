"""Curves by epoch that a page links: small, with letters that are text, and a mark for the epoch that is chosen."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from ..genotype import KINDS
from ..records import SearchRecord

__all__ = ["Curve", "curves_of", "place_of"]

_WIDTH, _HEIGHT, _LEFT, _TOP, _RIGHT, _BOTTOM = 420, 210, 64, 26, 12, 22
#: colour by Okabe and Ito, and dashes: told apart in grey as well
_STYLES = (("#0072b2", ""), ("#c2510c", ' stroke-dasharray="7 3"'))
_INK = "#2b2f36"

Line = tuple[str, Callable[[SearchRecord], float | None]]


@dataclass(frozen=True)
class Curve:
    """A drawing with the values of each step of the slider.

    Attributes:
        name: of what it shows.
        text: what it shows, in words.
        svg: with a line of the class ``mark`` at the last epoch.
        values: of each step, for people.
    """

    name: str
    text: str
    svg: Markup
    values: list[str]


def place_of(record: SearchRecord, records: Sequence[SearchRecord]) -> float:
    """Where an epoch lies on the axis, from 0 to 1."""
    first, last = records[0].epoch, records[-1].epoch
    return (record.epoch - first) / (last - first) if last > first else 0.5


def curves_of(records: Sequence[SearchRecord], chosen: Sequence[SearchRecord]) -> list[Curve]:
    """Four curves of a search.

    Args:
        records: to draw.
        chosen: the steps of the slider, whose values are told.
    """
    return [_curve(name, lines, share, records, chosen) for name, lines, share in _panels(records)]


def _panels(records: Sequence[SearchRecord]) -> Iterator[tuple[str, list[Line], bool]]:
    """Name, lines, and whether they are shares, shown in per cent."""
    alphas = records[-1].candidate is None
    losses: list[Line] = [("w", lambda r: r.w["loss"])]
    if alphas:
        losses.append(("α", lambda r: r.alpha["loss"] if r.alpha else None))
    yield "loss of the weights and of the alphas" if alphas else "loss", losses, False
    yield (
        "held-out retrieval",
        [(label, _retrieved(name)) for label, name in (("mAP", "mAP"), ("rank-1", "rank1"))],
        True,
    )
    if alphas:
        yield (
            "indecision of the alphas (entropy, 1: undecided)",
            [
                (kind_name, _entropy(kind))
                for kind, kind_name in zip(KINDS, ("normal cell", "reduction cell"), strict=True)
            ],
            False,
        )
        yield (
            "mean probability of none",
            [
                (kind_name, _none(kind))
                for kind, kind_name in zip(KINDS, ("normal cell", "reduction cell"), strict=True)
            ],
            False,
        )
    else:
        yield "top-1 of the batches", [("top-1", lambda r: r.w["top1"])], True
        yield "learning rate at the end of the epoch", [("rate", lambda r: r.lr["w"])], False


def _retrieved(name: str) -> Callable[[SearchRecord], float | None]:
    return lambda record: record.retrieval[name] if record.retrieval else None


def _none(kind: str) -> Callable[[SearchRecord], float | None]:
    return lambda record: record.none_mass[kind]


def _entropy(kind: str) -> Callable[[SearchRecord], float | None]:
    """Of the operations over all edges, as a share of the largest."""

    def of(record: SearchRecord) -> float:
        rows = record.probabilities[kind]
        total = sum(-value * math.log(value) for row in rows for value in row if value > 0)
        return total / len(rows) / math.log(max(2, len(rows[0])))

    return of


def _curve(
    name: str, lines: Sequence[Line], share: bool, records: Sequence[SearchRecord], chosen: Sequence[SearchRecord]
) -> Curve:
    def shown(value: float | None) -> str:
        return "–" if value is None else f"{value:.1%}" if share else f"{value:.3g}"

    points = {
        label: [(place_of(r, records), value) for r in records if (value := figure(r)) is not None]
        for label, figure in lines
    }
    values = [value for line in points.values() for _, value in line]
    low, high = _range(values)
    told = [f"{label} from {shown(line[0][1])} to {shown(line[-1][1])}" for label, line in points.items() if line]
    parts = list(_axes(records, low, high, shown))
    for (label, line), (colour, dashes), at in zip(points.items(), _STYLES, (_LEFT, _LEFT + 150), strict=False):
        places = " ".join(f"{_x(place)},{_y((value - low) / (high - low))}" for place, value in line)
        parts.append(f'<polyline points="{places}" fill="none" stroke="{colour}" stroke-width="2"{dashes}/>')
        if len(line) < 30:
            parts += [
                f'<circle cx="{_x(place)}" cy="{_y((value - low) / (high - low))}" r="3" fill="{colour}"/>'
                for place, value in line
            ]
        parts.append(
            f'<path d="M{at} 12h22" stroke="{colour}" stroke-width="2"{dashes}/>'
            f'<text x="{at + 28}" y="16">{escape(label)}</text>'
        )
    end = _x(place_of(records[-1], records))
    parts.append(f'<line class=mark x1="{end}" x2="{end}" y1="{_TOP - 4}" y2="{_HEIGHT - _BOTTOM}" stroke="{_INK}"/>')
    svg = Markup(f'<svg class=curve-lines viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}">{"".join(parts)}</svg>')
    return Curve(
        name,
        f"{name} by epoch: {'; '.join(told) or 'nothing was measured'}",
        svg,
        [", ".join(f"{label} {shown(figure(record))}" for label, figure in lines) for record in chosen],
    )


def _range(values: Sequence[float]) -> tuple[float, float]:
    """Of the axis: from 0 where that wastes less than half of it."""
    if not values:
        return 0.0, 1.0
    low, high = min(values), max(values)
    if 0 <= low < high / 2:
        low = 0.0
    return (low, high) if high > low else (low - 0.5, low + 0.5)


def _axes(records: Sequence[SearchRecord], low: float, high: float, shown: Callable[[float], str]) -> Iterator[str]:
    for share in (0.0, 0.5, 1.0):
        y = _y(share)
        yield f'<path d="M{_LEFT} {y}H{_WIDTH - _RIGHT}" stroke="#d5d8dd"/>'
        yield f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" class=end>{shown(low + share * (high - low))}</text>'
    for record in {r.epoch: r for r in (records[0], records[len(records) // 2], records[-1])}.values():
        yield f'<text x="{_x(place_of(record, records))}" y="{_HEIGHT - 6}" class=middle>{record.epoch}</text>'


def _x(place: float) -> float:
    return round(_LEFT + place * (_WIDTH - _LEFT - _RIGHT), 1)


def _y(share: float) -> float:
    return round(_TOP + (1 - share) * (_HEIGHT - _TOP - _BOTTOM), 1)
