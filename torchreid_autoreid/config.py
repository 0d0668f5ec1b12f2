"""The full yacs tree: every key of torchreid with its meaning and default, plus ``autoreid`` and ``search``.

torchreid keeps its tree in a script (``scripts/default_config.py``), not in its package; a test compares ours with the signatures
of the callables that the keys end up in.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml
from yacs.config import CfgNode

from .errors import UserError

__all__ = [
    "check_search_config",
    "engine_run_kwargs",
    "get_default_config",
    "imagedata_kwargs",
    "load_config",
    "lr_scheduler_kwargs",
    "network_kwargs",
    "optimizer_kwargs",
    "search_kwargs",
    "searchdata_kwargs",
]

_MAX_FILE_BYTES = 1 << 20  # a configuration has a few kilobytes


def get_default_config() -> CfgNode:
    """A fresh tree with all defaults."""
    cfg = CfgNode()
    cfg.use_gpu = True  # where there is one

    # model
    cfg.model = CfgNode()
    cfg.model.name = "resnet50"
    cfg.model.pretrained = True  # load ImageNet weights if available
    cfg.model.load_weights = ""  # path to model weights
    cfg.model.resume = ""  # path to a checkpoint to resume training from

    # data
    cfg.data = CfgNode()
    cfg.data.type = "image"
    cfg.data.root = "reid-data"
    cfg.data.sources = ["market1501"]
    cfg.data.targets = ["market1501"]
    cfg.data.workers = 4  # loader processes
    cfg.data.split_id = 0
    cfg.data.height = 256  # pixels
    cfg.data.width = 128
    cfg.data.combineall = False  # train on train, query and gallery
    cfg.data.transforms = ["random_flip"]
    cfg.data.k_tfm = 1  # augmentations of an image in a batch
    cfg.data.norm_mean = [0.485, 0.456, 0.406]  # ImageNet
    cfg.data.norm_std = [0.229, 0.224, 0.225]
    cfg.data.save_dir = "log"  # log folder
    cfg.data.load_train_targets = False

    # datasets
    cfg.market1501 = CfgNode()
    cfg.market1501.use_500k_distractors = False
    cfg.cuhk03 = CfgNode()
    cfg.cuhk03.labeled_images = False  # hand-labelled boxes; else detected ones
    cfg.cuhk03.classic_split = False
    cfg.cuhk03.use_metric_cuhk03 = False  # single-gallery-shot

    # sampler
    cfg.sampler = CfgNode()
    cfg.sampler.train_sampler = "RandomSampler"
    cfg.sampler.train_sampler_t = "RandomSampler"
    cfg.sampler.num_instances = 4  # K images an identity, for RandomIdentitySampler
    cfg.sampler.num_cams = 1  # for RandomDomainSampler
    cfg.sampler.num_datasets = 1  # for RandomDatasetSampler

    # video
    cfg.video = CfgNode()
    cfg.video.seq_len = 15
    cfg.video.sample_method = "evenly"
    cfg.video.pooling_method = "avg"

    # train
    cfg.train = CfgNode()
    cfg.train.optim = "adam"
    cfg.train.lr = 0.0003
    cfg.train.weight_decay = 5e-4
    cfg.train.max_epoch = 60  # in search.py: of the search
    cfg.train.start_epoch = 0
    cfg.train.batch_size = 32
    cfg.train.fixbase_epoch = 0  # epochs that train open_layers only
    cfg.train.open_layers = ["classifier"]
    cfg.train.staged_lr = False
    cfg.train.new_layers = ["classifier"]
    cfg.train.base_lr_mult = 0.1
    cfg.train.lr_scheduler = "single_step"
    cfg.train.stepsize = [20]  # epochs
    cfg.train.gamma = 0.1
    cfg.train.print_freq = 20  # batches
    cfg.train.seed = 1

    # optimisers
    cfg.sgd = CfgNode()
    cfg.sgd.momentum = 0.9  # of sgd and rmsprop
    cfg.sgd.dampening = 0.0
    cfg.sgd.nesterov = False
    cfg.rmsprop = CfgNode()
    cfg.rmsprop.alpha = 0.99
    cfg.adam = CfgNode()
    cfg.adam.beta1 = 0.9
    cfg.adam.beta2 = 0.999

    # loss
    cfg.loss = CfgNode()
    cfg.loss.name = "softmax"
    cfg.loss.softmax = CfgNode()
    cfg.loss.softmax.label_smooth = True
    cfg.loss.triplet = CfgNode()
    cfg.loss.triplet.margin = 0.3
    cfg.loss.triplet.weight_t = 1.0
    cfg.loss.triplet.weight_x = 0.0

    # test
    cfg.test = CfgNode()
    cfg.test.batch_size = 100
    cfg.test.dist_metric = "euclidean"  # or cosine
    cfg.test.normalize_feature = False
    cfg.test.ranks = [1, 5, 10, 20]
    cfg.test.evaluate = False  # test only
    cfg.test.eval_freq = -1  # epochs between tests; -1: after training only. In search.py: tests of the held-out half
    cfg.test.start_eval = 0
    cfg.test.rerank = False
    cfg.test.visrank = False
    cfg.test.visrank_topk = 10

    # ours: the network
    cfg.autoreid = CfgNode()
    cfg.autoreid.genotype = "retrieval"  # preset name or path of a JSON file
    cfg.autoreid.channels = 64  # C of the first stage
    cfg.autoreid.layers = [2, 2, 2, 2]  # cells in each of the four stages
    cfg.autoreid.blocks = 4  # blocks of a cell (of the search; a genotype brings its own)
    cfg.autoreid.parts = 4  # M, stripes of the part-aware operation
    cfg.autoreid.drop_path = 0.0  # probability, of the derived network

    # ours: the search ("open" marks what the paper does not publish)
    cfg.search = CfgNode()
    cfg.search.strategy = "darts"
    cfg.search.order = 1  # of the alphas' gradient: 1 or 2
    cfg.search.space = "reid"  # reid: the paper's seven operations; standard: without part_aware
    cfg.search.split = "image"  # image: every identity in both halves (published); identity: in one
    cfg.search.alpha_fraction = 0.5  # share of the half that trains the alphas
    cfg.search.alpha_lr = 0.02  # of Adam, constant
    cfg.search.alpha_betas = [0.5, 0.999]
    cfg.search.alpha_weight_decay = 5e-5  # open
    cfg.search.min_lr = 0.001  # where the cosine of train.lr ends
    cfg.search.grad_clip = 5.0  # largest norm of the weights' gradient (open; DARTS's value); 0: off
    cfg.search.warmup_epochs = 0  # alphas frozen (open)
    cfg.search.real_alpha_every = 1  # epochs from one use of the alpha half to the next; the w half stands in between
    cfg.search.loss_lambda = 0.5  # share of the cross-entropy in the retrieval loss (open)
    cfg.search.derive_renormalised = False  # edge strengths without the mass of `none`; published: with it
    cfg.search.checkpoint_every = 0  # epochs between checkpoints that are kept; 0: latest and best only
    return cfg


# -- reading ----------------------------------------------------------------------------------------------------------


def load_config(
    config_file: str = "",
    opts: Sequence[str] = (),
    *,
    root: str = "",
    sources: Sequence[str] | None = None,
    targets: Sequence[str] | None = None,
    transforms: Sequence[str] | None = None,
) -> CfgNode:
    """The defaults, changed by a YAML file, then by the named options, then by ``KEY VALUE`` pairs.

    Raises:
        UserError: if a file is missing or is no YAML mapping, a key is unknown, or a value is of another type.

    >>> load_config(opts=["train.max_epoch", "3"]).train.max_epoch
    3
    """
    cfg = get_default_config()
    if config_file:
        _merge(cfg, _read_yaml(Path(config_file)), config_file)
    if root:
        cfg.data.root = root
    for key, values in (("sources", sources), ("targets", targets), ("transforms", transforms)):
        if values:
            cfg.data[key] = list(values)
    if len(opts) % 2:
        raise UserError(f"options come as KEY VALUE pairs; {opts[-1]!r} has no partner")
    for key, text in zip(opts[::2], opts[1::2], strict=True):
        _set(cfg, key, _parse(key, text), "the command line")
    return cfg


def _read_yaml(path: Path) -> dict[str, Any]:
    if not path.is_file():
        known = sorted(str(found) for found in (path.parent, Path("configs")) for found in found.glob("*.yaml"))
        near = get_close_matches(str(path), known, n=1) or known[:1]
        raise UserError(f"no configuration file {path}" + (f"; did you mean {near[0]}?" if near else ""))
    if path.stat().st_size > _MAX_FILE_BYTES:
        raise UserError(f"{path} has {path.stat().st_size} bytes, which is no configuration")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise UserError(f"{path} is not plain YAML: {' '.join(str(error).split())[:200]}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold keys and values, not a {type(content).__name__}")
    return content


def _merge(cfg: CfgNode, content: dict[str, Any], where: str, prefix: str = "") -> None:
    for key, value in content.items():
        name = f"{prefix}{key}"
        node = _lookup(cfg, name, where)
        if isinstance(node, CfgNode):
            if not isinstance(value, dict):
                raise UserError(f"{where}: {name} holds keys of its own ({', '.join(node)}), not {value!r}")
            _merge(cfg, value, where, f"{name}.")
        else:
            _set(cfg, name, value, where)


def _parse(key: str, text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError):
        raise UserError(f"cannot read the value {text[:80]!r} of {key}; write it as in YAML") from None


def _lookup(cfg: CfgNode, name: str, where: str) -> Any:
    node: Any = cfg
    for part in name.split("."):
        if not isinstance(node, CfgNode) or part not in node:
            keys = list(_keys(cfg))
            last = name.rsplit(".", 1)[-1]
            near = get_close_matches(name, keys, n=2) or [key for key in keys if key.rsplit(".", 1)[-1] == last][:2]
            hint = f"; did you mean {' or '.join(near)}?" if near else "; see torchreid_autoreid/config.py for all keys"
            raise UserError(f"{where}: unknown key {name!r}{hint}")
        node = node[part]
    return node


def _keys(cfg: CfgNode, prefix: str = "") -> Iterator[str]:
    for key, value in cfg.items():
        yield from _keys(value, f"{prefix}{key}.") if isinstance(value, CfgNode) else [f"{prefix}{key}"]


def _set(cfg: CfgNode, name: str, value: Any, where: str) -> None:
    old = _lookup(cfg, name, where)
    if isinstance(old, CfgNode):
        raise UserError(f"{where}: {name} holds keys of its own; set one of {', '.join(f'{name}.{key}' for key in old)}")
    *path, last = name.split(".")
    node = cfg
    for part in path:
        node = node[part]
    node[last] = _converted(name, value, old, where)


def _converted(name: str, value: Any, old: Any, where: str) -> Any:
    """The value in the type of the default: yacs would reject an int for a float, and take a text for anything in a list."""
    wanted = type(old)
    if isinstance(old, bool) or isinstance(value, bool):
        converted = value if isinstance(old, bool) and isinstance(value, bool) else None
    elif isinstance(old, float):
        converted = _number(value)
    elif isinstance(old, int):
        converted = value if isinstance(value, int) else None
    elif isinstance(old, str):
        # An unquoted number or an empty value is a text here; so is a path that YAML reads as something else.
        converted = value if isinstance(value, str) else str(value) if isinstance(value, int | float) else None
        converted = "" if value is None else converted
    else:
        items = list(value) if isinstance(value, list | tuple) else [value]
        parts = [_converted(f"{name}[{i}]", item, old[0], where) for i, item in enumerate(items)]
        return parts
    if converted is None:
        raise UserError(f"{where}: {name} must be {_TYPE_NAMES[wanted]}, not {value!r}")
    return converted


_TYPE_NAMES = {bool: "true or false", float: "a number", int: "a whole number", str: "a text"}


def _number(value: Any) -> float | None:
    """YAML 1.1 reads ``5e-5``, without a dot, as a text."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


