"""The failure outcomes of the mesh, told apart by type.

* `Rejected`: the message (or the request) is at fault and can never work. It becomes a dead letter
  over Kafka and a 4xx over HTTP.
* `Unavailable`: the world is at fault. The work is retried for as long as it takes over Kafka and is a
  503 with `Retry-After` over HTTP.
* Anything else is a bug: the worker isolates the guilty message, tries it again, then dead-letters it
  with its traceback; HTTP answers 500 without it.
"""

from __future__ import annotations


class Rejected(Exception):  # noqa: N818 - an outcome
    """The message can never work.

    `code` is a stable snake_case word that programs may compare; `reason` is a sentence for people.
    """

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(code, reason)
        self.code = code
        self.reason = reason

    def __str__(self) -> str:
        return self.reason


class Unavailable(Exception):  # noqa: N818 - an outcome
    """A server is away, overloaded or refusing; the same work may succeed later.

    `server` is one of the names that `/ready` reports (kafka, object_store, database, model_store), another
    that an endpoint needs (cache, queue, mqtt, paddlex, ingest_api), or `isolated`: a child that decodes.
    """

    def __init__(self, server: str, reason: str) -> None:
        super().__init__(server, reason)
        self.server = server
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.server}: {self.reason}"
