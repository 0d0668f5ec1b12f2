"""torchreid's engines for images with what strong ReID training expects: EMA, mixed precision, exact resume."""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torchreid
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ..checkpoint import load_state
from ..errors import UserError
from ..evaluation import RetrievalResult
from ..records import EpochRecord, TrainingRecord
from ..search.losses import batch_hard_triplet
from .loop import Batch, ReproducibleLoop, RunOptions, classification_figures
from .precision import MixedPrecision, check_precision
from .resume import load_like

_LOGGER = logging.getLogger(__name__)
#: logits that differ by no more are the same
ALIKE = 1e-4

__all__ = ["ImageSoftmaxTrainingEngine", "ImageTripletTrainingEngine", "Recipe", "build_scheduler"]


@dataclass(frozen=True)
class Recipe:
    """How to train beyond torchreid's own options; the defaults change nothing.

    Args:
        grad_clip: largest norm of the gradient; 0: off.
        ema_decay: of an exponential moving average of weights and batch-norm statistics, in [0, 1); the average is what
            is tested and saved; 0: off.
        amp: ``none``, ``bfloat16`` or ``float16`` (on a GPU, with a scaled loss).
        auxiliary_weight: of the auxiliary classifier's cross-entropy, if the network has one.
        flip_test: the feature of testing is the mean over an image and its mirror image.
        keep_last, checkpoint_every: see :class:`~torchreid_autoreid.engine.loop.ReproducibleLoop`.
        description: of the network, kept in every checkpoint.

    Raises:
        UserError: if an argument is out of range.
    """

    grad_clip: float = 0.0
    ema_decay: float = 0.0
    amp: str = "none"
    auxiliary_weight: float = 0.0
    flip_test: bool = False
    keep_last: int = 1
    checkpoint_every: int = 0
    description: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.ema_decay < 1:
            raise UserError(f"ema_decay must be at least 0 and below 1, not {self.ema_decay!r}")
        if min(self.grad_clip, self.auxiliary_weight, self.keep_last, self.checkpoint_every) < 0:
            raise UserError("grad_clip, auxiliary_weight, keep_last and checkpoint_every must not be negative")
        check_precision(self.amp)


