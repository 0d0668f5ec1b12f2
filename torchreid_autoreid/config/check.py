"""Refuses a configuration with values out of range, values that exclude one another, and keys that nothing reads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from yacs.config import CfgNode

from ..errors import UserError
from ..keys import KEYS, MIXED, OF_CANDIDATES, OF_ONE_RUNG, OF_RUNGS, WITH_ALPHAS, Key, Range
from ..limits import LEAST_SIZE, MOST_PIXELS, check_choice, check_value
from ..search.halving import check_draws, check_rungs, total_epochs
from ..search.plans import Evolution
from .build import budget_limits, evolution_kwargs, rungs, selects_by_halving
from .read import get, is_chosen

__all__ = ["check_search_config", "check_test_config", "check_train_config"]


def check_test_config(cfg: CfgNode) -> None:
    """Refuses values out of range of what a test or an export reads.

    Raises:
        UserError: naming the key, the value and the fix.
    """
    _check_values(cfg)
    _check_images(cfg)


def check_search_config(cfg: CfgNode, given: Sequence[str] = ()) -> None:
    """Refuses values out of range, values that exclude one another, and keys that a search would ignore.

    One file may serve a search and a training: what it says of the training (``recipe.*``) is passed over.

    Args:
        given: keys of the command line, which are refused even so, and even where they have their defaults, as are
            those there that train the search network of a strategy that has none.

    Raises:
        UserError: naming the key, the value and the fix.
    """
    if cfg.search.strategy in OF_CANDIDATES:
        for name in given:
            if name in KEYS and KEYS[name].by_recipe:
                raise UserError(
                    f"{name} has no effect with search.strategy {cfg.search.strategy}, whose networks are trained as "
                    f"search.recipe {cfg.search.recipe} says; change it there"
                )
    unused = {
        name: key.unused_in_search for name, key in KEYS.items() if not name.startswith("recipe.") or name in given
    }
    _check_all_read(cfg, unused, "a search", given)
    _check_values(cfg)
    _check_images(cfg)
    _check_search_batches(cfg)
    _check_optimisation(cfg, "search.min_lr")
    _check_search(cfg)


def check_train_config(cfg: CfgNode, given: Sequence[str] = ()) -> None:
    """Refuses values out of range, values that exclude one another, and keys that a training would ignore.

    A recipe is for any model, so that a comparison is fair: what it says of our network (``autoreid.*``) is passed over
    where ``model.name`` is one of torchreid's own. One file may serve a search and a training: what it says of the
    search (``search.*``) is passed over too.

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
    unused = {
        name: key.unused_in_training for name, key in KEYS.items() if not name.startswith("search.") or name in given
    }
    _check_all_read(cfg, unused, "a training", given)
    _check_values(cfg)
    _check_images(cfg)
    _check_optimisation(cfg, "recipe.min_lr")
    _check_recipe(cfg)


def _check_recipe(cfg: CfgNode) -> None:
    by_identity = cfg.sampler.train_sampler == "RandomIdentitySampler"
    if by_identity:
        _check_identity_batches(cfg)
    if cfg.loss.name == "triplet":
        if not cfg.loss.triplet.weight_t and not cfg.loss.triplet.weight_x:
            raise UserError("loss.triplet.weight_t and loss.triplet.weight_x are both 0; set one of them above 0")
        if cfg.loss.triplet.weight_t and not by_identity:
            raise UserError(
                f"the triplet loss needs several images of an identity in a batch, and {cfg.sampler.train_sampler} "
                "does not see to that; set sampler.train_sampler RandomIdentitySampler, or loss.name softmax"
            )
        if cfg.loss.triplet.weight_t:
            _check_triplets(cfg)
    if cfg.recipe.warmup_epochs >= cfg.train.max_epoch:
        raise UserError(
            f"recipe.warmup_epochs {cfg.recipe.warmup_epochs} leaves no epoch of train.max_epoch {cfg.train.max_epoch} "
            "at the full learning rate; lower it"
        )
    for key, chooser in (("train.open_layers", "train.fixbase_epoch"), ("train.new_layers", "train.staged_lr")):
        if get(cfg, chooser) and not get(cfg, key):
            raise UserError(
                f"{key} is empty, and {chooser} {get(cfg, chooser)} is about these layers; "
                f"name some, such as [classifier], or leave {chooser} out"
            )


