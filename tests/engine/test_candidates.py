"""Random search and halving: what is trained, what goes on, and that a resumed run equals one that never stopped."""

import json
from dataclasses import replace

import pytest
import torch
import torchreid
from drawn_images import draw_people
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from torchreid_autoreid.data import TrainDataManager
from torchreid_autoreid.engine import Annealing, ImageCandidateSearchEngine
from torchreid_autoreid.engine.loop import check_settings
from torchreid_autoreid.errors import Interrupted, UserError
from torchreid_autoreid.evaluation.figures import FIGURES
from torchreid_autoreid.genotype import OPERATION_NAMES, Genotype
from torchreid_autoreid.keys import RANKED_BY
from torchreid_autoreid.report import write_report
from torchreid_autoreid.search.budget import Budget
from torchreid_autoreid.search.cost import CostTable, NetworkShape, count_parameters
from torchreid_autoreid.search.halving import Rung, annealed
from torchreid_autoreid.search.plans import Evolution, EvolutionPlan, RungPlan
from torchreid_autoreid.search.selection import draw_genotype
from torchreid_autoreid.space.networks import AutoReIDNetwork

EPOCHS = 4


@pytest.fixture(scope="module")
def datamanager(tmp_path_factory):
    folder = draw_people(tmp_path_factory.mktemp("images"))
    return TrainDataManager(
        root=str(folder),
        sources="folder",
        targets="folder",
        height=32,
        width=16,
        transforms=["random_flip"],
        batch_size_train=8,
        batch_size_test=16,
        num_instances=2,
        train_sampler="RandomIdentitySampler",
        held_out=0.5,
        workers=0,
        use_gpu=False,
        seed=3,
    )


def train(genotype):
    model = AutoReIDNetwork(8, "triplet", genotype, channels=2, layers=(1, 1, 1, 1))
    return model, torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)


def drawer(accepts=lambda _: True, blocks=1):
    def draw(index):
        return draw_genotype(OPERATION_NAMES, blocks, f"random search 5 {index}", accepts, f"random_{index}")

    return draw


def build(datamanager, rungs=(), plan=None, budget=None, **keywords):
    torchreid.utils.set_random_seed(3)
    rungs = rungs or [Rung(2, 2)]
    plan = plan or RungPlan(rungs, drawer() if budget is None else drawer(budget.accepts))
    options = {"blind": range(rungs[0].candidates), "seed": 5, "use_gpu": False, "budget": budget} | keywords
    engine = ImageCandidateSearchEngine(datamanager, train, OPERATION_NAMES, 1, plan, **options)
    engine.prepare()
    return engine


def run(engine, folder, **keywords):
    return engine.run(**({"save_dir": str(folder), "max_epoch": EPOCHS, "print_freq": 100, "eval_freq": -1} | keywords))


def history(folder):
    records = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    return [{key: value for key, value in record.items() if key != "seconds"} for record in records]


def test_the_candidate_that_retrieves_best_is_the_answer(datamanager, tmp_path):
    engine = build(datamanager)
    genotype = run(engine, tmp_path)
    records = history(tmp_path)
    candidates = [record["candidate"] for record in records]
    assert [(c["number"], c["rung"]) for c in candidates] == [(1, 1), (1, 1), (2, 1), (2, 1)]
    drawn = [draw_genotype(OPERATION_NAMES, 1, f"random search 5 {i}", name=f"random_{i}") for i in range(2)]
    assert [Genotype.from_dict(c["genotype"]) for c in candidates] == [drawn[0], drawn[0], drawn[1], drawn[1]]
    assert [c["score"] is None for c in candidates] == [True, False, True, False]  # each is measured when it is trained
    assert [c["score"] for c in candidates] == [r["retrieval"] and r["retrieval"]["mAP"] for r in records]
    best = max((candidates[1], candidates[3]), key=lambda c: c["score"])
    assert genotype == Genotype.from_dict(best["genotype"]) == Genotype.load(tmp_path / "genotype.json")


