"""What a derived network costs: parameters, multiply-adds (MACs) and latency, exactly and in expectation.

A network is a fixed part (stem and the 1x1 convolutions before the cells) and operations on edges, and all three
measures add up. A table therefore needs the cost of each operation at each place only: all normal cells share one
genotype cell, so that putting operation ``o`` on edge ``e`` of the normal cell costs the sum over all normal cells of
``o`` at that cell's width, size and stride; the same for the reduction cell.

Legend: ``s_eo`` strength of operation ``o`` on edge ``e``, its probability as a rule; ``c_eo`` its cost in all cells of
the kind; ``T`` temperature. The classifier, whose size depends on the number of identities, is left out throughout.
"""

from __future__ import annotations

import functools
import itertools
import json
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ..errors import UserError
from ..files import naming, write_atomically
from ..genotype import KINDS, OPERATION_NAMES, Genotype, cell_edges, num_edges
from ..space.cells import DerivedCell
from ..space.networks import AutoReIDNetwork
from ..space.operations import build_operation

__all__ = [
    "TEMPERATURE",
    "CostTable",
    "LatencyTable",
    "NetworkShape",
    "count_macs",
    "count_parameters",
    "kept_probabilities",
    "measure_latency",
]

#: T of the expected cost. Small enough that it follows the derived cost (probabilities of a search differ by tenths
#: among themselves, which is a factor of e or more after division by T), large enough for a gradient that sees the
#: second best operation and the third edge.
TEMPERATURE = 0.1

_VERSION = 1
_MAX_FILE_BYTES = 1 << 20  # a latency table has some kilobytes


@dataclass(frozen=True)
class NetworkShape:
    """All of a derived network but its genotype, and the size of its input.

    Attributes:
        channels, layers, parts, last_stride, last_norm: as in
            :class:`~torchreid_autoreid.space.networks.AutoReIDNetwork`.
        blocks: blocks of its cells.
        height, width: of the input, in pixels.
    """

    channels: int = 64
    layers: tuple[int, ...] = (2, 2, 2, 2)
    blocks: int = 4
    parts: int = 4
    height: int = 256
    width: int = 128
    last_stride: int = 2
    last_norm: bool = True

    def build(self, genotype: Genotype) -> AutoReIDNetwork:
        """The network of a genotype, with a classifier of one class."""
        return AutoReIDNetwork(
            1,
            genotype=genotype,
            channels=self.channels,
            layers=self.layers,
            parts=self.parts,
            last_stride=self.last_stride,
            last_norm=self.last_norm,
        )

    def fixed_part(self) -> AutoReIDNetwork:
        """The network whose operations are all ``none``: what every genotype has."""
        return self.build(_nothing(self.blocks))

    def places(self) -> Iterator[tuple[str, int, Place]]:
        """``(kind, edge, place)`` of all edges of all cells, seen in the network itself as it runs."""
        with torch.device("meta"):
            network = self.fixed_part().eval()
            cells = [cell for cell in network.cells if isinstance(cell, DerivedCell)]
            seen: list[tuple[int, int, int]] = []
            for operation in (operation for cell in cells for operation in cell.operations):
                operation.register_forward_hook(lambda _, inputs, __: seen.append(tuple(inputs[0].shape[1:])))
            with torch.no_grad():
                network(torch.zeros(1, 3, self.height, self.width))
        sizes = iter(seen)
        for cell in cells:
            # Of the two operations of a block, the first reads a cell input and the other the block before it.
            maps = [next(sizes) for _ in cell.operations]
            for edge, _, source in cell_edges(self.blocks):
                size = maps[0] if source < 2 else maps[-1]
                yield cell.kind, edge, Place(cell.stride_from(source), *size)


@dataclass(frozen=True)
class Place:
    """Where an operation stands: its stride, and the channels and size of the map that it reads."""

    stride: int
    channels: int
    height: int
    width: int

    def build(self, operation: str, parts: int) -> nn.Module:
        """The operation at this place, as in a derived network."""
        return build_operation(operation, self.channels, self.stride, parts)


def _nothing(blocks: int) -> Genotype:
    cell = tuple((("none", 0), ("none", block + 1)) for block in range(blocks))
    return Genotype("none", cell, cell)


def _mixed(blocks: int, operations: Sequence[str]) -> Genotype:
    """All operations but ``none`` in turn, on a cell input and on an earlier block."""
    names = itertools.cycle(name for name in operations if name != "none")
    cells = [tuple(((next(names), 0), (next(names), block + 1)) for block in range(blocks)) for _ in range(len(KINDS))]
    return Genotype("mixed", *cells)


