"""What can be asked of `toolcache`, and which command answers. Nothing heavy is imported before it is known which."""

from __future__ import annotations

import argparse
import asyncio
import re
from collections.abc import Callable
from pathlib import Path

from toolcache.settings import Settings

Run = Callable[[argparse.Namespace, Settings], None]
_TIERS = ("exact", "similar", "approximate")
_UNITS_S = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def parser() -> argparse.ArgumentParser:
    """The whole command line; each command's `run` is set to what answers it."""
    made = argparse.ArgumentParser(
        prog="toolcache",
        description="A tool-result cache for agent RL. Every answer says how far it can be trusted.",
        epilog="Settings also come from the environment: TOOLCACHE_STORE, _URL, _API_KEY, _HOST, _PORT, _ACCESS, "
        "_ADMIN_KEY, _EMBEDDER_DIR, _MAX_BODY_BYTES, _MAX_ITEMS, _MAX_RESULT_BYTES, _MAX_IN_FLIGHT, _MAX_WAITING.",
    )
    commands = made.add_subparsers(dest="command", required=True, metavar="command")
    _add_serve(commands.add_parser("serve", help="serve the cache over HTTP"))
    _add_import(commands.add_parser("import", help="store recorded trajectories, or an export, and learn from them"))
    _add_export(commands.add_parser("export", help="write a namespace with all its entries to a file"))
    _add_lookup(commands.add_parser("lookup", help="ask for one call"))
    _add_explain(commands.add_parser("explain", help="ask for one call, and why it is answered as it is"))
    _add_stats(commands.add_parser("stats", help="show what the cache holds and how far it can be trusted"))
    _add_calibrate(commands.add_parser("calibrate", help="learn anew from what is recorded, and show what came of it"))
    _add_audit(commands.add_parser("audit", help="measure hits and precision on recordings whose truth is known"))
    _add_invalidate(commands.add_parser("invalidate", help="remove entries by tool, tag, environment or age"))
    _add_namespaces(commands.add_parser("namespaces", help="list, put and delete namespaces"))
    _add_keys(commands.add_parser("keys", help="make, list and revoke API keys"))
    _add_embedder(commands.add_parser("embedder", help="prepare the embedding model"))
    return made


def _add_place(command: argparse.ArgumentParser, run: Run) -> None:
    """Where the cache is, for commands that use one."""
    place = command.add_mutually_exclusive_group()
    place.add_argument("--url", help="a running service; without it the store is opened here")
    place.add_argument("--store", help="SQLite file or redis:// URL (default: toolcache.sqlite3)")
    command.add_argument(
        "--api-key", help="what to show the service (better: TOOLCACHE_API_KEY, which `ps` cannot see)"
    )
    command.set_defaults(run=run)


def _add_serve(command: argparse.ArgumentParser) -> None:
    command.add_argument("--host", help="address to listen on (default: 127.0.0.1)")
    command.add_argument("--port", type=int, help="port to listen on (default: 8765; 0 takes a free one)")
    command.add_argument(
        "--store", help="SQLite file, made where missing, or redis:// URL (default: toolcache.sqlite3)"
    )
    command.add_argument(
        "--access",
        choices=("auto", "open", "keys"),
        help="who may use it: whoever reaches it, whoever has a key, or (auto) keys except on a loopback address",
    )
    _add_embedder_dir(command)
    command.set_defaults(run=_serve)


def _serve(given: argparse.Namespace, settings: Settings) -> None:
    from toolcache.commands.serve import serve

    serve(settings)


def _add_import(command: argparse.ArgumentParser) -> None:
    command.add_argument("recordings", type=Path, help="NDJSON of OpenAI chat trajectories, or an export; .gz too")
    command.add_argument("--tools", type=Path, help="tool schemas (default: NAME_tools.json beside the recordings)")
    command.add_argument("--namespace", help="namespace to fill (default: each record's `domain`)")
    command.add_argument("--domain", help="import this domain only, of tools and recordings")
    _add_place(command, _import)


def _import(given: argparse.Namespace, settings: Settings) -> None:
    from toolcache.commands.import_ import import_

    asyncio.run(import_(settings, given.recordings, given.tools, given.namespace, given.domain))


def _add_export(command: argparse.ArgumentParser) -> None:
    command.add_argument("--namespace", required=True)
    command.add_argument(
        "--out", type=Path, help="file to write, compressed if it ends in .gz (default: standard output)"
    )
    _add_place(command, _export)


def _export(given: argparse.Namespace, settings: Settings) -> None:
    from toolcache.commands.export import export

    asyncio.run(export(settings, given.namespace, given.out))


