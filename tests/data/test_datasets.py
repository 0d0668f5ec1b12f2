"""A user's own images, and the names of datasets."""

import os
import sys
import unicodedata

import pytest
from image_files import market_names, write_images

from torchreid_autoreid.data import FolderDataset, dataset_names, register_datasets
from torchreid_autoreid.data.datasets import check_dataset
from torchreid_autoreid.errors import UserError


def load(root, **options):
    return FolderDataset(str(root), verbose=False, **options)


def labels(items):
    return sorted((path.rsplit("/", 1)[1], pid, camid) for path, pid, camid, _ in items)


def market(tmp_path):
    write_images(tmp_path / "train", ["0007_c1s1_000001_00.jpg", "0007_c2s1_000002_00.JPG", "0300_c6s3_000003_00.png"])
    write_images(tmp_path / "query", ["0009_c1s1_000001_00.jpeg"])
    write_images(tmp_path / "gallery", ["0009_c2s1_000001_00.bmp", "0000_c3s1_000001_00.jpg", "-1_c3s1_000002_00.jpg"])
    return tmp_path


def folders(tmp_path):
    write_images(tmp_path / "train", ["alice/c1_0001.jpg", "alice/2_0001.png", "Bob Smith/cam03_x.JPEG"])
    write_images(tmp_path / "query", ["0000/c1_1.jpg"])  # a name like any other
    write_images(tmp_path / "gallery", ["0000/C2s1-4.jpg", "-1/camera_12_a.bmp", "zoë/c3.jpg"])
    return tmp_path


def test_market_names(tmp_path):
    dataset = load(market(tmp_path))
    assert labels(dataset.train) == [
        ("0007_c1s1_000001_00.jpg", 0, 0),
        ("0007_c2s1_000002_00.JPG", 0, 1),
        ("0300_c6s3_000003_00.png", 1, 5),
    ]
    assert labels(dataset.query) == [("0009_c1s1_000001_00.jpeg", 9, 0)]
    assert labels(dataset.gallery) == [("0000_c3s1_000001_00.jpg", 0, 2), ("0009_c2s1_000001_00.bmp", 9, 1)]
    assert dataset.num_train_pids == 2


def test_folders_of_identities(tmp_path):
    dataset = load(folders(tmp_path))
    assert labels(dataset.train) == [("2_0001.png", 1, 2), ("c1_0001.jpg", 1, 1), ("cam03_x.JPEG", 0, 3)]
    (query,) = dataset.query
    gallery = {path.rsplit("/", 2)[1]: (pid, camid) for path, pid, camid, _ in dataset.gallery}
    assert gallery["0000"] == (query[1], 2)
    assert len({pid for pid, _ in gallery.values()}) == 3
    assert [camid for _, camid in gallery.values()] == [12, 2, 3]
    assert not {pid for pid, _ in gallery.values()} & set(FolderDataset._junk_pids)


@pytest.mark.parametrize("make", [market, folders])
def test_everything_can_be_combined_for_training(tmp_path, make):
    apart, combined = load(make(tmp_path)), load(tmp_path, combineall=True)
    new = {pid for _, pid, _, _ in apart.query + apart.gallery} - set(FolderDataset._junk_pids)
    assert {pid for _, pid, _, _ in combined.train} == set(range(apart.num_train_pids + len(new)))


def test_junk_in_train_is_left_out_and_counted_once(tmp_path, caplog):
    write_images(market(tmp_path) / "train", ["-1_c1s1_000001_00.jpg", "0000_c1s1_000001_00.jpg"])
    for mode in ("train", "query", "gallery"):
        assert len(load(tmp_path, mode=mode).train) == 3
    assert [record.message for record in caplog.records] == [
        f"left out 2 images of identities -1 and 0 in {tmp_path / 'train'}"
    ]


def test_hidden_files_and_other_files_are_passed_over(tmp_path):
    market(tmp_path)
    (tmp_path / "train" / "._0007_c1s1_000001_00.jpg").write_bytes(b"what a Mac leaves")
    (tmp_path / "train" / "Thumbs.db").write_bytes(b"what Windows leaves")
    assert len(load(tmp_path).train) == 3


