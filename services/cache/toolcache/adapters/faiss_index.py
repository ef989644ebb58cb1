"""Nearest vectors with FAISS: one flat inner-product index a (namespace, tool), exact, in memory, derived.

Flat, because it has no recall to lose and is fast enough: 0.1 ms among 4,000 vectors of 384 dimensions, 6.5 ms among
100,000; and own indexes, because restricting a shared one to a tool costs 3 to 25 times more.

Covered: a guard with one entry and a guard with all of them cost a scan of one integer an entry (0.02 ms in 100,000),
then the scores of those that passed. An entry costs 24 bytes and a slot in a dictionary beside its vector, whatever
its guard. Entries come, change and go at the price of their own rows. What takes long runs in a thread.
Not covered: more vectors than fit into memory.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import sys
from array import array
from collections.abc import Awaitable, Callable, Collection, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

import faiss
import numpy as np
from numpy.typing import NDArray

from toolcache.core.ports import IndexedVector, Partition, Vector

INLINE_COMPARED = 10_000
"""Vectors compared on the event loop itself, 0.3 ms; more are compared in a thread."""
INLINE_MOVED = 1_000
"""Up to this size an index is changed on the event loop itself. Beyond it FAISS may have to move all it holds to a
larger place, about a millisecond a megabyte."""
SLICE = 256
"""Vectors added or removed at a time. Between slices searches get their turn, and the interpreter lock is free."""
_CORES = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
THREADS = max(1, min(_CORES - 1, 8))
"""One core is left to the event loop: on two cores 64 searches among 100,000 vectors held it up for 1 ms (p99) with one
thread, 4 ms with two, 12 ms with six. They took 0.51, 0.33 and 0.32 s."""

_T = TypeVar("_T")


class FaissIndex:
    """A VectorIndex. To be used from one event loop."""

    def __init__(self) -> None:
        self._tools: dict[Partition, _Tool] = {}
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="vectors")

    def size(self, partition: Partition) -> int:
        own = self._tools.get(partition)
        return 0 if own is None else len(own)

    async def add(self, partition: Partition, vectors: Sequence[IndexedVector]) -> None:
        """Raises ValueError where vectors differ in length from those that are there."""
        if not vectors:
            return
        own = self._tools.get(partition)
        if own is None:
            own = self._tools[partition] = _Tool(len(vectors[0].vector) // 4, self._threads)
        for start in range(0, len(vectors), SLICE):
            part = vectors[start : start + SLICE]
            await own.turns.alone(partial(own.put, part), inline=len(own) + len(part) <= INLINE_MOVED)

    async def remove(self, partition: Partition, orders: Collection[int]) -> None:
        """Orders that are not there are passed over."""
        own = self._tools.get(partition)
        if own is None:
            return
        gone = list(orders)
        for start in range(0, len(gone), SLICE):
            part = gone[start : start + SLICE]
            await own.turns.alone(partial(own.remove, part), inline=len(own) <= INLINE_MOVED)

    async def drop(self, partition: Partition) -> None:
        own = self._tools.pop(partition, None)
        if own is not None:
            await own.turns.alone(own.clear, inline=len(own) <= INLINE_MOVED)

    async def nearest(
        self, partition: Partition, vector: Vector, count: int, *, guard: str | None = None
    ) -> list[tuple[int, float]]:
        """Of equal cosines the smaller order comes first. Raises ValueError for a vector of another length."""
        own = self._tools.get(partition)
        if own is None:
            return []
        if guard is None:
            is_small = len(own) <= INLINE_COMPARED
        else:
            is_small = own.turns.is_open and len(own.slots(guard)) <= INLINE_COMPARED
        return await own.turns.together(partial(own.nearest, vector, count, guard), inline=is_small)


class _Tool:
    """The vectors of one tool, side by side without holes: the last one takes the slot of one that goes.

    So nothing is marked as dead and nothing has to be swept. Its methods run one at a time, except `nearest`.
    """

    def __init__(self, dimensions: int, threads: ThreadPoolExecutor) -> None:
        self.turns = _Turns(threads)
        self._dimensions = dimensions
        self.clear()

    def __len__(self) -> int:
        return len(self._orders)

    def clear(self) -> None:
        self._index = faiss.IndexFlatIP(self._dimensions)
        self._rooms = 0  # how many vectors the index has had memory for
        self._slots: dict[int, int] = {}
        self._orders = array("q")
        # 128 bits of each guard's digest, so that no number has to be kept for guards that come and go.
        self._guards = (array("Q"), array("Q"))

    def put(self, vectors: Sequence[IndexedVector]) -> None:
        latest = {each.order: each for each in vectors}
        rows = _rows([each.vector for each in latest.values()], self._dimensions)
        is_new = np.array([order not in self._slots for order in latest])
        if not is_new.all():
            slots = [self._slots[order] for order in latest if order in self._slots]
            self._stored()[slots] = rows[~is_new]
        if is_new.any():
            self._index.add(rows[is_new])
            self._rooms = max(self._rooms, self._index.ntotal)
        for each in latest.values():
            self._note(each.order, _digest(each.guard))

    def _note(self, order: int, guard: tuple[int, int]) -> None:
        slot = self._slots.setdefault(order, len(self._orders))
        if slot == len(self._orders):
            self._orders.append(order)
            for column, half in zip(self._guards, guard, strict=True):
                column.append(half)
        else:
            for column, half in zip(self._guards, guard, strict=True):
                column[slot] = half

    def remove(self, orders: Sequence[int]) -> None:
        for order in orders:
            slot = self._slots.pop(order, None)
            if slot is not None:
                self._close_gap(slot)
        if self._index.ntotal > len(self):
            self._index.remove_ids(faiss.IDSelectorRange(len(self), self._index.ntotal))
        if self._rooms > 2 * len(self) + INLINE_MOVED:
            self._move_to_smaller_rooms()

    def _close_gap(self, slot: int) -> None:
        last = len(self) - 1
        if slot != last:
            stored = self._stored()
            stored[slot] = stored[last]
            self._slots[self._orders[last]] = slot
        for column in (self._orders, *self._guards):
            column[slot] = column[last]
            column.pop()

    def _move_to_smaller_rooms(self) -> None:
        """FAISS keeps the memory of vectors that went; a new index does not."""
        smaller = faiss.IndexFlatIP(self._dimensions)
        if len(self):
            smaller.add(self._stored())
        self._index = smaller
        self._rooms = len(self)

    def slots(self, guard: str | None) -> NDArray[np.int64]:
        """Where the vectors of that guard lie, or all; ascending."""
        if guard is None or not len(self):
            return np.arange(len(self))
        wanted = _digest(guard)
        first, second = (np.frombuffer(column, dtype=np.uint64) for column in self._guards)
        found = np.flatnonzero(first == wanted[0])
        return np.compress(second[found] == wanted[1], found)

    def nearest(self, vector: Vector, count: int, guard: str | None) -> list[tuple[int, float]]:
        query = _rows([vector], self._dimensions)[0]
        slots = self.slots(guard)
        if not len(slots) or count < 1:
            return []
        cosines = self._cosines(query, slots)
        orders = np.frombuffer(self._orders, dtype=np.int64)[slots]
        chosen = _greatest(cosines, orders, count)
        return list(zip(orders[chosen].tolist(), cosines[chosen].tolist(), strict=True))

    def _cosines(self, query: NDArray[np.float32], slots: NDArray[np.int64]) -> NDArray[np.float32]:
        cosines = np.empty(len(slots), dtype=np.float32)
        # One query is no work for several threads: with OpenMP's default they wait for each other, 8 ms for 0.1 ms of
        # work on a busy machine. The setting belongs to the calling thread.
        faiss.omp_set_num_threads(1)
        self._index.compute_distance_subset(  # type: ignore[attr-defined]  # its stubs lack it
            1, faiss.swig_ptr(query), len(slots), faiss.swig_ptr(cosines), faiss.swig_ptr(slots)
        )
        return np.clip(cosines, -1.0, 1.0, out=cosines)

    def _stored(self) -> NDArray[np.float32]:
        """FAISS's own memory, [N, D]: valid until the index next grows."""
        count = self._index.ntotal
        rows: NDArray[np.float32] = faiss.rev_swig_ptr(self._index.get_xb(), count * self._dimensions)
        return rows.reshape(count, self._dimensions)


