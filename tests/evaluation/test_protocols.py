"""Each protocol against its definition, written as loops over whole sorted rows."""

import numpy as np
import pytest
from oracles import clustered, distance_matrix

from torchreid_autoreid.errors import UserError
from torchreid_autoreid.evaluation import Embeddings, evaluate, k_reciprocal_distances, protocols, roc
from torchreid_autoreid.evaluation.embeddings import LABELS

QUERY, GALLERY = clustered(40, seed=0, spread=1.5), clustered(150, seed=1, spread=1.5)
DISTANCES = distance_matrix(QUERY.features, GALLERY.features, "cosine")


def relabelled(embeddings, **labels):
    return Embeddings(embeddings.features, **({name: getattr(embeddings, name) for name in LABELS} | labels))


def average_precisions(distances, match, ignored):
    """(AP or NaN, rank of the first match or 0, trapezoid AP) of each query."""
    rows = []
    for row, own, gone in zip(distances, match, ignored, strict=True):
        order = [g for g in np.argsort(row, kind="stable") if not gone[g]]
        right = own[order]
        if not right.any():
            rows.append((np.nan, 0, np.nan))
            continue
        ap = trapezoid = recall = 0.0
        before = 1.0
        for rank, hit in enumerate(right, 1):  # Market-1501's compute_AP
            precision = right[:rank].sum() / rank
            if hit:
                ap += precision / right.sum()
            new_recall = right[:rank].sum() / right.sum()
            trapezoid += (new_recall - recall) * (before + precision) / 2
            recall, before = new_recall, precision
        rows.append((ap, int(np.flatnonzero(right)[0]) + 1, trapezoid))
    return np.array(rows).T


def assert_agrees(result, distances, match, ignored):
    expected = average_precisions(distances, match, ignored)
    np.testing.assert_allclose(result.average_precision, expected[0], atol=1e-9)
    np.testing.assert_array_equal(result.first_match, expected[1])
    np.testing.assert_allclose(result.figures["trapezoid_mAP"], np.nanmean(expected[2]), atol=1e-9)
    counted = expected[1][expected[1] > 0]
    np.testing.assert_allclose(result.cmc, [np.mean(counted <= r) for r in range(1, len(result.cmc) + 1)])


SAME = QUERY.pids[:, None] == GALLERY.pids
SAME_CAMERA = QUERY.camids[:, None] == GALLERY.camids


def test_without_cameras_every_item_of_the_identity_is_right():
    bare = [Embeddings(x.features, x.pids) for x in (QUERY, GALLERY)]
    assert_agrees(evaluate(*bare), DISTANCES, SAME, np.zeros_like(SAME))
    assert_agrees(evaluate(QUERY, GALLERY, leave_out=()), DISTANCES, SAME, np.zeros_like(SAME))
    assert roc(*bare, [0.1]).num_positive == SAME.sum()
    with pytest.raises(UserError, match="only the queries have camera labels"):
        evaluate(QUERY, bare[1])


@pytest.mark.parametrize("names", [["camera"], ["clothes"], ["camera", "clothes"]])
@pytest.mark.parametrize("options", [{}, {"rerank": True, "k1": 9}, {"index": "IDMap,Flat", "num_retrieved": 150}])
def test_items_of_the_same_camera_or_clothes_are_left_out(names, options):
    random = np.random.default_rng(5)
    query, gallery = (relabelled(x, clothids=random.integers(0, 3, len(x))) for x in (QUERY, GALLERY))
    shared = np.zeros_like(SAME)
    if "camera" in names:
        shared |= SAME_CAMERA
    if "clothes" in names:
        shared |= query.clothids[:, None] == gallery.clothids
    distances = k_reciprocal_distances(query.features, gallery.features, k1=9) if "rerank" in options else DISTANCES
    result = evaluate(query, gallery, leave_out=names, **options)
    assert_agrees(result, distances, SAME & ~shared, SAME & shared)


@pytest.mark.parametrize("options", [{}, {"rerank": True, "k1": 9}, {"index": "IDMap,Flat", "num_retrieved": 150}])
def test_junk_is_passed_over_and_distractors_are_wrong(options):
    pids = GALLERY.pids.copy()
    pids[::7], pids[3::7] = -1, 0
    q_pids = np.where(QUERY.pids == 0, 5, QUERY.pids)
    q_pids[4] = 0  # a query of nobody
    query, gallery = relabelled(QUERY, pids=q_pids), relabelled(GALLERY, pids=pids)
    own = (q_pids[:, None] == pids) & (q_pids[:, None] != 0)
    distances = k_reciprocal_distances(query.features, gallery.features, k1=9) if "rerank" in options else DISTANCES
    result = evaluate(query, gallery, junk_pids=[-1], distractor_pids=[0], topk=150, **options)
    assert_agrees(result, distances, own & ~SAME_CAMERA, (own & SAME_CAMERA) | (pids == -1))
    shown = result.topk_indices[result.topk_indices >= 0]
    assert not (pids[shown] == -1).any()
    assert np.isnan(result.average_precision[4])


