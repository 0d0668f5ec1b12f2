"""What a derived network costs: exactly as counted on the network itself, and in expectation as by brute force."""

import itertools
import json
import random

import pytest
import torch
from genotypes import FEW, TINY, derived_from, every_cell, random_genotype, random_probabilities
from torch.utils.flop_counter import FlopCounterMode

from torchreid_autoreid.errors import UserError
from torchreid_autoreid.genotype import OPERATION_NAMES, Genotype, cell_edges, operation_names
from torchreid_autoreid.search.cost import (
    CostTable,
    LatencyTable,
    NetworkShape,
    count_macs,
    count_parameters,
    kept_probabilities,
    measure_latency,
)
from torchreid_autoreid.space.networks import AutoReIDNetwork

SHAPES = [
    NetworkShape(height=384, width=128),
    NetworkShape(channels=7, layers=(1, 3, 2, 1), parts=3, height=97, width=45),
    NetworkShape(channels=16, layers=(1, 1, 1, 2), height=64, width=32, last_stride=1),
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_cost_of_a_genotype_is_that_of_its_network(shape):
    parameters, macs = CostTable.parameters(shape), CostTable.macs(shape)
    rng = random.Random(0)
    for genotype in [*Genotype.presets().values(), *(random_genotype(rng, 4) for _ in range(2))]:
        with torch.device("meta"):
            network = AutoReIDNetwork(
                11,
                genotype=genotype,
                channels=shape.channels,
                layers=shape.layers,
                parts=shape.parts,
                last_stride=shape.last_stride,
            )
        every = sum(p.numel() for p in network.parameters())
        assert parameters.cost(genotype) == every - sum(p.numel() for p in network.classifier.parameters())
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            network.eval()(torch.zeros(1, 3, shape.height, shape.width, device="meta"))
        assert macs.cost(genotype) == counter.get_total_flops() / 2


@pytest.mark.parametrize("blocks", [1, 2, 5])
@pytest.mark.parametrize("space", ["reid", "standard"])
def test_any_cell_and_space(blocks, space):
    shape = NetworkShape(channels=3, layers=(1, 1, 1, 1), blocks=blocks, height=48, width=16)
    operations = operation_names(space)
    genotype = random_genotype(random.Random(blocks), blocks, operations)
    network = shape.build(genotype)
    assert CostTable.parameters(shape, operations).cost(genotype) == count_parameters(network)
    assert CostTable.macs(shape, operations).cost(genotype) == count_macs(network, (3, 48, 16))  # really computed


def test_smallest_and_largest_are_those_of_all_genotypes():
    for table in (CostTable.parameters(TINY, FEW), CostTable.macs(TINY, FEW)):
        costs = [table.cost(Genotype("one", *cells)) for cells in itertools.product(every_cell(2, FEW), repeat=2)]
        assert len(costs) == 48**2
        assert (table.smallest(), table.largest()) == (min(costs), max(costs))


def kept_by_enumeration(probabilities, blocks, operations, temperature):
    """Adds up the probability of every ordered pair of edges, each with every operation."""
    weights = probabilities ** (1 / temperature)
    weights[:, operations.index("none")] = 0
    kept = torch.zeros_like(weights)
    for block in range(blocks):
        edges = [edge for edge, of, _ in cell_edges(blocks) if of == block]
        strength = {edge: weights[edge].sum() for edge in edges}
        for first, second in itertools.permutations(edges, 2):
            rest = sum(strength[edge] for edge in edges if edge != first)
            chance = strength[first] / sum(strength.values()) * strength[second] / rest
            for edge in (first, second):
                kept[edge] += chance * weights[edge] / strength[edge]
    return kept


@pytest.mark.parametrize("blocks", [1, 2, 4])
@pytest.mark.parametrize("temperature", [0.3, 1.0])
def test_kept_probabilities_are_those_of_enumeration(blocks, temperature):
    probabilities = random_probabilities(blocks)["normal"]
    kept = kept_probabilities(probabilities, OPERATION_NAMES, temperature)
    assert torch.allclose(kept, kept_by_enumeration(probabilities, blocks, OPERATION_NAMES, temperature))
    assert kept[:, OPERATION_NAMES.index("none")].eq(0).all()
    for block in kept.sum(dim=1).split([block + 2 for block in range(blocks)]):
        assert block.sum().item() == pytest.approx(2)
        assert (block <= 1 + 1e-12).all()


def test_kept_probabilities_are_frequencies_of_derivations_with_gumbel_noise():
    probabilities, temperature, draws = random_probabilities(2)["normal"], 0.5, 3000
    counts = torch.zeros_like(probabilities)
    edge_of = {(block, source): edge for edge, block, source in cell_edges(2)}
    for _ in range(draws):
        noise = -torch.empty_like(probabilities).exponential_().log()
        noisy = (probabilities.log() + temperature * noise).exp()
        for block, edges in enumerate(derived_from({"normal": noisy, "reduce": noisy}).normal):
            for name, source in edges:
                counts[edge_of[block, source], OPERATION_NAMES.index(name)] += 1
    kept = kept_probabilities(probabilities, temperature=temperature)
    deviation = (kept * (1 - kept) / draws).sqrt()
    assert ((counts / draws - kept).abs() <= 4.5 * deviation + 1e-3).all()


def test_a_low_temperature_gives_the_cost_of_the_derived_network():
    shape = NetworkShape(channels=4, layers=(1, 1, 1, 1), height=64, width=32)
    table = CostTable.macs(shape)
    for _ in range(10):
        probabilities = random_probabilities(4)
        kept = {kind: kept_probabilities(p, OPERATION_NAMES, 1e-8) for kind, p in probabilities.items()}
        derived = derived_from(probabilities)
        assert table.expected(kept).item() == pytest.approx(table.cost(derived), rel=1e-6)


def test_the_expected_cost_is_differentiable():
    table = CostTable.parameters(TINY)

    def expected(normal, reduce):
        alphas = {"normal": normal, "reduce": reduce}
        return table.expected({kind: kept_probabilities(a.softmax(1), temperature=0.5) for kind, a in alphas.items()})

    alphas = [torch.randn(5, 7, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    assert torch.autograd.gradcheck(lambda *a: expected(*a) / table.largest(), alphas)


def test_extreme_probabilities_have_finite_costs_and_gradients():
    certain = torch.zeros(14, 7)
    certain[:, 3] = 1.0
    nothing = torch.zeros(14, 7)
    nothing[:, OPERATION_NAMES.index("none")] = 1.0
    for probabilities in (certain, nothing):
        p = probabilities.requires_grad_()
        kept = kept_probabilities(p)
        (kept**2).sum().backward()
        assert kept.isfinite().all()
        assert p.grad.isfinite().all()


# -- latency ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def measured():
    return measure_latency(TINY, FEW, rounds=2)


def test_latency_is_measured_at_every_place(measured):
    places = {place for _, _, place in TINY.places()}
    # A stage of one size; the two inputs of its reduction cell come from the stage before.
    assert sorted((p.stride, p.channels, p.height, p.width) for p in places) == sorted(
        [(1, 4, 16, 8), (2, 8, 16, 8), (1, 8, 8, 4), (2, 16, 8, 4), (1, 16, 4, 2), (2, 32, 4, 2), (1, 32, 2, 1)]
    )
    assert set(measured.milliseconds) == set(itertools.product(FEW, places))
    assert all(value > 0 for value in [measured.fixed_part, measured.mixed, *measured.milliseconds.values()])
    assert "threads: 1" in measured.device


def test_latencies_add_up():
    places = {place for _, _, place in TINY.places()}
    times = {"sep_conv_3x3": 3.0, "none": 0.5, "skip_connect": 1.0}
    milliseconds = {(name, place): time * place.stride for name, time in times.items() for place in places}
    # Of the mixed network, beyond `none`: a separable convolution on input 0 and a skip connection, in the first block
    # on input 1 and in the second on the first; inputs are read at stride 2 in the three reduction cells.
    mixed = 1 * (2 * 2.5 + 2 * 0.5) + 3 * (2 * 2.5 * 2 + 0.5 * 2 + 0.5)
    table = CostTable.latency(LatencyTable(TINY, FEW, "paper", 20.0, 20.0 + mixed, milliseconds))
    nothing = (("none", 0), ("none", 1)), (("none", 0), ("none", 2))
    assert table.cost(Genotype("none", nothing, nothing)) == 20.0
    normal = (("sep_conv_3x3", 0), ("none", 1)), (("none", 0), ("none", 2))
    assert table.cost(Genotype("one", normal, nothing)) == 22.5  # one normal cell
    reduce = (("none", 0), ("none", 1)), (("none", 0), ("skip_connect", 2))
    assert table.cost(Genotype("one", nothing, reduce)) == 21.5  # three reduction cells
    reduce = (("skip_connect", 0), ("none", 1)), (("none", 0), ("none", 2))
    assert table.cost(Genotype("one", nothing, reduce)) == 23.0  # three reduction cells, each at stride 2
    # Where the mixed network takes twice as much more, so does every operation.
    slow = CostTable.latency(LatencyTable(TINY, FEW, "paper", 40.0, 40.0 + 2 * mixed, milliseconds))
    assert slow.cost(Genotype("one", normal, nothing)) == pytest.approx(45.0)
    assert slow.cost(Genotype("none", nothing, nothing)) == pytest.approx(40.0)


def test_a_latency_table_survives_its_file(measured, tmp_path):
    measured.save(tmp_path / "latency.json")
    assert LatencyTable.load(tmp_path / "latency.json", TINY, FEW) == measured
    genotype = random_genotype(random.Random(0), 2, FEW)
    read = CostTable.latency(LatencyTable.load(tmp_path / "latency.json", TINY, FEW))
    assert read.cost(genotype) == CostTable.latency(measured).cost(genotype)


def without_a_row(content):
    return content | {"rows": content["rows"][1:]}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda content: [], "is no latency table"),
        (lambda content: content | {"version": 2}, "version 2"),
        (lambda content: content | {"fixed_part_ms": -1}, "-1 is no time"),
        (lambda content: content | {"fixed_part_ms": True}, "True is no time"),
        (lambda content: content | {"mixed_ms": "5"}, "'5' is no time"),
        (without_a_row, "1 operations are missing"),
        (lambda content: content | {"rows": [{"operation": "none"}]}, "is no latency table"),
        (lambda content: content | {"operations": ["none"]}, "is of another network or search space"),
        (lambda content: content | {"network": content["network"] | {"channels": 8}}, "is of another network"),
        (lambda content: content | {"network": {"layers": [10**9] * 4}}, "is of another network"),
    ],
)
def test_wrong_latency_tables_are_refused(measured, tmp_path, change, words):
    path = tmp_path / "latency.json"
    measured.save(path)
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(UserError, match=rf"latency\.json .*{words}|{words}") as caught:
        LatencyTable.load(path, TINY, FEW)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_or_huge_latency_table_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"no latency table .*nowhere\.json"):
        LatencyTable.load(tmp_path / "nowhere.json", TINY)
    (tmp_path / "huge.json").write_bytes(b" " * (1 << 21))
    with pytest.raises(UserError, match="too many for a latency table"):
        LatencyTable.load(tmp_path / "huge.json", TINY)
    (tmp_path / "torn.json").write_text('{"version": 1, ')
    with pytest.raises(UserError, match="is no latency table"):
        LatencyTable.load(tmp_path / "torn.json", TINY)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_latency_on_a_gpu():
    measured = measure_latency(TINY, FEW, "cuda", rounds=2)
    assert measured.device == torch.cuda.get_device_name()
    assert all(value > 0 for value in measured.milliseconds.values())
