"""Describe the contract's messages in the OpenAPI document, from the very types that decode them."""

from __future__ import annotations

from typing import Any

import msgspec
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from toolcache_client import messages as wire

_REF = "#/components/schemas/{name}"
_MESSAGES = (
    wire.LookupRequest,
    wire.LookupReply,
    wire.RecordRequest,
    wire.RecordReply,
    wire.NamespaceSpec,
    wire.Namespaces,
    wire.Stats,
    wire.ImportReport,
    wire.Problem,
)


def documented(
    body: type[wire.Message] | None,
    reply: type[wire.Message | wire.Reply] | None,
    *,
    query: tuple[str, ...] = (),
    ndjson: bool = False,
) -> dict[str, Any]:
    """The keyword arguments of `add_api_route` that describe an endpoint's messages."""
    operation: dict[str, Any] = {"responses": _responses(reply)}
    if body is not None:
        operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": _schema(body)}}}
    if ndjson:
        operation["requestBody"] = {"required": True, "content": {"application/x-ndjson": {"schema": {}}}}
        operation["parameters"] = [_parameter("namespace", required=False)]
    if query:
        operation["parameters"] = [_parameter(name, required=True) for name in query]
    return {"openapi_extra": operation, "response_model": None}


def describe(app: FastAPI) -> None:
    """Make the app's OpenAPI document hold the messages' schemas."""

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            made = get_openapi(title=app.title, version=app.version, routes=app.routes)
            _, components = msgspec.json.schema_components(_MESSAGES, ref_template=_REF)
            made.setdefault("components", {}).setdefault("schemas", {}).update(components)
            app.openapi_schema = made
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]  # the way FastAPI documents for extending it


def _schema(message: type) -> dict[str, str]:
    return {"$ref": _REF.format(name=message.__name__)}


def _responses(reply: type | None) -> dict[str, Any]:
    ok: dict[str, Any] = {"description": "Done"}
    if reply is not None:
        ok["content"] = {"application/json": {"schema": _schema(reply)}}
    refused = {"description": "A problem", "content": {"application/problem+json": {"schema": _schema(wire.Problem)}}}
    return {"200": ok, "4XX": refused, "5XX": refused}


def _parameter(name: str, *, required: bool) -> dict[str, Any]:
    return {"name": name, "in": "query", "required": required, "schema": {"type": "string"}}
