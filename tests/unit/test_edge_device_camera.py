"""The camera: what is measured in a picture, who shares one, and what pictures are taken with."""

from __future__ import annotations

import asyncio
import io
import stat
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from pydantic import ValidationError

from edge_publisher.devices import camera as cameras
from edge_publisher.devices import imx477, upload
from edge_publisher.devices.camera import (
    Camera,
    HttpCamera,
    PictureFile,
    RecordedCamera,
    RecordingCamera,
    StillProgram,
    VideoCamera,
    open_camera,
)
from edge_publisher.devices.imx477 import Imx477, ahead_of, measure
from edge_publisher.devices.link import LinkLost
from edge_publisher.devices.pool import Pool
from edge_publisher.devices.protocol import DeviceState, Reading
from edge_publisher.devices.upload import Uploader
from edge_publisher.domain.picture import (
    change,
    grey_of,
    laplacian_sums,
    laser,
    luminosity,
    rows_of,
    scene_of,
    sharpness,
    variance,
)
from edge_publisher.simulation.camera import MovingCamera
from visionmesh.contracts import Imx477Values, is_image_id
from visionmesh.errors import Unavailable
from visionmesh.settings import EdgeSettings

Picture = NDArray[np.uint8]

DEADLINE_SECONDS = 30.0


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE_SECONDS):
        while not holds():
            await asyncio.sleep(0.005)


# What is measured


def plain(brightness: int, width: int = 320, height: int = 240) -> Picture:
    return np.full((height, width), brightness, np.uint8)


def with_spot(x: int, y: int, radius: int, *, brightness: int = 250, around: int = 60) -> Picture:
    picture = plain(around)
    cv2.circle(picture, (x, y), radius, brightness, cv2.FILLED)
    return picture


@pytest.mark.parametrize("brightness", [0, 77, 255])
def test_luminosity_is_the_mean(brightness: int) -> None:
    assert luminosity(plain(brightness)) == pytest.approx(brightness)


def test_a_blurred_picture_is_less_sharp_and_a_plain_one_not_at_all() -> None:
    sharp = np.asarray(np.random.default_rng(1).integers(0, 255, (240, 320)), np.uint8)
    blurred = [sharp, *(np.asarray(cv2.GaussianBlur(sharp, (0, 0), each)) for each in (1, 2, 4))]
    found = [sharpness(each) for each in blurred]
    assert found == sorted(found, reverse=True)
    assert sharpness(plain(100)) == 0
    laplacian = cv2.Laplacian(sharp, cv2.CV_64F)
    assert sharpness(sharp) == pytest.approx(float(laplacian.var()))


@pytest.mark.parametrize(("x", "y", "radius"), [(160, 120, 4), (30, 200, 8), (2, 2, 4), (310, 10, 3)])
def test_the_laser_is_where_it_is(x: int, y: int, radius: int) -> None:
    picture = with_spot(x, y, radius)
    found = laser(picture)
    assert found is not None
    rows, columns = np.nonzero(picture > 200)
    assert (found.x, found.y) == pytest.approx((columns.mean(), rows.mean()), abs=0.01)
    assert found.area == len(rows)


@pytest.mark.parametrize(
    "picture",
    [
        plain(60),
        plain(255),
        with_spot(160, 120, 4, brightness=200),
        with_spot(160, 120, 60),
        with_spot(160, 120, 4, around=220),
        cv2.line(plain(60), (10, 10), (300, 200), 255, 2),
    ],
    ids=["nothing", "overexposed", "too dark", "a lamp", "no contrast", "a reflex on an edge"],
)
def test_what_is_no_laser(picture: Picture) -> None:
    assert laser(picture) is None


@pytest.mark.parametrize("parts", [1, 2, 3, 7])
def test_parts_of_a_picture_give_the_sharpness_of_the_whole(parts: int) -> None:
    picture = np.asarray(np.random.default_rng(1).integers(0, 255, (241, 320)), np.uint8)
    sums = [laplacian_sums(picture, *rows) for rows in rows_of(241, parts)]
    assert variance(sums) == pytest.approx(sharpness(picture))


@pytest.mark.parametrize(("width", "height"), [(320, 240), (2028, 1520)])
def test_all_threads_measure_what_one_does(width: int, height: int) -> None:
    grey = grey_of(MovingCamera(width, height, seconds=0).capture())

    async def measured() -> object:
        pool = Pool(2, "test", lambda _: None)
        try:
            return await measure(pool, grey)
        finally:
            pool.close()

    for _ in range(2):
        assert asyncio.run(measured()) == (
            luminosity(grey),
            pytest.approx(sharpness(grey)),
            laser(grey),
        )


