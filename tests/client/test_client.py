"""The SDK against honest small servers: same answers sync and async, clear errors, bounded retries, light imports."""

from __future__ import annotations

import asyncio
import inspect
import json
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import Any

import httpx
import msgspec
import pytest

from toolcache_client import (
    AsyncCacheClient,
    CacheBusy,
    CacheClient,
    CacheDenied,
    CacheError,
    CacheRefused,
    CacheReplyMalformed,
    CacheUnavailable,
    RecordRefused,
)
from toolcache_client import client as sdk
from toolcache_client.messages import (
    Answer,
    ApiKey,
    EntryView,
    KeySpec,
    LeaseRequest,
    LookupItem,
    NamespaceSpec,
    Problem,
    Recorded,
    RecordItem,
    Stats,
    ToolResult,
    ToolSpec,
)

LOOK = LookupItem(tool="get", arguments={"id": 2**70}, environment="e", tiers=("exact",), rollout="r", group="g")
TOLD = RecordItem(tool="get", arguments={"id": 1}, environment="e", result=ToolResult(content="x", took_s=0.5))
ANSWER = Answer(tier="exact", trust=1.0, reason="recorded", state="s", state_after="s", result=ToolResult(content="x"))
SPEC = NamespaceSpec(tools=(ToolSpec(name="get", effect="read"),))
KEY = ApiKey(id="k1", name="me", role="read", namespaces=("*",), created_at_s=5.0, secret="tck_k1_s")
STATS = {"namespace": "n", "entries": 1, "environments": 1, "tools": [], "answers": {"exact": 2}, "seconds_saved": 0.5}
REPORT = {"trajectories": 1, "calls": 2, "outcomes": {"stored": 2}, "rejected": {}}

Handler = Callable[[httpx.Request], httpx.Response]
Caller = Callable[..., Any]


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sdk, "RETRY_PAUSES_S", (0.0, 0.0, 0.0))
    monkeypatch.delenv("TOOLCACHE_API_KEY", raising=False)


@pytest.fixture(params=["sync", "async"])
def call(request: pytest.FixtureRequest) -> Caller:
    """call(method, arguments, handler, made=..., **keywords): one SDK call against a handler, through either client.

    `made` holds arguments of the client. What the method yields piece by piece comes as a list.
    """

    def synchronous(
        method: str, arguments: tuple[Any, ...], handler: Handler, made: dict[str, Any] | None = None, **keywords: Any
    ) -> Any:
        with CacheClient("http://cache:1/", transport=httpx.MockTransport(handler), **(made or {})) as client:
            found = getattr(client, method)(*arguments, **keywords)
            return list(found) if inspect.isgenerator(found) else found

    def asynchronous(
        method: str, arguments: tuple[Any, ...], handler: Handler, made: dict[str, Any] | None = None, **keywords: Any
    ) -> Any:
        async def once() -> Any:
            transport = httpx.MockTransport(handler)
            async with AsyncCacheClient("http://cache:1/", transport=transport, **(made or {})) as client:
                found = getattr(client, method)(*arguments, **keywords)
                return [each async for each in found] if inspect.isasyncgen(found) else await found

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
            ("POST", "/v1/lookup", {"namespace": "n", "items": [LOOK, LOOK], "on_miss": "fail", "wait_s": 0.0}),
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
        ("delete_namespace", ("a/n",), {"removed": 7}, ("DELETE", "/v1/namespaces/a%2Fn", None), 7),
        (
            "release_lease",
            ("n", "k#1.s"),
            {"held": False},
            ("POST", "/v1/leases/k%231.s", LeaseRequest(namespace="n")),
            False,
        ),
        ("api_keys", (), {"keys": [KEY]}, ("GET", "/v1/keys", None), [KEY]),
        (
            "make_api_key",
            ("me", "read", ["*"]),
            KEY,
            ("POST", "/v1/keys", KeySpec(name="me", role="read", namespaces=("*",))),
            KEY,
        ),
        ("delete_api_key", ("k1",), {"removed": 1}, ("DELETE", "/v1/keys/k1", None), None),
        ("stats", ("n m",), STATS, ("GET", "/v1/stats?namespace=n+m", None), msgspec.convert(STATS, Stats)),
        ("calibrate", ("n",), STATS, ("POST", "/v1/calibrate?namespace=n", None), msgspec.convert(STATS, Stats)),
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
    assert (request.method, request.url.raw_path) == (verb, path.encode())
    if body is None:
        assert request.content == b""
    else:
        got_body, expected = json.loads(request.content), json.loads(msgspec.json.encode(body))
        assert got_body == got_body | expected


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
def test_an_address_that_is_no_url_is_told_at_once(url: str) -> None:
    pauses: list[float] = []
    with CacheClient(url, sleep=pauses.append) as client, pytest.raises(CacheUnavailable, match="check the URL"):
        client.health()
    assert pauses == []


