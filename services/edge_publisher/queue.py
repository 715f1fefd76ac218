"""The readings that no broker has yet: numbered, on disk, and never more of them than fit.

A reading is in this queue from the moment it has a number until every sink has acknowledged it. The file is
SQLite's; a process that is killed at any moment leaves it as of its last commit, and what was sent without
having been taken out is sent again, with the same number.

What is dropped when there is no more room: the oldest readings of the whole queue, whatever their sensor, a
thirty-second of it at a time. The newest are what a device is watched for; and an oldest part that is whole
leaves one hole and not many.

Dropping takes room itself, on a disk that is full: what changes goes to SQLite's log first, and the log
begins anew only when all of it is in the file. So some megabytes are set aside in a file of zeros, the
ballast, which is given up then and laid again when there is room; until then the queue does not grow.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Condition
from typing import Final, Literal

import msgspec
import structlog

from edge_publisher.devices.protocol import Reading
from visionmesh.contracts import SensorReading
from visionmesh.errors import Unavailable

log = structlog.get_logger()

# A commit that reached no disk before the power was cut is gone, though its readings may have been sent.
# Linux writes within half a minute, in which a device makes some ten thousand; their numbers are left out.
POWER_CUT_GAP: Final = 100_000

_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")

# So much of the queue is dropped at a time, one in so many.
_DROPPED_AT_ONCE: Final = 32

# How often room is made for one batch before the disk is taken for full by others.
_ATTEMPTS: Final = 3

# Pages after which the log is written to the file: what the file may have to grow by when nothing else can.
_LOG_PAGES: Final = 256

# That growth, and a log of what is dropped.
BALLAST_BYTES: Final = 4 * 1024 * 1024
_BALLAST_AGAIN_SECONDS: Final = 60.0

# Of a disk without room for it: the log needs its share, and others live there as well.
_SHARE_OF_REST: Final = 4

_SCHEMA: Final = """
    CREATE TABLE IF NOT EXISTS process (boot_id TEXT NOT NULL, clean INTEGER NOT NULL);
    CREATE TABLE IF NOT EXISTS sources (
        id INTEGER PRIMARY KEY, device_id TEXT NOT NULL, sensor TEXT NOT NULL, seq INTEGER NOT NULL,
        UNIQUE (device_id, sensor)
    );
    CREATE TABLE IF NOT EXISTS sinks (name TEXT PRIMARY KEY, acknowledged INTEGER NOT NULL);
    CREATE TABLE IF NOT EXISTS readings (
        id INTEGER PRIMARY KEY, source INTEGER NOT NULL, value BLOB NOT NULL
    );
