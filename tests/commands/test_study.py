"""Several search commands that share a study: the same command started more than once, killed, and gone on with."""

import json
import re
import signal

import pytest
import torch
from drawn_images import draw_people
from forks import completed, server, wait_until

from torchreid_autoreid.genotype import Genotype

pytest.importorskip("optuna")

TINY = """
data: {sources: [folder], targets: [folder], height: 32, width: 16, workers: 0, transforms: [random_flip]}
sampler: {train_sampler: RandomIdentitySampler, num_instances: 2}
autoreid: {channels: 2, layers: [1, 1, 1, 1], blocks: 1}
search: {strategy: random, candidate_epochs: 1}
train: {max_epoch: 6, batch_size: 8, print_freq: 1000}
"""


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return draw_people(tmp_path_factory.mktemp("images"))


@pytest.fixture
def flags(images, tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY)
    log = tmp_path / "log"
    return ["--config-file", path, "--root", images, "data.save_dir", log, "search.study", tmp_path / "study.log"]


def search(*arguments):
    return completed("search.py", arguments)


def candidates(folder):
    return [json.loads(line)["candidate"] for line in (folder / "history.jsonl").read_text().splitlines()]


def test_the_same_command_started_twice_shares_the_trials(flags, tmp_path):
    runs = [server().start("search.py", flags, tmp_path / str(n)) for n in range(2)]
    assert [run.wait() for run in runs] == [0, 0], [(tmp_path / str(n)).read_text() for n in range(2)]
    workers = sorted((tmp_path / "log").glob("worker-*"))
    assert [path.name for path in workers] == ["worker-1", "worker-2"]
    found = [one for folder in workers if (folder / "history.jsonl").exists() for one in candidates(folder)]
    assert sorted(one["number"] for one in found) == [1, 2, 3, 4, 5, 6]
    best = min(found, key=lambda one: (-one["score"], one["number"]))  # the earlier one of equals
    assert Genotype.load(tmp_path / "log" / "genotype.json") == Genotype.from_dict(best["genotype"])
    third = search(*flags)  # nothing is left to train
    assert third.returncode == 0, third.stderr
    assert "has the best genotype of all workers" in third.stdout
    refused = search(*flags, "search.held_out", 0.4)
    assert (refused.returncode, len(refused.stderr.splitlines())) == (2, 1)
    assert re.search(r"study\.log was made with search\.held_out 0\.25, here it is 0\.4", refused.stderr)


@pytest.mark.slow
def test_a_worker_that_was_killed_goes_on_bit_for_bit(flags, tmp_path):
    rungs = ["search.strategy", "halving", "search.rung_candidates", [4, 2], "search.rung_epochs", [1, 3]]
    rungs += ["train.max_epoch", 8]
    other = [*flags[:-1], tmp_path / "whole.log", "data.save_dir", tmp_path / "whole", *rungs]
    assert search(*other).returncode == 0
    running = server().start("search.py", [*flags, *rungs], tmp_path / "killed.txt")
    worker = tmp_path / "log" / "worker-1"
    history = worker / "history.jsonl"
    assert wait_until(lambda: history.exists() and history.read_bytes().count(b"\n") >= 2, running)
    running.send(signal.SIGKILL)
    running.wait()
    done = search(*flags, *rungs, "--resume", worker)
    assert done.returncode == 0, done.stderr
    whole = tmp_path / "whole" / "worker-1"
    assert candidates(worker) == candidates(whole)
    one, two = (torch.load(path / "checkpoint.pth", weights_only=True)["state_dict"] for path in (worker, whole))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_study_fits_searches_of_candidates_in_one_process_each(flags, tmp_path):
    refused = search(*flags, "search.strategy", "darts")
    assert (refused.returncode, len(refused.stderr.splitlines())) == (2, 1)
    assert "search.study" in refused.stderr
    assert "random" in refused.stderr
    refused = search(*flags, "search.budget.latency_ms", 5)
    assert "latency_table" in refused.stderr
    assert not (tmp_path / "log").exists()
