"""One search by several workers: its trials are kept by Optuna, in a file or a database that they share.

Each worker asks for a trial, trains it, and tells what it was worth. Nobody waits: a candidate goes on to the next rung
if it is among the better ones of those that have reached this one so far, as in asynchronous successive halving (Li et
al., "A system for massively parallel hyperparameter tuning", MLSys 2020), and a child of an evolution has its parent
among those that have been measured so far. With one worker everything is a function of the seed.
"""

from __future__ import annotations

import json
import math
import random
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from itertools import combinations
from pathlib import Path
from typing import Any

from ..errors import UserError, differences, short, way_out
from ..genotype import KINDS, Block, Genotype
from .halving import Rung, check_rungs, own_epochs
from .plans import Evolution, Measured, Start, Turn, best_order, front_of, mutate
from .predictor import Predictor, answer_of, expected_front

__all__ = ["Study", "StudyPlan", "shown"]

_NAME = "autoreid"
_SETTINGS, _WORKER = "settings", "worker"


def shown(place: str) -> str:
    """A file as it is, a URL without its password."""
    if "://" not in place:
        return place
    head, _, rest = place.partition("://")
    account, at, host = rest.rpartition("@")
    return f"{head}://{account.partition(':')[0]}{':***' if ':' in account else ''}{at}{host}"


class Study:
    """An Optuna study in a file (its journal) or a database.

    Args:
        place: a file, which is made where it is missing, or a URL that SQLAlchemy knows, such as
            ``sqlite:///search.db``.
        settings: what all workers must have in common; the first one writes it down.

    Raises:
        UserError: if Optuna is missing, the place cannot be reached or holds something else, or the study was made with
            other settings.
    """

    def __init__(self, place: str, settings: Mapping[str, Any]) -> None:
        try:
            import optuna
            from optuna.storages.journal import JournalFileBackend
        except ImportError:
            raise UserError("search.study needs Optuna: pip install 'torchreid_autoreid[study]'") from None
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.place = place
        wanted = json.loads(json.dumps(dict(settings)))
        with self._reached():
            if "://" in place:
                storage: Any = place
            else:
                Path(place).parent.mkdir(parents=True, exist_ok=True)
                journal = JournalFileBackend(place)
                storage = optuna.storages.JournalStorage(journal)
            self.study = optuna.create_study(
                storage=storage, study_name=_NAME, direction="maximize", load_if_exists=True,
                sampler=optuna.samplers.RandomSampler(seed=0),
            )  # fmt: skip
            found = self.study.user_attrs.get(_SETTINGS)
            if found is None and not self.study.get_trials(deepcopy=False):
                self.study.set_user_attr(_SETTINGS, wanted)
                found = self.study.user_attrs[_SETTINGS]
        if not isinstance(found, dict):
            raise UserError(f"search.study {shown(place)} is not a study of this program; give another file")
        for key, here, there in differences(wanted, found):
            raise UserError(
                f"search.study {shown(place)} was made with {key} {short(there)}, here it is {short(here)}; "
                "use the same, or another study"
            )

    def trials(self) -> list[Any]:
        """All trials, by number; read only."""
        with self._reached():
            return list(self.study.get_trials(deepcopy=False))

    def ask(self, propose: Callable[[int], Genotype], blocks: int, operations: Sequence[str], worker: str) -> Any:
        """A new trial; ``propose`` gives the genotype for its number."""
        import optuna

        with self._reached():
            self.study.sampler = _proposing(optuna, propose)
            trial = self.study.ask(_distributions(optuna, blocks, operations))
            trial.set_user_attr(_WORKER, worker)
            return trial

    def trial(self, number: int) -> Any:
        """A trial that goes on.

        Raises:
            UserError: if there is none of this number.
        """
        import optuna

        trials = self.trials()
        if not 0 <= number < len(trials):
            raise UserError(
                f"search.study {shown(self.place)} has no trial {number}; give the study of this checkpoint"
            )
        return optuna.trial.Trial(self.study, trials[number]._trial_id)

    def report(self, trial: Any, score: float, step: int) -> None:
        """Writes down what a trial is worth after so many epochs; a repeated report is passed over."""
        with self._reached():
            frozen = self.study.get_trials(deepcopy=False)[trial.number]
            if not frozen.state.is_finished() and step not in frozen.intermediate_values:
                trial.report(score, step)

    def finish(self, trial: Any, score: float, is_complete: bool) -> None:
        """Ends a trial: complete, or pruned before its last rung."""
        import optuna

        states = optuna.trial.TrialState
        with self._reached():
            if is_complete:
                self.study.tell(trial, score, skip_if_finished=True)
            else:
                self.study.tell(trial, state=states.PRUNED, skip_if_finished=True)

    def drop(self, trial: Any) -> None:
        """Ends a trial that is one too many."""
        import optuna

        with self._reached():
            self.study.tell(trial, state=optuna.trial.TrialState.FAIL, skip_if_finished=True)

    @contextmanager
    def _reached(self) -> Any:
        """Turns what a storage says into one line."""
        try:
            yield
        except UserError:
            raise
        except Exception as error:  # whatever a driver of a database raises
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            again = "go on with --resume"
            fix = way_out(error, again) if isinstance(error, OSError) else f"{again} when it can be reached"
            raise UserError(
                f"search.study {shown(self.place)} cannot be used: {reason.replace(self.place, shown(self.place))}; "
                f"{fix}, or give another study"
            ) from None


