"""docker-compose.yml and what it mounts, as data: what must hold whoever edits it, checked without Docker."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any, Final
from unittest import mock

import pytest
import yaml
from psycopg.conninfo import conninfo_to_dict

from ingest_api import intake
from qr_decoder.__main__ import QREADER_BYTES
from visionmesh.accounts import ACCOUNTS
from visionmesh.api_keys import KeyRing, Scope
from visionmesh.cli.keys import FILE as KEYS_FILE
from visionmesh.object_store import PART_BYTES
from visionmesh.publishing import TLS
from visionmesh.settings import EdgeSettings, Settings
from visionmesh.topics import CLASSIFIERS, PARTITIONS

ROOT: Final = Path(__file__).parents[2]
TEXT: Final = (ROOT / "docker-compose.yml").read_text()
COMPOSE: Final[dict[str, Any]] = yaml.safe_load(TEXT)
SERVICES: Final[dict[str, dict[str, Any]]] = COMPOSE["services"]
DOCKERFILE: Final = (ROOT / "Dockerfile").read_text()

ONE_SHOT: Final = {"migrate", "reader-role", "topics", "minio-volume", "mlflow-prepare", "publishing"}
# Built here, and not of the mesh.
FOREIGN: Final = {"mlflow"}
# The seeds' ports.
HTTP_PORTS: Final = {
    "edge-publisher": 8000,
    "ingest-api": 8001,
    "classifier-fast": 8003,
    "classifier-accurate": 8004,
    "classifier-balanced": 8005,
    "feature-extractor": 8006,
    "qr-decoder": 8008,
    "ocr-worker": 8500,
}
# What nobody asks anything but how it is.
INNER_PORTS: Final = {"sensor-sink": 8007}
# The only containers that start as root: one owns its volume and becomes postgres, one owns another's.
STARTS_AS_ROOT: Final = {"postgres", "minio-volume"}
# Images that name a user of their own who is not root.
OWN_USER: Final = {"kafka", "kafka-ui", "prometheus", "grafana"}

every_service = pytest.mark.parametrize("name", sorted(SERVICES))


def limits(name: str) -> dict[str, Any]:
    """What the container may use; empty where nothing is said."""
    found: dict[str, Any] = SERVICES[name].get("deploy", {}).get("resources", {}).get("limits", {})
    return found


@every_service
def test_nothing_is_gained_inside_a_container(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["init"] is True
    assert 0 < limits(name)["pids"] <= 1024, "whoever forks without end takes the machine"
    assert "memory" in limits(name), "one leak takes all"
    assert not service.get("privileged")
    assert "container_name" not in service, "a named container can't be scaled"
    assert any(str(mount).startswith("/tmp") for mount in service["tmpfs"])


@every_service
def test_nobody_is_root(name: str) -> None:
    service = SERVICES[name]
    if name in STARTS_AS_ROOT or name in OWN_USER:
        return
    if "build" in service:
        _, stage = DOCKERFILE.split(f" AS {service['build']['target']}\n")
        assert "USER ${MESH_UID}:${MESH_UID}" in re.split(r"^FROM ", stage, flags=re.MULTILINE)[0]
    else:
        assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", service["user"])


@every_service
def test_images_are_pinned(name: str) -> None:
    image = SERVICES[name]["image"]
    if "build" in SERVICES[name]:
        assert image.startswith("visionmesh/")
    else:
        assert re.fullmatch(r"[a-z0-9./-]+:v?[A-Z0-9][A-Za-z0-9.-]*\d[A-Za-z0-9.-]*", image), image
        assert not image.endswith(":latest")


@every_service
def test_logs_do_not_fill_the_disk(name: str) -> None:
    assert set(SERVICES[name]["logging"]["options"]) == {"max-size", "max-file"}


@every_service
def test_what_stays_up_comes_back_says_how_it_is_and_has_time_to_end(name: str) -> None:
    service = SERVICES[name]
    if name in ONE_SHOT:
        assert "restart" not in service
        return
    assert service["restart"] == "unless-stopped"
    assert service["healthcheck"]["test"][0] in ("CMD", "CMD-SHELL")
    grace = int(service["stop_grace_period"].removesuffix("s"))
    assert grace > Settings().worker_shutdown_seconds
    if "build" in service and name not in FOREIGN:
        assert float(service["environment"]["MESH_WORKER_SHUTDOWN_SECONDS"]) < grace


@every_service
def test_only_the_gateway_can_be_opened_to_other_machines(name: str) -> None:
    address = "${MESH_PUBLISH_ADDRESS:-127.0.0.1}:" if name == "gateway" else "127.0.0.1:"
    assert all(port.startswith(address) for port in SERVICES[name].get("ports", []))
    if "build" in SERVICES[name] and name not in FOREIGN:
        assert "ports" not in SERVICES[name], "a published port allows one replica only"


def test_whoever_is_published_asks_for_keys() -> None:
    published = "${MESH_PUBLISH_ADDRESS:-127.0.0.1}"
    for name in (*HTTP_PORTS, *INNER_PORTS, "publishing"):
        environment = SERVICES[name]["environment"]
        assert environment["MESH_PUBLISH_ADDRESS"] == published, "it could not know"
        assert name == "publishing" or environment["MESH_BEHIND_GATEWAY"] == "true"
        folder, file = environment["MESH_API_KEYS_FILE"].rsplit("/", 1)
        assert f"./keys:{folder}:ro" in SERVICES[name]["volumes"], (
            "one file that is replaced is not seen again"
        )
        assert file == KEYS_FILE.name
    assert KEYS_FILE.parent == ROOT / "keys"
    gateway = SERVICES["gateway"]
    assert gateway["depends_on"]["publishing"] == {"condition": "service_completed_successfully"}
    assert SERVICES["publishing"]["command"] == ["python", "-m", "visionmesh.publishing"]
    for name, variable in (("ocr-worker", "MESH_API_KEY"), ("edge-publisher", "EDGE_UPLOAD_KEY")):
        assert SERVICES[name]["environment"][variable] == "${MESH_UPLOAD_KEY:-}"


def test_the_gateway_has_a_snippet_for_every_way_of_tls() -> None:
    caddyfile = (ROOT / "deploy/gateway/Caddyfile").read_text()
    assert set(re.findall(r"^\(tls-(\w+)\)", caddyfile, flags=re.MULTILINE)) == set(TLS)
    environment = SERVICES["gateway"]["environment"]
    assert (environment["MESH_TLS"], environment["MESH_DOMAIN"]) == ("${MESH_TLS:-off}", "${MESH_DOMAIN:-}")
    asked = SERVICES["publishing"]["environment"]
    assert (asked["GATEWAY_TLS"], asked["GATEWAY_DOMAIN"]) == ("${MESH_TLS:-off}", "${MESH_DOMAIN:-}")
    assert environment["MESH_TLS_NAMES"] == asked["GATEWAY_TLS_NAMES"] == "${MESH_TLS_NAMES:-}"


def test_no_stranger_makes_the_gateway_keep_certificates() -> None:
    caddyfile = (ROOT / "deploy/gateway/Caddyfile").read_text()
    assert re.search(r"\ton_demand_tls \{\n\t\task http://127\.0\.0\.1:9180/certificate\n", caddyfile)
    assert "in {env.MESH_TLS_NAMES}.split" in caddyfile


def test_the_gateway_logs_no_api_key() -> None:
    """Of the headers in which one comes, Caddy hides Authorization by itself."""
    caddyfile = (ROOT / "deploy/gateway/Caddyfile").read_text()
    (hidden,) = re.findall(r"format filter \{(.+?)\}", caddyfile, flags=re.DOTALL)
    for header in ("X-Api-Key", "Sec-Websocket-Protocol"):
        assert f"request>headers>{header} delete" in hidden


def test_no_page_of_another_site_reads_or_empties_kafka() -> None:
    """Kafka UI answers every origin, with credentials."""
    environment = SERVICES["kafka-ui"]["environment"]
    assert environment["AUTH_TYPE"] == "LOGIN_FORM"
    assert environment["SPRING_SECURITY_USER_PASSWORD"].startswith("${KAFKA_UI_PASSWORD:?")
    assert environment["KAFKA_CLUSTERS_0_READONLY"] == "true"


def test_the_seeds_ports_are_published() -> None:
    gateway = {int(port.rsplit(":", 1)[1]) for port in SERVICES["gateway"]["ports"]}
    assert gateway == set(HTTP_PORTS.values())
    for name, port in {"kafka-ui": 8090, "prometheus": 9090, "grafana": 3000}.items():
        assert any(f":-{port}}}:" in published for published in SERVICES[name]["ports"])


def test_the_gateway_balances_every_service_on_its_port() -> None:
    caddyfile = (ROOT / "deploy/gateway/Caddyfile").read_text()
    site = r"^\{\$MESH_DOMAIN\}:(\d+) \{\n\timport tls-\{\$MESH_TLS:off\}\n\timport balance (\S+) (\d+)\n\}"
    sites = re.findall(site, caddyfile, flags=re.MULTILINE)
    assert {name: int(port) for _, name, port in sites} == HTTP_PORTS
    assert all(outside == inside for outside, _, inside in sites)
    for setting in ("admin off", "lb_policy least_conn", "dynamic a", "flush_interval -1"):
        assert setting in caddyfile


def test_services_listen_where_the_gateway_and_prometheus_look() -> None:
    prometheus = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())
    jobs = {job["job_name"]: job for job in prometheus["scrape_configs"]}
    scraped = {
        config["names"][0]: (config["type"], config["port"]) for config in jobs["mesh"]["dns_sd_configs"]
    }
    night = {"classifier-night": ("A", 8010)}
    assert scraped == {name: ("A", port) for name, port in (HTTP_PORTS | INNER_PORTS).items()} | night
    for name, port in (HTTP_PORTS | INNER_PORTS).items():
        target = SERVICES[name]["build"]["target"]
        stage = DOCKERFILE.split(f" AS {target}\n")[1].split("\nFROM ")[0]
        own = re.search(r"^ENV MESH_HTTP_PORT=(\d+)", stage, re.MULTILINE)
        listens = SERVICES[name]["environment"].get("MESH_HTTP_PORT") or (own and own[1])
        assert int(listens or 0) == port


def test_every_classifier_of_the_topic_table_runs_within_the_seeds_limits() -> None:
    for name in CLASSIFIERS:
        assert f"classifier-{SERVICES[name]['environment']['MESH_CLASSIFIER']}" == name
        assert (limits(name)["cpus"], limits(name)["memory"]) == ("0.5", "512M")
    extractor = limits("feature-extractor")
    assert (extractor["cpus"], extractor["memory"]) == ("2", "${EXTRACTOR_MEMORY:-2G}")


def test_ingest_api_has_room_for_a_child_and_all_uploads_that_it_may_hold() -> None:
    child = int(SERVICES["ingest-api"]["environment"]["MESH_ISOLATED_MEMORY_BYTES"])
    uploads = intake._HELD_IN_ALL_BYTES + intake._STREAM_THREADS * PART_BYTES
    python = 256 * 1024**2
    memory = int(limits("ingest-api")["memory"].removesuffix("M")) * 1024**2
    assert child + uploads + python <= memory


def test_every_environment_variable_of_the_mesh_is_a_setting() -> None:
    known = {f"MESH_{field.upper()}" for field in Settings.model_fields}
    edge = {f"EDGE_{field.upper()}" for field in EdgeSettings.model_fields}
    for service in SERVICES.values():
        if "build" in service:
            assert {name for name in service["environment"] if name.startswith("MESH_")} <= known
            assert {name for name in service["environment"] if name.startswith("EDGE_")} <= edge


def test_the_broker_allows_the_takeover_goal() -> None:
    broker = SERVICES["kafka"]["environment"]
    assert int(broker["KAFKA_NUM_PARTITIONS"]) == PARTITIONS
    assert broker["KAFKA_AUTO_CREATE_TOPICS_ENABLE"] == "false"
    assert broker["KAFKA_GROUP_INITIAL_REBALANCE_DELAY_MS"] == "0"
    assert int(broker["KAFKA_GROUP_MIN_SESSION_TIMEOUT_MS"]) <= Settings().kafka_session_timeout_ms
    for limit in ("", "MIN_"):
        assert broker[f"KAFKA_GROUP_CONSUMER_{limit}SESSION_TIMEOUT_MS"] == "6000"
        assert broker[f"KAFKA_GROUP_CONSUMER_{limit}HEARTBEAT_INTERVAL_MS"] == "1000"
    assert "/tmp:exec" in SERVICES["kafka"]["tmpfs"], "the broker could not read zstd"


def test_workers_wait_for_tables_and_topics() -> None:
    for name in HTTP_PORTS | INNER_PORTS:
        needed = {
            server: condition
            for server, condition in SERVICES[name]["depends_on"].items()
            if condition.get("required", True)
        }
        assert needed == {
            one_shot: {"condition": "service_completed_successfully"} for one_shot in ("migrate", "topics")
        }
    for one_shot in ("migrate", "topics"):
        waits = SERVICES[one_shot]["depends_on"].values()
        assert all(condition == {"condition": "service_healthy"} for condition in waits)


def test_the_extractor_starts_with_the_cache_and_without_it() -> None:
    extractor = SERVICES["feature-extractor"]
    assert extractor["depends_on"]["redis"] == {"condition": "service_started", "required": False}
    assert extractor["environment"]["MESH_CACHE_URL"].endswith("@redis:6379/0")
    assert "--maxmemory-policy allkeys-lru" in " ".join(SERVICES["redis"]["command"])


def test_each_service_has_its_own_account_and_nobody_else_s() -> None:
    accounts = {account.name: account for account in ACCOUNTS}
    for name in (*HTTP_PORTS, *INNER_PORTS):
        environment = SERVICES[name]["environment"]
        account = accounts.get("classifier" if name in CLASSIFIERS else name)
        passwords = set(re.findall(r"\$\{(\w*PASSWORD):", " ".join(map(str, environment.values()))))
        assert passwords - {"REDIS_PASSWORD"} == (set() if account is None else {account.variable})
        if account is None:
            continue
        assert environment["MESH_POSTGRES_DSN"].startswith(f"postgresql://{account.name}:${{")
        if account.objects == "none":
            assert "MESH_S3_ACCESS_KEY" not in environment
        else:
            assert environment["MESH_S3_ACCESS_KEY"] == account.name
    for name, server in (("migrate", "postgres"), ("topics", "s3")):
        assert f"python -m visionmesh.accounts {server}" in SERVICES[name]["command"][-1]
        assert {account.variable for account in ACCOUNTS} <= set(SERVICES[name]["environment"])


def test_no_secret_stands_in_the_file() -> None:
    for name, service in SERVICES.items():
        for variable, value in service.get("environment", {}).items():
            if re.search(r"PASSWORD|SECRET|DSN|CACHE_URL|AUTH$", variable):
                assert re.search(r"\$\{[A-Z_]+:\?run `make env`", value), f"{name} {variable}"


def test_make_env_writes_every_secret_that_compose_asks_for(tmp_path: Path) -> None:
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    wanted = set(re.findall(r"\$\{([A-Z_]+):\?", TEXT))
    shutil.copy(ROOT / "Makefile", tmp_path)
    subprocess.run(["make", "--silent", "-C", str(tmp_path), "env"], check=True, capture_output=True)
    written = dict(line.split("=", 1) for line in (tmp_path / ".env").read_text().split())
    assert wanted
    assert wanted <= set(written)
    assert all(written[name] for name in wanted)
    # They travel inside URLs.
    for name in ("POSTGRES_PASSWORD", "REDIS_PASSWORD", *(account.variable for account in ACCOUNTS)):
        assert re.fullmatch(r"[A-Za-z0-9_-]+", written[name])
    assert (tmp_path / ".env").stat().st_mode & 0o077 == 0
    # What it wrote once stays, and what is missing is added.
    (tmp_path / ".env").write_text("POSTGRES_PASSWORD=mine\n")
    subprocess.run(["make", "--silent", "-C", str(tmp_path), "env"], check=True, capture_output=True)
    again = dict(line.split("=", 1) for line in (tmp_path / ".env").read_text().split())
    assert again["POSTGRES_PASSWORD"] == "mine"
    assert set(again) == set(written)


def test_the_guide_says_what_no_backup_has() -> None:
    """Of what outlives containers a backup has the three servers' data and nothing else."""
    guide = (ROOT / "docs/operations.md").read_text().split("\n## Backup and restore\n")[1].split("\n## ")[0]
    left_out = {
        named
        for row in re.findall(r"^\| (.+?) \|", guide, re.MULTILINE)
        for named in re.findall(r"`([^`]+)`", row)
    }
    elsewhere = yaml.safe_load((ROOT / "docker-compose.servers.yml").read_text())["services"]
    mounted = {
        volume.split(":")[0]
        for service in (*SERVICES.values(), *elsewhere.values())
        for volume in service.get("volumes", [])
    }
    # Folders of the repository whose files are nobody else's.
    secret = {path.removeprefix("./") for path in mounted if (ROOT / path / ".gitignore").is_file()}
    assert secret
    assert left_out >= COMPOSE["volumes"].keys() - {"postgres-data", "minio-data", "kafka-data"}
    assert left_out >= {".env", str(KEYS_FILE.relative_to(ROOT)), "deploy/gateway/tls"}
    (copied,) = re.findall(r"^    cp -Rp (.+) /elsewhere/mesh-secrets/$", guide, re.MULTILINE)
    assert set(copied.split()) == {".env"} | secret


