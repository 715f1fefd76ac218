from __future__ import annotations

import io
import struct
import zlib
from datetime import UTC, date, datetime
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ingest_api.domain import (
    Progress,
    checked_image_id,
    checked_media_type,
    object_key,
    parse_tasks,
    predictions_answer,
    progress,
    read_cursor,
    read_header,
    results_answer,
    uuid7,
    write_cursor,
)
from visionmesh.consensus import Fitted
from visionmesh.contracts import TASKS, is_image_id
from visionmesh.errors import Rejected
from visionmesh.results import (
    ImageResults,
    ImageRow,
    OutcomeRow,
    OutcomeState,
    StoredFeatures,
    StoredOutcome,
    StoredPrediction,
)

CLASSIFIERS = ("classifier-fast", "classifier-balanced")
NOON = datetime(2024, 10, 6, 12, 0, 0, 123456, tzinfo=UTC)


def picture(kind: str, width: int = 40, height: int = 30) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, height), "orange").save(file, kind)
    return file.getvalue()


def png_header(width: int, height: int) -> bytes:
    """The start of a PNG that says how large it is (RFC 2083, section 4.1.1)."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    return b"\x89PNG\r\n\x1a\n" + chunks + struct.pack(">I", 100) + b"IDAT" + bytes(100)


def code_of(call: object, *arguments: object, **named: object) -> str:
    with pytest.raises(Rejected) as caught:
        call(*arguments, **named)  # type: ignore[operator]
    return caught.value.code


@given(st.integers(0, 2**48 - 1), st.binary(min_size=10, max_size=10))
def test_uuid7_has_its_version_its_variant_and_its_time(milliseconds: int, randomness: bytes) -> None:
    found = UUID(uuid7(milliseconds, randomness))
    assert found.version == 7
    assert found.variant == "specified in RFC 4122"
    assert found.int >> 80 == milliseconds


def test_uuid7_of_the_example_in_the_rfc() -> None:
    # RFC 9562, appendix A.6: time 0x017F22E279B0, rand_a 0xCC3, rand_b 0x18C4DC0C0C07398F.
    randomness = (0xCC3 << 64 | 0x18C4DC0C0C07398F).to_bytes(10, "big")
    assert uuid7(0x017F22E279B0, randomness) == "017f22e2-79b0-7cc3-98c4-dc0c0c07398f"


def test_uuid7_sorts_by_time() -> None:
    early = uuid7(1_700_000_000_000, b"\xff" * 10)
    late = uuid7(1_700_000_000_001, b"\0" * 10)
    assert early < late
    assert is_image_id(early)


def test_a_picture_without_an_id_of_its_own_is_named_by_its_upload() -> None:
    upload = "017f22e2-79b0-7cc3-98c4-dc0c0c07398f"
    assert object_key(date(2024, 10, 6), upload, None, "jpg") == f"2024/10/06/{upload}.jpg"


def test_two_uploads_of_one_image_id_never_share_an_object() -> None:
    first = object_key(date(2024, 10, 6), uuid7(1, b"a" * 10), "test-123", "jpg")
    second = object_key(date(2024, 10, 6), uuid7(1, b"b" * 10), "test-123", "jpg")
    assert first != second
    assert first.startswith("2024/10/06/test-123.")


@pytest.mark.parametrize("image_id", ["...", "..a", "a:b", "-"])
def test_no_image_id_leaves_its_folder(image_id: str) -> None:
    key = object_key(date(2024, 10, 6), uuid7(1, b"a" * 10), checked_image_id(image_id), "jpg")
    assert key.split("/")[:3] == ["2024", "10", "06"]
    assert key.split("/")[3] not in (".", "..")
    assert len(key.split("/")) == 4


@pytest.mark.parametrize(
    "text", ["", "a/b", "../a", "a b", "ä", "a\n", "a\0", "x" * 129, "a\\b", "%2e", ".", ".."]
)
def test_forbidden_image_ids(text: str) -> None:
    assert code_of(checked_image_id, text) == "bad_image_id"


@pytest.mark.parametrize(
    ("values", "tasks"),
    [
        ([], None),
        ([""], None),
        ([" , "], None),
        (["classify"], ("classify",)),
        (["qr,classify"], ("classify", "qr")),
        (["qr", " ocr "], ("qr", "ocr")),
        (["qr,qr", "qr"], ("qr",)),
        ([",".join(TASKS)], TASKS),
    ],
)
def test_tasks(values: list[str], tasks: tuple[str, ...] | None) -> None:
    assert parse_tasks(values) == tasks


def test_an_unknown_task_is_told_what_is_known() -> None:
    with pytest.raises(Rejected) as caught:
        parse_tasks(["classify,fly"])
    assert caught.value.code == "unknown_task"
    assert "'fly'" in caught.value.reason
    assert all(task in caught.value.reason for task in TASKS)


@pytest.mark.parametrize(
    ("kind", "media_type", "extension"),
    [("JPEG", "image/jpeg", "jpg"), ("PNG", "image/png", "png"), ("TIFF", "image/tiff", "tif")],
)
def test_headers_of_whole_pictures(kind: str, media_type: str, extension: str) -> None:
    header = read_header(picture(kind), complete=True)
    assert (header.media_type, header.extension, header.width, header.height) == (
        media_type,
        extension,
        40,
        30,
    )


def test_a_header_is_read_from_the_start_of_a_file() -> None:
    assert read_header(picture("JPEG", 4000, 3000)[:2000], complete=False).width == 4000


def test_a_header_that_is_not_here_yet_is_not_held_against_a_picture() -> None:
    header = read_header(picture("JPEG", 400, 300)[:100], complete=False)
    assert (header.media_type, header.width, header.height) == ("image/jpeg", None, None)


def test_a_pdf_is_taken_without_a_size() -> None:
    header = read_header(b"%PDF-1.7\n" + bytes(100), complete=True)
    assert (header.media_type, header.extension, header.width) == ("application/pdf", "pdf", None)


def test_the_largest_scan_that_is_read_is_taken() -> None:
    header = read_header(png_header(12_000, 12_000), complete=False)
    assert (header.width, header.height) == (12_000, 12_000)


def test_a_decompression_bomb_is_refused_from_its_header() -> None:
    bomb = png_header(20_000, 20_000)
    assert code_of(read_header, bomb, complete=True) == "too_many_pixels"
    assert code_of(read_header, bomb, complete=False) == "too_many_pixels"


def test_a_file_that_only_begins_like_a_picture_is_refused() -> None:
    assert code_of(read_header, b"\xff\xd8\xff" + b"no picture" * 100, complete=True) in (
        "corrupt_image",
        "truncated_image",
    )


def test_a_truncated_picture_has_a_good_header() -> None:
    data = picture("JPEG", 400, 300)
    part = data[: len(data) // 2]
    assert read_header(part, complete=False).width == 400
    assert code_of(read_header, part, complete=True) == "truncated_image"


@pytest.mark.parametrize(
    "start", [b"hello, I am a text", b"GIF", b"MZ\x90\0", b"<svg xmlns='http://'>", b"\0"]
)
def test_what_is_no_picture_is_known_by_its_first_bytes(start: bytes) -> None:
    assert code_of(checked_media_type, start) == "not_an_image"


def test_an_empty_file() -> None:
    assert code_of(checked_media_type, b"") == "empty_file"


def outcomes(**states: OutcomeState) -> list[OutcomeRow]:
    return [
        OutcomeRow(
            "i", worker.replace("_", "-"), state, "corrupt_image: broken" if state == "failed" else None
        )
        for worker, state in states.items()
    ]


@pytest.mark.parametrize(
    ("tasks", "found", "state"),
    [
        (None, [], "processing"),
        (None, outcomes(feature_extractor="running"), "processing"),
        (None, outcomes(feature_extractor="done"), "processing"),
        (None, outcomes(feature_extractor="done", classifier_fast="done"), "processing"),
        (None, outcomes(classifier_fast="done", classifier_balanced="running"), "processing"),
        (None, outcomes(classifier_fast="done", classifier_balanced="done"), "done"),
        (None, outcomes(classifier_fast="done", classifier_balanced="skipped", qr_decoder="running"), "done"),
        (("classify", "qr"), [], "processing"),
        (("qr",), [], "done"),
        (None, outcomes(feature_extractor="skipped"), "done"),
        (None, outcomes(qr_decoder="failed"), "processing"),
    ],
)
def test_progress(tasks: tuple[str, ...] | None, found: list[OutcomeRow], state: str) -> None:
    assert progress(tasks, found, CLASSIFIERS) == Progress(state, None)  # type: ignore[arg-type]


@pytest.mark.parametrize("worker", ["feature-extractor", *CLASSIFIERS])
def test_a_failure_on_the_way_to_the_labels_fails_with_its_reason(worker: str) -> None:
    found = [OutcomeRow("i", worker, "failed", "corrupt_image: broken")]
    assert progress(None, found, CLASSIFIERS) == Progress("failed", f"{worker}: corrupt_image: broken")


def everything() -> ImageResults:
    image = ImageRow(
        "i",
        "raw-images/i.jpg",
        "00",
        10,
        "image/jpeg",
        4,
        3,
        ("classify",),
        created_at=NOON,
        published_at=NOON,
    )
    prediction = StoredPrediction(
        "i", "fast", "cat", 0.8999999761581421, ("cat", "dog"), (0.8999999761581421, 0.10000000149011612),
        "forest", "1", 0.25, created_at=NOON,
    )  # fmt: skip
    outcome = StoredOutcome("i", "classifier-fast", "done", attempt=1, started_at=None, finished_at=NOON)
    features = StoredFeatures("i", (0.5, -0.25), "extractor@1", created_at=NOON)
    return ImageResults(image, features, (prediction,), (outcome,))


def test_the_answer_about_predictions() -> None:
    assert predictions_answer("i", everything(), ("classifier-fast",)) == {
        "image_id": "i",
        "status": "done",
        "error": None,
        "predictions": [
            {
                "classifier": "fast",
                "label": "cat",
                "confidence": 0.9,
                "probabilities": {"cat": 0.9, "dog": 0.1},
                "model": "forest",
                "model_version": "1",
                "latency_ms": 0.25,
            }
        ],
        "consensus": {
            "label": "cat",
            "confidence": 0.9,
            "agreement": "unanimous",
            "votes": {"cat": ("fast",)},
            "method": "log-linear pool",
            "weights": {"fast": 1.0},
            "calibrated": False,
            "left_out": (),
            "complete": True,
            "missing": [],
        },
        "outcomes": [{"worker": "classifier-fast", "state": "done", "error": None}],
    }


def test_the_consensus_says_who_is_missing_and_is_none_before_the_first_prediction() -> None:
    found = everything()
    partial = predictions_answer("i", found, CLASSIFIERS)["consensus"]
    assert (partial["complete"], partial["missing"]) == (False, ["balanced"])
    nothing = ImageResults(found.image, found.features, (), found.outcomes)
    assert predictions_answer("i", nothing, CLASSIFIERS)["consensus"] is None


def test_the_consensus_of_the_fitted_models_has_their_weights() -> None:
    fitted = Fitted({"fast": "forest@1"}, {"fast": 2.0})
    for answer in (predictions_answer, results_answer):
        consensus = answer("i", everything(), ("classifier-fast",), fitted)["consensus"]
        assert (consensus["calibrated"], consensus["weights"]) == (True, {"fast": 2.0})
        assert consensus["confidence"] == pytest.approx(0.81 / 0.82, rel=1e-5)


def test_the_answer_with_everything() -> None:
    answer = results_answer("i", everything(), ("classifier-fast",))
    assert answer["features"] == {"descriptors": [0.5, -0.25], "descriptor_count": 2, "model": "extractor@1"}
    assert answer["image"]["links"]["content"] == "/images/i/content"


def test_the_answer_about_an_image_that_never_went_through_upload() -> None:
    found = ImageResults(None, None, (), ())
    assert predictions_answer("i", found, CLASSIFIERS)["status"] == "processing"
    assert results_answer("i", found, CLASSIFIERS)["image"] is None


def test_a_cursor_comes_back_as_it_went() -> None:
    image = everything().image
    assert image is not None
    text = write_cursor(image)
    assert text == "2024-10-06T12:00:00.123456Z,i"
    assert read_cursor(text) == (NOON, "i")


@pytest.mark.parametrize("text", ["", "x", ",", "2024-10-06,", "2024-10-06T12:00:00Z,a b", "i,2024"])
def test_bad_cursors(text: str) -> None:
    assert code_of(read_cursor, text) == "bad_cursor"
