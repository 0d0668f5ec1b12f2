"""faiss indexes: figures on what was retrieved, recall against exact search, files."""

import numpy as np
import pytest
import torch
from oracles import assert_result, clustered, distance_matrix

from torchreid_autoreid.errors import UserError
from torchreid_autoreid.evaluation import Embeddings, RetrievalIndex, evaluate, index

QUERY, GALLERY = clustered(40, seed=0, spread=1.0), clustered(600, seed=1, spread=1.0)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("factory", ["HNSW16", "IVF4,Flat", "SQ8", "PCA4,IVF2,Flat", "OPQ4,IVF4,PQ4x4np", "IDMap,Flat"])
def test_any_factory_string_searches(monkeypatch, metric, factory):
    monkeypatch.setattr(index, "ADDED_AT_ONCE", 100)
    monkeypatch.setattr(index, "QUERIES_AT_ONCE", 7)
    result = evaluate(QUERY, GALLERY, metric=metric, index=factory, num_retrieved=100, topk=10)
    assert not result.exact
    assert result.index == factory
    assert result.num_retrieved == 100
    assert set(result.recall) == {1, 10, 100}
    assert 0.1 < result.recall[100] <= 1
    assert result.num_valid_queries == evaluate(QUERY, GALLERY, metric=metric).num_valid_queries
    figures = result.to_dict()
    assert "mAP" not in figures
    assert figures["mAP_on_retrieved"] == result.mAP
    assert result.topk_indices.shape == (40, 10)
    assert (np.diff(result.topk_distances) >= 0).all()


@pytest.mark.parametrize("factory", ["LSH", "IMI2x4,Flat", "HNSW16,PQ4x6np"])
def test_what_faiss_has_for_euclidean_distances_only_serves_cosine_too(tmp_path, factory):
    built = RetrievalIndex.build(GALLERY.features, factory)
    positions, distances = built.search(QUERY.features, 20)
    expected = distance_matrix(QUERY.features, GALLERY.features, "cosine")
    found = np.take_along_axis(expected, np.maximum(positions, 0), 1)[positions >= 0]
    assert found.mean() < 0.5 * expected.mean()  # near items, not far ones
    if factory != "LSH":  # that one compares by other distances
        np.testing.assert_allclose(distances[positions >= 0], found, atol=1e-5 if "Flat" in factory else 0.3)
    with pytest.raises(UserError, match="metric='euclidean'"):
        built.save(tmp_path / "a.index")
    assert not (tmp_path / "a.index").exists()


def test_search_parameters_are_kept_in_the_file(tmp_path):
    built = RetrievalIndex.build(GALLERY.features, "IVF4,Flat")
    built.visit_more_lists()
    built.save(tmp_path / "a.index")
    assert RetrievalIndex.load(tmp_path / "a.index").index.nprobe == 4


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_an_index_that_finds_everything_gives_the_exact_figures(metric):
    result = evaluate(QUERY, GALLERY, metric=metric, index="IVF4,Flat", search_parameters="nprobe=4", topk=600)
    assert result.recall == {1: 1.0, 10: 1.0, 100: 1.0}
    exact = evaluate(QUERY, GALLERY, metric=metric, topk=600)
    assert_result(
        result,
        (exact.mAP, exact.cmc, exact.mINP, exact.average_precision, exact.first_match),
        tolerance=1e-6,
    )
    np.testing.assert_array_equal(result.topk_indices, exact.topk_indices)


def test_matches_that_were_not_retrieved_count_as_misses():
    """Everything beyond the first 30 items is as far as can be: brute force on the truncated lists."""
    result = evaluate(QUERY, GALLERY, index="IDMap,Flat", num_retrieved=30)
    distances = distance_matrix(QUERY.features, GALLERY.features, "cosine")
    order = np.argsort(distances, axis=1, kind="stable")
    expected, penalties = [], []
    for i in range(len(QUERY)):
        own = GALLERY.pids == QUERY.pids[i]
        junk = own & (GALLERY.camids == QUERY.camids[i])
        kept = [g for g in order[i, :30] if not junk[g]]
        hits = np.flatnonzero(own[kept]) + 1
        total = (own & ~junk).sum()
        expected.append((np.arange(1, len(hits) + 1) / hits).sum() / total)
        penalties.append(total / hits[-1] if len(hits) == total else 0)
    np.testing.assert_allclose(result.average_precision, expected, atol=1e-12)
    np.testing.assert_allclose(result.per_query["mINP"], penalties, atol=1e-12)
    assert result.mAP < evaluate(QUERY, GALLERY).mAP


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_distances_are_those_of_evaluate(metric):
    built = RetrievalIndex.build(GALLERY.features, "IDMap,Flat", metric)
    positions, distances = built.search(QUERY.features, 5)
    expected = distance_matrix(QUERY.features, GALLERY.features, metric)
    np.testing.assert_allclose(distances, np.take_along_axis(expected, positions, 1), atol=1e-4)
    np.testing.assert_array_equal(positions, np.argsort(expected, axis=1)[:, :5])


