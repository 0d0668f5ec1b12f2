"""torchreid's data manager that says what is wrong, and one with its training set split for a search."""

from __future__ import annotations

import hashlib
import logging
import os
import traceback
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torchreid

from ..errors import UserError, line_of_the_machine
from .datasets import check_dataset, literal_root
from .loader import InOrderLoader, Item, ReidImages, SearchLoader
from .split import held_out_retrieval, knows_cameras, split_by_identity, split_by_image

__all__ = ["ReidDataManager", "SearchDataManager", "TrainDataManager"]

_LOGGER = logging.getLogger(__name__)

_SPLITS = {"image": split_by_image, "identity": split_by_identity}


class ReidDataManager(torchreid.data.ImageDataManager):
    """torchreid's data manager that says in one line what is wrong with the data, torn test images included.

    Args:
        root, sources, targets, …: torchreid's own, unchanged.

    Raises:
        UserError: if a dataset is unknown, missing or cannot be read. While testing: if an image cannot be read.
    """

    train_loader: Any
    test_loader: dict[str, dict[str, Any]]

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
        sources, targets = _listed(sources), _listed(targets)
        names = list(dict.fromkeys(sources + targets))
        if not sources:
            raise UserError("no dataset is given; name one with --sources (data.sources)")
        for name in names:
            check_dataset(name, root)
        try:
            with literal_root(root):
                super().__init__(
                    root=root,
                    sources=sources,
                    targets=targets or None,
                    batch_size_test=batch_size_test,
                    workers=0,  # its loaders are replaced
                    **options,
                )
        except (UserError, BrokenPipeError):  # it prints, perhaps to a reader that has gone
            raise
        except (AssertionError, AttributeError, LookupError, OSError, RuntimeError, ValueError) as error:
            if not isinstance(error, FileNotFoundError | NotADirectoryError) and line_of_the_machine(error):
                raise
            raise UserError(
                f"cannot load {' and '.join(names)} from {root or 'the current folder'}: {_reason(error)}; "
                "check the dataset's folders and the options given for it"
            ) from error
        for loaders in self.test_loader.values():
            for part, loader in loaders.items():
                images = ReidImages(loader.dataset.data, self.transform_te)
                loaders[part] = InOrderLoader(images, batch_size_test, workers, self.use_gpu)

    def check_retrievable(self) -> None:
        """Makes sure that retrieval can be measured on every target, before anything is computed.

        Raises:
            UserError: if no query of a target has a true match in the gallery: by another camera, if there are several.
        """
        for name, loaders in self.test_loader.items():
            cameras: dict[int, set[int]] = defaultdict(set)
            for _, pid, camid, _ in loaders["gallery"].dataset.data:
                cameras[pid].add(camid)
            query = loaders["query"].dataset.data
            if not knows_cameras(query, loaders["gallery"].dataset.data):
                if not any(pid in cameras for _, pid, _, _ in query):
                    raise UserError(
                        f"none of the {len(query)} queries of {name} has a true match in its gallery, so retrieval "
                        "cannot be measured; give images of the same identities, or another dataset with --targets"
                    )
                _LOGGER.info(
                    "the test images of %s are by one camera, or by unknown ones: no gallery image is left out",
                    name,
                )
                continue
            if not any(cameras[pid] - {camid} for _, pid, camid, _ in query):
                seen = len({camid for _, _, camid, _ in query}.union(*cameras.values()))
                raise UserError(
                    f"none of the {len(query)} queries of {name} has a true match by another camera in its gallery "
                    f"({seen} {'camera' if seen == 1 else 'cameras'} in all), so retrieval cannot be measured; give "
                    "images by several cameras, or another dataset with --targets"
                )

    def tested_images(self) -> str:
        """Counts and digest of the names, identities and cameras of all targets, see :func:`described_images`."""
        return described_images(
            [item for loaders in self.test_loader.values() for part in loaders.values() for item in part.dataset.data]
        )


