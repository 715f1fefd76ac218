"""An MLflow server: its model registry, and the files behind it.

Speaks the REST API of MLflow 3 (https://mlflow.org/docs/latest/rest-api.html) through a plain HTTP client:
the library of MLflow would bring a hundred packages into every container for five requests.

A version of a registered model is a folder with `model.toml`, which is one table of `models.toml`, and the
file that the table names. The server hands it out itself (`mlflow server --serve-artifacts`, its default), so
that services need no key to the store behind it.
"""

from __future__ import annotations

import json
import re
import time
import tomllib
from base64 import b64encode
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, Self
from urllib.parse import quote, unquote, urlencode

import urllib3
from urllib3.exceptions import HTTPError, LocationParseError
from urllib3.util import parse_url

from visionmesh.errors import Unavailable
from visionmesh.model_store import Model, ModelError, load_model
from visionmesh.settings import Settings

SCHEME: Final = "models:/"
TABLE: Final = "model.toml"

_ADDRESS = re.compile(r"^models:/(?P<name>[^/:@]+)(?:@(?P<alias>[^/:@]+)|/(?P<version>[1-9][0-9]*))$")

# Artifacts that the tracking server hands out itself; with or without its own host in between.
_PROXIED = re.compile(r"^mlflow-artifacts:(?://[^/]*)?/(?P<path>.+)$")

_CONNECT_TIMEOUT_SECONDS: Final = 2.0
# Between two reads of a socket.
_READ_TIMEOUT_SECONDS: Final = 10.0
# For the body of an answer, however it comes: JSON or a table, and a model, of which 512 MiB at 2 MB/s.
_ANSWER_SECONDS: Final = 30.0
_FILE_SECONDS: Final = 270.0
_CHUNK_BYTES: Final = 1024 * 1024

_MAX_JSON_BYTES: Final = 16 * 1024 * 1024
_MAX_TABLE_BYTES: Final = 64 * 1024
# A ResNet50 in fp32 has 90 MiB; more than this does not go into the memory of a container anyway.
MAX_MODEL_BYTES: Final = 512 * 1024 * 1024

_PAGE: Final = 100

_NOT_UNDERSTOOD: Final = "answers in no way that is understood; is it an MLflow server?"


@dataclass(frozen=True, slots=True)
class Address:
    """`models:/name@alias`, whose version may change, or `models:/name/version`."""

    name: str
    alias: str | None
    version: str | None

    @classmethod
    def parse(cls, text: str) -> Address:
        """Raises `ModelError` for what is neither."""
        found = _ADDRESS.match(text)
        if found is None:
            raise ModelError(
                f"{text!r} is no address of a model in MLflow; write models:/name@alias or models:/name/3."
            )
        return cls(found["name"], found["alias"], found["version"])

    def __str__(self) -> str:
        return f"{SCHEME}{self.name}@{self.alias}" if self.alias else f"{SCHEME}{self.name}/{self.version}"


@dataclass(frozen=True, slots=True)
class Version:
    """A version of a registered model. aliases: those that name it now."""

    name: str
    version: str
    aliases: tuple[str, ...]
    created_at: datetime
    run_id: str | None


