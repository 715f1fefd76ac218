"""Somebody who uploads while a mesh is operated on; what is accepted has to be answered later."""

from __future__ import annotations

import threading
from functools import partial
from typing import Final
from uuid import uuid4

import httpx

import waiting
from visionmesh.settings import ROOT

# Between two uploads: the pictures have all to be looked at afterwards.
_PAUSE_SECONDS: Final = 0.2
_DEADLINE_SECONDS: Final = 600.0


class SteadyUploads:
    """Uploads a cat under ids of its own, and tries again what may be tried again.

    accepted: ids. again: how often it tried again. refused: what may not be answered.
    """

    def __init__(self, base_url: str) -> None:
        self._base_url = base_url
        self._picture = (ROOT / "samples" / "cat.jpg").read_bytes()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._upload)
        self.accepted: list[str] = []
        self.again = 0
        self.refused: list[str] = []

    def __enter__(self) -> SteadyUploads:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _upload(self) -> None:
        with httpx.Client(base_url=self._base_url, timeout=30) as http:
            while not self._ended.is_set():
                image_id = f"steady-{uuid4()}"
                waiting.eventually(
                    partial(self._try, http, image_id), f"upload of {image_id}", seconds=_DEADLINE_SECONDS
                )
                self.accepted.append(image_id)
                self._ended.wait(_PAUSE_SECONDS)

    def _try(self, http: httpx.Client, image_id: str) -> bool:
        try:
            # Without text, for which all these pictures would have to be read before the next test's.
            asked = {"image_id": image_id, "tasks": "classify,qr"}
            answer = http.post("/upload", params=asked, files={"file": self._picture})
        # The connection could not be made, or broke before there was an answer. The picture has an id of the
        # client's own, so that sending it again is no second picture.
        except (httpx.ConnectError, httpx.ReadError, httpx.WriteError, httpx.RemoteProtocolError):
            self.again += 1
            return False
        if answer.status_code == 503:
            self.again += 1
            return False
        if answer.status_code not in (200, 202):
            self.refused.append(f"{answer.status_code} {answer.text}")
        return True
