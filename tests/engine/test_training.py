"""The training engines: torchreid's steps, with options; a resumed run equals one that never stopped."""

import copy
import json
import os

import numpy as np
import pytest
import torch
import torchreid
from drawn_images import draw_people

from torchreid_autoreid.checkpoint import load_checkpoint, newest_checkpoint
from torchreid_autoreid.data import TrainDataManager
from torchreid_autoreid.engine import ImageSoftmaxTrainingEngine, ImageTripletTrainingEngine, Recipe, build_scheduler
from torchreid_autoreid.engine.loop import classification_figures
from torchreid_autoreid.errors import Interrupted, UserError
from torchreid_autoreid.search.losses import batch_hard_triplet
from torchreid_autoreid.space.neck import add_neck
from torchreid_autoreid.space.networks import AutoReIDNetwork

EPOCHS = 2


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return draw_people(tmp_path_factory.mktemp("images"), images=4)


def manager(root, workers=0, held_out=0.0, transforms=("random_flip", "random_crop"), **options):
    return TrainDataManager(
        str(root), "folder", "folder", height=64, width=32, transforms=list(transforms),
        batch_size_train=8, batch_size_test=16, num_instances=2, train_sampler="RandomIdentitySampler",
        workers=workers, use_gpu=False, held_out=held_out, seed=3, **options,
    )  # fmt: skip


def build(
    root,
    kind=ImageTripletTrainingEngine,
    recipe=None,
    workers=0,
    lr=0.01,
    neck="none",
    held_out=0.0,
    transforms=("random_flip", "random_crop"),
    **options,
):
    torchreid.utils.set_random_seed(3)
    data = manager(root, workers, held_out, transforms)
    loss = "triplet" if kind is ImageTripletTrainingEngine else "softmax"
    auxiliary = bool(recipe and recipe.auxiliary_weight)
    model = AutoReIDNetwork(
        data.num_train_pids, loss, channels=2, layers=(1, 1, 1, 1), drop_path=0.1, auxiliary=auxiliary
    )
    add_neck(model, neck)
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    scheduler = build_scheduler(optimizer, "multi_step", EPOCHS, [1], warmup_epochs=1)
    return kind(data, model, optimizer, scheduler=scheduler, use_gpu=False, recipe=recipe, **options)


def run(engine, folder, **options):
    engine.run(**({"save_dir": str(folder), "max_epoch": EPOCHS, "print_freq": 100, "eval_freq": 1} | options))


def state(engine):
    average = engine.average.state_dict() if engine.average else {}
    return copy.deepcopy(
        [engine.model.state_dict(), engine.optimizer.state_dict(), engine.scheduler.state_dict(), average]
    )


def same(one, other):
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(same(a, b) for a, b in zip(one, other, strict=True))
    return one == other


def history(folder):
    records = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    return [{key: value for key, value in record.items() if key != "seconds"} for record in records]


@pytest.mark.parametrize("kind", ["softmax", "triplet"])
def test_without_options_a_step_is_torchreids(root, kind):
    ours = {"softmax": ImageSoftmaxTrainingEngine, "triplet": ImageTripletTrainingEngine}[kind]
    theirs = {"softmax": torchreid.engine.ImageSoftmaxEngine, "triplet": torchreid.engine.ImageTripletEngine}[kind]
    engine = build(root, ours)
    torchreid.utils.set_random_seed(3)
    model = copy.deepcopy(engine.model)
    peer = theirs(engine.datamanager, model, torch.optim.Adam(model.parameters(), lr=0.001), use_gpu=False)
    engine.optimizer.param_groups[0]["lr"] = 0.001
    data = next(iter(engine.train_loader))
    engine.epoch = engine.batch_idx = peer.batch_idx = 0
    engine.num_batches = peer.num_batches = 1
    figures = []
    for each in (engine, peer):
        torch.manual_seed(5)
        figures.append(each.forward_backward(data))
    assert figures[0]["top1"] == pytest.approx(figures[1]["acc"] / 100, abs=1e-6)
    for key in figures[1].keys() - {"acc"}:
        assert figures[0][key] == pytest.approx(figures[1][key], rel=1e-5)
    for left, right in zip(engine.model.parameters(), model.parameters(), strict=True):
        assert torch.allclose(left.grad, right.grad, rtol=1e-3, atol=1e-6)
        told = right.grad.abs() > 1e-5  # Adam's first step follows the sign, which below this is that of rounding
        assert torch.allclose(left[told], right[told], atol=2e-6)