@pytest.mark.parametrize(("rank_by", "best"), [("mAP", "random_0"), ("auc", "random_1")])
def test_candidates_are_ranked_by_the_figure_that_is_asked_for(datamanager, tmp_path, caplog, rank_by, best):
    """The first has the higher mAP, the second the higher AUC."""
    caplog.set_level("INFO")
    engine = build(datamanager, rank_by=rank_by)
    measure, figures = engine._retrieval, iter([{"mAP": 0.9, "auc": 0.6}, {"mAP": 0.5, "auc": 0.8}])

    def measured():
        result = measure()
        return replace(result, figures=result.figures | next(figures))

    engine._retrieval = measured
    assert run(engine, tmp_path).name == best
    found = [record["candidate"] for record in history(tmp_path) if record["candidate"]["score"] is not None]
    scores, number, score = ([0.9, 0.5], 1, "mAP 90.0%") if rank_by == "mAP" else ([0.6, 0.8], 2, "AUC 80.0%")
    assert [(c["figure"], c["score"]) for c in found] == [(rank_by, own) for own in scores]
    assert f"the best of 2 is candidate {number} with {score}" in caplog.text
    assert json.loads((tmp_path / "queries.json").read_text())["epoch"] == 2 * number  # the best one's answers


def test_a_figure_that_nothing_is_ranked_by_is_refused(datamanager):
    with pytest.raises(UserError, match="rank_by must be mAP or auc, not 'rank1'"):
        build(datamanager, rank_by="rank1")


def test_what_ranks_candidates_is_a_figure_by_its_name():
    assert {name: FIGURES[name].label for name in RANKED_BY} == RANKED_BY


def test_the_rate_is_annealed_by_step_within_the_turn_of_a_candidate(datamanager, tmp_path):
    engine, rates = build(datamanager, annealing=Annealing(0.25, 0.1, 0.01)), []
    engine.on_step = lambda epoch, batch, batches, _: rates.append((epoch, batch / batches, engine.get_current_lr()))
    run(engine, tmp_path)
    assert len({rate for _, _, rate in rates}) > EPOCHS  # not by epoch
    for epoch, done, rate in rates:
        assert rate == pytest.approx(0.05 * annealed((epoch % 2 + done) / 2, 0.25, 0.1, 0.01))
    assert rates[0][2] == pytest.approx(0.005)


def test_the_answer_of_a_worse_second_candidate_is_the_first(datamanager, tmp_path):
    engine = build(datamanager)
    engine.on_epoch = lambda record: engine.plan.scores[0].__setitem__(0, 2.0) if record.epoch == 2 else None
    assert run(engine, tmp_path).name == "random_0"


RUNGS = [Rung(3, 1), Rung(2, 2), Rung(1, 4)]  # 3 + 2 + 2 epochs


def test_halving_trains_the_better_ones_on(datamanager, tmp_path, caplog):
    caplog.set_level("INFO")
    engine, moved = build(datamanager, rungs=RUNGS), []
    engine.on_epoch = lambda record: moved.append(
        (record.candidate.number, record.candidate.rung, engine.model.state_dict()["stem.0.weight"].clone())
    )
    genotype = run(engine, tmp_path, max_epoch=7)
    candidates = [record["candidate"] for record in history(tmp_path)]
    assert [c["rung"] for c in candidates] == [1, 1, 1, 2, 2, 3, 3]
    assert [c["score"] is None for c in candidates] == [False] * 5 + [True, False]
    first, second = candidates[:3], candidates[3:5]
    better = sorted(first, key=lambda c: (-c["score"], c["number"]))[:2]
    assert [c["number"] for c in second] == [c["number"] for c in better]
    best = sorted(second, key=lambda c: -c["score"])[0]
    assert {c["number"] for c in candidates[5:]} == {best["number"]}
    assert genotype == Genotype.from_dict(best["genotype"])
    # What goes on keeps its weights: it begins where its last turn ended, not at the start.
    torch.manual_seed(0)
    fresh = build(datamanager, rungs=RUNGS)
    fresh._build(replace(fresh.turn, index=best["number"] - 1, genotype=fresh.plan.genotype_of(best["number"] - 1)))
    start = fresh.model.state_dict()["stem.0.weight"]
    ends = [weight for number, _, weight in moved if number == best["number"]]
    distances = [float((weight - start).norm()) for weight in ends]
    assert distances[1] > 0
    assert float((ends[1] - ends[0]).norm()) < distances[0] + distances[1]
    assert "points from the mean of 3 blind draws" in caplog.text


