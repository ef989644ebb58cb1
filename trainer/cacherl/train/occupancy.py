"""How much of the time an engine has anything to do: an engine that passes requests on and watches the clock."""

import time
from collections.abc import Callable, Sequence

from cacherl.rollout.engine import Engine, Generation, Sampling


class WatchedEngine:
    """Another engine, and when at least one request was in it. For one event loop."""

    def __init__(self, engine: Engine, *, clock: Callable[[], float] = time.perf_counter) -> None:
        self.busy_seconds = 0.0
        """Time with at least one request under way. Read it when none is."""
        self._engine = engine
        self._clock = clock
        self._under_way = 0
        self._busy_since = 0.0

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling) -> Generation:
        """What the engine generates. Raises EngineFailed."""
        if self._under_way == 0:
            self._busy_since = self._clock()
        self._under_way += 1
        try:
            return await self._engine.generate(prompt_ids, sampling)
        finally:
            self._under_way -= 1
            if self._under_way == 0:
                self.busy_seconds += self._clock() - self._busy_since
