"""How long each callback holds an event loop, and whose it is.

CPU time of the loop's thread, less that of garbage collections, is what the loop's own work costs. Collections are
told by themselves: they hold the loop as well, but come when the whole program has made enough, in whatever callback
that is. Wall time holds all this and what another thread (one that keeps the interpreter's lock) or another process
took from it in the middle. The lag says how late the loop came to a timer, whatever the reason.
"""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from asyncio.events import Handle
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from benchmarks.rollout.paced import quantile_ms

LIMIT_S = 0.005
TICK_S = 0.005
SHOWN = 8
"""Names told of: those with the longest callbacks."""


@dataclass(slots=True)
class Watch:
    """What was seen of one event loop."""

    own_s: list[float] = field(default_factory=list)
    """CPU time of each callback, less that of collections in it."""
    wall_s: list[float] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    lag_s: list[float] = field(default_factory=list)
    collecting_s: list[float] = field(default_factory=list)
    """Garbage collections that ran on the loop's thread, CPU time."""

    def told(self) -> dict[str, Any]:
        """Numbers for the results' file."""
        by_name: dict[str, list[float]] = defaultdict(list)
        for name, own_s in zip(self.names, self.own_s, strict=True):
            by_name[name].append(own_s)
        longest = sorted(by_name, key=lambda name: -max(by_name[name]))[:SHOWN]
        return {
            "callbacks": len(self.own_s),
            "longest_ms": quantile_ms(self.own_s, 1.0),
            "p999_ms": quantile_ms(self.own_s, 0.999),
            "above_5_ms": sum(each > LIMIT_S for each in self.own_s),
            "wall": {
                "longest_ms": quantile_ms(self.wall_s, 1.0),
                "p999_ms": quantile_ms(self.wall_s, 0.999),
                "above_5_ms": sum(each > LIMIT_S for each in self.wall_s),
            },
            "lag": {"p50_ms": quantile_ms(self.lag_s, 0.5), "p99_ms": quantile_ms(self.lag_s, 0.99)},
            "garbage_collections": {
                "count": len(self.collecting_s),
                "longest_ms": quantile_ms(self.collecting_s, 1.0),
            },
            "where": [
                {
                    "name": name,
                    "callbacks": len(by_name[name]),
                    "longest_ms": quantile_ms(by_name[name], 1.0),
                    "p999_ms": quantile_ms(by_name[name], 0.999),
                }
                for name in longest
            ],
        }


@asynccontextmanager
async def watched() -> AsyncIterator[Watch]:
    """Time every callback of the running loop while inside. Not with uvloop, whose callbacks are not Python's."""
    watch = Watch()
    thread = threading.get_ident()
    run = Handle._run

    def timed(handle: Handle) -> None:
        if threading.get_ident() != thread:
            run(handle)
            return
        name = _name(handle)
        collections = len(watch.collecting_s)
        began_s, began_cpu_s = time.perf_counter(), time.thread_time()
        run(handle)
        watch.own_s.append(time.thread_time() - began_cpu_s - sum(watch.collecting_s[collections:]))
        watch.wall_s.append(time.perf_counter() - began_s)
        watch.names.append(name)

    collecting = _Collections(watch, thread)
    ticker = asyncio.create_task(_tick(watch))
    gc.callbacks.append(collecting)
    Handle._run = timed  # type: ignore[method-assign, assignment]
    try:
        yield watch
    finally:
        Handle._run = run  # type: ignore[method-assign]
        gc.callbacks.remove(collecting)
        ticker.cancel()


class _Collections:
    def __init__(self, watch: Watch, thread: int) -> None:
        self._watch = watch
        self._thread = thread
        self._began_s = 0.0

    def __call__(self, phase: str, info: dict[str, int]) -> None:
        if threading.get_ident() != self._thread:
            return
        if phase == "start":
            self._began_s = time.thread_time()
        else:
            self._watch.collecting_s.append(time.thread_time() - self._began_s)


async def _tick(watch: Watch) -> None:
    while True:
        began_s = time.perf_counter()
        await asyncio.sleep(TICK_S)
        watch.lag_s.append(max(0.0, time.perf_counter() - began_s - TICK_S))


def _name(handle: Handle) -> str:
    """The callback's name; of a task, where it goes on: the innermost coroutine that waits in it."""
    callback = handle._callback  # type: ignore[attr-defined]
    task = getattr(callback, "__self__", None)
    if not isinstance(task, asyncio.Task):
        return str(getattr(callback, "__qualname__", type(callback).__name__))
    outer: Any = task.get_coro()
    inner = outer
    while getattr(getattr(inner, "cr_await", None), "cr_frame", None) is not None:
        inner = inner.cr_await
    name = str(outer.__qualname__).replace(".<locals>", "")
    return name if inner is outer else f"{name} after {inner.__qualname__}"
