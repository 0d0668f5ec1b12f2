"""The gradient of the alphas against exact float64 autograd, and nothing else changed."""

import copy

import pytest
import torch
from torch import nn
from torch.func import functional_call

from torchreid_autoreid.errors import UserError
from torchreid_autoreid.search.architect import Architect, TrainGradients, gradients, random_states, unchanged_buffers
from torchreid_autoreid.search.losses import RetrievalLoss
from torchreid_autoreid.space.networks import AutoReIDSearchNetwork


class SmallNetwork(nn.Module):
    """Two mixed layers with a batch norm: small enough for exact second derivatives."""

    def __init__(self, norm=True):
        super().__init__()
        self.first = nn.ModuleList([nn.Linear(5, 6), nn.Linear(5, 6, bias=False)])
        self.norm = nn.BatchNorm1d(6) if norm else nn.Identity()
        self.second = nn.ModuleList([nn.Linear(6, 3), nn.Linear(6, 3)])
        self.alpha = nn.Parameter(torch.randn(2, 2))

    def alphas(self):
        return [self.alpha]

    def weights(self):
        return [p for p in self.parameters() if p is not self.alpha]

    def forward(self, x):
        a, b = self.alpha.softmax(-1)
        h = self.norm(sum(w * layer(x) for w, layer in zip(a, self.first, strict=True))).tanh()
        return sum(w * layer(h) for w, layer in zip(b, self.second, strict=True))


def make_batch(seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(12, 5, dtype=torch.float64, generator=generator)
    return x, torch.randint(3, (12,), generator=generator)


def named_weights(network):
    ids = {id(p) for p in network.weights()}
    return {name: p for name, p in network.named_parameters() if id(p) in ids}


def exact_second_order(network, loss, optimizer, train_batch, val_batch):
    """Differentiates through the virtual step of SGD, written out with PyTorch's documented formulas."""
    network = copy.deepcopy(network)  # its batch norm statistics may move
    names = named_weights(network)
    groups = optimizer.param_groups
    order = [p for group in groups for p in group["params"]]
    group_of = [group for group in groups for _ in group["params"]]
    original = optimizer.state
    value = loss(network(train_batch[0]), train_batch[1])
    gradients = torch.autograd.grad(value, list(names.values()), create_graph=True)
    virtual = {}
    for (name, w), g, p, group in zip(names.items(), gradients, order, group_of, strict=True):
        d = g + group["weight_decay"] * w
        if group["momentum"]:
            buffer = original[p].get("momentum_buffer") if p in original else None
            buffer = d if buffer is None else group["momentum"] * buffer + (1 - group["dampening"]) * d
            d = d + group["momentum"] * buffer if group["nesterov"] else buffer
        virtual[name] = w - group["lr"] * d
    value = loss(functional_call(network, virtual, (val_batch[0],)), val_batch[1])
    return torch.autograd.grad(value, network.alphas())


OPTIMIZERS = {
    "plain": {"lr": 0.5},
    "momentum": {"lr": 0.2, "momentum": 0.9, "weight_decay": 5e-2},
    "dampening": {"lr": 0.2, "momentum": 0.9, "dampening": 0.4, "weight_decay": 5e-2},
    "nesterov": {"lr": 0.2, "momentum": 0.9, "nesterov": True, "weight_decay": 5e-2},
}


def trained(keywords, steps):
    """A network whose optimiser has a momentum buffer after some steps, in double precision."""
    torch.manual_seed(0)
    network = SmallNetwork().double()
    optimizer = torch.optim.SGD(network.weights(), **keywords)
    for step in range(steps):
        x, y = make_batch(step)
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(x), y).backward()
        optimizer.step()
    return network, optimizer


