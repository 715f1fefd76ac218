"""Port 8008: a picture -> its QR codes, at once.

`POST /qr/hybrid-fallback` is the seed's call, one content or 404; `POST /detect` tells everything.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from http import HTTPStatus
from typing import Annotated, Any, Final

from fastapi import FastAPI, Query, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool

from qr_decoder.reading import Found, Read
from visionmesh.answers import QrCodeAnswer
from visionmesh.bodies import WAITING_BYTES, Room, received
from visionmesh.errors import Rejected
from visionmesh.http import FORM_BYTES, create_app, error_response, told
from visionmesh.observability.health import Check
from visionmesh.qr_code import as_json
from visionmesh.turn import CALLERS_WAITING, Turn

# The seed's words.
_NOTHING: Final = "No QR detected"

_BODIES: Final[dict[str, Any]] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
            "multipart/form-data": {
                "schema": {"type": "object", "properties": {"file": {"type": "string", "format": "binary"}}}
            },
        },
    }
}

# Whatever is wrong with a picture, or with how it is to be read.
_REFUSALS: Final = (400, 408, 413, 415, 422)


class ContentAnswer(BaseModel):
    content: str


class DetectAnswer(BaseModel):
    """See `detect`."""

    success: bool
    data: str | None
    model: str
    latency_ms: int
    image_size: tuple[int, int] | None
    truncated: bool
    codes: list[QrCodeAnswer]


Profile = Annotated[
    str | None, Query(description="cascade, light, ultralight, onnx, hybrid, or levels with commas between")
]


def make_app(
    service: str,
    read: Read,
    *,
    own_profile: str,
    checks: Mapping[str, Check],
    max_bytes: int,
    max_budget_ms: int,
    processes: int = 1,
    waiting_bytes: int = WAITING_BYTES,
) -> FastAPI:
    """own_profile: what `read` uses when none is asked for. max_bytes: the largest picture that is taken.

    max_budget_ms: the largest budget that can be asked for; the child has to end by itself within it.
    processes: children that read at once.
    waiting_bytes: what the pictures of all requests may take together, from when they are sent.
    """
    room = Room(waiting_bytes, max_bytes + FORM_BYTES)
    # One more than are read, so that no child waits. What comes by Kafka stands behind no more than these.
    turn = Turn(processes + 1, CALLERS_WAITING)
    app = create_app(service, checks=checks, max_body_bytes=max_bytes + FORM_BYTES)
    budget: Any = Query(
        None, ge=1, le=max_budget_ms, description="milliseconds, after which the best so far is told"
    )

    async def found_in(request: Request, profile: str | None, budget_ms: float | None) -> Found | None:
        """None when nothing came within the deadline of the child."""
        try:
            with room.kept_for(request):
                data = await received(request)
                async with turn.taken():
                    return await run_in_threadpool(read, data, profile=profile, budget_ms=budget_ms)
        except Rejected as error:
            if error.code == "deadline_exceeded":
                return None
            raise

    @app.post(
        "/qr/hybrid-fallback",
        openapi_extra=_BODIES,
        responses=told(ContentAnswer, 404, *_REFUSALS),
    )
    async def hybrid_fallback(
        request: Request, profile: Profile = None, budget_ms: float | None = budget
    ) -> Response:
        """The content of the first code that was read, or 404. 429 `too_many_waiting`."""
        found = await found_in(request, profile, budget_ms)
        if found is None or not found.codes:
            return error_response(HTTPStatus.NOT_FOUND, "no_qr", _NOTHING)
        return JSONResponse({"content": found.codes[0].content})

    @app.post("/detect", openapi_extra=_BODIES, responses=told(DetectAnswer, *_REFUSALS))
    async def detect(
        request: Request, profile: Profile = None, budget_ms: float | None = budget
    ) -> dict[str, Any]:
        """Every code of a picture; one without codes is answered 200 as well. 429 `too_many_waiting`.

        data: the content of the first code, or null. model: the profile. image_size: width and height of the
        upright picture in pixels, null when it could not be read in time.
        """
        began = time.perf_counter()
        found = await found_in(request, profile, budget_ms)
        codes = () if found is None else found.codes
        return {
            "success": bool(codes),
            "data": codes[0].content if codes else None,
            "model": own_profile if profile is None else profile,
            "latency_ms": round((time.perf_counter() - began) * 1000),
            "image_size": None if found is None else [found.width, found.height],
            "truncated": found is None or found.truncated,
            "codes": [as_json(code) for code in codes],
        }

    return app
