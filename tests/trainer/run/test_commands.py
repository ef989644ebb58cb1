"""What a command refuses, it refuses at once, with one line that says what to do."""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from cacherl.cli import main
from cacherl.data.rejection import Kept, Sample, read_samples
from cacherl.demo.service import fill
from cacherl.rollout.renderer import Example
from cacherl.run.settings import Run
from cacherl.train.scoring import ScoredRollout
from cacherl.train.sft import train_sft
from cacherl.worlds.record import record_runs, write_ndjson
from cacherl.worlds.support_desk import SupportDesk
from toolcache_client import CacheClient

TINY = """
name = "tiny"
threads = 1
[model.tiny]
layers = 1
hidden = 32
heads = 2
key_value_heads = 1
head_dim = 16
feed_forward = 64
[world]
tasks = 8
runs_per_task = 2
[cache]
on_miss = "error"
[examples]
min_reward = 0.0
[sft]
steps = 2
batch_size = 2
[grpo]
steps = 2
prompts_per_step = 2
group_size = 2
micro_batch = 2
extra_groups = 0
overlong = "score"
[grpo.budgets]
turns = 2
turn_tokens = 6
context_tokens = 500
[evaluate]
tasks = 3
[iterate]
rounds = 2
tasks = 4
samples_per_task = 2
keep_above = 0.0
min_trust = 0.0
"""


