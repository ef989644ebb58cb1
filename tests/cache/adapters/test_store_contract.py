"""One contract, every store: what `core/ports.py` promises, whoever keeps it.

The rules are told twice: one by one, by example; and as a whole, by a model of a page (`Model`) that says what a store
must hold after any sequence of operations.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from toolcache.core.access import ApiKey, ApiRole
from toolcache.core.calls import Call, call_digest, entry_key
from toolcache.core.canonical import digest
from toolcache.core.entries import CLOCK_SKEW_S, MOST_RESULTS, Entry, Outcome, Place, Result
from toolcache.core.ports import Changes, Filter, IndexedVector, Once, Size, Store, StoreUnavailable
from toolcache.core.profile import Profile
from toolcache.core.tools import Effect, Mask, Namespace, Role, Tier, Tool
from toolcache.core.trust import Evidence, Reason

OpenStore = Callable[[], Awaitable[Store]]


def entry(
    content: str = "x",
    *,
    tool: str = "find",
    scope: str = "s",
    environment: str = "e",
    place: Place | None = None,
    at_s: float = 1234.5,
    expires_at_s: float = 0.0,
    tags: tuple[str, ...] = (),
    **arguments: Any,
) -> Entry:
    call = Call.of(tool, arguments)
    result = Result(content=content, took_s=0.25)
    return Entry(
        key=entry_key(scope, call),
        scope=scope,
        environment=environment,
        tool=tool,
        arguments=arguments,
        canonical=call.canonical,
        result=result,
        result_digest=result.digest(),
        place=place or Place(guard="g", equal=digest("equal", call.canonical), call=call_digest(environment, call)),
        recorded_at_s=at_s,
        expires_at_s=expires_at_s,
        tags=tags,
    )


async def listed(store: Store, namespace: str = "shop") -> list[Entry]:
    return [each async for each in store.entries(namespace)]


async def stored(store: Store, *entries: Entry, namespace: str = "shop") -> list[Entry]:
    await store.put(namespace, entries)
    return await listed(store, namespace)


async def arguments(store: Store, namespace: str = "shop") -> list[Any]:
    """The argument `a` of all entries."""
    return [each.arguments["a"] for each in await listed(store, namespace)]


def vector(n: int) -> bytes:
    return bytes([n, 0, 128, 63])


def orderless(entry: Entry) -> Entry:
    return replace(entry, order=0)


# -- get and put -------------------------------------------------------------------------------------------------------


async def test_what_was_put_comes_back_as_it_was(store: Store) -> None:
    asked: dict[str, Any] = {
        "id": "#W1",
        "n": 2**70,
        "x": 1.0,
        "deep": {"ü": [None, True, ""]},
        "\U0001f600": "\x00 \u2028 end",
    }
    one = replace(
        entry("", tags=("a", "b \x00"), at_s=1e9 + 0.1, expires_at_s=2e9 + 0.2, **asked),
        result=Result(content="long \x00 \xdd text \U0001f600\r\n", is_error=True, took_s=1 / 3),
        environment="ü\x00",
        seen=3,
    )
    assert await store.put("shop", [one]) == [Outcome.STORED]
    (back,) = await listed(store)
    assert orderless(back) == one
    assert repr(back.arguments["x"]) == "1.0"
    assert back.order > 0
    ((sample,),) = (await store.get("shop", [one.key])).samples
    assert (sample.result_digest, sample.result) == (one.result_digest, one.result)
    assert (sample.seen, sample.order) == (3, back.order)
    assert (sample.recorded_at_s, sample.expires_at_s) == (1e9 + 0.1, 2e9 + 0.2)


async def test_arguments_come_back_whole_where_the_canonical_text_is_masked(store: Store) -> None:
    call = Call.of("find", {"id": 1, "trace": "T-9"}, [Mask(argument="trace")])
    masked = replace(entry(id=1), key=entry_key("s", call), canonical=call.canonical, arguments=call.arguments)
    (back,) = await stored(store, masked)
    assert (back.arguments, back.canonical) == ({"id": 1, "trace": "T-9"}, '{"id":1}')


async def test_keys_are_answered_in_their_order_and_unknown_ones_by_nothing(store: Store) -> None:
    one, two = entry("1", a=1), entry("2", a=2)
    await store.put("shop", [one, two])
    asked = [two.key, "unknown", one.key, two.key, one.key[:-1] + ("0" if one.key[-1] != "0" else "1"), ""]
    found = await store.get("shop", asked)
    assert [[each.content for each in samples] for samples in found.samples] == [["2"], [], ["1"], ["2"], [], []]
    assert list((await store.get("shop", [])).samples) == []


async def test_a_thousand_keys_are_answered_as_one_is(store: Store) -> None:
    entries = [entry(str(n), a=n) for n in range(0, 1000, 3)]
    await store.put("shop", entries)
    found = await store.get("shop", [entry(a=n).key for n in range(1000)])
    assert [[each.content for each in one] for one in found.samples] == [[str(n)] * (n % 3 == 0) for n in range(1000)]


async def test_a_known_result_is_counted_and_as_new_as_its_last_recording(store: Store) -> None:
    one = entry("x", at_s=100.0, expires_at_s=160.0)
    assert await store.put("shop", [one, replace(one, seen=2)]) == [Outcome.STORED, Outcome.KNOWN]
    assert await store.put("shop", [replace(one, recorded_at_s=130.0, expires_at_s=190.0)]) == [Outcome.KNOWN]
    assert await store.put("shop", [replace(one, recorded_at_s=125.0, expires_at_s=185.0)]) == [Outcome.KNOWN]
    ((sample,),) = (await store.get("shop", [one.key])).samples
    assert (sample.seen, sample.recorded_at_s, sample.expires_at_s) == (5, 130.0, 190.0)
    (back,) = await listed(store)
    assert (back.seen, back.recorded_at_s, back.expires_at_s) == (5, 130.0, 190.0)


@pytest.mark.parametrize(
    ("ahead_s", "times"), [(89000.0, (1000.0, 1060.0)), (5.25, (1000.0, 1060.0)), (5.0, (1005.0, 1065.0))]
)
async def test_times_from_a_clock_that_was_ahead_are_believed_within_the_skew_only(
    store: Store, ahead_s: float, times: tuple[float, float]
) -> None:
    ahead = entry(at_s=1000.0 + ahead_s, expires_at_s=1060.0 + ahead_s)
    await store.put("shop", [ahead])
    again = replace(ahead, recorded_at_s=1000.0, expires_at_s=1060.0)
    assert await store.put("shop", [again]) == [Outcome.KNOWN]
    ((sample,),) = (await store.get("shop", [again.key])).samples
    assert (sample.recorded_at_s, sample.expires_at_s) == times
    (back,) = await listed(store)
    assert (back.recorded_at_s, back.expires_at_s, back.seen) == (*times, 2)
    assert await store.remove_expired(times[1] - 0.5) == 0
    assert await store.remove_expired(times[1]) == 1


async def test_a_key_keeps_its_newest_and_most_seen_results(store: Store) -> None:
    results = [replace(entry(str(n), tags=("t",)), seen=2 if n in (0, 3) else 1) for n in range(MOST_RESULTS)]
    other = entry("other", a="another key")
    before = await stored(store, *results, other)
    made = {each.order: vector(each.order) for each in before}
    await store.put_vectors("shop", "find", made, version="v")
    cursor = (await store.changes("shop", after="", version="v")).cursor
    new = [entry(f"new {n}", tags=("t",)) for n in range(2)]
    assert await store.put("shop", [new[0], results[5], new[1]]) == [Outcome.CONFLICT, Outcome.KNOWN, Outcome.CONFLICT]

    kept = [each.result.content for each in results if each.result.content not in ("1", "2")] + ["new 0", "new 1"]
    (samples,) = (await store.get("shop", [results[0].key])).samples
    assert [each.content for each in samples] == kept
    after = await listed(store)
    assert sorted(each.result.content for each in after) == sorted([*kept, "other"])
    gone = {each.order for each in before} - {each.order for each in after}
    assert len(gone) == 2
    assert await store.by_order("shop", list(gone)) == {}
    equal = [each.result.content for each in await store.with_equal("shop", results[0].place.equal)]
    assert equal == ["0", *map(str, range(3, 10))]
    indexed = {each.order for each in await store.vectors("shop", "find", version="v")}
    assert indexed == made.keys() - gone
    changes = await store.changes("shop", after=cursor, version="v")
    assert changes.is_complete
    assert sorted(changes.removed) == [("find", order) for order in sorted(gone)]
    assert await store.size_bytes("shop") == sum(each.size_bytes for each in after)
    assert (await store.size("shop")).tools == {"find": (MOST_RESULTS + 1, 1)}
    assert await store.remove_where("shop", Filter(tag="t")) == MOST_RESULTS


async def test_a_name_of_a_request_frees_no_key_of_its_most_results(store: Store) -> None:
    first = entry("0")
    for start in range(2):
        batch = [first, *(entry(f"{start} {n}") for n in range(MOST_RESULTS))]
        await store.put("shop", batch, once=Once(name="r1"))
    assert (await store.size("shop")).entries == MOST_RESULTS


async def test_tags_of_a_known_result_are_united(store: Store) -> None:
    await store.put("shop", [entry(tags=("b", "a")), entry(tags=("c", "a")), entry()])
    assert [set(each.tags) for each in await listed(store)] == [{"a", "b", "c"}]
    assert await store.remove_where("shop", Filter(tag="c")) == 1


async def test_a_known_result_keeps_its_place(store: Store) -> None:
    first, again = Place(guard="g", equal="old", call="c"), Place(guard="h", equal="new", call="d")
    await store.put("shop", [entry(place=first), entry(place=again)])
    assert [each.place for each in await listed(store)] == [first]
    assert await store.with_equal("shop", "new") == []


async def test_another_result_of_a_key_is_a_conflict_and_both_are_kept_oldest_first(store: Store) -> None:
    first, second = entry("x"), entry("y")
    assert await store.put("shop", [first]) == [Outcome.STORED]
    assert await store.put("shop", [second]) == [Outcome.CONFLICT]
    assert await store.put("shop", [second, first]) == [Outcome.KNOWN, Outcome.KNOWN]
    (samples,) = (await store.get("shop", [first.key])).samples
    assert [(each.content, each.seen) for each in samples] == [("x", 2), ("y", 2)]
    assert samples[0].order < samples[1].order


async def test_results_that_had_expired_give_way_to_the_next_recording_of_their_key(store: Store) -> None:
    kept = entry("kept", at_s=10.0, expires_at_s=100.5)
    await store.put("shop", [entry("old", at_s=10.0, expires_at_s=100.0), kept, entry("else", a=1, expires_at_s=50.0)])
    assert await store.put("shop", [entry("new", at_s=100.0)]) == [Outcome.CONFLICT]
    assert [each.result.content for each in await listed(store)] == ["kept", "else", "new"]
    assert await store.put("shop", [entry("newer", at_s=101.0, a=1)]) == [Outcome.STORED]
    assert [each.result.content for each in await listed(store)] == ["kept", "new", "newer"]


async def test_an_expired_result_that_is_recorded_again_begins_anew(store: Store) -> None:
    one = entry(at_s=10.0, expires_at_s=20.0)
    (before,) = await stored(store, replace(one, seen=5))
    assert await store.put("shop", [replace(one, recorded_at_s=20.0, expires_at_s=30.0)]) == [Outcome.STORED]
    (after,) = await listed(store)
    assert (after.seen, after.recorded_at_s, after.expires_at_s) == (1, 20.0, 30.0)
    assert after.order > before.order


async def test_what_is_sent_again_under_the_same_name_is_counted_once(store: Store) -> None:
    one, two = entry(a=1, at_s=100.0), entry(a=2, at_s=100.0)
    assert await store.put("shop", [one], once=Once(name="r1")) == [Outcome.STORED]
    again = [replace(one, recorded_at_s=200.0, tags=("t",)), two]
    assert await store.put("shop", again, once=Once(name="r1")) == [Outcome.KNOWN, Outcome.STORED]
    assert [orderless(each) for each in await listed(store)] == [one, two]
    assert await store.put("shop", [one, two], once=Once(name="r2")) == [Outcome.KNOWN, Outcome.KNOWN]
    assert [each.seen for each in await listed(store)] == [2, 2]


async def test_a_name_of_a_request_counts_in_its_own_namespace(store: Store) -> None:
    await store.put("shop", [entry()])
    await store.put("other", [entry()], once=Once(name="r1"))
    await store.put("shop", [entry()], once=Once(name="r1"))
    assert [each.seen for each in await listed(store)] == [2]


async def test_a_request_that_arrives_many_times_at_once_is_counted_once(open_store: OpenStore) -> None:
    one, two = await open_store(), await open_store()
    await one.put("shop", [entry()])
    stores = [one, two] * 8
    await asyncio.gather(*(store.put("shop", [entry()], once=Once(name="r1")) for store in stores))
    assert [each.seen for each in await listed(one)] == [2]


async def test_a_name_of_a_request_is_forgotten_in_the_end(store: Store) -> None:
    once = Once(name="r1", keep_s=0.01)
    await store.put("shop", [entry()], once=once)
    async with asyncio.timeout(60):
        for now_s in itertools.count(1000):
            await asyncio.sleep(0.02)  # a server's own clock runs meanwhile
            await store.remove_expired(float(now_s))
            await store.put("shop", [entry()], once=once)
            if (await listed(store))[0].seen == 2:
                return


# -- other ways to find entries ----------------------------------------------------------------------------------------


async def test_calls_that_ask_the_same_are_found_oldest_first_and_at_most_eight(store: Store) -> None:
    places = [Place(equal="same"), Place(equal="other"), Place(equal="")]
    await store.put("shop", [entry(a=n, place=places[n % 3]) for n in range(30)])
    assert [each.arguments["a"] for each in await store.with_equal("shop", "same")] == [*range(0, 24, 3)]
    assert await store.with_equal("shop", "") == []
    assert await store.with_equal("shop", "none") == []


async def test_the_same_call_in_other_states_is_found_newest_first_and_at_most_eight(store: Store) -> None:
    places = [Place(call="same"), Place(call="other"), Place(call="")]
    await store.put("shop", [entry(a=n, place=places[n % 3]) for n in range(30)])
    assert [each.arguments["a"] for each in await store.with_call("shop", "same")] == [*range(27, 3, -3)]
    assert await store.with_call("shop", "") == []


async def test_digests_that_begin_alike_are_told_apart(store: Store) -> None:
    alike = [f"{'5' * 40}{n:024x}" for n in range(4)]
    places = [Place(guard="g", equal=each, call=each) for each in alike]
    entries = [replace(entry(str(n), place=places[n]), key=alike[n]) for n in range(4)]
    assert await store.put("shop", entries) == [Outcome.STORED] * 4
    for n, each in enumerate(alike):
        ((sample,),) = (await store.get("shop", [each])).samples
        assert sample.content == str(n)
        assert [found.result.content for found in await store.with_equal("shop", each)] == [str(n)]
        assert [found.result.content for found in await store.with_call("shop", each)] == [str(n)]


async def test_all_entries_are_walked_oldest_first_page_after_page(store: Store) -> None:
    for start in range(0, 700, 100):
        await store.put("shop", [entry(a=n, tool="find" if n % 2 else "get") for n in range(start, start + 100)])
    walked = await listed(store)
    assert [each.arguments["a"] for each in walked] == [*range(700)]
    assert [each.order for each in walked] == sorted({each.order for each in walked})
    assert [each.arguments["a"] async for each in store.entries("shop", "find")] == [*range(1, 700, 2)]
    after = walked[300].order
    assert [each.arguments["a"] async for each in store.entries("shop", after=after)] == [*range(301, 700)]
    assert [each.arguments["a"] async for each in store.entries("shop", "get", after=after)] == [*range(302, 700, 2)]
    assert [each async for each in store.entries("shop", "none")] == []


async def test_a_walk_may_be_broken_off(store: Store) -> None:
    await store.put("shop", [entry(a=n) for n in range(10)])
    async for each in store.entries("shop"):
        assert each.arguments["a"] == 0
        break
    assert await arguments(store) == [*range(10)]


async def test_entries_are_found_by_their_order(store: Store) -> None:
    found = await stored(store, *(entry(a=n) for n in range(10)))
    picked = await store.by_order("shop", [found[7].order, 10**12, found[2].order, -1])
    assert picked == {found[7].order: found[7], found[2].order: found[2]}
    assert await store.by_order("shop", []) == {}


# -- removing ----------------------------------------------------------------------------------------------------------


async def test_removed_entries_are_gone_from_everywhere(store: Store) -> None:
    entries = await stored(store, entry("x", a=1), entry("y", a=1), entry(a=2))
    await store.put_vectors("shop", "find", {each.order: vector(1) for each in entries}, version="v")
    gone = entries[0]
    assert await store.remove("shop", [gone.order, gone.order, 10**12]) == 1
    assert await store.remove("shop", [gone.order]) == 0
    assert await store.remove("shop", []) == 0
    assert [each.content for each in (await store.get("shop", [gone.key])).samples[0]] == ["y"]
    assert [each.result.content for each in await store.with_call("shop", gone.place.call)] == ["y"]
    assert [each.order for each in await store.vectors("shop", "find", version="v")] == [e.order for e in entries[1:]]
    assert await store.by_order("shop", [gone.order]) == {}
    assert (await store.put("shop", [gone])) == [Outcome.CONFLICT]
    assert (await listed(store))[-1].order > entries[-1].order


async def test_an_order_is_never_given_twice(store: Store) -> None:
    (first,) = await stored(store, entry())
    await store.remove("shop", [first.order])
    (second,) = await stored(store, entry())
    assert second.order > first.order


async def test_orders_of_one_namespace_tell_nothing_of_another(store: Store) -> None:
    async def orders(namespace: str) -> list[int]:
        for n in range(3):
            await store.put(namespace, [entry(a=n)])
        made = [each.order for each in await listed(store, namespace)]
        await store.remove(namespace, made[-1:])
        await store.put(namespace, [entry(a=3)])
        return made + [each.order for each in await listed(store, namespace)]

    alone = await orders("shop")
    await store.put("busy", [entry(a=n) for n in range(50)])
    assert await orders("beside") == alone
    await store.delete_namespace("busy")
    assert await orders("after") == alone


async def test_the_same_order_in_two_namespaces_is_of_two_entries(store: Store) -> None:
    (one,), (two,) = await stored(store, entry("1"), namespace="one"), await stored(store, entry("2"), namespace="two")
    assert one.order == two.order
    await store.put_vectors("one", "find", {one.order: vector(1)}, version="v")
    await store.put_vectors("two", "find", {two.order: vector(2)}, version="v")
    await store.rekey("one", {one.order: moved_to(entry("1", a="elsewhere"))})
    assert (await store.by_order("two", [two.order])) == {two.order: two}
    assert await store.remove("one", [one.order]) == 1
    assert await listed(store, "two") == [two]
    assert [each.vector for each in await store.vectors("two", "find", version="v")] == [vector(2)]


FILTERS = [
    Filter(tool="get"),
    Filter(tag="t1"),
    Filter(environment="e2"),
    Filter(recorded_before_s=105.0),
    Filter(tool="find", environment="e1"),
    Filter(tool="get", tag="t2", recorded_before_s=108.0),
    Filter(tool="get", tag="t1", environment="e0", recorded_before_s=110.0),
    Filter(tag="none"),
    Filter(),
]


@pytest.mark.parametrize("which", FILTERS, ids=str)
async def test_entries_are_removed_by_all_that_a_filter_says(store: Store, which: Filter) -> None:
    def one(n: int) -> Entry:
        tool, tags = ("get", "find")[n % 2], tuple(f"t{i}" for i in range(3) if n % (i + 2) == 0)
        return entry(a=n, tool=tool, environment=f"e{n % 3}", at_s=100.0 + n, tags=tags)

    entries = await stored(store, *(one(n) for n in range(12)))
    wanted = [
        each
        for each in entries
        if which.tool in (None, each.tool)
        and (which.tag is None or which.tag in each.tags)
        and which.environment in (None, each.environment)
        and (which.recorded_before_s is None or each.recorded_at_s < which.recorded_before_s)
    ]
    assert await store.remove_where("shop", which) == len(wanted)
    assert await listed(store) == [each for each in entries if each not in wanted]


async def test_what_was_recorded_again_has_the_age_of_its_last_recording(store: Store) -> None:
    await store.put("shop", [entry(a=1, at_s=100.0), entry(a=2, at_s=100.0), entry(a=1, at_s=200.0)])
    assert await store.remove_where("shop", Filter(recorded_before_s=150.0)) == 1
    assert await arguments(store) == [1]


async def test_many_entries_are_removed_as_few_are(store: Store) -> None:
    await store.put("shop", [entry(a=n, tool="get" if n % 10 else "find") for n in range(1000)])
    assert await store.remove_where("shop", Filter(tool="get")) == 900
    assert await arguments(store) == [*range(0, 1000, 10)]


async def test_entries_expire_at_the_very_second_in_every_namespace(store: Store) -> None:
    await store.put("shop", [entry(a=1, expires_at_s=2000.0), entry(a=2, expires_at_s=2000.5), entry(a=3)])
    await store.put("other", [entry(a=4, expires_at_s=1999.0)])
    assert await store.remove_expired(1998.0) == 0
    assert await store.remove_expired(2000.0) == 2
    assert (await arguments(store), await arguments(store, "other")) == ([2, 3], [])


async def test_a_thousand_expired_entries_go_at_once(store: Store) -> None:
    await store.put("shop", [entry(a=n, expires_at_s=2000.0) for n in range(1000)])
    assert await store.remove_expired(2000.0) == 1000
    assert (await store.size("shop")).entries == 0


# -- rekeying ----------------------------------------------------------------------------------------------------------


def moved_to(entry: Entry, guard: str = "new") -> tuple[str, str, Place]:
    """A place under which another entry's key is found."""
    return entry.key, entry.canonical, replace(entry.place, guard=guard)


