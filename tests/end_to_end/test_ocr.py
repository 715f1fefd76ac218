"""Text as users see it: documents in by upload, by the queue's own call and at once; text out, found, shown.

One mesh for the whole module, on free ports, on the stack that MESH_TEST_STACK names.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import uuid4

import pypdfium2
import pytest
from PIL import Image, ImageDraw

from running_mesh import RunningMesh, running_mesh, until

IMAGES = "images-input-stream"
WORKER = "ocr-worker"


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningMesh]:
    with running_mesh(tmp_path_factory.mktemp("ocr"), environment={"MESH_OCR_MAX_PAGES": "4"}) as mesh:
        yield mesh


def sheet(*lines: str) -> Image.Image:
    """A page with some lines of text in large letters."""
    page = Image.new("RGB", (900, 60 + 70 * len(lines)), "white")
    draw = ImageDraw.Draw(page)
    for row, line in enumerate(lines):
        draw.text((40, 30 + 70 * row), line, fill="black", font_size=40)
    return page


def png(*lines: str) -> bytes:
    file = io.BytesIO()
    sheet(*lines).save(file, "PNG")
    return file.getvalue()


def pdf(*pages: str) -> bytes:
    """A scanned PDF: its pages are pictures."""
    first, *others = [sheet(text) for text in pages]
    file = io.BytesIO()
    first.save(file, "PDF", save_all=True, append_images=others)
    return file.getvalue()


def read(mesh: RunningMesh, image_id: str) -> dict[str, Any]:
    """`GET /results/{image_id}` once its text was looked for."""
    return mesh.result_of(WORKER, image_id)


def result(mesh: RunningMesh, task_id: str) -> dict[str, Any]:
    """`GET /result/{task_id}` once it is no longer processing."""
    url = f"{mesh.url_of(WORKER)}/result/{task_id}"

    def ended() -> dict[str, Any] | None:
        answer = mesh.http.get(url)
        found: dict[str, Any] = answer.json()
        return None if answer.status_code == 503 or found.get("status") == "processing" else found

    return until(ended, f"result of {task_id}")


def test_the_text_of_an_uploaded_picture_stands_in_its_results(mesh: RunningMesh) -> None:
    answer = mesh.http.post("/upload", files={"file": ("p.png", png("Invoice 4711", "Total 12.50"))})
    assert answer.status_code == 202, answer.text
    found = read(mesh, answer.json()["image_id"])
    assert {"worker": WORKER, "state": "done", "error": None} in found["outcomes"]
    assert found["ocr"]["text"] == "Invoice 4711\nTotal 12.50"
    assert [line["page"] for line in found["ocr"]["lines"]] == [1, 1]
    assert found["ocr"]["pages"] == [{"width": 900, "height": 200}]


def test_a_message_of_the_seeds_fields_is_served_in_full(mesh: RunningMesh) -> None:
    image_id = f"plain-{uuid4()}"
    path = mesh.store(f"{image_id}.png", png("Nobody uploaded this"))
    mesh.publish(IMAGES, image_id, json.dumps({"image_id": image_id, "minio_path": path}).encode())
    assert read(mesh, image_id)["ocr"]["text"] == "Nobody uploaded this"


def test_a_document_through_the_queue(mesh: RunningMesh) -> None:
    url = mesh.url_of(WORKER)
    answer = mesh.http.post(f"{url}/process", files={"file": ("p.pdf", pdf("First page", "Second page"))})
    assert answer.status_code == 202, answer.text
    assert list(answer.json()) == ["task_id"]
    task_id = answer.json()["task_id"]
    found = result(mesh, task_id)["result"]
    assert found["text"] == "First page\n\nSecond page"
    assert [line["page"] for line in found["lines"]] == [1, 2]
    # The same document by the other door, which asked for its text alone.
    assert {one["worker"]: one["state"] for one in read(mesh, task_id)["outcomes"]}[WORKER] == "done"
    assert mesh.outcome(task_id)["predictions"] == []


def test_ten_callers_at_once_wait_for_their_own_text(mesh: RunningMesh) -> None:
    url = mesh.url_of(WORKER)
    with ThreadPoolExecutor(10) as callers:
        answers = list(
            callers.map(
                lambda number: mesh.http.post(
                    f"{url}/ocr", files={"file": ("p.png", png(f"Caller {number}"))}
                ),
                range(10, 20),
            )
        )
    assert [answer.json()["text"] for answer in answers] == [f"Caller {number}" for number in range(10, 20)]


def test_a_document_that_can_not_be_read_is_a_dead_letter_and_says_why(mesh: RunningMesh) -> None:
    url = mesh.url_of(WORKER)
    long = mesh.http.post(f"{url}/process", content=pdf(*"abcde")).json()["task_id"]
    broken = mesh.http.post(f"{url}/process", content=b"%PDF-1.7 and so on").json()["task_id"]
    assert result(mesh, long)["code"] == "too_many_pages"
    assert result(mesh, broken)["code"] == "corrupt_document"
    assert mesh.dead_letter(IMAGES, WORKER, long).headers["x-error-code"] == "too_many_pages"
    refused = mesh.http.post(f"{url}/process", content=b"this is no picture")
    assert (refused.status_code, refused.json()["code"]) == (415, "not_an_image")
    assert mesh.http.get(f"{url}/result/unknown").status_code == 404


def test_what_was_read_is_found_and_shown(mesh: RunningMesh) -> None:
    word = f"Z{uuid4().hex[:6].upper()}".replace("0", "7").replace("1", "4")
    answer = mesh.http.post(
        "/upload?tasks=ocr", files={"file": ("p.png", png("Las facturas de", f"Madrid {word}"))}
    )
    image_id = answer.json()["image_id"]
    text = read(mesh, image_id)["ocr"]["text"]
    spelt = text.split()[-1]
    found = mesh.http.get("/search", params={"q": f"factura {spelt.lower()}"}).json()
    (hit,) = found["results"]
    assert hit["image_id"] == image_id
    assert [line["text"] for line in hit["highlights"]] == [
        "Las <mark>facturas</mark> de",
        f"Madrid <mark>{spelt}</mark>",
    ]
    assert found["next"] is None
    shown = mesh.http.get(f"/images/{image_id}/annotated?task=ocr")
    assert (shown.status_code, shown.headers["content-type"]) == (200, "image/png")
    colours = Image.open(io.BytesIO(shown.content)).convert("RGB").getcolors(1 << 24)
    assert any(green > red for _, (red, green, _) in colours or ()), "the outlines of a black and white page"


def test_a_document_can_be_downloaded_with_its_text(mesh: RunningMesh) -> None:
    answer = mesh.http.post("/upload?tasks=ocr", files={"file": ("p.pdf", pdf("Signed copy"))})
    found = read(mesh, answer.json()["image_id"])
    links = answer.json()["links"]
    assert mesh.http.get(links["text"]).text == found["ocr"]["text"] == "Signed copy"
    made = mesh.http.get(links["searchable_pdf"])
    assert made.status_code == 200, made.text
    with pypdfium2.PdfDocument(made.content) as document:
        assert document[0].get_textpage().get_text_range().split() == ["Signed", "copy"]


def test_metrics_for_people_and_for_prometheus(mesh: RunningMesh) -> None:
    url = f"{mesh.url_of(WORKER)}/metrics"
    counts = mesh.http.get(url, headers={"accept": "application/json"}).json()
    assert set(counts) == {"requests_total", "requests_failed", "avg_processing_time", "queue_size"}
    assert "mesh_ocr_pages_total" in mesh.http.get(url).text
