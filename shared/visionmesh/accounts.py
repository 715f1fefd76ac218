"""The account of each service: a role of Postgres and a user of MinIO, with what its work needs and no more.

`python -m visionmesh.accounts postgres` (once the tables are there) and `python -m visionmesh.accounts s3`
make them, or bring them to what stands here, as the owner of the servers that the settings name. The password
of `ingest-api`, for both, is in INGEST_API_PASSWORD, and so on.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import psycopg
from psycopg import sql

from visionmesh.errors import Unavailable
from visionmesh.settings import Settings, settings_or_exit

_READ: Final = "SELECT"
_SAVE: Final = "SELECT, INSERT, UPDATE"
_ERASE: Final = "SELECT, DELETE"
_KEEP: Final = "SELECT, INSERT, UPDATE, DELETE"

# What every worker does: it writes down how a message ended, and nothing of what was deleted.
_WORKER: Final = {"task_outcomes": _SAVE, "deleted_images": _READ}

# They make and drop tables, which nobody else may. Called with the rights of their owner, and therefore with
# names that the caller can't redirect.
_PARTITIONS: Final = ("ensure_sensor_readings_day(date)", "drop_sensor_readings_before(date)")

# Any number, the same in every version: two jobs at once would be in each other's way.
_LOCK: Final = 7_346_100_523


@dataclass(frozen=True)
class Account:
    """tables: privileges of Postgres by table. functions: which of those that not everybody may call.

    objects: what it may do in the buckets of pictures.
    """

    name: str
    tables: Mapping[str, str]
    functions: tuple[str, ...] = field(default=())
    objects: Literal["none", "read", "write"] = "none"

    @property
    def variable(self) -> str:
        """Of the environment, where its password is."""
        return f"{self.name.replace('-', '_').upper()}_PASSWORD"


ACCOUNTS: Final = (
    Account(
        "ingest-api",
        {
            "images": _KEEP,
            "deleted_images": _KEEP,
            "image_features": _ERASE,
            "predictions": _ERASE,
            "shadow_features": _ERASE,
            "shadow_predictions": _ERASE,
            "qr_codes": _ERASE,
            "ocr_documents": _ERASE,
            "task_outcomes": _ERASE,
            "sensor_readings": _READ,
        },
        objects="write",
    ),
    Account(
        "feature-extractor", _WORKER | {"image_features": _SAVE, "shadow_features": _SAVE}, objects="read"
    ),
    Account("classifier", _WORKER | {"predictions": _SAVE, "shadow_predictions": _SAVE}),
    Account("qr-decoder", _WORKER | {"qr_codes": _KEEP}, objects="read"),
    Account("ocr-worker", _WORKER | {"ocr_documents": _SAVE, "images": _READ}, objects="read"),
    Account("sensor-sink", _WORKER | {"sensor_readings": _SAVE}, functions=_PARTITIONS),
)


class AccountsError(Exception):
    """An account can't be made; the text says why."""


def passwords(environment: Mapping[str, str], accounts: Sequence[Account] = ACCOUNTS) -> dict[str, str]:
    """The passwords by account. Raises `AccountsError` where one is missing."""
    missing = [account.variable for account in accounts if not environment.get(account.variable)]
    if missing:
        raise AccountsError(f"{', '.join(missing)} is not set; `make env` makes one.")
    return {account.name: environment[account.variable] for account in accounts}


def make_roles(dsn: str, passwords: Mapping[str, str]) -> None:
    """Makes the roles, or brings them to what they have to be. dsn: of the tables' owner, who may make roles.

    Raises psycopg's errors.
    """
    with psycopg.connect(dsn, connect_timeout=5) as connection:
        connection.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
        # Before Postgres 15 everybody might make tables, and functions of the names that others call.
        connection.execute("REVOKE CREATE ON SCHEMA public FROM PUBLIC")
        # Everybody might connect, and fill the disk with a session's tables. Roles are given the first below.
        (database,) = connection.execute("SELECT current_database()").fetchone() or ("",)
        connection.execute(
            sql.SQL("REVOKE CONNECT, TEMPORARY ON DATABASE {} FROM PUBLIC").format(sql.Identifier(database))
        )
        for function in _PARTITIONS:
            for statement in (
                "ALTER FUNCTION {} SECURITY DEFINER",
                "ALTER FUNCTION {} SET search_path = public, pg_temp",
                "REVOKE EXECUTE ON FUNCTION {} FROM PUBLIC",
            ):
                # No identifier: it names its arguments.
                connection.execute(sql.SQL(statement).format(sql.SQL(function)))
        for account in ACCOUNTS:
            _make_role(connection, account, passwords[account.name])