class SearchDataManager(ReidDataManager):
    """torchreid's data manager with its training set split for a search (Auto-ReID, algorithm 1).

    The halves are drawn by ``seed`` alone. Identities are numbered from 0 in the order of their image paths, so that a
    run does not depend on the order in which a file system lists a folder.

    Args:
        root, sources, targets, …: torchreid's own, unchanged; the default sampler is ``RandomIdentitySampler``.
        split: ``image`` puts a share of every identity's images into each half, as published; ``identity`` puts whole
            identities into one half or the other, which is what re-identification meets in testing (MSINet, CVPR 2023).
        alpha_fraction: share of the alpha half, in (0, 1).
        seed: of the split and of all batches.
        share: ``(part, parts)`` of every batch that this process takes, see :class:`SearchLoader`. Batch sizes count
            the images of all processes.

    Attributes:
        train_loader: :class:`SearchLoader` of ``D_w``.
        alpha_loader: :class:`SearchLoader` of ``D_alpha``.
        alpha_substitute_loader: other batches of ``D_w``, for alpha steps that do not use the real half.
        held_out_loaders: ``{'query': …, 'gallery': …}`` over ``D_alpha`` with the transforms of testing, see
            :func:`~torchreid_autoreid.data.split.held_out_retrieval`.
        split_summary: counts of the split, for the log.
        trained_images: counts and digest of the training images, see :func:`described_images`.

    Raises:
        UserError: if a dataset is unknown, missing or cannot be read, an argument is out of range, the batch size does
            not divide by the number of instances, a half has too few identities for a batch, or no identity of the
            alpha half is seen by two cameras. While loading: if an image cannot be read.

    >>> import tempfile
    >>> manager = SearchDataManager(
    ...     tempfile.gettempdir(), "synthetic_pedestrians", height=64, width=32, workers=0, use_gpu=False
    ... )  # doctest: +ELLIPSIS
    Building train transforms ...
    >>> next(iter(manager.alpha_loader))["img"].shape
    torch.Size([32, 3, 64, 32])
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
        share: tuple[int, int] = (0, 1),
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
        by_identity = train_sampler == "RandomIdentitySampler"
        if split not in _SPLITS:
            raise UserError(f"unknown split {split!r}; split by {' or '.join(_SPLITS)}")
        if not 0.0 < alpha_fraction < 1.0:
            raise UserError(f"alpha_fraction must be between 0 and 1, not {alpha_fraction!r}")
        if k_tfm != 1:
            raise UserError(f"a search draws one augmentation of an image: set data.k_tfm 1, not {k_tfm}")
        if min(batch_size_train, batch_size_test, num_instances) < 1:
            raise UserError(
                "train.batch_size, test.batch_size and sampler.num_instances must be at least 1, "
                f"not {batch_size_train}, {batch_size_test} and {num_instances}"
            )
        if by_identity and batch_size_train % num_instances:
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
        _warn_of_memory(options)
        self.split = split
        items = _relabelled(self.train_loader.dataset.train)
        self.trained_images = described_images(items)
        w_items, alpha_items = _SPLITS[split](items, alpha_fraction, seed)
        for name, half in (("w", w_items), ("alpha", alpha_items)):
            _check_enough(
                f"the {name} half",
                half,
                batch_size_train,
                num_instances if by_identity else batch_size_train,
                "search.split, search.alpha_fraction",
            )

        def search_loader(half: Sequence[Item], stream: str) -> SearchLoader:
            return SearchLoader(
                ReidImages(half, self.transform_tr),
                batch_size_train,
                num_instances,
                train_sampler,
                num_cams,
                num_datasets,
                workers,
                self.use_gpu,
                seed,
                stream,
                share,
            )

        def test_loader(part: Sequence[Item]) -> InOrderLoader:
            return InOrderLoader(ReidImages(part, self.transform_te), batch_size_test, workers, self.use_gpu)

        self.train_loader = search_loader(w_items, "w")
        self.alpha_loader = search_loader(alpha_items, "alpha")
        self.alpha_substitute_loader = search_loader(w_items, "alpha substitute")
        query, gallery = held_out_retrieval(alpha_items, seed)
        self.held_out_loaders = {"query": test_loader(query), "gallery": test_loader(gallery)}
        self.split_summary = {
            "w_images": len(w_items),
            "w_identities": len(_identities(w_items)),
            "alpha_images": len(alpha_items),
            "alpha_identities": len(_identities(alpha_items)),
            # With a single image; on a split by identity there is nothing to split.
            "unsplit_identities": len(_identities(items)) - len(_identities(alpha_items)) if split == "image" else 0,
            "held_out_queries": len(query),
            "held_out_gallery": len(gallery),
        }
        _LOGGER.info(
            "split by %s: w half %d images of %d identities, alpha half %d images of %d identities (%d identities have "
            "a single image and stay in the w half); held-out retrieval: %d queries, %d gallery images",
            split,
            *self.split_summary.values(),
        )


class TrainDataManager(ReidDataManager):
    """torchreid's data manager with reproducible batches and, if asked, identities held out to choose the best epoch.

    Args:
        root, sources, targets, …: torchreid's own, unchanged.
        held_out: share of the training identities that are kept out of the training, in [0, 1).
        held_out_key: the key that ``held_out`` comes from, for messages.
        seed: of the choice of those and of all batches.
        share: ``(part, parts)`` of every batch that this process takes, see :class:`SearchLoader`.

    Attributes:
        train_loader: :class:`SearchLoader` of the training images, drawn by any of torchreid's samplers.
        validation_loaders: ``{'query': …, 'gallery': …}``: of the identities held out, or of the first target.
        trained_images: counts and digest of the training images, see :func:`described_images`.

    Raises:
        UserError: as :class:`SearchDataManager`.

    >>> import tempfile
    >>> manager = TrainDataManager(
    ...     tempfile.gettempdir(), "synthetic_pedestrians", height=64, width=32, workers=0, use_gpu=False, held_out=0.25
    ... )  # doctest: +ELLIPSIS
    Building train transforms ...
    >>> manager.num_train_pids
    36
    """

    def __init__(
        self,
        root: str = "",
        sources: str | Sequence[str] | None = None,
        targets: str | Sequence[str] | None = None,
        *,
        held_out: float = 0.0,
        held_out_key: str = "recipe.held_out",
        seed: int = 1,
        share: tuple[int, int] = (0, 1),
        batch_size_train: int = 32,
        batch_size_test: int = 32,
        workers: int = 4,
        num_instances: int = 4,
        num_cams: int = 1,
        num_datasets: int = 1,
        train_sampler: str = "RandomSampler",
        **options: Any,
    ) -> None:
        if not 0.0 <= held_out < 1.0:
            raise UserError(f"held_out must be at least 0 and below 1, not {held_out!r}")
        super().__init__(
            root,
            sources,
            targets,
            batch_size_train=batch_size_train,
            batch_size_test=batch_size_test,
            workers=workers,
            train_sampler="SequentialSampler",  # replaced below, as in a search
            **options,
        )
        _warn_of_memory(options)
        self.check_retrievable()
        items = _relabelled(self.train_loader.dataset.train)
        self.trained_images = described_images(items)
        query: Sequence[Item] = ()
        gallery: Sequence[Item] = ()
        rest: Sequence[Item] = ()
        if held_out:
            items, rest = split_by_identity(items, held_out, seed)
            items = _relabelled(items)
        instances = num_instances if train_sampler == "RandomIdentitySampler" else batch_size_train
        _check_enough("the training set", items, batch_size_train, instances, held_out_key)
        if held_out:
            query, gallery = held_out_retrieval(rest, seed, "those held out", f"raise {held_out_key}")
        self._num_train_pids = len(_identities(items))  # torchreid's own name, behind its property
        self.train_loader = SearchLoader(
            ReidImages(items, self.transform_tr),
            batch_size_train,
            num_instances,
            train_sampler,
            num_cams,
            num_datasets,
            workers,
            self.use_gpu,
            seed,
            "train",
            share,
        )
        if held_out:
            self.validation_loaders = {
                name: InOrderLoader(ReidImages(part, self.transform_te), batch_size_test, workers, self.use_gpu)
                for name, part in (("query", query), ("gallery", gallery))
            }
            chosen = f"{len(query)} queries and {len(gallery)} gallery images of identities held out"
        else:
            target = next(iter(self.test_loader))
            self.validation_loaders = self.test_loader[target]
            chosen = f"the test set of {target} itself (recipe.held_out keeps identities for that)"
        _LOGGER.info(
            "training on %d images of %d identities; the best epoch is chosen on %s",
            len(items),
            self._num_train_pids,
            chosen,
        )


def _warn_of_memory(options: Any) -> None:
    if "random_patch" in str(options.get("transforms", "")).lower():
        _LOGGER.warning(
            "random_patch pastes pieces of earlier images: batches depend on data.workers and differ after a resume"
        )


def _reason(error: Exception) -> str:
    """What went wrong in torchreid's loading. Its datasets fail on a name with an error that does not give it."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    path = frames[-1].f_locals.get("img_path") if frames else None
    if isinstance(path, str) and isinstance(error, AssertionError | AttributeError | ValueError):
        return f"the identity and the camera cannot be read from the name {path}"
    if isinstance(error, IndexError):
        return "a part of it holds no images"
    return " ".join(str(error).split()) or type(error).__name__


