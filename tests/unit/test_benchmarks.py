"""What the benchmarks compute; what they measure is their own business."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from prometheus_client import CollectorRegistry, Histogram, generate_latest

from benchmarks.burst import Sample, drained_at
from benchmarks.burst import limits as memory_limits
from benchmarks.figures import percentile
from benchmarks.limits import NoLimitError, controller, quota
from benchmarks.qr_locators import Found, average_precision
from benchmarks.replicas import Distribution, distribution, unlike_any
from qr_decoder.domain import Located
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


def test_a_place_is_right_when_it_covers_half_of_a_code_that_no_surer_one_has() -> None:
    square = np.array([[0, 0], [10, 0], [10, 10], [0, 10]], np.float32)
    # Its box is that of the square, its outline half of it.
    diamond = np.array([[5, -0.1], [10, 5], [5, 10.1], [0, 5]], np.float32)
    found = Found()
    found.add(
        [square, square + 50], [Located(square + 1, 0.9), Located(square, 0.8), Located(square + 99, 0.7)]
    )
    found.add([square], [Located(diamond * 0.98 + 0.1, 0.6)])
    assert (found.codes, found.boxes, found.quads) == (
        3,
        [True, False, False, True],
        [True, False, False, False],
    )


def test_the_precision_of_a_locator_is_averaged_over_its_recall() -> None:
    found = Found(codes=4, confidences=[0.5, 0.9, 0.8])
    # In order of confidence right, wrong, right: precision 1 for a quarter, 2/3 for another, 0 for the rest.
    assert average_precision(found, [True, True, False]) == pytest.approx((1 + 2 / 3) / 4)
    assert average_precision(Found(codes=4), []) == 0


def test_a_container_s_limit_is_known_by_the_name_of_the_process() -> None:
    found = memory_limits()
    assert found["feature-extractor"] == 2 * 2**30  # of a setting, when that is absent
    assert found["classifier-fast"] == 512 * 2**20
    assert found["s3"] == found["minio"]
    assert {"kafka", "s3", "postgres", "cache", "ingest-api", "qr-decoder", "ocr-worker"} <= set(found)


def lag(at: float, fast: int, slow: int) -> Sample:
    return Sample(at, {"fast": fast, "slow": slow}, {}, {}, 0)


def test_a_burst_is_drained_when_every_group_is_where_it_was_before() -> None:
    # The first two are of a burst before, which says nothing about what is usual.
    samples = [lag(-2, 80, 80), lag(-1, 9, 0), lag(1, 0, 3), lag(2, 1, 0)]
    samples += [lag(3, 50, 9), lag(5, 90, 90), lag(6, 1, 40), lag(7, 2, 3)]
    assert drained_at(samples, calm=0, began=2.5, ended=4) is None
    # During the burst nothing is drained yet, however small the lag.
    samples.insert(5, lag(3.5, 0, 0))
    assert drained_at([*samples, lag(8, 1, 3)], calm=0, began=2.5, ended=4) == 8
