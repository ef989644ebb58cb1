"""Metrics of a run as JSON lines: one object a step, written as soon as it is known."""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self


class MetricsLog:
    """Writes to a file, or only forgets when `path` is None. NaN and infinities become null: JSON has none.

    `after_step` is the step a resumed run goes on from: lines of later steps, which the killed run wrote after its
    last checkpoint, and a line it left half written are dropped first. 0 starts an empty file.
    """

    def __init__(self, path: Path | None, *, after_step: int = 0) -> None:
        self._file = None
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            kept = list(_lines_up_to(path, after_step)) if after_step and path.exists() else []
            # Aside, then in place: a kill in the middle must not cost the lines that were to stay.
            aside = path.with_name(f"{path.name}.part")
            aside.write_text("".join(kept), encoding="utf-8")
            aside.replace(path)
            self._file = path.open("a", encoding="utf-8")

    def write(self, metrics: Mapping[str, Any]) -> None:
        """One line, flushed, so that a run that dies leaves what it knew."""
        if self._file is not None:
            self._file.write(json.dumps(_finite(metrics), ensure_ascii=False) + "\n")
            self._file.flush()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _lines_up_to(path: Path, last_step: int) -> Iterator[str]:
    """Whole lines of steps up to and with `last_step`."""
    with path.open(encoding="utf-8", errors="replace", newline="\n") as lines:
        for line in lines:
            if line.endswith("\n") and json.loads(line)["step"] <= last_step:
                yield line


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