def test_of_several_spots_the_largest_is_the_laser() -> None:
    picture = with_spot(50, 50, 3)
    cv2.circle(picture, (200, 100), 6, 255, cv2.FILLED)
    found = laser(picture)
    assert found is not None
    assert (round(found.x), round(found.y)) == (200, 100)


def test_a_hot_pixel_is_no_laser() -> None:
    picture = plain(60)
    picture[100, 100] = 255
    assert laser(picture) is None


def test_a_scene_that_changed_differs_and_noise_does_not() -> None:
    before = MovingCamera(320, 240, seconds=0, clock=lambda: 0.0).capture()
    after = MovingCamera(320, 240, seconds=0, clock=lambda: 7.5).capture()
    noise = np.random.default_rng(1).normal(0, 4, before.shape)
    noisy = np.clip(before + noise, 0, 255).astype(np.uint8)
    scenes = [scene_of(grey_of(each)) for each in (before, after, noisy)]
    assert change(scenes[0], scenes[1]) > 5 * change(scenes[0], scenes[2])


def test_colours_are_weighed_as_they_look() -> None:
    green = np.zeros((4, 4, 3), np.uint8)
    green[:, :, 1] = 100
    assert luminosity(grey_of(green)) == 59
    assert grey_of(plain(7)) is not None


# The device


class PlayedCamera:
    """Gives pictures when the test lets it; `fails` are raised first."""

    source = "played"

    def __init__(self, *fails: Exception, held: bool = False) -> None:
        self.fails = list(fails)
        self.let = threading.Event()
        self.captures = 0
        self.at_once = 0
        self.most_at_once = 0
        self.closed = 0
        self.picture = cv2.cvtColor(with_spot(100, 50, 4), cv2.COLOR_GRAY2BGR)
        if not held:
            self.let.set()

    def capture(self) -> Picture:
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            assert self.let.wait(DEADLINE_SECONDS)
            self.captures += 1
            if self.fails:
                raise self.fails.pop(0)
            return np.asarray(self.picture)
        finally:
            self.at_once -= 1

    def close(self) -> None:
        self.closed += 1


def test_a_reading_has_every_value_twice() -> None:
    async def scenario() -> Reading:
        device = Imx477("pi-1", PlayedCamera())
        try:
            return await device.read()
        finally:
            await device.close()

    for _ in range(2):
        reading = asyncio.run(scenario())
        assert set(reading.values) == set(Imx477Values.__struct_fields__)
        assert (reading.values["laser_x"], reading.values["laser_y"]) == (100.0, 50.0)
        assert (reading.values["width"], reading.values["height"]) == (320, 240)
        assert reading.values["image_id"] is None


def test_all_who_ask_at_once_share_one_picture_and_who_asks_soon_gets_it_too() -> None:
    async def scenario() -> None:
        camera = PlayedCamera(held=True)
        device = Imx477("pi-1", camera, cache_seconds=60)
        asked = [asyncio.create_task(device.read()) for _ in range(25)]
        await until(lambda: device.state.details["shared"] == 24)
        assert device.state.details["pool_busy"] == 1
        camera.let.set()
        answers = await asyncio.gather(*asked)
        answers += [await device.read() for _ in range(5)]
        assert len({id(answer) for answer in answers}) == 1
        details = device.state.details
        assert (details["captures"], details["cache_hits"], details["shared"]) == (1, 5, 24)
        assert (details["pool_size"], details["pool_waiting"]) == (2, 0)
        await until(lambda: details["pool_busy"] == 0)
        await device.close()

    asyncio.run(scenario())


def test_after_the_cache_has_expired_there_is_a_new_picture() -> None:
    async def scenario() -> None:
        device = Imx477("pi-1", PlayedCamera(), cache_seconds=0)
        answers = [await device.read() for _ in range(3)]
        assert device.state.details["captures"] == len({id(answer) for answer in answers}) == 3
        await device.close()

    asyncio.run(scenario())


def test_while_somebody_asks_a_picture_is_replaced_before_it_is_too_old() -> None:
    async def scenario() -> None:
        device = Imx477("pi-1", PlayedCamera(), cache_seconds=1, interval_seconds=3600)
        stream = device.readings()
        latest = await anext(stream)
        for _ in range(2):
            assert await device.read() is latest
            async with asyncio.timeout(DEADLINE_SECONDS):
                latest = await anext(stream)
        assert device.state.details["captures"] == 3
        await device.close()

    asyncio.run(scenario())


