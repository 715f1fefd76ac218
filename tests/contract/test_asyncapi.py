"""The committed AsyncAPI document is the one that the table and the contracts give."""

from __future__ import annotations

import json
from typing import Any

from visionmesh import asyncapi
from visionmesh.topics import TOPICS, dead_letter_topics


def test_the_committed_document_is_current() -> None:
    assert asyncapi.PATH.read_text() == asyncapi.render(), "run `python -m visionmesh.asyncapi`"


def test_every_topic_and_every_reader_stands_in_it() -> None:
    document = asyncapi.document()
    assert set(document["channels"]) == {topic.name for topic in TOPICS} | set(dead_letter_topics())
    receivers = {name for name, one in document["operations"].items() if one["action"] == "receive"}
    assert receivers == {f"{group}-receives-{topic.name}" for topic in TOPICS for group in topic.consumers}


def test_every_reference_leads_somewhere() -> None:
    document = asyncapi.document()
    references = _references(document)
    # A channel has its servers and its messages elsewhere.
    assert len(references) > len(document["channels"])
    for reference in references:
        place: Any = document
        for part in reference.removeprefix("#/").split("/"):
            place = place[part]


def _references(node: Any) -> list[str]:
    if isinstance(node, dict):
        here = [node["$ref"]] if "$ref" in node else []
        return here + [found for value in node.values() for found in _references(value)]
    if isinstance(node, list):
        return [found for value in node for found in _references(value)]
    return []


def test_the_document_is_plain_json() -> None:
    assert json.loads(asyncapi.render())["asyncapi"] == "3.0.0"


def test_patterns_are_of_the_dialect_that_json_schema_speaks() -> None:
    assert r"\\Z" not in asyncapi.render(), "outside Python that is a letter Z"
