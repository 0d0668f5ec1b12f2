"""Each strategy and each option against the formula of its paper, written out slowly."""

import math

import pytest
import torch
from torch.nn import functional as F

from torchreid_autoreid.errors import UserError
from torchreid_autoreid.genotype import OPERATION_NAMES, cell_edges
from torchreid_autoreid.search.schedule import Schedule
from torchreid_autoreid.space.networks import AutoReIDSearchNetwork
from torchreid_autoreid.space.strategies import (
    STRATEGIES,
    Darts,
    DrNas,
    EpochValues,
    Gdas,
    PcDarts,
    beta_penalty,
    softmax_by_block,
)

NONE, SKIP = OPERATION_NAMES.index("none"), OPERATION_NAMES.index("skip_connect")
EDGES = 5  # of two blocks


def alphas(edges=EDGES, scale=1.0):
    return (scale * torch.randn(edges, 7, dtype=torch.float64)).requires_grad_()


def network(strategy="darts", **keywords):
    options = {"channels": 4, "layers": (1, 1, 1, 1), "blocks": 2, "strategy": strategy} | keywords
    built = AutoReIDSearchNetwork(4, **options).double()
    for alpha in built.alphas():
        alpha.data.normal_()
    return built


def images():
    return torch.randn(3, 3, 32, 32, dtype=torch.float64)


# -- darts and what all strategies share ------------------------------------------------------------------------------


def test_darts_weighs_by_a_softmax():
    a = alphas()
    mixture = Darts(OPERATION_NAMES).mixture(a, None, training=True)
    for edge in range(EDGES):
        total = sum(math.exp(v) for v in a[edge].tolist())
        expected = [math.exp(v) / total for v in a[edge].tolist()]
        assert mixture.weights[edge].tolist() == pytest.approx(expected)
    assert mixture.edges is None
    assert mixture.chosen is None


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_all_cells_of_a_kind_share_one_draw_and_every_pass_has_its_own(strategy):
    net = network(strategy)
    seen = []
    for cell in net.cells:
        cell.register_forward_pre_hook(lambda module, args: seen.append((module.kind, args[2])))
    net(images())
    reduces = [mixture for kind, mixture in seen if kind == "reduce"]
    assert len(reduces) == 3
    assert all(mixture is reduces[0] for mixture in reduces)
    first = list(seen)
    net(images())
    draws = strategy in ("gdas", "drnas")
    assert torch.equal(first[0][1].weights, seen[4][1].weights) != draws


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy_trains_its_alphas_and_derives_a_genotype(strategy):
    net = network(strategy)
    logits, features = net(images())
    (logits.pow(2).sum() + features.pow(3).sum()).backward()
    for alpha in net.alphas():
        assert alpha.grad.isfinite().all()
        assert alpha.grad.abs().sum() > 0
    for rows in net.probabilities().values():
        assert torch.allclose(rows.sum(dim=1), torch.ones(EDGES, dtype=torch.float64))
    assert net.genotype().blocks == 2
    assert len(net.alphas()) == (4 if strategy == "pc_darts" else 2)
    net.eval()
    x = images()
    assert torch.equal(net(x), net(x))  # nothing is drawn where the held-out half is measured


@pytest.mark.parametrize("strategy", ["darts", "pc_darts", "drnas"])
def test_the_auxiliary_skip_adds_beta_to_the_skip_connection(strategy):
    """DARTS−: beta x + sum_o p_o o(x), inside the weight of the edge where edges are weighed."""
    a, edges = alphas(), torch.randn(EDGES, dtype=torch.float64)
    made = STRATEGIES[strategy](OPERATION_NAMES)
    torch.manual_seed(3)
    plain = made.mixture(a, edges, training=True)
    made.auxiliary_skip = 0.75
    torch.manual_seed(3)
    helped = made.mixture(a, edges, training=True)
    factor = torch.ones(EDGES) if plain.edges is None else plain.edges
    expected = plain.weights.clone()
    expected[:, SKIP] += 0.75 * factor
    assert torch.allclose(helped.weights, expected)
    assert torch.equal(made.probabilities(a), STRATEGIES[strategy](OPERATION_NAMES).probabilities(a))


