from dataclasses import dataclass, field
from typing import Any

import pytest

from cacherl.evaluate.milestones import match_milestones
from cacherl.worlds.world import Milestone


@dataclass
class Call:
    name: str
    arguments: dict[str, Any] = field(default_factory=dict)


@pytest.mark.parametrize(
    ("called", "due", "recall", "precision"),
    [
        ("abc", "abc", 1.0, 1.0),
        ("xaxbxc", "abc", 1.0, 0.5),
        ("ba", "ab", 0.5, 0.5),
        ("bc", "abc", 2 / 3, 1.0),
        ("aa", "a", 1.0, 0.5),
        ("a", "aa", 0.5, 1.0),
        ("", "a", 0.0, 0.0),
        ("", "", 1.0, 1.0),
        ("a", "", 1.0, 0.0),
    ],
)
def test_recall_and_precision(called: str, due: str, recall: float, precision: float) -> None:
    match = match_milestones([Call(c) for c in called], [Milestone(tool=m, arguments={}) for m in due])
    assert (match.recall, match.precision) == (pytest.approx(recall), pytest.approx(precision))


def test_other_arguments_are_another_call() -> None:
    due = [Milestone(tool="a", arguments={"id": "1"})]
    assert match_milestones([Call("a", {"id": "2"}), Call("a", {"id": "1", "x": 0})], due).matched == 0
    assert match_milestones([Call("a", {"id": "1"})], due).matched == 1
