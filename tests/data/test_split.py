"""The two halves and the held-out retrieval task, by their definitions."""

import random
from collections import Counter, defaultdict

import numpy as np
import pytest
import torch

from torchreid_autoreid.data.split import held_out_retrieval, split_by_identity, split_by_image
from torchreid_autoreid.errors import UserError

FRACTIONS = [0.1, 0.3, 0.5, 0.9]


def make_items(identities=20, seed=0):
    """Identities of 1 to 12 images by 1 to 4 cameras."""
    rng = random.Random(seed)
    return [
        (f"{pid:03d}_{index:02d}.jpg", pid, rng.randrange(1 + pid % 4), 0)
        for pid in range(identities)
        for index in range(1 + pid % 12)
    ]


def by_identity(items):
    groups = defaultdict(list)
    for item in items:
        groups[item[1]].append(item)
    return groups


@pytest.mark.parametrize("split", [split_by_image, split_by_identity])
@pytest.mark.parametrize("fraction", FRACTIONS)
def test_halves_part_the_set(split, fraction):
    items = make_items()
    w, alpha = split(items, fraction, seed=3)
    assert not set(w) & set(alpha)
    assert sorted(w + alpha) == sorted(items)
    assert len(w) > 0
    assert len(alpha) > 0


@pytest.mark.parametrize("fraction", FRACTIONS)
@pytest.mark.parametrize("seed", range(5))
def test_by_image_every_identity_is_in_both_halves_in_its_share(fraction, seed):
    items = make_items()
    w, alpha = (by_identity(half) for half in split_by_image(items, fraction, seed))
    for pid, images in by_identity(items).items():
        if len(images) == 1:
            assert w[pid] == images
            assert pid not in alpha
            continue
        assert len(w[pid]) >= 1
        assert len(alpha[pid]) >= 1
        expected = min(max(len(images) * fraction, 1), len(images) - 1)
        assert abs(len(alpha[pid]) - expected) <= 1


def test_by_image_the_shares_add_up_over_the_set():
    items = [(f"{pid}_{index}.jpg", pid, 0, 0) for pid in range(400) for index in range(5)]
    for fraction in (0.3, 0.5):
        assert len(split_by_image(items, fraction, 1)[1]) == pytest.approx(fraction * len(items), rel=0.05)


def test_by_image_cameras_with_an_even_number_of_images_are_halved():
    items = [
        (f"{pid}_{camera}_{shot}.jpg", pid, camera, 0) for pid in range(9) for camera in range(3) for shot in range(4)
    ]
    for half in split_by_image(items, 0.5, seed=2):
        assert set(Counter((pid, camera) for _, pid, camera, _ in half).values()) == {2}


@pytest.mark.parametrize("fraction", FRACTIONS)
def test_by_identity_an_identity_is_wholly_in_one_half(fraction):
    items = make_items()
    w, alpha = (set(by_identity(half)) for half in split_by_identity(items, fraction, seed=3))
    assert not w & alpha
    assert len(alpha) == round(20 * fraction)


def test_by_identity_each_half_gets_one_where_there_are_two():
    items = [("a.jpg", 0, 0, 0), ("b.jpg", 1, 0, 0)]
    for fraction in (0.01, 0.99):
        assert [len(half) for half in split_by_identity(items, fraction, 1)] == [1, 1]


@pytest.mark.parametrize(
    "draw", [lambda i, s: split_by_image(i, 0.5, s), lambda i, s: split_by_identity(i, 0.5, s), held_out_retrieval]
)
def test_drawn_by_the_seed_alone(draw):
    items = make_items()
    first = draw(items, 7)
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    shuffled = random.Random(0).sample(items, len(items))
    assert draw(shuffled, 7) == first
    assert (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()) == states
    assert draw(items, 8) != first


@pytest.mark.parametrize("seed", range(5))
def test_every_held_out_query_has_a_true_match_by_another_camera(seed):
    items = make_items(seed=seed)
    query, gallery = held_out_retrieval(items, seed)
    assert sorted(query + gallery) == sorted(items)
    assert max(Counter((pid, camera) for _, pid, camera, _ in query).values()) == 1
    for _, pid, camera, _ in query:
        assert any(other == pid and cam != camera for _, other, cam, _ in gallery)
    cameras = {pid: {camera for _, _, camera, _ in images} for pid, images in by_identity(items).items()}
    asked = {pid for _, pid, _, _ in query}
    assert asked == {pid for pid, seen in cameras.items() if len(seen) > 1}


def test_a_camera_with_images_to_spare_asks_a_query_each():
    items = [(f"{camera}_{shot}.jpg", 5, camera, 0) for camera in range(4) for shot in range(2)]
    query, gallery = held_out_retrieval(items, 1)
    assert [camera for _, _, camera, _ in query] == [0, 1, 2, 3]
    assert len(gallery) == 4


def test_two_images_by_two_cameras_make_one_query():
    query, gallery = held_out_retrieval([("a.jpg", 0, 0, 0), ("b.jpg", 0, 1, 0)], 1)
    assert (len(query), len(gallery)) == (1, 1)


def test_of_one_camera_an_identity_of_two_images_has_one_query():
    items = [(f"{i}.jpg", i // 3, 4, 0) for i in range(7)]  # the last identity has one image
    query, gallery = held_out_retrieval(items, 1)
    assert [pid for _, pid, _, _ in query] == [0, 1]
    assert sorted(query + gallery) == items
    with pytest.raises(UserError, match="no identity of the alpha half has two images"):
        held_out_retrieval([("a.jpg", 0, 0, 0), ("b.jpg", 1, 0, 0)], 1)


def test_without_a_second_camera_there_is_no_task():
    with pytest.raises(UserError, match="two cameras"):
        held_out_retrieval([("a.jpg", 0, 0, 0), ("b.jpg", 0, 0, 0), ("c.jpg", 1, 1, 0)], 1)