def test_what_is_left_out_is_told_in_one_warning_with_counts_and_reasons(tmp_path, caplog):
    write_images(market(tmp_path) / "gallery", ["0009_c2s1_000002_00.gif", "0009_c2s1_000003_00.gif"])
    write_images(tmp_path / "train", ["-1_c1s1_000001_00.jpg"])
    (tmp_path / "train" / "Thumbs.db").write_bytes(b"what Windows leaves")
    (tmp_path / "query" / "0009_c1s1_000007_00.jpg").symlink_to("/nowhere/a.jpg")
    (tmp_path / "query" / "0009_c1s1_000008_00.jpg").symlink_to("0009_c1s1_000008_00.jpg")  # a circle
    os.mkfifo(tmp_path / "gallery" / "0009_c1s1_000008_00.jpg")
    (tmp_path / "gallery" / "0010").mkdir()
    for mode in ("train", "query", "gallery"):
        load(tmp_path, mode=mode)
    (message,) = [record.message for record in caplog.records]
    for text in (
        f"1 images of identities -1 and 0 in {tmp_path / 'train'}",
        f"2 dead links in {tmp_path / 'query'} (such as 0009_c1s1_000007_00.jpg)",
        f"2 .gif files in {tmp_path / 'gallery'} (such as 0009_c2s1_000002_00.gif)",
        f"1 empty folders in {tmp_path / 'gallery'} (such as 0010)",
        f"1 pipes or devices in {tmp_path / 'gallery'} (such as 0009_c1s1_000008_00.jpg)",
    ):
        assert text in message
    assert "Thumbs" not in message


@pytest.mark.parametrize("ending", [".webp", ".tif", ".TIFF", ".ppm"])
def test_pictures_of_other_endings_are_read(tmp_path, caplog, ending):
    write_images(market(tmp_path) / "gallery", [f"0009_c2s1_000009_00{ending}"])
    assert len(load(tmp_path).gallery) == 3
    assert not caplog.records


def test_a_folder_of_dead_links_says_so(tmp_path):
    market(tmp_path)
    for path in (tmp_path / "query").iterdir():
        path.unlink()
        path.symlink_to("/nowhere/a.jpg")
    with pytest.raises(UserError, match=r"query holds no images .*, but 1 dead links in .*\(such as 0009_c1s1_000001_"):
        load(tmp_path)


def test_names_in_the_folder_of_their_identity(tmp_path):
    """The names of Market-1501, in a folder an identity."""
    write_images(tmp_path / "train", ["0007/0007_c1s1_000001_00.jpg", "0007/0007_c2s1_000002_00.jpg"])
    write_images(tmp_path / "query", ["9/0009_c1s1_000001_00.jpg"])
    write_images(tmp_path / "gallery", ["0009/0009_c2s1_000001_00.jpg", "0000/0000_c3s1_1.jpg", "-1/-1_c3s1_1.jpg"])
    dataset = load(tmp_path)
    assert labels(dataset.train) == [("0007_c1s1_000001_00.jpg", 0, 0), ("0007_c2s1_000002_00.jpg", 0, 1)]
    assert labels(dataset.query) == [("0009_c1s1_000001_00.jpg", 9, 0)]
    assert labels(dataset.gallery) == [("0000_c3s1_1.jpg", 0, 2), ("0009_c2s1_000001_00.jpg", 9, 1)]
    write_images(tmp_path / "gallery", ["0010/0009_c2s1_000002_00.jpg"])
    with pytest.raises(UserError, match=r"identity and camera from 1 of 4 names, such as .*0010/0009_c2s1"):
        load(tmp_path)


