"""GRPO end to end on a byte model: nothing is learned in two steps, but every number must be the right one."""

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

from cacherl.adapters.byte_tokenizer import make_byte_tokenizer
from cacherl.adapters.hf_tokenizer import HFTokenizer
from cacherl.adapters.memory_cache import MemoryCache
from cacherl.adapters.scripted_engine import ScriptedEngine
from cacherl.reward.answer import MilestoneJudge
from cacherl.reward.process import ProcessWeights
from cacherl.reward.tier_aware import Reward, TierAwareReward
from cacherl.rollout.loop import Budgets, CacheAgentLoop
from cacherl.rollout.parser import CallStatus, Parser
from cacherl.rollout.renderer import Renderer
from cacherl.rollout.rollout import AnswerTier, CallRecord, Rollout, StopReason
from cacherl.rollout.tools import CacheLookup, writing_tools
from cacherl.train.grpo import (
    Collector,
    FromCache,
    FromWorld,
    GrpoReport,
    ScoredRollout,
    Scorer,
    ToolSource,
    step_metrics,
    train_grpo,
    training_row,
)
from cacherl.train.grpo_settings import GrpoSettings
from cacherl.worlds.support_desk import SupportDesk
from toolcache_client.errors import CacheUnavailable
from toolcache_client.messages import Answer, LookupItem

WORLD = SupportDesk(seed=0)
WRITES = writing_tools(WORLD.tools)
SETTINGS = GrpoSettings(
    steps=2,
    prompts_per_step=2,
    group_size=3,
    micro_batch=3,
    learning_rate=1e-4,
    budgets=Budgets(turns=2, turn_tokens=12),
)


def run(
    model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, out: Path, source: ToolSource, **changes: Any
) -> GrpoReport:
    return train_grpo(
        model=model,
        tokenizer=tokenizer,
        world=WORLD,
        tasks=WORLD.tasks("train", 4),
        source=source,
        judge=MilestoneJudge(writes=WRITES),
        settings=replace(SETTINGS, **changes),
        output_dir=out,
    )


