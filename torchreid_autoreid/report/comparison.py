"""One self-contained HTML page that puts searches beside each other, and ranks only what was measured alike."""

from __future__ import annotations

import itertools
import statistics
import string
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UserError
from ..genotype import KINDS, Block, Genotype
from ..numbers import amount, duration
from ..records import SearchRecord
from .cells import CELLS
from .log import SearchLog, read_log
from .page import Table, cell_picture, check_page, picture, write_page
from .plots import MEASURE_NAMES, draw_beside, draw_dots
from .runs import PLACES, PROTOCOL, read_settings
from .verdict import Sentence, wilson

__all__ = ["write_comparison"]

_LETTERS = string.ascii_uppercase
_OF_ALPHAS = ("search.split", "search.alpha_fraction")
_OF_CANDIDATES = ("search.held_out", "search.rank_by")


@dataclass(frozen=True)
class _Score:
    """The held-out figure by which a search is judged."""

    mAP: float
    rank1: float
    queries: int
    of: str


@dataclass(frozen=True)
class _Run:
    """A search with the letter that it has on the page."""

    letter: str
    log: SearchLog
    settings: Mapping[str, Any]

    @property
    def parts(self) -> list[Sequence[SearchRecord]]:
        """The epochs of the search, then those of its selection, if it has one."""
        return [self.log.records, self.log.selection] if self.log.selection else [self.log.records]

    @property
    def deciding(self) -> Sequence[SearchRecord]:
        """The epochs whose figures judge the search."""
        return self.parts[-1]

    @property
    def of_candidates(self) -> bool:
        return self.deciding[-1].candidate is not None

    @property
    def has_alphas(self) -> bool:
        return self.log.records[-1].candidate is None

    @property
    def score(self) -> _Score | None:
        """Of the best candidate of the last rung, or of the search network at the last measurement."""
        records = [record for record in self.deciding if record.retrieval]
        if not self.of_candidates:
            return _Score(*_figures(records[-1].retrieval), f"epoch {records[-1].epoch}") if records else None
        done = [(r.candidate, r.retrieval) for r in records if r.candidate and r.candidate.score is not None]
        last = max((candidate.rung for candidate, _ in done), default=0)
        best = max(
            ((c, found) for c, found in done if c.rung == last),
            key=lambda entry: entry[0].score or 0.0,
            default=None,
        )
        if best is None:
            return None
        candidate, found = best
        return _Score(*_figures(found), f"candidate {candidate.number} of rung {candidate.rung}")

    @property
    def measured(self) -> str:
        return "the candidates, trained" if self.of_candidates else "the search network"

    @property
    def epochs(self) -> str:
        """How many are done, of each part."""
        return ", then ".join(f"{part[-1].epoch} of {part[-1].epochs}" for part in self.parts)

    @property
    def seconds(self) -> float:
        return sum(record.seconds for part in self.parts for record in part)

    @property
    def cost(self) -> Mapping[str, Any]:
        """By measure, where the log has them of the answer, which need not be what the alphas prefer."""
        last = self.log.records[-1]
        return last.cost or {} if self.log.genotype.cells == last.genotype.cells else {}

    def protocol(self) -> dict[str, Any]:
        """What has to be alike before two figures can be ranked."""
        keys = (*PROTOCOL, *(_OF_CANDIDATES if self.of_candidates else _OF_ALPHAS))
        return {"measured": self.measured} | {key: self.settings.get(key) for key in keys}

    def unlike(self, other: _Run) -> list[str]:
        """Why the figures of two searches cannot be ranked, if they cannot."""
        if missing := [run.letter for run in (self, other) if not run.settings]:
            return [f"unknown settings, since there is no config.yaml in {' and '.join(missing)}"]
        own, others = self.protocol(), other.protocol()
        reasons = [
            f"{key} ({_shown(own[key])} / {_shown(others[key])})"
            for key in own
            if key in others and own[key] != others[key]
        ]
        roots = [run.settings.get("data.root") for run in (self, other)]
        numbers = [run.score.queries for run in (self, other) if run.score is not None]
        # A data folder may have moved; with another number of queries, or of another seed, its images are others.
        if not reasons and roots[0] != roots[1] and len(set(numbers)) > 1:
            reasons.append(f"data.root ({_shown(roots[0])} / {_shown(roots[1])}), with other queries")
        return reasons

    def same_but_seed(self, other: _Run) -> bool:
        return bool(self.settings) and _without_seed(self.settings) == _without_seed(other.settings)


