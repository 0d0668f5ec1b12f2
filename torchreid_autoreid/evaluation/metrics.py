"""Figures from the ranks of the true matches: mAP, CMC, mINP; the CUHK03 protocol; the ROC curve."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from ..errors import UserError
from .blocks import CPU_BLOCK, Distances, MatrixDistances, Progress, ranges, scan
from .embeddings import as_labels
from .processes import OneProcess
from .ranking import CloserCounter, Labels, Matches, Nearest, find_matches, ordered, same_identity, unordered
from .result import RetrievalResult


def per_query(matches: Matches, ranks: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(AP, INP, rank of the first match) of each query; NaN, NaN, 0 for a query without a true match.

    AP is the mean over the true matches of the precision at each; INP is their number over the rank of the last.
    """
    counts = np.diff(matches.offsets)
    valid = counts > 0
    found = np.arange(1, len(ranks) + 1) - matches.offsets[matches.rows]
    sums = np.bincount(matches.rows, weights=found / ranks, minlength=len(counts))
    with np.errstate(invalid="ignore"):
        average_precision = np.where(valid, sums / counts, np.nan)
    penalty = np.full(len(counts), np.nan)
    penalty[valid] = counts[valid] / ranks[matches.offsets[1:][valid] - 1]
    first = np.zeros(len(counts), dtype=np.int64)
    first[valid] = ranks[matches.offsets[:-1][valid]]
    return average_precision, penalty, first


def cmc_curve(first: np.ndarray, length: int) -> np.ndarray:
    """(length,) share of the counted queries whose first match has at most that rank."""
    found = np.bincount(first[(first > 0) & (first <= length)], minlength=length + 1)[1:]
    return np.cumsum(found) / np.count_nonzero(first)


def no_match_error() -> UserError:
    """The error for an evaluation that would count no query."""
    return UserError(
        "no query has a true match: no gallery item has a query's identity and another camera; check pids and camids"
    )


class Ranked(NamedTuple):
    """What one pass over the distances gives."""

    average_precision: np.ndarray
    penalty: np.ndarray
    first: np.ndarray
    topk: tuple[np.ndarray, np.ndarray] | None


def rank_queries(
    distances: Distances, labels: Labels, topk: int, world: OneProcess, progress: Progress | None = None
) -> Ranked:
    """Per-query figures, and the `topk` nearest items when that is not 0."""
    matches = find_matches(distances, labels, world)
    rows, columns, same_camera = same_identity(labels)
    junk = rows[same_camera], columns[same_camera]

    def observers():
        nearest = [Nearest(distances.num_queries, topk, labels.first, junk)] if topk else []
        return [CloserCounter(matches, labels), *nearest]

    counter, *nearest = scan(distances, observers, progress)
    found = None
    if nearest:
        nearest[0].merge_processes(world)
        found = nearest[0].result()
    return Ranked(*per_query(matches, counter.ranks(world)), found)


def summarise(ranked: Ranked, num_gallery: int, max_rank: int, cmc: np.ndarray | None = None) -> RetrievalResult:
    """Means over the counted queries; `cmc` replaces the curve of the Market-1501 protocol."""
    valid = ~np.isnan(ranked.average_precision)
    if not valid.any():
        raise no_match_error()
    return RetrievalResult(
        mAP=float(ranked.average_precision[valid].mean()),
        cmc=cmc_curve(ranked.first, min(max_rank, num_gallery)) if cmc is None else cmc,
        mINP=float(ranked.penalty[valid].mean()),
        num_valid_queries=int(valid.sum()),
        average_precision=ranked.average_precision,
        inverse_negative_penalty=ranked.penalty,
        first_match=ranked.first,
        topk_indices=None if ranked.topk is None else ranked.topk[0],
        topk_distances=None if ranked.topk is None else ranked.topk[1],
    )


# --- CUHK03 -------------------------------------------------------------------------------------------------------------


