"""A small shop to ask about: one tool of each effect, and ways to record and ask in few words."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from toolcache.adapters.faiss_index import FaissIndex
from toolcache.adapters.hash_embedder import HashEmbedder
from toolcache.adapters.memory_leases import MemoryLeases
from toolcache.adapters.memory_store import MemoryStore
from toolcache.core.cache import Answered, Ask, MissPolicy, Recorded, Recording, Served, ToolCache
from toolcache.core.entries import Result
from toolcache.core.ports import Embedder, Store
from toolcache.core.tools import Effect, Namespace, Tier, Tool

# Nothing here is timed: a busy machine makes no property false.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")

Asks = Callable[..., Awaitable[Answered]]
Tells = Callable[..., Awaitable[Recorded]]


class Clock:
    """A wall clock that is moved by hand; it begins at 1000 s."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def made_cache(store: Store | None = None, embedder: Embedder | None = None, **parts: Any) -> ToolCache:
    """A cache over parts in memory, but for those given; its chance is always 0."""
    return ToolCache(
        MemoryStore() if store is None else store,
        parts.get("leases") or MemoryLeases(time.monotonic),
        FaissIndex(),
        HashEmbedder() if embedder is None else embedder,
        clock=parts.get("clock", lambda: 1000.0),
        chance=parts.get("chance", lambda: 0.0),
    )


def _schema(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "additionalProperties": False}


TOOLS = (
    Tool(name="get_order", parameters=_schema(order_id={"type": "string"}), effect=Effect.READ),
    Tool(
        name="search_help",
        parameters=_schema(query={"type": "string"}, limit={"type": "integer"}),
        effect=Effect.READ,
        similar_floor=0.8,
    ),
    Tool(name="convert", parameters=_schema(amount={"type": "number"}, unit={"enum": ["m", "ft"]}), effect=Effect.PURE),
    Tool(name="cancel_order", parameters=_schema(order_id={"type": "string"}, comment={"type": "string"})),
)


@pytest.fixture
def shop() -> Namespace:
    return Namespace(name="shop", tools={tool.name: tool for tool in TOOLS})


MakeCache = Callable[..., ToolCache]


@pytest.fixture
def make_cache() -> MakeCache:
    """make_cache(store, embedder, leases=..., clock=..., chance=...): a cache with these parts of its own"""
    return made_cache


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def cache(shop: Namespace, clock: Clock) -> ToolCache:
    """A cache in memory that knows the shop; its clock is moved by hand."""
    made = made_cache(clock=clock)
    await made.put_namespace(shop)
    return made


@pytest.fixture
def ask(cache: ToolCache) -> Asks:
    """ask(tool, state=..., environment=..., tiers=..., group=..., miss=..., explain=..., **arguments) -> Answered"""

    async def _ask(
        tool: str,
        *,
        namespace: str = "shop",
        state: str = "",
        environment: str = "shop@1",
        tiers: frozenset[Tier] | None = None,
        group: str = "",
        miss: MissPolicy | None = None,
        explain: bool = False,
        **arguments: Any,
    ) -> Answered:
        question = Ask(tool=tool, arguments=arguments, environment=environment, state=state, tiers=tiers, group=group)
        (answered,) = await cache.lookup(namespace, [question], miss=miss or MissPolicy(), explain=explain)
        return answered

    return _ask


@pytest.fixture
def tell(cache: ToolCache) -> Tells:
    """tell(tool, content, state=..., environment=..., is_error=..., lease=..., ..., **arguments) -> Recorded"""

    async def _tell(
        tool: str,
        content: str,
        *,
        namespace: str = "shop",
        state: str = "",
        environment: str = "shop@1",
        is_error: bool = False,
        took_s: float = 0.0,
        lease: str = "",
        tags: tuple[str, ...] = (),
        served: Served | None = None,
        **arguments: Any,
    ) -> Recorded:
        recording = Recording(
            tool=tool,
            arguments=arguments,
            environment=environment,
            state=state,
            result=Result(content=content, is_error=is_error, took_s=took_s),
            lease=lease,
            tags=tags,
            served=served,
        )
        (recorded,) = await cache.record(namespace, [recording])
        return recorded

    return _tell
