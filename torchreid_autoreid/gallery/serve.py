"""A page for one person at this machine: drop a crop, see who it is, or that it is nobody enrolled.

The server is the standard library's, on the loopback address only. It answers requests that name this address as their
host, so that no other site's page reaches it under a name of its own (DNS rebinding), and asks nothing of the network.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from ..errors import UserError
from ..evaluation.embeddings import check_count
from .gallery import Gallery

__all__ = ["MOST_BYTES", "serve"]

HOST = "127.0.0.1"
MOST_BYTES = 32 << 20  # of a picture
_MOST_PASSED_OVER = 1 << 30
_PATIENCE = 30  # seconds for a request to arrive
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src blob: data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_FILES = {
    "/": ("serve.html", "text/html"),
    "/serve.js": ("serve.js", "text/javascript"),
    "/serve.css": ("serve.css", "text/css"),
}

#: a picture's bytes to (1, D) features; a UserError says what is wrong with the picture
Features = Callable[[bytes], Any]


def serve(
    gallery: Gallery, features: Features, port: int, top: int = 5, threshold: float | None = None
) -> ThreadingHTTPServer:
    """A server that answers for a gallery; ``serve_forever`` runs it, its ``server_port`` says where.

    Args:
        gallery: what other processes change in it is seen by the next query.
        features: of a picture.
        port: 0 takes a free one.
        top: people to rank.
        threshold: where the slider starts; the calibrated one if not given.

    Raises:
        UserError: a port that is taken, or may not be used.
    """
    check_count("top", top, 1)
    lock = Lock()  # one network, one connection to the database

    def answer(picture: bytes) -> dict[str, Any]:
        with lock:
            found = gallery.query(features(picture), top, threshold=-1)
            calibration = gallery.calibration
            people = gallery.pids
            stale = calibration is not None and calibration.revision != gallery.revision
        start = calibration.threshold if threshold is None and calibration is not None else threshold
        ranked = zip(found.ranked_pids[0].tolist(), found.ranked_scores[0].tolist(), strict=True)
        return {
            "people": [{"pid": str(pid), "score": score} for pid, score in ranked],
            "margin": float(found.margins[0]) if np.isfinite(found.margins[0]) else None,
            "threshold": start,
            "enrolled": len(people),
            "stale": stale and threshold is None,
        }

    class Handler(_Handler):
        answer_picture = staticmethod(answer)

    try:
        return _Server((HOST, port), Handler)
    except (OSError, OverflowError) as error:
        reason = error.strerror if isinstance(error, OSError) else "there are none above 65535"
        raise UserError(f"--port {port} cannot be used ({reason}); give another, or 0 for a free one") from error


class _Server(ThreadingHTTPServer):
    daemon_threads = True  # a browser opens connections that it does not use yet

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that leaves before its answer is no matter."""


class _Handler(BaseHTTPRequestHandler):
    timeout = _PATIENCE
    server_version, sys_version = "autoreid", ""
    answer_picture: Callable[[bytes], dict[str, Any]]

    def do_GET(self) -> None:
        if not self._is_ours():
            return
        if self.path not in _FILES:
            self._say(HTTPStatus.NOT_FOUND, "nothing is here; the page is at /")
            return
        name, kind = _FILES[self.path]
        self._send(HTTPStatus.OK, Path(__file__).with_name(name).read_bytes(), f"{kind}; charset=utf-8")

    def do_POST(self) -> None:
        if not self._is_ours():
            return
        length = self.headers.get("Content-Length", "")
        if self.path != "/query" or not (length.isascii() and length.isdigit() and len(length) < 13):
            self._say(HTTPStatus.NOT_FOUND, "only pictures are taken, by the page at /")
        elif int(length) > MOST_BYTES:
            rest = min(int(length), _MOST_PASSED_OVER)  # a browser that still sends does not read the answer
            while part := self.rfile.read(min(rest, 1 << 20)):
                rest -= len(part)
            self._say(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"the picture has more than {MOST_BYTES >> 20} MB")
        else:
            picture = self.rfile.read(int(length))
            try:
                status, found = HTTPStatus.OK, self.answer_picture(picture)
            except UserError as error:
                status, found = HTTPStatus.UNPROCESSABLE_ENTITY, {"error": str(error)}
            self._send(status, json.dumps(found, allow_nan=False).encode(), "application/json")

    def _is_ours(self) -> bool:
        port = self.connection.getsockname()[1]
        hosts = {f"{HOST}:{port}", f"localhost:{port}"}
        origin = self.headers.get("Origin")
        ours = self.headers.get("Host") in hosts and (origin is None or origin.removeprefix("http://") in hosts)
        if not ours:
            self._say(HTTPStatus.FORBIDDEN, f"this is http://{HOST}:{port}/, for this machine only")
        return ours

    def _say(self, status: HTTPStatus, line: str) -> None:
        self._send(status, json.dumps({"error": line}).encode(), "application/json")

    def _send(self, status: HTTPStatus, body: bytes, kind: str) -> None:
        self.send_response(status)
        for name, value in {
            "Content-Type": kind,
            "Content-Length": str(len(body)),
            "Content-Security-Policy": _POLICY,
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
            "Cross-Origin-Resource-Policy": "same-origin",
            "Cache-Control": "no-store",
        }.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing: a terminal need not know who was asked for."""
