"""Every setting of every service, typed, in one place.

Each field is read from the environment variable `MESH_<FIELD IN CAPITALS>` (those of an edge-publisher from
`EDGE_<FIELD IN CAPITALS>`), an empty one being none; its description says what it does. A setting that does
not parse stops the process at start with the name of the variable and the reason.
"""

from __future__ import annotations

import json
import re
import socket
import sys
from functools import cache
from pathlib import Path
from typing import Annotated, Final, Literal
from urllib.parse import urlsplit

from pydantic import AliasChoices, Field, SecretStr, ValidationError, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from visionmesh.contracts import DEVICE_ID_PATTERN

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
    kafka_security_protocol: Literal["plaintext", "ssl", "sasl_plaintext", "sasl_ssl"] = Field(
        default="plaintext", description="whether the brokers speak TLS (ssl), ask who we are (sasl), or both"
    )
    kafka_sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = Field(
        default="SCRAM-SHA-512", description="how the password is shown to brokers that ask for one"
    )
    kafka_sasl_username: str | None = Field(default=None, description="user of such brokers")
    kafka_sasl_password: SecretStr | None = Field(default=None, description="that user's password")
    kafka_tls_ca: Path | None = Field(
        default=None, description="PEM of who issued the brokers' certificates; the system's when absent"
    )
    kafka_tls_certificate: Path | None = Field(
        default=None, description="PEM of our own certificate, for brokers that ask for one"
    )
    kafka_tls_key: Path | None = Field(default=None, description="PEM of its key")
    kafka_tls_key_password: SecretStr | None = Field(default=None, description="password of that file")
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
    s3_tls_ca: Path | None = Field(
        default=None, description="PEM of who issued its certificate; the usual ones when absent"
    )
    s3_upload_bucket: str = Field(default="raw-images", description="where uploads go")
    s3_allowed_buckets: tuple[str, ...] = Field(
        default=("raw-images",), description="JSON list; a message that names another bucket is rejected"
    )

    # Database
    postgres_dsn: SecretStr = Field(
        default=SecretStr("postgresql://mesh:mesh@127.0.0.1:5432/mesh"),
        description="libpq URL; TLS by its sslmode=verify-full&sslrootcert=FILE",
    )
    postgres_pool_size: int = Field(default=4, ge=1, description="connections a process may open")

    # HTTP
    http_host: str = Field(default="127.0.0.1", description="address to listen on")
    http_port: int | None = Field(
        default=None, description="port to listen on; the service's own when absent"
    )
    publish_address: str | None = Field(
        default=None,
        description="address on which others reach this service, where that is not the one it listens on",
    )
    behind_gateway: bool = Field(
        default=False,
        description="others reach it through a proxy alone, which says for whom it asks (X-Forwarded-For); "
        "who is not asked for is inside, and may see /ready and /metrics",
    )
    api_keys_file: Path | None = Field(
        default=None, description="file of the API keys that are let in, which `mesh keys` writes"
    )
    require_api_keys: bool = Field(
        default=False, description="ask for API keys on loopback as well, as it is done everywhere else"
    )
    api_key: SecretStr | None = Field(
        default=None, description="the key that this process, or `mesh upload`, shows to the mesh's services"
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
        default=1000,
        ge=1,
        description="pictures of all kinds that ocr-worker has not finished; beyond, POST /process gives 429",
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

    # Retention
    image_retention_days: int = Field(
        default=0,
        ge=0,
        description="pictures older than this are deleted, with all that was found in them; 0 keeps them",
    )

    # Sensors
    sensor_retention_days: int = Field(
        default=30, ge=0, description="full days of readings that are kept besides today; 0 keeps all"
    )

    # Observability
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="least level logged"
    )
    log_format: Literal["json", "console"] = Field(default="json", description="`console` is for people")
    otlp_endpoint: str | None = Field(
        default=None,
        description="http://host:4318 of an OpenTelemetry collector that gets the spans of sampled traces; "
        "none are sent when absent",
    )
    trace_sample_ratio: float = Field(
        default=0.1,
        ge=0,
        le=1,
        description="what part of the uploads and readings is traced from end to end, where spans are sent; "
        "a client's own traceparent decides for its request",
    )

    @field_validator("s3_allowed_buckets", "extra_classifiers", mode="before")
    @classmethod
    def _decode(cls, value: object) -> object:
        return _from_json(value)


