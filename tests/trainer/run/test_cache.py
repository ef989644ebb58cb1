"""Before a model is loaded, the cache holds all that the run's own recordings say, whatever it held before."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from cacherl.adapters.tiny_size import TinyQwen3
from cacherl.demo.service import create, fill
from cacherl.run.cache import make_ready
from cacherl.run.settings import CacheSettings, ModelSettings, Run, WorldSettings
from cacherl.worlds.record import record_runs, write_ndjson
from cacherl.worlds.support_desk import SupportDesk
from toolcache_client import CacheClient

RUN = Run(name="r", model=ModelSettings(tiny=TinyQwen3()), world=WorldSettings(tasks=8))


@pytest.fixture
def client(cache: str) -> Iterator[CacheClient]:
    with CacheClient(cache) as client:
        yield client


@pytest.fixture
def recordings(tmp_path: Path) -> Path:
    desk = SupportDesk(seed=0)
    write_ndjson(tmp_path / "r.ndjson", record_runs(desk, desk.tasks("train", 8), runs_per_task=2, seed=0))
    return tmp_path / "r.ndjson"


def desk(name: str, monkeypatch: pytest.MonkeyPatch) -> SupportDesk:
    """The desk under a name, and so with a namespace, of its own."""
    monkeypatch.setattr(SupportDesk, "name", name)
    return SupportDesk(seed=0)


def recorded(client: CacheClient, namespace: str) -> list[tuple[str, str, int]]:
    """What was recorded in which state, and how often."""
    return sorted(
        (each.tool, f"{each.environment} {each.arguments} {each.result}", each.seen)
        for each in client.entries(namespace)
    )


def nothing_to_record() -> Path:
    raise AssertionError("nobody asked for recordings")


@pytest.mark.parametrize("lines", [0, 3])
def test_a_namespace_left_half_filled_is_filled(
    cache: str, client: CacheClient, recordings: Path, monkeypatch: pytest.MonkeyPatch, lines: int
) -> None:
    whole = fill(client, desk(f"whole{lines}", monkeypatch), recordings)
    world = desk(f"half{lines}", monkeypatch)
    create(client, world)
    client.import_lines(recordings.read_bytes().splitlines()[:lines], namespace=world.name)
    for _ in range(2):  # and a second run finds it as the first
        make_ready(RUN, world, cache, lambda: recordings)
        found = client.stats(world.name)
        assert found.entries == whole.entries > 0
        assert [tool.trust for tool in found.tools] == [tool.trust for tool in whole.tools]
        assert recorded(client, world.name) == recorded(client, whole.namespace)


def test_the_policy_of_a_namespace_that_is_there_stays(
    cache: str, client: CacheClient, recordings: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = desk("policy", monkeypatch)
    create(client, world)
    spec = client.namespace(world.name)
    client.put_namespace(world.name, type(spec)(tools=spec.tools, tiers=("exact",)))
    make_ready(RUN, world, cache, lambda: recordings)
    assert client.namespace(world.name).tiers == ("exact",)


def test_of_several_processes_the_main_one_fills(
    cache: str, client: CacheClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    make_ready(RUN, desk("others", monkeypatch), cache, nothing_to_record)
    assert "others" not in client.namespaces()


def test_somebody_elses_namespace_is_left_as_it_is(
    cache: str, client: CacheClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = desk("theirs", monkeypatch)
    create(client, world)
    run = replace(RUN, cache=CacheSettings(namespace="theirs"))
    make_ready(run, desk("mine", monkeypatch), cache, nothing_to_record)
    assert client.stats("theirs").entries == 0
