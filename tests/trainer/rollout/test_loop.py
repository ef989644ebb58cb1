import asyncio
import math
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cacherl.adapters.hf_tokenizer import HFTokenizer
from cacherl.adapters.memory_cache import MemoryCache
from cacherl.adapters.scripted_engine import LOGPROB, ScriptedEngine, by_turn
from cacherl.errors import EngineFailed, ToolUnavailable
from cacherl.rollout.engine import Engine, Generation, Sampling
from cacherl.rollout.loop import Budgets, CacheAgentLoop, Episode, opening
from cacherl.rollout.parser import CallStatus, Completion, Parser
from cacherl.rollout.renderer import Renderer
from cacherl.rollout.rollout import Rollout, StopReason
from cacherl.rollout.tools import (
    CacheSetup,
    CacheTools,
    Drop,
    ExecuteLive,
    OutageLog,
    ToolError,
    ToolReply,
    ToolRequest,
    Void,
)
from toolcache_client.errors import CacheUnavailable
from toolcache_client.messages import Answer, ToolResult

LOOK = 'so\n</think>\n\n<tool_call>\n{"name": "look", "arguments": {"place": "attic"}}\n</tool_call>'
BAD = "so\n</think>\n\n<tool_call>\nnope\n</tool_call>"
DONE = "ok\n</think>\n\nIn the attic."
THINKING = 'so <tool_call>\n{"name": "look", "arguments": {"place": "attic"}}\n</tool_call>'
PIECES = [
    LOOK,
    BAD,
    DONE,
    THINKING,
    "a <tool_call> or " + THINKING,
    "never closed",
    LOOK + BAD[BAD.index("<tool") :],
    "\n</think>\n\né\u2028",
]


class EchoTools:
    """Answers with what it was asked."""

    def __init__(self) -> None:
        self.outages = 0
        self.away_seconds = 0.0
        self.asked: list[list[str]] = []
        self.closed = 0

    def close(self) -> None:
        self.closed += 1

    async def answer(self, requests: Sequence[ToolRequest]) -> list[ToolReply] | Void:
        self.asked.append([request.tool for request in requests])
        return [
            ToolReply(
                content=f"saw {r.arguments}",
                is_error=False,
                tier="exact",
                trust=0.9,
                reason="exact",
                seconds=0.1,
                cache_seconds=0.05,
                saved_seconds=3.0,
            )
            for r in requests
        ]


class GoneTools:
    outages = 1
    away_seconds = 0.0

    def close(self) -> None:
        pass

    async def answer(self, requests: Sequence[ToolRequest]) -> list[ToolReply] | Void:
        return Void(stop=StopReason.INFRASTRUCTURE, why="cache at :1 gave no answer")


def play(
    renderer: Renderer, parser: Parser, engine: Engine, tools: Any = None, budgets: Budgets | None = None
) -> Rollout:
    loop = CacheAgentLoop(engine, renderer, parser, budgets=budgets or Budgets())
    episode = Episode(task_id="t", messages=opening("Be brief.", "Where?"), open_tools=lambda: tools or EchoTools())
    return asyncio.run(loop.play(episode))


def scripted(renderer: Renderer, *completions: str) -> ScriptedEngine:
    return ScriptedEngine(renderer.tokenizer, by_turn(*completions))


