"""The servers behind the tests: started once, embedded or native (`--stack native`, MESH_TEST_STACK).

What asks none of them is tested with the embedded ones, and left out with the native ones.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
import structlog

from visionmesh.database import migrate
from visionmesh.stack import Stack, StackKind, open_stack

# Whose tests start meshes of their own on servers of that kind.
_MESHES: Final = tuple(Path(__file__).parent / folder for folder in ("end_to_end", "chaos"))

# What a machine or its user may have set, and would change what is tested: settings of a mesh, but those of
# the tests themselves, and how and how wide programs print.
_FOREIGN: Final = re.compile(
    r"(?!MESH_(TEST_STACK|CHAOS_\w+|FUZZ_\w+|QR_FUZZ|QR_PICTURES|PADDLEX_URL|PUBLISH_ADDRESS|\w+_PYTHON)$)"
    r"(MESH|EDGE|PG)[A-Z_]+"
    r"|MLFLOW_TRACKING_URI|FORCE_COLOR|CLICOLOR_FORCE|NO_COLOR|TTY_COMPATIBLE|COLUMNS|LINES"
)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--stack",
        choices=["embedded", "native"],
        default=os.environ.get("MESH_TEST_STACK", "embedded"),
        help="the servers behind the tests; left out are tests marked `native` on the embedded ones,"
        " and those that ask no server on the native ones",
    )


def pytest_configure(config: pytest.Config) -> None:
    for name in filter(_FOREIGN.fullmatch, list(os.environ)):
        del os.environ[name]
    # Servers of the tests are here, whatever is asked by way of a proxy.
    for name in ("NO_PROXY", "no_proxy"):
        os.environ[name] = ",".join(filter(None, ("127.0.0.1,localhost", os.environ.get(name))))
    # For the tests that start a mesh in a process of its own.
    os.environ["MESH_TEST_STACK"] = config.getoption("--stack")
    # structlog's own draws each frame with its variables, which takes seconds on a busy machine.
    plain = structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
    structlog.configure(processors=[*structlog.get_config()["processors"][:-1], plain])


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    left_out = {}
    if config.getoption("--stack") == "native":
        config.hook.pytest_deselected(items=[item for item in items if not asks_the_servers(item)])
        items[:] = [item for item in items if asks_the_servers(item)]
    else:
        left_out["native"] = "needs --stack native"
    # Having the command says nothing: Docker may not run, or may run a mesh that somebody uses.
    if "docker" not in config.option.markexpr:
        left_out["docker"] = "needs Docker, and minutes for some: run with -m docker"
    for item in items:
        for mark, reason in left_out.items():
            if item.get_closest_marker(mark):
                item.add_marker(pytest.mark.skip(reason=reason))


def asks_the_servers(item: pytest.Item) -> bool:
    """Whether a test may answer otherwise with other servers, by what is known before it runs."""
    marks = {mark.name for mark in item.iter_markers()}
    if "embedded" in marks:
        return False
    return (
        bool(marks & {"native", "servers"})
        or "stack_kind" in getattr(item, "fixturenames", ())
        or any(item.path.is_relative_to(folder) for folder in _MESHES)
    )


@pytest.fixture(autouse=True)
def is_known_to_ask_the_servers(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fails a test that asked for them unseen: it would be missing where they are native."""
    yield
    unseen = "stack_kind" in request.fixturenames and not asks_the_servers(request.node)
    assert not unseen, "It has the servers by getfixturevalue: mark it, or its parameter, as `servers`."


@pytest.fixture(scope="session")
def stack_kind(request: pytest.FixtureRequest) -> StackKind:
    """Of the servers behind the tests. All that is not the same with both is made of it."""
    kind: StackKind = request.config.getoption("--stack")
    return kind


@pytest.fixture(scope="session")
def session_stack(stack_kind: StackKind, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """One stack for the whole run. A test that stops one of its servers starts it again."""
    with open_stack(stack_kind, tmp_path_factory.mktemp("stack")) as stack:
        yield stack


@pytest.fixture(scope="module")
def own_stack(stack_kind: StackKind, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """For tests of a module that look at everything there is, or commit for groups that others joined.

    The mock cluster takes no commit from outside for a group that has ever had a member.
    """
    with open_stack(stack_kind, tmp_path_factory.mktemp("stack")) as stack:
        migrate(stack.endpoints.postgres_dsn)
        yield stack


@pytest.fixture(scope="session")
def postgres_dsn(session_stack: Stack) -> str:
    """A database with the schema of today."""
    migrate(session_stack.endpoints.postgres_dsn)
    return session_stack.endpoints.postgres_dsn
