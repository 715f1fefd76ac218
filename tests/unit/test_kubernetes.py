"""deploy/kubernetes as it is written, held against the code and the compose file; no tool is needed.

What `kustomize` makes of it is held against schemas by `tests/integration/test_kubernetes.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import yaml
from psycopg.conninfo import conninfo_to_dict

from visionmesh.accounts import ACCOUNTS
from visionmesh.settings import Settings
from visionmesh.topics import PARTITIONS, readers

ROOT: Final = Path(__file__).parents[2]
KUBERNETES: Final = ROOT / "deploy/kubernetes"
README: Final = (KUBERNETES / "README.md").read_text()
COMPOSE: Final[dict[str, Any]] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]


def documents(folder: str) -> Iterator[dict[str, Any]]:
    kustomization = yaml.safe_load((KUBERNETES / folder / "kustomization.yaml").read_text())
    for name in kustomization["resources"]:
        yield from yaml.safe_load_all((KUBERNETES / folder / name).read_text())


MESH: Final = list(documents("mesh"))
SERVERS: Final = list(documents("servers"))
KUSTOMIZATION: Final = yaml.safe_load((KUBERNETES / "mesh/kustomization.yaml").read_text())
EVERY_SERVICE: Final = yaml.safe_load((KUBERNETES / "mesh/every-service.yaml").read_text())


def of_kind(kind: str, among: list[dict[str, Any]] = MESH) -> dict[str, dict[str, Any]]:
    return {one["metadata"]["name"]: one for one in among if one["kind"] == kind}


DEPLOYMENTS: Final = {
    name: one
    for name, one in of_kind("Deployment").items()
    if "visionmesh/service" in one["metadata"]["labels"]
}
# An edge-publisher belongs to the device that its sensors hang on.
SERVICES: Final = {
    name
    for name, one in COMPOSE.items()
    if str(one["image"]).startswith("visionmesh/")
    and "healthcheck" in one
    and name not in ("edge-publisher", "mlflow")
}

every_deployment = pytest.mark.parametrize("name", sorted(DEPLOYMENTS))


def container(name: str) -> dict[str, Any]:
    (found,) = DEPLOYMENTS[name]["spec"]["template"]["spec"]["containers"]
    assert found["name"] == "service", "the patch for every service would make a second one"
    return dict(found)


def variables(name: str) -> dict[str, Any]:
    return {one["name"]: one.get("value", one.get("valueFrom")) for one in container(name)["env"]}


def test_every_service_of_compose_has_a_deployment() -> None:
    assert DEPLOYMENTS.keys() == SERVICES


@every_deployment
def test_it_runs_the_image_of_compose_on_the_same_port_with_the_same_limits(name: str) -> None:
    compose = COMPOSE[name]
    assert container(name)["image"] == compose["image"].split(":")[0]
    port = container(name)["ports"][0]["containerPort"]
    assert variables(name)["MESH_HTTP_PORT"] == str(port)
    annotations = DEPLOYMENTS[name]["spec"]["template"]["metadata"]["annotations"]
    assert annotations["prometheus.io/port"] == str(port)
    scraped = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())["scrape_configs"][0]
    assert {one["names"][0]: one["port"] for one in scraped["dns_sd_configs"]}[name] == port
    given, allowed = container(name)["resources"]["limits"], compose["deploy"]["resources"]["limits"]
    # In compose a variable with its default may stand there.
    memory = re.sub(r"\$\{\w+:-(\w+)\}", r"\1", str(allowed["memory"]))
    assert given["memory"] == memory.replace("M", "Mi").replace("G", "Gi")
    cpus = allowed.get("cpus")
    assert given.get("cpu") == (re.sub(r"\$\{\w+:-(\w+)\}", r"\1", cpus) if cpus else None)


@every_deployment
def test_every_variable_is_a_setting(name: str) -> None:
    known = {f"MESH_{field.upper()}" for field in Settings.model_fields}
    literals = {text.split("=")[0] for text in KUSTOMIZATION["configMapGenerator"][0]["literals"]}
    assert literals <= known
    assert {each for each in variables(name) if each.startswith("MESH_")} <= known
    # What compose gives it, it gets here as well, but for choices of the operator that have a default.
    given = {
        key: str(value)
        for key, value in COMPOSE[name]["environment"].items()
        if key.startswith("MESH_") and not re.fullmatch(r"\$\{\w+:-[^}]*\}", str(value))
    }
    assert given.keys() <= variables(name).keys() | literals
    for key, value in variables(name).items():
        # Addresses and accounts are others.
        if key in given and isinstance(value, str) and "$" not in value:
            assert given[key] == value


def test_the_processes_listen_for_others_with_keys() -> None:
    literals = dict(text.split("=", 1) for text in KUSTOMIZATION["configMapGenerator"][0]["literals"])
    assert literals["MESH_HTTP_HOST"] == "0.0.0.0"
    folder = literals["MESH_API_KEYS_FILE"].rsplit("/", 1)[0]
    spec = EVERY_SERVICE["spec"]["template"]["spec"]
    mounts = spec["containers"][0]["volumeMounts"]
    assert {"name": "api-keys", "mountPath": folder, "readOnly": True} in mounts
    assert "MESH_REQUIRE_API_KEYS" not in literals, "who listens for others has them without being told"


def test_what_holds_for_every_service() -> None:
    spec = EVERY_SERVICE["spec"]["template"]["spec"]
    locked = spec["containers"][0]["securityContext"]
    assert locked == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert spec["securityContext"]["runAsNonRoot"] is True
    uid = re.search(r"^ARG MESH_UID=(\d+)", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert uid is not None
    assert spec["securityContext"]["runAsUser"] == int(uid[1])
    probes = {
        name: spec["containers"][0][f"{name}Probe"]["httpGet"]
        for name in ("startup", "readiness", "liveness")
    }
    assert {name: probe["path"] for name, probe in probes.items()} == {
        "startup": "/health",
        "readiness": "/ready",
        # A server that is away must not have every replica started anew.
        "liveness": "/health",
    }
    before = spec["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert spec["terminationGracePeriodSeconds"] >= before + 1.5 * Settings().worker_shutdown_seconds


def test_every_group_is_scaled_by_its_lag_up_to_its_partitions() -> None:
    scaled = of_kind("ScaledObject")
    assert scaled.keys() == {group for _, group in readers()}
    for topic, group in readers():
        spec = scaled[group]["spec"]
        assert spec["scaleTargetRef"] == {"name": group}
        assert group in DEPLOYMENTS
        assert (spec["minReplicaCount"], spec["maxReplicaCount"]) == (1, topic.partitions)
        (trigger,) = spec["triggers"]
        asked = trigger["metadata"]
        assert (asked["consumerGroup"], asked["topic"]) == (group, topic.name)
        assert asked["offsetResetPolicy"] == "earliest"
        assert asked["allowIdleConsumers"] == "false"
        # A second rule would fight with this one.
        assert "replicas" not in DEPLOYMENTS[group]["spec"]
    bootstrap = {one["spec"]["triggers"][0]["metadata"]["bootstrapServers"] for one in scaled.values()}
    literals = KUSTOMIZATION["configMapGenerator"][0]["literals"]
    assert {f"MESH_KAFKA_BOOTSTRAP={address}" for address in bootstrap} <= set(literals)


@every_deployment
def test_a_node_can_be_emptied_and_not_all_replicas_go_at_once(name: str) -> None:
    budget = of_kind("PodDisruptionBudget")[name]["spec"]
    assert budget["maxUnavailable"] == 1
    assert budget["selector"] == DEPLOYMENTS[name]["spec"]["selector"]


def test_services_lead_to_the_pods_of_their_name_on_the_ports_of_the_first_design() -> None:
    services = of_kind("Service")
    for name, service in services.items():
        if name == "redis":
            continue
        (port,) = service["spec"]["ports"]
        assert service["spec"]["selector"] == {"app.kubernetes.io/name": name}
        assert port["port"] == container(name)["ports"][0]["containerPort"]
    assert services.keys() == (SERVICES - {"sensor-sink"}) | {"redis"}


def test_the_job_does_what_the_one_shots_of_compose_do() -> None:
    spec = of_kind("Job")["prepare"]["spec"]["template"]["spec"]
    done = [" ".join(one["command"]) for one in (*spec["initContainers"], *spec["containers"])]
    asked = " ".join(" ".join(COMPOSE[name]["command"]) for name in ("migrate", "topics", "reader-role"))
    wanted = re.findall(r"python -m (visionmesh\.\w+(?: [\w-]+)?)", asked)
    assert len(wanted) >= 5
    for command in wanted:
        # Accounts of an object store are made by whoever runs that one: it may be any.
        if command != "visionmesh.accounts s3":
            assert any(command in one for one in done), command


def test_every_secret_is_one_that_the_readme_makes() -> None:
    written = "\n".join(
        (KUBERNETES / "mesh" / name).read_text()
        for name in (*KUSTOMIZATION["resources"], "every-service.yaml")
    )
    named = set(re.findall(r"secretKeyRef: \{name: ([\w-]+)", written))
    named |= set(re.findall(r"secret(?:Ref: \{name|: \{secretName): ([\w-]+)", written))
    made = set(re.findall(r"create secret generic ([\w-]+)", README))
    # CloudNativePG makes these.
    assert named == made | {"postgres-app", "postgres-superuser", "postgres-ca"}
    for key in set(re.findall(r"name: accounts, key: (\w+)", written)):
        assert f"--from-literal={key}=" in README
    assert "kind: Secret" not in written


def test_postgres_is_believed_by_its_authority_and_its_name() -> None:
    job = of_kind("Job")["prepare"]["spec"]["template"]["spec"]
    prepares = {one["name"]: one for one in (*job["initContainers"], *job["containers"])}
    every = EVERY_SERVICE["spec"]["template"]["spec"]
    connecting = {name: (container(name), every["containers"][0], every) for name in DEPLOYMENTS}
    connecting |= {name: (one, one, job) for name, one in prepares.items() if "env" in one}
    assert connecting.keys() == DEPLOYMENTS.keys() | {"tables", "accounts", "dashboards", "buckets"}
    (cluster,) = of_kind("Cluster", SERVERS)
    for name, (own, mounting, pod) in connecting.items():
        (dsn,) = (one["value"] for one in own["env"] if one["name"] == "MESH_POSTGRES_DSN")
        address = conninfo_to_dict(dsn)
        # A name in the certificate that CloudNativePG makes.
        assert (address["sslmode"], address["host"]) == ("verify-full", f"{cluster}-rw"), name
        folder, file = str(address["sslrootcert"]).rsplit("/", 1)
        assert {"name": "postgres-ca", "mountPath": folder, "readOnly": True} in mounting["volumeMounts"]
        # The authority's own key stands beside it.
        secret = {"secretName": f"{cluster}-ca", "items": [{"key": file, "path": file}]}
        assert {"name": "postgres-ca", "secret": secret} in pod["volumes"]


def test_no_image_has_two_names() -> None:
    used = {container(name)["image"] for name in DEPLOYMENTS}
    assert {one["name"] for one in KUSTOMIZATION["images"]} == used
    assert len({one["newTag"] for one in KUSTOMIZATION["images"]}) == 1


def test_who_needs_the_object_store_may_reach_it() -> None:
    policies = of_kind("NetworkPolicy")
    (allowed,) = policies["object-store"]["spec"]["podSelector"]["matchExpressions"]
    wanted = {name for name in DEPLOYMENTS if "MESH_S3_ACCESS_KEY" in variables(name)}
    assert set(allowed["values"]) == wanted | {"prepare"}
    assert policies["nothing-by-default"]["spec"] == {
        "podSelector": {"matchLabels": {"app.kubernetes.io/part-of": "visionmesh"}},
        "policyTypes": ["Ingress", "Egress"],
    }


@every_deployment
def test_who_only_reads_pictures_has_a_key_that_only_reads(name: str) -> None:
    (objects,) = {
        account.objects for account in ACCOUNTS if name == account.name or name.startswith(f"{account.name}-")
    }
    secret = {"none": None, "read": "object-store-read", "write": "object-store"}[objects]
    for half in ("access", "secret"):
        wanted = secret and {"secretKeyRef": {"name": secret, "key": f"{half}-key"}}
        assert variables(name).get(f"MESH_S3_{half.upper()}_KEY") == wanted


def test_who_needs_the_cache_may_reach_it_and_nobody_else() -> None:
    policies = of_kind("NetworkPolicy")
    wanted = {name for name in DEPLOYMENTS if "MESH_CACHE_URL" in variables(name)}
    assert wanted == {"feature-extractor", "ingest-api"}
    (out,) = policies["to-redis"]["spec"]["podSelector"]["matchExpressions"]
    (source,) = policies["redis"]["spec"]["ingress"][0]["from"]
    (let_in,) = source["podSelector"]["matchExpressions"]
    assert set(out["values"]) == set(let_in["values"]) == wanted


def test_who_watches_gets_to_what_boards_ask() -> None:
    watching = {"matchLabels": {"visionmesh/monitoring": "true"}}
    database, *_ = of_kind("NetworkPolicy", SERVERS)["postgres"]["spec"]["ingress"]
    assert {"namespaceSelector": watching} in database["from"]
    (spans,) = of_kind("NetworkPolicy")["spans"]["spec"]["egress"]
    assert spans == {"to": [{"namespaceSelector": watching}], "ports": [{"protocol": "TCP", "port": 4318}]}


def test_kafka_is_set_as_in_compose_but_for_the_copies() -> None:
    config = of_kind("Kafka", SERVERS)["kafka"]["spec"]["kafka"]["config"]
    compose = {
        name.removeprefix("KAFKA_").lower().replace("_", "."): value
        for name, value in COMPOSE["kafka"]["environment"].items()
        if re.match(r"KAFKA_(AUTO|NUM|DEFAULT|MIN|OFFSETS|SHARE|TRANSACTION|GROUP)_", name)
    }
    assert config.keys() == compose.keys()
    same = {name for name in config if not re.search(r"replication\.factor|min\.isr|min\.insync", name)}
    assert {name: str(config[name]).lower() for name in same} == {name: compose[name] for name in same}
    assert config["num.partitions"] == PARTITIONS


def test_postgres_takes_the_connections_of_all_replicas() -> None:
    most = sum(one["spec"]["maxReplicaCount"] for one in of_kind("ScaledObject").values())
    most += sum(one["spec"]["maxReplicas"] for one in of_kind("HorizontalPodAutoscaler").values())
    parameters = of_kind("Cluster", SERVERS)["postgres"]["spec"]["postgresql"]["parameters"]
    # One more replica of each while they are replaced.
    assert int(parameters["max_connections"]) >= (most + len(DEPLOYMENTS)) * Settings().postgres_pool_size


def test_every_file_is_listed() -> None:
    for folder in ("mesh", "servers"):
        kustomization = yaml.safe_load((KUBERNETES / folder / "kustomization.yaml").read_text())
        listed = {*kustomization["resources"], *(one["path"] for one in kustomization.get("patches", ()))}
        assert {file.name for file in (KUBERNETES / folder).glob("*.yaml")} == listed | {"kustomization.yaml"}


def test_the_readme_says_that_it_was_not_run() -> None:
    assert "**Not run on a cluster**" in README
