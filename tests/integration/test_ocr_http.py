"""The routes of ocr-worker, on real child processes with an engine that reads nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import httpx
import pytest
from prometheus_client import REGISTRY
from starlette.testclient import TestClient

import waiting
from answers import assert_error
from ocr_double import CHOICE, page, pages, read_by_double
from ocr_worker.http import Terms, make_app
from ocr_worker.load import Tally
from ocr_worker.reading import DOMAIN, Answer, Asked, Reader
from visionmesh.errors import Rejected, Unavailable
from visionmesh.isolated import Isolated
from visionmesh.observability import tracing
from visionmesh.ocr_document import OcrDocument, PageSize
from visionmesh.results import ImageRow, OcrDocumentRow, OutcomeRow
from visionmesh.testing.results import MemoryImages, MemoryResultStore

MEBIBYTE = 1024 * 1024
WORKER = "ocr-worker"
TERMS = Terms(engines=2, deadline_seconds=30, waiting_limit=8, queue_limit=100, max_bytes=16 * MEBIBYTE)

# How long anything may take on a busy machine.
PATIENCE_SECONDS = 30.0
eventually = partial(waiting.eventually, seconds=PATIENCE_SECONDS)


@dataclass
class Service:
    """What stands behind the routes of a test, and the routes."""

    client: TestClient
    results: MemoryResultStore
    images: MemoryImages
    submitted: list[tuple[bytes, tracing.Trace | None]] = field(default_factory=list)
    lag: int = 0
    refusal: Exception | None = None


@pytest.fixture(scope="module")
def isolated() -> Iterator[Isolated[Asked, Answer]]:
    with Isolated(
        read_by_double, deadline_seconds=10, memory_bytes=1024 * MEBIBYTE, processes=2, preload=(DOMAIN,)
    ) as isolated:
        yield isolated


@pytest.fixture
def serve(isolated: Isolated[Asked, Answer]) -> Iterator[Callable[[Terms], Service]]:
    clients: list[TestClient] = []

    def serve(terms: Terms) -> Service:
        results = MemoryResultStore()
        images = MemoryImages(results)

        def submit(data: bytes, trace: tracing.Trace | None) -> str:
            if service.refusal is not None:
                raise service.refusal
            service.submitted.append((data, trace))
            image_id = f"task-{len(service.submitted)}"
            images.add_image(ImageRow(image_id, "raw-images/x", "aa", len(data), "image/png", tasks=("ocr",)))
            return image_id

        app = make_app(
            WORKER,
            Tally(Reader(isolated, CHOICE, processes=2, max_pages=5)),
            submit=submit,
            images=images,
            lag=lambda: service.lag,
            terms=terms,
            checks={},
        )
        client = TestClient(app, raise_server_exceptions=False)
        client.__enter__()
        clients.append(client)
        service = Service(client, results, images)
        return service

    yield serve
    for client in clients:
        client.__exit__()


@pytest.fixture
def service(serve: Callable[[Terms], Service]) -> Service:
    return serve(TERMS)


def sample(name: str) -> float:
    return REGISTRY.get_sample_value(name) or 0.0


def is_reading() -> bool:
    return sample("mesh_ocr_engines_busy") > 0


# At once


def test_the_text_of_a_picture(service: Service) -> None:
    answer = service.client.post("/ocr", files={"file": ("page.png", page("hola"))})
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert list(body) == [
        "text", "lines", "pages", "language", "engine", "seconds", "seconds_by_stage",
    ]  # fmt: skip
    assert body["text"] == "hola\n300 x 120"
    assert body["lines"][0] == {
        "text": "hola",
        "polygon": [[5.0, 10.0], [95.0, 10.0], [95.0, 20.0], [5.0, 20.0]],
        "confidence": 0.9,
        "page": 1,
    }
    assert body["pages"] == [{"width": 300, "height": 120}]
    assert (body["language"], body["engine"]) == ("es+en", "double")
    assert set(body["seconds_by_stage"]) == {"decode", "detect", "recognise"}


def test_a_document_of_several_pages_sent_as_it_is(service: Service) -> None:
    body = service.client.post("/ocr", content=pages("one", "two", "", "four")).json()
    assert [line["page"] for line in body["lines"]] == [1, 1, 2, 2, 4, 4]
    assert [line["text"] for line in body["lines"][::2]] == ["one", "two", "four"]
    assert len(body["pages"]) == 4


def test_a_page_without_text(service: Service) -> None:
    body = service.client.post("/ocr", content=page("")).json()
    assert (body["text"], body["lines"], len(body["pages"])) == ("", [], 1)


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"", 422, "empty_file"),
        (b"this is a text file", 415, "not_an_image"),
        (b"%PDF-1.7 and so on", 422, "corrupt_document"),
        (page("cut")[:100], 422, "truncated_image"),
        (pages(*"abcdef"), 413, "too_many_pages"),
        (page("crash"), 422, "decoder_crashed"),
        (page("reject"), 422, "unreadable_page"),
        (page("hang"), 422, "deadline_exceeded"),
        (b"\0" * (TERMS.max_bytes + MEBIBYTE), 413, "body_too_large"),
    ],
    ids=["empty", "text", "pdf", "truncated", "long", "crash", "reject", "hang", "large"],
)
def test_bad_documents(service: Service, body: bytes, status: int, code: str) -> None:
    assert_error(service.client.post("/ocr", content=body), status, code)


def test_bad_requests(service: Service) -> None:
    for path in ("/ocr", "/process"):
        assert_error(service.client.post(path, files={"field": (None, "no file")}), 400, "no_file")
        assert_error(service.client.get(path), 405, "method_not_allowed")


def test_an_engine_s_server_that_is_away(service: Service) -> None:
    answer = service.client.post("/ocr", content=page("away"))
    assert_error(answer, 503, "paddlex_unavailable")
    assert answer.headers["retry-after"]


def test_ten_callers_at_once_all_get_their_own_text(service: Service) -> None:
    words = [f"caller {number}" for number in range(10)]
    with ThreadPoolExecutor(10) as callers:
        answers = list(callers.map(lambda word: service.client.post("/ocr", content=page(word)), words))
    assert [answer.status_code for answer in answers] == [200] * 10
    assert [answer.json()["lines"][0]["text"] for answer in answers] == words


def test_one_engine_is_a_semaphore_others_wait_and_too_many_are_turned_away(
    serve: Callable[[Terms], Service], tmp_path: Path
) -> None:
    service = serve(replace(TERMS, engines=1, waiting_limit=1))
    gate = tmp_path / "gate"

    def queue_size() -> int:
        answer = service.client.get("/metrics", headers={"accept": "application/json"})
        return int(answer.json()["queue_size"])

    with ThreadPoolExecutor(2) as callers:
        first = callers.submit(service.client.post, "/ocr", content=page(f"wait {gate}"))
        eventually(is_reading, "an engine that reads")
        second = callers.submit(service.client.post, "/ocr", content=page("second"))
        eventually(lambda: queue_size() == 1, "one that waits")
        third = service.client.post("/ocr", content=page("third"))
        gate.touch()
    assert_error(third, 429, "too_many_waiting")
    assert int(third.headers["retry-after"]) >= 1
    assert first.result().status_code == 200
    assert second.result().json()["lines"][0]["text"] == "second"
    assert queue_size() == 0


def test_who_waits_beyond_the_deadline_is_told_and_not_read(
    serve: Callable[[Terms], Service], tmp_path: Path
) -> None:
    service = serve(replace(TERMS, engines=1, deadline_seconds=3))
    gate = tmp_path / "gate"
    with ThreadPoolExecutor(3) as callers:
        long = pages(f"wait {gate}", "two", "three", "four")
        answers = [callers.submit(service.client.post, "/ocr", content=long)]
        eventually(is_reading, "an engine that reads")
        answers += [callers.submit(service.client.post, "/ocr", content=page(word)) for word in "ab"]
        for answer in answers:
            assert_error(answer.result(), 504, "answer_overdue")
        before = sample("mesh_ocr_pages_total")
        gate.touch()
    # Of the one that was under way only the page is brought to its end, before the next.
    assert service.client.post("/ocr", content=page("next")).status_code == 200
    counts = service.client.get("/metrics", headers={"accept": "application/json"}).json()
    assert counts["requests_total"] == 2
    assert sample("mesh_ocr_pages_total") == before + 2


def sending(
    service: Service, others: Callable[[httpx.AsyncClient], Awaitable[list[httpx.Response]]]
) -> tuple[httpx.Response, list[httpx.Response]]:
    """The answer to a caller that sends its document only when those of others are there, and those."""

    async def answers() -> tuple[httpx.Response, list[httpx.Response]]:
        inside, sent = asyncio.Event(), asyncio.Event()

        async def body() -> AsyncIterator[bytes]:
            inside.set()
            await sent.wait()
            yield page("slow")

        transport = httpx.ASGITransport(service.client.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://ocr") as client:
            slow = asyncio.create_task(client.post("/ocr", content=body()))
            await inside.wait()
            found = await others(client)
            sent.set()
            return await slow, found

    return asyncio.run(answers())


def test_who_still_sends_has_a_place_already(serve: Callable[[Terms], Service]) -> None:
    async def others(client: httpx.AsyncClient) -> list[httpx.Response]:
        return [await client.post("/ocr", content=page("other"))]

    slow, (other,) = sending(serve(replace(TERMS, engines=1, waiting_limit=0)), others)
    assert_error(other, 429, "too_many_waiting")
    assert slow.json()["lines"][0]["text"] == "slow"


def test_documents_are_not_received_beyond_what_memory_they_may_take(
    serve: Callable[[Terms], Service],
) -> None:
    async def others(client: httpx.AsyncClient) -> list[httpx.Response]:
        return [await client.post(path, content=page("other")) for path in ("/ocr", "/process")]

    service = serve(replace(TERMS, waiting_bytes=TERMS.max_bytes))
    slow, found = sending(service, others)
    assert slow.status_code == 200
    for answer in found:
        assert_error(answer, 429, "too_many_waiting")
    assert service.client.post("/process", content=page("later")).status_code == 202


def test_a_document_that_does_not_come(serve: Callable[[Terms], Service]) -> None:
    service = serve(replace(TERMS, engines=1, waiting_limit=0, deadline_seconds=0.2))

    async def others(client: httpx.AsyncClient) -> list[httpx.Response]:
        async def never() -> AsyncIterator[bytes]:
            await asyncio.Event().wait()
            yield b""

        return [await client.post("/process", content=never())]

    slow, (other,) = sending(service, others)
    for answer in (slow, other):
        assert_error(answer, 408, "upload_stalled")


# Through the queue


def test_a_document_is_put_into_the_queue(service: Service) -> None:
    data = page("later")
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    answer = service.client.post("/process", files={"file": ("p.png", data)}, headers={"traceparent": parent})
    assert (answer.status_code, answer.json()) == (202, {"task_id": "task-1"})
    ((stored, trace),) = service.submitted
    assert stored == data
    assert trace is not None
    assert trace.trace_id == "0af7651916cd43dd8448eb211c80319c"


def test_the_result_of_a_task_from_its_place_in_the_queue_to_its_text(service: Service) -> None:
    ids = [service.client.post("/process", content=page(word)).json()["task_id"] for word in "abc"]

    def results() -> list[object]:
        return [service.client.get(f"/result/{task_id}").json() for task_id in ids]

    def processing(position: int) -> dict[str, object]:
        return {"status": "processing", "position": position}

    assert results() == [processing(0), processing(1), processing(2)]
    service.results.begin(WORKER, ids[:1])
    assert results() == [processing(0), processing(1), processing(2)]
    document = OcrDocument("a", (), (PageSize(1, 2),), "es+en", "double", {"detect": 0.25})
    service.results.save([OcrDocumentRow(ids[0], document), OutcomeRow(ids[0], WORKER, "done")])
    service.results.save([OutcomeRow(ids[1], WORKER, "failed", "corrupt_image: It is: broken.")])
    assert results() == [
        {
            "result": {
                "text": "a",
                "lines": [],
                "pages": [{"width": 1, "height": 2}],
                "language": "es+en",
                "engine": "double",
                "seconds": 0.25,
                "seconds_by_stage": {"detect": 0.25},
            }
        },
        {"status": "failed", "error": "It is: broken.", "code": "corrupt_image"},
        processing(0),
    ]


def test_a_picture_that_was_never_uploaded_here_has_a_result_too(service: Service) -> None:
    service.results.begin(WORKER, ["foreign"])
    assert service.client.get("/result/foreign").json() == {"status": "processing", "position": 0}
    service.results.save([OutcomeRow("foreign", WORKER, "skipped", "task_not_asked: not among the tasks")])
    assert service.client.get("/result/foreign").json()["code"] == "task_not_asked"


@pytest.mark.parametrize("task_id", ["unknown", "a%20b", "a" * 200, "%2e%2e"])
def test_a_task_that_nobody_knows(service: Service, task_id: str) -> None:
    assert service.client.get(f"/result/{task_id}").status_code == 404


def test_a_queue_that_is_too_long_is_said(service: Service) -> None:
    service.lag = TERMS.queue_limit
    assert service.client.post("/process", content=page("in")).status_code == 202
    service.lag += 1
    answer = service.client.post("/process", content=page("out"))
    assert "101 documents" in assert_error(answer, 429, "queue_full")
    assert int(answer.headers["retry-after"]) >= 1
    assert len(service.submitted) == 1
    # Who waits for the answer takes no place in that queue.
    assert service.client.post("/ocr", content=page("at once")).status_code == 200


def test_what_ingest_api_refuses_is_refused_and_while_it_is_away_503(service: Service) -> None:
    service.refusal = Rejected("not_an_image", "The file begins like none of the accepted formats.")
    assert_error(service.client.post("/process", content=b"text"), 415, "not_an_image")
    service.refusal = Unavailable("ingest_api", "connection refused")
    answer = service.client.post("/process", content=page("a"))
    assert_error(answer, 503, "ingest_api_unavailable")
    assert answer.headers["retry-after"]


def test_a_database_that_is_away(service: Service) -> None:
    service.images.available = False
    assert_error(service.client.get("/result/a"), 503, "database_unavailable")


# Metrics


def test_metrics_in_the_first_design_s_words_for_who_asks_for_json(service: Service) -> None:
    service.lag = 7
    service.client.post("/ocr", content=page("one"))
    service.client.post("/ocr", content=b"text")
    answer = service.client.get("/metrics", headers={"accept": "application/json"}).json()
    assert list(answer) == ["requests_total", "requests_failed", "avg_processing_time", "queue_size"]
    assert (answer["requests_total"], answer["requests_failed"], answer["queue_size"]) == (2, 1, 7)
    assert answer["avg_processing_time"] > 0


@pytest.mark.parametrize(
    "accept",
    ["", "*/*", "text/plain", "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;q=0.4,*/*;q=0.1"],
)
def test_metrics_for_prometheus(service: Service, accept: str) -> None:
    text = service.client.get("/metrics", headers={"accept": accept}).text
    for name in (
        "mesh_ocr_pages_total",
        "mesh_ocr_documents_total",
        "mesh_ocr_stage_seconds_bucket",
        "mesh_ocr_engines ",
        "mesh_ocr_engines_busy ",
        "mesh_ocr_engine_resident_bytes",
        "mesh_ocr_waiting ",
        "mesh_ocr_queue ",
    ):
        assert name in text
