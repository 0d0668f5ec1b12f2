"""The gallery against brute force, killed, shared, torn, and on strangers."""

import contextlib
import itertools
import os
import signal
import sqlite3
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from torchreid_autoreid.errors import UserError
from torchreid_autoreid.gallery import Gallery, nearest


def unit(values):
    return values / np.linalg.norm(values, axis=1, keepdims=True)


def crowd(people, crops, dimension=16, seed=0, noise=0.3):
    random = np.random.default_rng(seed)
    centres = np.repeat(random.normal(size=(people, dimension)), crops, axis=0)
    return unit(centres + noise * random.normal(size=centres.shape)).astype(np.float32), np.repeat(
        np.arange(people), crops
    )


def brute_force(queries, features, pids, top):
    people = np.unique(pids)
    scores = np.stack([(unit(queries) @ unit(features[pids == pid]).T).max(1) for pid in people], axis=1)
    order = np.argsort(-scores, axis=1)[:, :top]
    return people[order], np.take_along_axis(scores, order, 1)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "gallery"


def check(gallery, features, pids, queries, top=3):
    answer = gallery.query(queries, top=top, threshold=0.5)
    people, scores = brute_force(queries.astype(np.float64), features.astype(np.float64), pids, top)
    assert answer.ranked_pids.tolist() == people.tolist()
    np.testing.assert_allclose(answer.ranked_scores, scores, atol=1e-5)
    assert answer.pids.tolist() == people[:, 0].tolist()
    np.testing.assert_allclose(answer.margins, scores[:, 0] - scores[:, 1], atol=1e-5)
    assert answer.known.tolist() == (scores[:, 0] > 0.5).tolist()


def test_answers_are_those_of_brute_force_after_every_change(folder):
    features, pids = crowd(12, 3)
    queries, _ = crowd(12, 1, seed=1)
    with Gallery.create(folder, 16) as gallery, Gallery.open(folder) as reader:
        enrolled = np.zeros(len(pids), dtype=bool)
        for part in (pids < 5, pids >= 7, (pids >= 5) & (pids < 7)):
            gallery.add(features[part], pids[part])
            enrolled |= part
            check(reader, features[enrolled], pids[enrolled], queries)
        for gone in ([3], [0, 11, 5, 6], [1, 2, 4]):  # the last leaves less than half
            assert gallery.remove(gone) == 3 * len(gone)
            enrolled &= ~np.isin(pids, gone)
            check(reader, features[enrolled], pids[enrolled], queries)
            assert len(reader) == enrolled.sum()
            assert reader.pids.tolist() == np.unique(pids[enrolled]).tolist()
        gallery.add(features[:3], pids[:3])
        enrolled[:3] = True
        check(reader, features[enrolled], pids[enrolled], queries)
    assert len(list(folder.glob("vectors-*"))) == 1
    with Gallery.open(folder) as again:
        check(again, features[enrolled], pids[enrolled], queries)


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    people=st.integers(2, 30),
    scale=st.sampled_from([1e-3, 0.3, 3.0]),
    top=st.integers(1, 4),
)
def test_codes_give_what_the_scan_gives(seed, people, scale, top):
    features, pids = crowd(people, 4, seed=seed, noise=scale)
    features[seed % len(features)] = features[0]  # a tie between two people, mostly
    queries, _ = crowd(8, 1, seed=seed + 1)
    person = pids.copy()
    person[1] = -1  # removed
    snapshot = nearest.Snapshot(0, 0, features, np.arange(people), person)
    codes = nearest.Codes(snapshot)
    top = min(top, people)
    for query in queries:
        found = codes.people(query, top)
        ((_, best),) = nearest.best_by_person(query[None], snapshot)
        if found is not None:
            np.testing.assert_allclose(found[0], best.topk(top).values[0], atol=2e-6)
            np.testing.assert_allclose(best[0, found[1]], found[0], atol=2e-6)


