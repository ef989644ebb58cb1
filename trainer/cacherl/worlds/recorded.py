"""A world made of recordings alone: the user's own logs and tool schemas, and no live tool.

A task is what was asked under one task id (or, where a recording has none, in the same first messages). Its best
trajectory, the one with the highest reward and then the fewest calls, says what a right solution is: its calls that
did not fail are the milestones, its last words the expected answer.

Covered: conversations that open with one system prompt, the same for all, and one message of the user. Not covered:
other openings, and tasks nobody did well; both are left out and counted. A user who answers back: what the user said
after the first answer is not played. Several right ways to do a task: only the best trajectory's counts.
"""

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from cacherl.data.trajectories import RejectedLine, Trajectory
from cacherl.errors import RunMisconfigured, ToolUnavailable
from cacherl.worlds.world import Milestone, Split, Task, WorldSession

LeftOut = Literal["other opening", "other system prompt", "no good trajectory"]
_SPLIT_STEPS = 1 << 32


class RecordedWorld:
    """Tasks from trajectories; `left_out` counts those that could not be made into one, by reason.

    `rejected` are lines beside them that could not be read; nothing is made of them, they are only kept to be told.

    `good_above` is the least reward of a trajectory that shows how a task is done. Raises RunMisconfigured where no
    task is left.
    """

    def __init__(
        self,
        name: str,
        trajectories: Sequence[Trajectory],
        tools: Sequence[Mapping[str, Any]],
        *,
        good_above: float = 1.0,
        held_out_share: float = 0.1,
        seed: int = 0,
        rejected: Sequence[RejectedLine] = (),
    ) -> None:
        self.name = name
        self.rejected = tuple(rejected)
        self.tools = tuple(tools)
        self.left_out: Counter[LeftOut] = Counter()
        self._seed = seed
        self._held_out_share = held_out_share
        opened = {task_id: [t for t in each if _opening(t)] for task_id, each in _by_task(trajectories).items()}
        self.system_prompt = _commonest(_system_prompt(t) for each in opened.values() for t in each)
        self._tasks: dict[Split, list[Task]] = {"train": [], "held_out": []}
        for task_id, each in opened.items():
            task = self._task(task_id, each, good_above)
            if task is not None:
                self._tasks[self.split_of(task_id)].append(task)
        if not any(self._tasks.values()):
            raise RunMisconfigured(
                f"no task can be made of the {len(trajectories)} recordings: {dict(self.left_out)}"
                + _unrewarded(trajectories, good_above)
            )

    def split_of(self, task_id: str) -> Split:
        """The split of a task, by its id and the seed alone: more recordings move no task to another one."""
        digest = hashlib.sha256(f"{self._seed}/{task_id}".encode()).digest()
        share = int.from_bytes(digest[:4], "big") / _SPLIT_STEPS
        return "held_out" if share < self._held_out_share else "train"

    def count(self, split: Split) -> int:
        """How many tasks a split has."""
        return len(self._tasks[split])

    def tasks(self, split: Split, count: int) -> list[Task]:
        """The first `count` tasks of a split in the order of the recordings; ValueError when it has fewer."""
        if count > self.count(split):
            raise ValueError(f"{self.name} has {self.count(split)} {split} tasks, fewer than {count}")
        return self._tasks[split][:count]

    def open(self, task: Task) -> WorldSession:
        """Raises ToolUnavailable: there is nothing to execute."""
        raise ToolUnavailable(
            f"{self.name} is made of recordings and has no live tools: set cache.on_miss to error, drop or wait, or "
            "write a World that executes them (worlds/world.py)"
        )

    def _task(self, task_id: str, trajectories: Sequence[Trajectory], good_above: float) -> Task | None:
        """The task, or None where the recordings do not tell what is right; the reason is counted."""
        alike = [t for t in trajectories if _system_prompt(t) == self.system_prompt]
        good = [t for t in alike if t.reward >= good_above and _last_words(t)]
        if not good:
            why: LeftOut = "no good trajectory" if alike else "other system prompt" if trajectories else "other opening"
            self.left_out[why] += 1
            return None
        best = min(good, key=lambda t: (-t.reward, sum(1 for _ in _calls(t))))
        return Task(
            id=task_id,
            environment=best.environment,
            prompt=best.messages[_opening(best) - 1]["content"],
            milestones=tuple(_milestones(best)),
            expected_answer=_last_words(best),
            details={"uid": best.uid},
        )


def task_id_of(trajectory: Trajectory) -> str:
    """The id of the task a trajectory worked on; where none was recorded, a digest of its first messages."""
    if trajectory.task_id:
        return trajectory.task_id
    opening = [message.get("content") for message in _before_assistant(trajectory)]
    return hashlib.sha256(json.dumps(opening).encode()).hexdigest()[:16]


