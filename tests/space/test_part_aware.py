"""The part-aware operation against a spelt-out form of the paper's five steps."""

import math

import pytest
import torch
from torch.nn import functional as F

from torchreid_autoreid.errors import UserError
from torchreid_autoreid.genotype import Genotype
from torchreid_autoreid.space.networks import AutoReIDNetwork
from torchreid_autoreid.space.operations import part_aware
from torchreid_autoreid.space.operations.part_aware import PartAware, stripe_bounds, stripe_means


def spelt_out(op, x):
    """Steps 1-5 with loops over samples, parts and rows; the last batch norm is the operation's own."""
    batch, channels, height, width = x.shape
    bounds = stripe_bounds(height, op.parts)
    stripes = len(bounds) - 1
    hidden = op.query.in_features
    weight = op.transform.weight.reshape(op.parts, hidden, channels)
    maps = []
    bodies = []  # of a part, over the batch
    for m in range(stripes):
        averages = [x[b, :, bounds[m] : bounds[m + 1]].mean(dim=(1, 2)).relu() for b in range(batch)]
        transformed = torch.stack([weight[m] @ average for average in averages])
        centred = transformed - transformed.mean(0)
        bodies.append(centred / (centred.pow(2).mean(0) + op.norm.eps).sqrt())
    for b in range(batch):
        body = [bodies[m][b] for m in range(stripes)]
        mixed = []
        for m in range(stripes):
            scores = torch.stack([op.query(body[m]) @ op.key(body[n]) for n in range(stripes)])
            mixed.append(sum(a * v for a, v in zip((scores / hidden**0.5).softmax(0), body, strict=True)))
        rows = [mixed[m] for m in range(stripes) for _ in range(bounds[m + 1] - bounds[m])]
        maps.append(torch.stack(rows, dim=1).unsqueeze(2).expand(-1, -1, width))
    joined = F.relu(torch.cat([x, torch.stack(maps)], dim=1))
    if op.fuse.stride == 1:
        return op.fuse.norm(F.conv2d(joined, op.fuse.convs[0].weight))
    even = F.conv2d(joined, op.fuse.convs[0].weight)[:, :, ::2, ::2]
    padded = F.pad(joined, (0, 1, 0, 1))
    odd = F.conv2d(padded, op.fuse.convs[1].weight)[:, :, 1::2, 1::2]
    return op.fuse.norm(torch.cat([even, odd], dim=1))


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("height", "width"), [(8, 4), (9, 5), (7, 3), (12, 4)])
def test_equals_the_paper_spelt_out(stride, height, width):
    torch.manual_seed(0)
    op = PartAware(7, 6, stride).double()
    x = torch.randn(3, 7, height, width, dtype=torch.float64)
    assert torch.allclose(op(x), spelt_out(op, x), atol=1e-12)


