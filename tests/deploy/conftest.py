"""Container images, built for real on a Debian made here, since a test should not need a registry of images.

Needs root, buildah, debootstrap, room on the disk and some minutes; is skipped where one of them is missing.
"""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
SUITE = "bookworm"
BASE_PACKAGES = "python3,python3-venv,ca-certificates"
ROOM_BYTES = 20 * 2**30
"""Free space that the stages and their copies take, and some to spare."""


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

    def build(self, dockerfile: str, tag: str, **arguments: str) -> None:
        """Build an image on the Debian made here, with what pip finds on this machine."""
        given = [word for name, value in arguments.items() for word in ("--build-arg", f"{name}={value}")]
        self(
            *("bud", "--isolation", "chroot", "--format", "docker", "--build-arg", "BASE=localhost/base", *given),
            *_pip_as_here(self.folder),
            *("--file", dockerfile, "--tag", tag, "."),
        )

    def settings(self, image: str) -> dict[str, Any]:
        """What the image says of itself."""
        read: dict[str, Any] = json.loads(self("inspect", "--type", "image", image).stdout)["Docker"]["config"]
        return read

    def run(self, image: str, *command: str, mounts: Sequence[str] = ()) -> str:
        """What a command prints in a new container of the image, as its user."""
        container = self("from", "--pull-never", image).stdout.strip()
        volumes = [word for mount in mounts for word in ("--volume", mount)]
        try:
            return self("run", "--isolation", "chroot", *volumes, container, *command).stdout
        finally:
            self("rm", container)


@pytest.fixture(scope="session")
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
        made = Builder(Path(folder))
        _make_base(made)
        yield made


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
