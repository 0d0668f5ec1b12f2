"""Training, testing, pre-training and export as a person runs them, and one line for every mistake."""

import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from drawn_images import draw_people
from forks import completed, completed_together, stopped
from PIL import Image

from torchreid_autoreid.commands.options import parse
from torchreid_autoreid.commands.pretrain import check as check_pretraining
from torchreid_autoreid.config.read import load_config
from torchreid_autoreid.errors import UserError
from torchreid_autoreid.genotype import Genotype
from torchreid_autoreid.numbers import amount
from torchreid_autoreid.spec import Description

ROOT = Path(__file__).resolve().parents[2]

TINY = """
model: {name: autoreid, pretrained: false}
data: {sources: [folder], targets: [folder], height: 64, width: 32, workers: 0, transforms: [random_flip, random_crop]}
sampler: {train_sampler: RandomIdentitySampler, num_instances: 2}
autoreid: {channels: 2, layers: [1, 1, 1, 1], genotype: baseline}
train: {lr: 0.003, max_epoch: 2, batch_size: 8, print_freq: 1}
loss: {name: triplet, triplet: {weight_x: 1.0}}
recipe: {neck: after, ema_decay: 0.5}
test: {eval_freq: 1}
"""


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return draw_people(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "tiny.yaml"
    path.write_text(TINY)
    return path


@pytest.fixture(scope="module")
def trained(images, config, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained") / "log"
    done = project(
        "train", "--config-file", config, "--root", images, "--genotype", "retrieval", "data.save_dir", folder
    )
    assert done.returncode == 0, done.stderr
    return folder, done


def words(name, *arguments):
    return [sys.executable, str(ROOT / "projects" / "autoreid" / f"{name}.py"), *map(str, arguments)]


def environment(**more):
    return os.environ | {"PYTHONPATH": str(ROOT)} | more


def project(name, *arguments):
    return completed(f"{name}.py", arguments)


def assert_one_line(done, *texts):
    lines = done.stderr.splitlines()
    assert done.returncode == 2, done.stderr
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    for text in texts:
        assert text in lines[0], lines[0]


def test_training_leaves_what_it_should(trained):
    folder, done = trained
    names = {path.name for path in folder.iterdir()}
    assert {
        "config.yaml",
        "history.jsonl",
        "checkpoint.pth",
        "checkpoint-best.pth",
        "results.json",
        "train.log",
    } <= names
    best = torch.load(folder / "checkpoint-best.pth", weights_only=True)
    lines = done.stdout[done.stdout.index("the training has ended") :].splitlines()
    assert re.fullmatch(r"  folder: mAP \d+\.\d%, rank-1 \d+\.\d%, \d+ queries", lines[1])
    own = sum(v.numel() for k, v in best["state_dict"].items() if not re.search("classifier|running_|num_batches", k))
    assert lines[2].startswith(f"  network: {amount(own)} parameters, ")
    assert lines[4] == f"to test it: autoreid evaluate --weights {folder / 'checkpoint-best.pth'}"
    assert "validation" in (folder / "train.log").read_text()
    records = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    best = max(record["retrieval"]["mAP"] for record in records)
    # Selected on the target itself here, so the results are those of the best epoch.
    assert json.loads((folder / "results.json").read_text())["folder"]["mAP"] == pytest.approx(best, abs=1e-6)
    state = torch.load(folder / "checkpoint.pth", weights_only=True)
    assert Genotype.from_dict(state["network"]["genotype"]) == Genotype.load("retrieval")


def test_the_checkpoint_alone_tells_evaluation_its_network(trained, images, tmp_path):
    folder, _ = trained
    out = tmp_path / "f.json"
    done = project(
        "evaluate", "--weights", folder / "checkpoint-best.pth", "-s", "folder", "--root", images, "--json", out,
        "data.workers", 0,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    figures = json.loads(out.read_text())["folder"]
    assert figures["mAP"] == pytest.approx(json.loads((folder / "results.json").read_text())["folder"]["mAP"], abs=1e-6)


def test_the_checkpoint_alone_is_exported_and_runs_without_this_package(trained, tmp_path):
    folder, _ = trained
    path = tmp_path / "reid.onnx"
    done = project("export", "--weights", folder / "checkpoint-best.pth", "--output", path, "--normalize")
    assert done.returncode == 0, done.stderr
    assert "within" in done.stdout
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (features,) = session.run(None, {"images": np.zeros((2, 3, 64, 32), dtype=np.float32)})
    assert np.allclose(np.linalg.norm(features, axis=1), 1.0, atol=1e-5)
    about = json.loads(session.get_modelmeta().custom_metadata_map["torchreid_autoreid"])
    assert (about["height"], about["width"]) == (64, 32)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_a_stopped_and_resumed_training_ends_the_same(trained, images, config, tmp_path, workers):
    whole, _ = trained
    log = tmp_path / "log"
    options = ["--config-file", config, "--root", images, "--genotype", "retrieval"]
    pairs = ["data.save_dir", log, "data.workers", workers]
    done = stopped("train.py", [*options, *pairs], "\nepoch: [1/2][1/", signal.SIGTERM)
    assert done.returncode == 130, done.stderr
    assert str(log / "checkpoint.pth") in done.stderr
    done = project("train", *options, "--resume", log, *pairs)
    assert done.returncode == 0, done.stderr
    left, right = (torch.load(folder / "checkpoint.pth", weights_only=True) for folder in (whole, log))
    for part in (("state_dict",), ("training", "state_dict")):
        one, other = left, right
        for key in part:
            one, other = one[key], other[key]
        assert all(torch.equal(value, other[key]) for key, value in one.items())
    assert json.loads((whole / "results.json").read_text()) == json.loads((log / "results.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize(
    "pairs",
    [
        "model.name resnet18",  # the recipe's autoreid.* are for our network
        "model.name hacnn data.height 160 data.width 64 recipe.neck none",  # several features and logits
        "loss.name softmax sampler.train_sampler RandomSampler",
        "recipe.held_out 0.4 recipe.amp bfloat16 recipe.flip_test true autoreid.auxiliary_weight 0.4",
        "train.staged_lr true train.fixbase_epoch 1 test.rerank true test.visrank true",
    ],
)
def test_torchreids_options_and_models_train_too(images, config, tmp_path, pairs):
    log = tmp_path / "log"
    if "hacnn" in pairs:  # a step of it takes a second
        images = draw_people(tmp_path / "images", identities=4, images=4)
    options = ["--config-file", config, "--root", images, "data.save_dir", log, "train.max_epoch", 1]
    done = project("train", *options, *pairs.split())
    assert done.returncode == 0, done.stderr
    assert (log / "results.json").is_file()
    if "visrank" in pairs:
        assert len(list((log / "visrank_folder").iterdir())) == 64


@pytest.mark.slow
def test_only_testing(trained, images, config, tmp_path):
    folder, _ = trained
    options = ["--config-file", config, "--root", images, "--genotype", "retrieval"]
    done = project(
        "train", *options, "data.save_dir", tmp_path / "log",
        "test.evaluate", "true", "model.load_weights", folder / "checkpoint-best.pth", "recipe.ema_decay", 0,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "log" / "results.json").read_text() == (folder / "results.json").read_text()


@pytest.mark.slow
def test_going_on_in_another_folder_takes_the_best_weights_along(trained, images, config, tmp_path):
    folder, _ = trained
    options = ["--config-file", config, "--root", images, "--genotype", "retrieval"]
    log = tmp_path / "log"
    done = project("train", *options, "--resume", folder, "data.save_dir", log)  # a finished run: nothing to train
    assert done.returncode == 0, done.stderr
    assert (log / "results.json").read_text() == (folder / "results.json").read_text()
    assert (log / "checkpoint-best.pth").read_bytes() == (folder / "checkpoint-best.pth").read_bytes()


def test_the_readme_uses_the_exported_file_as_written(tmp_path):
    """Its code runs without this package, and gives the features that torchreid's own extractor computes."""
    import torchreid

    import torchreid_autoreid
    from torchreid_autoreid.deploy.export import export

    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (code,) = (block for block in text.split("```python")[1:] if "onnxruntime" in block.split("```")[0])
    torchreid_autoreid.register_model("readme_net", channels=4, layers=(1, 1, 1, 1))
    model = torchreid.models.build_model("readme_net", 5, loss="triplet", pretrained=False)
    torch.save({"state_dict": model.state_dict()}, tmp_path / "w.pth")
    opts = ["model.name", "autoreid", "autoreid.channels", "4", "autoreid.layers", "[1, 1, 1, 1]"]
    description = Description.of_config(load_config(opts=opts))
    export(tmp_path / "w.pth", tmp_path / "reid.onnx", description=description, normalize=True)
    pixels = np.random.default_rng(0).integers(0, 256, (300, 111, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "person.jpg")
    code = code.split("```")[0] + "\nimport sys\nassert 'torch' not in sys.modules\nnp.save('features.npy', features)\n"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False,
        env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    extractor = torchreid.utils.FeatureExtractor(
        "readme_net", str(tmp_path / "w.pth"), image_size=(256, 128), device="cpu", verbose=False
    )
    expected = torch.nn.functional.normalize(extractor(str(tmp_path / "person.jpg")), dim=1)
    assert np.allclose(np.load(tmp_path / "features.npy"), expected, atol=1e-4)


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def mistakes(images, folder, tmp_path):
    weights = folder / "checkpoint-best.pth"
    torch.save({"state_dict": {}}, tmp_path / "empty.pth")
    with open(tmp_path / "evil.pth", "wb") as file:
        pickle.dump({"state_dict": Payload(tmp_path / "ran")}, file)
    (tmp_path / "torn.pth").write_bytes(weights.read_bytes()[:1000])
    train = ["train", "--root", images]
    to_x = ["--output", tmp_path / "x"]
    return {
        "genotype": ([*train, "--genotype", "retreival"], ["'retreival'", "did you mean retrieval"]),
        "genotype of another model": ([*train, "--genotype", "baseline", "model.name", "resnet18"], ["model.name"]),
        "model": ([*train, "model.name", "autoreid_x0_55"], ["autoreid_x0_55", "autoreid_x0_5"]),
        "resume": ([*train, "--resume", tmp_path / "none"], ["no checkpoint"]),
        "resume of another genotype": (
            [*train, "--resume", weights],
            ["autoreid.genotype: name 'retrieval' (now 'baseline')"],
        ),
        "resume of a payload": ([*train, "--resume", tmp_path / "evil.pth"], ["evil.pth", "not a readable checkpoint"]),
        "weights of another size": (
            [*train, "--genotype", "retrieval", "autoreid.channels", 4, "model.load_weights", weights],
            ["another network", "its stem.0.weight is (2, 3, 7, 7), here (4, 3, 7, 7)"],
        ),
        "torn weights": ([*train, "model.load_weights", tmp_path / "torn.pth"], ["torn.pth"]),
        "pretrained": ([*train, "model.pretrained", "true", "autoreid.pretrained", "no.pth"], ["no.pth"]),
        "size": ([*train, "data.height", 8], ["data.height 8", "four stages"]),
        "root": (["train", "--root", tmp_path / "nowhere"], ["nowhere"]),
        "new layers": ([*train, "train.staged_lr", "true", "train.new_layers", "[head]"], ["train.new_layers", "head"]),
        "loss": ([*train, "train.lr", "1e30"], ["loss became", "epoch 1"]),
        "search network": ([*train, "model.name", "autoreid_search"], ["model.name autoreid_search", "--genotype"]),
        "key of another model": (
            [*train, "model.name", "resnet18", "autoreid.parts", 2],
            ["autoreid.parts has no effect", "resnet18"],
        ),
        "size of another model": (
            [*train, "model.name", "hacnn", "recipe.neck", "none"],
            ["hacnn takes no images of 64 x 32", "data.height"],
        ),
        "weights in the log": (
            [*train, "model.load_weights", tmp_path / "log" / "w.pth"],
            ["w.pth lies in data.save_dir", "another data.save_dir"],
        ),
        "test of nothing": ([*train, "test.evaluate", "true"], ["random weights", "model.load_weights"]),
        "test and resume": (
            [*train, "--resume", weights, "test.evaluate", "true"],
            ["test.evaluate only tests", "model.load_weights"],
        ),
        "resume of another neck": (
            [*train, "--genotype", "retrieval", "--resume", weights, "recipe.neck", "before"],
            ["recipe.neck 'after' (now 'before')"],
        ),
        "format": (["export", "--weights", weights, *to_x, "--format", "onxx"], ["onxx", "onnx"]),
        "export into a folder": (["export", "--weights", weights, "--output", tmp_path], ["cannot write"]),
        "export": (["export", "--weights", weights, "--output", tmp_path / "no" / "x"], ["cannot write", "no/x"]),
        "export of nothing": (["export", "--weights", tmp_path / "empty.pth", *to_x], ["empty.pth"]),
        "export of a payload": (["export", "--weights", tmp_path / "evil.pth", *to_x], ["evil.pth"]),
        "export of a search": (
            ["export", "--weights", weights, *to_x, "model.name", "autoreid_search"],
            ["model.name autoreid_search", "genotype.json"],
        ),
        "export of another": (
            ["export", "--weights", weights, *to_x, "model.name", "osnet_x1_0"],
            ["holds a network autoreid", "osnet_x1_0"],
        ),
    }  # fmt: skip


MISTAKES = (
    "genotype", "genotype of another model", "model", "resume", "resume of another genotype", "resume of a payload",
    "weights of another size", "torn weights", "pretrained", "size", "root", "new layers", "loss", "export",
    "export of nothing", "export of a payload", "export of another", "search network", "key of another model",
    "size of another model", "weights in the log", "test of nothing", "test and resume", "resume of another neck",
    "format", "export into a folder", "export of a search",
)  # fmt: skip
FAST = ("model", "export")


def first_pair(arguments):
    """Where the KEY VALUE pairs begin."""
    return next(
        (i for i, word in enumerate(arguments) if "." in str(word) and str(word)[0] not in "/-"), len(arguments)
    )


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n in FAST else pytest.mark.slow) for n in MISTAKES])
def test_mistakes_get_one_line_and_status_2(trained, images, config, tmp_path, name):
    (command, *arguments), texts = mistakes(images, trained[0], tmp_path)[name]
    if command == "train":
        at = first_pair(arguments)
        arguments = ["--config-file", config, *arguments[:at], "data.save_dir", tmp_path / "log", *arguments[at:]]
    assert_one_line(project(command, *arguments), *texts)
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "x").exists()


def test_a_short_pre_training_has_a_short_warm_up():
    args = parse("pretrain", ["--data", "x", "--epochs", "3"])
    check_pretraining(args)
    assert args.warmup_epochs == 2


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *(("--lr", value) for value in ("0", "nan", "inf", "1e308", "-1")),
        *(("--weight-decay", value) for value in ("nan", "1e308", "-1")),
        *(("--epochs", value) for value in ("0", str(2**53), str(10**400))),
        *(("--size", value) for value in ("31", "4096", str(10**400))),
        *(("--seed", value) for value in ("-1", str(2**32))),
        *(("--channels", "4097"), ("--workers", "-1"), ("--drop-path", "1"), ("--label-smooth", "nan")),
        *(("--grad-clip", "1e308"), ("--auxiliary-weight", "inf"), ("--warmup-epochs", "-1"), ("--batch-size", "1")),
    ],
)
def test_a_number_of_a_pretraining_out_of_its_range_is_refused(option, value):
    args = parse("pretrain", ["--data", "x", f"{option}={value}"])
    with pytest.raises(UserError, match=f"^{option} must be (at least|above|four)"):
        check_pretraining(args)


