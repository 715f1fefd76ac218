"""The process of simulated sensors, and links to them."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from threading import Lock
from typing import Any, Final

from edge_publisher.devices.link import Link, LinkLost, Receiver

# Where its code is, for a child that finds no distribution installed.
_MODULE: Final = "edge_publisher.simulation"


class Simulator:
    """Sensors on pseudo-terminals and Bluetooth, in a process that starts when it is first needed.

    Used from any thread. It ends by `close`, or with this process.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._process: subprocess.Popen[str] | None = None
        self._places: dict[str, str | None] = {}
        self._users = 0

    def places(self) -> dict[str, str | None]:
        """Where the sensors are: paths of ports, and the address of the bus. Raises `LinkLost`."""
        with self._lock:
            if self._process is None:
                self._start()
            return self._places

    def do(self, what: str, **options: Any) -> Any:
        """A command to the process, and its answer; see `__main__`."""
        self.places()
        with self._lock:
            assert self._process is not None
            assert self._process.stdin is not None
            self._process.stdin.write(json.dumps({"do": what, **options}) + "\n")
            self._process.stdin.flush()
            return self._answer()

    def use(self) -> Simulator:
        """Counts one more who will `release` it."""
        self._users += 1
        return self

    def release(self) -> None:
        """Closes when everyone has released it."""
        self._users -= 1
        if self._users <= 0:
            self.close()

    def close(self) -> None:
        with self._lock:
            if self._process is not None:
                with self._process as process:
                    process.kill() if process.stdin is None else process.stdin.close()
                    process.wait()
                self._process = None
            if self._folder is not None:
                self._folder.cleanup()
                self._folder = None

    def _start(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="mesh-edge-")
        self._process = subprocess.Popen(
            [sys.executable, "-m", _MODULE, self._folder.name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            text=True,
        )
        self._places = self._answer()

    def _answer(self) -> Any:
        assert self._process is not None
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise LinkLost("the process of the simulated sensors has ended")
        return json.loads(line)


class SimulatedLink:
    """A `Link` to a simulated sensor, made by `link` when the place is known. place: its name there."""

    def __init__(self, simulator: Simulator, place: str, link: Callable[[str], Link], *, source: str) -> None:
        self.source: Final = f"simulated {source}"
        self._simulator = simulator
        self._place = place
        self._link = link

    async def run(self, receiver: Receiver) -> None:
        places = await asyncio.to_thread(self._simulator.places)
        place = places[self._place]
        if place is None:
            raise LinkLost("simulated Bluetooth needs dbus-daemon (Debian: apt install dbus-daemon)")
        await self._link(place).run(receiver)
