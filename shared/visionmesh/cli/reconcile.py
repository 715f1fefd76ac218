"""`mesh reconcile`: what does not fit together, and what can be done about it."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from visionmesh.cli.console import DIRECTORY, Compose, Directory, connect

if TYPE_CHECKING:
    from visionmesh.reconcile import Reconciliation
    from visionmesh.settings import Settings

_PAGE: Final = 1000


def reconcile(
    older_than: Annotated[
        float, typer.Option(min=0, metavar="MINUTES", help="What is younger may still be on its way.")
    ] = 60.0,
    look_only: Annotated[bool, typer.Option("--look-only", help="Change nothing.")] = False,
    delete_orphans: Annotated[
        bool, typer.Option("--delete-orphans", help="Delete objects that no row speaks of.")
    ] = False,
    limit: Annotated[int, typer.Option(min=1, help="At most so many pictures are asked for again.")] = 10_000,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON line per finding.")] = False,
    compose: Compose = False,
    directory: Directory = DIRECTORY,
) -> None:
    """Find objects without rows, rows without objects and pictures without results; ask for these again.

    Also goes on with deletions that are not finished. The exit status is 1 when objects are lost.
    """
    connect(directory, compose=compose)
    from visionmesh.cache import open_cache
    from visionmesh.database import Database
    from visionmesh.deletion import Eraser, PostgresDeletions
    from visionmesh.object_store import S3ObjectStore
    from visionmesh.reconcile import Reconciliation
    from visionmesh.settings import get_settings

    settings = get_settings()
    seconds = 60 * older_than
    store = S3ObjectStore.from_settings(settings)
    with closing(Database.from_settings(settings)) as database:
        reconciliation = Reconciliation(database)
        compared = reconciliation.compare(
            store.objects(), upload_bucket=settings.s3_upload_bucket, older_than_seconds=seconds
        )
        orphans_too = delete_orphans and not look_only
        for path in compared.orphans:
            # Asked again: since the listing its upload may have come to its end.
            deleted = orphans_too and reconciliation.is_orphan(path)
            if deleted:
                store.delete(path)
            _tell("object without a row", path, "deleted" if deleted else "left", as_json)
        for image_id in compared.lost:
            _tell("row without its object", image_id, "lost", as_json)
        busy = _busy(settings)
        for worker in busy:
            _tell("worker with messages waiting", worker, "not asked about", as_json)
        missing = _ask_again(reconciliation, settings, seconds, busy, limit, look_only, as_json)
        finished = 0
        if not look_only:
            finished = Eraser(PostgresDeletions(database), store, open_cache(settings)).finish()
    if not as_json:
        sys.stdout.write(
            f"{len(compared.orphans)} objects without a row, {len(compared.lost)} rows without their object, "
            f"{missing.pictures} pictures without all results, {finished} deletions brought further\n"
        )
        for worker, count in missing.by_worker.most_common():
            sys.stdout.write(f"{worker} has not answered {count} of them\n")
        if missing.pictures == limit:
            sys.stdout.write(f"there may be more of them than {limit} (--limit)\n")
    if compared.lost:
        raise SystemExit(1)


@dataclass
class _Missing:
    """Pictures without all their results, and how many of them each worker has not answered."""

    pictures: int = 0
    by_worker: Counter[str] = field(default_factory=Counter)


def _busy(settings: Settings) -> list[str]:
    """Workers of pictures whose messages still wait: what they have not answered they still will."""
    from visionmesh.kafka import partition_offsets
    from visionmesh.topics import FEATURES, IMAGES, readers

    return [
        group
        for topic, group in readers(settings.extra_classifiers)
        if topic in (IMAGES, FEATURES)
        and any(partition.lag for partition in partition_offsets(settings, topic.name, group))
    ]


def _ask_again(
    reconciliation: Reconciliation,
    settings: Settings,
    seconds: float,
    busy: Iterable[str],
    limit: int,
    look_only: bool,
    as_json: bool,
) -> _Missing:
    missing, after = _Missing(), ""
    while missing.pictures < limit:
        page = reconciliation.unanswered(
            older_than_seconds=seconds,
            limit=min(_PAGE, limit - missing.pictures),
            after=after,
            extra_classifiers=settings.extra_classifiers,
            busy=list(busy),
        )
        if not page:
            break
        if not look_only:
            reconciliation.ask_again([each.image_id for each in page])
        for each in page:
            missing.by_worker.update(each.workers)
            done = "left" if look_only else "asked for again"
            _tell("picture without results", each.image_id, done, as_json, workers=list(each.workers))
        missing.pictures += len(page)
        after = page[-1].image_id
    return missing


def _tell(finding: str, name: str, done: str, as_json: bool, **more: Any) -> None:
    if as_json:
        sys.stdout.write(json.dumps({"finding": finding, "name": name, "done": done, **more}) + "\n")
    else:
        workers = f" ({', '.join(more['workers'])})" if "workers" in more else ""
        sys.stdout.write(f"{finding}: {name}{workers}: {done}\n")
