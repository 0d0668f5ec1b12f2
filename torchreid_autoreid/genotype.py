"""A genotype says which cells a network is made of; it is data, and stays data (frozen, validated, JSON).

Numbering, as in auto-ReID and DARTS: inputs 0 and 1 of a cell are the outputs of the two cells before it, input
``n >= 2`` is block ``n - 2``. The edges of a cell with ``B`` blocks are numbered block by block: block ``i`` has the
edges from inputs ``0 … i + 1``, so there are ``E = B (B + 3) / 2`` of them (14 for ``B = 4``).
"""

from __future__ import annotations

import importlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from .errors import UserError, short
from .files import as_path, naming

__all__ = [
    "KINDS",
    "MAX_BLOCKS",
    "OPERATION_NAMES",
    "SPACES",
    "Block",
    "Genotype",
    "cell_edges",
    "check_genotype",
    "derive",
    "num_blocks",
    "num_edges",
    "operation_names",
]

#: The search space O_reid (Auto-ReID, section 3.1), in the order in which alphas are stored.
OPERATION_NAMES: tuple[str, ...] = (
    "part_aware",
    "max_pool_3x3",
    "avg_pool_3x3",
    "sep_conv_3x3",
    "dil_conv_3x3",
    "none",
    "skip_connect",
)

#: Named search spaces: ``reid`` is O_reid, ``standard`` is O, the same without the part-aware operation (the ablation).
SPACES: dict[str, tuple[str, ...]] = {
    "reid": OPERATION_NAMES,
    "standard": tuple(name for name in OPERATION_NAMES if name != "part_aware"),
}

#: the two kinds of cell, in the order in which alphas are stored
KINDS = ("normal", "reduce")

Edge = tuple[str, int]
Block = tuple[Edge, Edge]

_VERSION = 1
_MAX_FILE_BYTES = 1 << 20  # a genotype is a few hundred bytes; anything this large is something else
MAX_BLOCKS = 16


def operation_names(space: str) -> tuple[str, ...]:
    """The operations of a named search space.

    Raises:
        UserError: if there is no such space.

    >>> operation_names("standard")[0]
    'max_pool_3x3'
    """
    if not isinstance(space, str) or space not in SPACES:
        raise UserError(f"unknown search space {short(space)}; choose one of {', '.join(SPACES)}")
    return SPACES[space]


def num_blocks(edges: int) -> int | None:
    """The inverse of :func:`num_edges`; ``None`` if no cell has so many edges.

    >>> num_blocks(14), num_blocks(13)
    (4, None)
    """
    return next((blocks for blocks in range(1, edges + 1) if num_edges(blocks) == edges), None)


def num_edges(blocks: int) -> int:
    """Number of edges E of a cell with this many blocks.

    >>> num_edges(4)
    14
    """
    return blocks * (blocks + 3) // 2


def cell_edges(blocks: int) -> Iterator[tuple[int, int, int]]:
    """Yields ``(edge, block, input)`` in the order in which alphas are stored.

    >>> list(cell_edges(1))
    [(0, 0, 0), (1, 0, 1)]
    """
    edge = 0
    for block in range(blocks):
        for source in range(block + 2):
            yield edge, block, source
            edge += 1


