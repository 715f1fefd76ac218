"""`mesh settings`: every setting with its variable, default, value and meaning."""

from __future__ import annotations

import os
from typing import get_args

from visionmesh.cli.console import DIRECTORY, Directory, connect, print_table


def settings(directory: Directory = DIRECTORY) -> None:
    """Print every setting: environment variable, default, what it does.

    Below the default stands what the environment, or the mesh that runs, has instead.
    """
    connect(directory)
    from pydantic import SecretStr
    from rich.table import Column, Table

    from visionmesh.observability.logs import without_passwords
    from visionmesh.settings import EdgeSettings, Settings, variable_of

    table = Table(Column("variable", no_wrap=True), "default", "what it does")
    fields = [(kind, *item) for kind in (Settings, EdgeSettings) for item in kind.model_fields.items()]
    for kind, name, field in fields:
        default = field.get_default(call_default_factory=True)
        secret = SecretStr in (field.annotation, *get_args(field.annotation))
        text = default.get_secret_value() if isinstance(default, SecretStr) else str(default)
        variable = variable_of(name, kind)
        value = os.environ.get(variable)
        lines = [] if default is None else [text]
        if value is not None and value != text:
            lines.append(f"now: {'***' if secret else without_passwords(value)}")
        table.add_row(variable, "\n".join(lines), field.description or "")
    print_table(table)
