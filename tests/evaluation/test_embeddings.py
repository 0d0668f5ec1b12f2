"""Bad input is told in one clear line; good input is kept as it is."""

import mmap
from pathlib import Path

import numpy as np
import pytest
import torch

from torchreid_autoreid.errors import UserError
from torchreid_autoreid.evaluation import Embeddings, evaluate, load_embeddings, save_embeddings


def random_embeddings(n, d=4, seed=0):
    random = np.random.default_rng(seed)
    return Embeddings(random.normal(size=(n, d)).astype(np.float32), np.arange(n), np.zeros(n, int))


@pytest.mark.parametrize(
    ("features", "pids", "camids", "words"),
    [
        (np.ones(3), [0, 1, 2], [0, 0, 0], r"shape \(3,\)"),
        (np.ones((0, 3)), [], [], "at least one vector"),
        (np.array([["a"]]), [0], [0], "real numbers"),
        ([[1, 2], [3]], [0, 1], [0, 0], "not a matrix"),
        (np.full((1, 2), np.inf), [0], [0], "NaN or infinity in 1 of 1 rows: 0;"),
        (np.ones((2, 3)), [0], [0, 0], r"pids have shape \(1,\) for 2 vectors"),
        (np.ones((2, 3)), [0, 1], [0], r"camids have shape \(1,\)"),
        (np.ones((2, 3)), [0.5, 1], [0, 0], r"pids hold 0\.5 in row 0; give whole numbers"),
        (np.ones((2, 3)), [0, 1], [0, np.nan], "camids hold nan in row 1"),
        (np.ones((2, 3)), [2.0**60, 1], [0, 0], "pids hold 1.15"),
        (np.ones((2, 3)), np.array([2**63, 1], np.uint64), [0, 0], "pids hold 9223372036854775808 in row 0"),
    ],
)
def test_malformed_arrays_are_named(features, pids, camids, words):
    with pytest.raises(UserError, match=words):
        Embeddings(features, pids, camids)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_rows_that_are_not_finite_are_named(value):
    features = np.ones((90000, 2), dtype=np.float16)
    features[[3, 70000], 1] = value
    with pytest.raises(UserError, match="in 2 of 90000 rows: 3, 70000;") as caught:
        Embeddings(features, np.zeros(90000, int), np.zeros(90000, int))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("features", "kind"),
    [
        (torch.ones(2, 3, requires_grad=True), np.float32),
        (torch.ones(2, 3, dtype=torch.bfloat16), np.float32),
        (torch.ones(2, 3, dtype=torch.float64), np.float64),
        (np.ones((2, 3)), np.float64),
        (np.ones((2, 3), ">f4"), np.float32),
        (np.ones((2, 3), np.float16), np.float16),
        (np.ones((2, 3), np.uint8), np.float32),
        (np.ones((2, 3), np.int32), np.float64),
        ([[1, 2, 3], [4, 5, 6]], np.float64),
    ],
)
def test_features_keep_a_type_that_holds_their_values(features, kind):
    assert Embeddings(features, torch.tensor([0, 1]), [0, 0]).features.dtype == kind


def test_whole_numbers_are_labels_whatever_their_type():
    """torchreid counts with floats where a caller does."""
    embeddings = Embeddings(np.ones((2, 3)), np.array([1.0, -7.0]), np.array([3, 4], np.uint64))
    assert (embeddings.pids.tolist(), embeddings.camids.tolist()) == ([1, -7], [3, 4])
    assert embeddings.pids.dtype == embeddings.camids.dtype == np.int64


def test_a_memory_mapped_file_stays_on_disk(tmp_path):
    np.save(tmp_path / "x.npy", np.ones((5, 2), np.float32))
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    assert Embeddings(mapped, np.arange(5), np.arange(5)).features is mapped


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="looks at Linux's memory map")
def test_what_was_read_of_a_file_is_let_go(tmp_path):
    """As many kB of the file stay in memory after an evaluation as are read at once, not all of it."""
    query, gallery = random_embeddings(20, d=256), random_embeddings(20000, d=256)
    np.save(tmp_path / "x.npy", gallery.features)
    mapped = Embeddings(np.load(tmp_path / "x.npy", mmap_mode="r"), gallery.pids, gallery.camids + 1)
    evaluate(query, mapped)
    lines = Path("/proc/self/smaps").read_text().splitlines()
    start = next(i for i, line in enumerate(lines) if line.endswith("x.npy"))
    resident = next(int(line.split()[1]) for line in lines[start:] if line.startswith("Rss:"))
    assert resident < 1000


