"""One call from embeddings to figures."""

from __future__ import annotations

import numpy as np

from ..errors import UserError
from .blocks import FeatureDistances, Progress
from .distances import check_metric, find_devices, full_precision
from .embeddings import Embeddings
from .metrics import check_max_rank, rank_queries, single_shot_cmc, summarise
from .processes import processes
from .ranking import Labels
from .result import RetrievalResult


def evaluate(
    query: Embeddings,
    gallery: Embeddings,
    metric: str = "cosine",
    rerank: bool = False,
    k1: int = 20,
    k2: int = 6,
    lambda_value: float = 0.3,
    query_expansion: int = 0,
    index="Flat",
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
    num_retrieved: int = 1000,
    recall_sample: int = 100,
    distributed: bool = False,
    progress: Progress | None = None,
) -> RetrievalResult:
    """Retrieval figures by the Market-1501 protocol, exact at any size in bounded memory.

    Gallery items of the query's own identity and camera are removed; a query with no true match left is not counted;
    AP is the mean of the precision at each true match; ties are broken by gallery position.

    Args:
        query, gallery: embeddings of the same dimension. `gallery.features` may be a `numpy.memmap`.
        metric: 'cosine' (1 - cosine similarity) or 'euclidean' (the squared distance, as in torchreid).
        rerank: k-reciprocal re-ranking (Zhong et al., CVPR 2017) with k1, k2 and lambda_value.
        query_expansion: number of nearest gallery items averaged into each query; 0 is none.
        index: 'Flat' is exact; any other faiss factory string, or a `RetrievalIndex`, is approximate.
        max_rank: length of the CMC curve.
        device: 'cpu' or 'cuda' (all GPUs).
        definition: 'torchreid' squares the distances once more than the paper; 'zhong' is the paper's own. See
            `k_reciprocal_distances`.
        query_expansion_alpha: 0 averages; greater than 0 weights each neighbour by similarity ** alpha (alpha-QE).
        database_augmentation: number of nearest gallery items averaged into each gallery item; 0 is none.
        use_metric_cuhk03: the CUHK03 single-shot CMC: one image of each gallery identity drawn at random,
            `cuhk03_repeats` times for each query, from `seed`.
        topk: how many nearest gallery items per query to return in the result.
        num_retrieved: how many items an approximate index returns per query.
        recall_sample: number of queries on which an approximate index is compared with exact search.
        distributed: `gallery` is this process's shard (the whole gallery is the shards in rank order), `query` is the
            same in every process; `torch.distributed` must be initialised. All processes get the same figures.
        progress: called as progress(what is being done, pieces done, pieces in all); draw a bar with it.

    Raises:
        UserError: wrong options, different dimensions, no query with a true match, k1 larger than the gallery.
    """
    world = processes(distributed)
    check_metric(metric)
    check_max_rank(max_rank)
    if query.dimension != gallery.dimension:
        raise UserError(
            f"queries have {query.dimension} dimensions, the gallery {gallery.dimension}; use one model for both"
        )
    devices = find_devices(device)
    sizes = [int(size) for size in world.concatenate(np.array([len(gallery)]))]
    labels = Labels(query.pids, query.camids, gallery.pids, gallery.camids, sum(sizes[: world.rank]))
    with full_precision():
        distances = FeatureDistances(query.features, gallery.features, metric, devices)
        ranked = rank_queries(distances, labels, topk, world, progress)
        curve = None
        if use_metric_cuhk03:
            curve = single_shot_cmc(distances, labels, max_rank, cuhk03_repeats, seed, world)
    return summarise(ranked, sum(sizes), max_rank, curve)
