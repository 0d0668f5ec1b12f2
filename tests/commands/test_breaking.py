"""A search is broken in every way that a long job breaks, resumed, and ends bit for bit as if nothing had happened."""

import json
import os
import random
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from drawn_images import draw_people
from forks import wait_until

from torchreid_autoreid.checkpoint import load_checkpoint
from torchreid_autoreid.errors import UserError

EPOCHS = 5
TINY = """
data: {sources: [folder], targets: [folder], height: 64, width: 32, workers: 0, transforms: [random_flip, random_crop]}
sampler: {train_sampler: RandomIdentitySampler, num_instances: 2}
autoreid: {channels: 2, layers: [1, 1, 1, 1], blocks: 1}
train: {optim: sgd, lr: 0.05, weight_decay: 5.e-5, lr_scheduler: cosine, max_epoch: 5, batch_size: 8, print_freq: 1}
loss: {softmax: {label_smooth: false}}
test: {eval_freq: 1, batch_size: 8}
"""
SEARCH = "search: {selection: strength}\n"


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    """Options of a search of a few seconds: eight identities, 20 steps."""
    folder = draw_people(tmp_path_factory.mktemp("images"))
    (folder / "tiny.yaml").write_text(TINY + SEARCH)
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
        state.pop("configuration")  # it names the folder, and the loader processes
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


def wait_for_text(run, log, text):
    """Waits until the command has printed this."""
    output = log.with_suffix(".out")
    assert wait_until(lambda: output.exists() and text in output.read_text(), run), output.read_text()


def assert_one_line(text, *words):
    """The last line is the error, and there is no traceback."""
    assert "Traceback" not in text, text
    errors = [line for line in text.splitlines() if line.startswith("error: ")]
    assert errors == text.splitlines()[-1:], text
    for word in words:
        assert word in errors[0], errors[0]


@pytest.mark.slow
@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM])
def test_a_training_stops_with_a_checkpoint_and_ends_the_same(server, options, tmp_path, kind):
    training = tmp_path / "train.yaml"
    training.write_text(TINY.replace("blocks: 1", "parts: 2") + "model: {name: autoreid, pretrained: false}\n")
    options = ["--config-file", training, *options[2:]]
    pairs = ["train.max_epoch", 3, "recipe.ema_decay", "0.9"]
    logs = [tmp_path / name for name in ("through", "stopped")]
    runs = [server.start("train.py", arguments(options, logs[0], *pairs), logs[0].with_suffix(".out"))]
    assert runs[0].wait() == 0, logs[0].with_suffix(".out").read_text()
    run = server.start("train.py", arguments(options, logs[1], *pairs), logs[1].with_suffix(".out"))
    wait_for_text(run, logs[1], "epoch: [2/3][1/")
    run.send(kind)
    assert run.wait() == 130
    assert f"--resume {logs[1] / 'checkpoint.pth'}" in logs[1].with_suffix(".out").read_text()
    assert len((logs[1] / "history.jsonl").read_text().splitlines()) < 3
    assert server.run("train.py", arguments(options, logs[1], *pairs), logs[1].with_suffix(".out")) == 0
    states = [load_checkpoint(log / "checkpoint.pth") for log in logs]
    for state in states:
        state["loop"].pop("seconds")
        state.pop("configuration")
    assert_same(*states)
    assert (logs[0] / "results.json").read_bytes() == (logs[1] / "results.json").read_bytes()


