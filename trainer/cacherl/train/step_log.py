"""Joins what a step's rollouts say with what its update says, and writes it down once both are known."""

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from cacherl.train.metrics_log import MetricsLog
from cacherl.train.step_metrics import Share, step_metrics
from cacherl.train.token_sums import TokenSums

UPDATE_NAMES = ("loss", "kl", "grad_norm", "learning_rate", "skipped_updates")
"""What the update step itself tells."""
OnLine = Callable[[Mapping[str, Any]], None]


class StepLog:
    """One line a step: `played` first, then `updated`. In the main process; the others only send their share."""

    def __init__(
        self,
        log: MetricsLog | None,
        gather: Callable[[list[Share]], list[Share]],
        progress: OnLine | None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """`log` None: another process writes."""
        self._log = log
        self._gather = gather
        self._progress = progress
        self._clock = clock
        self._step_began = clock()
        self._played_at = self._step_began
        self._step = 0
        self._share: Share | None = None

    def played(self, step: int, share: Share) -> None:
        """Told when this process's rollouts are over; `step` counts from 0."""
        self._step, self._share, self._played_at = step, share, self._clock()

    def updated(self, trl: Mapping[str, float], tokens: TokenSums) -> None:
        """Told after the optimizer's step. In every process, as they exchange their shares here."""
        if self._share is None:
            raise RuntimeError("updated() before played()")
        now = self._clock()
        shares = self._gather([replace(self._share, tokens=tokens).lightened()])
        line = {
            "step": self._step + 1,
            **step_metrics(shares),
            **{name: trl.get(name) for name in UPDATE_NAMES},
            "update_seconds": now - self._played_at,
            "step_seconds": now - self._step_began,
        }
        self._step_began, self._share = now, None
        if self._log is not None:
            self._log.write(line)
            if self._progress is not None:
                self._progress(line)
