"""The little that evaluation needs from other processes: gather, sum, broadcast. One process is the trivial case."""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import numpy as np
import torch

from ..errors import SharedError, UserError
from .group import TIMEOUT

#: how long the processes may take to connect, once torchrun has started them all
CONNECT_TIMEOUT = timedelta(minutes=5)

_PORT_KEY, _JOINED_KEY, _COMPLETE_KEY = (f"torchreid_autoreid/{name}" for name in ("port", "joined", "complete"))


class OneProcess:
    """A world of one: every collective is the identity."""

    rank = 0
    size = 1

    def gather(self, array: np.ndarray) -> list[np.ndarray]:
        """The arrays of all processes, in rank order; they may differ in length."""
        return [array]

    def sum(self, array: np.ndarray) -> np.ndarray:
        """The sum over all processes."""
        return array

    def broadcast(self, array: np.ndarray, source: int) -> np.ndarray:
        """The array of process ``source``; the others give one of the same shape and type."""
        return array

    def concatenate(self, array: np.ndarray) -> np.ndarray:
        """The arrays of all processes, one after the other in rank order."""
        return np.concatenate(self.gather(array))


class AllProcesses(OneProcess):
    """The processes of the default ``torch.distributed`` group (gloo on CPU, NCCL on GPUs)."""

    def __init__(self) -> None:
        self.rank = torch.distributed.get_rank()
        self.size = torch.distributed.get_world_size()
        nccl = torch.distributed.get_backend() == "nccl"
        self.device = torch.device("cuda", torch.cuda.current_device()) if nccl else torch.device("cpu")

    def _tensor(self, array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.array(array, order="C")).to(self.device)

    def gather(self, array: np.ndarray) -> list[np.ndarray]:
        length = self._tensor(np.array([len(array)], dtype=np.int64))
        lengths = [torch.empty_like(length) for _ in range(self.size)]
        torch.distributed.all_gather(lengths, length)
        sizes = [int(x) for x in lengths]
        padded = np.zeros((max(sizes), *array.shape[1:]), dtype=array.dtype)
        padded[: len(array)] = array
        mine = self._tensor(padded)
        parts = [torch.empty_like(mine) for _ in range(self.size)]
        torch.distributed.all_gather(parts, mine)
        return [part[:size].cpu().numpy() for part, size in zip(parts, sizes, strict=True)]

    def sum(self, array: np.ndarray) -> np.ndarray:
        total = self._tensor(array)
        torch.distributed.all_reduce(total)
        return total.cpu().numpy()

    def broadcast(self, array: np.ndarray, source: int) -> np.ndarray:
        tensor = self._tensor(array)
        torch.distributed.broadcast(tensor, source)
        return tensor.cpu().numpy()


def processes(distributed: bool) -> OneProcess:
    """This process alone, or the group it was started in (``torchrun``)."""
    if not distributed:
        return OneProcess()
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        raise UserError(
            "distributed=True, but torch.distributed is not initialised; start with torchrun and call it first"
        )
    return AllProcesses()


