"""asyncpg's `executemany`: writes the batches that come on standard input and answers with the seconds.

A request is a line of JSON, a list of batches; a batch is a list of `[statement, rows]`, written in one
transaction. Runs in the benchmarks' own environment.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time

import asyncpg


async def main(dsn: str) -> None:
    connection = await asyncpg.connect(dsn)
    for line in sys.stdin:
        batches = json.loads(line)
        started = time.perf_counter()
        for batch in batches:
            async with connection.transaction():
                for statement, rows in batch:
                    await connection.executemany(statement, rows)
        print(time.perf_counter() - started, flush=True)
    await connection.close()


asyncio.run(main(sys.argv[1]))
