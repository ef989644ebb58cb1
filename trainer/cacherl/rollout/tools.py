"""Who answers the calls of one rollout: the cache, with a policy for what it lacks, or a live world.

An answerer belongs to one rollout and follows its state. It is asked with all calls of a turn at once and answers
in their order. It never raises for what an infrastructure did: it returns Void, and the rollout ends unscored.

Of all rollouts that miss the same call at once, one executes it under a lease and the others wait for its result. A
cache that is away is waited for before the run's policy applies.

Not covered: executing calls of one turn side by side, since they share a session.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar, cast

from cacherl.errors import ToolUnavailable
from cacherl.rollout.rollout import AnswerTier, StopReason
from toolcache_client.errors import CacheError, CacheRefused, CacheReplyMalformed, CacheUnavailable
from toolcache_client.messages import Answer, LookupItem, OnMiss, Recorded, RecordItem, Tier, ToolResult
from toolcache_client.resolve import LEASE_S, PATIENCE_S, WAIT_AT_ONCE_S, Resolved, resolve_async

_log = logging.getLogger(__name__)

REFUSED_REQUEST = (400, 413, 422)
"""Refusals of this one request (too large, not to be carried): a lookup's ends the rollout, a record's costs the state,
neither the run. A 404 or 401 is the run's mistake, and every other rollout's too."""
MISS_TEXT = "Error: no recorded result for this call"
"""What the model reads when the cache has no answer and the policy is ToolError."""
OUTAGE_PAUSE_S = 1.0
"""Seconds before a cache that is away is asked again, unless it says how long that would be in vain."""
LIVE_THREADS = 128
"""Live calls at once: a thread each, which mostly waits for a sandbox. Started when needed."""

_threads = ThreadPoolExecutor(LIVE_THREADS, thread_name_prefix="live-tool")  # asyncio's own has a few a core

_T = TypeVar("_T")


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
    """Wall time this rollout waited for it; the calls that were answered by one lookup share its time evenly."""
    cache_seconds: float = 0.0
    """The part of `seconds` that was spent asking the cache and telling it results, one that is away included."""
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
    away_seconds: float
    """Seconds the rollout has lost to a cache that was away, those of an `answer` that was cancelled included."""

    async def answer(self, requests: Sequence[ToolRequest]) -> list[ToolReply] | Void:
        """One reply per request, in their order, or Void."""
        ...

    def close(self) -> None:
        """Let go of what the rollout held, as a sandbox: now, or as soon as a call under way has ended. Called once,
        in a thread, after the last `answer`; does not raise for what cannot be closed."""
        ...


class LiveSession(Protocol):
    """What is needed of a world's session (worlds/world.py).

    It may have a `close()`, which is called once, after everything else, however the rollout ended. The rollout waits
    for it, so it must end by itself too.
    """

    def execute(self, tool: str, arguments: Mapping[str, Any]) -> ToolResult:
        """Must end by itself: nobody can stop a thread.

        Raises ToolUnavailable, or any OSError (a TimeoutError is one), when the tool could not be reached; what else it
        raises is a defect of the world and ends the run.
        """
        ...


class CacheLookup(Protocol):
    """What is needed of toolcache_client.AsyncCacheClient."""

    async def lookup(
        self,
        namespace: str,
        items: Sequence[LookupItem],
        *,
        on_miss: OnMiss = "fail",
        wait_s: float = 0.0,
        lease_s: float = LEASE_S,
    ) -> list[Answer]: ...

    async def record(self, namespace: str, items: Sequence[RecordItem]) -> list[Recorded]: ...

    async def extend_lease(self, namespace: str, lease_id: str, *, extend_s: float = LEASE_S) -> bool: ...

    async def release_lease(self, namespace: str, lease_id: str) -> bool: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecuteLive:
    """Run the call on a live tool. On a miss the result is recorded, so that it is a hit from then on; whoever misses
    the same call meanwhile waits for it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolError:
    """The model reads an error text instead of a result; the state stays as it was."""

    text: str = MISS_TEXT