@pytest.mark.parametrize("height", range(1, 20))
@pytest.mark.parametrize("parts", [1, 3, 4, 6])
def test_every_row_belongs_to_exactly_one_stripe(height, parts):
    bounds = stripe_bounds(height, parts)
    rows = [row for start, end in zip(bounds, bounds[1:], strict=False) for row in range(start, end)]
    assert rows == list(range(height))
    assert len(bounds) - 1 == min(height, parts)
    if height >= parts:
        assert bounds[:-1] == [m * height // parts for m in range(parts)]


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("shape", [(1, 5, 1, 1), (1, 5, 2, 1), (1, 5, 3, 7), (2, 5, 5, 2), (1, 5, 16, 8)])
def test_any_size_and_batch_one_trains(stride, shape):
    op = PartAware(5, 4, stride, affine=False)
    if shape[0] * -(-shape[2] // stride) * -(-shape[3] // stride) == 1:
        op.eval()  # a batch norm in training needs more than one value a channel
    x = torch.randn(shape, requires_grad=True)
    out = op(x)
    assert out.shape == (shape[0], 4, -(-shape[2] // stride), -(-shape[3] // stride))
    out.pow(2).sum().backward()
    assert x.grad.isfinite().all()


def test_every_part_sees_every_other():
    torch.manual_seed(0)
    op = PartAware(24, 24).double().eval()
    x = torch.rand(1, 24, 8, 3, dtype=torch.float64, requires_grad=True)
    out = op(x)
    (gradient,) = torch.autograd.grad(out[:, :, 7].sum(), x)
    assert (gradient[:, :, :2].abs().sum(dim=(1, 3)) > 0).all()  # the lowest row depends on the highest stripe


def test_gradient_is_right():
    torch.manual_seed(0)
    op = PartAware(4, 4, stride=2).double()
    x = torch.randn(2, 4, 7, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v: op(v), (x,), atol=1e-6)


def test_every_parameter_gets_a_gradient():
    op = PartAware(6, 6)
    op(torch.randn(2, 6, 8, 4)).pow(3).sum().backward()
    # The key's bias shifts all scores of a query alike, so the softmax ignores it; the others all matter.
    for name, parameter in op.named_parameters():
        assert parameter.grad is not None, name
        assert name == "key.bias" or parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("keywords", [{"stride": 3}, {"parts": 0}])
def test_wrong_arguments_are_named(keywords):
    with pytest.raises(UserError, match=str(next(iter(keywords.values())))):
        PartAware(4, 4, **keywords)


def test_size_is_close_to_the_separable_convolution():
    from torchreid_autoreid.space.operations import build_operation

    part_aware, separable = (
        sum(p.numel() for p in build_operation(name, 64).parameters()) for name in ("part_aware", "sep_conv_3x3")
    )
    assert 0.7 < part_aware / separable < 1.4


def share(bodies):
    """The part of the body vectors' energy in which the parts differ."""
    return float((bodies - bodies.mean(1, keepdim=True)).pow(2).sum() / bodies.pow(2).sum())


def shares_after_attention(network, images):
    found = []
    operations = [module for module in network.modules() if isinstance(module, PartAware)]
    for operation in operations:
        attend = operation.attend
        operation.attend = lambda body, attend=attend: found.append(attend(body)) or found[-1]
    with torch.no_grad():
        network.train()(images)
    for operation in operations:
        del operation.attend
    return [share(bodies) for bodies in found]


def test_the_parts_keep_what_tells_them_apart():
    """Uniform attention would give all parts one vector: at the start and after training they differ."""
    torch.manual_seed(0)
    network = AutoReIDNetwork(4, "triplet", channels=16, layers=(1, 1, 1, 1))
    images, identities = torch.randn(8, 3, 64, 32), torch.arange(4).repeat_interleave(2)
    at_start = shares_after_attention(network, images)
    assert at_start
    assert min(at_start) > 0.1, at_start
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)
    for _ in range(30):
        logits, _ = network(images)
        optimizer.zero_grad()
        F.cross_entropy(logits, identities).backward()
        optimizer.step()
    trained = shares_after_attention(network, images)
    assert min(trained) > 0.1, trained


def test_swapping_two_stripes_changes_the_rows_of_both():
    torch.manual_seed(0)
    op = PartAware(6, 6).eval()
    x = torch.randn(2, 6, 8, 3)
    swapped = x[:, :, [4, 5, 2, 3, 0, 1, 6, 7]]
    with torch.no_grad():
        vectors, others = (
            op.attend(op.transform_parts(stripe_means(each, stripe_bounds(8, 4)))) for each in (x, swapped)
        )
    # Each part has a transform of its own, so the two do not merely change places.
    for part in (0, 2):
        assert (vectors[:, part] - others[:, part]).abs().max() > 0.05
        assert (vectors[:, part] - others[:, 2 - part]).abs().max() > 0.05


def test_a_low_map_leaves_the_statistics_of_missing_stripes():
    op = PartAware(6, 6)
    before = op.norm.running_mean.clone()
    op(torch.randn(4, 6, 2, 3))
    hidden = op.query.in_features
    assert torch.equal(op.norm.running_mean[2 * hidden :], before[2 * hidden :])
    assert not torch.equal(op.norm.running_mean[: 2 * hidden], before[: 2 * hidden])


@pytest.mark.parametrize(("channels", "hidden"), [(1, 1), (3, 3), (4, 4), (8, 4), (12, 4), (16, 5), (64, 21)])
def test_few_channels_leave_enough_features_to_attend_by(channels, hidden):
    assert PartAware(channels, 6).query.in_features == hidden


def test_a_quarter_of_sixteen_channels_still_tells_parts_apart():
    """What PC-DARTS leaves of 16 channels at K = 4."""
    torch.manual_seed(0)
    found = []
    for _ in range(8):
        op = PartAware(4, 4, affine=False)
        means = torch.randn(16, 4, 4).abs()
        found.append(share(op.attend(op.transform_parts(means)).detach()))
    assert sorted(found)[len(found) // 2] > 0.1, found


def test_the_attention_stays_soft_while_a_network_learns(monkeypatch):
    """By SGD at the recipe's rate. Scores that grow with the features make it a hard choice, and learning stops."""
    cell = [[("part_aware", 0), ("avg_pool_3x3", 1)], [("part_aware", 1), ("part_aware", 2)]]
    entropies = []

    def ends_with(attention):
        monkeypatch.setattr(part_aware, "attention", attention)
        torch.manual_seed(0)
        network = AutoReIDNetwork(8, "triplet", Genotype("parts", cell, cell), channels=8, layers=(1, 1, 1, 1)).train()
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, nesterov=True)
        people = torch.randn(8, 3, 64, 32)
        for _ in range(40):
            identities = torch.randint(8, (16,))
            logits, _ = network(people[identities] + torch.randn(16, 3, 64, 32))
            optimizer.zero_grad()
            F.cross_entropy(logits, identities).backward()
            optimizer.step()
        operations = sum(isinstance(module, PartAware) for module in network.modules())
        return sum(entropies[-operations:]) / operations

    own = part_aware.attention

    def recorded(scores, features):
        weights = own(scores, features)
        entropies.append(float(torch.special.entr(weights.detach()).sum(2).mean()) / math.log(4))
        return weights

    assert ends_with(recorded) > 0.6
    assert ends_with(lambda scores, features: recorded(scores * features**0.5, features)) < 0.5  # unscaled
