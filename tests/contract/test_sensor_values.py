"""The fields of every sensor: as the documents tell them, and as they were when they were first read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from visionmesh.contracts import VALUES, SensorReading
from visionmesh.settings import ROOT

HERE = Path(__file__).parent / "sensor-values"
DOCUMENT = ROOT / "docs" / "sensors.md"
BEGIN, END = "<!-- values: tests/contract/test_sensor_values.py -->\n", "<!-- end of values -->"


def schema(sensor: str) -> dict[str, Any]:
    _, components = msgspec.json.schema_components([VALUES[sensor]])
    (found,) = components.values()
    return found


def table() -> str:
    lines = ["| sensor | field | unit | |", "|---|---|---|---|"]
    for sensor in VALUES:
        for name, field in schema(sensor)["properties"].items():
            lines.append(f"| `{sensor}` | `{name}` | {field['x-unit']} | {field['description']} |")
    return "\n".join(lines) + "\n"


def test_the_document_has_every_field_with_its_unit() -> None:
    text = DOCUMENT.read_text()
    found = text[text.index(BEGIN) + len(BEGIN) : text.index(END)]
    assert found == table(), f"put this there:\n{table()}"


@pytest.mark.parametrize("sensor", VALUES)
def test_what_was_sent_once_is_a_reading_still(sensor: str) -> None:
    """A field that goes, or gets another meaning, needs another name."""
    golden = (HERE / f"{sensor}-v1.json").read_bytes()
    reading = msgspec.json.decode(golden, type=SensorReading)
    assert reading.sensor == sensor
    msgspec.convert(reading.values, VALUES[sensor])
    first = json.loads(golden)["values"]
    known = {name: field["x-unit"] for name, field in schema(sensor)["properties"].items()}
    assert first.keys() <= known.keys()
    assert json.loads(msgspec.json.encode(msgspec.convert(first, VALUES[sensor]))) == {
        name: first[name] for name in known if name in first
    }
    assert json.loads(msgspec.json.encode(reading)) == json.loads(golden)
