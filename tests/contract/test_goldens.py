"""Golden messages of every contract version: today's reader takes them, yesterday's takes today's."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec
import pytest

from visionmesh.contracts import ImageFeatures, ImageUploaded, SensorReading
from visionmesh.topics import TOPICS

HERE = Path(__file__).parent
CONTRACTS: dict[str, Any] = {topic.name: topic.contract for topic in TOPICS}
GOLDENS = sorted(HERE.glob("*/v*/*.json"))


def _frozen_readers() -> ModuleType:
    spec = importlib.util.spec_from_file_location("readers_v1", HERE / "readers_v1.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # msgspec looks a class's annotations up in the module it names.
    import sys

    sys.modules["readers_v1"] = module
    spec.loader.exec_module(module)
    return module


readers_v1 = _frozen_readers()


def test_every_topic_has_the_three_goldens_of_every_version() -> None:
    for name in CONTRACTS:
        for version in (HERE / name).iterdir():
            assert {"seed-only.json", "full.json", "unknown-fields.json"} <= {
                path.name for path in version.iterdir()
            }


@pytest.mark.parametrize("golden", GOLDENS, ids=lambda path: "/".join(path.parts[-3:]))
def test_todays_reader_takes_every_golden_and_changes_no_field(golden: Path) -> None:
    contract = CONTRACTS[golden.parts[-3]]
    message = msgspec.json.decode(golden.read_bytes(), type=contract)
    given = json.loads(golden.read_text())
    known = {name: given[name] for name in contract.__struct_fields__ if name in given}
    assert msgspec.to_builtins(message) == msgspec.to_builtins(msgspec.convert(known, contract))
    written = json.loads(msgspec.json.encode(message))
    assert {name: written[name] for name in known} == known


@pytest.mark.parametrize("golden", GOLDENS, ids=lambda path: "/".join(path.parts[-3:]))
def test_a_reader_of_version_1_takes_what_is_published_today(golden: Path) -> None:
    topic = golden.parts[-3]
    message = msgspec.json.decode(golden.read_bytes(), type=CONTRACTS[topic])
    old = msgspec.json.decode(msgspec.json.encode(message), type=readers_v1.READERS[topic])
    for name in old.__struct_fields__:
        assert getattr(old, name) == getattr(message, name)


@pytest.mark.parametrize("topic", CONTRACTS)
def test_a_message_of_the_seeds_fields_is_written_with_these_and_no_others(topic: str) -> None:
    golden = (HERE / topic / "v1" / "seed-only.json").read_bytes()
    message = msgspec.json.decode(golden, type=CONTRACTS[topic])
    written = msgspec.json.encode(message)
    assert json.loads(written) == json.loads(golden)
    msgspec.json.decode(written, type=readers_v1.SEED_READERS[topic])


def reading(**changes: Any) -> bytes:
    """A message about a sensor that is as it should be but for `changes`; without any, `seq` is missing."""
    fields = {"device_id": "pi-1", "sensor": "tfluna", "captured_at": "2026-11-21T14:00:00Z", "values": {}}
    return msgspec.json.encode(fields | ({"seq": 1} | changes if changes else {}))


def test_a_reading_with_nothing_wrong_is_taken() -> None:
    assert msgspec.json.decode(reading(seq=1), type=SensorReading).seq == 1


@pytest.mark.parametrize(
    ("contract", "text"),
    [
        (ImageUploaded, b'{"image_id": "a"}'),
        (ImageUploaded, b'{"image_id": "a b", "minio_path": "raw-images/a.jpg"}'),
        (ImageUploaded, b'{"image_id": "a\\n", "minio_path": "raw-images/a.jpg"}'),
        (ImageUploaded, b'{"image_id": "", "minio_path": "raw-images/a.jpg"}'),
        (ImageUploaded, b'{"image_id": "' + b"a" * 129 + b'", "minio_path": "raw-images/a.jpg"}'),
        (ImageUploaded, b"[]"),
        (ImageUploaded, b""),
        (ImageFeatures, b'{"image_id": "a", "descriptors": [1], "descriptor_count": "1"}'),
        (ImageFeatures, b'{"image_id": "a", "descriptors": [NaN], "descriptor_count": 1}'),
        (SensorReading, reading()),
        (SensorReading, reading(device_id="a/b")),
        (SensorReading, reading(sensor="a+")),
        (SensorReading, reading(sensor="a" * 129)),
        (SensorReading, reading(seq=0)),
        (SensorReading, reading(seq=2**63)),
        (SensorReading, reading(seq=1.5)),
        (SensorReading, reading(captured_at="2026-11-21T14:00:00")),
        (SensorReading, reading(captured_at="2026-13-21T14:00:00Z")),
        (SensorReading, reading(values={"a": [1]})),
        (SensorReading, reading(values=None)),
        (SensorReading, reading(monotonic_ns=-1)),
    ],
)
def test_what_breaks_the_contract_is_refused(contract: Any, text: bytes) -> None:
    with pytest.raises(msgspec.DecodeError):
        msgspec.json.decode(text, type=contract)
