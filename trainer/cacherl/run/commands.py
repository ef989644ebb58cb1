"""The commands of a run: what is asked for, whether it can be done, and only then the doing.

Order matters here: the run file is read, the cache asked, and the folder taken before torch is imported, and nothing of
that before the words of the command are known to be right.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from cacherl.errors import RunMisconfigured

if TYPE_CHECKING:
    from cacherl.run.settings import Run

COMMANDS = {
    "sft": "fine-tune on recordings and kept rollouts",
    "grpo": "train a model by its own rollouts on cached tool answers",
    "sample": "play training tasks and keep the rollouts worth imitating (rejection sampling)",
    "train": "all of it, round after round: sft, grpo, sample, sft, ...",
    "eval": "measure a model on held-out tasks, with live tools where the world has them",
    "report": "write a page about a run's folder",
}
USES_MODEL_OF_RUN = ("grpo", "sample", "eval")
"""Commands for which --run may name a folder: they take its model."""
ONE_PROCESS = ("sample", "train", "eval")
"""Commands that several processes would only do several times, over one another's files."""


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser], default_run: Path) -> None:
    """The run's commands, beside others."""
    for name, told in COMMANDS.items():
        command = commands.add_parser(
            name,
            help=told,
            description=told,
            epilog="Any setting of the run file can be given as a flag: --grpo.steps 20 --seed 1",
            allow_abbrev=False,
        )
        command.set_defaults(default_run=default_run)
        if name == "report":
            command.add_argument("--out", type=Path, required=True, help="the run's folder")
            continue
        folder = ", or a finished run's folder: its settings and its model" if name in USES_MODEL_OF_RUN else ""
        command.add_argument("--run", type=Path, help=f"run file{folder} (default: {default_run.name})")
        command.add_argument("--out", type=Path, help="folder for results (default: runs/NAME-COMMAND)")
        command.add_argument("--cache-url", help="the cache service (default: TOOLCACHE_URL); sft asks none")
        command.add_argument(
            "--resume", action="store_true", help="go on where a run in --out stopped, if there is one"
        )


def run_command(given: argparse.Namespace, settings: Sequence[str]) -> None:
    """Carry out one command. Raises CacheRLError and CacheError."""
    if given.command == "report":
        from cacherl.run.report import write_report

        if settings:
            raise RunMisconfigured(f"{settings[0]}: a report has no settings")
        _say(f"report: {write_report(given.out)}")
        return
    from cacherl.run.cache import cache_url, check_alive
    from cacherl.run.folder import finished_stage, taken_folder

    if given.command in ONE_PROCESS and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        own = "; iterate.launch starts its stages on several GPUs" if given.command == "train" else ""
        raise RunMisconfigured(f"`cacherl {given.command}` is one process: start it without a launcher{own}")
    run = _read(given, settings)
    folder = given.out or default_folder(run.name, given.command)
    url = cache_url(given.cache_url) if _asks_cache(run, given.command) else ""
    if url:
        check_alive(url)
    with taken_folder(folder, run, given.command, resume=given.resume):
        if finished_stage(folder) is not None and given.command != "train":
            _say(f"{folder}: done already")
            return
        _carry_out(given.command, run, folder, url, resume=given.resume)
    _say(f"results: {folder}")


def default_folder(name: str, command: str) -> Path:
    """Where results go when nobody says.

    >>> default_folder("shop", "sft").as_posix(), default_folder("shop-sft", "sft").as_posix()
    ('runs/shop-sft', 'runs/shop-sft')
    """
    return Path("runs") / f"{name.removesuffix(f'-{command}')}-{command}"


def _carry_out(command: str, run: Run, folder: Path, url: str, *, resume: bool) -> None:
    match command:
        case "sft":
            from cacherl.run.sft import run_sft

            run_sft(run, folder, resume=resume)
        case "grpo":
            from cacherl.run.grpo import run_grpo

            run_grpo(run, folder, url, resume=resume)
        case "sample":
            from cacherl.run.sample import run_sample

            run_sample(run, folder, url)
        case "eval":
            from cacherl.run.evaluate import run_evaluate

            run_evaluate(run, folder, url)
        case "train":
            from cacherl.run.report import write_report
            from cacherl.run.train import run_train

            run_train(run, folder, url)
            write_report(folder)


def _read(given: argparse.Namespace, settings: Sequence[str]) -> Run:
    """The run that is meant: of a file, of a finished run's folder with its model, or of the folder to resume."""
    from cacherl.config import read_run
    from cacherl.run.folder import RUN_FILE, model_of
    from cacherl.run.settings import Run

    path: Path = given.run or given.default_run
    if given.run is None and given.resume and given.out is not None and (given.out / RUN_FILE).exists():
        path = given.out / RUN_FILE
    if not path.is_dir():
        return read_run(path, Run, settings)
    if given.command not in USES_MODEL_OF_RUN:
        raise RunMisconfigured(f"--run {path} is a folder; `cacherl {given.command}` wants a run file")
    run = read_run(path / RUN_FILE, Run, settings)
    if given.command == "eval":
        _refuse_trained_tasks(read_run(path / RUN_FILE, Run), run)
    if "--model.path" in settings:
        return run
    return replace(run, model=replace(run.model, path=str(model_of(path))))


def _refuse_trained_tasks(trained: Run, run: Run) -> None:
    """Of an own World's recordings SFT leaves out only those of the held-out tasks that its run counted."""
    from cacherl.run.settings import RECORDED, SUPPORT_DESK

    kept = trained.evaluate.tasks
    if run.world.kind not in (RECORDED, SUPPORT_DESK) and run.evaluate.tasks > kept:
        raise RunMisconfigured(
            f"evaluate.tasks is {run.evaluate.tasks}, but the run held {kept} tasks out: those beyond may have been "
            "trained on"
        )


def _asks_cache(run: Run, command: str) -> bool:
    """Whether tool calls are answered by the cache: evaluation asks it only where nothing is live."""
    from cacherl.run.settings import RECORDED

    if command == "eval":
        return run.world.kind == RECORDED
    return run.cache.is_used and command != "sft"


def _say(text: str) -> None:
    from cacherl.run.folder import is_main

    if is_main():
        sys.stdout.write(f"{text}\n")
