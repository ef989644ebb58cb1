"""A cache service of this check's own, with recordings of the support desk in it."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from cacherl.demo.service import fill
from cacherl.worlds.record import record_runs, write_ndjson
from cacherl.worlds.world import Task, World
from toolcache_client import CacheClient

START_S = 60.0


@contextmanager
def cache_service(folder: Path) -> Iterator[str]:
    """Its URL. By module and not by program, so that a folder of unpacked packages on PYTHONPATH is enough.

    Raises RuntimeError with the end of its log if it does not start.
    """
    log = folder / "cache.log"
    command = ["-m", "toolcache.main", "serve", "--port", "0", "--store", str(folder / "cache.sqlite3")]
    with log.open("w", encoding="utf-8") as output:
        process = subprocess.Popen([sys.executable, *command], stdout=output, stderr=output)
    try:
        yield _announced_url(process, log)
    finally:
        process.terminate()
        process.wait()


def _announced_url(process: subprocess.Popen[bytes], log: Path) -> str:
    deadline_s = time.monotonic() + START_S
    while time.monotonic() < deadline_s and process.poll() is None:
        for line in log.read_text(encoding="utf-8").splitlines(keepends=True):
            if line.startswith("{") and line.endswith("\n") and json.loads(line).get("event") == "serving":
                return str(json.loads(line)["url"])
        time.sleep(0.1)
    raise RuntimeError(f"the cache service did not start: {log.read_text(encoding='utf-8')[-500:]}")


def record(world: World, tasks: Sequence[Task], path: Path) -> None:
    """Recordings of scripted agents, some right and some not."""
    write_ndjson(path, record_runs(world, tasks, runs_per_task=4, seed=0))


def import_into(url: str, world: World, recordings: Path) -> None:
    """Import the recordings; what they lack is a miss and executed live."""
    with CacheClient(url, timeout_s=60) as client:
        fill(client, world, recordings)
