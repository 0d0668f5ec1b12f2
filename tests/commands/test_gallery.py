"""``autoreid gallery``, in process, with a network that averages colours."""

import csv
import os
import unicodedata

import numpy as np
import pytest
import scipy.io
import torch
from PIL import Image
from torch import nn

from torchreid_autoreid.commands import execute, gallery
from torchreid_autoreid.deploy.export import write_onnx
from torchreid_autoreid.deploy.onnx import OnnxExtractor
from torchreid_autoreid.errors import UserError
from torchreid_autoreid.gallery import Gallery

COLOURS = {"ann": (250, 10, 10), "bob": (10, 250, 10), "cem": (10, 10, 250)}


class Colours(nn.Module):
    def forward(self, images):
        return images.mean((2, 3))


@pytest.fixture(scope="module")
def onnx_file(tmp_path_factory):
    pytest.importorskip("onnxruntime")
    path = tmp_path_factory.mktemp("network") / "colours.onnx"
    described = {"height": 16, "width": 8, "norm_mean": [0.5] * 3, "norm_std": [0.5] * 3}
    write_onnx(Colours().eval(), torch.zeros(2, 3, 16, 8), path, described)
    return path


def paint(path, colour):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (10, 20), colour).save(path)
    return path


@pytest.fixture
def crops(tmp_path):
    for name, colour in COLOURS.items():
        paint(tmp_path / "crops" / name / "0.png", colour)
        paint(tmp_path / "crops" / name / "1.png", tuple(value - 8 for value in colour))
    return tmp_path / "crops"


def run(*words):
    return execute("gallery", [str(word) for word in words])


def test_from_crops_to_an_answer(tmp_path, crops, onnx_file, capsys):
    folder, network = tmp_path / "gallery", ("--weights", onnx_file)
    run("build", folder, "--images", crops, *network)
    assert "enrolled 6 vectors of 3 people" in capsys.readouterr().out
    run("calibrate", folder, "--far", 0.2)
    assert "threshold" in capsys.readouterr().out
    query = paint(tmp_path / "query.png", (240, 20, 20))
    run("query", folder, "--images", query, *network, "--threshold", 0.9)
    assert f"{query}: ann (margin" in capsys.readouterr().out
    stranger = paint(tmp_path / "asked" / "x.png", (250, 250, 10))
    run("query", folder, "--images", stranger.parent, *network, "--threshold", 0.99, "--csv", tmp_path / "a.csv")
    with open(tmp_path / "a.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["known"] for row in rows] == ["0", "", ""]
    assert {row["pid"] for row in rows} == set(COLOURS)
    run("add", folder, "--images", paint(tmp_path / "more" / "0007_c1.png", (250, 250, 10)).parent, *network)
    capsys.readouterr()
    run("query", folder, "--images", stranger, *network)
    out = capsys.readouterr().out
    assert f"{stranger}: 0007 (margin" in out
    assert "run gallery calibrate again" in out
    run("remove", folder, "--pids", "ann", "0007")
    with Gallery.open(folder) as gallery:
        assert gallery.pids.tolist() == ["bob", "cem"]


def test_features_instead_of_images(tmp_path, capsys):
    random = np.random.default_rng(0)
    features = random.normal(size=(20, 4))
    path = tmp_path / "features.npz"
    np.savez(path, gallery_features=features, gallery_pids=np.arange(20) // 2, query_features=features[:3],
             query_pids=np.zeros(3, int))  # fmt: skip
    folder = tmp_path / "gallery"
    run("build", folder, "--features", path)
    run("calibrate", folder, "--far", 0.2)
    run("query", folder, "--features", path, "--top", 2)
    assert "0: 0 (margin" in capsys.readouterr().out
    with pytest.raises(UserError, match="of the cohort is enrolled"):
        run("calibrate", folder, "--features", path, "--far", 0.2)
    names = np.array([f"somebody {row // 2}" for row in range(20)])
    np.savez(path, gallery_features=features, gallery_pids=names, query_features=features[:3], query_pids=names[:3])
    run("build", tmp_path / "named", "--features", path)
    capsys.readouterr()
    run("query", tmp_path / "named", "--features", path, "--threshold", 0)
    assert "0: somebody 0 (margin" in capsys.readouterr().out
    with pytest.raises(UserError, match="--pids ann is no number"):
        run("remove", folder, "--pids", "ann")


def test_features_of_the_common_baselines(tmp_path, capsys):
    features, names = np.eye(4, dtype=np.float32), ["ann", "bob", "cem", "dee"]
    path = tmp_path / "pytorch_result.mat"
    scipy.io.savemat(path, {"gallery_f": features, "gallery_label": names, "query_f": features[:2],
                            "query_label": names[:2]})  # fmt: skip
    run("build", tmp_path / "gallery", "--features", path)
    run("query", tmp_path / "gallery", "--features", path, "--threshold", 0.5)
    out = capsys.readouterr().out
    assert "0: ann (margin" in out
    assert "1: bob (margin" in out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("remove", "{folder}"), "needs --pids"),
        (("query", "{folder}"), "needs --images"),
        (("query", "{folder}", "--images", "x"), "go together"),
        (("add", "{folder}", "--features", "x.npz", "--far", "0.1"), "--far has no effect on gallery add"),
        (("add", "{folder}", "--images", "{crops}", "--weights", "{onnx}"), "holds no gallery"),
        (("build", "{folder}", "--images", "{torn}", "--weights", "{onnx}"), r"torn\.png"),
        (("build", "{folder}", "--images", "{flat}", "--weights", "{onnx}"), "does not say who it is"),
        (("build", "{folder}", "--images", "{crops}", "--weights", "{torn}/0001_torn.onnx"), "no ONNX file"),
        (("build", "{folder}", "--images", "{crops}", "--weights", "{folder}.onnx"), "cannot read --weights"),
        (("build", "{folder}", "--images", "{crops}", "--weights", "{pipe}"), "is no ordinary file"),
        (("build", "{folder}", "--images", "{crops}", "--weights", "/dev/zero"), "is no ordinary file"),
    ],
)
def test_mistakes(tmp_path, crops, onnx_file, words, says):
    paint(tmp_path / "flat" / "somebody.png", (1, 2, 3))
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "0001_torn.png").write_bytes(b"\x89PNG no picture")
    (tmp_path / "torn" / "0001_torn.onnx").write_bytes(b"no network")
    os.mkfifo(tmp_path / "pipe")
    places = {name: tmp_path / name for name in ("folder", "torn", "flat", "pipe")} | {
        "crops": crops,
        "onnx": onnx_file,
    }
    with pytest.raises(UserError, match=says):
        run(*(word.format(**places) for word in words))
    assert not (tmp_path / "folder").exists()


