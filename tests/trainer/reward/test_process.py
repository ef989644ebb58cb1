from collections.abc import Callable

import pytest

from cacherl.reward.process import ProcessWeights, process_parts, process_reward
from cacherl.reward.validation import validation_reward
from cacherl.rollout.parser import CallStatus
from cacherl.rollout.rollout import CallRecord, Rollout

MakeCall = Callable[..., CallRecord]
MakeRollout = Callable[..., Rollout]


def test_perfect_form_is_one(make_call: MakeCall, make_rollout: MakeRollout) -> None:
    assert process_reward(make_rollout(make_call("a"), make_call("b"), answer="x", thinking="y")) == pytest.approx(1.0)


def test_the_five_parts_worked_out_by_hand(make_call: MakeCall, make_rollout: MakeRollout) -> None:
    calls = [
        make_call("a"),
        make_call("a", status=CallStatus.SCHEMA_VIOLATION, tier=None),
        make_call("", status=CallStatus.INVALID_JSON, tier=None),
        make_call("z", status=CallStatus.UNKNOWN_TOOL, tier=None),
    ]
    rollout = make_rollout(*calls, answer="x")
    parts = process_parts(rollout)
    assert (parts.valid_names, parts.valid_arguments, parts.diversity, parts.thought) == (0.5, 0.25, 0.5, 0.0)
    # 0.40 * 0.5 + 0.25 * 1 + 0.15 * 0 + 0.10 * 0.5 + 0.10 * 0.25
    assert process_reward(rollout) == pytest.approx(0.525)


def test_talking_without_acting_earns_only_the_answer_and_the_thinking(make_rollout: MakeRollout) -> None:
    assert process_reward(make_rollout(answer="x", thinking="y")) == pytest.approx(0.40)


def test_weights_that_do_not_sum_to_one_are_refused() -> None:
    with pytest.raises(ValueError, match="sum to"):
        ProcessWeights(thought=0.2)


def test_validation_is_one_fixed_formula() -> None:
    assert validation_reward(0.5, 0.25) == pytest.approx(0.6 * 0.5 + 0.4 * 0.25)
