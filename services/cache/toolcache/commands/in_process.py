"""An ASGI application called in this process, as a transport of httpx that passes its reply on piece by piece.

httpx has one that gathers the whole reply first: an export would have to fit into memory.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress

import httpx
from starlette.types import ASGIApp, Message


class InProcess(httpx.AsyncBaseTransport):
    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """The reply; read its stream and close it."""
        exchange = _Exchange(self._app, request, await request.aread())
        try:
            start = await exchange.next()
        except BaseException:
            await exchange.aclose()
            raise
        return httpx.Response(start["status"], headers=list(start.get("headers", [])), stream=exchange)


class _Exchange(httpx.AsyncByteStream):
    """One call of the application, and its reply's body. The application waits where nobody reads."""

    def __init__(self, app: ASGIApp, request: httpx.Request, body: bytes) -> None:
        self._messages: asyncio.Queue[Message] = asyncio.Queue(maxsize=1)
        self._body: bytes | None = body
        self._work = asyncio.ensure_future(app(_scope(request), self._receive, self._messages.put))

    async def next(self) -> Message:
        """The application's next message. Raises what it raised instead."""
        getting = asyncio.ensure_future(self._messages.get())
        await asyncio.wait({getting, self._work}, return_when=asyncio.FIRST_COMPLETED)
        if getting.done() or not self._messages.empty():
            return await getting
        getting.cancel()
        self._work.result()
        raise httpx.RemoteProtocolError("the application ended before its reply")

    async def __aiter__(self) -> AsyncIterator[bytes]:
        has_more = True
        while has_more:
            message = await self.next()
            has_more = message.get("more_body", False)
            yield message.get("body", b"")

    async def aclose(self) -> None:
        self._work.cancel()
        with suppress(asyncio.CancelledError):
            await self._work

    async def _receive(self) -> Message:
        if self._body is None:
            await asyncio.Event().wait()  # the client is here until it cancels
        body, self._body = self._body, None
        return {"type": "http.request", "body": body, "more_body": False}


def _scope(request: httpx.Request) -> dict[str, object]:
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": request.method,
        "scheme": request.url.scheme,
        "path": request.url.path,
        "raw_path": request.url.raw_path.split(b"?")[0],
        "query_string": request.url.query,
        "root_path": "",
        "headers": [(name.lower(), value) for name, value in request.headers.raw],
        "server": (request.url.host, request.url.port),
        "client": ("127.0.0.1", 0),
    }