@dataclass(frozen=True, slots=True, kw_only=True)
class Drop:
    """The rollout is void."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wait:
    """Wait for the result if another rollout or job is executing the call; this run executes nothing."""

    wait_s: float = 30.0
    then: ToolError | Drop = Drop()
    """What happens when nobody executes it, or not in time."""


MissPolicy = ExecuteLive | Wait | ToolError | Drop
OutagePolicy = ExecuteLive | Drop


class OutageLog:
    """Counts the falls of the cache over a run and warns at the first one only."""

    def __init__(self) -> None:
        self.count = 0

    def add(self, error: CacheError) -> None:
        self.count += 1
        if self.count == 1:
            _log.warning(
                "the cache failed; rollouts wait for it, then the run's policy applies; "
                "further falls are only counted: %s",
                error,
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheSetup:
    """What all rollouts of a run share when the cache answers their calls."""

    cache: CacheLookup
    namespace: str
    writes: frozenset[str]
    """Tools that may change the world; they are replayed before a live call. See `writing_tools`."""
    on_miss: MissPolicy
    on_outage: OutagePolicy
    outage_patience_s: float = 60.0
    """Seconds a rollout waits, all its outages together, for a cache that is away, before `on_outage` applies. A
    restart takes less."""
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
        self.away_seconds = 0.0
        self._setup = setup
        self._cache = _WatchedCache(setup.cache, self._time_lost)
        self._environment = environment
        self._live = None if open_session is None else _OwnSession(open_session)
        self._rollout = rollout
        self._group = group
        self._state: str | None = ""  # "" = the initial state; None = unknown, so that no key can be formed
        self._state_is_true = True  # False once a write was guessed: what is executed then must not be recorded
        self._served_writes: list[ToolRequest] = []
        self._leases: set[str] = set()  # granted for calls of this turn that are still to come

    async def answer(self, requests: Sequence[ToolRequest]) -> list[ToolReply] | Void:
        replies: list[ToolReply] = []
        while len(replies) < len(requests):
            got = await self._next_replies(requests[len(replies) :])
            if isinstance(got, Void):
                return got
            replies += got
        return replies

    def close(self) -> None:
        if self._live is not None:
            self._live.close()

    async def _next_replies(self, requests: Sequence[ToolRequest]) -> list[ToolReply] | Void:
        """At least one reply: up to the call after which the others must be asked about anew."""
        if self._state is None:
            return _listed(await self._in_unknown_state(requests[0]))
        began = time.perf_counter()
        try:
            answers = await self._lookup(self._items(requests, self._state), self._on_miss)
            seconds = time.perf_counter() - began
            replies = await self._replies(requests, answers)
        except (CacheUnavailable, CacheReplyMalformed) as error:
            seconds = time.perf_counter() - began
            replies = _listed(await self._in_outage(requests[0], error))
        except CacheRefused as error:
            if error.status not in REFUSED_REQUEST:
                raise
            return Void(stop=StopReason.INFRASTRUCTURE, why=str(error))
        finally:
            await self._give_back()
        if isinstance(replies, Void):
            return replies
        share = seconds / len(replies)
        return [replace(r, seconds=r.seconds + share, cache_seconds=r.cache_seconds + share) for r in replies]

    async def _replies(self, requests: Sequence[ToolRequest], answers: Sequence[Answer]) -> list[ToolReply] | Void:
        """A reply for each answer that still holds when its turn comes; the first one does."""
        self._leases = {answer.lease for answer in answers if answer.lease is not None}
        self._state = answers[0].state or self._state
        replies: list[ToolReply] = []
        for request, answer in zip(requests, answers, strict=True):
            if replies and not self._still_holds(answer):
                break
            try:
                reply = await self._reply(request, answer)
            except (CacheUnavailable, CacheReplyMalformed):
                if replies:  # what was answered stays answered; from here on it is asked about anew
                    break
                raise
            if isinstance(reply, Void):
                return reply
            replies.append(reply)
        return replies

    def _still_holds(self, answer: Answer) -> bool:
        """Whether the answer was looked up in the state where the rollout now is, and its lease was not given back."""
        if self._state is None or answer.state != self._state:
            return False
        return answer.lease is None or answer.lease in self._leases

    async def _reply(self, request: ToolRequest, answer: Answer) -> ToolReply | Void:
        policy = self._setup.on_miss
        records = isinstance(policy, ExecuteLive) and self._state_is_true
        if answer.result is not None and not (answer.shadow and records):
            return self._served(request, answer, answer.result)
        if records:
            return await self._resolve(request, answer)
        if isinstance(policy, Wait) and answer.reason == "leased":
            return await self._wait(request, answer, policy)
        return await self._missed(request, answer.reason)

    def _served(self, request: ToolRequest, answer: Answer, result: ToolResult, seconds: float = 0.0) -> ToolReply:
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
            saved_seconds=result.took_s,
        )

    # -- asking --------------------------------------------------------------------------------------------------------

    @property
    def _on_miss(self) -> OnMiss:
        match self._setup.on_miss:
            case ExecuteLive():  # what follows a guess is executed for this rollout alone
                return "lease" if self._state_is_true else "fail"
            case Wait():
                return "wait"
            case ToolError() | Drop():
                return "fail"

    def _items(self, requests: Sequence[ToolRequest], state: str) -> list[LookupItem]:
        """The calls of a turn; only those behind a write follow the call before them, for reads leave the state."""
        items: list[LookupItem] = []
        follows = False
        for request in requests:
            items.append(self._item(request, "" if follows else state, follows=follows))
            follows = follows or request.tool in self._setup.writes
        return items

    def _item(self, request: ToolRequest, state: str, *, follows: bool = False) -> LookupItem:
        return LookupItem(
            tool=request.tool,
            arguments=dict(request.arguments),
            environment=self._environment,
            state=state,
            follows=follows,
            tiers=self._setup.tiers,
            rollout=self._rollout,
            group=self._group,
        )

    async def _lookup(self, items: Sequence[LookupItem], on_miss: OnMiss, wait_s: float = 0.0) -> list[Answer]:
        async def ask() -> list[Answer]:
            return await self._cache.lookup(self._setup.namespace, items, on_miss=on_miss, wait_s=wait_s)

        return await self._patiently(ask)

    async def _patiently(self, ask: Callable[[], Awaitable[_T]]) -> _T:
        """What the cache says; one that is away is asked again while the rollout's patience lasts.

        Raises CacheUnavailable when that is over, and what else the cache raises.
        """
        has_fallen = False
        while True:
            try:
                return await ask()
            except CacheReplyMalformed as error:  # something else answers there, and will go on doing so
                self._fell(error)
                raise
            except CacheUnavailable as error:
                if not has_fallen:
                    self._fell(error)
                has_fallen = True
                pause_s = max(error.retry_in_s, OUTAGE_PAUSE_S)
                if self.away_seconds + pause_s > self._setup.outage_patience_s:
                    raise
            await self._sit_out(pause_s)

    async def _sit_out(self, pause_s: float) -> None:
        began = time.perf_counter()
        try:
            await asyncio.sleep(pause_s)
        finally:
            self.away_seconds += time.perf_counter() - began

    @contextmanager
    def _time_lost(self, wait_s: float) -> Iterator[None]:
        """Count what one request to the cache took beyond the `wait_s` that it was asked to wait, unless it answers."""
        began = time.perf_counter()
        try:
            yield
        except (CacheUnavailable, asyncio.CancelledError):  # cancelled: the time was over before it said anything
            self.away_seconds += max(0.0, time.perf_counter() - began - wait_s)
            raise

    def _fell(self, error: CacheError) -> None:
        self.outages += 1
        self._setup.outage_log.add(error)

    async def _give_back(self) -> None:
        """Let go of the leases that were not used, so that whoever waits for them gets to work."""
        leases, self._leases = self._leases, set()
        with suppress(CacheError):  # a lease that cannot be given back ends by itself
            for lease in leases:
                await self._cache.release_lease(self._setup.namespace, lease)

    # -- what the cache does not have ----------------------------------------------------------------------------------

    async def _resolve(self, request: ToolRequest, answer: Answer) -> ToolReply | Void:
        """Execute a call under its lease and record the result, or wait for whoever has the lease."""
        if answer.lease is not None:
            self._leases.discard(answer.lease)  # from here on it is resolve's to extend and to end
        elif answer.reason == "leased":
            await self._give_back()  # two rollouts that hold what the other one waits for would wait for good
        item = self._item(request, self._state or "")
        began = time.perf_counter()
        executed_at: float | None = None

        async def execute() -> ToolResult:
            nonlocal executed_at
            result = await self._run(request)
            executed_at = time.perf_counter()
            return result

        async def resolve() -> Resolved:
            setup = self._setup
            return await resolve_async(
                self._cache,
                setup.namespace,
                item,
                execute,
                lease_s=LEASE_S,
                wait_s=PATIENCE_S,
                tags=(),
                answer=answer,
            )

        try:
            resolved = await self._patiently(resolve)
        except ToolUnavailable as error:
            return Void(stop=StopReason.INFRASTRUCTURE, why=str(error))
        ended = time.perf_counter()
        if executed_at is None:
            return self._served(request, resolved.answer, resolved.result, ended - began)
        self._move_on(request, resolved)
        return _live(resolved.result, resolved.reason, ended - began, recording_s=ended - executed_at)

    def _move_on(self, request: ToolRequest, resolved: Resolved) -> None:
        """To the state after a live call; without a record of a write that state is unknown."""
        match resolved.unrecorded:
            case CacheUnavailable() | CacheReplyMalformed() as error:
                self._fell(error)
            case CacheRefused() as error if error.status not in REFUSED_REQUEST:
                raise error
        if resolved.unrecorded is None:
            self._state = resolved.state_after
        elif request.tool in self._setup.writes:
            self._state = None

    async def _wait(self, request: ToolRequest, answer: Answer, policy: Wait) -> ToolReply | Void:
        """Wait for somebody else's execution, as long as the policy says."""
        item = self._item(request, self._state or "")
        began = time.perf_counter()
        while answer.reason == "leased" and (left_s := began + policy.wait_s - time.perf_counter()) > 0:
            [answer] = await self._lookup([item], "wait", min(left_s, WAIT_AT_ONCE_S))
        seconds = time.perf_counter() - began
        if answer.result is not None:
            return self._served(request, answer, answer.result, seconds)
        return await self._missed(request, answer.reason, seconds)

    async def _missed(self, request: ToolRequest, reason: str, seconds: float = 0.0) -> ToolReply | Void:
        policy = self._setup.on_miss
        match policy.then if isinstance(policy, Wait) else policy:
            case Drop():
                return Void(stop=StopReason.MISS_DROPPED, why=f"{request.tool}: {reason}")
            case ToolError(text=text):
                return ToolReply(content=text, is_error=True, tier="miss", trust=0.0, reason=reason, seconds=seconds)
            case ExecuteLive():
                return await self._execute(request, reason)

    async def _in_unknown_state(self, request: ToolRequest) -> ToolReply | Void:
        """What was lost in an outage is the outage's policy's, any other lost state is a miss."""
        if self.outages and isinstance(self._setup.on_outage, ExecuteLive):
            return await self._execute(request, "state_unknown")
        return await self._missed(request, "state_unknown")

    async def _in_outage(self, request: ToolRequest, error: CacheError) -> ToolReply | Void:
        match self._setup.on_outage:
            case Drop():
                return Void(stop=StopReason.INFRASTRUCTURE, why=str(error))
            case ExecuteLive():
                return await self._execute(request, "cache_unavailable")

    async def _execute(self, request: ToolRequest, reason: str) -> ToolReply | Void:
        """Run a call live without recording it: where the state is unknown or guessed, or the cache away."""
        began = time.perf_counter()
        try:
            result = await self._run(request)
        except ToolUnavailable as error:
            return Void(stop=StopReason.INFRASTRUCTURE, why=str(error))
        if request.tool in self._setup.writes:
            self._state = None
        return _live(result, reason, time.perf_counter() - began)

    async def _run(self, request: ToolRequest) -> ToolResult:
        """Run a call in the live session, after bringing it to where the rollout is."""
        if self._live is None:
            raise ToolUnavailable("no live session can be opened for this rollout")
        for write in self._served_writes:
            await self._live.execute(write)
        self._served_writes.clear()
        return await self._live.execute(request)


