"""Weights of tokens worked out by hand: a prompt of 2 ids, then turns of 2 sampled ids and 1 id of tool results."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cacherl.rollout.credit import CreditBy, token_credit
from cacherl.rollout.parser import CallStatus
from cacherl.rollout.rollout import AnswerTier, CallRecord, Rollout, StopReason, Turn

Asked = tuple[AnswerTier | None, float]
"""Tier and trust of a call."""


def call(turn: int, tier: AnswerTier | None, trust: float) -> CallRecord:
    return CallRecord(
        turn=turn,
        status=CallStatus.OK if tier else CallStatus.INVALID_JSON,
        name="look",
        arguments={},
        span=None,
        tier=tier,
        trust=trust,
        reason="",
        result="",
        is_error=False,
        seconds=0.0,
    )


def rollout(*turns: Sequence[Asked], void: frozenset[int] = frozenset()) -> Rollout:
    mask = [0, 0] + [1, 1, 0] * len(turns)
    return Rollout(
        task_id="t",
        group="g",
        ids=tuple(range(len(mask))),
        loss_mask=tuple(mask),
        logprobs=(-0.5,) * len(mask),
        prompt_length=2,
        turns=tuple(
            Turn(
                start=2 + 3 * place,
                end=4 + 3 * place,
                thinking="",
                text="",
                call_count=len(asked),
                finish_reason="stop",
                weight_version=0,
                seconds=0.0,
                is_void=place in void,
            )
            for place, asked in enumerate(turns)
        ),
        calls=tuple(call(place, *each) for place, asked in enumerate(turns) for each in asked),
        stop=StopReason.ANSWERED,
        answer="",
        seconds=0.0,
        generate_seconds=0.0,
        tool_seconds=0.0,
    )


GUESSED = rollout([("exact", 0.9)], [("live", 1.0), ("similar", 0.6)], [("exact", 0.8)], [])


def test_uniform_credit_is_the_loss_mask() -> None:
    got = token_credit(GUESSED, by="uniform", void_turns="score")
    assert got == (0.0, 0.0, 1.0, 1.0, 0.0, 1.0, 1.0, 0.0, 1.0, 1.0, 0.0, 1.0, 1.0, 0.0)


def test_a_turn_counts_as_far_as_the_worst_answer_up_to_its_own_can_be_trusted() -> None:
    got = token_credit(GUESSED, by="trust", void_turns="score")
    assert got == (0.0, 0.0, 0.9, 0.9, 0.0, 0.6, 0.6, 0.0, 0.6, 0.6, 0.0, 0.6, 0.6, 0.0)


def test_a_call_that_was_put_to_nobody_says_nothing_about_trust() -> None:
    got = token_credit(rollout([(None, 0.0)], [("live", 1.0)]), by="trust", void_turns="score")
    assert got == (0.0, 0.0, 1.0, 1.0, 0.0, 1.0, 1.0, 0.0)


def test_what_follows_a_miss_that_was_read_as_an_error_teaches_nothing() -> None:
    got = token_credit(rollout([("exact", 1.0)], [("miss", 0.0)], []), by="trust", void_turns="score")
    assert got == (0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)


@pytest.mark.parametrize(("by", "second"), [("uniform", 1.0), ("trust", 0.5)])
def test_a_void_turn_is_masked_or_counts_like_the_others(by: CreditBy, second: float) -> None:
    played = rollout([("exact", 1.0)], [("similar", 0.5)], [], void=frozenset({1}))
    masked = token_credit(played, by=by, void_turns="mask")
    assert masked == (0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, second, second, 0.0)
    scored = token_credit(played, by=by, void_turns="score")
    assert scored == (0.0, 0.0, 1.0, 1.0, 0.0, second, second, 0.0, second, second, 0.0)


answers = st.tuples(st.sampled_from(["live", "exact", "similar", "approximate", "miss", None]), st.floats(0.0, 1.0))


@given(st.lists(st.lists(answers, max_size=3), max_size=6))
def test_credit_by_trust_never_rises_along_a_rollout_and_is_zero_exactly_outside_the_mask(
    turns: list[list[Asked]],
) -> None:
    played = rollout(*turns)
    credit = token_credit(played, by="trust", void_turns="mask")
    assert len(credit) == len(played.ids)
    sampled = [weight for weight, mask in zip(credit, played.loss_mask, strict=True) if mask]
    assert sampled == sorted(sampled, reverse=True)
    assert all(weight == 0.0 for weight, mask in zip(credit, played.loss_mask, strict=True) if not mask)
