"""Learn from what is recorded, tool by tool: roles, places, evidence, masks worth proposing.

Reading is done in pages and computing in a thread, so that lookups go on meanwhile.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from toolcache.core import calibration
from toolcache.core.calls import masked
from toolcache.core.entries import Entry
from toolcache.core.ports import Embedder, EmbedderUnavailable, Store, Vector
from toolcache.core.profile import Profile
from toolcache.core.roles import text_of
from toolcache.core.tools import Namespace, Tool

EMBED_BATCH = 64
"""Texts embedded at once: larger batches gain nothing on a CPU and hold other tenants' texts back."""


@contextmanager
def _collector_paused() -> Iterator[None]:
    """Without the garbage collector, which would go through all entries at hand again and again, and stop every request
    meanwhile (300 ms at 100,000 entries). They refer to nothing in circles, so they go when nobody needs them."""
    was_enabled = gc.isenabled()  # of two that overlap, the first one turns it on again
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


class Learning:
    def __init__(self, store: Store, embedder: Embedder) -> None:
        self._store = store
        self._embedder = embedder

    async def learn(self, namespace: Namespace, tool: Tool) -> Profile:
        """A tool's profile from all its entries; entries get the keys and places that follow from it.

        Raises StoreUnavailable. Without the embedder, what needs vectors is left as little proven as it was.
        """
        with _collector_paused():
            return await self._learn(namespace, tool)

    async def _learn(self, namespace: Namespace, tool: Tool) -> Profile:
        entries = [entry async for entry in self._store.entries(namespace.name, tool.name)]
        lesson = await asyncio.to_thread(calibration.lesson, tool, entries)
        if lesson.rekeyed:
            await self._store.rekey(namespace.name, lesson.rekeyed)
        vectors: dict[int, Vector] = {}
        if calibration.wants_vectors(namespace, tool, lesson.profile):
            await self.embed(namespace.name, tool, entries)
            stored = await self._store.vectors(namespace.name, tool.name, version=self._embedder.version)
            vectors = {each.order: each.vector for each in stored}
        return await asyncio.to_thread(calibration.measured, lesson, namespace, vectors)

    async def embed(self, namespace: str, tool: Tool, entries: Sequence[Entry]) -> None:
        """Make the vectors that these entries lack; none are made while the embedder is away."""
        stored = await self._store.vectors(namespace, tool.name, version=self._embedder.version)
        have = {each.order for each in stored}
        missing = [entry for entry in entries if entry.order not in have]
        for start in range(0, len(missing), EMBED_BATCH):
            batch = missing[start : start + EMBED_BATCH]
            texts = [text_of(tool.name, masked(entry.arguments, tool.masks)) for entry in batch]
            try:
                made = await self._embedder.embed(texts, tenant=namespace)
            except EmbedderUnavailable:
                return
            vectors = {entry.order: vector for entry, vector in zip(batch, made, strict=True)}
            await self._store.put_vectors(namespace, tool.name, vectors, version=self._embedder.version)
