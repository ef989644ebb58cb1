"""Entries in this process only: for an audit's fresh cache and for tests. Nothing outlives the process."""

from __future__ import annotations

import heapq
import math
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from toolcache.core.access import ApiKey
from toolcache.core.entries import CLOCK_SKEW_S, MOST_RESULTS, Entry, Outcome, Place, Sample
from toolcache.core.ports import Changes, Filter, Found, IndexedVector, Known, Once, Size, Vector
from toolcache.core.profile import Profile
from toolcache.core.tools import Namespace
from toolcache.core.trust import Evidence

LOG_KEPT = 1 << 15
"""Entries whose last change of a vector is remembered."""
MOST_DONORS = 8
"""Entries that `with_equal` and `with_call` return."""


class MemoryStore:
    """A Store of dictionaries."""

    def __init__(self) -> None:
        self._revision = 0
        self._made = 0
        self._shelves: dict[str, _Shelf] = {}
        self._api_keys: dict[str, ApiKey] = {}

    def _shelf(self, namespace: str) -> _Shelf:
        """The namespace's own; one that was unknown has one from now on."""
        if namespace not in self._shelves:
            self._made += 1
            self._shelves[namespace] = _Shelf(number=self._made)
        return self._shelves[namespace]

    def _find(self, namespace: str) -> _Shelf:
        """The namespace's own to look at; an empty one if it is unknown."""
        return self._shelves.get(namespace) or _Shelf(number=0)

    def _revise(self, shelf: _Shelf) -> None:
        self._revision += 1
        shelf.changed_at = self._revision

    # -- namespaces ----------------------------------------------------------------------------------------------------

    async def namespaces(self) -> list[str]:
        return sorted(name for name, shelf in self._shelves.items() if shelf.namespace is not None)

    async def known(self, namespace: str) -> Known | None:
        shelf = self._find(namespace)
        if shelf.namespace is None:
            return None
        return Known(
            namespace=shelf.namespace,
            revision=shelf.revision,
            profiles=dict(shelf.profiles),
            shadows={tool: dict(found) for tool, found in shelf.shadows.items()},
        )

    async def put_namespace(self, namespace: Namespace) -> None:
        shelf = self._shelf(namespace.name)
        shelf.namespace = namespace
        self._revise(shelf)

    async def delete_namespace(self, namespace: str) -> int | None:
        shelf = self._shelves.pop(namespace, None)
        if shelf is None or (shelf.namespace is None and not shelf.entries):
            return None
        return len(shelf.entries)

    async def put_profiles(self, namespace: str, profiles: Mapping[str, Profile]) -> None:
        shelf = self._shelf(namespace)
        shelf.profiles.update(profiles)
        self._revise(shelf)

    async def add_evidence(
        self, namespace: str, tool: str, evidence: Mapping[str, Evidence], *, once: Once | None = None
    ) -> None:
        shelf = self._shelf(namespace)
        if shelf.is_again(once, tool):
            return
        found = shelf.shadows.setdefault(tool, {})
        for kind, more in evidence.items():
            had = found.get(kind, Evidence())
            found[kind] = Evidence(right=had.right + more.right, served=had.served + more.served)
        self._revise(shelf)

    async def clear_evidence(self, namespace: str, tool: str) -> None:
        shelf = self._find(namespace)
        shelf.shadows.pop(tool, None)
        self._revise(shelf)

    # -- entries -------------------------------------------------------------------------------------------------------

    async def get(self, namespace: str, keys: Sequence[str]) -> Found:
        shelf = self._find(namespace)
        samples = [[_sample(shelf.entries[order]) for order in sorted(shelf.by_key.get(key, ()))] for key in keys]
        return Found(revision=shelf.revision, samples=samples)

    async def put(self, namespace: str, entries: Sequence[Entry], *, once: Once | None = None) -> list[Outcome]:
        sizes = [entry.size_bytes for entry in entries]  # what has no size is refused before anything is changed
        shelf = self._shelf(namespace)
        is_again = shelf.is_again(once)
        shelf.orders += len(sizes)
        first = shelf.orders - len(sizes) + 1
        return [shelf.put(replace(entry, order=first + i), is_again=is_again) for i, entry in enumerate(entries)]

    async def with_equal(self, namespace: str, equal: str) -> list[Entry]:
        shelf = self._find(namespace)
        return [shelf.entries[order] for order in heapq.nsmallest(MOST_DONORS, shelf.by_equal.get(equal, ()))]

    async def with_call(self, namespace: str, call: str) -> list[Entry]:
        shelf = self._find(namespace)
        return [shelf.entries[order] for order in heapq.nlargest(MOST_DONORS, shelf.by_call.get(call, ()))]

    async def by_order(self, namespace: str, orders: Sequence[int]) -> dict[int, Entry]:
        entries = self._find(namespace).entries
        return {order: entries[order] for order in orders if order in entries}

    async def entries(self, namespace: str, tool: str | None = None, *, after: int = 0) -> AsyncIterator[Entry]:
        for entry in list(self._find(namespace).entries.values()):
            if entry.order > after and tool in (None, entry.tool):
                yield entry

    async def remove(self, namespace: str, orders: Collection[int]) -> int:
        shelf = self._find(namespace)
        return sum([shelf.remove(order) for order in set(orders)])

    async def remove_where(self, namespace: str, which: Filter) -> int:
        shelf = self._find(namespace)
        return await self.remove(namespace, [n for n, entry in shelf.entries.items() if _passes(entry, which)])

    async def remove_expired(self, now_s: float) -> int:
        return sum([shelf.remove_expired(now_s) for shelf in self._shelves.values()])

    async def rekey(self, namespace: str, places: Mapping[int, tuple[str, str, Place]]) -> None:
        shelf = self._find(namespace)
        pending = set(places)
        for order in sorted(places):
            pending.discard(order)
            if order in shelf.entries:
                key, canonical, place = places[order]
                shelf.move(replace(shelf.entries[order], key=key, canonical=canonical, place=place), pending)

    async def touch(self, namespace: str, keys: Collection[str], at_s: float) -> None:
        shelf = self._find(namespace)
        for key in keys:
            if key in shelf.used_s:
                shelf.used_s[key] = max(shelf.used_s[key], at_s)

    async def evict(self, namespace: str, max_bytes: int, *, spare: Collection[str]) -> int:
        return self._find(namespace).evict(max_bytes, frozenset(spare))

    async def size(self, namespace: str) -> Size:
        shelf = self._find(namespace)
        entries = Counter(entry.tool for entry in shelf.entries.values())
        conflicts = Counter(shelf.entries[min(orders)].tool for orders in shelf.by_key.values() if len(orders) > 1)
        return Size(
            entries=len(shelf.entries),
            size_bytes=shelf.size_bytes,
            environments=len({entry.environment for entry in shelf.entries.values()}),
            tools={tool: (entries[tool], conflicts[tool]) for tool in entries},
        )

    async def size_bytes(self, namespace: str) -> int:
        return self._find(namespace).size_bytes

    # -- vectors -------------------------------------------------------------------------------------------------------

    async def put_vectors(self, namespace: str, tool: str, vectors: Mapping[int, Vector], *, version: str) -> None:
        shelf = self._find(namespace)
        for order, vector in vectors.items():
            entry, had = shelf.entries.get(order), shelf.vectors.get(order)
            if entry is not None and entry.tool == tool and (had is None or had.version != version):
                shelf.vectors[order] = _Versioned(version, vector)
                shelf.note(entry)

    async def vectors(self, namespace: str, tool: str, *, version: str) -> list[IndexedVector]:
        shelf = self._find(namespace)
        orders = [order for order in sorted(shelf.vectors) if shelf.entries[order].tool == tool]
        found = (shelf.indexed(order, version) for order in orders)
        return [vector for vector in found if vector is not None]

    async def changes(self, namespace: str, *, after: str, version: str) -> Changes:
        return self._find(namespace).changes(after, version)

    # -- access --------------------------------------------------------------------------------------------------------

    async def api_keys(self) -> list[ApiKey]:
        return [self._api_keys[key_id] for key_id in sorted(self._api_keys)]

    async def put_api_key(self, key: ApiKey) -> None:
        self._api_keys[key.id] = key

    async def delete_api_key(self, key_id: str) -> bool:
        return self._api_keys.pop(key_id, None) is not None

    async def close(self) -> None:
        return None


