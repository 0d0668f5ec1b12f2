"""Limits on what the network of a search may cost, and how the search is made to keep them.

Three parts. While the alphas are trained, their loss carries the expected cost (:meth:`Budget.penalty`), one term a
limit. After each step of theirs the weights of the terms follow what the derived network costs (:meth:`Budget.adapt`).
And whatever the alphas say, the genotype of the search keeps the limits (:meth:`Budget.fit`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from scipy.optimize import Bounds, LinearConstraint, milp
from torch import Tensor

from ..errors import UserError
from ..genotype import Genotype, cell_edges, num_blocks
from .cost import KINDS, CostTable, kept_probabilities

__all__ = ["UNITS", "Budget"]

#: measure, as in the keys ``search.budget.…`` -> what its numbers count
UNITS = {"params": "parameters", "macs": "MACs an image", "latency_ms": "ms an image"}

_FIRST_WEIGHT = 0.1  # against a retrieval loss of some units; it is right within a few dozen steps
_LEAST_WEIGHT, _LARGEST_WEIGHT = 1e-2, 1e3
_GAIN = 1.0  # of the controller: a tenth of the range too much makes the weight grow by a tenth a step
_ROUNDING = 1e-12  # relative; sums of milliseconds, and far below one MAC


class Budget:
    """Limits by any of the measures ``params``, ``macs`` and ``latency_ms``.

    Args:
        limits: the largest cost allowed, ``{measure: limit}``.
        tables: what genotypes cost, ``{measure: table}``, for the same network and operations.
        skip_cap: skip connections that a derived normal cell keeps at most.

    Attributes:
        weights: of the terms in the loss, ``{measure: weight}``.

    Raises:
        UserError: if no genotype keeps a limit, or not all of them together; the message names the smallest cost.
    """

    def __init__(
        self, limits: Mapping[str, float], tables: Mapping[str, CostTable], skip_cap: int | None = None
    ) -> None:
        self.limits = {name: float(limit) for name, limit in limits.items()}
        self.tables = {name: tables[name] for name in limits}
        table = next(iter(self.tables.values()))
        self.operations = table.operations
        self.skip_cap = skip_cap
        self.weights = dict.fromkeys(self.limits, _FIRST_WEIGHT)
        for name, limit in self.limits.items():
            if limit < (smallest := self.tables[name].smallest()):
                raise UserError(
                    f"search.budget.{name} {limit:.10g} is below the smallest network of the search space, which has "
                    f"{smallest:.10g} {UNITS[name]}; raise it, or lower search.budget.channels"
                )
        if self._strongest({kind: torch.zeros_like(c) for kind, c in table.edges.items()}, "smallest") is None:
            raise UserError(
                f"no network of the search space keeps {self} together, though each by itself can be kept; raise one"
            )

    def __str__(self) -> str:
        texts = [f"search.budget.{name} {limit:.10g}" for name, limit in self.limits.items()]
        return " and ".join(texts if self.skip_cap is None else [*texts, f"search.skip_cap {self.skip_cap}"])

    def free(self) -> list[str]:
        """The measures whose limit every genotype keeps."""
        return [name for name, limit in self.limits.items() if self.tables[name].largest() <= limit]

    def costs(self, genotype: Genotype) -> dict[str, float]:
        """What the network of a genotype costs, by each measure."""
        return {name: table.cost(genotype) for name, table in self.tables.items()}

    def accepts(self, genotype: Genotype) -> bool:
        """Whether a genotype keeps all limits."""
        costs = self.costs(genotype)
        return all(costs[name] <= limit * (1 + _ROUNDING) for name, limit in self.limits.items())

    # -- while the alphas are trained ---------------------------------------------------------------------------------

    def expected(self, strengths: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The expected cost by each measure: differentiable scalars; see :func:`~.cost.kept_probabilities`.

        Args:
            strengths: (E, O) of each cell, ``{'normal': …, 'reduce': …}``: what the derivation ranks by.
        """
        kept = {kind: kept_probabilities(s, self.operations) for kind, s in strengths.items()}
        return {name: table.expected(kept) for name, table in self.tables.items()}

    def penalty(self, strengths: Mapping[str, Tensor]) -> Tensor:
        """What joins the loss of the alphas: ``sum_m weight_m * expected_m / limit_m``, differentiable.

        A limit that every genotype keeps adds nothing.
        """
        expected, free = self.expected(strengths), self.free()
        terms = [
            torch.zeros_like(cost) if name in free else self.weights[name] * cost / self.limits[name]
            for name, cost in expected.items()
        ]
        return torch.stack(terms).sum()

    def adapt(self, derived: Genotype) -> None:
        """Moves the weights after a step of the alphas.

        Each grows while the derived network is above the limit, and shrinks while it is below:

        ``weight_m <- weight_m * exp(gain * (derived_m - limit_m) / (largest_m - smallest_m))``, within bounds: ascent
        of the logarithm of the multiplier, so that it finds its size whatever the size of the retrieval loss, and never
        turns negative. The excess is measured by what the genotype can change; the fixed part may be most of the cost.

        Args:
            derived: the genotype that the alphas stand for, limits or not.
        """
        free = self.free()
        for name, cost in self.costs(derived).items():
            if name in free:
                continue
            excess = (cost - self.limits[name]) / (self.tables[name].largest() - self.tables[name].smallest())
            weight = self.weights[name] * math.exp(_GAIN * excess)
            self.weights[name] = min(max(weight, _LEAST_WEIGHT), _LARGEST_WEIGHT)

    def figures(
        self, derived: Genotype, genotype: Genotype, strengths: Mapping[str, Tensor] | None = None
    ) -> dict[str, dict[str, float | None]]:
        """For the history, by measure: the limit, the expected cost and the weight, the costs of both genotypes.

        Args:
            derived: what the search would answer without limits.
            genotype: what it answers.
            strengths: as in :meth:`expected`; without them there is no expectation.
        """
        expected = None if strengths is None else self.expected(strengths)
        before, after = self.costs(derived), self.costs(genotype)
        return {
            name: {
                "limit": limit,
                "expected": None if expected is None else float(expected[name]),
                "derived": before[name],
                "genotype": after[name],
                "weight": None if expected is None else self.weights[name],
            }
            for name, limit in self.limits.items()
        }

    def state_dict(self) -> dict[str, Any]:
        """The state of the controller, for a checkpoint."""
        return {"limits": dict(self.limits), "weights": dict(self.weights)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of :meth:`state_dict`.

        Raises:
            ValueError: if the state is of other limits.
        """
        if dict(state["limits"]) != self.limits:
            raise ValueError(f"its limits are {dict(state['limits'])}, here {self.limits}")
        self.weights = {name: float(state["weights"][name]) for name in self.limits}

    # -- the genotype -------------------------------------------------------------------------------------------------

    def fit(self, derived: Genotype, strengths: Mapping[str, Tensor]) -> Genotype:
        """The derived genotype if it keeps all limits; else the strongest one that does.

        Derivation maximises the sum of the strengths of the edges that it keeps, the strength of an edge being that of
        its operation. The same sum is maximised here among the genotypes that keep the limits (and the skip cap): an
        integer linear programme with a variable for each operation on each edge, solved to the optimum. It is
        deterministic.

        Args:
            derived: what the search would answer without limits.
            strengths: (E, O) of each cell that it was derived from.
        """
        if self.accepts(derived):
            return derived
        found = self._strongest({kind: s.detach().double().cpu() for kind, s in strengths.items()}, derived.name)
        assert found is not None, "the constructor has seen to that"
        return found

    def _strongest(self, strengths: Mapping[str, Tensor], name: str) -> Genotype | None:
        """The maximum of the sum of strengths, (E, O) each, within the limits; ``None`` if no genotype keeps them."""
        strength = torch.cat([strengths[kind] for kind in KINDS]).numpy()  # (2E, O)
        blocks = num_blocks(len(strength) // 2) or 0
        allowed = np.array([operation != "none" for operation in self.operations])
        rows = np.eye(len(strength)).repeat(len(self.operations), axis=1)  # (2E, 2E O): the variables of each edge
        block_of = [block for _, block, _ in cell_edges(blocks)]
        block_of += [blocks + block for block in block_of]
        two = np.stack([rows[[of == block for of in block_of]].sum(axis=0) for block in range(2 * blocks)])
        shares = [self._shares(measure) for measure in self.limits]
        skips = np.array([operation == "skip_connect" for operation in self.operations])
        skips_of_normal = np.concatenate([np.tile(skips, len(strength) // 2), np.zeros(strength.size // 2)])
        for slack in (0.0, 1e-3):  # the solver keeps its rows up to 1e-6 only, which may be too much
            result = milp(
                -strength.ravel(),
                integrality=1,
                bounds=Bounds(0, np.tile(allowed, len(strength)).astype(float)),
                constraints=[
                    LinearConstraint(rows, ub=1),
                    LinearConstraint(two, lb=2, ub=2),
                    LinearConstraint(skips_of_normal, ub=np.inf if self.skip_cap is None else self.skip_cap),
                    *(LinearConstraint(row, ub=most - slack) for row, most in shares),
                ],
                options={"mip_rel_gap": 0.0},
            )
            if result.x is None:
                return None
            genotype = self._genotype(result.x.reshape(strength.shape) > 0.5, strength, name)
            if self.accepts(genotype):
                return genotype
        return None

    def _shares(self, measure: str) -> tuple[np.ndarray, float]:
        """Costs of the variables, and what they may add up to, both in ten-thousandths of the limit."""
        table, limit = self.tables[measure], self.limits[measure]
        costs = torch.cat([table.edges[kind] for kind in KINDS]).numpy()
        return 1e4 * costs.ravel() / limit, 1e4 * (1.0 - table.base / limit)

    def _genotype(self, kept: np.ndarray, strength: np.ndarray, name: str) -> Genotype:
        """(2E, O) choices to the genotype; the stronger edge of a block comes first, as in a derivation."""
        edges = len(kept) // 2
        cells = []
        for first in (0, edges):
            cell: list[list[tuple[float, tuple[str, int]]]] = [[] for _ in range(num_blocks(edges) or 0)]
            for edge, block, source in cell_edges(len(cell)):
                for column in np.flatnonzero(kept[first + edge]):
                    cell[block].append((-strength[first + edge, column], (self.operations[column], source)))
            ordered = [sorted(block, key=lambda choice: choice[0]) for block in cell]
            cells.append(tuple((one, other) for (_, one), (_, other) in ordered))
        return Genotype(name, *cells)
