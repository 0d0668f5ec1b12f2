"""The search inside torchreid's training loop: alphas and weights in turn (Auto-ReID, algorithm 1)."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torchreid
from torch import Tensor

from ..architect import Architect
from ..checkpoint import load_optimizer, write_atomically
from ..errors import UserError
from ..genotype import Genotype
from ..losses import RetrievalLoss
from ..networks import AutoReIDSearchNetwork
from .board import write_epoch
from .loop import Batch, ReproducibleLoop, classification_figures

__all__ = ["ImageAutoReIDSearchEngine"]

_LOGGER = logging.getLogger(__name__)


class ImageAutoReIDSearchEngine(ReproducibleLoop, torchreid.engine.Engine):
    """Searches an architecture: a step of the alphas on ``D_alpha``, then one of the weights on ``D_w``.

    The alphas move first, as in DARTS, so that the virtual step of the second order is the very step that the weights
    take next.

    Args:
        datamanager: a :class:`~torchreid_autoreid.data.SearchDataManager`.
        model: the search network.
        optimizer: of ``model.weights()``; the alphas are not in it.
        alpha_optimizer: of ``model.alphas()``.
        scheduler: of ``optimizer``, stepped once an epoch; ``None`` keeps the rate.
        loss: the retrieval loss; on an identity split the alphas see its triplet part only, because the classifier has
            never seen the identities of ``D_alpha``.
        order: of the alphas' gradient, 1 or 2.
        grad_clip: largest norm of the weights' gradient; 0 switches clipping off.
        warmup_epochs: epochs in which the alphas stay frozen.
        real_alpha_every: the alphas use ``D_alpha`` on every n-th epoch after the warm-up, beginning with the first,
            and fresh batches of ``D_w`` on the others.
        derive_renormalised: derive genotypes from strengths renormalised without ``none``.
        checkpoint_every: keep a checkpoint every n epochs besides the latest and the best; 0 keeps none.
        use_gpu: use the GPU if there is one.

    Raises:
        UserError: if an optimiser has parameters of the other, or an argument is out of range.
    """

    checkpoint_keys = (*ReproducibleLoop.checkpoint_keys, "alpha_optimizer")
    rates = "train.lr or search.alpha_lr"

    def __init__(
        self,
        datamanager: Any,
        model: AutoReIDSearchNetwork,
        optimizer: torch.optim.Optimizer,
        alpha_optimizer: torch.optim.Optimizer,
        scheduler: Any = None,
        loss: RetrievalLoss | None = None,
        order: int = 1,
        grad_clip: float = 5.0,
        warmup_epochs: int = 0,
        real_alpha_every: int = 1,
        derive_renormalised: bool = False,
        checkpoint_every: int = 0,
        use_gpu: bool = True,
    ) -> None:
        super().__init__(datamanager, use_gpu)
        _check_parameters("optimizer", optimizer, model.weights())
        _check_parameters("alpha_optimizer", alpha_optimizer, model.alphas())
        if real_alpha_every < 1:
            raise UserError(f"real_alpha_every must be at least 1, not {real_alpha_every!r}")
        if warmup_epochs < 0 or checkpoint_every < 0 or not grad_clip >= 0:
            raise UserError("warmup_epochs, checkpoint_every and grad_clip must not be negative")
        self.model, self.optimizer, self.scheduler = model, optimizer, scheduler
        self.alpha_optimizer = alpha_optimizer
        self.register_model("model", model, optimizer, scheduler)
        self.loss = loss or RetrievalLoss()
        self.grad_clip = grad_clip
        self.warmup_epochs = warmup_epochs
        self.real_alpha_every = real_alpha_every
        self.derive_renormalised = derive_renormalised
        self.checkpoint_every = checkpoint_every
        val_loss = self.loss
        if getattr(datamanager, "split", "image") == "identity":
            val_loss = RetrievalLoss(0.0, self.loss.margin)
        self.architect = Architect(
            model,
            lambda outputs, identities: self.loss(outputs, identities)[0],
            optimizer,
            order,
            val_loss=lambda outputs, identities: self._alpha_loss(val_loss, outputs, identities),
        )
        self._alpha_batches: Iterator[Any] | None = None
        self._alpha_parts: dict[str, float] = {}

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
        self._run(save_dir, max_epoch, start_epoch, print_freq, eval_freq, 0, dist_metric, normalize_feature)
        return self.genotype()

    def test(self, *_: Any, **__: Any) -> float:
        """Rank-1 on the held-out half (not on the targets' test sets, which a search never looks at)."""
        return float(self._retrieval().cmc[0])

    # -- one step -----------------------------------------------------------------------------------------------------

    def _step(self, batch: Batch) -> dict[str, float]:
        summary = {}
        if self._alpha_batches is not None:
            alpha_summary = self._step_alphas(batch, self._to_device(next(self._alpha_batches)))
            summary = {f"alpha_{name}": value for name, value in alpha_summary.items()}
        return summary | self._step_weights(batch)

    def _step_alphas(self, train_batch: Batch, alpha_batch: Batch) -> dict[str, float]:
        self.alpha_optimizer.zero_grad()
        value = self.architect.backward(train_batch, alpha_batch)
        self._check_finite("alpha loss", float(value))
        norm = torch.nn.utils.get_total_norm([alpha.grad for alpha in self.model.alphas() if alpha.grad is not None])
        self._check_finite("alpha gradient", float(norm))
        self.alpha_optimizer.step()
        return self._alpha_parts

    def _step_weights(self, batch: Batch) -> dict[str, float]:
        outputs = self.model(batch[0])
        total, parts = self.loss(outputs, batch[1])
        self._check_finite("weight loss", float(parts["loss"]))
        self.optimizer.zero_grad()
        total.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.weights(), self.grad_clip or math.inf)
        self._check_finite("weight gradient", float(norm))
        self.optimizer.step()
        return _summary(parts, outputs[0], batch[1])

    def _alpha_loss(self, loss: RetrievalLoss, outputs: tuple[Tensor, Tensor], identities: Tensor) -> Tensor:
        total, parts = loss(outputs, identities)
        self._alpha_parts = _summary(parts, outputs[0], identities)
        return total

    # -- one epoch ----------------------------------------------------------------------------------------------------

    def _validation_loaders(self) -> dict[str, Any]:
        return self.datamanager.held_out_loaders

    def _begin_epoch(self) -> None:
        self._alpha_batches = self._open_alpha_batches()

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

    def _record(self, means: Mapping[str, float]) -> dict[str, Any]:
        """A line of history.jsonl; the format is in the README."""
        probabilities = self.model.probabilities()
        genotype = self.genotype()
        none = self.model.operations.index("none")
        return {
            "operations": list(self.model.operations),
            "w": {name: mean for name, mean in means.items() if not name.startswith("alpha_")},
            "alpha": {name[6:]: mean for name, mean in means.items() if name.startswith("alpha_")} or None,
            # The scheduler has stepped already; the rate of this epoch is the one before.
            "lr": {"w": self._epoch_rate, "alpha": self.alpha_optimizer.param_groups[0]["lr"]},
            "alphas": {kind: alpha.tolist() for kind, alpha in self.model.architecture.named_parameters()},
            "probabilities": {kind: rows.tolist() for kind, rows in probabilities.items()},
            "none_mass": {kind: rows[:, none].mean().item() for kind, rows in probabilities.items()},
            "genotype": genotype.to_dict(),
            "skips": genotype.count("skip_connect"),
        }

    def _write_results(self) -> None:
        write_atomically(self.save_dir / "genotype.json", self.genotype().save)

    def _write_board(self, record: Mapping[str, Any]) -> None:
        write_epoch(self.writer, record)

    def _state(self) -> dict[str, Any]:
        return {"alpha_optimizer": self.alpha_optimizer.state_dict()}

    def _restore(self, state: Mapping[str, Any], path: str | Path) -> None:
        load_optimizer(self.alpha_optimizer, state["alpha_optimizer"])

    def genotype(self) -> Genotype:
        """The genotype that the present alphas stand for."""
        return self.model.genotype(self.derive_renormalised)


def _check_parameters(name: str, optimizer: torch.optim.Optimizer, expected: list[torch.nn.Parameter]) -> None:
    """torchreid's build_optimizer takes every parameter it is shown; alphas and weights must not mix."""
    wanted = {id(p) for p in expected}
    given = {id(p) for group in optimizer.param_groups for p in group["params"]}
    if given != wanted:
        raise UserError(
            f"{name} must hold exactly its own {len(wanted)} parameters ({len(given - wanted)} are foreign, "
            f"{len(wanted - given)} are missing); build it from model.weights() or model.alphas()"
        )


def _summary(parts: Mapping[str, Tensor], logits: Tensor, identities: Tensor) -> dict[str, float]:
    """The loss and its parts, and top-1/5/10 accuracy (fractions)."""
    return {name: float(part) for name, part in parts.items()} | classification_figures(logits, identities)