def test_a_rollout_reads_like_the_conversation_it_was(renderer: Renderer, parser: Parser) -> None:
    rollout = play(renderer, parser, scripted(renderer, LOOK, DONE))
    assert renderer.tokenizer.decode(rollout.ids) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhere?<|im_end|>\n<|im_start|>assistant\n<think>\n"
        + LOOK
        + "<|im_end|>\n<|im_start|>user\n<tool_response>\nsaw {'place': 'attic'}\n</tool_response><|im_end|>\n"
        + "<|im_start|>assistant\n<think>\n"
        + DONE
        + "<|im_end|>"
    )
    assert (rollout.stop, rollout.answer, rollout.worst_tier) == (StopReason.ANSWERED, "In the attic.", "exact")
    assert [(c.seconds, c.cache_seconds, c.saved_seconds) for c in rollout.calls] == [(0.1, 0.05, 3.0)]
    assert rollout.cache_seconds == 0.05


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40, deadline=None)
@given(script=st.lists(st.sampled_from(PIECES), min_size=1, max_size=5), turn_tokens=st.integers(1, 400))
def test_ids_mask_and_logprobs_stay_aligned_whatever_the_model_says(
    renderer: Renderer, parser: Parser, script: list[str], turn_tokens: int
) -> None:
    budgets = Budgets(turns=4, turn_tokens=turn_tokens, calls=6, context_tokens=1500)
    rollout = play(renderer, parser, scripted(renderer, *script), budgets=budgets)
    assert len(rollout.ids) == len(rollout.loss_mask) == len(rollout.logprobs)
    sampled = {i for turn in rollout.turns for i in range(turn.start, turn.end)}
    assert {i for i, mask in enumerate(rollout.loss_mask) if mask} == sampled
    assert all(p == (LOGPROB if mask else 0.0) for p, mask in zip(rollout.logprobs, rollout.loss_mask, strict=True))
    assert sum(turn.call_count for turn in rollout.turns) == len(rollout.calls)
    assert len(rollout.ids) <= budgets.context_tokens
    for call in rollout.calls:
        assert call.span is not None
        assert renderer.tokenizer.decode(rollout.ids[slice(*call.span)]).startswith("<tool_call>")
        turn = rollout.turns[call.turn]
        assert turn.start <= call.span[0] < call.span[1] <= turn.end


def test_an_unusable_call_is_told_to_the_model_and_asked_of_nobody(renderer: Renderer, parser: Parser) -> None:
    tools = EchoTools()
    both = LOOK + "\n" + BAD[BAD.index("<tool") :]
    rollout = play(renderer, parser, scripted(renderer, both, DONE), tools)
    assert tools.asked == [["look"]]
    assert [call.status for call in rollout.calls] == [CallStatus.OK, CallStatus.INVALID_JSON]
    assert [call.tier for call in rollout.calls] == ["exact", None]
    heard = renderer.tokenizer.decode(rollout.ids)
    assert "</tool_response>\n<tool_response>\nError: the tool call is not valid JSON" in heard


@pytest.mark.parametrize(
    ("budgets", "stop"),
    [
        (Budgets(turns=2), StopReason.TURN_BUDGET),
        (Budgets(calls=1), StopReason.CALL_BUDGET),
        (Budgets(turn_tokens=10), StopReason.TOKEN_BUDGET),
        (Budgets(sampled_tokens=150), StopReason.TOKEN_BUDGET),
        (Budgets(context_tokens=300), StopReason.TOKEN_BUDGET),
        (Budgets(seconds=1e-9), StopReason.TIME_BUDGET),
    ],
)
def test_every_budget_has_its_stop_reason(
    renderer: Renderer, parser: Parser, budgets: Budgets, stop: StopReason
) -> None:
    rollout = play(renderer, parser, scripted(renderer, LOOK), budgets=budgets)
    assert rollout.stop is stop
    assert rollout.answer == ""
    assert len(rollout.ids) <= budgets.context_tokens
    assert rollout.sampled_count <= budgets.sampled_tokens


