"""API keys: who may do what, and how often.

A key is 256 random bits, shown once; what is kept is its SHA-256, in a JSON file that `mesh keys` writes and
every replica reads again when it changes. Nothing slower than SHA-256 is needed: bits that nobody chose can't
be guessed from a digest.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Final

import msgspec
import structlog

log = structlog.get_logger()

# So that a key that leaked into a log or a repository can be searched for.
PREFIX: Final = "mesh_"
_KEY_BYTES: Final = 32

# What is longer is none, and is not hashed.
_MAX_KEY_CHARACTERS: Final = 200

# 100 pictures a second, which the mesh is made for.
PER_MINUTE: Final = 6000

# A client may be ahead of its rate by so many seconds.
_BURST_SECONDS: Final = 10.0

# A key that was revoked is good for this long still.
_LOOK_SECONDS: Final = 1.0

# While the file is unreadable, which is how long nobody's key can be revoked, the log says so this often.
_COMPLAIN_SECONDS: Final = 60.0

_FILE_MODE: Final = 0o644


class Scope(StrEnum):
    """What a key is good for; none of them contains another."""

    UPLOAD = "upload"
    READ = "read"
    PREDICT = "predict"
    OPERATE = "operate"


class ApiKey(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One line of the file. sha256: hex digest of the key. per_minute: requests to one replica."""

    name: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    sha256: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}$")]
    scopes: Annotated[tuple[Scope, ...], msgspec.Meta(min_length=1)]
    per_minute: Annotated[int, msgspec.Meta(ge=1)] = PER_MINUTE
    created_at: datetime | None = None


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    keys: tuple[ApiKey, ...]


class KeysError(Exception):
    """The file of the keys can't be used; the text says why and what to do."""


def new_key(name: str, scopes: Sequence[Scope], per_minute: int = PER_MINUTE) -> tuple[str, ApiKey]:
    """A key in clear, and what is kept of it. Raises `KeysError` for a name that is none."""
    text = PREFIX + secrets.token_urlsafe(_KEY_BYTES)
    made = ApiKey(name, _digest(text), tuple(dict.fromkeys(scopes)), per_minute, datetime.now(UTC))
    try:
        return text, msgspec.convert(msgspec.to_builtins(made), ApiKey)
    except msgspec.ValidationError as error:
        raise KeysError(f"The key can't be made: {error}.") from error


def read_keys(path: Path) -> tuple[ApiKey, ...]:
    """The keys of a file. Raises `KeysError`."""
    try:
        keys = msgspec.json.decode(path.read_bytes(), type=_File).keys
    except OSError as error:
        raise KeysError(f"{path} can't be read ({error.strerror}); `mesh keys create` makes it.") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise KeysError(f"{path} is not a file of keys: {error}.") from error
    if len({key.name for key in keys}) < len(keys):
        raise KeysError(f"{path} has two keys of one name.")
    return keys


def write_keys(path: Path, keys: Sequence[ApiKey]) -> None:
    """Replaces the file at once: a reader sees the old keys or the new ones. Raises `KeysError`."""
    # For people as well, who look who is let in.
    text = json.dumps({"keys": [msgspec.to_builtins(key) for key in keys]}, indent=1)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        draft.write_text(f"{text}\n")
        # Services run as other users; digests of random keys are no secrets.
        draft.chmod(_FILE_MODE)
        draft.replace(path)
    except OSError as error:
        raise KeysError(f"{path} can't be written: {error.strerror}.") from error


class KeyRing:
    """The keys of a file, as it is now. For one thread.

    A file that becomes unreadable, or goes away, changes nothing: a slip of the hand locks nobody out. It
    revokes nothing either, which the log tells every minute.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        """Raises `KeysError`, also for a file without any key."""
        self._path = path
        self._clock = clock
        self._stamp = _stamp(path)
        self._keys = read_keys(path)
        if not self._keys:
            raise KeysError(f"{path} has no key; `mesh keys create NAME` makes one.")
        self._looked_at = clock()
        # Since when the log has said nothing of a file that can't be read; None while it can be.
        self._complained_at: float | None = None

    def find(self, text: str) -> ApiKey | None:
        """The key that `text` is, or None."""
        self._look()
        if not text.isascii() or len(text) > _MAX_KEY_CHARACTERS:
            return None
        digest = _digest(text)
        found = None
        # All of them, however early one fits: how long it takes tells nothing.
        for key in self._keys:
            if hmac.compare_digest(key.sha256, digest):
                found = key
        return found

    def _look(self) -> None:
        now = self._clock()
        if now - self._looked_at < _LOOK_SECONDS:
            return
        self._looked_at = now
        stamp = _stamp(self._path)
        is_due = self._complained_at is not None and now - self._complained_at >= _COMPLAIN_SECONDS
        if stamp == self._stamp and not is_due:
            return
        self._stamp = stamp
        try:
            self._keys = read_keys(self._path)
        except KeysError as error:
            log.error("api_keys_unreadable", reason=str(error))
            self._complained_at = now
            return
        self._complained_at = None
        log.info("api_keys_read", names=[key.name for key in self._keys])


class RateLimits:
    """A token bucket for each key, in this process. For one thread."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        # By name: how many requests are left, as of when.
        self._buckets: dict[str, tuple[float, float]] = {}

    def wait_seconds(self, key: ApiKey) -> float:
        """0 when a request may pass, which counts it; else how long until one may."""
        rate = key.per_minute / 60
        most = max(1.0, rate * _BURST_SECONDS)
        now = self._clock()
        left, then = self._buckets.get(key.name, (most, now))
        left = min(most, left + (now - then) * rate)
        passes = left >= 1
        self._buckets[key.name] = (left - 1 if passes else left, now)
        return 0.0 if passes else (1 - left) / rate


def client_headers(key: str | None) -> Mapping[str, str]:
    """How a client shows its key; nothing without one."""
    return {} if key is None else {"Authorization": f"Bearer {key}"}


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _stamp(path: Path) -> tuple[int, int, int] | None:
    """What changes when the file does."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
