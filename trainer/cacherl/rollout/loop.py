"""CacheAgentLoop: plays trajectories, each on its own clock, token in and token out.

There is no barrier between turns: a trajectory goes on as soon as its own tools answered. Ids are only ever
appended; what the model sampled is never decoded and encoded again. Tokenizer and parser work in threads, so that no
trajectory waits for another's text. The loop imports no framework.
"""

import asyncio
import gc
import time
from array import array
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, TypeVar
from uuid import uuid4

from cacherl.errors import EngineFailed, ToolUnavailable
from cacherl.rollout.engine import Engine, Generation, Sampling
from cacherl.rollout.parser import CallStatus, Completion, ParsedCall, Parser, spans_in_tokens
from cacherl.rollout.renderer import Message, Renderer
from cacherl.rollout.rollout import CallRecord, Rollout, StopReason, Turn
from cacherl.rollout.tools import ToolAnswerer, ToolReply, ToolRequest, Void, in_live_thread, open_in_live_thread

TEXT_THREADS = 4
"""Threads that encode, decode and parse. Few: most of that is done under Python's lock."""

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Budgets:
    """Limits of one rollout; reaching one is a stop reason, not an error."""

    turns: int = 12
    """Turns of the model. The calls of the last one are not executed: nobody would read the results."""
    turn_tokens: int = 1024
    """Sampled tokens of one turn. A turn that is cut ends the rollout."""
    sampled_tokens: int = 8192
    """Sampled tokens of the rollout."""
    context_tokens: int = 16384
    """All tokens of the rollout, prompt and tool results included."""
    calls: int = 32
    """Tool calls of the rollout, unusable ones included."""
    seconds: float = 600.0
    """Wall time of the rollout."""
    first_turn_min_tokens: int = 0
    """Least sampled tokens of the first turn. CacheRL takes 150: without it 42 % of its rollouts never called a tool,
    with it 13 % (arXiv:2606.14179)."""

    def __post_init__(self) -> None:
        for name in ("turns", "turn_tokens", "sampled_tokens", "context_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.calls < 0:
            raise ValueError(f"calls is {self.calls}; it cannot be negative")
        if not self.seconds > 0:
            raise ValueError(f"seconds is {self.seconds:g}; it must be more than 0")
        if not 0 <= self.first_turn_min_tokens < self.turn_tokens:
            raise ValueError(
                f"first_turn_min_tokens is {self.first_turn_min_tokens}; it must be at least 0 and "
                f"less than turn_tokens, {self.turn_tokens}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Episode:
    """What to play: the messages before the first turn, and who answers its calls."""

    task_id: str
    messages: Sequence[Message]
    open_tools: Callable[[], ToolAnswerer]
    """Called once, when the rollout starts."""
    group: str = ""
    rollout: str = ""
    """Names the rollout to the engine; empty: a name is made up."""
    seed: int = 0
    """Rollouts of one group need different seeds."""
    examine: Callable[[Rollout], None] | None = None
    """Told of the finished rollout in a live thread, before its tools are closed: for what only a session that is
    still open can say. What it cannot reach (ToolUnavailable, OSError) voids the rollout."""


Progress = Callable[[Rollout, int, int], None]
"""Told of each finished rollout: the rollout, how many are done, of how many."""


class CacheAgentLoop:
    """Plays episodes with one engine, renderer, parser and set of budgets."""

    def __init__(
        self, engine: Engine, renderer: Renderer, parser: Parser, *, budgets: Budgets, temperature: float = 1.0
    ) -> None:
        self.engine = engine
        self.renderer = renderer
        self.parser = parser
        self.budgets = budgets
        self.temperature = temperature
        self._threads = ThreadPoolExecutor(TEXT_THREADS, thread_name_prefix="rollout-text")  # gone when the loop is

    async def play(self, episode: Episode) -> Rollout:
        """Play one trajectory to its end. Failures of infrastructure are a stop reason, not an exception."""
        prompt_ids = await self._in_thread(self.renderer.prompt_ids, episode.messages)
        trace = _Trace(prompt_ids, name=episode.rollout or uuid4().hex)
        try:
            return await self._played(trace, episode)
        except Exception as error:
            error.add_note(f"task {episode.task_id}, rollout {trace.name}")
            raise

    async def _played(self, trace: "_Trace", episode: Episode) -> Rollout:
        tools: ToolAnswerer | None = None
        try:
            try:
                async with asyncio.timeout(self.budgets.seconds) as clock:
                    tools = await open_in_live_thread(episode.open_tools)  # it may start a sandbox
                    while trace.stop is None:
                        await self._turn(trace, tools, episode.seed)
            except TimeoutError:
                if not clock.expired():  # somebody else's timeout, which nobody has translated
                    raise
                trace.stop = StopReason.TIME_BUDGET
            except (EngineFailed, ToolUnavailable) as error:
                trace.stop, trace.why = StopReason.INFRASTRUCTURE, str(error)
            if trace.stop is StopReason.TIME_BUDGET and tools is not None:
                self._blame_an_outage(trace, tools)
            return await self._examined(trace.rollout(episode, outages=tools.outages if tools else 0), episode)
        finally:
            if tools is not None:
                await in_live_thread(tools.close)

    async def _examined(self, rollout: Rollout, episode: Episode) -> Rollout:
        if episode.examine is not None:
            try:
                await in_live_thread(episode.examine, rollout)
            except ToolUnavailable as error:
                return replace(rollout, stop=StopReason.INFRASTRUCTURE, why=str(error), answer="")
        return rollout

    def _blame_an_outage(self, trace: "_Trace", tools: ToolAnswerer) -> None:
        """Void a rollout that would have had time left but for a cache that was away: that is no fault of the model."""
        if trace.elapsed_seconds - tools.away_seconds < self.budgets.seconds:
            trace.stop = StopReason.INFRASTRUCTURE
            trace.why = f"out of time: the cache was away for {tools.away_seconds:.1f} s of {self.budgets.seconds:g} s"

    async def play_all(
        self, episodes: Sequence[Episode], *, concurrency: int = 64, progress: Progress | None = None
    ) -> list[Rollout]:
        """Play many, at most `concurrency` at a time; rollouts come back in the order of the episodes.

        Raises what a rollout raised, such as CacheRefused for a namespace that is not there.
        """
        gate = asyncio.Semaphore(concurrency)
        done = 0

        async def one(episode: Episode) -> Rollout:
            nonlocal done
            async with gate:
                rollout = await self.play(episode)
            done += 1
            if progress is not None:
                progress(rollout, done, len(episodes))
            return rollout

        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(one(episode)) for episode in episodes]
        except BaseExceptionGroup as failed:
            raise _first(failed) from failed
        return [task.result() for task in tasks]

    async def _turn(self, trace: "_Trace", tools: ToolAnswerer, seed: int) -> None:
        if trace.elapsed_seconds >= self.budgets.seconds:  # for engines and tools that never let go of the event loop
            trace.stop = StopReason.TIME_BUDGET
            return
        room = self._room(trace)
        if room <= 0:
            trace.stop = StopReason.TOKEN_BUDGET
            return
        began = time.perf_counter()
        generation = await self.engine.generate(tuple(trace.ids), self._sampling(trace, room, seed))
        generated = time.perf_counter()
        completion, spans = await self._in_thread(self._understand, generation.ids)
        closing = self._closing(generation, completion)
        stop = self._stop_after(generation, completion, trace, len(closing))
        trace.say(generation, completion, spans, closing if stop is None else (), seconds=generated - began)
        trace.stop = stop
        if stop is None:
            await self._answer(trace, tools, completion)

    def _sampling(self, trace: "_Trace", room: int, seed: int) -> Sampling:
        return Sampling(
            max_tokens=room,
            stop_id=self.renderer.end_of_turn_id,
            temperature=self.temperature,
            min_tokens=0 if trace.turns else min(self.budgets.first_turn_min_tokens, room),
            rollout=trace.name,
            seed=turn_seed(seed, len(trace.turns)),
        )

    def _understand(self, ids: Sequence[int]) -> tuple[Completion, list[tuple[int, int]]]:
        """The parsed turn, and the half-open token span of each of its calls."""
        decode = self.renderer.tokenizer.decode
        completion = self.parser.parse(decode(ids))
        return completion, spans_in_tokens([(call.start, call.end) for call in completion.calls], ids, decode)

    def _closing(self, generation: Generation, completion: Completion) -> Sequence[int]:
        """What takes the place of the sampled end of a turn that called a tool in the middle of its thinking.

        Without it the model would read the results as part of a thought that it had never closed.
        """
        is_open = completion.calls and not completion.thinking_closed
        return self.renderer.close_thinking_ids if is_open and generation.finish_reason == "stop" else ()

    def _room(self, trace: "_Trace") -> int:
        """Tokens the next turn may sample."""
        b = self.budgets
        return min(b.turn_tokens, b.sampled_tokens - trace.sampled_count, b.context_tokens - len(trace.ids))

    def _stop_after(
        self, generation: Generation, completion: Completion, trace: "_Trace", closing_count: int
    ) -> StopReason | None:
        if generation.finish_reason == "length":
            return StopReason.TOKEN_BUDGET
        if not completion.calls:
            return StopReason.ANSWERED
        if len(trace.turns) + 1 >= self.budgets.turns:
            return StopReason.TURN_BUDGET
        if len(trace.calls) + len(completion.calls) > self.budgets.calls:
            return StopReason.CALL_BUDGET
        if len(trace.ids) + len(generation.ids) + closing_count >= self.budgets.context_tokens:
            return StopReason.TOKEN_BUDGET
        return None

    async def _answer(self, trace: "_Trace", tools: ToolAnswerer, completion: Completion) -> None:
        """Have the usable calls of a turn answered, tell the model what is wrong with the others."""
        usable = [call for call in completion.calls if call.status is CallStatus.OK]
        requests = [ToolRequest(tool=call.name, arguments=call.arguments or {}) for call in usable]
        began = time.perf_counter()
        try:
            replies = await tools.answer(requests) if requests else []
        finally:
            trace.tool_seconds += time.perf_counter() - began
        if isinstance(replies, Void):
            trace.stop, trace.why = replies.stop, replies.why
            return
        trace.keep_replies(replies)
        results = [call.result for call in trace.calls[-len(completion.calls) :]]
        delta = await self._in_thread(self.renderer.tool_delta_ids, results)
        if len(trace.ids) + len(delta) >= self.budgets.context_tokens:
            trace.stop = StopReason.TOKEN_BUDGET
            return
        trace.hear(delta)

    async def _in_thread(self, work: Callable[..., _T], *arguments: Any) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work, *arguments)


