"""A study of several workers: who trains what, what a kill costs, and that one worker is a function of the seed."""

import json

import pytest

from torchreid_autoreid.errors import UserError
from torchreid_autoreid.genotype import OPERATION_NAMES, Genotype
from torchreid_autoreid.search.halving import Rung
from torchreid_autoreid.search.plans import Evolution, simulate
from torchreid_autoreid.search.predictor import Predictor
from torchreid_autoreid.search.selection import draw_genotype
from torchreid_autoreid.search.study import Study, StudyPlan, shown

optuna = pytest.importorskip("optuna")

SETTINGS = {"train.lr": 0.1, "space": "reid", "layers": [1, 1, 1, 1]}
RUNGS = [Rung(9, 1), Rung(3, 3), Rung(1, 9)]


def draw(index):
    return draw_genotype(OPERATION_NAMES, 2, f"study {index}", name=f"draw_{index}")


def worth(turn):
    return turn.genotype.count("skip_connect")["normal"] / 10 + 0.001 * turn.epochs + 0.0001 * (turn.index % 7)


def plan_of(place, rungs=RUNGS, evolution=None, **keywords):
    study = Study(str(place), SETTINGS)
    return StudyPlan(study, rungs, draw, OPERATION_NAMES, 2, 1, evolution, **keywords)


def trials_of(place):
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(place)))
    return optuna.load_study(study_name="autoreid", storage=storage).get_trials()


def turns_of(plan):
    found = []
    simulate(plan, lambda turn: found.append(turn) or worth(turn))
    return found


@pytest.mark.parametrize("place", ["study.log", "sqlite:///{}/study.db"])
def test_one_worker_trains_all_and_the_study_is_readable(tmp_path, place):
    place = place.format(tmp_path) if "://" in place else tmp_path / place
    plan = plan_of(place)
    turns = turns_of(plan)
    first = [turn for turn in turns if turn.rung == 0]
    assert [turn.genotype.cells for turn in first] == [draw(index).cells for index in range(9)]
    assert turns[0].rung == 0
    assert turns[1].rung == 1  # the first is the best so far, and goes on
    trials = plan.study.trials()
    assert [trial.state.name for trial in trials] == [
        "COMPLETE" if 9 in trial.intermediate_values else "PRUNED" for trial in trials
    ]
    assert trials[0].params["normal 0 inputs"] == "0 1"
    last = [trial for trial in trials if 9 in trial.intermediate_values]
    best = max(last, key=lambda trial: trial.value)
    assert plan.answer().cells == draw(best.number).cells
    assert plan_of(place).turn_at(0) is None  # nothing is left for another worker


def test_a_candidate_goes_on_only_among_the_better_ones(tmp_path):
    plan = plan_of(tmp_path / "study.log")
    turns_of(plan)
    trials = plan.study.trials()
    for rung, (one, other) in enumerate(zip(RUNGS, RUNGS[1:], strict=False)):
        share = other.candidates / one.candidates
        reached = [trial for trial in trials if one.epochs in trial.intermediate_values]
        for trial in reached:
            before = [t.intermediate_values[one.epochs] for t in reached if t.number <= trial.number]
            kept = max(1, int(len(before) * share))
            own = trial.intermediate_values[one.epochs]
            goes_on = sum(value > own for value in before) < kept
            assert goes_on == (other.epochs in trial.intermediate_values), (rung, trial.number)


def test_workers_share_the_trials_and_one_that_is_killed_loses_its_own_only(tmp_path):
    place = tmp_path / "study.log"
    workers = [plan_of(place) for _ in range(3)]
    killed = workers.pop()
    lost = killed.turn_at(0)  # and no word of it again
    epochs, trained = [0, 0], []
    while any(epoch is not None for epoch in epochs):
        for number, worker in enumerate(workers):
            if epochs[number] is None:
                continue
            turn = worker.turn_at(epochs[number])
            if turn is None:
                epochs[number] = None
                continue
            trained.append((number, turn.index, turn.rung))
            worker.tell(turn, worth(turn))
            epochs[number] = turn.end
    indices = {index for _, index, _ in trained}
    assert indices == set(range(9)) - {lost.index}
    assert {number for number, _, _ in trained} == {0, 1}
    assert len({(index, rung) for _, index, rung in trained}) == len(trained)  # nothing twice
    assert workers[0].running() == 1
    assert workers[0].answer() == workers[1].answer()


