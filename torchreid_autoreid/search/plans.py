"""Which candidate is trained when: plans of discrete search, as pure functions of the scores so far.

A plan needs no network: an engine trains what it asks for and tells it the score, and :func:`simulate` does the same
with a table or a formula in the place of training.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ..errors import UserError
from ..genotype import KINDS, Block, Genotype
from ..limits import check_value, check_values
from .halving import Rung, blind_draws, check_rungs, own_epochs, survivors

__all__ = [
    "Evolution",
    "EvolutionPlan",
    "Measured",
    "Plan",
    "RungPlan",
    "Start",
    "Turn",
    "best_order",
    "first_front",
    "front_of",
    "front_order",
    "mutate",
    "simulate",
]

_MOST_TRIES = 100


@dataclass(frozen=True)
class Start:
    """Whose weights a candidate begins with.

    Attributes:
        rung: after whose turn of it.
        index: of that candidate.
        genotype: of that candidate; weights on edges that it does not have are new.
    """

    rung: int
    index: int
    genotype: Genotype


@dataclass(frozen=True)
class Turn:
    """The epochs in which one candidate is trained in one rung.

    Attributes:
        rung: number of the rung, from 0.
        position: of the candidate among those of the rung, from 0.
        first: epoch of the search in which the turn begins, from 0.
        epochs: of the turn.
        index: number of the candidate, from 0, which decides its first weights.
        genotype: of the candidate.
        start: whose weights it begins with; ``None``: new ones.
    """

    rung: int
    position: int
    first: int
    epochs: int
    index: int
    genotype: Genotype
    start: Start | None = None

    @property
    def end(self) -> int:
        """The epoch after the turn's last one."""
        return self.first + self.epochs


@dataclass(frozen=True)
class Measured:
    """A candidate with its score.

    Attributes:
        genotype: of the candidate.
        score: a figure of retrieval on the identities held out.
        cost: by the second objective; ``None`` without one.
        rung: in which it was measured last, from 0.
    """

    genotype: Genotype
    score: float
    cost: float | None
    rung: int

    def to_dict(self, figure: str) -> dict[str, Any]:
        """For JSON; ``figure`` is the name of the score."""
        return {"genotype": self.genotype.to_dict(), figure: self.score, "cost": self.cost, "rung": self.rung + 1}


class Plan(Protocol):
    """What an engine asks a plan; :class:`RungPlan` says what each answer means."""

    cost: Callable[[Genotype], float] | None

    @property
    def total_epochs(self) -> int: ...
    def turn_at(self, epoch: int) -> Turn | None: ...
    def tell(self, turn: Turn, score: float) -> None: ...
    def told(self, turn: Turn, blind: Sequence[int], label: str = "mAP") -> str: ...
    def answer(self) -> Genotype | None: ...
    def front(self) -> list[Measured]: ...
    def keeps(self, turn: Turn) -> bool: ...
    def needed(self, turn: Turn) -> Callable[[int, int], bool]: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


