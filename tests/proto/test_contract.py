"""Every HTTP body is the JSON form of a message in proto/toolcache/v1/toolcache.proto, field for field."""

from __future__ import annotations

import asyncio
import importlib
import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

import httpx
import msgspec
import pytest
from google.protobuf import json_format
from grpc_tools import protoc

from tests.cache.http.service import PENDING, batch, call, client_of, made
from toolcache.http.endpoints import Endpoints
from toolcache.http.operation import Description
from toolcache_client import messages as wire

PROTO = Path(__file__).parents[2] / "proto"
RESULT = wire.ToolResult(content="{}", is_error=True, took_s=0.25)
ARGUMENTS = {"order_id": "#W1", "deep": {"list": [1, 2.5, None, True]}}
MASK = wire.Mask(argument="q", pattern=r"\d+")
EVIDENCE = wire.Evidence(right=7, compared=8, proven=0.5)
CANDIDATE = wire.Candidate(
    donor="d", arguments=ARGUMENTS, verdict="served", differs=("order_id",), score=0.5, age_s=1.5
)
EXPLANATION = wire.Explanation(
    key="k",
    state="s",
    canonical="{}",
    roles={"q": "free_text"},
    masked=("q",),
    guard={"order_id": "#W1"},
    threshold=0.8,
    floor=0.9,
    trust={"recorded": 1.0},
    steps=("exact: nothing",),
    candidates=(CANDIDATE,),
)
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
    lineage=0.5,
    lease="k.s",
    shared=True,
    shadow=True,
    explanation=EXPLANATION,
)
TOOL = wire.ToolSpec(
    name="t",
    description="d",
    parameters={"type": "object"},
    effect="read",
    arguments={"q": "free_text"},
    errors_change_state=True,
    ttl_s=60.0,
    samples=4,
    masks=(MASK,),
    simulate_writes=True,
    similar_floor=0.95,
)
TOOL_STATS = wire.ToolStats(
    name="get_order",
    effect="read",
    entries=3,
    conflicts=1,
    answers={"exact": 2},
    roles={"order_id": "identity"},
    trust={"recorded": 0.5},
    evidence={"recorded": EVIDENCE},
    proposed_masks=(MASK,),
)
LOOKUP_ITEM = wire.LookupItem(
    tool="get_order",
    arguments=ARGUMENTS,
    environment="shop@1",
    state="a",
    follows=True,
    tiers=("exact",),
    rollout="r",
    group="g",
)
SERVED = wire.Served(reason="free_text", result=RESULT, score=0.9)
RECORD_ITEM = wire.RecordItem(
    tool="t",
    arguments=ARGUMENTS,
    environment="shop@1",
    result=RESULT,
    state="a",
    rollout="r",
    lease="k.s",
    tags=("t",),
    served=SERVED,
)
RECORDED = wire.Recorded(outcome="refused", entry="e", state_after="b", detail="why")
REJECT = wire.Reject(line=1, reason="unparsable", detail="why")
ENTRY = wire.EntryView(
    id="e",
    order=2**52 + 1,
    tool="t",
    arguments=ARGUMENTS,
    environment="shop@1",
    result=RESULT,
    recorded_at_s=1000.5,
    seen=3,
    expires_at_s=1060.5,
    tags=("t",),
)
KEY = wire.ApiKey(id="k", name="n", role="write", namespaces=("*",), created_at_s=1.5, secret="tck_k_s")
EVERY_MESSAGE: list[Any] = [
    RESULT,
    LOOKUP_ITEM,
    wire.LookupRequest(namespace="shop", items=(LOOKUP_ITEM,), on_miss="lease", wait_s=1.5, lease_s=30.0, job="j"),
    CANDIDATE,
    EXPLANATION,
    ANSWER,
    wire.Answer(tier="miss", trust=0.0, reason="write"),
    wire.LookupReply(items=(ANSWER,)),
    SERVED,
    RECORD_ITEM,
    wire.RecordRequest(namespace="shop", items=(RECORD_ITEM,), request_id="r", job="j"),
    RECORDED,
    wire.RecordReply(items=(RECORDED,)),
    MASK,
    TOOL,
    wire.NamespaceSpec(
        tools=(TOOL,), tiers=("exact", "approximate"), similar_threshold=0.7, max_bytes=2**52 + 1, shadow_share=0.25
    ),
    EVIDENCE,
    TOOL_STATS,
    wire.Stats(
        namespace="shop",
        entries=3,
        environments=1,
        tools=(TOOL_STATS,),
        answers={"miss": 4},
        seconds_saved=1.5,
        size_bytes=2**52 + 1,
    ),
    wire.Namespaces(namespaces=("shop",)),
    REJECT,
    wire.ImportReport(
        trajectories=1,
        calls=2,
        outcomes={"stored": 1},
        rejected={"unparsable": 1},
        rejects=(REJECT,),
        namespaces=("shop",),
    ),
    ENTRY,
    wire.Entries(entries=(ENTRY,), next_after=2**52 + 1),
    wire.Entries(entries=()),
    wire.Removed(removed=3),
    wire.LeaseRequest(namespace="shop", extend_s=60.5),
    wire.LeaseReply(held=True),
    wire.KeySpec(name="n", role="write", namespaces=("shop", "*")),
    KEY,
    wire.ApiKeys(keys=(KEY,)),
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


def through_proto(compiled: ModuleType, body: bytes, message: type) -> Any:
    """The body as its proto message reads and writes it, as our type. Raises for a field that the proto has not."""
    proto = json_format.Parse(body, getattr(compiled, message.__name__)())
    written = json_format.MessageToDict(
        proto, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    return msgspec.convert(_as_said(written, json.loads(body)), type=message, strict=False)


def _as_said(written: Any, said: Any) -> Any:
    """What was written, of what was said: what a body leaves out has our default, which proto does not know."""
    if isinstance(said, dict):
        return {name: _as_said(written[name], value) for name, value in said.items() if name in written}
    if isinstance(said, list):
        return [_as_said(*each) for each in zip(written, said, strict=True)]
    return written


@pytest.mark.parametrize("message", EVERY_MESSAGE, ids=lambda message: type(message).__name__)
def test_a_body_comes_back_equal_from_its_proto_message(compiled: ModuleType, message: Any) -> None:
    assert through_proto(compiled, msgspec.json.encode(message), type(message)) == message


@pytest.mark.parametrize("message", EVERY_MESSAGE, ids=lambda message: type(message).__name__)
def test_message_and_proto_have_the_same_fields(compiled: ModuleType, message: Any) -> None:
    proto = getattr(compiled, type(message).__name__)
    assert set(proto.DESCRIPTOR.fields_by_name) == {field.encode_name for field in msgspec.structs.fields(message)}


def test_every_message_is_among_them_and_no_field_is_left_at_its_default(compiled: ModuleType) -> None:
    """Or a field could be lost on the way without a test that sees it."""
    types = {each for each in vars(wire).values() if isinstance(each, type) and issubclass(each, msgspec.Struct)}
    assert {type(message) for message in EVERY_MESSAGE} == types - {wire.Message, wire.Reply}
    assert {each.__name__ for each in types} - {"Message", "Reply"} == set(compiled.DESCRIPTOR.message_types_by_name)
    for message in types - {wire.Message, wire.Reply}:
        full = next(each for each in EVERY_MESSAGE if type(each) is message)
        for field in msgspec.structs.fields(message):
            assert getattr(full, field.name) not in (field.default, False, 0, ""), (message, field.name)


def test_the_closed_lists_of_the_wire_are_those_of_the_core() -> None:
    from toolcache.core.access import ApiRole
    from toolcache.core.entries import Outcome
    from toolcache.core.tools import Effect, Role, Tier

    assert set(get_args(wire.Tier)) == set(Tier)
    assert set(get_args(wire.Effect)) == set(Effect)
    assert set(get_args(wire.ArgumentRole)) == set(Role)
    assert set(get_args(wire.RecordOutcome)) == {*Outcome, "refused"}
    assert set(get_args(wire.ApiRole)) == {role.name.lower() for role in ApiRole}


# -- what really travels -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Exchanged:
    """One request and its reply, as they were on the wire."""

    about: Description
    sent: bytes
    status: int
    received: bytes


ABOUTS = [about for about, _ in Endpoints.__new__(Endpoints).described()]
SPEC = {
    "tools": [
        {
            "name": "get_order",
            "effect": "read",
            "parameters": {"type": "object", "properties": {"order_id": {"type": "string"}}},
            "masks": [{"argument": "trace", "pattern": ""}],
            "ttl_s": 60,
        },
        {"name": "search", "effect": "read", "parameters": {"properties": {"query": {"type": "string"}}}},
        {"name": "cancel_order", "samples": 2},
    ],
    "tiers": ["exact", "similar", "approximate"],
    "max_bytes": 10**9,
    "shadow_share": 1.0,
}
WRITE = call() | {"tool": "cancel_order", "rollout": "r"}
SERVED_WRONGLY = {"reason": "nearest", "result": PENDING, "score": 0.5}


async def talk(client: httpx.AsyncClient) -> None:
    """Ask every endpoint for everything it can say."""
    await client.put("/v1/namespaces/shop", json=SPEC)
    await client.get("/v1/namespaces")
    await client.get("/v1/namespaces/shop")
    leased = (
        await client.post("/v1/lookup", json=batch(call(), WRITE | {"group": "g"}, on_miss="lease", job="j"))
    ).json()["items"]
    await client.post(f"/v1/leases/{leased[0]['lease']}", json={"namespace": "shop", "extend_s": 60})
    await client.post(f"/v1/leases/{leased[1]['lease']}", json={"namespace": "shop"})
    search = call() | {"tool": "search", "arguments": {"query": "a lamp for the desk"}}
    await client.post(
        "/v1/record",
        json=batch(
            call(result=PENDING, lease=leased[0]["lease"], tags=["t"], rollout="r"),
            call(result={"content": "other"}, served=SERVED_WRONGLY),
            search | {"result": PENDING},
            WRITE | {"result": {"content": "done", "is_error": True}},
            call(result=PENDING) | {"tool": "teleport"},
            request_id="r",
        ),
    )
    asked = [call(), call("#W2"), search | {"arguments": {"query": "a desk lamp"}}, WRITE, call(follows=True)]
    await client.post("/v1/lookup", json=batch(*asked))
    await client.post("/v1/lookup?explain=1", json=batch(*asked, call(tiers=["exact"])))
    await client.post("/v1/calibrate?namespace=shop")
    await client.get("/v1/stats?namespace=shop")
    await client.get("/v1/entries?namespace=shop&limit=1")
    await client.get("/v1/entries?namespace=shop")
    exported = await client.get("/v1/export?namespace=shop")
    await client.post("/v1/import?namespace=copy", content=exported.content)
    await client.post("/v1/import", content=b"{}")
    key = (await client.post("/v1/keys", json={"name": "n", "role": "read", "namespaces": ["*"]})).json()
    await client.get("/v1/keys")
    await client.delete(f"/v1/keys/{key['id']}")
    await client.delete(f"/v1/keys/{key['id']}")
    await client.delete("/v1/entries?namespace=shop&all=1")
    await client.delete("/v1/namespaces/shop")
    for path in ("/metrics", "/healthz", "/readyz", "/v1/stats?namespace=shop"):
        await client.get(path)


@pytest.fixture(scope="module")
def exchanged() -> list[Exchanged]:
    return asyncio.run(_exchanged())


async def _exchanged() -> list[Exchanged]:
    seen: list[Exchanged] = []

    async def note(reply: httpx.Response) -> None:
        path = re.sub(r"(?<=/v1/(?:leases))/.+|(?<=/v1/keys)/.+", "/{id}", reply.request.url.path)
        path = re.sub(r"(?<=/v1/namespaces)/.+", "/{name}", path)
        (about,) = [each for each in ABOUTS if each.route == f"{reply.request.method} {path}"]
        sent, received = reply.request.content, await reply.aread()
        seen.append(Exchanged(about=about, sent=sent, status=reply.status_code, received=received))

    async with client_of(made(), event_hooks={"response": [note]}) as client:
        await talk(client)
    return seen


def test_every_endpoint_was_asked_and_answered(exchanged: list[Exchanged]) -> None:
    assert {each.about.route for each in exchanged if each.status < 300} == {about.route for about in ABOUTS}


def test_every_body_that_really_travels_is_its_proto_message(compiled: ModuleType, exchanged: list[Exchanged]) -> None:
    for each in exchanged:
        for body, message in (
            (each.sent, each.about.body),
            (each.received, each.about.reply if each.status < 400 else wire.Problem),
        ):
            if isinstance(message, type) and message.__module__ == wire.__name__:
                ours = msgspec.json.decode(body, type=message)
                assert through_proto(compiled, body, message) == ours, each


def test_the_conversation_says_all_that_answers_can_say(exchanged: list[Exchanged]) -> None:
    """Or the test above would not see what it is there for."""
    said = b"".join(each.received for each in exchanged)
    fields = {
        field.encode_name for message in (wire.Answer, wire.Explanation) for field in msgspec.structs.fields(message)
    }
    unsaid = {name for name in fields if f'"{name}":'.encode() not in said}
    assert unsaid <= {"adapted", "shared"}
    assert json.loads(next(each for each in exchanged if each.about.path == "/v1/entries").received)["next_after"]
