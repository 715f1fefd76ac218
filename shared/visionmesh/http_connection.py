"""Connections that no client can hold for nothing: limits on the size of a request's head and on waiting.

A client that sends or takes too slowly costs a connection, and with it a request, its memory and, on some
routes, a connection to the object store; a few hundred of them would be all there are.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import struct
import termios
from contextlib import suppress
from http import HTTPStatus
from typing import Any, Final

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

# The address and the headers of a request; browsers and proxies send a few kilobytes.
MAX_HEAD_BYTES: Final = 64 * 1024

# From the first byte, or from the connection, to the end of the headers.
HEAD_SECONDS: Final = 10.0

# A body may pause, and be as slow as the worst of mobile networks. Above what a route itself waits for the
# next piece, so that it can say so in its own words.
BODY_SECONDS: Final = 40.0
# And so may a client take an answer. Whoever takes nothing of it for so long is gone.
UNREAD_SECONDS: Final = 60.0

BYTES_PER_SECOND: Final = 8 * 1024

# How often connections are looked at.
LOOK_SECONDS: Final = 2.0


class BoundedConnection(HttpToolsProtocol):
    """Uvicorn's protocol with limits; more headers are answered 431, more waiting 408, and it is closed.

    The parser reports a header when it is complete, so what it holds of an unfinished one is told by how
    much it took since its last report.

    Time counts while the client is waited for: not while the service itself does not read on, and not while
    it works on the answer.
    """

    _head_bytes = 0
    _unreported_bytes = 0
    _has_spoken = False
    _status = HTTPStatus.BAD_REQUEST
    # What the client has yet to send, how long that took so far, and how much of a body came.
    _missing: str | None = "head"
    _waited = 0.0
    _body_bytes = 0
    # How long an answer waits for the client to take it, and what of it waited at first.
    _unread = 0.0
    _untaken: int | None = None
    _look_again: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._look_again = self.loop.call_later(LOOK_SECONDS, self._look)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._look_again is not None:
            self._look_again.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._has_spoken = True
        self._unreported_bytes += len(data)
        super().data_received(data)
        if self._unreported_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
            self._status = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
            self.send_400_response("")

    def resume_writing(self) -> None:
        self._unread = 0.0
        self._untaken = None
        super().resume_writing()

    def on_message_begin(self) -> None:
        self._head_bytes = self._unreported_bytes = 0
        self._wait_for("head")
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count(len(name) + len(value))
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._unreported_bytes = 0
        self._wait_for("body")
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._unreported_bytes = 0
        self._body_bytes += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._unreported_bytes = 0
        self._wait_for(None)
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """Answers what is no request that can be handed on, in the shape of all errors."""
        code = "bad_request"
        if self._status == HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE:
            code = "headers_too_large"
            msg = f"The headers of the request are too large: at most {MAX_HEAD_BYTES} bytes are accepted."
        elif self._status == HTTPStatus.REQUEST_TIMEOUT:
            code = "request_too_slow"
        body = json.dumps({"error": msg, "code": code}).encode()
        head = f"content-type: application/json\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
        self.transport.write(STATUS_LINE[self._status] + head.encode() + body)
        self.transport.close()

    def _count(self, length: int) -> None:
        self._unreported_bytes = 0
        self._head_bytes += length
        if self._head_bytes > MAX_HEAD_BYTES:
            self._status = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
            # Ends the parsing; Uvicorn then asks for `send_400_response`.
            raise ValueError("the headers are too large")

    def _wait_for(self, part: str | None) -> None:
        self._missing = part
        self._waited = 0.0
        self._body_bytes = 0

    def _look(self) -> None:
        transport: Any = self.transport
        # A WebSocket has a protocol of its own from its head on.
        if transport.get_protocol() is not self:
            return
        self._look_again = self.loop.call_later(LOOK_SECONDS, self._look)
        # What is closed stays until the client has taken the last answer.
        if self.flow.write_paused or transport.is_closing():
            left = _untaken_bytes(transport)
            if self._untaken is None:
                self._untaken = left
            self._unread += LOOK_SECONDS
            if self._unread > UNREAD_SECONDS + (self._untaken - left) / BYTES_PER_SECOND:
                # Closing would wait until the client has taken the rest.
                transport.abort()
        elif self._missing is not None and not self.flow.read_paused:
            self._waited += LOOK_SECONDS
            if self._waited > self._patience():
                self._give_up()

    def _patience(self) -> float:
        if self._missing == "head":
            return HEAD_SECONDS
        return BODY_SECONDS + self._body_bytes / BYTES_PER_SECOND

    def _give_up(self) -> None:
        answered = self._missing == "body" and self.cycle is not None and self.cycle.response_started
        if answered or not self._has_spoken:
            self.transport.close()
            return
        self._status = HTTPStatus.REQUEST_TIMEOUT
        self.send_400_response(f"The {self._missing} of the request came too slowly.")


def _untaken_bytes(transport: Any) -> int:
    """What the client has not acknowledged: in the transport, and in the kernel, which holds megabytes."""
    sent = bytes(4)
    # Elsewhere than on Linux only the transport tells.
    with suppress(OSError):
        sent = fcntl.ioctl(transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, sent)
    return int(transport.get_write_buffer_size()) + int(struct.unpack("i", sent)[0])
