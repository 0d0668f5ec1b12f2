"""Trains the network of a genotype, or any other model of torchreid, and tests it."""

from __future__ import annotations

import argparse
import json
import logging
import shlex
import sys
from pathlib import Path
from typing import Any

import torch
import torchreid

from ..checkpoint import Checkpoint, load_checkpoint, load_weights
from ..config.build import engine_run_kwargs, optimizer_kwargs, scheduler_kwargs, settings_of_result, traindata_kwargs
from ..config.read import plain_config
from ..data import TrainDataManager
from ..engine import ImageSoftmaxTrainingEngine, ImageTripletTrainingEngine, Recipe, build_scheduler
from ..engine.run_folder import bring_history, check_run_folder, claim_run_folder, keep_earlier_run
from ..errors import UserError, line_of_the_machine
from ..files import write_atomically
from ..genotype import Genotype
from ..parallel.batch_norm import synchronise_batch_norm
from ..parallel.group import group
from ..parallel.launch import OneProcess, first_process_first, torchrun_processes
from ..records import TrainingRecord
from ..spec import Description
from .console import Log, StepBar, TimeLeft, begin_log, details_of, stop_on_signals
from .costs import cost_in_words
from .options import told_once
from .origin import IMAGES, SAME_DATA

_LOGGER = logging.getLogger("torchreid_autoreid.train")


def main(args: argparse.Namespace) -> int:
    cfg = args.cfg
    with told_once():
        description = Description.of_config(cfg, args.resumed_genotype)
        check_files(cfg, args.checkpoint, args.genotype)
    device = "cuda" if cfg.use_gpu and torch.cuda.is_available() else "cpu"
    with torchrun_processes(device) as world:
        train(cfg, description, args.checkpoint, torch.device(device), world)
    return 0


