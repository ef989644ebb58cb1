"""`cacherl train` runs its stages in order, each once, and goes on at the first that is not done."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cacherl.adapters.tiny_size import TinyQwen3
from cacherl.config import read_run, write_run
from cacherl.errors import RunStopped
from cacherl.run.folder import finish_stage, finished_stage
from cacherl.run.settings import CacheSettings, IterateSettings, ModelSettings, Run, WorldSettings
from cacherl.run.train import _Launcher, launcher, plan, run_train

RUN = Run(
    name="r",
    seed=7,
    model=ModelSettings(tiny=TinyQwen3()),
    world=WorldSettings(tasks=10),
    cache=CacheSettings(is_used=False),
    iterate=IterateSettings(rounds=3),
)


def folders(run: Run, root: Path) -> list[str]:
    return [f"{s.command} {s.folder.relative_to(root)}" for s in plan(run, root, [root / "recordings.ndjson"])]


class FakeStages:
    """Finishes the stages it is asked for, but for the folder in which it is to fail."""

    def __init__(self, fails_in: str = "") -> None:
        self.fails_in = fails_in
        self.asked: list[str] = []

    def __call__(self, words: Sequence[str]) -> int:
        folder = Path(words[words.index("--out") + 1])
        self.asked.append("/".join(folder.parts[-2:]))
        if self.asked[-1] == self.fails_in:
            return 3
        folder.mkdir(parents=True)
        finish_stage(folder, words[0], {})
        return 0


def test_rejection_sampling_stands_between_two_rounds_and_every_model_is_evaluated(tmp_path: Path) -> None:
    assert folders(replace(RUN, iterate=IterateSettings(rounds=2)), tmp_path) == [
        "sft round-1/sft",
        "eval round-1/sft/eval",
        "grpo round-1/grpo",
        "eval round-1/grpo/eval",
        "sample round-1/sample",
        "sft round-2/sft",
        "eval round-2/sft/eval",
        "grpo round-2/grpo",
        "eval round-2/grpo/eval",
    ]
    assert folders(replace(RUN, iterate=IterateSettings(rounds=1, evaluate=False)), tmp_path) == [
        "sft round-1/sft",
        "grpo round-1/grpo",
    ]


def test_a_stage_is_launched_as_the_run_says_for_it() -> None:
    def launched(**settings: Any) -> list[Sequence[str]]:
        run = replace(RUN, iterate=IterateSettings(**settings))
        return [launcher(run, command) for command in ("sft", "grpo", "sample", "eval")]

    python = (sys.executable,)
    assert launched() == [python] * 4
    assert launched(launch=("x",)) == [("x",), ("x",), python, python]
    assert launched(launch=("x",), launch_sft=("y",)) == [("y",), ("x",), python, python]
    assert launched(launch=("x",), launch_sft=()) == [python, ("x",), python, python]


@pytest.mark.parametrize("restart", [False, True])
def test_each_stage_starts_from_the_right_model_and_learns_from_all_samples_so_far(
    tmp_path: Path, restart: bool
) -> None:
    run = replace(RUN, iterate=replace(RUN.iterate, evaluate=False, restart=restart))
    write_run(tmp_path / "run.toml", run)
    told = {
        stage.folder.relative_to(tmp_path).as_posix(): read_run(tmp_path / "run.toml", Run, stage.settings)
        for stage in plan(run, tmp_path, [tmp_path / "recordings.ndjson"])
    }

    def model(place: str) -> str:
        return told[place].model.path.removeprefix(f"{tmp_path}/")

    assert model("round-1/sft") == ""
    assert model("round-1/grpo") == "round-1/sft/model"
    assert model("round-1/sample") == "round-1/grpo/model"
    assert model("round-3/sft") == ("" if restart else "round-2/grpo/model")
    assert told["round-1/sft"].examples.samples == ()
    assert told["round-3/sft"].examples.samples == tuple(
        str(tmp_path / f"round-{n}" / "sample" / "samples.ndjson") for n in (1, 2)
    )
    assert [told[f"round-{n}/grpo"].seed for n in (1, 2, 3)] == [7, 1007, 2007]
    assert all(each.world.trajectories == () for name, each in told.items() if not name.endswith("sft"))


def test_a_stage_that_fails_ends_the_run_and_resuming_goes_on_with_it(tmp_path: Path) -> None:
    first = FakeStages(fails_in="round-1/sample")
    with pytest.raises(RunStopped, match=r"round-1/sample failed \(exit status 3\); --resume"):
        run_train(RUN, tmp_path, "", start=first)
    assert first.asked[-2:] == ["grpo/eval", "round-1/sample"]
    assert finished_stage(tmp_path) is None
    second = FakeStages()
    run_train(RUN, tmp_path, "", start=second)
    assert second.asked[0] == "round-1/sample"
    assert not set(first.asked[:-1]) & {each for each in second.asked if each.startswith("round-1/grpo")}
    assert finished_stage(tmp_path) == {"stage": "train", "model": "round-3/grpo/model", "stages": 14}
    third = FakeStages()
    run_train(RUN, tmp_path, "", start=third)
    assert third.asked == []


def test_a_run_can_be_given_more_rounds_later(tmp_path: Path) -> None:
    run_train(replace(RUN, iterate=IterateSettings(rounds=1)), tmp_path, "", start=FakeStages())
    more = FakeStages()
    run_train(replace(RUN, iterate=IterateSettings(rounds=2)), tmp_path, "", start=more)
    assert more.asked[:2] == ["round-1/sample", "round-2/sft"]


def test_every_stage_is_asked_to_go_on_where_it_stopped_and_sft_asks_no_cache(tmp_path: Path) -> None:
    for stage in plan(RUN, tmp_path, []):
        words = stage.words(tmp_path / "run.toml", "http://cache")
        assert "--resume" in words
        assert ("--cache-url" in words) == (stage.command != "sft")


def test_the_launcher_stands_before_the_stages_that_train_only(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[list[str]] = []

    class Child:
        def __init__(self, words: list[str]) -> None:
            started.append(words)

        def wait(self) -> int:
            return 0

        def poll(self) -> int:
            return 0

    monkeypatch.setattr(subprocess, "Popen", Child)
    launcher = _Launcher(replace(RUN, iterate=IterateSettings(launch=("accelerate", "launch"))))
    assert launcher(["grpo", "--out", "x"]) == 0
    assert launcher(["eval", "--out", "x"]) == 0
    assert started == [
        ["accelerate", "launch", "-m", "cacherl.cli", "grpo", "--out", "x"],
        [sys.executable, "-m", "cacherl.cli", "eval", "--out", "x"],
    ]


def test_a_run_that_is_terminated_takes_its_stage_with_it(tmp_path: Path) -> None:
    """The stage writes its process id and sleeps; a file lock tells when it is gone."""
    stage = "import sys, time; print('up', flush=True); time.sleep(60)"
    program = (
        "import subprocess, sys\n"
        "import cacherl.run.train as train\n"
        f"train.PROGRAM = ('-c', {stage!r})\n"
        "from cacherl.run.settings import *\n"
        "from cacherl.adapters.tiny_size import TinyQwen3\n"
        "run = Run(name='r', model=ModelSettings(tiny=TinyQwen3()), world=WorldSettings(tasks=10))\n"
        "train._Launcher(run)(['sft'])\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        process.send_signal(signal.SIGTERM)
        began = time.monotonic()
        # The stage holds the same pipe: it ends only when both are gone.
        assert process.stdout.read() == ""
        assert time.monotonic() - began < 50
        assert process.wait() == 128 + signal.SIGTERM
