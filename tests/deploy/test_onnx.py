"""ONNX files of anybody as feature extractors: what is read of them, and what is wrong with them."""

import json

import numpy as np
import pytest
import torch

from torchreid_autoreid.deploy.onnx import OnnxExtractor
from torchreid_autoreid.errors import UserError

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


def network(path, nodes, shape=("batch", 3, 8, 4), described=None, output=None):
    """An ONNX file that makes ``features`` of ``images``."""
    kind = onnx.TensorProto.FLOAT
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node(name, inputs, [made], **options) for name, inputs, made, options in nodes],
        "network",
        [onnx.helper.make_tensor_value_info("images", kind, shape)],
        [output or onnx.helper.make_tensor_value_info("features", kind, None)],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    if described is not None:
        onnx.helper.set_model_props(model, {"torchreid_autoreid": json.dumps(described)})
    onnx.save(model, path)
    return path


def features_of_noise(path):
    found = OnnxExtractor(path)
    return found(torch.rand(2, 3, found.height, found.width))


COLOURS = [("ReduceMean", ["images"], "features", {"axes": [2, 3], "keepdims": 0})]


def test_a_size_that_the_graph_leaves_open_may_be_given(tmp_path):
    path = network(tmp_path / "n.onnx", COLOURS, ("batch", 3, "height", "width"))
    with pytest.raises(UserError, match="does not say the size"):
        OnnxExtractor(path)
    found = OnnxExtractor(path, (6, 5))
    images = torch.rand(3, 3, found.height, found.width)
    assert images.shape == (3, 3, 6, 5)
    torch.testing.assert_close(found(images), images.mean((2, 3)))


def test_a_size_that_the_graph_says_is_the_files(tmp_path):
    found = OnnxExtractor(network(tmp_path / "n.onnx", COLOURS), (6, 5))
    assert (found.height, found.width) == (8, 4)


def test_a_fixed_batch_is_filled_up(tmp_path):
    found = OnnxExtractor(network(tmp_path / "n.onnx", COLOURS, (2, 3, 8, 4)))
    images = torch.rand(5, 3, 8, 4)
    torch.testing.assert_close(found(images), images.mean((2, 3)))


def test_maps_are_flattened(tmp_path):
    found = OnnxExtractor(network(tmp_path / "n.onnx", [("Relu", ["images"], "features", {})]))
    images = torch.randn(2, 3, 8, 4)
    np.testing.assert_array_equal(found(images), images.relu().flatten(1))


SEQUENCE = onnx.helper.make_tensor_sequence_value_info("features", onnx.TensorProto.FLOAT, None)
WRONG = {
    "a number": ([("ReduceMean", ["images"], "features", {"keepdims": 0})], {}, r"gives \(\) for 2 images"),
    "a number each": (
        [("ReduceMean", ["images"], "features", {"axes": [1, 2, 3], "keepdims": 0})],
        {},
        r"gives \(2,\) for 2 images",
    ),
    "one for all": ([("ReduceMean", ["images"], "features", {"axes": [0, 2, 3]})], {}, "one vector each"),
    "a list": ([("SequenceConstruct", ["images"], "features", {})], {"output": SEQUENCE}, "gives no array of numbers"),
    "another size": (COLOURS, {"described": {"height": 9, "width": 4}}, "fails on a batch of images"),
    "a description that is a list": (COLOURS, {"described": [1]}, r"its description is \[1\]"),
    "a size that is none": (COLOURS, {"described": {"height": "8"}}, "does not say the size"),
    "a size of truth": (COLOURS, {"described": {"height": True, "width": True}}, "does not say the size"),
    "large images": (COLOURS, {"described": {"height": 8192, "width": 8192}}, "more than 2097152 pixels"),
    "a mean that is none": (COLOURS, {"described": {"norm_mean": [float("nan")] * 3}}, "describes its input wrongly"),
    "colours divided away": (COLOURS, {"described": {"norm_std": [float("inf"), 1, 1]}}, "describes its input wrongly"),
    "two colours": (COLOURS, {"described": {"norm_mean": [0.5, 0.5]}}, "describes its input wrongly"),
    "vectors": (
        [("Relu", ["images"], "features", {})],
        {"shape": ("batch", 12)},
        "give a network that takes float32 images",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_told(tmp_path, name):
    nodes, options, words = WRONG[name]
    path = network(tmp_path / "n.onnx", nodes, **options)
    with pytest.raises(UserError, match=words) as told:
        features_of_noise(path)
    assert len(str(told.value).splitlines()) == 1
