"""An operation that brings its plain form only, and spaces that lack some of the usual ones: all are executed."""

import copy

import pytest
import torch
from torch import nn

from torchreid_autoreid import genotype as genotypes
from torchreid_autoreid.deploy.fusion import FusedNetwork, fuse
from torchreid_autoreid.genotype import OPERATION_NAMES, Genotype, num_edges
from torchreid_autoreid.space.cells import SearchCell
from torchreid_autoreid.space.networks import AutoReIDNetwork, AutoReIDSearchNetwork
from torchreid_autoreid.space.operations import OPERATIONS, Operation
from torchreid_autoreid.space.strategies import Mixture


class Scaled(nn.Module):
    def __init__(self, channels, stride):
        super().__init__()
        self.stride = stride
        self.scale = nn.Parameter(torch.linspace(1.0, 2.0, channels).view(1, -1, 1, 1))

    def forward(self, x):
        return self.scale * x[:, :, :: self.stride, :: self.stride]


class ScaledOperation(Operation):
    def build(self, channels, stride, parts, affine):
        return Scaled(channels, stride)


@pytest.fixture
def scaled(monkeypatch):
    monkeypatch.setitem(OPERATIONS, "scaled", ScaledOperation())
    monkeypatch.setattr(genotypes, "OPERATION_NAMES", (*OPERATION_NAMES, "scaled"))
    monkeypatch.setitem(genotypes.SPACES, "mine", ("scaled", "none", "skip_connect", "sep_conv_3x3"))


SPACES = [
    ("scaled", "none", "skip_connect", "sep_conv_3x3"),
    ("scaled", "none"),
    ("skip_connect", "none"),
    ("sep_conv_3x3", "none", "skip_connect"),
    ("max_pool_3x3", "none"),
    ("part_aware", "none"),
]


@pytest.mark.usefixtures("scaled")
@pytest.mark.parametrize("kind", ["normal", "reduce"])
@pytest.mark.parametrize("names", SPACES)
def test_grouped_is_the_same_as_edge_by_edge(names, kind):
    cell = SearchCell(names, 2, (6, 10), 8, kind, 2 if kind == "reduce" else 1, False, 4).double()
    twin = copy.deepcopy(cell)
    before, last = torch.randn(3, 6, 9, 6, dtype=torch.float64), torch.randn(3, 10, 9, 6, dtype=torch.float64)
    found = []
    for each, method in ((cell, cell.source_by_source), (twin, twin.edge_by_edge)):
        weights = torch.rand(num_edges(2), len(names), dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        weights.requires_grad_()
        out = method(each.inputs(before, last), Mixture(weights))
        (out * torch.linspace(0, 1, out.numel(), dtype=out.dtype).view_as(out)).sum().backward()
        found.append([out.detach(), weights.grad, *(p.grad for p in each.parameters() if p.grad is not None)])
    assert len(found[0]) == len(found[1])
    for one, other in zip(*found, strict=True):
        assert torch.allclose(one, other, rtol=1e-8, atol=1e-10)


@pytest.mark.usefixtures("scaled")
def test_a_search_network_trains_it():
    network = AutoReIDSearchNetwork(4, channels=4, layers=(1, 1, 1, 1), blocks=2, space="mine")
    logits, _ = network(torch.randn(4, 3, 32, 16))
    logits.square().sum().backward()
    scales = [p for name, p in network.named_parameters() if name.endswith("scaled.scale")]
    assert scales
    assert all(p.grad is not None and p.grad.any() for p in scales)
    assert network.alphas()[0].grad[:, 0].any()


@pytest.mark.usefixtures("scaled")
@pytest.mark.parametrize("size", [(64, 32), (70, 38)])
def test_a_derived_network_and_its_fused_form_execute_it(size):
    normal = [[["scaled", 0], ["skip_connect", 1]], [["scaled", 2], ["sep_conv_3x3", 1]]]
    reduce = [[["scaled", 0], ["scaled", 1]], [["part_aware", 0], ["scaled", 2]]]
    network = AutoReIDNetwork(4, genotype=Genotype("mine", normal, reduce), channels=8, layers=(1, 1, 1, 1))
    for _ in range(3):
        network(torch.randn(8, 3, *size))
    network.eval()
    fused = fuse(network)
    assert isinstance(fused, FusedNetwork)
    images = torch.randn(2, 3, *size)
    with torch.no_grad():
        expected = network(images)
        assert torch.allclose(fused(images), expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))
        for module in network.modules():
            if isinstance(module, Scaled):
                module.scale.mul_(2.0)
        assert not torch.allclose(network(images), expected, rtol=1e-2)
