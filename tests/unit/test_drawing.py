"""Pictures with outlines drawn over."""

from __future__ import annotations

import io

import pytest
from PIL import Image

from visionmesh.drawing import Asked, Outline, draw_on


@pytest.mark.parametrize("kind", ["JPEG", "PDF"])
def test_a_page_larger_than_is_drawn_on_is_reduced_with_its_outlines(kind: str) -> None:
    file = io.BytesIO()
    Image.new("L", (9000, 9000), 200).save(file, kind)
    outline = Outline(((2000, 3000), (8000, 3000), (8000, 4000), (2000, 4000)), "")
    asked = Asked(file.getvalue(), (outline,), width=9000)
    drawn = Image.open(io.BytesIO(draw_on(asked).data))
    assert drawn.width == drawn.height == pytest.approx(4750, abs=260)
    at = drawn.width / 9000
    red, green, _ = drawn.getpixel((int(5000 * at), int(4000 * at)))  # type: ignore[misc]
    assert green > red + 50, "the lower edge"
    red, green, _ = drawn.getpixel((int(5000 * at), int(3500 * at)))  # type: ignore[misc]
    assert abs(green - red) < 10, "between the edges"