def test_a_parked_candidate_goes_on_from_its_weights_and_its_momentum(datamanager, tmp_path):
    engine, at_start, at_end = build(datamanager, rungs=RUNGS), {}, {}

    def state():
        moments = [value["momentum_buffer"].clone() for value in engine.optimizer.state.values()]
        return [tensor.clone() for tensor in engine.model.state_dict().values()] + moments

    begin = engine._begin_epoch
    engine._begin_epoch = lambda: begin() or at_start.setdefault((engine.turn.rung, engine.turn.index), state())
    engine.on_epoch = lambda _: at_end.__setitem__((engine.turn.rung, engine.turn.index), state())
    run(engine, tmp_path, max_epoch=7)
    gone_on = [key for key in at_start if key[0] > 0]
    assert len(gone_on) == 3
    for rung, index in gone_on:
        assert all(torch.equal(a, b) for a, b in zip(at_start[rung, index], at_end[rung - 1, index], strict=True))


def stopped_and_resumed_in_every_epoch(make, folder, epochs):
    """The engine that ends a run of which each epoch is trained by an engine of its own."""
    engine, start = make(), 0
    for epoch in range(1, epochs):

        def on_step(at, batch, *_, epoch=epoch, stopped=engine):
            stopped.stop_requested = (at, batch) == (epoch, 0)

        engine.on_step = on_step
        with pytest.raises(Interrupted):
            run(engine, folder, max_epoch=epochs, start_epoch=start)
        engine = make()
        start = engine.resume(folder / "checkpoint.pth")
    return engine, run(engine, folder, max_epoch=epochs, start_epoch=start)


def assert_same_end(engine, through):
    for key, value in through.model.state_dict().items():
        assert torch.equal(value, engine.model.state_dict()[key]), key


@pytest.fixture(scope="module")
def halved(datamanager, tmp_path_factory):
    """A halving that never stopped: its engine, its folder and its answer."""
    engine, folder = build(datamanager, rungs=RUNGS), tmp_path_factory.mktemp("halved")
    return engine, folder, run(engine, folder, max_epoch=7)


def test_halving_stopped_and_resumed_in_every_epoch_equals_uninterrupted(datamanager, halved, tmp_path):
    through, folder, answer = halved
    engine, genotype = stopped_and_resumed_in_every_epoch(lambda: build(datamanager, rungs=RUNGS), tmp_path, 7)
    assert genotype == answer
    assert history(tmp_path) == history(folder)
    assert_same_end(engine, through)


@pytest.mark.parametrize("epoch", [3, 5])  # the first ones of the second and of the third rung
def test_a_halving_that_goes_on_in_another_folder_finds_its_candidates(datamanager, halved, tmp_path, epoch):
    through, folder, answer = halved
    first = build(datamanager, rungs=RUNGS)
    first.on_step = lambda at, batch, *_: setattr(first, "stop_requested", (at, batch) == (epoch, 0))
    with pytest.raises(Interrupted):
        run(first, tmp_path / "cut", max_epoch=7)
    second = build(datamanager, rungs=RUNGS)
    start = second.resume(tmp_path / "cut" / "checkpoint.pth")
    assert run(second, tmp_path / "elsewhere", max_epoch=7, start_epoch=start) == answer
    assert history(tmp_path / "elsewhere") == history(folder)[epoch:]
    assert_same_end(second, through)


def test_rungs_that_do_not_fit_are_refused(datamanager, tmp_path):
    with pytest.raises(UserError, match=r"the candidates take 7 epochs, and train\.max_epoch is 6; set it to 7"):
        run(build(datamanager, rungs=RUNGS), tmp_path, max_epoch=6)
    engine = build(datamanager, rungs=RUNGS)
    run(engine, tmp_path, max_epoch=7)
    with pytest.raises(UserError, match="was made with other rungs"):
        build(datamanager, rungs=[Rung(3, 1), Rung(1, 2)]).resume(tmp_path / "checkpoint.pth")


def test_report_and_tensorboard_take_the_history(datamanager, tmp_path, drawings):
    run(build(datamanager), tmp_path)
    assert ">The candidates</h2>" in write_report(tmp_path).read_text()
    events = EventAccumulator(str(tmp_path)).Reload()
    assert len(events.Scalars("Search/w/loss")) == EPOCHS
    assert "Cells/normal" in events.Tags()["images"]


