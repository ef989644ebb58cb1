"""Make a donor's result answer this call where it only repeats the donor's argument."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from toolcache.core.tools import Role


def adapted(content: str, donor: Mapping[str, Any], asked: Mapping[str, Any], roles: Mapping[str, Role]) -> str | None:
    """The content with echoed arguments replaced by the asked call's; None if nothing is echoed.

    Only a free-text argument of the donor that stands in the JSON whole, verbatim and under its own name is an echo:
    anywhere else ({"title": "lost parcel"}, {"status": "pending"}) or inside a longer string it may be content.
    Irrelevant arguments were seen not to be echoed. The result is written without re-ordering, but white space between
    JSON tokens is not kept.

    >>> roles = {"query": Role.FREE_TEXT}
    >>> adapted('{"query": "lost parcel", "hits": 2}', {"query": "lost parcel"}, {"query": "parcel lost"}, roles)
    '{"query": "parcel lost", "hits": 2}'
    >>> adapted('"all about lost parcels"', {"query": "lost parcel"}, {"query": "parcel lost"}, roles) is None
    True
    """
    echoes = {
        name: _Echo(was=value, becomes=asked[name])
        for name, value in donor.items()
        if roles.get(name) is Role.FREE_TEXT and isinstance(value, str) and isinstance(asked.get(name), str)
    }
    try:
        document = json.loads(content)
    except (ValueError, RecursionError):
        return None
    replaced = _replace(document, echoes, under="")
    return None if replaced == document else json.dumps(replaced, ensure_ascii=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Echo:
    was: str
    becomes: str


def _replace(value: Any, echoes: Mapping[str, _Echo], *, under: str) -> Any:
    """The value, which stands under that name, with its echoes replaced."""
    if isinstance(value, str):
        echo = echoes.get(under)
        return echo.becomes if echo is not None and echo.was == value else value
    if isinstance(value, list):
        return [_replace(each, echoes, under=under) for each in value]
    if isinstance(value, dict):
        return {name: _replace(each, echoes, under=name) for name, each in value.items()}
    return value
