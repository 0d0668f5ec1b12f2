"""A user's own images as a torchreid dataset, and torchreid's table of datasets."""

from __future__ import annotations

import functools
import glob
import logging
import os
import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torchreid

from ..errors import UserError
from .images import SUFFIXES
from .left_out import LeftOut, is_folder
from .pedestrians import SyntheticPedestrians

__all__ = ["FolderDataset", "check_dataset", "dataset_names", "literal_root", "register_datasets"]

_LOGGER = logging.getLogger(__name__)

_MARKET_NAME = re.compile(r"(-1|\d+)_c(\d+)", re.IGNORECASE)  # 0002_c1s1_000451_03.jpg
#: c1_1.jpg, c1.jpg, cam03-a.jpg, 1_1.jpg; a number alone may count images as well as cameras
_CAMERA_NAME = re.compile(r"(?:(?:camera|cam|c)_?(\d+)(?:s\d+)?(?:[_.\-]|$)|_?(\d+)(?:s\d+)?[_.\-])", re.IGNORECASE)
_JUNK, _DISTRACTOR = -1, 0  # identities in Market-1501's names

#: What to do without any data.
_EMBEDDED = "to try without data: autoreid search --config-file autoreid_search.yaml"

_MOST_LABEL = (1 << 63) - 1  # of a tensor

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


@contextmanager
def literal_root(root: str) -> Iterator[None]:
    """Lets torchreid's datasets find their images below a root that has ``[``, ``*`` or ``?`` in its name.

    They list folders by patterns, in which the root's own letters would be patterns too.
    """
    place, plain = os.path.abspath(os.path.expanduser(root)), glob.glob
    if glob.escape(place) == place:
        yield
        return

    def below_root(pattern: str, **options: Any) -> list[str]:
        return plain(glob.escape(place) + pattern[len(place) :] if pattern.startswith(place) else pattern, **options)

    glob.glob = below_root  # type: ignore[assignment]
    try:
        yield
    finally:
        glob.glob = plain


class FolderDataset(torchreid.data.ImageDataset):
    """A user's own images: ``-s folder -t folder --root DIR`` with ``DIR/train``, ``DIR/query`` and ``DIR/gallery``.

    Identity and camera are read in one of four ways, the same in all three folders:

    - from Market-style names: ``train/0002_c1s1_000451_03.jpg`` is identity 2 by camera 1. Identity ``-1`` is junk and
      left out; identity ``0`` is a distractor, kept in query and gallery;
    - from such names in a folder an identity: ``train/0002/0002_c1s1_000451_03.jpg``;
    - from a folder an identity, whose name may be any text, and file names that begin with the camera:
      ``train/alice/c1_0001.jpg``, ``train/alice/2_0001.png``, ``train/alice/cam03_x.jpg``;
    - from a folder an identity alone, if no file name begins with a camera: ``train/alice/IMG_0001.jpg``. All images
      then count as by one camera, which a warning says, and retrieval is measured without leaving out any.

    Images end in .jpg, .jpeg, .png, .bmp, .webp, .tif, .tiff, .ppm or .pgm, in any case, and are read by
    :func:`~torchreid_autoreid.data.images.read_image`. Hidden files are passed over. What else is left out is counted
    in one warning.

    Raises:
        UserError: if a folder is missing or empty, the ways are mixed, or a name cannot be read; one is named.

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
        left_out = LeftOut()
        paths = {part: _images(folder / part, left_out) for part in ("train", "query", "gallery")}
        read = _way_of_naming(folder, [path for part in paths.values() for path in part])
        train, query, gallery = _numbered([_labelled(part, read) for part in paths.values()])
        for _, pid, _ in train:
            if pid in (_JUNK, _DISTRACTOR):
                left_out.add("images of identities -1 and 0", folder / "train", "")
        train = [item for item in train if item[1] not in (_JUNK, _DISTRACTOR)]
        if not train:
            raise UserError(f"{folder / 'train'} holds junk and distractors only; add images of identities above 0")
        if left_out.found:
            _warn_once(f"left out {left_out}")
        _check_cameras(folder, train + query + gallery)
        self._classes = {pid: number for number, pid in enumerate(sorted({pid for _, pid, _ in train}))}
        super().__init__(
            [(path, self._classes[pid], camid) for path, pid, camid in train],
            _without_junk(folder / "query", query),
            _without_junk(folder / "gallery", gallery),
            **options,
        )

    def combine_all(self) -> None:
        """Adds query and gallery to the training set. A person who is in both is one class (in torchreid: two)."""
        new = sorted({pid for _, pid, _, _ in self.query + self.gallery} - {*self._classes, *self._junk_pids})
        classes = self._classes | {pid: number for number, pid in enumerate(new, start=len(self._classes))}
        self.train: list[Any] = [
            *self.train,
            *(
                (path, classes[pid], camid, dsetid)
                for path, pid, camid, dsetid in self.query + self.gallery
                if pid not in self._junk_pids
            ),
        ]
        self.num_train_pids = self.get_num_pids(self.train)
        self.num_train_cams = self.get_num_cams(self.train)


@functools.cache
def _warn_once(text: str) -> None:
    """torchreid loads a dataset once for every mode."""
    _LOGGER.warning("%s", text)


def _images(folder: Path, left_out: LeftOut) -> list[Path]:
    """The images in a folder and in the folders therein, sorted."""
    if not folder.is_dir():
        raise UserError(
            f"the dataset folder is expected in {folder.parent}, and {folder} does not exist; "
            f"give the folder that holds train/, query/ and gallery/ with --root; {_EMBEDDED}"
        )
    inside = _listed(folder)
    below = {entry.path: _listed(entry.path) for entry in inside if is_folder(entry.path)}
    images = []
    for entry in [*inside, *(entry for listed in below.values() for entry in listed)]:
        if entry.path in below:
            if not below[entry.path]:
                left_out.add("empty folders", folder, entry.path)
        elif is_folder(entry.path):
            raise UserError(f"{entry.path} is a folder in the folder of an identity; move its images one level up")
        elif left_out.is_picture(entry.path, folder):
            images.append(Path(entry.path))
    if not images:
        others = f", but {left_out}" if left_out.found else ""
        raise UserError(f"{folder} holds no images ({', '.join(SUFFIXES)}){others}; put some there")
    return images


def _listed(folder: str | Path) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda entry: entry.name)


def _way_of_naming(folder: Path, paths: Sequence[Path]) -> Read:
    """Market-style names lie directly in train/, query/ and gallery/; a folder an identity lies between."""
    flat = [path for path in paths if path.parent.parent == folder]
    nested = [path for path in paths if path.parent.parent != folder]
    if flat and nested:
        raise UserError(
            f"{folder} mixes {len(flat)} images directly in train/, query/ or gallery/, such as {flat[0]}, "
            f"with {len(nested)} in folders of an identity, such as {nested[0]}; use one way"
        )
    if flat:
        return _read_market_name
    if _read_market_name_in_folder(nested[0]):
        return _read_market_name_in_folder
    if not any(_names_camera(path) for path in nested):
        if others := [path for path in nested if _MARKET_NAME.match(path.name)]:
            raise UserError(
                f"{len(others)} of {len(nested)} names in folders of an identity say identity and camera themselves, "
                f"such as {others[0]}, whose folder is of another identity; name folders as the images "
                "(0002/0002_c1s1_1.jpg), or images by their camera (alice/c1_0001.jpg)"
            )
        _warn_once(
            f"no file name in {folder} begins with a camera, such as c1_0001.jpg: the {len(nested)} images are read "
            "without cameras"
        )
        return _FolderNames(without_cameras=True)
    return _FolderNames()


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


def _read_market_name_in_folder(path: Path) -> tuple[int, int] | None:
    """``0002/0002_c1s1_000451_03.jpg``: the folder repeats the name's identity."""
    label, folder = _read_market_name(path), path.parent.name
    return label if label and re.fullmatch(r"-1|\d+", folder) and int(folder) == label[0] else None


