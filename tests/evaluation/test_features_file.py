"""Feature files of other programs: read under any of their names, refused in one line, and never in this process."""

import re

import numpy as np
import pytest
import scipy.io
import scipy.sparse
import torch

from torchreid_autoreid.errors import UserError
from torchreid_autoreid.evaluation import features_file, load_embeddings

RANDOM = np.random.default_rng(0)
ARRAYS = {
    "query_features": RANDOM.normal(size=(3, 4)).astype(np.float32),
    "query_pids": np.array([1, 2, 3]),
    "query_camids": np.array([0, 0, 1]),
    "gallery_features": RANDOM.normal(size=(5, 4)).astype(np.float32),
    "gallery_pids": np.array([1, 2, 3, 3, -1]),
    "gallery_camids": np.array([1, 1, 0, 0, 1]),
}
LAYUMI = {"features": "f", "pids": "label", "camids": "cam"}
SHORT = {"query": "q", "gallery": "g"}


def renamed(style, arrays=ARRAYS):
    """The arrays under the names of layumi's baseline, of torchreid's variables, or ours."""
    names = {}
    for key in arrays:
        part, name = key.split("_")
        layumi, ours = f"{part}_{LAYUMI.get(name)}", f"{SHORT[part]}{'f' if name == 'features' else f'_{name}'}"
        names[key] = {"layumi": layumi, "torchreid": ours, "own": key}[style]
    return {names[key]: value for key, value in arrays.items()}


def tensors(arrays):
    return {key: torch.from_numpy(value) for key, value in arrays.items()}


def rewritten(path, tmp_path):
    """What the reader makes of a file, without its process."""
    assert features_file.main(str(path), str(tmp_path / "out.npz")) == ""
    with np.load(tmp_path / "out.npz", allow_pickle=False) as arrays:
        return dict(arrays)


def assert_ours(found, wanted=ARRAYS):
    assert found.keys() == wanted.keys()
    for key, value in wanted.items():
        np.testing.assert_array_equal(found[key], value)


@pytest.mark.parametrize("style", ["layumi", "torchreid", "own"])
def test_the_names_in_use(tmp_path, style):
    scipy.io.savemat(tmp_path / "a.mat", renamed(style), do_compression=style == "own")
    torch.save(tensors(renamed(style)), tmp_path / "a.pt")
    for name in ("a.mat", "a.pt"):
        assert_ours(rewritten(tmp_path / name, tmp_path))


@pytest.mark.parametrize("name", ["pytorch_result.mat", "a.PT"])
def test_a_file_is_read_by_another_process(tmp_path, name):
    if name.endswith("mat"):
        scipy.io.savemat(tmp_path / name, renamed("layumi") | {"mquery_f": np.ones((2, 2))})
    else:
        torch.save(tensors(renamed("torchreid")), tmp_path / name)
    parts = dict(zip(("query", "gallery"), load_embeddings(tmp_path / name), strict=True))
    assert_ours({key: getattr(parts[key.split("_")[0]], key.split("_")[1]) for key in ARRAYS})


def test_names_and_lists_and_half_floats(tmp_path):
    names = {"query_pids": np.array(["ann", "bo", "c"]), "gallery_pids": np.array(["ann", "bo", "c", "c", "dora"])}
    wanted = {key: value for key, value in (ARRAYS | names).items() if "camids" not in key}
    scipy.io.savemat(tmp_path / "a.mat", wanted)
    assert_ours(rewritten(tmp_path / "a.mat", tmp_path), wanted)
    state = {key: torch.from_numpy(v).bfloat16() if "feat" in key else v.tolist() for key, v in wanted.items()}
    torch.save(state, tmp_path / "a.pth")
    rounded = {key: value.float().numpy() for key, value in state.items() if "features" in key}
    assert_ours(rewritten(tmp_path / "a.pth", tmp_path), wanted | rounded)


def mat(path, **changes):
    scipy.io.savemat(path / "a.mat", {key: v for key, v in (renamed("layumi") | changes).items() if v is not None})
    return path / "a.mat"


def pt(path, **changes):
    torch.save({key: v for key, v in (tensors(ARRAYS) | changes).items() if v is not None}, path / "a.pt")
    return path / "a.pt"


