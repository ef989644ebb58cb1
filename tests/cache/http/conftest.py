"""The service twice: called in this process, and served by a real uvicorn on a free port of the loopback."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest

from tests.cache.http.service import SPEC, Served, client_of, made, serving
from toolcache.adapters.sqlite_store import SqliteStore


@pytest.fixture
def served() -> Served:
    return made()


@pytest.fixture
async def service(served: Served) -> AsyncIterator[httpx.AsyncClient]:
    """A client of `served`, with the namespace `shop`."""
    async with client_of(served) as client:
        assert (await client.put("/v1/namespaces/shop", json=SPEC)).status_code == 204
        yield client


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    """The URL of a real server over SQLite with the namespace `shop`."""
    with serving(made(SqliteStore.open(tmp_path / "served.sqlite3")).app) as address:
        httpx.put(f"{address}/v1/namespaces/shop", json=SPEC).raise_for_status()
        yield address
