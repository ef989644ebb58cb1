"""What is measured, one function a line of the table. Each gives numbers in microseconds, milliseconds or ratios."""

from __future__ import annotations

import asyncio
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.cache import inside, servers
from benchmarks.cache.load import cpu_per_request_us, request
from benchmarks.cache.servers import Server
from toolcache.core.cache import Recording
from toolcache.core.entries import Result
from toolcache.http import wire as translate
from toolcache_client import AsyncCacheClient, CacheClient
from toolcache_client.messages import LookupItem, NamespaceSpec, RecordItem, ToolResult, ToolSpec

ROUNDS = 5
"""Each server is measured in turn this many times; the median of the rounds is told."""
NAMESPACE = "bench"
SPEC = NamespaceSpec(
    tools=(
        ToolSpec(
            name="get_order",
            effect="read",
            parameters={"type": "object", "properties": {"order_id": {"type": "string"}}},
        ),
        ToolSpec(name="cancel_order", effect="write", parameters={"type": "object", "properties": {"n": {}}}),
    )
)
RESULT = ToolResult(content=json.dumps({"status": "pending", "items": ["x" * 50] * 18}), took_s=0.2)
"""About 1 KB, as results of real tools are in the median."""


def order(n: int, state: str = "") -> dict[str, Any]:
    return {"tool": "get_order", "arguments": {"order_id": f"#W{n:07}"}, "environment": "shop@1", "state": state}


def fill(url: str, count: int, *, state: str = "", first: int = 0) -> None:
    """Record `count` orders."""
    with CacheClient(url, timeout_s=120.0) as client:
        client.put_namespace(NAMESPACE, SPEC)
        for start in range(first, first + count, 1000):
            items = [
                RecordItem(**order(n, state), result=RESULT) for n in range(start, min(start + 1000, first + count))
            ]
            client.record(NAMESPACE, items)


async def fill_store(path: Path, count: int) -> None:
    """The same past HTTP, which a million entries would take long through."""
    cache = inside.cache_over(path)
    await cache.put_namespace(translate.namespace(NAMESPACE, SPEC))
    result = Result(content=RESULT.content, took_s=RESULT.took_s)
    for start in range(0, count, 1000):
        numbers = range(start, min(start + 1000, count))
        await cache.record(NAMESPACE, [Recording(**order(n), result=result) for n in numbers])
    await cache.close()


def lookups(url: str, batch: int, numbers: Sequence[int], *, state: str = "") -> list[bytes]:
    """Lookup requests of so many items each."""
    chunks = (numbers[start : start + batch] for start in range(0, len(numbers) - batch + 1, batch))
    bodies = ({"namespace": NAMESPACE, "items": [order(n, state) for n in chunk]} for chunk in chunks)
    return [request(url, "POST", "/v1/lookup", body) for body in bodies]


def in_turn(measured: dict[str, Callable[[], float]]) -> dict[str, list[float]]:
    """Each measurement ROUNDS times, round by round, so that a busy moment of the machine falls on all of them."""
    found: dict[str, list[float]] = {name: [] for name in measured}
    for _ in range(ROUNDS):
        for name, measure in measured.items():
            found[name].append(measure())
    return found


def cpu(server: Server, requests: Sequence[bytes], count: int) -> Callable[[], float]:
    return lambda: asyncio.run(cpu_per_request_us(server.url, server.pid, requests, count))


def exact(stack: ExitStack, folder: Path, redis_url: str | None) -> dict[str, Any]:
    """A hit alone and a batch of 100, over each store, beside the constant endpoint."""
    base = stack.enter_context(servers.constant())
    measured = {"constant": cpu(base, [request(base.url, "GET", "/")], 8000)}
    stores = {"sqlite": str(folder / "exact.sqlite3")} | ({"redis": redis_url} if redis_url else {})
    numbers = list(range(2000))
    random.Random(0).shuffle(numbers)
    for name, store in stores.items():
        server = stack.enter_context(servers.toolcache(store))
        fill(server.url, 2000)
        measured[f"{name} one"] = cpu(server, lookups(server.url, 1, numbers), 8000)
        measured[f"{name} batch"] = cpu(server, lookups(server.url, 100, numbers), 400)
    rounds = in_turn(measured)
    medians = {name: statistics.median(values) for name, values in rounds.items()}
    found: dict[str, Any] = {"constant_us": medians["constant"]}
    for name in stores:
        ratios = [one / two for one, two in zip(rounds[f"{name} one"], rounds["constant"], strict=True)]
        found[name] = {
            "one_us": medians[f"{name} one"],
            "ratio": statistics.median(ratios),
            "batch_100_us_per_item": medians[f"{name} batch"] / 100,
        }
    return found


