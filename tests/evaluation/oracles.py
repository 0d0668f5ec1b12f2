"""Slow and obvious: what evaluation must agree with."""

import numpy as np

from torchreid_autoreid.evaluation import Embeddings


def clustered(n, identities=12, d=8, cameras=3, seed=0, centres_seed=99, spread=0.5):
    """Embeddings around one centre for each identity."""
    random = np.random.default_rng(seed)
    centres = np.random.default_rng(centres_seed).normal(size=(identities, d))
    pids = random.integers(0, identities, n)
    features = (centres[pids] + spread * random.normal(size=(n, d))).astype(np.float32)
    return Embeddings(features, pids, random.integers(0, cameras, n))


def tied(n, identities=6, d=3, cameras=2, seed=0):
    """Embeddings of tiny whole numbers: squared distances are exact, and most of them tie."""
    random = np.random.default_rng(seed)
    features = random.integers(-1, 2, (n, d)).astype(np.float32)
    return Embeddings(features, random.integers(0, identities, n), random.integers(0, cameras, n))


def distance_matrix(a, b, metric):
    """(Na, Nb) float64 distances: 1 - cosine similarity, or squared euclidean."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if metric == "cosine":
        a, b = (x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12) for x in (a, b))
        return 1 - a @ b.T
    return ((a[:, None] - b[None]) ** 2).sum(-1)


def market1501(distances, query, gallery, max_rank=50):
    """(mAP, cmc, mINP, AP of each query, rank of each first match) by sorting whole rows."""
    average_precision, penalty, first = [], [], []
    for i in range(len(query)):
        order = np.argsort(distances[i], kind="stable")
        own = gallery.pids[order] == query.pids[i]
        junk = own & (gallery.camids[order] == query.camids[i])
        ranks = np.flatnonzero(own[~junk]) + 1
        average_precision.append(np.mean(np.arange(1, len(ranks) + 1) / ranks) if len(ranks) else np.nan)
        penalty.append(len(ranks) / ranks[-1] if len(ranks) else np.nan)
        first.append(ranks[0] if len(ranks) else 0)
    first = np.array(first)
    counted = first[first > 0]
    cmc = np.array([np.mean(counted <= r) for r in range(1, min(max_rank, len(gallery)) + 1)])
    return np.nanmean(average_precision), cmc, np.nanmean(penalty), np.array(average_precision), first


def assert_result(result, expected, tolerance=1e-12):
    """A RetrievalResult equals what `market1501` returned."""
    mean, cmc, penalty, average_precision, first = expected
    np.testing.assert_allclose(result.mAP, mean, rtol=0, atol=tolerance)
    np.testing.assert_allclose(result.mINP, penalty, rtol=0, atol=tolerance)
    np.testing.assert_allclose(result.cmc, cmc, rtol=0, atol=tolerance)
    np.testing.assert_allclose(result.average_precision, average_precision, rtol=0, atol=tolerance)
    np.testing.assert_array_equal(result.first_match, first)
    assert result.num_valid_queries == (first > 0).sum()
