"""The decisions of the tiers, at their edges."""

from __future__ import annotations

from typing import Any

import pytest

from toolcache.core import tiers
from toolcache.core.calls import Call
from toolcache.core.entries import Entry, Result, Sample, donor_id
from toolcache.core.profile import Profile
from toolcache.core.tiers import Candidate, Guess, Hit, Miss
from toolcache.core.tools import Effect, Mask, Role, Tier, Tool
from toolcache.core.trust import Evidence, Reason

KEY = "k" * 64
ROLES = {"query": Role.FREE_TEXT, "page": Role.IRRELEVANT}
SCHEMA = {"type": "object", "properties": {"query": {"type": "string"}, "page": {"type": "integer"}}}
FIND = Tool(name="find", parameters=SCHEMA, effect=Effect.READ)
EARNED = Profile(
    roles=ROLES,
    evidence={
        "free_text@0.80": Evidence(right=38, served=38),
        "free_text@0.95": Evidence(right=60, served=60),
        "irrelevant": Evidence(right=58, served=58),
    },
    similar_threshold=0.8,
)
UNPROVEN = Profile()
CALL = Call.of("find", {"query": "a lamp", "page": 1})


def entry(content: str = "[1]", *, order: int = 1, **arguments: Any) -> Entry:
    result = Result(content=content, took_s=0.5)
    return Entry(
        key=KEY,
        scope="s",
        environment="e",
        tool="find",
        arguments=arguments,
        canonical=Call.of("find", arguments).canonical,
        result=result,
        result_digest=result.digest(),
        order=order,
    )


def sample(content: str = "[1]", *, order: int = 1, seen: int = 1, expires_at_s: float = 0.0) -> Sample:
    return Sample(
        result_digest=Result(content=content).digest(),
        content=content,
        is_error=False,
        took_s=0.5,
        seen=seen,
        order=order,
        recorded_at_s=0.0,
        expires_at_s=expires_at_s,
    )


def exact(*samples: Sample, profile: Profile = UNPROVEN, now_s: float = 1.0, is_masked: bool = False) -> Hit:
    hit = tiers.exact(KEY, samples, profile, now_s=now_s, is_masked=is_masked)
    assert hit is not None
    return hit


def similar(
    candidate: Candidate, profile: Profile = EARNED, *, call: Call = CALL, tool: Tool = FIND, threshold: float = 0.8
) -> Hit | Miss:
    return tiers.similar(call, candidate, profile, tool=tool, threshold=threshold)


def near(score: float, content: str = "[1]") -> Candidate:
    return Candidate(entry=entry(content, query="lamps", page=1), score=score)


# -- exact -------------------------------------------------------------------------------------------------------------


def test_a_recorded_call_is_exact_with_full_trust() -> None:
    assert exact(sample()) == Hit(
        tier=Tier.EXACT,
        donor=donor_id(KEY, sample().result_digest),
        result=Result(content="[1]", took_s=0.5),
        trust=1.0,
        reason=Reason.RECORDED,
    )


def test_nothing_recorded_is_no_exact_answer() -> None:
    assert tiers.exact(KEY, [], Profile(), now_s=1.0) is None


def test_of_a_conflict_the_most_frequent_result_is_served_with_its_share_as_trust() -> None:
    hit = exact(sample("[2]", order=1, seen=1), sample("[1]", order=2, seen=3))
    assert (hit.result.content, hit.trust, hit.reason) == ("[1]", 0.75, Reason.CONFLICT)


def test_of_an_even_conflict_the_older_result_is_served() -> None:
    hit = exact(sample("[2]", order=2), sample("[1]", order=1))
    assert (hit.result.content, hit.trust) == ("[1]", 0.5)


def test_expired_results_are_neither_served_nor_conflicts() -> None:
    old, new = sample("[1]", order=1, seen=9, expires_at_s=5.0), sample("[2]", order=2, expires_at_s=9.0)
    assert exact(old, new, now_s=4.9).reason is Reason.CONFLICT
    hit = exact(old, new, now_s=5.0)
    assert (hit.result.content, hit.reason, hit.trust) == ("[2]", Reason.RECORDED, 1.0)
    assert tiers.exact(KEY, [old], Profile(), now_s=5.0) is None
    assert tiers.exact(KEY, [old, new], Profile(), now_s=9.0) is None


def test_a_tool_that_contradicted_itself_elsewhere_lowers_the_trust_of_every_exact_answer() -> None:
    torn = Profile(evidence={"recorded": Evidence(right=5, served=6)})
    assert (exact(sample(), profile=torn).trust, exact(sample(), profile=torn).reason) == (0.75, Reason.RECORDED)
    conflict = exact(sample("[1]", seen=9), sample("[2]", order=2), profile=torn)
    assert (conflict.trust, conflict.reason) == (0.75, Reason.CONFLICT)


def test_a_masked_call_says_so_and_is_trusted_by_what_masks_did() -> None:
    broken = Profile(evidence={"masked": Evidence(right=5, served=6)})
    assert (exact(sample(), is_masked=True).trust, exact(sample(), is_masked=True).reason) == (1.0, Reason.MASKED)
    assert exact(sample(), profile=broken, is_masked=True).trust == 0.75
    assert exact(sample(), profile=broken).trust == 1.0


