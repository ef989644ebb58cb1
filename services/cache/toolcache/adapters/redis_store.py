"""Entries in Redis: one store for many replicas of the service.

Covered: Redis from 7.0 on and Valkey, alone or as a Cluster. Exact answers take one MGET, whatever the number of keys.
Changes are made by scripts, each of them whole or not there, whoever else writes; what changes more entries than
Redis should be held for (redis_scripts.SLICE) is done by several, so it can be seen, and cut off, half done.

How durable what `put` returned is, Redis decides:
    appendonly yes, appendfsync always     it survives a crash of Redis and of the machine. Use this
    appendonly yes, appendfsync everysec   a crash of the machine loses up to about a second (the default with AOF)
    appendonly no                          what came after the last snapshot is lost with Redis
A replica of Redis that takes over lacks what had not reached it yet, whatever is set.

Not covered: a namespace lies in one shard, since scripts need all of it; a Cluster spreads namespaces, not one
namespace. Nor a Redis that throws keys away by itself: set maxmemory-policy to noeviction, and limit namespaces by
`max_bytes`, which count about two thirds of the memory that entries of 1 KB take here. Nor samples of one key of more
than 512 MB together, the longest value that Redis takes.
"""

from __future__ import annotations

import asyncio
import dataclasses
import re
import secrets
from collections import defaultdict
from collections.abc import AsyncIterator, Collection, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, TypeVar

import msgspec

from toolcache.adapters import redis_scripts as scripts
from toolcache.adapters.redis_connection import TIMEOUT_S, Argument, RedisConnection, Script, slot
from toolcache.adapters.redis_scripts import SLICE
from toolcache.core.access import ApiKey
from toolcache.core.entries import Entry, Outcome, Place, Sample
from toolcache.core.ports import (
    Changes,
    Filter,
    Found,
    IndexedVector,
    Known,
    Once,
    Size,
    StoreUnavailable,
    Vector,
)
from toolcache.core.profile import Profile
from toolcache.core.tools import Namespace
from toolcache.core.trust import Evidence
from toolcache.telemetry import log

_T = TypeVar("_T")

SLICE_BYTES = 2**20
"""Bytes of entries that one script takes at most, if it takes more than one."""
PAGE = 64
"""Entries read at once when all are walked, and decoded without a pause: about a millisecond."""
PAGE_BYTES = 2**18
"""The same for large ones."""
MOST_SHARING = 8
"""Entries told of one `place.equal` or `place.call`."""
MOST_PASSES = 10
"""Times that a deletion begins again because something was recorded meanwhile."""
MOVING_S = 600
"""Seconds after which the plan of a rekeying that was cut off is forgotten."""
_Change = tuple[str, str, list[int]]
"""Kind (added, removed, moved), tool, orders."""
_CURSOR = re.compile(r"(\d{1,19}-\d{1,19}) (\d{1,19})")
_NOW = f"{2**64 - 1}-{2**64 - 2}"
"""Nothing in a stream comes after this id."""
_NAMESPACES = "toolcache:namespaces"
_API_KEYS = "toolcache:api_keys"
_OUTCOMES = (Outcome.STORED, Outcome.KNOWN, Outcome.CONFLICT)