# -- cfg -> arguments -------------------------------------------------------------------------------------------------


def imagedata_kwargs(cfg: CfgNode) -> dict[str, Any]:
    """Arguments of ``torchreid.data.ImageDataManager``."""
    return {
        "root": cfg.data.root,
        "sources": cfg.data.sources,
        "targets": cfg.data.targets,
        "height": cfg.data.height,
        "width": cfg.data.width,
        "transforms": cfg.data.transforms,
        "k_tfm": cfg.data.k_tfm,
        "norm_mean": cfg.data.norm_mean,
        "norm_std": cfg.data.norm_std,
        "use_gpu": cfg.use_gpu,
        "split_id": cfg.data.split_id,
        "combineall": cfg.data.combineall,
        "load_train_targets": cfg.data.load_train_targets,
        "batch_size_train": cfg.train.batch_size,
        "batch_size_test": cfg.test.batch_size,
        "workers": cfg.data.workers,
        "num_instances": cfg.sampler.num_instances,
        "num_cams": cfg.sampler.num_cams,
        "num_datasets": cfg.sampler.num_datasets,
        "train_sampler": cfg.sampler.train_sampler,
        "train_sampler_t": cfg.sampler.train_sampler_t,
        "cuhk03_labeled": cfg.cuhk03.labeled_images,
        "cuhk03_classic_split": cfg.cuhk03.classic_split,
        "market1501_500k": cfg.market1501.use_500k_distractors,
    }


