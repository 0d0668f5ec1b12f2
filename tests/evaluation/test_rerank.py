"""Sparse re-ranking equals the published dense code, with the same parameters, to 1e-5."""

import functools

import numpy as np
import pytest
import torch
import torchreid
from oracles import assert_result, clustered, distance_matrix, market1501

from torchreid_autoreid.errors import UserError
from torchreid_autoreid.evaluation import evaluate, k_reciprocal_distances, neighbours, pairwise, re_ranking, rerank
from torchreid_autoreid.evaluation.space import Space

PARAMETERS = [
    (20, 6, 0.3),
    (1, 1, 0.0),
    (2, 1, 0.5),
    (3, 2, 1.0),
    (5, 9, 0.3),
    (21, 6, 0.1),
    (7, 30, 0.9),
    (80, 80, 0.3),
]
QUERY, GALLERY = clustered(20, seed=0), clustered(90, seed=1)


@pytest.fixture(params=[1, 3], ids=["one worker", "three workers"])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def small_blocks(monkeypatch, threads):
    monkeypatch.setattr(pairwise, "CPU_BLOCK", (7, 64))
    monkeypatch.setattr(neighbours, "HALF_ROWS", 32)
    monkeypatch.setattr(neighbours, "PAIRS_AT_ONCE", 11)
    monkeypatch.setattr(rerank, "POSTINGS_AT_ONCE", 100)
    monkeypatch.setattr(rerank, "SHARED_AT_ONCE", 1000)


def torch_distances(a, b, metric):
    """torchreid's own distance matrix, in float32."""
    a, b = torch.from_numpy(a), torch.from_numpy(b)
    return torchreid.metrics.compute_distance_matrix(a, b, metric).numpy()


def matrices(query, gallery, metric):
    pairs = (query, gallery), (query, query), (gallery, gallery)
    return [torch_distances(a.features, b.features, metric) for a, b in pairs]


@functools.cache
def torchreids(metric, *parameters):
    """Its loops in Python take long."""
    return torchreid.utils.re_ranking(*matrices(QUERY, GALLERY, metric), *parameters)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize(("k1", "k2", "lambda_value"), PARAMETERS)
def test_from_features_equals_torchreid(metric, k1, k2, lambda_value):
    expected = torchreids(metric, k1, k2, lambda_value)
    ours = k_reciprocal_distances(QUERY.features, GALLERY.features, metric, k1, k2, lambda_value)
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("k1", "k2", "lambda_value"), [*PARAMETERS, (500, 500, 0.3)])
def test_from_matrices_equals_torchreid(k1, k2, lambda_value):
    given = matrices(QUERY, GALLERY, "euclidean")
    before = [matrix.copy() for matrix in given]
    expected = torchreids("euclidean", k1, k2, lambda_value)
    np.testing.assert_allclose(re_ranking(*given, k1, k2, lambda_value), expected, rtol=0, atol=1e-5)
    for matrix, copy in zip(given, before, strict=True):
        np.testing.assert_array_equal(matrix, copy)


def test_from_matrices_that_are_no_metric_equals_torchreid():
    """Random, asymmetric, negative, float64, tensors: whatever torchreid takes."""
    random = np.random.default_rng(0)
    q_g, q_q, g_g = random.normal(size=(20, 70)), random.normal(size=(20, 20)), random.normal(size=(70, 70))
    expected = torchreid.utils.re_ranking(q_g, q_q, g_g, 8, 4)
    np.testing.assert_allclose(re_ranking(q_g, q_q, g_g, 8, 4), expected, rtol=0, atol=1e-5)
    tensors = (torch.from_numpy(x) for x in (q_g, q_q, g_g))
    np.testing.assert_allclose(re_ranking(*tensors, 8, 4), expected, rtol=0, atol=1e-5)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_zhongs_definition_takes_euclidean_distances(metric):
    """The paper's code squares euclidean distances once; torchreid's, given those, does just that."""
    query, gallery = clustered(30, seed=0), clustered(130, seed=1)
    sides = [x.features for x in (query, gallery)]
    if metric == "cosine":
        sides = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in sides]
    q, g = sides
    roots = [np.sqrt(distance_matrix(a, b, "euclidean")) for a, b in ((q, g), (q, q), (g, g))]
    expected = torchreid.utils.re_ranking(*roots, 20, 6, 0.3)
    ours = k_reciprocal_distances(query.features, gallery.features, metric, definition="zhong")
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-5)
    torchreids = k_reciprocal_distances(query.features, gallery.features, metric)
    assert np.abs(ours - torchreids).max() > 0.01


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_evaluate_ranks_by_the_final_distances(metric):
    query, gallery = clustered(40, seed=0, spread=1.0), clustered(250, seed=1, spread=1.0)
    final = k_reciprocal_distances(query.features, gallery.features, metric)
    result = evaluate(query, gallery, metric=metric, rerank=True, topk=20)
    assert_result(result, market1501(final, query, gallery))
    assert result.mAP > evaluate(query, gallery, metric=metric).mAP
    rows = np.arange(len(query))[:, None]
    np.testing.assert_array_equal(result.topk_distances, final[rows, result.topk_indices])


