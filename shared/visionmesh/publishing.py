"""`python -m visionmesh.publishing`: whether the mesh may be opened as its settings say.

Runs once before the gateway of compose starts; an exit status other than 0 keeps that from starting.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from typing import Final

from visionmesh.access import Guard, is_published
from visionmesh.api_keys import KeysError
from visionmesh.settings import Settings, settings_or_exit

# The first design's, which everybody knows; and what is too short to be any better.
_FIRST_PASSWORD: Final = "admin123"
_SHORTEST_PASSWORD: Final = 12

# The snippets of the gateway's Caddyfile.
TLS: Final = ("off", "internal", "files", "acme")


def refusals(settings: Settings, environment: Mapping[str, str]) -> Iterator[str]:
    """Why not, a sentence for each reason."""
    try:
        Guard.from_settings(settings)
    except KeysError as error:
        yield str(error)
    tls, domain = environment.get("GATEWAY_TLS") or "off", environment.get("GATEWAY_DOMAIN", "")
    if tls not in TLS:
        yield f"MESH_TLS is {tls!r}; it has to be one of {', '.join(TLS)}."
    elif bool(domain) != (tls == "acme"):
        yield "MESH_TLS=acme and MESH_DOMAIN go together: the domain that a certificate is asked for."
    elif tls == "internal" and not environment.get("GATEWAY_TLS_NAMES"):
        yield (
            "MESH_TLS=internal needs MESH_TLS_NAMES: the names under which clients ask for the mesh, with "
            "spaces between. No other gets a certificate."
        )
    if not is_published(settings):
        return
    password = environment.get("GRAFANA_ADMIN_PASSWORD", "")
    if password == _FIRST_PASSWORD or len(password) < _SHORTEST_PASSWORD:
        yield (
            f"Published on {settings.publish_address}, Grafana needs a GRAFANA_ADMIN_PASSWORD of "
            f"{_SHORTEST_PASSWORD} characters or more; `make env` makes one."
        )


def main() -> int:
    settings = settings_or_exit()
    reasons = list(refusals(settings, os.environ))
    for reason in reasons:
        sys.stderr.write(f"{reason}\n")
    if is_published(settings) and (os.environ.get("GATEWAY_TLS") or "off") == "off":
        sys.stderr.write("Without MESH_TLS keys and pictures travel in the clear.\n")
    return 1 if reasons else 0


if __name__ == "__main__":
    sys.exit(main())