def test_one_picture_that_took_too_long_does_not_end_that(monkeypatch: pytest.MonkeyPatch) -> None:
    hour = 3600
    aheads = [None, hour * 10**9]
    monkeypatch.setattr(imx477, "ahead_of", lambda *_: aheads.pop(0))

    async def scenario() -> None:
        device = Imx477("pi-1", PlayedCamera(), cache_seconds=hour, interval_seconds=2 * hour)
        stream = device.readings()
        await anext(stream)
        await device.read()
        await until(lambda: len(aheads) == 1)
        await device.read()
        async with asyncio.timeout(DEADLINE_SECONDS):
            await anext(stream)
        assert device.state.details["captures"] == 2
        await device.close()

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("took_ms", "ahead_ms"), [(1, 2), (100, 200), (250, 500), (499, 998), (500, None), (5000, None)]
)
def test_a_picture_is_replaced_early_enough_for_one_that_takes_twice_as_long(
    took_ms: int, ahead_ms: int | None
) -> None:
    assert ahead_of(500, took_ms) == ahead_ms


def test_who_goes_away_does_not_take_the_picture_along() -> None:
    async def scenario() -> None:
        camera = PlayedCamera(held=True)
        device = Imx477("pi-1", camera)
        leaves, stays = (asyncio.create_task(device.read()) for _ in range(2))
        await until(lambda: device.state.details["shared"] == 1)
        leaves.cancel()
        await asyncio.wait({leaves})
        camera.let.set()
        assert (await stays).values["laser_x"] == 100.0
        await device.close()

    asyncio.run(scenario())


def test_pictures_taken_for_who_asks_are_among_the_readings() -> None:
    async def scenario() -> None:
        device = Imx477("pi-1", PlayedCamera(), cache_seconds=0, interval_seconds=3600)
        found: list[Reading] = []

        async def collect() -> None:
            async for reading in device.readings():
                found.append(reading)

        collecting = asyncio.create_task(collect())
        await until(lambda: len(found) == 1)
        asked = [await device.read(), await device.read()]
        await until(lambda: len(found) == 3)
        assert found[1:] == asked
        await device.close()
        async with asyncio.timeout(DEADLINE_SECONDS):
            await collecting

    asyncio.run(scenario())


def test_pictures_are_taken_at_a_rate_one_at_a_time() -> None:
    async def scenario() -> None:
        camera = PlayedCamera()
        device = Imx477("pi-1", camera, workers=4, cache_seconds=0, interval_seconds=0.02)
        stamps: list[int] = []
        async with asyncio.timeout(DEADLINE_SECONDS):
            async for reading in device.readings():
                stamps.append(reading.monotonic_ns)
                await device.read()
                if len(stamps) == 10:
                    break
        assert stamps == sorted(set(stamps))
        assert camera.most_at_once == 1
        await device.close()
        assert camera.closed == 1

    asyncio.run(scenario())


@pytest.mark.parametrize("error", [LinkLost("the ribbon cable is loose"), RuntimeError("a library's bug")])
def test_a_camera_that_fails_is_told_and_comes_back(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(imx477, "_FIRST_DELAY_SECONDS", 0.01)

    async def scenario() -> None:
        camera = PlayedCamera(error, error)
        device = Imx477("pi-1", camera, cache_seconds=0, interval_seconds=3600)
        with pytest.raises(Unavailable, match=str(error)):
            await device.read()
        assert (device.state.connected, device.state.errors) == (False, 1)
        async with asyncio.timeout(DEADLINE_SECONDS):
            async for _ in device.readings():
                break
        state = device.state
        assert (state.connected, state.errors, state.lost_at) == (True, 2, None)
        await device.close()

    asyncio.run(scenario())


def test_who_waits_for_a_camera_that_hangs_is_told_in_time() -> None:
    async def scenario() -> None:
        camera = PlayedCamera(held=True)
        device = Imx477("pi-1", camera, patience_seconds=0.05)
        with pytest.raises(Unavailable, match=r"within 0\.05 s"):
            await device.read()
        camera.let.set()
        await device.close()
        with pytest.raises(Unavailable, match="closed"):
            await device.read()

    asyncio.run(scenario())


def test_a_camera_that_hangs_is_told_and_is_back_when_it_gives_a_picture() -> None:
    async def scenario() -> None:
        camera = PlayedCamera()
        device = Imx477("pi-1", camera, cache_seconds=0, interval_seconds=0.01, patience_seconds=0.05)
        stream = device.readings()
        await anext(stream)
        camera.let.clear()
        await until(lambda: not device.state.connected)
        assert device.state.last_error == "no picture within 0.05 s"
        camera.let.set()
        await until(lambda: device.state.connected)
        assert device.state.reconnects >= 1
        await device.close()

    asyncio.run(scenario())


# Uploads


class Mesh:
    """An ingest endpoint that answers with the next of `statuses`, then 202."""

    def __init__(self, *statuses: int | Exception) -> None:
        self.statuses = list(statuses)
        self.requests: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        answer = self.statuses.pop(0) if self.statuses else 202
        if isinstance(answer, Exception):
            raise answer
        return httpx.Response(answer, json={})

    def uploader(self, state: DeviceState) -> Uploader:
        return Uploader("http://mesh.test", state, transport=httpx.MockTransport(self))


@pytest.fixture
def _hasty_uploads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upload, "_FIRST_DELAY_SECONDS", 0.01)


