"""The support desk answers deterministically, and its tasks' truth is reachable, checked and unseen in training."""

from collections.abc import Mapping
from typing import Any

import pytest

from cacherl.worlds.support_desk import SupportDesk, facts
from cacherl.worlds.world import Task


@pytest.fixture(scope="module")
def world() -> SupportDesk:
    return SupportDesk(seed=3)


def undo_tasks(world: SupportDesk, outcome: str) -> list[Task]:
    return [task for task in world.tasks("train", 400) if outcome in task.expected_answer]


@pytest.mark.parametrize("split", ["train", "held_out"])
def test_the_milestones_and_the_expected_answer_of_every_task_succeed(world: SupportDesk, split: Any) -> None:
    for task in world.tasks(split, 60):
        session = world.open(task)
        results = [session.execute(step.tool, step.arguments) for step in task.milestones]
        assert not any(result.is_error for result in results)
        assert session.succeeded(task.expected_answer)


def test_no_held_out_task_has_a_desk_that_a_training_task_has(world: SupportDesk) -> None:
    train = {task.environment for task in world.tasks("train", 500)}
    held_out = {task.environment for task in world.tasks("held_out", 100)}
    assert len(train) == 500
    assert not train & held_out


def test_one_order_number_is_another_order_at_another_desk(world: SupportDesk) -> None:
    answers = {world.open(task).execute("get_order", {"order_id": "17"}).content for task in world.tasks("train", 100)}
    assert len(answers - {"Error: no such order"}) > 5


def test_fewer_tasks_are_the_first_of_more(world: SupportDesk) -> None:
    assert world.tasks("train", 5) == world.tasks("train", 50)[:5]


def test_stopping_a_shipped_order_is_possible_and_never_a_success(world: SupportDesk) -> None:
    task = undo_tasks(world, "kept")[0]
    session = world.open(task)
    assert session.execute("cancel_order", {"order_id": task.details["order_id"]}).content == "cancelled."
    assert not session.succeeded(task.expected_answer)


def test_a_right_answer_without_the_write_is_no_success(world: SupportDesk) -> None:
    task = undo_tasks(world, "cancelled")[0]
    assert not world.open(task).succeeded(task.expected_answer)


def test_an_answer_that_claims_two_outcomes_is_no_success(world: SupportDesk) -> None:
    task = undo_tasks(world, "cancelled")[0]
    session = world.open(task)
    session.execute("cancel_order", {"order_id": task.details["order_id"]})
    assert not session.succeeded("Your order is cancelled and returned.")


def test_a_write_is_seen_by_later_reads_of_its_own_session_only(world: SupportDesk) -> None:
    task = undo_tasks(world, "cancelled")[0]
    order = {"order_id": task.details["order_id"]}
    session, other = world.open(task), world.open(task)
    session.execute("cancel_order", order)
    assert session.execute("get_order", order).content.endswith(": cancelled")
    assert other.execute("get_order", order).content.endswith(": pending")


@pytest.mark.parametrize(
    ("tool", "arguments", "content"),
    [
        ("get_order", {"order_id": "99"}, "Error: no such order"),
        ("find_order", {"email": "nobody@mail.com", "item": "lamp"}, "Error: no such customer"),
        ("get_order", {"order": "10"}, "Error: get_order takes order_id"),
        ("get_order", {"order_id": 7}, "Error: get_order takes order_id"),
        ("drop_table", {}, "Error: no tool drop_table"),
    ],
)
def test_a_refused_call_is_an_error_result(
    world: SupportDesk, tool: str, arguments: Mapping[str, Any], content: str
) -> None:
    result = world.open(world.tasks("train", 1)[0]).execute(tool, arguments)
    assert (result.content, result.is_error) == (content, True)


def test_a_refused_write_changes_nothing_and_hides_the_status(world: SupportDesk) -> None:
    task = undo_tasks(world, "cancelled")[0]
    session = world.open(task)
    refused = session.execute("return_order", {"order_id": task.details["order_id"]})
    assert refused.content == "Error: not allowed in this status"
    session.execute("cancel_order", {"order_id": task.details["order_id"]})
    assert session.succeeded(task.expected_answer)


def test_the_help_centre_reads_item_and_topic_whatever_the_words(world: SupportDesk) -> None:
    session = world.open(world.tasks("train", 1)[0])

    def ask(item: str, topic: str, question: str) -> str:
        return session.execute("search_help", {"item": item, "topic": topic, "question": question}).content

    assert ask("lamp", "refund", "how long?") == ask("lamp", "refund", "in days, please")
    assert ask("lamp", "refund", "") != ask("lamp", "repair", "")
    assert ask("sword", "refund", "") == "Error: no such article"


def test_the_environment_depends_on_the_desk_and_on_nothing_that_happened() -> None:
    one = SupportDesk(seed=1)
    task = one.tasks("train", 1)[0]
    one.open(task).execute("cancel_order", {"order_id": task.details["order_id"]})
    assert one.tasks("train", 1)[0].environment == task.environment
    assert SupportDesk(seed=2).tasks("train", 1)[0].environment != task.environment


def test_every_tool_declares_an_effect(world: SupportDesk) -> None:
    effects = {tool["function"]["name"]: tool["effect"] for tool in world.tools}
    assert effects == {
        "find_order": "read",
        "get_order": "read",
        "cancel_order": "write",
        "return_order": "write",
        "make_label": "pure",
        "search_help": "read",
    }


def test_facts_are_outcomes_and_numbers_in_any_case() -> None:
    assert facts("Returned! Your label: 27; 14 days.") == {"returned", "27", "14"}
