"""Selection by perturbation against losses whose answer is known, and random genotypes against the uniform law."""

import itertools
import math
from collections import Counter

import pytest
import torch

from torchreid_autoreid.errors import UserError
from torchreid_autoreid.genotype import OPERATION_NAMES, cell_edges, num_edges
from torchreid_autoreid.search.selection import (
    draw_from_alphas,
    draw_genotype,
    log_probability,
    propose,
    select_by_perturbation,
)
from torchreid_autoreid.space.strategies import Mixture

BLOCKS, EDGES = 3, 9


def mixtures(edges=False):
    made = {}
    for kind in ("normal", "reduce"):
        factors = torch.rand(EDGES) if edges else None
        weights = torch.rand(EDGES, 7).softmax(-1)
        made[kind] = Mixture(weights if factors is None else factors[:, None] * weights, factors)
    return made


@pytest.mark.parametrize("edges", [False, True])
def test_what_is_missed_most_stays(edges):
    """The loss falls by ``worth * weight`` for each operation, so removing the worthiest costs most, in any order."""
    start = mixtures(edges)
    worth = {kind: 0.1 + torch.rand(EDGES, 7) for kind in start}
    evaluate = lambda m: -sum(float((worth[kind] * m[kind].weights).sum()) for kind in m)  # noqa: E731
    genotype = select_by_perturbation(start, OPERATION_NAMES, BLOCKS, evaluate, lambda _: None, seed=1)
    for kind in start:
        gain = worth[kind] * start[kind].weights
        gain[:, OPERATION_NAMES.index("none")] = -1.0
        best = gain.argmax(dim=1)
        scale = torch.ones(EDGES) if start[kind].edges is None else start[kind].edges
        alone = worth[kind].gather(1, best[:, None])[:, 0] * scale
        for block in range(BLOCKS):
            own = [(edge, source) for edge, of, source in cell_edges(BLOCKS) if of == block]
            top = sorted(own, key=lambda pair: -float(alone[pair[0]]))[:2]
            expected = tuple((OPERATION_NAMES[best[edge]], source) for edge, source in sorted(top))
            assert getattr(genotype, kind)[block] == expected


def test_each_choice_is_fixed_before_the_weights_are_tuned():
    """DARTS-PT, algorithm 1: after every choice the network is tuned with all choices so far, and with those only."""
    start, tuned, asked = mixtures(edges=True), [], []
    kept = {kind: m.weights.clone() for kind, m in start.items()}

    def evaluate(given):
        asked.append(given)
        return float(len(asked) % 5)

    select_by_perturbation(start, OPERATION_NAMES, BLOCKS, evaluate, tuned.append, seed=2)
    assert len(asked) == 2 * EDGES * 6 + 2 * EDGES  # each operation but none of each edge, then each edge
    assert len(tuned) == 2 * EDGES + 2 * BLOCKS
    for number, present in enumerate(tuned[: 2 * EDGES], start=1):
        alone = sum(int((row > 0).sum() == 1) for m in present.values() for row in m.weights)
        assert alone == number
    last = tuned[-1]
    for m, first in zip(last.values(), start.values(), strict=True):
        alive = (m.weights > 0).sum(dim=1)
        assert alive.sum() == 2 * BLOCKS
        assert torch.equal(m.edges > 0, alive > 0)
        assert torch.allclose(m.weights.sum(dim=1)[alive > 0], first.edges[alive > 0])
    assert all(torch.equal(m.weights, kept[kind]) for kind, m in start.items())


def test_an_operation_is_measured_alone_out_of_the_present_network():
    start, seen = mixtures(), []
    select_by_perturbation(start, OPERATION_NAMES, BLOCKS, lambda m: seen.append(m) or 0.0, lambda _: None, seed=3)
    changed = {
        (kind, edge, index)
        for m in seen[:6]
        for kind in m
        for edge, index in (m[kind].weights != start[kind].weights).nonzero().tolist()
    }
    assert len({(kind, edge) for kind, edge, _ in changed}) == 1
    assert {OPERATION_NAMES[index] for _, _, index in changed} == set(OPERATION_NAMES) - {"none"}


def test_the_order_depends_on_the_seed_alone():
    start = mixtures()
    orders = []
    for seed in (1, 1, 2):
        seen = []
        select_by_perturbation(start, OPERATION_NAMES, BLOCKS, lambda _: 0.0, lambda m, s=seen: s.append(m), seed=seed)
        orders.append([[row.tolist() for row in m["normal"].weights] for m in seen])
    assert orders[0] == orders[1] != orders[2]


def test_random_genotypes_are_uniform_over_the_space():
    names = ["sep_conv_3x3", "none", "skip_connect"]
    drawn = Counter(draw_genotype(names, 2, str(seed)).normal[1] for seed in range(3000))
    pairs = list(itertools.combinations(range(3), 2))
    operations = [name for name in names if name != "none"]
    space = {((a, i), (b, j)) for i, j in pairs for a in operations for b in operations}
    assert set(drawn) == space
    assert all(count == pytest.approx(3000 / 12, rel=0.3) for count in drawn.values())


