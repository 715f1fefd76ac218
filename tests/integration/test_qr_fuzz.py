"""Broken files through the child process of qr-decoder: each costs itself, and memory stays where it is.

MESH_QR_FUZZ and MESH_QR_PICTURES make the runs as large as the figures in the README.
"""

from __future__ import annotations

import io
import os
import random
import struct
import zlib
from collections import Counter
from pathlib import Path

import psutil
import segno
from PIL import Image

from qr_decoder.reader import Reader
from qr_decoder.reading import DOMAIN, read_one
from visionmesh.errors import Rejected
from visionmesh.isolated import Isolated

MEBIBYTE = 1024 * 1024
NOWHERE = Path("/nowhere")


def encoded(image: Image.Image, kind: str) -> bytes:
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


def code(content: str, scale: int = 3) -> Image.Image:
    file = io.BytesIO()
    segno.make(content, error="m").save(file, kind="png", scale=scale)
    return Image.open(file).convert("RGB")


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header promises width x height pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def broken(data: bytes, chance: random.Random) -> bytes:
    """The file cut off, or with a few of its bits turned, or both."""
    damaged = bytearray(data)
    if chance.random() < 0.7:
        for _ in range(chance.randint(1, 20)):
            damaged[chance.randrange(len(damaged))] ^= 1 << chance.randrange(8)
    if chance.random() < 0.5:
        del damaged[chance.randrange(1, len(damaged)) :]
    return bytes(damaged)


def fuzzed(count: int) -> list[bytes]:
    chance = random.Random(8008)
    whole = [
        encoded(code("https://example.org/fuzz", 3), kind)
        for kind in ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF")
    ]
    odd = [
        bomb(20_000, 20_000),
        bomb(9_000, 9_000),
        *(encoded(Image.new("L", size, 128), "PNG") for size in ((1, 1), (1, 9000), (9000, 1), (2, 2))),
        *(encoded(Image.effect_noise(size, 90), "PNG") for size in ((1, 300), (300, 1), (21, 21))),
    ]
    return [*odd, *(broken(chance.choice(whole), chance) for _ in range(count - len(odd)))]


def memory(child: psutil.Process) -> float:
    """What it holds for itself, in MiB: its share of a library grows when another process ends."""
    return sum(each.anonymous for each in child.memory_maps()) / MEBIBYTE


def test_no_broken_file_crashes_more_than_itself() -> None:
    outcomes: Counter[str] = Counter()
    with Isolated(read_one, deadline_seconds=30, memory_bytes=1024 * MEBIBYTE, preload=(DOMAIN,)) as isolated:
        read = Reader(isolated, NOWHERE, profile="cascade", budget_ms=500)
        for data in fuzzed(int(os.environ.get("MESH_QR_FUZZ", 200))):
            try:
                found = read(data)
            except Rejected as error:
                outcomes[error.code] += 1
            else:
                outcomes["read" if found.codes else "nothing"] += 1
                assert {each.content for each in found.codes} <= {"https://example.org/fuzz"}
        (found_code,) = read(encoded(code("still here"), "PNG")).codes
    assert found_code.content == "still here"
    assert outcomes["decoder_crashed"] == outcomes["deadline_exceeded"] == outcomes["memory_exceeded"] == 0
    assert outcomes["too_many_pixels"] == 1
    assert outcomes["read"] > 0
    assert outcomes["truncated_image"] > 0
    print(dict(outcomes))


def test_memory_stays_where_it_is() -> None:
    count = int(os.environ.get("MESH_QR_PICTURES", 200))
    pictures = [encoded(code(f"picture {number}", 3), "PNG") for number in range(10)]
    pictures += [encoded(Image.effect_noise((200, 150), 90), "JPEG")]
    own = psutil.Process()
    # Servers of the tests hang here as well, and start and end processes of their own beneath them.
    others = set(own.children())
    # More calls than a child is used for would hide what it keeps.
    with Isolated(
        read_one,
        deadline_seconds=30,
        memory_bytes=1024 * MEBIBYTE,
        preload=(DOMAIN,),
        calls_per_child=2 * count + 10,
    ) as isolated:
        read = Reader(isolated, NOWHERE, profile="cascade", budget_ms=500)
        for number in range(count // 4):
            read(pictures[number % len(pictures)])
        (child,) = set(own.children()) - others
        before = memory(child)
        for number in range(count):
            read(pictures[number % len(pictures)])
        assert set(own.children()) - others == {child}
        after = memory(child)
    print(f"{count} pictures: {before:.1f} -> {after:.1f} MiB")
    assert after <= 1.05 * before
