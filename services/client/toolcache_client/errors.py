"""What can go wrong between a caller and the cache.

CacheError
├── CacheUnavailable      no answer: refused, reset, timed out, or 5xx, after all retries; or the breaker is open
│   └── CacheBusy         the service turned the call away (429), every time it was tried
├── CacheRefused          the service understood and said no (4xx); `code` tells why
│   └── CacheDenied       the API key is missing, unknown, or may not do this here (401, 403)
├── CacheReplyMalformed   something answered that is not this version's service
└── RecordRefused         some results of a batch could not be stored; the others were
"""

from __future__ import annotations

from collections.abc import Mapping


class CacheError(Exception):
    """Base of every error the SDK raises on purpose."""


class CacheUnavailable(CacheError):
    """The service gave no answer. Says nothing about the call: an infrastructure failure, never the model's."""

    def __init__(self, message: str, *, retry_in_s: float = 0.0) -> None:
        super().__init__(message)
        self.retry_in_s = retry_in_s
        """Seconds for which asking again is known to be in vain; 0: nothing is known."""


class CacheBusy(CacheUnavailable):
    """The service lives, but has more to do than it takes on: ask less at once, or again after `retry_in_s`."""


class CacheRefused(CacheError):
    """The service refused the request; sending it again unchanged will not help."""

    def __init__(self, *, status: int, code: str, detail: str) -> None:
        super().__init__(f"{code} ({status}): {detail}")
        self.status = status
        self.code = code
        self.detail = detail


class CacheDenied(CacheRefused):
    """The API key is missing, unknown, or may not do this in this namespace."""


class CacheReplyMalformed(CacheError):
    """The answer is not one of this contract's messages: is the URL that of a toolcache service?"""


class RecordRefused(CacheError):
    """Results that the service could not store, by their index in the batch. All others of the batch are stored."""

    def __init__(self, refused: Mapping[int, str]) -> None:
        first, why = next(iter(refused.items()))
        super().__init__(f"{len(refused)} results not stored; item {first}: {why}")
        self.refused = dict(refused)
