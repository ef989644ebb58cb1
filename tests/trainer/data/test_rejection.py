"""Only what was right on answers that can be trusted is imitated, and to the token as it was sampled."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cacherl.data.rejection import Sample, keep_best, read_samples, write_samples
from cacherl.errors import TrajectoriesUnreadable
from cacherl.reward.tier_aware import Reward
from cacherl.rollout.parser import CallStatus
from cacherl.rollout.rollout import CallRecord, Rollout, StopReason, Turn
from cacherl.train.scoring import ScoredRollout


def record(turn: int = 0, *, trust: float = 1.0, status: CallStatus = CallStatus.OK, **changes: Any) -> CallRecord:
    fields: dict[str, Any] = {
        "turn": turn,
        "status": status,
        "name": "get",
        "arguments": {"id": 1},
        "span": None,
        "tier": "exact" if status is CallStatus.OK else None,
        "trust": trust,
        "reason": "recorded",
        "result": "r",
        "is_error": False,
        "seconds": 0.0,
    }
    return CallRecord(**{**fields, **changes})


def turn(start: int, end: int) -> Turn:
    return Turn(
        start=start, end=end, thinking="", text="", call_count=0, finish_reason="stop", weight_version=0, seconds=0.0
    )


def played(reward: float | None = 1.0, *calls: CallRecord, task: str = "t", **changes: Any) -> ScoredRollout:
    """Two turns, ids 3..4 and 6..8, between what the policy did not sample."""
    rollout = Rollout(
        task_id=task,
        group="g",
        ids=(1, 2, 3, 4, 5, 6, 7, 8),
        loss_mask=(0, 0, 1, 1, 0, 1, 1, 1),
        logprobs=(0.0,) * 8,
        prompt_length=2,
        turns=(turn(2, 4), turn(5, 8)),
        calls=calls,
        stop=StopReason.ANSWERED,
        answer="Done.",
        seconds=0.0,
        generate_seconds=0.0,
        tool_seconds=0.0,
    )
    paid = None if reward is None else Reward(total=reward, answer=1, process=1, answer_weight=0.6, process_weight=0.4)
    return ScoredRollout(rollout=replace(rollout, **changes), reward=paid)


def rewards(*scored: ScoredRollout, above: float = 0.5, min_trust: float = 0.9, per_task: int = 9) -> list[float]:
    return [s.reward for s in keep_best(scored, above=above, min_trust=min_trust, per_task=per_task).samples]


def test_a_rollout_is_kept_at_the_very_threshold_and_not_below() -> None:
    assert rewards(played(0.5, answer="a"), played(0.49, answer="b")) == [0.5]
    assert rewards(played(1.0, record(trust=0.9), answer="a"), played(0.9, record(trust=0.89), answer="b")) == [1.0]


def test_one_guess_among_many_answers_is_enough_to_leave_a_rollout_out() -> None:
    kept = keep_best([played(1.0, record(trust=1.0), record(trust=0.2))], above=0.5, min_trust=0.9, per_task=1)
    assert kept.samples == ()
    assert kept.left_out == {"low_trust": 1}


def test_void_cut_and_silent_rollouts_are_never_kept() -> None:
    scored = [
        played(None, stop=StopReason.INFRASTRUCTURE),
        played(1.0, stop=StopReason.TOKEN_BUDGET),
        played(1.0, answer=""),
    ]
    kept = keep_best(scored, above=0.0, min_trust=0.0, per_task=9)
    assert (kept.samples, kept.left_out) == ((), {"void": 1, "unanswered": 2})


def test_the_best_of_a_task_are_kept_and_another_task_has_its_own() -> None:
    mine = [played(reward, answer=str(reward)) for reward in (0.6, 0.9, 0.7)]
    other = played(0.55, task="u")
    kept = keep_best([*mine, other], above=0.5, min_trust=0.9, per_task=2)
    assert [(s.task_id, s.reward) for s in kept.samples] == [("t", 0.9), ("t", 0.7), ("u", 0.55)]
    assert kept.left_out == {"enough": 1}


def test_of_equal_rewards_the_more_trusted_and_then_the_shorter_comes_first() -> None:
    doubted = played(0.9, record(trust=0.95), answer="a")
    long = played(0.9, record(), answer="b", ids=(1,) * 9, loss_mask=(0,) * 9, logprobs=(0.0,) * 9)
    short = played(0.9, record(), answer="c")
    kept = keep_best([doubted, long, short], above=0.5, min_trust=0.9, per_task=3)
    assert [(s.trust, len(s.ids)) for s in kept.samples] == [(1.0, 8), (1.0, 9), (0.95, 8)]


def test_same_deeds_and_words_count_as_one_and_the_best_stands_for_them() -> None:
    kept = keep_best(
        [played(0.8, record()), played(0.9, record(), answer=" Done. "), played(0.7, record(arguments={"id": 2}))],
        above=0.5,
        min_trust=0.9,
        per_task=9,
    )
    assert [s.reward for s in kept.samples] == [0.9, 0.7]
    assert kept.left_out == {"duplicate": 1}


def test_a_turn_with_an_unusable_call_is_not_imitated_and_the_rest_is_as_sampled() -> None:
    slip = played(1.0, record(0, status=CallStatus.INVALID_JSON), record(1))
    (sample,) = keep_best([slip], above=0.5, min_trust=0.9, per_task=1).samples
    assert sample.ids == slip.rollout.ids
    assert sample.loss_mask == (0, 0, 0, 0, 0, 1, 1, 1)
    clean = played(1.0, record(0), record(1))
    (sample,) = keep_best([clean], above=0.5, min_trust=0.9, per_task=1).samples
    assert sample.loss_mask == clean.rollout.loss_mask


def test_samples_read_back_are_the_samples_written(tmp_path: Path) -> None:
    samples = [Sample(task_id="t\n", reward=0.1 + 0.2, trust=1.0, ids=(1, 2, 3), loss_mask=(0, 1, 1))]
    write_samples(tmp_path / "s.ndjson", samples)
    assert read_samples(tmp_path / "s.ndjson") == samples
    assert samples[0].example.ids == (1, 2, 3)
    write_samples(tmp_path / "none.ndjson", [])
    assert read_samples(tmp_path / "none.ndjson") == []


def test_a_file_that_holds_no_samples_is_told_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "s.ndjson").write_text('{"task_id": 1}\n')
    with pytest.raises(TrajectoriesUnreadable, match="line 1 is no kept rollout"):
        read_samples(tmp_path / "s.ndjson")
    with pytest.raises(TrajectoriesUnreadable, match="No such file"):
        read_samples(tmp_path / "absent.ndjson")
