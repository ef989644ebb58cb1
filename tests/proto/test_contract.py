"""Every HTTP body is the JSON form of a message in proto/toolcache/v1/toolcache.proto, field for field."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec
import pytest
from google.protobuf import json_format
from grpc_tools import protoc

from toolcache_client import messages as wire

PROTO = Path(__file__).parents[2] / "proto"
RESULT = wire.ToolResult(content="{}", is_error=True, took_s=0.25)
ANSWER = wire.Answer(
    tier="similar",
    trust=0.97,
    reason="free_text",
    state="a",
    state_after="b",
    result=RESULT,
    donor="d",
    score=0.91,
    adapted=True,
    detail="why",
)
TOOL_STATS = wire.ToolStats(
    name="get_order",
    effect="read",
    entries=3,
    conflicts=1,
    answers={"exact": 2},
    roles={"order_id": "identity"},
    trust={"recorded": 0.5},
)
EVERY_MESSAGE = [
    wire.LookupRequest(
        namespace="shop",
        items=(
            wire.LookupItem(
                tool="get_order",
                arguments={"order_id": "#W1", "deep": {"list": [1, 2.5, None, True]}},
                environment="shop@1",
                state="a",
                follows=True,
                tiers=("exact",),
                rollout="r",
                group="g",
            ),
        ),
    ),
    wire.LookupReply(items=(ANSWER,)),
    wire.RecordRequest(
        namespace="shop",
        items=(
            wire.RecordItem(tool="t", arguments={"a": 1}, environment="shop@1", result=RESULT, state="a", rollout="r"),
        ),
    ),
    wire.RecordReply(items=(wire.Recorded(outcome="refused", entry="e", state_after="b", detail="why"),)),
    wire.NamespaceSpec(
        tools=(
            wire.ToolSpec(
                name="t",
                description="d",
                parameters={"type": "object"},
                effect="read",
                arguments={"q": "free_text"},
                errors_change_state=True,
            ),
        ),
        tiers=("exact", "approximate"),
        similar_threshold=0.7,
    ),
    wire.Namespaces(namespaces=("shop",)),
    wire.Stats(
        namespace="shop", entries=3, environments=1, tools=(TOOL_STATS,), answers={"miss": 4}, seconds_saved=1.5
    ),
    wire.ImportReport(
        trajectories=1,
        calls=2,
        outcomes={"stored": 1},
        rejected={"unparsable": 1},
        rejects=(wire.Reject(line=1, reason="unparsable", detail="why"),),
        namespaces=("shop",),
    ),
    wire.Problem(type="urn:x", title="t", status=404, detail="d", code="unknown_namespace"),
]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    out = tmp_path_factory.mktemp("proto")
    well_known = str(Path(protoc.__file__).parent / "_proto")
    arguments = ["", f"-I{PROTO}", f"-I{well_known}", f"--python_out={out}", "toolcache/v1/toolcache.proto"]
    assert protoc.main(arguments) == 0
    sys.path.insert(0, str(out / "toolcache" / "v1"))
    try:
        return importlib.import_module("toolcache_pb2")
    finally:
        sys.path.pop(0)


@pytest.mark.parametrize("message", EVERY_MESSAGE, ids=lambda message: type(message).__name__)
def test_a_body_comes_back_equal_from_its_proto_message(compiled: ModuleType, message: Any) -> None:
    body = msgspec.json.encode(message)
    proto = json_format.Parse(body, getattr(compiled, type(message).__name__)())
    back = json_format.MessageToJson(proto, preserving_proto_field_name=True)
    assert msgspec.json.decode(back, type=type(message)) == message


@pytest.mark.parametrize("message", EVERY_MESSAGE, ids=lambda message: type(message).__name__)
def test_message_and_proto_have_the_same_fields(compiled: ModuleType, message: Any) -> None:
    proto = getattr(compiled, type(message).__name__)
    assert set(proto.DESCRIPTOR.fields_by_name) == {field.encode_name for field in msgspec.structs.fields(message)}
