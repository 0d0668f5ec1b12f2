"""Pseudo-labels equal those of SpCL's dense Jaccard distance and a DBSCAN written as loops."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest
import sklearn.cluster
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import clustered

from torchreid_autoreid.errors import UserError
from torchreid_autoreid.evaluation import cluster, clusters, compare_clusters, load_embeddings
from torchreid_autoreid.evaluation import rerank as rerank_module

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
DATA = Path(os.environ.get("TORCHREID_AUTOREID_DATA", SHARED)) / "market1501_retail0288.npz"


def dense_jaccard(features, k1, k2):
    """SpCL's compute_jaccard_distance, with its neighbours by sorting."""
    unit = features.astype(np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    distances = 2 - 2 * unit @ unit.T
    n = len(unit)
    rank = np.argsort(distances, axis=1, kind="stable")[:, :k1]

    def reciprocal(i, k):
        forward = rank[i, : k + 1]
        return forward[(rank[forward, : k + 1] == i).any(axis=1)]

    half = [reciprocal(i, int(np.around(k1 / 2))) for i in range(n)]
    encoding = np.zeros((n, n))
    for i in range(n):
        members = reciprocal(i, k1)
        expanded = members
        for candidate in members:
            if len(np.intersect1d(half[candidate], members)) > 2 / 3 * len(half[candidate]):
                expanded = np.append(expanded, half[candidate])
        expanded = np.unique(expanded)
        weights = np.exp(-distances[i, expanded])
        encoding[i, expanded] = weights / weights.sum()
    encoding = np.stack([encoding[rank[i, :k2]].mean(axis=0) for i in range(n)])
    sums = np.stack([np.minimum(encoding[i], encoding).sum(axis=1) for i in range(n)])
    return np.maximum(1 - sums / (2 - sums), 0)


def dbscan(distances, eps, min_samples):
    """The algorithm of 1996, item by item."""
    close = distances <= eps
    core = close.sum(axis=1) >= min_samples
    labels, count = np.full(len(close), -1), 0
    for start in range(len(close)):
        if labels[start] >= 0 or not core[start]:
            continue
        todo = [start]
        labels[start] = count
        while todo:
            item = todo.pop()
            if core[item]:
                for other in np.flatnonzero(close[item] & (labels < 0)):
                    labels[other] = count
                    todo.append(other)
        count += 1
    return labels


@pytest.mark.parametrize(
    ("k1", "k2", "eps", "min_samples"), [(30, 6, 0.6, 4), (20, 6, 0.5, 4), (7, 1, 0.4, 2), (5, 3, 0.7, 6)]
)
@pytest.mark.parametrize("spread", [0.3, 0.8, 1.5])
def test_labels_are_those_of_the_dense_form(monkeypatch, k1, k2, eps, min_samples, spread):
    monkeypatch.setattr(clusters, "SHARED_AT_ONCE", 3000)
    monkeypatch.setattr(rerank_module, "POSTINGS_AT_ONCE", 500)
    features = clustered(220, seed=4, spread=spread).features
    labels = cluster(features, eps=eps, min_samples=min_samples, k1=k1, k2=k2)
    expected = dbscan(dense_jaccard(features, k1, k2), eps, min_samples)
    np.testing.assert_array_equal(labels, expected)
    assert spread > 0.5 or expected.max() > 3


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10000), eps=st.floats(0.05, 0.95), min_samples=st.integers(1, 8))
def test_dbscan_is_the_algorithm_of_1996(seed, eps, min_samples):
    """Border items that two clusters touch, noise, and clusters in order of their first core item."""
    random = np.random.default_rng(seed)
    points = random.random((60, 2))
    distances = np.linalg.norm(points[:, None] - points, axis=2) * 3
    pattern = clusters.sp.csr_array((distances <= eps).astype(np.int8))
    np.testing.assert_array_equal(clusters._dbscan(pattern, min_samples), dbscan(distances, eps, min_samples))


def test_dbscan_is_scikit_learns():
    features = clustered(220, seed=4, spread=0.8).features
    distances = dense_jaccard(features, 30, 6)
    expected = sklearn.cluster.DBSCAN(eps=0.6, min_samples=4, metric="precomputed").fit_predict(distances)
    np.testing.assert_array_equal(cluster(features), expected)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10000), n=st.integers(8, 90), min_samples=st.integers(1, 6), share=st.floats(0, 0.5))