"""


@dataclass(frozen=True, slots=True)
class Stored:
    """A reading in the queue. id: its place. value: the message of `sensor-readings-stream`."""

    id: int
    device_id: str
    sensor: str
    value: bytes


@dataclass(slots=True)
class _Source:
    """A sensor of a device. seq: the number that was given last."""

    id: int
    device_id: str
    sensor: str
    seq: int


DropReason = Literal["bound", "disk_full"]


@dataclass(frozen=True, slots=True)
class QueueStatus:
    """waiting: readings that a sink has yet to acknowledge, by sink. bytes: of the file, in use.

    dropped: readings that were lost since the start, by reason. dropped_at: UNIX seconds of the last time.
    """

    waiting: Mapping[str, int]
    bytes: int
    dropped: Mapping[str, int]
    dropped_at: float | None


class ReadingQueue:
    """For many threads at once. No other process can have the same file.

    Every method may raise `Unavailable("queue", …)`: the disk does not take, or does not give.
    """

    def __init__(
        self,
        path: Path,
        *,
        sinks: Sequence[str],
        max_bytes: int,
        sync: Literal["normal", "full"] = "normal",
        boot_id: str | None = None,
    ) -> None:
        """sinks: who has to acknowledge a reading; one that is new gets all that is still there.

        max_bytes: what the file may hold. boot_id: names the time since the machine started; that of Linux
        when None.
        """
        self._max_bytes = max_bytes
        # Held by whoever uses the connection; told whenever there is more to send.
        self._changed = Condition()
        self._encode = msgspec.json.Encoder().encode
        self._dropped: dict[str, int] = {"bound": 0, "disk_full": 0}
        self._dropped_at: float | None = None
        self._ballast = path.with_name(path.name + ".ballast")
        self._ballast_due = 0.0
        # What the queue may hold as long as there is no ballast.
        self._tight_bytes: int | None = None
        with _as_unavailable(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = _open(path, sync)
            # Not before: another process may have the queue, and need its ballast.
            self._ballast.unlink(missing_ok=True)
            self._page_bytes: int = self._number("PRAGMA page_size")
            self._recover(_current_boot_id() if boot_id is None else boot_id)
            self._sources = {
                (device_id, sensor): _Source(number, device_id, sensor, seq)
                for number, device_id, sensor, seq in self._connection.execute(
                    "SELECT id, device_id, sensor, seq FROM sources"
                )
            }
            self._by_id = {source.id: source for source in self._sources.values()}
            self._find_ends(sinks)
        self._path = path
        self._lay_ballast()

    def put(self, readings: Sequence[Reading]) -> list[Stored]:
        """Numbers the readings and writes them down, and takes out what every sink has acknowledged.

        They are safe when this returns; if it raises, none of them has a number.
        """
        with self._changed, _as_unavailable(self._path):
            for _ in range(_ATTEMPTS):
                try:
                    stored = self._put(readings)
                    break
                except sqlite3.OperationalError as error:
                    if error.sqlite_errorcode != sqlite3.SQLITE_FULL:
                        raise
                    self._make_room(len(readings))
            else:
                raise Unavailable("queue", "the disk is full, and dropping readings makes no room")
            # They are stored, whatever fails from here on; the next call tries that again.
            with suppress(sqlite3.Error, OSError):
                self._keep_within_bounds(len(stored))
            self._changed.notify_all()
            return stored

    def after(self, sink: str, limit: int) -> list[Stored]:
        """The oldest readings that `sink` has not acknowledged."""
        with self._changed, _as_unavailable(self._path):
            rows = self._connection.execute(
                "SELECT id, source, value FROM readings WHERE id > ? ORDER BY id LIMIT ?",
                (self._acknowledged[sink], limit),
            ).fetchall()
            return [
                Stored(number, self._by_id[source].device_id, self._by_id[source].sensor, value)
                for number, source, value in rows
            ]

    def wait(self, sink: str, seconds: float) -> bool:
        """Waits until there is something for `sink`, or for so long; whether there is."""
        with self._changed:
            return bool(self._changed.wait_for(lambda: self._acknowledged[sink] < self._next - 1, seconds))

    def wake(self) -> None:
        """Ends every `wait` now."""
        with self._changed:
            self._changed.notify_all()

    def acknowledge(self, sink: str, last: int) -> None:
        """`sink` has every reading up to and with the place `last`. Written down by the next `put`."""
        with self._changed:
            self._acknowledged[sink] = max(self._acknowledged[sink], last)

    def settled(self) -> bool:
        """Whether nothing that was acknowledged has yet to be written down."""
        with self._changed:
            return self._written == self._acknowledged

    def status(self) -> QueueStatus:
        with self._changed, _as_unavailable(self._path):
            return QueueStatus(
                waiting={
                    sink: self._next - 1 - max(place, self._first - 1)
                    for sink, place in self._acknowledged.items()
                },
                bytes=self._used_bytes(),
                dropped=dict(self._dropped),
                dropped_at=self._dropped_at,
            )

    def close(self) -> None:
        """Writes down what was acknowledged, and that nothing was interrupted."""
        with self._changed, _as_unavailable(self._path):
            with self._transaction():
                self._settle()
                self._connection.execute("UPDATE process SET clean = 1")
            self._connection.close()

    # At the start

    def _recover(self, boot_id: str) -> None:
        """Makes the tables, and leaves out numbers where a power cut may have taken back some."""
        self._connection.executescript(_SCHEMA)
        with self._transaction():
            row = self._connection.execute("SELECT boot_id, clean FROM process").fetchone()
            if row is not None and not row[1] and row[0] != boot_id:
                log.warning("power_was_cut", left_out=POWER_CUT_GAP)
                self._connection.execute("UPDATE sources SET seq = seq + ?", (POWER_CUT_GAP,))
            self._connection.execute("DELETE FROM process")
            self._connection.execute("INSERT INTO process VALUES (?, 0)", (boot_id,))
        # On the disk before the first reading has a number, unless the disk is full.
        self._checkpoint("TRUNCATE")

    def _find_ends(self, sinks: Sequence[str]) -> None:
        """Places count up, whether or not a reading is left that has the last one."""
        known: dict[str, int] = dict(self._connection.execute("SELECT name, acknowledged FROM sinks"))
        first, last = self._connection.execute("SELECT min(id), max(id) FROM readings").fetchone()
        self._next = max(last or 0, *known.values(), 0) + 1
        self._first = first if first is not None else self._next
        self._acknowledged = {name: known.get(name, self._first - 1) for name in sinks}
        with self._transaction():
            self._connection.execute("DELETE FROM sinks")
            self._connection.executemany("INSERT INTO sinks VALUES (?, ?)", self._acknowledged.items())
            # What only waited for a sink that is not there any more.
            floor = min(self._acknowledged.values())
            self._connection.execute("DELETE FROM readings WHERE id <= ?", (floor,))
        self._first = max(self._first, floor + 1)
        self._written = dict(self._acknowledged)

    # Inside the lock

    def _put(self, readings: Sequence[Reading]) -> list[Stored]:
        seqs: dict[int, int] = {}
        stored: list[Stored] = []
        with self._transaction():
            sources = [self._source(reading) for reading in readings]
            for place, (reading, source) in enumerate(zip(readings, sources, strict=True), self._next):
                seq = seqs[source.id] = seqs.get(source.id, source.seq) + 1
                value = self._encode(
                    SensorReading(
                        reading.device_id,
                        reading.sensor,
                        seq,
                        reading.captured_at,
                        dict(reading.values),
                        reading.monotonic_ns,
                    )
                )
                stored.append(Stored(place, source.device_id, source.sensor, value))
            self._connection.executemany(
                "INSERT INTO readings VALUES (?, ?, ?)",
                [(each.id, source.id, each.value) for each, source in zip(stored, sources, strict=True)],
            )
            self._connection.executemany(
                "UPDATE sources SET seq = ? WHERE id = ?", [(seq, number) for number, seq in seqs.items()]
            )
            floor = self._settle()
        # Only what is committed is so.
        for number, seq in seqs.items():
            self._by_id[number].seq = seq
        self._next += len(stored)
        self._first = min(max(self._first, floor + 1), self._next)
        self._written = dict(self._acknowledged)
        return stored

    def _keep_within_bounds(self, newest: int) -> None:
        """newest: how many were just put, and stay."""
        while self._first < self._next - newest and (reason := self._what_is_exceeded()):
            self._drop_oldest(newest, reason, newest=newest)
        if self._tight_bytes is not None:
            # The log must not grow beyond what it has.
            self._checkpoint()
            self._lay_ballast()

    def _what_is_exceeded(self) -> DropReason | None:
        used = self._used_bytes()
        if used > self._max_bytes:
            return "bound"
        return "disk_full" if self._tight_bytes is not None and used > self._tight_bytes else None

    def _source(self, reading: Reading) -> _Source:
        key = reading.device_id, reading.sensor
        source = self._sources.get(key)
        if source is None:
            # Known from here on, also if this transaction fails: then the row is written by the next.
            number = max(self._by_id, default=0) + 1
            source = self._sources[key] = self._by_id[number] = _Source(number, *key, seq=0)
        if source.seq == 0:
            self._connection.execute("INSERT OR IGNORE INTO sources VALUES (?, ?, ?, 0)", (source.id, *key))
        return source

    def _settle(self) -> int:
        """Takes out what every sink has acknowledged; returns the last of these places."""
        floor = min(self._acknowledged.values())
        if self._written != self._acknowledged:
            self._connection.executemany(
                "UPDATE sinks SET acknowledged = ? WHERE name = ?",
                [(place, name) for name, place in self._acknowledged.items()],
            )
            self._connection.execute("DELETE FROM readings WHERE id <= ?", (floor,))
        return floor

    def _make_room(self, count: int) -> None:
        """After the disk was full: the pages of what is dropped are used again."""
        if self._tight_bytes is None:
            self._tight_bytes = self._used_bytes()
        self._ballast_due = time.monotonic() + _BALLAST_AGAIN_SECONDS
        self._ballast.unlink(missing_ok=True)
        # The log of changes begins anew, in the room that it has already.
        self._checkpoint()
        if self._first < self._next:
            with suppress(sqlite3.OperationalError):
                self._drop_oldest(count, "disk_full")
            self._checkpoint()

    def _drop_oldest(self, count: int, reason: DropReason, newest: int = 0) -> None:
        """newest: how many stay, whatever happens."""
        held = self._next - self._first - newest
        last = self._first + min(held, max(count, held // _DROPPED_AT_ONCE)) - 1
        with self._transaction():
            self._connection.execute("DELETE FROM readings WHERE id <= ?", (last,))
        lost = last - max(self._first - 1, min(self._acknowledged.values()))
        self._first = last + 1
        for sink, place in self._acknowledged.items():
            self._acknowledged[sink] = max(place, last)
        if lost > 0:
            self._dropped[reason] += lost
            self._dropped_at = time.time()

    def _lay_ballast(self) -> None:
        if time.monotonic() < self._ballast_due:
            return
        self._ballast_due = time.monotonic() + _BALLAST_AGAIN_SECONDS
        try:
            with self._ballast.open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, BALLAST_BYTES)
            self._tight_bytes = None
        except OSError:
            self._ballast.unlink(missing_ok=True)
            if self._tight_bytes is None:
                # A disk as full as that from the start: some of what it has left.
                disk = os.statvfs(self._ballast.parent)
                self._tight_bytes = self._used_bytes() + disk.f_bavail * disk.f_frsize // _SHARE_OF_REST

    def _used_bytes(self) -> int:
        pages = self._number("PRAGMA page_count") - self._number("PRAGMA freelist_count")
        return pages * self._page_bytes

    def _checkpoint(self, mode: Literal["RESTART", "TRUNCATE"] = "RESTART") -> None:
        with suppress(sqlite3.OperationalError):
            self._connection.execute(f"PRAGMA wal_checkpoint({mode})").fetchall()

    def _number(self, statement: str) -> int:
        return int(self._connection.execute(statement).fetchone()[0])

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._connection.execute("COMMIT")
        except BaseException:
            # SQLite ends the transaction by itself after some errors.
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise


def _open(path: Path, sync: str) -> sqlite3.Connection:
    """The file, for this process alone. One that is damaged is set aside, and a new one begun."""
    try:
        return _connect(path, sync)
    except sqlite3.DatabaseError as error:
        if error.sqlite_errorcode not in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            raise
        aside = path.with_name(f"{path.name}.damaged-{int(time.time())}")
        log.error("queue_damaged", path=str(path), set_aside=str(aside), reason=str(error))
        for suffix in ("", "-wal"):
            with suppress(FileNotFoundError):
                path.with_name(path.name + suffix).rename(aside.with_name(aside.name + suffix))
        return _connect(path, sync)


def _connect(path: Path, sync: str) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=0, isolation_level=None, check_same_thread=False)
    try:
        # Before anything is read, so that the index of the log is in memory and needs no file.
        connection.execute("PRAGMA locking_mode = EXCLUSIVE")
        connection.execute("PRAGMA journal_mode = WAL").fetchall()
        connection.execute(f"PRAGMA synchronous = {sync}")
        connection.execute(f"PRAGMA wal_autocheckpoint = {_LOG_PAGES}").fetchall()
        interrupted = connection.execute(
            "SELECT count(*) FROM sqlite_master WHERE name = 'process'"
        ).fetchone() == (1,) and connection.execute("SELECT clean FROM process").fetchone() == (0,)
        if interrupted and connection.execute("PRAGMA quick_check(1)").fetchone() != ("ok",):
            error = sqlite3.DatabaseError("quick_check failed")
            error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
            raise error
    except BaseException:
        connection.close()
        raise
    return connection


@contextmanager
def _as_unavailable(path: Path) -> Iterator[None]:
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        # What the module itself has to say, as of a closed connection, has no code.
        if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_BUSY:
            reason = (
                f"{path} is in use by another edge-publisher; give this one an EDGE_QUEUE_PATH of its own"
            )
        else:
            reason = f"{path}: {error}"
        raise Unavailable("queue", reason) from error


def _current_boot_id() -> str:
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return "unknown"