@pytest.fixture
def small_disk(tmp_path):
    """A file system of four megabytes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", folder]
    if os.geteuid() or subprocess.run(mount, check=False).returncode:
        pytest.skip("no right to mount a file system")
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.fixture
def killed(server, options, tmp_path):
    """Runs a search and kills it after its second checkpoint."""

    def run_and_kill(log):
        run = start(server, options, log)
        assert wait_until((log / "checkpoint-previous.pth").exists, run)
        run.send(signal.SIGKILL)
        run.wait()
        return {path: path.read_bytes() for path in log.glob("checkpoint*.pth")}

    return run_and_kill


@pytest.mark.slow
def test_a_quota_loses_no_checkpoint(server, options, unbroken, killed, tmp_path):
    log = tmp_path / "log"
    kept = killed(log)
    limit = len(kept[log / "checkpoint.pth"]) - 1000
    status, text = search(server, options, log, limits={"RLIMIT_FSIZE": limit})
    assert status == 2, text
    assert_one_line(text, str(log / "checkpoint.pth"), "File too large", "is kept", "--resume")
    assert {path: path.read_bytes() for path in log.glob("checkpoint*.pth")} == kept
    assert search(server, options, log)[0] == 0
    assert_identical(unbroken[0], log)


@pytest.mark.slow
def test_a_full_disk_loses_no_checkpoint(server, options, unbroken, killed, small_disk):
    log = small_disk / "log"
    kept = killed(log)
    free = os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_frsize
    (small_disk / "filler").write_bytes(b"\1" * (free - 24576))  # room for lines of text, not for a checkpoint
    run = server.start("search.py", arguments(options, log), small_disk.with_suffix(".out"))
    status, text = run.wait(), small_disk.with_suffix(".out").read_text()
    assert status == 2, text
    assert_one_line(text, "No space left on device", "make room", "--resume")
    assert {path: path.read_bytes() for path in log.glob("checkpoint*.pth")} == kept
    (small_disk / "filler").unlink()
    assert search(server, options, log)[0] == 0
    assert_identical(unbroken[0], log)


@pytest.mark.slow
def test_a_torn_checkpoint_gives_way_to_the_one_before_it(server, options, unbroken, killed, tmp_path):
    log = tmp_path / "log"
    whole = killed(log)[log / "checkpoint.pth"]
    middle = len(whole) // 2 // 4096 * 4096
    (log / "checkpoint.pth").write_bytes(whole[:middle] + bytes(4096) + whole[middle + 4096 :])  # a page never written
    with pytest.raises(UserError, match=r"checksum .* is wrong\); use the one before it, .*checkpoint-previous.pth"):
        load_checkpoint(log / "checkpoint.pth")
    status, text = search(server, options, log)
    assert status == 0, text
    assert f"warning: {log / 'checkpoint.pth'} is torn" in text
    assert f"resumed from {log / 'checkpoint-previous.pth'}: epoch 2" in text
    assert_identical(unbroken[0], log)


@pytest.mark.slow
def test_a_killed_loader_process_ends_the_search_with_its_state_kept(server, options, unbroken, tmp_path):
    log = tmp_path / "log"
    run = start(server, options, log, "data.workers", 2)
    assert wait_until(lambda: (log / "checkpoint.pth").exists() and len(run.family()) > 1, run)
    loader = next((pid for pid in run.family() if pid != run.pid), None)
    if loader is not None:
        os.kill(loader, signal.SIGKILL)
    status, text = run.wait(), log.with_suffix(".out").read_text()
    if status != 0:  # else that process had loaded its last batch already
        assert status == 2
        # CPython 3.11, in a process that is forked while a thread starts; what it says has no consequence
        text = re.sub(r"Exception ignored in thread started by.*?KeyError: [^\n]*\n", "", text, flags=re.DOTALL)
        assert_one_line(text, "loader process has died", "--resume")
    assert wait_until(lambda: not run.family())
    assert search(server, options, log)[0] == 0
    assert_identical(unbroken[0], log)


@pytest.mark.slow
def test_a_killed_search_goes_on_at_once_though_its_loader_processes_live_a_little_longer(
    server, options, unbroken, tmp_path
):
    log = tmp_path / "log"
    run = start(server, options, log, "data.workers", 2)
    assert wait_until(lambda: (log / "checkpoint.pth").exists() and len(run.family()) > 1, run)
    run.send(signal.SIGKILL)
    assert run.wait() == -signal.SIGKILL
    status, text = search(server, options, log, "data.workers", 2)
    assert status == 0, text
    assert_identical(unbroken[0], log)


@pytest.mark.slow
@pytest.mark.parametrize("end", ["killed", "interrupted", "an error", "the end"])
def test_all_loader_processes_end_with_the_run(server, options, tmp_path, end):
    log = tmp_path / "log"
    pairs = ["train.lr", "1e30", "search.grad_clip", 0] if end == "an error" else []  # the loss becomes infinite
    run = start(server, options, log, "data.workers", 2, *pairs)
    assert wait_until(lambda: len(run.family()) > 2, run)  # with both of them; git may have been there before
    if end in ("killed", "interrupted"):
        run.send(signal.SIGKILL if end == "killed" else signal.SIGTERM)
    assert run.wait() == {"killed": -signal.SIGKILL, "interrupted": 130, "an error": 2, "the end": 0}[end]
    assert wait_until(lambda: not run.family())


def memory_and_files(pid):
    """Resident bytes without shared libraries' pages on disk, and open files."""
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return int(status["RssAnon"].split()[0]) << 10, len(os.listdir(f"/proc/{pid}/fd"))


@pytest.mark.slow
@pytest.mark.long
def test_memory_and_open_files_stay_flat_over_2000_steps(server, tmp_path, record_property):
    folder = draw_people(tmp_path / "images", identities=40, images=20)
    (folder / "tiny.yaml").write_text(TINY + SEARCH)
    options = ["--config-file", folder / "tiny.yaml", "--root", folder]
    log = tmp_path / "log"
    run = start(server, options, log, "data.workers", 2, "train.max_epoch", 1000)
    seen = {}
    for steps in (200, 2000):
        while not log.with_suffix(".out").exists() or log.with_suffix(".out").read_text().count("epoch: [") < steps:
            assert run.running(), log.with_suffix(".out").read_text()[-2000:]
            time.sleep(0.2)
        # the least of some moments: files and arrays come and go with every batch and evaluation
        moments = []
        for _ in range(50):
            moments.append(memory_and_files(run.pid))
            time.sleep(0.1)
        seen[steps] = [min(values) for values in zip(*moments, strict=True)]
    run.send(signal.SIGTERM)
    assert run.wait() == 130
    figures = "; ".join(f"step {steps}: {size >> 20} MB, {files} files" for steps, (size, files) in seen.items())
    print(figures)
    record_property("figures", figures)
    assert seen[2000][0] < 1.05 * seen[200][0]
    assert seen[2000][1] <= seen[200][1]