class RungPlan:
    """Random search (one rung) and successive halving (Jamieson and Talwalkar, AISTATS 2016, algorithm 1).

    The better candidates of a rung keep their weights and are trained on in the next.

    Args:
        rungs: candidates and epochs, see :class:`~torchreid_autoreid.search.halving.Rung`.
        genotype_of: the n-th candidate of the first rung; the same n gives the same genotype.
        cost: of a genotype, as a second objective: what goes on is then the candidates that no other one beats in both,
            see :func:`front_order`.

    Attributes:
        scores: of each rung, in the order of its candidates.
    """

    def __init__(
        self,
        rungs: Sequence[Rung],
        genotype_of: Callable[[int], Genotype],
        cost: Callable[[Genotype], float] | None = None,
    ) -> None:
        check_rungs(rungs)
        self.rungs = tuple(rungs)
        self.cost = cost
        self.scores: list[list[float]] = [[] for _ in self.rungs]
        self._genotype_of = genotype_of
        self._known: dict[int, Genotype] = {}

    def turn_epochs(self) -> list[int]:
        """Epochs of a turn in each rung."""
        return own_epochs(self.rungs)

    @property
    def total_epochs(self) -> int:
        """Of all candidates in all rungs."""
        return sum(rung.candidates * epochs for rung, epochs in zip(self.rungs, self.turn_epochs(), strict=True))

    def turn_at(self, epoch: int) -> Turn | None:
        """Whose turn an epoch of the search belongs to; ``None`` behind the last one.

        The rungs before it must be complete.
        """
        first = 0
        for number, (rung, epochs) in enumerate(zip(self.rungs, self.turn_epochs(), strict=True)):
            within = epoch - first
            if within < rung.candidates * epochs:
                return self._turn(number, within // epochs, first + within // epochs * epochs, epochs)
            first += rung.candidates * epochs
        return None

    def _turn(self, rung: int, position: int, first: int, epochs: int) -> Turn:
        index = self.candidates_of(rung)[position]
        genotype = self.genotype_of(index)
        start = Start(rung - 1, index, genotype) if rung else None
        return Turn(rung, position, first, epochs, index, genotype, start)

    def genotype_of(self, index: int) -> Genotype:
        """The genotype of a candidate."""
        if index not in self._known:
            self._known[index] = self._genotype_of(index)
        return self._known[index]

    def candidates_of(self, rung: int) -> list[int]:
        """Indices of the candidates of a rung; for all but the first, that before it must be complete."""
        if rung == 0:
            return list(range(self.rungs[0].candidates))
        return self.best_of(self.candidates_of(rung - 1), self.scores[rung - 1], self.rungs[rung].candidates)

    def best_of(self, candidates: Sequence[int], scores: Sequence[float], keep: int) -> list[int]:
        """The ``keep`` best of those that have a score, the best first."""
        measured = list(candidates[: len(scores)])
        order = best_order(scores, [self.genotype_of(index) for index in measured], self.cost)
        return [measured[place] for place in order[:keep]]

    def tell(self, turn: Turn, score: float) -> None:
        """The score of the candidate whose turn has ended."""
        assert turn.position == len(self.scores[turn.rung])
        self.scores[turn.rung].append(float(score))

    def keeps(self, turn: Turn) -> bool:
        """Whether a later turn may begin with what a candidate is after this one."""
        return turn.rung + 1 < len(self.rungs)

    def needed(self, turn: Turn) -> Callable[[int, int], bool]:
        """Says of ``(rung, index)`` whether what that candidate was may still be needed, in this turn or later.

        A run that stops may go on from the checkpoint before the last one, so the turn before this one counts too.
        """
        return lambda rung, _: rung >= turn.rung - 1 or turn.position < 2

    def told(self, turn: Turn, blind: Sequence[int], label: str = "mAP") -> str:
        """A line for the log, after the last candidate of a rung: what the best of it is worth.

        Args:
            turn: that has just ended.
            blind: places in the first rung of blind draws, beside whose mean it is put.
            label: the name of the scores.
        """
        scores, rung = self.scores[turn.rung], turn.rung
        if len(scores) < self.rungs[rung].candidates:
            return ""
        best, score = max(self.last_scores(), key=lambda pair: pair[1])
        line = f"rung {rung + 1} of {len(self.rungs)}: the best of {len(scores)} is candidate {best + 1}"
        line += f" with {label} {score:.1%}"
        drawn = [self.scores[0][place] for place in blind]
        if len(drawn) > 1:
            mean, half = blind_draws(drawn)
            first = self.scores[0][best]
            line += (
                f"; after the first rung it had {first:.1%}, {100 * (first - mean):+.1f} ± {100 * half:.1f} points "
                f"from the mean of {len(drawn)} blind draws (95 % interval of that mean)"
            )
        return line

    def last_scores(self) -> list[tuple[int, float]]:
        """``(index, score)`` in the last rung that has scores."""
        for rung in range(len(self.rungs) - 1, -1, -1):
            if scores := self.scores[rung]:
                return list(zip(self.candidates_of(rung), scores, strict=False))
        return []

    def answer(self) -> Genotype | None:
        """The candidate with the highest score in the last rung that has scores."""
        found = self.last_scores()
        return self.genotype_of(max(found, key=lambda pair: pair[1])[0]) if found else None

    def front(self) -> list[Measured]:
        """With a second objective: the candidates of the last rung that no other one beats in both, the best first."""
        if self.cost is None:
            return []
        last = max((rung for rung, scores in enumerate(self.scores) if scores), default=0)
        found = self.last_scores()
        costs = [self.cost(self.genotype_of(index)) for index, _ in found]
        return front_of(
            [
                Measured(self.genotype_of(index), score, cost, last)
                for (index, score), cost in zip(found, costs, strict=True)
            ]
        )

    def state_dict(self) -> dict[str, Any]:
        """What a search needs to go on from here."""
        return {
            "scores": [list(scores) for scores in self.scores],
            "rungs": [[r.candidates, r.epochs] for r in self.rungs],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of :meth:`state_dict`.

        Raises:
            ValueError: if it is none.
            UserError: if it is that of other rungs.
        """
        own = [[rung.candidates, rung.epochs] for rung in self.rungs]
        rungs = [[int(number) for number in rung] for rung in state["rungs"]]
        if rungs != own:
            raise UserError(f"it was made with other rungs, {rungs}, here {own}; resume with the same ones")
        scores = [[float(score) for score in rung] for rung in state["scores"]]
        if len(scores) != len(rungs) or any(
            len(s) > rung.candidates for s, rung in zip(scores, self.rungs, strict=True)
        ):
            raise ValueError("its scores do not fit the rungs")
        self.scores, self._known = scores, {}


@dataclass(frozen=True)
class Evolution:
    """Aging evolution (Real et al., "Regularized evolution for image classifier architecture search", AAAI 2019).

    Attributes:
        candidates: how many are trained in all.
        epochs: for which each of them is trained.
        population: how many live at a time; the oldest one dies when a new one is born.
        tournament: how many of them are drawn to find a parent, the best of them.
    """

    candidates: int
    epochs: int
    population: int
    tournament: int

    def __post_init__(self) -> None:
        check_value("search.evolution_candidates", self.candidates, "candidates")
        check_value("search.candidate_epochs", self.epochs, "epochs")
        check_values("search", population=self.population, tournament=self.tournament)
        if not self.tournament <= self.population <= self.candidates:
            raise UserError(
                f"an evolution of {self.candidates} candidates needs a population (search.population, "
                f"{self.population}) of no more, and a tournament (search.tournament, {self.tournament}) of no more "
                "than that"
            )

    @property
    def total_epochs(self) -> int:
        """Of all candidates, before the rungs."""
        return self.candidates * self.epochs

    def check_survivors(self, rungs: Sequence[Rung]) -> None:
        """Raises UserError unless there are as many candidates as the first of the rungs after it needs."""
        if rungs[0].candidates > self.candidates:
            raise UserError(
                f"the first rung has {rungs[0].candidates} candidates, and the evolution before it only "
                f"{self.candidates}; lower search.rung_candidates, or raise search.evolution_candidates"
            )


class EvolutionPlan(RungPlan):
    """Aging evolution; the best of its history are then trained from scratch and go through successive halving.

    The first ``population`` candidates are drawn from the whole space. Each later one is a child: a tournament chooses
    a parent among the living, one operation or one input of it is mutated, and what has not changed inherits its
    weights. Inherited weights make later scores flatter their candidates, so survivors are trained from scratch.

    Args:
        evolution: its numbers.
        rungs: through which the survivors go; there are as many as the first of them has candidates.
        draw: the n-th draw from the whole space.
        operations: names to mutate to.
        seed: of tournaments and mutations.
        accepts: says whether a genotype is within a budget.
        cost: as in :class:`RungPlan`; tournaments and survivors follow it too.
    """

    def __init__(
        self,
        evolution: Evolution,
        rungs: Sequence[Rung],
        draw: Callable[[int], Genotype],
        operations: Sequence[str],
        seed: int,
        accepts: Callable[[Genotype], bool] = lambda _: True,
        cost: Callable[[Genotype], float] | None = None,
    ) -> None:
        super().__init__(rungs, draw, cost)
        evolution.check_survivors(rungs)
        self.evolution = evolution
        self.of_survivors = self.rungs
        self.rungs = (Rung(evolution.candidates, evolution.epochs), *rungs)
        self.scores = [[] for _ in self.rungs]
        self.operations, self.seed, self.accepts = tuple(operations), seed, accepts
        self._parents: dict[int, int] = {}

    def turn_epochs(self) -> list[int]:
        return [self.evolution.epochs, *own_epochs(self.of_survivors)]

    def _turn(self, rung: int, position: int, first: int, epochs: int) -> Turn:
        index = self.candidates_of(rung)[position]
        genotype, start = self.genotype_of(index), None
        if rung == 0 and index in self._parents:
            parent = self._parents[index]
            start = Start(0, parent, self.genotype_of(parent))
        elif rung > 1:
            start = Start(rung - 1, index, genotype)
        return Turn(rung, position, first, epochs, index, genotype, start)

    def genotype_of(self, index: int) -> Genotype:
        if index not in self._known and index >= self.evolution.population:
            self._known[index] = self._child(index)
        return super().genotype_of(index)

    def _child(self, index: int) -> Genotype:
        """A mutant of the best of a tournament; the scores of all before it must be known."""
        generator = random.Random(f"evolution {self.seed} {index}")
        living = self.living(index)
        drawn = sorted(generator.sample(living, self.evolution.tournament))
        parent = self.best_of(drawn, [self.scores[0][i] for i in drawn], 1)[0]
        known = {self.genotype_of(i).cells for i in range(index)}
        child = mutate(self.genotype_of(parent), self.operations, generator, self.accepts, known, f"evolved_{index}")
        self._parents[index] = parent
        return child

    def living(self, index: int) -> list[int]:
        """Who lives when a candidate is born."""
        return list(range(max(0, index - self.evolution.population), index))

    def needed(self, turn: Turn) -> Callable[[int, int], bool]:
        later = super().needed(turn)

        def is_needed(rung: int, index: int) -> bool:
            if rung or turn.rung > 1:
                return later(rung, index)
            if turn.rung == 1:  # nothing is inherited any more
                return turn.position < 2
            return index >= turn.index - self.evolution.population - 2

        return is_needed

    def candidates_of(self, rung: int) -> list[int]:
        if rung != 1:
            return super().candidates_of(rung)
        order = self.best_of(super().candidates_of(0), self.scores[0], len(self.scores[0]))
        different = {self.genotype_of(index).cells: index for index in reversed(order)}
        kept = sorted(different.values(), key=order.index)
        kept += [index for index in order if index not in kept]  # twins, where there are too few others
        return kept[: self.rungs[1].candidates]

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self._parents = {}
        for index in range(min(len(self.scores[0]) + 1, self.evolution.candidates)):  # each follows from those before
            self.genotype_of(index)


def simulate(plan: Plan, measure: Callable[[Turn], float]) -> Genotype:
    """Runs a plan to its end with a function in the place of training; returns its answer.

    >>> plan = RungPlan([Rung(3, 1)], lambda n: list(Genotype.presets().values())[n])
    >>> simulate(plan, lambda turn: turn.index).name == list(Genotype.presets())[2]
    True
    """
    epoch = 0
    while (turn := plan.turn_at(epoch)) is not None:
        plan.tell(turn, measure(turn))
        epoch = turn.end
    answer = plan.answer()
    assert answer is not None
    return answer


def mutate(
    genotype: Genotype,
    operations: Sequence[str],
    generator: random.Random,
    accepts: Callable[[Genotype], bool] = lambda _: True,
    known: set[Any] | frozenset[Any] = frozenset(),
    name: str = "mutant",
) -> Genotype:
    """One operation or one input changed (Real et al., AAAI 2019, section 3.2), within the space of the draws.

    Args:
        genotype: the parent.
        operations: names to mutate to; ``none`` is none of them.
        generator: of the choices.
        accepts: says whether a genotype is within a budget.
        known: cells to avoid, as :func:`cells` gives them, as long as there are others among a hundred mutants.
        name: of the child.

    Raises:
        UserError: if none of a hundred mutants is accepted.
    """
    names = [operation for operation in operations if operation != "none"]
    accepted = None
    for _ in range(_MOST_TRIES):
        child = _mutant(genotype, names, generator, name)
        if not accepts(child):
            continue
        accepted = accepted or child
        if child.cells not in known:
            return child
    if accepted is None:
        raise UserError(f"none of {_MOST_TRIES} mutants of {genotype.name} is within the budget; raise it")
    return accepted


def _mutant(genotype: Genotype, names: Sequence[str], generator: random.Random, name: str) -> Genotype:
    changed = {kind: list(getattr(genotype, kind)) for kind in KINDS}
    while True:
        kind = generator.choice(KINDS)
        block, edge = generator.randrange(genotype.blocks), generator.randrange(2)
        operation, source = changed[kind][block][edge]
        other = changed[kind][block][1 - edge]
        if generator.random() < 0.5:
            choices: list[Any] = [own for own in names if own != operation]
            mutants = [(own, source) for own in choices]
        else:
            mutants = [(operation, own) for own in range(block + 2) if own not in (source, other[1])]
        if mutants:
            break
    pair = sorted([generator.choice(mutants), other], key=lambda each: each[1])
    new: Block = (pair[0], pair[1])
    changed[kind][block] = new
    return Genotype(name, tuple(changed["normal"]), tuple(changed["reduce"]))


def best_order(
    scores: Sequence[float], genotypes: Sequence[Genotype], cost: Callable[[Genotype], float] | None
) -> list[int]:
    """Places, the best first: by score, or with a second objective by :func:`front_order`."""
    if cost is None:
        return survivors(range(len(scores)), scores, len(scores))
    return front_order(scores, [cost(genotype) for genotype in genotypes])


def front_of(measured: Sequence[Measured]) -> list[Measured]:
    """Those that no other one beats in score and cost, the best score first."""
    kept = first_front([one.score for one in measured], [one.cost or 0.0 for one in measured])
    return sorted((measured[i] for i in kept), key=lambda one: -one.score)


def front_order(scores: Sequence[float], costs: Sequence[float]) -> list[int]:
    """Places in the order of NSGA-II (Deb et al., 2002): front by front, and within one the less crowded first.

    A place belongs to the first front if no other one is better in one of score (high) and cost (low) and not worse in
    the other; the next front is that of what is left. Ties go to the higher score, then to the earlier place.

    >>> front_order([0.5, 0.4, 0.3], [3.0, 1.0, 2.0])
    [0, 1, 2]
    """
    left, order = list(range(len(scores))), []
    while left:
        front = [left[i] for i in first_front([scores[i] for i in left], [costs[i] for i in left])]
        crowding = _crowding([scores[i] for i in front], [costs[i] for i in front])
        order += sorted(front, key=lambda i: (-crowding[front.index(i)], -scores[i], i))
        left = [i for i in left if i not in front]
    return order


def first_front(scores: Sequence[float], costs: Sequence[float]) -> list[int]:
    def is_beaten(one: int) -> bool:
        return any(
            scores[other] >= scores[one] and costs[other] <= costs[one]
            and (scores[other] > scores[one] or costs[other] < costs[one])
            for other in range(len(scores))
        )  # fmt: skip

    return [one for one in range(len(scores)) if not is_beaten(one)]


def _crowding(scores: Sequence[float], costs: Sequence[float]) -> list[float]:
    """The distance of a place to its neighbours, over both objectives, in shares of their ranges."""
    found = [0.0] * len(scores)
    for values in (scores, costs):
        order = sorted(range(len(values)), key=lambda i: values[i])
        spread = values[order[-1]] - values[order[0]]
        found[order[0]] = found[order[-1]] = float("inf")
        for before, own, after in zip(order, order[1:], order[2:], strict=False):
            found[own] += (values[after] - values[before]) / spread if spread else 0.0
    return found