class _FolderNames:
    """Numbers identities from 1 by the names of their folders; query and gallery share the numbers."""

    def __init__(self, without_cameras: bool = False) -> None:
        self.numbers: dict[str, int] = {}
        self.without_cameras = without_cameras

    def __call__(self, path: Path) -> tuple[int, int] | None:
        match = _names_camera(path)
        if not match and not self.without_cameras:
            return None
        # A letter with an accent is one code point or two, as the system likes (NFC, NFD).
        name = unicodedata.normalize("NFC", path.parent.name)
        return self.numbers.setdefault(name, len(self.numbers) + 1), int(match[1] or match[2]) if match else 0


def _names_camera(path: Path) -> re.Match[str] | None:
    """The beginning of a file name that is a camera."""
    # 0002_c1s1_1.jpg would be read as camera 2
    return None if _MARKET_NAME.match(path.name) else _CAMERA_NAME.match(path.stem)


def _numbered(parts: list[Labelled]) -> list[Labelled]:
    """Numbers identities and cameras anew where one has more digits than a tensor holds."""
    items = [item for part in parts for item in part]
    identities, cameras = _within_64_bits({pid for _, pid, _ in items}), _within_64_bits({cam for *_, cam in items})
    return [[(path, identities[pid], cameras[camid]) for path, pid, camid in part] for part in parts]


def _within_64_bits(values: set[int]) -> dict[int, int]:
    if max(values) <= _MOST_LABEL:
        return {value: value for value in values}
    return {value: value if value <= 0 else number for number, value in enumerate(sorted(values), start=1)}


def _check_cameras(folder: Path, items: Labelled) -> None:
    """Numbers that count images are easily taken for cameras."""
    cameras = len({camid for _, _, camid in items})
    if cameras > max(64, len(items) // 4):
        _warn_once(
            f"the names in {folder} give {cameras} cameras for {len(items)} images; "
            "if they begin with the number of the image, put the camera before it, as in c1_0001.jpg"
        )


def _without_junk(folder: Path, items: Labelled) -> Labelled:
    kept = [item for item in items if item[1] != _JUNK]
    if not kept:
        raise UserError(f"{folder} holds junk (identity -1) only; add labelled images")
    return kept
