"""The `toolcache` program: one command, its settings, and expected failures in one line."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import replace

from toolcache.commands.arguments import parser
from toolcache.settings import Settings, SettingsInvalid

_FLAGS = ("host", "port", "store", "url", "api_key", "access", "embedder_dir")
"""Flags that win over the setting of the same name."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status. Expected failures are one line on standard error."""
    arguments = parser().parse_args(argv)
    # Heavy imports wait until the words of the command are known to be right.
    from toolcache.adapters.recordings import RecordingsUnreadable
    from toolcache.adapters.tool_files import ToolFileInvalid
    from toolcache.commands.failure import CommandFailed
    from toolcache.core.ports import StoreUnavailable
    from toolcache_client import CacheError

    try:
        arguments.run(arguments, _settings(arguments))
        sys.stdout.flush()
    except (
        CommandFailed,
        CacheError,
        StoreUnavailable,
        ToolFileInvalid,
        RecordingsUnreadable,
        SettingsInvalid,
    ) as error:
        sys.stderr.write(f"toolcache: {' '.join(str(error).split())}\n")
        return 1
    except BrokenPipeError:  # whoever read our output has had enough, as `head` has
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _settings(arguments: argparse.Namespace) -> Settings:
    settings = Settings.read(os.environ)
    given = {name: getattr(arguments, name, None) for name in _FLAGS}
    if given["store"] is not None and given["url"] is None:
        given["url"] = ""  # a flag wins over the environment, also where it names the other kind of place
    return replace(settings, **{name: value for name, value in given.items() if value is not None})


if __name__ == "__main__":
    raise SystemExit(main())
