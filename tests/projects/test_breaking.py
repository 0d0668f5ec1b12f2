"""A search is broken in every way that a long job breaks, resumed, and ends bit for bit as if nothing had happened."""

import json
import os
import random
import signal
import time

import numpy as np
import pytest
import torch
from forks import wait_until
from PIL import Image

from torchreid_autoreid.checkpoint import load_checkpoint

EPOCHS = 5
TINY = """
data: {sources: [folder], targets: [folder], height: 64, width: 32, workers: 0, transforms: [random_flip, random_crop]}
sampler: {train_sampler: RandomIdentitySampler, num_instances: 2}
autoreid: {channels: 2, layers: [1, 1, 1, 1], blocks: 1}
train: {optim: sgd, lr: 0.05, weight_decay: 5.e-5, lr_scheduler: cosine, max_epoch: 5, batch_size: 8, print_freq: 1}
loss: {softmax: {label_smooth: false}}
test: {eval_freq: 1, batch_size: 8}
"""


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    """Options of a search of a few seconds: eight identities, 20 steps."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for part in ("train", "query", "gallery"):
        (folder / part).mkdir(parents=True)
        for pid in range(1, 9):
            colour = rng.integers(40, 215, size=3)
            for index in range(8):
                pixels = (colour + rng.normal(0, 25, size=(40, 20, 3))).clip(0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / part / f"{pid:04d}_c{1 + index % 2}s1_{index:06d}_00.jpg")
    (folder / "tiny.yaml").write_text(TINY)
    return ["--config-file", folder / "tiny.yaml", "--root", folder]


@pytest.fixture(scope="module")
def unbroken(server, options, tmp_path_factory):
    """A search that nothing happens to: its log folder, and how long it takes."""
    log = tmp_path_factory.mktemp("unbroken") / "log"
    started = time.monotonic()
    status, text = search(server, options, log)
    assert status == 0, text
    return log, time.monotonic() - started


def arguments(options, log, *pairs):
    return [*options, "--resume", "auto", "data.save_dir", log, *pairs]


def start(server, options, log, *pairs, limits=None):
    return server.start("search.py", arguments(options, log, *pairs), log.with_suffix(".out"), limits)


def search(server, options, log, *pairs, limits=None):
    status = start(server, options, log, *pairs, limits=limits).wait()
    return status, log.with_suffix(".out").read_text()


def assert_identical(one, other):
    """Weights, alphas, optimisers, random states, genotype and history, bit for bit."""
    states = [load_checkpoint(log / "checkpoint.pth") for log in (one, other)]
    for state in states:
        state["loop"].pop("seconds")
    assert_same(*states)
    assert (one / "genotype.json").read_bytes() == (other / "genotype.json").read_bytes()
    left, right = (
        [json.loads(line) | {"seconds": 0} for line in (log / "history.jsonl").read_text().splitlines()]
        for log in (one, other)
    )
    assert left == right


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


def half_written(log):
    return [name for name in os.listdir(log) if name.startswith(".checkpoint.pth.")] if log.is_dir() else []


def kill_in_write(run, log, number):
    """Kills the search while it writes its ``number``-th checkpoint."""
    for _ in range(number - 1):
        while not half_written(log) and run.running():
            pass
        while half_written(log):
            pass
    while not half_written(log) and run.running():
        pass
    run.send(signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.parametrize("kills", [3, pytest.param(40, marks=pytest.mark.long)])
def test_killed_at_random_moments_it_always_ends_the_same(server, options, unbroken, tmp_path, kills, record_property):
    reference, seconds = unbroken
    draw = random.Random(kills)
    resumed = torn = 0
    for number in range(kills):
        log = tmp_path / str(number)
        run = start(server, options, log)
        if number % 3 == 2:
            kill_in_write(run, log, draw.randrange(1, EPOCHS + 1))
        else:
            time.sleep(draw.uniform(0.05, 1.0) * seconds)
            if run.running():
                run.send(signal.SIGKILL)
        killed = run.wait() == -signal.SIGKILL
        torn += killed and bool(half_written(log))
        resumed += (log / "checkpoint.pth").is_file()
        status, text = search(server, options, log)
        assert status == 0, text
        assert_identical(reference, log)
        assert not half_written(log)
    figures = f"{kills} of {kills} identical; {torn} killed inside a checkpoint write, {resumed} had a checkpoint"
    print(figures)
    record_property("figures", figures)
    assert torn >= kills // 10  # else none was killed where it hurts
