"""What the cascade reads: codes made by segno, in pictures made here."""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterator

import cv2
import numpy as np
import pytest
import segno
from numpy.typing import NDArray
from PIL import Image

from qr_decoder import domain
from qr_decoder.domain import cascade, decoders, transforms
from qr_decoder.domain.locator import Located
from visionmesh import images

Grey = NDArray[np.uint8]


def drawn(code: segno.QRCode, scale: int = 6, border: int = 4) -> Grey:
    modules = np.pad(np.array([list(row) for row in code.matrix], np.uint8), border)
    return (255 * (1 - np.kron(modules, np.ones((scale, scale))))).astype(np.uint8)


def make(content: str | bytes, **options: object) -> Grey:
    return drawn(segno.make(content, micro=False, **options))  # type: ignore[arg-type]


def on_ground(code: Grey, height: int, width: int, top: int, left: int, ground: int = 200) -> Grey:
    picture = np.full((height, width), ground, np.uint8)
    picture[top : top + code.shape[0], left : left + code.shape[1]] = code
    return picture


def contents(picture: Grey, profile: str = "cascade") -> list[str]:
    return [code.content for code in domain.read(picture, profile=profile).codes]


def test_everything_a_code_holds_is_told() -> None:
    code = make("hello", error="m")
    result = domain.read(on_ground(code, 400, 500, 50, 100))
    (found,) = result.codes
    assert (found.content, found.data) == ("hello", b"hello")
    assert (found.decoder, found.level, found.level_used) == ("zxing", "whole", domain.NUMBERS["whole"])
    assert found.preprocessing_applied is False
    assert found.rotation_angle is None
    assert found.confidence == 1.0
    assert found.symbology == "qr"
    assert 0 <= found.processing_time_ms <= result.processing_time_ms
    assert (result.width, result.height, result.truncated) == (500, 400, False)
    left, top, side = 100 + 24, 50 + 24, 21 * 6
    corners = [(left, top), (left + side, top), (left + side, top + side), (left, top + side)]
    assert np.abs(np.array(found.corners) - corners).max() <= 1.5


def test_a_large_picture_is_read_reduced_and_its_corners_are_those_of_the_whole() -> None:
    code = make("in a large picture", error="m")
    picture = on_ground(cv2.resize(code, None, fx=4, fy=4), 2000, 3000, 500, 1500)
    (found,) = domain.read(picture).codes
    assert found.level == "reduced"
    assert found.preprocessing_applied
    side = 25 * 24
    start = np.array((1500 + 96, 500 + 96))
    assert np.abs(np.array(found.corners[0]) - start).max() <= 8
    assert np.abs(np.array(found.corners[2]) - start - side).max() <= 8


def test_a_code_too_small_for_the_reduced_picture_is_found_in_the_whole() -> None:
    code = drawn(segno.make("small code in 4K", micro=False), scale=3)
    (found,) = domain.read(on_ground(code, 2160, 3840, 1700, 3000)).codes
    assert found.content == "small code in 4K"
    assert found.level in ("whole", "grid-whole")


@pytest.mark.parametrize("turns", range(4))
@pytest.mark.parametrize("look", ["plain", "inverted", "mirrored"])
def test_turned_inverted_and_mirrored_codes_are_read(turns: int, look: str) -> None:
    picture = on_ground(make("turned"), 300, 340, 40, 60)
    if look == "inverted":
        picture = 255 - picture
    if look == "mirrored":
        picture = np.ascontiguousarray(picture[:, ::-1])
    assert contents(np.ascontiguousarray(np.rot90(picture, turns))) == ["turned"]


def test_all_codes_of_a_picture_are_read_each_once() -> None:
    picture = np.full((700, 1000), 255, np.uint8)
    for n, (row, column) in enumerate(itertools.product(range(3), range(4))):
        code = make(f"number {n}")
        picture[row * 220 : row * 220 + code.shape[0], column * 240 : column * 240 + code.shape[1]] = code
    assert sorted(contents(picture)) == sorted(f"number {n}" for n in range(12))


def test_two_codes_of_one_content_are_two_codes() -> None:
    code = make("twice")
    assert contents(np.hstack([code, code])) == ["twice", "twice"]


def test_micro_codes_are_read() -> None:
    (found,) = domain.read(drawn(segno.make_micro("MICRO 1"))).codes
    assert (found.content, found.symbology) == ("MICRO 1", "micro_qr")


def test_bytes_and_other_alphabets_are_kept() -> None:
    payload = bytes(range(256))[100:250]
    (found,) = domain.read(make(payload, mode="byte")).codes
    assert found.data == payload
    assert contents(make("grüße, 漢字, привет", encoding="utf-8", eci=True)) == ["grüße, 漢字, привет"]


