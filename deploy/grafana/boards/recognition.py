"""What is seen in pictures: labels, codes, text, and the models that see it."""

from __future__ import annotations

from grafana_foundation_sdk.models.dashboard import Dashboard

from boards import panels
from boards.panels import (
    Panel,
    Query,
    distribution,
    gained,
    graph,
    listing,
    mean,
    quantiles,
    rate,
    variable,
)

_CHOSEN = 'classifier=~"$classifier"'
_UNSURE = f'{_CHOSEN}, le="0.5"'
_HIT = 'result="hit"'

_NEWEST_PREDICTIONS = """\
SELECT created_at AS "time", image_id, classifier, label, confidence,
       model || '@' || model_version AS model, latency_ms
FROM predictions
WHERE $__timeFilter(created_at)
ORDER BY created_at DESC
LIMIT 50"""

# No more than these, so that it costs the same however much there is.
_AGREEMENT = """\
WITH newest AS (
    SELECT image_id, classifier, label
    FROM predictions
    WHERE $__timeFilter(created_at)
    ORDER BY created_at DESC
    LIMIT 10000
)
SELECT a.classifier AS "one", b.classifier AS "other", count(*) AS pictures,
       round(100.0 * count(*) FILTER (WHERE a.label = b.label) / count(*), 1) AS "same label, %"
FROM newest a
JOIN newest b ON b.image_id = a.image_id AND b.classifier > a.classifier
GROUP BY 1, 2
ORDER BY 1, 2"""

_NEWEST_CODES = """\
SELECT created_at AS "time", image_id, content, level, decoder, symbology
FROM qr_codes
WHERE $__timeFilter(created_at)
ORDER BY created_at DESC
LIMIT 20"""

_NEWEST_TEXTS = """\
SELECT created_at AS "time", image_id, left(text, 120) AS text, jsonb_array_length(lines) AS lines,
       jsonb_array_length(pages) AS pages, language, engine
FROM ocr_documents
WHERE $__timeFilter(created_at)
ORDER BY created_at DESC
LIMIT 20"""


def board() -> Dashboard:
    return panels.board(
        "visionmesh-recognition",
        "visionmesh recognition",
        "What the mesh sees in pictures: labels and how sure they are, QR codes, text, and the models "
        "behind them.",
        [
            ("Labels", _labels()),
            ("Models and descriptors", _models()),
            ("QR codes", _codes()),
            ("Text", _text()),
        ],
        variables=[variable("classifier", "Classifier", "mesh_predictions_total")],
    )


def _labels() -> list[Panel]:
    confidence = "mesh_prediction_confidence"
    return [
        distribution(
            "Confidence",
            "How sure the answers are, 0 to 1. A shift downwards means other pictures than the models "
            "were trained on.",
            "percentunit",
            f"sum by (le) (increase({confidence}_bucket{{{_CHOSEN}}}[$__rate_interval]))",
        ),
        graph(
            "Mean confidence",
            "The mean confidence of the answers, by classifier.",
            "percentunit",
            Query(mean(confidence, _CHOSEN, by="classifier"), "{{classifier}}"),
            width=6,
            at_most=1,
        ),
        graph(
            "Unsure",
            "The part of the answers with a confidence of at most 0.5, by classifier.",
            "percentunit",
            Query(
                f"{rate(f'{confidence}_bucket', _UNSURE, by='classifier')} / "
                f"{rate(f'{confidence}_count', _CHOSEN, by='classifier')}",
                "{{classifier}}",
            ),
            width=6,
            at_most=1,
        ),
        graph(
            "Labels",
            "Pictures by label, of the chosen classifiers.",
            "ops",
            Query(rate("mesh_predictions_total", _CHOSEN, by="label"), "{{label}}"),
            width=12,
            stacked=True,
        ),
        graph(
            "Mix of labels",
            "The part that each label has in the answers.",
            "percentunit",
            Query(
                f"{rate('mesh_predictions_total', _CHOSEN, by='label')} / ignoring (label) group_left () "
                f"{rate('mesh_predictions_total', _CHOSEN)}",
                "{{label}}",
            ),
            width=12,
            stacked=True,
            at_most=1,
        ),
        listing(
            "Newest predictions",
            "The newest answers of the chosen time, straight from Postgres.",
            _NEWEST_PREDICTIONS,
            width=16,
        ),
        listing(
            "Agreement",
            "How often two classifiers gave a picture the same label, in the newest 10,000 answers of the "
            "chosen time.",
            _AGREEMENT,
            width=8,
        ),
    ]


