from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any, get_args

import pytest
import structlog
from pydantic import SecretStr
from pydantic_settings import BaseSettings

from visionmesh.api_keys import Scope, new_key
from visionmesh.observability import logs, tracing
from visionmesh.settings import EdgeSettings, Settings


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    yield
    root.handlers, root.level = handlers, level
    logging.captureWarnings(False)
    structlog.reset_defaults()


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    captured = capsys.readouterr()
    assert captured.out == ""
    return [json.loads(line) for line in captured.err.splitlines()]


def test_every_line_is_one_json_object(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("classifier-fast", Settings())
    structlog.get_logger().info("batch_done", size=3)
    logging.getLogger("uvicorn.error").warning("from %s", "a library")
    own, foreign = lines(capsys)
    assert (own["event"], own["size"], own["level"], own["service"]) == (
        "batch_done",
        3,
        "info",
        "classifier-fast",
    )
    assert (foreign["event"], foreign["level"], foreign["logger"]) == (
        "from a library",
        "warning",
        "uvicorn.error",
    )
    assert foreign["service"] == "classifier-fast"
    for line in (own, foreign):
        assert datetime.fromisoformat(line["timestamp"]).utcoffset() == timedelta(0)


def test_a_line_begins_with_what_people_read_first(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("test", Settings())
    with tracing.use(tracing.Trace.new()), logs.bind(image_id="test-123"):
        structlog.get_logger().info("own", size=3)
        logging.getLogger("library").info("foreign")
    for line in lines(capsys):
        assert list(line)[:4] == ["timestamp", "level", "service", "event"]


def test_what_is_bound_is_on_every_line(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("test", Settings())
    trace = tracing.Trace.new()
    with tracing.use(trace), logs.bind(image_id="test-123"):
        structlog.get_logger().info("one")
        logging.getLogger("library").info("two")
    structlog.get_logger().info("three")
    one, two, three = lines(capsys)
    assert one["trace_id"] == two["trace_id"] == trace.trace_id
    assert one["image_id"] == two["image_id"] == "test-123"
    assert "trace_id" not in three
    assert "image_id" not in three


def test_levels(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("test", Settings(log_level="warning"))
    structlog.get_logger().info("no")
    logging.getLogger("library").info("no")
    structlog.get_logger().warning("yes")
    logging.getLogger("library").warning("yes")
    assert [line["event"] for line in lines(capsys)] == ["yes", "yes"]


def test_exceptions_stay_on_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("test", Settings())
    try:
        raise ValueError("why")
    except ValueError:
        structlog.get_logger().exception("failed")
    (line,) = lines(capsys)
    assert line["level"] == "error"
    assert "ValueError: why" in line["exception"]
    assert "Traceback" in line["exception"]


def test_secrets_are_not_logged(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("test", Settings())
    log = structlog.get_logger()
    log.info(
        "connecting",
        dsn="postgresql://mesh:hunter2@db:5432/mesh",
        password="hunter2",
        s3_secret_key="hunter2",
    )
    log.info("nested", settings={"token": "hunter2", "dsn": "host=db password=hunter2 user=mesh"})
    logging.getLogger("library").error("can't connect to %s", "amqp://a:hunter2@b")
    try:
        raise ValueError("password=hunter2")
    except ValueError:
        log.exception("failed")
    captured = capsys.readouterr().err
    assert "hunter2" not in captured
    assert "postgresql://mesh:***@db:5432/mesh" in captured


def test_api_keys_are_not_logged_wherever_they_stand(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("test", Settings())
    key, kept = new_key("camera", [Scope.UPLOAD])
    made_by_make_env = "mesh_" + "0123456789abcdef" * 4
    log = structlog.get_logger()
    log.info("refused", reason=f"{key} is no key", headers=f"Authorization: Bearer {key}")
    log.info("connecting", address=f"ws://mesh/ws?key={made_by_make_env}")
    logging.getLogger("library").warning("sent X-API-Key: %s and Basic bWVzaDpodW50ZXIy", key)
    log.info("known", client=kept.name, service_name="mesh_feature_extractor")
    captured = capsys.readouterr().err
    assert key not in captured
    assert made_by_make_env not in captured
    assert "bWVzaDpodW50ZXIy" not in captured
    assert '"client": "camera"' in captured
    assert "mesh_feature_extractor" in captured


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_secrets_are_not_logged_whatever_holds_them(
    log_format: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    logs.configure("test", Settings(log_format=log_format))
    key, _ = new_key("camera", [Scope.UPLOAD])
    url = "postgresql://u:hunter2@db/mesh"
    log = structlog.get_logger()
    log.info("a_list", reasons=[f"redis://:hunter2@h/0 {key}", ({"dsn": url},)])
    log.info("an_exception", error=ValueError(f"{url} {key}"))
    log.info("lists_in_mappings", d={"a": ["password=hunter2"], "b": [{"token": "hunter2"}]})
    log.info("odd_passwords", one="postgresql://u:x/hunter2@db", two="postgresql://u:x@hunter2@db")
    log.info("quoted", a='{"password": "hunter2"}', b="{'secret_key': 'a \\'hunter2'}", c=b"password=hunter2")
    log.info("encoded", query=f"x%3D{key}")
    secret = f"{url} {key}"
    try:
        raise ValueError(secret)
    except ValueError:
        log.exception("failed")
    captured = capsys.readouterr().err
    assert "ValueError: postgresql://u:***@db" in captured
    assert "hunter2" not in captured
    assert key not in captured


@pytest.mark.parametrize("kind", [Settings, EdgeSettings])
def test_every_secret_of_the_settings_hides_itself(kind: type[BaseSettings]) -> None:
    """By its name, or because it is an address with a password in it."""
    named = re.compile(r"password|secret|(?<!tls)_key$|access_key|dsn|cache_url|mqtt_url")
    for name, field in kind.model_fields.items():
        hides = SecretStr in (field.annotation, *get_args(field.annotation))
        assert hides is bool(named.search(name)), name
    known: Any = {
        name: SecretStr("hunter2") for name, field in kind.model_fields.items() if "Secret" in str(field)
    }
    settings = kind(**known)
    for text in (repr(settings), str(settings), settings.model_dump_json()):
        assert "hunter2" not in text


def test_values_that_json_has_not_are_written_as_text(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("test", Settings())
    structlog.get_logger().info("odd", value={1, 2}, path=b"\xff")
    (line,) = lines(capsys)
    assert line["value"] == "{1, 2}"


def test_console(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("test", Settings(log_format="console"))
    structlog.get_logger().info("for_people", size=3)
    assert "for_people" in capsys.readouterr().err
