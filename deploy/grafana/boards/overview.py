"""Is it healthy, where is the bottleneck, what does scaling do?"""

from __future__ import annotations

from grafana_foundation_sdk.models.dashboard import Dashboard

from boards import panels
from boards.panels import (
    Panel,
    Query,
    current,
    gained,
    graph,
    mean,
    number,
    quantile,
    quantiles,
    rate,
)

_ACCEPTED = 'outcome="accepted"'
_PEOPLE = 'route!~"/metrics|/ready|/health"'


def board() -> Dashboard:
    return panels.board(
        "visionmesh-overview",
        "visionmesh overview",
        "The mesh at a glance: whether it is healthy, where it is held up, and what another replica changes.",
        [
            ("Is it healthy?", _health()),
            ("Where is the bottleneck?", _bottleneck()),
            ("What does scaling do?", _scaling()),
            ("Uploads and requests", _uploads()),
            ("Servers", _servers()),
        ],
    )


def _health() -> list[Panel]:
    return [
        number(
            "Alerts",
            "Alerts that fire at this moment; deploy/runbooks says what to do about each.",
            "short",
            'count(ALERTS{alertstate="firing"})',
            counts=True,
            bad_from=1,
        ),
        number(
            "Replicas away",
            "Replicas that Prometheus knows and does not reach.",
            "short",
            "count(up == 0)",
            counts=True,
            bad_from=1,
        ),
        number(
            "Checks that fail",
            "Checks of /ready that find a server away or a model not loaded.",
            "short",
            "count(mesh_check_ready == 0)",
            counts=True,
            bad_from=1,
        ),
        number(
            "Oldest message",
            "Age of the oldest message that any consumer group has not finished.",
            "s",
            "max(mesh_group_lag_seconds)",
            bad_from=60,
            decimals=1,
        ),
        number(
            "Dead letters, 1 h",
            "Messages that no worker could process, put aside within the last hour.",
            "short",
            gained("mesh_dead_letters_total"),
            counts=True,
            bad_from=1,
        ),
        number(
            "Waiting in the outbox",
            "Uploads that are stored and not yet announced on Kafka.",
            "short",
            "max(mesh_outbox_pending)",
            bad_from=100,
        ),
        number(
            "Uploads",
            "Pictures that were accepted, each second.",
            "ops",
            rate("mesh_uploads_total", _ACCEPTED),
            counts=True,
            decimals=1,
        ),
        number(
            "Messages finished",
            "Messages that all workers brought to an end, each second.",
            "mps",
            rate("mesh_messages_finished_total"),
            counts=True,
            decimals=1,
        ),
        number(
            "Upload to result, p50",
            "From the upload of a picture until a worker's result is stored, of all workers.",
            "s",
            quantile(0.5, "mesh_end_to_end_seconds", window="5m"),
        ),
        number(
            "Upload to result, p95",
            "As beside: one picture in twenty takes longer.",
            "s",
            quantile(0.95, "mesh_end_to_end_seconds", window="5m"),
        ),
        number(
            "Processor",
            "Cores that all services use together, their children included.",
            "short",
            rate("mesh_process_cpu_seconds_total"),
            decimals=2,
        ),
        number(
            "Memory",
            "What all services hold together, their children included.",
            "bytes",
            "sum(mesh_process_resident_bytes)",
        ),
        current(
            "Alerts that fire",
            "By name, how bad each is, and what it is about; deploy/runbooks has a page for each.",
            'ALERTS{alertstate="firing"}',
            columns=("alertname", "severity", "job"),
            nothing="No alert fires.",
        ),
    ]


def _bottleneck() -> list[Panel]:
    return [
        graph(
            "Lag",
            "Messages that each consumer group has not finished, whether or not a member of it lives. The "
            "group whose lag grows is the one to scale.",
            "short",
            Query("max by (group) (mesh_group_lag_messages)", "{{group}}"),
        ),
        graph(
            "Lag in seconds",
            "Age of the oldest message that a group has not finished: how late its results are.",
            "s",
            Query("max by (group) (mesh_group_lag_seconds)", "{{group}}"),
        ),
        graph(
            "Busy",
            "The part of its time that a replica spends in its step and in storing. Near 1 it is full.",
            "percentunit",
            Query(
                f"({rate('mesh_step_seconds_sum', by='worker')}"
                f" + {rate('mesh_store_seconds_sum', by='worker')})"
                " / count by (worker) (mesh_partitions_assigned)",
                "{{worker}}",
            ),
            at_most=1,
        ),
        graph(
            "Upload to result, p50",
            "From the upload of a picture until each worker's result is stored; half "
            "of the pictures take longer.",
            "s",
            Query(quantile(0.5, "mesh_end_to_end_seconds", by="worker"), "{{worker}}"),
        ),
        graph(
            "Upload to result, p95",
            "As beside; one picture in twenty takes longer.",
            "s",
            Query(quantile(0.95, "mesh_end_to_end_seconds", by="worker"), "{{worker}}"),
        ),
        graph(
            "Upload to result, p99",
            "As beside; one picture in a hundred takes longer.",
            "s",
            Query(quantile(0.99, "mesh_end_to_end_seconds", by="worker"), "{{worker}}"),
        ),
    ]


