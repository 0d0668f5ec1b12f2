"""Exported files compute what PyTorch computes, for any batch, and say what they are."""

import os
import pickle
import sys

import numpy as np
import onnxruntime
import pytest
import torch

from torchreid_autoreid.config.read import load_config
from torchreid_autoreid.deploy import export as module
from torchreid_autoreid.deploy.export import export, read_metadata
from torchreid_autoreid.errors import UserError
from torchreid_autoreid.spec import Description


def checkpoint(folder, *opts, size=(64, 32)):
    """Weights with their description, batch norms no longer fresh."""
    pairs = ["data.height", str(size[0]), "data.width", str(size[1]), "loss.name", "triplet", *opts]
    description = Description.of_config(load_config(opts=pairs))
    torch.manual_seed(0)
    model = description.build(6)
    with torch.no_grad():
        model(torch.randn(4, 3, *size))
    path = folder / "weights.pth"
    torch.save({"state_dict": model.state_dict(), "network": description.to_dict() | {"num_classes": 6}}, path)
    return path, model.eval()


def assert_same_features(path, model, batches, size, normalize=False):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for batch in batches:
        images = torch.randn(batch, 3, *size)
        with torch.no_grad():
            expected = model(images)
        expected = torch.nn.functional.normalize(expected, dim=1) if normalize else expected
        found = session.run(["features"], {"images": images.numpy()})[0]
        assert np.allclose(found, expected, atol=1e-4 * float(expected.abs().max()))


TINY = ["model.name", "autoreid", "autoreid.channels", "4", "autoreid.layers", "[1, 1, 1, 1]"]


@pytest.mark.parametrize(
    ("opts", "size"),
    [
        (["recipe.neck", "after"], (64, 32)),
        (["autoreid.last_stride", "1"], (80, 48)),  # sizes that the stripes do not divide
        (["recipe.neck", "after"], (96, 48)),  # an odd map in the last stage
        (["recipe.neck", "before"], (64, 16)),  # a map of one column
        (["recipe.neck", "after"], (16, 32)),  # of one row
        (["recipe.neck", "after"], (16, 16)),
        pytest.param(["recipe.neck", "after"], (224, 112), marks=pytest.mark.slow),
        pytest.param(["recipe.neck", "after"], (160, 80), marks=pytest.mark.slow),
        pytest.param([], (384, 128), marks=pytest.mark.slow),
    ],
)
def test_onnx_gives_pytorchs_features_for_any_batch(tmp_path, opts, size):
    weights, model = checkpoint(tmp_path, *TINY, *opts, size=size)
    assert export(weights, tmp_path / "n.onnx") < 1e-4
    assert_same_features(tmp_path / "n.onnx", model, (1, 2, 5), size)


@pytest.mark.parametrize("neck", ["before", "after"])
def test_features_are_of_length_one_if_asked_for(tmp_path, neck):
    weights, model = checkpoint(tmp_path, *TINY, "recipe.neck", neck)
    assert export(weights, tmp_path / "n.onnx", normalize=True) < 1e-4
    assert_same_features(tmp_path / "n.onnx", model, (1, 2, 5), (64, 32), normalize=True)


@pytest.mark.slow
def test_the_presets_at_their_real_size(tmp_path):
    weights, model = checkpoint(tmp_path, "model.name", "autoreid", size=(384, 128))
    assert export(weights, tmp_path / "n.onnx") < 1e-4
    assert_same_features(tmp_path / "n.onnx", model, (2,), (384, 128))


@pytest.mark.parametrize("name", ["resnet18", "osnet_x0_25"])
def test_torchreids_models_are_exported_too(tmp_path, name):
    weights, model = checkpoint(tmp_path, "model.name", name)
    export(weights, tmp_path / "n.onnx")
    assert_same_features(tmp_path / "n.onnx", model, (3,), (64, 32))


def test_torchscript_gives_pytorchs_features_for_any_batch_and_needs_no_package(tmp_path, monkeypatch):
    for package in ("onnx", "onnxruntime"):
        monkeypatch.setitem(sys.modules, package, None)  # what makes Python's import fail
    weights, model = checkpoint(tmp_path, *TINY, "recipe.neck", "after")
    export(weights, tmp_path / "n.pt", "torchscript")
    loaded = torch.jit.load(str(tmp_path / "n.pt"))
    for batch in (1, 4):
        images = torch.randn(batch, 3, 64, 32)
        with torch.no_grad():
            assert torch.allclose(loaded(images), model(images), atol=1e-5)