def test_a_structured_append_message_is_joined() -> None:
    message = "a message that is longer than one symbol is meant to hold; " * 4
    pictures = [drawn(part) for part in segno.make_sequence(message, symbol_count=3)]
    side = max(len(picture) for picture in pictures)
    padded = [np.pad(p, ((0, side - len(p)), (0, side - len(p))), constant_values=255) for p in pictures]
    (found,) = domain.read(np.hstack([padded[2], padded[0], padded[1]])).codes
    assert (found.content, found.parts, found.sequence) == (message, 3, None)
    assert found.data == message.encode()


def test_a_part_of_a_message_alone_says_which_it_is() -> None:
    message = "a message that is longer than one symbol is meant to hold; " * 4
    second = segno.make_sequence(message, symbol_count=3)[1]
    (found,) = domain.read(drawn(second)).codes
    assert found.content in message
    assert found.sequence is not None
    assert (found.sequence.position, found.sequence.total) == (1, 3)


def test_the_same_part_seen_twice_counts_once() -> None:
    message = "a message that is longer than one symbol is meant to hold; " * 2
    first, second = (drawn(part) for part in segno.make_sequence(message, symbol_count=2))
    (found,) = domain.read(np.hstack([first, second, first])).codes
    assert found.content == message


def test_a_code_without_quiet_zone_beside_dark_is_read_by_the_grid() -> None:
    code = make("no quiet zone", error="m")[24:-24, 24:-24]
    picture = on_ground(code, 300, 300, 70, 70, ground=0)
    result = domain.read(picture, profile="grid")
    assert [(found.content, found.decoder) for found in result.codes] == [("no quiet zone", "grid")]
    corners = np.array(result.codes[0].corners)
    assert np.abs(corners - [(70, 70), (196, 70), (196, 196), (70, 196)]).max() <= 3


@pytest.mark.parametrize("reach", [0.4, 0.7])
def test_a_code_on_a_cylinder_is_read_by_the_grid(reach: float) -> None:
    code = make("https://example.com/around/the/can", error="m", version=4)
    height, width = code.shape
    # Seen from far away, a cylinder's columns lie at the sine of their angle.
    angle = np.linspace(-reach, reach, width)
    seen = np.linspace(np.sin(-reach), np.sin(reach), width)
    across = np.interp(seen, np.sin(angle), np.arange(width)).astype(np.float32)
    x, y = np.meshgrid(across, np.arange(height, dtype=np.float32))
    bulge = (40 * (1 - np.cos(angle)))[None, :].astype(np.float32)
    picture = cv2.remap(code, x, y + bulge, cv2.INTER_LINEAR, borderValue=255)
    assert contents(picture, "grid") == ["https://example.com/around/the/can"]


def test_a_code_under_glare_is_read_by_erasures() -> None:
    code = make("under a lamp", error="q", version=5).astype(np.float32)
    y, x = np.mgrid[: code.shape[0], : code.shape[1]]
    lamp = 230 * np.exp(-(((x - 150) / 38) ** 2 + ((y - 160) / 30) ** 2))
    picture = np.clip(code * 0.6 + 40 + lamp, 0, 255).astype(np.uint8)
    assert contents(picture, "grid") == ["under a lamp"]


def test_nothing_is_read_where_nothing_is() -> None:
    generator = np.random.default_rng(3)
    noise = generator.integers(0, 256, (400, 500)).astype(np.uint8)
    blocks = np.kron(generator.integers(0, 2, (40, 50)) * 255, np.ones((8, 8))).astype(np.uint8)
    for picture in (noise, blocks, np.zeros((300, 300), np.uint8), np.full((1, 500), 255, np.uint8)):
        assert domain.read(picture).codes == ()


@pytest.mark.parametrize("shape", [(1, 1), (1, 900), (900, 1), (2, 2), (17, 3000)])
def test_odd_shapes_do_no_harm(shape: tuple[int, int]) -> None:
    assert domain.read(np.full(shape, 128, np.uint8)).codes == ()


def test_a_code_that_is_damaged_beyond_repair_is_dropped() -> None:
    code = make("beyond repair", error="l").copy()
    code[60:150, 60:150] = 255
    assert domain.read(code).codes == ()


def ticking(step: float) -> Iterator[float]:
    return itertools.count(0.0, step)


def test_the_budget_ends_the_search_and_says_so() -> None:
    clock = ticking(0.3)
    result = domain.read(np.full((300, 300), 255, np.uint8), budget_ms=500, clock=lambda: next(clock))
    assert result.truncated
    assert len(result.levels) < len(domain.levels_of("cascade"))
    unhurried = domain.read(np.full((300, 300), 255, np.uint8), budget_ms=500, clock=lambda: 0.0)
    assert not unhurried.truncated
    assert unhurried.levels == domain.levels_of("cascade")


