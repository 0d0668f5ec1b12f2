"""The data manager of a search: halves of torchreid's training set, and one line for every mistake."""

import glob
import logging
import random
import shutil
import warnings

import numpy as np
import pytest
import torch
import torchreid
from image_files import market_names, write_folder_dataset, write_images
from PIL import Image

from torchreid_autoreid.data import SearchDataManager, TrainDataManager, dataset_names
from torchreid_autoreid.data.manager import ReidDataManager
from torchreid_autoreid.errors import UserError

OPTIONS = {"height": 24, "width": 12, "batch_size_train": 8, "num_instances": 2, "workers": 0, "use_gpu": False}


def make(root, **options):
    return SearchDataManager(str(root), **({"sources": "folder"} | OPTIONS | options))


def half(loader):
    return {path: (pid, camid, dsetid) for path, pid, camid, dsetid in loader.images.data}


@pytest.fixture(scope="module")
def theirs(images_root):
    """torchreid's own manager."""
    return torchreid.data.ImageDataManager(str(images_root), sources="folder", workers=0, use_gpu=False)


@pytest.mark.parametrize("split", ["image", "identity"])
def test_the_halves_are_torchreids_training_set(images_root, theirs, split):
    manager = make(images_root, split=split)
    w, alpha = half(manager.train_loader), half(manager.alpha_loader)
    assert half(manager.alpha_substitute_loader) == w
    assert not set(w) & set(alpha)
    ours, expected = w | alpha, {path: rest for path, *rest in theirs.train_loader.dataset.train}
    assert set(ours) == set(expected)
    # The same people and cameras, whatever their numbers.
    assert len({(ours[path][0], expected[path][0]) for path in ours}) == 13
    assert all(ours[path][1:] == tuple(expected[path][1:]) for path in ours)
    assert {pid for pid, _, _ in ours.values()} == set(range(13))
    assert manager.num_train_pids == theirs.num_train_pids == 13
    shared = {pid for pid, _, _ in w.values()} & {pid for pid, _, _ in alpha.values()}
    assert len(shared) == (12 if split == "image" else 0)


def test_the_split_is_counted_in_the_log(images_root, caplog):
    with caplog.at_level(logging.INFO, "torchreid_autoreid"):
        summary = make(images_root).split_summary
    assert summary["unsplit_identities"] == 1
    assert summary["w_identities"] == 13
    assert summary["alpha_identities"] == 12
    assert summary["w_images"] + summary["alpha_images"] == sum(2 + i % 8 for i in range(12)) + 1
    assert "1 identities have a single image and stay in the w half" in caplog.text
    assert make(images_root, split="identity").split_summary["unsplit_identities"] == 0


@pytest.mark.parametrize("split", ["image", "identity"])
def test_the_seed_alone_decides(images_root, split):
    first = make(images_root, split=split, seed=4)
    random.seed(9), np.random.seed(9), torch.manual_seed(9)
    again, other = make(images_root, split=split, seed=4), make(images_root, split=split, seed=5)
    for name in ("train_loader", "alpha_loader", "alpha_substitute_loader"):
        one, two = (next(iter(getattr(manager, name))) for manager in (first, again))
        assert one["impath"] == two["impath"]
        assert torch.equal(one["img"], two["img"])
        assert torch.equal(one["pid"], two["pid"])
    assert half(first.alpha_loader) != half(other.alpha_loader)
    assert [b["impath"] for b in first.train_loader] != [b["impath"] for b in first.alpha_substitute_loader]


def test_the_order_of_a_folders_listing_does_not_matter(tmp_path, monkeypatch):
    """torchreid numbers the identities of Market-1501 as the file system happens to list them."""
    for part, names in (("bounding_box_train", market_names([4] * 9, first=30)), ("query", market_names([1]))):
        write_images(tmp_path / "market1501" / "Market-1501-v15.09.15" / part, names)
    write_images(tmp_path / "market1501" / "Market-1501-v15.09.15" / "bounding_box_test", market_names([2]))
    plain = glob.glob
    managers = []
    for seed in range(2):
        monkeypatch.setattr(
            glob, "glob", lambda name, seed=seed: random.Random(seed).sample(plain(name), len(plain(name)))
        )
        managers.append(make(tmp_path, sources="market1501"))
    one, other = managers
    assert half(one.train_loader) == half(other.train_loader)
    assert half(one.alpha_loader) == half(other.alpha_loader)


