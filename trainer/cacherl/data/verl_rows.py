"""A world's tasks as the dataset that verl reads: one JSON object a line, one line a prompt.

A line holds the whole task, so that the workers which play it need not make thousands of tasks to find theirs. No
model ever sees it: verl shows the model `prompt` only. Nothing here imports verl or torch.

    python -m cacherl.data.verl_rows --run trainer/runs/verl.toml --out data/verl
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from cacherl.config import read_run
from cacherl.errors import CacheRLError, RunMisconfigured
from cacherl.rollout.loop import opening
from cacherl.run.settings import Run
from cacherl.worlds.world import Task, World

AGENT = "cache_agent"
"""Name under which verl finds the agent loop (trainer/runs/verl/agent_loop.yaml)."""


def verl_rows(world: World, tasks: Iterable[Task], *, validate: bool) -> Iterator[dict[str, Any]]:
    """One row a task. `validate` rows are scored by the fixed validation formula, whatever training uses.

    That has to stand in the row: verl tells an agent loop nothing about what its rollouts are for.
    """
    for index, task in enumerate(tasks):
        yield {
            "data_source": world.name,
            "prompt": [dict(message) for message in opening(world.system_prompt, task.prompt)],
            "agent_name": AGENT,
            "reward_model": {"style": "rule", "ground_truth": task.expected_answer},
            # The task is text, so that a reader of many rows does not give every task the others' argument names.
            "extra_info": {"index": index, "validate": validate, "task": msgspec.json.encode(task).decode()},
        }


def task_of(extra_info: Mapping[str, Any]) -> Task:
    """The task of a row, from its `extra_info`. Raises RunMisconfigured for a row of another dataset."""
    try:
        return msgspec.json.decode(extra_info["task"], type=Task)
    except (KeyError, TypeError, msgspec.DecodeError) as error:
        raise RunMisconfigured(
            f"a row of the dataset holds no task ({error!r}); write it with python -m cacherl.data.verl_rows"
        ) from error


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> int:
    """Write a dataset; returns the number of its rows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    path.write_text("".join(lines), encoding="utf-8")
    return len(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Write train.jsonl and validate.jsonl of a run's world; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="cacherl.data.verl_rows", description="Write a run's tasks as verl's dataset."
    )
    parser.add_argument("--run", type=Path, required=True, help="run file; its settings can be given as flags")
    parser.add_argument("--out", type=Path, required=True, help="folder for train.jsonl and validate.jsonl")
    arguments, settings = parser.parse_known_args(argv)
    from cacherl.run.build import held_out_tasks, make_world, training_tasks

    try:
        run = read_run(arguments.run, Run, settings)
        world = make_world(run)
        train = write_rows(arguments.out / "train.jsonl", verl_rows(world, training_tasks(run, world), validate=False))
        held_out = held_out_tasks(run, world)
        validate = write_rows(arguments.out / "validate.jsonl", verl_rows(world, held_out, validate=True))
    except CacheRLError as error:
        sys.stderr.write(f"cacherl: {error}\n")
        return 1
    sys.stderr.write(f"{arguments.out}: {train} rows to train on, {validate} to validate on\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
