"""The dataset for verl, which needs no verl to be written."""

import json
from pathlib import Path

import pytest

from cacherl.data.verl_rows import main, task_of, verl_rows, write_rows
from cacherl.errors import RunMisconfigured
from cacherl.worlds.support_desk import SupportDesk

WORLD = SupportDesk(seed=0)
RUN = """
name = "small"
[model]
path = "unused"
[world]
kind = "support_desk"
tasks = 5
[grpo]
prompts_per_step = 2
[evaluate]
tasks = 3
"""


def test_a_row_gives_back_the_whole_task(tmp_path: Path) -> None:
    tasks = WORLD.tasks("train", 6)
    assert write_rows(tmp_path / "train.jsonl", verl_rows(WORLD, tasks, validate=False)) == 6
    rows = [json.loads(line) for line in (tmp_path / "train.jsonl").read_text().splitlines()]
    assert [task_of(row["extra_info"]) for row in rows] == tasks
    assert [row["extra_info"]["index"] for row in rows] == list(range(6))


def test_the_model_is_shown_the_opening_and_nothing_of_the_truth() -> None:
    [task] = WORLD.tasks("train", 1)
    [row] = verl_rows(WORLD, [task], validate=True)
    assert row["prompt"] == [
        {"role": "system", "content": WORLD.system_prompt},
        {"role": "user", "content": task.prompt},
    ]
    assert (row["data_source"], row["agent_name"], row["extra_info"]["validate"]) == (WORLD.name, "cache_agent", True)


@pytest.mark.parametrize("extra_info", [{}, {"task": "{}"}, {"task": None}])
def test_a_row_of_another_dataset_is_refused_by_name_of_the_remedy(extra_info: dict[str, object]) -> None:
    with pytest.raises(RunMisconfigured, match=r"python -m cacherl\.data\.verl_rows"):
        task_of(extra_info)


def test_the_command_writes_training_and_held_out_tasks_of_a_run(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text(RUN)
    assert main(["--run", str(tmp_path / "run.toml"), "--out", str(tmp_path / "out"), "--world.tasks", "4"]) == 0
    train, validate = (
        [json.loads(line)["extra_info"] for line in (tmp_path / "out" / name).read_text().splitlines()]
        for name in ("train.jsonl", "validate.jsonl")
    )
    assert [task_of(each).id for each in train] == [task.id for task in WORLD.tasks("train", 4)]
    assert [task_of(each).id for each in validate] == [task.id for task in WORLD.tasks("held_out", 3)]
    assert ({each["validate"] for each in train}, {each["validate"] for each in validate}) == ({False}, {True})


def test_a_slip_in_the_run_file_is_one_line_and_a_status(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run.toml").write_text(RUN + "\n[world.nonsense]\n")
    assert main(["--run", str(tmp_path / "run.toml"), "--out", str(tmp_path)]) == 1
    assert "world.nonsense" in capsys.readouterr().err
