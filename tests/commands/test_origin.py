"""What commands take over from a checkpoint, and that nothing is written before everything is checked."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
from drawn_images import draw_people
from forks import completed, completed_together

from torchreid_autoreid.checkpoint import Checkpoint
from torchreid_autoreid.commands import execute, origin
from torchreid_autoreid.commands.options import parse
from torchreid_autoreid.commands.train import check_files
from torchreid_autoreid.deploy.export import export
from torchreid_autoreid.deploy.onnx import OnnxExtractor
from torchreid_autoreid.errors import UserError
from torchreid_autoreid.evaluation import load_embeddings
from torchreid_autoreid.genotype import Genotype

TINY = """
model: {name: autoreid, pretrained: false}
data: {sources: [folder], targets: [folder], height: 64, width: 32, workers: 0}
sampler: {train_sampler: RandomIdentitySampler, num_instances: 2}
autoreid: {channels: 2, layers: [1, 1, 1, 1]}
train: {lr: 0.003, lr_scheduler: cosine, max_epoch: 4, batch_size: 8}
loss: {name: triplet, triplet: {weight_x: 1.0}}
recipe: {neck: after, flip_test: true, warmup_epochs: 2}
test: {eval_freq: 1, dist_metric: cosine, normalize_feature: true}
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
def log(images, config, tmp_path_factory):
    """Of a training whose genotype came from a file that is gone, in one epoch where the file says four."""
    folder = tmp_path_factory.mktemp("trained")
    edges = (("skip_connect", 0), ("max_pool_3x3", 1))
    Genotype("mine", (edges,) * 2, (edges,) * 2).save(folder / "g.json")
    done = command(
        "train", "--config-file", config, "--root", images, "data.save_dir", folder / "log", "train.max_epoch", 1,
        "--genotype", folder / "g.json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "recipe.warmup_epochs 2 does not fit train.max_epoch 1: it is 0" in done.stderr
    (folder / "g.json").unlink()
    return folder / "log"


def command(name, *arguments):
    return completed(f"{name}.py", arguments)


def refused(done, *texts):
    lines = done.stderr.splitlines()
    assert done.returncode == 2, done.stderr
    assert len(lines) == 1, done.stderr
    for text in texts:
        assert text in lines[0], lines[0]


def contents(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file() and path.name != ".lock"}


@pytest.mark.parametrize("with_file", [True, False])
def test_a_resume_takes_its_configuration_from_the_checkpoint(log, images, config, tmp_path, with_file):
    there = tmp_path / "moved"
    shutil.copytree(log, there)
    file = ["--config-file", config, "data.save_dir", there, "train.max_epoch", 1] if with_file else []
    done = command("train", *file, "--root", images, "--resume", there)
    assert done.returncode == 0, done.stderr
    assert json.loads((there / "results.json").read_text()) == json.loads((log / "results.json").read_text())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["moved"]


@pytest.mark.parametrize(
    ("words", "texts"),
    [
        ("train.lr 0.1", ["train.lr 0.003 (now 0.1)"]),
        ("--genotype retrieval", ["autoreid.genotype: name 'mine' (now 'retrieval')"]),
        ("recipe.neck before", ["neck"]),
        ("data.width 48", ["data.width 32 (now 48)"]),
    ],
)
def test_what_contradicts_the_checkpoint_is_refused(log, images, words, texts):
    before = contents(log)
    refused(command("train", "--root", images, "--resume", log, *words.split()), *texts)
    assert contents(log) == before


def test_other_images_under_the_same_names_of_folders_are_refused(log, images, tmp_path):
    other = tmp_path / "images"
    shutil.copytree(images, other)
    assert command("train", "--root", other, "--resume", log).returncode == 0  # moved
    path = other / "train" / "0008_c1s1_000000_00.jpg"
    before = contents(log)
    for name, identities in (("0007_c1s1_000009_00.jpg", 8), ("0099_c1s1_000009_00.jpg", 9)):
        path = path.rename(path.with_name(name))
        refused(
            command("train", "--root", other, "--resume", log),
            "training images: '64 images of 8 identities by 2 cameras, digest",
            f"(now '64 images of {identities} identities",
        )
        assert contents(log) == before


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["train", "--resume", "{log}", "model.name", "resnet18"], "model.name 'autoreid' .now 'resnet18'"),
        (["evaluate", "--weights", "{log}/checkpoint.pth", "--definitions", "test.rerank", "true"], "test.rerank"),
    ],
)
def test_a_dry_run_finds_what_contradicts_a_checkpoint(log, words, text):
    with pytest.raises(UserError, match=text):
        execute(words[0], ["--dry-run", *(word.format(log=log) for word in words[1:])])


def test_a_search_does_not_go_on_from_a_training(log):
    with pytest.raises(UserError, match=r"pth is of autoreid train, from which autoreid search cannot go on"):
        parse("search", ["--resume", str(log)])


