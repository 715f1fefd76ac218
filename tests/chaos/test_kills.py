"""Workers die at any moment, and no picture is lost, doubled or given up."""

from __future__ import annotations

import random
import threading

import pytest

from chaos.rig import Rig, size

pytestmark = [pytest.mark.native, pytest.mark.timeout(900)]


def test_killing_workers_loses_and_doubles_nothing(rig: Rig) -> None:
    uploads = size("MESH_CHAOS_UPLOADS", 300)
    kills = size("MESH_CHAOS_KILLS", 12)
    seconds = size("MESH_CHAOS_SECONDS", 20)
    chance = random.Random(20261121)
    struck: list[str] = []
    over = threading.Event()

    def strike() -> None:
        # Every kind gets its share; which replica, and when, is chance.
        kinds = sorted({replica.service.name for replica in rig.mesh.replicas} - {"ingest-api"})
        while len(struck) < kills and not over.wait(chance.uniform(0.2, 1.8) * seconds / kills):
            victim = rig.kill_one_of(kinds[len(struck) % len(kinds)], chance)
            if victim is not None:
                struck.append(victim.name)

    striker = threading.Thread(target=strike)
    striker.start()
    statuses = rig.upload_all("kill", uploads, pause=4 * seconds / uploads)
    striker.join()
    over.set()
    assert statuses == [202] * uploads
    assert len(struck) == kills
    rig.wait_home("kill", uploads)
    rig.check_exact("kill", uploads)
    assert rig.dead_letters() == 0
    print(f"{uploads} uploads, {kills} kills: {sorted(struck)}")