class EdgeSettings(BaseSettings):
    """What an edge-publisher needs besides, read from `EDGE_<FIELD IN CAPITALS>`: it is about one device."""

    model_config = SettingsConfigDict(
        env_prefix="EDGE_", extra="ignore", frozen=True, env_ignore_empty=True, enable_decoding=False
    )

    device_id: str = Field(
        default_factory=lambda: re.sub(r"[^A-Za-z0-9._:\-]", "-", socket.gethostname())[:128] or "edge",
        # `$` is the very end to pydantic, which does not know Python's own mark of it.
        pattern=DEVICE_ID_PATTERN.replace(r"\Z", "$"),
        description="name of this machine in every reading; the host's name when absent",
    )
    queue_path: Path = Field(
        default=Path.home() / ".local" / "share" / "visionmesh" / "edge" / "queue.db",
        description="file of the readings that no broker has acknowledged yet; its folder is made at need",
    )
    queue_max_bytes: int = Field(
        default=512 * 1024 * 1024,
        ge=1024 * 1024,
        description="what that file may hold; beyond it the oldest readings are dropped, counted and told",
    )
    queue_sync: Literal["normal", "full"] = Field(
        default="normal",
        description="`full` writes through to the disk at every commit: a power cut loses no more than a "
        "kill, and an SD card wears faster",
    )
    commit_ms: int = Field(
        default=50, ge=1, le=10_000, description="how long readings are gathered before they are written"
    )
    max_concurrent: int = Field(
        default=10, ge=1, description="requests for sensors that are answered at once; others wait their turn"
    )
    mqtt_url: SecretStr | None = Field(
        default=None,
        description="mqtt://host:port, or mqtts://user:password@host:port, of a broker that gets them too",
    )
    mqtt_tls_ca: Path | None = Field(
        default=None, description="PEM of who issued that broker's certificate; the system's when absent"
    )
    mqtt_topic: str = Field(
        default="visionmesh", description="readings go to <this>/<device_id>/<sensor>, with QoS 1"
    )

    # Devices
    sensors: tuple[Literal["imx477", "mpu6050", "tfluna", "hcsr04"], ...] = Field(
        default=("imx477", "mpu6050", "tfluna", "hcsr04"),
        description="JSON list of the sensors that hang on this machine",
    )
    simulate: tuple[Literal["imx477", "mpu6050", "tfluna", "hcsr04"], ...] = Field(
        default=(),
        description="`all`, or a JSON list of sensors that are simulated, with their real drivers",
    )
    replay: Path | None = Field(
        default=None,
        description="folder; a sensor whose recording `<sensor>.jsonl` is in it is replayed, over and over",
    )
    tfluna_port: str = Field(default="/dev/serial0", description="serial port of the TF-Luna")
    tfluna_baud: int = Field(default=115200, gt=0, description="its bits a second")
    tfluna_hz: int = Field(default=100, ge=1, le=250, description="distances a second, which it is told")
    mpu6050_link: Literal["i2c", "serial"] = Field(
        default="i2c", description="`serial`: a microcontroller has the MPU-6050 and sends lines"
    )
    mpu6050_bus: int = Field(default=1, ge=0, description="number of its I2C bus: 1 is /dev/i2c-1")
    mpu6050_address: int = Field(default=0x68, ge=3, le=0x77, description="0x68, or 0x69 with AD0 high")
    mpu6050_hz: int = Field(default=100, ge=4, le=1000, description="measurements a second over I2C")
    mpu6050_accel_g: Literal[2, 4, 8, 16] = Field(default=2, description="full scale over I2C, g")
    mpu6050_gyro_dps: Literal[250, 500, 1000, 2000] = Field(
        default=250, description="full scale over I2C, deg/s"
    )
    mpu6050_offsets: tuple[float, float, float, float, float, float] = Field(
        default=(0.0, 0.0, 0.0, 0.0, 0.0, 0.0),
        description="JSON list of what it shows at rest besides gravity, subtracted: three in g, three in "
        "deg/s; `mesh edge calibrate` measures them",
    )
    mpu6050_port: str = Field(default="/dev/ttyACM0", description="serial port of the microcontroller")
    mpu6050_baud: int = Field(default=115200, gt=0, description="its bits a second")
    hcsr04_address: str | None = Field(
        default=None, description="Bluetooth address of the HC-SR04's microcontroller"
    )
    hcsr04_name: str | None = Field(
        default=None, description="its name; without either, the first that advertises the service"
    )
    hcsr04_service: str = Field(
        default="6e400001-b5a3-f393-e0a9-e50e24dcca9e", description="UUID of its UART service"
    )
    hcsr04_characteristic: str = Field(
        default="6e400003-b5a3-f393-e0a9-e50e24dcca9e", description="UUID of what it notifies by"
    )
    hcsr04_format: Literal["ascii", "uint16_mm"] = Field(
        default="ascii", description="lines of centimetres, or two bytes of millimetres, the low one first"
    )
    camera_source: str = Field(
        default="auto",
        description="picamera2, rpicam-still, /dev/video0, a file, an http:// address of a picture or a "
        "stream; auto takes the first of these that this machine has",
    )
    camera_width: int = Field(default=1014, ge=16, le=4056, description="pixels of a picture")
    camera_height: int = Field(default=760, ge=16, le=3040, description="pixels of a picture")
    camera_workers: int = Field(
        default=2, ge=1, le=4, description="threads that capture and look at pictures; 4 with care on a Pi"
    )
    camera_cache_seconds: float = Field(
        default=0.5, ge=0, description="who asks within this gets the picture before"
    )
    simulated_capture_seconds: float = Field(
        default=0.1, ge=0, description="how long a picture of a simulated camera takes"
    )
    camera_interval_seconds: float = Field(default=1.0, gt=0, description="from one picture to the next")
    upload_url: str | None = Field(
        default=None, description="http://host:port of ingest-api; without it no picture is uploaded"
    )
    upload_key: SecretStr | None = Field(
        default=None, description="API key for that, with the scope `upload`, where the mesh asks for one"
    )
    upload_interval_seconds: float = Field(
        default=60.0, gt=0, description="a picture is uploaded at least this often"
    )
    upload_change: float = Field(
        default=12.0,
        gt=0,
        description="and when the scene differs from the one uploaded last by so many grey levels of 255",
    )

    @field_validator("sensors", "simulate", "mpu6050_offsets", mode="before")
    @classmethod
    def _decode(cls, value: object, info: ValidationInfo) -> object:
        if info.field_name == "simulate" and value == "all":
            return cls.model_fields["sensors"].default
        return _from_json(value)

    @field_validator("upload_url")
    @classmethod
    def _is_address(cls, value: str | None) -> str | None:
        parts = urlsplit(value or "")
        if value is not None and (parts.scheme not in ("http", "https") or not parts.hostname):
            raise ValueError("this is no address like http://host:8001")
        return value

    @field_validator("mpu6050_address", "mpu6050_accel_g", "mpu6050_gyro_dps", mode="before")
    @classmethod
    def _number(cls, value: object) -> object:
        """Addresses on a bus are written 0x68 as a rule; and a number out of a few is none as text."""
        try:
            return int(value, 0) if isinstance(value, str) else value
        except ValueError:
            return value


