"""The breaker, moment by moment: times worked out by hand, nothing waited for."""

from __future__ import annotations

import pytest

from toolcache_client.breaker import Admitted, Breaker, Held

USUAL, PROBE = Admitted(), Admitted(is_probe=True)


@pytest.fixture
def breaker() -> Breaker:
    """Opens at the third failure, for 1, 2, 4, 5, 5, ... seconds."""
    return Breaker(failures_to_open=3, first_pause_s=1.0, longest_pause_s=5.0)


def opened(breaker: Breaker, at_s: float = 10.0) -> Breaker:
    for n in range(3):
        breaker.failed(USUAL, at_s, f"failure {n}")
    return breaker


def held(breaker: Breaker, now_s: float) -> Held:
    answer = breaker.admit(now_s)
    assert isinstance(answer, Held)
    return answer


def test_calls_are_admitted_until_the_last_of_the_failures_in_a_row(breaker: Breaker) -> None:
    breaker.failed(USUAL, 10.0, "a")
    breaker.failed(USUAL, 10.0, "b")
    assert breaker.admit(10.0) == USUAL
    breaker.failed(USUAL, 10.0, "c")
    assert breaker.admit(10.0) == Held(for_s=0.0, retry_in_s=1.0, why="c")


def test_a_success_between_failures_begins_the_count_anew(breaker: Breaker) -> None:
    for _ in range(5):
        breaker.failed(USUAL, 10.0, "a")
        breaker.failed(USUAL, 10.0, "b")
        assert breaker.admit(10.0) == USUAL
        breaker.succeeded()


def test_whoever_is_held_back_learns_since_when_and_until_when(breaker: Breaker) -> None:
    opened(breaker, at_s=10.0)
    assert breaker.admit(10.75) == Held(for_s=0.75, retry_in_s=0.25, why="failure 2")


def test_at_the_very_second_the_pause_is_over_one_call_probes_and_the_others_wait_another_pause(
    breaker: Breaker,
) -> None:
    opened(breaker, at_s=10.0)
    assert breaker.admit(11.0) == PROBE
    assert breaker.admit(11.0) == Held(for_s=1.0, retry_in_s=1.0, why="failure 2")


def test_a_probe_that_succeeds_lets_everyone_through(breaker: Breaker) -> None:
    opened(breaker)
    breaker.admit(11.0)
    breaker.succeeded()
    assert [breaker.admit(11.0) for _ in range(3)] == [USUAL] * 3


def test_each_probe_that_fails_doubles_the_pause_up_to_the_longest(breaker: Breaker) -> None:
    opened(breaker, at_s=0.0)
    now_s, pauses_s = 1.0, []
    for n in range(4):
        assert breaker.admit(now_s) == PROBE
        breaker.failed(PROBE, now_s, f"probe {n}")
        found = held(breaker, now_s)
        assert (found.for_s, found.why) == (now_s, f"probe {n}")
        pauses_s.append(found.retry_in_s)
        now_s += found.retry_in_s
    assert pauses_s == [2.0, 4.0, 5.0, 5.0]


def test_a_new_outage_begins_with_the_first_pause_again(breaker: Breaker) -> None:
    opened(breaker, at_s=0.0)
    breaker.admit(1.0)
    breaker.failed(PROBE, 1.0, "still away")
    breaker.succeeded()
    opened(breaker, at_s=100.0)
    assert held(breaker, 100.0).retry_in_s == 1.0


def test_calls_that_were_under_way_when_it_opened_do_not_lengthen_the_pause(breaker: Breaker) -> None:
    opened(breaker, at_s=10.0)
    for _ in range(60):
        breaker.failed(USUAL, 10.9, "late")
    assert held(breaker, 10.9) == Held(for_s=10.9 - 10.0, retry_in_s=11.0 - 10.9, why="failure 2")


def test_a_late_success_closes_it_for_the_service_lives(breaker: Breaker) -> None:
    opened(breaker, at_s=10.0)
    breaker.succeeded()
    assert breaker.admit(10.1) == USUAL


def test_a_probe_that_never_comes_back_does_not_keep_the_others_out_for_good(breaker: Breaker) -> None:
    opened(breaker, at_s=10.0)
    assert breaker.admit(11.0) == PROBE
    assert isinstance(breaker.admit(11.9), Held)
    assert breaker.admit(12.0) == PROBE