def single_shot_cmc(
    distances: Distances, labels: Labels, max_rank: int, repeats: int, seed: int, world: OneProcess
) -> np.ndarray:
    """(max_rank,) CMC of the CUHK03 protocol (Li et al., CVPR 2014): a gallery of one image of each identity.

    For each query, `repeats` times, one image of every gallery identity is drawn, the query's own identity and camera
    left out; the curve is the mean over draws and counted queries. Draws depend on `seed` and the query's position
    alone. It is shorter than max_rank when there are fewer identities.
    """
    g_pids, g_camids = world.concatenate(labels.g_pids), world.concatenate(labels.g_camids)
    order = np.argsort(g_pids, kind="stable")
    identities, starts, sizes = np.unique(g_pids[order], return_index=True, return_counts=True)
    draws, query_rows = [], []
    for row, (pid, camid) in enumerate(zip(labels.q_pids, labels.q_camids, strict=True)):
        own = int(np.searchsorted(identities, pid))
        if own == len(identities) or identities[own] != pid:
            continue
        candidates = order[starts[own] : starts[own] + sizes[own]]
        candidates = candidates[g_camids[candidates] != camid]
        if not len(candidates):
            continue
        random = np.random.default_rng([seed, row])
        drawn = order[starts + (random.random((repeats, len(identities))) * sizes).astype(np.int64)]
        drawn[:, own] = random.choice(candidates, repeats)
        draws.append((drawn, own))
        query_rows.append(row)
    if not query_rows:
        raise no_match_error()
    first = np.empty((len(query_rows), repeats), dtype=np.int64)
    stop = labels.first + len(labels.g_pids)
    step = max(1, CPU_BLOCK[0] * CPU_BLOCK[1] // max(1, len(labels.g_pids)))
    for begin, end in ranges(len(query_rows), step):
        values = distances.between(np.array(query_rows[begin:end]), np.arange(len(labels.g_pids)))
        drawn = np.stack([d for d, _ in draws[begin:end]])  # (rows, repeats, identities)
        own = np.array([o for _, o in draws[begin:end]])
        here = (drawn >= labels.first) & (drawn < stop)
        local = np.where(here, drawn - labels.first, 0)
        rows = np.arange(end - begin)[:, None]
        of_drawn = np.where(here, values[rows[:, :, None], local], 0)
        of_drawn = world.sum(of_drawn.astype(np.float32))  # each drawn item lives in one process
        match, position = (np.take_along_axis(x, own[:, None, None], 2) for x in (of_drawn, drawn))
        closer = (of_drawn < match) | ((of_drawn == match) & (drawn < position))
        first[begin:end] = closer.sum(axis=2) + 1
    return cmc_curve(first.ravel(), min(max_rank, len(identities)))


# --- torchreid's signature -----------------------------------------------------------------------------------------------


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
    """CMC curve and mAP of a distance matrix: a drop-in for `torchreid.metrics.evaluate_rank`.

    Args:
        distmat: (Nq, Ng) distances, compared in float32 as torchreid's compiled form does.
        q_pids, g_pids, q_camids, g_camids: identities and cameras.
        max_rank: length of the curve; the gallery's size where that is smaller.
        use_metric_cuhk03: the CUHK03 single-shot curve, drawn 10 times for each query from `seed`.
        use_cython: accepted for torchreid's sake; there is one implementation.

    Returns:
        (cmc, mAP): (max_rank,) float32 and a fraction.

    Raises:
        UserError: labels of another length, NaN distances, no query with a true match.

    Example:
        >>> evaluate_rank(np.array([[0.1, 0.9]]), np.array([7]), np.array([7, 8]), np.array([0]), np.array([1, 1]))[1]
        1.0
    """
    distmat = np.asarray(distmat)
    if distmat.ndim != 2 or not distmat.size:
        raise UserError(f"distmat has shape {distmat.shape}; give a matrix of shape (queries, gallery)")
    for first, end in ranges(len(distmat), CPU_BLOCK[0]):
        bad = np.isnan(distmat[first:end]).any(axis=1)
        if bad.any():
            raise UserError(f"distmat holds NaN, first in row {first + int(bad.argmax())}; mend the features behind it")
    check_max_rank(max_rank)
    num_queries, num_gallery = distmat.shape
    labels = Labels(
        as_labels(q_pids, "q_pids", num_queries),
        as_labels(q_camids, "q_camids", num_queries),
        as_labels(g_pids, "g_pids", num_gallery),
        as_labels(g_camids, "g_camids", num_gallery),
    )
    distances = MatrixDistances(distmat)
    world = OneProcess()
    ranked = rank_queries(distances, labels, 0, world)
    curve = single_shot_cmc(distances, labels, max_rank, 10, seed, world) if use_metric_cuhk03 else None
    result = summarise(ranked, num_gallery, max_rank, curve)
    return result.cmc.astype(np.float32), result.mAP


def check_max_rank(max_rank: int) -> None:
    """Raise a UserError for a curve without points."""
    if max_rank < 1:
        raise UserError(f"max_rank is {max_rank}; give at least 1")


# --- ROC ------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RocCurve:
    """Verification of pairs: a pair is accepted when its distance is at most the threshold.

    Attributes:
        fpr: (F,) the asked false-accept rates.
        tpr: (F,) true-accept rate at the threshold.
        thresholds: (F,) the largest distance at which no more than that share of false pairs is accepted.
        achieved_fpr: (F,) the share of false pairs accepted at the threshold; below `fpr` because of ties and steps.
        num_positive, num_negative: true and false pairs compared.
    """

    fpr: np.ndarray
    tpr: np.ndarray
    thresholds: np.ndarray
    achieved_fpr: np.ndarray
    num_positive: int
    num_negative: int


class _Histogram:
    """Counts false pairs by 16 bits of their ordered distance: the high half, or the low half below one high half."""

    def __init__(self, labels: Labels, high: int | None = None):
        self.labels, self.high = labels, high
        self.counts = np.zeros(1 << 16, dtype=np.int64)

    def add(self, row: int, column: int, block: torch.Tensor) -> None:
        height, width = block.shape
        q_pids = torch.from_numpy(self.labels.q_pids[row : row + height]).to(block.device)
        g_pids = torch.from_numpy(self.labels.g_pids[column : column + width]).to(block.device)
        values = ordered(block)[q_pids[:, None] != g_pids[None, :]]
        if self.high is not None:
            values = values[(values >> 16) == self.high] & 0xFFFF
        else:
            values = values >> 16
        self.counts += torch.bincount(values, minlength=1 << 16).cpu().numpy()

    def merge(self, other: _Histogram) -> None:
        self.counts += other.counts


def roc_curve(
    distances: Distances, labels: Labels, fpr: np.ndarray, world: OneProcess, progress: Progress | None = None
) -> RocCurve:
    """The exact ROC curve at given rates in two or more passes: first the high bits of each threshold, then the low."""
    positive = np.sort(find_matches(distances, labels, world).distances)
    (coarse,) = scan(distances, lambda: [_Histogram(labels)], progress, "false pairs")
    counts = world.sum(coarse.counts)  # type: ignore[attr-defined]
    total = int(counts.sum())
    if not len(positive):
        raise no_match_error()
    if not total:
        raise UserError("there are no false pairs: queries and gallery hold one identity; give more to compare")
    below = np.concatenate([[0], np.cumsum(counts)])
    allowed = np.floor(fpr * total * (1 + 1e-12)).astype(np.int64)
    highs = np.searchsorted(below, allowed, "right") - 1  # the bin of the first false pair that must be refused
    wanted = sorted({int(high) for high in highs if high < 1 << 16})
    fine = (
        scan(distances, lambda: [_Histogram(labels, high) for high in wanted], progress, "thresholds") if wanted else []
    )
    low_counts = {high: world.sum(part.counts) for high, part in zip(wanted, fine, strict=True)}  # type: ignore[attr-defined]
    thresholds, achieved = [], []
    for count, high in zip(allowed, highs, strict=True):
        if high >= 1 << 16:  # every false pair may be accepted
            thresholds.append(np.inf)
            achieved.append(1.0)
            continue
        below_low = np.concatenate([[0], np.cumsum(low_counts[int(high)])]) + below[high]
        low = int(np.searchsorted(below_low, count, "right")) - 1
        refused = unordered(torch.tensor([(int(high) << 16) | low])).numpy()
        thresholds.append(float(np.nextafter(refused, np.float32(-np.inf))[0]))
        achieved.append(float(below_low[low]) / total)
    limits = np.array(thresholds)
    tpr = np.searchsorted(positive.astype(np.float64), limits, "right") / len(positive)
    return RocCurve(fpr, tpr, limits, np.array(achieved), len(positive), total)
