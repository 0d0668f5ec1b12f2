"""Random search inside torchreid's training loop: the baseline that every search owes."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torchreid
from torch import nn

from ..checkpoint import load_checkpoint
from ..errors import UserError
from ..evaluation import RetrievalResult
from ..files import write_atomically
from ..genotype import Genotype, num_edges
from ..search.budget import Budget
from ..search.losses import RetrievalLoss
from ..search.selection import draw_genotype
from .loop import Batch, ReproducibleLoop, RunOptions
from .precision import MixedPrecision
from .resume import load_like
from .search import step_figures
from .tensorboard import write_epoch

__all__ = ["ImageRandomSearchEngine", "Training"]

#: a network with its optimiser and the scheduler of that
Training = tuple[nn.Module, torch.optim.Optimizer, Any]


class ImageRandomSearchEngine(ReproducibleLoop, torchreid.engine.Engine):
    """Draws genotypes from the space, trains each for a few epochs on ``D_w``, and keeps the one that retrieves best in
    the held-out half (Li and Talwalkar, UAI 2019, who show that this is a baseline to be beaten).

    An epoch trains the network of one genotype; the epochs of all candidates together are the epochs of the search. The
    history has the same lines as that of another search, with the uniform distribution for probabilities, no alphas,
    the best genotype so far as the genotype, and the candidate of the epoch beside it.

    Args:
        datamanager: a :class:`~torchreid_autoreid.data.SearchDataManager`.
        train: makes the network of a genotype, with new weights, and what trains it.
        operations: names of the space.
        blocks: of a cell.
        candidate_epochs: epochs for which each candidate is trained.
        seed: of the genotypes and of their first weights.
        loss: the retrieval loss.
        grad_clip: largest norm of the gradient; 0 switches clipping off.
        budget: limits on the cost; genotypes that do not keep them are not trained.
        checkpoint_every: keep a checkpoint every n epochs besides the latest and the best; 0 keeps none.
        amp, distributed, grad_sync: as in :class:`ImageAutoReIDSearchEngine`.
        use_gpu: use the GPU if there is one.

    Raises:
        UserError: if an argument is out of range, or no genotype is accepted.
    """

    checkpoint_keys = (*ReproducibleLoop.checkpoint_keys, "candidates")
    clip = "search.grad_clip"

    def __init__(
        self,
        datamanager: Any,
        train: Callable[[Genotype], Training],
        operations: Sequence[str],
        blocks: int,
        candidate_epochs: int = 1,
        seed: int = 1,
        loss: RetrievalLoss | None = None,
        grad_clip: float = 5.0,
        budget: Budget | None = None,
        checkpoint_every: int = 0,
        amp: str = "none",
        distributed: bool = False,
        grad_sync: str = "mean",
        use_gpu: bool = True,
    ) -> None:
        super().__init__(datamanager, use_gpu, distributed=distributed, grad_sync=grad_sync)
        if candidate_epochs < 1 or checkpoint_every < 0 or not grad_clip >= 0:
            raise UserError("candidate_epochs must be at least 1; checkpoint_every and grad_clip must not be negative")
        self.make_training = train
        self.operations, self.blocks, self.budget = tuple(operations), blocks, budget
        self.candidate_epochs = candidate_epochs
        self.seed = seed
        self.loss = loss or RetrievalLoss()
        self.grad_clip = grad_clip
        self.checkpoint_every = checkpoint_every
        self.best: tuple[float, Genotype] | None = None  # mAP and genotype
        self._start_candidate(0)
        self.precision = MixedPrecision(amp, next(self.model.parameters()).device.type, "search.amp")

    # -- torchreid's hooks --------------------------------------------------------------------------------------------

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
        """As :meth:`ImageAutoReIDSearchEngine.run`; each candidate is measured after its last epoch in any case."""
        options = RunOptions(print_freq, eval_freq, 0, dist_metric, normalize_feature)
        self._run(save_dir, max_epoch, start_epoch, options)
        return self.genotype()

    def test(self, *_: Any, **__: Any) -> float:
        """Rank-1 of the present candidate on the held-out half."""
        return float(self._retrieval().cmc[0])

    def genotype(self) -> Genotype:
        """The best genotype so far; before one has been measured, the one in training."""
        return self.candidate if self.best is None else self.best[1]

    # -- candidates ---------------------------------------------------------------------------------------------------

    def _start_candidate(self, index: int) -> None:
        """Genotype and first weights depend on the seed and the index alone."""
        self.index = index
        seed = f"random search {self.seed} {index}"
        accepts = (lambda _: True) if self.budget is None else self.budget.accepts
        self.candidate = draw_genotype(self.operations, self.blocks, seed, accepts, f"random_{index}")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed * 1_000_003 + index)
            self.model, self.optimizer, self.scheduler = self.make_training(self.candidate)
        self.register_model("model", self.model, self.optimizer, self.scheduler)

    def _begin_epoch(self) -> None:
        index = self.epoch // self.candidate_epochs
        if index != self.index:
            self._start_candidate(index)
            self._epoch_rate = self.get_current_lr()

    def _ends_candidate(self, number: int) -> bool:
        return number % self.candidate_epochs == 0 or number == self.max_epoch

    def _is_measured(self, number: int) -> bool:
        return self._ends_candidate(number) or super()._is_measured(number)

    def _step(self, batch: Batch) -> dict[str, float]:
        scaler = self.precision.scaler
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

    # -- what the loop asks for ---------------------------------------------------------------------------------------

    def _validation_loaders(self) -> dict[str, Any]:
        return self.datamanager.held_out_loaders

    def _record(self, means: Mapping[str, float], result: RetrievalResult | None) -> dict[str, Any]:
        candidate = {"number": self.index + 1, "genotype": self.candidate.to_dict(), "mAP": None}
        if self._ends_candidate(self.epoch + 1):
            assert result is not None
            candidate["mAP"] = mean_ap = float(result.mAP)
            if self.best is None or mean_ap > self.best[0]:
                self.best = (mean_ap, self.candidate)
        share = 1.0 / (len(self.operations) - 1)
        row = [0.0 if name == "none" else share for name in self.operations]
        genotype = self.genotype()
        return {
            "operations": list(self.operations),
            "w": dict(means),
            "alpha": None,
            "lr": {"w": self._epoch_rate, "alpha": 0.0},
            "alphas": {},
            "probabilities": {kind: [row] * num_edges(self.blocks) for kind in ("normal", "reduce")},
            "none_mass": {"normal": 0.0, "reduce": 0.0},
            "genotype": genotype.to_dict(),
            "skips": genotype.count("skip_connect"),
            "candidate": candidate,
            "cost": None if self.budget is None else self.budget.figures(self.candidate, genotype),
        }

    def _write_results(self) -> None:
        write_atomically(self.save_dir / "genotype.json", self.genotype().save)

    def _write_board(self, record: Mapping[str, Any]) -> None:
        write_epoch(self.writer, record)

    def _state(self) -> dict[str, Any]:
        best = None if self.best is None else [self.best[0], self.best[1].to_dict()]
        return {
            "candidates": {"index": self.index, "best": best, "limits": self._limits()},
            "scaler": self.precision.scaler.state_dict(),
        }

    def _shared(self) -> dict[str, Any]:
        return {"genotype": json.dumps([self.genotype().to_dict(), self.candidate.to_dict()]), **super()._shared()}

    def _limits(self) -> dict[str, float]:
        return {} if self.budget is None else self.budget.limits

    def resume(self, path: str | Path) -> int:
        """As :meth:`ReproducibleLoop.resume`, of the candidate that was in training."""
        candidates = load_checkpoint(path, self.checkpoint_keys)["candidates"]
        try:
            index, limits = int(candidates["index"]), dict(candidates["limits"])
        except (KeyError, TypeError, ValueError):
            raise UserError(f"{path} says nothing of a candidate; use another checkpoint") from None
        if limits != self._limits():  # they decide which genotypes are drawn
            raise UserError(f"{path} was made with other limits, {limits or 'none'}; set search.budget to the same")
        self._start_candidate(index)
        return super().resume(path)

    def _restore(self, state: Mapping[str, Any], path: str | Path) -> None:
        best = state["candidates"]["best"]
        self.best = None if best is None else (float(best[0]), Genotype.from_dict(best[1]))
        if self.precision.scaler.is_enabled() and state.get("scaler"):
            load_like(self.precision.scaler, state["scaler"])
