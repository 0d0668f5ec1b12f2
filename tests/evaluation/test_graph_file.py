"""A graph of neighbours in a file: resumed bit for bit, used again, and never another's."""

import numpy as np
import pytest
import torch
from oracles import clustered

from torchreid_autoreid.errors import UserError
from torchreid_autoreid.evaluation import cluster, evaluate, graph_file, neighbours, pairwise
from torchreid_autoreid.evaluation.space import Space


@pytest.fixture(autouse=True)
def pieces(monkeypatch):
    """Many of them, each written."""
    monkeypatch.setattr(pairwise, "CPU_BLOCK", (16, 40))
    monkeypatch.setattr(neighbours, "HALF_ROWS", 16)
    monkeypatch.setattr(graph_file, "EVERY", 0.0)


ITEMS = np.random.default_rng(0).integers(-2, 3, (211, 4)).astype(np.float32)  # many ties


def found(path=None, k=9, progress=None, items=ITEMS, metric="euclidean"):
    collection = neighbours.Collection(items[:50], items[50:], Space(metric), neighbours.OneProcess())
    near = neighbours.Items(collection, [torch.device("cpu")]).neighbourhood(k, progress, path)
    return near.indices, near.distances, near.farthest


def same(a, b):
    return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


class Stop:
    """Counts pieces, and ends the search after some."""

    def __init__(self, after=None):
        self.after, self.seen = after, []

    def __call__(self, what, done, total):
        self.seen.append(done)
        if done == self.after:
            raise KeyboardInterrupt


@pytest.mark.parametrize("after", range(1, 7))
def test_a_stopped_search_goes_on_and_ends_the_same(tmp_path, after):
    path = str(tmp_path / "graph")
    with pytest.raises(KeyboardInterrupt):
        found(path, progress=Stop(after))
    rest = Stop()
    assert same(found(path, progress=rest), found())
    assert rest.seen == list(range(after + 1, 7))


def test_a_whole_graph_is_used_again_for_fewer_neighbours_and_replaced_for_more(tmp_path):
    path = str(tmp_path / "graph")
    found(path, k=9)
    for k, looked_at in ((9, 0), (4, 0), (20, 6), (9, 0), (20, 0)):
        progress = Stop()
        assert same(found(path, k=k, progress=progress), found(k=k))
        assert len(progress.seen) == looked_at


def test_a_part_for_another_number_of_neighbours_or_by_other_pieces_is_not_gone_on_from(tmp_path, monkeypatch):
    for change in ("k", "pieces"):
        path = str(tmp_path / change)
        with pytest.raises(KeyboardInterrupt):
            found(path, progress=Stop(2))
        if change == "pieces":
            monkeypatch.setattr(pairwise, "CPU_BLOCK", (16, 64))
        k = 5 if change == "k" else 9
        assert same(found(path, k=k), found(k=k))


def test_re_ranking_and_clusters_share_a_graph(tmp_path):
    path = str(tmp_path / "graph")
    query, gallery = clustered(40), clustered(170, seed=1)
    features = np.concatenate([query.features, gallery.features])
    labels = cluster(features, k1=12, graph=path)
    assert np.array_equal(labels, cluster(features, k1=12))
    kept = (tmp_path / "graph").read_bytes()
    for options in ({"k1": 8}, {"k1": 8, "lambda_value": 0.5}, {"k1": 10, "definition": "zhong"}):
        ours = evaluate(query, gallery, rerank=True, graph=path, **options)
        assert (
            ours.per_query["mAP"].tolist() == evaluate(query, gallery, rerank=True, **options).per_query["mAP"].tolist()
        )
    assert (tmp_path / "graph").read_bytes() == kept  # not even written again


def test_a_graph_of_other_features_or_metrics_is_left_as_it_is(tmp_path):
    path = tmp_path / "graph"
    found(str(path))
    kept = path.read_bytes()
    other = ITEMS.copy()
    other[17, 2] += 1
    for options in ({"items": other}, {"items": ITEMS[:-1]}, {"metric": "cosine"}):
        with pytest.raises(UserError, match="other features or metrics; give another file"):
            found(str(path), **options)
    assert path.read_bytes() == kept


def test_files_that_are_no_graph_are_told(tmp_path):
    path = tmp_path / "graph"
    found(str(path))
    with np.load(path) as archive:
        arrays = dict(archive)
    whole = path.read_bytes()
    pickled = arrays | {"keys": np.array([[object()]])}
    bad = [
        ("text", b"no graph"),
        ("empty", b""),
        ("torn", whole[: len(whole) // 2]),
        ("pickled", pickled),
        ("no keys", {name: array for name, array in arrays.items() if name != "keys"}),
        ("another type", arrays | {"keys": arrays["keys"].astype(np.float64)}),
        ("out of range", arrays | {"keys": arrays["keys"] | 0x7FFFFFF}),
        ("too few", arrays | {"farthest": arrays["farthest"][:3]}),
    ]
    for name, content in bad:
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            with open(path, "wb") as file:
                np.savez(file, **content)
        with pytest.raises(UserError, match=r"holds no neighbours of ours|is damaged"):
            found(str(path))
        assert path.exists(), name
    with open(path, "wb") as file:
        np.savez_compressed(file, **arrays | {"farthest": np.zeros(10_000_000, np.float32)})
    with pytest.raises(UserError, match="holds no neighbours of ours"):
        found(str(path))
    with pytest.raises(UserError, match="cannot write graph"):
        found(str(tmp_path / "nowhere" / "graph"))
    with pytest.raises(UserError, match="is of re-ranking"):
        evaluate(clustered(9), clustered(30, seed=1), graph=str(tmp_path / "a"))
