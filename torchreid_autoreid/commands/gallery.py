"""Keeps a gallery of people, and says who the persons in images are, or that nobody enrolled is it."""

from __future__ import annotations

import argparse
import contextlib
import csv
import hashlib
import io
import logging
import os
import re
import stat
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..data.images import SUFFIXES, read_image
from ..data.left_out import LeftOut
from ..deploy import onnx
from ..deploy.model import load_model
from ..errors import UserError, printable
from ..evaluation.embeddings import load_with_people
from ..files import check_output, write_output
from ..gallery import Answer, Calibration, Gallery
from ..gallery.gallery import as_identities
from ..gallery.serve import serve
from ..gallery.store import check_new
from ..loopback import HOST

_LOGGER = logging.getLogger(__name__)

_BATCH = 32
#: action -> options that have an effect there, besides the gallery's folder
_OPTIONS = {
    "build": {"images", "features", "weights"},
    "add": {"images", "features", "weights"},
    "remove": {"pids"},
    "calibrate": {"images", "features", "weights", "far"},
    "query": {"images", "features", "weights", "threshold", "top", "csv"},
    "serve": {"weights", "threshold", "top", "port"},
}


def main(args: argparse.Namespace) -> int:
    check_options(args)
    if args.action == "remove":
        with Gallery.open(args.folder) as gallery:
            numbers = gallery.pids.dtype.kind == "i"
            if numbers and (wrong := [pid for pid in args.pids if not re.fullmatch(r"[+-]?[0-9]{1,18}", pid)]):
                raise UserError(f"--pids {wrong[0]} is no number, and the identities of {args.folder} are numbers")
            removed = gallery.remove([int(pid) for pid in args.pids] if numbers else args.pids)
            print(f"removed {removed} vectors of {len(set(args.pids))} people; {_size(gallery)}")
        return 0
    network = _checksum(args.weights) if args.weights else ""
    if args.action == "build":  # found out before images are read
        check_new(Path(args.folder))
    else:
        Gallery.open(args.folder, network).close()
    if args.action == "serve":
        return _serve(args, network)
    features, pids, names = _read(args)
    if args.action in ("build", "add"):
        pids = as_identities(pids, len(features))
    if args.action == "build":
        with Gallery.build(args.folder, features, pids, network) as gallery:
            _tell_enrolled(gallery, pids)
        return 0
    with Gallery.open(args.folder, network) as gallery:
        if args.action == "add":
            gallery.add(features, pids)
            _tell_enrolled(gallery, pids)
        elif args.action == "calibrate":
            cohort = (features, pids) if len(features) else (None, None)
            found = gallery.calibrate(0.01 if args.far is None else args.far, *cohort)
            print(f"threshold {found.threshold:.4f} for a false-accept rate of {found.far:.3%} ({found.probes} probes)")
        else:
            answer = gallery.query(features, 5 if args.top is None else args.top, args.threshold)
            _tell(answer, names, args.csv, _stale(gallery, args.threshold))
    return 0


def check_options(args: argparse.Namespace) -> None:
    """Refuses what would have no effect, and what is missing."""
    for name in sorted(set().union(*_OPTIONS.values()) - _OPTIONS[args.action]):
        if getattr(args, name) is not None:
            raise UserError(f"--{name} has no effect on gallery {args.action}; leave it out")
    if args.action == "remove":
        if not args.pids:
            raise UserError("gallery remove needs --pids, the people to forget")
        return
    if args.action == "serve":
        if not args.weights:
            raise UserError("gallery serve needs --weights FILE, the network that the gallery was made with")
        if args.threshold is not None and not -1 <= args.threshold <= 1:
            raise UserError(f"--threshold {args.threshold} is no cosine similarity; give one from -1 to 1")
        return
    if args.images and args.features:
        raise UserError("--images and --features are two sources; give one")
    if not args.images and not args.features and args.action != "calibrate":
        raise UserError(f"gallery {args.action} needs --images DIR with --weights FILE, or --features FILE.npz")
    if bool(args.images) != bool(args.weights):
        raise UserError("--images and --weights go together: the network makes the images' features")
    if args.csv:
        check_output("--csv", args.csv, {"--features": args.features, "--weights": args.weights})


def _read(args: argparse.Namespace) -> tuple[np.ndarray, np.ndarray | None, Sequence[str]]:
    """(N, D) features, (N,) identities where they are needed, and a name of each for the answer."""
    if args.features:
        query, gallery, people = load_with_people(args.features)  # Embeddings makes numbers of names
        part = query if args.action == "query" else gallery
        return part.features, people if people.dtype.kind == "U" else part.pids, [str(row) for row in range(len(part))]
    if not args.images:
        return np.empty((0, 1)), None, []
    paths = _pictures(Path(args.images))
    pids = None if args.action == "query" else np.array([_person(path, Path(args.images)) for path in paths])
    return _features(args.weights, paths), pids, [str(path) for path in paths]


def _pictures(folder: Path) -> list[Path]:
    if folder.is_file():
        return [folder]
    if not folder.is_dir():
        raise UserError(f"--images {folder} does not exist; give an image or a folder of images")
    left_out = LeftOut()
    paths = list(_walked(folder, left_out))
    if left_out.found:
        _LOGGER.warning("left out %s", left_out)
    if not paths:
        raise UserError(f"--images {folder} holds no image ({', '.join(SUFFIXES)}); give another folder")
    return paths


