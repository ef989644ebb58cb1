"""HTTP/1.1 as bytes: one request out, one reply in. No I/O; the parser is llhttp, which the service reads with too."""

from __future__ import annotations

import httptools
import httpx


def request_bytes(request: httpx.Request, body: bytes) -> bytes:
    """The request as it travels, in one piece: head and body leave in one packet."""
    raw = [f"{request.method} ".encode(), request.url.raw_path, b" HTTP/1.1\r\n"]
    for name, value in request.headers.raw:
        raw += (name, b": ", value, b"\r\n")
    raw += (b"\r\n", body)
    return b"".join(raw)


class NoReply(ValueError):
    """What arrived is not one HTTP/1.1 reply."""


class Reply:
    """One reply, as far as it has arrived."""

    def __init__(self) -> None:
        self.status = 0
        """0 until the head is whole."""
        self.headers: list[tuple[bytes, bytes]] = []
        self.is_complete = False
        self.keeps_alive = False
        """The connection may carry another request; told when the reply is complete."""
        self.unread_bytes = 0
        self._body: list[bytes] = []
        self._is_delimited = False
        self._parser = httptools.HttpResponseParser(self)

    def feed(self, data: bytes) -> None:
        """Raises NoReply."""
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            raise NoReply(str(error.__context__ or error)) from error  # our own NoReply is the context

    def end(self) -> bool:
        """The connection has ended; whether the reply is whole, which one without a stated length is by that."""
        if self.status and not self._is_delimited:
            self.is_complete = True
        return self.is_complete

    def take(self) -> bytes:
        """What of the body has arrived since it was last taken."""
        body, self._body, self.unread_bytes = b"".join(self._body), [], 0
        return body

    # -- called by the parser ------------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        if self.is_complete:
            raise NoReply("a reply that nobody asked for follows")

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name, value))
        if name.lower() in (b"content-length", b"transfer-encoding"):
            self._is_delimited = True

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if status >= 200:
            self.status = status

    def on_body(self, body: bytes) -> None:
        self._body.append(body)
        self.unread_bytes += len(body)

    def on_message_complete(self) -> None:
        if not self.status:  # 1xx says that the reply is still to come
            self.headers, self._is_delimited = [], False
            return
        self.is_complete = True
        self.keeps_alive = self._parser.should_keep_alive()
