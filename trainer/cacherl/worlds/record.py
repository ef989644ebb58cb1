"""Scripted agents that work on a world's tasks, and the recordings they leave: the demo's expert and imperfect logs.

Recordings are of mixed quality on purpose, as logs of deployed agents are. What the imperfect agents do is covered by
the cache afterwards, so a policy that tries it in training meets the true consequence without a live call.
"""

import json
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from cacherl.worlds.support_desk import right_answer
from cacherl.worlds.world import Task, World, WorldSession
from toolcache_client.messages import ToolResult

APOLOGY: Final = "Sorry, I could not do that."
AGENT_SHARES: Final[Mapping[str, float]] = {"expert": 0.4, "careless": 0.3, "quitter": 0.3}
"""How often each agent is the one that works on a task. More experts leave reinforcement nothing to improve."""
DOUBLE_CHECK_SHARE: Final = 0.15
"""Share of the expert's writes that are looked at again, which reads the state after the write."""
QUESTIONS: Final = ("how long?", "time?", "how many days?", "please tell me")
"""Ways to word a question; the help centre reads only item and topic."""
HABITUAL_DAYS: Final = 30


class Transcript:
    """One run being recorded: executes calls live and keeps the conversation in OpenAI's chat format."""

    def __init__(self, *, world: World, task: Task, session: WorldSession) -> None:
        self._session = session
        self._thought = ""
        self.messages: list[dict[str, Any]] = [
            {"role": "system", "content": world.system_prompt},
            {"role": "user", "content": task.prompt},
        ]

    def think(self, text: str) -> None:
        """What the agent thinks before its next call or answer."""
        self._thought = text

    def call(self, tool: str, **arguments: str) -> ToolResult:
        """Executes one call and records it with its result."""
        call_id = f"call_{len(self.messages) // 2}"
        function = {"name": tool, "arguments": json.dumps(arguments)}
        result = self._session.execute(tool, arguments)
        self._say("", tool_calls=[{"id": call_id, "type": "function", "function": function}])
        self.messages.append({"role": "tool", "tool_call_id": call_id, "name": tool, "content": result.content})
        return result

    def answer(self, text: str) -> None:
        """Records the last message."""
        self._say(text)

    def _say(self, content: str, **more: Any) -> None:
        thought = {"reasoning_content": self._thought} if self._thought else {}
        self.messages.append({"role": "assistant", "content": content, **thought, **more})
        self._thought = ""


Agent = Callable[[Transcript, Task, random.Random], None]


def record_runs(world: World, tasks: Iterable[Task], *, runs_per_task: int, seed: int) -> Iterator[dict[str, Any]]:
    """Recorded trajectories of the agents on the tasks, `runs_per_task` each, the same for the same seed."""
    rng = random.Random(seed)
    names, shares = list(AGENT_SHARES), list(AGENT_SHARES.values())
    for task in tasks:
        for run, name in enumerate(rng.choices(names, weights=shares, k=runs_per_task)):
            yield record_run(world, task, agent=name, uid=f"{task.id}/{run}", rng=rng)


def record_run(world: World, task: Task, *, agent: str, uid: str, rng: random.Random) -> dict[str, Any]:
    """One trajectory of one named agent."""
    session = world.open(task)
    transcript = Transcript(world=world, task=task, session=session)
    AGENTS[agent, task.details["kind"]](transcript, task, rng)
    return {
        "uid": uid,
        "domain": world.name,
        "environment": task.environment,
        "task_id": task.id,
        "model": agent,
        "reward": int(session.succeeded(transcript.messages[-1]["content"])),
        "messages": transcript.messages,
    }


def write_ndjson(path: Path, trajectories: Iterable[Mapping[str, Any]]) -> int:
    """Writes one JSON object a line; returns how many."""
    lines = [json.dumps(trajectory, ensure_ascii=False) + "\n" for trajectory in trajectories]
    path.write_text("".join(lines), encoding="utf-8")
    return len(lines)


def _expert_undo(transcript: Transcript, task: Task, rng: random.Random) -> None:
    """Looks, thinks, then does what the status asks for."""
    order_id = _find(transcript, task)
    status = _look(transcript, order_id)[1]
    transcript.think(f"it is {status}")
    label = ""
    if status == "pending":
        transcript.call("cancel_order", order_id=order_id)
    elif status == "delivered":
        transcript.call("return_order", order_id=order_id)
        label = transcript.call("make_label", order_id=order_id).content
    if status == "pending" and rng.random() < DOUBLE_CHECK_SHARE:
        _look(transcript, order_id)
    transcript.answer(right_answer(status, label=label))


def _careless_undo(transcript: Transcript, task: Task, rng: random.Random) -> None:
    """Cancels without having looked, which harms an order that is on its way and is refused for a delivered one."""
    order_id = _find(transcript, task)
    if transcript.call("cancel_order", order_id=order_id).is_error:
        transcript.answer(APOLOGY)
    else:
        transcript.answer(right_answer("pending"))


def _quitter_undo(transcript: Transcript, task: Task, rng: random.Random) -> None:
    """Gives up with the order in hand."""
    order_id = _find(transcript, task)
    if rng.random() < 0.5:
        _look(transcript, order_id)
    transcript.answer(APOLOGY)


def _expert_ask(transcript: Transcript, task: Task, rng: random.Random) -> None:
    """Looks which item it is, thinks, then searches."""
    item = _look(transcript, task.details["order_id"])[0]
    transcript.think(f"it is about {item}")
    question = rng.choice(QUESTIONS)
    article = transcript.call("search_help", item=item, topic=task.details["topic"], question=question).content
    transcript.answer(f"It takes {article.split()[-2]} days.")


def _careless_ask(transcript: Transcript, task: Task, rng: random.Random) -> None:
    """Answers from habit."""
    _look(transcript, task.details["order_id"])
    transcript.answer(f"It takes {HABITUAL_DAYS} days.")


def _quitter_ask(transcript: Transcript, task: Task, rng: random.Random) -> None:
    """Gives up with the item in hand."""
    _look(transcript, task.details["order_id"])
    transcript.answer(APOLOGY)


def _find(transcript: Transcript, task: Task) -> str:
    """The number of the task's order."""
    found = transcript.call("find_order", email=task.details["email"], item=task.details["item"])
    return found.content.removeprefix("order ")


def _look(transcript: Transcript, order_id: str) -> tuple[str, str]:
    """Item and status of an order."""
    item, status = transcript.call("get_order", order_id=order_id).content.split(": ")
    return item, status


AGENTS: Final[Mapping[tuple[str, str], Agent]] = {
    ("expert", "undo"): _expert_undo,
    ("careless", "undo"): _careless_undo,
    ("quitter", "undo"): _quitter_undo,
    ("expert", "ask"): _expert_ask,
    ("careless", "ask"): _careless_ask,
    ("quitter", "ask"): _quitter_ask,
}
"""(agent, kind of request) to what it does."""
