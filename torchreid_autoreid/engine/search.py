"""The search inside torchreid's training loop: alphas and weights in turn (Auto-ReID, algorithm 1)."""

from __future__ import annotations

import copy
import json
import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchreid
from torch import Tensor, nn

from ..errors import Interrupted, UserError
from ..evaluation import Embeddings, RetrievalResult, evaluate
from ..files import write_atomically
from ..genotype import Genotype, num_edges
from ..limits import check_choice, check_values
from ..queries import ANSWERS
from ..records import SearchRecord
from ..search.architect import Architect, TrainGradients, frozen, gradients, random_states, unchanged_buffers
from ..search.budget import Budget
from ..search.losses import RetrievalLoss, ScaleFreeLoss
from ..search.objective import AlphaObjective
from ..search.schedule import Schedule
from ..search.selection import Mixtures, select_by_perturbation
from ..space.networks import AutoReIDSearchNetwork
from ..space.strategies import EpochValues, Gdas
from .loop import Batch, ReproducibleLoop, RunOptions, classification_figures
from .precision import MixedPrecision
from .resume import load_like, load_optimizer
from .tensorboard import write_epoch

__all__ = ["ImageAutoReIDSearchEngine", "step_figures"]

_LOGGER = logging.getLogger(__name__)


class ImageAutoReIDSearchEngine(ReproducibleLoop, torchreid.engine.Engine):
    """Searches an architecture: a step of the alphas on ``D_alpha``, then one of the weights on ``D_w``.

    In the first order the weights' gradient is taken after the alphas have moved, as in DARTS. In the second order both
    gradients are taken before either moves: the virtual step of the alphas' gradient is the very step that the weights
    then take (but for its clipping), and its gradient is computed once.

    Args:
        datamanager: a :class:`~torchreid_autoreid.data.SearchDataManager`.
        model: the search network.
        optimizer: of ``model.weights()``; the alphas are not in it.
        alpha_optimizer: of ``model.alphas()``.
        scheduler: of ``optimizer``, stepped once an epoch; ``None`` keeps the rate.
        loss: the retrieval loss of the weights.
        alpha_loss: that of the alphas, :class:`~torchreid_autoreid.search.losses.ScaleFreeLoss` by default; on an
            identity split they see its triplet part only, because the classifier has never seen the identities of
            ``D_alpha``.
        order: of the alphas' gradient, 1 or 2.
        grad_clip: largest norm of the weights' gradient; 0 switches clipping off.
        warmup_epochs: epochs in which the alphas stay frozen.
        real_alpha_every: the alphas use ``D_alpha`` on every n-th epoch after the warm-up, beginning with the first,
            and fresh batches of ``D_w`` on the others.
        derive_renormalised: derive genotypes from strengths renormalised without ``none``.
        skip_cap: skip connections that a derived normal cell keeps at most; -1: any number.
        stop_at_skips: the search ends after the first epoch whose normal cell, before any cap, has as many skip
            connections while that of an earlier epoch had fewer, and its genotype is the one of the last such epoch
            (DARTS+, Liang et al., 2019, section 3.2, criterion 1, which takes 2); epochs of the warm-up do not count;
            0: off.
        selection: ``strength`` derives the genotype from the alphas, ``perturbation`` chooses it at the end of the
            search by :func:`~torchreid_autoreid.search.selection.select_by_perturbation`; ``halving`` is that of
            ``strength``, and whoever runs the search lets it compete.
        perturbation_batches: batches of ``D_alpha`` on which the network without an operation is measured: the mAP of
            all their images among one another.
        perturbation_steps: steps of the weights on ``D_w`` after each choice, at a tenth of the first learning rate.
        schedule: of what changes by epoch, see :class:`~torchreid_autoreid.search.schedule.Schedule`.
        checkpoint_every: keep a checkpoint every n epochs besides the latest and the best; 0 keeps none.
        budget: limits on the cost of the derived network, which the alphas learn to keep and the genotype keeps.
        amp: ``none``, ``bfloat16`` or ``float16`` (on a GPU, with a scaled loss: where a gradient overflows, neither
            the alphas nor the weights take their step, and the scale is halved). The finite differences of the second
            order stay in float32.
        distributed: search with all processes of ``torch.distributed``, each of which builds the same engine over its
            share of the batches (``SearchDataManager(share=…)``). Features and logits are joined before the loss. The
            step is that of one process on the whole batch if batch norm is synchronised
            (:func:`~torchreid_autoreid.parallel.batch_norm.synchronise_batch_norm`).
        grad_sync: ``mean`` or ``sum`` of the gradients of all processes, of the weights and of the alphas.
        use_gpu: use the GPU if there is one.

    Raises:
        UserError: if an optimiser has parameters of the other, or an argument is out of range.
    """

    kept_answers = ANSWERS
    checkpoint_keys = (*ReproducibleLoop.checkpoint_keys, "alpha_optimizer")
    rates = "train.lr or search.alpha_lr"
    clip = "search.grad_clip"

    def __init__(
        self,
        datamanager: Any,
        model: AutoReIDSearchNetwork,
        optimizer: torch.optim.Optimizer,
        alpha_optimizer: torch.optim.Optimizer,
        scheduler: Any = None,
        loss: RetrievalLoss | None = None,
        alpha_loss: RetrievalLoss | None = None,
        order: int = 1,
        grad_clip: float = 5.0,
        warmup_epochs: int = 0,
        real_alpha_every: int = 1,
        derive_renormalised: bool = False,
        skip_cap: int = -1,
        stop_at_skips: int = 0,
        selection: str = "strength",
        perturbation_batches: int = 4,
        perturbation_steps: int = 10,
        schedule: Schedule | None = None,
        checkpoint_every: int = 0,
        budget: Budget | None = None,
        amp: str = "none",
        distributed: bool = False,
        grad_sync: str = "mean",
        use_gpu: bool = True,
    ) -> None:
        super().__init__(datamanager, use_gpu, distributed=distributed, grad_sync=grad_sync)
        _check_parameters("optimizer", optimizer, model.weights())
        _check_parameters("alpha_optimizer", alpha_optimizer, model.alphas())
        check_values(
            "search", real_alpha_every=real_alpha_every, checkpoint_every=checkpoint_every, grad_clip=grad_clip,
            skip_cap=skip_cap, stop_at_skips=stop_at_skips, perturbation_batches=perturbation_batches,
            perturbation_steps=perturbation_steps,
        )  # fmt: skip
        check_choice("search.selection", selection, "selection")
        if warmup_epochs < 0:  # the key has -1 for a share of the search
            raise UserError(f"warmup_epochs must be at least 0, not {warmup_epochs!r}")
        self.model, self.optimizer, self.scheduler = model, optimizer, scheduler
        self.alpha_optimizer = alpha_optimizer
        self.register_model("model", model, optimizer, scheduler)
        self.loss = loss or RetrievalLoss()
        self.precision = MixedPrecision(amp, next(model.parameters()).device.type, "search.amp")
        self.grad_clip = grad_clip
        self.warmup_epochs = warmup_epochs
        self.real_alpha_every = real_alpha_every
        self.derive_renormalised = derive_renormalised
        self.skip_cap = None if skip_cap < 0 else skip_cap
        self.stop_at_skips = stop_at_skips
        self.selection = selection
        self.perturbation_batches, self.perturbation_steps = perturbation_batches, perturbation_steps
        self.schedule = schedule or Schedule()
        self.checkpoint_every = checkpoint_every
        self.board_pages = ("Search", "Operations") if budget is None else ("Search", "Operations", "Cost")
        self.budget = budget
        self.alpha_loss = alpha_loss or ScaleFreeLoss(self.loss.loss_lambda, self.loss.margin, self.loss.label_smooth)
        if getattr(datamanager, "split", "image") == "identity":
            self.alpha_loss = type(self.alpha_loss)(0.0, self.alpha_loss.margin)
        self.objective = AlphaObjective(
            model,
            self.alpha_loss,
            step_figures,
            self.group.joined,
            lambda value, parameters: self._gradient(value, parameters, keep=True),
            self.schedule.dirichlet_weight,
            budget,
            derive_renormalised,
        )
        self.architect = Architect(
            model,
            lambda outputs, identities: self.loss(*self.group.joined((outputs, identities)))[0],
            optimizer,
            order,
            val_loss=self.objective,
            forward=self._forward,
            gradient=self._gradient,
        )
        self._alpha_batches: Iterator[Any] | None = None
        self._last_genotype: Genotype | None = None  # of the epoch before
        self._kept_genotype: Genotype | None = None  # of the present alphas, once an epoch's steps are done
        self._before_collapse: Genotype | None = None
        self._selected: Genotype | None = None

    # -- torchreid's hooks ------------------------------------------------------------------------------------------

    def run(
        self,
        save_dir: str = "log",
        max_epoch: int = 0,
        start_epoch: int = 0,
        print_freq: int = 10,
        eval_freq: int = 1,
        dist_metric: str = "euclidean",
        normalize_feature: bool = False,
    ) -> Genotype:
        """Searches from ``start_epoch`` (or from where :meth:`resume` left off) to ``max_epoch``.

        Args:
            save_dir: log folder; see the README for what it holds.
            max_epoch: epochs in all.
            start_epoch: 0-based.
            print_freq: batches between two lines of the log.
            eval_freq: epochs between two evaluations of the held-out half; -1: only after the last one.
            dist_metric, normalize_feature: of that evaluation, as in torchreid.

        Returns:
            The genotype, also in ``save_dir/genotype.json``.

        Raises:
            UserError: if a loss is not finite; the last good checkpoint is kept.
            Interrupted: if ``stop_requested`` was set; the checkpoint to resume from has been written.
        """
        options = RunOptions(print_freq, eval_freq, 0, dist_metric, normalize_feature)
        self._run(save_dir, max_epoch, start_epoch, options)
        if self.selection == "perturbation":
            with self.group.together(UserError):  # an image that one process cannot read
                self._select(max_epoch)
            self.group.check_same("after the selection", genotype=json.dumps(self.genotype().to_dict()))
            with self.group.together():
                if self.group.rank == 0:
                    self._write_results()
        return self.genotype()

    def test(self, *_: Any, **__: Any) -> float:
        """Rank-1 on the held-out half (not on the targets' test sets, which a search never looks at)."""
        return float(self._retrieval().cmc[0])

    # -- one step -----------------------------------------------------------------------------------------------------

    def _batch(self, data: Any) -> tuple[Batch, Batch | None]:
        alpha_batch = None if self._alpha_batches is None else self._to_device(next(self._alpha_batches))
        return self._to_device(data), alpha_batch

    def _step(self, batches: tuple[Batch, Batch | None]) -> dict[str, float]:
        batch, alpha_batch = batches
        scaler = self.precision.scaler
        before = None
        if alpha_batch is None:
            sound, summary = self._step_weights(batch)
        else:
            if scaler.is_enabled():
                before = copy.deepcopy((self.model.alphas(), self.alpha_optimizer.state_dict()))
            step = self._step_first_order if self.architect.order == 1 else self._step_second_order
            sound, summary = step(batch, alpha_batch)
        if before is not None and not sound:
            self._set_alphas(*before)
        elif alpha_batch is not None and self.budget is not None:
            self.budget.adapt(self._derived())
        scaler.update()
        self._average_buffers()
        return summary

    def _step_first_order(self, batch: Batch, alpha_batch: Batch) -> tuple[bool, dict[str, float]]:
        """Whether both steps have been taken, and their figures; so do the following."""
        sound, alpha_summary = self._step_alphas(batch, alpha_batch)
        sound, summary = self._step_weights(batch, sound)
        return sound, alpha_summary | summary

    def _step_second_order(self, batch: Batch, alpha_batch: Batch) -> tuple[bool, dict[str, float]]:
        weights = self.model.weights()
        states = random_states(weights)
        norm, summary = self._differentiate_weights(batch)
        if not self._sound("weight gradient", float(norm), weights):
            return False, summary
        sound, alpha_summary = self._step_alphas(batch, alpha_batch, TrainGradients.of(weights, states))
        return self._move_weights(norm, sound), alpha_summary | summary

    def _step_alphas(
        self, train_batch: Batch, alpha_batch: Batch, train_gradients: TrainGradients | None = None
    ) -> tuple[bool, dict[str, float]]:
        alphas, scaler = self.model.alphas(), self.precision.scaler
        self.alpha_optimizer.zero_grad()
        value = self.architect.backward(train_batch, alpha_batch, train_gradients)
        if not scaler.is_enabled():  # else an overflow before the virtual step is the likely cause
            self._check_finite("alpha loss", float(value))
        if scaler.is_enabled():  # it must see the gradient in its own unit, to notice an overflow
            for alpha in alphas:
                alpha.grad = scaler.scale(alpha.grad)
            scaler.unscale_(self.alpha_optimizer)
        norm = torch.nn.utils.get_total_norm([alpha.grad for alpha in alphas if alpha.grad is not None])
        if not self._sound("alpha gradient", float(norm), alphas):
            return False, {}
        self.alpha_optimizer.step()
        return True, {f"alpha_{name}": value for name, value in self.objective.figures.items()}

    def _step_weights(self, batch: Batch, alphas_stepped: bool = True) -> tuple[bool, dict[str, float]]:
        """Whether the step has been taken (never without that of the alphas), and its figures."""
        norm, summary = self._differentiate_weights(batch)
        return self._move_weights(norm, alphas_stepped), summary

    def _differentiate_weights(self, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        """Sets the gradient of the weights, over all processes; returns its norm and the figures."""
        scaler = self.precision.scaler
        with frozen(self.model.alphas()):
            outputs, identities = self.group.joined((self._forward(batch[0]), batch[1]))
            total, parts = self.loss(outputs, identities)
            self._check_finite("weight loss", float(parts["loss"]))
            self.optimizer.zero_grad()
            scaler.scale(total).backward()
        weights = self.model.weights()
        self._reduce_gradients(weights)
        scaler.unscale_(self.optimizer)
        norm = torch.nn.utils.get_total_norm([w.grad for w in weights if w.grad is not None])
        return norm, step_figures(parts, outputs[0], identities)

    def _move_weights(self, norm: Tensor, alphas_stepped: bool) -> bool:
        """Takes the step, clipped, where the gradient is sound and the alphas have taken theirs; whether it did."""
        weights = self.model.weights()
        torch.nn.utils.clip_grads_with_norm_(weights, self.grad_clip or math.inf, norm)
        sound = self._sound("weight gradient", float(norm), weights) and alphas_stepped
        if sound:
            self.optimizer.step()
        return sound

    def _forward(self, images: Tensor) -> Any:
        return self.precision.forward(self.model, images)

    def _gradient(self, value: Tensor, parameters: Sequence[nn.Parameter], keep: bool = False) -> list[Tensor]:
        """The gradient over all processes; in float16 of the scaled loss, and then divided by the scale."""
        scaler = self.precision.scaler
        found = self.group.reduced(gradients(scaler.scale(value), parameters, keep))
        scale = scaler.get_scale()
        return found if scale == 1 else [gradient / scale for gradient in found]

    def _sound(self, what: str, norm: float, parameters: Iterable[nn.Parameter]) -> bool:
        """Whether a gradient can be followed: not if it has overflowed in float16, which a smaller scale cures.

        Raises:
            UserError: if it is not finite for another reason.
        """
        if math.isfinite(norm):
            return True
        found = [p.grad for p in parameters if p.grad is not None]
        overflow = self.precision.scaler.get_scale() > 1 and not all(bool(g.isfinite().all()) for g in found)
        if not overflow:
            self._check_finite(what, norm)
        return False

    @torch.no_grad()
    def _set_alphas(self, values: Sequence[Tensor], optimizer: dict[str, Any]) -> None:
        for alpha, value in zip(self.model.alphas(), values, strict=True):
            alpha.copy_(value)
        self.alpha_optimizer.load_state_dict(optimizer)

    def _strengths_of_edges(self) -> dict[str, Tensor]:
        return self.model.strengths(self.derive_renormalised)

    # -- one epoch ----------------------------------------------------------------------------------------------------

    def _validation_loaders(self) -> dict[str, Any]:
        return self.datamanager.held_out_loaders

    def _begin_epoch(self) -> None:
        self.objective.values = self.schedule.at(self.epoch, self.max_epoch)
        self.model.set_epoch_values(self.objective.values)
        self._kept_genotype = None
        self._alpha_batches = self._open_alpha_batches()
        if self._first_batch == 0:
            self.objective.gradient_norms = None

    def _open_alpha_batches(self) -> Iterator[Any] | None:
        since = self.epoch - self.warmup_epochs
        if since < 0:
            return None
        real = since % self.real_alpha_every == 0
        loader = self.datamanager.alpha_loader if real else self.datamanager.alpha_substitute_loader
        return iter(loader.batches(self.epoch, self._first_batch, len(self.train_loader)))

    def _end_steps(self) -> None:
        close = getattr(self._alpha_batches, "close", None)
        if close is not None:
            close()  # ends its loader workers now rather than at some garbage collection
        self._alpha_batches = None

    def _reason_to_end(self) -> str:
        self._kept_genotype = self._kept()  # derived once an epoch: the alphas stay as they are until the next one
        if not self.stop_at_skips or self.epoch < self.warmup_epochs:
            return ""
        skips = self.model.genotype(self.derive_renormalised).count("skip_connect")["normal"]
        if skips < self.stop_at_skips:
            self._before_collapse = self._kept()
        elif self._before_collapse is not None:
            return (
                f"the normal cell of epoch {self.epoch + 1} has {skips} skip connections (search.stop_at_skips "
                f"{self.stop_at_skips}); the genotype is that of the last epoch with fewer"
            )
        return ""

    def _record(self, means: Mapping[str, float], result: RetrievalResult | None, **common: Any) -> SearchRecord:
        probabilities = self.model.probabilities()
        genotype = self._kept()
        none = self.model.operations.index("none")
        return SearchRecord(
            operations=self.model.operations,
            w={name: mean for name, mean in means.items() if not name.startswith("alpha_")},
            alpha={name[6:]: mean for name, mean in means.items() if name.startswith("alpha_")} or None,
            # The scheduler has stepped already; the rate of this epoch is the one before.
            lr={"w": self._epoch_rate, "alpha": self.alpha_optimizer.param_groups[0]["lr"]},
            alphas={kind: alpha.tolist() for kind, alpha in self.model.architecture.named_parameters()},
            probabilities={kind: rows.tolist() for kind, rows in probabilities.items()},
            none_mass={kind: rows[:, none].mean().item() for kind, rows in probabilities.items()},
            genotype=genotype,
            skips=genotype.count("skip_connect"),
            diagnosis=self._diagnosis(probabilities, genotype),
            scheduled=self._scheduled(),
            cost=None if self.budget is None else self._cost(genotype),
            **common,
        )

    def _diagnosis(self, probabilities: Mapping[str, Tensor], genotype: Genotype) -> dict[str, Any]:
        """What tells whether the alphas learn what they should.

        The norm of their gradient by part of the loss at the epoch's first step, the entropy of the operations as a
        share of the largest (1: undecided), and how many of the genotype's edges are not those of the epoch before.
        """
        changed = None if self._last_genotype is None else genotype.changed_edges(self._last_genotype)
        self._last_genotype = genotype
        entropy = {
            kind: float(torch.special.entr(rows.double()).sum(dim=1).mean()) / math.log(rows.shape[1])
            for kind, rows in probabilities.items()
        }
        return {"alpha_gradient": self.objective.gradient_norms or None, "entropy": entropy, "changed_edges": changed}

    def _cost(self, genotype: Genotype) -> dict[str, Any]:
        assert self.budget is not None
        with torch.no_grad():
            return self.budget.figures(self._derived(), genotype, self._strengths_of_edges())

    def _scheduled(self) -> dict[str, float]:
        """Scheduled values of this epoch, of the options that are switched on."""
        options = ("auxiliary_skip", "beta_weight", "skip_dropout")
        names = [name for name in options if getattr(self.schedule, name)]
        names += ["tau"] if isinstance(self.model.strategy, Gdas) else []
        return {name: getattr(self.objective.values, name) for name in names}

    def _write_results(self) -> None:
        write_atomically(self.save_dir / "genotype.json", self.genotype().save)

    def _write_board(self, record: SearchRecord) -> None:
        write_epoch(self.writer, record)

    def _state(self) -> dict[str, Any]:
        kept = self._before_collapse
        return {
            "alpha_optimizer": self.alpha_optimizer.state_dict(),
            "before_collapse": None if kept is None else kept.to_dict(),
            "budget": None if self.budget is None else self.budget.state_dict(),
            "last_genotype": None if self._last_genotype is None else self._last_genotype.to_dict(),
            "alpha_gradients": self.objective.gradient_norms,
            "scaler": self.precision.scaler.state_dict(),
        }

    def _restore(self, state: Mapping[str, Any], path: str | Path) -> None:
        self._kept_genotype = None
        load_optimizer(self.alpha_optimizer, state["alpha_optimizer"])
        kept = state.get("before_collapse")
        self._before_collapse = None if kept is None else Genotype.from_dict(kept)
        last = state["last_genotype"]
        self._last_genotype = None if last is None else Genotype.from_dict(last)
        self.objective.gradient_norms = state["alpha_gradients"]
        budget: Any = state.get("budget")
        if (self.budget is None) != (budget is None):
            raise ValueError(f"it was made {'without' if budget is None else 'with'} search.budget")
        if self.budget is not None:
            self.budget.load_state_dict(budget)
        if self.precision.scaler.is_enabled() and state.get("scaler"):
            load_like(self.precision.scaler, state["scaler"])

    def _shared(self) -> dict[str, Any]:
        return {
            "alphas": self.model.alphas(),
            "genotype": json.dumps(self.genotype().to_dict()),
            **super()._shared(),
        }

    def genotype(self) -> Genotype:
        """The answer so far: the genotype that the present alphas stand for, unless the search has ended otherwise."""
        if self._selected is not None:
            return self._selected
        if self._ended and self._before_collapse is not None:
            return self._before_collapse
        return self._kept()

    def _kept(self) -> Genotype:
        """The genotype that the present alphas stand for, or the strongest one that keeps the budget."""
        if self._kept_genotype is not None:
            return self._kept_genotype
        derived = self._derived()
        return derived if self.budget is None else self.budget.fit(derived, self._strengths_of_edges())

    def _derived(self) -> Genotype:
        return self.model.genotype(self.derive_renormalised, skip_cap=self.skip_cap)

    # -- selection by perturbation ------------------------------------------------------------------------------------

    def _select(self, epochs: int) -> None:
        """Chooses the genotype; batches and orders depend on the seed alone, so that a resumed search chooses the same.

        An interruption starts the selection anew, from the checkpoint of the last epoch.
        """
        self.model.set_epoch_values(EpochValues())
        self.model.train()
        loader = self.datamanager.alpha_loader
        held_out = [self._to_device(batch) for batch in loader.batches(epochs, 0, self.perturbation_batches)]
        self.group.agree()
        choices = 2 * (num_edges(self.model.blocks) + self.model.blocks)
        tuning = self.train_loader.batches(epochs, 0, max(1, choices * self.perturbation_steps))
        for (
            group
        ) in self.optimizer.param_groups:  # the cosine has ended near zero; DARTS-PT's code begins anew at a tenth
            group["lr"] = group.get("initial_lr", group["lr"]) / 10
        self.optimizer.state.clear()
        made = count(1)

        def measure(mixtures: Mixtures) -> float:
            self._stop_selection()
            self.model.mixtures = mixtures
            with torch.no_grad(), unchanged_buffers(self.model):
                answers = [self.group.joined((self._forward(images)[1], pids)) for images, pids in held_out]
                return 1.0 - mean_ap_among(*(torch.cat(each) for each in zip(*answers, strict=True)))

        def tune(mixtures: Mixtures) -> None:
            _LOGGER.info("selection by perturbation: choice %d of %d", next(made), choices)
            self.model.mixtures = mixtures
            for _ in range(self.perturbation_steps):
                self._stop_selection()
                batch = self._to_device(next(tuning))
                self.group.agree()
                self._step_weights(batch)
                self.precision.scaler.update()
                self._average_buffers()

        try:
            self._selected = select_by_perturbation(
                self.model.drawn_mixtures(training=False),
                self.model.operations,
                self.model.blocks,
                measure,
                tune,
                loader.seed,
            )
        finally:
            self.model.mixtures = None
            tuning.close()  # ends its loader workers

    def _stop_selection(self) -> None:
        if self.group.any(self.stop_requested):
            raise Interrupted(str(self.save_dir / "checkpoint.pth"))


def mean_ap_among(features: Tensor, identities: Tensor) -> float:
    """The mAP of (N, D) features among one another, each of them the query of all others; by cosine distance.

    >>> mean_ap_among(torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.1, 1.0]]), torch.tensor([0, 0, 1, 1]))
    1.0
    """
    # Cameras of their own, so that the protocol leaves out a query itself and nothing else.
    images = Embeddings(features.float().cpu().numpy(), identities.cpu().numpy(), np.arange(len(features)))
    return float(evaluate(images, images, metric="cosine").mAP)


def _check_parameters(name: str, optimizer: torch.optim.Optimizer, expected: list[torch.nn.Parameter]) -> None:
    """torchreid's build_optimizer takes every parameter it is shown; alphas and weights must not mix."""
    wanted = {id(p) for p in expected}
    given = {id(p) for group in optimizer.param_groups for p in group["params"]}
    if given != wanted:
        raise UserError(
            f"{name} must hold exactly its own {len(wanted)} parameters ({len(given - wanted)} are foreign, "
            f"{len(wanted - given)} are missing); build it from model.weights() or model.alphas()"
        )


def step_figures(parts: Mapping[str, Tensor], logits: Tensor, identities: Tensor) -> dict[str, float]:
    """The loss and its parts, and top-1/5/10 accuracy (fractions)."""
    return {name: float(part) for name, part in parts.items()} | classification_figures(logits, identities)
