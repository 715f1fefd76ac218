"""What a query of Prometheus asks for, told well enough for the queries of this repository."""

from __future__ import annotations

import re
from typing import Final

# Words of PromQL that stand where a metric could.
_WORDS: Final = {
    *(
        "absent",
        "avg",
        "changes",
        "count",
        "count_over_time",
        "delta",
        "deriv",
        "histogram_quantile",
        "increase",
        "last_over_time",
    ),
    *(
        "label_replace",
        "max",
        "max_over_time",
        "min",
        "min_over_time",
        "rate",
        "resets",
        "sum",
        "sum_over_time",
        "time",
        "vector",
    ),
    *("and", "bool", "group_left", "offset", "or", "unless"),
}

# What stands in braces, brackets and after these words names labels and times.
_LABELS: Final = re.compile(
    r"\{[^}]*\}|\[[^]]*\]|\b(?:by|without|on|ignoring|group_left|group_right) ?\([^)]*\)|\b\d+[smhd]\b"
)


def metrics_in(expression: str) -> set[str]:
    """The names of the series that a query selects."""
    return set(re.findall(r"[A-Za-z_][A-Za-z0-9_]*", _LABELS.sub(" ", expression))) - _WORDS


def asked(expression: str) -> str:
    """The query as Grafana would ask it, with all choices made and a time that holds a whole test.

    Without the 0 that a number shows where there is nothing, and without the bound of what it counts: with
    them whatever stands before is answered.
    """
    expression = re.sub(r" (?:==|>) \d+\)$", ")", expression.removesuffix(" or vector(0)"))
    return re.sub(r"\$(worker|classifier)\b", ".*", expression.replace("$__rate_interval", "10m"))
