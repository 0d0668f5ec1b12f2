"""Checkpoints: atomic, complete, and never running code."""

import os
import pickle
import random

import numpy as np
import pytest
import torch
import torchreid

from torchreid_autoreid.checkpoint import (
    LATEST,
    PREVIOUS,
    forget_torn,
    load_checkpoint,
    load_state,
    load_weights,
    newest_checkpoint,
    save_checkpoint,
)
from torchreid_autoreid.engine.resume import random_state, restore_random_state
from torchreid_autoreid.errors import UserError
from torchreid_autoreid.files import forget_half_written, write_atomically
from torchreid_autoreid.genotype import Genotype
from torchreid_autoreid.space.networks import AutoReIDNetwork, AutoReIDSearchNetwork


def draw():
    return random.random(), random.gauss(0, 1), np.random.rand(), np.random.randn(), torch.rand(3).tolist()


@pytest.mark.parametrize("draws_before", [0, 1, 3])
def test_random_states_survive_a_checkpoint(tmp_path, draws_before):
    for _ in range(draws_before):  # gauss and randn keep half of a pair back: that half is part of the state
        draw()
    save_checkpoint({"state_dict": {}, "random": random_state()}, tmp_path / "c.pth")
    expected = [draw() for _ in range(3)]
    restore_random_state(load_checkpoint(tmp_path / "c.pth")["random"])
    assert [draw() for _ in range(3)] == expected


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "c.pth"
    save_checkpoint({"state_dict": {"x": torch.ones(2)}}, path)

    def fail(name):
        with open(name, "w") as file:
            file.write("half")
        raise OSError("no space left on device")

    with pytest.raises(OSError, match="no space"):
        write_atomically(path, fail)
    assert torch.equal(load_checkpoint(path)["state_dict"]["x"], torch.ones(2))
    assert os.listdir(tmp_path) == ["c.pth"]


def test_files_get_the_usual_permissions(tmp_path):
    write_atomically(tmp_path / "a", lambda name: open(name, "w").close())
    open(tmp_path / "b", "w").close()
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "b").stat().st_mode


def checkpoints(folder, count):
    for number in range(count):
        save_checkpoint({"state_dict": {"x": torch.full((3000,), number)}}, folder / LATEST, folder / PREVIOUS)


@pytest.mark.parametrize("links", [True, False])
def test_the_newest_two_checkpoints_are_kept(tmp_path, monkeypatch, links):
    def no_link(*_):
        raise OSError("no hard links on this file system")

    if not links:
        monkeypatch.setattr(os, "link", no_link)
    for count, numbers in ((1, {LATEST: 0}), (2, {LATEST: 1, PREVIOUS: 0}), (4, {LATEST: 3, PREVIOUS: 2})):
        folder = tmp_path / str(count)
        checkpoints(folder, count)
        assert {path.name: int(load_checkpoint(path)["state_dict"]["x"][0]) for path in folder.iterdir()} == numbers
        assert newest_checkpoint(folder) == (folder / LATEST, "")


def test_a_crash_at_any_moment_of_a_write_leaves_a_whole_checkpoint(tmp_path, monkeypatch):
    """Every call that changes the folder is where the power may fail: nothing after it happens, not even cleaning."""

    class PowerFailure(BaseException):
        pass

    real = {name: getattr(os, name) for name in ("replace", "link", "fsync", "chmod", "unlink")}
    moments = 0
    for fails_at in range(1, 30):
        folder = tmp_path / str(fails_at)
        checkpoints(folder, 2)
        calls = []

        def maybe(name, calls=calls, fails_at=fails_at):
            def call(*arguments, **keywords):
                calls.append(name)
                if len(calls) >= fails_at:
                    raise PowerFailure
                return real[name](*arguments, **keywords)

            return call

        with monkeypatch.context() as patched:
            for name in real:
                patched.setattr(os, name, maybe(name))
            try:
                checkpoints(folder, 1)
            except PowerFailure:
                moments += 1
            else:
                break
        found = newest_checkpoint(folder)
        assert found is not None
        assert int(load_checkpoint(found[0])["state_dict"]["x"][0]) in (1, 0)
        assert found[1] == ""
        forget_half_written(folder)
        assert {path.name for path in folder.iterdir()} == {LATEST, PREVIOUS}
    assert moments >= 5