def test_a_large_gallery_is_searched_by_codes_and_says_the_same(folder, monkeypatch):
    monkeypatch.setattr(nearest, "_LEAST_CODED", 10)
    features, pids = crowd(300, 2, noise=0.1)
    with Gallery.create(folder, 16) as gallery:
        gallery.add(features, pids)
        queries = features[::50] + np.float32(0.01)
        gallery.query(queries, threshold=0)
        monkeypatch.setattr(nearest, "best_by_person", None)  # no scan from here on
        answer = gallery.query(queries, threshold=0.5)
        assert answer.pids.tolist() == pids[::50].tolist()


def test_names_and_numbers(folder):
    with Gallery.create(folder, 2) as gallery:
        gallery.add(np.eye(2), ["Ann", "Zoë"])
        assert gallery.query([[0, 1]], threshold=0).pids.tolist() == ["Zoë"]
        with pytest.raises(UserError, match="are names, and these are numbers"):
            gallery.add(np.eye(2), [1, 2])
        with pytest.raises(UserError, match="'Bob' is not enrolled"):
            gallery.remove(["Ann", "Bob"])
        assert len(gallery) == 2
        gallery.remove("Ann")
        assert gallery.pids.tolist() == ["Zoë"]


# --- strangers ----------------------------------------------


def passing(scores, pids, k):
    """How many vectors pass as strangers, each person being one in turn, if k of the others' scores may be higher."""
    found = 0
    for stranger in np.unique(pids):
        left = pids != stranger
        among = np.where(pids[left, None] == pids[None, left], -2, scores[left][:, left]).max(1)
        found += (scores[~left][:, left].max(1) > np.sort(among)[::-1][k]).sum()
    return found


@pytest.mark.parametrize("far", [0.1, 0.02])
@pytest.mark.parametrize("crops", [1, 4])
def test_the_threshold_lets_so_many_of_the_enrolled_pass_as_strangers(folder, far, crops):
    features, pids = crowd(40, crops + 1, dimension=8, noise=0.5)
    scores = features @ features.T
    extreme = np.sort(np.where(pids[:, None] == pids[None], -2, scores).max(1))[::-1]
    allowed = far * (len(pids) + 1)
    k = max((k for k in range(int(allowed) + 1) if passing(scores, pids, k) <= allowed), default=0)
    with Gallery.create(folder, 8) as gallery:
        gallery.add(features, pids)
        found = gallery.calibrate(far)
        assert found.threshold == pytest.approx(extreme[k], abs=1e-6)
        assert found.probes == len(pids)
        assert gallery.calibration == found
        assert gallery.revision == found.revision


def test_a_cohort_gives_the_quantile_of_its_best_scores(folder):
    features, pids = crowd(40, 2, dimension=8)
    strangers, names = crowd(10, 1, dimension=8, seed=9)
    with Gallery.create(folder, 8) as gallery:
        gallery.add(features, pids)
        found = gallery.calibrate(0.2, strangers, names + 100)
        assert found.threshold == pytest.approx(np.sort((strangers @ features.T).max(1))[-3], abs=1e-6)
        assert gallery.query(strangers).known.sum() == 2


def test_strangers_are_accepted_at_the_rate_asked_for(folder):
    """On average over crowds: half of each is enrolled, the other half asks."""
    rates = {0.1: [], 0.02: []}
    for seed in range(10):
        features, pids = crowd(800, 1, dimension=24, seed=seed)
        with Gallery.create(folder / str(seed), 24) as gallery:
            gallery.add(features[:400], pids[:400])
            for far, found in rates.items():
                gallery.calibrate(far)
                found.append(gallery.query(features[400:]).known.mean())
    for far, found in rates.items():
        assert np.mean(found) == pytest.approx(far, rel=0.2)


