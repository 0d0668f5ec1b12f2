"""Files from elsewhere that want to run code, to write elsewhere, or to take all memory: one line each, nothing done.

Each is given to the very command that reads such a file.
"""

import io
import json
import os
import pickle
import re
import resource
import runpy
import struct
import sys
import warnings
import zipfile
from pathlib import Path

import faiss
import numpy as np
import pytest
import torch

from torchreid_autoreid.checkpoint import load_checkpoint, save_checkpoint
from torchreid_autoreid.deploy.export import export
from torchreid_autoreid.deploy.model import load_model
from torchreid_autoreid.errors import UserError
from torchreid_autoreid.evaluation import Embeddings, RetrievalIndex, evaluate, load_embeddings, save_embeddings
from torchreid_autoreid.genotype import Genotype
from torchreid_autoreid.spec import Description

ROOT = Path(__file__).resolve().parents[1]
TERABYTE = 10**12
SCALAR = np.float64(0).__reduce__()[0]


class Call:
    """A pickle of it is a call, made where it is unpickled."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def Payload(mark):
    """Makes a folder where it is unpickled."""
    return Call(os.mkdir, str(mark))


def test_the_payload_would_work(tmp_path):
    pickle.loads(pickle.dumps(Payload(tmp_path / "executed")))
    assert (tmp_path / "executed").is_dir()


@pytest.fixture
def mark(tmp_path):
    """A path that must not come into being."""
    path = tmp_path / "executed"
    yield path
    assert not path.exists()
    assert not list(tmp_path.parent.glob("escaped*"))


@pytest.fixture
def refused(tmp_path, capsys, monkeypatch):
    """Runs a command, and expects status 2, a single line, and no great need of memory."""

    def run(script, *arguments):
        monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
        monkeypatch.chdir(ROOT)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with pytest.raises(SystemExit) as ended, warnings.catch_warnings():
            runpy.run_path(str(ROOT / "projects" / "autoreid" / script), run_name="__main__")
        errors = capsys.readouterr().err
        assert ended.value.code == 2, errors
        assert len(errors.splitlines()) == 1, errors
        assert errors.startswith("error: ")
        assert len(errors) < 2100
        assert errors.rstrip("\n").isprintable()
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300 << 10  # kilobytes
        return errors

    return run


def archive(path, members, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression, compresslevel=1) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return path


def npy(header, content=b""):
    text = f"{header}\n".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + content


def deep(opening, closing, levels=50_000):
    return opening * levels + closing * levels


# -- weights and checkpoints ------------------------------------------------------------------------------------------


def torch_archive(path, pickled, records=()):
    """An archive as PyTorch writes it, around any pickle."""
    members = {"a/data.pkl": pickled, "a/byteorder": "little", "a/version": "3\n", **dict(records)}
    return archive(path, members)


def bomb(path):
    torch.save({"state_dict": {"x": torch.zeros(1 << 25)}}, path)
    with zipfile.ZipFile(path) as file:
        members = {name: file.read(name) for name in file.namelist()}
    return archive(path, members, zipfile.ZIP_DEFLATED)


def claims(path):
    """A record of which the directory says that it has a terabyte."""
    torch.save({"state_dict": {"x": torch.zeros(100)}}, path)
    content = bytearray(path.read_bytes())
    place = content.index(b"PK\x01\x02")
    content[place + 20 : place + 28] = struct.pack("<II", 0xFFFFFFF0, 0xFFFFFFF0)
    path.write_bytes(content)


def huge_network(path):
    described = Description(
        "autoreid", "softmax", 64, 32, [0.5] * 3, [0.2] * 3, genotype=Genotype.load("retrieval"),
        channels=4096, layers=[64] * 4, parts=4, last_stride=2, last_norm=True,
    )  # fmt: skip
    torch.save({"state_dict": {}, "network": described.to_dict() | {"num_classes": 1 << 24}}, path)


def weights(path, legacy=False, cut=1.0, change=None, configuration=None, **network):
    """A checkpoint of a tiny network, of which something is not what it should be."""
    described = Description(
        "autoreid", "softmax", 64, 32, [0.5] * 3, [0.2] * 3, genotype=Genotype.load("retrieval"),
        channels=2, layers=[1] * 4, parts=2, last_stride=2, last_norm=True,
    )  # fmt: skip
    state = described.build(3).state_dict()
    if change is not None:
        state["stem.0.weight"] = change(state["stem.0.weight"])
    content = {"state_dict": state, "network": described.to_dict() | {"num_classes": 3} | network}
    content["configuration"] = configuration or {}
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    os.truncate(path, int(cut * path.stat().st_size))


def hostile_genotype(path):
    network = {"name": "autoreid", "loss": "softmax", "height": 64, "width": 32, "norm_mean": [0.5] * 3}
    network |= {"norm_std": [0.2] * 3, "channels": 4, "layers": [1] * 4, "parts": 2, "last_stride": 2, "num_classes": 3}
    network |= {"last_norm": True}
    genotype = {"version": torch.zeros(3), "name": "\x1b[2J\n", "normal": 10**5000, "reduce": [[torch.zeros(2)] * 2]}
    torch.save({"state_dict": {}, "network": network | {"genotype": genotype}}, path)


WEIGHTS = {
    "a pickle": lambda path, mark: path.write_bytes(pickle.dumps({"state_dict": Payload(mark)}, 2)),
    "a pickle inside": lambda path, mark: torch.save({"state_dict": {}, "evil": Payload(mark)}, path),
    "an old pickle": lambda path, mark: torch.save([Payload(mark)], path, _use_new_zipfile_serialization=False),
    "an array's pickle": lambda path, mark: np.save(
        path.open("wb"), np.array([Payload(mark)], dtype=object), allow_pickle=True
    ),
    "another name": lambda path, mark: torch_archive(path, b"\x80\x02cbuiltins\neval\n(X\x01\x00\x00\x001tR."),
    "a scalar of a gigabyte": lambda path, mark: torch.save({"x": Call(SCALAR, np.dtype("V1073741824"))}, path),
    "a scalar that is a pointer": lambda path, mark: torch.save({"x": Call(SCALAR, np.dtype("O"), b"A" * 8)}, path),
    "a type": lambda path, mark: torch.save({"x": Call(np.dtype, [("x", "O")])}, path),
    "a path": lambda path, mark: torch_archive(path, b"}.", [("../../escaped", "x"), ("/tmp/escaped", "x")]),
    "nothing": lambda path, mark: path.touch(),
    "zeros": lambda path, mark: path.write_bytes(bytes(4096)),
    "a deep pickle": lambda path, mark: torch_archive(path, deep(b"(", b"t", 200_000) + b"."),
    "a bomb": lambda path, mark: bomb(path),
    "claims": lambda path, mark: claims(path),
    "bytes": lambda path, mark: torch.save({"x": Call(bytearray, 10**14)}, path),
    "no names": lambda path, mark: torch.save({"state_dict": {1: torch.zeros(3)}}, path),
    "a list": lambda path, mark: torch.save([1, 2, 3], path),
    "views": lambda path, mark: torch.save({"conv1.conv.weight": torch.zeros(1).expand(TERABYTE)}, path),
    "sparse": lambda path, mark: torch.save(
        {"classifier.bias": torch.sparse_coo_tensor(torch.zeros(1, 1, dtype=torch.long), [1.0], (1 << 40,))}, path
    ),
    "control characters": lambda path, mark: torch.save({"\x1b]0;x\x07\n\x9b": torch.zeros(1)}, path),
    "a huge network": lambda path, mark: huge_network(path),
    "a genotype of tensors": lambda path, mark: hostile_genotype(path),
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights(name, refused, mark, tmp_path):
    path = tmp_path / "weights.pth"
    WEIGHTS[name](path, mark)
    refused("export.py", "--weights", path, "--output", tmp_path / "out.onnx", "model.name", "autoreid_x0_25")
    assert not (tmp_path / "out.onnx").exists()


def test_what_is_in_a_checkpoint_besides_tensors_is_data(tmp_path, mark):
    for name in ("a pickle", "a pickle inside", "an old pickle", "another name"):
        WEIGHTS[name](tmp_path / "c.pth", mark)
        with pytest.raises(ValueError, match="is not a readable checkpoint") as refused:
            load_checkpoint(tmp_path / "c.pth")
        assert "trust" not in str(refused.value)  # PyTorch advises to load it all the same
    for number in (np.float32(0.5), np.float64(0.5), np.int64(3)):
        torch.save({"state_dict": {}, "rank1": number}, tmp_path / "c.pth")
        assert load_checkpoint(tmp_path / "c.pth")["rank1"] == number
    save_checkpoint({"state_dict": {}, "rank1": 0.5}, tmp_path / "c.pth")
    assert torch.load(tmp_path / "c.pth", weights_only=True) == {"state_dict": {}, "rank1": 0.5}


#: what is wrong -> how such weights are made, and what is said of them
WRONG_WEIGHTS = {
    "a million classes": ({"num_classes": 10**6}, "more parameters than it has bytes"),
    "classes that are true": ({"num_classes": True}, "num_classes is True"),
    "large images": ({"height": 4096, "width": 4096}, "4096 x 4096"),
    "true for a number": ({"height": True}, "height is True"),
    "no deviation": ({"norm_std": [0.0, 0.2, 0.2]}, "norm_std must be"),
    "many cells": ({"layers": [65, 1, 1, 1]}, "layers must be"),
    "complex numbers": ({"change": lambda t: t.to(torch.complex64)}, "of type complex64"),
    "sparse": ({"change": torch.Tensor.to_sparse}, "no ordinary tensor"),
    "nested": ({"change": lambda t: torch.nested.nested_tensor([t[0], t[0, :1]])}, "no ordinary tensor"),
    "quantised": ({"change": lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8)}, "no ordinary tensor"),
    "views": ({"change": lambda t: torch.zeros(1).expand(1 << 20, 1 << 20)}, "(1048576, 1048576)"),
    "truth values": ({"change": torch.Tensor.bool}, "of type bool"),
    "half an old file": ({"legacy": True, "cut": 0.5}, "it ends too early"),
    "an old file without its last bytes": ({"legacy": True, "cut": 0.999}, "unexpected EOF"),
    "a setting that is no setting": (
        {"configuration": {"recipe.flip_test": "yes"}},
        "describes its configuration wrongly",
    ),
}


@pytest.mark.parametrize("name", WRONG_WEIGHTS)
@pytest.mark.filterwarnings("ignore")  # PyTorch deprecates some of these tensors
def test_weights_that_are_not_what_they_say(name, tmp_path):
    how, text = WRONG_WEIGHTS[name]
    weights(tmp_path / "weights.pth", **how)
    with pytest.raises(UserError, match=re.escape(text)) as refused:
        load_model(tmp_path / "weights.pth")
    assert len(str(refused.value).splitlines()) == 1


def test_weights_by_hand_are_taken(tmp_path):
    for how in ({}, {"legacy": True}, {"change": torch.Tensor.half}, {"change": torch.Tensor.double}):
        weights(tmp_path / "weights.pth", **how)
        assert load_model(tmp_path / "weights.pth").feature_dim


@pytest.mark.parametrize("number", [np.nan, np.inf, 1e30])
def test_weights_without_a_feature_are_not_exported(number, tmp_path):
    weights(tmp_path / "weights.pth", change=lambda t: t.fill_(number))
    with pytest.raises(UserError, match="are NaN or infinite"):
        export(tmp_path / "weights.pth", tmp_path / "a.onnx")
    assert not (tmp_path / "a.onnx").exists()


# -- genotypes, configurations, histories -----------------------------------------------------------------------------

GENOTYPES = {
    "a pickle": lambda mark: pickle.dumps(Payload(mark)),
    "a call": lambda mark: f"Genotype(__import__('os').mkdir({str(mark)!r}))".encode(),
    "deep": lambda mark: deep("[", "]").encode(),
    "deep cells": lambda mark: json.dumps({"version": 1, "name": "x", "normal": [[[]]], "reduce": 1}).encode(),
    "a long number": lambda mark: b'{"version": ' + b"9" * 100_000 + b"}",
    "not a text": lambda mark: b"\xff\xfe\x00",
    "large": lambda mark: b" " * (2 << 20),
    "many blocks": lambda mark: json.dumps(
        {"version": 1, "name": "x", **dict.fromkeys(("normal", "reduce"), [[["none", 0], ["none", 1]]] * 9000)}
    ).encode(),
    "a path": lambda mark: json.dumps({"version": 1, "name": "../../escaped", "normal": [], "reduce": []}).encode(),
    "control characters": lambda mark: json.dumps({"version": 1, "\x1b[2J\n": 0, "name": "\r"}).encode(),
}


@pytest.mark.parametrize("name", GENOTYPES)
def test_genotypes(name, refused, mark, tmp_path):
    path = tmp_path / "genotype.json"
    path.write_bytes(GENOTYPES[name](mark))
    refused(
        "train.py", "--config-file", ROOT / "configs" / "autoreid_train.yaml", "--genotype", path,
        "data.save_dir", tmp_path / "log",
    )  # fmt: skip
    assert not (tmp_path / "log").exists()


CONFIGS = {
    "an object": lambda mark: f"!!python/object/apply:os.mkdir ['{mark}']",
    "a value that is one": lambda mark: f"train: {{lr: !!python/object/apply:os.mkdir ['{mark}']}}",
    "a name": lambda mark: "train: {lr: !!python/name:os.system }",
    "a module": lambda mark: "train: !!python/module:os",
    "an object made new": lambda mark: f"!!python/object/new:os.mkdir ['{mark}']",
    "a tag that does not fit": lambda mark: "train: {lr: !!int '', max_epoch: !!bool x, seed: !!timestamp x}",
    "deep": lambda mark: deep("[", "]", 20_000),
    "deep mappings": lambda mark: deep("{a: ", "}", 9_000),
    "aliases": lambda mark: "a: &a [1]\nb: &b [*a, *a]",
    "merges": lambda mark: "\n".join(
        ["x0: &x0 {a: 1}", *(f"x{i}: &x{i} {{<<: [*x{i - 1}, *x{i - 1}]}}" for i in range(1, 60))]
    ),
    "a long number": lambda mark: "train: {max_epoch: 0x" + "f" * 50_000 + "}",
    "a key that is a long number": lambda mark: "? 0x" + "f" * 50_000 + "\n: 1",
    "a number of base sixty": lambda mark: "train: {max_epoch: 1" + ":59" * 20_000 + "}",
    "large": lambda mark: "# " + "x" * (2 << 20),
    "absurd images": lambda mark: "data: {height: 1000000, width: 1000000}",
    "absurd workers": lambda mark: "data: {workers: 1000000}",
    "not a text": lambda mark: "train: \x00",
}


@pytest.mark.parametrize("name", CONFIGS)
def test_configurations(name, refused, mark, tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(CONFIGS[name](mark))
    refused("search.py", "--config-file", path, "data.save_dir", tmp_path / "log")
    assert not (tmp_path / "log").exists()


HISTORIES = {
    "a pickle": lambda mark: pickle.dumps(Payload(mark)),
    "deep": lambda mark: deep("[", "]").encode() + b"\n",
    "a long line": lambda mark: b'{"epoch": [' + b"[]," * (1 << 20) + b"[]]}\n",
    "large": lambda mark: b"\n" * (17 << 20),
    "a long number": lambda mark: b'{"epoch": 1, "epochs": ' + b"9" * 100_000 + b"}\n",
}


@pytest.mark.parametrize("name", HISTORIES)
def test_histories(name, refused, mark, tmp_path):
    Genotype.load("retrieval").save(tmp_path / "genotype.json")
    (tmp_path / "history.jsonl").write_bytes(HISTORIES[name](mark))
    refused("report.py", "--log-dir", tmp_path)
    assert not (tmp_path / "report.html").exists()


# -- feature vectors and indexes --------------------------------------------------------------------------------------

FIELDS = {"features": "(3, 2)", "pids": "(3,)", "camids": "(3,)"}


def features(path, compression=zipfile.ZIP_STORED, **changes):
    members = {}
    for part in ("query", "gallery"):
        for field, shape in FIELDS.items():
            kind, size = ("<f4", 24) if field == "features" else ("<i8", 24)
            header = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}"
            members[f"{part}_{field}.npy"] = npy(header, bytes(size))
    return archive(path, members | {f"{name}.npy": content for name, content in changes.items()}, compression)


def pickled(mark):
    buffer = io.BytesIO()
    np.save(buffer, np.array([Payload(mark)], dtype=object), allow_pickle=True)
    return buffer.getvalue()


def shaped(shape, kind="<f4"):
    return npy(f"{{'descr': {kind!r}, 'fortran_order': False, 'shape': {shape}, }}", bytes(24))


FEATURES = {
    "a pickle": lambda path, mark: path.write_bytes(pickle.dumps(Payload(mark))),
    "an array of objects": lambda path, mark: path.write_bytes(pickled(mark)),
    "objects": lambda path, mark: features(path, query_pids=pickled(mark)),
    "a header that is a call": lambda path, mark: features(path, query_features=npy(f"__import__('os').mkdir({mark})")),
    "an open header": lambda path, mark: features(path, query_features=npy("{'descr': (((")),
    "a deep header": lambda path, mark: features(path, query_features=npy(deep("(", ")", 4000))),
    "a header of other keys": lambda path, mark: features(path, query_features=npy("{1: 2, 'descr': '<f4'}")),
    "a trillion rows": lambda path, mark: features(path, query_features=shaped(f"({TERABYTE}, 512)")),
    "some billion rows": lambda path, mark: features(path, query_features=shaped(f"({1 << 33}, 1)")),
    "a number of rows that no word holds": lambda path, mark: features(path, query_features=shaped(f"(0, {10**30})")),
    "a negative number of rows": lambda path, mark: features(path, query_features=shaped("(-3, 2)")),
    "fields": lambda path, mark: features(path, query_features=npy("{'descr': [('a', '<f4', (99999, 99999))]}")),
    "texts": lambda path, mark: features(path, query_features=shaped("(3, 2)", "<U1")),
    "a bomb": lambda path, mark: features(
        path, zipfile.ZIP_DEFLATED, query_features=shaped(f"({1 << 20}, 100)") + bytes(400 << 20)
    ),
    "paths": lambda path, mark: archive(path, {"../../escaped.npy": b"x", "/tmp/escaped.npy": b"x"}),
    "no arrays": lambda path, mark: features(path, query_pids=b"PK not an array"),
    "zeros": lambda path, mark: path.write_bytes(bytes(4096)),
    "many names": lambda path, mark: archive(path, {f"{number}.npy": b"" for number in range(5000)}),
}


@pytest.mark.parametrize("name", FEATURES)
def test_features(name, refused, mark, tmp_path):
    path = tmp_path / "features.npz"
    FEATURES[name](path, mark)
    refused("evaluate.py", "--features", path)


@pytest.mark.parametrize("name", ["a pickle inside", "a bomb"])
def test_features_of_other_programs(name, refused, mark, tmp_path):
    makers = {
        "a pickle inside": lambda path: torch_archive(path, pickle.dumps({"query_f": Payload(mark)})),
        "a bomb": bomb,
    }
    makers[name](tmp_path / "features.pt")
    refused("evaluate.py", "--features", tmp_path / "features.pt")


def graph_of(path, features):
    """The arrays of a graph that a command made."""
    evaluate(*load_embeddings(features), rerank=True, graph=str(path))
    with np.load(path) as found:
        return dict(found)


def with_array(path, arrays, **changes):
    with open(path, "wb") as file:
        np.savez(file, **arrays | changes)


def claiming(path, arrays, name, shape):
    """An array of which the header says that it is larger."""
    with_array(path, arrays)
    with zipfile.ZipFile(path) as file:
        members = {member: file.read(member) for member in file.namelist()}
    members[f"{name}.npy"] = shaped(shape, arrays[name].dtype.str)
    archive(path, members)


GRAPHS = {
    "a pickle": lambda path, arrays, mark: path.write_bytes(pickle.dumps(Payload(mark))),
    "objects": lambda path, arrays, mark: path.write_bytes(pickled(mark)),
    "objects inside": lambda path, arrays, mark: with_array(
        path, arrays, keys=np.array([[Payload(mark)]], dtype=object)
    ),
    "zeros": lambda path, arrays, mark: path.write_bytes(bytes(4096)),
    "torn": lambda path, arrays, mark: path.write_bytes(path.read_bytes()[:-100]),
    "a changed byte": lambda path, arrays, mark: path.write_bytes(
        bytes([*(content := path.read_bytes())[:3000], content[3000] ^ 1, *content[3001:]])
    ),
    "a trillion rows": lambda path, arrays, mark: claiming(path, arrays, "keys", (TERABYTE, 21)),
    "some billion rows": lambda path, arrays, mark: claiming(path, arrays, "farthest", (1 << 32,)),
    "a number of rows that no word holds": lambda path, arrays, mark: claiming(path, arrays, "keys", (10**30, 21)),
    "a bomb": lambda path, arrays, mark: archive(
        path, {"keys.npy": npy("{}") + bytes(400 << 20)}, zipfile.ZIP_DEFLATED
    ),
    "other features": lambda path, arrays, mark: with_array(path, arrays, mark=arrays["mark"][::-1]),
    "other types": lambda path, arrays, mark: with_array(path, arrays, keys=arrays["keys"].astype(np.uint64)),
    "too few rows": lambda path, arrays, mark: with_array(path, arrays, keys=arrays["keys"][:-1]),
    "items that are not there": lambda path, arrays, mark: with_array(path, arrays, keys=arrays["keys"] + 409),
    "negative keys": lambda path, arrays, mark: with_array(path, arrays, keys=-arrays["keys"][:, ::-1]),
    "farthest first": lambda path, arrays, mark: with_array(path, arrays, keys=arrays["keys"][:, ::-1]),
    "no number": lambda path, arrays, mark: with_array(path, arrays, farthest=arrays["farthest"] * np.float32(np.nan)),
    "no neighbours": lambda path, arrays, mark: with_array(
        path, arrays, keys=np.full_like(arrays["keys"], np.iinfo(np.int64).max)
    ),
}  # fmt: skip


def save_features(path):
    """Writes nine queries and a gallery of 400, and gives the gallery's vectors."""
    vectors = np.random.default_rng(0).standard_normal((400, 8)).astype(np.float32)
    labels = np.arange(400) % 20
    save_embeddings(path, Embeddings(vectors[:9], labels[:9], labels[:9] + 99), Embeddings(vectors, labels, labels))
    return vectors


