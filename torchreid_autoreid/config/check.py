"""Refuses a configuration with values out of range, values that exclude one another, and keys that nothing reads."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from yacs.config import CfgNode

from ..errors import UserError
from ..search.halving import Rung, check_rungs, total_epochs
from .build import budget_limits
from .keys import get_default_config
from .read import all_keys, get

__all__ = [
    "check_search_config",
    "check_train_config",
]

_MAX_WORKERS = 1024  # loader processes


#: Keys of torchreid that a search has no use for, and what to use instead.
_UNUSED_IN_SEARCH = {
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
_UNUSED_IN_TRAINING = {
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
_MIXED = ("darts", "pc_darts", "drnas")
_DIFFERENTIABLE = (*_MIXED, "gdas")
# Those that train derived networks, by a recipe of their own.
_OF_CANDIDATES = ("random", "halving")

#: Beginnings of keys that candidates take from search.recipe.
_BY_THE_RECIPE = (
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
_READ_WITH = {
    # gdas executes one operation an edge, so it has no mixture to add a skip connection to, or to take apart; and its
    # gradient, straight through a choice, is that of no loss, so it has no second order.
    "search.order": ("search.strategy", _MIXED),
    "search.auxiliary_skip": ("search.strategy", _MIXED),
    # drnas has a regulariser of its own, and its alphas go through no softmax.
    "search.beta_weight": ("search.strategy", ("darts", "pc_darts", "gdas")),
    **{
        f"search.{key}": ("search.strategy", _DIFFERENTIABLE)
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
    "search.candidate_epochs": ("search.strategy", ("random",)),
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
_READ_ABOVE_ZERO = {
    "recipe.warmup_factor": "recipe.warmup_epochs",
    "train.open_layers": "train.fixbase_epoch",
}

# What torchreid knows by name. It would pass over an unknown transform without a word.
_OPTIMISERS = ("adam", "amsgrad", "sgd", "rmsprop", "radam")
_SCHEDULERS = ("single_step", "multi_step", "cosine")
_TRANSFORMS = ("random_flip", "random_crop", "random_patch", "color_jitter", "random_erase")
_METRICS = ("euclidean", "cosine")
_SAMPLERS = (
    "RandomSampler",
    "SequentialSampler",
    "RandomIdentitySampler",
    "RandomDomainSampler",
    "RandomDatasetSampler",
)

# What the plugin knows by name; a test compares them with the tables.
_STRATEGIES = ("darts", "gdas", "pc_darts", "drnas", "random", "halving")
_ALPHA_LOSSES = ("scale_free", "published")
_SELECTIONS = ("strength", "perturbation", "halving")
_SPACES = ("reid", "standard")
_SPLITS = ("image", "identity")
_NECKS = ("none", "before", "after")
_PRECISIONS = ("none", "bfloat16", "float16")
_GRAD_SYNCS = ("mean", "sum")

#: the stem and three reductions make it a pixel before the fourth stage
_LEAST_SIZE = 16
#: Above these a value is a slip, and would end in a computer out of memory. Checkpoints and the report know them too.
_MOST_SIZE, _MOST_CHANNELS, _MOST_CELLS, _MOST_BLOCKS, _MOST_PARTS = 8192, 4096, 64, 16, 64
_MOST_PIXELS = 1 << 21
_MOST = {
    **dict.fromkeys(("train.max_epoch", "train.fixbase_epoch", "train.stepsize", "test.eval_freq"), 1_000_000),
    **dict.fromkeys(("train.batch_size", "test.batch_size", "test.ranks"), 1 << 20),
    **dict.fromkeys(("sampler.num_instances", "sampler.num_cams", "sampler.num_datasets"), 1 << 16),
    **dict.fromkeys(("search.candidate_epochs", "search.perturbation_batches", "search.perturbation_steps"), 1_000_000),
    **dict.fromkeys(("search.partial_channels", "search.budget.channels"), _MOST_CHANNELS),
    **dict.fromkeys(("data.height", "data.width", "search.budget.height", "search.budget.width"), _MOST_SIZE),
    "search.budget.layers": _MOST_CELLS,
    "data.workers": _MAX_WORKERS,
    "test.visrank_topk": 1000,
}


def check_test_config(cfg: CfgNode) -> None:
    """Refuses values out of range of what a test or an export reads.

    Raises:
        UserError: naming the key, the value and the fix.
    """
    _check_images(cfg)
    _one_of(cfg, "test.dist_metric", _METRICS)
    _one_of(cfg, "recipe.neck", _NECKS)
    _check_network(cfg)


def check_search_config(cfg: CfgNode, given: Sequence[str] = ()) -> None:
    """Refuses values out of range, values that exclude one another, and keys that a search would ignore.

    Args:
        given: keys of the command line. Those that train the search network are refused there with a strategy that has
            none; a file may hold them, so that one file serves all strategies.

    Raises:
        UserError: naming the key, the value and the fix.
    """
    if cfg.search.strategy in _OF_CANDIDATES:
        for name in given:
            if name.startswith(_BY_THE_RECIPE):
                raise UserError(
                    f"{name} has no effect with search.strategy {cfg.search.strategy}, whose networks are trained as "
                    f"search.recipe {cfg.search.recipe} says; change it there"
                )
    _check_all_read(cfg, get_default_config(), _UNUSED_IN_SEARCH, "a search")
    _check_images(cfg)
    _check_search_batches(cfg)
    _check_optimisation(cfg, "search.min_lr")
    _check_network(cfg)
    _check_search(cfg)


def check_train_config(cfg: CfgNode, given: Sequence[str] = ()) -> None:
    """Refuses values out of range, values that exclude one another, and keys that a training would ignore.

    A recipe is for any model, so that a comparison is fair: what it says of our network (``autoreid.*``) is passed over
    where ``model.name`` is one of torchreid's own.

    Args:
        given: keys of the command line, which are refused even so.

    Raises:
        UserError: naming the key, the value and the fix.
    """
    if cfg.model.name == "autoreid_search":
        raise UserError(
            "model.name autoreid_search is the network of a search, which search.py trains; "
            "train the genotype that it finds: set model.name autoreid, with --genotype"
        )
    for name in given:
        if name.startswith("autoreid.") and not cfg.model.name.startswith("autoreid"):
            raise UserError(
                f"{name} has no effect in a training: {cfg.model.name} is torchreid's own; leave the key out"
            )
    _check_all_read(cfg, get_default_config(), _UNUSED_IN_TRAINING, "a training")
    _check_images(cfg)
    _one_of(cfg, "sampler.train_sampler", _SAMPLERS)
    _check_optimisation(cfg, "recipe.min_lr")
    _check_network(cfg)
    _check_recipe(cfg)


def _check_recipe(cfg: CfgNode) -> None:
    _one_of(cfg, "loss.name", ("softmax", "triplet"))
    by_identity = cfg.sampler.train_sampler == "RandomIdentitySampler"
    if by_identity:
        _check_identity_batches(cfg)
    if cfg.loss.name == "triplet":
        for name in ("loss.triplet.weight_t", "loss.triplet.weight_x"):
            _in_range(cfg, name, 0)
        if not cfg.loss.triplet.weight_t and not cfg.loss.triplet.weight_x:
            raise UserError("loss.triplet.weight_t and loss.triplet.weight_x are both 0; set one of them above 0")
        if cfg.loss.triplet.weight_t and not by_identity:
            raise UserError(
                f"the triplet loss needs several images of an identity in a batch, and {cfg.sampler.train_sampler} "
                "does not see to that; set sampler.train_sampler RandomIdentitySampler, or loss.name softmax"
            )
        if cfg.loss.triplet.weight_t:
            _check_triplets(cfg)
    _in_range(cfg, "recipe.warmup_epochs", 0, cfg.train.max_epoch, below=True)
    _in_range(cfg, "recipe.warmup_factor", 0, 1, above=True)
    for name in ("recipe.min_lr", "recipe.grad_clip", "recipe.keep_last", "autoreid.auxiliary_weight"):
        _in_range(cfg, name, 0)
    for name in ("recipe.ema_decay", "recipe.held_out", "autoreid.drop_path"):
        _in_range(cfg, name, 0, 1, below=True)
    _in_range(cfg, "train.base_lr_mult", 0)
    _in_range(cfg, "train.fixbase_epoch", 0)
    for key, chooser in (("train.open_layers", "train.fixbase_epoch"), ("train.new_layers", "train.staged_lr")):
        if get(cfg, chooser) and not get(cfg, key):
            raise UserError(
                f"{key} is empty, and {chooser} {get(cfg, chooser)} is about these layers; "
                f"name some, such as [classifier], or leave {chooser} out"
            )
    _in_range(cfg, "test.start_eval", 0)
    _in_range(cfg, "test.visrank_topk", 1)
    _one_of(cfg, "recipe.neck", _NECKS)
    _one_of(cfg, "recipe.amp", _PRECISIONS)
    _one_of(cfg, "autoreid.last_stride", (1, 2))
    if not cfg.test.ranks or min(cfg.test.ranks) < 1:
        raise UserError(f"test.ranks must be ranks, each at least 1, not {cfg.test.ranks}")


def _check_all_read(cfg: CfgNode, default: CfgNode, unused: dict[str, str], what: str) -> None:
    for name, instead in unused.items():
        if get(cfg, name) != get(default, name):
            raise UserError(f"{name} {get(cfg, name)!r} has no effect in {what}: {instead}; leave the key out")
    for name, (chooser, values) in _READ_WITH.items():
        if get(cfg, name) != get(default, name) and get(cfg, chooser) not in values:
            raise UserError(
                f"{name} {get(cfg, name)!r} has no effect with {chooser} {get(cfg, chooser)}; "
                f"set {chooser} to {' or '.join(map(str, values))}, or leave the key out"
            )
    for name, chooser in _READ_ABOVE_ZERO.items():
        if get(cfg, name) != get(default, name) and get(cfg, chooser) == 0:
            raise UserError(
                f"{name} {get(cfg, name)!r} has no effect with {chooser} 0; set {chooser} above 0, or leave the key out"
            )


def _check_images(cfg: CfgNode) -> None:
    for name, most in _MOST.items():
        values = get(cfg, name)
        if max(values if isinstance(values, list) and values else [values or 0]) > most:
            raise UserError(f"{name} must be at most {most}, not {values}")
    for place in ("data", "search.budget"):
        height, width = get(cfg, f"{place}.height"), get(cfg, f"{place}.width")
        if height * width > _MOST_PIXELS:
            raise UserError(
                f"{place}.height {height} and {place}.width {width} make images of more than {_MOST_PIXELS} pixels; "
                "lower them"
            )
    for name in ("data.root", "data.save_dir", "data.sources", "data.targets"):
        if not get(cfg, name):
            raise UserError(f"{name} is empty; give a value, such as {get(get_default_config(), name)}")
    for transform in cfg.data.transforms:
        if transform.lower() not in _TRANSFORMS:
            raise UserError(f"data.transforms: unknown transform {transform!r}; choose from {', '.join(_TRANSFORMS)}")
    for name in ("test.batch_size", "sampler.num_instances"):
        _in_range(cfg, name, 1)
    _in_range(cfg, "train.batch_size", 2)  # a batch norm takes statistics
    for name in ("data.height", "data.width"):
        _in_range(cfg, name, 1, _MOST_SIZE)
    for name in ("data.workers", "data.split_id"):
        _in_range(cfg, name, 0)
    for name in ("data.norm_mean", "data.norm_std"):
        if len(get(cfg, name)) != 3:
            raise UserError(f"{name} must have three numbers, one a colour channel, not {get(cfg, name)}")
    if min(cfg.data.norm_std) <= 0:
        raise UserError(f"data.norm_std must be above 0 in every colour channel, not {cfg.data.norm_std}")
    if min(cfg.data.height, cfg.data.width) < _LEAST_SIZE:
        raise UserError(
            f"data.height {cfg.data.height} and data.width {cfg.data.width} are too small for four stages, each of "
            f"which halves the image; give at least {_LEAST_SIZE} pixels"
        )


def _check_search_batches(cfg: CfgNode) -> None:
    if cfg.sampler.train_sampler != "RandomIdentitySampler":
        raise UserError(
            f"sampler.train_sampler must be RandomIdentitySampler in a search, not {cfg.sampler.train_sampler!r}; "
            "the configurations beside configs/autoreid_search.yaml set it (--config-file)"
        )
    _check_identity_batches(cfg)
    if cfg.search.loss_lambda < 1:
        _check_triplets(cfg)


def _check_identity_batches(cfg: CfgNode) -> None:
    batch, instances = cfg.train.batch_size, cfg.sampler.num_instances
    if batch % instances:
        raise UserError(
            f"train.batch_size {batch} does not divide by sampler.num_instances {instances}; "
            f"a batch is P identities with K images each: set train.batch_size to {-(-batch // instances) * instances}"
        )


def _check_triplets(cfg: CfgNode) -> None:
    batch, instances = cfg.train.batch_size, cfg.sampler.num_instances
    if instances == 1 or batch == instances:
        raise UserError(
            f"train.batch_size {batch} with sampler.num_instances {instances} gives the triplet loss "
            f"{'no second image of an identity' if instances == 1 else 'a single identity'}; "
            "set train.batch_size to at least twice sampler.num_instances, and that to at least 2"
        )


def _check_optimisation(cfg: CfgNode, min_lr: str) -> None:
    _one_of(cfg, "train.optim", _OPTIMISERS)
    _one_of(cfg, "train.lr_scheduler", _SCHEDULERS)
    _in_range(cfg, "train.lr", 0, above=True)
    for name in ("train.weight_decay", "sgd.dampening", "train.gamma", "loss.triplet.margin"):
        _in_range(cfg, name, 0)
    for name in ("sgd.momentum", "rmsprop.alpha", "adam.beta1", "adam.beta2"):
        _in_range(cfg, name, 0, 1, below=True)
    if cfg.sgd.nesterov and (cfg.sgd.momentum == 0 or cfg.sgd.dampening != 0):
        raise UserError(
            f"sgd.nesterov needs a momentum and no dampening; set sgd.momentum (now {cfg.sgd.momentum}) above 0 "
            f"and sgd.dampening (now {cfg.sgd.dampening}) to 0"
        )
    if not cfg.train.stepsize or min(cfg.train.stepsize) < 1:
        raise UserError(f"train.stepsize must be epochs, each at least 1, not {cfg.train.stepsize}")
    for name in ("train.max_epoch", "train.print_freq"):
        _in_range(cfg, name, 1)
    _in_range(cfg, "train.seed", 0, 2**32 - 1)
    _one_of(cfg, "test.dist_metric", _METRICS)
    if cfg.test.eval_freq != -1 and cfg.test.eval_freq < 1:
        raise UserError(f"test.eval_freq must be a number of epochs or -1 (at the end only), not {cfg.test.eval_freq}")
    if cfg.train.lr_scheduler == "cosine" and get(cfg, min_lr) > cfg.train.lr:
        raise UserError(f"{min_lr} {get(cfg, min_lr)} is above train.lr {cfg.train.lr}; lower it")


def _check_network(cfg: CfgNode) -> None:
    for name, most in (("channels", _MOST_CHANNELS), ("blocks", _MOST_BLOCKS), ("parts", _MOST_PARTS)):
        _in_range(cfg, f"autoreid.{name}", 1, most)
    if len(cfg.autoreid.layers) != 4 or not all(1 <= depth <= _MOST_CELLS for depth in cfg.autoreid.layers):
        raise UserError(
            f"autoreid.layers must be four numbers of cells, each at least 1 and at most {_MOST_CELLS}, "
            f"not {cfg.autoreid.layers}"
        )


def _check_search(cfg: CfgNode) -> None:
    for name, values in (("strategy", _STRATEGIES), ("order", (1, 2)), ("space", _SPACES), ("split", _SPLITS)):
        _one_of(cfg, f"search.{name}", values)
    _one_of(cfg, "search.amp", _PRECISIONS)
    _one_of(cfg, "search.grad_sync", _GRAD_SYNCS)
    _in_range(cfg, "search.alpha_fraction", 0, 1, above=True, below=True)
    _in_range(cfg, "search.loss_lambda", 0, 1)
    _in_range(cfg, "search.held_out", 0, 1, above=True, below=True)
    _one_of(cfg, "search.alpha_loss", _ALPHA_LOSSES)
    _in_range(cfg, "search.warmup_epochs", -1)
    for name in ("alpha_lr", "alpha_weight_decay", "min_lr", "grad_clip", "checkpoint_every"):
        _in_range(cfg, f"search.{name}", 0)
    _in_range(cfg, "search.real_alpha_every", 1)
    if len(cfg.search.alpha_betas) != 2 or not all(0 <= beta < 1 for beta in cfg.search.alpha_betas):
        raise UserError(f"search.alpha_betas must be two numbers from 0 to below 1, not {cfg.search.alpha_betas}")
    _check_strategy(cfg)
    _check_budget(cfg)
    if cfg.search.order == 2 and cfg.train.optim != "sgd":
        raise UserError(
            f"search.order 2 imitates a step of sgd, not of {cfg.train.optim}; set train.optim sgd or search.order 1"
        )
    if cfg.search.warmup_epochs >= cfg.train.max_epoch:
        raise UserError(
            f"search.warmup_epochs {cfg.search.warmup_epochs} leaves no epoch of train.max_epoch {cfg.train.max_epoch} "
            "for the alphas; lower it"
        )


def _check_strategy(cfg: CfgNode) -> None:
    own = cfg.search
    _one_of(cfg, "search.selection", _SELECTIONS)
    for name in ("tau_start", "tau_end"):
        _in_range(cfg, f"search.{name}", 0, above=True)
    for name in ("auxiliary_skip", "beta_weight", "dirichlet_weight", "perturbation_steps"):
        _in_range(cfg, f"search.{name}", 0)
    for name in ("partial_channels", "candidate_epochs", "perturbation_batches"):
        _in_range(cfg, f"search.{name}", 1)
    _in_range(cfg, "search.skip_dropout", 0, 1, below=True)
    edges = 2 * cfg.autoreid.blocks  # of a derived cell
    _in_range(cfg, "search.skip_cap", -1, edges)
    _in_range(cfg, "search.stop_at_skips", 0, edges)
    if own.tau_end > own.tau_start:
        raise UserError(f"search.tau_end {own.tau_end} is above search.tau_start {own.tau_start}; lower it")
    if own.strategy == "pc_darts" and (own.partial_channels < 2 or cfg.autoreid.channels % own.partial_channels):
        raise UserError(
            f"search.partial_channels must be at least 2 and divide autoreid.channels {cfg.autoreid.channels}, "
            f"which {own.partial_channels} does not; change one of them"
        )
    if own.strategy == "random" and cfg.train.max_epoch % own.candidate_epochs:
        raise UserError(
            f"train.max_epoch {cfg.train.max_epoch} does not divide by search.candidate_epochs {own.candidate_epochs}; "
            f"set it to {-(-cfg.train.max_epoch // own.candidate_epochs) * own.candidate_epochs}"
        )
    if own.selection != "strength" and own.strategy not in (
        _MIXED if own.selection == "perturbation" else _DIFFERENTIABLE
    ):
        raise UserError(
            f"search.selection {own.selection!r} has no effect with search.strategy {own.strategy}; leave the key out"
        )
    for name, readers in (
        ("recipe", _OF_CANDIDATES), ("held_out", _OF_CANDIDATES), ("rung_candidates", ("halving",)),
        ("rung_epochs", ("halving",)),
    ):  # fmt: skip
        changed = get(cfg, f"search.{name}") != get(get_default_config(), f"search.{name}")
        if changed and own.strategy not in readers and own.selection != "halving":
            raise UserError(
                f"search.{name} {get(cfg, f'search.{name}')} has no effect with search.strategy {own.strategy}; set "
                f"search.strategy to {' or '.join(readers)}, or search.selection to halving, or leave the key out"
            )
    if "halving" in (own.strategy, own.selection):
        _check_rungs(cfg)
    # What only a derivation by strength reads.
    for name in ("derive_renormalised", "skip_cap", "stop_at_skips"):
        key = f"search.{name}"
        if get(cfg, key) == get(get_default_config(), key):
            continue
        if own.strategy in _OF_CANDIDATES or own.selection == "perturbation":
            by_strategy = own.strategy in _OF_CANDIDATES
            chooser = f"search.strategy {own.strategy}" if by_strategy else "search.selection perturbation"
            raise UserError(
                f"{key} {get(cfg, key)} has no effect with {chooser}, which does not rank by the alphas; "
                "leave one of them out"
            )


def _check_rungs(cfg: CfgNode) -> None:
    candidates, epochs = cfg.search.rung_candidates, cfg.search.rung_epochs
    if len(candidates) != len(epochs):
        raise UserError(
            f"search.rung_candidates {candidates} and search.rung_epochs {epochs} must have a number for each rung"
        )
    found = [Rung(*pair) for pair in zip(candidates, epochs, strict=True)]
    check_rungs(found)
    if cfg.search.strategy == "halving" and cfg.train.max_epoch != (wanted := total_epochs(found)):
        raise UserError(
            f"train.max_epoch {cfg.train.max_epoch} does not fit the rungs of search.strategy halving, which take "
            f"{wanted} epochs; set it to {wanted}, or change search.rung_candidates and search.rung_epochs"
        )


def _check_budget(cfg: CfgNode) -> None:
    default = get_default_config()
    for name in ("params", "macs", "latency_ms"):
        _in_range(cfg, f"search.budget.{name}", 0)
    if budget_limits(cfg) and cfg.search.selection == "perturbation":
        raise UserError("search.selection perturbation does not look at the cost of what it chooses; set strength")
    for key in cfg.search.budget:
        name = f"search.budget.{key}"
        needs = "search.budget.latency_ms" if key == "latency_table" else "a limit, such as search.budget.macs 1.2e9"
        limited = cfg.search.budget.latency_ms if key == "latency_table" else budget_limits(cfg)
        if get(cfg, name) != get(default, name) and not limited:
            raise UserError(f"{name} {get(cfg, name)} has no effect without {needs}; set one, or leave the key out")
    _in_range(cfg, "search.budget.channels", 1)
    if len(cfg.search.budget.layers) != 4 or min(cfg.search.budget.layers) < 1:
        raise UserError(
            f"search.budget.layers must be four numbers of cells, each at least 1, not {cfg.search.budget.layers}"
        )
    for name in ("search.budget.height", "search.budget.width"):
        if get(cfg, name):
            _in_range(cfg, name, _LEAST_SIZE)
    _one_of(cfg, "search.budget.last_stride", (1, 2))


def _one_of(cfg: CfgNode, name: str, values: Sequence[Any]) -> None:
    if get(cfg, name) not in values:
        raise UserError(f"{name} must be {' or '.join(map(str, values))}, not {get(cfg, name)!r}")


def _in_range(
    cfg: CfgNode, name: str, least: float, most: float = math.inf, above: bool = False, below: bool = False
) -> None:
    """``least <= value <= most``; strictly more or less if ``above`` or ``below``."""
    value = get(cfg, name)
    if (least < value if above else least <= value) and (value < most if below else value <= most):
        return
    bounds = f"{'above' if above else 'at least'} {least}"
    if most < math.inf:
        bounds += f" and {'below' if below else 'at most'} {most}"
    raise UserError(f"{name} must be {bounds}, not {value}")
