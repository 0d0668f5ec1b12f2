"""What each key of a configuration may be, and with it each argument that the key becomes; checked here for both."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from .errors import UserError, short

__all__ = ["CHOICES", "LEAST_SIZE", "MOST_PIXELS", "RANGES", "Range", "check_choice", "check_value", "check_values"]

#: the stem and three reductions make it a pixel before the fourth stage
LEAST_SIZE = 16
#: of one image that a network takes; people are seldom more than 1024 x 512
MOST_PIXELS = 1 << 21
# Above these a value is a slip, and would end in a computer out of memory.
_MOST_SIZE, _MOST_CHANNELS, _MOST_CELLS = 8192, 4096, 64


@dataclass(frozen=True)
class Range:
    """Of a number, or of each number of a list; strictly more or less if ``above`` or ``below``.

    Attributes:
        count: how many numbers a list has; 0: any number but none.
    """

    least: float
    most: float = math.inf
    above: bool = False
    below: bool = False
    count: int = 0

    def __contains__(self, value: float) -> bool:
        high = value < self.most if self.below else value <= self.most
        return high and (value > self.least if self.above else value >= self.least)

    def __str__(self) -> str:
        bounds = f"{'above' if self.above else 'at least'} {self.least}"
        return bounds + (f" and {'below' if self.below else 'at most'} {self.most}" if self.most < math.inf else "")


_POSITIVE, _NOT_NEGATIVE, _SHARE = Range(0, above=True), Range(0), Range(0, 1, below=True)
_PART = Range(0, 1, above=True, below=True)
_COUNT, _MANY, _EPOCHS = Range(1), Range(1, 1 << 16), Range(1, 1_000_000)

RANGES: dict[str, Range] = {
    "data.workers": Range(0, 1024),
    "data.split_id": _NOT_NEGATIVE,
    "data.height": Range(1, _MOST_SIZE),
    "data.width": Range(1, _MOST_SIZE),
    "data.norm_mean": Range(-math.inf, count=3),
    "data.norm_std": Range(0, above=True, count=3),
    "sampler.num_instances": _MANY,
    "sampler.num_cams": _MANY,
    "sampler.num_datasets": _MANY,
    "train.lr": _POSITIVE,
    "train.weight_decay": _NOT_NEGATIVE,
    "train.max_epoch": _EPOCHS,
    "train.batch_size": Range(2, 1 << 20),  # a batch norm takes statistics
    "train.fixbase_epoch": Range(0, 1_000_000),
    "train.base_lr_mult": _NOT_NEGATIVE,
    "train.stepsize": _EPOCHS,
    "train.gamma": _NOT_NEGATIVE,
    "train.print_freq": _COUNT,
    "train.seed": Range(0, 2**32 - 1),
    "sgd.momentum": _SHARE,
    "sgd.dampening": _NOT_NEGATIVE,
    "rmsprop.alpha": _SHARE,
    "adam.beta1": _SHARE,
    "adam.beta2": _SHARE,
    "loss.triplet.margin": _NOT_NEGATIVE,
    "loss.triplet.weight_t": _NOT_NEGATIVE,
    "loss.triplet.weight_x": _NOT_NEGATIVE,
    "test.batch_size": Range(1, 1 << 20),
    "test.ranks": Range(1, 1 << 20),
    "test.eval_freq": Range(-1, 1_000_000),
    "test.start_eval": _NOT_NEGATIVE,
    "test.visrank_topk": Range(1, 1000),
    "autoreid.channels": Range(1, _MOST_CHANNELS),
    "autoreid.layers": Range(1, _MOST_CELLS, count=4),
    "autoreid.blocks": Range(1, 16),
    "autoreid.parts": Range(1, 64),
    "autoreid.drop_path": _SHARE,
    "autoreid.auxiliary_weight": _NOT_NEGATIVE,
    "recipe.warmup_epochs": _NOT_NEGATIVE,
    "recipe.warmup_factor": Range(0, 1, above=True),
    "recipe.min_lr": _NOT_NEGATIVE,
    "recipe.grad_clip": _NOT_NEGATIVE,
    "recipe.ema_decay": _SHARE,
    "recipe.held_out": _SHARE,
    "recipe.keep_last": _NOT_NEGATIVE,
    "search.alpha_fraction": _PART,
    "search.alpha_lr": _NOT_NEGATIVE,
    "search.alpha_betas": Range(0, 1, below=True, count=2),
    "search.alpha_weight_decay": _NOT_NEGATIVE,
    "search.min_lr": _NOT_NEGATIVE,
    "search.grad_clip": _NOT_NEGATIVE,
    "search.warmup_epochs": Range(-1),
    "search.real_alpha_every": _COUNT,
    "search.loss_lambda": Range(0, 1),
    "search.held_out": _PART,
    "search.checkpoint_every": _NOT_NEGATIVE,
    "search.tau_start": _POSITIVE,
    "search.tau_end": _POSITIVE,
    "search.partial_channels": Range(1, _MOST_CHANNELS),
    "search.dirichlet_weight": _NOT_NEGATIVE,
    "search.candidate_epochs": _EPOCHS,
    "search.predictor_draws": Range(2, 1_000_000),
    "search.evolution_candidates": _EPOCHS,
    "search.population": _EPOCHS,
    "search.tournament": _EPOCHS,
    "search.auxiliary_skip": _NOT_NEGATIVE,
    "search.beta_weight": _NOT_NEGATIVE,
    "search.skip_dropout": _SHARE,
    "search.skip_cap": Range(-1),
    "search.stop_at_skips": _NOT_NEGATIVE,
    "search.perturbation_batches": _EPOCHS,
    "search.perturbation_steps": Range(0, 1_000_000),
    "search.budget.params": _NOT_NEGATIVE,
    "search.budget.macs": _NOT_NEGATIVE,
    "search.budget.latency_ms": _NOT_NEGATIVE,
    "search.budget.channels": Range(1, _MOST_CHANNELS),
    "search.budget.layers": Range(1, _MOST_CELLS, count=4),
    "search.budget.height": Range(0, _MOST_SIZE),
    "search.budget.width": Range(0, _MOST_SIZE),
}

_PRECISIONS = ("none", "bfloat16", "float16")

#: Values by name; tests compare them with torchreid's tables and with those of the rooms that know them.
CHOICES: dict[str, tuple[object, ...]] = {
    "train.optim": ("adam", "amsgrad", "sgd", "rmsprop", "radam"),
    "train.lr_scheduler": ("single_step", "multi_step", "cosine"),
    # torchreid would pass over an unknown one without a word
    "data.transforms": ("random_flip", "random_crop", "random_patch", "color_jitter", "random_erase"),
    "sampler.train_sampler": (
        "RandomSampler",
        "SequentialSampler",
        "RandomIdentitySampler",
        "RandomDomainSampler",
        "RandomDatasetSampler",
    ),
    "loss.name": ("softmax", "triplet"),
    "test.dist_metric": ("euclidean", "cosine"),
    "autoreid.last_stride": (1, 2),
    "recipe.neck": ("none", "before", "after"),
    "recipe.amp": _PRECISIONS,
    "search.strategy": ("darts", "gdas", "pc_darts", "drnas", "random", "predictor", "halving", "evolution"),
    "search.order": (1, 2),
    "search.space": ("reid", "standard"),
    "search.split": ("image", "identity"),
    "search.alpha_loss": ("scale_free", "published"),
    "search.amp": _PRECISIONS,
    "search.grad_sync": ("mean", "sum"),
    "search.selection": ("strength", "perturbation", "halving"),
    "search.second_objective": ("none", "params", "macs", "latency_ms"),
    "search.budget.last_stride": (1, 2),
}

_WORDS = {2: "two", 3: "three", 4: "four"}


def check_value(key: str, value: Any, name: str = "") -> None:
    """Refuses a number, or a list of numbers, out of the range of ``key``.

    Args:
        name: what the caller calls it; the key itself by default.

    Raises:
        UserError: naming the value and what it may be.
    """
    wanted, name = RANGES[key], name or key
    if not isinstance(value, list | tuple):
        if value not in wanted:
            raise UserError(f"{name} must be {wanted}, not {short(value)}")
    elif not value or (wanted.count and len(value) != wanted.count) or any(item not in wanted for item in value):
        numbers = f"{_WORDS[wanted.count]} numbers" if wanted.count else "numbers"
        raise UserError(f"{name} must be {numbers}, each {wanted}, not {short(list(value))}")


def check_values(section: str, **values: Any) -> None:
    """:func:`check_value` of several arguments that are called as the keys of a section are.

    >>> check_values("search", tau_start=1.0, tau_end=-1)
    Traceback (most recent call last):
    ...
    torchreid_autoreid.errors.UserError: tau_end must be above 0, not -1
    """
    for name, value in values.items():
        check_value(f"{section}.{name}", value, name)


def check_choice(key: str, value: Any, name: str = "") -> None:
    """Refuses a value, or an item of a list, that is none of the names of ``key``.

    Raises:
        UserError: naming the value and the choices.
    """
    choices, name = CHOICES[key], name or key
    if isinstance(value, list):
        for item in value:
            if str(item).lower() not in choices:
                kind = name.rpartition(".")[2].removesuffix("s")
                raise UserError(f"{name}: unknown {kind} {short(item)}; choose from {_listed(choices, ', ')}")
    elif value not in choices:
        raise UserError(f"{name} must be {_listed(choices, ' or ')}, not {short(value)}")


def _listed(choices: Iterable[object], between: str) -> str:
    return between.join(map(str, choices))