def described_images(items: Sequence[Item]) -> str:
    """Counts images, identities and cameras, with a digest of all names, identities and cameras.

    Names count below the innermost folder that all share, so that a dataset may be moved.

    >>> described_images([("/a/0001_c1.jpg", 0, 0, 0), ("/a/0001_c2.jpg", 0, 1, 0)])
    '2 images of 1 identities by 2 cameras, digest e7fb47e03641'
    """
    folder = os.path.commonpath([os.path.dirname(path) for path, *_ in items])
    digest = hashlib.sha256()
    for path, pid, camid, dsetid in sorted(items):
        digest.update(os.fsencode(os.path.relpath(path, folder)) + f"\0{pid}\0{camid}\0{dsetid}\n".encode())
    cameras = len({camid for _, _, camid, _ in items})
    return (
        f"{len(items)} images of {len(_identities(items))} identities by {cameras} cameras, "
        f"digest {digest.hexdigest()[:12]}"
    )


def _check_enough(what: str, items: Sequence[Item], batch_size: int, num_instances: int, share: str) -> None:
    """``share`` is the key that decides how many images are here."""
    needed, found = batch_size // num_instances, len(_identities(items))
    if found == 0:
        raise UserError(f"{what} has no images; give more, or split them otherwise ({share})")
    if found < needed:
        fix = f"set train.batch_size to at most {found * num_instances}"
        raise UserError(
            f"{what} has {found} {'identity' if found == 1 else 'identities'}, and a batch of {batch_size} with "
            f"{num_instances} images each needs {needed}; {fix if found > 1 else 'give images of more people'}"
        )


def _identities(items: Sequence[Item]) -> set[int]:
    return {pid for _, pid, _, _ in items}


def _relabelled(items: Sequence[Item]) -> list[Item]:
    """Sorts by path and numbers the identities in that order."""
    labels: dict[int, int] = {}
    return [(path, labels.setdefault(pid, len(labels)), camid, dsetid) for path, pid, camid, dsetid in sorted(items)]


def _listed(names: str | Sequence[str] | None) -> list[str]:
    return [names] if isinstance(names, str) else list(names or ())