def test_a_seed_gives_one_genotype_and_a_budget_is_kept():
    accepts = lambda genotype: genotype.count("skip_connect")["normal"] == 0  # noqa: E731
    first = [draw_genotype(OPERATION_NAMES, 4, str(seed), accepts) for seed in range(20)]
    assert first == [draw_genotype(OPERATION_NAMES, 4, str(seed), accepts) for seed in range(20)]
    assert all(accepts(genotype) for genotype in first)
    assert len(set(first)) == 20
    with pytest.raises(UserError, match="none of 10000 random genotypes is within the limits"):
        draw_genotype(OPERATION_NAMES, 4, "1", lambda _: False)


def rows_of(blocks, favourite, share):
    """Alphas that give an operation this share of each edge, and the others the rest."""
    other = (1.0 - share) / (len(OPERATION_NAMES) - 1)
    row = [share if name == favourite else other for name in OPERATION_NAMES]
    return {kind: [row] * num_edges(blocks) for kind in ("normal", "reduce")}


def test_draws_follow_the_alphas():
    drawn = [draw_from_alphas(rows_of(4, "part_aware", 0.6), OPERATION_NAMES, 4, f"{i}") for i in range(200)]
    share = sum(sum(genotype.count("part_aware").values()) for genotype in drawn) / (16 * len(drawn))
    expected = 0.6 / (1 - 0.4 / 6)  # `none` is not drawn
    assert share == pytest.approx(expected, abs=0.03)
    assert sum(sum(genotype.count("none").values()) for genotype in drawn) == 0
    assert drawn[0] == draw_from_alphas(rows_of(4, "part_aware", 0.6), OPERATION_NAMES, 4, "0")
    assert len({(genotype.normal, genotype.reduce) for genotype in drawn}) > 190


def test_what_alphas_think_of_a_genotype_is_how_often_they_draw_it():
    rows = {kind: [[0.5, 0.5, 0.0], [0.9, 0.1, 0.0]] for kind in ("normal", "reduce")}
    names = ["sep_conv_3x3", "skip_connect", "none"]
    drawn = [draw_from_alphas(rows, names, 1, f"{i}") for i in range(4000)]
    counts = Counter((genotype.normal, genotype.reduce) for genotype in drawn)
    assert len(counts) == 16
    for genotype in {(one.normal, one.reduce): one for one in drawn}.values():
        expected = math.exp(log_probability(genotype, rows, names))
        assert counts[genotype.normal, genotype.reduce] / 4000 == pytest.approx(expected, abs=0.02)


def test_draws_keep_certain_alphas_and_edges_that_hold_something():
    rows = rows_of(2, "sep_conv_3x3", 1.0)
    nothing = [float(name == "none") for name in OPERATION_NAMES]
    rows["normal"] = [*rows["normal"][:2], nothing, *rows["normal"][3:]]  # input 0 of the second block
    for seed in range(30):
        genotype = draw_from_alphas(rows, OPERATION_NAMES, 2, f"{seed}")
        assert genotype.normal == (
            (("sep_conv_3x3", 0), ("sep_conv_3x3", 1)),
            (("sep_conv_3x3", 1), ("sep_conv_3x3", 2)),
        )
    factors = {"reduce": [1.0, 1.0, 0.0, 1.0, 1.0]}
    drawn = draw_from_alphas(rows, OPERATION_NAMES, 2, "1", edge_weights=factors)
    assert [source for _, source in drawn.reduce[1]] == [1, 2]


def test_draws_from_alphas_keep_a_budget():
    def accepts(genotype):
        return genotype.count("max_pool_3x3")["normal"] == 0

    rows = rows_of(2, "max_pool_3x3", 0.5)
    assert all(accepts(draw_from_alphas(rows, OPERATION_NAMES, 2, f"{i}", accepts)) for i in range(20))
    with pytest.raises(UserError, match="within the limits"):
        draw_from_alphas(rows, OPERATION_NAMES, 2, "0", lambda _: False)


@pytest.mark.parametrize("cap", [0, 1, 2])
@pytest.mark.parametrize("share", [0.5, 0.99, 1.0])
def test_draws_keep_a_cap_of_skip_connections_even_of_alphas_that_have_collapsed(cap, share):
    rows = rows_of(4, "skip_connect", share)
    drawn = [draw_from_alphas(rows, OPERATION_NAMES, 4, f"{i}", skip_cap=cap) for i in range(20)]
    assert max(genotype.count("skip_connect")["normal"] for genotype in drawn) == cap
    assert (
        min(genotype.count("skip_connect")["reduce"] for genotype in drawn) > 8 * share - 6
    )  # P-DARTS: the normal cell
    if share < 1:
        assert len({genotype.normal for genotype in drawn}) > 10


def test_proposals_are_the_derived_one_first_then_draws_then_a_third_blind_ones():
    def of(prefix):
        return lambda index: draw_genotype(OPERATION_NAMES, 2, f"{prefix} {index // 2}", name=f"{prefix}-{index}")

    derived = draw_genotype(OPERATION_NAMES, 2, "derived")
    found, blind = propose(derived, of("drawn"), of("blind"), 9)
    assert found[0] == derived
    assert [genotype.name.split("-")[0] for genotype in found[1:]] == ["drawn"] * 5 + ["blind"] * 3
    assert blind == [6, 7, 8]
    assert len({(genotype.normal, genotype.reduce) for genotype in found}) == 9  # every second draw was a repetition
    assert propose(derived, of("drawn"), of("blind"), 1) == ([derived], [])