def _check_all_read(cfg: CfgNode, unused: dict[str, str], what: str, given: Sequence[str]) -> None:
    changed = _changed(cfg)
    for name in changed:
        if unused.get(name):
            raise UserError(f"{name} {get(cfg, name)!r} has no effect in {what}: {unused[name]}; leave the key out")
    for name, key in KEYS.items():
        if name not in changed and name not in given:
            continue
        if not is_chosen(cfg, key):
            wanted = _wanted(cfg, key)
            chosen = ", ".join(f"{chooser} {get(cfg, chooser)}" for chooser in wanted)
            ways = ", or ".join(f"{chooser} to {' or '.join(map(str, values))}" for chooser, values in wanted.items())
            raise UserError(f"{name} {get(cfg, name)!r} has no effect with {chosen}; set {ways}, or leave the key out")
        if key.above_zero and get(cfg, key.above_zero) == 0:
            raise UserError(
                f"{name} {get(cfg, name)!r} has no effect with {key.above_zero} 0; set {key.above_zero} above 0, or "
                "leave the key out"
            )


def _wanted(cfg: CfgNode, key: Key) -> dict[str, tuple[Any, ...]]:
    """What would have a key read that is not: choosers -> values that they do not have."""
    found: dict[str, tuple[Any, ...]] = {}
    for chooser, values in key.of.items():
        missing = _wanted(cfg, KEYS[chooser]) if get(cfg, chooser) in values else {chooser: values}
        for name, own in missing.items():
            found[name] = (*found.get(name, ()), *own)
    return found


def _changed(cfg: CfgNode) -> dict[str, Key]:
    """The keys that do not have their default."""
    return {name: key for name, key in KEYS.items() if get(cfg, name) != key.default}


def _check_values(cfg: CfgNode) -> None:
    """Each value by itself."""
    for name, key in KEYS.items():
        if isinstance(key.allowed, tuple):
            check_choice(name, get(cfg, name))
        elif isinstance(key.allowed, Range):
            check_value(name, get(cfg, name))


def _check_below(cfg: CfgNode, name: str, most: float) -> None:
    """A value that another key limits."""
    if get(cfg, name) > most:
        raise UserError(f"{name} must be at most {most}, not {get(cfg, name)}")


def _check_images(cfg: CfgNode) -> None:
    for place in ("data", "search.budget"):
        height, width = get(cfg, f"{place}.height"), get(cfg, f"{place}.width")
        if height * width > MOST_PIXELS:
            raise UserError(
                f"{place}.height {height} and {place}.width {width} make images of more than {MOST_PIXELS} pixels; "
                "lower them"
            )
    for name in ("data.root", "data.save_dir", "data.sources", "data.targets"):
        if not get(cfg, name):
            raise UserError(f"{name} is empty; give a value, such as {KEYS[name].default}")
    if min(cfg.data.height, cfg.data.width) < LEAST_SIZE:
        raise UserError(
            f"data.height {cfg.data.height} and data.width {cfg.data.width} are too small for four stages, each of "
            f"which halves the image; give at least {LEAST_SIZE} pixels"
        )


