"""A folder as a mesh that runs leaves it, without the mesh."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from visionmesh.mesh import hold, running, running_file


def runs_in(
    directory: Path, environment: Mapping[str, str], replicas: Sequence[Mapping[str, Any]] = ()
) -> None:
    """Until the tests end. Of a folder in which it runs already, only what it wrote down is changed."""
    if running(directory) is None:
        hold(directory)
    state = {"pid": os.getpid(), "environment": environment, "replicas": replicas}
    running_file(directory).write_text(json.dumps(state))
