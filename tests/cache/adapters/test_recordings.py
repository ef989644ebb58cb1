"""Lines of recordings, plain and compressed, whole and damaged."""

from __future__ import annotations

import gzip
import hashlib
from pathlib import Path

import pytest

from toolcache.adapters.recordings import Line, RecordingsUnreadable, lines, size_bytes


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
