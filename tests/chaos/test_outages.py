"""Workers die at any moment, servers go away while uploads go on: everything that was accepted is processed
once, and nothing is given up.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator

import httpx
import pytest

from chaos.rig import Rig, eventually, open_rig, picture, size

pytestmark = [pytest.mark.native, pytest.mark.timeout(900)]

OUTAGE_SECONDS = size("MESH_CHAOS_OUTAGE_SECONDS", 10)


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    workers = ("feature-extractor", "classifier-fast", "classifier-balanced", "classifier-accurate")
    with open_rig(
        tmp_path_factory.mktemp("chaos"),
        "native",
        scale=dict.fromkeys(workers, 2),
        settings={"MESH_KAFKA_MESSAGE_TIMEOUT_MS": "5000"},
    ) as rig:
        yield rig


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


def uploads_during(rig: Rig, prefix: str, stop: threading.Event) -> list[tuple[str, httpx.Response]]:
    """Uploads one picture after the other until `stop`; each with its answer."""
    answers = []
    while not stop.is_set():
        image_id = f"{prefix}-{len(answers)}"
        answers.append((image_id, rig.upload(image_id, picture(len(answers)))))
        time.sleep(0.1)
    return answers


def answers_while_away(rig: Rig, prefix: str, server: str) -> list[tuple[str, httpx.Response]]:
    """Kills a server of the stack, uploads for the length of the outage, starts it again."""
    over = threading.Event()
    handle = getattr(rig.stack, server)
    handle.kill()
    timer = threading.Timer(OUTAGE_SECONDS, over.set)
    timer.start()
    try:
        return uploads_during(rig, prefix, over)
    finally:
        timer.cancel()
        handle.restart()


def ids_with(answers: list[tuple[str, httpx.Response]], status: int) -> list[str]:
    return [image_id for image_id, answer in answers if answer.status_code == status]


def test_kafka_away_every_upload_is_accepted_and_processed_after(rig: Rig) -> None:
    answers = answers_while_away(rig, "kafka", "kafka")
    assert {answer.status_code for _, answer in answers} == {202}
    rig.wait_home("kafka", len(answers))
    rig.check_exact("kafka", len(answers))
    assert rig.dead_letters() == 0
    print(f"Kafka away for {OUTAGE_SECONDS} s: {len(answers)} uploads, all 202, all processed after")


@pytest.mark.parametrize(("server", "name"), [("postgres", "database"), ("s3", "object_store")])
def test_a_store_away_answers_503_and_nothing_is_half_stored(rig: Rig, server: str, name: str) -> None:
    before = rig.upload_all(f"{server}-before", 20)
    assert before == [202] * 20
    answers = answers_while_away(rig, server, server)
    refused = [answer for _, answer in answers if answer.status_code == 503]
    assert refused, "the outage was not noticed"
    assert {answer.status_code for _, answer in answers} <= {202, 503}
    for answer in refused:
        assert int(answer.headers["retry-after"]) > 0
        assert answer.json()["code"]
        assert name in answer.text or "unavailable" in answer.text
    accepted = ids_with(answers, 202)
    eventually(lambda: rig.predicted(f"{server}-before") == 20, "what was under way is processed")
    eventually(lambda: rig.predicted(server) == len(accepted) + 20, "what was accepted is processed")
    eventually(lambda: rig.client.get("/ready").status_code == 200, "ready again")
    known = {row[0] for row in rig.query("SELECT image_id FROM images WHERE image_id LIKE %s", f"{server}-%")}
    assert not known & set(ids_with(answers, 503)), "a refused upload left a row"
    # The same pictures again, as a client would: accepted, processed, stored once.
    for image_id in ids_with(answers, 503):
        number = int(image_id.rsplit("-", 1)[1])
        assert rig.upload(image_id, picture(number)).status_code == 202
    eventually(lambda: rig.predicted(server) == len(answers) + 20, "the repeated uploads")
    rig.wait_committed()
    rig.check_exact(server, len(answers) + 20)
    assert rig.dead_letters() == 0
    print(f"{name} away for {OUTAGE_SECONDS} s: {len(accepted)} accepted, {len(refused)} times 503")