async def test_a_rekeyed_entry_is_found_where_it_stands_now(store: Store) -> None:
    before, other = await stored(store, entry("1", a=1), entry("2", a=2, place=Place()))
    target = entry(a="longer than before")
    await store.rekey("shop", {before.order: moved_to(target), other.order: (other.key, other.canonical, Place())})
    assert [list(each) for each in (await store.get("shop", [before.key])).samples] == [[]]
    ((sample,),) = (await store.get("shop", [target.key])).samples
    assert (sample.content, sample.order) == ("1", before.order)
    (back,) = await store.with_equal("shop", target.place.equal)
    assert back == replace(before, key=target.key, canonical=target.canonical, place=replace(target.place, guard="new"))
    assert await store.with_equal("shop", before.place.equal) == []
    assert await store.with_call("shop", before.place.call) == []
    assert await store.with_call("shop", target.place.call) == [back]
    assert await listed(store) == [back, other]
    assert await store.put("shop", [replace(target, result=before.result, result_digest=before.result_digest)]) == [
        Outcome.KNOWN
    ]


async def test_entries_that_come_to_be_the_same_are_added_up_in_the_older(store: Store) -> None:
    entries = await stored(
        store,
        entry(a=1, at_s=300.0, expires_at_s=360.0, tags=("x",)),
        entry(a=2, at_s=400.0, expires_at_s=460.0, tags=("y",)),
        entry("else", a=2, at_s=100.0),
        entry(a=3, at_s=200.0, expires_at_s=260.0),
    )
    await store.put("shop", [entry(a=3, at_s=200.0, expires_at_s=260.0)])
    target = entry(a=3)
    places = {each.order: moved_to(target) for each in entries[:3]}
    await store.rekey("shop", places)
    older, conflicting = await listed(store)
    assert (older.order, older.seen, older.result.content) == (entries[0].order, 4, "x")
    assert (older.recorded_at_s, older.expires_at_s, set(older.tags)) == (400.0, 460.0, {"x", "y"})
    assert (conflicting.order, conflicting.result.content, conflicting.key) == (entries[2].order, "else", target.key)
    assert await store.size_bytes("shop") == older.size_bytes + conflicting.size_bytes
    assert await store.remove_where("shop", Filter(tag="y")) == 1


