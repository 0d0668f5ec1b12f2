"""mAP, CMC, mINP, CUHK03 and ROC against brute force."""

import itertools

import numpy as np
import pytest
import torch
import torchreid
from oracles import assert_result, clustered, distance_matrix, market1501, tied

from torchreid_autoreid.errors import UserError
from torchreid_autoreid.evaluation import Embeddings, blocks, evaluate, evaluate_rank, metrics, roc
from torchreid_autoreid.evaluation.ranking import Labels, Nearest, ordered, unordered
from torchreid_autoreid.parallel.launch import OneProcess


@pytest.fixture(params=[(256, 4096, 1), (7, 13, 1), (7, 13, 3)], ids=["one block", "many blocks", "three workers"])
def block_sizes(request, monkeypatch):
    *shape, threads = request.param
    monkeypatch.setattr(blocks, "CPU_BLOCK", tuple(shape))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    yield
    assert torch.get_num_threads() == threads
    torch.set_num_threads(before)


@pytest.mark.usefixtures("block_sizes")
@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("seed", range(3))
def test_agrees_with_brute_force(metric, seed):
    query, gallery = clustered(40, seed=seed), clustered(150, seed=seed + 10)
    result = evaluate(query, gallery, metric=metric)
    assert_result(result, market1501(distance_matrix(query.features, gallery.features, metric), query, gallery))


@pytest.mark.usefixtures("block_sizes")
@pytest.mark.parametrize("seed", range(5))
def test_ties_are_broken_by_gallery_position(seed):
    query, gallery = tied(30, seed=seed), tied(120, seed=seed + 10)
    distances = distance_matrix(query.features, gallery.features, "euclidean")
    assert len(np.unique(distances)) < 20
    assert_result(evaluate(query, gallery, metric="euclidean"), market1501(distances, query, gallery))


@pytest.mark.usefixtures("block_sizes")
@pytest.mark.parametrize("dimension", [1, 5, 256, 1000])
def test_a_collapsed_model_is_ranked_by_position(dimension):
    """Equal vectors get equal distances to the bit, whatever block they are in."""
    query, gallery = tied(20, seed=0), tied(90, seed=1)
    one = np.random.default_rng(0).normal(size=dimension).astype(np.float32)
    query = Embeddings(np.tile(one, (20, 1)), query.pids, query.camids)
    gallery = Embeddings(np.tile(one, (90, 1)), gallery.pids, gallery.camids)
    assert_result(evaluate(query, gallery), market1501(np.zeros((20, 90)), query, gallery))


@pytest.mark.usefixtures("block_sizes")
def test_nearest_items_and_their_order():
    query, gallery = tied(30, seed=3), tied(50, seed=4)
    result = evaluate(query, gallery, metric="euclidean", topk=48)
    distances = distance_matrix(query.features, gallery.features, "euclidean")
    for i in range(30):
        junk = (gallery.pids == query.pids[i]) & (gallery.camids == query.camids[i])
        order = np.argsort(distances[i], kind="stable")
        expected = order[~junk[order]][:48]
        np.testing.assert_array_equal(result.topk_indices[i][: len(expected)], expected)
        np.testing.assert_array_equal(result.topk_distances[i][: len(expected)], distances[i][expected])
        assert (result.topk_indices[i][len(expected) :] == -1).all()
        assert np.isinf(result.topk_distances[i][len(expected) :]).all()


@pytest.mark.parametrize("k", [1, 5, 40, 60])
def test_nearest_merges_what_blocks_show(k):
    matrix = np.random.default_rng(0).integers(0, 9, (20, 50)).astype(np.float32) - 4
    nearest = Nearest(20, k)
    for start in range(0, 50, 12):
        nearest.add(0, start, torch.from_numpy(matrix[:, start : start + 12].copy()))
    positions, distances = nearest.result()
    order = np.argsort(matrix, axis=1, kind="stable")[:, :k]
    np.testing.assert_array_equal(positions[:, : order.shape[1]], order)
    np.testing.assert_array_equal(distances[:, : order.shape[1]], np.take_along_axis(matrix, order, 1))
    assert (positions[:, order.shape[1] :] == -1).all()


