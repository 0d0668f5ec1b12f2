"""Pre-trains the network of a genotype on ImageNet, or on any folder of images by class; under torchrun if asked."""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Subset
from torch.utils.data.distributed import DistributedSampler
from torchvision.transforms import v2 as transforms
from tqdm import tqdm

from ..checkpoint import LATEST, PREVIOUS, forget_torn, load_checkpoint, load_state, newest_checkpoint, save_checkpoint
from ..data.loader import ReadableFolder, collate
from ..engine import build_scheduler
from ..engine.loop import classification_figures, forget_later_epochs
from ..engine.resume import load_like, load_optimizer
from ..engine.run_folder import keep_earlier_run
from ..errors import UserError
from ..files import forget_half_written
from ..genotype import Genotype
from ..parallel.launch import OneProcess, first_process_first, torchrun_processes
from ..spec import Description
from .console import setup_logging

_LOGGER = logging.getLogger("torchreid_autoreid.pretrain")

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]  # ImageNet's, torchreid's default


def main(args: argparse.Namespace) -> int:
    check(args)
    device = "cuda" if torch.cuda.is_available() and not args.cpu else "cpu"
    with torchrun_processes(device) as world:
        if args.batch_size % world.size:
            raise UserError(f"--batch-size {args.batch_size} does not divide by the {world.size} processes")
        if args.batch_size == world.size:
            raise UserError(
                f"--batch-size {args.batch_size} gives a process one image, of which a batch norm takes no statistics; "
                f"give at least {2 * world.size}"
            )
        output = Path(args.output)
        with first_process_first(world):
            if world.rank == 0:
                keep_earlier_run(output, output / LATEST if args.resume else None)
                setup_logging(output, "pretrain")
        pretrain(args, torch.device(device), world)
    return 0


def check(args: argparse.Namespace) -> None:
    for name in ("channels", "parts", "epochs", "batch_size", "seed"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} must be at least 1, not {getattr(args, name)}")
    for name in ("weight_decay", "warmup_epochs", "auxiliary_weight", "grad_clip", "workers"):
        if not getattr(args, name) >= 0:
            raise UserError(f"--{name.replace('_', '-')} must not be negative, not {getattr(args, name)}")
    for name in ("drop_path", "label_smooth"):
        if not 0 <= getattr(args, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} must be at least 0 and below 1, not {getattr(args, name)}")
    if args.seed >= 1 << 32:
        raise UserError(f"--seed must be below {1 << 32}, not {args.seed}")
    if not args.lr > 0:
        raise UserError(f"--lr must be above 0, not {args.lr}")
    if args.warmup_epochs >= args.epochs:
        raise UserError(f"--warmup-epochs {args.warmup_epochs} must be fewer than --epochs {args.epochs}")
    if args.size < 32:
        raise UserError(f"--size {args.size} is too small for four stages; give at least 32")


def pretrain(args: argparse.Namespace, device: torch.device, world: OneProcess) -> None:
    train_set, val_set = (
        ReadableFolder(Path(args.data) / part, transform(args.size, part)) for part in ("train", "val")
    )
    if train_set.classes != val_set.classes:
        different = sorted(set(train_set.classes) ^ set(val_set.classes))
        raise UserError(f"{args.data}: train and val have different classes, {different[0]!r} for one")
    if len(train_set.classes) == 1:
        raise UserError(f"{args.data} has one class, {train_set.classes[0]!r}, and a network learns to tell several")
    if len(train_set) < args.batch_size:
        raise UserError(f"--batch-size {args.batch_size} is more than the {len(train_set)} training images")
    num_classes = len(train_set.classes)
    description = Description(
        "autoreid", "softmax", args.size, args.size, MEAN, STD, genotype=Genotype.load(args.genotype),
        channels=args.channels, layers=args.layers, parts=args.parts, last_stride=2, last_norm=True,
    )  # fmt: skip
    torch.manual_seed(args.seed)  # the same weights in every process
    network = description.build(num_classes, args.drop_path, args.auxiliary_weight > 0).to(device)
    if device.type == "cpu":
        network = network.to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(network.parameters(), args.lr, momentum=0.9, weight_decay=args.weight_decay)
    scheduler = build_scheduler(optimizer, "cosine", args.epochs, warmup_epochs=args.warmup_epochs)
    start, best = resume(args, network, optimizer, scheduler) if args.resume else (0, -1.0)
    parallel: nn.Module = network
    if world.size > 1:
        parallel = nn.parallel.DistributedDataParallel(network)
    if world.rank == 0:
        forget_half_written(args.output)
        forget_torn(args.output)
        forget_later_epochs(Path(args.output) / "history.jsonl", start)
        _LOGGER.info(
            "%d training and %d validation images of %d classes, %d processes",
            len(train_set), len(val_set), num_classes, world.size,
        )  # fmt: skip
    for epoch in range(start, args.epochs):
        started = time.monotonic()
        rate = optimizer.param_groups[0]["lr"]
        trained = train_epoch(args, parallel, optimizer, train_set, epoch, device, world)
        scheduler.step()
        if world.size > 1:  # each process has its own running statistics since the last step; the first one's are saved
            for buffer in network.buffers():
                torch.distributed.broadcast(buffer, 0)
        tested = test(args, network, val_set, device, world)
        if world.rank:
            continue
        record = {"epoch": epoch + 1, "epochs": args.epochs, "lr": rate, "train": trained, "val": tested}
        record["seconds"] = round(time.monotonic() - started, 3)
        is_best, best = tested["top1"] > best, max(best, tested["top1"])
        state = {
            "state_dict": network.state_dict(),
            "network": description.to_dict() | {"num_classes": num_classes},
            "epoch": epoch + 1,
            "optimizer": optimizer.state_dict(),
            "scheduler": scheduler.state_dict(),
            "best_top1": best,
        }
        with open(Path(args.output) / "history.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
            file.flush()
            os.fsync(file.fileno())  # or a power failure might leave a checkpoint that the history does not reach
        if is_best:
            save_checkpoint(state, Path(args.output) / "checkpoint-best.pth")
        save_checkpoint(state, Path(args.output) / LATEST, Path(args.output) / PREVIOUS)
        _LOGGER.info(
            "epoch %d/%d took %.1f s, learning rate %.5f: loss %.4f, validation top-1 %.2f%%, top-5 %.2f%%",
            epoch + 1,
            args.epochs,
            record["seconds"],
            rate,
            trained["loss"],
            100 * tested["top1"],
            100 * tested["top5"],
        )


def transform(size: int, part: str) -> Any:
    shape = (
        [transforms.RandomResizedCrop(size, antialias=True), transforms.RandomHorizontalFlip()]
        if part == "train"
        else [transforms.Resize(round(size * 256 / 224), antialias=True), transforms.CenterCrop(size)]
    )
    tensor = [transforms.PILToTensor(), transforms.ToDtype(torch.float32, scale=True), transforms.Normalize(MEAN, STD)]
    return transforms.Compose([*shape, *tensor])


def resume(args: argparse.Namespace, network: nn.Module, optimizer: Any, scheduler: Any) -> tuple[int, float]:
    found = newest_checkpoint(args.output)
    if found is None and args.resume == "auto":
        return 0, -1.0
    path, warning = found or (Path(args.output) / LATEST, "")
    if warning:
        _LOGGER.warning("%s", warning)
    state = load_checkpoint(path, ("state_dict", "epoch", "optimizer", "scheduler", "best_top1"))
    load_state(network, state["state_dict"], path)
    try:
        load_optimizer(optimizer, state["optimizer"])
        load_like(scheduler, state["scheduler"])
        return int(state["epoch"]), float(state["best_top1"])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} does not fit this run ({error}); resume with the options it was made with") from None


