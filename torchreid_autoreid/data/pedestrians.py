"""Pedestrians that the plugin draws itself: a dataset that needs no download.

Clothes, their patterns, shoes, hair, skin, a bag, a hat and build make the identity; light, colour cast, blur, noise,
scale, view and background make the camera. Half of the identities come in pairs that differ in one part only, so parts matter.
"""

from __future__ import annotations

import colorsys
import json
import os
import random
import shutil
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torchreid
from PIL import Image, ImageDraw, ImageFilter

from ..errors import UserError

__all__ = ["SyntheticPedestrians"]

HEIGHT, WIDTH = 128, 64  # pixels, Market-1501's size
CAMERAS = 4
TRAIN_IDENTITIES = 48
TEST_IDENTITIES = 48
IMAGES_PER_CAMERA = 4
DISTRACTORS = 32
_DRAWING = {
    "version": 1,  # raise it with every change of what is drawn
    "seed": 1501,
    "train_identities": TRAIN_IDENTITIES,
    "test_identities": TEST_IDENTITIES,
    "images_per_camera": IMAGES_PER_CAMERA,
    "cameras": CAMERAS,
    "distractors": DISTRACTORS,
}
_SUBSETS = ("bounding_box_train", "query", "bounding_box_test")
_SCALE = 3  # drawn larger, then reduced, for smooth edges

Colour = tuple[int, int, int]


class SyntheticPedestrians(torchreid.data.ImageDataset):
    """The embedded default dataset, drawn into ``<root>/synthetic_pedestrians`` on first use (a few seconds), always the same.

    Files are named and laid out as in Market-1501. ``-s synthetic_pedestrians -t synthetic_pedestrians``.

    Raises:
        UserError: if the folder cannot be written.
    """

    dataset_dir = "synthetic_pedestrians"
    _junk_pids = [0, -1]

    def __init__(self, root: str = "", **options: Any) -> None:
        folder = Path(root or ".").expanduser().absolute() / self.dataset_dir
        if not is_complete(folder):
            try:
                draw_dataset(folder)
            except OSError as error:
                raise UserError(f"cannot draw the pedestrians into {folder} ({error}); give a writable --root") from None
        train, query, gallery = (_read(folder / subset) for subset in _SUBSETS)
        numbers = {pid: number for number, pid in enumerate(sorted({pid for _, pid, _ in train}))}
        super().__init__([(path, numbers[pid], camid) for path, pid, camid in train], query, gallery, **options)


def _read(folder: Path) -> list[tuple[str, int, int]]:
    return [(str(path), int(path.name[:4]), int(path.name[6]) - 1) for path in sorted(folder.glob("*.jpg"))]


