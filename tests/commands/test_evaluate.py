"""The evaluation command as a person runs it."""

import csv
import dataclasses
import json
import os
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from forks import completed, completed_together

from torchreid_autoreid.commands import evaluate as evaluate_command
from torchreid_autoreid.commands import execute
from torchreid_autoreid.errors import UserError
from torchreid_autoreid.evaluation import (
    Embeddings,
    NeighbourIndex,
    cluster,
    compare_clusters,
    evaluate,
    load_embeddings,
    roc,
)
from torchreid_autoreid.parallel.launch import OneProcess
from torchreid_autoreid.space.networks import AutoReIDNetwork, AutoReIDSearchNetwork

ROOT = Path(__file__).resolve().parents[2]
DATA = Path(os.environ.get("TORCHREID_AUTOREID_DATA", ROOT.parent / "shared" / "data"))


def command(*arguments):
    return completed("evaluate.py", arguments)


def together(processes, *arguments):
    return completed_together("evaluate.py", arguments, processes)


def in_process(*arguments):
    """The command without a new process: quick, its errors raised."""
    return execute("evaluate", list(map(str, arguments)))


def assert_one_line(done, *words):
    lines = done.stderr.splitlines()
    assert done.returncode == 2, done.stderr
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    for word in words:
        assert word in lines[0], lines[0]


def make_embeddings(rng, count):
    pids = rng.integers(0, 12, size=count)
    centres = np.random.default_rng(7).normal(size=(12, 16))
    features = (centres[pids] + rng.normal(0, 1.2, size=(count, 16))).astype(np.float32)
    return Embeddings(features, pids, rng.integers(0, 4, size=count))


def write_npz(path, **changes):
    rng = np.random.default_rng(0)
    arrays = {}
    for part, count in (("query", 40), ("gallery", 300)):
        embeddings = make_embeddings(rng, count)
        arrays |= {f"{part}_{name}": getattr(embeddings, name) for name in ("features", "pids", "camids")}
    arrays |= changes
    np.savez(path, **{key: value for key, value in arrays.items() if value is not None})
    return path


def test_the_reference_figures_through_the_command(tmp_path):
    if not (DATA / "market1501_retail0288.npz").exists():
        pytest.skip("the reference embeddings are not beside this checkout")
    reference = json.loads((DATA / "reference.json").read_text())["market1501_retail0288"]
    for name, options in (("plain", []), ("reranked", ["--rerank"])):
        out = tmp_path / f"{name}.json"
        done = command("--features", DATA / "market1501_retail0288.npz", "--json", out, *options)
        assert done.returncode == 0, done.stderr
        (figures,) = json.loads(out.read_text()).values()
        wanted = reference[name]
        for ours, theirs in (("mAP", "mAP"), ("mINP", "mINP"), ("rank1", "r1"), ("rank5", "r5"), ("rank10", "r10")):
            assert figures[ours] == pytest.approx(wanted[theirs], abs=1e-5)
        assert figures["num_valid_queries"] == wanted["nv"]
        assert f"{wanted['mAP']:.2%}" in done.stdout