def searchdata_kwargs(cfg: CfgNode) -> dict[str, Any]:
    """Arguments of :class:`~torchreid_autoreid.data.SearchDataManager`."""
    return imagedata_kwargs(cfg) | {
        "split": cfg.search.split,
        "alpha_fraction": cfg.search.alpha_fraction,
        "seed": cfg.train.seed,
    }


def optimizer_kwargs(cfg: CfgNode) -> dict[str, Any]:
    """Arguments of ``torchreid.optim.build_optimizer``."""
    return {
        "optim": cfg.train.optim,
        "lr": cfg.train.lr,
        "weight_decay": cfg.train.weight_decay,
        "momentum": cfg.sgd.momentum,
        "sgd_dampening": cfg.sgd.dampening,
        "sgd_nesterov": cfg.sgd.nesterov,
        "rmsprop_alpha": cfg.rmsprop.alpha,
        "adam_beta1": cfg.adam.beta1,
        "adam_beta2": cfg.adam.beta2,
        "staged_lr": cfg.train.staged_lr,
        "new_layers": cfg.train.new_layers,
        "base_lr_mult": cfg.train.base_lr_mult,
    }


def lr_scheduler_kwargs(cfg: CfgNode) -> dict[str, Any]:
    """Arguments of ``torchreid.optim.build_lr_scheduler``."""
    return {
        "lr_scheduler": cfg.train.lr_scheduler,
        "stepsize": cfg.train.stepsize,
        "gamma": cfg.train.gamma,
        "max_epoch": cfg.train.max_epoch,
    }


