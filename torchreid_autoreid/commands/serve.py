"""``autoreid report LOG --serve``: the report on this machine, which follows a running search."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import threading
import time
from collections.abc import Callable
from http import HTTPStatus
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

from ..engine.run_folder import is_claimed
from ..errors import UserError
from ..loopback import HOST, LoopbackHandler, listen
from ..numbers import duration
from ..report.html import contents
from ..report.log import SELECTION, SearchLog, read_log
from ..report.page import render_page
from .report import report_kwargs

__all__ = ["Follower", "make_server", "serve", "status"]

_READ = (
    "history.jsonl",
    f"{SELECTION}/history.jsonl",
    "genotype.json",
    "config.yaml",
    "queries.json",
    "provenance.json",
)
_RECENT = 5  # epochs that tell how long one takes


def serve(args: argparse.Namespace, folder: str) -> int:
    """Shows the page until Ctrl-C.

    Raises:
        UserError: if the folder is no log of a search, or the port is not free.
    """
    follower = Follower(Path(folder), lambda: report_kwargs(args, folder))
    with contextlib.suppress(KeyboardInterrupt), make_server(follower, args.port or 0) as server:
        print(f"http://{HOST}:{server.server_port}/ (Ctrl-C ends it)", flush=True)
        server.serve_forever()
    return 0


class Follower:
    """The page of a log folder, written anew when a file in it has changed.

    Args:
        folder: the log folder.
        options: gives what the page shows besides the log, see :func:`~torchreid_autoreid.report.html.contents`.

    Raises:
        UserError: if the folder is no log of a search.
    """

    def __init__(self, folder: Path, options: Callable[[], dict[str, Any]]) -> None:
        if not any((folder / name).is_file() for name in ("history.jsonl", "config.yaml")):
            raise UserError(f"{folder} holds neither history.jsonl nor config.yaml; give the data.save_dir of a search")
        self.folder, self.options = folder, options
        self._reading, self._writing = threading.Lock(), threading.Lock()  # a page takes long, a state never
        self._log: tuple[str, SearchLog | str] = ("", "")
        self._page = ("", "")

    def version(self) -> str:
        """Another text once a file has changed."""
        marks = []
        for name in _READ:
            try:
                found = (self.folder / name).stat()
                marks.append((found.st_mtime_ns, found.st_size, found.st_ino))
            except OSError:
                marks.append((0, 0, 0))
        return hashlib.sha256(repr(marks).encode()).hexdigest()[:16]

    def state(self) -> dict[str, str]:
        """What the page asks for again and again."""
        version, log = self._read()
        return {"version": version, "status": self._status(log)}

    def page(self) -> str:
        """The page as it is now."""
        with self._writing:
            version, log = self._read()
            if self._page[0] != version:
                self._page = (version, self._written(log, version))
            return self._page[1]

    def _read(self) -> tuple[str, SearchLog | str]:
        """The log as it is now; why it cannot be shown, where it cannot."""
        with self._reading:
            version = self.version()
            if self._log[0] != version:
                self._log = (version, self._log_or_reason())
            return self._log

    def _log_or_reason(self) -> SearchLog | str:
        history = self.folder / "history.jsonl"
        try:
            if not history.is_file() or b"\n" not in history.read_bytes()[: 1 << 20]:
                return "Nothing can be shown before the first epoch has ended."
            return read_log(self.folder)
        except (UserError, OSError) as error:
            return f"Nothing can be shown at the moment: {error}."

    def _written(self, log: SearchLog | str, version: str) -> str:
        follow = self._status(log)
        if not isinstance(log, str):
            try:
                return render_page("search.html", follow, version, **contents(log, **self.options()))
            except UserError as error:
                log = f"Nothing can be shown at the moment: {error}."
        return render_page("waiting.html", follow, version, name=self.folder.resolve().name, reason=log)

    def _status(self, log: SearchLog | str) -> str:
        try:
            of_selection = not isinstance(log, str) and log.present is not log.records
            history = self.folder / (SELECTION if of_selection else "") / "history.jsonl"
            since = time.time() - history.stat().st_mtime
        except OSError:
            since = 0.0
        return status(None if isinstance(log, str) else log, is_claimed(self.folder), since)


def status(log: SearchLog | None, running: bool, since: float) -> str:
    """How far a search is, in a sentence.

    Args:
        log: ``None`` before the first epoch has ended.
        running: whether a process writes into its folder.
        since: seconds since the end of the last epoch.
    """
    if log is None:
        if running:
            return "The first epoch is running; how long the search takes is known when it has ended."
        return "No epoch has ended, and no search is running in this folder."
    last, what = log.present[-1], "" if log.present is log.records else " of the selection"
    done = f"{last.epoch} of {last.epochs} epochs{what}"
    if not log.running:
        return (
            f"All epochs are done ({done}), and the search is still at work."
            if running
            else f"The search has ended: {done}."
        )
    # The alphas have ended, and no candidate of the selection has had an epoch.
    between = log.selects and not log.selection and (last.epoch == last.epochs or bool(last.ended))
    if not running:
        return f"The search is not running: {done} are done{', and no candidate of its selection' if between else ''}."
    if between:
        return f"The alphas have ended ({done}), and the first candidate of the selection is in training."
    recent = [record.seconds for record in log.present[-_RECENT:]]
    left = sum(recent) / len(recent) * (last.epochs - last.epoch) - since
    whole = "alphas" if log.selects and not what else "whole run"
    rest = f"about {duration(left)} left of the {whole}" if left > 0 else "it takes longer than those before"
    return f"Epoch {last.epoch + 1} of {last.epochs}{what} is running; {rest}."


def make_server(follower: Follower, port: int = 0) -> ThreadingHTTPServer:
    """A server on this machine alone; port 0 is a free one.

    Raises:
        UserError: if the port cannot be had.
    """
    return listen(type("Handler", (_Handler,), {"follower": follower}), port)


class _Handler(LoopbackHandler):
    follower: Follower
    policy = "frame-ancestors 'none'"  # the page itself says the rest

    def do_GET(self) -> None:
        if not self.is_ours():
            return
        if self.path == "/":
            self.send(HTTPStatus.OK, self.follower.page().encode("utf-8", "replace"), "text/html; charset=utf-8")
        elif self.path == "/state":
            self.send(HTTPStatus.OK, json.dumps(self.follower.state()).encode(), "application/json")
        else:
            self.refuse(HTTPStatus.NOT_FOUND, "there is one page here, /")

    def _only_get(self) -> None:
        self.refuse(HTTPStatus.METHOD_NOT_ALLOWED, "GET is all that this server answers", Allow="GET")

    do_HEAD = do_POST = do_PUT = do_DELETE = do_PATCH = do_OPTIONS = _only_get
