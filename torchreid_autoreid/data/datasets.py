"""A user's own images as a torchreid dataset, and torchreid's table of datasets."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torchreid

from ..errors import UserError
from .pedestrians import SyntheticPedestrians

__all__ = ["FolderDataset", "check_dataset", "dataset_names", "register_datasets"]

_LOGGER = logging.getLogger(__name__)

_IMAGE_ENDINGS = {".jpg", ".jpeg", ".png", ".bmp"}
_MARKET_NAME = re.compile(r"(-1|\d+)_c(\d+)", re.IGNORECASE)  # 0002_c1s1_000451_03.jpg
_CAMERA_NAME = re.compile(
    r"(?:camera|cam|c)?_?(\d+)(?:s\d+)?(?:[_.\-]|$)", re.IGNORECASE
)  # c1_1.jpg, 1_1.jpg, cam03-a.jpg
_JUNK, _DISTRACTOR = -1, 0  # identities in Market-1501's names

#: What to do without any data.
_EMBEDDED = "to try without data: python projects/autoreid/search.py --config-file configs/autoreid_search.yaml"

Read = Callable[[Path], "tuple[int, int] | None"]  # identity and camera by a path, or None
Labelled = list[tuple[str, int, int]]  # path, identity, camera


def _table() -> dict[str, Any]:
    """torchreid's table of image datasets; it offers no public way to list it."""
    table = vars(torchreid.data.datasets).get("__image_datasets")
    if not isinstance(table, dict):
        raise RuntimeError(
            f"torchreid {torchreid.__version__} keeps its datasets elsewhere; this plugin supports 0.2.5 and 1.4.0"
        )
    return table


def dataset_names() -> list[str]:
    """The names that ``--sources`` and ``--targets`` know.

    >>> "folder" in dataset_names(), "market1501" in dataset_names()
    (True, True)
    """
    return sorted(_table())


def register_datasets() -> None:
    """Registers the plugin's datasets with torchreid; safe to call again."""
    for name, dataset in (("folder", FolderDataset), ("synthetic_pedestrians", SyntheticPedestrians)):
        if name not in _table():
            torchreid.data.register_image_dataset(name, dataset)


def check_dataset(name: str, root: str) -> None:
    """Makes sure that a dataset is known, and that its folder is there if it is one of torchreid's own.

    torchreid would try to download what is missing, often from an address that is dead.

    Raises:
        UserError: saying where the data is expected.
    """
    if name not in _table():
        near = get_close_matches(str(name), dataset_names(), n=2)
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        raise UserError(f"unknown dataset {name!r}; {hint}choose from {', '.join(dataset_names())}")
    dataset = _table()[name]
    if not dataset.__module__.startswith("torchreid."):
        return  # it looks for its own data
    folder = Path(root or ".").expanduser().absolute() / dataset.dataset_dir
    if not folder.is_dir():
        raise UserError(
            f"the dataset {name} is expected in {folder}, which does not exist; "
            f"give the folder that holds {dataset.dataset_dir}/ with --root; {_EMBEDDED}"
        )


class FolderDataset(torchreid.data.ImageDataset):
    """A user's own images: ``-s folder -t folder --root DIR`` with ``DIR/train``, ``DIR/query`` and ``DIR/gallery``.

    Identity and camera are read in one of two ways, the same in all three folders:

    - from Market-style names: ``train/0002_c1s1_000451_03.jpg`` is identity 2 by camera 1. Identity ``-1`` is junk and
      left out; identity ``0`` is a distractor, kept in query and gallery;
    - from a folder an identity, whose name may be any text, and file names that begin with the camera:
      ``train/alice/c1_0001.jpg``, ``train/alice/2_0001.png``, ``train/alice/cam03_x.jpg``.

    Images end in .jpg, .jpeg, .png or .bmp, in any case. Hidden files are passed over. Pixels are taken as they are
    stored, as everywhere in torchreid: apply the rotation that a phone notes beside them (EXIF) before.

    Raises:
        UserError: if a folder is missing or empty, the two ways are mixed, or a name cannot be read; one is named.

    >>> import tempfile
    >>> from PIL import Image
    >>> root = Path(tempfile.mkdtemp())
    >>> for name in ("train/alice/c1_1.jpg", "query/bob/c1_1.jpg", "gallery/bob/cam2_1.png"):
    ...     (root / name).parent.mkdir(parents=True)
    ...     Image.new("RGB", (32, 64)).save(root / name)
    >>> dataset = FolderDataset(str(root), mode="query", verbose=False)
    >>> [(pid, camid) for _, pid, camid, _ in dataset.gallery]
    [(2, 2)]
    """

    dataset_dir = ""
    _junk_pids = [_JUNK, _DISTRACTOR]

    def __init__(self, root: str = "", **options: Any) -> None:
        folder = Path(root or ".").expanduser().absolute()
        paths = {part: _images(folder / part) for part in ("train", "query", "gallery")}
        read = _way_of_naming(folder, [path for part in paths.values() for path in part])
        train, query, gallery = (_labelled(part, read) for part in paths.values())
        unlabelled = [item for item in train if item[1] in (_JUNK, _DISTRACTOR)]
        train = [item for item in train if item[1] not in (_JUNK, _DISTRACTOR)]
        if not train:
            raise UserError(f"{folder / 'train'} holds junk and distractors only; add images of identities above 0")
        if unlabelled and options.get("mode", "train") == "train":  # torchreid loads a dataset once for every mode
            _LOGGER.warning("left out %d images of identities -1 and 0 in %s", len(unlabelled), folder / "train")
        numbers = {pid: number for number, pid in enumerate(sorted({pid for _, pid, _ in train}))}
        super().__init__(
            [(path, numbers[pid], camid) for path, pid, camid in train],
            _without_junk(folder / "query", query),
            _without_junk(folder / "gallery", gallery),
            **options,
        )


