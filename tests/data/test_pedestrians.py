"""The embedded dataset on disk: always the same, whole or drawn again, and not solved by comparing pixels."""

import multiprocessing
import random
import time
from itertools import islice

import numpy as np
import pytest
import torch
import torchreid
from PIL import Image

from torchreid_autoreid.data import SyntheticPedestrians, pedestrians
from torchreid_autoreid.engine import with_faiss_evaluation
from torchreid_autoreid.errors import UserError
from torchreid_autoreid.evaluation import Embeddings, evaluate


@pytest.fixture(scope="module")
def dataset(pedestrians_root):
    return SyntheticPedestrians(str(pedestrians_root), verbose=False)


def test_sizes(dataset):
    assert [len(part) for part in (dataset.train, dataset.query, dataset.gallery)] == [48 * 16, 48 * 4, 48 * 12 + 32]
    assert dataset.num_train_pids == 48
    assert {camid for _, _, camid, _ in dataset.train} == {0, 1, 2, 3}
    for path, *_ in (dataset.train[0], dataset.query[-1], dataset.gallery[5]):
        assert Image.open(path).size == (64, 128)


def test_torchreid_reads_it_as_market1501(dataset, pedestrians_root, tmp_path):
    (tmp_path / "market1501").mkdir()
    (tmp_path / "market1501" / "Market-1501-v15.09.15").symlink_to(pedestrians_root / "synthetic_pedestrians")
    theirs = torchreid.data.datasets.image.Market1501(str(tmp_path), verbose=False)

    def names(items):
        return sorted((path.rsplit("/", 1)[1], pid, camid) for path, pid, camid, _ in items)

    assert names(theirs.query) == names(dataset.query)
    assert names(theirs.gallery) == names(dataset.gallery)
    assert [name[0] for name in names(theirs.train)] == [name[0] for name in names(dataset.train)]


def test_no_test_person_is_trained_on(dataset):
    train = {path.rsplit("/", 1)[1][:4] for path, *_ in dataset.train}
    test = {path.rsplit("/", 1)[1][:4] for path, *_ in dataset.query + dataset.gallery}
    assert len(train) == 48
    assert not train & test


def test_every_query_has_a_true_match_by_another_camera(dataset):
    for _, pid, camid, _ in dataset.query:
        assert sum(other == pid and camera != camid for _, other, camera, _ in dataset.gallery) == 9


def test_drawn_the_same_whatever_was_drawn_before():
    def pixels():
        return [(name, image.tobytes()) for name, image in islice(pedestrians._images(), 40)]

    first = pixels()
    random.seed(7), np.random.seed(7), torch.manual_seed(7)
    assert pixels() == first


# -- on disk: a few small images stand for the drawing --------------------------------------------------------------


@pytest.fixture
def few(monkeypatch):
    """Draws two images a folder; ``few.drawn`` counts how often."""

    class Few:
        drawn = multiprocessing.Value("i", 0)

    def images():
        with Few.drawn.get_lock():
            Few.drawn.value += 1
        for subset in pedestrians._SUBSETS:
            for number in (1, 2):
                yield f"{subset}/{number:04d}_c1s1_000000_00.jpg", Image.new("RGB", (8, 16), (number * 40, 0, 0))

    monkeypatch.setattr(pedestrians, "_images", images)
    return Few


