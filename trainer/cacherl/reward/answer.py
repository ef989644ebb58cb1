"""R_answer: is what a rollout did and said right? 0..1.

The judge here needs no model: a task with milestones says which calls lead to it, which writes it takes and what is
true in the end. It reads the rollout only, so it works on cached answers, where no final state of a world exists.

Not covered: tasks with several right ways; answers that are right in other words than the truth's.
"""

import re
from dataclasses import dataclass
from typing import Protocol

from cacherl.evaluate.milestones import FreeText, is_same_call, match_milestones
from cacherl.rollout.parser import CallStatus
from cacherl.rollout.rollout import CallRecord, Rollout
from cacherl.worlds.world import Task

_THINK_MARK = re.compile(r"</?think>")
_WORD = re.compile(r"\w+")


class AnswerJudge(Protocol):
    """Judges a rollout against its task, 0..1. Never asked about void rollouts."""

    def score(self, rollout: Rollout, task: Task) -> float: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeWeights:
    """Shares of the three questions; they sum to 1."""

    milestones: float = 0.3
    """Ordered milestone recall."""
    writes: float = 0.3
    """Did the effective writes equal the task's: none missing, none too many, in order?"""
    truth: float = 0.4
    """Does the answer say what is true?"""

    def __post_init__(self) -> None:
        if abs(self.milestones + self.writes + self.truth - 1.0) > 1e-9:
            raise ValueError("the judge's weights do not sum to 1")


class MilestoneJudge:
    """Judges by milestones, effective writes and the stated truth.

    `writes` are the tools that change the world (rollout/tools.py: writing_tools); `free_text` the (tool, argument)
    pairs whose wording does not matter. Thinking that leaks into the answer makes the whole score 0.
    """

    def __init__(
        self, *, writes: frozenset[str], free_text: FreeText = frozenset(), weights: JudgeWeights | None = None
    ) -> None:
        self._writes = writes
        self._free_text = free_text
        self._weights = weights or JudgeWeights()

    def score(self, rollout: Rollout, task: Task) -> float:
        """The weighted score of one rollout."""
        if _THINK_MARK.search(rollout.answer):
            return 0.0
        done = [call for call in rollout.calls if _took_effect(call)]
        recall = match_milestones(done, task.milestones, self._free_text).recall
        w = self._weights
        return (
            w.milestones * recall
            + w.writes * self._writes_are_right(done, task)
            + w.truth * states_truth(rollout.answer, task.expected_answer)
        )

    def _writes_are_right(self, done: list[CallRecord], task: Task) -> bool:
        made = [call for call in done if call.name in self._writes]
        wanted = [milestone for milestone in task.milestones if milestone.tool in self._writes]
        return len(made) == len(wanted) and all(
            is_same_call(call, milestone, self._free_text) for call, milestone in zip(made, wanted, strict=True)
        )


def states_truth(answer: str, truth: str) -> bool:
    """Whether the words of the truth stand in the answer, together and in order; case and punctuation aside.

    Whole words, so that 12 is not found in 112. Without a truth, any non-empty answer will do.

    >>> states_truth("Sure: it takes 12 days!", "It takes 12 days.")
    True
    >>> states_truth("It takes 112 days.", "12 days")
    False
    """
    said, wanted = _WORD.findall(answer.casefold()), _WORD.findall(truth.casefold())
    if not wanted:
        return bool(said)
    return any(said[i : i + len(wanted)] == wanted for i in range(len(said) - len(wanted) + 1))


def _took_effect(call: CallRecord) -> bool:
    return call.status is CallStatus.OK and call.tier is not None and not call.is_error
