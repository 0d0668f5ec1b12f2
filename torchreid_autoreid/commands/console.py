"""What the commands share at the terminal: exit statuses, the log, signals, a bar."""

from __future__ import annotations

import io
import logging
import logging.handlers
import os
import select
import shutil
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from multiprocessing import resource_sharer
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from tqdm import tqdm

from ..errors import Interrupted, SharedError, UserError, line_of_the_machine
from ..files import not_writable
from ..numbers import duration
from ..records import EpochRecord

__all__ = ["Log", "StepBar", "begin_log", "quieten", "run", "setup_logging", "stop_on_signals"]

_LOGGER = logging.getLogger(__name__)


#: kept until the log file may be written
_MOST_EARLY_LINES = 10_000
#: what the command that runs has begun: how to put stdout, warnings and log back
_begun: list[Callable[[], None]] = []


def run(main: Callable[[], int | None]) -> int:
    """Runs a command and gives its exit status.

    0 done; 2 the user's mistake, or the machine's (a full disk, too little memory, a loader process that was killed),
    told in one line on stderr; 130 interrupted, with the path to resume from; 141 nobody reads its output any more
    (``evaluate … | head``). Anything else is a fault of the program's and keeps its traceback. All of them are in the
    log file as well. Of what all processes of torchrun end with together, the first one tells.

    >>> run(lambda: None)
    0
    """
    if isinstance(sys.stdout, io.TextIOWrapper):  # names of files may have bytes that are no text
        sys.stdout.reconfigure(errors="backslashreplace")
    tqdm.monitor_interval = 0  # no thread of its own, which the system may refuse: bars here are refreshed by steps
    threading.excepthook = _quiet_thread
    sys.excepthook = _quiet_loader
    sys.unraisablehook = _quiet_end
    try:
        status = main() or 0
        sys.stdout.flush()
        return status
    except SharedError as error:
        return _ended("" if _rank() else f"error: {error}", 2)
    except UserError as error:
        return _ended(f"error: {error}", 2)
    except Interrupted as stop:
        return _ended("" if _rank() else str(stop), 130)
    except KeyboardInterrupt as stop:
        return _ended(str(stop) or "interrupted; what has been written is kept", 130)
    except Exception as error:
        _forget_loaders()
        if isinstance(error, BrokenPipeError) and _reader_has_gone():
            return 128 + signal.SIGPIPE
        if line := _what_to_do(error):
            _LOGGER.debug("stopped by a fault of the machine", exc_info=True)
            return _ended(f"error: {line}", 2)
        _LOGGER.debug("stopped by a fault of the program", exc_info=True)
        raise
    finally:
        while _begun:  # or the next command of this process, as in a notebook, would print into this one's log
            _begun.pop()()


def _reader_has_gone() -> bool:
    """Of stdout, as in ``evaluate … | head``: nobody reads the rest, so that is not told."""
    try:
        descriptor = sys.stdout.fileno()
    except (AttributeError, OSError, ValueError):  # no file at all
        return False
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    if not any(event & select.POLLERR for _, event in poll.poll(0)):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)  # Python flushes once more when it ends
    return True


def _what_to_do(error: Exception) -> str:
    """What to do about a fault of the machine, or of the other processes; nothing if it is the program's."""
    if _is_of_the_group(error):
        reason = str(error).strip().splitlines()[0][:160]
        hint = "what has been written is kept; start all again with --resume auto, as torchrun --max-restarts does"
        return f"another process of the run has ended or cannot be reached ({reason}); {hint}"
    return line_of_the_machine(error)


def _quiet_thread(fault: threading.ExceptHookArgs) -> None:
    """The thread that writes for TensorBoard hands a full disk on, and Python would print it as well."""
    if isinstance(fault.exc_value, Exception) and line_of_the_machine(fault.exc_value):
        _LOGGER.debug("%s: %r", getattr(fault.thread, "name", "a thread"), fault.exc_value)
    else:
        threading.__excepthook__(fault)


def _quiet_loader(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    """A loader process that is killed while it hands a batch over breaks the thread that takes it (multiprocessing)."""
    if traceback is not None and traceback.tb_frame.f_code.co_filename == resource_sharer.__file__:
        _LOGGER.debug("a loader process is gone: %r", error)
    else:
        sys.__excepthook__(kind, error, traceback)


def _quiet_end(fault: Any) -> None:
    """PyTorch's loader that could not start all its processes complains once more when it is thrown away."""
    if "DataLoaderIter.__del__" in repr(fault.object):
        _LOGGER.debug("a loader ends: %r", fault.exc_value)
    else:
        sys.__unraisablehook__(fault)


def _is_of_the_group(error: Exception) -> bool:
    """Whether the processes of torchrun have lost one another: what gloo and NCCL say when a peer is gone."""
    words = ("gloo", "Connection closed by peer", "Connection reset", "Broken pipe", "NCCL", "ProcessGroup", "TCPStore")
    return (
        "TORCHELASTIC_RUN_ID" in os.environ
        and isinstance(error, RuntimeError)
        and any(word in str(error) for word in words)
    )


def _forget_loaders() -> None:
    """PyTorch's handler would raise, in the middle of the last line, for loader processes that end after a fault."""
    if hasattr(signal, "SIGCHLD") and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)


