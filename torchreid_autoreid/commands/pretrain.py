"""Pre-trains the network of a genotype on ImageNet, or on any folder of images by class; under torchrun if asked."""

from __future__ import annotations

import argparse
import logging
import math
import shlex
import sys
from pathlib import Path
from typing import Any

import torch
import torchreid
import yaml
from torchvision.transforms import v2 as transforms

from ..data.loader import ClassifiedImages, InOrderLoader, SearchLoader
from ..data.manager import described_images
from ..engine import Recipe, build_scheduler
from ..engine.pretraining import ClassificationData, ImagePretrainingEngine
from ..engine.run_folder import (
    bring_history,
    check_run_folder,
    checkpoint_path,
    claim_run_folder,
    keep_earlier_run,
)
from ..errors import UserError
from ..files import write_atomically
from ..genotype import Genotype
from ..limits import MOST_PIXELS, check_value
from ..parallel.batch_norm import synchronise_batch_norm
from ..parallel.group import group
from ..parallel.launch import OneProcess, first_process_first, torchrun_processes
from ..records import PretrainingRecord
from ..spec import Description
from .console import StepBar, TimeLeft, begin_log, stop_on_signals
from .options import told_once
from .origin import IMAGES, SAME_DATA

_LOGGER = logging.getLogger("torchreid_autoreid.pretrain")

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]  # ImageNet's, torchreid's default
#: options that do not change the result
_FREE = ("data", "output", "resume", "workers", "cpu", "genotype")
#: option -> key with the same range
_RANGES = {
    **{name: f"train.{name}" for name in ("lr", "weight_decay", "batch_size", "seed")},
    **{name: f"autoreid.{name}" for name in ("channels", "layers", "parts", "drop_path", "auxiliary_weight")},
    **{name: f"recipe.{name}" for name in ("grad_clip", "warmup_epochs")},
    "epochs": "train.max_epoch",
    "workers": "data.workers",
    "label_smooth": "recipe.held_out",
}
_SMALLEST, _LARGEST = 32, math.isqrt(MOST_PIXELS)


def main(args: argparse.Namespace) -> int:
    output = Path(args.output)
    with told_once():
        check(args)
        description = Description(
            "autoreid", "softmax", args.size, args.size, MEAN, STD, genotype=Genotype.load(args.genotype),
            channels=args.channels, layers=args.layers, parts=args.parts, last_stride=2, last_norm=True,
        )  # fmt: skip
        resume = checkpoint_path({"latest": args.output, "auto": "auto"}.get(args.resume, ""), output)
        check_run_folder(output, resume, {"--data": args.data, "--genotype": Genotype.file(args.genotype)})
    device = "cuda" if torch.cuda.is_available() and not args.cpu else "cpu"
    with torchrun_processes(device) as world:
        pretrain(args, description, resume, torch.device(device), world)
    return 0


def check(args: argparse.Namespace) -> None:
    if args.warmup_epochs is None:
        args.warmup_epochs = max(0, min(5, args.epochs - 1))
    for name, key in _RANGES.items():
        check_value(key, getattr(args, name), f"--{name.replace('_', '-')}")
    if args.warmup_epochs >= args.epochs:
        raise UserError(f"--warmup-epochs {args.warmup_epochs} must be fewer than --epochs {args.epochs}")
    if not _SMALLEST <= args.size <= _LARGEST:
        raise UserError(f"--size must be at least {_SMALLEST} (four stages) and at most {_LARGEST}, not {args.size}")


def pretrain(
    args: argparse.Namespace, description: Description, resume: Path | None, device: torch.device, world: OneProcess
) -> None:
    """Trains in all processes; the first one writes and tells, nothing before everything is checked."""
    everyone, output = group(world.size > 1), Path(args.output)
    with everyone.together():  # a mistake that one of them finds ends them all
        log = begin_log(world.rank)
        if log:
            claim_run_folder(output)
        torchreid.utils.set_random_seed(args.seed)
        torch.backends.cudnn.deterministic = True
        with first_process_first(world):
            data = load_data(args, device, world)
    images = {
        part: described_images(loader.dataset.data)
        for part, loader in (("training", data.train_loader), ("validation", data.val_loader))
    }
    everyone.check_same("at the start", SAME_DATA, **{f"{part}_images": text for part, text in images.items()})
    with everyone.together():
        engine = build_engine(args, description, data, device, world)
        options = {name: value for name, value in vars(args).items() if name not in _FREE}
        engine.settings = {f"--{name.replace('_', '-')}": value for name, value in options.items()}
        assert description.genotype is not None
        engine.settings |= {"--genotype": description.genotype.to_dict(), IMAGES: images["training"]}
        start_epoch = engine.resume(resume) if resume else 0
        if log:  # from here on the run writes
            keep_earlier_run(output, resume)
            log.write_into(output, "pretrain")
            if resume:
                bring_history(output, resume)
            text = yaml.safe_dump({name: value for name, value in vars(args).items() if name != "resume"})
            write_atomically(output / "config.yaml", lambda name: Path(name).write_text(text, encoding="utf-8"))
    train_images, val_images = len(data.train_loader.dataset), len(data.val_loader.dataset)
    _LOGGER.info(
        "training on %d images of %d classes, validation on %d; processes: %d",
        train_images, data.num_train_pids, val_images, world.size,
    )  # fmt: skip
    if world.rank == 0:
        engine.on_step = StepBar(start_epoch, args.epochs) if sys.stderr.isatty() else None
        engine.on_epoch = EpochLog()
    stop_on_signals(engine)
    engine.run(str(output), args.epochs, start_epoch, print_freq=sys.maxsize)
    if world.rank == 0:
        _LOGGER.info("%s", summary(args, output / "checkpoint-best.pth"))


