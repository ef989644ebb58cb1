"""One contract, every store: what `core/ports.py` promises, whoever keeps it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from toolcache.adapters.memory_store import MemoryStore
from toolcache.adapters.sqlite_store import SqliteStore
from toolcache.core.calls import Call, call_digest, entry_key
from toolcache.core.entries import Entry, Outcome, Result
from toolcache.core.ports import Store
from toolcache.core.profile import Profile
from toolcache.core.tools import Effect, Namespace, Role, Tier, Tool
from toolcache.core.trust import Evidence, Reason


@pytest.fixture(params=["memory", "sqlite"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    made: Store = MemoryStore() if request.param == "memory" else SqliteStore.open(tmp_path / "cache.sqlite3")
    yield made
    await made.close()


def entry(content: str = "x", *, tool: str = "find", scope: str = "s", guard: str = "g", **arguments: Any) -> Entry:
    call = Call.of(tool, arguments)
    result = Result(content=content, took_s=0.25)
    return Entry(
        key=entry_key(scope, call),
        scope=scope,
        environment=f"env of {scope}",
        tool=tool,
        arguments=arguments,
        canonical=call.canonical,
        result=result,
        result_digest=result.digest(),
        guard=guard,
        call_digest=call_digest("e", call),
        recorded_at_s=1234.5,
    )


async def stored(store: Store, *entries: Entry, namespace: str = "shop") -> list[Entry]:
    await store.put(namespace, entries)
    return [each async for each in store.entries(namespace)]


async def test_what_was_put_comes_back_as_it_was(store: Store) -> None:
    asked = {"id": "#W1", "n": 2**70, "x": 1.5, "deep": {"ü": [None, True, ""]}, "\U0001f600": "\x00 \u2028 end"}
    one = replace(entry("long \x00 text \U0001f600\r\n", **asked), result=Result(content="\x00é", is_error=True))
    assert await store.put("shop", [one]) == [Outcome.STORED]
    ((found,),) = await store.get("shop", [one.key])
    assert found == replace(one, order=found.order)
    assert found.order > 0


async def test_keys_are_answered_in_their_order_and_unknown_ones_by_nothing(store: Store) -> None:
    one, two = entry(a=1), entry(a=2)
    await store.put("shop", [one, two])
    found = await store.get("shop", [two.key, "unknown", one.key, two.key])
    assert [[each.arguments["a"] for each in samples] for samples in found] == [[2], [], [1], [2]]
    assert await store.get("shop", []) == []


async def test_the_same_result_again_is_known_and_counted(store: Store) -> None:
    one = entry("x")
    assert await store.put("shop", [one, one]) == [Outcome.STORED, Outcome.KNOWN]
    assert await store.put("shop", [replace(one, recorded_at_s=9999.0)]) == [Outcome.KNOWN]
    ((found,),) = await store.get("shop", [one.key])
    assert (found.seen, found.recorded_at_s) == (3, 1234.5)


async def test_another_result_of_a_key_is_a_conflict_and_both_are_kept_oldest_first(store: Store) -> None:
    first, second = entry("x"), entry("y")
    assert await store.put("shop", [first]) == [Outcome.STORED]
    assert await store.put("shop", [second]) == [Outcome.CONFLICT]
    assert await store.put("shop", [second, first]) == [Outcome.KNOWN, Outcome.KNOWN]
    (found,) = await store.get("shop", [first.key])
    assert [(each.result.content, each.seen) for each in found] == [("x", 2), ("y", 2)]


async def test_namespaces_do_not_see_each_other(store: Store) -> None:
    one = entry()
    await store.put("shop", [one])
    assert await store.get("other", [one.key]) == [()]
    assert await store.with_guard("other", "g") == ()
    assert await store.with_call("other", one.call_digest) == ()
    assert [each async for each in store.entries("other")] == []
    assert await store.put("other", [one]) == [Outcome.STORED]
    order = (await stored(store, namespace="other"))[0].order
    assert await store.by_order("shop", [order]) == {}
    assert (await store.counts("other"), await store.environments("other")) == ({"find": (1, 0)}, 1)


async def test_entries_are_found_by_guard_and_an_empty_guard_finds_none(store: Store) -> None:
    await store.put("shop", [entry(a=1), entry(a=2, guard="h"), entry(a=3), entry(a=4, guard="")])
    assert [each.arguments["a"] for each in await store.with_guard("shop", "g")] == [1, 3]
    assert await store.with_guard("shop", "") == ()


async def test_guards_can_be_replaced(store: Store) -> None:
    entries = await stored(store, entry(a=1), entry(a=2), entry(a=3, guard=""))
    await store.set_guards("shop", {entries[0].order: "new", entries[1].order: "", entries[2].order: "new"})
    assert await store.with_guard("shop", "g") == ()
    assert [each.arguments["a"] for each in await store.with_guard("shop", "new")] == [1, 3]
    assert [each.guard async for each in store.entries("shop")] == ["new", "", "new"]
    await store.set_guards("shop", {})


async def test_a_known_result_keeps_the_guard_it_has(store: Store) -> None:
    (one,) = await stored(store, entry(a=1))
    await store.set_guards("shop", {one.order: "new"})
    await store.put("shop", [entry(a=1, guard="old")])
    assert await store.with_guard("shop", "old") == ()
    assert [each.seen for each in await store.with_guard("shop", "new")] == [2]


async def test_entries_are_found_by_call_in_any_scope(store: Store) -> None:
    one = entry(a=1)
    await store.put("shop", [one, entry("y", scope="t", a=1), entry(a=2)])
    assert [each.scope for each in await store.with_call("shop", one.call_digest)] == ["s", "t"]


async def test_all_entries_are_walked_oldest_first_page_after_page(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("toolcache.adapters.sqlite_store.PAGE", 3)
    await store.put("shop", [entry(a=n, tool="find" if n % 2 else "get") for n in range(10)])
    walked = [each async for each in store.entries("shop")]
    assert [each.arguments["a"] for each in walked] == list(range(10))
    assert [each.order for each in walked] == sorted({each.order for each in walked})
    assert [each.arguments["a"] async for each in store.entries("shop", "find")] == [1, 3, 5, 7, 9]
    picked = await store.by_order("shop", [walked[7].order, walked[2].order, 10**9])
    assert {order: each.arguments["a"] for order, each in picked.items()} == {walked[7].order: 7, walked[2].order: 2}


async def test_vectors_are_followed_by_their_own_order(store: Store) -> None:
    entries = await stored(store, *(entry(a=n) for n in range(3)), entry(tool="get"))
    vectors = [np.array([n, 1.0], dtype="<f4").tobytes() for n in range(4)]
    await store.put_vectors("shop", "find", {entries[2].order: vectors[2]})
    await store.put_vectors("shop", "find", {entries[0].order: vectors[0], entries[2].order: vectors[1]})
    await store.put_vectors("shop", "get", {entries[3].order: vectors[3]})
    await store.put_vectors("shop", "find", {})
    found = await store.vectors("shop", "find", after=0)
    assert [(each.entry_order, each.vector) for each in found] == [
        (entries[2].order, vectors[2]),
        (entries[0].order, vectors[0]),
    ]
    assert await store.vectors("shop", "find", after=found[0].order) == found[1:]
    assert await store.vectors("shop", "find", after=found[1].order) == []
    assert await store.vectors("other", "find", after=0) == []


async def test_counts_tell_entries_and_conflicting_keys_by_tool(store: Store) -> None:
    await store.put("shop", [entry("x", a=1), entry("y", a=1), entry("z", a=1), entry(a=2), entry(tool="get")])
    await store.put("shop", [entry(scope="t", a=2)])
    assert await store.counts("shop") == {"find": (5, 1), "get": (1, 0)}
    assert await store.environments("shop") == 2
    assert (await store.counts("none"), await store.environments("none")) == ({}, 0)


async def test_namespaces_and_profiles_come_back_and_every_change_raises_the_revision(store: Store) -> None:
    tool = Tool(
        name="find",
        description="d",
        parameters={"type": "object", "properties": {"q": {"type": "string"}, "any": True}},
        effect=Effect.READ,
        roles={"q": Role.FREE_TEXT},
        errors_change_state=True,
    )
    shop = Namespace(name="shop", tools={"find": tool}, tiers=frozenset({Tier.APPROXIMATE}), similar_threshold=0.7)
    profile = Profile(
        roles={"q": Role.IRRELEVANT},
        evidence={Reason.FREE_TEXT: Evidence(right=1, served=2)},
        entries=3,
        similar_threshold=0.7,
    )
    revisions = [await store.revision()]
    await store.put_namespace(shop)
    revisions.append(await store.revision())
    await store.put_profiles("shop", {"find": profile})
    revisions.append(await store.revision())
    await store.put_namespace(replace(shop, similar_threshold=0.9))
    revisions.append(await store.revision())
    assert revisions == sorted(set(revisions))
    assert await store.namespaces() == {"shop": replace(shop, similar_threshold=0.9)}
    assert await store.profiles("shop") == {"find": profile}
    assert await store.profiles("other") == {}
    await store.put_profiles("shop", {"get": Profile()})
    assert set(await store.profiles("shop")) == {"find", "get"}
    await store.put("shop", [entry()])
    assert await store.revision() == revisions[-1] + 1


async def test_many_writers_at_once_lose_nothing(store: Store) -> None:
    outcomes = await asyncio.gather(*(store.put("shop", [entry(a=n % 100), entry(b=n)]) for n in range(300)))
    flat = [each for pair in outcomes for each in pair]
    assert (flat.count(Outcome.STORED), flat.count(Outcome.KNOWN)) == (400, 200)
    found = [each async for each in store.entries("shop")]
    assert (len(found), sum(each.seen for each in found)) == (400, 600)


async def test_a_poison_write_does_not_take_its_group_with_it(store: Store) -> None:
    poison = replace(entry(a=-1), environment="\ud800", guard="\ud800")
    done = await asyncio.gather(
        *(store.put("shop", [poison if n == 3 else entry(a=n)]) for n in range(8)), return_exceptions=True
    )
    assert [each for n, each in enumerate(done) if n != 3] == [[Outcome.STORED]] * 7
    found = {each.arguments["a"] async for each in store.entries("shop") if each.environment != "\ud800"}
    assert found == {0, 1, 2, 4, 5, 6, 7}


async def test_a_caller_that_gives_up_harms_no_later_one(store: Store) -> None:
    waiting = [asyncio.ensure_future(store.put("shop", [entry(a=n)])) for n in range(50)]
    await asyncio.sleep(0)
    for each in waiting[::2]:
        each.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    async with asyncio.timeout(10):
        assert await store.put("shop", [entry(a="later")]) == [Outcome.STORED]
    kept = {each.arguments["a"] async for each in store.entries("shop")}
    assert kept >= {1, 3, 5, "later"}
