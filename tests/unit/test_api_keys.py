from __future__ import annotations

import json
from pathlib import Path

import pytest
from structlog.testing import capture_logs
from typer.testing import CliRunner

from visionmesh.api_keys import ApiKey, KeyRing, KeysError, RateLimits, Scope, new_key, read_keys, write_keys
from visionmesh.cli import app
from visionmesh.settings import get_settings


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "api-keys.json"


def test_a_key_is_256_random_bits_of_which_the_digest_is_kept(path: Path) -> None:
    texts = {new_key("one", [Scope.READ])[0] for _ in range(50)}
    assert len(texts) == 50
    assert all(text.startswith("mesh_") and len(text) == len("mesh_") + 43 for text in texts)
    text, key = new_key("camera", [Scope.UPLOAD, Scope.READ, Scope.UPLOAD], 30)
    write_keys(path, [key])
    assert text not in path.read_text()
    assert read_keys(path) == (key,)
    assert (key.scopes, key.per_minute) == ((Scope.UPLOAD, Scope.READ), 30)


def test_a_key_is_found_and_another_is_not(path: Path) -> None:
    (first, one), (second, two) = new_key("one", [Scope.READ]), new_key("two", [Scope.UPLOAD])
    write_keys(path, [one, two])
    ring = KeyRing(path)
    assert ring.find(first) == one
    assert ring.find(second) == two
    for wrong in ("", first[:-1], first + "x", one.sha256, "ä" * 20, "m" * 10_000):
        assert ring.find(wrong) is None


def test_what_is_revoked_is_refused_without_a_restart(path: Path) -> None:
    clock = Clock()
    (first, one), (second, two) = new_key("one", [Scope.READ]), new_key("two", [Scope.READ])
    write_keys(path, [one])
    ring = KeyRing(path, clock)
    write_keys(path, [two])
    assert ring.find(first) == one
    clock.now = 1.0
    assert ring.find(first) is None
    assert ring.find(second) == two


def test_a_slip_of_the_hand_locks_nobody_out(path: Path) -> None:
    clock = Clock()
    text, key = new_key("one", [Scope.READ])
    write_keys(path, [key])
    ring = KeyRing(path, clock)
    for broken in ("{", None):
        path.unlink() if broken is None else path.write_text(broken)
        clock.now += 2
        assert ring.find(text) == key
    write_keys(path, [])
    clock.now += 2
    assert ring.find(text) is None, "the last key can be revoked"


def test_a_file_that_revokes_nothing_is_told_again_and_again(path: Path) -> None:
    clock = Clock()
    text, key = new_key("one", [Scope.READ])
    write_keys(path, [key])
    ring = KeyRing(path, clock)
    path.unlink()
    with capture_logs() as lines:
        for _ in range(60):
            clock.now += 2
            assert ring.find(text) == key
    assert [line["event"] for line in lines] == ["api_keys_unreadable"] * 2
    write_keys(path, [key])
    with capture_logs() as lines:
        for _ in range(60):
            clock.now += 2
            ring.find(text)
    assert [line["event"] for line in lines] == ["api_keys_read"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "can't be read"),
        ('{"keys": []}', "has no key"),
        ('{"keys": [{"name": "a", "sha256": "plain", "scopes": ["read"]}]}', "not a file of keys"),
        ('{"keys": [{"name": "a", "sha256": "%s", "scopes": []}]}' % ("0" * 64), "not a file of keys"),
        ('{"keys": [{"name": "a", "sha256": "%s", "scopes": ["all"]}]}' % ("0" * 64), "not a file of keys"),
        ("\xff", "not a file of keys"),
    ],
)
def test_what_can_not_be_used_is_told(path: Path, content: str | None, reason: str) -> None:
    if content is not None:
        path.write_text(content, encoding="latin-1")
    with pytest.raises(KeysError, match=reason):
        KeyRing(path)


def test_a_key_may_be_ahead_by_ten_seconds_and_no_more() -> None:
    clock = Clock()
    limits = RateLimits(clock)
    key = ApiKey("one", "0" * 64, (Scope.READ,), per_minute=60)
    other = ApiKey("two", "1" * 64, (Scope.READ,), per_minute=1)
    assert [limits.wait_seconds(key) for _ in range(10)] == [0.0] * 10
    assert limits.wait_seconds(key) == pytest.approx(1.0)
    assert limits.wait_seconds(other) == 0.0, "each key has its own"
    clock.now = 0.5
    assert limits.wait_seconds(key) == pytest.approx(0.5)
    clock.now = 1.0
    assert limits.wait_seconds(key) == 0.0
    clock.now = 1000.0
    assert [limits.wait_seconds(key) > 0 for _ in range(11)] == [False] * 10 + [True]


def mesh_keys(*arguments: str, path: Path) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["keys", *arguments, "--file", str(path)])
    return result.exit_code, result.stdout


def test_mesh_keys(path: Path) -> None:
    status, made = mesh_keys("create", "camera", "--scope", "upload", "--per-minute", "120", path=path)
    assert status == 0
    assert KeyRing(path).find(made.strip()) is not None
    assert made.strip() not in path.read_text()
    (kept,) = json.loads(path.read_text())["keys"]
    assert (kept["name"], kept["scopes"], kept["per_minute"]) == ("camera", ["upload"], 120)
    assert mesh_keys("create", "camera", "--scope", "read", path=path)[0] == 1
    assert mesh_keys("create", "a name", "--scope", "read", path=path)[0] == 1
    assert mesh_keys("create", "reader", "--scope", "all", path=path)[0] == 2
    assert mesh_keys("create", "reader", "--scope", "read", "--scope", "predict", path=path)[0] == 0
    status, listed = mesh_keys("list", path=path)
    assert "camera" in listed
    assert "read predict" in listed
    assert mesh_keys("revoke", "camera", path=path)[0] == 0
    assert mesh_keys("revoke", "camera", path=path)[0] == 1
    assert [key.name for key in read_keys(path)] == ["reader"]
    # Services run as another user.
    assert path.stat().st_mode & 0o777 == 0o644


def test_mesh_up_says_at_once_that_a_key_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MESH_PUBLISH_ADDRESS", "0.0.0.0")
    monkeypatch.setenv("MESH_API_KEYS_FILE", str(tmp_path / "missing.json"))
    get_settings.cache_clear()
    try:
        result = CliRunner().invoke(app, ["up", "--directory", str(tmp_path), "--ports", "free"])
    finally:
        get_settings.cache_clear()
    assert result.exit_code == 1
    assert "mesh keys create" in result.stderr
    assert not (tmp_path / "embedded").exists(), "nothing was started"
