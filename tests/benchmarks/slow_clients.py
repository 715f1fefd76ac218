"""`slow-clients`: how long uploads take while hundreds of other clients send a byte a second.

Half of those never end their headers, half send a picture; one that is hung up on comes again. With and
without them, in turns, on the same ingest-api; the slow clients are a process of their own.
"""

from __future__ import annotations

import argparse
import asyncio
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from benchmarks.figures import figure, percentile, ratio
from benchmarks.servers import native, own_process, prepared
from benchmarks.upload import picture, request, server
from visionmesh.stack.ports import free_port

PICTURE_BYTES = 100_000
CLIENTS = 8
# Slower than anybody who means it; the service gives up on heads after 10 s and on bodies after 40.
_DRIP_SECONDS = 1.0
_READY = b"held\n"


async def timed_uploads(port: int, count: int) -> list[float]:
    """Milliseconds of each upload, by clients that send the next picture when the last was answered."""
    message = request(port, "/upload", picture(PICTURE_BYTES))
    turns = iter(range(count))
    taken: list[float] = []

    async def one() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for _ in turns:
            began = time.perf_counter()
            writer.write(message)
            head = await reader.readuntil(b"\r\n\r\n")
            if head.split(b" ", 2)[1] not in (b"200", b"202"):
                raise RuntimeError(f"the server answered {head!r}")
            length = next(
                int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")
            )
            await reader.readexactly(length)
            taken.append((time.perf_counter() - began) * 1000)
        writer.close()

    await asyncio.gather(*(one() for _ in range(CLIENTS)))
    return taken


async def hold(port: int, sockets: int) -> None:
    """Never ends by itself. Says so once all have begun."""
    begun = 0
    head, _, body = request(port, "/upload", picture(PICTURE_BYTES)).partition(b"\r\n\r\n")

    async def one(number: int) -> None:
        nonlocal begun
        start = head + b"\r\nX-Slow: " if number % 2 else head + b"\r\n\r\n" + body[:300]
        counted = False
        while True:
            with suppress(OSError):
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(start)
                begun += not counted
                counted = True
                if begun == sockets:
                    begun += 1
                    sys.stdout.buffer.write(_READY)
                    sys.stdout.flush()
                while not writer.is_closing():
                    await asyncio.sleep(_DRIP_SECONDS)
                    writer.write(b"x")
                    await writer.drain()
            await asyncio.sleep(_DRIP_SECONDS)

    await asyncio.gather(*(one(number) for number in range(sockets)))


@contextmanager
def held(port: int, sockets: int) -> Iterator[None]:
    process = own_process(
        "slow_clients", "--hold", str(port), "--sockets", str(sockets), stdout=subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == _READY
        yield
    finally:
        process.kill()
        process.wait()


def main(arguments: Sequence[str] = ()) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.slow_clients", description=__doc__)
    parser.add_argument("--count", type=int, default=400, help="uploads a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sockets", type=int, default=500)
    parser.add_argument("--hold", type=int, metavar="PORT", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.hold is not None:
        asyncio.run(hold(options.hold, options.sockets))
        return
    p99s: dict[str, list[float]] = {"alone": [], "beside": []}
    p50s: dict[str, list[float]] = {"alone": [], "beside": []}
    with native() as endpoints:
        prepared(endpoints)
        port = free_port()
        with server(["-m", "ingest_api"], port, endpoints.environment() | {"MESH_HTTP_PORT": str(port)}):
            asyncio.run(timed_uploads(port, CLIENTS * 4))
            for _ in range(options.rounds):
                for name in p99s:
                    if name == "alone":
                        taken = asyncio.run(timed_uploads(port, options.count))
                    else:
                        with held(port, options.sockets):
                            # They came all at once; what is measured is that they stay.
                            asyncio.run(timed_uploads(port, CLIENTS * 8))
                            taken = asyncio.run(timed_uploads(port, options.count))
                    p50s[name].append(percentile(taken, 0.5))
                    p99s[name].append(percentile(taken, 0.99))
    for name in p99s:
        figure(f"slow clients: uploads {name}, p50", p50s[name], "ms")
        figure(f"slow clients: uploads {name}, p99", p99s[name], "ms")
    ratio(f"slow clients: p99 with {options.sockets} / without", p99s["beside"], p99s["alone"], "<= 2")


if __name__ == "__main__":
    main(sys.argv[1:])
