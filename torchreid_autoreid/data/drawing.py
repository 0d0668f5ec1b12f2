"""Draws pedestrians: what a person wears makes the identity, how a camera sees makes the rest.

Clothes, their patterns, shoes, hair, skin, a bag, a hat and build stay with a person. View, pose, scale, offset,
occluder, light, colour cast, blur, noise and background change from image to image, most of them by the camera.
"""

from __future__ import annotations

import colorsys
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

__all__ = ["CAMERAS", "HEIGHT", "WIDTH", "Person", "draw_people", "photograph"]

HEIGHT, WIDTH = 128, 64  # pixels, Market-1501's size
_ENLARGED = 2  # drawn larger, then reduced, for smooth edges

Colour = tuple[int, int, int]


# -- identities -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Person:
    """What stays the same from camera to camera."""

    skin: Colour
    hair: Colour
    hair_style: str  # short, long, bald
    hat: Colour | None
    top: Colour
    top_second: Colour  # of the pattern
    top_pattern: str  # plain, stripes, halves, logo (on the front), jacket (open in front)
    sleeves: str  # long, short
    legs: Colour
    leg_style: str  # trousers, shorts, skirt
    shoes: Colour
    bag: str  # none, backpack, shoulder bag, suitcase
    bag_colour: Colour
    build: float  # width of the body, 1 is average
    height: float  # of the person, 1 is average


_SKINS: tuple[Colour, ...] = ((244, 208, 177), (222, 171, 127), (172, 115, 74), (110, 72, 46))
_HAIRS: tuple[Colour, ...] = ((28, 22, 20), (86, 56, 36), (178, 134, 72), (120, 118, 116))


def _rgb(hue: float, saturation: float, value: float) -> Colour:
    red, green, blue = (round(255 * channel) for channel in colorsys.hsv_to_rgb(hue, saturation, value))
    return red, green, blue


_CLOTHES: tuple[Colour, ...] = (
    _rgb(0.0, 0.0, 0.12),  # black
    _rgb(0.0, 0.0, 0.45),  # grey
    _rgb(0.0, 0.0, 0.92),  # white
    _rgb(0.0, 0.75, 0.7),  # red
    _rgb(0.07, 0.8, 0.85),  # orange
    _rgb(0.14, 0.7, 0.9),  # yellow
    _rgb(0.33, 0.6, 0.5),  # green
    _rgb(0.5, 0.6, 0.65),  # turquoise
    _rgb(0.6, 0.7, 0.75),  # blue
    _rgb(0.65, 0.65, 0.35),  # navy
    _rgb(0.78, 0.5, 0.55),  # violet
    _rgb(0.92, 0.45, 0.85),  # pink
    _rgb(0.08, 0.5, 0.45),  # brown
)


def draw_people(count: int, rng: random.Random) -> list[Person]:
    """Half of the people are on their own; half come in pairs that differ in one part, so that parts matter."""
    people: list[Person] = []
    while len(people) < count:
        people.append(_stranger(rng))
        if rng.random() < 1 / 3:
            people.append(_near_twin(people[-1], rng))
    return people[:count]


def _stranger(rng: random.Random) -> Person:
    return Person(
        skin=rng.choice(_SKINS),
        hair=rng.choice(_HAIRS),
        hair_style=rng.choice(("short", "short", "long", "bald")),
        hat=rng.choice((None, None, None, rng.choice(_CLOTHES))),
        top=rng.choice(_CLOTHES),
        top_second=rng.choice(_CLOTHES),
        top_pattern=rng.choice(("plain", "plain", "stripes", "halves", "logo", "jacket")),
        sleeves=rng.choice(("long", "short")),
        legs=rng.choice(_CLOTHES),
        leg_style=rng.choice(("trousers", "trousers", "shorts", "skirt")),
        shoes=rng.choice(_CLOTHES),
        bag=rng.choice(("none", "none", "backpack", "shoulder bag", "suitcase")),
        bag_colour=rng.choice(_CLOTHES),
        build=rng.uniform(0.85, 1.2),
        height=rng.uniform(0.92, 1.03),
    )