def make_env(folder: Path) -> subprocess.CompletedProcess[str]:
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    shutil.copy(ROOT / "Makefile", folder)
    # As careful people have it.
    return subprocess.run(
        ["sh", "-c", "umask 077; exec make --silent env"],
        cwd=folder,
        check=True,
        capture_output=True,
        text=True,
    )


def test_make_env_brings_what_is_there_to_what_it_has_to_be(tmp_path: Path) -> None:
    env = tmp_path / ".env"
    env.write_text("MESH_PUBLISH_ADDRESS=0.0.0.0")
    env.chmod(0o644)
    assert not make_env(tmp_path).stderr
    written = dict(line.split("=", 1) for line in env.read_text().splitlines())
    assert written["MESH_PUBLISH_ADDRESS"] == "0.0.0.0", "its last line had no end"
    assert written["MINIO_ROOT_PASSWORD"]
    assert env.stat().st_mode & 0o777 == 0o600
    # Another user reads them, in a container.
    keys = tmp_path / "keys"
    assert keys.stat().st_mode & 0o005 == 0o005
    assert (keys / "api-keys.json").stat().st_mode & 0o004


def test_make_env_says_when_its_keys_are_none(tmp_path: Path) -> None:
    """Those of an .env that was lost stay in the file, which nobody but their owner can tell from others."""
    make_env(tmp_path)
    kept = (tmp_path / "keys/api-keys.json").read_text()
    (tmp_path / ".env").unlink()
    said = make_env(tmp_path).stderr
    for name in ("MESH_API_KEY", "MESH_UPLOAD_KEY"):
        assert f"{name} of .env is no key" in said
    assert (tmp_path / "keys/api-keys.json").read_text() == kept