async def test_rekeying_happens_all_at_once(store: Store) -> None:
    """Each entry takes the next one's key: none may be lost to one that has not yet left."""
    entries = await stored(store, *(entry("same", a=n) for n in range(300)))
    targets = [*entries[1:], entries[0]]
    await store.rekey("shop", {one.order: moved_to(to) for one, to in zip(entries, targets, strict=True)})
    found = await store.get("shop", [each.key for each in targets])
    assert [[each.order for each in samples] for samples in found.samples] == [[each.order] for each in entries]


async def test_rekeying_what_is_gone_is_passed_over(store: Store) -> None:
    (one,) = await stored(store, entry(a=1))
    await store.rekey("shop", {10**12: moved_to(entry(a=2))})
    await store.rekey("shop", {})
    assert await listed(store) == [one]


# -- quota -------------------------------------------------------------------------------------------------------------


async def test_the_size_is_the_sum_of_the_entries_sizes(store: Store) -> None:
    entries = [entry("é" * 100, a="ü"), entry("x", a="ü"), entry(a=2)]
    await store.put("shop", [*entries, entries[0]])
    assert await store.size_bytes("shop") == sum(each.size_bytes for each in entries)
    assert (await store.size("shop")).size_bytes == sum(each.size_bytes for each in entries)
    assert await store.size_bytes("other") == 0


