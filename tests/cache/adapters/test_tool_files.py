"""Tool files in every accepted form, and what is said of all others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from toolcache.adapters.tool_files import ToolFileInvalid, beside, toolsets
from toolcache.core.tools import Effect, Mask, Namespace, Role, Tier, Tool


def function(name: str, **more: Any) -> dict[str, Any]:
    schema = {"type": "object", "properties": {"id": {"type": "string"}}}
    return {"type": "function", "function": {"name": name, "description": "d", "parameters": schema}, **more}


def written(folder: Path, document: Any) -> Path:
    path = folder / "tools.json"
    path.write_text(document if isinstance(document, str) else json.dumps(document), encoding="utf-8")
    return path


def effects(folder: Path, document: Any) -> dict[str, Effect]:
    (found,) = toolsets(written(folder, document)).values()
    return {tool.name: tool.effect for tool in found.tools}


def test_effects_are_read_and_unannotated_tools_are_writes_and_named(tmp_path: Path) -> None:
    document = [function("get", effect="read"), function("add", effect="pure"), function("put")]
    assert effects(tmp_path, document) == {"get": Effect.READ, "add": Effect.PURE, "put": Effect.WRITE}
    assert toolsets(tmp_path / "tools.json")[""].unannotated == ("put",)


def test_write_tools_name_the_writes_and_make_all_others_reads(tmp_path: Path) -> None:
    document = {"tools": [function("get"), function("put"), function("add", effect="pure")], "write_tools": ["put"]}
    assert effects(tmp_path, document) == {"get": Effect.READ, "put": Effect.WRITE, "add": Effect.PURE}
    assert toolsets(tmp_path / "tools.json")[""].unannotated == ()


def test_toolsets_may_stand_by_domain_and_functions_without_wrapping(tmp_path: Path) -> None:
    bare = {"name": "get", "parameters": {"type": "object", "properties": {"q": {}}}, "arguments": {"q": "irrelevant"}}
    found = toolsets(written(tmp_path, {"retail": [bare], "airline": {"tools": [function("book")]}}))
    assert {name: [tool.name for tool in each.tools] for name, each in found.items()} == {
        "retail": ["get"],
        "airline": ["book"],
    }
    assert found["retail"].tools[0].roles == {"q": Role.IRRELEVANT}


@pytest.mark.parametrize(
    ("document", "told"),
    [
        ("{", "not JSON"),
        ([{"type": "function"}], "OpenAI's tool format"),
        ([5], "OpenAI's tool format"),
        ({"tools": 5}, "OpenAI's tool format"),
        ([function("get"), function("get")], "twice"),
        ([function("get", effect="reads")], "reads"),
        ([{"name": "get", "parameters": {"type": "objekt"}}], "no JSON schema"),
        ([{"name": "get", "arguments": {"idd": "identity"}}], "idd"),
        (5, "OpenAI's tool format"),
        ({"tools": [], "max_byte": 5}, "'max_byte'; beside \"tools\" may stand.*max_bytes"),
        ({"shop": {"tools": [], "max_byte": 5}}, "'max_byte'"),
        ({"tools": [], "max_bytes": -1}, "max_bytes is -1"),
        ({"tools": [], "max_bytes": "5"}, "max_bytes"),
        ({"tools": [], "shadow_share": 2}, "shadow_share is 2"),
        ({"tools": [], "tiers": ["exakt"]}, "exakt"),
        ({"tools": [], "tiers": "exact"}, "tiers"),
    ],
)
def test_a_file_that_cannot_be_used_is_named_with_the_reason(tmp_path: Path, document: Any, told: str) -> None:
    with pytest.raises(ToolFileInvalid, match=told) as caught:
        toolsets(written(tmp_path, document))
    assert "tools.json" in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ToolFileInvalid, match=r"none\.json"):
        toolsets(tmp_path / "none.json")


def test_the_file_beside_recordings_is_found_by_ever_shorter_names(tmp_path: Path) -> None:
    recordings = tmp_path / "tau_bench.jsonl.gz"
    with pytest.raises(ToolFileInvalid, match=r"tau_bench_tools\.json, tau_tools\.json, tools\.json.*--tools"):
        beside(recordings)
    for name in ("tools.json", "tau_tools.json", "tau_bench_tools.json"):
        (tmp_path / name).write_text("[]")
        assert beside(recordings) == tmp_path / name


def test_the_whole_policy_of_a_tool_can_stand_in_the_file(tmp_path: Path) -> None:
    more = {
        "effect": "write",
        "errors_change_state": True,
        "ttl_s": 60,
        "samples": 4,
        "masks": [{"argument": "id", "pattern": "[0-9]+"}, {"argument": "id"}],
        "simulate_writes": True,
        "similar_floor": 0.95,
    }
    (found,) = toolsets(written(tmp_path, [function("get", **more)])).values()
    (tool,) = found.tools
    assert tool == Tool(
        name="get",
        description="d",
        parameters=tool.parameters,
        effect=Effect.WRITE,
        errors_change_state=True,
        ttl_s=60,
        samples=4,
        masks=(Mask(argument="id", pattern="[0-9]+"), Mask(argument="id")),
        simulate_writes=True,
        similar_floor=0.95,
    )


def test_the_policy_of_a_namespace_can_stand_beside_its_tools(tmp_path: Path) -> None:
    policy = {"tiers": ["exact", "approximate"], "similar_threshold": 0.9, "max_bytes": 10, "shadow_share": 0.25}
    (found,) = toolsets(written(tmp_path, {"tools": [], "environment": "shop@1", **policy})).values()
    assert found.namespace("shop") == Namespace(
        name="shop",
        tools={},
        tiers=frozenset({Tier.EXACT, Tier.APPROXIMATE}),
        similar_threshold=0.9,
        max_bytes=10,
        shadow_share=0.25,
    )
    (bare,) = toolsets(written(tmp_path, {"tools": []})).values()
    assert bare.namespace("shop") == Namespace(name="shop", tools={})


def test_types_named_as_in_python_are_those_of_json_schema(tmp_path: Path) -> None:
    schema = {
        "type": "dict",
        "properties": {"amount": {"type": "float"}, "type": {"type": "array", "items": {"type": "integer"}}},
        "required": ["amount"],
    }
    (found,) = toolsets(written(tmp_path, {"Trading": [{"name": "get", "parameters": schema}]})).values()
    (tool,) = found.tools
    assert tool.violation({"amount": 1.5, "type": [1]}) is None
    assert tool.violation({"amount": "1.5"}) is not None
    assert tool.violation({}) is not None