# -- similar -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("score", "is_served"), [(0.8, True), (0.80001, True), (0.79999, False), (-1.0, False)])
def test_the_threshold_itself_is_near_enough(score: float, is_served: bool) -> None:
    answer = similar(near(score))
    assert isinstance(answer, Hit) == is_served
    if isinstance(answer, Miss):
        assert answer.reason is Reason.BELOW_THRESHOLD
        assert "0.8" in answer.detail


@pytest.mark.parametrize(
    ("right", "served", "floor", "is_served"),
    [
        (35, 35, 0.9, True),
        (34, 34, 0.9, False),
        (98, 103, 0.9, False),
        (8, 8, 0.67, True),
        (8, 8, 0.68, False),
        (0, 0, 0.0, True),
        (0, 0, 0.01, False),
    ],
)
def test_what_is_proven_is_held_against_the_tools_floor(right: int, served: int, floor: float, is_served: bool) -> None:
    evidence = {"free_text@0.98": Evidence(right=right, served=served)}
    tool = Tool(name="find", parameters=SCHEMA, effect=Effect.READ, similar_floor=floor)
    answer = similar(near(1.0), Profile(roles=ROLES, evidence=evidence), tool=tool)
    assert isinstance(answer, Hit) == is_served
    if isinstance(answer, Miss):
        assert answer.reason is Reason.BELOW_FLOOR
        assert f"{floor:g}" in answer.detail
        assert "free_text@0.98" in answer.detail


def test_trust_rises_with_the_similarity() -> None:
    trusts = [answer.trust for score in (0.81, 0.97) if isinstance(answer := similar(near(score)), Hit)]
    assert trusts == [39 / 40, 61 / 62]


def test_each_kind_of_similar_answer_needs_its_own_evidence() -> None:
    worded = Profile(roles=ROLES, evidence={"free_text@0.90": Evidence(right=38, served=38)})
    other_page = Candidate(entry=entry(query="a lamp", page=2))
    refused = similar(other_page, worded)
    assert isinstance(refused, Miss)
    assert refused.reason is Reason.BELOW_FLOOR
    served = similar(near(0.9), worded)
    assert isinstance(served, Hit)
    assert (served.reason, served.trust, served.score) == (Reason.FREE_TEXT, 39 / 40, 0.9)
    paged = similar(other_page)
    assert isinstance(paged, Hit)
    assert (paged.reason, paged.trust, paged.score) == (Reason.IRRELEVANT, 59 / 60, None)


def test_what_is_masked_is_no_difference() -> None:
    """Only `page` differs in what is kept: the words that do differ are masked."""
    tool = Tool(
        name="find", parameters=SCHEMA, effect=Effect.READ, masks=(Mask(argument="query", pattern="req-[0-9]+"),)
    )
    call = Call.of("find", {"query": "a lamp req-1", "page": 1}, tool.masks)
    answer = similar(Candidate(entry=entry(query="a lamp req-2", page=2)), call=call, tool=tool)
    assert isinstance(answer, Hit)
    assert answer.reason is Reason.IRRELEVANT


def test_a_simulated_write_is_a_kind_of_its_own() -> None:
    write = Tool(name="find", parameters=SCHEMA, effect=Effect.WRITE, simulate_writes=True)
    refused = similar(near(0.96), tool=write)
    assert isinstance(refused, Miss)
    assert "simulated@0.95" in refused.detail
    proven = Profile(roles=ROLES, evidence={"simulated@0.95": Evidence(right=48, served=48)})
    served = similar(near(0.96), proven, tool=write)
    assert isinstance(served, Hit)
    assert (served.reason, served.trust, served.tier) == (Reason.SIMULATED, 49 / 50, Tier.SIMILAR)


def test_an_echo_is_adapted_and_says_so() -> None:
    donor = Candidate(entry=entry('{"query": "some lamp"}', query="some lamp", page=1), score=1.0)
    answer = similar(donor)
    assert isinstance(answer, Hit)
    assert (answer.result.content, answer.was_adapted) == ('{"query": "a lamp"}', True)
    assert answer.result.took_s == 0.5
    plain = similar(near(1.0))
    assert isinstance(plain, Hit)
    assert not plain.was_adapted


# -- approximate, and misses -------------------------------------------------------------------------------------------


def test_a_guess_prefers_the_same_call_in_another_state() -> None:
    other, close = entry("[2]", order=2), Candidate(entry=entry("[3]", order=3), score=0.72)
    guess = tiers.approximate(other, close, Profile())
    assert guess == Guess(donor=other.id, result=other.result, trust=0.2, reason=Reason.OTHER_STATE)
    measured = Profile(evidence={"nearest@0.70": Evidence(right=0, served=15)})
    nearest = tiers.approximate(None, close, measured)
    assert nearest == Guess(
        donor=close.entry.id, result=close.entry.result, trust=0.05, reason=Reason.NEAREST, score=0.72
    )
    assert nearest.tier is Tier.APPROXIMATE
    assert tiers.approximate(None, None, Profile()) is None


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
