import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cacherl.adapters.hf_tokenizer import HFTokenizer
from cacherl.adapters.scripted_engine import LOGPROB, ScriptedEngine, by_turn
from cacherl.errors import EngineFailed
from cacherl.rollout.engine import Engine, Generation, Sampling
from cacherl.rollout.loop import Budgets, CacheAgentLoop, Episode, opening
from cacherl.rollout.parser import CallStatus, Parser
from cacherl.rollout.renderer import Renderer
from cacherl.rollout.rollout import Rollout, StopReason
from cacherl.rollout.tools import ToolReply, ToolRequest, Void

LOOK = 'so\n</think>\n\n<tool_call>\n{"name": "look", "arguments": {"place": "attic"}}\n</tool_call>'
BAD = "so\n</think>\n\n<tool_call>\nnope\n</tool_call>"
DONE = "ok\n</think>\n\nIn the attic."
PIECES = [LOOK, BAD, DONE, "never closed", LOOK + BAD[BAD.index("<tool") :], "\n</think>\n\né\u2028"]


class EchoTools:
    """Answers with what it was asked."""

    def __init__(self) -> None:
        self.outages = 0
        self.asked: list[list[str]] = []

    async def answer(self, requests: Sequence[ToolRequest]) -> list[ToolReply] | Void:
        self.asked.append([request.tool for request in requests])
        return [
            ToolReply(
                content=f"saw {r.arguments}", is_error=False, tier="exact", trust=0.9, reason="exact", seconds=0.1
            )
            for r in requests
        ]


class GoneTools:
    outages = 1

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
    for call in rollout.calls:
        assert call.span is not None
        assert renderer.tokenizer.decode(rollout.ids[slice(*call.span)]).startswith("<tool_call>")


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
        (Budgets(seconds=0.0), StopReason.TIME_BUDGET),
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
