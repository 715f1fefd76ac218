"""The stages of reading, each by itself, on numbers that are made up; `test_ocr_engine` has the whole."""

from __future__ import annotations

from threading import Event, Thread

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks.ocr_scores import Box, Line, distance, in_order, matched
from ocr_worker.domain import upright
from ocr_worker.domain.alphabet import Alphabet, UnknownLanguageError
from ocr_worker.domain.crops import crops_of, cut
from ocr_worker.domain.detection import Boxes, Detection, boxes_of, run_upright
from ocr_worker.domain.engine import EngineBusyError, OnePageAtATime
from ocr_worker.domain.reading_order import reading_order, text_of
from ocr_worker.domain.recognition import HEIGHT, Cell, Recognised, batches, decoded
from visionmesh.ocr_document import OcrDocument, PageSize, TextLine, as_json, from_json


def box(left: float, top: float, right: float, bottom: float) -> list[tuple[float, float]]:
    return [(left, top), (right, top), (right, bottom), (left, bottom)]


def boxes(*sides: tuple[float, float, float, float]) -> Boxes:
    return np.array([box(*each) for each in sides], np.float32)


def turned(points: Boxes, degrees: float) -> Boxes:
    angle = np.radians(degrees)
    way = np.array(((np.cos(angle), np.sin(angle)), (-np.sin(angle), np.cos(angle))))
    return (points @ way).astype(np.float32)


# Boxes.


def test_a_line_in_the_map_is_a_box_that_has_grown() -> None:
    probabilities = np.zeros((100, 200), np.float32)
    probabilities[40:50, 50:150] = 0.9
    (found,) = boxes_of(probabilities, Detection(growth=1.6))
    # 100 x 10 pixels grow by 1.6 * 1000 / 110 in all, half of it on each side.
    assert found[0] == pytest.approx((50 - 7.3, 40 - 7.3), abs=1.5)
    assert found[2] == pytest.approx((150 + 7.3, 50 + 7.3), abs=1.5)


def test_what_is_faint_or_tiny_is_no_line() -> None:
    probabilities = np.zeros((100, 200), np.float32)
    probabilities[10:20, 10:100] = 0.4
    probabilities[60:62, 10:12] = 1.0
    assert len(boxes_of(probabilities, Detection(confidence=0.5))) == 0
    assert len(boxes_of(probabilities, Detection(confidence=0.3))) == 1


@pytest.mark.parametrize("degrees", [-30, -5, 5, 30])
def test_corners_begin_at_the_left_of_the_upper_side(degrees: float) -> None:
    probabilities = np.zeros((300, 300), np.float32)
    outline = turned(boxes((-100, -8, 100, 8)), degrees)[0] + 150
    cv2.fillPoly(probabilities, [outline.astype(np.int32)], 1.0)
    (found,) = boxes_of(probabilities, Detection())
    assert np.argmin(np.linalg.norm(found - outline[0], axis=1)) == 0
    # Clockwise, y downwards.
    assert np.linalg.det(np.stack((found[1] - found[0], found[2] - found[1]))) > 0


def test_a_lone_narrow_character_does_not_run_upright_but_a_high_line_does() -> None:
    page = boxes((0, 0, 200, 20), (0, 30, 200, 50), (0, 60, 9, 80), (300, 0, 320, 200))
    assert list(run_upright(page)) == [False, False, False, True]


# Crops.


def test_crops_are_of_one_height_and_show_what_is_in_the_box() -> None:
    page = np.zeros((400, 400, 3), np.uint8)
    page[100:130, 50:350] = (255, 0, 0)
    page[100:130, 50:100] = (0, 255, 0)
    (line,) = crops_of(page, boxes((50, 100, 350, 130)))
    assert line.shape == (HEIGHT, round(300 * HEIGHT / 30), 3)
    assert tuple(line[24, 20]) == (0, 255, 0)
    assert tuple(line[24, 400]) == (255, 0, 0)


def test_text_that_runs_up_is_turned_to_the_right() -> None:
    page = np.zeros((400, 400, 3), np.uint8)
    # Its beginning is at the bottom.
    page[250:300, 40:60] = (0, 255, 0)
    lines = crops_of(
        page, boxes((100, 0, 300, 20), (100, 40, 300, 60), (100, 80, 300, 100), (40, 100, 60, 300))
    )
    assert tuple(lines[3][24, 20]) == (0, 255, 0)
    assert tuple(lines[3][24, 400]) == (0, 0, 0)


@pytest.mark.parametrize("turned", [False, True])
def test_a_box_is_cut_along_its_text(turned: bool) -> None:
    level = np.array(((10, 5), (110, 5), (110, 25), (10, 25)), np.float32)
    first = np.array(((10, 5), (40, 5), (40, 25), (10, 25)), np.float32)
    second = np.array(((40, 5), (110, 5), (110, 25), (40, 25)), np.float32)
    box, *parts = (np.roll(corners, -int(turned), axis=0) for corners in (level, first, second))
    assert np.allclose(list(cut(box, 200, [0, 60], turned)), parts, atol=1e-4)
    assert np.allclose(list(cut(box, 200, [0], turned)), [box], atol=1e-4)


