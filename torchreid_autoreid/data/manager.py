"""Splits a training set into the half that trains weights and the half that trains alphas."""

from __future__ import annotations

import logging
import random
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torchreid
from torch.utils.data import DataLoader

from ..errors import UserError
from .datasets import check_dataset
from .loader import Item, ReadableImages, SearchLoader, load_in_order

__all__ = ["ReadableDataManager", "SearchDataManager", "held_out_retrieval", "split_by_identity", "split_by_image"]

_LOGGER = logging.getLogger(__name__)


class ReadableDataManager(torchreid.data.ImageDataManager):
    """torchreid's data manager that says in one line what is wrong with the data, torn images in its test sets included.

    Args:
        root, sources, targets, …: torchreid's own, unchanged.

    Raises:
        UserError: if a dataset is unknown or missing, or cannot be read.
    """

    def __init__(
        self,
        root: str = "",
        sources: str | Sequence[str] | None = None,
        targets: str | Sequence[str] | None = None,
        *,
        batch_size_test: int = 32,
        workers: int = 4,
        **options: Any,
    ) -> None:
        names = [*_listed(sources), *_listed(targets)]
        for name in names:
            check_dataset(name, root)
        try:
            super().__init__(
                root=root,
                sources=_listed(sources) or None,
                targets=_listed(targets) or None,
                batch_size_test=batch_size_test,
                workers=workers,
                **options,
            )
        except (AssertionError, FileNotFoundError, IndexError, RuntimeError) as error:
            raise UserError(
                f"cannot load {' + '.join(sorted(set(names)))} from {root or 'the current folder'}: "
                f"{' '.join(str(error).split()) or 'a folder holds no images'}; check --root and the dataset's folders"
            ) from None
        for loaders in self.test_loader.values():
            for part, loader in loaders.items():
                images = ReadableImages(loader.dataset.data, self.transform_te)
                loaders[part] = InOrder(images, batch_size_test, workers, self.use_gpu)


