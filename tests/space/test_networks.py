"""The skeleton, the derived network and the search network."""

import copy

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from torchreid_autoreid.errors import UserError
from torchreid_autoreid.genotype import OPERATION_NAMES, Genotype, cell_edges, derive
from torchreid_autoreid.search.schedule import Schedule
from torchreid_autoreid.space.cells import MixedOperation
from torchreid_autoreid.space.networks import AutoReIDNetwork, AutoReIDSearchNetwork
from torchreid_autoreid.space.operations import build_operation
from torchreid_autoreid.space.strategies import Mixture


def complexity(network, height, width):
    """Parameters (millions) and multiply-accumulates (billions) without the classifier, counted by PyTorch."""
    network.eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, 3, height, width))
    parameters = sum(p.numel() for name, p in network.named_parameters() if not name.startswith("classifier"))
    return parameters / 1e6, counter.get_total_flops() / 2e9


def test_the_paper_network_has_the_published_size():
    parameters, macs = complexity(AutoReIDNetwork(751), 384, 128)
    assert parameters == pytest.approx(9.9, abs=0.05)
    assert macs == pytest.approx(1.94, abs=0.015)


@pytest.mark.parametrize("preset", sorted(Genotype.presets()))
@pytest.mark.parametrize("loss", ["softmax", "triplet"])
def test_contract_in_training_and_in_eval_mode(preset, loss):
    network = AutoReIDNetwork(7, loss, Genotype.load(preset), channels=4, layers=(1, 2, 1, 1))
    x = torch.randn(2, 3, 64, 32)
    out = network(x)
    logits, features = out if loss == "triplet" else (out, None)
    assert logits.shape == (2, 7)
    assert network.feature_dim == 4 * 8 * 4 == network.classifier.in_features
    if features is not None:
        assert features.shape == (2, 128)
    network.eval()
    assert network(x).shape == (2, 128)
    assert network(x, return_featuremaps=True).shape == (2, 128, 2, 1)


@pytest.mark.parametrize("shape", [(1, 3, 128, 64), (2, 3, 97, 45), (2, 3, 33, 17), (3, 3, 384, 128)])
def test_odd_sizes_and_batch_one_train(shape):
    network = AutoReIDNetwork(5, channels=4, layers=(1, 1, 1, 1))
    network(torch.randn(shape)).sum().backward()
    assert all(p.grad.isfinite().all() for p in network.parameters())


def test_stage_widths_and_reductions():
    network = AutoReIDNetwork(5, channels=8, layers=(1, 2, 3, 1), genotype=Genotype.load("baseline"))
    kinds = [cell.kind for cell in network.cells]
    assert kinds == ["normal", "reduce", "normal", "reduce", "normal", "normal", "reduce"]
    maps, size, sizes = torch.zeros(2, 3, 128, 64), [], []
    for cell in network.cells:
        cell.register_forward_hook(lambda _, __, out: sizes.append(tuple(out.shape[1:])))
    network.eval()(maps)
    size = [(8 * 4, 32, 16), *[(16 * 4, 16, 8)] * 2, *[(32 * 4, 8, 4)] * 3, (64 * 4, 4, 2)]
    assert sizes == size


@pytest.mark.parametrize("blocks", [1, 2, 5])
def test_any_number_of_blocks(blocks):
    network = AutoReIDSearchNetwork(4, channels=2, layers=(1, 1, 1, 1), blocks=blocks)
    _, features = network(torch.randn(2, 3, 64, 32))
    assert features.shape == (2, 16 * blocks)
    genotype = network.genotype()
    assert genotype.blocks == blocks
    derived = AutoReIDNetwork(4, "triplet", genotype, channels=2, layers=(1, 1, 1, 1))
    assert derived(torch.randn(2, 3, 64, 32))[1].shape == (2, 16 * blocks)


@pytest.mark.parametrize("space", ["reid", "standard"])
def test_every_parameter_gets_a_gradient(space):
    torch.manual_seed(0)
    network = AutoReIDSearchNetwork(4, channels=3, layers=(1, 1, 1, 1), space=space)
    logits, features = network(torch.randn(4, 3, 128, 64))
    (logits.pow(2).sum() + features.pow(3).sum()).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    assert all(alpha.grad.abs().sum(dim=1).gt(0).all() for alpha in network.alphas())


