"""Runs the migrations over the connection that `visionmesh.database.migrate` hands in.

That function holds the lock that keeps two upgrades apart, so there is no other way in.
"""

from __future__ import annotations

from alembic import context

# One at a time: a migration may end its transaction, to build an index beside those who write.
context.configure(connection=context.config.attributes["connection"], transaction_per_migration=True)
with context.begin_transaction():
    context.run_migrations()
