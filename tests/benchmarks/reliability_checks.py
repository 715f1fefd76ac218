"""What has to be so after a run of `reliability`; each check says what it saw, and names what is wrong."""

from __future__ import annotations

import hashlib
import json
import random
import re
import sqlite3
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import msgspec
from confluent_kafka import Consumer, TopicPartition

from chaos.rig import Rig, eventually
from edge_doubles import forwarding
from edge_publisher.publisher import KafkaSink
from ingest_api.__main__ import fitted_consensus
from ingest_api.domain import results_answer
from visionmesh.database import Database
from visionmesh.kafka import KafkaPublisher, client_config, partition_offsets
from visionmesh.mesh import why_not_ready
from visionmesh.object_store import S3ObjectStore
from visionmesh.results import PostgresImages
from visionmesh.settings import Settings
from visionmesh.topics import CLASSIFIERS, FEATURES, IMAGES, SENSORS, dead_letter_topics

WORKERS = (*IMAGES.consumers, *CLASSIFIERS)

_PARALLEL = 4
_SHOWN = 20
_STOP_SECONDS = 30.0
_PICTURE_BYTES = 1024 * 1024
_OBJECT_OF_UPLOAD = re.compile(r"/(?P<image_id>[^/]+)\.[0-9a-f]{12}\.[a-z]+$")


@dataclass(frozen=True)
class Uploaded:
    """A picture that was accepted. sha256: of what was sent. codes, text: what was drawn in it."""

    sha256: str
    codes: tuple[str, ...]
    text: str | None


class Checks:
    """The list of what was checked, printed as it grows."""

    def __init__(self) -> None:
        self.passed = True

    def add(self, what: str, wrong: Collection[str], found: object) -> None:
        """wrong: what is not so, one by one; nothing may be in it. found: a figure."""
        if not wrong:
            print(f"checked: {what}: ok ({found})", flush=True)
            return
        self.passed = False
        shown = sorted(wrong)[:_SHOWN]
        more = f" and {len(wrong) - len(shown)} more" if len(wrong) > len(shown) else ""
        print(f"checked: {what}: FAILED ({found}), {len(wrong)}: {'; '.join(shown)}{more}", flush=True)

    def holds(self, what: str, wait: Callable[[], object]) -> None:
        """wait: raises an AssertionError if it does not."""
        try:
            wait()
        except AssertionError as error:
            self.add(what, [str(error)], "not so")
        else:
            self.add(what, [], "in time")


def check_everything(
    rig: Rig,
    checks: Checks,
    accepted: Mapping[str, Uploaded],
    repeated: Collection[str],
    killed: Sequence[str],
    *,
    queue: Path,
    ask: int,
    chance: random.Random,
) -> None:
    """After the last blow, and when the pictures have come home; ends the edge device.

    repeated: what was sent more than once. killed: the names of replicas. queue: the device's file. ask: how
    many pictures are asked for over HTTP.
    """
    settings = settings_of(rig)
    checks.holds("every replica is ready again", lambda: eventually(lambda: are_ready(rig), "ready"))
    check_processes(rig, checks, killed)
    numbered = end_device(rig, checks, queue)
    checks.holds(
        "no group has a message left, in any topic",
        lambda: eventually(lambda: not any(rig.lags().values()), "all offsets committed"),
    )
    check_readings(rig, checks, numbered)
    check_rows(rig, checks, accepted)
    check_found(rig, checks, accepted)
    check_outcomes(rig, checks, accepted)
    check_topics(rig, checks, accepted)
    check_reconciled(rig, checks, repeated)
    check_objects(rig, checks, accepted, S3ObjectStore.from_settings(settings))
    chosen = sorted(accepted)
    if ask < len(chosen):
        chosen = chance.sample(chosen, ask)
    check_http(rig, checks, chosen, settings)


def settings_of(rig: Rig) -> Settings:
    """Those of a service of this mesh."""
    dsn = {"postgres_dsn": rig.stack.endpoints.postgres_dsn}
    return Settings.model_validate(rig.settings.model_dump() | dsn)