@pytest.mark.parametrize("steps", [0, 3])
@pytest.mark.parametrize("keywords", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_second_order_agrees_with_exact_autograd(keywords, steps):
    network, optimizer = trained(keywords, steps)
    loss = nn.functional.cross_entropy
    train_batch, val_batch = make_batch(101), make_batch(102)
    (exact,) = exact_second_order(network, loss, optimizer, train_batch, val_batch)
    Architect(network, loss, optimizer, order=2).backward(train_batch, val_batch)
    assert (network.alpha.grad - exact).norm() / exact.norm() < 1e-3
    # The term that the public re-implementation loses matters here: first order at w' is clearly another gradient.
    Architect(network, loss, optimizer, order=1).backward(train_batch, val_batch)
    assert (network.alpha.grad - exact).norm() / exact.norm() > 1e-2


def test_the_hessian_term_alone_agrees_with_exact_autograd():
    network, optimizer = trained(OPTIMIZERS["momentum"], 2)
    loss = nn.functional.cross_entropy
    train_batch, val_batch = make_batch(101), make_batch(102)
    (exact,) = exact_second_order(network, loss, optimizer, train_batch, val_batch)
    architect = Architect(network, loss, optimizer, order=2)
    saved = [w.detach().clone() for w in network.weights()]
    gradients = torch.autograd.grad(loss(network(train_batch[0]), train_batch[1]), network.weights())
    architect._virtual_step(network.weights(), gradients)
    (direct,) = torch.autograd.grad(loss(network(val_batch[0]), val_batch[1]), network.alphas())
    with torch.no_grad():
        for w, value in zip(network.weights(), saved, strict=True):
            w.copy_(value)
    architect.backward(train_batch, val_batch)
    ours, wanted = network.alpha.grad - direct, exact - direct
    assert (ours - wanted).norm() / wanted.norm() < 1e-3


def test_second_order_with_several_groups_and_a_frozen_weight():
    torch.manual_seed(0)
    network = SmallNetwork().double()
    weights = network.weights()
    groups = [{"params": weights[:3], "lr": 0.3}, {"params": weights[3:], "lr": 0.05, "momentum": 0.5}]
    optimizer = torch.optim.SGD(groups, lr=0.1, weight_decay=1e-2)
    loss = nn.functional.cross_entropy
    (exact,) = exact_second_order(network, loss, optimizer, make_batch(1), make_batch(2))
    Architect(network, loss, optimizer, order=2).backward(make_batch(1), make_batch(2))
    assert (network.alpha.grad - exact).norm() / exact.norm() < 1e-3
    weights[0].requires_grad_(False)
    Architect(network, loss, optimizer, order=2).backward(make_batch(1), make_batch(2))
    assert network.alpha.grad.isfinite().all()


def test_second_order_of_the_search_network_agrees_with_exact_autograd():
    """The real thing in small: all seven operations, the retrieval loss, momentum and weight decay.

    Its ReLUs and max pools have kinks, so the difference is taken over a distance that crosses none.
    """
    torch.manual_seed(0)
    network = AutoReIDSearchNetwork(3, channels=2, layers=(1, 1, 1, 1), blocks=1).double()
    for alpha in network.alphas():
        alpha.data.normal_()
    retrieval = RetrievalLoss(0.5)
    loss = lambda outputs, identities: retrieval(outputs, identities)[0]  # noqa: E731
    batches = [(torch.randn(6, 3, 64, 64, dtype=torch.float64), torch.tensor([0, 0, 1, 1, 2, 2])) for _ in range(2)]
    optimizer = torch.optim.SGD(network.weights(), lr=1e-3, momentum=0.9, weight_decay=5e-4)
    exact = torch.cat([g.flatten() for g in exact_second_order(network, loss, optimizer, *batches)])
    Architect(network, loss, optimizer, order=2, displacement=1e-6).backward(*batches)
    ours = torch.cat([alpha.grad.flatten() for alpha in network.alphas()])
    assert (ours - exact).norm() / exact.norm() < 1e-3


@pytest.mark.parametrize("strategy", ["pc_darts", "drnas"])
def test_second_order_of_a_strategy_agrees_with_exact_autograd(strategy):
    """DrNAS draws: w' depends on alpha through the draw of the first pass, so the displaced passes must repeat it."""
    torch.manual_seed(2)  # no kink within the displacement
    options = {"channels": 4, "layers": (1, 1, 1, 1), "blocks": 1, "strategy": strategy}
    network = AutoReIDSearchNetwork(3, **options).double()
    for alpha in network.alphas():
        alpha.data.normal_()
    retrieval = RetrievalLoss(0.5)
    loss = lambda outputs, identities: retrieval(outputs, identities)[0]  # noqa: E731
    batches = [(torch.randn(6, 3, 64, 64, dtype=torch.float64), torch.tensor([0, 0, 1, 1, 2, 2])) for _ in range(2)]
    optimizer = torch.optim.SGD(network.weights(), lr=0.02, momentum=0.9, weight_decay=5e-4)
    torch.manual_seed(1)
    exact = torch.cat([g.flatten() for g in exact_second_order(network, loss, optimizer, *batches)])
    torch.manual_seed(1)
    Architect(network, loss, optimizer, order=2, displacement=1e-6).backward(*batches)
    ours = torch.cat([alpha.grad.flatten() for alpha in network.alphas()])
    assert (ours - exact).norm() / exact.norm() < 1e-3


@pytest.mark.parametrize("strategy", ["darts", "gdas"])
def test_a_gradient_that_is_known_saves_its_pass_and_changes_nothing(strategy):
    torch.manual_seed(0)
    network = AutoReIDSearchNetwork(4, channels=4, layers=(1, 1, 1, 1), blocks=2, strategy=strategy)
    batches = [(torch.randn(4, 3, 32, 16), torch.tensor([0, 0, 1, 1])) for _ in range(2)]
    optimizer = torch.optim.SGD(network.weights(), lr=0.1, momentum=0.9)
    passes = []
    network.register_forward_pre_hook(lambda *_: passes.append(None))

    def loss(outputs, identities):
        return RetrievalLoss()(outputs, identities)[0]

    architect = Architect(network, loss, optimizer, order=2)
    torch.manual_seed(1)
    architect.backward(*batches)
    expected = [alpha.grad.clone() for alpha in network.alphas()]
    assert len(passes) == 4
    torch.manual_seed(1)
    states = random_states(network.weights())
    with unchanged_buffers(network):
        known = gradients(loss(network(batches[0][0]), batches[0][1]), network.weights())
    passes.clear()
    architect.backward(*batches, TrainGradients(known, states))
    assert len(passes) == 3
    for alpha, wanted in zip(network.alphas(), expected, strict=True):
        assert torch.equal(alpha.grad, wanted)


def test_first_order_is_the_plain_gradient_at_the_present_weights():
    network, optimizer = trained(OPTIMIZERS["momentum"], 2)
    loss = nn.functional.cross_entropy
    x, y = make_batch(5)
    (exact,) = torch.autograd.grad(loss(copy.deepcopy(network)(x), y), [network.alpha], allow_unused=True)
    assert exact is None  # the copy has its own alpha: what follows is not a comparison with itself
    twin = copy.deepcopy(network)
    (exact,) = torch.autograd.grad(loss(twin(x), y), twin.alphas())
    value = Architect(network, loss, optimizer, order=1).backward(make_batch(4), (x, y))
    assert torch.equal(network.alpha.grad, exact)
    assert torch.equal(value, loss(twin(x), y).detach())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("order", [1, 2])
def test_weights_buffers_gradients_and_optimiser_stay_bit_for_bit(order, dtype):
    network, optimizer = trained(OPTIMIZERS["nesterov"], 3)
    network = network.to(dtype)
    network.weights()[1].requires_grad_(False)
    before = copy.deepcopy((network.state_dict(), optimizer.state_dict(), [w.grad for w in network.weights()]))
    batches = [(x.to(dtype), y) for x, y in (make_batch(1), make_batch(2))]
    Architect(network, nn.functional.cross_entropy, optimizer, order).backward(*batches)
    after = (network.state_dict(), optimizer.state_dict(), [w.grad for w in network.weights()])
    for old, new in zip(leaves(before), leaves(after), strict=True):
        assert torch.equal(old, new)
    assert [w.requires_grad for w in network.weights()] == [number != 1 for number in range(len(network.weights()))]


def test_weights_are_restored_when_the_loss_fails():
    network, optimizer = trained(OPTIMIZERS["momentum"], 1)
    before = copy.deepcopy(network.state_dict())
    calls = []

    def failing(outputs, identities):
        calls.append(1)
        if len(calls) == 3:  # inside the first displaced pass
            raise RuntimeError("stop")
        return nn.functional.cross_entropy(outputs, identities)

    with pytest.raises(RuntimeError, match="stop"):
        Architect(network, failing, optimizer, order=2).backward(make_batch(1), make_batch(2))
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())
    assert all(w.requires_grad for w in network.weights())