def engine_run_kwargs(cfg: CfgNode) -> dict[str, Any]:
    """Arguments of ``torchreid.engine.Engine.run``."""
    return {
        "save_dir": cfg.data.save_dir,
        "max_epoch": cfg.train.max_epoch,
        "start_epoch": cfg.train.start_epoch,
        "fixbase_epoch": cfg.train.fixbase_epoch,
        "open_layers": cfg.train.open_layers,
        "start_eval": cfg.test.start_eval,
        "eval_freq": cfg.test.eval_freq,
        "test_only": cfg.test.evaluate,
        "print_freq": cfg.train.print_freq,
        "dist_metric": cfg.test.dist_metric,
        "normalize_feature": cfg.test.normalize_feature,
        "visrank": cfg.test.visrank,
        "visrank_topk": cfg.test.visrank_topk,
        "use_metric_cuhk03": cfg.cuhk03.use_metric_cuhk03,
        "ranks": cfg.test.ranks,
        "rerank": cfg.test.rerank,
    }


def network_kwargs(cfg: CfgNode) -> dict[str, Any]:
    """Arguments of :class:`~torchreid_autoreid.networks.AutoReIDSearchNetwork`."""
    return {
        "channels": cfg.autoreid.channels,
        "layers": cfg.autoreid.layers,
        "blocks": cfg.autoreid.blocks,
        "parts": cfg.autoreid.parts,
        "space": cfg.search.space,
        "strategy": cfg.search.strategy,
    }


