"""A camera's pictures in the mesh: by the real endpoint, under the id that the reading has."""

from __future__ import annotations

import asyncio
import json
from functools import partial

import httpx
import numpy as np

from edge_publisher.devices.imx477 import Imx477
from edge_publisher.devices.upload import Uploader
from edge_publisher.domain.picture import change, grey_of, scene_of
from edge_publisher.simulation.camera import MovingCamera
from ingest_api.__main__ import compose
from ingest_api.searchable_pdf import searchable_pdf
from visionmesh.drawing import draw_on
from visionmesh.images import decode
from visionmesh.settings import Settings
from visionmesh.testing.kafka import MemoryBroker
from visionmesh.testing.object_store import MemoryObjectStore
from visionmesh.testing.results import MemoryImages, MemoryResultStore
from visionmesh.topics import IMAGES

DEADLINE_SECONDS = 30.0


def test_pictures_join_the_mesh_and_one_that_is_sent_twice_is_there_once() -> None:
    broker, store = MemoryBroker(), MemoryObjectStore()
    images = MemoryImages(MemoryResultStore())
    app = compose(Settings(), images, store, broker.publisher(), draw_on, searchable_pdf, images.pending)
    transport = httpx.ASGITransport(app)

    async def scenario() -> list[object]:
        camera = MovingCamera(320, 240, seconds=0, clock=lambda: 0.0)
        device = Imx477(
            "pi-1",
            camera,
            cache_seconds=0,
            uploader=partial(Uploader, "http://mesh.test", transport=transport),
            upload_interval_seconds=1e-6,
        )
        found = [(await device.read()).values["image_id"] for _ in range(2)]
        async with asyncio.timeout(DEADLINE_SECONDS):
            while device.state.details["uploads"] < 2:
                await asyncio.sleep(0.01)
            # As when the answer to the first attempt got lost.
            picture = store.get(announced()[found[0]], max_bytes=10**7)
            again = Uploader("http://mesh.test", device.state, transport=transport)
            again.offer(str(found[0]), picture)
            while device.state.details["uploads"] < 3:
                await asyncio.sleep(0.01)
            await again.close()
        await device.close()
        assert device.state.details["uploads_dropped"] == 0
        return found

    def announced() -> dict[object, str]:
        """Paths by image id: the topic's partitions have no order among each other."""
        messages = [json.loads(message.value() or b"") for message in broker.messages(IMAGES.name)]
        paths = {each["image_id"]: each["minio_path"] for each in messages}
        assert len(paths) == len(messages)
        return paths

    found = asyncio.run(scenario())
    assert len(set(found)) == 2
    assert announced().keys() == set(found)
    for path in announced().values():
        stored = decode(store.get(path, max_bytes=10**7))
        taken = MovingCamera(320, 240, seconds=0, clock=lambda: 0.0).capture()
        assert (
            change(scene_of(grey_of(np.ascontiguousarray(stored[..., ::-1]))), scene_of(grey_of(taken))) < 2
        )