def are_ready(rig: Rig) -> bool:
    return all(why_not_ready(replica.url) is None for replica in rig.mesh.replicas)


def check_processes(rig: Rig, checks: Checks, killed: Sequence[str]) -> None:
    kills = Counter(killed)
    wrong = [
        f"{replica.name} was killed {kills[replica.name]} times and started again {replica.restarts} times"
        for replica in rig.mesh.replicas
        if replica.restarts != kills[replica.name]
    ]
    checks.add("no process ended but those that were killed, and each was started again", wrong, len(killed))


def end_device(rig: Rig, checks: Checks, queue: Path) -> dict[str, int]:
    """Ends the device and sends what its queue still holds; how many readings it numbered, by sensor."""
    (device,) = rig.replicas_of("edge-publisher")
    device.ask_to_stop()
    checks.add("the device ends by itself", [] if device.stop(_STOP_SECONDS) else [device.name], "SIGTERM")
    with forwarding(queue, [KafkaSink(KafkaPublisher(rig.settings))]) as rest:
        checks.holds(
            "the device's queue is empty",
            lambda: eventually(lambda: rest.health()["waiting"] == {"kafka": 0}, "readings sent"),
        )
    with closing(sqlite3.connect(queue)) as connection:
        return dict(connection.execute("SELECT sensor, seq FROM sources ORDER BY sensor"))


def check_readings(rig: Rig, checks: Checks, numbered: Mapping[str, int]) -> None:
    rows = rig.query(
        "SELECT sensor, count(*), count(DISTINCT seq), min(seq), max(seq) "
        "FROM sensor_readings GROUP BY sensor"
    )
    stored = {sensor: tuple(counts) for sensor, *counts in rows}
    wrong = [
        f"{sensor}: rows, numbers, first and last {stored.get(sensor)}, of {numbered.get(sensor)} readings"
        for sensor in numbered.keys() | stored.keys()
        if stored.get(sensor) != (last := numbered.get(sensor, 0), last, 1, last)
    ]
    checks.add(
        "every reading that the device numbered is one row: 1 to n without a hole or a double",
        wrong,
        numbered,
    )


def check_rows(rig: Rig, checks: Checks, accepted: Mapping[str, Uploaded]) -> None:
    """images, image_features and predictions."""
    images = rig.query("SELECT image_id, sha256, published_at IS NULL FROM images")
    digests = {image_id: uploaded.sha256 for image_id, uploaded in accepted.items()}
    checks.add(
        "every accepted upload has one row of images with its digest, and there is no other",
        unlike(digests, [(image_id, sha256) for image_id, sha256, _ in images]),
        len(images),
    )
    checks.add(
        "the outbox is empty", [image_id for image_id, _, waits in images if waits], f"of {len(images)} rows"
    )
    features = rig.query("SELECT image_id, cardinality(descriptors) FROM image_features")
    checks.add(
        "every picture has one row of features", unlike(dict.fromkeys(accepted, 20), features), len(features)
    )
    answers: dict[str, list[str]] = {image_id: [] for image_id in accepted}
    predictions = rig.query("SELECT image_id, classifier FROM predictions ORDER BY classifier")
    for image_id, classifier in predictions:
        answers.setdefault(image_id, []).append(classifier)
    three = sorted(worker.removeprefix("classifier-") for worker in CLASSIFIERS)
    checks.add(
        "every picture has a prediction of each classifier",
        unlike(dict.fromkeys(accepted, three), list(answers.items())),
        len(predictions),
    )


def check_found(rig: Rig, checks: Checks, accepted: Mapping[str, Uploaded]) -> None:
    """What was drawn in pictures was read in them."""
    read: dict[str, list[str]] = defaultdict(list)
    for image_id, content in rig.query("SELECT image_id, content FROM qr_codes"):
        read[image_id].append(content)
    drawn = {image_id: sorted(each.codes) for image_id, each in accepted.items() if each.codes}
    checks.add(
        "every QR code was read as it was drawn, once, and no other",
        unlike(drawn, [(image_id, sorted(contents)) for image_id, contents in read.items()]),
        f"{sum(map(len, read.values()))} codes in {len(read)} pictures",
    )
    texts = rig.query("SELECT image_id, text FROM ocr_documents")
    written = {image_id: each.text for image_id, each in accepted.items() if each.text}
    checks.add("every text was read as it was written, and no other", unlike(written, texts), len(texts))