def test_make_env_lets_its_own_keys_in(tmp_path: Path) -> None:
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    shutil.copy(ROOT / "Makefile", tmp_path)
    subprocess.run(["make", "--silent", "-C", str(tmp_path), "env"], check=True, capture_output=True)
    written = dict(line.split("=", 1) for line in (tmp_path / ".env").read_text().split())
    ring = KeyRing(tmp_path / "keys" / "api-keys.json")
    operator, services = ring.find(written["MESH_API_KEY"]), ring.find(written["MESH_UPLOAD_KEY"])
    assert operator is not None
    assert set(operator.scopes) == set(Scope)
    assert services is not None
    assert set(services.scopes) == {Scope.UPLOAD}


def test_each_image_installs_one_lock_and_ships_its_own_service_only() -> None:
    parents = {
        stage: parent for parent, stage in re.findall(r"^FROM (\S+) AS (\S+)$", DOCKERFILE, re.MULTILINE)
    }
    for target in {service["build"]["target"] for service in SERVICES.values() if "build" in service}:
        built = "base" if target in FOREIGN else "installer"
        assert parents[f"{target}-dependencies"] == built
        assert f"source=requirements/{target}.txt" in DOCKERFILE
        lock = (ROOT / "requirements" / f"{target}.txt").read_text()
        assert "--hash=sha256:" in lock
        body = DOCKERFILE.split(f" AS {target}\n")[1].split("\nFROM ")[0]
        packages = f"COPY --from={target}-dependencies /app/packages /app/packages"
        assert parents[target] == f"{target}-dependencies" or packages in body
        copied = re.findall(r"COPY services/(\S+)", body)
        assert copied == ([] if target in FOREIGN else [target.replace("-", "_")])
    assert "http" not in re.sub(r"^#.*", "", DOCKERFILE, flags=re.MULTILINE).replace("MESH_HTTP", "").lower()