class LiveTools:
    """Answers every call by executing it in a world's session: evaluation, and training without a cache."""

    def __init__(self, session: LiveSession) -> None:
        self.outages = 0
        self.away_seconds = 0.0
        self._live = _OwnSession(session=session)

    async def answer(self, requests: Sequence[ToolRequest]) -> list[ToolReply] | Void:
        replies: list[ToolReply] = []
        for request in requests:
            began = time.perf_counter()
            try:
                result = await self._live.execute(request)
            except ToolUnavailable as error:
                return Void(stop=StopReason.INFRASTRUCTURE, why=str(error))
            replies.append(_live(result, "live", time.perf_counter() - began))
        return replies

    def close(self) -> None:
        self._live.close()


def writing_tools(tools: Sequence[Mapping[str, Any]]) -> frozenset[str]:
    """Names of the tools whose `effect` is "write", or is not said: an unannotated tool may change anything."""
    return frozenset(tool["function"]["name"] for tool in tools if tool.get("effect", "write") == "write")


async def in_live_thread(work: Callable[..., _T], *arguments: Any) -> _T:
    """Do what may wait for a sandbox, without keeping the event loop or the tokenizers waiting.

    An OSError of the work comes out as ToolUnavailable. Once the work was handed over it is done, cancelled or not.
    """
    return await asyncio.shield(asyncio.wrap_future(_threads.submit(_reaching, work, *arguments)))


