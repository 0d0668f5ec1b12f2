"""Figures from the ranks of the true matches: mAP, CMC, mINP; the CUHK03 protocol; the ROC curve."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from ..errors import UserError
from ..parallel.launch import OneProcess
from .embeddings import as_array, as_labels, check_count
from .figures import MatchRanks, first_matches, per_query
from .pairwise import CPU_BLOCK, Distances, MatrixDistances, Observer, Progress, WithoutIgnored, ranges, scan
from .ranking import (
    CloserCounter,
    Labels,
    Matches,
    Nearest,
    OwnPairs,
    count_others,
    count_true,
    ordered,
    pair_values,
    unordered,
)
from .result import RetrievalResult, means

DRAWN_AT_ONCE = 1 << 20


def cmc_curve(first: np.ndarray, length: int) -> np.ndarray:
    """(length,) share of queries whose first match, of rank first > 0, has at most that rank; 0 is never."""
    found = np.bincount(first[(first > 0) & (first <= length)], minlength=length + 1)[1:]
    return np.cumsum(found) / len(first)


def no_match_error() -> UserError:
    """The error for an evaluation that would count no query."""
    return UserError(
        "no query has a true match: no gallery item has a query's identity and another camera (or what else is left "
        "out by); check pids and camids"
    )


class Ranked(NamedTuple):
    """What one pass over the distances gives."""

    figures: dict[str, np.ndarray]  # (Nq,) each
    first: np.ndarray
    topk: tuple[np.ndarray, np.ndarray] | None

    @classmethod
    def of(cls, matches: MatchRanks, topk: tuple[np.ndarray, np.ndarray] | None) -> Ranked:
        return cls(per_query(matches), first_matches(matches), topk)


def rank_queries(
    distances: Distances, labels: Labels, topk: int, world: OneProcess, progress: Progress | None = None
) -> Ranked:
    """Per-query figures, and the ``topk`` nearest items when that is not 0."""
    if labels.ignored is not None:
        distances = WithoutIgnored(distances, labels.ignored)
    pairs = OwnPairs.of(labels)
    rows, columns = pairs.true
    values = pair_values(distances, rows, columns, labels.q_pids)
    all_rows, positions = world.concatenate(rows), world.concatenate(columns + labels.first)
    nearest = None
    if topk:
        left_out = pairs.rows[pairs.left_out], pairs.columns[pairs.left_out]
        nearest = Nearest(distances.num_queries, topk, labels.first, left_out)
    rounded = isinstance(distances, MatrixDistances) and not distances.exact
    observers: list[Observer] = [] if nearest is None else [nearest]
    for last in (False, True):
        matches = Matches.of(all_rows, positions, world.concatenate(values), distances.num_queries)
        counter = CloserCounter(matches, pairs, labels.first, find_ties=rounded)
        scan(distances, [counter, *observers], progress)
        seen = counter.seen[~pairs.left_out]
        # The distance of a match has to be that of the scan, to the bit, or it would win or lose ties. On the CPU it
        # always is; where it is not, the scan is done again with its own distances.
        if last or not world.sum(np.array([int(not np.array_equal(seen, values))])).any():
            break
        values, observers = seen, []
    ranks = counter.ranks(world)
    if rounded and isinstance(distances, MatrixDistances):
        recount(ranks, matches, np.flatnonzero(counter.tied), distances.matrix, pairs)
    own = MatchRanks(matches.rows, ranks, np.diff(matches.offsets), world.sum(count_others(labels)))
    if nearest is None:
        return Ranked.of(own, None)
    nearest.merge_processes(world)
    return Ranked.of(own, nearest.result())


def recount(ranks: np.ndarray, matches: Matches, queries: np.ndarray, matrix: np.ndarray, pairs: OwnPairs) -> None:
    """Replace the ranks of queries whose distances float32 does not tell apart, by sorting their rows as given."""
    starts = np.searchsorted(pairs.rows, np.arange(len(matrix) + 1))
    for query in queries:
        own = slice(starts[query], starts[query + 1])
        columns, left_out = pairs.columns[own], pairs.left_out[own]
        kind = np.zeros(matrix.shape[1], dtype=np.int8)
        kind[columns] = np.where(left_out, -1, 1)
        order = np.argsort(matrix[query], kind="stable")
        order = order[kind[order] >= 0]
        ranks[matches.offsets[query] : matches.offsets[query + 1]] = np.flatnonzero(kind[order]) + 1


def rank_retrieved(
    positions: np.ndarray, distances: np.ndarray, labels: Labels, topk: int, world: OneProcess
) -> Ranked:
    """Per-query figures on (Nq, k) retrieved items, nearest first, -1 for none.

    A true match that was not retrieved adds precision 0 to the AP; the INP of a query with such a match is 0.
    """
    g_pids = world.concatenate(labels.g_pids)
    g_tags = [world.concatenate(tag) for tag in labels.g_tags]
    num_matches = world.sum(count_true(labels))
    match = g_pids[positions] == labels.q_pids[:, None]
    shared = np.zeros(match.shape, dtype=bool)
    for of_queries, of_gallery in zip(labels.q_tags, g_tags, strict=True):
        shared |= of_gallery[positions] == of_queries[:, None]
    junk = match & shared
    kept = ~junk & (positions >= 0)
    if labels.ignored is not None:
        kept &= ~world.concatenate(labels.ignored)[positions]
    match &= kept
    ranks = np.cumsum(kept, axis=1)
    top = None
    if topk:
        order = np.argsort(~kept, axis=1, kind="stable")[:, :topk]
        gone = ~np.take_along_axis(kept, order, 1)
        top = (
            np.where(gone, -1, np.take_along_axis(positions, order, 1)),
            np.where(gone, np.float32(np.inf), np.take_along_axis(distances, order, 1)),
        )
    rows, columns = np.nonzero(match)
    return Ranked.of(MatchRanks(rows, ranks[rows, columns], num_matches, world.sum(count_others(labels))), top)


def join_ranked(parts: list[Ranked]) -> Ranked:
    """The figures of consecutive parts of the queries as one."""
    if len(parts) == 1:
        return parts[0]
    figures = {name: np.concatenate([part.figures[name] for part in parts]) for name in parts[0].figures}
    first = np.concatenate([part.first for part in parts])
    tops = [part.topk for part in parts if part.topk is not None]
    top = (np.concatenate([t[0] for t in tops]), np.concatenate([t[1] for t in tops])) if tops else None
    return Ranked(figures, first, top)


def summarise(ranked: Ranked, num_candidates: int, max_rank: int, shots: np.ndarray | None = None) -> RetrievalResult:
    """Means over the counted queries; the CMC is that of the ranks ``shots`` when given.

    ``num_candidates``, the gallery items or identities that can be ranked, bounds the length of the curve.
    """
    valid = ~np.isnan(ranked.figures["mAP"])
    if not valid.any():
        raise no_match_error()
    return RetrievalResult(
        figures=means(ranked.figures),
        cmc=cmc_curve(ranked.first[valid] if shots is None else shots.ravel(), min(max_rank, num_candidates)),
        num_valid_queries=int(valid.sum()),
        per_query=ranked.figures,
        first_match=ranked.first,
        topk_indices=None if ranked.topk is None else ranked.topk[0],
        topk_distances=None if ranked.topk is None else ranked.topk[1],
    )


# --- CUHK03 ----------------------------------------


def single_shot_ranks(
    distances: Distances, labels: Labels, repeats: int, seed: int, first_query: int, world: OneProcess
) -> np.ndarray:
    """Ranks of the CUHK03 protocol (Li et al., "DeepReID", CVPR 2014): a gallery of one image of each identity.

    For each query, ``repeats`` times, one image of every gallery identity is drawn, the query's own identity and camera
    left out. Draws depend on ``seed`` and the query's position (``first_query`` is that of the first row) alone.

    Returns:
        (counted queries, repeats) rank of the query's identity, from 1; ``cmc_curve`` of them is the protocol's curve.
    """
    lots = _Lots(labels, world)
    ranks = [np.empty((0, repeats), dtype=np.int64)]
    step = max(1, DRAWN_AT_ONCE // (repeats * len(lots.identities)))
    for begin, end in ranges(distances.num_queries, step):
        drawn_of = {row: lots.draw(row, repeats, [seed, first_query + row]) for row in range(begin, end)}
        counted = {row: drawn for row, drawn in drawn_of.items() if drawn is not None}
        if not counted:
            continue
        rows = np.array(list(counted))
        drawn = np.stack(list(counted.values()))  # (rows, repeats, identities) positions
        values = world.sum(_drawn_distances(distances, labels, rows, drawn))  # each item lives in one process
        own = np.searchsorted(lots.identities, labels.q_pids[rows])[:, None, None]
        match, position = np.take_along_axis(values, own, 2), np.take_along_axis(drawn, own, 2)
        closer = (values < match) | ((values == match) & (drawn < position))
        ranks.append(closer.sum(axis=2) + 1)
    return np.concatenate(ranks)


class _Lots:
    """Draws one gallery item of each identity."""

    def __init__(self, labels: Labels, world: OneProcess):
        self.labels = labels
        self.tags = [world.concatenate(tag) for tag in labels.g_tags]
        pids = world.concatenate(labels.g_pids)
        self.order = np.argsort(pids, kind="stable")
        if labels.ignored is not None:
            self.order = self.order[~world.concatenate(labels.ignored)[self.order]]
        self.identities, self.starts, self.sizes = np.unique(pids[self.order], return_index=True, return_counts=True)

    def draw(self, row: int, repeats: int, seed: list[int]) -> np.ndarray | None:
        """(repeats, identities) positions for one query; None where it has no true match."""
        own = int(np.searchsorted(self.identities, self.labels.q_pids[row]))
        if own == len(self.identities) or self.identities[own] != self.labels.q_pids[row]:
            return None
        candidates = self.order[self.starts[own] : self.starts[own] + self.sizes[own]]
        for of_queries, of_gallery in zip(self.labels.q_tags, self.tags, strict=True):
            candidates = candidates[of_gallery[candidates] != of_queries[row]]
        if not len(candidates):
            return None
        random = np.random.default_rng(seed)
        drawn = self.order[self.starts + (random.random((repeats, len(self.sizes))) * self.sizes).astype(np.int64)]
        drawn[:, own] = random.choice(candidates, repeats)
        return drawn


def _drawn_distances(distances: Distances, labels: Labels, rows: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    """Distances of each row to its drawn items that live in this process, 0 for the others."""
    local = drawn - labels.first
    here = np.nonzero((local >= 0) & (local < len(labels.g_pids)))
    wide = isinstance(distances, MatrixDistances) and not distances.exact
    values = np.zeros(drawn.shape, dtype=np.float64 if wide else np.float32)
    columns, place = np.unique(local[here], return_inverse=True)
    for begin, end in ranges(len(columns), CPU_BLOCK[1]):
        inside = (place >= begin) & (place < end)
        block = distances.between(rows, columns[begin:end])
        values[tuple(index[inside] for index in here)] = block[here[0][inside], place[inside] - begin]
    return values


# --- torchreid's signature ----------------------------------------


def evaluate_rank(
    distmat: np.ndarray,
    q_pids: np.ndarray,
    g_pids: np.ndarray,
    q_camids: np.ndarray,
    g_camids: np.ndarray,
    max_rank: int = 50,
    use_metric_cuhk03: bool = False,
    use_cython: bool = True,
    seed: int = 0,
) -> tuple[np.ndarray, float]:
    """CMC curve and mAP of a distance matrix: a drop-in for ``torchreid.metrics.evaluate_rank``.

    Args:
        distmat: (Nq, Ng) distances, compared as they are (torchreid's compiled form rounds them to float32).
        q_pids, g_pids, q_camids, g_camids: identities and cameras.
        max_rank: length of the curve; the gallery's size where that is smaller.
        use_metric_cuhk03: the CUHK03 single-shot curve, drawn 10 times for each query from ``seed``.
        use_cython: accepted for torchreid's sake; there is one implementation.

    Returns:
        (cmc, mAP): (max_rank,) float32 and a fraction.

    Raises:
        UserError: labels of another length, NaN distances, no query with a true match.

    Example:
        >>> evaluate_rank(np.array([[0.1, 0.9]]), np.array([7]), np.array([7, 8]), np.array([0]), np.array([1, 1]))[1]
        1.0
    """
    distmat = as_array(distmat, "distmat")
    if distmat.dtype.kind not in "fiu":
        raise UserError(f"distmat has type {distmat.dtype}; give real numbers")
    if distmat.ndim != 2 or not distmat.size:
        raise UserError(f"distmat has shape {distmat.shape}; give a matrix of shape (queries, gallery)")
    for first, end in ranges(len(distmat), CPU_BLOCK[0]):
        bad = np.isnan(distmat[first:end]).any(axis=1)
        if bad.any():
            raise UserError(f"distmat holds NaN, first in row {first + int(bad.argmax())}; mend the features behind it")
    check_count("max_rank", max_rank, 1)
    num_queries, num_gallery = distmat.shape
    labels = Labels(
        as_labels(q_pids, "q_pids", num_queries),
        (as_labels(q_camids, "q_camids", num_queries),),
        as_labels(g_pids, "g_pids", num_gallery),
        (as_labels(g_camids, "g_camids", num_gallery),),
    )
    distances = MatrixDistances(distmat)
    world = OneProcess()
    parts = []
    for first, end in labels.parts(world):
        parts.append(rank_queries(distances.of_queries(first, end), labels.of_queries(slice(first, end)), 0, world))
    ranked = join_ranked(parts)
    shots = single_shot_ranks(distances, labels, 10, seed, 0, world) if use_metric_cuhk03 else None
    result = summarise(ranked, len(np.unique(labels.g_pids)) if use_metric_cuhk03 else num_gallery, max_rank, shots)
    return result.cmc.astype(np.float32), result.mAP


# --- ROC ----------------------------------------


@dataclass(frozen=True)
class RocCurve:
    """Verification of pairs: a pair is accepted when its distance is at most the threshold.

    Attributes:
        fpr: (F,) the asked false-accept rates.
        tpr: (F,) true-accept rate at the threshold.
        thresholds: (F,) the largest distance at which no more than that share of false pairs is accepted.
        achieved_fpr: (F,) the share of false pairs accepted at the threshold; below ``fpr`` because of ties and steps.
        num_positive, num_negative: true and false pairs compared.
        distances: (B,) ascending; a bin holds the pairs from this distance to the next one. A bin is as fine as the
            first 16 bits of a float32 tell; bins without pairs are left out.
        pairs: (2, B) false and true pairs in each bin.
    """

    fpr: np.ndarray
    tpr: np.ndarray
    thresholds: np.ndarray
    achieved_fpr: np.ndarray
    num_positive: int
    num_negative: int
    distances: np.ndarray
    pairs: np.ndarray


class _Histogram:
    """Counts false and true pairs by 16 bits of their ordered distance: the high half, or the low half below one high.

    Attributes:
        counts: (2, 65536) of false pairs and of true ones.
    """

    def __init__(self, labels: Labels, high: int | None = None):
        self.labels, self.high = labels, high
        self.counts = np.zeros((2, _BINS), dtype=np.int64)

    def add(self, row: int, column: int, block: torch.Tensor) -> None:
        device, (height, width) = block.device, block.shape

        def equal(of_queries: np.ndarray, of_gallery: np.ndarray) -> torch.Tensor:
            queries = torch.from_numpy(of_queries[row : row + height]).to(device)
            return queries[:, None] == torch.from_numpy(of_gallery[column : column + width]).to(device)[None, :]

        true = equal(self.labels.q_pids, self.labels.g_pids)
        counted = torch.ones_like(true)
        for tags in zip(self.labels.q_tags, self.labels.g_tags, strict=True):
            counted &= ~(true & equal(*tags))
        if self.labels.ignored is not None:
            counted &= ~torch.from_numpy(self.labels.ignored[column : column + width]).to(device)[None, :]
        values = ordered(block)
        bins = values >> 16
        if self.high is not None:
            counted &= bins == self.high
            bins = values & 0xFFFF
        bins += true.to(torch.int64) << 16
        self.counts += torch.bincount(bins[counted], minlength=2 * _BINS).cpu().numpy().reshape(2, _BINS)

    def twin(self) -> _Histogram:
        return _Histogram(self.labels, self.high)

    def merge(self, other: _Histogram) -> None:
        self.counts += other.counts


_BINS = 1 << 16


def roc_curve(
    distances: Distances, labels: Labels, fpr: np.ndarray, world: OneProcess, progress: Progress | None = None
) -> RocCurve:
    """The exact ROC curve at given rates in two passes: first the high bits of each threshold, then the low ones."""
    coarse = _Histogram(labels)
    scan(distances, [coarse], progress, "false pairs")
    counts = world.sum(coarse.counts)
    total, positive = (int(count) for count in counts.sum(axis=1))
    if not positive:
        raise no_match_error()
    if not total:
        raise UserError("there are no false pairs: queries and gallery hold one identity; give more to compare")
    below = np.concatenate([np.zeros((2, 1), dtype=np.int64), np.cumsum(counts, axis=1)], axis=1)
    allowed = np.floor(fpr * total * (1 + 1e-12)).astype(np.int64)
    highs = np.searchsorted(below[0], allowed, "right") - 1  # the bin of the first false pair that must be refused
    wanted = sorted({int(high) for high in highs if high < _BINS})
    fine = {high: _Histogram(labels, high) for high in wanted}
    if fine:
        scan(distances, list(fine.values()), progress, "thresholds")
    low_counts = {high: world.sum(histogram.counts) for high, histogram in fine.items()}
    thresholds, accepted = [], []
    for count, high in zip(allowed, highs, strict=True):
        if high >= _BINS:  # every false pair may be accepted
            thresholds.append(np.inf)
            accepted.append((total, positive))
            continue
        within = low_counts[int(high)]
        low = int(np.searchsorted(np.cumsum(within[0]) + below[0][high], count, "right"))
        refused = unordered(torch.tensor([(int(high) << 16) | low], dtype=torch.int64, device="cpu")).numpy()
        thresholds.append(float(np.nextafter(refused, np.float32(-np.inf))[0]))
        accepted.append(tuple(below[:, high] + within[:, :low].sum(axis=1)))
    rates = np.array(accepted, dtype=np.float64) / (total, positive)
    bins = np.flatnonzero(counts.any(axis=0))
    starts = unordered(torch.from_numpy(bins.astype(np.int64) << 16)).numpy()
    return RocCurve(fpr, rates[:, 1], np.array(thresholds), rates[:, 0], positive, total, starts, counts[:, bins])
