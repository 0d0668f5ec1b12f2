"""The search engine: what it steps, what it writes, and that a resumed run equals one that never stopped."""

import copy
import json
import math
import os
import re
import shutil
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
import torchreid
from drawn_images import draw_people
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout

from torchreid_autoreid.checkpoint import load_checkpoint, newest_checkpoint, save_checkpoint
from torchreid_autoreid.data import SearchDataManager
from torchreid_autoreid.engine import ImageAutoReIDSearchEngine, search
from torchreid_autoreid.errors import Interrupted, UserError
from torchreid_autoreid.genotype import Genotype
from torchreid_autoreid.queries import Image, Queries
from torchreid_autoreid.search.budget import Budget
from torchreid_autoreid.search.cost import CostTable, NetworkShape, count_macs, count_parameters
from torchreid_autoreid.search.losses import RetrievalLoss, ScaleFreeLoss
from torchreid_autoreid.search.schedule import Schedule
from torchreid_autoreid.space.networks import AutoReIDSearchNetwork

EPOCHS = 2


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return draw_people(tmp_path_factory.mktemp("images"), images=4)


def build(root, workers=0, split="image", lr=0.05, optimizer="sgd", network=None, on_gpu=False, **keywords):
    torchreid.utils.set_random_seed(3)
    datamanager = SearchDataManager(
        root=str(root),
        sources="folder",
        targets="folder",
        height=64,
        width=32,
        transforms=["random_flip", "random_crop"],
        batch_size_train=8,
        batch_size_test=16,
        num_instances=2,
        train_sampler="RandomIdentitySampler",
        workers=workers,
        use_gpu=False,
        split=split,
        seed=3,
    )
    shape = {"channels": 2, "layers": (1, 1, 1, 1), "blocks": 1} | (network or {})
    model = AutoReIDSearchNetwork(datamanager.num_train_pids, **shape)
    model.to("cuda" if on_gpu else "cpu")
    weights = (
        torch.optim.SGD(model.weights(), lr=lr, momentum=0.9, weight_decay=5e-5)
        if optimizer == "sgd"
        else torch.optim.Adam(model.weights(), lr=lr)
    )
    return ImageAutoReIDSearchEngine(
        datamanager,
        model,
        weights,
        torch.optim.Adam(model.alphas(), lr=0.02, betas=(0.5, 0.999)),
        scheduler=torch.optim.lr_scheduler.CosineAnnealingLR(weights, EPOCHS, 1e-3),
        use_gpu=False,
        **keywords,
    )


def run(engine, folder, **keywords):
    return engine.run(**({"save_dir": str(folder), "max_epoch": EPOCHS, "print_freq": 100} | keywords))


def state(engine):
    """Everything that must be equal bit for bit."""
    return {
        "model": engine.model.state_dict(),
        "w": engine.optimizer.state_dict(),
        "alpha": engine.alpha_optimizer.state_dict(),
        "scheduler": engine.scheduler.state_dict(),
    }


def history(folder):
    records = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    return [{key: value for key, value in record.items() if key != "seconds"} for record in records]


def assert_same(one, other):
    assert type(one) is type(other)
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, list | tuple):
        assert len(one) == len(other)
        for left, right in zip(one, other, strict=True):
            assert_same(left, right)
    else:
        assert one == other


class Uninterrupted(NamedTuple):
    """A search that never stopped, with the folder that it left; its copy is not written to."""

    order: int
    state: dict
    history: list
    genotype: Genotype
    steps: list
    folder: Path


