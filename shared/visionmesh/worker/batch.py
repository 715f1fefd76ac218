"""What happens to one batch, on the worker thread: decode → step → store → publish.

Each message comes to exactly one end: done, skipped, or failed with a dead letter. A server that is away
is waited for here, so that the loop can go on polling.
"""

from __future__ import annotations

import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext, suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from threading import Event
from typing import Any, Final, Generic, TypeVar

import msgspec
import structlog
from confluent_kafka import TIMESTAMP_NOT_AVAILABLE

from visionmesh.errors import Rejected, Unavailable
from visionmesh.kafka import Message, Publisher, Record, headers_of
from visionmesh.observability import metrics, spans, tracing
from visionmesh.observability.logs import bind
from visionmesh.observability.tracing import Trace
from visionmesh.results import OutcomeRow, OutcomeState, ResultStore, Row
from visionmesh.topics import Topic
from visionmesh.worker.dead_letters import Failure, dead_letter, is_for
from visionmesh.worker.retry import Stopped, until_available
from visionmesh.worker.step import Done, Skipped, Step, Verdict

log = structlog.get_logger()

C = TypeVar("C", bound=msgspec.Struct)
T = TypeVar("T")

# A bug is tried this often again before it is believed: it may have been a passing state of the process.
_BUG_RETRIES: Final = 2

# The fields by which a message is found again, in whatever contract has them.
_IDS: Final = ("image_id", "device_id", "sensor", "seq")

# A line about a batch names so many of its messages.
_NAMED: Final = 20

# An error may quote megabytes of what it met, and is kept in a row, a log line and every answer.
_TOLD_CHARACTERS: Final = 2000

# RFC 9562: 8-4-4-4-12 hexadecimal digits, the first of the third group is the version.
_UUID_CHARACTERS: Final = 36
_UUID_VERSION_AT: Final = 14


class _Item(msgspec.Struct, Generic[C]):
    """A message on its way through the batch."""

    message: Message
    value: C | None = None
    image_id: str | None = None
    verdict: Verdict | None = None
    attempts: int = 1
    first_failed_at: float | None = None
    traceback: str | None = None
    # What can be read of `_IDS` in a message that is not understood.
    ids: dict[str, Any] = {}
    # The span of this worker's work on it, where the message brought a trace that is sampled.
    trace: Trace | None = None


@dataclass(slots=True)
class _Publication:
    """The records of a batch, dead letters among them, each with the item it came from."""

    records: list[Record] = field(default_factory=list)
    items: list[_Item[Any]] = field(default_factory=list)


