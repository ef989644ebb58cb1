"""Who answers the calls of one rollout: the cache, with a policy for what it lacks, or a live world.

An answerer belongs to one rollout and follows its state. It is asked with all calls of a turn at once and answers
in their order. It never raises for what an infrastructure did: it returns Void, and the rollout ends unscored.

Not covered: leases (two rollouts may execute the same missing call at once; the second record is `known`).
"""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from cacherl.errors import ToolUnavailable
from cacherl.rollout.rollout import AnswerTier, StopReason
from toolcache_client.errors import CacheError, CacheRefused, CacheReplyMalformed, CacheUnavailable, RecordRefused
from toolcache_client.messages import Answer, LookupItem, Recorded, RecordItem, Tier, ToolResult

_log = logging.getLogger(__name__)

REFUSED_REQUEST = (400, 413, 422)
"""Refusals of this one request (too large, not to be carried): a lookup's ends the rollout, a record's costs the state,
neither the run. A 404 or 401 is the run's mistake, and every other rollout's too."""
MISS_TEXT = "Error: no recorded result for this call"
"""What the model reads when the cache has no answer and the policy is ToolError."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolRequest:
    """One usable call of a turn."""

    tool: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolReply:
    """The answer to one call, and how far to trust it."""

    content: str
    is_error: bool
    tier: AnswerTier
    trust: float
    reason: str
    seconds: float
    """Wall time this rollout waited for it; a batch of lookups shares its time evenly."""
    cache_seconds: float = 0.0
    """The part of `seconds` that was spent asking the cache."""
    saved_seconds: float = 0.0
    """Seconds the served result took when it was executed live."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Void:
    """The rollout cannot go on and must not be scored."""

    stop: StopReason
    why: str


class ToolAnswerer(Protocol):
    """Answers the calls of one rollout, in order, turn after turn."""

    outages: int
    """Times the cache was away so far."""

    async def answer(self, requests: Sequence[ToolRequest]) -> list[ToolReply] | Void:
        """One reply per request, in their order, or Void."""
        ...


class LiveSession(Protocol):
    """What is needed of a world's session (worlds/world.py)."""

    def execute(self, tool: str, arguments: Mapping[str, Any]) -> ToolResult:
        """Raises ToolUnavailable when the tool could not be reached."""
        ...


class CacheLookup(Protocol):
    """What is needed of toolcache_client.AsyncCacheClient."""

    async def lookup(self, namespace: str, items: Sequence[LookupItem]) -> list[Answer]: ...

    async def record(self, namespace: str, items: Sequence[RecordItem]) -> list[Recorded]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecuteLive:
    """Run the call on a live tool. On a miss the result is recorded, so that it is a hit from then on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolError:
    """The model reads an error text instead of a result; the state stays as it was."""

    text: str = MISS_TEXT


@dataclass(frozen=True, slots=True, kw_only=True)
class Drop:
    """The rollout is void."""


MissPolicy = ExecuteLive | ToolError | Drop
OutagePolicy = ExecuteLive | Drop


class OutageLog:
    """Counts the falls of the cache over a run and warns at the first one only."""

    def __init__(self) -> None:
        self.count = 0

    def add(self, error: CacheError) -> None:
        self.count += 1
        if self.count == 1:
            _log.warning("the cache failed, the run's policy applies; further falls are only counted: %s", error)


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheSetup:
    """What all rollouts of a run share when the cache answers their calls."""

    cache: CacheLookup
    namespace: str
    writes: frozenset[str]
    """Tools that may change the world; they are replayed before a live call. See `writing_tools`."""
    on_miss: MissPolicy
    on_outage: OutagePolicy
    tiers: tuple[Tier, ...] | None = None
    """Tiers accepted from the cache; None leaves it to the namespace's policy."""
    outage_log: OutageLog