def test_held_out_retrieval_is_drawn_from_the_alpha_half(images_root):
    manager = make(images_root, transforms=["random_flip", "random_erase"], batch_size_test=5)
    found = {}
    for part, loader in manager.held_out_loaders.items():
        batches, again = list(loader), list(loader)
        assert all(torch.equal(one["img"], two["img"]) for one, two in zip(batches, again, strict=True))
        found[part] = [path for batch in batches for path in batch["impath"]]
        assert len(loader) == len(batches) == -(-len(found[part]) // 5)
    assert sorted(found["query"] + found["gallery"]) == sorted(half(manager.alpha_loader))
    assert manager.split_summary["held_out_queries"] == len(found["query"])


def test_sources_can_be_combined(images_root, pedestrians_root, tmp_path):
    (tmp_path / "synthetic_pedestrians").symlink_to(pedestrians_root / "synthetic_pedestrians")
    for part in ("train", "query", "gallery"):
        (tmp_path / part).symlink_to(images_root / part)
    manager = make(tmp_path, sources=["folder", "synthetic_pedestrians"], targets=["folder"])
    assert manager.num_train_pids == 13 + 48
    labels = half(manager.train_loader) | half(manager.alpha_loader)
    assert {pid for pid, _, _ in labels.values()} == set(range(61))
    assert {dsetid for _, _, dsetid in labels.values()} == {0, 1}
    datasets = {}
    for pid, _, dsetid in labels.values():
        assert datasets.setdefault(pid, dsetid) == dsetid
    assert set(manager.test_loader) == {"folder"}


def test_torchreids_other_options_pass_through(images_root):
    manager = make(images_root, combineall=True, targets=None, norm_mean=[0.0] * 3, norm_std=[1.0] * 3, height=30)
    assert manager.num_train_pids == 13 + 1  # the one of query and gallery
    batch = next(iter(manager.train_loader))
    assert batch["img"].shape == (8, 3, 30, 12)
    assert batch["img"].min() >= 0.0
    assert manager.targets == ["folder"]


def test_test_sets_are_torchreids(images_root, theirs):
    manager = make(images_root, height=256, width=128)
    for part in ("query", "gallery"):
        one, two = (next(iter(m.test_loader["folder"][part])) for m in (manager, theirs))
        assert one["impath"] == two["impath"]
        assert torch.equal(one["img"], two["img"])


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", [SearchDataManager, ReidDataManager])
def test_a_torn_test_image_is_named(tmp_path, kind, workers):
    write_folder_dataset(tmp_path, [4] * 8)
    victim = tmp_path / "gallery" / "0900_c2s1_000000_00.jpg"
    victim.write_bytes(victim.read_bytes()[:200])
    manager = kind(str(tmp_path), "folder", **OPTIONS | {"workers": workers})
    with pytest.raises(UserError, match=f"cannot read the image {victim} "):
        list(manager.test_loader["folder"]["gallery"])


@pytest.mark.parametrize("name", ["my [new] data", "a*b", "[", "plain"])
def test_a_root_with_the_letters_of_a_pattern(tmp_path, name):
    folder = tmp_path / name / "market1501" / "Market-1501-v15.09.15"
    for part, names in (("bounding_box_train", market_names([4] * 8)), ("query", market_names([1]))):
        write_images(folder / part, names)
    write_images(folder / "bounding_box_test", ["0001_c2s1_000001_00.jpg"])
    plain = glob.glob
    assert make(tmp_path / name, sources="market1501").num_train_pids == 8
    assert glob.glob is plain


def test_the_digest_of_the_images_is_that_of_names_identities_and_cameras(tmp_path):
    first, moved = tmp_path / "first", tmp_path / "elsewhere" / "moved"
    write_folder_dataset(first, [4] * 8)
    shutil.copytree(first, moved)
    described = make(first).trained_images
    assert described.startswith("32 images of 8 identities by 2 cameras, digest ")
    assert make(moved).trained_images == described == train(moved).trained_images
    assert make(moved, split="identity", seed=5, batch_size_train=4).trained_images == described
    tested = make(first).tested_images()
    victim = moved / "train" / "0008_c1s1_000000_00.jpg"
    for name in ("0008_c3s1_000000_00.jpg", "0007_c1s1_000009_00.jpg", "0008_c1s1_000001_00.jpg"):
        victim = victim.rename(victim.with_name(name))
        assert make(moved).trained_images != described
    assert make(moved).tested_images() == tested
    (moved / "query" / "0900_c1s1_000000_00.jpg").rename(moved / "query" / "0900_c3s1_000000_00.jpg")
    assert make(moved).tested_images() != tested


def train(root, **options):
    return TrainDataManager(str(root), "folder", **({"batch_size_train": 8, "workers": 0, "use_gpu": False} | options))


def test_a_test_set_without_a_true_match_is_told_before_a_training(tmp_path):
    write_folder_dataset(tmp_path, [4] * 8)
    shown = tmp_path / "gallery" / "0900_c2s1_000000_00.jpg"
    alone = shown.rename(tmp_path / "gallery" / "0900_c1s1_000001_00.jpg")
    Image.new("RGB", (16, 32)).save(tmp_path / "gallery" / "0901_c2s1_000000_00.jpg")
    for options in ({}, {"held_out": 0.5}):  # the test after the last epoch is of the target in both cases
        with pytest.raises(UserError, match=r"none of the 1 queries of folder has a true match .*\(2 cameras in all\)"):
            train(tmp_path, **options)
    make(tmp_path)  # a search tests on its own half
    (tmp_path / "gallery" / "0901_c2s1_000000_00.jpg").unlink()
    train(tmp_path)  # by one camera in all, no image is left out
    alone.rename(tmp_path / "gallery" / "0902_c1s1_000001_00.jpg")
    with pytest.raises(UserError, match="none of the 1 queries of folder has a true match in its gallery"):
        train(tmp_path)


def test_messages_of_a_training_speak_of_its_own_keys(tmp_path):
    write_folder_dataset(tmp_path, [4] * 8, cameras=1)
    for path in sorted((tmp_path / "train").iterdir())[:4]:  # one person alone is seen by another camera
        path.rename(path.with_name(path.name.replace("_c1", "_c2")))
    with pytest.raises(
        UserError, match=r"no identity of those held out is seen by two cameras.*recipe\.held_out"
    ) as caught:
        train(tmp_path, held_out=0.9)
    assert "search." not in str(caught.value)
    write_folder_dataset(tmp_path, [4] * 8)
    with pytest.raises(UserError, match="the training set has 4 identities") as caught:
        train(tmp_path, train_sampler="RandomIdentitySampler", num_instances=2, batch_size_train=10, held_out=0.5)
    assert "search." not in str(caught.value)


def test_one_identity_cannot_be_held_out(tmp_path):
    write_folder_dataset(tmp_path, [4])
    with pytest.raises(UserError, match=r"the training set has 1 identity, .*give images of more people"):
        train(tmp_path, train_sampler="RandomIdentitySampler", num_instances=2, batch_size_train=4, held_out=0.5)


def test_more_workers_than_cores_is_no_warning(images_root, monkeypatch):
    """One line on stderr is for a mistake."""
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0})
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="This DataLoader will create")
        manager = ReidDataManager(str(images_root), "folder", height=24, width=12, workers=2, use_gpu=False)
        manager.test_loader["folder"]["gallery"].batch_size = 1
        assert len(list(manager.test_loader["folder"]["gallery"])) == 2


