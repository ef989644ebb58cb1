"""deploy/haproxy.cfg in a real HAProxy, between clients and small replicas on loopback addresses of their own.

Only addresses are changed in the file: where it listens, and which name server tells it the replicas.
"""

from __future__ import annotations

import http.client
import json
import queue
import re
import shutil
import socket
import struct
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

CONFIG = Path(__file__).parents[2] / "deploy/haproxy.cfg"
PATIENCE_S = 60
"""Until a test that waits for what never comes gives up."""


Arrivals = queue.Queue[tuple[str, bytes]]
"""What reached which replica, in order."""


class Replica:
    """An HTTP server that says who it is, and tells `arrivals` what reached it. Holds /hold until `release` is set."""

    def __init__(self, host: str, port: int, arrivals: Arrivals) -> None:
        self.host = host
        self.checked = threading.Event()
        self.release = threading.Event()
        self._arrivals = arrivals
        self._server = _QuietServer((host, port), _handler_of(self))
        self.port: int = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def got(self, what: bytes) -> None:
        self._arrivals.put((self.host, what))

    def stop(self) -> None:
        self.release.set()
        self._server.shutdown()
        self._server.server_close()


class _QuietServer(ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        """Nothing: a health check hangs up once it has seen the status."""


def _handler_of(replica: Replica) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = PATIENCE_S

        def do_GET(self) -> None:
            if self.path == "/healthz":
                replica.checked.set()
            self._answer()

        def do_POST(self) -> None:
            if self.path == "/v1/import":
                self._read_lines()
                self._answer()
                return
            body = self.rfile.read(int(self.headers["Content-Length"]))
            match self.path:
                case "/v1/record-and-die":
                    replica.got(body)
                    self.connection.shutdown(socket.SHUT_RDWR)
                    self.close_connection = True
                    return
                case "/until-gone":
                    replica.got(b"held")
                    with suppress(ConnectionResetError):
                        assert self.connection.recv(1) == b""
                    replica.got(b"gone")
                    self.close_connection = True
                    return
                case "/hold":
                    replica.got(b"held")
                    replica.release.wait(PATIENCE_S)
            self._answer()

        def _read_lines(self) -> None:
            """A chunked body, one line a chunk."""
            while size_bytes := int(self.rfile.readline(), 16):
                replica.got(self.rfile.read(size_bytes))
                self.rfile.readline()
            self.rfile.readline()

        def _answer(self) -> None:
            body = replica.host.encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Nothing."""

    return Handler


class NameServer:
    """Answers every question with `addresses`, which a test may change."""

    def __init__(self, addresses: list[str]) -> None:
        self.addresses = addresses
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                asked, who = self._socket.recvfrom(4096)
            except OSError:  # closed
                return
            if asked:
                self._socket.sendto(self._answer(asked), who)

    def _answer(self, asked: bytes) -> bytes:
        """RFC 1035, 4.1: the header, the question as it came, and an A record for each address."""
        end = asked.index(b"\0", 12) + 5
        is_for_ipv4 = asked[end - 4 : end - 2] == b"\0\1"
        addresses = self.addresses if is_for_ipv4 else []
        header = asked[:2] + struct.pack(">HHHHH", 0x8180, 1, len(addresses), 0, 0)
        record = struct.pack(">HHHIH", 0xC00C, 1, 1, 0, 4)  # the name at offset 12, type A, class IN, no ttl, 4 bytes
        return header + asked[12:end] + b"".join(record + socket.inet_aton(each) for each in addresses)

    def stop(self) -> None:
        self._socket.sendto(b"", ("127.0.0.1", self.port))  # wakes the thread, which then finds the socket closed
        self._socket.close()


class Deployment:
    """Two replicas, a name server and the balancer; `ask` speaks to the balancer over a new connection."""

    def __init__(self, folder: Path, program: str) -> None:
        self.arrivals: Arrivals = queue.Queue()
        first = Replica("127.0.0.2", 0, self.arrivals)
        self.replicas = [first, Replica("127.0.0.3", first.port, self.arrivals)]
        self.names = NameServer([replica.host for replica in self.replicas])
        self.port, self._metrics_port = _free_port(), _free_port()
        file = folder / "haproxy.cfg"
        file.write_text(self._config())
        self._balancer = subprocess.Popen([program, "-db", "-f", str(file)], stdout=subprocess.PIPE)

    def _config(self) -> str:
        text = CONFIG.read_text()
        for there, here in {
            "bind :8765\n": f"bind 127.0.0.1:{self.port}\n",
            "bind :8405\n": f"bind 127.0.0.1:{self._metrics_port}\n",
            "parse-resolv-conf\n": f"nameserver test 127.0.0.1:{self.names.port}\n",
            "cache:8765\n": f"cache.test:{self.replicas[0].port}\n",
        }.items():
            assert text.count(there) == 1, f"{CONFIG.name}: {there.strip()} stands there {text.count(there)} times"
            text = text.replace(there, here)
        return text

    def connection(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S)

    def ask(self, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
        return _asked(self.connection(), method, path, body)

    def requests_in_work(self) -> int:
        """As the balancer tells Prometheus."""
        metrics = http.client.HTTPConnection("127.0.0.1", self._metrics_port, timeout=PATIENCE_S)
        told = re.search(
            rb'^haproxy_backend_current_sessions\{proxy="replicas"\} (\d+)$',
            _asked(metrics, "GET", "/metrics")[1],
            re.M,
        )
        assert told is not None
        return int(told[1])

    def stop(self) -> None:
        self._balancer.kill()
        print(self._balancer.communicate()[0].decode())  # pytest shows it where the test failed
        for replica in self.replicas:
            replica.stop()
        self.names.stop()


def _asked(
    connection: http.client.HTTPConnection, method: str, path: str, body: bytes | None = None
) -> tuple[int, bytes]:
    """Status and body, over a connection that is closed after."""
    try:
        connection.request(method, path, body)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture
def deployment(tmp_path: Path) -> Iterator[Deployment]:
    program = shutil.which("haproxy", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin")
    if program is None:
        pytest.skip("haproxy is not installed")
    started = Deployment(tmp_path, program)
    try:
        for replica in started.replicas:
            assert replica.checked.wait(PATIENCE_S), f"{replica.host} was never found"
        yield started
    finally:
        started.stop()


def test_while_a_request_waits_at_one_replica_the_others_go_to_the_other(deployment: Deployment) -> None:
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(deployment.ask, "POST", "/hold", b"")
        busy, _ = deployment.arrivals.get(timeout=PATIENCE_S)
        (free,) = {replica.host for replica in deployment.replicas} - {busy}
        for _ in range(4):
            assert deployment.ask("POST", "/v1/lookup", b"{}") == (200, free.encode())
            while deployment.requests_in_work() > 1:
                """The balancer counts the last one until it has closed its connection."""
        for replica in deployment.replicas:
            replica.release.set()
        assert waiting.result() == (200, busy.encode())


def test_an_import_reaches_the_replica_line_by_line(deployment: Deployment) -> None:
    connection = deployment.connection()
    connection.putrequest("POST", "/v1/import")
    connection.putheader("Transfer-Encoding", "chunked")
    connection.endheaders()
    connection.send(b"6\r\nfirst\n\r\n")
    host, line = deployment.arrivals.get(timeout=PATIENCE_S)  # the last line is not yet written
    connection.send(b"5\r\nlast\n\r\n0\r\n\r\n")
    answer = connection.getresponse()
    assert (line, answer.status, answer.read()) == (b"first\n", 200, host.encode())
    assert deployment.arrivals.get_nowait() == (host, b"last\n")
    connection.close()


def test_a_client_that_hangs_up_waits_no_more(deployment: Deployment) -> None:
    connection = deployment.connection()
    connection.request("POST", "/until-gone", b"")
    host, held = deployment.arrivals.get(timeout=PATIENCE_S)
    connection.close()
    assert held == b"held"
    assert deployment.arrivals.get(timeout=PATIENCE_S) == (host, b"gone")


def test_a_request_that_reached_a_replica_is_never_sent_to_another(deployment: Deployment) -> None:
    status, body = deployment.ask("POST", "/v1/record-and-die", b"once")
    assert status == 502
    problem = json.loads(body)
    assert (problem["status"], problem["code"]) == (502, "unavailable")
    assert deployment.arrivals.get_nowait()[1] == b"once"
    assert deployment.arrivals.empty()


def test_a_replica_that_refuses_connections_costs_no_request(deployment: Deployment) -> None:
    gone, there = deployment.replicas
    gone.stop()
    assert {deployment.ask("POST", "/v1/lookup", b"{}") for _ in range(8)} == {(200, there.host.encode())}


def test_a_replica_that_comes_back_under_another_address_is_found(deployment: Deployment) -> None:
    gone, kept = deployment.replicas
    back = Replica("127.0.0.4", gone.port, deployment.arrivals)
    deployment.replicas.append(back)
    gone.stop()
    deployment.names.addresses = [back.host, kept.host]
    assert back.checked.wait(PATIENCE_S)


def test_without_any_replica_the_answer_is_a_problem(deployment: Deployment) -> None:
    for replica in deployment.replicas:
        replica.stop()
    status, body = deployment.ask("POST", "/v1/lookup", b"{}")
    problem = json.loads(body)
    assert (status, problem["status"], problem["code"]) == (503, 503, "unavailable")
