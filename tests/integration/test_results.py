"""One suite for `ResultStore` and `Images`, on the double and on Postgres; then what only Postgres has."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import psycopg
import pytest

from visionmesh.database import Database
from visionmesh.errors import Rejected, Unavailable
from visionmesh.ocr_document import OcrDocument, PageSize, TextLine
from visionmesh.qr_code import QrCode
from visionmesh.results import (
    _SEARCH,
    FeaturesPair,
    FeaturesRow,
    ImageRow,
    Images,
    OcrDocumentRow,
    OutcomeRow,
    PostgresImages,
    PostgresResultStore,
    PostgresShadows,
    PredictionPair,
    PredictionRow,
    QrCodesRow,
    ResultStore,
    Row,
    ShadowClassifier,
    ShadowFeaturesRow,
    ShadowPredictionRow,
    Shadows,
)
from visionmesh.stack import Stack
from visionmesh.testing.results import MemoryImages, MemoryResultStore, MemoryShadows

LABELS = ("cat", "dog", "ship")
SHADOW_TABLES = ("shadow_features", "shadow_predictions")
RESULT_TABLES = ("image_features", "predictions", "qr_codes", "ocr_documents", "task_outcomes")
TABLES = ("images", "deleted_images", *RESULT_TABLES, *SHADOW_TABLES)


@dataclass
class Stores:
    """A store, what reads it, all that stands in it, and a way to take the server away for a while."""

    results: ResultStore
    images: Images
    shadows: Shadows
    dump: Callable[[], object]
    away: Callable[[], AbstractContextManager[None]]


def memory_stores() -> Stores:
    results = MemoryResultStore()
    images = MemoryImages(results)
    shadows = MemoryShadows(results)

    @contextmanager
    def away() -> Iterator[None]:
        results.available = images.available = shadows.available = False
        yield
        results.available = images.available = shadows.available = True

    return Stores(
        results,
        images,
        shadows,
        lambda: repr(
            (
                images.images(limit=1000),
                results.features(),
                results.predictions(),
                results.qr_codes(),
                results.documents(),
                results.outcomes(),
                results.shadow_features(),
                results.shadow_predictions(),
            )
        ),
        away,
    )


def dump(dsn: str) -> list[object]:
    with psycopg.connect(dsn) as connection:
        return [
            connection.execute(f"SELECT * FROM {table} ORDER BY 1, 2, 3, 4").fetchall() for table in TABLES
        ]


@pytest.fixture
def empty_dsn(postgres_dsn: str) -> str:
    with psycopg.connect(postgres_dsn) as connection:
        connection.execute(f"TRUNCATE {', '.join(TABLES)}")
    return postgres_dsn


@pytest.fixture
def database(empty_dsn: str) -> Iterator[Database]:
    with Database(empty_dsn) as database:
        yield database


@pytest.fixture(params=["memory", pytest.param("postgres", marks=pytest.mark.servers)])
def stores(request: pytest.FixtureRequest) -> Stores:
    if request.param == "memory":
        return memory_stores()
    stack: Stack = request.getfixturevalue("session_stack")
    dsn: str = request.getfixturevalue("empty_dsn")
    database: Database = request.getfixturevalue("database")

    @contextmanager
    def away() -> Iterator[None]:
        stack.postgres.stop()
        try:
            yield
        finally:
            stack.postgres.start()

    return Stores(
        PostgresResultStore(database),
        PostgresImages(database),
        PostgresShadows(database),
        lambda: dump(dsn),
        away,
    )


def features(image_id: str, *values: float, model: str = "extractor@1") -> FeaturesRow:
    return FeaturesRow(image_id, values or (0.5, -1.25, 3.0), model)


def prediction(image_id: str, classifier: str = "fast", label: str = "cat") -> PredictionRow:
    return PredictionRow(image_id, classifier, label, 0.5, LABELS, (0.5, 0.25, 0.25), "forest", "1", 1.5)


def shadow_features(image_id: str, *values: float, model: str = "extractor@2") -> ShadowFeaturesRow:
    return ShadowFeaturesRow(image_id, values or (0.25, -1.0, 2.5), model, 0.75)


def shadow_prediction(
    image_id: str, classifier: str = "fast", label: str = "dog", version: str = "2"
) -> ShadowPredictionRow:
    return ShadowPredictionRow(
        image_id, classifier, label, 0.75, LABELS, (0.25, 0.75, 0.0), "forest", version, 0.5
    )


def code(content: str = "https://example.org", **changed: Any) -> QrCode:
    found = QrCode(
        content=content,
        data=content.encode(),
        corners=((0.5, 1.25), (30.07, 1.0), (30.0, 31.33), (0.0, 31.0)),
        decoder="zxing",
        symbology="qr",
        level_used=2,
        level="whole",
        preprocessing_applied=False,
        preprocessing="raw",
        rotation_angle=None,
        confidence=0.876,
        processing_time_ms=12.345,
    )
    return replace(found, **changed)


def document(*texts: str) -> OcrDocument:
    """A page for each text, a line for each of its lines."""
    return OcrDocument(
        text="\n\n".join(texts),
        lines=tuple(
            TextLine(
                line, ((0.5, row * 20.0), (90.25, row * 20.0), (90.2, row * 20.0 + 9), (0.5, 9.0)), 0.9, page
            )
            for page, text in enumerate(texts, 1)
            for row, line in enumerate(text.splitlines())
        ),
        pages=tuple(PageSize(100, 200) for _ in texts),
        language="es+en",
        engine="rapidocr",
        seconds={"decode": 0.01, "detect": 0.2},
    )


def image(image_id: str, sha256: str = "aa") -> ImageRow:
    return ImageRow(image_id, f"raw-images/{image_id}.jpg", sha256, 123, "image/jpeg", 32, 16, ("classify",))


def all_rows(image_id: str) -> list[Row]:
    return [
        features(image_id),
        prediction(image_id),
        prediction(image_id, "accurate", "dog"),
        shadow_features(image_id),
        shadow_prediction(image_id),
        shadow_prediction(image_id, version="3"),
        QrCodesRow(image_id, (code("one"), code("two"))),
        OcrDocumentRow(image_id, document("one\ntwo")),
        OutcomeRow(image_id, "feature-extractor", "done"),
        OutcomeRow(image_id, "classifier-fast", "failed", "bad_count: 19 descriptors"),
    ]


# Results


def test_what_is_saved_is_read(stores: Stores) -> None:
    stores.results.save(all_rows("a") + all_rows("b"))
    found = stores.images.results("a")
    assert found is not None
    assert found.image is None
    assert found.features is not None
    assert found.features.descriptors == (0.5, -1.25, 3.0)
    assert [(row.classifier, row.label) for row in found.predictions] == [
        ("accurate", "dog"),
        ("fast", "cat"),
    ]
    assert found.predictions[0].labels == LABELS
    assert found.predictions[0].probabilities == (0.5, 0.25, 0.25)
    assert found.predictions[0].created_at.tzinfo is not None
    assert found.codes == (code("one"), code("two"))
    assert [(row.worker, row.state, row.error, row.attempt) for row in found.outcomes] == [
        ("classifier-fast", "failed", "bad_count: 19 descriptors", 1),
        ("feature-extractor", "done", None, 1),
    ]
    assert all(row.finished_at is not None for row in found.outcomes)


def test_nothing_is_known_of_an_unknown_image(stores: Stores) -> None:
    stores.results.save(all_rows("a"))
    assert stores.images.results("b") is None
    assert stores.images.image("b") is None


def test_saving_twice_leaves_the_same_tables(stores: Stores) -> None:
    rows = all_rows("a") + all_rows("b")
    stores.results.begin("feature-extractor", ["a", "b"])
    stores.results.save(rows)
    before = stores.dump()
    stores.results.save(rows)
    stores.results.save(rows[::-1])
    assert stores.dump() == before


def test_a_replay_with_another_model_takes_its_place(stores: Stores) -> None:
    stores.results.save([features("a", 1.0), prediction("a", label="cat")])
    first = stores.images.results("a")
    stores.results.save([features("a", 2.0, 3.0, model="extractor@2"), prediction("a", label="dog")])
    second = stores.images.results("a")
    assert first is not None
    assert first.features is not None
    assert second is not None
    assert second.features == replace(first.features, descriptors=(2.0, 3.0), model="extractor@2")
    assert second.predictions == (replace(first.predictions[0], label="dog"),)


def test_of_one_key_in_one_batch_the_last_row_stays(stores: Stores) -> None:
    stores.results.save(
        [
            features("b", 1.0),
            features("a", 1.0),
            features("b", 2.0),
            prediction("a"),
            prediction("a", label="dog"),
        ]
    )
    a, b = stores.images.results("a"), stores.images.results("b")
    assert a is not None
    assert b is not None
    assert b.features is not None
    assert b.features.descriptors == (2.0,)
    assert [row.label for row in a.predictions] == ["dog"]


def test_rows_of_different_widths_keep_their_own_values(stores: Stores) -> None:
    widths = {f"i{width}": tuple(float(n) for n in range(width)) for width in range(6)}
    stores.results.save([FeaturesRow(image_id, values, "m@1") for image_id, values in widths.items()])
    for image_id, values in widths.items():
        found = stores.images.results(image_id)
        assert found is not None
        assert found.features is not None
        assert found.features.descriptors == values


def test_numbers_are_float32_and_none_is_refused(stores: Stores) -> None:
    stores.results.save([features("a", 0.1, 1e-50, 1e300, math.inf, math.nan)])
    found = stores.images.results("a")
    assert found is not None
    assert found.features is not None
    tenth, tiny, huge, infinite, nan = found.features.descriptors
    assert tenth == pytest.approx(0.1, rel=1e-6)
    assert (tiny, huge, infinite) == (0.0, math.inf, math.inf)
    assert math.isnan(nan)


def test_a_reason_may_hold_any_text(stores: Stores) -> None:
    stores.results.save([OutcomeRow("a", "w", "failed", "bad: \0 \ud800 'quoted' \\ {}, \u20ac")])
    found = stores.images.results("a")
    assert found is not None
    assert found.outcomes[0].error == "bad: \ufffd ? 'quoted' \\ {}, \u20ac"


def test_saving_nothing_is_fine(stores: Stores) -> None:
    stores.results.save([])
    stores.results.begin("w", [])
    stores.results.withdraw("w", [])
    assert stores.results.interrupted("w", []) == []


# Attempts


def test_attempts_add_up_until_an_end_is_saved(stores: Stores) -> None:
    store = stores.results
    assert store.interrupted("w", ["a", "b"]) == [0, 0]
    store.begin("w", ["a", "b", "a"])
    store.begin("w", ["a"])
    assert store.interrupted("w", ["b", "a", "c", "a"]) == [1, 2, 0, 2]
    assert store.interrupted("other", ["a"]) == [0]
    found = stores.images.results("a")
    assert found is not None
    assert (found.outcomes[0].state, found.outcomes[0].attempt) == ("running", 2)
    assert found.outcomes[0].finished_at is None
    for state in ("done", "skipped", "failed"):
        store.save([OutcomeRow("a", "w", state)])
        assert store.interrupted("w", ["b", "a"]) == [1, 0]
        store.begin("w", ["a"])
        assert store.interrupted("w", ["b", "a"]) == [1, 1]


def test_a_withdrawn_attempt_does_not_count(stores: Stores) -> None:
    store = stores.results
    store.begin("w", ["a", "b"])
    store.begin("w", ["a", "b"])
    store.withdraw("w", ["a", "c"])
    assert store.interrupted("w", ["a", "b", "c"]) == [1, 2, 0]
    for _ in range(3):
        store.withdraw("w", ["a"])
    assert store.interrupted("w", ["a"]) == [0]
    store.begin("w", ["a"])
    assert store.interrupted("w", ["a"]) == [1]


def test_withdrawing_does_not_touch_what_came_to_an_end(stores: Stores) -> None:
    stores.results.save([OutcomeRow("a", "w", "done")])
    before = stores.dump()
    stores.results.withdraw("w", ["a"])
    assert stores.dump() == before


# Shadows


def test_a_shadow_is_never_the_answer(stores: Stores) -> None:
    stores.results.save([features("a"), prediction("a", label="cat")])
    before = stores.images.results("a")
    stores.results.save([shadow_features("a"), shadow_prediction("a", label="dog")])
    assert stores.images.results("a") == before
    stores.results.save([shadow_features("b"), shadow_prediction("b")])
    assert stores.images.results("b") is None


def test_shadows_and_what_is_shown_stand_side_by_side(stores: Stores) -> None:
    stores.results.save([*all_rows("a"), *all_rows("b"), shadow_features("a", 1.5, model="tiny@1")])
    fast = ShadowClassifier("fast", "forest", "2")
    assert stores.shadows.classifiers(within_seconds=60) == [fast, ShadowClassifier("fast", "forest", "3")]
    assert stores.shadows.extractors(within_seconds=60) == ["extractor@2", "tiny@1"]
    pairs = stores.shadows.predictions(fast, within_seconds=60, limit=10)
    assert pairs == [
        PredictionPair(image_id, "forest@1", "cat", 0.5, 1.5, "dog", 0.75, 0.5) for image_id in ("b", "a")
    ]
    assert stores.shadows.features("tiny@1", within_seconds=60, limit=10) == [
        FeaturesPair("a", "extractor@1", (0.5, -1.25, 3.0), (1.5,), 0.75, {"accurate": "dog", "fast": "cat"})
    ]
    assert len(stores.shadows.features("extractor@2", within_seconds=60, limit=10)) == 2


def test_only_pictures_that_both_answered_are_compared(stores: Stores) -> None:
    stores.results.save(
        [features("a"), prediction("a", "accurate"), shadow_prediction("a"), shadow_features("b")]
    )
    asked = stores.shadows.predictions(ShadowClassifier("fast", "forest", "2"), within_seconds=60, limit=10)
    assert asked == []
    assert stores.shadows.features("extractor@2", within_seconds=60, limit=10) == []
    stores.results.save([shadow_features("a")])
    (pair,) = stores.shadows.features("extractor@2", within_seconds=60, limit=10)
    assert (pair.image_id, pair.labels) == ("a", {"accurate": "cat"})
    stores.results.save([replace(features("c"), descriptors=()), shadow_features("c")])
    assert stores.shadows.features("extractor@2", within_seconds=60, limit=1)[0].labels == {}


def test_a_comparison_takes_the_newest(stores: Stores) -> None:
    for image_id in "abc":
        stores.results.save(all_rows(image_id))
    fast = ShadowClassifier("fast", "forest", "2")
    # Saved again: what is replayed is not new.
    stores.results.save(all_rows("a"))
    pairs = stores.shadows.predictions(fast, within_seconds=60, limit=2)
    assert [pair.image_id for pair in pairs] == ["c", "b"]
    descriptions = stores.shadows.features("extractor@2", within_seconds=60, limit=2)
    assert [pair.image_id for pair in descriptions] == ["c", "b"]
    assert stores.shadows.classifiers(within_seconds=0) == []
    assert stores.shadows.extractors(within_seconds=0) == []
    assert stores.shadows.predictions(fast, within_seconds=0, limit=2) == []
    assert stores.shadows.features("extractor@2", within_seconds=0, limit=2) == []


def test_a_shadow_that_answers_again_takes_its_own_place_only(stores: Stores) -> None:
    stores.results.save(all_rows("a"))
    stores.results.save(
        [shadow_prediction("a", label="cat"), shadow_prediction("a", label="ship"), shadow_features("a", 9.0)]
    )
    (second,), (third,) = (
        stores.shadows.predictions(ShadowClassifier("fast", "forest", version), within_seconds=60, limit=9)
        for version in ("2", "3")
    )
    assert (second.shadow_label, third.shadow_label) == ("ship", "dog")
    (described,) = stores.shadows.features("extractor@2", within_seconds=60, limit=9)
    assert described.shadow_descriptors == (9.0,)


# QR codes


def codes_of(stores: Stores, image_id: str) -> tuple[QrCode, ...]:
    found = stores.images.results(image_id)
    return () if found is None else found.codes


def test_codes_are_read_as_they_were_saved(stores: Stores) -> None:
    codes = (
        code("äöü € 日本語"),
        code("\xff\x01 binary", data=bytes(range(256)), preprocessing_applied=True, rotation_angle=90),
        code("part", sequence=(1, 3, 255)),
        code("joined", parts=4, symbology="micro_qr"),
        code(""),
    )
    stores.results.save([QrCodesRow("a", codes)])
    assert codes_of(stores, "a") == codes


def test_a_nul_stays_in_the_bytes_and_not_in_the_text(stores: Stores) -> None:
    stores.results.save([QrCodesRow("a", (code("one\0two", data=b"one\0two"),))])
    assert codes_of(stores, "a") == (code("one\ufffdtwo", data=b"one\0two"),)


@pytest.mark.parametrize("second", [("new",), ("new", "b", "c", "d"), ()], ids=["fewer", "more", "none"])
def test_a_replay_replaces_the_codes_of_a_picture_as_a_whole(stores: Stores, second: tuple[str, ...]) -> None:
    stores.results.save([QrCodesRow("a", (code("a"), code("b"))), QrCodesRow("other", (code("stays"),))])
    stores.results.save([QrCodesRow("a", tuple(code(text) for text in second))])
    assert [each.content for each in codes_of(stores, "a")] == list(second)
    assert [each.content for each in codes_of(stores, "other")] == ["stays"]


def test_of_two_sets_of_codes_in_one_batch_the_last_stays(stores: Stores) -> None:
    stores.results.save([QrCodesRow("a", (code("a"), code("b"))), QrCodesRow("a", (code("c"),))])
    assert [each.content for each in codes_of(stores, "a")] == ["c"]


# Texts


def test_a_document_is_read_as_it_was_saved(stores: Stores) -> None:
    told = document("¿Cuánto?\n12,50 €", "", "日本語 ß\\")
    stores.results.save([OcrDocumentRow("a", told)])
    found = stores.images.results("a")
    assert found is not None
    # Coordinates are kept to a tenth of a pixel.
    exact = replace(told, lines=tuple(replace(line, polygon=()) for line in told.lines))
    assert found.document is not None
    assert (
        replace(found.document, lines=tuple(replace(line, polygon=()) for line in found.document.lines))
        == exact
    )
    assert found.document.lines[0].polygon[1] == (90.2, 0.0)
    assert stores.images.document("a") == found.document
    assert stores.images.document("b") is None


def test_a_document_without_text_is_a_document(stores: Stores) -> None:
    blank = OcrDocument("", (), (PageSize(10, 10),), "es+en", "rapidocr")
    stores.results.save([OcrDocumentRow("a", document("before"))])
    stores.results.save([OcrDocumentRow("a", blank)])
    assert stores.images.document("a") == blank
    assert stores.images.search("before", limit=5) == []


def test_a_nul_does_not_cost_a_document(stores: Stores) -> None:
    stores.results.save([OcrDocumentRow("a", document("one\0two"))])
    found = stores.images.document("a")
    assert found is not None
    assert (found.text, found.lines[0].text) == ("one\ufffdtwo", "one\ufffdtwo")


def found_words(stores: Stores, text: str) -> dict[str, list[str]]:
    """The image of each document that is found, in order, with the words that were asked for."""
    return {
        each.image_id: [each.document.text[begin:end] for begin, end in each.places]
        for each in stores.images.search(text, limit=10)
    }


def test_words_are_found_without_case_and_accents_in_either_direction(stores: Stores) -> None:
    stores.results.save(
        [
            OcrDocumentRow("a", document("¡Ñandú! «CAFÉ»\nTotal: 12,50€")),
            OcrDocumentRow("b", document("un nandu y un cafe")),
        ]
    )
    for text in ("café", "CAFE", "Café ñandú", "nandu cafe"):
        assert set(found_words(stores, text)) == {"a", "b"}, text
    assert found_words(stores, "cafe") == {"a": ["CAFÉ"], "b": ["cafe"]}
    assert found_words(stores, "12,50 €") == {"a": ["12", "50"]}
    assert found_words(stores, "nothing of it") == {}
    assert found_words(stores, "") == {}
    assert found_words(stores, "¿?") == {}


def test_a_search_goes_on_page_by_page(stores: Stores) -> None:
    stores.results.save([OcrDocumentRow(f"d{number}", document(f"word {number}")) for number in range(5)])
    pages = [stores.images.search("word", limit=2, offset=offset) for offset in (0, 2, 4, 6)]
    assert [len(page) for page in pages] == [2, 2, 1, 0]
    assert {each.image_id for page in pages for each in page} == {f"d{number}" for number in range(5)}


def test_the_place_in_the_queue_is_how_many_came_before_and_are_not_done(stores: Stores) -> None:
    added = [
        stores.images.add_image(replace(image(image_id), tasks=tasks)).image
        for image_id, tasks in (
            ("a", None),
            ("b", ("qr",)),
            ("c", ("ocr",)),
            ("d", ("ocr", "qr")),
            ("e", None),
        )
    ]

    def places() -> list[int]:
        return [stores.images.waiting_before(each, "ocr-worker", "ocr") for each in added]

    assert places() == [0, 1, 1, 2, 3]
    stores.results.begin("ocr-worker", ["c"])
    assert places() == [0, 1, 1, 2, 3]
    stores.results.save(
        [OutcomeRow("c", "ocr-worker", "failed", "x: y"), OutcomeRow("a", "qr-decoder", "done")]
    )
    assert places() == [0, 1, 1, 1, 2]
    found = stores.images.outcome("c", "ocr-worker")
    assert found is not None
    assert (found.state, found.error) == ("failed", "x: y")
    assert stores.images.outcome("d", "ocr-worker") is None


# Uploads


def test_an_image_is_added_once(stores: Stores) -> None:
    added = stores.images.add_image(image("a"))
    assert added.created
    assert added.image == replace(image("a"), created_at=added.image.created_at)
    again = stores.images.add_image(replace(image("a"), minio_path="raw-images/elsewhere.jpg"))
    assert not again.created
    assert again.image == added.image
    assert stores.images.image("a") == added.image


def test_a_known_id_for_another_picture_is_a_conflict(stores: Stores) -> None:
    stored = stores.images.add_image(image("a")).image
    with pytest.raises(Rejected) as raised:
        stores.images.add_image(image("a", sha256="bb"))
    assert raised.value.code == "image_id_conflict"
    assert stores.images.image("a") == stored


def test_optional_columns_stay_none(stores: Stores) -> None:
    row = ImageRow("a", "raw-images/a.pdf", "aa", 1, "application/pdf")
    stored = stores.images.add_image(row).image
    assert (stored.width, stored.height, stored.tasks, stored.published_at) == (None, None, None, None)


def test_the_listing_is_newest_first_and_pages_meet(stores: Stores) -> None:
    for image_id in "abcde":
        stores.images.add_image(image(image_id))
    pages = []
    before = None
    while page := stores.images.images(limit=2, before=before):
        pages.append([row.image_id for row in page])
        assert page[-1].created_at is not None
        before = (page[-1].created_at, page[-1].image_id)
    assert pages == [["e", "d"], ["c", "b"], ["a"]]


def test_results_name_the_image(stores: Stores) -> None:
    stored = stores.images.add_image(image("a")).image
    found = stores.images.results("a")
    assert found is not None
    assert (found.image, found.features, found.predictions, found.outcomes) == (stored, None, (), ())


def test_results_without_the_text_tell_all_else(stores: Stores) -> None:
    stores.results.save([OcrDocumentRow("a", document("text")), OutcomeRow("a", "ocr-worker", "done")])
    whole = stores.images.results("a")
    assert whole is not None
    assert whole.document is not None
    assert stores.images.results("a", document=False) == replace(whole, document=None)


def test_the_outbox_empties_as_pictures_are_published(stores: Stores) -> None:
    for image_id in "abc":
        stores.images.add_image(image(image_id))
    assert stores.images.pending() == 3
    stores.images.mark_published(["a", "c", "unknown"])
    assert stores.images.pending() == 1
    first = stores.images.image("a")
    assert first is not None
    assert first.published_at is not None
    stores.images.mark_published(["a"])
    assert stores.images.image("a") == first
    with stores.images.unpublished(older_than_seconds=0, limit=10) as claim:
        assert [row.image_id for row in claim.images] == ["b"]


def test_two_relays_never_claim_one_picture(stores: Stores) -> None:
    for image_id in "abc":
        stores.images.add_image(image(image_id))
    with stores.images.unpublished(older_than_seconds=0, limit=2) as one:
        with stores.images.unpublished(older_than_seconds=0, limit=2) as other:
            assert [row.image_id for row in one.images] == ["a", "b"]
            assert [row.image_id for row in other.images] == ["c"]
            other.published(["c"])
        one.published(["a"])
    with stores.images.unpublished(older_than_seconds=0, limit=10) as claim:
        assert [row.image_id for row in claim.images] == ["b"]


def test_a_claim_that_raises_publishes_nothing(stores: Stores) -> None:
    stores.images.add_image(image("a"))
    with pytest.raises(ValueError, match="kafka"):  # noqa: PT012
        with stores.images.unpublished(older_than_seconds=0, limit=1) as claim:
            claim.published(["a"])
            raise ValueError("kafka")
    assert stores.images.pending() == 1
    with stores.images.unpublished(older_than_seconds=0, limit=1) as claim:
        assert len(claim.images) == 1


def test_young_pictures_are_left_to_their_upload(stores: Stores) -> None:
    stores.images.add_image(image("a"))
    with stores.images.unpublished(older_than_seconds=3600, limit=1) as claim:
        assert claim.images == ()


# The server


def test_an_absent_server_is_unavailable_and_back_again_works(stores: Stores) -> None:
    stored = stores.images.add_image(image("a")).image
    stores.results.begin("w", ["a"])
    calls: list[Callable[[], object]] = [
        lambda: stores.results.save([features("a")]),
        lambda: stores.results.begin("w", ["a"]),
        lambda: stores.results.withdraw("w", ["a"]),
        lambda: stores.results.interrupted("w", ["a"]),
        lambda: stores.images.add_image(image("b")),
        lambda: stores.images.mark_published(["a"]),
        lambda: stores.images.unpublished(older_than_seconds=0, limit=1).__enter__(),
        lambda: stores.images.pending(),
        lambda: stores.images.image("a"),
        lambda: stores.images.images(limit=1),
        lambda: stores.images.results("a"),
        lambda: stores.images.outcome("a", "w"),
        lambda: stores.images.document("a"),
        lambda: stores.images.waiting_before(stored, "w", "ocr"),
        lambda: stores.images.search("a", limit=1),
        lambda: stores.shadows.classifiers(within_seconds=1),
        lambda: stores.shadows.extractors(within_seconds=1),
        lambda: stores.shadows.predictions(ShadowClassifier("f", "m", "1"), within_seconds=1, limit=1),
        lambda: stores.shadows.features("m@1", within_seconds=1, limit=1),
    ]
    with stores.away():
        for call in calls:
            with pytest.raises(Unavailable) as raised:
                call()
            assert raised.value.server == "database"
    # The very first call after the return, without a stale connection in its way.
    assert stores.results.interrupted("w", ["a"]) == [1]
    assert stores.images.pending() == 1


def test_concurrent_savers_of_the_same_rows_all_succeed(stores: Stores) -> None:
    ids = [f"image-{number}" for number in range(40)]

    def save(seed: int) -> None:
        for turn in range(5):
            shift = (seed * 7 + turn * 3) % len(ids)
            turned = ids[shift:] + ids[:shift]
            stores.results.begin("feature-extractor", turned)
            stores.results.save([row for image_id in turned for row in all_rows(image_id)])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(save, range(4)))
    for image_id in ids:
        found = stores.images.results(image_id)
        assert found is not None
        assert len(found.predictions) == 2


# Postgres alone


def terminate_backends(dsn: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
            " WHERE application_name = 'visionmesh' AND pid <> pg_backend_pid()"
        )


def test_a_killed_connection_leaves_the_attempt_and_the_next_call_works(
    database: Database, empty_dsn: str
) -> None:
    store = PostgresResultStore(database)
    store.begin("w", ["a"])
    terminate_backends(empty_dsn)
    assert store.interrupted("w", ["a"]) == [1]


def test_a_connection_killed_in_a_transaction_is_unavailable_and_stores_nothing(
    database: Database, empty_dsn: str
) -> None:
    images = PostgresImages(database)
    images.add_image(image("a"))
    with pytest.raises(Unavailable):  # noqa: PT012
        with images.unpublished(older_than_seconds=0, limit=1) as claim:
            claim.published(["a"])
            terminate_backends(empty_dsn)
    assert images.pending() == 1


def spanish_and_english(database: Database) -> Callable[[str], set[str]]:
    """Stores documents in both languages; returns a search for their images."""
    store, images = PostgresResultStore(database), PostgresImages(database)
    texts = {
        "es": "La información de las facturas: no se admiten devoluciones.\nImporte, la decisión, 12-A/2024",
        "en": "Invoices are payable within thirty days.\nShipping information: running shoes",
        "both": "Factura / Invoice",
        "far": "total\n" * 40 + "alpha beta",
    }
    store.save([OcrDocumentRow(image_id, document(text)) for image_id, text in texts.items()])
    return lambda text: {each.image_id for each in images.search(text, limit=10)}


def test_words_are_found_in_all_their_forms_in_spanish_and_in_english(database: Database) -> None:
    search = spanish_and_english(database)
    for text in (
        "informaciones",
        "información",
        "INFORMACION",
        "factura devolución",
        "devolucion",
        "decisiones",
    ):
        assert "es" in search(text), text
    for text in ("invoice payable", "shoe", "run", "day", "ship"):
        assert "en" in search(text), text
    assert search("facturas") == {"es", "both"}
    assert search("invoice") == {"en", "both"}


def test_alternatives_phrases_and_what_must_not_be_there(database: Database) -> None:
    search = spanish_and_english(database)
    assert search("factura or zapato") == {"es", "both"}
    assert search("factura -importe") == {"both"}
    assert search('"beta alpha"') == set()
    assert search('"alpha beta"') == {"far"}
    assert search("12-A/2024") == {"es"}
    assert search("2024") == {"es"}
    for odd in (
        '"',
        '""',
        "-",
        "--x -",
        "or",
        "or or",
        "a" * 5000,
        "\0",
        "\x02factura\x03",
        "& | ! ( ) :*",
        "\udc80",
    ):
        search(odd)


def test_what_a_search_shows_are_the_words_in_the_text_itself(database: Database) -> None:
    store, images = PostgresResultStore(database), PostgresImages(database)
    text = "«¡Ñ!» \x02 \x03 <b>İstanbul</b> facturas\n\nFACTURACIÓN 日本 fact"
    store.save([OcrDocumentRow("a", document(text))])
    (found,) = images.search("fáctura", limit=5)
    assert [found.document.text[begin:end] for begin, end in found.places] == ["facturas", "FACTURACIÓN"]


def test_a_text_with_more_words_than_a_vector_holds_is_stored_and_found(database: Database) -> None:
    store, images = PostgresResultStore(database), PostgresImages(database)
    text = " ".join(f"w{number:x}q{number * 7919:x}" for number in range(150_000))
    store.save([OcrDocumentRow("a", document(text))])
    (found,) = images.search("w0q0", limit=1)
    assert found.image_id == "a"
    assert found.places == ((0, 4),)


def test_a_search_reads_the_index(database: Database) -> None:
    with database.transaction() as connection:
        connection.execute("SET LOCAL enable_seqscan = off")
        asked = {"spanish": "facturas", "english": "facturas", "limit": 1, "offset": 0}
        plan = connection.execute(f"EXPLAIN {_SEARCH}", asked).fetchall()
    assert "ocr_documents_search" in str(plan)


def test_a_batch_is_saved_whole_or_not_at_all(database: Database) -> None:
    store = PostgresResultStore(database)
    uneven = replace(prediction("b"), probabilities=(1.0,))
    with pytest.raises(psycopg.IntegrityError):
        store.save([features("a"), prediction("a"), uneven])
    assert PostgresImages(database).results("a") is None


def test_two_writers_of_one_picture_never_leave_a_mixture(empty_dsn: str) -> None:
    sets = [tuple(code(f"{size} of them") for _ in range(size)) for size in (0, 1, 3, 9)]
    with Database(empty_dsn) as database, ThreadPoolExecutor(4) as pool:
        store, images = PostgresResultStore(database), PostgresImages(database)
        for _ in range(10):
            saved = [
                pool.submit(store.save, [QrCodesRow("a", codes), QrCodesRow("b", codes)]) for codes in sets
            ]
            for each in saved:
                each.result()
            for image_id in ("a", "b"):
                found = images.results(image_id)
                assert (() if found is None else found.codes) in sets


def test_bad_data_is_not_an_absent_server(database: Database) -> None:
    store = PostgresResultStore(database)
    for _ in range(6):  # more often than there are connections
        with pytest.raises(psycopg.DataError):
            store.save([features("nul\0")])
    store.save([features("fine")])


@pytest.mark.parametrize(
    "statement",
    [
        "SET TRANSACTION READ ONLY; DELETE FROM images",
        "SET LOCAL statement_timeout = 1; SELECT pg_sleep(10)",
        "SELECT * FROM a_table_of_tomorrow",
        "SELECT a_column_of_tomorrow FROM images",
        *(
            f"DO $$ BEGIN RAISE EXCEPTION 'as if' USING ERRCODE = '{state}'; END $$"
            for state in ("08006", "40001", "40P01", "53100", "53200", "53300", "57P01", "57P03", "58030")
        ),
    ],
)
def test_what_the_world_is_at_fault_for_is_unavailable(database: Database, statement: str) -> None:
    with pytest.raises(Unavailable):
        with database.transaction() as connection:
            connection.execute(statement)
    database.ping()


@pytest.mark.parametrize("state", ["22021", "22003", "23505", "23514", "42601"])
def test_what_the_data_is_at_fault_for_is_not(database: Database, state: str) -> None:
    with pytest.raises(psycopg.Error):
        with database.transaction() as connection:
            connection.execute(f"DO $$ BEGIN RAISE EXCEPTION 'as if' USING ERRCODE = '{state}'; END $$")
    database.ping()


def test_wrong_credentials_and_unknown_databases_are_unavailable(empty_dsn: str) -> None:
    for wrong in ({"password": "wrong"}, {"dbname": "nowhere"}):
        with pytest.raises(Unavailable):
            Database(psycopg.conninfo.make_conninfo(empty_dsn, **wrong)).ping()


def test_more_threads_than_connections_wait_for_their_turn(empty_dsn: str) -> None:
    with Database(empty_dsn, pool_size=2) as database, ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: database.ping(), range(64)))
        with psycopg.connect(empty_dsn) as connection:
            row = connection.execute(
                "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'visionmesh'"
            ).fetchone()
    assert row is not None
    assert row[0] <= 2


def test_all_connections_busy_is_unavailable(empty_dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("visionmesh.database.POOL_TIMEOUT_SECONDS", 0.01)
    with Database(empty_dsn, pool_size=1) as database, database.transaction():
        with pytest.raises(Unavailable, match="busy"):
            database.ping()


def test_a_comparison_reads_its_newest_rows_from_an_index(database: Database) -> None:
    with database.transaction() as connection:
        connection.execute("SET LOCAL enable_seqscan = off")
        connection.execute("SET LOCAL enable_bitmapscan = off")
        plans = [
            str(connection.execute(f"EXPLAIN {query}").fetchall())
            for query in (
                "SELECT * FROM shadow_predictions WHERE classifier = 'fast' AND model = 'm'"
                " AND model_version = '1' AND created_at >= now() ORDER BY created_at DESC LIMIT 5",
                "SELECT * FROM shadow_features WHERE model = 'm' AND created_at >= now()"
                " ORDER BY created_at DESC LIMIT 5",
            )
        ]
    assert "shadow_predictions_newest" in plans[0]
    assert "shadow_features_newest" in plans[1]
    assert "Sort" not in "".join(plans)


def test_every_lookup_of_the_relay_and_the_listing_has_its_index(database: Database) -> None:
    with database.transaction() as connection:
        connection.execute("SET LOCAL enable_seqscan = off")
        plans = [
            str(connection.execute(f"EXPLAIN {query}").fetchall())
            for query in (
                "SELECT * FROM images WHERE published_at IS NULL AND created_at < now() ORDER BY created_at",
                "SELECT * FROM images WHERE (created_at, image_id) < (now(), 'a')"
                " ORDER BY created_at DESC, image_id DESC LIMIT 5",
            )
        ]
    assert "images_unpublished" in plans[0]
    assert "images_newest" in plans[1]
    assert "Sort" not in plans[1]
