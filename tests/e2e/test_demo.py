"""The demo's whole chain in small: an own cache service, a model of a few steps, real files at the end."""

from __future__ import annotations

import json
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from cacherl.cli import main

SMALL = """
seed = 0
[record]
tasks = 40
runs_per_task = 2
[sft]
steps = 3
batch_size = 4
[grpo]
steps = 2
prompts_per_step = 2
group_size = 2
micro_batch = 4
[grpo.budgets]
turns = 3
turn_tokens = 12
context_tokens = 400
[evaluate]
tasks = 4
untrained_tasks = 3
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished small run."""
    folder = tmp_path_factory.mktemp("demo")
    (folder / "small.toml").write_text(SMALL)
    assert main(["demo", "--run", str(folder / "small.toml"), "--out", str(folder / "out")]) == 0
    return folder / "out"


@pytest.fixture(scope="module")
def summary(folder: Path) -> Mapping[str, Any]:
    found: Mapping[str, Any] = json.loads((folder / "summary.json").read_text())
    return found


def test_every_stage_has_process_accuracy_and_success_with_intervals(summary: Mapping[str, Any]) -> None:
    for stage, tasks in (("before", 3), ("sft", 4), ("grpo", 4)):
        for numbers in (summary[stage], summary[stage]["greedy"]):
            for name in ("process_accuracy", "success"):
                low, high = numbers[name]["ci95"]
                assert 0.0 <= low <= numbers[name]["value"] <= high <= 1.0
        assert summary[stage]["success"]["n"] == tasks


def test_grpo_made_no_live_call(summary: Mapping[str, Any]) -> None:
    assert summary["live_calls_during_grpo"] == 0
    assert summary["tier_mix"]["live"]["calls"] == 0


def test_the_summary_tells_what_it_was_measured_on(summary: Mapping[str, Any]) -> None:
    assert summary["wall_s"] > 0
    assert summary["machine"]["threads"] >= 1
    assert summary["recordings"]["trajectories"] == 80
    assert summary["recordings"]["entries"] > 0


def test_the_page_stands_alone_and_shows_every_curve(folder: Path) -> None:
    page = (folder / "report.html").read_text()
    assert page.count("<svg") == 4
    assert "<script" not in page
    assert "<link" not in page


def test_metrics_models_and_the_resolved_run_are_kept(folder: Path) -> None:
    assert len((folder / "sft.jsonl").read_text().splitlines()) == 3
    assert len((folder / "grpo.jsonl").read_text().splitlines()) == 2
    assert {"run.toml", "model-sft", "model-grpo", "recordings.ndjson"} <= {each.name for each in folder.iterdir()}


def test_a_cache_that_is_down_is_told_before_anything_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("toolcache_client.client.RETRY_PAUSES_S", (0.0,))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    assert main(["demo", "--out", str(tmp_path / "out"), "--cache-url", url]) == 1
    told = capsys.readouterr().err
    assert url in told
    assert "toolcache serve" in told
    assert not (tmp_path / "out" / "recordings.ndjson").exists()


def test_an_unknown_setting_is_told_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--out", str(tmp_path / "out"), "--grpo.stepz", "3"]) == 1
    assert "grpo.stepz" in capsys.readouterr().err
