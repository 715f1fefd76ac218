# One file for every service of the mesh: a shared base, one dependency target per lock, thin service targets.
# docker-compose.yml chooses one by `target:`; alone: docker build --target classifier .

FROM python:3.11-slim-bookworm AS base
# PYTHONDONTWRITEBYTECODE: the file system is read-only at run time; bytecode is compiled below, at build time.
# ORT_DISABLE_TELEMETRY: ONNX Runtime's wheels report to their maker unless told not to.
ENV PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    PYTHONPATH=/app/shared:/app/services:/app/packages \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_ROOT_USER_ACTION=ignore \
    ORT_DISABLE_TELEMETRY=1 \
    MESH_HTTP_HOST=0.0.0.0
WORKDIR /app
# A number, not a name, so that Kubernetes can check that it is not root.
ARG MESH_UID=10001

# Where packages are put together: what it takes for that is no part of an image.
FROM base AS installer
RUN --mount=type=cache,target=/var/cache/apt,sharing=locked \
    --mount=type=cache,target=/var/lib/apt/lists,sharing=locked \
    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends binutils
COPY --chmod=755 deploy/images/install-packages /usr/local/bin/


FROM installer AS ingest-api-dependencies
RUN --mount=type=cache,target=/root/.cache/pip \
    --mount=type=bind,source=requirements/ingest-api.txt,target=/tmp/requirements.txt \
    install-packages -r /tmp/requirements.txt

FROM installer AS feature-extractor-dependencies
RUN --mount=type=cache,target=/root/.cache/pip \
    --mount=type=bind,source=requirements/feature-extractor.txt,target=/tmp/requirements.txt \
    install-packages -r /tmp/requirements.txt

FROM installer AS qr-decoder-dependencies
RUN --mount=type=cache,target=/root/.cache/pip \
    --mount=type=bind,source=requirements/qr-decoder.txt,target=/tmp/requirements.txt \
    install-packages -r /tmp/requirements.txt

# Several gigabytes: torch as PyPI has it brings CUDA along, and does not start without. --no-deps, because the
# lock leaves out what would overwrite the OpenCV without windows.
FROM base AS qr-decoder-qreader-dependencies
RUN --mount=type=cache,target=/var/cache/apt,sharing=locked \
    --mount=type=cache,target=/var/lib/apt/lists,sharing=locked \
    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends libzbar0
RUN --mount=type=cache,target=/root/.cache/pip \
    --mount=type=bind,source=requirements/qreader.txt,target=/tmp/requirements.txt \
    pip install --no-deps --require-hashes --only-binary :all: -r /tmp/requirements.txt

FROM installer AS ocr-worker-dependencies
RUN --mount=type=cache,target=/root/.cache/pip \
    --mount=type=bind,source=requirements/ocr-worker.txt,target=/tmp/requirements.txt \
    install-packages -r /tmp/requirements.txt

# PaddleOCR beside the service's own packages. Its OpenCV wants the libraries of a screen; --no-deps, because the
# lock leaves out the one without windows, which would overwrite it.
FROM base AS ocr-worker-paddleocr-dependencies
RUN --mount=type=cache,target=/var/cache/apt,sharing=locked \
    --mount=type=cache,target=/var/lib/apt/lists,sharing=locked \
    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
    libgl1 libglib2.0-0 libgomp1
RUN --mount=type=cache,target=/root/.cache/pip \
    --mount=type=bind,source=requirements/paddleocr.txt,target=/tmp/requirements.txt \
    pip install --no-deps --require-hashes -r /tmp/requirements.txt

FROM installer AS edge-publisher-dependencies
RUN --mount=type=cache,target=/root/.cache/pip \
    --mount=type=bind,source=requirements/edge-publisher.txt,target=/tmp/requirements.txt \
    install-packages -r /tmp/requirements.txt

FROM installer AS sensor-sink-dependencies
RUN --mount=type=cache,target=/root/.cache/pip \
    --mount=type=bind,source=requirements/sensor-sink.txt,target=/tmp/requirements.txt \
    install-packages -r /tmp/requirements.txt

FROM installer AS classifier-dependencies
RUN --mount=type=cache,target=/root/.cache/pip \
    --mount=type=bind,source=requirements/classifier.txt,target=/tmp/requirements.txt \
    install-packages -r /tmp/requirements.txt


