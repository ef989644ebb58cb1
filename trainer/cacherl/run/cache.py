"""The cache a run asks: where it is, whether it is alive, and whether it knows the run's tools.

All of it is found out before a model is loaded.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from cacherl.demo.service import create, teach
from cacherl.errors import RunMisconfigured
from cacherl.run.folder import is_main
from cacherl.run.settings import SUPPORT_DESK, Run
from cacherl.worlds.world import World
from toolcache_client import DEFAULT_URL, CacheClient, CacheRefused

URL_VARIABLE = "TOOLCACHE_URL"
IMPORT_TIMEOUT_S = 60.0
_NOT_THERE = 404


def cache_url(given: str | None) -> str:
    """The address of the cache: as given, else as the environment says. Raises RunMisconfigured without either."""
    url = given or os.environ.get(URL_VARIABLE, "")
    if not url:
        raise RunMisconfigured(
            f"no cache: give --cache-url or set {URL_VARIABLE}; `toolcache serve` starts one at {DEFAULT_URL}"
        )
    return url


def check_alive(url: str) -> None:
    """Raises CacheUnavailable, CacheDenied."""
    with CacheClient(url) as client:
        client.health()


def namespace_of(run: Run, world: World) -> str:
    """The namespace whose recordings answer the run's calls. Raises RunMisconfigured where nothing names it."""
    namespace = run.cache.namespace or world.name
    if not namespace:
        raise RunMisconfigured("the recordings name no domain: set cache.namespace to the one they were imported into")
    return namespace


def make_ready(run: Run, world: World, url: str, record: Callable[[], Path]) -> None:
    """Make sure that the cache has the run's namespace; without a URL there is nothing to do.

    The support desk's is made from what `record` records, which nobody else has. That it is there does not say that it
    is full: a run may have died in the middle, another may fill it just now, or be of other desks. So the recordings
    are sent at every start, some seconds a thousand, and what is known already changes nothing.

    Of several processes the main one does it; the others meet it again before they train. Raises RunMisconfigured
    telling how to import your own recordings, CacheUnavailable, CacheDenied.
    """
    if not url or not is_main():
        return
    namespace = namespace_of(run, world)
    is_ours = run.world.kind == SUPPORT_DESK and namespace == world.name
    with CacheClient(url, job=run.job, timeout_s=IMPORT_TIMEOUT_S) as client:
        try:
            client.namespace(namespace)
        except CacheRefused as error:
            if error.status != _NOT_THERE:
                raise
            if not is_ours:
                raise RunMisconfigured(_how_to_import(run, namespace, url)) from error
            create(client, world)
        if is_ours:
            teach(client, world, record())


def _how_to_import(run: Run, namespace: str, url: str) -> str:
    recordings = run.world.trajectories[0] if run.world.trajectories else "RECORDINGS.jsonl"
    command = f"toolcache import {recordings} --tools {run.world.tools or 'TOOLS.json'} --namespace {namespace}"
    domain = f" --domain {run.world.domain}" if run.world.domain else ""
    return f"cache {url} has no namespace {namespace}; import your recordings: {command}{domain} --url {url}"
