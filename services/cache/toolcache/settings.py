"""The service's settings: defaults, then TOOLCACHE_* of the environment, then flags. Read before anything heavy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_PREFIX = "TOOLCACHE_"


class SettingsInvalid(ValueError):
    """A setting that does not exist or cannot be read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one request may carry."""

    body_bytes: int = 32 * 2**20
    """A body, or one line of an import. 32 MiB holds a thousand results of 32 KB."""
    items: int = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    host: str = "127.0.0.1"
    port: int = 8765
    store: Path = Path("toolcache.sqlite3")
    """The SQLite file; made where it is missing."""
    url: str = ""
    """A running service for the commands that can use one; empty: they open the store themselves."""
    limits: Limits = Limits()

    @classmethod
    def read(cls, environ: Mapping[str, str]) -> Settings:
        """Raises SettingsInvalid for a TOOLCACHE_ variable that is none of ours: a slip must not pass in silence."""
        given = {name[len(_PREFIX) :]: value for name, value in environ.items() if name.startswith(_PREFIX)}
        known = {"HOST", "PORT", "STORE", "URL", "MAX_BODY_BYTES", "MAX_ITEMS"}
        if unknown := sorted(set(given) - known):
            raise SettingsInvalid(
                f"unknown setting {_PREFIX}{unknown[0]}; after {_PREFIX} may stand {', '.join(sorted(known))}"
            )
        default = cls()
        return cls(
            host=given.get("HOST", default.host),
            port=_whole("PORT", given, default.port),
            store=Path(given.get("STORE", default.store)),
            url=given.get("URL", default.url),
            limits=Limits(
                body_bytes=_whole("MAX_BODY_BYTES", given, default.limits.body_bytes),
                items=_whole("MAX_ITEMS", given, default.limits.items),
            ),
        )


def _whole(name: str, given: Mapping[str, str], default: int) -> int:
    try:
        return int(given.get(name, default))
    except ValueError as error:
        raise SettingsInvalid(f"{_PREFIX}{name} must be a whole number, not {given[name]!r}") from error