def write_comparison(log_dirs: Sequence[str | Path], output: str | Path) -> Path:
    """Writes a page that compares searches by their log folders.

    Runs whose settings differ in nothing but ``train.seed`` are one group. Groups are ranked by their mean only among
    runs that were measured alike: the same data, split, distance, and kind of network.

    Args:
        log_dirs: the ``data.save_dir`` of each search, from 2 to 26; the page calls them A, B, ….
        output: the page, ``*.html``. It is replaced in one step.

    Returns:
        The path of the page.

    Raises:
        UserError: if a folder is no log of a search or given twice, or the page cannot be written.
    """
    folders = [Path(folder) for folder in log_dirs]
    if not 2 <= len(folders) <= len(_LETTERS):
        raise UserError(f"a comparison takes 2 to {len(_LETTERS)} log folders, not {len(folders)}")
    places = [folder.resolve() for folder in folders]
    if twice := next((folder for number, folder in enumerate(places) if folder in places[:number]), None):
        raise UserError(f"{twice} was given twice; give each log folder once")
    runs = [
        _Run(letter, read_log(folder), read_settings(folder)) for letter, folder in zip(_LETTERS, folders, strict=False)
    ]
    target = check_page(output)
    groups, protocols = list(_groups(runs)), list(_protocols(runs))
    panels: list[tuple[str, dict[str, list[tuple[float, float]]], float | None]] = [
        (
            f"held-out mAP{_of(protocol) if len(protocols) > 1 else ''}",
            _curves(protocol, _mean_precision, deciding=True),
            0.0,
        )
        for protocol in protocols
    ]
    panels += [
        ("loss of the weights", _curves(runs, lambda record: record.w["loss"]), None),
        ("indecision of the α (entropy)", _curves([r for r in runs if r.has_alphas], _entropy), None),
    ]
    write_page(
        "comparison.html",
        target,
        number=len(runs),
        verdict=[*_ranking(protocols, groups), *_edges_in_words(runs)],
        notes=[f"{run.letter}: {note}" for run in runs for note in run.log.notes()],
        runs=_runs(runs),
        dots=[_dots(protocol, groups) for protocol in protocols if any(run.score for run in protocol)],
        settings=_settings(runs),
        curves=picture(
            "By epoch; the letters are the runs.", draw_beside(panels), draw_beside(panels, columns=1),
            "Curves by epoch: " + "; ".join(f"{title} of {', '.join(curves)}" for title, curves, _ in panels if curves),
        ),
        shared=_shared(runs),
        edges=[_edges(runs, kind) for kind in KINDS],
        cells=[
            (CELLS[kind], [cell_picture(run.log.genotype, kind, f" of {run.letter}") for run in runs]) for kind in KINDS
        ],
    )  # fmt: skip
    return target


def _figures(found: Mapping[str, float] | None) -> tuple[float, float, int]:
    assert found is not None
    return found["mAP"], found["rank1"], int(found["num_valid_queries"])


def _without_seed(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if key not in PLACES and key != "train.seed"}


def _groups(runs: Iterable[_Run]) -> Iterator[list[_Run]]:
    """Runs with the same settings, apart from the seed."""
    return _gather(runs, lambda run, other: run.same_but_seed(other) and not run.unlike(other))


def _protocols(runs: Iterable[_Run]) -> Iterator[list[_Run]]:
    """Runs that were measured alike."""
    return _gather(runs, lambda run, other: not run.unlike(other))


def _gather(runs: Iterable[_Run], alike: Any) -> Iterator[list[_Run]]:
    found: list[list[_Run]] = []
    for run in runs:
        home = next((group for group in found if alike(group[0], run)), None)
        if home is None:
            found.append([run])
        else:
            home.append(run)
    return iter(found)


def _of(runs: Sequence[_Run]) -> str:
    return f" of {_joined(run.letter for run in runs)}"


def _joined(names: Iterable[str]) -> str:
    """Names in a sentence.

    >>> _joined("A"), _joined("ABC")
    ('A', 'A, B and C')
    """
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


