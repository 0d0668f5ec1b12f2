"""The readers of every format, given what hypothesis thinks of: any value, in the right shape and in the wrong one."""

import io
import json
import struct
import zipfile

import faiss
import numpy as np
import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from readers import READERS, graph_file, read

from torchreid_autoreid.config import get_default_config
from torchreid_autoreid.evaluation.ranking import Farthest, Nearest
from torchreid_autoreid.genotype import OPERATION_NAMES, Genotype

SETTINGS = settings(
    max_examples=150,
    deadline=None,
    database=None,
    derandomize=True,  # the same examples in every run; run.py looks for new ones
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

numbers = st.one_of(st.integers(), st.floats(), st.sampled_from([2**53, 2**64, 10**400, -1, 0, float("nan")]))
plain = st.recursive(
    st.none() | st.booleans() | numbers | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=12,
)


@pytest.fixture
def place(tmp_path):
    return tmp_path / "file"


@pytest.mark.parametrize("name", READERS)
def test_any_bytes(name, place):
    @SETTINGS
    @given(st.binary(max_size=400))
    def check(content):
        read(name, content, place)

    check()


def changed(draw, value):
    """The value with one part of it, at any depth, replaced by anything, or taken out, or put in twice."""
    if isinstance(value, dict | list) and value and draw(st.integers(0, 4)):
        copy = value.copy()
        key = draw(st.sampled_from(sorted(value))) if isinstance(value, dict) else draw(st.integers(0, len(value) - 1))
        action = draw(st.integers(0, 9))
        if action == 0:
            del copy[key]
        elif action == 1:
            copy = copy | {draw(st.text(max_size=8)): copy[key]} if isinstance(value, dict) else [*copy, copy[key]]
        else:
            copy[key] = changed(draw, value[key])
        return copy
    return draw(plain | st.sampled_from(OPERATION_NAMES))


@st.composite
def mutated(draw, value):
    for _ in range(draw(st.integers(1, 3))):
        value = changed(draw, value)
    return value


@SETTINGS
@given(mutated(Genotype.load("retrieval").to_dict()))
def test_genotypes(tmp_path_factory, value):
    read("genotype", json.dumps(value).encode(), tmp_path_factory.getbasetemp() / "genotype")


CELL = (Genotype.load("retrieval").normal[0],)
HALF = dict.fromkeys(("loss", "loss_softmax", "loss_triplet", "top1", "top5", "top10"), 0.5)
ROWS = {"normal": [[1 / 7] * 7] * 2, "reduce": [[1 / 7] * 7] * 2}
RECORD = {
    "epoch": 1,
    "epochs": 2,
    "seconds": 1.0,
    "operations": list(OPERATION_NAMES),
    "w": HALF,
    "alpha": HALF,
    "lr": {"w": 0.1, "alpha": 0.1},
    "alphas": ROWS,
    "probabilities": ROWS,
    "none_mass": {"normal": 0.1, "reduce": 0.1},
    "skips": {"normal": 0, "reduce": 0},
    "genotype": Genotype("x", CELL, CELL).to_dict(),
    "retrieval": dict.fromkeys(("mAP", "rank1", "rank5", "rank10", "mINP"), 0.5) | {"num_valid_queries": 3},
}


@SETTINGS
@given(mutated(RECORD), mutated(RECORD | {"epoch": 2}), st.binary(max_size=20))
def test_histories(tmp_path_factory, first, second, rest):
    content = b"\n".join([json.dumps(first).encode(), json.dumps(second).encode(), rest])
    read("history", content, tmp_path_factory.getbasetemp() / "history")


SHOT = {"pid": 1, "camid": 2, "path": "a.jpg"}
QUERY = {"number": 0, "image": SHOT, "precision": 0.5, "first": 2, "answers": [[SHOT, 0.1], [SHOT, 0.2]]}
QUERIES = {"epoch": 1, "mAP": 0.5, "counted": 3, "groups": {"worst": [QUERY], "median": [QUERY], "best": [QUERY]}}
START = {"date": "2026-01-01", "epoch": 1, "command": "autoreid", "versions": {"torch": "2"}, "machine": "one"}


@SETTINGS
@given(mutated(QUERIES), mutated({"data": {"images": "3"}, "starts": [START, START]}))
def test_what_a_report_reads_besides(tmp_path_factory, queries, provenance):
    for name, value in (("queries", queries), ("provenance", provenance)):
        read(name, json.dumps(value).encode(), tmp_path_factory.getbasetemp() / name)


TREE = yaml.safe_load(get_default_config().dump())


@SETTINGS
@given(mutated(TREE))
def test_configurations(tmp_path_factory, value):
    read("config", yaml.safe_dump(value).encode(), tmp_path_factory.getbasetemp() / "config.yaml")


@SETTINGS
@given(
    st.lists(
        st.sampled_from(
            [f"{section}.{key}" for section in TREE if isinstance(TREE[section], dict) for key in TREE[section]]
        )
        | st.text(max_size=12),
        max_size=4,
    ),
    st.lists(st.text(max_size=12) | plain.map(str) | plain.map(yaml.safe_dump), max_size=4),
)
def test_options(tmp_path_factory, keys, values):
    words = [word for pair in zip(keys, values, strict=False) for word in pair]
    read("options", "\n".join(words).encode("utf-8", "replace"), tmp_path_factory.getbasetemp() / "options")


HEADER = {"descr": "<f4", "fortran_order": False, "shape": (3, 2)}


@SETTINGS
@given(st.data())
def test_arrays(tmp_path_factory, data):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", data.draw(st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]))) as file:
        for part in ("query", "gallery"):
            for field in ("features", "pids", "camids"):
                header = dict(HEADER) if field == "features" else HEADER | {"descr": "<i8", "shape": (3,)}
                content = bytes(24)
                if data.draw(st.integers(0, 2)) == 0:
                    header = data.draw(
                        mutated(header)
                        | st.builds(
                            lambda shape, header=header: header | {"shape": tuple(shape)}, st.lists(st.integers())
                        )
                        | st.builds(
                            lambda kind, header=header: header | {"descr": kind}, st.text("<>|=fiucSUOVMmb?0123456789")
                        )
                    )
                    content = data.draw(st.binary(max_size=64))
                text = f"{header!r}\n".encode()[:60_000]
                file.writestr(
                    f"{part}_{field}.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + content
                )
    content = bytearray(buffer.getvalue())
    for place in data.draw(st.lists(st.integers(0, len(content) - 1), max_size=3)):
        content[place] = data.draw(st.integers(0, 255))
    read("npz", bytes(content), tmp_path_factory.getbasetemp() / "features.npz")


NETWORK = {
    "genotype": Genotype.load("retrieval").to_dict(),
    "layers": [1] * 4,
    "channels": 4,
    "parts": 2,
    "last_stride": 2,
    "last_norm": True,
    "name": "autoreid",
    "loss": "softmax",
    "height": 64,
    "width": 32,
    "norm_mean": [0.5] * 3,
    "norm_std": [0.2] * 3,
    "neck": "none",
    "num_classes": 5,
}


@SETTINGS
@given(mutated({"state_dict": {}, "network": NETWORK}), st.binary(max_size=8), st.integers(0))
def test_checkpoints(tmp_path_factory, state, patch, place):
    buffer = io.BytesIO()
    torch.save(state, buffer)
    content = bytearray(buffer.getvalue())
    place %= len(content)
    content[place : place + len(patch)] = patch
    read("checkpoint", bytes(content), tmp_path_factory.getbasetemp() / "checkpoint.pth")


def graph(path):
    """The arrays of a whole graph."""
    nearest, farthest = Nearest(4, 3), Farthest(4)
    distances = 1 - torch.eye(4)
    for observer in (nearest, farthest):
        observer.add(0, 0, distances)
    graph_file(path).write(nearest, farthest, 2)
    with np.load(path) as archive:
        return dict(archive)


@SETTINGS
@given(st.data())
def test_graphs(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "graph"
    path.unlink(missing_ok=True)
    arrays = graph(path)
    for name in data.draw(st.sets(st.sampled_from(["keys", "farthest", "done"]), min_size=1)):
        array = arrays[name]
        number = data.draw(st.sampled_from([-1, 0, 1, 5, 2**31, 2**62, -(2**63), 2**63 - 1, float("nan")]))
        change = data.draw(st.sampled_from(["a number", "another shape", "another type", "another order"]))
        if change == "a number":
            place = data.draw(st.integers(0, array.size - 1))
            array.flat[place] = 0 if np.isnan(number) and name != "farthest" else number
        elif change == "another shape":
            arrays[name] = np.resize(array, data.draw(st.lists(st.integers(0, 5), max_size=3)))
        elif change == "another type":
            kind = data.draw(st.sampled_from(["f2", "f4", "f8", "i4", "i8", "u8", "?", "c8"]))
            with np.errstate(over="ignore"):
                arrays[name] = array.astype(kind)
        else:
            arrays[name] = array[::-1]
    with open(path, "wb") as file:
        np.savez(file, **arrays)
    content = bytearray(path.read_bytes())
    for place in data.draw(st.lists(st.integers(0, len(content) - 1), max_size=1)):
        content[place] = data.draw(st.integers(0, 255))
    read("graph", bytes(content), path)


@pytest.fixture(
    scope="module", params=["Flat", "IVF4,Flat", "HNSW4", "IVF4,SQ8", "PCA4,IVF4,PQ2x4np,RFlat", "IDMap2,HNSW4,SQ8"]
)
def index(request):
    vectors = np.random.default_rng(0).standard_normal((200, 8)).astype(np.float32)
    made = faiss.index_factory(8, request.param, faiss.METRIC_INNER_PRODUCT)
    made.train(vectors)
    if request.param.startswith("IDMap"):
        made.add_with_ids(vectors, np.arange(200))
    else:
        made.add(vectors)
    return faiss.serialize_index(made).tobytes()


def test_indexes(index, place):
    @SETTINGS
    @given(st.lists(st.tuples(st.integers(0, 250) | st.integers(0, len(index) - 1), numbers), min_size=1, max_size=3))
    def check(changes):
        content = bytearray(index)
        for where, number in changes:
            number = int(number) if number == number and abs(number) < 2**70 else 2**63
            content[where : where + 8] = (number % 2**64).to_bytes(8, "little")
        read("index", bytes(content), place)

    check()


def test_what_is_changed_was_valid(tmp_path):
    """Else all that is drawn above would be refused for one and the same reason."""
    torch.save({"state_dict": {"x": torch.zeros(1 << 16)}, "network": NETWORK}, tmp_path / "checkpoint")
    np.savez(
        tmp_path / "npz",
        **{
            f"{p}_{f}": np.zeros((3, 2) if f == "features" else 3, "<f4" if f == "features" else "<i8")
            for p in ("query", "gallery")
            for f in ("features", "pids", "camids")
        },
    )
    (tmp_path / "history").write_text(json.dumps(RECORD) + "\n")
    (tmp_path / "config").write_text(yaml.safe_dump(TREE))
    Genotype.load("retrieval").save(tmp_path / "genotype")
    (tmp_path / "options").write_text("train.max_epoch\n3")
    graph(tmp_path / "graph")
    for name in ("graph", "checkpoint", "npz.npz", "history", "config", "genotype", "options"):
        READERS[name.removesuffix(".npz") or "npz"](tmp_path / name)