def test_a_budget_may_be_used_up_to_its_last_unit(renderer: Renderer, parser: Parser) -> None:
    size = len(renderer.tokenizer.encode(LOOK)) + 1
    done = len(renderer.tokenizer.encode(DONE)) + 1
    free = play(renderer, parser, scripted(renderer, LOOK, DONE))

    def stop(**limits: int) -> StopReason:
        return play(renderer, parser, scripted(renderer, LOOK, DONE), budgets=Budgets(**limits)).stop

    answered, cut = StopReason.ANSWERED, StopReason.TOKEN_BUDGET
    assert (stop(turns=2), stop(turns=1)) == (answered, StopReason.TURN_BUDGET)
    assert (stop(calls=1), stop(calls=0)) == (answered, StopReason.CALL_BUDGET)
    assert (stop(turn_tokens=size), stop(turn_tokens=size - 1)) == (answered, cut)
    assert (stop(sampled_tokens=size + done), stop(sampled_tokens=size + done - 1)) == (answered, cut)
    assert (stop(context_tokens=len(free.ids)), stop(context_tokens=len(free.ids) - 1)) == (answered, cut)


def test_the_calls_of_a_turn_that_exceeds_the_call_budget_are_not_executed(renderer: Renderer, parser: Parser) -> None:
    tools = EchoTools()
    two = LOOK + LOOK[LOOK.index("<tool") :]
    rollout = play(renderer, parser, scripted(renderer, LOOK, two), tools, Budgets(calls=2))
    assert (rollout.stop, tools.asked) == (StopReason.CALL_BUDGET, [["look"]])
    assert [call.reason for call in rollout.calls] == ["exact", "not_executed", "not_executed"]


def test_only_the_first_turn_is_held_to_a_least_length(renderer: Renderer, parser: Parser) -> None:
    engine = scripted(renderer, LOOK, LOOK, DONE)
    play(renderer, parser, engine, budgets=Budgets(first_turn_min_tokens=150))
    assert [sampling.min_tokens for sampling in engine.samplings] == [150, 0, 0]


def test_the_least_length_is_never_more_than_there_is_room_for(renderer: Renderer, parser: Parser) -> None:
    engine = scripted(renderer, DONE)
    play(renderer, parser, engine, budgets=Budgets(first_turn_min_tokens=150, sampled_tokens=100))
    assert [(sampling.min_tokens, sampling.max_tokens) for sampling in engine.samplings] == [(100, 100)]


def test_the_engine_is_told_which_turns_belong_to_one_rollout(renderer: Renderer, parser: Parser) -> None:
    engine = scripted(renderer, LOOK, DONE)
    episode = Episode(task_id="t", messages=opening("", "?"), open_tools=EchoTools)
    loop = CacheAgentLoop(engine, renderer, parser, budgets=Budgets())
    asyncio.run(loop.play_all([episode, episode, replace(episode, rollout="3/t/0")]))
    turns = Counter(sampling.rollout for sampling in engine.samplings)
    assert sorted(turns.values()) == [2, 2, 2]
    assert turns["3/t/0"] == 2 and "" not in turns


def test_the_results_of_a_call_inside_a_thought_stand_behind_a_closed_thought(
    renderer: Renderer, parser: Parser
) -> None:
    rollout = play(renderer, parser, scripted(renderer, THINKING, DONE))
    text = renderer.tokenizer.decode(rollout.completion_ids)
    assert text.startswith(THINKING + "\n</think>\n\n<|im_end|>\n<|im_start|>user\n<tool_response>\nsaw")
    assert [call.tier for call in rollout.calls] == ["exact"]
    first, count = rollout.turns[0], len(renderer.tokenizer.encode(THINKING))
    assert (first.start, first.end) == (rollout.prompt_length, rollout.prompt_length + count)
    assert rollout.loss_mask[first.start : first.end] == (1,) * count
    assert not any(rollout.loss_mask[first.end : rollout.turns[1].start])


def test_a_thought_that_nothing_is_put_behind_stays_as_it_was_sampled(renderer: Renderer, parser: Parser) -> None:
    rollout = play(renderer, parser, scripted(renderer, THINKING), budgets=Budgets(turns=1))
    assert renderer.tokenizer.decode(rollout.completion_ids) == THINKING + "<|im_end|>"
    assert rollout.loss_mask[-1] == 1