def names(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_a_whole_drawing_is_kept(few, tmp_path):
    for _ in range(3):
        assert len(SyntheticPedestrians(str(tmp_path), verbose=False).train) == 2
    assert few.drawn.value == 1


@pytest.mark.parametrize(
    "harm",
    [
        lambda image, marker: image.unlink(),
        lambda image, marker: image.write_bytes(image.read_bytes()[:-20]),
        lambda image, marker: image.write_bytes(image.read_bytes()[::-1]),
        lambda image, marker: image.with_name("0007_c1s1_000000_00.jpg").write_bytes(image.read_bytes()),
        lambda image, marker: marker.unlink(),
        lambda image, marker: marker.write_text(marker.read_text()[:-5]),
        lambda image, marker: marker.write_text(marker.read_text().replace('"version": ', '"version": 9')),
        lambda image, marker: marker.write_bytes(b"\xff\xfe"),
    ],
    ids=["missing", "torn", "other bytes", "one too many", "no marker", "torn marker", "old version", "no text"],
)
def test_a_drawing_that_is_not_whole_or_not_this_one_is_drawn_again(few, tmp_path, harm):
    folder = tmp_path / "synthetic_pedestrians"
    pedestrians.draw_dataset(folder)
    good = {name: (folder / name).read_bytes() for name in names(folder) if "." in name}
    harm(folder / "query" / "0001_c1s1_000000_00.jpg", folder / "drawing.json")
    pedestrians.draw_dataset(folder)
    assert few.drawn.value == 2
    assert {name: (folder / name).read_bytes() for name in names(folder) if "." in name} == good


def test_a_drawing_that_breaks_off_leaves_nothing_behind(few, tmp_path, monkeypatch):
    plain = pedestrians._images

    def breaks_off():
        yield from islice(plain(), 3)
        raise KeyboardInterrupt

    monkeypatch.setattr(pedestrians, "_images", breaks_off)
    with pytest.raises(KeyboardInterrupt):
        SyntheticPedestrians(str(tmp_path))
    assert [name for name in names(tmp_path) if not name.endswith(".lock")] == []
    (tmp_path / ".synthetic_pedestrians.drawing-killed" / "new").mkdir(parents=True)  # by a process that was killed
    monkeypatch.setattr(pedestrians, "_images", plain)
    SyntheticPedestrians(str(tmp_path), verbose=False)
    assert {name.split("/")[0] for name in names(tmp_path)} == {".synthetic_pedestrians.lock", "synthetic_pedestrians"}


def test_processes_that_race_draw_once(few, tmp_path, monkeypatch):
    plain = pedestrians._images

    def slowly():
        time.sleep(0.5)  # all of them have found nothing when the first one is done
        yield from plain()

    monkeypatch.setattr(pedestrians, "_images", slowly)
    fork = multiprocessing.get_context("fork")
    started = fork.Barrier(4)

    def race():
        started.wait()
        assert len(SyntheticPedestrians(str(tmp_path), verbose=False).gallery) == 2

    processes = [fork.Process(target=race) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * 4
    assert few.drawn.value == 1


def test_a_root_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(UserError, match=f"cannot draw the pedestrians into {tmp_path}/file/.*--root"):
        SyntheticPedestrians(str(tmp_path / "file"))


# -- how hard it is -------------------------------------------------------------------------------------------------


def nearest_pixels(dataset, standardised):
    """Retrieval by the distance of 64 × 32 images, as they are or standardised in every colour channel."""

    def embeddings(items):
        images = np.stack([np.asarray(Image.open(path).resize((32, 64)), dtype=np.float32) for path, *_ in items])
        if standardised:
            images = (images - images.mean((1, 2), keepdims=True)) / (images.std((1, 2), keepdims=True) + 1e-6)
        pids, camids = (np.array([item[place] for item in items]) for place in (1, 2))
        return Embeddings(images.reshape(len(images), -1), pids, camids)

    return evaluate(embeddings(dataset.query), embeddings(dataset.gallery), metric="euclidean")


def test_raw_pixels_do_not_find_people(dataset):
    result = nearest_pixels(dataset, standardised=False)
    assert result.num_valid_queries == 192
    assert result.mAP < 0.04
    assert result.cmc[0] < 0.06


def test_pixels_without_the_cameras_colour_find_few(dataset):
    result = nearest_pixels(dataset, standardised=True)
    assert 0.05 < result.mAP < 0.2  # chance is 0.02: it is the clothes that make the identity
    assert 0.1 < result.cmc[0] < 0.3


@pytest.mark.long
def test_a_network_trained_for_a_minute_finds_clearly_more(pedestrians_root, tmp_path):
    """torchreid's ResNet-18 from random weights on 64 × 32 images, by torchreid's own engine; measured: mAP 0.46."""
    torchreid.utils.set_random_seed(1)
    manager = torchreid.data.ImageDataManager(
        str(pedestrians_root),
        "synthetic_pedestrians",
        height=64,
        width=32,
        transforms=["random_flip", "random_crop"],
        batch_size_train=32,
        train_sampler="RandomIdentitySampler",
        workers=0,
        use_gpu=False,
    )
    model = torchreid.models.build_model("resnet18", 48, loss="triplet", pretrained=False, use_gpu=False)
    optimizer = torchreid.optim.build_optimizer(model, lr=5e-4)
    scheduler = torchreid.optim.build_lr_scheduler(optimizer, lr_scheduler="cosine", max_epoch=8)
    engine = torchreid.engine.ImageTripletEngine(manager, model, optimizer, scheduler=scheduler, use_gpu=False)
    engine.run(str(tmp_path), max_epoch=8, print_freq=1000, normalize_feature=True)
    test_sets = (manager.test_loader["synthetic_pedestrians"][part] for part in ("query", "gallery"))
    trained = with_faiss_evaluation(engine).retrieve(*test_sets, normalize_feature=True)
    pixels = nearest_pixels(SyntheticPedestrians(str(pedestrians_root), verbose=False), standardised=True)
    assert trained.mAP > 2 * pixels.mAP
    assert trained.cmc[0] > 1.4 * pixels.cmc[0]
