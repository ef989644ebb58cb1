"""From settings to things: worlds of three kinds, tasks, judges, chat formats, sources, engines that are not there."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from cacherl.adapters.byte_tokenizer import make_byte_tokenizer
from cacherl.config import read_run
from cacherl.errors import RunMisconfigured
from cacherl.reward.answer import MilestoneJudge
from cacherl.rollout.chat_format import ChatFormat
from cacherl.rollout.rollout import Rollout
from cacherl.rollout.tools import Drop, ExecuteLive, ToolError, Wait
from cacherl.run import build
from cacherl.run.settings import Run
from cacherl.train.collector import FromCache, FromWorld
from cacherl.worlds.recorded import RecordedWorld, task_id_of
from cacherl.worlds.support_desk import SupportDesk
from cacherl.worlds.world import Task

SMALL = """
name = "small"
[model.tiny]
[world]
tasks = 12
"""


@pytest.fixture
def read(tmp_path: Path) -> Iterator[Any]:
    path = tmp_path / "small.toml"
    path.write_text(SMALL)
    yield lambda *flags: read_run(path, Run, flags)


@pytest.fixture
def logs(tmp_path: Path) -> tuple[str, ...]:
    """Flags of a recorded world of forty tasks in two domains."""
    lines = [
        {
            "uid": f"{n}",
            "task_id": f"task {n}",
            "domain": "shop" if n % 2 else "desk",
            "environment": "e",
            "reward": 1,
            "messages": [{"role": "user", "content": f"do {n}"}, {"role": "assistant", "content": "Done."}],
        }
        for n in range(40)
    ]
    (tmp_path / "logs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    tools = [{"function": {"name": "get", "parameters": {"type": "object"}}, "effect": "read"}]
    (tmp_path / "tools.json").write_text(json.dumps({"shop": tools, "desk": tools}))
    recordings = ("--world.kind", "recorded", "--world.trajectories", str(tmp_path / "logs.jsonl"))
    return (
        *recordings,
        "--world.tools",
        str(tmp_path / "tools.json"),
        "--cache.on_miss",
        "error",
        "--world.tasks",
        "0",
    )


def own_world(members: dict[str, Any]) -> Any:
    return type("Own", (), members)()


def module(monkeypatch: pytest.MonkeyPatch, **members: Any) -> None:
    """A user's module `shop.world` with these members."""
    made = type(sys)("shop_world")
    for name, member in members.items():
        setattr(made, name, member)
    monkeypatch.setitem(sys.modules, "shop_world", made)


def test_a_recorded_world_takes_one_domain_and_its_name_is_the_namespace(read: Any, logs: tuple[str, ...]) -> None:
    with pytest.raises(RunMisconfigured, match=r"hold desk, shop: set world\.domain"):
        build.make_world(read(*logs))
    run = read(*logs, "--world.domain", "shop", "--world.held_out_share", "0.3")
    world = build.make_world(run)
    assert isinstance(world, RecordedWorld)
    assert world.name == "shop"
    assert world.count("train") + world.count("held_out") == 20
    assert len(build.training_tasks(run, world)) == world.count("train")
    assert len(build.held_out_tasks(run, world)) == world.count("held_out")
    assert not build.has_live_tools(world)
    named = build.make_world(read(*logs, "--world.domain", "shop", "--cache.namespace", "other"))
    assert named.name == "other"


def test_sft_never_learns_from_a_task_that_is_held_out(read: Any, logs: tuple[str, ...], tmp_path: Path) -> None:
    run = read(*logs, "--world.domain", "shop", "--world.held_out_share", "0.3")
    world = build.make_world(run)
    learned, left_out = build.training_trajectories(run, world, build.recordings(run, world, tmp_path))
    assert left_out == {"unreadable": 0, "of another domain": 20, "of held-out tasks": 20 - len(learned)}
    assert 0 < left_out["of held-out tasks"] < 20
    assert {task_id_of(each) for each in learned} == {task.id for task in build.training_tasks(run, world)}
    assert {each.domain for each in learned} == {"shop"}


def test_recordings_that_cannot_be_used_are_counted_with_the_first_reason(
    read: Any, logs: tuple[str, ...], tmp_path: Path
) -> None:
    path = tmp_path / "logs.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines() if "shop" in line]
    for line in lines[2:5]:
        line["messages"][0]["content"] = [{"type": "text", "text": "do"}]
    for line in lines[5:7]:
        line["messages"].insert(0, {"role": "system", "content": "Another one."})
    lines[7]["reward"] = 0.5
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    run = read(*logs, "--world.domain", "shop")
    world = build.make_world(run)
    found = {"unreadable lines": 3, "tasks: other system prompt": 2, "tasks: no good trajectory": 1}
    assert build.left_out(world) == found
    assert build.told_left_out(world).endswith("(first: line 3: message 0 (user) has no text content)")
    assert build.training_trajectories(run, world, [path])[1]["unreadable"] == 3
    assert build.left_out(SupportDesk(seed=0)) == {}
    assert build.told_left_out(SupportDesk(seed=0)) == ""