def _near_twin(person: Person, rng: random.Random) -> Person:
    part = rng.choice(("top", "legs", "shoes", "bag", "hat", "sleeves"))
    if part == "top":
        return replace(person, top=_other(person.top, rng))
    if part == "legs":
        return replace(person, legs=_other(person.legs, rng))
    if part == "shoes":
        return replace(person, shoes=_other(person.shoes, rng))
    if part == "bag":
        return replace(person, bag="backpack" if person.bag == "none" else "none")
    if part == "hat":
        return replace(person, hat=None if person.hat else rng.choice(_CLOTHES))
    return replace(person, sleeves="short" if person.sleeves == "long" else "long")


def _other(colour: Colour, rng: random.Random) -> Colour:
    return rng.choice([other for other in _CLOTHES if other != colour])


# -- figures ----------------------------------------------------------------------------------------------------------


class _Brush:
    """Draws in body units: x from the middle of the body, y from the ground up; an average person is 100 high."""

    def __init__(self, image: Image.Image, unit: float) -> None:
        self.draw = ImageDraw.Draw(image)
        self.unit = unit  # pixels
        self.centre = image.width / 2
        self.ground = image.height * 0.97

    def at(self, x: float, y: float) -> tuple[float, float]:
        return self.centre + x * self.unit, self.ground - y * self.unit

    def box(self, x0: float, y0: float, x1: float, y1: float) -> tuple[float, float, float, float]:
        return *self.at(min(x0, x1), max(y0, y1)), *self.at(max(x0, x1), min(y0, y1))

    def ellipse(self, x0: float, y0: float, x1: float, y1: float, colour: Colour) -> None:
        self.draw.ellipse(self.box(x0, y0, x1, y1), fill=colour)

    def cap(self, x0: float, y0: float, x1: float, y1: float, colour: Colour) -> None:
        """The upper half of an ellipse."""
        self.draw.chord(self.box(x0, y0, x1, y1), 180, 360, fill=colour)

    def block(self, x0: float, y0: float, x1: float, y1: float, colour: Colour, radius: float = 0.0) -> None:
        self.draw.rounded_rectangle(self.box(x0, y0, x1, y1), radius * self.unit, fill=colour)

    def polygon(self, points: Sequence[tuple[float, float]], colour: Colour) -> None:
        self.draw.polygon([self.at(x, y) for x, y in points], fill=colour)

    def limb(self, points: Sequence[tuple[float, float]], width: float, colour: Colour) -> None:
        """A line with round joints and ends."""
        self.draw.line([self.at(x, y) for x, y in points], fill=colour, width=max(1, round(width * self.unit)))
        for x, y in points:
            self.ellipse(x - width / 2, y - width / 2, x + width / 2, y + width / 2, colour)


@dataclass(frozen=True)
class _Pose:
    view: str  # front, back, side (looking right)
    girth: float  # half the width of the body as seen, 1 is average from the front
    stride: float  # units that a foot is ahead
    swing: float  # units that a hand is ahead


def _figure(person: Person, view: str, rng: random.Random) -> Image.Image:
    """The person alone on a transparent ground, enlarged."""
    image = Image.new("RGBA", (WIDTH * _ENLARGED, HEIGHT * _ENLARGED))
    brush = _Brush(image, image.height * 0.92 * person.height / 100)
    # Seen from the side, steps are long and the body is narrow.
    reach = 9.0 if view == "side" else 2.5
    pose = _Pose(
        view,
        person.build * (0.68 if view == "side" else 1.0),
        rng.uniform(0.2, 1.0) * reach * rng.choice((-1, 1)),
        rng.uniform(-0.8, 0.8) * reach,
    )
    if view == "front":
        _backpack(brush, person, pose)
    _legs(brush, person, pose)
    if view == "side":
        _arm(brush, person, pose, -1)
        _backpack(brush, person, pose)
    _body(brush, person, pose)
    for side in (1,) if view == "side" else (-1, 1):
        _arm(brush, person, pose, side)
    if view == "back":
        _backpack(brush, person, pose)
    _carried_bag(brush, person, pose)
    _head(brush, person, pose)
    return image