def test_a_test_is_that_of_the_training(log, tmp_path):
    figures = tmp_path / "f.json"
    done = command("evaluate", "--weights", log / "checkpoint-best.pth", "--json", figures)
    assert done.returncode == 0, done.stderr
    assert "cosine" in done.stdout
    (found,), (expected,) = (json.loads(path.read_text()).values() for path in (figures, log / "results.json"))
    assert found["mAP"] == expected["mAP"]
    assert found["cmc"] == expected["cmc"]


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("data.height 128", "was made with data.height 64, and 128 is given"),
        ("recipe.flip_test false", "was made with recipe.flip_test True, and False is given"),
        ("recipe.neck none", "was made with recipe.neck 'after', and 'none' is given"),
        ("autoreid.genotype retrieval", "was made with autoreid.genotype 'mine', and 'retrieval' is given"),
        ("autoreid.channels 4", "was made with autoreid.channels 2, and 4 is given"),
        ("model.name resnet18", "holds a network autoreid, and model.name is resnet18"),
    ],
)
@pytest.mark.parametrize("name", ["evaluate", "export"])
def test_keys_that_contradict_the_weights_are_refused(log, images, tmp_path, name, words, text):
    output = ["--output", tmp_path / "a.onnx"] if name == "export" else ["--root", images]
    refused(command(name, "--weights", log / "checkpoint.pth", *output, *words.split()), text, "leave")


def test_a_metric_may_be_given(log, images):
    options = ["--root", images, "--weights", log / "checkpoint.pth", "-t", "folder"]
    for words in (["--metric", "euclidean"], ["test.dist_metric", "euclidean"]):
        done = command("evaluate", *options, *words)
        assert done.returncode == 0, done.stderr
        assert "euclidean" in done.stdout


@pytest.fixture(scope="module")
def onnx_file(log):
    pytest.importorskip("onnxruntime")
    export(log / "checkpoint-best.pth", log.parent / "reid.onnx")
    return log.parent / "reid.onnx"


def test_an_onnx_file_is_measured_as_its_checkpoint_is(log, images, onnx_file, tmp_path, capsys):
    found, vectors = [], []
    for name, weights in (("checkpoint", log / "checkpoint-best.pth"), ("onnx", onnx_file)):
        out = {option: tmp_path / f"{name}.{option}" for option in ("json", "npz")}
        words = ["--root", images, "-t", "folder", "--weights", weights, "--json", out["json"], "--device", "cpu"]
        execute("evaluate", [str(word) for word in (*words, "--save-features", out["npz"])])
        assert "(cosine)" in capsys.readouterr().out
        (figures,) = json.loads(out["json"].read_text()).values()
        found.append({key: value for key, value in figures.items() if key != "seconds"})
        vectors.append(load_embeddings(out["npz"]))
    assert 0.1 < found[0]["mAP"] < 1
    assert found[1] == found[0]
    for theirs, ours in zip(*vectors, strict=True):
        np.testing.assert_allclose(ours.features, theirs.features, atol=1e-5)
        assert not np.array_equal(ours.features, theirs.features)  # another program has computed them


def test_an_onnx_file_may_be_measured_otherwise(images, onnx_file, tmp_path, capsys):
    words = ["--root", images, "-t", "folder", "--weights", onnx_file, "--save-features", tmp_path / "f.npz"]
    keys = ["test.dist_metric", "euclidean", "test.normalize_feature", "false", "recipe.flip_test", "false"]
    execute("evaluate", [str(word) for word in (*words, *keys)])
    assert "(euclidean)" in capsys.readouterr().out
    network = OnnxExtractor(onnx_file)
    query, _ = load_embeddings(tmp_path / "f.npz")
    pictures = torch.stack([network.preprocess(path) for path in sorted((images / "query").iterdir())])
    np.testing.assert_allclose(np.sort(query.features, 0), np.sort(network(pictures), 0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("data.height 128", "was made with data.height 64, and 128 is given"),
        ("data.norm_mean [0.5,0.5,0.5]", "was made with data.norm_mean"),
        ("recipe.neck none", "on which recipe.neck has no effect; leave it out"),
        ("model.name resnet18", "on which model.name has no effect; leave it out"),
    ],
)
@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
def test_keys_that_an_onnx_file_contradicts_are_refused(images, onnx_file, words, text, dry):
    with pytest.raises(UserError, match=re.escape(text)):
        execute("evaluate", ["--root", str(images), "-t", "folder", "--weights", str(onnx_file), *words.split(), *dry])


def test_what_is_no_onnx_file_is_told_in_one_line(images, onnx_file, tmp_path):
    path = tmp_path / "a.onnx"
    words = ["--root", images, "-t", "folder", "--weights", path]
    for content, text in (
        (None, "there is no file"),
        (b"", "no ONNX file"),
        (onnx_file.read_bytes()[:-100], "no ONNX file"),
    ):
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(UserError, match=rf"{re.escape(str(path))}.*{text}|{text}.*{re.escape(str(path))}"):
            execute("evaluate", [str(word) for word in words])
    path.write_bytes(b"no network")
    refused(command("evaluate", *words), "a.onnx is no ONNX file")