def test_a_calibration_that_cannot_be(folder):
    features, pids = crowd(3, 2)
    with Gallery.create(folder, 16) as gallery:
        with pytest.raises(UserError, match="nobody is enrolled"):
            gallery.calibrate()
        with pytest.raises(UserError, match="nobody is enrolled"):
            gallery.query(features)
        gallery.add(features[:2], pids[:2])
        with pytest.raises(UserError, match="not calibrated"):
            gallery.query(features)
        with pytest.raises(UserError, match="one person"):
            gallery.calibrate()
        gallery.add(features[2:4], pids[2:4])
        with pytest.raises(UserError, match=r"far 0.01 cannot be told from 4 vectors"):
            gallery.calibrate(0.01)
        for far in (0, 1, -1, float("nan")):
            with pytest.raises(UserError, match="false-accept rate"):
                gallery.calibrate(far)
        with pytest.raises(UserError, match="vector 0 of the cohort is enrolled"):
            gallery.calibrate(0.5, features[2:])
        with pytest.raises(UserError, match="1 of the cohort is enrolled"):
            gallery.calibrate(0.5, features[4:], [1, 7])
        assert gallery.calibration is None


# --- what may happen to a folder -----------------------------


def write_for_ever(folder):
    gallery = Gallery.open(folder)
    for number in itertools.count(1000):
        gallery.add(np.eye(4) + 1e-3 * number, np.full(4, number))
        if number % 3 == 2:
            gallery.remove([number - 1])


def test_a_writer_killed_at_any_moment_leaves_whole_people_and_two_readers_follow(folder):
    Gallery.create(folder, 4).close()
    with Gallery.open(folder) as one, Gallery.open(folder) as two:
        for pause in (0.1, 0.3, 0.5):
            writer = os.fork()
            if not writer:
                try:
                    write_for_ever(folder)
                finally:
                    os._exit(1)
            while not len(one):  # until the first person is enrolled
                time.sleep(0.01)
            end = time.monotonic() + pause
            while time.monotonic() < end:
                for reader in (one, two):
                    snapshot = reader._read()
                    counts = np.bincount(snapshot.person[snapshot.person >= 0])
                    assert set(counts.tolist()) <= {4}
            os.kill(writer, signal.SIGKILL)
            assert os.waitpid(writer, 0)[1] == signal.SIGKILL
            with Gallery.open(folder) as after:
                snapshot = after._read()
                for place, pid in enumerate(snapshot.people.tolist()):  # each row is the vector that was enrolled
                    expected = unit(np.eye(4) + 1e-3 * pid)
                    rows = snapshot.vectors[snapshot.person == place].reshape(-1, 4, 4)
                    np.testing.assert_allclose(rows, np.broadcast_to(expected, rows.shape), atol=1e-6)
                assert len(snapshot.people)
                after.remove(snapshot.people)
                assert len(one) == 0


def test_rows_that_no_transaction_names_are_overwritten(folder):
    with Gallery.create(folder, 2) as gallery:
        gallery.add([[1, 0]], [1])
        with open(next(folder.glob("vectors-*")), "ab") as file:
            file.write(b"half a vector that a killed writer has left")
        gallery.add([[0, 1]], [2])
        assert gallery.query([[0.1, 1]], threshold=0).pids.tolist() == [2]


