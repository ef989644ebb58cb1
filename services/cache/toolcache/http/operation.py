"""One endpoint from the first byte to the last: let in, known by its key, answered, counted.

A plain ASGI application. FastAPI's way of calling a function (dependencies, models, a chain of middleware) costs more
than a lookup does.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, assert_never

from starlette.types import Receive, Scope, Send

from toolcache.core.cache import UnknownNamespace
from toolcache.core.ports import StoreUnavailable
from toolcache.http.exchange import Exchange
from toolcache.http.keyring import Keyring
from toolcache.http.parameters import Parameter, parsed
from toolcache.http.problems import CONTENT_TYPE, ClientGone, Code, Refused, body_of, headers_of, unknown_namespace
from toolcache.http.traffic import Traffic
from toolcache.metrics import Metrics
from toolcache.settings import without_login
from toolcache.telemetry import log_sparingly, told_of
from toolcache_client import messages as wire

SLOW_S = 1.0
"""Seconds of work (waiting for others left out) after which a request is worth an event."""
_LONGEST_TOLD = 64
_CLASSES = {status: f"{status // 100}xx" for status in range(100, 600)}
_JSON = b"application/json"
_GONE = 0
"""Stands for a status where nobody was there to be told one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """A reply that is not JSON."""

    media_type: str
    body: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Stream:
    """A reply that is made while it is sent."""

    media_type: str
    pieces: AsyncGenerator[bytes, None]


