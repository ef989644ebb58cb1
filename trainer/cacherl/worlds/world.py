"""What a training world offers: tools, seeded tasks with a known truth, and live sessions that check the outcome.

A world is a program, not a recording. Recording, evaluation and the sandbox execute its tools; training on the
cache never does. Nothing here knows a model, a tokenizer or the cache service.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from toolcache_client.messages import ToolResult

Split = Literal["train", "held_out"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Milestone:
    """One call that a right solution makes; extra calls between two milestones are free."""

    tool: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One request of a user, with the truth about it."""

    id: str
    """Unique in the world, whatever the split."""
    environment: str
    """Fingerprint of the code version and the task's initial state: equal fingerprints, equal answers."""
    prompt: str
    """What the user says."""
    milestones: tuple[Milestone, ...]
    """The calls of a right solution, in order."""
    expected_answer: str
    """A right last message, word for word as the expert writes it."""
    details: Mapping[str, str]
    """What only the world and its scripted agents read; never shown to a model."""


class WorldSession(Protocol):
    """One task being worked on, in a state of its own.

    One that holds something (a container, a connection) has a `close()` besides: called once, when the rollout is over
    and its outcome was read, whatever became of it.
    """

    def execute(self, tool: str, arguments: Mapping[str, Any]) -> ToolResult:
        """A live call. A tool that refuses answers with `is_error` and a content that starts with `Error:`."""
        ...

    def succeeded(self, answer: str) -> bool:
        """Whether the final state equals the task's true final state and the answer says what is true."""
        ...


class World(Protocol):
    """A toolset, its initial state and its tasks."""

    @property
    def name(self) -> str:
        """The namespace its recordings belong to."""
        ...

    @property
    def tools(self) -> tuple[Mapping[str, Any], ...]:
        """OpenAI tool objects, each with a third key, `effect`: "pure", "read" or "write"."""
        ...

    @property
    def system_prompt(self) -> str:
        """The first message of every conversation."""
        ...

    def tasks(self, split: Split, count: int) -> list[Task]:
        """The first `count` tasks of a split, the same at every call; ValueError when the split has fewer."""
        ...

    def open(self, task: Task) -> WorldSession:
        """A fresh session in the initial state."""
        ...