def _add_call(command: argparse.ArgumentParser) -> None:
    command.add_argument("--namespace", required=True)
    command.add_argument("--tool", required=True)
    command.add_argument("--arguments", default="{}", help="JSON object")
    command.add_argument("--environment", required=True, help="fingerprint of the world: code version + initial state")
    command.add_argument("--state", default="", help="state_after of an earlier answer (default: the initial state)")


def _add_lookup(command: argparse.ArgumentParser) -> None:
    _add_call(command)
    _add_place(command, _lookup)


def _lookup(given: argparse.Namespace, settings: Settings) -> None:
    from toolcache.commands.lookup import item, lookup

    asked = item(given.tool, given.arguments, given.environment, given.state)
    asyncio.run(lookup(settings, given.namespace, asked))


def _add_explain(command: argparse.ArgumentParser) -> None:
    _add_call(command)
    command.add_argument("--json", action="store_true", help="print JSON instead of text")
    _add_place(command, _explain)


def _explain(given: argparse.Namespace, settings: Settings) -> None:
    from toolcache.commands.explain import explain
    from toolcache.commands.lookup import item

    asked = item(given.tool, given.arguments, given.environment, given.state)
    asyncio.run(explain(settings, given.namespace, asked, as_json=given.json))


def _add_stats(command: argparse.ArgumentParser) -> None:
    command.add_argument("--namespace", help="only this one")
    command.add_argument("--json", action="store_true", help="print JSON instead of tables")
    _add_place(command, _stats)


def _stats(given: argparse.Namespace, settings: Settings) -> None:
    from toolcache.commands.stats import stats

    asyncio.run(stats(settings, given.namespace, as_json=given.json))


def _add_calibrate(command: argparse.ArgumentParser) -> None:
    command.add_argument("--namespace", required=True)
    _add_place(command, _calibrate)


def _calibrate(given: argparse.Namespace, settings: Settings) -> None:
    from toolcache.commands.calibrate import calibrate

    asyncio.run(calibrate(settings, given.namespace))


def _add_audit(command: argparse.ArgumentParser) -> None:
    command.add_argument("--recordings", type=Path, required=True, help="NDJSON of OpenAI chat trajectories, .gz too")
    command.add_argument("--tools", type=Path, required=True, help="tool schemas with their effects")
    command.add_argument("--domain", help="which domain of the recordings and tools")
    replayed = command.add_mutually_exclusive_group(required=True)
    replayed.add_argument(
        "--replay-models",
        type=lambda text: [each for each in text.split(",") if each],
        default=[],
        metavar="A,B,...",
        help="models whose runs are replayed; all others seed the cache",
    )
    replayed.add_argument(
        "--replay-share",
        type=_share,
        default=0.0,
        metavar="SHARE",
        help="or: this share of all runs is replayed, chosen by a hash of their names (0.2: one in five)",
    )
    command.add_argument(
        "--tiers",
        type=_tiers,
        default=["exact", "similar"],
        metavar="A,B,...",
        help="tiers that may answer (default: exact,similar)",
    )
    command.add_argument(
        "--mask",
        action="append",
        default=[],
        metavar="TOOL.ARGUMENT[=PATTERN]",
        help="try this mask against the policy without it; may be repeated",
    )
    command.add_argument("--json", type=Path, metavar="OUT", help="write the numbers here")
    _add_embedder_dir(command)
    command.set_defaults(run=_audit)


def _audit(given: argparse.Namespace, settings: Settings) -> None:
    import json

    from toolcache.commands.audit import audit_file
    from toolcache.commands.failure import writing
    from toolcache.core.tools import Tier

    audited = asyncio.run(
        audit_file(
            given.recordings,
            given.tools,
            given.domain,
            given.replay_models,
            [Tier(each) for each in given.tiers],
            replay_share=given.replay_share,
            masks=given.mask,
            embedder_dir=settings.embedder_dir,
        )
    )
    if given.json is not None:
        with writing(given.json, "--json"):
            given.json.write_text(json.dumps(audited.as_json(), indent=2) + "\n", encoding="utf-8")


def _add_invalidate(command: argparse.ArgumentParser) -> None:
    command.add_argument("--namespace", required=True)
    command.add_argument("--tool", help="entries of this tool")
    command.add_argument("--tag", help="entries recorded with this tag")
    command.add_argument("--environment", help="entries of this environment")
    command.add_argument(
        "--older-than",
        dest="older_than_s",
        type=seconds,
        metavar="AGE",
        help="entries last recorded longer ago than this: 3600s, 90m, 2h, 7d",
    )
    command.add_argument("--all", dest="everything", action="store_true", help="every entry of the namespace")
    _add_place(command, _invalidate)


