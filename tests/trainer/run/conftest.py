"""A real cache service for the commands."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from cacherl.demo.service import cache_service


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Its address."""
    with cache_service(None, tmp_path_factory.mktemp("cache")) as url:
        yield url
