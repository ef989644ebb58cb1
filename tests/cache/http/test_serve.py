"""`toolcache serve` as a program: what it says, what it refuses, and how it ends."""

from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.cache.http.service import PENDING, SPEC, batch, call
from toolcache.settings import Limits

ADMIN_KEY = "correct horse battery staple"
Event = dict[str, Any]


class Program:
    """One `toolcache serve` on a free port."""

    def __init__(self, folder: Path, *flags: str, **environment: str) -> None:
        program = Path(sys.executable).with_name("toolcache")
        store = str(folder / "cache.sqlite3")
        self.process = subprocess.Popen(
            [str(program), "serve", "--port", "0", "--store", store, *flags],
            stderr=subprocess.PIPE,
            text=True,
            env={"PATH": os.environ["PATH"], "HOME": str(folder), **environment},
            # Tests that run in the background of a shell are deaf to SIGINT, and what they start would be so, too.
            preexec_fn=functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
        )

    def event(self) -> Event:
        """The next thing it says; {} if that is nothing."""
        assert self.process.stderr is not None
        line = self.process.stderr.readline()
        event: Event = json.loads(line) if line else {}
        return event

    def ends(self) -> tuple[int, str]:
        """Its exit status, and all that it said since."""
        _, said = self.process.communicate(timeout=60)
        return self.process.returncode, said


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    return tmp_path


@pytest.fixture
def program(tmp_path: Path) -> Iterator[Program]:
    program = Program(tmp_path)
    yield program
    program.process.kill()
    program.process.communicate()


def test_told_to_stop_it_lets_requests_end_and_those_that_wait_ask_elsewhere(program: Program) -> None:
    serving = program.event()
    assert (serving["event"], serving["access"]) == ("serving", "open")
    assert serving["store"].endswith("cache.sqlite3")
    with httpx.Client(base_url=serving["url"]) as client:
        assert client.put("/v1/namespaces/shop", json=SPEC).status_code == 204
        missed = client.post("/v1/lookup", json=batch(call(), on_miss="lease")).json()["items"][0]
        answers: list[Any] = []
        body = batch(call(), on_miss="wait", wait_s=60.0)
        asking = threading.Thread(
            target=lambda: answers.append(httpx.post(f"{serving['url']}/v1/lookup", json=body, timeout=60).json())
        )
        asking.start()
        while "requests_waiting 1.0" not in client.get("/metrics").text:
            pass
        record = batch(call(result=PENDING, lease=missed["lease"]))
        with client.stream("POST", "/v1/record", content=_then_stopped(program, asking, record)) as reply:
            assert reply.status_code == 200
        asking.join(timeout=60)
    assert answers[0]["code"] == "stopping"
    status, said = program.ends()
    assert (status, [json.loads(line)["event"] for line in said.splitlines()]) == (0, ["stopped"])


def _then_stopped(program: Program, asking: threading.Thread, body: Any) -> Iterator[bytes]:
    """A body in the middle of which the program is told to stop; it goes on once `asking` was answered."""
    text = json.dumps(body).encode()
    yield text[:10]
    program.process.send_signal(signal.SIGTERM)
    asking.join(timeout=60)
    yield text[10:]


def test_interrupted_it_says_that_it_stopped(program: Program) -> None:
    assert program.event()["event"] == "serving"
    program.process.send_signal(signal.SIGINT)
    status, said = program.ends()
    assert (status, json.loads(said)["event"]) == (130, "stopped")


def test_keys_are_asked_for_on_an_address_that_others_reach(tmp_path: Path) -> None:
    program = Program(tmp_path, "--host", "0.0.0.0", TOOLCACHE_ADMIN_KEY=ADMIN_KEY)
    try:
        serving = program.event()
        assert (serving["event"], serving["access"]) == ("serving", "keys")
        url = serving["url"].replace("0.0.0.0", "127.0.0.1")
        assert httpx.get(f"{url}/v1/namespaces").status_code == 401
        headers = {"authorization": f"Bearer {ADMIN_KEY}"}
        spec = {"name": "k", "role": "read", "namespaces": ["*"]}
        assert httpx.post(f"{url}/v1/keys", json=spec, headers=headers).status_code == 200
    finally:
        program.process.terminate()
    status, said = program.ends()
    assert status == 0
    assert "horse" not in json.dumps(serving) + said

    # A key that is stored is as good: the admin key is for the first one.
    program = Program(tmp_path, "--host", "0.0.0.0")
    try:
        assert program.event()["event"] == "serving"
    finally:
        program.process.terminate()
        program.ends()


def test_without_any_key_it_does_not_start_where_keys_are_asked_for_and_says_what_to_do(tmp_path: Path) -> None:
    status, said = Program(tmp_path, TOOLCACHE_ACCESS="keys").ends()
    assert status == 1
    assert "TOOLCACHE_ADMIN_KEY" in said
    assert "TOOLCACHE_ACCESS=open" in said
    assert "Traceback" not in said


def test_open_to_everyone_it_warns(tmp_path: Path) -> None:
    program = Program(tmp_path, "--host", "0.0.0.0", TOOLCACHE_ACCESS="open")
    try:
        assert [program.event()["event"] for _ in range(2)] == ["open_to_everyone", "serving"]
    finally:
        program.process.terminate()
        program.ends()


def test_the_limits_of_the_environment_hold(tmp_path: Path) -> None:
    program = Program(tmp_path, TOOLCACHE_MAX_ITEMS="1", TOOLCACHE_MAX_BODY_BYTES="1000")
    try:
        url = program.event()["url"]
        assert httpx.post(f"{url}/v1/lookup", json=batch(call(), call())).json()["code"] == "too_many_items"
        assert httpx.post(f"{url}/v1/lookup", content=b" " * 1001).json()["code"] == "body_too_large"
        assert Limits().items > 1
    finally:
        program.process.terminate()
        program.ends()