@pytest.mark.parametrize("damage", ["cut", "zeros in the middle", "zeros at the start", "zeros at the end", "empty"])
def test_a_torn_checkpoint_is_told_by_its_checksums(tmp_path, damage):
    checkpoints(tmp_path, 2)
    content = bytearray((tmp_path / LATEST).read_bytes())
    place = content.index(torch.ones(100, dtype=torch.int64).numpy().tobytes())
    if damage == "zeros in the middle":
        content[place : place + 512] = bytes(512)
        (tmp_path / LATEST).write_bytes(content)
        torn = torch.load(tmp_path / LATEST, weights_only=True)["state_dict"]["x"]
        assert torn.min() == 0  # PyTorch itself reads it without a word
    content = {"cut": content[:-1000], "zeros at the start": bytes(4096) + content[4096:],
        "zeros at the end": content[:-512] + bytes(512), "empty": b""}.get(damage, content)  # fmt: skip
    (tmp_path / LATEST).write_bytes(content)
    path, warning = newest_checkpoint(tmp_path)
    assert path == tmp_path / PREVIOUS
    assert warning.startswith(f"{tmp_path / LATEST} is torn (")
    assert int(load_checkpoint(path)["state_dict"]["x"][0]) == 0
    with pytest.raises(UserError, match=r"is not a readable checkpoint \(.*use the one before it, .*previous"):
        load_checkpoint(tmp_path / LATEST)
    (tmp_path / PREVIOUS).write_bytes(content)
    with pytest.raises(UserError, match=r"is torn .* and .* is torn"):
        newest_checkpoint(tmp_path)


def test_a_torn_checkpoint_never_takes_the_place_of_the_whole_one_before_it(tmp_path):
    def numbers():
        return [int(load_checkpoint(tmp_path / name)["state_dict"]["x"][0]) for name in (LATEST, PREVIOUS)]

    checkpoints(tmp_path, 2)
    forget_torn(tmp_path)
    assert numbers() == [1, 0]
    (tmp_path / LATEST).write_bytes(b"torn")
    forget_torn(tmp_path)
    assert newest_checkpoint(tmp_path) == (tmp_path / LATEST, "")
    checkpoints(tmp_path, 1)
    assert numbers() == [0, 0]
    for name in (LATEST, PREVIOUS):
        (tmp_path / name).write_bytes(b"torn")
    forget_torn(tmp_path)
    assert {path.read_bytes() for path in tmp_path.iterdir()} == {b"torn"}


def test_a_checkpoint_of_torchreid_without_checksums_is_read(tmp_path):
    torch.save({"state_dict": {"x": torch.ones(2)}}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert torch.equal(load_checkpoint(tmp_path / "old.pth")["state_dict"]["x"], torch.ones(2))


def test_torchreids_own_tools_read_a_checkpoint(tmp_path):
    module = torch.nn.Linear(3, 2)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.5)
    state = {"state_dict": module.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 7, "rank1": 0.25}
    save_checkpoint(state, tmp_path / LATEST)
    other = torch.nn.Linear(3, 2)
    epoch = torchreid.utils.resume_from_checkpoint(tmp_path / LATEST, other, torch.optim.SGD(other.parameters(), lr=1))
    assert epoch == 7
    assert torch.equal(other.weight, module.weight)


class Payload:
    def __reduce__(self):
        return (os.system, (f"touch {os.environ['PAYLOAD_MARK']}",))


def test_a_pickled_object_is_refused_without_running_it(tmp_path, monkeypatch):
    mark = tmp_path / "mark"
    monkeypatch.setenv("PAYLOAD_MARK", str(mark))
    torch.save({"state_dict": {}, "evil": Payload()}, tmp_path / "zip.pth")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps({"state_dict": Payload()}))
    for name in ("zip.pth", "plain.pth"):
        with pytest.raises(UserError, match="not a readable checkpoint") as caught:
            load_checkpoint(tmp_path / name)
        assert "\n" not in str(caught.value)
    assert not mark.exists()


def test_a_whole_module_is_told_from_its_weights(tmp_path):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "m.pth")
    with pytest.raises(
        UserError, match=r"an object of torch\.nn\.modules\.linear\.Linear, .* save .* state_dict"
    ) as caught:
        load_checkpoint(tmp_path / "m.pth")
    assert "add_safe_globals" not in str(caught.value)


