"""S3 in memory from moto as a server: `python -m visionmesh.stack.moto_s3 --port 9000`."""

from __future__ import annotations

import argparse
import logging
import resource
import sys
from collections.abc import Sequence

from moto.moto_server.werkzeug_app import MotoRequestHandler, create_backend_app
from werkzeug.serving import make_server

from visionmesh.stack.ports import LOOPBACK

# moto keeps a file open for every object that it does not keep in memory.
OPEN_FILES = 65_536


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m visionmesh.stack.moto_s3", description=__doc__)
    parser.add_argument("--port", type=int, required=True, help="port on 127.0.0.1")
    options = parser.parse_args(arguments)
    _allow_open_files()
    # One line per request would be most of what this server does.
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = make_server(
        LOOPBACK, options.port, create_backend_app("s3"), threaded=True, request_handler=MotoRequestHandler
    )
    server.serve_forever()


def _allow_open_files() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, OPEN_FILES)
    if most > soft:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


if __name__ == "__main__":
    main(sys.argv[1:])
