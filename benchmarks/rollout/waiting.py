"""Rollouts in flight against one service process: what share of their time is waiting for the cache."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import psutil

from benchmarks.cache.servers import Server
from benchmarks.rollout.callbacks import watched
from benchmarks.rollout.paced import PacedEngine, TimedCache, quantile_ms
from benchmarks.rollout.shop import Session, Shop, tool_objects
from cacherl.rollout.lookups import LookupBatcher
from cacherl.rollout.loop import Budgets, CacheAgentLoop, Episode
from cacherl.rollout.parser import Parser
from cacherl.rollout.renderer import Renderer
from cacherl.rollout.rollout import Rollout, StopReason, tier_mix
from cacherl.rollout.tools import CacheSetup, CacheTools, Drop, ExecuteLive, OutageLog, ToolAnswerer, writing_tools
from toolcache_client import AsyncCacheClient

BUDGETS = Budgets(turn_tokens=8192, sampled_tokens=65536, context_tokens=131072)
"""So wide that no rollout of the shop is cut."""


async def waiting(server: Server, shop: Shop, *, batched: bool) -> dict[str, Any]:
    """Play all rollouts of a filled shop at once. Raises RuntimeError where one did not end with its answer."""
    process = psutil.Process(server.pid)
    async with AsyncCacheClient(server.url) as client:
        cache = TimedCache(LookupBatcher(client) if batched else client)
        episodes = shop_episodes(shop, cache)
        loop = agent_loop(shop)
        async with watched() as watch:
            service_s, own_s, began_s = _cpu_s(process), time.process_time(), time.perf_counter()
            rollouts = await loop.play_all(episodes, concurrency=len(episodes))
            step_s = time.perf_counter() - began_s
            service_s, own_s = _cpu_s(process) - service_s, time.process_time() - own_s
    check_played(rollouts)
    return {
        "rollouts": len(rollouts),
        "calls": sum(len(rollout.calls) for rollout in rollouts),
        "tier_mix": tier_mix([call for rollout in rollouts for call in rollout.calls]),
        "step_s": step_s,
        "longest_rollout_s": max(rollout.seconds for rollout in rollouts),
        "rollout_s": sum(rollout.seconds for rollout in rollouts),
        "generate_s": sum(rollout.generate_seconds for rollout in rollouts),
        "tool_s": sum(rollout.tool_seconds for rollout in rollouts),
        "cache_s": sum(rollout.cache_seconds for rollout in rollouts),
        "cache_share": sum(r.cache_seconds for r in rollouts) / sum(r.seconds for r in rollouts),
        "lookups": len(cache.lookup_s),
        "lookup_p50_ms": quantile_ms(cache.lookup_s, 0.5),
        "lookup_p99_ms": quantile_ms(cache.lookup_s, 0.99),
        "service_cores": service_s / step_s,
        "trainer_cores": own_s / step_s,
        "event_loop": watch.told(),
    }


def agent_loop(shop: Shop) -> CacheAgentLoop:
    """The loop under test, over an engine that is fast or slow as the shop's sizes say."""
    engine = PacedEngine(shop.lines, tokens_per_s=shop.sizes.tokens_per_s)
    return CacheAgentLoop(engine, Renderer(shop.tokenizer), Parser(tool_objects()), budgets=BUDGETS)


def shop_episodes(shop: Shop, cache: Any) -> list[Episode]:
    """One episode a rollout; misses are executed live under leases and recorded."""
    setup = CacheSetup(
        cache=cache,
        namespace=shop.namespace,
        writes=writing_tools(tool_objects()),
        on_miss=ExecuteLive(),
        on_outage=Drop(),
        outage_log=OutageLog(),
    )
    return [_episode(shop, setup, group, member) for group, member in shop.places]


def _episode(shop: Shop, setup: CacheSetup, group: int, member: int) -> Episode:
    def open_tools() -> ToolAnswerer:
        return CacheTools(
            setup,
            lambda: Session(live_s=shop.sizes.live_s),
            environment=shop.environment(group),
            rollout=f"{group}/{member}",
            group=str(group),
        )

    return Episode(
        task_id=str(group),
        messages=shop.messages(group),
        open_tools=open_tools,
        group=str(group),
        seed=shop.rollout_seed(group, member),
    )


def check_played(rollouts: Sequence[Rollout]) -> None:
    """Raise RuntimeError unless every rollout made its ten calls and answered: a void one would wait for nothing."""
    stops = Counter(rollout.stop for rollout in rollouts)
    if set(stops) != {StopReason.ANSWERED} or any(len(rollout.calls) != 10 for rollout in rollouts):
        why = next((rollout.why for rollout in rollouts if rollout.why), "")
        raise RuntimeError(f"the rollouts did not go as planned: {dict(stops)} {why}")


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)
