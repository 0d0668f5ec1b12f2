"""A page for one person at this machine: drop a crop, see who it is, or that it is nobody enrolled."""

from __future__ import annotations

import json
from collections.abc import Callable
from http import HTTPStatus
from http.server import ThreadingHTTPServer
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from ..errors import UserError
from ..evaluation.embeddings import check_count
from ..loopback import LoopbackHandler, listen
from .gallery import Gallery

__all__ = ["MOST_BYTES", "serve"]

MOST_BYTES = 32 << 20  # of a picture
_MOST_PASSED_OVER = 1 << 30
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

    return listen(Handler, port)


class _Handler(LoopbackHandler):
    policy = _POLICY
    answer_picture: Callable[[bytes], dict[str, Any]]

    def do_GET(self) -> None:
        if not self.is_ours():
            return
        if self.path not in _FILES:
            self.refuse(HTTPStatus.NOT_FOUND, "nothing is here; the page is at /")
            return
        name, kind = _FILES[self.path]
        self.send(HTTPStatus.OK, Path(__file__).with_name(name).read_bytes(), f"{kind}; charset=utf-8")

    def do_POST(self) -> None:
        if not self.is_ours():
            return
        length = self.headers.get("Content-Length", "")
        if self.path != "/query" or not (length.isascii() and length.isdigit() and len(length) < 13):
            self.refuse(HTTPStatus.NOT_FOUND, "only pictures are taken, by the page at /")
        elif int(length) > MOST_BYTES:
            rest = min(int(length), _MOST_PASSED_OVER)  # a browser that still sends does not read the answer
            while part := self.rfile.read(min(rest, 1 << 20)):
                rest -= len(part)
            self.refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"the picture has more than {MOST_BYTES >> 20} MB")
        else:
            picture = self.rfile.read(int(length))
            try:
                status, found = HTTPStatus.OK, self.answer_picture(picture)
            except UserError as error:
                status, found = HTTPStatus.UNPROCESSABLE_ENTITY, {"error": str(error)}
            self.send(status, json.dumps(found, allow_nan=False).encode(), "application/json")