@pytest.mark.parametrize("name", ["train", "search"])
def test_a_mistake_leaves_an_earlier_run_where_it_is(log, config, images, tmp_path, name):
    there = tmp_path / "log"
    shutil.copytree(log, there)
    before = contents(tmp_path)
    options = ["--config-file", config if name == "train" else "autoreid_search.yaml", "data.save_dir", there]
    for words, text in ((["-s", "typo"], "unknown dataset 'typo'"), (["--root", tmp_path / "none"], "does not exist")):
        words = words if "-s" in words else [*words, "-s", "folder"]
        refused(command(name, *options, *words), text)
        assert contents(tmp_path) == before


def test_a_new_folder_is_not_made_for_a_mistake(config, tmp_path):
    for name in ("train", "search"):
        file = config if name == "train" else "autoreid_search.yaml"
        refused(command(name, "--config-file", file, "data.save_dir", tmp_path / "a" / "b", "-s", "typo"), "'typo'")
    assert not list(tmp_path.iterdir())


def test_a_genotype_is_not_moved_away_from_under_its_training(log, images, config, tmp_path):
    there = tmp_path / "log"
    shutil.copytree(log, there)
    Genotype.load("retrieval").save(there / "genotype.json")
    before = contents(tmp_path)
    options = ["--config-file", config, "--root", images, "data.save_dir", there]
    refused(
        command("train", *options, "--genotype", there / "genotype.json"),
        f"--genotype {there / 'genotype.json'} lies in data.save_dir {there}",
    )
    assert contents(tmp_path) == before


def test_a_preset_is_not_taken_for_a_file_of_that_name(tmp_path, monkeypatch):
    (tmp_path / "history.jsonl").touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"^the current folder .* lies in data\.save_dir \."):
        check_files(parse("train", ["data.save_dir", ".", "--root", "/somewhere"]).cfg, None)


def test_the_network_of_a_search_is_tested_as_it_was_made(images, tmp_path):
    """Its checkpoint says strategy, space and size itself."""
    pairs = (
        "search.strategy gdas search.selection strength search.space standard train.max_epoch 1 train.batch_size 8 "
        "sampler.num_instances 2 autoreid.channels 4 autoreid.blocks 2 data.height 32 data.width 32"
    )
    done = command(
        "search", "--config-file", "autoreid_search.yaml", "--root", images, "-s", "folder", *pairs.split(),
        "data.save_dir", tmp_path / "log",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    weights = tmp_path / "log" / "checkpoint.pth"
    assert torch.load(weights, weights_only=True)["configuration"]["search.space"] == "standard"
    done = command("evaluate", "--weights", weights, "-t", "folder", "--root", images)
    assert done.returncode == 0, done.stderr
    refused(
        command("evaluate", "--weights", weights, "-t", "folder", "search.space", "reid"), "search.space 'standard'"
    )
    refused(command("export", "--weights", weights, "--output", tmp_path / "a.onnx"), "is not for deployment")
    with pytest.raises(UserError, match=r"is of autoreid search, .*train the genotype\.json beside it"):
        parse("train", ["--resume", str(weights)])


def test_the_protocol_of_a_dataset_is_taken_over_for_that_dataset_alone(tmp_path):
    made_with = {"data.targets": ["cuhk03"], "data.root": "there", "cuhk03.use_metric_cuhk03": True}
    state = Checkpoint({"state_dict": {"architecture.x": 0}, "configuration": made_with}, tmp_path)
    for options, taken in ([], True), (["-t", "cuhk03"], True), (["-t", "market1501"], False):
        args = parse("evaluate", ["--weights", "x.pth", *options])
        origin.tested_network(state, args.cfg, args.given)
        assert args.cfg.cuhk03.use_metric_cuhk03 == taken
        assert args.cfg.data.root == "there"


@pytest.mark.parametrize("words", ["evaluate --weights", "export --output there.onnx --weights", "train --resume"])
def test_a_checkpoint_is_read_once_a_command(log, images, words, monkeypatch, tmp_path):
    read = []
    load = torch.load
    monkeypatch.setattr(torch, "load", lambda *arguments, **options: read.append(1) or load(*arguments, **options))
    monkeypatch.chdir(tmp_path)
    command_name, *options = words.split()
    roots = [] if command_name == "export" else ["--root", str(images), "data.targets", "[folder]"]
    assert execute(command_name, ["--dry-run", *options, str(log / "checkpoint.pth"), *roots]) == 0
    assert len(read) == 1
    assert not list(tmp_path.iterdir())


def test_images_that_one_process_lacks_are_told_in_a_line(log, images, tmp_path):
    """And of what all of them leave out the first one tells alone."""
    (tmp_path / "0").symlink_to(images)
    words = ["--weights", log / "checkpoint-best.pth", "--root", f"{tmp_path}/RANK"]
    refused(completed_together("evaluate.py", words), f"{tmp_path}/1/train does not exist")
    shutil.copytree(images, tmp_path / "1")
    (tmp_path / "0").unlink()
    (tmp_path / "1" / "train" / "notes.txt").write_text("no image")
    (tmp_path / "0").symlink_to(tmp_path / "1")
    done = completed_together("evaluate.py", words)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("left out") == 1
