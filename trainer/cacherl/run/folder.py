"""A run's folder: whose it is, what made it, which stages are done.

run.toml            the run, resolved
environment.json    one entry each time it was started: versions, machine
stage.json          written last, when a stage is done: what came of it
lock                held by the process at work

With several processes only the main one writes; see `is_main`.
"""

from __future__ import annotations

import fcntl
import json
import os
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from cacherl.config import differences, read_run, write_run
from cacherl.data.whole_file import write_whole
from cacherl.errors import RunMisconfigured
from cacherl.run.settings import Run

RUN_FILE = "run.toml"
STAGE_FILE = "stage.json"
ENVIRONMENT_FILE = "environment.json"
LOCK_FILE = "lock"
MODEL = "model"
"""Folder of the trained model, loadable by from_pretrained and vLLM."""
SAMPLES_FILE = "samples.ndjson"
"""Rollouts kept by rejection sampling."""
EVALUATION_FILE = "evaluation.json"
MAY_CHANGE = (
    "threads",
    "model.attention",
    "cache.job",
    "cache.wait_s",
    "cache.outage_patience_s",
    "engine",
    "sft.micro_batch_tokens",
    "sft.packing",
    "sft.gradient_checkpointing",
    "sft.checkpoint_every",
    "sft.keep_checkpoints",
    "grpo.learning_rate",
    "grpo.max_grad_norm",
    "grpo.micro_batch",
    "grpo.gradient_checkpointing",
    "grpo.concurrency",
    "grpo.checkpoint_every",
    "grpo.keep_checkpoints",
    "iterate.rounds",
    "iterate.launch",
    "iterate.launch_sft",
    "track",
)
"""Settings that a run may go on with changed: where and how fast it is computed, not what. The two of the optimizer are
what a run that broke on gradients without end is told to lower."""
PACKAGES = ("cacherl", "toolcache-client", "torch", "transformers", "trl", "peft", "accelerate", "tokenizers", "vllm")


def is_main() -> bool:
    """Whether this is the process that writes: the only one, or rank 0 of those a launcher started."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def taken_folder(folder: Path, run: Run, command: str, *, resume: bool) -> Iterator[None]:
    """Make the folder this run's, or, with `resume`, make sure that it is and go on in it; nobody else may meanwhile.

    Raises RunMisconfigured where it holds a run and `resume` is not set, where it holds another run or another
    command's, and where another process is at work in it.
    """
    if not is_main():
        yield
        return
    if (folder / RUN_FILE).exists():
        if not resume:
            raise RunMisconfigured(f"{folder} holds a run: --resume goes on with it, another --out starts anew")
        _check_same(folder, run, command)
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder / LOCK_FILE):
        write_run(folder / RUN_FILE, run)
        write_json(folder / ENVIRONMENT_FILE, [*_starts(folder), {"command": command, **environment()}])
        yield


def finish_stage(folder: Path, stage: str, found: Mapping[str, Any]) -> None:
    """Mark a stage as done, with what came of it."""
    if is_main():
        write_json(folder / STAGE_FILE, {"stage": stage, **found})


def finished_stage(folder: Path) -> Mapping[str, Any] | None:
    """What came of the stage, or None while it is not done."""
    path = folder / STAGE_FILE
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def model_of(folder: Path) -> Path:
    """The model that a run left in its folder. Raises RunMisconfigured where it left none, or is not done."""
    found = finished_stage(folder)
    if found is None:
        raise RunMisconfigured(f"{folder} holds no finished run; {folder / STAGE_FILE} is not there")
    if "model" not in found:
        raise RunMisconfigured(f"{folder} holds a run of `cacherl {found['stage']}`, which makes no model")
    return folder / str(found["model"])


def write_json(path: Path, document: Any) -> None:
    """Write the file as a whole, or not at all: a kill in the middle leaves the old one."""
    write_whole(path, (json.dumps(document, indent=2, ensure_ascii=False) + "\n").encode())


def environment() -> dict[str, Any]:
    """What a run is computed with: versions and machine, no names and no addresses."""
    return {
        "started_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cpus": os.cpu_count(),
        "processes": int(os.environ.get("WORLD_SIZE", "1")),
        "packages": {name: found for name in PACKAGES if (found := _version(name))},
    }


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the lock; the system lets go of it when the process ends, however it does."""
    with path.open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise RunMisconfigured(f"another process is at work in {path.parent}; wait for it or end it") from error
        yield


def _check_same(folder: Path, run: Run, command: str) -> None:
    made_by = [start["command"] for start in _starts(folder)][-1:] or [command]
    if made_by != [command]:
        raise RunMisconfigured(f"{folder} holds a run of `cacherl {made_by[0]}`, not of `cacherl {command}`")
    before = read_run(folder / RUN_FILE, Run)
    changed = [name for name in differences(before, run) if not _may_change(name)]
    if changed:
        raise RunMisconfigured(f"{folder} holds another run ({', '.join(changed)} differ): choose another --out")


def _may_change(name: str) -> bool:
    return any(name == allowed or name.startswith(f"{allowed}.") for allowed in MAY_CHANGE)


def _starts(folder: Path) -> list[dict[str, Any]]:
    path = folder / ENVIRONMENT_FILE
    found: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    return found


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
