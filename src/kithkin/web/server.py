"""The server below the application: connections, and answers to requests that never reach the
application."""

import json
import socket
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from kithkin.web._guard import HEADERS
from kithkin.web._limits import Limits


def serve_on(app: Any, listening: socket.socket, limits: Limits) -> None:
    """Serve an application on a socket until a signal ends it.

    Args:
        app: from ``create_app``.
        listening: the socket.
        limits: those of the application.
    """

    class Connection(_Connection):
        header_seconds, most = limits.header_seconds, limits.connections

    config = uvicorn.Config(
        app,
        http=Connection,
        ws="none",
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=3,
    )
    uvicorn.Server(config).run(sockets=[listening])


class _Connection(H11Protocol):
    """A connection that has some seconds for the head of each request, and that makes room for
    others until then.

    Whoever opens connections and sends nothing thus keeps nobody out: above ``most``, the one that
    has kept the server waiting for the longest time is closed.
    """

    header_seconds: float
    most: int
    _deadline: Any = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._wait_for_head()
        if len(self.connections) > self.most:
            idle = [one for one in self.connections if isinstance(one, _Connection) and one._deadline is not None]
            longest = min(idle, key=lambda one: one._deadline.when(), default=None)
            if longest is not None:
                longest._hang_up()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._at_work():
            self._head_came()
        elif self._deadline is None:
            self._wait_for_head()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if (
            not self._at_work() and self._deadline is None
        ):  # until the next request begins, uvicorn has a time of its own
            self._wait_for_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_came()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """What is no HTTP, or has too long a head, gets the sentence and the headers that every
        refusal has."""
        body = json.dumps({"detail": f"{msg.rstrip('.')}; expected an HTTP/1.1 request"}).encode()
        headers = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
        headers += [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        answer = h11.Response(status_code=400, headers=[*headers, (b"connection", b"close")], reason=b"Bad Request")
        for event in (answer, h11.Data(data=body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def _at_work(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _wait_for_head(self) -> None:
        self._deadline = self.loop.call_later(self.header_seconds, self._hang_up)

    def _head_came(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _hang_up(self) -> None:
        self._head_came()
        self.connections.discard(self)
        self.transport.abort()