@dataclass(frozen=True, repr=False)
class Genotype:
    """The two cells of a network.

    Attributes:
        name: a label for people, such as ``retrieval``.
        normal, reduce: a tuple of blocks each; a block is two edges ``(operation, input)``.

    Raises:
        UserError: if an operation is unknown, an input does not exist, or the numbers of blocks are wrong; the message
            names the cell, the block and the bad value.

    >>> Genotype.load("retrieval").normal[0]
    (('sep_conv_3x3', 0), ('skip_connect', 1))
    >>> Genotype("mine", [[("skip_connect", 0), ("none", 1)]], [[("part_aware", 1), ("sep_conv_3x3", 0)]])
    mine: 1 block a cell
      normal  2 = skip_connect(0) + none(1)
      reduce  2 = part_aware(1) + sep_conv_3x3(0)
    """

    name: str
    normal: tuple[Block, ...]
    reduce: tuple[Block, ...]

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise UserError(f"a genotype needs a name (a non-empty text), not {short(self.name)}")
        object.__setattr__(self, "normal", _checked_cell("normal", self.normal))
        object.__setattr__(self, "reduce", _checked_cell("reduce", self.reduce))
        if len(self.normal) != len(self.reduce):
            raise UserError(
                f"genotype {short(self.name)} has {len(self.normal)} normal and {len(self.reduce)} reduction blocks; "
                "both cells need the same number"
            )

    def __repr__(self) -> str:
        lines = [f"{self.name}: {self.blocks} {'block' if self.blocks == 1 else 'blocks'} a cell"]
        for kind, cell in (("normal", self.normal), ("reduce", self.reduce)):
            for number, block in enumerate(cell, start=2):  # inputs 0 and 1 are the two cells before
                edges = " + ".join(f"{operation}({source})" for operation, source in block)
                lines.append(f"  {kind if number == 2 else '':<6}  {number} = {edges}")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        """Both cells as pictures, in a notebook."""
        # The report draws genotypes and imports this module, so it is imported when a notebook asks.
        plots = importlib.import_module(f"{__package__}.report.plots")
        figures = (plots.draw_cell(self, kind) for kind in KINDS)
        return "".join(f"<div>{plots.figure_to_svg(figure)}</div>" for figure in figures)

    @property
    def cells(self) -> tuple[tuple[Block, ...], tuple[Block, ...]]:
        """The normal and the reduction cell: what makes two genotypes the same network, whatever their names."""
        return self.normal, self.reduce

    @property
    def blocks(self) -> int:
        """Number of blocks in each cell."""
        return len(self.normal)

    def count(self, operation: str) -> dict[str, int]:
        """How many edges of each cell use an operation: ``{'normal': n, 'reduce': n}``."""
        return {
            kind: sum(name == operation for block in cell for name, _ in block)
            for kind, cell in (("normal", self.normal), ("reduce", self.reduce))
        }

    def changed_edges(self, other: Genotype) -> int:
        """How many edges of this genotype, each an operation on an input of a block, the other one does not have.

        Raises:
            UserError: if the other one is no genotype, or has another number of blocks.
        """
        check_genotype(other)
        if other.blocks != self.blocks:
            raise UserError(f"genotypes of {self.blocks} and {other.blocks} blocks have no edges in common places")
        return sum(
            sum((Counter(block) - Counter(before)).values())
            for cell, cell_before in zip(self.cells, other.cells, strict=True)
            for block, before in zip(cell, cell_before, strict=True)
        )

    @staticmethod
    def presets() -> dict[str, Genotype]:
        """The three cells that the authors published (Auto-ReID, Figure 4 and the appendix), by name."""
        return dict(_PRESETS)

    @staticmethod
    def file(path_or_preset: str) -> str:
        """The file that :meth:`load` reads; empty for a preset.

        >>> Genotype.file("retrieval"), Genotype.file("mine.json")
        ('', 'mine.json')
        """
        return "" if path_or_preset in _PRESETS else path_or_preset

    @classmethod
    def load(cls, path_or_preset: str | Path) -> Genotype:
        """Reads a genotype from a JSON file, or returns a preset by its name.

        Raises:
            UserError: if there is neither such a preset nor such a file, or the file is not a valid genotype.
        """
        path = as_path(path_or_preset, "a genotype's name or path")
        if str(path_or_preset) in _PRESETS:
            return _PRESETS[str(path_or_preset)]
        if not path.is_file():
            near = get_close_matches(str(path_or_preset), _PRESETS, n=2, cutoff=0.5)
            hint = f"did you mean {' or '.join(near)}? " if near else ""
            raise UserError(
                f"no genotype {str(path_or_preset)!r}: {hint}give a preset ({', '.join(_PRESETS)}) "
                "or the path of a JSON file"
            )
        if path.stat().st_size > _MAX_FILE_BYTES:
            raise UserError(f"{path} has {path.stat().st_size} bytes, which is no genotype (they have a few hundred)")
        try:
            with naming(path):
                content = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path} is not valid JSON: {str(error)[:200]}") from None
        try:
            return cls.from_dict(content)
        except UserError as error:
            raise UserError(f"{path}: {error}") from None

    def save(self, path: str | Path) -> None:
        """Writes the genotype as JSON (the format is in the README)."""
        # One block a line: a person reads the file too.
        lines = ["{", f'  "version": {_VERSION},', f'  "name": {json.dumps(self.name)},']
        for kind, cell, comma in (("normal", self.normal, ","), ("reduce", self.reduce, "")):
            blocks = ",\n".join(f"    {json.dumps(block)}" for block in cell)
            lines.append(f'  "{kind}": [\n{blocks}\n  ]{comma}')
        as_path(path).write_text("\n".join([*lines, "}", ""]), encoding="utf-8")

    def to_dict(self) -> dict[str, Any]:
        """The genotype as plain lists, ready for JSON."""
        return {
            "version": _VERSION,
            "name": self.name,
            "normal": [[list(edge) for edge in block] for block in self.normal],
            "reduce": [[list(edge) for edge in block] for block in self.reduce],
        }

    @classmethod
    def from_dict(cls, content: Any) -> Genotype:
        """The inverse of :meth:`to_dict`; validates everything.

        Raises:
            UserError: if a key is missing or unknown, the version is another one, or a value is wrong.
        """
        if not isinstance(content, Mapping):
            raise UserError(f"a genotype is a JSON object, not {type(content).__name__}")
        keys = {"version", "name", "normal", "reduce"}
        if missing := sorted(keys - content.keys()):
            raise UserError(f"a genotype needs the key {missing[0]!r}")
        if unknown := sorted(short(key) for key in content.keys() - keys):
            raise UserError(f"unknown key {unknown[0]} in a genotype; the keys are {', '.join(sorted(keys))}")
        if not isinstance(content["version"], int) or content["version"] != _VERSION:
            raise UserError(
                f"genotype version {short(content['version'])} is not supported; this program reads version {_VERSION}"
            )
        return cls(content["name"], content["normal"], content["reduce"])


