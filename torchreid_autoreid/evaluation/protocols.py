"""What counts: which gallery items a query passes over, vectors that stand for several, galleries drawn at random.

Sources: Market-1501: Zheng et al., ICCV 2015. LTCC: Qian et al., ACCV 2020. PRCC: Yang, Wu, Zheng, TPAMI 2021.
SYSU-MM01: Wu et al., ICCV 2017, and its evaluation code (github.com/wuancong/SYSU-MM01). VehicleID: Liu et al., CVPR
2016.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..errors import UserError, short
from .embeddings import LABELS, Embeddings, as_labels
from .metrics import cmc_curve
from .ranking import Labels
from .result import RetrievalResult, means
from .space import unit64

LEAVE_OUT = {"camera": "camids", "clothes": "clothids"}
POOLS = ("none", "mean", "max")
NOBODY = int(np.iinfo(np.int64).min)  # an identity that no gallery item has
INFRARED = (3, 6)
SYSU_GALLERY = {"sysu_all": (1, 2, 4, 5), "sysu_indoor": (1, 2)}
PROTOCOLS = ("market1501", *SYSU_GALLERY, "vehicleid")

Evaluation = Callable[..., RetrievalResult]


@dataclass(frozen=True)
class Rules:
    """Which gallery items a query passes over. The arguments are those of ``evaluate``."""

    leave_out: Sequence[str] | None = None
    junk_pids: Sequence[int | str] = ()
    distractor_pids: Sequence[int | str] = ()

    def __post_init__(self) -> None:
        if self.leave_out is not None and not _is_listed(self.leave_out):
            raise UserError(
                f"leave_out is {short(self.leave_out)}; give a list of names, such as ['camera', 'clothes']"
            )
        for name, pids in (("junk_pids", self.junk_pids), ("distractor_pids", self.distractor_pids)):
            if not _is_listed(pids):
                raise UserError(f"{name} is {short(pids)}; give a list of identities, such as [-1]")
        for name in self.leave_out or ():
            if name not in LEAVE_OUT:
                raise UserError(f"leave_out has {name!r}; choose from {', '.join(LEAVE_OUT)}")

    def junk(self, gallery: Embeddings) -> np.ndarray:
        """(Ng,) whether each item is passed over by all queries."""
        return np.isin(gallery.pids, _pids(self.junk_pids))

    def labels(self, query: Embeddings, gallery: Embeddings, first: int = 0) -> Labels:
        """What ranking needs to know of queries and this process's gallery, which starts at position ``first``."""
        names = self.leave_out
        if names is None:
            if query.knows("camids") != gallery.knows("camids"):
                side = "queries" if query.knows("camids") else "gallery"
                raise UserError(f"only the {side} have camera labels; give both, or leave_out=()")
            names = ("camera",) if query.knows("camids") else ()
        for name in names:
            if not (query.knows(LEAVE_OUT[name]) and gallery.knows(LEAVE_OUT[name])):
                raise UserError(f"leave_out has {name!r}, and the embeddings have no {LEAVE_OUT[name]}; give them")
        q_tags, g_tags = (
            tuple(getattr(side, LEAVE_OUT[name]) for name in dict.fromkeys(names)) for side in (query, gallery)
        )
        nobody = np.concatenate([_pids(self.junk_pids), _pids(self.distractor_pids)])
        q_pids = np.where(np.isin(query.pids, nobody), NOBODY, query.pids)
        ignored = self.junk(gallery) if len(self.junk_pids) else None
        return Labels(q_pids, q_tags, gallery.pids, g_tags, first, ignored)


def _is_listed(value: Any) -> bool:
    return not isinstance(value, str | bytes) and hasattr(value, "__len__") and np.ndim(value) == 1


def _pids(pids: Sequence[int | str]) -> np.ndarray:
    return as_labels(pids, "junk_pids and distractor_pids", len(pids)) if len(pids) else np.empty(0, np.int64)


