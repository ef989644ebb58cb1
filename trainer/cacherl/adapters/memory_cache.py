"""An exact cache in memory with the shape of AsyncCacheClient: for tests and dry runs without a service.

It follows states as the service does (a state is the chain of its effective writes) and knows the exact tier only.
Not covered: similar and approximate answers, leases, calibration, persistence.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from toolcache_client.messages import Answer, LookupItem, Recorded, RecordItem, RecordOutcome, ToolResult


class MemoryCache:
    """Answers what was recorded in it; `writes` are the tools that change the state."""

    def __init__(self, writes: frozenset[str]) -> None:
        self.lookups: list[tuple[LookupItem, ...]] = []
        """Every batch it was asked, in order."""
        self._writes = writes
        self._results: dict[str, ToolResult] = {}

    async def lookup(self, namespace: str, items: Sequence[LookupItem]) -> list[Answer]:
        """One answer an item; an item that follows an unknown state misses."""
        self.lookups.append(tuple(items))
        answers: list[Answer] = []
        for item in items:
            state = answers[-1].state_after if item.follows else item.state or item.environment
            answers.append(self._answer(namespace, item, state))
        return answers

    async def record(self, namespace: str, items: Sequence[RecordItem]) -> list[Recorded]:
        """Keep the first result of each key."""
        return [self._keep(namespace, item) for item in items]

    def _answer(self, namespace: str, item: LookupItem, state: str | None) -> Answer:
        if state is None:
            return Answer(tier="miss", trust=0.0, reason="state_unknown")
        result = self._results.get(_key(namespace, state, item.tool, item.arguments))
        if result is None:
            after = None if item.tool in self._writes else state
            return Answer(tier="miss", trust=0.0, reason="not_recorded", state=state, state_after=after)
        after = self._after(state, item.tool, item.arguments, result)
        return Answer(tier="exact", trust=1.0, reason="recorded", state=state, state_after=after, result=result)

    def _keep(self, namespace: str, item: RecordItem) -> Recorded:
        state = item.state or item.environment
        key = _key(namespace, state, item.tool, item.arguments)
        known = self._results.setdefault(key, item.result)
        outcome: RecordOutcome = (
            "stored" if known is item.result else "known" if known.content == item.result.content else "conflict"
        )
        return Recorded(outcome=outcome, entry=key, state_after=self._after(state, item.tool, item.arguments, known))

    def _after(self, state: str, tool: str, arguments: Mapping[str, Any], result: ToolResult) -> str:
        if tool not in self._writes or result.is_error:
            return state
        return _key("", state, tool, arguments)


def _key(namespace: str, state: str, tool: str, arguments: Mapping[str, Any]) -> str:
    text = json.dumps([namespace, state, tool, arguments], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
