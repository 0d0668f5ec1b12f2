"""What a search shows in TensorBoard, an epoch at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch

from ..genotype import KINDS
from ..records import SearchRecord
from ..report.plots import draw_alphas, draw_cell, figure_to_rgb

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

__all__ = ["write_epoch"]


def write_epoch(writer: SummaryWriter, record: SearchRecord) -> None:
    """Writes the figures of an epoch as scalars, the alphas as histograms, and the drawn cells as images."""
    epoch = record.epoch
    for tag, value in _scalars(record):
        writer.add_scalar(tag, value, epoch)
    for kind in KINDS:
        writer.add_image(f"Cells/{kind}", figure_to_rgb(draw_cell(record.genotype, kind)), epoch)
        probabilities = draw_alphas(record.probabilities[kind], record.operations)
        writer.add_image(f"Probabilities/{kind}", figure_to_rgb(probabilities), epoch)
    for name, alphas in record.alphas.items():
        writer.add_histogram(f"Alphas/{name}", torch.tensor(alphas), epoch)
    writer.flush()


def _scalars(record: SearchRecord) -> Iterator[tuple[str, float]]:
    for group in ("w", "alpha", "lr", "none_mass", "skips", "scheduled", "retrieval"):
        for name, value in (getattr(record, group) or {}).items():
            yield f"Search/{group}/{name}", value
    for measure, costs in (record.cost or {}).items():
        for name, value in costs.items():
            if value is not None:
                yield f"Cost/{measure}/{name}", value
    for kind, rows in record.probabilities.items():
        means = torch.tensor(rows).mean(dim=0)
        for name, value in zip(record.operations, means.tolist(), strict=True):
            yield f"Operations/{kind}/{name}", value
