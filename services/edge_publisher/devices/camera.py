"""Cameras: one picture at a time, by whatever this machine has to take it with.

All of them wait while they take it, so they are used from a thread.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Final, Protocol

import cv2
import httpx
import numpy as np
from numpy.typing import NDArray

from edge_publisher.devices import recording
from edge_publisher.devices.link import LinkLost

Picture = NDArray[np.uint8]

# The seed's limit on one picture.
CAPTURE_SECONDS: Final = 5.0

# As they were called before Raspberry Pi OS 12.
_STILL_PROGRAMS: Final = ("rpicam-still", "libcamera-still")

_FIRST_VIDEO: Final = Path("/dev/video0")

_PICTURES: Final = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")

# A password may have an @ that should have been written %40.
_USER_INFO: Final = re.compile(r"(?<=://).*@")

# Of a picture over HTTP, whatever the server says its length is.
_MOST_BYTES: Final = 32 * 1024 * 1024

# A video device keeps a few frames from when it was last asked, which come at once; a new one takes as long
# as the camera does.
_STALE_FRAMES: Final = 8
_AT_ONCE_SECONDS: Final = 0.004


class Camera(Protocol):
    """Takes pictures, for one thread at a time."""

    @property
    def source(self) -> str:
        """What it is, for people."""

    def capture(self) -> Picture:
        """A picture that is made now, uint8 [height, width, 3], blue first. Raises `LinkLost`."""

    def close(self) -> None:
        """Lets go of the hardware; the next picture opens it again."""


class Picamera2Camera:
    """libcamera by picamera2, which Raspberry Pi OS brings along."""

    def __init__(self, width: int, height: int) -> None:
        self.source: Final = "picamera2"
        self._size = (width, height)
        self._camera: Any = None

    def capture(self) -> Picture:
        try:
            if self._camera is None:
                self._camera = self._open()
            # `RGB888` has blue first (the Picamera2 manual, 4.2.2.2).
            return np.asarray(self._camera.capture_array("main"))
        # libcamera's failures arrive as RuntimeError, a missing camera as IndexError.
        except Exception as error:
            self.close()
            raise LinkLost(f"picamera2: {error}") from error

    def close(self) -> None:
        if self._camera is not None:
            with contextlib.suppress(Exception):
                self._camera.close()
            self._camera = None

    def _open(self) -> Any:
        # Bound to the system's libcamera, it is in no index of packages, and unknown where there is none.
        camera = importlib.import_module("picamera2").Picamera2()
        camera.configure(camera.create_still_configuration(main={"size": self._size, "format": "RGB888"}))
        camera.start()
        return camera


class StillProgram:
    """`rpicam-still`, started for every picture."""

    def __init__(self, program: str, width: int, height: int, *, seconds: float = CAPTURE_SECONDS) -> None:
        self.source: Final = Path(program).name
        self._seconds = seconds
        self._command = [program, "--nopreview", "--timeout", "1", "--encoding", "jpg", "--output", "-"]
        self._command += ["--width", str(width), "--height", str(height)]

    def capture(self) -> Picture:
        try:
            done = subprocess.run(
                self._command, stdin=subprocess.DEVNULL, capture_output=True, timeout=self._seconds
            )
        except subprocess.TimeoutExpired as error:
            raise LinkLost(f"{self.source} took longer than {self._seconds:g} s and was stopped") from error
        except OSError as error:
            raise LinkLost(f"{self.source} can't be started: {error.strerror}") from error
        if done.returncode:
            said = done.stderr.decode(errors="replace").strip().splitlines() or ["nothing"]
            raise LinkLost(f"{self.source} failed with status {done.returncode} and said: {said[-1]}")
        return _decoded(done.stdout, self.source)

    def close(self) -> None:
        """Nothing is open between pictures."""


class VideoCamera:
    """A V4L2 device, a video file (over and over), or a stream over HTTP or RTSP, by OpenCV."""

    def __init__(self, address: str, width: int, height: int) -> None:
        self.source: Final = f"video {_shown(address)}"
        self._address = address
        self._size = (width, height)
        self._is_device = address.startswith("/dev/")
        self._is_file = not self._is_device and "://" not in address
        self._video: cv2.VideoCapture | None = None

    def capture(self) -> Picture:
        if self._video is None:
            self._video = self._open()
        picture = self._read(self._video)
        if picture is None and self._is_file:
            self.close()
            self._video = self._open()
            picture = self._read(self._video)
        if picture is None:
            self.close()
            raise LinkLost(f"{self.source} gives no picture")
        return picture

    def close(self) -> None:
        if self._video is not None:
            self._video.release()
            self._video = None

    def _open(self) -> cv2.VideoCapture:
        video = cv2.VideoCapture(self._address, cv2.CAP_V4L2 if self._is_device else cv2.CAP_FFMPEG)
        if not video.isOpened():
            raise LinkLost(f"{self.source} can't be opened")
        if self._is_device:
            video.set(cv2.CAP_PROP_FRAME_WIDTH, self._size[0])
            video.set(cv2.CAP_PROP_FRAME_HEIGHT, self._size[1])
            video.set(cv2.CAP_PROP_BUFFERSIZE, 1)
        return video

    def _read(self, video: cv2.VideoCapture) -> Picture | None:
        for _ in range(1 if self._is_file else _STALE_FRAMES):
            started = time.monotonic()
            if not video.grab():
                return None
            if time.monotonic() - started > _AT_ONCE_SECONDS:
                break
        found, picture = video.retrieve()
        return np.asarray(picture) if found else None


class PictureFile:
    """A picture in a file, read anew each time: another program may replace it."""

    def __init__(self, path: Path) -> None:
        self.source: Final = f"file {path}"
        self._path = path

    def capture(self) -> Picture:
        try:
            return _decoded(self._path.read_bytes(), self.source)
        except OSError as error:
            raise LinkLost(f"{self.source}: {error.strerror}") from error

    def close(self) -> None:
        """Nothing is open between pictures."""


class HttpCamera:
    """A picture at an address, as network cameras have it; what is no picture is opened as a video."""

    def __init__(self, url: str, width: int, height: int) -> None:
        self.source: Final = f"http {_shown(url)}"
        self._url = url
        self._video = VideoCamera(url, width, height)
        self._is_video = False

    def capture(self) -> Picture:
        if not self._is_video:
            picture = self._fetch()
            if picture is not None:
                return picture
            self._is_video = True
        try:
            return self._video.capture()
        except LinkLost:
            # A camera that was just starting showed a page, and may have pictures by now.
            self._is_video = False
            raise

    def close(self) -> None:
        self._video.close()

    def _fetch(self) -> Picture | None:
        data = bytearray()
        try:
            with httpx.stream("GET", self._url, timeout=CAPTURE_SECONDS, follow_redirects=True) as response:
                response.raise_for_status()
                if not response.headers.get("content-type", "").startswith("image/"):
                    return None
                for piece in response.iter_bytes():
                    data += piece
                    if len(data) > _MOST_BYTES:
                        raise LinkLost(f"{self.source} sends more than {_MOST_BYTES} bytes for a picture")
        except httpx.HTTPStatusError as error:
            raise LinkLost(f"{self.source} answers {error.response.status_code}") from error
        except httpx.HTTPError as error:
            raise LinkLost(f"{self.source}: {error or type(error).__name__}") from error
        return _decoded(bytes(data), self.source)


class RecordingCamera:
    """A `Camera` that writes down the pictures of another one, as JPEG."""

    def __init__(self, camera: Camera, file: IO[str]) -> None:
        self.source: Final = camera.source
        self._camera = camera
        self._file = file
        self._first: float | None = None
        recording.write_header(file, "imx477", camera.source)

    def capture(self) -> Picture:
        picture = self._camera.capture()
        now = time.monotonic()
        if self._first is None:
            self._first = now
        _, jpeg = cv2.imencode(".jpg", picture)
        recording.write_piece(self._file, now - self._first, jpeg.tobytes())
        return picture

    def close(self) -> None:
        self._camera.close()


class RecordedCamera:
    """A `Camera` that gives the pictures of a recording, one after the other, over and over."""

    def __init__(self, path: Path) -> None:
        self.source: Final = f"recording {path.name}"
        self._path = path
        self._pictures: Iterator[tuple[float, bytes]] = iter(())

    def capture(self) -> Picture:
        try:
            found = next(self._pictures, None)
            if found is None:
                self._pictures = recording.read(self._path, "imx477")
                found = next(self._pictures, None)
        except OSError as error:
            raise LinkLost(f"{self.source}: {error.strerror}") from error
        if found is None:
            raise LinkLost(f"{self.source} has no pictures")
        return _decoded(found[1], self.source)

    def close(self) -> None:
        self._pictures = iter(())


def open_camera(source: str, width: int, height: int) -> Camera:
    """The camera of a setting, see `EDGE_CAMERA_SOURCE`. It is opened at its first picture."""
    if source == "auto":
        source = _found()
    if source == "picamera2":
        return Picamera2Camera(width, height)
    if source == "rpicam-still":
        return StillProgram(_still_program() or source, width, height)
    if source.startswith(("http://", "https://")):
        return HttpCamera(source, width, height)
    if Path(source).suffix.lower() in _PICTURES and "://" not in source:
        return PictureFile(Path(source))
    return VideoCamera(source, width, height)


def _shown(address: str) -> str:
    """Without user, password and query: what a camera hangs on is told to whoever asks, and recorded."""
    return _USER_INFO.sub("", address.partition("?")[0])


def _found() -> str:
    if importlib.util.find_spec("picamera2") is not None:
        return "picamera2"
    return "rpicam-still" if _still_program() or not _FIRST_VIDEO.exists() else str(_FIRST_VIDEO)


def _still_program() -> str | None:
    return next(filter(None, map(shutil.which, _STILL_PROGRAMS)), None)


def _decoded(data: bytes, source: str) -> Picture:
    try:
        picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error:
        picture = None
    if picture is None:
        raise LinkLost(f"{source} gave {len(data)} bytes that are no picture")
    return np.asarray(picture)
