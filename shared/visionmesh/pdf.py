"""PDFs -> pictures of their pages. Run it in `visionmesh.isolated`: it works on someone else's bytes."""

from __future__ import annotations

import numpy as np
import pypdfium2
from numpy.typing import NDArray


def opened(data: bytes) -> pypdfium2.PdfDocument:
    """A document for a `with` block. Raises `PdfiumError`, also where a password is asked for."""
    document = pypdfium2.PdfDocument(data)
    # What is filled in is drawn only of pages that are fetched after this.
    document.init_forms()
    return document


def picture_of(page: pypdfium2.PdfPage, scale: float) -> NDArray[np.uint8]:
    """A page and what its form is filled in with, uint8 [height, width, 3] RGB.

    scale: pixels a point, of which an inch has 72. Raises `PdfiumError`.
    """
    bitmap = page.render(scale=scale, rev_byteorder=True)
    # The bitmap's memory goes with it.
    picture = np.array(bitmap.to_numpy()[:, :, :3], dtype=np.uint8)
    bitmap.close()
    return picture
