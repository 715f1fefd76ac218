"""What dashboards ask of results every few seconds: the newest ones, and those of a time.

A b-tree and not a BRIN: the newest are at its end, however long the time that is chosen, and rows that were
updated or took the place of deleted ones do not lie in the order of their time.
"""

from __future__ import annotations

from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    # Workers write meanwhile; an index that is built in one go would hold them up for as long as it takes.
    with op.get_context().autocommit_block():
        for table in ("predictions", "qr_codes", "ocr_documents"):
            # What a run that was broken off left behind is not valid, and would count as there.
            op.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {table}_newest")
            op.execute(f"CREATE INDEX CONCURRENTLY {table}_newest ON {table} (created_at)")