def test_the_registry_starts_only_when_it_is_asked_for() -> None:
    asked = {name for name, service in SERVICES.items() if service.get("profiles") == ["mlflow"]}
    assert asked == {"mlflow", "mlflow-prepare"}
    for name, service in SERVICES.items():
        assert name in asked or not asked & set(service.get("depends_on", {})), "it would start for everyone"
    environment = SERVICES["mlflow"]["environment"]
    assert environment["MLFLOW_BACKEND_STORE_URI"].endswith("@postgres:5432/mlflow")
    assert environment["MLFLOW_ARTIFACTS_DESTINATION"] == "s3://mlflow"
    assert "mlflow:*" in environment["MLFLOW_SERVER_ALLOWED_HOSTS"], "the services could not ask it"
    assert "--serve-artifacts" in DOCKERFILE.split(" AS mlflow\n")[1]


def test_what_answers_with_models_can_be_told_which() -> None:
    for name in (*CLASSIFIERS, "feature-extractor"):
        environment = SERVICES[name]["environment"]
        short = name.removeprefix("classifier-").removeprefix("feature-").upper()
        variable = "MESH_EXTRACTOR_MODEL" if short == "EXTRACTOR" else "MESH_CLASSIFIER_MODEL"
        default = "extractor" if short == "EXTRACTOR" else name
        assert environment[variable] == f"${{MESH_{short}_MODEL:-{default}}}"
        assert environment["MESH_SHADOW_MODEL"] == f"${{MESH_{short}_SHADOW:-}}"
        assert environment["MLFLOW_TRACKING_URI"].endswith(":-http://mlflow:5000}")
    # An empty variable is one that is not set.
    with mock.patch.dict(os.environ, {"MESH_SHADOW_MODEL": "", "MESH_EXTRA_CLASSIFIERS": ""}):
        assert (Settings().shadow_model, Settings().extra_classifiers) == (None, ())