def test_files_written_agree_with_the_library(tmp_path):
    source = write_npz(tmp_path / "f.npz")
    out = {name: tmp_path / name for name in ("figures.json", "top.csv", "again.npz")}
    done = command(
        "--features", source, "--metric", "euclidean", "--json", out["figures.json"], "--topk-csv", out["top.csv"],
        "--topk", 3, "--save-features", out["again.npz"], "--query-expansion", 2,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    query, gallery = load_embeddings(source)
    expected = evaluate(query, gallery, metric="euclidean", query_expansion=2, topk=3)
    (figures,) = json.loads(out["figures.json"].read_text()).values()
    assert figures["mAP"] == pytest.approx(expected.mAP, abs=1e-7)
    assert figures["metric"] == "euclidean"
    rows = list(csv.DictReader(out["top.csv"].open()))
    assert len(rows) == 3 * len(query)
    assert [int(row["gallery"]) for row in rows] == expected.topk_indices.ravel().tolist()
    for row in rows:
        assert int(row["true_match"]) == (query.pids[int(row["query"])] == gallery.pids[int(row["gallery"])])
    again = load_embeddings(out["again.npz"])
    assert np.array_equal(again[0].features, query.features)
    assert np.array_equal(again[1].pids, gallery.pids)


def test_an_index_is_saved_and_found_again(tmp_path):
    source, index = write_npz(tmp_path / "f.npz"), tmp_path / "gallery.faiss"
    built, loaded = tmp_path / "built.json", tmp_path / "loaded.json"
    done = command("--features", source, "--index", "IVF4,Flat", "--save-index", index, "--json", built)
    assert done.returncode == 0, done.stderr
    done = command("--features", source, "--index", index, "--json", loaded)
    assert done.returncode == 0, done.stderr
    assert "(approximate)" in done.stdout
    (first,), (second,) = (json.loads(path.read_text()).values() for path in (built, loaded))
    assert first["mAP_on_retrieved"] == second["mAP_on_retrieved"]
    assert first["recall"] == second["recall"]
    other = write_npz(tmp_path / "g.npz", query_features=np.ones((40, 3)), gallery_features=np.ones((300, 3)))
    assert_one_line(command("--features", other, "--index", index), "gallery.faiss", "16 dimensions", "3")


def test_a_file_called_like_an_index_is_not_taken_for_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("Flat", "IVF4,Flat"):
        Path(name).write_text("no index")
        in_process("--features", write_npz(tmp_path / "f.npz"), "--index", name)
        with pytest.raises(UserError, match="is not a faiss index"):
            in_process("--features", write_npz(tmp_path / "f.npz"), "--index", f"./{name}")


def test_true_accepts_at_a_rate_of_false_ones(tmp_path):
    source, out = write_npz(tmp_path / "f.npz"), tmp_path / "out.json"
    done = command("--features", source, "--fpr", 0.01, "--fpr", 0.1, "--json", out)
    assert done.returncode == 0, done.stderr
    expected = roc(*load_embeddings(source), [0.01, 0.1])
    (figures,) = json.loads(out.read_text()).values()
    assert [row["tpr"] for row in figures["roc"]] == expected.tpr.tolist()
    assert [row["threshold"] for row in figures["roc"]] == expected.thresholds.tolist()
    assert f"{expected.tpr[0]:.2%}" in done.stdout


def test_a_threshold_that_is_infinite_is_valid_json(tmp_path):
    out = tmp_path / "out.json"
    in_process("--features", write_npz(tmp_path / "f.npz"), "--fpr", 1, "--json", out)
    (figures,) = json.loads(out.read_text(), parse_constant=pytest.fail).values()
    assert figures["roc"] == [{"fpr": 1.0, "achieved_fpr": 1.0, "tpr": 1.0, "threshold": None}]


def test_the_figures_say_how_they_were_made(tmp_path, capsys):
    out = tmp_path / "out.json"
    source = write_npz(tmp_path / "f.npz")
    in_process("--features", source, "--rerank", "--k1", 9, "--definition", "zhong", "--json", out)
    (figures,) = json.loads(out.read_text()).values()
    asked = {"reranked": True, "k1": 9, "k2": 6, "lambda_value": 0.3, "definition": "zhong", "cuhk03": False}
    assert figures.items() >= asked.items()
    assert figures["mAP"] == evaluate(*load_embeddings(source), rerank=True, k1=9, definition="zhong").mAP
    assert "(cosine, re-ranked by Zhong's definition)" in capsys.readouterr().out


def test_the_rules_of_other_protocols(tmp_path, capsys):
    random = np.random.default_rng(3)
    labels = {f"{part}_clothids": random.integers(0, 3, n) for part, n in (("query", 40), ("gallery", 300))}
    names = {f"{part}_tracklets": np.arange(n) for part, n in (("query", 40), ("gallery", 300))}
    source, out = write_npz(tmp_path / "f.npz", **labels, **names), tmp_path / "out.json"
    query, gallery = load_embeddings(source)
    assert gallery.knows("clothids")
    for options, expected in (
        (["--leave-out", "camera", "--leave-out", "clothes"], {"leave_out": ("camera", "clothes")}),
        (["--leave-out", "nothing"], {"leave_out": ()}),
        (["--junk-pid", "3", "--distractor-pid", "0"], {"junk_pids": [3], "distractor_pids": [0]}),
        (["--rerank", "--junk-pid", "3", "--no-rerank-junk"], {"rerank": True, "junk_pids": [3], "rerank_junk": False}),
        (["--pool", "max", "--multi-query", "mean"], {"pool": "max", "multi_query": "mean"}),
        (["--protocol", "vehicleid", "--draws", "3", "--seed", "5"], {"protocol": "vehicleid", "draws": 3, "seed": 5}),
    ):
        in_process("--features", source, *options, "--json", out)
        (figures,) = json.loads(out.read_text()).values()
        assert figures["mAP"] == evaluate(query, gallery, **expected).mAP
        told = {name: list(value) if isinstance(value, tuple) else value for name, value in expected.items()}
        assert figures.items() >= {name: value for name, value in told.items() if name != "rerank"}.items()
    assert "protocol vehicleid, draws 3, seed 5" in capsys.readouterr().out


def test_features_without_cameras_and_with_names(tmp_path):
    names = {
        f"{part}_pids": np.array([f"person {i % 12}" for i in range(n)])
        for part, n in (("query", 40), ("gallery", 300))
    }
    source, out = write_npz(tmp_path / "f.npz", query_camids=None, gallery_camids=None, **names), tmp_path / "out.json"
    in_process("--features", source, "--json", out, "--save-features", tmp_path / "again.npz", "--junk-pid", "person 3")
    (figures,) = json.loads(out.read_text()).values()
    assert figures["num_valid_queries"] == sum(i % 12 != 3 for i in range(40))
    assert not load_embeddings(tmp_path / "again.npz")[0].knows("camids")


def test_the_figure_under_each_definition(tmp_path, capsys):
    source, out = write_npz(tmp_path / "f.npz"), tmp_path / "out.json"
    in_process("--features", source, "--definitions", "--junk-pid", "3", "--json", out)
    (figures,) = json.loads(out.read_text()).values()
    assert len(figures["definitions"]) == 10  # plain, and two kinds of re-ranking with and without junk; two APs each
    zhong = evaluate(*load_embeddings(source), rerank=True, definition="zhong", junk_pids=[3])
    assert f"{zhong.figures['trapezoid_mAP']:.2%}" in capsys.readouterr().out


def test_clusters_are_written_and_compared_with_the_identities(tmp_path, capsys):
    source, out = write_npz(tmp_path / "f.npz"), tmp_path / "out.json"
    options = ["--cluster", "--eps", 0.7, "--min-samples", 3, "--k1", 12, "--k2", 4]
    query, gallery = load_embeddings(source)
    features = np.concatenate([query.features, gallery.features])
    expected = cluster(features, eps=0.7, min_samples=3, k1=12, k2=4)
    for name in ("labels.csv", "labels.npz"):
        in_process("--features", source, *options, "--cluster-labels", tmp_path / name, "--json", out)
    rows = list(csv.DictReader((tmp_path / "labels.csv").open()))
    assert [int(row["cluster"]) for row in rows] == expected.tolist()
    assert [row["part"] for row in rows] == ["query"] * 40 + ["gallery"] * 300
    with np.load(tmp_path / "labels.npz", allow_pickle=False) as arrays:
        np.testing.assert_array_equal(arrays["gallery_clusters"], expected[40:])
    (figures,) = json.loads(out.read_text()).values()
    agreement = compare_clusters(expected, np.concatenate([query.pids, gallery.pids]))
    assert figures["clusters"]["ari"] == agreement.ari
    assert f"ARI {agreement.ari:.4f}" in capsys.readouterr().out
    graph = tmp_path / "graph"
    method = ["--cluster", "--cluster-method", "hdbscan"]
    in_process("--features", source, *method, "--k1", 12, "--json", out, "--graph", graph)
    assert graph.stat().st_size > 8 * 12 * 340
    (figures,) = json.loads(out.read_text()).values()
    found = compare_clusters(cluster(features, "hdbscan", k1=12), np.concatenate([query.pids, gallery.pids]))
    assert figures["clusters"] == dataclasses.asdict(found)


@pytest.mark.parametrize("method", ["--rerank", "--cluster"])
def test_approximate_neighbours_are_told_with_their_recall(tmp_path, capsys, method):
    source, out = write_npz(tmp_path / "f.npz"), tmp_path / "out.json"
    options = ["--neighbours", "IVF8,Flat", "--neighbour-parameters", "nprobe=1", "--k1", 12]
    in_process("--features", source, method, *options, "--json", out)
    printed = capsys.readouterr().out
    query, gallery = load_embeddings(source)
    index = NeighbourIndex("IVF8,Flat", "nprobe=1")
    (figures,) = json.loads(out.read_text()).values()
    if method == "--rerank":
        assert figures["mAP"] == evaluate(query, gallery, rerank=True, k1=12, neighbours=index).mAP
    else:
        labels = cluster(np.concatenate([query.features, gallery.features]), k1=12, neighbours=index)
        figures = figures["clusters"]
        assert figures["ari"] == compare_clusters(labels, np.concatenate([query.pids, gallery.pids])).ari
    assert figures["neighbours"] == "IVF8,Flat"
    assert figures["neighbour_recall"] == index.recall < 1
    assert "IVF8,Flat (approximate)" in printed
    assert f"{index.recall:.2%}" in printed


IDLE = {
    "neighbours of nothing": (["--neighbours", "HNSW8"], "--neighbours is an option of --rerank and --cluster"),
    "neighbours of two kinds": (["--rerank", "--neighbours", "HNSW8", "--graph", "g"], "leave one of them out"),
    "parameters of no neighbours": (["--rerank", "--neighbour-parameters", "nprobe=2"], "option of --neighbours"),
    "neighbours of no index": (["--rerank", "--neighbours", "Best"], "faiss makes no index of 16 dim"),
    "a radius of no clusters": (["--eps", "0.5"], "--eps is an option of --cluster"),
    "a method of no clusters": (["--cluster-method", "hdbscan"], "--cluster-method is an option of --cluster"),
    "a radius of hdbscan": (["--cluster", "--cluster-method", "hdbscan", "--eps", "0.5"], "hdbscan finds its own"),
    "a graph of nothing": (["--graph", "g"], "--graph is an option of --rerank and --cluster"),
    "labels of no clusters": (["--cluster-labels", "l.csv"], "--cluster-labels is an option of --cluster"),
    "labels of a kind": (["--cluster", "--cluster-labels", "l.txt"], "ends in neither"),
    "k1 of two": (["--cluster", "--rerank", "--k1", "9"], "--k1 of --cluster or of re-ranking"),
    "draws of nothing drawn": (["--draws", "3"], "--draws is an option of --protocol"),
    "nothing and something": (["--leave-out", "nothing", "--leave-out", "camera"], "contradicts"),
    "no junk": (["--no-rerank-junk"], "option of --rerank with --junk-pid"),
    "images of tracklets": (["--pool", "mean", "--topk-csv", "t.csv"], "--topk-csv lists images"),
    "definitions of one": (["--definitions", "--rerank"], "--definitions does the re-ranking itself"),
    "k1 of no re-ranking": (["--k1", "9"], "--k1 is an option of --rerank"),
    "lambda of no re-ranking": (["--lambda", "0.1"], "--lambda is an option of --rerank"),
    "topk of no file": (["--topk", "3"], "--topk is an option of --topk-csv"),
    "parameters of no index": (["--search-parameters", "nprobe=2"], "nprobe=2"),
    "alpha of no expansion": (["--query-expansion-alpha", "3"], "no neighbours"),
    "rates of re-ranked distances": (["--rerank", "--fpr", "0.1"], "--fpr compares plain distances"),
    "an index that is not there": (["--index", "no.faiss"], "there is no index file no.faiss"),
    "features under a name of others": (["--save-features", "f.mat"], "--save-features f.mat writes an npz"),
    "an output that is no file": (["--json", "/dev/null"], "cannot write --json /dev/null"),
}


@pytest.mark.parametrize("name", IDLE)
def test_what_would_have_no_effect_is_refused(tmp_path, name):
    options, words = IDLE[name]
    with pytest.raises(UserError, match=words):
        in_process("--features", write_npz(tmp_path / "f.npz"), *options)


def test_no_file_is_written_over_another(tmp_path):
    source, out = write_npz(tmp_path / "f.npz"), tmp_path / "out"
    before = source.read_bytes()
    for options in (["--json", source], ["--save-features", source], ["--json", out, "--topk-csv", out]):
        with pytest.raises(UserError, match="given for something else too"):
            in_process("--features", source, *options)
    assert source.read_bytes() == before
    assert not out.exists()


def test_a_file_that_cannot_be_finished_is_told_and_leaves_the_old_one(tmp_path, monkeypatch):
    source, out = write_npz(tmp_path / "f.npz"), tmp_path / "old.npz"
    out.write_bytes(b"old")

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(UserError, match=r"cannot write --save-features .*old\.npz: No space left"):
        in_process("--features", source, "--save-features", out)
    assert out.read_bytes() == b"old"
    assert {path.name for path in tmp_path.iterdir()} == {"old.npz", "f.npz"}


def test_a_process_keeps_its_part_of_the_gallery_only(tmp_path):
    world = OneProcess()
    world.rank, world.size = 1, 3
    part = evaluate_command.share_of_features(str(write_npz(tmp_path / "f.npz")), world).gallery
    assert part.features.base is None
    np.testing.assert_array_equal(part.features, load_embeddings(tmp_path / "f.npz")[1].features[100:200])


@pytest.mark.slow
def test_several_processes_write_what_one_writes(tmp_path):
    source = write_npz(tmp_path / "f.npz")
    written = []
    for run in (command, partial(together, 3)):
        out = {name: tmp_path / name for name in ("figures.json", "top.csv", "again.npz")}
        done = run(
            "--features", source, "--rerank", "--json", out["figures.json"], "--topk-csv", out["top.csv"],
            "--save-features", out["again.npz"],
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("mAP") == 1
        (figures,) = json.loads(out["figures.json"].read_text()).values()
        figures.pop("seconds")
        features = load_embeddings(out["again.npz"])[1].features.tolist()
        written.append((figures, out["top.csv"].read_text(), features))
    assert written[0] == written[1]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """The embedded dataset and the weights of three networks, untrained."""
    folder = tmp_path_factory.mktemp("drawn")
    torch.manual_seed(0)
    own = AutoReIDNetwork(48, channels=2, layers=(1, 1, 1, 1))
    torch.save({"state_dict": own.state_dict(), "epoch": 1, "rank1": np.float64(0.5)}, folder / "torchreid.pth")
    other_classes = AutoReIDNetwork(7, channels=2, layers=(1, 1, 1, 1))
    torch.save({f"module.{key}": value for key, value in other_classes.state_dict().items()}, folder / "parallel.pth")
    search = AutoReIDSearchNetwork(48, channels=2, layers=(1, 1, 1, 1), blocks=1)
    torch.save(search.state_dict(), folder / "search.pth")
    return folder


def on_drawn(drawn, weights, *pairs, flags=()):
    sets = ["-s", "synthetic_pedestrians", "-t", "synthetic_pedestrians", "--root", drawn]
    size = [
        "data.height",
        32,
        "data.width",
        16,
        "data.workers",
        0,
        "autoreid.channels",
        2,
        "autoreid.layers",
        "[1,1,1,1]",
    ]
    return command("--weights", drawn / weights, *flags, *sets, *size, *pairs)


@pytest.mark.parametrize(
    ("weights", "pairs"),
    [
        ("torchreid.pth", ["model.name", "autoreid"]),
        pytest.param("parallel.pth", ["model.name", "autoreid"], marks=pytest.mark.slow),
        pytest.param("search.pth", ["model.name", "autoreid_search", "autoreid.blocks", 1], marks=pytest.mark.slow),
    ],
)
def test_a_model_on_its_dataset(drawn, tmp_path, weights, pairs):
    flags = ["--json", tmp_path / "f.json", "--topk-csv", tmp_path / "t.csv", "--report", tmp_path / "r.html"]
    flags += ["--embed-images", 2]
    done = on_drawn(drawn, weights, *pairs, flags=flags)
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "f.json").read_text())["synthetic_pedestrians"]
    assert figures["num_valid_queries"] == 192
    assert figures["metric"] == "euclidean"
    row = next(csv.DictReader((tmp_path / "t.csv").open()))
    assert Path(row["query_path"]).is_file()
    assert Path(row["gallery_path"]).is_file()
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert page.count("<img src=") == 2 * 11  # a query and its answers
    assert f"{figures['mAP']:.1%}" in page