class CacheTools:
    """Answers one rollout from the cache and follows its state.

    A live session is opened at the first call that needs one. It starts at the task's initial state, so the writes
    that were served until then are replayed in it first: a hit needs no sandbox at all.
    """

    def __init__(
        self,
        setup: CacheSetup,
        open_session: Callable[[], LiveSession] | None,
        *,
        environment: str,
        rollout: str,
        group: str,
    ) -> None:
        if open_session is None and any(isinstance(policy, ExecuteLive) for policy in (setup.on_miss, setup.on_outage)):
            raise ValueError("the policy executes live, so open_session is needed")
        self.outages = 0
        self._setup = setup
        self._environment = environment
        self._open_session = open_session
        self._rollout = rollout
        self._group = group
        self._state: str | None = ""  # "" = the initial state; None = unknown, so that no key can be formed
        self._state_is_true = True  # False once a write was guessed: what is executed then must not be recorded
        self._served_writes: list[ToolRequest] = []
        self._session: LiveSession | None = None

    async def answer(self, requests: Sequence[ToolRequest]) -> list[ToolReply] | Void:
        replies: list[ToolReply] = []
        while len(replies) < len(requests):
            got = await self._next_replies(requests[len(replies) :])
            if isinstance(got, Void):
                return got
            replies += got
        return replies

    async def _next_replies(self, requests: Sequence[ToolRequest]) -> list[ToolReply] | Void:
        """At least one reply: the leading hits and, if one follows them, the handled miss."""
        if self._state is None:
            if self.outages and isinstance(self._setup.on_outage, ExecuteLive):
                return await self._execute(requests[0], "state_unknown", record_at=None)
            return await self._missed(requests[0], "state_unknown", 0.0)
        began = time.perf_counter()
        try:
            answers = await self._setup.cache.lookup(self._setup.namespace, self._items(requests, self._state))
        except (CacheUnavailable, CacheReplyMalformed) as error:
            return await self._outage(requests[0], error)
        except CacheRefused as error:
            if error.status not in REFUSED_REQUEST:
                raise
            return Void(stop=StopReason.INFRASTRUCTURE, why=str(error))
        seconds = (time.perf_counter() - began) / len(requests)
        replies: list[ToolReply] = []
        for request, answer in zip(requests, answers, strict=True):
            if answer.result is None:
                missed = await self._missed(request, answer.reason, seconds, state=answer.state or self._state)
                return missed if isinstance(missed, Void) else replies + missed
            replies.append(self._served(request, answer, answer.result, seconds))
            if self._state is None:  # the rest of the batch was looked up under a state nobody knows
                break
        return replies

    def _items(self, requests: Sequence[ToolRequest], state: str) -> list[LookupItem]:
        return [
            LookupItem(
                tool=request.tool,
                arguments=dict(request.arguments),
                environment=self._environment,
                state="" if place else state,
                follows=place > 0,
                tiers=self._setup.tiers,
                rollout=self._rollout,
                group=self._group,
            )
            for place, request in enumerate(requests)
        ]

    def _served(self, request: ToolRequest, answer: Answer, result: ToolResult, seconds: float) -> ToolReply:
        if request.tool in self._setup.writes:
            self._served_writes.append(request)
            self._state_is_true &= answer.tier == "exact"
        self._state = answer.state_after
        return ToolReply(
            content=result.content,
            is_error=result.is_error,
            tier=answer.tier,
            trust=answer.trust,
            reason=answer.reason,
            seconds=seconds,
        )

    async def _missed(
        self, request: ToolRequest, reason: str, seconds: float, state: str | None = None
    ) -> list[ToolReply] | Void:
        match self._setup.on_miss:
            case Drop():
                return Void(stop=StopReason.MISS_DROPPED, why=f"{request.tool}: {reason}")
            case ToolError(text=text):
                reply = ToolReply(content=text, is_error=True, tier="miss", trust=0.0, reason=reason, seconds=seconds)
                return [reply]
            case ExecuteLive():
                return await self._execute(request, reason, record_at=state)

    async def _outage(self, request: ToolRequest, error: CacheError) -> list[ToolReply] | Void:
        self.outages += 1
        self._setup.outage_log.add(error)
        match self._setup.on_outage:
            case Drop():
                return Void(stop=StopReason.INFRASTRUCTURE, why=str(error))
            case ExecuteLive():
                return await self._execute(request, "cache_unavailable", record_at=None)

    async def _execute(self, request: ToolRequest, reason: str, record_at: str | None) -> list[ToolReply] | Void:
        """Run a call live; `record_at` is the state to record it under, None where that is unknown."""
        began = time.perf_counter()
        try:
            session = await self._session_here()
            result = await asyncio.to_thread(session.execute, request.tool, request.arguments)
        except ToolUnavailable as error:
            return Void(stop=StopReason.INFRASTRUCTURE, why=str(error))
        await self._record(request, result, record_at)
        seconds = time.perf_counter() - began
        reply = ToolReply(
            content=result.content, is_error=result.is_error, tier="live", trust=1.0, reason=reason, seconds=seconds
        )
        return [reply]

    async def _session_here(self) -> LiveSession:
        """The live session, brought to where the rollout is."""
        if self._session is None:
            if self._open_session is None:
                raise ToolUnavailable("no live session can be opened for this rollout")
            self._session = await asyncio.to_thread(self._open_session)
        for write in self._served_writes:
            await asyncio.to_thread(self._session.execute, write.tool, write.arguments)
        self._served_writes.clear()
        return self._session

    async def _record(self, request: ToolRequest, result: ToolResult, state: str | None) -> None:
        """Record a live result and move to the state after it; without a state to record at, the state is lost."""
        if state is None or not self._state_is_true:
            self._lose_state(request)
            return
        item = RecordItem(
            tool=request.tool,
            arguments=dict(request.arguments),
            environment=self._environment,
            state=state,
            result=result,
            rollout=self._rollout,
        )
        try:
            [recorded] = await self._setup.cache.record(self._setup.namespace, [item])
        except RecordRefused:
            self._lose_state(request)
            return
        except CacheRefused as error:
            if error.status not in REFUSED_REQUEST:
                raise
            self._lose_state(request)
            return
        except (CacheUnavailable, CacheReplyMalformed) as error:
            self.outages += 1
            self._setup.outage_log.add(error)
            self._lose_state(request)
            return
        self._state = recorded.state_after

    def _lose_state(self, request: ToolRequest) -> None:
        if request.tool in self._setup.writes:
            self._state = None


class LiveTools:
    """Answers every call by executing it in a world's session: evaluation, and training without a cache."""

    def __init__(self, session: LiveSession) -> None:
        self.outages = 0
        self._session = session

    async def answer(self, requests: Sequence[ToolRequest]) -> list[ToolReply] | Void:
        replies: list[ToolReply] = []
        for request in requests:
            began = time.perf_counter()
            try:
                result = await asyncio.to_thread(self._session.execute, request.tool, request.arguments)
            except ToolUnavailable as error:
                return Void(stop=StopReason.INFRASTRUCTURE, why=str(error))
            replies.append(
                ToolReply(
                    content=result.content,
                    is_error=result.is_error,
                    tier="live",
                    trust=1.0,
                    reason="live",
                    seconds=time.perf_counter() - began,
                )
            )
        return replies


def writing_tools(tools: Sequence[Mapping[str, Any]]) -> frozenset[str]:
    """Names of the tools whose `effect` is "write", or is not said: an unannotated tool may change anything."""
    return frozenset(tool["function"]["name"] for tool in tools if tool.get("effect", "write") == "write")