def _scaling() -> list[Panel]:
    finished = rate("mesh_messages_finished_total", by="worker")
    replicas = "count by (worker) (mesh_partitions_assigned)"
    return [
        graph(
            "Replicas",
            "Replicas of each worker. More than 12 have no partition to work on.",
            "short",
            Query(replicas, "{{worker}}"),
        ),
        graph(
            "Messages finished",
            "Messages that each worker brought to an end.",
            "mps",
            Query(finished, "{{worker}}"),
        ),
        graph(
            "Finished by a replica",
            "What one replica brings to an end. Where it falls as replicas are added, something else is "
            "the limit.",
            "mps",
            Query(f"{finished} / {replicas}", "{{worker}}"),
        ),
        graph(
            "Processor",
            "Cores that each service uses, all replicas and their children together.",
            "short",
            Query(rate("mesh_process_cpu_seconds_total", by="job"), "{{job}}"),
            width=12,
            stacked=True,
        ),
        graph(
            "Memory",
            "What each service holds, all replicas and their children together.",
            "bytes",
            Query("sum by (job) (mesh_process_resident_bytes)", "{{job}}"),
            width=12,
            stacked=True,
        ),
    ]


def _uploads() -> list[Panel]:
    return [
        graph(
            "Uploads",
            "Uploaded files by outcome: accepted, duplicate, rejected, failed.",
            "ops",
            Query(rate("mesh_uploads_total", by="outcome"), "{{outcome}}"),
            width=6,
        ),
        graph(
            "Bytes",
            "Bytes of accepted pictures.",
            "Bps",
            Query(rate("mesh_upload_bytes_total"), "accepted"),
            width=6,
        ),
        graph(
            "Upload latency",
            "From the first byte of a file until it is stored and has its row.",
            "s",
            *quantiles("mesh_upload_seconds"),
            width=6,
        ),
        graph(
            "Outbox",
            "Uploads that are stored and not yet announced on Kafka; it grows while Kafka is away.",
            "short",
            Query("max(mesh_outbox_pending)", "pending"),
            width=6,
        ),
        graph(
            "Requests",
            "HTTP requests by service and status, without probes and scrapes.",
            "reqps",
            Query(rate("mesh_http_requests_total", _PEOPLE, by="service, status"), "{{service}} {{status}}"),
        ),
        graph(
            "Request latency, p50",
            "Time to answer, without probes and scrapes; half of the requests take longer.",
            "s",
            Query(quantile(0.5, "mesh_http_seconds", _PEOPLE, by="service"), "{{service}}"),
        ),
        graph(
            "Request latency, p99",
            "As beside; one request in a hundred takes longer.",
            "s",
            Query(quantile(0.99, "mesh_http_seconds", _PEOPLE, by="service"), "{{service}}"),
        ),
    ]


def _servers() -> list[Panel]:
    return [
        graph(
            "Object store, p95",
            "Time of a call to the object store, by operation.",
            "s",
            Query(quantile(0.95, "mesh_object_store_seconds", by="operation"), "{{operation}}"),
            width=6,
        ),
        graph(
            "Postgres, mean",
            "Time to write a batch of results, by worker.",
            "s",
            Query(mean("mesh_store_seconds", by="worker"), "{{worker}}"),
            width=6,
        ),
        graph(
            "Cache, p95",
            "Time of a call to the cache of descriptors, by operation.",
            "s",
            Query(quantile(0.95, "mesh_cache_seconds", by="operation"), "{{operation}}"),
            width=6,
        ),
        graph(
            "Disk",
            "What is left of the disks: of the services' machine, and of the object store.",
            "percentunit",
            Query("min by (job) (mesh_disk_free_bytes / mesh_disk_size_bytes)", "{{job}}"),
            Query(
                "min(minio_cluster_capacity_usable_free_bytes / minio_cluster_capacity_usable_total_bytes)",
                "object store",
            ),
            width=6,
            at_most=1,
        ),
    ]
