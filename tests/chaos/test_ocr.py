"""A replica of ocr-worker dies in the middle of a long document, and engines die under others."""

from __future__ import annotations

import io
import os
import signal
import time
from collections.abc import Iterator
from contextlib import suppress

import httpx
import psutil
import pytest
from PIL import Image, ImageDraw

from chaos.rig import HOME_SECONDS, Rig, eventually, open_rig, size
from visionmesh.mesh import Replica

pytestmark = [pytest.mark.native, pytest.mark.timeout(900)]

PAGES = size("MESH_CHAOS_OCR_PAGES", 24)
PICTURES = size("MESH_CHAOS_OCR_PICTURES", 12)


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    with open_rig(tmp_path_factory.mktemp("ocr"), "native", scale={"ocr-worker": 2}, settings={}) as rig:
        yield rig


def sheet(text: str) -> Image.Image:
    page = Image.new("RGB", (1200, 900), "white")
    draw = ImageDraw.Draw(page)
    for row in range(8):
        draw.text((60, 60 + 100 * row), text, fill="black", font_size=44)
    return page


def page_text(number: int) -> str:
    """Letters that no font makes look alike."""
    return f"Page number {number + 100}"


def pdf(pages: int) -> bytes:
    first, *others = [sheet(page_text(number)) for number in range(pages)]
    file = io.BytesIO()
    first.save(file, "PDF", save_all=True, append_images=others)
    return file.getvalue()


def png(text: str) -> bytes:
    file = io.BytesIO()
    sheet(text).save(file, "PNG")
    return file.getvalue()


def upload(rig: Rig, image_id: str, data: bytes) -> None:
    form = {"image_id": image_id, "tasks": "ocr"}
    answer = rig.client.post("/upload", data=form, files={"file": ("document", data)})
    assert answer.status_code == 202, answer.text


def workers(rig: Rig) -> list[Replica]:
    return [replica for replica in rig.mesh.replicas if replica.service.name == "ocr-worker"]


def pages_read(replica: Replica) -> float:
    text = httpx.get(f"{replica.url}/metrics", timeout=60).text
    return float(text.partition("\nmesh_ocr_pages_total ")[2].partition("\n")[0] or 0)


def outcomes(rig: Rig, prefix: str) -> dict[str, tuple[str, str | None]]:
    rows = rig.query(
        "SELECT image_id, state, error FROM task_outcomes WHERE worker = 'ocr-worker' AND image_id LIKE %s",
        f"{prefix}%",
    )
    return {image_id: (state, error) for image_id, state, error in rows}


def texts(rig: Rig, prefix: str) -> list[tuple[str, str]]:
    return [
        (str(image_id), str(text))
        for image_id, text in rig.query(
            "SELECT image_id, text FROM ocr_documents WHERE image_id LIKE %s ORDER BY image_id", f"{prefix}%"
        )
    ]


def test_killing_a_worker_in_the_middle_of_a_long_document_stores_it_once(rig: Rig) -> None:
    before = [pages_read(replica) for replica in workers(rig)]
    upload(rig, "long", pdf(PAGES))

    def reader() -> Replica | None:
        gained = [pages_read(each) - seen for each, seen in zip(workers(rig), before, strict=True)]
        return next((each for each, pages in zip(workers(rig), gained, strict=True) if pages >= 3), None)

    eventually(lambda: reader() is not None, "some pages of the document read")
    victim = reader()
    assert victim is not None
    assert victim.pid is not None
    assert outcomes(rig, "long")["long"][0] == "running", "it was read before its worker could be killed"
    os.kill(victim.pid, signal.SIGKILL)
    eventually(lambda: outcomes(rig, "long")["long"][0] == "done", "the document read by the other worker")
    rig.wait_committed()
    eventually(lambda: victim.restarts == 1 and pages_read(victim) >= 0, "the victim started again")

    ((_, text),) = texts(rig, "long")
    pages = text.split("\n\n")
    assert pages == ["\n".join([page_text(number)] * 8) for number in range(PAGES)]
    assert rig.dead_letters() == 0


def engines(replica: Replica) -> list[psutil.Process]:
    """The processes that engines live in, without those whose end the worker has not noticed yet."""
    assert replica.pid is not None
    children = psutil.Process(replica.pid).children()
    return [child for child in children if child.status() != psutil.STATUS_ZOMBIE]


@pytest.mark.parametrize("blow", [signal.SIGKILL, signal.SIGSEGV])
def test_killing_engines_costs_no_more_than_the_picture_they_had(rig: Rig, blow: signal.Signals) -> None:
    prefix = f"struck-{blow.name.lower()}"
    restarts = [replica.restarts for replica in workers(rig)]
    strikes = uploads = 0
    deadline = time.monotonic() + HOME_SECONDS
    while strikes < 2 or uploads < PICTURES:
        assert time.monotonic() < deadline, f"{strikes} engines met, {uploads} pictures uploaded"
        # However late a blow comes, the engines have work.
        finished = sum(state != "running" for state, _ in outcomes(rig, prefix).values())
        for number in range(uploads, finished + PICTURES // 2):
            upload(rig, f"{prefix}-{number:03}", png(page_text(number)))
            uploads = number + 1
        for replica in workers(rig):
            with suppress(psutil.NoSuchProcess):
                if strikes < 2 and pages_read(replica) > 0 and (found := engines(replica)):
                    found[0].send_signal(blow)
                    strikes += 1
        time.sleep(0.3)

    def all_ended() -> bool:
        # One look: between two of them a picture may begin.
        states = [state for state, _ in outcomes(rig, prefix).values()]
        return len(states) == uploads and "running" not in states

    eventually(all_ended, "every picture at its end")
    ended = outcomes(rig, prefix)
    failed = {image_id for image_id, (state, _) in ended.items() if state == "failed"}
    # A signal from outside is not the picture's fault; a crash of its decoder is.
    assert len(failed) <= (0 if blow == signal.SIGKILL else strikes)
    assert all("decoder_crashed" in (ended[image_id][1] or "") for image_id in failed)
    expected = [
        (f"{prefix}-{number:03}", "\n".join([page_text(number)] * 8))
        for number in range(uploads)
        if f"{prefix}-{number:03}" not in failed
    ]
    assert texts(rig, prefix) == expected
    assert [replica.restarts for replica in workers(rig)] == restarts, "the workers themselves go on"
    print(f"{uploads} pictures, {strikes} engines ended by {blow.name}, {len(failed)} pictures failed")
