"""Put load on a server and tell the CPU time a request costs it.

CPU time of the server's process, not wall time: the machine is shared, and a request that waits costs nothing. The
client is raw sockets with requests made beforehand, so that it keeps the server busy from the other core.
"""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import urlsplit

import psutil

CONNECTIONS = 16


def request(url: str, method: str, path: str, body: Any = None) -> bytes:
    """One HTTP/1.1 request, ready to be sent."""
    content = b"" if body is None else json.dumps(body).encode()
    head = f"{method} {path} HTTP/1.1\r\nhost: {urlsplit(url).netloc}\r\ncontent-length: {len(content)}\r\n\r\n"
    return head.encode() + content


async def cpu_per_request_us(url: str, pid: int, requests: Sequence[bytes], count: int) -> float:
    """CPU microseconds of the process per request, over `count` requests taken in turn. Raises on any but a 200."""
    process = psutil.Process(pid)
    cycle = itertools.cycle(requests)
    await _send(url, cycle, max(CONNECTIONS, count // 10))
    before = _cpu_s(process)
    await _send(url, cycle, count)
    return (_cpu_s(process) - before) / count * 1e6


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


async def _send(url: str, requests: Iterator[bytes], count: int) -> None:
    remaining = iter(range(count))
    await asyncio.gather(*(_connection(url, requests, remaining) for _ in range(CONNECTIONS)))


async def _connection(url: str, requests: Iterator[bytes], remaining: Iterator[int]) -> None:
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    for _ in remaining:
        writer.write(next(requests))
        await _reply(reader)
    writer.close()


async def _reply(reader: asyncio.StreamReader) -> bytes:
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    length = int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0])
    body = await reader.readexactly(length)
    if not head.startswith(b"http/1.1 200"):
        raise RuntimeError(f"{head[:40]!r}: {body[:300]!r}")
    return body
