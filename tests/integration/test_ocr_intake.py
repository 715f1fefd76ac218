"""How ocr-worker hands documents to ingest-api: against the real upload, and against what may go wrong."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.parser import BytesParser
from email.policy import HTTP
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from ocr_worker.intake import IngestApi
from visionmesh.errors import Rejected, Unavailable
from visionmesh.observability import tracing

Answer = tuple[int, bytes]


@contextmanager
def answering(answer: Callable[[dict[str, bytes], str], Answer]) -> Iterator[str]:
    """The address of a server whose answer is made of a form's fields and the traceparent."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            head = f"content-type: {self.headers['content-type']}\r\n\r\n".encode()
            form = BytesParser(policy=HTTP).parsebytes(head + body)
            fields = {
                str(part.get_param("name", header="content-disposition")): bytes(
                    part.get_payload(decode=True)
                )
                for part in form.iter_parts()
            }
            status, data = answer(fields, self.headers.get("traceparent", ""))
            self.send_response(status if self.path == "/upload" else 404)
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/"
    finally:
        server.shutdown()
        server.server_close()


def test_a_document_is_uploaded_for_its_text_alone_within_the_caller_s_trace() -> None:
    seen = []
    trace = tracing.Trace.new(sampled=True)

    def answer(fields: dict[str, bytes], parent: str) -> Answer:
        seen.append((fields, parent))
        return 202, json.dumps({"image_id": "new", "status": "accepted"}).encode()

    with answering(answer) as url:
        assert IngestApi(url)(b"\0\r\n--bytes", trace) == "new"
        assert IngestApi(url)(b"", None) == "new"
    assert seen == [
        ({"tasks": b"ocr", "file": b"\0\r\n--bytes"}, str(trace)),
        ({"tasks": b"ocr", "file": b""}, ""),
    ]


def test_a_refusal_is_handed_on() -> None:
    with answering(lambda *_: (415, b'{"error": "No picture.", "code": "not_an_image"}')) as url:
        with pytest.raises(Rejected, match="No picture") as caught:
            IngestApi(url)(b"text", None)
    assert caught.value.code == "not_an_image"


@pytest.mark.parametrize(
    "answer",
    [
        (503, b'{"error": "The database can\'t be reached.", "code": "database_unavailable"}'),
        (500, b"oops"),
        (502, b"<html>a proxy</html>"),
        (404, b"[]"),
        (202, b"{}"),
        (202, b"null"),
    ],
)
def test_anything_else_is_an_api_that_is_away(answer: Answer) -> None:
    with answering(lambda *_: answer) as url:
        with pytest.raises(Unavailable) as caught:
            IngestApi(url)(b"data", None)
    assert caught.value.server == "ingest_api"


def test_an_api_that_does_not_run() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(Unavailable):
        IngestApi(f"http://127.0.0.1:{port}")(b"data", None)
