"""What a run shows in TensorBoard: few charts, each with the curves that are read together; pictures of the cells."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.tensorboard.summary import hparams

from ..genotype import KINDS
from ..records import SearchRecord
from ..report.plots import draw_alphas, draw_card, figure_to_rgb

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

__all__ = ["begin_board", "write_epoch"]

#: page -> chart -> pattern of its curves, on TensorBoard's tab Custom Scalars
_CHARTS = {
    "Search": {
        "mAP and ranks on the held-out half": "Search/retrieval/(mAP|mINP|rank1)$",
        "loss of the weights and of the alphas": "Search/(w|alpha)/loss$",
        "top-1 of the batches": "Search/(w|alpha)/top1$",
        "learning rates": "Search/lr/",
        "probability of none": "Search/none_mass/",
        "skip connections kept": "Search/skips/",
        "how undecided the alphas are (entropy, 1: not at all decided)": "Search/entropy/",
        "gradient of the alphas by part of the loss": "Search/alpha_gradient/",
    },
    "Operations": {f"mean probability, {kind} cell": f"Operations/{kind}/" for kind in KINDS},
    "Cost": {
        measure: f"Cost/{measure}/(limit|expected|derived|genotype)$" for measure in ("params", "macs", "latency_ms")
    },
    "Candidates": {
        "mAP and ranks on the identities held out": "Search/retrieval/(mAP|mINP|rank1)$",
        "loss": "Search/w/loss$",
        "top-1 of the batches": "Search/w/top1$",
        "learning rate": "Search/lr/w$",
        "skip connections of the best": "Search/skips/",
    },
    "Training": {
        "mAP and ranks on the validation set": "Validation/(mAP|mINP|rank1)$",
        "losses": "Epoch/(train/)?loss",
        "accuracy": "Epoch/.*top1$",
    },
}


def begin_board(
    writer: SummaryWriter, pages: Sequence[str], configuration: Mapping[str, Any], settings: Mapping[str, Any]
) -> None:
    """Writes what holds for the whole run: the layout of the charts, the configuration, and the settings as hparams.

    Args:
        pages: ``Search`` and ``Operations`` or ``Candidates``, with ``Cost`` where there is a limit; or ``Training``.
        configuration: name -> value, shown as a text.
        settings: name -> value of what the result depends on; by them TensorBoard compares runs.
    """
    writer.add_custom_scalars(
        {page: {title: ["Multiline", [tags]] for title, tags in _CHARTS[page].items()} for page in pages}
    )
    if configuration:
        lines = "".join(f"    {name}: {value}\n" for name, value in sorted(configuration.items()))
        writer.add_text("configuration", lines, 0)  # indented: a block of code, shown as it is
    plain = {name: value for name, value in settings.items() if isinstance(value, bool | int | float | str)}
    if plain:
        metric = "Validation/mAP" if "Training" in pages else "Search/retrieval/mAP"
        for summary in hparams(plain, {metric: 0.0}):
            writer._get_file_writer().add_summary(summary)  # its own add_hparams would begin another run


def write_epoch(writer: SummaryWriter, record: SearchRecord) -> None:
    """Writes an epoch of a search: figures as scalars, alphas as histograms, cells and alphas as pictures."""
    epoch = record.epoch
    for tag, value in _scalars(record):
        writer.add_scalar(tag, value, epoch)
    for kind in KINDS:
        writer.add_image(f"Cells/{kind}", figure_to_rgb(draw_card(record.genotype, kind)), epoch)
        if record.candidate is not None:  # its probabilities are a constant
            continue
        cell = getattr(record.genotype, kind)
        probabilities = draw_alphas(record.probabilities[kind], record.operations, cell=cell)
        writer.add_image(f"Probabilities/{kind}", figure_to_rgb(probabilities), epoch)
    for name, alphas in record.alphas.items():
        writer.add_histogram(f"Alphas/{name}", torch.tensor(alphas), epoch)
    writer.flush()


def _scalars(record: SearchRecord) -> Iterator[tuple[str, float]]:
    for group in ("w", "alpha", "lr", "none_mass", "skips", "scheduled", "retrieval"):
        for name, value in (getattr(record, group) or {}).items():
            yield f"Search/{group}/{name}", value
    for group in ("alpha_gradient", "entropy"):
        for name, value in (record.diagnosis.get(group) or {}).items():
            yield f"Search/{group}/{name}", value
    for measure, costs in (record.cost or {}).items():
        for name, value in costs.items():
            if value is not None:
                yield f"Cost/{measure}/{name}", value
    if record.candidate is not None:
        return
    for kind, rows in record.probabilities.items():
        means = torch.tensor(rows).mean(dim=0)
        for name, value in zip(record.operations, means.tolist(), strict=True):
            yield f"Operations/{kind}/{name}", value
