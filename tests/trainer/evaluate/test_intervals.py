import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cacherl.evaluate.intervals import bootstrap_mean, wilson


def test_wilson_at_the_ends_is_never_of_width_zero() -> None:
    assert wilson(0, 10).ci95 == pytest.approx((0.0, 0.27753), abs=1e-5)
    assert wilson(10, 10).ci95 == pytest.approx((0.72247, 1.0), abs=1e-5)


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_holds_the_share_and_stays_a_share(pair: tuple[int, int]) -> None:
    estimate = wilson(*pair)
    assert 0.0 <= estimate.low <= estimate.value <= estimate.high <= 1.0


def test_a_mean_of_zeros_and_ones_has_about_the_normal_interval() -> None:
    estimate = bootstrap_mean([0.0, 1.0] * 200)
    half = 1.96 * 0.5 / math.sqrt(400)
    assert estimate.value == 0.5
    assert estimate.ci95 == pytest.approx((0.5 - half, 0.5 + half), abs=0.006)


def test_nothing_measured_is_nothing_known() -> None:
    assert wilson(0, 0).ci95 == (0.0, 1.0)
    assert math.isnan(wilson(0, 0).value)
    assert math.isnan(bootstrap_mean([]).value)