@pytest.mark.parametrize("said", [LOOK, THINKING])
def test_results_after_which_nothing_could_be_said_are_not_put_behind_a_turn(
    renderer: Renderer, parser: Parser, said: str
) -> None:
    free = play(renderer, parser, scripted(renderer, said, DONE))
    budgets = Budgets(context_tokens=free.turns[1].start)
    rollout = play(renderer, parser, scripted(renderer, said, DONE), budgets=budgets)
    assert rollout.stop is StopReason.TOKEN_BUDGET
    assert len(rollout.ids) < len(free.ids[: free.turns[1].start])
    assert "tool_response" not in renderer.tokenizer.decode(rollout.ids)


def test_a_thought_that_there_is_no_room_to_close_is_not_closed_and_its_call_not_executed(
    renderer: Renderer, parser: Parser
) -> None:
    tools = EchoTools()
    whole = play(renderer, parser, scripted(renderer, THINKING), budgets=Budgets(turns=1))
    rollout = play(renderer, parser, scripted(renderer, THINKING), tools, Budgets(context_tokens=len(whole.ids)))
    assert (rollout.stop, rollout.ids, tools.asked) == (StopReason.TOKEN_BUDGET, whole.ids, [])


@pytest.mark.parametrize(
    ("said", "is_void"), [(LOOK, False), (DONE, False), (THINKING, False), (BAD, True), ("only a thought", True)]
)
def test_a_turn_is_void_without_a_usable_call_or_visible_text(
    renderer: Renderer, parser: Parser, said: str, is_void: bool
) -> None:
    assert play(renderer, parser, scripted(renderer, said, DONE)).turns[0].is_void is is_void


class StuckTools(EchoTools):
    """Never answers."""

    async def answer(self, requests: Sequence[ToolRequest]) -> list[ToolReply] | Void:
        await asyncio.Event().wait()
        raise AssertionError


def test_time_that_is_over_while_tools_work_ends_the_rollout_and_keeps_what_was_said(
    renderer: Renderer, parser: Parser
) -> None:
    rollout = play(renderer, parser, scripted(renderer, LOOK), StuckTools(), Budgets(seconds=0.05))
    assert (rollout.stop, rollout.why) == (StopReason.TIME_BUDGET, "")
    assert [call.reason for call in rollout.calls] == ["not_executed"]
    assert rollout.sampled_count == len(renderer.tokenizer.encode(LOOK)) + 1


def test_time_that_is_over_because_the_cache_was_away_is_not_held_against_the_model(
    renderer: Renderer, parser: Parser
) -> None:
    class Away(MemoryCache):
        async def lookup(self, *arguments: Any, **terms: Any) -> list[Answer]:
            raise CacheUnavailable("no answer", retry_in_s=60.0)

    setup = CacheSetup(
        cache=Away(frozenset()),
        namespace="n",
        writes=frozenset(),
        on_miss=ToolError(),
        on_outage=Drop(),
        outage_patience_s=1000.0,
        outage_log=OutageLog(),
    )
    tools = CacheTools(setup, None, environment="v1", rollout="r", group="g")
    rollout = play(renderer, parser, scripted(renderer, LOOK), tools, Budgets(seconds=0.05))
    assert (rollout.stop, rollout.outages) == (StopReason.INFRASTRUCTURE, 1)
    assert "the cache was away" in rollout.why


def test_an_outage_that_cost_less_than_the_time_beyond_the_budget_changes_nothing(
    renderer: Renderer, parser: Parser
) -> None:
    tools = StuckTools()
    tools.away_seconds = 1e-9
    rollout = play(renderer, parser, scripted(renderer, LOOK), tools, Budgets(seconds=0.05))
    assert rollout.stop is StopReason.TIME_BUDGET


