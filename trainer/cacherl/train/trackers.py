"""Metrics of a run to TensorBoard, Weights & Biases or Trackio, as well as to its JSON lines.

Each library is imported when it is asked for. Only numbers are sent, under the names of the JSON lines with "/" between
the levels; nothing of a call's arguments or results is in them.
"""

from __future__ import annotations

import importlib
import math
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, Protocol

from cacherl.errors import RunMisconfigured

TrackerName = Literal["tensorboard", "wandb", "trackio"]


class Tracker(Protocol):
    """Who is told the metrics of each step."""

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Metrics of one step; levels are flattened, what is no finite number is left out."""
        ...

    def close(self) -> None:
        """Everything told has been handed on."""
        ...


class Trackers:
    """Tells several; none is fine."""

    def __init__(self, trackers: Sequence[Tracker]) -> None:
        self._trackers = trackers

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        for tracker in self._trackers:
            tracker.log(step, metrics)

    def close(self) -> None:
        for tracker in self._trackers:
            tracker.close()


def open_trackers(
    names: Sequence[TrackerName], *, project: str, run: str, folder: Path, settings: Mapping[str, Any]
) -> Trackers:
    """Trackers by name; `settings` is shown beside the curves. Raises RunMisconfigured for one not installed."""
    opened: list[Tracker] = []
    for name in names:
        match name:
            case "tensorboard":
                opened.append(_TensorBoard(folder / "tensorboard"))
            case "wandb" | "trackio":
                opened.append(_WandbLike(name, project=project, run=run, folder=folder, settings=settings))
    return Trackers(opened)


def flat(metrics: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, float]]:
    """(name, number) of everything that is a finite number, levels joined by "/".

    >>> list(flat({"loss": 0.5, "stops": {"answered": 3}, "note": "no number", "kl": None}))
    [('loss', 0.5), ('stops/answered', 3.0)]
    """
    for name, value in metrics.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{above}{name}/")
        elif isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            yield f"{above}{name}", float(value)


class _TensorBoard:
    """Event files in a folder, for `tensorboard --logdir`."""

    def __init__(self, folder: Path) -> None:
        self._library = _library("torch.utils.tensorboard", "tensorboard")
        self._folder = folder
        self._writer: Any = None

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        if self._writer is None:
            # What a killed run wrote of this step and later ones, after its last checkpoint, is no longer shown.
            self._writer = self._library.SummaryWriter(str(self._folder), purge_step=step)
        for name, value in flat(metrics):
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


class _WandbLike:
    """Weights & Biases, and Trackio, which has its interface and knows a run by its name.

    A resumed run goes on with its curves. Steps that it does again are kept as they were first told.
    """

    def __init__(self, library: str, *, project: str, run: str, folder: Path, settings: Mapping[str, Any]) -> None:
        self._library = _library(library, library)
        own = {"dir": str(folder), "id": _run_id(folder)} if library == "wandb" else {}
        self._library.init(project=project, name=run, config=dict(settings), resume="allow", **own)

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        self._library.log(dict(flat(metrics)), step=step)

    def close(self) -> None:
        self._library.finish()


def _run_id(folder: Path) -> str:
    """The id under which Weights & Biases knows the run of this folder, the same after a resume."""
    path = folder / "wandb-id"
    if not path.exists():
        path.write_text(uuid.uuid4().hex, encoding="utf-8")
    return path.read_text(encoding="utf-8")


def _library(module: str, package: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise RunMisconfigured(f"track.to names {package}, which is not installed: pip install {package}") from error
