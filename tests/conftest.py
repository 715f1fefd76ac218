"""The servers behind the tests: started once, embedded or native (`--stack native`, MESH_TEST_STACK)."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from visionmesh.database import migrate
from visionmesh.stack import Stack, open_stack


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--stack",
        choices=["embedded", "native"],
        default=os.environ.get("MESH_TEST_STACK", "embedded"),
        help="the servers behind the tests; tests marked `native` are left out on the embedded ones",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    left_out = {}
    if config.getoption("--stack") != "native":
        left_out["native"] = "needs --stack native"
    # Having the command says nothing: Docker may not run, or may run a mesh that somebody uses.
    if "docker" not in config.option.markexpr:
        left_out["docker"] = "needs Docker, and minutes for some: run with -m docker"
    for item in items:
        for mark, reason in left_out.items():
            if item.get_closest_marker(mark):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def session_stack(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stack]:
    """One stack for the whole run. A test that stops one of its servers starts it again."""
    with open_stack(request.config.getoption("--stack"), tmp_path_factory.mktemp("stack")) as stack:
        yield stack


@pytest.fixture(scope="module")
def own_stack(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """For tests of a module that look at everything there is, or commit for groups that others joined.

    The mock cluster takes no commit from outside for a group that has ever had a member.
    """
    with open_stack(request.config.getoption("--stack"), tmp_path_factory.mktemp("stack")) as stack:
        migrate(stack.endpoints.postgres_dsn)
        yield stack


@pytest.fixture(scope="session")
def postgres_dsn(session_stack: Stack) -> str:
    """A database with the schema of today."""
    migrate(session_stack.endpoints.postgres_dsn)
    return session_stack.endpoints.postgres_dsn
