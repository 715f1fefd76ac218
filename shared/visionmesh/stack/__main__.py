"""`python -m visionmesh.stack prepare | run`: the servers alone, without the services."""

from __future__ import annotations

import argparse
import json
import shlex
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from visionmesh.stack import Ports, StackError, open_stack
from visionmesh.stack.prepare import kafka_jars, minio_binary, prepare_native


def main(arguments: Sequence[str]) -> int:
    options = _parser().parse_args(arguments)
    try:
        if options.action == "prepare":
            prepare()
        else:
            ports = Ports(options.kafka_port, options.s3_port, options.postgres_port, options.cache_port)
            run(options.stack, options.directory, ports, as_json=options.json)
    except StackError as error:
        _say(str(error), sys.stderr)
        return 1
    return 0


def prepare() -> None:
    """Fetch and build what the native stack needs, and say where it is."""
    prepare_native(_say)
    _say(f"Apache Kafka is in {kafka_jars()}")
    _say(f"MinIO is {minio_binary()}")


def run(kind: str, directory: Path, ports: Ports, *, as_json: bool) -> None:
    """Run a stack until SIGTERM or SIGINT; prints its environment when all servers answer."""
    stopped = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopped.set())
    if kind == "native":
        # Minutes on a cold cache; standard output is for the environment alone.
        prepare_native(lambda line: _say(line, sys.stderr))
    with open_stack("native" if kind == "native" else "embedded", directory, ports=ports) as stack:
        variables = stack.endpoints.environment()
        if as_json:
            pids = {server.name: server.pid for server in stack.servers}
            _say(json.dumps({"environment": variables, "pids": pids}))
        else:
            _say("\n".join(f"{name}={shlex.quote(value)}" for name, value in variables.items()))
        stopped.wait()


def _say(text: str, to: TextIO = sys.stdout) -> None:
    to.write(f"{text}\n")
    to.flush()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m visionmesh.stack", description=__doc__)
    actions = parser.add_subparsers(dest="action", required=True)
    actions.add_parser("prepare", help="fetch Kafka, build MinIO, once; the native stack needs them")
    running = actions.add_parser("run", help="run the servers until SIGTERM and print their environment")
    running.add_argument("--stack", choices=("embedded", "native"), default="embedded")
    running.add_argument("--directory", type=Path, required=True, help="for data, logs and credentials")
    running.add_argument("--json", action="store_true", help="one JSON object instead of NAME=value lines")
    for name in ("kafka", "s3", "postgres", "cache"):
        running.add_argument(f"--{name}-port", type=int, help="a free one when absent")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