def test_what_was_read_before_the_budget_ended_is_kept() -> None:
    clock = ticking(1.0)
    result = domain.read(make("in time"), budget_ms=1, clock=lambda: next(clock))
    assert result.truncated
    assert [code.content for code in result.codes] == ["in time"]


def test_it_stops_at_the_first_level_when_nothing_speaks_for_more() -> None:
    assert domain.read(make("one code")).levels == ("reduced", "whole")


def dim(code: Grey, noise: float) -> Grey:
    """A code by night: its light modules are a few levels of grey above its dark ones."""
    picture = on_ground(code, 500, 500, 100, 100) * 0.03 + 4
    return np.clip(picture + np.random.default_rng(3).normal(0, noise, picture.shape), 0, 255).astype(
        np.uint8
    )


def test_a_dark_code_is_read_by_the_logarithms_of_its_tones() -> None:
    (found,) = domain.read(dim(make("by night"), 0.5)).codes
    assert (found.content, found.level, found.preprocessing) == ("by night", "dark", "logarithms")


def test_a_dark_code_is_looked_for_beside_a_light_one_that_was_read() -> None:
    picture = np.hstack([dim(make("by night"), 0.5), np.full((500, 400), 10, np.uint8)])
    picture[150:324, 600:774] = make("under a lamp")
    assert sorted(contents(picture)) == ["by night", "under a lamp"]


def test_a_picture_that_is_not_dark_is_not_looked_at_as_one() -> None:
    picture = on_ground(make("by day"), 500, 500, 100, 100)
    assert contents(picture, "dark") == []
    assert "dark" not in domain.read(picture).levels


@pytest.mark.parametrize(("count", "levels"), [(3, ("reduced",)), (4, ("reduced", "whole"))])
def test_beside_four_codes_that_were_read_the_whole_picture_is_looked_at(
    count: int, levels: tuple[str, ...]
) -> None:
    picture = np.full((1500, 2000), 230, np.uint8)
    for number in range(count):
        code = make(f"number {number}", error="m")
        top, left = 100 + number % 2 * 700, 100 + number // 2 * 700
        picture[top : top + len(code), left : left + len(code)] = code
    result = domain.read(picture)
    assert len(result.codes) == count
    assert result.levels == levels


def test_a_level_that_adds_nothing_is_tried_only_by_name() -> None:
    assert "grid-whole" not in domain.levels_of("cascade")
    large = on_ground(cv2.resize(make("by name"), None, fx=2, fy=2), 1500, 2000, 300, 400)
    assert contents(large, "grid-whole") == ["by name"]