class Mlflow:
    """The server that `MLFLOW_TRACKING_URI` names.

    Everything raises `Unavailable("model_store", …)` when the server is away, refuses, or has no such model:
    it may have it later.
    """

    def __init__(self, tracking_uri: str, username: str | None = None, password: str | None = None) -> None:
        """Raises `ModelError` for an address that is not one of HTTP."""
        try:
            url = parse_url(tracking_uri)
        except LocationParseError:
            url = None
        if url is None or url.scheme not in ("http", "https") or not url.host:
            raise ModelError(
                "MLFLOW_TRACKING_URI has to be the http:// or https:// address of an MLflow server."
            )
        self.url = url._replace(auth=None, query=None, fragment=None).url.rstrip("/")
        auth = f"{username or ''}:{password or ''}" if username or password else unquote(url.auth or "")
        # Servers close a connection that was not used for seconds, and the next look comes later than that.
        self._headers = {"connection": "close"} | (
            {"authorization": f"Basic {b64encode(auth.encode()).decode()}"} if auth else {}
        )
        self._http = urllib3.PoolManager(
            timeout=urllib3.Timeout(connect=_CONNECT_TIMEOUT_SECONDS, read=_READ_TIMEOUT_SECONDS),
            retries=False,
        )

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        """Raises `ModelError` when the settings name no server."""
        if settings.mlflow_tracking_uri is None:
            raise ModelError("Set MLFLOW_TRACKING_URI to the address of the MLflow server.")
        password = settings.mlflow_tracking_password
        return cls(
            settings.mlflow_tracking_uri,
            settings.mlflow_tracking_username,
            password.get_secret_value() if password else None,
        )

    def resolve(self, address: Address) -> str:
        """The version that the address names now."""
        if address.alias is None:
            assert address.version is not None  # one of the two is given
            return address.version
        with self._understood():
            found = self._ask("registered-models/alias", name=address.name, alias=address.alias)
            return str(found["model_version"]["version"])

    def load(self, name: str, version: str) -> Model:
        """Downloads a version, verifies and tries it; the model is named by its registered name and version.

        Raises `ModelError` for a version that is no model of the mesh or does not keep what it promises.
        """
        source = _source(name, version)
        folder = self._folder(name, version)
        table = self._table(folder, source)
        file = table.get("file")
        if not isinstance(file, str) or not file or "/" in file:
            raise ModelError(f"{TABLE} of {source} names no file of its own folder.")
        content = self._artifact(f"{folder}/{file}", MAX_MODEL_BYTES, source, seconds=_FILE_SECONDS)
        return load_model(name, table, content, source=f"{file} of {source}", version=version)

    def describe(self, name: str, version: str) -> Mapping[str, Any]:
        """The table of a version. Raises `ModelError` for a version that has none."""
        return self._table(self._folder(name, version), _source(name, version))

    def models(self) -> dict[str, dict[str, str]]:
        """The registered models, each with its aliases and the versions they name."""
        with self._understood():
            return {
                model["name"]: {each["alias"]: str(each["version"]) for each in model.get("aliases", ())}
                for model in self._pages("registered-models/search", "registered_models")
            }

    def versions(self, name: str) -> list[Version]:
        """The versions of one model, newest first."""
        with self._understood():
            aliases = self._ask("registered-models/get", name=name)["registered_model"].get("aliases", ())
            found = [
                Version(
                    name=version["name"],
                    version=str(version["version"]),
                    aliases=tuple(
                        each["alias"] for each in aliases if str(each["version"]) == str(version["version"])
                    ),
                    created_at=datetime.fromtimestamp(int(version["creation_timestamp"]) / 1000, UTC),
                    run_id=version.get("run_id") or None,
                )
                for version in self._pages("model-versions/search", "model_versions", filter=f"name='{name}'")
            ]
            return sorted(found, key=lambda version: int(version.version), reverse=True)

    def promote(self, name: str, version: str, alias: str) -> None:
        """Makes `alias` name this version from now on."""
        self._json(
            "POST",
            "api/2.0/mlflow/registered-models/alias",
            body={"name": name, "alias": alias, "version": version},
        )

    # Files

    def _folder(self, name: str, version: str) -> str:
        """The path of a version's folder among the artifacts of the server."""
        with self._understood():
            uri = self._ask("model-versions/get-download-uri", name=name, version=version)["artifact_uri"]
            proxied = _PROXIED.match(uri)
        if proxied is None:
            raise ModelError(
                f"MLflow does not hand out version {version} of {name}, at {uri.partition(':')[0]}:; "
                "start it with --serve-artifacts and register the version again."
            )
        return proxied["path"].rstrip("/")

    def _table(self, folder: str, source: str) -> dict[str, Any]:
        try:
            content = self._artifact(f"{folder}/{TABLE}", _MAX_TABLE_BYTES, source, seconds=_ANSWER_SECONDS)
            return tomllib.loads(content.decode())
        except ValueError as error:
            raise ModelError(f"{TABLE} of {source} is not valid TOML: {error}") from error

    def _artifact(self, path: str, max_bytes: int, source: str, *, seconds: float) -> bytes:
        asked = f"api/2.0/mlflow-artifacts/artifacts/{quote(path)}"
        try:
            return self._request("GET", asked, max_bytes, seconds=seconds)
        except _NotThereError as error:
            name = path.rpartition("/")[2]
            raise ModelError(
                f"The folder of {source} has no {name}, which a model of the mesh has."
            ) from error
        except _TooLargeError as error:
            raise ModelError(
                f"{path.rpartition('/')[2]} of {source} has more than {max_bytes} bytes."
            ) from error

    # HTTP

    def _pages(self, path: str, key: str, **query: str) -> Iterator[dict[str, Any]]:
        token = ""
        while True:
            page = self._ask(
                path, **query, max_results=str(_PAGE), **({"page_token": token} if token else {})
            )
            yield from page.get(key, ())
            token = page.get("next_page_token", "")
            if not token:
                return

    def _ask(self, path: str, **query: str) -> dict[str, Any]:
        suffix = f"?{urlencode(query)}" if query else ""
        return self._json("GET", f"api/2.0/mlflow/{path}{suffix}")

    def _json(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        content = self._request(method, path, _MAX_JSON_BYTES, body, seconds=_ANSWER_SECONDS)
        try:
            found = json.loads(content)
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise self._unavailable(_NOT_UNDERSTOOD)
        return found

    def _request(
        self,
        method: str,
        path: str,
        max_bytes: int,
        body: Mapping[str, Any] | None = None,
        *,
        seconds: float,
    ) -> bytes:
        try:
            response = self._http.request(
                method, f"{self.url}/{path}", headers=self._headers, json=body, preload_content=False,
                redirect=False,
            )  # fmt: skip
            with response:
                content = self._read(response, max_bytes + 1, seconds)
        except HTTPError as error:
            raise self._unavailable(f"does not answer ({type(error).__name__})") from error
        if response.status == 404:
            raise _NotThereError(
                "model_store", f"MLflow on {self.url} has no such thing: {_message(content)}"
            )
        if response.status != 200:
            raise self._unavailable(f"answers {response.status}: {_message(content)}")
        if len(content) > max_bytes:
            raise _TooLargeError("model_store", f"MLflow on {self.url} answers more than {max_bytes} bytes")
        return content

    def _read(self, response: urllib3.BaseHTTPResponse, most: int, seconds: float) -> bytes:
        """At most so many bytes. A server that sends one now and then would hold its reader for ever: each
        comes before the timeout of the socket.
        """
        deadline = time.monotonic() + seconds
        content = bytearray()
        while len(content) < most and (chunk := response.read1(min(_CHUNK_BYTES, most - len(content)))):
            content += chunk
            if time.monotonic() > deadline:
                raise self._unavailable(f"takes more than {seconds:g} s for an answer")
        return bytes(content)

    @contextmanager
    def _understood(self) -> Iterator[None]:
        """Around what is read from an answer: JSON, but not what MLflow would say."""
        try:
            yield
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise self._unavailable(_NOT_UNDERSTOOD) from error

    def _unavailable(self, what: str) -> Unavailable:
        return Unavailable("model_store", f"MLflow on {self.url} {what}")


class _NotThereError(Unavailable):
    """The server is there, and what was asked for is not, or not yet."""


class _TooLargeError(Unavailable):
    """The answer is larger than anything that is expected."""


def _source(name: str, version: str) -> str:
    return f"version {version} of {name} in MLflow"


def _message(content: bytes) -> str:
    """What an error of MLflow says, or the beginning of whatever else came."""
    text = content[:300].decode(errors="replace")
    try:
        found = json.loads(content)
    except ValueError:
        return text
    return str(found.get("message", text)) if isinstance(found, dict) else text