def search_kwargs(cfg: CfgNode) -> dict[str, Any]:
    """Arguments of :class:`~torchreid_autoreid.engine.ImageAutoReIDSearchEngine` besides its parts."""
    return {
        "order": cfg.search.order,
        "grad_clip": cfg.search.grad_clip,
        "warmup_epochs": cfg.search.warmup_epochs,
        "real_alpha_every": cfg.search.real_alpha_every,
        "derive_renormalised": cfg.search.derive_renormalised,
        "checkpoint_every": cfg.search.checkpoint_every,
    }


# -- checks -----------------------------------------------------------------------------------------------------------

#: Keys of torchreid that a search has no use for, and what to use instead.
_UNUSED_IN_SEARCH = {
    "model.name": "the search network has no other name",
    "model.pretrained": "a search starts from random weights",
    "model.load_weights": "use --resume",
    "model.resume": "use --resume",
    "data.type": "a search is for images",
    "data.load_train_targets": "a search trains on data.sources only",
    "data.k_tfm": "a search draws one augmentation of an image",
    "sampler.train_sampler_t": "a search trains on data.sources only",
    "video.seq_len": "a search is for images",
    "video.sample_method": "a search is for images",
    "video.pooling_method": "a search is for images",
    "train.start_epoch": "use --resume",
    "train.fixbase_epoch": "use search.warmup_epochs to freeze the alphas",
    "train.open_layers": "all weights are trained",
    "train.staged_lr": "all weights have one learning rate",
    "train.new_layers": "all weights have one learning rate",
    "train.base_lr_mult": "all weights have one learning rate",
    "loss.name": "a search uses the retrieval loss",
    "loss.triplet.weight_t": "use search.loss_lambda",
    "loss.triplet.weight_x": "use search.loss_lambda",
    "cuhk03.use_metric_cuhk03": "the held-out half is evaluated by the Market-1501 protocol",
    "test.evaluate": "use evaluate.py",
    "test.start_eval": "use test.eval_freq",
    "test.ranks": "the log shows ranks 1, 5 and 10",
    "test.rerank": "use evaluate.py",
    "test.visrank": "use evaluate.py",
    "test.visrank_topk": "use evaluate.py",
    "autoreid.genotype": "a search finds it; train.py takes one",
    "autoreid.drop_path": "it is for the derived network; train.py takes it",
}

_OPTIMISERS = ("adam", "amsgrad", "sgd", "rmsprop", "radam")
_SCHEDULERS = ("single_step", "multi_step", "cosine")
_TRANSFORMS = ("random_flip", "random_crop", "random_patch", "color_jitter", "random_erase")


def check_search_config(cfg: CfgNode) -> None:
    """Refuses values out of range, and keys that a search would ignore.

    Raises:
        UserError: naming the key, the value and the fix.
    """
    default = get_default_config()
    for name, instead in _UNUSED_IN_SEARCH.items():
        if _get(cfg, name) != _get(default, name):
            raise UserError(f"{name} has no effect in a search ({instead}); leave it at {_get(default, name)!r}")
    _check_common(cfg)
    _one_of(cfg, "search.order", (1, 2))
    _one_of(cfg, "search.split", ("image", "identity"))
    _one_of(cfg, "sampler.train_sampler", ("RandomIdentitySampler",))
    _within(cfg, "search.alpha_fraction", 0.0, 1.0, open_ends=True)
    _within(cfg, "search.loss_lambda", 0.0, 1.0)
    for name in ("search.alpha_weight_decay", "search.grad_clip", "search.min_lr", "loss.triplet.margin"):
        _within(cfg, name, 0.0, math.inf)
    _within(cfg, "search.alpha_lr", 0.0, math.inf, open_ends=True)
    for name, least in (
        ("search.warmup_epochs", 0),
        ("search.real_alpha_every", 1),
        ("search.checkpoint_every", 0),
        ("autoreid.channels", 1),
        ("autoreid.blocks", 1),
        ("autoreid.parts", 1),
    ):
        _at_least(cfg, name, least)
    if len(cfg.autoreid.layers) != 4 or min(cfg.autoreid.layers) < 1:
        raise UserError(f"autoreid.layers must be four numbers of cells, each at least 1, not {cfg.autoreid.layers}")
    if len(cfg.search.alpha_betas) != 2 or not all(0.0 <= beta < 1.0 for beta in cfg.search.alpha_betas):
        raise UserError(f"search.alpha_betas must be two numbers in [0, 1), not {cfg.search.alpha_betas}")
    if cfg.search.order == 2 and cfg.train.optim != "sgd":
        raise UserError(f"search.order 2 imitates a step of sgd, not of {cfg.train.optim}; set train.optim sgd or search.order 1")
    if cfg.train.lr_scheduler == "cosine" and cfg.search.min_lr > cfg.train.lr:
        raise UserError(f"search.min_lr {cfg.search.min_lr} is above train.lr {cfg.train.lr}; lower it")
    if cfg.search.warmup_epochs >= cfg.train.max_epoch:
        raise UserError(
            f"search.warmup_epochs {cfg.search.warmup_epochs} leaves no epoch of train.max_epoch {cfg.train.max_epoch} "
            "for the alphas; lower it"
        )


