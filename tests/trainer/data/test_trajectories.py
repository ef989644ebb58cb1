import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from cacherl.adapters.byte_tokenizer import make_byte_tokenizer
from cacherl.adapters.hf_tokenizer import HFTokenizer
from cacherl.data.sft_examples import sft_examples
from cacherl.data.trajectories import read_trajectories, texts
from cacherl.errors import TrajectoriesUnreadable
from cacherl.rollout.renderer import Renderer


def record(uid: str, **changes: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": "hi\u2028there"}, {"role": "assistant", "content": "Yes."}]
    return {"uid": uid, "task_id": "t", "model": "expert", "reward": 1, "messages": messages, **changes}


def lines(*records: dict[str, Any]) -> bytes:
    return "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records).encode()


@pytest.mark.parametrize("suffix", [".ndjson", ".ndjson.gz"])
def test_a_recording_is_read_plain_or_zipped(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"r{suffix}"
    data = lines(record("a"), record("b", reward=0.5))
    path.write_bytes(gzip.compress(data) if suffix.endswith("gz") else data)
    recording = read_trajectories(path)
    assert [(t.uid, t.reward) for t in recording.trajectories] == [("a", 1.0), ("b", 0.5)]
    assert recording.rejected == ()


def test_a_last_line_that_was_cut_off_is_told_and_the_rest_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "r.ndjson"
    path.write_bytes(lines(record("a"), record("b"), record("c"))[:-25])
    recording = read_trajectories(path)
    assert [t.uid for t in recording.trajectories] == ["a", "b"]
    [rejected] = recording.rejected
    assert (rejected.line, rejected.was_cut_off) == (3, True)


def test_a_zipped_recording_that_was_cut_off_gives_what_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "r.ndjson.gz"
    path.write_bytes(gzip.compress(lines(*(record(str(i)) for i in range(3000))), compresslevel=1)[:-400])
    recording = read_trajectories(path)
    assert 0 < len(recording.trajectories) < 3000
    assert recording.rejected[0].was_cut_off


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (b"[]\n", "messages"),
        (b"\xff{}\n", "utf-8"),
        (lines(record("x", messages=[{"role": "robot"}])), "message 0 has no role"),
        (lines(record("x", messages=[{"role": "tool", "content": None}])), "message 0 (tool) has no text"),
        (lines(record("x", messages=[{"role": "assistant", "tool_calls": [{}]}])), "without name"),
        (lines(record("x", reward="high")), "reward"),
    ],
)
def test_a_line_that_is_no_trajectory_is_told_with_its_number(tmp_path: Path, bad: bytes, why: str) -> None:
    path = tmp_path / "r.ndjson"
    path.write_bytes(lines(record("a")) + b"\n" + bad + lines(record("b")))
    recording = read_trajectories(path)
    assert [t.uid for t in recording.trajectories] == ["a", "b"]
    [rejected] = recording.rejected
    assert (rejected.line, rejected.was_cut_off) == (3, False)
    assert why in rejected.why


def test_nothing_usable_is_an_error_that_says_why(tmp_path: Path) -> None:
    path = tmp_path / "r.ndjson"
    path.write_bytes(b"{}\n")
    with pytest.raises(TrajectoriesUnreadable, match=r"no usable trajectory in it; line 1"):
        read_trajectories(path)
    with pytest.raises(TrajectoriesUnreadable, match="absent"):
        read_trajectories(tmp_path / "absent.ndjson")


def test_examples_are_counted_filtered_and_never_cut(tmp_path: Path) -> None:
    path = tmp_path / "r.ndjson"
    long = [{"role": "user", "content": "x" * 500}, {"role": "assistant", "content": "Yes."}]
    unanswered = [{"role": "user", "content": "hi"}]
    path.write_bytes(
        lines(record("a"), record("b", reward=0), record("c", messages=long), record("d", messages=unanswered))
    )
    renderer = Renderer(HFTokenizer(make_byte_tokenizer()))
    trajectories = read_trajectories(path).trajectories
    found = sft_examples(trajectories, renderer, max_tokens=200, is_wanted=lambda t: t.reward == 1)
    assert (len(found.examples), found.unwanted, found.too_long, found.without_assistant) == (1, 1, 1, 1)
    assert found.examples[0] == renderer.example(trajectories[0].messages)


def test_texts_are_everything_that_was_said_and_called(tmp_path: Path) -> None:
    call = {"id": "1", "function": {"name": "get", "arguments": '{"id": 7}'}}
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": None, "tool_calls": [call]}]
    (tmp_path / "r.ndjson").write_bytes(lines(record("a", messages=messages)))
    said = list(texts(read_trajectories(tmp_path / "r.ndjson").trajectories))
    assert said == ["hi", "", '{"name": "get", "arguments": "{\\"id\\": 7}"}']
