"""A real Redis that dies, stands still or is cut off: what was acknowledged stays, who asks is told, all recovers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from tests.conftest import StartRedis
from tests.redis_server import RedisServer
from toolcache.adapters.redis_leases import RedisLeases
from toolcache.adapters.redis_store import RedisStore
from toolcache.core.calls import Call, entry_key
from toolcache.core.entries import Entry, Outcome, Place, Result
from toolcache.core.ports import Changes, Once, StoreUnavailable
from toolcache.core.tools import Namespace

WRITERS = 8
SHORT_S = 0.3
"""Patience of a store that is to lose it."""


def entry(content: str = "x", **arguments: Any) -> Entry:
    call = Call.of("find", arguments)
    result = Result(content=content)
    return Entry(
        key=entry_key("s", call),
        scope="s",
        environment="e",
        tool="find",
        arguments=arguments,
        canonical=call.canonical,
        result=result,
        result_digest=result.digest(),
        place=Place(guard="g"),
        recorded_at_s=1000.0,
    )


async def seen(store: RedisStore) -> dict[str, int]:
    return {each.key: each.seen async for each in store.entries("shop")}


# -- Redis dies --------------------------------------------------------------------------------------------------------


class Writer:
    """Puts one batch after the other. A batch that was refused is sent again under its name, until it is taken."""

    def __init__(self, store: RedisStore, number: int, taken: asyncio.Semaphore) -> None:
        self._store = store
        self._number = number
        self._taken = taken  # counts the batches of all writers
        self.acknowledged: list[Entry] = []
        self.was_refused = asyncio.Event()

    async def write(self, batches: int) -> None:
        for n in range(batches):
            batch = [entry(writer=self._number, batch=n, each=each) for each in range(3)]
            while not await self._is_taken(batch, Once(name=f"{self._number}/{n}")):
                pass
            self.acknowledged += batch
            self._taken.release()

    async def _is_taken(self, batch: list[Entry], once: Once) -> bool:
        try:
            await self._store.put("shop", batch, once=once)
        except StoreUnavailable:  # anything else fails the test
            self.was_refused.set()
            await asyncio.sleep(0.005)  # a client that is told so does not storm either
            return False
        return True


@pytest.mark.parametrize("crash", range(3))
async def test_every_acknowledged_put_outlives_kill_9_and_none_counts_twice(
    start_redis: StartRedis, crash: int
) -> None:
    server = start_redis(is_durable=True)
    store = await RedisStore.open(server.url)
    await store.put_namespace(Namespace(name="shop", tools={}))
    taken = asyncio.Semaphore(0)
    writers = [Writer(store, n, taken) for n in range(WRITERS)]
    writing = [asyncio.create_task(each.write(40)) for each in writers]
    for _ in range(20 * (crash + 1)):
        await taken.acquire()
    server.kill()
    before = [each for writer in writers for each in writer.acknowledged]
    for each in writers:
        await each.was_refused.wait()
    await asyncio.to_thread(server.start)
    assert {each.key for each in before} <= (await seen(store)).keys()
    await asyncio.gather(*writing)  # the store recovers without being opened again
    assert await seen(store) == {each.key: 1 for writer in writers for each in writer.acknowledged}
    assert len(await seen(store)) == WRITERS * 40 * 3
    assert await store.size_bytes("shop") == sum([each.size_bytes async for each in store.entries("shop")])
    await store.close()


async def test_a_redis_that_forgets_at_its_death_is_used_on_as_an_empty_one(start_redis: StartRedis) -> None:
    server = start_redis()
    store = await RedisStore.open(server.url)
    await store.put_namespace(Namespace(name="shop", tools={}))
    await store.put("shop", [entry(a=1)])
    revision = (await store.get("shop", [])).revision
    server.kill()
    with pytest.raises(StoreUnavailable, match=rf"redis redis://127.0.0.1:{server.port}/0: it cannot be reached"):
        await store.get("shop", [])
    server.start()
    assert (await store.known("shop"), await store.namespaces()) == (None, [])
    await store.put_namespace(Namespace(name="shop", tools={}))
    assert await store.put("shop", [entry(a=1)]) == [Outcome.STORED]
    assert (await store.get("shop", [])).revision > revision
    await store.close()


# -- Redis stands still ------------------------------------------------------------------------------------------------


async def test_a_redis_that_stands_still_is_given_up_while_other_work_goes_on(start_redis: StartRedis) -> None:
    server = start_redis()
    store = await RedisStore.open(server.url, timeout_s=SHORT_S)
    leases = await RedisLeases.open(server.url, timeout_s=SHORT_S)
    await leases.acquire("shop", ["k"], ttl_s=60)
    once = Once(name="request")
    server.pause()
    turns = 0

    async def work() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    working = asyncio.create_task(work())
    asked = [
        store.get("shop", ["k"]),
        store.put("shop", [entry(a=1)], once=once),
        store.size("shop"),
        leases.acquire("shop", ["k"], ttl_s=60),
        leases.wait("shop", ["k"], 60),
        *(store.get("shop", ["k"]) for _ in range(100)),  # more than there are connections
    ]
    given_up = await asyncio.gather(*asked, return_exceptions=True)
    working.cancel()
    assert {type(each) for each in given_up} == {StoreUnavailable}
    assert all(f"{server.port}/0: no answer in {SHORT_S} s" in str(each) for each in given_up)
    assert turns > 100
    server.resume()
    # The put had been sent and is executed now; sent again under its name, it is not counted again.
    await store.put("shop", [entry(a=1)], once=once)
    assert list((await seen(store)).values()) == [1]
    await store.close()
    await leases.close()


async def test_a_redis_that_pauses_its_clients_for_less_than_the_timeout_is_waited_for(start_redis: StartRedis) -> None:
    server = start_redis()
    store = await RedisStore.open(server.url)
    with server.client() as client:
        client.client_pause(100)
    assert await store.put("shop", [entry(a=1)]) == [Outcome.STORED]
    await store.close()


# -- the network is cut ------------------------------------------------------------------------------------------------


class Proxy:
    """Stands between a store and Redis, and can be cut."""

    def __init__(self, server: RedisServer) -> None:
        self.target = server.port
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self.port = 0
        self.is_silent = False
        self.answers_to_lose = 0
        self.answer = b""
        """Sent instead of whatever Redis would have said."""

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    async def open(self) -> None:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    def cut(self) -> None:
        """Connections break, and new ones are refused."""
        assert self._server is not None
        self._server.close()
        for writer in self._writers:
            writer.transport.abort()

    async def close(self) -> None:
        self.cut()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        from_redis, to_redis = await asyncio.open_connection("127.0.0.1", self.target)
        self._writers |= {writer, to_redis}
        for source, sink, is_question in ((reader, to_redis, True), (from_redis, writer, False)):
            task = asyncio.create_task(self._pass_on(source, sink, writer if is_question else None))
            self._tasks.add(task)

    async def _pass_on(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, asker: asyncio.StreamWriter | None
    ) -> None:
        while chunk := await source.read(65536):
            if self.answer and asker is not None:
                asker.write(self.answer)
            elif self.answers_to_lose and asker is None:
                self.answers_to_lose -= 1
                sink.transport.abort()
            elif not self.is_silent:
                sink.write(chunk)
        sink.close()


@asynccontextmanager
async def proxied(server: RedisServer) -> AsyncIterator[Proxy]:
    proxy = Proxy(server)
    await proxy.open()
    yield proxy
    await proxy.close()


@pytest.mark.parametrize("how", ["cut", "silent"])
async def test_a_replica_that_was_cut_off_says_so_and_catches_up(start_redis: StartRedis, how: str) -> None:
    server = start_redis()
    async with proxied(server) as proxy:
        here, there = await RedisStore.open(proxy.url, timeout_s=SHORT_S), await RedisStore.open(server.url)
        await there.put("shop", [entry(a=n) for n in range(5)])
        cursor = (await here.changes("shop", after="", version="1")).cursor
        await there.put_vectors("shop", "find", {1: b"one"}, version="1")

        async def followed(after: str) -> Changes:
            return await here.changes("shop", after=after, version="1")

        first = await followed(cursor)
        if how == "cut":
            proxy.cut()
        else:
            proxy.is_silent = True
        for _ in range(3):
            with pytest.raises(
                StoreUnavailable, match=f"redis redis://127.0.0.1:{proxy.port}/0: (it cannot|no answer)"
            ):
                await followed(first.cursor)
        await there.put_vectors("shop", "find", {2: b"two", 3: b"three"}, version="1")
        await there.remove("shop", [1, 3])
        if how == "cut":
            await proxy.open()
        proxy.is_silent = False
        second = await followed(first.cursor)
        assert (first.is_complete, second.is_complete) == (True, True)
        assert [each.vector for _, each in second.added] == [b"two"]
        assert sorted(second.removed) == [("find", 1), ("find", 3)]
        await here.close()
        await there.close()


async def test_a_replica_that_was_cut_off_for_too_long_learns_that_changes_are_lost(start_redis: StartRedis) -> None:
    server = start_redis()
    async with proxied(server) as proxy:
        here, there = await RedisStore.open(proxy.url), await RedisStore.open(server.url)
        await there.put("shop", [entry(a=n) for n in range(5)])
        await there.put_vectors("shop", "find", {1: b"v"}, version="1")
        cursor = (await here.changes("shop", after="", version="1")).cursor
        proxy.cut()
        for order in (2, 3, 4):
            await there.put_vectors("shop", "find", {order: b"v"}, version="1")
        with server.client() as client:
            client.xtrim("toolcache:{shop}:changes", maxlen=1, approximate=False)
        await proxy.open()
        changes = await here.changes("shop", after=cursor, version="1")
        assert not changes.is_complete
        assert [each.order for each in await here.vectors("shop", "find", version="1")] == [1, 2, 3, 4]
        await there.put_vectors("shop", "find", {5: b"v"}, version="1")
        after = await here.changes("shop", after=changes.cursor, version="1")
        assert (after.is_complete, [each.order for _, each in after.added]) == (True, [5])
        await here.close()
        await there.close()


async def test_a_put_whose_answer_was_lost_is_not_sent_again_behind_the_back_of_its_caller(
    start_redis: StartRedis,
) -> None:
    async with proxied(start_redis()) as proxy:
        store = await RedisStore.open(proxy.url)
        await store.put("shop", [entry(a=1)])
        proxy.answers_to_lose = 1
        with pytest.raises(StoreUnavailable, match="it cannot be reached"):
            await store.put("shop", [entry(a=1)])
        assert list((await seen(store)).values()) == [2]
        await store.close()


async def test_after_a_failover_the_new_primary_behind_the_same_name_is_found(
    start_redis: StartRedis, redis_url: str
) -> None:
    old = start_redis()
    async with proxied(old) as proxy:
        store = await RedisStore.open(proxy.url)
        await asyncio.gather(*(store.put("shop", [entry(a=1)]) for _ in range(10)))
        proxy.target = int(redis_url.rpartition(":")[2].partition("/")[0])
        with old.client() as client:
            client.replicaof("127.0.0.1", "1")
        with pytest.raises(StoreUnavailable, match="it is a replica"):
            await store.put("shop", [entry(a=1)])
        for _ in range(10):
            await store.put("shop", [entry(a=1)])
        await store.close()


# -- Redis refuses -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (b"-LOADING Redis is loading the dataset in memory\r\n", "it is still loading its data"),
        (b"-MISCONF Errors writing to the AOF file: No space left on device\r\n", "it cannot write to its disk"),
        (b"-CLUSTERDOWN The cluster is down\r\n", "a part of the Cluster has no primary"),
        (b"-ERR something else\r\n", "ResponseError: something else"),
    ],
)
async def test_what_redis_answers_instead_of_a_result_is_told(
    start_redis: StartRedis, answer: bytes, told: str
) -> None:
    async with proxied(start_redis()) as proxy:
        store = await RedisStore.open(proxy.url)
        proxy.answer = answer
        with pytest.raises(StoreUnavailable, match=f"redis {proxy.url}: {told}"):
            await store.put("shop", [entry(a=1)])
        proxy.answer = b""
        assert await store.put("shop", [entry(a=1)]) == [Outcome.STORED]
        await store.close()


async def test_a_full_redis_goes_on_answering_and_takes_writes_when_it_has_room_again(start_redis: StartRedis) -> None:
    server = start_redis()
    store = await RedisStore.open(server.url)
    await store.put("shop", [entry(a=1)])
    with server.client() as client:
        client.config_set("maxmemory", "1")
        with pytest.raises(StoreUnavailable, match="its memory is full; raise its maxmemory"):
            await store.put("shop", [entry(a=2)])
        assert [each.content for each in (await store.get("shop", [entry(a=1).key])).samples[0]] == ["x"]
        assert [each.arguments async for each in store.entries("shop")] == [{"a": 1}]
        client.config_set("maxmemory", "0")
    assert await store.put("shop", [entry(a=2)]) == [Outcome.STORED]
    await store.close()


async def test_a_replica_of_redis_is_told_from_a_primary(start_redis: StartRedis) -> None:
    server = start_redis()
    store = await RedisStore.open(server.url)
    with server.client() as client:
        client.replicaof("127.0.0.1", "1")
        client.config_set("replica-serve-stale-data", "yes")
        with pytest.raises(StoreUnavailable, match="it is a replica and takes no writes"):
            await store.put("shop", [entry(a=1)])
        client.replicaof("no", "one")
    assert await store.put("shop", [entry(a=1)]) == [Outcome.STORED]
    await store.close()


async def test_a_wrong_password_is_told_and_not_shown(start_redis: StartRedis) -> None:
    server = start_redis(options=("--requirepass", "right-password"))
    for url in (f"redis://:wrong-password@127.0.0.1:{server.port}", server.url):
        with pytest.raises(StoreUnavailable, match="it refuses user or password") as raised:
            await RedisStore.open(url)
        assert "wrong-password" not in str(raised.value)
    store = await RedisStore.open(f"redis://:right-password@127.0.0.1:{server.port}")
    assert await store.put("shop", [entry(a=1)]) == [Outcome.STORED]
    await store.close()
