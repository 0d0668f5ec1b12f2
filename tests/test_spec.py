"""What a checkpoint says about its network."""

import json

import pytest
import torch

from torchreid_autoreid.config.read import load_config
from torchreid_autoreid.errors import UserError
from torchreid_autoreid.space.networks import AutoReIDNetwork
from torchreid_autoreid.spec import Description

OPTS = ["model.name", "autoreid", "autoreid.channels", "4", "autoreid.layers", "[1, 2, 1, 1]", "loss.name", "triplet"]


def described(*opts):
    return Description.of_config(load_config(opts=[*OPTS, *opts]))


def test_it_survives_json_and_builds_the_same_network():
    one = described("recipe.neck", "after", "autoreid.last_stride", "1", "autoreid.genotype", "baseline")
    other = Description.from_dict(json.loads(json.dumps(one.to_dict())), "file")
    assert other == one
    model = other.build(7, drop_path=0.1, auxiliary=True)
    assert isinstance(model, AutoReIDNetwork)
    assert model.genotype.name == "baseline"
    assert model.auxiliary is not None
    assert model.classifier.linear.out_features == 7
    assert [cell.stride for cell in model.cells] == [1, 2, 1, 2, 1]
    assert model.cells[0].drop_path.p == 0.1


@pytest.mark.parametrize(("name", "dim"), [("autoreid_x0_5", 1024), ("autoreid_x0_25", 512), ("resnet18", 512)])
def test_names_have_their_sizes(name, dim):
    assert Description.of_config(load_config(opts=["model.name", name])).build(3).feature_dim == dim


def test_channels_must_not_contradict_the_name():
    with pytest.raises(UserError, match=r"autoreid.channels 8 contradicts model.name autoreid_x0_5, which has 32"):
        Description.of_config(load_config(opts=["model.name", "autoreid_x0_5", "autoreid.channels", "8"]))


def test_unknown_names_get_the_closest():
    with pytest.raises(UserError, match=r"no model 'resnet51'; did you mean .*resnet50"):
        Description.of_config(load_config(opts=["model.name", "resnet51"])).build(3)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"height": "tall"}, "height is 'tall'"),
        ({"height": 10**9}, "1000000000"),
        ({"norm_std": [1.0]}, "norm_std"),
        ({"layers": [1, 1, 1, 10**6]}, "layers"),
        ({"channels": 10**6}, "channels must be at least 1 and at most 4096, not 1000000"),
        ({"neck": "giraffe"}, "giraffe"),
        ({"genotype": {"version": 1}}, "describes its network wrongly"),
        ({"surprise": 1}, "does not describe its network"),
    ],
)
def test_wrong_descriptions_are_refused_with_the_file(changes, words):
    with pytest.raises(UserError, match=words) as caught:
        Description.from_dict(described().to_dict() | changes, "weights.pth")
    assert "weights.pth" in str(caught.value)


def test_checkpoints_without_one_are_of_another_kind(tmp_path):
    torch.save({"state_dict": {}}, tmp_path / "plain.pth")
    assert Description.of_checkpoint(tmp_path / "plain.pth") is None
    network = described().to_dict() | {"num_classes": 9}
    torch.save({"state_dict": described().build(9).state_dict(), "network": network}, tmp_path / "full.pth")
    assert Description.of_checkpoint(tmp_path / "full.pth") == (described(), 9)
    for network in ("text", {"num_classes": -1}, described().to_dict()):
        torch.save({"state_dict": {}, "network": network}, tmp_path / "bad.pth")
        with pytest.raises(UserError, match=r"bad.pth describes its network wrongly: its num_classes"):
            Description.of_checkpoint(tmp_path / "bad.pth")
