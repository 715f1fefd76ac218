"""The whole mesh into a folder, and back.

What is kept: every table, every object of the mesh's buckets, and of Kafka what it alone has: records that
some group has not finished, and dead letters that were not sent home. Offsets are not kept, since what was
finished stands in the tables. Services may go on meanwhile; the order makes the parts fit:

* records first. What is finished later is in the tables by then, and doing it again changes nothing;
* then the tables, of one moment. What was uploaded since the records were read is asked for again;
* then the objects. No row names those that are younger than the tables, and `mesh reconcile` finds them;
* then what was deleted, once more: the tables may still have it.

Back it goes the other way round, so that nothing is asked of workers before they can find it. The manifest is
written last and has a digest of every file: a folder without one is no backup. What was deleted while the
backup was made, or later and the mesh still knows of it, is deleted again.

Tables are written by COPY and not by pg_dump, which has to be as new as the server and is in no image here.
Not kept: the cache, metrics and dashboards, readings that an edge device has not delivered yet, and MLflow.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import re
import sys
import tarfile
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import UTC, date, datetime
from pathlib import Path
from typing import IO, Any, Final, cast

import msgspec
from confluent_kafka import Consumer, KafkaException, TopicPartition
from psycopg import sql

from visionmesh import images
from visionmesh.cache import open_cache
from visionmesh.database import Connection, Database
from visionmesh.deletion import IMAGE_TABLES, Eraser, PostgresDeletions
from visionmesh.errors import Rejected, Unavailable
from visionmesh.kafka import (
    KafkaPublisher,
    Record,
    headers_of,
    partition_offsets,
    unavailable,
)
from visionmesh.object_store import Listed, ObjectStore, S3ObjectStore, split_path
from visionmesh.reconcile import Reconciliation
from visionmesh.settings import Settings, settings_or_exit
from visionmesh.topics import dead_letter_topics, readers
from visionmesh.worker.dead_letters import REPLAY_GROUP, read_partition, reader_config

FORMAT: Final = 1

MANIFEST: Final = "manifest.json"
_RECORDS: Final = "records.jsonl.gz"
_OBJECTS: Final = "objects.tar"
_TABLES: Final = "tables"

_BLOCK_BYTES: Final = 1024 * 1024
_SNIFF_BYTES: Final = 64
_RECORDS_AT_ONCE: Final = 500
_TOPICS_SECONDS: Final = 30.0
_IMAGES_AT_ONCE: Final = 1000

# A worker that is newer than the backup has answered nothing of all there is: that many are a question.
ASK_AGAIN: Final = 10_000

# Pictures are cheap to compress badly and dear to compress well; tables shrink to a fifth by the cheapest.
_GZIP_LEVEL: Final = 1

_READINGS: Final = "sensor_readings"
_DELETIONS: Final = "deleted_images"
_PARTITION: Final = re.compile(r"^sensor_readings_(\d{4})(\d{2})(\d{2})$")

_ORIGINAL_OFFSET: Final = "x-original-offset"

Say = Callable[[str], None]


class BackupError(Exception):
    """There is no backup to make or to restore; the text says why and what to do."""


class Table(msgspec.Struct, frozen=True):
    """A table of the backup, in the text format of COPY."""

    name: str
    columns: tuple[str, ...]
    rows: int


class File(msgspec.Struct, frozen=True):
    """A file of the backup. path: below its folder. sha256: hex digest."""

    path: str
    bytes: int
    sha256: str


class Manifest(msgspec.Struct, frozen=True):
    """What a backup is of.

    revision: of the schema. days: of which there are partitions of sensor readings.
    """

    format: int
    made_at: datetime
    revision: str
    tables: tuple[Table, ...]
    days: tuple[date, ...]
    objects: int
    records: int
    files: tuple[File, ...]


class _StoredRecord(msgspec.Struct, frozen=True):
    """A record of Kafka; bytes in base64."""

    topic: str
    key: str | None
    value: str | None
    headers: tuple[tuple[str, str | None], ...] = ()


def backup(settings: Settings, folder: Path, say: Say = lambda _: None) -> Manifest:
    """Writes the mesh into `folder`, which is made, or is empty. say: told what is done, in a line each.

    Raises `BackupError` for a folder that has something in it or can't be written, and `Unavailable`.
    """
    with _file_errors():
        return _backup(settings, folder, say)


def _backup(settings: Settings, folder: Path, say: Say) -> Manifest:
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise BackupError(f"{folder} is not empty; give the backup a folder of its own.")
    # It holds everybody's pictures.
    folder.chmod(0o700)
    made_at = datetime.now(UTC)
    records = _write_records(folder / _RECORDS, _unfinished_records(settings))
    say(f"{records} records")
    with closing(Database.from_settings(settings)) as database:
        revision, days, tables = _write_tables(folder / _TABLES, database)
        say(f"{sum(table.rows for table in tables)} rows of {len(tables)} tables")
        objects = _write_objects(folder / _OBJECTS, S3ObjectStore.from_settings(settings))
        say(f"{objects} objects")
        tables = _write_deletions_again(folder / _TABLES, database, tables)
    manifest = Manifest(FORMAT, made_at, revision, tables, days, objects, records, tuple(_files(folder)))
    (folder / MANIFEST).write_bytes(msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n")
    return manifest


def restore(
    settings: Settings,
    folder: Path,
    *,
    replace: bool = False,
    with_records: bool = True,
    ask_again: int = ASK_AGAIN,
    say: Say = lambda _: None,
) -> Manifest:
    """Puts what `backup` wrote into a mesh whose schema, topics and buckets are there.

    replace: empties the tables first; else they have to be empty, but for that of readings. What is known of
    deletions stays either way. with_records: False where Kafka still has them. ask_again: at most so many
    pictures without all their results are asked for again. Raises `BackupError` for a backup that is damaged
    or does not fit, before anything is changed, and for records that Kafka did not take; and `Unavailable`.
    """
    with _file_errors():
        return _restore(settings, folder, replace, with_records, ask_again, say)


def _restore(
    settings: Settings, folder: Path, replace: bool, with_records: bool, ask_again: int, say: Say
) -> Manifest:
    manifest = read_manifest(folder)
    say("checking the files")
    _check_files(folder, manifest)
    _check_objects(settings, folder / _OBJECTS)
    if with_records:
        _check_topics(settings, folder, manifest)
    with closing(Database.from_settings(settings)) as database:
        _check_schema(database, manifest, replace)
        store = S3ObjectStore.from_settings(settings)
        store.ensure_buckets()
        objects = _read_objects(folder / _OBJECTS, store)
        say(f"{objects} objects")
        _read_tables(folder / _TABLES, database, manifest, replace)
        say(f"{sum(table.rows for table in manifest.tables)} rows of {len(manifest.tables)} tables")
        Eraser(PostgresDeletions(database), store, open_cache(settings)).finish()
        asked = _ask_again(settings, database, ask_again)
        say(f"{asked} pictures without all results, which are asked for again")
        if asked == ask_again:
            say("there may be more of them: mesh reconcile")
    if with_records:
        try:
            _publish(settings, _read_records(folder / _RECORDS, manifest.made_at))
        except (BackupError, Unavailable) as error:
            raise BackupError(
                f"Tables and objects are restored, the records are not: {error}. Restore again with "
                "--replace, or leave the records out."
            ) from error
        say(f"{manifest.records} records")
    return manifest


@contextmanager
def _file_errors() -> Iterator[None]:
    """What the file system says is an answer, and no mistake of the program."""
    try:
        yield
    except OSError as error:
        what = str(error) if error.strerror is None else f"{error.filename or 'writing'}: {error.strerror}"
        raise BackupError(what) from error


def read_manifest(folder: Path) -> Manifest:
    """What a backup says of itself. Raises `BackupError`."""
    path = folder / MANIFEST
    try:
        # Of another format, the rest may look different.
        written = msgspec.json.decode(path.read_bytes(), type=dict[str, Any]).get("format")
        if written != FORMAT:
            raise BackupError(f"{path} is of format {written}, and this version reads {FORMAT}.")
        return msgspec.json.decode(path.read_bytes(), type=Manifest)
    except (OSError, msgspec.DecodeError) as error:
        raise BackupError(
            f"{folder} holds no complete backup: {path} is written last and can't be read."
        ) from error


# Files


def _files(folder: Path) -> Iterator[File]:
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            yield File(path.relative_to(folder).as_posix(), path.stat().st_size, _digest(path))


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_files(folder: Path, manifest: Manifest) -> None:
    for file in manifest.files:
        path = folder / file.path
        if not path.is_file() or path.stat().st_size != file.bytes or _digest(path) != file.sha256:
            raise BackupError(f"{path} is damaged or missing; nothing was restored.")


# Kafka


def _unfinished_records(settings: Settings) -> Iterator[Record]:
    """What some group of the mesh has not finished, and dead letters that were not sent home."""
    groups: dict[str, list[str]] = {}
    for topic, group in readers(settings.extra_classifiers):
        groups.setdefault(topic.name, []).append(group)
    letters = dead_letter_topics(settings.extra_classifiers)
    # Before the topics they came from are read: one that is sent home meanwhile is in both, and not in none.
    waiting = {name: _unfinished(settings, name, [REPLAY_GROUP]) for name in letters}
    with closing(Consumer(reader_config(settings, "mesh-backup"))) as consumer:
        for name, reading in groups.items():
            for partition, (begin, end) in _unfinished(settings, name, reading).items():
                yield from _read(consumer, TopicPartition(name, partition, begin), end)
        for name, begun in waiting.items():
            # To the end of now, where what was given up meanwhile is.
            for partition, now in _unfinished(settings, name, [REPLAY_GROUP]).items():
                begin, _ = begun.get(partition, now)
                yield from _read(consumer, TopicPartition(name, partition, begin), now[1])


def _unfinished(settings: Settings, topic: str, groups: Iterable[str]) -> dict[int, tuple[int, int]]:
    """For each partition, the first offset that some group has not finished, and the end."""
    found: dict[int, tuple[int, int]] = {}
    for group in groups:
        for each in partition_offsets(settings, topic, group):
            first = max(each.low, each.committed or 0)
            begin, end = found.get(each.partition, (first, 0))
            found[each.partition] = (min(first, begin), max(each.high, end))
    return found


def _read(consumer: Consumer, begin: TopicPartition, end: int) -> Iterator[Record]:
    for message in read_partition(consumer, begin, end):
        yield Record(begin.topic, message.key(), message.value(), tuple(headers_of(message)))


def _write_records(path: Path, records: Iterable[Record]) -> int:
    count = 0
    try:
        with gzip.open(path, "wb", _GZIP_LEVEL) as file:
            for record in records:
                headers = tuple((name, _encoded(_as_bytes(value))) for name, value in record.headers)
                stored = _StoredRecord(record.topic, _encoded(record.key), _encoded(record.value), headers)
                file.write(msgspec.json.encode(stored) + b"\n")
                count += 1
    except KafkaException as error:
        raise unavailable(error.args[0]) from error
    return count


def _read_records(path: Path, made_at: datetime) -> Iterator[Record]:
    with gzip.open(path, "rb") as file:
        for line in file:
            stored = msgspec.json.decode(line, type=_StoredRecord)
            headers = tuple((name, _restored_header(name, value, made_at)) for name, value in stored.headers)
            yield Record(stored.topic, _decoded(stored.key), _decoded(stored.value), headers)


def _restored_header(name: str, value: str | None, made_at: datetime) -> bytes | None:
    """A header as it was, but for the place that a dead letter came from: a new broker counts from 0, and has
    another message there.
    """
    decoded = _decoded(value)
    if name == _ORIGINAL_OFFSET and decoded is not None and decoded.isdigit():
        return decoded + f" before the backup of {made_at:%Y-%m-%dT%H:%M:%SZ}".encode()
    return decoded


def _check_topics(settings: Settings, folder: Path, manifest: Manifest) -> None:
    """Raises `BackupError` for records of a topic that is not there."""
    wanted = {record.topic for record in _read_records(folder / _RECORDS, manifest.made_at)}
    try:
        with closing(Consumer(reader_config(settings, "mesh-backup"))) as consumer:
            missing = wanted - consumer.list_topics(timeout=_TOPICS_SECONDS).topics.keys()
    except KafkaException as error:
        raise unavailable(error.args[0]) from error
    if missing:
        raise BackupError(
            f"Kafka has no topic {', '.join(sorted(missing))}, of which there are records. Add what reads it "
            "and create its topics, or leave the records out."
        )


def _publish(settings: Settings, records: Iterable[Record]) -> None:
    with closing(KafkaPublisher(settings)) as publisher:
        for page in _pages(records, _RECORDS_AT_ONCE):
            refused = publisher.publish(page)
            if refused:
                reason = next(iter(refused.values()))
                raise BackupError(f"Kafka does not take {len(refused)} of the records: {reason}")


def _pages(records: Iterable[Record], size: int) -> Iterator[list[Record]]:
    page: list[Record] = []
    for record in records:
        page.append(record)
        if len(page) == size:
            yield page
            page = []
    if page:
        yield page


def _as_bytes(value: str | bytes | None) -> bytes | None:
    return value.encode() if isinstance(value, str) else value


def _encoded(value: bytes | None) -> str | None:
    return None if value is None else b64encode(value).decode()


def _decoded(value: str | None) -> bytes | None:
    return None if value is None else b64decode(value)


# Tables


# Partitions come with the table they are of; alembic's own says what `revision` of the manifest says.
_TABLE_COLUMNS: Final = """
    SELECT relname, array_agg(attname::text ORDER BY attnum)
    FROM pg_class JOIN pg_attribute ON attrelid = pg_class.oid
    WHERE relnamespace = current_schema()::regnamespace AND relkind IN ('r', 'p') AND NOT relispartition
        AND attnum > 0 AND NOT attisdropped AND attgenerated = '' AND relname <> 'alembic_version'
    GROUP BY relname ORDER BY relname