def test_displaced_passes_see_the_same_dropout():
    torch.manual_seed(0)
    network = SmallNetwork(norm=False).double()
    plain = network.forward
    network.forward = lambda x: nn.functional.dropout(plain(x), 0.5)
    optimizer = torch.optim.SGD(network.weights(), lr=1e-4)
    Architect(network, nn.functional.cross_entropy, optimizer, order=2).backward(make_batch(1), make_batch(2))
    # With two different masks the difference quotient would be of the order of 1 / epsilon, in the thousands.
    assert network.alpha.grad.norm() < 10


def test_a_loss_of_its_own_for_the_validation_batch():
    network, optimizer = trained(OPTIMIZERS["plain"], 0)
    twice = lambda outputs, y: 2 * nn.functional.cross_entropy(outputs, y)  # noqa: E731
    Architect(network, nn.functional.cross_entropy, optimizer).backward(make_batch(1), make_batch(2))
    once = network.alpha.grad.clone()
    Architect(network, nn.functional.cross_entropy, optimizer, val_loss=twice).backward(make_batch(1), make_batch(2))
    assert torch.allclose(network.alpha.grad, 2 * once)


def in_bfloat16(network):
    def forward(x):
        with torch.autocast("cpu", torch.bfloat16):
            return network(x).float()

    return forward


