import asyncio
import gc
import json
import random
from dataclasses import replace

from cacherl.adapters.byte_tokenizer import make_byte_tokenizer
from cacherl.adapters.hf_tokenizer import HFTokenizer
from cacherl.adapters.scripted_engine import ScriptedEngine
from cacherl.errors import ToolUnavailable
from cacherl.evaluate.evaluate import Evaluation, evaluate, judged
from cacherl.reward.answer import MilestoneJudge
from cacherl.reward.tier_aware import Reward
from cacherl.rollout.loop import Budgets, CacheAgentLoop
from cacherl.rollout.parser import Parser
from cacherl.rollout.renderer import Renderer
from cacherl.rollout.rollout import StopReason
from cacherl.rollout.tools import writing_tools
from cacherl.train.scoring import ScoredRollout
from cacherl.worlds.support_desk import SupportDesk, SupportSession, make_desk
from cacherl.worlds.world import Task

WORLD = SupportDesk(seed=0)
TASKS = WORLD.tasks("held_out", 8)


def solve(task: Task, upto: int | None = None) -> list[str]:
    """What a perfect agent says, one completion a turn."""
    calls = [json.dumps({"name": m.tool, "arguments": m.arguments}) for m in task.milestones[:upto]]
    turns = [f"so\n</think>\n\n<tool_call>\n{call}\n</tool_call>" for call in calls]
    return [*turns, f"so\n</think>\n\n{task.expected_answer}"]


def run(
    by_task: dict[str, list[str]], world: SupportDesk = WORLD, turns: int = 12, concurrency: int = 64
) -> Evaluation:
    tokenizer = HFTokenizer(make_byte_tokenizer())

    def reply(prompt: str) -> str:
        task = next(task for task in TASKS if task.prompt in prompt)
        return by_task[task.id][prompt.count("<|im_start|>assistant") - 1]

    loop = CacheAgentLoop(
        ScriptedEngine(tokenizer, reply),
        Renderer(tokenizer),
        Parser(WORLD.tools),
        budgets=Budgets(turns=turns),
        temperature=0,
    )
    judge = MilestoneJudge(writes=writing_tools(WORLD.tools))
    return asyncio.run(evaluate(loop, world, TASKS, judge, concurrency=concurrency))


def test_a_perfect_agent_succeeds_everywhere() -> None:
    result = run({task.id: solve(task) for task in TASKS})
    assert (result.success.value, result.process_accuracy.value, result.call_precision.value) == (1.0, 1.0, 1.0)
    assert result.validation_reward.value > 0.99
    assert result.success.low < 0.7  # eight tasks prove little, and the interval says so
    assert result.stops == {"answered": len(TASKS)}


def test_right_words_without_the_deed_are_no_success() -> None:
    result = run({task.id: solve(task, upto=1) for task in TASKS})
    silent = {task.id for task in TASKS if len(task.milestones) == 1 or not _writes(task)}
    assert {o.rollout.task_id for o in result.outcomes if o.succeeded} == silent
    expected = sum(1 / len(task.milestones) for task in TASKS) / len(TASKS)
    assert abs(result.process_accuracy.value - expected) < 1e-9


def test_a_rollout_that_never_answered_is_no_success_whatever_the_world_says() -> None:
    class Lenient(SupportSession):
        def succeeded(self, answer: str) -> bool:
            return True

    class LenientDesk(SupportDesk):
        def open(self, task: Task) -> SupportSession:
            return Lenient(desk=make_desk(random.Random(0)), task=task)

    result = run({task.id: solve(task) for task in TASKS}, LenientDesk(seed=0), turns=1)
    assert result.stops == {"turn_budget": len(TASKS)}
    assert result.success.value == 0.0


def test_sessions_open_with_their_rollout_and_close_when_the_outcome_was_read() -> None:
    events: list[str] = []

    class Closable(SupportSession):
        def succeeded(self, answer: str) -> bool:
            events.append("asked")
            return super().succeeded(answer)

        def close(self) -> None:
            events.append("closed")

    class Desk(SupportDesk):
        def open(self, task: Task) -> SupportSession:
            events.append("opened")
            session = super().open(task)
            session.__class__ = Closable
            return session

    result = run({task.id: solve(task) for task in TASKS}, Desk(seed=0), concurrency=1)
    assert result.success.value == 1.0
    assert events == ["opened", "asked", "closed"] * len(TASKS)


def test_what_lives_when_an_evaluation_begins_is_out_of_later_collections() -> None:
    gc.unfreeze()
    run({task.id: [f"so\n</think>\n\n{task.expected_answer}"] for task in TASKS})
    assert gc.get_freeze_count() > 1000


def test_a_task_whose_session_cannot_be_opened_is_void_and_the_others_are_measured() -> None:
    class Full(SupportDesk):
        def open(self, task: Task) -> SupportSession:
            if task.id == TASKS[2].id:
                raise ToolUnavailable("no sandbox left")
            return super().open(task)

    result = run({task.id: solve(task) for task in TASKS}, Full(seed=0))
    assert (result.success.value, result.success.count, result.void) == (1.0, len(TASKS) - 1, 1)
    assert TASKS[2].id not in {outcome.rollout.task_id for outcome in result.outcomes}


def test_on_recordings_success_is_the_judges_full_marks_and_says_so() -> None:
    live = run({task.id: solve(task) for task in TASKS})
    rollouts = [outcome.rollout for outcome in live.outcomes]

    def paid(answer: float) -> Reward:
        return Reward(total=0.0, answer=answer, process=0.5, answer_weight=0.0, process_weight=0.0)

    scored = [ScoredRollout(rollout=rollouts[0], reward=paid(0.3 + 0.3 + 0.4))]  # 1, but for rounding
    scored.append(ScoredRollout(rollout=rollouts[1], reward=paid(0.99)))
    scored.append(ScoredRollout(rollout=replace(rollouts[2], stop=StopReason.TURN_BUDGET), reward=paid(1.0)))
    scored.append(ScoredRollout(rollout=replace(rollouts[3], stop=StopReason.MISS_DROPPED), reward=None))
    result = judged(scored, TASKS[:4])
    assert (live.tools, result.tools) == ("live", "cache")
    assert [outcome.succeeded for outcome in result.outcomes] == [True, False, False]
    assert (result.success.count, result.void) == (3, 1)
    assert result.process_accuracy.value == 1.0
    assert abs(result.validation_reward.value - (0.6 * (1.0 + 0.99 + 1.0) / 3 + 0.4 * 0.5)) < 1e-9


def _writes(task: Task) -> bool:
    return any(m.tool in writing_tools(WORLD.tools) for m in task.milestones)
