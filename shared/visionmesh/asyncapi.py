"""The AsyncAPI 3 document of the mesh, generated from the topic table and the contracts.

`python -m visionmesh.asyncapi` rewrites `docs/asyncapi.json`; a test compares.
"""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import msgspec

from visionmesh.contracts import VALUES
from visionmesh.settings import ROOT
from visionmesh.topics import DEAD_LETTER_MAX_BYTES, DEAD_LETTER_RETENTION_MS, PARTITIONS, TOPICS, AnyTopic

PATH: Final = ROOT / "docs" / "asyncapi.json"

_SCHEMAS: Final = "#/components/schemas/{name}"

_DEAD_LETTER_HEADERS: Final = {
    "x-original-topic": "the topic the message came from",
    "x-original-partition": "its partition there",
    "x-original-offset": "its offset there",
    "x-worker": "the consumer group that gave up",
    "x-error-code": "a stable word that programs may compare",
    "x-error": "the reason, as a sentence",
    "x-attempts": "how often it was tried",
    "x-first-failure-at": "ISO 8601, UTC",
    "x-last-failure-at": "ISO 8601, UTC",
    "x-traceback": "the end of the traceback, only of a bug",
}


def document() -> dict[str, Any]:
    """The document as plain JSON values, the same for the same table."""
    # No message holds a sensor's values by reference, since others may be sent; they are told all the same.
    contracts = [*(topic.contract for topic in TOPICS), *VALUES.values()]
    _, schemas = msgspec.json.schema_components(contracts, ref_template=_SCHEMAS)
    _in_the_dialect_of_json_schema(schemas)
    channels: dict[str, Any] = {}
    operations: dict[str, Any] = {}
    for topic in TOPICS:
        channels[topic.name] = _channel(topic)
        for group in topic.consumers:
            operations[f"{group}-receives-{topic.name}"] = _operation("receive", topic.name, topic.contract)
            letters = topic.dead_letters(group)
            channels[letters] = _dead_letter_channel(letters, topic, group)
            operations[f"{group}-sends-{letters}"] = {
                "action": "send",
                "channel": {"$ref": f"#/channels/{letters}"},
                "messages": [{"$ref": f"#/channels/{letters}/messages/DeadLetter"}],
            }
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "visionmesh",
            "version": version("visionmesh"),
            "description": "JSON on the wire. Readers ignore fields they do not know; optional fields have "
            "defaults. Delivery is at least once.",
            "license": {"name": "Apache-2.0"},
        },
        "defaultContentType": "application/json",
        "channels": channels,
        "operations": operations,
        "components": {
            "schemas": schemas,
            "messages": {
                "DeadLetter": {
                    "summary": "The original key and bytes of a message that could not be processed.",
                    "contentType": "application/octet-stream",
                    "headers": {
                        "type": "object",
                        "properties": {
                            name: {"type": "string", "description": text}
                            for name, text in _DEAD_LETTER_HEADERS.items()
                        },
                        "required": [name for name in _DEAD_LETTER_HEADERS if name != "x-traceback"],
                    },
                }
            },
        },
    }


def render() -> str:
    """The committed text of the document."""
    return json.dumps(document(), indent=2) + "\n"


def _in_the_dialect_of_json_schema(schemas: dict[str, Any]) -> None:
    r"""Ends patterns in `$`, which is the very end there; Python's `\Z` is a letter Z (ECMA-262, 22.2.1)."""
    for schema in schemas.values():
        for field in schema.get("properties", {}).values():
            if "pattern" in field:
                field["pattern"] = field["pattern"].replace(r"\Z", "$")


def _channel(topic: AnyTopic) -> dict[str, Any]:
    return {
        "address": topic.name,
        "description": topic.description,
        "messages": {
            topic.contract.__name__: {
                "headers": {
                    "type": "object",
                    "properties": {
                        "traceparent": {"type": "string", "description": "W3C trace context, when sampled"},
                        "x-replayed-for": {
                            "type": "string",
                            "description": "of a dead letter sent home: the only group that reads it",
                        },
                    },
                },
                "payload": {"$ref": _SCHEMAS.format(name=topic.contract.__name__)},
                "bindings": {
                    "kafka": {"key": {"type": "string", "description": f"the message's {topic.key}"}}
                },
            }
        },
        "bindings": _binding(topic.partitions, topic.retention_ms, topic.max_message_bytes),
    }


def _dead_letter_channel(name: str, topic: AnyTopic, group: str) -> dict[str, Any]:
    return {
        "address": name,
        "description": f"What {group} could not process of {topic.name}.",
        "messages": {"DeadLetter": {"$ref": "#/components/messages/DeadLetter"}},
        "bindings": _binding(PARTITIONS, DEAD_LETTER_RETENTION_MS, DEAD_LETTER_MAX_BYTES),
    }


def _binding(partitions: int, retention_ms: int, max_message_bytes: int) -> dict[str, Any]:
    return {
        "kafka": {
            "partitions": partitions,
            "topicConfiguration": {"retention.ms": retention_ms, "max.message.bytes": max_message_bytes},
        }
    }


def _operation(action: str, channel: str, contract: type[msgspec.Struct]) -> dict[str, Any]:
    return {
        "action": action,
        "channel": {"$ref": f"#/channels/{channel}"},
        "messages": [{"$ref": f"#/channels/{channel}/messages/{contract.__name__}"}],
    }


def main(path: Path = PATH) -> None:
    """Rewrites the committed document."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(render())


if __name__ == "__main__":
    main()