def check_genotype(genotype: Any) -> Genotype:
    """Raises a UserError for what is no genotype."""
    if not isinstance(genotype, Genotype):
        raise UserError(
            f"{short(genotype)} is no Genotype; read one with Genotype.load(a preset or the path of a file)"
        )
    return genotype


#: Its own type is known at once, that of an abstract class only after a look at all its bases.
_SEQUENCE = (tuple, list, Sequence)


def _checked_cell(kind: str, cell: Any) -> tuple[Block, ...]:
    if not isinstance(cell, _SEQUENCE) or isinstance(cell, str) or not 1 <= len(cell) <= MAX_BLOCKS:
        raise UserError(f"the {kind} cell must be a list of 1 to {MAX_BLOCKS} blocks, not {short(cell)}")
    return tuple(_checked_block(f"{kind} block {index}", index, block) for index, block in enumerate(cell))


def _checked_block(where: str, index: int, block: Any) -> Block:
    if not isinstance(block, _SEQUENCE) or isinstance(block, str) or len(block) != 2:
        raise UserError(f"{where} must have two edges, got {short(block)}")
    first, second = (_checked_edge(where, index, edge) for edge in block)
    return first, second


def _checked_edge(where: str, index: int, edge: Any) -> Edge:
    if not isinstance(edge, _SEQUENCE) or isinstance(edge, str) or len(edge) != 2:
        raise UserError(f"an edge of {where} must be [operation, input], got {short(edge)}")
    operation, source = edge
    if not isinstance(operation, str) or operation not in OPERATION_NAMES:
        near = get_close_matches(operation[:40], OPERATION_NAMES, n=1) if isinstance(operation, str) else []
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise UserError(
            f"unknown operation {short(operation)} in {where}{hint}; choose from {', '.join(OPERATION_NAMES)}"
        )
    if isinstance(source, bool) or not isinstance(source, int) or not 0 <= source < index + 2:
        raise UserError(f"input {short(source)} of {where} does not exist; it may use inputs 0 to {index + 1}")
    return operation, source


def derive(
    normal: Sequence[Sequence[float]],
    reduce: Sequence[Sequence[float]],
    operations: Sequence[str] = OPERATION_NAMES,
    *,
    name: str = "searched",
    skip_cap: int | None = None,
) -> Genotype:
    """Derives the discrete cells from the strengths of the operations (Auto-ReID, section 3.1; DARTS, section 2.4).

    The strength of an edge is the largest among its operations other than ``none``; a block keeps its two strongest
    edges, each with that operation. Ties go to the earlier edge and the earlier operation.

    Args:
        normal, reduce: (E, O) strengths, edges in the order of :func:`cell_edges`: as published the probabilities;
            :meth:`.AutoReIDSearchNetwork.strengths` has the other forms. The column of ``none`` is not read.
        operations: the O names of the columns.
        name: the name of the result.
        skip_cap: how many skip connections the normal cell keeps at most; ``None``: any number. The weakest ones above
            it are struck out, and the cell is derived anew, so that each gives way to the next best operation or edge
            (P-DARTS, Chen et al., ICCV 2019, section 3.3).

    Raises:
        UserError: if a value is no finite number, the shape fits no cell, or ``skip_cap`` is no number of connections.

    >>> uniform = [[1 / 7] * 7] * 2
    >>> derive(uniform, uniform).normal
    ((('part_aware', 0), ('part_aware', 1)),)
    """
    return Genotype(
        name,
        _derive_cell("normal", normal, operations, skip_cap),
        _derive_cell("reduce", reduce, operations, None),
    )


