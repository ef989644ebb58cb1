"""The `toolcache` program: what can be asked of it, and which command answers."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from toolcache.settings import Settings, SettingsInvalid


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status. Expected failures are one line on standard error."""
    arguments = _parser().parse_args(argv)
    # Heavy imports wait until the words of the command are known to be right.
    from toolcache.adapters.recordings import RecordingsUnreadable
    from toolcache.adapters.tool_files import ToolFileInvalid
    from toolcache.commands.failure import CommandFailed
    from toolcache.core.ports import StoreUnavailable
    from toolcache_client import CacheError

    try:
        _run(arguments, _settings(arguments))
    except (
        CommandFailed,
        CacheError,
        StoreUnavailable,
        ToolFileInvalid,
        RecordingsUnreadable,
        SettingsInvalid,
    ) as error:
        sys.stderr.write(f"toolcache: {error}\n")
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _settings(arguments: argparse.Namespace) -> Settings:
    settings = Settings.read(os.environ)
    given = {name: getattr(arguments, name, None) for name in ("host", "port", "store", "url")}
    if given["store"] is not None and given["url"] is None:
        given["url"] = ""  # a flag wins over the environment, also where it names the other kind of place
    return replace(settings, **{name: value for name, value in given.items() if value is not None})


def _run(arguments: argparse.Namespace, settings: Settings) -> None:
    match arguments.command:
        case "serve":
            from toolcache.commands.serve import serve

            serve(settings)
        case "import":
            from toolcache.commands.import_ import import_

            asyncio.run(import_(settings, arguments.recordings, arguments.tools, arguments.namespace, arguments.domain))
        case "lookup":
            from toolcache.commands.lookup import lookup

            asyncio.run(
                lookup(
                    settings,
                    arguments.namespace,
                    arguments.tool,
                    arguments.arguments,
                    arguments.environment,
                    arguments.state,
                )
            )
        case "stats":
            from toolcache.commands.stats import stats

            asyncio.run(stats(settings, arguments.namespace, as_json=arguments.json))
        case "audit":
            from toolcache.commands.audit import audit_file
            from toolcache.core.tools import Tier

            found = asyncio.run(
                audit_file(
                    arguments.recordings,
                    arguments.tools,
                    arguments.domain,
                    arguments.replay_models,
                    [Tier(each) for each in arguments.tiers],
                )
            )
            if arguments.json is not None:
                _write(arguments.json, json.dumps(found.as_json(), indent=2) + "\n")


def _write(path: Path, text: str) -> None:
    from toolcache.commands.failure import CommandFailed

    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise CommandFailed(f"{path}: cannot be written ({error.strerror}); name another with --json") from error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="toolcache",
        description="A tool-result cache for agent RL. Every answer says how far it can be trusted.",
        epilog="Settings also come from TOOLCACHE_HOST, _PORT, _STORE, _URL, _MAX_BODY_BYTES and _MAX_ITEMS.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    _add_serve(commands.add_parser("serve", help="serve the cache over HTTP"))
    _add_import(commands.add_parser("import", help="store recorded trajectories and learn from them"))
    _add_lookup(commands.add_parser("lookup", help="ask for one call"))
    _add_stats(commands.add_parser("stats", help="show what the cache holds and how far it can be trusted"))
    _add_audit(commands.add_parser("audit", help="measure hits and precision on recordings whose truth is known"))
    return parser


def _add_place(parser: argparse.ArgumentParser) -> None:
    place = parser.add_mutually_exclusive_group()
    place.add_argument("--url", help="a running service; without it the store is opened here")
    place.add_argument("--store", type=Path, help="SQLite file (default: toolcache.sqlite3)")


def _add_serve(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--host", help="address to listen on (default: 127.0.0.1; there is no access control yet)")
    parser.add_argument("--port", type=int, help="port to listen on (default: 8765; 0 takes a free one)")
    parser.add_argument("--store", type=Path, help="SQLite file, made where missing (default: toolcache.sqlite3)")


def _add_import(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recordings", type=Path, help="NDJSON of OpenAI chat trajectories, .gz too")
    parser.add_argument("--tools", type=Path, help="tool schemas (default: NAME_tools.json beside the recordings)")
    parser.add_argument("--namespace", help="namespace to fill (default: each record's `domain`)")
    parser.add_argument("--domain", help="import this domain only, of tools and recordings")
    _add_place(parser)


def _add_lookup(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--namespace", required=True)
    parser.add_argument("--tool", required=True)
    parser.add_argument("--arguments", default="{}", help="JSON object")
    parser.add_argument("--environment", required=True, help="fingerprint of the world: code version + initial state")
    parser.add_argument("--state", default="", help="state_after of an earlier answer (default: the initial state)")
    _add_place(parser)


def _add_stats(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--namespace", help="only this one")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    _add_place(parser)


def _tiers(text: str) -> list[str]:
    tiers = text.split(",")
    if unknown := sorted(set(tiers) - {"exact", "similar", "approximate"}):
        raise argparse.ArgumentTypeError(f"no tier {unknown[0]!r}; there are exact, similar, approximate")
    return tiers


def _add_audit(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--recordings", type=Path, required=True, help="NDJSON of OpenAI chat trajectories, .gz too")
    parser.add_argument("--tools", type=Path, required=True, help="tool schemas with their effects")
    parser.add_argument("--domain", help="which domain of the recordings and tools")
    parser.add_argument(
        "--replay-models",
        type=lambda text: [each for each in text.split(",") if each],
        required=True,
        metavar="A,B,...",
        help="models whose runs are replayed; all others seed the cache",
    )
    parser.add_argument(
        "--tiers",
        type=_tiers,
        default=["exact", "similar"],
        metavar="A,B,...",
        help="tiers that may answer (default: exact,similar)",
    )
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the numbers here")


if __name__ == "__main__":
    raise SystemExit(main())
