"""The text of documents, and words to find them by.

What is searched is folded by whoever writes (`visionmesh.search_text`): `unaccent` is an extension that not
every server has, and what the server takes for a letter depends on the locale of its database.
"""

from __future__ import annotations

from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.execute("""
        -- A vector holds at most 1 MB. Of a text with more different words than that the beginning is found.
        CREATE FUNCTION search_vector(spanish text, english text) RETURNS tsvector
        LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE AS $$
        BEGIN
            RETURN to_tsvector('pg_catalog.spanish', spanish) || to_tsvector('pg_catalog.english', english);
        EXCEPTION WHEN program_limit_exceeded THEN
            RETURN search_vector(left(spanish, length(spanish) / 2), left(english, length(english) / 2));
        END
        $$;

        CREATE TABLE ocr_documents (
            image_id   text PRIMARY KEY,
            text       text NOT NULL,
            lines      jsonb NOT NULL,
            pages      jsonb NOT NULL,
            language   text NOT NULL,
            engine     text NOT NULL,
            seconds    jsonb NOT NULL,
            search     tsvector NOT NULL,
            created_at timestamptz NOT NULL DEFAULT now()
        );
        COMMENT ON COLUMN ocr_documents.lines IS
            'in reading order: text, polygon in pixels of its page, confidence, page from 1';
        COMMENT ON COLUMN ocr_documents.pages IS 'width and height of each page in pixels';
        COMMENT ON COLUMN ocr_documents.seconds IS 'of reading, by stage';
        COMMENT ON COLUMN ocr_documents.search IS 'the folded text, stemmed as Spanish and as English';
        COMMENT ON COLUMN ocr_documents.created_at IS 'when first written; a replay keeps it';

        CREATE INDEX ocr_documents_search ON ocr_documents USING gin (search);
    """)