def _walked(folder: Path, left_out: LeftOut) -> Iterator[Path]:
    """The images in a folder and all folders below; links are followed, and what is hidden is passed over."""
    seen: set[str] = set()
    for place, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:  # by a link to a folder above, or to one that has been walked
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        paths = [os.path.join(place, name) for name in sorted(files)]
        yield from (Path(path) for path in paths if left_out.is_picture(path, folder))


def _person(path: Path, folder: Path) -> str:
    """The folder of an image below the one given; else what its name begins with, as in Market-1501."""
    below = path.relative_to(folder).parts if path != folder else (path.name,)
    if len(below) > 1:
        return below[0]
    found = re.match(r"(-?[0-9]+)_", path.name)
    if not found:
        raise UserError(f"{path} does not say who it is; put it into a folder of that name, or call it PERSON_….jpg")
    return found[1]


def _serve(args: argparse.Namespace, network: str) -> int:
    """Answers a browser on this machine until Ctrl-C."""
    model = _network(args.weights)
    with Gallery.open(args.folder, network) as gallery:
        blank = model(model.preprocess(Image.new("RGB", (64, 128)))[None])
        if blank.shape[1] != gallery.dimension:
            raise UserError(
                f"--weights {args.weights} gives {blank.shape[1]} dimensions, and {args.folder} has "
                f"{gallery.dimension}; give the network that it was made with"
            )
        server = serve(
            gallery,
            partial(_features_of_picture, model),
            8000 if args.port is None else args.port,
            5 if args.top is None else args.top,
            args.threshold,
        )
        with server:
            print(f"http://{HOST}:{server.server_port}/ answers on this machine; Ctrl-C ends it", flush=True)
            with contextlib.suppress(KeyboardInterrupt):
                server.serve_forever()
    return 0


def _features_of_picture(model: Any, picture: bytes) -> np.ndarray:
    """(1, D) features of a picture's bytes."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "picture"
        path.write_bytes(picture)
        try:
            image = read_image(path)
        except UserError as error:
            raise UserError(
                str(error).replace(f"image {path}", "picture").replace("file or remove it", "file")
            ) from error
    with torch.inference_mode():
        features: np.ndarray = model(model.preprocess(image)[None]).numpy()
    return features


def _network(weights: str) -> Any:
    return onnx.OnnxExtractor(weights) if onnx.is_onnx(weights) else load_model(weights)


@torch.inference_mode()
def _features(weights: str, paths: Sequence[Path]) -> np.ndarray:
    model = _network(weights)
    parts = []
    for first in range(0, len(paths), _BATCH):
        images = torch.stack([model.preprocess(path) for path in paths[first : first + _BATCH]])
        parts.append(model(images).numpy())
    return np.concatenate(parts)


def _tell_enrolled(gallery: Gallery, pids: Any) -> None:
    print(f"enrolled {len(pids)} vectors of {len(np.unique(pids))} people; {_size(gallery)}")


def _size(gallery: Gallery) -> str:
    return f"the gallery has {len(gallery)} vectors of {len(gallery.pids)} people"


def _checksum(path: str) -> str:
    """A name of a network: of its file, so that two files are two networks."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # opening a pipe would wait for its writer, a device may never end
            raise UserError(f"--weights {path} is no ordinary file; give a checkpoint or an ONNX file")
        with open(path, "rb") as file:
            return _digest(file)
    except OSError as error:
        raise UserError(f"cannot read --weights {path}: {error.strerror}; give a checkpoint or an ONNX file") from None


def _stale(gallery: Gallery, threshold: float | None) -> str:
    calibration: Calibration | None = gallery.calibration
    if threshold is not None or calibration is None or calibration.revision == gallery.revision:
        return ""
    return "note: the gallery has changed since it was calibrated; run gallery calibrate again"


def _tell(answer: Answer, names: Sequence[str], output: str | None, note: str) -> None:
    if output:
        rows: list[Iterable[Any]] = [("query", "rank", "pid", "score", "margin", "known")]
        for row, name in enumerate(names):
            for rank, (pid, score) in enumerate(zip(answer.ranked_pids[row], answer.ranked_scores[row], strict=True)):
                own = (f"{answer.margins[row]:.6f}", int(answer.known[row])) if rank == 0 else ("", "")
                rows.append((name, rank + 1, pid, f"{score:.6f}", *own))
        text = io.StringIO(newline="")
        csv.writer(text).writerows(rows)
        # A name may have bytes that are no text.
        encoded = text.getvalue().encode("utf-8", "backslashreplace")
        write_output("--csv", output, lambda path: Path(path).write_bytes(encoded))
        print(f"{int(answer.known.sum())} of {len(names)} queries are known (threshold {answer.threshold:.4f})")
    else:
        for row, name in enumerate(names):
            who = str(answer.pids[row]) if answer.known[row] else "unknown"
            ranked = ", ".join(
                f"{printable(pid)} {score:.3f}"
                for pid, score in zip(answer.ranked_pids[row], answer.ranked_scores[row], strict=True)
            )
            print(f"{printable(name)}: {printable(who)} (margin {answer.margins[row]:.3f}): {ranked}")
    if note:
        print(note)


def _digest(file: Any) -> str:
    digest = hashlib.sha256()
    while part := file.read(1 << 20):
        digest.update(part)
    return digest.hexdigest()[:16]
