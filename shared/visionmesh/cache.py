"""What was computed before, in Valkey. Losing it loses nothing but time.

A cache never raises, and never costs more than it saves: a server that is away is found out by one short
timeout, and from then on left alone until it answers again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from threading import Lock, Thread
from typing import Any, Final, Protocol

import structlog
import valkey
from valkey.exceptions import ConnectionError, ResponseError, ValkeyError

from visionmesh.errors import Unavailable
from visionmesh.observability import metrics
from visionmesh.settings import Settings

log = structlog.get_logger()

# A server in the same rack answers in less than a millisecond. Whoever has a slower one says so in the URL:
# `?socket_timeout=1&socket_connect_timeout=1`.
_TIMEOUT_SECONDS: Final = 0.1

# How long a server that is away is left alone; doubled each time that it still is.
_FIRST_PAUSE_SECONDS: Final = 0.5
_LONGEST_PAUSE_SECONDS: Final = 30.0

# In a look at all keys: less than a millisecond, in which the server does nothing else.
_KEYS_AT_ONCE: Final = 1000

_REASON_CHARACTERS: Final = 200


class Cache(Protocol):
    """Values by key, any of which may be gone at any time. Used by many threads at once. Never raises."""

    def get_many(self, keys: Sequence[str], *, length: int) -> list[bytes | None]:
        """The value of each key; None where there is none, or where it can't be had.

        length: in bytes. A value of any other is damaged or someone else's, and counts as none.
        """

    def put_many(self, values: Mapping[str, bytes]) -> None:
        """Keeps the values for as long as there is room."""

    def forget(self, endings: Collection[str]) -> bool:
        """Drops every value whose key ends with a colon and one of these. Looks at all keys there are, so
        that many endings cost what one does. False when that came to no end: the server is away.
        """


class NoCache:
    """The `Cache` of a mesh without one."""

    def get_many(self, keys: Sequence[str], *, length: int) -> list[bytes | None]:
        return [None] * len(keys)

    def put_many(self, values: Mapping[str, bytes]) -> None:
        pass

    def forget(self, endings: Collection[str]) -> bool:
        return True


def open_cache(settings: Settings) -> Cache:
    """The cache of `settings.cache_url`, whether or not its server is up.

    Raises ValueError for an address that can't be understood.
    """
    url = settings.cache_url.get_secret_value() if settings.cache_url is not None else ""
    try:
        return ValkeyCache(url) if url else NoCache()
    except ValueError:
        # Nothing of the address is repeated: where a port is looked for may stand a piece of the password.
        raise ValueError(
            "MESH_CACHE_URL has to be redis://[:password@]host:port/db, what is neither letter nor digit in "
            "the password as %XX, and timeouts in seconds."
        ) from None


class ValkeyCache:
    """A `Cache` in one Valkey, which drops the least recently used when it is full."""

    def __init__(self, url: str, *, first_pause_seconds: float = _FIRST_PAUSE_SECONDS) -> None:
        """url: `redis://[:password@]host:port/db`, see `Settings.cache_url`."""
        self._client = valkey.Valkey.from_url(
            url, socket_connect_timeout=_TIMEOUT_SECONDS, socket_timeout=_TIMEOUT_SECONDS
        )
        self._first_pause_seconds = first_pause_seconds
        self._pause_seconds = first_pause_seconds
        self._lock = Lock()
        self._away = False
        # Operations that the server answered last with an error, as it does with writes when it is full.
        self._refused: set[str] = set()
        self._hits, self._misses, self._errors = (
            metrics.CACHE_REQUESTS.labels(result) for result in ("hit", "miss", "error")
        )

    def get_many(self, keys: Sequence[str], *, length: int) -> list[bytes | None]:
        if not keys:
            return []
        values = self._call("get", lambda: self._client.mget(keys))
        if values is None:
            self._errors.inc(len(keys))
            return [None] * len(keys)
        found = [value if value is not None and len(value) == length else None for value in values]
        hits = sum(value is not None for value in found)
        self._hits.inc(hits)
        self._misses.inc(len(keys) - hits)
        return found

    def put_many(self, values: Mapping[str, bytes]) -> None:
        if not values or self._away:
            return
        if self._call("put", lambda: self._client.mset(dict(values))) is None:
            self._errors.inc(len(values))

    def forget(self, endings: Collection[str]) -> bool:
        cursor = self._forget_some(0, endings) if endings else 0
        while cursor:
            cursor = self._forget_some(cursor, endings)
        return cursor is not None

    def ping(self) -> None:
        """For people who ask. Raises `Unavailable("cache", …)` when the server does not answer."""
        try:
            self._client.ping()
        except (ValkeyError, OSError) as error:
            raise Unavailable("cache", _reason(error)) from error

    def _forget_some(self, cursor: int, endings: Collection[str]) -> int | None:
        """One page of all keys; where the next begins, 0 after the last one, None where none can be had."""
        page = self._call("scan", lambda: self._client.scan(cursor, count=_KEYS_AT_ONCE))
        if page is None:
            return None
        following, keys = page
        named = [key for key in keys if key.rpartition(b":")[2].decode(errors="replace") in endings]
        if named and self._call("delete", lambda: self._client.unlink(*named)) is None:
            return None
        return int(following)

    def _call(self, operation: str, command: Callable[[], Any]) -> Any | None:
        """The answer to a command, or None when there is none."""
        if self._away:
            return None
        start = time.perf_counter()
        try:
            answer = command()
        except ResponseError as error:
            self._note_refusal(operation, error)
            return None
        # Also what the client's parser throws at the answers of a server that is no Valkey.
        except Exception as error:
            self._leave_alone(error)
            return None
        finally:
            metrics.CACHE_SECONDS.labels(operation).observe(time.perf_counter() - start)
        self._pause_seconds = self._first_pause_seconds
        if operation in self._refused:
            self._refused.discard(operation)
            log.info("cache_accepts_again", operation=operation)
        return answer

    def _note_refusal(self, operation: str, error: Exception) -> None:
        """The server answers, so the next command is not waited for and may be tried."""
        if operation not in self._refused:
            self._refused.add(operation)
            log.warning("cache_refuses", operation=operation, reason=_reason(error))

    def _leave_alone(self, error: Exception) -> None:
        with self._lock:
            if self._away:
                return
            self._away = True
        log.warning("cache_away", reason=_reason(error))
        # Not by the work itself: even the name of a server that is gone may take seconds to look up.
        Thread(target=self._await_return, name="cache", daemon=True).start()

    def _await_return(self) -> None:
        while self._away:
            time.sleep(self._pause_seconds)
            self._pause_seconds = min(2 * self._pause_seconds, _LONGEST_PAUSE_SECONDS)
            try:
                self._client.ping()
            except Exception:
                continue
            self._away = False
        log.info("cache_back")


def _reason(error: Exception) -> str:
    text = f"{error}"[:_REASON_CHARACTERS] or type(error).__name__
    return text if isinstance(error, ConnectionError) else f"{type(error).__name__}: {text}"