def written(path, name, content):
    (path / name).write_bytes(content)
    return path / name


class Anything:
    pass


def torn(path):
    content = pt(path).read_bytes()
    place = content.index(ARRAYS["gallery_features"].tobytes())
    return written(path, "a.pt", content[:place] + bytes(40) + content[place + 40 :])


WRONG = {
    "no labels": (lambda p: mat(p, gallery_label=None), r"lacks the pids of the gallery .*gallery_f, gallery_cam"),
    "no features": (lambda p: pt(p, query_features=None), r"lacks the features of the query \(query_features, query_f"),
    "nothing": (lambda p: mat(p, **dict.fromkeys(renamed("layumi"))), "it has nothing"),
    "two of a kind": (lambda p: pt(p, query_label=torch.ones(3)), "query_pids and query_label, which both say"),
    "a struct": (lambda p: mat(p, query_label={"a": 1}), "has no numbers in query_pids"),
    "cells": (lambda p: mat(p, query_label=np.array([1, "a", 2], object)), "has no numbers in query_pids"),
    "a sparse matrix": (lambda p: mat(p, query_f=scipy.sparse.csc_matrix(np.eye(3))), "save a full array"),
    "a sparse tensor": (lambda p: pt(p, query_features=torch.eye(3).to_sparse()), "no ordinary tensor in query_feat"),
    "a terabyte": (lambda p: pt(p, query_features=torch.ones(1).expand(1 << 30, 256)), "would unpack to 1099511"),
    "objects": (lambda p: pt(p, query_features=Anything()), "is not a file of torch.save that can be read"),
    "numbers and names": (lambda p: pt(p, query_pids=[1, "a", None]), "has a list in query_pids"),
    "a tensor alone": (lambda p: (torch.save(torch.eye(2), p / "a.pt"), p / "a.pt")[1], "holds a Tensor"),
    "no archive": (lambda p: written(p, "a.pth", b"weights"), "is not a file of torch.save"),
    "torn": (torn, "the checksum of its record"),
    "no MATLAB file": (lambda p: written(p, "a.mat", b"MATLAB " * 40), "is not a MATLAB file that can be read"),
    "empty": (lambda p: written(p, "a.mat", b""), "is not a MATLAB file that can be read"),
    "MATLAB 7.3": (
        lambda p: written(p, "a.mat", b"MATLAB 7.3 MAT-file" + bytes(600)),
        "write it with scipy.io.savemat",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_told(tmp_path, name):
    make, words = WRONG[name]
    told = features_file.main(str(make(tmp_path)), str(tmp_path / "out.npz"))
    assert re.search(words, told), told
    assert told.isprintable()
    assert not (tmp_path / "out.npz").exists()


def test_what_is_wrong_inside_names_the_file(tmp_path):
    with pytest.raises(UserError, match=r"a\.mat lacks gallery_camids"):
        load_embeddings(mat(tmp_path, gallery_cam=None))
    with pytest.raises(UserError, match=r"query of .*a\.mat: pids have shape \(2,\) for 3 vectors"):
        load_embeddings(mat(tmp_path, query_label=np.array([1, 2])))


def test_a_file_whose_process_dies_is_told(tmp_path, monkeypatch):
    (tmp_path / "dies.py").write_text("import os\n\ndef main(path, output):\n    os.abort()\n")
    monkeypatch.setattr(features_file, "__file__", str(tmp_path / "dies.py"))
    with pytest.raises(UserError, match=r"a.mat ends the process in which it is read \(SIGABRT\)"):
        load_embeddings(mat(tmp_path))


def test_a_file_that_claims_more_memory_than_there_is(tmp_path):
    """SciPy makes room for a matrix as large as the file says."""
    path = mat(tmp_path)
    content = bytearray(path.read_bytes())
    place = content.index(b"query_f") - 16  # behind the header of the array: its dimensions
    assert content[place : place + 8] == np.array([3, 4], "<i4").tobytes()
    content[place : place + 8] = np.array([1 << 30, 1 << 30], "<i4").tobytes()
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"a\.mat "):
        load_embeddings(path)
