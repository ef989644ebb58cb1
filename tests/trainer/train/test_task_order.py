"""Which tasks a step plays: by seed and step alone."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cacherl.train.task_order import stand_ins, task_order


def test_every_pass_plays_each_task_once_and_leaves_out_what_is_too_few_for_a_step() -> None:
    order = task_order(5, steps=6, prompts_per_step=2, seed=3)
    assert len(order) == 12
    for first in (0, 4, 8):
        assert len(set(order[first : first + 4])) == 4
    assert order[:4] != order[4:8]


def test_a_longer_run_begins_like_a_shorter_one_and_another_seed_does_not() -> None:
    short = task_order(50, steps=3, prompts_per_step=4, seed=0)
    assert task_order(50, steps=9, prompts_per_step=4, seed=0)[:12] == short
    assert task_order(50, steps=3, prompts_per_step=4, seed=1) != short


def test_fewer_tasks_than_a_step_plays_are_refused() -> None:
    with pytest.raises(ValueError, match="3 tasks are fewer than prompts_per_step = 4"):
        task_order(3, steps=1, prompts_per_step=4, seed=0)


@given(
    tasks=st.integers(1, 40),
    places=st.integers(1, 12),
    share=st.floats(0, 3),
    step=st.integers(0, 50),
    seed=st.integers(0, 9),
)
def test_no_task_stands_in_twice_nor_for_one_of_its_own_step(
    tasks: int, places: int, share: float, step: int, seed: int
) -> None:
    own = list(range(min(tasks, places)))
    tries = stand_ins(tasks, own, share=share, step=step, seed=seed)
    flat = [task for each in tries for task in each]
    assert len(tries) == len(own)
    assert len(set(flat)) == len(flat) <= math.ceil(share * len(own))
    assert not set(flat) & set(own)
    assert set(flat) <= set(range(tasks))


def test_every_place_has_its_turn_at_half_a_share_and_one_try_at_a_whole_one() -> None:
    def counts(share: float, step: int) -> list[int]:
        return [len(each) for each in stand_ins(100, [1, 2, 3, 4], share=share, step=step, seed=0)]

    assert [counts(0.5, step) for step in (0, 1)] == [[0, 1, 0, 1], [1, 0, 1, 0]]
    assert counts(1.0, 0) == [1, 1, 1, 1]
    assert counts(2.0, 5) == [2, 2, 2, 2]
    assert counts(0.0, 0) == [0, 0, 0, 0]


def test_stand_ins_depend_on_seed_and_step_only() -> None:
    first = stand_ins(100, [1, 2, 3, 4], share=1.0, step=7, seed=0)
    assert stand_ins(100, [4, 3, 2, 1], share=1.0, step=7, seed=0) == first
    assert stand_ins(100, [1, 2, 3, 4], share=1.0, step=8, seed=0) != first
    assert stand_ins(100, [1, 2, 3, 4], share=1.0, step=7, seed=1) != first
