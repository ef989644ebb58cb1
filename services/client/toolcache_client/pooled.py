"""Kept-alive connections to one service, as transports of httpx: what carries a call where no other is given.

A lookup takes 0.15 ms (sync) to 0.2 ms (async) of the caller's CPU through these. Through httpx itself it took 0.55 to
1.2 ms on the same machine, several times what the service spends on it.

Covered: HTTP/1.1, plain and over TLS, replies of any length as a stream, timeouts as httpx hands them in.
Not covered: proxies, redirects, HTTP/2. Who needs them hands an httpx transport to the client.

There are as many connections as calls at once: a bound would let calls that wait for a result keep out the very call
that brings it. One that the service closed while it lay idle is noticed at the next request, which takes another: all
that the SDK sends may be sent twice. One that died without a word is noticed by nothing but a timeout; so none is used
after IDLE_S, and the first timeout on one that lay idle ends all others that do.
"""

from __future__ import annotations

import asyncio
import os
import select
import socket
import ssl
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from functools import cached_property
from typing import Any, Generic, Protocol, TypeVar

import httpx

from toolcache_client.http1 import NoReply, Reply, request_bytes

IDLE_S = 30.0
"""Seconds of idleness after which a connection is not used again: balancers and firewalls forget them, the shortest
after about a minute, and some tell nobody."""
_RECEIVE_BYTES = 2**18
_MOST_UNREAD_BYTES = 2**20
"""Of a streamed reply; beyond it the service is made to wait."""