def test_random_patch_warns(images_root, caplog):
    make(images_root, transforms=["Random_Patch"])
    assert "differ after a resume" in caplog.text


MISTAKES = {
    "split": ({"split": "camera"}, ["'camera'", "image or identity"]),
    "fraction": ({"alpha_fraction": 1.0}, ["alpha_fraction", "1.0"]),
    "no fraction": ({"alpha_fraction": float("nan")}, ["alpha_fraction", "nan"]),
    "two augmentations": ({"k_tfm": 2}, ["k_tfm", "2"]),
    "no images": ({"batch_size_train": 0}, ["at least 1", "0"]),
    "no instances": ({"num_instances": 0}, ["at least 1", "num_instances"]),
    "not divisible": ({"batch_size_train": 9}, ["batch of 9", "2 images", "multiple"]),
    "too few identities": (
        {"batch_size_train": 26, "sources": "folder"},
        ["the alpha half has 12 identities", "26 with 2 images each needs 13", "at most 24"],
    ),
    "too few in a half": (
        {"batch_size_train": 14, "split": "identity"},
        ["the alpha half has 6 identities", "at most 12"],
    ),
    "unknown dataset": ({"sources": "folders"}, ["'folders'", "did you mean folder", "market1501"]),
    "unknown target": ({"targets": ["folder", "duke"]}, ["'duke'", "dukemtmcreid"]),
    "no source": ({"sources": []}, ["--sources"]),
    "unknown sampler": ({"train_sampler": "Random"}, ["Random cannot draw batches of 8"]),
    "many cameras": (
        {"train_sampler": "RandomDomainSampler", "num_cams": 8},
        ["RandomDomainSampler", "train.batch_size"],
    ),
    "overlap": ({"load_train_targets": True}, ["must not have overlap"]),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_get_one_line(images_root, name):
    options, words = MISTAKES[name]
    with pytest.raises(UserError) as caught:
        make(images_root, **options)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


@pytest.mark.parametrize("name", sorted(set(dataset_names()) - {"synthetic_pedestrians"}))
def test_a_missing_dataset_is_never_downloaded(tmp_path, monkeypatch, name):
    def download(*_):
        raise AssertionError("a download was tried")

    monkeypatch.setattr(torchreid.data.Dataset, "download_dataset", download)
    with pytest.raises(UserError, match=r"expected in .*does not exist.*--config-file autoreid_search.yaml"):
        make(tmp_path, sources=name)
    assert not list(tmp_path.iterdir())


@pytest.mark.filterwarnings("ignore:The current data structure is deprecated:UserWarning")
@pytest.mark.parametrize("name", sorted(set(dataset_names()) - {"synthetic_pedestrians", "folder"}))
def test_an_empty_dataset_gets_one_line(tmp_path, name):
    dataset = vars(torchreid.data.datasets)["__image_datasets"][name]
    (tmp_path / dataset.dataset_dir).mkdir()
    with pytest.raises(UserError, match=f"cannot load {name} from {tmp_path}: ") as caught:
        make(tmp_path, sources=name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("bad", ["holiday.jpg", "9999_c1s1_000001_00.jpg"])
def test_a_name_that_torchreid_cannot_read_is_named(tmp_path, bad):
    folder = tmp_path / "market1501" / "Market-1501-v15.09.15"
    for part in ("bounding_box_train", "query", "bounding_box_test"):
        write_images(folder / part, market_names([4] * 5))
    write_images(folder / "query", [bad])
    with pytest.raises(UserError, match=f"cannot be read from the name {folder / 'query' / bad};"):
        make(tmp_path, sources="market1501")


def test_a_dataset_of_ones_own_looks_for_its_own_data(tmp_path):
    class Mine(torchreid.data.ImageDataset):
        dataset_dir = "nowhere"

        def __init__(self, root="", **options):
            items = [(str(tmp_path / name), int(name[:4]) - 1, int(name[6]) - 1) for name in market_names([4] * 8)]
            super().__init__(items, items, items, **options)

    table = vars(torchreid.data.datasets)["__image_datasets"]
    write_images(tmp_path, market_names([4] * 8))
    torchreid.data.register_image_dataset("mine", Mine)
    try:
        assert make(tmp_path / "other", sources="mine").num_train_pids == 8
    finally:
        del table["mine"]


def test_of_one_camera_every_identity_with_two_images_has_a_query(tmp_path):
    write_folder_dataset(tmp_path, [4] * 8, cameras=1)
    held_out = make(tmp_path).held_out_loaders
    query, gallery = (held_out[part].dataset.data for part in ("query", "gallery"))
    assert sorted(pid for _, pid, _, _ in query) == list(range(8))
    assert {pid for _, pid, _, _ in gallery} == set(range(8))


def test_single_images_leave_no_alpha_half(tmp_path):
    write_folder_dataset(tmp_path, [1] * 8)
    with pytest.raises(UserError, match="the alpha half has no images"):
        make(tmp_path)
