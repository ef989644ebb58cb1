"""Makers of calls and rollouts with only what a reward looks at."""

from collections.abc import Callable, Mapping
from typing import Any

import pytest

from cacherl.rollout.parser import CallStatus
from cacherl.rollout.rollout import AnswerTier, CallRecord, Rollout, StopReason, Turn

MakeCall = Callable[..., CallRecord]
MakeRollout = Callable[..., Rollout]


def call(
    name: str = "look",
    arguments: Mapping[str, Any] | None = None,
    *,
    tier: AnswerTier | None = "exact",
    trust: float = 1.0,
    status: CallStatus = CallStatus.OK,
    is_error: bool = False,
) -> CallRecord:
    return CallRecord(
        turn=0,
        status=status,
        name=name,
        arguments=arguments or {},
        span=None,
        tier=tier,
        trust=trust,
        reason="",
        result="",
        is_error=is_error,
        seconds=0.0,
    )


def rollout(
    *calls: CallRecord, answer: str = "", thinking: str = "", stop: StopReason = StopReason.ANSWERED
) -> Rollout:
    turn = Turn(
        start=1,
        end=2,
        thinking=thinking,
        text=answer,
        call_count=len(calls),
        finish_reason="stop",
        weight_version=0,
        seconds=0.0,
    )
    return Rollout(
        task_id="t",
        group="g",
        ids=(5, 6),
        loss_mask=(0, 1),
        logprobs=(0.0, -1.0),
        prompt_length=1,
        turns=(turn,),
        calls=calls,
        stop=stop,
        answer=answer,
        seconds=0.0,
        generate_seconds=0.0,
        tool_seconds=0.0,
    )


@pytest.fixture
def make_call() -> MakeCall:
    return call


@pytest.fixture
def make_rollout() -> MakeRollout:
    return rollout
