"""An engine that takes its time and nothing else, and a cache whose lookups are timed from outside."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import Any

from cacherl.rollout.engine import Generation, Sampling
from toolcache_client.messages import Answer, LookupItem


class PacedEngine:
    """Says the line that belongs to a turn's seed, at so many tokens a second."""

    def __init__(self, lines: Mapping[int, tuple[int, ...]], *, tokens_per_s: float) -> None:
        self._lines = lines
        self._tokens_per_s = tokens_per_s

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling) -> Generation:
        ids = self._lines[sampling.seed]
        if len(ids) > sampling.max_tokens:
            raise ValueError(f"a line of {len(ids)} tokens, but the budget leaves {sampling.max_tokens}")
        await asyncio.sleep(len(ids) / self._tokens_per_s)
        return Generation(ids=ids, logprobs=(-0.5,) * len(ids), finish_reason="stop")


class TimedCache:
    """The cache it wraps; keeps how long each lookup that did not wait for an execution took."""

    def __init__(self, inner: Any) -> None:
        self.lookup_s: list[float] = []
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def lookup(self, namespace: str, items: Sequence[LookupItem], **how: Any) -> list[Answer]:
        began_s = time.perf_counter()
        answers: list[Answer] = await self._inner.lookup(namespace, items, **how)
        if not how.get("wait_s"):
            self.lookup_s.append(time.perf_counter() - began_s)
        return answers


def quantile_ms(seconds: Sequence[float], share: float) -> float | None:
    """Milliseconds that this share of the values does not exceed; None without any."""
    ordered = sorted(seconds)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] * 1e3 if ordered else None
