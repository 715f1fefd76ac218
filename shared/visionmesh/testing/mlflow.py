"""An MLflow server in memory: as much of its REST API as the mesh and its tests speak.

Answers and errors are those of MLflow 3.17.
"""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final
from urllib.parse import parse_qsl, unquote, urlsplit

_API: Final = "/api/2.0/mlflow/"
_ARTIFACTS: Final = "/api/2.0/mlflow-artifacts/artifacts/"

# Of a server that trickles: any file takes it seconds.
_PAUSE_SECONDS: Final = 0.02


class _Refused(Exception):  # noqa: N818 - an answer
    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(status, code, message)
        self.status = status
        self.body = {"error_code": code, "message": message}


class MemoryMlflow:
    """The server's state, and the server itself between `start` and `stop`, on one port throughout.

    authorization: what the header of that name has to say, None where nobody is asked.
    truncates: whether artifacts break off halfway. trickles: whether they come byte by byte, with pauses.
    """

    def __init__(self) -> None:
        self.authorization: str | None = None
        self.truncates = False
        self.trickles = False
        self.downloads: list[str] = []
        self._runs: set[str] = set()
        self._artifacts: dict[str, bytes] = {}
        self._versions: dict[str, list[dict[str, Any]]] = {}
        self._aliases: dict[str, dict[str, str]] = {}
        self._server: ThreadingHTTPServer | None = None
        self._port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    @contextmanager
    def running(self) -> Iterator[MemoryMlflow]:
        self.start()
        try:
            yield self
        finally:
            self.stop()

    def start(self) -> None:
        """Unless it runs already."""
        if self._server is not None:
            return
        self._server = ThreadingHTTPServer(("127.0.0.1", self._port), _handler(self))
        self._port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, args=(0.01,), name="mlflow", daemon=True).start()

    def stop(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def artifact(self, method: str, path: str, body: bytes) -> bytes:
        if method == "PUT":
            self._artifacts[path] = body
            return b""
        self.downloads.append(path)
        try:
            return self._artifacts[path]
        except KeyError:
            raise _Refused(404, "RESOURCE_DOES_NOT_EXIST", f"No such artifact: '{path}'") from None

    def ask(self, method: str, path: str, asked: dict[str, Any]) -> dict[str, Any]:
        """The answer to one request of the API proper."""
        match method, path:
            case "POST", "runs/create":
                run = uuid.uuid4().hex
                self._runs.add(run)
                uri = f"mlflow-artifacts:/0/{run}/artifacts"
                return {"run": {"info": {"run_id": run, "artifact_uri": uri}}}
            case "POST", "registered-models/create":
                if asked["name"] in self._versions:
                    raise _Refused(
                        400, "RESOURCE_ALREADY_EXISTS", f"Registered Model (name={asked['name']}) exists."
                    )
                self._versions[asked["name"]] = []
                self._aliases[asked["name"]] = {}
                return {"registered_model": self._model(asked["name"])}
            case "POST", "model-versions/create":
                return {"model_version": self._add_version(asked["name"], asked["source"], asked["run_id"])}
            case "POST", "registered-models/alias":
                self._version(asked["name"], asked["version"])
                self._aliases[asked["name"]][asked["alias"]] = asked["version"]
                return {}
            case "GET", "registered-models/alias":
                self._model(asked["name"])
                version = self._aliases[asked["name"]].get(asked["alias"])
                if version is None:
                    raise _Refused(
                        400, "INVALID_PARAMETER_VALUE", f"Registered model alias {asked['alias']} not found."
                    )
                return {"model_version": self._version(asked["name"], version)}
            case "GET", "registered-models/get":
                return {"registered_model": self._model(asked["name"])}
            case "GET", "registered-models/search":
                return {"registered_models": [self._model(name) for name in sorted(self._versions)]}
            case "GET", "model-versions/get-download-uri":
                return {"artifact_uri": self._version(asked["name"], asked["version"])["source"]}
            case "GET", "model-versions/search":
                return self._page(asked)
        raise _Refused(404, "ENDPOINT_NOT_FOUND", f"Not Found: {method} {path}")

    def _add_version(self, name: str, source: str, run_id: str) -> dict[str, Any]:
        if run_id not in self._runs:
            raise _Refused(400, "INVALID_PARAMETER_VALUE", f"Invalid model version source: '{source}'.")
        self._model(name)
        version = {
            "name": name,
            "version": str(len(self._versions[name]) + 1),
            "source": source,
            "run_id": run_id,
            "creation_timestamp": int(time.time() * 1000),
        }
        self._versions[name].append(version)
        return version

    def _model(self, name: str) -> dict[str, Any]:
        if name not in self._versions:
            raise _Refused(404, "RESOURCE_DOES_NOT_EXIST", f"Registered Model with name={name} not found")
        aliases = [{"alias": alias, "version": version} for alias, version in self._aliases[name].items()]
        # What is empty is left out, as protobuf's JSON does.
        return {"name": name} | ({"aliases": aliases} if aliases else {})

    def _version(self, name: str, version: str) -> dict[str, Any]:
        for each in self._versions.get(name, ()):
            if each["version"] == version:
                return each
        raise _Refused(
            404, "RESOURCE_DOES_NOT_EXIST", f"Model Version (name={name}, version={version}) not found"
        )

    def _page(self, asked: dict[str, Any]) -> dict[str, Any]:
        name = asked["filter"].removeprefix("name='").removesuffix("'")
        found = self._versions.get(name, [])
        first = int(asked.get("page_token", 0))
        end = first + int(asked["max_results"])
        more = {"next_page_token": str(end)} if end < len(found) else {}
        return {"model_versions": found[first:end], **more} if found else {}


def _handler(mlflow: MemoryMlflow) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._serve()

        def do_POST(self) -> None:
            self._serve()

        def do_PUT(self) -> None:
            self._serve()

        def log_message(self, *_: Any) -> None:
            """Says nothing."""

        def _serve(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            url = urlsplit(self.path)
            try:
                if mlflow.authorization not in (None, self.headers.get("authorization")):
                    raise _Refused(401, "UNAUTHENTICATED", "You are not authenticated.")
                if url.path.startswith(_ARTIFACTS):
                    path = unquote(url.path.removeprefix(_ARTIFACTS))
                    self._hand_out(mlflow.artifact(self.command, path, body))
                    return
                asked = json.loads(body) if body else dict(parse_qsl(url.query))
                found = mlflow.ask(self.command, url.path.removeprefix(_API), asked)
                self._answer(200, json.dumps(found).encode())
            except _Refused as refused:
                self._answer(refused.status, json.dumps(refused.body).encode())

        def _hand_out(self, content: bytes) -> None:
            self._begin(200, content)
            sent = content[: len(content) // 2] if mlflow.truncates else content
            at_once = 1 if mlflow.trickles else len(sent) + 1
            # Whoever has had enough of it goes.
            with suppress(ConnectionError):
                for start in range(0, len(sent), at_once):
                    self.wfile.write(sent[start : start + at_once])
                    time.sleep(_PAUSE_SECONDS if mlflow.trickles else 0)

        def _answer(self, status: int, content: bytes) -> None:
            self._begin(status, content)
            self.wfile.write(content)

        def _begin(self, status: int, content: bytes) -> None:
            self.send_response(status)
            self.send_header("content-length", str(len(content)))
            self.end_headers()

    return Handler