@dataclass(frozen=True)
class CostTable:
    """What the genotypes of one network shape cost, by one measure.

    Attributes:
        operations: the O names of the columns.
        base: the cost of the fixed part.
        edges: ``{'normal': c, 'reduce': c}``, (E, O) float64 each: ``c_eo``, edges in the order of
            :func:`~torchreid_autoreid.genotype.cell_edges`.
    """

    operations: tuple[str, ...]
    base: float
    edges: Mapping[str, Tensor]

    @classmethod
    def parameters(cls, shape: NetworkShape, operations: Sequence[str] = OPERATION_NAMES) -> CostTable:
        """Numbers of parameters, counted on the modules themselves."""
        with torch.device("meta"):
            base = count_parameters(shape.fixed_part())
        return cls._of(shape, operations, base, lambda name, at: count_parameters(_on_meta(name, at, shape.parts)))

    @classmethod
    def macs(cls, shape: NetworkShape, operations: Sequence[str] = OPERATION_NAMES) -> CostTable:
        """Multiply-adds of an image, counted by PyTorch on the modules themselves."""
        with torch.device("meta"):
            base = count_macs(shape.fixed_part(), (3, shape.height, shape.width))

        def count(name: str, at: Place) -> int:
            return count_macs(_on_meta(name, at, shape.parts), (at.channels, at.height, at.width))

        return cls._of(shape, operations, base, count)

    @classmethod
    def latency(cls, measured: LatencyTable) -> CostTable:
        """Milliseconds an image, from what was measured operation by operation.

        In a network an operation takes longer than by itself, where its map stays in the cache. One factor for all
        operations makes the table right for the mixed network, and the base makes it right for the fixed part.
        """
        shape, operations = measured.shape, measured.operations
        alone = cls._of(shape, operations, 0.0, lambda name, at: measured.milliseconds[name, at])
        nothing, mixed = alone.cost(_nothing(shape.blocks)), alone.cost(_mixed(shape.blocks, operations))
        more, more_alone = measured.mixed - measured.fixed_part, mixed - nothing
        factor = more / more_alone if min(more, more_alone) > 0 else 1.0
        # The fixed part was measured with ``none`` on its edges.
        base = max(0.0, measured.fixed_part - factor * nothing)
        return cls(operations, base, {kind: factor * costs for kind, costs in alone.edges.items()})

    @classmethod
    def _of(
        cls, shape: NetworkShape, operations: Sequence[str], base: float, cost: Callable[[str, Place], float]
    ) -> CostTable:
        """Sums the cost of each operation at its places in the cells of each kind."""

        @functools.cache
        def row(place: Place) -> Tensor:
            return torch.tensor([float(cost(name, place)) for name in operations], dtype=torch.float64)

        edges = {kind: torch.zeros(num_edges(shape.blocks), len(operations), dtype=torch.float64) for kind in KINDS}
        for kind, edge, place in shape.places():
            edges[kind][edge] += row(place)
        return cls(tuple(operations), float(base), edges)

    def cost(self, genotype: Genotype) -> float:
        """The cost of the derived network, without its classifier."""
        total = self.base
        for kind, cell in zip(KINDS, genotype.cells, strict=True):
            for block, edges in enumerate(cell):
                total += sum(self._numbers[kind, block, source, name] for name, source in edges)
        return total

    @functools.cached_property
    def _numbers(self) -> dict[tuple[str, int, int, str], float]:
        """The cost by cell, block, input and operation: an element of a tensor takes far longer to read."""
        return {
            (kind, block, source, name): cost
            for kind, costs in self.edges.items()
            for (_, block, source), row in zip(cell_edges(len(_block_sizes(costs))), costs.tolist(), strict=True)
            for name, cost in zip(self.operations, row, strict=True)
        }

    def smallest(self) -> float:
        """The exact minimum over all genotypes that a search can derive.

        Every block by itself takes its two cheapest edges, each with its cheapest operation.
        """
        return self._extreme(largest=False)

    def largest(self) -> float:
        """The exact maximum, likewise."""
        return self._extreme(largest=True)

    def _extreme(self, largest: bool) -> float:
        chosen = [index for index, name in enumerate(self.operations) if name != "none"]
        total = self.base
        for costs in self.edges.values():
            best = costs[:, chosen].amax(dim=1) if largest else costs[:, chosen].amin(dim=1)  # (E,)
            total += sum(block.topk(2, largest=largest).values.sum().item() for block in best.split(_block_sizes(best)))
        return total

    def expected(self, kept: Mapping[str, Tensor]) -> Tensor:
        """``base + sum_eo k_eo c_eo``, a differentiable scalar in float64.

        Args:
            kept: ``{'normal': k, 'reduce': k}``, (E, O) each, from :func:`kept_probabilities`.
        """
        total = self.base + sum((kept[kind] * costs.to(kept[kind].device)).sum() for kind, costs in self.edges.items())
        assert isinstance(total, Tensor)
        return total