# --- vectors that stand for several ----------------------------------------


def check_pool(name: str, how: str) -> None:
    """Raises a UserError for a way of pooling that is not known."""
    if how not in POOLS:
        raise UserError(f"{name} is {how!r}; choose from {', '.join(POOLS)}")


def pool_tracklets(embeddings: Embeddings, how: str, metric: str) -> Embeddings:
    """One vector for each tracklet: the mean (of unit vectors for cosine) or the largest value of each coordinate.

    Raises:
        UserError: a tracklet of several identities, cameras or clothes.

    Example:
        >>> frames = Embeddings(np.array([[1.0, 0.0], [3.0, 2.0], [5.0, 5.0]]), [7, 7, 8], tracklets=[0, 0, 1])
        >>> pool_tracklets(frames, "mean", "euclidean").features.tolist()
        [[2.0, 1.0], [5.0, 5.0]]
    """
    return _pool(embeddings, embeddings.tracklets, "tracklet", how, metric)


def pool_queries(query: Embeddings, how: str, metric: str) -> Embeddings:
    """One query for each identity and camera, as Market-1501's multi-query evaluation has it."""
    if not query.knows("camids"):
        raise UserError("multi_query makes one query of all of an identity and camera; give the camids")
    pairs = np.stack([query.pids, query.camids], axis=1)
    group = np.unique(pairs, axis=0, return_inverse=True)[1].reshape(-1)
    plain = Embeddings(query.features, query.pids, query.camids)  # clothes and tracklets may differ within
    return _pool(plain, group, "group", how, metric)


def _pool(embeddings: Embeddings, groups: np.ndarray, name: str, how: str, metric: str) -> Embeddings:
    _, starts, group = np.unique(groups, return_index=True, return_inverse=True)
    place = np.empty(len(starts), dtype=np.int64)
    place[np.argsort(starts, kind="stable")] = np.arange(len(starts))  # in order of first appearance
    group = place[group.reshape(-1)]
    starts = np.sort(starts)
    labels = {}
    for label in LABELS:
        values = getattr(embeddings, label)
        if len(values):
            labels[label] = values[starts]
            wrong = np.flatnonzero(labels[label][group] != values)
            if len(wrong):
                raise UserError(f"the {name} of row {wrong[0]} has several {label}; give one to each {name}")
    order = np.argsort(group, kind="stable")
    rows = embeddings.features[order].astype(np.float64)
    sizes = np.bincount(group)
    firsts = np.cumsum(sizes) - sizes
    if how == "max":
        return Embeddings(np.maximum.reduceat(rows, firsts).astype(embeddings.features.dtype), **labels)
    rows = unit64(rows) if metric == "cosine" else rows
    return Embeddings(np.add.reduceat(rows, firsts) / sizes[:, None], **labels)


# --- galleries drawn at random ----------------------------------------


def draw_protocol(
    protocol: str, once: Evaluation, query: Embeddings, gallery: Embeddings, draws: int, seed: int, max_rank: int
) -> RetrievalResult:
    """Means over random galleries; the arrays of single queries hold one draw after the other.

    Args:
        protocol: 'sysu_all' or 'sysu_indoor': queries of the infrared cameras 3 and 6 among one image of each identity
            and visible camera (1, 2, 4, 5; indoors 1, 2). Queries of camera 3 pass over camera 2, which is at the same
            place, and the CMC counts identities. Cameras are numbered as in the dataset.
            'vehicleid': of all images of both parts, one of each identity makes the gallery, the others are queries.
        once: ``evaluate`` with everything but query, gallery, rules, topk and max_rank.
    """
    draw = _draw_sysu if protocol in SYSU_GALLERY else _draw_vehicles
    return _mean(
        [draw(protocol, once, query, gallery, np.random.default_rng([seed, n]), max_rank) for n in range(draws)]
    )


