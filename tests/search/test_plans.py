"""Plans of discrete search: who is trained when, and that each strategy finds better cells than a blind draw."""

import random
import statistics

import pytest

from torchreid_autoreid.errors import UserError
from torchreid_autoreid.genotype import KINDS, OPERATION_NAMES, Genotype
from torchreid_autoreid.search.halving import Rung
from torchreid_autoreid.search.plans import Evolution, EvolutionPlan, RungPlan, front_order, mutate, simulate
from torchreid_autoreid.search.selection import draw_genotype

BLOCKS = 4


def drawer(seed):
    return lambda index: draw_genotype(OPERATION_NAMES, BLOCKS, f"{seed} {index}", name=f"draw_{index}")


def worth(genotype):
    """More skips in the normal cell and fewer part-aware operations in the reduction cell are better."""
    return genotype.count("skip_connect")["normal"] - genotype.count("part_aware")["reduce"]


def measured(seed, noise=0.5):
    generator = random.Random(f"measure {seed}")
    return lambda turn: worth(turn.genotype) + generator.gauss(0, noise / turn.epochs)


def evolution(seed, **keywords):
    numbers = Evolution(40, 1, 8, 4)
    return EvolutionPlan(numbers, [Rung(3, 1), Rung(1, 3)], drawer(seed), OPERATION_NAMES, seed, **keywords)


def turns_of(plan, measure):
    found = []
    simulate(plan, lambda turn: found.append(turn) or measure(turn))
    return found


def test_the_turns_of_halving_are_those_of_its_definition():
    plan = RungPlan([Rung(4, 1), Rung(2, 3)], drawer(1))
    turns = turns_of(plan, lambda turn: [0.1, 0.4, 0.3, 0.2][turn.index])
    assert plan.total_epochs == 8
    assert [(t.rung, t.index, t.first, t.end) for t in turns] == [
        (0, 0, 0, 1), (0, 1, 1, 2), (0, 2, 2, 3), (0, 3, 3, 4), (1, 1, 4, 6), (1, 2, 6, 8)
    ]  # fmt: skip
    assert [t.start and (t.start.rung, t.start.index) for t in turns[3:]] == [None, (0, 1), (0, 2)]
    assert plan.answer() == drawer(1)(1)


def test_evolution_mutates_the_best_of_the_living():
    plan = evolution(1)
    turns = turns_of(plan, measured(1))
    first, children = turns[:8], turns[8:40]
    assert all(turn.start is None for turn in first)
    for turn in children:
        assert turn.index - 8 <= turn.start.index < turn.index  # the parent lives
        assert turn.genotype.changed_edges(turn.start.genotype) == 1
        living = plan.scores[0][turn.index - 8 : turn.index]
        score = plan.scores[0][turn.start.index]
        assert sum(other > score for other in living) <= 4  # the best of four of eight beats at least three
    assert len({turn.genotype.cells for turn in turns[:40]}) == 40
    # Its survivors are trained from scratch, and go on from what they were in the first of their own rungs.
    order = sorted(range(40), key=lambda i: -plan.scores[0][i])
    assert [turn.index for turn in turns[40:43]] == order[:3]
    assert all(turn.start is None for turn in turns[40:43])
    assert (turns[43].start.rung, turns[43].start.index) == (1, turns[43].index)
    assert plan.total_epochs == turns[-1].end == 40 + 3 + 2


@pytest.mark.parametrize("end", [3, 8, 9, 25, 40, 41, 44])
def test_a_plan_goes_on_from_its_state(end):
    through, scores = evolution(2), []
    answer = simulate(through, lambda turn: scores.append(measured(turn.first)(turn)) or scores[-1])
    first, second = evolution(2), evolution(2)
    epoch = 0
    while epoch < end:
        turn = first.turn_at(epoch)
        first.tell(turn, measured(turn.first)(turn))
        epoch = turn.end
    second.load_state_dict(first.state_dict())
    while (turn := second.turn_at(epoch)) is not None:
        second.tell(turn, measured(turn.first)(turn))
        epoch = turn.end
    assert second.answer() == answer
    assert second.scores == through.scores


def test_each_strategy_beats_a_blind_draw_and_evolution_beats_random_at_equal_cost():
    found = {"random": [], "halving": [], "evolution": []}
    for seed in range(12):
        found["random"].append(worth(simulate(RungPlan([Rung(105, 1)], drawer(seed)), measured(seed))))
        rungs = [Rung(54, 1), Rung(18, 2), Rung(6, 5)]
        found["halving"].append(worth(simulate(RungPlan(rungs, drawer(seed)), measured(seed))))
        plan = EvolutionPlan(Evolution(100, 1, 16, 10), [Rung(3, 1), Rung(1, 3)], drawer(seed), OPERATION_NAMES, seed)
        found["evolution"].append(worth(simulate(plan, measured(seed))))
    blind = statistics.fmean(worth(drawer("blind")(index)) for index in range(200))
    means = {name: statistics.fmean(values) for name, values in found.items()}
    assert min(means.values()) > blind + 0.5
    assert means["evolution"] > means["random"] + 0.5


