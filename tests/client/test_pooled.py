"""The SDK's own transports against servers that say, byte for byte, what a test tells them to."""

from __future__ import annotations

import asyncio
import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import httpx
import pytest

from toolcache_client import pooled
from toolcache_client.pooled import AsyncPooledTransport, PooledTransport

CLOSE = None
"""In a script: the server ends the connection."""
Script = Iterable[bytes | None]
Behaviour = Callable[[int, int, bytes], Script]
"""What to send for (connection, request of that connection, body), counted from 0."""
TIMEOUT_S = 20.0
"""Never reached where a test passes."""


def reply(body: bytes, *headers: bytes) -> bytes:
    return b"\r\n".join([b"HTTP/1.1 200 OK", b"content-length: %d" % len(body), *headers, b"", body])


class Server:
    """Answers each request by a script; counts connections and requests."""

    def __init__(self, behave: Behaviour, listener: socket.socket) -> None:
        self._behave = behave
        self._listener = listener
        self.connections = 0
        self.heads: list[bytes] = []
        self._open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self._open.append(connection)
            number = self.connections
            self.connections += 1  # before it is served: a client that has its answer may look
            threading.Thread(target=self._serve, args=(number, connection), daemon=True).start()

    def _serve(self, number: int, connection: socket.socket) -> None:
        with suppress(OSError), connection, connection.makefile("rb") as incoming:
            count = 0
            while head := _head(incoming):
                self.heads.append(head)
                lengths = [line.split(b":")[1] for line in head.split(b"\r\n") if line.startswith(b"content-length")]
                for piece in self._behave(number, count, incoming.read(int(lengths[0]))):
                    if piece is CLOSE:
                        return
                    connection.sendall(piece)
                count += 1

    def close(self) -> None:
        self._listener.close()
        for connection in self._open:
            connection.close()


def _head(incoming: BinaryIO) -> bytes:
    """A request's head; empty where the connection has ended."""
    lines: list[bytes] = []
    while line := incoming.readline():
        if line == b"\r\n":
            return b"".join(lines)
        lines.append(line)
    return b""


@contextmanager
def serving(behave: Behaviour, tls: ssl.SSLContext | None = None) -> Iterator[tuple[Server, httpx.URL]]:
    listener = socket.create_server(("127.0.0.1", 0))
    url = httpx.URL(f"http{'' if tls is None else 's'}://127.0.0.1:{listener.getsockname()[1]}")
    server = Server(behave, listener if tls is None else tls.wrap_socket(listener, server_side=True))
    try:
        yield server, url
    finally:
        server.close()


def request(url: httpx.URL, body: bytes = b"", timeout_s: float = TIMEOUT_S) -> httpx.Request:
    headers = [(b"host", url.netloc), (b"content-length", b"%d" % len(body))]
    timeout = {"connect": TIMEOUT_S, "read": timeout_s, "write": timeout_s}
    return httpx.Request(
        "POST",
        url.join("/v1/x?y=z"),
        headers=headers,
        stream=httpx.ByteStream(body),
        extensions={"timeout": timeout},
    )


Ask = Callable[[httpx.URL, Sequence[httpx.Request]], list[bytes]]


@pytest.fixture(params=["sync", "async"])
def ask(request: pytest.FixtureRequest) -> Ask:
    """ask(url, requests): their bodies, one after the other through one transport."""

    def synchronous(url: httpx.URL, asked: Sequence[httpx.Request]) -> list[bytes]:
        transport = PooledTransport(url)
        bodies: list[bytes] = []
        for each in asked:
            response = transport.handle_request(each)
            try:
                bodies.append(b"%d " % response.status_code + response.read())
            finally:
                response.close()
        transport.close()
        return bodies

    def asynchronous(url: httpx.URL, asked: Sequence[httpx.Request]) -> list[bytes]:
        async def all_of_them() -> list[bytes]:
            transport = AsyncPooledTransport(url)
            bodies: list[bytes] = []
            for each in asked:
                response = await transport.handle_async_request(each)
                try:
                    bodies.append(b"%d " % response.status_code + await response.aread())
                finally:
                    await response.aclose()
            await transport.aclose()
            return bodies

        return asyncio.run(all_of_them())

    return synchronous if request.param == "sync" else asynchronous


def test_requests_one_after_the_other_share_a_connection(ask: Ask) -> None:
    with serving(lambda _, n, body: [reply(b"%d:" % n + body)]) as (server, url):
        assert ask(url, [request(url, b"a"), request(url, b"b")]) == [b"200 0:a", b"200 1:b"]
    assert server.connections == 1
    assert server.heads[0].startswith(b"POST /v1/x?y=z HTTP/1.1\r\nhost: 127.0.0.1:")


