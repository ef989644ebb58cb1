"""Keep the vector index equal to the store, whoever writes to it: this process, another replica, an import.

A partition (namespace and tool) is read whole when it is first asked for, and follows the store's changes from then
on. Where changes were lost, because this process slept longer than the store remembers them, it is read whole again.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from contextlib import suppress
from weakref import WeakValueDictionary

from toolcache.core.ports import Changes, IndexedVector, Partition, Store, StoreUnavailable, VectorIndex

PAUSE_S = 0.25
"""Between two looks at the store, for what nobody asks for: a similar answer must be there within a second."""


class Following:
    """An index that follows a store. Its methods raise StoreUnavailable; the index then is as it was."""

    def __init__(self, store: Store, index: VectorIndex, version: str) -> None:
        self._store = store
        self._index = index
        self._version = version
        self._cursors: dict[str, str] = {}
        self._read: dict[str, set[str]] = defaultdict(set)
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._coming: dict[str, asyncio.Future[None]] = {}
        """Readings of changes that have not begun."""

    async def catch_up(self, partition: Partition) -> None:
        """Bring one partition up to the store, as it was when this was called or later."""
        namespace, tool = partition
        await self.follow(namespace)
        if tool not in self._read[namespace]:
            async with self._lock(namespace):
                if tool not in self._read[namespace]:
                    await self._read_whole(partition)

    async def run(self) -> None:
        """Follow what has been asked for, until cancelled; a store that is away is asked again later."""
        while True:
            await asyncio.sleep(PAUSE_S)
            for namespace in list(self._cursors):
                with suppress(StoreUnavailable):  # who asks for an answer meanwhile is told
                    await self.follow(namespace)
                if not self._read[namespace]:  # nobody asks for it any more, or it is gone
                    await self.forget(namespace)

    async def follow(self, namespace: str) -> None:
        """Read the changes once for all who ask before the reading begins: a queue of them would take turns."""
        coming = self._coming.get(namespace)
        if coming is None:
            coming = self._coming[namespace] = asyncio.ensure_future(self._follow_next(namespace))
        await asyncio.shield(coming)  # one caller that gives up stops nobody else

    async def _follow_next(self, namespace: str) -> None:
        async with self._lock(namespace):
            self._coming.pop(namespace, None)  # from here on the next one has to read anew
            await self._follow(namespace)

    def _lock(self, namespace: str) -> asyncio.Lock:
        """Lives as long as somebody holds it or waits for it."""
        return self._locks.setdefault(namespace, asyncio.Lock())

    async def forget(self, namespace: str) -> None:
        """Hold nothing of the namespace any more."""
        async with self._lock(namespace):
            self._cursors.pop(namespace, None)
            await self._drop_all(namespace)
            self._read.pop(namespace, None)

    async def _drop_all(self, namespace: str) -> None:
        for tool in self._read[namespace]:
            await self._index.drop((namespace, tool))
        self._read[namespace].clear()

    async def _follow(self, namespace: str) -> None:
        changes = await self._store.changes(namespace, after=self._cursors.get(namespace, ""), version=self._version)
        if changes.is_complete:
            await self._apply(namespace, changes)
        else:
            await self._drop_all(namespace)
        self._cursors[namespace] = changes.cursor

    async def _apply(self, namespace: str, changes: Changes) -> None:
        """What was added and then removed ends up removed: an order is never used twice."""
        read = self._read[namespace]
        read -= changes.moved
        added: dict[str, list[IndexedVector]] = defaultdict(list)
        for tool, vector in changes.added:
            added[tool].append(vector)
        removed: dict[str, list[int]] = defaultdict(list)
        for tool, order in changes.removed:
            removed[tool].append(order)
        for tool in read & added.keys():
            await self._index.add((namespace, tool), added[tool])
        for tool in read & removed.keys():
            await self._index.remove((namespace, tool), removed[tool])

    async def _read_whole(self, partition: Partition) -> None:
        namespace, tool = partition
        vectors = await self._store.vectors(namespace, tool, version=self._version)
        await self._index.drop(partition)
        if vectors:
            await self._index.add(partition, vectors)
        self._read[namespace].add(tool)
