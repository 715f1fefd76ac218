"""Classifiers that a configuration adds have a group and dead letters like those of the table."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from visionmesh.settings import Settings
from visionmesh.topics import CLASSIFIERS, FEATURES, IMAGES, SENSORS, classifiers, dead_letter_topics, readers


def test_the_table_alone() -> None:
    assert classifiers() == CLASSIFIERS
    assert readers() == (
        (IMAGES, "feature-extractor"),
        (IMAGES, "qr-decoder"),
        (IMAGES, "ocr-worker"),
        *((FEATURES, group) for group in CLASSIFIERS),
        (SENSORS, "sensor-sink"),
    )


def test_one_more() -> None:
    assert classifiers(["night", "fast", "night"]) == (*CLASSIFIERS, "classifier-night")
    assert set(dead_letter_topics(["night"])) - set(dead_letter_topics()) == {
        "image-features-stream.classifier-night.dlq"
    }


def test_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Settings().extra_classifiers == ()
    monkeypatch.setenv("MESH_EXTRA_CLASSIFIERS", '["night", "color-2"]')
    assert Settings().extra_classifiers == ("night", "color-2")


@pytest.mark.parametrize("name", ["", "Night", "a.b", "a/b", "-a", "a-", "a" * 41, "a\n"])
def test_a_name_that_no_topic_could_have(name: str) -> None:
    with pytest.raises(ValidationError):
        Settings(extra_classifiers=(name,))
