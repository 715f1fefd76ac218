"""The cache of descriptors in a whole mesh: what was computed once is not computed again, and when the cache
dies in the middle nothing is lost.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from chaos.rig import Rig, eventually, open_rig, size

pytestmark = [pytest.mark.native, pytest.mark.timeout(900)]

PICTURES = size("MESH_CHAOS_CACHE_PICTURES", 200)
SECONDS = size("MESH_CHAOS_CACHE_SECONDS", 5)


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """On the native stack alone: the embedded one has the same Valkey."""
    directory = tmp_path_factory.mktemp("cache")
    with open_rig(directory, "native", scale={"feature-extractor": 2}, settings={}) as rig:
        yield rig


def counted(rig: Rig, name: str, label: str) -> dict[str, float]:
    """A counter of the extractors by one of its labels, summed over the replicas."""
    found: dict[str, float] = {}
    for replica in rig.mesh.replicas:
        if replica.service.name == "feature-extractor":
            text = httpx.get(f"{replica.url}/metrics", timeout=60).text
            for family in text_string_to_metric_families(text):
                for sample in family.samples:
                    if sample.name == name:
                        key = sample.labels[label]
                        found[key] = found.get(key, 0.0) + sample.value
    return found


def inferences(rig: Rig) -> float:
    return counted(rig, "mesh_inferences_total", "role").get("answer", 0.0)


def test_the_second_time_the_extractor_computes_none(rig: Rig) -> None:
    assert rig.upload_all("once", PICTURES) == [202] * PICTURES
    rig.wait_home("once", PICTURES)
    computed = inferences(rig)
    assert computed >= PICTURES
    hits = counted(rig, "mesh_cache_requests_total", "result")["hit"]

    assert rig.upload_all("again", PICTURES) == [202] * PICTURES
    rig.wait_home("again", PICTURES)
    assert inferences(rig) == computed
    assert counted(rig, "mesh_cache_requests_total", "result")["hit"] >= hits + PICTURES
    for prefix in ("once", "again"):
        rig.check_exact(prefix, PICTURES)
    different = rig.query(
        "SELECT count(*) FROM image_features AS one JOIN image_features AS other "
        "ON other.image_id = replace(one.image_id, 'once-', 'again-') "
        "WHERE one.image_id LIKE 'once-%%' AND other.descriptors = one.descriptors"
    )
    assert different == [(PICTURES,)], "the cache gave other descriptors"
    assert rig.dead_letters() == 0
    print(f"{PICTURES} pictures: {computed:.0f} inferences; the same again: 0")


def test_a_cache_that_dies_in_the_middle_loses_nothing(rig: Rig) -> None:
    # Half of them are known by now, or will have been computed by the time the cache dies.
    first, late = PICTURES // 2, PICTURES // 10
    statuses: list[int] = []
    uploading = threading.Thread(
        target=lambda: statuses.extend(
            rig.upload_all("dies", PICTURES - late, pause=4 * SECONDS / PICTURES, first=first)
        )
    )
    uploading.start()
    eventually(lambda: rig.predicted("dies") > PICTURES // 10, "some are done")
    before = counted(rig, "mesh_cache_requests_total", "result")["error"]
    rig.stack.cache.kill()
    # However slow the machine is, some of them come when there is no cache any more.
    after = rig.upload_all("dies", late, first=first + PICTURES - late)
    uploading.join()
    statuses += after
    assert statuses == [202] * PICTURES
    rig.wait_home("dies", PICTURES)
    rig.check_exact("dies", PICTURES)
    assert rig.dead_letters() == 0
    assert counted(rig, "mesh_cache_requests_total", "result")["error"] > before

    def all_ready() -> bool:
        answers = [httpx.get(f"{replica.url}/ready", timeout=60) for replica in rig.mesh.replicas]
        return {answer.status_code for answer in answers} == {200}

    eventually(all_ready, "every replica ready without a cache")
    print(f"{PICTURES} uploads, the cache killed in the middle: all results stored")
