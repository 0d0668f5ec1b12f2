"""Weights that a derived network takes over from one with similar cells."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..genotype import Genotype
from .networks import AutoReIDNetwork

__all__ = ["inherit"]

_OPERATION = re.compile(r"(cells\.(\d+)\.operations\.)(\d+)\.")


def inherit(network: AutoReIDNetwork, genotype: Genotype, state: Mapping[str, Tensor]) -> int:
    """Copies the weights of all that two networks have in common; the rest of the first one stays as it is.

    In common are all tensors outside the operations (stem, projections of the cell inputs, last norm, classifier), and
    those of an operation that the same block of both genotypes has on the same input.

    Args:
        network: as wide and as deep as the other one.
        genotype: the cells of the other one.
        state: its state dict.

    Returns:
        How many tensors were copied.
    """
    own: dict[str, Any] = network.state_dict()
    copied = 0
    with torch.no_grad():
        for name, other in _pairs(network, own, genotype):
            if other in state and state[other].shape == own[name].shape:
                own[name].copy_(state[other])
                copied += 1
    return copied


def _pairs(network: AutoReIDNetwork, own: Mapping[str, Any], genotype: Genotype) -> Iterator[tuple[str, str]]:
    """The names of what belongs together, ``(of this network, of the other one)``."""
    places = [_places(cell, network.genotype, genotype) for cell in network.cells]
    for name in own:
        found = _OPERATION.match(name)
        if found is None:
            yield name, name
        elif (place := places[int(found[2])].get(int(found[3]))) is not None:
            yield name, f"{found[1]}{place}.{name[found.end() :]}"


def _places(cell: nn.Module, own: Genotype, other: Genotype) -> dict[int, int]:
    """Place of an operation in a cell -> place of the same one in the other genotype's cell."""
    kind, found = str(cell.kind), {}
    for number, (block, before) in enumerate(zip(getattr(own, kind), getattr(other, kind), strict=True)):
        free = [0, 1]
        for place, edge in enumerate(block):
            same = next((i for i in free if before[i] == edge), None)
            if same is not None:
                free.remove(same)
                found[2 * number + place] = 2 * number + same
    return found
