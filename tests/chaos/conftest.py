"""The rig of the chaos tests: one mesh for the tests of a module."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from chaos.rig import Rig, open_rig


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    workers = ("feature-extractor", "classifier-fast", "classifier-balanced", "classifier-accurate")
    with open_rig(
        tmp_path_factory.mktemp("chaos"),
        "native",
        scale=dict.fromkeys(workers, 2),
        settings={"MESH_KAFKA_MESSAGE_TIMEOUT_MS": "5000"},
    ) as rig:
        yield rig
