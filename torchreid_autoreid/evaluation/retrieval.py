"""One call from embeddings to figures."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from ..errors import UserError, short
from ..parallel.launch import processes
from .approximate import NeighbourIndex, check_neighbours
from .distances import check_metric, find_devices, full_precision
from .embeddings import Embeddings, as_array, check_count, check_dimensions, check_sides
from .expansion import Expansion
from .index import RetrievalIndex
from .metrics import (
    RocCurve,
    join_ranked,
    rank_queries,
    rank_retrieved,
    roc_curve,
    single_shot_ranks,
    summarise,
)
from .pairwise import Distances, FeatureDistances, Progress, scan
from .protocols import PROTOCOLS, Rules, check_pool, draw_protocol, pool_queries, pool_tracklets
from .ranking import Nearest, some_true_pairs
from .rerank import Reranking, feature_parts
from .result import RetrievalResult
from .space import Space, choose_space


class _Setting:
    """What every evaluation of a query and a gallery needs to know, checked."""

    def __init__(
        self,
        query: Embeddings,
        gallery: Embeddings,
        metric: str,
        device: str,
        distributed: bool,
        rules: Rules,
    ):
        check_metric(metric)
        check_sides(query, gallery)
        check_dimensions(query.dimension, gallery.dimension)
        self.metric = metric
        self.devices = find_devices(device, distributed)
        self.device = str(self.devices[0]) if distributed else device
        self.world = processes(distributed)
        sizes = [int(size) for size in self.world.concatenate(np.array([len(gallery)]))]
        self.num_gallery = sum(sizes)
        self.labels = rules.labels(query, gallery, first=sum(sizes[: self.world.rank]))

    def space(self, query: np.ndarray, gallery: np.ndarray) -> Space:
        """How these features are compared."""

        def near(_: Space) -> tuple[np.ndarray, np.ndarray]:
            return some_true_pairs(self.labels, self.world)

        return choose_space(query, gallery, self.metric, self.world, self.labels.first, near)


def evaluate(
    query: Embeddings,
    gallery: Embeddings,
    metric: str = "cosine",
    rerank: bool = False,
    k1: int = 20,
    k2: int = 6,
    lambda_value: float = 0.3,
    query_expansion: int = 0,
    index: str | RetrievalIndex = "Flat",
    max_rank: int = 50,
    device: str = "cpu",
    *,
    definition: str = "torchreid",
    query_expansion_alpha: float = 0.0,
    database_augmentation: int = 0,
    use_metric_cuhk03: bool = False,
    cuhk03_repeats: int = 10,
    seed: int = 0,
    topk: int = 0,
    search_parameters: str = "",
    num_retrieved: int = 1000,
    recall_sample: int = 100,
    leave_out: Sequence[str] | None = None,
    junk_pids: Sequence[int | str] = (),
    distractor_pids: Sequence[int | str] = (),
    rerank_junk: bool = True,
    pool: str = "none",
    multi_query: str = "none",
    protocol: str = "market1501",
    draws: int = 10,
    graph: str | None = None,
    neighbours: NeighbourIndex | None = None,
    distributed: bool = False,
    progress: Progress | None = None,
) -> RetrievalResult:
    """Retrieval figures by the Market-1501 protocol, exact at any size in bounded memory.

    Gallery items of the query's own identity and camera are removed; a query with no true match left is not counted;
    AP is the mean of the precision at each true match; ties are broken by gallery position.

    Args:
        query, gallery: embeddings of the same dimension. ``gallery.features`` may be a ``numpy.memmap``.
        metric: 'cosine' (1 - cosine similarity) or 'euclidean' (the squared distance, as in torchreid).
        rerank: k-reciprocal re-ranking (Zhong et al., CVPR 2017) with k1, k2 and lambda_value.
        query_expansion: number of nearest gallery items averaged into each query; 0 is none.
        index: 'Flat' is exact; any other faiss factory string, or a ``RetrievalIndex`` of the gallery, is approximate:
            the result says so, its figures are those on what was retrieved, and ``recall`` compares a sample with exact
            search.
        max_rank: length of the CMC curve.
        device: 'cpu' or 'cuda' (all GPUs; with ``distributed``, the process's current one).
        definition: 'torchreid' squares the distances once more than the paper; 'zhong' is the paper's own. See
            ``k_reciprocal_distances``.
        query_expansion_alpha: 0 averages; greater than 0 weights each neighbour by similarity ** alpha (alpha-QE).
        database_augmentation: number of nearest gallery items averaged into each gallery item; 0 is none.
        use_metric_cuhk03: the CUHK03 single-shot CMC: one image of each gallery identity drawn at random,
            ``cuhk03_repeats`` times for each query, from ``seed``.
        topk: how many nearest gallery items per query to return in the result.
        search_parameters: for an approximate index, as faiss names them: 'nprobe=32', 'efSearch=128'. Without them, an
            inverted file visits 16 of its lists; the rest is faiss's default.
        num_retrieved: how many items an approximate index returns per query.
        recall_sample: number of queries on which an approximate index is compared with exact search.
        leave_out: which gallery items of a query's own identity are left out: those of its 'camera', of its 'clothes'
            (LTCC, PRCC: both), or none, (). By default those of its camera, where cameras are known.
        junk_pids: identities of gallery items that count neither as right nor as wrong (-1 in Market-1501).
        distractor_pids: identities that nobody has (0 in Market-1501): always wrong, and no queries.
        rerank_junk: whether junk takes part in re-ranking as a neighbour.
        pool: 'mean' or 'max' makes one vector of each tracklet, of queries and gallery.
        multi_query: 'mean' or 'max' makes one query of all queries of an identity and camera.
        protocol: 'market1501'; 'sysu_all' or 'sysu_indoor' (SYSU-MM01), 'vehicleid': see ``protocols``.
        draws: how many random galleries those two are averaged over, from ``seed``.
        graph: a file for the nearest neighbours that re-ranking starts from: a search that was stopped goes on from it,
            bit for bit, and a whole graph is used again, by other k1, k2, lambda_value and by ``cluster`` of the same
            features too. In one process on the CPU.
        neighbours: an index to find these neighbours by, not all of them; the result names it, and the recall. In one
            process on the CPU.
        distributed: ``gallery`` is this process's shard (the whole gallery is the shards in rank order), ``query`` is
            the same in every process; ``torch.distributed`` must be initialised. All processes get the same figures,
            and positions in the whole gallery.
        progress: called as progress(what is being done, pieces done, pieces in all); draw a bar with it.

    Raises:
        UserError: wrong options, different dimensions, no query with a true match, k1 larger than the gallery.

    Example:
        >>> query = Embeddings(np.array([[1.0, 0.1], [0.1, 1.0]]), pids=[0, 1], camids=[0, 0])
        >>> gallery = Embeddings(np.array([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]]), pids=[0, 0, 1], camids=[1, 1, 1])
        >>> result = evaluate(query, gallery, topk=2)
        >>> result.mAP, result.rank1, result.topk_indices.tolist()
        (1.0, 1.0, [[0, 1], [2, 1]])
    """
    for name, value, least in (
        ("max_rank", max_rank, 1),
        ("cuhk03_repeats", cuhk03_repeats, 1),
        ("seed", seed, 0),
        ("topk", topk, 0),
        ("num_retrieved", num_retrieved, 1),
        ("draws", draws, 1),
        ("recall_sample", recall_sample, 0),
    ):
        check_count(name, value, least)
    if graph is not None and (not rerank or protocol != "market1501"):
        raise UserError(f"graph {graph} is of re-ranking, on one gallery; leave it out")
    check_neighbours(neighbours)
    if neighbours is not None and (not rerank or protocol != "market1501"):
        raise UserError(f"the neighbours of {neighbours.factory!r} are of re-ranking, on one gallery; leave them out")
    expansion = Expansion(query_expansion, query_expansion_alpha, database_augmentation)
    reranking = Reranking(k1, k2, lambda_value, definition) if rerank else None
    given_rules = Rules(leave_out, junk_pids, distractor_pids)

    def once(
        query: Embeddings,
        gallery: Embeddings,
        rules: Rules = given_rules,
        topk: int = topk,
        max_rank: int = max_rank,
    ) -> RetrievalResult:
        return _evaluate(
            query,
            gallery,
            _Setting(query, gallery, metric, device, distributed, rules),
            expansion,
            reranking,
            index,
            search_parameters,
            num_retrieved,
            recall_sample,
            cuhk03_repeats if use_metric_cuhk03 else 0,
            seed,
            topk,
            max_rank,
            progress,
            graph,
            neighbours,
        )

    check_sides(query, gallery)
    query, gallery = _pooled(query, gallery, pool, multi_query, metric, distributed)
    if protocol not in PROTOCOLS:
        raise UserError(f"unknown protocol {protocol!r}; choose from {', '.join(PROTOCOLS)}")
    if protocol != "market1501":
        if distributed or use_metric_cuhk03 or topk or leave_out is not None:
            raise UserError(
                f"protocol {protocol!r} draws galleries and has its own rules; leave out distributed, "
                "use_metric_cuhk03, topk and leave_out"
            )
        return draw_protocol(protocol, once, query, gallery, draws, seed, max_rank)
    if rerank and not rerank_junk and len(junk_pids):
        kept = np.flatnonzero(~given_rules.junk(gallery))
        if not len(kept):
            raise UserError(f"the gallery holds only junk, the identities {list(junk_pids)}; check its pids")
        result = once(query, gallery.take(kept))
        return result if result.topk_indices is None else _placed(result, kept, len(gallery), distributed)
    return once(query, gallery)


def _pooled(
    query: Embeddings, gallery: Embeddings, pool: str, multi_query: str, metric: str, distributed: bool
) -> tuple[Embeddings, Embeddings]:
    check_metric(metric)
    check_pool("pool", pool)
    check_pool("multi_query", multi_query)
    if pool != "none":
        known = [side.knows("tracklets") for side in (query, gallery)]
        if not any(known):
            raise UserError(
                f"pool={pool!r} makes one vector of each tracklet; give the tracklets (in a file: query_tracklets, "
                "gallery_tracklets)"
            )
        if known[1] and distributed:
            raise UserError("a tracklet may lie in two processes; pool the gallery before it is shared out")
        query, gallery = (
            pool_tracklets(side, pool, metric) if side.knows("tracklets") else side for side in (query, gallery)
        )
    if multi_query != "none":
        query = pool_queries(query, multi_query, metric)
    return query, gallery


def _placed(result: RetrievalResult, kept: np.ndarray, size: int, distributed: bool) -> RetrievalResult:
    """The result with positions in the gallery as it was given, of which only some items were kept."""
    world = processes(distributed)
    sizes = world.concatenate(np.array([size]))
    places = world.concatenate(kept + sizes[: world.rank].sum())
    assert result.topk_indices is not None
    return replace(result, topk_indices=np.where(result.topk_indices < 0, -1, places[result.topk_indices]))


def _evaluate(
    query: Embeddings,
    gallery: Embeddings,
    setting: _Setting,
    expansion: Expansion,
    reranking: Reranking | None,
    index: str | RetrievalIndex,
    search_parameters: str,
    num_retrieved: int,
    recall_sample: int,
    cuhk03_repeats: int,
    seed: int,
    topk: int,
    max_rank: int,
    progress: Progress | None,
    graph: str | None,
    neighbours: NeighbourIndex | None,
) -> RetrievalResult:
    """The figures of one query set and gallery; ``cuhk03_repeats`` of 0 is the ordinary CMC."""
    world, devices = setting.world, setting.devices
    if index != "Flat" and (reranking is not None or cuhk03_repeats):
        option = "rerank" if reranking is not None else "use_metric_cuhk03"
        raise UserError(f"{option} compares every gallery item; use index='Flat' with it, not {index!r}")
    if index == "Flat" and search_parameters:
        raise UserError(f"search_parameters {search_parameters!r} are of an approximate index; index='Flat' has none")
    if isinstance(index, RetrievalIndex) and expansion.gallery:
        raise UserError("database_augmentation changes the gallery, the index given holds it as it was; leave one out")
    labels, q_features, g_features = setting.labels, query.features, gallery.features
    with full_precision():
        space = setting.space(q_features, g_features)
        q_expanded, g_expanded = expansion.apply(q_features, g_features, space, devices, world, progress)
        if q_expanded is not q_features or g_expanded is not g_features:
            q_features, g_features = q_expanded, g_expanded
            space = setting.space(q_features, g_features)
        if index != "Flat":
            retrieval = _ApproximateSearch(index, search_parameters, g_features, space, setting, seed, progress)
            return retrieval.evaluate(q_features, max_rank, topk, num_retrieved, recall_sample)
        parts: Iterable[tuple[int, int, Distances]]
        ranges = labels.parts(world)
        if reranking is not None:
            ends = [end for _, end in ranges]
            sides = q_features, g_features
            parts = feature_parts(*sides, space, reranking, devices, world, ends, progress, graph, neighbours)
        else:
            parts = (
                (first, end, FeatureDistances(q_features[first:end], g_features, space, devices))
                for first, end in ranges
            )
        ranked, shots = [], []
        for first, end, distances in parts:
            some = labels.of_queries(slice(first, end))
            ranked.append(rank_queries(distances, some, min(topk, setting.num_gallery), world, progress))
            if cuhk03_repeats:
                shots.append(single_shot_ranks(distances, some, cuhk03_repeats, seed, first, world))
            del distances  # before the next part is made
    num_candidates = len(np.unique(world.concatenate(gallery.pids))) if cuhk03_repeats else setting.num_gallery
    result = summarise(join_ranked(ranked), num_candidates, max_rank, np.concatenate(shots) if shots else None)
    if neighbours is None:
        return result
    return replace(result, neighbours=neighbours.factory, neighbour_recall=neighbours.recall)


class _ApproximateSearch:
    """An index of this process's gallery, and the figures on what it finds."""

    def __init__(
        self,
        index: str | RetrievalIndex,
        parameters: str,
        gallery: np.ndarray,
        space: Space,
        setting: _Setting,
        seed: int,
        progress: Progress | None,
    ):
        self.gallery, self.space, self.setting, self.seed, self.progress = gallery, space, setting, seed, progress
        if isinstance(index, RetrievalIndex):
            if len(index) != len(gallery) or index.dimension != gallery.shape[1] or index.metric != setting.metric:
                raise UserError(
                    f"the index holds {len(index)} vectors of {index.dimension} dimensions for {index.metric!r}, "
                    f"the gallery {len(gallery)} of {gallery.shape[1]} for {setting.metric!r}; build it anew"
                )
            self.index = index
        else:
            self.index = RetrievalIndex.build(gallery, index, setting.metric, setting.device, seed, progress)
        if parameters:
            self.index.set_parameters(parameters)
        elif not isinstance(index, RetrievalIndex):
            self.index.visit_more_lists()

    def evaluate(
        self, query: np.ndarray, max_rank: int, topk: int, num_retrieved: int, recall_sample: int
    ) -> RetrievalResult:
        """Figures on the ``num_retrieved`` items found for each query."""
        k = min(int(num_retrieved), self.setting.num_gallery)
        found = self._search(query, k)
        ranked = rank_retrieved(*found.result(), self.setting.labels, topk, self.setting.world)
        result = summarise(ranked, self.setting.num_gallery, max_rank)
        recall = self._recall(query, found, recall_sample)
        return replace(result, exact=False, index=self.index.factory, num_retrieved=k, recall=recall)

    def _search(self, query: np.ndarray, k: int) -> Nearest:
        """The k nearest that the indexes of all processes find."""
        first = self.setting.labels.first
        positions, distances = self.index.search(query, min(k, len(self.gallery)), self.progress)
        nearest = Nearest(len(query), k, first)
        nearest.offer(positions, distances)
        nearest.merge_processes(self.setting.world)
        return nearest

    def _recall(self, query: np.ndarray, found: Nearest, sample: int) -> dict[int, float]:
        """Share of the exact k nearest that are among the k found, by k, over a sample of queries."""
        if not sample:
            return {}
        chosen = np.sort(np.random.default_rng(self.seed).permutation(len(query))[:sample])
        distances = FeatureDistances(query[chosen], self.gallery, self.space, self.setting.devices)
        depths = [k for k in (1, 10, 100) if k <= found.k]
        exact = Nearest(len(chosen), depths[-1], self.setting.labels.first)
        scan(distances, [exact], self.progress, "exact sample")
        exact.merge_processes(self.setting.world)
        truth, approximate = exact.complete()[0], found.result()[0][chosen]
        return {k: float((truth[:, :k, None] == approximate[:, None, :k]).any(axis=2).mean()) for k in depths}


