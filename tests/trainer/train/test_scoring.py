"""What of a rollout is trained, by values."""

from dataclasses import replace
from typing import Literal

import pytest

from cacherl.reward.tier_aware import Reward
from cacherl.rollout.rollout import Rollout, StopReason, Turn
from cacherl.train.advantages import group_advantages
from cacherl.train.grpo_settings import GrpoSettings
from cacherl.train.scoring import ScoredRollout, TrainingRow, taught, training_row

SETTINGS = GrpoSettings()
FILLER = 258


def turn(start: int, end: int, *, is_void: bool = False) -> Turn:
    return Turn(
        start=start,
        end=end,
        thinking="",
        text="",
        call_count=0,
        finish_reason="stop",
        weight_version=0,
        seconds=1.0,
        is_void=is_void,
    )


ROLLOUT = Rollout(
    task_id="t",
    group="g",
    ids=(1, 2, 3, 4),
    loss_mask=(0, 1, 0, 1),
    logprobs=(0.0, -1.0, 0.0, -2.0),
    prompt_length=1,
    turns=(turn(1, 2), turn(3, 4, is_void=True)),
    calls=(),
    stop=StopReason.ANSWERED,
    answer="",
    seconds=0.0,
    generate_seconds=2.0,
    tool_seconds=0.5,
)


def scored(reward: float | None = 1.0, stop: StopReason = StopReason.ANSWERED) -> ScoredRollout:
    given = None
    if reward is not None:
        given = Reward(total=reward, answer=1.0, process=1.0, answer_weight=0.6, process_weight=0.4)
    return ScoredRollout(rollout=replace(ROLLOUT, stop=stop), reward=given)


def test_the_row_of_a_rollout_begins_after_its_prompt() -> None:
    row = training_row(scored(), replace(SETTINGS, void_turns="score"), FILLER)
    assert (row.prompt_ids, row.completion_ids, row.mask) == ((1,), (2, 3, 4), [1, 0, 1])
    assert (row.logprobs, row.credit, row.reward) == ((-1.0, 0.0, -2.0), (1.0, 0.0, 1.0), 1.0)


def test_a_turn_that_says_nothing_is_masked_where_it_is_so_set() -> None:
    assert training_row(scored(), SETTINGS, FILLER).mask == [1, 0, 0]


def test_a_rollout_cut_by_tokens_is_masked_and_yet_in_the_baseline() -> None:
    cut = scored(0.4, StopReason.TOKEN_BUDGET)
    assert (training_row(cut, SETTINGS, FILLER).mask, training_row(cut, SETTINGS, FILLER).reward) == ([0, 0, 0], 0.4)
    assert training_row(cut, replace(SETTINGS, overlong="score"), FILLER).mask == [1, 0, 0]


@pytest.mark.parametrize("overlong", ["mask", "score"])
def test_a_rollout_cut_by_time_is_neither_trained_nor_held_against_the_others(
    overlong: Literal["mask", "score"],
) -> None:
    settings = replace(SETTINGS, overlong=overlong)
    group = [scored(1.0), scored(1.0), scored(1.0), scored(0.0, StopReason.TIME_BUDGET)]
    rows = [training_row(one, settings, FILLER) for one in group]
    assert (rows[3].mask, rows[3].reward) == ([0, 0, 0], None)
    assert group_advantages([row.reward for row in rows]) == [0.0] * 4
    assert taught(rows) == [False] * 4


def test_a_void_rollout_is_masked_and_has_no_reward() -> None:
    row = training_row(scored(None, StopReason.INFRASTRUCTURE), SETTINGS, FILLER)
    assert (row.mask, row.reward) == ([0, 0, 0], None)


def test_a_rollout_that_never_began_gets_one_masked_filler() -> None:
    never = replace(ROLLOUT, ids=(1,), loss_mask=(0,), logprobs=(0.0,), turns=())
    row = training_row(ScoredRollout(rollout=never, reward=None), SETTINGS, FILLER)
    assert (row.completion_ids, row.mask, row.logprobs) == ((FILLER,), [0], (0.0,))


def row(reward: float | None, *credit: float) -> TrainingRow:
    return TrainingRow(prompt_ids=[1], completion_ids=[2], logprobs=[-1.0], credit=credit or [1.0], reward=reward)


@pytest.mark.parametrize(
    ("rows_G", "wanted"),
    [
        ([row(1.0), row(0.0)], [True, True]),
        ([row(0.7), row(0.7), row(0.7)], [False, False, False]),
        ([row(None), row(None)], [False, False]),
        ([row(1.0), row(None)], [False, False]),
        ([row(1.0), row(0.0, 0.0)], [True, False]),
        ([row(1.0, 0.0), row(0.0, 0.0)], [False, False]),
        ([row(1.0), row(0.5), row(0.0)], [True, False, True]),
    ],
)
def test_only_an_advantage_on_a_trained_token_teaches(rows_G: list[TrainingRow], wanted: list[bool]) -> None:
    assert taught(rows_G) == wanted