# Recognition.


def said(text: str, characters: list[str], *, leaning: dict[int, float] | None = None) -> NDArray[np.float32]:
    """Probabilities for a string of steps, `_` for a blank. leaning: of a space, at some steps."""
    probabilities = np.full((len(text), len(characters)), 0.001, np.float32)
    for step, character in enumerate(text):
        probabilities[step, 0 if character == "_" else characters.index(character)] = 0.9
    for step, space in (leaning or {}).items():
        probabilities[step, characters.index(" ")] = space
    return probabilities


CHARACTERS = ["", "a", "l", "o", " "]


def test_repeated_steps_are_one_character_unless_a_blank_stands_between() -> None:
    assert decoded(said("_aall_llo_", CHARACTERS), CHARACTERS).text == "allo"


def test_confidence_is_that_of_the_characters_alone() -> None:
    assert decoded(said("_a__l", CHARACTERS), CHARACTERS).confidence == pytest.approx(0.9)
    assert decoded(said("____", CHARACTERS), CHARACTERS) == Recognised("", 0.0)
    assert decoded(said("_ _ ", CHARACTERS), CHARACTERS) == Recognised("", 0.0)


def test_a_space_that_the_network_leaned_to_is_written_once() -> None:
    assert decoded(said("a__l", CHARACTERS, leaning={1: 0.2, 2: 0.2}), CHARACTERS).text == "a l"
    assert decoded(said("a__l", CHARACTERS, leaning={1: 0.05}), CHARACTERS).text == "al"
    assert decoded(said("a_ _l", CHARACTERS, leaning={1: 0.3}), CHARACTERS).text == "a l"
    # In front of the first character there is nothing to divide.
    assert decoded(said("_a", CHARACTERS, leaning={0: 0.4}), CHARACTERS).text == "a"


def test_a_space_as_wide_as_the_line_is_high_divides_two_cells() -> None:
    narrow = decoded(said("_a__ __l_", CHARACTERS), CHARACTERS)
    assert (narrow.text, narrow.cells) == ("a l", (Cell("a l", 0.0),))
    wide = decoded(said("_aa__ ___ll_o o", CHARACTERS), CHARACTERS)
    assert (wide.text, wide.cells) == ("a lo o", (Cell("a", 0.0), Cell("lo o", 8 * 6.0)))
    # Blanks alone are a character that was not read.
    assert len(decoded(said("_a_______l_", CHARACTERS), CHARACTERS).cells) == 1


def test_an_opening_mark_that_nothing_closes_is_a_mistake() -> None:
    characters = [*CHARACTERS, "!", "¡"]
    assert decoded(said("¡_ola!", characters), characters).text == "¡ola!"
    unclosed = said("¡_ola", characters)
    unclosed[0, characters.index("l")] = 0.05
    assert decoded(unclosed, characters).text == "lola"


def test_a_batch_holds_lines_that_are_filled_up_to_one_width() -> None:
    widths = [100, 33, 500, 120, 64, 97]
    found = list(batches(widths))
    assert sorted(at for batch in found for at in batch) == list(range(len(widths)))
    assert [sorted(widths[at] for at in batch) for batch in found] == [[33, 64], [97, 100, 120], [500]]
    assert max(len(batch) for batch in batches([50] * 20)) == 8
    assert list(batches([])) == []


# Reading order.


def test_cells_of_a_row_are_read_from_left_to_right_and_rows_from_top_to_bottom() -> None:
    page = boxes((300, 52, 360, 70), (10, 10, 120, 30), (10, 50, 200, 70), (300, 8, 360, 28))
    assert reading_order(page) == [1, 3, 2, 0]
    # A sheet that lies askew.
    assert reading_order(turned(page, 7)) == [1, 3, 2, 0]


def test_columns_of_running_text_are_read_one_after_another() -> None:
    left = [(0, y, 300, y + 18) for y in range(100, 300, 25)]
    right = [(340, y + 5, 640, y + 23) for y in range(100, 300, 25)]
    heading, footer = (0, 40, 640, 70), (200, 400, 420, 420)
    together = [each for pair in zip(left, right, strict=True) for each in pair]
    page = boxes(footer, *together, heading)
    count = len(left)
    in_columns = [*range(1, 2 * count, 2), *range(2, 2 * count + 1, 2)]
    assert reading_order(page) == [2 * count + 1, *in_columns, 0]


def test_a_column_of_amounts_is_no_column_of_text() -> None:
    rows = [((0, y, 250, y + 18), (340, y, 400, y + 18)) for y in range(100, 300, 25)]
    page = boxes(*(cell for row in rows for cell in row))
    assert reading_order(page) == list(range(len(page)))


def test_no_boxes_have_no_order() -> None:
    assert reading_order(np.empty((0, 4, 2), np.float32)) == []


