"""A cache for the demo: the one at a given URL, or a `toolcache serve` of our own for as long as the run lasts."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cacherl.errors import RunMisconfigured
from cacherl.worlds.world import World
from toolcache_client import CacheClient
from toolcache_client.messages import NamespaceSpec, Stats, ToolSpec

START_S = 60.0
"""Seconds a service may take to come up; a cold disk was seen to need twenty."""
LINES_AT_ONCE = 250
"""Trajectories sent in one request: some seconds of work, so that the bar moves."""


@contextmanager
def cache_service(url: str | None, folder: Path) -> Iterator[str]:
    """The URL of a cache: the given one, or that of an own service. Raises RunMisconfigured if it does not start."""
    if url is not None:
        yield url
        return
    program = Path(sys.executable).with_name("toolcache")
    if not program.exists():
        raise RunMisconfigured(
            f"no toolcache program beside {sys.executable}: install services/cache or give --cache-url"
        )
    log = folder / "cache.log"
    command = [str(program), "serve", "--port", "0", "--store", str(folder / "cache.sqlite3")]
    with log.open("w", encoding="utf-8") as output:
        process = subprocess.Popen(command, stderr=output, stdout=output)
    try:
        yield _announced_url(process, log)
    finally:
        process.terminate()
        try:
            process.wait(timeout=START_S)
        except subprocess.TimeoutExpired:
            process.kill()


def check_alive(url: str) -> None:
    """Raises CacheUnavailable."""
    with CacheClient(url) as client:
        client.health()


def _announced_url(process: subprocess.Popen[bytes], log: Path) -> str:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and process.poll() is None:
        for line in log.read_text(encoding="utf-8").splitlines(keepends=True):
            if line.startswith("{") and line.endswith("\n") and json.loads(line).get("event") == "serving":
                return str(json.loads(line)["url"])
        time.sleep(0.1)
    raise RunMisconfigured(f"the cache service did not start; its log is {log}")


def fill(
    client: CacheClient, world: World, recordings: Path, progress: Callable[[int], None] = lambda lines: None
) -> Stats:
    """Create the world's namespace, import recordings and learn from them; `progress` gets the lines sent so far."""
    create(client, world)
    return teach(client, world, recordings, progress)


def create(client: CacheClient, world: World) -> None:
    """Give the world's namespace its tools and the default policy; entries it has already stay."""
    client.put_namespace(world.name, NamespaceSpec(tools=tuple(map(_tool_spec, world.tools))))


def teach(
    client: CacheClient, world: World, recordings: Path, progress: Callable[[int], None] = lambda lines: None
) -> Stats:
    """Import recordings into the world's namespace and learn from them; what it has already changes nothing."""
    lines = recordings.read_bytes().splitlines()
    for start in range(0, len(lines), LINES_AT_ONCE):
        report = client.import_lines(lines[start : start + LINES_AT_ONCE], namespace=world.name)
        if report.rejected:
            raise RunMisconfigured(
                f"{recordings}: the cache refused {dict(report.rejected)}: {report.rejects[0].detail}"
            )
        progress(min(start + LINES_AT_ONCE, len(lines)))
    return client.calibrate(world.name)


def _tool_spec(tool: Mapping[str, Any]) -> ToolSpec:
    function = tool["function"]
    return ToolSpec(
        name=function["name"],
        description=function.get("description", ""),
        parameters=function["parameters"],
        effect=tool["effect"],
    )
