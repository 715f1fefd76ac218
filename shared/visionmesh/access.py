"""Who may call which route: one table for every service, and the guard that holds requests to it.

While the service is published on loopback only, no key is asked for; instead, what web pages of others make a
browser send is refused. Published anywhere else it does not start without keys.
"""

from __future__ import annotations

import ipaddress
import math
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import urlsplit

from fastapi.responses import JSONResponse
from starlette.routing import compile_path
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from visionmesh import api_keys
from visionmesh.api_keys import ApiKey, KeyRing, KeysError, RateLimits
from visionmesh.observability import logs
from visionmesh.settings import Settings, variable_of

# What WebSockets are opened by, which have no method.
WEBSOCKET: Final = "WEBSOCKET"

# Whether a process is alive is no secret.
OPEN: Final = frozenset(("/health",))

# For health checks and Prometheus beside the service; those who come from outside need `operate`.
INSIDE: Final = frozenset(("/ready", "/metrics"))

# Every other route of every service. One that is missing here needs `operate`, and fails a test.
ROUTES: Final[Mapping[tuple[str, str], api_keys.Scope]] = {
    ("GET", "/docs"): api_keys.Scope.READ,
    # What its page loads is no secret, but large: strangers could ask for it without limit.
    ("GET", "/docs/swagger-ui-bundle.js"): api_keys.Scope.READ,
    ("GET", "/docs/swagger-ui.css"): api_keys.Scope.READ,
    ("GET", "/docs/favicon.png"): api_keys.Scope.READ,
    ("GET", "/openapi.json"): api_keys.Scope.READ,
    # ingest-api
    ("POST", "/upload"): api_keys.Scope.UPLOAD,
    ("GET", "/predictions/{image_id}"): api_keys.Scope.READ,
    ("GET", "/results/{image_id}"): api_keys.Scope.READ,
    ("GET", "/images"): api_keys.Scope.READ,
    ("GET", "/images/{image_id}"): api_keys.Scope.READ,
    ("DELETE", "/images/{image_id}"): api_keys.Scope.OPERATE,
    ("GET", "/images/{image_id}/content"): api_keys.Scope.READ,
    ("GET", "/images/{image_id}/annotated"): api_keys.Scope.READ,
    ("GET", "/images/{image_id}/text.{kind}"): api_keys.Scope.READ,
    ("GET", "/search"): api_keys.Scope.READ,
    # ingest-api and edge-publisher
    ("GET", "/sensors"): api_keys.Scope.READ,
    ("GET", "/sensors/{device_id}/{sensor}/readings"): api_keys.Scope.READ,
    ("GET", "/{sensor}/sensor"): api_keys.Scope.READ,
    (WEBSOCKET, "/ws"): api_keys.Scope.READ,
    # the workers
    ("POST", "/predict"): api_keys.Scope.PREDICT,
    ("POST", "/extract"): api_keys.Scope.PREDICT,
    ("POST", "/qr/hybrid-fallback"): api_keys.Scope.PREDICT,
    ("POST", "/detect"): api_keys.Scope.PREDICT,
    ("POST", "/ocr"): api_keys.Scope.PREDICT,
    ("POST", "/process"): api_keys.Scope.UPLOAD,
    ("GET", "/result/{task_id}"): api_keys.Scope.READ,
}

# A WebSocket of a browser can't have headers of its own: `new WebSocket(url, ["mesh", "mesh.key.KEY"])`.
SUBPROTOCOL: Final = "mesh"
_KEY_SUBPROTOCOL: Final = "mesh.key."

# A proxy says by either for whom it asks. The gateway writes the first itself, whatever its client sent.
_FORWARDED: Final = (b"x-forwarded-for", b"forwarded")

_SAFE_METHODS: Final = frozenset(("GET", "HEAD", "OPTIONS"))

# RFC 6455, 7.4.1: for servers that can't refuse a WebSocket by an answer of their own.
_POLICY_VIOLATION: Final = 1008

