"""The `cacherl` program. Nothing heavy is imported before the words of the command are known to be right."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from cacherl.run.commands import add_commands, run_command

RUN_FILES = Path(__file__).parents[1] / "runs"
"""The published run files, beside the package in a checkout."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status. Expected failures are one line on standard error."""
    arguments, settings = _parser().parse_known_args(argv)
    from cacherl.errors import CacheRLError
    from toolcache_client import CacheError

    try:
        if arguments.command == "demo":
            _demo(arguments, settings)
        else:
            run_command(arguments, settings)
    except (CacheRLError, CacheError) as error:
        sys.stderr.write(f"cacherl: {error}\n")
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _demo(arguments: argparse.Namespace, settings: Sequence[str]) -> None:
    from cacherl.config import read_run
    from cacherl.demo.settings import DemoRun

    run = read_run(arguments.run, DemoRun, settings)
    from cacherl.demo.run import run_demo

    run_demo(run, arguments.out, arguments.cache_url)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="cacherl", description="Train tool-calling models on cached tool results.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    demo = commands.add_parser(
        "demo",
        help="record, import, SFT, GRPO on cached answers, evaluate live: a tiny model, ten minutes on two cores",
        epilog="Any setting of the run file can be given as a flag: --grpo.steps 20 --seed 1",
    )
    demo.add_argument("--run", type=Path, default=RUN_FILES / "demo.toml", help="run file (default: the demo's own)")
    demo.add_argument("--out", type=Path, default=Path("runs/demo"), help="folder for results (default: runs/demo)")
    demo.add_argument("--cache-url", help="a running cache service (default: an own one for as long as the run lasts)")
    add_commands(commands, RUN_FILES / "tiny.toml")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
