"""Blows at moments of chance: processes are killed, servers go away and come back, while uploads go on."""

from __future__ import annotations

import random
import re
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from urllib.request import urlopen

from chaos.rig import Rig
from visionmesh.mesh import Replica
from visionmesh.stack import Server, StackError
from visionmesh.topics import PARTITIONS, readers

_LOOK_SECONDS = 0.05

# A server that was killed stays away for as long as it takes somebody, or something, to notice.
_AWAY_SECONDS = (1.0, 8.0)

_STARTS = 5

_TAKEOVER_LOOK_SECONDS = 0.1
_LONGEST_TAKEOVER_SECONDS = 60.0

_PARTITIONS_ASSIGNED = re.compile(r'^mesh_partitions_assigned\{worker="[^"]+"\} (\S+)$', re.MULTILINE)


@dataclass(frozen=True)
class Blow:
    """at: how many uploads have been accepted by then. target: the service, or the server of the stack."""

    at: int
    target: str


@dataclass(frozen=True)
class Outage:
    """A server that was away. how: `killed` or `restarted`. began, ended: of the monotonic clock, s."""

    server: str
    how: str
    began: float
    ended: float


@dataclass(frozen=True)
class Takeover:
    """A replica that was killed and whose partitions another one took. began: monotonic clock, s."""

    replica: str
    began: float
    seconds: float


def spread(targets: Sequence[str], count: int, uploads: int, chance: random.Random) -> list[Blow]:
    """`count` blows, one in every stretch of the uploads, at every target in turn, in an order of chance."""
    order: list[str] = []
    while len(order) < count:
        order += chance.sample(targets, len(targets))
    stretch = uploads / max(1, count)
    return [
        Blow(int(stretch * (place + chance.random())), target) for place, target in enumerate(order[:count])
    ]


@dataclass
class Strikes:
    """Deals blows, and writes down what came of them.

    uploaded: how many uploads have been accepted so far. killed: the names of replicas, in order.
    """

    rig: Rig
    kills: Sequence[Blow]
    restarts: Sequence[Blow]
    uploaded: Callable[[], int]
    chance: random.Random
    killed: list[str] = field(default_factory=list)
    outages: list[Outage] = field(default_factory=list)
    takeovers: list[Takeover] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._over = threading.Event()
        # Apart: processes die during an outage as well.
        self._threads = [
            threading.Thread(target=self._deal, args=(self.kills, self._kill)),
            threading.Thread(target=self._deal, args=(self.restarts, self._restart)),
        ]
        self._watchers: list[threading.Thread] = []
        self._is_read = {group for _, group in readers()}

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def join(self) -> None:
        """Waits for every blow, which needs uploads to come so far."""
        for thread in self._threads:
            thread.join()
        for thread in self._watchers:
            thread.join()

    def give_up(self) -> None:
        """No further blow."""
        self._over.set()

    def _deal(self, blows: Sequence[Blow], strike: Callable[[str], None]) -> None:
        for blow in blows:
            while self.uploaded() < blow.at and not self._over.wait(_LOOK_SECONDS):
                pass
            if self._over.is_set():
                return
            try:
                strike(blow.target)
            except Exception as error:  # the uploads go on; what is wrong shows at the end
                self.problems.append(f"{blow.target}: {error}")

    def _kill(self, service: str) -> None:
        owned = {replica.name: partitions_of(replica) for replica in self.rig.replicas_of(service)}
        while (victim := self.rig.kill_one_of(service, self.chance)) is None:
            if self._over.wait(_LOOK_SECONDS):
                return
        began = time.monotonic()
        self.killed.append(victim.name)
        whole = sum(owned.values()) == PARTITIONS and 0 < owned[victim.name] < PARTITIONS
        if service in self._is_read and whole:
            watcher = threading.Thread(target=self._watch_takeover, args=(victim, began))
            watcher.start()
            self._watchers.append(watcher)

    def _watch_takeover(self, victim: Replica, began: float) -> None:
        """Until the replicas that live have all the partitions between them."""
        replicas = self.rig.replicas_of(victim.service.name)
        while (waited := time.monotonic() - began) < _LONGEST_TAKEOVER_SECONDS:
            if sum(partitions_of(replica) for replica in replicas) == PARTITIONS:
                self.takeovers.append(Takeover(victim.name, began, waited))
                return
            time.sleep(_TAKEOVER_LOOK_SECONDS)

    def _restart(self, name: str) -> None:
        server = getattr(self.rig.stack, name)
        began = time.monotonic()
        killed = self.chance.random() < 0.5
        if killed:
            server.kill()
            self._over.wait(self.chance.uniform(*_AWAY_SECONDS))
        else:
            server.stop()
        self._start(server)
        self.outages.append(Outage(name, "killed" if killed else "restarted", began, time.monotonic()))

    def _start(self, server: Server) -> None:
        """Again when a busy machine needed longer than a server is waited for. Raises StackError."""
        for _ in range(_STARTS - 1):
            with suppress(StackError):
                return server.start()
        return server.start()


def partitions_of(replica: Replica) -> int:
    """How many partitions a replica says it has; none when it says nothing."""
    with suppress(OSError, ValueError):
        with urlopen(f"{replica.url}/metrics", timeout=2) as answer:
            found = _PARTITIONS_ASSIGNED.search(answer.read().decode())
        return 0 if found is None else int(float(found[1]))
    return 0