async def test_a_size_tells_entries_environments_and_conflicts_by_tool(store: Store) -> None:
    await store.put("shop", [entry("x", a=1), entry("y", a=1), entry("z", a=1), entry(a=2), entry(tool="get")])
    await store.put("shop", [entry(scope="t", environment="f", a=2), entry("y", a=2)])
    assert await store.size("shop") == Size(
        entries=7,
        size_bytes=await store.size_bytes("shop"),
        environments=2,
        tools={"find": (6, 2), "get": (1, 0)},
    )
    assert await store.size("none") == Size(entries=0, size_bytes=0, environments=0, tools={})


async def test_the_keys_used_longest_ago_are_evicted_whole(store: Store) -> None:
    entries = [entry("x", a=n, at_s=100.0 + n) for n in range(5)] + [entry("y", a=1, at_s=90.0)]
    await store.put("shop", entries)
    keys = [each.key for each in entries]
    await store.touch("shop", [keys[0], "unknown"], 200.0)
    await store.touch("shop", [keys[0]], 50.0)  # a later use is known already
    each = entries[0].size_bytes
    assert await store.evict("shop", 6 * each, spare=()) == 0
    assert await store.evict("shop", 5 * each, spare=()) == 2
    assert await arguments(store) == [0, 2, 3, 4]
    assert await store.evict("shop", 3 * each, spare=[keys[2]]) == 1
    assert await arguments(store) == [0, 2, 4]
    assert await store.evict("shop", 2 * each - 1, spare=()) == 2
    assert await arguments(store) == [0]
    assert await store.size_bytes("shop") == each


async def test_a_result_recorded_again_counts_as_used(store: Store) -> None:
    await store.put("shop", [entry(a=1, at_s=100.0), entry(a=2, at_s=200.0), entry(a=1, at_s=300.0)])
    assert await store.evict("shop", entry(a=1).size_bytes, spare=()) == 1
    assert await arguments(store) == [1]


async def test_a_key_is_as_fresh_as_the_latest_of_its_results(store: Store) -> None:
    await store.put("shop", [entry("x", a=1, at_s=100.0), entry(a=2, at_s=200.0), entry("y", a=1, at_s=300.0)])
    await store.put("shop", [entry("x", a=3, at_s=310.0), entry("y", a=3, at_s=110.0), entry(a=4, at_s=250.0)])
    each = entry(a=1).size_bytes
    assert await store.evict("shop", 5 * each, spare=()) == 1
    assert await store.evict("shop", 4 * each, spare=()) == 1
    assert await arguments(store) == [1, 1, 3, 3]


async def test_a_rekeyed_entry_takes_its_use_along(store: Store) -> None:
    entries = await stored(
        store,
        *(entry("same", a=n, at_s=100.0 + n) for n in (1, 2)),
        *(entry(str(n), a=n, at_s=100.0 + n) for n in (3, 4)),
        *(entry("younger", a=n, at_s=200.0 + n) for n in (5, 6, 7)),
    )
    await store.touch("shop", [entries[1].key, entries[3].key], 500.0)
    await store.rekey("shop", {entries[1].order: moved_to(entries[0]), entries[3].order: moved_to(entries[2])})
    assert await store.evict("shop", 3 * entries[2].size_bytes + 100, spare=()) == 3
    assert await arguments(store) == [1, 3, 4]


async def test_spared_keys_outlive_any_quota(store: Store) -> None:
    await store.put("shop", [entry(a=n) for n in range(10)])
    assert await store.evict("shop", 0, spare=[entry(a=3).key, entry(a=7).key]) == 8
    assert await arguments(store) == [3, 7]
    assert await store.evict("shop", 0, spare=()) == 2
    assert await store.evict("none", 0, spare=()) == 0


async def test_a_large_eviction_stops_at_the_very_entry(store: Store) -> None:
    await store.put("shop", [entry(a=n, at_s=3000.0 - n) for n in range(1000, 2000)])
    size_bytes = await store.size_bytes("shop")
    assert await store.evict("shop", size_bytes - 700 * entry(a=1000).size_bytes, spare=()) == 700
    assert await arguments(store) == [*range(1000, 1300)]


# -- vectors -----------------------------------------------------------------------------------------------------------


async def test_vectors_come_back_with_the_guards_of_their_entries(store: Store) -> None:
    entries = await stored(store, entry(a=1), entry(a=2, place=Place(guard="h")), entry(a=3), entry(tool="get"))
    one, two, three, other = (each.order for each in entries)
    await store.put_vectors("shop", "find", {two: vector(2), three: vector(3)}, version="v")
    await store.put_vectors("shop", "find", {one: vector(1), two: vector(9)}, version="v")
    await store.put_vectors("shop", "get", {other: vector(4)}, version="v")
    await store.put_vectors("shop", "find", {}, version="v")
    assert await store.vectors("shop", "find", version="v") == [
        IndexedVector(order=one, guard="g", vector=vector(1)),
        IndexedVector(order=two, guard="h", vector=vector(2)),
        IndexedVector(order=three, guard="g", vector=vector(3)),
    ]
    assert [each.order for each in await store.vectors("shop", "get", version="v")] == [other]
    assert await store.vectors("shop", "none", version="v") == []


async def test_vectors_of_another_model_replace_those_there_and_are_never_mixed(store: Store) -> None:
    one, two = await stored(store, entry(a=1), entry(a=2))
    await store.put_vectors("shop", "find", {one.order: vector(1), two.order: vector(2)}, version="old")
    await store.put_vectors("shop", "find", {one.order: vector(3)}, version="new")
    assert [each.vector for each in await store.vectors("shop", "find", version="new")] == [vector(3)]
    assert [each.vector for each in await store.vectors("shop", "find", version="old")] == [vector(2)]


async def test_a_vector_without_its_entry_is_passed_over(store: Store) -> None:
    one, gone, other = await stored(store, entry(a=1), entry(a=2), entry(tool="get"))
    await store.remove("shop", [gone.order])
    vectors = {one.order: vector(1), gone.order: vector(2), other.order: vector(3), 10**12: vector(4)}
    await store.put_vectors("shop", "find", vectors, version="v")
    assert [each.order for each in await store.vectors("shop", "find", version="v")] == [one.order]
    assert await store.vectors("shop", "get", version="v") == []