def test_a_collapsed_network_is_named_once_and_its_accuracy_is_that_of_chance(root, tmp_path, caplog):
    for folder, factor in (("healthy", 1.0), ("collapsed", 0.0)):
        engine = build(root, lr=0.0)
        with torch.no_grad():
            engine.model.classifier.weight *= factor
            engine.model.classifier.bias *= factor
        run(engine, tmp_path / folder)
        named = [record.getMessage() for record in caplog.records if "the same answer" in record.getMessage()]
        assert len(named) == (factor == 0)
    assert "epoch 1: the network gives all images of a batch the same answer" in named[0]
    train = history(tmp_path / "collapsed")[-1]["train"]
    people = engine.datamanager.num_train_pids
    assert [train["top1"], train["top5"]] == pytest.approx([1 / people, min(1, 5 / people)])


def test_accuracy_is_torchreids_and_counts_no_tie_and_no_missing_number_as_right():
    random = torch.Generator().manual_seed(0)
    logits, identities = torch.randn(64, 20, generator=random), torch.randint(20, (64,), generator=random)
    (theirs,) = torchreid.metrics.accuracy(logits, identities, topk=(1,))
    figures = classification_figures(logits, identities, (1, 3))
    assert figures["top1"] == pytest.approx(float(theirs) / 100)
    assert figures["top3"] == (logits.topk(3).indices == identities[:, None]).any(dim=1).double().mean()
    assert classification_figures(torch.tensor([[1.0, 1.0, 0.0]]), torch.tensor([0])) == {
        "top1": 0.5, "top5": 1.0, "top10": 1.0,
    }  # fmt: skip
    assert classification_figures(torch.full((2, 30), torch.nan), torch.tensor([0, 1]))["top10"] == 0


