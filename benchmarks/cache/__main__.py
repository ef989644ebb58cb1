"""`make bench`: measure, print a table, write benchmarks/results/cache.json."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.cache import inside, scenarios, servers

OUT = Path("benchmarks/results/cache.json")


def main() -> None:
    """Run the chosen scenarios; results of the others are kept."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", metavar="A,B,...", help="exact, history, size, similar, pauses, sdk")
    parser.add_argument("--large", type=int, default=1_000_000, help="entries of the large store")
    arguments = parser.parse_args()
    console = Console()
    found: dict[str, Any] = json.loads(OUT.read_text()) if arguments.only and OUT.exists() else {}
    found["machine"] = machine()
    for name, measure in _scenarios(arguments.large).items():
        if not arguments.only or name in arguments.only.split(","):
            console.print(f"measuring {name} ...")
            with ExitStack() as stack:
                folder = Path(stack.enter_context(scenarios.scratch()))
                found[name] = measure(stack, folder)
            OUT.write_text(json.dumps(found, indent=2) + "\n")
    console.print(table(found))


def _scenarios(large: int) -> dict[str, Callable[[ExitStack, Path], dict[str, Any]]]:
    def exact(stack: ExitStack, folder: Path) -> dict[str, Any]:
        return scenarios.exact(stack, folder, stack.enter_context(servers.redis(folder)))

    return {
        "exact": exact,
        "history": scenarios.history,
        "size": lambda stack, folder: scenarios.size(stack, folder, large),
        "similar": lambda stack, folder: asyncio.run(inside.similar()),
        "pauses": lambda stack, folder: asyncio.run(inside.pauses()),
        "sdk": scenarios.sdk,
    }


def machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    model = next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor()
    )
    return {"cpu": model, "cores": os.cpu_count(), "python": platform.python_version(), "system": platform.platform()}


def table(found: dict[str, Any]) -> Table:
    """The lines that have a reach, with what was measured."""
    made = Table(
        title=f"{found['machine']['cpu']}, {found['machine']['cores']} cores, Python {found['machine']['python']}"
    )
    for column in ("what", "measured", "reach"):
        made.add_column(column)
    for what, value, reach in _lines(found):
        made.add_row(what, value, reach)
    return made


def _lines(found: dict[str, Any]) -> list[tuple[str, str, str]]:
    lines: list[tuple[str, str, str]] = []
    if exact := found.get("exact"):
        for store, reach in (("sqlite", "5"), ("redis", "8")):
            if own := exact.get(store):
                one = f"{own['ratio']:.2f}x ({own['one_us']:.0f} us, constant {exact['constant_us']:.0f} us)"
                lines.append((f"exact lookup, CPU per request, {store}", one, "<= 1.3x"))
                lines.append(
                    (f"batch of 100, per item, {store}", f"{own['batch_100_us_per_item']:.1f} us", f"<= {reach} us")
                )
    if history := found.get("history"):
        lines.append(("1,000 writes of history against 10", f"{history['ratio']:.2f}x", "<= 1.1x"))
    if size := found.get("size"):
        lines.append(("the large store against 1,000 entries", f"{size['ratio']:.2f}x", "<= 1.2x"))
    if similar := found.get("similar"):
        told = f"{similar['ratio']:.2f}x ({similar['lookup_us']:.0f} us, encoder {similar['bare_us']:.0f} us)"
        lines.append(("similar lookup, new text, against the bare encoder call", told, "<= 1.3x"))
        lines.append(
            ("encoder calls for 64 new texts at once", str(similar["encoder_calls_for_64_concurrent"]), "batched")
        )
        lines.append(("encoder calls for 64 memoised texts", str(similar["encoder_calls_for_64_memoised"]), "0"))
    if pauses := found.get("pauses"):
        told = f"{pauses['longest_ms']:.1f} ms (99.9 %: {pauses['p999_ms']:.1f} ms)"
        lines.append((f"longest pause of the loop at {pauses['entries']:,} entries under writes", told, "<= 5 ms"))
    if sdk := found.get("sdk"):
        lines += [(f"SDK hit, p50, {kind}", f"{sdk[kind]['p50_ms']:.2f} ms", "<= 0.5 ms") for kind in ("sync", "async")]
    return lines


if __name__ == "__main__":
    main()