def test_ordered_keeps_the_order_of_all_floats():
    values = torch.tensor([-np.inf, -3e38, -1.5, -1e-40, -0.0, 0.0, 1e-40, 1e-7, 1.0, 3e38, np.inf])
    keys = ordered(values)
    assert keys.diff().sign().tolist() == [1, 1, 1, 1, 0, 1, 1, 1, 1, 1]
    assert torch.equal(unordered(keys), values)
    assert int(keys.min()) >= 0
    assert int(keys.max()) < 1 << 32


@pytest.mark.parametrize("distmat_seed", range(3))
def test_evaluate_rank_agrees_with_torchreid(distmat_seed):
    query, gallery = clustered(40, seed=1), clustered(150, seed=2)
    distmat = np.random.default_rng(distmat_seed).normal(size=(40, 150)).astype(np.float32)
    arguments = distmat, query.pids, gallery.pids, query.camids, gallery.camids
    ours, theirs = evaluate_rank(*arguments), torchreid.metrics.evaluate_rank(*arguments, use_cython=False)
    np.testing.assert_allclose(ours[0], theirs[0], atol=1e-6)
    assert ours[0].dtype == theirs[0].dtype
    np.testing.assert_allclose(ours[1], theirs[1], atol=1e-12)


def test_evaluate_rank_takes_a_small_gallery():
    cmc, _ = evaluate_rank(np.array([[0.2, 0.1]]), np.array([1]), np.array([1, 2]), np.array([0]), np.array([1, 1]))
    np.testing.assert_allclose(cmc, [0, 1])


@pytest.mark.parametrize("fill", [np.inf, -np.inf])
@pytest.mark.parametrize("columns", [slice(None, None, 3), slice(None)])
def test_evaluate_rank_orders_infinite_distances_by_position(fill, columns):
    query, gallery = clustered(40, seed=1), clustered(150, seed=2)
    distmat = np.random.default_rng(0).normal(size=(40, 150)).astype(np.float32)
    distmat[:, columns] = fill
    cmc, mean = evaluate_rank(distmat, query.pids, gallery.pids, query.camids, gallery.camids)
    expected = market1501(distmat, query, gallery)
    np.testing.assert_allclose(mean, expected[0], atol=1e-12)
    np.testing.assert_allclose(cmc, expected[1], atol=1e-6)


# --- one line for each mistake ----------------------------------------


def test_no_true_match_is_told():
    query, gallery = clustered(5), clustered(9, seed=1)
    with pytest.raises(UserError, match="no query has a true match"):
        evaluate(query, Embeddings(gallery.features, gallery.pids + 100, gallery.camids))
    with pytest.raises(UserError, match="no query has a true match"):
        evaluate_rank(np.zeros((1, 2)), np.array([1]), np.array([1, 2]), np.array([0]), np.array([0, 1]))


def test_a_query_without_a_match_is_not_counted():
    gallery = Embeddings(np.eye(3), [1, 1, 2], [0, 1, 1])
    result = evaluate(Embeddings(np.eye(3), [1, 9, 2], [0, 0, 1]), gallery)
    assert result.num_valid_queries == 1
    assert np.isnan(result.average_precision[1:]).all()
    assert result.first_match[1:].tolist() == [0, 0]


