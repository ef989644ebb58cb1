"""The SDK against honest small servers: same answers sync and async, clear errors, bounded retries, light imports."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
from collections.abc import Callable, Coroutine
from typing import Any

import httpx
import msgspec
import pytest

from toolcache_client import (
    AsyncCacheClient,
    CacheClient,
    CacheError,
    CacheRefused,
    CacheReplyMalformed,
    CacheUnavailable,
    RecordRefused,
)
from toolcache_client import client as sdk
from toolcache_client.messages import (
    Answer,
    LookupItem,
    NamespaceSpec,
    Problem,
    Recorded,
    RecordItem,
    ToolResult,
    ToolSpec,
)

LOOK = LookupItem(tool="get", arguments={"id": 2**70}, environment="e", tiers=("exact",), rollout="r", group="g")
TOLD = RecordItem(tool="get", arguments={"id": 1}, environment="e", result=ToolResult(content="x", took_s=0.5))
ANSWER = Answer(tier="exact", trust=1.0, reason="recorded", state="s", state_after="s", result=ToolResult(content="x"))
SPEC = NamespaceSpec(tools=(ToolSpec(name="get", effect="read"),))
STATS = {"namespace": "n", "entries": 1, "environments": 1, "tools": [], "answers": {"exact": 2}, "seconds_saved": 0.5}
REPORT = {"trajectories": 1, "calls": 2, "outcomes": {"stored": 2}, "rejected": {}}

Handler = Callable[[httpx.Request], httpx.Response]
Caller = Callable[[str, tuple[Any, ...], Handler], Any]


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sdk, "RETRY_PAUSES_S", (0.0, 0.0, 0.0))


@pytest.fixture(params=["sync", "async"])
def call(request: pytest.FixtureRequest) -> Caller:
    """call(method, arguments, handler): one SDK call against a handler, through either client."""

    def synchronous(method: str, arguments: tuple[Any, ...], handler: Handler) -> Any:
        with CacheClient("http://cache:1/", transport=httpx.MockTransport(handler)) as client:
            return getattr(client, method)(*arguments)

    def asynchronous(method: str, arguments: tuple[Any, ...], handler: Handler) -> Any:
        async def once() -> Any:
            async with AsyncCacheClient("http://cache:1/", transport=httpx.MockTransport(handler)) as client:
                return await getattr(client, method)(*arguments)

        return asyncio.run(once())

    return synchronous if request.param == "sync" else asynchronous


def replies(*responses: httpx.Response | Exception) -> tuple[Handler, list[httpx.Request]]:
    """A handler that gives these responses in turn, the last one for ever, and the requests it got."""
    got: list[httpx.Request] = []

    def handler(request: httpx.Request) -> httpx.Response:
        got.append(request)
        response = responses[min(len(got), len(responses)) - 1]
        if isinstance(response, Exception):
            raise response
        return httpx.Response(response.status_code, content=response.content, headers=response.headers)

    return handler, got


def ok(document: Any) -> httpx.Response:
    return httpx.Response(200, content=msgspec.json.encode(document))


def problem(status: int, code: str, detail: str) -> httpx.Response:
    return httpx.Response(
        status, content=msgspec.json.encode(Problem(type="t", title="t", status=status, detail=detail, code=code))
    )


@pytest.mark.parametrize(
    ("method", "arguments", "reply", "sent", "result"),
    [
        (
            "lookup",
            ("n", [LOOK, LOOK]),
            {"items": [ANSWER, ANSWER]},
            ("POST", "/v1/lookup", {"namespace": "n", "items": [LOOK, LOOK]}),
            [ANSWER, ANSWER],
        ),
        ("lookup", ("n", []), {"items": []}, ("POST", "/v1/lookup", {"namespace": "n", "items": []}), []),
        (
            "record",
            ("n", [TOLD]),
            {"items": [{"outcome": "stored", "entry": "e1", "state_after": "s", "new field": 1}]},
            ("POST", "/v1/record", {"namespace": "n", "items": [TOLD]}),
            [Recorded(outcome="stored", entry="e1", state_after="s")],
        ),
        ("put_namespace", ("n", SPEC), None, ("PUT", "/v1/namespaces/n", SPEC), None),
        ("namespace", ("n",), SPEC, ("GET", "/v1/namespaces/n", None), SPEC),
        ("namespaces", (), {"namespaces": ["a", "n"]}, ("GET", "/v1/namespaces", None), ["a", "n"]),
        ("health", (), {"status": "ok"}, ("GET", "/healthz", None), None),
    ],
)
def test_both_clients_send_and_read_the_same(
    call: Caller, method: str, arguments: tuple[Any, ...], reply: Any, sent: tuple[str, str, Any], result: Any
) -> None:
    handler, got = replies(httpx.Response(204) if reply is None else ok(reply))
    assert call(method, arguments, handler) == result
    (request,) = got
    verb, path, body = sent
    assert (request.method, request.url.path) == (verb, path)
    if body is not None:
        assert json.loads(request.content) == json.loads(msgspec.json.encode(body))


def test_statistics_and_imports_name_their_namespace_in_the_query(call: Caller) -> None:
    for method, path in (("stats", "/v1/stats"), ("calibrate", "/v1/calibrate")):
        handler, got = replies(ok(STATS))
        assert call(method, ("a&b",), handler).answers == {"exact": 2}
        assert (got[0].url.path, dict(got[0].url.params)) == (path, {"namespace": "a&b"})


def test_an_import_sends_lines_as_they_are(call: Caller) -> None:
    handler, got = replies(ok(REPORT))
    assert call("import_lines", ([b'{"a": 1}\n', b"{}"],), handler).outcomes == {"stored": 2}
    assert (got[0].content, dict(got[0].url.params)) == (b'{"a": 1}\n{}', {})


def test_a_namespace_is_quoted_whole(call: Caller) -> None:
    handler, got = replies(httpx.Response(204))
    call("put_namespace", ("a?b/c d", SPEC), handler)
    assert got[0].url.raw_path == b"/v1/namespaces/a%3Fb%2Fc%20d"


@pytest.mark.parametrize(
    "failure",
    [
        httpx.Response(500, content=b"oops"),
        problem(503, "store_unavailable", "full"),
        httpx.ConnectError("refused"),
        httpx.ReadTimeout("slow"),
        httpx.RemoteProtocolError("cut"),
    ],
)
def test_a_passing_failure_is_retried_and_not_seen(call: Caller, failure: httpx.Response | Exception) -> None:
    handler, got = replies(failure, failure, failure, ok({"items": [ANSWER]}))
    assert call("lookup", ("n", [LOOK]), handler) == [ANSWER]
    assert len(got) == 4
    assert len({request.content for request in got}) == 1


@pytest.mark.parametrize(
    ("failure", "told"),
    [
        (httpx.ConnectError("connection refused"), "ConnectError: connection refused.*toolcache serve"),
        (httpx.ReadTimeout("slow"), "no answer after 4 tries of up to 10 s.*toolcache serve"),
        (
            problem(503, "store_unavailable", "store c.sqlite3: the disk is full"),
            "503.*store c.sqlite3: the disk is full",
        ),
        (httpx.Response(502, content=b"<html>"), "status 502.*check the URL"),
    ],
)
def test_a_lasting_failure_says_where_and_what_to_do_after_four_tries(
    call: Caller, failure: httpx.Response | Exception, told: str
) -> None:
    handler, got = replies(failure)
    with pytest.raises(CacheUnavailable, match=f"http://cache:1: .*{told}") as caught:
        call("lookup", ("n", [LOOK]), handler)
    assert len(got) == 4
    assert caught.value.__cause__ is (failure if isinstance(failure, Exception) else None)


def test_a_closed_port_is_a_cache_that_is_unavailable() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    with CacheClient(url) as client, pytest.raises(CacheUnavailable, match=url):
        client.health()


@pytest.mark.parametrize("url", ["cache:8765", "ftp://cache"])
def test_an_address_that_is_no_url_is_told(url: str) -> None:
    with CacheClient(url) as client, pytest.raises(CacheUnavailable, match="check the URL"):
        client.health()


def test_a_refusal_carries_its_code_and_is_not_retried(call: Caller) -> None:
    handler, got = replies(problem(404, "unknown_namespace", "no namespace 'n' (there are: shop)"))
    with pytest.raises(CacheRefused, match=r"unknown_namespace \(404\): no namespace 'n'") as caught:
        call("lookup", ("n", [LOOK]), handler)
    refused = caught.value
    assert (refused.status, refused.code, refused.detail) == (
        404,
        "unknown_namespace",
        "no namespace 'n' (there are: shop)",
    )
    assert len(got) == 1


def test_results_that_could_not_be_stored_are_listed_by_their_place(call: Caller) -> None:
    stored, refused = {"outcome": "stored", "entry": "e"}, {"outcome": "refused", "detail": "no such tool"}
    handler, _ = replies(ok({"items": [stored, refused, stored, {**refused, "detail": "NaN"}]}))
    with pytest.raises(RecordRefused, match="2 results not stored; item 1: no such tool") as caught:
        call("record", ("n", [TOLD] * 4), handler)
    assert caught.value.refused == {1: "no such tool", 3: "NaN"}


@pytest.mark.parametrize(
    ("method", "arguments", "response"),
    [
        ("lookup", ("n", [LOOK]), httpx.Response(200, content=b"<html>")),
        ("lookup", ("n", [LOOK]), httpx.Response(200, content=b"\xff")),
        ("lookup", ("n", [LOOK]), ok({"items": [{"tier": "exakt", "trust": 1.0, "reason": "r", "state": "s"}]})),
        ("lookup", ("n", [LOOK]), ok({"answers": []})),
        ("lookup", ("n", [LOOK]), httpx.Response(404, content=b"<html>not found</html>")),
        ("lookup", ("n", [LOOK]), httpx.Response(404, content=b'{"detail":"Not Found"}')),
        ("lookup", ("n", [LOOK]), httpx.Response(301, headers={"location": "http://elsewhere"})),
        ("health", (), httpx.Response(200, content=b"<html>hello</html>")),
        ("health", (), httpx.Response(200, content=b'{"status": "green"}')),
        ("put_namespace", ("n", SPEC), httpx.Response(200, content=b"<html>hello</html>")),
        ("namespaces", (), ok({})),
    ],
)
def test_the_answer_of_another_server_is_never_taken_for_ours(
    call: Caller, method: str, arguments: tuple[Any, ...], response: httpx.Response
) -> None:
    handler, got = replies(response)
    with pytest.raises(CacheReplyMalformed, match="http://cache:1/"):
        call(method, arguments, handler)
    assert len(got) == 1


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), "\ud800"])
@pytest.mark.parametrize("wrapped", [lambda v: v, lambda v: [1, {"deep": (v,)}]])
def test_what_json_cannot_say_is_refused_before_it_is_sent_as_something_else(
    call: Caller, value: Any, wrapped: Callable[[Any], Any]
) -> None:
    handler, got = replies(ok({"items": []}))
    item = LookupItem(tool="get", arguments={"x": wrapped(value)}, environment="e")
    with pytest.raises(CacheRefused) as caught:
        call("lookup", ("n", [LOOK, item]), handler)
    assert (caught.value.status, caught.value.code) == (400, "malformed_body")
    told = RecordItem(tool="get", arguments={"x": wrapped(value)}, environment="e", result=ToolResult(content="x"))
    with pytest.raises(CacheRefused):
        call("record", ("n", [told]), handler)
    assert got == []


def test_every_error_of_the_sdk_is_a_cache_error() -> None:
    for error in (CacheUnavailable, CacheRefused, CacheReplyMalformed, RecordRefused):
        assert issubclass(error, CacheError)


@pytest.mark.parametrize(
    "name",
    ["lookup", "record", "put_namespace", "namespace", "namespaces", "import_lines", "calibrate", "stats", "health"],
)
def test_both_clients_offer_the_same(name: str) -> None:
    import inspect

    def offered(client: type) -> list[tuple[str, Any]]:
        parameters = inspect.signature(getattr(client, name)).parameters
        return [(each.name, each.annotation) for each in parameters.values()]

    assert offered(CacheClient) == offered(AsyncCacheClient)
    assert inspect.iscoroutinefunction(getattr(AsyncCacheClient, name))


async def test_one_client_serves_many_tasks() -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        items = json.loads(request.content)["items"]
        echoed = [msgspec.structs.replace(ANSWER, donor=str(each["arguments"]["n"])) for each in items]
        return ok({"items": echoed})

    async with AsyncCacheClient("http://cache", transport=httpx.MockTransport(handler)) as client:

        async def donor(n: int) -> str | None:
            (answer,) = await client.lookup("n", [LookupItem(tool="get", arguments={"n": n}, environment="e")])
            return answer.donor

        many: list[Coroutine[Any, Any, str | None]] = [donor(n) for n in range(100)]
        assert await asyncio.gather(*many) == [str(n) for n in range(100)]


def test_the_sdk_loads_nothing_heavy() -> None:
    code = "import sys, toolcache_client, toolcache_client.messages; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    names = {name.partition(".")[0] for name in loaded}
    heavy = {"torch", "numpy", "fastapi", "pydantic", "transformers", "faiss", "starlette", "toolcache", "cacherl"}
    assert names & heavy == set()
    assert {"httpx", "msgspec"} <= names