def read_tools(path: Path, domain: str = "") -> tuple[Mapping[str, Any], ...]:
    """OpenAI tool objects with `effect` from a JSON file, as `toolcache import --tools` takes it.

    A list of tools, or {"tools": [...], "write_tools": [...]}, or either by domain. A tool without `effect` is a
    read where `write_tools` stands beside it and does not name it, else a write. Raises RunMisconfigured.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunMisconfigured(f"{path}: tools cannot be read ({error})") from error
    if isinstance(document, dict) and "tools" not in document:
        if domain not in document:
            raise RunMisconfigured(f"{path}: holds tools of {', '.join(document)}; set world.domain to one of them")
        document = document[domain]
    listed = document["tools"] if isinstance(document, dict) else document
    writes = document.get("write_tools") if isinstance(document, dict) else None
    try:
        return tuple(_tool(each, writes) for each in listed)
    except (KeyError, TypeError, AttributeError) as error:
        raise RunMisconfigured(f"{path}: not in OpenAI's tool format ({type(error).__name__}: {error})") from error


def _unrewarded(trajectories: Sequence[Trajectory], good_above: float) -> str:
    """A hint where nothing tells good recordings from bad ones."""
    if good_above <= 0.0 or any(each.reward for each in trajectories):
        return ""
    return (
        '; none of them has a "reward" above 0: record one, or set world.good_above and examples.min_reward to 0 '
        "to take all of them as good"
    )


def _tool(document: Mapping[str, Any], writes: Sequence[str] | None) -> Mapping[str, Any]:
    given = document.get("function", document)
    function = {
        "name": given["name"],
        "description": given.get("description") or "",
        "parameters": given.get("parameters") or {"type": "object", "properties": {}},
    }
    unsaid = "write" if writes is None or given["name"] in writes else "read"
    return {"type": "function", "effect": document.get("effect", unsaid), "function": function}


def _by_task(trajectories: Iterable[Trajectory]) -> dict[str, list[Trajectory]]:
    found: dict[str, list[Trajectory]] = defaultdict(list)
    for trajectory in trajectories:
        found[task_id_of(trajectory)].append(trajectory)
    return found


def _before_assistant(trajectory: Trajectory) -> list[Mapping[str, Any]]:
    """The messages before the first turn of the model."""
    first = next((i for i, m in enumerate(trajectory.messages) if m["role"] == "assistant"), len(trajectory.messages))
    return list(trajectory.messages[:first])


def _opening(trajectory: Trajectory) -> int:
    """How many messages open it, where they are an optional system prompt and one of the user; else 0."""
    roles = [message["role"] for message in _before_assistant(trajectory)]
    return len(roles) if roles in (["user"], ["system", "user"]) else 0


def _system_prompt(trajectory: Trajectory) -> str:
    first = trajectory.messages[0]
    return str(first["content"]) if first["role"] == "system" else ""


def _commonest(texts: Iterable[str]) -> str:
    return next((text for text, _ in Counter(texts).most_common(1)), "")


def _last_words(trajectory: Trajectory) -> str:
    """The last text of the model; empty where it never said anything."""
    said = (m.get("content") or "" for m in reversed(trajectory.messages) if m["role"] == "assistant")
    return next((text for text in said if text.strip()), "")


def _milestones(trajectory: Trajectory) -> Iterator[Milestone]:
    for function, result in _calls(trajectory):
        arguments = _arguments(function["arguments"])
        if arguments is not None and not result.startswith("Error"):
            yield Milestone(tool=function["name"], arguments=arguments)


def _calls(trajectory: Trajectory) -> Iterator[tuple[Mapping[str, Any], str]]:
    """Every call with its result; a call without a result, as one at a recording's end, is none.

    Results are matched by id where both have one, else by their order within the turn.
    """
    waiting: list[Mapping[str, Any]] = []
    for message in trajectory.messages:
        if message["role"] == "assistant":
            waiting = list(message.get("tool_calls") or ())
        elif message["role"] == "tool" and waiting:
            ids = [call.get("id") for call in waiting]
            place = ids.index(message["tool_call_id"]) if message.get("tool_call_id") in ids else 0
            yield waiting.pop(place)["function"], message["content"]


def _arguments(given: Any) -> Mapping[str, Any] | None:
    """Arguments as an object, whether recorded as one or as its JSON; None for anything else."""
    if isinstance(given, str):
        try:
            given = json.loads(given)
        except ValueError:
            return None
    return given if isinstance(given, dict) else None
