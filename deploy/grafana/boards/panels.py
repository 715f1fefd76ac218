"""What the boards are made of: panels with a description and a unit, queries, and the house's looks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

from grafana_foundation_sdk.builders import common as common_builders
from grafana_foundation_sdk.builders import dashboard as dashboard_builders
from grafana_foundation_sdk.builders import heatmap as heatmap_builders
from grafana_foundation_sdk.builders import prometheus, stat, table, timeseries
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.variants import Dataquery
from grafana_foundation_sdk.models import common, dashboard, heatmap
from grafana_foundation_sdk.models import prometheus as prometheus_models

FOLDER: Final = Path(__file__).parents[1] / "dashboards"

METRICS: Final = common.DataSourceRef(type_val="prometheus", uid="prometheus")
ROWS: Final = common.DataSourceRef(type_val="grafana-postgresql-datasource", uid="postgres")

WIDTH: Final = 24

# For a single number alone: beside lines that have names it is one more, which has none.
ZERO: Final = " or vector(0)"

# Longer than any panel's own: what happens seldom is looked at by the hour.
_LINKS: Final = {
    "visionmesh-overview": "Overview",
    "visionmesh-workers": "Workers",
    "visionmesh-recognition": "Recognition",
    "visionmesh-edge": "Edge",
}

Panel: TypeAlias = Builder[dashboard.Panel]


@dataclass(frozen=True, slots=True)
class Query:
    """PromQL, and how its series are called: `{{worker}} p95`."""

    expression: str
    legend: str


def rate(metric: str, matchers: str = "", *, by: str = "") -> str:
    """What a counter gains each second, summed over replicas."""
    return f"sum {_by(by)}(rate({metric}{_braces(matchers)}[$__rate_interval]))"


def gained(metric: str, matchers: str = "", *, by: str = "") -> str:
    """What a counter gained within an hour. One that appeared since counts from 0, unlike with `increase`.

    Whether it was there before is asked of a whole hour: at a single moment a scrape may have failed.
    """
    selected = f"{metric}{_braces(matchers)}"
    return (
        f"sum {_by(by)}((last_over_time({selected}[1h]) unless max_over_time({selected}[1h] offset 1h)) "
        f"or increase({selected}[1h]))"
    )


def quantile(which: float, metric: str, matchers: str = "", *, by: str = "", window: str = "") -> str:
    """A quantile of a histogram. metric: without `_bucket`."""
    labels = f"le, {by}" if by else "le"
    return (
        f"histogram_quantile({which:g}, sum by ({labels}) "
        f"(rate({metric}_bucket{_braces(matchers)}[{window or '$__rate_interval'}])))"
    )


def quantiles(metric: str, matchers: str = "", *, by: str = "") -> list[Query]:
    """p50, p95 and p99."""
    prefix = f"{{{{{by}}}}} " if by else ""
    return [
        Query(quantile(which, metric, matchers, by=by), f"{prefix}p{which * 100:g}")
        for which in (0.5, 0.95, 0.99)
    ]


def mean(metric: str, matchers: str = "", *, by: str = "") -> str:
    """The mean of a histogram. metric: without `_sum` and `_count`."""
    return f"{rate(f'{metric}_sum', matchers, by=by)} / {rate(f'{metric}_count', matchers, by=by)}"


def number(
    title: str,
    description: str,
    unit: str,
    expression: str,
    *,
    width: int = 4,
    bad_from: float | None = None,
    decimals: int | None = None,
    counts: bool = False,
) -> Panel:
    """One number of this moment; red from `bad_from` on. counts: 0 where there is nothing of it."""
    panel = (
        stat.Panel()
        .title(title)
        .description(description)
        .datasource(METRICS)
        .unit(unit)
        .height(4)
        .span(width)
        .with_target(_target("A", Query(f"{expression}{ZERO if counts else ''}", title.lower())).instant())
        .reduce_options(common_builders.ReduceDataOptions().calcs(["lastNotNull"]))
        .graph_mode(common.BigValueGraphMode.NONE)
        .color_mode(common.BigValueColorMode.VALUE)
        .thresholds(_thresholds(bad_from))
    )
    return panel if decimals is None else panel.decimals(decimals)


def graph(
    title: str,
    description: str,
    unit: str,
    *queries: Query,
    width: int = 8,
    stacked: bool = False,
    at_most: float | None = None,
    bad_from: float | None = None,
) -> Panel:
    """Lines over time. at_most: the end of the axis, where there is one."""
    panel = (
        timeseries.Panel()
        .title(title)
        .description(description)
        .datasource(METRICS)
        .unit(unit)
        .min(0)
        .height(8)
        .span(width)
        .line_width(1)
        .fill_opacity(30 if stacked else 10)
        .show_points(common.VisibilityMode.NEVER)
        .legend(
            common_builders.VizLegendOptions()
            .display_mode(common.LegendDisplayMode.LIST)
            .placement(common.LegendPlacement.BOTTOM)
            .show_legend(True)
        )
        .tooltip(
            common_builders.VizTooltipOptions()
            .mode(common.TooltipDisplayMode.MULTI)
            .sort(common.SortOrder.DESCENDING)
        )
        .targets([_target(chr(ord("A") + index), query).range() for index, query in enumerate(queries)])
    )
    if stacked:
        panel.stacking(common_builders.StackingConfig().mode(common.StackingMode.NORMAL))
    if at_most is not None:
        panel.max(at_most)
    if bad_from is not None:
        panel.thresholds(_thresholds(bad_from)).thresholds_style(
            common_builders.GraphThresholdsStyleConfig().mode(common.GraphThresholdsStyleMode.DASHED)
        )
    return panel


def distribution(title: str, description: str, unit: str, expression: str, *, width: int = 12) -> Panel:
    """A histogram over time. expression: gives its buckets, by `le`."""
    target = _target("A", Query(expression, "{{le}}")).range()
    return (
        heatmap_builders.Panel()
        .title(title)
        .description(description)
        .datasource(METRICS)
        .unit(unit)
        .height(8)
        .span(width)
        .calculate(False)
        .color(
            heatmap_builders.HeatmapColorOptions()
            .mode(heatmap.HeatmapColorMode.SCHEME)
            .scheme("Blues")
            .steps(32)
        )
        .y_axis(heatmap_builders.YAxisConfig().unit(unit))
        .with_target(target.format(prometheus_models.PromQueryFormat.HEATMAP))
    )


def current(
    title: str, description: str, expression: str, *, columns: Sequence[str], nothing: str, width: int = WIDTH
) -> Panel:
    """The series of this moment by their labels. columns: the labels that stand first. nothing: what is said
    where there are no series.
    """
    # What all series have alike, and a value that says no more than that they are there.
    hidden = ("Time", "Value", "__name__", "alertstate")
    return (
        table.Panel()
        .title(title)
        .description(description)
        .datasource(METRICS)
        .unit("none")
        .height(6)
        .span(width)
        .no_value(nothing)
        .with_target(
            _target("A", Query(expression, "")).instant().format(prometheus_models.PromQueryFormat.TABLE)
        )
        .with_transformation(
            dashboard.DataTransformerConfig(
                id_val="organize",
                options={
                    "excludeByName": dict.fromkeys(hidden, True),
                    "indexByName": {name: index for index, name in enumerate(columns)},
                },
            )
        )
    )


def listing(title: str, description: str, sql: str, *, width: int = WIDTH, height: int = 9) -> Panel:
    """Rows straight from Postgres."""
    return (
        table.Panel()
        .title(title)
        .description(description)
        .datasource(ROWS)
        # Columns bring their own where `SELECT` gives them one; the rest is told as it is.
        .unit("none")
        .height(height)
        .span(width)
        .with_target(_Sql(sql))
    )


def board(
    uid: str,
    title: str,
    description: str,
    rows: Sequence[tuple[str, Sequence[Panel]]],
    *,
    variables: Sequence[Builder[dashboard.VariableModel]] = (),
) -> dashboard.Dashboard:
    """rows: a title, and the panels below it, which are put side by side as long as there is room."""
    built = (
        dashboard_builders.Dashboard(title)
        .uid(uid)
        .description(description)
        .tags(["visionmesh"])
        .readonly()
        .tooltip(dashboard.DashboardCursorSync.CROSSHAIR)
        .timezone("browser")
        .refresh("10s")
        .time("now-15m", "now")
        .variables(list(variables))
        .links(
            [
                dashboard_builders.DashboardLink(name)
                .type(dashboard.DashboardLinkType.LINK)
                .url(f"/d/{other}")
                .keep_time(True)
                for other, name in _LINKS.items()
                if other != uid
            ]
        )
    )
    for name, panels in rows:
        built.with_row(dashboard_builders.Row(name))
        for panel in panels:
            built.with_panel(panel)
    result = built.build()
    # By these a link to one panel finds it again.
    for identity, placed in enumerate(result.panels or (), start=1):
        placed.id_val = identity
    return result


def variable(name: str, label: str, metric: str) -> Builder[dashboard.VariableModel]:
    """A choice of the values that a label of a metric has, all of them at first."""
    return (
        dashboard_builders.QueryVariable(name)
        .label(label)
        .datasource(METRICS)
        .query(f"label_values({metric}, {name})")
        .refresh(dashboard.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(dashboard.VariableSort.ALPHABETICAL_ASC)
        .multi(True)
        .include_all(True)
        .all_value(".*")
        .current(dashboard.VariableOption(selected=True, text="All", value="$__all"))
    )


def rendered(built: dashboard.Dashboard) -> str:
    """The file of a board: Grafana's classic JSON."""
    return json.dumps(built, cls=JSONEncoder, indent=2, sort_keys=True) + "\n"


class _Sql(Builder[Dataquery], Dataquery):
    """A query of the Postgres data source, which the SDK has no builder for."""

    def __init__(self, sql: str) -> None:
        self._sql = sql

    def build(self) -> Dataquery:
        return self

    def to_json(self) -> dict[str, Any]:
        return {
            "refId": "A",
            "datasource": ROWS,
            "format": "table",
            "rawQuery": True,
            "editorMode": "code",
            "rawSql": self._sql,
        }


def _target(reference: str, query: Query) -> prometheus.Dataquery:
    return (
        prometheus.Dataquery()
        .ref_id(reference)
        .datasource(METRICS)
        .expr(query.expression)
        .legend_format(query.legend)
    )


def _thresholds(bad_from: float | None) -> dashboard_builders.ThresholdsConfig:
    steps = [dashboard.Threshold(value=None, color="green")]
    if bad_from is not None:
        steps.append(dashboard.Threshold(value=bad_from, color="red"))
    return dashboard_builders.ThresholdsConfig().mode(dashboard.ThresholdsMode.ABSOLUTE).steps(steps)


def _by(labels: str) -> str:
    return f"by ({labels}) " if labels else ""


def _braces(matchers: str) -> str:
    return f"{{{matchers}}}" if matchers else ""