@pytest.mark.usefixtures("_hasty_uploads")
def test_a_bug_on_the_way_up_delays_a_picture_and_ends_nothing() -> None:
    async def scenario() -> None:
        mesh = Mesh(ValueError("a bug"))
        state = DeviceState("imx477", "played")
        uploader = mesh.uploader(state)
        uploader.offer("pi-1:imx477:1", b"a picture")
        await until(lambda: state.details["uploads"] == 1)
        await uploader.close()

    asyncio.run(scenario())


@pytest.mark.parametrize("address", ["mesh.lan:8001", "ftp://mesh.lan", "http://"])
def test_an_address_that_no_picture_can_go_to_is_refused(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGE_UPLOAD_URL", address)
    with pytest.raises(ValidationError, match="no address like"):
        EdgeSettings()


@pytest.mark.usefixtures("_hasty_uploads")
def test_a_picture_goes_up_under_the_id_that_its_reading_has() -> None:
    async def scenario() -> None:
        mesh = Mesh(503, httpx.ConnectError("refused"), 429)
        device = Imx477("pi-1", PlayedCamera(), cache_seconds=0, uploader=mesh.uploader)
        image_id = (await device.read()).values["image_id"]
        await until(lambda: device.state.details["uploads"] == 1)
        assert isinstance(image_id, str)
        assert is_image_id(image_id)
        assert [request.url.path for request in mesh.requests] == ["/upload"] * 4
        body = mesh.requests[-1].content
        assert image_id.encode() in body
        start = body.index(b"\xff\xd8\xff")
        picture = cv2.imdecode(np.frombuffer(body[start:], np.uint8), cv2.IMREAD_COLOR)
        assert picture.shape == (240, 320, 3)
        await device.close()

    asyncio.run(scenario())


@pytest.mark.usefixtures("_hasty_uploads")
def test_pictures_go_up_when_the_scene_changes_and_at_a_set_rate() -> None:
    async def ids(device: Imx477, camera: PlayedCamera) -> list[bool]:
        found = []
        for brightness in (60, 60, 61, 120, 120, 60):
            camera.picture = cv2.cvtColor(with_spot(100, 50, 4, around=brightness), cv2.COLOR_GRAY2BGR)
            found.append((await device.read()).values["image_id"] is not None)
        await device.close()
        return found

    async def scenario(**options: Any) -> list[bool]:
        camera = PlayedCamera()
        return await ids(Imx477("pi-1", camera, cache_seconds=0, uploader=Mesh().uploader, **options), camera)

    assert asyncio.run(scenario()) == [True, False, False, True, False, True]
    assert asyncio.run(scenario(upload_interval_seconds=1e-6)) == [True] * 6


@pytest.mark.usefixtures("_hasty_uploads")
def test_a_picture_that_the_mesh_refuses_is_dropped_and_counted() -> None:
    async def scenario() -> None:
        state = DeviceState("imx477", "played")
        uploader = Mesh(415).uploader(state)
        uploader.offer("a", b"1")
        uploader.offer("b", b"2")
        await until(lambda: state.details["uploads"] == 1)
        assert state.details["uploads_dropped"] == 1
        await uploader.close()

    asyncio.run(scenario())


@pytest.mark.usefixtures("_hasty_uploads")
def test_while_the_mesh_is_away_the_latest_pictures_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upload, "_WAITING", 3)

    async def scenario() -> None:
        state = DeviceState("imx477", "played")
        mesh = Mesh(*[503] * 5)
        uploader = mesh.uploader(state)
        for number in range(10):
            uploader.offer(f"picture-{number}", b"1")
        await until(lambda: state.details["uploads"] == 3)
        assert state.details["uploads_dropped"] == 7
        sent = [
            f"picture-{number}"
            for number in range(10)
            if f"picture-{number}" in str(mesh.requests[-1].content)
        ]
        assert sent == ["picture-9"]
        await uploader.close()

    asyncio.run(scenario())


