"""A user's own images as a torchreid dataset, and torchreid's table of datasets."""

from __future__ import annotations

import re
from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torchreid

from ..errors import UserError
from .pedestrians import SyntheticPedestrians

__all__ = ["FolderDataset", "check_dataset", "dataset_names", "register_datasets"]

_IMAGE_ENDINGS = {".jpg", ".jpeg", ".png", ".bmp"}
_MARKET_NAME = re.compile(r"(-?\d+)_c(\d+)", re.IGNORECASE)  # 0002_c1s1_000451_03.jpg
_CAMERA_NAME = re.compile(r"(?:camera|cam|c)?_?(\d+)(?:s\d+)?(?:[_.\-]|$)", re.IGNORECASE)  # c1_0001.jpg, 1_0001.jpg, cam03_a.jpg

#: What to do without any data.
_EMBEDDED = "to try without data: python projects/autoreid/search.py --config-file configs/autoreid_search.yaml"


def _table() -> dict[str, Any]:
    """torchreid's table of image datasets; it offers no public way to list it."""
    return vars(torchreid.data.datasets)["__image_datasets"]


def dataset_names() -> list[str]:
    """The names that ``--sources`` and ``--targets`` know."""
    return sorted(_table())


def register_datasets() -> None:
    """Registers the plugin's datasets with torchreid; safe to call again."""
    for name, dataset in (("folder", FolderDataset), ("synthetic_pedestrians", SyntheticPedestrians)):
        if name not in _table():
            torchreid.data.register_image_dataset(name, dataset)


def check_dataset(name: str, root: str) -> None:
    """Makes sure that a dataset is known and where torchreid will look for it.

    torchreid would try to download what is missing; what it then finds is often a dead address.

    Raises:
        UserError: saying where the data is expected.
    """
    if name not in _table():
        near = get_close_matches(name, dataset_names(), n=2)
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        raise UserError(f"unknown dataset {name!r}; {hint}choose from {', '.join(dataset_names())}")
    if name == "synthetic_pedestrians":
        return
    folder = Path(root or ".").expanduser() / (getattr(_table()[name], "dataset_dir", "") or "")
    if not folder.is_dir():
        raise UserError(
            f"the dataset {name} is expected in {folder}, which does not exist; give its parent folder with --root; {_EMBEDDED}"
        )


class FolderDataset(torchreid.data.ImageDataset):
    """A user's own images: ``-s folder -t folder --root DIR`` with ``DIR/train``, ``DIR/query`` and ``DIR/gallery``.

    Identity and camera are read in one of two ways, the same in all three folders:

    - from Market-style names: ``train/0002_c1s1_000451_03.jpg`` (identity 2, camera 1); in query and gallery, identity ``-1`` is
      junk and left out, identity ``0`` is a distractor and kept;
    - from a folder an identity, whose name may be any text, and names that begin with the camera:
      ``train/alice/c1_0001.jpg``, ``train/alice/2_0001.png``, ``train/alice/cam03_x.jpg``.

    Raises:
        UserError: if a folder is missing or empty, the two ways are mixed, or a name cannot be read; it is named.
    """

    dataset_dir = ""
    _junk_pids = [-1, 0]

    def __init__(self, root: str = "", **options: Any) -> None:
        folder = Path(root or ".").expanduser().absolute()
        parts = {name: _images(folder / name) for name in ("train", "query", "gallery")}
        flat = {name: {path.parent == folder / name for path in paths} for name, paths in parts.items()}
        if len(set().union(*flat.values())) > 1:
            raise UserError(
                f"{folder} mixes images directly in train/, query/ or gallery/ with images in folders of an identity; use one way"
            )
        read = _read_market_name if flat["train"] == {True} else _FolderNames()
        labelled = {name: _labelled(paths, read) for name, paths in parts.items()}
        train = [item for item in labelled["train"] if item[1] not in (-1, 0) or read is not _read_market_name]
        if not train:
            raise UserError(f"{folder / 'train'} holds junk and distractors only (identities -1 and 0); add labelled images")
        numbers = {pid: number for number, pid in enumerate(sorted({pid for _, pid, _ in train}))}
        super().__init__(
            [(path, numbers[pid], camid) for path, pid, camid in train],
            [item for item in labelled["query"] if item[1] != -1],
            [item for item in labelled["gallery"] if item[1] != -1],
            **options,
        )


def _images(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise UserError(
            f"the dataset folder needs {folder}, which does not exist; --root must hold train/, query/ and gallery/"
        )
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in _IMAGE_ENDINGS and path.is_file())
    if not paths:
        raise UserError(f"{folder} holds no images ({', '.join(sorted(_IMAGE_ENDINGS))}); put some there")
    return paths


def _labelled(paths: list[Path], read: Callable[[Path], tuple[int, int] | None]) -> list[tuple[str, int, int]]:
    labels = [(path, read(path)) for path in paths]
    if unread := [path for path, label in labels if label is None]:
        raise UserError(
            f"cannot read identity and camera from {len(unread)} of {len(paths)} names, such as {unread[0]}; "
            "name images 0002_c1s1_000451_03.jpg, or put them into a folder an identity as c1_0001.jpg"
        )
    return [(str(path), *label) for path, label in labels if label is not None]


def _read_market_name(path: Path) -> tuple[int, int] | None:
    match = _MARKET_NAME.match(path.name)
    return (int(match[1]), int(match[2]) - 1) if match and int(match[1]) >= -1 else None


class _FolderNames:
    """Numbers identities by the names of their folders; query and gallery share the numbering."""

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}

    def __call__(self, path: Path) -> tuple[int, int] | None:
        match = _CAMERA_NAME.match(path.stem)
        if not match:
            return None
        return self.numbers.setdefault(path.parent.name, len(self.numbers) + 1), int(match[1])