def test_damaged_folders(folder, tmp_path):
    with pytest.raises(UserError, match="holds no gallery"):
        Gallery.open(tmp_path)
    with Gallery.create(folder, 2, network="a") as gallery:
        gallery.add(np.eye(2), [1, 2])
    with pytest.raises(UserError, match="not empty"):
        Gallery.create(folder, 2)
    with pytest.raises(UserError, match="another network"):
        Gallery.open(folder, network="b")
    vectors, database = next(folder.glob("vectors-*")), folder / "gallery.sqlite"
    whole = vectors.read_bytes()
    vectors.write_bytes(whole[:-1])
    with Gallery.open(folder) as gallery, pytest.raises(UserError, match="is torn"):
        gallery.query(np.eye(2), threshold=0)
    with Gallery.open(folder) as gallery, pytest.raises(UserError, match="is torn"):
        gallery.add(np.eye(2), [3, 4])
    vectors.unlink()
    with Gallery.open(folder) as gallery, pytest.raises(UserError, match="is missing"):
        gallery.query(np.eye(2), threshold=0)
    text = database.read_bytes()
    for torn in (text[:1500], text[: len(text) // 2], b"", b"x" * 5000, text[:4096] + os.urandom(len(text) - 4096)):
        database.write_bytes(torn)
        with pytest.raises(UserError, match=r"gallery\.sqlite"):
            Gallery.open(folder)
    database.unlink()
    with sqlite3.connect(database) as other:
        other.execute("CREATE TABLE t (x)")
    other.close()
    with pytest.raises(UserError, match=r"gallery\.sqlite"):
        Gallery.open(folder)


@pytest.mark.parametrize(
    ("features", "pids", "says"),
    [
        (np.ones((1, 3)), [1], "have 3 dimensions"),
        (np.zeros((1, 2)), [1], "zero in row 0"),
        (np.full((1, 2), np.nan), [1], "NaN"),
        (np.ones((2, 2)), [1], "one"),
        (np.ones((1, 2)), [0.5], "whole numbers"),
        (np.ones((1, 2)), ["a\0b"], "printable"),
        (np.ones((1, 2)), [""], "printable"),
    ],
)
def test_bad_input_enrols_nobody(folder, features, pids, says):
    with Gallery.create(folder, 2) as gallery:
        with pytest.raises(UserError, match=says):
            gallery.add(features, pids)
        assert len(gallery) == 0


def test_lengths_of_vectors_do_not_matter(folder):
    with Gallery.create(folder, 2) as gallery:
        gallery.add(np.array([[1e-200, 0], [0, 1e300]]), [1, 2])
        assert gallery.query([[1e-310, 0], [0, 1e-30]], threshold=0).scores.tolist() == [1, 1]


#: a fact of the database -> what a hostile or damaged one may say
ODD_FACTS = {
    "format": [2, None, "x"],
    "dimension": [0, -1, None, "x", 1 << 62],
    "rows": [-1, None, "x", 1 << 62],
    "revision": [None, "x", 1.5],
    "renumbered": [None, "x"],
    "vectors": [None, 5, "../outside", "/etc/passwd", "gallery.sqlite", "vectors-1.f32"],
    "threshold": ["x", float("inf"), None],
    "far": [None, "x"],
    "probes": [None, 0, "x"],
    "calibrated_revision": [None, "x"],
}


@pytest.mark.parametrize("name", ODD_FACTS)
def test_a_database_that_says_what_cannot_be_is_refused(name, tmp_path):
    folder, outside = tmp_path / "g", tmp_path / "outside"
    outside.write_bytes(b"mine" * 100)
    with Gallery.build(folder, *crowd(20, 2)) as gallery:
        gallery.calibrate(0.2)
    for value in ODD_FACTS[name]:
        with contextlib.closing(sqlite3.connect(folder / "gallery.sqlite")) as other, other:
            other.execute("UPDATE facts SET value = ? WHERE name = ?", (value, name))
        with pytest.raises(UserError, match=r"gallery\.sqlite is (damaged|no gallery)"):
            Gallery.open(folder)
    assert outside.read_bytes() == b"mine" * 100


def test_vectors_are_not_written_through_a_link(tmp_path):
    folder, outside = tmp_path / "g", tmp_path / "outside"
    outside.write_bytes(b"mine" * 1000)
    Gallery.create(folder, 4).close()
    (folder / "vectors-00000000.f32").unlink()
    (folder / "vectors-00000000.f32").symlink_to(outside)
    with pytest.raises(UserError, match="is a link"):
        Gallery.open(folder)
    assert outside.read_bytes() == b"mine" * 1000


def test_vectors_that_are_no_numbers_are_told(tmp_path):
    folder = tmp_path / "g"
    features, pids = crowd(20, 2)
    Gallery.build(folder, features, pids).close()
    (vectors,) = folder.glob("vectors-*")
    vectors.write_bytes(np.full_like(features, np.nan).tobytes())
    with Gallery.open(folder) as gallery:
        for call in (lambda: gallery.query(features, threshold=0.5), lambda: gallery.calibrate(0.2)):
            with pytest.raises(UserError, match="no numbers"):
                call()
