"""What queries have found: pictures of all, as torchreid draws them, and the file of some for the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from ..data.images import read_image
from ..evaluation import RetrievalResult
from ..queries import Labels, Queries

__all__ = ["draw_ranked_results", "write_queries"]

# torchreid's: pixels, and blue, green, red
_SPACING, _QUERY_SPACING, _BORDER = 10, 90, 5
_BLACK, _GREEN, _RED = (0, 0, 0), (0, 255, 0), (0, 0, 255)


def write_queries(folder: Path, epoch: int, result: RetrievalResult, loaders: Mapping[str, Any]) -> None:
    """Writes ``queries.json``: the worst, the median and the best queries of a measurement with their first answers.

    Args:
        folder: the log folder.
        epoch: with which it was made, from 1.
        result: with ``topk_indices``.
        loaders: ``{'query': loader, 'gallery': loader}`` of the images.
    """
    items = [loaders[part].dataset.data for part in ("query", "gallery")]
    knows_cameras = len({item[2] for part in items for item in part}) > 1
    query, gallery = (
        Labels(
            [item[1] for item in part],
            [item[2] for item in part] if knows_cameras else (),
            [item[0] for item in part],
        )
        for part in items
    )
    Queries.of(epoch, result, query, gallery).save(folder / "queries.json")


def draw_ranked_results(
    result: RetrievalResult,
    dataset: tuple[Sequence[Any], Sequence[Any]],
    width: int,
    height: int,
    folder: Path,
    topk: int,
) -> int:
    """Draws each query beside its ``topk`` nearest gallery images: green is the same identity, red another one.

    The pictures are those of ``torchreid.utils.visualize_ranked_results``, which needs a dense matrix, reads images
    otherwise than training and testing do, and names a picture by the last part of its query's path alone.

    Args:
        result: with ``topk_indices``.
        dataset: the query and gallery items, ``(path, pid, camid, …)`` each.
        width, height: of an image, in pixels.
        folder: where the pictures go, ``NAME.jpg`` for the query ``NAME.*``; the name of its folder, or its number,
            stands before it where several have that name.

    Returns:
        How many were drawn.

    Raises:
        UserError: if an image cannot be read.
    """
    queries, gallery = dataset
    assert result.topk_indices is not None
    folder.mkdir(parents=True, exist_ok=True)
    for query, nearest, name in zip(queries, result.topk_indices, _names(queries), strict=True):
        found = [gallery[index] for index in nearest if index >= 0]
        found = [item for item in found if (item[1], item[2]) != (query[1], query[2])]
        picture = np.full((height, (topk + 1) * width + topk * _SPACING + _QUERY_SPACING, 3), 255, dtype=np.uint8)
        picture[:, :width] = _framed(query[0], width, height, _BLACK)
        for rank, item in enumerate(found[:topk], start=1):
            start = rank * (width + _SPACING) + _QUERY_SPACING
            frame = _GREEN if item[1] == query[1] else _RED
            picture[:, start : start + width] = _framed(item[0], width, height, frame)
        _, encoded = cv2.imencode(".jpg", picture)
        (folder / f"{name}.jpg").write_bytes(encoded.tobytes())  # OpenCV fails on names that are no UTF-8
    return len(queries)


def _names(queries: Sequence[Any]) -> list[str]:
    paths = [Path(query[0]) for query in queries]
    names = [path.stem for path in paths]
    if len(set(names)) < len(names):
        names = [f"{path.parent.name}_{path.stem}" for path in paths]
    if len(set(names)) < len(names):
        names = [f"{number:06d}_{path.stem}" for number, path in enumerate(paths)]
    return names


def _framed(path: str, width: int, height: int, colour: tuple[int, int, int]) -> np.ndarray:
    """An image, (height, width, 3), with a border of 5 pixels before the last resizing, as in torchreid."""
    image = cv2.resize(np.asarray(read_image(path))[:, :, ::-1], (width, height))
    border = (_BORDER, _BORDER, _BORDER, _BORDER)
    return cv2.resize(cv2.copyMakeBorder(image, *border, cv2.BORDER_CONSTANT, value=colour), (width, height))