@pytest.mark.parametrize("name", GRAPHS)
def test_graphs(name, refused, mark, tmp_path):
    save_features(tmp_path / "f.npz")
    path = tmp_path / "graph"
    GRAPHS[name](path, graph_of(path, tmp_path / "f.npz"), mark)
    kept = path.read_bytes()
    refused("evaluate.py", "--features", tmp_path / "f.npz", "--rerank", "--graph", path)
    assert path.read_bytes() == kept


def on_disk(path, vectors, there):
    """An index that keeps its vectors in another file, which it names, and which may be there."""
    index = faiss.index_factory(8, "IVF4,Flat", faiss.METRIC_INNER_PRODUCT)
    index.train(vectors)
    lists = faiss.OnDiskInvertedLists(index.nlist, index.code_size, str(path.with_name("elsewhere")))
    index.replace_invlists(lists)
    index.add(vectors)
    faiss.write_index(index, str(path))
    if not there:
        path.with_name("elsewhere").unlink()


def on_disk_inside(path, vectors, wrap):
    """The same as a part of another index, of which only the outermost was looked at once."""
    on_disk(path, vectors, there=True)
    inner = faiss.read_index(str(path))
    faiss.write_index(wrap(inner, vectors), str(path))


def as_quantizer(inner, vectors):
    index = faiss.IndexIVFFlat(inner, 8, inner.ntotal, faiss.METRIC_INNER_PRODUCT)
    index.add(vectors)
    return index


