"""What the log of a search supports, in sentences: whether it has decided, how clearly, and how far to trust it."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from ..genotype import KINDS, Genotype, cell_edges
from ..records import SearchRecord, check_records
from ..search.halving import blind_draws

__all__ = ["Edge", "Sentence", "kept_edges", "verdict", "wilson"]

_CLOSE = 0.01  # of a probability: a margin that another seed may turn round
_LAST = 0.2  # share of the epochs in which a search that has converged changes little
_COLLAPSED = 5 / 8  # share of a normal cell's edges that are skip connections
_NAMES = {"normal": "normal cell", "reduce": "reduction cell"}


class Sentence(NamedTuple):
    """One finding.

    Attributes:
        speaks_for: whether it speaks for the answer (True), against it (False), or for neither (None).
        text: for people.
    """

    speaks_for: bool | None
    text: str


class Edge(NamedTuple):
    """An edge that the genotype keeps.

    Attributes:
        kind: of the cell.
        row: of the cell's edges, as in the probabilities.
        block, source: from an input to a block, as numbered in the genotype.
        operation: that it keeps.
        probability: of that operation.
        runner_up: the operation with the highest probability among the others but ``none``.
        margin: how much less probable the runner-up is; negative where the genotype keeps another than the best.
        none: the probability of ``none``.
    """

    kind: str
    row: int
    block: int
    source: int
    operation: str
    probability: float
    runner_up: str
    margin: float
    none: float


def kept_edges(record: SearchRecord) -> list[Edge]:
    """The edges of the genotype of an epoch, with their rows of probabilities."""
    operations, found = list(record.operations), []
    for kind in KINDS:
        cell = getattr(record.genotype, kind)
        rows = {(block, source): edge for edge, block, source in cell_edges(len(cell))}
        for block, edges in enumerate(cell):
            for operation, source in edges:
                place = rows[block, source]
                row = dict(zip(operations, record.probabilities[kind][place], strict=True))
                if operation not in row:
                    continue
                others = {name: value for name, value in row.items() if name not in (operation, "none")}
                runner_up = max(others, key=lambda name: others[name])
                margin = row[operation] - others[runner_up]
                found.append(
                    Edge(kind, place, block, source, operation, row[operation], runner_up, margin, row.get("none", 0.0))
                )
    return found


def wilson(share: float, number: int) -> tuple[float, float]:
    """The 95 % interval of a share of so many independent cases (Wilson, 1927).

    >>> [round(end, 3) for end in wilson(0.5, 100)]
    [0.404, 0.596]
    """
    from scipy.stats import binomtest

    found = binomtest(round(share * number), number).proportion_ci(method="wilson")
    return float(found.low), float(found.high)


def verdict(
    records: Sequence[SearchRecord], selection: Sequence[SearchRecord] = (), answer: Genotype | None = None
) -> list[Sentence]:
    """The findings on a search, finished or not, the most important first.

    Args:
        records: of its epochs.
        selection: of those of a selection by halving that followed them.
        answer: the genotype found; by default that of the last epoch.

    Raises:
        UserError: if there are no records.
    """
    check_records(records)
    if records[-1].candidate is not None:
        return [*_candidates(records), *_measurement(records)]
    of_alphas = [*_alphas(records, " that the alphas prefer" if selection else "")]
    decided = selection or any(record.alpha is not None for record in records)
    cells = [*_cells(answer or records[-1].genotype)] if decided else []
    measured = [*_measurement(records)]
    of_whom = [_of_whom(bool(selection))] if any(record.retrieval for record in records) else []
    if selection:
        return [*_candidates(selection), *cells, *of_alphas, *measured, *of_whom]
    return [*of_alphas, *cells, *measured, *of_whom]


def _candidates(records: Sequence[SearchRecord]) -> Iterator[Sentence]:
    scores: dict[int, dict[int, float]] = {}  # rung -> candidate -> score
    for record in records:
        if record.candidate is not None and record.candidate.score is not None:
            scores.setdefault(record.candidate.rung, {})[record.candidate.number] = record.candidate.score
    if not scores:
        yield Sentence(None, "No candidate has been measured yet.")
        return
    first, last = scores[min(scores)], scores[max(scores)]
    best = max(last, key=lambda number: last[number])
    drawn = [record.candidate for record in records if record.candidate is not None]
    kept = [c.number for c in drawn if c.number in last and c.genotype == records[-1].genotype]
    answer = kept[0] if kept else best
    held_out = f"{drawn[0].label} on identities that it was not trained on"
    if answer == best:
        which = "best" if len(scores) == 1 else f"best of the last {len(last)}"
        what = f", and the {which} is number {best} with {last[best]:.1%} {held_out}."
    else:
        what = (
            f". The answer is number {answer} with {last[answer]:.1%} {held_out}; number {best} has {last[best]:.1%}, "
            "but less is expected of it by the scores of all."
        )
    yield Sentence(None, f"{len(first)} candidates were measured{what}")
    proposed = ("searched", "proposed", "predicted")  # by alphas in a selection by halving, or by a predictor
    blind = [
        first[c.number]
        for c in drawn
        if c.rung == min(scores)
        and c.score is not None
        and c.parent is None
        and not c.genotype.name.startswith(proposed)
    ]
    if len(blind) > 1 and answer in first:
        mean, half = blind_draws(blind)
        gain = first[answer] - mean
        yield Sentence(
            gain > half,
            f"After equal training it had {100 * gain:+.1f} points more than the mean of {len(blind)} drawn blindly "
            f"(± {100 * half:.1f}, the 95 % interval of that mean). The best of several scores is flattered by "
            "chance; only a full training tells what it is worth.",
        )
    if len(last) > 1 and answer == best:
        second = sorted(last.values())[-2]
        yield Sentence(None, f"The second best is {100 * (last[best] - second):.1f} points behind.")


def _alphas(records: Sequence[SearchRecord], of: str) -> Iterator[Sentence]:
    """How the alphas have decided; ``of`` tells their genotype from the answer."""
    last = records[-1]
    if last.alpha is None and all(record.alpha is None for record in records):
        yield Sentence(None, "The alphas have not moved yet: all epochs so far belong to their warm-up.")
        return
    recent = [
        record for record in records if record.epoch > last.epochs * (1 - _LAST) and record.epoch > records[0].epoch
    ]
    changes = [record.diagnosis.get("changed_edges") for record in recent]
    known = [number for number in changes if number is not None]
    edges = kept_edges(last)
    if known:
        total = sum(known)
        yield Sentence(
            total == 0,
            f"{'In its last epoch' if len(known) == 1 else f'In its last {len(known)} epochs'} the genotype{of} "
            + (
                f"changed on {total} edge{'s' if total > 1 else ''}: it has not settled, and more epochs may give "
                "another."
                if total
                else "did not change."
            ),
        )
    if edges:
        close = [edge for edge in edges if edge.margin < _CLOSE]
        least = min(edges, key=lambda edge: edge.margin)
        where_of = of and f" of the genotype{of}"
        where = f"{least.operation} before {least.runner_up} in the {_NAMES[least.kind]}"
        yield Sentence(
            not close,
            f"{len(close)} of {len(edges)} edges{where_of} {'was' if len(close) == 1 else 'were'} won by less than "
            f"{_CLOSE} of probability (the closest by {least.margin:.3f}: {where}); another seed may turn those round."
            if close
            else f"Every edge{where_of} was won by {_CLOSE} of probability or more (the closest by "
            f"{least.margin:.3f}: {where}).",
        )
        for kind in KINDS:
            own = [edge for edge in edges if edge.kind == kind]
            outweighed = [edge for edge in own if edge.none > edge.probability]
            if outweighed:
                yield Sentence(
                    False,
                    f"In the {_NAMES[kind]}{of} the operation none outweighs the kept one on {len(outweighed)} of "
                    f"{len(own)} edges: the search network would rather do without them.",
                )


def _cells(genotype: Genotype) -> Iterator[Sentence]:
    skips, number = genotype.count("skip_connect")["normal"], 2 * genotype.blocks
    if skips >= _COLLAPSED * number:
        yield Sentence(
            False,
            f"The normal cell has collapsed: {skips} of its {number} edges are skip connections. search.skip_cap, "
            ".auxiliary_skip or .stop_at_skips is against that.",
        )
    for kind in KINDS:
        names = [operation for block in getattr(genotype, kind) for operation, _ in block]
        common = statistics.mode(names)
        if common != "skip_connect" and names.count(common) >= 0.75 * len(names):
            yield Sentence(False, f"{names.count(common)} of {len(names)} edges of the {_NAMES[kind]} are {common}.")


def _measurement(records: Sequence[SearchRecord]) -> Iterator[Sentence]:
    measured = [record for record in records if record.retrieval]
    if not measured:
        yield Sentence(False, "Retrieval was never measured (test.eval_freq).")
        return
    found = measured[-1].retrieval
    assert found is not None
    queries = int(found["num_valid_queries"])
    if queries:
        low, high = wilson(float(found["rank1"]), queries)
        few = high - low > 0.1
        yield Sentence(
            not few,
            f"Retrieval was measured with {queries} queries: rank-1 {found['rank1']:.1%}, between {low:.1%} and "
            f"{high:.1%} (95 %){', which is too wide to compare searches by' if few else ''}.",
        )


def _of_whom(selected: bool) -> Sentence:
    rest = (
        ", which the selection has trained for a while."
        if selected
        else ": train it, and compare it with a genotype drawn at random, as search.selection halving does."
    )
    return Sentence(
        None,
        "These figures are those of the search network, on images of the half that trained the alphas. They say "
        f"nothing of the network of the genotype{rest}",
    )