@dataclass
class Follower:
    """A copy of a namespace's vectors, kept as an index keeps it (core/following.py)."""

    store: Store
    namespace: str
    version: str
    tools: Sequence[str] = ("find", "get")
    cursor: str = ""
    copy: dict[str, dict[int, IndexedVector]] = field(default_factory=lambda: defaultdict(dict))

    async def follow(self) -> Changes:
        changes = await self.store.changes(self.namespace, after=self.cursor, version=self.version)
        self.cursor = changes.cursor
        for tool, added in changes.added:
            self.copy[tool][added.order] = added
        for tool, order in changes.removed:
            self.copy[tool].pop(order, None)
        for tool in self.tools if not changes.is_complete else changes.moved:
            self.copy[tool] = await self._anew(tool)
        return changes

    async def _anew(self, tool: str) -> dict[int, IndexedVector]:
        return {each.order: each for each in await self.store.vectors(self.namespace, tool, version=self.version)}

    async def is_equal(self) -> bool:
        return all([self.copy[tool] == await self._anew(tool) for tool in self.tools])


async def test_an_empty_cursor_asks_for_the_cursor_of_now(store: Store) -> None:
    one, two = await stored(store, entry(a=1), entry(a=2))
    await store.put_vectors("shop", "find", {one.order: vector(1)}, version="v")
    begun = await store.changes("shop", after="", version="v")
    assert not begun.is_complete
    quiet = await store.changes("shop", after=begun.cursor, version="v")
    assert (quiet.is_complete, [*quiet.added], [*quiet.removed], quiet.moved) == (True, [], [], frozenset())
    await store.put_vectors("shop", "find", {two.order: vector(2)}, version="v")
    changes = await store.changes("shop", after=quiet.cursor, version="v")
    assert changes.is_complete
    assert [*changes.added] == [("find", IndexedVector(order=two.order, guard="g", vector=vector(2)))]
    after = await store.changes("shop", after=changes.cursor, version="v")
    assert (after.is_complete, [*after.added]) == (True, [])


async def test_changes_tell_what_came_went_moved_and_was_replaced(store: Store) -> None:
    entries = await stored(store, *(entry(a=n) for n in range(6)))
    orders = [each.order for each in entries]
    await store.put_vectors("shop", "find", {order: vector(1) for order in orders[:5]}, version="v")
    followers = [Follower(store, "shop", version) for version in ("v", "w")]
    for each in followers:
        await each.follow()
    await store.remove("shop", orders[:1])
    await store.put_vectors("shop", "find", {orders[1]: vector(2), orders[5]: vector(3)}, version="w")
    await store.rekey("shop", {orders[2]: moved_to(entry(a="elsewhere"))})
    await store.rekey("shop", {orders[3]: moved_to(entry(a=4))})  # the younger one goes
    for each in followers:
        assert (await each.follow()).is_complete
        assert await each.is_equal()
    assert {order: each.guard for order, each in followers[0].copy["find"].items()} == {
        orders[2]: "new",
        orders[3]: "new",
    }
    assert set(followers[1].copy["find"]) == {orders[1], orders[5]}


async def test_changes_of_other_namespaces_are_not_told(store: Store) -> None:
    (one,) = await stored(store, entry())
    (other,) = await stored(store, entry(), namespace="other")
    follower = Follower(store, "shop", "v")
    await follower.follow()
    await store.put_vectors("other", "find", {other.order: vector(1)}, version="v")
    await store.remove("other", [other.order])
    changes = await follower.follow()
    assert (changes.is_complete, [*changes.added], [*changes.removed]) == (True, [], [])
    await store.put_vectors("shop", "find", {one.order: vector(1)}, version="v")
    assert len((await follower.follow()).added) == 1


@pytest.mark.parametrize("cursor", ["x", "1", "-", "1-", "1-x", "0-9999999", "99999999-0 5", "\ud800"])
async def test_a_cursor_that_leads_nowhere_says_that_changes_were_lost(store: Store, cursor: str) -> None:
    await store.put("shop", [entry()])
    changes = await store.changes("shop", after=cursor, version="v")
    assert not changes.is_complete
    assert (await store.changes("shop", after=changes.cursor, version="v")).is_complete


async def test_who_followed_a_namespace_that_was_deleted_reads_its_successor_anew(store: Store) -> None:
    await store.put_namespace(Namespace(name="shop", tools={}))
    (one,) = await stored(store, entry())
    await store.put_vectors("shop", "find", {one.order: vector(1)}, version="v")
    follower = Follower(store, "shop", "v")
    await follower.follow()
    await store.delete_namespace("shop")
    await store.put_namespace(Namespace(name="shop", tools={}))
    (two,) = await stored(store, entry())
    await store.put_vectors("shop", "find", {two.order: vector(2)}, version="v")
    await follower.follow()
    assert await follower.is_equal()
    assert set(follower.copy["find"]) == {two.order}


async def test_another_process_follows_the_same_changes(open_store: OpenStore) -> None:
    one, two = await open_store(), await open_store()
    entries = await stored(one, entry(a=1), entry(a=2))
    follower = Follower(two, "shop", "v")
    await follower.follow()
    await one.put_vectors("shop", "find", {each.order: vector(1) for each in entries}, version="v")
    changes = await follower.follow()
    assert (changes.is_complete, len(changes.added)) == (True, 2)
    await one.remove("shop", [entries[0].order])
    assert (await follower.follow()).is_complete
    assert set(follower.copy["find"]) == {entries[1].order}


# -- namespaces --------------------------------------------------------------------------------------------------------

TOOL = Tool(
    name="find",
    description="d",
    parameters={"type": "object", "properties": {"q": {"type": "string"}, "any": True}},
    effect=Effect.READ,
    roles={"q": Role.FREE_TEXT},
    errors_change_state=True,
    ttl_s=60.0,
    samples=4,
    masks=(Mask(argument="q", pattern=r"\d+"),),
    simulate_writes=True,
    similar_floor=0.5,
)
SHOP = Namespace(
    name="shop",
    tools={"find": TOOL},
    tiers=frozenset({Tier.APPROXIMATE}),
    similar_threshold=0.7,
    max_bytes=1 << 40,
    shadow_share=0.25,
)
PROFILE = Profile(
    roles={"q": Role.IRRELEVANT},
    evidence={Reason.FREE_TEXT: Evidence(right=1, served=2)},
    entries=3,
    similar_threshold=0.7,
)


async def test_what_is_known_of_a_namespace_comes_back(store: Store) -> None:
    assert await store.known("shop") is None
    await store.put_namespace(replace(SHOP, similar_threshold=0.1))
    await store.put_namespace(SHOP)
    await store.put_profiles("shop", {"find": Profile(), "get": PROFILE})
    await store.put_profiles("shop", {"find": PROFILE})
    await store.add_evidence("shop", "find", {"free_text": Evidence(right=1, served=2), "nearest": Evidence(served=1)})
    known = await store.known("shop")
    assert known is not None
    assert known.namespace == SHOP
    assert known.profiles == {"find": PROFILE, "get": PROFILE}
    assert known.shadows == {"find": {"free_text": Evidence(right=1, served=2), "nearest": Evidence(served=1)}}


async def test_namespaces_are_told_by_their_names_in_order(store: Store) -> None:
    for name in ("b", "ä", "a", "B", "a b"):
        await store.put_namespace(Namespace(name=name, tools={}))
    assert await store.namespaces() == ["B", "a", "a b", "b", "ä"]


async def test_every_change_of_what_decides_answers_raises_the_revision(store: Store) -> None:
    async def revision() -> int:
        found = await store.get("shop", [])
        known = await store.known("shop")
        assert found.revision == (known.revision if known else 0)
        return found.revision

    assert await revision() == 0
    seen = [0]
    changes: list[Callable[[], Awaitable[None]]] = [
        lambda: store.put_namespace(SHOP),
        lambda: store.put_profiles("shop", {"find": PROFILE}),
        lambda: store.add_evidence("shop", "find", {"free_text": Evidence(right=1, served=1)}),
        lambda: store.clear_evidence("shop", "find"),
        lambda: store.put_namespace(SHOP),
    ]
    for change in changes:
        await change()
        seen.append(await revision())
        await store.put_namespace(Namespace(name="other", tools={}))
        await store.put("shop", [entry(a=len(seen))])
        assert await revision() == seen[-1]
    await store.delete_namespace("shop")
    assert await revision() == 0
    await store.put_namespace(SHOP)
    seen.append(await revision())
    assert all(before < after for before, after in itertools.pairwise(seen))