def roc(
    query: Embeddings,
    gallery: Embeddings,
    fpr: Sequence[float] = (1e-4, 1e-3, 1e-2),
    metric: str = "cosine",
    device: str = "cpu",
    *,
    leave_out: Sequence[str] | None = None,
    distributed: bool = False,
    progress: Progress | None = None,
) -> RocCurve:
    """True-accept rates and distance thresholds at given false-accept rates, exact, without holding the distances.

    All pairs of query and gallery item are compared but those that are left out.

    Args:
        query, gallery, metric, device, leave_out, distributed, progress: as in ``evaluate``.
        fpr: false-accept rates, 0 .. 1.

    Raises:
        UserError: wrong options, different dimensions, no true or no false pair.

    Example:
        >>> x = np.eye(4, dtype=np.float32)
        >>> curve = roc(Embeddings(x, [0, 1, 2, 3], [0] * 4), Embeddings(x, [0, 1, 2, 3], [1] * 4), fpr=[0.1])
        >>> curve.tpr.tolist()
        [1.0]
    """
    rates = as_array(fpr, "fpr").reshape(-1)
    if rates.dtype.kind not in "fiu":
        raise UserError(f"fpr is {short(fpr)}; give false-accept rates from 0 to 1")
    rates = rates.astype(np.float64)
    if not len(rates) or not ((rates >= 0) & (rates <= 1)).all():
        raise UserError(f"fpr is {rates.tolist()}; give false-accept rates from 0 to 1")
    setting = _Setting(query, gallery, metric, device, distributed, Rules(leave_out))
    with full_precision():
        space = setting.space(query.features, gallery.features)
        distances = FeatureDistances(query.features, gallery.features, space, setting.devices)
        return roc_curve(distances, setting.labels, rates, setting.world, progress)
