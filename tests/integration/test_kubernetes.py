"""What kustomize makes of deploy/kubernetes, held against schemas that come with packages."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import kubernetes_validate
import pytest
from jsonschema import Draft202012Validator

from kubernetes_tools import CLOUDNATIVE_PG, KEDA, rendered, resource_definition, strimzi_complaints
from visionmesh.stack import StackKind

ROOT: Final = Path(__file__).parents[2]
FOLDERS: Final = {name: ROOT / "deploy/kubernetes" / name for name in ("mesh", "servers")}

# The oldest that is still looked after, and the newest that the package knows.
KUBERNETES: Final = ("1.33", kubernetes_validate.latest_version())

# The first time tools are built and packages fetched.
pytestmark = pytest.mark.timeout(1200)

_OWN: Final = ("keda.sh/", "postgresql.cnpg.io/", "kafka.strimzi.io/")


@pytest.fixture(scope="module")
def fetch(stack_kind: StackKind) -> bool:
    return stack_kind == "native"


@pytest.fixture(scope="module")
def resources(fetch: bool) -> list[dict[str, Any]]:
    return [one for folder in FOLDERS.values() for one in rendered(folder, fetch=fetch)]


def strict(schema: Any) -> Any:
    """The schema of a custom resource as one that refuses what it does not name; Kubernetes drops that."""
    if isinstance(schema, list):
        return [strict(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    made = {name: strict(value) for name, value in schema.items()}
    if "properties" in made and not made.get("x-kubernetes-preserve-unknown-fields"):
        made.setdefault("additionalProperties", False)
    return made


def complaints(definition: Mapping[str, Any], resource: Mapping[str, Any]) -> list[str]:
    version = resource["apiVersion"].rsplit("/", 1)[1]
    (schema,) = (
        one["schema"]["openAPIV3Schema"] for one in definition["spec"]["versions"] if one["name"] == version
    )
    made = strict(schema)
    # Those are of Kubernetes itself.
    made["properties"]["metadata"] = {"type": "object"}
    return [error.message for error in Draft202012Validator(made).iter_errors(resource)]


@pytest.mark.parametrize("version", KUBERNETES)
def test_what_is_kubernetes_own_is_as_its_schemas_say(resources: list[dict[str, Any]], version: str) -> None:
    own = [one for one in resources if not one["apiVersion"].startswith(_OWN)]
    assert len(own) > 30
    for one in own:
        kubernetes_validate.validate(one, version, strict=True)


@pytest.mark.parametrize(
    ("kind", "module", "file", "wanted"),
    [
        ("ScaledObject", KEDA, "keda.sh_scaledobjects.yaml", 7),
        ("Cluster", CLOUDNATIVE_PG, "postgresql.cnpg.io_clusters.yaml", 1),
    ],
)
def test_what_is_an_operator_s_is_as_its_definition_says(
    resources: list[dict[str, Any]], fetch: bool, kind: str, module: str, file: str, wanted: int
) -> None:
    definition = resource_definition(module, file, fetch=fetch)
    found = [one for one in resources if one["kind"] == kind]
    assert len(found) == wanted
    for one in found:
        assert complaints(definition, one) == []
    # And it would say so.
    wrong = copy.deepcopy(found[0])
    wrong["spec"]["nosuchfield"] = 1
    assert complaints(definition, wrong)


def test_strimzi_s_own_classes_take_kafka(
    resources: list[dict[str, Any]], fetch: bool, tmp_path: Path
) -> None:
    found = [one for one in resources if one["apiVersion"].startswith("kafka.strimzi.io/")]
    assert {one["kind"] for one in found} == {"Kafka", "KafkaNodePool"}
    wrong = copy.deepcopy(found)
    for one in wrong:
        one["spec"]["nosuchfield"] = 1
    # Together, since a virtual machine takes its time to start.
    said = strimzi_complaints([*found, *wrong], tmp_path, fetch=fetch).splitlines()
    assert {line for line in said if "nosuchfield" not in line} == set()
    assert len(said) == len(wrong)


def test_every_service_is_locked_up_probed_and_part_of_the_mesh(resources: list[dict[str, Any]]) -> None:
    deployments = [one for one in resources if one["kind"] == "Deployment"]
    services = [one for one in deployments if one["metadata"]["name"] != "redis"]
    assert len(services) == 8
    for one in (*deployments, *(one for one in resources if one["kind"] == "Job")):
        template = one["spec"]["template"]
        assert template["metadata"]["labels"]["app.kubernetes.io/part-of"] == "visionmesh"
        assert template["spec"]["securityContext"]["runAsNonRoot"] is True
        for container in (*template["spec"].get("initContainers", ()), *template["spec"]["containers"]):
            assert container["securityContext"]["readOnlyRootFilesystem"] is True
            assert container["resources"]["limits"]["memory"]
            assert ":" in container["image"].rsplit("/", 1)[1], "a tag"
    for one in services:
        (container,) = one["spec"]["template"]["spec"]["containers"]
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            assert container[probe]["httpGet"]["port"] == "http"
        (settings,) = container["envFrom"]
        assert settings["configMapRef"]["name"].startswith("mesh-settings-"), "a change replaces the pods"
        assert one["spec"]["template"]["metadata"]["annotations"]["prometheus.io/scrape"] == "true"
        assert one["metadata"]["namespace"] == "visionmesh"
