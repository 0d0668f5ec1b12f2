"""What some queries of a measurement have found: the schema of ``queries.json`` in the log folder of a search."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .errors import UserError, first_line, short
from .files import read_json, write_json

__all__ = ["ANSWERS", "GROUPS", "Image", "Labels", "Queries", "Query", "asked", "chosen"]

#: answers that are kept of a query
ANSWERS = 10
#: which queries are kept, by average precision
GROUPS = ("worst", "median", "best")
_EACH = 4  # queries of a group
_MAX_BYTES = 1 << 20  # 12 queries with the longest paths of Linux would have 0.6 MB
_MAX_PATH = 4096


@dataclass(frozen=True)
class Labels:
    """Of the images of a query or a gallery.

    Attributes:
        pids: identities.
        camids: cameras; empty where they are not known.
        paths: of the files; empty where there are none.
    """

    pids: Sequence[int]
    camids: Sequence[int] = ()
    paths: Sequence[str] = ()

    def image(self, row: int) -> Image:
        """One of them."""
        camid = int(self.camids[row]) if len(self.camids) else None
        return Image(int(self.pids[row]), camid, self.paths[row] if len(self.paths) else "")


@dataclass(frozen=True)
class Image:
    """An image; ``camid`` is ``None`` where cameras are not known, ``path`` empty where there is no file."""

    pid: int
    camid: int | None
    path: str


@dataclass(frozen=True)
class Query:
    """A query with its first answers.

    Attributes:
        number: its place among the queries, from 0.
        image: of the query.
        precision: its average precision.
        first: rank of its first true match, from 1; 0 if none was retrieved.
        answers: the nearest gallery images, with their distances.
    """

    number: int
    image: Image
    precision: float
    first: int
    answers: Sequence[tuple[Image, float]]


@dataclass(frozen=True)
class Queries:
    """The queries that are kept of a measurement.

    Attributes:
        epoch: with which it was made, from 1.
        mAP: of all its queries.
        counted: how many have a true match.
        groups: by the names of :data:`GROUPS`.
    """

    epoch: int
    mAP: float
    counted: int
    groups: Mapping[str, Sequence[Query]]

    @classmethod
    def of(cls, epoch: int, result: Any, query: Labels, gallery: Labels) -> Queries:
        """Those of a :class:`~torchreid_autoreid.evaluation.RetrievalResult` with :data:`ANSWERS` nearest images."""
        groups = {
            name: asked(result, rows, query, gallery)
            for name, rows in chosen(result.average_precision.tolist()).items()
        }
        return cls(epoch, float(result.mAP), int(result.num_valid_queries), groups)

    def save(self, path: str | Path) -> None:
        """Replaces the file in one step."""
        write_json(path, asdict(self))

    @classmethod
    def load(cls, path: str | Path) -> Queries:
        """The inverse of :meth:`save`; nothing in the file is trusted.

        Raises:
            UserError: if the file cannot be read, or is of another schema.
        """
        try:
            return _queries(read_json(path, _MAX_BYTES))
        except (OSError, ValueError, OverflowError, RecursionError) as error:
            raise UserError(
                f"{path} holds no queries of a search: {first_line(error)}; restore it, or remove it"
            ) from None


def chosen(precisions: Sequence[float]) -> dict[str, list[int]]:
    """The rows of the worst, the median and the best queries, each group from the worst on; NaN is not counted.

    >>> chosen([0.5, float("nan"), 0.1, 0.9])
    {'worst': [2], 'median': [0], 'best': [3]}
    """
    counted = [row for row, precision in enumerate(precisions) if not math.isnan(precision)]
    order = sorted(counted, key=lambda row: precisions[row])  # of equal ones the first comes first
    each = min(_EACH, max(1, len(order) // len(GROUPS)))
    middle = (len(order) - each) // 2
    groups = order[:each], order[middle : middle + each], order[len(order) - each :]
    return dict(zip(GROUPS, groups, strict=True)) if len(order) >= len(GROUPS) else {"worst": order}


def asked(result: Any, rows: Iterable[int], query: Labels, gallery: Labels) -> list[Query]:
    """Queries of a result by their places."""
    return [
        Query(
            int(row),
            query.image(row),
            float(result.average_precision[row]),
            int(result.first_match[row]),
            [
                (gallery.image(int(place)), float(distance))
                for place, distance in zip(
                    result.topk_indices[row][:ANSWERS], result.topk_distances[row][:ANSWERS], strict=True
                )
                if place >= 0
            ],
        )
        for row in rows
    ]


# --- reading ----------------------------------------


def _queries(content: Any) -> Queries:
    groups = _value(content, "groups", dict)
    if not groups or not set(groups) <= set(GROUPS):
        raise ValueError(f"groups are {short(list(groups))}, not some of {', '.join(GROUPS)}")
    found = {name: [_query(query) for query in _list(groups, name, _EACH)] for name in GROUPS if name in groups}
    whole = {name: _whole(content, name, 0 if name == "counted" else 1) for name in ("epoch", "counted")}
    return Queries(mAP=_number(content, "mAP", 0, 1), groups=found, **whole)


def _query(content: Any) -> Query:
    answers = [_pair(answer) for answer in _list(content, "answers", ANSWERS)]
    precision = _number(content, "precision", 0, 1)
    return Query(_whole(content, "number", 0), _image(_value(content, "image", dict)), precision,
                 _whole(content, "first", 0), answers)  # fmt: skip


def _pair(content: Any) -> tuple[Image, float]:
    if not isinstance(content, list) or len(content) != 2 or not isinstance(content[0], dict):
        raise ValueError(f"an answer is {short(content)}, not an image with its distance")
    return _image(content[0]), _number({"distance": content[1]}, "distance", -math.inf, math.inf)


def _image(content: Mapping[str, Any]) -> Image:
    path = _value(content, "path", str)
    if len(path) > _MAX_PATH or "\0" in path:
        raise ValueError(f"path is {short(path)}")
    least = -(1 << 63)
    camid = None if content.get("camid") is None else _whole(content, "camid", least)
    return Image(_whole(content, "pid", least), camid, path)


def _value(content: Any, name: str, *kinds: type) -> Any:
    value = content.get(name) if isinstance(content, dict) else None
    if not isinstance(value, kinds) or isinstance(value, bool):
        raise ValueError(f"{name} is {short(value)}")
    return value


def _list(content: Any, name: str, most: int) -> list[Any]:
    if len(found := _value(content, name, list)) > most:
        raise ValueError(f"{name} has {len(found)} entries, and at most {most} are read")
    return list(found)


def _whole(content: Any, name: str, least: int) -> int:
    value: int = _value(content, name, int)
    if not least <= value < 1 << 63:
        raise ValueError(f"{name} is {short(value)}")
    return value


def _number(content: Any, name: str, least: float, most: float) -> float:
    value = _value(content, name, int, float)
    if not math.isfinite(value) or not least <= value <= most:
        raise ValueError(f"{name} is {short(value)}, not a number from {least} to {most}")
    return float(value)