def _invalidate(given: argparse.Namespace, settings: Settings) -> None:
    from toolcache.commands.invalidate import invalidate

    asyncio.run(
        invalidate(
            settings,
            given.namespace,
            tool=given.tool,
            tag=given.tag,
            environment=given.environment,
            older_than_s=given.older_than_s,
            everything=given.everything,
        )
    )


def _add_namespaces(command: argparse.ArgumentParser) -> None:
    actions = command.add_subparsers(dest="action", required=True, metavar="list|put|delete")
    _add_place(actions.add_parser("list", help="names of all namespaces"), _list_namespaces)
    put = actions.add_parser(
        "put", help="create a namespace from a file of tool schemas, or bring its tools up to date"
    )
    put.add_argument("tools", type=Path, help="tool schemas with their effects")
    put.add_argument("--namespace", help="its name (default: the file's domains, one namespace each)")
    put.add_argument("--domain", help="only this domain of the file")
    _add_place(put, _put_namespaces)
    delete = actions.add_parser("delete", help="forget a namespace with all its entries")
    delete.add_argument("name")
    delete.add_argument("--yes", action="store_true", help="really")
    _add_place(delete, _delete_namespace)


def _list_namespaces(given: argparse.Namespace, settings: Settings) -> None:
    from toolcache.commands.namespaces import show

    asyncio.run(show(settings))


def _put_namespaces(given: argparse.Namespace, settings: Settings) -> None:
    from toolcache.commands.namespaces import put

    asyncio.run(put(settings, given.tools, given.namespace, given.domain))


def _delete_namespace(given: argparse.Namespace, settings: Settings) -> None:
    from toolcache.commands.namespaces import delete

    asyncio.run(delete(settings, given.name, is_meant=given.yes))


def _add_keys(command: argparse.ArgumentParser) -> None:
    actions = command.add_subparsers(dest="action", required=True, metavar="create|list|revoke")
    create = actions.add_parser("create", help="make a key and print it; it is shown this once")
    create.add_argument("--name", required=True, help="whose key it is, for people")
    create.add_argument("--role", choices=("read", "write", "admin"), default="read", help="default: read")
    create.add_argument(
        "--namespace",
        dest="namespaces",
        action="append",
        required=True,
        help="where it holds; may be repeated; '*': everywhere",
    )
    _add_place(create, _create_key)
    _add_place(actions.add_parser("list", help="all keys, without their secrets"), _list_keys)
    revoke = actions.add_parser("revoke", help="make a key useless")
    revoke.add_argument("id", help="what `keys list` shows first")
    _add_place(revoke, _revoke_key)


def _create_key(given: argparse.Namespace, settings: Settings) -> None:
    from toolcache.commands.keys import create

    asyncio.run(create(settings, given.name, given.role, given.namespaces))


def _list_keys(given: argparse.Namespace, settings: Settings) -> None:
    from toolcache.commands.keys import show

    asyncio.run(show(settings))


def _revoke_key(given: argparse.Namespace, settings: Settings) -> None:
    from toolcache.commands.keys import revoke

    asyncio.run(revoke(settings, given.id))


def _add_embedder(command: argparse.ArgumentParser) -> None:
    actions = command.add_subparsers(dest="action", required=True, metavar="convert")
    convert = actions.add_parser("convert", help="write the model as OpenVINO runs it, for machines without torch")
    convert.add_argument("--out", type=Path, required=True, help="folder to write it to")
    convert.set_defaults(run=_convert)


def _convert(given: argparse.Namespace, settings: Settings) -> None:
    from toolcache.commands.embedder import convert

    convert(given.out)


def _add_embedder_dir(command: argparse.ArgumentParser) -> None:
    command.add_argument("--embedder-dir", type=Path, help="what `toolcache embedder convert` wrote")


# -- words with a form of their own ------------------------------------------------------------------------------------


def seconds(text: str) -> float:
    """An age as people write it.

    >>> seconds("3600s"), seconds("90m"), seconds("2h"), seconds("7d"), seconds("1.5h")
    (3600.0, 5400.0, 7200.0, 604800.0, 5400.0)
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no age: a number with s, m, h or d, as in 3600s, 90m, 2h, 7d")
    return float(found[1]) * _UNITS_S[found[2]]


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = 0.0
    if not 0.0 < share < 1.0:
        raise argparse.ArgumentTypeError(f"{text!r} is no share: a number between 0 and 1")
    return share


def _tiers(text: str) -> list[str]:
    tiers = text.split(",")
    if unknown := sorted(set(tiers) - set(_TIERS)):
        raise argparse.ArgumentTypeError(f"no tier {unknown[0]!r}; there are {', '.join(_TIERS)}")
    return tiers