class _Training(ReproducibleLoop):
    """What both engines share; put before one of torchreid's.

    Args:
        recipe: see :class:`Recipe`.
        distributed: train with all processes of ``torch.distributed``, each of which builds the same engine over its
            share of the batches. The step is that of one process on the whole batch if batch norm is synchronised.
        …: torchreid's own; ``datamanager`` is a :class:`~torchreid_autoreid.data.TrainDataManager`.
    """

    checkpoint_keys = (*ReproducibleLoop.checkpoint_keys, "training")
    _tells_apart: bool | None = None  # whether a step of this epoch has; none has been made
    _collapsed = False

    def __init__(self, *args: Any, recipe: Recipe | None = None, **keywords: Any) -> None:
        super().__init__(*args, **keywords)
        self.recipe = recipe = recipe or Recipe()
        self.flip_test = recipe.flip_test
        self.keep_last, self.checkpoint_every = recipe.keep_last, recipe.checkpoint_every
        self.precision = MixedPrecision(recipe.amp, next(self.model.parameters()).device.type, "recipe.amp")
        self.scaler = self.precision.scaler
        self.average: AveragedModel | None = None
        if recipe.ema_decay:
            average = get_ema_multi_avg_fn(recipe.ema_decay)
            self.average = AveragedModel(self._network(), multi_avg_fn=average, use_buffers=True)

    def run(
        self,
        save_dir: str = "log",
        max_epoch: int = 0,
        start_epoch: int = 0,
        print_freq: int = 10,
        fixbase_epoch: int = 0,
        open_layers: Any = None,
        start_eval: int = 0,
        eval_freq: int = -1,
        dist_metric: str = "euclidean",
        normalize_feature: bool = False,
    ) -> None:
        """Trains to ``max_epoch``, from ``start_epoch`` or where :meth:`resume` left off; the options are torchreid's.

        In between, and after the last epoch, retrieval on ``datamanager.validation_loaders`` chooses the best
        checkpoint. :meth:`test` tests on the targets.

        Raises:
            UserError: if the loss is not finite; the last good checkpoint is kept.
            Interrupted: if ``stop_requested`` was set; the checkpoint to resume from has been written.
        """
        options = RunOptions(
            print_freq, eval_freq, start_eval, dist_metric, normalize_feature, fixbase_epoch, open_layers
        )
        self._run(save_dir, max_epoch, start_epoch, options)

    def extract_test_set(self, *args: Any, **keywords: Any) -> Any:
        with self._tested():
            return super().extract_test_set(*args, **keywords)

    # -- one step -----------------------------------------------------------------------------------------------------

    def _losses(self, outputs: Any, identities: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """The loss, its logits and its parts."""
        raise NotImplementedError

    def _step(self, batch: Batch) -> dict[str, float]:
        images, identities = batch
        options = {"return_auxiliary": True} if self.recipe.auxiliary_weight else {}
        # The loss is that of the whole batch, in every process.
        outputs, identities = self.group.joined((self.precision.forward(self.model, images, **options), identities))
        outputs, auxiliary = outputs if options else (outputs, None)
        total, logits, parts = self._losses(outputs, identities)
        if auxiliary is not None:
            parts["loss_auxiliary"] = self._cross_entropy(auxiliary, identities)
            total = total + self.recipe.auxiliary_weight * parts["loss_auxiliary"]
        self._check_finite("loss", total.item())
        self.optimizer.zero_grad()
        self.scaler.scale(total).backward()
        self._reduce_gradients(self.model.parameters())
        self._clip()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self._average_buffers()
        if self.average is not None:
            self.average.update_parameters(self._network())
        logits = logits.detach()
        self._tells_apart = bool(self._tells_apart or (logits - logits[0]).abs().amax() > ALIKE)
        figures = {"loss": total.item()} | {name: part.item() for name, part in parts.items()}
        return figures | classification_figures(logits, identities)

    def _before_epoch(self) -> None:
        super()._before_epoch()
        self._tells_apart = None

    def _after_steps(self) -> None:
        super()._after_steps()
        if self._tells_apart is False and not self._collapsed:
            _LOGGER.warning(
                "epoch %d: the network gives all images of a batch the same answer, from which nothing can be learned; "
                "if it stays so, start again with a lower train.lr (the rate is %.2g now)",
                self.epoch + 1,
                self._epoch_rate,
            )
        self._collapsed = self._tells_apart is False

    def _clip(self) -> None:
        if not self.recipe.grad_clip and self.scaler.is_enabled():
            return
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.grad_clip or math.inf)
        if not self.scaler.is_enabled():  # a scaler passes over such a step and lowers its scale
            self._check_finite("gradient", norm.item())

    def _cross_entropy(self, logits: Any, identities: Tensor) -> Tensor:
        raise NotImplementedError

    # -- what the loop asks for ---------------------------------------------------------------------------------------

    def _validation_loaders(self) -> dict[str, Any]:
        return self.datamanager.validation_loaders

    def _record(self, means: Mapping[str, float], result: RetrievalResult | None, **common: Any) -> EpochRecord:
        return TrainingRecord(train=means, lr=self._epoch_rate, **common)

    def _write_board(self, record: Any) -> None:
        for name, value in (record.retrieval or {}).items():
            self.writer.add_scalar(f"Validation/{name}", value, record.epoch)
        for name, value in record.train.items():
            self.writer.add_scalar(f"Epoch/{name}", value, record.epoch)
        self.writer.flush()

    def _tested_state(self) -> dict[str, Tensor]:
        return self._tested_network().state_dict()

    def _tested_network(self) -> nn.Module:
        return self._network() if self.average is None else self.average.module

    @contextlib.contextmanager
    def _tested(self) -> Iterator[None]:
        """Puts the average in the place of the network."""
        if self.average is None:
            yield
            return
        trained, self.model = self.model, self.average.module
        try:
            yield
        finally:
            self.model = trained

    def _shared(self) -> dict[str, Any]:
        average = {} if self.average is None else {"averaged_weights": self.average.module.state_dict().values()}
        return super()._shared() | average

    def _state(self) -> dict[str, Any]:
        training: dict[str, Any] = {"scaler": self.scaler.state_dict(), "averaged": 0}
        if self.average is not None:
            training |= {"state_dict": self._network().state_dict(), "averaged": int(self.average.n_averaged)}
        described = {"network": dict(self.recipe.description)} if self.recipe.description else {}
        return {"training": training, **described}

    def _restore(self, state: Mapping[str, Any], path: str | Path) -> None:
        training = state["training"]
        self._check_description(state.get("network"), path)
        if (self.average is not None) != ("state_dict" in training):
            raise UserError(
                f"{path} was made with another recipe.ema_decay; resume with the configuration it was made with"
            )
        if self.average is not None:
            load_state(self.average.module, state["state_dict"], path)
            self.average.n_averaged.fill_(int(training["averaged"]))
            load_state(self._network(), training["state_dict"], path)
        if self.scaler.is_enabled():
            load_like(self.scaler, training["scaler"])

    def _check_description(self, found: Any, path: str | Path) -> None:
        """Networks may have the same weights and yet compute something else: by wiring, stride, neck or input."""
        wanted = self.recipe.description
        if not wanted or not isinstance(found, Mapping):
            return
        for key, value in wanted.items():
            if _plain(found.get(key)) != _plain(value):
                raise UserError(
                    f"{path} was made with another network: its {key} is {found.get(key)!r}, here {value!r}; "
                    "resume with the configuration it was made with"
                )


