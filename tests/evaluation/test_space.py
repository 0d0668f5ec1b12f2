"""Figures do not depend on the type, the layout, the scale or the offset of features, nor on PyTorch's settings."""

import contextlib

import faiss
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import clustered, market1501

from torchreid_autoreid.errors import UserError
from torchreid_autoreid.evaluation import (
    Embeddings,
    RetrievalIndex,
    distances,
    evaluate,
    k_reciprocal_distances,
    pairwise,
    re_ranking,
    roc,
)
from torchreid_autoreid.evaluation.space import Space, choose_space, unit64


def with_features(embeddings, features):
    return Embeddings(features, embeddings.pids, embeddings.camids)


def with_duplicates(n, seed, d=16):
    """Embeddings of which a third are exact copies of others, under other identities."""
    made = clustered(n, d=d, seed=seed, spread=1.5)
    random = np.random.default_rng(seed + 50)
    copies = random.choice(n, n // 3, replace=False)
    made.features[copies] = made.features[random.choice(n, n // 3)]
    return made


# --- layout ----------------------------------------

LAYOUTS = {
    "Fortran": np.asfortranarray,
    "transposed": lambda x: np.ascontiguousarray(x.T).T,
    "every other column": lambda x: np.repeat(x, 2, axis=1)[:, ::2],
    "every other row": lambda x: np.repeat(x, 2, axis=0)[::2],
    "backwards": lambda x: x[::-1, ::-1].copy()[::-1, ::-1],
    "one float off": lambda x: np.concatenate([[0], x.ravel()]).astype(x.dtype)[1:].reshape(x.shape),
    "one byte off": lambda x: np.frombuffer(b"x" + x.tobytes(), x.dtype, offset=1).reshape(x.shape),
    "other byte order": lambda x: x.astype(x.dtype.newbyteorder()),
}


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("offset", [0, 30])
@pytest.mark.parametrize(
    "options", [{"topk": 9}, {"rerank": True, "topk": 9}, {"query_expansion": 3, "database_augmentation": 2}]
)
def test_the_layout_in_memory_is_no_matter(monkeypatch, metric, offset, options):
    monkeypatch.setattr(pairwise, "CPU_BLOCK", (37, 61))
    query, gallery = with_duplicates(60, 0, d=37), with_duplicates(150, 1, d=37)
    gallery.features[:50] = query.features[:50]
    query.features[:] += offset
    gallery.features[:] += offset
    plain = evaluate(query, gallery, metric=metric, **options)
    for layout, change in LAYOUTS.items():
        for q, g in ((change, change), (np.ascontiguousarray, change), (change, np.ascontiguousarray)):
            changed = evaluate(
                with_features(query, q(query.features)),
                with_features(gallery, g(gallery.features)),
                metric=metric,
                **options,
            )
            for name in ("average_precision", "topk_indices", "topk_distances"):
                np.testing.assert_array_equal(getattr(changed, name), getattr(plain, name), err_msg=layout)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 90),
    columns=st.integers(1, 200),
    dimension=st.sampled_from([1, 3, 17, 64, 129, 256, 700]),
    metric=st.sampled_from(["cosine", "euclidean"]),
    seed=st.integers(0, 1000),
)
def test_a_pair_has_the_same_bits_in_every_block(rows, columns, dimension, metric, seed):
    random = np.random.default_rng(seed)
    a, b = (random.normal(size=(n, dimension)).astype(np.float32) for n in (300, 300))
    space = Space(metric)
    whole = distances.distance_block(space.prepare(a, CPU), space.prepare(b, CPU)).numpy()
    r, c = random.choice(300, rows, replace=False), random.choice(300, columns, replace=False)
    part = distances.distance_block(space.prepare(a[r], CPU), space.prepare(b[c], CPU)).numpy()
    np.testing.assert_array_equal(part, whole[np.ix_(r, c)])


CPU = torch.device("cpu")


def test_products_on_a_gpu_have_one_shape(monkeypatch):
    """There the order of a sum depends on the shape of the product; here only the shapes are looked at."""
    monkeypatch.setattr(distances, "_tile", lambda device: (32, 48))
    shapes = []
    product = distances._product
    monkeypatch.setattr(
        distances,
        "_product",
        lambda a, b, out=None: shapes.append((len(a.values), len(b.values))) or product(a, b, out),
    )
    query, gallery = clustered(70, seed=0), clustered(130, seed=1)
    tiled = evaluate(query, gallery, metric="euclidean", topk=5, rerank=True)
    assert set(shapes) == {(32, 48)}
    monkeypatch.undo()
    plain = evaluate(query, gallery, metric="euclidean", topk=5, rerank=True)
    np.testing.assert_array_equal(tiled.topk_indices, plain.topk_indices)
    np.testing.assert_allclose(tiled.topk_distances, plain.topk_distances, atol=1e-5)


def test_ranks_are_counted_by_the_distances_of_the_scan(monkeypatch):
    """Where those of chosen pairs differ in the last bits, ties are ties all the same."""
    query, gallery = with_duplicates(60, 0), with_duplicates(200, 1)
    gallery.features[:50] = query.features[:50]
    expected = evaluate(query, gallery)
    between = pairwise.FeatureDistances.between
    monkeypatch.setattr(
        pairwise.FeatureDistances,
        "between",
        lambda self, rows, columns: np.nextafter(between(self, rows, columns), np.float32(9)),
    )
    np.testing.assert_array_equal(evaluate(query, gallery).average_precision, expected.average_precision)


# --- offset, scale, type ----------------------------------------


def exact_distances(query, gallery, metric):
    """Distances in extended precision, centred there."""
    q, g = (np.asarray(x.features).astype(np.longdouble) for x in (query, gallery))
    if metric == "cosine":
        q, g = (x / np.sqrt(np.square(x / np.abs(x).max(1, keepdims=True)).sum(1, keepdims=True)) for x in (q, g))
        q, g = (x / np.sqrt(np.square(x).sum(1, keepdims=True)) for x in (q, g))
    return np.square(q[:, None] - g[None]).sum(-1) / (2 if metric == "cosine" else 1)


def assert_right(query, gallery, metric, **options):
    result = evaluate(query, gallery, metric=metric, **options)
    mean, cmc, *_ = market1501(exact_distances(query, gallery, metric), query, gallery)
    np.testing.assert_allclose(result.mAP, mean, atol=2e-4)
    np.testing.assert_allclose(result.cmc, cmc, atol=2 / len(query))
    return result


@settings(max_examples=40, deadline=None)
@given(
    metric=st.sampled_from(["cosine", "euclidean"]),
    kind=st.sampled_from([np.float32, np.float64]),
    exponent=st.floats(0, 5),
    scale=st.sampled_from([1e-6, 1.0, 1e6]),
    direction=st.integers(0, 5),
    seed=st.integers(0, 100),
)
def test_features_off_the_origin_are_ranked_rightly(metric, kind, exponent, scale, direction, seed):
    query, gallery = clustered(40, seed=seed, spread=1.5, d=12), clustered(150, seed=seed + 1, spread=1.5, d=12)
    offset = 10**exponent * np.random.default_rng(direction).normal(size=12)
    query, gallery = (
        with_features(x, ((x.features.astype(np.float64) + offset) * scale).astype(kind)) for x in (query, gallery)
    )
    assert_right(query, gallery, metric)


def test_doubles_are_not_rounded_before_they_are_centred():
    query, gallery = clustered(40, seed=0, spread=1.5), clustered(150, seed=1, spread=1.5)
    far = [with_features(x, x.features.astype(np.float64) + 1e9) for x in (query, gallery)]
    assert_right(*far, "euclidean")
    assert len(np.unique(far[0].features.astype(np.float32))) == 1
    final = k_reciprocal_distances(*(x.features for x in far), "euclidean", k1=9, k2=3)
    expected = k_reciprocal_distances(query.features, gallery.features, "euclidean", k1=9, k2=3)
    np.testing.assert_allclose(final, expected, atol=1e-4)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("rerank", [False, True])
def test_two_groups_far_apart_are_compared_in_float64(metric, rerank):
    """No centre is near both; within each, distances are below float32's rounding."""
    query, gallery = clustered(40, seed=0, spread=1.5), clustered(150, seed=1, spread=1.5)
    axis = np.eye(8)[0] * 3000 + np.eye(8)[1] * (3000 if metric == "cosine" else 0)
    moved = []
    for x in (query, gallery):
        side = np.where(x.pids % 2, 1, -1)[:, None]
        other = np.eye(8)[2] * 3000
        moved.append(with_features(x, x.features.astype(np.float64) + np.where(side > 0, axis, other)))
    space = choose_space(moved[0].features, moved[1].features, metric)
    assert not space.plain
    if rerank:
        distance = exact_distances(*moved, metric).astype(np.float64)
        within = evaluate(*moved, metric=metric, rerank=True, k1=9, k2=3)
        pairs = [exact_distances(a, b, metric).astype(np.float64) for a, b in ((moved[0],) * 2, (moved[1],) * 2)]
        final = re_ranking(distance, *pairs, k1=9, k2=3)
        np.testing.assert_allclose(within.mAP, market1501(final, *moved)[0], atol=2e-3)
    else:
        assert_right(*moved, metric)


def test_one_outlier_moves_no_centre():
    query, gallery = clustered(40, seed=0, spread=1.5), clustered(150, seed=1, spread=1.5)
    query.features[:] += 100
    gallery.features[:] += 100
    gallery.features[[3, 77]] *= 1e5
    assert_right(query, gallery, "euclidean")


def test_queries_too_far_from_the_gallery_are_told():
    query, gallery = clustered(40, seed=0), clustered(150, seed=1)
    with pytest.raises(UserError, match=r"queries and gallery are so far apart .* its own mean"):
        evaluate(with_features(query, query.features + 1e6), gallery, metric="euclidean")


@pytest.mark.parametrize("scale", [1e-300, 1e-37, 1e-13, 1e-12, 1.0, 1e18, 1e37, 1e300])
def test_directions_have_no_scale(scale):
    query, gallery = clustered(30, seed=0), clustered(130, seed=1)
    kind = np.float64 if not 1e-38 < scale < 1e38 else np.float32
    scaled = [with_features(x, (x.features.astype(np.float64) * scale).astype(kind)) for x in (query, gallery)]
    np.testing.assert_allclose(evaluate(*scaled).mAP, evaluate(query, gallery).mAP, atol=1e-6)
    found = RetrievalIndex.build(scaled[1].features, "IDMap,Flat").search(scaled[0].features, 5)[0]
    np.testing.assert_array_equal(
        found, RetrievalIndex.build(gallery.features, "IDMap,Flat").search(query.features, 5)[0]
    )


def test_squares_that_vanish_are_told():
    query, gallery = clustered(30, seed=0), clustered(130, seed=1)
    small = [with_features(x, x.features * np.float32(1e-20)) for x in (query, gallery)]
    with pytest.raises(UserError, match="so small that their squares underflow float32; scale the features up"):
        evaluate(*small, metric="euclidean")


def test_a_vector_without_direction_is_at_distance_one():
    query, gallery = clustered(20, seed=0), clustered(60, seed=1)
    for offset in (0, 1e4):
        q, g = (x.features.astype(np.float64) + offset for x in (query, gallery))
        q[3], g[5] = 0, 0
        result = evaluate(with_features(query, q), with_features(gallery, g), topk=60)
        found = dict(zip(result.topk_indices[3].tolist(), result.topk_distances[3].tolist(), strict=True))
        assert all(value == pytest.approx(1, abs=1e-6) for place, value in found.items() if place >= 0)
        row = result.topk_indices[7].tolist()
        assert result.topk_distances[7][row.index(5)] == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("kind", [np.float16, np.int8, np.int16, np.int32, np.int64, np.float64])
@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("rerank", [False, True])
def test_the_type_of_features_is_no_matter(kind, metric, rerank):
    query, gallery = clustered(30, seed=0), clustered(130, seed=1)
    whole = [with_features(x, np.round(x.features * 20).clip(-100, 100)) for x in (query, gallery)]
    typed = [with_features(x, x.features.astype(kind)) for x in whole]
    options = {"metric": metric, "rerank": rerank, "k1": 9}
    assert evaluate(*typed, **options).to_dict() == evaluate(*whole, **options).to_dict()


@pytest.mark.parametrize(
    ("kind", "scale"), [(np.float16, 300.0), (np.float16, 0.003), (np.uint8, 60.0), (np.int32, 60000.0)]
)
def test_matrices_of_any_type_are_squared_in_a_type_that_holds_the_squares(kind, scale):
    random = np.random.default_rng(0)
    x = random.random((90, 4))
    matrix = (np.abs(x[:, None] - x[None]).sum(-1) * scale).astype(kind)
    given = matrix[:20, 20:], matrix[:20, :20], matrix[20:, 20:]
    expected = re_ranking(*(m.astype(np.float64) for m in given), 9, 3)
    assert np.isfinite(expected).all()
    np.testing.assert_allclose(re_ranking(*given, 9, 3), expected, atol=1e-5)


@pytest.mark.parametrize("scale", [1e-200, 1e-25, 1e25, 1e200])
def test_matrices_of_any_scale_are_reranked(scale):
    random = np.random.default_rng(0)
    x = random.random((90, 4))
    matrix = np.abs(x[:, None] - x[None]).sum(-1)
    given = matrix[:20, 20:], matrix[:20, :20], matrix[20:, 20:]
    expected = re_ranking(*given, 9, 3)
    np.testing.assert_allclose(re_ranking(*(m * scale for m in given), 9, 3), expected, atol=1e-5)
    if 1e-30 < scale < 1e30:
        typed = [(m * scale).astype(np.float32) for m in given]
        np.testing.assert_allclose(re_ranking(*typed, 9, 3), expected, atol=1e-5)


@settings(max_examples=60, deadline=None)
@given(
    scale=st.floats(-300, 300),
    kind=st.sampled_from([np.float16, np.float32, np.float64]),
    metric=st.sampled_from(["cosine", "euclidean"]),
    options=st.sampled_from(
        [{}, {"rerank": True, "k1": 5}, {"query_expansion": 3}, {"database_augmentation": 3}, {"index": "HNSW8"}]
    ),
)
def test_whatever_the_scale_the_answer_is_right_or_one_line(scale, kind, metric, options):
    """Infinite distances must not become positions, which libraries in C take without looking."""
    query, gallery = clustered(20, seed=0), clustered(70, seed=1)
    with np.errstate(all="ignore"), contextlib.suppress(UserError):
        scaled = [with_features(x, (x.features.astype(np.float64) * 10**scale).astype(kind)) for x in (query, gallery)]
        if not all(x.features.any(axis=1).all() for x in scaled):
            return  # nothing is left of them
        result = evaluate(*scaled, metric=metric, **options)
        if kind == np.float64 and "index" not in options:
            assert result.mAP == pytest.approx(evaluate(query, gallery, metric=metric, **options).mAP, abs=0.02)
        assert 0 < result.mAP <= 1


def test_a_roc_far_from_the_origin_is_right():
    query, gallery = clustered(40, seed=0), clustered(90, seed=1)
    near = roc(query, gallery, [0.01, 0.2], metric="euclidean")
    far = roc(
        *(with_features(x, x.features.astype(np.float64) + 1e6) for x in (query, gallery)), [0.01, 0.2], "euclidean"
    )
    np.testing.assert_allclose(far.tpr, near.tpr)
    np.testing.assert_allclose(far.thresholds, near.thresholds, rtol=1e-4)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_unit_vectors_have_length_one(metric):
    rows = np.random.default_rng(0).normal(size=(50, 9)) * 10.0 ** np.arange(-250, 250, 10)[:, None]
    np.testing.assert_allclose(np.linalg.norm(unit64(rows), axis=1), 1)
    assert not unit64(np.zeros((2, 3))).any()


# --- indexes ----------------------------------------


@pytest.mark.parametrize("factory", ["IDMap,Flat", "IVF4,Flat", "HNSW8", "PCA4,IVF2,Flat"])
@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_an_index_of_features_off_the_origin_finds_what_is_near(tmp_path, factory, metric):
    query, gallery = clustered(40, seed=0, spread=1.5), clustered(300, seed=1, spread=1.5)
    far = [with_features(x, x.features + np.float32(3000)) for x in (query, gallery)]
    result = evaluate(*far, metric=metric, index=factory, num_retrieved=300)
    assert result.recall[1] >= evaluate(query, gallery, metric="euclidean", index=factory).recall[1] - 0.05
    built = RetrievalIndex.build(far[1].features, factory, metric)
    positions, found = built.search(far[0].features, 5)
    expected = np.take_along_axis(exact_distances(*far, metric).astype(np.float64), positions, 1)
    if "PCA" not in factory:
        np.testing.assert_allclose(found, expected, rtol=0.01, atol=1e-9 if metric == "cosine" else 1e-3)
    if metric == "cosine":
        with pytest.raises(UserError, match="holds them centred, which a file cannot tell"):
            built.save(tmp_path / "a.index")
        return
    built.save(tmp_path / "a.index")
    for one, two in zip(
        RetrievalIndex.load(tmp_path / "a.index", 8, metric).search(far[0].features, 5), (positions, found), strict=True
    ):
        np.testing.assert_array_equal(one, two)

    raw = faiss.read_index(str(tmp_path / "a.index"))  # also for whoever has faiss only
    np.testing.assert_array_equal(raw.search(far[0].features, 1)[1][:, 0], positions[:, 0])


# --- PyTorch's settings ----------------------------------------


@contextlib.contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextlib.contextmanager
def fp32_precision(name, value):
    if not hasattr(torch.backends, "fp32_precision"):
        pytest.skip("this PyTorch has no setting for each backend")
    backend = getattr(torch.backends, name).matmul
    before = backend.fp32_precision
    backend.fp32_precision = value
    try:
        yield
        assert backend.fp32_precision == value
    finally:
        backend.fp32_precision = before


SETTINGS = {
    "float64": lambda: default_dtype(torch.float64),
    "bfloat16": lambda: default_dtype(torch.bfloat16),
    "device": lambda: torch.device("meta"),
    "cuda tf32": lambda: fp32_precision("cuda", "tf32"),
    "mkldnn bf16": lambda: fp32_precision("mkldnn", "bf16"),
    "inference mode": torch.inference_mode,
}


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_of_the_process_change_nothing(name):
    query, gallery = clustered(30, seed=0, d=64), clustered(100, seed=1, d=64)

    def figures():
        results = [
            evaluate(query, gallery, topk=5),
            evaluate(query, gallery, metric="euclidean", rerank=True, topk=5, k1=9),
            evaluate(query, gallery, query_expansion=3, database_augmentation=2, topk=5),
            evaluate(query, gallery, index="IVF4,Flat", topk=5),
            evaluate(query, gallery, use_metric_cuhk03=True, topk=5),
        ]
        curve = roc(query, gallery, [0.01])
        return [r.to_dict() for r in results], [r.topk_distances.tolist() for r in results], curve.thresholds.tolist()

    expected = figures()
    with SETTINGS[name]():
        assert figures() == expected


def test_two_evaluations_at_once_leave_the_settings_as_they_were():
    with fp32_precision("cuda", "tf32"):
        # What is the process's alone: the settings of a thread are left in the order in which it has entered them.
        first = second = distances._FULL_PRECISION
        with first:
            second.__enter__()
        assert torch.backends.cuda.matmul.fp32_precision == "ieee"  # the other one goes on
        second.__exit__(None, None, None)
