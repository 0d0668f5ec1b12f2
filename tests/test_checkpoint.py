"""Checkpoints: atomic, complete, and never running code."""

import os
import pickle
import random

import numpy as np
import pytest
import torch

from torchreid_autoreid.checkpoint import (
    load_checkpoint,
    load_state,
    load_weights,
    random_state,
    restore_random_state,
    save_checkpoint,
    write_atomically,
)
from torchreid_autoreid.errors import UserError
from torchreid_autoreid.genotype import Genotype
from torchreid_autoreid.networks import AutoReIDNetwork


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


def test_wrong_files_are_named(tmp_path):
    with pytest.raises(UserError, match="no checkpoint at"):
        load_checkpoint(tmp_path / "missing.pth")
    (tmp_path / "empty.pth").touch()
    with pytest.raises(UserError, match="not a readable checkpoint"):
        load_checkpoint(tmp_path / "empty.pth")
    torch.save([1], tmp_path / "list.pth")
    with pytest.raises(UserError, match="holds a list"):
        load_checkpoint(tmp_path / "list.pth")
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
