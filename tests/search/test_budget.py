"""Limits on the cost: what the smallest network is, the weights that follow, and the strongest genotype within."""

import itertools

import pytest
import torch
from genotypes import FEW, TINY, derived_from, every_cell, random_probabilities

from torchreid_autoreid.errors import UserError
from torchreid_autoreid.genotype import OPERATION_NAMES, Genotype, cell_edges, derive
from torchreid_autoreid.search.budget import Budget
from torchreid_autoreid.search.cost import CostTable, count_macs, count_parameters, kept_probabilities
from torchreid_autoreid.space.networks import AutoReIDSearchNetwork
from torchreid_autoreid.space.strategies import STRATEGIES


@pytest.fixture(scope="module")
def tables():
    return {"params": CostTable.parameters(TINY, FEW), "macs": CostTable.macs(TINY, FEW)}


@pytest.fixture(scope="module")
def table_of_all():
    """Of all operations, not a few."""
    return CostTable.macs(TINY)


@pytest.fixture(scope="module")
def every_genotype():
    return [Genotype("one", *cells) for cells in itertools.product(every_cell(2, FEW), repeat=2)]


def between(table, share):
    return table.smallest() + share * (table.largest() - table.smallest())


def total_strength(genotype, strengths):
    edge_of = {(block, source): edge for edge, block, source in cell_edges(genotype.blocks)}
    return sum(
        float(strengths[kind][edge_of[block, source], FEW.index(name)])
        for kind in ("normal", "reduce")
        for block, edges in enumerate(getattr(genotype, kind))
        for name, source in edges
    )


@pytest.mark.parametrize("measures", [("params",), ("macs",), ("params", "macs")])
def test_fit_finds_the_strongest_genotype_within_the_limits(tables, every_genotype, measures):
    binding = 0
    for share in (0.0, 0.1, 0.3, 0.5, 0.8):
        strengths = random_probabilities(2, FEW)
        budget = Budget({name: between(tables[name], share) for name in measures}, tables)
        derived = derived_from(strengths, FEW)
        found = budget.fit(derived, strengths)
        within = [genotype for genotype in every_genotype if budget.accepts(genotype)]
        best = max(total_strength(genotype, strengths) for genotype in within)
        assert budget.accepts(found)
        assert total_strength(found, strengths) == pytest.approx(best, abs=1e-9)
        assert found == budget.fit(derived, strengths)
        binding += found != derived
    assert binding >= 3


def test_without_a_binding_limit_the_derivation_is_the_strongest_genotype(tables, every_genotype):
    strengths = random_probabilities(2, FEW)
    budget = Budget({"macs": tables["macs"].largest()}, tables)
    derived = derived_from(strengths, FEW)
    assert budget.fit(derived, strengths) is derived
    assert total_strength(derived, strengths) == pytest.approx(
        max(total_strength(genotype, strengths) for genotype in every_genotype)
    )
    # The programme by itself, with an order within each block that is the derivation's.
    assert budget._strongest(strengths, "searched") == derived


@pytest.mark.parametrize("cap", [0, 1, 2])
def test_fit_keeps_the_skip_cap(tables, every_genotype, cap):
    strengths = random_probabilities(2, FEW)
    budget = Budget({"macs": between(tables["macs"], 0.6)}, tables, skip_cap=cap)
    rows = {kind: rows.tolist() for kind, rows in strengths.items()}
    derived = derive(**rows, operations=FEW, skip_cap=cap)
    budget.limits["macs"] = tables["macs"].cost(derived) - 1  # it must give way
    found = budget.fit(derived, strengths)
    assert found.count("skip_connect")["normal"] <= cap
    allowed = [g for g in every_genotype if budget.accepts(g) and g.count("skip_connect")["normal"] <= cap]
    best = max(total_strength(genotype, strengths) for genotype in allowed)
    assert total_strength(found, strengths) == pytest.approx(best, abs=1e-9)


def test_limits_hold_for_the_network_itself(tables):
    strengths = random_probabilities(2, FEW)
    budget = Budget({name: between(table, 0.4) for name, table in tables.items()}, tables)
    network = TINY.build(budget.fit(derived_from(strengths, FEW), strengths))
    assert count_parameters(network) <= budget.limits["params"]
    assert count_macs(network, (3, TINY.height, TINY.width)) <= budget.limits["macs"]


@pytest.mark.parametrize("measure", ["params", "macs"])
def test_the_smallest_network_is_the_smallest_budget(tables, measure):
    smallest = tables[measure].smallest()
    budget = Budget({measure: smallest}, tables)
    strengths = random_probabilities(2, FEW)
    assert budget.costs(budget.fit(derived_from(strengths, FEW), strengths))[measure] == smallest
    with pytest.raises(UserError, match=rf"search.budget.{measure} {smallest - 1:.0f} is below .* has {smallest:.0f} "):
        Budget({measure: smallest - 1}, tables)
    assert not budget.free()
    assert Budget({measure: tables[measure].largest()}, tables).free() == [measure]


def test_limits_that_exclude_one_another_are_refused():
    costs = torch.tensor([[1.0, 0.0, 2.0]] * 5)
    edges = {"params": costs, "macs": costs.flip(1).roll(1, dims=1)}
    tables = {name: CostTable(FEW, 10.0, {"normal": rows, "reduce": rows}) for name, rows in edges.items()}
    for name, table in tables.items():
        Budget({name: table.smallest()}, tables)
    with pytest.raises(UserError, match=r"search.budget.params 18 and search.budget.macs \d+ together"):
        Budget({name: table.smallest() for name, table in tables.items()}, tables)


