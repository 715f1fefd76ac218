"""The autoscaler's rule, through bursts, and its rounds over doubles."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from visionmesh.autoscale import (
    CLASSIFIER_LAG_PER_REPLICA,
    COOL_DOWN_SECONDS,
    LAG_PER_REPLICA,
    Autoscaler,
    History,
    Policy,
    ScaleError,
    decide,
)
from visionmesh.errors import Unavailable
from visionmesh.settings import ROOT
from visionmesh.topics import PARTITIONS, readers

POLICY = Policy(minimum=1, maximum=5, lag_per_replica=100, settle_seconds=10, cool_down_seconds=60)


def followed(lags: list[int], policy: Policy = POLICY, replicas: int = 1, step: float = 5.0) -> list[int]:
    """The replicas after each look at these lags, one look every `step` seconds."""
    history = History()
    found = []
    for number, lag in enumerate(lags):
        decision = decide(lag, replicas, policy, history, number * step)
        replicas, history = decision.replicas, decision.history
        found.append(replicas)
    return found


def test_a_burst_goes_up_at_once_and_down_after_the_cool_down() -> None:
    quiet, burst, after = [0] * 3, [450] * 4, [0] * 15
    found = followed([*quiet, *burst, *after])
    assert found[:3] == [1, 1, 1]
    assert found[3] == 5, "up in the first look at the burst"
    last_of_burst = len(quiet) + len(burst) - 1
    ended = next(number for number, count in enumerate(found) if number > 3 and count < 5)
    assert (ended - last_of_burst) * 5 > POLICY.cool_down_seconds
    assert found[-1] == 1


def test_a_second_burst_goes_up_again() -> None:
    found = followed([450, *[0] * 14, 450, *[0] * 14])
    assert found[0] == found[15] == 5
    assert found[14] == found[-1] == 1


def test_a_burst_that_falls_slowly_is_followed_down_by_steps() -> None:
    found = followed([500, 400, 300, 200, 100, *[0] * 20])
    downs = [count for count, before in zip(found[1:], found, strict=False) if count < before]
    assert downs == sorted(downs, reverse=True)
    assert found[-1] == 1


def test_a_lag_that_flaps_changes_nothing() -> None:
    assert set(followed([450, 0] * 30)) == {5}


def test_what_settles_is_not_added_to() -> None:
    assert followed([150, 450, 450, 450], step=5) == [2, 2, 5, 5]


def test_the_first_look_takes_nothing_away() -> None:
    assert followed([0], replicas=4) == [4]


def test_a_gap_of_a_cool_down_between_two_looks_takes_nothing_away() -> None:
    history = History()
    for now in (0, 5, 10):
        history = decide(450, 5, POLICY, history, now).history
    decision = decide(0, 5, POLICY, history, 500)
    assert decision.replicas == 5
    decision = decide(0, 5, POLICY, decision.history, 530)
    assert decision.replicas == 5
    assert decide(0, 5, POLICY, decision.history, 560).replicas == 1


def test_without_a_cool_down_fewer_are_enough_at_once() -> None:
    assert followed([0], Policy(cool_down_seconds=0), replicas=4) == [1]


def test_fewer_than_the_minimum_are_added_to_at_once() -> None:
    assert followed([0], Policy(minimum=2, maximum=4), replicas=0) == [2]


def test_a_minimum_of_none_ends_the_last_one_and_starts_it_for_a_single_message() -> None:
    policy = Policy(minimum=0, maximum=3, lag_per_replica=100, cool_down_seconds=60)
    found = followed([0] * 14 + [1], policy)
    assert found[-2:] == [0, 1]


def test_never_more_than_partitions() -> None:
    assert followed([10**9], Policy(maximum=100, lag_per_replica=1)) == [PARTITIONS]


@pytest.mark.parametrize(
    "bounds", [{"minimum": 3, "maximum": 2}, {"minimum": 0, "maximum": 0}, {"lag_per_replica": 0}]
)
def test_bounds_that_make_no_sense(bounds: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"."):
        Policy(**bounds)


@given(st.lists(st.integers(0, 5000), max_size=60), st.integers(0, 12))
def test_always_between_the_bounds_or_what_was_there(lags: list[int], replicas: int) -> None:
    for count in followed(lags, replicas=replicas):
        assert min(replicas, POLICY.minimum) <= count <= max(replicas, POLICY.maximum)


def test_a_mesh_on_kubernetes_has_the_same_numbers() -> None:
    text = (ROOT / "deploy" / "kubernetes" / "mesh" / "scaling.yaml").read_text()
    seen = set()
    for each in yaml.safe_load_all(text):
        if each["kind"] != "ScaledObject":
            continue
        (trigger,) = each["spec"]["triggers"]
        group = trigger["metadata"]["consumerGroup"]
        expected = LAG_PER_REPLICA.get(group, CLASSIFIER_LAG_PER_REPLICA)
        assert int(trigger["metadata"]["lagThreshold"]) == expected
        assert each["spec"]["cooldownPeriod"] == COOL_DOWN_SECONDS
        seen.add(group)
    assert seen == {group for _, group in readers()}


@dataclass
class Rig:
    """Lags and a scaler of which anything can be away."""

    lags: dict[str, int]
    running: dict[str, int]
    away: set[str] = field(default_factory=set)
    said: list[str] = field(default_factory=list)

    def lag(self, group: str) -> int:
        if group in self.away:
            raise Unavailable("kafka", "down")
        return self.lags[group]

    def replicas(self) -> Mapping[str, int]:
        if "scaler" in self.away:
            raise ScaleError("No mesh runs.")
        return {service: count for service, count in self.running.items() if count}

    def scale(self, service: str, replicas: int) -> None:
        if "scale" in self.away:
            raise ScaleError("no memory")
        self.running[service] = replicas

    def autoscaler(self) -> Autoscaler:
        return Autoscaler(dict.fromkeys(self.lags, POLICY), self, self, self.said.append)


def test_each_service_follows_its_own_group() -> None:
    rig = Rig({"a": 300, "b": 0, "not-running": 900}, {"a": 1, "b": 1, "other": 2})
    rig.autoscaler().look(0)
    assert rig.running == {"a": 3, "b": 1, "other": 2}
    assert rig.said == ["a: 300 waiting, from 1 to 3 replicas"]


def test_the_last_replica_is_ended_and_started_again_where_the_minimum_is_none() -> None:
    policy = Policy(minimum=0, maximum=3, lag_per_replica=100, cool_down_seconds=60)
    rig = Rig({"a": 0}, {"a": 1})
    autoscaler = Autoscaler({"a": policy}, rig, rig, rig.said.append)
    for now in (0, 30, 61):
        autoscaler.look(now)
    assert rig.replicas() == {}, "as scalers tell of none"
    rig.lags["a"] = 1
    autoscaler.look(62)
    autoscaler.look(72)
    assert rig.replicas() == {"a": 1}
    # Also by one that was started when there was none.
    rig.running["a"] = 0
    Autoscaler({"a": policy}, rig, rig, rig.said.append).look(80)
    assert rig.replicas() == {"a": 1}


def test_a_kafka_that_is_away_changes_nothing_and_keeps_nobody_else_from_it() -> None:
    rig = Rig({"a": 300, "b": 300}, {"a": 2, "b": 1}, away={"a"})
    rig.autoscaler().look(0)
    assert rig.running == {"a": 2, "b": 3}
    assert any("a stays as it is" in line and "down" in line for line in rig.said)


def test_a_mesh_that_is_away_is_told_and_waited_for() -> None:
    rig = Rig({"a": 300}, {"a": 1}, away={"scaler"})
    autoscaler = rig.autoscaler()
    autoscaler.look(0)
    rig.away.clear()
    autoscaler.look(2)
    assert rig.running == {"a": 3}
    assert rig.said[0] == "nothing is changed: No mesh runs."


@pytest.mark.parametrize("gap", ["a", "scaler", "service"])
def test_what_could_not_be_looked_at_loses_nothing_for_a_cool_down(gap: str) -> None:
    rig = Rig({"a": 0}, {"a": 3})
    autoscaler = rig.autoscaler()
    autoscaler.look(0)
    autoscaler.look(30)
    rig.away.add(gap)
    rig.running["a"] = 0 if gap == "service" else 3
    autoscaler.look(40)
    rig.away.clear()
    rig.running["a"] = 3
    autoscaler.look(61)
    autoscaler.look(120)
    assert rig.running == {"a": 3}
    autoscaler.look(121)
    assert rig.running == {"a": 1}


def test_what_was_asked_for_in_vain_was_asked_for() -> None:
    rig = Rig({"a": 200}, {"a": 3}, away={"scale"})
    autoscaler = rig.autoscaler()
    for now, lag in ((0, 200), (15, 200), (40, 500)):
        rig.lags["a"] = lag
        autoscaler.look(now)
    rig.away.clear()
    rig.lags["a"] = 0
    autoscaler.look(70)
    assert rig.running == {"a": 3}


def test_a_change_that_failed_is_tried_again_in_the_next_round() -> None:
    rig = Rig({"a": 300}, {"a": 1}, away={"scale"})
    autoscaler = rig.autoscaler()
    autoscaler.look(0)
    rig.away.clear()
    autoscaler.look(2)
    assert rig.running == {"a": 3}