def test_alphas_and_weights_are_disjoint_and_complete():
    network = AutoReIDSearchNetwork(4, channels=2, layers=(1, 1, 1, 1), blocks=2)
    assert [tuple(a.shape) for a in network.alphas()] == [(5, 7), (5, 7)]
    ids = [id(p) for p in [*network.alphas(), *network.weights()]]
    assert len(ids) == len(set(ids))
    assert set(ids) == {id(p) for p in network.parameters()}


def test_mixed_operation_is_the_weighted_sum():
    torch.manual_seed(0)
    mixed = MixedOperation(OPERATION_NAMES, 4, 2, 4).double()
    x, weights = torch.randn(2, 4, 8, 6, dtype=torch.float64), torch.rand(7, dtype=torch.float64)
    expected = sum(w * op(x) for w, op in zip(weights, copy.deepcopy(mixed).operations.values(), strict=True))
    assert torch.allclose(mixed(x, weights), expected)


@pytest.mark.parametrize("reduction", [False, True])
def test_search_cell_is_wired_as_equation_1_says(reduction):
    torch.manual_seed(0)
    network = AutoReIDSearchNetwork(4, channels=3, layers=(1, 1, 1, 1), blocks=3).double()
    cell = network.cells[1 if reduction else 0]
    assert (cell.kind == "reduce") == reduction
    widths = [m.convs[0].in_channels for m in cell.preprocess]
    inputs = [torch.randn(2, width, 8, 8, dtype=torch.float64) for width in widths]
    weights = torch.rand(len(cell.edges), 7, dtype=torch.float64)
    twin = copy.deepcopy(cell)
    states = [pre(x) for pre, x in zip(twin.preprocess, inputs, strict=True)]
    blocks = [0.0, 0.0, 0.0]
    for edge, block, source in cell_edges(3):
        blocks[block] = blocks[block] + twin.edges[edge](([*states, *blocks])[source], weights[edge])
    assert torch.allclose(cell(*inputs, Mixture(weights)), torch.cat(blocks, dim=1))


@pytest.mark.parametrize("shape", [(2, 8, 8, 6), (2, 8, 7, 5)])
@pytest.mark.parametrize("stride", [1, 2])
def test_partial_channels_bypass_the_operations(stride, shape):
    """PC-DARTS, equation 2, channel by channel: the first quarter is mixed, the others pass, the result is shuffled."""
    torch.manual_seed(0)
    mixed = MixedOperation(OPERATION_NAMES, 8, stride, 4, partial=4).double()
    x, weights = torch.randn(shape, dtype=torch.float64), torch.rand(7, dtype=torch.float64)
    out = mixed(x, weights, torch.tensor(0.3, dtype=torch.float64))
    own = sum(w * op(x[:, :2]) for w, op in zip(weights, copy.deepcopy(mixed).operations.values(), strict=True))
    joined = [own[:, 0], own[:, 1]]
    for channel in range(2, 8):
        rest = 0.3 * x[:, channel]
        if stride == 2:
            height, width = rest.shape[1:]
            rest = torch.stack(
                [
                    torch.stack([rest[:, i : i + 2, j : j + 2].amax((1, 2)) for j in range(0, width, 2)], dim=-1)
                    for i in range(0, height, 2)
                ],
                dim=1,
            )
        joined.append(rest)
    assert torch.allclose(out, torch.stack([joined[c] for c in (0, 2, 4, 6, 1, 3, 5, 7)], dim=1))


def test_a_chosen_operation_is_the_only_one_executed():
    mixed = MixedOperation(OPERATION_NAMES, 4, 1, 4).double()
    ran = []
    for name, operation in mixed.operations.items():
        operation.register_forward_hook(lambda *_, name=name: ran.append(name))
    x, weights = torch.randn(2, 4, 8, 6, dtype=torch.float64), torch.rand(7, dtype=torch.float64)
    for index, name in enumerate(OPERATION_NAMES):
        ran.clear()
        expected = weights[index] * copy.deepcopy(mixed).operations[name](x)
        ran.clear()
        assert torch.equal(mixed(x, weights, chosen=index), expected)
        assert ran == [name]