def test_a_fourth_classifier_is_configuration_alone() -> None:
    fourth = yaml.safe_load((ROOT / "docker-compose.fourth.yml").read_text())["services"]
    night = fourth["classifier-night"]
    assert night["extends"]["service"] in CLASSIFIERS
    assert night["environment"]["MESH_CLASSIFIER"] == "night"
    known = {f"MESH_{field.upper()}" for field in Settings.model_fields}
    assert set(night["environment"]) <= known
    port = int(night["environment"]["MESH_HTTP_PORT"])
    assert port not in HTTP_PORTS.values()
    # Its lag is told by ingest-api: a group without any replica to be seen is an alert.
    scraped = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())["scrape_configs"][0]
    assert {one["names"][0]: one["port"] for one in scraped["dns_sd_configs"]}["classifier-night"] == port
    for name in ("topics", "ingest-api"):
        assert fourth[name]["environment"] == {"MESH_EXTRA_CLASSIFIERS": '["night"]'}


def test_the_qreader_image_takes_the_place_of_the_qr_decoder() -> None:
    override = yaml.safe_load((ROOT / "docker-compose.qreader.yml").read_text())
    ours, own = override["services"]["qr-decoder"], SERVICES["qr-decoder"]
    assert set(ours["environment"]) <= {f"MESH_{field.upper()}" for field in Settings.model_fields}
    assert ours["image"] != own["image"]
    stage = DOCKERFILE.split(f" AS {ours['build']['target']}\n")[1].split("\nFROM ")[0]
    assert "USER ${MESH_UID}:${MESH_UID}" in stage
    assert "MESH_QR_ENGINE=qreader" in stage
    # The volume takes over the owner of the folder that it is mounted on.
    (mount,) = ours["volumes"]
    volume, folder = mount.split(":")
    assert volume in override["volumes"]
    assert f"-o ${{MESH_UID}} -g ${{MESH_UID}} {folder}\n" in stage
    assert f"MESH_QR_READER_WEIGHTS={folder} " in stage
    # The child runs into its own ceiling before the container into this.
    assert int(ours["deploy"]["resources"]["limits"]["memory"].removesuffix("G")) * 1024**3 > QREADER_BYTES


