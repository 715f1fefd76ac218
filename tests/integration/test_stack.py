"""Both stacks do the same: serve real clients, come back after kill -9, leave no process behind."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import psutil
import psycopg
import pytest
import valkey
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic
from minio import Minio

from visionmesh.settings import Settings
from visionmesh.stack import EmbeddedStack, Stack, StackKind, open_stack

TOPIC = "stack-test"
BUCKET = "stack-test"
DEADLINE_SECONDS = 60.0

EMBEDDED = pytest.param("embedded", id="embedded")
NATIVE = pytest.param("native", id="native", marks=pytest.mark.native)
KINDS = [EMBEDDED, NATIVE]


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> StackKind:
    return request.param


@pytest.fixture(scope="module")
def stack(kind: StackKind, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with open_stack(kind, tmp_path_factory.mktemp(kind), topics=[TOPIC]) as running:
        if kind == "native":
            admin = AdminClient({"bootstrap.servers": running.endpoints.kafka_bootstrap})
            admin.create_topics([NewTopic(TOPIC, 12, 1)])[TOPIC].result(DEADLINE_SECONDS)
        s3_client(running).make_bucket(BUCKET)
        yield running


def s3_client(stack: Stack) -> Minio:
    endpoints = stack.endpoints
    return Minio(
        endpoints.s3_endpoint,
        access_key=endpoints.s3_access_key,
        secret_key=endpoints.s3_secret_key,
        secure=False,
    )


def publish(stack: Stack, value: bytes, partition: int = 0) -> int:
    """Publish one record and return its offset."""
    offsets: list[int] = []
    producer = Producer({"bootstrap.servers": stack.endpoints.kafka_bootstrap, "log_level": 0})
    producer.produce(
        TOPIC, value, partition=partition, on_delivery=lambda error, message: offsets.append(message.offset())
    )
    assert producer.flush(DEADLINE_SECONDS) == 0
    return offsets[0]


def read_at(stack: Stack, offset: int, partition: int = 0) -> bytes | None:
    consumer = Consumer(
        {"bootstrap.servers": stack.endpoints.kafka_bootstrap, "group.id": "nobody", "log_level": 0}
    )
    consumer.assign([TopicPartition(TOPIC, partition, offset)])
    try:
        message = consumer.poll(DEADLINE_SECONDS)
        assert message is not None, f"no record at offset {offset}"
        assert message.error() is None
        return message.value()
    finally:
        consumer.close()


def eventually(holds: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while time.monotonic() < deadline:
        if holds():
            return True
        time.sleep(0.02)
    return holds()


def lives(process: psutil.Process) -> bool:
    # Whoever adopts an orphan reaps it when it pleases.
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def with_children(pids: list[int]) -> list[psutil.Process]:
    parents = [psutil.Process(pid) for pid in pids]
    return [*parents, *(child for parent in parents for child in parent.children(recursive=True))]


def test_the_settings_of_a_service_are_read_from_the_environment_handed_out(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in stack.endpoints.environment().items():
        monkeypatch.setenv(name, value)
    settings = Settings()
    assert settings.kafka_bootstrap == stack.endpoints.kafka_bootstrap
    assert settings.kafka_group_protocol == stack.endpoints.group_protocol
    assert settings.s3_endpoint == stack.endpoints.s3_endpoint
    assert settings.s3_secret_key.get_secret_value() == stack.endpoints.s3_secret_key
    assert settings.postgres_dsn.get_secret_value() == stack.endpoints.postgres_dsn
    assert settings.s3_secure is False
    assert settings.cache_url is not None
    assert settings.cache_url.get_secret_value() == stack.endpoints.cache_url


def test_secrets_are_not_shown(stack: Stack) -> None:
    shown = repr(stack.endpoints)
    assert stack.endpoints.s3_secret_key not in shown
    assert stack.endpoints.postgres_dsn not in shown
    assert stack.endpoints.cache_url not in shown


def test_a_topic_has_12_partitions_and_a_group_reads_what_was_published(stack: Stack) -> None:
    admin = AdminClient({"bootstrap.servers": stack.endpoints.kafka_bootstrap})
    assert len(admin.list_topics(TOPIC, timeout=DEADLINE_SECONDS).topics[TOPIC].partitions) == 12
    sent = {f"{uuid.uuid4()}".encode() for _ in range(50)}
    producer = Producer({"bootstrap.servers": stack.endpoints.kafka_bootstrap})
    for value in sent:
        producer.produce(TOPIC, value, key=value, headers={"traceparent": b"00-1-2-01"})
    assert producer.flush(DEADLINE_SECONDS) == 0

    group = f"group-{uuid.uuid4()}"
    consumer = Consumer(
        {
            "bootstrap.servers": stack.endpoints.kafka_bootstrap,
            "group.id": group,
            "group.protocol": stack.endpoints.group_protocol,
            "auto.offset.reset": "earliest",
            "enable.auto.commit": False,
            "fetch.wait.max.ms": stack.endpoints.kafka_fetch_wait_max_ms or 100,
        }
    )
    consumer.subscribe([TOPIC])
    received: set[bytes] = set()

    def all_arrived() -> bool:
        for message in consumer.consume(100, 0.2):
            assert message.error() is None
            if message.value() in sent:
                received.add(message.value() or b"")
                assert message.headers() == [("traceparent", b"00-1-2-01")]
        return received == sent

    try:
        assert eventually(all_arrived)
        committed = consumer.commit(asynchronous=False)
        assert committed
    finally:
        consumer.close()


@pytest.mark.parametrize("size", [0, 1_000, 12 * 1024 * 1024])
def test_an_object_comes_back_as_it_was_put(stack: Stack, size: int) -> None:
    body = os.urandom(size)
    client = s3_client(stack)
    client.put_object(BUCKET, f"raw/{size}.bin", io.BytesIO(body), size)
    response = client.get_object(BUCKET, f"raw/{size}.bin")
    try:
        assert response.read() == body
    finally:
        response.close()
        response.release_conn()


def test_sql_is_answered_in_utf8(stack: Stack) -> None:
    with psycopg.connect(stack.endpoints.postgres_dsn) as connection:
        row = connection.execute(
            "SELECT current_database(), current_setting('server_encoding'), %s::text", ["ñ€"]
        ).fetchone()
    assert row == ("mesh", "UTF8", "ñ€")


def test_postgres_wants_the_password(stack: Stack) -> None:
    wrong = stack.endpoints.postgres_dsn.replace("@", "x@")
    with pytest.raises(psycopg.OperationalError, match="password"):
        psycopg.connect(wrong)


def test_the_cache_wants_the_password_and_shows_it_to_nobody(stack: Stack) -> None:
    password, address = stack.endpoints.cache_url.removeprefix("redis://:").split("@")
    assert valkey.Valkey.from_url(stack.endpoints.cache_url).ping()
    with pytest.raises(valkey.AuthenticationError):
        valkey.Valkey.from_url(f"redis://{address}").ping()
    process = psutil.Process(stack.cache.pid)
    assert not [argument for argument in process.cmdline() if password in argument]
    holding = [path for path in stack.cache.log_path.parent.iterdir() if password in path.read_text()]
    assert [path.stat().st_mode & 0o077 for path in holding] == [0]


def test_the_cache_makes_room_and_keeps_nothing(stack: Stack) -> None:
    with closing(
        valkey.Valkey.from_url(stack.endpoints.cache_url, socket_timeout=DEADLINE_SECONDS)
    ) as client:
        assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "allkeys-lru"}
        value = bytes(1024 * 1024)
        for number in range(100):
            client.set(f"large-{number}", value)
        # Which ones gave way is chance: it picks the oldest of a few that it looks at.
        assert 0 < client.dbsize() < 100
    stack.cache.restart()
    with closing(
        valkey.Valkey.from_url(stack.endpoints.cache_url, socket_timeout=DEADLINE_SECONDS)
    ) as client:
        assert client.dbsize() == 0


def test_each_server_comes_back_at_its_address_after_kill(stack: Stack) -> None:
    for server in stack.servers:
        port, first = server.port, server.pid
        processes = with_children([first or 0])
        server.kill()
        assert not server.is_running
        assert server.pid is None
        assert not [process for process in processes if lives(process)]
        server.restart()
        assert server.is_running
        assert server.port == port
        assert server.pid != first
    publish(stack, b"back")


def test_postgres_keeps_its_rows_through_kill_in_the_middle_of_a_query(stack: Stack) -> None:
    with psycopg.connect(stack.endpoints.postgres_dsn) as connection:
        connection.execute("CREATE TABLE kept (id int)")
        connection.execute("INSERT INTO kept VALUES (7)")
    with closing(psycopg.connect(stack.endpoints.postgres_dsn)) as busy:
        # A backend at work does not notice that the postmaster is gone, and would keep the data directory.
        busy.pgconn.send_query(b"DO $$ BEGIN LOOP END LOOP; END $$")
        backend = psutil.Process(busy.info.backend_pid)
        stack.postgres.kill()
        assert not lives(backend)
    stack.postgres.restart()
    with psycopg.connect(stack.endpoints.postgres_dsn) as connection:
        assert connection.execute("SELECT id FROM kept").fetchall() == [(7,)]


def test_records_and_objects_survive_kill_on_the_native_stack(stack: Stack, kind: StackKind) -> None:
    if kind == "embedded":
        pytest.skip("Kafka and S3 are in memory there, which the documentation says")
    offset = publish(stack, b"kept", partition=5)
    s3_client(stack).put_object(BUCKET, "kept", io.BytesIO(b"kept"), 4)
    for server in (stack.kafka, stack.s3):
        server.kill()
        server.restart()
    assert read_at(stack, offset, partition=5) == b"kept"
    response = s3_client(stack).get_object(BUCKET, "kept")
    assert response.read() == b"kept"


def test_a_server_outlives_the_thread_that_started_it(stack: Stack) -> None:
    stack.postgres.stop()
    thread = threading.Thread(target=stack.postgres.start)
    thread.start()
    thread.join()
    with psycopg.connect(stack.endpoints.postgres_dsn) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)


@pytest.mark.parametrize("kind", KINDS)
def test_stopping_leaves_no_process_and_a_second_start_works(kind: StackKind, tmp_path: Path) -> None:
    stack = open_stack(kind, tmp_path)
    for _ in range(2):
        stack.start()
        processes = with_children([server.pid or 0 for server in stack.servers])
        stack.stop()
        assert not [process for process in processes if lives(process)]
        assert not any(server.is_running for server in stack.servers)


@pytest.mark.parametrize("kind", KINDS)
def test_servers_end_with_a_program_that_was_killed(kind: StackKind, tmp_path: Path) -> None:
    program = subprocess.Popen(
        [sys.executable, "-m", "visionmesh.stack", "run", "--stack", kind, "--directory", tmp_path, "--json"],
        stdout=subprocess.PIPE,
    )
    assert program.stdout is not None
    with program.stdout:
        told = json.loads(program.stdout.readline())
    processes = with_children(list(told["pids"].values()))
    assert len(processes) > 3
    program.kill()
    program.wait()
    assert eventually(lambda: not any(lives(process) for process in processes))


def test_the_program_prints_its_environment_and_stops_on_sigterm(tmp_path: Path) -> None:
    program = subprocess.Popen(
        [sys.executable, "-m", "visionmesh.stack", "run", "--directory", tmp_path], stdout=subprocess.PIPE
    )
    assert program.stdout is not None
    with program.stdout:
        lines = [program.stdout.readline().decode() for _ in range(8)]
        children = psutil.Process(program.pid).children(recursive=True)
        program.send_signal(signal.SIGTERM)
        assert program.wait(DEADLINE_SECONDS) == 0
    assert lines[0].startswith("MESH_KAFKA_BOOTSTRAP=127.0.0.1:")
    assert children
    assert not [child for child in children if lives(child)]


def test_the_embedded_broker_says_what_it_has_forgotten(tmp_path: Path) -> None:
    with open_stack("embedded", tmp_path, topics=[TOPIC]) as stack:
        assert isinstance(stack, EmbeddedStack)
        publish(stack, b"x")
        assert stack.forgotten() == {}
        megabyte = bytes(900_000)
        for _ in range(8):
            publish(stack, megabyte)
        dropped = stack.forgotten()
        assert 0 < dropped[TOPIC] < 9
        assert eventually(lambda: f"topic {TOPIC} has forgotten" in stack.kafka.log_path.read_text())