def test_junk_may_be_kept_out_of_reranking():
    pids = GALLERY.pids.copy()
    pids[::7] = -1
    gallery, kept = relabelled(GALLERY, pids=pids), np.flatnonzero(pids != -1)
    result = evaluate(QUERY, gallery, rerank=True, k1=9, junk_pids=[-1], rerank_junk=False, topk=5)
    expected = evaluate(QUERY, gallery.take(kept), rerank=True, k1=9, topk=5)
    assert result.mAP == expected.mAP != evaluate(QUERY, gallery, rerank=True, k1=9, junk_pids=[-1]).mAP
    np.testing.assert_array_equal(result.topk_indices, kept[expected.topk_indices])
    with pytest.raises(UserError, match="holds only junk"):
        evaluate(QUERY, relabelled(GALLERY, pids=pids * 0 - 1), rerank=True, junk_pids=[-1], rerank_junk=False)


def test_names_are_labels():
    names = np.array(["José", "Anna", "Wei", "0007"])
    result = evaluate(QUERY, GALLERY)
    assert (
        result.mAP
        == evaluate(
            relabelled(QUERY, pids=[f"person {p}" for p in QUERY.pids], camids=[f"door {c}" for c in QUERY.camids]),
            relabelled(
                GALLERY, pids=[f"person {p}" for p in GALLERY.pids], camids=[f"door {c}" for c in GALLERY.camids]
            ),
        ).mAP
    )
    one = Embeddings(np.eye(4), names)
    other = Embeddings(np.eye(4), np.array(["Jose\u0301", "Anna", "Wei", "0007"], dtype=object))
    np.testing.assert_array_equal(one.pids, other.pids)
    assert len(set(one.pids)) == 4
    assert evaluate(one, other).mAP == 1
    junk = evaluate(one, other, junk_pids=["Wei"])
    assert junk.num_valid_queries == 3


# --- vectors that stand for several ----------------------------------------


@pytest.mark.parametrize("how", ["mean", "max"])
@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_tracklets_are_one_vector_each(how, metric):
    random = np.random.default_rng(3)
    frames = random.permutation(np.repeat(np.arange(150), random.integers(1, 5, 150)))
    features = GALLERY.features[frames] + random.normal(0, 0.1, (len(frames), 8)).astype(np.float32)
    gallery = Embeddings(features, GALLERY.pids[frames], GALLERY.camids[frames], tracklets=frames + 1000)
    rows = []
    first = list(dict.fromkeys(frames.tolist()))
    for tracklet in first:
        some = features[frames == tracklet].astype(np.float64)
        if metric == "cosine" and how == "mean":
            some = some / np.linalg.norm(some, axis=1, keepdims=True)
        rows.append(some.mean(axis=0) if how == "mean" else some.max(axis=0))
    pooled = Embeddings(np.array(rows), GALLERY.pids[first], GALLERY.camids[first])
    assert evaluate(QUERY, gallery, metric=metric, pool=how).mAP == pytest.approx(
        evaluate(QUERY, pooled, metric=metric).mAP, abs=1e-9
    )


def test_several_queries_are_one():
    pairs = list(dict.fromkeys(zip(QUERY.pids.tolist(), QUERY.camids.tolist(), strict=True)))
    unit = QUERY.features / np.linalg.norm(QUERY.features, axis=1, keepdims=True)
    rows = [unit[(QUERY.pids == p) & (QUERY.camids == c)].mean(axis=0) for p, c in pairs]
    query = Embeddings(np.array(rows), [p for p, _ in pairs], [c for _, c in pairs])
    result = evaluate(QUERY, GALLERY, multi_query="mean")
    assert len(result.average_precision) == len(pairs)
    assert result.mAP == pytest.approx(evaluate(query, GALLERY).mAP, abs=1e-9)
    assert result.mAP > evaluate(QUERY, GALLERY).mAP


# --- galleries drawn at random ----------------------------------------


def sysu(n, cameras, seed):
    made = clustered(n, identities=9, seed=seed, spread=1.5)
    return relabelled(made, camids=np.random.default_rng(seed + 100).choice(cameras, n))