def test_hdbscan_has_the_tree_of_the_dense_distances(seed, n, min_samples, share):
    """Also where items share nothing, or are copies. (Where distances tie, labels follow the order of the items.)"""
    random = np.random.default_rng(seed)
    dense = np.where(random.random((n, n)) < share, random.random((n, n)), 1)
    dense[: n // 4, : n // 4] = 0
    dense = np.triu(dense, 1)
    dense += dense.T
    row, column = np.nonzero(dense < 1)
    sparse = clusters._hanging_together(row, column, dense[row, column].astype(np.float32), n, min_samples)
    dense[row, column] = dense[row, column].astype(np.float32).clip(clusters.SMALLEST)
    dense[np.arange(n), np.arange(n)] = clusters.SMALLEST
    options = {"min_cluster_size": max(2, min_samples), "min_samples": min_samples, "metric": "precomputed"}
    trees = [sklearn.cluster.HDBSCAN(**options, copy=True).fit(x)._single_linkage_tree_ for x in (sparse, dense)]
    np.testing.assert_allclose(*(np.sort(tree["value"]) for tree in trees), rtol=1e-7)


def test_hdbscan_finds_the_identities_at_any_density():
    """Two tight identities and two loose ones, of which no radius of DBSCAN gets all."""
    random = np.random.default_rng(0)
    centres = 3 * random.normal(size=(4, 16))
    pids = np.repeat(np.arange(4), 40)
    features = centres[pids] + np.array([0.05, 0.05, 1.2, 1.2])[pids, None] * random.normal(size=(160, 16))
    labels = cluster(features, "hdbscan", k1=15, k2=4)
    assert compare_clusters(labels, pids).precision == 1
    first = [labels[labels >= 0].tolist().index(label) for label in range(labels.max() + 1)]
    assert first == sorted(first)  # numbered by their first item


@pytest.mark.parametrize("method", clusters.METHODS)
@pytest.mark.parametrize("n", [1, 2, 3, 5, 50])
def test_few_items_and_many_copies(method, n):
    apart = cluster(np.eye(50)[:n], method, k1=min(n, 3), k2=1)
    assert (apart == -1).all()
    assert cluster(np.ones((n, 4)), method, k1=min(n, 3), k2=1).shape == (n,)


def test_hdbscan_says_what_it_cannot(monkeypatch):
    features = clustered(60).features
    with monkeypatch.context() as patch:
        patch.setattr(clusters, "MOST_PAIRS", 100)
        with pytest.raises(UserError, match="more than 100; use method='dbscan', or fewer items"):
            cluster(features, "hdbscan", k1=8)
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(UserError, match="pip install scikit-learn"):
        cluster(features, "hdbscan", k1=8)


@pytest.mark.slow
def test_market_embeddings_are_clustered_as_by_the_dense_form():
    if not DATA.exists():
        pytest.skip("the reference embeddings are not beside this checkout")
    _, gallery = load_embeddings(DATA)
    part = gallery.take(np.flatnonzero(gallery.pids > 0)[:1000])
    labels = cluster(part.features)
    expected = dbscan(dense_jaccard(part.features.astype(np.float32), 30, 6), 0.6, 4)
    np.testing.assert_array_equal(labels, expected)
    assert compare_clusters(labels, part.pids).f > 0.5


def test_clusters_of_features_off_the_origin_are_the_same():
    features = clustered(220, seed=4, spread=0.3).features
    plain = cluster(features, metric="euclidean", k1=12)
    np.testing.assert_array_equal(cluster(features.astype(np.float64) + 1e7, metric="euclidean", k1=12), plain)
    assert plain.max() > 3


def test_copies_are_one_cluster_each():
    features = np.repeat(np.random.default_rng(0).normal(size=(6, 8)), 3, axis=0)
    assert cluster(features, k1=3, k2=1, min_samples=2).tolist() == np.repeat(np.arange(6), 3).tolist()
    one = np.ones((50, 8))  # more copies than k1: the first of them are everyone's neighbours
    assert set(cluster(one, k1=4, k2=2)) <= {-1, 0}


MISTAKES = {
    "a method": ({"method": "kmeans"}, "unknown method 'kmeans'; choose from dbscan, hdbscan"),
    "a radius of hdbscan": ({"method": "hdbscan", "eps": 0.5}, "eps is 0.5, and hdbscan finds its own"),
    "no radius": ({"eps": 0}, "eps is 0; give a Jaccard distance between 0 and 1"),
    "everything": ({"eps": 1.0}, "eps is 1.0"),
    "no samples": ({"min_samples": 0}, "min_samples is 0"),
    "k1": ({"k1": 41}, "k1 is 41, more than the 40 items"),
    "k2": ({"k2": 0}, "k2 is 0"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_told(name):
    options, words = MISTAKES[name]
    with pytest.raises(UserError, match=words):
        cluster(clustered(40).features, **options)


def test_a_radius_that_no_pair_reaches_leaves_noise():
    assert (cluster(np.random.default_rng(0).normal(size=(60, 64)), eps=0.01, k1=5) == -1).all()


# --- against the truth ----------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_agreement_is_counted_over_all_pairs(seed):
    random = np.random.default_rng(seed)
    labels, pids = random.integers(-1, 6, 80), random.integers(0, 5, 80)
    one = (labels[:, None] == labels) & (labels[:, None] >= 0)
    same = pids[:, None] == pids
    upper = np.triu(np.ones((80, 80), bool), 1)
    right, found, wanted, pairs = ((x & upper).sum() for x in (one & same, one, same, upper))
    agreement = compare_clusters(labels, pids)
    assert agreement.precision == pytest.approx(right / found)
    assert agreement.recall == pytest.approx(right / wanted)
    chance = found * wanted / pairs
    assert agreement.ari == pytest.approx((right - chance) / ((found + wanted) / 2 - chance))
    assert (agreement.num_noise, agreement.num_clusters) == ((labels < 0).sum(), len(set(labels[labels >= 0])))
    alone = np.where(labels < 0, 100 + np.arange(80), labels)
    joint = [(alone == a) & (pids == p) for a in set(alone) for p in set(pids)]
    mutual = sum(x.mean() * np.log(x.mean()) for x in joint if x.any())
    entropies = [-sum(np.mean(x == v) * np.log(np.mean(x == v)) for v in set(x)) for x in (alone, pids)]
    assert agreement.nmi == pytest.approx((mutual + sum(entropies)) / (sum(entropies) / 2))


def test_perfect_and_trivial_clusters():
    perfect = compare_clusters([0, 0, 1, 1], ["a", "a", "b", "b"])
    assert (perfect.ari, perfect.nmi, perfect.f) == pytest.approx((1, 1, 1))
    nothing = compare_clusters([-1] * 4, [0, 0, 1, 1])
    assert (nothing.ari, nothing.recall, nothing.num_clusters) == (0, 0, 0)
    assert compare_clusters([0], [3]).ari == 1
    with pytest.raises(UserError, match="no items to compare"):
        compare_clusters([], [])
    with pytest.raises(UserError, match="labels have shape"):
        compare_clusters([0, 1], [0, 1, 2])
