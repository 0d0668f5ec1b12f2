"""What a search shows in TensorBoard, an epoch at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch

from ..genotype import KINDS, Genotype
from ..report.plots import draw_alphas, draw_cell, figure_to_rgb

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

__all__ = ["write_epoch"]


def write_epoch(writer: SummaryWriter, record: Mapping[str, Any]) -> None:
    """Writes a line of the history as scalars, the alphas as histograms, and the drawn cells as images."""
    epoch = record["epoch"]
    for tag, value in _scalars(record):
        writer.add_scalar(tag, value, epoch)
    genotype = Genotype.from_dict(record["genotype"])
    for kind in KINDS:
        writer.add_image(f"Cells/{kind}", figure_to_rgb(draw_cell(genotype, kind)), epoch)
        probabilities = draw_alphas(record["probabilities"][kind], record["operations"])
        writer.add_image(f"Probabilities/{kind}", figure_to_rgb(probabilities), epoch)
    for name, alphas in record["alphas"].items():
        writer.add_histogram(f"Alphas/{name}", torch.tensor(alphas), epoch)
    writer.flush()


def _scalars(record: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for group in ("w", "alpha", "lr", "none_mass", "skips", "strengths", "retrieval"):
        for name, value in (record.get(group) or {}).items():
            yield f"Search/{group}/{name}", value
    for measure, costs in (record.get("cost") or {}).items():
        for name, value in costs.items():
            if value is not None:
                yield f"Cost/{measure}/{name}", value
    for kind, rows in record["probabilities"].items():
        means = torch.tensor(rows).mean(dim=0)
        for name, value in zip(record["operations"], means.tolist(), strict=True):
            yield f"Operations/{kind}/{name}", value
