import pytest
from hypothesis import given
from hypothesis import strategies as st

from cacherl.train.advantages import group_advantages


def test_advantages_worked_out_by_hand() -> None:
    assert group_advantages([0.9, 0.4, 0.2]) == pytest.approx([0.4, -0.1, -0.3])


def test_a_void_rollout_is_out_of_the_baseline_and_has_no_advantage() -> None:
    assert group_advantages([1.0, None, 0.5, None]) == [0.25, 0.0, -0.25, 0.0]
    assert group_advantages([None, None]) == [0.0, 0.0]


@given(st.lists(st.floats(0, 1), min_size=1))
def test_advantages_sum_to_nothing(rewards_G: list[float]) -> None:
    assert sum(group_advantages(rewards_G)) == pytest.approx(0.0, abs=1e-9)


@given(st.floats(0, 1), st.integers(1, 16))
def test_equal_rewards_give_zeros_and_nothing_near_them(reward: float, count: int) -> None:
    assert group_advantages([reward] * count) == [0.0] * count