@pytest.mark.usefixtures("threads")
def test_neighbours_are_the_exact_ones(monkeypatch):
    monkeypatch.setattr(pairwise, "CPU_BLOCK", (7, 40))
    monkeypatch.setattr(neighbours, "HALF_ROWS", 16)
    monkeypatch.setattr(neighbours, "OFFERS_AT_ONCE", 100)
    random = np.random.default_rng(0)
    items = random.integers(-2, 3, (211, 4)).astype(np.float32)  # exact distances, many ties
    collection = neighbours.Collection(items[:50], items[50:], Space("euclidean"), neighbours.OneProcess())
    distances = distance_matrix(items, items, "euclidean")
    for k in (1, 5, 39, 60, 211):
        near = neighbours.Items(collection, [torch.device("cpu")]).neighbourhood(k)
        order = np.argsort(distances, axis=1, kind="stable")[:, :k]
        np.testing.assert_array_equal(near.indices, order)
        np.testing.assert_array_equal(near.distances, np.take_along_axis(distances, order, 1))
        np.testing.assert_array_equal(near.farthest, distances.max(axis=1))


@pytest.mark.parametrize("scale", [1e-13, 1e13])
def test_the_scale_of_features_is_no_matter(scale):
    """Distances that float32 holds, whose squares it does not."""
    query, gallery = (x.features.astype(np.float64) for x in (clustered(30, seed=0), clustered(130, seed=1)))
    expected = k_reciprocal_distances(query, gallery, "euclidean")
    np.testing.assert_allclose(
        k_reciprocal_distances(query * scale, gallery * scale, "euclidean"), expected, rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("copies", [2, 40])
def test_copies_of_one_image_stay_finite_and_ordered_by_position(copies):
    """More equal vectors than k1: neighbours are the first of them; nothing is NaN."""
    features = np.repeat(np.random.default_rng(0).normal(size=(5, 8)), copies, axis=0).astype(np.float32)
    final = k_reciprocal_distances(features[::copies], features, k1=4, k2=2)
    assert np.isfinite(final).all()
    assert (final >= -1e-6).all()


def test_one_vector_for_all_is_finite():
    final = k_reciprocal_distances(np.ones((3, 4)), np.ones((9, 4)), k1=3, k2=2)
    assert np.isfinite(final).all()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"k1": 31}, "k1 is 31, larger than the gallery of 30"),
        ({"k2": 31}, "k2 is 31, larger than the gallery of 30"),
        ({"k1": 0}, "k1 is 0"),
        ({"k1": 5.5}, "k1 is 5.5"),
        ({"k2": 0}, "k2 is 0"),
        ({"lambda_value": 1.5}, "lambda_value is 1.5"),
        ({"definition": "mine"}, "unknown definition 'mine'; choose from torchreid, zhong"),
        ({"index": "HNSW8"}, "rerank compares every gallery item"),
    ],
)
def test_wrong_parameters_are_named(options, words):
    with pytest.raises(UserError, match=words):
        evaluate(clustered(9), clustered(30, seed=1), rerank=True, **options)


def test_matrices_that_do_not_fit_are_told():
    with pytest.raises(UserError, match=r"shapes \(2, 3\), \(2, 2\), \(2, 2\)"):
        re_ranking(np.ones((2, 3)), np.ones((2, 2)), np.ones((2, 2)))
    for value in (np.nan, np.inf):
        with pytest.raises(UserError, match="g_g_dist holds NaN or infinity"):
            re_ranking(np.ones((2, 3)), np.ones((2, 2)), np.full((3, 3), value))
