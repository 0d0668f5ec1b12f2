"""A web server for one person at this machine, on the loopback address: what its pages have in common.

It answers requests that name this address as their host, so that no other site's page reaches it under a name of its
own (DNS rebinding), and asks nothing of the network.
"""

from __future__ import annotations

import json
import sys
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from .errors import UserError

__all__ = ["HOST", "LoopbackHandler", "listen"]

HOST = "127.0.0.1"


class _Server(ThreadingHTTPServer):
    daemon_threads = True  # a browser opens connections that it does not use yet

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that leaves before its answer is no matter; a fault of the program's is told."""
        if not isinstance(sys.exc_info()[1], ConnectionError | TimeoutError):
            super().handle_error(request, client_address)


def listen(handler: type[LoopbackHandler], port: int) -> ThreadingHTTPServer:
    """A server that answers by a handler; ``serve_forever`` runs it, its ``server_port`` says where.

    Args:
        handler: a subclass of :class:`LoopbackHandler`.
        port: 0 takes a free one.

    Raises:
        UserError: a port that is taken, or may not be used.
    """
    try:
        return _Server((HOST, port), handler)
    except (OSError, OverflowError) as error:
        reason = error.strerror if isinstance(error, OSError) else "there are none above 65535"
        raise UserError(f"--port {port} cannot be used ({reason}); give another, or 0 for a free one") from error


class LoopbackHandler(BaseHTTPRequestHandler):
    """Answers of a server on this machine.

    Attributes:
        policy: the Content-Security-Policy of all answers.
    """

    timeout = 30  # seconds for a request to arrive
    server_version, sys_version = "autoreid", ""
    policy = "default-src 'none'; frame-ancestors 'none'"

    def is_ours(self) -> bool:
        """Whether a request names this server as its host, and comes from one of its pages; if not, it is refused."""
        port = self.connection.getsockname()[1]
        hosts = {f"{HOST}:{port}", f"localhost:{port}"}
        origin = self.headers.get("Origin")
        ours = self.headers.get("Host") in hosts and (origin is None or origin.removeprefix("http://") in hosts)
        if not ours:
            self.refuse(HTTPStatus.FORBIDDEN, f"this is http://{HOST}:{port}/, for this machine only")
        return ours

    def refuse(self, status: HTTPStatus, line: str, **headers: str) -> None:
        """Answers with what is wrong."""
        self.send(status, json.dumps({"error": line}).encode(), "application/json", **headers)

    def send(self, status: HTTPStatus, body: bytes, kind: str, **headers: str) -> None:
        """Answers; nothing is kept by the browser, shown within another page, or read by one."""
        self.send_response(status)
        for name, value in {
            "Content-Type": kind,
            "Content-Length": str(len(body)),
            "Content-Security-Policy": self.policy,
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
            "Cross-Origin-Resource-Policy": "same-origin",
            "Cache-Control": "no-store",
            **headers,
        }.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing: a terminal need not know who was asked for."""
