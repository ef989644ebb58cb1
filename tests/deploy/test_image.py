"""Dockerfile.cache, built for real (conftest.py says what that takes)."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from tests.deploy.conftest import Builder

PROBE = Path(__file__).with_name("probe_image.py")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]


@pytest.fixture(scope="module")
def image(builder: Builder) -> str:
    """The built image's name."""
    builder.build("Dockerfile.cache", "toolcache")
    return "toolcache"


def _probed(builder: Builder, image: str, what: str, *arguments: str) -> Any:
    """What probe_image.py finds in a container, as the user of the image."""
    told = builder.run(image, "python3", "/probe.py", what, *arguments, mounts=[f"{PROBE}:/probe.py:ro"])
    return json.loads(told.splitlines()[-1])


def test_the_image_says_how_it_wants_to_be_run(builder: Builder, image: str) -> None:
    told = builder.settings(image)
    assert (told["Entrypoint"], told["Cmd"], told["StopSignal"]) == (["toolcache"], ["serve"], "SIGTERM")
    assert (told["User"], told["WorkingDir"]) == ("10001:10001", "/data")
    assert (list(told["ExposedPorts"]), list(told["Volumes"])) == (["8765/tcp"], ["/data"])
    assert told["Labels"]["org.opencontainers.image.licenses"] == "Apache-2.0"


def test_the_image_holds_the_model_and_nothing_that_made_it(builder: Builder, image: str) -> None:
    found = _probed(builder, image, "contents")
    assert found["user"] == [10001, 10001]
    assert [name for name, is_there in found["installed"].items() if is_there] == ["openvino", "toolcache"]
    assert found["model"] == ["manifest.json", "model.bin", "model.xml", "tokenizer.json"]
    assert found["writable"] == ["/data"]
    assert found["help"].startswith("usage: toolcache")


def test_the_image_embeds_as_the_service_does_here(builder: Builder, image: str) -> None:
    if importlib.util.find_spec("sentence_transformers") is None:
        pytest.skip("the model as published is not installed here")
    import numpy as np

    from toolcache.adapters.minilm_embedder import SentenceTransformersEncoder

    found = _probed(builder, image, "embedding")
    (expected,) = SentenceTransformersEncoder().encode([found["text"]])
    assert np.dot(found["vector"], expected) > 0.999


def test_the_service_in_the_image_is_healthy_asks_for_keys_and_stops_when_told(builder: Builder, image: str) -> None:
    assert _probed(builder, image, "service", json.dumps(builder.settings(image))) == {
        "without_a_key": {"status": 1, "told": True},
        "health": 200,
        "health_check": 0,
        "namespaces_without_key": 401,
        "namespaces_with_key": 200,
        "stopped": 0,
        "health_check_after": 1,
        "stored": ["toolcache.sqlite3"],
    }
