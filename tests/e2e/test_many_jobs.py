"""Trainers in processes of their own, at once, on one cache over Redis: `cacherl` as several teams run it."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.job import PLACES, TOOL
from tests.e2e.test_replicas import Replica
from toolcache_client import CacheClient
from toolcache_client.messages import NamespaceSpec, ToolSpec

ROOT = Path(__file__).parents[2]
PATIENCE_S = 240.0

Start = Callable[..., subprocess.Popen[bytes]]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture
def cache(redis_url: str) -> Iterator[Replica]:
    replica = Replica(redis_url)
    tool = ToolSpec(name="look", effect="read", parameters=TOOL["function"]["parameters"])  # type: ignore[index]
    with CacheClient(replica.url) as client:
        for namespace in ("house", "other-house"):
            client.put_namespace(namespace, NamespaceSpec(tools=(tool,)))
    yield replica
    replica.kill()


@pytest.fixture
def start(cache: Replica, tmp_path: Path) -> Iterator[Start]:
    """start(job, namespace=..., hangs=...) -> the process of a job, once it is ready to go."""
    started: list[subprocess.Popen[bytes]] = []

    def start(job: str, **more: Any) -> subprocess.Popen[bytes]:
        given = {"url": cache.url, "namespace": "house", "job": job, "folder": str(tmp_path), **more}
        started.append(subprocess.Popen([sys.executable, "-m", "tests.e2e.job", json.dumps(given)], cwd=ROOT))
        _wait_for(tmp_path / f"{job}.ready", started[-1])
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


def _wait_for(path: Path, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not path.exists():
        assert process.poll() is None, f"the job ended before {path.name}"
        assert time.monotonic() < deadline, f"no {path.name} after {PATIENCE_S:.0f} s"
        time.sleep(0.02)


def _executed(folder: Path) -> Counter[tuple[str, ...]]:
    """(namespace, place) of each live execution, by whomever."""
    return Counter(tuple(line.split()[1:]) for line in (folder / "executed.log").read_text().splitlines())


def _told(folder: Path, job: str) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((folder / f"{job}.json").read_text())
    return read


def _answers_by_job(url: str) -> dict[tuple[str, str], float]:
    """toolcache_answers_total by namespace and job."""
    found: Counter[tuple[str, str]] = Counter()
    for line in httpx.get(f"{url}/metrics").text.splitlines():
        if line.startswith("toolcache_answers_total{"):
            labels = dict(pair.split("=") for pair in line[line.index("{") + 1 : line.index("}")].split(","))
            found[labels["namespace"].strip('"'), labels["job"].strip('"')] += float(line.rpartition(" ")[2])
    return dict(found)


def test_jobs_of_one_namespace_share_every_execution_and_those_of_another_see_none_of_it(
    cache: Replica, start: Start, tmp_path: Path
) -> None:
    jobs = {"red": "house", "blue": "house", "green": "other-house"}
    processes = [start(job, namespace=namespace) for job, namespace in jobs.items()]
    (tmp_path / "go").touch()
    assert [process.wait(PATIENCE_S) for process in processes] == [0, 0, 0]

    # 32 rollouts of two jobs asked the same four calls at once: each was executed once, by one of the jobs.
    assert _executed(tmp_path) == {(namespace, place): 1 for namespace in ("house", "other-house") for place in PLACES}
    for job, namespace in jobs.items():
        told = _told(tmp_path, job)
        assert told["read"] == [f"{place} of {namespace}" for place in PLACES]
        assert set(told["stops"]) == {"answered"}
    tiers = {job: Counter(_told(tmp_path, job)["tiers"]) for job in jobs}
    assert tiers["red"] + tiers["blue"] == {"live": 4, "exact": 28}
    assert tiers["green"] == {"live": 4, "exact": 12}
    asked = _answers_by_job(cache.url)
    assert set(asked) == {("house", "red"), ("house", "blue"), ("other-house", "green")}
    assert all(count >= 16 for count in asked.values())


def test_what_a_killed_job_was_executing_is_executed_by_the_next(start: Start, tmp_path: Path) -> None:
    (tmp_path / "go").touch()
    doomed = start("doomed", hangs=True)
    _wait_for(tmp_path / "executed.log", doomed)
    doomed.kill()
    heir = start("heir")
    assert heir.wait(PATIENCE_S) == 0
    told = _told(tmp_path, "heir")
    assert Counter(told["tiers"]) == {"live": 4, "exact": 12}
    assert told["read"] == [f"{place} of house" for place in PLACES]
