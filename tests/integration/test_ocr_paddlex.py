"""The engine `paddlex` against a server that answers as PaddleX's does, and as it should not.

The last test runs the server itself: with MESH_PADDLEX_URL naming one that runs.
"""

from __future__ import annotations

import base64
import io
import json
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from ocr_worker.domain import PageImage
from ocr_worker.engines import open_engine
from ocr_worker.paddlex_engine import PaddleX
from ocr_worker.reading import EngineChoice
from visionmesh.errors import Rejected, Unavailable

Answer = tuple[int, bytes]

POLYGON = [[38, 34], [271, 34], [271, 74], [38, 74]]


def page(text: str = "") -> PageImage:
    image = Image.new("RGB", (900, 200), (255, 250, 240))
    ImageDraw.Draw(image).text((40, 30), text, fill="black", font_size=40)
    return np.asarray(image)


@contextmanager
def answering(answer: Callable[[dict[str, Any]], Answer]) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            status, data = answer(json.loads(self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(status if self.path == "/ocr" else 404)
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


def engine(url: str, page_seconds: float = 60.0) -> PaddleX:
    return PaddleX(url, "es+en", page_seconds=page_seconds)


def told(**pruned: Any) -> bytes:
    result = {"ocrResults": [{"prunedResult": pruned, "ocrImage": None}], "dataInfo": {}}
    return json.dumps({"logId": "x", "errorCode": 0, "errorMsg": "Success", "result": result}).encode()


def test_lines_come_with_their_places_and_the_page_goes_there_as_it_is() -> None:
    asked = []

    def answer(body: dict[str, Any]) -> Answer:
        asked.append(body)
        pruned = {"rec_texts": ["Invoice 4711", " "], "rec_scores": [0.99, 0.1], "rec_polys": [POLYGON] * 2}
        return 200, told(**pruned)

    with answering(answer) as url:
        read = engine(url).read(page())
    (line,) = read.lines
    assert (line.text, line.confidence, line.page) == ("Invoice 4711", 0.99, 1)
    assert line.polygon == ((38.0, 34.0), (271.0, 34.0), (271.0, 74.0), (38.0, 74.0))
    assert set(read.seconds) == {"encode", "serve"}
    ((body),) = asked
    assert (body["fileType"], body["visualize"]) == (1, False)
    sent = Image.open(io.BytesIO(base64.b64decode(body["file"])))
    assert (np.asarray(sent.convert("RGB")) == page()).all()


def test_a_page_without_text() -> None:
    with answering(lambda _: (200, told(rec_texts=[], rec_scores=[], rec_polys=[], dt_polys=[]))) as url:
        assert engine(url).read(page()).lines == []


def test_a_page_that_the_server_refuses_is_the_page_s_fault() -> None:
    with answering(lambda _: (422, b'{"errorCode": 422, "errorMsg": "Invalid file"}')) as url:
        with pytest.raises(Rejected, match="Invalid file") as caught:
            engine(url).read(page())
    assert caught.value.code == "unreadable_page"


@pytest.mark.parametrize(
    "answer",
    [(500, b"{}"), (200, b"{}"), (200, b"[]"), (200, b"text"), (503, b""), (404, b"{}"), (429, b"{}")],
)
def test_a_server_that_fails_is_away(answer: Answer) -> None:
    with answering(lambda _: answer) as url:
        with pytest.raises(Unavailable) as caught:
            engine(url).read(page())
    assert caught.value.server == "paddlex"


def test_a_server_that_hangs_is_away_before_the_page_s_time_is_over() -> None:
    over = threading.Event()

    def hang(_: dict[str, Any]) -> Answer:
        over.wait(60)
        return 200, b""

    with answering(hang) as url:
        with pytest.raises(Unavailable, match=r"read timeout=0\.18"):
            engine(url, page_seconds=0.2).read(page())
        over.set()


def test_a_server_that_does_not_run_is_away() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(Unavailable):
        engine(f"http://127.0.0.1:{port}/").read(page())


def test_engines_are_opened_by_name() -> None:
    opened = open_engine(EngineChoice("paddlex", "es+en", 1, "http://127.0.0.1:1"))
    assert (opened.name, opened.language) == ("paddlex", "es+en")
    with pytest.raises(Unavailable, match="xx") as caught:
        open_engine(EngineChoice("rapidocr", "xx", 1, ""))
    assert caught.value.server == "ocr_engine"


def test_the_server_itself_reads() -> None:
    url = os.environ.get("MESH_PADDLEX_URL")
    if url is None:
        pytest.skip("no server of PaddleX: MESH_PADDLEX_URL names one")
    read = engine(url).read(page("Invoice 4711"))
    assert [line.text for line in read.lines] == ["Invoice 4711"]
    assert engine(url).read(page()).lines == []