class SearchDataManager(ReadableDataManager):
    """torchreid's data manager with its training set split for a search (Auto-ReID, algorithm 1).

    Args:
        root, sources, targets, …: torchreid's own, unchanged.
        split: ``image`` puts a share of every identity's images into each half, as published; ``identity`` puts whole
            identities into one half or the other, which is what re-identification meets in testing (MSINet, CVPR 2023).
        alpha_fraction: share of the alpha half, in (0, 1).
        seed: of the split and of all batches.

    Attributes:
        train_loader: :class:`SearchLoader` of ``D_w``.
        alpha_loader: :class:`SearchLoader` of ``D_alpha``.
        alpha_substitute_loader: other batches of ``D_w``, for alpha steps that do not use the real half.
        held_out_loaders: ``{'query': …, 'gallery': …}`` over ``D_alpha``, see :func:`held_out_retrieval`.
        split_summary: counts of the split, for the log.

    Identities are relabelled in the order of their image paths, so that the run does not depend on the order in which the file
    system lists a folder.

    Raises:
        UserError: if a dataset is unknown or missing, a half has too few identities for a batch, or the batch size does
            not divide by the number of instances.
    """

    def __init__(
        self,
        root: str = "",
        sources: str | Sequence[str] | None = None,
        targets: str | Sequence[str] | None = None,
        *,
        split: str = "image",
        alpha_fraction: float = 0.5,
        seed: int = 1,
        batch_size_train: int = 32,
        batch_size_test: int = 32,
        workers: int = 4,
        num_instances: int = 4,
        num_cams: int = 1,
        num_datasets: int = 1,
        train_sampler: str = "RandomIdentitySampler",
        k_tfm: int = 1,
        **options: Any,
    ) -> None:
        if split not in ("image", "identity"):
            raise UserError(f"unknown split {split!r}; split by image or by identity")
        if not 0.0 < alpha_fraction < 1.0:
            raise UserError(f"alpha_fraction must be between 0 and 1, not {alpha_fraction!r}")
        if k_tfm != 1:
            raise UserError(f"a search draws one augmentation of an image: set data.k_tfm 1, not {k_tfm}")
        if batch_size_train % num_instances:
            raise UserError(
                f"a batch of {batch_size_train} does not divide into {num_instances} images an identity; "
                "set train.batch_size to a multiple of sampler.num_instances"
            )
        super().__init__(
            root,
            sources,
            targets,
            batch_size_train=batch_size_train,
            batch_size_test=batch_size_test,
            workers=workers,
            train_sampler="SequentialSampler",  # replaced below; the others assert things without a message
            **options,
        )
        self.split = split
        items = _relabelled(self.train_loader.dataset.train)
        self._num_train_pids = len({item[1] for item in items})
        splitter = split_by_image if split == "image" else split_by_identity
        w_items, alpha_items = splitter(items, alpha_fraction, seed)
        self._check_halves(w_items, alpha_items, train_sampler, batch_size_train, num_instances)
        if "random_patch" in str(options.get("transforms", "")):
            _LOGGER.warning("random_patch pastes pieces of earlier images: a resumed run will differ from an unbroken one")

        def loader(part: Sequence[Item], stream: str) -> SearchLoader:
            return SearchLoader(
                ReadableImages(part, self.transform_tr),
                batch_size_train,
                num_instances,
                train_sampler,
                num_cams,
                num_datasets,
                workers,
                self.use_gpu,
                seed,
                stream,
            )

        self.train_loader = loader(w_items, "w")
        self.alpha_loader = loader(alpha_items, "alpha")
        self.alpha_substitute_loader = loader(w_items, "alpha substitute")
        query, gallery = held_out_retrieval(alpha_items, seed)
        self.held_out_loaders = {
            name: InOrder(ReadableImages(part, self.transform_te), batch_size_test, workers, self.use_gpu)
            for name, part in (("query", query), ("gallery", gallery))
        }
        self.split_summary = {
            "w_images": len(w_items),
            "w_identities": len({item[1] for item in w_items}),
            "alpha_images": len(alpha_items),
            "alpha_identities": len({item[1] for item in alpha_items}),
            "identities_only_in_w": len({item[1] for item in w_items} - {item[1] for item in alpha_items}),
            "held_out_queries": len(query),
            "held_out_gallery": len(gallery),
        }
        _LOGGER.info(
            "split by %s: w half %d images of %d identities, alpha half %d images of %d identities "
            "(%d identities are in the w half only%s); held-out retrieval: %d queries, %d gallery images",
            split,
            *list(self.split_summary.values())[:5],
            ", having too few images to split" if split == "image" else "",
            len(query),
            len(gallery),
        )

    @staticmethod
    def _check_halves(
        w_items: Sequence[Item], alpha_items: Sequence[Item], train_sampler: str, batch_size: int, num_instances: int
    ) -> None:
        needed = batch_size // num_instances if train_sampler == "RandomIdentitySampler" else 1
        for name, part in (("w", w_items), ("alpha", alpha_items)):
            found = len({item[1] for item in part})
            if found < needed:
                raise UserError(
                    f"the {name} half has {found} identities, and a batch of {batch_size} with {num_instances} images each "
                    f"needs {needed}; set train.batch_size to at most {found * num_instances}"
                    if found
                    else f"the {name} half has no images; give more training images or another search.alpha_fraction"
                )


