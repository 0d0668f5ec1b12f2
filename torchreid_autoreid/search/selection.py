"""Other ways to a genotype than the strength of alphas: what the network loses without an operation, and chance."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from ..errors import UserError
from ..genotype import Block, Genotype, cell_edges
from .strategies import Mixture

__all__ = ["draw_genotype", "select_by_perturbation"]

_KINDS = ("normal", "reduce")
_MOST_DRAWS = 10_000

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
    present = {kind: _detached(mixtures[kind]) for kind in _KINDS}
    edges = list(cell_edges(blocks))
    kept: dict[str, dict[int, int]] = {kind: {} for kind in _KINDS}  # edge -> index of its operation
    steps = [(kind, edge) for kind in _KINDS for edge, _, _ in edges]
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
    cells: dict[str, dict[int, Block]] = {kind: {} for kind in _KINDS}
    turns = [(kind, block) for kind in _KINDS for block in range(blocks)]
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
    return Genotype(name, *(tuple(cells[kind][block] for block in range(blocks)) for kind in _KINDS))


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
        accepts: says whether a genotype is within a budget; those that are not are drawn again.
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
    raise UserError(f"none of {_MOST_DRAWS} random genotypes is within the budget; raise it")
