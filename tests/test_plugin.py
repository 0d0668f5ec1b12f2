"""Registration with torchreid, in both of its layouts."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torchreid

import torchreid_autoreid
from torchreid_autoreid import plugin
from torchreid_autoreid.errors import UserError
from torchreid_autoreid.genotype import Genotype

NAMES = {"autoreid": 64, "autoreid_x0_5": 32, "autoreid_x0_25": 16}


@pytest.mark.parametrize(("name", "channels"), NAMES.items())
def test_registered_names_build(name, channels):
    model = torchreid.models.build_model(name, num_classes=11, loss="triplet", pretrained=False)
    assert model.feature_dim == 32 * channels
    assert model.classifier.out_features == 11
    assert model.genotype == Genotype.load("retrieval")


def test_the_search_network_builds():
    model = torchreid.models.build_model("autoreid_search", num_classes=5, loss="triplet", pretrained=False)
    assert [tuple(a.shape) for a in model.alphas()] == [(14, 7), (14, 7)]


def test_registering_again_changes_nothing():
    before = set(vars(torchreid.models)["__model_factory"])
    plugin.register()
    assert set(vars(torchreid.models)["__model_factory"]) == before


def test_register_model_takes_a_file(tmp_path):
    Genotype.load("baseline").save(tmp_path / "g.json")
    torchreid_autoreid.register_model("mine", genotype=tmp_path / "g.json", channels=4, layers=(1, 1, 1, 1), parts=2)
    model = torchreid.models.build_model("mine", 3)
    assert model.genotype == Genotype.load("baseline")
    assert model.feature_dim == 128
    assert model(torch.zeros(2, 3, 64, 32)).shape == (2, 3)


def test_torchreids_own_models_are_safe():
    with pytest.raises(UserError, match="osnet_x1_0"):
        torchreid_autoreid.register_model("osnet_x1_0")


def test_wrong_genotypes_and_shapes_are_refused_when_registering():
    with pytest.raises(UserError, match="no_such"):
        torchreid_autoreid.register_model("mine_too", genotype="no_such")
    with pytest.raises(UserError, match="layers"):
        torchreid_autoreid.register_model("mine_too", layers=(2, 2))
    assert "mine_too" not in vars(torchreid.models)["__model_factory"]


def test_pretrained_says_that_there_is_nothing_and_goes_on(caplog):
    torchreid.models.build_model("autoreid_x0_25", num_classes=3, pretrained=True)
    assert "random weights" in caplog.text


SCRIPT = """
import torchreid, torchreid_autoreid, torch
model = torchreid.models.build_model('autoreid_x0_25', num_classes=5, loss='softmax', pretrained=False)
assert model.eval()(torch.zeros(1, 3, 64, 32)).shape == (1, 512)
print(torchreid.__version__, torchreid.models.__name__)
"""


@pytest.mark.parametrize("layout", ["installed", "checkout"])
def test_both_layouts_of_torchreid(layout):
    """PyPI's 0.2.5 has its modules in torchreid.reid, the toolbox's 1.4.0 (``TORCHREID_CHECKOUT``) in torchreid."""
    root = str(Path(__file__).resolve().parents[1])
    checkout = os.environ.get("TORCHREID_CHECKOUT")
    if layout == "checkout" and not checkout:
        pytest.skip("TORCHREID_CHECKOUT names no checkout of the toolbox")
    path = os.pathsep.join([checkout, root] if layout == "checkout" else [root])
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert layout == "installed" or done.stdout.split() == ["1.4.0", "torchreid.models"]
