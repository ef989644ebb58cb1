"""What can go wrong between a caller and the cache.

CacheError
├── CacheUnavailable      no answer: refused, reset, timed out, or 5xx, after all retries
├── CacheRefused          the service understood and said no (4xx); `code` tells why
├── CacheReplyMalformed   something answered that is not this version's service
└── RecordRefused         some results of a batch could not be stored; the others were
"""

from __future__ import annotations

from collections.abc import Mapping


class CacheError(Exception):
    """Base of every error the SDK raises on purpose."""


class CacheUnavailable(CacheError):
    """The service gave no answer. Says nothing about the call: an infrastructure failure, never the model's."""


class CacheRefused(CacheError):
    """The service refused the request; sending it again unchanged will not help."""

    def __init__(self, *, status: int, code: str, detail: str) -> None:
        super().__init__(f"{code} ({status}): {detail}")
        self.status = status
        self.code = code
        self.detail = detail


class CacheReplyMalformed(CacheError):
    """The answer is not one of this contract's messages: is the URL that of a toolcache service?"""


class RecordRefused(CacheError):
    """Results that the service could not store, by their index in the batch. All others of the batch are stored."""

    def __init__(self, refused: Mapping[int, str]) -> None:
        first, why = next(iter(refused.items()))
        super().__init__(f"{len(refused)} results not stored; item {first}: {why}")
        self.refused = dict(refused)