@pytest.mark.parametrize(("protocol", "cameras"), [("sysu_all", (1, 2, 4, 5)), ("sysu_indoor", (1, 2))])
def test_sysu_counts_identities_in_galleries_of_one_image_of_each_camera(monkeypatch, protocol, cameras):
    query, gallery = sysu(60, (3, 6, 1), 0), sysu(200, (1, 2, 3, 4, 5, 6), 1)
    galleries = []
    take = Embeddings.take

    def watched(self, rows):
        part = take(self, rows)
        if len(self) == 200:
            galleries.append(part)
        return part

    monkeypatch.setattr(Embeddings, "take", watched)
    result = evaluate(query, gallery, protocol=protocol, draws=4, max_rank=9)
    assert len(galleries) == 4
    curves, means = [], []
    for drawn in galleries:
        there = set(zip(gallery.pids.tolist(), gallery.camids.tolist(), strict=True))
        pairs = list(zip(drawn.pids.tolist(), drawn.camids.tolist(), strict=True))
        assert sorted(pairs) == sorted(pair for pair in there if pair[1] in cameras)
        ranks, precisions = [], []
        for feature, pid, camera in zip(query.features, query.pids, query.camids, strict=True):
            if camera not in (3, 6):
                continue
            keep = np.flatnonzero(drawn.camids != 2) if camera == 3 else np.arange(len(drawn))
            row = distance_matrix(feature[None], drawn.features[keep], "cosine")[0]
            pids = drawn.pids[keep][np.argsort(row, kind="stable")]
            right = np.flatnonzero(pids == pid)
            if len(right):
                ranks.append(list(dict.fromkeys(pids.tolist())).index(pid) + 1)
                precisions.append(np.mean(np.arange(1, len(right) + 1) / (right + 1)))
        curves.append([np.mean(np.array(ranks) <= r) for r in range(1, 10)])
        means.append(np.mean(precisions))
    np.testing.assert_allclose(result.cmc, np.mean(curves, axis=0), atol=1e-12)
    np.testing.assert_allclose(result.mAP, np.mean(means), atol=1e-9)
    assert len({tuple(g.features[:, 0].tolist()) for g in galleries}) > 1
    again = evaluate(query, gallery, protocol=protocol, draws=4, max_rank=9)
    assert again.mAP == result.mAP != evaluate(query, gallery, protocol=protocol, draws=4, seed=1).mAP


def test_vehicles_are_one_gallery_image_of_each_and_all_others_queries():
    result = evaluate(QUERY, GALLERY, protocol="vehicleid", draws=3)
    features, pids = np.concatenate([QUERY.features, GALLERY.features]), np.concatenate([QUERY.pids, GALLERY.pids])
    distances = distance_matrix(features, features, "cosine")
    ranks = []
    for number in range(3):
        order = np.random.default_rng([0, number]).permutation(len(pids))
        gallery = np.sort([next(i for i in order if pids[i] == pid) for pid in np.unique(pids)])
        for i in np.setdiff1d(np.arange(len(pids)), gallery):
            near = gallery[np.argsort(distances[i, gallery], kind="stable")]
            ranks.append(int(np.flatnonzero(pids[near] == pids[i])[0]) + 1)
    np.testing.assert_array_equal(result.first_match, ranks)
    assert result.mAP == pytest.approx(np.mean(1 / np.array(ranks)))
    assert result.cmc[0] == pytest.approx(np.mean(np.array(ranks) == 1))


MISTAKES = {
    "a string": ({"leave_out": "camera"}, "give a list of names"),
    "an attribute": ({"leave_out": ["hat"]}, "leave_out has 'hat'; choose from camera, clothes"),
    "no clothes": ({"leave_out": ["clothes"]}, "have no clothids"),
    "a protocol": ({"protocol": "mars"}, "unknown protocol 'mars'; choose from market1501, sysu_all"),
    "no draws": ({"protocol": "vehicleid", "draws": 0}, "draws is 0"),
    "cameras": ({"protocol": "sysu_all"}, "needs queries of the cameras 3 and 6"),
    "topk": ({"protocol": "vehicleid", "topk": 3}, "has its own rules; leave out"),
    "a pool": ({"pool": "median"}, "pool is 'median'; choose from none, mean, max"),
    "no tracklets": ({"pool": "mean"}, "give the tracklets"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_told(name):
    options, words = MISTAKES[name]
    with pytest.raises(UserError, match=words):
        evaluate(QUERY, GALLERY, **options)


def test_a_tracklet_has_one_identity():
    mixed = relabelled(GALLERY, tracklets=np.arange(150) // 2)
    with pytest.raises(UserError, match=r"the tracklet of row \d+ has several pids"):
        evaluate(QUERY, mixed, pool="mean")
    assert protocols.pool_tracklets(relabelled(GALLERY, tracklets=np.arange(150)), "max", "cosine").features.shape == (
        150,
        8,
    )