def _ended(line: str, status: int) -> int:
    _forget_loaders()
    if "TORCHELASTIC_RUN_ID" in os.environ:
        # It ends the other processes as soon as one has ended, and all of them are to end with their own status.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if line:
        # One line, whatever a file's names hold: no line feeds, and nothing that a terminal would obey.
        line = "".join(letter if letter.isprintable() else "?" for letter in " ".join(line.split())[:2000])
        _LOGGER.debug("%s", line)  # into the log file only
        print(line, file=sys.stderr)
    return status


def _rank() -> int:
    return int(os.environ.get("RANK", "0"))


def setup_logging(save_dir: str | Path, name: str) -> Callable[[], None]:
    """:class:`Log` that is written into ``save_dir/name.log`` from the beginning.

    Returns:
        A function that puts everything back.

    Raises:
        UserError: if the log cannot be written.
    """
    log = Log()
    try:
        log.write_into(save_dir, name)
    except UserError:
        log.end()
        raise
    return log.end


class Log:
    """Sends the log to the terminal at once and, with times and details, to a file as soon as that may be written.

    torchreid prints and warns; both become lines of the same log. Progress bars write to stderr: they stay out of the
    log, and its lines appear above them.
    """

    def __init__(self) -> None:
        self.stdout, self.show_warning = sys.stdout, warnings.showwarning
        self.logger = logging.getLogger(__name__.split(".", 1)[0])
        self.before = self.logger.propagate, self.logger.level
        self.early = logging.handlers.MemoryHandler(_MOST_EARLY_LINES, flushLevel=sys.maxsize, flushOnClose=False)
        self.handlers: list[logging.Handler] = [self.early, _ToTerminal(self.stdout)]
        for handler in self.handlers:
            self.logger.addHandler(handler)
        self.logger.propagate = False
        self.logger.setLevel(logging.DEBUG)
        sys.stdout = self.printed = _Printed(self.stdout, _LOGGER)
        # logging.captureWarnings would log to another logger, with the path and a line of the source that warned.
        warnings.showwarning = lambda message, category, *_: _LOGGER.warning("%s: %s", category.__name__, message)

    def write_into(self, save_dir: str | Path, name: str) -> None:
        """Writes what has been logged, and all that comes, into ``save_dir/name.log``.

        Raises:
            UserError: if that cannot be written.
        """
        try:
            Path(save_dir).mkdir(parents=True, exist_ok=True)
            to_file = _ToFile(Path(save_dir) / f"{name}.log", encoding="utf-8", errors="backslashreplace")
        except OSError as error:
            raise not_writable(save_dir, error) from None
        to_file.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
        self.early.setTarget(to_file)
        self.early.flush()
        self.logger.removeHandler(self.early)
        self.handlers = [to_file, *self.handlers[1:]]
        self.logger.addHandler(to_file)

    @contextmanager
    def details(self) -> Iterator[None]:
        """What is printed in the block goes to the file alone."""
        self.printed.level = logging.DEBUG
        try:
            yield
        finally:
            self.printed.level = logging.INFO

    def end(self) -> None:
        """Puts everything back."""
        self.printed.end()
        sys.stdout, warnings.showwarning = self.stdout, self.show_warning
        self.logger.propagate, level = self.before
        self.logger.setLevel(level)
        for handler in self.handlers:
            self.logger.removeHandler(handler)
            handler.close()


def begin_log(rank: int) -> Log | None:
    """The log of the first process; the others are quiet. :func:`run` puts everything back."""
    log = Log() if rank == 0 else None
    _begun.append(log.end if log else quieten())
    return log


def details_of(log: Log | None) -> AbstractContextManager[None]:
    """See :meth:`Log.details`."""
    return log.details() if log else nullcontext()


def quieten() -> Callable[[], None]:
    """For the processes of torchrun other than the first: they print, warn and log nothing but their own faults.

    Returns:
        A function that puts everything back.
    """
    stdout, showwarning = sys.stdout, warnings.showwarning
    logger = logging.getLogger(__name__.split(".", 1)[0])
    handler, propagated = logging.NullHandler(), logger.propagate
    logger.addHandler(handler)
    logger.propagate = False
    nowhere = sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  as long as the process lives
    warnings.showwarning = lambda *_, **__: None

    def undo() -> None:
        sys.stdout, warnings.showwarning = stdout, showwarning
        logger.propagate = propagated
        logger.removeHandler(handler)
        nowhere.close()

    return undo