def test_wrong_files_are_named(tmp_path):
    with pytest.raises(UserError, match="no checkpoint at"):
        load_checkpoint(tmp_path / "missing.pth")
    (tmp_path / "empty.pth").touch()
    with pytest.raises(UserError, match="not a readable checkpoint"):
        load_checkpoint(tmp_path / "empty.pth")
    torch.save([1], tmp_path / "list.pth")
    with pytest.raises(UserError, match="holds a list"):
        load_checkpoint(tmp_path / "list.pth")
    two = small_network().state_dict()
    torch.save({"student": two, "teacher": two}, tmp_path / "two.pth")
    with pytest.raises(UserError, match=r"holds no weights, but \['student', 'teacher'\]"):
        load_weights(small_network(), tmp_path / "two.pth")
    torch.save({"epoch": 1}, tmp_path / "other.pth")
    with pytest.raises(UserError, match="'state_dict'"):
        load_checkpoint(tmp_path / "other.pth")


def test_another_network_is_told_by_key_and_shape():
    module = torch.nn.Linear(3, 2)
    with pytest.raises(UserError, match=r"its weight is \(2, 4\), here \(2, 3\)"):
        load_state(module, {"weight": torch.zeros(2, 4), "bias": torch.zeros(2)}, "c.pth")
    with pytest.raises(UserError, match=r"it lacks bias, it has extra, which this network lacks"):
        load_state(module, {"weight": torch.zeros(2, 3), "extra": torch.zeros(1)}, "c.pth")
    others = {name: torch.zeros(1) for name in ("a", "b")}
    with pytest.raises(
        UserError, match=r"it lacks weight, it has a, which this network lacks, it has b, .*, and 1 more; "
    ):
        load_state(module, others | {"bias": torch.zeros(3)}, "c.pth")


def test_the_network_of_a_search_is_told_where_a_derived_one_is_wanted():
    searched = AutoReIDSearchNetwork(5, channels=2, layers=(1, 1, 1, 1)).state_dict()
    own = AutoReIDNetwork(5, channels=2, layers=(1, 1, 1, 1))
    with pytest.raises(UserError, match=r"another network: .* the network of a search: train the genotype\.json"):
        load_state(own, searched, "c.pth")
    larger = AutoReIDSearchNetwork(5, channels=4, layers=(1, 1, 1, 1))
    with pytest.raises(UserError, match=r"give the configuration it was made with$"):
        load_state(larger, searched, "c.pth")


@pytest.mark.parametrize(("name", "size"), [("hacnn", (160, 64)), ("pcb_p6", (96, 32))])
@pytest.mark.parametrize("testing", [True, False])
def test_several_classifiers_of_a_model_may_be_others_too(tmp_path, name, size, testing):
    one, other = (
        torchreid.models.build_model(name, classes, pretrained=False, use_gpu=False).eval() for classes in (5, 7)
    )
    torch.save(one.state_dict(), tmp_path / "w.pth")
    load_weights(other, tmp_path / "w.pth", testing)
    images = torch.randn(1, 3, *size)
    with torch.no_grad():
        assert torch.equal(one(images), other(images))


def small_network():
    torch.manual_seed(1)
    return AutoReIDNetwork(5, channels=4, layers=(1, 1, 1, 1))


