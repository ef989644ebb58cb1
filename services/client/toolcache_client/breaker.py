"""A circuit breaker: when call after call fails, the next ones fail at once instead of waiting out their retries.

Pure but for its own state: it is told the time and what became of each call, and does no I/O. Closed, it admits every
call. Some failures in a row open it: calls are refused for a pause. When the pause is over one call is admitted as a
probe (half-open), and one more with every pause that passes while it has no outcome, so that a probe that hangs or is
cancelled blocks nobody for good. A failed probe doubles the pause; the first success, of whatever call, closes it.
"""

from __future__ import annotations

from dataclasses import dataclass
from threading import Lock

FAILURES_TO_OPEN = 5
"""Failed calls in a row, each with its retries: more than one hiccup, less than a group of rollouts."""
FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 30.0
"""How long a service that is back may go unnoticed at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Admitted:
    """The call may be sent."""

    is_probe: bool = False
    """It finds out whether the service is back: one try will do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """The call is not to be sent."""

    for_s: float
    """Seconds since the breaker opened."""
    retry_in_s: float
    """Seconds until the next probe."""
    why: str
    """The failure that opened it, or the last probe's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Open:
    since_s: float
    until_s: float
    pause_s: float
    why: str


_ADMITTED = Admitted()
_PROBE = Admitted(is_probe=True)


class Breaker:
    """Shared by all calls of a client; safe between threads. Times are seconds of one monotonic clock."""

    def __init__(
        self,
        *,
        failures_to_open: int = FAILURES_TO_OPEN,
        first_pause_s: float = FIRST_PAUSE_S,
        longest_pause_s: float = LONGEST_PAUSE_S,
    ) -> None:
        self._failures_to_open = failures_to_open
        self._first_pause_s = first_pause_s
        self._longest_pause_s = longest_pause_s
        self._failures = 0
        self._open: _Open | None = None
        self._lock = Lock()

    def admit(self, now_s: float) -> Admitted | Held:
        """Whether a call may be sent now."""
        if self._open is None:  # the usual case needs no lock: a call that slips through is one more that fails
            return _ADMITTED
        with self._lock:
            if (open_ := self._open) is None:
                return _ADMITTED
            if now_s < open_.until_s:
                return Held(for_s=now_s - open_.since_s, retry_in_s=open_.until_s - now_s, why=open_.why)
            self._open = _pausing(open_, now_s, open_.pause_s, open_.why)
            return _PROBE

    def succeeded(self) -> None:
        """The service answered, if only to refuse."""
        if self._failures or self._open is not None:
            with self._lock:
                self._failures, self._open = 0, None

    def failed(self, admitted: Admitted, now_s: float, why: str) -> None:
        """The call got no answer. What was under way when the breaker opened tells nothing new."""
        with self._lock:
            if self._open is None:
                self._failures += 1
                if self._failures >= self._failures_to_open:
                    pause_s = self._first_pause_s
                    self._open = _Open(since_s=now_s, until_s=now_s + pause_s, pause_s=pause_s, why=why)
            elif admitted.is_probe:
                pause_s = min(2 * self._open.pause_s, self._longest_pause_s)
                self._open = _pausing(self._open, now_s, pause_s, why)


def _pausing(open_: _Open, now_s: float, pause_s: float, why: str) -> _Open:
    return _Open(since_s=open_.since_s, until_s=now_s + pause_s, pause_s=pause_s, why=why)
