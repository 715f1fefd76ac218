"""What every service's answers have in common."""

from __future__ import annotations

from typing import Any


def assert_error(response: Any, status: int, code: str) -> str:
    """Of the one shape that errors have; returns the sentence."""
    assert response.status_code == status, response.text
    body = response.json()
    assert set(body) == {"error", "code"}
    assert body["code"] == code
    reason = body["error"]
    assert isinstance(reason, str)
    assert reason
    return reason
