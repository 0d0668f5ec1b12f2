"""Genotypes and probabilities to try: drawn at random, or all there are."""

import itertools

import torch

from torchreid_autoreid.genotype import OPERATION_NAMES, Genotype, derive, num_edges
from torchreid_autoreid.search.cost import NetworkShape

TINY = NetworkShape(channels=4, layers=(1, 1, 1, 1), blocks=2, height=64, width=32)
FEW = ("sep_conv_3x3", "none", "skip_connect")  # a space small enough to try every genotype


def random_genotype(rng, blocks, operations=OPERATION_NAMES):
    def cell():
        return [
            [(rng.choice(operations), source) for source in rng.sample(range(block + 2), 2)] for block in range(blocks)
        ]

    return Genotype("random", cell(), cell())


def every_cell(blocks, operations):
    """All cells that a derivation can give."""
    names = [name for name in operations if name != "none"]
    choices = [
        [
            ((one, first), (other, second))
            for first, second in itertools.combinations(range(block + 2), 2)
            for one, other in itertools.product(names, repeat=2)
        ]
        for block in range(blocks)
    ]
    return list(itertools.product(*choices))


def random_probabilities(blocks, operations=OPERATION_NAMES, spread=2.0):
    shape = (num_edges(blocks), len(operations))
    return {kind: (spread * torch.randn(shape, dtype=torch.float64)).softmax(dim=1) for kind in ("normal", "reduce")}


def derived_from(probabilities, operations=OPERATION_NAMES):
    return derive(**{kind: p.tolist() for kind, p in probabilities.items()}, operations=operations)