def check_outcomes(rig: Rig, checks: Checks, accepted: Mapping[str, Uploaded]) -> None:
    expected = {
        f"{image_id} {worker}": "skipped" if worker == "ocr-worker" and uploaded.text is None else "done"
        for image_id, uploaded in accepted.items()
        for worker in WORKERS
    }
    rows = rig.query("SELECT image_id, worker, state, attempt FROM task_outcomes")
    states = Counter(state for _, _, state, _ in rows)
    checks.add(
        "every worker came to one end with every picture: done, or skipped where it was not asked",
        unlike(expected, [(f"{image_id} {worker}", state) for image_id, worker, state, _ in rows]),
        dict(states),
    )
    again = sum(attempt > 1 for _, _, _, attempt in rows)
    print(f"  {again} of them by a further attempt: a process died that had them in hand", flush=True)


def check_topics(rig: Rig, checks: Checks, accepted: Mapping[str, Uploaded]) -> None:
    """What Kafka itself has: nothing that nobody uploaded, and nobody's upload missing."""
    for topic in (IMAGES, FEATURES):
        keys = keys_of(rig.settings, topic.name)
        wrong = [f"{image_id} is not there" for image_id in accepted.keys() - keys.keys()]
        wrong += [f"{image_id} was never uploaded" for image_id in keys.keys() - accepted.keys()]
        messages = sum(keys.values())
        checks.add(
            f"{topic.name} has a message for every picture and for no other",
            wrong,
            f"{messages} messages, {messages - len(keys)} of them sent again",
        )
    letters = Counter({topic: sum(keys_of(rig.settings, topic).values()) for topic in dead_letter_topics()})
    checks.add("no dead letter", [f"{topic}: {count}" for topic, count in letters.items() if count], 0)
    readings = sum(keys_of(rig.settings, SENSORS.name).values())
    print(f"  {readings} messages in {SENSORS.name}", flush=True)


def keys_of(settings: Settings, topic: str) -> Counter[str]:
    """The keys of all messages of a topic, with how often each is there."""
    places = partition_offsets(settings, topic, "nobody")
    left = sum(place.high - place.low for place in places)
    keys: Counter[str] = Counter()
    config = client_config(settings) | {"group.id": "nobody", "enable.auto.commit": False}
    with closing(Consumer(config)) as consumer:
        consumer.assign([TopicPartition(topic, place.partition, place.low) for place in places])
        while left:
            messages = consumer.consume(min(left, 1000), 30)
            assert messages, f"{left} messages of {topic} do not come"
            for message in messages:
                assert message.error() is None, message.error()
                keys[(message.key() or b"").decode()] += 1
            left -= len(messages)
    return keys


def check_reconciled(rig: Rig, checks: Checks, repeated: Collection[str]) -> None:
    """An upload that was cut off between its object and its row leaves an object that no row speaks of. The
    upload that followed has one of its own.
    """
    findings = reconcile(rig, "--look-only")
    left = [path for finding, path in findings if finding == "object without a row"]
    wrong = [f"{finding}: {name}" for finding, name in findings if finding != "object without a row"]
    for path in left:
        named = _OBJECT_OF_UPLOAD.search(path)
        if named is None or named["image_id"] not in repeated:
            wrong.append(f"an object of no upload that was cut off: {path}")
    checks.add(
        "mesh reconcile --look-only finds nothing but objects of uploads that were cut off and sent again",
        wrong,
        f"{len(left)} objects, {len(repeated)} uploads",
    )
    reconcile(rig, "--delete-orphans")
    findings = reconcile(rig, "--look-only")
    checks.add(
        "after mesh reconcile --delete-orphans it finds nothing",
        [f"{finding}: {name}" for finding, name in findings],
        0,
    )


