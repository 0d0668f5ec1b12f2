"""Queries with their first answers, as a page shows them: right and wrong by colour and by mark."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable
from typing import Any

from ..queries import Image, Query

__all__ = ["ReadJpeg", "cards"]

#: gives a small JPEG of an image by its path
ReadJpeg = Callable[[str], bytes]


def cards(queries: Iterable[Query], embed: ReadJpeg | None = None, pictures: int = 0) -> list[dict[str, Any]]:
    """What the template needs of each query; the images of the first ``pictures`` are embedded.

    Raises:
        UserError: if an image cannot be read.
    """
    return [_card(query, embed if place < pictures else None) for place, query in enumerate(queries)]


def _card(query: Query, embed: ReadJpeg | None) -> dict[str, Any]:
    first = query.first
    return _image(query.image, embed) | {
        "number": query.number,
        "precision": f"{query.precision:.1%}",
        "first": f"first true match at rank {first}" if first else "no true match was retrieved",
        "answers": [
            _image(image, embed) | {"right": image.pid == query.image.pid, "distance": f"{distance:.3f}"}
            for image, distance in query.answers
        ],
    }


def _image(image: Image, embed: ReadJpeg | None) -> dict[str, Any]:
    content = embed(image.path) if embed and image.path else b""
    return {
        "pid": image.pid,
        "camera": "" if image.camid is None else f"camera {image.camid}",
        "path": image.path,
        "image": f"data:image/jpeg;base64,{base64.b64encode(content).decode()}" if content else "",
    }