@pytest.mark.parametrize("evolution", [None, Evolution(12, 1, 4, 3)])
@pytest.mark.parametrize("end", [1, 5, 9, 14])
def test_a_worker_that_resumes_ends_as_if_it_had_never_stopped(tmp_path, evolution, end):
    whole = plan_of(tmp_path / "whole.log", evolution=evolution)
    expected = turns_of(whole)
    first = plan_of(tmp_path / "cut.log", evolution=evolution)
    epoch, turns = 0, []
    while len(turns) < end:
        turn = first.turn_at(epoch)
        turns.append(turn)
        first.tell(turn, worth(turn))
        epoch = turn.end
    state = json.loads(json.dumps(first.state_dict()))
    # Killed at the worst moment: the next turn has been begun, perhaps ended, and the checkpoint knows nothing of it.
    later = first.turn_at(epoch)
    if later is not None:
        first.tell(later, worth(later))
        first.turn_at(later.end)
    second = plan_of(tmp_path / "cut.log", evolution=evolution)
    second.load_state_dict(state)
    while (turn := second.turn_at(epoch)) is not None:
        turns.append(turn)
        second.tell(turn, worth(turn))
        epoch = turn.end
    assert [(t.rung, t.index, t.first, t.end, t.genotype.cells) for t in turns] == [
        (t.rung, t.index, t.first, t.end, t.genotype.cells) for t in expected
    ]
    assert [t.start for t in turns] == [t.start for t in expected]
    assert [t.intermediate_values for t in second.study.trials()] == [
        t.intermediate_values for t in whole.study.trials()
    ]
    assert second.answer() == whole.answer()


def test_an_evolution_has_children_of_the_measured_and_lets_the_best_start_anew(tmp_path):
    plan = plan_of(tmp_path / "study.log", [Rung(3, 1), Rung(1, 3)], Evolution(20, 1, 5, 5))
    turns = turns_of(plan)
    evolved, later = turns[:20], turns[20:]
    assert all(turn.start is None for turn in evolved[:5])
    for turn in evolved[5:]:
        assert turn.index - 5 <= turn.start.index < turn.index
        assert turn.genotype.changed_edges(turn.start.genotype) >= 1
    anew = [turn for turn in later if turn.rung == 1]
    assert len({turn.genotype.cells for turn in anew}) == 3
    assert all(turn.start is None for turn in anew)
    best = max(evolved, key=worth)
    assert best.genotype.cells == anew[0].genotype.cells
    assert worth(max(evolved[5:], key=worth)) > worth(max(evolved[:5], key=worth))


def test_a_second_objective_gives_a_front(tmp_path):
    def cost(genotype):
        return float(genotype.count("sep_conv_3x3")["normal"])

    plan = plan_of(tmp_path / "study.log", [Rung(12, 1)], cost=cost)
    simulate(plan, lambda turn: 0.1 * turn.genotype.count("sep_conv_3x3")["normal"])
    front = plan.front()
    assert len(front) > 1
    assert [one.score for one in front] == sorted((one.score for one in front), reverse=True)
    by_cost = sorted({(one.cost, one.score) for one in front})
    assert [score for _, score in by_cost] == sorted({one.score for one in front})  # what costs more is better
    assert len({cost for cost, _ in by_cost}) == len(by_cost)