def _check_search_batches(cfg: CfgNode) -> None:
    if cfg.sampler.train_sampler != "RandomIdentitySampler":
        raise UserError(
            f"sampler.train_sampler must be RandomIdentitySampler in a search, not {cfg.sampler.train_sampler!r}; "
            "begin with a configuration of a search, such as --config-file autoreid_search.yaml (autoreid configs "
            "lists all)"
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
    if cfg.sgd.nesterov and (cfg.sgd.momentum == 0 or cfg.sgd.dampening != 0):
        raise UserError(
            f"sgd.nesterov needs a momentum and no dampening; set sgd.momentum (now {cfg.sgd.momentum}) above 0 "
            f"and sgd.dampening (now {cfg.sgd.dampening}) to 0"
        )
    if cfg.test.eval_freq == 0:
        raise UserError(f"test.eval_freq must be a number of epochs or -1 (at the end only), not {cfg.test.eval_freq}")
    if cfg.train.lr_scheduler == "cosine" and get(cfg, min_lr) > cfg.train.lr:
        raise UserError(f"{min_lr} {get(cfg, min_lr)} is above train.lr {cfg.train.lr}; lower it")


def _check_search(cfg: CfgNode) -> None:
    _check_strategy(cfg)
    _check_budget(cfg)
    _check_study(cfg)
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
    edges = 2 * cfg.autoreid.blocks  # of a derived cell
    _check_below(cfg, "search.skip_cap", edges)
    _check_below(cfg, "search.stop_at_skips", edges)
    if own.tau_end > own.tau_start:
        raise UserError(f"search.tau_end {own.tau_end} is above search.tau_start {own.tau_start}; lower it")
    if own.strategy == "pc_darts" and (own.partial_channels < 2 or cfg.autoreid.channels % own.partial_channels):
        raise UserError(
            f"search.partial_channels must be at least 2 and divide autoreid.channels {cfg.autoreid.channels}, "
            f"which {own.partial_channels} does not; change one of them"
        )
    if own.strategy in OF_ONE_RUNG and cfg.train.max_epoch % own.candidate_epochs:
        candidates = max(2, -(-cfg.train.max_epoch // own.candidate_epochs))
        raise UserError(
            f"train.max_epoch {cfg.train.max_epoch} is that of all candidates, and does not divide by "
            f"search.candidate_epochs {own.candidate_epochs}; set it to {candidates * own.candidate_epochs} for "
            f"{candidates} candidates, or more"
        )
    if own.strategy == "predictor":
        check_draws(own.predictor_draws, cfg.train.max_epoch // own.candidate_epochs)
    if own.selection == "perturbation" and own.strategy in WITH_ALPHAS and own.strategy not in MIXED:
        raise UserError(
            f"search.selection perturbation needs one of {', '.join(MIXED)}, which mix all operations of an edge, not "
            f"search.strategy {own.strategy}; set search.selection halving or strength"
        )
    if selects_by_halving(cfg) or own.strategy in OF_RUNGS:
        _check_rungs(cfg)


def _check_study(cfg: CfgNode) -> None:
    own = cfg.search
    if own.study and (own.budget.latency_ms or own.second_objective == "latency_ms") and not own.budget.latency_table:
        raise UserError(
            "search.study shares what a network costs between workers, each of which would measure other latencies; "
            "give one table to all: search.budget.latency_table FILE, such as the latency.json of an earlier search"
        )


def _check_rungs(cfg: CfgNode) -> None:
    candidates, epochs = cfg.search.rung_candidates, cfg.search.rung_epochs
    if len(candidates) != len(epochs):
        raise UserError(
            f"search.rung_candidates {candidates} and search.rung_epochs {epochs} must have a number for each rung"
        )
    found = rungs(cfg)
    check_rungs(found)
    wanted, what = total_epochs(found), "the rungs"
    if cfg.search.strategy == "evolution":
        evolution = Evolution(**evolution_kwargs(cfg))
        evolution.check_survivors(found)
        wanted, what = wanted + evolution.total_epochs, "the evolution and the rungs"
    if cfg.search.strategy in OF_RUNGS and cfg.train.max_epoch != wanted:
        raise UserError(
            f"train.max_epoch {cfg.train.max_epoch} does not fit {what} of search.strategy {cfg.search.strategy}, "
            f"which take {wanted} epochs; set it to {wanted}, or change search.rung_candidates and search.rung_epochs"
        )


def _check_budget(cfg: CfgNode) -> None:
    changed = _changed(cfg)
    if budget_limits(cfg) and cfg.search.selection == "perturbation":
        raise UserError("search.selection perturbation does not look at the cost of what it chooses; set strength")
    for key in cfg.search.budget:
        name = f"search.budget.{key}"
        needs = "search.budget.latency_ms" if key == "latency_table" else "a limit, such as search.budget.macs 1.2e9"
        second = cfg.search.second_objective
        limited = (
            cfg.search.budget.latency_ms or second == "latency_ms"
            if key == "latency_table"
            else budget_limits(cfg) or second != "none"
        )
        if name in changed and not limited:
            raise UserError(f"{name} {get(cfg, name)} has no effect without {needs}; set one, or leave the key out")
    for name in ("search.budget.height", "search.budget.width"):
        if 0 < get(cfg, name) < LEAST_SIZE:
            raise UserError(f"{name} must be at least {LEAST_SIZE}, or 0, not {get(cfg, name)}")