# In the words of OpenAPI, the ways to show a key.
_SECURITY_SCHEMES: Final = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
}

_PATTERNS: Final = tuple((method, compile_path(path)[0], scope) for (method, path), scope in ROUTES.items())


def is_loopback(address: str) -> bool:
    """Whether only this machine reaches `address`, an IP address or a name."""
    try:
        return ipaddress.ip_address(address.strip("[]")).is_loopback
    except ValueError:
        return address == "localhost"


def is_published(settings: Settings) -> bool:
    """Whether others than this machine can send requests."""
    return not is_loopback(settings.publish_address or settings.http_host)


def asks_for_keys(settings: Settings) -> bool:
    """Whether requests need a key: where others can send them, or where it is wished."""
    return settings.require_api_keys or is_published(settings)


def scope_of(method: str, path: str) -> api_keys.Scope:
    """What a request needs that is not open. What nobody thought of is the operator's."""
    method = "GET" if method == "HEAD" else method
    for known, pattern, scope in _PATTERNS:
        if known == method and pattern.match(path):
            return scope
    return api_keys.Scope.OPERATE


class Guard:
    """Lets a request pass, or says what is wrong with it."""

    def __init__(
        self, keys: KeyRing | None, *, behind_gateway: bool, limits: RateLimits | None = None
    ) -> None:
        """keys: None where no key is asked for. behind_gateway: whether others reach the service through a
        proxy alone, so that a request without its header comes from inside.
        """
        self._keys = keys
        self._behind_gateway = behind_gateway
        self._limits = limits or RateLimits()

    @classmethod
    def from_settings(cls, settings: Settings) -> Guard:
        """Raises `KeysError` where a key has to be asked for and there is none."""
        if not asks_for_keys(settings):
            return cls(None, behind_gateway=settings.behind_gateway)
        if settings.api_keys_file is None:
            where = settings.publish_address or settings.http_host
            raise KeysError(
                f"Published on {where}, the mesh asks for API keys, and {variable_of('api_keys_file')} names "
                "no file of them. `make env` makes one, `mesh keys create` adds to it."
            )
        return cls(KeyRing(settings.api_keys_file), behind_gateway=settings.behind_gateway)

    def check(self, scope: Scope) -> JSONResponse | ApiKey | None:
        """What to answer instead, or the key that came with the request; None where none was needed."""
        method = WEBSOCKET if scope["type"] == "websocket" else scope["method"]
        path = scope["path"]
        if path in OPEN:
            return None
        if self._keys is None:
            return _foreign_page(scope, method)
        if path in INSIDE and self._is_from_inside(scope):
            return None
        text = _key_in(scope)
        key = None if text is None else self._keys.find(text)
        if key is None:
            return _refusal(
                401,
                "missing_api_key" if text is None else "unknown_api_key",
                "Send an API key of this mesh: Authorization: Bearer KEY."
                if text is None
                else "This API key is not, or no longer, one of this mesh.",
                {"WWW-Authenticate": "Bearer"},
            )
        seconds = math.ceil(self._limits.wait_seconds(key))
        if seconds:
            return _refusal(
                429,
                "rate_limited",
                f"The key {key.name} may send {key.per_minute} requests a minute; try again in {seconds} s.",
                {"Retry-After": str(seconds)},
            )
        needed = scope_of(method, path)
        if needed not in key.scopes:
            return _refusal(
                403, "missing_scope", f"The key {key.name} lacks the scope {needed}, which this needs."
            )
        return key

    def describe(self, openapi: dict[str, Any]) -> None:
        """Adds to the OpenAPI of a service which routes ask for a key, and of which scope."""
        if self._keys is None:
            return
        openapi.setdefault("components", {})["securitySchemes"] = _SECURITY_SCHEMES
        for path, operations in openapi["paths"].items():
            for method, operation in operations.items():
                if path not in OPEN:
                    scope = scope_of(method.upper(), path)
                    ways: list[dict[str, list[str]]] = [{name: [scope]} for name in _SECURITY_SCHEMES]
                    operation["security"] = [{}, *ways] if path in INSIDE else ways

    def _is_from_inside(self, scope: Scope) -> bool:
        if any(name in _FORWARDED for name, _ in scope["headers"]):
            return False
        client = scope.get("client")
        return self._behind_gateway or (client is not None and is_loopback(client[0]))