def test_identities_and_cameras_of_more_digits_than_a_tensor_holds(tmp_path):
    big = 10**20
    write_images(tmp_path / "train", [f"{big + pid}_c{big + cam}_1.jpg" for pid in (4, 3) for cam in (1, 2)])
    write_images(tmp_path / "query", [f"{big + 5}_c{big + 1}_1.jpg"])
    write_images(tmp_path / "gallery", [f"{big + 5}_c{big + 2}_1.jpg", "0000_c1s1_1.jpg", "-1_c1s1_1.jpg"])
    dataset = load(tmp_path)
    assert [pid for _, pid, _, _ in dataset.train] == [0, 0, 1, 1]
    assert [cam for _, _, cam, _ in dataset.train] in ([1, 2] * 2, [2, 3] * 2)
    (query,), (distractor, match) = dataset.query, dataset.gallery
    assert (distractor[1], distractor[2]) == (0, 0)
    assert match[1] == query[1] > 0
    assert match[2] != query[2]
    assert max(match[1:]) < 1 << 32


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_a_name_is_one_person_in_both_forms_of_unicode(tmp_path, form):
    other = "NFD" if form == "NFC" else "NFC"
    write_images(tmp_path / "train", ["bob/c1_1.jpg"])
    write_images(tmp_path / "query", [unicodedata.normalize(form, "José") + "/c1_1.jpg"])
    write_images(tmp_path / "gallery", [unicodedata.normalize(other, "José") + "/c2_1.jpg"])
    dataset = load(tmp_path)
    assert dataset.query[0][1] == dataset.gallery[0][1]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_names_that_are_no_utf8(tmp_path):
    folders(tmp_path)
    for part in ("query", "gallery"):
        os.rename(tmp_path / part / "0000", os.fsencode(tmp_path / part) + b"/\xd5\xc5")
    dataset = load(tmp_path)
    assert dataset.query[0][1] in {pid for _, pid, _, _ in dataset.gallery}


@pytest.mark.parametrize("folder", ["alice", "0003"])
def test_a_camera_in_a_name_that_is_of_another_identity_than_its_folder_is_not_passed_over(tmp_path, folder):
    for part in ("train", "query", "gallery"):
        write_images(tmp_path / part, [f"{folder}/0002_c1s1_1.jpg", f"{folder}/0002_c2s1_2.jpg"])
    with pytest.raises(UserError, match=f"6 of 6 names .* {tmp_path}/train/{folder}/0002_c1s1_1.jpg, whose folder is"):
        load(tmp_path)


def test_names_without_cameras_are_read_without_them(tmp_path, caplog):
    for part, names in {
        "train": ["alice/IMG_0001.jpg", "alice/0002.jpg", "bob/x.jpg"],
        "query": ["carl/1.jpg"], "gallery": ["carl/a b.jpg"],
    }.items():  # fmt: skip
        write_images(tmp_path / part, names)
    dataset = load(tmp_path)
    assert [(pid, camid) for _, pid, camid, _ in dataset.train] == [(0, 0), (0, 0), (1, 0)]
    assert [(pid, camid) for _, pid, camid, _ in dataset.query + dataset.gallery] == [(3, 0), (3, 0)]
    assert "the 5 images are read without cameras" in caplog.text


@pytest.mark.parametrize("name", ["0001.jpg", "7.png", "000451.JPG"])
def test_a_number_alone_is_no_camera(tmp_path, name):
    write_images(folders(tmp_path) / "train", [f"alice/{name}"])
    with pytest.raises(UserError, match=f"cannot read identity and camera from 1 of 4 names, such as .*alice/{name}"):
        load(tmp_path)


def test_as_many_cameras_as_images_are_suspicious(tmp_path, caplog):
    write_images(folders(tmp_path) / "train", [f"alice/{number}_x.jpg" for number in range(80)])
    load(tmp_path)
    assert "give 80 cameras for 87 images; if they begin with the number of the image" in caplog.text


