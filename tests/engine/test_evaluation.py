"""The evaluation of torchreid's engines: its figures, its options, its pictures, without its dense matrix."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
import torchreid
from PIL import Image
from torch import nn

from torchreid_autoreid.data import ReidDataManager
from torchreid_autoreid.data.loader import InOrderLoader
from torchreid_autoreid.engine import FaissEvaluationMixin, with_faiss_evaluation
from torchreid_autoreid.engine import evaluation as evaluation_module
from torchreid_autoreid.engine.evaluation import share_of_loader
from torchreid_autoreid.errors import IndistinctError, UserError
from torchreid_autoreid.evaluation import evaluate


class Colours(nn.Module):
    """A network whose features are the image at low resolution, so that nothing needs training."""

    def __init__(self):
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d((4, 2))
        self.norm = nn.BatchNorm2d(3)
        self.drop = nn.Dropout(0.5)

    def forward(self, x):
        return self.drop(self.norm(self.pool(x))).flatten(1)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for part, images in (("train", 2), ("query", 2), ("gallery", 5)):
        (folder / part).mkdir()
        for pid in range(1, 13):
            colour = np.random.default_rng(pid).integers(60, 190, size=3)
            for index in range(images):
                pixels = (colour + rng.normal(0, 45, size=(8, 4, 3))).clip(0, 255).astype(np.uint8)
                camera = 1 + index % 3
                image = Image.fromarray(pixels).resize((16, 32), Image.Resampling.NEAREST)
                image.save(folder / part / f"{pid:04d}_c{camera}s1_{index:06d}_00.png")
    return folder


def make_engine(root, kind=torchreid.engine.ImageSoftmaxEngine):
    manager = ReidDataManager(
        str(root),
        "folder",
        "folder",
        height=32,
        width=16,
        batch_size_train=4,
        batch_size_test=7,
        workers=0,
        use_gpu=False,
    )
    return kind(manager, Colours(), optimizer=None, use_gpu=False)


def arguments(engine, **options):
    loaders = engine.test_loader["folder"]
    return {"dataset_name": "folder", "query_loader": loaders["query"], "gallery_loader": loaders["gallery"]} | options


@pytest.mark.parametrize("rerank", [False, True])
@pytest.mark.parametrize("normalize_feature", [False, True])
@pytest.mark.parametrize("dist_metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("kind", [torchreid.engine.ImageSoftmaxEngine, torchreid.engine.ImageTripletEngine])
def test_figures_equal_torchreids(root, kind, dist_metric, normalize_feature, rerank):
    options = {"dist_metric": dist_metric, "normalize_feature": normalize_feature, "rerank": rerank, "ranks": [1, 5]}
    engine = make_engine(root, kind)
    engine.model.eval()
    theirs = engine._evaluate(**arguments(engine, **options))
    assert 0.05 < theirs[1] < 0.999  # neither hopeless nor solved, or agreement would say little
    ours = with_faiss_evaluation(engine)._evaluate(**arguments(engine, **options))
    assert ours == pytest.approx(theirs, abs=1e-6)


def test_it_is_used_by_the_engines_own_run_and_test(root, tmp_path, caplog):
    caplog.set_level("INFO", logger="torchreid_autoreid")
    engine = with_faiss_evaluation(make_engine(root))
    engine.run(save_dir=str(tmp_path), test_only=True, ranks=[1, 3])
    assert "mAP" in caplog.text
    assert "Rank-3" in caplog.text
    assert "Rank-5" not in caplog.text
    assert engine.test() == pytest.approx(engine._evaluate(**arguments(engine))[0])


def test_a_gallery_smaller_than_the_ranks_is_no_problem(root):
    engine = with_faiss_evaluation(make_engine(root))
    loaders = engine.test_loader["folder"]
    loaders["gallery"].dataset.data = [item for item in loaders["gallery"].dataset.data if item[1] <= 3][:9]
    rank1, mean_ap = engine._evaluate(**arguments(engine, ranks=[1, 20]))
    assert 0 <= mean_ap <= 1
    assert 0 <= rank1 <= 1


def test_figures_are_seen_where_nobody_logs(root, tmp_path, capsys):
    """In torchreid's own scripts, which set up no logging, as torchreid's are."""
    engine = with_faiss_evaluation(make_engine(root))
    engine._evaluate(**arguments(engine, ranks=[], visrank=True, save_dir=str(tmp_path)))
    printed = capsys.readouterr().out
    assert f"mAP: {engine.results['folder'].mAP:.1%}" in printed
    assert "24 queries" in printed


def test_distances_are_computed_where_the_model_is(root, monkeypatch):
    """A model on one of several GPUs leaves the others alone."""
    engine = with_faiss_evaluation(make_engine(root))
    asked = {}
    monkeypatch.setattr(engine, "extract_test_set", lambda *_: (None, None))
    monkeypatch.setattr(evaluation_module, "evaluate", lambda *_, **options: asked.update(options))
    monkeypatch.setattr(engine.model, "parameters", lambda: iter([SimpleNamespace(device=torch.device("cuda:1"))]))
    engine.retrieve(None, None)
    assert asked["device"] == "cuda:1"


def test_the_cuhk03_protocol_is_honoured(root, monkeypatch):
    engine = with_faiss_evaluation(make_engine(root))
    query, gallery = (engine.extract_embeddings(engine.test_loader["folder"][part]) for part in ("query", "gallery"))
    rank1, mean_ap = engine._evaluate(**arguments(engine, use_metric_cuhk03=True))
    expected = evaluate(query, gallery, metric="euclidean", use_metric_cuhk03=True)
    assert (rank1, mean_ap) == (expected.cmc[0], expected.mAP)
    assert rank1 != evaluate(query, gallery, metric="euclidean").cmc[0]


def test_ranked_results_are_drawn_as_torchreid_draws_them(root, tmp_path):
    engine = make_engine(root)
    engine.model.eval()
    options = {"visrank": True, "visrank_topk": 4}
    engine._evaluate(**arguments(engine, save_dir=str(tmp_path / "theirs"), **options))
    with_faiss_evaluation(engine)._evaluate(**arguments(engine, save_dir=str(tmp_path / "ours"), **options))
    theirs, ours = (sorted((tmp_path / who / "visrank_folder").iterdir()) for who in ("theirs", "ours"))
    assert [path.name for path in ours] == [path.name for path in theirs]
    assert len(ours) == 24
    for left, right in zip(ours, theirs, strict=True):
        assert np.array_equal(cv2.imread(str(left)), cv2.imread(str(right)))


def test_modes_and_weights_stay_as_they_were(root):
    engine = with_faiss_evaluation(make_engine(root))
    engine.model.train()
    engine.model.norm.eval()
    before = {key: value.clone() for key, value in engine.model.state_dict().items()}
    first = engine.extract_embeddings(engine.test_loader["folder"]["query"])
    assert engine.model.training
    assert engine.model.drop.training
    assert not engine.model.norm.training
    assert all(torch.equal(before[key], value) for key, value in engine.model.state_dict().items())
    again = engine.extract_embeddings(engine.test_loader["folder"]["query"])
    assert np.array_equal(first.features, again.features)  # no dropout


def test_normalised_features_have_length_one(root):
    engine = with_faiss_evaluation(make_engine(root))
    embeddings = engine.extract_embeddings(engine.test_loader["folder"]["query"], normalize_feature=True)
    assert np.allclose(np.linalg.norm(embeddings.features, axis=1), 1.0, atol=1e-6)


def test_a_network_that_gives_nan_is_told_in_one_line(root):
    engine = with_faiss_evaluation(make_engine(root))
    engine.model.norm.running_var.fill_(float("nan"))
    with pytest.raises(UserError, match="NaN"):
        engine._evaluate(**arguments(engine))


class World:
    """A process among several."""

    def __init__(self, rank, size):
        self.rank, self.size = rank, size


@pytest.mark.parametrize("size", [2, 3, 5])
def test_processes_share_the_batches(root, size):
    own = make_engine(root).test_loader["folder"]["gallery"]
    plain = torch.utils.data.DataLoader(own.dataset, batch_size=7)  # torchreid's own manager has these
    for loader in (own, plain):
        whole = [batch["impath"] for batch in loader]
        shared = [batch["impath"] for rank in range(size) for batch in share_of_loader(loader, World(rank, size))]
        assert shared == whole


def test_a_small_gallery_gives_every_process_an_image(root):
    loader = InOrderLoader(
        torch.utils.data.Subset(make_engine(root).test_loader["folder"]["gallery"].dataset, [0, 1, 2, 3, 4]), 7
    )
    parts = [
        [path for batch in share_of_loader(loader, World(rank, 3)) for path in batch["impath"]] for rank in range(3)
    ]
    assert all(parts)
    assert [path for part in parts for path in part] == [path for batch in loader for path in batch["impath"]]
    with pytest.raises(UserError, match="5 images cannot be shared by 6 processes"):
        share_of_loader(loader, World(0, 6))


def test_giving_it_twice_changes_nothing(root):
    engine = with_faiss_evaluation(make_engine(root))
    kind = type(engine)
    assert with_faiss_evaluation(engine) is engine
    assert type(engine) is kind
    assert isinstance(engine, FaissEvaluationMixin)
    assert isinstance(engine, torchreid.engine.ImageSoftmaxEngine)


@pytest.mark.parametrize(
    "engine", [object(), torchreid.engine.VideoSoftmaxEngine.__new__(torchreid.engine.VideoSoftmaxEngine)]
)
def test_other_engines_are_refused(engine):
    with pytest.raises(UserError, match=type(engine).__name__):
        with_faiss_evaluation(engine)


@pytest.mark.slow
@pytest.mark.skipif(
    not os.environ.get("TORCHREID_CHECKOUT"), reason="TORCHREID_CHECKOUT names no checkout of the toolbox"
)
def test_these_tests_pass_with_the_toolboxs_own_release():
    root = Path(__file__).resolve().parents[2]
    path = os.pathsep.join([os.environ["TORCHREID_CHECKOUT"], str(root)])
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-m",
        "not slow",
        "-p",
        "no:cacheprovider",
        "tests/engine",
        "tests/data",
        "tests/test_contract.py",
    ]
    environment = {key: value for key, value in os.environ.items() if key != "TORCHREID_CHECKOUT"} | {
        "PYTHONPATH": path
    }
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:]


def test_images_by_one_camera_are_evaluated_without_leaving_any_out(root, tmp_path):
    for part in ("train", "query", "gallery"):
        for path in (root / part).iterdir():
            pid, _, number, _ = path.stem.split("_")
            copy = tmp_path / part / pid / f"image {number}.png"
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())
    engine = with_faiss_evaluation(make_engine(tmp_path))
    loaders = engine.test_loader["folder"]
    query, gallery = engine.extract_test_set(loaders["query"], loaders["gallery"])
    assert not query.knows("camids")
    _, mean_ap = engine._evaluate(**arguments(engine))
    distances = np.linalg.norm(query.features[:, None] - gallery.features[None], axis=2)
    expected = []
    for row, pid in zip(distances, query.pids, strict=True):
        matches = gallery.pids[np.argsort(row, kind="stable")] == pid
        ranks = np.flatnonzero(matches) + 1
        expected.append(np.mean(np.arange(1, len(ranks) + 1) / ranks))
    assert mean_ap == pytest.approx(np.mean(expected), abs=1e-6)


def test_a_network_that_answers_nearly_the_same_is_at_chance_in_a_run_and_an_error_in_a_test(root, caplog):
    engine = with_faiss_evaluation(make_engine(root))
    loaders, features, calls = engine.test_loader["folder"], engine.extract_features, []

    def far_away(images):
        """Queries, which are looked at first, are far from all gallery items, which hardly differ."""
        calls.append(len(images))
        seen = (len(calls) - 1) % (len(loaders["query"]) + len(loaders["gallery"]))
        return 1e-3 * features(images) + (1000 if seen < len(loaders["query"]) else 0)

    engine.extract_features = far_away
    with pytest.raises(IndistinctError, match="do not tell gallery items from one another"):
        engine.retrieve(loaders["query"], loaders["gallery"])
    found = engine.retrieve(loaders["query"], loaders["gallery"], alike_is_chance=True)
    assert "answers nearly the same for all images" in caplog.text
    assert found.num_valid_queries == 24
    assert 0 < found.mAP < 0.4
    engine.extract_features = lambda images: 1e-30 * features(images)
    assert engine.retrieve(loaders["query"], loaders["gallery"], alike_is_chance=True).mAP == found.mAP