def altered(path, vectors, factory, place, number):
    """An index with one number of its file changed."""
    RetrievalIndex.build(vectors, factory).save(path)
    content = bytearray(path.read_bytes())
    content[place : place + 8] = struct.pack("<q", number)
    path.write_bytes(content)


def with_ef_search(index, candidates):
    index.hnsw.efSearch = candidates
    return index


INDEXES = {
    "a pickle": lambda path, vectors, mark: path.write_bytes(pickle.dumps(Payload(mark))),
    "zeros": lambda path, vectors, mark: path.write_bytes(bytes(4096)),
    "a trillion vectors": lambda path, vectors, mark: altered(path, vectors, "HNSW4", 8, TERABYTE),
    "a trillion bytes": lambda path, vectors, mark: altered(path, vectors, "Flat", 37, TERABYTE // 4),
    "ten billion bytes": lambda path, vectors, mark: altered(path, vectors, "Flat", 37, 10**10),
    "a billion lists": lambda path, vectors, mark: altered(path, vectors, "IVF4,Flat", 37, 10**9),
    "another file": lambda path, vectors, mark: on_disk(path, vectors, there=True),
    "another file that is not there": lambda path, vectors, mark: on_disk(path, vectors, there=False),
    "another file of the coarse quantizer": lambda path, vectors, mark: on_disk_inside(path, vectors, as_quantizer),
    "another file below a map": lambda path, vectors, mark: on_disk_inside(
        path, vectors, lambda inner, _: faiss.IndexPreTransform(inner)
    ),
    "another file below a refinement": lambda path, vectors, mark: on_disk_inside(
        path, vectors, lambda inner, vectors: faiss.IndexRefineFlat(inner, faiss.swig_ptr(vectors))
    ),
    "an efSearch of two billion": lambda path, vectors, mark: faiss.write_index(
        with_ef_search(RetrievalIndex.build(vectors, "HNSW4").index, 2 * 10**9), str(path)
    ),
    "torn": lambda path, vectors, mark: (
        RetrievalIndex.build(vectors, "IVF4,Flat").save(path),
        path.write_bytes(path.read_bytes()[:-100]),
    ),
}


@pytest.mark.parametrize("name", INDEXES)
def test_indexes(name, refused, mark, tmp_path):
    vectors = save_features(tmp_path / "f.npz")
    INDEXES[name](tmp_path / "a.index", vectors, mark)
    refused("evaluate.py", "--features", tmp_path / "f.npz", "--index", tmp_path / "a.index")


def test_the_limits_of_faiss_are_restored(tmp_path):
    limits = faiss.get_deserialization_vector_byte_limit(), faiss.get_deserialization_loop_limit()
    RetrievalIndex.build(np.eye(8, dtype=np.float32), "Flat").save(tmp_path / "a.index")
    RetrievalIndex.load(tmp_path / "a.index")
    assert (faiss.get_deserialization_vector_byte_limit(), faiss.get_deserialization_loop_limit()) == limits