class _Rest(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What an exact answer does not need of an entry. The scripts know its fields by their places."""

    key: str
    tool: str
    environment: str
    scope: str
    arguments: str
    """JSON as it was given, names in order."""
    canonical: str
    """Empty where it is the same text as `arguments`."""
    guard: str
    equal: str
    call: str
    tags: tuple[str, ...]
    size: int


_samples = msgspec.msgpack.Decoder(list[Sample])
_sample = msgspec.msgpack.Decoder(Sample)
_rest = msgspec.msgpack.Decoder(_Rest)
_pack = msgspec.msgpack.Encoder().encode


class RedisStore:
    """A Store in Redis. Create it with `open`."""

    def __init__(self, connection: RedisConnection) -> None:
        self._redis = connection
        self._asked: dict[str, list[tuple[Sequence[str], asyncio.Future[Found]]]] = {}
        """Reads that have not been sent yet, by namespace."""
        self._reading: set[asyncio.Task[None]] = set()

    @classmethod
    async def open(cls, url: str, *, timeout_s: float = TIMEOUT_S) -> RedisStore:
        """Raises StoreUnavailable. Settings of the server under which entries can be lost are told as events."""
        connection = await RedisConnection.open(url, timeout_s=timeout_s)
        for risk in _risks(connection.about):
            log("store_at_risk", store=connection.name, risk=risk)
        return cls(connection)

    async def close(self) -> None:
        await self._redis.close()

    # -- namespaces ----------------------------------------------------------------------------------------------------

    async def namespaces(self) -> list[str]:
        names = await self._all_names()
        exist = await asyncio.gather(*(self._redis.command("EXISTS", slot(name) + "revision") for name in names))
        return [name for name, exists in zip(names, exist, strict=True) if exists]

    async def known(self, namespace: str) -> Known | None:
        found = await self._run(scripts.KNOWN, namespace)
        if not found:
            return None
        revision, spec, profiles, evidence = found
        return Known(
            namespace=msgspec.json.decode(spec, type=Namespace),
            revision=int(revision),
            profiles={tool.decode(): msgspec.json.decode(text, type=Profile) for tool, text in _pairs(profiles)},
            shadows=_shadows(evidence),
        )

    async def put_namespace(self, namespace: Namespace) -> None:
        spec = msgspec.json.encode(namespace)
        # The name is noted before and after: a namespace nobody can list must not exist, and a deletion that was
        # under way may have struck the first note out.
        await self._redis.command("SADD", _NAMESPACES, namespace.name)
        while not await self._run(scripts.PUT_NAMESPACE, namespace.name, spec):
            await self._clear(namespace.name)
        await self._redis.command("SADD", _NAMESPACES, namespace.name)

    async def delete_namespace(self, namespace: str) -> int | None:
        if not await self._run(scripts.MARK_DELETED, namespace):
            return None
        return await self._clear(namespace)

    async def put_profiles(self, namespace: str, profiles: Mapping[str, Profile]) -> None:
        words = [word for tool, profile in profiles.items() for word in (tool, msgspec.json.encode(profile))]
        if words:
            await self._run(scripts.PUT_PROFILES, namespace, *words)

    async def add_evidence(
        self, namespace: str, tool: str, evidence: Mapping[str, Evidence], *, once: Once | None = None
    ) -> None:
        words: list[Argument] = []
        for kind, found in evidence.items():
            for side, count in dataclasses.asdict(found).items():
                words += (msgspec.json.encode([tool, str(kind), side]), count)
        if words:
            # No name of a slice that was put ends as JSON does.
            name = msgspec.json.encode([once.name, tool]) if once else b""
            keep_ms = _milliseconds(once.keep_s) if once else 0
            await self._run(scripts.ADD_EVIDENCE, namespace, name, keep_ms, *words)

    async def clear_evidence(self, namespace: str, tool: str) -> None:
        await self._run(scripts.CLEAR_EVIDENCE, namespace, tool)

    # -- entries -------------------------------------------------------------------------------------------------------

    async def get(self, namespace: str, keys: Sequence[str]) -> Found:
        # A command costs this process many times what a key costs, so what is asked in one turn of the event loop goes
        # together: a busy service then pays for one command where it would for ten.
        loop = asyncio.get_running_loop()
        asked = self._asked.get(namespace)
        if asked is None:
            asked = self._asked[namespace] = []
            loop.call_soon(self._send, namespace)
        answer: asyncio.Future[Found] = loop.create_future()
        asked.append((keys, answer))
        return await answer

    def _send(self, namespace: str) -> None:
        reading = asyncio.ensure_future(self._read_samples(namespace, self._asked.pop(namespace)))
        self._reading.add(reading)
        reading.add_done_callback(self._reading.discard)

    async def _read_samples(self, namespace: str, asked: Sequence[tuple[Sequence[str], asyncio.Future[Found]]]) -> None:
        at, decode = slot(namespace), _samples.decode
        try:
            names = [f"{at}k:{key}" for keys, _ in asked for key in keys]
            revision, *found = await self._redis.command("MGET", f"{at}revision", *names)
            samples = iter([decode(each) if each else () for each in found])
        except Exception as error:  # noqa: BLE001 - whatever it was, it belongs to those who asked
            for _, answer in asked:
                if not answer.done():
                    answer.set_exception(error)
            return
        for keys, answer in asked:
            own = list(islice(samples, len(keys)))
            if not answer.done():  # who gave up meanwhile asks no more
                answer.set_result(Found(revision=int(revision or 0), samples=own))

    async def put(self, namespace: str, entries: Sequence[Entry], *, once: Once | None = None) -> list[Outcome]:
        slices: list[bytes] = []
        for packed in _slices(entries):  # all of them first: what cannot be packed is refused before any is stored
            slices.append(packed)
            await asyncio.sleep(0)
        outcomes: list[Outcome] = []
        # One after the other: Redis answers others in between, as it would not if all were sent at once.
        for n, packed in enumerate(slices):
            words = (f"{once.name}:{n}", _milliseconds(once.keep_s)) if once else ()
            last_order, *done = await self._run(scripts.PUT, namespace, packed, *words)
            outcomes += [_OUTCOMES[each] for each in done]
            if last_order == 0:
                await self._redis.command("SADD", _NAMESPACES, namespace)
        return outcomes

    async def with_equal(self, namespace: str, equal: str) -> list[Entry]:
        return await self._sharing(namespace, "ZRANGE", f"equal:{equal}") if equal else []

    async def with_call(self, namespace: str, call: str) -> list[Entry]:
        return await self._sharing(namespace, "ZREVRANGE", f"call:{call}") if call else []

    async def by_order(self, namespace: str, orders: Sequence[int]) -> dict[int, Entry]:
        return {entry.order: entry async for entry in self._read(namespace, list(orders))}

    async def entries(self, namespace: str, tool: str | None = None, *, after: int = 0) -> AsyncIterator[Entry]:
        async for orders in self._orders(namespace, tool, after=after, count=PAGE):
            async for entry in self._read(namespace, orders):
                yield entry

    async def remove(self, namespace: str, orders: Collection[int]) -> int:
        return await self._remove(namespace, list(orders))

    async def remove_where(self, namespace: str, which: Filter) -> int:
        given = {name: value for name, value in dataclasses.asdict(which).items() if value is not None}
        removed = 0
        async for orders in self._candidates(namespace, which):
            removed += await self._remove(namespace, orders, _pack(given))
        return removed

    async def remove_expired(self, now_s: float) -> int:
        return sum([await self._remove_expired(name, now_s) for name in await self._all_names()])

    async def rekey(self, namespace: str, places: Mapping[int, tuple[str, str, Place]]) -> None:
        moves = [
            (order, key, canonical, place.guard, place.equal, place.call)
            for order, (key, canonical, place) in sorted(places.items())
        ]
        if len(moves) <= SLICE:
            await self._run(scripts.REKEY, namespace, _pack(moves))
            return
        # An entry that is still to leave a key must not be united with one that comes to it first.
        moving = f"{slot(namespace)}moving:{secrets.token_hex(8)}"
        for part in _parts(moves, SLICE):
            await self._redis.command("HSET", moving, *_flat((order, key) for order, key, *_ in part))
            await self._redis.command("EXPIRE", moving, MOVING_S)
        for part in _parts(moves, SLICE):
            await self._run(scripts.REKEY, namespace, _pack(part), moving)
        await self._redis.command("UNLINK", moving)

    async def touch(self, namespace: str, keys: Collection[str], at_s: float) -> None:
        # XX passes unknown keys over; GT, since another replica may know of a later use.
        for part in _parts(list(keys), SLICE):
            scored = _flat((at_s, key) for key in part)
            await self._redis.command("ZADD", slot(namespace) + "used", "XX", "GT", *scored)

    async def evict(self, namespace: str, max_bytes: int, *, spare: Collection[str]) -> int:
        used, spared = slot(namespace) + "used", frozenset(spare)
        removed, passed, is_too_much = 0, 0, 1
        while is_too_much:
            found = await self._redis.command("ZRANGE", used, passed, passed + SLICE - 1, "WITHSCORES")
            oldest = [(key, at_s) for key, at_s in _pairs(found) if key.decode() not in spared]
            if not found:
                break
            went, is_too_much = await self._run(scripts.EVICT, namespace, max_bytes, *_flat(oldest))
            removed += went
            passed += len(found) // 2 - len(oldest)
        return removed

    async def size(self, namespace: str) -> Size:
        size_bytes, environments, *tools = await self._run(scripts.SIZE, namespace)
        by_tool = {tool.decode(): (entries, int(conflicts)) for tool, entries, conflicts in _parts(tools, 3)}
        return Size(
            entries=sum(entries for entries, _ in by_tool.values()),
            size_bytes=int(size_bytes),
            environments=int(environments),
            tools=by_tool,
        )

    async def size_bytes(self, namespace: str) -> int:
        return int(await self._redis.command("HGET", slot(namespace) + "meta", "bytes") or 0)

    # -- vectors -------------------------------------------------------------------------------------------------------

    async def put_vectors(self, namespace: str, tool: str, vectors: Mapping[int, Vector], *, version: str) -> None:
        for part in _parts(list(vectors.items()), SLICE):
            await self._run(scripts.PUT_VECTORS, namespace, tool, version, *_flat(part))

    async def vectors(self, namespace: str, tool: str, *, version: str) -> list[IndexedVector]:
        found: list[IndexedVector] = []
        async for orders in self._orders(namespace, tool):
            found += [vector for _, vector in await self._vectors(namespace, orders, version)]
        return found

    async def changes(self, namespace: str, *, after: str, version: str) -> Changes:
        cursor, happened = await self._happened(namespace, after)
        if happened is None:
            return Changes(cursor=cursor, is_complete=False)
        touched = {order: tool for kind, tool, orders in happened if kind == "added" for order in orders}
        gone = {order: tool for kind, tool, orders in happened if kind == "removed" for order in orders}
        parts = [await self._vectors(namespace, part, version) for part in _parts(sorted(touched), SLICE)]
        added = [each for part in parts for each in part]
        # What came and has no vector of this version now went again, or was replaced by one of another version.
        removed = touched | gone
        for _, vector in added:
            removed.pop(vector.order, None)
        return Changes(
            cursor=cursor,
            is_complete=True,
            added=added,
            removed=[(tool, order) for order, tool in removed.items()],
            moved=frozenset(tool for kind, tool, _ in happened if kind == "moved"),
        )

    # -- access --------------------------------------------------------------------------------------------------------

    async def api_keys(self) -> list[ApiKey]:
        found = await self._redis.command("HVALS", _API_KEYS)
        return sorted((msgspec.json.decode(each, type=ApiKey) for each in found), key=lambda key: key.id)

    async def put_api_key(self, key: ApiKey) -> None:
        await self._redis.command("HSET", _API_KEYS, key.id, msgspec.json.encode(key))

    async def delete_api_key(self, key_id: str) -> bool:
        return bool(await self._redis.command("HDEL", _API_KEYS, key_id))

    # -- inside --------------------------------------------------------------------------------------------------------

    async def _run(self, script: Script, namespace: str, *words: Argument) -> Any:
        return await self._redis.run(script, slot(namespace) + "meta", *words)

    async def _all_names(self) -> list[str]:
        """Of namespaces, and of what was put without one or is not quite deleted."""
        return sorted(name.decode() for name in await self._redis.command("SMEMBERS", _NAMESPACES))

    async def _orders(
        self, namespace: str, tool: str | None = None, *, after: int = 0, count: int = SLICE
    ) -> AsyncIterator[list[int]]:
        """Orders of all entries, or of a tool's, page after page."""
        while after >= 0:
            words = () if tool is None else (tool,)
            after, *orders = map(int, await self._run(scripts.ORDERS, namespace, after, count, *words))
            if orders:
                yield orders

    async def _read(self, namespace: str, orders: Sequence[int]) -> AsyncIterator[Entry]:
        """These entries, in the order asked."""
        while orders:
            part = orders[:PAGE]
            count, *rows = await self._run(scripts.ROWS, namespace, _pack(part), PAGE_BYTES)
            for entry in _entries(rows):
                yield entry
            orders = orders[count:]

    async def _sharing(self, namespace: str, how: str, index: str) -> list[Entry]:
        _, *rows = await self._run(scripts.ROWS_OF, namespace, how, index, MOST_SHARING)
        return list(_entries(rows))

    async def _happened(self, namespace: str, after: str) -> tuple[str, list[_Change] | None]:
        """The cursor of now, and what happened since another one; None if that cannot be told.

        A cursor is the id of a change, and how many changes had been made by then. Those found after it must be as many
        as were made since: else some were trimmed away, or Redis came back without the last ones that it had told.
        """
        begun = _CURSOR.fullmatch(after)
        last_id, happened = begun[1] if begun else _NOW, list[_Change]()
        while True:
            made, newest_id, page = await self._run(scripts.CHANGES, namespace, last_id, SLICE)
            for _, (_, kind, _, tool, _, orders) in page:
                happened.append((kind.decode(), tool.decode(), list(map(int, orders.split()))))
            if len(page) < SLICE:
                break
            last_id = page[-1][0].decode()
        is_complete = begun is not None and int(begun[2]) + len(happened) == made
        return f"{newest_id.decode()} {made}", happened if is_complete else None

    async def _vectors(self, namespace: str, orders: Sequence[int], version: str) -> list[tuple[str, IndexedVector]]:
        rows = await self._run(scripts.VECTORS, namespace, _pack(orders), version)
        return [
            (tool.decode(), IndexedVector(order=order, guard=guard.decode(), vector=vector))
            for tool, order, guard, vector in _parts(rows, 4)
        ]

    async def _candidates(self, namespace: str, which: Filter) -> AsyncIterator[list[int]]:
        """Orders among which are all that the filter means, by the narrowest index there is."""
        if which.tag is None and which.environment is None:
            async for orders in self._orders(namespace, which.tool):
                yield orders
            return
        index = f"tag:{which.tag}" if which.tag is not None else f"env:{which.environment}"
        cursor = b"0"
        while True:
            cursor, members = await self._redis.command("SSCAN", slot(namespace) + index, cursor, "COUNT", SLICE)
            yield list(map(int, members))
            if int(cursor) == 0:
                return

    async def _remove(self, namespace: str, orders: Sequence[int], *which: bytes) -> int:
        return sum([await self._run(scripts.REMOVE, namespace, _pack(part), *which) for part in _parts(orders, SLICE)])

    async def _remove_expired(self, namespace: str, now_s: float) -> int:
        removed, looked_at = 0, SLICE
        while looked_at == SLICE:
            looked_at, went = await self._run(scripts.REMOVE_EXPIRED, namespace, repr(now_s), SLICE)
            removed += went
        return removed

    async def _clear(self, namespace: str) -> int:
        """Bring a deletion to its end, whoever began it."""
        removed = 0
        for _ in range(MOST_PASSES):
            async for orders in self._orders(namespace):
                removed += await self._remove(namespace, orders)
            await self._redis.command("SREM", _NAMESPACES, namespace)
            if await self._run(scripts.FINISH_DELETION, namespace):
                return removed
        raise StoreUnavailable(
            f"redis {self._redis.name}: namespace {namespace} is written to while it is deleted; delete it again"
        )


def _risks(about: Mapping[str, Any]) -> Iterator[str]:
    """What an operator should know of a server, by what it says of itself.

    >>> list(_risks({"aof_enabled": 0, "maxmemory_policy": "allkeys-lru", "maxmemory": 2**30}))[0]
    'appendonly is off: entries recorded after the last snapshot are lost when Redis stops'
    >>> list(_risks({"aof_enabled": 1, "maxmemory_policy": "noeviction", "maxmemory": 2**30}))
    []
    """
    if not about.get("aof_enabled"):
        yield "appendonly is off: entries recorded after the last snapshot are lost when Redis stops"
    if about.get("maxmemory") and str(about.get("maxmemory_policy")).startswith("allkeys"):
        yield "maxmemory-policy lets Redis throw away any key: set it to noeviction, and limit namespaces by max_bytes"


def _slices(entries: Iterable[Entry]) -> Iterator[bytes]:
    """Packed entries, as many as one script may take."""
    items: list[msgspec.Raw] = []
    held = 0
    for entry in entries:
        item = _packed(entry)
        if items and (len(items) == SLICE or held + len(item) > SLICE_BYTES):
            yield _pack(items)
            items, held = [], 0
        items.append(msgspec.Raw(item))
        held += len(item)
    if items:
        yield _pack(items)


def _packed(entry: Entry) -> bytes:
    arguments = msgspec.json.encode(entry.arguments, order="sorted").decode()
    rest = _Rest(
        key=entry.key,
        tool=entry.tool,
        environment=entry.environment,
        scope=entry.scope,
        arguments=arguments,
        canonical="" if entry.canonical == arguments else entry.canonical,
        guard=entry.place.guard,
        equal=entry.place.equal,
        call=entry.place.call,
        tags=entry.tags,
        size=entry.size_bytes,
    )
    sample = Sample(
        result_digest=entry.result_digest,
        content=entry.result.content,
        is_error=entry.result.is_error,
        took_s=entry.result.took_s,
        seen=entry.seen,
        order=0,
        recorded_at_s=entry.recorded_at_s,
        expires_at_s=entry.expires_at_s,
    )
    return _pack((rest, sample))


def _entries(rows: Sequence[bytes]) -> Iterator[Entry]:
    for packed_rest, packed_sample in _parts(rows, 2):
        rest, sample = _rest.decode(packed_rest), _sample.decode(packed_sample)
        yield Entry(
            key=rest.key,
            scope=rest.scope,
            environment=rest.environment,
            tool=rest.tool,
            arguments=msgspec.json.decode(rest.arguments),
            canonical=rest.canonical or rest.arguments,
            result=sample.result,
            result_digest=sample.result_digest,
            place=Place(guard=rest.guard, equal=rest.equal, call=rest.call),
            recorded_at_s=sample.recorded_at_s,
            expires_at_s=sample.expires_at_s,
            tags=rest.tags,
            seen=sample.seen,
            order=sample.order,
        )


def _shadows(evidence: Sequence[bytes]) -> dict[str, dict[str, Evidence]]:
    counts: dict[str, dict[str, dict[str, int]]] = defaultdict(lambda: defaultdict(dict))
    for name, count in _pairs(evidence):
        tool, kind, side = msgspec.json.decode(name)
        counts[tool][kind][side] = int(count)
    return {tool: {kind: Evidence(**each) for kind, each in kinds.items()} for tool, kinds in counts.items()}


def _pairs(flat: Sequence[bytes]) -> Iterator[tuple[bytes, bytes]]:
    return zip(flat[::2], flat[1::2], strict=True)


def _flat(pairs: Iterable[tuple[Argument, Argument]]) -> list[Argument]:
    return [each for pair in pairs for each in pair]


def _parts(whole: Sequence[_T], size: int) -> Iterator[Sequence[_T]]:
    return (whole[start : start + size] for start in range(0, len(whole), size))


def _milliseconds(seconds: float) -> int:
    return max(1, round(seconds * 1000))
