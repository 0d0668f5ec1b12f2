"""Splits a training set into the halves of the weights and of the alphas; draws a retrieval task from the latter."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from ..errors import UserError

__all__ = ["held_out_retrieval", "knows_cameras", "split_by_identity", "split_by_image"]

Item = tuple[str, int, int, int]  # path, pid, camid, dsetid


def knows_cameras(*parts: Sequence[Item]) -> bool:
    """Whether images are told apart by camera; where all are by one, the camera is unknown or means nothing.

    >>> knows_cameras([("a.jpg", 7, 0, 0)], [("b.jpg", 7, 0, 0)])
    False
    """
    return len({camid for items in parts for _, _, camid, _ in items}) > 1


def split_by_image(items: Sequence[Item], fraction: float, seed: int) -> tuple[list[Item], list[Item]]:
    """Puts a share of every identity's images, and of its cameras, into each half; every identity is in both.

    An identity with a single image cannot be split and stays in the w half.

    Args:
        items: ``(path, pid, camid, dsetid)`` each, in any order.
        fraction: share of the alpha half, in (0, 1).

    Returns:
        The w half and the alpha half, sorted.

    >>> split_by_image([(f"{i}.jpg", 7, i // 2, 0) for i in range(4)] + [("alone.jpg", 8, 0, 0)], 0.5, seed=1)
    ([('0.jpg', 7, 0, 0), ('2.jpg', 7, 1, 0), ('alone.jpg', 8, 0, 0)], [('1.jpg', 7, 0, 0), ('3.jpg', 7, 1, 0)])
    """
    rng = random.Random(f"{seed} split by image")
    halves: tuple[list[Item], list[Item]] = ([], [])
    for images in _grouped(items, key=1):
        shuffled = [item for camera in _shuffled(_grouped(images, key=2), rng) for item in _shuffled(camera, rng)]
        # Image j goes to alpha where j * fraction passes a whole number: an even spread over the cameras.
        phase = rng.random()
        in_alpha = [int((j + 1) * fraction + phase) > int(j * fraction + phase) for j in range(len(shuffled))]
        if len(shuffled) == 1:
            in_alpha = [False]
        elif len(set(in_alpha)) == 1:
            in_alpha[rng.randrange(len(shuffled))] ^= True
        for item, alpha in zip(shuffled, in_alpha, strict=True):
            halves[alpha].append(item)
    return sorted(halves[0]), sorted(halves[1])


def split_by_identity(items: Sequence[Item], fraction: float, seed: int) -> tuple[list[Item], list[Item]]:
    """Puts whole identities into one half or the other, at least one into each (if there are two).

    Args and result as of :func:`split_by_image`; ``fraction`` is of the identities.

    >>> split_by_identity([("a.jpg", 7, 0, 0), ("b.jpg", 7, 1, 0), ("c.jpg", 8, 0, 0)], 0.5, seed=1)
    ([('a.jpg', 7, 0, 0), ('b.jpg', 7, 1, 0)], [('c.jpg', 8, 0, 0)])
    """
    identities = _shuffled(_grouped(items, key=1), random.Random(f"{seed} split by identity"))
    count = min(max(round(len(identities) * fraction), 1), len(identities) - 1)
    alpha, w = identities[:count], identities[count:]
    return sorted(item for images in w for item in images), sorted(item for images in alpha for item in images)


def held_out_retrieval(
    items: Sequence[Item],
    seed: int,
    what: str = "the alpha half",
    fix: str = "give identities with two images by each of two cameras, or search.split identity (one by each)",
) -> tuple[list[Item], list[Item]]:
    """Draws queries by camera: at most one an identity and camera; the rest is the gallery.

    An image becomes a query only while every query of its identity keeps a true match by another camera in the gallery,
    so each query counts. Identities seen by one camera only are distractors in the gallery. Where all images are by one
    camera, every identity with two images has one query.

    Args:
        items: ``(path, pid, camid, dsetid)`` each, in any order.
        seed: of the choice.
        what, fix: what the error calls the items, and its advice.

    Returns:
        Query and gallery, sorted.

    Raises:
        UserError: if no query is possible, since no identity is seen by two cameras, or has two images.

    >>> items = [(f"{i}.jpg", 7, i % 2, 0) for i in range(4)] + [("other.jpg", 8, 0, 0)]
    >>> query, gallery = held_out_retrieval(items, seed=1)
    >>> [camid for _, _, camid, _ in query], len(gallery)
    ([0, 1], 3)
    """
    rng = random.Random(f"{seed} held-out retrieval")
    query: list[Item] = []
    gallery: list[Item] = []
    if not knows_cameras(items):
        for images in _grouped(items, key=1):
            shuffled = _shuffled(images, rng)
            asking = int(len(images) > 1)
            query += shuffled[:asking]
            gallery += shuffled[asking:]
        if not query:
            raise UserError(f"no identity of {what} has two images, so retrieval cannot be measured on it; give some")
        return sorted(query), sorted(gallery)
    for images in _grouped(items, key=1):
        cameras = _shuffled([_shuffled(camera, rng) for camera in _grouped(images, key=2)], rng)
        left = [len(camera) for camera in cameras]
        of_cameras: set[int] = set()
        for index in range(len(cameras)):
            left[index] -= 1
            if all(sum(left) - left[camera] > 0 for camera in of_cameras | {index}):
                of_cameras.add(index)
            else:
                left[index] += 1
        for index, camera in enumerate(cameras):
            queries = 1 if index in of_cameras else 0
            query += camera[:queries]
            gallery += camera[queries:]
    if not query:
        raise UserError(f"no identity of {what} is seen by two cameras, so retrieval cannot be measured on it; {fix}")
    return sorted(query), sorted(gallery)


def _grouped(items: Sequence[Item], key: int) -> list[list[Item]]:
    groups: dict[Any, list[Item]] = defaultdict(list)
    for item in items:
        groups[item[key]].append(item)
    return [sorted(groups[label]) for label in sorted(groups)]


def _shuffled(values: Sequence[Any], rng: random.Random) -> list[Any]:
    return rng.sample(values, len(values))
