"""The OpenAPI document, from the very types that decode the messages and the very descriptions that are served."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import msgspec

from toolcache.http.operation import Operation
from toolcache.http.problems import CONTENT_TYPE, Code
from toolcache_client import messages as wire

_REF = "#/components/schemas/{name}"
_ANYWHERE = (Code.METHOD_NOT_ALLOWED, Code.INTERNAL)
_WITH_PARAMETERS = (Code.INVALID_PARAMETER,)
_WITH_BODY = (Code.MALFORMED_BODY, Code.BODY_STALLED, Code.BODY_TOO_LARGE)
_WITH_KEY = (Code.UNAUTHENTICATED, Code.FORBIDDEN)
_PATH_SCHEMAS = {
    "name": {"type": "string", "pattern": "^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"},
    "id": {"type": "string", "minLength": 1},
}


def document(operations: Iterable[Operation]) -> dict[str, Any]:
    """The whole document. Problems are listed by status; their `code` tells them apart."""
    operations = list(operations)
    paths: dict[str, dict[str, Any]] = {}
    for operation in operations:
        paths.setdefault(operation.about.path, {})[operation.about.method.lower()] = _described(operation)
    messages = {wire.Problem, *(each for one in operations for each in (one.about.body, one.about.reply))}
    _, schemas = msgspec.json.schema_components(
        sorted((each for each in messages if isinstance(each, type)), key=lambda each: each.__name__),
        ref_template=_REF,
    )
    return {
        "openapi": "3.1.0",
        "info": {"title": "toolcache", "version": "1", "description": _DESCRIPTION},
        "paths": paths,
        "components": {
            "schemas": dict(sorted(schemas.items())),
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer", "description": _ABOUT_KEYS}},
        },
    }


_DESCRIPTION = (
    "A tool-result cache for agent RL. Every answer says how far it can be trusted. "
    "Errors are problems (RFC 9457) whose `code` stands in a closed list."
)
_ABOUT_KEYS = "An API key, where the service asks for one: `Authorization: Bearer tck_...`"


def _described(operation: Operation) -> dict[str, Any]:
    about = operation.about
    promise, _, rest = (operation.handler.__doc__ or "").partition("\n")
    described: dict[str, Any] = {
        "summary": promise.strip(),
        "operationId": operation.handler.__name__.strip("_"),
        "parameters": _parameters(operation),
        "responses": _responses(operation),
        "security": [] if about.is_public else [{"key": []}, {}],
    }
    if rest.strip():
        described["description"] = " ".join(rest.split())
    if about.body is not None:
        described["requestBody"] = {"required": isinstance(about.body, type), "content": _content(about.body)}
    return described


def _parameters(operation: Operation) -> list[dict[str, Any]]:
    in_path = [
        {"name": name, "in": "path", "required": True, "schema": _PATH_SCHEMAS[name]}
        for name in re.findall(r"{(\w+)}", operation.about.path)
    ]
    in_query = [
        {
            "name": each.name,
            "in": "query",
            "required": each.is_required,
            "description": each.meaning,
            "schema": dict(each.schema),
        }
        for each in operation.about.parameters
    ]
    return in_path + in_query


def _responses(operation: Operation) -> dict[str, Any]:
    about = operation.about
    codes = [*_ANYWHERE, *about.problems]
    if about.body is not None:
        codes += _WITH_BODY
    if not about.is_public:
        codes += (*_WITH_PARAMETERS, *_WITH_KEY, Code.STORE_UNAVAILABLE)
        if not about.is_exempt:
            codes.append(Code.TOO_BUSY)
    if any(each.is_required for each in about.parameters):
        codes.append(Code.MISSING_PARAMETER)
    success: dict[str, Any] = {"204": {"description": "Done"}}
    if about.reply is not None:
        success = {"200": {"description": "Done", "content": _content(about.reply)}}
    by_status: dict[str, list[str]] = {}
    for code in sorted(set(codes), key=lambda code: (code.status, code.word)):
        by_status.setdefault(str(code.status), []).append(code.word)
    problems = {
        status: {"description": " or ".join(words), "content": {CONTENT_TYPE: {"schema": _schema(wire.Problem)}}}
        for status, words in by_status.items()
    }
    return success | problems


def _content(what: type | str) -> dict[str, Any]:
    if isinstance(what, str):
        return {what: {"schema": {"type": "string"}}}
    return {"application/json": {"schema": _schema(what)}}


def _schema(message: type) -> dict[str, str]:
    return {"$ref": _REF.format(name=message.__name__)}
