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

import structlog

from edge_publisher.devices.link import Link, LinkLost, Receiver
from edge_publisher.domain.hcsr04 import Format

log = structlog.get_logger()

# Where its code is, for a child that finds no distribution installed.
_MODULE: Final = "edge_publisher.simulation"


class Simulator:
    """Sensors on pseudo-terminals and Bluetooth, in a process that starts when it is first needed.

    Used from any thread. It ends by `close`, or with this process. form: what the HC-SR04 notifies of.
    """

    def __init__(self, form: Format = "ascii") -> None:
        self._form = form
        self._lock = Lock()
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._process: subprocess.Popen[str] | None = None
        self._places: dict[str, str | None] = {}
        self._users = 0

    def places(self) -> dict[str, str | None]:
        """Where the sensors are: paths of ports, and the address of the bus. Raises `LinkLost`."""
        with self._lock:
            if self._process is None or self._process.poll() is not None:
                self._end()
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
            self._end()

    def _start(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="mesh-edge-")
        self._process = subprocess.Popen(
            [sys.executable, "-m", _MODULE, self._folder.name, self._form],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            text=True,
        )
        self._places = self._answer()

    def _end(self) -> None:
        if self._process is not None:
            with self._process as process:
                assert process.stdin is not None
                process.stdin.close()
            self._process = None
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    def _answer(self) -> Any:
        assert self._process is not None
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise LinkLost("the process of the simulated sensors has ended")
        return json.loads(line)


class SimulatedLink:
    """A `Link` to a simulated sensor, made by `link` when the place is known.

    place: its name there. without: the link where the process has no such place.
    """

    def __init__(
        self,
        simulator: Simulator,
        place: str,
        link: Callable[[str], Link],
        *,
        source: str,
        without: Link | None = None,
    ) -> None:
        self.source: Final = f"simulated {source}"
        self._simulator = simulator
        self._place = place
        self._link = link
        self._without = without

    async def run(self, receiver: Receiver) -> None:
        places = await asyncio.to_thread(self._simulator.places)
        place = places[self._place]
        if place is not None:
            await self._link(place).run(receiver)
        elif self._without is not None:
            log.info("simulated_otherwise", source=self._without.source)
            await self._without.run(receiver)
        else:
            raise LinkLost(f"the simulation has no {self._place}")
