"""Sensors and the machines that they hang on."""

from __future__ import annotations

from grafana_foundation_sdk.models.dashboard import Dashboard

from boards import panels
from boards.panels import Panel, Query, gained, graph, number, quantiles, rate


def board() -> Dashboard:
    return panels.board(
        "visionmesh-edge",
        "visionmesh edge",
        "Sensors: what is measured, what is stored, and who has fallen silent.",
        [
            ("Readings", _readings()),
            ("Queue of the devices", _queue()),
            ("Devices and camera", _devices()),
        ],
    )


def _readings() -> list[Panel]:
    # As the alert SensorSilent has it: a sink that begins anew knows of none, and they are no less silent.
    newest = "max by (device_id, sensor) (last_over_time(mesh_sensor_last_reading_timestamp_seconds[1d]))"
    since = f"time() - {newest}"
    return [
        number(
            "Sensors",
            "Sensors of which a reading was stored, and that were known within the last day.",
            "short",
            f"count({newest})",
        ),
        number(
            "Silent",
            "Sensors whose newest reading is more than two minutes old.",
            "short",
            f"count({since} > 120)",
            counts=True,
            bad_from=1,
        ),
        number(
            "Measured",
            "Readings that edge-publishers numbered and wrote to their queues, each second.",
            "ops",
            rate("mesh_edge_readings_total"),
            decimals=1,
        ),
        number(
            "Stored",
            "Readings that were stored in Postgres, each second.",
            "ops",
            rate("mesh_sensor_readings_total"),
            decimals=1,
        ),
        number(
            "Lost, 1 h",
            "Readings that an edge-publisher had to drop within the last hour.",
            "short",
            gained("mesh_edge_readings_dropped_total"),
            counts=True,
            bad_from=1,
        ),
        number(
            "Days dropped, 1 h",
            "Days of readings that were dropped within the last hour, their retention over.",
            "short",
            gained("mesh_sensor_partitions_dropped_total"),
            counts=True,
        ),
        graph(
            "Measured",
            "Readings that were numbered and written to the queue, by sensor.",
            "ops",
            Query(rate("mesh_edge_readings_total", by="sensor"), "{{sensor}}"),
        ),
        graph(
            "Stored",
            "Readings that were stored in Postgres, by kind of sensor.",
            "ops",
            Query(rate("mesh_sensor_readings_total", by="sensor"), "{{sensor}}"),
        ),
        graph(
            "Since the newest reading",
            "How old the newest reading of each sensor is, by the device's clock.",
            "s",
            Query(since, "{{device_id}} {{sensor}}"),
        ),
    ]


def _queue() -> list[Panel]:
    return [
        graph(
            "Acknowledged",
            "Readings that a broker acknowledged, by sink.",
            "ops",
            Query(rate("mesh_edge_published_total", by="sink"), "{{sink}}"),
            width=6,
        ),
        graph(
            "Waiting",
            "Readings in the queue that a sink has yet to acknowledge; it grows while a broker is away.",
            "short",
            Query("sum by (instance, sink) (mesh_edge_waiting_readings)", "{{sink}} {{instance}}"),
            width=6,
        ),
        graph(
            "Lost, 1 h",
            "Readings that were dropped within the last hour, by reason.",
            "short",
            Query(gained("mesh_edge_readings_dropped_total", by="reason"), "{{reason}}"),
            width=6,
        ),
        graph(
            "Queue",
            "Bytes of the queue's file that hold something.",
            "bytes",
            Query("max by (instance) (mesh_edge_queue_bytes)", "{{instance}}"),
            width=6,
        ),
        graph(
            "Commit",
            "Time to write a batch of readings to the queue.",
            "s",
            *quantiles("mesh_edge_commit_seconds"),
            width=12,
        ),
        graph(
            "Live clients",
            "Clients of the live readings, and those that were cut off within the last hour for being "
            "too slow.",
            "short",
            Query("sum(mesh_edge_live_clients)", "clients"),
            Query(gained("mesh_edge_live_clients_dropped_total"), "cut off, 1 h"),
            width=12,
        ),
    ]


def _devices() -> list[Panel]:
    return [
        graph(
            "Connected",
            "1 while a sensor is connected.",
            "short",
            Query("max by (instance, sensor) (mesh_edge_device_connected)", "{{sensor}} {{instance}}"),
            width=6,
            at_most=1,
        ),
        graph(
            "Failures, 1 h",
            "Failures of a sensor within the last hour.",
            "short",
            Query("sum by (sensor) (increase(mesh_edge_device_errors[1h]))", "{{sensor}}"),
            width=6,
        ),
        graph(
            "Camera threads",
            "Threads of the camera's pool, those that are busy, and calls that wait for one.",
            "short",
            Query("max by (instance, state) (mesh_edge_camera_threads)", "{{state}} {{instance}}"),
            width=6,
        ),
        graph(
            "Camera requests",
            "Pictures each second, by how they were had: captured, from the cache, or shared with "
            "others who asked.",
            "ops",
            Query("sum by (result) (rate(mesh_edge_camera_requests[5m]))", "{{result}}"),
            width=6,
        ),
    ]
