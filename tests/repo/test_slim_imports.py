"""What must stay light: the client, the programs' help, and the reading of a run file."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = {
    "torch",
    "transformers",
    "trl",
    "faiss",
    "sentence_transformers",
    "numpy",
    "fastapi",
    "datasets",
    "matplotlib",
    "openvino",
    "redis",
}


def _imported(code: str) -> set[str]:
    """Top-level modules that are loaded after the code ran in a fresh interpreter."""
    told = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys; sys.stderr.write(' '.join(sys.modules))"],
        capture_output=True,
        text=True,
        check=True,
    ).stderr
    return {name.partition(".")[0] for name in told.split()}


@pytest.mark.parametrize(
    "code",
    [
        "import toolcache_client, toolcache_client.messages",
        "import cacherl.rollout.loop, cacherl.rollout.tools, cacherl.rollout.renderer, cacherl.reward.tier_aware",
        "import cacherl.evaluate.evaluate, cacherl.data.trajectories, cacherl.worlds.support_desk",
        "from cacherl.demo.settings import DemoRun\nfrom cacherl.config import read_run",
    ],
)
def test_the_light_parts_load_nothing_heavy(code: str) -> None:
    assert _imported(code) & HEAVY == set()


def test_the_services_core_loads_nothing_heavy_but_numpy() -> None:
    assert _imported("import toolcache.core.cache, toolcache.core.audit") & HEAVY <= {"numpy"}


@pytest.mark.parametrize("program", ["cacherl.cli", "toolcache.main"])
def test_help_loads_nothing_heavy(program: str) -> None:
    code = f"import contextlib, {program} as p\nwith contextlib.suppress(SystemExit): p.main(['--help'])"
    assert _imported(code) & (HEAVY | {"httpx"}) == set()
