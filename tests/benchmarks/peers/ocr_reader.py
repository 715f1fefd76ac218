"""Reads the pictures whose paths come on standard input, one a line; answers each with a line of JSON.

    ocr_reader.py ours|rapidocr THREADS
    ocr_reader.py paddle|onnxruntime THREADS FOLDER

`ours` and `rapidocr` run in the mesh's own environment. PaddleOCR runs in one of its own, on the runtime
named, with the models of a folder. An answer has the `lines` in the order in which the reader gives them
(`text`, `polygon`), `cpu_seconds` and `seconds` from the decoded picture to the text, and `peak_bytes`, the
most that the process has held so far.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from typing import Any

kind, threads = sys.argv[1], int(sys.argv[2])
# Before libraries read them.
os.environ["OMP_NUM_THREADS"] = str(threads)
os.environ["PADDLE_PDX_DISABLE_MODEL_SOURCE_CHECK"] = "True"

import cv2  # noqa: E402
import numpy as np  # noqa: E402
from PIL import Image  # noqa: E402

cv2.setNumThreads(threads)

# RGB, upright -> lines.
Read = Callable[[Any], list[tuple[str, Any]]]


def ours() -> Read:
    from ocr_worker.domain import open_engine

    engine = open_engine("rapidocr", "es+en", threads=threads)
    return lambda page: [(line.text, line.polygon) for line in engine.read(page).lines]


def rapidocr() -> Read:
    from rapidocr import RapidOCR

    engine = RapidOCR(
        params={
            "EngineConfig.onnxruntime.intra_op_num_threads": threads,
            "EngineConfig.onnxruntime.inter_op_num_threads": 1,
            "Global.log_level": "error",
        }
    )

    def read(page: Any) -> list[tuple[str, Any]]:
        found = engine(np.ascontiguousarray(page[:, :, ::-1]))
        return [] if found.boxes is None else list(zip(found.txts, found.boxes, strict=True))

    return read


def paddleocr(runtime: str, folder: str) -> Read:
    from paddleocr import PaddleOCR

    of_runtime = {
        "onnxruntime": {"engine_config": {"intra_op_num_threads": threads, "inter_op_num_threads": 1}}
    }
    engine = PaddleOCR(
        text_detection_model_name="PP-OCRv6_small_det",
        text_detection_model_dir=f"{folder}/PP-OCRv6_small_det",
        text_recognition_model_name="PP-OCRv6_small_rec",
        text_recognition_model_dir=f"{folder}/PP-OCRv6_small_rec",
        use_doc_orientation_classify=False,
        use_doc_unwarping=False,
        use_textline_orientation=False,
        engine=runtime,
        device="cpu",
        cpu_threads=threads,
        **of_runtime.get(runtime, {}),
    )

    def read(page: Any) -> list[tuple[str, Any]]:
        found = engine.predict(np.ascontiguousarray(page[:, :, ::-1]))[0]
        return list(zip(found["rec_texts"], found["rec_polys"], strict=True))

    return read


def main() -> None:
    # Libraries print what they do; the answers have standard output for themselves.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    readers: dict[str, Callable[[], Read]] = {"ours": ours, "rapidocr": rapidocr}
    read = readers[kind]() if kind in readers else paddleocr(kind, sys.argv[3])
    for path in sys.stdin:
        page = np.asarray(Image.open(path.strip()).convert("RGB"))
        began, began_cpu = time.perf_counter(), time.process_time()
        lines = read(page)
        answer = {
            "cpu_seconds": time.process_time() - began_cpu,
            "seconds": time.perf_counter() - began,
            "lines": [
                {"text": text, "polygon": np.asarray(polygon).astype(float).tolist()}
                for text, polygon in lines
            ],
            "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        }
        print(json.dumps(answer), file=answers, flush=True)


main()
