"""What each process of the tests of several processes does."""

import json
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
from oracles import clustered, tied

from torchreid_autoreid.evaluation import Embeddings, evaluate, pairwise, roc
from torchreid_autoreid.parallel.launch import leave_group


def columns_first(n, seed):
    """In Fortran's order, with copies under other identities: ties to the bit."""
    made = clustered(n, seed=seed)
    made.features[1::3] = clustered(n, seed=9).features[1::3]
    return Embeddings(np.asfortranarray(made.features), made.pids, made.camids)


def far(n, seed):
    """Doubles far from the origin, of which float32 keeps nothing."""
    made = clustered(n, seed=seed)
    return Embeddings(made.features.astype(np.float64) + 1e9, made.pids, made.camids)


CASES = {
    "cosine": (clustered, {"topk": 7}),
    "ties": (tied, {"metric": "euclidean", "topk": 7}),
    "rerank": (clustered, {"rerank": True, "topk": 7}),
    "rerank euclidean": (clustered, {"rerank": True, "metric": "euclidean", "k1": 9, "k2": 3}),
    "rerank ties": (tied, {"rerank": True, "metric": "euclidean", "definition": "zhong", "k1": 9}),
    "expansion": (clustered, {"query_expansion": 4, "query_expansion_alpha": 3.0, "database_augmentation": 3}),
    "cuhk03": (clustered, {"use_metric_cuhk03": True, "cuhk03_repeats": 3}),
    "columns first": (columns_first, {"topk": 7}),
    "columns first, reranked": (columns_first, {"rerank": True, "metric": "euclidean", "k1": 9, "topk": 7}),
    "far": (far, {"metric": "euclidean", "topk": 7}),
    "far, reranked": (far, {"metric": "euclidean", "rerank": True, "k1": 9, "topk": 7}),
    "far, expanded": (far, {"metric": "euclidean", "query_expansion": 2, "database_augmentation": 2, "topk": 7}),
    "index": (clustered, {"index": "IDMap,Flat", "num_retrieved": 50, "topk": 7}),
}


def data(make):
    return make(31, seed=0), make(203, seed=1)


def shard(gallery, rank, size):
    """Unequal consecutive parts; their order is the gallery's."""
    ends = [0, *np.cumsum([11 + 40 * i for i in range(size - 1)]).tolist(), len(gallery)]
    part = slice(ends[rank], ends[rank + 1])
    return Embeddings(gallery.features[part], gallery.pids[part], gallery.camids[part])


def summary(result):
    """Everything in a result, as JSON values."""
    arrays = ("average_precision", "first_match", "topk_indices", "topk_distances")
    values = {name: getattr(result, name) for name in arrays}
    return result.to_dict() | {name: None if x is None else x.tolist() for name, x in values.items()}


def work(rank, size, folder):
    """Evaluate every case on this process's shard and write what came out."""
    torch.set_num_threads(1)
    pairwise.CPU_BLOCK = (16, 40)
    torch.distributed.init_process_group(
        "gloo", f"file://{folder}/rendezvous{size}", timedelta(minutes=2), rank=rank, world_size=size
    )
    answers = {}
    for name, (make, options) in CASES.items():
        query, gallery = data(make)
        answers[name] = summary(evaluate(query, shard(gallery, rank, size), distributed=True, **options))
    query, gallery = data(tied)
    curve = roc(query, shard(gallery, rank, size), [0.01, 0.3], metric="euclidean", distributed=True)
    answers["roc"] = [curve.tpr.tolist(), curve.thresholds.tolist(), curve.num_positive, curve.num_negative]
    leave_group()
    Path(folder, f"{size}-{rank}.json").write_text(json.dumps(answers))