def test_what_cannot_be_read_as_an_address_at_all_is_told_too() -> None:
    with pytest.raises(CacheUnavailable, match=r"no URL \(.*check it"):
        CacheClient("http://cache:port")


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
    for error in (CacheUnavailable, CacheBusy, CacheRefused, CacheDenied, CacheReplyMalformed, RecordRefused):
        assert issubclass(error, CacheError)


def test_both_clients_offer_the_same() -> None:
    def offered(client: type, name: str) -> list[tuple[str, Any, Any]]:
        parameters = inspect.signature(getattr(client, name)).parameters.values()
        # Only what is called back or carries the call differs: a coroutine there, a function here.
        return [
            (each.name, each.default, None if each.name in ("execute", "transport", "sleep") else each.annotation)
            for each in parameters
            if each.name != "sleep"
        ]

    names = {name for name in vars(CacheClient) if not name.startswith("_")} - {"close"}
    assert names == {name for name in vars(AsyncCacheClient) if not name.startswith("_")} - {"aclose"}
    assert {"lookup", "record", "resolve", "entries", "export"} <= names
    for name in (*names, "__init__"):
        assert offered(CacheClient, name) == offered(AsyncCacheClient, name)
        method = getattr(AsyncCacheClient, name)
        assert name == "__init__" or inspect.iscoroutinefunction(method) or inspect.isasyncgenfunction(method)


# -- what a call says and to whom --------------------------------------------------------------------------------------


def test_a_lookup_says_what_to_do_about_a_miss_and_may_last_as_long_as_it_asked_to_wait(call: Caller) -> None:
    handler, got = replies(ok({"items": [ANSWER]}))
    made = {"job": "run-7", "timeout_s": 3.0}
    call("lookup", ("n", [LOOK]), handler, made, on_miss="lease", wait_s=20.0, lease_s=90.0, explain=True)
    body = json.loads(got[0].content)
    assert (body["on_miss"], body["wait_s"], body["lease_s"], body["job"]) == ("lease", 20.0, 90.0, "run-7")
    assert got[0].url.raw_path == b"/v1/lookup?explain=1"
    assert (got[0].extensions["timeout"]["connect"], got[0].extensions["timeout"]["read"]) == (3.0, 23.0)


def test_an_import_may_take_minutes_but_connecting_may_not(call: Caller) -> None:
    handler, got = replies(ok(REPORT))
    call("import_lines", ([b"{}"],), handler, {"timeout_s": 3.0})
    assert (got[0].extensions["timeout"]["connect"], got[0].extensions["timeout"]["read"]) == (3.0, 600.0)


def test_a_record_keeps_its_name_over_retries_and_two_records_have_two(call: Caller) -> None:
    stored = ok({"items": [{"outcome": "stored", "entry": "e", "state_after": "s"}]})
    names: list[str] = []
    for _ in range(2):
        handler, got = replies(httpx.ReadTimeout("slow"), httpx.Response(502), stored)
        call("record", ("n", [TOLD]), handler, {"job": "run-7"})
        tries = [json.loads(request.content) for request in got]
        assert (len(tries), tries[0]["job"]) == (3, "run-7")
        assert tries[0] == tries[1] == tries[2]
        names.append(tries[0]["request_id"])
    assert len(set(names)) == 2
    assert all(len(name) == 32 and int(name, 16) for name in names)


