"""Expanded features against the definitions, written as loops."""

import numpy as np
import pytest
from oracles import assert_result, clustered, distance_matrix, market1501

from torchreid_autoreid.errors import UserError
from torchreid_autoreid.evaluation import evaluate, pairwise


def unit(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def averaged(rows, gallery, k, alpha, metric, with_self):
    """Each row with its k nearest of the gallery; with `with_self`, the row is one of the gallery's own."""
    if metric == "cosine":
        rows, gallery = unit(rows), unit(gallery)
    distances = distance_matrix(rows, gallery, metric)
    out = []
    for row, near in zip(rows, distances, strict=True):
        order = np.argsort(near, kind="stable")[: k + 1 if with_self else k]
        weights = np.ones(len(order)) if not alpha else np.maximum(1 - near[order], 0) ** alpha
        total = (weights[:, None] * gallery[order]).sum(0) + (0 if with_self else row)
        out.append(total / (weights.sum() + (0 if with_self else 1)))
    return np.array(out)


@pytest.mark.parametrize(("metric", "alpha"), [("cosine", 0.0), ("cosine", 3.0), ("euclidean", 0.0)])
@pytest.mark.parametrize(("queries", "database"), [(4, 0), (0, 3), (4, 3)])
def test_agrees_with_the_definition(monkeypatch, metric, alpha, queries, database):
    monkeypatch.setattr(pairwise, "CPU_BLOCK", (7, 13))
    query, gallery = clustered(30, seed=0, spread=1.0), clustered(90, seed=1, spread=1.0)
    q, g = query.features.astype(np.float64), gallery.features.astype(np.float64)
    if database:
        g = averaged(g, g, database, alpha, metric, with_self=True)
    if queries:
        q = averaged(q, g, queries, alpha, metric, with_self=False)
    result = evaluate(
        query,
        gallery,
        metric=metric,
        query_expansion=queries,
        query_expansion_alpha=alpha,
        database_augmentation=database,
    )
    assert_result(result, market1501(distance_matrix(q, g, metric), query, gallery))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"query_expansion": -1}, "query_expansion is -1"),
        ({"query_expansion": 31}, "query_expansion is 31, but the gallery has only 30"),
        ({"database_augmentation": 30}, "database_augmentation is 30, but the gallery has only 29"),
        ({"query_expansion_alpha": 3.0}, "no neighbours are averaged"),
        ({"query_expansion": 2, "query_expansion_alpha": float("nan")}, "query_expansion_alpha is nan"),
        ({"query_expansion": 2, "query_expansion_alpha": -1.0}, "query_expansion_alpha is -1"),
        ({"query_expansion": 2, "query_expansion_alpha": 3.0, "metric": "euclidean"}, "use metric='cosine'"),
    ],
)
def test_wrong_options_are_named(options, words):
    with pytest.raises(UserError, match=words):
        evaluate(clustered(9), clustered(30, seed=1), **options)


@pytest.mark.parametrize(
    "options",
    [{"database_augmentation": 3}, {"query_expansion": 3}, {"query_expansion": 2, "database_augmentation": 3}],
)
def test_a_vector_of_zeros_stays_one(options):
    """It has no similarity to anything, so that all weights are 0."""
    query, gallery = clustered(20, seed=0), clustered(60, seed=1)
    query.features[3] = gallery.features[5] = 0
    result = evaluate(query, gallery, query_expansion_alpha=3.0, topk=60, **options)
    assert np.isfinite(result.mAP)
    row = result.topk_indices[7].tolist()
    assert result.topk_distances[7][row.index(5)] == 1