def _ranking(protocols: Sequence[Sequence[_Run]], groups: Sequence[Sequence[_Run]]) -> Iterator[Sentence]:
    """Which search is ahead, and by how much more than chance; or why that cannot be said."""
    for one, other in itertools.combinations(protocols, 2):
        why = "; ".join(one[0].unlike(other[0]))
        yield Sentence(False, f"The figures{_of(one)} and{_of(other)} are not ranked: they differ in {why}.")
    for protocol in protocols:
        for run in protocol:
            if run.score is None:
                yield Sentence(False, f"{run.letter} has measured no retrieval, and is not ranked.")
            elif run.log.running:
                yield Sentence(False, f"{run.letter} has not ended, and is not ranked.")
        own = [[r for r in group if r in protocol and r.score and not r.log.running] for group in groups]
        ranked = sorted((group for group in own if group), key=_mean, reverse=True)
        if len(ranked) > 1:
            yield _lead(ranked[0], ranked[1])
            order = " > ".join(f"{_joined(r.letter for r in group)} ({_mean(group):.1%})" for group in ranked)
            yield Sentence(
                None, f"In the order of their held-out mAP{' (means)' if _repeated(ranked) else ''}: {order}."
            )
        if len(protocol) > 1 and not protocol[0].of_candidates and ranked:
            yield Sentence(
                None,
                f"What is ranked{_of(protocol) if len(protocols) > 1 else ''} is the search network, not the network of"
                " the genotype: only training both tells which genotype is better.",
            )


def _repeated(groups: Sequence[Sequence[_Run]]) -> bool:
    return any(len(group) > 1 for group in groups)


def _scores(group: Sequence[_Run]) -> list[float]:
    return [run.score.mAP for run in group if run.score is not None]


def _mean(group: Sequence[_Run]) -> float:
    return statistics.fmean(_scores(group))


def _lead(first: Sequence[_Run], second: Sequence[_Run]) -> Sentence:
    lead = 100 * (_mean(first) - _mean(second))
    names = [_joined(run.letter for run in group) for group in (first, second)]
    said = f"{names[0]} {'have' if len(first) > 1 else 'has'} {lead:.1f} points more mAP than {names[1]}"
    if min(len(first), len(second)) < 2:
        return Sentence(False, f"{said}, but not both are repeated: another seed may turn that round.")
    from scipy.stats import ttest_ind

    scores = [_scores(group) for group in (first, second)]
    if all(statistics.pstdev(own) == 0 for own in scores):
        return Sentence(None, f"{said}, and the seeds of each agree to the last digit.")
    low, high = ttest_ind(*scores, equal_var=False).confidence_interval()
    clear = low > 0
    return Sentence(
        clear,
        f"{said} on average, with an interval of {100 * low:+.1f} to {100 * high:+.1f} (95 %, Welch) from their "
        f"seeds{'.' if clear else ': more seeds have to tell.'}",
    )


def _runs(runs: Sequence[_Run]) -> Table:
    measures = sorted({measure for run in runs for measure in run.cost})
    heads = ["figure", "folder", "settings", "held-out mAP", "rank-1 (95 %)", "queries", "measured", "epochs", "time"]
    heads += ["part-aware edges", "skip connections", *(MEASURE_NAMES[measure] for measure in measures)]
    rows = []
    for run in runs:
        score, genotype = run.score, run.log.genotype
        figures = ["–"] * 4
        if score is not None:
            interval = ""
            if score.queries:
                low, high = wilson(score.rank1, score.queries)
                interval = f" ({low:.1%} to {high:.1%})"
            figures = [
                f"{score.mAP:.1%}",
                f"{score.rank1:.1%}{interval}",
                str(score.queries),
                f"{run.measured}, {score.of}",
            ]
        seed = run.settings.get("train.seed")
        described = [
            _shown(run.settings.get("search.strategy", "–")),
            *(["selection by halving"] if run.log.selection else []),
            *([f"seed {_shown(seed)}"] if seed is not None else []),
        ]
        counts = (sum(genotype.count(name).values()) for name in ("part_aware", "skip_connect"))
        rows.append(
            [
                run.letter,
                run.log.name,
                ", ".join(described),
                *figures,
                run.epochs,
                duration(run.seconds),
                *(f"{count} of {4 * genotype.blocks}" for count in counts),
                *(amount(run.cost[measure]["genotype"]) if measure in run.cost else "–" for measure in measures),
            ]
        )
    named, *figures_of = zip(heads, *rows, strict=True)
    return Table("The runs, in the order in which they were given.", named, figures_of, of_text=True)


def _settings(runs: Sequence[_Run]) -> Table | None:
    """Where they differ."""
    keys = sorted({key for run in runs for key in run.settings} - set(PLACES))
    values = {key: [_shown(run.settings.get(key, "–")) for run in runs] for key in keys}
    rows = [[key, *found] for key, found in values.items() if len(set(found)) > 1]
    caption = "Settings in which they differ, but where they lie."
    return Table(caption, ["setting", *(run.letter for run in runs)], rows, of_text=True) if rows else None


def _shown(value: Any) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= 80 else f"{text[:79]}…"


