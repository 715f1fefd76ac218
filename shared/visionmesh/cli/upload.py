"""`mesh upload`: pictures in through the one door, and what became of them."""

from __future__ import annotations

import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from visionmesh.cli.console import DIRECTORY, Directory, api_key_headers, fail, ingest_url, progress
from visionmesh.cli.pictures import Paths, error_of, pictures_of

if TYPE_CHECKING:
    import httpx

# Uploads under way at once: enough to hide the round trips, few enough for one small server.
_PARALLEL: Final = 4
_POLL_SECONDS: Final = 0.05
_TOO_MANY: Final = 429


def upload(
    paths: Paths,
    url: Annotated[str | None, typer.Option(help="ingest-api; the running mesh's when absent.")] = None,
    tasks: Annotated[str | None, typer.Option(help="E.g. classify,qr; everything when absent.")] = None,
    image_id: Annotated[
        str | None, typer.Option(help="Your own id, for one file; repeating is safe.")
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for the results.")] = False,
    timeout: Annotated[float, typer.Option(help="Seconds to wait for the results of one file.")] = 60.0,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON line per file.")] = False,
    directory: Directory = DIRECTORY,
) -> None:
    """Upload pictures; with --wait print their labels."""
    import httpx

    files = list(pictures_of(paths))
    if image_id is not None and len(files) > 1:
        fail("--image-id names one picture; upload one file at a time with it.", 2)
    base = url or ingest_url(directory)
    form = {name: value for name, value in (("tasks", tasks), ("image_id", image_id)) if value is not None}

    def one(file: Path) -> dict[str, Any]:
        answer = _upload(client, file, form)
        if wait and "image_id" in answer:
            answer |= _wait(client, answer["image_id"], timeout)
        return {"file": str(file), **answer}

    failed = False
    try:
        with (
            httpx.Client(
                base_url=base, headers=api_key_headers(), timeout=httpx.Timeout(30, write=300)
            ) as client,
            ThreadPoolExecutor(_PARALLEL) as pool,
            progress() as bars,
        ):
            for answer in bars.track(pool.map(one, files), total=len(files), description="uploading"):
                failed = failed or "error" in answer or answer.get("status") == "processing"
                _print(answer, as_json=as_json, waited=wait)
    except httpx.ConnectError as error:
        fail(f"Nothing answers on {base} ({error}); start the mesh with `mesh up` or name it with --url.")
    except httpx.TransportError as error:
        fail(f"{base} broke off: {error!r}")
    if failed:
        raise SystemExit(1)


def _upload(client: httpx.Client, file: Path, form: dict[str, str]) -> dict[str, Any]:
    """The server's answer, or `error` with `code` and `message`."""
    try:
        with file.open("rb") as stream:
            response = client.post("/upload", data=form, files={"file": (file.name, stream)})
    except OSError as error:
        return {"error": error_of(error)}
    return _answer(response)


def _answer(response: httpx.Response) -> dict[str, Any]:
    try:
        answer = dict(response.json())
    except ValueError:
        message = f"{response.status_code} {response.text[:200]}"
        return {"error": {"code": "not_the_mesh", "message": message}}
    if "code" in answer:
        return {"error": {"code": answer["code"], "message": answer["error"]}}
    return answer


def _wait(client: httpx.Client, image_id: str, seconds: float) -> dict[str, Any]:
    deadline = time.monotonic() + seconds
    while True:
        response = client.get(f"/predictions/{image_id}")
        if response.status_code == _TOO_MANY and time.monotonic() < deadline:
            time.sleep(float(response.headers.get("retry-after", 1)))
            continue
        found = _answer(response)
        if found.get("status") != "processing" or time.monotonic() > deadline:
            return _became(found)
        time.sleep(_POLL_SECONDS)


def _became(found: dict[str, Any]) -> dict[str, Any]:
    """`status`, `predictions`, `consensus` and `outcomes`; `error` with `code` and `message` only when it
    failed.
    """
    if "status" not in found:
        return found
    became = {name: found[name] for name in ("status", "predictions", "consensus", "outcomes")}
    if found["error"] is None:
        return became
    # `worker: code: reason`, as the results tell it.
    worker, _, why = found["error"].partition(": ")
    code, _, reason = why.partition(": ")
    return became | {"error": {"code": code, "message": f"{worker}: {reason}"}}


def _print(answer: dict[str, Any], *, as_json: bool, waited: bool) -> None:
    if as_json:
        text = json.dumps(answer)
    elif "error" in answer:
        known = f"{answer['image_id']} failed: " if "image_id" in answer else ""
        text = f"{answer['file']}: {known}{answer['error']['message']} ({answer['error']['code']})"
    elif not waited:
        text = f"{answer['file']}: {answer['image_id']}"
    elif answer["status"] != "done":
        text = f"{answer['file']}: {answer['image_id']} {answer['status']}: still working"
    else:
        text = f"{answer['file']}: {answer['image_id']} {_labels(answer) or _why_no_labels(answer)}"
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def _labels(answer: dict[str, Any]) -> str:
    labels = ", ".join(
        f"{item['classifier']} {item['label']} {item['confidence']:.0%}" for item in answer["predictions"]
    )
    agreed = answer["consensus"]
    if agreed is None:
        return labels
    return f"{labels}; agreed {agreed['label']} {agreed['confidence']:.0%} ({agreed['agreement']})"


def _why_no_labels(answer: dict[str, Any]) -> str:
    """A picture is done without labels when a worker skipped it, or when none were asked for."""
    skipped = [
        f"skipped by {outcome['worker']}: {outcome['error']}"
        for outcome in answer["outcomes"]
        if outcome["state"] == "skipped"
    ]
    return "; ".join(skipped) or "no predictions"