def test_dropout_on_skip_paths_in_training_only():
    skip = OPERATION_NAMES.index("skip_connect")
    mixed = MixedOperation(OPERATION_NAMES, 4, 1, 4).double()
    x, weights = torch.ones(2, 4, 50, 50, dtype=torch.float64), torch.zeros(7, dtype=torch.float64)
    weights[skip] = 3.0
    out = mixed(x, weights, skip_dropout=0.25)
    assert set(out.unique().tolist()) == {0.0, 3.0 / 0.75}
    assert (out == 0).double().mean() == pytest.approx(0.25, abs=0.02)
    mixed.eval()
    assert torch.equal(mixed(x, weights, skip_dropout=0.25), 3.0 * x)


def test_a_one_hot_search_network_equals_the_derived_network():
    """With alphas that single out a genotype's operations, both networks compute the same function."""
    torch.manual_seed(0)
    genotype = Genotype.load("retrieval")
    search = AutoReIDSearchNetwork(4, channels=4, layers=(1, 1, 1, 1)).double()
    derived = AutoReIDNetwork(4, "triplet", genotype, channels=4, layers=(1, 1, 1, 1)).double()
    none = OPERATION_NAMES.index("none")
    for alpha, cell in zip(search.alphas(), (genotype.normal, genotype.reduce), strict=True):
        alpha.data.fill_(-1e4)
        alpha.data[:, none] = 0.0
        for edge, block, source in cell_edges(4):
            for name, used in cell[block]:
                if used == source:
                    alpha.data[edge, none] = -1e4
                    alpha.data[edge, OPERATION_NAMES.index(name)] = 0.0
    assert search.genotype().normal[0] == genotype.normal[0]
    derived.stem.load_state_dict(search.stem.state_dict())
    derived.classifier.load_state_dict(search.classifier.state_dict())
    for own, other in zip(derived.cells, search.cells, strict=True):
        own.preprocess.load_state_dict(other.preprocess.state_dict(), strict=False)
        cell = genotype.reduce if own.kind == "reduce" else genotype.normal
        edges = {(block, source): edge for edge, block, source in cell_edges(4)}
        pairs = [(block, name, source) for block, two in enumerate(cell) for name, source in two]
        for operation, (block, name, source) in zip(own.operations, pairs, strict=True):
            state = other.edges[edges[block, source]].operations[name].state_dict()
            operation.load_state_dict(state, strict=False)  # the search form has no affine parameters
    x = torch.randn(4, 3, 64, 64, dtype=torch.float64)
    for ours, theirs in zip(search(x), derived(x), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-8)


def test_drop_path_changes_training_only_and_no_keys():
    torch.manual_seed(0)
    plain = AutoReIDNetwork(4, channels=4, layers=(1, 1, 1, 1))
    dropped = AutoReIDNetwork(4, channels=4, layers=(1, 1, 1, 1), drop_path=0.5)
    dropped.load_state_dict(plain.state_dict())
    x = torch.randn(8, 3, 64, 32)
    assert not torch.allclose(plain(x), dropped(x))
    dropped.load_state_dict(plain.state_dict())
    assert torch.equal(plain.eval()(x), dropped.eval()(x))


def test_genotype_follows_the_alphas():
    network = AutoReIDSearchNetwork(4, channels=2, layers=(1, 1, 1, 1))
    rng = np.random.default_rng(0)
    for alpha in network.alphas():
        alpha.data.copy_(torch.from_numpy(rng.normal(size=tuple(alpha.shape))))
    rows = network.probabilities()["normal"]
    assert torch.allclose(rows.sum(1), torch.ones(14))
    strongest = rows[:2, [i for i, name in enumerate(OPERATION_NAMES) if name != "none"]].amax(1)
    assert network.genotype().normal[0][0][1] == int(strongest.argmax())


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"loss": "hinge"}, "hinge"),
        ({"channels": 0}, "0"),
        ({"layers": (2, 2, 2)}, r"\[2, 2, 2\]"),
        ({"layers": (2, 2, 2, 0)}, r"\[2, 2, 2, 0\]"),
        ({"drop_path": 1.0}, "1.0"),
        ({"parts": 0}, "0"),
        ({"num_classes": 0}, "0"),
    ],
)
def test_wrong_arguments_are_named(keywords, message):
    with pytest.raises(UserError, match=message):
        AutoReIDNetwork(**({"num_classes": 3} | keywords))


@pytest.mark.parametrize("keywords", [{"space": "darts"}, {"strategy": "magic"}, {"blocks": 0}])
def test_wrong_search_arguments_are_named(keywords):
    with pytest.raises(UserError, match=str(next(iter(keywords.values())))):
        AutoReIDSearchNetwork(3, **keywords)