def _legs(brush: _Brush, person: Person, pose: _Pose) -> None:
    apart = 1.5 if pose.view == "side" else 5.2 * pose.girth
    for side in (-1, 1):
        hip = (side * apart * 0.9, 48.0)
        foot = (side * apart + side * pose.stride, 4.0)
        knee = ((hip[0] + foot[0]) / 2 + (1.0 if pose.view == "side" else 0.0), 26.0)
        bare = person.leg_style != "trousers"
        brush.limb((hip, knee, foot), 6.8, person.skin if bare else person.legs)
        if person.leg_style == "shorts":
            brush.limb((hip, (knee[0], knee[1] + 3)), 8.6, person.legs)
        heel, toe = (3.0, 6.5) if pose.view == "side" else (4.0, 4.0)
        brush.ellipse(foot[0] - heel, 0, foot[0] + toe, 6.5, person.shoes)
    if person.leg_style == "skirt":
        waist, hem = 9.0 * pose.girth, 11.5 * pose.girth
        brush.polygon(((-waist, 50), (waist, 50), (hem, 26), (-hem, 26)), person.legs)
    else:
        brush.block(-9.6 * pose.girth, 44, 9.6 * pose.girth, 52, person.legs, 2)


def _arm(brush: _Brush, person: Person, pose: _Pose, side: int) -> None:
    from_side = pose.view == "side"
    shoulder = (0.0 if from_side else side * 10.5 * pose.girth, 78.0)
    elbow = (side * pose.swing * 0.4 if from_side else side * (13 * pose.girth), 63.0)
    hand = (side * pose.swing * 1.2 if from_side else side * (13.5 * pose.girth + pose.swing), 48.0)
    brush.limb((shoulder, elbow, hand), 4.8, person.skin)
    cloth = (shoulder, elbow, ((elbow[0] + 2 * hand[0]) / 3, 51.0)) if person.sleeves == "long" else (shoulder, elbow)
    if person.sleeves == "short":
        cloth = (shoulder, ((shoulder[0] + 2 * elbow[0]) / 3, 69.0))
    # Seen from the side, the arm lies on the body: a darker tone keeps it apart.
    brush.limb(cloth, 6.0, _shaded(person.top, 0.82) if from_side else person.top)


def _body(brush: _Brush, person: Person, pose: _Pose) -> None:
    wide = 11.0 * pose.girth
    brush.block(-wide, 47, wide, 83, person.top, 5)
    second = person.top_second
    if person.top_pattern == "stripes":
        for low in (50, 59, 68):
            brush.block(-wide, low, wide, low + 4, second)
    elif person.top_pattern == "halves":
        brush.block(-wide, 47, wide, 63, second, 2)
    elif person.top_pattern == "logo" and pose.view == "front":
        brush.ellipse(-5.5, 61, 5.5, 74, second)
    elif person.top_pattern == "jacket" and pose.view != "back":
        left, right = (-4.0, 4.0) if pose.view == "front" else (0.55 * wide, wide)
        brush.block(left, 47, right, 82, second)


def _backpack(brush: _Brush, person: Person, pose: _Pose) -> None:
    if person.bag != "backpack":
        return
    if pose.view == "side":
        brush.block(-17, 54, -6 * pose.girth, 79, person.bag_colour, 3)
    elif pose.view == "back":
        brush.block(-8.5, 53, 8.5, 80, person.bag_colour, 3)
    else:  # in front, its edges and, over the shoulders, the top of it
        brush.block(-13.5 * pose.girth, 54, 13.5 * pose.girth, 84, person.bag_colour, 4)


