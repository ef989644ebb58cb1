"""The service's settings: defaults, then TOOLCACHE_* of the environment, then flags. Read before anything heavy."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, cast, get_args

from toolcache.core.access import hash_of

Access = Literal["auto", "open", "keys"]
"""Who may use the service: `open`, everyone who reaches it; `keys`, who has a key; `auto`, keys unless the address is a
loopback one."""

_PREFIX = "TOOLCACHE_"
_REDIS = re.compile(r"rediss?(\+cluster)?://")
_AFTER_SCHEME = re.compile(r"(?<=://)\S+")
SHORTEST_ADMIN_KEY = 16
"""Characters: what is typed by hand must still be out of reach of guessing over a network."""


class SettingsInvalid(ValueError):
    """A setting that does not exist or cannot be read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one request may carry, and how many may be in work."""

    body_bytes: int = 32 * 2**20
    """A body, or one line of an import. 32 MiB holds a thousand results of 32 KB."""
    items: int = 4096
    result_bytes: int = 8 * 2**20
    """The largest result that is recorded; it would be read and sent again with every hit."""
    in_flight: int = 512
    """Requests in work. Twice the connections of one client: beyond it a request would only wait in memory."""
    waiting: int = 4096
    """Requests that wait for results which others execute. They cost memory, and no time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The service's and the commands' settings. What may hold a secret is left out of its text."""

    host: str = "127.0.0.1"
    port: int = 8765
    store: str = field(default="toolcache.sqlite3", repr=False)
    """A SQLite file, made where it is missing; or redis://, rediss://, redis+cluster://, rediss+cluster://."""
    url: str = field(default="", repr=False)
    """A running service for the commands that can use one; empty: they open the store themselves."""
    api_key: str = field(default="", repr=False)
    """What the commands show the service at `url`."""
    access: Access = "auto"
    admin_key_hash: str = field(default="", repr=False)
    """SHA-256 of the key that may do everything everywhere; empty: there is none. The key itself is not kept."""
    embedder_dir: Path | None = None
    """A converted embedding model (`toolcache embedder convert`); None: the model as published, if it is installed."""
    limits: Limits = Limits()

    @classmethod
    def read(cls, environ: Mapping[str, str]) -> Settings:
        """Settings of the environment; what is empty there is not set, so that compose files can pass all of them on.

        Raises SettingsInvalid for a TOOLCACHE_ variable that is none of ours: a slip must not pass in silence.
        """
        given = {name[len(_PREFIX) :]: value for name, value in environ.items() if name.startswith(_PREFIX)}
        if unknown := sorted(set(given) - _KNOWN):
            raise SettingsInvalid(
                f"unknown setting {_PREFIX}{unknown[0]}; after {_PREFIX} may stand {', '.join(sorted(_KNOWN))}"
            )
        given = {name: value for name, value in given.items() if value}
        default = cls()
        return cls(
            host=given.get("HOST", default.host),
            port=_whole("PORT", given, default.port, least=0),
            store=given.get("STORE", default.store),
            url=given.get("URL", default.url),
            api_key=given.get("API_KEY", default.api_key),
            access=_access(given.get("ACCESS", default.access)),
            admin_key_hash=_admin_key_hash(given.get("ADMIN_KEY", "").strip()),
            embedder_dir=Path(given["EMBEDDER_DIR"]) if "EMBEDDER_DIR" in given else None,
            limits=Limits(
                body_bytes=_whole("MAX_BODY_BYTES", given, default.limits.body_bytes),
                items=_whole("MAX_ITEMS", given, default.limits.items),
                result_bytes=_whole("MAX_RESULT_BYTES", given, default.limits.result_bytes),
                in_flight=_whole("MAX_IN_FLIGHT", given, default.limits.in_flight),
                waiting=_whole("MAX_WAITING", given, default.limits.waiting),
            ),
        )

    @property
    def store_is_redis(self) -> bool:
        return _REDIS.match(self.store) is not None

    @property
    def store_name(self) -> str:
        """For people and logs: the store without the name and password that its URL may hold."""
        return without_login(self.store)

    @property
    def is_loopback(self) -> bool:
        """Whether only programs of this machine can reach the address."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    @property
    def asks_for_keys(self) -> bool:
        return self.access == "keys" or (self.access == "auto" and not self.is_loopback)


_KNOWN = frozenset(
    {
        "HOST",
        "PORT",
        "STORE",
        "URL",
        "API_KEY",
        "ACCESS",
        "ADMIN_KEY",
        "EMBEDDER_DIR",
        "MAX_BODY_BYTES",
        "MAX_ITEMS",
        "MAX_RESULT_BYTES",
        "MAX_IN_FLIGHT",
        "MAX_WAITING",
    }
)


def without_login(text: str) -> str:
    """The text with the logins and queries of its URLs left out: either may hold a password.

    >>> without_login("redis://user:word@host:6379/0: no answer")
    'redis://host:6379/0: no answer'
    """
    return _AFTER_SCHEME.sub(_place, text)


def _place(match: re.Match[str]) -> str:
    login, _, place = match[0].rpartition("@")  # the last one: a password may hold others
    # A query that holds an "@", or a login that holds a "?": nobody can tell which.
    return "..." if "?" in login else place.partition("?")[0]


def _whole(name: str, given: Mapping[str, str], default: int, *, least: int = 1) -> int:
    try:
        number = int(given.get(name, default))
    except ValueError as error:
        raise SettingsInvalid(f"{_PREFIX}{name} must be a whole number, not {given[name]!r}") from error
    if number < least:
        raise SettingsInvalid(f"{_PREFIX}{name} is {number}; it must be at least {least}")
    return number


def _access(given: str) -> Access:
    if given not in get_args(Access):
        raise SettingsInvalid(f"{_PREFIX}ACCESS is {given!r}; it must be one of {', '.join(get_args(Access))}")
    return cast(Access, given)


def _admin_key_hash(key: str) -> str:
    if not key:
        return ""
    if len(key) < SHORTEST_ADMIN_KEY:
        raise SettingsInvalid(f"{_PREFIX}ADMIN_KEY is shorter than {SHORTEST_ADMIN_KEY} characters; make it longer")
    return hash_of(key)
