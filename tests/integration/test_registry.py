"""Models from an MLflow server, on the one in memory and on a real one: one suite for both.

The real one needs an environment of its own, for it brings a hundred packages: MESH_MLFLOW_PYTHON names its
interpreter (python -m venv, pip install mlflow).
"""

from __future__ import annotations

import hashlib
import os
import re
from base64 import b64encode
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
from prometheus_client import REGISTRY
from structlog.testing import capture_logs

import small_models
from mlflow_servers import RealMlflow, Registry, Server, eventually
from training.tables import toml
from visionmesh.errors import Unavailable
from visionmesh.mlflow import Address, Mlflow
from visionmesh.model_store import Model, ModelError
from visionmesh.observability import metrics
from visionmesh.registry import ModelSource, open_shadow, open_source
from visionmesh.settings import ROOT, Settings
from visionmesh.testing.mlflow import MemoryMlflow

CHAMPION = "models:/classifier-fast@champion"


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealMlflow]:
    python = os.environ.get("MESH_MLFLOW_PYTHON")
    if python is None:
        pytest.skip("MESH_MLFLOW_PYTHON names no interpreter with MLflow")
    server = RealMlflow(python, tmp_path_factory.mktemp("mlflow"))
    server.start()
    yield server
    server.stop()


@pytest.fixture(params=["memory", "real"])
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    if request.param == "real":
        yield request.getfixturevalue("real")
        return
    with MemoryMlflow().running() as memory:
        yield memory


@pytest.fixture
def memory() -> Iterator[MemoryMlflow]:
    with MemoryMlflow().running() as memory:
        yield memory


@pytest.fixture
def registry(server: Server, request: pytest.FixtureRequest) -> Registry:
    return Registry(server, f"classifier-{abs(hash(request.node.nodeid))}")


def version_of(source: ModelSource) -> str | None:
    try:
        return source.current().version
    except Unavailable:
        return None


def favourite(model: Model) -> str:
    """What a small model finds in every picture."""
    label, _ = model.run(np.zeros((1, model.descriptor_count), np.float32))
    return model.labels[int(label[0])]


def refusals(name: str) -> float:
    return REGISTRY.get_sample_value("mesh_model_refusals_total", {"model": name}) or 0.0


@pytest.fixture(autouse=True)
def _nothing_announced() -> None:
    """As in a process that begins; a service announces the one model that it answers with."""
    metrics.MODEL.clear()


def announced() -> dict[str, str]:
    (family,) = (family for family in REGISTRY.collect() if family.name == "mesh_model")
    (sample,) = family.samples
    return dict(sample.labels)


# Loading and switching -------------------------------------------------------------------------------------


def test_what_an_alias_names_is_loaded(registry: Registry) -> None:
    registry.register(*small_models.classifier(favourite="cat"))
    registry.register(*small_models.classifier(favourite="dog"), promote=False)
    with open_source(registry.settings(), registry.champion, kind="classifier") as source:
        model = source.current()
        # The registry's own number, not the one of the table.
        assert model.address == f"{registry.name}@1"
        assert (model.labels, model.extractor) == (small_models.LABELS, "extractor@1.0.0")
        assert favourite(model) == "cat"
        assert announced() == {"name": registry.name, "version": "1", "family": "favourite"}


def test_another_champion_is_taken_without_a_restart(registry: Registry) -> None:
    registry.register(*small_models.classifier(favourite="cat"))
    with open_source(registry.settings(), registry.champion) as source:
        assert favourite(source.current()) == "cat"
        version = registry.register(*small_models.classifier(favourite="dog"))
        eventually(lambda: version_of(source) == version, "the new champion")
        assert favourite(source.current()) == "dog"
        assert announced()["version"] == version == "2"
        registry.promote("1")
        eventually(lambda: version_of(source) == "1", "the old champion again")
        assert favourite(source.current()) == "cat"


def test_a_version_stays(registry: Registry) -> None:
    registry.register(*small_models.classifier(favourite="cat"))
    registry.register(*small_models.classifier(favourite="dog"))
    with open_source(registry.settings(), f"models:/{registry.name}/1") as source:
        assert source.current().address == f"{registry.name}@1"
        assert favourite(source.current()) == "cat"


