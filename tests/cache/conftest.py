"""A small shop to ask about: one tool of each effect, and ways to record and ask in few words."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from toolcache.adapters.faiss_index import FaissIndex
from toolcache.adapters.hash_embedder import HashEmbedder
from toolcache.adapters.memory_store import MemoryStore
from toolcache.core.cache import Answered, Question, Recorded, Recording, ToolCache
from toolcache.core.entries import Result
from toolcache.core.tools import Effect, Namespace, Tier, Tool

# Nothing here is timed: a busy machine makes no property false.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")

Ask = Callable[..., Awaitable[Answered]]
Tell = Callable[..., Awaitable[Recorded]]


def _schema(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "additionalProperties": False}


TOOLS = (
    Tool(name="get_order", parameters=_schema(order_id={"type": "string"}), effect=Effect.READ),
    Tool(
        name="search_help",
        parameters=_schema(query={"type": "string"}, limit={"type": "integer"}),
        effect=Effect.READ,
    ),
    Tool(name="convert", parameters=_schema(amount={"type": "number"}, unit={"enum": ["m", "ft"]}), effect=Effect.PURE),
    Tool(name="cancel_order", parameters=_schema(order_id={"type": "string"}, comment={"type": "string"})),
)


@pytest.fixture
def shop() -> Namespace:
    return Namespace(name="shop", tools={tool.name: tool for tool in TOOLS})


@pytest.fixture
async def cache(shop: Namespace) -> ToolCache:
    """A cache in memory that knows the shop; the clock stands at 1000 s."""
    made = ToolCache(MemoryStore(), FaissIndex(), HashEmbedder(), lambda: 1000.0)
    await made.put_namespace(shop)
    return made


@pytest.fixture
def ask(cache: ToolCache) -> Ask:
    """ask(tool, state=..., environment=..., tiers=..., **arguments) -> Answered"""

    async def _ask(
        tool: str,
        *,
        namespace: str = "shop",
        state: str = "",
        environment: str = "shop@1",
        tiers: frozenset[Tier] = frozenset(Tier),
        **arguments: Any,
    ) -> Answered:
        question = Question(tool=tool, arguments=arguments, environment=environment, state=state, tiers=tiers)
        (answered,) = await cache.lookup(namespace, [question])
        return answered

    return _ask


@pytest.fixture
def tell(cache: ToolCache) -> Tell:
    """tell(tool, content, state=..., environment=..., is_error=..., **arguments) -> Recorded"""

    async def _tell(
        tool: str,
        content: str,
        *,
        namespace: str = "shop",
        state: str = "",
        environment: str = "shop@1",
        is_error: bool = False,
        took_s: float = 0.0,
        **arguments: Any,
    ) -> Recorded:
        recording = Recording(
            tool=tool,
            arguments=arguments,
            environment=environment,
            state=state,
            result=Result(content=content, is_error=is_error, took_s=took_s),
        )
        (recorded,) = await cache.record(namespace, [recording])
        return recorded

    return _tell
