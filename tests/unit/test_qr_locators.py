"""Which locators the QR decoder says that it asks, without loading one."""

from __future__ import annotations

import shutil
import tomllib
from pathlib import Path

import pytest

from qr_decoder import domain
from qr_decoder.locators import LocatorFile, asked_by, unlisted
from visionmesh.settings import ROOT

MODELS = ROOT / "models"
TABLES = tomllib.loads((MODELS / "models.toml").read_text())


def listed(name: str) -> LocatorFile:
    return LocatorFile(name, TABLES[name]["version"], "convolutional net")


@pytest.mark.parametrize("profile", [*domain.PROFILES, *domain.LEVELS, "reduced, locator-m,hybrid,grid"])
def test_a_profile_names_the_locators_that_its_levels_ask(profile: str) -> None:
    levels = domain.PROFILES.get(profile) or [level.strip() for level in profile.split(",")]
    sizes = [size for level in levels for size in domain._ASKED.get(level, ())]
    assert asked_by(profile, MODELS) == [listed(f"locator-{size}") for size in dict.fromkeys(sizes)]


def test_the_default_profile_asks_the_smallest() -> None:
    assert asked_by("cascade", MODELS) == [listed("locator-n")]


def test_what_is_not_there_is_not_named(tmp_path: Path) -> None:
    assert asked_by("cascade", tmp_path) == []
    shutil.copy(MODELS / "models.toml", tmp_path)
    assert asked_by("cascade", tmp_path) == []
    (tmp_path / "models.toml").write_text("no table")
    assert asked_by("cascade", tmp_path) == []


def test_a_file_of_one_s_own_is_told_by_its_digest(tmp_path: Path) -> None:
    shutil.copy(MODELS / "models.toml", tmp_path)
    file = tmp_path / "qreader_nano.onnx"
    file.write_bytes(b"another")
    (found,) = asked_by("cascade", tmp_path)
    # printf another | sha256sum
    assert found == unlisted("locator-n", file) == LocatorFile("locator-n", "ae448ac86c4e", "")
