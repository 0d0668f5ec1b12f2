"""The candidates of a search that trains them: a strip of scores, and a table with their cells."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from markupsafe import Markup, escape

from ..genotype import KINDS
from ..numbers import amount
from ..records import CandidateRecord, SearchRecord
from .cells import CELLS, cell_in_words, cell_svg
from .page import Picture, Table, picture
from .plots import draw_candidates

__all__ = ["best_of_last_rung", "candidate_strip", "candidate_table", "finished"]

_MOST = 200
#: how the names of the candidates of a selection begin -> where they come from
_ORIGINS = {"searched": "preferred by the alphas", "proposed": "drawn from the alphas", "blind": "drawn blindly"}


def finished(records: Sequence[SearchRecord]) -> list[CandidateRecord]:
    """With a score, in the order in which they got it."""
    return [r.candidate for r in records if r.candidate is not None and r.candidate.score is not None]


def best_of_last_rung(found: Sequence[CandidateRecord]) -> CandidateRecord:
    """The candidate with the highest score where the last one got its own; ``found`` are finished, at least one."""
    return max((c for c in found if c.rung == found[-1].rung), key=_score)


def candidate_strip(records: Sequence[SearchRecord]) -> Picture | None:
    """Scores in the order of training, with the best so far of each rung; ``None`` before the first one."""
    found = finished(records)
    if not found:
        return None
    best = best_of_last_rung(found)
    text = f"{len(found)} scores; the best of rung {best.rung} is candidate {best.number} with {_score(best):.1%}."
    caption = f"Held-out {best.label} of the candidates as they were trained; the line is the best so far of each rung."
    return picture(caption, draw_candidates([(c.rung, _score(c)) for c in found], best.label), text=text)


def candidate_table(records: Sequence[SearchRecord]) -> Table | None:
    """The candidates with their scores, the last rung and the best first."""
    found = sorted(finished(records), key=lambda c: (-c.rung, -_score(c)))
    if not found:
        return None
    origins = [_ORIGINS[kind] for c in found if (kind := c.genotype.name.partition("_")[0]) in _ORIGINS]
    of_alphas = len(origins) == len(found)  # else they are not of a selection
    caption = "A head sorts by its column." + (
        f" The first {_MOST} of {len(found)} are shown." if len(found) > _MOST else ""
    )
    costs = any(candidate.cost is not None for candidate in found)
    heads = ["candidate", "rung", found[0].label, "from" if of_alphas else "parent"]
    heads += [*(["cost"] if costs else []), *CELLS.values()]
    rows: list[list[Any]] = []
    for place, candidate in enumerate(found[:_MOST]):
        parent = "–" if candidate.parent is None else str(candidate.parent)
        row: list[Any] = [str(candidate.number), str(candidate.rung), f"{_score(candidate):.2%}"]
        row.append(origins[place] if of_alphas else parent)
        if costs:
            row.append("–" if candidate.cost is None else amount(candidate.cost))
        rows.append(row + [_small(candidate, kind) for kind in KINDS])
    return Table(caption, heads, rows, sortable=True)


def _score(candidate: CandidateRecord) -> float:
    return candidate.score or 0.0


def _small(candidate: CandidateRecord, kind: str) -> Markup:
    words = escape(f"{CELLS[kind]}: {cell_in_words(candidate.genotype, kind)}.")
    return Markup(f'<div role=img aria-label="{words}">{cell_svg(candidate.genotype, kind, 260)}</div>')