def test_an_extractor_keeps_the_name_of_its_space(registry: Registry) -> None:
    registry.register(*small_models.extractor(space="extractor@2.0.0"))
    with open_source(registry.settings(), registry.champion, kind="extractor") as source:
        assert source.current().space == "extractor@2.0.0"
        assert source.current().input_shape == (None, 32, 32, 3)


# Champions that are at fault -------------------------------------------------------------------------------


def files(table: Mapping[str, Any], model: bytes) -> dict[str, bytes]:
    return {"model.toml": toml(table).encode(), "model.onnx": model}


def bad_champions() -> dict[str, tuple[dict[str, bytes], str]]:
    """Their files, and words of the reason for which each is refused."""
    good, model = small_models.classifier()
    fewer = (*small_models.LABELS[:9], "bus")
    return {
        "damaged": (files(good, model[:-1]), "sha256"),
        "no-model": (
            files({**good, "sha256": hashlib.sha256(b"no model").hexdigest()}, b"no model"),
            "can't load the model",
        ),
        "wrong-count": (files(*small_models.classifier(said_width=10)), "does not take"),
        "other-width": (files(*small_models.classifier(width=10)), "descriptor_count is 10, not 20"),
        "other-labels": (files(*small_models.classifier(labels=fewer, favourite="bus")), "its labels is"),
        "other-extractor": (
            files(*small_models.classifier(extractor="extractor@2.0.0")),
            "extractor is extractor@2.0.0, not extractor@1.0.0",
        ),
        "an-extractor": (files(*small_models.extractor()), "of kind extractor"),
        "no-table": ({"model.onnx": model}, "has no model.toml"),
        "no-file": ({"model.toml": toml(good).encode()}, "has no model.onnx"),
        "no-toml": ({"model.toml": b"\xff", "model.onnx": model}, "not valid TOML"),
        "no-version": (files({k: v for k, v in good.items() if k != "version"}, model), "no 'version'"),
        "no-number": (files({**good, "descriptor_count": "twenty"}, model), "not understood"),
        "less-than-nothing": (files({**good, "descriptor_count": -1}, model), "not understood"),
        "outside": (files({**good, "file": "../model/model.onnx"}, model), "no file of its own folder"),
        "huge-table": (
            {"model.toml": b"#" * (64 * 1024 + 1), "model.onnx": model},
            "model.toml of version 2 of .* has more than 65536 bytes",
        ),
    }


@pytest.mark.parametrize("fault", list(bad_champions()))
def test_a_champion_that_is_at_fault_is_refused(registry: Registry, fault: str) -> None:
    bad, reason = bad_champions()[fault]
    registry.register(*small_models.classifier(favourite="cat"))
    with capture_logs() as logs, open_source(registry.settings(), registry.champion) as source:
        registry.register_files(bad)
        eventually(lambda: refusals(registry.name) == 1, "the refusal")
        assert favourite(source.current()) == "cat"
        assert source.current().version == announced()["version"] == "1"
        # Whoever goes back and forth is not refused for ever, and a good one is taken.
        registry.register(*small_models.classifier(favourite="dog"))
        eventually(lambda: version_of(source) == "3", "the good champion")
    (refused,) = [line for line in logs if line["event"] == "model_refused"]
    assert refused["version"] == "2"
    assert re.search(reason, refused["reason"]), refused["reason"]
    assert refusals(registry.name) == 1


def test_a_refused_champion_is_downloaded_once(memory: MemoryMlflow) -> None:
    registry = Registry(memory, "classifier-once")
    registry.register(*small_models.classifier(favourite="cat"))
    with open_source(registry.settings(), registry.champion):
        registry.register(*small_models.classifier(width=10))
        eventually(lambda: refusals(registry.name) == 1, "the refusal")
        downloads = len(memory.downloads)
        registry.register(*small_models.classifier(favourite="dog"), promote=False)
        registry.promote("3")
        eventually(lambda: announced()["version"] == "3", "the good champion")
        # Two files of the good one, and nothing of the refused one.
        assert len(memory.downloads) == downloads + 2


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        (small_models.extractor(width=10, space="extractor@1.0.0"), "descriptor_count is 10"),
        (small_models.extractor(space="extractor@2.0.0"), "space is extractor@2.0.0, not extractor@1.0.0"),
        (small_models.extractor(side=224, space="extractor@1.0.0"), "input_shape is"),
    ],
)
def test_an_extractor_of_another_space_is_refused(memory: MemoryMlflow, other: Any, reason: str) -> None:
    registry = Registry(memory, "classifier-space")
    registry.register(*small_models.extractor(space="extractor@1.0.0"))
    before = refusals(registry.name)
    with capture_logs() as logs, open_source(registry.settings(), registry.champion) as source:
        registry.register(*other)
        eventually(lambda: refusals(registry.name) == before + 1, "the refusal")
        assert source.current().version == "1"
    assert reason in next(line["reason"] for line in logs if line["event"] == "model_refused")


