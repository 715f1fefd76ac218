"""The text of a document as hOCR, as ALTO and over the pages of a PDF."""

from __future__ import annotations

import io
import math
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pikepdf
import pypdfium2
import pytest
from PIL import Image

from ingest_api.search import highlights
from ingest_api.searchable_pdf import Asked, searchable_pdf
from ingest_api.text_files import Box, alto, angle_of, box_of, four_corners, hocr, words_of
from visionmesh.errors import Rejected
from visionmesh.ocr_document import OcrDocument, PageSize, TextLine

ALTO = {"a": "http://www.loc.gov/standards/alto/ns-v4#"}
HTML = {"h": "http://www.w3.org/1999/xhtml"}

SIZE = (1000, 1400)


def line(text: str, degrees: float = 0.0, page: int = 1, at: tuple[float, float] = (300, 500)) -> TextLine:
    """400 pixels long and 40 high, turned clockwise around its first corner."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    corners = ((0, 0), (400, 0), (400, 40), (0, 40))
    polygon = tuple((at[0] + x * cos - y * sin, at[1] + x * sin + y * cos) for x, y in corners)
    return TextLine(text, polygon, 0.87, page)


def document(*lines: TextLine, pages: int = 1) -> OcrDocument:
    text = "\n".join(each.text for each in lines)
    return OcrDocument(text, lines, (PageSize(*SIZE),) * pages, "es+en", "double")


def sheet(kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", SIZE, "white").save(file, kind, **options)  # type: ignore[arg-type]
    return file.getvalue()


# Words and boxes


def test_words_share_their_line_by_their_letters() -> None:
    first, second = words_of(line("ab cdefg"))
    assert (first.text, second.text) == ("ab", "cdefg")
    assert box_of(first.corners) == Box(300, 500, 400, 540)
    assert box_of(second.corners) == Box(450, 500, 700, 540)
    assert words_of(line("")) == []
    assert words_of(line("   ")) == []


@pytest.mark.parametrize(
    ("degrees", "angle"), [(0, 0), (10, 0), (-30, 0), (90, -90), (-90, 90), (180, 180), (170, -170)]
)
def test_a_line_that_slants_is_level_and_one_on_its_head_is_not(degrees: float, angle: float) -> None:
    found = angle_of(line("text", degrees))
    assert min(abs(found - angle), abs(found - angle - 360), abs(found - angle + 360)) < 1e-6


def test_of_a_curved_line_the_ends_count() -> None:
    polygon = ((0.0, 0.0), (50.0, 5.0), (100.0, 0.0), (100.0, 10.0), (50.0, 15.0), (0.0, 10.0))
    assert four_corners(polygon) == ((0, 0), (100, 0), (100, 10), (0, 10))


# Files


def test_hocr_has_pages_lines_and_words_with_their_places() -> None:
    told = document(line("¿Total & más?"), line("two", page=3), pages=3)
    root = ElementTree.fromstring(hocr(told, "a <b>"))
    assert root.find(".//h:title", HTML).text == "a <b>"  # type: ignore[union-attr]
    pages = root.findall(".//h:div[@class='ocr_page']", HTML)
    assert [page.get("title") for page in pages] == [f"bbox 0 0 1000 1400; ppageno {n}" for n in range(3)]
    words = pages[0].findall(".//h:span[@class='ocrx_word']", HTML)
    assert [word.text for word in words] == ["¿Total", "&", "más?"]
    (first, *_) = root.findall(".//h:span[@class='ocr_line']", HTML)
    assert first.get("title") == "bbox 300 500 700 540; poly 300 500 700 500 700 540 300 540; x_wconf 87"
    assert len({each.get("id") for each in root.iter() if each.get("id")}) == 3 + 2 + 2 + 4


def test_ocrmypdf_reads_the_hocr(tmp_path: Path) -> None:
    from ocrmypdf.hocrtransform import HocrParser

    file = tmp_path / "a.hocr"
    file.write_bytes(hocr(document(line("Total 12,50"), line("down", 90)), "a"))
    page = HocrParser(file).parse()
    assert [word.text for word in page.words] == ["Total", "12,50", "down"]
    assert [each.textangle for each in page.lines] == [None, -90.0]


def test_alto_has_pages_lines_and_words_with_their_places() -> None:
    told = document(line("Total 12,50"), line("two", page=3), pages=3)
    root = ElementTree.fromstring(alto(told, "a"))
    pages = root.findall(".//a:Page", ALTO)
    assert [page.get("PHYSICAL_IMG_NR") for page in pages] == ["1", "2", "3"]
    assert [len(page.findall(".//a:TextBlock", ALTO)) for page in pages] == [1, 0, 1]
    first, second = pages[0].findall(".//a:String", ALTO)
    assert (first.get("CONTENT"), second.get("CONTENT")) == ("Total", "12,50")
    place = [first.get(name) for name in ("HPOS", "VPOS", "WIDTH", "HEIGHT", "WC")]
    assert place == ["300", "500", "182", "40", "0.87"]
    assert len(pages[0].findall(".//a:SP", ALTO)) == 1


@pytest.mark.parametrize("write", [hocr, alto])
def test_what_no_xml_may_have_costs_one_character(write: object) -> None:
    assert callable(write)
    written = write(document(line("a\x00b \x02 \ud800 ok")), "t\x01")
    assert "ok" in "".join(ElementTree.fromstring(written).itertext()) or b'CONTENT="ok"' in written


# Searchable PDFs


def place_of(pdf: bytes, word: str, page: int = 0) -> tuple[float, float, float, float]:
    """Left, top, right and bottom of a word as the page is shown, in parts of its width and height."""
    with pypdfium2.PdfDocument(pdf) as opened:
        shown = opened[page]
        text = shown.get_textpage()
        found = text.search(word).get_next()
        assert found is not None, f"{word} in {text.get_text_range()!r}"
        boxes = [text.get_charbox(at) for at in range(found[0], found[0] + found[1])]
        width, height = shown.get_size()
        turned = shown.get_rotation()
    points = [point for left, bottom, right, top in boxes for point in ((left, bottom), (right, top))]
    if turned == 90:
        points = [(y, width_of - x) for x, y in points for width_of in (height,)]
    across, down = [x / width for x, _ in points], [1 - y / height for _, y in points]
    return min(across), min(down), max(across), max(down)


def assert_where(pdf: bytes, word: str, expected: TextLine) -> None:
    box = box_of(expected.polygon)
    wanted = (box.left / SIZE[0], box.top / SIZE[1], box.right / SIZE[0], box.bottom / SIZE[1])
    assert place_of(pdf, word) == pytest.approx(wanted, abs=0.02)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP", "GIF"])
def test_a_picture_becomes_a_page_with_its_text_where_it_is(kind: str) -> None:
    told = line("Añadido€")
    assert_where(searchable_pdf(Asked(sheet(kind), document(told))), "Añadido€", told)


@pytest.mark.parametrize("degrees", [5, -5, 90, -90, 180])
def test_text_that_is_turned_lies_where_it_is_written(degrees: float) -> None:
    told = line("Turnedtext", degrees, at=(500, 700))
    assert_where(searchable_pdf(Asked(sheet("PNG"), document(told))), "Turnedtext", told)


def test_a_picture_that_its_exif_turns() -> None:
    exif = Image.Exif()
    exif[0x112] = 6
    file = io.BytesIO()
    Image.new("RGB", (SIZE[1], SIZE[0]), "white").save(file, "JPEG", exif=exif)
    told = line("Upright")
    assert_where(searchable_pdf(Asked(file.getvalue(), document(told))), "Upright", told)


def test_a_pdf_whose_page_is_turned_and_cropped() -> None:
    file = io.BytesIO()
    Image.new("RGB", (1500, 1100), "white").save(file, "PDF", resolution=72)
    with pikepdf.open(io.BytesIO(file.getvalue())) as pdf:
        pdf.pages[0].Rotate = 90
        pdf.pages[0].CropBox = [50, 50, 1450, 1050]
        turned = io.BytesIO()
        pdf.save(turned)
    with pypdfium2.PdfDocument(turned.getvalue()) as opened:
        assert opened[0].get_size() == SIZE
    told = line("Upright")
    made = searchable_pdf(Asked(turned.getvalue(), document(told)))
    with pypdfium2.PdfDocument(made) as opened:
        assert opened[0].get_size() == SIZE
        assert opened[0].get_textpage().get_text_range().split() == ["Upright"]


def test_letters_that_no_font_has_are_found_all_the_same() -> None:
    made = searchable_pdf(Asked(sheet("PNG"), document(line("日本 Ελλ"))))
    with pypdfium2.PdfDocument(made) as opened:
        assert opened[0].get_textpage().get_text_range().split() == ["日本", "Ελλ"]


def test_pages_without_text_and_lines_without_an_area_stay() -> None:
    flat = TextLine("flat", ((1, 1), (1, 1), (1, 1), (1, 1)), 0.5)
    file = io.BytesIO()
    pages = [Image.new("L", SIZE, 255) for _ in range(3)]
    pages[0].save(file, "TIFF", save_all=True, append_images=pages[1:])
    made = searchable_pdf(Asked(file.getvalue(), document(flat, line("end", page=3), pages=3)))
    with pypdfium2.PdfDocument(made) as opened:
        assert [page.get_textpage().get_text_range().split() for page in opened] == [[], [], ["end"]]


def test_the_picture_of_a_jpeg_is_the_same_bytes() -> None:
    data = sheet("JPEG")
    made = searchable_pdf(Asked(data, document(line("x"))))
    with pikepdf.open(io.BytesIO(made)) as pdf:
        (image,) = pdf.pages[0].get_images().values()
        assert bytes(image.read_raw_bytes()) == data


def test_of_a_jpeg_with_a_second_picture_behind_it_the_first_is_shown() -> None:
    small = Image.new("RGB", (100, 140), "black")
    told = line("Photographed")
    made = searchable_pdf(Asked(sheet("MPO", save_all=True, append_images=[small]), document(told)))
    assert_where(made, "Photographed", told)
    with pikepdf.open(io.BytesIO(made)) as pdf:
        assert len(pdf.pages) == 1


def test_a_scan_as_large_as_any_that_is_read() -> None:
    file = io.BytesIO()
    Image.new("1", (12_000, 12_000), 1).save(file, "PNG")
    told = OcrDocument("x", (line("corner"),), (PageSize(12_000, 12_000),), "es", "double")
    made = searchable_pdf(Asked(file.getvalue(), told))
    with pypdfium2.PdfDocument(made) as opened:
        assert opened[0].get_size() == pytest.approx((842, 842), abs=1)


@pytest.mark.parametrize("data", [b"%PDF-1.7 and so on", b"this is no picture"])
def test_a_file_that_can_not_be_written_to(data: bytes) -> None:
    with pytest.raises(Rejected):
        searchable_pdf(Asked(data, document(line("x"))))


def test_a_file_that_has_other_pages_than_were_read() -> None:
    with pytest.raises(Rejected) as caught:
        searchable_pdf(Asked(sheet("PDF"), document(line("x"), pages=2)))
    assert caught.value.code == "corrupt_document"


# What a search shows


def test_highlights_are_html_and_stand_in_their_lines() -> None:
    told = document(line("a <b> & c"), line("b again"), line("nothing"))
    told = replace(told, text="a <b> & c b again\nnothing")
    found = list(highlights(told, [(3, 4), (8, 9), (10, 11)]))
    assert [each["text"] for each in found] == [
        "a &lt;<mark>b</mark>&gt; &amp; <mark>c</mark>",
        "<mark>b</mark> again",
    ]
    assert list(highlights(told, [])) == []


def test_lines_that_the_text_does_not_have_are_left_out() -> None:
    told = replace(document(line("one"), line("missing"), line("two")), text="one\ntwo")
    assert [each["text"] for each in highlights(told, [(0, 3), (4, 7)])] == [
        "<mark>one</mark>",
        "<mark>two</mark>",
    ]