def kept_probabilities(
    strengths: Tensor, operations: Sequence[str] = OPERATION_NAMES, temperature: float = TEMPERATURE
) -> Tensor:
    """How likely the derivation keeps each operation on each edge, if the log-strengths carried Gumbel noise.

    The derivation takes the largest ``s_eo`` other than ``none`` as the strength of an edge and keeps the two strongest
    edges of a block; its cost jumps. With ``log s_eo + T G_eo``, ``G`` standard Gumbel, in the place of ``log s_eo`` it
    has a smooth expectation in closed form. With ``w_eo = s_eo^(1/T)``, ``none`` left out, and ``w_e = sum_o w_eo``,
    the operation of edge ``e`` is ``o`` with probability ``q_eo = w_eo / w_e``, independently of which edges win
    (Gumbel-max), and the edges come in the order of a Plackett-Luce draw of weights ``w_e`` (Gumbel-top-k: Kool et al.,
    ICML 2019, section 2.3). So, over the edges of the block and with ``pi_e = w_e / sum_j w_j``,

    ``k_eo = q_eo (pi_e + sum_(j != e) pi_j w_e / sum_(i != j) w_i)``.

    ``none`` has 0, and each block sums to 2, its number of edges. For ``T -> 0`` what :func:`~.genotype.derive` keeps
    has 1 and the rest 0.

    Args:
        strengths: (E, O), probabilities as a rule; edges in the order of
            :func:`~torchreid_autoreid.genotype.cell_edges`.
        operations: the O names of the columns.
        temperature: T.

    Returns:
        (E, O) in float64, differentiable.
    """
    chosen = [index for index, name in enumerate(operations) if name != "none"]
    tiny = torch.finfo(torch.float64).tiny  # the logarithm of 0 has no gradient
    logs = strengths.double()[:, chosen].clamp_min(tiny).log() / temperature  # log w_eo
    choice = logs.softmax(dim=1)  # q
    edges = logs.logsumexp(dim=1)  # log w_e
    winners = torch.cat([_two_of(block) for block in edges.split(_block_sizes(edges))])  # (E,)
    kept = choice.new_zeros(strengths.shape)
    return kept.index_copy(1, torch.tensor(chosen, device=kept.device), winners[:, None] * choice)


def _two_of(logits: Tensor) -> Tensor:
    """(n,) log-weights to the probability that each is among the first two of a Plackett-Luce draw."""
    first = logits.softmax(dim=0)
    itself = torch.eye(len(logits), dtype=torch.bool, device=logits.device)
    second = logits.expand(len(logits), -1).masked_fill(itself, -torch.inf).softmax(dim=1)  # row j: j came first
    return first + first @ second


def _block_sizes(edges: Tensor) -> list[int]:
    """How many of the E edges each block has: 2, 3 and so on."""
    sizes = [2]
    while sum(sizes) < len(edges):
        sizes.append(sizes[-1] + 1)
    return sizes


# -- counting ---------------------------------------------------------------------------------------------------------


def count_parameters(module: nn.Module) -> int:
    """Parameters of a module, without the classifier if it is a network."""
    return sum(p.numel() for name, p in module.named_parameters() if not name.startswith("classifier."))


def count_macs(module: nn.Module, size: tuple[int, int, int]) -> int:
    """Multiply-adds of a module on one (C, H, W) map.

    They are half the operations that PyTorch counts in convolutions and matrix products. A network in eval mode returns
    its features, so the classifier does not count.
    """
    device = next((p.device for p in module.parameters()), None)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        module.eval()(torch.zeros(1, *size, device=device))
    return int(counter.get_total_flops()) // 2


def _on_meta(operation: str, place: Place, parts: int) -> nn.Module:
    with torch.device("meta"):  # shapes are all that counts
        return place.build(operation, parts)