def variable_of(field: str, settings: type[BaseSettings] = Settings) -> str:
    """The environment variable of a setting."""
    alias = settings.model_fields[field].validation_alias
    # Those of MLflow have the names by which all its clients know them.
    if isinstance(alias, AliasChoices):
        return str(alias.choices[0])
    return str(alias or f"{settings.model_config['env_prefix']}{field.upper()}")


@cache
def get_settings() -> Settings:
    """The settings of this process, read once. Raises ValidationError, see `problems`."""
    return Settings()


def settings_or_exit() -> Settings:
    """For commands that are a process of their own: what is wrong with the settings ends it with status 2."""
    try:
        return get_settings()
    except ValidationError as error:
        sys.stderr.write(f"{problems(error)}\n")
        raise SystemExit(2) from None


@cache
def get_edge_settings() -> EdgeSettings:
    """The settings of this edge-publisher, read once. Raises ValidationError, see `problems`."""
    return EdgeSettings()


def _from_json(value: object) -> object:
    """A list as the environment has it. Raises ValueError."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError as error:
        raise ValueError('has to be a list in JSON, for example ["night"]') from error


def problems(error: ValidationError) -> str:
    """What is wrong with the settings: a line for each, that begins with the name of the variable."""
    settings = EdgeSettings if error.title == EdgeSettings.__name__ else Settings
    return "\n".join(f"{_named(str(each['loc'][0]), settings)}: {each['msg']}" for each in error.errors())


def _named(place: str, settings: type[BaseSettings]) -> str:
    """A setting is told by its field, or, where its variable is another, by that already."""
    return variable_of(place, settings) if place in settings.model_fields else place