def _images(folder: Path) -> list[Path]:
    """The images in a folder and in the folders therein."""
    if not folder.is_dir():
        raise UserError(
            f"the dataset folder is expected in {folder.parent}, and {folder} does not exist; "
            f"give the folder that holds train/, query/ and gallery/ with --root; {_EMBEDDED}"
        )
    inside = _listed(folder)
    below = [path for sub in inside if sub.is_dir() for path in _listed(sub)]
    if deeper := [path for path in below if path.is_dir()]:
        raise UserError(f"{deeper[0]} is a folder in the folder of an identity; move its images one level up")
    files = [path for path in inside + below if path.is_file()]
    images = [path for path in files if path.suffix.lower() in _IMAGE_ENDINGS]
    if not images:
        raise UserError(f"{folder} holds no images ({', '.join(sorted(_IMAGE_ENDINGS))}); put some there")
    if others := [path for path in files if path.suffix.lower() not in _IMAGE_ENDINGS]:
        _LOGGER.debug("%d files in %s are no images, such as %s", len(others), folder, others[0])
    return images


def _listed(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _way_of_naming(folder: Path, paths: Sequence[Path]) -> Read:
    """Market-style names lie directly in train/, query/ and gallery/; a folder an identity lies between."""
    flat = [path for path in paths if path.parent.parent == folder]
    nested = [path for path in paths if path.parent.parent != folder]
    if flat and nested:
        raise UserError(
            f"{folder} mixes {len(flat)} images directly in train/, query/ or gallery/, such as {flat[0]}, "
            f"with {len(nested)} in folders of an identity, such as {nested[0]}; use one way"
        )
    return _read_market_name if flat else _FolderNames()


def _labelled(paths: Sequence[Path], read: Read) -> Labelled:
    labels = [(path, read(path)) for path in paths]
    if unread := [path for path, label in labels if label is None]:
        raise UserError(
            f"cannot read identity and camera from {len(unread)} of {len(paths)} names, such as {unread[0]}; "
            "name images 0002_c1s1_000451_03.jpg, or put them into a folder an identity as c1_0001.jpg"
        )
    return [(str(path), *label) for path, label in labels if label is not None]


def _read_market_name(path: Path) -> tuple[int, int] | None:
    match = _MARKET_NAME.match(path.name)
    return (int(match[1]), int(match[2]) - 1) if match else None


class _FolderNames:
    """Numbers identities from 1 by the names of their folders; query and gallery share the numbers."""

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}

    def __call__(self, path: Path) -> tuple[int, int] | None:
        match = _CAMERA_NAME.match(path.stem)
        if not match or _MARKET_NAME.match(path.name):  # 0002_c1s1_1.jpg would be read as camera 2
            return None
        return self.numbers.setdefault(path.parent.name, len(self.numbers) + 1), int(match[1])


def _without_junk(folder: Path, items: Labelled) -> Labelled:
    kept = [item for item in items if item[1] != _JUNK]
    if not kept:
        raise UserError(f"{folder} holds junk (identity -1) only; add labelled images")
    return kept