class BatchRunner(Generic[C]):
    """Brings the messages of one batch to their end. One batch at a time; not thread-safe."""

    def __init__(
        self,
        *,
        name: str,
        topic: Topic[C],
        step: Step[C],
        publisher: Publisher,
        store: ResultStore | None,
        record_attempts: bool,
        max_attempts: int,
        stop: Event,
    ) -> None:
        self._name = name
        self._topic = topic
        self._dead_letters = topic.dead_letters(name)
        self._decoder = msgspec.json.Decoder(topic.contract)
        self._encode = msgspec.json.Encoder().encode
        self._step = step
        self._publisher = publisher
        self._store = store
        self._record_attempts = record_attempts and store is not None
        self._max_attempts = max_attempts
        self._stop = stop
        self._keyed_by_image = topic.key == "image_id"
        fields = msgspec.structs.fields(topic.contract)
        self._ids = {each.name: each.type for each in fields if each.name in _IDS}
        # Looking a label up costs as much as decoding a message.
        self._batch_size = metrics.BATCH_SIZE.labels(name)
        self._step_seconds = metrics.STEP_SECONDS.labels(name)
        self._store_seconds = metrics.STORE_SECONDS.labels(name)
        self._publish_seconds = metrics.PUBLISH_SECONDS.labels(name)
        self._age_seconds = metrics.AGE_SECONDS.labels(name)
        self._end_to_end_seconds = metrics.END_TO_END_SECONDS.labels(name)
        # Those that every worker has; what else its step waits for shows when it does.
        metrics.from_zero(metrics.RETRIES, ("kafka",) if store is None else ("kafka", "database"), name)
        self._started_ns = 0
        # The images that the step has at this moment, where attempts are written down.
        self._trying: list[str] = []
        self.waiting_for: Unavailable | None = None

    def run(self, messages: Sequence[Message]) -> None:
        """Raises `Stopped` when the worker is to stop while a server is away, or before a step is called."""
        self._started_ns = spans.now_ns()
        items = [self._decode(message) for message in messages if is_for(message, self._name)]
        if len(items) < len(messages):
            metrics.FINISHED.labels(self._name, "skipped").inc(len(messages) - len(items))
        if not items:
            return
        for group in self._groups(items):
            self._run_group(group)

    def _decode(self, message: Message) -> _Item[C]:
        item: _Item[C] = _Item(message, trace=_trace(message))
        try:
            item.value = self._decoder.decode(message.value() or b"")
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            item.verdict = Rejected("invalid_message", f"no {self._topic.contract.__name__} message: {error}")
            item.ids = self._readable_ids(message)
            item.image_id = item.ids.get("image_id") if self._keyed_by_image else None
        else:
            item.image_id = getattr(item.value, "image_id", None) if self._keyed_by_image else None
        return item

    def _readable_ids(self, message: Message) -> dict[str, Any]:
        """What an undecodable message speaks of, so that its failure can be shown."""
        found: dict[str, Any] = {}
        with suppress(msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            # Fails where it is no JSON at all: a NaN is enough.
            found = msgspec.json.decode(message.value() or b"", type=dict[str, Any])
        # The key says the same, where the producer of a bad message kept to that at least.
        keyed = {self._topic.key: (message.key() or b"").decode(errors="replace")}
        ids = {}
        for name, kind in self._ids.items():
            for candidate in (keyed.get(name), found.get(name)):
                with suppress(msgspec.ValidationError):
                    ids[name] = msgspec.convert(candidate, kind)
        return ids

    def _ids_of(self, item: _Item[C]) -> dict[str, Any]:
        """By what lines and spans name a message."""
        return item.ids if item.value is None else self._ids_in(item.value)

    def _ids_in(self, value: C) -> dict[str, Any]:
        return {name: getattr(value, name) for name in self._ids}

    def _first_of(self, items: Sequence[_Item[C]]) -> dict[str, list[str]]:
        """By what a line about many messages names some of them: `image_ids`, `device_ids`."""
        key = self._topic.key
        found = (self._ids_of(item).get(key) for item in items)
        return {f"{key}s": list(islice(dict.fromkeys(each for each in found if each), _NAMED))}

    def _groups(self, items: Sequence[_Item[C]]) -> list[Sequence[_Item[C]]]:
        """The whole batch, or, after a death, those that were in flight one by one: so the guilty one
        is told apart from its neighbours, which do not lose their attempts with it.
        """
        store = self._store
        undecided = [item for item in items if item.verdict is None]
        if not self._record_attempts or store is None or not undecided:
            return [items]
        ids = [item.image_id or "" for item in undecided]
        interrupted = self._patiently(lambda: store.interrupted(self._name, ids), undecided)
        suspects = []
        for item, deaths in zip(undecided, interrupted, strict=True):
            item.attempts = deaths + 1
            if deaths >= self._max_attempts:
                item.attempts = deaths
                item.verdict = Rejected(
                    "worker_died", f"the worker died {deaths} times while it worked on this message"
                )
            elif deaths:
                suspects.append(item)
        alone = {id(item) for item in suspects}
        rest = [item for item in items if id(item) not in alone]
        return [group for group in (rest, *([item] for item in suspects)) if group]

    def _run_group(self, items: Sequence[_Item[C]]) -> None:
        undecided = [item for item in items if item.verdict is None]
        if undecided:
            self._batch_size.observe(len(undecided))
            started = time.perf_counter()
            self._decide(undecided)
            self._excuse(undecided)
            self._step_seconds.observe(time.perf_counter() - started)
        self._save(items)
        self._publish(items)
        self._tell(items)

    def _tell(self, items: Sequence[_Item[C]]) -> None:
        """Metrics and log lines of a finished group."""
        oldest = min(_sent_at(item.message) for item in items)
        now = time.time()
        self._age_seconds.observe(max(0.0, now - oldest))
        states = Counter([_state(item.verdict) for item in items])
        for item in items:
            verdict = item.verdict
            if isinstance(verdict, Done) and (began := _uploaded_at(item.image_id)) is not None:
                self._end_to_end_seconds.observe(max(0.0, now - began))
            if isinstance(verdict, Rejected):
                metrics.DEAD_LETTERS.labels(self._name, verdict.code).inc()
                with tracing.use(item.trace):
                    log.warning(
                        "dead_letter",
                        worker=self._name,
                        **self._ids_of(item),
                        code=verdict.code,
                        reason=verdict.reason,
                        partition=item.message.partition(),
                        offset=item.message.offset(),
                        **({"traceback": item.traceback} if item.traceback else {}),
                    )
            if item.trace is not None:
                spans.record(self._span(item, item.trace, len(items)))
        for state, count in states.items():
            metrics.FINISHED.labels(self._name, state).inc(count)

    def _span(self, item: _Item[C], trace: Trace, count: int) -> spans.Span:
        """From when its batch began until its results were stored and published."""
        verdict = item.verdict
        attributes: dict[str, spans.Value] = {
            **spans.KAFKA,
            "messaging.destination.name": self._topic.name,
            "messaging.destination.partition.id": str(item.message.partition()),
            "messaging.kafka.offset": item.message.offset(),
            "messaging.consumer.group.name": self._name,
            "messaging.batch.message_count": count,
            "visionmesh.outcome": _state(verdict),
            **{f"visionmesh.{name}": value for name, value in self._ids_of(item).items()},
        }
        error = f"{verdict.code}: {verdict.reason}" if isinstance(verdict, Rejected) else None
        name = f"process {self._topic.name}"
        return spans.Span(name, "consumer", trace, self._started_ns, spans.now_ns(), attributes, error)

    # Step

    def _decide(self, items: Sequence[_Item[C]]) -> None:
        """Gives every item its verdict; a bug is narrowed down to its message by bisection."""
        try:
            verdicts = self._call_step(items)
        except Rejected as error:
            if len(items) == 1:
                items[0].verdict = error
                return
        except Exception:
            if len(items) == 1:
                self._decide_bug(items[0])
                return
            log.exception("step_failed", worker=self._name, batch=len(items), **self._first_of(items))
        else:
            for item, verdict in zip(items, verdicts, strict=True):
                item.verdict = verdict
            return
        middle = len(items) // 2
        self._decide(items[:middle])
        self._decide(items[middle:])

    def _decide_bug(self, item: _Item[C]) -> None:
        """The guilty message: tried again, then a dead letter with the traceback."""
        item.first_failed_at = time.time()
        for _ in range(_BUG_RETRIES):
            item.attempts += 1
            try:
                (item.verdict,) = self._call_step([item])
                return
            except Rejected as error:
                item.verdict = error
                return
            except Exception as error:
                item.traceback = traceback.format_exc()
                item.verdict = Rejected("bug", _told(error))

    def _call_step(self, items: Sequence[_Item[C]]) -> Sequence[Verdict]:
        if self._stop.is_set():
            raise Stopped  # nothing new is begun; what was decided so far is decided again elsewhere
        values = [item.value for item in items if item.value is not None]
        trace = items[0].trace if len(items) == 1 else None
        store = self._store if self._record_attempts else None
        if store is None:
            return self._patiently(lambda: self._checked_step(values, trace), items)
        ids = [item.image_id for item in items if item.image_id is not None]
        begun = False

        def attempt() -> Sequence[Verdict]:
            nonlocal begun
            # Once, though the withdrawal before may have failed: that one still counts.
            if not begun:
                store.begin(self._name, ids)
                begun = True
            self._trying = ids
            try:
                return self._checked_step(values, trace)
            except Exception:
                # The process lives. Only attempts that end it count, so that a message that waits for a
                # server, through any number of restarts, does not use up its three.
                store.withdraw(self._name, ids)
                begun = False
                raise
            finally:
                self._trying = []

        return self._patiently(attempt, items)

    def _checked_step(self, values: Sequence[C], trace: Trace | None) -> Sequence[Verdict]:
        with self._about(values, trace):
            verdicts = self._step(values)
        if len(verdicts) != len(values):
            raise ValueError(f"the step returned {len(verdicts)} verdicts for {len(values)} messages")
        return verdicts

    def _about(self, values: Sequence[C], trace: Trace | None) -> AbstractContextManager[object]:
        """Names a lone message in every line that its step logs; of a batch, the step's own lines do."""
        if len(values) != 1:
            return nullcontext()
        stack = ExitStack()
        stack.enter_context(tracing.use(trace))
        stack.enter_context(bind(**self._ids_in(values[0])))
        return stack

    def give_back(self) -> None:
        """For a worker that ends while its step goes on: an attempt cut off by a stop is not a death.
        Called from another thread than `run`.
        """
        trying = self._trying
        if self._store is None or not trying:
            return
        try:
            self._store.withdraw(self._name, trying)
        except Unavailable as error:
            log.warning("not_withdrawn", worker=self._name, image_ids=trying[:_NAMED], reason=error.reason)

    def _excuse(self, items: Sequence[_Item[C]]) -> None:
        """That a picture was deleted while its message waited is nobody's failure."""
        store = self._store
        failed = [item for item in items if item.image_id and isinstance(item.verdict, Rejected)]
        if store is None or not failed:
            return
        ids = {item.image_id for item in failed if item.image_id}
        deleted = self._patiently(lambda: store.deleted(ids), failed)
        for item in failed:
            if item.image_id in deleted:
                item.verdict = Skipped("image_deleted: the picture was deleted meanwhile")

    # Store

    def _save(self, items: Sequence[_Item[C]]) -> None:
        store = self._store
        if store is None:
            return
        started = time.perf_counter()
        try:
            self._patiently(lambda: store.save([row for item in items for row in self._rows(item)]), items)
        except Exception as error:
            if len(items) > 1:
                for item in items:
                    self._save([item])
                return
            # These rows can't be written at all, and the store is there: the message's own fault.
            item = items[0]
            if _state(item.verdict) == "failed":
                raise
            item.first_failed_at = time.time()
            item.traceback = traceback.format_exc()
            item.verdict = Rejected("cannot_store", _told(error))
            self._save(items)
        self._store_seconds.observe(time.perf_counter() - started)

    def _rows(self, item: _Item[C]) -> list[Row]:
        verdict = item.verdict
        rows: list[Row] = list(verdict.rows) if isinstance(verdict, Done) else []
        if item.image_id is not None:
            error = None
            if isinstance(verdict, Skipped):
                error = verdict.reason
            elif isinstance(verdict, Rejected):
                error = f"{verdict.code}: {verdict.reason}"
            rows.append(OutcomeRow(item.image_id, self._name, _state(verdict), error))
        return rows

    # Publish

    def _publish(self, items: Sequence[_Item[C]]) -> None:
        batch = _Publication()
        for item in items:
            verdict = item.verdict
            if isinstance(verdict, Rejected):
                batch.records.append(self._letter(item, verdict))
                batch.items.append(item)
            elif isinstance(verdict, Done):
                for message in verdict.messages:
                    key = getattr(message.value, message.topic.key).encode()
                    headers = tracing.to_headers(item.trace)
                    batch.records.append(
                        Record(message.topic.name, key, self._encode(message.value), headers)
                    )
                    batch.items.append(item)
        if not batch.records:
            return
        started = time.perf_counter()
        refused = self._patiently(
            lambda: self._publisher.publish(batch.records, give_up=self._stop.is_set), items
        )
        self._publish_seconds.observe(time.perf_counter() - started)
        taken = Counter(
            record.topic
            for index, record in enumerate(batch.records)
            if record.topic != self._dead_letters and index not in refused
        )
        for topic, count in taken.items():
            metrics.PUBLISHED.labels(self._name, topic).inc(count)
        self._bury(batch, refused)

    def _bury(self, batch: _Publication, refused: Any) -> None:
        """What no broker will take: its message fails, visibly, instead of blocking the topic."""
        guilty: dict[int, _Item[Any]] = {}
        for index, reason in refused.items():
            item = batch.items[index]
            if batch.records[index].topic == self._dead_letters:
                log.error("dead_letter_refused", worker=self._name, **self._ids_of(item), reason=reason)
                continue
            item.verdict = Rejected("cannot_publish", reason)
            guilty[id(item)] = item
        if guilty:
            self._save(list(guilty.values()))
            self._publish(list(guilty.values()))

    def _letter(self, item: _Item[C], verdict: Rejected) -> Record:
        now = time.time()
        failure = Failure(
            verdict.code,
            verdict.reason,
            item.attempts,
            item.first_failed_at or now,
            now,
            item.traceback,
        )
        return dead_letter(item.message, self._dead_letters, self._name, failure)

    # Waiting

    def _patiently(self, work: Callable[[], T], items: Sequence[_Item[C]]) -> T:
        """items: what waits when a server is away."""
        try:
            return until_available(work, self._stop, partial(self._on_wait, items))
        finally:
            self.waiting_for = None

    def _on_wait(self, items: Sequence[_Item[C]], error: Unavailable) -> None:
        if self.waiting_for is None:
            log.warning(
                "waiting",
                worker=self._name,
                server=error.server,
                reason=error.reason,
                **self._first_of(items),
            )
        self.waiting_for = error
        metrics.RETRIES.labels(self._name, error.server).inc()


def _told(error: Exception) -> str:
    """What went wrong in a step or a store, in one text of bounded length."""
    return f"{type(error).__name__}: {error}"[:_TOLD_CHARACTERS]


def _state(verdict: Verdict | None) -> OutcomeState:
    if isinstance(verdict, Rejected):
        return "failed"
    return "skipped" if isinstance(verdict, Skipped) else "done"


def _sent_at(message: Message) -> float:
    """UNIX seconds of the record; now, where its producer is so old that it set none."""
    kind, milliseconds = message.timestamp()
    return time.time() if kind == TIMESTAMP_NOT_AVAILABLE else milliseconds / 1000


def _uploaded_at(image_id: str | None) -> float | None:
    """UNIX seconds of the upload, where the id tells: a UUID of version 7 begins with its milliseconds.

    The mesh gives such ids. Those of others are passed over at the price of a look at one character.
    """
    if image_id is None or len(image_id) != _UUID_CHARACTERS or image_id[_UUID_VERSION_AT] != "7":
        return None
    try:
        return int(image_id[:8] + image_id[9:13], 16) / 1000
    except ValueError:
        return None


def _trace(message: Message) -> Trace | None:
    """A span that came of the one that the message was sent in; only sampled records carry that."""
    headers = headers_of(message)
    if not headers:
        return None
    parent = tracing.from_headers(
        (name, value if not isinstance(value, str) else value.encode()) for name, value in headers
    )
    return parent.child() if parent is not None and parent.sampled else None
