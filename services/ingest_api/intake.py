"""Takes one picture in: streams it to the object store, writes its row, announces it.

The order makes a picture either whole or absent, wherever it breaks off: object, row, record. An object
that gets no row is deleted; a row without a record is in the outbox.

Memory: a small picture is held until it is complete. Of a larger one, whatever its size, a part of 5 MiB
and what comes while that is sent. Small ones are counted until they are stored, large ones until a thread
has taken them, and both are bounded for all together.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from queue import SimpleQueue
from time import time_ns
from typing import Final, TypeVar

from ingest_api.domain import SNIFF_BYTES, Header, checked_media_type, object_key, read_header, uuid7
from ingest_api.outbox import Outbox
from visionmesh import kafka
from visionmesh.errors import Rejected, Unavailable
from visionmesh.object_store import PART_BYTES, ObjectStore
from visionmesh.results import ImageRow, Images

T = TypeVar("T")

# Uploads that talk to the servers at once. Most of that is waiting, and the object store's client keeps
# 32 connections open.
_THREADS: Final = 32
# A large picture holds a thread for as long as its client sends.
_STREAM_THREADS: Final = 32
# How many more may wait for one. Each holds 3 to 4 MiB meanwhile, and all of them leave room for small ones.
_STREAMS_WAITING: Final = 32
# What is held of a picture before it is a large one.
_HELD_BYTES: Final = PART_BYTES // 2
# And of all pictures together. Clients who send slowly, a few hundred of them, would else take all memory.
_HELD_IN_ALL_BYTES: Final = 256 * 1024 * 1024

# What goes at a time from the event loop to the thread that stores a large picture: small beside a part,
# large beside the cost of waking a thread.
_BLOCK_BYTES: Final = 256 * 1024
_BLOCKS_WAITING: Final = 2

# Headers end within this, but for files with a large preview in front.
_HEADER_BYTES: Final = 512 * 1024


@dataclass(frozen=True, slots=True)
class Terms:
    """What a request says about its pictures. headers: of the Kafka records, the trace of the request."""

    image_id: str | None
    tasks: tuple[str, ...] | None
    headers: tuple[kafka.Header, ...]


@dataclass(frozen=True, slots=True)
class StoredObject:
    """A picture that lies in the object store; no row names it yet. length: in bytes."""

    upload_id: str
    minio_path: str
    header: Header
    sha256: str
    length: int


@dataclass(frozen=True, slots=True)
class Accepted:
    """A picture that is stored and has a row. created: False when an earlier request brought it."""

    image: ImageRow
    created: bool


class Intake:
    """What all uploads of a process share: clients, threads, limits. Its methods block."""

    def __init__(
        self, images: Images, store: ObjectStore, outbox: Outbox, *, bucket: str, max_bytes: int
    ) -> None:
        """bucket: where pictures go. max_bytes: the largest picture accepted."""
        self.max_bytes = max_bytes
        # Of pictures that are coming in: of small ones until they are stored, of large ones until the thread
        # that stores them took them; and how many are large. Used on the event loop alone.
        self.held_bytes = 0
        self.streams = 0
        self.threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="upload")
        self.stream_threads = ThreadPoolExecutor(_STREAM_THREADS, thread_name_prefix="upload-stream")
        self._images = images
        self._store = store
        self._outbox = outbox
        self._bucket = bucket
        self._database_in_doubt = False
        self._store_in_doubt = False

    def close(self) -> None:
        """Waits for what is being stored."""
        self.threads.shutdown()
        self.stream_threads.shutdown()

    def store_whole(self, pieces: Sequence[memoryview], image_id: str | None) -> StoredObject:
        """Stores a picture of which every byte is here. Raises `Rejected` or `Unavailable`."""
        data = b"".join(pieces)
        header = read_header(data, complete=True)
        return self._store_object(header, image_id, iter((data,)), hashlib.sha256(data).hexdigest())

    def store_stream(self, start: bytes, image_id: str | None, blocks: Iterator[bytes]) -> StoredObject:
        """Stores a picture whose bytes are still coming. start: its first ones, which `blocks` repeats.

        Raises `Rejected` or `Unavailable`, and whatever `blocks` raises; nothing is stored then.
        """
        return self._store_object(read_header(start, complete=False), image_id, blocks)

    def take(self, pieces: Sequence[memoryview], terms: Terms) -> Accepted:
        """Stores and registers a picture of which every byte is here."""
        return self.register(self.store_whole(pieces, terms.image_id), terms)

    def register(self, stored: StoredObject, terms: Terms) -> Accepted:
        """Writes the row of an object and announces it.

        Raises `Rejected("image_id_conflict")` when the image id is another picture's. When it is this
        picture's, the earlier upload stands and this object is deleted.
        """
        row = ImageRow(
            image_id=terms.image_id or stored.upload_id,
            minio_path=stored.minio_path,
            sha256=stored.sha256,
            bytes=stored.length,
            media_type=stored.header.media_type,
            width=stored.header.width,
            height=stored.header.height,
            tasks=terms.tasks,
        )
        try:
            added = self._images.add_image(row)
        except Unavailable:
            self._database_in_doubt = True
            self._outbox.discard_unless_named(row.image_id, row.minio_path)
            raise
        except Rejected:
            self.discard(stored)
            raise
        if not added.created:
            self.discard(stored)
        if added.image.published_at is None:
            self._outbox.announce(added.image, terms.headers)
        return Accepted(added.image, added.created)

    def discard(self, stored: StoredObject) -> None:
        """Deletes an object that no row will name; later, when the store is away."""
        try:
            self._store.delete(stored.minio_path)
        except Unavailable:
            self._outbox.discard_unless_named(stored.upload_id, stored.minio_path)

    def _store_object(
        self, header: Header, image_id: str | None, blocks: Iterator[bytes], whole: str | None = None
    ) -> StoredObject:
        """whole: the digest of all blocks, when it is known before they are stored."""
        self._check_servers()
        upload_id = uuid7(time_ns() // 1_000_000, os.urandom(10))
        key = object_key(datetime.now(UTC).date(), upload_id, image_id, header.extension)
        minio_path = f"{self._bucket}/{key}"
        digest = hashlib.sha256()
        if whole is None:
            blocks = _digested(blocks, digest.update)
        try:
            length = self._store.put(minio_path, blocks, media_type=header.media_type, sha256=whole)
        except Unavailable:
            # The object may be there, and only the answer lost.
            self._store_in_doubt = True
            self._outbox.discard_unless_named(upload_id, minio_path)
            raise
        return StoredObject(upload_id, minio_path, header, whole or digest.hexdigest(), length)

    def _check_servers(self) -> None:
        """Fails before an object is stored, as long as a server that was away still is.

        A store may have come back empty, so its buckets are made again.
        """
        if self._database_in_doubt:
            self._images.pending()
            self._database_in_doubt = False
        if self._store_in_doubt:
            self._store.ensure_buckets()
            self._store_in_doubt = False


class Receiving:
    """One picture while its bytes come in, on the event loop. Every method may raise `Rejected` or
    `Unavailable`, and `abandon` must follow then.
    """

    def __init__(self, intake: Intake, image_id: str | None) -> None:
        """image_id: the client's own, as far as it is known when the file begins."""
        self._intake = intake
        self._image_id = image_id
        self._pieces: list[memoryview] = []
        self._held = 0
        self._length = 0
        self._is_known = False
        self._stream: _Stream | None = None

    async def write(self, data: memoryview) -> None:
        """Takes the next bytes; waits while the object store is slower than the client."""
        self._length += len(data)
        if self._length > self._intake.max_bytes:
            raise Rejected(
                "too_many_bytes",
                f"The file is too large; at most {self._intake.max_bytes} bytes are accepted.",
            )
        if self._intake.held_bytes + len(data) > _HELD_IN_ALL_BYTES:
            raise _too_many_uploads()
        self._pieces.append(data)
        self._held += len(data)
        self._intake.held_bytes += len(data)
        if not self._is_known and self._held >= SNIFF_BYTES:
            # Before megabytes of something else are waited for.
            checked_media_type(b"".join(self._pieces)[:SNIFF_BYTES])
            self._is_known = True
        if self._stream is not None and self._held >= _BLOCK_BYTES:
            await self._send(self._stream)
        elif self._stream is None and self._held > _HELD_BYTES:
            if self._intake.streams >= _STREAM_THREADS + _STREAMS_WAITING:
                raise _too_many_uploads()
            self._stream = _Stream(self._intake, _start(self._pieces), self._image_id)
            await self._send(self._stream)

    async def take(self, terms: Terms) -> Accepted:
        """Ends the picture, stores and registers it."""
        if self._stream is None:
            return await self._handed_over(partial(self._intake.take, terms=terms))
        stored = await self.store()
        return await in_threads(self._intake.threads, partial(self._intake.register, stored, terms))

    async def store(self) -> StoredObject:
        """Ends the picture and stores it. To be registered or discarded."""
        if self._stream is None:
            return await self._handed_over(partial(self._intake.store_whole, image_id=self._image_id))
        await self._send(self._stream)
        return await self._stream.end()

    async def abandon(self) -> None:
        """Ends the picture and stores nothing."""
        self._intake.held_bytes -= self._held
        self._pieces, self._held = [], 0
        if self._stream is not None:
            await self._stream.abandon()

    async def _send(self, stream: _Stream) -> None:
        """Once sent, the pieces are held by the stream, which counts them."""
        await stream.send(self._pieces, self._held)
        self._pieces, self._held = [], 0

    def _handed_over(self, work: Callable[[Sequence[memoryview]], T]) -> asyncio.Future[T]:
        """Runs `work` with the pieces in a thread. They count until it is done, whether or not anybody waits
        for it: all that no thread has time for is still here.
        """
        loop, intake, held = asyncio.get_running_loop(), self._intake, self._held
        pieces, self._pieces, self._held = self._pieces, [], 0

        def let_go() -> None:
            intake.held_bytes -= held

        def ended(_: Future[T]) -> None:
            # After the last request of the process nobody counts any more.
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(let_go)

        job = intake.threads.submit(work, pieces)
        job.add_done_callback(ended)
        return asyncio.wrap_future(job)


