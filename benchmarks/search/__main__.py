"""`make bench-search`: measure, print tables, write benchmarks/results/search.json and search.svg."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import time
from pathlib import Path
from typing import Any

# Before numpy, torch and FAISS are loaded: on a shared machine their threads wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from rich.console import Console

from benchmarks.search import plot, report, workload
from benchmarks.search.corpus import documents
from toolcache.adapters.batching_embedder import BatchingEmbedder
from toolcache.adapters.minilm_embedder import best_encoder

WIDTH = 150
"""Columns of the printed tables, wherever they are printed."""
OUT = Path("benchmarks/results/search.json")


def main() -> None:
    """All of it: two minutes of two cores' time."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--needs", type=int, default=240, help="information needs drawn from the documents")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    console = Console(width=WIDTH)
    began_s = time.monotonic()
    measured = asyncio.run(_measured(arguments.needs, arguments.seed, console))
    found = workload.rounded({"machine": _machine(), **measured, "took_s": time.monotonic() - began_s})
    OUT.write_text(json.dumps(found, indent=1) + "\n")
    plot.draw(found, OUT.with_suffix(".svg"))
    report.show(found, console)
    console.print(f"{OUT} and {OUT.with_suffix('.svg')}, {found['took_s']:.0f} s")


async def _measured(needs: int, seed: int, console: Console) -> dict[str, Any]:
    embedder = BatchingEmbedder(best_encoder())
    return await workload.measured(documents(), embedder, needs=needs, seed=seed, tell=console.print)


def _machine() -> dict[str, Any]:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    cpu = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.processor())
    return {"cpu": cpu, "cores": os.cpu_count(), "python": platform.python_version(), "system": platform.platform()}


if __name__ == "__main__":
    main()