async def test_what_was_learned_for_no_namespace_makes_none(store: Store) -> None:
    await store.put_profiles("none", {"find": PROFILE})
    await store.add_evidence("none", "find", {"nearest": Evidence(served=1)})
    assert await store.known("none") is None
    assert (await store.get("none", ["k"])).revision == 0
    assert await store.namespaces() == []


async def test_revisions_are_the_same_for_every_process(open_store: OpenStore) -> None:
    one, two = await open_store(), await open_store()
    await one.put_namespace(SHOP)
    before = (await two.get("shop", ["k"])).revision
    assert before == (await one.get("shop", ["k"])).revision > 0
    await two.add_evidence("shop", "find", {"nearest": Evidence(served=1)})
    assert (await one.get("shop", ["k"])).revision == (await two.get("shop", ["k"])).revision > before


async def test_evidence_added_by_many_at_once_all_counts(open_store: OpenStore) -> None:
    one, two = await open_store(), await open_store()
    await one.put_namespace(SHOP)
    more = {"free_text": Evidence(right=1, served=2), "nearest": Evidence(right=0, served=1)}
    await asyncio.gather(*(store.add_evidence("shop", "find", more) for store in [one, two] * 25))
    await one.add_evidence("shop", "get", {"nearest": Evidence(right=1, served=1)})
    known = await two.known("shop")
    assert known is not None
    assert known.shadows["find"] == {"free_text": Evidence(right=50, served=100), "nearest": Evidence(served=50)}
    await two.clear_evidence("shop", "find")
    known = await one.known("shop")
    assert known is not None
    assert {tool: each for tool, each in known.shadows.items() if each} == {
        "get": {"nearest": Evidence(right=1, served=1)}
    }


async def seen_evidence(store: Store, tool: str = "find") -> Mapping[str, Evidence]:
    known = await store.known("shop")
    return known.shadows.get(tool, {}) if known else {}


async def test_evidence_that_is_sent_again_under_the_same_name_counts_once(store: Store) -> None:
    await store.put_namespace(SHOP)
    await store.put_namespace(Namespace(name="other", tools={}))
    one = {"nearest": Evidence(right=1, served=2)}
    await store.put("shop", [entry()], once=Once(name="r1"))  # the names of entries are others
    await store.add_evidence("other", "find", one, once=Once(name="r1"))
    for _ in range(3):
        await store.add_evidence("shop", "find", one, once=Once(name="r1"))
    assert await seen_evidence(store) == one
    await store.add_evidence("shop", "get", one, once=Once(name="r1"))
    assert await seen_evidence(store, "get") == one
    await store.add_evidence("shop", "find", one, once=Once(name="r2"))
    await store.add_evidence("shop", "find", one)
    assert await seen_evidence(store) == {"nearest": Evidence(right=3, served=6)}
    assert await store.put("shop", [entry()], once=Once(name="r2")) == [Outcome.KNOWN]
    assert [each.seen for each in await listed(store)] == [2]


async def test_evidence_that_arrives_many_times_at_once_counts_once(open_store: OpenStore) -> None:
    one, two = await open_store(), await open_store()
    await one.put_namespace(SHOP)
    more = {"free_text": Evidence(right=1, served=2), "nearest": Evidence(served=1)}
    names = [Once(name="r1"), Once(name="r2")] * 8
    sent = (store.add_evidence("shop", "find", more, once=once) for once in names for store in (one, two))
    await asyncio.gather(*sent)
    assert await seen_evidence(one) == {"free_text": Evidence(right=2, served=4), "nearest": Evidence(served=2)}


async def all_of(store: Store, namespace: str, keys: Sequence[str], equal: str, call: str) -> list[Any]:
    """All that the methods of a store tell of a namespace, but cursors and revisions."""
    found = await store.get(namespace, keys)
    known = await store.known(namespace)
    samples = [[(each.result, each.seen, each.order) for each in one] for one in found.samples]
    return [
        samples,
        known and replace(known, revision=0),
        await listed(store, namespace),
        await store.with_equal(namespace, equal),
        await store.with_call(namespace, call),
        await store.size(namespace),
        await store.size_bytes(namespace),
        await store.vectors(namespace, "find", version="v"),
    ]


async def filled(store: Store, namespace: str) -> list[Entry]:
    """Put everything a namespace can hold."""
    await store.put_namespace(replace(SHOP, name=namespace))
    await store.put_profiles(namespace, {"find": PROFILE})
    await store.add_evidence(namespace, "find", {"nearest": Evidence(right=1, served=1)})
    one = entry(a=1, tags=("t",), expires_at_s=1e9)
    await store.put(namespace, [one, entry("y", a=1), entry(a=2)], once=Once(name="r"))
    entries = await listed(store, namespace)
    await store.put_vectors(namespace, "find", {each.order: vector(1) for each in entries}, version="v")
    return entries


async def test_no_method_reaches_into_another_namespace(store: Store) -> None:
    other = [each.order for each in await filled(store, "other")]
    await filled(store, "shop")
    shop = await stored(store, *(entry(a=n) for n in range(3, 9)))
    orders = [each.order for each in shop if each.order not in other]  # each namespace may count for itself
    keys, equal, call = [each.key for each in shop], shop[0].place.equal, shop[0].place.call
    before = await all_of(store, "shop", keys, equal, call)
    assert len(before[0][0]) == 2
    assert orders
    assert await store.by_order("other", orders) == {}
    assert await store.remove("other", orders) == 0
    await store.rekey("other", {order: moved_to(entry(a="moved")) for order in orders})
    await store.put_vectors("other", "find", {order: vector(7) for order in orders}, version="w")
    await store.put("other", [entry("z", a=1)], once=Once(name="r"))
    await store.put_profiles("other", {"find": Profile(entries=99)})
    await store.add_evidence("other", "find", {"nearest": Evidence(served=9)})
    await store.clear_evidence("other", "find")
    await store.touch("other", keys, 1e10)
    await store.remove_where("other", Filter(tag="t"))
    await store.evict("other", 0, spare=())
    await store.put_namespace(Namespace(name="other", tools={}))
    assert await store.delete_namespace("other") == 0
    assert await all_of(store, "shop", keys, equal, call) == before
    assert await store.namespaces() == ["shop"]


async def test_a_deleted_namespace_leaves_nothing_behind(store: Store) -> None:
    entries = await filled(store, "shop")
    keys, equal, call = [each.key for each in entries], entries[0].place.equal, entries[0].place.call
    empty = await all_of(store, "never", keys, equal, call)
    assert await store.delete_namespace("shop") == 3
    assert await all_of(store, "shop", keys, equal, call) == empty
    assert await store.namespaces() == []
    assert await store.by_order("shop", [each.order for each in entries]) == {}
    assert await store.delete_namespace("shop") is None
    assert await store.remove_expired(2e9) == 0

    await store.put_namespace(Namespace(name="shop", tools={}))
    known = await store.known("shop")
    assert known is not None
    assert (known.profiles, known.shadows) == ({}, {})
    assert await listed(store) == []
    assert await store.put("shop", [entry(a=1)], once=Once(name="r")) == [Outcome.STORED]
    assert await store.put("shop", [entry(a=1)], once=Once(name="r2")) == [Outcome.KNOWN]
    assert await store.remove_where("shop", Filter(tag="t")) == 0
    assert await store.vectors("shop", "find", version="v") == []


async def test_a_large_namespace_is_deleted_whole(store: Store) -> None:
    await store.put_namespace(SHOP)
    await store.put("shop", [entry(a=n) for n in range(1000)])
    assert await store.delete_namespace("shop") == 1000
    assert await listed(store) == []