def test_triples_are_followed_until_so_many_in_a_row_were_in_vain(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    def in_vain(*_: object) -> None:
        tried.append(1)

    monkeypatch.setattr(decoders, "sampler", in_vain)
    sheet = np.hstack([np.vstack([make("one of many")] * 3)] * 3)
    scene = cascade.Scene(sheet)
    assert len(scene.open_triples(scene.all_finders)) > 20
    assert domain.read(sheet, profile="grid").codes == ()
    assert len(tried) == 12


def test_levels_are_chosen_by_name_and_an_unknown_one_is_an_error() -> None:
    assert domain.levels_of("clahe, upscale") == ("clahe", "upscale")
    with pytest.raises(domain.UnknownLevelError, match="no profile or level 'magic'"):
        domain.read(make("x"), profile="magic")


def test_level_numbers_are_stored_and_must_not_change() -> None:
    first = ("reduced", "whole", "grid", "located", "histogram", "grid-whole")
    assert [domain.NUMBERS[name] for name in first] == [1, 2, 3, 4, 5, 6]
    assert [domain.NUMBERS[f"locator-{size}"] for size in "nsml"] == [7, 8, 9, 10]
    assert (domain.NUMBERS["worn"], domain.NUMBERS["dark"]) == (42, 43)


@pytest.mark.parametrize("name", transforms.STRATEGIES)
def test_every_strategy_reads_and_leads_back_to_the_original_corners(name: str) -> None:
    picture = on_ground(make("strategy", error="m"), 420, 560, 90, 200)
    (found,) = domain.read(picture, profile=name).codes
    assert (found.content, found.level) == ("strategy", name)
    start = np.array((200 + 24, 90 + 24))
    assert np.abs(np.array(found.corners[0]) - start).max() <= 6
    assert np.abs(np.array(found.corners[2]) - start - 126).max() <= 6
    assert (found.rotation_angle is not None) == (name == "rotation")
    assert found.preprocessing_applied == (name != "raw")


def test_opencv_is_taken_by_its_modules() -> None:
    (found,) = domain.read(make("by its modules"), profile="raw+opencv").codes
    assert (found.content, found.data, found.decoder) == ("by its modules", b"by its modules", "opencv")


def test_zbar_stands_only_when_confirmed() -> None:
    pytest.importorskip("pyzbar.pyzbar", reason="libzbar is not installed", exc_type=ImportError)
    (found,) = domain.read(make("confirmed"), profile="ultralight").codes
    assert (found.content, found.decoder) == ("confirmed", "zbar")
    parts = segno.make_sequence("zbar knows no message in several symbols " * 3, symbol_count=2)
    assert domain.read(drawn(parts[0]), profile="raw+zbar").codes == ()


def test_a_micro_code_in_an_altered_picture_has_to_be_read_twice() -> None:
    picture = drawn(segno.make_micro("MICRO 1"))
    assert contents(picture, "clahe") == []
    assert contents(picture, "clahe,equalize") == ["MICRO 1"]


class Pointing:
    """A locator that points where it is told."""

    def __init__(self, *places: Located) -> None:
        self.name = "pointing"
        self.places = list(places)
        self.asked = 0

    def locate(self, picture: Grey) -> list[Located]:
        # As it is: three channels of 8 megapixels would be 25 MB.
        assert picture.ndim == 2
        self.asked += 1
        return self.places


def place(confidence: float) -> Located:
    corners = np.array([[196, 86], [354, 88], [352, 246], [194, 244]], np.float32)
    return Located(corners, confidence)


def test_what_a_locator_points_at_is_read() -> None:
    picture = on_ground(make("located", error="m"), 420, 560, 70, 180)
    locator = Pointing(place(0.9))
    result = domain.read(picture, profile="onnx", locators={"n": locator})
    assert [(code.content, code.level) for code in result.codes] == [("located", "locator-n")]
    assert result.codes[0].preprocessing == "rectified"
    assert domain.read(picture, profile="onnx").codes == ()


def test_hybrid_asks_the_medium_locator_only_when_the_small_one_is_unsure() -> None:
    picture = on_ground(make("hybrid", error="m"), 420, 560, 70, 180)
    for confidence, asked in ((0.9, 0), (0.7, 1)):
        small, medium = Pointing(place(confidence)), Pointing(place(0.9))
        result = domain.read(picture, profile="hybrid", locators={"s": small, "m": medium})
        assert [code.content for code in result.codes] == ["hybrid"]
        assert (small.asked, medium.asked) == (1, asked)
    medium = Pointing(place(0.9))
    result = domain.read(picture, profile="hybrid", locators={"s": Pointing(), "m": medium})
    assert [code.content for code in result.codes] == ["hybrid"]
    assert medium.asked == 1


def test_reading_twice_gives_the_same() -> None:
    picture = on_ground(make("again"), 300, 300, 60, 60)
    first, second = (domain.read(picture, clock=lambda: 0.0) for _ in range(2))
    assert first == second


def test_a_file_is_decoded_first() -> None:
    data = cv2.imencode(".png", make("from a file"))[1].tobytes()
    assert [code.content for code in domain.decode(data).codes] == ["from a file"]


@pytest.mark.parametrize("ending", [".jpg", ".png", ".webp"])
def test_brightness_alone_is_that_of_the_colours(ending: str) -> None:
    generator = np.random.default_rng(1)
    colours = cv2.resize(generator.integers(0, 256, (9, 7, 3)).astype(np.uint8), (210, 270))
    data = cv2.imencode(ending, colours)[1].tobytes()
    expected = cv2.cvtColor(images.decode(data), cv2.COLOR_RGB2GRAY).astype(int)
    assert np.abs(images.decode_grey(data) - expected).max() <= 3


def test_brightness_is_upright_and_what_is_transparent_is_white() -> None:
    lying = Image.new("L", (40, 20), 200)
    lying.paste(0, (0, 0, 10, 20))
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    lying.save(file, "JPEG", exif=exif.tobytes())
    grey = images.decode_grey(file.getvalue())
    assert grey.shape == (40, 20)
    assert grey[:8].max() < 30 < 170 < grey[12:].min()
    clear = io.BytesIO()
    Image.new("RGBA", (5, 5), (0, 0, 0, 0)).save(clear, "PNG")
    assert (images.decode_grey(clear.getvalue()) == 255).all()


def test_crops_are_read_from_any_corner_on() -> None:
    picture = on_ground(make("any corner", error="m"), 420, 560, 70, 180)
    for turn in range(4):
        reading = decoders.located(picture, np.roll(place(1).corners, turn, axis=0))
        assert reading is not None
        assert reading.content == "any corner"


def test_every_profile_names_levels_that_exist() -> None:
    for profile in cascade.PROFILES:
        assert set(domain.levels_of(profile)) <= set(domain.LEVELS)
