"""Make a donor's result answer this call where it only repeats the donor's argument."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


def adapted(content: str, donor: Mapping[str, Any], asked: Mapping[str, Any]) -> str | None:
    """The content with echoed arguments replaced by the asked call's; None if nothing is echoed.

    Only a JSON string that is a donor's string argument, whole and verbatim, is an echo; text inside a longer string
    may be content. The result is written without re-ordering, but white space between JSON tokens is not kept.

    >>> adapted('{"query": "lost parcel", "hits": 2}', {"query": "lost parcel"}, {"query": "parcel lost"})
    '{"query": "parcel lost", "hits": 2}'
    >>> adapted('"all about lost parcels"', {"query": "lost parcel"}, {"query": "parcel lost"}) is None
    True
    """
    replacements = {
        value: asked[name]
        for name, value in donor.items()
        if isinstance(value, str) and isinstance(asked.get(name), str) and asked[name] != value
    }
    try:
        document = json.loads(content)
    except (ValueError, RecursionError):
        return None
    replaced = _replace(document, replacements)
    return None if replaced == document else json.dumps(replaced, ensure_ascii=False)


def _replace(value: Any, replacements: Mapping[str, str]) -> Any:
    if isinstance(value, str):
        return replacements.get(value, value)
    if isinstance(value, list):
        return [_replace(each, replacements) for each in value]
    if isinstance(value, dict):
        return {name: _replace(each, replacements) for name, each in value.items()}
    return value
