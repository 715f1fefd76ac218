"""Every setting of every service, typed, in one place.

Each field is read from the environment variable `MESH_<FIELD IN CAPITALS>`, an empty one being none; its
description says what it does. A setting that does not parse stops the process at start with the name of
the variable and the reason.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import AliasChoices, Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

# `shared/visionmesh/settings.py` is two folders below the repository (or the image's /app).
ROOT = Path(__file__).resolve().parents[2]

# It becomes part of the names of a consumer group and of topics.
CLASSIFIER_PATTERN: Final = r"^[a-z0-9](?:[a-z0-9-]{0,38}[a-z0-9])?$"


class Settings(BaseSettings):
    """The settings of one process."""

    # A variable that is empty is one that is not set: compose has no other way to leave one out.
    # Lists are decoded below: pydantic-settings would not name the variable of one that is none.
    model_config = SettingsConfigDict(
        env_prefix="MESH_", extra="ignore", frozen=True, env_ignore_empty=True, enable_decoding=False
    )

    # Kafka
    kafka_bootstrap: str = Field(default="127.0.0.1:9092", description="host:port[,host:port] of the brokers")
    kafka_group_protocol: Literal["classic", "consumer"] = Field(
        default="classic", description="`consumer` is KIP-848, which the embedded stack needs"
    )
    kafka_session_timeout_ms: int = Field(
        default=6000, ge=1000, description="how long a silent member keeps its partitions (classic only)"
    )
    kafka_heartbeat_interval_ms: int = Field(
        default=500, ge=100, description="how soon a survivor learns of a change (classic only)"
    )
    kafka_fetch_wait_max_ms: int = Field(
        default=100, ge=1, description="how long a broker may hold an empty fetch"
    )
    kafka_message_timeout_ms: int = Field(
        default=30_000,
        ge=1000,
        description="after this a record that was not acknowledged is published again",
    )

    # Object store
    s3_endpoint: str = Field(default="127.0.0.1:9000", description="host:port of MinIO or any S3")
    s3_access_key: SecretStr = Field(default=SecretStr("minioadmin"), description="access key")
    s3_secret_key: SecretStr = Field(default=SecretStr("minioadmin"), description="secret key")
    s3_secure: bool = Field(default=False, description="TLS to the object store")
    s3_upload_bucket: str = Field(default="raw-images", description="where uploads go")
    s3_allowed_buckets: tuple[str, ...] = Field(
        default=("raw-images",), description="JSON list; a message that names another bucket is rejected"
    )

    # Database
    postgres_dsn: SecretStr = Field(
        default=SecretStr("postgresql://mesh:mesh@127.0.0.1:5432/mesh"), description="libpq URL"
    )
    postgres_pool_size: int = Field(default=4, ge=1, description="connections a process may open")

    # HTTP
    http_host: str = Field(default="127.0.0.1", description="address to listen on")
    http_port: int | None = Field(
        default=None, description="port to listen on; the service's own when absent"
    )
    upload_max_bytes: int = Field(default=64 * 1024 * 1024, ge=1, description="largest picture accepted")
    upload_max_files: int = Field(default=64, ge=1, description="most files in one upload request")

    # Worker
    worker_max_batch: int = Field(
        default=64,
        ge=1,
        description="most messages handed to a step at once; a classifier takes 256 unless this is set",
    )
    worker_max_wait_ms: int = Field(
        default=100, ge=1, description="longest wait for a first message in one poll"
    )
    worker_max_attempts: int = Field(
        default=3, ge=1, description="attempts before a message that kills its worker is a dead letter"
    )
    worker_shutdown_seconds: float = Field(
        default=10.0, gt=0, description="after SIGTERM, everything ends within this"
    )

    # Isolation of native code
    isolated_deadline_seconds: float = Field(default=5.0, gt=0, description="longest a picture may take")
    isolated_memory_bytes: int = Field(
        default=1024 * 1024 * 1024, gt=0, description="address space that decoding may add to a child process"
    )

    # Models
    models_dir: Path = Field(default=ROOT / "models", description="folder with models.toml")
    built_models_dir: Path = Field(
        default=Path.home() / ".local" / "share" / "visionmesh" / "models",
        description="folder of the models that `mesh models build` made; need not exist",
    )
    extractor_model: str = Field(
        default="extractor", description="name in models.toml, or an MLflow address: models:/name@alias"
    )
    classifier: str = Field(default="fast", description="which classifier this process is: fast, balanced, …")
    classifier_model: str | None = Field(
        default=None,
        description="name in models.toml, or an MLflow address; `classifier-<classifier>` when absent",
    )
    extra_classifiers: tuple[Annotated[str, Field(pattern=CLASSIFIER_PATTERN)], ...] = Field(
        default=(),
        description="JSON list; classifiers beside fast, balanced and accurate: results wait for them too, "
        "and they have dead letters of their own",
    )
    shadow_model: str | None = Field(
        default=None,
        description="a second model of an extractor or classifier, whose answers are stored apart",
    )
    mlflow_tracking_uri: str | None = Field(
        default=None,
        validation_alias="MLFLOW_TRACKING_URI",
        description="the MLflow server that models:/ addresses are asked of",
    )
    mlflow_tracking_username: str | None = Field(
        default=None,
        validation_alias="MLFLOW_TRACKING_USERNAME",
        description="user of an MLflow server that asks for one",
    )
    mlflow_tracking_password: SecretStr | None = Field(
        default=None, validation_alias="MLFLOW_TRACKING_PASSWORD", description="that user's password"
    )
    model_refresh_seconds: float = Field(
        default=10.0, gt=0, description="how often MLflow is asked whether an alias names another version"
    )

    # Descriptor cache
    cache_url: SecretStr | None = Field(
        default=None, description="redis://[:password@]host:port/db of Valkey; no cache when absent"
    )

    # QR codes
    qr_engine: Literal["cascade", "qreader"] = Field(
        default="cascade",
        description="`qreader` reads by the package of that name, where that is installed; no profile then",
    )
    qr_reader_size: Literal["n", "s", "m", "l"] = Field(
        default="s", description="the detector of the engine `qreader`: nano, small, medium or large"
    )
    qr_reader_weights: Path = Field(
        default=Path.home() / ".local" / "share" / "visionmesh" / "qrdet",
        description="folder with QReader's weights, qrdet-<size>.pt; those that are missing are downloaded",
    )
    qr_profile: str = Field(
        default="cascade",
        description="cascade, light, ultralight, onnx, hybrid, or names of levels with commas between",
    )
    qr_budget_ms: int = Field(
        default=2000, ge=1, description="after so long on a picture, what was read by then is its result"
    )
    qr_processes: int = Field(default=1, ge=1, description="pictures that are read at once")

    # Text
    ocr_engine: Literal["rapidocr", "paddleocr", "paddlex"] = Field(
        default="rapidocr",
        description="`paddleocr` runs PaddleOCR, where that is installed; `paddlex` asks the server of "
        "MESH_OCR_PADDLEX_URL",
    )
    ocr_language: str = Field(
        default="es+en", description="languages that are read, ISO 639-1 with plus signs between"
    )
    ocr_processes: int = Field(
        default=1,
        ge=1,
        validation_alias=AliasChoices("MESH_OCR_PROCESSES", "OCR_PROCESSES"),
        description="engines of this process, each in a process of its own: pages that are read at once",
    )
    ocr_threads: int | None = Field(
        default=None, ge=1, description="threads of each engine; the cores shared out when absent"
    )
    ocr_pages_per_engine: int = Field(
        default=1000, ge=1, description="after so many pages an engine's process is replaced by a new one"
    )
    ocr_engine_resident_bytes: int = Field(
        default=1024 * 1024 * 1024, gt=0, description="an engine that holds more after a page is replaced"
    )
    ocr_engine_memory_bytes: int = Field(
        default=3 * 1024 * 1024 * 1024, gt=0, description="address space that one page may take of an engine"
    )
    ocr_page_seconds: float = Field(default=60.0, gt=0, description="longest that one page may take")
    ocr_max_pages: int = Field(default=200, ge=1, description="most pages of one document")
    ocr_deadline_seconds: float = Field(
        default=300.0, gt=0, description="longest that a caller of POST /ocr waits, its turn included"
    )
    ocr_waiting_limit: int = Field(
        default=32, ge=0, description="callers of POST /ocr that may wait for their turn; others get 429"
    )
    ocr_queue_limit: int = Field(
        default=1000, ge=1, description="pictures that may wait for text; beyond, POST /process gives 429"
    )
    ocr_paddlex_url: str = Field(
        default="http://127.0.0.1:8080", description="where `paddlex --serve --pipeline OCR` listens"
    )
    ocr_paddle_models: Path | None = Field(
        default=None,
        description="folder of the models of the engine `paddleocr`; it downloads its own when absent",
    )
    ingest_url: str = Field(
        default="http://127.0.0.1:8001", description="where ingest-api listens, for POST /process"
    )

    # Observability
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="least level logged"
    )
    log_format: Literal["json", "console"] = Field(default="json", description="`console` is for people")

    @field_validator("s3_allowed_buckets", "extra_classifiers", mode="before")
    @classmethod
    def _decode(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        try:
            return json.loads(value)
        except ValueError as error:
            raise ValueError('has to be a list in JSON, for example ["night"]') from error


def variable_of(field: str) -> str:
    """The environment variable of a setting."""
    alias = Settings.model_fields[field].validation_alias
    # Those of MLflow have the names by which all its clients know them.
    if isinstance(alias, AliasChoices):
        return str(alias.choices[0])
    return str(alias or f"MESH_{field.upper()}")


@cache
def get_settings() -> Settings:
    """The settings of this process, read once. Raises ValidationError, see `problems`."""
    return Settings()


def problems(error: ValidationError) -> str:
    """What is wrong with the settings: a line for each, that begins with the name of the variable."""
    return "\n".join(f"{_named(str(each['loc'][0]))}: {each['msg']}" for each in error.errors())


def _named(place: str) -> str:
    """A setting is told by its field, or, where its variable is another, by that already."""
    return variable_of(place) if place in Settings.model_fields else place
