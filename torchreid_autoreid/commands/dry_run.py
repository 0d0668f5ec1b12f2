"""``--dry-run``: everything is checked that can be without writing, drawing or downloading anything."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from ..checkpoint import Checkpoint, load_checkpoint, load_weights
from ..config import budget_limits, network_kwargs, settings_of_result, shape_kwargs
from ..config.build import rungs, selects_by_halving
from ..data.datasets import FolderDataset, check_dataset
from ..deploy.onnx import OnnxExtractor
from ..engine.loop import check_settings
from ..engine.precision import MixedPrecision
from ..evaluation import load_embeddings
from ..genotype import operation_names
from ..keys import OF_CANDIDATES
from ..report import amount
from ..search.cost import LatencyTable, NetworkShape
from ..search.halving import total_epochs
from ..space.networks import AutoReIDSearchNetwork
from ..spec import Description
from . import export, search
from .evaluate import prepare
from .search import build_budget, describe_budget
from .train import check_files, check_input, check_layers, settings_of_training

__all__ = ["main"]


def main(name: str, args: argparse.Namespace) -> int:
    """Checks what a command would need, and prints a line for each thing; returns the exit status.

    Raises:
        UserError: as the command itself would.
    """
    checks = {"search": _search, "train": _train, "evaluate": _evaluate, "export": _export}
    for line in checks[name](args, args.cfg):
        print(line)
    print("nothing was written; leave --dry-run out to begin")
    return 0


def _search(args: argparse.Namespace, cfg: Any) -> Iterator[str]:
    search.check_files(cfg, args.checkpoint)
    settings = settings_of_result(cfg)
    del settings["search.recipe"]  # a checkpoint has what the file says
    yield from _folder(cfg, args.checkpoint, settings)
    yield from _datasets(cfg, [*cfg.data.sources, *cfg.data.targets])
    device = _device(cfg)
    MixedPrecision(cfg.search.amp, device, "search.amp")
    yield f"device      {device}"
    if cfg.search.strategy in OF_CANDIDATES or selects_by_halving(cfg):
        search.candidate_recipe(cfg)
    if cfg.search.strategy in OF_CANDIDATES:  # which trains no search network
        yield f"candidates  {_candidates(cfg)}; {cfg.train.max_epoch} epochs in all"
    else:
        with torch.device("meta"):
            network = AutoReIDSearchNetwork(1, **network_kwargs(cfg))
        yield f"network     {_parameters(network)} parameters in the search network, without its classifier"
        if selects_by_halving(cfg):
            steps = rungs(cfg)
            what = f"{steps[0].candidates} {_candidates(cfg)} after the alphas"
            yield f"candidates  {what}; {total_epochs(steps)} epochs in all"
    latencies = None
    if cfg.search.budget.latency_ms:
        if not cfg.search.budget.latency_table:
            yield "budget      the latency would be measured first"
            return
        shape = NetworkShape(**shape_kwargs(cfg))
        latencies = LatencyTable.load(cfg.search.budget.latency_table, shape, operation_names(cfg.search.space))
    budget = build_budget(cfg, latencies) if budget_limits(cfg) else None
    if budget is not None:
        yield describe_budget(budget)


def _candidates(cfg: Any) -> str:
    return f"networks of {cfg.autoreid.channels} channels, {cfg.autoreid.layers} cells"


def _train(args: argparse.Namespace, cfg: Any) -> Iterator[str]:
    check_files(cfg, args.checkpoint, args.genotype)
    description = Description.of_config(cfg, args.resumed_genotype)
    yield from _folder(cfg, args.checkpoint, settings_of_training(cfg, description))
    yield from _datasets(cfg, [*cfg.data.sources, *cfg.data.targets])
    device = _device(cfg)
    MixedPrecision(cfg.recipe.amp, device, "recipe.amp")
    yield f"device      {device}"
    model = description.build(2)
    check_input(cfg, model)
    check_layers(cfg, model)
    yield f"network     {_parameters(model)} parameters in {description.name}, without its classifier"
    own = cfg.autoreid.pretrained if description.genotype and cfg.model.pretrained else ""
    for path in filter(None, (cfg.model.load_weights, own if not cfg.model.load_weights else "")):
        load_weights(model, path, testing=cfg.test.evaluate)
        yield f"weights     {path}"


def _evaluate(args: argparse.Namespace, cfg: Any) -> Iterator[str]:
    weights, description = prepare(args)
    if weights is None:
        query, gallery = load_embeddings(args.features)
        yield f"features    {args.features}: {len(query)} queries, {len(gallery)} gallery items"
        return
    yield from _datasets(cfg, cfg.data.targets)
    if isinstance(weights, OnnxExtractor):
        yield f"weights     {args.weights}: an ONNX file, for images of {weights.height} x {weights.width}"
        return
    model = AutoReIDSearchNetwork(2, **network_kwargs(cfg)) if description is None else description.build(2)
    load_weights(model, weights)
    yield f"weights     {args.weights}: {_parameters(model)} parameters, without the classifier"


def _export(args: argparse.Namespace, cfg: Any) -> Iterator[str]:
    _, weights, description = export.check(args)
    model = description.build(2)
    load_weights(model, weights)
    yield f"weights     {args.weights}: {_parameters(model)} parameters, without the classifier"


def _folder(cfg: Any, resume: Checkpoint | None, settings: Mapping[str, Any]) -> Iterator[str]:
    """The log folder, and the checkpoint to go on from, which was made with the same settings."""
    if resume is not None:
        check_settings(settings, resume.get("settings", {}), resume.path)
        epoch = load_checkpoint(resume, ("state_dict", "epoch", "optimizer"))["epoch"]
        yield f"resume      {resume.path}, after epoch {epoch}"
    yield f"log folder  {cfg.data.save_dir}"


def _datasets(cfg: Any, names: Any) -> Iterator[str]:
    """Datasets are looked for; a user's own is read, since that writes nothing."""
    for name in dict.fromkeys(names):
        check_dataset(name, cfg.data.root)
        if name == "folder":
            FolderDataset(cfg.data.root, mode="train", verbose=False)
        yield f"dataset     {name} in {cfg.data.root}" + (", drawn there if missing" if "synthetic" in name else "")


def _device(cfg: Any) -> str:
    return "cuda" if cfg.use_gpu and torch.cuda.is_available() else "cpu"


def _parameters(network: torch.nn.Module) -> str:
    return amount(sum(p.numel() for name, p in network.named_parameters() if not name.startswith("classifier.")))
