"""What to make of each try of one call: a reply to read, a pause before the next try, or the end. No I/O, no clock."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import httpx
import msgspec

from toolcache_client.errors import CacheBusy, CacheDenied, CacheRefused, CacheReplyMalformed, CacheUnavailable
from toolcache_client.messages import Problem
from toolcache_client.requests import Request

LONGEST_RETRY_AFTER_S = 10.0
"""The most that a Retry-After is obeyed: a training step waits behind it."""
_BUSY = 429
_DENIED = (401, 403)

_R = TypeVar("_R")


class Tries:
    """The tries of one call: as many as there are pauses, and one more."""

    def __init__(self, url: str, *, pauses_s: Sequence[float], chance: Callable[[], float], timeout_s: float) -> None:
        """`chance` gives numbers in 0 <= x < 1; they spread the pauses of callers that failed together."""
        self._url = url
        self._pauses_s = pauses_s
        self._chance = chance
        self._timeout_s = timeout_s
        self._failed = 0

    def pause_after_error(self, error: httpx.RequestError) -> float:
        """Seconds until the next try. Raises CacheUnavailable when there is none, or another could not help."""
        pause_s = self._next_pause()
        if pause_s is None or isinstance(error, httpx.UnsupportedProtocol):
            tries = f"{_count(self._failed, 'try', 'tries')} of up to {self._timeout_s:g} s"
            raise CacheUnavailable(
                f"cache {self._url}: no answer after {tries} ({type(error).__name__}: {error}). "
                "Is it running? Start it with `toolcache serve`, or check the URL."
            ) from error
        return pause_s

    def pause_after_status(self, status: int, headers: httpx.Headers, body: bytes) -> float:
        """The same for a reply that is worth another try. Raises CacheBusy, CacheUnavailable."""
        pause_s = self._next_pause()
        asked_s = _retry_after_s(headers)
        if pause_s is not None:
            return max(pause_s, min(asked_s, LONGEST_RETRY_AFTER_S))
        told = f"cache {self._url}: refused {_count(self._failed, 'time', 'times')} with status {status}{_why(body)}"
        if status == _BUSY:
            raise CacheBusy(told, retry_in_s=asked_s)
        raise CacheUnavailable(told, retry_in_s=asked_s)

    def _next_pause(self) -> float | None:
        self._failed += 1
        if self._failed > len(self._pauses_s):
            return None
        return self._pauses_s[self._failed - 1] * (0.5 + self._chance())


def _count(number: int, one: str, more: str) -> str:
    return f"{number} {one if number == 1 else more}"


def is_worth_retrying(status: int) -> bool:
    return status >= 500 or status == _BUSY


def result(request: Request[_R], status: int, body: bytes, url: str) -> _R:
    """The reply's message. Raises CacheRefused for a problem, CacheReplyMalformed for anything not of the contract."""
    if not 200 <= status < 300:
        raise refusal(request, status, body, url)
    try:
        return request.read(body)
    except msgspec.MsgspecError as error:
        raise CacheReplyMalformed(
            f"{url}{request.target}: not a toolcache reply ({error}); is this its URL?"
        ) from error


def refusal(request: Request[_R], status: int, body: bytes, url: str) -> CacheRefused | CacheReplyMalformed:
    """The error that a reply of this status is."""
    problem = _problem(body)
    if problem is None or status < 400:
        return CacheReplyMalformed(f"{url}{request.target}: status {status} without a problem; is this its URL?")
    kind = CacheDenied if status in _DENIED else CacheRefused
    return kind(status=status, code=problem.code, detail=problem.detail)


def _retry_after_s(headers: httpx.Headers) -> float:
    """0 where nothing, or a date, stands there: our own pauses will do."""
    text = headers.get("retry-after", "")
    return float(text) if text.isdecimal() else 0.0


def _why(body: bytes) -> str:
    """What the service said of its own failure, which knows best what to do."""
    problem = _problem(body)
    if problem is None:
        return "; something between here and the service may have answered for it: check the URL"
    return f" ({problem.code}: {problem.detail})"


def _problem(body: bytes) -> Problem | None:
    try:
        return msgspec.json.decode(body, type=Problem)
    except msgspec.MsgspecError:
        return None
