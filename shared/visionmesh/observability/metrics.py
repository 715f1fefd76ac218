"""The closed list of metrics. A metric that is not here does not exist.

Names follow Prometheus: base units, `_total` for counters. Labels are few and bounded: never an image id.
`docs/metrics.md` is made of this file (`python -m visionmesh.observability.reference`).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from prometheus_client import REGISTRY, Counter, Gauge, Histogram, Info

from visionmesh.observability.process import ProcessFamily

# From a no-op step to a picture that meets its deadline; the seeds' 15, 25, 45 and 50 ms are boundaries.
_SECONDS: Final = (
    0.001, 0.0025, 0.005, 0.01, 0.015, 0.025, 0.045, 0.05, 0.1, 0.15, 0.25, 0.5,
    1.0, 2.5, 5.0, 10.0, 30.0, 60.0,
)  # fmt: skip
# What waits in a queue, or reads a document, may take longer: an alert begins at 120, a document has 300.
_LONG: Final = (*_SECONDS, 120.0, 300.0, 900.0, 3600.0)
_BATCH: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
# The upper half is where answers are, and where a threshold would be set.
_CONFIDENCE: Final = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)


def from_zero(counter: Counter, values: Iterable[str], *before: str) -> None:
    """Shows a counter at 0 for each value of its last label, so that what comes first is seen to come.

    before: the values of the labels before that.
    """
    for value in values:
        counter.labels(*before, value)


def announce_model(name: str, version: str, family: str) -> None:
    """Tells by what this replica answers. Of one name the newest counts."""
    MODEL.labels(name).info({"version": version, "family": family})


# Worker
CONSUMED: Final = Counter("mesh_messages_consumed_total", "Messages taken from a topic.", ["worker", "topic"])
FINISHED: Final = Counter(
    "mesh_messages_finished_total", "Messages brought to an end, by outcome (done, skipped, failed).",
    ["worker", "outcome"],
)  # fmt: skip
PUBLISHED: Final = Counter(
    "mesh_messages_published_total",
    "Messages that came of others and were put on a topic, without dead letters.",
    ["worker", "topic"],
)  # fmt: skip
DEAD_LETTERS: Final = Counter(
    "mesh_dead_letters_total", "Messages put on a dead-letter topic, by reason.", ["worker", "code"]
)
RETRIES: Final = Counter(
    "mesh_retries_total", "Waits for a server that was away, by server.", ["worker", "server"]
)
IN_FLIGHT: Final = Gauge("mesh_messages_in_flight", "Messages taken and not yet committed.", ["worker"])
PARTITIONS: Final = Gauge("mesh_partitions_assigned", "Partitions this replica owns.", ["worker"])
BATCH_SIZE: Final = Histogram(
    "mesh_batch_size", "Messages handed to the step at once.", ["worker"], buckets=_BATCH
)
STEP_SECONDS: Final = Histogram(
    "mesh_step_seconds", "Time in the step, per batch.", ["worker"], buckets=_LONG
)
STORE_SECONDS: Final = Histogram(
    "mesh_store_seconds", "Time to write a batch to Postgres.", ["worker"], buckets=_SECONDS
)
PUBLISH_SECONDS: Final = Histogram(
    "mesh_publish_seconds", "Time until the broker acknowledged a batch.", ["worker"], buckets=_SECONDS
)
AGE_SECONDS: Final = Histogram(
    "mesh_message_age_seconds", "Age of a batch's oldest message when its results were stored and published.",
    ["worker"], buckets=_LONG,
)  # fmt: skip
END_TO_END_SECONDS: Final = Histogram(
    "mesh_end_to_end_seconds",
    "From the upload of a picture until the worker's result was stored, of pictures whose id tells the time "
    "(those that the mesh gave).",
    ["worker"], buckets=_LONG,
)  # fmt: skip
PREDICTIONS: Final = Counter(
    "mesh_predictions_total", "Pictures of the stream that were classified, by label.",
    ["classifier", "label"],
)  # fmt: skip
CONFIDENCE: Final = Histogram(
    "mesh_prediction_confidence", "Confidence of the answers to the stream, 0 to 1.",
    ["classifier"], buckets=_CONFIDENCE,
)  # fmt: skip

# Groups, as every replica of ingest-api sees them: the same values from each
GROUP_LAG: Final = Gauge(
    "mesh_group_lag_messages", "Messages that a consumer group has not finished.", ["group", "topic"]
)
GROUP_LAG_SECONDS: Final = Gauge(
    "mesh_group_lag_seconds",
    "Age of the oldest message that a consumer group has not finished; 0 without one.",
    ["group", "topic"],
)  # fmt: skip

# Ingest
UPLOADS: Final = Counter(
    "mesh_uploads_total", "Uploaded files, by outcome (accepted, duplicate, rejected, failed).", ["outcome"]
)
UPLOAD_OUTCOMES: Final = ("accepted", "duplicate", "rejected", "failed")
UPLOAD_BYTES: Final = Counter("mesh_upload_bytes_total", "Bytes of accepted pictures.")
UPLOAD_SECONDS: Final = Histogram("mesh_upload_seconds", "Time to take one uploaded file.", buckets=_SECONDS)
OUTBOX_PENDING: Final = Gauge("mesh_outbox_pending", "Uploads stored and not yet published.")

# Every service
HTTP_REQUESTS: Final = Counter("mesh_http_requests_total", "HTTP requests.", ["service", "route", "status"])
HTTP_SECONDS: Final = Histogram(
    "mesh_http_seconds", "Time to answer an HTTP request.", ["service", "route"], buckets=_LONG
)
READY: Final = Gauge(
    "mesh_check_ready", "1 while what a check of /ready asks for answers, 0 while it does not.", ["check"]
)
OBJECT_STORE_SECONDS: Final = Histogram(
    "mesh_object_store_seconds", "Time of one object-store call.", ["operation"], buckets=_SECONDS
)
CACHE_REQUESTS: Final = Counter(
    "mesh_cache_requests_total",
    "Keys asked of the cache, by result (hit, miss, error: no answer, or a value that was not taken).",
    ["result"],
)
CACHE_SECONDS: Final = Histogram(
    "mesh_cache_seconds", "Time of one call to the cache, by operation (get, put).",
    ["operation"], buckets=_SECONDS,
)  # fmt: skip
INFERENCES: Final = Counter(
    "mesh_inferences_total",
    "Pictures the extractor ran a model on, by the model's role (answer, shadow).",
    ["role"],
)
QR_CODES: Final = Counter("mesh_qr_codes_total", "QR codes that were read.", ["level", "decoder"])
QR_SECONDS: Final = Histogram(
    "mesh_qr_seconds",
    "Time to look for codes in a decoded picture, by result (found, none, truncated: none in the budget).",
    ["result"], buckets=_SECONDS,
)  # fmt: skip
OCR_PAGES: Final = Counter("mesh_ocr_pages_total", "Pages whose text was looked for.")
OCR_DOCUMENTS: Final = Counter(
    "mesh_ocr_documents_total", "Documents that came to an end, by result (read, rejected, failed).",
    ["result"],
)  # fmt: skip
OCR_STAGE_SECONDS: Final = Histogram(
    "mesh_ocr_stage_seconds", "Time of a page in each stage of its reading.", ["stage"], buckets=_LONG
)
OCR_ENGINES: Final = Gauge("mesh_ocr_engines", "Engines of this process.")
OCR_ENGINES_BUSY: Final = Gauge("mesh_ocr_engines_busy", "Engines that read a page at this moment.")
OCR_ENGINE_BYTES: Final = Gauge(
    "mesh_ocr_engine_resident_bytes", "What an engine's process held after its last page.", ["engine"]
)
OCR_WAITING: Final = Gauge("mesh_ocr_waiting", "Callers over HTTP whose document waits for its turn.")
OCR_QUEUE: Final = Gauge("mesh_ocr_queue", "Messages that the group ocr-worker has not finished.")
ISOLATED_RESTARTS: Final = Counter(
    "mesh_isolated_restarts_total",
    "Child processes that ended early, by reason (crash, deadline, grown: held too much memory).",
    ["reason"],
)
ISOLATED_ENDS: Final = ("crash", "deadline", "grown")
MODEL: Final = Info(
    "mesh_model",
    "What a replica answers with, by `version` and `family` besides: the model of a feature-extractor "
    "or classifier, each locator that a qr-decoder's profile asks, the engine of an ocr-worker.",
    ["name"],
)
MODEL_REFUSALS: Final = Counter(
    "mesh_model_refusals_total", "Versions in the registry that were not taken, for a fault of theirs.",
    ["model"],
)  # fmt: skip
SHADOW_FAILURES: Final = Counter(
    "mesh_shadow_failures_total",
    "Batches that the model in shadow could not answer, or whose rows could not be stored.",
    ["worker"],
)

# Sensors
SENSOR_READINGS: Final = Counter(
    "mesh_sensor_readings_total", "Readings that were stored, by kind of sensor.", ["sensor"]
)
SENSOR_LAST_READING: Final = Gauge(
    "mesh_sensor_last_reading_timestamp_seconds",
    "When the newest reading of a device's sensor was made, by the device's clock but not after it came, in "
    "UNIX seconds. Of the first 1000 that a sink meets; the largest of all sinks counts.",
    ["device_id", "sensor"],
)  # fmt: skip
SENSOR_PARTITIONS_DROPPED: Final = Counter(
    "mesh_sensor_partitions_dropped_total", "Days of readings that were dropped when retention ended."
)

# Edge
EDGE_READINGS: Final = Counter(
    "mesh_edge_readings_total", "Readings that were numbered and written to the queue.", ["sensor"]
)
EDGE_DROPPED: Final = Counter(
    "mesh_edge_readings_dropped_total",
    "Readings that were lost, by reason (memory: before they had a number; bound, disk_full: the oldest of "
    "the queue; refused: no broker takes them).",
    ["reason"],
)
EDGE_LOSSES: Final = ("memory", "bound", "disk_full", "refused")
EDGE_PUBLISHED: Final = Counter(
    "mesh_edge_published_total", "Readings that a broker acknowledged, by sink (kafka, mqtt).", ["sink"]
)
EDGE_WAITING: Final = Gauge(
    "mesh_edge_waiting_readings", "Readings in the queue that a sink has yet to acknowledge.", ["sink"]
)
EDGE_QUEUE_BYTES: Final = Gauge("mesh_edge_queue_bytes", "Bytes of the queue's file that hold something.")
EDGE_COMMIT_SECONDS: Final = Histogram(
    "mesh_edge_commit_seconds", "Time to write a batch of readings to the queue.", buckets=_SECONDS
)
EDGE_DEVICE_UP: Final = Gauge("mesh_edge_device_connected", "1 while a sensor is connected.", ["sensor"])
EDGE_DEVICE_ERRORS: Final = Gauge(
    "mesh_edge_device_errors", "Failures of a sensor since the process started.", ["sensor"]
)
EDGE_CAMERA_THREADS: Final = Gauge(
    "mesh_edge_camera_threads",
    "Threads of the camera's pool by state (size, busy), and calls that wait for one (waiting).",
    ["state"],
)
EDGE_CAMERA_REQUESTS: Final = Gauge(
    "mesh_edge_camera_requests",
    "Pictures since the process started, by how they were had (captures, cache_hits, shared: with others who "
    "asked while it was taken).",
    ["result"],
)
EDGE_LIVE_CLIENTS: Final = Gauge("mesh_edge_live_clients", "Clients of the live readings.")
EDGE_LIVE_DROPPED: Final = Counter(
    "mesh_edge_live_clients_dropped_total", "Clients of the live readings that were too slow."
)

# The process and its children, read when Prometheus asks
REGISTRY.register(ProcessFamily())

# What else may be asked of Prometheus: of its own and of the servers around the services.
FOREIGN: Final = {
    "ALERTS": "1 for each alert of `deploy/prometheus/alerts.yml` that is pending or fires.",
    "up": "1 while Prometheus reaches a replica.",
    "process_start_time_seconds": "When a process started, in UNIX seconds; another value is a restart.",
    "minio_cluster_capacity_usable_free_bytes": "What the object store has left of its disk.",
    "minio_cluster_capacity_usable_total_bytes": "What the object store has of its disk.",
}