def test_a_person_in_all_parts_is_one_class_when_they_are_combined(tmp_path):
    write_images(tmp_path / "train", ["0003_c1s1_1.jpg", "0009_c1s1_1.jpg"])
    write_images(tmp_path / "query", ["0009_c2s1_1.jpg", "0005_c2s1_1.jpg"])  # 5 is in the query alone
    write_images(tmp_path / "gallery", ["0009_c3s1_1.jpg", "0004_c3s1_1.jpg", "0000_c3s1_1.jpg"])
    dataset = load(tmp_path, combineall=True)
    classes = {}
    for path, pid, _, _ in dataset.train:
        classes.setdefault(path.rsplit("/", 1)[1][:4], set()).add(pid)
    assert classes == {"0003": {0}, "0009": {1}, "0004": {2}, "0005": {3}}
    assert dataset.num_train_pids == 4
    assert len(dataset.query) == 2


def broken(tmp_path, part, name):
    write_images(market(tmp_path) / part, [name])
    return str(tmp_path / part / name)


@pytest.mark.parametrize("name", ["alice.jpg", "0007.jpg", "c1_0007.jpg", "-2_c1s1_000001_00.jpg", "0007_cs1.jpg"])
@pytest.mark.parametrize("part", ["train", "gallery"])
def test_names_that_cannot_be_read_are_counted_and_one_is_named(tmp_path, part, name):
    path = broken(tmp_path, part, name)
    with pytest.raises(UserError) as caught:
        load(tmp_path)
    assert f"from 1 of 4 names, such as {path};" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["front_1.jpg", "0002_c1s1_000451_03.jpg"])
def test_names_in_folders_must_begin_with_the_camera(tmp_path, name):
    write_images(folders(tmp_path), [f"train/alice/{name}"])
    with pytest.raises(UserError, match=f"1 of 4 names, such as .*train/alice/{name}"):
        load(tmp_path)


def test_one_way_of_naming_only(tmp_path):
    path = broken(tmp_path, "train", "alice/c1_0001.jpg")
    with pytest.raises(UserError, match="mixes 7 images directly in") as caught:
        load(tmp_path)
    assert f"with 1 in folders of an identity, such as {path}; use one way" in str(caught.value)


def test_deeper_folders_are_refused(tmp_path):
    write_images(folders(tmp_path), ["train/alice/monday/c1_0001.jpg"])
    with pytest.raises(UserError, match="train/alice/monday is a folder in the folder of an identity"):
        load(tmp_path)


@pytest.mark.parametrize("part", ["train", "query", "gallery"])
def test_a_missing_or_empty_part_is_named(tmp_path, part):
    market(tmp_path)
    for path in (tmp_path / part).iterdir():
        path.unlink()
    with pytest.raises(UserError, match=f"{tmp_path / part} holds no images"):
        load(tmp_path)
    (tmp_path / part).rmdir()
    with pytest.raises(
        UserError, match=f"{tmp_path / part} does not exist.*--root.*--config-file autoreid_search.yaml"
    ):
        load(tmp_path)


def test_junk_alone_is_no_dataset(tmp_path):
    for part in ("train", "query", "gallery"):
        write_images(tmp_path / part, ["-1_c1s1_000001_00.jpg"])
    with pytest.raises(UserError, match="train holds junk and distractors only"):
        load(tmp_path)
    write_images(tmp_path / "train", market_names([1]))
    with pytest.raises(UserError, match="query holds junk"):
        load(tmp_path)


def test_registration_is_idempotent():
    before = dataset_names()
    register_datasets()
    assert dataset_names() == before
    assert {"folder", "synthetic_pedestrians", "market1501"} <= set(before)


def test_an_unknown_dataset_names_its_neighbours_and_all():
    with pytest.raises(UserError) as caught:
        check_dataset("market1502", "")
    message = str(caught.value)
    assert "unknown dataset 'market1502'; did you mean market1501" in message
    for name in dataset_names():
        assert name in message


@pytest.mark.parametrize("name", sorted(set(dataset_names()) - {"folder", "synthetic_pedestrians"}))
def test_a_missing_dataset_says_where_it_belongs(tmp_path, name):
    with pytest.raises(
        UserError, match=f"the dataset {name} is expected in {tmp_path}/.*, which does not exist"
    ) as caught:
        check_dataset(name, str(tmp_path))
    assert "autoreid search --config-file autoreid_search.yaml" in str(caught.value)
    assert not list(tmp_path.iterdir())