async def open_in_live_thread(open_tools: Callable[[], ToolAnswerer]) -> ToolAnswerer:
    """What `open_tools` returns; if nobody waits for it any more when it does, it is closed."""
    opening = _threads.submit(_reaching, open_tools)
    try:
        return await asyncio.wrap_future(opening)
    except asyncio.CancelledError:
        opening.add_done_callback(_close_unused)
        raise


def close_session(session: LiveSession) -> None:
    """Call the session's `close`, if it has one."""
    close: Callable[[], None] | None = getattr(session, "close", None)
    if close is not None:
        close()


class _OwnSession:
    """The live session of one rollout: opened when it is first needed, closed when its last call has ended.

    Never used by two threads at once.
    """

    def __init__(
        self, open_session: Callable[[], LiveSession] | None = None, *, session: LiveSession | None = None
    ) -> None:
        self._open = open_session
        self._session = session
        self._work: Future[Any] | None = None

    async def execute(self, request: ToolRequest) -> ToolResult:
        """Raises ToolUnavailable, and what the world has not foreseen, with the tool's name."""
        self._work = work = _threads.submit(self._execute, request)
        return await asyncio.wrap_future(work)

    def close(self) -> None:
        if self._work is None:
            self._close()
        else:  # a thread cannot be stopped: the call that the rollout did not wait for may still be under way
            self._work.add_done_callback(lambda _: self._close())

    def _execute(self, request: ToolRequest) -> ToolResult:
        try:
            if self._session is None and self._open is not None:
                self._session = self._open()
            return _timed(cast(LiveSession, self._session), request)
        except OSError as error:
            raise ToolUnavailable(f"tool {request.tool}: {type(error).__name__}: {error}") from error
        except Exception as error:
            error.add_note(f"tool {request.tool}")
            raise

    def _close(self) -> None:
        if self._session is None:
            return
        try:
            close_session(self._session)
        except Exception:  # noqa: BLE001 - whatever a sandbox leaves behind must not cost the rollout that was played
            _log.warning("a live session could not be closed", exc_info=True)


