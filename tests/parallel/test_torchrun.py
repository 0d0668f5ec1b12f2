"""The commands under torchrun: a process that is killed, a restart, another number of processes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from drawn_images import draw_people
from forks import completed_together, server, wait_until

from torchreid_autoreid.checkpoint import load_checkpoint

ROOT = Path(__file__).resolve().parents[2]

TINY = """
data: {sources: [folder], targets: [folder], height: 64, width: 32, workers: 0, transforms: [random_flip, random_crop]}
sampler: {train_sampler: RandomIdentitySampler, num_instances: 2}
autoreid: {channels: 2, layers: [1, 1, 1, 1], blocks: 1}
search: {selection: strength}
train: {optim: sgd, lr: 0.05, weight_decay: 5.e-5, lr_scheduler: cosine, max_epoch: 3, batch_size: 8, print_freq: 1}
loss: {softmax: {label_smooth: false}}
test: {eval_freq: 1, batch_size: 8}
"""


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    folder = draw_people(tmp_path_factory.mktemp("images"), identities=6)
    (folder / "tiny.yaml").write_text(TINY)
    return ["--config-file", folder / "tiny.yaml", "--root", folder, "--resume", "auto"]


def together(options, log, processes=2):
    """What torchrun does if nothing happens."""
    done = completed_together("search.py", [*options, "data.save_dir", log], processes)
    assert done.returncode == 0, done.stderr
    return done


def start(options, log):
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    words = [sys.executable, *torchrun, Path(__file__).parent / "undrawn.py", *options, "data.save_dir", log]
    with open(log.with_suffix(".out"), "w") as output:
        return subprocess.Popen(
            [str(word) for word in words],
            stdout=output,
            stderr=output,
            env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        )


def ranks_of(process):
    """The processes that torchrun has started, by rank."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    ranks = {}
    for child in children:
        environment = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
        ranks |= {int(entry[5:]): int(child) for entry in environment if entry.startswith(b"RANK=")}
    return ranks


def ended(log):
    state = load_checkpoint(log / "checkpoint.pth")
    lines = [json.loads(line) | {"seconds": 0} for line in (log / "history.jsonl").read_text().splitlines()]
    return state["state_dict"], lines, (log / "genotype.json").read_text()


@pytest.fixture(scope="module")
def whole(options, tmp_path_factory):
    """The log folder of a run that nothing happens to."""
    log = tmp_path_factory.mktemp("unbroken") / "log"
    together([*options, "search.checkpoint_every", 1], log)
    return log


@pytest.fixture(scope="module")
def unbroken(whole):
    return ended(whole)


@pytest.mark.slow
def test_a_killed_process_ends_the_others_and_torchrun_goes_on_by_itself(options, unbroken, tmp_path):
    log, output = tmp_path / "log", tmp_path / "output"
    run = server().start(Path(__file__).parent / "launched.py", [tmp_path, *options, "data.save_dir", log], output)
    assert wait_until((log / "checkpoint.pth").exists, run), output.read_text()
    ranks = [int((tmp_path / rank).read_text()) for rank in "01"]
    os.kill(ranks[1], signal.SIGKILL)
    assert run.wait() == 0, output.read_text()
    # The agent logs how a function of its ended; a command's process it would not ask.
    text = "\n".join(line for line in output.read_text().splitlines() if "torch/distributed/elastic" not in line)
    assert not any(Path(f"/proc/{pid}").exists() for pid in ranks)
    weights, lines, genotype = ended(log)
    assert all(torch.equal(weights[key], value) for key, value in unbroken[0].items())
    assert (lines, genotype) == unbroken[1:]
    assert "resumed from" in text
    assert "Traceback" not in text
    assert "another process of the run has ended" in text
    assert "frame #" not in text  # no C++ trace of a connection to a process that is gone


@pytest.mark.slow
def test_a_signal_to_torchrun_stops_all_in_the_middle_of_an_epoch(options, unbroken, tmp_path):
    """torchrun passes it to the processes, their loader processes included, and a queue sends it to all as well."""
    log = tmp_path / "log"
    process = start([*options, "data.workers", "2"], log)
    text = log.with_suffix(".out").read_text
    while "epoch: [2/3][2/" not in text():
        assert process.poll() is None, text()
        time.sleep(0.02)
    for pid in [*ranks_of(process).values(), process.pid]:
        os.kill(pid, signal.SIGTERM)
    assert process.wait() != 0
    assert text().count(f"interrupted; resume with --resume {log / 'checkpoint.pth'}") == 1, text()
    assert "error: " not in text()
    assert load_checkpoint(log / "checkpoint.pth")["loop"]["batch"] >= 1
    together(options, log)
    weights, lines, genotype = ended(log)
    assert all(torch.equal(weights[key], value) for key, value in unbroken[0].items())
    assert (lines, genotype) == unbroken[1:]


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_processes(options, whole, unbroken, tmp_path):
    log = tmp_path / "log"
    done = together([*options, "--resume", whole / "checkpoint-1.pth"], log, processes=1)
    assert "was written by 2 processes, and now there are 1" in done.stdout + done.stderr
    weights, lines, _ = ended(log)
    assert [line["epoch"] for line in lines] == [1, 2, 3]
    for key, value in unbroken[0].items():
        assert weights[key].shape == value.shape
    last, expected = lines[-1]["w"], unbroken[1][-1]["w"]
    assert last["loss"] == pytest.approx(expected["loss"], rel=0.05)