class Gate:
    """Asks the guard that the application has, `app.state.guard`, about every request before it is read.

    Without one nothing is asked, as in tests; `visionmesh.service.run_service` always sets one.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        guard: Guard | None = None
        if scope["type"] in ("http", "websocket"):
            guard = getattr(scope["app"].state, "guard", None)
        found = None if guard is None else guard.check(scope)
        if isinstance(found, JSONResponse):
            await _refuse(found, scope, receive, send)
        elif scope["type"] == "websocket":
            await self._app(scope, receive, _choosing(scope, send))
        elif found is not None:
            with logs.bind(client=found.name):
                await self._app(scope, receive, send)
        else:
            await self._app(scope, receive, send)


def _choosing(scope: Scope, send: Send) -> Send:
    """Answers a browser that has shown its key as a subprotocol: it wants one of those that it offered."""

    async def choose(message: Message) -> None:
        if message["type"] == "websocket.accept" and SUBPROTOCOL in scope.get("subprotocols", ()):
            message = {**message, "subprotocol": SUBPROTOCOL}
        await send(message)

    return choose


async def _refuse(answer: JSONResponse, scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "http" or "websocket.http.response" in scope.get("extensions", {}):
        await answer(scope, receive, send)
        return
    await receive()
    await send({"type": "websocket.close", "code": _POLICY_VIOLATION, "reason": "refused"})


def _foreign_page(scope: Scope, method: str) -> JSONResponse | None:
    """Without keys, loopback alone protects; a browser on this machine could be used to get around it.

    A name that is not this machine's may have been pointed at it (DNS rebinding), so that a page under that
    name could read answers; and a page of another host may send what needs no consent, a form for example.
    """
    headers = dict(scope["headers"])
    host = _host(f"//{headers.get(b'host', b'').decode('latin-1')}")
    if host is not None and not _is_own_name(host):
        return _refusal(
            421,
            "host_not_allowed",
            f"Without API keys the mesh answers under names of this machine only, not {host}. To publish it "
            "under that name, ask for keys: MESH_REQUIRE_API_KEYS=true.",
        )
    origin = headers.get(b"origin", b"").decode("latin-1")
    foreign = origin and method not in _SAFE_METHODS and _host(origin) != host
    # Browsers say so of what a page loads as well, a picture for example, for which they send no origin.
    loaded = headers.get(b"sec-fetch-site") == b"cross-site" and headers.get(b"sec-fetch-mode") != b"navigate"
    if foreign or loaded:
        return _refusal(403, "foreign_origin", "A page of another site may not do this.")
    return None


def _host(url: str) -> str | None:
    try:
        return urlsplit(url).hostname
    except ValueError:
        return ""


def _is_own_name(host: str) -> bool:
    """Addresses, `localhost`, and names of machines and containers, which no public DNS has."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return host.endswith(".localhost") or (host != "" and "." not in host)
    return True


def _key_in(scope: Scope) -> str | None:
    headers: dict[bytes, str] = {name: value.decode("latin-1") for name, value in scope["headers"]}
    scheme, _, rest = headers.get(b"authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return rest.strip()
    if b"x-api-key" in headers:
        return headers[b"x-api-key"].strip()
    for offered in scope.get("subprotocols", ()):
        if offered.startswith(_KEY_SUBPROTOCOL):
            return str(offered.removeprefix(_KEY_SUBPROTOCOL))
    return None


def _refusal(status: int, code: str, reason: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    return JSONResponse({"error": reason, "code": code}, status_code=status, headers=headers)
