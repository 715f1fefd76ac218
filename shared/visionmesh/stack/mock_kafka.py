"""The Kafka cluster inside librdkafka as a server: `python -m visionmesh.stack.mock_kafka --topic NAME:12`.

The mock cluster is meant for librdkafka's own tests, yet any client may connect to it: groups (classic and
KIP-848), commits, headers, compression and watermarks work. It lives in memory, transactions only pretend,
and each partition keeps its newest 5 MB and forgets the rest without a word, which the guard below reports.
The functions used are those of `rdkafka_mock.h`, called on the library that the confluent-kafka wheel brings.
"""

from __future__ import annotations

import argparse
import ctypes
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path

import confluent_kafka

from visionmesh.stack.ports import LOOPBACK
from visionmesh.stack.process import StackError
from visionmesh.stack.retention import Guard

RD_KAFKA_PRODUCER = 0
BROKER_ID = 1
LISTEN_BACKLOG = 128

# The takeover goal after kill -9 is 8 s, and a survivor learns of a change at its next heartbeat.
GROUP_SESSION_MS = 6_000
GROUP_HEARTBEAT_MS = 500

GUARD_INTERVAL_SECONDS = 5.0

# Nothing below a warning; that it knows no other brokers is a notice, and meant to be so.
LOG_LEVEL_WARNING = 4


class MockCluster:
    """One broker of librdkafka's mock cluster, listening on a port of our choice.

    port: None leaves the choice to the kernel.
    """

    def __init__(self, port: int | None = None) -> None:
        self._library = _librdkafka()
        error = ctypes.create_string_buffer(512)
        settings = self._library.rd_kafka_conf_new()
        self._library.rd_kafka_conf_set(
            settings, b"log_level", str(LOG_LEVEL_WARNING).encode(), error, len(error)
        )
        handle = self._library.rd_kafka_new(RD_KAFKA_PRODUCER, settings, error, len(error))
        if not handle:
            raise StackError(f"librdkafka did not start: {error.value.decode()}")
        self._cluster = self._library.rd_kafka_mock_cluster_new(handle, 1)
        if not self._cluster:
            raise StackError("librdkafka did not start its mock cluster")
        self.bootstrap = self._library.rd_kafka_mock_cluster_bootstraps(self._cluster).decode()
        if port is not None:
            self._listen_on(port)
        self._library.rd_kafka_mock_group_initial_rebalance_delay_ms(self._cluster, 0)
        self._library.rd_kafka_mock_set_group_consumer_session_timeout_ms(self._cluster, GROUP_SESSION_MS)
        self._library.rd_kafka_mock_set_group_consumer_heartbeat_interval_ms(
            self._cluster, GROUP_HEARTBEAT_MS
        )

    def create_topic(self, name: str, partitions: int) -> None:
        """Raises StackError if the cluster refuses, for one because the topic is there."""
        code = self._library.rd_kafka_mock_topic_create(self._cluster, name.encode(), partitions, 1)
        if code != 0:
            raise StackError(f"the mock cluster refused topic {name} with {partitions} partitions: {code}")

    def _listen_on(self, port: int) -> None:
        # The mock always listens where the kernel tells it to, so a restart would change the address. Its
        # listening descriptor is replaced by one bound to our port; creating a topic wakes its poll loop.
        descriptor = _listening_descriptor(int(self.bootstrap.rpartition(":")[2]))
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((LOOPBACK, port))
            listener.listen(LISTEN_BACKLOG)
            os.dup2(listener.fileno(), descriptor, inheritable=False)
        self._library.rd_kafka_mock_broker_set_host_port(self._cluster, BROKER_ID, LOOPBACK.encode(), port)
        self.bootstrap = f"{LOOPBACK}:{port}"


def _librdkafka() -> ctypes.CDLL:
    package = Path(confluent_kafka.__file__).parent
    # Where the repair tools for Linux and macOS wheels put the libraries they bundle.
    found = [*package.parent.glob("confluent_kafka.libs/librdkafka*"), *package.glob(".dylibs/librdkafka*")]
    if not found:
        raise StackError(f"no librdkafka beside {package}: install the confluent-kafka wheel, not its source")
    library = ctypes.CDLL(str(found[0]))
    pointer, text, number = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int
    signatures: dict[str, tuple[object, list[object]]] = {
        "rd_kafka_conf_new": (pointer, []),
        "rd_kafka_conf_set": (number, [pointer, text, text, text, ctypes.c_size_t]),
        "rd_kafka_new": (pointer, [number, pointer, text, ctypes.c_size_t]),
        "rd_kafka_mock_cluster_new": (pointer, [pointer, number]),
        "rd_kafka_mock_cluster_bootstraps": (text, [pointer]),
        "rd_kafka_mock_broker_set_host_port": (None, [pointer, ctypes.c_int32, text, number]),
        "rd_kafka_mock_topic_create": (number, [pointer, text, number, number]),
        "rd_kafka_mock_group_initial_rebalance_delay_ms": (None, [pointer, ctypes.c_int32]),
        "rd_kafka_mock_set_group_consumer_session_timeout_ms": (None, [pointer, number]),
        "rd_kafka_mock_set_group_consumer_heartbeat_interval_ms": (None, [pointer, number]),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


def _listening_descriptor(port: int) -> int:
    """The descriptor of this process that listens on the port. Raises StackError if none does."""
    for name in os.listdir("/dev/fd"):
        descriptor = int(name)
        try:
            probe = socket.socket(fileno=os.dup(descriptor))
        except OSError:
            # Not a socket, or the descriptor of the listing itself.
            continue
        with probe:
            if (
                probe.family == socket.AF_INET
                and probe.getsockname() == (LOOPBACK, port)
                and probe.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
            ):
                return descriptor
    raise StackError(f"the mock cluster does not listen on port {port} as it says")


def _topic(argument: str) -> tuple[str, int]:
    name, _, partitions = argument.rpartition(":")
    if not name or not partitions.isdigit() or int(partitions) < 1:
        raise argparse.ArgumentTypeError(f"{argument!r} is not NAME:PARTITIONS")
    return name, int(partitions)


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m visionmesh.stack.mock_kafka", description=__doc__)
    parser.add_argument("--port", type=int, help="port on 127.0.0.1; any free one when absent")
    parser.add_argument(
        "--topic", type=_topic, action="append", default=[], metavar="NAME:PARTITIONS", help="may be repeated"
    )
    options = parser.parse_args(arguments)
    logging.basicConfig(
        level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stdout
    )
    serve(options.port, options.topic)


def serve(port: int | None, topics: Iterable[tuple[str, int]]) -> None:
    """Run the cluster and its guard until SIGTERM or SIGINT."""
    stopped = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopped.set())
    cluster = MockCluster(port)
    for name, partitions in topics:
        cluster.create_topic(name, partitions)
    sys.stdout.write(f"{cluster.bootstrap}\n")
    sys.stdout.flush()
    guard = Guard(cluster.bootstrap)
    while not stopped.wait(GUARD_INTERVAL_SECONDS):
        guard.look()
    # Nothing is kept, so there is nothing to close in order.
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1:])