def _dots(protocol: Sequence[_Run], groups: Sequence[Sequence[_Run]]) -> Any:
    rows = []
    for group in groups:
        own = [(run.letter, run.score.mAP) for run in group if run in protocol and run.score is not None]
        if own:
            rows.append((_joined(letter for letter, _ in own), own))
    told = "; ".join(f"{name} {statistics.fmean(value for _, value in own):.1%}" for name, own in rows)
    caption = f"Held-out mAP{_of(protocol)}: a dot a run, a line the mean of runs that differ in their seed only."
    return picture(caption, draw_dots(rows), text=f"{caption} {told}.")


# --- curves ----------------------------------------


def _curves(runs: Iterable[_Run], figure: Any, deciding: bool = False) -> dict[str, list[tuple[float, float]]]:
    """Letter -> (epoch, figure) of the epochs that have it, of the search or of what judges it."""
    found: dict[str, list[tuple[float, float]]] = {}
    for run in runs:
        records = run.deciding if deciding else run.log.records
        points = [(float(r.epoch), value) for r in records if (value := figure(r)) is not None]
        if points:
            found[run.letter] = points
    return found


def _mean_precision(record: Any) -> float | None:
    return record.retrieval["mAP"] if record.retrieval else None


def _entropy(record: Any) -> float:
    """Of the operations over all edges, as a share of the largest: 1 before anything is decided."""
    rows = np.concatenate([np.asarray(record.probabilities[kind], dtype=float) for kind in KINDS])
    logs = np.log(np.where(rows > 0, rows, 1))
    return float(-(rows * logs).sum(axis=1).mean() / np.log(max(2, rows.shape[1])))


# --- edges ----------------------------------------


def _blocks(genotype: Genotype) -> list[tuple[str, int, Block]]:
    return [(kind, number, block) for kind in KINDS for number, block in enumerate(getattr(genotype, kind))]


def _num_shared(one: Genotype, other: Genotype) -> int:
    """Edges, an operation from an input to a block, that both have."""
    blocks = {(kind, number): set(block) for kind, number, block in _blocks(other)}
    return sum(len(set(block) & blocks.get((kind, number), set())) for kind, number, block in _blocks(one))


def _by_chance(blocks: int, operations: int) -> float:
    """Edges that two genotypes share on average, if both are drawn blindly: two inputs a block, an operation each.

    >>> round(_by_chance(4, 6), 2)
    1.71
    """
    return sum(2 * 4 / (block + 2) / operations for block in range(blocks))


def _kept(run: _Run) -> set[str]:
    return set(run.log.records[-1].operations) - {"none"}


def _edges_in_words(runs: Sequence[_Run]) -> Iterator[Sentence]:
    shapes = {run.log.genotype.blocks for run in runs}
    if len(shapes) > 1:
        yield Sentence(
            None, "Their cells have other numbers of blocks; edges are compared in the blocks that all have."
        )
    spaces = {frozenset(_kept(run)) for run in runs}
    if len(spaces) > 1:
        yield Sentence(None, "They searched other spaces: not all could choose among the same operations.")
    pairs = [_num_shared(a.log.genotype, b.log.genotype) for a, b in itertools.combinations(runs, 2)]
    if len(shapes) == len(spaces) == 1:
        blocks, chance = shapes.pop(), _by_chance(runs[0].log.genotype.blocks, len(_kept(runs[0])))
        mean = statistics.fmean(pairs)
        yield Sentence(
            None,
            f"Two of them share {mean:.3g} of {4 * blocks} edges{' on average' if len(pairs) > 1 else ''}; two that "
            f"are drawn blindly share {chance:.1f}.",
        )


def _shared(runs: Sequence[_Run]) -> Table:
    rows = [[a.letter, *(str(_num_shared(a.log.genotype, b.log.genotype)) for b in runs)] for a in runs]
    return Table("Edges that two of them share.", ["run", *(run.letter for run in runs)], rows)


def _edges(runs: Sequence[_Run], kind: str) -> dict[str, Any]:
    """By block, the two edges of each run with the number of runs that have it."""
    cells = [getattr(run.log.genotype, kind) for run in runs]
    rows = []
    for block in range(max(map(len, cells))):
        edges = [
            sorted(cell[block], key=lambda edge: (edge[1], edge[0])) if block < len(cell) else [] for cell in cells
        ]
        rows.append(
            (
                f"block {block + 2}",
                [
                    [
                        (f"{operation} of {source}", sum((operation, source) in other for other in edges))
                        for operation, source in own
                    ]
                    for own in edges
                ],
            )
        )
    return {"name": CELLS[kind], "heads": [run.letter for run in runs], "rows": rows, "runs": len(runs)}
