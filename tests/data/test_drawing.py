"""What is drawn: every part of a person shows, near twins differ in one, and pictures look like pedestrians."""

import random
from dataclasses import fields, replace

import numpy as np
import pytest

from torchreid_autoreid.data.drawing import CAMERAS, HEIGHT, WIDTH, _figure, draw_people, photograph

PEOPLE = draw_people(200, random.Random(3))
VIEWS = ("front", "back", "side")


def figure(person, view="front", seed=0):
    return np.asarray(_figure(person, view, random.Random(seed)))  # (H, W, red green blue alpha), enlarged


def differing(one, other):
    return [field.name for field in fields(one) if getattr(one, field.name) != getattr(other, field.name)]


def test_half_of_the_people_have_a_near_twin():
    twins = [len(differing(one, other)) == 1 for one, other in zip(PEOPLE, PEOPLE[1:], strict=False)]
    assert 0.4 < 2 * sum(twins) / len(PEOPLE) < 0.6
    kinds = {differing(one, other)[0] for one, other, twin in zip(PEOPLE, PEOPLE[1:], twins, strict=False) if twin}
    assert kinds == {"top", "legs", "shoes", "bag", "hat", "sleeves"}


def test_no_two_people_are_the_same():
    assert len(set(PEOPLE)) == len(PEOPLE)


CHANGES = {
    "skin": (1, 2, 3),
    "hair": (1, 2, 3),
    "hair_style": "long",
    "hat": (1, 2, 3),
    "top": (1, 2, 3),
    "top_second": (1, 2, 3),
    "top_pattern": "jacket",
    "sleeves": "short",
    "legs": (1, 2, 3),
    "leg_style": "skirt",
    "shoes": (1, 2, 3),
    "bag": "suitcase",
    "bag_colour": (1, 2, 3),
    "build": 1.2,
    "height": 0.93,
}
PLAIN = replace(
    PEOPLE[0], hair_style="short", hat=None, top_pattern="stripes", sleeves="long", leg_style="trousers",
    bag="backpack", build=1.0, height=1.0,
)  # fmt: skip


@pytest.mark.parametrize("name", [field.name for field in fields(PLAIN)])
def test_every_part_of_a_person_shows_in_every_view(name):
    for view in VIEWS:
        if (name, view) == ("top_pattern", "back"):
            continue  # stripes and an open jacket are compared where both show
        changed = replace(PLAIN, **{name: CHANGES[name]})
        pixels = (figure(PLAIN, view) != figure(changed, view)).any(-1).sum()
        assert pixels > 20, (name, view)


@pytest.mark.parametrize("style", ["plain", "stripes", "halves", "logo", "jacket"])
def test_patterns_show_from_the_front(style):
    person = replace(PLAIN, bag="none", top_second=(1, 2, 3), top_pattern=style)
    shows = (figure(person)[..., :3] == (1, 2, 3)).all(-1).any()
    assert shows == (style != "plain")


def test_a_logo_and_a_face_show_from_the_front_only():
    person = replace(PLAIN, bag="none", top_pattern="logo", top_second=(1, 2, 3), skin=(4, 5, 6))
    logo = {view: (figure(person, view)[..., :3] == (1, 2, 3)).all(-1).sum() for view in VIEWS}
    assert logo["front"] > 50
    assert logo["back"] == logo["side"] == 0
    head = {view: figure(person, view)[: 2 * HEIGHT // 5, :, :3] for view in VIEWS}
    skin = {view: (pixels == person.skin).all(-1).sum() for view, pixels in head.items()}
    assert skin["front"] > skin["side"] > skin["back"]


def test_figures_stand_upright_in_the_middle():
    for number, person in enumerate(PEOPLE[:60]):
        for view in VIEWS:
            opaque = figure(person, view, seed=number)[..., 3] > 0
            rows, columns = np.flatnonzero(opaque.any(1)), np.flatnonzero(opaque.any(0))
            assert opaque.any(1)[rows[0] : rows[-1]].all()  # in one piece
            tall, wide = rows[-1] - rows[0], columns[-1] - columns[0]
            assert 0.8 < tall / opaque.shape[0] < 1.0
            assert 0.2 < wide / opaque.shape[1] < 1.0
            assert rows[-1] > 0.93 * opaque.shape[0]  # feet on the ground
            body = np.flatnonzero(opaque[opaque.shape[0] * 2 // 5])
            assert body[0] < opaque.shape[1] / 2 < body[-1]


def test_a_body_is_narrower_from_the_side():
    def width(view):
        return (figure(replace(PLAIN, bag="none"), view)[HEIGHT * 2 // 3, :, 3] > 0).sum()

    assert width("side") < width("front")
    assert width("side") < width("back")


def test_photographs_differ_by_shot_and_by_camera_in_light():
    light = []
    for camera in CAMERAS:
        shots = [np.asarray(photograph(PLAIN, camera, random.Random(seed))) for seed in range(8)]
        assert {shot.shape for shot in shots} == {(HEIGHT, WIDTH, 3)}
        assert all(np.abs(one.astype(int) - two).mean() > 5 for one, two in zip(shots, shots[1:], strict=False))
        light.append(np.mean(shots))
    assert np.diff(sorted(light)).min() > 5
    # Yet the person shows: the middle differs from the same scene without one.
    assert max(light) < 235
    assert min(light) > 20
