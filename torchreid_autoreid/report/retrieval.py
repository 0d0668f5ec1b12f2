"""One self-contained HTML page on an evaluation: how far to trust it, where it fails, and whom it takes for whom."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from ..errors import UserError
from ..evaluation import Embeddings, RetrievalResult, RocCurve, evaluate
from ..queries import ANSWERS, Labels, asked
from .answers import ReadJpeg, cards
from .page import Table, check_page, picture, write_page
from .plots import draw_cmc
from .verdict import Sentence, wilson

__all__ = ["FALSE_ACCEPTS", "Evaluated", "camera_table", "write_retrieval"]

#: false-accept rates of the slider
FALSE_ACCEPTS = tuple(factor * 10.0**power for power in range(-6, 0) for factor in (1, 3))
_HARDEST = 12
_MOST_CAMERAS = 20
_CONFUSIONS = 20
_ENOUGH = 20  # queries, before a pair of cameras is called good or bad
_BARS = 80
#: of false pairs and of true ones
_FILLS = (
    "fill:#d55e00;fill-opacity:.45;stroke:#a04000",
    "fill:#0072b2;fill-opacity:.45;stroke:#00507d;stroke-dasharray:5 2",
)


@dataclass(frozen=True)
class Evaluated:
    """An evaluation, with all that its page shows.

    Attributes:
        name: of the test set.
        described: metric and options, for people.
        query, gallery: as they were given.
        result: with the nearest gallery items of each query.
        plain: the same without re-ranking; ``None`` if ``result`` is that.
        curve: of plain distances at :data:`FALSE_ACCEPTS`; ``None`` where pairs could not be compared.
        cameras: by :func:`camera_table`; ``None`` where cameras are not known.
        query_paths, gallery_paths: of the images, where there are some.
    """

    name: str
    described: str
    query: Embeddings
    gallery: Embeddings
    result: RetrievalResult
    plain: RetrievalResult | None = None
    curve: RocCurve | None = None
    cameras: Mapping[tuple[int, int], tuple[int, float, float]] | None = None
    query_paths: Sequence[str] = ()
    gallery_paths: Sequence[str] = ()


def camera_table(
    query: Embeddings, gallery: Embeddings, **options: Any
) -> dict[tuple[int, int], tuple[int, float, float]] | None:
    """Retrieval from each camera in each camera alone.

    Args:
        query, gallery: embeddings.
        options: of :func:`~torchreid_autoreid.evaluation.evaluate`.

    Returns:
        (camera of the queries, camera of the gallery) -> (queries with a true match there, rank-1, mAP); pairs without
        such a query are left out. ``None`` where cameras are not known, or there are more than 20.
    """
    if not (query.knows("camids") and gallery.knows("camids")):
        return None
    of_queries, of_gallery = np.unique(query.camids), np.unique(gallery.camids)
    if max(len(of_queries), len(of_gallery)) > _MOST_CAMERAS:
        return None
    found = {}
    for one in of_queries:
        own = query.take(np.flatnonzero(query.camids == one))
        for other in of_gallery:
            seen = gallery.take(np.flatnonzero(gallery.camids == other))
            if not np.isin(own.pids, seen.pids).any():
                continue
            try:
                result = evaluate(own, seen, max_rank=1, **options)
            except UserError:  # what is left out leaves no true match: the same camera, as a rule
                continue
            found[int(one), int(other)] = (result.num_valid_queries, result.rank1, result.mAP)
    return found


def write_retrieval(
    evaluated: Evaluated, output: str | Path, read_jpeg: ReadJpeg | None = None, pictures: int = 0
) -> Path:
    """Writes the report of an evaluation.

    Args:
        evaluated: what it found.
        output: the page, ``*.html``. It is replaced in one step.
        read_jpeg: gives a small JPEG of an image by its path.
        pictures: of how many of the hardest queries images are embedded in the page.

    Returns:
        The path of the page.

    Raises:
        UserError: if an image cannot be read, or the page not be written.
    """
    target = check_page(output, "--report")
    embed = read_jpeg if pictures and evaluated.query_paths else None
    result, curve = evaluated.result, evaluated.curve
    lines = (
        {"plain": result.cmc} if evaluated.plain is None else {"re-ranked": result.cmc, "plain": evaluated.plain.cmc}
    )
    shown = min(20, len(result.cmc))
    labels = _labels(evaluated.query, evaluated.query_paths), _labels(evaluated.gallery, evaluated.gallery_paths)
    hardest = asked(result, _hardest(result, pictures if embed else 0), *labels)
    write_page(
        "retrieval.html",
        target,
        "--report",
        name=evaluated.name,
        described=evaluated.described,
        verdict=list(_verdict(evaluated)),
        tiles=list(_tiles(evaluated)),
        cmc=picture(
            f"Share of the queries with a true match within so many answers (CMC), up to rank {shown}.",
            *(draw_cmc({name: cmc[:shown] for name, cmc in lines.items()}, narrow) for narrow in (False, True)),
        ),
        ranks=_ranks(lines),
        verification=None if curve is None else _verification(curve),
        cameras=_cameras(evaluated.cameras),
        hardest=cards(hardest, embed, pictures),
        confused=_confused(evaluated),
    )  # fmt: skip
    return target


def _verdict(evaluated: Evaluated) -> Iterator[Sentence]:
    result, number = evaluated.result, evaluated.result.num_valid_queries
    low, high = wilson(result.rank1, number)
    few = high - low > 0.1
    yield Sentence(
        not few,
        f"Rank-1 is {result.rank1:.1%} of {number} queries, between {low:.1%} and {high:.1%} (95 %)"
        f"{': too few queries to compare models by' if few else ''}.",
    )
    people = len(np.unique(evaluated.query.pids[~np.isnan(result.average_precision)]))
    if people > 1:
        low, high = _bootstrap(result.average_precision, evaluated.query.pids)
        yield Sentence(
            None, f"mAP is {result.mAP:.1%}, between {low:.1%} and {high:.1%} (95 %, people drawn anew from {people})."
        )
    if not result.exact:
        yield Sentence(
            False, f"The index {result.index} is approximate: true matches that it does not return are lost."
        )
    if evaluated.plain is not None:
        gain = 100 * (result.mAP - evaluated.plain.mAP)
        yield Sentence(gain > 0, f"Re-ranking changes mAP by {gain:+.1f} points, from {evaluated.plain.mAP:.1%}.")
    first = result.first_match[~np.isnan(result.average_precision)]
    lost = np.mean((first < 1) | (first > ANSWERS))
    yield Sentence(None, f"{lost:.1%} of the queries have no true match among their first {ANSWERS} answers.")
    # A pair of cameras with few queries says little about either.
    pairs = {pair: found for pair, found in (evaluated.cameras or {}).items() if found[0] >= _ENOUGH}
    if len(pairs) > 1:
        worst, best = (chosen(pairs, key=lambda pair: pairs[pair][1]) for chosen in (min, max))
        yield Sentence(
            None,
            f"From camera {worst[0]} in camera {worst[1]} alone rank-1 is {pairs[worst][1]:.1%}, from camera {best[0]} "
            f"in camera {best[1]} it is {pairs[best][1]:.1%} (the worst and the best pair with {_ENOUGH} queries or "
            "more).",
        )


def _bootstrap(values: np.ndarray, pids: np.ndarray, draws: int = 2000) -> tuple[float, float]:
    """The 95 % interval of the mean of (N,) values, NaN left out, when people are drawn with replacement.

    The queries of a person are alike, so that drawing queries would give too narrow an interval.
    """
    counted = ~np.isnan(values)
    _, person = np.unique(pids[counted], return_inverse=True)
    sums, counts = np.bincount(person, values[counted]), np.bincount(person)
    rng = np.random.default_rng(0)
    means = np.empty(draws)
    for number in range(draws):
        chosen = rng.integers(0, len(sums), len(sums))
        means[number] = sums[chosen].sum() / counts[chosen].sum()
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)


def _tiles(evaluated: Evaluated) -> Iterator[tuple[str, str, str]]:
    result, plain = evaluated.result, evaluated.plain
    for label, value in result.shown().items():
        other = None if plain is None else plain.shown().get(label)
        yield label, f"{value:.1%}", "" if other is None else f"plain {other:.1%}"
    yield "rank-1", f"{result.rank1:.1%}", "" if plain is None else f"plain {plain.rank1:.1%}"
    yield "queries", str(result.num_valid_queries), f"with a true match, of {len(evaluated.query)}"
    yield "gallery", str(len(evaluated.gallery)), f"images, {len(np.unique(evaluated.gallery.pids))} people"


def _ranks(lines: Mapping[str, np.ndarray]) -> Table:
    ranks = [rank for rank in (1, 2, 3, 5, 10, 20, 50) if rank <= min(map(len, lines.values()))]
    rows = [[name, *(f"{cmc[rank - 1]:.2%}" for rank in ranks)] for name, cmc in lines.items()]
    return Table("The same in numbers.", ["ranking", *(f"rank-{rank}" for rank in ranks)], rows)


# --- pairs at a threshold ----------------------------------------


def _verification(curve: RocCurve) -> dict[str, Any]:
    # Rates below one false pair are the same as none.
    steps = [
        i for i, rate in enumerate(curve.fpr) if rate * curve.num_negative >= 1 and np.isfinite(curve.thresholds[i])
    ]
    steps = steps or [len(curve.fpr) - 1]
    rows = [
        [f"{curve.fpr[i]:g}", f"{curve.thresholds[i]:.4g}", f"{curve.tpr[i]:.2%}", f"{curve.achieved_fpr[i]:.3g}"]
        for i in steps
    ]
    caption = (
        f"{curve.num_positive} true and {curve.num_negative} false pairs by plain distance. A pair is accepted up to "
        "the threshold."
    )
    heads = ["false-accept rate", "threshold", "true accepts", "false accepts reached"]
    start = next((place for place, i in enumerate(steps) if curve.fpr[i] >= 1e-3), 0)
    return {
        "table": Table(caption, heads, rows),
        "labels": [f"{rate} false accepts: threshold {limit}, {true} true accepts" for rate, limit, true, _ in rows],
        "start": start,
        "drawing": _histograms(curve, [float(curve.thresholds[i]) for i in steps], start),
        "text": f"Distances of true and of false pairs; {rows[start][2]} of the true ones lie below the threshold "
        f"{rows[start][1]}, where {rows[start][0]} of the false ones do.",
    }


def _histograms(curve: RocCurve, thresholds: Sequence[float], start: int) -> Markup:
    """The two histograms with a line for each threshold; both have the same area."""
    # A bin ends where the next float32 begins that differs in its first 16 bits; its pairs are spread evenly over it.
    starts = curve.distances.astype(np.float64)
    ends = starts + 65536.0 * np.spacing(np.abs(curve.distances))
    ends[:-1] = np.minimum(ends[:-1], starts[1:])
    low, high = float(starts[0]), float(ends[-1])
    width, height, left, top = 640, 220, 24, 26
    edges = np.linspace(low, high, _BARS + 1)
    shares = []
    for counts in curve.pairs:
        until = np.cumsum(counts) / counts.sum()
        both = (
            np.stack([starts, ends], axis=1).ravel(),
            np.stack([until - counts / counts.sum(), until], axis=1).ravel(),
        )
        shares.append(np.diff(np.interp(edges, *both)))
    most = max(float(share.max()) for share in shares)

    def x(distance: float) -> float:
        return left + width * min(1.0, max(0.0, (distance - low) / (high - low)))

    parts = []
    for share, style in zip(shares, _FILLS, strict=True):
        outline = [f"{left:.1f},{top + height}"]
        for bar, value in enumerate(share):
            y = top + height * (1 - value / most)
            outline += [f"{left + width * end / _BARS:.1f},{y:.1f}" for end in (bar, bar + 1)]
        outline.append(f"{left + width:.1f},{top + height}")
        parts.append(f'<polygon points="{" ".join(outline)}" style="{style}"/>')
    for tick in np.linspace(low, high, 6):
        parts.append(f'<text x="{x(tick):.1f}" y="{top + height + 16}" text-anchor="middle">{tick:.3g}</text>')
    parts.append(f'<text x="{left + width / 2}" y="{top + height + 34}" text-anchor="middle">distance</text>')
    for name, x_place, colour in (("true pairs (dashed)", left, "#00507d"), ("false pairs", left + 250, "#a04000")):
        parts.append(f'<text x="{x_place}" y="16" fill="{colour}" font-weight="bold">{name}</text>')
    for step, threshold in enumerate(thresholds):
        hidden = "" if step == start else " hidden"
        parts.append(
            f'<line data-steps="{step}"{hidden} x1="{x(threshold):.1f}" x2="{x(threshold):.1f}" y1="{top - 4}" '
            f'y2="{top + height}" stroke="#2b2f36" stroke-width="2"/>'
        )
    box = f'viewBox="0 0 {width + 2 * left} {top + height + 40}" width="{width + 2 * left}"'
    return Markup(f'<svg class=pairs {box} font-size="12" fill="#2b2f36">{"".join(parts)}</svg>')  # numbers only


# --- where it fails ----------------------------------------


def _cameras(found: Mapping[tuple[int, int], tuple[int, float, float]] | None) -> Table | None:
    if not found:
        return None
    rows = [
        [f"{one} → {other}", str(number), f"{rank1:.1%}", f"{mean:.1%}"]
        for (one, other), (number, rank1, mean) in found.items()
    ]
    caption = (
        "Queries of one camera, ranked in the gallery of another alone by plain distance. Pairs in which no query has "
        "a true match are left out; of few queries the figures say little."
    )
    return Table(caption, ["cameras", "queries", "rank-1", "mAP"], rows, sortable=True)


def _hardest(result: RetrievalResult, pictures: int) -> np.ndarray:
    """The counted queries with the least AP, the worst first."""
    order = np.argsort(result.average_precision, kind="stable")  # NaN comes last
    return order[: min(max(_HARDEST, pictures), result.num_valid_queries)]


def _labels(part: Embeddings, paths: Sequence[str]) -> Labels:
    return Labels(part.pids.tolist(), part.camids.tolist() if part.knows("camids") else (), paths)


def _mistaken(evaluated: Evaluated) -> list[tuple[int, int]]:
    """(person, whom the first answer is) of the counted queries whose first answer is wrong."""
    result, found = evaluated.result, []
    assert result.topk_indices is not None
    for query in np.flatnonzero(~np.isnan(result.average_precision)):
        row = result.topk_indices[query][0]
        if row >= 0 and evaluated.gallery.pids[row] != evaluated.query.pids[query]:
            found.append((int(evaluated.query.pids[query]), int(evaluated.gallery.pids[row])))
    return found


def _confused(evaluated: Evaluated) -> Table | None:
    wrong = Counter(_mistaken(evaluated))
    if not wrong:
        return None
    counted = Counter(evaluated.query.pids[~np.isnan(evaluated.result.average_precision)].tolist())
    rows = [
        [str(person), str(other), str(times), str(counted[person])]
        for (person, other), times in sorted(wrong.items(), key=lambda entry: (-entry[1], entry[0]))[:_CONFUSIONS]
    ]
    caption = f"The most frequent of {len(wrong)} confusions: the first answer is somebody else."
    return Table(caption, ["person", "taken for", "times", "queries of the person"], rows, sortable=True)
