"""What Grafana asks of its data sources for the committed boards."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from promql import asked

_FOLDER: Final = Path(__file__).parents[1] / "deploy/grafana/dashboards"
_LABEL_VALUES: Final = re.compile(r"label_values\((?P<metric>\w+), (?P<label>\w+)\)")

BOARDS: Final[dict[str, dict[str, Any]]] = {
    file.stem: json.loads(file.read_text()) for file in sorted(_FOLDER.glob("*.json"))
}


def queries() -> list[tuple[str, str]]:
    """What Prometheus is asked for: where it stands, and the query."""
    panels = [(where, asked(target["expr"])) for where, target in _targets() if "expr" in target]
    return [*panels, *_choices()]


def statements() -> list[tuple[str, str]]:
    """What Postgres is asked for, of the last hour: where it stands, and the statement."""
    return [(where, _of_an_hour(target["rawSql"])) for where, target in _targets() if "rawSql" in target]


def _targets() -> Iterator[tuple[str, dict[str, Any]]]:
    for name, board in BOARDS.items():
        for panel in board["panels"]:
            for target in panel.get("targets", []):
                yield f"{name}: {panel['title']}", target


def _choices() -> Iterator[tuple[str, str]]:
    """Of the variables, as queries that have a series for each value that can be chosen."""
    for name, board in BOARDS.items():
        for variable in board["templating"].get("list", []):
            found = _LABEL_VALUES.fullmatch(variable["query"])
            assert found is not None, variable["query"]
            metric, label = found["metric"], found["label"]
            yield f"{name}: choice of {label}", f'count by ({label}) ({metric}{{{label}!=""}})'


def _of_an_hour(sql: str) -> str:
    """With what Grafana makes of its macro."""
    sql = sql.replace("$__timeFilter(created_at)", "created_at > now() - interval '1 hour'")
    assert "$__" not in sql
    return sql
