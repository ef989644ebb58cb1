"""One text for every JSON value that means the same: RFC 8785 (JCS), and digests over it.

RFC 8785 orders keys by UTF-16 code units and writes numbers as ECMAScript does, so 1, 1.0 and 1e0 are one number.
It has no form for integers beyond 2^53, which tools do use as identifiers; those we write out digit by digit. Equal
texts still mean equal numbers, so no two different calls can share a key (DECISIONS 3).
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

import rfc8785

MAX_DEPTH = 64
"""Deepest nesting of arguments that is accepted; real tool schemas stay below ten."""
_LARGEST_EXACT_INTEGER = 2**53 - 1


class NotCanonical(ValueError):
    """A value without a canonical form: NaN, infinity, a lone surrogate, or nesting beyond MAX_DEPTH."""


def canonical_json(value: Any) -> str:
    """The canonical text of a JSON value.

    Raises NotCanonical.

    >>> canonical_json({"b": 1.0, "a": [True, None, 2**60]})
    '{"a":[true,null,1152921504606846976],"b":1}'
    """
    _check_depth(value)
    try:
        return _with_own_integers(value) if _has_large_integer(value) else rfc8785.dumps(value).decode()
    except (rfc8785.CanonicalizationError, UnicodeEncodeError) as error:
        raise NotCanonical(str(error)) from error


def canonical_text(text: str) -> str:
    """Canonical JSON if the text is a JSON document, else the text itself: the form in which results are compared.

    >>> canonical_text('{"b": 1, "a": 2}') == canonical_text('{"a":2,"b":1.0}')
    True
    >>> canonical_text("Error: no such order")
    'Error: no such order'
    """
    try:
        return canonical_json(json.loads(text))
    except (ValueError, RecursionError):  # NotCanonical is a ValueError: NaN in a result is only text to us
        return text


def digest(*parts: str) -> str:
    """SHA-256 over the parts, 64 hex digits; no two different lists of parts are hashed as the same bytes.

    SHA-256 rather than a faster hash because tenants of one service do not trust each other.
    """
    hasher = hashlib.sha256()
    for part in parts:
        # A lone surrogate can stand in an environment or a tool name; it has bytes of its own here.
        encoded = part.encode("utf-8", "surrogatepass")
        hasher.update(len(encoded).to_bytes(8, "big"))
        hasher.update(encoded)
    return hasher.hexdigest()


def _check_depth(value: Any, levels: int = MAX_DEPTH) -> None:
    """Raises NotCanonical before anything recursive meets a value that is nested too deeply."""
    if levels < 0:
        raise NotCanonical(f"nested deeper than {MAX_DEPTH} levels")
    if isinstance(value, dict | list | tuple):
        for each in value.values() if isinstance(value, dict) else value:
            _check_depth(each, levels - 1)


def _has_large_integer(value: Any) -> bool:
    if isinstance(value, dict | list | tuple):
        return any(_has_large_integer(each) for each in (value.values() if isinstance(value, dict) else value))
    return type(value) is int and abs(value) > _LARGEST_EXACT_INTEGER


def _with_own_integers(value: Any) -> str:
    if isinstance(value, dict):
        # The key order of RFC 8785: by UTF-16 code units, big-endian bytes compare alike.
        keys = sorted(value, key=lambda key: key.encode("utf-16-be"))
        return "{" + ",".join(f"{canonical_json(key)}:{_with_own_integers(value[key])}" for key in keys) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(_with_own_integers(each) for each in value) + "]"
    if type(value) is int and abs(value) > _LARGEST_EXACT_INTEGER:
        return str(value)
    return rfc8785.dumps(value).decode()
