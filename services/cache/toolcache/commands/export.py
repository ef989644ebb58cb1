"""`toolcache export`: a namespace with its policy and entries, one JSON object a line; `toolcache import` reads it."""

from __future__ import annotations

import gzip
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

from rich.console import Console

from toolcache.commands.failure import writing
from toolcache.commands.reach import cache
from toolcache.settings import Settings


async def export(settings: Settings, namespace: str, out: Path | None) -> None:
    """Write the lines. Raises CommandFailed where the file cannot be written; CacheError, StoreUnavailable."""
    count = 0
    async with cache(settings) as client:
        with _opened(out) as file:
            async for line in client.export(namespace):
                file.write(line + b"\n")
                count += 1
    # The first line is the namespace.
    Console(stderr=True, soft_wrap=True).print(
        f"{max(0, count - 1)} entries of {namespace} to {out or 'standard output'}"
    )


@contextmanager
def _opened(out: Path | None) -> Iterator[BinaryIO]:
    """The file, which gets its name when it is whole: half an export must not look like one."""
    if out is None:
        yield sys.stdout.buffer
        return
    part = out.with_name(f"{out.name}.part")
    with writing(out, "--out"):
        try:
            with part.open("wb") as raw:
                if out.suffix == ".gz":
                    with gzip.open(raw, "wb") as packed:
                        yield cast(BinaryIO, packed)
                else:
                    yield raw
            part.replace(out)
        finally:
            part.unlink(missing_ok=True)