def train(
    cfg: Any, description: Description, resume: Checkpoint | None, device: torch.device, world: OneProcess
) -> None:
    """Trains in all processes, and tests; the first one writes and tells, nothing before everything is checked."""
    everyone, save_dir = group(world.size > 1), Path(cfg.data.save_dir)
    with everyone.together():  # a mistake that one of them finds ends them all
        log = begin_log(world.rank)
        if log and not cfg.test.evaluate:
            claim_run_folder(save_dir)
        if world.size > 1:
            _LOGGER.info("%d processes, each with %d images of a batch", world.size, cfg.train.batch_size // world.size)
        torchreid.utils.set_random_seed(cfg.train.seed)
        torch.backends.cudnn.deterministic = True  # one seed fixes everything, on a GPU too
        with first_process_first(world), details_of(log):
            datamanager = TrainDataManager(**traindata_kwargs(cfg), share=(world.rank, world.size))
    everyone.check_same(
        "at the start",
        SAME_DATA,
        training_images=datamanager.trained_images,
        test_images=datamanager.tested_images(),
    )
    with everyone.together():
        with first_process_first(world):  # it may have weights to fetch
            engine = build_engine(cfg, datamanager, description, device, world, fresh=resume is None)
        engine.settings = settings_of_training(cfg, description) | {IMAGES: datamanager.trained_images}
        engine.configuration = plain_config(cfg)
        start_epoch, origin = (0, None) if resume is None else (engine.resume(resume), resume.path)
        if log:
            begin_run_folder(cfg, save_dir, origin, log)
    if cfg.test.evaluate:
        write_results(engine, cfg, save_dir)
        return
    on_terminal = sys.stderr.isatty()
    if world.rank == 0:
        engine.on_step = StepBar(start_epoch, cfg.train.max_epoch) if on_terminal else None
        engine.on_epoch = EpochLog()
    stop_on_signals(engine)
    options = engine_run_kwargs(cfg)
    engine.run(
        save_dir=str(save_dir),
        max_epoch=cfg.train.max_epoch,
        start_epoch=start_epoch,
        print_freq=cfg.train.print_freq,
        **{
            name: options[name]
            for name in ("fixbase_epoch", "open_layers", "start_eval", "eval_freq", "dist_metric", "normalize_feature")
        },
    )
    best = save_dir / "checkpoint-best.pth"  # of the first process; other machines may not see it
    state = everyone.from_first(lambda: dict(load_checkpoint(best)))
    with everyone.together():
        network = engine.model
        load_weights(network.module if isinstance(network, torch.nn.DataParallel) else network, Checkpoint(state, best))
    engine.average = None  # the best weights are an average already
    write_results(engine, cfg, save_dir)
    if world.rank == 0:
        _LOGGER.info("%s", summary(engine, description, best))


def summary(engine: Any, description: Description, best: Path) -> str:
    """How good the best weights are, what the network costs, and the command that tests it."""
    figures = [
        f"  {name}: mAP {result.mAP:.1%}, rank-1 {result.rank1:.1%}, {result.num_valid_queries} queries"
        for name, result in engine.results.items()
    ]
    return "\n".join(
        [
            "the training has ended",
            *figures,
            f"  network: {cost_in_words(description)}",
            f"  best weights: {best}",
            f"to test it: autoreid evaluate --weights {shlex.quote(str(best))}",
        ]
    )


def settings_of_training(cfg: Any, description: Description) -> dict[str, Any]:
    """What a resumed run must have in common, but for the images: the genotype itself, whatever file it is from."""
    genotype = description.genotype
    return settings_of_result(cfg) | ({"autoreid.genotype": genotype.to_dict()} if genotype else {})


def begin_run_folder(cfg: Any, save_dir: Path, resume: Path | None, log: Log) -> None:
    """From here on the run writes. A test leaves the configuration of the training that may lie there."""
    if not cfg.test.evaluate:
        keep_earlier_run(save_dir, resume)
    log.write_into(save_dir, "train")
    if cfg.test.evaluate:
        return
    if resume:
        bring_history(save_dir, resume)
    write_atomically(save_dir / "config.yaml", lambda name: Path(name).write_text(cfg.dump(), encoding="utf-8"))


def build_engine(
    cfg: Any,
    datamanager: TrainDataManager,
    description: Description,
    device: torch.device,
    world: OneProcess,
    fresh: bool = True,
) -> ImageSoftmaxTrainingEngine | ImageTripletTrainingEngine:
    """The engine, its network with the weights to begin with if it is ``fresh``: not to be overwritten by a resume."""
    auxiliary_weight = cfg.autoreid.auxiliary_weight if description.genotype else 0.0  # torchreid's models have none
    pretrained = fresh and cfg.model.pretrained and not cfg.model.load_weights
    model = description.build(
        datamanager.num_train_pids,
        cfg.autoreid.drop_path,
        auxiliary_weight > 0,
        pretrained=(cfg.autoreid.pretrained or True) if pretrained else False,
    )
    check_input(cfg, model)
    if cfg.model.load_weights and fresh:
        load_weights(model, cfg.model.load_weights, testing=cfg.test.evaluate)
    model = model.to(device)
    if device.type == "cpu":  # up to 1.6 times as fast there, with the same result up to rounding
        model = model.to(memory_format=torch.channels_last)
    if world.size > 1 and cfg.recipe.sync_batch_norm:
        synchronise_batch_norm(model)
    check_layers(cfg, model)
    optimizer = torchreid.optim.build_optimizer(model, **optimizer_kwargs(cfg))
    scheduler = build_scheduler(
        optimizer,
        min_lr=cfg.recipe.min_lr,
        warmup_epochs=cfg.recipe.warmup_epochs,
        warmup_factor=cfg.recipe.warmup_factor,
        **scheduler_kwargs(cfg),
    )
    if device.type == "cuda" and world.size == 1 and torch.cuda.device_count() > 1:
        model = torch.nn.DataParallel(model)
    recipe = Recipe(
        cfg.recipe.grad_clip,
        cfg.recipe.ema_decay,
        cfg.recipe.amp,
        auxiliary_weight,
        cfg.recipe.flip_test,
        cfg.recipe.keep_last,
        description=description.to_dict() | {"num_classes": datamanager.num_train_pids},
    )
    common = {"scheduler": scheduler, "use_gpu": cfg.use_gpu, "label_smooth": cfg.loss.softmax.label_smooth}
    common |= {"distributed": world.size > 1}
    if cfg.loss.name == "softmax":
        return ImageSoftmaxTrainingEngine(datamanager, model, optimizer, recipe=recipe, **common)
    triplet = cfg.loss.triplet
    return ImageTripletTrainingEngine(
        datamanager, model, optimizer, triplet.margin, triplet.weight_t, triplet.weight_x, recipe=recipe, **common
    )


def check_layers(cfg: Any, model: torch.nn.Module) -> None:
    """torchreid passes over a layer that the network does not have."""
    layers = [name for name, _ in model.named_children()]
    for key, wanted in (
        ("train.new_layers", cfg.train.new_layers if cfg.train.staged_lr else []),
        ("train.open_layers", cfg.train.open_layers if cfg.train.fixbase_epoch else []),
    ):
        for name in wanted:
            if name not in layers:
                raise UserError(f"{key}: {cfg.model.name} has no layer {name!r}; choose from {', '.join(layers)}")


def check_files(cfg: Any, checkpoint: Checkpoint | None, genotype: str = "") -> None:
    """Options that contradict one another, and files that would be moved away with the log of an earlier run."""
    resume = None if checkpoint is None else checkpoint.path
    if cfg.test.evaluate and resume:
        raise UserError(f"test.evaluate only tests, and --resume {resume} trains on; give model.load_weights {resume}")
    if cfg.test.evaluate and not cfg.model.load_weights and not cfg.model.pretrained:
        raise UserError("test.evaluate would test random weights; give the trained ones: model.load_weights FILE")
    if cfg.test.evaluate:
        return
    save_dir = Path(cfg.data.save_dir)
    for key, path in (("model.load_weights", cfg.model.load_weights), ("autoreid.pretrained", cfg.autoreid.pretrained)):
        if path and resume is None and save_dir.resolve() in Path(path).resolve().parents:
            raise UserError(
                f"{key} {path} lies in data.save_dir {save_dir}, which a new run moves out of its way; "
                "set another data.save_dir"
            )
    inputs = {
        "--genotype" if genotype else "autoreid.genotype": Genotype.file(cfg.autoreid.genotype),
        "data.root": cfg.data.root,
    }
    check_run_folder(save_dir, resume, inputs)


def check_input(cfg: Any, model: torch.nn.Module) -> None:
    """Some of torchreid's models take images of one size only."""
    model.eval()
    try:
        with torch.no_grad():
            model(torch.zeros(1, 3, cfg.data.height, cfg.data.width))
    except (AssertionError, RuntimeError, ValueError) as error:
        if line_of_the_machine(error):
            raise
        reason = " ".join(str(error).split())
        raise UserError(
            f"{cfg.model.name} takes no images of {cfg.data.height} x {cfg.data.width} ({reason}); "
            "set data.height and data.width to the size it is made for"
        ) from None
    model.train()


def write_results(engine: Any, cfg: Any, save_dir: Path) -> None:
    """Tests on all targets, with all of torchreid's options, into the log and ``results.json``."""
    options = engine_run_kwargs(cfg)
    names = ("dist_metric", "normalize_feature", "visrank", "visrank_topk", "use_metric_cuhk03", "ranks", "rerank")
    engine.test(save_dir=str(save_dir), **{name: options[name] for name in names})
    text = json.dumps({name: result.to_dict() for name, result in engine.results.items()}, indent=1)
    with engine.group.together():
        if engine.group.rank == 0:
            write_atomically(
                save_dir / "results.json", lambda name: Path(name).write_text(text + "\n", encoding="utf-8")
            )


class EpochLog:
    """Two lines an epoch, on the terminal and in the log file."""

    def __init__(self) -> None:
        self.time_left, self.best = TimeLeft(), 0.0

    def __call__(self, record: TrainingRecord) -> None:
        train, found = record.train, record.retrieval
        losses = ", ".join(
            f"{name.removeprefix('loss_')} {value:.3f}" for name, value in train.items() if name.startswith("loss")
        )
        lines = [
            f"{self.time_left(record)}: {losses}, top-1/5/10 {train['top1']:.1%} {train['top5']:.1%} "
            f"{train['top10']:.1%}, learning rate {record.lr:.2g}"
        ]
        if found:
            self.best = max(self.best, found["mAP"])
            lines.append(
                f"  validation: mAP {found['mAP']:.1%} (best {self.best:.1%}), rank-1 {found['rank1']:.1%}, "
                f"mINP {found['mINP']:.1%}, {found['num_valid_queries']} queries"
            )
        _LOGGER.info("%s", "\n".join(lines))
