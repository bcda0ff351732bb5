"""Checks before every request: who may ask, how large and how slow a request may be, and safe
headers."""

import asyncio
import ipaddress
import json
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

from kithkin.web._limits import Limits
from kithkin.web._pictures import Refused, too_many_bytes

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Message, Receive, Send], Awaitable[None]]

FORM_BYTES = 65536
"""What a form may hold besides the picture."""
RETRY_SECONDS = 10
"""Seconds after which another upload may be tried where there are too many."""

HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}


class Guard:
    """ASGI middleware.

    A web page elsewhere must not reach a server on this machine through the visitor's browser: the
    name in ``Host`` must be an IP address, localhost or one of ``names`` (an attacker's own name
    that resolves to this machine is none of these), and a browser's request must come from the
    server's own page.

    Args:
        app: what it guards.
        limits: bytes and seconds of an upload.
        names: further host names to answer to.
    """

    def __init__(self, app: Application, limits: Limits, names: Iterable[str] = ()) -> None:
        self._app, self._limits = app, limits
        self._names = {"localhost", *(name.lower() for name in names)}
        self._uploads = 0

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}

        refusals: list[Refused] = []
        uploads = scope["method"] == "POST"  # what needs memory or time; a state or the page is always given

        head = scope["method"] == "HEAD" and not scope["path"].endswith("/result")  # which is given away once
        if head:  # as GET, without the body
            scope = {**scope, "method": "GET"}

        async def send_safely(message: Message) -> None:
            if head and message["type"] == "http.response.body":
                message = {**message, "body": b""}
            if message["type"] == "http.response.start":
                extra = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
                message = {**message, "headers": [*message.get("headers", []), *extra]}
            await send(message)

        async def send_unless_refused(message: Message) -> None:
            # A framework makes an answer of its own of what comes up while it reads.
            if not refusals:
                await send_safely(message)

        try:
            self._check_origin(headers)
            self._check_length(headers)
            if uploads and self._uploads >= self._limits.requests:
                raise Refused(503, f"the server has as many uploads as it takes; try again in {RETRY_SECONDS} seconds")
            self._uploads += uploads
            try:
                await self._app(scope, self._bounded(receive, refusals), send_unless_refused)
            finally:
                self._uploads -= uploads
        except Refused as refused:
            refusals.append(refused)
        if refusals:
            await _answer(send_safely, refusals[0])

    def _check_origin(self, headers: dict[str, str]) -> None:
        host = headers.get("host", "")
        if not self._answers_to(host):
            raise Refused(
                421, f"this server does not answer to the name {host[:100]!r}; whoever runs it can allow that name"
            )
        origin = headers.get("origin")
        foreign = origin is not None and urlsplit(origin).netloc != host
        followed_a_link = headers.get("sec-fetch-mode") == "navigate"
        if foreign or (headers.get("sec-fetch-site") == "cross-site" and not followed_a_link):
            raise Refused(403, "this server answers to its own page and to programs, not to other web pages")

    def _answers_to(self, host: str) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname or ""
            ipaddress.ip_address(name)
        except ValueError:
            return host.rpartition(":")[0].lower() in self._names or host.lower() in self._names
        return True

    def _check_length(self, headers: dict[str, str]) -> None:
        length = headers.get("content-length", "0")
        if not length.isascii() or not length.isdecimal() or int(length) > self._limits.megabytes * 1e6 + FORM_BYTES:
            raise Refused(413, too_many_bytes(self._limits))

    def _bounded(self, receive: Receive, refusals: list[Refused]) -> Receive:
        """Count what comes, and the time, rather than believe what was announced; what is refused
        is noted as well."""
        received, complete, started = 0, False, asyncio.get_running_loop().time()

        def refuse(status: int, detail: str) -> Refused:
            refusals.append(Refused(status, detail))
            return refusals[-1]

        async def receive_bounded() -> Message:
            nonlocal received, complete
            if complete:
                return await receive()
            left = started + self._limits.upload_seconds - asyncio.get_running_loop().time()
            try:
                message = await asyncio.wait_for(receive(), max(left, 0.001))
            except TimeoutError:
                time = f"{self._limits.upload_seconds:g} seconds"
                raise refuse(408, f"the upload took longer than {time}; try again, or send a smaller file") from None
            received += len(message.get("body", b""))
            complete = not message.get("more_body", False)
            if received > self._limits.megabytes * 1e6 + FORM_BYTES:
                raise refuse(413, too_many_bytes(self._limits))
            return message

        return receive_bounded


async def _answer(send: Send, refused: Refused) -> None:
    body = json.dumps({"detail": refused.detail}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    # What is still on its way is not read.
    headers.append((b"connection", b"close"))
    if refused.status == 503:
        headers.append((b"retry-after", str(RETRY_SECONDS).encode()))
    await send({"type": "http.response.start", "status": refused.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
