"""Recorded trajectories are stored in the states their own histories led to; what cannot be used is counted."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest

from toolcache.core.cache import ToolCache
from toolcache.core.importing import MOST_REJECTS, ImportReport, import_line
from toolcache.core.tiers import Hit
from toolcache.core.tools import Namespace

Read = Callable[..., Awaitable[ImportReport]]


@pytest.fixture
def imported(cache: ToolCache) -> Read:
    """Import one trajectory of (tool, arguments text, result text or None) calls, one call a turn."""

    async def _imported(*calls: tuple[str, Any, Any], namespace: str | None = None, **record: Any) -> ImportReport:
        messages: list[dict[str, Any]] = []
        for n, (tool, arguments, content) in enumerate(calls):
            function = {"name": tool, "arguments": arguments}
            messages.append({"role": "assistant", "tool_calls": [{"id": str(n), "function": function}]})
            if content is not None:
                messages.append({"role": "tool", "tool_call_id": str(n), "content": content})
        line = json.dumps({"domain": "shop", "environment": "shop@1", "messages": messages} | record)
        report = ImportReport()
        await import_line(cache, line.encode(), 7, report, namespace=namespace)
        return report

    return _imported


GET = ("get_order", '{"order_id": "#W1"}')


async def test_a_read_after_a_write_is_stored_in_the_state_after_it(imported: Read, ask: Any) -> None:
    report = await imported((*GET, "pending"), ("cancel_order", '{"order_id": "#W1"}', "done"), (*GET, "cancelled"))
    assert (report.trajectories, report.calls, dict(report.outcomes)) == (1, 3, {"stored": 3})
    assert report.namespaces == {"shop"}
    before = await ask("get_order", order_id="#W1")
    write = await ask("cancel_order", order_id="#W1")
    after = await ask("get_order", order_id="#W1", state=write.state_after)
    assert [one.answer.result.content for one in (before, write, after)] == ["pending", "done", "cancelled"]


async def test_a_failed_write_leaves_the_state(imported: Read, ask: Any) -> None:
    await imported(("cancel_order", "{}", "Error: which order?"), (*GET, "pending"))
    assert (await ask("get_order", order_id="#W1")).answer.result.content == "pending"


@pytest.mark.parametrize(
    ("lost", "reason"),
    [
        (("cancel_order", '{"order_id": "#W1"}', None), "no_result"),
        (("cancel_order", '{"order_id": "#W1", "comment": NaN}', "done"), "not_canonical"),
        (("cancel_order", '{"order_id": "\\ud800"}', "done"), "not_canonical"),
        (("cancel_order", "order #W1", "done"), "unparsable"),
    ],
)
async def test_after_a_write_that_cannot_be_named_nothing_is_known(
    imported: Read, ask: Any, lost: tuple[str, str, Any], reason: str
) -> None:
    report = await imported(lost, (*GET, "cancelled?"))
    assert dict(report.rejected) == {reason: 1, "state_unknown": 1}
    assert not isinstance((await ask("get_order", order_id="#W1")).answer, Hit)


@pytest.mark.parametrize(
    ("harmless", "reason"),
    [
        (("cancel_order", "order #W1", "Error: not JSON"), "unparsable"),
        (("cancel_order", "order #W1", None), "unparsable"),
        (("cancel_order", '{"comment": NaN}', "Error: NaN"), "not_canonical"),
        (("get_order", "order #W1", "pending"), "unparsable"),
        (("get_order", '{"order_id": "#W2"}', None), "no_result"),
        (("teleport", "{}", "Error: no such tool"), "unknown_tool"),
    ],
)
async def test_a_call_that_changed_nothing_costs_only_itself(
    imported: Read, ask: Any, harmless: tuple[str, str, Any], reason: str
) -> None:
    report = await imported(harmless, (*GET, "pending"))
    assert dict(report.rejected) == {reason: 1}
    assert (await ask("get_order", order_id="#W1")).answer.result.content == "pending"


async def test_a_failed_call_without_a_name_loses_the_state_of_a_tool_whose_errors_change_it(
    cache: ToolCache, shop: Namespace, imported: Read
) -> None:
    halfway = replace(shop.tools["cancel_order"], errors_change_state=True)
    await cache.put_namespace(replace(shop, tools={**shop.tools, "cancel_order": halfway}))
    report = await imported(("cancel_order", "order #W1", "Error: half done"), (*GET, "cancelled?"))
    assert dict(report.rejected) == {"unparsable": 1, "state_unknown": 1}


async def test_an_unknown_tool_that_succeeded_counts_as_a_write(imported: Read, ask: Any) -> None:
    report = await imported(("teleport", "{}", "done"), (*GET, "elsewhere"))
    assert dict(report.outcomes) == {"stored": 1}
    assert not isinstance((await ask("get_order", order_id="#W1")).answer, Hit)


async def test_a_result_that_cannot_be_stored_is_counted_and_the_rest_is_kept(imported: Read, ask: Any) -> None:
    report = await imported(("get_order", '{"order_id": "#W2"}', "\ud800"), (*GET, "pending"))
    assert (dict(report.outcomes), dict(report.rejected)) == ({"stored": 1}, {"refused": 1})
    assert (await ask("get_order", order_id="#W1")).answer.result.content == "pending"


async def test_every_call_is_either_stored_or_refused(imported: Read) -> None:
    report = await imported((*GET, "x"), (*GET, "x"), (*GET, "y"), ("teleport", "{}", "done"), ("get_order", "{", "z"))
    assert dict(report.outcomes) == {"stored": 1, "known": 1, "conflict": 1}
    assert report.calls == sum(report.outcomes.values()) + sum(report.rejected.values()) == 5
    assert {reject.line for reject in report.rejects} == {7}


@pytest.mark.parametrize(
    ("record", "reason", "told"),
    [
        ({"messages": 5}, "invalid_line", "messages"),
        ({"domain": "bank"}, "unknown_namespace", "'bank'; create it"),
        ({"environment": ""}, "no_environment", "environment"),
        ({"environment": None}, "no_environment", "environment"),
    ],
)
async def test_a_line_that_cannot_be_used_is_counted(
    imported: Read, record: dict[str, Any], reason: str, told: str
) -> None:
    report = await imported((*GET, "x"), **record)
    assert (dict(report.rejected), report.trajectories, report.calls) == ({reason: 1}, 0, 0)
    assert told in report.rejects[0].detail


async def test_a_namespace_given_wins_over_the_records_domain(imported: Read) -> None:
    assert (await imported((*GET, "x"), domain="bank", namespace="shop")).outcomes["stored"] == 1


async def test_details_can_be_told_whatever_the_line_holds(imported: Read) -> None:
    calls = await imported(("\ud800", "{", "x"), ("get_order", '{"order_id": "\\ud800"}', "x"))
    line = await imported((*GET, "x"), domain="\udfff")
    assert len(calls.rejects) == 2
    assert [reject.detail.encode() for reject in (*calls.rejects, *line.rejects)]


def test_only_the_first_hundred_rejects_are_told_but_all_are_counted() -> None:
    report = ImportReport()
    for line in range(MOST_REJECTS + 5):
        report.reject(line, "invalid_line", "x")
    assert (len(report.rejects), report.rejected["invalid_line"]) == (MOST_REJECTS, MOST_REJECTS + 5)