# Cameras


@pytest.fixture
def jpeg() -> bytes:
    _, found = cv2.imencode(".jpg", MovingCamera(320, 240, seconds=0, clock=lambda: 0.0).capture())
    return found.tobytes()


def program(folder: Path, script: str) -> str:
    path = folder / "rpicam-still"
    path.write_text(f"#!{sys.executable}\nimport sys, time\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def test_a_still_program_is_asked_for_a_jpeg_of_that_size(tmp_path: Path, jpeg: bytes) -> None:
    (tmp_path / "picture.jpg").write_bytes(jpeg)
    script = (
        f"open({str(tmp_path / 'asked')!r}, 'w').write(' '.join(sys.argv[1:]))\n"
        f"sys.stdout.buffer.write(open({str(tmp_path / 'picture.jpg')!r}, 'rb').read())"
    )
    camera = StillProgram(program(tmp_path, script), 320, 240)
    assert [camera.capture().shape for _ in range(2)] == [(240, 320, 3)] * 2
    asked = (tmp_path / "asked").read_text()
    assert "--output - --width 320 --height 240" in asked


@pytest.mark.parametrize(
    ("script", "told", "seconds"),
    [
        ("time.sleep(60)", "took longer than 0.5 s and was stopped", 0.5),
        ("sys.exit('ERROR: no cameras available')", "status 1 and said: ERROR: no cameras available", 60),
        ("sys.stdout.write('no picture')", "gave 10 bytes that are no picture", 60),
        ("", "gave 0 bytes that are no picture", 60),
    ],
)
def test_a_still_program_that_fails_is_told(tmp_path: Path, script: str, told: str, seconds: float) -> None:
    with pytest.raises(LinkLost, match=told):
        StillProgram(program(tmp_path, script), 320, 240, seconds=seconds).capture()


def test_a_program_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(LinkLost, match="can't be started: No such file"):
        StillProgram(str(tmp_path / "rpicam-still"), 320, 240).capture()


def test_a_picture_in_a_file_is_read_anew(tmp_path: Path, jpeg: bytes) -> None:
    path = tmp_path / "picture.jpg"
    path.write_bytes(jpeg)
    camera = open_camera(str(path), 320, 240)
    assert isinstance(camera, PictureFile)
    assert camera.capture().shape == (240, 320, 3)
    path.write_bytes(b"")
    with pytest.raises(LinkLost, match="no picture"):
        camera.capture()
    path.unlink()
    with pytest.raises(LinkLost, match="No such file"):
        camera.capture()


def test_a_video_begins_again_at_its_end(tmp_path: Path) -> None:
    path = tmp_path / "video.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10, (320, 240))
    for brightness in (50, 200):
        writer.write(np.full((240, 320, 3), brightness, np.uint8))
    writer.release()
    camera = open_camera(str(path), 320, 240)
    assert isinstance(camera, VideoCamera)
    means = [float(camera.capture().mean()) for _ in range(4)]
    assert means == pytest.approx([50, 200, 50, 200], abs=3)
    camera.close()
    assert float(camera.capture().mean()) == pytest.approx(50, abs=3)
    camera.close()


@pytest.mark.parametrize("source", ["/dev/video99", "nothing.mp4"])
def test_a_video_that_is_not_there_is_told(source: str) -> None:
    with pytest.raises(LinkLost, match="can't be opened"):
        open_camera(source, 320, 240).capture()


@pytest.fixture
def web(jpeg: bytes) -> Iterator[str]:
    pages: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path.startswith("/picture"):
                self.answer("image/jpeg", jpeg)
            elif self.path == "/starting":
                # To who asks for a video as well, as long as nobody has come for the second time.
                pages.append(self.headers["user-agent"])
                asked = sum(agent.startswith("python-httpx") for agent in pages)
                self.answer("image/jpeg", jpeg) if asked > 1 else self.answer("text/html", b"starting")
            elif self.path == "/stream":
                self.send_response(200)
                self.send_header("content-type", "multipart/x-mixed-replace; boundary=frame")
                self.end_headers()
                part = b"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n%s\r\n"
                try:
                    for _ in range(200):
                        self.wfile.write(part % (len(jpeg), jpeg))
                except OSError:
                    return
            else:
                self.send_error(404)

        def answer(self, media_type: str, body: bytes) -> None:
            self.send_response(200)
            self.send_header("content-type", media_type)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Silent."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_a_picture_at_an_address(web: str) -> None:
    camera = open_camera(f"{web}/picture?token=geheim", 320, 240)
    assert isinstance(camera, HttpCamera)
    assert "geheim" not in camera.source
    assert [camera.capture().shape for _ in range(2)] == [(240, 320, 3)] * 2


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("rtsp://admin:secret@10.0.0.7:554/stream?key=secret", "video rtsp://10.0.0.7:554/stream"),
        ("rtsp://admin:s@cret@camera/", "video rtsp://camera/"),
        ("http://admin:secret@camera/now.jpg?key=secret", "http http://camera/now.jpg"),
        ("walk.mp4", "video walk.mp4"),
    ],
)
def test_what_a_camera_hangs_on_is_told_without_its_password(address: str, shown: str) -> None:
    assert open_camera(address, 320, 240).source == shown