def test_logs_without_a_reward_are_told_with_the_settings_that_take_them(
    read: Any, logs: tuple[str, ...], tmp_path: Path
) -> None:
    path = tmp_path / "logs.jsonl"
    path.write_text(path.read_text().replace('"reward": 1', '"note": 1'))
    with pytest.raises(RunMisconfigured, match=r"set world\.good_above and examples\.min_reward to 0"):
        build.make_world(read(*logs, "--world.domain", "shop"))
    assert build.left_out(build.make_world(read(*logs, "--world.domain", "shop", "--world.good_above", "0"))) == {}


def test_recordings_without_a_domain_need_a_namespace_only_where_a_cache_is_asked(
    read: Any, logs: tuple[str, ...], tmp_path: Path
) -> None:
    path = tmp_path / "logs.jsonl"
    path.write_text(path.read_text().replace('"domain"', '"note"'))
    (tmp_path / "tools.json").write_text("[]")
    run = read(*logs)
    world = build.make_world(run)
    with pytest.raises(RunMisconfigured, match=r"name no domain: set cache\.namespace"):
        build.tool_source(run, world, "http://x")


def test_a_world_without_held_out_tasks_cannot_be_evaluated(read: Any, logs: tuple[str, ...]) -> None:
    run = read(*logs, "--world.domain", "shop", "--world.held_out_share", "1e-9")
    with pytest.raises(RunMisconfigured, match=r"no task is held out; raise world\.held_out_share"):
        build.held_out_tasks(run, build.make_world(run))


def test_the_desk_records_itself_once_and_the_same_in_every_process(read: Any, tmp_path: Path) -> None:
    run = read()
    world = build.make_world(run)
    assert isinstance(world, SupportDesk)
    (path,) = build.recordings(run, world, tmp_path / "a")
    (other,) = build.recordings(run, world, tmp_path / "b")
    assert path.read_bytes() == other.read_bytes()
    assert len(build.training_trajectories(run, world, [path])[0]) == 12 * run.world.runs_per_task
    path.write_text(path.read_text().splitlines(keepends=True)[0])
    assert build.recordings(run, world, tmp_path / "a") == [path]
    assert len(path.read_text().splitlines()) == 1


def test_an_own_world_is_made_with_its_options(read: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    module(monkeypatch, make=lambda desk: SupportDesk(seed=desk))
    world = build.make_world(read("--world.kind", "shop_world:make", "--world.options.desk", "5"))
    assert world.tasks("train", 1) == SupportDesk(seed=5).tasks("train", 1)
    assert build.has_live_tools(world)


def test_a_secret_of_an_own_world_is_said_by_the_name_of_its_variable(
    read: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    got: list[str] = []
    module(monkeypatch, make=lambda key: got.append(key) or SupportDesk(seed=0))
    run = read("--world.kind", "shop_world:make", "--world.options.key", "env:SHOP_KEY")
    with pytest.raises(RunMisconfigured, match="the environment variable SHOP_KEY is not set"):
        build.make_world(run)
    monkeypatch.setenv("SHOP_KEY", "a-secret")
    build.make_world(run)
    assert got == ["a-secret"]
    assert run.world.options == {"key": "env:SHOP_KEY"}  # which is what is saved and shown


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("nowhere_at_all:make", "world.kind: nowhere_at_all cannot be imported"),
        ("shop_world:absent", "world.kind: shop_world has no absent"),
        ("shop_world:wants", "world.kind: shop_world:wants cannot be called like this"),
        ("shop_world:half", "what shop_world:half made lacks tools, system_prompt, open of a World"),
    ],
)
def test_an_own_world_that_does_not_fit_is_told_precisely(
    read: Any, monkeypatch: pytest.MonkeyPatch, kind: str, told: str
) -> None:
    half = own_world({"name": "half", "tasks": lambda self, split, count: []})
    module(monkeypatch, wants=lambda *, url: url, half=lambda: half)
    with pytest.raises(RunMisconfigured) as caught:
        build.make_world(read("--world.kind", kind))
    assert told in str(caught.value)


