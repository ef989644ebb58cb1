"""Single flight: of all who miss the same call at the same time, one executes it and the others get its result.

Who gets the lease is told so in the answer; who does not waits here, as long as it asked to.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence

from toolcache.core.lookup import Asked, Tiers
from toolcache.core.policy import Policy
from toolcache.core.ports import Leases
from toolcache.core.questions import MissPolicy
from toolcache.core.tiers import Miss
from toolcache.core.trust import Reason

RECHECK_S = 0.05
"""Pause before looking again at something that has happened without a result."""
_NOT_EXECUTABLE = frozenset((Reason.STATE_UNKNOWN, Reason.UNKNOWN_TOOL, Reason.NOT_CANONICAL))


class Flight:
    """The misses of one request on their way to a lease or to somebody else's result."""

    def __init__(self, leases: Leases, tiers: Tiers, policy: Policy, miss: MissPolicy) -> None:
        self._leases = leases
        self._tiers = tiers
        self._policy = policy
        self._miss = miss
        self._deadline_s = time.monotonic() + miss.wait_s
        self._has_leases = False

    async def take(self, asked: Sequence[Asked]) -> None:
        """Give each miss a lease, or the result of who has it, or say that it is leased."""
        missed = [one for one in asked if isinstance(one.answer, Miss) and one.answer.reason not in _NOT_EXECUTABLE]
        pending = await self._lease(missed) if self._miss.action == "lease" else await self._held(missed)
        # A holder must get to work: were it kept waiting for others, two that wait for each other would both be.
        while pending and not self._has_leases and (left_s := self._deadline_s - time.monotonic()) > 0:
            await self._leases.wait(self._policy.name, {one.lease_key for one in pending}, left_s)
            before, pending = pending, await self._again(pending)
            if len(pending) == len(before):
                # Settled, and yet nothing to be read: it was invalidated at once. The mark ends in some seconds.
                await asyncio.sleep(min(RECHECK_S, left_s))
        for one in pending:
            detail = "another caller executes it; ask again, or wait longer with `wait_s`"
            one.answer = Miss(reason=Reason.LEASED, detail=detail)
            one.note("lease: held by another caller, and the wait was over")

    async def _again(self, pending: Sequence[Asked]) -> list[Asked]:
        """Look again, after something has happened to one of their leases; what is still to be waited for."""
        await self._tiers.recorded(self._policy, pending)
        missed = [one for one in pending if one.was_missed]
        return await (self._lease(missed) if self._miss.action == "lease" else self._held(missed))

    async def _lease(self, missed: Sequence[Asked]) -> list[Asked]:
        """Take what leases there are; those that others hold."""
        if not missed:
            return []
        leases = await self._leases.acquire(
            self._policy.name, [one.lease_key for one in missed], ttl_s=self._miss.lease_s
        )
        granted = {one.lease_key: one for one, lease in zip(missed, leases, strict=True) if lease is not None}
        ids = {lease.key: lease.id for lease in leases if lease is not None}
        await self._confirm(granted, ids)
        return [one for one, lease in zip(missed, leases, strict=True) if lease is None]

    async def _confirm(self, granted: Mapping[str, Asked], ids: Mapping[str, str]) -> None:
        """Between the miss and the lease another holder may have come and gone: its result is served, and the lease
        given back."""
        if not granted:
            return
        await self._tiers.recorded(self._policy, list(granted.values()))
        for key, one in granted.items():
            if one.was_missed:
                one.lease = ids[key]
                self._has_leases = True
                one.note(f"lease: granted for {self._miss.lease_s:g} s")
            else:
                await self._leases.release(self._policy.name, ids[key])

    async def _held(self, missed: Sequence[Asked]) -> list[Asked]:
        """Those of the missed that somebody executes."""
        if not missed:
            return []
        held = await self._leases.held(self._policy.name, {one.lease_key for one in missed})
        under_way = [one for one in missed if one.lease_key in held]
        if under_way:  # settled ones count as held for some seconds, and theirs is there to be read
            await self._tiers.recorded(self._policy, under_way)
        return [one for one in under_way if one.was_missed]