@pytest.fixture(scope="module", params=[1, 2], ids=["first order", "second order"])
def uninterrupted(request, root, tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    engine = build(root, order=request.param, checkpoint_every=1)
    steps = []
    engine.on_step = lambda epoch, batch, *_: steps.append((epoch, batch))
    genotype = run(engine, folder)
    return Uninterrupted(request.param, copy.deepcopy(state(engine)), history(folder), genotype, steps, folder)


#: for what does not depend on the order
first_order = pytest.mark.parametrize("uninterrupted", [1], indirect=True)


def stop_after(engine, epoch, batch):
    def on_step(now, index, *_):
        engine.stop_requested = (now, index) == (epoch, batch)

    engine.on_step = on_step


def test_stopped_and_resumed_after_every_step_equals_uninterrupted(uninterrupted, root, tmp_path):
    order, expected, records, genotype, steps, whole = uninterrupted
    assert len(steps) >= 4
    engine, start = build(root, order=order), 0
    for epoch, batch in steps:
        stop_after(engine, epoch, batch)
        with pytest.raises(Interrupted) as caught:
            run(engine, tmp_path, start_epoch=start)
        assert str(tmp_path / "checkpoint.pth") in str(caught.value)
        torch.manual_seed(99)  # a new process has other random states
        engine = build(root, order=order)
        torch.manual_seed(98)
        start = engine.resume(tmp_path / "checkpoint.pth")
    assert run(engine, tmp_path, start_epoch=start) == genotype == Genotype.load(tmp_path / "genotype.json")
    assert_same(state(engine), expected)
    assert history(tmp_path) == records
    assert (tmp_path / "queries.json").read_bytes() == (whole / "queries.json").read_bytes()


@first_order
def test_queries_of_the_best_measurement_are_kept_with_what_they_found(uninterrupted, root):
    kept, records = Queries.load(uninterrupted.folder / "queries.json"), uninterrupted.history
    best = max(records, key=lambda record: record["retrieval"]["mAP"])
    assert (kept.epoch, kept.mAP) == (best["epoch"], best["retrieval"]["mAP"])
    assert kept.counted == best["retrieval"]["num_valid_queries"]
    engine = build(root)
    engine.resume(uninterrupted.folder / "checkpoint-best.pth")
    loaders = engine.datamanager.held_out_loaders
    query, gallery = engine.extract_test_set(loaders["query"], loaders["gallery"])
    distances = np.linalg.norm(query.features[:, None].astype(float) - gallery.features[None], axis=2) ** 2
    items = {part: loader.dataset.data for part, loader in loaders.items()}
    for own in (own for group in kept.groups.values() for own in group):
        path, pid, camid, _ = items["query"][own.number]
        assert own.image == Image(pid, camid, path)
        # All others but those of the same person by the same camera, the nearest first.
        rows = [r for r, item in enumerate(items["gallery"]) if item[1:3] != (pid, camid)]
        nearest = sorted(rows, key=lambda row: distances[own.number, row])
        told = [Image(*items["gallery"][row][1:3], items["gallery"][row][0]) for row in nearest[:10]]
        assert [image for image, _ in own.answers] == told
        found = [distance for _, distance in own.answers]
        np.testing.assert_allclose(found, distances[own.number][nearest[:10]], rtol=1e-3, atol=1e-4)
        ranks = [rank for rank, row in enumerate(nearest, start=1) if items["gallery"][row][1] == pid]
        assert own.first == ranks[0]
        assert own.precision == pytest.approx(np.mean([n / rank for n, rank in enumerate(ranks, start=1)]))


@first_order
def test_a_stop_in_an_evaluation_is_heard_and_the_resumed_search_ends_the_same(uninterrupted, root, tmp_path):
    order, expected, records, *_ = uninterrupted
    first = build(root, order=order)
    extract, calls = first.extract_features, []

    def extract_features(images):
        calls.append(first.epoch)
        first.stop_requested = True
        return extract(images)

    first.extract_features = extract_features
    with pytest.raises(Interrupted):
        run(first, tmp_path)
    assert calls == [0]  # not a batch more, though the first epoch's evaluation had some left
    assert not (tmp_path / "history.jsonl").exists()
    torch.manual_seed(99)
    second = build(root, order=order)
    torch.manual_seed(98)
    assert second.resume(tmp_path / "checkpoint.pth") == 0
    run(second, tmp_path)
    assert_same(state(second), expected)
    assert history(tmp_path) == records


@first_order
def test_a_clock_that_is_set_back_changes_nothing(uninterrupted, root, tmp_path, monkeypatch):
    """Neither the run nor which checkpoint is the newest depends on the time of day."""
    order, expected, records, _, steps, _ = uninterrupted
    now = iter(range(2_000_000_000, 0, -86400))
    monkeypatch.setattr(time, "time", lambda: float(next(now)))
    engine = build(root, order=order)
    stop_after(engine, *steps[-1])
    with pytest.raises(Interrupted):
        run(engine, tmp_path)
    os.utime(tmp_path / "checkpoint.pth", (0, 0))  # written in 1970, before checkpoint-previous.pth
    newest, warning = newest_checkpoint(tmp_path)
    assert (newest, warning) == (tmp_path / "checkpoint.pth", "")
    engine = build(root, order=order)
    run(engine, tmp_path, start_epoch=engine.resume(newest))
    assert_same(state(engine), expected)
    assert history(tmp_path) == records
    assert all(json.loads(line)["seconds"] >= 0 for line in (tmp_path / "history.jsonl").read_text().splitlines())


def test_a_state_of_another_optimiser_or_scheduler_is_refused(root, tmp_path):
    engine = build(root)
    run(engine, tmp_path, max_epoch=1)
    whole = load_checkpoint(tmp_path / "checkpoint.pth")
    changes = {
        "moments": lambda s: next(iter(s["optimizer"]["state"].values())).update(momentum_buffer=torch.zeros(7)),
        "rate": lambda s: s["optimizer"]["param_groups"][0].update(lr="fast"),
        "infinite": lambda s: s["alpha_optimizer"]["param_groups"][0].update(lr=float("inf")),
        "attributes": lambda s: s["scheduler"].update(step=1),
        "scheduler": lambda s: s.update(scheduler={}),
        "epoch": lambda s: s.update(epoch=-3),
        "random": lambda s: s["random"].update(torch=torch.zeros(3)),
        "loop": lambda s: s["loop"].pop("batch"),
    }
    for name, change in changes.items():
        state = copy.deepcopy(whole)
        change(state)
        save_checkpoint(state, tmp_path / f"{name}.pth")
        with pytest.raises(UserError, match=f"{name}.pth does not fit this run"):
            engine.resume(tmp_path / f"{name}.pth")


@first_order
def test_two_workers_give_the_same_run_resumed_or_not(uninterrupted, root, tmp_path):
    order, expected, records, genotype, steps, _ = uninterrupted
    first = build(root, 2, order=order)
    stop_after(first, *steps[len(steps) // 2])
    with pytest.raises(Interrupted):
        run(first, tmp_path)
    second = build(root, 2, order=order)
    assert run(second, tmp_path, start_epoch=second.resume(tmp_path / "checkpoint.pth")) == genotype
    assert_same(state(second), expected)
    assert history(tmp_path) == records


@pytest.mark.parametrize(("name", "start"), [("checkpoint-1.pth", 1), ("checkpoint.pth", EPOCHS)])
@first_order
def test_resumed_at_an_epoch_boundary_or_at_the_end_equals_uninterrupted(uninterrupted, root, tmp_path, name, start):
    order, expected, records, genotype, _, folder = uninterrupted
    copied = shutil.copytree(folder, tmp_path / "copy")
    engine = build(root, order=order)
    assert engine.resume(copied / name) == start
    assert run(engine, copied, start_epoch=start) == genotype
    assert_same(state(engine), expected)
    assert history(copied) == records


EVERYTHING = Schedule(auxiliary_skip=1.0, beta_weight=5.0, skip_dropout=0.3)
STRATEGIES = {
    "darts with all options": {
        "network": {"blocks": 2},
        "schedule": EVERYTHING,
        "skip_cap": 1,
        "stop_at_skips": 2,
        "warmup_epochs": 1,
    },
    "gdas": {"network": {"strategy": "gdas"}, "schedule": Schedule(beta_weight=5.0, skip_dropout=0.3)},
    "pc_darts, second order": {
        "network": {"strategy": "pc_darts", "partial_channels": 2},
        "schedule": EVERYTHING,
        "order": 2,
    },
    "drnas, second order": {
        "network": {"strategy": "drnas"},
        "schedule": Schedule(auxiliary_skip=1.0, skip_dropout=0.3, dirichlet_weight=0.1),
        "order": 2,
    },
    "perturbation": {
        "selection": "perturbation",
        "perturbation_batches": 1,
        "perturbation_steps": 1,
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("name", STRATEGIES)
def test_a_search_by_any_strategy_resumes_bit_for_bit(root, tmp_path, name):
    options = STRATEGIES[name]
    through = build(root, **options)
    steps = []
    through.on_step = lambda epoch, batch, *_: steps.append((epoch, batch))
    genotype = run(through, tmp_path / "through")
    first = build(root, **options)
    stop_after(first, *steps[len(steps) // 2])
    with pytest.raises(Interrupted):
        run(first, tmp_path / "stopped")
    torch.manual_seed(99)
    second = build(root, **options)
    resumed = run(second, tmp_path / "stopped", start_epoch=second.resume(tmp_path / "stopped" / "checkpoint.pth"))
    assert_same(state(second), state(through))
    assert history(tmp_path / "stopped") == history(tmp_path / "through")
    assert resumed == genotype == Genotype.load(tmp_path / "stopped" / "genotype.json")
    # What ended is not gone on with, and says the same again.
    again = build(root, **options)
    assert (
        run(again, tmp_path / "through", start_epoch=again.resume(tmp_path / "through" / "checkpoint.pth")) == genotype
    )
    assert_same(state(again), state(through))


def test_the_history_says_what_held_in_each_epoch(root, tmp_path):
    schedule = Schedule(8.0, 2.0, auxiliary_skip=1.0, beta_weight=5.0, skip_dropout=0.3)
    engine = build(root, network={"strategy": "gdas"}, schedule=schedule)
    during = []
    engine.on_step = lambda *_: during.append((engine.model.strategy.tau, engine.model.cells[0].skip_dropout))
    run(engine, tmp_path)
    records = history(tmp_path)
    assert records[0]["scheduled"] == {"auxiliary_skip": 1.0, "beta_weight": 0.0, "skip_dropout": 0.3, "tau": 8.0}
    assert records[1]["scheduled"] == {"auxiliary_skip": 0.0, "beta_weight": 5.0, "skip_dropout": 0.0, "tau": 2.0}
    assert set(during) == {(8.0, 0.3), (2.0, 0.0)}
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [event.value for event in events.Scalars("Search/scheduled/tau")] == [8.0, 2.0]
    assert "penalty" not in records[0]["alpha"]
    assert records[1]["alpha"]["penalty"] > 0


def test_the_penalty_is_in_the_gradient_of_the_alphas_and_not_in_the_loss_of_the_log(root):
    """d/d alpha of weight * mean logsumexp is weight * softmax / E, added to the gradient without it."""
    found = {}
    for weight in (0.0, 4.0):
        engine = build(root, schedule=Schedule(beta_weight=weight))
        engine.epoch, engine.max_epoch = 1, 2
        engine._begin_epoch()
        batch = engine._to_device(next(iter(engine.datamanager.alpha_loader)))
        engine.architect.backward(batch, batch)
        found[weight] = [alpha.grad.clone() for alpha in engine.model.alphas()], engine.objective.figures
        engine._end_steps()
    for plain, with_penalty, alpha in zip(found[0.0][0], found[4.0][0], engine.model.alphas(), strict=True):
        assert torch.allclose(with_penalty - plain, 4.0 * alpha.softmax(-1) / len(alpha), atol=1e-5)
    assert found[4.0][1]["loss"] == found[0.0][1]["loss"]
    both = sum(float(alpha.detach().logsumexp(-1).mean()) for alpha in engine.model.alphas())
    assert found[4.0][1]["penalty"] == pytest.approx(4.0 * both)


def collapse(engine, at):
    """Alphas without skip connections up to an epoch, and full of them in it."""

    def on_step(epoch, *_):
        for alpha in engine.model.alphas():
            alpha.data[:, 6] = 50.0 if epoch >= at else -50.0

    engine.on_step = on_step


def test_skip_connections_end_a_search_with_the_genotype_before_the_collapse(root, tmp_path, caplog):
    engine = build(root, stop_at_skips=2, skip_cap=1)
    kept = []
    engine.on_epoch = lambda record: kept.append(record.genotype)
    collapse(engine, at=2)
    with caplog.at_level("INFO"):
        genotype = run(engine, tmp_path, max_epoch=6, eval_freq=-1)
    records = history(tmp_path)
    assert [record["epoch"] for record in records] == [1, 2, 3]
    assert "ended" not in records[1]
    assert "epoch 3 has 2 skip connections (search.stop_at_skips 2)" in records[2]["ended"]
    assert records[2]["ended"] in caplog.text
    assert records[2]["retrieval"] is not None  # the last epoch is measured
    assert genotype == kept[1] == Genotype.load(tmp_path / "genotype.json")
    assert genotype != kept[2]
    again = build(root, stop_at_skips=2, skip_cap=1)
    assert again.resume(tmp_path / "checkpoint.pth") == 3
    assert run(again, tmp_path, max_epoch=6, start_epoch=3) == genotype
    assert history(tmp_path) == records


def test_skip_connections_of_the_warm_up_and_from_the_start_do_not_end_a_search(root, tmp_path):
    engine = build(root, stop_at_skips=2, warmup_epochs=2)
    collapse(engine, at=1)
    run(engine, tmp_path, max_epoch=3, eval_freq=-1)
    assert len(history(tmp_path)) == 3


def test_a_skip_cap_holds_in_the_genotype_and_in_the_history(root, tmp_path):
    engine = build(root, skip_cap=1)
    collapse(engine, at=0)
    assert run(engine, tmp_path, max_epoch=1).count("skip_connect")["normal"] == 1
    assert history(tmp_path)[0]["skips"]["normal"] == 1
    assert engine.model.genotype().count("skip_connect")["normal"] == 2


def test_selection_by_perturbation_finds_the_operation_that_the_network_lives_on(root, tmp_path, monkeypatch):
    """One operation carries everything; strength prefers another, perturbation does not."""
    options = {"perturbation_steps": 0, "perturbation_batches": 1}
    engine = build(root, selection="perturbation", **options)
    losses = []

    def mean_ap(features, identities):
        carried = sum(float(mixture.weights[:, 2].sum()) for mixture in engine.model.mixtures.values())
        losses.append(carried)
        return carried

    monkeypatch.setattr(search, "mean_ap_among", mean_ap)
    genotype = run(engine, tmp_path, max_epoch=1)
    assert losses
    for cell in (genotype.normal, genotype.reduce):
        assert cell == ((("avg_pool_3x3", 0), ("avg_pool_3x3", 1)),)
    assert Genotype.load(tmp_path / "genotype.json") == genotype
    assert engine.model.mixtures is None


@pytest.mark.slow
def test_a_selection_that_is_interrupted_begins_again(root, tmp_path):
    options = {"selection": "perturbation", "perturbation_batches": 1, "perturbation_steps": 1}
    engine = build(root, **options)
    engine.on_epoch = lambda record: setattr(engine, "stop_requested", record.epoch == EPOCHS)
    with pytest.raises(Interrupted):
        run(engine, tmp_path)
    again = build(root, **options)
    resumed = run(again, tmp_path, start_epoch=again.resume(tmp_path / "checkpoint.pth"))
    assert resumed == run(build(root, **options), tmp_path / "through")


def test_log_folder_holds_what_it_should(root, tmp_path):
    engine = build(root, checkpoint_every=1)
    genotype = run(engine, tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    wanted = {"checkpoint.pth", "checkpoint-best.pth", "checkpoint-1.pth", "checkpoint-2.pth"}
    assert wanted | {"genotype.json", "history.jsonl"} <= names
    assert any(name.startswith("events.out.tfevents") for name in names)
    assert Genotype.load(tmp_path / "genotype.json") == genotype == engine.model.genotype()
    records = history(tmp_path)
    assert [record["epoch"] for record in records] == [1, 2]
    for record in records:
        for part in ("w", "alpha"):
            more = {"feature_spread"} if part == "alpha" else set()
            assert set(record[part]) - more == {"loss", "loss_softmax", "loss_triplet", "top1", "top5", "top10"}
            assert 0.0 <= record[part]["top1"] <= record[part]["top5"] <= record[part]["top10"] <= 1.0
        assert Genotype.from_dict(record["genotype"])
        for kind in ("normal", "reduce"):
            assert np.allclose(np.sum(record["probabilities"][kind], axis=1), 1.0, atol=1e-6)
            softmax = torch.tensor(record["alphas"][kind], dtype=torch.float64).softmax(-1)
            assert np.allclose(softmax, record["probabilities"][kind], atol=1e-6)
            assert record["none_mass"][kind] == pytest.approx(softmax[:, 5].mean().item(), abs=1e-6)
    assert records[0]["lr"]["w"] == pytest.approx(0.05)
    assert records[1]["lr"]["w"] == pytest.approx(1e-3 + (0.05 - 1e-3) / 2)
    best = max(record["retrieval"]["mAP"] for record in records)
    state_best = load_checkpoint(tmp_path / "checkpoint-best.pth")
    assert state_best["loop"]["best"] == best


def test_tensorboard_gets_scalars_histograms_and_drawn_cells(root, tmp_path, drawings):
    engine = build(root)
    engine.settings = engine.configuration = {"train.lr": 0.05}
    run(engine, tmp_path)
    events = EventAccumulator(str(tmp_path), size_guidance={"scalars": 0, "images": 0, "histograms": 0}).Reload()
    tags = events.Tags()
    for part in ("w/loss_triplet", "alpha/top5", "lr/w", "none_mass/normal", "skips/reduce", "retrieval/mAP"):
        values = [event.value for event in events.Scalars(f"Search/{part}")]
        group, name = part.split("/")
        assert values == pytest.approx([record[group][name] for record in history(tmp_path)], rel=1e-5)
    assert {"Alphas/normal", "Alphas/reduce"} <= set(tags["histograms"])
    for kind in ("normal", "reduce"):
        (first, second) = events.Images(f"Cells/{kind}")
        assert first.width > 300
        assert second.encoded_image_string.startswith(b"\x89PNG")
    assert len(events.Images("Probabilities/normal")) == 2  # a frame an epoch
    layout = Layout.FromString(events.Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0])
    charts = {chart.title: chart.multiline.tag for page in layout.category for chart in page.chart}
    drawn = {title for title, (pattern,) in charts.items() if any(re.match(pattern, tag) for tag in tags["scalars"])}
    assert len(drawn) >= 10
    assert charts.keys() == drawn  # no page of costs without limits
    assert b"train.lr: 0.05" in events.Tensors("configuration/text_summary")[0].tensor_proto.string_val[0]
    assert b"train.lr" in events.summary_metadata["_hparams_/session_start_info"].plugin_data.content


def test_losses_of_the_history_are_means_over_the_steps(root, tmp_path):
    engine = build(root)
    seen = {}
    engine.on_step = lambda epoch, _, __, figures: seen.setdefault(epoch, []).append(figures)
    run(engine, tmp_path)
    for record in history(tmp_path):
        steps = seen[record["epoch"] - 1]
        for name in ("loss", "loss_triplet", "top5"):
            assert record["w"][name] == pytest.approx(np.mean([figures[name] for figures in steps]))
            assert record["alpha"][name] == pytest.approx(np.mean([figures[f"alpha_{name}"] for figures in steps]))


def test_retrieval_equals_torchreids_on_the_held_out_half(root, tmp_path):
    engine = build(root)
    run(engine, tmp_path)
    engine.model.eval()
    parts = {}
    for part, loader in engine.datamanager.held_out_loaders.items():
        batches = list(loader)
        with torch.no_grad():
            features = torch.cat([engine.model(batch["img"]) for batch in batches])
        labels = [torch.cat([batch[key] for batch in batches]).numpy() for key in ("pid", "camid")]
        parts[part] = (features, *labels)
    (qf, q_pids, q_camids), (gf, g_pids, g_camids) = parts["query"], parts["gallery"]
    distances = torchreid.metrics.compute_distance_matrix(qf, gf, "euclidean").numpy()
    cmc, mean_ap = torchreid.metrics.evaluate_rank(
        distances, q_pids, g_pids, q_camids, g_camids, max_rank=min(10, len(g_pids))
    )
    figures = history(tmp_path)[-1]["retrieval"]
    assert figures["mAP"] == pytest.approx(mean_ap, abs=1e-6)
    assert figures["rank1"] == pytest.approx(cmc[0], abs=1e-6)


SHAPE = NetworkShape(channels=4, layers=(1, 1, 1, 1), blocks=1, height=64, width=32)


def tight_budget(**shares):
    tables = {"params": CostTable.parameters(SHAPE), "macs": CostTable.macs(SHAPE)}
    limits = {
        name: tables[name].smallest() + share * (tables[name].largest() - tables[name].smallest())
        for name, share in shares.items()
    }
    return Budget(limits, tables)


def test_a_budget_is_kept_in_every_epoch_and_a_resumed_search_ends_the_same(root, tmp_path):
    through = build(root, budget=tight_budget(params=0.2, macs=0.1))
    start = dict(through.budget.weights)
    genotype = run(through, tmp_path / "through")
    records, tables = history(tmp_path / "through"), through.budget.tables
    for record in records:
        found = Genotype.from_dict(record["genotype"])
        network = SHAPE.build(found)
        counts = {"params": count_parameters(network), "macs": count_macs(network, (3, 64, 32))}
        for name, figures in record["cost"].items():
            assert figures["genotype"] == counts[name] <= figures["limit"] == through.budget.limits[name]
            for value in (figures["expected"], figures["derived"]):
                assert tables[name].smallest() <= value <= tables[name].largest()
    assert Genotype.from_dict(records[-1]["genotype"]) == genotype == Genotype.load(tmp_path / "through/genotype.json")
    assert through.budget.weights != start
    assert {name: figures["weight"] for name, figures in records[-1]["cost"].items()} == through.budget.weights
    events = EventAccumulator(str(tmp_path / "through")).Reload()
    values = [event.value for event in events.Scalars("Cost/macs/expected")]
    assert values == pytest.approx([record["cost"]["macs"]["expected"] for record in records], rel=1e-5)

    first = build(root, budget=tight_budget(params=0.2, macs=0.1))
    stop_after(first, 1, 1)
    with pytest.raises(Interrupted):
        run(first, tmp_path / "stopped")
    second = build(root, budget=tight_budget(params=0.2, macs=0.1))
    assert run(second, tmp_path / "stopped", start_epoch=second.resume(tmp_path / "stopped/checkpoint.pth")) == genotype
    assert_same(state(second), state(through))
    assert second.budget.state_dict() == through.budget.state_dict()
    assert history(tmp_path / "stopped") == records

    for budget, words in ((None, "with search.budget"), (tight_budget(macs=0.3), "its limits are")):
        with pytest.raises(UserError, match=rf"checkpoint.pth does not fit this run \(.*{words}"):
            build(root, budget=budget).resume(tmp_path / "stopped" / "checkpoint.pth")


def test_the_expected_cost_joins_the_loss_of_the_alphas_alone(root):
    engine = build(root, budget=tight_budget(macs=0.1))
    plain = build(root)
    batch = next(iter(engine.train_loader))
    images, identities = engine._to_device(batch)
    losses = []
    for one in (engine, plain):
        torch.manual_seed(0)
        losses.append(one.objective(one.model(images), identities))
    penalty = engine.budget.penalty(engine.model.strengths())
    assert (losses[0] - losses[1]).item() == pytest.approx(penalty.item(), abs=1e-5)
    own = torch.autograd.grad(losses[0], engine.model.alphas())
    without = torch.autograd.grad(losses[1], plain.model.alphas())
    cost = torch.autograd.grad(penalty, engine.model.alphas())
    for total, loss, term in zip(own, without, cost, strict=True):
        assert torch.allclose(total, loss + term, atol=1e-6)
        assert term.abs().sum() > 0
    assert engine.objective.figures == plain.objective.figures  # the history has the retrieval loss


def test_alphas_are_frozen_in_the_warm_up(root, tmp_path):
    engine = build(root, warmup_epochs=1)
    start = [alpha.detach().clone() for alpha in engine.model.alphas()]
    weights = [w.detach().clone() for w in engine.model.weights()]
    after_warm_up = []
    engine.on_epoch = lambda _: after_warm_up.append([alpha.detach().clone() for alpha in engine.model.alphas()])
    run(engine, tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(start, after_warm_up[0], strict=True))
    assert all(not torch.equal(a, b) for a, b in zip(start, after_warm_up[1], strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(weights, engine.model.weights(), strict=True))
    assert [record["alpha"] is None for record in history(tmp_path)] == [True, False]


def test_the_alpha_half_is_used_on_every_nth_epoch_only(root, tmp_path):
    engine = build(root, real_alpha_every=2, warmup_epochs=1)
    manager = engine.datamanager
    in_alpha_half = {path for batch in manager.alpha_loader for path in batch["impath"]}
    seen = []
    plain = manager.alpha_loader.batches, manager.alpha_substitute_loader.batches
    manager.alpha_loader.batches = lambda *a: seen.append("real") or plain[0](*a)
    manager.alpha_substitute_loader.batches = lambda *a: seen.append("substitute") or plain[1](*a)
    run(engine, tmp_path, max_epoch=4)
    assert seen == ["real", "substitute", "real"]
    substitute = {path for batch in plain[1](0, 0, 3) for path in batch["impath"]}
    assert not substitute & in_alpha_half


def test_alphas_on_an_identity_split_see_the_triplet_part_only(root, tmp_path):
    engine = build(root, split="identity")
    figures = []
    engine.on_step = lambda *args: figures.append(args[3])
    run(engine, tmp_path, max_epoch=1)
    for step in figures:
        assert step["alpha_loss"] == step["alpha_loss_triplet"]
        assert step["loss"] == pytest.approx(0.5 * step["loss_softmax"] + 0.5 * step["loss_triplet"], abs=1e-6)


@pytest.mark.parametrize("clip", [0.0, 1e-3])
def test_gradient_clipping_bounds_the_step(root, tmp_path, clip):
    engine = build(root, lr=1.0, grad_clip=clip)
    for group in engine.optimizer.param_groups:
        group.update(momentum=0.0, weight_decay=0.0)
    moved = []
    plain = engine.optimizer.step

    def step():
        before = [w.detach().clone() for w in engine.model.weights()]
        plain()
        moved.append(sum((a - b).pow(2).sum() for a, b in zip(before, engine.model.weights(), strict=True)).sqrt())

    engine.optimizer.step = step
    stop_after(engine, 0, 0)
    with pytest.raises(Interrupted):
        run(engine, tmp_path)
    assert (moved[0] < 1.01e-3) == (clip > 0)


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_state(root, tmp_path):
    engine = build(root)

    def poison(epoch, batch, *_):
        if (epoch, batch) == (1, 0):
            engine.model.stem[0].weight.data.fill_(float("nan"))

    engine.on_step = poison
    with pytest.raises(
        UserError, match=r"became nan at epoch 2, step 2 of \d+; the last good state is kept in"
    ) as caught:
        run(engine, tmp_path)
    assert "\n" not in str(caught.value)
    kept = load_checkpoint(tmp_path / "checkpoint.pth")
    assert kept["epoch"] == 1
    assert all(value.isfinite().all() for value in kept["state_dict"].values())


def test_checkpoints_of_other_networks_are_refused(root, tmp_path):
    engine = build(root)
    stop_after(engine, 0, 0)
    with pytest.raises(Interrupted):
        run(engine, tmp_path)
    other = build(root)
    narrow = AutoReIDSearchNetwork(other.datamanager.num_train_pids, channels=3, layers=(1, 1, 1, 1), blocks=2)
    other.model = narrow
    with pytest.raises(UserError, match="another network"):
        other.resume(tmp_path / "checkpoint.pth")
    torch.save({"state_dict": {}, "epoch": 3}, tmp_path / "torchreid.pth")
    with pytest.raises(UserError, match="another kind of checkpoint"):
        build(root).resume(tmp_path / "torchreid.pth")
    torn = tmp_path / "torn.pth"
    torn.write_bytes((tmp_path / "checkpoint.pth").read_bytes()[:1000])
    with pytest.raises(UserError, match="not a readable checkpoint"):
        build(root).resume(torn)


def test_a_run_resumes_with_its_own_settings_only(root, tmp_path):
    engine = build(root)
    engine.settings = {"train.lr": 0.05, "train.seed": 3, "search.order": 1, "data.sources": ["folder"]}
    stop_after(engine, 0, 0)
    with pytest.raises(Interrupted):
        run(engine, tmp_path)
    same, without, other = build(root), build(root), build(root)
    same.settings = dict(engine.settings)
    assert same.resume(tmp_path / "checkpoint.pth") == without.resume(tmp_path / "checkpoint.pth") == 0
    other.settings = engine.settings | {"train.lr": 0.1, "search.order": 2}
    with pytest.raises(UserError, match=r"made with train.lr 0.05 \(now 0.1\), search.order 1 \(now 2\); resume with"):
        other.resume(tmp_path / "checkpoint.pth")


def test_a_finished_search_resumed_elsewhere_leaves_its_answer_there(root, tmp_path):
    engine = build(root)
    genotype = run(engine, tmp_path / "one")
    again = build(root)
    assert run(again, tmp_path / "other", start_epoch=again.resume(tmp_path / "one" / "checkpoint.pth")) == genotype
    assert Genotype.load(tmp_path / "other" / "genotype.json") == genotype


def test_optimisers_must_not_mix_alphas_and_weights(root):
    engine = build(root)
    model = engine.model
    for everything, alphas in (
        (torch.optim.SGD(model.parameters(), lr=0.1), engine.alpha_optimizer),
        (engine.optimizer, torch.optim.Adam(model.alphas()[:1])),
    ):
        with pytest.raises(UserError, match="foreign"):
            ImageAutoReIDSearchEngine(engine.datamanager, model, everything, alphas)


def test_the_weights_take_the_virtual_step_of_the_second_order(root, tmp_path):
    """Without clipping, in the first step and in a later one, which has momentum."""
    engine = build(root, order=2, grad_clip=0.0)
    at_pass, after_step = [], []

    def weights():
        return [w.detach().clone() for w in engine.model.weights()]

    engine.model.register_forward_pre_hook(lambda *_: at_pass.append(weights()) if engine.model.training else None)
    engine.on_step = lambda *_: after_step.append(weights())
    run(engine, tmp_path, max_epoch=1)
    assert len(after_step) > 1
    assert len(at_pass) == 4 * len(after_step)  # of the weights, after the virtual step, and twice displaced
    for step, found in enumerate(after_step):
        start, virtual, *displaced = at_pass[4 * step : 4 * step + 4]
        assert not any(same(virtual, other) for other in (start, *displaced))
        for one, other in zip(found, virtual, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)


def test_second_order_needs_sgd(root):
    with pytest.raises(UserError, match="Adam"):
        build(root, optimizer="adam", order=2)


@pytest.mark.parametrize(
    "keywords",
    [
        {"real_alpha_every": 0},
        {"warmup_epochs": -1},
        {"grad_clip": float("nan")},
        {"skip_cap": -2},
        {"stop_at_skips": -1},
        {"selection": "chance"},
        {"perturbation_batches": 0},
        {"perturbation_steps": -1},
    ],
)
def test_wrong_arguments_are_refused(root, keywords):
    with pytest.raises(UserError, match=next(iter(keywords))):
        build(root, **keywords)


def test_a_search_learns(root, tmp_path):
    """Colours are easy: the search must reach clearly more than chance on the held-out half, and lower its loss."""
    engine = build(root, loss=RetrievalLoss(0.5))
    engine.scheduler = None
    engine._scheds["model"] = None
    run(engine, tmp_path, max_epoch=8, eval_freq=-1)
    records = history(tmp_path)
    assert records[-1]["w"]["loss"] < records[0]["w"]["loss"]
    assert [record["retrieval"] is None for record in records] == [True] * 7 + [False]
    assert records[-1]["retrieval"]["rank1"] > 0.3


# -- mixed precision --------------------------------------------------------------------------------------------------


def dtypes_of_passes(engine):
    """The types in which the stem's convolution has answered, a pass after the other."""
    seen = []
    engine.model.stem[0].register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    return seen


@pytest.mark.parametrize(("order", "passes"), [(1, "bb"), (2, "bbff")])
def test_bfloat16_is_for_all_but_the_finite_differences(root, tmp_path, order, passes):
    engine = build(root, order=order, amp="bfloat16")
    seen = dtypes_of_passes(engine)
    stop_after(engine, 0, 1)
    with pytest.raises(Interrupted):
        run(engine, tmp_path)
    # First order: of the alphas, of the weights. Second: of the weights, after the virtual step, and twice displaced.
    assert seen == [{"b": torch.bfloat16, "f": torch.float32}[letter] for letter in 2 * passes]
    assert all(p.dtype == torch.float32 and p.isfinite().all() for p in engine.model.parameters())
    assert all(buffer.dtype == torch.float32 for buffer in engine.model.buffers() if buffer.is_floating_point())


def test_bfloat16_follows_nearly_the_same_gradient(root):
    """Of the first order; the second, with its kinks, answers to a change of the images by a part in 1000 already."""
    found = []
    for amp in ("none", "bfloat16"):
        found.append(torch.cat([alpha.grad.flatten() for alpha in alphas_after_the_first_gradient(root, amp)]))
    plain, mixed = found
    assert not torch.equal(plain, mixed)
    assert torch.nn.functional.cosine_similarity(plain, mixed, dim=0) > 0.9


def alphas_after_the_first_gradient(root, amp):
    engine = build(root, amp=amp)
    engine.epoch, engine.max_epoch, engine.batch_idx, engine.num_batches = 0, 1, 0, 1
    engine._begin_epoch()
    batch, alpha_batch = engine._batch(next(iter(engine.train_loader)))
    engine.architect.backward(batch, alpha_batch)
    engine._end_steps()
    return engine.model.alphas()


def test_float16_is_for_gpus(root):
    with pytest.raises(UserError, match=r"float16 needs a GPU.*set search.amp bfloat16"):
        build(root, amp="float16")
    with pytest.raises(UserError, match="unknown precision 'float8'; choose none, bfloat16, float16"):
        build(root, amp="float8")


def with_scaler(root, scale=1024.0, **options):
    """A search that scales its loss as in float16, though it computes in float32."""
    engine = build(root, **options)
    engine.precision.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    return engine


@pytest.mark.parametrize("order", [1, 2])
def test_a_scaled_loss_gives_the_same_search(root, tmp_path, order):
    plain, scaled = build(root, order=order), with_scaler(root, order=order)
    for engine, name in ((plain, "plain"), (scaled, "scaled")):
        run(engine, tmp_path / name, max_epoch=1)
    for one, other in zip(plain.model.parameters(), scaled.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("which", ["alphas", "weights"])
def test_an_overflow_skips_the_step_of_both(root, tmp_path, order, which):
    engine = with_scaler(root, order=order, budget=tight_budget(macs=0.1))
    before, stood_still, scales, figures = [None], [], [], []

    def now():
        kept = copy.deepcopy(state(engine) | {"steps": len(figures), "budget": engine.budget.weights})
        kept["model"] = {key: kept["model"][key] for key, _ in engine.model.named_parameters()}
        return kept

    def note(*arguments):
        figures.append(arguments[3])
        after = now()
        stood_still.append(all(same(before[0][key], after[key]) for key in ("model", "w", "alpha", "budget")))
        scales.append(engine.precision.scaler.get_scale())
        before[0] = after

    parameter = (engine.model.alphas() if which == "alphas" else engine.model.weights())[0]
    parameter.register_hook(lambda gradient: gradient * float("inf") if len(figures) == 1 else None)
    engine.on_step = note
    before[0] = now()
    run(engine, tmp_path)
    assert stood_still[:3] == [False, True, False]
    assert scales[:3] == [1024.0, 512.0, 512.0]
    assert all(np.isfinite(value) for step in figures for value in step.values())
    for record in history(tmp_path):
        assert np.isfinite([*record["w"].values(), *record["alpha"].values()]).all()


def same(one, other):
    try:
        assert_same(one, other)
    except AssertionError:
        return False
    return True


def test_an_overflow_that_no_scale_cures_ends_the_search(root, tmp_path):
    engine = with_scaler(root, scale=4.0)
    engine.model.weights()[0].register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(UserError, match=r"weight gradient became (inf|nan) at epoch 2, step 1 of 2"):
        run(engine, tmp_path)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            {"search.grad_sync": "mean", "search.sync_batch_norm": True},
            "as it would have up to rounding, not bit for bit",
        ),
        (
            {"search.grad_sync": "sum", "search.sync_batch_norm": False},
            "otherwise than it would have, by search.sync_batch_norm and search.grad_sync",
        ),
    ],
)
def test_another_number_of_processes_is_told(root, tmp_path, caplog, settings, words):
    first = build(root)
    stop_after(first, 0, 0)
    with pytest.raises(Interrupted):
        run(first, tmp_path)
    checkpoint = load_checkpoint(tmp_path / "checkpoint.pth")
    checkpoint["loop"]["processes"] = 8
    save_checkpoint(checkpoint, tmp_path / "checkpoint.pth")
    second = build(root)
    second.settings = settings
    second.resume(tmp_path / "checkpoint.pth")
    assert f"was written by 8 processes, and now there are 1: the run goes on {words}" in caplog.text


def test_a_resumed_search_has_its_scale_back(root, tmp_path):
    first = with_scaler(root, scale=256.0)
    stop_after(first, 0, 1)
    with pytest.raises(Interrupted):
        run(first, tmp_path)
    second = with_scaler(root, scale=1024.0)
    second.resume(tmp_path / "checkpoint.pth")
    assert second.precision.scaler.state_dict() == first.precision.scaler.state_dict()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("amp", ["bfloat16", "float16"])
def test_mixed_precision_on_a_gpu(root, tmp_path, order, amp):
    engine = build(root, order=order, amp=amp, on_gpu=True)
    run(engine, tmp_path)
    assert all(parameter.isfinite().all() for parameter in engine.model.parameters())
    assert engine.precision.scaler.is_enabled() == (amp == "float16")


def test_the_diagnosis_says_what_the_alphas_do(root, tmp_path):
    engine = build(root)
    run(engine, tmp_path)
    first, second = (record["diagnosis"] for record in history(tmp_path))
    assert first["changed_edges"] is None
    records = history(tmp_path)
    genotypes = [Genotype.from_dict(record["genotype"]) for record in records]
    assert second["changed_edges"] == genotypes[1].changed_edges(genotypes[0])
    for diagnosis, record in zip((first, second), records, strict=True):
        assert set(diagnosis["alpha_gradient"]) == {"loss_softmax", "loss_triplet"}
        assert diagnosis["alpha_gradient"]["loss_softmax"] > 0  # these people are told apart by more than the margin
        for kind, rows in record["probabilities"].items():
            shares = [-sum(p * math.log(p) for p in row) / math.log(len(row)) for row in rows]
            assert diagnosis["entropy"][kind] == pytest.approx(sum(shares) / len(shares), abs=1e-6)
        assert record["alpha"]["feature_spread"] > 0


def test_the_gradient_norms_of_the_parts_are_theirs(root):
    engine = build(root)
    images, identities = engine._to_device(next(iter(engine.train_loader)))
    outputs = engine.model(images)
    found = engine.objective._gradient_norms(engine.alpha_loss.parts(outputs, identities))
    for name, part in engine.alpha_loss.parts(engine.model(images), identities).items():
        own = torch.autograd.grad(part, engine.model.alphas(), retain_graph=True)
        assert found[name] == pytest.approx(float(torch.stack([g.norm() for g in own]).norm()), rel=1e-3)


def test_the_alphas_do_not_follow_the_scale_of_the_features_by_default(root):
    assert isinstance(build(root).alpha_loss, ScaleFreeLoss)
    split = build(root, split="identity").alpha_loss
    assert isinstance(split, ScaleFreeLoss)
    assert split.loss_lambda == 0