# Also runs the one-shot `migrate` and `topics`, hence the migrations and the picture. models.toml has the
# weights of the consensus.
FROM base AS ingest-api
COPY --from=ingest-api-dependencies /app/packages /app/packages
COPY deploy/postgres /app/deploy/postgres
COPY samples/cat.jpg /app/samples/
COPY models/models.toml /app/models/
COPY shared /app/shared
COPY services/ingest_api /app/services/ingest_api
RUN python -m compileall -q --invalidation-mode unchecked-hash /app/shared /app/services
USER ${MESH_UID}:${MESH_UID}
ENV MESH_HTTP_PORT=8001
EXPOSE 8001
CMD ["python", "-m", "ingest_api"]

FROM base AS feature-extractor
COPY --from=feature-extractor-dependencies /app/packages /app/packages
COPY shared /app/shared
COPY services/feature_extractor /app/services/feature_extractor
COPY models/models.toml models/extractor*.onnx /app/models/
RUN python -m compileall -q --invalidation-mode unchecked-hash /app/shared /app/services
USER ${MESH_UID}:${MESH_UID}
ENV MESH_HTTP_PORT=8006
EXPOSE 8006
CMD ["python", "-m", "feature_extractor"]

# Locators are copied when there are any; the cascade reads without.
FROM base AS qr-decoder
# pyzbar finds zbar at run time; what apt fetched for it is not part of the image.
RUN --mount=type=cache,target=/var/cache/apt,sharing=locked \
    --mount=type=cache,target=/var/lib/apt/lists,sharing=locked \
    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends libzbar0
COPY --from=qr-decoder-dependencies /app/packages /app/packages
COPY shared /app/shared
COPY services/qr_decoder /app/services/qr_decoder
COPY models/models.toml models/qr*.onnx /app/models/
RUN python -m compileall -q --invalidation-mode unchecked-hash /app/shared /app/services
USER ${MESH_UID}:${MESH_UID}
# A threshold that is set stays: glibc would raise its own with the first large picture, and keep what that took.
# One heap is enough for threads that wait most of the time, for Kafka and for the child that reads.
ENV MESH_HTTP_PORT=8008 \
    MALLOC_ARENA_MAX=1 \
    MALLOC_TRIM_THRESHOLD_=131072
EXPOSE 8008
CMD ["python", "-m", "qr_decoder"]

# The same service on the qreader package (docker-compose.qreader.yml). Weights are no part of the image: they
# are downloaded into a volume, or put there.
FROM qr-decoder-qreader-dependencies AS qr-decoder-qreader
COPY shared /app/shared
COPY services/qr_decoder /app/services/qr_decoder
RUN python -m compileall -q --invalidation-mode unchecked-hash /app/shared /app/services \
    && install -d -o ${MESH_UID} -g ${MESH_UID} /app/weights
USER ${MESH_UID}:${MESH_UID}
ENV MESH_HTTP_PORT=8008 \
    MESH_QR_ENGINE=qreader \
    MESH_QR_READER_WEIGHTS=/app/weights \
    YOLO_CONFIG_DIR=/tmp \
    MPLCONFIGDIR=/tmp \
    MALLOC_TRIM_THRESHOLD_=131072
EXPOSE 8008
CMD ["python", "-m", "qr_decoder"]

# The networks come with the package rapidocr; only what they are read with is the mesh's own.
FROM base AS ocr-worker
COPY --from=ocr-worker-dependencies /app/packages /app/packages
COPY shared /app/shared
COPY services/ocr_worker /app/services/ocr_worker
RUN python -m compileall -q --invalidation-mode unchecked-hash /app/shared /app/services
USER ${MESH_UID}:${MESH_UID}
ENV MESH_HTTP_PORT=8500 \
    MALLOC_TRIM_THRESHOLD_=131072
EXPOSE 8500
CMD ["python", "-m", "ocr_worker"]

# The same service on PaddleOCR (docker-compose.paddleocr.yml). Models are no part of the image: they lie in a
# folder that is mounted.
FROM ocr-worker-paddleocr-dependencies AS ocr-worker-paddleocr
COPY shared /app/shared
COPY services/ocr_worker /app/services/ocr_worker
RUN python -m compileall -q --invalidation-mode unchecked-hash /app/shared /app/services
USER ${MESH_UID}:${MESH_UID}
ENV MESH_HTTP_PORT=8500 \
    MESH_OCR_ENGINE=paddleocr \
    MESH_OCR_PADDLE_MODELS=/app/models \
    HOME=/tmp \
    PADDLE_PDX_CACHE_HOME=/tmp/paddlex \
    PADDLE_PDX_DISABLE_MODEL_SOURCE_CHECK=True \
    MALLOC_TRIM_THRESHOLD_=131072