def test_a_stream_at_an_address(web: str) -> None:
    camera = open_camera(f"{web}/stream", 320, 240)
    assert [camera.capture().shape for _ in range(2)] == [(240, 320, 3)] * 2
    camera.close()


def test_an_address_that_showed_a_page_once_is_asked_for_a_picture_again(web: str) -> None:
    camera = open_camera(f"{web}/starting", 320, 240)
    with pytest.raises(LinkLost, match="can't be opened"):
        camera.capture()
    assert camera.capture().shape == (240, 320, 3)


def test_an_address_that_has_no_picture_is_told(web: str) -> None:
    with pytest.raises(LinkLost, match="answers 404"):
        open_camera(f"{web}/nothing", 320, 240).capture()


def test_picamera2_is_used_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []

    class Picamera2:
        def __init__(self) -> None:
            self.is_started = self.is_closed = False
            made.append(self)

        def create_still_configuration(self, main: dict[str, Any]) -> dict[str, Any]:
            return main

        def configure(self, main: dict[str, Any]) -> None:
            self.main = main

        def start(self) -> None:
            self.is_started = True

        def capture_array(self, name: str) -> Picture:
            assert name == "main"
            if len(made) == 1:
                raise RuntimeError("Camera frontend has timed out!")
            width, height = self.main["size"]
            return np.zeros((height, width, 3), np.uint8)

        def close(self) -> None:
            self.is_closed = True

    monkeypatch.setitem(sys.modules, "picamera2", SimpleNamespace(Picamera2=Picamera2, __spec__=object()))  # type: ignore[arg-type]
    camera = open_camera("auto", 320, 240)
    assert camera.source == "picamera2"
    with pytest.raises(LinkLost, match="timed out"):
        camera.capture()
    assert made[0].is_closed
    assert [camera.capture().shape for _ in range(2)] == [(240, 320, 3)] * 2
    assert len(made) == 2
    assert made[1].is_started
    assert made[1].main == {"size": (320, 240), "format": "RGB888"}
    camera.close()
    assert made[1].is_closed


def test_without_anything_the_program_is_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(cameras, "_FIRST_VIDEO", tmp_path / "video0")
    with pytest.raises(LinkLost, match="rpicam-still can't be started"):
        open_camera("auto", 320, 240).capture()
    (tmp_path / "video0").touch()
    assert open_camera("auto", 320, 240).source == f"video {tmp_path / 'video0'}"


def test_a_recording_of_pictures_replays_twice(tmp_path: Path) -> None:
    file = io.StringIO()
    camera: Camera = RecordingCamera(MovingCamera(320, 240, seconds=0), file)
    taken = [camera.capture() for _ in range(3)]
    path = tmp_path / "imx477.jsonl"
    path.write_text(file.getvalue())
    replayed = RecordedCamera(path)
    for _ in range(2):
        for each in taken:
            assert cv2.norm(replayed.capture(), each, cv2.NORM_L1) / each.size < 3
    path.write_text("")
    with pytest.raises(LinkLost):
        RecordedCamera(path).capture()
