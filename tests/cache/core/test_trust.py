"""Trust, worked out by hand."""

from __future__ import annotations

import pytest

from toolcache.core.trust import SIMILAR_FLOOR, Evidence, Reason, trust

SERVING = {
    Reason.RECORDED,
    Reason.CONFLICT,
    Reason.FREE_TEXT,
    Reason.IRRELEVANT,
    Reason.OTHER_STATE,
    Reason.NEAREST,
}


@pytest.mark.parametrize(
    ("reason", "right", "served", "expected"),
    [
        (Reason.RECORDED, 0, 0, 1.0),
        (Reason.RECORDED, 0, 1, 1 / 3),
        (Reason.RECORDED, 5, 6, 6 / 8),
        (Reason.CONFLICT, 5, 6, 6 / 8),
        (Reason.FREE_TEXT, 0, 0, 0.5),
        (Reason.FREE_TEXT, 7, 7, 8 / 9),
        (Reason.FREE_TEXT, 8, 8, 0.9),
        (Reason.IRRELEVANT, 8, 9, 9 / 11),
        (Reason.OTHER_STATE, 0, 0, 0.2),
        (Reason.OTHER_STATE, 3, 5, 0.4),
        (Reason.NEAREST, 0, 15, 0.05),
    ],
)
def test_trust_is_the_posterior_mean(reason: Reason, right: int, served: int, expected: float) -> None:
    assert trust(reason, Evidence(right=right, served=served)) == expected


@pytest.mark.parametrize("reason", sorted(set(Reason) - SERVING))
def test_a_miss_has_no_trust(reason: Reason) -> None:
    assert trust(reason, Evidence(right=9, served=9)) == 0.0


def test_eight_right_pairs_reach_the_floor_and_seven_do_not() -> None:
    assert trust(Reason.FREE_TEXT, Evidence(right=8, served=8)) >= SIMILAR_FLOOR
    assert trust(Reason.FREE_TEXT, Evidence(right=7, served=7)) < SIMILAR_FLOOR


def test_evidence_counts_one_answer_at_a_time() -> None:
    assert Evidence().plus(right=True).plus(right=False) == Evidence(right=1, served=2)


@pytest.mark.parametrize(("right", "served"), [(2, 1), (-1, 0)])
def test_impossible_evidence_is_refused(right: int, served: int) -> None:
    with pytest.raises(ValueError, match="served"):
        Evidence(right=right, served=served)
