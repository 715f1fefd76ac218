from __future__ import annotations

import io
import struct
import subprocess
import sys
import zlib
from contextlib import suppress
from typing import Any

import numpy as np
import pillow_heif
import pytest
from numpy.typing import NDArray
from PIL import Image

from visionmesh import images
from visionmesh.errors import Rejected
from visionmesh.images import Limits, decode, decode_to, media_type, probe


def photo(width: int = 96, height: int = 64) -> Image.Image:
    """A picture that looks different from every side, with soft edges that JPEG keeps."""
    x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    spot = np.exp(-((x - 0.25) ** 2 + (y - 0.3) ** 2) / 0.02)
    return Image.fromarray((np.stack([x, y, spot], axis=2) * 255).astype(np.uint8))


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    # Pillow learns HEIF when the first such file is decoded, not before.
    if kind == "HEIF":
        pillow_heif.from_pillow(image).save(out, **options)
    else:
        image.save(out, kind, **options)
    return out.getvalue()


def distance(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> float:
    return float(np.abs(one.astype(int) - other.astype(int)).mean())


def rejection(data: bytes, **options: Any) -> str:
    with pytest.raises(Rejected) as caught:
        decode_to(data, 32, **options)
    with pytest.raises(Rejected) as caught_whole:
        decode(data, **options)
    assert caught.value.code == caught_whole.value.code
    return caught.value.code


def bomb(width: int, height: int) -> bytes:
    """A valid PNG of a few kilobytes whose header announces any number of black pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    packer = zlib.compressobj(9)
    row = bytes(1 + (width + 7) // 8)
    rows = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("kind", "options", "name"),
    [
        ("JPEG", {"quality": 95}, "image/jpeg"),
        ("JPEG", {"quality": 95, "progressive": True}, "image/jpeg"),
        ("PNG", {}, "image/png"),
        ("WEBP", {"lossless": True}, "image/webp"),
        ("GIF", {}, "image/gif"),
        ("BMP", {}, "image/bmp"),
        ("TIFF", {"compression": "tiff_lzw"}, "image/tiff"),
        ("HEIF", {"quality": 95}, "image/heif"),
        ("AVIF", {"quality": 95}, "image/avif"),
    ],
)
def test_every_allowed_format_gives_the_same_picture(kind: str, options: dict[str, Any], name: str) -> None:
    data = saved(photo(), kind, **options)
    assert media_type(data[:64]) == name
    assert images.is_decodable(name)
    info = probe(data)
    assert (info.media_type, info.width, info.height, info.several) == (name, 96, 64, False)
    found = decode(data)
    assert (found.shape, found.dtype) == ((64, 96, 3), np.uint8)
    assert distance(found, np.asarray(photo())) < 8
    assert distance(decode_to(data, 32), decode_to(saved(photo(), "PNG"), 32)) < 8


def test_pictures_in_a_container_of_several_jpegs_are_jpegs() -> None:
    data = saved(photo(), "MPO", save_all=True, append_images=[photo().rotate(180)])
    assert probe(data) == images.ImageInfo("image/jpeg", 96, 64, several=True)
    assert distance(decode(data), np.asarray(photo())) < 8


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "empty_file"),
        (b"Dear mesh, this is no picture.\n" * 10, "not_an_image"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not_an_image"),
        (b"%PDF-1.7\n1 0 obj\n", "unsupported_media_type"),
        (b"\x89PNG\r\n\x1a\n and then nothing that makes sense", "corrupt_image"),
        (b"GIF89a", "corrupt_image"),
    ],
)
def test_what_is_no_picture_is_rejected(data: bytes, code: str) -> None:
    assert rejection(data) == code
    with pytest.raises(Rejected) as caught:
        probe(data)
    assert caught.value.code == code
    assert caught.value.reason.endswith(".")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "HEIF", "AVIF"])
def test_half_a_file_is_rejected(kind: str) -> None:
    noise = Image.fromarray(np.random.default_rng(3).integers(0, 256, (64, 64, 3), np.uint8))
    data = saved(noise, kind)
    assert rejection(data[: len(data) // 2]) in ("truncated_image", "corrupt_image")


def test_a_truncated_jpeg_is_named_so() -> None:
    data = saved(photo(), "JPEG")
    assert rejection(data[: len(data) * 2 // 3]) == "truncated_image"


def with_thumbnail(picture: Image.Image) -> bytes:
    """A JPEG with a whole JPEG in a segment before its own picture."""
    data, thumbnail = saved(picture, "JPEG"), saved(photo(16, 16), "JPEG")
    return data[:2] + b"\xff\xe1" + struct.pack(">H", 2 + len(thumbnail)) + thumbnail + data[2:]


def ends(data: bytes) -> bool:
    try:
        images.check_end(data)
    except Rejected as error:
        return error.code != "truncated_image"
    return True


@pytest.mark.parametrize(
    "data",
    [
        saved(photo(), "JPEG"),
        saved(photo(), "JPEG", progressive=True),
        saved(photo().convert("L"), "JPEG", restart_marker_blocks=2),
        with_thumbnail(photo()),
        saved(photo(), "PNG"),
        saved(photo().quantize(), "PNG", interlace=True),
    ],
    ids=["jpeg", "progressive", "restarts", "thumbnail", "png", "palette"],
)
def test_only_files_that_decoders_refuse_end_early(data: bytes) -> None:
    for cut in range(60):
        part = data[: len(data) - cut]
        if not ends(part):
            assert rejection(part) == "truncated_image"
    for part in (data[: len(data) - 60], data[: len(data) * 2 // 3]):
        assert not ends(part)
    for more in (b"\0" * 100, b"a note", data):
        assert ends(data + more)


def test_zeros_in_place_of_the_end_of_a_jpeg_are_none_of_a_truncated_one() -> None:
    data = saved(photo(), "JPEG")[:-2]
    assert not ends(data)
    assert ends(data + bytes(100))
    assert decode(data + bytes(100)).shape == (64, 96, 3)


@pytest.mark.parametrize("kind", ["WEBP", "GIF", "BMP", "TIFF", "HEIF", "AVIF"])
def test_the_end_of_other_formats_is_for_their_decoders(kind: str) -> None:
    data = saved(photo(), kind)
    assert ends(data[: len(data) // 2])


def test_only_allowed_formats_are_decoded() -> None:
    for kind in ("PPM", "ICO", "TGA", "PCX"):
        assert rejection(saved(photo(), kind)) == "not_an_image"


def test_a_decompression_bomb_is_refused_from_its_header(monkeypatch: pytest.MonkeyPatch) -> None:
    data = bomb(20_000, 20_000)
    assert len(data) < 100_000
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    assert rejection(data) == "too_many_pixels"
    with pytest.raises(Rejected, match="more than 200000000 pixels; at most 100000000 pixels"):
        probe(data)


def test_limits_are_inclusive() -> None:
    data = saved(photo(96, 64), "PNG")
    assert decode(data, limits=Limits(bytes=len(data), pixels=96 * 64)).shape == (64, 96, 3)
    assert rejection(data, limits=Limits(bytes=len(data) - 1)) == "too_many_bytes"
    assert rejection(data, limits=Limits(pixels=96 * 64 - 1)) == "too_many_pixels"


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_picture_just_over_the_default_limit_is_refused_though_pillow_only_warns() -> None:
    assert rejection(bomb(10_001, 10_000)) == "too_many_pixels"


def test_a_picture_that_a_caller_takes_though_it_is_large_leaves_no_warning_in_the_log() -> None:
    # In a process of its own: pytest has its own say in warnings.
    script = (
        "import sys; from visionmesh.images import Limits, page_count;"
        "print(page_count(sys.stdin.buffer.read(), limits=Limits(pixels=150_000_000)))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", script],
        input=bomb(12_000, 12_000),
        capture_output=True,
        check=True,
        timeout=60,
    )
    assert (ran.stdout.strip(), ran.stderr) == (b"1", b"")


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "WEBP"])
def test_pictures_are_turned_upright(kind: str, orientation: int) -> None:
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = photo().transpose(undo[orientation]) if orientation > 1 else photo()
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = saved(stored, kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {}))
    assert (probe(data).width, probe(data).height) == (96, 64)
    tolerance = 4 if kind == "JPEG" else 0
    assert distance(decode(data), np.asarray(photo())) <= tolerance
    assert distance(decode_to(data, 32), decode_to(saved(photo(), "PNG"), 32)) <= tolerance


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize(
    "exif", [b"Exif\0\0MM\0*\0\0\0\x08\xff\xff", b"Exif\0\0rubbish", b"Exif\0\0MM\0*\7", b""]
)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_broken_exif_costs_nobody_the_picture(kind: str, exif: bytes) -> None:
    assert decode(saved(photo(), kind, exif=exif)).shape == (64, 96, 3)


def test_cmyk_becomes_rgb() -> None:
    data = saved(photo().convert("CMYK"), "JPEG", quality=95)
    assert distance(decode(data), np.asarray(photo())) < 8
    assert decode_to(data, 32).shape == (32, 32, 3)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_and_not_clipped(kind: str) -> None:
    ramp = np.linspace(0, 65535, 256).astype(np.uint16)
    data = saved(Image.fromarray(np.tile(ramp, (256, 1))), kind)
    found = decode(data)
    assert np.array_equal(found[0, :, 0], np.arange(256))
    assert np.array_equal(found[..., 0], found[..., 2])
    assert distance(decode_to(data, 256), found) == 0


def test_floats_and_wide_integers_show_their_own_range() -> None:
    for kind in (np.float32, np.int32):
        ramp = np.tile(np.linspace(-1000, 1000, 256).astype(kind), (4, 1))
        found = decode(saved(Image.fromarray(ramp), "TIFF"))
        assert (found.min(), found.max()) == (0, 255)
        assert abs(int(found[0, 128, 0]) - 128) <= 1


def test_flat_floats_are_black() -> None:
    assert decode(saved(Image.fromarray(np.full((4, 4), 7, np.float32)), "TIFF")).max() == 0


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGBA"])
def test_other_modes_become_rgb(mode: str) -> None:
    data = saved(photo().convert(mode), "PNG")
    assert decode(data).shape == (64, 96, 3)
    assert decode_to(data, 32).shape == (32, 32, 3)


def test_transparent_parts_are_white() -> None:
    clear = Image.new("RGBA", (64, 64), (255, 0, 0, 0))
    clear.paste((0, 0, 255, 255), (0, 0, 32, 64))
    for data in (
        saved(clear, "PNG"),
        saved(clear, "WEBP", lossless=True),
        saved(clear.quantize(4), "PNG"),
        saved(clear, "GIF"),
    ):
        for found in (decode(data), decode_to(data, 32)):
            assert found[5, 5].tolist() == [0, 0, 255]
            assert found[5, -5].tolist() == [255, 255, 255]


def test_one_transparent_colour_is_white() -> None:
    data = saved(Image.new("RGB", (8, 8), (0, 255, 0)), "PNG", transparency=(0, 255, 0))
    assert decode(data).min() == 255


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_only_the_first_frame_counts(kind: str) -> None:
    frames = [Image.new("RGB", (40, 40), colour) for colour in ("red", "green", "blue")]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = saved(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert probe(data).several
    assert decode(data)[20, 20].tolist() == [255, 0, 0]
    assert decode_to(data, 32)[20, 20].tolist() == [255, 0, 0]


def test_a_picture_of_the_right_size_is_unchanged() -> None:
    data = saved(photo(32, 32), "JPEG")
    assert np.array_equal(decode_to(data, 32), decode(data))


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (500, 1), (1, 60_000), (7, 3), (33, 31)])
def test_any_shape_becomes_a_square(size: tuple[int, int]) -> None:
    data = saved(Image.new("RGB", size, (10, 200, 30)), "PNG")
    found = decode_to(data, 32)
    assert found.shape == (32, 32, 3)
    assert found[16, 16].tolist() == [10, 200, 30]


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_thumbnails_do_not_alias(kind: str) -> None:
    """One-pixel stripes average to grey; picking single pixels would give stripes or one colour."""
    stripes = np.zeros((1024, 1024, 3), np.uint8)
    stripes[:, ::2] = 255
    found = decode_to(
        saved(Image.fromarray(stripes), kind, **({"quality": 95} if kind == "JPEG" else {})), 32
    )
    assert np.abs(found.astype(int) - 127).max() <= 3


def test_a_large_jpeg_is_not_decoded_in_full(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    turn = images._upright

    def seen(image: Image.Image) -> Image.Image:
        sizes.append(image.size)
        return turn(image)

    monkeypatch.setattr(images, "_upright", seen)
    data = saved(photo(1600, 1200), "JPEG", quality=95)
    whole = np.asarray(photo(1600, 1200).resize((32, 32), Image.Resampling.BOX))
    assert distance(decode_to(data, 32), whole) < 3
    assert sizes == [(200, 150)]


def test_the_same_bytes_give_the_same_picture() -> None:
    data = saved(photo(500, 300), "JPEG")
    assert np.array_equal(decode_to(data, 32), decode_to(data, 32))


@pytest.mark.parametrize(
    ("start", "name"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0", "image/heif"),
        (b"\0\0\0\x18ftypavif\0\0\0\0", "image/avif"),
        (b"\0\0\0\x18ftypmp42\0\0\0\0", None),
        (b"RIFF\0\0\0\0WAVEfmt ", None),
        (b"%PDF-1.4", "application/pdf"),
        (b"", None),
        (b"BM", "image/bmp"),
    ],
)
def test_media_types_are_told_by_their_first_bytes(start: bytes, name: str | None) -> None:
    assert media_type(start) == name


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "HEIF", "AVIF"])
def test_damaged_files_give_a_picture_or_a_rejection(kind: str) -> None:
    """Never another exception, which would be taken for a bug and tried again."""
    whole = saved(photo(48, 48), kind)
    random = np.random.default_rng(11)
    for _ in range(60):
        damaged = bytearray(whole)
        for position in random.integers(8, len(whole), 6):
            damaged[position] = random.integers(256)
        with suppress(Rejected):
            assert decode_to(bytes(damaged), 32, limits=Limits(pixels=1_000_000)).shape == (32, 32, 3)
