"""Dockerfile.trainer without a GPU's parts, built for real (conftest.py says what that takes)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from tests.deploy.conftest import ROOT, Builder
from tests.e2e.test_replicas import Replica
from toolcache_client import CacheClient

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]

PROBE = """
import importlib.util, json, os, tempfile
from cacherl.cli import RUN_FILES
places = ("/", "/opt/cacherl", "/opt/venv", "/runs", "/models")
modules = ("cacherl", "toolcache_client", "torch", "trl", "peft", "vllm", "toolcache", "faiss")
print(json.dumps({
    "user": [os.getuid(), os.getgid()],
    "installed": [name for name in modules if importlib.util.find_spec(name) is not None],
    "run_files": sorted(path.name for path in RUN_FILES.glob("*.toml")),
    "writable": [place for place in places if os.access(place, os.W_OK)],
}))
"""


@pytest.fixture(scope="module")
def image(builder: Builder) -> str:
    """The image of the profile `cpu`."""
    given = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]["demo"]["build"]["args"]
    # Debian's python3 of the base made here needs no further packages, and the torch is the one pip finds.
    builder.build("Dockerfile.trainer", "cacherl-cpu", **{key: given[key] for key in given if key != "BASE"})
    return "cacherl-cpu"


def test_the_trainers_image_says_how_it_wants_to_be_run(builder: Builder, image: str) -> None:
    told = builder.settings(image)
    assert (told["Entrypoint"], told["User"], told["StopSignal"]) == (["cacherl"], "10001:10001", "SIGTERM")
    assert sorted(told["Volumes"]) == ["/models", "/runs"]


def test_the_trainers_image_holds_the_trainer_and_its_run_files_but_no_service(builder: Builder, image: str) -> None:
    found = json.loads(builder.run(image, "python3", "-c", PROBE).splitlines()[-1])
    assert found["user"] == [10001, 10001]
    assert found["installed"] == ["cacherl", "toolcache_client", "torch", "trl", "peft"]
    assert found["run_files"] == sorted(path.name for path in (ROOT / "trainer/runs").glob("*.toml"))
    assert found["writable"] == ["/runs", "/models"]


def test_the_trainer_in_the_image_tells_a_user_without_a_cache_what_to_do(builder: Builder, image: str) -> None:
    command = ("cacherl", "demo", "--cache-url", "http://127.0.0.1:9")
    told = builder.run(image, "sh", "-c", " ".join(command) + " 2>&1; echo status $?")
    assert told.splitlines()[-1] == "status 1"
    assert "cacherl: cache http://127.0.0.1:9" in told


def test_the_demo_in_the_image_trains_on_a_cache_that_runs_elsewhere(
    builder: Builder, image: str, tmp_path: Path
) -> None:
    cache = Replica(str(tmp_path / "cache.sqlite3"))
    small = "--record.tasks 20 --record.runs_per_task 2 --sft.steps 2 --sft.batch_size 4 --grpo.steps 1".split()
    small += "--grpo.prompts_per_step 2 --grpo.group_size 2 --grpo.micro_batch 4 --grpo.budgets.turns 2".split()
    small += "--evaluate.tasks 2 --evaluate.untrained_tasks 2 --grpo.budgets.turn_tokens 8".split()
    try:
        told = builder.run(image, "cacherl", "demo", "--cache-url", cache.url, "--out", "/runs/demo", *small)
        with CacheClient(cache.url) as client:
            entries = client.stats("support_desk").entries
    finally:
        cache.kill()
    assert "report: /runs/demo/report.html" in told
    assert entries > 0
