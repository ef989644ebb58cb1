"""What is measured inside one process: the similar tier beside its encoder, and the event loop's longest pause."""

from __future__ import annotations

import asyncio
import gc
import random
import statistics
import sys
import tempfile
import threading
import time
from asyncio.events import Handle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from toolcache.adapters.batching_embedder import BatchingEmbedder
from toolcache.adapters.faiss_index import FaissIndex
from toolcache.adapters.memory_leases import MemoryLeases
from toolcache.adapters.minilm_embedder import best_encoder
from toolcache.adapters.sqlite_store import SqliteStore
from toolcache.core.cache import Ask, Recording, ToolCache
from toolcache.core.entries import Result
from toolcache.core.ports import Embedder
from toolcache.core.roles import text_of
from toolcache.core.tools import Effect, Namespace, Role, Tool

NAMESPACE = "bench"
SEARCH = Tool(
    name="search_help",
    parameters={"type": "object", "properties": {"query": {"type": "string"}}},
    effect=Effect.READ,
    roles={"query": Role.FREE_TEXT},
    similar_floor=0.0,
)
WORDS = (
    "return broken lamp order parcel late refund colour size delivery address change cancel warranty repair shop "
    "window garden kitchen table chair wooden small cheap heavy bright please kindly quickly about because whether "
    "customer account password email invoice payment card voucher gift present birthday holiday season summer coat"
).split()


def query(chance: random.Random) -> str:
    """Twenty words, some forty tokens: as long as the calls of recorded agents."""
    return " ".join(chance.choices(WORDS, k=20))


