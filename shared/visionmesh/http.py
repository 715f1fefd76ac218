"""The HTTP application that every service starts from.

It brings `GET /health`, `GET /ready` and `GET /metrics`, and one shape of error for whatever goes wrong:
`{"error": "a sentence that helps", "code": "stable_word"}`. A stack trace never leaves the process.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from http import HTTPStatus
from typing import Any, Final, TypeVar

import msgspec
import structlog
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import Match
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Lifespan, Message, Receive, Scope, Send

from visionmesh.access import Gate, Guard
from visionmesh.answers import Alive, Problem, ReadyAnswer
from visionmesh.errors import Rejected, Unavailable
from visionmesh.observability import metrics, spans, tracing
from visionmesh.observability.health import Check, Readiness

log = structlog.get_logger()

T = TypeVar("T")

# A request body that is not a picture: thousands of descriptors fit.
_MAX_BODY_BYTES: Final = 1024 * 1024

# Boundaries and headers of a form around a picture: what a body may be larger than the picture.
FORM_BYTES: Final = 64 * 1024
_FORM_FIELDS: Final = 16

_RETRY_AFTER_SECONDS: Final = 2

# How `visionmesh.access` refuses a request, whatever its route.
_BY_THE_GATE: Final = (401, 403, 421, 429)

# Servers whose names say little to clients.
_NAMES: Final = {"isolated": "process that decodes pictures"}

# What a `Rejected` is over HTTP. A code that is not here is 422: the request was understood, but what it
# holds can't be worked on.
_STATUS: Final = {
    "answer_overdue": 504,
    "bad_image_id": 400,
    "bad_path": 400,
    "bad_period": 400,
    "bad_request": 400,
    "bad_resolution": 400,
    "bucket_not_allowed": 403,
    "image_deleted": 410,
    "image_id_conflict": 409,
    "image_not_found": 404,
    "invalid_json": 400,
    "malformed_multipart": 400,
    "no_file": 400,
    "not_an_image": 415,
    "not_finished": 409,
    "not_found": 404,
    "not_multipart": 415,
    "object_not_found": 404,
    "sensor_not_found": 404,
    "body_too_large": 413,
    "too_many_bytes": 413,
    "too_many_files": 413,
    "too_many_pixels": 413,
    "too_many_readings": 400,
    "too_many_waiting": 429,
    # None of the client's doing.
    "too_many_uploads": 503,
    "truncated_body": 400,
    "too_many_pages": 413,
    "unknown_task": 400,
    "unsupported_media_type": 415,
    "upload_stalled": 408,
}

# What FastAPI says of a body that its JSON parser does not even report on.
_UNREADABLE_BODY: Final = "There was an error parsing the body"

# The parts of paths that lines of the log name.
_IDS: Final = ("image_id", "task_id", "device_id", "sensor")

_METHODS: Final = ("DELETE", "GET", "HEAD", "PATCH", "POST", "PUT")

_CODES: Final = {
    400: "bad_request",
    404: "not_found",
    405: "method_not_allowed",
    413: "body_too_large",
    415: "unsupported_media_type",
}


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """For the `responses` of a route: by which statuses it tells that something is wrong."""
    return {status: {"model": Problem} for status in statuses}


def told(answer: object, *statuses: int, status: int = 200) -> dict[int | str, dict[str, Any]]:
    """As `errors`, and what a route answers when nothing is wrong. answer: its type."""
    return {status: {"model": answer}, **errors(*statuses)}


class _Application(FastAPI):
    """Tells in its OpenAPI which keys are asked for, once it is known whether they are."""

    def openapi(self) -> dict[str, Any]:
        described = super().openapi()
        guard: Guard | None = getattr(self.state, "guard", None)
        if guard is not None:
            guard.describe(described)
        return described


def create_app(
    service: str,
    *,
    checks: Mapping[str, Check],
    max_body_bytes: int | None = _MAX_BODY_BYTES,
    lifespan: Lifespan[FastAPI] | None = None,
    details: Callable[[], Mapping[str, Any]] = dict,
    summary: Callable[[], Mapping[str, float]] | None = None,
) -> FastAPI:
    """An application with the routes and errors of every service, to which a service adds its own.

    checks: by the name that `/ready` shows; see `visionmesh.observability.health`.
    max_body_bytes: larger request bodies are answered 413; None for routes that count for themselves.
    details: what `/health` tells besides, at once; a `status` among it takes the place of `ok`.
    summary: what `/metrics` tells who would rather have JSON.
    """
    app = _Application(
        title=service, lifespan=lifespan, docs_url=None, redoc_url=None, responses=errors(*_BY_THE_GATE)
    )
    _add_docs(app)
    readiness = Readiness(checks)

    @app.get("/health", summary="Whether the process is alive", responses=told(Alive))
    async def health() -> Response:
        # Told by values that JSON knows: no model of an answer that every service has another of.
        return JSONResponse({"status": "ok", "service": service, **details()})

    ready_or_not: dict[int | str, dict[str, Any]] = {status: {"model": ReadyAnswer} for status in (200, 503)}

    @app.get(
        "/ready", summary="Whether the process can work, and what it waits for if not", responses=ready_or_not
    )
    async def ready() -> Response:
        findings = await readiness.findings()
        is_ready = all(finding.ready for finding in findings.values())
        return JSONResponse(
            {
                "ready": is_ready,
                "service": service,
                "checks": {name: finding.as_json() for name, finding in findings.items()},
            },
            status_code=HTTPStatus.OK if is_ready else HTTPStatus.SERVICE_UNAVAILABLE,
        )

    exposed: dict[int | str, dict[str, Any]] = {200: {"content": {"text/plain": {}}}}
    if summary is not None:
        exposed[200]["content"]["application/json"] = {}

    # Of its own: behind a crowd of slow requests, which take all threads of the pool, a scrape would come too
    # late, and the service would pass for dead.
    scraper = ThreadPoolExecutor(1, thread_name_prefix="scrape")

    @app.get("/metrics", summary="Metrics for Prometheus", response_class=Response, responses=exposed)
    async def exposition(request: Request) -> Response:
        loop = asyncio.get_running_loop()
        if summary is not None and _wanted(request) == "application/json":
            return JSONResponse(dict(await loop.run_in_executor(scraper, summary)))
        text = await loop.run_in_executor(scraper, generate_latest)
        return Response(text, media_type=CONTENT_TYPE_LATEST)

    app.add_exception_handler(Rejected, _on_rejected)
    app.add_exception_handler(Unavailable, _on_unavailable)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_middleware(Gate)
    # Last, and so around it: what is refused is counted as well.
    app.add_middleware(_Shell, service=service, max_body_bytes=max_body_bytes)
    return app


def _add_docs(app: FastAPI) -> None:
    """`GET /docs` and what its page loads, all from here: FastAPI's own loads Swagger UI from the internet.

    The files are those of fastapi-offline. Its application is not used: a function makes it, which ours can't
    inherit from, and it has Redoc besides.
    """
    script, style, icon = "docs/swagger-ui-bundle.js", "docs/swagger-ui.css", "docs/favicon.png"
    files = StaticFiles(packages=[("fastapi_offline", "static")])

    async def page(_: Request) -> Response:
        # Relative to the page's own address, so that they hold behind a proxy that puts something before it.
        return get_swagger_ui_html(
            title=f"{app.title} - Swagger UI",
            openapi_url="openapi.json",
            swagger_js_url=script,
            swagger_css_url=style,
            swagger_favicon_url=icon,
        )

    async def file(request: Request) -> Response:
        return await files.get_response(request.url.path.rpartition("/")[2], request.scope)

    app.add_route("/docs", page, include_in_schema=False)
    for path in (script, style, icon):
        app.add_route(f"/{path}", file, include_in_schema=False)


def error_response(
    status: int, code: str, reason: str, headers: Mapping[str, str] | None = None
) -> JSONResponse:
    """The one shape of an error."""
    return JSONResponse({"error": reason, "code": code}, status_code=status, headers=headers)


def status_of(error: Rejected | Unavailable) -> int:
    """The status of `error_of`."""
    if isinstance(error, Rejected):
        return _STATUS.get(error.code, HTTPStatus.UNPROCESSABLE_ENTITY)
    return HTTPStatus.SERVICE_UNAVAILABLE


def error_of(error: Rejected | Unavailable) -> JSONResponse:
    """What a failure outcome is over HTTP."""
    status = status_of(error)
    come_again = {"Retry-After": str(_RETRY_AFTER_SECONDS)}
    if isinstance(error, Rejected):
        passes = status in (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE)
        return error_response(status, error.code, error.reason, come_again if passes else None)
    # The reason may name addresses and accounts; it is logged and on /ready, and not for clients.
    return error_response(
        status,
        f"{error.server}_unavailable",
        f"The {_NAMES.get(error.server, error.server.replace('_', ' '))} can't be reached at the moment; "
        "please try again.",
        come_again,
    )


def decode_json(body: bytes, type_: type[T]) -> T:
    """A request body as a message of the mesh. Raises `Rejected`: `invalid_json`, `invalid_request`.

    As strict as JSON is: NaN and Infinity, which Python's parser would take, are refused.
    """
    try:
        return msgspec.json.decode(body, type=type_)
    except msgspec.ValidationError as error:
        raise Rejected("invalid_request", f"{error}.") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Rejected("invalid_json", _why_no_json(body, error)) from error


def _wanted(request: Request) -> str:
    """The media type that a client names first, in lower case and without parameters."""
    return request.headers.get("accept", "").partition(",")[0].partition(";")[0].strip().lower()


def media_type_of(request: Request) -> str:
    """What the body is announced as, in lower case and without parameters; empty when nothing is said."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


