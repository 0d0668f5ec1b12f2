"""Approximate neighbours: exact where the index finds all, and their recall where it does not."""

import numpy as np
import pytest
import torch
from oracles import clustered, distance_matrix

from torchreid_autoreid.errors import UserError
from torchreid_autoreid.evaluation import NeighbourIndex, approximate, cluster, evaluate
from torchreid_autoreid.evaluation.neighbours import Collection, Items
from torchreid_autoreid.evaluation.space import Space
from torchreid_autoreid.parallel.launch import OneProcess

QUERY, GALLERY = clustered(60, d=16), clustered(440, seed=1, d=16)
FEATURES = np.concatenate([QUERY.features, GALLERY.features])


def collection(metric):
    return Collection(QUERY.features, GALLERY.features, Space(metric), OneProcess())


def brute_force(k):
    return np.argsort(distance_matrix(FEATURES, FEATURES, "euclidean"), axis=1, kind="stable")[:, :k]


@pytest.fixture(autouse=True)
def pieces(monkeypatch):
    """Several of all that is done piece by piece."""
    monkeypatch.setattr(approximate, "ROWS_AT_ONCE", 130)
    monkeypatch.setattr(approximate, "PAIRS_AT_ONCE", 300)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("factory", ["Flat", "IVF8,Flat", "IVF8,SQ8"])
def test_an_index_that_finds_all_gives_the_exact_neighbourhood(metric, factory):
    index = NeighbourIndex(factory, "nprobe=8" if "IVF" in factory else "")
    found = index.neighbourhood(collection(metric), 12)
    exact = Items(collection(metric), [torch.device("cpu")]).neighbourhood(12)
    np.testing.assert_allclose(found.farthest, exact.farthest, rtol=1e-5)  # of 500 items, all are looked at
    if factory.endswith("Flat"):
        np.testing.assert_array_equal(found.indices, exact.indices)
        np.testing.assert_allclose(found.distances, exact.distances, rtol=1e-5, atol=5e-5)
        assert index.recall == 1
    else:  # codes misplace neighbours, and their distances are exact all the same
        distances = np.take_along_axis(distance_matrix(FEATURES, FEATURES, metric), found.indices, 1)
        np.testing.assert_allclose(found.distances, distances, rtol=1e-5, atol=5e-5)
        assert 0.9 < index.recall <= 1


@pytest.mark.parametrize(
    ("factory", "parameters"), [("IVF16,Flat", "nprobe=1"), ("HNSW4", "efSearch=4"), ("PQ2x4np", "")]
)
def test_the_recall_is_the_share_of_the_nearest_by_brute_force(factory, parameters):
    index = NeighbourIndex(factory, parameters, recall_sample=500)
    found = index.neighbourhood(collection("euclidean"), 12).indices
    expected = np.mean([len(set(a) & set(b)) / 12 for a, b in zip(found, brute_force(12), strict=True)])
    assert index.recall == pytest.approx(expected, abs=1e-6)
    assert 0.1 < index.recall < 1
    unmeasured = NeighbourIndex(factory, parameters, recall_sample=0)
    np.testing.assert_array_equal(unmeasured.neighbourhood(collection("euclidean"), 12).indices, found)
    assert unmeasured.recall is None


def test_an_item_of_which_too_few_are_found_is_compared_with_all():
    """Most of the lists hold fewer than 12 items."""
    found = NeighbourIndex("IVF64,Flat", "nprobe=1").neighbourhood(collection("euclidean"), 12)
    assert (found.indices >= 0).all()
    assert (found.indices == brute_force(12)).all(axis=1).sum() > 100


def test_the_farthest_of_a_sample_is_no_nearer_than_a_neighbour(monkeypatch):
    monkeypatch.setattr(approximate, "FAR_ITEMS", 2)
    found = NeighbourIndex("Flat").neighbourhood(collection("euclidean"), 400)
    some = distance_matrix(FEATURES, FEATURES[[0, 499]], "euclidean").max(axis=1)
    np.testing.assert_allclose(found.farthest, np.maximum(some, found.distances[:, -1]), rtol=1e-5)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_re_ranking_and_clusters_by_an_index_that_finds_all(metric):
    index = NeighbourIndex("IVF8,Flat", "nprobe=8")
    exact = evaluate(QUERY, GALLERY, metric, rerank=True)
    result = evaluate(QUERY, GALLERY, metric, rerank=True, neighbours=index)
    np.testing.assert_allclose(result.average_precision, exact.average_precision, atol=1e-6)
    assert (exact.neighbours, exact.neighbour_recall) == ("Flat", None)
    assert (result.neighbours, result.neighbour_recall) == ("IVF8,Flat", 1.0)
    assert "IVF8,Flat (approximate)" in str(result)
    assert "approximate" not in str(exact)
    assert result.to_dict()["neighbour_recall"] == 1
    np.testing.assert_array_equal(cluster(FEATURES, metric=metric, neighbours=index), cluster(FEATURES, metric=metric))


def test_progress_reaches_the_end():
    seen = []
    cluster(FEATURES, neighbours=NeighbourIndex("HNSW8"), progress=lambda *step: seen.append(step))
    assert ("neighbours", 500, 500) in seen


MISTAKES = {
    "no factory string": ({"neighbours": NeighbourIndex("Best")}, "faiss makes no index of 16 dimensions from 'Best'"),
    "more lists than items": ({"neighbours": NeighbourIndex("IVF5000,Flat")}, "gallery of 500 is too small"),
    "parameters of another": ({"neighbours": NeighbourIndex("HNSW8", "nprobe=3")}, "does not take the search param"),
    "a graph too": ({"neighbours": NeighbourIndex("HNSW8"), "graph": "g"}, "graph g is of exact neighbours"),
    "nothing re-ranked": ({"neighbours": NeighbourIndex("HNSW8"), "rerank": False}, "are of re-ranking"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_told(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options, words = MISTAKES[name]
    with pytest.raises(UserError, match=words) as told:
        evaluate(QUERY, GALLERY, **{"rerank": True} | options)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("options", [{"recall_sample": -1}, {"recall_sample": 1.5}, {"seed": -3}])
def test_bad_samples_and_seeds_are_told(options):
    (name,) = options
    with pytest.raises(UserError, match=name):
        NeighbourIndex("Flat", **options)
