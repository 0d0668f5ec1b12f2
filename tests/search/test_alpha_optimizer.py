"""The optimiser of the alphas fits the length of the search."""

import pytest
import torch

from torchreid_autoreid.search.alpha_optimizer import build_alpha_optimizer
from torchreid_autoreid.space.networks import AutoReIDSearchNetwork
from torchreid_autoreid.space.strategies import STRATEGIES


def optimizer_of(strategy="darts", steps=100, **options):
    network = AutoReIDSearchNetwork(3, channels=4, layers=(1, 1, 1, 1), blocks=1, strategy=strategy, partial_channels=2)
    return network, build_alpha_optimizer(network, steps, **options)


@pytest.mark.parametrize(("strategy", "lr"), [("darts", 0.02), ("gdas", 3e-4), ("pc_darts", 6e-4), ("drnas", 6e-4)])
def test_a_long_search_has_the_authors_rates(strategy, lr):
    assert STRATEGIES[strategy].alpha_lr == lr
    (group,) = optimizer_of(strategy, 100_000)[1].param_groups
    assert (group["lr"], group["betas"]) == (lr, (0.5, 0.999))


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("steps", [20, 200])
def test_in_a_short_search_an_alpha_can_reach_a_decision_and_change_it(strategy, steps):
    network, optimizer = optimizer_of(strategy, steps, weight_decay=0.0)
    alpha = network.architecture.normal

    def follow(sign):
        for _ in range(steps // 2):
            optimizer.zero_grad()
            alpha.grad = torch.full_like(alpha, -sign)
            optimizer.step()
        return alpha.detach().clone()

    risen, fallen = follow(1.0), follow(-1.0)
    assert (risen > 1.5).all()
    assert (fallen < risen - 1.5).all()


def test_values_that_are_given_are_taken():
    _, optimizer = optimizer_of(lr=0.3, betas=[0.1, 0.2], weight_decay=0.4)
    (group,) = optimizer.param_groups
    assert (group["lr"], group["betas"], group["weight_decay"]) == (0.3, (0.1, 0.2), 0.4)
