"""The default engine on documents that are made here: pictures, TIFFs, PDFs, and files that are none."""

from __future__ import annotations

import io
from collections.abc import Iterator

import numpy as np
import pypdfium2
import pypdfium2.raw as pdfium
import pytest
from PIL import Image, ImageDraw, ImageFont

from ocr_worker import domain
from ocr_worker.domain import Engine, EngineBusyError, Limits, models, open_engine
from visionmesh.errors import Rejected

TEXT = (
    "¿Cuánto cuesta el pingüino?",
    "Son 1.234,50 € con IVA.",
    "Íñigo GARCÍA, Óscar y Úrsula",
    "¡Feliz año nuevo!",
)


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    return open_engine("rapidocr", "es+en")


def page(*lines: str, size: int = 40, gap: int = 80) -> Image.Image:
    """A white page with lines of text, in the font that Pillow brings."""
    picture = Image.new("RGB", (900, 100 + gap * len(lines)), "white")
    font = ImageFont.load_default(size)
    for number, line in enumerate(lines):
        ImageDraw.Draw(picture).text((60, 50 + gap * number), line, font=font, fill="black")
    return picture


def as_file(picture: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def pdf(*pictures: Image.Image) -> bytes:
    return as_file(pictures[0], "PDF", resolution=150.0, save_all=True, append_images=list(pictures[1:]))


def written(*lines: str, font: str = "Helvetica") -> bytes:
    """A PDF of one page with lines of text, in one of the fonts that every reader of PDFs brings."""
    shown = b" ".join(b"(" + line.encode("cp1252") + b") Tj T*" for line in lines)
    content = b"BT /F 16 Tf 32 TL 60 340 Td " + shown + b" ET"
    return b"".join(
        (
            b"%PDF-1.4\n1 0 obj<</Type/Catalog/Pages 2 0 R>>endobj\n",
            b"2 0 obj<</Type/Pages/Kids[3 0 R]/Count 1>>endobj\n",
            b"3 0 obj<</Type/Page/Parent 2 0 R/MediaBox[0 0 500 400]/Contents 4 0 R",
            b"/Resources<</Font<</F 5 0 R>>>>>>endobj\n",
            b"4 0 obj<</Length %d>>stream\n%s\nendstream endobj\n" % (len(content), content),
            b"5 0 obj<</Type/Font/Subtype/Type1/BaseFont/%s/Encoding/WinAnsiEncoding>>endobj\n"
            % font.encode(),
            b"trailer<</Root 1 0 R>>\n",
        )
    )


@pytest.mark.parametrize("font", ["Helvetica", "Times-Roman"])
def test_spanish_is_read_with_its_letters_and_signs(engine: Engine, font: str) -> None:
    document = domain.read_document(written(*TEXT, font=font), engine)
    assert document.text.splitlines() == list(TEXT)
    assert (document.engine, document.language) == ("rapidocr", "es+en")
    assert [(line.page, len(line.polygon)) for line in document.lines] == [(1, 4)] * 4
    assert all(0.9 < line.confidence <= 1 for line in document.lines)
    assert set(document.seconds) == {"decode", "detect", "crop", "recognise"}
    # The first line stands at 60 points, its letters' feet 60 points below the top.
    assert document.lines[0].polygon[3] == pytest.approx((60 * 200 / 72, 60 * 200 / 72), abs=20)


@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_a_page_is_read_whichever_way_it_is_turned(engine: Engine, quarters: int) -> None:
    upright = page("The quick brown fox jumps", "over the lazy dog and sleeps")
    document = domain.read_document(as_file(upright.rotate(90 * quarters, expand=True)), engine)
    assert document.text == "The quick brown fox jumps\nover the lazy dog and sleeps"
    first = np.array(document.lines[0].polygon)
    along = first[1] - first[0]
    # Counterclockwise, y downwards: the text runs up, to the left, down.
    assert (
        np.sign(np.round(along / np.abs(along).max(), 1)).tolist() == [[0, -1], [-1, 0], [0, 1]][quarters - 1]
    )


def test_every_page_of_a_tiff_is_read(engine: Engine) -> None:
    pages = [page("First page"), page("Second page").convert("1")]
    data = as_file(pages[0], "TIFF", save_all=True, append_images=pages[1:])
    document = domain.read_document(data, engine)
    assert document.text == "First page\n\nSecond page"
    assert [line.page for line in document.lines] == [1, 2]
    assert len(document.pages) == 2
    assert domain.read_page(data, 2, engine).text == "Second page"


def test_every_page_of_a_pdf_is_read(engine: Engine) -> None:
    document = domain.read_document(pdf(page("First page"), page("Second page")), engine)
    assert document.text == "First page\n\nSecond page"
    # Drawn at 200 pixels an inch, while the picture in it has 150.
    assert document.pages[0].width == pytest.approx(1200, abs=2)


def test_a_page_without_text_and_one_pixel_have_none(engine: Engine) -> None:
    for size in ((800, 600), (1, 1), (1, 3000)):
        document = domain.read_document(as_file(Image.new("RGB", size, "white")), engine)
        assert (document.text, document.lines) == ("", ())
        assert (document.pages[0].width, document.pages[0].height) == size


def test_a_large_page_is_reduced_and_told_of_in_its_own_pixels(engine: Engine) -> None:
    large = page("Total 123,45", size=40).resize((1800, 360))
    limits = Limits(pixels_kept=200_000)
    document = domain.read_document(as_file(large), engine, limits)
    assert document.text == "Total 123,45"
    assert (document.pages[0].width, document.pages[0].height) == large.size
    assert document.lines[0].polygon[0] == pytest.approx((120, 110), abs=40)


def test_bad_documents_are_refused_with_a_reason(engine: Engine) -> None:
    whole = pdf(page("First"), page("Second"), page("Third"))
    cases = [
        (b"", "empty_file", Limits()),
        (b"hello", "not_an_image", Limits()),
        (whole[: len(whole) // 3], "corrupt_document", Limits()),
        (b"%PDF-1.7\nnothing behind", "corrupt_document", Limits()),
        (whole, "too_many_pages", Limits(pages=2)),
        (whole, "too_many_bytes", Limits(bytes=1000)),
        (as_file(page("x")), "too_many_pixels", Limits(pixels=1000)),
    ]
    for data, code, limits in cases:
        with pytest.raises(Rejected) as refused:
            domain.read_document(data, engine, limits)
        assert refused.value.code == code, code


def test_an_engine_in_use_refuses_another_page(engine: Engine) -> None:
    picture = np.asarray(page("Hello"))
    with engine._one, pytest.raises(EngineBusyError):  # type: ignore[attr-defined]
        engine.read(picture)
    assert [line.text for line in engine.read(picture).lines] == ["Hello"]


def test_reading_twice_gives_the_same(engine: Engine) -> None:
    data = written(*TEXT)
    first, second = (domain.read_document(data, engine) for _ in range(2))
    assert first.lines == second.lines


def test_engines_and_languages_that_are_not_there_are_refused() -> None:
    with pytest.raises(ValueError, match="no engine"):
        open_engine("ocrad", "es")
    with pytest.raises(ValueError, match="no language"):
        open_engine("rapidocr", "tlh")


def test_no_faded_weights_are_left_and_the_last_layer_has_the_letters_wanted() -> None:
    recogniser = models.loaded(models.bundled("PP-OCRv6_rec_small.onnx"))
    for tensor in recogniser.graph.initializer:
        weights = models.numpy_helper.to_array(tensor)
        if weights.dtype == np.float32:
            assert not np.any((weights != 0) & (np.abs(weights) < np.finfo(np.float32).tiny))
    assert models.only(recogniser, "abc ".__contains__) == ["", "a", "b", "c", " "]
    session = models.session_of(recogniser, 1)
    found = session.run(None, {"x": np.zeros((1, 3, 48, 64), np.float32)})[0]
    assert found.shape[2] == 5


def test_what_pdfium_says_of_passwords_is_an_encrypted_document(monkeypatch: pytest.MonkeyPatch) -> None:
    def locked(_: bytes) -> None:
        raise pypdfium2.PdfiumError("Incorrect password", err_code=pdfium.FPDF_ERR_PASSWORD)

    monkeypatch.setattr(pypdfium2, "PdfDocument", locked)
    with pytest.raises(Rejected) as refused:
        next(domain.pages_of(b"%PDF-1.7"))
    assert refused.value.code == "encrypted_document"
