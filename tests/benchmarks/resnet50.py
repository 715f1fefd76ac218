"""ResNet-50 at 224 x 224 on ONNX Runtime, fp32 and int8: what the mesh's way to a label is measured against.

Built once by an interpreter that has `onnx` (`make bench` installs it), kept in the user's cache folder.
"""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnxruntime

from benchmarks.servers import peer_python
from visionmesh.images import decode_to
from visionmesh.stack.prepare import cache_directory

BUILDER = Path(__file__).parent / "peers" / "build_resnet50.py"
PRECISIONS = ("fp32", "int8")
SIDE = 224

# Of ImageNet's pictures, as every ResNet-50 of torchvision wants them (values 0 to 255, RGB).
MEAN = np.array([123.675, 116.28, 103.53], np.float32)
DEVIATION = np.array([58.395, 57.12, 57.375], np.float32)


def built() -> dict[str, Path] | None:
    """The two graphs by their precision; None when the peers' environment is not there to build them."""
    python = peer_python()
    folder = cache_directory() / f"resnet50-{hashlib.sha256(BUILDER.read_bytes()).hexdigest()[:12]}"
    if not folder.is_dir():
        if python is None:
            return None
        folder.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=folder.parent, prefix=f"{folder.name}-") as draft:
            done = subprocess.run([python, str(BUILDER), draft], capture_output=True, text=True)
            if done.returncode != 0:
                raise RuntimeError(f"{BUILDER.name} failed:\n{done.stderr[-2000:]}")
            # Under its own name only when it is complete.
            Path(draft).rename(folder)
    return {precision: folder / f"resnet50-{precision}.onnx" for precision in PRECISIONS}


def way(path: Path) -> Callable[[bytes], int]:
    """From the bytes of a picture to the number of a label.

    It is given the same decoder as the mesh's own way, which lets libjpeg do most of the reduction, and ONNX
    Runtime as it comes but for the single thread: with its arena, which the mesh's sessions do without.
    """
    # Since 1.31 the wheels report to their maker unless told not to.
    onnxruntime.disable_telemetry_events()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def label(data: bytes) -> int:
        picture = (decode_to(data, SIDE) - MEAN) / DEVIATION
        (logits,) = session.run(None, {"pictures": np.ascontiguousarray(picture.transpose(2, 0, 1)[None])})
        return int(np.argmax(logits))

    return label