def history(stack: ExitStack, folder: Path) -> dict[str, Any]:
    """The same lookup after 10 and after 1,000 writes."""
    server = stack.enter_context(servers.toolcache(str(folder / "history.sqlite3")))
    with CacheClient(server.url) as client:
        client.put_namespace(NAMESPACE, SPEC)
        state, states = "", {}
        for n in range(1, 1001):
            item = RecordItem(
                tool="cancel_order",
                arguments={"n": n},
                environment="shop@1",
                state=state,
                result=ToolResult(content="done"),
            )
            state = client.record(NAMESPACE, [item])[0].state_after or ""
            states[n] = state
    for n in (10, 1000):
        fill(server.url, 500, state=states[n])
    rounds = in_turn(
        {str(n): cpu(server, lookups(server.url, 1, range(500), state=states[n]), 6000) for n in (10, 1000)}
    )
    return _compared(rounds, "10", "1000")


def size(stack: ExitStack, folder: Path, large: int) -> dict[str, Any]:
    """The same lookups among a thousand entries and among a million."""
    chosen = random.Random(1).sample(range(large), 1000)  # as many as there are in the small store
    for name, count in (("few", 1000), ("many", large)):
        asyncio.run(fill_store(folder / f"{name}.sqlite3", count))
    few = stack.enter_context(servers.toolcache(str(folder / "few.sqlite3")))
    many = stack.enter_context(servers.toolcache(str(folder / "many.sqlite3")))
    rounds = in_turn(
        {
            "1000": cpu(few, lookups(few.url, 1, range(1000)), 8000),
            str(large): cpu(many, lookups(many.url, 1, chosen), 8000),
        }
    )
    return _compared(rounds, "1000", str(large))


def _compared(rounds: dict[str, list[float]], base: str, other: str) -> dict[str, Any]:
    ratios = [two / one for one, two in zip(rounds[base], rounds[other], strict=True)]
    return {f"{name}_us": statistics.median(values) for name, values in rounds.items()} | {
        "ratio": statistics.median(ratios)
    }


def sdk(stack: ExitStack, folder: Path) -> dict[str, Any]:
    """A hit through the SDK on loopback, one after the other: wall time and this process's own CPU."""
    server = stack.enter_context(servers.toolcache(str(folder / "sdk.sqlite3")))
    fill(server.url, 1000)
    items = [LookupItem(**order(n)) for n in range(1000)]
    with CacheClient(server.url) as client:
        sync = _timed(lambda n: client.lookup(NAMESPACE, [items[n % 1000]]))
    return {"sync": sync, "async": asyncio.run(_timed_async(server.url, items))}


def _timed(call: Callable[[int], object], count: int = 3000) -> dict[str, float]:
    for n in range(200):
        call(n)
    began_cpu_s, walls_s = time.process_time(), []
    for n in range(count):
        began_s = time.perf_counter()
        call(n)
        walls_s.append(time.perf_counter() - began_s)
    return _percentiles(walls_s, time.process_time() - began_cpu_s)


async def _timed_async(url: str, items: Sequence[LookupItem], count: int = 3000) -> dict[str, float]:
    async with AsyncCacheClient(url) as client:
        for n in range(200):
            await client.lookup(NAMESPACE, [items[n]])
        began_cpu_s, walls_s = time.process_time(), []
        for n in range(count):
            began_s = time.perf_counter()
            await client.lookup(NAMESPACE, [items[n % 1000]])
            walls_s.append(time.perf_counter() - began_s)
    return _percentiles(walls_s, time.process_time() - began_cpu_s)


def _percentiles(walls_s: list[float], cpu_s: float) -> dict[str, float]:
    walls_s.sort()
    return {
        "p50_ms": walls_s[len(walls_s) // 2] * 1e3,
        "p99_ms": walls_s[len(walls_s) * 99 // 100] * 1e3,
        "cpu_us": cpu_s / len(walls_s) * 1e6,
    }


def scratch() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="toolcache-bench-")
