"""Pictures of ranked results: names, and what they show."""

import os
import sys
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from PIL import Image

from torchreid_autoreid.engine.ranked import draw_ranked_results


def items(folder, names):
    """An image of its own grey for each name."""
    found = []
    for number, (name, pid, camid) in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 32), (20 + 30 * number,) * 3).save(path)
        found.append((str(path), pid, camid, 0))
    return found


def draw(folder, queries, gallery, topk=2):
    nearest = np.tile(np.arange(len(gallery)), (len(queries), 1))
    result = SimpleNamespace(topk_indices=nearest)
    count = draw_ranked_results(result, (queries, gallery), 16, 32, folder / "out", topk)
    assert count == len(list((folder / "out").iterdir()))
    return sorted(path.name for path in (folder / "out").iterdir())


def test_queries_of_one_name_get_pictures_of_their_own(tmp_path):
    queries = items(tmp_path / "query", [(f"{who}/c1_1.png", pid, 1) for pid, who in enumerate(("alice", "bob"), 1)])
    gallery = items(tmp_path / "gallery", [("alice/c2_1.png", 1, 2)])
    assert draw(tmp_path, queries, gallery) == ["alice_c1_1.jpg", "bob_c1_1.jpg"]


def test_the_same_name_in_the_same_folder_is_numbered(tmp_path):
    queries = items(tmp_path / "query", [("a.png", 1, 1), ("a.bmp", 2, 1)])
    assert draw(tmp_path, queries, queries) == ["000000_a.jpg", "000001_a.jpg"]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_names_that_are_no_utf8(tmp_path):
    (query,) = items(tmp_path / "query", [("a.png", 1, 1)])
    odd = os.fsdecode(os.fsencode(tmp_path / "query") + b"/\xd5\xc5.png")
    os.rename(query[0], odd)
    assert draw(tmp_path, [(odd, 1, 1, 0)], [(odd, 1, 2, 0)]) == [os.fsdecode(b"\xd5\xc5.jpg")]


def test_the_rotation_is_that_of_training_and_the_frame_tells_the_identity(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = np.zeros((16, 32, 3), np.uint8)
    stored[:, :16] = 255  # the top, when turned
    for name in ("query.png", "same.png", "other.png", "own.png"):
        Image.fromarray(stored).save(tmp_path / name, exif=exif)
    gallery = [(str(tmp_path / name), pid, cam, 0) for name, pid, cam in
               (("own.png", 1, 1), ("same.png", 1, 2), ("other.png", 2, 2))]  # fmt: skip
    assert draw(tmp_path, [(str(tmp_path / "query.png"), 1, 1, 0)], gallery) == ["query.jpg"]
    picture = cv2.imread(str(tmp_path / "out" / "query.jpg")).astype(int)
    assert picture.shape == (32, 3 * 16 + 2 * 10 + 90, 3)
    tiles = [picture[:, :16], picture[:, 116:132], picture[:, 142:158]]
    for tile in tiles:
        assert tile[8:12, 7:9].mean() > 200
        assert tile[20:24, 7:9].mean() < 50
    green, red = tiles[1][:, 0].mean(axis=0), tiles[2][:, 0].mean(axis=0)  # the query's own image is not among them
    assert green[1] > 200 > 60 > green[2]
    assert red[2] > 200 > 60 > red[1]
