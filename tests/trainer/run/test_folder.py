"""A folder belongs to one run of one command, and to one process at a time."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from cacherl.adapters.tiny_size import TinyQwen3
from cacherl.errors import RunMisconfigured
from cacherl.run.folder import finish_stage, finished_stage, model_of, taken_folder
from cacherl.run.settings import ModelSettings, Run, WorldSettings

RUN = Run(name="r", model=ModelSettings(tiny=TinyQwen3()), world=WorldSettings(tasks=100))


def take(folder: Path, run: Run = RUN, command: str = "grpo", *, resume: bool = False) -> None:
    with taken_folder(folder, run, command, resume=resume):
        pass


def test_a_folder_that_holds_a_run_is_not_written_over(tmp_path: Path) -> None:
    take(tmp_path / "r")
    with pytest.raises(RunMisconfigured, match=r"holds a run: --resume goes on with it"):
        take(tmp_path / "r")


def test_resume_starts_a_run_where_there_is_none(tmp_path: Path) -> None:
    take(tmp_path / "r", resume=True)
    assert (tmp_path / "r" / "run.toml").exists()


def test_a_run_goes_on_with_the_same_meaning_only(tmp_path: Path) -> None:
    take(tmp_path / "r")
    with pytest.raises(RunMisconfigured, match=r"another run \(seed, grpo\.temperature differ\)"):
        take(tmp_path / "r", replace(RUN, seed=1, grpo=replace(RUN.grpo, temperature=0.5)), resume=True)
    take(
        tmp_path / "r", replace(RUN, threads=2, grpo=replace(RUN.grpo, micro_batch=8, learning_rate=1e-7)), resume=True
    )
    assert "micro_batch = 8" in (tmp_path / "r" / "run.toml").read_text()


def test_a_run_goes_on_by_the_command_that_began_it(tmp_path: Path) -> None:
    take(tmp_path / "r", command="sft")
    with pytest.raises(RunMisconfigured, match=r"holds a run of `cacherl sft`, not of `cacherl grpo`"):
        take(tmp_path / "r", command="grpo", resume=True)


def test_two_processes_are_never_at_work_in_one_folder(tmp_path: Path) -> None:
    told = pytest.raises(RunMisconfigured, match="another process is at work")
    with taken_folder(tmp_path / "r", RUN, "grpo", resume=False), told:
        take(tmp_path / "r", resume=True)
    take(tmp_path / "r", resume=True)


def test_every_start_is_kept_with_its_versions_and_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOOLCACHE_API_KEY", "a-secret")
    take(tmp_path / "r")
    take(tmp_path / "r", resume=True)
    text = (tmp_path / "r" / "environment.json").read_text()
    assert [start["command"] for start in json.loads(text)] == ["grpo", "grpo"]
    assert "torch" in json.loads(text)[0]["packages"]
    assert "a-secret" not in text
    assert str(tmp_path) not in text


def test_a_kill_while_a_run_is_written_down_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    take(tmp_path / "r")
    before = (tmp_path / "r" / "run.toml").read_text()

    def killed(handle: int) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("os.fsync", killed)
        with pytest.raises(KeyboardInterrupt):
            take(tmp_path / "r", replace(RUN, threads=2), resume=True)
    assert (tmp_path / "r" / "run.toml").read_text() == before
    take(tmp_path / "r", resume=True)


def test_a_run_that_goes_on_unchanged_is_not_written_again(tmp_path: Path) -> None:
    take(tmp_path / "r")
    before = (tmp_path / "r" / "run.toml").stat()
    take(tmp_path / "r", resume=True)
    after = (tmp_path / "r" / "run.toml").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_only_the_main_process_of_several_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    take(tmp_path / "r")
    assert not (tmp_path / "r").exists()


def test_the_model_of_a_run_is_where_its_last_stage_says(tmp_path: Path) -> None:
    with pytest.raises(RunMisconfigured, match="no finished run"):
        model_of(tmp_path)
    finish_stage(tmp_path, "train", {"model": "round-2/grpo/model"})
    assert model_of(tmp_path) == tmp_path / "round-2/grpo/model"
    assert finished_stage(tmp_path) == {"stage": "train", "model": "round-2/grpo/model"}
    finish_stage(tmp_path, "eval", {})
    with pytest.raises(RunMisconfigured, match="which makes no model"):
        model_of(tmp_path)
