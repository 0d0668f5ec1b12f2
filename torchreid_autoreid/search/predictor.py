"""Search with a predictor: what all candidates so far say of an operation decides which candidate is trained next."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..genotype import KINDS, Genotype
from ..limits import check_value
from .halving import Rung, check_draws
from .plans import Measured, RungPlan, Turn, first_front, front_of

__all__ = ["OperationCounts", "Predictor", "PredictorPlan", "answer_of"]

#: draws of which the predictor chooses one
_POOL = 1000
#: strengths of the ridge; leave-one-out errors choose
_RIDGES = (0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
#: digits of a prediction that decide; the rounding of another processor stays below them
_DIGITS = 6


class OperationCounts:
    """Ridge regression of a score on how often each operation stands in each kind of cell.

    What one candidate says of its operations is mostly noise of its training; all of them together say more. Counts are
    standardised, and the ridge is the one of a fixed list with the smallest leave-one-out error (PRESS; Hastie et al.,
    "The elements of statistical learning", section 7.10).

    Args:
        genotypes: of N candidates, at least two.
        scores: (N,) figures, larger is better.

    Attributes:
        ridge: what is added to the diagonal of the normal equations.
        left_out: (N,) for each candidate, what the others predict of it.
    """

    def __init__(self, genotypes: Sequence[Genotype], scores: Sequence[float]) -> None:
        self._names = sorted({name for genotype in genotypes for name in _operations(genotype)})
        counts, worth = self._counts(genotypes), np.asarray(scores, dtype=float)
        self._mean, self._level = counts.mean(0), float(worth.mean())
        self._scale = np.where(counts.std(0) > 0, counts.std(0), 1.0)
        inputs, centred = (counts - self._mean) / self._scale, worth - self._level
        products, targets = inputs.T @ inputs, inputs.T @ centred
        best = np.inf
        for ridge in _RIDGES:
            inverse = np.linalg.inv(products + ridge * np.eye(len(products)))
            leverage = 1.0 / len(worth) + np.einsum("ij,jk,ik->i", inputs, inverse, inputs)
            errors = (centred - inputs @ (inverse @ targets)) / (1.0 - leverage)
            if (error := round(float(errors @ errors), 12)) < best:
                best, self.ridge, self._inverse, self.left_out = error, ridge, inverse, worth - errors
        self._weights = self._inverse @ targets
        self._noise = float(np.sqrt(best / len(worth)))

    def predict(self, genotypes: Sequence[Genotype]) -> np.ndarray:
        """(G,) expected scores."""
        return self._of_weights(genotypes, self._weights)

    def sample(self, genotypes: Sequence[Genotype], generator: np.random.Generator) -> np.ndarray:
        """(G,) scores by weights drawn from their posterior (Thompson, Biometrika 1933): what is unsure is tried."""
        drawn = generator.standard_normal(len(self._weights))
        root = np.linalg.cholesky(self._inverse)
        return self._of_weights(genotypes, self._weights + self._noise * (root @ drawn))

    def _of_weights(self, genotypes: Sequence[Genotype], weights: np.ndarray) -> np.ndarray:
        inputs = (self._counts(genotypes) - self._mean) / self._scale
        return np.round(self._level + inputs @ weights, _DIGITS)

    def _counts(self, genotypes: Sequence[Genotype]) -> np.ndarray:
        """(G, kinds × operations) as numbers."""
        cells = [[_operations(genotype, kind) for kind in KINDS] for genotype in genotypes]
        return np.array([[cell.count(name) for cell in both for name in self._names] for both in cells], float)


def _operations(genotype: Genotype, *kinds: str) -> list[str]:
    return [name for kind in kinds or KINDS for block in getattr(genotype, kind) for name, _ in block]


@dataclass(frozen=True)
class Predictor:
    """Which candidate a predictor proposes.

    Attributes:
        draws: candidates that are drawn blindly before the first prediction.
        draw: the n-th draw from the whole space.
        seed: of the predictor's own draws.
        cost: of a genotype, as a second objective; ``None``: there is none.
    """

    draws: int
    draw: Callable[[int], Genotype]
    seed: int
    cost: Callable[[Genotype], float] | None = None

    def __post_init__(self) -> None:
        check_value("search.predictor_draws", self.draws, "draws")

    def propose(self, number: int, genotypes: Sequence[Genotype], scores: Sequence[float]) -> Genotype:
        """The candidate with this number: a blind draw, or the most promising of a thousand that are none so far.

        Args:
            number: of the candidate, from 0.
            genotypes, scores: of the candidates that have been measured.
        """
        if number < self.draws or len(scores) < 2:
            return self.draw(number)
        known, first = {genotype.cells for genotype in genotypes}, (number + 1) * _POOL
        pool = [drawn for i in range(first, first + _POOL) if (drawn := self.draw(i)).cells not in known]
        if not pool:  # a space smaller than the number of candidates
            return self.draw(number)
        found = OperationCounts(genotypes, scores).sample(pool, np.random.default_rng([self.seed, number]))
        place = int(np.argmax(found))
        if self.cost is not None:
            front = first_front(list(found), [self.cost(genotype) for genotype in pool])
            place = random.Random(f"predictor {self.seed} {number}").choice(front)
        return replace(pool[place], name=f"predicted_{number}")


class PredictorPlan(RungPlan):
    """A predictor chooses each candidate but the first ones, and in the end which of them is the answer.

    Predictor-based search (as in White et al., "BANANAS", AAAI 2021, and Dudziak et al., "BRP-NAS", NeurIPS 2020) with
    the simplest predictor, :class:`OperationCounts`. The answer is the candidate of which it expects most, after the
    score of all of them; the one with the highest score may be the luckiest only.

    Args:
        candidates, epochs: how many are trained, each for how long.
        predictor: that proposes them.
    """

    def __init__(self, candidates: int, epochs: int, predictor: Predictor) -> None:
        super().__init__([Rung(candidates, epochs)], self._proposed, predictor.cost)
        check_draws(predictor.draws, candidates)
        self.predictor = predictor

    def _proposed(self, index: int) -> Genotype:
        """The scores of all before it must be known."""
        return self.predictor.propose(index, *self._measured(index))

    def _measured(self, count: int) -> tuple[list[Genotype], list[float]]:
        return [self.genotype_of(index) for index in range(count)], self.scores[0][:count]

    def answer(self) -> Genotype | None:
        """The measured candidate of which most is expected."""
        genotypes, scores = self._measured(len(self.scores[0]))
        return answer_of(genotypes, scores) if genotypes else None

    def front(self) -> list[Measured]:
        """With a second objective: measured candidates that no other one beats in cost and in what is expected."""
        if self.cost is None:
            return []
        pairs = zip(*self._measured(len(self.scores[0])), strict=True)
        return expected_front([Measured(genotype, score, self.cost(genotype), 0) for genotype, score in pairs])

    def told(self, turn: Turn, blind: Sequence[int], label: str = "mAP") -> str:
        """As :meth:`RungPlan.told`, with how well the predictor knew candidates that it had not seen."""
        line = super().told(turn, blind, label)
        return f"{line}\n{verdict(*self._measured(len(self.scores[0])))}" if line else ""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self._measured(min(len(self.scores[0]) + 1, self.rungs[0].candidates))  # each follows from those before


def expectations(genotypes: Sequence[Genotype], scores: Sequence[float]) -> list[float]:
    """What to expect of candidates after the scores of all of them; too few scores stand for themselves."""
    if len(scores) < 2:
        return list(scores)
    return [float(score) for score in OperationCounts(genotypes, scores).predict(genotypes)]


def expected_front(measured: Sequence[Measured]) -> list[Measured]:
    """Those that no other one beats in cost and in what is expected of it, which stands in the place of the score."""
    scores = expectations([one.genotype for one in measured], [one.score for one in measured])
    return front_of([replace(one, score=score) for one, score in zip(measured, scores, strict=True)])


def answer_of(genotypes: Sequence[Genotype], scores: Sequence[float]) -> Genotype:
    """The measured candidate of which most is expected; the earlier one of equals."""
    return genotypes[int(np.argmax(expectations(genotypes, scores)))]


def verdict(genotypes: Sequence[Genotype], scores: Sequence[float]) -> str:
    """The answer, and how well the predictor knows a candidate that it has not seen, in a line."""
    from scipy.stats import spearmanr

    found = OperationCounts(genotypes, scores)
    expected, told = found.predict(genotypes), float(spearmanr(found.left_out, scores).statistic)
    answer = int(np.argmax(expected))
    return (
        f"predictor: the answer is candidate {answer + 1}, of which it expects {expected[answer]:.1%}, and "
        f"{expected.mean():.1%} of the mean candidate; Spearman {told:+.2f} between {len(scores)} candidates and what "
        "the others say of each"
    )
