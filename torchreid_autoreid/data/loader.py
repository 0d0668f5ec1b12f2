"""A loader whose batches are a pure function of (seed, stream, epoch, position).

Nothing else matters: not the number of worker processes, not what was drawn from the global generators before, not
whether the run was resumed in the middle of an epoch.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import importlib
import logging
import multiprocessing
import multiprocessing.queues
import os
import random
import signal
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import count as count_from
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchreid
import torchvision
from torch.utils.data import DataLoader, Dataset, default_collate

from ..errors import UserError, line_of_the_machine
from .images import read_image
from .left_out import LeftOut

__all__ = ["ClassifiedImages", "InOrderLoader", "ReidImages", "SearchLoader", "collate"]

_LOGGER = logging.getLogger(__name__)

#: open files of a loader process in the main one (pipes, and batches that wait, a file a tensor), measured with a
#: margin; and of everything else that an epoch opens
_FILES_OF_A_WORKER, _FILES_BEFORE = 16, 16

Item = tuple[str, int, int, int]  # path, pid, camid, dsetid
Key = tuple[int, int]  # index of an item, seed of its augmentation


class ReidImages(torchreid.data.ImageDataset):
    """torchreid's dataset of ``(path, pid, camid, dsetid)`` items; names a torn image instead of reading it forever.

    An item that cannot be read comes back as the ``UserError`` itself: an exception raised in a worker process would
    reach the main one wrapped in a traceback. The loaders of this file raise it.
    """

    def __init__(self, items: Sequence[Item], transform: Any) -> None:
        items = list(items)
        super().__init__(items, items, items, transform=transform, mode="train", verbose=False)

    def __getitem__(self, index: int) -> Any:
        return _item(self.data[index], self.transform)


class ClassifiedImages(Dataset):
    """Images in a folder a class, for pre-training, in torchreid's format: the class is the identity.

    An item that cannot be read comes back as the ``UserError`` itself, see :class:`ReidImages`.

    Args:
        folder: holds ``CLASS/…`` with images at any depth.
        transform: from a picture to a tensor.

    Raises:
        UserError: if the folder is missing, or a class has no images.
    """

    def __init__(self, folder: Path, transform: Any) -> None:
        left_out = LeftOut()
        try:
            found = torchvision.datasets.ImageFolder(
                str(folder), is_valid_file=lambda path: left_out.is_named_as_picture(path, folder)
            )
        except (OSError, RuntimeError) as error:
            if not isinstance(error, FileNotFoundError | NotADirectoryError) and line_of_the_machine(error):
                raise
            raise UserError(
                f"cannot read {folder} as a folder of images by class ({' '.join(str(error).split())[:160]}); "
                "give --data with train/CLASS and val/CLASS in it"
            ) from None
        if left_out.found:
            _LOGGER.warning("left out %s", left_out)
        self.classes, self.transform = found.classes, transform
        self.data: list[Item] = [(path, label, 0, 0) for path, label in found.samples]

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Any:
        return _item(self.data[index], self.transform)


def _item(item: Item, transform: Any) -> Any:
    path, pid, camid, dsetid = item
    try:
        pixels = read_image(path)
    except UserError as error:
        return error
    return {"img": transform(pixels), "pid": pid, "camid": camid, "impath": path, "dsetid": dsetid}


class _Reproducible(Dataset):
    """Seeds every generator that a transform may draw from, for the time of one item."""

    def __init__(self, images: ReidImages | ClassifiedImages) -> None:
        self.images = images

    def __getitem__(self, key: Key) -> Any:
        index, seed = key
        with _seeded(seed):
            return self.images[index]


class SearchLoader:
    """Batches of one half, in torchreid's format, the same whenever and however they are asked for.

    The order of an epoch is drawn by torchreid's own sampler, its generators seeded for that time; each image is
    augmented under a seed of its own, given by its place in the epoch. So there is no state to save: a run that resumes
    asks for ``set_epoch(epoch, start)`` and gets what an unbroken one would have got. An incomplete last batch is
    dropped, as in torchreid's training.

    Args:
        images: what to load.
        batch_size, num_instances, train_sampler, num_cams, num_datasets: as in torchreid.
        workers: loader processes; the batches do not depend on it. They end with the iterator.
        pin_memory: as in PyTorch.
        seed: of the run.
        stream: a name; loaders of other streams over the same images give other batches.
        share: ``(part, parts)``: give this part of every batch only, that of one of several processes. The parts, one
            after the other, are the batch that a loader of one part gives, images and all. By identity, a part holds
            whole identities.

    Raises:
        UserError: if the sampler cannot make a batch of these images, or a batch does not divide into parts. While
            loading: if an image cannot be read.
    """

    def __init__(
        self,
        images: ReidImages | ClassifiedImages,
        batch_size: int,
        num_instances: int,
        train_sampler: str = "RandomIdentitySampler",
        num_cams: int = 1,
        num_datasets: int = 1,
        workers: int = 0,
        pin_memory: bool = False,
        seed: int = 1,
        stream: str = "train",
        share: tuple[int, int] = (0, 1),
    ) -> None:
        self.images = images
        self.share = share
        _check_share(batch_size, num_instances if train_sampler == "RandomIdentitySampler" else 1, share[1])
        self.batch_size = batch_size
        self.train_sampler = train_sampler
        self.workers = workers
        self.pin_memory = pin_memory
        self.seed = seed
        self.stream = stream
        build_train_sampler = torchreid.data.datamanager.build_train_sampler
        with self._drawing("sampler"):  # torchreid's samplers by camera and by dataset draw in their constructor
            self.sampler = build_train_sampler(
                images.data, train_sampler, batch_size, num_instances, num_cams, num_datasets
            )
        self.epoch = 0
        self.start = 0
        self._order_cache: tuple[tuple[int, int], list[list[Key]]] | None = None

    @property
    def dataset(self) -> ReidImages | ClassifiedImages:
        """As in PyTorch's loader."""
        return self.images

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Makes ``iter`` and ``len`` speak of this epoch (0-based), from batch ``start`` on."""
        self.epoch = epoch
        self.start = start

    def num_batches(self, epoch: int) -> int:
        """Exact number of batches of an epoch; it differs by a batch or two from epoch to epoch.

        (``len`` of torchreid's sampler is an estimate from above.)
        """
        return len(self._order(epoch, 0))

    def __len__(self) -> int:
        """Batches still to come in this epoch."""
        return max(0, self.num_batches(self.epoch) - self.start)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return self.batches(self.epoch, self.start)

    def batches(self, epoch: int, start: int = 0, count: int | None = None) -> Iterator[dict[str, Any]]:
        """Yields ``count`` batches of an epoch from ``start`` on, in a new order whenever all images are through.

        With ``count=None``, those that are left of the first order.
        """
        if count is None:
            return self._load(self._order(epoch, 0)[start:])
        endless = (keys for part in count_from() for keys in self._order(epoch, part))
        return self._load(list(islice(endless, start, start + count)))

    def _load(self, keys: list[list[Key]]) -> Iterator[dict[str, Any]]:
        part, parts = self.share
        size = self.batch_size // parts
        own = [batch[part * size : (part + 1) * size] for batch in keys]
        return _load(_Reproducible(self.images), own, self.workers, self.pin_memory)

    def _order(self, epoch: int, part: int) -> list[list[Key]]:
        """The keys of all batches of one pass over the images."""
        if self._order_cache is None or self._order_cache[0] != (epoch, part):
            with self._drawing("order", epoch, part):
                indices = [int(index) for index in self.sampler]
            keys = [(index, self._digest("item", epoch, part, place)) for place, index in enumerate(indices)]
            whole = len(keys) - len(keys) % self.batch_size
            batches = [keys[first : first + self.batch_size] for first in range(0, whole, self.batch_size)]
            if not batches:
                raise UserError(
                    f"{len(self.images)} images give no batch of {self.batch_size}; set a smaller train.batch_size"
                )
            self._order_cache = (epoch, part), batches
        return self._order_cache[1]

    @contextmanager
    def _drawing(self, *words: object) -> Iterator[None]:
        try:
            with _seeded(self._digest(*words)):
                yield
        except (AssertionError, ValueError) as error:
            raise UserError(
                f"{self.train_sampler} cannot draw batches of {self.batch_size} from {len(self.images)} images"
                f"{f' ({error})' if str(error) else ''}; set another train.batch_size or sampler.train_sampler"
            ) from error

    def _digest(self, *words: object) -> int:
        text = "/".join(map(str, (self.seed, self.stream, *words)))
        return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=7).digest(), "big")


def _check_share(batch_size: int, num_instances: int, parts: int) -> None:
    units = batch_size // num_instances
    if units % parts:
        what = f"{units} identities" if num_instances > 1 else f"{units} images"
        least = parts * num_instances
        raise UserError(
            f"a batch of {what} cannot be shared by {parts} processes evenly; set train.batch_size, which counts the "
            f"images of all processes, to a multiple of {least}, or start another number of processes"
        )


class InOrderLoader:
    """A loader for testing: all images in their order, the incomplete last batch included.

    Args:
        images: :class:`ReidImages`, or a subset of them.

    Raises:
        UserError: while loading, if an image cannot be read.
    """

    def __init__(self, images: Any, batch_size: int, workers: int = 0, pin_memory: bool = False) -> None:
        self.dataset = images
        self.batch_size = batch_size
        self.workers = workers
        self.pin_memory = pin_memory

    def __len__(self) -> int:
        return -(-len(self.dataset) // self.batch_size)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        indices = list(range(len(self.dataset)))
        batches = [indices[first : first + self.batch_size] for first in range(0, len(indices), self.batch_size)]
        return _load(self.dataset, batches, self.workers, self.pin_memory)


def _load(dataset: Dataset, batches: Sequence[Sequence[Any]], workers: int, pin: bool) -> Iterator[dict[str, Any]]:
    """Yields the given batches of keys. Closing the iterator ends its worker processes."""
    workers = min(workers, len(batches))
    _check_descriptors(workers)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # more loader processes than cores are what data.workers says
        loader: DataLoader = DataLoader(
            dataset,
            batch_sampler=batches,  # type: ignore[arg-type]
            num_workers=workers,
            pin_memory=pin,
            collate_fn=collate,
            worker_init_fn=_leave_signals_to_the_main_process,
            multiprocessing_context=_context() if workers else None,
            generator=torch.Generator().manual_seed(0),  # or PyTorch draws from the global one
        )
        loaded = iter(loader)
    failed: Exception | None = None
    try:
        for batch in loaded:
            if isinstance(batch, UserError):
                failed = batch
                break
            yield batch
    except (EOFError, ConnectionError) as error:  # a worker ends while its batch is taken; PyTorch may not see it yet
        failed = RuntimeError(f"DataLoader worker is gone: {type(error).__name__}")
    # The workers end here. In a traceback they would stay until garbage is collected, and then be waited for in vain.
    del loaded
    if failed is not None:
        raise failed


class _Queue(multiprocessing.queues.Queue):
    """Between the main process and its workers: both ends stop if one cannot hand something over.

    For want of memory or threads, mostly. Python would print why and go on, and the main process would wait for ever.
    """

    def __init__(self, workers: list[Any], context: Any) -> None:
        super().__init__(ctx=context)
        self._workers = workers

    def _start_thread(self) -> None:
        try:
            super()._start_thread()  # type: ignore[misc]
        except RuntimeError:  # no more threads
            if os.getpid() != self._opid:  # type: ignore[attr-defined]
                os._exit(1)
            raise

    def _on_queue_feeder_error(self, *_: Any) -> None:
        if os.getpid() != self._opid:  # type: ignore[attr-defined]  # of the process that has made it
            os._exit(1)
        for worker in self._workers:
            with contextlib.suppress(AttributeError):  # not started yet
                worker.kill()


def _context() -> Any:
    """The default way to start processes, with such queues."""
    default = multiprocessing.get_context()
    context: Any = copy.copy(default)
    workers: list[Any] = []

    def start(*arguments: Any, **options: Any) -> Any:
        workers.append(default.Process(*arguments, **options))
        return workers[-1]

    context.Process, context.Queue = start, lambda: _Queue(workers, default)
    return context


def _check_descriptors(workers: int) -> None:
    """Raises the limit on open files to what is allowed, and finds out that it is too low for loader processes.

    With too few they hang: they cannot tell one another.

    Raises:
        UserError: if it is too low.
    """
    if not workers or os.name != "posix":
        return
    resource = importlib.import_module("resource")
    least = _FILES_BEFORE + _FILES_OF_A_WORKER * workers + _lowest_free()
    limit, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit != resource.RLIM_INFINITY and limit < least:
        wanted = least if most == resource.RLIM_INFINITY else min(least, most)
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if limit != resource.RLIM_INFINITY and limit < least:
        raise UserError(
            f"too few file descriptors for {workers} loader processes: {limit}, and they need {least}; raise the limit "
            f"(ulimit -n {max(least, 1024)}), or lower data.workers"
        )


def _lowest_free() -> int:
    """About how many files are open: the next one gets the lowest free number."""
    try:
        descriptor = os.open(os.devnull, os.O_RDONLY)
    except OSError:
        return 0
    os.close(descriptor)
    return descriptor


def collate(samples: list[Any]) -> Any:
    """A batch, or the ``UserError`` of the first image that cannot be read."""
    return next((sample for sample in samples if isinstance(sample, UserError)), None) or default_collate(samples)


def _leave_signals_to_the_main_process(_: int) -> None:
    """Lets a worker end with the main process, or when that says so.

    Ctrl-C reaches every process of a terminal, and the SIGTERM of torchrun or of a queue every process of a job; the
    main one finishes its step and needs its workers for that.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if not hasattr(signal, "sigtimedwait"):  # not everywhere is there a way to learn who has sent a signal
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # for the threads that this one starts, too
    try:
        threading.Thread(target=_end_with, args=(multiprocessing.parent_process(),), daemon=True).start()
    except RuntimeError:  # no more threads: nobody could end this process, and the main one would wait for it
        os._exit(1)


def _end_with(main: Any) -> None:
    """PyTorch watches the main process too, but not one that is killed before a worker has begun to watch it."""
    while main.is_alive():
        sent = signal.sigtimedwait({signal.SIGTERM}, 5.0)
        if sent is not None and sent.si_pid == main.pid:
            break
    os._exit(0)  # as PyTorch's own handler does


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seeds Python's, NumPy's and PyTorch's CPU generators inside the block, and restores them after it."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)  # torch.manual_seed would reset the GPUs too
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