async def test_a_rollout_that_runs_out_of_time_while_it_executes_leaves_neither_lease_nor_task(
    renderer: Renderer, parser: Parser
) -> None:
    may_end = threading.Event()

    class Stuck:
        def execute(self, tool: str, arguments: Mapping[str, Any]) -> ToolResult:
            assert may_end.wait(20.0)
            return ToolResult(content="too late")

    cache = MemoryCache(frozenset())
    setup = CacheSetup(
        cache=cache,
        namespace="n",
        writes=frozenset(),
        on_miss=ExecuteLive(),
        on_outage=Drop(),
        outage_log=OutageLog(),
    )
    tools = CacheTools(setup, Stuck, environment="v1", rollout="r", group="g")
    two = LOOK + LOOK[LOOK.index("<tool") :].replace("attic", "hall")
    loop = CacheAgentLoop(scripted(renderer, two), renderer, parser, budgets=Budgets(seconds=0.2))
    rollout = await loop.play(Episode(task_id="t", messages=opening("", "?"), open_tools=lambda: tools))
    may_end.set()
    assert (rollout.stop, len(cache.lookups), cache.leases) == (StopReason.TIME_BUDGET, 1, {})
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == {asyncio.current_task()}


def test_a_world_that_cannot_be_opened_voids_the_rollout(renderer: Renderer, parser: Parser) -> None:
    def open_tools() -> EchoTools:
        raise ToolUnavailable("no sandbox left")

    loop = CacheAgentLoop(scripted(renderer, LOOK), renderer, parser, budgets=Budgets())
    rollout = asyncio.run(loop.play(Episode(task_id="t", messages=opening("", "?"), open_tools=open_tools)))
    assert (rollout.stop, rollout.why) == (StopReason.INFRASTRUCTURE, "no sandbox left")


def test_a_world_that_refuses_a_connection_voids_the_rollout_too(renderer: Renderer, parser: Parser) -> None:
    def open_tools() -> EchoTools:
        raise ConnectionRefusedError("sandbox host")

    loop = CacheAgentLoop(scripted(renderer, LOOK), renderer, parser, budgets=Budgets())
    rollout = asyncio.run(loop.play(Episode(task_id="t", messages=opening("", "?"), open_tools=open_tools)))
    assert (rollout.stop, rollout.why) == (StopReason.INFRASTRUCTURE, "ConnectionRefusedError: sandbox host")


class DefectTools(EchoTools):
    async def answer(self, requests: Sequence[ToolRequest]) -> list[ToolReply] | Void:
        raise KeyError("shelf")


def test_a_defect_ends_the_run_and_says_in_which_rollout_it_is(renderer: Renderer, parser: Parser) -> None:
    loop = CacheAgentLoop(scripted(renderer, LOOK), renderer, parser, budgets=Budgets())
    episode = Episode(task_id="t7", messages=opening("", "?"), open_tools=DefectTools, rollout="0/t7/3")
    with pytest.raises(KeyError) as raised:
        asyncio.run(loop.play(episode))
    assert raised.value.__notes__ == ["task t7, rollout 0/t7/3"]


@pytest.mark.parametrize(
    ("kind", "stop"),
    [(EchoTools, StopReason.ANSWERED), (StuckTools, StopReason.TIME_BUDGET), (DefectTools, None)],
)
def test_tools_are_closed_once_however_the_rollout_ends(
    renderer: Renderer, parser: Parser, kind: type[EchoTools], stop: StopReason | None
) -> None:
    tools = kind()
    with suppress(KeyError):
        rollout = play(renderer, parser, scripted(renderer, LOOK, DONE), tools, Budgets(seconds=0.2))
        assert rollout.stop is stop
    assert tools.closed == 1


async def test_tools_are_closed_when_the_rollout_is_cancelled(renderer: Renderer, parser: Parser) -> None:
    is_asked = asyncio.Event()

    class Asked(StuckTools):
        async def answer(self, requests: Sequence[ToolRequest]) -> list[ToolReply] | Void:
            is_asked.set()
            return await super().answer(requests)

    tools = Asked()
    loop = CacheAgentLoop(scripted(renderer, LOOK), renderer, parser, budgets=Budgets())
    task = asyncio.create_task(loop.play(Episode(task_id="t", messages=opening("", "?"), open_tools=lambda: tools)))
    await is_asked.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert tools.closed == 1


