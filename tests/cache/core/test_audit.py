"""An audit counts what a fresh cache would have answered, and how much of it is right."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolcache.core.audit import Answers, Audit, audit, expected_calibration_error, is_held_out
from toolcache.core.cache import ToolCache
from toolcache.core.entries import Result
from toolcache.core.tiers import Guess, Hit
from toolcache.core.tools import Namespace, Tier
from toolcache.core.trajectories import Trajectory, trajectory
from toolcache.core.trust import Reason


def run(*calls: tuple[str, str, str | None], environment: str = "shop@1") -> Trajectory:
    messages: list[dict[str, Any]] = []
    for n, (tool, arguments, content) in enumerate(calls):
        function = {"name": tool, "arguments": arguments}
        messages.append({"role": "assistant", "tool_calls": [{"id": str(n), "function": function}]})
        if content is not None:
            messages.append({"role": "tool", "tool_call_id": str(n), "content": content})
    return trajectory(json.dumps({"environment": environment, "messages": messages}))


def get(order: str, content: str | None) -> tuple[str, str, str | None]:
    return ("get_order", json.dumps({"order_id": order}), content)


async def test_every_call_of_a_replay_is_right_wrong_or_missed(cache: ToolCache, shop: Namespace, tell: Any) -> None:
    await tell("get_order", '{"status": "pending"}', order_id="#W1")
    await tell("get_order", "gone", order_id="#W2")
    cancelled = await tell("cancel_order", "done", order_id="#W1")
    await tell("get_order", "cancelled", order_id="#W1", state=cancelled.state_after)
    replayed = [
        run(
            get("#W1", '{"status":"pending"}'),
            ("cancel_order", '{"order_id": "#W1"}', "done"),
            get("#W1", "cancelled"),
            get("#W9", "new"),
        ),
        run(get("#W2", "found"), get("#W2", "found"), ("teleport", "{}", "done"), get("#W1", "elsewhere")),
        run(get("#W1", None), ("get_order", "{", "Error: not JSON"), ("cancel_order", '{"order_id": "#W9"}', "done")),
        run(get("#W1", '{"status": "pending"}'), environment="shop@2"),
    ]
    told: list[None] = []
    found = await audit(cache, shop, replayed, lambda: told.append(None))
    assert len(told) == 4
    assert (found.rollouts, found.calls, found.contaminated_rollouts, found.wrong) == (4, 12, 1, 2)
    exact = found.tiers[Tier.EXACT]
    assert (exact.served, exact.right, exact.trust_sum) == (5, 3, 5.0)
    assert dict(found.misses) == {
        "not_recorded": 3,
        "unknown_tool": 1,
        "no_result": 1,
        "unparsable": 1,
        "write": 1,
    }
    assert exact.served + sum(found.misses.values()) == found.calls
    assert {reason: (each.served, each.right) for reason, each in found.reasons.items()} == {"recorded": (5, 3)}
    assert (found.tools["get_order"].served, found.tools["get_order"].wrong) == (4, 2)
    assert found.calibration_error == 1.0 - 3 / 5
    assert found.tools["get_order"].calls == 9
    assert found.as_json()["wrong_per_1000"] == 2000 / 12
    assert found.as_json()["tools"]["cancel_order"] == {
        "calls": 2,
        "exact": {"served": 1, "right": 1, "share": 0.5, "precision": 1.0, "mean_trust": 1.0},
    }


async def test_an_empty_replay_divides_by_nothing(cache: ToolCache, shop: Namespace) -> None:
    document = (await audit(cache, shop, [])).as_json()
    assert document["wrong_per_1000"] == 0.0
    assert document["tiers"]["exact"] == {
        "served": 0,
        "right": 0,
        "share": 0.0,
        "precision": None,
        "mean_trust": None,
    }


async def test_an_audit_records_nothing(cache: ToolCache, shop: Namespace) -> None:
    await audit(cache, shop, [run(get("#W1", "x")), run(get("#W1", "x"))])
    assert (await cache.report("shop")).entries == 0


async def test_a_sample_of_a_stochastic_tool_is_neither_right_nor_wrong(
    cache: ToolCache, shop: Namespace, tell: Any
) -> None:
    dice = replace(shop, tools=shop.tools | {"get_order": replace(shop.tools["get_order"], samples=3)})
    await cache.put_namespace(dice)
    for n in range(3):
        await tell("get_order", f"rolled {n}", order_id="#W1")
    found = await audit(cache, dice, [run(get("#W1", "rolled 5"), get("#W9", "new"))])
    assert (found.calls, found.sampled, found.served, found.wrong) == (2, 1, 0, 0)
    assert dict(found.misses) == {"not_recorded": 1}
    assert found.calibration_error is None


# -- calibration -------------------------------------------------------------------------------------------------------


def answered(*answers: tuple[float, bool]) -> Audit:
    found = Audit(namespace="shop")
    for trust, right in answers:
        hit = Hit(tier=Tier.EXACT, donor="d", result=Result(content=""), trust=trust, reason=Reason.RECORDED)
        found.add("get_order", hit, right=right)
    return found


def test_the_calibration_error_is_the_gap_in_each_bin_weighted_by_its_answers() -> None:
    # Bin 0.9 to 1.0: mean trust 0.95, right 1 of 2: gap 0.45. Bin 0.5 to 0.6: mean trust 0.55, right 2 of 2: gap 0.45.
    # Bin 0.0 to 0.1: trust 0.05, wrong: gap 0.05. So 2/5 * 0.45 + 2/5 * 0.45 + 1/5 * 0.05.
    found = answered((1.0, True), (0.9, False), (0.5, True), (0.6 - 1e-9, True), (0.05, False))
    assert found.calibration_error == pytest.approx(0.37)
    assert [each.served for each in found.bins] == [1, 0, 0, 0, 0, 2, 0, 0, 0, 2]
    rows = found.as_json()["reliability"]
    assert rows[5] | {"mean_trust": 0.55} == {
        "trust_from": 0.5,
        "trust_to": 0.6,
        "served": 2,
        "right": 2,
        "share": 0.0,
        "precision": 1.0,
        "mean_trust": 0.55,
    }


def test_guesses_and_hits_share_the_bins() -> None:
    found = answered((1.0, True))
    found.add("get_order", Guess(donor="d", result=Result(content=""), trust=1.0, reason=Reason.NEAREST), right=False)
    assert found.calibration_error == 0.5
    assert {reason: each.right for reason, each in found.reasons.items()} == {"recorded": 1, "nearest": 0}
    assert found.as_json()["expected_calibration_error"] == 0.5


ANSWERS = st.lists(st.tuples(st.floats(0.0, 1.0), st.booleans()), max_size=60)


@given(ANSWERS)
def test_the_calibration_error_lies_between_the_gap_of_all_and_one(answers: list[tuple[float, bool]]) -> None:
    error = answered(*answers).calibration_error
    if not answers:
        assert error is None
        return
    assert error is not None
    gap = abs(sum(right for _, right in answers) - sum(trust for trust, _ in answers)) / len(answers)
    assert gap - 1e-9 <= error <= 1.0


def test_nothing_served_has_no_calibration_error() -> None:
    assert expected_calibration_error([Answers(), Answers()]) is None


@given(st.sets(st.text(), min_size=50, max_size=80), st.floats(0.05, 0.95))
def test_which_runs_are_held_out_depends_on_their_names_alone_and_grows_with_the_share(
    names: set[str], share: float
) -> None:
    held = {name for name in names if is_held_out(name, share)}
    assert held <= {name for name in names if is_held_out(name, min(1.0, share + 0.05))}
    assert not any(is_held_out(name, 0.0) for name in names)
    assert all(is_held_out(name, 1.0) for name in names)