def test_two_steps_leave_two_lines_of_metrics(
    model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    opened: list[MemoryCache] = []

    @asynccontextmanager
    async def open_cache() -> AsyncIterator[CacheLookup]:
        opened.append(MemoryCache(WRITES))
        yield opened[-1]

    source = FromCache(open_cache=open_cache, namespace="support_desk")
    report = run(model, tokenizer, tmp_path, source, overlong="score")
    assert len(opened) == 1
    logged = [json.loads(line) for line in (tmp_path / "grpo.jsonl").read_text().splitlines()]
    assert logged == json.loads(json.dumps(list(report.steps)))
    assert [line["step"] for line in logged] == [1, 2]
    assert all(line["rollouts"] == 6 and sum(line["stops"].values()) == 6 for line in logged)
    assert all(line["loss"] is not None and line["update_seconds"] > 0 for line in logged)
    assert not model.training


def test_the_control_run_needs_no_cache(
    model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    assert len(run(model, tokenizer, tmp_path, FromWorld(), steps=1).steps) == 1


# ---- what a step's numbers are, worked out by hand


def call(
    tier: AnswerTier | None, trust: float = 1.0, status: CallStatus = CallStatus.OK, seconds: float = 1.0
) -> CallRecord:
    return CallRecord(
        turn=0,
        status=status,
        name="get_order",
        arguments={},
        span=None,
        tier=tier,
        trust=trust,
        reason="",
        result="",
        is_error=False,
        seconds=seconds,
    )


def rollout(stop: StopReason, *calls: CallRecord) -> Rollout:
    return Rollout(
        task_id="t",
        group="g",
        ids=(1, 2, 3, 4),
        loss_mask=(0, 1, 0, 1),
        logprobs=(0.0, -1.0, 0.0, -2.0),
        prompt_length=1,
        turns=(),
        calls=calls,
        stop=stop,
        answer="",
        seconds=0.0,
        generate_seconds=2.0,
        tool_seconds=0.5,
        outages=1 if stop is StopReason.INFRASTRUCTURE else 0,
    )


def reward(total: float, answer: float, process: float, weight: float = 0.6) -> Reward:
    return Reward(total=total, answer=answer, process=process, answer_weight=weight, process_weight=0.4)


SCORED = [
    ScoredRollout(
        rollout=rollout(StopReason.ANSWERED, call("exact"), call("live", seconds=3.0)), reward=reward(1.0, 1, 1)
    ),
    ScoredRollout(
        rollout=rollout(StopReason.TOKEN_BUDGET, call("exact"), call("approximate", 0.2)),
        reward=reward(0.4, 0, 1, weight=0.1),
    ),
    ScoredRollout(rollout=rollout(StopReason.INFRASTRUCTURE, call(None, 0.0)), reward=None),
    ScoredRollout(
        rollout=rollout(StopReason.ANSWERED, call(None, 0.0, CallStatus.INVALID_JSON)), reward=reward(0.1, 0, 0.25)
    ),
]


def test_the_numbers_of_a_step_worked_out_by_hand() -> None:
    got = step_metrics(SCORED, group_size=2)
    assert (got["rollouts"], got["void"], got["outages"]) == (4, 1, 1)
    assert got["reward"] == pytest.approx((1.0 + 0.4 + 0.1) / 3)
    assert got["reward_answer"] == pytest.approx(1 / 3)
    assert got["reward_process"] == pytest.approx(2.25 / 3)
    assert got["validation_reward"] == pytest.approx((1.0 + 0.4 + 0.1) / 3)
    assert got["reward_by_worst_tier"] == {
        "exact": {"count": 1, "mean": 1.0},
        "approximate": {"count": 1, "mean": 0.4},
        "none": {"count": 1, "mean": 0.1},
    }
    assert got["tier_mix"] == {"live": 1, "exact": 2, "similar": 0, "approximate": 1, "miss": 0}
    assert got["trust"] == pytest.approx((1 + 1 + 1 + 0.2) / 4)
    assert got["stops"] == {"answered": 2, "token_budget": 1, "infrastructure": 1}
    assert (got["calls"], got["live_calls"], got["unusable_calls"]) == (6, 1, 1)
    assert got["zero_variance_groups"] == 1  # the second group has one scored rollout, equal to its own mean
    assert (got["sampled_tokens"], got["generate_seconds_sum"], got["tool_seconds_sum"]) == (8, 8.0, 2.0)
    assert (got["tool_seconds_p50"], got["tool_seconds_p99"]) == (1.0, 3.0)


def test_the_row_of_a_rollout_begins_after_its_prompt() -> None:
    row = training_row(SCORED[0], 258, "mask")
    assert (row.prompt_ids, row.completion_ids, row.env_mask) == ((1,), (2, 3, 4), (1, 0, 1))
    assert (row.logprobs, row.reward) == ((-1.0, 0.0, -2.0), 1.0)


def test_a_cut_rollout_is_masked_and_yet_in_the_baseline() -> None:
    assert training_row(SCORED[1], 258, "mask").env_mask == (0, 0, 0)
    assert training_row(SCORED[1], 258, "mask").reward == 0.4
    assert training_row(SCORED[1], 258, "score").env_mask == (1, 0, 1)


def test_a_void_rollout_is_masked_and_has_no_reward() -> None:
    row = training_row(SCORED[2], 258, "score")
    assert (row.env_mask, row.reward) == ((0, 0, 0), None)


def test_a_rollout_that_never_began_gets_one_masked_filler() -> None:
    fields = {name: getattr(SCORED[2].rollout, name) for name in Rollout.__dataclass_fields__}
    never = Rollout(**{**fields, "ids": (1,), "loss_mask": (0,), "logprobs": (0.0,)})
    row = training_row(ScoredRollout(rollout=never, reward=None), 258, "mask")
    assert (row.completion_ids, row.env_mask, row.logprobs) == ((258,), (0,), (0.0,))


async def test_a_cache_that_is_down_voids_its_rollouts_and_no_others() -> None:
    class Down(MemoryCache):
        async def lookup(self, namespace: str, items: Sequence[LookupItem]) -> list[Answer]:
            raise CacheUnavailable("no answer in 2 s")

    @asynccontextmanager
    async def open_cache() -> AsyncIterator[CacheLookup]:
        yield Down(WRITES)

    asks = '\n</think>\n\n<tool_call>\n{"name": "get_order", "arguments": {"order_id": "1"}}\n</tool_call>'
    tasks = WORLD.tasks("train", 2)
    tokenizer = HFTokenizer(make_byte_tokenizer())
    engine = ScriptedEngine(tokenizer, lambda prompt: asks if tasks[0].prompt in prompt else "\n</think>\n\nHi.")
    loop = CacheAgentLoop(engine, Renderer(tokenizer), Parser(WORLD.tools), budgets=Budgets())
    scorer = Scorer(MilestoneJudge(writes=WRITES), TierAwareReward(), ProcessWeights())
    source = FromCache(open_cache=open_cache, namespace="support_desk")
    collector = Collector(loop, WORLD, tasks, source, scorer, SETTINGS)
    scored = await collector.collect([0, 0, 1, 1], step=0)
    await collector.aclose()
    assert [one.rollout.stop.value for one in scored] == ["infrastructure"] * 2 + ["answered"] * 2
    assert [one.reward is None for one in scored] == [True, True, False, False]
    assert collector.outage_log.count == 2
    assert len({one.rollout.group for one in scored}) == 2
