"""The same rollouts with a barrier after each turn and after its tools: what a step takes without a clock of their own.

Tools are asked side by side within a turn, which is the better of the usual ways. Exists only to be compared with.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from benchmarks.cache.servers import Server
from benchmarks.rollout.shop import Shop
from benchmarks.rollout.waiting import agent_loop, shop_episodes
from cacherl.rollout.engine import Generation, Sampling
from cacherl.rollout.lookups import LookupBatcher
from cacherl.rollout.loop import CacheAgentLoop, Episode, turn_seed
from cacherl.rollout.tools import ToolAnswerer, ToolReply, ToolRequest, Void
from toolcache_client import AsyncCacheClient

T = TypeVar("T")


@dataclass(slots=True, kw_only=True)
class _Row:
    """One rollout under way."""

    ids: list[int]
    tools: ToolAnswerer
    seed: int
    turn: int = 0
    own_s: float = 0.0
    """What it took by itself, without waiting for others."""
    requests: list[ToolRequest] = field(default_factory=list)


async def lockstep(server: Server, shop: Shop) -> dict[str, Any]:
    """Seconds of the step, and of the rollout that would have taken longest alone."""
    async with AsyncCacheClient(server.url) as client:
        episodes = shop_episodes(shop, LookupBatcher(client))
        began_s = time.perf_counter()
        own_s = await _play(agent_loop(shop), episodes)
        step_s = time.perf_counter() - began_s
    return {"step_s": step_s, "longest_rollout_s": max(own_s)}


async def _play(loop: CacheAgentLoop, episodes: Sequence[Episode]) -> list[float]:
    rows = [
        _Row(ids=loop.renderer.prompt_ids(each.messages), tools=each.open_tools(), seed=each.seed) for each in episodes
    ]
    under_way = rows
    while under_way:
        for row, generation in await _all([_generate(loop, row) for row in under_way]):
            _hear(loop, row, generation)
        under_way = [row for row in under_way if row.requests]
        for row, replies in await _all([_answer(row) for row in under_way]):
            row.ids += loop.renderer.tool_delta_ids([reply.content for reply in replies])
    return [row.own_s for row in rows]


async def _all(played: Sequence[Awaitable[T]]) -> list[T]:
    """The barrier."""
    return await asyncio.gather(*played)


async def _generate(loop: CacheAgentLoop, row: _Row) -> tuple[_Row, Generation]:
    sampling = Sampling(
        max_tokens=loop.budgets.turn_tokens, stop_id=loop.renderer.end_of_turn_id, seed=turn_seed(row.seed, row.turn)
    )
    began_s = time.perf_counter()
    generation = await loop.engine.generate(row.ids, sampling)
    row.own_s += time.perf_counter() - began_s
    return row, generation


def _hear(loop: CacheAgentLoop, row: _Row, generation: Generation) -> None:
    """Take a turn in: its ids and the calls it made."""
    completion = loop.parser.parse(loop.renderer.tokenizer.decode(generation.ids))
    row.ids += generation.ids
    row.turn += 1
    row.requests = [ToolRequest(tool=call.name, arguments=call.arguments or {}) for call in completion.calls]


async def _answer(row: _Row) -> tuple[_Row, list[ToolReply]]:
    began_s = time.perf_counter()
    replies = await row.tools.answer(row.requests)
    row.own_s += time.perf_counter() - began_s
    if isinstance(replies, Void):
        raise RuntimeError(f"a rollout in lockstep was void: {replies.why}")
    return row, replies
