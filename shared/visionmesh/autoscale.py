"""How many replicas each consumer group should have, told by what waits for it.

`decide` is the whole rule and has no effects: as many replicas as the waiting messages ask for, up at once,
down only when nothing more was asked for during a whole cool-down. It is the rule of the Kubernetes
autoscaler, so that a mesh on one machine and one with KEDA behave alike. `Autoscaler` looks at lags and gives
orders, through two protocols, one round at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from math import ceil
from typing import Final, Protocol

from visionmesh.errors import Unavailable
from visionmesh.topics import PARTITIONS

# Messages that may wait for each replica: a few seconds' work of one on a slow core, so that nobody starts a
# process for what is over before it is up. Those of deploy/kubernetes/mesh/scaling.yaml.
LAG_PER_REPLICA: Final[Mapping[str, int]] = {
    "feature-extractor": 50,
    "qr-decoder": 20,
    "ocr-worker": 5,
    "sensor-sink": 5000,
}
CLASSIFIER_LAG_PER_REPLICA: Final = 500

# A replica is up, and has its share of the partitions, a few seconds after it was asked for. Before that,
# what still waits says nothing about whether they are enough.
SETTLE_SECONDS: Final = 10.0

COOL_DOWN_SECONDS: Final = 120.0


@dataclass(frozen=True, slots=True)
class Policy:
    """Between what and how soon the replicas of one service may change.

    lag_per_replica: messages that may wait for each replica.
    settle_seconds: after a change, how long none follows that adds replicas.
    cool_down_seconds: how long fewer must have been enough before there are fewer. Who looks less often than
    once in that time does not know, and takes none away.
    """

    minimum: int = 1
    maximum: int = PARTITIONS
    lag_per_replica: int = CLASSIFIER_LAG_PER_REPLICA
    settle_seconds: float = SETTLE_SECONDS
    cool_down_seconds: float = COOL_DOWN_SECONDS

    def __post_init__(self) -> None:
        if not 0 <= self.minimum <= self.maximum:
            raise ValueError(f"{self.minimum} to {self.maximum} replicas: the first must not be the larger")
        if self.maximum < 1 or self.lag_per_replica < 1:
            raise ValueError("at least one replica, and at least one message for each")

    def wanted(self, lag: int) -> int:
        """Replicas that so many waiting messages ask for. Beyond one for each partition, none has work."""
        return max(self.minimum, min(self.maximum, PARTITIONS, ceil(lag / self.lag_per_replica)))


@dataclass(frozen=True, slots=True)
class History:
    """What `decide` has to remember of one service. Times are monotonic seconds.

    wanted: when how many replicas were asked for, oldest first, of the last cool-down.
    since: from when on it was looked at without a gap. changed_at: when the replicas last became more or
    fewer.
    """

    wanted: tuple[tuple[float, int], ...] = ()
    since: float | None = None
    changed_at: float | None = None

    def interrupted(self) -> History:
        """What is left of it when it could not be looked at: what was asked for meanwhile is not known."""
        return History(changed_at=self.changed_at)


@dataclass(frozen=True, slots=True)
class Decision:
    """replicas: how many there should be now. history: for the next time."""

    replicas: int
    history: History


def decide(lag: int, replicas: int, policy: Policy, history: History, now: float) -> Decision:
    """How many replicas there should be.

    lag: messages that wait. replicas: how many there are. now: monotonic seconds.
    """
    wanted = policy.wanted(lag)
    begin = now - policy.cool_down_seconds
    before = tuple(each for each in history.wanted if each[0] >= begin)
    recent = (*before, (now, wanted))
    since = history.since if before and history.since is not None else now
    unchanged = now - history.changed_at if history.changed_at is not None else float("inf")
    target = replicas
    if wanted > replicas and (unchanged >= policy.settle_seconds or replicas < policy.minimum):
        target = wanted
    elif wanted < replicas and now - since >= policy.cool_down_seconds:
        target = min(replicas, max(count for _, count in recent))
    changed_at = now if target != replicas else history.changed_at
    return Decision(target, History(recent, since, changed_at))


class Lags(Protocol):
    """What waits for consumer groups."""

    def lag(self, group: str) -> int:
        """Messages that the group has not finished. Raises `Unavailable`."""


class Scaler(Protocol):
    """Whoever starts and ends replicas."""

    def replicas(self) -> Mapping[str, int]:
        """How many there are of each service that runs. Raises `ScaleError`."""

    def scale(self, service: str, replicas: int) -> None:
        """Returns when there are so many of the service. Raises `ScaleError`."""


class ScaleError(Exception):
    """Replicas can't be counted or changed; the text says why."""


@dataclass
class Autoscaler:
    """Rounds of looking and deciding, for services whose group has their name.

    policies: by service. say: told of every change and of every round that failed, in a sentence.
    """

    policies: Mapping[str, Policy]
    lags: Lags
    scaler: Scaler
    say: Callable[[str], None]
    _histories: dict[str, History] = field(default_factory=dict)

    def look(self, now: float) -> None:
        """One round. Services that do not run are left alone, but for those whose minimum is none: there it
        may have ended the last one. What can't be looked at stays as it is.
        """
        try:
            running = self.scaler.replicas()
        except ScaleError as error:
            self.say(f"nothing is changed: {error}")
            for service in self.policies:
                self._interrupt(service)
            return
        for service, policy in self.policies.items():
            if service not in running and policy.minimum > 0:
                self._interrupt(service)
                continue
            try:
                self._look_at(service, policy, running.get(service, 0), now)
            except Unavailable as error:
                self._interrupt(service)
                self.say(f"{service} stays as it is: {error}")
            except ScaleError as error:
                self.say(f"{service} stays as it is: {error}")

    def _look_at(self, service: str, policy: Policy, replicas: int, now: float) -> None:
        lag = self.lags.lag(service)
        history = self._history(service)
        decision = decide(lag, replicas, policy, history, now)
        if decision.replicas != replicas:
            self.say(f"{service}: {lag} waiting, from {replicas} to {decision.replicas} replicas")
            # A change that fails is no change, and is wanted again in the next round.
            self._histories[service] = replace(decision.history, changed_at=history.changed_at)
            self.scaler.scale(service, decision.replicas)
        self._histories[service] = decision.history

    def _history(self, service: str) -> History:
        return self._histories.get(service, History())

    def _interrupt(self, service: str) -> None:
        self._histories[service] = self._history(service).interrupted()