class _Abandoned(Exception):  # noqa: N818 - not an error but an end
    """The picture will not be complete. Makes the object store's client take back what it has stored."""


class _Stream:
    """Hands a large picture from the event loop to the thread that stores it, a few blocks ahead."""

    def __init__(self, intake: Intake, start: bytes, image_id: str | None) -> None:
        self._loop = asyncio.get_running_loop()
        self._room = asyncio.Semaphore(_BLOCKS_WAITING)
        self._blocks: SimpleQueue[tuple[list[memoryview], int] | _Abandoned | None] = SimpleQueue()
        # Of the blocks that the thread has yet to take.
        self._held = 0
        self._intake = intake
        intake.streams += 1
        self._job = intake.stream_threads.submit(intake.store_stream, start, image_id, self._received())
        self._stored = asyncio.wrap_future(self._job)
        self._stored.add_done_callback(self._ended)

    async def send(self, block: list[memoryview], length: int) -> None:
        """Takes pieces of `length` bytes together, and empties the list."""
        await self._room.acquire()
        if self._stored.done():
            # It ended before the picture did, so it failed.
            self._stored.result()
        self._held += length
        self._blocks.put((block, length))

    async def end(self) -> StoredObject:
        self._blocks.put(None)
        return await self._stored

    async def abandon(self) -> None:
        if self._job.cancel():
            self._let_go(self._held)
            return
        self._blocks.put(_Abandoned())
        with suppress(_Abandoned, Rejected, Unavailable):
            stored = await self._stored
            await in_threads(self._intake.threads, partial(self._intake.discard, stored))

    def _received(self) -> Iterator[bytes]:
        """The blocks, in the thread."""
        while (sent := self._blocks.get()) is not None:
            if isinstance(sent, _Abandoned):
                raise sent
            block, length = sent
            self._loop.call_soon_threadsafe(self._taken, length)
            block.reverse()
            while block:
                # What the store has is let go at once: the first block is a whole part.
                yield bytes(block.pop())

    def _taken(self, length: int) -> None:
        self._let_go(length)
        self._room.release()

    def _ended(self, _: asyncio.Future[StoredObject]) -> None:
        self._intake.streams -= 1
        # What a thread that failed has left.
        self._let_go(self._held)
        # Whoever waits for room must learn that nobody makes any.
        self._room.release()

    def _let_go(self, length: int) -> None:
        self._held -= length
        self._intake.held_bytes -= length


def _too_many_uploads() -> Rejected:
    return Rejected("too_many_uploads", "Too many pictures are coming in; try again in a while.")


def _start(pieces: Sequence[memoryview]) -> bytes:
    """The first bytes of a picture, enough for its header."""
    start = bytearray()
    for piece in pieces:
        start += piece
        if len(start) >= _HEADER_BYTES:
            break
    return bytes(start)


def _digested(blocks: Iterator[bytes], digest: Callable[[bytes], None]) -> Iterator[bytes]:
    for block in blocks:
        digest(block)
        yield block


def in_threads(threads: ThreadPoolExecutor, work: Callable[[], T]) -> asyncio.Future[T]:
    """Runs blocking work away from the event loop."""
    return asyncio.get_running_loop().run_in_executor(threads, work)