@pytest.mark.parametrize(
    ("kind", "recipe", "options"),
    [
        (ImageTripletTrainingEngine, Recipe(ema_decay=0.9, auxiliary_weight=0.4, grad_clip=1.0), {"neck": "after"}),
        (ImageSoftmaxTrainingEngine, Recipe(amp="bfloat16"), {"workers": 2, "held_out": 0.4}),
        # With what draws most, and layers frozen for an epoch that is resumed in its middle.
        (
            ImageTripletTrainingEngine,
            Recipe(ema_decay=0.9, flip_test=True, keep_last=2),
            {"transforms": ["random_flip", "random_crop", "color_jitter", "random_erase"], "fixbase_epoch": 1},
        ),
    ],
)
def test_resumed_anywhere_equals_uninterrupted(root, tmp_path, kind, recipe, options):
    frozen = {"fixbase_epoch": options.get("fixbase_epoch", 0), "open_layers": ["classifier"]}
    options = {key: value for key, value in options.items() if key != "fixbase_epoch"}
    engine = build(root, kind, recipe, **options)
    steps = []
    engine.on_step = lambda epoch, batch, *_: steps.append((epoch, batch))
    run(engine, tmp_path / "whole", **frozen)
    expected, records = state(engine), history(tmp_path / "whole")
    assert len(records) == EPOCHS
    for number, (epoch, batch) in enumerate([steps[0], steps[len(steps) // 2], steps[-1]]):
        folder = tmp_path / str(number)
        first = build(root, kind, recipe, **options)

        def stop(now, index, *_, at=(epoch, batch), stopped=first):
            stopped.stop_requested = (now, index) == at

        first.on_step = stop
        with pytest.raises(Interrupted):
            run(first, folder, **frozen)
        torch.manual_seed(99)  # a new process has other random states
        second = build(root, kind, recipe, **options)
        torch.manual_seed(98)
        run(second, folder, start_epoch=second.resume(folder / "checkpoint.pth"), **frozen)
        assert same(state(second), expected)
        assert history(folder) == records


def test_a_run_of_another_network_with_the_same_weights_is_not_resumed(root, tmp_path):
    described = {"name": "autoreid", "last_stride": 2, "norm_mean": (0.5, 0.5, 0.5)}
    run(build(root, recipe=Recipe(description=described)), tmp_path, max_epoch=1)
    build(root, recipe=Recipe(description=described)).resume(tmp_path / "checkpoint.pth")
    with pytest.raises(UserError, match="its last_stride is 2, here 1; resume with the configuration"):
        build(root, recipe=Recipe(description=described | {"last_stride": 1})).resume(tmp_path / "checkpoint.pth")


def test_the_triplet_loss_is_averaged_over_several_features(root):
    """hacnn gives a tuple of them, and as many logits."""
    engine = build(root, weight_x=1.0)
    features = [torch.randn(4, 3) for _ in range(2)]
    identities = torch.tensor([0, 0, 1, 1])
    logits = [torch.zeros(4, engine.datamanager.num_train_pids) for _ in range(2)]
    _, _, parts = engine._losses((tuple(logits), tuple(features)), identities)
    expected = sum(batch_hard_triplet(each, identities, engine.criterion_t.margin) for each in features) / 2
    assert parts["loss_t"] == pytest.approx(float(expected))


def test_the_average_is_what_is_tested_and_saved(root, tmp_path):
    engine = build(root, recipe=Recipe(ema_decay=0.5))
    own = [[p.detach().clone() for p in engine.model.parameters()]]
    engine.on_step = lambda *_: own.append([p.detach().clone() for p in engine.model.parameters()])
    run(engine, tmp_path, max_epoch=1)
    average = own[1]  # the first step is where the average begins
    for values in own[2:]:
        average = [0.5 * a + 0.5 * b for a, b in zip(average, values, strict=True)]
    for found, wanted in zip(engine.average.module.parameters(), average, strict=True):
        assert torch.allclose(found, wanted, atol=1e-6)
    saved = torch.load(tmp_path / "checkpoint.pth", weights_only=True)
    assert same(saved["state_dict"], dict(engine.average.module.state_dict()))
    assert same(saved["training"]["state_dict"], dict(engine.model.state_dict()))
    trained = engine.model
    query = engine.datamanager.validation_loaders["query"]
    tested, _ = engine.extract_test_set(query, query)
    engine.model = engine.average.module
    assert np.array_equal(tested.features, engine.extract_embeddings(query).features)
    engine.model = trained
    assert not np.array_equal(tested.features, engine.extract_embeddings(query).features)


def test_flip_testing_is_the_mean_over_both_views(root):
    engine = build(root, recipe=Recipe(flip_test=True))
    loader = engine.datamanager.validation_loaders["query"]
    images = torch.cat([batch["img"] for batch in loader])
    engine.model.eval()
    with torch.no_grad():
        expected = (engine.model(images) + engine.model(images.flip(3))) / 2
    atol = 1e-5 * float(expected.abs().max())  # the engine runs the fused form
    assert np.allclose(engine.extract_embeddings(loader).features, expected, rtol=0, atol=atol)


def test_mixed_precision_runs_the_network_in_it_and_the_loss_in_float32(root):
    seen = []
    engine = build(root, recipe=Recipe(amp="bfloat16"))
    engine.model.classifier.register_forward_hook(lambda *args: seen.append(args[2].dtype))
    losses = engine._losses
    engine._losses = lambda outputs, identities: seen.append(outputs[1].dtype) or losses(outputs, identities)
    engine.epoch = engine.batch_idx = 0
    engine.num_batches = 1
    engine.forward_backward(next(iter(engine.train_loader)))
    assert seen == [torch.bfloat16, torch.float32]
    assert all(p.grad is None or p.grad.dtype == torch.float32 for p in engine.model.parameters())


def test_the_auxiliary_loss_is_added_with_its_weight(root):
    engine = build(root, recipe=Recipe(auxiliary_weight=0.4))
    engine.epoch = engine.batch_idx = 0
    engine.num_batches = 1
    figures = engine.forward_backward(next(iter(engine.train_loader)))
    assert figures["loss"] == pytest.approx(figures["loss_t"] + figures["loss_x"] + 0.4 * figures["loss_auxiliary"])
    assert all(p.grad is not None for p in engine.model.auxiliary.parameters())


def test_gradient_clipping_bounds_the_norm(root):
    engine = build(root, recipe=Recipe(grad_clip=1e-3))
    engine.epoch = engine.batch_idx = 0
    engine.num_batches = 1
    engine.forward_backward(next(iter(engine.train_loader)))
    total = torch.nn.utils.get_total_norm([p.grad for p in engine.model.parameters() if p.grad is not None])
    assert float(total) == pytest.approx(1e-3, rel=1e-3)


@pytest.mark.parametrize("recipe", [Recipe(), Recipe(ema_decay=0.5)])
def test_a_stop_in_an_evaluation_or_in_the_test_is_heard(root, tmp_path, recipe):
    expected = build(root, recipe=recipe)
    run(expected, tmp_path / "whole")
    engine = build(root, recipe=recipe)
    extract = engine.extract_features

    def extract_features(images):
        engine.stop_requested = True
        return extract(images)

    engine.extract_features = extract_features
    with pytest.raises(Interrupted):
        run(engine, tmp_path / "stopped")
    assert not (tmp_path / "stopped" / "history.jsonl").exists()
    engine = build(root, recipe=recipe)
    run(engine, tmp_path / "stopped", start_epoch=engine.resume(tmp_path / "stopped" / "checkpoint.pth"))
    assert same(state(engine), state(expected))
    assert history(tmp_path / "stopped") == history(tmp_path / "whole")
    written = (tmp_path / "stopped" / "checkpoint.pth").read_bytes()
    engine.stop_requested = True
    with pytest.raises(Interrupted, match=r"checkpoint\.pth"):
        engine.test(save_dir=str(tmp_path / "stopped"))
    assert (tmp_path / "stopped" / "checkpoint.pth").read_bytes() == written


@pytest.mark.parametrize(
    ("keep", "names"),
    [
        (0, set()),
        (1, {"checkpoint.pth", "checkpoint-previous.pth"}),
        (2, {"checkpoint.pth", "checkpoint-previous.pth", 2, 3}),
    ],
)
def test_the_newest_checkpoints_are_kept(root, tmp_path, keep, names):
    run(build(root, recipe=Recipe(keep_last=keep)), tmp_path, max_epoch=3)
    wanted = {f"checkpoint-{name}.pth" if isinstance(name, int) else name for name in names}
    assert {path.name for path in tmp_path.glob("*.pth")} == wanted | {"checkpoint-best.pth"}


@pytest.mark.parametrize("name", ["checkpoint-best.pth", "checkpoint-1.pth", "checkpoint.pth"])
def test_a_run_that_breaks_off_among_its_checkpoints_has_all_of_them_in_the_end(root, tmp_path, monkeypatch, name):
    recipe, broken, whole = Recipe(keep_last=2), tmp_path / "broken", tmp_path / "whole"
    run(build(root, recipe=recipe), whole)
    replace = os.replace

    def fail_once(source, target):
        if str(target) == str(broken / name):
            monkeypatch.undo()
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", fail_once)
    with pytest.raises(UserError, match="No space left on device"):
        run(build(root, recipe=recipe), broken)
    engine, found = build(root, recipe=recipe), newest_checkpoint(broken)
    run(engine, broken, start_epoch=engine.resume(found[0]) if found else 0)
    assert history(broken) == history(whole)
    for path in whole.glob("*.pth"):
        one, other = (load_checkpoint(folder / path.name) for folder in (broken, whole))
        assert one["epoch"] == other["epoch"]
        assert same(one["state_dict"], other["state_dict"])


def test_held_out_identities_choose_and_are_not_trained_on(root):
    data = manager(root, held_out=0.4)
    assert data.num_train_pids == 5
    trained = {item[0] for item in data.train_loader.dataset.data}
    chosen = {item[0] for loader in data.validation_loaders.values() for item in loader.dataset.data}
    assert len(trained) == 5 * 4
    assert len(chosen) == 3 * 4
    assert not trained & chosen
    assert {item[1] for item in data.train_loader.dataset.data} == set(range(5))


def test_frozen_layers_stay_for_the_epochs_asked(root, tmp_path):
    engine = build(root)
    before = [p.detach().clone() for p in engine.model.cells.parameters()]
    run(engine, tmp_path / "1", max_epoch=1, fixbase_epoch=1, open_layers=["classifier"])
    assert all(torch.equal(a, b) for a, b in zip(before, engine.model.cells.parameters(), strict=True))
    run(engine, tmp_path / "2", max_epoch=2, start_epoch=1, fixbase_epoch=1, open_layers=["classifier"])
    assert not all(torch.equal(a, b) for a, b in zip(before, engine.model.cells.parameters(), strict=True))


def test_a_loss_that_is_not_finite_stops(root, tmp_path):
    engine = build(root, lr=1e30)
    with pytest.raises(UserError, match=r"became (nan|inf) at epoch 1, step \d+ of \d+"):
        run(engine, tmp_path)


def test_another_ema_and_float16_without_a_gpu_are_told(root, tmp_path):
    run(build(root), tmp_path, max_epoch=1)
    with pytest.raises(UserError, match=r"another recipe.ema_decay"):
        build(root, recipe=Recipe(ema_decay=0.9)).resume(tmp_path / "checkpoint.pth")
    with pytest.raises(UserError, match="float16 needs a GPU"):
        build(root, recipe=Recipe(amp="float16"))
    for wrong in ({"ema_decay": 1.0}, {"amp": "float8"}, {"keep_last": -1}):
        with pytest.raises(UserError):
            Recipe(**wrong)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_float16_on_a_gpu(root, tmp_path):
    engine = build(root)
    engine = type(engine)(
        engine.datamanager,
        engine.model.cuda(),
        torch.optim.Adam(engine.model.parameters()),
        recipe=Recipe(amp="float16"),
    )
    run(engine, tmp_path, max_epoch=1)
    assert engine.scaler.is_enabled()


def rates(epochs, *arguments, **options):
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    scheduler = build_scheduler(optimizer, *arguments, **options)
    found = []
    for _ in range(epochs):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


def test_warm_up_rises_linearly_and_steps_count_from_the_first_epoch():
    found = rates(8, "multi_step", 8, [5, 7], gamma=0.1, warmup_epochs=3, warmup_factor=0.1)
    assert found == pytest.approx([0.1, 0.4, 0.7, 1.0, 1.0, 0.1, 0.1, 0.01])


def test_the_cosine_begins_after_the_warm_up_and_ends_where_asked():
    found = rates(6, "cosine", 6, min_lr=0.2, warmup_epochs=2, warmup_factor=0.5)
    cosine = [0.2 + 0.4 * (1 + np.cos(np.pi * t / 4)) for t in range(4)]
    assert found == pytest.approx([0.5, 0.75, *cosine])


def test_without_warm_up_the_schedule_is_torchreids():
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    theirs = torchreid.optim.build_lr_scheduler(optimizer, "single_step", stepsize=[3], max_epoch=8)
    wanted = []
    for _ in range(8):
        wanted.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        theirs.step()
    assert rates(8, "single_step", 8, [3]) == wanted
