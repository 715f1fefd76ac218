"""`python -m qr_decoder.export_qrdet`: a detector of QReader as ONNX. Runs where that package is installed.

`mesh models export-qrdet` calls it, and looks at what it made.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from qr_decoder import weights
from visionmesh.errors import Rejected

# What the file is asked for by all who use it: 640 pixels square, one picture, no NMS.
_SIDE: Final = 640

# The oldest that has all that the net is made of, so that older runtimes read it too.
_OPSET: Final = 17


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m qr_decoder.export_qrdet", description=__doc__)
    parser.add_argument("--size", choices=weights.SIZES, required=True)
    parser.add_argument("--weights", type=Path, help="a file; else that of --weights-folder")
    parser.add_argument("--weights-folder", type=Path, help="downloaded into where it is missing")
    parser.add_argument("--onnx", type=Path, required=True, help="the file to write")
    options = parser.parse_args(arguments)
    os.environ.update(weights.QUIET)
    try:
        if options.weights is None:
            weights.fetch(options.size, options.weights_folder)
        file = options.weights or weights.file_of(options.size, options.weights_folder)
        export(options.size, file, options.onnx)
    except Rejected as error:
        sys.stderr.write(f"{error.reason}\n")
        return 1
    return 0


def export(size: str, file: Path, onnx: Path) -> None:
    """Writes the detector of a weights file as ONNX.

    Raises `Rejected`: `package_missing`, `weights_broken`.
    """
    # The package writes beside the weights, which may be anywhere.
    with TemporaryDirectory() as folder:
        weights.placed(size, file, Path(folder))
        detector = weights.opened(size, Path(folder)).detector.model
        written = detector.export(
            format="onnx", imgsz=_SIDE, batch=1, opset=_OPSET, dynamic=False, simplify=False, device="cpu"
        )
        onnx.write_bytes(Path(written).read_bytes())


if __name__ == "__main__":
    sys.exit(main())