@pytest.fixture
def run_file(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.toml"
    path.write_text(TINY)
    return path


@pytest.fixture(autouse=True)
def _no_address_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TOOLCACHE_URL", raising=False)
    monkeypatch.setattr("toolcache_client.client.RETRY_PAUSES_S", (0.0,))


def free_url() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


def told(capsys: pytest.CaptureFixture[str], *words: str | Path) -> str:
    """What the command wrote on standard error; it must have failed."""
    assert main([str(word) for word in words]) == 1
    return capsys.readouterr().err


def test_without_a_cache_the_way_to_start_one_is_told(
    run_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    error = told(capsys, "grpo", "--run", run_file, "--out", tmp_path / "out")
    assert "give --cache-url or set TOOLCACHE_URL; `toolcache serve` starts one" in error
    assert not (tmp_path / "out").exists()


def test_a_cache_that_is_away_is_told_before_anything_heavy_is_loaded(
    run_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cacherl.run.grpo", None)  # where torch would be loaded
    url = free_url()
    monkeypatch.setenv("TOOLCACHE_URL", url)
    assert url in told(capsys, "grpo", "--run", run_file, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_namespace_that_is_not_there_is_told_with_the_import_that_makes_it(
    tmp_path: Path, cache: str, capsys: pytest.CaptureFixture[str]
) -> None:
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "Hi."}]
    line = {"uid": "1", "task_id": "t", "domain": "shop", "environment": "e", "reward": 1, "messages": messages}
    (tmp_path / "logs.jsonl").write_text(json.dumps(line) + "\n")
    (tmp_path / "tools.json").write_text("[]")
    (tmp_path / "run.toml").write_text(
        f'name = "r"\n[model]\npath = "m"\n[world]\nkind = "recorded"\ntrajectories = ["{tmp_path}/logs.jsonl"]\n'
        f'tools = "{tmp_path}/tools.json"\n[cache]\non_miss = "error"\n'
    )
    words = ("grpo", "--run", tmp_path / "run.toml", "--out", tmp_path / "out", "--cache-url", cache)
    error = told(capsys, *words, "--cache.namespace", "not-imported")
    assert "has no namespace not-imported; import your recordings: toolcache import" in error
    assert f"--tools {tmp_path}/tools.json --namespace not-imported --url {cache}" in error


@pytest.mark.parametrize("command", ["sample", "eval", "train"])
def test_what_is_one_process_is_not_started_by_a_launcher(
    run_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    error = told(capsys, command, "--run", run_file, "--out", tmp_path / "out")
    assert f"`cacherl {command}` is one process: start it without a launcher" in error
    assert not (tmp_path / "out").exists()


def test_a_slip_in_a_flag_is_told_by_its_name(
    run_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    error = told(capsys, "sft", "--run", run_file, "--out", tmp_path / "out", "--sft.stepz", "3")
    assert "sft.stepz" in error
    assert not (tmp_path / "out").exists()


def test_a_folder_is_no_run_of_a_command_that_starts_from_settings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "`cacherl sft` wants a run file" in told(capsys, "sft", "--run", tmp_path, "--out", tmp_path / "out")


def test_more_tasks_than_a_run_of_an_own_world_held_out_are_not_evaluated(
    run_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_file.rename(tmp_path / "run.toml")
    words = ("eval", "--run", tmp_path, "--out", tmp_path / "out", "--world.kind", "shop.world:make")
    assert "evaluate.tasks is 4, but the run held 3 tasks out" in told(capsys, *words, "--evaluate.tasks", "4")
    assert "no finished run" in told(capsys, *words, "--evaluate.tasks", "3")


def test_a_report_of_a_folder_without_a_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "holds no run" in told(capsys, "report", "--out", tmp_path)
    assert "a report has no settings" in told(capsys, "report", "--out", tmp_path, "--seed", "1")


@pytest.mark.slow
def test_from_recordings_to_a_page_command_by_command(
    run_file: Path, tmp_path: Path, cache: str, capsys: pytest.CaptureFixture[str]
) -> None:
    sft, grpo, out = tmp_path / "sft", tmp_path / "grpo", tmp_path / "grpo" / "eval"
    assert main(["sft", "--run", str(run_file), "--out", str(sft)]) == 0
    assert len((sft / "sft.jsonl").read_text().splitlines()) == 2
    assert main(["grpo", "--run", str(sft), "--out", str(grpo), "--cache-url", cache]) == 0
    steps = [json.loads(line) for line in (grpo / "grpo.jsonl").read_text().splitlines()]
    assert [step["step"] for step in steps] == [1, 2]
    assert sum(step["live_calls"] for step in steps) == 0
    assert main(["eval", "--run", str(grpo), "--out", str(out)]) == 0  # with live tools: no cache is asked
    evaluation = json.loads((out / "evaluation.json").read_text())
    assert (evaluation["tools"], evaluation["rollouts"], evaluation["void"]) == ("live", 3, 0)
    assert evaluation["model"] == str(grpo / "model")
    assert main(["report", "--out", str(grpo)]) == 0
    page = (grpo / "report.html").read_text()
    assert "GRPO" in page
    assert "process accuracy" in page
    assert "<script" not in page
    capsys.readouterr()
    assert main(["grpo", "--run", str(sft), "--out", str(grpo), "--cache-url", cache, "--resume"]) == 0
    assert "done already" in capsys.readouterr().out
    assert "--resume goes on with it" in told(capsys, "grpo", "--run", sft, "--out", grpo, "--cache-url", cache)
    with CacheClient(cache) as client:
        assert "support_desk" in client.namespaces()


@pytest.fixture
def everything_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model of random weights answers nothing worth keeping, so that all it samples is taken instead."""

    def keep(scored: Sequence[ScoredRollout], **_: Any) -> Kept:
        played = [one.rollout for one in scored]
        samples = [
            Sample(task_id=each.task_id, reward=1.0, trust=1.0, ids=each.ids, loss_mask=each.loss_mask)
            for each in played
        ]
        return Kept(samples=tuple(samples), left_out={})

    monkeypatch.setattr("cacherl.run.sample.keep_best", keep)


@pytest.mark.slow
@pytest.mark.usefixtures("everything_is_kept")
def test_kept_rollouts_are_trained_token_for_token(
    run_file: Path, tmp_path: Path, cache: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sft, sample, again = tmp_path / "sft", tmp_path / "sample", tmp_path / "again"
    assert main(["sft", "--run", str(run_file), "--out", str(sft)]) == 0
    assert main(["sample", "--run", str(sft), "--out", str(sample), "--cache-url", cache]) == 0
    learned: list[Example] = []

    def train(model: Any, examples: Sequence[Example], *rest: Any, **options: Any) -> Any:
        learned.extend(examples)
        return train_sft(model, examples, *rest, **options)

    monkeypatch.setattr("cacherl.run.sft.train_sft", train)
    samples = sample / "samples.ndjson"
    assert main(["sft", "--run", str(run_file), "--out", str(again), "--examples.samples", str(samples)]) == 0
    kept = read_samples(samples)
    assert len(kept) == 8  # four tasks, twice
    assert [(each.ids, each.loss_mask) for each in learned[-8:]] == [(each.ids, each.loss_mask) for each in kept]
    assert json.loads((again / "stage.json").read_text())["examples"]["sampled"] == 8


@pytest.mark.slow
@pytest.mark.usefixtures("everything_is_kept")
def test_two_rounds_stopped_in_the_middle_go_on_and_end_in_a_page(
    run_file: Path, tmp_path: Path, cache: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stages run here and not in processes of their own; the first rejection sampling fails once."""
    played: list[str] = []

    class Here:
        def __init__(self, run: Run) -> None:
            pass

        def __call__(self, words: Sequence[str]) -> int:
            played.append(words[0])
            return 9 if words[0] == "sample" and played.count("sample") == 1 else main(list(words))

    monkeypatch.setattr("cacherl.run.train._Launcher", Here)
    out = tmp_path / "out"
    words = ("train", "--run", run_file, "--out", out, "--cache-url", cache, "--iterate.evaluate", "false")
    assert "round-1/sample failed (exit status 9); --resume goes on with it" in told(capsys, *words)
    assert played == ["sft", "grpo", "sample"]
    assert main([*map(str, words), "--resume"]) == 0
    assert played[3:] == ["sample", "sft", "grpo"]
    again = json.loads((out / "round-2" / "sft" / "stage.json").read_text())
    kept = (out / "round-1" / "sample" / "samples.ndjson").read_text().splitlines()
    assert again["examples"]["sampled"] == len(kept) == 8
    page = (out / "report.html").read_text()
    assert page.count("<h2>SFT") == page.count("<h2>GRPO") == 2
    assert main(["eval", "--run", str(out), "--out", str(out / "eval"), "--evaluate.tasks", "2"]) == 0
    evaluation = json.loads((out / "eval" / "evaluation.json").read_text())
    assert evaluation["model"] == str(out / "round-2" / "grpo" / "model")


@pytest.mark.slow
def test_a_world_of_recordings_is_evaluated_on_the_cache_and_says_so(
    run_file: Path, tmp_path: Path, cache: str
) -> None:
    desk = SupportDesk(seed=0)
    logs, tools = tmp_path / "logs.ndjson", tmp_path / "tools.json"
    write_ndjson(logs, record_runs(desk, desk.tasks("train", 30), runs_per_task=3, seed=0))
    tools.write_text(json.dumps(desk.tools))
    with CacheClient(cache) as client:
        fill(client, desk, logs)
    world = ["--world.kind", "recorded", "--world.trajectories", str(logs), "--world.tools", str(tools)]
    flags = [*world, "--world.tasks", "0", "--world.held_out_share", "0.3"]
    assert main(["sft", "--run", str(run_file), "--out", str(tmp_path / "sft"), *flags]) == 0
    out = tmp_path / "eval"
    assert main(["eval", "--run", str(tmp_path / "sft"), "--out", str(out), "--cache-url", cache]) == 0
    evaluation = json.loads((out / "evaluation.json").read_text())
    assert evaluation["tools"] == "cache"
    assert "no live tools" in evaluation["success_means"]
    assert evaluation["rollouts"] == 3
    assert evaluation["tier_mix"]["live"] == 0
