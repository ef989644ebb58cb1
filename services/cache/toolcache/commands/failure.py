"""The one way a command ends badly: a message for people and exit status 1."""

from __future__ import annotations


class CommandFailed(Exception):
    """What went wrong and what to do, in one line."""
