"""Classification of a folder of images by class, in the loop of a training: ImageNet weights for our networks."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import Subset

from ..data.loader import InOrderLoader, SearchLoader
from ..parallel.launch import processes
from ..records import PretrainingRecord
from .loop import classification_figures
from .training import ImageSoftmaxTrainingEngine

__all__ = ["ClassificationData", "ImagePretrainingEngine"]


@dataclass(frozen=True)
class ClassificationData:
    """What an engine asks a data manager for.

    Attributes:
        train_loader: of this process's share of each batch.
        val_loader: of all images of the validation set.
        num_train_pids: classes.
    """

    train_loader: SearchLoader
    val_loader: InOrderLoader
    num_train_pids: int
    test_loader: Any = None


class ImagePretrainingEngine(ImageSoftmaxTrainingEngine):
    """A training that is measured, and its best checkpoint chosen, by the top-1 accuracy on a validation set.

    Args:
        label_smoothing: of the cross-entropy, in [0, 1).
        …: as :class:`ImageSoftmaxTrainingEngine`'s; ``datamanager`` is a :class:`ClassificationData`.
    """

    rates = "--lr"
    clip = "--grad-clip"

    def __init__(self, *args: Any, label_smoothing: float = 0.0, **keywords: Any) -> None:
        super().__init__(*args, **keywords)
        self.criterion = nn.CrossEntropyLoss(label_smoothing=label_smoothing)

    def _finish_epoch(self, seconds: float) -> None:
        tested = self._accuracy()
        number = self.epoch + 1
        record = PretrainingRecord(
            epoch=number,
            epochs=self.max_epoch,
            lr=self._epoch_rate,
            train=self._means(),
            val=tested,
            seconds=round(time.monotonic() - self._epoch_started, 3),
        )
        is_best = tested["top1"] > self._best
        self._best = max(self._best, tested["top1"])
        self.group.check_same(f"after epoch {number}", **self._shared())
        with self.group.together():
            if self.group.rank == 0:
                self._write_epoch(record, tested["top1"], is_best)
        if self.on_epoch is not None:
            self.on_epoch(record)

    def _write_board(self, record: PretrainingRecord) -> None:
        for part, figures in (("train", record.train), ("val", record.val)):
            for name, value in figures.items():
                self.writer.add_scalar(f"Epoch/{part}/{name}", value, record.epoch)
        self.writer.flush()

    @torch.no_grad()
    def _accuracy(self) -> dict[str, float]:
        """Top-1 and top-5 accuracy (fractions) on the validation set, each process on its part of the images."""
        world = processes(self.distributed)
        whole = self.datamanager.val_loader
        part = Subset(whole.dataset, range(world.rank, len(whole.dataset), world.size))
        self.set_model_mode("eval")
        classifier = self._network().get_submodule("classifier")
        sums = np.zeros(3, dtype=np.float64)
        for data in InOrderLoader(part, whole.batch_size, whole.workers, whole.pin_memory):
            if self.stop_requested and self.group.size == 1:  # the others of a group would wait for this process's part
                self._interrupt(self.num_batches)
            images, labels = self._to_device(data)
            figures = classification_figures(classifier(self.model(images)), labels, (1, 5))
            sums += np.round(len(labels) * np.array([figures["top1"], figures["top5"], 1.0]))  # whole images
        top1, top5, count = world.sum(sums)
        return {"top1": float(top1 / count), "top5": float(top5 / count)}
