"""Every error the service answers with: an RFC 9457 problem whose `code` stands in this closed list."""

from __future__ import annotations

from enum import Enum
from http import HTTPStatus

import msgspec
from fastapi import Request, Response

from toolcache_client.messages import Problem

CONTENT_TYPE = "application/problem+json"


class Code(Enum):
    """The closed list: (HTTP status, title)."""

    MALFORMED_BODY = (HTTPStatus.BAD_REQUEST, "The body is not a message of this endpoint")
    MISSING_PARAMETER = (HTTPStatus.BAD_REQUEST, "A query parameter is missing")
    UNKNOWN_NAMESPACE = (HTTPStatus.NOT_FOUND, "No such namespace")
    NOT_FOUND = (HTTPStatus.NOT_FOUND, "No such endpoint")
    METHOD_NOT_ALLOWED = (HTTPStatus.METHOD_NOT_ALLOWED, "The endpoint has no such method")
    BODY_TOO_LARGE = (HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "The body is too large")
    TOO_MANY_ITEMS = (HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "The batch has too many items")
    INVALID_NAMESPACE = (HTTPStatus.UNPROCESSABLE_ENTITY, "The toolset cannot be used")
    STORE_UNAVAILABLE = (HTTPStatus.SERVICE_UNAVAILABLE, "The store gave no answer")
    INTERNAL = (HTTPStatus.INTERNAL_SERVER_ERROR, "A defect of the service")


class Refused(Exception):
    """Ends a request with a problem; `detail` says what to do."""

    def __init__(self, code: Code, detail: str) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail


def problem(code: Code, detail: str) -> Response:
    status, title = code.value
    name = code.name.lower()
    body = Problem(type=f"urn:toolcache:problem:{name}", title=title, status=status, detail=detail, code=name)
    return Response(msgspec.json.encode(body), status_code=status, media_type=CONTENT_TYPE)


async def of_refusal(_: Request, error: Exception) -> Response:
    """Exception handler for Refused."""
    assert isinstance(error, Refused)
    return problem(error.code, error.detail)