def test_an_edge_with_an_auxiliary_skip_is_the_plain_edge_and_beta_x():
    net = network()
    cell, x = net.cells[0], torch.randn(2, 4, 8, 8, dtype=torch.float64)
    plain = cell.edges[0](x, net.drawn_mixtures(training=True)["normal"].weights[0])
    net.set_epoch_values(EpochValues(auxiliary_skip=0.6))
    helped = cell.edges[0](x, net.drawn_mixtures(training=True)["normal"].weights[0])
    assert torch.allclose(helped, plain + 0.6 * x)


# -- gdas -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tau", [0.1, 1.0, 10.0])
def test_gdas_forwards_a_choice_and_backwards_the_relaxation(tau):
    """GDAS, section 3.2: g = -log(-log u), h = softmax((log p + g) / tau), one-hot forwards, h backwards."""
    a, strategy = alphas(), Gdas(OPERATION_NAMES)
    strategy.tau = tau
    torch.manual_seed(5)
    mixture = strategy.mixture(a, None, training=True)
    torch.manual_seed(5)
    gumbel = -torch.log(torch.empty(EDGES, 7, dtype=torch.float64).exponential_())
    soft = torch.exp((torch.log(a.softmax(-1)) + gumbel) / tau)
    soft = soft / soft.sum(dim=1, keepdim=True)
    assert mixture.chosen == tuple(soft.argmax(dim=1).tolist())
    assert torch.allclose(mixture.weights, F.one_hot(soft.argmax(dim=1), 7).double())
    coefficients = torch.randn(EDGES, 7, dtype=torch.float64)
    (ours,) = torch.autograd.grad((coefficients * mixture.weights).sum(), a)
    (expected,) = torch.autograd.grad((coefficients * soft).sum(), a)
    assert torch.allclose(ours, expected)


def test_gdas_draws_each_operation_as_often_as_its_softmax_says():
    a = alphas(1).detach().expand(20_000, 7)
    chosen = torch.tensor(Gdas(OPERATION_NAMES).mixture(a, None, training=True).chosen)
    shares = torch.bincount(chosen, minlength=7) / len(chosen)
    assert torch.allclose(shares.double(), a[0].softmax(-1), atol=0.015)


def test_gdas_executes_the_chosen_operations_only_and_equals_the_sum_over_all():
    net = network("gdas")
    ran = []
    for cell in net.cells:
        for edge in cell.edges:
            for index, operation in enumerate(edge.operations.values()):
                operation.register_forward_hook(lambda *_, index=index, cell=cell: ran.append((cell.kind, index)))
    x = images()
    torch.manual_seed(1)
    out = net(x)[1]
    assert len(ran) == 4 * EDGES
    torch.manual_seed(1)
    mixtures = net.drawn_mixtures(training=True)
    for kind, times in (("normal", 1), ("reduce", 3)):
        assert sorted(i for of, i in ran if of == kind) == sorted(times * mixtures[kind].chosen)
    net.mixtures = {kind: type(m)(m.weights) for kind, m in mixtures.items()}  # all operations, with one-hot weights
    for module in net.modules():  # statistics of batch norms have moved, outputs in training do not depend on them
        assert module.training
    assert torch.allclose(net(x)[1], out)


def test_gdas_measures_with_the_operations_that_a_derivation_keeps():
    a, strategy = alphas(), Gdas(OPERATION_NAMES)
    with torch.no_grad():
        a[0, NONE] = 9.0
    mixture = strategy.mixture(a, None, training=False)
    for edge, row in enumerate(a.tolist()):
        best = max((value, index) for index, value in enumerate(row) if index != NONE)[1]
        assert mixture.chosen[edge] == best
        assert mixture.weights[edge].tolist() == [float(index == best) for index in range(7)]


def test_gdas_with_none_everywhere_still_gives_numbers():
    net = network("gdas")
    for alpha in net.alphas():
        alpha.data.fill_(-1e4)[:, NONE] = 0.0
    logits, features = net(images())
    (logits.sum() + features.sum()).backward()
    assert torch.equal(features, torch.zeros_like(features))
    assert all(alpha.grad.isfinite().all() for alpha in net.alphas())