EXPOSE 8500
CMD ["python", "-m", "ocr_worker"]

# The queue is in a volume, which takes over the owner of the folder that it is mounted on.
FROM base AS edge-publisher
# Simulated Bluetooth runs on a message bus of its own; dbus-daemon serves only who has a name.
RUN --mount=type=cache,target=/var/cache/apt,sharing=locked \
    --mount=type=cache,target=/var/lib/apt/lists,sharing=locked \
    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends dbus-daemon \
    && useradd --uid ${MESH_UID} --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin visionmesh
COPY --from=edge-publisher-dependencies /app/packages /app/packages
COPY shared /app/shared
COPY services/edge_publisher /app/services/edge_publisher
RUN python -m compileall -q --invalidation-mode unchecked-hash /app/shared /app/services \
    && install -d -o ${MESH_UID} -g ${MESH_UID} /app/edge
USER ${MESH_UID}:${MESH_UID}
ENV MESH_HTTP_PORT=8000 \
    EDGE_QUEUE_PATH=/app/edge/queue.db
EXPOSE 8000
CMD ["python", "-m", "edge_publisher"]

FROM base AS sensor-sink
COPY --from=sensor-sink-dependencies /app/packages /app/packages
COPY shared /app/shared
COPY services/sensor_sink /app/services/sensor_sink
RUN python -m compileall -q --invalidation-mode unchecked-hash /app/shared /app/services
USER ${MESH_UID}:${MESH_UID}
ENV MESH_HTTP_PORT=8007
EXPOSE 8007
CMD ["python", "-m", "sensor_sink"]

# One image for every classifier: MESH_CLASSIFIER says which one a container is.
FROM base AS classifier
COPY --from=classifier-dependencies /app/packages /app/packages
COPY shared /app/shared
COPY services/classifier /app/services/classifier
COPY models/models.toml models/classifier*.onnx /app/models/
RUN python -m compileall -q --invalidation-mode unchecked-hash /app/shared /app/services
USER ${MESH_UID}:${MESH_UID}
EXPOSE 8003 8004 8005
CMD ["python", "-m", "classifier"]


# The registry of models, of the profile of that name: a server of others, built here because its published
# image reaches neither Postgres nor S3.
FROM base AS mlflow-dependencies
RUN --mount=type=cache,target=/root/.cache/pip \
    --mount=type=bind,source=requirements/mlflow.txt,target=/tmp/requirements.txt \
    pip install --require-hashes --only-binary :all: -r /tmp/requirements.txt

FROM mlflow-dependencies AS mlflow
COPY deploy/mlflow /app/deploy/mlflow
USER ${MESH_UID}:${MESH_UID}
EXPOSE 5000
CMD ["mlflow", "server", "--host", "0.0.0.0", "--port", "5000", "--workers", "1", "--serve-artifacts"]


# PaddleX's server of its pipeline OCR (docker-compose.paddlex.yml). Its OpenCV wants the libraries of a screen.
# Models are no part of the image: they lie in a folder that is mounted.
FROM base AS paddlex-dependencies
RUN --mount=type=cache,target=/var/cache/apt,sharing=locked \
    --mount=type=cache,target=/var/lib/apt/lists,sharing=locked \
    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
    libgl1 libglib2.0-0 libgomp1
RUN --mount=type=cache,target=/root/.cache/pip \
    --mount=type=bind,source=requirements/paddlex.txt,target=/tmp/requirements.txt \
    pip install --require-hashes -r /tmp/requirements.txt

FROM paddlex-dependencies AS paddlex
COPY deploy/paddlex/OCR.yaml /app/paddlex/
WORKDIR /app/paddlex
USER ${MESH_UID}:${MESH_UID}
ENV HOME=/tmp \
    PADDLE_PDX_CACHE_HOME=/tmp/paddlex \
    PADDLE_PDX_DISABLE_MODEL_SOURCE_CHECK=True
EXPOSE 8080
CMD ["paddlex", "--serve", "--pipeline", "OCR.yaml", "--host", "0.0.0.0", "--port", "8080", "--device", "cpu"]
