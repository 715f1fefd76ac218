"""The bar of the commands that take pictures: what they answer goes where standard output goes."""

from __future__ import annotations

import errno
import io
import json
import os
import pty
import sys
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from typing import TextIO

import pytest

from visionmesh.cli import app
from visionmesh.cli.console import progress


@pytest.fixture
def terminal() -> Iterator[tuple[int, TextIO]]:
    """What is written to the second can be read from the first. A few KB are kept until somebody reads."""
    ours, theirs = pty.openpty()
    with open(theirs, "w", encoding="utf-8") as screen:
        yield ours, screen
    os.close(ours)


def shown(ours: int, screen: TextIO) -> str:
    """All that was written to the screen, which is closed: what one read gets is what has arrived by then."""
    screen.close()
    parts = []
    while True:
        try:
            parts.append(os.read(ours, 1 << 16))
        # There is nothing left, and nobody who could write more.
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            return b"".join(parts).decode()


@pytest.mark.parametrize("command", ["classify", "qr", "ocr", "upload"])
def test_the_answers_are_on_standard_output_though_standard_error_is_a_terminal(
    command: str, terminal: tuple[int, TextIO]
) -> None:
    ours, screen = terminal
    written = io.StringIO()
    with redirect_stdout(written), redirect_stderr(screen), pytest.raises(SystemExit):
        app([command, "--json", "gone.png"])
    (line,) = written.getvalue().splitlines()
    assert json.loads(line)["error"]["code"] == "file_not_found"
    seen = shown(ours, screen)
    assert "━" in seen
    assert "file_not_found" not in seen


def test_where_both_are_the_terminal_the_answers_stand_above_the_bar(terminal: tuple[int, TextIO]) -> None:
    ours, screen = terminal
    with redirect_stdout(screen), redirect_stderr(screen), progress() as bars:
        bars.add_task("reading", total=1)
        bars.refresh()
        sys.stdout.write("an answer\n")
    # The line of the bar is wiped before.
    assert "\x1b[2Kan answer\r\n" in shown(ours, screen)
