"""mAP, CMC, mINP, CUHK03 and ROC against brute force."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
import torchreid
from forks import completed
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import assert_result, clustered, distance_matrix, market1501, tied

from torchreid_autoreid.errors import UserError
from torchreid_autoreid.evaluation import Embeddings, evaluate, evaluate_rank, metrics, pairwise, ranking, roc
from torchreid_autoreid.evaluation.ranking import (
    Labels,
    Nearest,
    flat_places,
    limits_of_nearest,
    ordered,
    places_within,
    unordered,
)
from torchreid_autoreid.evaluation.space import Space
from torchreid_autoreid.parallel.launch import OneProcess


@pytest.fixture(
    params=[(256, 4096, 1, ranking.SORTED_ROW), (7, 13, 1, 0), (7, 13, 3, 1e9)],
    ids=["one block", "many blocks, all matches looked up", "three workers, matches compared with their rows"],
)
def block_sizes(request, monkeypatch):
    *shape, threads, sorted_row = request.param
    monkeypatch.setattr(pairwise, "CPU_BLOCK", tuple(shape))
    monkeypatch.setattr(ranking, "SORTED_ROW", sorted_row)
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


@pytest.mark.parametrize("make", [clustered, tied])
def test_matches_that_much_is_closer_than_are_counted_one_by_one_and_the_ranks_are_the_same(monkeypatch, make):
    query, gallery = make(40, seed=0), make(500, seed=1)
    monkeypatch.setattr(pairwise, "CPU_BLOCK", (16, 100))
    keys, looked_up = ranking.keys_by_row, []
    monkeypatch.setattr(ranking, "keys_by_row", lambda *of: looked_up.append(len(of[1])) or keys(*of))
    results, counts = [], []
    for sorted_row in (0, 100, 1e9):
        monkeypatch.setattr(ranking, "SORTED_ROW", sorted_row)
        results.append(evaluate(query, gallery, metric="euclidean"))
        counts.append(sum(looked_up))
        looked_up.clear()
    for result in results[1:]:
        np.testing.assert_array_equal(result.average_precision, results[0].average_precision)
        np.testing.assert_array_equal(result.first_match, results[0].first_match)
    assert counts[0] > counts[1] > counts[2]


@pytest.mark.usefixtures("block_sizes")
@pytest.mark.parametrize("flushed", [False, True])
def test_ties_at_zero_at_infinity_and_between_the_smallest_numbers(flushed):
    """Where there is no next number, or PyTorch has been told to take it for zero."""
    values = np.array([-np.inf, -1, -0.0, 0.0, 1.2e-38, 1, np.inf, *([] if flushed else [1e-45, 2e-45])], np.float32)
    distances = values[np.random.default_rng(0).integers(0, len(values), (30, 90))]
    query, gallery = tied(30, seed=0), tied(90, seed=1)
    labels = query.pids, gallery.pids, query.camids, gallery.camids
    torch.set_flush_denormal(flushed)
    try:
        _, mean = evaluate_rank(distances, *labels)
    finally:
        torch.set_flush_denormal(False)
    assert mean == pytest.approx(market1501(distances, query, gallery)[0], abs=1e-12)


@pytest.mark.parametrize("shape", [(0, 8), (1, 1), (3, 7), (1, 8), (5, 16), (64, 100)])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 1.0])
def test_places_in_a_mask(shape, share):
    mask = np.random.default_rng(0).random(shape) < share
    np.testing.assert_array_equal(flat_places(mask), np.flatnonzero(mask))


def test_a_match_is_counted_alone_where_sorting_what_is_closer_takes_longer(monkeypatch):
    """One near match is looked up, a far one in front of which nearly all items lie is not."""
    random = np.random.default_rng(0)
    gallery = np.concatenate([[[0.1, 0]], random.uniform(1, 2, (3000, 2)), [[9.0, 0]]]).astype(np.float32)
    pids = np.array([0, *range(1, 3001), 0])
    alone = []
    count = ranking.CloserCounter._closer_one_by_one
    monkeypatch.setattr(
        ranking.CloserCounter,
        "_closer_one_by_one",
        lambda self, row, column, block, chosen: alone.extend(chosen) or count(self, row, column, block, chosen),
    )
    query = Embeddings(np.zeros((1, 2), dtype=np.float32), [0], [0])
    result = evaluate(query, Embeddings(gallery, pids, np.ones(3002, dtype=int)), metric="euclidean")
    assert alone == [1]
    assert result.average_precision.tolist() == [(1 + 2 / 3002) / 2]


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


@settings(max_examples=60, deadline=None)
@given(data=st.data(), width=st.integers(2, 70))
def test_a_first_look_at_a_row_misses_none_of_its_nearest(data, width):
    """Whatever the order: near items side by side, or all in one group; ties, infinite distances, smallest floats."""
    k = data.draw(st.integers(1, width - 1))
    values = st.sampled_from([-np.inf, -1e-45, 0.0, 1e-45, 0.5, 1.0, 3e38, np.inf])
    row = data.draw(st.one_of(st.lists(values, min_size=width, max_size=width), st.permutations(range(width))))
    near_at_every = data.draw(st.integers(1, width))
    striped = np.where(np.arange(width) % near_at_every == 0, 0, 1 + np.arange(width))
    block = torch.from_numpy(np.array([row, striped], dtype=np.float32))
    limits = limits_of_nearest(block, k)
    assert (limits >= block.sort(dim=1).values[:, k - 1]).all()
    assert limits[1] < width + 1
    np.testing.assert_array_equal(places_within(block, limits[:, None]), np.flatnonzero(block <= limits[:, None]))
    nearest = Nearest(2, k)
    nearest.add(0, 0, block)
    kept = np.argsort(block.numpy() + 0.0, axis=1, kind="stable")[:, :k]
    finite = ~np.isinf(np.take_along_axis(block.numpy(), kept, 1))
    np.testing.assert_array_equal(nearest.result()[0][finite], kept[finite])


def test_few_items_are_kept_at_a_first_look():
    """As many as k and a few more, also where all near items lie side by side."""
    random = np.random.default_rng(0)
    block = torch.from_numpy(np.sort(random.random((50, 4096), dtype=np.float32), axis=1))
    for rows in (block, block[:, random.permutation(4096)]):
        kept = (rows <= limits_of_nearest(rows, 21)[:, None]).sum(dim=1)
        assert kept.min() >= 21
        assert kept.float().mean() < 30


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


def steps(kind, seed):
    """Distances that differ by less than float32 tells, and matches of the same kind."""
    random = np.random.default_rng(seed)
    if kind == "float64":
        return 1 + random.integers(-20, 20, (40, 150)) * 1e-9
    if kind == "int64":
        return (1 << 60) + random.integers(-20, 20, (40, 150))
    if kind == "beyond float32":
        return random.integers(1, 9, (40, 150)) * 1e300
    return random.integers(0, 20, (40, 150)).astype(kind)  # float32 holds these


@pytest.mark.parametrize("kind", ["float64", "int64", "beyond float32", "int32", "uint8", "float16"])
@pytest.mark.parametrize("seed", range(3))
def test_evaluate_rank_compares_distances_as_they_are(monkeypatch, kind, seed):
    monkeypatch.setattr(pairwise, "CPU_BLOCK", (7, 64))
    query, gallery = clustered(40, seed=1), clustered(150, seed=2)
    distmat = steps(kind, seed)
    cmc, mean = evaluate_rank(distmat, query.pids, gallery.pids, query.camids, gallery.camids)
    expected = market1501(distmat, query, gallery)
    np.testing.assert_allclose(mean, expected[0], atol=1e-12)
    np.testing.assert_allclose(cmc, expected[1], atol=1e-6)
    theirs = torchreid.metrics.evaluate_rank(
        distmat, query.pids, gallery.pids, query.camids, gallery.camids, use_cython=False
    )
    if kind == "float64" and not np.array_equal(cmc, theirs[0]):  # NumPy's sort leaves ties in any order there
        assert len(np.unique(distmat[0])) < 150


def test_evaluate_rank_takes_tensors():
    query, gallery = clustered(40, seed=1), clustered(150, seed=2)
    distmat = np.random.default_rng(0).normal(size=(40, 150)).astype(np.float32)
    labels = query.pids, gallery.pids, query.camids, gallery.camids
    tensors = evaluate_rank(torch.from_numpy(distmat).requires_grad_(), *(torch.from_numpy(x) for x in labels))
    assert tensors[1] == evaluate_rank(distmat, *labels)[1]
    with pytest.raises(UserError, match="distmat has type <U1"):
        evaluate_rank(np.array([["a"]]), *([0],) * 4)


# --- memory ----------------------------------------


def few(n, seed, camera):
    random = np.random.default_rng(seed)
    return Embeddings(random.normal(size=(n, 8)).astype(np.float32), random.integers(0, 3, n), np.full(n, camera))


def test_few_identities_are_evaluated_a_part_of_the_queries_at_a_time(monkeypatch):
    """The number of true pairs at once is bounded, and the parts give the figures of the whole."""
    query, gallery = few(60, 0, 0), few(200, 1, 1)
    whole = [evaluate(query, gallery, topk=5, **options) for options in ({}, {"rerank": True, "k1": 9})]
    seen = []
    of = ranking.OwnPairs.of
    monkeypatch.setattr(ranking, "PAIRS_AT_ONCE", 1000)
    monkeypatch.setattr(ranking, "PAIRS_OF_ROWS", 100)
    monkeypatch.setattr(ranking, "CANDIDATES_AT_ONCE", 50)
    monkeypatch.setattr(ranking, "COLUMNS_AT_ONCE", 32)
    monkeypatch.setattr(metrics.OwnPairs, "of", classmethod(lambda cls, labels: seen.append(of(labels)) or seen[-1]))
    for options, expected in zip(({}, {"rerank": True, "k1": 9}), whole, strict=True):
        parts = evaluate(query, gallery, topk=5, **options)
        assert parts.to_dict() == expected.to_dict()
        np.testing.assert_array_equal(parts.topk_indices, expected.topk_indices)
    assert max(len(pairs.rows) for pairs in seen[1:]) <= 1000
    indexed = evaluate(query, gallery, index="IDMap,Flat", num_retrieved=200)
    np.testing.assert_allclose(indexed.mAP, whole[0].mAP, atol=1e-6)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's own count")
@pytest.mark.parametrize(
    ("what", "limit"),
    [
        ("evaluate(*few(600, 20000))", 400),
        ("evaluate(*few(600, 20000), rerank=True, k1=3, k2=2)", 700),
        ("roc(*few(600, 20000))", 600),
        ("k_reciprocal_distances(few(6000, 2)[0].features, few(6000, 2)[0].features, k1=1, k2=1)", 500),
    ],
)
@pytest.mark.slow
def test_memory_is_bounded_whatever_the_labels_and_the_threads(what, limit):
    script = f"""
