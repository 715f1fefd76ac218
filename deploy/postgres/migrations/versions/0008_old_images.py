"""What retention asks again and again: outcomes by age, and deletions that may be forgotten.

Without them each question reads a whole table. At a million pictures that outlasts the time a statement has,
so that nothing is ever deleted.
"""

from __future__ import annotations

from alembic import op

revision = "0008"
down_revision = "0007"

INDEXES = {
    "task_outcomes_oldest": "task_outcomes (coalesce(finished_at, started_at))",
    "deleted_images_finished": "deleted_images (finished_at) WHERE finished_at IS NOT NULL",
}


def upgrade() -> None:
    # As in 0007: beside those who write, and not trusting what a run that was broken off left behind.
    with op.get_context().autocommit_block():
        for name, on in INDEXES.items():
            op.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {name}")
            op.execute(f"CREATE INDEX CONCURRENTLY {name} ON {on}")
