"""A byte-level tokenizer, a renderer and a parser with two tools."""

from typing import Any

import pytest

from cacherl.adapters.byte_tokenizer import make_byte_tokenizer
from cacherl.adapters.hf_tokenizer import HFTokenizer
from cacherl.rollout.parser import Parser
from cacherl.rollout.renderer import Renderer


def tool(name: str, effect: str, **properties: str) -> dict[str, Any]:
    schema = {
        "type": "object",
        "properties": {key: {"type": kind} for key, kind in properties.items()},
        "required": list(properties),
        "additionalProperties": False,
    }
    return {"type": "function", "effect": effect, "function": {"name": name, "description": name, "parameters": schema}}


@pytest.fixture(scope="session")
def tools() -> list[dict[str, Any]]:
    return [tool("look", "read", place="string"), tool("put", "write", item="string", count="integer")]


@pytest.fixture(scope="session")
def tokenizer() -> HFTokenizer:
    return HFTokenizer(make_byte_tokenizer())


@pytest.fixture(scope="session")
def renderer(tokenizer: HFTokenizer) -> Renderer:
    return Renderer(tokenizer)


@pytest.fixture(scope="session")
def parser(tools: list[dict[str, Any]]) -> Parser:
    return Parser(tools)