# MLflow away -----------------------------------------------------------------------------------------------


def test_mlflow_killed_the_model_goes_on(registry: Registry) -> None:
    registry.register(*small_models.classifier(favourite="cat"))
    with capture_logs() as logs, open_source(registry.settings(), registry.champion) as source:
        registry.server.stop()
        eventually(lambda: any(line["event"] == "registry_unavailable" for line in logs), "a word of it")
        assert favourite(source.current()) == "cat"
        registry.server.start()
        eventually(lambda: any(line["event"] == "registry_available" for line in logs), "its return")
        registry.register(*small_models.classifier(favourite="dog"))
        eventually(lambda: version_of(source) == "2", "the new champion")
    # Said once, not at every look.
    assert len([line for line in logs if line["event"] == "registry_available"]) == 1


def test_an_outage_is_logged_once(memory: MemoryMlflow) -> None:
    registry = Registry(memory, "classifier-logged")
    registry.register(*small_models.classifier())
    looks: list[None] = []
    with capture_logs() as logs, open_source(registry.settings(), registry.champion) as source:
        memory.authorization = "Basic somebody"
        resolve = source._mlflow.resolve  # type: ignore[attr-defined]
        source._mlflow.resolve = lambda address: (looks.append(None), resolve(address))[1]  # type: ignore[attr-defined]
        eventually(lambda: len(looks) >= 5, "five looks")
        assert source.current().version == "1"
    away = [line["reason"] for line in logs if line["event"] == "registry_unavailable"]
    assert away == [f"MLflow on {memory.url} answers 401: You are not authenticated."]


def test_a_download_that_breaks_off_is_tried_again(memory: MemoryMlflow) -> None:
    registry = Registry(memory, "classifier-broken-off")
    registry.register(*small_models.classifier(favourite="cat"))
    with capture_logs() as logs, open_source(registry.settings(), registry.champion) as source:
        memory.truncates = True
        registry.register(*small_models.classifier(favourite="dog"))
        eventually(lambda: any(line["event"] == "registry_unavailable" for line in logs), "a word of it")
        assert source.current().version == "1"
        memory.truncates = False
        eventually(lambda: version_of(source) == "2", "the new champion")
    assert refusals(registry.name) == 0