@pytest.mark.parametrize("name", ["train", "export", "pretrain"])
def test_help_teaches(name):
    done = project(name, "--help")
    assert done.returncode == 0
    assert "examples:" in done.stdout


# -- pre-training -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def classes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("classes")
    rng = np.random.default_rng(0)
    for part, count in (("train", 16), ("val", 5)):
        for number, colour in enumerate(([200, 40, 40], [40, 200, 40], [40, 40, 200])):
            (folder / part / f"n{number}").mkdir(parents=True)
            for index in range(count):
                pixels = (np.array(colour) + rng.normal(0, 30, (40, 48, 3))).clip(0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / part / f"n{number}" / f"{index}.JPEG")
    return folder


SMALL = ["--channels", "2", "--layers", "1", "1", "1", "1", "--size", "64", "--batch-size", "12", "--cpu"]
SMALL += ["--workers", "0", "--warmup-epochs", "1", "--lr", "0.05"]


def pretrain(classes, output, *arguments):
    return project("pretrain", "--data", classes, "--output", output, *SMALL, *arguments)


def weights_of(folder):
    return torch.load(folder / "checkpoint.pth", weights_only=True)


def test_pretrained_weights_are_accepted(classes, images, config, tmp_path):
    done = pretrain(classes, tmp_path / "p", "--epochs", 3)
    assert done.returncode == 0, done.stderr
    records = [json.loads(line) for line in (tmp_path / "p" / "history.jsonl").read_text().splitlines()]
    assert [record["epoch"] for record in records] == [1, 2, 3]
    assert max(record["val"]["top1"] for record in records) >= 1 / 3
    best = tmp_path / "p" / "checkpoint-best.pth"
    options = ["--config-file", config, "--root", images, "--genotype", "retrieval"]
    done = project(
        "train", *options, "data.save_dir", tmp_path / "log",
        "train.max_epoch", 1, "model.pretrained", "true", "autoreid.pretrained", best,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert f"starts from the ImageNet weights in {best}" in (tmp_path / "log" / "train.log").read_text()


def test_build_model_finds_the_configured_weights(tmp_path, monkeypatch, caplog):
    import torchreid

    import torchreid_autoreid

    torchreid_autoreid.register_model("shelf_net", channels=2, layers=(1, 1, 1, 1))
    other = torchreid.models.build_model("shelf_net", num_classes=1000, pretrained=False)
    torch.save({"state_dict": other.state_dict()}, tmp_path / "shelf_net.pth")
    monkeypatch.setenv("TORCHREID_AUTOREID_PRETRAINED", str(tmp_path))
    model = torchreid.models.build_model("shelf_net", num_classes=7, pretrained=True)
    assert torch.equal(model.stem[0].weight, other.stem[0].weight)
    assert model.classifier.out_features == 7
    torchreid_autoreid.register_model(
        "shelf_net", channels=2, layers=(1, 1, 1, 1), pretrained_weights=tmp_path / "absent.pth"
    )
    with pytest.raises(torchreid_autoreid.UserError, match=r"absent.pth"):
        torchreid.models.build_model("shelf_net", num_classes=7, pretrained=True)
    monkeypatch.delenv("TORCHREID_AUTOREID_PRETRAINED")
    torchreid_autoreid.register_model("shelf_net", channels=2, layers=(1, 1, 1, 1))
    torchreid.models.build_model("shelf_net", num_classes=7, pretrained=True)
    assert "no ImageNet weights are published for shelf_net" in caplog.text


@pytest.mark.slow
def test_a_resumed_pre_training_equals_an_unbroken_one(classes, tmp_path):
    assert pretrain(classes, tmp_path / "whole", "--epochs", 3, "--resume", "auto").returncode == 0
    log = tmp_path / "stopped"
    arguments = ["--data", classes, "--output", log, *SMALL, "--epochs", 3]
    stopped("pretrain.py", arguments, (log / "checkpoint.pth").exists, signal.SIGKILL)
    one = weights_of(tmp_path / "whole")["state_dict"]
    for resume in (["--resume"], ["--resume", "auto"]):
        done = pretrain(classes, log, "--epochs", 3, *resume)
        assert done.returncode == 0, done.stderr
        other = weights_of(log)["state_dict"]
        assert all(torch.equal(value, other[key]) for key, value in one.items())
        lines = [json.loads(line)["epoch"] for line in (log / "history.jsonl").read_text().splitlines()]
        assert lines == [1, 2, 3]
        (log / "checkpoint.pth").write_bytes((log / "checkpoint.pth").read_bytes()[:-5000])
    assert "is torn" in done.stderr


@pytest.mark.slow
def test_a_pre_training_stops_within_a_step_and_goes_on_with_other_workers(classes, tmp_path):
    options = ["--epochs", 2, "--drop-path", 0.2, "--auxiliary-weight", 0.4]
    assert pretrain(classes, tmp_path / "whole", *options).returncode == 0
    log = tmp_path / "stopped"
    arguments = ["--data", classes, "--output", log, *SMALL, *options]
    done = stopped("pretrain.py", arguments, lambda: any(log.glob("events.out.tfevents.*")), signal.SIGTERM)
    assert done.returncode == 130, done.stderr
    assert str(log / "checkpoint.pth") in done.stderr
    done = pretrain(classes, log, *options, "--resume", "--workers", 2)
    assert done.returncode == 0, done.stderr
    one, other = (weights_of(folder)["state_dict"] for folder in (tmp_path / "whole", log))
    assert all(torch.equal(value, other[key]) for key, value in one.items())
    for change, text in (
        (["--lr", "0.5"], "--lr 0.05 (now 0.5)"),
        (["--epochs", "9"], "--epochs 2 (now 9)"),
        (["--seed", "5"], "--seed 1 (now 5)"),
        (["--size", "48"], "--size 64 (now 48)"),
    ):
        assert_one_line(pretrain(classes, log, *options, "--resume", *change), text, "resume with the same values")
    other_cells = pretrain(classes, log, *options, "--resume", "--genotype", "baseline")
    assert_one_line(other_cells, "--genotype: name 'retrieval' (now 'baseline')")
    victim = classes / "train" / "n0" / "0.JPEG"
    moved = victim.rename(classes / "train" / "n1" / "100.JPEG")
    try:
        assert_one_line(pretrain(classes, log, *options, "--resume"), "training images:")
    finally:
        moved.rename(victim)


@pytest.mark.slow
def test_two_processes_pre_train(classes, tmp_path):
    arguments = ["--data", classes, "--output", tmp_path / "two", *SMALL, "--epochs", 2]
    done = together("pretrain", *arguments)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("epoch 2/2") == 1
    assert weights_of(tmp_path / "two")["epoch"] == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "texts"),
    [
        (["--data", "/nowhere/at/all"], ["/nowhere/at/all"]),
        (["--epochs", "1"], ["--warmup-epochs 1"]),
        (["--batch-size", "1000"], ["--batch-size 1000"]),
        (["--batch-size", "1", "--size", "32"], ["--batch-size must be at least 2", "not 1"]),
        (["--seed", str(1 << 32)], ["--seed must be at least 0 and at most 4294967295", "not 4294967296"]),
        (["--size", "8"], ["--size must be at least 32 (four stages)", "not 8"]),
        (["--genotype", "retreival"], ["did you mean retrieval"]),
        (["--resume", "--output", "/nowhere"], ["/nowhere"]),
    ],
)
def test_mistakes_in_pre_training_get_one_line(classes, tmp_path, arguments, texts):
    assert_one_line(pretrain(classes, tmp_path / "p", "--epochs", 2, *arguments), *texts)


