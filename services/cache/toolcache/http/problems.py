"""Every error the service answers with: an RFC 9457 problem whose `code` stands in this closed list."""

from __future__ import annotations

from enum import Enum
from http import HTTPStatus

import msgspec

from toolcache_client.messages import Problem

CONTENT_TYPE = "application/problem+json"
RETRY_AFTER_S = 1
"""What a request that found the service too busy is asked to wait: requests in work take milliseconds."""
_LONGEST_NAME = 64


class Code(Enum):
    """The closed list: (HTTP status, title)."""

    MALFORMED_BODY = (HTTPStatus.BAD_REQUEST, "The body is not a message of this endpoint")
    MISSING_PARAMETER = (HTTPStatus.BAD_REQUEST, "A query parameter is missing")
    INVALID_PARAMETER = (HTTPStatus.BAD_REQUEST, "A query parameter is unknown, or cannot have this value")
    UNAUTHENTICATED = (HTTPStatus.UNAUTHORIZED, "No key, or one that is not valid")
    FORBIDDEN = (HTTPStatus.FORBIDDEN, "The key's role does not allow it")
    UNKNOWN_NAMESPACE = (HTTPStatus.NOT_FOUND, "No such namespace, for this key")
    UNKNOWN_KEY = (HTTPStatus.NOT_FOUND, "No such API key")
    NOT_FOUND = (HTTPStatus.NOT_FOUND, "No such endpoint")
    METHOD_NOT_ALLOWED = (HTTPStatus.METHOD_NOT_ALLOWED, "The endpoint has no such method")
    BODY_STALLED = (HTTPStatus.REQUEST_TIMEOUT, "The body stopped arriving")
    BODY_TOO_LARGE = (HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "The body is too large")
    TOO_MANY_ITEMS = (HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "The batch has too many items")
    INVALID_NAMESPACE = (HTTPStatus.UNPROCESSABLE_ENTITY, "The toolset cannot be used")
    INVALID_VALUE = (HTTPStatus.UNPROCESSABLE_ENTITY, "A value lies outside its bounds")
    TOO_BUSY = (HTTPStatus.TOO_MANY_REQUESTS, "The service has all the work it takes")
    STORE_UNAVAILABLE = (HTTPStatus.SERVICE_UNAVAILABLE, "The store gave no answer")
    STOPPING = (HTTPStatus.SERVICE_UNAVAILABLE, "The service is going down")
    INTERNAL = (HTTPStatus.INTERNAL_SERVER_ERROR, "A defect of the service")

    @property
    def status(self) -> int:
        return int(self.value[0])

    @property
    def word(self) -> str:
        return self.name.lower()


class Refused(Exception):
    """Ends a request with a problem; `detail` says what to do."""

    def __init__(self, code: Code, detail: str) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail


class ClientGone(Exception):
    """Nobody is there any more to be answered."""


def unknown_namespace(name: str) -> Refused:
    """The same words whether there is none or this key may not know of it."""
    shown = name if len(name) <= _LONGEST_NAME else f"{name[:_LONGEST_NAME]}..."
    return Refused(
        Code.UNKNOWN_NAMESPACE,
        f"no namespace {shown!r}, or none that this key may use; create it with PUT /v1/namespaces/{shown}",
    )


def body_of(code: Code, detail: str) -> bytes:
    title = code.value[1]
    return msgspec.json.encode(
        Problem(
            type=f"urn:toolcache:problem:{code.word}", title=title, status=code.status, detail=detail, code=code.word
        )
    )


def headers_of(code: Code) -> dict[str, str]:
    """What goes with the problem beside its content type."""
    match code:
        case Code.UNAUTHENTICATED:
            return {"www-authenticate": "Bearer"}
        case Code.TOO_BUSY:
            return {"retry-after": str(RETRY_AFTER_S)}
        case _:
            return {}