def test_save_and_load(tmp_path):
    built = RetrievalIndex.build(GALLERY.features, "IVF4,Flat")
    built.set_parameters("nprobe=3")
    built.save(tmp_path / "a.index")
    loaded = RetrievalIndex.load(tmp_path / "a.index", dimension=8)
    assert len(loaded) == 600
    for one, two in zip(built.search(QUERY.features, 9), loaded.search(QUERY.features, 9), strict=True):
        np.testing.assert_array_equal(one, two)
    by_index, by_string = (
        evaluate(QUERY, GALLERY, index=i, search_parameters="nprobe=3") for i in (loaded, "IVF4,Flat")
    )
    np.testing.assert_array_equal(by_index.average_precision, by_string.average_precision)


def test_wrong_files_are_told(tmp_path):
    RetrievalIndex.build(GALLERY.features, "IDMap,Flat").save(tmp_path / "a.index")
    with pytest.raises(UserError, match="has 8 dimensions, the features 16"):
        RetrievalIndex.load(tmp_path / "a.index", dimension=16)
    with pytest.raises(UserError, match="use metric='cosine'"):
        RetrievalIndex.load(tmp_path / "a.index", metric="euclidean")
    with pytest.raises(UserError, match="there is no index file"):
        RetrievalIndex.load(tmp_path / "b.index")
    (tmp_path / "c.index").write_bytes(b"something else altogether")
    with pytest.raises(UserError, match="is not a faiss index"):
        RetrievalIndex.load(tmp_path / "c.index")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"index": "Nonsense"}, "faiss makes no index of 8 dimensions from 'Nonsense'"),
        ({"index": ""}, "from ''"),
        ({"index": "PQ3"}, "'PQ3'"),
        ({"index": "IVF5000,Flat"}, "gallery of 600 is too small"),
        ({"index": "IVF4,Flat", "search_parameters": "speed=9"}, "does not take the search parameters 'speed=9'"),
        ({"index": "IVF4,Flat", "num_retrieved": 0}, "num_retrieved is 0"),
        ({"index": "IVF4,Flat", "use_metric_cuhk03": True}, "use index='Flat'"),
    ],
)
def test_wrong_options_are_named(options, words):
    with pytest.raises(UserError, match=words) as caught:
        evaluate(QUERY, GALLERY, **options)
    assert "\n" not in str(caught.value)
    assert ".cpp" not in str(caught.value)


def test_an_index_of_another_gallery_is_told():
    built = RetrievalIndex.build(GALLERY.features, "IDMap,Flat")
    other = Embeddings(GALLERY.features[:50], GALLERY.pids[:50], GALLERY.camids[:50])
    with pytest.raises(UserError, match="holds 600 vectors of 8 dimensions for 'cosine', the gallery 50"):
        evaluate(QUERY, other, index=built)
    with pytest.raises(UserError, match="the index has 8 dimensions, the queries 5"):
        built.search(np.ones((1, 5), np.float32), 1)
    with pytest.raises(UserError, match="database_augmentation changes the gallery"):
        evaluate(QUERY, GALLERY, index=built, database_augmentation=2)


def test_the_training_sample_is_seeded(monkeypatch):
    monkeypatch.setattr(index, "TRAINING_VECTORS", 200)
    monkeypatch.setattr(index, "TRAINING_PER_CLUSTER", 10)
    built = [RetrievalIndex.build(GALLERY.features, "IVF4,Flat", seed=s) for s in (1, 1, 2)]
    found = [i.search(QUERY.features, 50)[0] for i in built]
    np.testing.assert_array_equal(found[0], found[1])
    assert not np.array_equal(found[0], found[2])


def test_features_of_any_kind_are_searched():
    expected = RetrievalIndex.build(GALLERY.features, "IVF4,Flat").search(QUERY.features, 5)
    tensors = RetrievalIndex.build(torch.from_numpy(GALLERY.features), "IVF4,Flat")
    for queries in (torch.from_numpy(QUERY.features), QUERY.features.astype(np.float64), QUERY.features.tolist()):
        for one, two in zip(tensors.search(queries, 5), expected, strict=True):
            np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("queries", [np.ones(8, np.float32), torch.ones(8), np.ones((1, 1, 8), np.float32)])
def test_queries_that_are_no_matrix_are_told(queries):
    built = RetrievalIndex.build(GALLERY.features, "IDMap,Flat")
    with pytest.raises(UserError, match=r"features have shape \(.*give a matrix"):
        built.search(queries, 1)
    with pytest.raises(UserError, match="k is 0"):
        built.search(GALLERY.features, 0)
    with pytest.raises(UserError, match="NaN or infinity in 1 of 1 rows"):
        built.search(np.full((1, 8), np.inf), 1)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_a_table_larger_than_the_file_is_made_anew(tmp_path, metric):
    """Of IVF-PQ, lists x parts x 256 numbers, which no file holds; np leaves out a training that takes seconds."""
    vectors = np.random.default_rng(0).standard_normal((300, 8)).astype(np.float32)
    index = RetrievalIndex.build(vectors, "IVF32,PQ4np", metric)
    index.save(tmp_path / "a.index")
    loaded = RetrievalIndex.load(tmp_path / "a.index", metric=metric)
    for index_of in (index, loaded):
        index_of.set_parameters("nprobe=32")
    for one, other in zip(index.search(vectors[:20], 5), loaded.search(vectors[:20], 5), strict=True):
        np.testing.assert_array_equal(one, other)
    assert loaded.index.use_precomputed_table == index.index.use_precomputed_table