def summary(args: argparse.Namespace, best: Path) -> str:
    """Where the best weights are, and the command that trains from them."""
    words = ["--config-file", "autoreid_train_market1501.yaml", "--root", "DIR", "--genotype", args.genotype]
    words += ["model.pretrained", True, "autoreid.pretrained", best, "autoreid.channels", args.channels]
    words += ["autoreid.layers", list(args.layers), "autoreid.parts", args.parts]
    return "\n".join(
        [
            "the pre-training has ended",
            f"  best weights: {best}",
            f"to train from them: autoreid train {shlex.join(map(str, words))}",
        ]
    )


def load_data(args: argparse.Namespace, device: torch.device, world: OneProcess) -> ClassificationData:
    train_set, val_set = (
        ClassifiedImages(Path(args.data) / part, transform(args.size, part)) for part in ("train", "val")
    )
    if train_set.classes != val_set.classes:
        different = sorted(set(train_set.classes) ^ set(val_set.classes))
        raise UserError(f"{args.data}: train and val have different classes, {different[0]!r} for one")
    if len(train_set.classes) == 1:
        raise UserError(f"{args.data} has one class, {train_set.classes[0]!r}, and a network learns to tell several")
    if len(train_set) < args.batch_size:
        raise UserError(f"--batch-size {args.batch_size} is more than the {len(train_set)} training images")
    if args.batch_size % world.size:
        raise UserError(f"--batch-size {args.batch_size} does not divide by the {world.size} processes")
    if args.batch_size == world.size:
        raise UserError(
            f"--batch-size {args.batch_size} gives a process one image, of which a batch norm takes no statistics; "
            f"give at least {2 * world.size}"
        )
    pin = device.type == "cuda"
    train_loader = SearchLoader(
        train_set,
        args.batch_size,
        1,
        "RandomSampler",
        workers=args.workers,
        pin_memory=pin,
        seed=args.seed,
        stream="pretrain",
        share=(world.rank, world.size),
    )
    val_loader = InOrderLoader(val_set, max(1, args.batch_size // world.size), args.workers, pin)
    return ClassificationData(train_loader, val_loader, len(train_set.classes))


def build_engine(
    args: argparse.Namespace,
    description: Description,
    data: ClassificationData,
    device: torch.device,
    world: OneProcess,
) -> ImagePretrainingEngine:
    model = description.build(data.num_train_pids, args.drop_path, args.auxiliary_weight > 0).to(device)
    if device.type == "cpu":
        model = model.to(memory_format=torch.channels_last)
    if world.size > 1:
        synchronise_batch_norm(model)
    optimizer = torch.optim.SGD(model.parameters(), args.lr, momentum=0.9, weight_decay=args.weight_decay)
    recipe = Recipe(
        args.grad_clip,
        auxiliary_weight=args.auxiliary_weight,
        description=description.to_dict() | {"num_classes": data.num_train_pids},
    )
    return ImagePretrainingEngine(
        data,
        model,
        optimizer,
        scheduler=build_scheduler(optimizer, "cosine", args.epochs, warmup_epochs=args.warmup_epochs),
        recipe=recipe,
        label_smoothing=args.label_smooth,
        distributed=world.size > 1,
        use_gpu=device.type == "cuda",
    )


class EpochLog:
    """A line an epoch."""

    def __init__(self) -> None:
        self.time_left = TimeLeft()

    def __call__(self, record: PretrainingRecord) -> None:
        _LOGGER.info(
            "%s: loss %.4f, validation top-1 %.2f%%, top-5 %.2f%%, learning rate %.2g",
            self.time_left(record), record.train["loss"], 100 * record.val["top1"], 100 * record.val["top5"], record.lr,
        )  # fmt: skip


def transform(size: int, part: str) -> Any:
    shape = (
        [transforms.RandomResizedCrop(size, antialias=True), transforms.RandomHorizontalFlip()]
        if part == "train"
        else [transforms.Resize(round(size * 256 / 224), antialias=True), transforms.CenterCrop(size)]
    )
    tensor = [transforms.PILToTensor(), transforms.ToDtype(torch.float32, scale=True), transforms.Normalize(MEAN, STD)]
    return transforms.Compose([*shape, *tensor])
