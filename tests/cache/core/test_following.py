"""An index that follows a store holds what the store holds, whoever wrote and however long it slept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from toolcache.adapters.faiss_index import FaissIndex
from toolcache.adapters.memory_store import MemoryStore
from toolcache.core.calls import Call, entry_key
from toolcache.core.entries import Entry, Place, Result
from toolcache.core.following import Following
from toolcache.core.tools import Namespace

PARTITION = ("shop", "find")
ASKED = np.array([1.0, 0.0], dtype="<f4").tobytes()


def entry(n: int, guard: str = "g") -> Entry:
    call = Call.of("find", {"n": n})
    result = Result(content="x")
    return Entry(
        key=entry_key("s", call),
        scope="s",
        environment="e",
        tool="find",
        arguments=call.arguments,
        canonical=call.canonical,
        result=result,
        result_digest=result.digest(),
        place=Place(guard=guard),
    )


def vector(n: int) -> bytes:
    return np.array([np.cos(n / 50), np.sin(n / 50)], dtype="<f4").tobytes()


async def holds(index: FaissIndex) -> list[int]:
    return sorted(order for order, _ in await index.nearest(PARTITION, ASKED, 1000))


async def orders(store: MemoryStore) -> list[int]:
    return [each.order async for each in store.entries("shop")]


STEPS = st.lists(st.sampled_from(["add", "remove", "move", "follow", "catch_up"]), max_size=30)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS)
async def test_after_any_history_the_index_holds_what_the_store_holds(steps: Sequence[str]) -> None:
    store, index = MemoryStore(), FaissIndex()
    await store.put_namespace(Namespace(name="shop", tools={}))
    following = Following(store, index, "v1")
    for n, step in enumerate(steps):
        have = await orders(store)
        match step:
            case "add":
                await store.put("shop", [entry(n)])
                (new,) = set(await orders(store)) - set(have)
                await store.put_vectors("shop", "find", {new: vector(n)}, version="v1")
            case "remove" if have:
                await store.remove("shop", have[:1])
            case "move" if have:
                moved = (await store.by_order("shop", have[-1:]))[have[-1]]
                await store.rekey("shop", {have[-1]: (moved.key, moved.canonical, Place(guard="h"))})
            case "follow":
                await following.follow("shop")
            case "catch_up":
                await following.catch_up(PARTITION)
    await following.catch_up(PARTITION)
    assert await holds(index) == await orders(store)
    guarded = {order for order, _ in await index.nearest(PARTITION, ASKED, 1000, guard="h")}
    assert guarded == {each.order async for each in store.entries("shop") if each.place.guard == "h"}


async def test_where_changes_were_lost_everything_is_read_anew(monkeypatch: Any) -> None:
    store, index = MemoryStore(), FaissIndex()
    await store.put_namespace(Namespace(name="shop", tools={}))
    following = Following(store, index, "v1")
    await store.put("shop", [entry(1), entry(2)])
    first, second = await orders(store)
    await store.put_vectors("shop", "find", {first: vector(1)}, version="v1")
    await following.catch_up(PARTITION)
    await store.put_vectors("shop", "find", {second: vector(2)}, version="v1")
    changes = store.changes

    async def lost(namespace: str, *, after: str, version: str) -> Any:
        return await changes(namespace, after="", version=version)

    monkeypatch.setattr(store, "changes", lost)
    await following.catch_up(PARTITION)
    assert await holds(index) == [first, second]


async def test_a_forgotten_namespace_leaves_no_vectors() -> None:
    store, index = MemoryStore(), FaissIndex()
    await store.put_namespace(Namespace(name="shop", tools={}))
    following = Following(store, index, "v1")
    await store.put("shop", [entry(1)])
    await store.put_vectors("shop", "find", {(await orders(store))[0]: vector(1)}, version="v1")
    await following.catch_up(PARTITION)
    await following.forget("shop")
    assert index.size(PARTITION) == 0


async def test_vectors_of_another_version_are_never_compared() -> None:
    store, index = MemoryStore(), FaissIndex()
    await store.put_namespace(Namespace(name="shop", tools={}))
    await store.put("shop", [entry(1)])
    await store.put_vectors("shop", "find", {(await orders(store))[0]: vector(1)}, version="v0")
    await Following(store, index, "v1").catch_up(PARTITION)
    assert index.size(PARTITION) == 0