def test_a_mutant_differs_in_one_operation_or_one_input_and_stays_in_the_space():
    generator, parent = random.Random(1), drawer(3)(0)
    kinds = {"operation": 0, "input": 0}
    for _ in range(300):
        child = mutate(parent, OPERATION_NAMES, generator)
        assert child.changed_edges(parent) == 1
        changed = 0
        for kind in KINDS:
            for block, before in zip(getattr(child, kind), getattr(parent, kind), strict=True):
                assert block[0][1] < block[1][1]  # two different inputs, in order, as in a draw
                assert "none" not in (block[0][0], block[1][0])
                if block != before:
                    changed += 1
                    kinds["operation" if [e[1] for e in block] == [e[1] for e in before] else "input"] += 1
        assert changed == 1
    assert min(kinds.values()) > 75
    # A cell of one block has no other inputs to mutate to.
    alone = draw_genotype(OPERATION_NAMES, 1, "1")
    assert all([e[1] for e in mutate(alone, OPERATION_NAMES, generator).normal[0]] == [0, 1] for _ in range(20))


def test_mutants_keep_a_budget_and_avoid_what_is_known():
    generator, parent = random.Random(1), draw_genotype(["skip_connect", "max_pool_3x3"], 1, "1")
    seen = {parent.cells}
    for _ in range(4):  # four edges with one other operation each
        child = mutate(parent, ["skip_connect", "max_pool_3x3", "none"], generator, known=seen)
        assert child.cells not in seen
        seen.add(child.cells)
    assert mutate(parent, ["skip_connect", "max_pool_3x3"], generator, known=seen).cells in seen  # there is no other
    with pytest.raises(UserError, match="none of 100 mutants of random is within the budget; raise it"):
        mutate(parent, OPERATION_NAMES, generator, lambda _: False)


def test_the_order_of_fronts_is_that_of_brute_force():
    generator = random.Random(2)
    for _ in range(50):
        n = generator.randint(1, 12)
        scores = [generator.randint(0, 4) / 4 for _ in range(n)]
        costs = [generator.randint(0, 4) for _ in range(n)]

        def beats(i, j, scores=scores, costs=costs):
            return (scores[i] >= scores[j] and costs[i] <= costs[j]) and (scores[i], costs[i]) != (scores[j], costs[j])

        rank, left = {}, set(range(n))
        while left:
            front = {i for i in left if not any(beats(j, i) for j in left)}
            rank |= dict.fromkeys(front, len(set(rank.values())))
            left -= front
        order = front_order(scores, costs)
        assert sorted(order) == list(range(n))
        assert [rank[i] for i in order] == sorted(rank.values())
    assert front_order([0.1, 0.2, 0.9, 1.0], [0, 5, 6, 10])[:2] == [3, 0]  # the ends of the front first


def test_a_second_objective_keeps_the_cheap_beside_the_good():
    def cost(genotype):
        return 100.0 * genotype.count("sep_conv_3x3")["normal"] + 1.0

    plan = evolution(5, cost=cost)
    simulate(plan, lambda turn: 0.1 * turn.genotype.count("sep_conv_3x3")["normal"] + 0.01 * worth(turn.genotype))
    last = [plan.genotype_of(index) for index in plan.candidates_of(1)]
    assert len({cost(genotype) for genotype in last}) == 3  # not three of one size
    assert min(cost(genotype) for genotype in last) == 1.0
    front = plan.front()
    assert front[0].genotype == plan.answer()
    plain = evolution(5)
    simulate(plain, lambda turn: 0.1 * turn.genotype.count("sep_conv_3x3")["normal"] + 0.01 * worth(turn.genotype))
    assert min(cost(plain.genotype_of(index)) for index in plain.candidates_of(1)) > 1.0
    assert plain.front() == []


@pytest.mark.parametrize(
    ("numbers", "words"),
    [((10, 1, 11, 2), "population"), ((10, 1, 5, 6), "tournament"), ((0, 1, 1, 1), "at least 1")],
)
def test_wrong_numbers_are_refused(numbers, words):
    with pytest.raises(UserError, match=words):
        Evolution(*numbers)


def test_rungs_that_do_not_fit_are_refused():
    with pytest.raises(UserError, match=r"the first rung has 5 candidates, and the evolution before it only 4"):
        EvolutionPlan(Evolution(4, 1, 2, 2), [Rung(5, 1)], drawer(1), OPERATION_NAMES, 1)
    plan = RungPlan([Rung(2, 1)], drawer(1))
    with pytest.raises(UserError, match="made with other rungs"):
        plan.load_state_dict({"scores": [[]], "rungs": [[3, 1]]})
    with pytest.raises(ValueError, match="do not fit"):
        plan.load_state_dict({"scores": [[0.1, 0.2, 0.3]], "rungs": [[2, 1]]})


def test_twins_fill_the_rungs_where_there_are_too_few_others():
    twin = Genotype.load("retrieval")
    plan = EvolutionPlan(Evolution(3, 1, 3, 1), [Rung(2, 1)], lambda _: twin, OPERATION_NAMES, 1)
    simulate(plan, lambda turn: turn.index)
    assert sorted(plan.candidates_of(1)) == [1, 2]
