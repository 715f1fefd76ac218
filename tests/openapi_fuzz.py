"""Every operation of a service's own OpenAPI, called by Schemathesis with right and with wrong input."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import requests
import schemathesis
from schemathesis.core.failures import Failure
from schemathesis.engine import events, from_schema
from schemathesis.engine.recorder import ScenarioRecorder

# Not `negative_data_rejection` and `positive_data_acceptance`: bytes that a schema calls right are seldom a
# picture, and ids that it calls right are seldom known.
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "missing_required_header",
    "unsupported_method",
    "allow_header_conformance",
    "ignored_auth",
    "errors_are_told",
)

# What `/ready` says of a service that waits for a server is no error of a request.
READY = "/ready"

SECONDS = 30.0

# Until a call that was answered 503 is repeated: longer than a machine stalls.
PAUSE_SECONDS = 6.0


@dataclass
class Fuzzed:
    """What came of it. operations: calls by method and path. failures: each with the call to repeat it by."""

    operations: Counter[str] = field(default_factory=Counter)
    statuses: Counter[int] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        statuses = ", ".join(f"{status}: {count}" for status, count in sorted(self.statuses.items()))
        return f"{len(self.operations)} operations, {self.operations.total()} calls ({statuses})"

    def told(self) -> str:
        """The failures, each kind of an operation once."""
        kinds: dict[str, str] = {}
        for failure in self.failures:
            kinds.setdefault(failure.partition("\n")[0], failure)
        return "\n".join([f"{len(self.failures)} failures:", *kinds.values()])


@schemathesis.check
def errors_are_told(
    _: schemathesis.CheckContext, response: schemathesis.Response, case: schemathesis.Case
) -> None:
    """Whatever goes wrong is said in one shape, a sentence and a stable word."""
    if response.status_code < 400 or case.operation.path == READY:
        return
    answer = response.json()
    if not (
        isinstance(answer, dict)
        and isinstance(answer.get("error"), str)
        and isinstance(answer.get("code"), str)
        and answer["error"]
        and answer["code"].replace("_", "").isalnum()
    ):
        raise AssertionError(f"{response.status_code} is told as {response.content[:200]!r}")


@schemathesis.check
def unavailable_passes(
    _: schemathesis.CheckContext, response: schemathesis.Response, case: schemathesis.Case
) -> None:
    """On a machine that stalls, a server may not answer in time; a call that is never served is a fault."""
    if response.status_code != 503 or case.operation.path == READY:
        return
    time.sleep(PAUSE_SECONDS)
    with requests.Session() as session:
        again = session.send(response.request, timeout=SECONDS, allow_redirects=False)
    if again.status_code >= 500:
        raise AssertionError(f"503, and {again.status_code} when it is asked again: {again.content[:200]!r}")


def fuzzed(
    url: str,
    *,
    examples: int,
    known: Mapping[str, Sequence[str]] | None = None,
    key: str | None = None,
    away: bool = False,
) -> Fuzzed:
    """Calls every operation of the service at `url`.

    examples: of each operation, besides those at the edges of its schema. known: by parameter, values that
    mean something to the service, which half of the examples have. key: of a service that asks for one;
    calls have it, but for those that try without. away: servers behind the service are, so that 503 is right.
    """
    config = _config(examples, known or {}, key, away)
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    schema = schemathesis.openapi.from_url(
        f"{url}/openapi.json", config=schemathesis.Config.from_dict(config), headers=headers
    )
    runs = [schema.exclude(method="DELETE")]
    if any("delete" in operations for operations in schema.raw_schema["paths"].values()):
        # Last, so that the others find what is known; and by themselves they are no sequence.
        config["phases"] = {"stateful": {"enabled": False}}
        alone = schemathesis.openapi.from_url(
            f"{url}/openapi.json", config=schemathesis.Config.from_dict(config), headers=headers
        )
        runs.append(alone.include(method="DELETE"))
    found = Fuzzed()
    for event in chain.from_iterable(from_schema(run).execute() for run in runs):
        if isinstance(event, events.ScenarioFinished):
            _add(found, event.recorder)
        elif isinstance(event, events.NonFatalError):
            found.failures.append(f"{event.label}: {event.info.format()}")
        elif isinstance(event, events.FatalError):
            raise event.exception
    return found


def _config(
    examples: int,
    known: Mapping[str, Sequence[str]],
    key: str | None,
    away: bool,
) -> dict[str, Any]:
    checks: dict[str, Any] = {"enabled": False} | {name: {"enabled": True} for name in CHECKS}
    # Of 503 the other check judges.
    checks["not_a_server_error"]["expected-statuses"] = ["2xx", "3xx", "4xx", "503"]
    if not away:
        checks["unavailable_passes"] = {"enabled": True}
    config: dict[str, Any] = {
        "seed": 8,
        "request-timeout": SECONDS,
        "generation": {
            "max-examples": examples,
            "deterministic": True,
            "database": "none",
            "no-shrink": True,
        },
        "checks": checks,
        "cache": {"enabled": False},
        "continue-on-failure": True,
    }
    if known:
        config["dictionaries"] = {name: {"values": list(values)} for name, values in known.items()}
        config["parameters"] = {name: {"dictionary": name, "probability": 0.5} for name in known}
    if key is not None:
        config["auth"] = {"openapi": {"bearer": {"bearer": key}}}
    return config


def _add(found: Fuzzed, recorder: ScenarioRecorder) -> None:
    for case_id, interaction in recorder.interactions.items():
        case = recorder.cases[case_id].value
        found.operations[case.operation.label] += 1
        if interaction.response is not None:
            found.statuses[interaction.response.status_code] += 1
    for checks in recorder.checks.values():
        for check in checks:
            if check.failure_info is not None:
                found.failures.append(_told(check.failure_info.failure, check.failure_info.code_sample))


def _told(failure: Failure, code_sample: str) -> str:
    return f"{failure.operation}: {failure.title}: {failure.message}\n    {code_sample}"
