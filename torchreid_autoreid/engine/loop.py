"""A training loop that is reproducible: history, checkpoints, resume in the middle of an epoch, interruption."""

from __future__ import annotations

import json
import logging
import math
import reprlib
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

from ..checkpoint import LATEST, PREVIOUS, Checkpoint, forget_torn, load_checkpoint, load_state, save_checkpoint
from ..errors import Interrupted, UserError, differences
from ..evaluation import RetrievalResult
from ..evaluation.figures import FIGURES
from ..files import append_line, forget_half_written, naming, write_atomically
from ..parallel.batch_norm import unsynchronised_buffers
from ..parallel.group import group
from ..records import EpochRecord
from .evaluation import FaissEvaluationMixin, tell
from .ranked import write_queries
from .resume import load_like, load_optimizer, random_state, restore_random_state
from .tensorboard import begin_board

__all__ = [
    "Batch",
    "ReproducibleLoop",
    "check_settings",
    "classification_figures",
    "forget_later_epochs",
    "retrieval_figures",
]

_LOGGER = logging.getLogger(__name__)

Batch = tuple[Tensor, Tensor]

#: With these values, changing the number of processes changes results by rounding only.
WORLD_SIZE_INVARIANT = {
    "search.sync_batch_norm": True,
    "recipe.sync_batch_norm": True,
    "search.grad_sync": "mean",
    "search.skip_dropout": 0.0,
}


#: of a value in a message: long enough for a description of the data
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 100


@dataclass(frozen=True)
class RunOptions:
    """What :meth:`ReproducibleLoop.run` was asked for; the names are torchreid's."""

    print_freq: int = 10
    eval_freq: int = -1
    start_eval: int = 0
    dist_metric: str = "euclidean"
    normalize_feature: bool = False
    fixbase_epoch: int = 0
    open_layers: Any = None


