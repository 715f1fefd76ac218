"""In the place of torch."""

from __future__ import annotations

from contextlib import nullcontext


def inference_mode() -> nullcontext[None]:
    return nullcontext()


def set_num_threads(threads: int) -> None:
    assert threads == 1