class _WatchedCache:
    """The cache, with each request that a rollout waits for under a watch, told how long it was asked to wait."""

    def __init__(self, cache: CacheLookup, watch: Callable[[float], AbstractContextManager[None]]) -> None:
        self._cache = cache
        self._watch = watch
        self.extend_lease = cache.extend_lease
        self.release_lease = cache.release_lease

    async def lookup(
        self,
        namespace: str,
        items: Sequence[LookupItem],
        *,
        on_miss: OnMiss = "fail",
        wait_s: float = 0.0,
        lease_s: float = LEASE_S,
    ) -> list[Answer]:
        with self._watch(wait_s):
            return await self._cache.lookup(namespace, items, on_miss=on_miss, wait_s=wait_s, lease_s=lease_s)

    async def record(self, namespace: str, items: Sequence[RecordItem]) -> list[Recorded]:
        with self._watch(0.0):
            return await self._cache.record(namespace, items)


def _reaching(work: Callable[..., _T], *arguments: Any) -> _T:
    """The work's result. Raises ToolUnavailable where it could not reach what it works with."""
    try:
        return work(*arguments)
    except OSError as error:
        raise ToolUnavailable(f"{type(error).__name__}: {error}") from error


def _close_unused(opening: Future[ToolAnswerer]) -> None:
    if not opening.cancelled() and opening.exception() is None:
        opening.result().close()


def _live(result: ToolResult, reason: str, seconds: float, recording_s: float = 0.0) -> ToolReply:
    return ToolReply(
        content=result.content,
        is_error=result.is_error,
        tier="live",
        trust=1.0,
        reason=reason,
        seconds=seconds,
        cache_seconds=recording_s,
    )


def _listed(reply: ToolReply | Void) -> list[ToolReply] | Void:
    return reply if isinstance(reply, Void) else [reply]


def _timed(session: LiveSession, request: ToolRequest) -> ToolResult:
    """The result with the seconds it took, where the session does not tell them: what a hit will save."""
    began = time.perf_counter()
    result = session.execute(request.tool, request.arguments)
    took_s = result.took_s or time.perf_counter() - began
    return ToolResult(content=result.content, is_error=result.is_error, took_s=took_s)