def _greatest(cosines: NDArray[np.float32], orders: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Indices of the `count` greatest cosines, greatest first, of equal ones the smaller order first.

    >>> _greatest(np.array([0.5, 1.0, 0.5], dtype=np.float32), np.array([9, 3, 7]), 2).tolist()
    [1, 2]
    """
    least = np.partition(cosines, -count)[-count] if count < len(cosines) else -np.inf
    near = np.flatnonzero(cosines >= least)
    return near[np.lexsort((orders[near], -cosines[near]))][:count]


def _rows(vectors: Sequence[Vector], dimensions: int) -> NDArray[np.float32]:
    return np.frombuffer(b"".join(vectors), dtype="<f4").reshape(len(vectors), dimensions)


def _digest(guard: str) -> tuple[int, int]:
    digest = hashlib.blake2b(guard.encode("utf-8", "surrogatepass"), digest_size=16).digest()
    return int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:], "little")


class _Turns:
    """Who may touch an index: many readers together, or one writer alone. A writer that waits lets no one overtake.

    Short work is done on the spot where nobody is in the way, the rest in a thread.
    """

    def __init__(self, threads: ThreadPoolExecutor) -> None:
        self._threads = threads
        self._door = asyncio.Lock()
        self._readers = 0
        self._is_empty = asyncio.Event()
        self._is_empty.set()

    @property
    def is_open(self) -> bool:
        """No writer is at work or waiting."""
        return not self._door.locked()

    async def together(self, read: Callable[[], _T], *, inline: bool) -> _T:
        if inline and self.is_open:
            return read()
        return await _to_the_end(self._read(read))

    async def alone(self, write: Callable[[], None], *, inline: bool) -> None:
        if inline and self.is_open and not self._readers:
            write()
        else:
            await _to_the_end(self._write(write))

    async def _read(self, read: Callable[[], _T]) -> _T:
        async with self._door:
            self._readers += 1
            self._is_empty.clear()
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, read)
        finally:
            self._readers -= 1
            if not self._readers:
                self._is_empty.set()

    async def _write(self, write: Callable[[], None]) -> None:
        async with self._door:
            await self._is_empty.wait()
            await asyncio.get_running_loop().run_in_executor(self._threads, write)


def _to_the_end(work: Coroutine[Any, Any, _T]) -> Awaitable[_T]:
    """A caller that is cancelled must not open the door while its thread is still inside."""
    return asyncio.shield(asyncio.create_task(work))
