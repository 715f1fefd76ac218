"""A replica of qr-decoder dies in the middle of its work, and every picture's codes are stored once."""

from __future__ import annotations

import io
import itertools
import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import segno
from PIL import Image

from chaos.rig import HOME_SECONDS, Rig, eventually, open_rig, size

pytestmark = [pytest.mark.native, pytest.mark.timeout(900)]

PICTURES = size("MESH_CHAOS_QR_PICTURES", 60)


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    with open_rig(tmp_path_factory.mktemp("qr"), "native", scale={"qr-decoder": 2}, settings={}) as rig:
        yield rig


def contents(number: int) -> list[str]:
    """Of the codes of a picture: none to two."""
    return [f"picture {number}, code {place}" for place in range(number % 3)]


def picture(number: int) -> bytes:
    """A JPEG with its codes side by side, different for each number.

    Those without any are large, so that decoders have something in hand when they are killed.
    """
    side = (420, 180) if contents(number) else (1400, 1000)
    sheet = Image.effect_noise(side, 10 + number % 7).point(lambda value: min(255, value + 100))
    for place, content in enumerate(contents(number)):
        file = io.BytesIO()
        segno.make(content, error="m", micro=False).save(file, kind="png", scale=5)
        sheet.paste(Image.open(file).convert("L"), (10 + 205 * place, 5))
    buffer = io.BytesIO()
    sheet.save(buffer, "JPEG", quality=70, comment=str(number))
    return buffer.getvalue()


def test_killing_a_decoder_half_way_stores_every_picture_s_codes_once(rig: Rig) -> None:
    def upload(number: int) -> int:
        form = {"image_id": f"qr-{number}", "tasks": "qr"}
        files = {"file": ("p.jpg", picture(number), "image/jpeg")}
        return rig.client.post("/upload", data=form, files=files).status_code

    def in_hand() -> int:
        (row,) = rig.query(
            "SELECT count(*) FROM task_outcomes "
            "WHERE image_id LIKE 'qr-%%' AND worker = 'qr-decoder' AND state = 'running'"
        )
        return int(row[0])

    statuses: dict[int, int] = {}
    numbers = itertools.count()
    struck = threading.Event()

    def upload_some() -> None:
        # However late the blow falls, there is work to be done then.
        while (number := next(numbers)) < PICTURES or not struck.is_set():
            statuses[number] = upload(number)

    with ThreadPoolExecutor(4) as clients:
        uploading = [clients.submit(upload_some) for _ in range(4)]
        try:
            eventually(lambda: rig.decoded("qr") >= PICTURES // 2, "half of the pictures decoded")
            deadline = time.monotonic() + HOME_SECONDS
            while in_hand() == 0:
                assert time.monotonic() < deadline, "no decoder has a picture in hand"
            victim = rig.replicas_of("qr-decoder")[0]
            assert victim.pid is not None
            os.kill(victim.pid, signal.SIGKILL)
            abandoned = in_hand()
        finally:
            struck.set()
    for client in uploading:
        client.result()
    uploads = len(statuses)
    assert set(statuses.values()) == {202}
    eventually(lambda: rig.decoded("qr") == uploads, "all pictures decoded")
    rig.wait_committed()
    eventually(lambda: victim.restarts == 1, "the victim started again")

    stored = rig.query("SELECT image_id, content FROM qr_codes WHERE image_id LIKE 'qr-%%'")
    expected = [(f"qr-{number}", content) for number in statuses for content in contents(number)]
    assert sorted(stored) == sorted(expected)
    assert rig.dead_letters() == 0
    print(f"{uploads} pictures, {len(stored)} codes, one of two replicas killed, {abandoned} then in hand")
