"""docker-compose.yml and the files it leans on: what they name exists, and what they promise is set."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from tests.redis_server import RedisServer
from toolcache.http.endpoints import LONGEST_WAIT_S
from toolcache.settings import Settings

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "Dockerfile.cache").read_text()
TRAINER_DOCKERFILE = (ROOT / "Dockerfile.trainer").read_text()
HAPROXY = (ROOT / "deploy/haproxy.cfg").read_text()


def _compose(**environment: str) -> dict[str, Any]:
    """The compose file as read in a shell that has only these variables."""
    read: dict[str, Any] = _filled_in(yaml.safe_load((ROOT / "docker-compose.yml").read_text()), environment)
    return read


def _filled_in(part: Any, environment: Mapping[str, str]) -> Any:
    """With every ${NAME:-default} replaced."""
    match part:
        case dict():
            return {name: _filled_in(value, environment) for name, value in part.items()}
        case list():
            return [_filled_in(each, environment) for each in part]
        case str():
            return re.sub(r"\$\{(\w+):-([^}]*)\}", lambda found: environment.get(found[1]) or found[2], part)
        case _:
            return part


ALL: dict[str, dict[str, Any]] = _compose()["services"]
SERVICES = {name: service for name, service in ALL.items() if "profiles" not in service}
"""What `docker compose up` starts."""
JOBS = {name: service for name, service in ALL.items() if "profiles" in service}
"""What is run by name: trainers."""
BUILT = {name for name, service in SERVICES.items() if "build" in service}
USERS_DATA = "./data:/data:ro"
"""Recordings and tools of whoever trains; made by them."""
PUBLISHED = [port for service in ALL.values() for port in service.get("ports", [])]


def _image_variables() -> dict[str, str]:
    """The TOOLCACHE_ variables that Dockerfile.cache sets."""
    return dict(re.findall(r"^(?:ENV)? +(TOOLCACHE_\w+)=(\S+)", DOCKERFILE, re.MULTILINE))


def test_every_file_that_is_mounted_is_there_and_every_volume_is_declared() -> None:
    volumes = [volume for service in ALL.values() for volume in service.get("volumes", []) if volume != USERS_DATA]
    sources = [volume.partition(":")[0] for volume in volumes]
    files = {source for source in sources if source.startswith(".")}
    assert files == {"./deploy/haproxy.cfg", "./deploy/prometheus.yml"}
    assert all((ROOT / file).is_file() for file in files)
    assert set(sources) - files == set(_compose()["volumes"])


def test_what_is_built_has_a_dockerfile_and_all_else_a_version() -> None:
    assert sorted(BUILT) == ["cache"]
    for name, service in SERVICES.items():
        if name in BUILT:
            assert (ROOT / service["build"]["context"] / service["build"]["dockerfile"]).is_file()
        else:
            assert re.search(r":v?\d+\.\d+\.\d+", service["image"]), f"{name}: {service['image']} may change overnight"


def _trainer_arguments() -> dict[str, str]:
    return dict(re.findall(r'^ARG (\w+)="?([^"\n]*)"?$', TRAINER_DOCKERFILE, re.MULTILINE))


def test_trainers_are_jobs_with_and_without_a_gpu_that_ask_the_balancer() -> None:
    assert {name: job["profiles"] for name, job in JOBS.items()} == {"trainer": ["gpu"], "demo": ["cpu"]}
    for job in JOBS.values():
        assert job["build"] | {"args": None} == {"context": ".", "dockerfile": "Dockerfile.trainer", "args": None}
        assert job["depends_on"] == {"balancer": {"condition": "service_healthy"}}
        assert job["environment"]["TOOLCACHE_URL"] == "http://balancer:8765"
        assert job["restart"] == "no"
        assert (job["cap_drop"], job["security_opt"]) == (["ALL"], ["no-new-privileges:true"])
    (device,) = JOBS["trainer"]["deploy"]["resources"]["reservations"]["devices"]
    assert (device["driver"], device["capabilities"]) == ("nvidia", ["gpu"])
    assert "deploy" not in JOBS["demo"]


def test_both_trainer_images_are_built_from_arguments_and_constraints_that_exist() -> None:
    known = _trainer_arguments()
    assert known["BASE"].startswith("nvidia/cuda:") and known["VLLM"].startswith("vllm==")
    for given in (known, known | JOBS["demo"]["build"]["args"]):
        assert set(given) == set(known)
        assert (ROOT / given["CONSTRAINTS"]).is_file()
        assert f"!{given['CONSTRAINTS']}\n" in (ROOT / ".dockerignore").read_text()
    assert re.search(r"^USER 10001:10001$", TRAINER_DOCKERFILE, re.MULTILINE)


def test_the_volumes_of_the_trainers_are_those_of_their_image() -> None:
    (declared,) = re.findall(r"^VOLUME (\[.*\])$", TRAINER_DOCKERFILE, re.MULTILINE)
    for job in JOBS.values():
        named, data = job["volumes"][:-1], job["volumes"][-1]
        assert [volume.partition(":")[2] for volume in named] == json.loads(declared)
        assert data == USERS_DATA


def test_two_ports_are_published_and_on_loopback_only() -> None:
    assert sorted(PUBLISHED) == ["127.0.0.1:8765:8765", "127.0.0.1:9090:9090"]


def test_the_replicas_share_one_redis() -> None:
    assert SERVICES["cache"]["deploy"]["replicas"] == 2
    store = urlsplit(SERVICES["cache"]["environment"]["TOOLCACHE_STORE"])
    assert store.scheme == "redis"
    assert SERVICES[str(store.hostname)]["image"].startswith("redis:7")


def test_who_is_waited_for_tells_whether_it_is_healthy() -> None:
    assert "\nHEALTHCHECK " in DOCKERFILE
    assert set(SERVICES) - BUILT == {name for name, service in SERVICES.items() if "healthcheck" in service}
    awaited = {name: set(service.get("depends_on", {})) for name, service in SERVICES.items()}
    assert awaited == {"redis": set(), "cache": {"redis"}, "balancer": {"cache"}, "prometheus": {"cache"}}


def test_no_service_may_write_its_root_or_raise_its_rights() -> None:
    for service in SERVICES.values():
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]


@pytest.mark.parametrize("asked", [{}, {"TOOLCACHE_ACCESS": "keys", "TOOLCACHE_ADMIN_KEY": "k" * 32}])
def test_the_service_knows_every_variable_it_is_given(asked: dict[str, str]) -> None:
    given: dict[str, str] = _image_variables() | _compose(**asked)["services"]["cache"]["environment"]
    assert given["TOOLCACHE_ACCESS"] == asked.get("TOOLCACHE_ACCESS", "open")
    assert given["TOOLCACHE_ADMIN_KEY"] == asked.get("TOOLCACHE_ADMIN_KEY", "")
    settings = Settings.read(given)
    assert (settings.host, settings.port, settings.store) == ("0.0.0.0", 8765, "redis://redis:6379/0")
    assert settings.asks_for_keys == bool(asked)


def test_the_image_alone_keeps_its_entries_on_its_volume_and_asks_for_keys() -> None:
    settings = Settings.read(_image_variables())
    assert (settings.store, settings.asks_for_keys) == ("/data/toolcache.sqlite3", True)
    assert 'VOLUME ["/data"]' in DOCKERFILE


def test_balancer_and_image_mean_the_same_ports() -> None:
    port = _image_variables()["TOOLCACHE_PORT"]
    assert re.findall(r"^EXPOSE (\d+)$", DOCKERFILE, re.MULTILINE) == [port]
    assert re.findall(r"^ +server-template \S+ \d+ (\S+)$", HAPROXY, re.MULTILINE) == [f"cache:{port}"]
    bound = re.findall(r"^ +bind :(\d+)$", HAPROXY, re.MULTILINE)
    assert SERVICES["balancer"]["ports"] == [f"127.0.0.1:8765:{bound[0]}"]


def test_the_balancer_lets_the_longest_wait_end() -> None:
    limits_min = re.findall(r"^ +timeout (?:client|server) (\d+)m$", HAPROXY, re.MULTILINE)
    assert len(limits_min) == 2
    assert 60 * min(map(int, limits_min)) > LONGEST_WAIT_S


def test_prometheus_shows_the_key_it_is_given() -> None:
    prometheus = _compose(TOOLCACHE_API_KEY="tck_1")["services"]["prometheus"]
    assert prometheus["environment"] == {"TOOLCACHE_API_KEY": "tck_1"}
    read = yaml.safe_load((ROOT / "deploy/prometheus.yml").read_text())
    file = read["scrape_configs"][0]["authorization"]["credentials_file"]
    assert f'"$$TOOLCACHE_API_KEY" > {file}' in prometheus["entrypoint"][2]
    assert str(Path(file).parent) in prometheus["tmpfs"]


def test_prometheus_scrapes_every_replica_and_only_what_is_there() -> None:
    jobs = {
        job["job_name"]: job for job in yaml.safe_load((ROOT / "deploy/prometheus.yml").read_text())["scrape_configs"]
    }
    (found,) = jobs["toolcache"]["dns_sd_configs"]
    assert (found["names"], found["type"], found["port"]) == (["cache"], "A", int(_image_variables()["TOOLCACHE_PORT"]))
    (balancer,) = jobs["balancer"]["static_configs"][0]["targets"]
    assert balancer.partition(":")[0] in SERVICES
    assert f"bind :{balancer.partition(':')[2]}\n" in HAPROXY


def _told(*command: str) -> None:
    """Run a checker of the file's own maker; skip where it is not installed."""
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_prometheus_can_read_its_file() -> None:
    _told("promtool", "check", "config", "--syntax-only", "deploy/prometheus.yml")


def test_compose_can_read_its_file() -> None:
    docker = shutil.which("docker")
    if docker is None or subprocess.run([docker, "compose", "version"], capture_output=True, check=False).returncode:
        pytest.skip("docker compose is not installed")
    _told("docker", "compose", "config", "--quiet")


def test_redis_keeps_every_acknowledged_write_and_evicts_none(start_redis: Callable[..., RedisServer]) -> None:
    program, *flags = shlex.split(SERVICES["redis"]["command"])
    assert program == "redis-server"
    assert dict(zip(flags[::2], flags[1::2], strict=True)) == {
        "--appendonly": "yes",
        "--appendfsync": "always",
        "--save": "",
        "--maxmemory": "4gb",
        "--maxmemory-policy": "noeviction",
    }
    server = start_redis(options=tuple(flags))
    with server.client() as store:
        assert store.config_get("maxmemory")["maxmemory"] == str(4 * 2**30)
        store.set("acknowledged", "kept")
    server.kill()
    server.start()
    with server.client() as store:
        assert store.get("acknowledged") == b"kept"