async def test_an_unknown_namespace_is_empty_and_stays_unknown(store: Store) -> None:
    assert (await store.get("none", ["k"])).revision == 0
    assert [[*each] for each in (await store.get("none", ["k"])).samples] == [[]]
    assert await store.delete_namespace("none") is None
    assert await store.remove("none", [1]) == 0
    assert await store.remove_where("none", Filter()) == 0
    await store.touch("none", ["k"], 1.0)
    await store.rekey("none", {1: moved_to(entry())})
    await store.put_vectors("none", "find", {1: vector(1)}, version="v")
    assert await store.known("none") is None
    assert await store.namespaces() == []


# -- access ------------------------------------------------------------------------------------------------------------


async def test_api_keys_come_back_until_they_are_deleted(store: Store) -> None:
    keys = [
        ApiKey(id=each, name="n", role=role, namespaces=("shop", "*"), secret_hash="h", created_at_s=1.5)
        for each, role in (("b", ApiRole.ADMIN), ("a", ApiRole.READ))
    ]
    assert await store.api_keys() == []
    for key in keys:
        await store.put_api_key(key)
    assert sorted(await store.api_keys(), key=lambda key: key.id) == keys[::-1]
    renamed = replace(keys[0], name="other", namespaces=())
    await store.put_api_key(renamed)
    assert await store.delete_api_key("a")
    assert not await store.delete_api_key("a")
    assert await store.api_keys() == [renamed]


# -- trouble -----------------------------------------------------------------------------------------------------------

POISON = {
    "a lone surrogate in the result": replace(entry(p=1), result=Result(content="\ud800")),
    "a lone surrogate in the environment": replace(entry(p=2), environment="\ud800"),
    "a lone surrogate in a tag": replace(entry(p=3), tags=("\ud800",)),
    "a lone surrogate in masked arguments": replace(entry(p=4), arguments={"trace": "\ud800"}),
    "a duration that is no number": replace(entry(p=5), result=Result(content="x", took_s=float("nan"))),
}


@pytest.mark.parametrize("poison", POISON.values(), ids=POISON.keys())
async def test_a_poison_value_is_kept_or_refused_and_harms_no_neighbour(store: Store, poison: Entry) -> None:
    done = await asyncio.gather(
        *(store.put("shop", [entry(a=-n), poison] if n == 3 else [entry(a=n)]) for n in range(1, 8)),
        return_exceptions=True,
    )
    assert [each for n, each in enumerate(done, 1) if n != 3] == [[Outcome.STORED]] * 6
    assert done[2] == [Outcome.STORED] * 2 or isinstance(done[2], ValueError | StoreUnavailable)
    found = [each.arguments.get("a") for each in await listed(store)]
    assert {*found} >= {1, 2, 4, 5, 6, 7}
    # Of a refused request nothing is there; of one that was kept, all.
    assert (-3 in found) == (done[2] == [Outcome.STORED] * 2)
    assert await store.size_bytes("shop") == sum(each.size_bytes for each in await listed(store))


async def test_long_and_deep_values_are_kept(store: Store) -> None:
    deep: Any = "end"
    for n in range(60):
        deep = {"n": deep} if n % 2 else [deep]
    big = entry("long " * 1_000_000, deep=deep, long="x" * 100_000)
    await store.put("shop", [big, entry("y", a=1)])
    (back, _) = await listed(store)
    assert orderless(back) == big
    assert await store.size_bytes("shop") == big.size_bytes + entry("y", a=1).size_bytes


async def test_many_writers_at_once_lose_nothing(open_store: OpenStore) -> None:
    stores = [await open_store(), await open_store()]
    outcomes = await asyncio.gather(*(stores[n % 2].put("shop", [entry(a=n % 100), entry(b=n)]) for n in range(300)))
    flat = [each for pair in outcomes for each in pair]
    assert (flat.count(Outcome.STORED), flat.count(Outcome.KNOWN)) == (400, 200)
    found = await listed(stores[0])
    assert (len(found), sum(each.seen for each in found)) == (400, 600)
    assert await stores[1].size_bytes("shop") == sum(each.size_bytes for each in found)


async def test_writers_of_every_kind_at_once_keep_the_size_true(open_store: OpenStore) -> None:
    stores = [await open_store(), await open_store()]
    before = await stored(stores[0], *(entry(a=n, tags=(f"t{n % 7}",), at_s=float(n)) for n in range(500)))
    orders = [each.order for each in before]
    await asyncio.gather(
        *(stores[n % 2].put("shop", [entry(b=n), entry(a=n)]) for n in range(100)),
        *(stores[n % 2].remove("shop", orders[n::17]) for n in range(4)),
        stores[0].remove_where("shop", Filter(tag="t1")),
        stores[1].remove_where("shop", Filter(recorded_before_s=100.0)),
        stores[0].rekey("shop", {order: moved_to(entry(c=order % 50)) for order in orders[::3]}),
        stores[1].evict("shop", 200 * entry(a=100).size_bytes, spare=()),
    )
    left = await listed(stores[1])
    assert await stores[0].size_bytes("shop") == sum(each.size_bytes for each in left)
    assert (await stores[0].size("shop")).entries == len(left)


async def test_a_caller_that_gives_up_harms_no_later_one(store: Store) -> None:
    waiting = [asyncio.ensure_future(store.put("shop", [entry(a=n)])) for n in range(50)]
    await asyncio.sleep(0)
    for each in waiting[::2]:
        each.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    async with asyncio.timeout(60):
        assert await store.put("shop", [entry(a="later")]) == [Outcome.STORED]
    assert {*await arguments(store)} >= {1, 3, 5, "later"}
    assert await store.size_bytes("shop") == sum(each.size_bytes for each in await listed(store))


# -- all of it, in any order -------------------------------------------------------------------------------------------


