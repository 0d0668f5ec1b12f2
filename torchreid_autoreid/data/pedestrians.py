"""Pedestrians that the plugin draws itself, as a dataset: it needs no download."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torchreid
from filelock import FileLock
from PIL import Image

from ..errors import UserError
from .drawing import CAMERAS, draw_people, photograph

__all__ = ["SyntheticPedestrians"]

TRAIN_IDENTITIES = 48
TEST_IDENTITIES = 48
IMAGES_PER_CAMERA = 4
DISTRACTORS = 32  # people who are in the gallery only, once
_DRAWING = {
    "version": 2,  # raise it with every change of what is drawn
    "seed": 1501,
    "train_identities": TRAIN_IDENTITIES,
    "test_identities": TEST_IDENTITIES,
    "images_per_camera": IMAGES_PER_CAMERA,
    "distractors": DISTRACTORS,
}
_TRAIN, _QUERY, _GALLERY = _SUBSETS = ("bounding_box_train", "query", "bounding_box_test")
_MARKER = "drawing.json"


class SyntheticPedestrians(torchreid.data.ImageDataset):
    """The embedded default, drawn into ``<root>/synthetic_pedestrians`` on first use (a few seconds), always the same.

    48 identities to train on and 48 others to test on, each seen four times by each of four cameras, and 32
    distractors. Files are named and laid out as in Market-1501; the first image by each camera is the query. A drawing
    that is torn, or of an older version, is drawn again. Use: ``-s synthetic_pedestrians -t synthetic_pedestrians``.

    Raises:
        UserError: if the folder cannot be written.
    """

    dataset_dir = "synthetic_pedestrians"
    _junk_pids = [0, -1]

    def __init__(self, root: str = "", **options: Any) -> None:
        folder = Path(root or ".").expanduser().absolute() / self.dataset_dir
        try:
            draw_dataset(folder)
        except OSError as error:
            raise UserError(
                f"cannot draw the pedestrians into {folder} ({error}); give a folder that can be written with --root"
            ) from error
        train, query, gallery = (_read(folder / subset) for subset in _SUBSETS)
        numbers = {pid: number for number, pid in enumerate(sorted({pid for _, pid, _ in train}))}
        super().__init__([(path, numbers[pid], camid) for path, pid, camid in train], query, gallery, **options)


def _read(folder: Path) -> list[tuple[str, int, int]]:
    return [(str(path), int(path.name[:4]), int(path.name[6]) - 1) for path in sorted(folder.iterdir())]


def draw_dataset(folder: Path) -> None:
    """Draws the dataset unless it is there, whole and up to date. Processes that race draw it once.

    Raises:
        OSError: if the folder cannot be written.
    """
    if _is_complete(folder):
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f".{folder.name}.lock")):
        if _is_complete(folder):  # by another process, while this one waited
            return
        for left_behind in folder.parent.glob(f".{folder.name}.drawing-*"):
            shutil.rmtree(left_behind, ignore_errors=True)
        work = Path(tempfile.mkdtemp(prefix=f".{folder.name}.drawing-", dir=folder.parent))
        try:
            work.chmod(0o755)
            _draw_into(work)
            if folder.exists():
                folder.rename(work / "stale")
            # In two steps, since a folder cannot be moved into the place of the one it holds.
            (work / "new").rename(folder)
        finally:
            shutil.rmtree(work, ignore_errors=True)


def _draw_into(work: Path) -> None:
    new = work / "new"
    for subset in _SUBSETS:
        (new / subset).mkdir(parents=True)
    for name, image in _images():
        image.save(new / name, quality=92)
    (new / _MARKER).write_text(json.dumps(_DRAWING | {"sha256": _checksum(new)}), encoding="utf-8")


def _is_complete(folder: Path) -> bool:
    """Whether the folder holds this very drawing, whole."""
    try:
        marker = json.loads((folder / _MARKER).read_text(encoding="utf-8"))
        return bool(marker == _DRAWING | {"sha256": _checksum(folder)})
    except (OSError, ValueError):
        return False


def _checksum(folder: Path) -> str:
    """Of the names and the bytes of all images."""
    digest = hashlib.sha256()
    for subset in _SUBSETS:
        for path in sorted((folder / subset).iterdir()):
            digest.update(f"{subset}/{path.name}\n".encode())
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _images() -> Iterator[tuple[str, Image.Image]]:
    """Yields ``(file name, image)`` of the whole dataset."""
    rng = random.Random(_DRAWING["seed"])
    for number, person in enumerate(draw_people(TRAIN_IDENTITIES + TEST_IDENTITIES, rng), start=1):
        for camera_number, camera in enumerate(CAMERAS, start=1):
            for shot in range(IMAGES_PER_CAMERA):
                subset = _TRAIN if number <= TRAIN_IDENTITIES else _QUERY if shot == 0 else _GALLERY
                image = photograph(person, camera, random.Random(f"{number}/{camera_number}/{shot}"))
                yield f"{subset}/{number:04d}_c{camera_number}s1_{shot:06d}_00.jpg", image
    for number, person in enumerate(draw_people(DISTRACTORS, rng)):
        camera_number = number % len(CAMERAS) + 1
        image = photograph(person, CAMERAS[camera_number - 1], random.Random(f"distractor/{number}"))
        yield f"{_GALLERY}/0000_c{camera_number}s1_{number:06d}_00.jpg", image