def _draw_sysu(
    protocol: str, once: Evaluation, query: Embeddings, gallery: Embeddings, random: np.random.Generator, max_rank: int
) -> RetrievalResult:
    if not (query.knows("camids") and gallery.knows("camids")):
        raise UserError(f"protocol {protocol!r} goes by cameras; give the camids")
    infrared = np.flatnonzero(np.isin(query.camids, INFRARED))
    visible = np.flatnonzero(np.isin(gallery.camids, SYSU_GALLERY[protocol]))
    if not len(infrared) or not len(visible):
        raise UserError(
            f"protocol {protocol!r} needs queries of the cameras 3 and 6 and a gallery of {SYSU_GALLERY[protocol]}; "
            "number the cameras as the dataset does"
        )
    query = query.take(infrared)
    visible = random.permutation(visible)
    _, one = np.unique(np.stack([gallery.pids[visible], gallery.camids[visible]]), axis=1, return_index=True)
    drawn = gallery.take(np.sort(visible[one]))
    parts, ranks = [], []
    for camera in INFRARED:
        some = np.flatnonzero(query.camids == camera)
        there = drawn.take(np.flatnonzero(drawn.camids != 2)) if camera == 3 and (drawn.camids != 2).any() else drawn
        if not np.isin(query.pids[some], there.pids).any():
            continue
        result = once(query.take(some), there, Rules(()), topk=len(there), max_rank=max_rank)
        assert result.topk_indices is not None
        parts.append(result)
        ranks.append(_identity_ranks(there.pids[result.topk_indices], query.pids[some]))
    if not parts:
        raise UserError(f"no query has a true match in the gallery of protocol {protocol!r}; check pids and camids")
    first = np.concatenate(ranks)
    joined = _join(parts)
    cmc = cmc_curve(first[first > 0], min(max_rank, len(np.unique(drawn.pids))))
    return replace(joined, cmc=cmc, first_match=first, topk_indices=None, topk_distances=None)


def _identity_ranks(ranked: np.ndarray, pids: np.ndarray) -> np.ndarray:
    """(Nq,) rank of the query's identity among those of the (Nq, k) items as ranked, each counted once; 0 for none."""
    own = ranked == pids[:, None]
    stops = np.where(own.any(axis=1), own.argmax(axis=1) + 1, 0)
    return np.array([len(np.unique(row[:stop])) for row, stop in zip(ranked, stops, strict=True)])


def _draw_vehicles(
    protocol: str, once: Evaluation, query: Embeddings, gallery: Embeddings, random: np.random.Generator, max_rank: int
) -> RetrievalResult:
    features = np.concatenate([query.features, gallery.features])
    whole = Embeddings(features, np.concatenate([query.pids, gallery.pids]))
    order = random.permutation(len(whole))
    _, one = np.unique(whole.pids[order], return_index=True)
    chosen = np.zeros(len(whole), dtype=bool)
    chosen[order[one]] = True
    if chosen.all():
        raise UserError("protocol 'vehicleid' needs identities of at least two images; there are none")
    return once(whole.take(~chosen), whole.take(chosen), Rules(()), max_rank=max_rank)


def _join(parts: list[RetrievalResult]) -> RetrievalResult:
    """The figures of parts of the queries as one; the curve is the first part's."""
    per_query = {name: np.concatenate([part.per_query[name] for part in parts]) for name in parts[0].per_query}
    return replace(
        parts[0],
        figures=means(per_query),
        num_valid_queries=sum(part.num_valid_queries for part in parts),
        per_query=per_query,
        first_match=np.concatenate([part.first_match for part in parts]),
    )


def _mean(draws: list[RetrievalResult]) -> RetrievalResult:
    length = min(len(draw.cmc) for draw in draws)
    return replace(
        _join(draws),
        figures={name: float(np.mean([draw.figures[name] for draw in draws])) for name in draws[0].figures},
        cmc=np.mean([draw.cmc[:length] for draw in draws], axis=0),
    )
