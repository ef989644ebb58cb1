"""A world that counts its live calls: how the demo knows, rather than claims, that GRPO made none."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cacherl.rollout.tools import close_session
from cacherl.worlds.world import Split, Task, World, WorldSession
from toolcache_client.messages import ToolResult


class CountedWorld:
    """The world it wraps, with `live_calls` made through it so far."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.live_calls = 0

    @property
    def name(self) -> str:
        return self._world.name

    @property
    def tools(self) -> tuple[Mapping[str, Any], ...]:
        return self._world.tools

    @property
    def system_prompt(self) -> str:
        return self._world.system_prompt

    def tasks(self, split: Split, count: int) -> list[Task]:
        return self._world.tasks(split, count)

    def open(self, task: Task) -> WorldSession:
        return _CountedSession(self, self._world.open(task))


class _CountedSession:
    def __init__(self, world: CountedWorld, session: WorldSession) -> None:
        self._world = world
        self._session = session

    def execute(self, tool: str, arguments: Mapping[str, Any]) -> ToolResult:
        self._world.live_calls += 1
        return self._session.execute(tool, arguments)

    def succeeded(self, answer: str) -> bool:
        return self._session.succeeded(answer)

    def close(self) -> None:
        close_session(self._session)
