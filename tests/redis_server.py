"""Real Redis servers for tests: on a free port of this machine, to be killed, paused and started again.

What is started here is ended here, by its own process object.
"""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO

import redis
from redis.backoff import ConstantBackoff
from redis.retry import Retry

BINARY = shutil.which("redis-server") or shutil.which("valkey-server")
START_S = 30.0
"""Longest time from the start to the first answer, loading the append-only file included."""
_SLOTS = 16384


class RedisServer:
    """One server process. `start` returns when it takes commands."""

    def __init__(self, folder: Path, *, is_durable: bool = False, options: Sequence[str] = ()) -> None:
        self.folder = folder
        self.port = _free_port()
        self._options = [
            *("--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(folder), "--save", ""),
            *("--appendonly", "yes" if is_durable else "no", "--appendfsync", "always"),
            *options,
        ]
        self._process: subprocess.Popen[str] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        assert BINARY is not None
        self._process = subprocess.Popen([BINARY, *self._options], stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        log = self._process.stdout
        told = []
        for line in log:
            told.append(line)
            if "Ready to accept connections" in line:
                break
        else:
            raise RuntimeError(f"redis-server did not start:\n{''.join(told)}")
        # The rest of the log is read away, or the server would stand still once the pipe is full.
        threading.Thread(target=_drain, args=(log,), daemon=True).start()

    def kill(self) -> None:
        """As by kill -9: no farewell, no last write."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def pause(self) -> None:
        """Connections stay open, and nothing is answered."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def client(self) -> redis.Redis:
        return redis.Redis(port=self.port, socket_timeout=START_S)


@contextmanager
def running_server(folder: Path, *, is_durable: bool = False, options: Sequence[str] = ()) -> Iterator[RedisServer]:
    folder.mkdir(parents=True, exist_ok=True)
    server = RedisServer(folder, is_durable=is_durable, options=options)
    try:
        server.start()
        yield server
    finally:
        server.kill()


@contextmanager
def running_cluster(folder: Path, masters: int = 3) -> Iterator[str]:
    """A Cluster without replicas, when it is whole; yields its URL."""
    with ExitStack() as stack:
        options = ("--cluster-enabled", "yes", "--cluster-node-timeout", "2000")
        nodes = [
            stack.enter_context(running_server(folder / str(n), options=(*options, "--cluster-config-file", "nodes")))
            for n in range(masters)
        ]
        share = -(-_SLOTS // masters)
        for n, node in enumerate(nodes):
            with node.client() as client:
                client.execute_command("CLUSTER ADDSLOTSRANGE", n * share, min((n + 1) * share, _SLOTS) - 1)
                client.execute_command("CLUSTER SET-CONFIG-EPOCH", n + 1)
                client.execute_command("CLUSTER MEET", "127.0.0.1", nodes[0].port)
        for node in nodes:
            _wait_until_whole(node, masters)
        yield f"redis+cluster://127.0.0.1:{nodes[0].port}"


def _wait_until_whole(node: RedisServer, masters: int) -> None:
    """A node tells nobody when it has heard of all others, so it is asked."""

    def ask() -> None:
        info = client.execute_command("CLUSTER INFO")
        if info["cluster_state"] != "ok" or int(info["cluster_size"]) != masters:
            raise redis.ConnectionError("not yet")

    with node.client() as client:
        Retry(ConstantBackoff(0.05), int(START_S / 0.05)).call_with_retry(ask, lambda _: None)


def _free_port() -> int:
    # A Cluster's nodes talk to each other on a second port, 10000 above.
    while True:
        with socket.socket() as one, socket.socket() as other, suppress(OSError, OverflowError):
            one.bind(("127.0.0.1", 0))
            port: int = one.getsockname()[1]
            other.bind(("127.0.0.1", port + 10000))
            return port


def _drain(log: IO[str]) -> None:
    for _ in log:
        pass
