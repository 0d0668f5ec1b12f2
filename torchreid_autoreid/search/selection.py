"""Other ways to a genotype than the strength of alphas: what the network loses without an operation, and chance."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from ..errors import UserError
from ..genotype import KINDS, Block, Genotype, cell_edges
from ..space.strategies import Mixture

__all__ = ["draw_from_alphas", "draw_genotype", "log_probability", "propose", "select_by_perturbation"]

_MOST_DRAWS = 10_000
_NOT_WITHIN = "is within the limits (search.budget, search.skip_cap); raise them"

Mixtures = Mapping[str, Mixture]


def select_by_perturbation(
    mixtures: Mixtures,
    operations: Sequence[str],
    blocks: int,
    evaluate: Callable[[Mixtures], float],
    tune: Callable[[Mixtures], None],
    seed: int,
    name: str = "searched",
) -> Genotype:
    """Chooses operations and edges by what their removal costs (DARTS-PT, Wang et al., ICLR 2021, algorithm 1).

    First, for each edge in random order: the loss of the network is measured without each of the operations (other than
    ``none``), the one that is missed most stays alone on the edge, and the weights are tuned. Then, for each block in
    random order: the loss is measured without each of its edges, the two that are missed most stay, and the weights are
    tuned. Ties go to the earlier one.

    Args:
        mixtures: of both kinds of cell at the end of the search, without draws.
        operations: the O names.
        blocks: of a cell.
        evaluate: the loss of the network with these mixtures.
        tune: trains the weights of the network with these mixtures.
        seed: of the orders.
        name: of the result.

    Returns:
        The genotype; the two edges of a block in the order of their inputs.
    """
    order = random.Random(f"perturbation {seed}")
    present = {kind: _detached(mixtures[kind]) for kind in KINDS}
    edges = list(cell_edges(blocks))
    kept: dict[str, dict[int, int]] = {kind: {} for kind in KINDS}  # edge -> index of its operation
    steps = [(kind, edge) for kind in KINDS for edge, _, _ in edges]
    order.shuffle(steps)
    for kind, edge in steps:
        losses = {
            index: evaluate(present | {kind: _without(present[kind], edge, index)})
            for index, operation in enumerate(operations)
            if operation != "none"
        }
        kept[kind][edge] = max(losses, key=lambda index: losses[index])
        present[kind] = _only(present[kind], edge, kept[kind][edge])
        tune(dict(present))
    cells: dict[str, dict[int, Block]] = {kind: {} for kind in KINDS}
    turns = [(kind, block) for kind in KINDS for block in range(blocks)]
    order.shuffle(turns)
    for kind, block in turns:
        own = {edge: source for edge, of, source in edges if of == block}
        missed = {edge: evaluate(present | {kind: _without(present[kind], edge)}) for edge in own}
        first, second = sorted(sorted(own, key=lambda edge: -missed[edge])[:2])
        for edge in own:
            if edge not in (first, second):
                present[kind] = _without(present[kind], edge)
        tune(dict(present))
        one, other = ((operations[kept[kind][edge]], own[edge]) for edge in (first, second))
        cells[kind][block] = (one, other)
    return Genotype(name, *(tuple(cells[kind][block] for block in range(blocks)) for kind in KINDS))


def _detached(mixture: Mixture) -> Mixture:
    return Mixture(mixture.weights.detach(), None if mixture.edges is None else mixture.edges.detach())


def _without(mixture: Mixture, edge: int, operation: int | None = None) -> Mixture:
    """Without an operation of an edge, or without the edge."""
    weights, edges = mixture.weights.clone(), mixture.edges
    if operation is not None:
        weights[edge, operation] = 0.0
        return replace(mixture, weights=weights)
    weights[edge] = 0.0
    if edges is not None:
        edges = edges.clone()
        edges[edge] = 0.0
    return Mixture(weights, edges)


def _only(mixture: Mixture, edge: int, operation: int) -> Mixture:
    """An operation alone on its edge, with all of the edge's weight."""
    weights = mixture.weights.clone()
    weights[edge] = 0.0
    weights[edge, operation] = 1.0 if mixture.edges is None else mixture.edges[edge]
    return replace(mixture, weights=weights)


def draw_genotype(
    operations: Sequence[str],
    blocks: int,
    seed: str,
    accepts: Callable[[Genotype], bool] = lambda _: True,
    name: str = "random",
) -> Genotype:
    """Draws cells uniformly from the space: two different inputs a block, any operation but ``none`` on each.

    The baseline of Li and Talwalkar ("Random search and reproducibility for neural architecture search", UAI 2019).

    Args:
        operations: names to draw from.
        blocks: of a cell.
        seed: of this draw; the same seed gives the same genotype.
        accepts: says whether a genotype is within the limits; those that are not are drawn again.
        name: of the result.

    Raises:
        UserError: if ten thousand draws in a row are not accepted.

    >>> draw_genotype(["sep_conv_3x3", "none"], 1, "1").normal
    ((('sep_conv_3x3', 0), ('sep_conv_3x3', 1)),)
    """
    generator = random.Random(seed)
    names = [operation for operation in operations if operation != "none"]

    def cell() -> tuple[Block, ...]:
        sources = [sorted(generator.sample(range(block + 2), 2)) for block in range(blocks)]
        return tuple(((generator.choice(names), one), (generator.choice(names), other)) for one, other in sources)

    for _ in range(_MOST_DRAWS):
        genotype = Genotype(name, cell(), cell())
        if accepts(genotype):
            return genotype
    raise UserError(f"none of {_MOST_DRAWS} random genotypes {_NOT_WITHIN}")


