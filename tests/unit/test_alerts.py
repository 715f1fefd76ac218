"""Alerts and their runbooks: promtool runs the alerts' own tests, and what a runbook names is there."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any, Final

import pytest
import typer.main
import yaml
from click import Command, Group

from prometheus_servers import promtool
from promql import metrics_in
from visionmesh.cli import app
from visionmesh.observability import reference

ROOT: Final = Path(__file__).parents[2]
PROMETHEUS: Final = ROOT / "deploy/prometheus"
RUNBOOKS: Final = sorted((ROOT / "deploy/runbooks").glob("*.md"))
ALERTS: Final[list[dict[str, Any]]] = [
    rule
    for group in yaml.safe_load((PROMETHEUS / "alerts.yml").read_text())["groups"]
    for rule in group["rules"]
]
WORKERS: Final = (
    "shared/visionmesh/worker",
    "shared/visionmesh/images.py",
    "shared/visionmesh/isolated.py",
    "shared/visionmesh/isolated_child.py",
    "shared/visionmesh/object_store.py",
    "services/classifier/domain.py",
    "services/ocr_worker/domain",
    "services/ocr_worker/reading.py",
    "services/ocr_worker/paddlex_engine.py",
    "services/qr_decoder/qreader_engine.py",
    "services/sensor_sink/step.py",
)
# What only those meet who wait for an answer, or choose how it is found.
OVER_HTTP: Final = {"answer_overdue", "profile_unavailable", "unknown_profile"}
TESTS: Final = ROOT / "tests/prometheus/alerts.yml"

every_alert = pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert["alert"])
every_runbook = pytest.mark.parametrize("runbook", RUNBOOKS, ids=lambda file: file.stem)


def test_the_alerts_own_tests_pass() -> None:
    ended = subprocess.run([promtool(), "test", "rules", TESTS], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_prometheus_accepts_its_files() -> None:
    ended = subprocess.run(
        [promtool(), "check", "config", "prometheus.yml"],
        cwd=PROMETHEUS, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert f"{len(ALERTS)} rules found" in ended.stdout


@every_alert
def test_an_alert_is_tried_firing_and_at_rest(alert: dict[str, Any]) -> None:
    tried = [
        bool(one.get("exp_alerts"))
        for test in yaml.safe_load(TESTS.read_text())["tests"]
        for one in test["alert_rule_test"]
        if one["alertname"] == alert["alert"]
    ]
    assert set(tried) == {True, False}


@every_alert
def test_an_alert_says_what_it_is_and_where_its_runbook_is(alert: dict[str, Any]) -> None:
    assert alert["labels"]["severity"] in ("warning", "critical")
    assert alert["annotations"]["summary"].endswith(".")
    runbook = ROOT / alert["annotations"]["runbook"]
    assert f"**{alert['alert']}**" in runbook.read_text() or f"## {alert['alert']}" in runbook.read_text()
    index = (ROOT / "deploy/runbooks/README.md").read_text()
    (line,) = (line for line in index.splitlines() if f"[{runbook.name}]({runbook.name})" in line)
    assert re.search(rf"\b{alert['alert']}\b", line)


@every_alert
def test_an_alert_asks_for_metrics_of_the_closed_list(alert: dict[str, Any]) -> None:
    used = metrics_in(re.sub(r'"[^"]*"', "", alert["expr"]))
    assert used
    assert used <= reference.series()


def test_prometheus_reads_the_alerts() -> None:
    settings = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())
    assert settings["rule_files"] == ["alerts.yml"]
    tried = yaml.safe_load(TESTS.read_text())["evaluation_interval"]
    assert settings["global"]["evaluation_interval"] == tried
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]["prometheus"]
    assert "./deploy/prometheus:/etc/prometheus:ro" in compose["volumes"]


def test_the_board_calls_those_sensors_silent_that_the_alert_does() -> None:
    (alert,) = (alert for alert in ALERTS if alert["alert"] == "SensorSilent")
    board = json.loads((ROOT / "deploy/grafana/dashboards/edge.json").read_text())
    (silent,) = (panel for panel in board["panels"] if panel["title"] == "Silent")
    asked = silent["targets"][0]["expr"]
    assert asked.removeprefix("count(").removesuffix(") or vector(0)") == re.sub(
        r"\(\s+|\s+(?=\))", lambda found: found[0].strip(), alert["expr"]
    )


@every_runbook
def test_links_lead_somewhere(runbook: Path) -> None:
    for link in re.findall(r"\]\(([^)]+)\)", runbook.read_text()):
        path, _, heading = link.partition("#")
        assert (runbook.parent / path).is_file(), link
        assert not heading or heading in anchors(runbook.parent / path), link
    for path in re.findall(r"`((?:deploy|docs|shared|tests)/[\w./-]+)`", runbook.read_text()):
        assert (ROOT / path).exists(), path


@every_runbook
def test_who_lost_something_is_sent_to_where_backups_are_told_of(runbook: Path) -> None:
    if re.search(r"\bbackups?\b", runbook.read_text(), re.IGNORECASE):
        assert "(../../docs/operations.md#backup-and-restore)" in runbook.read_text()
    guide = (ROOT / "docs/operations.md").read_text().split("\n## Backup and restore\n")[1].split("\n## ")[0]
    assert {"mesh backup", "mesh restore"} <= set(re.findall(r"^    (mesh \w+)", guide, re.MULTILINE))


@every_runbook
def test_commands_exist(runbook: Path) -> None:
    for words in re.findall(r"\bmesh ((?:[a-z]+ ?){1,2})", "\n".join(commands(runbook))):
        command: Command = typer.main.get_command(app)
        for word in words.split():
            if not isinstance(command, Group):
                break
            assert word in command.commands, f"mesh {words}"
            command = command.commands[word]


@every_runbook
def test_no_command_takes_replicas_away(runbook: Path) -> None:
    """`docker compose up` sets a service to one replica if not told otherwise; without a name, all."""
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    scalable = {
        name for name, service in services.items() if "MESH_HTTP_PORT" in str(service.get("healthcheck"))
    }
    assert len(scalable) == 9
    for command in commands(runbook):
        _, up, rest = command.partition("docker compose up ")
        named = set(rest.split()) & set(services)
        assert not up or "--no-recreate --scale" in rest or (named and not named & scalable), command


@every_runbook
def test_variables_are_settings(runbook: Path) -> None:
    # Of no use is what compose does not hand on to the containers, by `.env` or by a line of its own.
    compose = (ROOT / "docker-compose.yml").read_text()
    known = set(re.findall(r"\$\{([A-Z_]+)", compose))
    known |= set(re.findall(r'^ +([A-Z_]+): "?[\w -]+"?$', compose, re.MULTILINE))
    named = set(re.findall(r"\b(?:MESH|EDGE|OCR|EXTRACTOR|KAFKA)_[A-Z_]*[A-Z]\b", runbook.read_text()))
    assert named <= known


def test_reasons_of_dead_letters_are_those_of_the_code() -> None:
    text = (ROOT / "deploy/runbooks/dead-letters.md").read_text()
    table = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `")]
    source = "".join(
        file.read_text() for folder in ("shared", "services") for file in (ROOT / folder).rglob("*.py")
    )
    codes = re.findall(r"`(\w+)`", " ".join(table))
    assert len(codes) > 8
    for code in codes:
        assert f'"{code}"' in source, code
    # Of what runs in a worker none is left out.
    for path in WORKERS:
        for file in [ROOT / path] if path.endswith(".py") else (ROOT / path).rglob("*.py"):
            assert set(re.findall(r'Rejected\(\s*"(\w+)"', file.read_text())) <= {*codes, *OVER_HTTP}, file


def anchors(document: Path) -> set[str]:
    """What links to its headings are called."""
    headings = re.findall(r"^#+ (.+)$", document.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def commands(runbook: Path) -> list[str]:
    """The lines that a runbook says to type, and what it names in the text."""
    text = runbook.read_text()
    lines = [line.partition("#")[0] for line in text.splitlines() if line.startswith("    ")]
    return lines + re.findall(r"`((?:mesh|docker compose) [^`]+)`", text)
