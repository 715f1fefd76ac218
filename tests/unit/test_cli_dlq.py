"""`mesh dlq`: what its options may be."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from visionmesh.cli import app
from visionmesh.topics import dead_letter_topics
from visionmesh.worker import dead_letters


@pytest.mark.parametrize("limit", ["0", "-1"])
def test_a_replay_of_less_than_one_letter_is_refused(limit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dead_letters, "replay", lambda *_, **__: 0)
    arguments = ["dlq", "replay", dead_letter_topics()[0], "--yes", "--limit", limit]
    assert CliRunner().invoke(app, arguments).exit_code == 2
