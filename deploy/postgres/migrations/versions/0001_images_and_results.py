"""Pictures that came through upload, and what the workers find in any picture.

Results have no foreign key to `images`: a producer may announce an object that never went through
upload, and it is served in full.
"""

from __future__ import annotations

from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.execute("""
        CREATE TABLE images (
            image_id     text PRIMARY KEY,
            minio_path   text NOT NULL,
            sha256       text NOT NULL,
            bytes        bigint NOT NULL,
            media_type   text NOT NULL,
            width        integer,
            height       integer,
            tasks        text[],
            created_at   timestamptz NOT NULL DEFAULT now(),
            published_at timestamptz
        );
        COMMENT ON COLUMN images.tasks IS 'what was asked for; null is every task';
        COMMENT ON COLUMN images.published_at IS 'when Kafka took it; null is still in the outbox';

        -- The listing, newest first, page by page.
        CREATE INDEX images_newest ON images (created_at DESC, image_id DESC);
        -- The outbox. It holds next to nothing in normal times, so looking into it is free.
        CREATE INDEX images_unpublished ON images (created_at) WHERE published_at IS NULL;

        CREATE TABLE image_features (
            image_id    text PRIMARY KEY,
            descriptors real[] NOT NULL,
            model       text NOT NULL,
            created_at  timestamptz NOT NULL DEFAULT now()
        );
        COMMENT ON COLUMN image_features.created_at IS 'when first written; a replay keeps it';

        CREATE TABLE predictions (
            image_id      text NOT NULL,
            classifier    text NOT NULL,
            label         text NOT NULL,
            confidence    real NOT NULL,
            labels        text[] NOT NULL,
            probabilities real[] NOT NULL,
            model         text NOT NULL,
            model_version text NOT NULL,
            latency_ms    real NOT NULL,
            created_at    timestamptz NOT NULL DEFAULT now(),
            PRIMARY KEY (image_id, classifier),
            CHECK (cardinality(labels) = cardinality(probabilities))
        );
        COMMENT ON COLUMN predictions.probabilities IS 'one per label, in the order of labels';
        COMMENT ON COLUMN predictions.created_at IS 'when first written; a replay keeps it';

        CREATE TABLE task_outcomes (
            image_id    text NOT NULL,
            worker      text NOT NULL,
            state       text NOT NULL CHECK (state IN ('running', 'done', 'skipped', 'failed')),
            attempt     integer NOT NULL,
            error       text,
            started_at  timestamptz,
            finished_at timestamptz,
            PRIMARY KEY (image_id, worker)
        );
        COMMENT ON COLUMN task_outcomes.started_at IS 'of the last attempt; null if none was written down';
    """)
