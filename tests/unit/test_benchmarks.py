"""What the benchmarks compute; what they measure is their own business."""

from __future__ import annotations

from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, Histogram, generate_latest

from benchmarks.figures import percentile
from benchmarks.limits import NoLimitError, controller, quota
from benchmarks.replicas import Distribution, distribution, unlike_any
from visionmesh.images import check_end, decode
from visionmesh.settings import ROOT

HYBRID = """\
tmpfs /sys/fs/cgroup tmpfs ro 0 0
cgroup2 /sys/fs/cgroup/unified cgroup2 rw,nosuid 0 0
cgroup /sys/fs/cgroup/cpuset cgroup rw,cpuset 0 0
cgroup /sys/fs/cgroup/cpu,cpuacct cgroup rw,cpu,cpuacct 0 0
"""


def test_the_first_version_has_the_processor_where_there_are_both() -> None:
    assert controller(HYBRID) == (Path("/sys/fs/cgroup/cpu,cpuacct"), 1)


def test_the_second_version_alone() -> None:
    assert controller("cgroup2 /sys/fs/cgroup cgroup2 rw,nosuid 0 0\n") == (Path("/sys/fs/cgroup"), 2)


def test_without_control_groups_there_is_no_limit() -> None:
    with pytest.raises(NoLimitError):
        controller("proc /proc proc rw 0 0\n")


def test_half_a_core_is_half_of_every_period() -> None:
    assert quota(0.5, 2) == {"cpu.max": "50000 100000"}
    assert quota(0.5, 1) == {"cpu.cfs_period_us": "100000", "cpu.cfs_quota_us": "50000"}


def test_a_distribution_is_read_from_what_a_service_answers() -> None:
    registry = CollectorRegistry()
    other = Histogram("mesh_step", "Another.", ["worker"], registry=registry)
    sizes = Histogram("mesh_batch_size", "Sizes.", ["worker"], buckets=(1, 64, 256), registry=registry)
    other.labels("a").observe(7)
    for size in (1, 100, 200, 259):
        sizes.labels("a").observe(size)
    found = distribution(generate_latest(registry).decode(), "mesh_batch_size")
    assert (found.total, found.count, found.mean) == (560, 4, 140)
    assert found.buckets == ((1, 1), (64, 1), (256, 3), (float("inf"), 4))


def test_a_quantile_lies_within_its_bucket_and_never_beyond_the_last_bound() -> None:
    found = Distribution(0, 4, ((1.0, 1), (64.0, 1), (256.0, 3), (float("inf"), 4)))
    assert found.quantile(0.25) == 1.0
    assert found.quantile(0.5) == 64 + (256 - 64) / 2
    assert found.quantile(0.99) == 256.0


def test_a_percentile_is_one_of_the_values() -> None:
    assert percentile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert percentile([3.0, 1.0, 2.0], 0.99) == 3.0


def test_a_picture_unlike_any_other_shows_the_same() -> None:
    picture = (ROOT / "samples" / "cat.jpg").read_bytes()
    first, second = unlike_any(picture), unlike_any(picture)
    assert len({picture, first, second}) == 3
    check_end(first)
    assert (decode(first) == decode(picture)).all()
