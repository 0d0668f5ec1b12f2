"""Counts what networks cost for the report of a search: the one found, those trained, and known ones beside them."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torchreid

from ..config.build import shape_kwargs
from ..config.check import check_search_config, check_train_config
from ..config.read import load_config
from ..errors import UserError
from ..genotype import Genotype, operation_names
from ..numbers import amount
from ..report.costs import Costs, Network
from ..search.budget import UNITS
from ..search.cost import CostTable, NetworkShape, count_macs, count_parameters
from ..spec import Description

__all__ = ["cost_in_words", "count_costs", "count_costs_of_log", "count_network"]

#: of torchreid, to be put beside the network found
KNOWN = {"ResNet-50": "resnet50", "OSNet (x1.0)": "osnet_x1_0"}


_FOUND = "the network found"


def cost_in_words(description: Description) -> str:
    """What a network costs, in a line; of torchreid's own, which may do anything, parameters alone."""
    network = _built(description)
    words = f"{amount(count_parameters(network))} {UNITS['params']}"
    if description.genotype is None:
        return words
    macs = count_macs(network, (3, description.height, description.width))
    return f"{words}, {amount(macs)} {UNITS['macs']} of {description.height} x {description.width}"


def count_network(cfg: Any, genotype: Genotype) -> Network:
    """The network of a genotype alone, for images as large as those of the search."""
    shape = NetworkShape(**shape_kwargs(cfg))
    return _of_genotype(_FOUND, shape, genotype, (shape.height, shape.width), own=True)


def count_costs_of_log(folder: str | Path, trained: Iterable[str] = ()) -> Costs | None:
    """:func:`count_costs` by the ``config.yaml`` and ``genotype.json`` of the log folder of a search.

    Returns:
        ``None`` where the configuration is missing, or of another version.

    Raises:
        UserError: if the genotype, or the log of a training, cannot be read.
    """
    try:
        cfg = load_config(str(Path(folder) / "config.yaml"))
        check_search_config(cfg)
    except UserError:
        return None
    return count_costs(cfg, Genotype.load(Path(folder) / "genotype.json"), trained)


def count_costs(cfg: Any, genotype: Genotype, trained: Iterable[str] = ()) -> Costs:
    """Counts the network of a genotype, its edges, and the networks beside it, on modules without memory.

    Multiply-adds are of an image as large as that of the first training, or of the search if there is none.

    Args:
        cfg: the configuration of the search.
        genotype: found.
        trained: log folders of trainings, of these cells or of other networks.
    """
    shape = NetworkShape(**shape_kwargs(cfg))
    descriptions = {folder: _described(folder) for folder in trained}
    size = next(((one.height, one.width) for one in descriptions.values() if one), (shape.height, shape.width))
    counted = {folder: _of_training(folder, one, size) for folder, one in descriptions.items() if one}
    of_trainings = {folder: network for folder, network in counted.items() if network}
    published = replace(NetworkShape(), blocks=shape.blocks, height=shape.height, width=shape.width)
    networks = [_of_genotype(_FOUND, shape, genotype, size, own=True)]
    for name, preset in Genotype.presets().items():
        if shape != published:
            networks.append(_of_genotype(f"{name} (preset), as wide and as deep", shape, preset, size))
        networks.append(_of_genotype(f"{name} (preset)", published, preset, size))
    networks += [_of_torchreid(name, model, size) for name, model in KNOWN.items()]
    note = (
        f"Counted alike, on the modules themselves. The network found has {shape.channels} channels and "
        f"{sum(shape.layers)} cells"
    ) + (
        "; so have the presets that are called as wide and as deep." if shape != published else ", as the presets have."
    )
    return Costs(note, size, networks, _edges(shape, operation_names(cfg.search.space)), of_trainings)


# A page that follows a search is written again and again.
@functools.lru_cache(64)
def _of_genotype(
    name: str, shape: NetworkShape, genotype: Genotype, size: tuple[int, int], own: bool = False
) -> Network:
    with torch.device("meta"):
        return _counted(name, shape.build(genotype), size, size, own)


@functools.lru_cache(64)
def _of_torchreid(name: str, model: str, size: tuple[int, int]) -> Network:
    with torch.device("meta"):
        network = torchreid.models.build_model(model, 1, "softmax", pretrained=False, use_gpu=False)
        return _counted(name, network, size, size)


@functools.lru_cache(8)
def _edges(shape: NetworkShape, operations: tuple[str, ...]) -> dict[str, dict[str, list[list[float]]]]:
    tables = {"params": CostTable.parameters(shape, operations), "macs": CostTable.macs(shape, operations)}
    return {measure: {kind: rows.tolist() for kind, rows in table.edges.items()} for measure, table in tables.items()}


def _described(folder: str) -> Description | None:
    """The network of a training, by its configuration; ``None`` where that cannot be read."""
    try:
        cfg = load_config(str(Path(folder) / "config.yaml"))
        check_train_config(cfg)
        return Description.of_config(cfg)
    except UserError:
        return None


def _of_training(folder: str, description: Description, size: tuple[int, int]) -> Network | None:
    """``None`` for a model of torchreid's that does what cannot be done without memory."""
    own = (description.height, description.width)
    try:
        return _counted(Path(folder).resolve().name, _built(description), own, size)
    except (RuntimeError, NotImplementedError, TypeError):
        return None


def _built(description: Description) -> torch.nn.Module:
    with torch.device("meta"):
        return description.build(1)


def _counted(
    name: str, network: torch.nn.Module, size: tuple[int, int], usual: tuple[int, int], own: bool = False
) -> Network:
    shown = name if size == usual else f"{name}, for images of {size[0]} × {size[1]}"
    return Network(shown, count_parameters(network), count_macs(network, (3, *size)), own)
