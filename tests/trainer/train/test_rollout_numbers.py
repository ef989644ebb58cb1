from dataclasses import replace

import pytest

from cacherl.reward.tier_aware import Reward
from cacherl.rollout.parser import CallStatus
from cacherl.rollout.rollout import CallRecord, Rollout, StopReason, Turn
from cacherl.train.rollout_numbers import rollout_numbers

SERVED = CallRecord(
    turn=0,
    status=CallStatus.OK,
    name="look",
    arguments={},
    span=None,
    tier="exact",
    trust=1.0,
    reason="",
    result="",
    is_error=False,
    seconds=0.1,
    saved_seconds=2.0,
)
GUESSED = replace(SERVED, tier="similar", trust=0.5, saved_seconds=1.0)
BROKEN = replace(SERVED, status=CallStatus.INVALID_JSON, tier=None, trust=0.0, saved_seconds=0.0)
TURN = Turn(start=1, end=3, thinking="", text="", call_count=3, finish_reason="stop", weight_version=0, seconds=0.5)
ROLLOUT = Rollout(
    task_id="t",
    group="g",
    ids=(1, 2, 3),
    loss_mask=(0, 1, 1),
    logprobs=(0.0, -1.0, -1.0),
    prompt_length=1,
    turns=(TURN,),
    calls=(SERVED, GUESSED, BROKEN),
    stop=StopReason.ANSWERED,
    answer="Hi.",
    seconds=3.0,
    generate_seconds=2.0,
    tool_seconds=1.0,
    cache_seconds=0.25,
)
REWARD = Reward(total=0.5, answer=1.0, process=0.5, answer_weight=0.3, process_weight=0.4)


def test_the_numbers_of_a_rollout_worked_out_by_hand() -> None:
    numbers = rollout_numbers(ROLLOUT, REWARD)
    wanted = {
        "reward_answer": 1.0,
        "reward_process": 0.5,
        "answer_weight": 0.3,
        "validation_reward": 0.8,
        "turns": 1.0,
        "sampled_tokens": 2.0,
        "stop_answered": 1.0,
        "calls": 3.0,
        "unusable_calls": 1.0,
        "tier_exact": 1.0,
        "tier_similar": 1.0,
        "tier_miss": 0.0,
        "trust": 0.75,
        "least_trust": 0.5,
        "cache_seconds": 0.25,
        "saved_seconds": 3.0,
    }
    assert {name: numbers[name] for name in wanted} == pytest.approx(wanted)
    assert sum(value for name, value in numbers.items() if name.startswith("stop_")) == 1.0


def test_a_void_rollout_without_calls_has_the_same_names_and_only_floats() -> None:
    void = replace(ROLLOUT, calls=(), stop=StopReason.INFRASTRUCTURE, answer="")
    numbers = rollout_numbers(void, None)
    assert numbers.keys() == rollout_numbers(ROLLOUT, REWARD).keys()
    assert all(type(value) is float for value in numbers.values())
    assert (numbers["reward_answer"], numbers["trust"], numbers["stop_infrastructure"]) == (0.0, 1.0, 1.0)
