"""Trust, worked out by hand, and what bands of similarity may learn from each other."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolcache.core.trust import (
    BAND_EDGES,
    NONE,
    Evidence,
    Reason,
    Verdict,
    band,
    kind,
    trust,
    verdicts,
    wilson_lower,
    wilson_upper,
)

SERVING = {
    Reason.RECORDED,
    Reason.MASKED,
    Reason.CONFLICT,
    Reason.SAMPLED,
    Reason.FREE_TEXT,
    Reason.IRRELEVANT,
    Reason.SIMULATED,
    Reason.LINEAGE,
    Reason.OTHER_STATE,
    Reason.NEAREST,
}
FLOOR = 0.9


def of(right: int, served: int) -> Evidence:
    return Evidence(right=right, served=served)


def judged(
    *bands: Evidence, shadows: dict[int, Evidence] | None = None, reason: Reason = Reason.FREE_TEXT
) -> list[Verdict]:
    return verdicts(reason, bands, [(shadows or {}).get(i, NONE) for i in range(len(bands))])


@pytest.mark.parametrize(
    ("reason", "right", "served", "expected"),
    [
        (Reason.RECORDED, 0, 0, 1.0),
        (Reason.RECORDED, 7, 7, 1.0),
        (Reason.RECORDED, 0, 1, 1 / 3),
        (Reason.RECORDED, 5, 6, 6 / 8),
        (Reason.CONFLICT, 5, 6, 6 / 8),
        (Reason.MASKED, 7, 7, 1.0),
        (Reason.MASKED, 5, 6, 6 / 8),
        (Reason.LINEAGE, 5, 6, 6 / 8),
        (Reason.SAMPLED, 1, 6, 1.0),
        (Reason.FREE_TEXT, 0, 0, 0.5),
        (Reason.FREE_TEXT, 7, 7, 8 / 9),
        (Reason.IRRELEVANT, 8, 9, 9 / 11),
        (Reason.SIMULATED, 21, 39, 22 / 41),
        (Reason.OTHER_STATE, 0, 0, 0.2),
        (Reason.OTHER_STATE, 3, 5, 0.4),
        (Reason.NEAREST, 0, 15, 0.05),
    ],
)
def test_trust_is_the_posterior_mean_and_one_where_nothing_contradicts_what_holds_by_construction(
    reason: Reason, right: int, served: int, expected: float
) -> None:
    assert trust(reason, of(right, served)) == expected


@pytest.mark.parametrize("reason", sorted(set(Reason) - SERVING))
def test_a_miss_has_no_trust(reason: Reason) -> None:
    assert trust(reason, of(9, 9)) == 0.0


def test_every_reason_says_what_it_means() -> None:
    for reason in Reason:
        assert trust(reason, NONE) in (0.0, 0.2, 0.5, 1.0)


@pytest.mark.parametrize(
    ("right", "served", "lower", "upper"),
    [
        # Newcombe, Statistics in Medicine 17:857 (1998), table I, the score method without continuity correction.
        (81, 263, 0.2553, 0.3662),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (15, 148, 0.0624, 0.1605),
    ],
)
def test_wilson_bounds_are_those_of_published_tables(right: int, served: int, lower: float, upper: float) -> None:
    assert round(wilson_lower(right, served), 4) == lower
    assert round(wilson_upper(right, served), 4) == upper


def test_a_floor_of_nine_tenths_takes_thirty_five_of_thirty_five() -> None:
    assert wilson_lower(35, 35) >= FLOOR > wilson_lower(34, 34)
    assert wilson_lower(52, 53) >= FLOOR > wilson_lower(51, 52)


@given(st.integers(0, 400), st.integers(0, 400))
def test_the_interval_holds_the_share_and_shrinks_with_more_of_the_same(right: int, wrong: int) -> None:
    served = right + wrong
    lower, upper = wilson_lower(right, served), wilson_upper(right, served)
    assert 0.0 <= lower <= upper <= 1.0
    if served:
        assert lower <= right / served + 1e-12
        assert upper >= right / served - 1e-12
        assert wilson_lower(3 * right, 3 * served) >= lower - 1e-12
        assert math.isclose(upper, 1.0 - wilson_lower(wrong, served), abs_tol=1e-12)


def test_a_kind_names_the_band_whose_lower_edge_is_reached() -> None:
    assert kind(Reason.FREE_TEXT, 0.9) == "free_text@0.90"
    assert kind(Reason.FREE_TEXT, 0.8999) == "free_text@0.85"
    assert kind(Reason.NEAREST, -0.3) == "nearest@-1.00"
    assert kind(Reason.NEAREST, -1.0000001) == "nearest@-1.00"
    assert kind(Reason.SIMULATED, 1.0000001) == "simulated@0.98"
    assert kind(Reason.IRRELEVANT, 0.9) == "irrelevant"
    assert kind(Reason.OTHER_STATE, 0.9) == "other_state"


@given(st.floats(-1.1, 1.1))
def test_every_similarity_lies_in_one_band(score: float) -> None:
    i = band(score)
    assert BAND_EDGES[i] <= max(score, -1.0)
    assert i == len(BAND_EDGES) - 1 or score < BAND_EDGES[i + 1]


def test_evidence_counts_one_answer_at_a_time_and_adds_up() -> None:
    assert Evidence().plus(right=True).plus(right=False) == of(1, 2)
    assert of(1, 2) + of(3, 3) == of(4, 5)


@pytest.mark.parametrize(("right", "served"), [(2, 1), (-1, 0)])
def test_impossible_evidence_is_refused(right: int, served: int) -> None:
    with pytest.raises(ValueError, match="served"):
        of(right, served)


# -- bands -------------------------------------------------------------------------------------------------------------


def test_bands_that_contradict_the_order_are_pooled() -> None:
    found = judged(of(9, 10), of(5, 10), of(28, 28))
    assert [each.trust for each in found] == [15 / 22, 15 / 22, 29 / 30]


def test_bands_of_equal_trust_are_counted_together() -> None:
    assert [each.trust for each in judged(of(9, 10), of(9, 10))] == [19 / 22, 19 / 22]


def test_a_band_of_which_little_is_known_leans_on_the_one_below() -> None:
    found = judged(of(98, 98), of(2, 2), NONE)
    assert {each.trust for each in found} == {101 / 102}
    assert {each.lower for each in found} == {wilson_lower(100, 100), wilson_lower(98, 98)}
    assert min(each.proven for each in found) >= FLOOR


def test_more_similar_answers_prove_nothing_about_less_similar_ones() -> None:
    low, high = judged(of(20, 20), of(1000, 1000))
    assert low.lower == wilson_lower(20, 20) < FLOOR
    assert high.lower == wilson_lower(1020, 1020)
    assert judged(NONE, of(1000, 1000))[0].lower == 0.0


def test_a_band_that_is_wrong_by_itself_is_refuted_whatever_lies_below() -> None:
    low, high = judged(of(1000, 1000), of(5, 10))
    assert low.proven >= FLOOR
    assert high.upper == wilson_upper(5, 10) < FLOOR
    assert high.proven < FLOOR
    assert judged(of(1000, 1000), of(0, 4))[1].upper == 1.0  # four answers are no pattern


def test_wrong_answers_of_more_similar_calls_count_against_less_similar_ones() -> None:
    low, high = judged(of(40, 40), of(0, 4))
    assert low.lower == wilson_lower(40, 40) >= FLOOR
    assert low.proven == high.proven == low.trust == 41 / 46 < FLOOR


def test_shadow_executions_take_away_what_any_number_of_recordings_had_proven() -> None:
    (proven,) = judged(of(1000, 1000), shadows={0: of(8, 10)})
    assert proven.proven >= FLOOR
    (refuted,) = judged(of(1000, 1000), shadows={0: of(7, 10)})
    assert refuted.lower >= FLOOR
    assert refuted.proven == wilson_upper(7, 10) < FLOOR
    (few,) = judged(of(1000, 1000), shadows={0: of(0, 4)})
    assert few.proven >= FLOOR


def test_guesses_are_pooled_from_their_own_prior() -> None:
    assert [each.trust for each in judged(NONE, of(0, 95), NONE, reason=Reason.NEAREST)] == [0.01, 0.01, 0.2]


BANDS = st.lists(
    st.tuples(st.integers(0, 60), st.integers(0, 60)).map(lambda pair: of(min(pair), max(pair))),
    min_size=1,
    max_size=10,
)


@given(BANDS, st.sampled_from([Reason.FREE_TEXT, Reason.NEAREST]))
def test_trust_and_what_is_proven_never_fall_with_similarity(bands: list[Evidence], reason: Reason) -> None:
    found = judged(*bands, reason=reason)
    assert sorted(each.trust for each in found) == [each.trust for each in found]
    assert sorted(each.lower for each in found) == [each.lower for each in found]


@given(BANDS)
def test_what_is_proven_of_a_band_does_not_depend_on_the_bands_above(bands: list[Evidence]) -> None:
    assert [each.lower for each in judged(*bands)][:-1] == [each.lower for each in judged(*bands[:-1])]


def test_stated_trust_is_true_of_answers_that_are_served() -> None:
    """A thousand tools whose answers are right with a chance that rises with similarity, measured and then used."""
    dice = random.Random(5)
    stated = right = served = 0.0
    worst: list[float] = []
    for _ in range(1000):
        truth = sorted(dice.choice((dice.random(), dice.uniform(0.9, 1.0))) for _ in range(5))
        bands = [
            of(sum(dice.random() < p for _ in range(n)), n) for p in truth for n in [dice.choice((0, 10, 60, 200))]
        ]
        for p, verdict in zip(truth, judged(*bands), strict=True):
            if verdict.proven >= FLOOR:
                served, stated, right = served + 1, stated + verdict.trust, right + p
                worst.append(p)
    assert served > 500
    assert abs(stated - right) / served < 0.01
    assert sum(p < FLOOR for p in worst) / served < 0.025