# -- latency ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LatencyTable:
    """What :func:`measure_latency` found: one image, in eval mode, in milliseconds.

    Attributes:
        shape, operations: what it holds for.
        device: where it was measured, for people.
        fixed_part: the whole network with ``none`` on all edges.
        mixed: a whole network with all operations, see :meth:`CostTable.latency`.
        milliseconds: of each operation at each place.
    """

    shape: NetworkShape
    operations: tuple[str, ...]
    device: str
    fixed_part: float
    mixed: float
    milliseconds: Mapping[tuple[str, Place], float]

    def save(self, path: str | Path) -> None:
        """Writes the table as JSON, an operation a line."""
        rows = [{"operation": name, **asdict(place), "ms": value} for (name, place), value in self.milliseconds.items()]
        head = {
            "version": _VERSION,
            "device": self.device,
            "network": asdict(self.shape),
            "operations": self.operations,
            "fixed_part_ms": self.fixed_part,
            "mixed_ms": self.mixed,
        }
        lines = ",\n".join(f"    {json.dumps(row)}" for row in rows)
        text = "".join(f"  {json.dumps(key)}: {json.dumps(value)},\n" for key, value in head.items())
        content = f'{{\n{text}  "rows": [\n{lines}\n  ]\n}}\n'
        write_atomically(path, lambda name: Path(name).write_text(content, encoding="utf-8"))

    @classmethod
    def load(cls, path: str | Path, shape: NetworkShape, operations: Sequence[str] = OPERATION_NAMES) -> LatencyTable:
        """Reads a table for a network shape and search space.

        Raises:
            UserError: if there is no such file, it is no table, or it is one of another network or search space.
        """
        path = Path(path)
        if not path.is_file():
            raise UserError(f"no latency table {path}; a search with search.budget.latency_ms writes one")
        if path.stat().st_size > _MAX_FILE_BYTES:
            raise UserError(f"{path} has {path.stat().st_size} bytes, too many for a latency table")
        try:
            with naming(path):
                content = json.loads(path.read_text(encoding="utf-8"))
            table = cls._from_dict(content, shape, tuple(operations))
        except UserError as error:
            raise UserError(f"the latency table {path} {error}") from None
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise UserError(f"{path} is no latency table ({type(error).__name__}: {error}); measure anew") from None
        return table

    @classmethod
    def _from_dict(cls, content: Any, shape: NetworkShape, operations: tuple[str, ...]) -> LatencyTable:
        if content["version"] != _VERSION:
            raise ValueError(f"version {content['version']!r}")
        found = {"network": content["network"], "operations": content["operations"]}
        if found != json.loads(json.dumps({"network": asdict(shape), "operations": operations})):
            raise UserError(
                "is of another network or search space; use the configuration it was made with, or measure anew"
            )
        places = {tuple(asdict(place).values()): place for _, _, place in shape.places()}
        rows = {}
        for row in content["rows"]:
            place = places[tuple(row[key] for key in ("stride", "channels", "height", "width"))]
            rows[row["operation"], place] = _milliseconds(row["ms"])
        if missing := {(name, place) for name in operations for place in places.values()} - rows.keys():
            raise ValueError(f"{len(missing)} operations are missing")
        fixed_part, mixed = (_milliseconds(content[key]) for key in ("fixed_part_ms", "mixed_ms"))
        return cls(shape, operations, str(content["device"]), fixed_part, mixed, rows)


_MOST_MILLISECONDS = 1e9  # of one image; 10**400 is no float


def _milliseconds(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < _MOST_MILLISECONDS:
        raise ValueError(f"{value!r} is no time in milliseconds")
    return float(value)


def measure_latency(
    shape: NetworkShape,
    operations: Sequence[str] = OPERATION_NAMES,
    device: torch.device | str = "cpu",
    rounds: int = 15,
) -> LatencyTable:
    """Measures every operation at every place on a device: one image, in eval mode, the median of some rounds.

    All are measured in turn, round by round, so that a while in which the machine is busy falls on all of them; a round
    that is not counted warms up. A machine that is busy throughout slows whole networks more than single operations.
    On a CPU maps are channels-last, which is the faster layout there.

    Args:
        shape, operations: the network and the search space.
        device: where; on a GPU the time includes the end of its work.
        rounds: how many.
    """
    device = torch.device(device)
    layout = torch.channels_last if device.type == "cpu" else torch.contiguous_format

    def on_device(module: nn.Module, size: tuple[int, ...]) -> tuple[nn.Module, Tensor]:
        module = module.to(device, memory_format=layout).eval()  # type: ignore[call-overload]
        return module, torch.randn(1, *size, device=device).contiguous(memory_format=layout)

    keys = list(dict.fromkeys((name, place) for _, _, place in shape.places() for name in operations))
    runs = [
        on_device(place.build(name, shape.parts), (place.channels, place.height, place.width)) for name, place in keys
    ]
    for network in (shape.fixed_part(), shape.build(_mixed(shape.blocks, operations))):
        runs.append(on_device(network, (3, shape.height, shape.width)))
    times: list[list[float]] = [[] for _ in runs]
    with torch.inference_mode():
        for turn in range(rounds + 1):
            for (module, x), found in zip(runs, times, strict=True):
                elapsed = _milliseconds_of(module, x)
                if turn:
                    found.append(elapsed)
    *medians, fixed_part, mixed = [statistics.median(found) for found in times]
    return LatencyTable(
        shape, tuple(operations), _describe(device), fixed_part, mixed, dict(zip(keys, medians, strict=True))
    )


def _milliseconds_of(module: nn.Module, x: Tensor) -> float:
    if x.is_cuda:
        torch.cuda.synchronize(x.device)
    start = time.perf_counter()
    module(x)
    if x.is_cuda:
        torch.cuda.synchronize(x.device)
    return 1e3 * (time.perf_counter() - start)


def _describe(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.processor() or platform.machine()}, threads: {torch.get_num_threads()}"
