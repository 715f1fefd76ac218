"""The one safe way to decode a picture.

Every picture comes from someone else. It is told apart by its first bytes, refused from its header when
it is too large, and only then decoded: first frame, upright by its EXIF orientation, RGB with 8 bits a
channel. Whatever a decoder throws at a broken file becomes `Rejected` with one of these codes:

* `empty_file`, `too_many_bytes`, `too_many_pixels`
* `not_an_image`: the first bytes are of no picture format
* `unsupported_media_type`: known, but none that is decoded here (a PDF)
* `truncated_image`: the file ends before the picture does
* `corrupt_image`: anything else a decoder stumbles over

Nothing here protects against a decoder that hangs or crashes: for that, run it in `visionmesh.isolated`.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from visionmesh.errors import Rejected


@dataclass(frozen=True)
class Limits:
    """What a picture may take: bytes of the file, and pixels of one frame (3 bytes each as RGB)."""

    bytes: int = 100 * 1024 * 1024
    pixels: int = 100_000_000


LIMITS: Final = Limits()

# The largest page whose text is read, 12,000 x 12,000 as large scanners give it. What is taken, drawn on and
# made a PDF of goes as far.
SCAN: Final = Limits(pixels=150_000_000)

# Pillow's own check raises beyond twice this; beyond once it only warns, in the log of whoever takes pictures
# of that size, and `Limits` refuses.
Image.MAX_IMAGE_PIXELS = LIMITS.pixels
warnings.simplefilter("ignore", Image.DecompressionBombWarning)


@dataclass(frozen=True)
class ImageInfo:
    """What the header says. Width and height in pixels are those of the upright picture.

    several: whether the file holds more than one frame or page, of which only the first is used.
    """

    media_type: str
    width: int
    height: int
    several: bool


class Page(NamedTuple):
    """One page of a file.

    picture: uint8 [height, width, 3], upright RGB, perhaps smaller than the page.
    width, height: of the whole page, upright, in its own pixels.
    """

    picture: NDArray[np.uint8]
    width: int
    height: int


# The Pillow plugins that may look at a file of each media type. An allow-list: Pillow knows many more
# formats, some of which run other programs or have hardly been read by anyone.
_PLUGINS: Final[dict[str, tuple[str, ...]]] = {
    "image/jpeg": ("JPEG", "MPO"),
    "image/png": ("PNG",),
    "image/gif": ("GIF",),
    "image/webp": ("WEBP",),
    "image/bmp": ("BMP",),
    "image/tiff": ("TIFF",),
    "image/heif": ("HEIF", "AVIF"),
    "image/avif": ("AVIF",),
}

_MAGIC: Final[tuple[tuple[bytes, str], ...]] = (
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"GIF87a", "image/gif"),
    (b"GIF89a", "image/gif"),
    (b"BM", "image/bmp"),
    (b"II*\0", "image/tiff"),
    (b"MM\0*", "image/tiff"),
    (b"II+\0", "image/tiff"),
    (b"MM\0+", "image/tiff"),
    (b"%PDF-", "application/pdf"),
)

# Brands of ISO base media files (ISO/IEC 23008-12 and the AVIF specification).
_HEIF_BRANDS: Final = frozenset(
    (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1", b"mif2")
)
_AVIF_BRANDS: Final = frozenset((b"avif", b"avis"))

# EXIF orientation 2 to 8 -> what makes the picture upright (EXIF 2.32, tag 0x0112).
_ORIENTATION_TAG: Final = 0x0112
_UPRIGHT: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SWAPS_SIDES: Final = frozenset((5, 6, 7, 8))

# Markers of JPEG; the bare ones stand alone, without a length.
_FILL: Final = 0xFF
_START_OF_SCAN: Final = 0xDA
_BARE_MARKERS: Final = frozenset((0x00, 0x01, *range(0xD0, 0xDA)))

# Of what is copied at a time: small enough for memory that is used again and again.
_STRIP_BYTES: Final = 64 * 1024

# Decoders have all rows of a PNG before its last few bytes: the end of the last block and a checksum.
_PNG_TAIL: Final = 32


def media_type(start: bytes) -> str | None:
    """The media type that the first 64 bytes of a file speak of, or None when they are of none known."""
    for magic, name in _MAGIC:
        if start.startswith(magic):
            return name
    if start[:4] == b"RIFF" and start[8:12] == b"WEBP":
        return "image/webp"
    if start[4:8] == b"ftyp":
        if start[8:12] in _AVIF_BRANDS:
            return "image/avif"
        if start[8:12] in _HEIF_BRANDS:
            return "image/heif"
    return None


def is_decodable(name: str | None) -> bool:
    """Whether pictures of this media type are decoded here."""
    return name in _PLUGINS


def probe(data: bytes, *, limits: Limits = LIMITS) -> ImageInfo:
    """Reads only the header. Raises `Rejected` as `decode` does, but sees no damage further on."""
    with _opened(data, limits) as image:
        width, height = image.size
        if _orientation(image) in _SWAPS_SIDES:
            width, height = height, width
        return ImageInfo(
            media_type=media_type(data[:64]) or "",
            width=width,
            height=height,
            several=bool(getattr(image, "is_animated", False)),
        )


def check_end(data: bytes) -> None:
    """Looks whether a whole file ends before its picture does, without decoding it.

    Raises `Rejected("truncated_image")` of JPEG and PNG, and only where `decode` would refuse the file
    as well. What can't be told like this passes, and so do other formats and bytes behind the picture.
    """
    name = media_type(data[:64])
    if (name == "image/jpeg" and _jpeg_ends_early(data)) or (name == "image/png" and _png_ends_early(data)):
        raise _truncated(name)


def decode(data: bytes, *, limits: Limits = LIMITS) -> NDArray[np.uint8]:
    """The whole picture, uint8 [height, width, 3], upright RGB. Raises `Rejected`."""
    with _opened(data, limits) as image:
        return _pixels(_flat_rgb(_eight_bit(_upright(image))))


def decode_grey(data: bytes, *, limits: Limits = LIMITS) -> NDArray[np.uint8]:
    """The whole picture as brightness (ITU-R BT.601), uint8 [height, width], upright. Raises `Rejected`.

    Of a JPEG only the brightness is decoded: a sixth of the time of its colours, and a third of the memory.
    """
    with _opened(data, limits) as image:
        image.draft("L", image.size)
        whole = _eight_bit(_upright(image))
        return _pixels(whole if whole.mode == "L" else _flat_rgb(whole).convert("L"))


def grey(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Brightness (ITU-R BT.601), uint8 [height, width], of a decoded picture; one that is grey as it is."""
    return picture if picture.ndim == 2 else np.asarray(Image.fromarray(picture).convert("L"))