"""

_SENSOR_PARTITIONS: Final = """
    SELECT relname FROM pg_inherits JOIN pg_class ON pg_class.oid = inhrelid
    WHERE inhparent = 'sensor_readings'::regclass ORDER BY relname
"""


def _write_tables(folder: Path, database: Database) -> tuple[str, tuple[date, ...], tuple[Table, ...]]:
    """The tables as they are at one moment, however long it takes to write them."""
    folder.mkdir()
    tables = []
    with database.transaction() as connection:
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        connection.execute("SET LOCAL statement_timeout = 0")
        revision = _revision(connection)
        days = tuple(_days(connection))
        for name, columns in connection.execute(_TABLE_COLUMNS).fetchall():
            tables.append(_write_table(folder, connection, name, columns))
    return revision, days, tuple(tables)


def _write_deletions_again(folder: Path, database: Database, tables: Sequence[Table]) -> tuple[Table, ...]:
    """What was deleted since the tables were written is in them, and maybe among the objects."""
    with database.transaction() as connection:
        connection.execute("SET LOCAL statement_timeout = 0")
        return tuple(
            _write_table(folder, connection, table.name, table.columns) if table.name == _DELETIONS else table
            for table in tables
        )


def _write_table(folder: Path, connection: Connection, name: str, columns: Sequence[str]) -> Table:
    rows = 0
    # Of a table with partitions, COPY alone would give nothing.
    copied = sql.SQL("COPY (SELECT {} FROM {}) TO STDOUT").format(_names(columns), sql.Identifier(name))
    with (
        gzip.open(folder / f"{name}.copy.gz", "wb", _GZIP_LEVEL) as file,
        connection.cursor().copy(copied) as copy,
    ):
        for block in copy:
            # A line feed in a value is written as \\n.
            rows += bytes(block).count(b"\n")
            file.write(block)
    return Table(name, tuple(columns), rows)


def _revision(connection: Connection) -> str:
    row = connection.execute("SELECT version_num FROM alembic_version").fetchone()
    if row is None:
        raise BackupError("The database has no schema; run `python -m visionmesh.database migrate`.")
    return cast(str, row[0])


def _days(connection: Connection) -> Iterator[date]:
    for (name,) in connection.execute(_SENSOR_PARTITIONS).fetchall():
        if found := _PARTITION.match(name):
            yield date(*map(int, found.groups()))


def _check_schema(database: Database, manifest: Manifest, replace: bool) -> None:
    """Raises `BackupError` for tables that can't take what was in those of the backup."""
    with database.transaction() as connection:
        connection.execute("SET LOCAL statement_timeout = 0")
        there = _revision(connection)
        known = {name: set(columns) for name, columns in connection.execute(_TABLE_COLUMNS).fetchall()}
        for table in manifest.tables:
            # Migrations add, so that an older backup fits into a newer schema, and never the other way.
            if table.name not in known or not known[table.name].issuperset(table.columns):
                raise BackupError(
                    f"The backup is of schema {manifest.revision} and this mesh has {there}, without all of "
                    f"{table.name}; restore it with the version that made it, or a newer one."
                )
            # Devices go on measuring: in a mesh that has just been started there is always a reading.
            if replace or table.name in (_READINGS, _DELETIONS):
                continue
            query = sql.SQL("SELECT EXISTS (SELECT FROM {})").format(sql.Identifier(table.name))
            if connection.execute(query).fetchone() == (True,):
                raise BackupError(
                    f"The mesh is not empty: {table.name} has rows. --replace empties its tables first."
                )