def test_the_first_design_s_ports_reach_each_of_three_ocr_workers() -> None:
    override = yaml.safe_load((ROOT / "docker-compose.ocr-replicas.yml").read_text())
    (worker,) = override["services"].values()
    assert worker["deploy"]["replicas"] == 3
    (published,) = worker["ports"]
    assert published == f"127.0.0.1:8505-8507:{HTTP_PORTS['ocr-worker']}"


def test_engines_of_ocr_worker_run_into_their_ceiling_before_the_container_into_its() -> None:
    worker = SERVICES["ocr-worker"]
    ceiling = int(worker["environment"]["MESH_OCR_ENGINE_MEMORY_BYTES"])
    default = re.search(r":-(\d+)G", worker["deploy"]["resources"]["limits"]["memory"])
    assert default is not None
    assert ceiling < int(default[1]) * 1024**3
    assert worker["environment"]["MESH_OCR_PROCESSES"] == "${OCR_PROCESSES:-1}"
    assert worker["environment"]["MESH_INGEST_URL"] == f"http://ingest-api:{HTTP_PORTS['ingest-api']}"


def test_paddlex_s_server_is_locked_up_like_the_others_and_asked_by_ocr_worker() -> None:
    services = yaml.safe_load((ROOT / "docker-compose.paddlex.yml").read_text())["services"]
    server, worker = services["paddlex"], services["ocr-worker"]
    for name in ("read_only", "cap_drop", "security_opt", "init", "logging", "restart"):
        assert server[name] == SERVICES["ocr-worker"][name], name
    assert server["deploy"]["resources"]["limits"]["pids"] == limits("ocr-worker")["pids"]
    assert "ports" not in server
    assert set(worker["environment"]) <= {f"MESH_{field.upper()}" for field in Settings.model_fields}
    assert worker["environment"]["MESH_OCR_ENGINE"] == "paddlex"
    stage = DOCKERFILE.split(f" AS {server['build']['target']}\n")[1].split("\nFROM ")[0]
    assert "USER ${MESH_UID}:${MESH_UID}" in stage
    assert "source=requirements/paddlex.txt" in DOCKERFILE
    # The first design's command, with the pipeline from a file and for other containers too.
    command = json.loads(stage.split("CMD ")[1].splitlines()[0])
    assert [command[0], command[1], *command[-4:]] == [
        "paddlex",
        "--serve",
        "--port",
        "8080",
        "--device",
        "cpu",
    ]
    (mount,) = server["volumes"]
    folder = mount.split(":")[-2]
    pipeline = yaml.safe_load((ROOT / "deploy/paddlex/OCR.yaml").read_text())
    assert pipeline["pipeline_name"] == "OCR"
    for module in pipeline["SubModules"].values():
        assert str(Path("/app/paddlex") / module["model_dir"]).startswith(f"{folder}/"), (
            "nothing is downloaded"
        )