def page_count(data: bytes, *, limits: Limits = LIMITS) -> int:
    """How many pages `pages` will give, by their headers. Raises `Rejected`."""
    with _opened(data, limits) as image:
        return _pages_in(image)


def pages(data: bytes, *, at_most: int, limits: Limits = LIMITS, first: int = 1) -> Iterator[Page]:
    """Every page of a TIFF, and of any other format the one picture that `decode` gives.

    at_most: pixels beyond which a page is reduced by a whole factor, on the way where the format can.
    first: the page to begin with, from 1. Raises `Rejected`, also between pages.
    """
    with _opened(data, limits) as image:
        for number in range(first - 1, _pages_in(image)):
            image.seek(number)
            width, height = image.size
            if width * height > limits.pixels:
                raise _too_many_pixels(f"{width} x {height} pixels on page {number + 1}", limits)
            factor = math.ceil(math.sqrt(width * height / at_most))
            image.draft(None, (width // factor, height // factor))
            upright = _upright(image)
            if _orientation(image) in _SWAPS_SIDES:
                width, height = height, width
            left = math.ceil(math.sqrt(upright.width * upright.height / at_most))
            # What is not grey or colours by channel (palettes, bilevel) has no mean of two pixels.
            small = upright if left == 1 else _eight_bit(upright).reduce(left)
            yield Page(np.asarray(_flat_rgb(_eight_bit(small))), width, height)


def decode_to(data: bytes, size: int, *, limits: Limits = LIMITS) -> NDArray[np.uint8]:
    """The picture as a square thumbnail, uint8 [size, size, 3], upright RGB. Raises `Rejected`.

    The whole picture is squeezed into the square, whatever its shape: nothing of it is cut away, and a
    picture that already has that size comes back unchanged. Each thumbnail pixel averages all pixels it
    stands for (bicubic with antialiasing, after reduction by a whole factor to 3 times the size).
    """
    with _opened(data, limits) as image:
        # libjpeg can decode at 1/2, 1/4 or 1/8 of the size, for a fraction of the time and memory.
        image.draft(None, (3 * size, 3 * size))
        whole = _eight_bit(_upright(image))
        small = whole.resize((size, size), Image.Resampling.BICUBIC, reducing_gap=3.0)
        return np.asarray(_flat_rgb(small))


@contextmanager
def _opened(data: bytes, limits: Limits) -> Iterator[Image.Image]:
    """A picture whose header was read and found within limits; decoding it happens inside."""
    if not data:
        raise Rejected("empty_file", "The file is empty.")
    if len(data) > limits.bytes:
        raise Rejected("too_many_bytes", f"The file has {len(data)} bytes; at most {limits.bytes} are taken.")
    name = media_type(data[:64])
    if name is None:
        raise Rejected("not_an_image", "The file does not begin like any known picture format.")
    if name not in _PLUGINS:
        raise Rejected("unsupported_media_type", f"The file is {name}; accepted are {', '.join(_PLUGINS)}.")
    if name == "image/heif":
        _learn_heif()
    try:
        with Image.open(io.BytesIO(data), formats=_PLUGINS[name]) as image:
            width, height = image.size
            if width * height > limits.pixels:
                raise _too_many_pixels(f"{width} x {height} pixels", limits)
            yield image
    except (Rejected, MemoryError):
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _too_many_pixels(f"more than {2 * LIMITS.pixels} pixels", limits) from error
    # Decoders raise whatever their author thought of: OSError, SyntaxError, ValueError, struct.error, ...
    except Exception as error:
        raise _broken(name, error) from error


def _pages_in(image: Image.Image) -> int:
    """Only the frames of a TIFF are pages; those of other formats are a moving picture."""
    return int(getattr(image, "n_frames", 1)) if image.format == "TIFF" else 1


@cache
def _learn_heif() -> None:
    """HEIF is what phones store; most processes never see it, and its codecs take 5 MiB."""
    import pillow_heif

    # Its embedded thumbnails may differ from the picture.
    pillow_heif.register_heif_opener(thumbnails=False)


def _too_many_pixels(found: str, limits: Limits) -> Rejected:
    return Rejected("too_many_pixels", f"The picture has {found}; at most {limits.pixels} pixels are taken.")


def _broken(name: str, error: Exception) -> Rejected:
    text = str(error).lower()
    if isinstance(error, EOFError) or "truncated" in text or "end of file" in text:
        return _truncated(name)
    return Rejected("corrupt_image", f"The file begins like {name} but can't be decoded.")


def _truncated(name: str) -> Rejected:
    return Rejected("truncated_image", f"The {name} file ends before the picture does.")


def _jpeg_ends_early(data: bytes) -> bool:
    """Whether no end of image follows the first scan of a JPEG (ITU-T T.81, annex B).

    Segments in front of the scan are passed over by their length, so that the end of a thumbnail in one
    of them is not taken for the end of the picture.
    """
    at = 2
    while (at := data.find(b"\xff", at)) >= 0 and at + 4 <= len(data):
        marker = data[at + 1]
        if marker == _FILL:
            at += 1
        elif marker in _BARE_MARKERS:
            at += 2
        elif marker == _START_OF_SCAN:
            # Decoders take zeros behind the last row for the end that a camera did not write.
            return data.rfind(b"\xff\xd9", at) < 0 and not data.endswith(b"\0\0")
        else:
            at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return True


def _png_ends_early(data: bytes) -> bool:
    """Whether a PNG ends inside its picture data (ISO/IEC 15948, section 5.3)."""
    at = 8
    while at + 8 <= len(data):
        end = at + 8 + int.from_bytes(data[at : at + 4], "big")
        if data[at + 4 : at + 8] == b"IDAT" and end - len(data) > _PNG_TAIL:
            return True
        at = end + 4
    return False


def _orientation(image: Image.Image) -> int:
    """What is left to turn, as an EXIF orientation. EXIF that can't be read costs nobody the picture."""
    # Pillow turns TIFF by itself when it is loaded, and announces the size it will then have.
    if image.format == "TIFF":
        return 1
    try:
        found = image.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:
        return 1
    return found if found in _UPRIGHT else 1


def _upright(image: Image.Image) -> Image.Image:
    turn = _UPRIGHT.get(_orientation(image))
    return image if turn is None else image.transpose(turn)


def _eight_bit(image: Image.Image) -> Image.Image:
    """The picture as L, RGB or RGBA.

    16-bit grey is scaled from 0..65535, as the formats define it. 32-bit integers and floats have no
    defined range, so their own lowest and highest value become black and white.
    """
    if image.mode.startswith("I;16"):
        return Image.fromarray(np.round(np.asarray(image) / 257.0).astype(np.uint8))
    if image.mode in ("I", "F"):
        values = np.nan_to_num(np.asarray(image, np.float64))
        low, high = values.min(), values.max()
        scaled = (values - low) * (255.0 / ((high - low) or 1.0))
        return Image.fromarray(np.round(scaled).astype(np.uint8))
    if image.mode in ("L", "RGB", "RGBA"):
        # A picture without an alpha channel may still name one colour that is transparent.
        return image.convert("RGBA") if "transparency" in image.info else image
    return image.convert("RGBA" if image.has_transparency_data else "RGB")


def _pixels(image: Image.Image) -> NDArray[np.uint8]:
    """The picture as an array, uint8 [height, width] or [height, width, 3].

    Strip by strip: Pillow makes an array of a whole picture by way of two copies of it.
    """
    width, height = image.size
    shape = (height, width) if image.mode == "L" else (height, width, 3)
    pixels = np.empty(shape, np.uint8)
    rows = max(_STRIP_BYTES // pixels[:1].nbytes, 1)
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        pixels[top:bottom] = np.asarray(image.crop((0, top, width, bottom)))
    return pixels


def _flat_rgb(image: Image.Image) -> Image.Image:
    """The picture as RGB, with what is transparent shown on white, as a page would show it."""
    if image.mode != "RGBA":
        return image.convert("RGB")
    page = Image.new("RGB", image.size, "white")
    page.paste(image, mask=image.getchannel("A"))
    return page
