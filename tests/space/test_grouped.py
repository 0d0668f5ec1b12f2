"""The search cell computed source by source, against the same cell computed edge by edge."""

import copy

import pytest
import torch
from torch.nn import functional as F

from torchreid_autoreid.genotype import num_edges, operation_names
from torchreid_autoreid.space import cells
from torchreid_autoreid.space.cells import SearchCell
from torchreid_autoreid.space.networks import AutoReIDSearchNetwork
from torchreid_autoreid.space.operations import skip
from torchreid_autoreid.space.operations.separable import DilatedConv2d, DilatedDepthwise
from torchreid_autoreid.space.strategies import Mixture


def cell_and_arguments(
    kind="normal",
    size=(10, 6),
    space="reid",
    blocks=3,
    partial=1,
    channels=8,
    parts=4,
    halve=False,
    dtype=torch.float64,
):
    torch.manual_seed(0)
    stride = 2 if kind == "reduce" else 1
    cell = SearchCell(operation_names(space), blocks, (6, 10), channels, kind, stride, halve, parts, partial).to(dtype)
    before = torch.randn(5, 6, *(2 * n for n in size) if halve else size, dtype=dtype)
    last = torch.randn(5, 10, *size, dtype=dtype)
    weights = torch.rand(num_edges(blocks), len(operation_names(space)), dtype=dtype)
    bypass = torch.rand(num_edges(blocks), dtype=dtype) if partial > 1 else None
    return cell, before, last, weights, bypass


def outcome(cell, method, before, last, weights, bypass):
    """Output, gradients of inputs, mixture and weights, buffers; all by name."""
    leaves = {"before": before, "last": last, "weights": weights} | ({} if bypass is None else {"bypass": bypass})
    leaves = {name: leaf.clone().requires_grad_() for name, leaf in leaves.items()}
    inputs = cell.inputs(leaves["before"], leaves["last"])
    out = getattr(cell, method)(inputs, Mixture(leaves["weights"], leaves.get("bypass")))
    torch.manual_seed(1)
    (out * torch.randn(out.shape, dtype=out.dtype)).sum().backward()
    found = {"out": out.detach()} | {f"d {name}": leaf.grad for name, leaf in leaves.items()}
    found |= {f"d {name}": parameter.grad for name, parameter in cell.named_parameters()}
    return found | {name: buffer.clone() for name, buffer in cell.named_buffers()}


def assert_same(plain, joined, tolerance=1e-9, least=1e-3):
    assert plain.keys() == joined.keys()
    for name, expected in plain.items():
        if expected is None:  # an operation that no output depends on
            assert joined[name] is None or not joined[name].any(), name
            continue
        scale = max(float(expected.double().abs().max()), least)
        assert torch.allclose(expected, joined[name], rtol=0, atol=tolerance * scale), name


@pytest.mark.parametrize("kind", ["normal", "reduce"])
@pytest.mark.parametrize("size", [(8, 4), (9, 6), (10, 5), (7, 3), (3, 2), (2, 1), (1, 1)])
def test_outputs_gradients_and_statistics_are_those_of_the_edges(kind, size):
    arguments = cell_and_arguments(kind, size)
    twin = copy.deepcopy(arguments[0])
    assert_same(
        outcome(twin, "edge_by_edge", *arguments[1:]), outcome(arguments[0], "source_by_source", *arguments[1:])
    )


@pytest.mark.parametrize(
    "change",
    [
        {"space": "standard"},
        {"blocks": 1},
        {"blocks": 4, "channels": 4},
        {"channels": 7},
        {"channels": 2},
        {"parts": 1},
        {"parts": 3},
        {"halve": True},
        {"partial": 2},
        {"partial": 4},
        {"partial": 8, "channels": 16},
    ],
)
@pytest.mark.parametrize("kind", ["normal", "reduce"])
def test_so_they_are_for_other_cells(kind, change):
    arguments = cell_and_arguments(kind, **change)
    twin = copy.deepcopy(arguments[0])
    assert_same(
        outcome(twin, "edge_by_edge", *arguments[1:]), outcome(arguments[0], "source_by_source", *arguments[1:])
    )


def test_in_float32_they_agree_to_1e_5():
    arguments = cell_and_arguments("normal", (16, 8), channels=16, blocks=4, dtype=torch.float32)
    twin = copy.deepcopy(arguments[0])
    plain, joined = (
        outcome(cell, method, *arguments[1:])
        for cell, method in ((twin, "edge_by_edge"), (arguments[0], "source_by_source"))
    )
    # A bias before the softmax of the attention has no effect: its gradient is rounding alone.
    drop = [name for name in plain if name.endswith("key.bias")]
    assert_same(
        *({name: value for name, value in each.items() if name not in drop} for each in (plain, joined)), 1e-5, 1.0
    )


@pytest.mark.parametrize("kind", ["normal", "reduce"])
def test_evaluation_uses_the_running_statistics_and_leaves_them(kind):
    cell, before, last, weights, _ = cell_and_arguments(kind)
    for _ in range(3):
        cell(before, last, Mixture(weights))
    cell.eval()
    buffers = {name: buffer.clone() for name, buffer in cell.named_buffers()}
    with torch.no_grad():
        inputs = cell.inputs(before, last)
        expected, found = cell.edge_by_edge(inputs, Mixture(weights)), cell.source_by_source(inputs, Mixture(weights))
    assert torch.allclose(expected, found, rtol=0, atol=1e-10)
    assert all(torch.equal(buffers[name], buffer) for name, buffer in cell.named_buffers())


