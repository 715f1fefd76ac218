"""The step of ocr-worker on an engine that reads nothing, and what reading in children promises."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest
from prometheus_client import REGISTRY
from pydantic import ValidationError

from ocr_double import CHOICE, page, pages, read_by_double
from ocr_worker import reading
from ocr_worker.__main__ import announce, cores, engine_choice, warm_up
from ocr_worker.load import GroupLag, Tally, retry_after
from ocr_worker.reading import DOMAIN, Answer, Asked, Reader
from ocr_worker.step import make_step
from visionmesh.contracts import ImageUploaded
from visionmesh.errors import Rejected, Unavailable
from visionmesh.isolated import Isolated
from visionmesh.ocr_document import OcrDocument, joined
from visionmesh.results import OcrDocumentRow
from visionmesh.settings import Settings, problems
from visionmesh.testing.results import MemoryResultStore
from visionmesh.worker.step import Done, Skipped, Verdict

MEBIBYTE = 1024 * 1024

OBJECTS = {
    "raw-images/one.png": page("one"),
    "raw-images/three.tif": pages("uno", "", "tres"),
    "raw-images/blank.png": page(""),
    "raw-images/cut.png": page("cut")[:100],
    "raw-images/text": b"this is no picture",
    "raw-images/paper.pdf": b"%PDF-1.7 and so on",
    "raw-images/long.tif": pages(*"abcdef"),
}


def fetch(minio_path: str) -> bytes:
    if minio_path == "raw-images/away":
        raise Unavailable("object_store", "connection refused")
    try:
        return OBJECTS[minio_path]
    except KeyError:
        raise Rejected("object_not_found", f"{minio_path} does not exist") from None


def read_here(data: bytes, until: float | None = None) -> OcrDocument:
    """What children would do, in this process."""
    first = read_by_double(Asked(data, 1, 5, CHOICE)).page
    others = (read_by_double(Asked(data, number, 5, CHOICE)).page for number in range(2, first.pages + 1))
    return joined([first, *others])


def message(name: str, tasks: tuple[str, ...] | None = None) -> ImageUploaded:
    return ImageUploaded(name, f"raw-images/{name}", tasks)


MIXED = [
    message("one.png"),
    message("missing.png"),
    message("three.tif", ("ocr",)),
    message("blank.png"),
    message("cut.png"),
    message("text"),
    message("paper.pdf"),
    message("long.tif"),
    message("one.png", ("classify", "qr")),
]

EXPECTED = [
    "one\n300 x 120",
    "object_not_found",
    "uno\n300 x 120\n\n\n\ntres\n300 x 120",
    "",
    "truncated_image",
    "not_an_image",
    "corrupt_document",
    "too_many_pages",
    "Skipped",
]


def told(verdicts: Sequence[Verdict]) -> list[str]:
    """The text of each document, or what became of it."""
    found = []
    for verdict in verdicts:
        if isinstance(verdict, Done):
            (row,) = verdict.rows
            assert isinstance(row, OcrDocumentRow)
            assert verdict.messages == ()
            found.append(row.document.text)
        else:
            found.append(verdict.code if isinstance(verdict, Rejected) else type(verdict).__name__)
    return found


def test_each_document_gets_its_text_and_bad_ones_cost_only_themselves() -> None:
    assert told(make_step(fetch, read_here)(MIXED)) == EXPECTED


def test_twice_leaves_the_same_rows() -> None:
    step, store = make_step(fetch, read_here, processes=3), MemoryResultStore()
    stored = []
    for _ in range(2):
        store.save([row for verdict in step(MIXED) if isinstance(verdict, Done) for row in verdict.rows])
        stored.append(
            [(row.image_id, row.document.text, row.document.lines, at) for row, at in store.documents()]
        )
    assert stored[0] == stored[1]
    assert [image_id for image_id, *_ in stored[0]] == ["blank.png", "one.png", "three.tif"]


def test_pages_are_told_apart() -> None:
    (verdict,) = make_step(fetch, read_here)([message("three.tif")])
    assert isinstance(verdict, Done)
    (row,) = verdict.rows
    assert isinstance(row, OcrDocumentRow)
    assert [(line.page, line.text) for line in row.document.lines] == [
        (1, "uno"), (1, "300 x 120"), (3, "tres"), (3, "300 x 120"),
    ]  # fmt: skip
    assert len(row.document.pages) == 3
    assert row.document.seconds["detect"] == pytest.approx(0.003)


def test_a_skipped_picture_says_why() -> None:
    (other,) = make_step(fetch, read_here)(MIXED[-1:])
    assert isinstance(other, Skipped)
    assert "task_not_asked" in other.reason


@pytest.mark.parametrize("name", ["away", "engine"])
def test_a_server_that_is_away_is_not_the_document_s_fault(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(OBJECTS, "raw-images/engine", page("away"))
    with pytest.raises(Unavailable):
        make_step(fetch, read_here)([message("one.png"), message(name)])


# In children


@pytest.fixture(scope="module")
def isolated() -> Iterator[Isolated[Asked, Answer]]:
    with Isolated(
        read_by_double,
        deadline_seconds=10,
        memory_bytes=1024 * MEBIBYTE,
        processes=2,
        preload=(DOMAIN,),
    ) as isolated:
        yield isolated


@pytest.fixture
def read(isolated: Isolated[Asked, Answer]) -> Reader:
    return Reader(isolated, CHOICE, processes=2, max_pages=5)


def sample(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


def test_children_read_the_same(read: Reader) -> None:
    assert told(make_step(fetch, read, processes=2)(MIXED)) == EXPECTED


def test_what_is_read_is_counted(read: Reader) -> None:
    series = [
        ("mesh_ocr_pages_total", {}),
        ("mesh_ocr_stage_seconds_count", {"stage": "decode"}),
        ("mesh_ocr_stage_seconds_count", {"stage": "recognise"}),
        ("mesh_ocr_documents_total", {"result": "read"}),
        ("mesh_ocr_documents_total", {"result": "rejected"}),
    ]
    before = [sample(name, **labels) for name, labels in series]
    tally = Tally(read)
    make_step(fetch, tally, processes=2)(MIXED)
    gained = [sample(name, **labels) - one for (name, labels), one in zip(series, before, strict=True)]
    assert gained == [5, 5, 5, 3, 4]
    assert (tally.counts.ended, tally.counts.failed) == (7, 4)
    assert tally.counts.mean_seconds > 0
    assert sample("mesh_ocr_engines") == 2
    assert sample("mesh_ocr_engines_busy") == 0
    assert sample("mesh_ocr_engine_resident_bytes", engine="1") > MEBIBYTE


@pytest.mark.parametrize(
    ("fault", "code"),
    [("crash", "decoder_crashed"), ("hang", "deadline_exceeded"), ("reject", "unreadable_page")],
)
def test_a_page_that_ends_its_engine_costs_its_own_document_and_says_which_page(
    read: Reader, fault: str, code: str
) -> None:
    good = [page(f"good {number}") for number in range(6)]
    bad = pages("fine", fault, "fine", "fine")
    with ThreadPoolExecutor(4) as threads:
        failing = threads.submit(read, bad)
        texts = [document.lines[0].text for document in threads.map(read, good)]
        with pytest.raises(Rejected, match="Page 2: ") as caught:
            failing.result()
    assert caught.value.code == code
    assert texts == [f"good {number}" for number in range(6)]


def test_an_engine_s_server_that_is_away_is_no_bug(read: Reader) -> None:
    with pytest.raises(Unavailable, match="connection refused"):
        read(page("away"))


def test_no_page_is_begun_for_who_waits_no_longer(read: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([1.0, 3.0, 3.0])
    monkeypatch.setattr(reading, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    before = sample("mesh_ocr_pages_total")
    with pytest.raises(Rejected) as caught:
        read(pages("one", "two", "three"), until=2.0)
    assert caught.value.code == "answer_overdue"
    assert sample("mesh_ocr_pages_total") == before + 1


def test_three_hundred_documents_from_eight_callers_never_change_places(read: Reader) -> None:
    words = [f"document {number}" for number in range(300)]
    with ThreadPoolExecutor(8) as callers:
        documents = list(callers.map(lambda word: read(page(word)), words))
    assert [document.lines[0].text for document in documents] == words


def test_engines_are_replaced_after_their_pages_and_when_they_have_grown() -> None:
    def processes(isolated: Isolated[Asked, Answer], word: str) -> list[int]:
        return [isolated.call(Asked(page(word), 1, 1, CHOICE)).process for _ in range(4)]

    limits = {"deadline_seconds": 30, "memory_bytes": 2048 * MEBIBYTE, "preload": (DOMAIN,)}
    with Isolated(read_by_double, **limits, calls_per_child=2) as isolated:  # type: ignore[arg-type]
        assert max(Counter(processes(isolated, "small")).values()) == 2
    with Isolated(read_by_double, **limits, resident_bytes=400 * MEBIBYTE) as isolated:  # type: ignore[arg-type]
        assert len(set(processes(isolated, "small"))) == 1
        assert len(set(processes(isolated, "keep 250"))) > 1


def test_an_engine_that_can_not_be_opened_is_found_out_at_the_start() -> None:
    warm_up(failing(Unavailable("paddlex", "connection refused")))
    with pytest.raises(Unavailable, match="not installed"):
        warm_up(failing(Unavailable("ocr_engine", "It is not installed.")))


def failing(error: Exception) -> Reader:
    def fail(_: Asked) -> Answer:
        raise error

    return Reader(SimpleNamespace(call=fail), CHOICE, processes=2, max_pages=1)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "found"), [("100000 100000", 1), ("max 100000", None), ("50000 100000", 1), ("", None)]
)
def test_a_container_s_limit_of_cores(text: str, found: int | None, tmp_path: Path) -> None:
    limit = tmp_path / "cpu.max"
    limit.write_text(text)
    everything = cores(tmp_path / "missing")
    assert cores(limit) == (found or everything)
    settings = Settings(ocr_processes=everything + 1)
    assert engine_choice(settings).threads == 1
    assert engine_choice(Settings(ocr_threads=3)).threads == 3


def test_the_first_design_s_name_of_the_number_of_engines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OCR_PROCESSES", "3")
    assert Settings().ocr_processes == 3
    monkeypatch.setenv("MESH_OCR_PROCESSES", "2")
    assert Settings().ocr_processes == 2
    monkeypatch.setenv("MESH_OCR_PROCESSES", "none")
    with pytest.raises(ValidationError) as caught:
        Settings()
    assert problems(caught.value).startswith("MESH_OCR_PROCESSES: ")


def test_a_document_s_time_is_that_of_its_engine_and_not_of_its_waiting() -> None:
    def read(data: bytes, until: float | None = None) -> OcrDocument:
        return OcrDocument("", (), (), "es", "double", {"decode": 10.0, "detect": float(data)})

    tally = Tally(read)
    tally(b"20")
    tally(b"30")
    assert tally.counts.mean_seconds == 35


def test_the_queue_is_looked_at_again_after_whatever_went_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    answers: Iterator[object] = iter([Unavailable("kafka", "away"), KeyError("topic")])

    class Offsets:
        def __init__(self, *_: object) -> None: ...

        def read(self) -> list[SimpleNamespace]:
            answer = next(answers, None)
            if isinstance(answer, Exception):
                raise answer
            return [SimpleNamespace(lag=3), SimpleNamespace(lag=4)]

        def close(self) -> None: ...

    monkeypatch.setattr("ocr_worker.load.GroupOffsets", Offsets)
    monkeypatch.setattr("ocr_worker.load._LOOK_SECONDS", 0.001)
    deadline = time.monotonic() + 30
    with GroupLag(Settings(), "ocr-worker") as lag:
        while lag() != 7:
            assert time.monotonic() < deadline
            time.sleep(0.005)


def test_when_to_come_again() -> None:
    assert retry_after(0, 2.0, 1) == 1
    assert retry_after(10, 2.0, 1) == 20
    assert retry_after(10, 2.0, 4) == 5
    assert retry_after(10, 0.0, 1) == 20
    assert retry_after(100_000, 2.0, 1) == 300


@pytest.mark.parametrize(
    ("engine", "installed", "version"),
    [("rapidocr", "3.10.0", "3.10.0"), ("paddleocr", None, ""), ("paddlex", "3.0.0", "")],
)
def test_the_engine_is_told_with_its_version_and_a_server_s_is_not_known(
    engine: str, installed: str | None, version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def found(name: str) -> str:
        assert name == engine
        if installed is None:
            raise metadata.PackageNotFoundError(name)
        return installed

    monkeypatch.setattr(metadata, "version", found)
    announce(engine)
    labels = {"name": engine, "version": version, "family": "PP-OCR"}
    assert REGISTRY.get_sample_value("mesh_model_info", labels) == 1