@pytest.mark.parametrize("through", [lambda x: x, lambda x: x[:], lambda x: np.broadcast_to(x, x.shape)])
@pytest.mark.parametrize("make", ["memmap", "mmap"])
def test_changes_to_a_copy_on_write_file_are_kept(tmp_path, through, make):
    """Also where the array that was given is read-only itself."""
    np.save(tmp_path / "x.npy", np.ones((5000, 256), np.float32))
    if make == "memmap":
        mapped = np.load(tmp_path / "x.npy", mmap_mode="c")
    else:
        with open(tmp_path / "x.npy", "rb") as file:
            private = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        mapped = np.frombuffer(private, np.float32, offset=128).reshape(5000, 256)
    mapped[3] = 7
    seen = through(mapped)
    seen.flags.writeable = False
    embeddings = Embeddings(seen, np.arange(5000), np.zeros(5000, int))
    evaluate(Embeddings(seen[:9], np.arange(9), np.ones(9, int)), embeddings)
    assert (mapped[3] == 7).all()
    assert (embeddings.features[3] == 7).all()


def test_npz_round_trip(tmp_path):
    query, gallery = random_embeddings(3), random_embeddings(5, seed=1)
    save_embeddings(tmp_path / "a.npz", query, gallery)
    for before, after in zip((query, gallery), load_embeddings(tmp_path / "a.npz"), strict=True):
        for name in ("features", "pids", "camids"):
            np.testing.assert_array_equal(getattr(before, name), getattr(after, name))


def arrays():
    part = {"features": np.ones((2, 3), np.float32), "pids": np.arange(2), "camids": np.arange(2)}
    return {f"{side}_{key}": value for side in ("query", "gallery") for key, value in part.items()}


def test_a_missing_key_is_named(tmp_path):
    content = arrays()
    del content["gallery_camids"]
    np.savez(tmp_path / "a.npz", **content)
    with pytest.raises(UserError, match="lacks gallery_camids"):
        load_embeddings(tmp_path / "a.npz")


class Bomb:
    exploded = False

    def __reduce__(self):
        return setattr, (Bomb, "exploded", True)


def test_pickled_objects_are_refused_and_not_run(tmp_path):
    np.savez(tmp_path / "a.npz", **{**arrays(), "query_pids": np.array([Bomb()], dtype=object)})
    with pytest.raises(UserError, match=r"query_pids .* pickled"):
        load_embeddings(tmp_path / "a.npz")
    assert not Bomb.exploded


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 torn", b"no archive at all"])
def test_other_files_are_refused(tmp_path, content):
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(UserError, match="not an npz file"):
        load_embeddings(tmp_path / "a.npz")


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("torn", [slice(200, 230), slice(70, 90)])
def test_a_torn_npz_is_refused(tmp_path, save, torn):
    save(tmp_path / "a.npz", **arrays())
    whole = bytearray((tmp_path / "a.npz").read_bytes())
    whole[torn] = b"\xff" * (torn.stop - torn.start)
    (tmp_path / "a.npz").write_bytes(whole)
    with pytest.raises(UserError, match=r"a\.npz"):
        load_embeddings(tmp_path / "a.npz")


def test_a_missing_file_and_a_single_array_are_refused(tmp_path):
    with pytest.raises(UserError, match="there is no file"):
        load_embeddings(tmp_path / "b.npz")
    with open(tmp_path / "c.npz", "wb") as file:
        np.save(file, np.ones(3))
    with pytest.raises(UserError, match="single array"):
        load_embeddings(tmp_path / "c.npz")


def test_what_is_wrong_inside_names_the_part(tmp_path):
    np.savez(tmp_path / "a.npz", **{**arrays(), "gallery_pids": np.arange(3)})
    with pytest.raises(UserError, match=r"gallery of .*pids have shape"):
        load_embeddings(tmp_path / "a.npz")
