"""The QR codes of pictures, one row per code.

`data` holds the bytes of the symbol; `content` is for people and for searching, and cannot hold a NUL.
"""

from __future__ import annotations

from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.execute("""
        CREATE TABLE qr_codes (
            image_id              text NOT NULL,
            number                integer NOT NULL CHECK (number > 0),
            content               text NOT NULL,
            data                  bytea NOT NULL,
            corners               double precision[] NOT NULL,
            decoder               text NOT NULL,
            symbology             text NOT NULL,
            level_used            integer NOT NULL,
            level                 text NOT NULL,
            preprocessing_applied boolean NOT NULL,
            preprocessing         text NOT NULL,
            rotation_angle        integer,
            confidence            double precision NOT NULL,
            processing_time_ms    double precision NOT NULL,
            parts                 integer NOT NULL,
            sequence              integer[],
            created_at            timestamptz NOT NULL DEFAULT now(),
            PRIMARY KEY (image_id, number)
        );
        COMMENT ON COLUMN qr_codes.number IS 'the code''s place among those of its picture, from 1';
        COMMENT ON COLUMN qr_codes.corners IS 'four pairs of x and y in pixels of the upright picture';
        COMMENT ON COLUMN qr_codes.sequence IS
            'of a symbol whose structured append message is incomplete: position, total, parity';
        COMMENT ON COLUMN qr_codes.created_at IS 'when first written; a replay keeps it';
    """)
