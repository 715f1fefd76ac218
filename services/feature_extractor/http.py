"""`POST /extract` on port 8006: a picture -> its 20 descriptors, at once."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from hashlib import sha256
from typing import Annotated, Any, Final

import msgspec
import numpy as np
from fastapi import FastAPI, Query, Request
from numpy.typing import NDArray
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool

from feature_extractor.domain import on_the_wire
from feature_extractor.known import Known
from feature_extractor.models import Prepare, current_extractor
from feature_extractor.step import Fetch
from visionmesh.answers import IMAGE_ID
from visionmesh.bodies import WAITING_BYTES, Room, received
from visionmesh.cache import Cache
from visionmesh.contracts import is_image_id
from visionmesh.errors import Rejected
from visionmesh.http import FORM_BYTES, create_app, decode_json, media_type_of, told
from visionmesh.observability import logs, metrics
from visionmesh.observability.health import Check
from visionmesh.registry import ModelSource
from visionmesh.turn import CALLERS_WAITING, Turn

# The child takes one after the other; meanwhile the next is fetched, which may be as large as a body. What
# comes by Kafka stands behind no more than these.
_AT_ONCE: Final = 2

_BODIES: Final[dict[str, Any]] = {
    "application/json": {
        "schema": {
            "type": "object",
            "required": ["image_id", "minio_path"],
            "properties": {"image_id": IMAGE_ID, "minio_path": {"type": "string"}},
        },
        "example": {"image_id": "test-123", "minio_path": "raw-images/test.jpg"},
    },
    "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
    "multipart/form-data": {
        "schema": {"type": "object", "properties": {"file": {"type": "string", "format": "binary"}}}
    },
}


class FeaturesAnswer(BaseModel):
    """image_id: as in the request, None when it had none."""

    image_id: str | None
    descriptors: list[float]
    descriptor_count: int


class InStore(msgspec.Struct, frozen=True):
    """The picture that a JSON body names, as `visionmesh.contracts.ImageUploaded` does; its other fields
    are ignored.
    """

    image_id: str
    minio_path: str


def make_app(
    service: str,
    fetch: Fetch,
    prepare: Prepare,
    source: ModelSource,
    cache: Cache,
    *,
    checks: Mapping[str, Check],
    max_bytes: int,
    waiting_bytes: int = WAITING_BYTES,
) -> FastAPI:
    """max_bytes: the largest picture that is taken in the request itself.

    waiting_bytes: what the bodies of all requests may take together, from when they are sent.
    """
    room = Room(waiting_bytes, max_bytes + FORM_BYTES)
    turn = Turn(_AT_ONCE, CALLERS_WAITING)
    app = create_app(service, checks=checks, max_body_bytes=max_bytes + FORM_BYTES)

    def answer(image_id: str | None, data: bytes) -> dict[str, Any]:
        (descriptors,) = on_the_wire(_descriptors(data, prepare, source, cache))
        return {"image_id": image_id, "descriptors": descriptors, "descriptor_count": len(descriptors)}

    def fetched(message: InStore) -> dict[str, Any]:
        with logs.bind(image_id=message.image_id):
            return answer(message.image_id, fetch(message.minio_path))

    @app.post(
        "/extract",
        openapi_extra={"requestBody": {"required": True, "content": _BODIES}},
        responses=told(FeaturesAnswer, 400, 404, 408, 413, 415, 422, 503),
    )
    async def extract(
        request: Request,
        image_id: Annotated[str | None, Query(json_schema_extra={"pattern": IMAGE_ID["pattern"]})] = None,
    ) -> dict[str, Any]:
        """A picture's descriptors: of one in the object store (JSON), or of the one in the body.

        429 `too_many_waiting` when too many callers wait for one, or send one.

        image_id: of a picture in the body, only to be repeated in the answer.
        """
        if image_id is not None:
            _check_image_id(image_id)
        with room.kept_for(request):
            data = await received(request)
            if media_type_of(request) == "application/json":
                message = decode_json(data, InStore)
                _check_image_id(message.image_id)
                work = partial(fetched, message)
            else:
                work = partial(answer, image_id, data)
            async with turn.taken():
                return await run_in_threadpool(work)

    return app


def _descriptors(data: bytes, prepare: Prepare, source: ModelSource, cache: Cache) -> NDArray[np.float32]:
    """Of one picture, float32 [1, descriptor_count]; computed only when they are not known."""
    extractor = current_extractor(source)
    known = Known(cache, extractor.model)
    digest = sha256(data).hexdigest()
    found = known.find([digest]).get(digest)
    if found is None:
        (found,) = extractor.extract([prepare(data, extractor.side)])
        metrics.INFERENCES.labels("answer").inc()
        known.keep({digest: found})
    return found[np.newaxis]


def _check_image_id(text: str) -> None:
    if not is_image_id(text):
        raise Rejected("bad_image_id", "An image_id is 1 to 128 letters, digits and . _ : -")
