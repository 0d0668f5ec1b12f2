"""The gradient of the architecture parameters, first and second order; knows no engine and no configuration.

Auto-ReID, algorithm 1, after DARTS (Liu et al., ICLR 2019, section 2.3).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from ..errors import UserError, short
from ..limits import Range, is_whole

__all__ = [
    "Architect",
    "SearchableNetwork",
    "TrainGradients",
    "frozen",
    "gradients",
    "random_states",
    "unchanged_buffers",
]

Batch = tuple[Tensor, Tensor]
Loss = Callable[[Any, Tensor], Any]
Gradient = Callable[[Tensor, Sequence[nn.Parameter]], list[Tensor]]
RandomStates = Mapping[int | None, Tensor]


class TrainGradients(NamedTuple):
    """Weight gradients already computed for this batch, and the RNG states before that forward pass.

    Attributes:
        gradients: of the loss, for each of ``network.weights()``.
        states: :func:`random_states` before the pass.
    """

    gradients: Sequence[Tensor]
    states: RandomStates

    @classmethod
    def of(cls, weights: Sequence[Tensor], states: RandomStates) -> TrainGradients:
        """The pass whose gradients the weights hold in ``.grad``."""
        return cls([torch.zeros_like(w) if w.grad is None else w.grad for w in weights], states)


class SearchableNetwork(Protocol):
    """What the architect needs of a network; ``buffers`` and ``modules`` are those of any ``nn.Module``."""

    def weights(self) -> list[nn.Parameter]: ...

    def alphas(self) -> list[nn.Parameter]: ...

    def buffers(self) -> Iterator[Tensor]: ...

    def __call__(self, images: Tensor) -> Any: ...


class Architect:
    """Fills ``.grad`` of the alphas.

    Weights, buffers, gradients of weights and optimiser state stay as they were.

    First order: the gradient of ``L_val(w, alpha)``. Second order: that of ``L_val(w'(alpha), alpha)``, where
    ``w' = w - xi * step(grad_w L_train(w, alpha))`` is what the weight optimiser would do next, with its own learning
    rate, momentum, dampening, Nesterov and weight decay, read from its parameter groups. The chain rule gives

    ``d/d alpha = grad_alpha L_val(w', alpha) - d^2 L_train / (d alpha d w) . u``,
    ``u = dw'/d(-grad) * grad_w' L_val(w', alpha)``

    and the product is taken by central differences,
    ``(grad_alpha L_train(w + eps u) - grad_alpha L_train(w - eps u)) / (2 eps)`` with ``eps * |u| = 0.01`` (DARTS,
    equation 8; its ``eps = 0.01 / |grad L_val|`` is the same displacement).

    Buffers (batch norm statistics) are saved before and restored after. The two displaced passes see the same dropout
    and the same draws of a strategy as the pass that the virtual step is taken from: ``w'`` depends on alpha through
    these.

    Args:
        network: has ``weights()``, ``alphas()`` and ``__call__``.
        loss: ``loss(outputs, identities)`` gives a scalar, or a tuple whose first item is one, as
            :class:`~torchreid_autoreid.search.losses.RetrievalLoss` does.
        weight_optimizer: the optimiser of the weights; SGD for the second order.
        order: 1 or 2.
        val_loss: the loss on the validation batch where it differs from ``loss``.
        displacement: ``eps * |u|``, how far the weights are moved for the difference; DARTS takes 0.01. A network with
            ReLU and max pooling has kinks, and a smaller step crosses fewer, but needs more digits.
        forward: the network in mixed precision; the network itself by default. The displaced passes never use it: what
            they differ by would be lost among the rounding errors of 16 bits.
        gradient: :func:`gradients`, or another that means it over several processes, for instance. It is asked for
            every gradient of a loss that enters the result: of the weights before the virtual step, at ``w'``, and of
            the displaced passes.

    Raises:
        UserError: if ``order`` is neither 1 nor 2, ``displacement`` is not above 0, or the second order is asked of an
            optimiser other than SGD.
    """

    def __init__(
        self,
        network: SearchableNetwork,
        loss: Loss,
        weight_optimizer: torch.optim.Optimizer,
        order: int = 1,
        val_loss: Loss | None = None,
        displacement: float = 0.01,
        forward: Callable[[Tensor], Any] | None = None,
        gradient: Gradient | None = None,
    ) -> None:
        if not is_whole(order) or order not in (1, 2):
            raise UserError(f"the order of the architecture gradient is 1 or 2, not {short(order)}")
        if displacement not in Range(0, 1e30, above=True):
            raise UserError(f"displacement must be a number above 0, not {short(displacement)}")
        if order == 2 and not isinstance(weight_optimizer, torch.optim.SGD):
            raise UserError(
                f"the second order imitates a step of SGD, not of {type(weight_optimizer).__name__}; "
                "set train.optim sgd or search.order 1"
            )
        self.network = network
        self.loss = loss
        self.val_loss = val_loss or loss
        self.weight_optimizer = weight_optimizer
        self.order = order
        self.displacement = displacement
        self.forward = forward or network
        self.gradient = gradient or gradients

    def backward(self, train_batch: Batch, val_batch: Batch, train_gradients: TrainGradients | None = None) -> Tensor:
        """Sets ``.grad`` of every alpha; returns the detached loss on the validation batch.

        Args:
            train_batch: ``(images (B, 3, H, W), identities (B,))`` of the weights' half; used by the second order only.
            val_batch: the same of the alphas' half.
            train_gradients: the gradients on ``train_batch``, which the second order needs, where they have been taken
                already: they save one of the three passes with a gradient of the weights.
        """
        with unchanged_buffers(self.network):
            if self.order == 1:
                value, found = self._first_order(val_batch)
            else:
                value, found = self._second_order(train_batch, val_batch, train_gradients)
        for alpha, gradient in zip(self.network.alphas(), found, strict=True):
            alpha.grad = gradient
        return value

    def _first_order(self, val_batch: Batch) -> tuple[Tensor, list[Tensor]]:
        with frozen(self.network.weights()):
            value = self._value(self.forward, self.val_loss, val_batch)
            return value.detach(), self.gradient(value, self.network.alphas())

    def _second_order(
        self, train_batch: Batch, val_batch: Batch, train_gradients: TrainGradients | None
    ) -> tuple[Tensor, list[Tensor]]:
        weights, alphas = self.network.weights(), self.network.alphas()
        saved = [w.detach().clone() for w in weights]
        try:
            if train_gradients is None:
                states = random_states(weights)
                value = self._value(self.forward, self.loss, train_batch)
                train_gradients = TrainGradients(self.gradient(value, weights), states)
            rates = self._virtual_step(weights, train_gradients.gradients)
            value = self._value(self.forward, self.val_loss, val_batch)
            both = self.gradient(value, [*alphas, *weights])
            found, at_virtual = both[: len(alphas)], both[len(alphas) :]
            direction = torch._foreach_mul(at_virtual, rates)  # u
            norm = torch.stack(torch._foreach_norm(direction)).double().norm()
            if norm > 0:
                epsilon = self.displacement / norm.item()
                product = self._hessian_product(train_batch, weights, saved, direction, epsilon, train_gradients.states)
                found = [g - p for g, p in zip(found, product, strict=True)]
        finally:
            _copy(weights, saved)  # copies, never arithmetic: bit for bit
        return value.detach(), found

    @torch.no_grad()
    def _virtual_step(self, weights: Sequence[Tensor], gradients: Sequence[Tensor]) -> list[float]:
        """Moves the weights as SGD would; returns ``-dw'/d grad`` of each tensor, a scalar each."""
        groups = {id(p): group for group in self.weight_optimizer.param_groups for p in group["params"]}
        rates = []
        for w, gradient in zip(weights, gradients, strict=True):
            group = groups.get(id(w))
            if group is None or not w.requires_grad:  # what the optimiser does not train stays where it is
                rates.append(0.0)
                continue
            momentum, nesterov = group["momentum"], group["nesterov"]
            step = gradient.neg() if group.get("maximize") else gradient
            step = step + group["weight_decay"] * w
            share = 1.0  # d step / d gradient
            if momentum:
                buffer = self.weight_optimizer.state.get(w, {}).get("momentum_buffer")
                kept = 1.0 if buffer is None else 1.0 - group["dampening"]
                moved = step if buffer is None else momentum * buffer + kept * step
                step, share = (step + momentum * moved, 1.0 + momentum * kept) if nesterov else (moved, kept)
            learning_rate = float(group["lr"])
            w.sub_(learning_rate * step)
            rates.append(-learning_rate * share if group.get("maximize") else learning_rate * share)
        return rates

    def _hessian_product(
        self,
        train_batch: Batch,
        weights: Sequence[nn.Parameter],
        saved: list[Tensor],
        direction: Sequence[Tensor],
        epsilon: float,
        states: RandomStates,
    ) -> list[Tensor]:
        """``d^2 L_train / (d alpha d w) . direction`` at the saved weights, by central differences."""
        displaced = []
        for sign in (1.0, -1.0):
            _copy(weights, torch._foreach_add(saved, list(direction), alpha=sign * epsilon))
            with _randomness(states), frozen(weights):
                value = self._value(self.network, self.loss, train_batch)
                displaced.append(self.gradient(value, self.network.alphas()))
        return [(plus - minus) / (2.0 * epsilon) for plus, minus in zip(*displaced, strict=True)]

    def _value(self, forward: Callable[[Tensor], Any], loss: Loss, batch: Batch) -> Tensor:
        images, identities = batch
        found = loss(forward(images), identities)
        return found[0] if isinstance(found, tuple) else found


def gradients(value: Tensor, parameters: Sequence[nn.Parameter], keep: bool = False) -> list[Tensor]:
    """Gradients without touching ``.grad``; zeros for what the value does not depend on or what is frozen.

    Args:
        value: a scalar.
        parameters: what to differentiate by.
        keep: keep the graph for another gradient.
    """
    active = [p for p in parameters if p.requires_grad]
    found = dict(
        zip(
            map(id, active),
            torch.autograd.grad(value, active, retain_graph=keep or None, allow_unused=True),
            strict=True,
        )
    )
    listed = [found.get(id(p)) for p in parameters]
    return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, listed, strict=True)]


@torch.no_grad()
def _copy(targets: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    if targets:
        torch._foreach_copy_(list(targets), list(values))


@contextmanager
def unchanged_buffers(network: SearchableNetwork) -> Iterator[None]:
    """Puts the buffers (batch norm statistics) back after the block, bit for bit."""
    buffers = list(network.buffers())
    saved = [buffer.clone() for buffer in buffers]
    try:
        yield
    finally:
        _copy(buffers, saved)


@contextmanager
def frozen(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Sets ``requires_grad=False`` for these parameters inside the block."""
    active = [p for p in parameters if p.requires_grad]
    for p in active:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in active:
            p.requires_grad_(True)


def random_states(weights: Sequence[Tensor]) -> dict[int | None, Tensor]:
    """The random states of the CPU (``None``) and of the GPUs that hold the weights."""
    devices = sorted({w.device.index or 0 for w in weights if w.device.type == "cuda"})
    return {None: torch.get_rng_state(), **{device: torch.cuda.get_rng_state(device) for device in devices}}


@contextmanager
def _randomness(states: RandomStates) -> Iterator[None]:
    """Replays the random draws from these RNG states, then restores the current ones."""
    with torch.random.fork_rng([device for device in states if device is not None]):
        for device, state in states.items():
            if device is None:
                torch.set_rng_state(state)
            else:
                torch.cuda.set_rng_state(state, device)
        yield