WRAPPED = {
    "plain": lambda state: state,
    "DataParallel": lambda state: {f"module.{key}": value for key, value in state.items()},
    "twice": lambda state: {f"module.module.{key}": value for key, value in state.items()},
    "torch.compile": lambda state: {f"_orig_mod.{key}": value for key, value in state.items()},
    "compiled, then DataParallel": lambda state: {f"module._orig_mod.{key}": value for key, value in state.items()},
    "DataParallel, then compiled": lambda state: {f"_orig_mod.module.{key}": value for key, value in state.items()},
    "compiled in part": lambda state: {key.replace("cells.", "cells._orig_mod."): v for key, v in state.items()},
    "AveragedModel": lambda state: {f"module.{k}": v for k, v in state.items()} | {"n_averaged": torch.tensor(3)},
    "under model": lambda state: {"model": state, "epoch": 3},
    "under model_state_dict": lambda state: {"model_state_dict": state, "optimizer": {}},
    "under state_dict": lambda state: {"state_dict": state, "rank1": 0.5},
    "under any other name": lambda state: {"net": state, "optimizer": {"state": {}, "param_groups": [1]}, "epoch": 3},
    "before PyTorch 0.4.1": lambda state: {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")},
    "half": lambda state: {key: v.half() if v.is_floating_point() else v for key, v in state.items()},
}


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("kind", WRAPPED)
def test_weights_are_found_wherever_pytorch_and_its_users_put_them(tmp_path, kind, legacy):
    source, network = small_network().state_dict(), AutoReIDNetwork(5, channels=4, layers=(1, 1, 1, 1))
    torch.save(WRAPPED[kind](source), tmp_path / "w.pth", _use_new_zipfile_serialization=not legacy)
    load_weights(network, tmp_path / "w.pth")
    tolerance, found = 1e-3 if kind == "half" else 0, network.state_dict()
    for key, value in source.items():
        assert torch.allclose(found[key].double(), value.double(), atol=tolerance, rtol=tolerance), key


ODD = {
    "sparse": (torch.Tensor.to_sparse, "is no ordinary tensor"),
    "complex": (lambda value: value.to(torch.complex64), "is of type complex64"),
    "integers": (lambda value: value.to(torch.int64), "is of type int64"),
    "truths": (lambda value: value.to(torch.bool), "is of type bool"),
    "without memory": (lambda value: value.to("meta"), "is no ordinary tensor"),
    "quantised": (lambda value: torch.quantize_per_tensor(value, 0.1, 0, torch.qint8), "is no ordinary tensor"),
    "nested": (lambda value: torch.nested.nested_tensor([value[0], value[1]]), "is no ordinary tensor"),
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("key", ["stem.0.weight", "classifier.weight"])
@pytest.mark.parametrize("kind", ODD)
def test_tensors_of_another_kind_get_one_line(tmp_path, kind, key):
    make, words = ODD[kind]
    state = small_network().state_dict()
    state[key] = make(state[key])
    torch.save(state, tmp_path / "w.pth")
    network = small_network()
    if key.startswith("classifier") and kind in ("sparse", "without memory", "quantised", "nested"):
        load_weights(network, tmp_path / "w.pth")  # it is not read: the feature does not depend on it
        return
    with pytest.raises(UserError, match=f"belongs to another network: its {key} {words}; give") as caught:
        load_weights(network, tmp_path / "w.pth")
    assert "\n" not in str(caught.value)


def test_a_legacy_file_without_the_data_of_a_tensor_is_refused(tmp_path):
    """PyTorch would leave a tensor of which the file lists no data as the memory happens to be."""
    path = tmp_path / "w.pth"
    torch.save({"a": torch.ones(64), "b": torch.zeros(64)}, path, _use_new_zipfile_serialization=False)
    assert torch.equal(load_checkpoint(path, ())["a"], torch.ones(64))
    data = path.read_bytes()
    keys = data.index(pickle.dumps([], 2)[:3], data.index(b"collections") if b"collections" in data else 300)
    path.write_bytes(data[:keys] + pickle.dumps([], 2))
    with pytest.raises(UserError, match=r"not a readable checkpoint \(its tensors have 512 bytes, and it holds 0\)"):
        load_checkpoint(path, ())
    for cut in range(1, len(data), 5):
        path.write_bytes(data[:cut])
        with pytest.raises(UserError, match="not a readable checkpoint"):
            load_checkpoint(path, ())


def test_a_genotype_of_the_same_weights_is_told_from_another(tmp_path):
    """The wiring is not in the weights: the same names and shapes, and another function."""
    blocks = [[[("sep_conv_3x3", 0), ("skip_connect", source)]] for source in (0, 1)]
    one, other = (Genotype("g", block, [[("sep_conv_3x3", 0), ("sep_conv_3x3", 1)]]) for block in blocks)
    networks = [AutoReIDNetwork(3, genotype=genotype, channels=2, layers=(1, 1, 1, 1)) for genotype in (one, other)]
    described = {"genotype": one.to_dict() | {"name": "another name"}}
    torch.save({"state_dict": networks[0].state_dict(), "network": described}, tmp_path / "w.pth")
    load_weights(networks[0], tmp_path / "w.pth")
    with pytest.raises(UserError, match="block 0 of its normal cell is sep_conv_3x3<0 skip_connect<0, here sep_conv"):
        load_weights(networks[1], tmp_path / "w.pth")
