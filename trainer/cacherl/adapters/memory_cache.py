"""An exact cache in memory with the shape of AsyncCacheClient: for tests and dry runs without a service.

It follows states as the service does (a state is the chain of its effective writes), knows the exact tier only, and
lets one caller execute what several miss. Not covered: similar and approximate answers, leases that expire,
calibration, persistence.
"""

import asyncio
import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from toolcache_client.messages import Answer, LookupItem, OnMiss, Recorded, RecordItem, RecordOutcome, ToolResult
from toolcache_client.resolve import LEASE_S


class MemoryCache:
    """Answers what was recorded in it; `writes` are the tools that change the state."""

    def __init__(self, writes: frozenset[str]) -> None:
        self.lookups: list[tuple[LookupItem, ...]] = []
        """Every batch it was asked, in order."""
        self.records: list[RecordItem] = []
        """Everything it was told, in order."""
        self.leases: dict[str, str] = {}
        """Leases that are held, by the key of their call."""
        self._writes = writes
        self._results: dict[str, ToolResult] = {}
        self._granted = 0
        self._changed = asyncio.Event()

    async def lookup(
        self,
        namespace: str,
        items: Sequence[LookupItem],
        *,
        on_miss: OnMiss = "fail",
        wait_s: float = 0.0,
        lease_s: float = LEASE_S,
    ) -> list[Answer]:
        """One answer an item; an item that follows an unknown state misses. Leases last until they are given back."""
        self.lookups.append(tuple(items))
        deadline_s = time.monotonic() + wait_s
        while True:
            changed = self._changed
            answers = self._answers(namespace, items, on_miss)
            must_wait = any(each.reason == "leased" for each in answers) and not any(each.lease for each in answers)
            left_s = deadline_s - time.monotonic()
            if not must_wait or left_s <= 0:
                return answers
            with suppress(TimeoutError):
                async with asyncio.timeout(left_s):
                    await changed.wait()

    async def record(self, namespace: str, items: Sequence[RecordItem]) -> list[Recorded]:
        """Keep the first result of each key; the leases end."""
        self.records += items
        recorded = [self._keep(namespace, item) for item in items]
        for item in items:
            self._end(item.lease)
        return recorded

    async def extend_lease(self, namespace: str, lease_id: str, *, extend_s: float = LEASE_S) -> bool:
        return lease_id in self.leases.values()

    async def release_lease(self, namespace: str, lease_id: str) -> bool:
        return self._end(lease_id)

    def _end(self, lease_id: str) -> bool:
        key = lease_id.partition(".")[0]
        if self.leases.get(key) != lease_id:
            return False
        del self.leases[key]
        self._changed.set()
        self._changed = asyncio.Event()
        return True

    def _answers(self, namespace: str, items: Sequence[LookupItem], on_miss: OnMiss) -> list[Answer]:
        answers: list[Answer] = []
        for item in items:
            before = answers[-1].state_after if item.follows else item.state or item.environment
            answers.append(self._answer(namespace, item, before, on_miss))
        return answers

    def _answer(self, namespace: str, item: LookupItem, state: str | None, on_miss: OnMiss) -> Answer:
        if state is None:
            return Answer(tier="miss", trust=0.0, reason="state_unknown")
        key = _key(namespace, state, item.tool, item.arguments)
        result = self._results.get(key)
        if result is None:
            after = None if item.tool in self._writes else state
            is_leased = key in self.leases and on_miss != "fail"
            lease = self._lease(key) if on_miss == "lease" and not is_leased else None
            reason = "leased" if is_leased else "not_recorded"
            return Answer(tier="miss", trust=0.0, reason=reason, state=state, state_after=after, lease=lease)
        after = self._after(state, item.tool, item.arguments, result)
        return Answer(tier="exact", trust=1.0, reason="recorded", state=state, state_after=after, result=result)

    def _lease(self, key: str) -> str:
        self._granted += 1
        self.leases[key] = f"{key}.{self._granted}"
        return self.leases[key]

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