def test_a_gallery_of_one_item():
    one = Embeddings(np.ones((1, 3)), [4], [1])
    assert evaluate(Embeddings(np.ones((1, 3)), [4], [0]), one).mAP == 1
    with pytest.raises(UserError, match="no query has a true match"):
        evaluate(Embeddings(np.ones((1, 3)), [4], [1]), one)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"metric": "manhattan"}, "unknown metric 'manhattan'; choose from cosine, euclidean"),
        ({"device": "tpu"}, "unknown device 'tpu'"),
        ({"max_rank": 0}, "max_rank is 0"),
        ({"max_rank": 5.5}, "max_rank is 5.5"),
        ({"topk": -1}, "topk is -1"),
        ({"seed": -1}, "seed is -1"),
        ({"use_metric_cuhk03": True, "cuhk03_repeats": 0}, "cuhk03_repeats is 0"),
        ({"search_parameters": "nprobe=4"}, "'nprobe=4' are of an approximate index"),
        ({"distributed": True}, "torchrun"),
    ],
)
def test_wrong_options_are_named(options, words):
    with pytest.raises(UserError, match=words):
        evaluate(clustered(5), clustered(9), **options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_no_gpu_is_told():
    with pytest.raises(UserError, match="use device='cpu'"):
        evaluate(clustered(5), clustered(9), device="cuda")


def test_other_dimensions_are_told():
    with pytest.raises(UserError, match="queries have 8 dimensions, the gallery 6"):
        evaluate(clustered(5), clustered(9, d=6))


def test_wrong_matrices_are_told():
    labels = np.array([0]), np.array([0, 1]), np.array([0]), np.array([1, 1])
    with pytest.raises(UserError, match="q_pids have shape"):
        evaluate_rank(np.zeros((2, 2)), *labels)
    with pytest.raises(UserError, match="NaN, first in row 0"):
        evaluate_rank(np.array([[0, np.nan]]), *labels)
    with pytest.raises(UserError, match="shape"):
        evaluate_rank(np.zeros(3), *labels)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_features_too_large_for_float32_are_told(metric):
    huge = Embeddings(np.full((2, 2), 1e30), [0, 1], [0, 1])
    with pytest.raises(UserError, match="overflow"):
        evaluate(huge, huge, metric=metric)


# --- CUHK03 -----------------------------------------------------------


def exact_single_shot(query, gallery, metric, length):
    """Expected CMC: every way to draw one image of each identity, for a gallery small enough to enumerate."""
    distances = distance_matrix(query.features, gallery.features, metric)
    curves = []
    for i in range(len(query)):
        allowed = ~((gallery.pids == query.pids[i]) & (gallery.camids == query.camids[i]))
        if not (allowed & (gallery.pids == query.pids[i])).any():
            continue
        groups = [np.flatnonzero(allowed & (gallery.pids == pid)) for pid in np.unique(gallery.pids)]
        found = np.zeros(length)
        draws = list(itertools.product(*(group for group in groups if len(group))))
        for draw in draws:
            nearer = sorted(draw, key=lambda g, i=i: (distances[i, g], g))
            rank = [gallery.pids[g] for g in nearer].index(query.pids[i])
            found[rank:] += 1
        curves.append(found / len(draws))
    return np.mean(curves, axis=0)


def test_cuhk03_converges_to_the_mean_over_all_draws():
    query, gallery = clustered(30, identities=4, seed=0, spread=2), clustered(16, identities=4, seed=1, spread=2)
    result = evaluate(query, gallery, use_metric_cuhk03=True, cuhk03_repeats=3000)
    assert len(result.cmc) == 4
    np.testing.assert_allclose(result.cmc, exact_single_shot(query, gallery, "cosine", 4), atol=0.01)
    assert result.mAP == evaluate(query, gallery).mAP


def test_cuhk03_is_seeded_and_independent_of_pieces(monkeypatch):
    query, gallery = clustered(30, seed=0, spread=2), clustered(100, seed=1, spread=2)
    before = evaluate(query, gallery, use_metric_cuhk03=True, seed=3).cmc
    assert not np.array_equal(before, evaluate(query, gallery, use_metric_cuhk03=True, seed=4).cmc)
    monkeypatch.setattr(metrics, "DRAWN_AT_ONCE", 500)
    monkeypatch.setattr(metrics, "CPU_BLOCK", (7, 13))
    np.testing.assert_array_equal(before, evaluate(query, gallery, use_metric_cuhk03=True, seed=3).cmc)


def test_cuhk03_in_evaluate_rank():
    query, gallery = clustered(30, seed=0, spread=2), clustered(100, seed=1, spread=2)
    distmat = distance_matrix(query.features, gallery.features, "cosine")
    labels = query.pids, gallery.pids, query.camids, gallery.camids
    cmc, mean = evaluate_rank(distmat, *labels, use_metric_cuhk03=True, seed=3)
    result = evaluate(query, gallery, use_metric_cuhk03=True, seed=3)
    np.testing.assert_allclose(cmc, result.cmc, atol=1e-6)
    assert mean == pytest.approx(result.mAP)


# --- ROC --------------------------------------------------------------


@pytest.mark.usefixtures("block_sizes")
@pytest.mark.parametrize("make", [clustered, tied])
def test_roc_agrees_with_all_pairs(make):
    query, gallery = make(40, seed=0), make(90, seed=1)
    rates = [0, 1e-3, 0.01, 0.2, 0.5, 1]
    curve = roc(query, gallery, rates, metric="euclidean")
    distances = distance_matrix(query.features, gallery.features, "euclidean")
    own = query.pids[:, None] == gallery.pids
    positive = distances[own & (query.camids[:, None] != gallery.camids)]
    negative = np.sort(distances[~own])
    assert (curve.num_positive, curve.num_negative) == (len(positive), len(negative))
    for i, rate in enumerate(rates):
        allowed = int(rate * len(negative) + 1e-9)
        refused = negative[allowed] if allowed < len(negative) else np.inf
        assert curve.tpr[i] == np.mean(positive < refused * (1 - 1e-6))
        assert curve.achieved_fpr[i] == np.mean(negative < refused * (1 - 1e-6))
        assert curve.achieved_fpr[i] <= rate
        accepted = np.mean(negative <= curve.thresholds[i])
        assert accepted == pytest.approx(curve.achieved_fpr[i], abs=1.5 / len(negative))


def test_roc_mistakes_are_told():
    query, gallery = clustered(5), clustered(9, seed=1)
    for rates in ([2], 2, [np.nan]):
        with pytest.raises(UserError, match="rates from 0 to 1"):
            roc(query, gallery, rates)
    same = Embeddings(np.eye(3), [1, 1, 1], [0, 1, 2])
    with pytest.raises(UserError, match="no false pairs"):
        roc(same, same)


# --- devices ----------------------------------------------------------


def test_two_devices_see_what_one_sees(monkeypatch):
    """The CPU under two names stands for two GPUs."""
    monkeypatch.setattr(blocks, "CPU_BLOCK", (7, 13))
    query, gallery = tied(30, seed=3), tied(120, seed=4)
    labels = Labels(query.pids, query.camids, gallery.pids, gallery.camids)
    answers = []
    for devices in ([torch.device("cpu")], [torch.device("cpu"), torch.device("cpu", 0)]):
        distances = blocks.FeatureDistances(query.features, gallery.features, "euclidean", devices)
        answers.append(metrics.rank_queries(distances, labels, 10, OneProcess()))
    for one, two in zip(answers[0][:3] + answers[0].topk, answers[1][:3] + answers[1].topk, strict=True):
        np.testing.assert_array_equal(one, two)


def test_training_settings_do_not_leak_in_or_out():
    """Autocast and TF32 change neither the figures, nor does evaluation change them."""
    query, gallery = clustered(30, seed=0, d=64), clustered(100, seed=1, d=64)
    plain = evaluate(query, gallery, topk=5)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            mixed = evaluate(query, gallery, topk=5)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
    np.testing.assert_array_equal(plain.topk_distances, mixed.topk_distances)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("rerank", [False, True])
def test_gpus_give_the_figures_of_the_cpu(rerank):
    query, gallery = clustered(100, seed=0, d=64), clustered(3000, seed=1, d=64)
    cpu, gpu = (evaluate(query, gallery, rerank=rerank, device=device, topk=5) for device in ("cpu", "cuda"))
    np.testing.assert_allclose(gpu.mAP, cpu.mAP, atol=1e-4)
    np.testing.assert_allclose(gpu.topk_distances, cpu.topk_distances, atol=1e-4)


def test_a_memory_mapped_gallery_gives_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(blocks, "CPU_BLOCK", (16, 64))
    query, gallery = clustered(30, seed=0), clustered(300, seed=1)
    np.save(tmp_path / "g.npy", gallery.features)
    mapped = Embeddings(np.load(tmp_path / "g.npy", mmap_mode="r"), gallery.pids, gallery.camids)
    for options in ({}, {"rerank": True}, {"query_expansion": 3, "database_augmentation": 2}, {"index": "IVF4,Flat"}):
        one, two = evaluate(query, gallery, **options), evaluate(query, mapped, **options)
        assert one.to_dict() == two.to_dict()


@pytest.mark.usefixtures("block_sizes")
def test_progress_counts_what_is_done():
    seen = []
    evaluate(clustered(20), clustered(90, seed=1), progress=lambda *step: seen.append(step))
    total = seen[0][2]
    assert seen == [("comparing", done, total) for done in range(1, total + 1)]


def test_progress_reaches_the_end():
    seen = []
    evaluate(clustered(5), clustered(9), rerank=True, k1=3, k2=2, progress=lambda *step: seen.append(step))
    assert {name for name, _, _ in seen} == {"neighbours", "comparing"}
    assert all(seen[-1][1] == seen[-1][2] for _ in seen)
