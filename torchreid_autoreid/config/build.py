"""A configuration as arguments of the callables that read it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from yacs.config import CfgNode

from ..keys import KEYS, OF_CANDIDATES, OF_ONE_RUNG, WITH_ALPHAS
from ..search.halving import Rung
from .read import all_keys, get

#: share of a search in which the alphas stay frozen: 15 of 50 epochs in PC-DARTS (Xu et al., ICLR 2020, section 4.2)
_WARMUP_SHARE = 0.3

__all__ = [
    "arguments_of",
    "budget_limits",
    "engine_run_kwargs",
    "evolution_kwargs",
    "imagedata_kwargs",
    "lr_scheduler_kwargs",
    "network_kwargs",
    "optimizer_kwargs",
    "scheduler_kwargs",
    "searchdata_kwargs",
    "selects_by_halving",
    "settings_of_result",
    "shape_kwargs",
    "traindata_kwargs",
]


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


def scheduler_kwargs(cfg: CfgNode) -> dict[str, Any]:
    """Arguments of :func:`~torchreid_autoreid.engine.build_scheduler` besides those of the warm-up."""
    values = lr_scheduler_kwargs(cfg)
    return {"name": values.pop("lr_scheduler"), **values}


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
    """Arguments of :class:`~torchreid_autoreid.space.networks.AutoReIDSearchNetwork`.

    A search of candidates has no such network: whoever tests one without naming its strategy gets that of darts.
    """
    return {
        "channels": cfg.autoreid.channels,
        "layers": cfg.autoreid.layers,
        "blocks": cfg.autoreid.blocks,
        "parts": cfg.autoreid.parts,
        "space": cfg.search.space,
        "strategy": "darts" if cfg.search.strategy in OF_CANDIDATES else cfg.search.strategy,
        "partial_channels": cfg.search.partial_channels,
        "last_norm": cfg.autoreid.last_norm,
        "activation_checkpointing": cfg.search.activation_checkpointing,
    }


def selects_by_halving(cfg: CfgNode) -> bool:
    """Whether what the alphas of a search propose competes at its end; a search of candidates has no alphas."""
    return cfg.search.strategy in WITH_ALPHAS and cfg.search.selection == "halving"


def rungs(cfg: CfgNode) -> list[Rung]:
    """Of a search that trains derived networks."""
    if cfg.search.strategy in OF_ONE_RUNG:
        return [Rung(cfg.train.max_epoch // cfg.search.candidate_epochs, cfg.search.candidate_epochs)]
    return [Rung(*pair) for pair in zip(cfg.search.rung_candidates, cfg.search.rung_epochs, strict=True)]


def evolution_kwargs(cfg: CfgNode) -> dict[str, int]:
    """Arguments of :class:`~torchreid_autoreid.search.plans.Evolution`."""
    return {
        "candidates": cfg.search.evolution_candidates,
        "epochs": cfg.search.candidate_epochs,
        "population": cfg.search.population,
        "tournament": cfg.search.tournament,
    }


def traindata_kwargs(cfg: CfgNode) -> dict[str, Any]:
    """Arguments of :class:`~torchreid_autoreid.data.TrainDataManager`."""
    return imagedata_kwargs(cfg) | {"held_out": cfg.recipe.held_out, "seed": cfg.train.seed}


def settings_of_result(cfg: CfgNode) -> dict[str, Any]:
    """Key -> plain value of all that the result of a run depends on: what a resumed run must have in common.

    >>> from torchreid_autoreid.config import load_config
    >>> settings_of_result(load_config(opts=["train.lr", "0.01"]))["train.lr"]
    0.01
    """
    # The cosine is stretched over all epochs.
    free = {name for name, key in KEYS.items() if key.free}
    free |= set() if cfg.train.lr_scheduler == "cosine" else {"train.max_epoch"}
    return {name: get(cfg, name) for name in all_keys(cfg) if name not in free}


def warmup_epochs(cfg: CfgNode) -> int:
    """Epochs of a search in which the alphas stay frozen."""
    own = cfg.search.warmup_epochs
    return int(_WARMUP_SHARE * cfg.train.max_epoch) if own < 0 else own


def arguments_of(function: Callable[..., Any], section: CfgNode) -> dict[str, Any]:
    """The keys of a section that a callable has arguments of the same name for.

    >>> from torchreid_autoreid.config import get_default_config
    >>> arguments_of(lambda tau_start, name: None, get_default_config().search)
    {'tau_start': 10.0}
    """
    names = inspect.signature(function).parameters
    return {name: value for name, value in section.items() if name in names and not isinstance(value, CfgNode)}


def budget_limits(cfg: CfgNode) -> dict[str, float]:
    """The limits of :class:`~torchreid_autoreid.search.budget.Budget` that are set."""
    limits = {
        "params": cfg.search.budget.params,
        "macs": cfg.search.budget.macs,
        "latency_ms": cfg.search.budget.latency_ms,
    }
    return {name: limit for name, limit in limits.items() if limit}


def shape_kwargs(cfg: CfgNode) -> dict[str, Any]:
    """Arguments of :class:`~torchreid_autoreid.search.cost.NetworkShape`: the network that a budget holds for."""
    return {
        "channels": cfg.search.budget.channels,
        "layers": tuple(cfg.search.budget.layers),
        "blocks": cfg.autoreid.blocks,
        "parts": cfg.autoreid.parts,
        "height": cfg.search.budget.height or cfg.data.height,
        "width": cfg.search.budget.width or cfg.data.width,
        "last_stride": cfg.search.budget.last_stride,
        "last_norm": cfg.autoreid.last_norm,
    }