def test_a_skip_cap_may_exclude_a_limit(tables):
    Budget({"macs": tables["macs"].smallest()}, tables)
    with pytest.raises(UserError, match=r"search.budget.macs \d+ and search.skip_cap 0 together"):
        Budget({"macs": tables["macs"].smallest()}, tables, skip_cap=0)


@pytest.mark.parametrize("strategy", sorted(STRATEGIES))
@pytest.mark.parametrize("renormalised", [False, True])
def test_strengths_are_what_each_strategy_derives_by(strategy, renormalised, table_of_all):
    network = AutoReIDSearchNetwork(3, channels=4, layers=(1, 1, 1, 1), blocks=2, strategy=strategy)
    table = table_of_all
    with torch.no_grad():
        for alpha in network.alphas():
            alpha.normal_()
    derived, strengths = network.genotype(renormalised), network.strengths(renormalised)
    loose = Budget({"macs": table.largest()}, {"macs": table})
    detached = {kind: rows.detach().double() for kind, rows in strengths.items()}
    assert loose._strongest(detached, "searched") == derived
    tight = Budget({"macs": table.smallest()}, {"macs": table})
    assert tight.accepts(tight.fit(derived, strengths))
    tight.penalty(strengths).backward()
    assert all(alpha.grad.abs().sum() > 0 for alpha in network.alphas())


# -- while the alphas are trained -------------------------------------------------------------------------------------


def test_the_penalty_is_the_weighted_sum_of_expected_shares(tables):
    limits = {"params": between(tables["params"], 0.5), "macs": between(tables["macs"], 0.3)}
    budget = Budget(limits, tables)
    budget.weights = {"params": 0.7, "macs": 3.0}
    strengths = {kind: p.requires_grad_() for kind, p in random_probabilities(2, FEW).items()}
    kept = {kind: kept_probabilities(s, FEW) for kind, s in strengths.items()}
    expected = sum(budget.weights[name] * tables[name].expected(kept) / limit for name, limit in limits.items())
    penalty = budget.penalty(strengths)
    assert penalty.item() == pytest.approx(expected.item())
    leaves = list(strengths.values())
    for one, other in zip(torch.autograd.grad(penalty, leaves), torch.autograd.grad(expected, leaves), strict=True):
        assert torch.allclose(one, other)
        assert one.abs().sum() > 0


def test_a_limit_that_does_not_bind_leaves_the_loss_alone(tables):
    limits = {"params": tables["params"].largest(), "macs": between(tables["macs"], 0.3)}
    strengths = random_probabilities(2, FEW)
    both, one = Budget(limits, tables), Budget({"macs": limits["macs"]}, tables)
    assert both.penalty(strengths).item() == one.penalty(strengths).item()


def test_weights_follow_the_derived_network(tables, every_genotype):
    budget = Budget({"params": between(tables["params"], 0.5), "macs": between(tables["macs"], 0.5)}, tables)
    dear = max(every_genotype, key=tables["params"].cost)
    cheap = min(every_genotype, key=tables["params"].cost)
    start = dict(budget.weights)
    budget.adapt(dear)
    assert all(budget.weights[name] > start[name] for name in start)
    state = budget.state_dict()
    budget.adapt(cheap)
    assert all(budget.weights[name] < state["weights"][name] for name in start)
    budget.load_state_dict(state)
    assert budget.state_dict() == state
    for genotype, bound in ((dear, max), (cheap, min)):
        for _ in range(500):
            budget.adapt(genotype)
        assert set(budget.weights.values()) == {bound(1e-2, 1e3)}
    with pytest.raises(ValueError, match="its limits are"):
        Budget({"macs": between(tables["macs"], 0.5)}, tables).load_state_dict(state)


@pytest.mark.parametrize("share", [0.2, 0.4, 0.6])
def test_alphas_that_prefer_what_is_dear_end_at_the_budget(share):
    """A stand-in for the retrieval loss: linear in the probabilities, with noise, and fond of dear operations."""
    shape = TINY.__class__(channels=8, layers=(2, 2, 2, 2), height=64, width=32)
    table = CostTable.macs(shape)
    budget = Budget({"macs": between(table, share)}, {"macs": table})
    alphas = {kind: (1e-3 * torch.randn(14, 7)).requires_grad_() for kind in ("normal", "reduce")}
    fond = {kind: torch.randn(14, 7) + (table.edges[kind] / table.edges[kind].max()).float() for kind in alphas}
    optimizer = torch.optim.Adam(alphas.values(), lr=0.05, betas=(0.5, 0.999))
    costs = []
    for _ in range(150):
        probabilities = {kind: alpha.softmax(dim=1) for kind, alpha in alphas.items()}
        noisy = {kind: rows + 2 * torch.randn(rows.shape) for kind, rows in fond.items()}
        loss = -0.1 * sum((probabilities[kind] * noisy[kind]).sum() for kind in alphas)
        optimizer.zero_grad()
        (loss + budget.penalty(probabilities)).backward()
        optimizer.step()
        strengths = {kind: alpha.detach().softmax(dim=1) for kind, alpha in alphas.items()}
        derived = derive(*(rows.tolist() for rows in strengths.values()), OPERATION_NAMES)
        budget.adapt(derived)
        costs.append(table.cost(derived))
    limit = budget.limits["macs"]
    assert sum(costs[-30:]) / 30 == pytest.approx(limit, rel=0.15)  # by the loss alone
    expected = budget.expected(strengths)["macs"].item()
    assert expected == pytest.approx(costs[-1], rel=0.1)
    kept = shape.build(budget.fit(derived, strengths))
    assert 0.9 * limit <= count_macs(kept, (3, 64, 32)) <= limit
