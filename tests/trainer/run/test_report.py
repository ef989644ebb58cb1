"""A page shows what a folder holds, and only that."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cacherl.adapters.tiny_size import TinyQwen3
from cacherl.config import write_run
from cacherl.run import charts
from cacherl.run.charts import Curve, curves, line_chart, share_chart, stack_chart
from cacherl.run.report import read_steps, write_report
from cacherl.run.settings import EngineSettings, ModelSettings, Run, WorldSettings

RUN = Run(name="r", model=ModelSettings(tiny=TinyQwen3()), world=WorldSettings(tasks=10))
GRPO = {
    "step": 1,
    "reward": 0.5,
    "validation_reward": 0.4,
    "reward_by_worst_tier": {"exact": {"count": 2, "mean": 0.7}, "none": {"count": 1, "mean": 0.1}},
    "tier_mix": {"live": 0, "exact": 3, "similar": 1, "approximate": 0, "miss": 0},
    "trust": None,
    "rollout_seconds": 2.0,
    "update_seconds": 1.0,
    "stops": {"answered": 4},
}
NUMBER = {"value": 0.25, "ci95": [0.1, 0.5], "n": 8}


def lines(path: Path, *steps: dict[str, Any], at: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(step) + "\n" for step in steps))
    os.utime(path, (at, at))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "a & b"
    folder.mkdir()
    write_run(folder / "run.toml", RUN)
    return folder


def evaluation(path: Path, tools: str = "live") -> None:
    path.mkdir(parents=True)
    numbers = dict.fromkeys(("success", "process_accuracy", "call_precision", "validation_reward"), NUMBER)
    document = {"model": "m", "tools": tools, "success_means": f"what {tools} means", "rollouts": 8, **numbers}
    (path / "evaluation.json").write_text(json.dumps(document))


def test_every_stage_is_drawn_in_the_order_in_which_it_ran(folder: Path) -> None:
    lines(folder / "round-1/grpo/grpo.jsonl", GRPO, at=20)
    lines(folder / "round-1/sft/sft.jsonl", {"step": 1, "loss": 2.0, "tokens_per_second": 5.0}, at=10)
    lines(folder / "round-1/sample/samples.jsonl", {"step": 1, "rollouts": 8, "kept": 2}, at=30)
    page = write_report(folder).read_text()
    assert page.index("round-1/sft") < page.index("round-1/grpo") < page.index("round-1/sample")
    assert "<h1>a &amp; b</h1>" in page
    assert not any(word in page for word in ("<script", "<link", "<img", "src=", "url(http"))


def test_what_was_not_measured_is_not_drawn(folder: Path) -> None:
    lines(folder / "grpo.jsonl", GRPO)
    page = write_report(folder).read_text()
    assert "Where a step's time goes" in page
    assert "<figcaption>Mean trust" not in page  # null at every step
    assert "<figcaption>Divergence" not in page  # not there at all


def test_evaluations_stand_in_one_table_and_say_what_success_means(folder: Path) -> None:
    evaluation(folder / "round-1/sft/eval")
    evaluation(folder / "round-1/grpo/eval", "cache")
    page = write_report(folder).read_text()
    assert page.count("25.0% (10.0% to 50.0%)") == 8
    assert "<th>round-1/sft</th><td>live</td>" in page
    assert "what cache means" in page
    assert "what live means" in page


def test_a_run_that_has_only_begun_has_a_page(folder: Path) -> None:
    assert "Settings" in write_report(folder).read_text()


def test_a_login_in_an_address_is_not_shown(tmp_path: Path) -> None:
    engine = EngineSettings(kind="vllm-server", urls=("http://me:a-secret@gpu:8000",))
    write_run(tmp_path / "run.toml", replace(RUN, engine=engine))
    page = write_report(tmp_path).read_text()
    assert "http://***@gpu:8000" in page
    assert "a-secret" not in page


def test_a_line_that_is_being_written_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "grpo.jsonl").write_text('{"step": 1}\n{"step": 2')
    assert read_steps(tmp_path / "grpo.jsonl") == [{"step": 1}]


def test_charts_draw_their_values_and_nothing_without_any() -> None:
    steps = [{"step": 1, "a": 1.0, "n": {"x": 1, "y": 3}}, {"step": 2, "a": None, "n": {}}]
    assert [curve.values for curve in curves(steps, {"a": "A", "b": "B"})] == [[1.0, None]]
    assert line_chart(steps, [], "y") == ""
    assert share_chart(steps, "absent", "y") == ""
    assert stack_chart(steps, {"b": "B"}, "y") == ""
    assert ">A<" in line_chart(steps, [*curves(steps, {"a": "A"}), Curve(label="C", values=[1.0, 2.0])], "y")
    shares = share_chart(steps, "n", "y", {"y": "#010203", "x": "#040506"})
    assert shares.index(">y<") < shares.index(">x<")
    assert "#010203" in shares


def test_a_share_is_of_its_own_steps_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[list[list[float]]] = []
    monkeypatch.setattr(charts, "_stack", lambda steps, kinds, shares, *_, **__: drawn.append(shares) or "")
    share_chart([{"step": 1, "n": {"x": 1, "y": 3}}, {"step": 2, "n": {"x": 5}}, {"step": 3}], "n", "y")
    assert drawn == [[[0.25, 1.0, 0.0], [0.75, 0.0, 0.0]]]
