"""The service called in this process: its reply comes piece by piece, and its failures come through."""

from __future__ import annotations

import asyncio
from typing import cast

import httpx
import pytest
from starlette.types import ASGIApp, Receive, Scope, Send

from toolcache.commands.in_process import InProcess


def request(path: str = "/v1/x?a=b", body: bytes = b"asked") -> httpx.Request:
    return httpx.Request("POST", f"http://local-store{path}", headers={"X-Key": "v"}, stream=httpx.ByteStream(body))


async def replied(app: ASGIApp) -> httpx.Response:
    return await InProcess(app).handle_async_request(request())


def pieces_of(response: httpx.Response) -> httpx.AsyncByteStream:
    return cast(httpx.AsyncByteStream, response.stream)


async def test_the_application_gets_the_request_whole() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        message = await receive()
        told = [scope["method"], scope["path"], scope["query_string"], (b"x-key", b"v") in scope["headers"]]
        assert told == ["POST", "/v1/x", b"a=b", True]
        await send({"type": "http.response.start", "status": 201, "headers": [(b"x-reply", b"w")]})
        await send({"type": "http.response.body", "body": message["body"]})

    response = await replied(app)
    assert (response.status_code, response.headers["x-reply"], await response.aread()) == (201, "w", b"asked")


async def test_a_piece_is_read_before_the_next_but_one_is_made() -> None:
    made: list[int] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200})
        for n in range(1000):
            await send({"type": "http.response.body", "body": b"%d," % n, "more_body": n < 999})
            made.append(n)

    response = await replied(app)
    read = 0
    async for _ in pieces_of(response):
        read += 1
        assert len(made) <= read + 1
    assert (read, len(made)) == (1000, 1000)


async def test_what_the_application_raises_comes_through() -> None:
    async def at_once(scope: Scope, receive: Receive, send: Send) -> None:
        raise OSError("the disk is gone")

    async def later(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body", "body": b"half", "more_body": True})
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        await replied(at_once)
    response = await replied(later)
    with pytest.raises(OSError, match="the disk is gone"):
        await response.aread()


async def test_half_a_reply_is_none() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body", "body": b"half", "more_body": True})

    response = await replied(app)
    with pytest.raises(httpx.RemoteProtocolError, match="ended before its reply"):
        await response.aread()


async def test_who_closes_a_reply_unread_ends_the_work_on_it() -> None:
    was_ended = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200})
        try:
            while True:
                await send({"type": "http.response.body", "body": b"more", "more_body": True})
        finally:
            was_ended.set()

    response = await replied(app)
    await response.aclose()
    assert was_ended.is_set()
