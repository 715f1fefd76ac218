"""`mesh qr`: the codes of pictures, here and now, without servers."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from visionmesh.cli.console import complain, fail, progress
from visionmesh.cli.pictures import Paths, error_of, pictures_of
from visionmesh.errors import Rejected
from visionmesh.qr_code import as_json as told

if TYPE_CHECKING:
    from qr_decoder.domain import Locator, Result


def qr(
    paths: Paths,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON line per picture.")] = False,
    profile: Annotated[
        str,
        typer.Option(help="cascade, light, ultralight, onnx, hybrid, or level names with commas between."),
    ] = "cascade",
    budget_ms: Annotated[float, typer.Option(min=1, help="Milliseconds for each picture.")] = 2000.0,
    draw: Annotated[
        Path | None, typer.Option(help="A folder for the pictures with their codes outlined.")
    ] = None,
) -> None:
    """Read the QR codes of pictures here and now; no server is needed.

    The exit status is 1 when any picture could not be read. A picture without codes is no error.
    """
    from qr_decoder.domain import UnknownLevelError, lacks_locators, locators_in
    from visionmesh.settings import get_settings

    models = get_settings().models_dir
    locators = locators_in(models)
    try:
        if lacks_locators(profile, locators):
            fail(f"No locator that profile {profile!r} asks is in {models}.", 2)
    except UnknownLevelError as error:
        fail(str(error), 2)
    files = list(pictures_of(paths))
    answers = []
    drawn: set[Path] = set()
    with progress() as bars:
        bar = bars.add_task("reading", total=len(files))
        for file in files:
            answer = _read(
                file, profile, budget_ms, locators, None if draw is None else _free(draw, file, drawn)
            )
            sys.stdout.write((json.dumps(answer) if as_json else _for_people(answer)) + "\n")
            answers.append(answer)
            bars.advance(bar)
    _sum_up(answers, any(path.is_dir() for path in paths))
    unread = sum("error" in answer for answer in answers)
    if unread:
        fail(f"{unread} of {len(files)} could not be read.")


def _read(
    file: Path, profile: str, budget_ms: float, locators: Mapping[str, Locator], drawing: Path | None
) -> dict[str, Any]:
    from qr_decoder import domain
    from visionmesh import images

    try:
        data = file.read_bytes()
        result = domain.decode(data, profile=profile, budget_ms=budget_ms, locators=locators)
        if drawing is not None:
            drawing.parent.mkdir(parents=True, exist_ok=True)
            domain.annotated(images.decode(data), result.codes).save(drawing)
    except Rejected as error:
        return {"file": str(file), "error": {"code": error.code, "message": error.reason}}
    except OSError as error:
        return {"file": str(file), "error": error_of(error)}
    return {"file": str(file), **_answer(result)}


def _answer(result: Result) -> dict[str, Any]:
    answer: dict[str, Any] = {"codes": [told(code) for code in result.codes]}
    if result.truncated:
        answer["truncated"] = True
    return {**answer, "processing_time_ms": round(result.processing_time_ms, 1)}


def _free(folder: Path, file: Path, taken: set[Path]) -> Path:
    """Where to draw a picture: its own name as PNG, numbered when two folders have one of that name."""
    target = folder / f"{file.stem}.png"
    number = 2
    while target in taken:
        target = folder / f"{file.stem}-{number}.png"
        number += 1
    taken.add(target)
    return target


def _for_people(answer: dict[str, Any]) -> str:
    if "error" in answer:
        return f"{answer['file']}: {answer['error']['message']} ({answer['error']['code']})"
    if not answer["codes"]:
        return f"{answer['file']}: no code"
    codes = "; ".join(f"{code['content']!r} ({code['level']})" for code in answer["codes"])
    return f"{answer['file']}: {codes}"


def _sum_up(answers: list[dict[str, Any]], folder: bool) -> None:
    """The success rate, on standard error, so that the lines on standard output stay one per picture."""
    if not folder or not answers:
        return
    found = sum(bool(answer.get("codes")) for answer in answers)
    codes = sum(len(answer.get("codes", ())) for answer in answers)
    complain(f"{found} of {len(answers)} pictures with codes ({found / len(answers):.1%}), {codes} codes.")
