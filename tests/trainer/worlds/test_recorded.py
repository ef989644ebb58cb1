"""A user's own recordings make a world: tasks with a known way, a stable split, and nothing live."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cacherl.data.trajectories import Trajectory, read_trajectories
from cacherl.errors import RunMisconfigured, ToolUnavailable
from cacherl.worlds.recorded import RecordedWorld, read_tools, task_id_of
from cacherl.worlds.world import Milestone

TAU = Path(__file__).parents[3].parent / "shared" / "data"
TOOLS: list[dict[str, Any]] = [
    {"type": "function", "function": {"name": "get_order", "parameters": {"type": "object"}}, "effect": "read"},
    {"type": "function", "function": {"name": "cancel", "description": "Cancels."}},
]
SYSTEM = {"role": "system", "content": "Be kind."}


def call(name: str, result: str = "ok", call_id: str = "c1", **arguments: Any) -> list[dict[str, Any]]:
    function = {"name": name, "arguments": json.dumps(arguments)}
    return [
        {"role": "assistant", "content": "", "tool_calls": [{"id": call_id, "function": function}]},
        {"role": "tool", "tool_call_id": call_id, "content": result},
    ]


def said(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def trajectory(task_id: str, *middle: dict[str, Any], reward: float = 1.0, **changes: Any) -> Trajectory:
    fields: dict[str, Any] = {
        "uid": f"u-{task_id}",
        "task_id": task_id,
        "domain": "shop",
        "environment": "shop@1",
        "model": "m",
        "reward": reward,
        "messages": (SYSTEM, {"role": "user", "content": f"do {task_id}"}, *(middle or (said("Done."),))),
    }
    return Trajectory(**{**fields, **changes})


def world(*trajectories: Trajectory, share: float = 1e-9, **changes: Any) -> RecordedWorld:
    """All tasks in the training split, unless told otherwise."""
    return RecordedWorld("shop", trajectories, TOOLS, held_out_share=share, **changes)


def test_a_task_is_what_its_best_trajectory_did() -> None:
    long = trajectory("t", *call("get_order", id=1), *call("get_order", id=2), *call("cancel", id=1), said("Long."))
    failed = trajectory("t", said("No."), reward=0.0)
    best = trajectory(
        "t",
        *call("get_order", "Error: no such order", id=7),
        *call("get_order", id=1),
        said("One moment."),
        {"role": "user", "content": "thanks"},
        environment="shop@2",
    )
    (task,) = world(failed, long, best).tasks("train", 1)
    assert task.prompt == "do t"
    assert task.environment == "shop@2"
    assert task.expected_answer == "One moment."
    assert task.milestones == (Milestone(tool="get_order", arguments={"id": 1}),)


def test_of_two_good_trajectories_the_higher_reward_wins_before_the_shorter_way() -> None:
    short = trajectory("t", said("Short."), reward=0.8)
    higher = trajectory("t", *call("cancel", id=1), said("Higher."), reward=0.9)
    (task,) = world(short, higher, good_above=0.5).tasks("train", 1)
    assert task.expected_answer == "Higher."


def test_parallel_results_are_matched_by_their_ids() -> None:
    calls = [
        {"id": "a", "function": {"name": "get_order", "arguments": {"id": 1}}},
        {"id": "b", "function": {"name": "get_order", "arguments": "not JSON"}},
        {"id": "c", "function": {"name": "cancel", "arguments": '{"id": 1}'}},
    ]
    results = [
        {"role": "tool", "tool_call_id": "c", "content": "Error: too late"},
        {"role": "tool", "tool_call_id": "b", "content": "ok"},
        {"role": "tool", "tool_call_id": "a", "content": "ok"},
    ]
    both = trajectory("t", {"role": "assistant", "content": None, "tool_calls": calls}, *results, said("Done."))
    (task,) = world(both).tasks("train", 1)
    assert task.milestones == (Milestone(tool="get_order", arguments={"id": 1}),)


def test_what_cannot_be_made_into_a_task_is_left_out_and_counted() -> None:
    made = world(
        trajectory("good"),
        trajectory("also good"),
        trajectory("bad", reward=0.0),
        trajectory("silent", said("")),
        trajectory("other prompt", messages=({"role": "user", "content": "hi"}, said("Hi."))),
        trajectory("two users", messages=(SYSTEM, *[{"role": "user", "content": "hi"}] * 2, said("Hi."))),
    )
    assert [task.id for task in made.tasks("train", 2)] == ["good", "also good"]
    assert made.left_out == {"no good trajectory": 2, "other system prompt": 1, "other opening": 1}
    assert made.system_prompt == "Be kind."


def test_a_recording_without_task_ids_has_a_task_an_opening() -> None:
    one, same, other = (trajectory("", messages=(SYSTEM, {"role": "user", "content": c}, said("x"))) for c in "aab")
    assert task_id_of(one) == task_id_of(same) != task_id_of(other)
    assert world(one, same, other).count("train") == 2


def test_the_split_hangs_on_the_task_and_the_seed_alone() -> None:
    many = [trajectory(f"task {n}") for n in range(400)]
    one = world(*many, share=0.25)
    held_out = {task.id for task in one.tasks("held_out", one.count("held_out"))}
    assert one.count("train") + one.count("held_out") == 400
    assert 60 < len(held_out) < 140  # 100 expected, four standard deviations are 35
    fewer = world(*many[:200], share=0.25)
    assert {task.id for task in fewer.tasks("held_out", fewer.count("held_out"))} == held_out & {
        f"task {n}" for n in range(200)
    }
    other = world(*many, share=0.25, seed=1)
    assert {task.id for task in other.tasks("held_out", other.count("held_out"))} != held_out


def test_more_tasks_than_there_are_is_an_error_and_so_is_none() -> None:
    with pytest.raises(ValueError, match="shop has 1 train tasks, fewer than 2"):
        world(trajectory("t")).tasks("train", 2)
    with pytest.raises(RunMisconfigured, match="no task can be made of the 1 recordings"):
        world(trajectory("t", reward=0.0))


def test_opening_a_recorded_world_says_what_to_do() -> None:
    made = world(trajectory("t"))
    with pytest.raises(ToolUnavailable, match=r"no live tools: set cache\.on_miss to error, drop or wait"):
        made.open(made.tasks("train", 1)[0])


def test_tools_are_read_as_the_cache_reads_them(tmp_path: Path) -> None:
    path = tmp_path / "tools.json"
    path.write_text(json.dumps(TOOLS))
    assert [(t["function"]["name"], t["effect"]) for t in read_tools(path)] == [
        ("get_order", "read"),
        ("cancel", "write"),
    ]
    bare = [{"name": "get_order"}, {"name": "cancel"}]
    path.write_text(json.dumps({"shop": {"tools": bare, "write_tools": ["cancel"]}, "desk": bare}))
    assert [tool["effect"] for tool in read_tools(path, "shop")] == ["read", "write"]
    assert [tool["effect"] for tool in read_tools(path, "desk")] == ["write", "write"]
    with pytest.raises(RunMisconfigured, match=r"holds tools of shop, desk; set world\.domain"):
        read_tools(path)
    path.write_text("[{}]")
    with pytest.raises(RunMisconfigured, match="not in OpenAI's tool format"):
        read_tools(path)
    with pytest.raises(RunMisconfigured, match="cannot be read"):
        read_tools(tmp_path / "absent.json")


@pytest.mark.skipif(not TAU.exists(), reason="the recordings of tau-bench are not here")
def test_recordings_of_tau_bench_make_a_world() -> None:
    trajectories = [t for t in read_trajectories(TAU / "tau_bench.jsonl.gz").trajectories if t.domain == "retail"]
    made = RecordedWorld("retail", trajectories, read_tools(TAU / "tau_tools.json", "retail"))
    assert made.count("train") + made.count("held_out") + sum(made.left_out.values()) == 115
    names = {tool["function"]["name"] for tool in made.tools}
    assert all(m.tool in names for task in made.tasks("train", made.count("train")) for m in task.milestones)