@pytest.mark.parametrize(
    ("made", "environment", "sent"),
    [
        ({}, None, None),
        ({"api_key": "tck_1_a"}, None, "Bearer tck_1_a"),
        ({}, "tck_2_b\n", "Bearer tck_2_b"),
        ({"api_key": "tck_1_a"}, "tck_2_b", "Bearer tck_1_a"),
        ({"api_key": ""}, "tck_2_b", None),
        ({"api_key": "an admin's own words"}, None, "Bearer an admin's own words"),
    ],
)
def test_the_key_given_goes_before_that_of_the_environment(
    call: Caller, monkeypatch: pytest.MonkeyPatch, made: dict[str, Any], environment: str | None, sent: str | None
) -> None:
    if environment is not None:
        monkeypatch.setenv("TOOLCACHE_API_KEY", environment)
    handler, got = replies(ok({"status": "ok"}))
    call("health", (), handler, made)
    assert got[0].headers.get("authorization") == sent


@pytest.mark.parametrize("key", ["tck_1_a\r\nx: y", "tck\x00a", "tck\u2028a"])
def test_a_key_that_could_end_its_header_is_refused_and_not_shown(call: Caller, key: str) -> None:
    handler, got = replies(ok({"status": "ok"}))
    with pytest.raises(CacheDenied) as caught:
        call("health", (), handler, {"api_key": key})
    assert (got, key in str(caught.value)) == ([], False)


# -- refusals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [400, 401, 403, 404, 408, 413, 422])
def test_a_refusal_is_final_at_once_and_only_a_key_s_is_a_denial(call: Caller, status: int) -> None:
    handler, got = replies(problem(status, "a_code", "do this"))
    with pytest.raises(CacheRefused) as caught:
        call("lookup", ("n", [LOOK]), handler)
    assert (len(got), caught.value.status, caught.value.code) == (1, status, "a_code")
    assert isinstance(caught.value, CacheDenied) is (status in (401, 403))


def busy(retry_after: str | None) -> httpx.Response:
    refused = problem(429, "too_busy", "512 requests are in work")
    headers = {} if retry_after is None else {"retry-after": retry_after}
    return httpx.Response(429, content=refused.content, headers=headers)