async def picture_of(request: Request) -> bytes:
    """The picture of a request: the first file of a form, whatever its field is called, else the body.

    Raises `Rejected`: `no_file` for a form without one.
    """
    if media_type_of(request) != "multipart/form-data":
        return await request.body()
    async with request.form(max_files=1, max_fields=_FORM_FIELDS) as form:
        for value in form.values():
            if isinstance(value, UploadFile):
                return await value.read()
    raise Rejected("no_file", 'The form has no file; send it with curl -F "file=@picture.jpg"')


def _why_no_json(body: bytes, error: Exception) -> str:
    if not body:
        return "The body is empty; it must be JSON."
    found: list[str] = []
    with suppress(ValueError, RecursionError):
        json.loads(body, parse_constant=found.append)
    if found:
        return f"The body is not JSON: JSON has no {found[0]}."
    return f"The body is not JSON: {error}."


async def _on_rejected(_: Request, error: Exception) -> Response:
    assert isinstance(error, Rejected)
    return error_of(error)


async def _on_unavailable(request: Request, error: Exception) -> Response:
    assert isinstance(error, Unavailable)
    asked_about = {name: request.path_params[name] for name in _IDS if name in request.path_params}
    log.warning("unavailable", **asked_about, server=error.server, reason=error.reason)
    return error_of(error)


