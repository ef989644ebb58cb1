"""The decisions of the tiers, at their edges."""

from __future__ import annotations

from typing import Any

import pytest

from toolcache.core import tiers
from toolcache.core.calls import Call
from toolcache.core.entries import Entry, Result
from toolcache.core.profile import Profile
from toolcache.core.tiers import Candidate, Guess, Hit, Miss
from toolcache.core.tools import Effect, Role, Tier, Tool
from toolcache.core.trust import Evidence, Reason

ROLES = {"query": Role.FREE_TEXT, "page": Role.IRRELEVANT}
EARNED = Profile(
    roles=ROLES,
    evidence={Reason.FREE_TEXT: Evidence(right=8, served=8), Reason.IRRELEVANT: Evidence(right=18, served=18)},
)
CALL = Call.of("find", {"query": "a lamp", "page": 1})
SCHEMA = {"type": "object", "properties": {"query": {"type": "string"}, "page": {"type": "integer"}}}


def entry(content: str = "[1]", *, order: int = 1, seen: int = 1, **arguments: Any) -> Entry:
    result = Result(content=content, took_s=0.5)
    return Entry(
        key="k" * 64,
        scope="s",
        environment="e",
        tool="find",
        arguments=arguments,
        canonical=Call.of("find", arguments).canonical,
        result=result,
        result_digest=result.digest(),
        seen=seen,
        order=order,
    )


def test_a_recorded_call_is_exact_with_full_trust() -> None:
    donor = entry()
    hit = tiers.exact([donor], Profile())
    assert hit == Hit(tier=Tier.EXACT, donor=donor, result=donor.result, trust=1.0, reason=Reason.RECORDED)


def test_nothing_recorded_is_no_exact_answer() -> None:
    assert tiers.exact([], Profile()) is None


def test_of_a_conflict_the_most_frequent_result_is_served_with_its_share_as_trust() -> None:
    often, seldom = entry("[1]", order=2, seen=3), entry("[2]", order=1, seen=1)
    hit = tiers.exact([seldom, often], Profile())
    assert hit is not None
    assert (hit.donor, hit.trust, hit.reason) == (often, 0.75, Reason.CONFLICT)


def test_of_an_even_conflict_the_older_result_is_served() -> None:
    older, newer = entry("[1]", order=1), entry("[2]", order=2)
    hit = tiers.exact([newer, older], Profile())
    assert hit is not None
    assert (hit.donor, hit.trust) == (older, 0.5)


def test_a_tool_that_contradicted_itself_elsewhere_lowers_the_trust_of_every_exact_answer() -> None:
    torn = Profile(evidence={Reason.RECORDED: Evidence(right=5, served=6)})
    hit = tiers.exact([entry()], torn)
    assert hit is not None
    assert (hit.trust, hit.reason) == (0.75, Reason.RECORDED)


@pytest.mark.parametrize(("score", "is_served"), [(0.8, True), (0.80001, True), (0.79999, False), (-1.0, False)])
def test_the_threshold_itself_is_near_enough(score: float, is_served: bool) -> None:
    answer = tiers.similar(CALL, Candidate(entry=entry(query="lamps"), score=score), EARNED, threshold=0.8)
    assert isinstance(answer, Hit) == is_served
    if isinstance(answer, Miss):
        assert answer.reason is Reason.BELOW_THRESHOLD
        assert "0.8" in answer.detail


@pytest.mark.parametrize(("right", "served", "is_served"), [(8, 8, True), (7, 7, False), (98, 109, False)])
def test_the_floor_itself_is_trust_enough(right: int, served: int, is_served: bool) -> None:
    profile = Profile(roles=ROLES, evidence={Reason.FREE_TEXT: Evidence(right=right, served=served)})
    answer = tiers.similar(CALL, Candidate(entry=entry(query="lamps"), score=1.0), profile, threshold=0.8)
    assert isinstance(answer, Hit) == is_served
    if isinstance(answer, Miss):
        assert answer.reason is Reason.BELOW_FLOOR
        assert "0.9" in answer.detail


def test_no_candidate_is_a_miss() -> None:
    assert tiers.similar(CALL, None, EARNED, threshold=0.0) == Miss(reason=Reason.NOT_RECORDED)


def test_each_kind_of_similar_answer_needs_its_own_evidence() -> None:
    worded = Profile(roles=ROLES, evidence={Reason.FREE_TEXT: Evidence(right=8, served=8)})
    other_page = Candidate(entry=entry(query="a lamp", page=2))
    other_words = Candidate(entry=entry(query="lamps", page=1), score=0.9)
    refused = tiers.similar(CALL, other_page, worded, threshold=0.8)
    assert isinstance(refused, Miss)
    served = tiers.similar(CALL, other_words, worded, threshold=0.8)
    assert isinstance(served, Hit)
    assert (served.reason, served.trust, served.score) == (Reason.FREE_TEXT, 0.9, 0.9)
    paged = tiers.similar(CALL, other_page, EARNED, threshold=0.8)
    assert isinstance(paged, Hit)
    assert (paged.reason, paged.trust, paged.score) == (Reason.IRRELEVANT, 0.95, None)


def test_an_echo_is_adapted_and_says_so() -> None:
    donor = Candidate(entry=entry('{"query": "some lamp"}', query="some lamp", page=1), score=1.0)
    answer = tiers.similar(CALL, donor, EARNED, threshold=0.8)
    assert isinstance(answer, Hit)
    assert (answer.result.content, answer.was_adapted) == ('{"query": "a lamp"}', True)
    assert answer.result.took_s == 0.5
    plain = tiers.similar(CALL, Candidate(entry=entry(query="lamps", page=1), score=1.0), EARNED, threshold=0.8)
    assert isinstance(plain, Hit)
    assert not plain.was_adapted


def test_equal_where_it_matters_is_the_oldest_that_differs_in_nothing_else() -> None:
    worded, newer, older = entry(query="lamps"), entry(order=3, query="a lamp", page=3), entry(order=2, query="a lamp")
    assert tiers.equal_where_it_matters(CALL, [worded, newer, older], EARNED) == Candidate(entry=older)
    assert tiers.equal_where_it_matters(CALL, [worded], EARNED) is None


def test_a_guess_prefers_the_newest_result_of_the_same_call() -> None:
    old, new = entry(order=1), entry("[2]", order=2)
    near = Candidate(entry=entry("[3]", order=3), score=0.7)
    guess = tiers.approximate([new, old], near, Profile())
    assert guess == Guess(donor=new, result=new.result, trust=0.2, reason=Reason.OTHER_STATE)
    nearest = tiers.approximate([], near, Profile(evidence={Reason.NEAREST: Evidence(right=0, served=15)}))
    assert nearest == Guess(donor=near.entry, result=near.entry.result, trust=0.05, reason=Reason.NEAREST, score=0.7)
    assert tiers.approximate([], None, Profile()) is None


@pytest.mark.parametrize(
    ("effect", "arguments", "reason"),
    [
        (Effect.READ, {"query": "a"}, Reason.NOT_RECORDED),
        (Effect.PURE, {"query": "a"}, Reason.NOT_RECORDED),
        (Effect.WRITE, {"query": "a"}, Reason.WRITE),
        (Effect.READ, {"query": 1}, Reason.INVALID_ARGUMENTS),
        (Effect.WRITE, {"query": 1}, Reason.INVALID_ARGUMENTS),
    ],
)
def test_a_miss_says_why(effect: Effect, arguments: dict[str, Any], reason: Reason) -> None:
    tool = Tool(name="find", parameters=SCHEMA, effect=effect)
    assert tiers.miss(tool, Call.of("find", arguments)).reason is reason