class InOrder:
    """A loader for testing: all images in their order, the incomplete last batch included."""

    def __init__(self, images: ReadableImages, batch_size: int, workers: int, pin_memory: bool) -> None:
        self.dataset, self.batch_size, self.workers, self.pin_memory = images, batch_size, workers, pin_memory

    def __len__(self) -> int:
        return -(-len(self.dataset) // self.batch_size)

    def __iter__(self) -> Any:
        indices = list(range(len(self.dataset)))
        batches = [indices[first : first + self.batch_size] for first in range(0, len(indices), self.batch_size)]
        return load_in_order(self.dataset, batches, self.workers, self.pin_memory)


def split_by_image(items: Sequence[Item], fraction: float, seed: int) -> tuple[list[Item], list[Item]]:
    """Puts a share of every identity's images, and of its cameras, into each half; every identity is in both.

    An identity with a single image cannot be split and stays in the w half.
    """
    rng = random.Random(f"{seed} split by image")
    halves: tuple[list[Item], list[Item]] = ([], [])
    for images in _grouped(items, key=1):
        shuffled = [item for camera in _shuffled(_grouped(images, key=2), rng) for item in _shuffled(camera, rng)]
        phase = rng.random()  # an even spread over the cameras: image j goes to alpha where j * fraction passes a whole number
        in_alpha = [int((j + 1) * fraction + phase) > int(j * fraction + phase) for j in range(len(shuffled))]
        if len(shuffled) > 1 and len(set(in_alpha)) == 1:
            in_alpha[rng.randrange(len(shuffled))] ^= True
        elif len(shuffled) == 1:
            in_alpha = [False]
        for item, alpha in zip(shuffled, in_alpha, strict=True):
            halves[alpha].append(item)
    return sorted(halves[0]), sorted(halves[1])


def split_by_identity(items: Sequence[Item], fraction: float, seed: int) -> tuple[list[Item], list[Item]]:
    """Puts whole identities into one half or the other, at least one into each (if there are two)."""
    identities = _shuffled(_grouped(items, key=1), random.Random(f"{seed} split by identity"))
    count = min(max(round(len(identities) * fraction), 1), len(identities) - 1)
    alpha, w = identities[:count], identities[count:]
    return sorted(item for images in w for item in images), sorted(item for images in alpha for item in images)


def held_out_retrieval(items: Sequence[Item], seed: int) -> tuple[list[Item], list[Item]]:
    """Draws queries from the held-out half by camera: at most one an identity and camera, the rest is the gallery.

    An image becomes a query only while every query of its identity keeps a true match in another camera, so each query
    counts. Identities seen by one camera only are distractors in the gallery.

    Raises:
        UserError: if no query is possible, since no identity is seen by two cameras.
    """
    rng = random.Random(f"{seed} held-out retrieval")
    query: list[Item] = []
    gallery: list[Item] = []
    for images in _grouped(items, key=1):
        cameras = _shuffled([_shuffled(camera, rng) for camera in _grouped(images, key=2)], rng)
        left = [len(camera) for camera in cameras]
        chosen: set[int] = set()
        for index in range(len(cameras)):
            left[index] -= 1
            asked = chosen | {index}
            if all(sum(left) - left[camera] > 0 for camera in asked):
                chosen = asked
            else:
                left[index] += 1
        for index, camera in enumerate(cameras):
            first_to_gallery = 1 if index in chosen else 0
            query += camera[:first_to_gallery]
            gallery += camera[first_to_gallery:]
    if not query:
        raise UserError(
            "no identity of the alpha half is seen by two cameras, so retrieval cannot be measured on it; "
            "give identities with images from at least two cameras"
        )
    return sorted(query), sorted(gallery)


def _relabelled(items: Sequence[Item]) -> list[Item]:
    """Sorts by path and numbers the identities in that order."""
    labels: dict[int, int] = {}
    return [
        (path, labels.setdefault(pid, len(labels)), camid, dsetid) for path, pid, camid, dsetid in sorted(items)
    ]


def _grouped(items: Sequence[Item], key: int) -> list[list[Item]]:
    groups: dict[int, list[Item]] = defaultdict(list)
    for item in items:
        groups[item[key]].append(item)  # type: ignore[index]
    return [sorted(groups[label]) for label in sorted(groups)]


def _shuffled(values: Sequence[Any], rng: random.Random) -> list[Any]:
    return rng.sample(values, len(values))


def _listed(names: str | Sequence[str] | None) -> list[str]:
    return [names] if isinstance(names, str) else list(names or ())