async def _on_invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    problems: Sequence[Mapping[str, Any]] = error.errors()
    first = problems[0]
    if first["type"] == "json_invalid":
        reason = f"The body is not JSON: {first.get('ctx', {}).get('error', 'it can not be parsed')}."
        return error_response(HTTPStatus.BAD_REQUEST, "invalid_json", reason)
    if first["loc"] == ("body",) and first["type"] != "missing" and not _is_json(request):
        reason = "The body is not announced as JSON; send it with the header content-type: application/json."
        return error_response(HTTPStatus.UNPROCESSABLE_ENTITY, "invalid_request", reason)
    place = ".".join(str(part) for part in first["loc"] if part != "body") or "body"
    code = "not_finite" if first["type"] == "finite_number" else "invalid_request"
    return error_response(HTTPStatus.UNPROCESSABLE_ENTITY, code, f"{place}: {first['msg']}.")


def _is_json(request: Request) -> bool:
    media_type = media_type_of(request)
    return media_type.startswith("application/") and media_type.endswith(("/json", "+json"))


async def _on_http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    reason, headers = str(error.detail), error.headers
    if reason == _UNREADABLE_BODY:
        reason = "The body is not JSON: it is not UTF-8, or nested too deeply."
        return error_response(HTTPStatus.BAD_REQUEST, "invalid_json", reason)
    if reason == HTTPStatus.NOT_FOUND.phrase:
        reason = f"There is no {request.url.path} here; /docs shows what there is."
    elif reason == HTTPStatus.METHOD_NOT_ALLOWED.phrase:
        reason = f"{request.url.path} does not take {request.method}."
        headers = {"Allow": ", ".join(_methods_of(request))}
    code = _CODES.get(error.status_code, "http_error")
    return error_response(error.status_code, code, reason, headers)


