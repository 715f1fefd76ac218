"""What models in shadow find, apart from the answers that users see.

Keyed by model as well, so that a shadow can be replaced by another one without losing what the first
one said of the same pictures.
"""

from __future__ import annotations

from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.execute("""
        CREATE TABLE shadow_features (
            image_id    text NOT NULL,
            model       text NOT NULL,
            descriptors real[] NOT NULL,
            latency_ms  real NOT NULL,
            created_at  timestamptz NOT NULL DEFAULT now(),
            PRIMARY KEY (image_id, model)
        );
        COMMENT ON COLUMN shadow_features.created_at IS 'when first written; a replay keeps it';

        CREATE TABLE shadow_predictions (
            image_id      text NOT NULL,
            classifier    text NOT NULL,
            model         text NOT NULL,
            model_version text NOT NULL,
            label         text NOT NULL,
            confidence    real NOT NULL,
            labels        text[] NOT NULL,
            probabilities real[] NOT NULL,
            latency_ms    real NOT NULL,
            created_at    timestamptz NOT NULL DEFAULT now(),
            PRIMARY KEY (image_id, classifier, model, model_version),
            CHECK (cardinality(labels) = cardinality(probabilities))
        );
        COMMENT ON COLUMN shadow_predictions.classifier IS 'whose answer it would have been';
        COMMENT ON COLUMN shadow_predictions.probabilities IS 'one per label, in the order of labels';
        COMMENT ON COLUMN shadow_predictions.created_at IS 'when first written; a replay keeps it';

        -- A comparison takes the newest pictures of each model in shadow.
        CREATE INDEX shadow_features_newest ON shadow_features (model, created_at DESC);
        CREATE INDEX shadow_predictions_newest
            ON shadow_predictions (classifier, model, model_version, created_at DESC);
    """)
