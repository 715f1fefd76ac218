"""How a server is asked whether it answers: as its clients will, not by an open port."""

from __future__ import annotations

import socket

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient
from minio import Minio
from minio.error import MinioException
from urllib3 import PoolManager, Retry, Timeout
from urllib3.exceptions import HTTPError

from visionmesh.stack.ports import LOOPBACK
from visionmesh.stack.process import NotReadyError

PROBE_TIMEOUT_SECONDS = 2.0


def probe_port(port: int) -> None:
    """Raises NotReadyError while nothing listens; cheap, so that no client is built in vain."""
    try:
        socket.create_connection((LOOPBACK, port), timeout=PROBE_TIMEOUT_SECONDS).close()
    except OSError as error:
        raise NotReadyError(str(error)) from error


def probe_kafka(port: int) -> None:
    """Raises NotReadyError until the broker gives metadata in which it stands itself."""
    probe_port(port)
    admin = AdminClient(
        {
            "bootstrap.servers": f"{LOOPBACK}:{port}",
            # A broker that is not up yet is what we are here to find out, nothing to log.
            "log_level": 0,
        }
    )
    try:
        metadata = admin.list_topics(timeout=PROBE_TIMEOUT_SECONDS)
    except KafkaException as error:
        raise NotReadyError(str(error)) from error
    if not metadata.brokers:
        raise NotReadyError("the cluster has no broker yet")


def probe_s3(port: int, access_key: str, secret_key: str) -> None:
    """Raises NotReadyError until the buckets can be listed."""
    probe_port(port)
    client = Minio(
        f"{LOOPBACK}:{port}",
        access_key=access_key,
        secret_key=secret_key,
        secure=False,
        http_client=PoolManager(timeout=Timeout(PROBE_TIMEOUT_SECONDS), retries=Retry(False)),
    )
    try:
        client.list_buckets()
    except (MinioException, HTTPError) as error:
        raise NotReadyError(str(error)) from error
