"""Reading recorded trajectories: every call with its own result, and no line can break the reader."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolcache.core.entries import Result
from toolcache.core.trajectories import Trajectory, TrajectoryInvalid, trajectory


def call(name: str, arguments: Any = "{}", identity: str = "1") -> dict[str, Any]:
    return {"id": identity, "type": "function", "function": {"name": name, "arguments": arguments}}


def asks(*calls: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": None, "tool_calls": list(calls)}


def says(content: Any, identity: str = "1", **more: Any) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": identity, "content": content, **more}


def read(*messages: Any, **more: Any) -> Trajectory:
    return trajectory(json.dumps({"environment": "e", "messages": list(messages), **more}))


def results(*messages: Any) -> list[str | None]:
    return [step.result and step.result.content for step in read(*messages).steps]


def test_a_line_is_read_whole() -> None:
    found = read(
        {"role": "system", "content": "s"},
        {"role": "user", "content": "u"},
        asks(call("get", '{"id": 7}')),
        says("Error: none", took_s=0.5),
        {"role": "assistant", "content": "bye"},
        uid="u1",
        domain="retail",
        model="m",
    )
    assert (found.uid, found.domain, found.environment, found.model) == ("u1", "retail", "e", "m")
    (step,) = found.steps
    assert (step.tool, step.arguments, step.unparsable) == ("get", {"id": 7}, "")
    assert step.result == Result(content="Error: none", is_error=True, took_s=0.5)


def test_parallel_calls_get_their_results_by_id() -> None:
    turn = asks(call("a", identity="1"), call("b", identity="2"))
    assert results(turn, says("B", "2"), says("A", "1")) == ["A", "B"]


def test_parallel_calls_of_one_id_get_their_results_in_order() -> None:
    assert results(asks(call("a"), call("b")), says("A"), says("B")) == ["A", "B"]
    assert results(asks(call("a"), call("b")), says("A")) == ["A", None]


def test_an_id_used_again_belongs_to_the_latest_turn() -> None:
    assert results(asks(call("a")), says("A"), asks(call("b")), says("B")) == ["A", "B"]
    assert results(asks(call("a")), asks(call("b")), says("B")) == [None, "B"]


def test_a_second_result_of_a_call_is_passed_over() -> None:
    assert results(asks(call("a")), says("A"), says("again")) == ["A"]


@pytest.mark.parametrize("arguments", ["{", "", "[1]", "5", "null", None, 7, "[" * 5000])
def test_unparsable_arguments_are_told_apart_from_none(arguments: Any) -> None:
    (step,) = read(asks(call("a", arguments)), says("A")).steps
    assert step.arguments is None
    assert step.unparsable.startswith("arguments are no")


def test_arguments_may_be_an_object_already() -> None:
    (step,) = read(asks(call("a", {"x": 1}))).steps
    assert step.arguments == {"x": 1}


@pytest.mark.parametrize(
    ("message", "is_error"),
    [
        (says("Error: no"), True),
        (says("error: no"), True),
        (says("Error executing tool"), True),
        (says("Traceback (most recent call last):\n"), True),
        (says("No Error: fine"), False),
        (says("Errors: 0"), False),
        (says("fine", is_error=True), True),
        (says("Error: it is what a log said", is_error=False), False),
        (says("Error: no", is_error="no"), True),
    ],
)
def test_errors_are_known_by_flag_and_else_by_their_first_words(message: dict[str, Any], is_error: bool) -> None:
    (step,) = read(asks(call("a")), message).steps
    assert step.result is not None
    assert step.result.is_error is is_error


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (None, ""),
        ([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "ab"),
        ({"a": 1}, '{"a": 1}'),
        ([1, 2], "[1, 2]"),
        (5, "5"),
    ],
)
def test_content_becomes_text(content: Any, text: str) -> None:
    assert results(asks(call("a")), says(content)) == [text]


@pytest.mark.parametrize("took", ["1", None, -1, "x", float("nan"), float("inf"), 10**400, 1e300])
def test_a_duration_that_is_none_counts_nothing(took: Any) -> None:
    (step,) = read(asks(call("a")), says("A", took_s=took)).steps
    assert step.result is not None
    assert step.result.took_s == 0.0


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"{",
        b'{"messages": [{"role"',
        b"[]",
        b"null",
        b'{"messages": {}}',
        b"\xff\xfe\xfa",
        b'{"messages": [1]}',
        b'{"messages": [{"role": "assistant", "tool_calls": 5}]}',
        b'{"messages": [{"role": "assistant", "tool_calls": true}]}',
        b'{"messages": [{"role": "assistant", "tool_calls": {"a": 1}}]}',
        b'{"messages": [{"role": "assistant", "tool_calls": [5]}]}',
        b'{"messages": [{"role": "assistant", "tool_calls": [{"function": 5}]}]}',
        b"[" * 100_000,
        b'{"messages": ' + b"[" * 960 + b"]" * 960 + b"}",
        b'{"messages": [], "uid": 1' + b"1" * 5000 + b"}",
    ],
)
def test_a_line_that_is_no_trajectory_is_refused_and_nothing_else(line: bytes) -> None:
    with pytest.raises(TrajectoryInvalid):
        trajectory(line)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
messages = st.fixed_dictionaries(
    {"role": st.sampled_from(["assistant", "tool", "user"])},
    optional={
        "content": json_values,
        "tool_call_id": st.sampled_from(["1", "2"]) | json_values,
        "took_s": json_values,
        "is_error": json_values,
        "tool_calls": st.lists(
            st.fixed_dictionaries(
                {"function": st.fixed_dictionaries({}, optional={"name": json_values, "arguments": json_values})},
                optional={"id": st.sampled_from(["1", "2"]) | json_values},
            )
            | json_values,
            max_size=3,
        )
        | json_values,
    },
)


@given(st.lists(messages | json_values, max_size=4))
def test_any_messages_are_read_or_refused(some: list[Any]) -> None:
    try:
        found = read(*some)
    except TrajectoryInvalid:
        return
    for step in found.steps:
        assert (step.arguments is None) == bool(step.unparsable)