def test_a_device_s_container_is_locked_up_like_that_of_the_mesh() -> None:
    (device,) = yaml.safe_load((ROOT / "deploy/edge/docker-compose.yml").read_text())["services"].values()
    here = SERVICES["edge-publisher"]
    for name in ("read_only", "tmpfs", "cap_drop", "security_opt", "init", "logging"):
        assert device[name] == here[name], name
    for name in ("memory", "pids"):
        assert device["deploy"]["resources"]["limits"][name] == limits("edge-publisher")[name], name


def test_the_paddleocr_image_takes_the_place_of_ocr_worker() -> None:
    (worker,) = yaml.safe_load((ROOT / "docker-compose.paddleocr.yml").read_text())["services"].values()
    assert worker["image"] != SERVICES["ocr-worker"]["image"]
    stage = DOCKERFILE.split(f" AS {worker['build']['target']}\n")[1].split("\nFROM ")[0]
    assert "USER ${MESH_UID}:${MESH_UID}" in stage
    assert "MESH_OCR_ENGINE=paddleocr" in stage
    assert "source=requirements/paddleocr.txt" in DOCKERFILE
    (mount,) = worker["volumes"]
    assert f"MESH_OCR_PADDLE_MODELS={mount.split(':')[-2]} " in stage
    assert f"ENV MESH_HTTP_PORT={HTTP_PORTS['ocr-worker']} " in stage
    ceiling = int(worker["environment"]["MESH_OCR_ENGINE_MEMORY_BYTES"])
    assert ceiling < int(worker["deploy"]["resources"]["limits"]["memory"].removesuffix("G")) * 1024**3
    # A limit below what it was seen to hold would end it with each page.
    figures = (ROOT / "docs/ocr.md").read_text()
    seen = re.findall(r"^\| PaddleOCR on PaddlePaddle .* ([\d,]+) \|$", figures, re.MULTILINE)
    most = max(int(each.replace(",", "")) for each in seen) * 1024**2
    assert most < int(worker["environment"]["MESH_OCR_ENGINE_RESIDENT_BYTES"]) < ceiling


SERVERS: Final = {"kafka", "kafka-ui", "minio", "postgres", "redis"}


@pytest.mark.parametrize(
    ("files", "more", "less"),
    [
        ([], set(), set()),
        (["docker-compose.fourth.yml"], {"classifier-night"}, set()),
        (["docker-compose.qreader.yml"], set(), set()),
        (["docker-compose.ocr-replicas.yml"], set(), set()),
        (["docker-compose.paddlex.yml"], {"paddlex"}, set()),
        (["docker-compose.paddleocr.yml"], set(), set()),
        (["docker-compose.servers.yml"], set(), SERVERS),
    ],
    ids=["alone", "fourth", "qreader", "ocr-replicas", "paddlex", "paddleocr", "servers"],
)
def test_compose_reads_the_files(files: list[str], more: set[str], less: set[str], tmp_path: Path) -> None:
    read = read_by_compose(tmp_path, *files, COMPOSE_PROFILES="mlflow")
    assert read.keys() == (SERVICES.keys() | more) - less
    for name, service in read.items():
        assert service["deploy"]["resources"]["limits"].keys() >= {"memory", "pids"}, name


def test_what_the_file_does_not_name_reaches_the_services_by_a_file_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "mesh.env").write_text("MESH_QR_BUDGET_MS=4000\nEDGE_COMMIT_MS=20\nMESH_HTTP_PORT=1\n")
    read = read_by_compose(tmp_path)
    for name in (*HTTP_PORTS, *INNER_PORTS, "migrate", "topics", "reader-role"):
        environment = read[name]["environment"]
        assert (environment["MESH_QR_BUDGET_MS"], environment["EDGE_COMMIT_MS"]) == ("4000", "20"), name
    for name in CLASSIFIERS:
        own = read[name]["environment"]["MESH_HTTP_PORT"]
        assert own == SERVICES[name]["environment"]["MESH_HTTP_PORT"], "what is named goes before"
    assert "/mesh.env" in (ROOT / ".gitignore").read_text().splitlines()


