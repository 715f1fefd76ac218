"""One upload request: the fields of its form as they come in, and what becomes of its files."""

from __future__ import annotations

from collections.abc import AsyncIterable, Sequence
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import Final

from ingest_api.domain import checked_image_id, parse_tasks
from ingest_api.intake import Accepted, Intake, Receiving, StoredObject, Terms, in_threads
from ingest_api.multipart import Event, FormReader, PartBegin, PartData
from visionmesh import kafka
from visionmesh.errors import Rejected, Unavailable
from visionmesh.observability import metrics

# Names of form fields that hold a picture.
_FILE_FIELDS: Final = ("file", "files")

# What is not a picture is a short word, and there are few of them.
_MAX_FIELD_BYTES: Final = 4096
_MAX_FIELDS: Final = 64


@dataclass(slots=True)
class UploadedFile:
    """A file of the form and what became of it.

    receiving: while its bytes come in. stored: once they lie in the object store. One of accepted and
    error: at the end.
    """

    filename: str | None
    began: float
    receiving: Receiving | None = None
    stored: StoredObject | None = None
    accepted: Accepted | None = None
    error: Rejected | Unavailable | None = None


class UploadForm:
    """Takes the files of one request, one after the other.

    A file that is refused leaves the others alone. What is wrong with the whole form (an unknown task, a
    body that ends too early) is raised, and then nothing of the request stays.
    """

    def __init__(
        self,
        intake: Intake,
        *,
        image_ids: Sequence[str],
        tasks: Sequence[str],
        headers: tuple[kafka.Header, ...],
        max_files: int,
    ) -> None:
        """image_ids, tasks: those of the query; the form may bring more. headers: of the Kafka records."""
        self._intake = intake
        self._image_ids = [checked_image_id(image_id) for image_id in image_ids]
        self._tasks = list(tasks)
        parse_tasks(self._tasks)
        self._headers = headers
        self._max_files = max_files
        self._files: list[UploadedFile] = []
        self._current: UploadedFile | None = None
        # The name of the text field that is coming in, None while it is a file.
        self._field: str | None = None
        self._text = bytearray()
        self._skipped = 0

    @property
    def image_id(self) -> str | None:
        """The client's own, as far as the request has said it."""
        return next(iter(self._image_ids), None)

    async def take(self, content_type: str, body: AsyncIterable[bytes]) -> list[UploadedFile]:
        """Reads the whole form. Returns its files, at least one, each accepted or with its error.

        Raises `Rejected` when the form as a whole is refused, and whatever reading `body` raises.
        """
        try:
            reader = FormReader(content_type, max_parts=self._max_files + _MAX_FIELDS)
            async for piece in body:
                for event in reader.feed(piece):
                    await self._handle(event)
            reader.finish()
            terms = self._terms()
            for file in self._files:
                if file.error is None:
                    await self._accept(file, terms)
        except BaseException:
            await self._abandon()
            raise
        return self._files

    async def _handle(self, event: Event) -> None:
        if isinstance(event, PartBegin):
            if event.name in _FILE_FIELDS:
                await self._begin_file(event.filename)
            elif event.filename is not None:
                raise Rejected(
                    "unknown_field", f"Send pictures in the field `file`; {event.name!r} is not known."
                )
            else:
                self._field = event.name
        elif isinstance(event, PartData):
            if self._field is not None:
                self._more_text(event.data)
            else:
                await self._more_of_file(event.data)
        elif self._field is not None:
            self._end_text()

    async def _begin_file(self, filename: str | None) -> None:
        await self._store_current()
        if len(self._files) == self._max_files:
            raise Rejected("too_many_files", f"At most {self._max_files} files are accepted at once.")
        image_id = self._image_ids[0] if self._image_ids else None
        self._current = UploadedFile(filename, perf_counter(), receiving=Receiving(self._intake, image_id))
        self._files.append(self._current)

    async def _more_of_file(self, data: memoryview) -> None:
        file = self._current
        if file is None:
            return
        if file.receiving is None:
            # Of a refused file. The others may still come, but not behind any amount of it.
            self._skipped += len(data)
            if file.error is not None and self._skipped > self._intake.max_bytes:
                raise file.error
            return
        try:
            await file.receiving.write(data)
        except (Rejected, Unavailable) as error:
            await self._refuse(file, error)

    async def _store_current(self) -> None:
        """Another file follows: what was received so far is not held until the end of the form."""
        file = self._current
        if file is None or file.receiving is None:
            return
        try:
            file.stored = await file.receiving.store()
            file.receiving = None
        except (Rejected, Unavailable) as error:
            await self._refuse(file, error)

    async def _accept(self, file: UploadedFile, terms: Terms) -> None:
        try:
            if file.receiving is not None:
                file.accepted = await file.receiving.take(terms)
                file.receiving = None
            elif file.stored is not None:
                stored, file.stored = file.stored, None
                file.accepted = await in_threads(
                    self._intake.threads, partial(self._intake.register, stored, terms)
                )
        except (Rejected, Unavailable) as error:
            await self._refuse(file, error)
        else:
            metrics.UPLOAD_SECONDS.observe(perf_counter() - file.began)

    async def _refuse(self, file: UploadedFile, error: Rejected | Unavailable) -> None:
        file.error = error
        receiving, file.receiving = file.receiving, None
        if receiving is not None:
            await receiving.abandon()

    async def _abandon(self) -> None:
        """Leaves nothing of files that were not accepted."""
        for file in self._files:
            if file.receiving is not None:
                await file.receiving.abandon()
            if file.stored is not None:
                await in_threads(self._intake.threads, partial(self._intake.discard, file.stored))

    def _more_text(self, data: memoryview) -> None:
        self._text += data
        if len(self._text) > _MAX_FIELD_BYTES:
            raise Rejected("field_too_long", f"The field {self._field!r} is too long.")

    def _end_text(self) -> None:
        text = self._text.decode("utf-8", "replace")
        if self._field == "image_id":
            self._image_ids.append(checked_image_id(text))
        elif self._field == "tasks":
            self._tasks.append(text)
            parse_tasks(self._tasks)
        self._field = None
        self._text.clear()

    def _terms(self) -> Terms:
        if not self._files:
            raise Rejected(
                "no_file", 'The form has no picture: curl -F "file=@picture.jpg" http://localhost:8001/upload'
            )
        image_ids = set(self._image_ids)
        if len(image_ids) > 1:
            raise Rejected("bad_image_id", "The request names several image ids.")
        if image_ids and len(self._files) > 1:
            raise Rejected("bad_image_id", "An image_id is for one file; send the others on their own.")
        return Terms(next(iter(image_ids), None), parse_tasks(self._tasks), self._headers)