def draw_from_alphas(
    probabilities: Mapping[str, Sequence[Sequence[float]]],
    operations: Sequence[str],
    blocks: int,
    seed: str,
    accepts: Callable[[Genotype], bool] = lambda _: True,
    edge_weights: Mapping[str, Sequence[float]] | None = None,
    name: str = "proposed",
    skip_cap: int = -1,
) -> Genotype:
    """Draws cells from what the alphas say, where :func:`genotype.derive` takes the most probable ones.

    A block draws two different inputs, each with the probability of its edge to hold anything but ``none``, times the
    weight of the edge if the strategy has one; an edge draws an operation from its probabilities without ``none``.

    Args:
        probabilities: (E, O) rows of both kinds of cell.
        operations: names of the columns.
        blocks: of a cell.
        seed: of this draw; the same seed and probabilities give the same genotype.
        accepts: says whether a genotype is within the limits; those that are not are drawn again.
        edge_weights: E factors of the edges, by kind.
        name: of the result.
        skip_cap: skip connections of a normal cell; once it has them, its edges draw from the other operations. -1: any
            number.

    Raises:
        UserError: if ten thousand draws in a row are not accepted.
    """
    generator = random.Random(seed)
    names = [operation for operation in operations if operation != "none"]
    columns = [operations.index(operation) for operation in names]

    def cell(kind: str) -> tuple[Block, ...]:
        rows = probabilities[kind]
        factors = (edge_weights or {}).get(kind) or [1.0] * len(rows)
        found: list[Block] = []
        skips = 0
        for number in range(blocks):
            own = [(edge, source) for edge, of, source in cell_edges(blocks) if of == number]
            weights = [factors[edge] * sum(rows[edge][column] for column in columns) for edge, _ in own]
            block = []
            for place in sorted(_draw_two(generator, weights)):
                edge, source = own[place]
                block.append((drawn := draw_name(rows[edge], skips == skip_cap and kind == "normal"), source))
                skips += drawn == "skip_connect"
            found.append((block[0], block[1]))
        return tuple(found)

    def draw_name(row: Sequence[float], no_skip: bool) -> str:
        weights = [
            0.0 if no_skip and name == "skip_connect" else row[column]
            for name, column in zip(names, columns, strict=True)
        ]
        if not any(weights):  # the others have no probability at all
            weights = [float(name != "skip_connect") for name in names]
        return generator.choices(names, weights)[0]

    for _ in range(_MOST_DRAWS):
        genotype = Genotype(name, cell("normal"), cell("reduce"))
        if accepts(genotype):
            return genotype
    raise UserError(f"none of {_MOST_DRAWS} genotypes drawn from the alphas {_NOT_WITHIN}")


def log_probability(
    genotype: Genotype, probabilities: Mapping[str, Sequence[Sequence[float]]], operations: Sequence[str]
) -> float:
    """How much the alphas think of a genotype: the logarithm of its operations' probabilities, summed over its edges.

    >>> genotype = draw_genotype(["skip_connect", "none"], 1, "1")
    >>> rows = {"normal": [[0.5, 0.5], [0.8, 0.2]], "reduce": [[1.0, 0.0], [0.25, 0.75]]}
    >>> round(math.exp(log_probability(genotype, rows, ["skip_connect", "none"])), 6)  # 0.5 * 0.8 * 1 * 0.25
    0.1
    """
    found = 0.0
    for kind in KINDS:
        for edge, block, source in cell_edges(genotype.blocks):
            for name, start in getattr(genotype, kind)[block]:
                if start == source:
                    found += math.log(max(probabilities[kind][edge][operations.index(name)], 1e-12))
    return found


def _draw_two(generator: random.Random, weights: Sequence[float]) -> tuple[int, int]:
    """Two different places, without replacement; edges of weight 0 only where there are no others."""
    weights = [max(weight, 1e-12) for weight in weights]
    (first,) = generator.choices(range(len(weights)), weights)
    rest = [place for place in range(len(weights)) if place != first]
    (second,) = generator.choices(rest, [weights[place] for place in rest])
    return first, second


def propose(
    derived: Genotype, drawn: Callable[[int], Genotype], blind: Callable[[int], Genotype], number: int
) -> tuple[list[Genotype], list[int]]:
    """What a selection by halving lets compete: the derived genotype, draws from the alphas, a third drawn blindly.

    Args:
        derived: from the alphas, by strength.
        drawn: the n-th draw from the alphas.
        blind: the n-th draw from the whole space.
        number: of candidates.

    Returns:
        The genotypes, no two of them alike unless a hundred draws in a row are, and the places of the blind ones.
    """
    found, known = [derived], {derived.cells}
    blind_from = number - number // 3
    next_draw = {drawn: 0, blind: 0}
    for place in range(1, number):
        draw = drawn if place < blind_from else blind
        for _ in range(100):
            genotype = draw(next_draw[draw])
            next_draw[draw] += 1
            if genotype.cells not in known:
                break
        found.append(genotype)
        known.add(genotype.cells)
    return found, list(range(max(1, blind_from), number))
