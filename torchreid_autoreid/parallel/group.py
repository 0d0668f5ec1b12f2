"""What search and training need of the other processes of ``torch.distributed``; alone, everything is the identity.

Every process draws its own identities of one batch, the *global* batch, and all of them take the same step: the outputs
of all are joined before the loss, so that hard positives and negatives are mined over the global batch, and gradients
are averaged. With batch norm synchronised, a step is that of one process on the global batch, up to rounding.

The random generators of all processes are in the same state at every moment: what a strategy draws for the alphas is
drawn alike everywhere. What drop path draws for single images it draws for the global batch (:func:`draw_rows`);
dropout of elements draws the same mask in every process.
"""

from __future__ import annotations

import hashlib
import io
import weakref
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor

from ..errors import SharedError, UserError

__all__ = [
    "Group",
    "SingleProcess",
    "draw_rows",
    "gathered",
    "global_rows",
    "group",
    "joined",
]

#: how long a process waits for another; one of them may be writing a checkpoint, or reading a dataset first
TIMEOUT = timedelta(minutes=30)

GRAD_SYNCS = ("mean", "sum")

_MESSAGE_BYTES = 1000
_SAME_MACHINES = (
    "use the same software and the same kind of device for all processes, and resume from the last checkpoint"
)


class SingleProcess:
    """A world of one."""

    rank = 0
    size = 1

    def joined(self, values: Any) -> Any:
        """The rows of all processes, in rank order, of a tensor or of each in nested lists and tuples.

        Every process is to compute the same loss of them. The gradient that then comes back is multiplied by the number
        of processes, so that the mean over the processes is the gradient of that loss.
        """
        return values

    def reduced(self, gradients: Sequence[Tensor]) -> list[Tensor]:
        """The mean (or the sum, as chosen) over all processes of each tensor."""
        return list(gradients)

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Sets each tensor to its mean over all processes."""

    def from_first(self, make: Callable[[], Any]) -> Any:
        """What the first process makes, in all of them: plain data, and tensors on the CPU.

        So a file of the first process need not be where the others are.

        Raises:
            SharedError: where the first process fails.
        """
        return make()

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process."""
        return flag

    def agree(self, error: Exception | None = None) -> None:
        """Waits for all processes, and raises in all of them if one has brought an error.

        Raises:
            SharedError: with the message of the first process that has one; a process whose own error is no
                ``UserError`` raises that one.
        """
        if error is not None:
            raise error

    @contextmanager
    def together(self, kind: type[Exception] = Exception) -> Iterator[None]:
        """Leaves the block in all processes at the same time, and all of them by an error if one has one.

        Args:
            kind: of the errors that the others are told of. In a block that itself talks to the others it must be such
                as can only be raised where the others wait in :meth:`agree`.
        """
        yield

    def check_same(self, when: str, fix: str = _SAME_MACHINES, **contents: Iterable[Tensor] | str) -> None:
        """Compares checksums of tensors or texts, which must be the same in all processes bit for bit.

        Args:
            when: for the message.
            fix: its advice.
            contents: name -> what is compared.

        Raises:
            SharedError: naming the first that differs.
        """


