"""Imports `minio` without its client of the server's admin interface, which is not used here.

`import minio` imports that with two libraries for cryptography, which take 3 MiB of every process. What asks
for `minio.minioadmin` itself still gets it.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any, Final

_ADMIN: Final = "minio.minioadmin"


def _import() -> None:
    if "minio" in sys.modules or _ADMIN in sys.modules:
        return
    nothing: Any = ModuleType(_ADMIN)
    nothing.MinioAdmin = None
    sys.modules[_ADMIN] = nothing
    try:
        import minio
    # A release that takes more from there is imported as it is, by whoever imports it next.
    except ImportError:
        return
    finally:
        del sys.modules[_ADMIN]
    vars(minio).pop("MinioAdmin", None)


_import()
