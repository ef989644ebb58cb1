"""What tests of more than one package share: a real Redis."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.redis_server import BINARY, RedisServer, running_server

NO_REDIS = "no redis-server found: install it (Debian: apt-get install redis-server) to run the Redis tests"
_skipped: set[str] = set()

StartRedis = Callable[..., RedisServer]


@pytest.fixture(scope="session")
def _shared_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with running_server(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def redis_url(request: pytest.FixtureRequest) -> str:
    """An empty Redis, without persistence."""
    _need_redis(request)
    server: RedisServer = request.getfixturevalue("_shared_redis")
    with server.client() as client:
        client.flushall()
    return server.url


@pytest.fixture
def start_redis(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[StartRedis]:
    """start_redis(is_durable=False, options=()) -> RedisServer, of this test alone."""
    _need_redis(request)
    started: list[RedisServer] = []
    with ExitStack() as stack:

        def start(*, is_durable: bool = False, options: tuple[str, ...] = ()) -> RedisServer:
            folder = tmp_path / f"redis {len(started)}"
            started.append(stack.enter_context(running_server(folder, is_durable=is_durable, options=options)))
            return started[-1]

        yield start


@pytest.fixture
def redis_folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Where a test that starts servers itself may put them."""
    _need_redis(request)
    return tmp_path


def _need_redis(request: pytest.FixtureRequest) -> None:
    if BINARY is not None:
        return
    if os.environ.get("CI") == "true":
        pytest.fail(NO_REDIS)
    _skipped.add(request.node.nodeid)
    pytest.skip(NO_REDIS)


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _skipped:
        terminalreporter.write_line(f"{len(_skipped)} Redis tests were SKIPPED: {NO_REDIS}", yellow=True)