def test_mixed_precision_keeps_the_finite_differences_in_float32():
    """The gradient in bfloat16 is as good as bfloat16; with displaced passes in bfloat16 as well, it would be noise."""
    network, optimizer = trained(OPTIMIZERS["momentum"], 2)
    loss = nn.functional.cross_entropy
    train_batch, val_batch = make_batch(101), make_batch(102)
    (exact,) = exact_second_order(network, loss, optimizer, train_batch, val_batch)
    Architect(network, loss, optimizer).backward(train_batch, val_batch)
    direct = network.alpha.grad.clone()
    network.float()
    for group in optimizer.state.values():
        group["momentum_buffer"] = group["momentum_buffer"].float()
    batches = [(x.float(), y) for x, y in (train_batch, val_batch)]
    Architect(network, loss, optimizer, 2, displacement=1e-3, forward=in_bfloat16(network)).backward(*batches)
    assert (network.alpha.grad - exact).norm() / exact.norm() < 0.05
    assert (direct - exact).norm() / exact.norm() > 0.2  # what the second order adds is more than that
    plain, network.forward = network.forward, in_bfloat16(network.forward)
    Architect(network, loss, optimizer, 2, displacement=1e-3).backward(*batches)
    network.forward = plain
    assert (network.alpha.grad - exact).norm() / exact.norm() > 0.2


@pytest.mark.parametrize("order", [1, 2])
def test_another_gradient_enters_everywhere(order):
    """As that over several processes: three times each gradient is that of three times the loss."""
    network, optimizer = trained(OPTIMIZERS["momentum"], 2)
    batches = make_batch(101), make_batch(102)
    thrice = lambda outputs, y: 3 * nn.functional.cross_entropy(outputs, y)  # noqa: E731
    Architect(network, thrice, optimizer, order).backward(*batches)
    expected = network.alpha.grad.clone()
    asked = []

    def gradient(value, parameters):
        asked.append(len(parameters))
        return [3 * g for g in gradients(value, parameters)]

    Architect(network, nn.functional.cross_entropy, optimizer, order, gradient=gradient).backward(*batches)
    torch.testing.assert_close(network.alpha.grad, expected, rtol=1e-9, atol=1e-12)
    weights = len(network.weights())
    assert asked == ([1] if order == 1 else [weights, 1 + weights, 1, 1])


def test_wrong_arguments_are_named():
    network = SmallNetwork()
    with pytest.raises(UserError, match="3"):
        Architect(network, nn.functional.cross_entropy, torch.optim.SGD(network.weights(), lr=1.0), order=3)
    with pytest.raises(UserError, match="Adam"):
        Architect(network, nn.functional.cross_entropy, torch.optim.Adam(network.weights()), order=2)


def leaves(tree):
    if isinstance(tree, torch.Tensor):
        return [tree]
    if isinstance(tree, dict):
        tree = tree.values()
    return (
        [leaf for part in tree for leaf in leaves(part)] if isinstance(tree, list | tuple | type({}.values())) else []
    )