def test_a_download_that_trickles_is_given_up_and_tried_again(
    memory: MemoryMlflow, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = Registry(memory, "classifier-trickle")
    registry.register(*small_models.classifier(favourite="cat"))
    with capture_logs() as logs, open_source(registry.settings(), registry.champion) as source:
        for limit in ("_ANSWER_SECONDS", "_FILE_SECONDS"):
            monkeypatch.setattr(f"visionmesh.mlflow.{limit}", 0.1)
        memory.trickles = True
        registry.register(*small_models.classifier(favourite="dog"))
        eventually(
            lambda: any("takes more than 0.1 s" in line.get("reason", "") for line in logs), "the end of it"
        )
        assert favourite(source.current()) == "cat"
        memory.trickles = False
        monkeypatch.undo()
        eventually(lambda: version_of(source) == "2", "the new champion")
    assert refusals(registry.name) == 0


def test_a_service_that_starts_without_mlflow_waits_for_it(registry: Registry) -> None:
    registry.register(*small_models.classifier(favourite="cat"))
    registry.server.stop()
    try:
        with open_source(registry.settings(), registry.champion) as source:
            with pytest.raises(Unavailable, match="does not answer") as caught:
                source.current()
            assert caught.value.server == "model_store"
            registry.server.start()
            eventually(lambda: version_of(source) == "1", "the champion")
    finally:
        registry.server.start()


def test_a_model_that_is_not_registered_yet_is_waited_for(registry: Registry) -> None:
    with open_source(registry.settings(), registry.champion) as source:
        with pytest.raises(Unavailable, match=f"name={registry.name} not found"):
            source.current()
        registry.register(*small_models.classifier(), promote=False)
        eventually(lambda: "alias champion not found" in why(source), "another reason")
        registry.promote("1")
        eventually(lambda: version_of(source) == "1", "the champion")


def why(source: ModelSource) -> str:
    try:
        source.current()
    except Unavailable as error:
        return error.reason
    return ""


def test_a_first_champion_at_fault_says_so(memory: MemoryMlflow) -> None:
    registry = Registry(memory, "classifier-first")
    registry.register(*small_models.classifier(said_width=10))
    with open_source(registry.settings(), registry.champion) as source:
        assert "does not take" in why(source)
        memory.stop()
        eventually(lambda: "does not answer" in why(source), "the outage")
        memory.start()
        eventually(lambda: "does not take" in why(source), "the fault again")
        registry.register(*small_models.classifier())
        eventually(lambda: version_of(source) == "2", "the good champion")


# Addresses and access --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "address",
    [
        "models:/",
        "models:/x",
        "models:/x/0",
        "models:/x/latest",
        "models:/x@",
        "models://x/1",
        "models:/x@a/1",
    ],
)
def test_an_address_that_is_none_is_refused_at_once(address: str) -> None:
    with pytest.raises(ModelError, match="models:/name@alias or models:/name/3"):
        with open_source(Settings(mlflow_tracking_uri="http://127.0.0.1:1"), address):
            pass


def test_addresses() -> None:
    assert Address.parse("models:/classifier-fast@champion") == Address("classifier-fast", "champion", None)
    assert Address.parse("models:/classifier-fast/12") == Address("classifier-fast", None, "12")
    for text in ("models:/classifier-fast@champion", "models:/classifier-fast/12"):
        assert str(Address.parse(text)) == text


def test_no_server_is_a_clear_error() -> None:
    with pytest.raises(ModelError, match="MLFLOW_TRACKING_URI"):
        with open_source(Settings(), CHAMPION):
            pass


@pytest.mark.parametrize("uri", ["sqlite:///mlflow.db", "./mlruns", "databricks", "http://"])
def test_a_tracking_uri_that_is_no_server_is_a_clear_error(uri: str) -> None:
    with pytest.raises(ModelError, match="MLFLOW_TRACKING_URI has to be"):
        Mlflow(uri)


def test_user_and_password(memory: MemoryMlflow) -> None:
    registry = Registry(memory, "classifier-secret")
    registry.register(*small_models.classifier())
    memory.authorization = f"Basic {b64encode(b'mesh:s:cret').decode()}"
    with open_source(registry.settings(), registry.champion) as source:
        with pytest.raises(Unavailable, match="401"):
            source.current()
    settings = registry.settings(mlflow_tracking_username="mesh", mlflow_tracking_password="s:cret")
    with open_source(settings, registry.champion) as source:
        assert source.current().version == "1"
    inside = Mlflow(memory.url.replace("://", "://mesh:s:cret@"))
    assert inside.resolve(Address.parse(registry.champion)) == "1"
    assert "cret" not in inside.url


@pytest.mark.parametrize("password", ["a@b/c:d%41", "contraseña", "пароль"])
def test_any_password_can_be_given_in_the_address_or_beside_it(memory: MemoryMlflow, password: str) -> None:
    registry = Registry(memory, "classifier-secret")
    registry.register(*small_models.classifier())
    memory.authorization = f"Basic {b64encode(f'mesh:{password}'.encode()).decode()}"
    address = Address.parse(registry.champion)
    assert Mlflow(memory.url, "mesh", password).resolve(address) == "1"
    inside = memory.url.replace("://", f"://mesh:{quote(password, safe='')}@")
    assert Mlflow(inside).resolve(address) == "1"


NO_ANSWERS: list[Any] = [
    ["a list"],
    {"registered_models": ["a name"]},
    {"registered_models": [{}]},
    {"registered_model": {"aliases": [{}]}, "model_versions": [{}]},
    {"model_version": None},
    {"artifact_uri": None},
    {},
]