# What was being deleted when the backup began, or was deleted later, may have come back and is deleted again.
# Of the others something may come back with the records, so they are remembered anew.
_DELETED_AGAIN: Final = """
    UPDATE deleted_images SET
        deleted_at = CASE WHEN again THEN now() ELSE deleted_at END,
        cleared_at = CASE WHEN again THEN NULL ELSE cleared_at END,
        finished_at = CASE WHEN again THEN NULL ELSE now() END
    FROM (
        SELECT image_id, finished_at IS NULL OR finished_at >= %s AS again FROM deleted_images
    ) AS asked
    WHERE asked.image_id = deleted_images.image_id
"""


def _read_tables(folder: Path, database: Database, manifest: Manifest, replace: bool) -> None:
    """All tables in one transaction: as they were before, or as they are in the backup."""
    with database.transaction() as connection:
        connection.execute("SET LOCAL statement_timeout = 0")
        if replace:
            emptied = (table.name for table in manifest.tables if table.name != _DELETIONS)
            connection.execute(sql.SQL("TRUNCATE {}").format(_names(emptied)))
        for day in manifest.days:
            connection.execute("SELECT ensure_sensor_readings_day(%s)", (day,))
        for table in manifest.tables:
            path = folder / f"{table.name}.copy.gz"
            if table.name == _DELETIONS or (table.name == _READINGS and not replace):
                _merge_table(path, connection, table)
            else:
                _read_table(path, connection, table.name, table.columns)
        connection.execute(_DELETED_AGAIN, (manifest.made_at,))
        for name in IMAGE_TABLES:
            connection.execute(
                sql.SQL("DELETE FROM {} WHERE image_id IN (SELECT image_id FROM deleted_images)").format(
                    sql.Identifier(name)
                )
            )