def stop_on_signals(engine: Any) -> None:
    """The first SIGINT or SIGTERM finishes the step and writes a checkpoint, the second one stops at once.

    Not under torchrun: a queue sends the signal to all processes of a job, and torchrun passes its own on, so that a
    process gets two for one. It is torchrun that stops what does not end in time.
    """

    def stop(signum: int, _: Any) -> None:
        if engine.stop_requested:
            if "TORCHELASTIC_RUN_ID" in os.environ:
                return
            latest = engine.save_dir / "checkpoint.pth"
            raise KeyboardInterrupt(f"interrupted; resume with --resume {latest}" if latest.exists() else "")
        engine.stop_requested = True
        if _rank() == 0:
            print(f"\n{signal.Signals(signum).name}: finishing the step and writing a checkpoint …", file=sys.stderr)

    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, stop)


class TimeLeft:
    """Of the whole run, by the epochs that this process has seen."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.epochs = 0

    def __call__(self, record: EpochRecord) -> str:
        """The epoch's number, its time, and the time left after it."""
        self.seconds, self.epochs = self.seconds + record.seconds, self.epochs + 1
        left = (record.epochs - record.epoch) * self.seconds / self.epochs
        rest = f", {duration(left)} left" if left and not record.ended else ""
        return f"epoch {record.epoch}/{record.epochs} took {duration(record.seconds)}{rest}"


_EPOCH_BAR = "{desc}{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}{postfix}"


class StepBar:
    """Two bars on a terminal: the steps of the whole run with the time left, and those of the epoch."""

    def __init__(self, start_epoch: int, epochs: int) -> None:
        self.start_epoch, self.epochs = start_epoch, epochs
        self.bars: tuple[tqdm, tqdm] | None = None

    def __call__(self, epoch: int, batch: int, batches: int, figures: Mapping[str, float]) -> None:
        done = epoch * batches + batch + 1
        if self.bars is None:
            # Some terminals say that they have no columns and rows at all; tqdm would believe them.
            size = shutil.get_terminal_size()
            options = {"unit": "step", "ncols": size.columns, "nrows": size.lines, "leave": False}
            self.bars = (
                tqdm(desc="run", initial=done - 1, position=0, **options),
                tqdm(position=1, bar_format=_EPOCH_BAR, **options),
            )
        run, own = self.bars
        # Epochs differ by a batch or two, since the sampler draws identities until too few are left.
        run.n, run.total = done, self.epochs * batches
        own.n, own.total = batch + 1, batches
        own.set_description(f"epoch {epoch + 1}/{self.epochs}", refresh=False)
        own.set_postfix(loss=f"{figures['loss']:.3f}", top1=f"{figures['top1']:.0%}", refresh=False)
        for bar in self.bars:
            bar.refresh()
        if run.n >= run.total:
            for bar in reversed(self.bars):
                bar.close()


class _ToFile(logging.FileHandler):
    """A log that a full disk does not fill the terminal with tracebacks: the run's own files will tell."""

    def handleError(self, record: logging.LogRecord) -> None:
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)


class _ToTerminal(logging.Handler):
    """Writes lines above a progress bar, if there is one."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__(logging.INFO)
        self.stream = stream
        self.reader_has_gone = False

    def emit(self, record: logging.LogRecord) -> None:
        if self.reader_has_gone:
            return
        try:
            encoding = self.stream.encoding or "utf-8"  # a file's name may have bytes that it cannot express
            text = self.format(record).encode(encoding, "backslashreplace").decode(encoding)
            # tqdm.write would clear the bars for sys.stdout alone, which is not the stream while this log is there.
            with tqdm.external_write_mode(file=sys.stderr):
                self.stream.write(f"{text}\n")
                self.stream.flush()
        except BrokenPipeError:  # of ``search.py … | head``: the run and its log file go on
            self.reader_has_gone = True
            # Python flushes the stream at its end, and would complain then.
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.stream.fileno())
            print("nobody reads the output any more; the log file goes on", file=sys.stderr)
        except Exception:  # as every handler of logging
            self.handleError(record)


class _Printed:
    """A stdout whose lines become lines of the log."""

    def __init__(self, stream: TextIO, logger: logging.Logger) -> None:
        self.stream, self.logger, self.line = stream, logger, ""
        self.level = logging.INFO

    def write(self, text: str) -> int:
        *lines, self.line = (self.line + text).split("\n")
        for line in filter(str.strip, lines):
            self.logger.log(self.level, "%s", line.replace("\t", "  "))
        return len(text)

    def end(self) -> None:
        if self.line:
            self.write("\n")

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)
