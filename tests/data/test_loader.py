"""Batches are a function of seed, stream, epoch and place, and of nothing else."""

import itertools
import multiprocessing
import os
import random
import signal
import subprocess
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torchreid
from image_files import market_names, write_images

from torchreid_autoreid.data.loader import (
    InOrderLoader,
    ReidImages,
    SearchLoader,
    _leave_signals_to_the_main_process,
    _load,
)
from torchreid_autoreid.errors import UserError

COUNTS = [2, 3, 4, 5, 6, 20, 4, 4]  # images of each identity
BATCH, INSTANCES = 8, 4
# Between them they draw from Python's generator and from PyTorch's.
TRANSFORMS = ["random_flip", "random_crop", "color_jitter", "random_erase"]


@pytest.fixture(scope="module")
def items(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    names = market_names(COUNTS)
    write_images(folder, names)
    return [(str(folder / name), int(name[:4]) - 1, int(name[6]) - 1, index % 2) for index, name in enumerate(names)]


@pytest.fixture(scope="module")
def transforms():
    return torchreid.data.transforms.build_transforms(24, 12, TRANSFORMS)


def make(items, transforms, **options):
    return SearchLoader(ReidImages(items, transforms[0]), BATCH, INSTANCES, **options)


def assert_same(one, other):
    one, other = list(one), list(other)
    assert len(one) == len(other)
    for left, right in zip(one, other, strict=True):
        assert left["impath"] == right["impath"]
        assert torch.equal(left["img"], right["img"])
        for key in ("pid", "camid", "dsetid"):
            assert torch.equal(left[key], right[key])


def differ(one, other):
    one, other = (torch.cat([batch["img"] for batch in batches]) for batches in (one, other))
    return one.shape != other.shape or not torch.equal(one, other)


def states():
    return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()


def test_batches_are_torchreids_and_balanced(items, transforms):
    loader = make(items, transforms)
    for batch in loader:
        assert set(batch) == {"img", "pid", "camid", "impath", "dsetid"}
        assert batch["img"].shape == (BATCH, 3, 24, 12)
        pids = batch["pid"].tolist()
        assert len(set(pids)) == BATCH // INSTANCES
        assert all(pids.count(pid) == INSTANCES for pid in pids)
        labels = {path: (pid, camid, dsetid) for path, pid, camid, dsetid in items}
        for values in zip(batch["impath"], pids, batch["camid"].tolist(), batch["dsetid"].tolist(), strict=True):
            assert labels[values[0]] == values[1:]
    seen = [path for batch in loader for path in batch["impath"]]
    few = {path for path, pid, _, _ in items if COUNTS[pid] < INSTANCES}  # these repeat, to fill their share of a batch
    assert all(seen.count(path) == 1 for path in seen if path not in few)


@pytest.mark.parametrize("workers", [0, 2])
def test_nothing_but_the_arguments_matters(items, transforms, workers):
    expected = [list(make(items, transforms).batches(epoch)) for epoch in range(2)]
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    loader = make(items, transforms, workers=workers)
    for epoch in (1, 0):
        loader.set_epoch(epoch)
        other_draws = (random.random(), np.random.rand(), torch.rand(1))
        assert other_draws is not None
        assert_same(loader, expected[epoch])


@pytest.mark.parametrize("workers", [0, 2])
def test_global_generators_are_left_alone(items, transforms, workers):
    before = states()
    loader = make(items, transforms, workers=workers)
    for _ in itertools.islice(loader, 2):
        assert states() == before
    for _ in loader.batches(3, 1, 8):
        assert states() == before
    assert states() == before


def test_epoch_seed_and_stream_change_order_and_augmentation(items, transforms):
    first = list(make(items, transforms).batches(0))
    assert differ(first, make(items, transforms).batches(1))
    assert differ(first, make(items, transforms, seed=2).batches(0))
    assert differ(first, make(items, transforms, stream="alpha").batches(0))
    in_order = make(items, transforms, train_sampler="SequentialSampler")
    one, other = next(in_order.batches(0)), next(in_order.batches(1))
    assert one["impath"] == other["impath"]
    assert not torch.equal(one["img"], other["img"])


def test_a_resumed_epoch_goes_on_where_it_stopped(items, transforms):
    whole = list(make(items, transforms).batches(4))
    for start in range(len(whole) + 1):
        loader = make(items, transforms)
        loader.set_epoch(4, start)
        assert len(loader) == len(whole) - start
        assert_same(loader, whole[start:])


def test_lengths_are_exact(items, transforms):
    loader = make(items, transforms)
    for epoch in range(12):
        loader.set_epoch(epoch)
        assert len(loader) == loader.num_batches(epoch) == len(list(loader))
    assert any(loader.num_batches(epoch) < len(loader.sampler) // BATCH for epoch in range(12))  # torchreid's estimate


def test_the_endless_sequence_begins_anew_in_another_order(items, transforms):
    loader = make(items, transforms)
    first_round = list(loader.batches(2))
    count = 2 * len(first_round) + 1
    long = list(loader.batches(2, 0, count))
    assert len(long) == count
    assert_same(long[: len(first_round)], first_round)
    second_round = long[len(first_round) : 2 * len(first_round)]
    assert [batch["impath"] for batch in second_round] != [
        batch["impath"] for batch in first_round[: len(second_round)]
    ]
    for start in (1, len(first_round), count - 1):
        assert_same(loader.batches(2, start, count - start), long[start:])
    in_order = make(items, transforms, train_sampler="SequentialSampler")
    whole = in_order.num_batches(2)
    first, second = list(in_order.batches(2, 0, 2 * whole))[::whole]
    assert first["impath"] == second["impath"]
    assert not torch.equal(first["img"], second["img"])  # the same image is augmented anew


@pytest.mark.parametrize(
    "sampler", ["RandomSampler", "SequentialSampler", "RandomDomainSampler", "RandomDatasetSampler"]
)
def test_torchreids_other_samplers_are_reproducible_too(items, transforms, sampler):
    options = {"train_sampler": sampler, "num_cams": 2, "num_datasets": 2}
    expected = list(make(items, transforms, **options).batches(1))
    assert len(expected) > 0
    torch.manual_seed(8), random.seed(8)
    assert_same(make(items, transforms, **options).batches(1), expected)


@pytest.mark.parametrize(
    "options",
    [
        {"train_sampler": "RandomDomainSampler", "num_cams": 3},  # 8 images do not divide by 3 cameras
        {"train_sampler": "RandomDomainSampler", "num_cams": 4},  # there are two
        {"train_sampler": "Random"},
    ],
)
def test_a_sampler_that_cannot_draw_says_so(items, transforms, options):
    with pytest.raises(UserError, match="cannot draw batches of 8") as caught:
        make(items, transforms, **options)
    assert "\n" not in str(caught.value)


def test_too_few_images_for_a_batch(items, transforms):
    with pytest.raises(UserError, match="5 images give no batch of 8"):
        list(make(items[:5], transforms, train_sampler="RandomSampler"))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("damage", ["torn", "zero bytes", "text", "missing"])
def test_an_image_that_cannot_be_read_is_named(items, transforms, tmp_path, damage, workers):
    victim = tmp_path / "0001_c1s1_000000_00.jpg"
    whole = Path(items[0][0]).read_bytes()
    if damage != "missing":
        victim.write_bytes({"torn": whole[: len(whole) // 2], "zero bytes": b"", "text": b"hello"}[damage])
    broken = [*items[:10], (str(victim), 0, 0, 0), *items[10:]]
    loader = make(broken, transforms, workers=workers, train_sampler="SequentialSampler")
    in_order = InOrderLoader(ReidImages(broken, transforms[1]), 5, workers)
    for batches in (loader, in_order):
        with pytest.raises(UserError) as caught:
            list(batches)
        message = str(caught.value)
        assert message.startswith(f"cannot read the image {victim} (")
        assert message.endswith("replace the file or remove it")
        assert "\n" not in message


@pytest.mark.parametrize("ending", ["jpg", "png", "bmp"])
def test_files_torn_anywhere_are_either_read_or_named(tmp_path, transforms, ending):
    whole = tmp_path / f"whole.{ending}"
    write_images(tmp_path, [whole.name])
    content = whole.read_bytes()
    torn = tmp_path / f"torn.{ending}"
    images = ReidImages([(str(torn), 0, 0, 0)], transforms[1])
    outcomes = []
    for length in range(0, len(content), max(1, len(content) // 60)):
        torn.write_bytes(content[:length])
        outcomes.append(type(images[0]))
    assert set(outcomes) <= {UserError, dict}
    assert outcomes.count(UserError) > 0.9 * len(outcomes)


def test_workers_end_with_the_iterator(items, transforms):
    before = set(multiprocessing.active_children())
    iterator = make(items, transforms, workers=2).batches(0, 0, 20)
    next(iterator)
    assert len(set(multiprocessing.active_children()) - before) == 2
    iterator.close()
    deadline = time.monotonic() + 30
    while set(multiprocessing.active_children()) - before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not set(multiprocessing.active_children()) - before


def test_workers_outlive_a_sigterm_that_is_for_the_main_process(items, transforms):
    """torchrun sends it to the whole group of processes; the main one needs more batches to finish its step."""
    before = set(multiprocessing.active_children())
    iterator = make(items, transforms, workers=2).batches(0, 0, 20)
    expected = list(make(items, transforms).batches(0, 0, 20))
    batches = [next(iterator), next(iterator)]  # one of each worker, which has started by then
    own = set(multiprocessing.active_children()) - before
    for worker in own:
        subprocess.run(["kill", "-TERM", str(worker.pid)], check=True)  # it comes from another process than this one
    batches += list(iterator)
    assert [batch["impath"] for batch in batches] == [batch["impath"] for batch in expected]
    iterator = make(items, transforms, workers=2).batches(0, 0, 20)
    next(iterator)
    for worker in set(multiprocessing.active_children()) - before:
        worker.terminate()  # as PyTorch and Python do with one that does not end
        worker.join()
    with pytest.raises(RuntimeError, match="DataLoader worker"):
        list(iterator)


@pytest.mark.parametrize("workers", [0, 2])
def test_testing_loads_every_image_in_order(items, transforms, workers):
    loader = InOrderLoader(ReidImages(items, transforms[1]), 7, workers)
    batches = list(loader)
    assert len(batches) == len(loader) == -(-len(items) // 7)
    assert [path for batch in batches for path in batch["impath"]] == [path for path, *_ in items]
    # torchreid's own dataset gives the same tensors.
    theirs = torchreid.data.ImageDataset(items, items, items, transform=transforms[1], verbose=False)
    assert torch.equal(torch.cat([batch["img"] for batch in batches]), torch.stack([item["img"] for item in theirs]))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("sampler", ["RandomIdentitySampler", "RandomSampler"])
def test_parts_of_a_batch_are_the_batch(items, transforms, sampler, workers):
    whole = make(items, transforms, train_sampler=sampler)
    parts = [make(items, transforms, train_sampler=sampler, share=(part, 2), workers=workers) for part in range(2)]
    assert [len(loader) for loader in parts] == [len(whole)] * 2
    for start, count in ((0, None), (1, 7)):
        together = zip(*(loader.batches(2, start, count) for loader in [whole, *parts]), strict=True)
        for batch, first, second in together:
            for key in ("img", "pid", "camid", "dsetid"):
                assert torch.equal(torch.cat([first[key], second[key]]), batch[key])
            assert first["impath"] + second["impath"] == batch["impath"]
            if sampler == "RandomIdentitySampler":
                assert not set(first["pid"].tolist()) & set(second["pid"].tolist())


def test_batches_that_do_not_divide_into_parts_are_refused(items, transforms):
    with pytest.raises(UserError, match=r"2 identities cannot be shared by 3 processes.* a multiple of 12"):
        make(items, transforms, share=(0, 3))
    with pytest.raises(UserError, match=r"8 images cannot be shared by 3 processes.* a multiple of 3"):
        make(items, transforms, train_sampler="RandomSampler", share=(2, 3))


@pytest.mark.skipif(not hasattr(signal, "sigtimedwait"), reason="needs sigtimedwait")
def test_a_worker_ends_though_the_main_process_was_killed_before_it_began(tmp_path):
    """PyTorch's own watch compares parents, and the first that such a worker sees is another already."""
    processes = multiprocessing.get_context("fork")
    reader, writer = processes.Pipe(duplex=False)

    def worker():
        while os.getppid() == main_process:
            time.sleep(0.01)
        writer.send("begins")
        _leave_signals_to_the_main_process(0)
        time.sleep(600)

    def main():
        nonlocal main_process
        main_process = os.getpid()
        processes.Process(target=worker).start()
        os.kill(main_process, signal.SIGKILL)

    main_process = 0
    process = processes.Process(target=main)
    process.start()
    writer.close()
    process.join()
    assert reader.recv() == "begins"
    assert reader.poll(60)
    with pytest.raises(EOFError):  # the worker held the last end of the pipe
        reader.recv()


def test_an_image_that_cannot_be_read_ends_the_workers_at_once(items, transforms, tmp_path):
    victim = tmp_path / "0001_c1s1_000000_00.jpg"
    victim.write_bytes(b"hello")
    loader = InOrderLoader(ReidImages([*items[:10], (str(victim), 0, 0, 0), *items[10:]], transforms[1]), 5, 2)
    with pytest.raises(UserError) as caught:
        list(loader)
    assert not multiprocessing.active_children()  # though the traceback still holds the frames
    assert caught.tb is not None


class CannotBeSent(UserError):
    def __reduce__(self):
        raise MemoryError


class Place(int):
    """An index that the main process cannot send."""

    __reduce__ = CannotBeSent.__reduce__


class Unsendable(torch.utils.data.Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        return CannotBeSent() if index else {"img": torch.zeros(1)}


@pytest.fixture
def _looked_at_often(monkeypatch):
    """PyTorch looks every fifth of a second whether a worker is alive, and not every five seconds."""
    get = torch.utils.data.dataloader._MultiProcessingDataLoaderIter._try_get_data
    assert get.__defaults__ == (5.0,)
    monkeypatch.setattr(get, "__defaults__", (0.2,))


@pytest.mark.usefixtures("_looked_at_often")
@pytest.mark.parametrize("keys", [[[0], [1]], [[0], [Place(0)]]], ids=["a batch", "its indices"])
def test_what_cannot_be_handed_over_ends_the_loading(keys, capfd):
    """Python's queue would print a traceback and go on, and the main process would wait for ever."""
    with pytest.raises(RuntimeError, match="DataLoader worker"):
        list(_load(Unsendable(), keys, 1, False))
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.usefixtures("_looked_at_often")
@pytest.mark.parametrize("name", ["", "QueueFeederThread"], ids=["its own", "the queue's"])
def test_a_worker_that_gets_no_thread_ends_the_loading(name, items, transforms, monkeypatch, capfd):
    """It has blocked SIGTERM by then, and the main process would wait for it when it ends."""

    start, main = threading.Thread.start, os.getpid()

    def refuse(thread):
        if os.getpid() != main and name in thread.name:
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(RuntimeError, match="DataLoader worker"):
        list(_load(ReidImages(items, transforms[1]), [[0]], 1, False))
    assert not multiprocessing.active_children()
    assert "Traceback" not in capfd.readouterr().err