def _merge_table(path: Path, connection: Connection, table: Table) -> None:
    """Rows that are there already stay as they are."""
    there, restored = sql.Identifier(table.name), sql.Identifier(f"restored_{table.name}")
    connection.execute(
        sql.SQL(
            "CREATE TEMPORARY TABLE {} (LIKE {} INCLUDING DEFAULTS INCLUDING GENERATED) ON COMMIT DROP"
        ).format(restored, there)
    )
    _read_table(path, connection, f"restored_{table.name}", table.columns)
    columns = _names(table.columns)
    connection.execute(
        sql.SQL("INSERT INTO {} ({}) SELECT {} FROM {} ON CONFLICT DO NOTHING").format(
            there, columns, columns, restored
        )
    )


def _read_table(path: Path, connection: Connection, name: str, columns: Sequence[str]) -> None:
    copied = sql.SQL("COPY {} ({}) FROM STDIN").format(sql.Identifier(name), _names(columns))
    with gzip.open(path, "rb") as file, connection.cursor().copy(copied) as copy:
        while block := file.read(_BLOCK_BYTES):
            copy.write(block)


def _names(columns: Iterable[str]) -> sql.Composed:
    return sql.SQL(", ").join(map(sql.Identifier, columns))


def _ask_again(settings: Settings, database: Database, limit: int) -> int:
    """Puts at most so many pictures that are not finished back into the outbox: their records may be of a
    later moment than those of the backup.
    """
    reconciliation = Reconciliation(database)
    count = 0
    after = ""
    while count < limit:
        page = reconciliation.unanswered(
            older_than_seconds=0,
            limit=min(_IMAGES_AT_ONCE, limit - count),
            after=after,
            extra_classifiers=settings.extra_classifiers,
        )
        if not page:
            break
        count += reconciliation.ask_again([each.image_id for each in page])
        after = page[-1].image_id
    return count