def _plain(value: Any) -> Any:
    """For comparison: tuples as lists, and a genotype without its name."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items() if key != "name"}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


class ImageSoftmaxTrainingEngine(_Training, torchreid.engine.ImageSoftmaxEngine):
    """torchreid's ``ImageSoftmaxEngine``: cross-entropy on the identity."""

    def _losses(self, outputs: Any, identities: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        return self._cross_entropy(outputs, identities), _first(outputs), {}

    def _cross_entropy(self, logits: Any, identities: Tensor) -> Tensor:
        return self.compute_loss(self.criterion, logits, identities)


class ImageTripletTrainingEngine(_Training, torchreid.engine.ImageTripletEngine):
    """torchreid's ``ImageTripletEngine``: batch-hard triplet loss on the feature, and cross-entropy on the identity.

    The triplet loss is ours, which is torchreid's for ordinary batches and finite for all others.
    """

    def _losses(self, outputs: Any, identities: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        logits, features = outputs
        parts = {}
        total = identities.new_zeros((), dtype=torch.float32)
        if self.weight_t > 0:
            # hacnn has several features; torchreid averages over them too
            listed = [features] if isinstance(features, Tensor) else list(features)
            losses = [batch_hard_triplet(each, identities, self.criterion_t.margin) for each in listed]
            parts["loss_t"] = torch.stack(losses).mean()
            total = total + self.weight_t * parts["loss_t"]
        if self.weight_x > 0:
            parts["loss_x"] = self._cross_entropy(logits, identities)
            total = total + self.weight_x * parts["loss_x"]
        return total, _first(logits), parts

    def _cross_entropy(self, logits: Any, identities: Tensor) -> Tensor:
        return self.compute_loss(self.criterion_x, logits, identities)


def build_scheduler(
    optimizer: torch.optim.Optimizer,
    name: str,
    max_epoch: int,
    stepsize: Any = 1,
    gamma: float = 0.1,
    min_lr: float = 0.0,
    warmup_epochs: int = 0,
    warmup_factor: float = 0.1,
) -> Any:
    """torchreid's scheduler, with a linear warm-up before it and an end of the cosine above zero.

    Args:
        optimizer: whose rates are set.
        name, max_epoch, stepsize, gamma: torchreid's own; steps are counted from the first epoch, warm-up included.
        min_lr: where the cosine ends.
        warmup_epochs: epochs in which the rate rises linearly from ``warmup_factor`` of itself; 0: none.
        warmup_factor: in (0, 1].

    Returns:
        A scheduler to be stepped once an epoch.
    """
    warmup = None
    if warmup_epochs:
        warmup = torch.optim.lr_scheduler.LinearLR(optimizer, warmup_factor, total_iters=warmup_epochs)
    if name == "cosine":  # torchreid's own ends at zero, and would begin its fall in the warm-up
        cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max_epoch - warmup_epochs, min_lr)
        if warmup is None:
            return cosine
        return torch.optim.lr_scheduler.SequentialLR(optimizer, [warmup, cosine], [warmup_epochs])
    main = torchreid.optim.build_lr_scheduler(optimizer, name, stepsize=stepsize, gamma=gamma, max_epoch=max_epoch)
    return main if warmup is None else torch.optim.lr_scheduler.ChainedScheduler([warmup, main])


def _first(logits: Any) -> Tensor:
    """The logits of a network, or of the first of its classifiers (pcb has several)."""
    return logits[0] if isinstance(logits, list | tuple) else logits