@dataclass(frozen=True, slots=True)
class _Versioned:
    """A vector and the model that made it."""

    version: str
    vector: Vector


class _Shelf:
    """What one namespace holds, and the ways to find it."""

    def __init__(self, *, number: int) -> None:
        self.number = number
        self.namespace: Namespace | None = None
        self.changed_at = 0
        self.profiles: dict[str, Profile] = {}
        self.shadows: dict[str, dict[str, Evidence]] = {}
        self.orders = 0
        """The last one given."""
        self.entries: dict[int, Entry] = {}
        self.by_key: dict[str, set[int]] = defaultdict(set)
        self.by_equal: dict[str, set[int]] = defaultdict(set)
        self.by_call: dict[str, set[int]] = defaultdict(set)
        self.used_s: dict[str, float] = {}
        self.size_bytes = 0
        self.vectors: dict[int, _Versioned] = {}
        self.log: dict[int, tuple[int, str]] = {}
        """By order: when its vector last came, changed or went, counted from 1, and its tool; the latest stand last."""
        self.logged = 0
        self.lost = 0
        """The latest change that is no longer in the log."""
        self.onces: dict[tuple[str, str | None], tuple[float, float | None]] = {}
        """By name, and by tool if it was given with evidence: seconds to keep it, and until when, if that is known."""

    @property
    def revision(self) -> int:
        return 0 if self.namespace is None else self.changed_at

    def is_again(self, once: Once | None, tool: str | None = None) -> bool:
        """Whether this was given before; from now on it was."""
        if once is None:
            return False
        if (once.name, tool) in self.onces:
            return True
        self.onces[once.name, tool] = (once.keep_s, None)
        return False

    def put(self, entry: Entry, *, is_again: bool) -> Outcome:
        for order in list(self.by_key.get(entry.key, ())):
            if 0 < self.entries[order].expires_at_s <= entry.recorded_at_s:
                self.remove(order)
        same = self._twin(entry, pending=())
        if same is None:
            self._make_room(entry.key)
            self._add(entry)
            return Outcome.STORED if len(self.by_key[entry.key]) == 1 else Outcome.CONFLICT
        if not is_again:
            self.entries[same.order] = _added_up(same, entry, skew_s=CLOCK_SKEW_S)
            self.used_s[entry.key] = max(self.used_s[entry.key], entry.recorded_at_s)
        return Outcome.KNOWN

    def _make_room(self, key: str) -> None:
        """For one more result of the key."""
        orders = self.by_key.get(key, ())
        if len(orders) >= MOST_RESULTS:
            least_first = sorted(orders, key=lambda order: (self.entries[order].seen, order))
            for order in least_first[: len(orders) - MOST_RESULTS + 1]:
                self.remove(order)

    def _twin(self, entry: Entry, pending: Collection[int]) -> Entry | None:
        """Another entry of the same key and result, unless it will leave that key."""
        for order in self.by_key.get(entry.key, ()):
            other = self.entries[order]
            if other.result_digest == entry.result_digest and order != entry.order and order not in pending:
                return other
        return None

    def _add(self, entry: Entry) -> None:
        self.entries[entry.order] = entry
        self.size_bytes += entry.size_bytes
        self.used_s[entry.key] = max(self.used_s.get(entry.key, entry.recorded_at_s), entry.recorded_at_s)
        self._find_by(entry)

    def _find_by(self, entry: Entry) -> None:
        self.by_key[entry.key].add(entry.order)
        if entry.place.equal:
            self.by_equal[entry.place.equal].add(entry.order)
        if entry.place.call:
            self.by_call[entry.place.call].add(entry.order)

    def _find_no_more(self, entry: Entry) -> None:
        own = ((self.by_key, entry.key), (self.by_equal, entry.place.equal), (self.by_call, entry.place.call))
        for index, digest in own:
            index[digest].discard(entry.order)
            if not index[digest]:
                del index[digest]
        if entry.key not in self.by_key:
            del self.used_s[entry.key]

    def remove(self, order: int) -> bool:
        entry = self.entries.pop(order, None)
        if entry is None:
            return False
        self.size_bytes -= entry.size_bytes
        self._find_no_more(entry)
        if self.vectors.pop(order, None) is not None:
            self.note(entry)
        return True

    def remove_expired(self, now_s: float) -> int:
        """Also forgets names of requests, `keep_s` after they are first seen here."""
        self.onces = {
            name: (keep_s, now_s + keep_s if until_s is None else until_s)
            for name, (keep_s, until_s) in self.onces.items()
            if until_s is None or until_s > now_s
        }
        expired = [order for order, entry in self.entries.items() if 0 < entry.expires_at_s <= now_s]
        return sum([self.remove(order) for order in expired])

    def move(self, entry: Entry, pending: Collection[int]) -> None:
        """Write an entry anew. Nothing is merged with what is still `pending`, since that will leave its key."""
        before = self.entries[entry.order]
        used_s = self.used_s[before.key]
        self._find_no_more(before)
        self.entries[entry.order] = entry
        self.size_bytes += entry.size_bytes - before.size_bytes
        self.used_s[entry.key] = max(self.used_s.get(entry.key, used_s), used_s)
        self._find_by(entry)
        twin = self._twin(entry, pending)
        if twin is not None:
            older, younger = sorted((entry, twin), key=lambda each: each.order)
            self.entries[older.order] = _added_up(older, younger)
            self.remove(younger.order)
        if entry.order in self.vectors:
            self.note(entry)

    def evict(self, max_bytes: int, spare: frozenset[str]) -> int:
        removed = 0
        for key in sorted(self.used_s, key=lambda key: (self.used_s[key], min(self.by_key[key]))):
            if self.size_bytes <= max_bytes:
                break
            if key not in spare:
                removed += sum([self.remove(order) for order in list(self.by_key[key])])
        return removed

    def note(self, entry: Entry) -> None:
        """The vector of this entry came, changed or went."""
        self.logged += 1
        self.log.pop(entry.order, None)
        self.log[entry.order] = (self.logged, entry.tool)
        if len(self.log) > LOG_KEPT:
            self.lost, _ = self.log.pop(next(iter(self.log)))

    def indexed(self, order: int, version: str) -> IndexedVector | None:
        had = self.vectors.get(order)
        if had is None or had.version != version:
            return None
        return IndexedVector(order=order, guard=self.entries[order].place.guard, vector=had.vector)

    def changes(self, after: str, version: str) -> Changes:
        cursor = f"{self.number}-{self.logged}"
        number, _, last = after.partition("-")
        if number != str(self.number) or not last.isdecimal() or not self.lost <= int(last) <= self.logged:
            return Changes(cursor=cursor, is_complete=False)
        added: list[tuple[str, IndexedVector]] = []
        removed: list[tuple[str, int]] = []
        for order, (at, tool) in reversed(self.log.items()):
            if at <= int(last):
                break
            vector = self.indexed(order, version)
            if vector is None:
                removed.append((tool, order))
            else:
                added.append((tool, vector))
        return Changes(cursor=cursor, is_complete=True, added=added[::-1], removed=removed[::-1])


def _sample(entry: Entry) -> Sample:
    return Sample(
        result_digest=entry.result_digest,
        content=entry.result.content,
        is_error=entry.result.is_error,
        took_s=entry.result.took_s,
        seen=entry.seen,
        order=entry.order,
        recorded_at_s=entry.recorded_at_s,
        expires_at_s=entry.expires_at_s,
    )


def _added_up(kept: Entry, again: Entry, *, skew_s: float = math.inf) -> Entry:
    """One entry for two of the same key and result, as new as the later; one later by more than `skew_s` is wrong."""
    newer = kept if 0 < kept.recorded_at_s - again.recorded_at_s <= skew_s else again
    return replace(
        kept,
        seen=kept.seen + again.seen,
        recorded_at_s=newer.recorded_at_s,
        expires_at_s=newer.expires_at_s,
        tags=tuple(sorted({*kept.tags, *again.tags})) if again.tags else kept.tags,
    )


def _passes(entry: Entry, which: Filter) -> bool:
    return (
        which.tool in (None, entry.tool)
        and (which.tag is None or which.tag in entry.tags)
        and which.environment in (None, entry.environment)
        and (which.recorded_before_s is None or entry.recorded_at_s < which.recorded_before_s)
    )
