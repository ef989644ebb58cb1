"""Query parameters: how each is read, and how it is documented, in one place."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar
from urllib.parse import parse_qsl

from toolcache.http.problems import Code, Refused

_T = TypeVar("_T")
_MOST_GIVEN = 32
MOST_LISTED = 1000
_MOST_ORDER = 2**63 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter(Generic[_T]):
    """One query parameter. `read` raises ValueError, whose message says what may stand there."""

    name: str
    meaning: str
    schema: Mapping[str, Any]
    read: Callable[[str], _T]
    is_required: bool = False

    def of(self, query: Mapping[str, str]) -> _T:
        """Its value. Raises Refused, also where it is missing."""
        text = query.get(self.name)
        if text is None:
            raise Refused(Code.MISSING_PARAMETER, f"name the {self.name}: ?{self.name}=... ({self.meaning})")
        try:
            return self.read(text)
        except ValueError as error:
            raise Refused(Code.INVALID_PARAMETER, f"{self.name} must be {error}") from error

    def or_none(self, query: Mapping[str, str]) -> _T | None:
        return self.of(query) if self.name in query else None


def parsed(query_string: bytes, allowed: Collection[str]) -> dict[str, str]:
    """The query's values by name. Raises Refused for a name that is not allowed, or that is given twice."""
    try:
        given = parse_qsl(query_string.decode("latin-1"), keep_blank_values=True, max_num_fields=_MOST_GIVEN)
    except ValueError as error:
        raise Refused(Code.INVALID_PARAMETER, f"the query cannot be read: {error}") from error
    query = dict(given)
    if unknown := sorted(set(query) - set(allowed)):
        there_are = ", ".join(sorted(allowed)) or "none"
        raise Refused(Code.INVALID_PARAMETER, f"no parameter {unknown[0]!r} here; there are: {there_are}")
    if len(query) < len(given):
        raise Refused(Code.INVALID_PARAMETER, "a parameter is given twice")
    return query


def _text(text: str) -> str:
    if not text:
        raise ValueError("some text; leave it out where it should not matter")
    return text


def _whole(least: int, most: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        if not (text.isascii() and text.isdigit()) or len(text) > len(str(most)) or not least <= int(text) <= most:
            raise ValueError(f"a whole number in {least}..{most}")
        return int(text)

    return read


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not (math.isfinite(seconds) and seconds >= 0.0) or "_" in text:
        raise ValueError("a number of seconds, 0 or more")
    return seconds


def _flag(text: str) -> bool:
    if text not in ("0", "1", "false", "true"):
        raise ValueError("1, 0, true or false")
    return text in ("1", "true")


_TEXT = {"type": "string", "minLength": 1}
_FLAG = {"type": "string", "enum": ["0", "1", "false", "true"]}

NAMESPACE = Parameter(name="namespace", meaning="Which namespace", schema=_TEXT, read=_text, is_required=True)
INTO = Parameter(
    name="namespace",
    meaning="Where all lines go; without it each trajectory goes where its `domain` says",
    schema=_TEXT,
    read=_text,
)
EXPLAIN = Parameter(name="explain", meaning="Tell what decided each answer", schema=_FLAG, read=_flag)
TOOL = Parameter(name="tool", meaning="Only entries of this tool", schema=_TEXT, read=_text)
TAG = Parameter(name="tag", meaning="Only entries recorded with this tag", schema=_TEXT, read=_text)
ENVIRONMENT = Parameter(name="environment", meaning="Only entries of this environment", schema=_TEXT, read=_text)
OLDER_THAN_S = Parameter(
    name="older_than_s",
    meaning="Only entries last recorded more than so many seconds ago",
    schema={"type": "number", "minimum": 0},
    read=_seconds,
)
ALL = Parameter(name="all", meaning="Every entry; has to be said where nothing else is", schema=_FLAG, read=_flag)
AFTER = Parameter(
    name="after",
    meaning="`next_after` of the reply before",
    schema={"type": "integer", "minimum": 0, "maximum": _MOST_ORDER},
    read=_whole(0, _MOST_ORDER),
)
LIMIT = Parameter(
    name="limit",
    meaning="Entries at most; 100 where it is left out",
    schema={"type": "integer", "minimum": 1, "maximum": MOST_LISTED},
    read=_whole(1, MOST_LISTED),
)