@contextmanager
def torchrun_processes(device: str) -> Iterator[OneProcess]:
    """Joins the processes that ``torchrun`` has started, for the time of the block; alone without it.

    Args:
        device: ``cuda`` gives each process the GPU of its local rank and joins them by NCCL, ``cpu`` by gloo.

    Raises:
        UserError: if there are fewer GPUs than processes on this machine; in all of them, and the first one tells it.

    >>> with torchrun_processes("cpu") as world:
    ...     world.rank, world.size
    (0, 1)
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        yield OneProcess()
        return
    if device == "cuda":
        local, found = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if int(os.environ["LOCAL_WORLD_SIZE"]) > found:
            raise (SharedError if local else UserError)(
                f"torchrun has started more processes here than the {found} GPUs; "
                "set --nproc_per_node to their number, or use the CPU"
            )
        torch.cuda.set_device(local)
    with _ends_without(CONNECT_TIMEOUT):
        store, rank, size = _store_of_this_start()
        torch.distributed.init_process_group(
            "nccl" if device == "cuda" else "gloo", store=store, rank=rank, world_size=size, timeout=TIMEOUT
        )
        AllProcesses().sum(np.zeros(1))  # NCCL connects at the first collective
    try:
        yield processes(distributed=True)
    finally:
        leave_group()


def leave_group() -> None:
    """Ends the process group.

    PyTorch before 2.8 holds Python's lock while it waits for gloo's threads, which need that lock to let go of the last
    collective's tensors (https://github.com/pytorch/pytorch/pull/154976): there they get the time for it first.
    """
    if torch.__version__ < "2.8":
        time.sleep(0.2)
    torch.distributed.destroy_process_group()


def _store_of_this_start() -> tuple[torch.distributed.Store, int, int]:
    """Where the processes find one another, with the rank and the number of processes.

    torchrun serves one store for all its restarts (unless TORCH_DISABLE_SHARE_RDZV_TCP_STORE is set), and the addresses
    of processes that are gone stay in it: some of the new ones read these and connect to nobody
    (https://github.com/pytorch/pytorch/issues/135712). So the first process serves a store of its own, and the others
    take from torchrun's only where that is.
    """
    shared, rank, size = next(torch.distributed.rendezvous("env://", timeout=TIMEOUT))
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return shared, rank, size  # the first process serves it
    host = os.environ["MASTER_ADDR"]
    store = _serve_store(shared, host, size) if rank == 0 else _join_store(shared, host)
    store.set_timeout(TIMEOUT)
    return store, rank, size


def _serve_store(shared: torch.distributed.Store, host: str, size: int) -> torch.distributed.Store:
    """The first process's store, once all the others have joined it."""
    own = torch.distributed.TCPStore(host, 0, size, is_master=True, wait_for_workers=False, timeout=TIMEOUT)
    shared.set(_PORT_KEY, str(own.port))
    while own.add(_JOINED_KEY, 0) < size - 1:
        time.sleep(0.02)
    own.set(_COMPLETE_KEY, "")
    return own


def _join_store(shared: torch.distributed.Store, host: str) -> torch.distributed.Store:
    """The store of the first process of this start.

    What torchrun's store says may be of an earlier one. If that is gone, nobody answers; if it is just ending, it
    answers and never says that all have joined. In both cases we look again.
    """
    while True:
        port = int(shared.get(_PORT_KEY))
        try:
            socket.create_connection((host, port), timeout=5).close()  # the store would complain at length
            own = torch.distributed.TCPStore(host, port, None, False, timedelta(seconds=5), wait_for_workers=False)
            own.add(_JOINED_KEY, 1)
            while int(shared.get(_PORT_KEY)) == port:
                if own.check([_COMPLETE_KEY]):
                    return own
                time.sleep(0.02)
        except (OSError, torch.distributed.DistError):
            time.sleep(0.1)


@contextmanager
def _ends_without(patience: timedelta) -> Iterator[None]:
    """Ends this process if the block takes longer, so that torchrun starts all of them again.

    gloo waits in C++ for a process that is gone, where no exception reaches it.
    """
    connected = threading.Event()

    def watch() -> None:
        if not connected.wait(patience.total_seconds()):
            sys.stderr.write(
                f"error: the processes have not connected within {patience.total_seconds():.0f} s; torchrun starts "
                "them again if --max-restarts allows, else start the same command again\n"
            )
            sys.stderr.flush()
            os._exit(2)

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        connected.set()


@contextmanager
def first_process_first(world: OneProcess) -> Iterator[None]:
    """What the first process makes in the block (a dataset, a folder), the others find there.

    If the first one fails, the others go on, and will find out for themselves.
    """
    if world.size > 1 and world.rank > 0:
        torch.distributed.barrier()
    try:
        yield
    finally:
        if world.size > 1 and world.rank == 0:
            torch.distributed.barrier()