# Objects


def _write_objects(path: Path, store: ObjectStore) -> int:
    """A tar of all objects, by their `minio_path`."""
    count = 0
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for listed in store.objects():
            try:
                stream = store.stream(listed.minio_path)
            except Rejected:
                # It was deleted meanwhile, or lies where the mesh itself would not find it.
                continue
            with closing(stream.pieces), _Pieces(stream.pieces) as pieces:
                tar.addfile(_entry(listed, stream.length), pieces)
            count += 1
    return count


def _entry(listed: Listed, length: int | None) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(listed.minio_path)
    entry.size = listed.length if length is None else length
    entry.mtime = int(listed.modified_at.timestamp())
    entry.mode = 0o600
    return entry


def _check_objects(settings: Settings, path: Path) -> None:
    """Raises `BackupError` for an object that this mesh would not store."""
    allowed = {settings.s3_upload_bucket, *settings.s3_allowed_buckets}
    # Not as a stream: what lies between the names is not read.
    with tarfile.open(path, "r:") as tar:
        for entry in tar:
            try:
                split_path(entry.name, allowed)
            except Rejected as error:
                raise BackupError(
                    f"The backup has {entry.name}, which this mesh would not take: {error}; nothing was "
                    "restored. MESH_S3_ALLOWED_BUCKETS names the buckets beside that of uploads."
                ) from error