Reply = bytes | Content | Stream | None
"""JSON as it is most often; None says nothing (204)."""
Handler = Callable[[Exchange], Awaitable[Reply]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """What an endpoint takes and gives, for those who call it and for the OpenAPI document."""

    method: str
    path: str
    body: type[wire.Message] | str | None = None
    """A message, or the media type of what is no message."""
    reply: type[wire.Message | wire.Reply] | str | None = None
    parameters: tuple[Parameter[Any], ...] = ()
    problems: tuple[Code, ...] = ()
    """Beside those that can come anywhere."""
    is_public: bool = False
    """No key is asked, and it is answered however busy the service is: what load balancers ask."""
    is_exempt: bool = False
    """It is answered however busy the service is."""
    takes_long: bool = False
    """No event is told of it for being slow."""

    @property
    def route(self) -> str:
        return f"{self.method} {self.path}"


class Operation:
    """A described endpoint that is served."""

    def __init__(
        self, about: Description, handler: Handler, *, traffic: Traffic, keyring: Keyring | None, metrics: Metrics
    ) -> None:
        self.about = about
        self.handler = handler
        self._traffic = None if about.is_exempt or about.is_public else traffic
        self._keyring = None if about.is_public else keyring
        self._metrics = metrics
        self._route = about.route
        # What probes and scrapers add to their address is nobody's slip.
        takes_any = about.is_public or about.is_exempt
        self._parameters = None if takes_any else frozenset(parameter.name for parameter in about.parameters)
        self._slow_s = float("inf") if about.takes_long else SLOW_S

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = Exchange(scope, receive)
        began_s = time.perf_counter()
        status = _GONE
        try:
            status = await self._serve(exchange, send)
        except asyncio.CancelledError:
            if exchange.ended is None:  # the server is going down
                raise
            assert exchange.task is not None
            exchange.task.uncancel()
            status = await self._fail(exchange, exchange.ended, send)
        except _Interrupted as interrupted:
            status = Code.INTERNAL.status
            self._tell_failure(exchange, interrupted.error)
            raise interrupted.error from None  # the server cuts the connection: the reply must not look whole
        except Exception as error:  # noqa: BLE001  the border: whatever went wrong becomes a problem
            status = await self._fail(exchange, error, send)
        finally:
            if self._traffic is not None:
                self._traffic.leave(exchange)
            seconds = time.perf_counter() - began_s
            self._metrics.requested(self._route, _CLASSES.get(status, "gone"), seconds)
            if seconds - exchange.waited_s > self._slow_s:
                self._tell(exchange, "slow", seconds=round(seconds, 3), waited_s=round(exchange.waited_s, 3))

    async def _serve(self, exchange: Exchange, send: Send) -> int:
        if self._traffic is not None:
            self._traffic.enter(exchange)
        if self._keyring is not None:
            exchange.key = await self._keyring.caller(exchange.scope["headers"])
        query_string = exchange.scope["query_string"]
        if query_string and self._parameters is not None:
            exchange.query = parsed(query_string, self._parameters)
        reply = await self.handler(exchange)
        match reply:
            case bytes():
                await _send(send, 200, _JSON, reply)
            case Content():
                await _send(send, 200, reply.media_type.encode(), reply.body)
            case Stream():
                await _stream(exchange, send, reply)
            case None:
                await send({"type": "http.response.start", "status": 204, "headers": []})
                await send({"type": "http.response.body", "body": b""})
                return 204
            case _:
                assert_never(reply)
        return 200

    async def _fail(self, exchange: Exchange, error: Exception, send: Send) -> int:
        """Answer with the problem that an error is; its status."""
        if isinstance(error, ClientGone):
            return _GONE
        code, detail = _problem_of(error)
        self._metrics.refused(code.word)
        if code is Code.STORE_UNAVAILABLE:
            self._metrics.store_failed()
        if code.status >= 500 and code is not Code.STOPPING:  # nothing failed
            self._tell_failure(exchange, error)
        await send_problem(send, code, detail)
        return code.status

    def _tell_failure(self, exchange: Exchange, error: Exception) -> None:
        code, detail = _problem_of(error)
        told = told_of(error) if code is Code.INTERNAL else {"detail": detail}
        self._tell(exchange, "failed", code=code.word, **told)

    def _tell(self, exchange: Exchange, event: str, **fields: str | float | list[str]) -> None:
        log_sparingly(
            event,
            self._route,
            route=self._route,
            namespace=exchange.namespace[:_LONGEST_TOLD],
            job=exchange.job[:_LONGEST_TOLD],
            items=exchange.items,
            **fields,
        )


class _Interrupted(Exception):
    """A reply broke off after its first bytes were sent."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error


def _problem_of(error: Exception) -> tuple[Code, str]:
    match error:
        case Refused():
            return error.code, error.detail
        case UnknownNamespace():
            refused = unknown_namespace(error.namespace)
            return refused.code, refused.detail
        case StoreUnavailable():
            return Code.STORE_UNAVAILABLE, without_login(str(error))
        case _:
            return Code.INTERNAL, f"{type(error).__name__}; the service's log has the trace"


async def send_problem(send: Send, code: Code, detail: str, **headers: str) -> None:
    await _send(send, code.status, CONTENT_TYPE.encode(), body_of(code, detail), {**headers_of(code), **headers})


async def _send(send: Send, status: int, media_type: bytes, body: bytes, headers: dict[str, str] | None = None) -> None:
    fields = [(b"content-type", media_type), (b"content-length", b"%d" % len(body))]
    if headers:
        fields += [(name.encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": status, "headers": fields})
    await send({"type": "http.response.body", "body": body})


async def _stream(exchange: Exchange, send: Send, reply: Stream) -> None:
    """Send the pieces as they come. The first is waited for: until then an error can still be told as a problem."""
    async with aclosing(reply.pieces) as pieces:
        first = await anext(pieces, b"")
        with exchange.while_connected():
            fields = [(b"content-type", reply.media_type.encode())]
            await send({"type": "http.response.start", "status": 200, "headers": fields})
            await _send_piece(exchange, send, first)
            try:
                async for piece in pieces:
                    await _send_piece(exchange, send, piece)
            except Exception as error:
                raise _Interrupted(error) from error
            await send({"type": "http.response.body", "body": b""})


async def _send_piece(exchange: Exchange, send: Send, piece: bytes) -> None:
    exchange.sending_since_s = time.monotonic()
    await send({"type": "http.response.body", "body": piece, "more_body": True})
    exchange.sending_since_s = 0.0
