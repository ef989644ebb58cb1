"""What is seen while a stage runs: bars on a terminal, a line a step in a log, and trackers where asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column

from cacherl.rollout.rollout import Rollout
from cacherl.run.folder import is_main
from cacherl.run.settings import Run
from cacherl.train.trackers import Trackers, open_trackers

TRACKED_SECTIONS = ("sft", "grpo", "lora", "reward", "judge")
"""Settings shown beside a tracker's curves: how it is trained, not where anything is."""


class Watch(AbstractContextManager["Watch"]):
    """Follows one stage: `step` is told each step's metrics, `rollout` each finished rollout.

    `shown` names the metrics that stand beside the bar or in the line. Only the main process shows anything. A stage
    without steps has a `total` of 0.
    """

    def __init__(self, title: str, total: int, shown: Sequence[str], trackers: Trackers | None = None) -> None:
        self._console = Console(quiet=not is_main())
        self._title = title
        self._total = total
        self._shown = shown
        self._trackers = trackers or Trackers(())
        self._progress = Progress(
            TextColumn("{task.description:<10}"),
            BarColumn(bar_width=16),
            TextColumn("{task.completed:>5.0f}/{task.total:.0f}"),
            TimeRemainingColumn(),
            # What room is left: a narrow terminal cuts the numbers, not the bar.
            TextColumn("{task.fields[numbers]}", table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis")),
            console=self._console,
            expand=True,
            disable=not self._console.is_terminal,
        )
        self._steps = self._progress.add_task(title, total=total, numbers="", visible=total > 0)
        self._rollouts = self._progress.add_task("  rollouts", total=1, numbers="", visible=False)

    def step(self, metrics: Mapping[str, Any]) -> None:
        """Metrics of one step, `step` among them."""
        if not is_main():
            return
        numbers = "  ".join(f"{name} {_number(metrics[name])}" for name in self._shown if metrics.get(name) is not None)
        self._progress.update(self._steps, completed=metrics["step"], numbers=numbers)
        self._trackers.log(metrics["step"], metrics)
        if not self._console.is_terminal:
            self._console.print(f"{self._title} {metrics['step']}/{self._total}  {numbers}", soft_wrap=True)

    def rollout(self, _: Rollout, done: int, planned: int) -> None:
        """One rollout of the step under way is over."""
        self._progress.update(self._rollouts, completed=done, total=planned, visible=True)

    def say(self, text: str) -> None:
        """A line of its own."""
        self._console.print(text, soft_wrap=True, highlight=False)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()
        self._trackers.close()


def trackers_of(run: Run, folder: Path, stage: str) -> Trackers:
    """The trackers the run asks for, in the main process. Raises RunMisconfigured for one not installed."""
    settings = {name: msgspec.to_builtins(getattr(run, name)) for name in TRACKED_SECTIONS}
    names = run.track.to if is_main() else ()
    return open_trackers(names, project=run.track.project, run=f"{run.name}-{stage}", folder=folder, settings=settings)


def _number(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
