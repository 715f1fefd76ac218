"""Documents for the queue: handed to ingest-api, which stores and announces them as it does all others."""

from __future__ import annotations

import json
from typing import Any, Final, Protocol

import urllib3
from urllib3.exceptions import HTTPError

from ocr_worker.step import TASK
from visionmesh.api_keys import client_headers
from visionmesh.errors import Rejected, Unavailable
from visionmesh.observability import tracing

SERVER: Final = "ingest_api"

_TIMEOUT: Final = urllib3.Timeout(connect=2.0, read=60.0)
_CONNECTIONS: Final = 8

_KEY_REFUSED: Final = frozenset((401, 403, 429))


class Submit(Protocol):
    """Puts a document into the queue."""

    def __call__(self, data: bytes, trace: tracing.Trace | None) -> str:
        """Returns its image id once it is stored.

        Raises `Rejected` as the upload does, and `Unavailable` when nothing could be stored.
        """


class IngestApi:
    """A `Submit` by `POST /upload`. For many threads at once."""

    def __init__(self, url: str, key: str | None = None) -> None:
        """key: an API key with the scope `upload`, where the mesh asks for one."""
        self._upload = f"{url.rstrip('/')}/upload"
        self._headers = client_headers(key)
        self._pool = urllib3.PoolManager(maxsize=_CONNECTIONS, timeout=_TIMEOUT, retries=False)

    def __call__(self, data: bytes, trace: tracing.Trace | None) -> str:
        try:
            response = self._pool.request(
                "POST",
                self._upload,
                fields={"tasks": TASK, "file": ("document", data)},
                headers={**self._headers, **({} if trace is None else {tracing.HEADER: str(trace)})},
            )
        except HTTPError as error:
            raise Unavailable(SERVER, str(error) or type(error).__name__) from error
        answer = _object(response.data)
        if response.status < 300 and isinstance(answer.get("image_id"), str):
            return str(answer["image_id"])
        # The document is not at fault when this service's own key is refused, or is used too often.
        if 400 <= response.status < 500 and response.status not in _KEY_REFUSED and "code" in answer:
            raise Rejected(str(answer["code"]), str(answer.get("error", "")))
        raise Unavailable(SERVER, f"it answers {response.status}: {response.data[:200]!r}")


def _object(body: bytes) -> dict[str, Any]:
    try:
        answer = json.loads(body)
    except ValueError:
        return {}
    return answer if isinstance(answer, dict) else {}