@pytest.mark.slow
def test_a_torn_image_is_named_in_pre_training(tmp_path):
    for part in ("train", "val"):
        for number in range(2):
            (tmp_path / "c" / part / f"n{number}").mkdir(parents=True)
            for index in range(8):
                Image.new("RGB", (40, 40)).save(tmp_path / "c" / part / f"n{number}" / f"{index}.png")
    torn = tmp_path / "c" / "train" / "n1" / "3.png"
    torn.write_bytes(torn.read_bytes()[:50])
    assert_one_line(pretrain(tmp_path / "c", tmp_path / "p", "--epochs", 2, "--workers", 2), str(torn))


@pytest.mark.slow
def test_folders_of_classes_that_are_no_use_are_told(tmp_path):
    def folder(name, classes):
        for part in ("train", "val"):
            for number in range(classes):
                (tmp_path / name / part / f"n{number}" / "deeper").mkdir(parents=True)
                Image.new("L", (40, 40)).save(tmp_path / name / part / f"n{number}" / "deeper" / "0.png")
                (tmp_path / name / part / f"n{number}" / "read.me").write_text("no image")
        return tmp_path / name

    small = ["--epochs", 2, "--batch-size", 2]
    assert_one_line(pretrain(folder("one", 1), tmp_path / "p", *small), "has one class, 'n0'")
    several = folder("several", 2)  # images at any depth, and what is no image beside them
    assert pretrain(several, tmp_path / "q", *small).returncode == 0
    (several / "train" / "n2").mkdir()
    assert_one_line(pretrain(several, tmp_path / "p", *small), "no valid file for the classes n2")