def train_epoch(
    args: argparse.Namespace,
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    dataset: ReadableFolder,
    epoch: int,
    device: torch.device,
    world: OneProcess,
) -> dict[str, float]:
    """One pass; everything random in it is drawn from (seed, epoch, rank), so a resumed run equals an unbroken one."""
    sampler: DistributedSampler = DistributedSampler(
        dataset, world.size, world.rank, shuffle=True, seed=args.seed, drop_last=True
    )
    sampler.set_epoch(epoch)
    seed = int(np.random.SeedSequence([args.seed, epoch, world.rank]).generate_state(1)[0])
    torch.manual_seed(seed)
    loader = DataLoader(
        dataset,
        args.batch_size // world.size,
        sampler=sampler,
        num_workers=args.workers,
        drop_last=True,
        pin_memory=device.type == "cuda",
        collate_fn=collate,
        generator=torch.Generator().manual_seed(seed),
    )
    network.train()
    total, count = 0.0, 0
    hidden = world.rank > 0 or not sys.stderr.isatty()
    for images, labels in tqdm(batches(loader, device), total=len(loader), desc=f"epoch {epoch + 1}", disable=hidden):
        if args.auxiliary_weight:
            logits, auxiliary = network(images, return_auxiliary=True)
            loss = F.cross_entropy(logits, labels, label_smoothing=args.label_smooth)
            loss = loss + args.auxiliary_weight * F.cross_entropy(auxiliary, labels, label_smoothing=args.label_smooth)
        else:
            loss = F.cross_entropy(network(images), labels, label_smoothing=args.label_smooth)
        value = loss.item()
        if not np.isfinite(value):
            raise UserError(
                f"the loss became {value} at epoch {epoch + 1}; the last good state is in {args.output}; lower --lr"
            )
        optimizer.zero_grad()
        loss.backward()
        if args.grad_clip:
            nn.utils.clip_grad_norm_(network.parameters(), args.grad_clip)
        optimizer.step()
        total, count = total + value, count + 1
    sums = world.sum(np.array([total, count], dtype=np.float64))
    return {"loss": float(sums[0] / sums[1])}


@torch.no_grad()
def test(
    args: argparse.Namespace, network: nn.Module, dataset: ReadableFolder, device: torch.device, world: OneProcess
) -> dict[str, float]:
    """Top-1 and top-5 accuracy, each process on its part of the images."""
    part = range(world.rank, len(dataset), world.size)
    loader = DataLoader(
        Subset(dataset, part), max(1, args.batch_size // world.size), num_workers=args.workers, collate_fn=collate
    )
    network.eval()
    classifier = network.get_submodule("classifier")
    sums = np.zeros(3, dtype=np.float64)
    for images, labels in batches(loader, device):
        figures = classification_figures(classifier(network(images)), labels, (1, 5))
        sums += len(labels) * np.array([figures["top1"], figures["top5"], 1.0])
    top1, top5, count = world.sum(sums)
    return {"top1": float(top1 / count), "top5": float(top5 / count)}


def batches(loader: DataLoader, device: torch.device) -> Any:
    for batch in loader:
        if isinstance(batch, UserError):
            raise batch
        images, labels = batch
        memory_format = torch.channels_last if device.type == "cpu" else torch.contiguous_format
        images = images.to(device, non_blocking=True, memory_format=memory_format)
        yield images, labels.to(device, non_blocking=True)