@pytest.mark.slow
def test_several_processes_share_the_images(drawn, tmp_path):
    arguments = ["--weights", drawn / "torchreid.pth", "-s", "synthetic_pedestrians", "--root", drawn]
    pairs = "model.name autoreid data.height 32 data.width 16 data.workers 0 autoreid.channels 2 test.batch_size 50"
    answers = []
    for number, run in enumerate((command, partial(together, 2))):
        out = tmp_path / f"{number}.json"
        done = run(*arguments, "--json", out, "--topk-csv", tmp_path / f"{number}.csv", *pairs.split(),
                   "autoreid.layers", "[1,1,1,1]")  # fmt: skip
        assert done.returncode == 0, done.stderr
        figures = json.loads(out.read_text())["synthetic_pedestrians"]
        figures.pop("seconds")
        answers.append((figures, list(csv.DictReader((tmp_path / f"{number}.csv").open()))))
    assert answers[0] == answers[1]


def test_weights_of_another_network_are_named(drawn):
    assert_one_line(on_drawn(drawn, "search.pth", "model.name", "autoreid"), "search.pth", "another network")


@pytest.mark.slow
def test_weights_that_hold_objects_are_refused(drawn):
    class Anything:
        pass

    globals()["Anything"] = Anything
    Anything.__qualname__ = "Anything"
    torch.save({"state_dict": {}, "model": Anything()}, drawn / "pickled.pth")
    assert_one_line(
        on_drawn(drawn, "pickled.pth", "model.name", "autoreid"), "pickled.pth", "not a readable checkpoint"
    )
    assert_one_line(on_drawn(drawn, "torchreid.pth", "model.name", "no_such_net"), "no_such_net")
    typo = on_drawn(drawn, "torchreid.pth", "model.name", "autoreid", "autoreid.genotype", "retreival")
    assert_one_line(typo, "retreival", "did you mean retrieval")