def test_another_study_is_refused_by_name(tmp_path):
    place = tmp_path / "study.log"
    plan_of(place)
    with pytest.raises(UserError, match=r"study\.log was made with train\.lr 0\.1, here it is 0\.2; use the same"):
        Study(str(place), SETTINGS | {"train.lr": 0.2})
    with pytest.raises(UserError, match=r"was made with more None, here it is 1"):
        Study(str(place), SETTINGS | {"more": 1})
    foreign = tmp_path / "foreign.log"
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(foreign)))
    optuna.create_study(storage=storage, study_name="autoreid", direction="maximize").ask()
    with pytest.raises(UserError, match=r"foreign\.log is not a study of this program"):
        Study(str(foreign), SETTINGS)
    with pytest.raises(UserError, match=r"that of a search without a study; leave search\.study out"):
        plan_of(place).load_state_dict({"scores": [[]], "rungs": [[9, 1]]})
    with pytest.raises(UserError, match="has no trial 7"):
        plan_of(place).load_state_dict({"worker": "w", "trial": 7})


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("mysql://me:secret@localhost:1/x", ["mysql://me:***@localhost:1/x", "cannot be used"]),
        ("nonsense://x", ["nonsense://x", "cannot be used"]),
        ("{}/file/study.log", ["study.log", "cannot be used"]),
        ("{}", ["cannot be used"]),
    ],
)
def test_a_place_that_cannot_be_used_is_told_in_one_line(tmp_path, place, words):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError) as refused:
        Study(place.format(tmp_path), SETTINGS)
    assert all(word in str(refused.value) for word in words)
    assert "secret" not in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_torn_journal_is_told_in_one_line(tmp_path):
    place = tmp_path / "study.log"
    plan_of(place)
    place.write_bytes(b'{"op_code": 0, "wor\n' + place.read_bytes()[:50])
    with pytest.raises(UserError, match="cannot be used"):
        Study(str(place), SETTINGS)


def test_a_url_is_shown_without_its_password():
    assert shown("postgresql://me:p@ss@host/db") == "postgresql://me:***@host/db"
    assert shown("sqlite:///a.db") == "sqlite:///a.db"
    assert shown("log/study.log") == "log/study.log"


def test_files_of_trials_that_a_worker_may_go_back_to_are_needed(tmp_path):
    plan = plan_of(tmp_path / "study.log")
    turns_of(plan)
    numbers = [trial.number for trial in plan.study.trials()]
    needed = plan.needed(plan._turn)
    assert [number for number in numbers if needed(1, number)] == numbers[-2:]


def test_genotypes_come_back_from_the_parameters_of_a_trial(tmp_path):
    plan = plan_of(tmp_path / "study.log", [Rung(5, 1)])
    for index, turn in enumerate(turns_of(plan)):
        assert turn.genotype == Genotype(f"trial_{index}", *draw(index).cells)
    assert len(trials_of(tmp_path / "study.log")) == 5


def test_a_predictor_proposes_in_a_study(tmp_path):
    predictor = Predictor(6, draw, 1)
    plan = plan_of(tmp_path / "study.log", [Rung(16, 1)], predictor=predictor)
    turns = turns_of(plan)
    assert [turn.genotype.cells for turn in turns[:6]] == [draw(index).cells for index in range(6)]
    assert len({turn.genotype.cells for turn in turns}) == 16
    assert sum(map(worth, turns[6:])) / 10 > sum(map(worth, turns[:6])) / 6
    assert plan.answer().cells in {turn.genotype.cells for turn in turns}


def test_the_front_of_a_predictor_in_a_study_is_by_what_is_expected_as_its_answer(tmp_path):
    def cost(genotype):
        return float(sum(genotype.count("sep_conv_3x3").values()))

    predictor = Predictor(6, draw, 1, cost)
    plan = plan_of(tmp_path / "study.log", [Rung(16, 1)], predictor=predictor, cost=cost)
    noise = iter(range(100))
    simulate(plan, lambda turn: worth(turn) + (1.0 if next(noise) == 9 else 0.0))  # one of them is lucky
    front = plan.front()
    assert front[0].genotype.cells == plan.answer().cells
    assert max(one.score for one in front) < 1.0 < max(one.score for one in plan.results())
