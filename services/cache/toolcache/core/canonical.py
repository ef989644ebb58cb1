"""One text for every JSON value that means the same: RFC 8785 (JCS), and digests over it.

RFC 8785 orders keys by UTF-16 code units and writes numbers as ECMAScript does, so 1, 1.0 and 1e0 are one number.
It has no form for integers beyond 2^53, which tools do use as identifiers; those we write out digit by digit. So that
no float shares its digits with another integer (RFC 8785 pads 2.0^60 with zeros: ...846976.0 becomes ...847000), whole
floats between 2^53 and 1e21 are written out too. Then equal texts mean equal numbers, and no two different calls can
share a key (DECISIONS 3).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from json.encoder import encode_basestring
from typing import Any

import orjson
import rfc8785

MAX_DEPTH = 64
"""Deepest nesting of arguments that is accepted; real tool schemas stay below ten."""
_PLAIN_TYPES = frozenset((str, int, bool, type(None)))
_FIRST_EXPONENT = 1e21
"""From here on ECMAScript writes floats with an exponent, which no integer has."""


class NotCanonical(ValueError):
    """A value without a canonical form: NaN, infinity, a lone surrogate, or nesting beyond MAX_DEPTH."""


def canonical_json(value: Any) -> str:
    """The canonical text of a JSON value.

    Raises NotCanonical.

    >>> canonical_json({"b": 1.0, "a": [True, None, 2**60]})
    '{"a":[true,null,1152921504606846976],"b":1}'
    """
    plain = plain_json(value)
    if plain is not None:
        return plain.decode()
    try:
        text = _written(value, MAX_DEPTH)
        text.encode()
    except ValueError as error:  # of rfc8785 for NaN, of encode for a surrogate, of str for more than 4,300 digits
        raise NotCanonical(str(error)) from error
    return text


def plain_json(value: Any) -> bytes | None:
    """The canonical text of an object where orjson, which is 20 times faster, writes the very same; else None.

    That is so for one level of strings, integers, true, false and null under ASCII names, whose order is the same by
    bytes and by UTF-16.
    """
    if type(value) is not dict:
        return None
    for name, each in value.items():
        if type(each) not in _PLAIN_TYPES or not name.isascii():
            return None
    try:
        return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)
    except orjson.JSONEncodeError:  # a lone surrogate, or an integer beyond 64 bits
        return None


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
    return hashlib.sha256(b"".join([_framed(part) for part in parts])).hexdigest()


def digester(*parts: str) -> Callable[[bytes], str]:
    """`digest(*parts, last)` as a function of the last part's UTF-8: the others are hashed once.

    >>> digester("a", "b")(b"c") == digest("a", "b", "c")
    True
    """
    begun = hashlib.sha256(b"".join([_framed(part) for part in parts]))

    def finished(last: bytes) -> str:
        hasher = begun.copy()
        hasher.update(len(last).to_bytes(8, "big") + last)
        return hasher.hexdigest()

    return finished


def _framed(part: str) -> bytes:
    # A lone surrogate can stand in an environment or a tool name; it has bytes of its own here.
    encoded = part.encode("utf-8", "surrogatepass")
    return len(encoded).to_bytes(8, "big") + encoded


def _written(value: Any, levels: int) -> str:
    """The text of a value that may nest so many levels more. One pass, since results can be long."""
    if levels < 0:
        raise NotCanonical(f"nested deeper than {MAX_DEPTH} levels")
    match value:
        case str():
            return encode_basestring(value)  # escapes as RFC 8785 does: only what JSON demands
        case dict():
            keys = sorted(value) if all(map(str.isascii, value)) else _by_utf16(value)
            return "{" + ",".join([f"{encode_basestring(k)}:{_written(value[k], levels - 1)}" for k in keys]) + "}"
        case list() | tuple():
            return "[" + ",".join([_written(each, levels - 1) for each in value]) + "]"
        case True | False | None:
            return {True: "true", False: "false", None: "null"}[value]
        case int():
            return str(value)
        case float():
            is_whole = abs(value) < _FIRST_EXPONENT and value.is_integer()
            return str(int(value)) if is_whole else rfc8785.dumps(value).decode()
        case _:
            raise NotCanonical(f"{type(value).__name__} is no JSON value")


def _by_utf16(keys: Iterable[str]) -> list[str]:
    """The key order of RFC 8785: by UTF-16 code units, whose big-endian bytes compare alike."""
    return sorted(keys, key=lambda key: key.encode("utf-16-be"))