@pytest.mark.slow
def test_resumed_in_a_candidate_equals_uninterrupted(datamanager, tmp_path):
    through, steps = build(datamanager), []
    through.on_step = lambda epoch, batch, *_: steps.append((epoch, batch))
    genotype = run(through, tmp_path / "through")
    for number, at in enumerate(steps[1 :: len(steps) // 3]):  # in both candidates
        folder = tmp_path / str(number)
        first = build(datamanager)
        first.on_step = lambda epoch, batch, *_, e=first, at=at: setattr(e, "stop_requested", (epoch, batch) == at)
        with pytest.raises(Interrupted):
            run(first, folder)
        torch.manual_seed(99)
        second = build(datamanager)
        torch.manual_seed(98)
        assert run(second, folder, start_epoch=second.resume(folder / "checkpoint.pth")) == genotype
        assert history(folder) == history(tmp_path / "through")
        for key, value in through.model.state_dict().items():
            assert torch.equal(value, second.model.state_dict()[key]), key
    stopped = build(datamanager)
    extract = stopped.extract_features

    def extract_features(images):
        stopped.stop_requested = stopped.epoch == 1  # while the first candidate is measured
        return extract(images)

    stopped.extract_features = extract_features
    with pytest.raises(Interrupted):
        run(stopped, tmp_path / "measured")
    second = build(datamanager)
    assert run(second, tmp_path / "measured", start_epoch=second.resume(tmp_path / "measured" / "checkpoint.pth")) == (
        genotype
    )
    assert history(tmp_path / "measured") == history(tmp_path / "through")
    again = build(datamanager)
    assert (
        run(again, tmp_path / "through", start_epoch=again.resume(tmp_path / "through" / "checkpoint.pth")) == genotype
    )


def test_resumed_between_two_candidates(datamanager, tmp_path):
    through = build(datamanager, checkpoint_every=1)
    genotype = run(through, tmp_path)
    records = history(tmp_path)
    for epoch in (1, 2, 3):
        second = build(datamanager)
        assert second.resume(tmp_path / f"checkpoint-{epoch}.pth") == epoch
        assert run(second, tmp_path, start_epoch=epoch) == genotype
        assert history(tmp_path) == records


def test_candidates_do_not_depend_on_what_was_drawn_before(datamanager):
    one, other = build(datamanager), build(datamanager)
    torch.manual_seed(1)
    turn = replace(one.turn, index=3, genotype=one.plan.genotype_of(3))
    one._build(turn)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    other._build(turn)
    assert torch.equal(torch.get_rng_state(), state)
    assert one.turn.genotype == other.turn.genotype
    assert all(torch.equal(a, b) for a, b in zip(one.model.parameters(), other.model.parameters(), strict=True))


def test_a_budget_decides_what_is_trained(datamanager, tmp_path):
    shape = NetworkShape(channels=2, layers=(1, 1, 1, 1), blocks=1, height=32, width=16)
    table = CostTable.parameters(shape)
    limit = 0.8 * table.smallest() + 0.2 * table.largest()
    engine = build(datamanager, budget=Budget({"params": limit}, {"params": table}), rungs=[Rung(2, 1)])
    run(engine, tmp_path, max_epoch=2)
    for record in history(tmp_path):
        for name, genotype in (("derived", record["candidate"]["genotype"]), ("genotype", record["genotype"])):
            count = count_parameters(shape.build(Genotype.from_dict(genotype)))
            assert record["cost"]["params"][name] == count <= limit == record["cost"]["params"]["limit"]
        assert record["cost"]["params"]["expected"] is None
    assert "Cost and budget" in write_report(tmp_path).read_text()
    for budget in (None, Budget({"params": limit + 1}, {"params": table})):
        with pytest.raises(UserError, match=r"checkpoint\.pth: it was made with other limits"):
            build(datamanager, budget=budget, rungs=[Rung(2, 1)]).resume(tmp_path / "checkpoint.pth")


def test_a_loss_that_is_not_finite_stops(datamanager, tmp_path):
    engine = build(datamanager)
    engine.model.stem[0].weight.data.fill_(float("nan"))
    with pytest.raises(UserError, match="the loss became nan at epoch 1, step 1"):
        run(engine, tmp_path)


def test_wrong_arguments_and_checkpoints_are_refused(datamanager, tmp_path):
    with pytest.raises(UserError, match="at least one candidate and one epoch"):
        build(datamanager, rungs=[Rung(2, 0)])
    with pytest.raises(UserError, match="no more candidates, and more epochs"):
        build(datamanager, rungs=[Rung(2, 1), Rung(3, 3)])
    torch.save({"state_dict": {}, "epoch": 3}, tmp_path / "torchreid.pth")
    with pytest.raises(UserError, match="another kind of checkpoint"):
        build(datamanager).resume(tmp_path / "torchreid.pth")


def evolving():
    return EvolutionPlan(Evolution(5, 1, 2, 2), [Rung(2, 1), Rung(1, 2)], drawer(blocks=2), OPERATION_NAMES, 5)


def train_two_blocks(genotype):
    model = AutoReIDNetwork(8, "triplet", genotype, channels=2, layers=(1, 1, 1, 1))
    return model, torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)


def build_evolution(datamanager):
    torchreid.utils.set_random_seed(3)
    return ImageCandidateSearchEngine(datamanager, train_two_blocks, OPERATION_NAMES, 2, evolving(), 5, use_gpu=False)


def test_children_inherit_what_has_not_changed_and_survivors_start_anew(datamanager, tmp_path):
    engine, at_start, at_end, kept = build_evolution(datamanager), {}, {}, {}
    begin = engine._begin_epoch

    def state():
        return {name: tensor.clone() for name, tensor in engine.model.state_dict().items()}

    def begin_epoch():
        begin()
        at_start.setdefault((engine.turn.rung, engine.turn.index), (engine.turn, state()))

    engine._begin_epoch = begin_epoch
    engine.on_epoch = lambda _: at_end.__setitem__((engine.turn.rung, engine.turn.index), state())
    run(engine, tmp_path, max_epoch=8)
    for (rung, index), (turn, own) in at_start.items():
        if turn.start is None or rung:
            continue
        before = at_end[0, turn.start.index]
        same = {name for name in own if name in before and torch.equal(own[name], before[name])}
        assert {name for name in own if ".operations." not in name} <= same
        assert any(".operations." in name for name in same)
        kept[index] = same
    assert sorted(kept) == [2, 3, 4]
    survivors = [(rung, index) for rung, index in at_start if rung == 1]
    assert len(survivors) == 2
    for key in survivors:
        assert not torch.equal(at_start[key][1]["stem.0.weight"], at_end[0, key[1]]["stem.0.weight"])
    candidates = [record["candidate"] for record in history(tmp_path)]
    assert [c["rung"] for c in candidates] == [1] * 5 + [2] * 2 + [3]
    assert [c["parent"] is None for c in candidates] == [True] * 2 + [False] * 3 + [True] * 3


def test_evolution_stopped_and_resumed_in_every_epoch_equals_uninterrupted(datamanager, tmp_path):
    through = build_evolution(datamanager)
    answer = run(through, tmp_path / "through", max_epoch=8)
    engine, genotype = stopped_and_resumed_in_every_epoch(lambda: build_evolution(datamanager), tmp_path / "stopped", 8)
    assert genotype == answer
    assert history(tmp_path / "stopped") == history(tmp_path / "through")
    assert_same_end(engine, through)


def test_a_second_objective_writes_its_front(datamanager, tmp_path):
    table = CostTable.parameters(NetworkShape(channels=2, layers=(1, 1, 1, 1), blocks=1, height=32, width=16))
    plan = RungPlan([Rung(3, 1)], drawer(), table.cost)
    genotype = run(build(datamanager, plan=plan, rungs=plan.rungs), tmp_path, max_epoch=3)
    front = json.loads((tmp_path / "pareto.json").read_text())
    assert Genotype.from_dict(front[0]["genotype"]) == genotype
    candidates = [record["candidate"] for record in history(tmp_path)]
    for one in front:
        assert one["cost"] == table.cost(Genotype.from_dict(one["genotype"]))
        assert not any(c["score"] > one["mAP"] and c["cost"] <= one["cost"] for c in candidates)
    assert len(front) == sum(
        not any(o["score"] >= c["score"] and o["cost"] <= c["cost"] and o is not c for o in candidates)
        for c in candidates
    )


def test_what_differs_within_the_recipe_of_a_checkpoint_is_named():
    made_with = {"seed": 1, "search.recipe": {"train.lr": 0.1, "recipe.neck": "after"}}
    check_settings({"seed": 1, "search.recipe": {"train.lr": 0.1, "a key that is new": 1}}, made_with, "x.pth")
    with pytest.raises(UserError, match=r"x\.pth was made with search\.recipe: train\.lr 0\.1 \(now 0\.2\); resume"):
        check_settings({"search.recipe": {"train.lr": 0.2, "recipe.neck": "after"}}, made_with, "x.pth")