def _read_objects(path: Path, store: ObjectStore) -> int:
    count = 0
    # As a stream: each object is read once, in order, whatever the size of the file.
    with tarfile.open(path, "r|") as tar:
        for entry in tar:
            file = tar.extractfile(entry)
            if file is None:
                continue
            start = file.read(_SNIFF_BYTES)
            media_type = images.media_type(start) or "application/octet-stream"
            store.put(entry.name, _blocks(start, file), media_type=media_type)
            count += 1
    return count


def _blocks(start: bytes, file: IO[bytes]) -> Iterator[bytes]:
    yield start
    while block := file.read(_BLOCK_BYTES):
        yield block


class _Pieces(io.RawIOBase):
    """Pieces as a file to read."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1, /) -> bytes:
        taken = bytearray()
        while size < 0 or len(taken) < size:
            if not self._rest:
                piece = next(self._pieces, None)
                if piece is None:
                    break
                self._rest = memoryview(piece)
            wanted = len(self._rest) if size < 0 else size - len(taken)
            taken += self._rest[:wanted]
            self._rest = self._rest[wanted:]
        return bytes(taken)


def main(arguments: Sequence[str]) -> int:
    """`python -m visionmesh.backup`, where there is no `mesh` command: in the containers."""
    parser = argparse.ArgumentParser(prog="python -m visionmesh.backup", description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=["backup", "restore"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--replace", action="store_true", help="empty the tables first")
    parser.add_argument("--no-records", action="store_true", help="leave out Kafka's part: it was not lost")
    parser.add_argument(
        "--ask-again", type=int, default=ASK_AGAIN, help="at most so many pictures are asked for again"
    )
    given = parser.parse_args(arguments)
    settings = settings_or_exit()
    try:
        if given.command == "backup":
            backup(settings, given.folder, _say)
        else:
            restore(
                settings,
                given.folder,
                replace=given.replace,
                with_records=not given.no_records,
                ask_again=given.ask_again,
                say=_say,
            )
    except (BackupError, Unavailable) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
