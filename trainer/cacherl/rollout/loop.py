"""CacheAgentLoop: plays trajectories, each on its own clock, token in and token out.

There is no barrier between turns: a trajectory goes on as soon as its own tools answered. Ids are only ever
appended; what the model sampled is never decoded and encoded again. The loop imports no framework.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cacherl.errors import EngineFailed
from cacherl.rollout.engine import Engine, Generation, Sampling
from cacherl.rollout.parser import CallStatus, Completion, ParsedCall, Parser, token_spans
from cacherl.rollout.renderer import CALL_CLOSE, CALL_OPEN, THINK_CLOSE, Message, Renderer
from cacherl.rollout.rollout import CallRecord, Rollout, StopReason, Turn
from cacherl.rollout.tools import ToolAnswerer, ToolReply, ToolRequest, Void


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Episode:
    """What to play: the messages before the first turn, and who answers its calls."""

    task_id: str
    messages: Sequence[Message]
    open_tools: Callable[[], ToolAnswerer]
    """Called once, when the rollout starts."""
    group: str = ""
    seed: int = 0
    """Rollouts of one group need different seeds."""


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

    async def play(self, episode: Episode) -> Rollout:
        """Play one trajectory to its end. Failures of infrastructure are a stop reason, not an exception."""
        trace = _Trace(self.renderer, self.renderer.prompt_ids(episode.messages))
        tools = episode.open_tools()
        try:
            async with asyncio.timeout(self.budgets.seconds):
                while trace.stop is None:
                    await self._turn(trace, tools, episode.seed)
        except TimeoutError:
            trace.stop = StopReason.TIME_BUDGET
        except EngineFailed as error:
            trace.stop, trace.why = StopReason.INFRASTRUCTURE, str(error)
        return trace.rollout(episode, outages=tools.outages)

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
        sampling = Sampling(
            max_tokens=room,
            stop_id=self.renderer.end_of_turn_id,
            temperature=self.temperature,
            seed=turn_seed(seed, len(trace.turns)),
        )
        began = time.perf_counter()
        generation = await self.engine.generate(trace.ids, sampling)
        completion = self.parser.parse(self.renderer.tokenizer.decode(generation.ids))
        trace.say(generation, completion, time.perf_counter() - began)
        stop = self._stop_after(generation, completion, trace)
        if stop is None:
            await self._answer(trace, tools, completion)
            return
        trace.keep_unasked(completion)
        trace.stop = stop

    def _room(self, trace: "_Trace") -> int:
        """Tokens the next turn may sample."""
        b = self.budgets
        return min(b.turn_tokens, b.sampled_tokens - sum(trace.mask), b.context_tokens - len(trace.ids))

    def _stop_after(self, generation: Generation, completion: Completion, trace: "_Trace") -> StopReason | None:
        if generation.finish_reason == "length":
            return StopReason.TOKEN_BUDGET
        if not completion.calls:
            return StopReason.ANSWERED
        if len(trace.turns) >= self.budgets.turns:
            return StopReason.TURN_BUDGET
        if len(trace.calls) + len(completion.calls) > self.budgets.calls:
            return StopReason.CALL_BUDGET
        return None

    async def _answer(self, trace: "_Trace", tools: ToolAnswerer, completion: Completion) -> None:
        """Have the usable calls of a turn answered, tell the model what is wrong with the others."""
        usable = [call for call in completion.calls if call.status is CallStatus.OK]
        requests = [ToolRequest(tool=call.name, arguments=call.arguments or {}) for call in usable]
        began = time.perf_counter()
        replies = await tools.answer(requests) if requests else []
        trace.tool_seconds += time.perf_counter() - began
        if isinstance(replies, Void):
            trace.keep_unasked(completion)
            trace.stop, trace.why = replies.stop, replies.why
            return
        trace.keep_answered(completion, replies)
        delta = self.renderer.tool_delta_ids([call.result for call in trace.calls[-len(completion.calls) :]])
        if len(trace.ids) + len(delta) >= self.budgets.context_tokens:
            trace.stop = StopReason.TOKEN_BUDGET
            return
        trace.hear(delta)


def _first(failed: BaseExceptionGroup[BaseException]) -> BaseException:
    """One error of those that ended the rollouts together: usually the same for all, as a cache that refuses."""
    error = failed.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error


def opening(system_prompt: str, request: str) -> tuple[Message, ...]:
    """The messages before the first turn of a one-request task."""
    user = {"role": "user", "content": request}
    return ({"role": "system", "content": system_prompt}, user) if system_prompt else (user,)


def turn_seed(seed: int, turn: int) -> int:
    """A seed for one turn of a rollout, far from those of its neighbours.

    >>> turn_seed(7, 0) != turn_seed(7, 1) != turn_seed(8, 0)
    True
    """
    return (seed * 1_000_003 + turn * 7_919 + 12_345) % (2**63)


class _Trace:
    """A rollout while it is played. Only this class appends, so ids, mask and logprobs stay aligned."""

    def __init__(self, renderer: Renderer, prompt_ids: list[int]) -> None:
        self._marks = [renderer.mark_ids[mark] for mark in (CALL_OPEN, CALL_CLOSE, THINK_CLOSE)]
        self.ids: list[int] = []
        self.mask: list[int] = []
        self.logprobs: list[float] = []
        self.turns: list[Turn] = []
        self.calls: list[CallRecord] = []
        self.stop: StopReason | None = None
        self.why = ""
        self.tool_seconds = 0.0
        self._began = time.perf_counter()
        self._spans: list[tuple[int, int]] = []
        self.hear(prompt_ids)
        self._prompt_length = len(prompt_ids)

    @property
    def elapsed_seconds(self) -> float:
        return time.perf_counter() - self._began

    def hear(self, ids: Sequence[int]) -> None:
        """Append tokens the policy did not sample."""
        self.ids += ids
        self.mask += [0] * len(ids)
        self.logprobs += [0.0] * len(ids)

    def say(self, generation: Generation, completion: Completion, seconds: float) -> None:
        """Append sampled tokens as one turn."""
        start = len(self.ids)
        self.ids += generation.ids
        self.mask += [1] * len(generation.ids)
        self.logprobs += generation.logprobs
        self._spans = [(start + a, start + b) for a, b in token_spans(generation.ids, *self._marks)]
        turn = Turn(
            start=start,
            end=len(self.ids),
            thinking=completion.thinking,
            text=completion.text,
            call_count=len(completion.calls),
            finish_reason=generation.finish_reason,
            weight_version=generation.weight_version,
            seconds=seconds,
        )
        self.turns.append(turn)

    def keep_unasked(self, completion: Completion) -> None:
        """Keep the calls of a turn after which the rollout ends: nobody was asked."""
        for place, call in enumerate(completion.calls):
            self.calls.append(self._record(completion, place, call, None))

    def keep_answered(self, completion: Completion, replies: Sequence[ToolReply]) -> None:
        """Keep the calls of a turn with their replies, which are those of the usable calls in order."""
        rest = iter(replies)
        for place, call in enumerate(completion.calls):
            reply = next(rest) if call.status is CallStatus.OK else None
            self.calls.append(self._record(completion, place, call, reply))

    def _record(self, completion: Completion, place: int, call: ParsedCall, reply: ToolReply | None) -> CallRecord:
        spans_line_up = len(self._spans) == len(completion.calls)
        usable = call.status is CallStatus.OK
        return CallRecord(
            turn=len(self.turns) - 1,
            status=call.status,
            name=call.name,
            arguments=call.arguments,
            span=self._spans[place] if spans_line_up else None,
            tier=reply.tier if reply else None,
            trust=reply.trust if reply else 0.0,
            reason=reply.reason if reply else "not_executed" if usable else "parse",
            result=reply.content if reply else call.error,
            is_error=reply.is_error if reply else not usable,
            seconds=reply.seconds if reply else 0.0,
            cache_seconds=reply.cache_seconds if reply else 0.0,
            saved_seconds=reply.saved_seconds if reply else 0.0,
        )

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
            outages=outages,
        )
