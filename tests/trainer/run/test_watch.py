"""In a log a stage is one line a step; on every process but the main one it is silent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from cacherl.run.watch import Watch
from cacherl.train.trackers import Trackers


class Told:
    def __init__(self) -> None:
        self.steps: list[int] = []
        self.is_closed = False

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        self.steps.append(step)

    def close(self) -> None:
        self.is_closed = True


def test_a_line_a_step_with_the_key_numbers_that_are_known(capsys: pytest.CaptureFixture[str]) -> None:
    told = Told()
    with Watch("grpo", 2, ("reward", "trust", "turns"), Trackers([told])) as watch:
        watch.step({"step": 1, "reward": 0.123456, "trust": None, "other": 5})
        watch.step({"step": 2, "reward": 1.0, "trust": 0.5, "turns": 3})
    assert capsys.readouterr().out.splitlines() == ["grpo 1/2  reward 0.123", "grpo 2/2  reward 1  trust 0.5  turns 3"]
    assert (told.steps, told.is_closed) == ([1, 2], True)


def test_other_processes_say_nothing(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    told = Told()
    with Watch("grpo", 2, ("reward",), Trackers([told])) as watch:
        watch.say("hello")
        watch.step({"step": 1, "reward": 0.5})
    assert capsys.readouterr().out == ""
    assert told.steps == []


def test_trackers_are_closed_when_a_stage_fails() -> None:
    told = Told()
    with pytest.raises(ValueError, match="broken"), Watch("sft", 1, (), Trackers([told])):
        raise ValueError("broken")
    assert told.is_closed
