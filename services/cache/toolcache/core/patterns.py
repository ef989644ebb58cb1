"""Regular expressions of people whom the service's other users need not trust: masks, and patterns of JSON schemas.

Python's own engine takes time that doubles with each character for some patterns, `(a+)+$` among them: one tenant could
stop all others. RE2 takes time in proportion to the text. It has no look-around and no back-references.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import re2


class PatternRefused(ValueError):
    """A pattern that cannot be matched in bounded time, or is no pattern. The message says which part."""


@lru_cache(maxsize=1024)
def compiled(pattern: str) -> Any:
    """The pattern, ready to search and substitute. Raises PatternRefused."""
    try:
        return re2.compile(pattern, _OPTIONS)
    except (re2.error, UnicodeEncodeError) as error:
        raise PatternRefused(f"{pattern!r}: {_told(error)} (look-around and back-references are not there)") from error


def _told(error: Exception) -> str:
    text = error.args[0] if error.args else error
    return text.decode("utf-8", "replace") if isinstance(text, bytes) else str(text)


def _quiet() -> Any:
    options = re2.Options()
    options.log_errors = False
    return options


_OPTIONS = _quiet()
