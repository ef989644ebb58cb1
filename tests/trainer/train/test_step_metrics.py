"""What a step's numbers are, worked out by hand."""

import json
import pickle
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cacherl.reward.tier_aware import Reward
from cacherl.rollout.parser import CallStatus
from cacherl.rollout.rollout import AnswerTier, CallRecord, Rollout, StopReason, Turn
from cacherl.train.metrics_log import MetricsLog
from cacherl.train.scoring import ScoredRollout
from cacherl.train.step_log import StepLog
from cacherl.train.step_metrics import METRICS, Share, step_metrics
from cacherl.train.token_sums import TokenSums


def call(
    tier: AnswerTier | None,
    trust: float = 1.0,
    status: CallStatus = CallStatus.OK,
    seconds: float = 1.0,
    saved_seconds: float = 0.0,
) -> CallRecord:
    return CallRecord(
        turn=0,
        status=status,
        name="get_order",
        arguments={"order_id": "1"},
        span=None,
        tier=tier,
        trust=trust,
        reason="",
        result="Order 1 is on its way.",
        is_error=False,
        seconds=seconds,
        saved_seconds=saved_seconds,
    )


def rollout(stop: StopReason, *calls: CallRecord, group: str = "0/a", version: int = 3) -> Rollout:
    turn = Turn(
        start=1,
        end=3,
        thinking="Let me see.",
        text="",
        call_count=len(calls),
        finish_reason="stop",
        weight_version=version,
        seconds=1.0,
        is_void=not calls,
    )
    return Rollout(
        task_id="t",
        group=group,
        ids=(1, 2, 3, 4),
        loss_mask=(0, 1, 1, 0),
        logprobs=(0.0, -1.0, -2.0, 0.0),
        prompt_length=1,
        turns=(turn,),
        calls=calls,
        stop=stop,
        answer="",
        seconds=4.0,
        generate_seconds=2.0,
        tool_seconds=0.5,
        cache_seconds=0.1,
        outages=1 if stop is StopReason.INFRASTRUCTURE else 0,
    )


def reward(total: float, answer: float, process: float, weight: float = 0.6) -> Reward:
    return Reward(total=total, answer=answer, process=process, answer_weight=weight, process_weight=0.4)


SCORED = [
    ScoredRollout(
        rollout=rollout(StopReason.ANSWERED, call("exact", saved_seconds=2.0), call("live", seconds=3.0)),
        reward=reward(1.0, 1, 1),
    ),
    ScoredRollout(
        rollout=rollout(StopReason.TOKEN_BUDGET, call("exact"), call("approximate", 0.2), version=1),
        reward=reward(0.4, 0, 1, weight=0.1),
    ),
    ScoredRollout(rollout=rollout(StopReason.INFRASTRUCTURE), reward=None),
    ScoredRollout(
        rollout=rollout(StopReason.ANSWERED, call(None, 0.0, CallStatus.INVALID_JSON), group="0/b"),
        reward=reward(0.1, 0, 0.25),
        is_replaced=True,
    ),
]


def share(scored: list[ScoredRollout], **changes: float) -> Share:
    return replace(
        Share(
            scored=scored,
            trained_rollouts=2,
            trained_tokens=4,
            zero_variance_groups=1,
            follow_seconds=0.5,
            rollout_seconds=4.0,
            busy_seconds=3.0,
            tokens=TokenSums(tokens=4, entropy=6.0, log_ratio=0.4, ratio=4.8, truncated=1, largest=0.7),
        ),
        **changes,
    )


def test_the_numbers_of_a_step_worked_out_by_hand() -> None:
    got = step_metrics([share(SCORED)])
    assert (got["rollouts"], got["void"], got["overlong"], got["outages"]) == (4, 1, 1, 1)
    assert (got["groups_replaced"], got["zero_variance_groups"], got["trained_rollouts"]) == (1, 1, 2)
    assert (got["trained_tokens"], got["void_turns"], got["turns"]) == (4, 1, 1.0)
    assert got["reward"] == pytest.approx((1.0 + 0.4 + 0.1) / 3)
    assert got["reward_answer"] == pytest.approx(1 / 3)
    assert got["reward_process"] == pytest.approx(2.25 / 3)
    assert got["answer_weight"] == pytest.approx((0.6 + 0.1 + 0.6) / 3)
    assert got["validation_reward"] == pytest.approx((1.0 + 0.4 + 0.1) / 3)
    assert got["reward_by_worst_tier"] == {
        "exact": {"count": 1, "mean": 1.0},
        "approximate": {"count": 1, "mean": 0.4},
        "none": {"count": 1, "mean": 0.1},
    }
    assert got["tier_mix"] == {"live": 1, "exact": 2, "similar": 0, "approximate": 1, "miss": 0}
    assert got["trust"] == pytest.approx((1 + 1 + 1 + 0.2) / 4)
    assert got["stops"] == {"answered": 2, "token_budget": 1, "infrastructure": 1}
    assert (got["calls"], got["live_calls"], got["unusable_calls"]) == (5, 1, 1)
    assert got["call_statuses"] == {"ok": 4, "invalid_json": 1}
    assert (got["sampled_tokens"], got["generate_seconds_sum"], got["tool_seconds_sum"]) == (8, 8.0, 2.0)
    assert (got["tool_seconds_p50"], got["tool_seconds_p99"], got["saved_seconds_sum"]) == (1.0, 3.0, 2.0)
    assert got["cache_seconds_share"] == pytest.approx(0.4 / 16)
    assert (got["tokens_per_second"], got["engine_idle_share"]) == (2.0, 0.25)
    assert got["weight_version_spread"] == 2
    assert (got["follow_seconds"], got["rollout_seconds"]) == (0.5, 4.0)


