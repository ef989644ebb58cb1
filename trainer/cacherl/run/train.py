"""`cacherl train`: SFT -> GRPO -> rejection sampling -> SFT -> GRPO ..., each stage a command in a process of its own.

round-N/sft round-N/grpo round-N/sample    what `cacherl sft`, `grpo`, `sample` leave in their folders
round-N/sft/eval round-N/grpo/eval         what `cacherl eval` leaves

A process of its own, because a stage that ends must give back the whole GPU, and because stages want different
launchers. What is done is known by the stages' own files, so a stopped run goes on at the first stage that is not
done, inside it from its last checkpoint. This program imports no torch.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import NoReturn

from cacherl.errors import RunStopped
from cacherl.run.build import make_world, recordings
from cacherl.run.cache import make_ready
from cacherl.run.folder import MODEL, RUN_FILE, SAMPLES_FILE, finish_stage, finished_stage
from cacherl.run.settings import Run

ROUND_SEEDS = 1_000
"""Between the seeds of two rounds: a later one draws other tasks and other samples."""
PROGRAM = ("-m", "cacherl.cli")


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One command of the run."""

    command: str
    folder: Path
    settings: tuple[str, ...]
    """Flags over the run's file."""

    def words(self, run_file: Path, url: str) -> list[str]:
        """The command line behind `cacherl`."""
        asked = ["--cache-url", url] if url and self.command != "sft" else []
        return [self.command, "--run", str(run_file), "--out", str(self.folder), "--resume", *asked, *self.settings]


def run_train(run: Run, folder: Path, url: str, *, start: Callable[[Sequence[str]], int] | None = None) -> None:
    """Run every stage that is not done yet; `start` runs one command line and returns its exit status.

    Raises RunMisconfigured, CacheUnavailable, and RunStopped naming a stage that failed.
    """
    world = make_world(run)
    recorded = recordings(run, world, folder)
    make_ready(run, world, url, lambda: recorded[0])
    stages = plan(run, folder, recorded)
    for number, stage in enumerate(stages, start=1):
        if finished_stage(stage.folder) is not None:
            continue
        sys.stderr.write(f"stage {number} of {len(stages)}: {stage.command} in {stage.folder}\n")
        words = stage.words(folder / RUN_FILE, url)
        status = (start or _Launcher(run))(words)
        if status:
            raise RunStopped(f"stage {stage.folder} failed (exit status {status}); --resume goes on with it")
    finish_stage(folder, "train", {"model": f"round-{run.iterate.rounds}/grpo/{MODEL}", "stages": len(stages)})


def plan(run: Run, folder: Path, recorded: Sequence[Path]) -> list[Stage]:
    """All stages of the run, in order."""
    return [stage for number in range(1, run.iterate.rounds + 1) for stage in _round(run, folder, recorded, number)]


def _round(run: Run, folder: Path, recorded: Sequence[Path], number: int) -> Iterator[Stage]:
    here, before = folder / f"round-{number}", folder / f"round-{number - 1}"
    common = ("--seed", str(run.seed + ROUND_SEEDS * (number - 1)))
    learned: tuple[str, ...] = ("--world.trajectories", json.dumps([str(path) for path in recorded]))
    samples = [str(folder / f"round-{n}" / "sample" / SAMPLES_FILE) for n in range(1, number)]
    if number > 1 and not run.iterate.restart:
        learned += ("--model.path", str(before / "grpo" / MODEL))
    if samples:
        learned += ("--examples.samples", json.dumps(samples))
    yield Stage(command="sft", folder=here / "sft", settings=(*common, *learned))
    yield from _evaluation(run, here / "sft", common)
    trained = ("--model.path", str(here / "sft" / MODEL))
    yield Stage(command="grpo", folder=here / "grpo", settings=(*common, *trained))
    yield from _evaluation(run, here / "grpo", common)
    if number < run.iterate.rounds:
        played = ("--model.path", str(here / "grpo" / MODEL))
        yield Stage(command="sample", folder=here / "sample", settings=(*common, *played))


def _evaluation(run: Run, trained: Path, common: tuple[str, ...]) -> Iterator[Stage]:
    if run.iterate.evaluate:
        yield Stage(command="eval", folder=trained / "eval", settings=(*common, "--model.path", str(trained / MODEL)))


def launcher(run: Run, command: str) -> Sequence[str]:
    """What is put before `-m cacherl.cli` for a stage of this command."""
    asked: Sequence[str] = ()
    if command == "sft" and run.iterate.launch_sft is not None:
        asked = run.iterate.launch_sft
    elif command in ("sft", "grpo"):
        asked = run.iterate.launch
    return asked or (sys.executable,)


class _Launcher:
    """Runs a stage's command as a child, which ends with this process."""

    def __init__(self, run: Run) -> None:
        self._run = run

    def __call__(self, words: Sequence[str]) -> int:
        child = subprocess.Popen([*launcher(self._run, words[0]), *PROGRAM, *words])
        before = signal.signal(signal.SIGTERM, _terminated)
        try:
            return child.wait()
        finally:
            signal.signal(signal.SIGTERM, before)
            if child.poll() is None:
                child.terminate()
                child.wait()


def _terminated(number: int, frame: FrameType | None) -> NoReturn:
    """SIGTERM as an exception, so that the child is ended as well."""
    raise SystemExit(128 + number)
