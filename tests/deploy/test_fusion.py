"""The fused form computes what the network computes, for every genotype and size, and cannot be mistaken for it."""

import random

import pytest
import torch
from torch import nn

from torchreid_autoreid.deploy.fusion import FusedNetwork, fold, fuse
from torchreid_autoreid.errors import UserError
from torchreid_autoreid.genotype import OPERATION_NAMES, Genotype
from torchreid_autoreid.parallel.batch_norm import SyncBatchNorm, synchronise_batch_norm
from torchreid_autoreid.space.neck import add_neck
from torchreid_autoreid.space.networks import AutoReIDNetwork, AutoReIDSearchNetwork


def disturbed(network):
    """No statistic and no scale of a batch norm as it was initialised; some scales negative, some states too."""
    generator = torch.Generator().manual_seed(1)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
            module.running_mean.normal_(generator=generator)
            module.running_var.uniform_(0.5, 2.0, generator=generator)
            nn.init.normal_(module.weight, 0.8, 0.6, generator=generator)
            if module.bias is not None:
                nn.init.normal_(module.bias, generator=generator)
    return network.eval()


def drawn_genotype(seed):
    """Any operations on any inputs, `none` and one input read by all included."""
    draw = random.Random(seed)

    def cell():
        return [[(draw.choice(OPERATION_NAMES), draw.randrange(block + 2)) for _ in range(2)] for block in range(3)]

    return Genotype(f"drawn-{seed}", cell(), cell())


GENOTYPES = [Genotype.load(name) for name in Genotype.presets()] + [drawn_genotype(seed) for seed in range(12)]
GENOTYPES += [
    # An input whose readers take half of its pixels only, by one and by two kinds of operation; identities alone.
    Genotype("thin", [[("skip_connect", 0), ("skip_connect", 1)]], [[("skip_connect", 0), ("part_aware", 1)]]),
    Genotype("thinner", [[("skip_connect", 1), ("skip_connect", 1)]], [[("part_aware", 1), ("skip_connect", 1)]]),
    Genotype("pools", [[("max_pool_3x3", 0), ("max_pool_3x3", 0)]], [[("max_pool_3x3", 1), ("avg_pool_3x3", 1)]]),
]


@pytest.mark.parametrize("genotype", GENOTYPES, ids=lambda genotype: genotype.name)
@pytest.mark.parametrize(("size", "last_stride", "neck"), [((64, 32), 2, "none"), ((70, 35), 1, "after")])
def test_it_equals_the_network(genotype, size, last_stride, neck):
    torch.manual_seed(0)
    network = AutoReIDNetwork(5, "triplet", genotype, 6, (1, 2, 1, 1), last_stride=last_stride)
    network = disturbed(add_neck(network, neck).double())
    images = torch.randn(2, 3, *size, dtype=torch.float64)
    before = images.clone()
    with torch.no_grad():
        expected = network(images)
        fused = fuse(network)
        assert isinstance(fused, FusedNetwork)
        for _ in range(2):  # nothing that a call writes is read by the next
            assert torch.allclose(fused(images), expected, rtol=0, atol=1e-10 * float(expected.abs().max()))
    assert torch.equal(images, before)


def test_it_equals_the_network_in_single_precision_and_channels_last():
    torch.manual_seed(0)
    network = AutoReIDNetwork(5, channels=8, layers=(1, 1, 1, 1)).to(memory_format=torch.channels_last)
    network.train()
    with torch.no_grad():
        network(torch.randn(8, 3, 64, 32))
        network.eval()
        images = torch.randn(2, 3, 64, 32)
        expected = network(images)
        fused = fuse(network)
        assert torch.allclose(fused(images), expected, rtol=0, atol=1e-4 * float(expected.abs().max()))
    assert all(
        module.weight.is_contiguous(memory_format=torch.channels_last)
        for module in fused.modules()
        if isinstance(module, nn.Conv2d)
    )


def test_it_leaves_the_network_alone_and_later_training_leaves_it_alone():
    network = disturbed(AutoReIDNetwork(5, channels=4, layers=(1, 1, 1, 1)))
    state = {key: value.clone() for key, value in network.state_dict().items()}
    images = torch.randn(1, 3, 64, 32)
    fused = fuse(network)
    with torch.no_grad():
        found = fused(images)
        assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())
        for parameter in network.parameters():
            parameter.zero_()
        assert torch.equal(fused(images), found)


def test_it_has_no_batch_norm_but_those_of_pools_and_half_of_the_rectifiers():
    network = AutoReIDNetwork(5, channels=4)
    fused = fuse(network)
    norms = [module for module in fused.modules() if isinstance(module, nn.BatchNorm2d)]
    pools = [module for module in network.modules() if isinstance(module, nn.MaxPool2d)]
    assert len(norms) == len(pools) - 1 + 4  # the stem's pool has none; the last norm is one for each block
    fused_calls, calls = [], []
    for model, found in ((fused, fused_calls), (network.eval(), calls)):
        with torch.profiler.profile() as profile, torch.no_grad():
            model(torch.zeros(1, 3, 64, 32))
        found += [event.name for event in profile.events() if event.name in ("aten::relu", "aten::relu_")]
    assert len(fused_calls) < 0.75 * len(calls)


def test_fold_is_the_batch_norm_of_the_convolution():
    torch.manual_seed(0)
    convolution, norm = nn.Conv2d(3, 4, 3, bias=False).double(), nn.BatchNorm2d(6).double()
    disturbed(norm)
    x = torch.randn(2, 3, 5, 5, dtype=torch.float64)
    with torch.no_grad():
        expected = norm(torch.nn.functional.pad(convolution(x), (0, 0, 0, 0, 2, 0)))[:, 2:]
        assert torch.allclose(fold(convolution, norm, 2)(x), expected)


def test_it_cannot_be_trained():
    fused = fuse(AutoReIDNetwork(5, channels=2, layers=(1, 1, 1, 1)))
    assert not any(parameter.requires_grad for parameter in fused.parameters())
    with pytest.raises(UserError, match="cannot be trained"):
        fused.train()


def test_what_it_does_not_know_stays_as_it_is():
    class Other(AutoReIDNetwork):
        def forward(self, x, **options):
            return super().forward(x, **options)

    hooked = AutoReIDNetwork(5, channels=2, layers=(1, 1, 1, 1))
    hooked.cells[0].register_forward_hook(lambda *_: None)
    search = AutoReIDSearchNetwork(5, channels=2, layers=(1, 1, 1, 1))
    for network in (Other(5, channels=2, layers=(1, 1, 1, 1)), hooked, search, nn.Linear(2, 2)):
        assert fuse(network) is network


def test_it_draws_no_random_numbers():
    """Or a training would go another way after each evaluation."""
    network = AutoReIDNetwork(5, channels=2, layers=(1, 1, 1, 1)).eval()
    state = torch.get_rng_state()
    fuse(network)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("neck", ["none", "before", "after"])
def test_synchronised_batch_norms_are_fused_as_well(neck):
    network = AutoReIDNetwork(5, "triplet", channels=4, layers=(1, 1, 1, 1))
    network = disturbed(add_neck(network, neck).double())
    images = torch.randn(2, 3, 64, 32, dtype=torch.float64)
    expected = network(images)
    network = synchronise_batch_norm(network)
    assert any(isinstance(module, SyncBatchNorm) for module in network.modules())
    fused = fuse(network)
    assert isinstance(fused, FusedNetwork)
    assert torch.allclose(fused(images), expected, rtol=1e-9, atol=1e-9)
