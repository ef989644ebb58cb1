"""Lines of recordings, plain and compressed, whole and damaged."""

from __future__ import annotations

import gzip
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from toolcache.adapters.recordings import Line, RecordingsUnreadable, in_chat_format, lines, size_bytes
from toolcache.core.entries import Result
from toolcache.core.trajectories import Trajectory, trajectory


def test_blank_lines_are_passed_over_and_numbers_are_those_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    path.write_bytes(b'{"a": 1}\n\n  \r\n{"b": 2}')
    assert [(line.number, line.text) for line in lines(path)] == [(1, b'{"a": 1}\n'), (4, b'{"b": 2}')]
    assert list(lines(path))[-1].read_bytes == size_bytes(path) == 22


def test_a_compressed_file_reads_the_same(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl.gz"
    path.write_bytes(gzip.compress(b"1\n2\n"))
    assert [line.text for line in lines(path)] == [b"1\n", b"2\n"]


def test_a_cut_off_compressed_file_gives_what_can_be_read_and_then_says_where(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl.gz"
    whole = gzip.compress(
        b"".join(b"%d %s\n" % (n, hashlib.sha256(b"%d" % n).hexdigest().encode()) for n in range(3000))
    )
    path.write_bytes(whole[: len(whole) // 2])
    read: list[Line] = []
    with pytest.raises(RecordingsUnreadable, match="unreadable after line") as caught:
        for line in lines(path):
            read.append(line)  # noqa: PERF402 - what was read before the error counts
    assert 0 < len(read) < 3000
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("name", ["missing.jsonl", "missing.jsonl.gz"])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(RecordingsUnreadable, match=name):
        list(lines(tmp_path / name))
    with pytest.raises(RecordingsUnreadable, match=name):
        size_bytes(tmp_path / name)


def test_a_file_that_only_pretends_to_be_compressed_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl.gz"
    path.write_bytes(b'{"a": 1}\n')
    with pytest.raises(RecordingsUnreadable, match="line 0"):
        list(lines(path))


# -- BFCL --------------------------------------------------------------------------------------------------------------


def task(*turns: list[tuple[str, dict[str, Any], str, bool]], **more: Any) -> bytes:
    calls = [
        [
            {"name": name, "arguments": arguments, "result": result, "error": error}
            for name, arguments, result, error in turn
        ]
        for turn in turns
    ]
    record = {
        "id": "multi_turn_base_7",
        "category": "multi_turn_base",
        "involved_classes": ["TwitterAPI", "GorillaFileSystem"],
        "initial_config": {"TwitterAPI": {"tweets": 3}},
        "ground_truth": calls,
    }
    return json.dumps(record | more).encode()


def read(line: bytes) -> Trajectory:
    return trajectory(in_chat_format(line))


def test_a_task_of_bfcl_is_a_trajectory_of_its_true_calls() -> None:
    found = read(task([("cd", {"folder": "a"}, "{}", False), ("ls", {}, "[]", False)], [], [("rm", {}, "no", True)]))
    assert (found.uid, found.domain, found.model) == ("multi_turn_base_7", "bfcl", "ground_truth")
    assert [(step.tool, step.arguments, step.result) for step in found.steps] == [
        ("cd", {"folder": "a"}, Result(content="{}")),
        ("ls", {}, Result(content="[]")),
        ("rm", {}, Result(content="no", is_error=True)),
    ]


def test_the_environment_of_a_task_is_its_classes_and_configuration_and_whether_its_context_is_long() -> None:
    known = read(task()).environment
    assert known.startswith("bfcl-v4/")
    same = task(
        id="multi_turn_miss_func_7",
        category="multi_turn_miss_func",
        involved_classes=["GorillaFileSystem", "TwitterAPI"],
    )
    assert read(same).environment == known
    others = [
        task(initial_config={"TwitterAPI": {"tweets": 4}}),
        task(involved_classes=["TwitterAPI"]),
        task(category="multi_turn_long_context"),
    ]
    assert len({known, *(read(each).environment for each in others)}) == 4


@pytest.mark.parametrize(
    "line",
    [
        b'{"messages": [], "note": "ground_truth"}',
        b'{"messages": [], "ground_truth": [], "initial_config": {}}',
        b'{"ground_truth": []}',
        b'{"ground_truth": 5, "initial_config": {}, "id": "x", "involved_classes": []}',
        b'{"ground_truth": [[{"name": "cd"}]], "initial_config": {}, "id": "x", "involved_classes": []}',
        b'["ground_truth"]',
        b'{"ground_truth": [',
    ],
)
def test_other_lines_are_left_as_they_are(line: bytes) -> None:
    assert in_chat_format(line) is line


def test_a_file_of_tasks_reads_like_any_other(tmp_path: Path) -> None:
    path = tmp_path / "bfcl.jsonl.gz"
    path.write_bytes(gzip.compress(task([("ls", {}, "[]", False)]) + b"\n"))
    (line,) = lines(path)
    assert [step.tool for step in trajectory(line.text).steps] == ["ls"]