def together(name, *arguments):
    return completed_together(f"{name}.py", arguments)


@pytest.mark.slow
def test_two_processes_train_as_one_does(images, config, tmp_path):
    logs = {name: tmp_path / name for name in ("one", "two", "again")}
    options = ["--config-file", config, "--root", images, "train.max_epoch", 1, "autoreid.drop_path", 0.2]
    assert project("train", *options, "data.save_dir", logs["one"]).returncode == 0
    for name in ("two", "again"):
        done = together("train", *options, "data.save_dir", logs[name])
        assert done.returncode == 0, done.stderr
    assert done.stdout.count("the training has ended") == 1
    states = [torch.load(logs[name] / "checkpoint.pth", weights_only=True)["state_dict"] for name in logs]
    for key, value in states[1].items():
        assert torch.equal(value, states[2][key]), key
    # Rounding in float32 grows tenfold from step to step, so the first ones are compared.
    one, two = (first_losses(logs[name] / "train.log") for name in ("one", "two"))
    assert one == pytest.approx(two, rel=1e-3)
    results = [json.loads((logs[name] / "results.json").read_text())["folder"]["mAP"] for name in ("two", "again")]
    assert results[0] == results[1]


def first_losses(log):
    """Of the first two steps, as torchreid prints them."""
    lines = [line for line in log.read_text().splitlines() if "epoch: [1/1][" in line][:2]
    found = [float(value) for line in lines for value in re.findall(r"loss\w* ([0-9.]+) \(", line)]
    assert len(found) >= 6
    return found