class Model:
    """What a store must hold, told as plainly as can be. The store's own orders are taken from it."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.vectors: dict[int, tuple[str, bytes]] = {}
        self.used_s: dict[str, float] = {}
        self.names: set[str] = set()

    def put(self, entry: Entry, *, is_again: bool) -> Outcome:
        self.remove(lambda e: e.key == entry.key and 0 < e.expires_at_s <= entry.recorded_at_s)
        alike = [each for each in self.entries if each.key == entry.key]
        same = [each for each in alike if each.result_digest == entry.result_digest]
        if same and is_again:
            return Outcome.KNOWN
        self.used_s[entry.key] = max(self.used_s.get(entry.key, 0.0), entry.recorded_at_s)
        if same:
            self.entries[self.entries.index(same[0])] = added_up(same[0], entry, skew_s=CLOCK_SKEW_S)
            return Outcome.KNOWN
        self.entries.append(entry)
        return Outcome.CONFLICT if alike else Outcome.STORED

    def remove(self, goes: Callable[[Entry], bool]) -> int:
        before, self.entries = self.entries, [each for each in self.entries if not goes(each)]
        self.used_s = {key: at_s for key, at_s in self.used_s.items() if any(e.key == key for e in self.entries)}
        return len(before) - len(self.entries)

    def rekey(self, places: Mapping[int, tuple[str, str, Place]]) -> None:
        moved: dict[tuple[str, str], Entry] = {}
        used_s: dict[str, float] = {}
        for each in self.entries:
            key, canonical, place = places.get(each.order, (each.key, each.canonical, each.place))
            used_s[key] = max(used_s.get(key, 0.0), self.used_s[each.key])
            there = moved.get((key, each.result_digest))
            now = replace(each, key=key, canonical=canonical, place=place)
            moved[key, each.result_digest] = now if there is None else added_up(there, now)
        self.entries, self.used_s = list(moved.values()), used_s

    def evict(self, max_bytes: int, spare: Iterable[str]) -> int:
        removed = 0
        for key in sorted(self.used_s, key=self.used_s.__getitem__):
            if self.size_bytes > max_bytes and key not in spare:
                removed += self.remove(lambda e, key=key: e.key == key)  # type: ignore[misc]
        return removed

    @property
    def size_bytes(self) -> int:
        return sum(each.size_bytes for each in self.entries)

    def indexed(self, tool: str, version: str) -> list[IndexedVector]:
        return [
            IndexedVector(order=each.order, guard=each.place.guard, vector=self.vectors[each.order][1])
            for each in self.entries
            if each.tool == tool and self.vectors.get(each.order, ("", b""))[0] == version
        ]


def added_up(older: Entry, younger: Entry, *, skew_s: float = float("inf")) -> Entry:
    newer = max(younger, older, key=lambda each: each.recorded_at_s)
    if newer.recorded_at_s - younger.recorded_at_s > skew_s:
        newer = younger
    return replace(
        older,
        seen=older.seen + younger.seen,
        recorded_at_s=newer.recorded_at_s,
        expires_at_s=newer.expires_at_s,
        tags=tuple(sorted({*older.tags, *younger.tags})),
    )


KEYS = range(4)
TAGS = ("t0", "t1")
VERSIONS = ("v", "w")
few = st.integers(0, 5)
recordings = st.tuples(
    st.sampled_from(KEYS), st.integers(0, 2), st.sampled_from([0, 150, 350]), st.sets(st.sampled_from(TAGS))
)
operations = st.one_of(
    st.tuples(st.just("put"), st.lists(recordings, max_size=4), st.sampled_from(["", "", "r1", "r2"])),
    st.tuples(st.just("put"), st.lists(recordings, min_size=1, max_size=2), st.just("")),
    st.tuples(st.just("vectors"), st.sets(few, min_size=1), st.sampled_from(VERSIONS)),
    st.tuples(st.just("follow"), few),
    st.tuples(st.just("rekey"), st.dictionaries(few, st.sampled_from(KEYS), min_size=1)),
    st.tuples(st.just("touch"), st.sampled_from(KEYS)),
    st.tuples(st.just("evict"), st.integers(0, 4), st.sets(st.sampled_from(KEYS), max_size=2)),
    st.tuples(st.just("remove"), st.sets(few, min_size=1)),
    st.tuples(st.just("remove_where"), st.none() | st.sampled_from(["find", "get"]), st.none() | st.sampled_from(TAGS)),
    st.tuples(st.just("remove_older"), st.sampled_from([50, 200, 400])),
    st.tuples(st.just("remove_expired"), st.sampled_from([0, 50, 200])),
)
_numbers = itertools.count()


def recorded(key: int, content: int, at_s: float, tags: Iterable[str] = ()) -> Entry:
    """Keys 0 and 2 are of the one tool, 1 and 3 of the other; results of 2 and 3 expire after 220 s."""
    return entry(
        str(content),
        tool=("find", "get")[key % 2],
        place=Place(guard=f"g{key}", equal=f"equal {key}", call=f"call {content}"),
        at_s=at_s,
        expires_at_s=at_s + 220.0 if key >= 2 else 0.0,
        tags=tuple(sorted(tags)),
        key=key,
    )


KEY_OF = {key: recorded(key, 0, 0.0).key for key in KEYS}


class Run:
    """One sequence of operations, on a store and on the model. Times differ from one another, so that no two tie."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.model = Model()
        self.name = f"run{next(_numbers)}"
        self.now_s = 1000.0
        self.followers = [Follower(store, self.name, VERSIONS[n % 2]) for n in range(4)]

    async def step(self, operation: Any) -> None:
        self.now_s += 100.01
        name, *values = operation
        await getattr(self, name)(*values)

    def at(self, indexes: Iterable[int]) -> list[Entry]:
        return [self.model.entries[i] for i in sorted(indexes) if i < len(self.model.entries)]

    async def put(self, recordings: Sequence[tuple[int, int, int, set[str]]], once: str) -> None:
        entries = [
            recorded(key, content, self.now_s - age_s + i / 1000, tags)
            for i, (key, content, age_s, tags) in enumerate(recordings)
        ]
        is_again = once in self.model.names
        self.model.names |= {once} - {""}
        expected = [self.model.put(each, is_again=is_again) for each in entries]
        assert await self.store.put(self.name, entries, once=Once(name=once) if once else None) == expected
        # Of two alike that wait for an order the older got it first: the model's list and the store's run in parallel.
        orders = [each.order async for each in self.store.entries(self.name)]
        self.model.entries = [replace(e, order=n) for e, n in zip(self.model.entries, orders, strict=True)]

    async def vectors(self, indexes: set[int], version: str) -> None:
        for tool in ("find", "get"):
            made = {each.order: vector(each.order % 256) for each in self.at(indexes) if each.tool == tool}
            await self.store.put_vectors(self.name, tool, made, version=version)
            for order, each in made.items():
                self.model.vectors[order] = (version, each)

    async def follow(self, index: int) -> None:
        await self.followers[index % len(self.followers)].follow()

    async def rekey(self, to: Mapping[int, int]) -> None:
        targets = {i: recorded(key, 0, 0.0) for i, key in to.items()}
        # A tool is part of every key, so that entries of two tools never meet.
        places = {
            each.order: moved_to(targets[i], guard=f"moved to {targets[i].canonical}")
            for i, each in enumerate(self.model.entries)
            if i in targets and targets[i].tool == each.tool
        }
        self.model.rekey(places)
        await self.store.rekey(self.name, places)

    async def touch(self, key: int) -> None:
        if KEY_OF[key] in self.model.used_s:
            self.model.used_s[KEY_OF[key]] = self.now_s + 0.005
        await self.store.touch(self.name, [KEY_OF[key]], self.now_s + 0.005)

    async def evict(self, quarters: int, spare: set[int]) -> None:
        max_bytes = self.model.size_bytes * quarters // 4
        spared = {KEY_OF[key] for key in spare}
        assert await self.store.evict(self.name, max_bytes, spare=spared) == self.model.evict(max_bytes, spared)

    async def remove(self, indexes: set[int]) -> None:
        orders = {each.order for each in self.at(indexes)}
        assert await self.store.remove(self.name, orders) == self.model.remove(lambda each: each.order in orders)

    async def remove_where(self, tool: str | None, tag: str | None) -> None:
        removed = self.model.remove(lambda e: tool in (None, e.tool) and (tag is None or tag in e.tags))
        assert await self.store.remove_where(self.name, Filter(tool=tool, tag=tag)) == removed

    async def remove_older(self, age_s: int) -> None:
        before_s = self.now_s - age_s
        removed = self.model.remove(lambda each: each.recorded_at_s < before_s)
        assert await self.store.remove_where(self.name, Filter(recorded_before_s=before_s)) == removed

    async def remove_expired(self, ahead_s: int) -> None:
        now_s = self.now_s + ahead_s
        self.model.remove(lambda each: 0 < each.expires_at_s <= now_s)
        await self.store.remove_expired(now_s)

    async def check(self) -> None:
        held = await listed(self.store, self.name)
        assert [replace(each, tags=tuple(sorted(each.tags))) for each in held] == self.model.entries
        assert await self.store.size_bytes(self.name) == self.model.size_bytes
        size = await self.store.size(self.name)
        assert (size.entries, size.size_bytes) == (len(held), self.model.size_bytes)
        found = await self.store.get(self.name, list(KEY_OF.values()))
        assert [[each.order for each in samples] for samples in found.samples] == [
            [each.order for each in held if each.key == key] for key in KEY_OF.values()
        ]
        for tool, version in itertools.product(("find", "get"), VERSIONS):
            vectors = await self.store.vectors(self.name, tool, version=version)
            assert vectors == self.model.indexed(tool, version)
        for follower in self.followers:
            await follower.follow()
            assert await follower.is_equal()


@given(st.lists(operations, max_size=24))
@example([("put", [(0, 0, 0, set()), (2, 0, 0, set())], ""), ("rekey", {0: 2, 1: 0}), ("evict", 2, {0})])
@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
async def test_a_store_holds_what_the_model_says_after_any_sequence_of_operations(
    store: Store, sequence: Sequence[Any]
) -> None:
    run = Run(store)
    for operation in sequence:
        await run.step(operation)
    await run.check()
