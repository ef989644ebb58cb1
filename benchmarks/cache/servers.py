"""Real servers for the benchmarks: `toolcache serve`, the constant endpoint, a Redis of our own."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

START_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    url: str
    pid: int


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def constant() -> Iterator[Server]:
    """The constant endpoint on one uvicorn worker, with the event loop and the parser the service uses."""
    port = free_port()
    command = ["-m", "uvicorn", "benchmarks.cache.constant:app", "--port", str(port), "--log-level", "error"]
    with _running([sys.executable, *command, "--loop", "uvloop", "--http", "httptools"], port, "/") as server:
        yield server


@contextmanager
def toolcache(store: str) -> Iterator[Server]:
    """`toolcache serve` over a store: a path or a redis URL."""
    port = free_port()
    program = str(Path(sys.executable).with_name("toolcache"))
    with _running([program, "serve", "--port", str(port), "--store", store], port, "/healthz") as server:
        yield server


@contextmanager
def redis(folder: Path) -> Iterator[str | None]:
    """The URL of a Redis of our own, without persistence; None where redis-server is not installed."""
    program = shutil.which("redis-server")
    if program is None:
        yield None
        return
    port = free_port()
    process = subprocess.Popen(
        [program, "--port", str(port), "--save", "", "--appendonly", "no", "--dir", str(folder)],
        stdout=subprocess.DEVNULL,
    )
    try:
        _until_open(port, process)
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        process.terminate()
        process.wait()


@contextmanager
def _running(command: Sequence[str], port: int, path: str) -> Iterator[Server]:
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        _until_open(port, process)
        _until_answering(url + path)
        yield Server(url=url, pid=process.pid)
    finally:
        process.terminate()
        process.wait()


def _until_open(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline_s = time.monotonic() + START_S
    while time.monotonic() < deadline_s:
        if process.poll() is not None:
            raise RuntimeError(f"{process.args!r} ended with {process.returncode}")
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise RuntimeError(f"{process.args!r} did not open port {port} within {START_S:g} s")


def _until_answering(url: str) -> None:
    deadline_s = time.monotonic() + START_S
    while True:
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except urllib.error.URLError:
            if time.monotonic() > deadline_s:
                raise
            time.sleep(0.05)
