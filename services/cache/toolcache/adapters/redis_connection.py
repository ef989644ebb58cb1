"""Commands and scripts to Redis, and one error for all that can go wrong. Only this file imports redis.

Works with Redis from 7.0 on and with Valkey, alone (`redis://`, `rediss://`) or as a Cluster (`redis+cluster://`,
`rediss+cluster://`). Plain features only: no modules.

Nothing is sent twice: where an answer was lost, whether the command was executed is not known, so the caller is told.
Dropped connections are made anew by the next command. In a Cluster, redirections are followed.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from urllib.parse import quote, urlsplit

import redis.asyncio as redis
from redis import exceptions as failure
from redis.asyncio.cluster import RedisCluster
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from toolcache.core.ports import StoreUnavailable

TIMEOUT_S = 5.0
"""Longest time for one command, waiting for a connection included. Scripts are made to take milliseconds."""
CONNECTIONS = 32
"""Most connections at once; more callers wait in line. Redis has one thread: more would not be faster."""
HEALTH_CHECK_S = 15.0
"""A connection idle for longer is tried with a PING before it is used."""
OLDEST = 7
"""Major version of Redis: streams count what was ever added to them from 7.0 on."""
_CLUSTER = "+cluster"
_NODE_SHARE = 0.8
"""Of TIMEOUT_S, for one node of a Cluster: so that there is time to notice that another has taken over."""

Argument = str | bytes | int | float


@dataclass(frozen=True, kw_only=True)
class Script:
    """A Lua script. Redis runs it at one stroke: all of it or nothing is in the append-only file."""

    text: str

    @cached_property
    def sha(self) -> str:
        # Redis names scripts by their SHA-1; nothing is kept secret by it.
        return hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest()


def slot(namespace: str) -> str:
    """The beginning of all names of a namespace's keys.

    The braces put them into one hash slot, hence one shard, where a script may touch them all. Names of namespaces
    hold letters, digits, dots, dashes and underscores; any other character is written as %XX.

    >>> slot("shop-1"), slot("a}:b")
    ('toolcache:{shop-1}:', 'toolcache:{a%7D%3Ab}:')
    """
    return f"toolcache:{{{quote(namespace, safe='', errors='surrogatepass')}}}:"


class RedisConnection:
    """Connections to one Redis or Cluster. Methods raise StoreUnavailable."""

    def __init__(self, client: redis.Redis | RedisCluster, name: str, timeout_s: float) -> None:
        self._client = client
        self._timeout_s = timeout_s
        self._turn = asyncio.Semaphore(CONNECTIONS)
        self.name = name
        """The URL without what is secret in it."""
        self.about: Mapping[str, Any] = {}
        """What the server (of a Cluster, one of its nodes) said of itself at the beginning (INFO)."""

    @classmethod
    async def open(cls, url: str, *, timeout_s: float = TIMEOUT_S) -> RedisConnection:
        """Connect, and look whether the server is new enough."""
        name = _without_secrets(url)
        try:
            client = _client(url, timeout_s)
        except (ValueError, failure.RedisError, failure.RedisClusterException) as error:
            raise StoreUnavailable(
                f"redis {name}: not a URL of a Redis ({error}); write redis://HOST:PORT/0, rediss:// for TLS, or"
                " redis+cluster://HOST:PORT for a Cluster"
            ) from error
        opened = cls(client, name, timeout_s)
        try:
            await opened._ask_about()
        except BaseException:
            await opened.close()
            raise
        return opened

    async def command(self, *words: Argument) -> Any:
        """One command, one round trip."""
        try:
            # One limit around all of it: waiting for a connection, connecting, sending, reading.
            async with asyncio.timeout(self._timeout_s), self._turn:
                return await self._client.execute_command(*words)
        except failure.NoScriptError:
            raise
        except (failure.RedisError, failure.RedisClusterException, OSError) as error:  # OSError: TimeoutError too
            if isinstance(error, failure.ReadOnlyError):
                await self._forget_connections()
            raise StoreUnavailable(f"redis {self.name}: {self._told(error)}") from error

    async def run(self, script: Script, key: str, *words: Argument) -> Any:
        """One script, one round trip. `key` is any of the namespace; the script finds the others by it."""
        try:
            return await self.command("EVALSHA", script.sha, 1, key, *words)
        except failure.NoScriptError:  # a new server, or one that was restarted; nothing was executed
            return await self.command("EVAL", script.text, 1, key, *words)

    async def close(self) -> None:
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._client.aclose()
        except (failure.RedisError, OSError):
            pass  # it is gone already

    async def _ask_about(self) -> None:
        answer = await self.command("INFO")
        self.about = answer if "redis_version" in answer else next(iter(answer.values()))  # a Cluster tells by node
        version = str(self.about["redis_version"])
        if int(version.split(".")[0]) < OLDEST:
            raise StoreUnavailable(f"redis {self.name}: version {version} is too old; Redis {OLDEST}.0 is needed")

    async def _forget_connections(self) -> None:
        """After a failover the name may lead elsewhere, but open connections stay with what is a replica now."""
        if isinstance(self._client, redis.Redis):
            await self._client.connection_pool.disconnect(inuse_connections=False)

    def _told(self, error: Exception) -> str:
        """What happened, and what to do."""
        match error:
            case failure.TimeoutError() | TimeoutError():
                return f"no answer in {self._timeout_s:g} s; is it overloaded, stopped or cut off?"
            case failure.BusyLoadingError():
                return "it is still loading its data; ask again when it has done so"
            case failure.AuthenticationError() | failure.AuthorizationError() | failure.NoPermissionError():
                return f"it refuses user or password, or the user may not do this ({error})"
            case failure.ReadOnlyError():
                return "it is a replica and takes no writes; name the primary, or wait for the failover to end"
            case failure.OutOfMemoryError():
                return "its memory is full; raise its maxmemory, or lower max_bytes of the namespaces"
            case failure.ClusterDownError() | failure.SlotNotCoveredError() | failure.MasterDownError():
                return f"a part of the Cluster has no primary ({error}); wait for its failover, or repair it"
            case failure.ResponseError() if str(error).startswith("MISCONF"):
                return f"it cannot write to its disk; make room there ({error})"
            case failure.ConnectionError() | OSError():
                return f"it cannot be reached ({error}); does it run there?"
            case _:
                return f"{type(error).__name__}: {error}"


def _client(url: str, timeout_s: float) -> redis.Redis | RedisCluster:
    scheme, mark, rest = url.partition("://")
    if not mark or scheme.removesuffix(_CLUSTER) not in ("redis", "rediss"):
        raise ValueError(f"it begins with {scheme}{mark}")
    common: dict[str, Any] = {
        "socket_connect_timeout": timeout_s,
        "socket_keepalive": True,
        "health_check_interval": HEALTH_CHECK_S,
        # redis-py sends a command again by itself when the connection breaks; then a result would be counted twice.
        "retry": Retry(NoBackoff(), 0),
        "protocol": 2,
    }
    if scheme.endswith(_CLUSTER):
        plain = f"{scheme.removesuffix(_CLUSTER)}://{rest}"
        # redis-py itself has to see that a node is silent: then it asks the others for the new layout.
        own = {"socket_timeout": timeout_s * _NODE_SHARE, "max_connections": 2 * CONNECTIONS}
        return RedisCluster.from_url(plain, **common, **own)
    # Without a socket timeout: it costs a task for every command, and `command` has a limit around all of it.
    client: redis.Redis = redis.Redis.from_url(
        url, **common, socket_timeout=None, max_connections=CONNECTIONS, single_connection_client=False
    )
    return client


def _without_secrets(url: str) -> str:
    """A URL as it may be told.

    >>> _without_secrets("rediss://me:secret@cache.example:6380/1?password=secret")
    'rediss://cache.example:6380/1'
    """
    try:
        parts = urlsplit(url)
    except ValueError:
        return "(unreadable URL)"
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