def _carried_bag(brush: _Brush, person: Person, pose: _Pose) -> None:
    side = -1 if pose.view == "back" else 1  # in the same hand, seen from the other side
    if person.bag == "shoulder bag":
        brush.limb(((-side * 7 * pose.girth, 82), (side * 10 * pose.girth, 54)), 1.8, person.bag_colour)
        brush.block(side * 6 * pose.girth, 40, side * (6 * pose.girth + 12), 55, person.bag_colour, 2)
    elif person.bag == "suitcase":
        hand = side * 14 * pose.girth
        brush.limb(((hand, 47), (hand + side * 4, 28)), 1.5, (60, 60, 60))
        brush.block(hand - side, 1, hand + side * 11, 29, person.bag_colour, 2)


def _head(brush: _Brush, person: Person, pose: _Pose) -> None:
    view, hair = pose.view, person.hair
    if person.hair_style == "long" and view == "front":
        brush.block(-7.5, 76, 7.5, 98, hair, 5)  # on both sides of the face
    brush.block(-2.8, 80, 2.8, 87, person.skin)
    brush.ellipse(-6, 84, 6, 99.5, person.skin)
    if view == "side":
        brush.polygon(((5.2, 93), (7.6, 90), (5.2, 89.5)), person.skin)  # nose
    if person.hair_style != "bald":
        brush.cap(-6.8, 85.5, 6.8, 101, hair)
        if view == "back":
            brush.ellipse(-6.6, 85.5, 6.6, 100, hair)
        elif view == "side":
            brush.block(-6.8, 87, -0.5, 95, hair, 2)
    if person.hair_style == "long" and view != "front":
        brush.block(-7.0, 75, 7.0 if view == "back" else -1.0, 95, hair, 3)
    if view == "front":
        brush.ellipse(-5.4, 86, 5.4, 96.5, person.skin)  # the face, below the hair line
        for x in (-2.4, 2.4):
            brush.ellipse(x - 0.7, 91.2, x + 0.7, 92.5, (60, 44, 38))
    if person.hat is not None:
        brush.cap(-7.2, 87, 7.2, 104, person.hat)
        peak = {"front": (-6.5, 6.5), "side": (-7.2, 12.0), "back": (-7.2, 7.2)}[view]
        brush.block(peak[0], 94, peak[1], 96.3, _shaded(person.hat, 0.8), 1)


def _shaded(colour: Colour, factor: float) -> Colour:
    red, green, blue = (min(255, round(channel * factor)) for channel in colour)
    return red, green, blue


# -- cameras ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Camera:
    wall: Colour
    floor: Colour
    views: tuple[str, ...]  # of the people that pass it
    brightness: float
    contrast: float
    cast: tuple[float, float, float]  # factors of red, green and blue
    blur: float  # radius, pixels
    noise: float  # standard deviation, levels of 255


CAMERAS = (
    _Camera((176, 168, 152), (132, 128, 122), ("front", "side"), 1.05, 1.0, (1.06, 1.0, 0.92), 0.3, 5.0),
    _Camera((120, 150, 110), (96, 128, 78), ("back", "front"), 0.72, 0.85, (0.90, 1.0, 1.14), 0.7, 9.0),
    _Camera((150, 172, 190), (186, 182, 176), ("side", "back"), 1.22, 0.9, (1.0, 1.05, 0.98), 0.5, 6.0),
    _Camera((92, 92, 100), (74, 74, 78), ("front", "back"), 0.6, 1.1, (1.16, 0.97, 0.82), 0.9, 11.0),
)


def photograph(person: Person, camera: _Camera, rng: random.Random) -> Image.Image:
    """One image of a person, ``HEIGHT`` × ``WIDTH``, as a camera sees it."""
    scene = _background(camera, rng)
    figure = _figure(person, rng.choice(camera.views), rng)
    if rng.random() < 0.5:
        figure = figure.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    figure = _placed(figure, rng)
    scene.paste(figure, (0, 0), figure)
    if rng.random() < 0.2:
        _occlude(scene, rng)
    return _expose(scene.resize((WIDTH, HEIGHT), Image.Resampling.BOX), camera, rng)