@pytest.mark.slow
@pytest.mark.parametrize("change", ["other label", "half of the images"])
def test_processes_that_have_found_other_images_end_at_the_start(images, config, tmp_path, change):
    for rank in range(2):
        shutil.copytree(images, tmp_path / f"d{rank}")
    files = sorted((tmp_path / "d1" / "train").iterdir())
    if change == "other label":
        files[-1].rename(files[-1].with_name("0001_c1s1_000099_00.jpg"))
    else:
        for path in files[::2]:
            path.unlink()
    options = ["--config-file", config, "--root", tmp_path / "dRANK", "train.batch_size", 4]
    done = together("train", *options, "data.save_dir", tmp_path / "log")
    assert done.returncode != 0
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, done.stderr
    assert "the training images of process 1 and of process 0 differ at the start; give all processes" in errors[0]
    assert not (tmp_path / "log").exists()


@pytest.mark.slow
def test_processes_that_have_read_other_features_end_at_the_start(tmp_path):
    for rank in range(2):
        rng = np.random.default_rng(rank)
        np.savez(
            tmp_path / f"f{rank}.npz",
            **{f"{part}_features": rng.normal(size=(20, 4)).astype(np.float32) for part in ("query", "gallery")},
            **{f"{part}_pids": np.arange(20) % 5 for part in ("query", "gallery")},
            **{f"{part}_camids": np.full(20, number) for number, part in enumerate(("query", "gallery"))},
        )
    done = together("evaluate", "--features", tmp_path / "fRANK.npz")
    assert done.returncode != 0
    assert "mAP" not in done.stdout
    assert "error: the features of process 1 and of process 0 differ at the start; give all" in done.stderr
    done = together("evaluate", "--features", tmp_path / "f1.npz")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("mAP") == 1
