from collections.abc import Callable, Mapping
from typing import Any

import pytest

from cacherl.reward.answer import JudgeWeights, MilestoneJudge, states_truth
from cacherl.rollout.rollout import CallRecord, Rollout
from cacherl.worlds.world import Milestone, Task

MakeCall = Callable[..., CallRecord]
MakeRollout = Callable[..., Rollout]
JUDGE = MilestoneJudge(writes=frozenset({"cancel"}), free_text=frozenset({("search", "question")}))


def task(*milestones: tuple[str, Mapping[str, Any]], truth: str = "It is cancelled.") -> Task:
    steps = tuple(Milestone(tool=tool, arguments=arguments) for tool, arguments in milestones)
    return Task(id="t", environment="v1", prompt="?", milestones=steps, expected_answer=truth, details={})


CANCEL_7 = task(("look", {"id": "7"}), ("cancel", {"id": "7"}))


def test_the_right_calls_and_the_truth_are_worth_one(make_call: MakeCall, make_rollout: MakeRollout) -> None:
    done = make_rollout(make_call("look", {"id": "7"}), make_call("cancel", {"id": "7"}), answer="It is cancelled.")
    assert JUDGE.score(done, CANCEL_7) == pytest.approx(1.0)


def test_one_write_too_many_costs_the_writes(make_call: MakeCall, make_rollout: MakeRollout) -> None:
    calls = [make_call("look", {"id": "7"}), make_call("cancel", {"id": "7"}), make_call("cancel", {"id": "8"})]
    assert JUDGE.score(make_rollout(*calls, answer="It is cancelled."), CANCEL_7) == pytest.approx(0.3 + 0.4)


def test_a_refused_write_changed_nothing(make_call: MakeCall, make_rollout: MakeRollout) -> None:
    calls = [
        make_call("look", {"id": "7"}),
        make_call("cancel", {"id": "8"}, is_error=True),
        make_call("cancel", {"id": "7"}),
    ]
    assert JUDGE.score(make_rollout(*calls, answer="It is cancelled."), CANCEL_7) == pytest.approx(1.0)


def test_a_lie_after_half_the_path_worked_out_by_hand(make_call: MakeCall, make_rollout: MakeRollout) -> None:
    said = make_rollout(make_call("look", {"id": "7"}), answer="It was kept.")
    # recall 1/2, writes wrong (none made, one due), truth not said: 0.3 * 0.5
    assert JUDGE.score(said, CANCEL_7) == pytest.approx(0.15)


def test_the_wording_of_free_text_does_not_matter(make_call: MakeCall, make_rollout: MakeRollout) -> None:
    asked = make_call("search", {"item": "lamp", "question": "how long?"})
    ask = task(("search", {"item": "lamp", "question": "warranty"}), truth="12 days")
    assert JUDGE.score(make_rollout(asked, answer="It takes 12 days."), ask) == pytest.approx(1.0)


def test_leaked_thinking_is_worth_nothing(make_call: MakeCall, make_rollout: MakeRollout) -> None:
    calls = [make_call("look", {"id": "7"}), make_call("cancel", {"id": "7"})]
    assert JUDGE.score(make_rollout(*calls, answer="</think> It is cancelled."), CANCEL_7) == 0.0


@pytest.mark.parametrize(
    ("answer", "truth", "holds"),
    [("112 days", "12 days", False), ("a 12 days b", "12 Days.", True), ("", "", False), ("x", "", True)],
)
def test_the_truth_is_found_by_whole_words(answer: str, truth: str, holds: bool) -> None:
    assert states_truth(answer, truth) is holds


def test_judge_weights_that_do_not_sum_to_one_are_refused() -> None:
    with pytest.raises(ValueError, match="sum to 1"):
        JudgeWeights(truth=0.5)
