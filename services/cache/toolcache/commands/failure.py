"""The one way a command ends badly: a message for people and exit status 1."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class CommandFailed(Exception):
    """What went wrong and what to do, in one line."""


@contextmanager
def writing(path: Path, flag: str) -> Iterator[None]:
    """Around the writing of an output file, which `flag` names. Raises CommandFailed where it cannot be written."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise CommandFailed(f"{path}: cannot be written ({error.strerror}); name another with {flag}") from error
