"""Entries in this process only: for an audit's fresh cache and for tests. Nothing outlives the process."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace

from toolcache.core.entries import Entry, Outcome
from toolcache.core.ports import StoredVector, Vector
from toolcache.core.profile import Profile
from toolcache.core.tools import Namespace


class _Shelf:
    """One namespace's entries, and the ways to find them."""

    def __init__(self) -> None:
        self.entries: dict[int, Entry] = {}
        self.by_key: dict[str, list[int]] = defaultdict(list)
        self.by_guard: dict[str, set[int]] = defaultdict(set)
        self.by_call: dict[str, list[int]] = defaultdict(list)
        self.vectors: dict[str, list[StoredVector]] = defaultdict(list)
        self.with_vector: set[int] = set()


class MemoryStore:
    """A Store of dictionaries."""

    def __init__(self) -> None:
        self._revision = 0
        self._order = 0
        self._namespaces: dict[str, Namespace] = {}
        self._profiles: dict[str, dict[str, Profile]] = defaultdict(dict)
        self._shelves: dict[str, _Shelf] = defaultdict(_Shelf)

    async def revision(self) -> int:
        return self._revision

    async def namespaces(self) -> dict[str, Namespace]:
        return dict(self._namespaces)

    async def put_namespace(self, namespace: Namespace) -> None:
        self._namespaces[namespace.name] = namespace
        self._revision += 1

    async def profiles(self, namespace: str) -> dict[str, Profile]:
        return dict(self._profiles[namespace])

    async def put_profiles(self, namespace: str, profiles: Mapping[str, Profile]) -> None:
        self._profiles[namespace] |= profiles
        self._revision += 1

    async def get(self, namespace: str, keys: Sequence[str]) -> list[tuple[Entry, ...]]:
        shelf = self._shelves[namespace]
        return [tuple(shelf.entries[order] for order in shelf.by_key.get(key, ())) for key in keys]

    async def put(self, namespace: str, entries: Sequence[Entry]) -> list[Outcome]:
        return [self._put(self._shelves[namespace], entry) for entry in entries]

    def _put(self, shelf: _Shelf, entry: Entry) -> Outcome:
        samples = shelf.by_key[entry.key]
        for order in samples:
            if shelf.entries[order].result_digest == entry.result_digest:
                shelf.entries[order] = replace(shelf.entries[order], seen=shelf.entries[order].seen + entry.seen)
                return Outcome.KNOWN
        self._order += 1
        shelf.entries[self._order] = replace(entry, order=self._order)
        samples.append(self._order)
        shelf.by_call[entry.call_digest].append(self._order)
        if entry.guard:
            shelf.by_guard[entry.guard].add(self._order)
        return Outcome.STORED if len(samples) == 1 else Outcome.CONFLICT

    async def with_guard(self, namespace: str, guard: str) -> tuple[Entry, ...]:
        shelf = self._shelves[namespace]
        return tuple(shelf.entries[order] for order in sorted(shelf.by_guard.get(guard, ())))

    async def with_call(self, namespace: str, call_digest: str) -> tuple[Entry, ...]:
        shelf = self._shelves[namespace]
        return tuple(shelf.entries[order] for order in shelf.by_call.get(call_digest, ()))

    async def by_order(self, namespace: str, orders: Sequence[int]) -> dict[int, Entry]:
        entries = self._shelves[namespace].entries
        return {order: entries[order] for order in orders if order in entries}

    async def entries(self, namespace: str, tool: str | None = None) -> AsyncIterator[Entry]:
        for entry in list(self._shelves[namespace].entries.values()):
            if tool is None or entry.tool == tool:
                yield entry

    async def set_guards(self, namespace: str, guards: Mapping[int, str]) -> None:
        shelf = self._shelves[namespace]
        for order, guard in guards.items():
            entry = shelf.entries[order]
            shelf.by_guard[entry.guard].discard(order)
            shelf.entries[order] = replace(entry, guard=guard)
            if guard:
                shelf.by_guard[guard].add(order)

    async def put_vectors(self, namespace: str, tool: str, vectors: Mapping[int, Vector]) -> None:
        shelf = self._shelves[namespace]
        for entry_order, vector in vectors.items():
            if entry_order not in shelf.with_vector:
                shelf.with_vector.add(entry_order)
                own = shelf.vectors[tool]
                own.append(StoredVector(order=len(own) + 1, entry_order=entry_order, vector=vector))

    async def vectors(self, namespace: str, tool: str, *, after: int) -> list[StoredVector]:
        return self._shelves[namespace].vectors[tool][after:]

    async def counts(self, namespace: str) -> dict[str, tuple[int, int]]:
        shelf = self._shelves[namespace]
        entries = Counter(entry.tool for entry in shelf.entries.values())
        conflicts = Counter(shelf.entries[orders[0]].tool for orders in shelf.by_key.values() if len(orders) > 1)
        return {tool: (entries[tool], conflicts[tool]) for tool in entries}

    async def environments(self, namespace: str) -> int:
        return len({entry.environment for entry in self._shelves[namespace].entries.values()})

    async def close(self) -> None:
        return None