class Group(SingleProcess):
    """The processes of the default ``torch.distributed`` group. All of them must call every method alike.

    Args:
        grad_sync: ``mean`` or ``sum`` of the gradients. The sum is the gradient of the loss times the number of
            processes.

    Raises:
        UserError: if ``grad_sync`` is neither.
    """

    def __init__(self, grad_sync: str = "mean") -> None:
        if grad_sync not in GRAD_SYNCS:
            raise UserError(f"gradients are synchronised by their {' or '.join(GRAD_SYNCS)}, not {grad_sync!r}")
        self.rank = torch.distributed.get_rank()
        self.size = torch.distributed.get_world_size()
        self.mean = grad_sync == "mean"
        _control_group()  # all of them make it now

    def joined(self, values: Any) -> Any:
        if isinstance(values, Tensor):
            return _Join.apply(values, self.rank, self.size)
        return type(values)(self.joined(value) for value in values)

    def reduced(self, gradients: Sequence[Tensor]) -> list[Tensor]:
        return self._reduced(gradients, self.mean)

    @torch.no_grad()
    def average(self, tensors: Sequence[Tensor]) -> None:
        for tensor, mean in zip(tensors, self._reduced(tensors, mean=True), strict=True):
            tensor.copy_(mean)

    def _reduced(self, tensors: Sequence[Tensor], mean: bool) -> list[Tensor]:
        """One message for all tensors of a kind, since a message costs more than a number in it."""
        kinds: dict[Any, list[int]] = defaultdict(list)
        for index, tensor in enumerate(tensors):
            kinds[tensor.dtype, tensor.device].append(index)
        results = list(tensors)
        for indices in kinds.values():
            flat = torch.cat([tensors[index].detach().reshape(-1) for index in indices])
            torch.distributed.all_reduce(flat)
            if mean:
                flat /= self.size
            for index, part in zip(indices, flat.split([tensors[index].numel() for index in indices]), strict=True):
                results[index] = part.view(tensors[index].shape)
        return results

    def from_first(self, make: Callable[[], Any]) -> Any:
        buffer = io.BytesIO()
        with self.together():
            if self.rank == 0:
                torch.save(make(), buffer)
        size = int(self._message([buffer.tell()], torch.distributed.ReduceOp.MAX)[0])
        content = torch.frombuffer(bytearray(buffer.getvalue() or bytes(size)), dtype=torch.uint8)
        torch.distributed.broadcast(content, 0, group=_control_group())
        return torch.load(io.BytesIO(content.numpy().tobytes()), map_location="cpu", weights_only=True)

    def any(self, flag: bool) -> bool:
        return bool(self._message([int(flag)], torch.distributed.ReduceOp.MAX)[0])

    def agree(self, error: Exception | None = None) -> None:
        own = self.size if error is None else self.rank
        (first,) = self._message([own], torch.distributed.ReduceOp.MIN).tolist()
        if first == self.size:
            return
        text = " ".join(str(error).split()) if isinstance(error, UserError) else f"process {self.rank}: {error!r}"
        content = text.encode()[:_MESSAGE_BYTES].ljust(_MESSAGE_BYTES)
        buffer = torch.frombuffer(bytearray(content), dtype=torch.uint8)
        torch.distributed.broadcast(buffer, first, group=_control_group())
        if error is not None and not isinstance(error, UserError):
            raise error
        raise SharedError(bytes(buffer.tolist()).decode(errors="ignore").strip()) from error

    @contextmanager
    def together(self, kind: type[Exception] = Exception) -> Iterator[None]:
        try:
            yield
        except SharedError:  # all of them have it
            raise
        except kind as error:
            self.agree(error)
        else:
            self.agree()

    def check_same(self, when: str, fix: str = _SAME_MACHINES, **contents: Iterable[Tensor] | str) -> None:
        own = torch.tensor([_checksum(content) for content in contents.values()])
        all_sums = [torch.empty_like(own) for _ in range(self.size)]
        torch.distributed.all_gather(all_sums, own, group=_control_group())
        for rank, sums in enumerate(all_sums):
            for name, one, other in zip(contents, all_sums[0].tolist(), sums.tolist(), strict=True):
                if one != other:
                    raise SharedError(
                        f"the {name.replace('_', ' ')} of process {rank} and of process 0 differ {when}; {fix}"
                    )

    def _message(self, numbers: list[int], operation: Any) -> Tensor:
        tensor = torch.tensor(numbers)
        torch.distributed.all_reduce(tensor, operation, group=_control_group())
        return tensor


def group(distributed: bool, grad_sync: str = "mean") -> SingleProcess:
    """The processes that ``torch.distributed`` has joined, or this one alone.

    Raises:
        UserError: if ``distributed`` and nothing has joined them.

    >>> group(False).size
    1
    """
    if not distributed:
        return SingleProcess()
    if not joined():
        raise UserError(
            "distributed=True, but torch.distributed is not initialised; start with torchrun and call it first"
        )
    return Group(grad_sync)


def draw_rows(draw: Callable[[int], Tensor], rows: int) -> Tensor:
    """All ranks draw the same random rows for the global batch; returns this rank's slice.

    Args:
        draw: gives a number of random rows, by the global generator.
        rows: of this process; as many in every other.

    >>> draw_rows(lambda rows: torch.zeros(rows, 2), 3).shape
    torch.Size([3, 2])
    """
    if not joined():
        return draw(rows)
    first = rows * torch.distributed.get_rank()
    return draw(rows * torch.distributed.get_world_size())[first : first + rows]


def global_rows(rows: int) -> int:
    """Rows of the global batch, of which each process has as many as this one."""
    return rows * torch.distributed.get_world_size() if joined() else rows


def joined() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


#: default group -> gloo group beside it; weak, because a group that is still held when Python ends aborts the process
_control_groups: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()


def _control_group() -> Any:
    """A group for short messages between the CPUs, which wait for no GPU: the default one, or a gloo one beside it."""
    if torch.distributed.get_backend() == "gloo":
        return None
    default = torch.distributed.group.WORLD
    if default not in _control_groups:
        _control_groups[default] = torch.distributed.new_group(backend="gloo", timeout=TIMEOUT)
    return _control_groups[default]


def _checksum(content: Iterable[Tensor] | str) -> int:
    digest = hashlib.blake2b(digest_size=8)
    if isinstance(content, str):
        digest.update(content.encode())
    else:
        for tensor in content:
            flat = tensor.detach().cpu().reshape(-1)
            if flat.stride(0) != 1:  # one value that is spread over all places, or over one
                flat = flat.new_empty(flat.shape).copy_(flat)
            digest.update(flat.view(torch.uint8).numpy().tobytes())
    return int.from_bytes(digest.digest(), "big", signed=True)


class _Join(torch.autograd.Function):
    """See :meth:`SingleProcess.joined`. It needs no message on the way back, since all compute the same loss."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rank: int, size: int) -> Tensor:
        ctx.rows, ctx.size = slice(rank * len(x), (rank + 1) * len(x)), size
        return torch.cat(gathered(x))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return gradients[0][ctx.rows] * ctx.size, None, None


def gathered(x: Tensor) -> list[Tensor]:
    x = x.detach().contiguous()
    parts = [torch.empty_like(x) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(parts, x)
    return parts
