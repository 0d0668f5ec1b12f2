"""The table of what each key may be and who reads it; the defaults and their meaning are in ``keys.py``.

Values that several keys decide together are in ``check.py``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from .keys import get_default_config
from .read import all_keys

__all__ = [
    "BY_THE_RECIPE",
    "CHOICES",
    "DIFFERENTIABLE",
    "FREE_ON_RESUME",
    "LEAST_SIZE",
    "MIXED",
    "MOST_CELLS",
    "MOST_CHANNELS",
    "MOST_PARTS",
    "MOST_PIXELS",
    "OF_CANDIDATES",
    "RANGES",
    "READ_ABOVE_ZERO",
    "READ_WITH",
    "UNUSED_IN_SEARCH",
    "UNUSED_IN_TRAINING",
    "Range",
]

#: the stem and three reductions make it a pixel before the fourth stage
LEAST_SIZE = 16
#: Above these a value is a slip, and would end in a computer out of memory. Checkpoints know them too.
MOST_SIZE, MOST_CHANNELS, MOST_CELLS, MOST_BLOCKS, MOST_PARTS = 8192, 4096, 64, 16, 64


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
    "data.height": Range(1, MOST_SIZE),
    "data.width": Range(1, MOST_SIZE),
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
    "autoreid.channels": Range(1, MOST_CHANNELS),
    "autoreid.layers": Range(1, MOST_CELLS, count=4),
    "autoreid.blocks": Range(1, MOST_BLOCKS),
    "autoreid.parts": Range(1, MOST_PARTS),
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
    "search.partial_channels": Range(1, MOST_CHANNELS),
    "search.dirichlet_weight": _NOT_NEGATIVE,
    "search.candidate_epochs": _EPOCHS,
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
    "search.budget.channels": Range(1, MOST_CHANNELS),
    "search.budget.layers": Range(1, MOST_CELLS, count=4),
    "search.budget.height": Range(0, MOST_SIZE),
    "search.budget.width": Range(0, MOST_SIZE),
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
    "search.strategy": ("darts", "gdas", "pc_darts", "drnas", "random", "halving", "evolution"),
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

#: Beginnings of keys that may change when a run resumes: what it ends with does not depend on them, or, for the weights
#: to start from, no longer does.
FREE_ON_RESUME = (
    "use_gpu",
    "data.root",
    "data.save_dir",
    "data.targets",
    "data.workers",
    "model.load_weights",
    "model.pretrained",
    "autoreid.pretrained",
    "recipe.keep_last",
    "search.checkpoint_every",
    "search.study",
    "train.print_freq",
    "test.",
)

#: Keys of torchreid that a search has no use for, and what to use instead.
UNUSED_IN_SEARCH = {
    "model.name": "it builds the search network",
    "model.pretrained": "it starts from random weights",
    "model.load_weights": "use --resume",
    "model.resume": "use --resume",
    "data.type": "it is for images",
    "data.load_train_targets": "it trains on data.sources only",
    "data.k_tfm": "it draws one augmentation of an image",
    "market1501.use_500k_distractors": "it retrieves in the held-out half of the training set; use evaluate.py",
    "cuhk03.use_metric_cuhk03": "it retrieves in the held-out half by the protocol of Market-1501; use evaluate.py",
    "sampler.train_sampler_t": "it trains on data.sources only",
    "sampler.num_cams": "it samples by identity",
    "sampler.num_datasets": "it samples by identity",
    "video.seq_len": "it is for images",
    "video.sample_method": "it is for images",
    "video.pooling_method": "it is for images",
    "train.start_epoch": "use --resume",
    "train.fixbase_epoch": "use search.warmup_epochs to freeze the alphas",
    "train.open_layers": "it trains all weights",
    "train.staged_lr": "all weights have one learning rate, train.lr",
    "train.new_layers": "all weights have one learning rate, train.lr",
    "train.base_lr_mult": "all weights have one learning rate, train.lr",
    "loss.name": "it uses the retrieval loss",
    "loss.triplet.weight_t": "use search.loss_lambda",
    "loss.triplet.weight_x": "use search.loss_lambda",
    "test.evaluate": "use evaluate.py",
    "test.start_eval": "use test.eval_freq",
    "test.ranks": "its log has ranks 1, 5 and 10",
    "test.rerank": "use evaluate.py",
    "test.visrank": "use evaluate.py",
    "test.visrank_topk": "use evaluate.py",
    "autoreid.genotype": "it finds one; train.py takes one",
    "autoreid.drop_path": "train.py takes it",
    "autoreid.last_stride": "train.py takes it",
    "autoreid.auxiliary_weight": "train.py takes it",
    "autoreid.pretrained": "it starts from random weights",
    **{f"recipe.{key}": "train.py takes it" for key in get_default_config().recipe},
}


#: Keys that a training has no use for.
UNUSED_IN_TRAINING = {
    "model.resume": "use --resume",
    "data.type": "it is for images",
    "data.load_train_targets": "torchreid's engines for images train on data.sources only",
    "data.k_tfm": "torchreid's engines for images take one augmentation of an image",
    "sampler.train_sampler_t": "it trains on data.sources only",
    "video.seq_len": "it is for images",
    "video.sample_method": "it is for images",
    "video.pooling_method": "it is for images",
    "train.start_epoch": "use --resume",
    "autoreid.blocks": "a genotype brings its own",
    **dict.fromkeys(all_keys(get_default_config().search, "search."), "search.py takes it"),
}


# Strategies that mix all operations of an edge; those that have alphas at all.
MIXED = ("darts", "pc_darts", "drnas")


DIFFERENTIABLE = (*MIXED, "gdas")


# Those that train derived networks, by a recipe of their own.
OF_CANDIDATES = ("random", "halving", "evolution")


#: Beginnings of keys that candidates take from search.recipe.
BY_THE_RECIPE = (
    "train.optim",
    "train.lr",
    "train.weight_decay",
    "train.stepsize",
    "train.gamma",
    "sgd.",
    "adam.",
    "rmsprop.",
    "loss.",
    "test.dist_metric",
    "test.normalize_feature",
)


#: Keys that only some values of another key read.
READ_WITH = {
    # gdas executes one operation an edge, so it has no mixture to add a skip connection to, or to take apart; and its
    # gradient, straight through a choice, is that of no loss, so it has no second order.
    "search.order": ("search.strategy", MIXED),
    "search.auxiliary_skip": ("search.strategy", MIXED),
    # drnas has a regulariser of its own, and its alphas go through no softmax.
    "search.beta_weight": ("search.strategy", ("darts", "pc_darts", "gdas")),
    **{
        f"search.{key}": ("search.strategy", DIFFERENTIABLE)
        for key in (
            "activation_checkpointing",
            "skip_dropout",
            "stop_at_skips",
            "alpha_loss",
            "alpha_lr",
            "alpha_betas",
            "alpha_weight_decay",
            "warmup_epochs",
            "real_alpha_every",
            "split",
            "alpha_fraction",
            "loss_lambda",
            "min_lr",
            "grad_clip",
        )
    },
    "search.tau_start": ("search.strategy", ("gdas",)),
    "search.tau_end": ("search.strategy", ("gdas",)),
    "search.partial_channels": ("search.strategy", ("pc_darts",)),
    "search.dirichlet_weight": ("search.strategy", ("drnas",)),
    "search.candidate_epochs": ("search.strategy", ("random", "evolution")),
    "search.second_objective": ("search.strategy", OF_CANDIDATES),
    "search.study": ("search.strategy", OF_CANDIDATES),
    "search.evolution_candidates": ("search.strategy", ("evolution",)),
    "search.population": ("search.strategy", ("evolution",)),
    "search.tournament": ("search.strategy", ("evolution",)),
    "search.perturbation_batches": ("search.selection", ("perturbation",)),
    "search.perturbation_steps": ("search.selection", ("perturbation",)),
    "sgd.momentum": ("train.optim", ("sgd", "rmsprop")),
    "sgd.dampening": ("train.optim", ("sgd",)),
    "sgd.nesterov": ("train.optim", ("sgd",)),
    "rmsprop.alpha": ("train.optim", ("rmsprop",)),
    "adam.beta1": ("train.optim", ("adam", "amsgrad", "radam")),
    "adam.beta2": ("train.optim", ("adam", "amsgrad", "radam")),
    "train.stepsize": ("train.lr_scheduler", ("single_step", "multi_step")),
    "train.gamma": ("train.lr_scheduler", ("single_step", "multi_step")),
    "search.min_lr": ("train.lr_scheduler", ("cosine",)),
    "recipe.min_lr": ("train.lr_scheduler", ("cosine",)),
    "train.new_layers": ("train.staged_lr", (True,)),
    "train.base_lr_mult": ("train.staged_lr", (True,)),
    "test.visrank_topk": ("test.visrank", (True,)),
    "sampler.num_cams": ("sampler.train_sampler", ("RandomDomainSampler",)),
    "sampler.num_datasets": ("sampler.train_sampler", ("RandomDatasetSampler",)),
    "loss.triplet.weight_t": ("loss.name", ("triplet",)),
    "loss.triplet.weight_x": ("loss.name", ("triplet",)),
    "autoreid.pretrained": ("model.pretrained", (True,)),
}


#: Keys that nothing reads where another key is 0.
READ_ABOVE_ZERO = {
    "recipe.warmup_factor": "recipe.warmup_epochs",
    "train.open_layers": "train.fixbase_epoch",
}


MOST_PIXELS = 1 << 21