def test_the_engine_is_likened_to_the_trainer_token_by_token() -> None:
    got = step_metrics([share(SCORED)])
    assert got["mismatch_k1"] == pytest.approx(-0.1)
    assert got["mismatch_k3"] == pytest.approx((4.8 - 4 - 0.4) / 4)
    assert got["entropy"] == 1.5
    assert (got["mismatch_max"], got["correction_ratio"], got["correction_truncated"]) == (0.7, 1.2, 0.25)


def test_several_processes_add_up_and_the_slowest_one_sets_the_time() -> None:
    slow = share(SCORED[2:], rollout_seconds=8.0, busy_seconds=1.0, follow_seconds=0.1)
    slow = replace(slow, tokens=TokenSums(tokens=12, entropy=0.0, log_ratio=0.0, ratio=12.0, truncated=0, largest=0.1))
    one, both = step_metrics([share(SCORED)]), step_metrics([share(SCORED[:2]), slow])
    for name in ("reward", "tier_mix", "tool_seconds_p99", "rollouts", "groups_replaced", "sampled_tokens", "stops"):
        assert both[name] == one[name], name
    assert (both["trained_tokens"], both["zero_variance_groups"]) == (8, 2)
    # All played the step again together.
    assert step_metrics([replace(slow, replays=2), replace(slow, replays=2)])["replays"] == 2
    assert (both["rollout_seconds"], both["follow_seconds"], both["tokens_per_second"]) == (8.0, 0.5, 1.0)
    assert both["engine_idle_share"] == pytest.approx(1 - 2.0 / 8.0)
    assert both["entropy"] == 6.0 / 16
    assert (both["mismatch_k1"], both["mismatch_max"]) == (pytest.approx(-0.4 / 16), 0.7)
    assert both["correction_truncated"] == pytest.approx(1 / 16)


def test_a_step_of_which_nothing_is_left_has_nulls_and_no_error() -> None:
    nothing = share([SCORED[2]], rollout_seconds=0.0)
    got = step_metrics([replace(nothing, tokens=TokenSums())])
    assert got["reward"] is None
    assert got["mismatch_k3"] is None
    assert got["mismatch_max"] is None
    assert got["tool_seconds_p50"] is None
    assert got["tokens_per_second"] is None


def test_what_goes_to_other_processes_says_the_same_and_holds_no_text() -> None:
    whole = share(SCORED)
    light = whole.lightened()
    assert step_metrics([light]) == step_metrics([whole])
    sent = pickle.dumps(light)
    assert b"on its way" not in sent
    assert b"Let me see" not in sent
    assert b"order_id" not in sent


def logged(log: MetricsLog | None, **changes: Any) -> list[Mapping[str, Any]]:
    """Two steps' lines as they were told to `progress`."""
    told: list[Mapping[str, Any]] = []
    steps = StepLog(log, lambda shares: shares, told.append, **changes)
    for step in (0, 1):
        steps.played(step, share(SCORED))
        trl = {"loss": 0.5, "grad_norm": 2.0, "learning_rate": 1e-6, "entropy": 7.0, "skipped_updates": 1}
        steps.updated(trl, TokenSums(tokens=2, entropy=3.0))
    return told


def test_every_number_of_a_line_is_explained_and_every_explanation_has_its_number() -> None:
    first, _ = logged(MetricsLog(None))
    assert set(first) == set(METRICS)


def test_a_line_joins_the_rollouts_with_the_update_that_followed_them(tmp_path: Path) -> None:
    now = iter([10.0, 14.5, 16.0, 20.0, 21.0])
    with MetricsLog(tmp_path / "grpo.jsonl") as log:
        first, second = logged(log, clock=lambda: next(now))
    assert (first["step"], first["update_seconds"], first["step_seconds"]) == (1, 1.5, 6.0)
    assert (second["step"], second["update_seconds"], second["step_seconds"]) == (2, 1.0, 5.0)
    assert (first["loss"], first["grad_norm"], first["kl"]) == (0.5, 2.0, None)
    assert first["entropy"] == 1.5  # ours, over all tokens, not the mean of the passes' means
    assert [json.loads(line) for line in (tmp_path / "grpo.jsonl").read_text().splitlines()] == [first, second]


def test_a_process_without_the_log_writes_and_tells_nothing() -> None:
    assert logged(None) == []
