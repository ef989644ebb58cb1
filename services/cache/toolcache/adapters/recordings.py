"""Lines of a file of recordings, plain or gzip, with the bytes read so far for a progress bar."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


class RecordingsUnreadable(Exception):
    """The file cannot be opened, or its compression is damaged. The message says how far it could be read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    number: int
    """1-based."""
    text: bytes
    read_bytes: int
    """Bytes of the file (compressed where it is) consumed so far."""


def lines(path: Path) -> Iterator[Line]:
    """The file's lines that are not blank. Raises RecordingsUnreadable, after the lines that could be read."""
    number = 0
    try:
        with path.open("rb") as raw, gzip.open(raw) if path.suffix == ".gz" else raw as file:
            for number, text in enumerate(file, start=1):
                if text.strip():
                    yield Line(number=number, text=text, read_bytes=raw.tell())
    except (OSError, EOFError, zlib.error) as error:
        raise RecordingsUnreadable(f"{path}: unreadable after line {number} ({error})") from error


def size_bytes(path: Path) -> int:
    """Raises RecordingsUnreadable."""
    try:
        return path.stat().st_size
    except OSError as error:
        raise RecordingsUnreadable(f"{path}: cannot be read ({error})") from error