@pytest.mark.parametrize("answer", NO_ANSWERS, ids=str)
def test_what_is_no_mlflow_says_so(
    memory: MemoryMlflow, monkeypatch: pytest.MonkeyPatch, answer: object
) -> None:
    monkeypatch.setattr(MemoryMlflow, "ask", lambda *_: answer)
    mlflow = Mlflow(memory.url)
    for ask in (
        lambda: mlflow.resolve(Address.parse(CHAMPION)),
        lambda: mlflow.load("classifier-fast", "1"),
        lambda: mlflow.versions("classifier-fast"),
    ):
        with pytest.raises(Unavailable, match="is it an MLflow server"):
            ask()
    with open_source(Registry(memory, "classifier-fast").settings(), CHAMPION) as source:
        assert "is it an MLflow server" in why(source)


# The rest of the registry ----------------------------------------------------------------------------------


def test_models_versions_and_aliases(registry: Registry) -> None:
    for _ in range(3):
        registry.register(*small_models.classifier(), promote=False)
    registry.promote("2")
    mlflow = Mlflow(registry.server.url)
    assert mlflow.models()[registry.name] == {"champion": "2"}
    versions = mlflow.versions(registry.name)
    assert [(each.version, each.aliases) for each in versions] == [("3", ()), ("2", ("champion",)), ("1", ())]
    with pytest.raises(Unavailable, match="version=9"):
        mlflow.promote(registry.name, "9", "champion")


def test_the_table_of_a_version_is_read_without_its_file(registry: Registry) -> None:
    table, _ = small_models.extractor(space="extractor@2.0.0")
    registry.register_files({"model.toml": toml(table).encode()})
    registry.register_files({})
    mlflow = Mlflow(registry.server.url)
    assert mlflow.describe(registry.name, "1") == table
    with pytest.raises(ModelError, match=r"has no model\.toml"):
        mlflow.describe(registry.name, "2")
    with pytest.raises(Unavailable):
        mlflow.describe(registry.name, "3")


def test_long_lists_come_in_pages(memory: MemoryMlflow, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("visionmesh.mlflow._PAGE", 2)
    registry = Registry(memory, "classifier-pages")
    for _ in range(5):
        registry.register(*small_models.classifier(), promote=False)
    versions = Mlflow(memory.url).versions(registry.name)
    assert [each.version for each in versions] == ["5", "4", "3", "2", "1"]


# Names of models.toml, and shadows -------------------------------------------------------------------------


def test_a_name_of_models_toml_is_fixed() -> None:
    with open_source(Settings(), "classifier-fast", kind="classifier") as source:
        assert source.current() is source.current()
        assert source.current().name == announced()["name"] == "classifier-fast"


def test_a_model_of_another_kind_is_refused() -> None:
    with pytest.raises(ModelError, match="is of kind extractor, and one of kind classifier is needed"):
        with open_source(Settings(), "extractor", kind="classifier"):
            pass


def test_a_built_model_is_a_name_too(tmp_path: Path) -> None:
    built = small_models.write_models(tmp_path, {"mine": small_models.classifier(favourite="frog")})
    with open_source(Settings(models_dir=ROOT / "models", built_models_dir=built), "mine") as source:
        assert favourite(source.current()) == "frog"


def test_a_shadow_is_not_what_the_metrics_name(memory: MemoryMlflow) -> None:
    registry = Registry(memory, "classifier-shadow")
    registry.register(*small_models.classifier())
    with open_source(Settings(), "classifier-fast"):
        settings = registry.settings(shadow_model=registry.champion)
        with open_shadow(settings, "classifier") as shadow:
            assert shadow is not None
            assert shadow.current().address == f"{registry.name}@1"
            assert announced()["name"] == "classifier-fast"


@pytest.mark.parametrize("model", ["nowhere", "extractor", "models:/x", CHAMPION])
def test_a_shadow_that_can_not_be_had_keeps_nobody_from_starting(model: str) -> None:
    with capture_logs() as logs, open_shadow(Settings(shadow_model=model), "classifier") as shadow:
        assert shadow is None
    assert [line["event"] for line in logs] == ["no_shadow"]


def test_no_shadow_is_nothing_to_say() -> None:
    with capture_logs() as logs, open_shadow(Settings(), "classifier") as shadow:
        assert shadow is None
    assert logs == []
