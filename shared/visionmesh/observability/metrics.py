"""The closed list of metrics. A metric that is not here does not exist.

Names follow Prometheus: base units, `_total` for counters. Labels are few and bounded: never an image id.
"""

from __future__ import annotations

from typing import Final

from prometheus_client import Counter, Gauge, Histogram, Info

# From a no-op step to a picture that meets its deadline; the seeds' 15, 25, 45 and 50 ms are boundaries.
_SECONDS: Final = (
    0.001, 0.0025, 0.005, 0.01, 0.015, 0.025, 0.045, 0.05, 0.1, 0.15, 0.25, 0.5,
    1.0, 2.5, 5.0, 10.0, 30.0, 60.0,
)  # fmt: skip
_BATCH: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)

# Worker
CONSUMED: Final = Counter("mesh_messages_consumed_total", "Messages taken from a topic.", ["worker", "topic"])
FINISHED: Final = Counter(
    "mesh_messages_finished_total", "Messages brought to an end, by outcome (done, skipped, failed).",
    ["worker", "outcome"],
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
    "mesh_step_seconds", "Time in the step, per batch.", ["worker"], buckets=_SECONDS
)
STORE_SECONDS: Final = Histogram(
    "mesh_store_seconds", "Time to write a batch to Postgres.", ["worker"], buckets=_SECONDS
)
PUBLISH_SECONDS: Final = Histogram(
    "mesh_publish_seconds", "Time until the broker acknowledged a batch.", ["worker"], buckets=_SECONDS
)
AGE_SECONDS: Final = Histogram(
    "mesh_message_age_seconds", "Age of a batch's oldest message when its results were stored and published.",
    ["worker"], buckets=_SECONDS,
)  # fmt: skip

# Ingest
UPLOADS: Final = Counter(
    "mesh_uploads_total", "Uploaded files, by outcome (accepted, duplicate, rejected, failed).", ["outcome"]
)
UPLOAD_BYTES: Final = Counter("mesh_upload_bytes_total", "Bytes of accepted pictures.")
UPLOAD_SECONDS: Final = Histogram("mesh_upload_seconds", "Time to take one uploaded file.", buckets=_SECONDS)
OUTBOX_PENDING: Final = Gauge("mesh_outbox_pending", "Uploads stored and not yet published.")

# Every service
HTTP_REQUESTS: Final = Counter("mesh_http_requests_total", "HTTP requests.", ["service", "route", "status"])
HTTP_SECONDS: Final = Histogram(
    "mesh_http_seconds", "Time to answer an HTTP request.", ["service", "route"], buckets=_SECONDS
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
    "mesh_ocr_stage_seconds", "Time of a page in each stage of its reading.", ["stage"], buckets=_SECONDS
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
MODEL: Final = Info("mesh_model", "The model this process answers with.")
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
