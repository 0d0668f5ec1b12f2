"""The search inside torchreid's training loop: alphas and weights in turn (Auto-ReID, algorithm 1)."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torchreid
from torch import Tensor

from ..architect import Architect
from ..checkpoint import (
    load_checkpoint,
    load_state,
    random_state,
    restore_random_state,
    save_checkpoint,
    write_atomically,
)
from ..errors import Interrupted, UserError
from ..evaluation import RetrievalResult
from ..genotype import Genotype
from ..losses import RetrievalLoss
from ..networks import AutoReIDSearchNetwork
from .board import write_epoch
from .evaluation import FaissEvaluationMixin

__all__ = ["ImageAutoReIDSearchEngine"]

_LOGGER = logging.getLogger(__name__)

#: What a checkpoint of a search holds besides torchreid's keys.
_CHECKPOINT_KEYS = ("state_dict", "epoch", "optimizer", "scheduler", "alpha_optimizer", "search", "random")

Batch = tuple[Tensor, Tensor]


class ImageAutoReIDSearchEngine(FaissEvaluationMixin, torchreid.engine.Engine):
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
        self.stop_requested = False  # set by a signal handler: finish the step, save, raise Interrupted
        self.on_step: Callable[[int, int, int, Mapping[str, float]], None] | None = None
        self.on_epoch: Callable[[Mapping[str, Any]], None] | None = None
        self.save_dir = Path("log")
        self._alpha_batches: Iterator[Any] | None = None
        self._alpha_parts: dict[str, float] = {}
        self._first_batch = 0  # of this epoch, after a resume in its middle
        self._seconds = 0.0  # spent in this epoch before a resume
        self._epoch_started = 0.0
        self._epoch_rate = self.get_current_lr()
        self._eval_freq = 1
        self._test_options = ("euclidean", False)
        self._sums: dict[str, list[float]] = {}  # name -> [sum over batches, number of batches], of this epoch
        self._best_map = -1.0
        self._last_test: tuple[int, RetrievalResult] | None = None

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
        self.save_dir = Path(save_dir)
        self.save_dir.mkdir(parents=True, exist_ok=True)
        self._eval_freq, self._test_options = eval_freq, (dist_metric, normalize_feature)
        self._forget_later_epochs(start_epoch)
        if start_epoch < max_epoch:
            try:
                super().run(save_dir, max_epoch, start_epoch, print_freq)
            finally:
                self._close_alpha_batches()
                if self.writer is not None:
                    self.writer.close()
        return self.genotype()

    def train(self, print_freq: int = 10, fixbase_epoch: int = 0, open_layers: Any = None) -> None:
        started = time.monotonic()
        if self._first_batch == 0:
            self._sums = {}
            self._seconds = 0.0
        self._epoch_started = started - self._seconds
        self.train_loader.set_epoch(self.epoch, self._first_batch)
        self._alpha_batches = self._open_alpha_batches()
        super().train(print_freq, fixbase_epoch, open_layers)
        self._close_alpha_batches()
        self._first_batch = 0
        self._finish_epoch(time.monotonic() - self._epoch_started)

    def forward_backward(self, data: Any) -> dict[str, float]:
        # torchreid counts the batches of this pass; after a resume the epoch has begun elsewhere.
        self.num_batches += self._first_batch if self.batch_idx == 0 else 0
        self.batch_idx += self._first_batch
        batch = self._to_device(data)
        summary = {}
        if self._alpha_batches is not None:
            alpha_summary = self._step_alphas(batch, self._to_device(next(self._alpha_batches)))
            summary = {f"alpha_{name}": value for name, value in alpha_summary.items()}
        summary |= self._step_weights(batch)
        for name, value in summary.items():
            total = self._sums.setdefault(name, [0.0, 0])
            total[0] += value
            total[1] += 1
        if self.on_step is not None:
            self.on_step(self.epoch, self.batch_idx, self.num_batches, summary)
        if self.stop_requested:
            self._interrupt()
        return summary

    def save_model(self, epoch: int, rank1: float, save_dir: str, is_best: bool = False) -> None:
        """Writes the latest checkpoint, and the best or a periodic one where it is due."""
        self._save(Path(save_dir), epoch + 1, 0, rank1, is_best)

    def test(self, *_: Any, **__: Any) -> float:
        """Rank-1 on the held-out half (not on the targets' test sets, which a search never looks at)."""
        return float(self._retrieval().cmc[0])

    # -- one step -----------------------------------------------------------------------------------------------------

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

    def _check_finite(self, what: str, value: float) -> None:
        if math.isfinite(value):
            return
        latest = self.save_dir / "checkpoint.pth"
        kept = (
            f"the last good state is kept in {latest}"
            if latest.exists()
            else "no epoch has ended yet, so nothing is kept"
        )
        raise UserError(
            f"the {what} became {value} at epoch {self.epoch + 1}, step {self.batch_idx + 1} of {self.num_batches}; "
            f"{kept}; lower train.lr or search.alpha_lr, or set search.grad_clip"
        )

    def _to_device(self, data: Any) -> Batch:
        images, identities = self.parse_data_for_train(data)
        device = next(self.model.parameters()).device
        return images.to(device, non_blocking=True), identities.to(device, non_blocking=True)

    # -- one epoch ----------------------------------------------------------------------------------------------------

    def _open_alpha_batches(self) -> Iterator[Any] | None:
        since = self.epoch - self.warmup_epochs
        if since < 0:
            return None
        real = since % self.real_alpha_every == 0
        loader = self.datamanager.alpha_loader if real else self.datamanager.alpha_substitute_loader
        return iter(loader.batches(self.epoch, self._first_batch, len(self.train_loader)))

    def _close_alpha_batches(self) -> None:
        close = getattr(self._alpha_batches, "close", None)
        if close is not None:
            close()  # ends its loader workers now rather than at some garbage collection
        self._alpha_batches = None

    def _finish_epoch(self, seconds: float) -> None:
        last = self.epoch + 1 == self.max_epoch
        due = last or (self._eval_freq > 0 and (self.epoch + 1) % self._eval_freq == 0)
        result = self._retrieval() if due else None
        record = self._record(seconds, result)
        rank1 = float(result.cmc[0]) if result else 0.0
        is_best = result is not None and result.mAP > self._best_map
        if result is not None and is_best:
            self._best_map = float(result.mAP)
        with open(self.save_dir / "history.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        write_atomically(self.save_dir / "genotype.json", self.genotype().save)
        self.save_model(self.epoch, rank1, str(self.save_dir), is_best)
        if self.writer is not None:
            write_epoch(self.writer, record)
        if self.on_epoch is not None:
            self.on_epoch(record)

    def _record(self, seconds: float, result: RetrievalResult | None) -> dict[str, Any]:
        """A line of history.jsonl; the format is in the README."""
        probabilities = self.model.probabilities()
        genotype = self.genotype()
        none = self.model.operations.index("none")
        means = {name: total / count for name, (total, count) in self._sums.items()}
        return {
            "epoch": self.epoch + 1,
            "epochs": self.max_epoch,
            "seconds": round(seconds, 3),
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
            "retrieval": None if result is None else _retrieval_figures(result),
        }

    def update_lr(self, names: Any = None) -> None:
        self._epoch_rate = self.get_current_lr()
        super().update_lr(names)

    def _retrieval(self) -> RetrievalResult:
        if self._last_test is None or self._last_test[0] != self.epoch:
            metric, normalised = self._test_options
            loaders = self.datamanager.held_out_loaders
            result = self.retrieve(
                loaders["query"], loaders["gallery"], dist_metric=metric, normalize_feature=normalised
            )
            self._last_test = (self.epoch, result)
        return self._last_test[1]

    def genotype(self) -> Genotype:
        """The genotype that the present alphas stand for."""
        return self.model.genotype(self.derive_renormalised)

    # -- checkpoints --------------------------------------------------------------------------------------------------

    def _save(self, save_dir: Path, epoch: int, batch: int, rank1: float, is_best: bool = False) -> None:
        state = {
            "state_dict": self.model.state_dict(),
            "epoch": epoch,
            "rank1": rank1,
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict() if self.scheduler else {},
            "alpha_optimizer": self.alpha_optimizer.state_dict(),
            "search": {
                "batch": batch,
                "sums": self._sums if batch else {},
                "seconds": time.monotonic() - self._epoch_started if batch else 0.0,
                "best_map": self._best_map,
                "order": self.architect.order,
            },
            "random": random_state(),
        }
        save_checkpoint(state, save_dir / "checkpoint.pth")
        if is_best:
            save_checkpoint(state, save_dir / "checkpoint-best.pth")
        if batch == 0 and self.checkpoint_every and epoch % self.checkpoint_every == 0:
            save_checkpoint(state, save_dir / f"checkpoint-{epoch}.pth")

    def _interrupt(self) -> None:
        path = self.save_dir / "checkpoint.pth"
        self._save(self.save_dir, self.epoch, self.batch_idx + 1, rank1=0.0)
        raise Interrupted(str(path))

    def resume(self, path: str | Path) -> int:
        """Restores everything a run depends on from a checkpoint; returns the epoch to go on with (0-based).

        The resumed run ends bit for bit as if it had never stopped, with any number of loader workers.

        Raises:
            UserError: if the file is not a checkpoint of a search, or of another network.
        """
        state = load_checkpoint(path, _CHECKPOINT_KEYS)
        load_state(self.model, state["state_dict"], path)
        try:
            self.optimizer.load_state_dict(state["optimizer"])
            self.alpha_optimizer.load_state_dict(state["alpha_optimizer"])
            if self.scheduler is not None:
                self.scheduler.load_state_dict(state["scheduler"])
            search = state["search"]
            self._first_batch, self._seconds = int(search["batch"]), float(search["seconds"])
            self._sums = {str(name): [float(total), int(count)] for name, (total, count) in search["sums"].items()}
            self._best_map = float(search["best_map"])
            restore_random_state(state["random"])
            epoch = int(state["epoch"])
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise UserError(
                f"{path} does not fit this search ({error}); resume with the configuration it was made with"
            ) from None
        _LOGGER.info("resumed from %s: epoch %d, batch %d", path, epoch + 1, self._first_batch + 1)
        return epoch

    def _forget_later_epochs(self, start_epoch: int) -> None:
        """Drops the history of epochs to be run again: a crash can fall between the history and the checkpoint."""
        path = self.save_dir / "history.jsonl"
        if not path.exists():
            return
        kept = []
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                if json.loads(line)["epoch"] <= start_epoch:
                    kept.append(line)
            except (ValueError, KeyError, TypeError):
                break  # a torn line is the last one
        text = "".join(f"{line}\n" for line in kept)
        write_atomically(path, lambda name: Path(name).write_text(text, encoding="utf-8"))


def _check_parameters(name: str, optimizer: torch.optim.Optimizer, expected: list[torch.nn.Parameter]) -> None:
    """torchreid's build_optimizer takes every parameter it is shown; alphas and weights must not mix."""
    wanted = {id(p) for p in expected}
    given = {id(p) for group in optimizer.param_groups for p in group["params"]}
    if given != wanted:
        raise UserError(
            f"{name} must hold exactly its own {len(wanted)} parameters ({len(given - wanted)} are foreign, "
            f"{len(wanted - given)} are missing); build it from model.weights() or model.alphas()"
        )


@torch.no_grad()
def _summary(parts: Mapping[str, Tensor], logits: Tensor, identities: Tensor) -> dict[str, float]:
    """The loss and its parts, and top-1/5/10 accuracy (fractions).

    torchreid's ``metrics.accuracy`` fails for more ranks than classes, and for any k > 1 with today's PyTorch.
    """
    own = logits.gather(1, identities[:, None])
    better = (logits > own).sum(dim=1)  # how many classes score above the true one
    accuracy = {f"top{k}": float((better < k).float().mean()) for k in (1, 5, 10)}
    return {name: float(part) for name, part in parts.items()} | accuracy


def _retrieval_figures(result: RetrievalResult) -> dict[str, float | int]:
    """The figures of the history; a gallery smaller than ten repeats its last rank."""
    ranks = {f"rank{k}": float(result.cmc[min(k, len(result.cmc)) - 1]) for k in (1, 5, 10)}
    return {
        "mAP": float(result.mAP),
        **ranks,
        "mINP": float(result.mINP),
        "num_valid_queries": int(result.num_valid_queries),
    }