# -- pc_darts ---------------------------------------------------------------------------------------------------------


def test_pc_darts_normalises_the_edges_of_a_block():
    """PC-DARTS, equation 3: the softmax runs over the inputs of a block."""
    a, edges = alphas(14), torch.randn(14, dtype=torch.float64)
    mixture = PcDarts(OPERATION_NAMES).mixture(a, edges, training=True)
    blocks = {}
    for edge, block, _ in cell_edges(4):
        blocks.setdefault(block, []).append(edge)
    for own in blocks.values():
        total = sum(math.exp(edges[edge]) for edge in own)
        for edge in own:
            weight = math.exp(edges[edge]) / total
            assert float(mixture.edges[edge]) == pytest.approx(weight)
            assert torch.allclose(mixture.weights[edge], weight * a[edge].softmax(-1))
    assert torch.equal(softmax_by_block(edges), mixture.edges)


def test_pc_darts_derives_by_the_product_of_both_softmaxes():
    net = network("pc_darts", blocks=4, space="reid")
    genotype, operations = net.genotype(), net.operations
    for kind in ("normal", "reduce"):
        alpha, edges = net.architecture.of(kind)
        product = (softmax_by_block(edges)[:, None] * alpha.softmax(-1)).detach()
        for block in range(4):
            own = [(edge, source) for edge, of, source in cell_edges(4) if of == block]
            entries = []
            for edge, source in own:
                value, name = max((float(product[edge, i]), n) for i, n in enumerate(operations) if n != "none")
                entries.append((value, name, source))
            expected = {(name, source) for _, name, source in sorted(entries, reverse=True)[:2]}
            assert set(getattr(genotype, kind)[block]) == expected
    # Without the factors, the alphas alone rank otherwise somewhere.
    with torch.no_grad():
        net.architecture.normal_edges.zero_()
        net.architecture.reduce_edges.zero_()
    assert net.genotype() != genotype


def test_pc_darts_searches_a_quarter_of_the_channels():
    net = network("pc_darts", channels=8, partial_channels=4)
    for cell, width in zip(net.cells, (8, 16, 32, 64), strict=True):
        for edge in cell.edges:
            assert edge.operations["dil_conv_3x3"][1].in_channels == width // 4
    assert torch.isfinite(net(images())[1]).all()


@pytest.mark.parametrize("partial", [0, 3])
def test_partial_channels_must_divide(partial):
    with pytest.raises(UserError, match=f"partial_channels must divide the 8 channels, which {partial}"):
        AutoReIDSearchNetwork(4, channels=8, strategy="pc_darts", partial_channels=partial)


# -- drnas ------------------------------------------------------------------------------------------------------------


def test_drnas_takes_the_mean_where_it_does_not_draw():
    a, strategy = alphas(scale=3.0), DrNas(OPERATION_NAMES)
    concentration = [[v + 1 if v > 0 else math.exp(v) for v in row] for row in a.tolist()]
    for edge, row in enumerate(concentration):
        expected = [value / sum(row) for value in row]
        assert strategy.probabilities(a)[edge].tolist() == pytest.approx(expected, rel=1e-3)
        assert strategy.mixture(a, None, training=False).weights[edge].tolist() == pytest.approx(expected, rel=1e-3)


def test_drnas_draws_from_the_dirichlet_distribution_with_pathwise_gradients():
    """Mean and variance of the draws, and the gradient of the mean, against their closed forms."""
    a, strategy = alphas(1), DrNas(OPERATION_NAMES)
    many = a.expand(40_000, 7)
    drawn = strategy.mixture(many, None, training=True).weights
    assert torch.allclose(drawn.sum(dim=1), torch.ones(40_000, dtype=torch.float64))
    b = torch.where(a > 0, a + 1, a.exp())[0]
    mean = b / b.sum()
    assert torch.allclose(drawn.mean(dim=0), mean, atol=5e-3)
    assert torch.allclose(drawn.var(dim=0), mean * (1 - mean) / (b.sum() + 1), atol=5e-3)
    coefficients = torch.randn(7, dtype=torch.float64)
    (ours,) = torch.autograd.grad((drawn.mean(dim=0) * coefficients).sum(), a)
    (expected,) = torch.autograd.grad((mean * coefficients).sum(), a)
    assert torch.allclose(ours, expected, atol=1e-2)