async def test_tools_that_open_when_the_rollout_is_over_are_closed(renderer: Renderer, parser: Parser) -> None:
    may_open, is_closed = threading.Event(), threading.Event()

    class Late(EchoTools):
        def close(self) -> None:
            is_closed.set()

    def open_tools() -> EchoTools:
        assert may_open.wait(20.0)
        return Late()

    loop = CacheAgentLoop(scripted(renderer, LOOK), renderer, parser, budgets=Budgets(seconds=0.05))
    rollout = await loop.play(Episode(task_id="t", messages=opening("", "?"), open_tools=open_tools))
    assert (rollout.stop, is_closed.is_set()) == (StopReason.TIME_BUDGET, False)
    may_open.set()
    assert await asyncio.to_thread(is_closed.wait, 20.0)


@pytest.mark.parametrize("error", [None, ToolUnavailable("sandbox died"), OSError("sandbox died")])
def test_a_rollout_is_examined_before_its_tools_are_closed(
    renderer: Renderer, parser: Parser, error: Exception | None
) -> None:
    tools = EchoTools()
    seen: list[tuple[str, int]] = []

    def examine(rollout: Rollout) -> None:
        seen.append((rollout.answer, tools.closed))
        if error is not None:
            raise error

    loop = CacheAgentLoop(scripted(renderer, DONE), renderer, parser, budgets=Budgets())
    episode = Episode(task_id="t", messages=opening("", "?"), open_tools=lambda: tools, examine=examine)
    rollout = asyncio.run(loop.play(episode))
    assert (seen, tools.closed) == ([("In the attic.", 0)], 1)
    assert rollout.stop is (StopReason.ANSWERED if error is None else StopReason.INFRASTRUCTURE)
    assert ("sandbox died" in rollout.why) is (error is not None)


@pytest.mark.parametrize(
    ("budgets", "what"),
    [
        ({"turns": 0}, "turns is 0"),
        ({"turn_tokens": 0}, "turn_tokens is 0"),
        ({"sampled_tokens": 0}, "sampled_tokens is 0"),
        ({"context_tokens": -1}, "context_tokens is -1"),
        ({"calls": -1}, "calls is -1"),
        ({"seconds": 0.0}, "seconds is 0"),
        ({"seconds": math.nan}, "seconds is nan"),
        ({"first_turn_min_tokens": -1}, "first_turn_min_tokens is -1"),
        ({"first_turn_min_tokens": 80, "turn_tokens": 80}, "less than turn_tokens, 80"),
    ],
)
def test_a_budget_that_nothing_can_keep_is_refused(budgets: dict[str, Any], what: str) -> None:
    with pytest.raises(ValueError, match=what):
        Budgets(**budgets)


def test_a_call_that_is_not_closed_ends_before_the_end_of_the_turn(renderer: Renderer, parser: Parser) -> None:
    said = 'so\n</think>\n\n<tool_call>\n{"name": "look"'
    rollout = play(renderer, parser, scripted(renderer, said, DONE))
    [call] = rollout.calls
    assert (call.status, call.span is not None) == (CallStatus.UNCLOSED, True)
    assert renderer.tokenizer.decode(rollout.ids[slice(*(call.span or (0, 0)))]) == '<tool_call>\n{"name": "look"'


def test_a_timeout_that_is_not_the_rollout_s_own_is_not_taken_for_it(renderer: Renderer, parser: Parser) -> None:
    class TimingOut(EchoTools):
        async def answer(self, requests: Sequence[ToolRequest]) -> list[ToolReply] | Void:
            raise TimeoutError("a socket, somewhere")

    with pytest.raises(TimeoutError, match="a socket"):
        play(renderer, parser, scripted(renderer, LOOK), TimingOut())