import sys
import numpy as np, torch
from torchreid_autoreid.evaluation import Embeddings, evaluate, k_reciprocal_distances, roc
torch.set_num_threads(8)
def few(*sizes):
    random = np.random.default_rng(0)
    return [Embeddings(random.normal(size=(n, 16)).astype(np.float32), random.integers(0, 5, n), np.full(n, c))
            for c, n in enumerate(sizes)]
def size(name):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(name)) / 1024
evaluate(*few(64, 3000), rerank=True)
open("/proc/self/clear_refs", "w").write("5")
before = size("VmRSS")
{what}
print(size("VmHWM") - before)
"""
    done = completed("-c", [script])
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < limit


# --- one line for each mistake ----------------------------------------


@pytest.mark.parametrize("rank", [0, -1, 1.5])
def test_what_is_no_rank_has_no_accuracy(rank):
    result = evaluate(clustered(20), clustered(50, seed=1))
    assert result.rank(1) == result.rank1
    with pytest.raises(UserError, match=f"the rank is {rank}"):
        result.rank(rank)


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


@pytest.mark.parametrize("value", [1e20, 1e30])
def test_features_too_large_for_float32_are_told(value):
    query, gallery = clustered(5), clustered(9, seed=1)
    gallery.features[3] *= value / 4
    with pytest.raises(UserError, match="overflow"):
        evaluate(query, gallery, metric="euclidean")
    assert 0 < evaluate(query, gallery).mAP <= 1  # directions have no size


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
    monkeypatch.setattr(pairwise, "CPU_BLOCK", (7, 13))
    query, gallery = tied(30, seed=3), tied(120, seed=4)
    labels = Labels(query.pids, (query.camids,), gallery.pids, (gallery.camids,))
    answers = []
    for devices in ([torch.device("cpu")], [torch.device("cpu"), torch.device("cpu", 0)]):
        distances = pairwise.FeatureDistances(query.features, gallery.features, Space("euclidean"), devices)
        answers.append(metrics.rank_queries(distances, labels, 10, OneProcess()))
    parts = [[*answer.figures.values(), answer.first, *answer.topk] for answer in answers]
    for one, two in zip(*parts, strict=True):
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
    monkeypatch.setattr(pairwise, "CPU_BLOCK", (16, 64))
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
