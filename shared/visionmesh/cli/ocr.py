"""`mesh ocr`: the text of documents, here and now, without servers."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from visionmesh.cli.console import fail, progress
from visionmesh.cli.pictures import error_of, pictures_of
from visionmesh.errors import Rejected
from visionmesh.ocr_document import as_json as told

if TYPE_CHECKING:
    from ocr_worker.domain import Engine

_ALSO_READ: Final = frozenset((".pdf",))


def ocr(
    paths: Annotated[
        list[Path],
        typer.Argument(help="Pictures, PDFs and TIFFs, or folders (what they hold, to any depth)."),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON line per file.")] = False,
    language: Annotated[
        str, typer.Option(help="ISO 639-1 with plus signs between, or `any` for all scripts.")
    ] = "es+en",
    engine: Annotated[
        str, typer.Option(help="rapidocr or paddleocr, which has its models in MESH_OCR_PADDLE_MODELS.")
    ] = "rapidocr",
    threads: Annotated[int, typer.Option(min=1, help="Threads of the engine.")] = 1,
    max_pages: Annotated[int, typer.Option(min=1, help="Most pages of one file.")] = 200,
) -> None:
    """Read the text of documents here and now; no server is needed.

    The exit status is 1 when any file could not be read. A page without text is no error.
    """
    reader = _opened(engine, language, threads)
    files = list(pictures_of(paths, also=_ALSO_READ))
    unread = 0
    with progress() as bars:
        bar = bars.add_task("reading", total=len(files))
        for file in files:
            answer = _read(file, reader, max_pages)
            unread += "error" in answer
            sys.stdout.write((json.dumps(answer) if as_json else _for_people(answer)) + "\n")
            bars.advance(bar)
    if unread:
        fail(f"{unread} of {len(files)} could not be read.")


def _opened(name: str, language: str, threads: int) -> Engine:
    """The engine. Ends the program when it can't be had."""
    import cv2

    from ocr_worker.domain import open_engine
    from visionmesh.settings import get_settings

    # OpenCV would take all cores beside the engine's threads.
    cv2.setNumThreads(1)
    try:
        return open_engine(name, language, threads=threads, folder=get_settings().ocr_paddle_models)
    except (ImportError, RuntimeError, ValueError) as error:
        fail(str(error), 2)


def _read(file: Path, engine: Engine, max_pages: int) -> dict[str, Any]:
    from ocr_worker import domain

    try:
        document = domain.read_document(file.read_bytes(), engine, domain.Limits(pages=max_pages))
    except Rejected as error:
        return {"file": str(file), "error": {"code": error.code, "message": error.reason}}
    except OSError as error:
        return {"file": str(file), "error": error_of(error)}
    # The files after it are read all the same.
    except Exception as error:
        return {"file": str(file), "error": {"code": "bug", "message": f"{type(error).__name__}: {error}"}}
    return {"file": str(file), **told(document)}


def _for_people(answer: dict[str, Any]) -> str:
    if "error" in answer:
        return f"{answer['file']}: {answer['error']['message']} ({answer['error']['code']})"
    if not answer["text"]:
        return f"{answer['file']}: no text"
    return f"{answer['file']}:\n{answer['text']}\n"
