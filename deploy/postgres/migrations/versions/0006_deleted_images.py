"""Images that were deleted, for as long as anything on its way may speak of them.

A worker that still has such an image, or gets its message later, must not bring it back: what is written of
an image that stands here is dropped.
"""

from __future__ import annotations

from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    op.execute("""
        CREATE TABLE deleted_images (
            image_id    text PRIMARY KEY,
            minio_path  text,
            sha256      text,
            deleted_at  timestamptz NOT NULL DEFAULT now(),
            cleared_at  timestamptz,
            finished_at timestamptz
        );
        COMMENT ON COLUMN deleted_images.minio_path IS 'of the object; null where there was no upload';
        COMMENT ON COLUMN deleted_images.cleared_at IS 'when its object was gone';
        COMMENT ON COLUMN deleted_images.finished_at IS 'when it was deleted a second time';

        -- What is still to be done, which is next to nothing.
        CREATE INDEX deleted_images_unfinished ON deleted_images (deleted_at) WHERE finished_at IS NULL;
    """)
