"""Logs that processes append to for as long as they live, kept from filling the disk."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Final

LOG_BYTES: Final = 16 * 1024 * 1024


def bound_log(path: Path) -> None:
    """Moves what a log has into `NAME.log.1`, in place of what was there, once it is above `LOG_BYTES`.

    For logs that are appended to. Raises `OSError` when there is no room for it.
    """
    if not path.exists() or path.stat().st_size <= LOG_BYTES:
        return
    # Copied and emptied: whoever writes goes on with the file he has. What he writes between the two is lost.
    shutil.copyfile(path, path.with_name(f"{path.name}.1"))
    os.truncate(path, 0)