class Time:
    """A clock that only sleeping moves."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.slept: list[float] = []

    def clock(self) -> float:
        return self.now_s

    def sleep(self, pause_s: float) -> None:
        self.slept.append(pause_s)
        self.now_s += pause_s

    async def sleep_async(self, pause_s: float) -> None:
        self.sleep(pause_s)


def timed(time: Time, call: Caller, chance: float = 0.5) -> dict[str, Any]:
    """Arguments of a client that lives in this time."""
    sleep = time.sleep if call.__name__ == "synchronous" else time.sleep_async
    return {"clock": time.clock, "sleep": sleep, "chance": lambda: chance}


@pytest.mark.parametrize(("chance", "factor"), [(0.0, 0.5), (0.5, 1.0), (0.75, 1.25)])
def test_pauses_grow_and_are_spread_by_chance(
    call: Caller, monkeypatch: pytest.MonkeyPatch, chance: float, factor: float
) -> None:
    monkeypatch.setattr(sdk, "RETRY_PAUSES_S", (0.1, 0.4, 1.6))
    time, (handler, _) = Time(), replies(httpx.Response(502))
    with pytest.raises(CacheUnavailable):
        call("health", (), handler, timed(time, call, chance))
    assert time.slept == [0.1 * factor, 0.4 * factor, 1.6 * factor]


@pytest.mark.parametrize(
    ("retry_after", "slept"),
    [
        ("1", [1.0, 1.0, 1.6]),
        ("3600", [10.0, 10.0, 10.0]),
        (None, [0.1, 0.4, 1.6]),
        ("Fri, 21 Nov 2025 11:55:29 GMT", [0.1, 0.4, 1.6]),
        ("-5", [0.1, 0.4, 1.6]),
    ],
)
def test_a_busy_service_is_given_the_time_it_asks_for_within_bounds(
    call: Caller, monkeypatch: pytest.MonkeyPatch, retry_after: str | None, slept: list[float]
) -> None:
    monkeypatch.setattr(sdk, "RETRY_PAUSES_S", (0.1, 0.4, 1.6))
    time, (handler, got) = Time(), replies(busy(retry_after))
    with pytest.raises(CacheBusy, match=r"4 times with status 429.*512 requests are in work"):
        call("lookup", ("n", [LOOK]), handler, timed(time, call))
    assert (time.slept, len(got)) == (slept, 4)


def test_a_busy_service_that_has_time_later_is_not_seen(call: Caller) -> None:
    handler, got = replies(busy("0"), busy("0"), ok({"items": [ANSWER]}))
    assert call("lookup", ("n", [LOOK]), handler) == [ANSWER]
    assert len(got) == 3


# -- the breaker -------------------------------------------------------------------------------------------------------


def outcomes(client: CacheClient, calls: int) -> list[str]:
    """What became of these calls, in one word each."""
    words: list[str] = []
    for _ in range(calls):
        try:
            client.health()
            words.append("ok")
        except CacheUnavailable as error:
            words.append("held" if "not asked" in str(error) else type(error).__name__)
        except CacheError as error:
            words.append(type(error).__name__)
    return words


@pytest.fixture
def outage() -> tuple[CacheClient, list[httpx.Response | Exception], list[httpx.Request], Time]:
    """A client, the one reply that every request gets (replace it), the requests, and the time."""
    reply: list[httpx.Response | Exception] = [httpx.ConnectError("refused")]
    got: list[httpx.Request] = []
    time = Time()

    def handler(request: httpx.Request) -> httpx.Response:
        got.append(request)
        if isinstance(reply[0], Exception):
            raise reply[0]
        return httpx.Response(reply[0].status_code, content=reply[0].content)

    client = CacheClient("http://cache:1", transport=httpx.MockTransport(handler), clock=time.clock, sleep=time.sleep)
    return client, reply, got, time


def test_after_five_failed_calls_the_next_ones_fail_at_once_and_say_since_when_and_until_when(outage: Any) -> None:
    client, _, got, time = outage
    assert outcomes(client, 5) == ["CacheUnavailable"] * 5
    assert len(got) == 20
    time.now_s += 0.75
    with pytest.raises(CacheUnavailable, match=r"away for 0\.8 s.*due in 0\.2 s.*ConnectError: refused") as caught:
        client.health()
    assert (caught.value.retry_in_s, len(got)) == (0.25, 20)


def test_a_service_that_is_back_is_found_by_one_try_after_the_pause(outage: Any) -> None:
    client, reply, got, time = outage
    outcomes(client, 5)
    time.now_s += 1.0
    assert outcomes(client, 2) == ["CacheUnavailable", "held"]
    assert len(got) == 21  # the probe was tried once
    time.now_s += 2.0
    reply[0] = ok({"status": "ok"})
    assert outcomes(client, 3) == ["ok"] * 3


@pytest.mark.parametrize(
    ("answer", "word"),
    [
        (problem(429, "too_busy", "later"), "CacheBusy"),
        (problem(404, "not_found", "no"), "CacheRefused"),
        (problem(401, "unauthenticated", "no"), "CacheDenied"),
        (httpx.Response(200, content=b"<html>"), "CacheReplyMalformed"),
    ],
)
def test_a_service_that_says_no_is_never_held_to_be_away(outage: Any, answer: httpx.Response, word: str) -> None:
    client, reply, _, _ = outage
    reply[0] = answer
    assert outcomes(client, 12) == [word] * 12


def test_a_refusal_between_failures_shows_that_the_service_lives(outage: Any) -> None:
    client, reply, _, _ = outage
    for answer in (httpx.Response(500), problem(429, "too_busy", "later")) * 3:
        reply[0] = answer
        assert "held" not in outcomes(client, 4)


# -- entries -----------------------------------------------------------------------------------------------------------


def entry(order: int) -> dict[str, Any]:
    view = EntryView(
        id=f"e{order}",
        order=order,
        tool="get",
        arguments={},
        environment="e",
        result=ToolResult(content="x"),
        recorded_at_s=1.0,
        seen=1,
    )
    return dict(msgspec.to_builtins(view))


def test_browsing_asks_page_after_page_until_there_is_no_next(call: Caller) -> None:
    pages = [{"entries": [entry(1), entry(2)], "next_after": 2}, {"entries": [entry(5)]}]
    handler, got = replies(*map(ok, pages))
    assert [each.id for each in call("entries", ("n",), handler, tool="get")] == ["e1", "e2", "e5"]
    first, second = (dict(request.url.params) for request in got)
    assert (first, second) == (
        {"namespace": "n", "tool": "get", "limit": "500"},
        {"namespace": "n", "tool": "get", "limit": "500", "after": "2"},
    )


@pytest.mark.parametrize(
    ("filters", "query"),
    [
        ({"tool": "get", "older_than_s": 7200.0}, {"tool": "get", "older_than_s": "7200.0"}),
        ({"tag": "a&b", "environment": "e@1"}, {"tag": "a&b", "environment": "e@1"}),
        ({"older_than_s": 0.0}, {"older_than_s": "0.0"}),
        ({"everything": True}, {"all": "1"}),
    ],
)
def test_a_removal_names_what_goes(call: Caller, filters: dict[str, Any], query: dict[str, str]) -> None:
    handler, got = replies(ok({"removed": 3}))
    assert call("remove", ("n",), handler, **filters) == 3
    assert (got[0].method, dict(got[0].url.params)) == ("DELETE", {"namespace": "n", **query})


def test_a_removal_of_everything_must_be_asked_for(call: Caller) -> None:
    handler, got = replies(ok({"removed": 3}))
    with pytest.raises(CacheRefused, match="ask for everything"):
        call("remove", ("n",), handler)
    assert got == []


def streamed(*pieces: bytes, error: Exception | None = None) -> Handler:
    class Body(httpx.SyncByteStream, httpx.AsyncByteStream):
        def __iter__(self) -> Iterator[bytes]:
            yield from pieces
            if error is not None:
                raise error

        async def __aiter__(self) -> AsyncIterator[bytes]:
            for piece in self:
                yield piece

    return lambda _: httpx.Response(200, stream=Body())


def test_an_export_is_told_line_by_line_however_it_arrives(call: Caller) -> None:
    for end in (b"", b"\n"):
        handler = streamed(b'{"a"', b':1}\n{"b":2}\n{"', b'c":3}' + end)
        assert call("export", ("n",), handler) == [b'{"a":1}', b'{"b":2}', b'{"c":3}']


def test_an_export_that_breaks_off_is_no_export(call: Caller) -> None:
    handler = streamed(b"{}\n", error=httpx.ReadError("reset"))
    with pytest.raises(CacheUnavailable, match=r"/v1/export\?namespace=n: the reply broke off \(ReadError: reset\)"):
        call("export", ("n",), handler)


def test_an_export_is_retried_and_refused_like_any_call(call: Caller) -> None:
    handler, got = replies(httpx.Response(503), problem(404, "unknown_namespace", "no namespace"))
    with pytest.raises(CacheRefused, match="no namespace"):
        call("export", ("n",), handler)
    assert len(got) == 2


# -- many at once, and little to load ----------------------------------------------------------------------------------


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