def _check_common(cfg: CfgNode) -> None:
    """What every command that trains needs of torchreid's own keys."""
    _one_of(cfg, "train.optim", _OPTIMISERS)
    _one_of(cfg, "train.lr_scheduler", _SCHEDULERS)
    _one_of(cfg, "test.dist_metric", ("euclidean", "cosine"))
    for name in cfg.data.transforms:
        if name.lower() not in _TRANSFORMS:
            raise UserError(f"unknown transform {name!r} in data.transforms; choose from {', '.join(_TRANSFORMS)}")
    _within(cfg, "train.lr", 0.0, math.inf, open_ends=True)
    for name in ("train.weight_decay", "sgd.dampening"):
        _within(cfg, name, 0.0, math.inf)
    _within(cfg, "sgd.momentum", 0.0, 1.0)
    for name in ("data.height", "data.width", "train.max_epoch", "train.batch_size", "test.batch_size", "train.print_freq"):
        _at_least(cfg, name, 1)
    for name in ("sampler.num_instances", "sampler.num_cams", "sampler.num_datasets"):
        _at_least(cfg, name, 1)
    for name in ("data.workers", "train.seed"):
        _at_least(cfg, name, 0)
    if cfg.test.eval_freq != -1 and cfg.test.eval_freq < 1:
        raise UserError(f"test.eval_freq must be a number of epochs or -1 (only at the end), not {cfg.test.eval_freq}")
    for name in ("data.norm_mean", "data.norm_std"):
        if len(_get(cfg, name)) != 3:
            raise UserError(f"{name} must have three numbers, not {_get(cfg, name)}")
    if cfg.sampler.train_sampler == "RandomIdentitySampler" and cfg.train.batch_size % cfg.sampler.num_instances:
        raise UserError(
            f"train.batch_size {cfg.train.batch_size} does not divide by sampler.num_instances "
            f"{cfg.sampler.num_instances}; a batch is P identities with K images each"
        )


def _get(cfg: CfgNode, name: str) -> Any:
    for part in name.split("."):
        cfg = cfg[part]
    return cfg


def _one_of(cfg: CfgNode, name: str, values: Sequence[Any]) -> None:
    if _get(cfg, name) not in values:
        raise UserError(f"{name} must be one of {', '.join(map(str, values))}, not {_get(cfg, name)!r}")


def _at_least(cfg: CfgNode, name: str, least: int) -> None:
    if _get(cfg, name) < least:
        raise UserError(f"{name} must be at least {least}, not {_get(cfg, name)}")


def _within(cfg: CfgNode, name: str, low: float, high: float, open_ends: bool = False) -> None:
    value = _get(cfg, name)
    inside = low < value < high if open_ends else low <= value <= high
    if not inside or not math.isfinite(value):
        ends = "between" if open_ends else "from"
        upper = f"{low} and {high}" if open_ends else f"{low} to {high}"
        raise UserError(f"{name} must be {ends} {upper} (and finite), not {value}")
