"""Toolsets are checked when they are made; a schema can neither hang, crash nor reach out."""

from __future__ import annotations

import urllib.request
from typing import Any

import pytest

from toolcache.core.tools import Namespace, NamespaceInvalid, Role, Tool


def tool(parameters: dict[str, Any], **more: Any) -> Tool:
    return Tool(name="find", parameters=parameters, **more)


@pytest.mark.parametrize(
    "parameters", [{"type": "objekt"}, {"properties": []}, {"required": "id"}, {"properties": {"a": {"pattern": "("}}}]
)
def test_a_broken_schema_is_refused_by_name(parameters: dict[str, Any]) -> None:
    with pytest.raises(NamespaceInvalid, match="tool find: its parameters are no JSON schema"):
        tool(parameters)


def test_a_role_for_an_argument_that_is_not_there_is_refused() -> None:
    with pytest.raises(NamespaceInvalid, match="qeury"):
        tool({"properties": {"query": {}}}, roles={"qeury": Role.FREE_TEXT})


@pytest.mark.parametrize("threshold", [-0.01, 1.01, float("nan")])
def test_a_threshold_outside_0_to_1_is_refused(threshold: float) -> None:
    with pytest.raises(NamespaceInvalid, match="similar_threshold"):
        Namespace(name="n", tools={}, similar_threshold=threshold)


def test_a_violation_says_where_and_what() -> None:
    found = tool({"type": "object", "properties": {"ids": {"items": {"type": "integer"}}}, "required": ["ids"]})
    assert found.violation({"ids": [1, 2]}) is None
    assert found.violation({"ids": [1, "x"]}) == "arguments.ids.1: 'x' is not of type 'integer'"
    assert found.violation({}) == "arguments: 'ids' is a required property"


def test_a_reference_is_never_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    def fetched(*_: Any, **__: Any) -> Any:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(urllib.request, "urlopen", fetched)
    far = tool({"properties": {"a": {"$ref": "http://192.0.2.1/schema.json"}}})
    assert "refers to something outside itself" in (far.violation({"a": 1}) or "")


def test_references_inside_a_schema_are_followed() -> None:
    near = tool({"$defs": {"n": {"type": "integer"}}, "properties": {"a": {"$ref": "#/$defs/n"}}})
    assert near.violation({"a": 1}) is None
    assert near.violation({"a": "x"}) is not None


def test_a_schema_that_refers_to_itself_without_end_is_a_violation_not_a_crash() -> None:
    assert "without end" in (tool({"$ref": "#"}).violation({}) or "")


def test_a_property_may_be_any_value() -> None:
    assert tool({"properties": {"a": True}}).violation({"a": [1]}) is None


def test_a_huge_number_does_not_crash_the_check() -> None:
    assert tool({"properties": {"a": {"multipleOf": 0.5}}}).violation({"a": 10**400}) is not None