class ReproducibleLoop(FaissEvaluationMixin):
    """Put before a torchreid engine: what a search and a training share around their steps.

    torchreid's own loop has no end but its last one, no middle to resume in, and saves and tests at places of its own;
    :meth:`_loop` takes its place, and the rest of the engine stays torchreid's.

    The engine's ``train_loader`` must be a :class:`~torchreid_autoreid.data.SearchLoader`, whose batches are a function
    of the epoch and the position. A subclass brings :meth:`_step`, :meth:`_validation_loaders`, and what it adds to the
    history and to the checkpoint.

    Args:
        distributed: run with all processes of ``torch.distributed``: each builds the same engine over its share of the
            batches, all take the same steps, and the first one alone writes.
        grad_sync: ``mean`` or ``sum`` of the gradients of all processes.
        …: torchreid's own.

    Attributes:
        group: the processes.
        stop_requested: set it, in a signal handler for instance, to finish the step, or the batch of an evaluation,
            write a checkpoint and raise :class:`~torchreid_autoreid.errors.Interrupted`.
        on_step: called with (epoch, batch, batches, figures) after each step, in the place of the lines of the log;
            epochs and batches from 0.
        on_epoch: called after each epoch with its :class:`~torchreid_autoreid.records.EpochRecord`.
        keep_last: 1 keeps the latest checkpoint and the one before besides the best, N the newest N by number too; 0
            keeps the best only and cannot be resumed.
        checkpoint_every: epochs between checkpoints that are kept for good; 0 keeps none.
        settings: name -> plain value of what the result depends on. It is kept in the checkpoints, and a run resumes
            from one with the same settings only; none are compared where one side has none.
        configuration: name -> plain value of all keys, kept in the checkpoints for commands that go on from them.
    """

    # torchreid's own
    datamanager: Any
    epoch: int
    max_epoch: int
    batch_idx: int
    num_batches: int
    model: Any
    optimizer: Any
    scheduler: Any
    writer: Any
    train_loader: Any
    get_current_lr: Callable[[], float]
    parse_data_for_train: Callable[[Any], tuple[Tensor, Tensor]]
    set_model_mode: Callable[[str], None]
    two_stepped_transfer_learning: Callable[[int, int, Any], None]
    update_lr: Callable[[], None]

    #: what a checkpoint must hold to be resumed
    checkpoint_keys: tuple[str, ...] = ("state_dict", "epoch", "optimizer", "scheduler", "loop", "random")
    #: of TensorBoard, see :func:`~torchreid_autoreid.engine.tensorboard.begin_board`
    board_pages: tuple[str, ...] = ("Training",)
    #: nearest gallery images of a query that ``queries.json`` keeps of the best measurement; 0: there is no such file
    kept_answers = 0
    #: keys suggested in the error when a loss diverges
    rates = "train.lr"
    #: the key that clips the gradient
    clip = "recipe.grad_clip"

    def __init__(self, *args: Any, distributed: bool = False, grad_sync: str = "mean", **keywords: Any) -> None:
        super().__init__(*args, **keywords)
        self.distributed = distributed
        self.group = group(distributed, grad_sync)
        self.stop_requested = False
        self.on_step: Callable[[int, int, int, Mapping[str, float]], None] | None = None
        self.on_epoch: Callable[[Any], None] | None = None
        self.keep_last = 1
        self.checkpoint_every = 0
        self.settings: dict[str, Any] = {}
        self.configuration: dict[str, Any] = {}
        self.save_dir = Path("log")
        self._options = RunOptions()
        self._first_batch = 0  # of this epoch, after a resume in its middle
        self._seconds = 0.0  # spent in this epoch before a resume
        self._epoch_started = 0.0
        self._epoch_rate = 0.0
        self._steps_done = False  # of this epoch: what is left of it is its evaluation
        self._pace = _Pace()
        self._sums: dict[str, list[float]] = {}  # name -> [sum over batches, number of batches], of this epoch
        self._best = -1.0
        self._ended = ""  # why the run has ended before its last epoch

    # -- what a subclass brings ---------------------------------------------------------------------------------------

    def _step(self, batch: Any) -> dict[str, float]:
        """One step of training; returns its figures."""
        raise NotImplementedError

    def _batch(self, data: Any) -> Any:
        """What :meth:`_step` takes; loads what it needs besides the loader's batch."""
        return self._to_device(data)

    def _validation_loaders(self) -> dict[str, Any]:
        """``{'query': loader, 'gallery': loader}`` by which the best checkpoint is chosen."""
        raise NotImplementedError

    def _begin_epoch(self) -> None:
        """Called before the first step of an epoch, or of what is left of it."""

    def _is_complete(self) -> bool:
        """Asked before each epoch: whether there is nothing left to train."""
        return False

    def _reason_to_end(self) -> str:
        """Called once after the steps of an epoch: why the run ends with it, or nothing."""
        return ""

    def _is_measured(self, number: int) -> bool:
        """Whether an epoch, from 1, ends with a measurement on the validation set; the last one always does."""
        every = self._options.eval_freq
        return every > 0 and number >= self._options.start_eval and number % every == 0

    def _end_steps(self) -> None:
        """Called after the last step of an epoch, however it ended."""

    def _record(self, means: Mapping[str, float], result: RetrievalResult | None, **common: Any) -> EpochRecord:
        """The record of an epoch.

        Args:
            means: of the figures of all steps of the epoch.
            result: on the validation set, if the epoch ends with a measurement.
            common: what the loop itself knows of it, by the names of the record.
        """
        raise NotImplementedError

    def _write_results(self) -> None:
        """Files that are written anew after each epoch, before the checkpoint."""

    def _write_board(self, record: Any) -> None:
        """What TensorBoard gets after an epoch."""

    def _state(self) -> dict[str, Any]:
        """What a checkpoint holds besides the keys of all loops."""
        return {}

    def _restore(self, state: Mapping[str, Any], path: str | Path) -> None:
        """The inverse of :meth:`_state`."""

    def _network(self) -> nn.Module:
        """The network itself, out of any wrapper."""
        return self.model.module if isinstance(self.model, nn.DataParallel) else self.model

    def _tested_state(self) -> dict[str, Tensor]:
        """The weights that are evaluated and deployed."""
        return self._network().state_dict()

    # -- the loop -----------------------------------------------------------------------------------------------------

    def _run(self, save_dir: str, max_epoch: int, start_epoch: int, options: RunOptions) -> None:
        self.save_dir, self.max_epoch, self._options = Path(save_dir), max_epoch, options
        with self.group.together():
            if self.group.rank == 0:
                self.save_dir.mkdir(parents=True, exist_ok=True)
                forget_half_written(self.save_dir)
                forget_torn(self.save_dir)
                forget_later_epochs(self.save_dir / "history.jsonl", start_epoch)
        self.group.check_same("at the start", **self._shared())
        if start_epoch >= max_epoch or self._ended:
            with self.group.together():
                if self.group.rank == 0:
                    self._write_results()  # perhaps into another folder
            return
        self.writer = SummaryWriter(save_dir) if self.group.rank == 0 else None
        if self.writer is not None:
            begin_board(self.writer, self.board_pages, self.configuration, self.settings)
        try:
            self._loop(start_epoch, max_epoch)
        finally:
            self._end_steps()
            if self.writer is not None:
                with naming(self.save_dir):
                    self.writer.close()
                self.writer = None

    def _loop(self, start_epoch: int, max_epoch: int) -> None:
        for self.epoch in range(start_epoch, max_epoch):
            if self._is_complete():
                return
            self._before_epoch()
            with self.group.together(UserError):  # an image that one process cannot read
                batches = enumerate(self.train_loader, start=self._first_batch)
                for self.batch_idx, data in batches:
                    self._pace.loaded()
                    figures = self.forward_backward(data)
                    self._pace.stepped()
                    self._after_step(figures)
            self._after_steps()
            self._finish_epoch(time.monotonic() - self._epoch_started)
            self._first_batch, self._steps_done = 0, False
            if self._ended:
                _LOGGER.info("ended early: %s", self._ended)
                return

    def _before_epoch(self) -> None:
        if self._first_batch == 0:
            self._sums, self._seconds = {}, 0.0
        self._epoch_started = time.monotonic() - self._seconds
        self._pace = _Pace()
        self.train_loader.set_epoch(self.epoch, self._first_batch)
        self.num_batches = self.train_loader.num_batches(self.epoch)
        self._begin_epoch()
        self.set_model_mode("train")
        self.two_stepped_transfer_learning(self.epoch, self._options.fixbase_epoch, self._options.open_layers)

    def forward_backward(self, data: Any) -> dict[str, float]:
        """One step on a batch of the loader; returns its figures."""
        batch = self._batch(data)
        self.group.agree()
        return self._step(batch)

    def _after_step(self, figures: Mapping[str, float]) -> None:
        for name, value in figures.items():
            total = self._sums.setdefault(name, [0.0, 0])
            total[0] += value
            total[1] += 1
        if self.on_step is not None:
            self.on_step(self.epoch, self.batch_idx, self.num_batches, figures)
        elif (self.batch_idx + 1) % self._options.print_freq == 0:
            tell(self._line(figures))
        if self.writer is not None:
            step = self.epoch * self.num_batches + self.batch_idx
            with naming(self.save_dir):
                for name, value in {**self._pace.means(), **self._means(), "lr": self.get_current_lr()}.items():
                    self.writer.add_scalar(f"Train/{name}", value, step)
        if self.group.any(self.stop_requested):
            self._interrupt(self.batch_idx + 1)

    def _after_steps(self) -> None:
        self._end_steps()
        if (
            not self._steps_done
        ):  # else it was resumed in its evaluation, and the rate is that of the next epoch already
            self._epoch_rate = self.get_current_lr()
            self.update_lr()
            self._steps_done = True

    def _means(self) -> dict[str, float]:
        """Of the figures of all steps of this epoch so far."""
        return {name: total / count for name, (total, count) in self._sums.items()}

    def _line(self, figures: Mapping[str, float]) -> str:
        """A step in the log, as torchreid prints it."""
        done, means, pace = self.batch_idx + 1, self._means(), self._pace
        left = self.num_batches - done + (self.max_epoch - self.epoch - 1) * self.num_batches
        return "  ".join(
            [
                f"epoch: [{self.epoch + 1}/{self.max_epoch}][{done}/{self.num_batches}]",
                *(f"{name} {pace.last[name]:.3f} ({mean:.3f})" for name, mean in pace.means().items()),
                f"eta {timedelta(seconds=int(pace.means()['time'] * left))}",
                *(f"{name} {value:.4f} ({means[name]:.4f})" for name, value in figures.items()),
                f"lr {self.get_current_lr():.6f}",
            ]
        )

    # -- torchreid's hooks ---------------------------------------------------------------------------------------------

    def _features_of(self, images: Tensor) -> Tensor:
        if self.stop_requested and self.group.size == 1:  # the others of a group would wait for this process's part
            latest = self.save_dir / LATEST
            raise Interrupted(str(latest) if latest.exists() else "")
        return super()._features_of(images)

    def save_model(self, epoch: int, rank1: float, save_dir: str, is_best: bool = False) -> None:
        """Writes the latest checkpoint, and the best or a periodic one where it is due."""
        if self.group.rank == 0:
            self._save(epoch + 1, 0, rank1, is_best)

    def _reduce_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Makes the gradients those of all processes."""
        if self.group.size > 1:
            found = [p.grad for p in parameters if p.grad is not None]
            for gradient, reduced in zip(found, self.group.reduced(found), strict=True):
                gradient.copy_(reduced)

    def _average_buffers(self) -> None:
        """Keeps the state of all processes the same where each has batch-norm statistics of its own."""
        if self.group.size > 1 and (buffers := unsynchronised_buffers(self._network())):
            self.group.average(buffers)

    def _shared(self) -> dict[str, Any]:
        """What all processes must hold bit for bit, by name."""
        return {"weights": self._network().state_dict().values()}

    def _to_device(self, data: Any) -> Batch:
        images, identities = self.parse_data_for_train(data)
        device = next(self.model.parameters()).device
        return images.to(device, non_blocking=True), identities.to(device, non_blocking=True)

    def _check_finite(self, what: str, value: float) -> None:
        if math.isfinite(value):
            return
        latest = self.save_dir / LATEST
        kept = (
            f"the last good state is kept in {latest}"
            if latest.exists()
            else "no epoch has ended yet, so nothing is kept"
        )
        raise UserError(
            f"the {what} became {value} at epoch {self.epoch + 1}, "
            f"step {self.batch_idx + 1} of {self.num_batches}; {kept}; lower {self.rates}, or clip the gradient "
            f"({self.clip})"
        )

    # -- one epoch ----------------------------------------------------------------------------------------------------

    def _finish_epoch(self, seconds: float) -> None:
        number = self.epoch + 1
        self._ended = self._reason_to_end()
        last = number == self.max_epoch or bool(self._ended)
        result = self._retrieval() if last or self._is_measured(number) else None
        record = self._record(
            self._means(),
            result,
            epoch=number,
            epochs=self.max_epoch,
            seconds=round(seconds, 3),
            retrieval=None if result is None else retrieval_figures(result),
            ended=self._ended,
        )
        is_best = result is not None and self._quality(result) > self._best
        if result is not None and is_best:
            self._best = self._quality(result)
        self.group.check_same(f"after epoch {number}", **self._shared())
        with self.group.together():
            if self.group.rank == 0:
                self._write_epoch(record, float(result.cmc[0]) if result else 0.0, is_best, result)
        if self.on_epoch is not None:
            self.on_epoch(record)

    def _write_epoch(
        self, record: EpochRecord, rank1: float, is_best: bool, result: RetrievalResult | None = None
    ) -> None:
        # On disk first, or a power failure might leave a checkpoint that the history does not reach.
        append_line(self.save_dir / "history.jsonl", json.dumps(record.to_dict()))
        self._write_results()
        if result is not None and is_best and self.kept_answers:
            write_queries(self.save_dir, record.epoch, result, self._validation_loaders())
        self.save_model(record.epoch - 1, rank1, str(self.save_dir), is_best)
        if self.writer is not None:
            with naming(self.save_dir):
                self._write_board(record)

    def _quality(self, result: RetrievalResult) -> float:
        """What makes one measurement better than another."""
        return float(result.mAP)

    def _retrieval(self) -> RetrievalResult:
        """On the validation set. An interruption is one of the epoch that ends with it.

        A network that answers nearly the same for all images is measured as if it answered the same: that is chance,
        and no reason to end a run, of which it may be one candidate or an early epoch.
        """
        loaders, options = self._validation_loaders(), self._options
        try:
            return self.retrieve(
                loaders["query"],
                loaders["gallery"],
                dist_metric=options.dist_metric,
                normalize_feature=options.normalize_feature,
                topk=self.kept_answers,
                alike_is_chance=True,
            )
        except Interrupted:
            if self._steps_done:
                self._interrupt(self.num_batches)
            raise

    # -- checkpoints --------------------------------------------------------------------------------------------------

    def _save(self, epoch: int, batch: int, rank1: float, is_best: bool = False) -> None:
        state = {
            "state_dict": self._tested_state(),
            "epoch": epoch,
            "rank1": rank1,
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict() if self.scheduler else {},
            "loop": {
                "batch": batch,
                "sums": self._sums if batch else {},
                "seconds": time.monotonic() - self._epoch_started if batch else 0.0,
                "best": self._best,
                "steps_done": self._steps_done and batch > 0,
                "rate": self._epoch_rate,
                "ended": "" if batch else self._ended,  # in its last evaluation a run has not ended yet
                "processes": self.group.size,
            },
            "random": random_state(),
            "settings": self.settings,
            "configuration": self.configuration,
            **self._state(),
        }
        # The latest one last: a run that is broken off among these does the epoch again, and writes the others anew.
        if is_best:
            save_checkpoint(state, self.save_dir / "checkpoint-best.pth")
        if batch == 0:
            self._keep_epoch(state, epoch)
        if self.keep_last or batch:
            save_checkpoint(state, self.save_dir / LATEST, self.save_dir / PREVIOUS)

    def _keep_epoch(self, state: Mapping[str, Any], epoch: int) -> None:
        """Checkpoints of their own for periodic epochs and for the newest ones, if more than one is kept."""
        periodic = bool(self.checkpoint_every) and epoch % self.checkpoint_every == 0
        if periodic or self.keep_last > 1:
            save_checkpoint(state, self.save_dir / f"checkpoint-{epoch}.pth")
        old = epoch - self.keep_last
        if self.keep_last > 1 and not (self.checkpoint_every and old % self.checkpoint_every == 0):
            (self.save_dir / f"checkpoint-{old}.pth").unlink(missing_ok=True)

    def _interrupt(self, batch: int) -> NoReturn:
        """Stops before this batch of the epoch."""
        with self.group.together():  # none of them ends before the checkpoint is written
            if self.group.rank == 0:
                self._save(self.epoch, batch, rank1=0.0)
        raise Interrupted(str(self.save_dir / LATEST))

    def resume(self, checkpoint: str | Path | Checkpoint) -> int:
        """Restores everything a run depends on from a checkpoint; returns the epoch to go on with (0-based).

        The resumed run ends bit for bit as if it had never stopped, with any number of loader workers.

        Args:
            checkpoint: the file, or what has been read of it.

        Raises:
            UserError: if the file is not a checkpoint of such a run, of another network, or made with other settings.
        """
        return self._resume(load_checkpoint(checkpoint, self.checkpoint_keys))

    def _resume(self, state: Checkpoint) -> int:
        """As :meth:`resume`, from a checkpoint that has been read and holds what it must."""
        path = state.path
        try:
            # First: the weights of other images or sizes do not fit either.
            check_settings(self.settings, state.get("settings", {}), path)
            load_state(self._network(), state["state_dict"], path)
            self._restore(state, path)
            load_optimizer(self.optimizer, state["optimizer"])
            if self.scheduler is not None:
                load_like(self.scheduler, state["scheduler"])
            loop = state["loop"]
            self._first_batch, self._seconds = int(loop["batch"]), float(loop["seconds"])
            self._sums = {str(name): [float(total), int(count)] for name, (total, count) in loop["sums"].items()}
            self._best = float(loop["best"])
            self._steps_done, self._epoch_rate = bool(loop["steps_done"]), float(loop["rate"])
            if not (self._first_batch >= 0 and state["epoch"] >= 0):
                raise ValueError(f"epoch {state['epoch']}, batch {self._first_batch}")
            self._ended = str(loop.get("ended", ""))
            if (processes := int(loop.get("processes", 1))) != self.group.size:
                wanted = WORLD_SIZE_INVARIANT.items()
                others = [name for name, value in wanted if self.settings.get(name, value) != value]
                _LOGGER.warning(
                    "%s was written by %d processes, and now there are %d: the run goes on %s", path, processes,
                    self.group.size, f"otherwise than it would have, by {' and '.join(others)}" if others
                    else "as it would have up to rounding, not bit for bit",
                )  # fmt: skip
            restore_random_state(state["random"])
            if self.group.size > 1 and torch.cuda.is_available() and "cuda" in state["random"]:
                # The first process wrote it, and used its first GPU alone.
                torch.cuda.set_rng_state(state["random"]["cuda"][0])
            epoch = int(state["epoch"])
        except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError, RuntimeError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(
                f"{path} does not fit this run ({error}); resume with the configuration it was made with"
            ) from None
        _LOGGER.info("resumed from %s: epoch %d, batch %d", path, epoch + 1, self._first_batch + 1)
        return epoch


def check_settings(settings: Mapping[str, Any], made_with: Any, path: str | Path) -> None:
    """Compares what a run has been made with, as its checkpoint says, with the settings of the run that goes on.

    Most settings live on in the states that a checkpoint restores: another value would have half an effect.

    Args:
        settings: name -> plain value; see :class:`ReproducibleLoop`.
        made_with: the same of the checkpoint; what one side lacks is not compared.
        path: of the checkpoint, for the message.

    Raises:
        UserError: naming the first three that differ.
    """
    if not isinstance(made_with, Mapping):
        raise UserError(f"{path} describes its settings wrongly: {_SHORT.repr(made_with)}")
    others = [
        f"{name} {_SHORT.repr(then)} (now {_SHORT.repr(now)})"
        for name, now, then in differences(settings, made_with, lacking=False)
    ]
    if others:
        more = f" and {len(others) - 3} more" if len(others) > 3 else ""
        raise UserError(
            f"{path} was made with {', '.join(others[:3])}{more}; resume with the same values, "
            f"as in {Path(path).parent / 'config.yaml'}, or start afresh without --resume"
        )


def forget_later_epochs(path: Path, last_epoch: int) -> None:
    """Drops the history of epochs to be run again: a crash can fall between the history and the checkpoint."""
    if not path.exists():
        return
    kept = []
    for line in path.read_bytes().splitlines():
        try:
            if json.loads(line)["epoch"] <= last_epoch:
                kept.append(line + b"\n")
        except (ValueError, KeyError, TypeError, RecursionError):
            break  # a torn line is the last one
    write_atomically(path, lambda name: Path(name).write_bytes(b"".join(kept)))


class _Pace:
    """Seconds that steps take, and that they wait for their batch (``data``)."""

    def __init__(self) -> None:
        self.ended = time.monotonic()
        self.sums = {"time": 0.0, "data": 0.0}
        self.last = dict(self.sums)
        self.steps = 0

    def loaded(self) -> None:
        self.last["data"] = time.monotonic() - self.ended

    def stepped(self) -> None:
        now = time.monotonic()
        self.last["time"], self.ended = now - self.ended, now
        self.steps += 1
        for name, seconds in self.last.items():
            self.sums[name] += seconds

    def means(self) -> dict[str, float]:
        return {name: total / max(1, self.steps) for name, total in self.sums.items()}


@torch.no_grad()
def classification_figures(logits: Tensor, identities: Tensor, ranks: Iterable[int] = (1, 5, 10)) -> dict[str, float]:
    """Top-k accuracy (fractions) of (B, K) logits; classes that tie with the true one are in any order, on average.

    torchreid's ``metrics.accuracy`` fails for more ranks than classes, and for any k > 1 with today's PyTorch.

    >>> classification_figures(torch.zeros(2, 100), torch.tensor([3, 7]))  # a network that has collapsed knows nothing
    {'top1': 0.01, 'top5': 0.05, 'top10': 0.1}
    """
    own = logits.gather(1, identities[:, None])
    better = (~(logits <= own)).sum(dim=1)  # how many classes score above the true one; all, if it is no number
    tied = (logits == own).sum(dim=1).clamp(min=1)  # with itself
    return {f"top{k}": float(((k - better).double() / tied).clamp(0, 1).mean()) for k in ranks}


def retrieval_figures(result: RetrievalResult) -> dict[str, float | int]:
    """The figures of the history; a gallery smaller than ten repeats its last rank."""
    ranks = {f"rank{k}": float(result.cmc[min(k, len(result.cmc)) - 1]) for k in (1, 5, 10)}
    shown = {name: value for name, value in result.figures.items() if FIGURES[name].label}
    return {**shown, **ranks, "num_valid_queries": int(result.num_valid_queries)}