async def similar(count: int = 300) -> dict[str, Any]:
    """CPU of a similar lookup with a new text beside that of the bare encoder call for a text of the same kind."""
    chance = random.Random(0)
    encoder = best_encoder(None)
    embedder = BatchingEmbedder(encoder)
    with tempfile.TemporaryDirectory() as folder:
        cache = _cache(Path(folder) / "similar.sqlite3", embedder)
        await cache.put_namespace(Namespace(name=NAMESPACE, tools={SEARCH.name: SEARCH}, similar_threshold=0.0))
        await _record(cache, [query(chance) for _ in range(2000)])
        await cache.calibrate(NAMESPACE)
        await cache.lookup(NAMESPACE, [_ask(query(chance))])
        bare, full = [], []
        for _ in range(5):
            bare.append(_encode_us(encoder, [query(chance) for _ in range(count // 5)]))
            full.append(await _lookup_us(cache, [query(chance) for _ in range(count // 5)]))
        before = embedder.batches
        same = [query(chance) for _ in range(64)]
        await asyncio.gather(*(cache.lookup(NAMESPACE, [_ask(text)]) for text in same))
        concurrent = embedder.batches - before
        memoised_us = await _lookup_us(cache, same)
        memoised = embedder.batches - before - concurrent
        await cache.close()
    return {
        "encoder": embedder.version,
        "bare_us": statistics.median(bare),
        "lookup_us": statistics.median(full),
        "ratio": statistics.median(one / two for one, two in zip(full, bare, strict=True)),
        "encoder_calls_for_64_concurrent": concurrent,
        "encoder_calls_for_64_memoised": memoised,
        "memoised_lookup_us": memoised_us,
    }


def _encode_us(encoder: Any, texts: list[str]) -> float:
    began_s = time.process_time()
    for text in texts:
        encoder.encode([text_of(SEARCH.name, {"query": text})])
    return (time.process_time() - began_s) / len(texts) * 1e6


async def _lookup_us(cache: ToolCache, texts: list[str]) -> float:
    began_s = time.process_time()
    for text in texts:
        (answered,) = await cache.lookup(NAMESPACE, [_ask(text)])
        assert answered.answer.reason == "free_text", answered.answer
    return (time.process_time() - began_s) / len(texts) * 1e6


def _ask(text: str) -> Ask:
    return Ask(tool=SEARCH.name, arguments={"query": text}, environment="shop@1")


async def _record(cache: ToolCache, texts: list[str]) -> None:
    for start in range(0, len(texts), 500):
        await cache.record(
            NAMESPACE,
            [
                Recording(
                    tool=SEARCH.name,
                    arguments={"query": text},
                    environment="shop@1",
                    result=Result(content=f"found {text[:40]}" + "x" * 900, took_s=0.2),
                )
                for text in texts[start : start + 500]
            ],
        )


def _cache(path: Path, embedder: Embedder) -> ToolCache:
    return ToolCache(
        SqliteStore.open(path),
        MemoryLeases(time.monotonic),
        FaissIndex(),
        embedder,
        clock=time.time,
        chance=random.random,
    )


def cache_over(path: Path) -> ToolCache:
    """A cache over a SQLite file that makes no real vectors."""
    return _cache(path, RandomEmbedder())


class RandomEmbedder:
    """Vectors of MiniLM's size out of a generator: the pause is measured, not the encoder."""

    version = "random/1"

    def __init__(self) -> None:
        self._chance = np.random.default_rng(0)

    async def embed(self, texts: list[str], *, tenant: str) -> list[bytes]:
        rows = self._chance.standard_normal((len(texts), 384), dtype=np.float32)
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        return [row.astype("<f4").tobytes() for row in rows]


async def pauses(entries: int = 100_000, seconds: float = 20.0) -> dict[str, Any]:
    """The longest time that one callback held the event loop, with `entries` stored, while records, exact and similar
    lookups come in from 16 callers: CPU time of the loop's thread, since a wait for the processor is not ours."""
    chance = random.Random(0)
    with tempfile.TemporaryDirectory() as folder:
        cache = _cache(Path(folder) / "pauses.sqlite3", RandomEmbedder())
        await cache.put_namespace(Namespace(name=NAMESPACE, tools={SEARCH.name: SEARCH}, similar_threshold=0.0))
        texts = list({query(chance) for _ in range(entries)})
        await _record(cache, texts)
        await cache.settle()
        await cache.start()
        await cache.lookup(NAMESPACE, [_ask(query(chance))])
        gc.collect()
        gc.freeze()  # this and the interval: as `toolcache serve` does
        interval_s = sys.getswitchinterval()
        sys.setswitchinterval(0.0005)
        with _watched() as held_s:
            until_s = time.monotonic() + seconds
            done = await asyncio.gather(*(_caller(cache, texts, random.Random(n), until_s) for n in range(16)))
        sys.setswitchinterval(interval_s)
        gc.unfreeze()
        await cache.close()
    held_s.sort()
    return {
        "entries": len(texts),
        "requests": sum(done),
        "callbacks": len(held_s),
        "p999_ms": held_s[len(held_s) * 999 // 1000] * 1e3,
        "longest_ms": held_s[-1] * 1e3,
    }


async def _caller(cache: ToolCache, texts: list[str], chance: random.Random, until_s: float) -> int:
    done = 0
    while time.monotonic() < until_s:
        await cache.lookup(NAMESPACE, [_ask(chance.choice(texts))])
        await _record(cache, [query(chance) for _ in range(4)])
        if done % 8 == 0:
            await cache.lookup(NAMESPACE, [_ask(query(chance))])
        done += 1
    return done


@contextmanager
def _watched() -> Iterator[list[float]]:
    """CPU seconds of each callback of this thread's event loop, collected while inside. Not with uvloop."""
    held_s: list[float] = []
    thread = threading.get_ident()
    run = Handle._run

    def timed(handle: Handle) -> None:
        if threading.get_ident() != thread:
            run(handle)
            return
        began_s = time.thread_time()
        run(handle)
        held_s.append(time.thread_time() - began_s)

    Handle._run = timed  # type: ignore[method-assign]
    try:
        yield held_s
    finally:
        Handle._run = run  # type: ignore[method-assign]
