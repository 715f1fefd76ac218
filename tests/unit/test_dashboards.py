"""The dashboards as data: the committed files are those of the code, and say what they show."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from boards.__main__ import BOARDS
from boards.panels import FOLDER, rendered
from promql import asked, metrics_in
from visionmesh.observability import metrics, reference

ROOT: Final = Path(__file__).parents[2]
PROVISIONING: Final = ROOT / "deploy/grafana/provisioning"
GRAFANA: Final[dict[str, Any]] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"][
    "grafana"
]

DASHBOARDS: Final[dict[str, dict[str, Any]]] = {
    file.stem: json.loads(file.read_text()) for file in sorted(FOLDER.glob("*.json"))
}
PANELS: Final = [
    pytest.param(panel, id=f"{name}-{panel['id']}-{panel['title']}")
    for name, board in DASHBOARDS.items()
    for panel in board["panels"]
    if panel["type"] != "row"
]
EXPRESSIONS: Final = {
    target["expr"]
    for board in DASHBOARDS.values()
    for panel in board["panels"]
    for target in panel.get("targets", [])
    if "expr" in target
}

every_board = pytest.mark.parametrize("name", DASHBOARDS)
every_panel = pytest.mark.parametrize("panel", PANELS)


def test_the_committed_files_are_those_of_the_code() -> None:
    assert DASHBOARDS.keys() == BOARDS.keys()
    for name, board in BOARDS.items():
        assert (FOLDER / f"{name}.json").read_text() == rendered(board()), "run `make dashboards`"


@every_panel
def test_a_panel_says_what_it_shows_and_in_what_unit(panel: dict[str, Any]) -> None:
    assert panel["title"]
    assert len(panel["description"]) > 20
    assert panel["description"].endswith(".")
    assert panel["fieldConfig"]["defaults"]["unit"]
    assert panel["targets"]
    references = [target["refId"] for target in panel["targets"]]
    assert len(references) == len(set(references))


@every_panel
def test_a_panel_asks_a_data_source_that_is_provisioned(panel: dict[str, Any]) -> None:
    provisioned = {
        (source["type"], source["uid"])
        for file in (PROVISIONING / "datasources").glob("*.yaml")
        for source in yaml.safe_load(file.read_text())["datasources"]
    }
    for target in panel["targets"]:
        assert (target["datasource"]["type"], target["datasource"]["uid"]) in provisioned


@pytest.mark.parametrize("expression", sorted(EXPRESSIONS))
def test_a_query_asks_for_metrics_of_the_closed_list(expression: str) -> None:
    used = metrics_in(expression)
    assert used
    assert used <= reference.series()


def test_everything_that_is_counted_is_on_a_panel() -> None:
    shown = set[str]().union(*map(metrics_in, EXPRESSIONS))
    counted = {one.name for one in reference.described() if one.kind == "counter"}
    assert counted <= shown
    # And of the others, all but those whose place another has.
    timed = {f"{one.name}_bucket" for one in reference.described() if one.kind == "histogram"}
    assert timed - shown == {"mesh_batch_size_bucket"}


def test_every_gauge_is_on_a_panel() -> None:
    shown = set[str]().union(*map(metrics_in, EXPRESSIONS))
    assert {one.name for one in reference.described() if one.kind == "gauge"} <= shown
    assert set(metrics.FOREIGN) <= shown


@pytest.mark.parametrize("expression", sorted(EXPRESSIONS))
def test_counters_are_shown_by_what_they_gain(expression: str) -> None:
    # A gauge that only goes up begins anew with its process as well. Whether a counter was there before is no
    # value that is shown.
    shown = re.sub(r" unless max_over_time\([^)]*\)", "", expression)
    counters = r"mesh_\w+_(?:total|bucket|sum|count)|mesh_edge_(?:device_errors|camera_requests)"
    for function in re.findall(rf"(\w*)\((?:{counters})\b", shown):
        assert function in ("rate", "increase", "last_over_time")


def test_what_fires_is_named_with_what_a_reader_looks_for_first() -> None:
    (panel,) = (one for one in DASHBOARDS["overview"]["panels"] if one["title"] == "Alerts that fire")
    (target,) = panel["targets"]
    assert target["instant"]
    assert target["format"] == "table"
    (organized,) = panel["transformations"]
    columns = organized["options"]["indexByName"]
    assert sorted(columns, key=columns.get) == ["alertname", "severity", "job"]
    assert panel["fieldConfig"]["defaults"]["noValue"], "a mesh that is well has no rows"


@every_panel
def test_only_a_number_shows_0_where_there_is_nothing(panel: dict[str, Any]) -> None:
    for target in panel["targets"]:
        if "vector(0)" in target.get("expr", ""):
            assert panel["type"] == "stat", "a line without a name beside those that have one"
            assert target["expr"].endswith(" or vector(0)")


def test_what_a_number_counts_is_asked_for_whether_or_not_there_is_any() -> None:
    assert asked("count(up == 0) or vector(0)") == "count(up)"
    assert asked("count(time() - max(t) > 120) or vector(0)") == "count(time() - max(t))"
    assert asked("sum (rate(a_total[$__rate_interval]))") == "sum (rate(a_total[10m]))"


@every_board
def test_panels_do_not_overlap_and_stay_on_the_grid(name: str) -> None:
    panels = DASHBOARDS[name]["panels"]
    boxes = [(panel["title"], panel["gridPos"]) for panel in panels]
    assert all(box["x"] >= 0 and box["x"] + box["w"] <= 24 and box["h"] > 0 for _, box in boxes)
    for (one, a), (other, b) in itertools.combinations(boxes, 2):
        apart = (
            a["x"] + a["w"] <= b["x"]
            or b["x"] + b["w"] <= a["x"]
            or a["y"] + a["h"] <= b["y"]
            or b["y"] + b["h"] <= a["y"]
        )
        assert apart, f"{one} lies over {other}"
    identities = [panel["id"] for panel in panels]
    assert len(identities) == len(set(identities))


@every_board
def test_a_line_of_panels_leaves_no_gap(name: str) -> None:
    widths: dict[int, int] = {}
    for panel in DASHBOARDS[name]["panels"]:
        widths[panel["gridPos"]["y"]] = widths.get(panel["gridPos"]["y"], 0) + panel["gridPos"]["w"]
    assert set(widths.values()) == {24}


@every_board
def test_a_board_can_be_reached_from_the_others_and_is_not_changed_by_hand(name: str) -> None:
    board = DASHBOARDS[name]
    others = {f"/d/{other['uid']}" for other in DASHBOARDS.values()} - {f"/d/{board['uid']}"}
    assert {link["url"] for link in board["links"]} == others
    assert board["editable"] is False
    assert board["schemaVersion"] <= 42, "the newest that the pinned Grafana reads"


def test_grafana_finds_its_data_sources_and_its_dashboards() -> None:
    (source,) = yaml.safe_load((PROVISIONING / "datasources/prometheus.yaml").read_text())["datasources"]
    assert (source["uid"], source["url"]) == ("prometheus", "http://prometheus:9090")
    (provider,) = yaml.safe_load((PROVISIONING / "dashboards/visionmesh.yaml").read_text())["providers"]
    assert f"./deploy/grafana/dashboards:{provider['options']['path']}:ro" in GRAFANA["volumes"]
    home = GRAFANA["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert home == f"{provider['options']['path']}/overview.json"
    scrape = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())["global"]
    assert source["jsonData"]["timeInterval"] == scrape["scrape_interval"]
