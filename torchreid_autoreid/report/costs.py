"""What the network found costs beside others, and what each of its edges costs; others count it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ..genotype import KINDS, num_edges
from ..numbers import amount
from ..records import SearchRecord
from .page import Picture, Table, picture
from .plots import MEASURE_NAMES, draw_networks

__all__ = ["Costs", "Network", "cost_picture", "cost_table"]


@dataclass(frozen=True)
class Network:
    """A network by its costs.

    Attributes:
        name: for people.
        params: parameters, without the classifier.
        macs: multiply-adds of an image.
        own: whether it is of the genotype found.
        mAP: as a fraction, where it was measured as that of the others was; ``None`` elsewhere.
    """

    name: str
    params: int
    macs: int
    own: bool = False
    mAP: float | None = None


@dataclass(frozen=True)
class Costs:
    """What was counted.

    Attributes:
        note: how they were counted.
        size: height and width of the image that multiply-adds are of.
        networks: the one found, and others.
        edges: measure -> cell -> (E, O), the cost of an operation on an edge in all cells of the kind.
        trained: log folder, as it was given -> the network of that training.
    """

    note: str
    size: tuple[int, int]
    networks: Sequence[Network]
    edges: Mapping[str, Mapping[str, Sequence[Sequence[float]]]] = field(default_factory=dict)
    trained: Mapping[str, Network] = field(default_factory=dict)

    @property
    def own(self) -> Network:
        """The network found."""
        return next(network for network in self.networks if network.own)

    def of_edges(self, record: SearchRecord) -> Mapping[str, Mapping[str, Sequence[Sequence[float]]]]:
        """:attr:`edges`, if they are those of the cells of a record."""
        shape = (num_edges(record.genotype.blocks), len(record.operations))
        fits = all((len(rows), len(rows[0])) == shape for cells in self.edges.values() for rows in cells.values())
        return self.edges if fits else {}


def cost_picture(networks: Sequence[Network], caption: str) -> Picture:
    """Networks by their costs, the cheapest on top, with the mAP of those that have one."""
    rows = sorted(networks, key=lambda network: network.macs)
    told = "; ".join(
        f"{network.name} {amount(network.params)} and {amount(network.macs)}"
        + ("" if network.mAP is None else f", {network.mAP:.1%} mAP")
        for network in rows
    )
    return picture(
        caption, draw_networks(rows), draw_networks(rows, narrow=True), f"Parameters and multiply–adds: {told}."
    )


def cost_table(networks: Sequence[Network]) -> Table:
    """The same in numbers."""
    measured = any(network.mAP is not None for network in networks)
    rows = [
        [network.name, amount(network.params), amount(network.macs)]
        + (["–" if network.mAP is None else f"{network.mAP:.1%}"] if measured else [])
        for network in sorted(networks, key=lambda network: network.macs)
    ]
    heads = ["network", MEASURE_NAMES["params"], MEASURE_NAMES["macs"], *(["mAP"] if measured else [])]
    return Table("The same in numbers.", heads, rows, sortable=True)


def edge_costs(costs: Costs | None, record: SearchRecord) -> dict[str, dict[str, list[list[str]]]]:
    """Cell -> measure -> (E, O), for people; empty where nothing was counted."""
    edges = {} if costs is None else costs.of_edges(record)
    return {
        kind: {
            MEASURE_NAMES[measure]: [[amount(int(value)) for value in row] for row in cells[kind]]
            for measure, cells in edges.items()
        }
        for kind in KINDS
    }
