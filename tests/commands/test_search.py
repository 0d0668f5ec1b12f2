"""The search command as a person runs it: what it leaves behind, and one line and status 2 for every mistake."""

import json
import os
import re
import select
import shlex
import signal

import pytest
import torch
from drawn_images import draw_people
from forks import completed, completed_together, server, stopped

from torchreid_autoreid.genotype import Genotype
from torchreid_autoreid.provenance import Provenance
from torchreid_autoreid.search.cost import NetworkShape, count_macs, count_parameters

TINY = """
data: {sources: [folder], targets: [folder], height: 64, width: 32, workers: 0, transforms: [random_flip, random_crop]}
sampler: {train_sampler: RandomIdentitySampler, num_instances: 2}
autoreid: {channels: 2, layers: [1, 1, 1, 1], blocks: 1}
search: {selection: strength}
train: {optim: sgd, lr: 0.05, weight_decay: 5.e-5, lr_scheduler: cosine, max_epoch: 2, batch_size: 8, print_freq: 1}
loss: {softmax: {label_smooth: false}}
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
def through(images, config, tmp_path_factory):
    """A search of three epochs that nothing happens to."""
    folder = tmp_path_factory.mktemp("through") / "log"
    done = search("--config-file", config, "--root", images, "train.max_epoch", 3, "data.save_dir", folder)
    assert done.returncode == 0, done.stderr
    return folder


def search(*arguments, draws=False):
    return completed("search.py", arguments, draws)


def assert_one_line(done, *words):
    """Exit status 2 and a single line on stderr that names the problem."""
    lines = done.stderr.splitlines()
    assert done.returncode == 2, done.stderr
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    for word in words:
        assert word in lines[0], lines[0]


def finished(folder):
    checkpoint = torch.load(folder / "checkpoint.pth", weights_only=True)
    records = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    return checkpoint, [{k: v for k, v in record.items() if k != "seconds"} for record in records]


def assert_same_end(one, other):
    (left, left_history), (right, right_history) = finished(one), finished(other)
    assert left_history == right_history
    for key, value in left["state_dict"].items():
        assert torch.equal(value, right["state_dict"][key]), key
    assert Genotype.load(one / "genotype.json") == Genotype.load(other / "genotype.json")
    assert (one / "queries.json").read_bytes() == (other / "queries.json").read_bytes()


def test_a_search_from_beginning_to_end(images, config, tmp_path):
    log = tmp_path / "log"
    done = search("--config-file", config, "--root", images, "data.save_dir", log, draws=True)
    assert done.returncode == 0, done.stderr
    assert "the search has" in done.stdout
    assert log.joinpath("report.html").stat().st_size > 10_000
    names = {path.name for path in log.iterdir()}
    assert {"config.yaml", "genotype.json", "history.jsonl", "checkpoint.pth", "search.log", "report.html"} <= names
    assert "the search has ended" in done.stdout
    assert "epoch: [1/2][1/" in done.stdout  # torchreid's lines, since this is no terminal
    assert "held out" in (log / "search.log").read_text()
    for detail in ("edge  0: ", "# images"):  # tables are for the file
        assert detail in (log / "search.log").read_text()
        assert detail not in done.stdout
    lines = done.stdout.splitlines()
    assert sum(" took " in line for line in lines) == sum(line.startswith("  held out: ") for line in lines) == 2
    (command,) = (line for line in lines if line.startswith("to train it: autoreid train "))
    train = completed("train.py", [*shlex.split(command.partition("autoreid train ")[2]), "--dry-run"])
    assert train.returncode == 0, train.stderr
    assert "nothing was written" in train.stdout
    # The same again: the earlier search is kept, and one seed gives one result.
    again = search("--config-file", log / "config.yaml", "--root", images, "data.save_dir", log)
    assert again.returncode == 0, again.stderr
    assert "log-1" in again.stdout
    drawn = tmp_path / "log-1"
    made = Provenance.load(drawn / "provenance.json")
    (start,) = made.starts
    assert f"--root {images} data.save_dir {log}" in start.command
    assert {"Python", "torch", "torchreid", "faiss", "numpy", "torchreid_autoreid"} <= start.versions.keys()
    assert made.data["training images"].startswith("64 images of 8 identities by ")
    page = (drawn / "report.html").read_text()
    for words in ("Cost beside other networks", "ResNet-50", "The worst queries", start.date, start.machine):
        assert words in page
    assert_same_end(log, tmp_path / "log-1")


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        ["search.strategy", "gdas", "search.beta_weight", 5, "search.skip_cap", 0],
        ["search.strategy", "pc_darts", "search.partial_channels", 2, "search.auxiliary_skip", 1],
        ["search.strategy", "drnas", "search.order", 2, "search.skip_dropout", 0.3],
        ["search.strategy", "random", "search.candidate_epochs", 1],
        [
            *("search.strategy", "predictor", "search.candidate_epochs", 1, "search.predictor_draws", 2),
            *("train.max_epoch", 3),
        ],
        ["search.strategy", "halving", "search.rung_candidates", [1], "search.rung_epochs", [2]],
        [
            *("search.strategy", "evolution", "search.evolution_candidates", 1, "search.population", 1),
            *(
                "search.candidate_epochs",
                1,
                "search.tournament",
                1,
                "search.rung_candidates",
                [1],
                "search.rung_epochs",
                [1],
            ),
        ],
        ["search.selection", "perturbation", "search.perturbation_batches", 1, "search.perturbation_steps", 1],
    ],
    ids=lambda options: f"{options[1]}",
)
def test_every_strategy_leaves_the_same_files_and_resumes(images, config, tmp_path, options):
    log, whole = tmp_path / "log", tmp_path / "whole"
    flags = ["--config-file", config, "--root", images]
    done = search(*flags, "data.save_dir", whole, *options, "search.checkpoint_every", 1)
    assert done.returncode == 0, done.stderr
    names = {path.name for path in whole.iterdir()}
    assert {"config.yaml", "genotype.json", "history.jsonl", "checkpoint.pth", "search.log", "report.html"} <= names
    assert "the search has ended" in done.stdout
    assert len(finished(whole)[1]) == dict(zip(options[::2], options[1::2], strict=True)).get("train.max_epoch", 2)
    log.mkdir()
    first = (whole / "history.jsonl").read_text().splitlines()[0]
    (log / "history.jsonl").write_text(first + "\n")
    done = search("--resume", whole / "checkpoint-1.pth", *flags, "data.save_dir", log, *options)
    assert done.returncode == 0, done.stderr
    assert_same_end(log, whole)


@pytest.mark.slow
def test_halving_goes_on_in_another_folder(images, config, tmp_path):
    log, whole = tmp_path / "log", tmp_path / "whole"
    options = ["--config-file", config, "--root", images, "search.strategy", "halving", "train.max_epoch", 3]
    options += ["search.rung_candidates", [2, 1], "search.rung_epochs", [1, 2]]
    done = search(*options, "data.save_dir", whole, "search.checkpoint_every", 1)
    assert done.returncode == 0, done.stderr
    assert "the mean of 2 blind draws" in done.stdout
    assert (whole / "candidates").is_dir()
    done = search("--resume", whole / "checkpoint-2.pth", *options, "data.save_dir", log)
    assert done.returncode == 0, done.stderr
    assert_same_end(log, whole)
    refused = search(*options, "data.save_dir", tmp_path / "other", "train.lr", 0.3)
    assert_one_line(refused, "train.lr", "no effect", "halving", "autoreid_train.yaml")
    assert not (tmp_path / "other").exists()


def test_mistakes_of_a_selection_end_a_search_before_its_alphas_move(images, config, tmp_path):
    options = ["--config-file", config, "--root", images, "search.selection", "halving", "search.rung_candidates", [2]]
    options += ["search.rung_epochs", [1], "data.save_dir", tmp_path / "log"]
    assert_one_line(search(*options, "search.recipe", tmp_path / "none.yaml"), "none.yaml")
    assert_one_line(search(*options, "search.recipe", tmp_path / "none.yaml", "--dry-run"), "none.yaml")
    # All 8 identities train the alphas, 6 of them a candidate.
    assert_one_line(search(*options, "train.batch_size", 16), "6 identities", "a batch of 16", "12")
    assert not (tmp_path / "log" / "history.jsonl").exists()


@pytest.mark.slow
def test_alphas_that_go_on_propose_anew_and_keep_the_earlier_selection(images, config, tmp_path):
    log = tmp_path / "log"
    options = ["--config-file", config, "--root", images, "data.save_dir", log, "search.selection", "halving"]
    options += ["search.rung_candidates", [2], "search.rung_epochs", [1], "train.lr_scheduler", "single_step"]
    options += ["train.stepsize", [9], "search.warmup_epochs", 0, "search.alpha_lr", 0.5]
    assert search(*options, "train.max_epoch", 1).returncode == 0
    before = (log / "selection" / "history.jsonl").read_bytes()
    done = search("--resume", log, *options, "train.max_epoch", 3)
    assert done.returncode == 0, done.stderr
    assert (log / "selection-1" / "history.jsonl").read_bytes() == before
    assert "the earlier selection is in" in (log / "search.log").read_text()
    records = [json.loads(line) for line in (log / "selection" / "history.jsonl").read_text().splitlines()]
    best = max(records, key=lambda record: record["candidate"]["score"])
    assert json.loads((log / "genotype.json").read_text()) == best["candidate"]["genotype"]


@pytest.mark.slow
def test_selection_by_halving_is_the_best_of_what_the_alphas_propose_and_goes_on(images, config, tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    options = ["--config-file", config, "--root", images, "search.selection", "halving", "train.max_epoch", 1]
    options += ["search.rung_candidates", [4, 2], "search.rung_epochs", [1, 2]]
    done = search(*options, "data.save_dir", whole)
    assert done.returncode == 0, done.stderr
    records = [json.loads(line) for line in (whole / "selection" / "history.jsonl").read_text().splitlines()]
    names = [record["candidate"]["genotype"]["name"].split("_")[0] for record in records]
    assert names[:4] == ["searched", "proposed", "proposed", "blind"]
    last = max(records[4:], key=lambda record: record["candidate"]["score"])
    assert json.loads((whole / "genotype.json").read_text()) == last["candidate"]["genotype"]
    closing = done.stdout.partition("the search has ended")[2]
    answer = last["candidate"]
    assert f"the best of the last 2 is number {answer['number']} with {answer['score']:.1%} mAP" in closing
    # Interrupted among the candidates, it names the checkpoint of the search, and goes on with the candidates.
    done = stopped("search.py", [*options, "data.save_dir", cut], "candidate 2 in rung 1", signal.SIGINT)
    assert done.returncode == 130, done.stderr
    assert str(cut / "checkpoint.pth") in done.stderr
    done = search("--resume", cut, *options, "data.save_dir", cut)
    assert done.returncode == 0, done.stderr
    assert (cut / "genotype.json").read_text() == (whole / "genotype.json").read_text()
    again = [json.loads(line) for line in (cut / "selection" / "history.jsonl").read_text().splitlines()]
    for one, other in zip(records, again, strict=True):
        assert one | {"seconds": 0} == other | {"seconds": 0}


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_with_a_checkpoint_and_the_resumed_search_ends_the_same(
    images, config, through, tmp_path, kind, workers
):
    options = ["--config-file", config, "--root", images, "train.max_epoch", 3, "data.workers", workers]
    log = tmp_path / "stopped"
    done = stopped("search.py", [*options, "data.save_dir", log], "\nepoch: [2/3][1/", kind)
    assert done.returncode == 130, done.stderr
    assert f"--resume {log / 'checkpoint.pth'}" in done.stderr
    assert len((log / "history.jsonl").read_text().splitlines()) < 3
    done = search("--resume", log, *options, "data.save_dir", log)
    assert done.returncode == 0, done.stderr
    assert_same_end(through, log)


def test_a_terminal_gets_a_progress_bar_with_the_time_left(images, config, tmp_path):
    pty = pytest.importorskip("pty")
    master, slave = pty.openpty()
    options = ["--config-file", config, "--root", images, "data.save_dir", tmp_path / "log", "train.max_epoch", 1]
    process = server().start("search.py", options, tmp_path / "output", errors=os.ttyname(slave))
    seen = b""
    while process.running() or select.select([master], [], [], 0)[0]:
        if select.select([master], [], [], 0.05)[0]:
            seen += os.read(master, 4096)
    os.close(master)
    os.close(slave)
    assert process.wait() == 0
    text = seen.decode()
    assert "epoch 1/1" in text
    assert "top1=" in text
    assert "<" in text  # tqdm's elapsed<left
    assert "epoch: [1/" not in (tmp_path / "log" / "search.log").read_text()


MISTAKES = {
    "unknown dataset": (["-s", "market1502", "-t", "market1502"], ["market1502", "did you mean market1501"]),
    "missing root": (
        ["-s", "market1501", "-t", "market1501", "--root", "/no/such/place"],
        ["/no/such/place/market1501", "autoreid_search.yaml"],
    ),
    "unknown key": (["train.max_epochs", "3"], ["train.max_epochs", "train.max_epoch"]),
    "wrong type": (["train.max_epoch", "many"], ["train.max_epoch", "whole number", "many"]),
    "odd options": (["train.max_epoch"], ["train.max_epoch", "pairs"]),
    "genotype of a search": (["autoreid.genotype", "retreival"], ["autoreid.genotype", "no effect"]),
    "unknown space": (["search.space", "everything"], ["everything", "standard"]),
    "unknown strategy": (["search.strategy", "magic"], ["magic", "darts"]),
    "temperature of 0": (["search.strategy", "gdas", "search.tau_end", "0"], ["search.tau_end", "above 0"]),
    "second order of gdas": (["search.strategy", "gdas", "search.order", "2"], ["search.order 2", "gdas"]),
    "channels not divisible": (["search.strategy", "pc_darts"], ["search.partial_channels", "autoreid.channels 2"]),
    "a fraction above 1": (["search.skip_dropout", "1.5"], ["search.skip_dropout", "below 1", "1.5"]),
    "a cap for chance": (
        ["search.strategy", "random", "search.candidate_epochs", "1", "search.skip_cap", "1"],
        ["search.skip_cap 1", "random"],
    ),
    "third order": (["search.order", "3"], ["search.order", "3"]),
    "second order of Adam": (["search.order", "2", "train.optim", "adam"], ["adam", "sgd"]),
    "batch not divisible": (["train.batch_size", "9"], ["9", "num_instances"]),
    "too few identities": (["train.batch_size", "32"], ["8 identities", "16"]),
    "ignored key": (["loss.triplet.weight_t", "0.5"], ["weight_t", "search.loss_lambda"]),
    "budget below the smallest network": (["search.budget.macs", "1e3"], ["search.budget.macs 1000", "smallest"]),
    "missing latencies": (
        ["search.budget.latency_ms", "9", "search.budget.latency_table", "/no/such.json"],
        ["/no/such.json"],
    ),
    "NaN": (["train.lr", "nan"], ["train.lr", "nan"]),
    "missing checkpoint": (["--resume", "/no/such/checkpoint.pth"], ["/no/such/checkpoint.pth"]),
    "missing file": (["--config-file", "configs/autoreid_serch.yaml"], ["autoreid_search.yaml"]),
    "four layers": (["autoreid.layers", "[1, 1]"], ["autoreid.layers", "[1, 1]"]),
}


#: Each is a process of its own; these few stay in the fast set.
QUICK = ("unknown dataset", "missing root", "unknown key", "too few identities")


@pytest.mark.parametrize("name", [pytest.param(m, marks=[] if m in QUICK else pytest.mark.slow) for m in MISTAKES])
def test_mistakes_get_one_line_and_status_2(images, config, tmp_path, name):
    options, words = MISTAKES[name]
    flags = [] if "--config-file" in options else ["--config-file", config]
    if "--root" not in options:
        flags += ["--root", images]
    pairs = options if not options[0].startswith("-") else []
    flags += [] if pairs else options
    done = search(*flags, "data.save_dir", tmp_path / "log", *pairs)
    assert_one_line(done, *words)
    assert not (tmp_path / "log" / "checkpoint.pth").exists()


@pytest.mark.parametrize(
    ("damage", "workers"),
    [
        ("torn", 2),
        ("zero bytes", 0),
        pytest.param("torn", 0, marks=pytest.mark.slow),
        pytest.param("zero bytes", 2, marks=pytest.mark.slow),
        pytest.param("no image", 2, marks=pytest.mark.slow),
    ],
)
def test_a_damaged_image_is_named(config, tmp_path, damage, workers):
    folder = draw_people(tmp_path / "images")
    victim = sorted((folder / "train").iterdir())[5]
    whole = victim.read_bytes()
    victim.write_bytes({"torn": whole[: len(whole) // 2], "zero bytes": b"", "no image": b"hello"}[damage])
    done = search("--config-file", config, "--root", folder, "data.save_dir", tmp_path / "log", "data.workers", workers)
    assert_one_line(done, str(victim), "replace")


@pytest.mark.slow
def test_a_budget_by_all_measures_and_the_same_latencies_after_a_resume(images, config, tmp_path):
    log, other = tmp_path / "log", tmp_path / "other"
    budget = ["search.budget.channels", 4, "search.budget.layers", "[1, 1, 1, 1]", "search.budget.params", 5e3]
    budget += ["search.budget.macs", 1e12, "search.budget.latency_ms", 1e3, "search.checkpoint_every", 1]
    options = ["--config-file", config, "--root", images, *budget]
    done = search(*options, "data.save_dir", log)
    assert done.returncode == 0, done.stderr
    text = (log / "search.log").read_text()
    assert "budget: at most 5.00 k parameters" in text
    assert "at most 1000.00 G MACs an image; networks of the search space have" in text
    assert text.count("the limit does not bind") == 2
    assert "expected" in text
    genotype = Genotype.load(log / "genotype.json")
    network = NetworkShape(channels=4, layers=(1, 1, 1, 1), blocks=1, height=64, width=32).build(genotype)
    assert count_parameters(network) <= 5e3
    # Resumed in another folder: the table of the first one is used, and goes with it.
    again = search("--resume", log / "checkpoint-1.pth", *options, "data.save_dir", other)
    assert again.returncode == 0, again.stderr
    assert (other / "latency.json").read_text() == (log / "latency.json").read_text()
    # A search that no network can satisfy leaves the earlier run where it is.
    names = sorted(tmp_path.iterdir())
    assert_one_line(search(*options, "data.save_dir", log, "search.budget.params", 10), "smallest network", "params 10")
    assert sorted(tmp_path.iterdir()) == names


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["gdas", "pc_darts", "drnas", "random"])
def test_every_strategy_keeps_a_budget(images, config, tmp_path, strategy):
    options = ["search.strategy", strategy, "search.budget.channels", 4, "search.budget.macs", 4e5]
    options += {"pc_darts": ["autoreid.channels", 4], "random": ["search.candidate_epochs", 1]}.get(strategy, [])
    done = search("--config-file", config, "--root", images, *options, "data.save_dir", tmp_path / "log")
    assert done.returncode == 0, done.stderr
    network = NetworkShape(channels=4, blocks=1, height=64, width=32).build(
        Genotype.load(tmp_path / "log" / "genotype.json")
    )
    assert count_macs(network, (3, 64, 32)) <= 4e5
    for record in finished(tmp_path / "log")[1]:
        assert record["cost"]["macs"]["genotype"] <= 4e5


@pytest.mark.slow
def test_a_checkpoint_of_another_network_is_refused(images, config, tmp_path):
    first = tmp_path / "first"
    options = ["--config-file", config, "--root", images, "train.max_epoch", 1]
    assert search(*options, "data.save_dir", first).returncode == 0
    other = search("--resume", first, *options, "data.save_dir", tmp_path / "other", "autoreid.channels", 3)
    assert_one_line(other, "autoreid.channels 2 (now 3)", str(first))
    torch.save({"state_dict": {"x": torch.zeros(1)}, "epoch": 1}, tmp_path / "foreign.pth")
    foreign = search("--resume", tmp_path / "foreign.pth", *options, "data.save_dir", tmp_path / "other")
    assert_one_line(foreign, "another kind of checkpoint")


@pytest.mark.slow
def test_a_changed_configuration_is_refused_and_the_old_one_kept(images, config, tmp_path):
    log, options = tmp_path / "log", ["--config-file", config, "--root", images, "data.save_dir", tmp_path / "log"]
    assert search(*options, "train.max_epoch", 1).returncode == 0
    before = (log / "config.yaml").read_text()
    done = search("--resume", log, *options, "train.max_epoch", 1, "train.lr", 0.01)
    assert_one_line(done, "train.lr 0.05 (now 0.01)", "config.yaml")
    assert (log / "config.yaml").read_text() == before


@pytest.mark.slow
def test_going_on_in_the_folder_of_another_run_keeps_that_one(images, config, tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    options = ["--config-file", config, "--root", images]
    for log in (one, other):
        assert search(*options, "data.save_dir", log, "search.checkpoint_every", 1).returncode == 0
    done = search("--resume", one / "checkpoint-1.pth", *options, "data.save_dir", other)
    assert done.returncode == 0, done.stderr
    assert_same_end(one, other)
    assert finished(tmp_path / "other-1")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("train: {max_epochs: 3}", ["train.max_epochs", "did you mean train.max_epoch"]),
        ("train: {max_epoch: many}", ["train.max_epoch", "whole number", "'many'"]),
        ("train: [1", ["not plain YAML", "line"]),
        ("", ["sampler.train_sampler", "--config-file"]),
    ],
)
def test_mistakes_in_a_file_get_one_line(tmp_path, text, words):
    path = tmp_path / "wrong.yaml"
    path.write_text(text)
    assert_one_line(search("--config-file", path, "data.save_dir", tmp_path / "log"), *words)


@pytest.mark.slow
def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_checkpoint(images, config, tmp_path):
    log = tmp_path / "log"
    options = ["--config-file", config, "--root", images, "data.save_dir", log]
    done = search(*options, "train.lr", "1e30", "search.grad_clip", "0", "train.lr_scheduler", "single_step")
    assert_one_line(done, "epoch 1", "step", "train.lr")


def test_help_teaches():
    done = search("--help")
    assert done.returncode == 0
    for word in ("--resume", "autoreid_search.yaml", "genotype.json", "-s folder", "KEY VALUE"):
        assert word in done.stdout


@pytest.mark.slow
def test_a_killed_search_resumes_from_its_last_epoch(images, config, through, tmp_path):
    options = ["--config-file", config, "--root", images, "train.max_epoch", 3]
    killed = tmp_path / "killed"
    arguments = [*options, "data.save_dir", killed]
    assert stopped("search.py", arguments, (killed / "checkpoint.pth").exists, signal.SIGKILL).returncode < 0
    done = search("--resume", killed, *options, "data.save_dir", killed)
    assert done.returncode == 0, done.stderr
    assert_same_end(through, killed)


# -- several processes ------------------------------------------------------------------------------------------------


def search_together(*arguments):
    return completed_together("search.py", arguments)


@pytest.mark.slow
def test_two_processes_search_as_one_does(images, config, tmp_path):
    logs = {name: tmp_path / name for name in ("one", "two", "again")}
    options = ["--config-file", config, "--root", images, "train.max_epoch", 1]
    # Adam's first step follows the sign of a gradient, however small; the rate of so short a search makes much of it.
    options += ["search.alpha_lr", 0.001]
    assert search(*options, "data.save_dir", logs["one"]).returncode == 0
    for name in ("two", "again"):
        done = search_together(*options, "data.save_dir", logs[name])
        assert done.returncode == 0, done.stderr
    assert done.stdout.count("the search has ended") == done.stdout.count("epoch 1/1 took") == 1
    assert "2 processes, each with 4 images of a batch" in done.stdout
    assert_same_end(logs["two"], logs["again"])
    assert not list(tmp_path.glob("*-1"))  # no process has taken the folder of another for an earlier run
    assert {path.name for path in logs["two"].iterdir() if "tfevents" not in path.name} == {
        path.name for path in logs["one"].iterdir() if "tfevents" not in path.name
    }
    # Rounding in float32 grows tenfold from step to step, so the first ones are compared.
    one, two = (first_losses(logs[name] / "search.log") for name in ("one", "two"))
    assert one == pytest.approx(two, rel=1e-3)


def first_losses(log):
    """Of the first two steps, as torchreid prints them."""
    lines = [line for line in log.read_text().splitlines() if "epoch: [1/1][" in line][:2]
    found = [float(value) for line in lines for value in re.findall(r"loss\w* ([0-9.]+) \(", line)]
    assert len(found) >= 12
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["search.order", "3"], ["search.order must be 1 or 2"]),
        (["train.batch_size", "6"], ["3 identities cannot be shared by 2 processes evenly", "a multiple of 4"]),
    ],
)
def test_a_mistake_is_told_once_by_two_processes(images, config, tmp_path, options, words):
    done = search_together("--config-file", config, "--root", images, *options, "data.save_dir", tmp_path / "log")
    assert_told_once(done, *words)


@pytest.mark.slow
def test_a_torn_image_ends_two_processes(config, tmp_path):
    folder = draw_people(tmp_path / "images")
    sorted((folder / "train").iterdir())[20].write_bytes(b"\xff\xd8 torn")
    done = search_together("--config-file", config, "--root", folder, "data.save_dir", tmp_path / "log")
    assert_told_once(done, "cannot read the image")


def assert_told_once(done, *words):
    """Every process ends with status 2, and one says why."""
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, done.stderr
    for word in words:
        assert word in lines[0], lines[0]
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