def _models() -> list[Panel]:
    return [
        graph(
            "Models in service",
            "Replicas that answer with each model.",
            "short",
            Query(
                'count by (name, version, family) (mesh_model_info{name!=""})',
                "{{name}}@{{version}} ({{family}})",
            ),
            width=6,
        ),
        graph(
            "Versions refused, 1 h",
            "Versions of the registry that were not taken within the last hour, for a fault of theirs.",
            "short",
            Query(gained("mesh_model_refusals_total", by="model"), "{{model}}"),
            width=6,
        ),
        graph(
            "Shadow failures, 1 h",
            "Batches that a model in shadow could not answer, or whose rows could not be "
            "stored, within the last hour.",
            "short",
            Query(gained("mesh_shadow_failures_total", by="worker"), "{{worker}}"),
            width=6,
        ),
        graph(
            "Cache hits",
            "The part of the descriptors that the cache had already.",
            "percentunit",
            Query(
                f"{rate('mesh_cache_requests_total', _HIT)} / {rate('mesh_cache_requests_total')}",
                "hits",
            ),
            width=6,
            at_most=1,
        ),
        graph(
            "Descriptors computed",
            "Pictures that a model was run on, by its role: answer or shadow.",
            "ops",
            Query(rate("mesh_inferences_total", by="role"), "{{role}}"),
            width=12,
        ),
        graph(
            "Descriptors looked up",
            "Keys that were asked of the cache: hit, miss, or error.",
            "ops",
            Query(rate("mesh_cache_requests_total", by="result"), "{{result}}"),
            width=12,
        ),
    ]


def _codes() -> list[Panel]:
    return [
        graph(
            "Codes by level",
            "QR codes by the level that read them: what is near the top was easy.",
            "ops",
            Query(rate("mesh_qr_codes_total", by="level"), "{{level}}"),
            stacked=True,
        ),
        graph(
            "Codes by decoder",
            "QR codes by the program that read them.",
            "ops",
            Query(rate("mesh_qr_codes_total", by="decoder"), "{{decoder}}"),
            stacked=True,
        ),
        graph(
            "Pictures by result",
            "Pictures that were looked at: found, none, or truncated, for the budget was spent and none "
            "was found.",
            "ops",
            Query(rate("mesh_qr_seconds_count", by="result"), "{{result}}"),
        ),
        graph(
            "Time per picture",
            "Time to look for codes in a decoded picture, by result.",
            "s",
            *quantiles("mesh_qr_seconds", by="result"),
            width=8,
        ),
        listing(
            "Newest codes",
            "The newest codes of the chosen time, straight from Postgres.",
            _NEWEST_CODES,
            width=16,
            height=8,
        ),
    ]


def _text() -> list[Panel]:
    return [
        graph(
            "Pages",
            "Pages whose text was looked for, each minute.",
            "opm",
            Query(f"60 * {rate('mesh_ocr_pages_total')}", "pages"),
            width=6,
        ),
        graph(
            "Documents",
            "Documents that came to an end, by result: read, rejected, failed.",
            "ops",
            Query(rate("mesh_ocr_documents_total", by="result"), "{{result}}"),
            width=6,
        ),
        graph(
            "Stages, mean",
            "Time of a page in each stage of its reading, on average.",
            "s",
            Query(mean("mesh_ocr_stage_seconds", by="stage"), "{{stage}}"),
            width=6,
            stacked=True,
        ),
        graph(
            "Stages",
            "Time of a page in each stage of its reading.",
            "s",
            *quantiles("mesh_ocr_stage_seconds", by="stage"),
            width=6,
        ),
        graph(
            "Engines",
            "Engines of all replicas, and those that read a page at this moment.",
            "short",
            Query("sum(mesh_ocr_engines_busy)", "busy"),
            Query("sum(mesh_ocr_engines)", "all"),
        ),
        graph(
            "Memory of engines",
            "What an engine's process held after its last page.",
            "bytes",
            Query("max by (instance, engine) (mesh_ocr_engine_resident_bytes)", "{{instance}} {{engine}}"),
        ),
        graph(
            "Waiting",
            "Messages that wait for text, and callers over HTTP that wait for their turn.",
            "short",
            Query("max(mesh_ocr_queue)", "messages"),
            Query("sum(mesh_ocr_waiting)", "callers"),
        ),
        listing(
            "Newest texts",
            "The newest documents of the chosen time, straight from Postgres.",
            _NEWEST_TEXTS,
        ),
    ]