def test_an_own_world_must_be_told_how_many_tasks_and_has_as_many(read: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def tasks(split: str, count: int) -> list[Task]:
        raise ValueError(f"only 3, not {count}")

    world = SupportDesk(seed=0)
    monkeypatch.setattr(world, "tasks", tasks)
    with pytest.raises(RunMisconfigured, match="support_desk: only 3, not 12"):
        build.training_tasks(read(), world)
    module(monkeypatch, make=lambda: SupportDesk(seed=0))
    run = read("--world.kind", "shop_world:make", "--world.tasks", "0")
    with pytest.raises(RunMisconfigured, match=r"say with world\.tasks how many"):
        build.training_tasks(run, build.make_world(run))


def test_the_judge_is_the_users_where_one_is_named(read: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class Half:
        def __init__(self, world: Any) -> None:
            self.world = world

        def score(self, rollout: Rollout, task: Task) -> float:
            return 0.5

    module(monkeypatch, Half=Half, nothing=lambda world: object())
    run = read("--world.judge", "shop_world:Half")
    world = build.make_world(run)
    judge = build.make_judge(run, world)
    assert isinstance(judge, Half)
    assert judge.world is world
    assert isinstance(build.make_judge(read(), world), MilestoneJudge)
    with pytest.raises(RunMisconfigured, match="has no score"):
        build.make_judge(read("--world.judge", "shop_world:nothing"), world)


def test_free_text_of_the_user_stands_beside_the_worlds_own(read: Any) -> None:
    assert build.free_text(read("--world.free_text", "find_order.item")) == {
        ("search_help", "question"),
        ("find_order", "item"),
    }


def test_the_chat_format_is_said_recognised_or_asked_for(read: Any) -> None:
    tokenizer = make_byte_tokenizer()
    assert build.chat_format(read("--model.chat", "qwen3-instruct"), tokenizer) is ChatFormat.QWEN3_INSTRUCT
    assert build.chat_format(read(), tokenizer) is ChatFormat.QWEN3_THINKING
    run = read("--model.path", "somewhere", "--model.tiny", "none")
    with pytest.raises(RunMisconfigured, match=r"somewhere: its tokenizer has no chat template; set model\.chat"):
        build.chat_format(run, tokenizer)


def test_every_policy_for_a_miss_reaches_the_rollouts(read: Any) -> None:
    world = SupportDesk(seed=0)
    policies = {
        on_miss: build.tool_source(read("--cache.on_miss", on_miss, "--cache.wait_s", "7"), world, "http://x")
        for on_miss in ("live", "wait", "error", "drop")
    }
    assert {name: source.on_miss for name, source in policies.items() if isinstance(source, FromCache)} == {
        "live": ExecuteLive(),
        "wait": Wait(wait_s=7.0, then=ToolError()),
        "error": ToolError(),
        "drop": Drop(),
    }
    assert build.tool_source(read("--cache.is_used", "false"), world, "") == FromWorld()


def test_an_engine_that_is_not_installed_is_told_with_what_to_install(
    read: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cacherl.run.build.find_spec", lambda name: None)
    with pytest.raises(RunMisconfigured, match=r"pip install -c constraints-vllm\.txt vllm=="):
        build.check_installed(read("--engine.kind", "vllm"))
    build.check_installed(read())


@pytest.mark.parametrize(
    ("environment", "moved_to"),
    [
        ({}, ["cuda:0"]),
        ({"LOCAL_RANK": "3"}, ["cuda:3"]),
        ({"LOCAL_RANK": "3", "ACCELERATE_USE_FSDP": "true"}, []),
        ({"LOCAL_RANK": "3", "ACCELERATE_USE_DEEPSPEED": "true"}, []),
        ({"LOCAL_RANK": "3", "ACCELERATE_USE_FSDP": "false"}, ["cuda:3"]),
        ({"ACCELERATE_USE_FSDP": "true"}, ["cuda:0"]),
    ],
)
def test_a_model_goes_to_the_gpu_of_its_process_unless_it_is_to_be_sharded(
    read: Any, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], moved_to: list[str]
) -> None:
    done: list[str] = []
    for name in ("LOCAL_RANK", "ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", lambda place: done.append(f"device {place}"))
    monkeypatch.setattr(torch.nn.Module, "to", lambda model, place: done.append(str(place)))
    loaded = (torch.nn.Identity(), make_byte_tokenizer())
    monkeypatch.setattr(build, "_tiny", lambda *_: done.append("loaded") or loaded)
    build.load_policy(read())
    assert done == [f"device {environment.get('LOCAL_RANK', '0')}", "loaded", *moved_to]


def test_a_model_that_cannot_be_loaded_is_told_by_its_path(read: Any, tmp_path: Path) -> None:
    with pytest.raises(RunMisconfigured, match=r"model\.path .*absent: cannot be loaded"):
        build.load_policy(read("--model.path", str(tmp_path / "absent")))
    with pytest.raises(RunMisconfigured, match="a tiny model is made by `cacherl sft`"):
        build.load_policy(read())
