"""`toolcache embedder convert`: the embedder's model as OpenVINO runs it, for machines that have no torch."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from toolcache.adapters import openvino_embedder
from toolcache.commands.failure import CommandFailed
from toolcache.core.ports import EmbedderUnavailable


def convert(out: Path) -> None:
    """Write the converted model under `out` and print where it lies. Raises CommandFailed."""
    try:
        place = openvino_embedder.convert(out)
    except EmbedderUnavailable as error:
        raise CommandFailed(str(error)) from error
    size_bytes = sum(each.stat().st_size for each in place.iterdir())
    console = Console(soft_wrap=True)
    console.print(f"{place}: {size_bytes / 1e6:.0f} MB; serve with TOOLCACHE_EMBEDDER_DIR={out}", highlight=False)