def test_a_gallery_of_another_network_is_refused(tmp_path, crops, onnx_file):
    folder, other = tmp_path / "gallery", tmp_path / "other.onnx"
    run("build", folder, "--images", crops, "--weights", onnx_file)
    other.write_bytes(onnx_file.read_bytes() + b" ")
    with pytest.raises(UserError, match="another network"):
        run("query", folder, "--images", crops, "--weights", other)


def test_an_onnx_file_computes_what_its_network_does(onnx_file, tmp_path):
    network = OnnxExtractor(onnx_file)
    images = torch.stack([network.preprocess(paint(tmp_path / "a.png", colour)) for colour in COLOURS.values()])
    assert images.shape == (3, 3, 16, 8)
    torch.testing.assert_close(network(images), images.mean((2, 3)))


def test_names_of_every_kind(tmp_path, onnx_file, capsys, caplog):
    """Both Unicode forms of a name are one person; hidden files are passed over, and what is left out is counted."""
    crops, network = tmp_path / "crops", ("--weights", onnx_file)
    for form in ("NFC", "NFD"):
        paint(crops / unicodedata.normalize(form, "Zo\u00eb") / "0.png", COLOURS["ann"])
    paint(tmp_path / "elsewhere" / "0.png", COLOURS["bob"])
    (crops / "bob").symlink_to(tmp_path / "elsewhere")
    (crops / "bob" / "again").symlink_to(crops)  # a circle
    (crops / "bob" / "._0.png").write_bytes(b"what macOS leaves")
    (crops / "bob" / "1.png").symlink_to("/nowhere.png")
    (crops / "bob" / "2.gif").write_bytes(b"GIF89a")
    run("build", tmp_path / "gallery", "--images", crops, *network)
    assert "enrolled 3 vectors of 2 people" in capsys.readouterr().out
    (record,) = caplog.records
    assert f"1 dead links in {crops} (such as bob/1.png), 1 .gif files in {crops} (such as bob/2.gif)" in record.message
    query = os.fsdecode(os.fsencode(tmp_path) + b"/\xff.png")
    os.rename(paint(tmp_path / "query.png", COLOURS["ann"]), query)
    run("query", tmp_path / "gallery", "--images", query, *network, "--threshold", 0, "--csv", tmp_path / "a.csv")
    assert r"\udcff.png,1,Zo" in (tmp_path / "a.csv").read_text(encoding="utf-8")
    run("remove", tmp_path / "gallery", "--pids", "Zoe\u0308")
    assert "removed 2 vectors of 1 people" in capsys.readouterr().out


@pytest.mark.parametrize("vector", [[0, 0], [1, 2]])
def test_a_gallery_that_cannot_be_filled_is_not_begun(tmp_path, vector):
    pids = ["ann", "bob" if vector == [0, 0] else "b\nb"]
    np.savez(tmp_path / "f.npz", gallery_features=np.array([[1, 2], vector]), gallery_pids=pids,
             query_features=np.ones((1, 2)), query_pids=["ann"])  # fmt: skip
    (tmp_path / "there").mkdir()
    for folder in (tmp_path / "gallery", tmp_path / "there"):
        with pytest.raises(UserError, match=r"zero in row 1|printable names"):
            run("build", folder, "--features", tmp_path / "f.npz")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["f.npz", "there"]
    assert not list((tmp_path / "there").iterdir())


def test_names_do_not_steer_the_terminal():
    assert gallery.printable("0007_c1.jpg") == "0007_c1.jpg"
    assert gallery.printable("José") == "José"
    assert gallery.printable("a\x1b[31m\n") == "'a\\x1b[31m\\n'"


def test_a_folder_that_cannot_be_a_gallery_is_told_before_images_are_read(tmp_path, crops, onnx_file):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a").write_text("mine")
    (tmp_path / "nowhere").symlink_to(tmp_path / "gone")
    (crops / "torn").mkdir()
    (crops / "torn" / "0.png").write_bytes(b"no picture")
    for folder in ("full", "full/a", "full/a/b", "nowhere"):
        with pytest.raises(UserError, match=r"is not empty|cannot write"):
            run("build", tmp_path / folder, "--images", crops, "--weights", onnx_file)
    assert (tmp_path / "full" / "a").read_text() == "mine"