def _derive_cell(
    kind: str, strengths: Sequence[Sequence[float]], operations: Sequence[str], skip_cap: int | None
) -> tuple[Block, ...]:
    try:
        table = [[float(value) for value in row] for row in strengths]
        names = [str(operation) for operation in operations]
    except (TypeError, ValueError, OverflowError):
        raise UserError(
            f"{kind} strengths must be (E, O) numbers with O names, not {short(strengths)} with {short(operations)}"
        ) from None
    blocks = num_blocks(len(table))
    if blocks is None:
        raise UserError(f"{len(table)} {kind} edges fit no cell; 4 blocks have {num_edges(4)}")
    if skip_cap is not None and (isinstance(skip_cap, bool) or not isinstance(skip_cap, int) or skip_cap < 0):
        raise UserError(f"skip_cap must be a whole number of at least 0, or None, not {short(skip_cap)}")
    rows = [_by_operation(f"{kind} edge {edge}", row, names) for edge, row in enumerate(table)]
    while True:
        chosen = _strongest_edges(rows, blocks)
        skips = sorted((c for block in chosen for c in block if c[2] == "skip_connect"), key=lambda c: -c[0])
        if skip_cap is None or len(skips) <= skip_cap:
            return tuple((first[2:], second[2:]) for first, second in chosen)
        for _, edge, operation, _ in skips[skip_cap:]:
            del rows[edge][operation]
            if not rows[edge]:
                raise UserError(f"a skip cap of {skip_cap} leaves {kind} edge {edge} no operation; raise the cap")


# strength, edge, operation, source
_Candidate = tuple[float, int, str, int]


def _strongest_edges(rows: Sequence[Mapping[str, float]], blocks: int) -> list[tuple[_Candidate, _Candidate]]:
    best: list[list[_Candidate]] = [[] for _ in range(blocks)]
    for edge, block, source in cell_edges(blocks):
        operation = max(rows[edge], key=lambda name: rows[edge][name])
        best[block].append((rows[edge][operation], edge, operation, source))
    # sorted() is stable, so among equals the earlier input wins.
    ranked = [sorted(edges, key=lambda candidate: -candidate[0]) for edges in best]
    return [(edges[0], edges[1]) for edges in ranked]


def _by_operation(where: str, row: Sequence[float], operations: Sequence[str]) -> dict[str, float]:
    """The strength of each operation of an edge but ``none``."""
    if len(row) != len(operations):
        raise UserError(f"{where} has {len(row)} strengths for {len(operations)} operations")
    if not all(abs(value) < float("inf") for value in row):
        raise UserError(f"{where} has strengths that are not finite: {list(row)}")
    return {op: value for value, op in zip(row, operations, strict=True) if op != "none"}


def _preset(name: str, normal: str, reduce: str) -> Genotype:
    """Reads the paper's notation: ``sep_conv_3x3<0 skip_connect<1 | …``, blocks parted by bars."""

    def cell(text: str) -> Any:
        return [
            [(op, int(source)) for op, source in (edge.split("<") for edge in block.split())]
            for block in text.split("|")
        ]

    return Genotype(name, cell(normal), cell(reduce))


_PRESETS = {
    genotype.name: genotype
    for genotype in (
        # Searched with the retrieval loss in O_reid: the paper's Auto-ReID network.
        _preset(
            "retrieval",
            "sep_conv_3x3<0 skip_connect<1 | dil_conv_3x3<2 dil_conv_3x3<0 | "
            "dil_conv_3x3<3 sep_conv_3x3<2 | dil_conv_3x3<4 dil_conv_3x3<3",
            "max_pool_3x3<0 part_aware<1 | sep_conv_3x3<0 dil_conv_3x3<2 | "
            "dil_conv_3x3<2 max_pool_3x3<0 | dil_conv_3x3<4 dil_conv_3x3<3",
        ),
        # Searched with the classification loss in O_reid.
        _preset(
            "baseline_reid_space",
            "dil_conv_3x3<0 skip_connect<1 | max_pool_3x3<2 sep_conv_3x3<0 | "
            "max_pool_3x3<3 sep_conv_3x3<1 | sep_conv_3x3<2 dil_conv_3x3<3",
            "skip_connect<1 part_aware<0 | avg_pool_3x3<2 part_aware<0 | "
            "sep_conv_3x3<1 avg_pool_3x3<2 | skip_connect<4 max_pool_3x3<3",
        ),
        # Searched with the classification loss in O.
        _preset(
            "baseline",
            "dil_conv_3x3<1 dil_conv_3x3<0 | dil_conv_3x3<1 sep_conv_3x3<2 | "
            "dil_conv_3x3<2 sep_conv_3x3<1 | sep_conv_3x3<2 sep_conv_3x3<3",
            "sep_conv_3x3<1 skip_connect<0 | max_pool_3x3<2 dil_conv_3x3<1 | "
            "max_pool_3x3<0 dil_conv_3x3<2 | skip_connect<0 dil_conv_3x3<4",
        ),
    )
}
