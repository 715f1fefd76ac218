"""Port 8000: what the sensors tell at this moment, and live.

`GET /imx477/sensor` is the seed's call. It waits for the sensor and not for the queue, the disk or a broker.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from functools import partial
from typing import Annotated, Any, Final

import msgspec
import structlog
from fastapi import FastAPI, Query, Response, WebSocket
from pydantic import BaseModel

from edge_publisher.devices.protocol import Device, Reading
from edge_publisher.live import Live
from edge_publisher.service import StoreAndForward, pump
from visionmesh.contracts import Value
from visionmesh.errors import Rejected, Unavailable
from visionmesh.http import create_app, told
from visionmesh.observability import metrics
from visionmesh.observability.health import Check

log = structlog.get_logger()

_HAND_OVER_SECONDS: Final = 1.0


class DeviceAnswer(BaseModel):
    """See `edge_publisher.devices.protocol.DeviceState`."""

    sensor: str
    source: str
    connected: bool
    readings: int
    reconnects: int
    errors: int
    dropped: int
    last_reading_at: datetime | None
    last_error: str | None
    lost_at: datetime | None
    details: dict[str, int]


class DevicesAnswer(BaseModel):
    device_id: str
    sensors: list[DeviceAnswer]


class ReadingAnswer(BaseModel):
    """See `visionmesh.contracts.SensorReading`."""

    device_id: str
    sensor: str
    captured_at: datetime
    values: dict[str, Value]
    monotonic_ns: int


def make_app(
    service: str,
    device_id: str,
    devices: Callable[[], Sequence[Device]],
    forward: StoreAndForward,
    live: Live,
    *,
    max_concurrent: int,
) -> FastAPI:
    """devices: opens them, on the event loop that they are used from.

    max_concurrent: requests for a sensor that are answered at once; others wait their turn. `/health` and
    `/metrics` never do, and no sensor's wait for another's.
    """
    opened: dict[str, Device] = {}
    turns = defaultdict[str, asyncio.Semaphore](partial(asyncio.Semaphore, max_concurrent))

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        try:
            live.open()
            opened.update({device.sensor: device for device in devices()})
            _measure(opened)
            pumps = [asyncio.create_task(pump(device, forward.offer)) for device in opened.values()]
            try:
                yield
            finally:
                await _close(opened.values(), pumps)
        finally:
            forward.sources_closed()

    def details() -> Mapping[str, Any]:
        queue = forward.health()
        states = [device.state for device in opened.values()]
        problems = [
            *(
                f"{state.sensor} is not connected: {state.last_error or 'it has given no reading yet'}"
                for state in states
                if not state.connected
            ),
            *queue.pop("problems"),
        ]
        return {
            "status": "degraded" if problems else "ok",
            "device_id": device_id,
            "problems": problems,
            "devices": [state.as_json() for state in states],
            "queue": queue,
        }

    app = create_app(service, checks={"queue": _ready(forward)}, lifespan=lifespan, details=details)

    @app.get("/sensors", responses=told(DevicesAnswer))
    def sensors() -> dict[str, Any]:
        """The sensors of this device, and how they are."""
        return {
            "device_id": device_id,
            "sensors": [device.state.as_json() for device in opened.values()],
        }

    @app.get("/{sensor}/sensor", responses=told(ReadingAnswer, 404, 422, 503))
    async def sensor(sensor: str) -> Response:
        """What a sensor tells now: a reading, as it is published but for its number."""
        device = opened.get(sensor)
        if device is None:
            known = ", ".join(opened) or "none"
            raise Rejected("sensor_not_found", f"This device has no sensor {sensor!r}; it has {known}.")
        async with turns[sensor]:
            reading = await device.read()
        return Response(msgspec.json.encode(_as_json(reading)), media_type="application/json")

    @app.websocket("/ws")
    async def ws(
        websocket: WebSocket,
        sensor: Annotated[list[str] | None, Query(description="only these; repeatable")] = None,
    ) -> None:
        """Every reading as it is written down, each a message as on Kafka."""
        await live.serve(websocket, frozenset(sensor or ()))

    return app


def _as_json(reading: Reading) -> dict[str, Any]:
    return {
        "device_id": reading.device_id,
        "sensor": reading.sensor,
        "captured_at": reading.captured_at,
        "values": dict(reading.values),
        "monotonic_ns": reading.monotonic_ns,
    }


async def _close(devices: Iterable[Device], pumps: Sequence[asyncio.Task[None]]) -> None:
    """One after the other: what simulates them is shared."""
    for device in devices:
        try:
            await device.close()
        except Exception:
            log.exception("device_not_closed", sensor=device.sensor)
    # What they have already is handed over.
    if pumps:
        await asyncio.wait(pumps, timeout=_HAND_OVER_SECONDS)
    for task in pumps:
        task.cancel()
    await asyncio.gather(*pumps, return_exceptions=True)


def _measure(devices: Mapping[str, Device]) -> None:
    """Gauges that look when they are asked."""
    for sensor, device in devices.items():
        metrics.EDGE_DEVICE_UP.labels(sensor).set_function(partial(_connected, device))
        metrics.EDGE_DEVICE_ERRORS.labels(sensor).set_function(partial(_errors, device))
    camera = devices.get("imx477")
    if camera is not None:
        for state in ("size", "busy", "waiting"):
            threads = metrics.EDGE_CAMERA_THREADS.labels(state)
            threads.set_function(partial(_detail, camera, f"pool_{state}"))
        for result in ("captures", "cache_hits", "shared"):
            requests = metrics.EDGE_CAMERA_REQUESTS.labels(result)
            requests.set_function(partial(_detail, camera, result))


def _connected(device: Device) -> float:
    return device.state.connected


def _errors(device: Device) -> float:
    return device.state.errors


def _detail(device: Device, name: str) -> float:
    return device.state.details.get(name, 0)


def _ready(forward: StoreAndForward) -> Check:
    def check() -> None:
        status = forward.status()
        if not status["ready"]:
            waiting = status["waiting_for"] or {"server": "queue", "reason": "the service is stopping"}
            raise Unavailable(waiting["server"], waiting["reason"])

    return check
