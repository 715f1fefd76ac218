"""The page of `/docs`: whatever it loads, the service itself has, since its machine may have no internet."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path
from typing import Final
from urllib.parse import urljoin

import pytest
from starlette.testclient import TestClient

from answers import assert_error
from applications import SERVICES
from visionmesh.access import Guard
from visionmesh.api_keys import KeyRing, Scope, client_headers, new_key, write_keys

HOST: Final = "http://localhost:8001"
JAVASCRIPT: Final = frozenset(("text/javascript", "application/javascript"))

every_service = pytest.mark.parametrize("name", SERVICES)


class Loaded(HTMLParser):
    """What a page makes a browser load: addresses as they are in it, by their tags."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, str]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [(tag, value) for name, value in attrs if name in ("src", "href") and value is not None]


def loaded_by(page: str) -> dict[str, str]:
    """The tag of every address that the page at /docs loads, as the browser asks for it."""
    return {urljoin(f"{HOST}/docs", address): tag for tag, address in Loaded(page).found}


@every_service
def test_what_the_page_loads_is_here(name: str) -> None:
    client = TestClient(SERVICES[name](), base_url=HOST)
    page = client.get("/docs")
    assert page.headers["content-type"].startswith("text/html")
    loaded = loaded_by(page.text)
    assert sorted(loaded.values()) == ["link", "link", "script"]
    kinds = set()
    for address in loaded:
        assert address.startswith(f"{HOST}/"), "it is not on this machine"
        answer = client.get(address, headers={"Sec-Fetch-Site": "same-origin", "Sec-Fetch-Mode": "no-cors"})
        assert answer.status_code == 200
        kinds.add(answer.headers["content-type"].partition(";")[0])
        assert len(answer.content) == int(answer.headers["content-length"]) > 1000
    assert {"text/css", "image/png"} < kinds
    assert kinds & JAVASCRIPT
    assert "://" not in page.text, "an address of somewhere else"


def test_the_page_shows_the_openapi_of_its_own_service() -> None:
    client = TestClient(SERVICES["sensor-sink"](), base_url=HOST)
    page = client.get("/docs").text
    assert "url: 'openapi.json'" in page
    assert "<title>sensor-sink - Swagger UI</title>" in page
    assert client.get(urljoin(f"{HOST}/docs", "openapi.json")).json()["info"]["title"] == "sensor-sink"


@every_service
def test_with_keys_the_page_and_what_it_loads_need_read(name: str, tmp_path: Path) -> None:
    reader, reader_key = new_key("reader", [Scope.READ])
    camera, camera_key = new_key("camera", [Scope.UPLOAD])
    write_keys(tmp_path / "api-keys.json", [reader_key, camera_key])
    app = SERVICES[name]()
    app.state.guard = Guard(KeyRing(tmp_path / "api-keys.json"), behind_gateway=True)
    client = TestClient(app, base_url=HOST)
    page = client.get("/docs", headers=client_headers(reader))
    for address in (f"{HOST}/docs", f"{HOST}/openapi.json", *loaded_by(page.text)):
        assert client.get(address, headers=client_headers(reader)).status_code == 200
        assert_error(client.get(address), 401, "missing_api_key")
        assert_error(client.get(address, headers=client_headers(camera)), 403, "missing_scope")


def test_a_file_that_a_browser_has_is_not_sent_again() -> None:
    client = TestClient(SERVICES["sensor-sink"](), base_url=HOST)
    first = client.get("/docs/swagger-ui-bundle.js")
    again = client.get("/docs/swagger-ui-bundle.js", headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize("path", ["/docs/redoc.standalone.js", "/docs/oauth2-redirect", "/redoc"])
def test_nothing_else_of_it_is_there(path: str) -> None:
    assert_error(TestClient(SERVICES["sensor-sink"](), base_url=HOST).get(path), 404, "not_found")