@pytest.mark.parametrize("kind", ["normal", "reduce"])
def test_dropout_on_skips_reaches_the_skips_of_every_edge(kind, monkeypatch):
    def expected_value(x, p, training=True):
        return x * (1 - p)  # in place of a draw, which differs between the two forms

    assert cells.F is skip.F is F
    monkeypatch.setattr(F, "dropout", expected_value)
    arguments = cell_and_arguments(kind)
    arguments[0].skip_dropout = 0.25
    twin = copy.deepcopy(arguments[0])
    assert_same(
        outcome(twin, "edge_by_edge", *arguments[1:]), outcome(arguments[0], "source_by_source", *arguments[1:])
    )


def test_dropout_on_skips_draws_anew_for_each_edge():
    cell, before, last, _, _ = cell_and_arguments(blocks=2)
    cell.skip_dropout = 0.5
    weights = torch.zeros(num_edges(2), 7, dtype=torch.float64)
    weights[:, operation_names("reid").index("skip_connect")] = 1.0
    first, second = cell(before, last, Mixture(weights)).split(8, dim=1)
    assert 0.1 < (first == 0).double().mean() < 0.5  # two inputs, both dropped in a quarter of the places
    assert ((first == 0) != (second == 0)).any()


def test_dilated_convolution_has_the_gradient_of_the_ordinary_one():
    torch.manual_seed(0)
    for size in ((6, 4), (5, 3), (1, 1)):
        x = torch.randn(2, 3, *size, dtype=torch.float64, requires_grad=True)
        kernel = torch.randn(3, 1, 3, 3, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(DilatedDepthwise.apply, (x, kernel))
        expected = F.conv2d(x, kernel, padding=2, dilation=2, groups=3)
        assert torch.equal(DilatedDepthwise.apply(x, kernel), expected)


@pytest.mark.parametrize("size", [(6, 4), (5, 3), (1, 1), (2, 7)])
@pytest.mark.parametrize("stride", [1, 2])
def test_dilated_convolution_of_a_derived_network_is_the_ordinary_one(stride, size):
    torch.manual_seed(0)
    ours = DilatedConv2d(3, 3, 3, stride, 2, 2, groups=3, bias=False).double()
    plain = torch.nn.Conv2d(3, 3, 3, stride, 2, 2, groups=3, bias=False).double()
    plain.load_state_dict(ours.state_dict())
    found = []
    for convolution in (ours, plain):
        x = torch.randn(2, 3, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
        y = convolution(x)
        y.sin().sum().backward()
        found.append((y.detach(), x.grad, convolution.weight.grad))
        assert torch.equal(convolution.eval()(x), plain(x))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("strategy", ["darts", "pc_darts", "drnas"])
def test_whole_network_gives_the_same_gradient_of_the_alphas(strategy, monkeypatch):
    torch.manual_seed(0)
    network = AutoReIDSearchNetwork(4, channels=4, layers=(1, 1, 1, 1), blocks=2, strategy=strategy).double()
    images = torch.randn(6, 3, 40, 24, dtype=torch.float64)

    def gradients():
        torch.manual_seed(1)
        logits, features = network(images)
        return torch.autograd.grad(logits.square().sum() + features.square().sum(), network.alphas())

    joined = gradients()
    monkeypatch.setattr(SearchCell, "source_by_source", SearchCell.edge_by_edge)
    for expected, found in zip(gradients(), joined, strict=True):
        assert torch.allclose(expected, found, rtol=1e-7, atol=1e-10)


def test_mixed_precision_gives_the_gradients_of_the_edges_up_to_rounding(monkeypatch):
    torch.manual_seed(0)
    network = AutoReIDSearchNetwork(4, channels=4, layers=(1, 1, 1, 1), blocks=2)
    images = torch.randn(6, 3, 32, 16)  # one pixel in the last stage

    def gradients():
        with torch.autocast("cpu", torch.bfloat16):
            logits, _ = network(images)
        parameters = [*network.alphas(), *network.weights()]
        found = torch.autograd.grad(logits.float().square().sum(), parameters, allow_unused=True)
        return torch.cat([gradient.flatten() for gradient in found if gradient is not None])

    joined = gradients()
    monkeypatch.setattr(SearchCell, "source_by_source", SearchCell.edge_by_edge)
    expected = gradients()
    assert (joined - expected).norm() < 0.2 * expected.norm()


def test_whoever_hooks_the_modules_sees_each_of_them():
    cell, before, last, weights, _ = cell_and_arguments()
    seen = set()
    for name, module in cell.named_modules():
        module.register_forward_hook(lambda *_, name=name: seen.add(name))
    cell(before, last, Mixture(weights))
    leaves = {name for name, module in cell.named_modules() if not list(module.children())}
    assert {name for name in leaves if ".none" not in name} <= seen