def test_tokenizer_and_parser_never_work_on_the_event_loop(tokenizer: HFTokenizer, parser: Parser) -> None:
    worked: set[str] = set()

    class Telling:
        """A tokenizer that tells which thread it works in."""

        def encode(self, text: str) -> list[int]:
            worked.add(threading.current_thread().name)
            return tokenizer.encode(text)

        def decode(self, ids: Sequence[int]) -> str:
            worked.add(threading.current_thread().name)
            return tokenizer.decode(ids)

    class TellingParser(Parser):
        def parse(self, text: str) -> Completion:
            worked.add(threading.current_thread().name)
            return parser.parse(text)

    renderer = Renderer(Telling())
    engine = ScriptedEngine(tokenizer, by_turn(LOOK, THINKING, BAD, DONE))
    worked.clear()
    rollout = play(renderer, TellingParser([]), engine)
    assert rollout.stop is StopReason.ANSWERED
    assert worked and all(name.startswith("rollout-text") for name in worked)


def test_a_void_answer_ends_the_rollout_as_infrastructure_not_as_error(renderer: Renderer, parser: Parser) -> None:
    rollout = play(renderer, parser, scripted(renderer, LOOK), GoneTools())
    assert (rollout.stop, rollout.why, rollout.outages) == (
        StopReason.INFRASTRUCTURE,
        "cache at :1 gave no answer",
        1,
    )
    assert [call.reason for call in rollout.calls] == ["not_executed"]


def test_an_engine_that_fails_voids_the_rollout(renderer: Renderer, parser: Parser) -> None:
    class Broken:
        async def generate(self, prompt_ids: Sequence[int], sampling: Sampling) -> Generation:
            raise EngineFailed("out of memory")

    rollout = play(renderer, parser, Broken())
    assert rollout.stop is StopReason.INFRASTRUCTURE
    assert rollout.stop.is_void


def test_trajectories_wait_for_nobody_and_come_back_in_order(
    tokenizer: HFTokenizer, renderer: Renderer, parser: Parser
) -> None:
    gate = asyncio.Event()

    class WaitingTools(EchoTools):
        async def answer(self, requests: Sequence[ToolRequest]) -> list[ToolReply] | Void:
            await gate.wait()
            return await super().answer(requests)

    class OpeningTools(EchoTools):
        async def answer(self, requests: Sequence[ToolRequest]) -> list[ToolReply] | Void:
            gate.set()
            return await super().answer(requests)

    kinds = [WaitingTools, EchoTools, OpeningTools]
    episodes = [Episode(task_id=str(i), messages=opening("", "?"), open_tools=kind) for i, kind in enumerate(kinds)]
    seen: list[tuple[str, int, int]] = []
    loop = CacheAgentLoop(scripted(renderer, LOOK, DONE), renderer, parser, budgets=Budgets())
    rollouts = asyncio.run(
        loop.play_all(episodes, progress=lambda r, done, total: seen.append((r.task_id, done, total)))
    )
    assert [rollout.task_id for rollout in rollouts] == ["0", "1", "2"]
    assert all(rollout.stop is StopReason.ANSWERED for rollout in rollouts)
    assert seen[-1][0] == "0" and [(d, t) for _, d, t in seen] == [(1, 3), (2, 3), (3, 3)]


def test_a_rollout_that_is_not_aligned_cannot_be_made(renderer: Renderer, parser: Parser) -> None:
    rollout = play(renderer, parser, scripted(renderer, DONE))
    fields = {name: getattr(rollout, name) for name in Rollout.__dataclass_fields__}
    with pytest.raises(ValueError, match="logprobs"):
        Rollout(**{**fields, "logprobs": rollout.logprobs[:-1]})
    with pytest.raises(ValueError, match="prompt token is marked"):
        Rollout(**{**fields, "loss_mask": (1, *rollout.loss_mask[1:])})
