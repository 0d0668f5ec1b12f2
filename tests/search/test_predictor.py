"""Search with a predictor: its regression against brute force, and that it finds better cells than random search."""

import random
import statistics

import numpy as np
import pytest

from torchreid_autoreid.errors import UserError
from torchreid_autoreid.genotype import KINDS, OPERATION_NAMES
from torchreid_autoreid.search import predictor
from torchreid_autoreid.search.halving import Rung
from torchreid_autoreid.search.plans import RungPlan, simulate
from torchreid_autoreid.search.predictor import OperationCounts, Predictor, PredictorPlan
from torchreid_autoreid.search.selection import draw_genotype

NAMES = [name for name in OPERATION_NAMES if name != "none"]


def drawer(seed):
    return lambda index: draw_genotype(OPERATION_NAMES, 4, f"{seed} {index}", name=f"draw_{index}")


def worth(genotype):
    """More skips in the normal cell and fewer part-aware operations in the reduction cell are better."""
    return genotype.count("skip_connect")["normal"] - genotype.count("part_aware")["reduce"]


def measured(seed, noise=1.0):
    return lambda turn: worth(turn.genotype) + random.Random(f"{seed} {turn.index}").gauss(0, noise)


def predictor_plan(seed, candidates=24, draws=10, **keywords):
    return PredictorPlan(candidates, 2, Predictor(draws, drawer(seed), seed, **keywords))


def counts_of(genotype):
    return [genotype.count(name)[kind] for kind in KINDS for name in NAMES]


def ridge_regression(inputs, targets, ridge, asked):
    """With an intercept that the ridge leaves alone, by the augmented least squares."""
    ones, zeros = np.ones((len(inputs), 1)), np.zeros((inputs.shape[1], 1))
    rows = np.vstack([np.hstack([ones, inputs]), np.hstack([zeros, np.sqrt(ridge) * np.eye(inputs.shape[1])])])
    found = np.linalg.lstsq(rows, np.concatenate([targets, np.zeros(inputs.shape[1])]), rcond=None)[0]
    return found[0] + asked @ found[1:]


def test_the_regression_and_its_leave_one_out_predictions_are_those_of_brute_force():
    genotypes = [drawer("oracle")(index) for index in range(20)]
    scores = np.array([worth(genotype) for genotype in genotypes]) + np.random.default_rng(0).normal(0, 1, 20)
    found = OperationCounts(genotypes, scores)
    counts = np.array([counts_of(genotype) for genotype in genotypes], float)
    mean, scale = counts.mean(0), counts.std(0)
    inputs = (counts - mean) / scale
    for place in range(20):
        others = np.arange(20) != place
        alone = ridge_regression(inputs[others], scores[others], found.ridge, inputs[[place]])
        assert found.left_out[place] == pytest.approx(alone[0], abs=1e-9)
    new = [drawer("new")(index) for index in range(5)]
    asked = (np.array([counts_of(genotype) for genotype in new], float) - mean) / scale
    assert found.predict(new) == pytest.approx(ridge_regression(inputs, scores, found.ridge, asked), abs=1e-6)


def test_the_samples_are_spread_about_the_prediction_and_wider_where_less_is_known():
    genotypes = [drawer("sample")(index) for index in range(20)]
    scores = [worth(g) + random.Random(i).gauss(0, 1) for i, g in enumerate(genotypes)]
    found, new = OperationCounts(genotypes, scores), [drawer("else")(index) for index in range(3)]
    alike = drawer("alike")(0)
    odd = type(alike)(
        "odd", ((("part_aware", 0), ("part_aware", 1)),) * 4, ((("skip_connect", 0), ("skip_connect", 1)),) * 4
    )
    generator = np.random.default_rng(1)
    samples = np.array([found.sample([*new, odd], generator) for _ in range(4000)])
    assert samples.mean(0) == pytest.approx(found.predict([*new, odd]), abs=0.2)
    assert samples[:, 3].std() > 1.5 * samples[:, :3].std(0).max()


def test_it_finds_better_cells_than_random_search_of_the_same_cost():
    found = {"random": [], "predictor": [], "the highest score": []}
    for seed in range(6):
        found["random"].append(worth(simulate(RungPlan([Rung(24, 2)], drawer(seed)), measured(seed))))
        plan = predictor_plan(seed)
        found["predictor"].append(worth(simulate(plan, measured(seed))))
        found["the highest score"].append(worth(plan.genotype_of(int(np.argmax(plan.scores[0])))))
    means = {name: statistics.fmean(values) for name, values in found.items()}
    assert means["predictor"] > means["random"] + 0.8
    assert means["predictor"] > means["the highest score"]  # luck does not decide


def test_the_first_candidates_are_blind_draws_and_none_comes_twice():
    plan, turns = predictor_plan(3), []
    simulate(plan, lambda turn: turns.append(turn) or measured(3)(turn))
    assert [turn.genotype.cells for turn in turns[:10]] == [drawer(3)(index).cells for index in range(10)]
    assert len({turn.genotype.cells for turn in turns}) == 24
    later = statistics.fmean(worth(turn.genotype) for turn in turns[10:])
    assert later > statistics.fmean(worth(turn.genotype) for turn in turns[:10]) + 1
    assert [turn.genotype.name for turn in turns[9:12]] == ["draw_9", "predicted_10", "predicted_11"]
    (answer,) = [turn.index + 1 for turn in turns if turn.genotype == plan.answer()]
    line = plan.told(turns[-1], range(10)).splitlines()[-1]
    assert f"the answer is candidate {answer}," in line
    assert "Spearman" in line


@pytest.mark.parametrize("end", [1, 10, 17, 24])
def test_a_plan_goes_on_from_its_state(end, monkeypatch):
    monkeypatch.setattr(predictor, "_POOL", 100)
    through = predictor_plan(2)
    answer = simulate(through, measured(2))
    first, second = predictor_plan(2), predictor_plan(2)
    for position in range(end):
        turn = first.turn_at(2 * position)
        first.tell(turn, measured(2)(turn))
    second.load_state_dict(first.state_dict())
    for position in range(end, 24):
        turn = second.turn_at(2 * position)
        second.tell(turn, measured(2)(turn))
    assert second.scores == through.scores
    assert second.answer() == answer


def test_a_second_objective_keeps_the_cheap_beside_the_good():
    def cost(genotype):
        return float(sum(genotype.count("sep_conv_3x3").values()))

    plan = predictor_plan(4, cost=cost)
    simulate(plan, measured(4))
    front = plan.front()
    assert [one.score for one in front] == sorted((one.score for one in front), reverse=True)
    assert [one.cost for one in front] == sorted((one.cost for one in front), reverse=True)
    assert front[0].genotype.cells == plan.answer().cells
    blind = statistics.fmean(cost(drawer(4)(index)) for index in range(200))
    assert statistics.fmean(cost(plan.genotype_of(index)) for index in range(10, 24)) < blind


def test_a_space_smaller_than_the_search_repeats_its_candidates():
    few = [drawer("few")(index) for index in range(6)]
    plan = PredictorPlan(12, 1, Predictor(4, lambda index: few[index % 6], 1))
    assert simulate(plan, lambda turn: worth(turn.genotype)).cells in {genotype.cells for genotype in few}


def test_draws_that_leave_nothing_to_the_predictor_are_refused():
    with pytest.raises(UserError, match=r"search\.predictor_draws 24 leaves none of 24 candidates"):
        predictor_plan(1, draws=24)
    with pytest.raises(UserError, match="draws"):
        predictor_plan(1, draws=1)