def _methods_of(request: Request) -> list[str]:
    """What the path of a request takes. Starlette would tell only of the first of its routes."""

    def takes(method: str) -> bool:
        scope = {**request.scope, "method": "GET" if method == "HEAD" else method}
        return any(route.matches(scope)[0] is Match.FULL for route in request.app.routes)

    return [method for method in _METHODS if takes(method)]


class _Shell:
    """Around every request: its trace, its metrics, its size, and an answer to a bug.

    Plain ASGI: Starlette's base class for middleware would buffer and break streams.
    """

    def __init__(self, app: ASGIApp, service: str, max_body_bytes: int | None) -> None:
        self._app = app
        self._service = service
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if scope["method"] == "HEAD":
            # Every GET route answers it, as RFC 9110 (9.1) asks for; the server leaves the body out.
            scope = {**scope, "method": "GET"}
        status = 0
        started = time.perf_counter()
        started_ns = spans.now_ns()
        trace = _trace_of(scope)

        async def send_noting_status(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        with tracing.use(trace):
            try:
                await self._answer(scope, receive, send_noting_status)
            except ClientDisconnect:
                status = status or 499  # as nginx calls it; nobody is there to be answered
            except Exception:
                log.exception("request_failed", method=scope["method"], path=scope["path"])
                if status:
                    raise  # half an answer is out; the server cuts the connection
                response = error_response(
                    HTTPStatus.INTERNAL_SERVER_ERROR,
                    "internal_error",
                    "Something went wrong here; the log of the service says what.",
                )
                await response(scope, receive, send_noting_status)
            finally:
                route = _route_of(scope)
                metrics.HTTP_REQUESTS.labels(self._service, route, str(status)).inc()
                # There before the first bug: a series that begins with one has no rise for an alert to see.
                metrics.from_zero(metrics.HTTP_REQUESTS, ("500",), self._service, route)
                metrics.HTTP_SECONDS.labels(self._service, route).observe(time.perf_counter() - started)
                if trace.sampled:
                    spans.record(_span(scope, trace, route, status, started_ns))

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        limit = self._max_body_bytes
        if limit is None:
            await self._app(scope, receive, send)
            return
        announced = _content_length(scope)
        if announced is not None and announced > limit:
            await error_of(_too_large(limit))(scope, receive, send)
            return
        left = limit

        async def receive_counting() -> Message:
            nonlocal left
            message = await receive()
            left -= len(message.get("body", b""))
            if left < 0:
                # This exception, and no other, is passed on by FastAPI from inside the reading of a body.
                raise HTTPException(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, _too_large(limit).reason)
            return message

        await self._app(scope, receive_counting, send)


def _too_large(limit: int) -> Rejected:
    return Rejected("body_too_large", f"The request is too large: at most {limit} bytes are accepted.")


def _header(scope: Scope, name: bytes) -> str | None:
    for key, value in scope["headers"]:
        if key == name:
            return str(value.decode("latin-1"))
    return None


def _content_length(scope: Scope) -> int | None:
    text = _header(scope, b"content-length")
    return int(text) if text is not None and text.isdecimal() else None


def _trace_of(scope: Scope) -> tracing.Trace:
    """A span of the client's trace; without one, a new trace. Probes and scrapes are not worth a sample."""
    text = _header(scope, b"traceparent")
    parent = tracing.Trace.parse(text) if text is not None else None
    if parent is not None:
        return parent.child()
    return tracing.begin() if scope["method"] == "POST" else tracing.Trace.new()


def _span(scope: Scope, trace: tracing.Trace, route: str, status: int, started_ns: int) -> spans.Span:
    """Of a request that was answered. A status of 5xx is this service's fault, one of 4xx is not."""
    return spans.Span(
        f"{scope['method']} {route}",
        "server",
        trace,
        started_ns,
        spans.now_ns(),
        {
            "http.request.method": scope["method"],
            "http.route": route,
            "http.response.status_code": status,
        },
        f"status {status}" if status >= HTTPStatus.INTERNAL_SERVER_ERROR else None,
    )


def _route_of(scope: Scope) -> str:
    """The template of the route, so that ids in paths don't make a series each."""
    return getattr(scope.get("route"), "path", None) or "unmatched"