def test_derived_operations_have_no_hidden_state():
    names = [name for name, _ in build_operation("sep_conv_3x3", 4).named_buffers()]
    assert all(name.endswith(("running_mean", "running_var", "num_batches_tracked")) for name in names)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_as_on_the_cpu():
    torch.manual_seed(0)
    network = AutoReIDSearchNetwork(4, channels=4, layers=(1, 1, 1, 1)).eval()
    x = torch.randn(2, 3, 64, 32)
    expected = network(x)
    assert torch.allclose(network.cuda()(x.cuda()).cpu(), expected, atol=1e-4)


@pytest.mark.parametrize("strategy", ["darts", "gdas", "drnas"])
def test_activation_checkpointing_changes_nothing_but_memory(strategy):
    torch.manual_seed(0)
    plain = AutoReIDSearchNetwork(4, channels=4, layers=(1, 1, 1, 1), blocks=2, strategy=strategy)
    saving = AutoReIDSearchNetwork(
        4, channels=4, layers=(1, 1, 1, 1), blocks=2, strategy=strategy, activation_checkpointing=True
    )
    saving.load_state_dict(plain.state_dict())
    images = torch.randn(6, 3, 40, 24)
    kept = []  # elements that are kept for the gradient
    for network in (plain, saving):
        network.set_epoch_values(Schedule(skip_dropout=0.5).at(0, 4))
        elements = []
        torch.manual_seed(1)
        with torch.autograd.graph.saved_tensors_hooks(lambda x, n=elements: n.append(x.numel()) or x, lambda x: x):
            logits, features = network(images)
        (logits.square().sum() + features.square().sum()).backward()
        kept.append(sum(elements))
    assert kept[1] < kept[0] / 2
    for (name, expected), found in zip(plain.named_parameters(), saving.parameters(), strict=True):
        assert (expected.grad is None) == (found.grad is None), name
        assert expected.grad is None or torch.equal(expected.grad, found.grad), name
    for (name, expected), found in zip(plain.named_buffers(), saving.buffers(), strict=True):
        assert torch.equal(expected, found), name


# --- the derivation ---------------------------------------------------


def set_probabilities(network, rows, kind="normal"):
    with torch.no_grad():
        getattr(network.architecture, kind).copy_(torch.tensor(rows).log())


def test_none_counts_against_an_edge_unless_renormalised():
    """Input 0 is decided but mostly none, input 1 is undecided."""
    network = AutoReIDSearchNetwork(3, channels=2, layers=(1, 1, 1, 1), blocks=1)
    of = {name: column for column, name in enumerate(network.operations)}
    rows = np.full((2, len(of)), [[0.12], [0.01]], dtype=np.float32)
    rows[0, [of["none"], of["skip_connect"]]] = 0.1, 0.3
    rows[1, [of["none"], of["sep_conv_3x3"]]] = 0.75, 0.2
    for kind in ("normal", "reduce"):
        set_probabilities(network, rows, kind)
    assert network.genotype().normal[0][0] == ("skip_connect", 0)
    assert network.genotype(renormalised=True).normal[0][0] == ("sep_conv_3x3", 1)
    assert network.genotype(renormalised=True).reduce == network.genotype(renormalised=True).normal


@pytest.mark.parametrize("renormalised", [False, True])
def test_weights_of_edges_multiply_the_strengths(renormalised):
    network = AutoReIDSearchNetwork(3, channels=4, layers=(1, 1, 1, 1), strategy="pc_darts", partial_channels=2)
    rng, none = np.random.default_rng(0), network.operations.index("none")
    rows, edges = rng.dirichlet(np.ones(7), size=14).astype(np.float32), rng.normal(size=14).astype(np.float32)
    set_probabilities(network, rows)
    with torch.no_grad():
        network.architecture.of("normal")[1].copy_(torch.tensor(edges))
    blocks = np.array([block for _, block, _ in cell_edges(4)])
    factors = np.concatenate([np.exp(e) / np.exp(e).sum() for e in (edges[blocks == b] for b in range(4))])
    expected = rows * factors[:, None] / (1 - rows[:, [none]] if renormalised else 1)
    found = network.strengths(renormalised)["normal"].detach().numpy()
    others = np.arange(7) != none
    np.testing.assert_allclose(found[:, others], expected[:, others], rtol=1e-5)
    assert network.genotype(renormalised).normal == derive(expected.tolist(), expected.tolist()).normal
