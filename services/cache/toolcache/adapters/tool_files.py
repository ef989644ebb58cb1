"""Tool schemas from a JSON file: OpenAI's tool format, with the effects that format has no word for.

Accepted, for one namespace or by domain (`{"retail": {...}, "airline": {...}}`):

    [{"type": "function", "function": {"name": ..., "parameters": ...}, "effect": "read"}, ...]
    {"tools": [...], "write_tools": ["cancel_order"], "environment": "shop@1"}

`write_tools` names the writes and makes all others reads. Without it and without `effect`, a tool is a write: that
costs hits, never correctness. Beside `effect` a tool may carry `arguments` (their roles), `errors_change_state`,
`ttl_s`, `samples`, `masks`, `simulate_writes` and `similar_floor`, as in the API; and beside `tools` may stand the
namespace's `tiers`, `similar_threshold`, `max_bytes` and `shadow_share`.

Schemas may name types as Python does (`dict`, `float`, ...), as those of the Berkeley Function Calling Leaderboard do.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import msgspec

from toolcache.core.tools import Effect, Mask, Namespace, NamespaceInvalid, Role, Tier, Tool

_JSON_TYPES = {
    "dict": "object",
    "float": "number",
    "tuple": "array",
    "list": "array",
    "int": "integer",
    "bool": "boolean",
}
"""JSON schema's name for a type that a schema names as Python does."""
_SCHEMAS_BY_NAME = ("properties", "patternProperties", "$defs", "definitions")
"""Where the keys of an object in a schema are names, and not words of JSON schema."""


class ToolFileInvalid(ValueError):
    """A file of tool schemas that cannot be used; the message names the file and what to do."""


class Policy(TypedDict, total=False):
    """What a file says of its namespace beside the tools; see Namespace."""

    tiers: frozenset[Tier]
    similar_threshold: float
    max_bytes: int
    shadow_share: float


_WORDS = frozenset(("tools", "write_tools", "environment", *Policy.__annotations__))


@dataclass(frozen=True, slots=True, kw_only=True)
class Toolset:
    """The tools of one namespace as a file gives them."""

    domain: str
    """Empty where the file holds one toolset without a name."""
    tools: tuple[Tool, ...]
    unannotated: tuple[str, ...]
    """Names of tools whose effect the file does not tell."""
    policy: Policy

    def namespace(self, name: str) -> Namespace:
        return Namespace(name=name, tools={tool.name: tool for tool in self.tools}, **self.policy)


def toolsets(path: Path) -> dict[str, Toolset]:
    """The toolsets of a file by domain; "" where there is only one, unnamed. Raises ToolFileInvalid."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ToolFileInvalid(f"{path}: cannot be read ({error})") from error
    except ValueError as error:
        raise ToolFileInvalid(f"{path}: not JSON ({error})") from error
    by_domain = document if _is_by_domain(document) else {"": document}
    try:
        return {domain: _toolset(domain, each) for domain, each in by_domain.items()}
    except (NamespaceInvalid, msgspec.ValidationError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise ToolFileInvalid(f"{path}: not in OpenAI's tool format ({type(error).__name__}: {error})") from error


def beside(recordings: Path) -> Path:
    """The tool file that lies beside a file of recordings: tau_bench_tools.json, tau_tools.json, tools.json.

    Raises ToolFileInvalid naming what was looked for.
    """
    names = [f"{stem}_tools.json" for stem in _stems(recordings.name.split(".")[0])] + ["tools.json"]
    for name in names:
        if (recordings.parent / name).is_file():
            return recordings.parent / name
    raise ToolFileInvalid(
        f"no tool schemas beside {recordings} (looked for {', '.join(names)}); name them with --tools"
    )


def _stems(stem: str) -> Iterator[str]:
    while stem:
        yield stem
        stem = stem.rpartition("_")[0]


def _is_by_domain(document: Any) -> bool:
    return isinstance(document, dict) and "tools" not in document


def _toolset(domain: str, document: Any) -> Toolset:
    listed = document["tools"] if isinstance(document, dict) else document
    writes = document.get("write_tools") if isinstance(document, dict) else None
    tools = tuple(_tool(each, writes) for each in listed)
    if len({tool.name for tool in tools}) < len(tools):
        raise NamespaceInvalid("a tool stands in it twice")
    known = () if writes is None else {tool.name for tool in tools}
    unannotated = tuple(
        tool.name for tool, each in zip(tools, listed, strict=True) if "effect" not in each and tool.name not in known
    )
    toolset = Toolset(domain=domain, tools=tools, unannotated=unannotated, policy=_policy(document))
    toolset.namespace(domain)  # raises what its policy must not say
    return toolset


def _policy(document: Any) -> Policy:
    """Raises NamespaceInvalid for a word that means nothing here: a slip must not pass in silence."""
    if not isinstance(document, dict):
        return {}
    if unknown := sorted(document.keys() - _WORDS):
        words = ", ".join(sorted(_WORDS - {"tools"}))
        raise NamespaceInvalid(f'unknown {unknown[0]!r}; beside "tools" may stand {words}')
    return msgspec.convert(document, Policy)


def _tool(document: Mapping[str, Any], writes: list[str] | None) -> Tool:
    function = document.get("function", document)
    name = function["name"]
    default = Effect.WRITE if writes is None or name in writes else Effect.READ
    return Tool(
        name=name,
        description=function.get("description") or "",
        parameters=_json_schema(function.get("parameters") or {}),
        effect=Effect(document.get("effect", default)),
        roles={argument: Role(role) for argument, role in document.get("arguments", {}).items()},
        errors_change_state=bool(document.get("errors_change_state", False)),
        ttl_s=document.get("ttl_s"),
        samples=int(document.get("samples", 1)),
        masks=tuple(Mask(**each) for each in document.get("masks", ())),
        simulate_writes=bool(document.get("simulate_writes", False)),
        similar_floor=float(document.get("similar_floor", 0.9)),
    )


def _json_schema(schema: Any) -> Any:
    """The schema with Python's names of types replaced; values that are no schemas (enum, default) are left alone.

    >>> _json_schema({"type": "dict", "properties": {"type": {"type": "float", "default": {"type": "float"}}}})
    {'type': 'object', 'properties': {'type': {'type': 'number', 'default': {'type': 'float'}}}}
    """
    match schema:
        case list():
            return [_json_schema(each) for each in schema]
        case dict():
            return {word: _json_word(word, value) for word, value in schema.items()}
        case _:
            return schema


def _json_word(word: str, value: Any) -> Any:
    if word == "type" and isinstance(value, str):
        return _JSON_TYPES.get(value, value)
    if word in _SCHEMAS_BY_NAME and isinstance(value, dict):
        return {name: _json_schema(each) for name, each in value.items()}
    return value if word in ("enum", "const", "default", "examples", "required") else _json_schema(value)
