"""The makers of the contract tests: every store and every lease desk, each fresh and empty."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pytest

from toolcache.adapters.memory_leases import MemoryLeases
from toolcache.adapters.memory_store import MemoryStore
from toolcache.adapters.sqlite_store import SqliteStore
from toolcache.core.ports import Leases, Store

_T = TypeVar("_T")

OpenStore = Callable[[], Awaitable[Store]]
OpenLeases = Callable[[], Awaitable[Leases]]
Elapse = Callable[[float], Awaitable[None]]


@pytest.fixture(params=["memory", "sqlite", "redis"])
def store_maker(request: pytest.FixtureRequest, tmp_path: Path) -> OpenStore:
    """Makes stores over one and the same place."""
    if request.param == "memory":
        one = MemoryStore()
        return lambda: _at_once(one)
    if request.param == "sqlite":
        return lambda: _at_once(SqliteStore.open(tmp_path / "cache.sqlite3"))
    url: str = request.getfixturevalue("redis_url")
    from toolcache.adapters.redis_store import RedisStore

    return lambda: RedisStore.open(url)


@pytest.fixture
async def open_store(store_maker: OpenStore) -> AsyncIterator[OpenStore]:
    """Another store over the same entries, as another process would open it."""
    async with AsyncExitStack() as stack:

        async def opened() -> Store:
            store = await store_maker()
            stack.push_async_callback(store.close)
            return store

        yield opened


@pytest.fixture
async def store(open_store: OpenStore) -> Store:
    return await open_store()


@dataclass(frozen=True, slots=True)
class DeskMaker:
    """Makes lease desks over one and the same place, and lets time pass for them."""

    open: OpenLeases
    elapse: Elapse


@pytest.fixture(params=["memory", "redis"])
def desk_maker(request: pytest.FixtureRequest) -> DeskMaker:
    if request.param == "memory":
        now_s = [1000.0]
        desk = MemoryLeases(lambda: now_s[0])

        async def moved(seconds: float) -> None:
            now_s[0] += seconds

        return DeskMaker(lambda: _at_once(desk), moved)
    url: str = request.getfixturevalue("redis_url")
    from toolcache.adapters.redis_leases import RedisLeases

    return DeskMaker(lambda: RedisLeases.open(url), asyncio.sleep)


@pytest.fixture
async def open_leases(desk_maker: DeskMaker) -> AsyncIterator[OpenLeases]:
    """Another desk over the same leases, as another replica would open it."""
    async with AsyncExitStack() as stack:

        async def opened() -> Leases:
            leases = await desk_maker.open()
            stack.push_async_callback(leases.close)
            return leases

        yield opened


@pytest.fixture
async def leases(open_leases: OpenLeases) -> Leases:
    return await open_leases()


@pytest.fixture
def elapse(desk_maker: DeskMaker) -> Elapse:
    """Let so many seconds pass: the clock of a desk in memory is moved by hand, a server's goes by itself."""
    return desk_maker.elapse


async def _at_once(value: _T) -> _T:
    return value