def _first(failed: BaseExceptionGroup[BaseException]) -> BaseException:
    """One error of those that ended the rollouts together: usually the same for all, as a cache that refuses."""
    error = failed.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error


def opening(system_prompt: str, request: str) -> tuple[Message, ...]:
    """The messages before the first turn of a one-request task."""
    user = {"role": "user", "content": request}
    return ({"role": "system", "content": system_prompt}, user) if system_prompt else (user,)


def settle_garbage() -> None:
    """Collect once, and leave all that lives now out of later collections.

    What a process with torch has imported takes a full collection some 0.3 s to walk, during which no rollout moves.
    """
    gc.collect()
    gc.freeze()


def turn_seed(seed: int, turn: int) -> int:
    """A seed for one turn of a rollout, far from those of its neighbours.

    >>> turn_seed(7, 0) != turn_seed(7, 1) != turn_seed(8, 0)
    True
    """
    return (seed * 1_000_003 + turn * 7_919 + 12_345) % (2**63)


class _Trace:
    """A rollout while it is played. Only this class appends, so ids, mask and logprobs stay aligned."""

    def __init__(self, prompt_ids: list[int], name: str) -> None:
        self.name = name
        # Arrays: a garbage collection would walk every element of hundreds of long lists, and all rollouts wait for it.
        self.ids = array("q")
        self.mask = array("b")
        self.logprobs = array("d")
        self.turns: list[Turn] = []
        self.calls: list[CallRecord] = []
        self.stop: StopReason | None = None
        self.why = ""
        self.sampled_count = 0
        self.tool_seconds = 0.0
        self._began = time.perf_counter()
        self._prompt_length = len(prompt_ids)
        self.hear(prompt_ids)

    @property
    def elapsed_seconds(self) -> float:
        return time.perf_counter() - self._began

    def hear(self, ids: Sequence[int]) -> None:
        """Append tokens the policy did not sample."""
        self.ids.extend(ids)
        self.mask.extend([0] * len(ids))
        self.logprobs.extend([0.0] * len(ids))

    def say(
        self,
        generation: Generation,
        completion: Completion,
        spans: Sequence[tuple[int, int]],
        closing: Sequence[int],
        *,
        seconds: float,
    ) -> None:
        """Append sampled tokens as one turn, whose calls nobody has answered yet.

        Where there is a `closing`, the last token gives way to it.
        """
        start = len(self.ids)
        count = len(generation.ids) - 1 if closing else len(generation.ids)
        self.ids.extend(generation.ids[:count])
        self.mask.extend([1] * count)
        self.logprobs.extend(generation.logprobs[:count])
        self.sampled_count += count
        is_usable = any(call.status is CallStatus.OK for call in completion.calls)
        turn = Turn(
            start=start,
            end=len(self.ids),
            thinking=completion.thinking,
            text=completion.text,
            call_count=len(completion.calls),
            finish_reason=generation.finish_reason,
            weight_version=generation.weight_version,
            seconds=seconds,
            is_void=not is_usable and not completion.text,
        )
        self.turns.append(turn)
        for call, (first, end) in zip(completion.calls, spans, strict=True):
            self.calls.append(_unasked(len(self.turns) - 1, call, (start + first, start + end)))
        self.hear(closing)

    def keep_replies(self, replies: Sequence[ToolReply]) -> None:
        """Put the replies to the calls of the last turn, which are those of the usable ones in order."""
        rest = iter(replies)
        for place in range(len(self.calls) - self.turns[-1].call_count, len(self.calls)):
            if self.calls[place].status is CallStatus.OK:
                self.calls[place] = _answered(self.calls[place], next(rest))

    def rollout(self, episode: Episode, outages: int) -> Rollout:
        stop = self.stop or StopReason.ANSWERED
        return Rollout(
            task_id=episode.task_id,
            group=episode.group,
            ids=tuple(self.ids),
            loss_mask=tuple(self.mask),
            logprobs=tuple(self.logprobs),
            prompt_length=self._prompt_length,
            turns=tuple(self.turns),
            calls=tuple(self.calls),
            stop=stop,
            why=self.why,
            answer=self.turns[-1].text if stop is StopReason.ANSWERED and self.turns else "",
            seconds=self.elapsed_seconds,
            generate_seconds=sum(turn.seconds for turn in self.turns),
            tool_seconds=self.tool_seconds,
            cache_seconds=sum(call.cache_seconds for call in self.calls),
            outages=outages,
        )


def _unasked(turn: int, call: ParsedCall, span: tuple[int, int]) -> CallRecord:
    """A call that nobody was asked about: yet, or at all, for it is unusable or the rollout ends with it."""
    is_usable = call.status is CallStatus.OK
    return CallRecord(
        turn=turn,
        status=call.status,
        name=call.name,
        arguments=call.arguments,
        span=span,
        tier=None,
        trust=0.0,
        reason="not_executed" if is_usable else "parse",
        result=call.error,
        is_error=not is_usable,
        seconds=0.0,
    )


def _answered(call: CallRecord, reply: ToolReply) -> CallRecord:
    return replace(
        call,
        tier=reply.tier,
        trust=reply.trust,
        reason=reply.reason,
        result=reply.content,
        is_error=reply.is_error,
        seconds=reply.seconds,
        cache_seconds=reply.cache_seconds,
        saved_seconds=reply.saved_seconds,
    )
