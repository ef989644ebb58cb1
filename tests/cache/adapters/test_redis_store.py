"""What the Redis store promises beyond the contract of all stores: its keys, its cost, its place in a Cluster."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
import redis

from tests.conftest import StartRedis
from tests.redis_server import running_cluster
from toolcache.adapters import redis_scripts, redis_store
from toolcache.adapters.memory_store import MemoryStore
from toolcache.adapters.redis_leases import RedisLeases
from toolcache.adapters.redis_store import RedisStore
from toolcache.core.calls import Call, entry_key
from toolcache.core.entries import OVERHEAD_BYTES, Entry, Outcome, Place, Result
from toolcache.core.ports import Changes, Filter, IndexedVector, Once, Size, Store, StoreUnavailable
from toolcache.core.profile import Profile
from toolcache.core.tools import Namespace
from toolcache.core.trust import Evidence

NAMESPACE = Namespace(name="shop", tools={})


@pytest.fixture
async def store(redis_url: str) -> AsyncIterator[RedisStore]:
    opened = await RedisStore.open(redis_url)
    yield opened
    await opened.close()


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url) as opened:
        yield opened


def entry(content: str = "x", *, tool: str = "find", environment: str = "e", **arguments: Any) -> Entry:
    call = Call.of(tool, arguments)
    result = Result(content=content, took_s=0.25)
    return Entry(
        key=entry_key(environment, call),
        scope="s",
        environment=environment,
        tool=tool,
        arguments=arguments,
        canonical=call.canonical,
        result=result,
        result_digest=result.digest(),
        place=Place(guard="g", equal=f"equal {call.canonical}", call=f"call {call.canonical}"),
        recorded_at_s=1000.0,
    )


async def walked(store: Store, namespace: str = "shop") -> list[Entry]:
    return [each async for each in store.entries(namespace)]


def commands_sent(client: redis.Redis) -> Counter[str]:
    """Since the statistics were reset."""
    stats = client.info("commandstats")
    names = {name.removeprefix("cmdstat_"): each["calls"] for name, each in stats.items()}
    return Counter({name: calls for name, calls in names.items() if name not in ("config|resetstat", "info")})


# -- cost --------------------------------------------------------------------------------------------------------------


async def test_a_lookup_of_any_number_of_keys_is_one_command(store: RedisStore, client: redis.Redis) -> None:
    await store.put_namespace(NAMESPACE)
    entries = [entry(a=n) for n in range(150)]
    await store.put("shop", entries)
    client.config_resetstat()
    found = await store.get("shop", [each.key for each in entries])
    assert commands_sent(client) == {"mget": 1}
    assert [[sample.order for sample in samples] for samples in found.samples] == [[n] for n in range(1, 151)]
    known = await store.known("shop")
    assert known is not None
    assert found.revision == known.revision


async def test_lookups_that_come_at_the_same_moment_share_one_command(store: RedisStore, client: redis.Redis) -> None:
    entries = [entry(a=n) for n in range(20)]
    await store.put("shop", entries)
    await store.put("other", [entry(a=0)])
    client.config_resetstat()
    found = await asyncio.gather(
        *(store.get("shop", [each.key, "unknown"]) for each in entries), store.get("shop", []), store.get("other", [])
    )
    assert commands_sent(client)["mget"] == 2  # one a namespace: two may lie in two shards
    assert [[len(samples) for samples in each.samples] for each in found] == [[1, 0]] * 20 + [[], []]
    assert [each.samples[0][0].order for each in found[:20]] == list(range(1, 21))


async def test_work_on_many_entries_is_cut_into_slices(store: RedisStore, client: redis.Redis) -> None:
    entries = [entry(a=n) for n in range(3 * redis_scripts.SLICE)]

    async def scripts(work: Any) -> int:
        client.config_resetstat()
        await work
        return commands_sent(client)["evalsha"]

    assert await scripts(store.put("shop", entries)) == 3
    orders = [each.order for each in await walked(store)]
    places = {order: (f"k{order}", "{}", Place()) for order in orders}
    assert await scripts(store.rekey("shop", places)) == 3
    assert await scripts(store.put_vectors("shop", "find", dict.fromkeys(orders, b"vector"), version="1")) == 3
    assert await scripts(store.evict("shop", 0, spare=())) >= 3
    assert await store.size_bytes("shop") == 0


async def test_a_batch_of_long_results_is_cut_by_their_bytes(store: RedisStore, client: redis.Redis) -> None:
    client.config_resetstat()
    assert await store.put("shop", [entry("x" * 600_000, a=n) for n in range(4)]) == [Outcome.STORED] * 4
    assert commands_sent(client)["evalsha"] == 4
    assert [len(each.result.content) for each in await walked(store)] == [600_000] * 4


async def test_a_batch_sent_again_counts_nothing_in_any_of_its_slices(store: RedisStore) -> None:
    entries = [entry(a=n) for n in range(2 * redis_scripts.SLICE + 5)]
    once = Once(name="request 1")
    assert set(await store.put("shop", entries, once=once)) == {Outcome.STORED}
    assert set(await store.put("shop", entries, once=once)) == {Outcome.KNOWN}
    assert {each.seen for each in await walked(store)} == {1}
    await store.put("shop", entries, once=Once(name="request 2"))
    assert {each.seen for each in await walked(store)} == {2}


async def test_only_the_part_of_a_batch_that_got_lost_is_counted_when_it_is_sent_again(store: RedisStore) -> None:
    entries = [entry(a=n) for n in range(2 * redis_scripts.SLICE)]
    await store.put("shop", entries)
    once = Once(name="request 1")
    await store.put("shop", entries[: redis_scripts.SLICE], once=once)  # as if the rest had been cut off
    await store.put("shop", entries, once=once)
    assert {each.seen for each in await walked(store)} == {2}


# -- keys --------------------------------------------------------------------------------------------------------------


async def test_all_keys_of_a_namespace_bear_its_tag_and_go_with_it(store: RedisStore, client: redis.Redis) -> None:
    await store.put_namespace(NAMESPACE)
    await store.put_profiles("shop", {"find": Profile()})
    await store.add_evidence("shop", "find", {"nearest": Evidence(right=1, served=2)})
    many = [entry(a=n) for n in range(2 * redis_scripts.SLICE)]
    await store.put("shop", [replace(each, tags=("t",), expires_at_s=2000.0) for each in many])
    orders = [each.order for each in await walked(store)]
    await store.put_vectors("shop", "find", dict.fromkeys(orders, b"vector"), version="1")
    await store.rekey("shop", {order: (f"k{order}", "{}", Place(call="c")) for order in orders})
    tagged = {key for key in client.scan_iter() if key.startswith(b"toolcache:{shop}:")}
    assert set(client.keys()) - tagged == {b"toolcache:namespaces"}
    assert await store.delete_namespace("shop") == len(many)
    assert client.keys() == []


async def test_a_namespace_of_any_name_stays_by_itself(store: RedisStore) -> None:
    names = ["shop", "shop}", "{shop}", "shop:k", "shop%7D", "\u00fc", "a b"]
    for n, name in enumerate(names):
        await store.put(name, [entry(a=each) for each in range(n + 1)])
    assert [(await store.size(name)).entries for name in names] == [1, 2, 3, 4, 5, 6, 7]


async def test_a_deletion_that_was_cut_off_is_finished_by_the_next_one(store: RedisStore, client: redis.Redis) -> None:
    await store.put_namespace(NAMESPACE)
    await store.put("shop", [entry(a=1), entry(a=2)])
    await store._run(redis_scripts.MARK_DELETED, "shop")
    assert (await store.namespaces(), await store.known("shop")) == ([], None)
    assert (await store.get("shop", [])).revision == 0
    assert await store.delete_namespace("shop") == 2
    assert client.keys() == []


async def test_a_deletion_that_was_cut_off_is_finished_before_the_namespace_is_made_anew(store: RedisStore) -> None:
    await store.put_namespace(NAMESPACE)
    await store.put("shop", [entry(a=1), entry(a=2)])
    await store._run(redis_scripts.MARK_DELETED, "shop")
    await store.put_namespace(NAMESPACE)
    assert await store.namespaces() == ["shop"]
    assert await walked(store) == []


async def test_a_namespace_made_anew_shows_no_revision_again(store: RedisStore) -> None:
    revisions = []
    for _ in range(5):
        await store.put_namespace(NAMESPACE)
        revisions.append((await store.get("shop", [])).revision)
        await store.delete_namespace("shop")
    assert revisions == sorted(set(revisions))


async def test_what_is_learned_of_a_namespace_that_was_deleted_meanwhile_is_dropped(
    store: RedisStore, client: redis.Redis
) -> None:
    await store.put_profiles("shop", {"find": Profile()})
    await store.add_evidence("shop", "find", {"nearest": Evidence(right=1, served=2)})
    assert client.keys() == []


# -- everything at once ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(12))
async def test_whatever_happens_the_store_agrees_with_one_in_memory_and_with_itself(
    store: RedisStore, client: redis.Redis, seed: int
) -> None:
    plain = MemoryStore()
    follower = Follower(store)
    await follower.follow()
    for step in range(80):
        for each in (store, plain):
            await something(each, random.Random(f"{seed}/{step}"), now_s=1000.0 + step)
        assert [as_any_store(each) for each in await walked(store)] == [
            as_any_store(each) for each in await walked(plain)
        ], f"after step {step}"
        if step % 3 == 0:
            await follower.follow()
    assert contradictions(client) == []
    assert await store.size("shop") == await plain.size("shop")
    await follower.follow()
    assert follower.vectors == await follower.all_vectors()
    entries = await walked(store)
    assert await store.remove_where("shop", Filter()) == len(entries)
    assert await store.size("shop") == Size(entries=0, size_bytes=0, environments=0, tools={})
    assert contradictions(client) == []


def as_any_store(entry: Entry) -> Entry:
    """Without what stores may do differently: the numbers they give, and in what order they keep tags."""
    return replace(entry, order=0, tags=tuple(sorted(entry.tags)))


async def something(store: Store, chance: random.Random, *, now_s: float) -> None:
    """One operation drawn at random, on few keys, so that they meet."""
    entries = await walked(store)
    some = chance.sample(entries, min(len(entries), chance.randint(0, 6)))
    match chance.randint(0, 9):
        case 0 | 1 | 2 | 3:
            batch = [any_entry(chance, now_s + n / 100) for n in range(chance.randint(1, 8))]
            once = Once(name=str(chance.randint(0, 3))) if chance.random() < 0.3 else None
            await store.put("shop", batch, once=once)
        case 4 | 5:
            for tool in ("find", "get"):
                own = {each.order: str(each.order).encode() for each in some if each.tool == tool}
                await store.put_vectors("shop", tool, own, version="1")
        case 6:
            assert await store.remove("shop", {each.order for each in some} | {10**6}) == len(some)
            await store.remove_expired(now_s)
        case 7:
            which = Filter(
                tag=chance.choice([None, "t1", "t2"]),
                tool=chance.choice([None, "find"]),
                environment=chance.choice([None, "e1"]),
                recorded_before_s=now_s - chance.choice([5.0, 20.0]),
            )
            assert await store.remove_where("shop", which) == sum(is_meant(each, which) for each in entries)
        case 8:
            targets = {each.order: any_entry(chance, now_s, tool=each.tool) for each in some}
            places = {order: (to.key, to.canonical, to.place) for order, to in targets.items()}
            await store.rekey("shop", places)
            for n, (key, _, _) in enumerate(places.values()):  # how late its new key was used is left to the store
                await store.touch("shop", [key], now_s + n / 100)
        case _:
            for n, each in enumerate(some):  # each at a time of its own: which of two goes first is left to the store
                await store.touch("shop", [each.key, "unknown"], now_s + n / 100)
            spare = {each.key for each in entries[:2]}
            await store.evict("shop", sum(each.size_bytes for each in entries) * 3 // 4, spare=spare)
            assert spare <= {each.key for each in await walked(store)}


def any_entry(chance: random.Random, now_s: float, tool: str | None = None) -> Entry:
    made = entry(
        chance.choice(["", "x", "\u00fc" * 9]),
        tool=tool or chance.choice(["find", "get"]),
        environment=chance.choice(["e1", "e2", "e3"]),
        a=chance.randint(0, 3),
    )
    return replace(
        made,
        tags=tuple(chance.sample(["t1", "t2", "t3"], chance.randint(0, 2))),
        recorded_at_s=now_s,
        expires_at_s=chance.choice([0.0, 0.0, now_s + 7.5]),
        seen=chance.randint(1, 3),
        place=chance.choice([made.place, Place(), Place(guard="h", equal="q")]),
    )


def is_meant(entry: Entry, which: Filter) -> bool:
    return (
        (which.tag is None or which.tag in entry.tags)
        and (which.tool is None or which.tool == entry.tool)
        and (which.environment is None or which.environment == entry.environment)
        and (which.recorded_before_s is None or entry.recorded_at_s < which.recorded_before_s)
    )


class Follower:
    """Vectors by order, kept up to date as an index keeps them."""

    def __init__(self, store: RedisStore) -> None:
        self._store = store
        self._cursor = ""
        self.vectors: dict[int, tuple[str, IndexedVector]] = {}

    async def follow(self) -> Changes:
        changes = await self._store.changes("shop", after=self._cursor, version="1")
        self._cursor = changes.cursor
        self.vectors |= {each.order: (tool, each) for tool, each in changes.added}
        for _, order in changes.removed:
            self.vectors.pop(order, None)
        if changes.moved or not changes.is_complete:
            self.vectors = await self.all_vectors()
        return changes

    async def all_vectors(self) -> dict[int, tuple[str, IndexedVector]]:
        return {
            each.order: (tool, each)
            for tool in ("find", "get")
            for each in await self._store.vectors("shop", tool, version="1")
        }


def contradictions(client: redis.Redis) -> list[str]:
    """What the indexes and counters of `shop` say, and its entries do not, or the other way round."""
    at = "toolcache:{shop}:"
    keys = [key.decode().removeprefix(at) for key in client.keys(f"{at}*")]

    def named(kind: str) -> list[str]:
        return [key.removeprefix(kind) for key in keys if key.startswith(kind)]

    rests = {
        int(order): msgspec.msgpack.decode(packed)
        for bucket in named("e:")
        for order, packed in client.hgetall(f"{at}e:{bucket}").items()
    }
    samples = {key: msgspec.msgpack.decode(client.get(f"{at}k:{key}")) for key in named("k:")}
    by_order = {each["order"]: (key, each) for key, own in samples.items() for each in own}
    expected: dict[str, set[int]] = defaultdict(set)
    for order, (_, tool, environment, _, _, _, _, equal, call, tags, _) in rests.items():
        for name in (f"t:{tool}", f"env:{environment}", *(f"tag:{tag}" for tag in tags)):
            expected[name].add(order)
        for name in (f"equal:{equal}" if equal else "", f"call:{call}" if call else ""):
            expected[name].add(order)
    expected.pop("", None)
    found = {
        name: {int(each) for each in members(client, at + name)}
        for name in keys
        if name.partition(":")[0] in ("t", "env", "tag", "equal", "call")
    }
    conflicts = dict.fromkeys({rest[1] for rest in rests.values()}, 0)
    for own in samples.values():
        conflicts[rests[own[0]["order"]][1]] += len(own) > 1
    meta = {name.decode(): int(value) for name, value in client.hgetall(f"{at}meta").items()}
    sizes = {
        order: len(by_order[order][1]["content"].encode()) + len((rest[5] or rest[4]).encode()) + OVERHEAD_BYTES
        for order, rest in rests.items()
    }
    claims = {
        "every entry has its sample, under its key": {order: rest[0] for order, rest in rests.items()}
        == {order: key for order, (key, _) in by_order.items()},
        "samples stand oldest first": all(
            own == sorted(own, key=lambda each: each["order"]) for own in samples.values()
        ),
        "no two samples of a key are the same result": all(
            len({each["result_digest"] for each in own}) == len(own) for own in samples.values()
        ),
        "indexes": found == dict(expected),
        "conflicts": {name.decode(): int(n) for name, n in client.hgetall(f"{at}tools").items()} == conflicts,
        "used": {key.decode() for key in members(client, f"{at}used")} == set(samples),
        "expires": {int(order): at_s for order, at_s in client.zrange(f"{at}expires", 0, -1, withscores=True)}
        == {order: each["expires_at_s"] for order, (_, each) in by_order.items() if each["expires_at_s"]},
        "sizes": {order: rest[10] for order, rest in rests.items()} == sizes,
        "bytes": meta.get("bytes", 0) == sum(sizes.values()),
        "environments": meta.get("environments", 0) == len({rest[2] for rest in rests.values()}),
        "vectors": {int(order) for n in named("v:") for order in client.hkeys(f"{at}v:{n}")} <= set(rests),
    }
    return [claim for claim, is_true in claims.items() if not is_true]


def members(client: redis.Redis, name: str) -> list[bytes]:
    found: list[bytes] = client.zrange(name, 0, -1) if client.type(name) == b"zset" else list(client.smembers(name))
    return found


# -- rekeying ----------------------------------------------------------------------------------------------------------


async def test_an_entry_that_moves_into_the_place_of_one_that_moves_away_is_not_united_with_it(
    store: RedisStore,
) -> None:
    # A chain through all slices: every entry takes the key of the one after it, all with the same result.
    count = 3 * redis_scripts.SLICE
    await store.put("shop", [entry("same", a=n) for n in range(count)])
    entries = await walked(store)
    places = {each.order: (after.key, after.canonical, after.place) for each, after in pairs(entries)}
    last = entry("same", a="last")
    places[entries[-1].order] = (last.key, last.canonical, last.place)
    await store.rekey("shop", places)
    moved = await walked(store)
    assert [each.key for each in moved] == [each.key for each in entries[1:]] + [last.key]
    assert {each.seen for each in moved} == {1}


async def test_an_entry_that_takes_in_a_younger_one_is_used_as_late_as_that(
    store: RedisStore, client: redis.Redis
) -> None:
    old, young, other = entry(a=1), replace(entry(a=2), recorded_at_s=3000.0), replace(entry(a=3), recorded_at_s=2000.0)
    await store.put("shop", [old, young, other])
    await store.rekey("shop", {1: (young.key, young.canonical, young.place)})
    assert contradictions(client) == []
    assert await store.evict("shop", young.size_bytes, spare=()) == 1
    assert [(each.order, each.key, each.seen) for each in await walked(store)] == [(1, young.key, 2)]


async def test_a_key_that_was_used_since_it_was_chosen_for_eviction_stays(store: RedisStore) -> None:
    one, two = entry(a=1), entry(a=2)
    await store.put("shop", [one, two])
    await store.touch("shop", [one.key], 2000.0)
    chosen = (one.key, "1000", two.key, "1000")
    assert await store._run(redis_scripts.EVICT, "shop", 0, *chosen) == [1, 1]
    assert [each.key for each in await walked(store)] == [one.key]


def pairs(entries: list[Entry]) -> Iterator[tuple[Entry, Entry]]:
    return itertools.pairwise(entries)


# -- changes -----------------------------------------------------------------------------------------------------------


async def test_a_follower_learns_that_changes_were_trimmed_away(store: RedisStore, client: redis.Redis) -> None:
    await store.put("shop", [entry(a=n) for n in range(4)])
    follower = Follower(store)
    await follower.follow()
    for order in (1, 2, 3):
        await store.put_vectors("shop", "find", {order: b"v"}, version="1")
    client.xtrim("toolcache:{shop}:changes", maxlen=2, approximate=False)
    assert not (await follower.follow()).is_complete
    await store.put_vectors("shop", "find", {4: b"v"}, version="1")
    client.xtrim("toolcache:{shop}:changes", maxlen=1, approximate=False)
    changes = await follower.follow()
    assert (changes.is_complete, [each.order for _, each in changes.added]) == (True, [4])


async def test_a_follower_learns_that_redis_came_back_without_its_last_changes(
    store: RedisStore, client: redis.Redis
) -> None:
    await store.put("shop", [entry(a=n) for n in range(4)])
    follower = Follower(store)
    await follower.follow()
    snapshot = {key: client.dump(key) for key in client.scan_iter()}
    await store.put_vectors("shop", "find", {1: b"v"}, version="1")
    assert (await follower.follow()).is_complete
    client.flushall()
    for key, dumped in snapshot.items():
        client.restore(key, 0, dumped)
    await store.put_vectors("shop", "find", {2: b"v"}, version="1")
    assert not (await follower.follow()).is_complete


@pytest.mark.parametrize("cursor", ["17", "17:3", "a b", "5-0 x", "5-x 1"])
async def test_the_cursor_of_another_store_asks_to_read_anew(store: RedisStore, cursor: str) -> None:
    await store.put("shop", [entry(a=1)])
    await store.put_vectors("shop", "find", {1: b"v"}, version="1")
    assert not (await store.changes("shop", after=cursor, version="1")).is_complete


async def test_more_changes_than_a_page_are_told_at_once(store: RedisStore) -> None:
    count = redis_scripts.SLICE + 20
    await store.put("shop", [entry(a=n) for n in range(count)])
    follower = Follower(store)
    await follower.follow()
    for order in range(1, count + 1):
        await store.put_vectors("shop", "find", {order: b"v"}, version="1")
    changes = await follower.follow()
    assert changes.is_complete
    assert [each.order for _, each in changes.added] == list(range(1, count + 1))


# -- connections -------------------------------------------------------------------------------------------------------


async def test_scripts_that_redis_has_forgotten_are_sent_again(store: RedisStore, client: redis.Redis) -> None:
    await store.put("shop", [entry(a=1)])
    client.script_flush()
    assert await store.put("shop", [entry(a=1)]) == [Outcome.KNOWN]
    assert [each.seen for each in await walked(store)] == [2]


async def test_a_caller_that_gives_up_leaves_no_answer_behind_for_the_next_one(store: RedisStore) -> None:
    entries = [entry(str(n), a=n) for n in range(40)]
    await store.put("shop", entries)
    for turns in range(6):
        asked = [asyncio.create_task(store.get("shop", [each.key])) for each in entries]
        for _ in range(turns):
            await asyncio.sleep(0)
        for each in asked[::2]:
            each.cancel()
        found = await asyncio.gather(*asked, return_exceptions=True)
        for each, one in zip(entries[1::2], found[1::2], strict=True):
            assert not isinstance(one, BaseException)
            assert [sample.content for sample in one.samples[0]] == [each.result.content]


async def test_more_callers_than_connections_wait_in_line(store: RedisStore, client: redis.Redis) -> None:
    await store.put("shop", [entry("found", a=1)])
    found = await asyncio.gather(*(store.get("shop", [entry(a=1).key]) for _ in range(300)))
    assert all(each.samples[0][0].content == "found" for each in found)
    assert client.info("clients")["connected_clients"] <= 33


async def test_writers_on_two_connections_lose_nothing(store: RedisStore, redis_url: str, client: redis.Redis) -> None:
    other = await RedisStore.open(redis_url)
    batches = [[entry(a=n % 50), entry(a=n)] for n in range(200)]
    outcomes = await asyncio.gather(*((store, other)[n % 2].put("shop", each) for n, each in enumerate(batches)))
    await other.close()
    counted = Counter(each for pair in outcomes for each in pair)
    assert counted == {Outcome.STORED: 200, Outcome.KNOWN: 200}
    assert sum(each.seen for each in await walked(store)) == 400
    assert contradictions(client) == []


@pytest.mark.parametrize(
    "url",
    [
        "redis://me:secret@127.0.0.1:{port}/0",
        "redis+cluster://me:secret@127.0.0.1:{port}",
        "redis://127.0.0.1:{port}/0?password=secret",
        "redis://127.0.0.1:{port}/nonsense?password=secret&socket_timeout=x",
        "http://me:secret@127.0.0.1:{port}/0",
    ],
)
async def test_what_cannot_be_opened_is_named_without_its_password(url: str, redis_url: str) -> None:
    port = redis_url.partition("127.0.0.1:")[2].partition("/")[0]
    with pytest.raises(StoreUnavailable) as raised:
        await RedisStore.open(url.format(port=port))
    assert f"127.0.0.1:{port}" in str(raised.value)
    assert "secret" not in str(raised.value)


async def test_a_server_that_can_lose_entries_is_told_to_the_operator(
    start_redis: StartRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Any] = []
    monkeypatch.setattr(redis_store, "log", lambda event, **fields: told.append((event, fields["risk"].split(":")[0])))
    await (await RedisStore.open(start_redis().url)).close()
    assert told == [("store_at_risk", "appendonly is off")]
    told.clear()
    await (await RedisStore.open(start_redis(is_durable=True).url)).close()
    assert told == []


# -- Cluster -----------------------------------------------------------------------------------------------------------


async def test_in_a_cluster_every_namespace_works_wherever_it_lies(redis_folder: Path) -> None:
    names = [f"shop-{n}" for n in range(8)]
    with running_cluster(redis_folder) as url:
        store, leases = await RedisStore.open(url), await RedisLeases.open(url)
        for n, name in enumerate(names):
            await store.put_namespace(Namespace(name=name, tools={}))
            assert await store.put(name, [entry(a=each) for each in range(150)]) == [Outcome.STORED] * 150
            assert (await store.get(name, [entry(a=n).key])).samples[0][0].order == n + 1
            (lease,) = await leases.acquire(name, ["k"], ttl_s=60)
            assert lease is not None
            waiting = asyncio.create_task(leases.wait(name, ["k"], timeout_s=60))
            await leases.settle(name, [lease.id])
            await waiting
            await store.rekey(name, {order: (f"k{order}", "{}", Place()) for order in range(1, 151)})
            await store.evict(name, await store.size_bytes(name) // 2, spare=["k1"])
            assert (await store.size(name)).entries == 75
        assert await store.namespaces() == names
        assert await store.remove_expired(2000.0) == 0
        assert [await store.delete_namespace(name) for name in names] == [75] * len(names)
        await leases.close()
        await store.close()