def _make_role(connection: psycopg.Connection[Any], account: Account, password: str) -> None:
    role = sql.Identifier(account.name)
    (database,) = connection.execute("SELECT current_database()").fetchone() or ("",)
    known = connection.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", (account.name,)).fetchone()
    # Encrypted here, so that no log of the server's has it in clear.
    verifier = connection.pgconn.encrypt_password(password.encode(), account.name.encode(), b"scram-sha-256")
    connection.execute(
        sql.SQL(
            "{verb} ROLE {role} LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS "
            "PASSWORD {password}"
        ).format(
            verb=sql.SQL("ALTER" if known else "CREATE"), role=role, password=sql.Literal(verifier.decode())
        )
    )
    for statement in (
        "REVOKE ALL ON ALL TABLES IN SCHEMA public FROM {role}",
        "REVOKE ALL ON ALL FUNCTIONS IN SCHEMA public FROM {role}",
        "GRANT CONNECT ON DATABASE {database} TO {role}",
        "GRANT USAGE ON SCHEMA public TO {role}",
    ):
        connection.execute(sql.SQL(statement).format(role=role, database=sql.Identifier(database)))
    for table, privileges in account.tables.items():
        connection.execute(
            sql.SQL("GRANT {} ON {} TO {}").format(sql.SQL(privileges), sql.Identifier(table), role)
        )
    for function in account.functions:
        connection.execute(sql.SQL("GRANT EXECUTE ON FUNCTION {} TO {}").format(sql.SQL(function), role))


def policy(account: Account, buckets: Sequence[str]) -> dict[str, Any]:
    """What MinIO is told that the account may do.

    Whoever may read objects may list them: without it a missing one is answered like a forbidden one, which a
    worker would wait for.
    """
    on_bucket = ["s3:GetBucketLocation", "s3:ListBucket"]
    on_objects = ["s3:GetObject"]
    if account.objects == "write":
        on_bucket += ["s3:CreateBucket", "s3:ListBucketMultipartUploads"]
        on_objects += [
            "s3:PutObject",
            "s3:DeleteObject",
            "s3:AbortMultipartUpload",
            "s3:ListMultipartUploadParts",
        ]
    return {
        "Version": "2012-10-17",
        "Statement": [
            {
                "Effect": "Allow",
                "Action": on_bucket,
                "Resource": [f"arn:aws:s3:::{name}" for name in buckets],
            },
            {
                "Effect": "Allow",
                "Action": on_objects,
                "Resource": [f"arn:aws:s3:::{name}/*" for name in buckets],
            },
        ],
    }


def make_users(settings: Settings, passwords: Mapping[str, str]) -> None:
    """Makes the users of MinIO with their policies, or brings them to what they have to be.

    Raises `Unavailable("object_store", …)`, also for an S3 that is no MinIO.
    """
    # Its admin client takes 3 MiB, which only this job pays for.
    import urllib3
    from minio.credentials.providers import StaticProvider
    from minio.error import MinioException
    from minio.minioadmin import MinioAdmin
    from urllib3.exceptions import HTTPError

    admin = MinioAdmin(
        endpoint=settings.s3_endpoint,
        credentials=StaticProvider(
            settings.s3_access_key.get_secret_value(), settings.s3_secret_key.get_secret_value()
        ),
        secure=settings.s3_secure,
        http_client=urllib3.PoolManager(
            timeout=10, retries=False, ca_certs=str(settings.s3_tls_ca) if settings.s3_tls_ca else None
        ),
    )
    buckets = sorted({settings.s3_upload_bucket, *settings.s3_allowed_buckets})
    try:
        for account in ACCOUNTS:
            if account.objects == "none":
                continue
            admin.policy_add(account.name, policy=policy(account, buckets))
            admin.user_add(account.name, passwords[account.name])
            admin.policy_set(account.name, user=account.name)
    except (MinioException, HTTPError) as error:
        raise Unavailable("object_store", f"its users can't be made: {str(error)[:200]}") from error


def main(arguments: Sequence[str]) -> int:
    if list(arguments) not in (["postgres"], ["s3"]):
        sys.stderr.write("usage: python -m visionmesh.accounts postgres|s3\n")
        return 2
    settings = settings_or_exit()
    try:
        found = passwords(os.environ)
        if arguments[0] == "postgres":
            make_roles(settings.postgres_dsn.get_secret_value(), found)
        else:
            make_users(settings, found)
    except (AccountsError, Unavailable, psycopg.Error) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