def _background(camera: _Camera, rng: random.Random) -> Image.Image:
    """A wall and a floor, a little different each time, with windows, posts and what else stands about."""
    width, height = WIDTH * _ENLARGED, HEIGHT * _ENLARGED
    image = Image.new("RGB", (width, height), _shaded(camera.wall, rng.uniform(0.85, 1.15)))
    draw = ImageDraw.Draw(image)
    horizon = round(height * rng.uniform(0.45, 0.75))
    draw.rectangle((0, horizon, width, height), fill=_shaded(camera.floor, rng.uniform(0.85, 1.15)))
    for _ in range(rng.randint(2, 5)):
        x, y = rng.uniform(-0.2, 1.0) * width, rng.uniform(-0.2, 1.0) * height
        tint = _shaded(rng.choice((camera.wall, camera.floor, *_CLOTHES)), rng.uniform(0.5, 1.2))
        blend = tuple(round(0.5 * a + 0.5 * b) for a, b in zip(tint, camera.wall, strict=True))
        draw.rectangle((x, y, x + rng.uniform(0.05, 0.5) * width, y + rng.uniform(0.05, 0.5) * height), fill=blend)
    return image


def _placed(figure: Image.Image, rng: random.Random) -> Image.Image:
    """The figure scaled, turned and shifted as a detector's loose box would show it."""
    scale, turn = rng.uniform(0.82, 1.08), math.radians(rng.uniform(-5, 5))
    middle_x, middle_y = figure.width / 2, figure.height / 2
    shift_x, shift_y = rng.uniform(-0.12, 0.12) * figure.width, rng.uniform(-0.06, 0.06) * figure.height
    cos, sin = math.cos(turn) / scale, math.sin(turn) / scale
    # From each pixel of the result to the place in the figure that it shows.
    x0 = middle_x - cos * (middle_x + shift_x) + sin * (middle_y + shift_y)
    y0 = middle_y - sin * (middle_x + shift_x) - cos * (middle_y + shift_y)
    matrix = (cos, -sin, x0, sin, cos, y0)
    return figure.transform(figure.size, Image.Transform.AFFINE, matrix, resample=Image.Resampling.BILINEAR)


def _occlude(scene: Image.Image, rng: random.Random) -> None:
    """A post, or a railing over the legs, stands in front."""
    grey = rng.randint(60, 150)
    if rng.random() < 0.5:
        x = rng.uniform(0.0, 0.9) * scene.width
        box = (x, 0.0, x + rng.uniform(0.06, 0.2) * scene.width, float(scene.height))
    else:
        box = (0.0, rng.uniform(0.6, 0.9) * scene.height, float(scene.width), float(scene.height))
    ImageDraw.Draw(scene).rectangle(box, fill=(grey, grey, round(grey * 0.95)))


def _expose(image: Image.Image, camera: _Camera, rng: random.Random) -> Image.Image:
    image = image.filter(ImageFilter.GaussianBlur(camera.blur * rng.uniform(0.6, 1.4)))
    pixels = np.asarray(image, dtype=np.float32) / 255.0  # (HEIGHT, WIDTH, 3)
    light = camera.brightness * rng.uniform(0.8, 1.2)
    from_the_side = 1.0 + rng.uniform(-0.25, 0.25) * np.linspace(-1.0, 1.0, WIDTH, dtype=np.float32)[None, :, None]
    pixels = (
        ((pixels - 0.5) * camera.contrast + 0.5) * light * from_the_side * np.asarray(camera.cast, dtype=np.float32)
    )
    grain = np.random.default_rng(rng.getrandbits(32)).normal(0.0, camera.noise / 255.0, pixels.shape)
    return Image.fromarray((np.clip(pixels + grain, 0.0, 1.0) * 255.0).round().astype(np.uint8))