def test_the_regulariser_of_drnas_is_the_divergence_from_concentration_one():
    a = alphas()
    expected = 0.0
    for row in torch.where(a > 0, a + 1, a.exp()):
        total = row.sum()
        expected += torch.lgamma(total) - torch.lgamma(row).sum() - torch.lgamma(torch.tensor(7.0).double())
        expected += ((row - 1) * (torch.digamma(row) - torch.digamma(total))).sum()
    assert torch.allclose(DrNas(OPERATION_NAMES).penalty(a), expected)
    assert float(DrNas(OPERATION_NAMES).penalty(torch.zeros(3, 7))) == pytest.approx(0.0, abs=1e-5)


def test_drnas_survives_alphas_of_any_size():
    a = torch.tensor([[-200.0, -30.0, -5.0, 0.0, 5.0, 50.0, 1000.0]], requires_grad=True)
    strategy = DrNas(OPERATION_NAMES)
    total = strategy.mixture(a, None, training=True).weights.pow(2).sum() + strategy.penalty(a)
    total.backward()
    assert total.isfinite()
    assert a.grad.isfinite().all()


# -- penalties and schedules ------------------------------------------------------------------------------------------


def test_the_beta_penalty_is_the_mean_logsumexp_and_its_gradient_the_softmax():
    a = alphas()
    expected = sum(math.log(sum(math.exp(v) for v in row)) for row in a.tolist()) / EDGES
    assert beta_penalty(a).item() == pytest.approx(expected)
    (gradient,) = torch.autograd.grad(beta_penalty(a), a)
    assert torch.allclose(gradient, a.softmax(-1) / EDGES)


def test_the_penalty_of_a_network_is_over_both_cells():
    net = network("drnas")
    normal, reduce = net.alphas()
    strategy = DrNas(OPERATION_NAMES)
    assert net.penalty() is None
    expected = 0.5 * (strategy.penalty(normal) + strategy.penalty(reduce))
    assert torch.allclose(net.penalty(own_weight=0.5), expected)
    expected = 3.0 * (beta_penalty(normal) + beta_penalty(reduce))
    assert torch.allclose(network_like(net, "darts").penalty(3.0, own_weight=0.5), expected)


def network_like(net, strategy):
    twin = network(strategy)
    twin.load_state_dict(net.state_dict())
    return twin


def test_schedules_are_linear_in_the_epoch():
    schedule = Schedule(tau_start=8.0, tau_end=2.0, auxiliary_skip=1.0, beta_weight=50.0, skip_dropout=0.4)
    assert schedule.at(0, 5) == EpochValues(8.0, 1.0, 0.0, 0.4)
    assert schedule.at(2, 5) == EpochValues(5.0, 0.5, 25.0, 0.2)
    assert schedule.at(4, 5) == EpochValues(2.0, 0.0, 50.0, 0.0)
    assert schedule.at(0, 1) == schedule.at(0, 5)


def test_strengths_reach_the_strategy_and_every_cell():
    net = network("gdas")
    net.set_epoch_values(EpochValues(0.3, 0.0, 0.0, 0.2))
    assert net.strategy.tau == 0.3
    assert [cell.skip_dropout for cell in net.cells] == [0.2] * 4


@pytest.mark.parametrize(
    "keywords",
    [
        {"tau_start": 0.0},
        {"tau_end": -1.0},
        {"tau_end": math.nan},
        {"skip_dropout": 1.0},
        {"skip_dropout": -0.1},
        {"auxiliary_skip": -1.0},
        {"beta_weight": -1.0},
        {"dirichlet_weight": math.nan},
    ],
)
def test_values_out_of_range_are_named(keywords):
    with pytest.raises(UserError, match=next(iter(keywords))):
        Schedule(**keywords)