BAD_FILES = {
    "a missing key": ({"gallery_pids": None}, ["gallery_pids"]),
    "pickled objects": ({"query_pids": np.array([object()] * 40, dtype=object)}, ["query_pids"]),
    "NaN": ({"query_features": np.full((40, 16), np.nan, np.float32)}, ["NaN", "rows"]),
    "other dimensions": ({"gallery_features": np.ones((300, 8), np.float32)}, ["16", "8"]),
    "other length": ({"gallery_camids": np.zeros(299, int)}, ["camids", "299"]),
    "no true match": ({"gallery_pids": np.full(300, 99)}, ["true match"]),
}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in ("pickled objects", "NaN") else pytest.mark.slow) for n in BAD_FILES]
)
def test_bad_files_get_one_line(tmp_path, name):
    changes, words = BAD_FILES[name]
    assert_one_line(command("--features", write_npz(tmp_path / "f.npz", **changes)), *words)


BAD_OPTIONS = {
    "missing file": (["--features", "/no/such.npz"], ["/no/such.npz"]),
    "missing weights": (
        ["--weights", "/no/such.pth", "-s", "synthetic_pedestrians", "-t", "synthetic_pedestrians"],
        ["/no/such.pth"],
    ),
    "unwritable output": (["--json", "/no/such/folder/f.json"], ["--json", "/no/such/folder"]),
    "k1 too large": (["--rerank", "--k1", "5000"], ["5000", "k1"]),
    "unknown index": (["--index", "Flatt"], ["Flatt"]),
    "no GPU": (["--device", "cuda"], ["cuda"]),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", BAD_OPTIONS)
def test_bad_options_get_one_line(tmp_path, name):
    if name == "no GPU" and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    options, words = BAD_OPTIONS[name]
    source = [] if "--features" in options or "--weights" in options else ["--features", write_npz(tmp_path / "f.npz")]
    root = ["--root", tmp_path] if "--weights" in options else []
    assert_one_line(command(*source, *root, *options), *words)


def test_without_a_source_the_options_are_named():
    done = command()
    assert done.returncode == 2
    assert "--weights" in done.stderr
    assert "--features" in done.stderr
