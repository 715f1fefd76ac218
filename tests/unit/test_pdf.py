"""Pages of PDFs as pictures, to be read and to be drawn on."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import pikepdf
import pytest
from numpy.typing import NDArray
from pikepdf import Array, Dictionary, Name, Stream
from PIL import Image

from ocr_worker.domain.documents import pages_of
from visionmesh.drawing import Asked, draw_on


def form() -> bytes:
    """An empty page of 300 x 200 points whose only text is what a field of it is filled in with."""
    pdf = pikepdf.new()
    pdf.add_blank_page(page_size=(300, 200))
    font = Dictionary(Type=Name.Font, Subtype=Name.Type1, BaseFont=Name.Helvetica)
    fonts = Dictionary(Font=Dictionary(F=font))
    shown = Stream(pdf, b"/Tx BMC q BT /F 20 Tf 5 10 Td (12.345,67) Tj ET Q EMC")
    shown.Type, shown.Subtype = Name.XObject, Name.Form
    shown.BBox, shown.Resources = Array([0, 0, 200, 40]), fonts
    field = pdf.make_indirect(
        Dictionary(
            Type=Name.Annot,
            Subtype=Name.Widget,
            FT=Name.Tx,
            T="total",
            V="12.345,67",
            DA="/F 20 Tf 0 g",
            Rect=Array([50, 80, 250, 120]),
            F=4,
            AP=Dictionary(N=shown),
        )
    )
    pdf.pages[0].obj.Annots = Array([field])
    pdf.Root.AcroForm = Dictionary(Fields=Array([field]), DR=fonts, DA="/F 20 Tf 0 g")
    file = io.BytesIO()
    pdf.save(file)
    return file.getvalue()


def read(data: bytes) -> NDArray[np.uint8]:
    (page,) = pages_of(data)
    return page.picture


def drawn_on(data: bytes) -> NDArray[np.uint8]:
    drawn = draw_on(Asked(data, (), width=834))
    return np.asarray(Image.open(io.BytesIO(drawn.data)))


@pytest.mark.parametrize("picture_of", [read, drawn_on])
def test_what_a_form_is_filled_in_with_is_seen(picture_of: Callable[[bytes], NDArray[np.uint8]]) -> None:
    dark = picture_of(form()) < 128
    assert dark.shape[1:] == (834, 3)
    assert 500 < dark.any(axis=2).sum() < 20_000