def test_servers_elsewhere_are_spoken_to_as_env_says(tmp_path: Path) -> None:
    kafka = {
        f"MESH_{field.upper()}": f"as {field} says"
        for field in Settings.model_fields
        if field.startswith(("kafka_bootstrap", "kafka_security", "kafka_sasl", "kafka_tls"))
    }
    store = {"MESH_S3_ENDPOINT": "s3.lan", "MESH_S3_SECURE": "true", "MESH_S3_TLS_CA": "/app/servers/s3.pem"}
    words = "?sslmode=verify-full&sslrootcert=/app/servers/postgres.pem"
    postgres = {"POSTGRES_ADDRESS": "db.lan:5433", "POSTGRES_PARAMETERS": words, "POSTGRES_OWNER": "admin"}
    read = read_by_compose(
        tmp_path, "docker-compose.servers.yml", MESH_S3_ACCESS_KEY="root", MESH_CACHE_URL="rediss://cache.lan",
        **kafka, **store, **postgres,
    )  # fmt: skip
    speaking = {name for name, service in SERVICES.items() if "MESH_KAFKA_BOOTSTRAP" in str(service)}
    assert len(speaking) == len(HTTP_PORTS | INNER_PORTS) + len({"migrate", "topics", "reader-role"})
    for name in speaking:
        environment = read[name]["environment"]
        assert environment.items() >= (kafka | store).items(), name
        assert "deploy/servers:/app/servers" in {
            f"{Path(mount['source']).relative_to(tmp_path)}:{mount['target']}"
            for mount in read[name]["volumes"]
            if mount["type"] == "bind" and mount.get("read_only")
        }
        before = SERVICES[name]["environment"]
        if "MESH_POSTGRES_DSN" in before:
            account = re.match(r"postgresql://([\w-]+):", before["MESH_POSTGRES_DSN"])
            assert account is not None
            address = conninfo_to_dict(environment["MESH_POSTGRES_DSN"])
            assert address["user"] == account[1].replace("mesh", "admin")
            assert (address["host"], address["port"], address["dbname"]) == ("db.lan", "5433", "mesh")
            assert (address["sslmode"], address["sslrootcert"]) == ("verify-full", words.rpartition("=")[2])
        if before.get("MESH_S3_ACCESS_KEY") == "mesh":
            assert environment["MESH_S3_ACCESS_KEY"] == "root"
        if "MESH_CACHE_URL" in before:
            assert environment["MESH_CACHE_URL"] == "rediss://cache.lan"


def test_servers_that_stay_here_are_spoken_to_as_before(tmp_path: Path) -> None:
    with_all = ",".join(["mlflow", *(SERVERS - {"kafka-ui"})])
    before = read_by_compose(tmp_path, COMPOSE_PROFILES="mlflow")
    read = read_by_compose(tmp_path, "docker-compose.servers.yml", COMPOSE_PROFILES=with_all)
    assert read.keys() == before.keys()
    for name, service in before.items():
        # An empty variable is one that is not set.
        given = {key: value for key, value in (read[name].get("environment") or {}).items() if value}
        assert given == {key: value for key, value in (service.get("environment") or {}).items() if value}


@cache
def has_compose() -> bool:
    """Whether there is Docker's command, and its part that reads these files, which is installed apart."""
    if shutil.which("docker") is None:
        return False
    asked = subprocess.run(["docker", "compose", "version"], capture_output=True, check=False)
    return asked.returncode == 0


def read_by_compose(folder: Path, *files: str, **settings: str) -> dict[str, Any]:
    """The services that compose would start, with everything filled in. settings: what .env says besides."""
    if not has_compose() or shutil.which("make") is None:
        pytest.skip("docker compose or make is not installed")
    named = ("docker-compose.yml", *files)
    for name in ("Makefile", *named):
        shutil.copy(ROOT / name, folder)
    subprocess.run(["make", "--silent", "env"], cwd=folder, check=True, capture_output=True)
    with (folder / ".env").open("a") as env:
        for name, value in ({"MESH_NIGHT_MODEL": "classifier-random-forest"} | settings).items():
            env.write(f"{name}={value}\n")
    options = [option for name in named for option in ("-f", name)]
    # What is set here goes before .env.
    inherited = {
        name: value for name, value in os.environ.items() if not re.match("MESH_|POSTGRES_|COMPOSE_", name)
    }
    ended = subprocess.run(
        ["docker", "compose", *options, "config", "--format", "json"],
        cwd=folder, env=inherited, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    services: dict[str, Any] = json.loads(ended.stdout)["services"]
    return services
