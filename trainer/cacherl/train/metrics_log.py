"""Metrics of a run as JSON lines: one object a step, written as soon as it is known."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self


class MetricsLog:
    """Appends to a file, or only forgets when `path` is None. NaN and infinities become null: JSON has none."""

    def __init__(self, path: Path | None) -> None:
        self._file = None
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
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


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