@pytest.mark.parametrize("file_format", ["onnx", "torchscript"])
def test_the_file_says_what_it_is(tmp_path, file_format):
    weights, _ = checkpoint(tmp_path, *TINY)
    export(weights, tmp_path / "n", file_format, normalize=True)
    found = read_metadata(tmp_path / "n")
    description, _ = Description.of_checkpoint(weights)
    for key, value in description.to_dict().items():
        assert found[key] == (list(value) if isinstance(value, tuple) else value), key
    assert found["normalized"] is True
    assert found["torchreid_autoreid"]


def test_mistakes_are_told_and_nothing_is_written(tmp_path, monkeypatch):
    weights, model = checkpoint(tmp_path, *TINY)
    with pytest.raises(UserError, match="unknown format 'tflite'; choose onnx or torchscript"):
        export(weights, tmp_path / "n", "tflite")
    with pytest.raises(UserError, match="cannot write"):
        export(weights, tmp_path / "missing" / "n.onnx")
    with pytest.raises(UserError, match=r"cannot write .*name too long"):
        export(weights, tmp_path / f"{'n' * 300}.onnx")
    before = weights.read_bytes()
    with pytest.raises(UserError, match="it is the file of the weights"):
        export(weights, tmp_path / "." / weights.name)
    assert weights.read_bytes() == before
    torch.save(model.state_dict(), tmp_path / "plain.pth")
    with pytest.raises(UserError, match="does not say which network it holds"):
        export(tmp_path / "plain.pth", tmp_path / "n.onnx")
    other = Description.of_config(load_config(opts=[*TINY, "autoreid.genotype", "baseline"]))
    with pytest.raises(UserError, match="belongs to another network: it lacks cells"):
        export(weights, tmp_path / "n.onnx", description=other)
    small = Description.of_config(load_config(opts=[*TINY, "data.height", "8"]))
    with pytest.raises(UserError, match="8 x 128 is too small for four stages"):
        export(weights, tmp_path / "n.onnx", description=small)
    monkeypatch.setattr(module, "TOLERANCE", -1.0)
    with pytest.raises(UserError, match="differs from PyTorch by"):
        export(weights, tmp_path / "n.onnx")
    assert not (tmp_path / "n.onnx").exists()


@pytest.mark.parametrize("package", ["onnx", "onnxruntime"])
def test_a_missing_package_is_told_with_the_way_to_get_it(tmp_path, monkeypatch, package):
    weights, _ = checkpoint(tmp_path, *TINY)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=rf"onnx needs a package that is missing \({package}\); pip install onnx onn"):
        export(weights, tmp_path / "n.onnx")
    assert not (tmp_path / "n.onnx").exists()


@pytest.mark.slow
@pytest.mark.parametrize("file_format", ["onnx", "torchscript"])
def test_a_model_that_pytorch_cannot_trace_gets_one_line(tmp_path, file_format, capfd):
    weights, _ = checkpoint(tmp_path, "model.name", "hacnn", size=(160, 64))
    with pytest.raises(UserError, match=f"cannot write hacnn as {file_format} .*; try the other format"):
        export(weights, tmp_path / "n", file_format)
    assert not (tmp_path / "n").exists()
    assert capfd.readouterr().out == ""  # PyTorch would print 180 kB


class Unwritable(torch.nn.Module):
    """Fails where a tracer looks at it, and not where an eager run does."""

    def forward(self, images):
        if torch.jit.is_tracing():
            raise KeyError("of any kind")
        return images.mean((2, 3))


def test_any_failure_of_a_writer_gets_one_line(tmp_path, monkeypatch):
    weights, _ = checkpoint(tmp_path, *TINY)
    monkeypatch.setattr(module, "fuse", lambda _: Unwritable())
    with pytest.raises(UserError, match=r"cannot write autoreid as onnx .*; try the other format"):
        export(weights, tmp_path / "n")


@pytest.mark.parametrize(
    ("name", "kind"), [("a.onnx", "onnx"), ("a.pt", "torchscript"), ("b.PTH", "torchscript"), ("c", "onnx")]
)
def test_the_ending_says_the_format(name, kind):
    assert module.format_of(name) == kind


@pytest.mark.parametrize("name", ["a.tflite", "b.engine"])
def test_an_ending_that_says_none_asks_for_it(name):
    with pytest.raises(UserError, match=f"{name} does not end in .onnx, .pt, .*; say --format onnx or torchscript"):
        module.format_of(name)


def test_foreign_files_have_no_metadata_and_run_nothing(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    (tmp_path / "evil.onnx").write_bytes(pickle.dumps(Evil()))
    for path in (tmp_path / "evil.onnx", tmp_path / "absent.onnx"):
        with pytest.raises(UserError):
            read_metadata(path)
    assert not (tmp_path / "ran").exists()