def reconcile(rig: Rig, option: str) -> list[tuple[str, str]]:
    """What it finds, and of what."""
    command = [sys.executable, "-m", "visionmesh.cli", "reconcile", option, "--older-than", "0", "--json"]
    found = subprocess.run(
        [*command, "--directory", str(rig.directory)], capture_output=True, text=True, check=False
    )
    lines = [json.loads(line) for line in found.stdout.splitlines()]
    findings = [(line["finding"], line["name"]) for line in lines]
    # 1 is the status when objects are lost, which the lines say.
    if found.returncode and not findings:
        findings.append(("mesh reconcile failed", found.stderr[-500:]))
    return findings


def check_objects(rig: Rig, checks: Checks, accepted: Mapping[str, Uploaded], store: S3ObjectStore) -> None:
    paths = dict(rig.query("SELECT image_id, minio_path FROM images"))

    def stored(image_id: str) -> tuple[str, str]:
        try:
            data = store.get(paths[image_id], max_bytes=_PICTURE_BYTES)
        except Exception as error:
            return image_id, repr(error)
        return image_id, hashlib.sha256(data).hexdigest()

    with ThreadPoolExecutor(_PARALLEL) as threads:
        found = list(threads.map(stored, paths))
    digests = {image_id: uploaded.sha256 for image_id, uploaded in accepted.items()}
    checks.add("every picture's object has the bytes that were uploaded", unlike(digests, found), len(found))
    listed = [each.minio_path for each in store.objects()]
    checks.add(
        "every object is that of one row",
        unlike(dict.fromkeys(paths.values(), 1), list(Counter(listed).items())),
        len(listed),
    )


def check_http(rig: Rig, checks: Checks, chosen: Sequence[str], settings: Settings) -> None:
    """What clients are told, held to what the rows say; and the answer that the classifiers agree on."""
    urls = [replica.url for replica in rig.replicas_of("ingest-api")]
    fitted = fitted_consensus(settings)
    with (
        Database.from_settings(settings) as database,
        httpx.Client(timeout=60) as client,
        ThreadPoolExecutor(_PARALLEL) as threads,
    ):
        images = PostgresImages(database)

        def wrong_with(place: int) -> list[str]:
            image_id = chosen[place]
            rows = images.results(image_id)
            answer = client.get(f"{urls[place % len(urls)]}/results/{image_id}")
            if answer.status_code != 200 or rows is None:
                return [f"{image_id}: {answer.status_code}, rows: {rows is not None}"]
            told = answer.json()
            wrong = []
            if told != msgspec.json.decode(
                msgspec.json.encode(results_answer(image_id, rows, CLASSIFIERS, fitted))
            ):
                wrong.append(f"{image_id}: not as its rows")
            if told["status"] != "done" or not told["consensus"] or not told["consensus"]["complete"]:
                wrong.append(f"{image_id}: {told['status']}, consensus {told['consensus']}")
            return wrong

        wrong = [each for found in threads.map(wrong_with, range(len(chosen))) for each in found]
    checks.add(
        "GET /results says what the rows say, done, with the consensus of all three classifiers",
        wrong,
        f"{len(chosen)} pictures",
    )


def unlike(expected: Mapping[str, Any], found: Iterable[tuple[Any, ...]]) -> list[str]:
    """Where they differ. found: pairs, of which every expected key must have exactly one."""
    pairs = [(str(key), value) for key, value in found]
    there = dict(pairs)
    wrong = [f"{key} is missing" for key in expected.keys() - there.keys()]
    wrong += [
        f"{key} is there {count} times" for key, count in Counter(k for k, _ in pairs).items() if count > 1
    ]
    wrong += [
        f"{key}: {value!r}, not {expected.get(key)!r}"
        for key, value in there.items()
        if key not in expected or value != expected[key]
    ]
    return wrong
