"""Recordings are reproducible, in OpenAI's chat format, and as good or bad as the agent that made them."""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from cacherl.worlds.record import AGENT_SHARES, record_runs, write_ndjson
from cacherl.worlds.support_desk import SupportDesk


@pytest.fixture(scope="module")
def world() -> SupportDesk:
    return SupportDesk(seed=3)


@pytest.fixture(scope="module")
def runs(world: SupportDesk) -> list[dict[str, Any]]:
    return list(record_runs(world, world.tasks("train", 300), runs_per_task=4, seed=0))


def test_equal_seeds_record_equal_runs(world: SupportDesk, runs: list[dict[str, Any]]) -> None:
    again = list(record_runs(world, world.tasks("train", 300), runs_per_task=4, seed=0))
    assert again == runs


def test_experts_always_succeed_and_quitters_never(runs: list[dict[str, Any]]) -> None:
    rewards: dict[str, set[int]] = defaultdict(set)
    for run in runs:
        rewards[run["model"]].add(run["reward"])
    assert rewards["expert"] == {1}
    assert rewards["quitter"] == {0}
    assert rewards["careless"] == {0, 1}


def test_agents_work_as_often_as_their_shares_say(runs: list[dict[str, Any]]) -> None:
    for agent, share in AGENT_SHARES.items():
        # 1,200 draws: four standard deviations are at most 0.058.
        assert sum(run["model"] == agent for run in runs) / len(runs) == pytest.approx(share, abs=0.058)


def test_every_call_is_followed_by_its_result_and_the_run_by_an_answer(runs: list[dict[str, Any]]) -> None:
    for run in runs:
        roles = [message["role"] for message in run["messages"]]
        turns = (len(roles) - 3) // 2
        assert roles == ["system", "user", *["assistant", "tool"] * turns, "assistant"]
        for call, result in zip(run["messages"][2:-1:2], run["messages"][3:-1:2], strict=True):
            (tool_call,) = call["tool_calls"]
            assert tool_call["id"] == result["tool_call_id"]
            assert tool_call["function"]["name"] == result["name"]
            assert isinstance(json.loads(tool_call["function"]["arguments"]), dict)


def test_uids_are_unique(runs: list[dict[str, Any]]) -> None:
    assert len({run["uid"] for run in runs}) == len(runs)


def test_a_written_file_holds_one_run_a_line(tmp_path: Path, runs: list[dict[str, Any]]) -> None:
    path = tmp_path / "runs.ndjson"
    assert write_ndjson(path, runs[:7]) == 7
    assert [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] == runs[:7]