@pytest.mark.parametrize(
    "script",
    [
        [reply(b"hello")],
        [bytes([byte]) for byte in reply(b"hello")],
        [b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhe\r\n", b"3\r\nllo\r\n0\r\n\r\n"],
        [b"HTTP/1.1 200 OK\r\n\r\nhel", b"lo", CLOSE],
        [b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello"],
        [b"HTTP/1.1 100 Continue\r\nx: y\r\n\r\n", reply(b"hello")],
        [reply(b"hello", b"connection: close"), CLOSE],
    ],
)
def test_a_reply_is_read_whole_however_it_arrives_and_the_next_one_too(ask: Ask, script: Script) -> None:
    with serving(lambda connection, n, body: script) as (_, url):
        assert ask(url, [request(url)] * 2) == [b"200 hello"] * 2


def test_a_reply_without_a_body_ends_with_its_head(ask: Ask) -> None:
    with serving(lambda connection, n, body: [b"HTTP/1.1 204 No Content\r\n\r\n"]) as (server, url):
        assert ask(url, [request(url)] * 2) == [b"204 "] * 2
    assert server.connections == 1


def test_a_connection_that_the_service_means_to_close_carries_no_further_call(ask: Ask) -> None:
    with serving(lambda connection, n, body: [reply(b"x", b"connection: close")]) as (server, url):
        assert ask(url, [request(url)] * 3) == [b"200 x"] * 3
    assert server.connections == 3


def test_a_connection_that_ended_before_its_second_request_was_read_is_replaced_unseen(ask: Ask) -> None:
    with serving(lambda _, n, body: [reply(b"x")] if n == 0 else [CLOSE]) as (server, url):
        assert ask(url, [request(url)] * 3) == [b"200 x"] * 3
    assert server.connections == 3


def test_two_replies_at_once_are_none(ask: Ask) -> None:
    with (
        serving(lambda connection, n, body: [reply(body) + reply(b"stale")]) as (_, url),
        pytest.raises(httpx.RemoteProtocolError, match="nobody asked for"),
    ):
        ask(url, [request(url, b"1")])


class Talker:
    """A server that goes on talking on its first connection after its reply was read."""

    def __init__(self) -> None:
        self._was_read = threading.Event()
        self._has_talked = threading.Event()

    def __call__(self, connection: int, n: int, body: bytes) -> Iterator[bytes]:
        yield reply(body)
        if connection == 0:
            assert self._was_read.wait(TIMEOUT_S)
            yield reply(b"stale")
            self._has_talked.set()

    def talk(self) -> None:
        self._was_read.set()
        assert self._has_talked.wait(TIMEOUT_S)


def test_a_connection_on_which_something_came_unasked_carries_no_further_call() -> None:
    talker = Talker()
    with serving(talker) as (server, url):
        transport = PooledTransport(url)
        assert transport.handle_request(request(url, b"1")).read() == b"1"
        talker.talk()
        assert transport.handle_request(request(url, b"2")).read() == b"2"
        assert server.connections == 2


async def test_nor_does_one_of_an_event_loop() -> None:
    talker = Talker()
    with serving(talker) as (server, url):
        transport = AsyncPooledTransport(url)
        assert await (await transport.handle_async_request(request(url, b"1"))).aread() == b"1"
        await asyncio.to_thread(talker.talk)
        assert await (await transport.handle_async_request(request(url, b"2"))).aread() == b"2"
        assert server.connections == 2


@pytest.mark.parametrize(
    ("script", "error", "told"),
    [
        ([CLOSE], httpx.RemoteProtocolError, "ended the connection before its reply"),
        ([b"HTTP/1.1 200 OK\r\ncontent-le", CLOSE], httpx.RemoteProtocolError, "ended the connection"),
        ([b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhel", CLOSE], httpx.RemoteProtocolError, "ended"),
        (
            [b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nhel\r\n", CLOSE],
            httpx.RemoteProtocolError,
            "ended",
        ),
        ([b"SSH-2.0-OpenSSH_9.2\r\n"], httpx.RemoteProtocolError, "not an HTTP reply"),
        (
            [b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n"],
            httpx.RemoteProtocolError,
            "not an HTTP reply",
        ),
    ],
)
def test_what_is_no_whole_reply_is_told(ask: Ask, script: Script, error: type[Exception], told: str) -> None:
    with serving(lambda connection, n, body: script) as (_, url), pytest.raises(error, match=told):
        ask(url, [request(url)])


def test_a_server_that_says_nothing_is_not_waited_for_beyond_the_timeout(ask: Ask) -> None:
    with serving(lambda connection, n, body: []) as (_, url), pytest.raises(httpx.ReadTimeout):
        ask(url, [request(url, timeout_s=0.05)])


def test_a_body_that_stops_in_the_middle_is_not_waited_for_either(ask: Ask) -> None:
    cut = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhe"
    with serving(lambda connection, n, body: [cut]) as (_, url), pytest.raises(httpx.ReadTimeout):
        ask(url, [request(url, timeout_s=0.05)])


def test_a_closed_port_is_told_with_its_address(ask: Ask) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        url = httpx.URL(f"http://127.0.0.1:{free.getsockname()[1]}")
    with pytest.raises(httpx.ConnectError, match=f"127.0.0.1:{url.port}"):
        ask(url, [request(url)])


def test_a_long_body_arrives_whole_though_the_reader_is_slower_than_the_sender(
    ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pooled, "_MOST_UNREAD_BYTES", 1000)
    body = b"".join(b"%07d\n" % n for n in range(500_000))
    with serving(lambda connection, n, _: [reply(body)]) as (_, url):
        got = ask(url, [request(url)] * 2)
    assert got == [b"200 " + body] * 2


def test_a_body_that_is_not_read_to_its_end_leaves_no_rest_for_the_next_reply() -> None:
    def behave(connection: int, n: int, body: bytes) -> Script:
        return [reply(b"long" * 500_000 if body == b"long" else body)]

    with serving(behave) as (server, url):
        transport = PooledTransport(url)
        response = transport.handle_request(request(url, b"long"))
        assert next(iter(response.stream)).startswith(b"long")  # type: ignore[arg-type]
        response.close()
        assert transport.handle_request(request(url, b"next")).read() == b"next"
        assert server.connections == 2


async def test_nor_does_it_in_an_event_loop_where_the_rest_arrives_by_itself() -> None:
    def behave(connection: int, n: int, body: bytes) -> Script:
        return [reply(b"long" * 500_000 if body == b"long" else body)]

    with serving(behave) as (server, url):
        transport = AsyncPooledTransport(url)
        response = await transport.handle_async_request(request(url, b"long"))
        await response.aclose()
        assert await (await transport.handle_async_request(request(url, b"next"))).aread() == b"next"
        assert server.connections == 2


async def test_a_call_that_is_cancelled_takes_its_reply_along() -> None:
    asked = threading.Event()
    answer = threading.Event()

    def behave(connection: int, n: int, body: bytes) -> Script:
        if body == b"slow":
            asked.set()
            answer.wait(TIMEOUT_S)
        return [reply(body)]

    with serving(behave) as (server, url):
        transport = AsyncPooledTransport(url)

        async def body_of(text: bytes) -> bytes:
            return await (await transport.handle_async_request(request(url, text))).aread()

        assert await body_of(b"a") == b"a"
        slow = asyncio.create_task(body_of(b"slow"))
        await asyncio.to_thread(asked.wait)
        slow.cancel()
        with pytest.raises(asyncio.CancelledError):
            await slow
        answer.set()
        assert [await body_of(b"%d" % n) for n in range(3)] == [b"0", b"1", b"2"]
        assert server.connections == 2


def test_threads_never_get_each_other_s_replies() -> None:
    with serving(lambda connection, n, body: [reply(body)]) as (server, url):
        transport = PooledTransport(url)

        def body_of(n: int) -> bool:
            return transport.handle_request(request(url, b"%d" % n)).read() == b"%d" % n

        with ThreadPoolExecutor(8) as threads:
            assert all(threads.map(body_of, range(400)))
        assert server.connections <= 8


async def test_tasks_never_get_each_other_s_replies() -> None:
    with serving(lambda connection, n, body: [reply(body)]) as (server, url):
        transport = AsyncPooledTransport(url)

        async def body_of(n: int) -> bytes:
            return await (await transport.handle_async_request(request(url, b"%d" % n))).aread()

        for _ in range(3):
            assert await asyncio.gather(*(body_of(n) for n in range(50))) == [b"%d" % n for n in range(50)]
        assert server.connections == 50
        await transport.aclose()


def test_connections_of_another_event_loop_are_left_alone() -> None:
    with serving(lambda connection, n, body: [reply(body)]) as (server, url):
        transport = AsyncPooledTransport(url)

        async def once() -> bytes:
            return await (await transport.handle_async_request(request(url, b"a"))).aread()

        assert [asyncio.run(once()) for _ in range(2)] == [b"a", b"a"]
        assert server.connections == 2


def test_a_forked_process_takes_none_of_its_parent_s_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(lambda connection, n, body: [reply(body)]) as (server, url):
        transport = PooledTransport(url)
        transport.handle_request(request(url)).read()
        monkeypatch.setattr("os.getpid", lambda: -1)
        for _ in range(2):
            transport.handle_request(request(url)).read()
        assert server.connections == 2


def dies_silently(connection: int, n: int, body: bytes) -> Script:
    """The first three connections answer one request and never again, without an end."""
    return [reply(b"x")] if n == 0 or connection > 2 else []


def test_after_one_dead_connection_the_others_that_lay_idle_are_not_tried() -> None:
    with serving(dies_silently) as (server, url):
        transport = PooledTransport(url)
        opened = [transport.handle_request(request(url)) for _ in range(3)]
        for response in opened:
            response.read()
            response.close()
        with pytest.raises(httpx.ReadTimeout):
            transport.handle_request(request(url, timeout_s=0.05))
        assert transport.handle_request(request(url)).read() == b"x"
        assert server.connections == 4


async def test_nor_are_they_in_an_event_loop() -> None:
    with serving(dies_silently) as (server, url):
        transport = AsyncPooledTransport(url)
        opened = [await transport.handle_async_request(request(url)) for _ in range(3)]
        for response in opened:
            await response.aread()
            await response.aclose()
        with pytest.raises(httpx.ReadTimeout):
            await transport.handle_async_request(request(url, timeout_s=0.05))
        assert await (await transport.handle_async_request(request(url))).aread() == b"x"
        assert server.connections == 4


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def test_a_connection_that_lay_idle_for_long_carries_no_further_call() -> None:
    clock = Clock()
    with serving(lambda connection, n, body: [reply(b"x")]) as (server, url):
        transport = PooledTransport(url, clock=clock)
        for now_s, connections in ((0.0, 1), (30.0, 1), (60.5, 2)):
            clock.now_s = now_s
            assert transport.handle_request(request(url)).read() == b"x"
            assert server.connections == connections


async def test_nor_does_one_that_lay_idle_in_an_event_loop() -> None:
    clock = Clock()
    with serving(lambda connection, n, body: [reply(b"x")]) as (server, url):
        transport = AsyncPooledTransport(url, clock=clock)
        for now_s, connections in ((0.0, 1), (30.0, 1), (60.5, 2)):
            clock.now_s = now_s
            assert await (await transport.handle_async_request(request(url))).aread() == b"x"
            assert server.connections == connections


def test_the_system_looks_after_connections_on_which_nothing_is_heard(
    ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[int] = []
    close = socket.socket.close

    def closed(each: socket.socket) -> None:
        if each.fileno() >= 0 and each.type == socket.SOCK_STREAM:
            kept.append(each.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE))
        close(each)

    with serving(lambda connection, n, body: [reply(b"x")]) as (_, url):
        monkeypatch.setattr(socket.socket, "close", closed)
        ask(url, [request(url)])
        monkeypatch.undo()
    assert any(kept)


@pytest.fixture
def certificate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ssl.SSLContext:
    """A server's TLS with a certificate of its own making, which this process trusts."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl program to make a certificate with")
    key, cert = tmp_path / "key.pem", tmp_path / "cert.pem"
    words = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost"
    names = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(cert)]
    subprocess.run([*words.split(), *names], check=True, capture_output=True)
    monkeypatch.setenv("SSL_CERT_FILE", str(cert))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    return context


def test_calls_travel_over_tls_on_one_connection(ask: Ask, certificate: ssl.SSLContext) -> None:
    long = b"long" * 200_000
    with serving(lambda connection, n, body: [reply(body or long)], certificate) as (server, url):
        got = ask(url, [request(url, b"a"), request(url), request(url, b"b")])
    assert (got, server.connections) == ([b"200 a", b"200 " + long, b"200 b"], 1)


def test_a_certificate_that_nobody_vouches_for_is_refused(
    ask: Ask, certificate: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SSL_CERT_FILE")
    with (
        serving(lambda connection, n, body: [reply(b"secret")], certificate) as (_, url),
        pytest.raises(httpx.ConnectError, match="certificate verify failed"),
    ):
        ask(url, [request(url)])