class PooledTransport(httpx.BaseTransport):
    """For code without an event loop; safe between threads."""

    def __init__(self, url: httpx.URL, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._origin = _Origin(url)
        self._idle: _Idle[_Connection] = _Idle(clock)

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """The reply; read its stream and close it. Raises httpx.TransportError."""
        sent = request_bytes(request, request.read())
        while (connection := self._idle.take()) is not None:
            try:
                return self._exchange(connection, sent, request)
            except (httpx.NetworkError, httpx.RemoteProtocolError):
                if connection.has_heard:
                    raise
            except httpx.TimeoutException:
                self._idle.close()
                raise
        return self._exchange(self._connected(request), sent, request)

    def _exchange(self, connection: _Connection, sent: bytes, request: httpx.Request) -> httpx.Response:
        reply = Reply()
        try:
            connection.send(sent, timeout_s=_timeout_s(request, "read"))
            while not reply.status:
                connection.receive(reply)
        except BaseException:
            connection.close()
            raise
        return httpx.Response(reply.status, headers=reply.headers, stream=_Stream(self._idle, connection, reply))

    def _connected(self, request: httpx.Request) -> _Connection:
        origin = self._origin
        origin.check()
        try:
            made = socket.create_connection((origin.host, origin.port), _timeout_s(request, "connect"))
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            return _Connection(
                made if origin.tls is None else origin.tls.wrap_socket(made, server_hostname=origin.host)
            )
        except OSError as error:
            raise origin.unreachable(error) from error

    def close(self) -> None:
        self._idle.close()


class AsyncPooledTransport(httpx.AsyncBaseTransport):
    """For asyncio code. In another event loop it begins anew: connections cannot follow there."""

    def __init__(self, url: httpx.URL, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._origin = _Origin(url)
        self._clock = clock
        self._idle: _Idle[_AsyncConnection] = _Idle(clock)
        self._loop: asyncio.AbstractEventLoop | None = None

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """The reply; read its stream and close it. Raises httpx.TransportError."""
        if self._loop is not (loop := asyncio.get_running_loop()):
            self._idle, self._loop = _Idle(self._clock), loop
        sent = request_bytes(request, await request.aread())
        while (connection := self._idle.take()) is not None:
            try:
                return await self._exchange(connection, sent, request)
            except (httpx.NetworkError, httpx.RemoteProtocolError):
                if connection.has_heard:
                    raise
            except httpx.TimeoutException:
                self._idle.close()
                raise
        return await self._exchange(await self._connected(loop, request), sent, request)

    async def _exchange(self, connection: _AsyncConnection, sent: bytes, request: httpx.Request) -> httpx.Response:
        reply = Reply()
        try:
            connection.send(sent, reply, timeout_s=_timeout_s(request, "read"))
            while not reply.status:
                await connection.receive()
        except BaseException:
            connection.close()
            raise
        return httpx.Response(reply.status, headers=reply.headers, stream=_AsyncStream(self._idle, connection, reply))

    async def _connected(self, loop: asyncio.AbstractEventLoop, request: httpx.Request) -> _AsyncConnection:
        origin = self._origin
        origin.check()
        name = origin.host if origin.is_tls else None
        try:
            async with asyncio.timeout(_timeout_s(request, "connect")):
                _, made = await loop.create_connection(
                    _AsyncConnection, origin.host, origin.port, ssl=origin.tls, server_hostname=name
                )
        except OSError as error:
            raise origin.unreachable(error) from error
        return made

    async def aclose(self) -> None:
        self._idle.close()


class _Origin:
    """Where connections go."""

    def __init__(self, url: httpx.URL) -> None:
        self._url = url
        self.host = url.host
        self.is_tls = url.scheme == "https"
        self.port = url.port or (443 if self.is_tls else 80)

    def check(self) -> None:
        """Raises httpx.UnsupportedProtocol."""
        if self._url.scheme not in ("http", "https") or not self.host:
            raise httpx.UnsupportedProtocol(f"{str(self._url)!r} does not begin with http:// or https:// and a host")

    @cached_property
    def tls(self) -> ssl.SSLContext | None:
        # Made where it is first used: reading the certificates takes tens of milliseconds.
        return ssl.create_default_context() if self.is_tls else None

    def unreachable(self, error: OSError) -> httpx.TransportError:
        where = f"{self.host}:{self.port}"
        if isinstance(error, TimeoutError):
            return httpx.ConnectTimeout(f"connecting to {where} took too long")
        return httpx.ConnectError(f"{where}: {error}")


class _Closable(Protocol):
    def is_usable(self) -> bool: ...
    def close(self) -> None: ...


_C = TypeVar("_C", bound=_Closable)


class _Idle(Generic[_C]):
    """Connections that wait for their next request."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._connections: deque[tuple[_C, float]] = deque()
        """With the time since when each is idle."""
        self._clock = clock
        self._process = os.getpid()

    def take(self) -> _C | None:
        """The last used that is still open. None of the parent's in a forked process: both would read from it."""
        if self._process != os.getpid():
            self._connections, self._process = deque(), os.getpid()
        while True:
            try:
                connection, since_s = self._connections.pop()
            except IndexError:
                return None
            if self._clock() - since_s <= IDLE_S and connection.is_usable():
                return connection
            connection.close()

    def give(self, connection: _C, reply: Reply) -> None:
        """Keep the connection for the next request, if the reply left it in a state to carry one."""
        if reply.is_complete and reply.keeps_alive:
            self._connections.append((connection, self._clock()))
        else:
            connection.close()

    def close(self) -> None:
        with suppress(IndexError):  # other threads take from it too
            while True:
                self._connections.pop()[0].close()


class _Connection:
    """A socket, one exchange at a time."""

    def __init__(self, made: socket.socket) -> None:
        self._socket = made
        self.has_heard = False
        """Whether anything of the present reply has arrived."""

    def is_usable(self) -> bool:
        """Nothing has arrived since the last reply: neither an end nor a reply that nobody asked for."""
        if hasattr(select, "poll"):  # select() cannot look at file descriptors beyond 1023
            poll = select.poll()
            poll.register(self._socket, select.POLLIN)
            return not poll.poll(0)
        return not select.select([self._socket], [], [], 0)[0]

    def send(self, sent: bytes, *, timeout_s: float | None) -> None:
        self.has_heard = False
        try:
            self._socket.settimeout(timeout_s)
            self._socket.sendall(sent)
        except TimeoutError as error:
            raise httpx.WriteTimeout("the request could not be sent in time") from error
        except OSError as error:
            raise httpx.WriteError(str(error)) from error

    def receive(self, reply: Reply) -> None:
        """Wait for a further piece of the reply."""
        try:
            data = self._socket.recv(_RECEIVE_BYTES)
        except TimeoutError as error:
            raise httpx.ReadTimeout("no reply in time") from error
        except OSError as error:
            raise httpx.ReadError(str(error)) from error
        if data:
            self.has_heard = True
            _feed(reply, data)
        elif not reply.end():
            raise _cut_off()

    def close(self) -> None:
        self._socket.close()


class _AsyncConnection(asyncio.Protocol):
    """A transport of asyncio, one exchange at a time."""

    def __init__(self) -> None:
        self.has_heard = False
        """Whether anything of the present reply has arrived."""
        self._reply: Reply | None = None
        self._timeout_s: float | None = None
        self._error: httpx.TransportError | None = None
        self._arrival: asyncio.Future[None] | None = None
        self._is_paused = False

    def is_usable(self) -> bool:
        return self._error is None and not self._transport.is_closing()

    def send(self, sent: bytes, reply: Reply, *, timeout_s: float | None) -> None:
        self.has_heard, self._reply, self._timeout_s = False, reply, timeout_s
        self._transport.write(sent)

    async def receive(self) -> None:
        """Wait for a further piece of the reply."""
        if self._is_paused:
            self._transport.resume_reading()
            self._is_paused = False
        if self._error is None:
            self._arrival = asyncio.get_running_loop().create_future()
            try:
                async with asyncio.timeout(self._timeout_s):
                    await self._arrival
            except TimeoutError as error:
                raise httpx.ReadTimeout("no reply in time") from error
            finally:
                self._arrival = None
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        with suppress(RuntimeError):  # of a loop that has ended, and its connections with it
            self._transport.abort()

    # -- called by the event loop --------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: Any = transport  # asyncio.Transport, or uvloop's, which is none
        self._transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)

    def data_received(self, data: bytes) -> None:
        reply = self._reply
        if reply is None or reply.is_complete:  # nobody asked for it
            self._transport.abort()
            return
        self.has_heard = True
        try:
            _feed(reply, data)
        except httpx.RemoteProtocolError as error:
            self._error = error
        if reply.unread_bytes > _MOST_UNREAD_BYTES:
            self._transport.pause_reading()
            self._is_paused = True
        self._arrived()

    def eof_received(self) -> None:
        self._ended(_cut_off())

    def connection_lost(self, error: Exception | None) -> None:
        self._ended(_cut_off() if error is None else httpx.ReadError(str(error)))

    def _ended(self, error: httpx.TransportError) -> None:
        if self._error is None and (self._reply is None or not self._reply.end()):
            self._error = error
        self._arrived()

    def _arrived(self) -> None:
        if self._arrival is not None and not self._arrival.done():
            self._arrival.set_result(None)


class _Stream(httpx.SyncByteStream):
    """A reply's body as it arrives; closed, it gives the connection back."""

    def __init__(self, idle: _Idle[_Connection], connection: _Connection, reply: Reply) -> None:
        self._idle = idle
        self._connection = connection
        self._reply = reply
        self._is_closed = False

    def __iter__(self) -> Iterator[bytes]:
        while self._reply.unread_bytes or not self._reply.is_complete:
            if self._reply.unread_bytes:
                yield self._reply.take()
            else:
                self._connection.receive(self._reply)

    def close(self) -> None:
        if not self._is_closed:
            self._is_closed = True
            self._idle.give(self._connection, self._reply)


class _AsyncStream(httpx.AsyncByteStream):
    """The same for asyncio."""

    def __init__(self, idle: _Idle[_AsyncConnection], connection: _AsyncConnection, reply: Reply) -> None:
        self._idle = idle
        self._connection = connection
        self._reply = reply
        self._is_closed = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while self._reply.unread_bytes or not self._reply.is_complete:
            if self._reply.unread_bytes:
                yield self._reply.take()
            else:
                await self._connection.receive()

    async def aclose(self) -> None:
        if not self._is_closed:
            self._is_closed = True
            self._idle.give(self._connection, self._reply)


def _feed(reply: Reply, data: bytes) -> None:
    try:
        reply.feed(data)
    except NoReply as error:
        raise httpx.RemoteProtocolError(f"not an HTTP reply ({error})") from error


def _cut_off() -> httpx.RemoteProtocolError:
    return httpx.RemoteProtocolError("the service ended the connection before its reply")


def _timeout_s(request: httpx.Request, what: str) -> float | None:
    timeouts: dict[str, float | None] = request.extensions.get("timeout", {})
    return timeouts.get(what)