class StudyPlan:
    """As :class:`~torchreid_autoreid.search.plans.RungPlan`, of one worker of a study.

    Args:
        study: where the trials are kept.
        rungs: as there. The number of candidates of the first one counts trials; the later ones say which share goes
            on.
        draw: the n-th draw from the whole space.
        operations, blocks: of the space.
        seed: of mutations.
        evolution: that comes before the rungs; ``None``: none does.
        predictor: that proposes the candidates of a single rung; ``None``: they are draws.
        accepts, cost: as in :class:`~torchreid_autoreid.search.plans.EvolutionPlan`.
    """

    def __init__(
        self,
        study: Study,
        rungs: Sequence[Rung],
        draw: Callable[[int], Genotype],
        operations: Sequence[str],
        blocks: int,
        seed: int,
        evolution: Evolution | None = None,
        predictor: Predictor | None = None,
        accepts: Callable[[Genotype], bool] = lambda _: True,
        cost: Callable[[Genotype], float] | None = None,
    ) -> None:
        check_rungs(rungs)
        if evolution is not None:
            evolution.check_survivors(rungs)
        self.study, self.rungs, self.cost = study, tuple(rungs), cost
        self.evolution, self.predictor, self.accepts, self.seed = evolution, predictor, accepts, seed
        self.operations, self.blocks = tuple(operations), blocks
        self._draw = draw
        self.worker = uuid.uuid4().hex
        self._trial: Any = None
        self._turn: Turn | None = None
        self._goes_on = False

    @property
    def evolved(self) -> int:
        """Trials of the evolution, which come first."""
        return 0 if self.evolution is None else self.evolution.candidates

    @property
    def total_epochs(self) -> int:
        """The most that a worker can get to train."""
        before = 0 if self.evolution is None else self.evolution.total_epochs
        return before + self.rungs[0].candidates * self.rungs[-1].epochs

    # -- turns --------------------------------------------------------------------------------------------------------

    def turn_at(self, epoch: int) -> Turn | None:
        """The present turn, or the next one of this worker; ``None`` if no trial is left to begin."""
        if self._turn is not None and self._turn.first <= epoch < self._turn.end:
            return self._turn
        if self._goes_on and self._turn is not None:
            last = self._turn
            start = Start(last.rung, last.index, last.genotype)
            self._turn = self._make_turn(last.rung + 1, last.position, epoch, start)
            self._goes_on = False
            return self._turn
        number = -1 if self._trial is None else self._trial.number
        self._trial = self._own_trial_after(number) or self._ask()
        if self._trial is None:
            return None
        number = self._trial.number
        if number < self.evolved:
            self._turn = self._make_turn(0, number, epoch, self._parent(number))
        else:
            self._turn = self._make_turn(int(self.evolution is not None), number - self.evolved, epoch, None)
        return self._turn

    def _make_turn(self, rung: int, position: int, first: int, start: Start | None) -> Turn:
        return Turn(rung, position, first, self._turn_epochs()[rung], self._trial.number, self._genotype(), start)

    def _turn_epochs(self) -> list[int]:
        own = own_epochs(self.rungs)
        return own if self.evolution is None else [self.evolution.epochs, *own]

    def _own_trial_after(self, number: int) -> Any:
        """A trial that this worker has begun already: it was killed before a checkpoint knew of the trial.

        Perhaps the study even has its scores; it is trained anew, with the same result.
        """
        for trial in self.study.trials()[number + 1 :]:
            if trial.user_attrs.get(_WORKER) == self.worker:
                return self.study.trial(trial.number)
        return None

    def _ask(self) -> Any:
        most = self.evolved + self.rungs[0].candidates
        if len(self.study.trials()) >= most:
            return None
        trial = self.study.ask(self._propose, self.blocks, self.operations, self.worker)
        if trial.number < most:
            return trial
        self.study.drop(trial)  # another worker was faster
        return None

    def _genotype(self) -> Genotype:
        return _genotype_of(self._trial.params, self.blocks, f"trial_{self._trial.number}")

    # -- genotypes ----------------------------------------------------------------------------------------------------

    def _propose(self, number: int) -> Genotype:
        if self.predictor is not None:
            return self.predictor.propose(number, *self._measured())
        if self.evolution is None or number < self.evolution.population:
            return self._draw(number)
        measured = self._evolved()
        if number >= self.evolved:
            return self._survivor(number, measured)
        if not measured:  # all of the first ones are still in training
            return self._draw(number)
        generator = random.Random(f"evolution {self.seed} {number}")
        living = measured[-self.evolution.population :]
        drawn = generator.sample(living, min(self.evolution.tournament, len(living)))
        parent = self._ordered(sorted(drawn, key=lambda one: one[0]))[0]
        known = {genotype.cells for _, genotype, _ in measured}
        return mutate(parent[1], self.operations, generator, self.accepts, known)

    def _measured(self) -> tuple[list[Genotype], list[float]]:
        found = self.results()
        return [one.genotype for one in found], [one.score for one in found]

    def _survivor(self, number: int, measured: Sequence[tuple[int, Genotype, float]]) -> Genotype:
        """The best one that no earlier trial of the rungs has taken."""
        if not measured:
            return self._draw(number)
        trials = self.study.trials()[self.evolved : number]
        taken = {_genotype_of(trial.params, self.blocks).cells for trial in trials if trial.params}
        order = self._ordered(measured)
        return next((g for _, g, _ in order if g.cells not in taken), order[0][1])

    def _parent(self, number: int) -> Start | None:
        """Whose weights a child begins with: the measured one that it differs least from, the newest of them."""
        genotype = self._genotype()
        assert self.evolution is not None
        if number < self.evolution.population:
            return None
        living = [one for one in self._evolved() if one[0] < number][-self.evolution.population :]
        nearest = min(living, key=lambda one: (genotype.changed_edges(one[1]), -one[0]), default=None)
        return None if nearest is None else Start(0, nearest[0], nearest[1])

    def _evolved(self) -> list[tuple[int, Genotype, float]]:
        """``(number, genotype, score)`` of the trials of the evolution that are complete."""
        return [
            (trial.number, _genotype_of(trial.params, self.blocks, f"trial_{trial.number}"), float(trial.value))
            for trial in self.study.trials()[: self.evolved]
            if trial.state.is_finished() and trial.value is not None
        ]

    def _ordered(self, found: Sequence[tuple[int, Genotype, float]]) -> list[tuple[int, Genotype, float]]:
        order = best_order([score for _, _, score in found], [genotype for _, genotype, _ in found], self.cost)
        return [found[i] for i in order]

    # -- scores -------------------------------------------------------------------------------------------------------

    def tell(self, turn: Turn, score: float) -> None:
        """The score of the candidate whose turn has ended; decides whether it goes on."""
        own = self._rung_of(turn)
        if own is None:
            self.study.report(self._trial, score, turn.epochs)
            self.study.finish(self._trial, score, is_complete=True)
            return
        self.study.report(self._trial, score, self.rungs[own].epochs)
        last = own + 1 == len(self.rungs)
        self._goes_on = not last and self._is_promoted(own)
        if not self._goes_on:
            self.study.finish(self._trial, score, is_complete=last)

    def _rung_of(self, turn: Turn) -> int | None:
        """Among ``rungs``; ``None``: of the evolution."""
        return turn.rung if self.evolution is None else turn.rung - 1 if turn.rung else None

    def _is_promoted(self, rung: int) -> bool:
        """Whether the present trial is in the share that goes on, of those that have reached this rung; the best is.

        It is compared with trials that began before it, so that a repeated decision is the same.
        """
        step = self.rungs[rung].epochs
        peers = [
            (trial.number, _genotype_of(trial.params, self.blocks), float(trial.intermediate_values[step]))
            for trial in self.study.trials()[self.evolved : self._trial.number + 1]
            if step in trial.intermediate_values
        ]
        share = self.rungs[rung + 1].candidates / self.rungs[rung].candidates
        kept = self._ordered(peers)[: max(1, math.floor(len(peers) * share))]
        return self._trial.number in [number for number, _, _ in kept]

    def results(self) -> list[Measured]:
        """All candidates that have been measured, each after its last turn; those of the last rung first."""
        found = []
        for trial in self.study.trials():
            if not trial.intermediate_values:
                continue
            step = max(trial.intermediate_values)
            steps = [rung.epochs for rung in self.rungs]
            rung = 0 if trial.number < self.evolved else steps.index(step) + int(self.evolution is not None)
            genotype = _genotype_of(trial.params, self.blocks, f"trial_{trial.number}")
            cost = None if self.cost is None else self.cost(genotype)
            found.append(Measured(genotype, float(trial.intermediate_values[step]), cost, rung))
        return sorted(found, key=lambda one: (-one.rung, -one.score))

    def answer(self) -> Genotype | None:
        """The best one of all workers in the last rung that any has reached."""
        if self.predictor is None:
            return next((one.genotype for one in self.results()), None)
        genotypes, scores = self._measured()
        return answer_of(genotypes, scores) if genotypes else None

    def front(self) -> list[Measured]:
        """As :meth:`RungPlan.front`."""
        results = self.results() if self.cost else []
        if self.predictor is not None:
            return expected_front(results)
        return front_of([one for one in results if one.rung == results[0].rung])

    def running(self) -> int:
        """Trials that have been begun and not ended, by all workers."""
        return sum(not trial.state.is_finished() for trial in self.study.trials())

    def keeps(self, turn: Turn) -> bool:
        """As :meth:`RungPlan.keeps`."""
        return self._goes_on or (self.evolution is not None and turn.rung == 0)

    def needed(self, turn: Turn) -> Callable[[int, int], bool]:
        """As :meth:`RungPlan.needed`: a worker may go back to the last two trials of its own."""
        latest: dict[str, list[int]] = {}
        for trial in self.study.trials():
            latest.setdefault(trial.user_attrs.get(_WORKER, ""), []).append(trial.number)
        own = {number for numbers in latest.values() for number in numbers[-2:]}
        lives = 0 if self.evolution is None else turn.index - 4 * self.evolution.population

        def is_needed(rung: int, index: int) -> bool:
            return index in own or (self.evolution is not None and rung == 0 and index >= lives)

        return is_needed

    def told(self, turn: Turn, blind: Sequence[int], label: str = "mAP") -> str:
        """As :meth:`RungPlan.told`."""
        what = "goes on" if self._goes_on else "is done"
        number = len(self.study.trials())
        return f"trial {turn.index} {what}; {number} trials so far, {self.running()} of them in training"

    # -- checkpoints --------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        turn = self._turn
        assert turn is not None
        start = None if turn.start is None else [turn.start.rung, turn.start.index, turn.start.genotype.to_dict()]
        return {
            "worker": self.worker, "trial": self._trial.number, "rung": turn.rung, "position": turn.position,
            "first": turn.first, "start": start, "goes_on": self._goes_on,
        }  # fmt: skip

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of :meth:`state_dict`.

        Raises:
            KeyError, TypeError, ValueError: if it is none.
            UserError: if it is that of a trial that the study does not have.
        """
        if "worker" not in state:
            raise UserError("it is that of a search without a study; leave search.study out")
        self.worker = str(state["worker"])
        self._trial = self.study.trial(int(state["trial"]))
        start = state["start"]
        if start is not None:
            start = Start(int(start[0]), int(start[1]), Genotype.from_dict(start[2]))
        self._turn = self._make_turn(int(state["rung"]), int(state["position"]), int(state["first"]), start)
        self._goes_on = bool(state["goes_on"])


# -- a genotype as the parameters of a trial ---------------------------------------------------------------------------


def _distributions(optuna: Any, blocks: int, operations: Sequence[str]) -> dict[str, Any]:
    names = [operation for operation in operations if operation != "none"]
    found = {}
    for kind in KINDS:
        for block in range(blocks):
            pairs = [f"{one} {other}" for one, other in combinations(range(block + 2), 2)]
            found[f"{kind} {block} inputs"] = optuna.distributions.CategoricalDistribution(pairs)
            for edge in ("first", "second"):
                found[f"{kind} {block} {edge}"] = optuna.distributions.CategoricalDistribution(names)
    return found


def _parameters_of(genotype: Genotype) -> dict[str, str]:
    found = {}
    for kind in KINDS:
        for number, (first, second) in enumerate(getattr(genotype, kind)):
            found[f"{kind} {number} inputs"] = f"{first[1]} {second[1]}"
            found[f"{kind} {number} first"], found[f"{kind} {number} second"] = first[0], second[0]
    return found


def _genotype_of(parameters: Mapping[str, Any], blocks: int, name: str = "trial") -> Genotype:
    def cell(kind: str) -> tuple[Block, ...]:
        found: list[Block] = []
        for block in range(blocks):
            one, other = (int(word) for word in str(parameters[f"{kind} {block} inputs"]).split())
            names = [str(parameters[f"{kind} {block} {edge}"]) for edge in ("first", "second")]
            found.append(((names[0], one), (names[1], other)))
        return tuple(found)

    return Genotype(name, cell("normal"), cell("reduce"))


def _proposing(optuna: Any, propose: Callable[[int], Genotype]) -> Any:
    """A sampler that knows the whole genotype at once."""

    class Proposing(optuna.samplers.BaseSampler):
        def __init__(self) -> None:
            self.known: dict[int, dict[str, str]] = {}

        def infer_relative_search_space(self, study: Any, trial: Any) -> dict[str, Any]:
            return {}

        def sample_relative(self, study: Any, trial: Any, search_space: Any) -> dict[str, Any]:
            return {}

        def sample_independent(self, study: Any, trial: Any, param_name: str, param_distribution: Any) -> Any:
            if trial.number not in self.known:
                self.known[trial.number] = _parameters_of(propose(trial.number))
            return self.known[trial.number][param_name]

    return Proposing()
