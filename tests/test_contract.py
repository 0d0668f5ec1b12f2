"""Each registered name in each of torchreid's tools: the table of what "an ordinary torchreid model" means."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torchreid
from PIL import Image

from torchreid_autoreid.checkpoint import save_checkpoint

NAMES = ["autoreid", "autoreid_x0_5", "autoreid_x0_25", "contract_net", "autoreid_search"]
SIZE = (64, 32)


@pytest.fixture(scope="module", autouse=True)
def registered():
    import torchreid_autoreid

    torchreid_autoreid.register_model("contract_net", genotype="baseline_reid_space", channels=4, layers=(1, 1, 1, 1))


def build(name, loss="softmax", classes=5):
    torch.manual_seed(0)
    return torchreid.models.build_model(name, num_classes=classes, loss=loss, pretrained=False, use_gpu=False)


def images(count=2):
    return torch.randn(count, 3, *SIZE, generator=torch.Generator().manual_seed(1))


def features(model, x):
    model.eval()
    with torch.no_grad():
        return model(x)


def check_build_model(name, tmp_path):
    model = build(name, "triplet")
    logits, feature = model(images())
    assert logits.shape == (2, 5)
    assert feature.shape == (2, model.feature_dim)
    assert isinstance(model.classifier, torch.nn.Linear)
    assert build(name)(images()).shape == (2, 5)
    assert model(images(), return_featuremaps=True).shape[:2] == (2, model.feature_dim)
    assert features(model, images()).shape == (2, model.feature_dim)


class Manager:
    """As much of a data manager as an engine's step needs."""

    num_train_pids = 5
    test_loader: dict = {}
    train_loader: list = []
    sources = ()


def step(engine, model):
    before = [p.detach().clone() for p in model.parameters()]
    engine.epoch = engine.batch_idx = 0
    engine.num_batches = 1
    model.train()
    summary = engine.forward_backward({"img": images(4), "pid": torch.tensor([0, 0, 1, 1])})
    assert all(np.isfinite(value) for value in summary.values())
    assert any(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def check_softmax_engine(name, tmp_path):
    model = build(name)
    optimizer = torchreid.optim.build_optimizer(model, "sgd", lr=0.1)
    step(torchreid.engine.ImageSoftmaxEngine(Manager(), model, optimizer, use_gpu=False), model)


def check_triplet_engine(name, tmp_path):
    model = build(name, "triplet")
    optimizer = torchreid.optim.build_optimizer(model, "adam", staged_lr=True, new_layers=["classifier"])
    step(torchreid.engine.ImageTripletEngine(Manager(), model, optimizer, use_gpu=False), model)


def check_feature_extractor(name, tmp_path):
    Image.new("RGB", (20, 40), (200, 30, 30)).save(tmp_path / "a.png")
    extractor = torchreid.utils.FeatureExtractor(model_name=name, image_size=SIZE, device="cpu", verbose=False)
    assert extractor(str(tmp_path / "a.png")).shape == (1, extractor.model.feature_dim)


def check_complexity(name, tmp_path):
    model = build(name)
    # High enough for the last stage to have all stripes: of lower maps the body vectors' batch norm is no layer's call.
    parameters, operations = torchreid.utils.compute_model_complexity(model, (1, 3, 128, 64))
    # torchreid counts the parameters of layers, so not the alphas.
    others = ("classifier", "architecture")
    own = sum(p.numel() for key, p in model.named_parameters() if not key.startswith(others))
    assert parameters == own
    assert operations > 0


def check_pretrained_weights(name, tmp_path):
    model = build(name)
    torch.save({"state_dict": model.state_dict()}, tmp_path / "w.pth")
    torch.manual_seed(7)
    other = torchreid.models.build_model(name, num_classes=9, pretrained=False, use_gpu=False)
    torchreid.utils.load_pretrained_weights(other, str(tmp_path / "w.pth"))
    assert torch.equal(features(other, images()), features(model, images()))
    assert other.classifier.out_features == 9


def check_resume(name, tmp_path):
    """What our commands write loads in torchreid, which refuses what it writes itself."""
    model = build(name)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 3)
    save_checkpoint(
        {
            "state_dict": model.state_dict(),
            "epoch": 4,
            "rank1": 0.5,
            "optimizer": optimizer.state_dict(),
            "scheduler": scheduler.state_dict(),
        },
        tmp_path / "c.pth",
    )
    other = build(name)
    torch.nn.init.zeros_(other.classifier.weight)
    assert torchreid.utils.resume_from_checkpoint(str(tmp_path / "c.pth"), other, optimizer, scheduler) == 4
    assert torch.equal(other.classifier.weight, model.classifier.weight)


def check_data_parallel(name, tmp_path):
    model = build(name, "triplet")
    parallel = torch.nn.DataParallel(model)
    assert parallel(images())[1].shape == (2, model.feature_dim)
    assert torch.equal(features(parallel, images()), features(model, images()))


def check_compile(name, tmp_path):
    model = build(name)
    expected = features(model, images())
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        assert torch.allclose(compiled(images()), expected, atol=1e-4)


def check_channels_last(name, tmp_path):
    model = build(name).double()
    expected = features(model, images().double())
    model = model.to(memory_format=torch.channels_last)
    found = features(model, images().double().to(memory_format=torch.channels_last))
    assert torch.allclose(found, expected, atol=1e-9)


CHECKS = [value for key, value in list(globals().items()) if key.startswith("check_")]


#: The presets have one graph, with other channels; unrolling all operations of the search network takes minutes.
NOT_COMPILED = ["autoreid", "autoreid_x0_5", "autoreid_search"]


@pytest.mark.parametrize(
    ("name", "check"),
    [
        pytest.param(
            name,
            check,
            id=f"{name}-{check.__name__.removeprefix('check_')}",
            marks=pytest.mark.slow if name == "autoreid_search" else (),
        )
        for name in NAMES
        for check in CHECKS
        if not (check is check_compile and name in NOT_COMPILED)
    ],
)
def test_contract(name, check, tmp_path):
    check(name, tmp_path)


@pytest.mark.slow
def test_contract_with_the_toolboxs_own_layout(tmp_path):
    """The same table, with torchreid 1.4.0 (``TORCHREID_CHECKOUT``) in the place of PyPI's 0.2.5."""
    checkout = os.environ.get("TORCHREID_CHECKOUT")
    if not checkout or torchreid.__version__ == "1.4.0":
        pytest.skip("TORCHREID_CHECKOUT names no checkout of the toolbox, or is what runs already")
    root = str(Path(__file__).resolve().parents[1])
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__, "-k", "test_contract and net"],
        cwd=root,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([checkout, root])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:]
