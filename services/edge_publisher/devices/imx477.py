"""The camera behind the protocol of devices: pictures at a set rate and when somebody asks.

Taking a picture may take seconds. It happens in a pool of threads, for one picture at a time: all who ask
meanwhile get that one, and all who ask soon after get it from the cache. While somebody asks, the next one is
taken before the one in the cache is too old. What is measured in it is measured in parallel, on one grey
picture.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from threading import Lock
from typing import Final

import cv2
import msgspec
import structlog

from edge_publisher.devices.camera import CAPTURE_SECONDS, Camera, Picture
from edge_publisher.devices.link import LinkLost
from edge_publisher.devices.pool import Pool
from edge_publisher.devices.protocol import DeviceState, Measured, Reading
from edge_publisher.devices.upload import Uploader
from edge_publisher.domain.picture import (
    Grey,
    Laser,
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
from visionmesh.contracts import Imx477Values
from visionmesh.errors import Unavailable

log = structlog.get_logger()

SENSOR: Final = "imx477"

# For what is measured, beyond the time that a picture may take.
_PATIENCE_SECONDS: Final = CAPTURE_SECONDS + 2.0

# Pixels. What is measured in a smaller picture is done before another thread has begun with its part.
_WORTH_SHARING: Final = 2_000_000

# For each thread, so that one that was held up leaves some to the others.
_PARTS: Final = 2

# After a failure, from one attempt to the next.
_FIRST_DELAY_SECONDS: Final = 0.5
_LONGEST_DELAY_SECONDS: Final = 5.0

_LET_GO_SECONDS: Final = 1.0

# How early a picture is replaced, in times of what it took itself: the next one may take longer.
_AHEAD: Final = 2


async def measure(pool: Pool, grey: Grey) -> tuple[float, float, Laser | None]:
    """Luminosity, sharpness and the laser spot of a picture, by all threads of the pool."""
    if grey.size < _WORTH_SHARING:
        return await pool.run(lambda: (luminosity(grey), sharpness(grey), laser(grey)))
    rows = rows_of(len(grey), _PARTS * pool.size)
    sums = asyncio.gather(*(pool.run(laplacian_sums, grey, *each) for each in rows))
    rest = asyncio.gather(pool.run(luminosity, grey), pool.run(laser, grey))
    bright, spot = await rest
    return bright, variance(await sums), spot


def ahead_of(cache_ns: int, took_ns: int) -> int | None:
    """How long before a picture is too old the next one is begun, for one that took so long.

    None where the next one would come too late: who asks meanwhile waits for it anyway.
    """
    return _AHEAD * took_ns if took_ns < cache_ns else None


class Imx477:
    """A `Device` for any `Camera`.

    workers: threads. cache_seconds: how old a picture may be for who asks; while somebody asks, it is
    replaced before it is that old, if the camera is quicker than that. interval_seconds: from one picture to
    the next when nobody asks. uploader: makes what pictures go up by, when `upload_interval_seconds` have
    passed since the one before or the scene has changed by `upload_change` (grey levels of 255).

    Details of the state: `captures`, `cache_hits` (asked, and answered with a picture taken before), `shared`
    (asked while a picture was being taken, and answered with that one), `pool_size`, `pool_busy`,
    `pool_waiting`, `uploads`, `uploads_dropped`.
    """

    def __init__(
        self,
        device_id: str,
        camera: Camera,
        *,
        workers: int = 2,
        cache_seconds: float = 0.5,
        interval_seconds: float = 1.0,
        uploader: Callable[[DeviceState], Uploader] | None = None,
        upload_interval_seconds: float = 60.0,
        upload_change: float = 12.0,
        patience_seconds: float = _PATIENCE_SECONDS,
    ) -> None:
        self.device_id: Final = device_id
        self.sensor: Final = SENSOR
        self.state: Final = DeviceState(SENSOR, camera.source)
        self._camera = camera
        self._hardware = Lock()
        self._cache_ns = int(cache_seconds * 1e9)
        self._interval_seconds = interval_seconds
        self._uploader = None if uploader is None else uploader(self.state)
        self._upload_interval_ns = int(upload_interval_seconds * 1e9)
        self._upload_change = upload_change
        self._patience_seconds = patience_seconds
        self._pool = Pool(workers, SENSOR, self._tell)
        for name in ("captures", "cache_hits", "shared"):
            self.state.count(name, 0)
        self._measured = Measured(self.state)
        self._asked = asyncio.Event()
        self._shot_ns = 0
        self._shot: asyncio.Task[Reading] | None = None
        self._last: Reading | None = None
        self._uploaded: tuple[int, Grey] | None = None
        self._task: asyncio.Task[None] | None = None
        self._ended = False
        # Each operation has a thread of the pool to itself; OpenCV's own would fight for the same cores.
        cv2.setNumThreads(1)

    async def readings(self) -> AsyncIterator[Reading]:
        if self._task is None and not self._ended:
            self._task = asyncio.create_task(self._keep_taking(), name=SENSOR)
        async for reading in self._measured.readings():
            yield reading

    async def read(self) -> Reading:
        if self._ended:
            raise Unavailable(SENSOR, "The camera is closed.")
        self._asked.set()
        last = self._last
        if last is not None and time.monotonic_ns() - last.monotonic_ns < self._cache_ns:
            self.state.count("cache_hits")
            return last
        if self._shot is not None and not self._shot.done():
            self.state.count("shared")
        shot = self._take()
        # A picture that all wait for is not given up because one of them goes away.
        done, _ = await asyncio.wait({shot}, timeout=self._patience_seconds)
        if not done:
            raise Unavailable(SENSOR, f"The camera gave no picture within {self._patience_seconds:g} s.")
        try:
            return shot.result()
        except (LinkLost, asyncio.CancelledError) as error:
            raise Unavailable(SENSOR, f"The camera gives no picture: {error or 'it was closed'}.") from error

    async def close(self) -> None:
        self._ended = True
        tasks = {task for task in (self._task, self._shot) if task is not None and not task.done()}
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        if self._uploader is not None:
            await self._uploader.close()
        self._pool.close()
        self.state.connected = False
        self._measured.end()
        # It may have to wait for a picture that is being taken; then it goes on beside what else there is to
        # close, until the process's shutdown budget is over.
        await asyncio.wait({asyncio.create_task(asyncio.to_thread(self._let_go))}, timeout=_LET_GO_SECONDS)

    def _take(self) -> asyncio.Task[Reading]:
        """The picture that is being taken, or a new one."""
        if self._shot is None or self._shot.done():
            self._shot = asyncio.create_task(self._shoot(), name=f"{SENSOR}-shot")
        return self._shot

    async def _keep_taking(self) -> None:
        delay = _FIRST_DELAY_SECONDS
        due = time.monotonic()
        while True:
            began = time.monotonic()
            self._asked.clear()
            shot = self._take()
            await asyncio.wait({shot})
            if shot.cancelled() or shot.exception() is not None:
                await asyncio.sleep(delay)
                delay = min(2 * delay, _LONGEST_DELAY_SECONDS)
                due = time.monotonic()
                continue
            delay = _FIRST_DELAY_SECONDS
            due = max(min(due, began) + self._interval_seconds, time.monotonic())
            await self._rest(due)

    async def _rest(self, due: float) -> None:
        """Until a picture is due; when somebody asks, until the latest one has to be replaced."""
        while True:
            try:
                async with asyncio.timeout(due - time.monotonic()):
                    await self._asked.wait()
            except TimeoutError:
                return
            ahead_ns = ahead_of(self._cache_ns, self._shot_ns)
            if self._last is not None and ahead_ns is not None:
                due = min(due, (self._last.monotonic_ns + self._cache_ns - ahead_ns) / 1e9)
                await asyncio.sleep(due - time.monotonic())
                return
            # Who asks next may do so of a picture that took less.
            self._asked.clear()

    async def _shoot(self) -> Reading:
        """Takes a picture and looks at it. Raises `LinkLost`."""
        measuring = asyncio.create_task(self._take_and_measure())
        try:
            while not (await asyncio.wait({measuring}, timeout=self._patience_seconds))[0]:
                # A thread that hangs can't be stopped; it can be told.
                self.state.lost(f"no picture within {self._patience_seconds:g} s")
            return measuring.result()
        except LinkLost as error:
            self.state.lost(str(error))
            raise
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            if reason != self.state.last_error:
                log.exception("device_failed", sensor=SENSOR)
            self.state.lost(reason)
            raise LinkLost(reason) from error
        finally:
            measuring.cancel()

    async def _take_and_measure(self) -> Reading:
        started = time.monotonic_ns()
        picture, grey, taken_ns, captured_at = await self._pool.run(self._capture)
        self.state.count("captures")
        bright, sharp, spot = await measure(self._pool, grey)
        measured_ns = time.monotonic_ns()
        height, width = grey.shape
        values = Imx477Values(
            luminosity=round(bright, 2),
            sharpness=round(sharp, 2),
            laser_x=None if spot is None else round(spot.x, 2),
            laser_y=None if spot is None else round(spot.y, 2),
            laser_area=0.0 if spot is None else spot.area,
            width=width,
            height=height,
            capture_ms=round((taken_ns - started) / 1e6, 1),
            analysis_ms=round((measured_ns - taken_ns) / 1e6, 1),
            image_id=await self._upload(picture, grey, taken_ns, captured_at),
        )
        reading = Reading(self.device_id, SENSOR, msgspec.structs.asdict(values), captured_at, taken_ns)
        self._keep(reading)
        self._shot_ns = time.monotonic_ns() - started
        return reading

    def _capture(self) -> tuple[Picture, Grey, int, datetime]:
        """In a thread: the picture, its grey one, and when it was taken."""
        with self._hardware:
            picture = self._camera.capture()
        taken_ns, captured_at = time.monotonic_ns(), datetime.now(UTC)
        return picture, grey_of(picture), taken_ns, captured_at

    def _let_go(self) -> None:
        with self._hardware:
            self._camera.close()

    async def _upload(self, picture: Picture, grey: Grey, taken_ns: int, captured_at: datetime) -> str | None:
        """The id under which the picture goes up, when it is due."""
        if self._uploader is None:
            return None
        scene = await self._pool.run(scene_of, grey)
        if self._uploaded is not None:
            before_ns, before = self._uploaded
            if (
                taken_ns - before_ns < self._upload_interval_ns
                and change(scene, before) < self._upload_change
            ):
                return None
        self._uploaded = taken_ns, scene
        image_id = f"{self.device_id[:96]}:{SENSOR}:{int(captured_at.timestamp() * 1000)}"
        found, jpeg = await self._pool.run(cv2.imencode, ".jpg", picture)
        if found:
            self._uploader.offer(image_id, jpeg.tobytes())
        return image_id if found else None

    def _keep(self, reading: Reading) -> None:
        if not self.state.connected:
            self.state.found()
        self.state.has_read(reading)
        self._last = reading
        if self._task is not None:
            self._measured.put(reading)

    def _tell(self, pool: Pool) -> None:
        details = self.state.details
        details["pool_size"], details["pool_busy"], details["pool_waiting"] = (
            pool.size,
            pool.busy,
            pool.waiting,
        )