def test_the_text_has_rows_on_lines_of_their_own() -> None:
    def line(text: str, *sides: float) -> TextLine:
        return TextLine(text, tuple(box(*sides)), 1.0)

    lines = [line("Total", 0, 0, 50, 20), line("9,00 €", 200, 2, 250, 22), line("¡Gracias!", 0, 40, 90, 60)]
    assert text_of(lines) == "Total 9,00 €\n¡Gracias!"
    assert text_of([]) == ""


# Which way up.


@pytest.mark.parametrize("quarters", range(4))
def test_points_of_a_turned_page_are_found_in_the_page_as_it_came(quarters: int) -> None:
    page = np.zeros((30, 50, 3), np.uint8)
    page[7, 12] = 255
    seen = upright.turned(page, quarters)
    row, column = np.argwhere(seen[:, :, 0])[0]
    # The middle of the pixel, as coordinates have its corner.
    point = np.array((column + 0.5, row + 0.5), np.float32)
    assert upright.turned_back(point, quarters, 50, 30) == pytest.approx((12.5, 7.5))


def test_a_page_that_is_turned_over_has_its_boxes_begin_at_the_upper_left_again() -> None:
    (found,) = upright.turned_over(boxes((10, 20, 110, 40)), 200, 100)
    assert found.tolist() == [list(corner) for corner in box(90, 60, 190, 80)]


def test_only_a_page_that_reads_badly_is_tried_the_other_way_round() -> None:
    lines = [np.zeros((HEIGHT, 300, 3), np.uint8)] * 20
    asked: list[int] = []

    def read(pictures: object) -> list[Recognised]:
        asked.append(len(list(pictures)))  # type: ignore[call-overload]
        return [Recognised("this is what it says", 0.98)] * asked[-1]

    assert not upright.is_on_its_head(lines, [Recognised("clean", 0.97)] * 20, read)
    assert asked == []
    assert upright.is_on_its_head(lines, [Recognised("sfvs ls", 0.7)] * 20, read)
    assert asked == [8]
    assert not upright.is_on_its_head(
        lines, [Recognised("faint", 0.85)] * 20, lambda _: [Recognised("x", 0.6)]
    )
    assert not upright.is_on_its_head([], [], read)


# Alphabets.


def test_spanish_and_english_have_all_their_letters_and_no_others() -> None:
    alphabet = Alphabet("es+en")
    assert all(character in alphabet for character in "¿¡ñÑáéíóúüÜÁÉÍÓÚ€ªº«»—azAZ09%&@#$ .,;:")
    assert not any(character in alphabet for character in "中日Жλšł")
    assert "š" in Alphabet("es+cs")
    assert "中" in Alphabet("any")


@pytest.mark.parametrize("language", ["xx", "es+xx", "", "español"])
def test_a_language_that_is_not_read_is_refused(language: str) -> None:
    with pytest.raises(UnknownLanguageError, match="no language"):
        Alphabet(language)


# One page at a time.


def test_a_second_thread_is_told_that_the_engine_is_busy() -> None:
    one, inside, done = OnePageAtATime(), Event(), Event()

    def hold() -> None:
        with one:
            inside.set()
            done.wait(10)

    thread = Thread(target=hold)
    thread.start()
    assert inside.wait(10)
    with pytest.raises(EngineBusyError), one:
        pass
    done.set()
    thread.join()
    with one:
        pass


# The document.


def test_a_document_comes_back_from_json() -> None:
    line = TextLine("¿Qué?", tuple(box(1.5, 2, 30, 12)), 0.9712, page=2)
    document = OcrDocument(
        "¿Qué?", (line,), (PageSize(10, 20), PageSize(30, 40)), "es+en", "rapidocr", {"decode": 0.5}
    )
    told = as_json(document)
    assert (told["seconds"], told["seconds_by_stage"]) == (0.5, {"decode": 0.5})
    assert from_json(told) == document


# The benchmark's figures.


def test_distances_are_those_of_levenshtein() -> None:
    for one, other, expected in (
        ("", "", 0),
        ("abc", "", 3),
        ("", "ab", 2),
        ("kitten", "sitting", 3),
        ("ab", "ba", 2),
    ):
        assert distance(one, other) == expected


def test_errors_are_counted_in_order_and_by_line() -> None:
    first, second = Line("TOTAL 9.00", Box(0, 0, 100, 20)), Line("THANK YOU", Box(0, 40, 100, 60))
    read = [
        Line("THANK YOU", Box(2, 41, 99, 59)),
        Line("9.80", Box(60, 1, 99, 19)),
        Line("TOTAL", Box(1, 1, 50, 19)),
        Line("elsewhere", Box(300, 300, 400, 320)),
    ]
    assert matched([first, second], read) == (1, 19)
    assert in_order(["a  b", "c"], ["a b c"]) == (0, 5)
    assert in_order(["abc"], ["acb"]).rate == pytest.approx(2 / 3)
