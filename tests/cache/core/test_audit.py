"""An audit counts what a fresh cache would have answered, and how much of it is right."""

from __future__ import annotations

import json
from typing import Any

from toolcache.core.audit import audit
from toolcache.core.cache import ToolCache
from toolcache.core.tools import Namespace, Tier
from toolcache.core.trajectories import Trajectory, trajectory


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
