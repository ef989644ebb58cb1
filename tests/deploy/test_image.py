"""Dockerfile.cache, built for real on a Debian made here, since a test should not need a registry of images.

Needs root, buildah, debootstrap, room on the disk and some minutes; is skipped where one of them is missing.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PROBE = Path(__file__).with_name("probe_image.py")
SUITE = "bookworm"
BASE_PACKAGES = "python3,python3-venv,ca-certificates"
ROOM_BYTES = 8 * 2**30
"""Free space that the stages and their copies take, and some to spare."""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]


@dataclass(frozen=True, slots=True)
class Builder:
    """buildah with a storage of its own, and no kernel features that a container lacks."""

    folder: Path

    def __call__(self, command: str, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        storage = ["--root", f"{self.folder}/storage", "--runroot", f"{self.folder}/run", "--storage-driver", "vfs"]
        done = subprocess.run(
            ["buildah", *storage, command, *arguments], capture_output=True, text=True, cwd=ROOT, check=False
        )
        assert not (check and done.returncode), f"buildah {command}:\n{(done.stdout + done.stderr)[-4000:]}"
        return done


@pytest.fixture(scope="module")
def builder() -> Iterator[Builder]:
    if os.geteuid() != 0:
        pytest.skip("only root can lay out another Debian")
    for program in ("buildah", "debootstrap"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")
    # Not pytest's own folder, which keeps what three runs left behind: these are gigabytes.
    with TemporaryDirectory(prefix="toolcache-image-") as folder:
        if (free := shutil.disk_usage(folder).free) < ROOM_BYTES:
            pytest.skip(f"{folder} has {free / 2**30:.1f} GiB free, the build takes up to {ROOM_BYTES / 2**30:.0f}")
        yield Builder(Path(folder))


@pytest.fixture(scope="module")
def image(builder: Builder) -> str:
    """The built image's name."""
    _make_base(builder)
    builder(
        *("bud", "--isolation", "chroot", "--format", "docker", "--build-arg", "BASE=localhost/base"),
        *_pip_as_here(builder.folder),
        *("--file", "Dockerfile.cache", "--tag", "toolcache", "."),
    )
    return "toolcache"


@pytest.fixture(scope="module")
def container(builder: Builder, image: str) -> str:
    return builder("from", "--pull-never", image).stdout.strip()


def _make_base(builder: Builder) -> None:
    """localhost/base: Debian with its own python3. Skips where it cannot be had."""
    tree, packed = builder.folder / "base", builder.folder / "base.tar"
    options = ["--variant=minbase", f"--include={BASE_PACKAGES}"]
    made = subprocess.run(
        ["debootstrap", *options, SUITE, str(tree), _mirror()], capture_output=True, text=True, check=False
    )
    if made.returncode:
        pytest.skip(f"debootstrap made no Debian here: {made.stdout.strip().splitlines()[-1:]}")
    with tarfile.open(packed, "w") as archive:
        archive.add(tree, ".")
    empty = builder("from", "scratch").stdout.strip()
    builder("add", empty, str(packed), "/")
    builder("commit", "--rm", empty, "base")
    packed.unlink()
    shutil.rmtree(tree)


def _mirror() -> str:
    """Where this machine gets its own Debian from."""
    if shutil.which("apt-get") is None:
        pytest.skip("no apt here that would name a mirror of Debian")
    told = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(SUITE) $(CODENAME) $(COMPONENT) $(REPO_URI)"],
        capture_output=True,
        text=True,
        check=False,
    ).stdout
    places = [words[-1] for line in told.splitlines() if SUITE in (words := line.split())[:2] and "main" in words]
    if not places:
        pytest.skip(f"apt here knows no mirror of Debian {SUITE}")
    return places[0]


def _pip_as_here(folder: Path) -> list[str]:
    """Arguments of buildah that let pip in the build find what pip finds on this machine."""
    told = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True)
    pairs = (line.partition("=") for line in told.stdout.splitlines())
    # `global.cert='...'`, `:env:.cert='...'`: the environment comes first in the list, and files must not undo it.
    settings: dict[str, str] = {}
    for name, _, value in pairs:
        settings.setdefault(name.rpartition(".")[2], str(ast.literal_eval(value)))
    file = folder / "pip.conf"
    file.write_text("[global]\n" + "".join(f"{name} = {' '.join(v.split())}\n" for name, v in settings.items()))
    # A local index keeps its files beside its folder `simple`.
    words = (word for value in settings.values() for word in value.split())
    places = (word.removeprefix("file://").removesuffix("/simple") for word in words)
    mounts = {place: place for place in places if place.startswith("/") and Path(place).exists()}
    mounts[str(file)] = "/etc/pip.conf"
    return [word for here, there in mounts.items() for word in ("--volume", f"{here}:{there}:ro")]


def _probed(builder: Builder, container: str, what: str, *arguments: str) -> Any:
    """What probe_image.py finds in the container, as the user of the image."""
    done = builder(
        *("run", "--isolation", "chroot", "--volume", f"{PROBE}:/probe.py:ro", container),
        *("python3", "/probe.py", what, *arguments),
    )
    return json.loads(done.stdout.splitlines()[-1])


def _settings(builder: Builder, image: str) -> dict[str, Any]:
    read: dict[str, Any] = json.loads(builder("inspect", "--type", "image", image).stdout)["Docker"]["config"]
    return read


def test_the_image_says_how_it_wants_to_be_run(builder: Builder, image: str) -> None:
    told = _settings(builder, image)
    assert (told["Entrypoint"], told["Cmd"], told["StopSignal"]) == (["toolcache"], ["serve"], "SIGTERM")
    assert (told["User"], told["WorkingDir"]) == ("10001:10001", "/data")
    assert (list(told["ExposedPorts"]), list(told["Volumes"])) == (["8765/tcp"], ["/data"])
    assert told["Labels"]["org.opencontainers.image.licenses"] == "Apache-2.0"


def test_the_image_holds_the_model_and_nothing_that_made_it(builder: Builder, container: str) -> None:
    found = _probed(builder, container, "contents")
    assert found["user"] == [10001, 10001]
    assert [name for name, is_there in found["installed"].items() if is_there] == ["openvino", "toolcache"]
    assert found["model"] == ["manifest.json", "model.bin", "model.xml", "tokenizer.json"]
    assert found["writable"] == ["/data"]
    assert found["help"].startswith("usage: toolcache")


def test_the_image_embeds_as_the_service_does_here(builder: Builder, container: str) -> None:
    if importlib.util.find_spec("sentence_transformers") is None:
        pytest.skip("the model as published is not installed here")
    import numpy as np

    from toolcache.adapters.minilm_embedder import SentenceTransformersEncoder

    found = _probed(builder, container, "embedding")
    (expected,) = SentenceTransformersEncoder().encode([found["text"]])
    assert np.dot(found["vector"], expected) > 0.999


def test_the_service_in_the_image_is_healthy_asks_for_keys_and_stops_when_told(
    builder: Builder, image: str, container: str
) -> None:
    assert _probed(builder, container, "service", json.dumps(_settings(builder, image))) == {
        "without_a_key": {"status": 1, "told": True},
        "health": 200,
        "health_check": 0,
        "namespaces_without_key": 401,
        "namespaces_with_key": 200,
        "stopped": 0,
        "health_check_after": 1,
        "stored": ["toolcache.sqlite3"],
    }
