"""`mesh settings`: every setting with its variable, value and meaning."""

from __future__ import annotations


def settings() -> None:
    """Print every setting: environment variable, default, what it does."""
    from pydantic import SecretStr
    from rich.console import Console
    from rich.table import Column, Table

    from visionmesh.settings import Settings

    table = Table(Column("variable", no_wrap=True), "default", "what it does")
    for name, field in Settings.model_fields.items():
        default = field.default
        text = default.get_secret_value() if isinstance(default, SecretStr) else str(default)
        table.add_row(f"MESH_{name.upper()}", "" if default is None else text, field.description or "")
    Console().print(table)