def is_complete(folder: Path) -> bool:
    """Whether the folder holds this very drawing, whole: its marker names the sizes of all files."""
    try:
        marker = json.loads((folder / "drawing.json").read_text(encoding="utf-8"))
        return marker["drawing"] == _DRAWING and all(
            (folder / name).stat().st_size == size for name, size in marker["files"].items()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def draw_dataset(folder: Path) -> None:
    """Draws all images into a temporary folder beside ``folder`` and moves it there in one step."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        os.chmod(work, 0o755)
        for subset in _SUBSETS:
            (work / subset).mkdir()
        for name, image in _draw_all():
            image.save(work / name, quality=92)
        files = {str(path.relative_to(work)): path.stat().st_size for path in sorted(work.rglob("*.jpg"))}
        (work / "drawing.json").write_text(json.dumps({"drawing": _DRAWING, "files": files}), encoding="utf-8")
        _put_in_place(work, folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _put_in_place(work: Path, folder: Path) -> None:
    """Several processes may draw at the same time; they draw the same, so the first one to arrive wins."""
    for _ in range(2):
        try:
            work.rename(folder)
            return
        except OSError:
            if is_complete(folder):
                return
            stale = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
            try:
                folder.rename(stale / "stale")  # an older drawing, or half of one
            finally:
                shutil.rmtree(stale, ignore_errors=True)
    work.rename(folder)


def _draw_all() -> Any:
    """Yields ``(file name, image)`` of the whole dataset."""
    rng = random.Random(_DRAWING["seed"])
    people = _people(TRAIN_IDENTITIES + TEST_IDENTITIES, rng)
    for number, person in enumerate(people, start=1):
        for camera in range(CAMERAS):
            for shot in range(IMAGES_PER_CAMERA):
                image = _photograph(person, camera, random.Random(f"{number}/{camera}/{shot}"))
                subset = _SUBSETS[0] if number <= TRAIN_IDENTITIES else _SUBSETS[1 if shot == 0 else 2]
                yield f"{subset}/{number:04d}_c{camera + 1}s1_{shot:06d}_00.jpg", image
    for number, person in enumerate(_people(DISTRACTORS, rng)):
        camera = number % CAMERAS
        image = _photograph(person, camera, random.Random(f"distractor/{number}"))
        yield f"{_SUBSETS[2]}/0000_c{camera + 1}s1_{number:06d}_00.jpg", image


# -- identities -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Person:
    """What stays the same from camera to camera."""

    skin: Colour
    hair: Colour
    hair_style: str  # short, long, bald
    hat: Colour | None
    top: Colour
    top_second: Colour
    top_pattern: str  # plain, stripes, halves, logo
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
_CLOTHES: tuple[Colour, ...] = tuple(
    tuple(int(255 * channel) for channel in colorsys.hsv_to_rgb(hue, saturation, value))  # type: ignore[misc]
    for hue, saturation, value in (
        (0.0, 0.0, 0.12),
        (0.0, 0.0, 0.45),
        (0.0, 0.0, 0.92),
        (0.0, 0.75, 0.7),
        (0.07, 0.8, 0.85),
        (0.14, 0.7, 0.9),
        (0.33, 0.6, 0.5),
        (0.5, 0.6, 0.65),
        (0.6, 0.7, 0.75),
        (0.65, 0.65, 0.35),
        (0.78, 0.5, 0.55),
        (0.92, 0.45, 0.85),
        (0.08, 0.5, 0.45),
    )
)


def _person(rng: random.Random) -> Person:
    return Person(
        skin=rng.choice(_SKINS),
        hair=rng.choice(_HAIRS),
        hair_style=rng.choice(("short", "short", "long", "bald")),
        hat=rng.choice((None, None, None, rng.choice(_CLOTHES))),
        top=rng.choice(_CLOTHES),
        top_second=rng.choice(_CLOTHES),
        top_pattern=rng.choice(("plain", "plain", "stripes", "halves", "logo")),
        sleeves=rng.choice(("long", "short")),
        legs=rng.choice(_CLOTHES),
        leg_style=rng.choice(("trousers", "trousers", "shorts", "skirt")),
        shoes=rng.choice(_CLOTHES),
        bag=rng.choice(("none", "none", "backpack", "shoulder bag", "suitcase")),
        bag_colour=rng.choice(_CLOTHES),
        build=rng.uniform(0.85, 1.2),
        height=rng.uniform(0.92, 1.05),
    )


def _people(count: int, rng: random.Random) -> list[Person]:
    """Half of the people are on their own, half come in pairs that differ in one part."""
    people: list[Person] = []
    while len(people) < count:
        person = _person(rng)
        people.append(person)
        if rng.random() < 1 / 3:
            people.append(_near_twin(person, rng))
    return people[:count]


def _near_twin(person: Person, rng: random.Random) -> Person:
    part = rng.choice(("top", "legs", "shoes", "bag", "hat", "sleeves"))
    other = lambda colour: rng.choice([c for c in _CLOTHES if c != colour])  # noqa: E731
    if part == "bag":
        return replace(person, bag="none" if person.bag != "none" else "backpack")
    if part == "hat":
        return replace(person, hat=None if person.hat else rng.choice(_CLOTHES))
    if part == "sleeves":
        return replace(person, sleeves="short" if person.sleeves == "long" else "long", shoes=other(person.shoes))
    return replace(person, **{part: other(getattr(person, part))})


# -- drawing ----------------------------------------------------------------------------------------------------------


def _figure(person: Person, view: str, rng: random.Random) -> Image.Image:
    """The person alone on a transparent ground, ``_SCALE`` times the final size."""
    canvas = Image.new("RGBA", (WIDTH * _SCALE, HEIGHT * _SCALE))
    draw = ImageDraw.Draw(canvas)
    centre = WIDTH * _SCALE / 2
    unit = HEIGHT * _SCALE * 0.92 * person.height / 100  # a person is 100 units high
    ground = HEIGHT * _SCALE * 0.97
    girth = person.build * (0.72 if view == "side" else 1.0)
    stride, swing = rng.uniform(-5, 5), rng.uniform(-4, 4)

    def box(x0: float, y0: float, x1: float, y1: float) -> list[float]:
        """Units, x from the middle of the body and y from the ground up, to pixels."""
        left, right = sorted((centre + x0 * unit, centre + x1 * unit))
        return [left, ground - y1 * unit, right, ground - y0 * unit]

    def limb(x0: float, y0: float, x1: float, y1: float, width: float, colour: Colour) -> None:
        points = [centre + x0 * unit, ground - y0 * unit, centre + x1 * unit, ground - y1 * unit]
        draw.line(points, fill=colour, width=max(1, round(width * unit)))

    def bag() -> None:
        if person.bag == "backpack":
            shift = {"front": 0.0, "back": 0.0, "side": -8.0}[view]
            wide = 11.5 if view != "side" else 6.0
            draw.rounded_rectangle(box(shift - wide, 54, shift + wide, 80), 3 * unit, fill=person.bag_colour)

    if view != "back":
        bag()
    # Legs.
    hip = 5.0 * girth
    for side in (-1, 1):
        foot = side * hip * (1.0 if view != "side" else 0.3) + side * stride
        bare_from = {"trousers": 0, "shorts": 28, "skirt": 30}[person.leg_style]
        limb(side * hip * 0.8, 47, foot, 4, 7.5, person.skin if bare_from else person.legs)
        if person.leg_style == "shorts":
            middle = 0.45
            limb(side * hip * 0.8, 47, side * hip * 0.8 + (foot - side * hip * 0.8) * middle, 27, 9.0, person.legs)
        toe = 4.0 if view == "side" else 1.0
        draw.ellipse(box(foot - 4, 0, foot + 4 + toe, 6), fill=person.shoes)
    if person.leg_style == "skirt":
        draw.polygon(
            [(centre + x * unit, ground - y * unit) for x, y in ((-8 * girth, 50), (8 * girth, 50), (12 * girth, 26), (-12 * girth, 26))],
            fill=person.legs,
        )
    # Arms, behind the body's edge.
    for side in (-1, 1):
        hand = side * (14 * girth) + swing * side
        limb(side * 10 * girth, 78, hand, 46, 5.5, person.skin if person.sleeves == "short" else person.top)
        if person.sleeves == "short":
            limb(side * 10 * girth, 78, side * 11.5 * girth + swing * side * 0.3, 67, 6.5, person.top)
        else:
            draw.ellipse(box(hand - 2.5, 43, hand + 2.5, 48), fill=person.skin)
    # Body with its pattern.
    body = box(-11 * girth, 46, 11 * girth, 82)
    draw.rounded_rectangle(body, 4 * unit, fill=person.top)
    if person.top_pattern == "stripes":
        for low in (51, 60, 69):
            draw.rectangle(box(-11 * girth, low, 11 * girth, low + 4), fill=person.top_second)
    elif person.top_pattern == "halves":
        draw.rounded_rectangle(box(-11 * girth, 46, 11 * girth, 62), 3 * unit, fill=person.top_second)
    elif person.top_pattern == "logo" and view != "back":
        draw.ellipse(box(-5, 62, 5, 74), fill=person.top_second)
    if view == "back":
        bag()
    if person.bag == "shoulder bag":
        side = {"front": 1, "back": -1, "side": 1}[view]  # worn on the same shoulder, seen from the other side
        limb(-side * 8, 82, side * 11 * girth, 52, 1.8, person.bag_colour)
        draw.rounded_rectangle(box(side * 7 * girth, 40, side * 18 * girth, 55), 2 * unit, fill=person.bag_colour)
    elif person.bag == "suitcase":
        side = {"front": 1, "back": -1, "side": 1}[view]
        draw.rounded_rectangle(box(side * 14, 2, side * 25, 28), 2 * unit, fill=person.bag_colour)
        limb(side * 16, 28, side * 15, 46, 1.5, (60, 60, 60))
    # Head.
    draw.rectangle(box(-3, 80, 3, 86), fill=person.skin)
    if person.hair_style == "long":
        draw.rounded_rectangle(box(-7.5, 76, 7.5, 97), 5 * unit, fill=person.hair)
    draw.ellipse(box(-6, 84, 6, 99), fill=person.skin)
    if person.hair_style != "bald":
        cover = {"front": 93, "side": 90, "back": 86}[view]
        draw.chord(box(-6.8, 84, 6.8, 100.5), 180, 360, fill=person.hair)
        draw.rectangle(box(-6.5, cover, 6.5, 93), fill=person.hair)
        if view == "side":
            draw.rectangle(box(1.5, 84, 6, 92), fill=person.skin)
    if person.hat is not None:
        draw.chord(box(-7.5, 88, 7.5, 103), 180, 360, fill=person.hat)
        draw.rectangle(box(-7.5 if view != "side" else -7, 94, 7.5 if view != "side" else 12, 96.5), fill=person.hat)
    return canvas


def _background(camera: int, rng: random.Random) -> Image.Image:
    """A place a camera, a little different each time: wall and pavement, lawn, glass front, road."""
    wall, floor = (
        ((176, 168, 152), (132, 128, 122)),
        ((120, 150, 110), (96, 128, 78)),
        ((150, 172, 190), (186, 182, 176)),
        ((92, 92, 100), (74, 74, 78)),
    )[camera]
    size = (WIDTH * _SCALE, HEIGHT * _SCALE)
    image = Image.new("RGB", size, wall)
    draw = ImageDraw.Draw(image)
    horizon = round(size[1] * rng.uniform(0.45, 0.75))
    draw.rectangle([0, horizon, size[0], size[1]], fill=floor)
    for _ in range(rng.randint(2, 5)):  # windows, posts, other people's shadows
        x, y = rng.uniform(-20, size[0]), rng.uniform(-20, size[1])
        shade = tuple(int(channel * rng.uniform(0.5, 1.4)) for channel in (wall if y < horizon else floor))
        width, height = rng.uniform(8, 70), rng.uniform(10, 140)
        draw.rectangle([x, y, x + width, y + height], fill=shade)
    return image


#: brightness, contrast, red / green / blue cast, blur radius (pixels), noise (levels), of each camera
_CAMERAS = (
    (1.05, 1.0, (1.06, 1.0, 0.92), 0.3, 5.0),
    (0.72, 0.85, (0.90, 1.0, 1.14), 0.7, 9.0),
    (1.22, 0.9, (1.0, 1.05, 0.98), 0.5, 6.0),
    (0.55, 1.1, (1.16, 0.97, 0.82), 0.9, 11.0),
)
_VIEWS = (("front", "side"), ("back", "front"), ("side", "back"), ("front", "back"))


def _photograph(person: Person, camera: int, rng: random.Random) -> Image.Image:
    """One image of a person by a camera: view, scale, offset, an occluder at times, then the camera's own light."""
    figure = _figure(person, rng.choice(_VIEWS[camera]), rng)
    if rng.random() < 0.5:
        figure = figure.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    scale = rng.uniform(0.82, 1.08)
    size = (round(figure.width * scale), round(figure.height * scale))
    figure = figure.rotate(rng.uniform(-5, 5), resample=Image.Resampling.BILINEAR).resize(size)
    scene = _background(camera, rng)
    offset = (
        round((scene.width - size[0]) / 2 + rng.uniform(-0.12, 0.12) * scene.width),
        round((scene.height - size[1]) / 2 + rng.uniform(-0.06, 0.06) * scene.height),
    )
    scene.paste(figure, offset, figure)
    if rng.random() < 0.2:  # a post or a railing in front
        draw = ImageDraw.Draw(scene)
        x, y = rng.uniform(0, scene.width), rng.uniform(0.5, 0.9) * scene.height
        shade = tuple(rng.randint(60, 150) for _ in range(3))
        draw.rectangle([x, y if rng.random() < 0.5 else 0, x + rng.uniform(12, 40), scene.height], fill=shade)
    image = scene.resize((WIDTH, HEIGHT), Image.Resampling.BOX)
    return _expose(image, camera, rng)


def _expose(image: Image.Image, camera: int, rng: random.Random) -> Image.Image:
    brightness, contrast, cast, blur, noise = _CAMERAS[camera]
    image = image.filter(ImageFilter.GaussianBlur(blur * rng.uniform(0.6, 1.4)))
    pixels = np.asarray(image, dtype=np.float32) / 255.0
    light = brightness * rng.uniform(0.8, 1.2)
    slope = 1.0 + rng.uniform(-0.25, 0.25) * np.linspace(-1.0, 1.0, WIDTH, dtype=np.float32)[None, :, None]
    pixels = ((pixels - 0.5) * contrast + 0.5) * light * slope * np.asarray(cast, dtype=np.float32)
    grain = np.random.default_rng(rng.getrandbits(32)).normal(0.0, noise / 255.0, pixels.shape)
    return Image.fromarray((np.clip(pixels + grain, 0.0, 1.0) * 255.0).round().astype(np.uint8))
