"""Searches that train derived networks for a short time and keep the best, as a plan says which and when."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
import torchreid
from torch import nn

from ..checkpoint import Checkpoint, load_checkpoint, load_state, save_checkpoint
from ..errors import UserError
from ..evaluation import RetrievalResult
from ..evaluation.figures import FIGURES
from ..files import write_atomically
from ..genotype import KINDS, Genotype, num_edges
from ..limits import check_choice
from ..queries import ANSWERS
from ..records import CandidateRecord, SearchRecord
from ..search.budget import Budget
from ..search.halving import annealed
from ..search.losses import RetrievalLoss
from ..search.plans import Plan, Turn
from ..space.inheritance import inherit
from ..space.networks import AutoReIDNetwork
from .loop import Batch, ReproducibleLoop, RunOptions
from .precision import MixedPrecision
from .resume import load_like, load_optimizer
from .search import step_figures
from .tensorboard import write_epoch

__all__ = ["Annealing", "ImageCandidateSearchEngine"]

_LOGGER = logging.getLogger(__name__)
_FOLDER = "candidates"


class Annealing(NamedTuple):
    """How the learning rate moves within a turn, see :func:`~torchreid_autoreid.search.halving.annealed`."""

    warmup: float = 0.0
    warmup_factor: float = 0.1
    least: float = 0.0


class ImageCandidateSearchEngine(ReproducibleLoop, torchreid.engine.Engine):
    """Trains derived networks for a few epochs each, as a plan says, and keeps the best one.

    That is the one that retrieves best among identities that were held out of the training.
    A plan of one rung is random search (Li and Talwalkar, UAI 2019, who show that this is a baseline to be beaten), one
    of several is successive halving, and there is aging evolution (:mod:`~torchreid_autoreid.search.plans`). The
    learning rate is annealed within each turn of a candidate, step by step.

    An epoch trains the network of one genotype; the epochs of all candidates together are the epochs of the search. The
    history has the same lines as that of another search, with the uniform distribution for probabilities, no alphas,
    the best genotype so far as the genotype, and the candidate of the epoch beside it. What a later turn needs of a
    candidate lies in ``save_dir/candidates``. With a second objective, ``save_dir/pareto.json`` has the candidates that
    no other one beats in both.

    Args:
        datamanager: a :class:`~torchreid_autoreid.data.TrainDataManager` with identities held out.
        train: makes the network of a genotype, with new weights, and its optimiser.
        operations: names of the space.
        blocks: of a cell.
        plan: which candidate is trained when.
        seed: of the candidates' first weights.
        blind: places in the first rung of those that were drawn from the whole space, if that is of interest.
        rank_by: the figure of retrieval that candidates are ranked by, ``mAP`` or ``auc``.
        loss: ``loss(outputs, identities)`` gives the total and its parts.
        annealing: of the learning rate in a turn.
        grad_clip: largest norm of the gradient; 0 switches clipping off.
        budget: limits on the cost, for the history; the plan keeps them.
        checkpoint_every: keep a checkpoint every n epochs besides the latest and the best; 0 keeps none.
        shared_folder: for ``candidates`` if several engines take part in the same search.
        amp, distributed, grad_sync: as in :class:`ImageAutoReIDSearchEngine`.
        use_gpu: use the GPU if there is one.

    Raises:
        UserError: if an argument is out of range, or no genotype is accepted.
    """

    kept_answers = ANSWERS
    checkpoint_keys = (*ReproducibleLoop.checkpoint_keys, "candidates")
    rates = "train.lr of the file search.recipe"
    clip = "recipe.grad_clip of the file search.recipe"

    def __init__(
        self,
        datamanager: Any,
        train: Callable[[Genotype], tuple[nn.Module, torch.optim.Optimizer]],
        operations: Sequence[str],
        blocks: int,
        plan: Plan,
        seed: int = 1,
        blind: Sequence[int] = (),
        rank_by: str = "mAP",
        loss: RetrievalLoss | None = None,
        annealing: Annealing = Annealing(),  # noqa: B008, it is immutable
        grad_clip: float = 0.0,
        budget: Budget | None = None,
        checkpoint_every: int = 0,
        shared_folder: Path | None = None,
        amp: str = "none",
        distributed: bool = False,
        grad_sync: str = "mean",
        use_gpu: bool = True,
    ) -> None:
        super().__init__(datamanager, use_gpu, distributed=distributed, grad_sync=grad_sync)
        if checkpoint_every < 0 or not grad_clip >= 0:
            raise UserError("checkpoint_every and grad_clip must not be negative")
        check_choice("search.rank_by", rank_by, "rank_by")
        self.make_training = train
        self.operations, self.blocks, self.budget = tuple(operations), blocks, budget
        self.plan = plan
        self.blind = tuple(blind)
        self.rank_by = rank_by
        self.seed = seed
        self.loss = loss or RetrievalLoss()
        self.annealing = annealing
        self.grad_clip = grad_clip
        self.checkpoint_every = checkpoint_every
        self.board_pages = ("Candidates",) if budget is None else ("Candidates", "Cost")
        self.shared_folder = shared_folder
        self._resumed_from: Path | None = None  # folder of the checkpoint
        self.turn: Turn | None = None
        self.precision = MixedPrecision(amp, "cuda" if self.use_gpu else "cpu", "search.amp")

    # -- torchreid's hooks --------------------------------------------------------------------------------------------

    def run(self, save_dir: str = "log", max_epoch: int = 0, start_epoch: int = 0, **options: Any) -> Genotype:
        """As :meth:`ImageAutoReIDSearchEngine.run`; each candidate is measured after its last epoch in any case.

        Args:
            save_dir: log folder.
            max_epoch: epochs of all candidates together.
            start_epoch: 0-based.
            options: ``print_freq``, ``eval_freq`` (1), ``dist_metric`` (``cosine``) and ``normalize_feature``.

        Raises:
            UserError: if the rungs take more or fewer epochs than ``max_epoch``.
        """
        if max_epoch != (wanted := self.plan.total_epochs):
            raise UserError(
                f"the candidates take {wanted} epochs, and train.max_epoch is {max_epoch}; set it to {wanted}"
            )
        if self.turn is None and not self.prepare():  # a study that is complete
            self.save_dir = Path(save_dir)
            self._write_answer()
            return self.genotype()
        chosen: dict[str, Any] = {"eval_freq": 1, "dist_metric": "cosine"} | options
        self._run(save_dir, max_epoch, start_epoch, RunOptions(**chosen))
        return self.genotype()

    def test(self, *_: Any, **__: Any) -> float:
        """Rank-1 of the present candidate on the identities held out."""
        return float(self._retrieval().cmc[0])

    def genotype(self) -> Genotype:
        """The best genotype so far; before one has been measured, the one in training."""
        found = self.plan.answer()
        return found or self._present().genotype

    # -- candidates ---------------------------------------------------------------------------------------------------

    def prepare(self) -> bool:
        """Builds the network of the first candidate, if there is any; :meth:`run` does, unless it resumes."""
        turn = self.plan.turn_at(0)
        if turn is not None:
            self._build(turn)
        return turn is not None

    def _present(self) -> Turn:
        assert self.turn is not None, "run, prepare and resume see to that"
        return self.turn

    def _build(self, turn: Turn) -> None:
        """The network of a candidate with its first weights, which depend on the seed and its index alone."""
        self.turn = turn
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed * 1_000_003 + turn.index)
            self.model, self.optimizer = self.make_training(turn.genotype)
        for group in self.optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])
        self.scheduler = None
        self.register_model("model", self.model, self.optimizer, None)

    def _before_turn(self, turn: Turn) -> None:
        self._build(turn)
        if turn.start is not None:
            path = self._parked(turn.start.rung, turn.start.index)
            if not path.exists() and self._resumed_from is not None:  # the run goes on in another folder
                path = self._resumed_from / _FOLDER / path.name
            goes_on = turn.start.index == turn.index
            if not goes_on and self.shared_folder is not None and not path.exists():
                return  # its parent was trained where this process cannot see it
            state = self.group.from_first(lambda: dict(load_checkpoint(path, ("state_dict", "optimizer"))))
            if goes_on:
                load_state(self._network(), state["state_dict"], path)
                load_optimizer(self.optimizer, state["optimizer"])
            else:
                inherit(cast(AutoReIDNetwork, self._network()), turn.start.genotype, state["state_dict"])
        self._forget_parked(turn)

    def _forget_parked(self, turn: Turn) -> None:
        """Deletes what no later turn needs."""
        if self.group.rank:
            return
        is_needed = self.plan.needed(turn)
        for path in self._folder().glob("rung-*-candidate-*.pth"):
            rung, index = (int(word) - 1 for word in path.stem.split("-")[1::2])
            if not is_needed(rung, index):
                path.unlink(missing_ok=True)

    def _folder(self) -> Path:
        return self.shared_folder or self.save_dir / _FOLDER

    def _parked(self, rung: int, index: int) -> Path:
        """Where the state of a candidate waits for its next rung."""
        return self._folder() / f"rung-{rung + 1}-candidate-{index + 1}.pth"

    def _begin_epoch(self) -> None:
        if self.epoch == self._present().end:
            turn = self.plan.turn_at(self.epoch)
            assert turn is not None, "_is_complete has asked"
            self._before_turn(turn)

    def _is_complete(self) -> bool:
        return self.epoch == self._present().end and self.plan.turn_at(self.epoch) is None

    def _ends_turn(self) -> bool:
        return self.epoch + 1 == self._present().end

    def _is_measured(self, number: int) -> bool:
        return self._ends_turn() or super()._is_measured(number)

    def _step(self, batch: Batch) -> dict[str, float]:
        scaler = self.precision.scaler
        self._anneal()
        outputs, identities = self.group.joined((self.precision.forward(self.model, batch[0]), batch[1]))
        total, parts = self.loss(outputs, identities)
        self._check_finite("loss", float(parts["loss"]))
        self.optimizer.zero_grad()
        scaler.scale(total).backward()
        self._reduce_gradients(self.model.parameters())
        scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.grad_clip or math.inf)
        if not scaler.is_enabled():  # a scaler passes over such a step and lowers its scale
            self._check_finite("gradient", float(norm))
        scaler.step(self.optimizer)
        scaler.update()
        self._average_buffers()
        return step_figures(parts, outputs[0], identities)

    def _anneal(self) -> None:
        turn = self._present()
        done = self.epoch - turn.first + self.batch_idx / self.num_batches
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * annealed(done / turn.epochs, *self.annealing)

    # -- what the loop asks for ---------------------------------------------------------------------------------------

    def _validation_loaders(self) -> dict[str, Any]:
        return self.datamanager.validation_loaders

    def _quality(self, result: RetrievalResult) -> float:
        return result.figures[self.rank_by]

    def _record(self, means: Mapping[str, float], result: RetrievalResult | None, **common: Any) -> SearchRecord:
        turn = self._present()
        start = turn.start
        parent = None if start is None or start.index == turn.index else start.index + 1
        reached = None
        if self._ends_turn():
            assert result is not None
            reached = self._quality(result)
            self.plan.tell(turn, reached)
            line = self.plan.told(turn, self.blind, FIGURES[self.rank_by].label)
            if line and self.group.rank == 0:
                _LOGGER.info("%s", line)
        share = 1.0 / (len(self.operations) - 1)
        row = [0.0 if name == "none" else share for name in self.operations]
        genotype = self.genotype()
        return SearchRecord(
            operations=self.operations,
            w=means,
            alpha=None,
            lr={"w": self._epoch_rate, "alpha": 0.0},
            alphas={},
            probabilities={kind: [row] * num_edges(self.blocks) for kind in KINDS},
            none_mass=dict.fromkeys(KINDS, 0.0),
            genotype=genotype,
            skips=genotype.count("skip_connect"),
            candidate=CandidateRecord(
                number=turn.index + 1,
                rung=turn.rung + 1,
                genotype=turn.genotype,
                score=reached,
                figure=self.rank_by,
                parent=parent,
                cost=None if self.plan.cost is None else self.plan.cost(turn.genotype),
            ),
            cost=None if self.budget is None else self.budget.figures(turn.genotype, genotype),
            **common,
        )

    def _write_answer(self) -> None:
        write_atomically(self.save_dir / "genotype.json", self.genotype().save)
        if front := self.plan.front():
            text = json.dumps([one.to_dict(self.rank_by) for one in front], indent=1)
            write_atomically(self.save_dir / "pareto.json", lambda name: Path(name).write_text(text, encoding="utf-8"))

    def _write_results(self) -> None:
        self._write_answer()
        turn = self._present()
        if self._steps_done and self._ends_turn() and self.plan.keeps(turn):
            path = self._parked(turn.rung, turn.index)
            path.parent.mkdir(exist_ok=True)
            state = {"state_dict": self._network().state_dict(), "optimizer": self.optimizer.state_dict()}
            save_checkpoint(state, path)

    def _write_board(self, record: SearchRecord) -> None:
        write_epoch(self.writer, record)

    def _state(self) -> dict[str, Any]:
        return {
            "candidates": {**self.plan.state_dict(), "epoch": self._present().first, "limits": self._limits()},
            "scaler": self.precision.scaler.state_dict(),
        }

    def _shared(self) -> dict[str, Any]:
        return {
            "genotype": json.dumps([self.genotype().to_dict(), self._present().genotype.to_dict()]),
            **super()._shared(),
        }

    def _limits(self) -> dict[str, float]:
        return {} if self.budget is None else self.budget.limits

    def resume(self, checkpoint: str | Path | Checkpoint) -> int:
        """As :meth:`ReproducibleLoop.resume`, of the candidate that was in training."""
        read = load_checkpoint(checkpoint, self.checkpoint_keys)
        path, state = read.path, read["candidates"]
        try:
            limits, first = dict(state["limits"]), int(state["epoch"])
            if limits != self._limits():  # they decide which genotypes are drawn
                raise UserError(f"it was made with other limits, {limits or 'none'}; set search.budget to the same")
            self.plan.load_state_dict(state)
            turn = self.plan.turn_at(first)
        except UserError as error:
            raise UserError(f"{path}: {error}") from None
        except (KeyError, TypeError, ValueError):
            raise UserError(f"{path} says nothing of a candidate; use another checkpoint") from None
        if turn is None:
            raise UserError(f"{path} says nothing of a candidate; use another checkpoint")
        self._resumed_from = path.parent
        self._build(turn)
        return self._resume(read)

    def _restore(self, state: Mapping[str, Any], path: str | Path) -> None:
        if self.precision.scaler.is_enabled() and state.get("scaler"):
            load_like(self.precision.scaler, state["scaler"])
